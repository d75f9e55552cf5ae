#!/bin/sh
# cargo's runner: run.sh BOARD ELF [ARGUMENT ...]. No argument may hold a comma or a blank: QEMU and semihosting split there.
set -eu
board=$1 elf=$2
shift 2
arguments=arg=adcorda-qemu
for argument; do arguments=$arguments,arg=$argument; done
exec qemu-system-arm -M "$board" -nographic -monitor none -serial none -icount shift=7 \
  -semihosting-config "enable=on,target=native,$arguments" -kernel "$elf" </dev/null
