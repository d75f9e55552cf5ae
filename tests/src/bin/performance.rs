//! Writes the generated part of `docs/PERFORMANCE.md`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let written = adcorda_tests::performance::page().and_then(|(file, page)| std::fs::write(file, page));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
