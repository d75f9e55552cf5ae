#!/usr/bin/env bash
# What CI runs, verb by verb. People run the same.
#
#   ./ci.sh test         everything below
#   ./ci.sh setup        bare-metal targets; QEMU through the system's package manager where it may
#   ./ci.sh fmt          rustfmt, check only
#   ./ci.sh clippy       clippy without warnings: workspace and firmware
#   ./ci.sh doc          rustdoc without warnings
#   ./ci.sh nostd        the runtime alone builds for every bare-metal target, with all features and with none; once without each
#   ./ci.sh host         unit, integration and command-line tests; those that need QEMU fail without it
#   ./ci.sh ndarray      the ndarray backend agrees with flex
#   ./ci.sh cuda-check   type-checks the CUDA backend; needs no GPU
#   ./ci.sh demo         the demo in release, with parity in QEMU
#   ./ci.sh record       measures instructions, model cycles and sizes anew: benches/, docs/PERFORMANCE.md, docs/FIRMWARE.md (not part of test)
#   ./ci.sh help         this text
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

targets=(thumbv7em-none-eabihf thumbv7m-none-eabi thumbv6m-none-eabi thumbv8m.main-none-eabihf)
firmwares=(examples/qemu examples/mlperf-tiny examples/camera)

say() { printf '\n== %s\n' "$*"; }

setup() {
  say "setup"
  scripts/thumb-targets.sh "${targets[@]}"
  if ! command -v qemu-system-arm >/dev/null; then
    local sudo=()
    ((EUID == 0)) || sudo=(sudo -n)
    if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
      local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-arm)
      "${install[@]}" >/dev/null 2>&1 || { "${sudo[@]}" apt-get update -qq && "${install[@]}" >/dev/null; }
    fi
  fi
  if ! command -v qemu-system-arm >/dev/null; then
    echo "error: qemu-system-arm is missing and cannot be installed from here" >&2
    echo "remedy: apt-get install qemu-system-arm   (Fedora: dnf install qemu-system-arm; macOS: brew install qemu)" >&2
    exit 1
  fi
  qemu-system-arm --version | head -n 1
}

fmt() {
  say "fmt"
  cargo fmt --all --check
  for firmware in "${firmwares[@]}" examples; do (cd "$firmware" && cargo fmt --all --check); done
}

clippy() {
  say "clippy"
  cargo clippy --locked --workspace --all-targets -- -D warnings
  for firmware in "${firmwares[@]}"; do
    if [[ ! -d $firmware/boards ]]; then
      clippy_firmware "$firmware"
      continue
    fi
    for board in "$firmware"/boards/*.toml; do
      clippy_firmware "$firmware" --config "boards/${board##*/}"
    done
  done
  for board in examples/*/src/board.rs; do clippy_firmware "${board%/src/board.rs}"; done
}

clippy_firmware() { (cd "$1" && env -u CARGO_TARGET_DIR cargo clippy --locked --release "${@:2}" -- -D warnings); }

doc() {
  say "doc"
  RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --features adcorda-runtime/embedded-io --no-deps --quiet
}

# These targets have no std: what builds for them uses none. Warnings are errors here too, since code of one instruction set or without a
# feature is compiled nowhere else.
nostd() {
  say "nostd"
  local nostd_targets=("${targets[@]}" riscv32imac-unknown-none-elf)
  scripts/thumb-targets.sh "${nostd_targets[@]}"
  local build=(env RUSTFLAGS="-D warnings" cargo build --quiet --locked -p adcorda-runtime) target feature others
  for target in "${nostd_targets[@]}"; do
    "${build[@]}" --all-features --target "$target"
    "${build[@]}" --no-default-features --target "$target"
  done
  local features=(depthwise w1 w2 w4 embedded-io)
  for feature in "${features[@]}"; do
    others="${features[*]}"
    others=" $others "
    "${build[@]}" --no-default-features --features "${others/ $feature / }" --target thumbv7em-none-eabihf
  done
}

host() {
  say "host"
  # The command is built with the tests, before any of them runs.
  ADCORDA_BINARY=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug/adcorda REQUIRE_QEMU=1 cargo test --locked --workspace --no-fail-fast
}

ndarray() {
  say "ndarray"
  # Of the whole workspace, as in `host`: what both need is built once.
  cargo test --locked --workspace --features adcorda/ndarray --test backends
}

cuda-check() {
  say "cuda-check"
  # Of the whole workspace, as in `clippy`: what both need is checked once.
  cargo check --locked --workspace --features adcorda/cuda
}

demo() {
  say "demo"
  local out
  out=$(mktemp -d)
  cargo run --locked --release -- demo -o "$out/demo"
  rm -rf "$out"
}

record() {
  say "record"
  ADCORDA_RECORD=1 REQUIRE_QEMU=1 cargo test --locked -p adcorda-tests --test instructions --test boards
  benches/cycles/run.sh
  benches/size/run.sh
  cargo run --quiet --locked -p adcorda-tests --bin performance
  git --no-pager diff --stat -- benches docs
}

help() { sed -n '2,17s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

case ${1-help} in
  test) setup; fmt; clippy; doc; nostd; ndarray; cuda-check; demo; host ;;
  setup | fmt | clippy | doc | nostd | host | ndarray | cuda-check | demo | record | help) "$1" ;;
  *) echo "error: no verb \"$1\"" >&2; help >&2; exit 2 ;;
esac
