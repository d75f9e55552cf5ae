#!/usr/bin/env bash
# Flash that the runtime takes in the firmware of a network of one width, board by board.
#
#   benches/size/run.sh            writes benches/size/runtime.csv
#
# `kernels` is code of the runtime crate: kernels and session, what the firmware's own observer adds left out. `parser` is code of
# the format crate with postcard and serde under it. The last layer and the first convolution have 8 bits in every network, so the
# kernels of 8 bits are always in; `all` is every width and depthwise convolutions. Needs nm and awk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../examples/qemu"
out=$PWD/../../benches/size/runtime.csv target=$PWD/target/size

echo "board,width,kernels,parser" >"$out"
for board in boards/*.toml; do
  name=$(basename "$board" .toml)
  triple=$(sed -n 's/^target = "\(.*\)"/\1/p' "$board")
  for width in w8 w4 w2 w1 all; do
    case $width in
      w8) features= ;;
      all) features=depthwise,w1,w2,w4 ;;
      *) features=$width ;;
    esac
    env -u CARGO_TARGET_DIR cargo build --quiet --locked --release --config "$board" --target-dir "$target/$name" \
      --no-default-features --features "$features"
    nm -C -S -t d "$target/$name/$triple/release/adcorda-qemu" | awk -v row="$name,$width" '
      $3 !~ /^[tTwW]$/ || / as core::fmt::Display>/ || /Recorder/ { next }
      /adcorda_runtime::/ { kernels += $2; next }
      /adcorda_formats::|postcard::|serde_core::/ { parser += $2 }
      END { printf "%s,%d,%d\n", row, kernels, parser }' >>"$out"
  done
done
