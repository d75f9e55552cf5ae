//! Picks the instruction set of the inner loops, as `cfg(adcorda_isa = "...")`: the fastest that the target surely has.
//!
//! The target's name says it for all cores but those of Armv8-M Mainline, where DSP and MVE are options of the core. rustc tells
//! crates of neither (`cfg(target_feature = "dsp")` and `"mve"` are never true on stable), so a probe finds out whether this
//! build's own flags let the assembler take an instruction of theirs.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

const NAMES: &str = r#""dsp", "mve", "thumb2", "thumb1", "portable""#;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(adcorda_isa, values({NAMES}))");
    let target = env::var("TARGET").unwrap_or_default();
    let isa = match target.split('-').next().unwrap_or_default() {
        "thumbv7em" => "dsp",
        "thumbv7m" => "thumb2",
        "thumbv6m" | "thumbv8m.base" => "thumb1",
        "thumbv8m.main" if assembles(&target, "vmladava.s8 r0, q0, q1") => "mve",
        "thumbv8m.main" if assembles(&target, "smlad r0, r1, r2, r3") => "dsp",
        "thumbv8m.main" => {
            println!(
                "cargo:warning=this build may not use the DSP or vector instructions that most {target} cores have, and inference \
                 takes several times longer: set RUSTFLAGS=-Ctarget-cpu=cortex-m33 or cortex-m55 (or -Ctarget-feature=+dsp), or \
                 the same as `rustflags` in .cargo/config.toml"
            );
            "thumb2"
        }
        _ => "portable",
    };
    println!("cargo:rustc-cfg=adcorda_isa=\"{isa}\"");
    // When it prepares for link-time optimisation, rustc assembles functions in assembly once more, without the build's flags.
    let cpu = if target.starts_with("thumbv8m") {
        ".cpu cortex-m33"
    } else {
        ""
    };
    println!("cargo:rustc-env=ADCORDA_DSP_CPU={cpu}");
}

/// Whether the compiler of this build, with the flags of this build, takes an instruction.
fn assembles(target: &str, instruction: &str) -> bool {
    let (Some(rustc), Some(folder)) = (env::var_os("RUSTC"), env::var_os("OUT_DIR")) else {
        return false;
    };
    let (source, object) = (Path::new(&folder).join("probe.rs"), Path::new(&folder).join("probe.o"));
    let text = format!("#![no_std]\ncore::arch::global_asm!(\"{instruction}\");\n");
    if std::fs::write(&source, text).is_err() {
        return false;
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let probe = Command::new(rustc)
        .args(["--crate-type=lib", "--edition=2024", "--emit=obj", "--target", target, "-o"])
        .args([&object, &source])
        .args(flags.split('\x1f').filter(|flag| !flag.is_empty()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}
