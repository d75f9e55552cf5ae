#!/usr/bin/env bash
# Throughput of adcorda beside PyTorch, on the same ResNet-8, fake quantization, batch and device, in turns on one machine.
#
#   scripts/throughput.sh OUT_DIR [flex|cuda|cuda:N]        (default: flex, beside PyTorch on the CPU)
#
# Writes OUT_DIR/throughput.jsonl (what both print, one object a run, in the order run), setup.json and table.md (medians, and the
# median of the ratios of neighbouring runs, which other load on the machine disturbs least). Set in the environment:
#   ADCORDA  the binary (default: built with cargo in release)    PYTHON   a Python with PyTorch (default: python3)
#   WEIGHTS  widths, default "w4 w2"    BATCHES  default "64"     ROUNDS   pairs, default 3    SECONDS_EACH  default 1
#   PYTORCH  flags for PyTorch's side, such as --compile
set -euo pipefail
(($# >= 1 && $# <= 2)) || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1 device=${2-flex}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
adcorda=${ADCORDA:-${CARGO_TARGET_DIR:-$here/target}/release/adcorda}
[[ -n ${ADCORDA-} ]] || (cd "$here" && cargo build --quiet --release --locked -p adcorda)
python=${PYTHON:-python3}
seconds=${SECONDS_EACH:-1} rounds=${ROUNDS:-3}
read -ra widths <<<"${WEIGHTS:-w4 w2}"
read -ra batches <<<"${BATCHES:-64}"
read -ra flags <<<"${PYTORCH-}"
case $device in
  flex) torch_device=cpu ;;
  cuda | cuda:*) torch_device=$device ;;
  *) echo "error: device \"$device\" is neither flex nor cuda" >&2; exit 2 ;;
esac
"$python" -c 'import torch' 2>/dev/null || { echo "error: $python has no PyTorch; name one that has with PYTHON=" >&2; exit 8; }

mkdir -p "$out"
lines=$out/throughput.jsonl
: >"$lines"
commit=$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)
load=$(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null || echo unknown)
printf '{"commit":"%s","device":"%s","machine":"%s, %s cores","load_before":"%s","seconds_each":%s,"rounds":%s}\n' \
  "$commit" "$device" "$(uname -m)" "$(nproc)" "$load" "$seconds" "$rounds" >"$out/setup.json"

for weights in "${widths[@]}"; do
  for batch in "${batches[@]}"; do
    for ((round = 0; round < rounds; round++)); do
      echo "$weights, batch $batch, round $((round + 1)) of $rounds" >&2
      "$adcorda" bench resnet8 --weights "$weights" --batch "$batch" --seconds "$seconds" --device "$device" --json >>"$lines"
      "$python" "$here/benches/throughput/pytorch.py" --weights "$weights" --batch "$batch" --seconds "$seconds" \
        --device "$torch_device" "${flags[@]}" >>"$lines"
    done
  done
done
"$python" "$here/benches/throughput/table.py" "$lines" | tee "$out/table.md"
