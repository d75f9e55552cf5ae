//! Hands the linker the board's memory map.

use std::path::Path;
use std::{env, fs};

const MEMORY: &str = "../qemu/memory/mps2.x";

fn main() {
    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::copy(MEMORY, Path::new(&folder).join("memory.x")).expect("the memory map lies in examples/qemu");
    println!("cargo:rustc-link-search={folder}");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rerun-if-changed={MEMORY}");
    println!("cargo:rerun-if-changed=build.rs");
}
