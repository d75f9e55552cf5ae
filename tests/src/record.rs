//! The records under `benches` that tests write and compare with: a line that names the compiler, a line that names the columns, lines of
//! figures.

use std::process::Command;

/// A record without figures yet, of the compiler at hand.
pub fn head(columns: &str) -> String {
    let compiler = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .arg("--version")
        .output()
        .expect("the compiler says its version");
    format!("# {}{columns}\n", String::from_utf8_lossy(&compiler.stdout))
}

/// The lines of figures.
///
/// # Panics
/// Where the columns are others.
pub fn figures<'a>(record: &'a str, columns: &str) -> impl Iterator<Item = &'a str> {
    let mut lines = record.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some(columns), "the record is of another format");
    lines
}
