//! Firmware projects as a user has them: built and run by the command in their folders.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use adcorda_tests::performance::root;

/// Whether QEMU is there: where it must be, its absence is a failure.
pub fn has_qemu() -> bool {
    let found = Command::new("qemu-system-arm").arg("--version").output().is_ok();
    assert!(
        found || std::env::var_os("REQUIRE_QEMU").is_none(),
        "qemu-system-arm is not installed"
    );
    if !found {
        println!("SKIPPED: qemu-system-arm is not installed");
    }
    found
}

/// The folder of an example.
pub fn example(name: &str) -> PathBuf {
    root().join("examples").join(name)
}

/// Builds an example, for a processor that this test's cargo knows nothing of.
pub fn build(name: &str) {
    let output = cargo(name, "build").output().expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: cargo build --release printed:\n{said}");
}

/// `cargo VERB --release --locked` in an example's folder.
pub fn cargo(name: &str, verb: &str) -> Command {
    let mut cargo = cargo_in(&example(name), verb);
    cargo.arg("--locked");
    cargo
}

/// `cargo VERB --release` in a folder, told nothing that this test's own cargo was told.
pub fn cargo_in(folder: &Path, verb: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&&*text) || text.starts_with("CARGO_REGISTR");
        if text.starts_with("CARGO") && !kept || text.starts_with("RUSTC") || text == "RUSTFLAGS" {
            cargo.env_remove(&variable);
        }
    }
    cargo.args([verb, "--quiet", "--release"]).current_dir(folder);
    cargo
}
