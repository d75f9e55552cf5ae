#!/usr/bin/env bash
# `adcorda gate` with all that it needs: for any CI, and for people.
#
#   scripts/gate.sh MODEL SET BASELINE [options of adcorda gate]
#
#   scripts/gate.sh model.adq cifar10:data gate.json --record     once: writes gate.json, to be committed
#   scripts/gate.sh model.adq cifar10:data gate.json              on every change
#
# Makes sure of QEMU and of the compiler's targets (./ci.sh setup), builds adcorda, compares the model with the baseline and prints what
# changed as a Markdown table. Paths are those of the folder it is called in. Exit codes are adcorda's (adcorda help): 0 nothing is
# worse than allowed, 13 something is, 10 host and board differ, 14 the baseline is missing or of something else, 8 a tool is missing.
#
# Environment:
#   ADCORDA              an adcorda to use instead of building one
#   CARGO_TARGET_DIR     where to build, for a cache to keep (default: target beside this script's folder)
#   GITHUB_STEP_SUMMARY  a file to append the table to
#   GITHUB_OUTPUT        a file to append passed=true or passed=false, and the table as summary, to
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $1" >&2
  exit "$2"
}

usage="give MODEL SET BASELINE, as in: scripts/gate.sh model.adq cifar10:data gate.json"
(($# >= 3)) || fail "$# arguments are too few: $usage" 2
for argument in "${@:1:3}"; do
  [[ -n $argument && $argument != -* ]] || fail "\"$argument\" is no model, set or baseline: $usage" 2
done
model=$1 data=$2 baseline=$3
shift 3

# Where the caller wants the table; else a file of our own.
table=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --markdown=*) table=${!i#*=} ;;
    --markdown) next=$((i + 1)) table=${!next-} ;;
  esac
done
options=("$@")
if [[ -z $table ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  table=$work/table.md
  options+=(--markdown "$table")
fi
rm -f "$table" # never an old one

"$here/ci.sh" setup >&2 || fail "QEMU or the compiler's targets for the boards are missing, see above" 8

adcorda=${ADCORDA-}
if [[ -z $adcorda ]]; then
  target=${CARGO_TARGET_DIR:-target}
  [[ $target == /* ]] || target=$here/$target
  # In its own folder, and without what the caller's build is told: that may be for another machine, or deny warnings.
  (cd "$here" && env -u CARGO_BUILD_TARGET -u CARGO_ENCODED_RUSTFLAGS -u RUSTFLAGS \
    cargo build --quiet --release --locked -p adcorda --target-dir "$target" >&2) || fail "building adcorda failed, see above" 8
  adcorda=$target/release/adcorda
fi
command -v "$adcorda" >/dev/null || fail "ADCORDA: \"$adcorda\" is no program" 8

code=0
"$adcorda" gate "$model" --data "$data" --baseline "$baseline" "${options[@]}" || code=$?

if [[ -n ${GITHUB_STEP_SUMMARY-} && -s $table ]]; then
  { cat "$table" && echo; } >>"$GITHUB_STEP_SUMMARY"
fi
if [[ -n ${GITHUB_OUTPUT-} ]]; then
  passed=false
  ((code)) || passed=true
  end=end-$RANDOM$RANDOM$RANDOM # no line of the table
  {
    echo "passed=$passed"
    echo "summary<<$end"
    [[ ! -s $table ]] || cat "$table"
    echo "$end"
  } >>"$GITHUB_OUTPUT"
fi
exit "$code"
