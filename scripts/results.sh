#!/usr/bin/env bash
# Reproduces the README's results: import, PTQ, QAT, AdCorDA beside its control, export, evaluation, QEMU.
#
#   scripts/results.sh CIFAR10_DIR MODELS_DIR OUT_DIR [WIDTH ...]     widths: w8 w4 w2 w1 (default: all)
#
# CIFAR10_DIR holds the official binary files; MODELS_DIR mlperf-tiny-resnet8.safetensors and resnet20-cifar10.th.
# Every verb's JSON goes to OUT_DIR/<width>.jsonl, one object a line with the verb's name. Steps that are done are not
# repeated; runs resume. SEED, LIMIT and EPOCHS may be set in the environment.
set -euo pipefail
(($# >= 3)) || { sed -n '2,9p' "$0"; exit 2; }
data=cifar10:$1 models=$2 out=$3
shift 3
widths=("$@")
((${#widths[@]})) || widths=(w8 w4 w2 w1)
seed=${SEED:-1} limit=${LIMIT:-10000} epochs=${EPOCHS:-2}
adcorda=${ADCORDA:-${CARGO_TARGET_DIR:-target}/release/adcorda}
[[ -n ${ADCORDA-} ]] || cargo build --release # never a binary of other sources
mkdir -p "$out"
printf '{"commit":"%s","seed":%s,"training_images":%s,"epochs":%s,"device":"flex","machine":"%s, %s cores"}\n' \
  "$(git rev-parse HEAD)" "$seed" "$limit" "$epochs" "$(uname -m)" "$(nproc)" >"$out/setup.json"

# step FILE WIDTH VERB ARGS...: runs a verb once and keeps its JSON, with the folders' names for their paths
step() {
  local done=$1 width=$2 json arguments
  shift 2
  [[ -e $done ]] && return
  json=$("$adcorda" "$@" --json)
  arguments=${*:2}
  arguments=${arguments//$data/cifar10:CIFAR10_DIR}
  arguments=${arguments//$models/MODELS_DIR}
  arguments=${arguments//$out/OUT_DIR}
  printf '{"verb":"%s","arguments":"%s","result":%s}\n' "$1" "$arguments" "$json" | tee -a "$out/$width.jsonl"
  touch "$done"
}

# integer NAME WIDTH CKPT: exports a checkpoint and evaluates it in the runtime, beside the fake-quantized network
integer() {
  step "$out/$1.exported" "$2" export "$3" -o "$out/$1.adq"
  step "$out/$1.integer" "$2" eval "$out/$1.adq" --data "$data" --against "$3"
}

for network in resnet8:mlperf-tiny-resnet8.safetensors resnet20:resnet20-cifar10.th; do
  name=${network%%:*}
  step "$out/$name.imported" float import "$name" --weights "$models/${network#*:}" -o "$out/$name.ckpt"
  step "$out/$name.evaluated" float eval "$out/$name.ckpt" --data "$data"
done

for w in "${widths[@]}"; do
  start=$out/$w-ptq.ckpt
  step "$out/$w.ptq" "$w" quantize "$out/resnet8.ckpt" --weights "$w" --data "$data" -o "$start"
  final=$w-ptq
  case $w in
    w8) ;;
    w4) rate=3e-4 ;;
    w2 | w1) # from such a start correction wastes its budget: plain QAT first
      step "$out/$w.qat" "$w" train "$start" --data "$data" --limit "$limit" --validation 1000 --epochs "$epochs" \
        --learning-rate 1e-3 --seed "$seed" -o "$out/$w-qat"
      integer "$w-qat" "$w" "$out/$w-qat"
      start=$out/$w-qat rate=3e-4 ;;
  esac
  integer "$w-ptq" "$w" "$out/$w-ptq.ckpt"
  if [[ $w != w8 ]]; then
    step "$out/$w.refined" "$w" refine "$start" --data "$data" --limit "$limit" --validation 1000 --epochs "$epochs" \
      --learning-rate "$rate" --seed "$seed" --control -o "$out/$w-refined"
    for arm in adcorda control; do integer "$w-$arm" "$w" "$out/$w-refined/$arm"; done
    final=$w-adcorda
  fi
  step "$out/$w.inspected" "$w" inspect "$out/$final.adq"
  for board in mps2-an386 mps2-an500 mps2-an505 mps2-an385 mps2-an385-m0 mps3-an547; do
    step "$out/$w.$board" "$w" run "$out/$final.adq" --board "$board" --data "$data" --images 32
  done
done
