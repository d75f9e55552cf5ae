//! Hands the linker the board's memory map.

use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::copy("memory.x", Path::new(&folder).join("memory.x")).expect("memory.x lies beside build.rs");
    println!("cargo:rustc-link-search={folder}");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-changed=build.rs");
}
