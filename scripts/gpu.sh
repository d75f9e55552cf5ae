#!/usr/bin/env bash
# Everything that needs a GPU, in one call, on a machine with one NVIDIA GPU and neither Rust nor network.
#
#   scripts/gpu.sh OUT_DIR SECONDS
#
# In this order: agreement of one step with the CPU (where it fails, nothing else is run: exit code 10), throughput beside PyTorch,
# then the tables experiments/gpu-cifar10.toml and gpu-cifar100.toml for the time that is left of SECONDS. Give the same command
# again to go on: experiments resume where they were stopped, and what is done is not repeated.
#
# The caller brings, in the environment:
#   ADCORDA    the binary, built elsewhere with `cargo build --release --features cuda`; an .xz of it is unpacked
#              (needs glibc 2.34, libcuda and libnvrtc; 51 MB, as .xz 8)
#   CIFAR10    folder of the official binary files of CIFAR-10 (data_batch_1.bin to 5, test_batch.bin); without it, no table
#   CIFAR100   the same of CIFAR-100 (train.bin, test.bin)
#   MODELS     folder with mlperf-tiny-resnet8.safetensors and resnet20-cifar10.th, the float networks of the first table
#   PYTHON     a Python with PyTorch for CUDA (default: python3); without PyTorch, no throughput beside it
#   CUDA_PATH  a CUDA toolkit with include/ (default: the first of /usr/local/cuda and the nvidia packages of PYTHON)
#   WORK       where binary, kernels and runs are kept between calls (default: OUT_DIR/work)
#   BATCHES    of the throughput (default "64 256 1024")
#
# OUT_DIR then holds, of what was reached: steps.jsonl (step, exit code, seconds), agreement.json, throughput.jsonl, throughput.md,
# and of each table NAME.jsonl and NAME.md.
#
# The first run compiles several hundred kernels, for minutes. They are kept in WORK/kernels; one from a machine with the same GPU may be
# brought along, without its autotune folder.
set -euo pipefail
if (($# != 2)) || ! [[ $2 =~ ^[0-9]+$ ]]; then
  sed -n '2,25s/^# \{0,1\}//p' "$0"
  exit 2
fi
[[ -n ${ADCORDA-} ]] || { echo "error: ADCORDA does not name the binary" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" "${WORK:-$1/work}"
out=$(realpath "$1") work=$(realpath "${WORK:-$1/work}") limit=$2
python=${PYTHON:-python3}
for folder in ADCORDA CIFAR10 CIFAR100 MODELS; do
  # Everything below runs in another folder.
  if [[ -n ${!folder-} ]]; then declare "$folder=$(realpath -e "${!folder}")"; fi
done

# left: seconds of the time limit
left() { echo $((limit - SECONDS > 0 ? limit - SECONDS : 0)); }

# step NAME COMMAND...: runs a command for no longer than is left, and notes how it ended; 124: the time was up
step() {
  local name=$1 start=$SECONDS code=0
  shift
  echo "== $name ($(left) s left)" >&2
  if (($(left) == 0)); then code=124; else timeout --kill-after=10 "$(left)" "$@" || code=$?; fi
  # Killed because asking was not enough.
  ((code != 137)) || code=124
  printf '{"step":"%s","exit_code":%s,"seconds":%s}\n' "$name" "$code" $((SECONDS - start)) >>"$out/steps.jsonl"
  return "$code"
}

adcorda=$work/adcorda
case $ADCORDA in
  *.xz) "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$ADCORDA" "$adcorda" ;;
  *) [[ $ADCORDA -ef $adcorda ]] || cp "$ADCORDA" "$adcorda" ;;
esac
chmod +x "$adcorda"

# Kernels are compiled at run time by NVRTC, with headers from CUDA_PATH/include.
if [[ -z ${CUDA_PATH-} ]]; then
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null || true)
  for candidate in /usr/local/cuda "$packages/nvidia/cu13" "$packages/nvidia/cuda_runtime"; do
    if [[ -e $candidate/include/cuda_runtime.h ]]; then CUDA_PATH=$candidate && break; fi
  done
fi
[[ -n ${CUDA_PATH-} ]] || { echo "error: no CUDA toolkit found; name one that has include/cuda_runtime.h with CUDA_PATH" >&2; exit 8; }
export CUDA_PATH
# Only where the system does not find it: PyTorch has libraries of its own.
if ! ldconfig -p 2>/dev/null | grep -q libnvrtc; then
  export LD_LIBRARY_PATH=$CUDA_PATH/lib64:$CUDA_PATH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

# burn reads this from the working directory. Without it, every process compiles all kernels anew.
mkdir -p "$work/kernels"
cat >"$work/cubecl.toml" <<TOML
[compilation]
cache = { file = "$work/kernels" }
[autotune]
level = "minimal"
cache = { file = "$work/kernels/autotune" }
TOML
cd "$work"

# Does the GPU compute what the CPU computes? If not, no figure of it means anything.
agreed=0
for width in w2 w4; do
  step "agreement $width" "$adcorda" bench resnet8 --weights "$width" --device cuda --against flex --seconds 0 --json \
    >"$work/agreement-$width.json" || agreed=$?
done
cat "$work"/agreement-*.json >"$out/agreement.json"
((agreed == 0)) || { echo "error: no agreement with flex, see $out/agreement.json; nothing else is run" >&2; exit "$agreed"; }

if "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  if [[ ! -e $work/throughput/done ]]; then
    export ADCORDA=$adcorda PYTHON=$python BATCHES=${BATCHES:-64 256 1024}
    if step throughput "$here/scripts/throughput.sh" "$work/throughput" cuda; then touch "$work/throughput/done"; fi
  fi
  for file in throughput.jsonl table.md; do
    if [[ -s $work/throughput/$file ]]; then cp "$work/throughput/$file" "$out/${file/table/throughput}"; fi
  done
else
  echo "skipped: throughput ($python has no PyTorch for CUDA)" >&2
fi

# import NETWORK FILE: the float checkpoint of a published network
import() {
  [[ -e $work/$1.ckpt ]] || "$adcorda" import "$1" --weights "$MODELS/$2" -o "$work/$1.ckpt" >&2
}

# table NAME SET [FLAGS...]: one table of experiments, as far as the time reaches
table() {
  local name=$1 code=0
  step "$name" "$adcorda" experiment "$here/experiments/gpu-$name.toml" --data "$2" --device cuda "${@:3}" -o "$work/$name" --json \
    >"$work/$name.out" || code=$?
  for end in jsonl md; do
    if [[ -e $work/$name/table.$end ]]; then cp "$work/$name/table.$end" "$out/$name.$end"; fi
  done
  # What a stopped table has so far.
  if [[ ! -e $work/$name/table.jsonl ]]; then cat "$work/$name"/cells/*/result.json >"$out/$name.jsonl" 2>/dev/null || true; fi
  return "$code"
}

code=0
if [[ -n ${CIFAR10-} && -n ${MODELS-} ]]; then
  import resnet8 mlperf-tiny-resnet8.safetensors
  import resnet20 resnet20-cifar10.th
  table cifar10 "cifar10:$CIFAR10" --float "resnet8=$work/resnet8.ckpt" --float "resnet20=$work/resnet20.ckpt" || code=$?
else
  echo "skipped: CIFAR-10 (CIFAR10 or MODELS is not set)" >&2
fi
if [[ -n ${CIFAR100-} ]]; then
  table cifar100 "cifar100:$CIFAR100" || code=$?
else
  echo "skipped: CIFAR-100 (CIFAR100 is not set)" >&2
fi
((code != 124)) || echo "time is up: give the same command again to go on" >&2
exit "$code"
