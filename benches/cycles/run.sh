#!/usr/bin/env bash
# Model cycles of every layer on a Cortex-M4, beside its instructions: see m4cycles.c for the model.
#
#   benches/cycles/run.sh            writes benches/cycles/mps2-an386-<width>.csv
#
# Needs cc, nm, awk, and QEMU with plugins (Debian's and Fedora's have them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$PWD/benches/cycles work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cc -shared -fPIC -O2 "$out/m4cycles.c" -o "$work/m4cycles.so"
cargo run --quiet --locked -p adcorda-tests --bin networks -- "$work"
(cd examples/qemu && env -u CARGO_TARGET_DIR cargo build --quiet --locked --release --config boards/mps2-an386.toml)
elf=$PWD/examples/qemu/target/mps2-an386/thumbv7em-none-eabihf/release/adcorda-qemu
ticks=0x$(nm -C "$elf" | awk '$3 == "adcorda_qemu::counter::ticks" { print $1 }')

for width in w8 w4 w2 w1; do
  file=$out/mps2-an386-$width.csv
  echo "network,layer,instructions,cycles" >"$file"
  for network in resnet8 resnet20 dscnn; do
    model=$network-$width
    arguments=arg=adcorda-qemu,arg=$model.adq,arg=$model.bin,arg=1
    # The first two spans are the firmware's own check of its counter; the third is an empty layer.
    (cd "$work" && qemu-system-arm -M mps2-an386 -nographic -monitor none -serial none -icount shift=7 \
      -semihosting-config "enable=on,target=native,$arguments" -kernel "$elf" -plugin "./m4cycles.so,ticks=$ticks" </dev/null 2>&1) |
      awk -v network="$network" '
        /^span / { n++
          if (n == 3) { instructions = $3; cycles = $5 }
          if (n > 3) printf "%s,%d,%d,%d\n", network, n - 4, $3 - instructions, $5 - cycles }
        END { if (n < 5) { print "error: the firmware did not run " network > "/dev/stderr"; exit 1 } }' >>"$file"
  done
done
