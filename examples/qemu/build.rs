//! Hands the linker its scripts, from wherever cargo is called and whatever `RUSTFLAGS` says, and the program its board as
//! `cfg(board = "...")`. The board's file in `boards` sets `QEMU_BOARD`.

use std::path::Path;
use std::{env, fs};

fn main() {
    let variable = |name| env::var(name).unwrap_or_else(|_| panic!("{name} is not set: call cargo in this folder"));
    // Boards with the same memory and devices are one.
    let board = match variable("QEMU_BOARD").as_str() {
        "mps2-an385" | "mps2-an386" | "mps2-an500" => "mps2",
        "mps2-an385-m0" => "mps2-m0",
        "mps2-an505" => "mps2-an505",
        "mps3-an547" => "mps3-an547",
        other => panic!("no board is called {other}; boards holds one file each"),
    };
    let memory = format!("memory/{}.x", board.trim_end_matches("-m0"));
    let folder = variable("OUT_DIR");
    fs::copy(&memory, Path::new(&folder).join("memory.x")).unwrap_or_else(|cause| panic!("copying {memory}: {cause}"));
    println!("cargo:rustc-link-search={folder}");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-check-cfg=cfg(board, values(\"mps2\", \"mps2-m0\", \"mps2-an505\", \"mps3-an547\"))");
    println!("cargo:rustc-cfg=board=\"{board}\"");
    println!("cargo:rerun-if-changed={memory}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=QEMU_BOARD");
}
