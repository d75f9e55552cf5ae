//! `adcorda`: the command line. Parses flags, calls the library, prints text or one JSON object, maps errors to exit codes.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
