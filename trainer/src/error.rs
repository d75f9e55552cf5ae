//! One error type for the whole tool: what went wrong and where, what to do about it, and the exit code a script sees.

use std::fmt;

/// What kind of thing went wrong. The number is the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A flag, a name or a combination of flags that cannot be.
    Usage = 2,
    /// A data set: missing, truncated, malformed.
    Data = 3,
    /// Trained weights or a checkpoint: of another network, malformed, not finite.
    Weights = 4,
    /// A `.adq` model file: truncated, corrupted, newer, or a network that cannot be lowered to one.
    Model = 5,
    /// The compute device asked for is not there.
    Device = 6,
    /// The board has not enough RAM or flash.
    Board = 7,
    /// A tool outside this program is missing: QEMU, a compiler target, cargo.
    Toolchain = 8,
    /// Reading or writing a file failed.
    Io = 9,
    /// Host and device computed different bits.
    Parity = 10,
    /// Training produced NaN or did not run as it should.
    Diverged = 11,
    /// A download failed or its checksum differs.
    Download = 12,
    /// A model is worse than its baseline allows.
    Regression = 13,
    /// A baseline: missing, damaged, newer, or not of what is to be compared with it.
    Baseline = 14,
}

/// An error with its remedy. Displays as `what, where: cause` and, where there is one, a second line `remedy: ...`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    remedy: Option<String>,
}

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` names the file, layer or flag. Lower case, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            remedy: None,
        }
    }

    /// A failed file operation: `cannot <action> <path>: <cause>`.
    pub fn io(action: &str, path: impl AsRef<std::path::Path>, cause: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("cannot {action} {}: {cause}", path.as_ref().display()))
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The kind, and with it the exit code.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\nremedy: {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
