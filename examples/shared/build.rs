//! Hands the linker its scripts: the memory map of `memory.x`, cortex-m-rt's sections, defmt's, and the boot loader's on an RP2040.
//! Says what is missing before the linker or cargo does in their words.

use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let config = fs::read_to_string(".cargo/config.toml").expect(".cargo/config.toml lies beside build.rs");
    assert!(
        config.contains(&format!("target = \"{target}\"")),
        "this firmware is for the target in .cargo/config.toml, not for {target}: call cargo in this folder, without --target"
    );
    let memory = fs::read_to_string("memory.x").expect("memory.x lies beside build.rs");
    fs::write(Path::new(&folder).join("memory.x"), &memory).expect("OUT_DIR can be written to");
    println!("cargo:rustc-link-search={folder}");
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    if memory.contains("BOOT2") {
        println!("cargo:rustc-link-arg-bins=-Tlink-rp.x");
    }
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");

    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|folder| folder.join("probe-rs").is_file() || folder.join("probe-rs.exe").is_file()) {
        println!(
            "cargo:warning=probe-rs is not on the PATH: `cargo run` cannot flash the board; https://probe.rs/docs/getting-started/installation"
        );
    }
    println!("cargo:rerun-if-env-changed=PATH");
    println!("cargo:rerun-if-changed=.cargo/config.toml");
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-changed=build.rs");
}
