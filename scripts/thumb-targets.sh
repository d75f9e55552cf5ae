#!/usr/bin/env bash
# Makes `cargo build --target T` work for bare-metal targets: those of the firmware, and any other that rustc knows.
#
#   scripts/thumb-targets.sh [T ...]      default: those of the boards in QEMU
#
# Per target, the first of these that works:
#   1. nothing: a `no_std` crate compiles for it already;
#   2. `rustup target add`;
#   3. building core, alloc and compiler_builtins from the sources of exactly this rustc, into the place where rustup would have
#      put them. For closed networks that mirror a registry and a distribution, but not static.rust-lang.org. The sources are the
#      toolchain's rust-src component, else Debian's rust-src package of the same version, checked against its SHA-256.
#
# Environment: THUMB_TARGETS_NO_RUSTUP=1 skips every download by rustup. RUST_SRC_LIBRARY names a `library` folder of the sources.
# DEBIAN_MIRROR is the server to take the package from; default: the one that apt uses.
set -euo pipefail

targets=("$@")
((${#targets[@]})) || targets=(thumbv7em-none-eabihf thumbv7m-none-eabi thumbv6m-none-eabi thumbv8m.main-none-eabihf)

say() { echo "thumb-targets: $*" >&2; }
die() {
  say "error: $*"
  exit 1
}

command -v cargo >/dev/null && command -v rustc >/dev/null || die "no cargo on PATH; install Rust from https://rustup.rs"
version=$(rustc -vV | sed -n 's/^release: //p')
commit=$(rustc -vV | sed -n 's/^commit-hash: //p')
rustlib=$(rustc --print sysroot)/lib/rustlib
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A crate that really needs the target's core and alloc: a folder that is there but of another rustc fails here.
usable() {
  echo '#![no_std] extern crate alloc; pub fn probe(n: u64) -> alloc::vec::Vec<u64> { alloc::vec![n / 3; 2] }' >"$work/probe.rs"
  env -u RUSTFLAGS rustc --edition 2024 --crate-type lib --target "$1" --out-dir "$work" "$work/probe.rs" >"$work/log" 2>&1
}

rustup_can() {
  [[ ${THUMB_TARGETS_NO_RUSTUP-} != 1 && -e $rustlib/multirust-channel-manifest.toml ]] && command -v rustup >/dev/null
}

rustup_try() {
  local toolchain
  toolchain=$(rustup show active-toolchain 2>/dev/null | cut -d' ' -f1) || return 1
  timeout 300 rustup "$@" --toolchain "$toolchain" >"$work/log" 2>&1
}

download() {
  if command -v curl >/dev/null; then
    curl -fsSL --retry 2 --connect-timeout 20 -o "$2" "$1"
  else
    wget -q -T 20 -O "$2" "$1"
  fi
}

# Which file of the Debian pool holds the sources of $version, and its SHA-256: pinned where known, else from the suites' indices.
find_package() {
  case $version in
    1.95.0)
      echo debian/pool/main/r/rustc/rust-src_1.95.0+dfsg1-2~bpo13+1_all.deb \
        7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b
      return
      ;;
  esac
  local suite
  for suite in debian/dists/{sid,testing,trixie-backports,stable,bookworm-backports} debian-security/dists/{trixie,bookworm}-security; do
    download "$1/$suite/main/binary-amd64/Packages.xz" "$work/Packages.xz" 2>/dev/null || continue
    xz -dc "$work/Packages.xz" | awk -v want="$version" -v root="${suite%%/*}" '
      /^Package: / { name = $2 }
      /^Version: / { split($2, part, "+"); found = part[1] }
      /^Filename: / { file = $2 }
      /^SHA256: / && name ~ /^rust(-web)?-src$/ && found == want && !done { print root "/" file, $2; done = 1 }
    ' >"$work/package"
    [[ -s $work/package ]] && cat "$work/package" && return
  done
  return 1
}

debian_sources() {
  local mirror=${DEBIAN_MIRROR-} file digest
  [[ -n $mirror ]] || mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | sed -n 's#/debian/*$##p' | head -n 1)
  [[ -n $mirror ]] || mirror=https://deb.debian.org
  read -r file digest < <(find_package "$mirror") || return 1
  say "taking the sources of rustc $version from $mirror/$file"
  download "$mirror/$file" "$work/src.deb" || return 1
  sha256sum -c --status <<<"$digest  $work/src.deb" || die "$mirror/$file has not the checksum $digest"
  (cd "$work" && { dpkg-deb --fsys-tarfile src.deb 2>/dev/null || ar p src.deb data.tar.xz | xz -dc; }) |
    tar -x -C "$work" --wildcards "./usr/src/rustc-$version/library" "./usr/src/rustc-$version/src/version" || return 1
  mv "$work/usr/src/rustc-$version" "$work/rustc"
}

# Leaves the sources as $work/rustc/library: a copy, since cargo writes beside a manifest.
find_sources() {
  local own=$rustlib/src/rust/library
  if [[ -n ${RUST_SRC_LIBRARY-} ]]; then
    own=$RUST_SRC_LIBRARY
  elif [[ ! -e $own/alloc/Cargo.toml ]] && rustup_can; then
    rustup_try component add rust-src || true
  fi
  if [[ -e $own/alloc/Cargo.toml ]]; then
    mkdir -p "$work/rustc"
    cp -rL "$own" "$work/rustc/library"
    [[ ! -e $own/../src/version ]] || install -D "$own/../src/version" "$work/rustc/src/version"
  else
    debian_sources || die "the sources of rustc $version are nowhere to be had; with network access, run: rustup target add ${targets[*]}"
  fi
  chmod -R u+w "$work/rustc"
  [[ ! -e $work/rustc/src/version || $(<"$work/rustc/src/version") == "$version" ]] ||
    die "the sources are those of rustc $(<"$work/rustc/src/version"), the compiler is $version"
}

# What rustc's own build does for a no_std target. The toolchain is touched only once everything has been built.
build() {
  local flags="-Zforce-unstable-if-unmarked --remap-path-prefix=$work/rustc/library=/rustc/$commit/library" rlibs
  (
    cd "$work/rustc/library"
    env -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET -u RUSTC_WRAPPER -u RUSTC_WORKSPACE_WRAPPER \
      RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" CARGO_TARGET_DIR="$work/target" CARGO_INCREMENTAL=0 \
      cargo build --quiet --locked --release --manifest-path alloc/Cargo.toml --features compiler-builtins-mem \
      --config profile.release.debug=0 --config profile.release.codegen-units=1 --target "$1"
  ) || die "building core and alloc for $1 failed"
  rlibs=("$work/target/$1/release/deps"/lib{core,alloc,compiler_builtins}-*.rlib)
  mkdir -p "$rustlib/$1/lib" || die "$rustlib belongs to someone else; run this as its owner"
  rm -f "$rustlib/$1/lib"/lib{core,alloc,compiler_builtins}-*.rlib
  cp "${rlibs[@]}" "$rustlib/$1/lib/"
}

for target in "${targets[@]}"; do
  if usable "$target"; then
    say "$target: ready"
    continue
  fi
  if rustup_can; then
    if rustup_try target add "$target" && usable "$target"; then
      say "$target: added by rustup"
      continue
    fi
    say "rustup could not add $target: $(grep -m 1 -i error "$work/log" | cut -c 1-160)"
    THUMB_TARGETS_NO_RUSTUP=1
  fi
  [[ -e $work/rustc ]] || find_sources
  say "$target: building core and alloc of rustc $version, a minute or two"
  build "$target"
  usable "$target" || {
    cat "$work/log" >&2
    die "$target: built, but a crate does not compile for it"
  }
  say "$target: ready"
done
