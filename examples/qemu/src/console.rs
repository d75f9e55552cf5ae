//! Lines to the host, one semihosting call each.

use core::fmt::{self, Write};

use semihosting::io::{self, Stdout, Write as _};

use crate::recorder::Recorder;

/// The host's standard output.
pub struct Console {
    stdout: Stdout,
    buffer: [u8; 256],
    filled: usize,
}

/// A failure that the user has been told of.
pub struct Failed;

impl Console {
    /// Opens the host's standard output.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            stdout: io::stdout()?,
            buffer: [0; 256],
            filled: 0,
        })
    }

    /// Writes one line.
    pub fn line(&mut self, text: impl fmt::Display) {
        // Nothing can be told to a host that does not listen.
        let _ = writeln!(self, "{text}");
        self.flush();
    }

    /// Writes an error, on one line.
    pub fn fail(&mut self, text: impl fmt::Display) -> Failed {
        self.line(format_args!("error: {text}"));
        Failed
    }

    /// Writes what was recorded of one inference.
    pub fn image(&mut self, index: usize, top1: usize, recorder: &Recorder) {
        self.line(format_args!("image {index} input crc {:08x}", recorder.input_crc()));
        let mut total = 0;
        for (j, layer) in recorder.layers().iter().enumerate() {
            total += u64::from(layer.instructions);
            self.line(format_args!(
                "layer {j} crc {:08x} instructions {}",
                layer.crc, layer.instructions
            ));
        }
        let _ = write!(self, "image {index} top1 {top1} instructions {total} logits");
        for logit in recorder.last_logits() {
            let _ = write!(self, " {logit}");
        }
        self.line("");
    }

    fn flush(&mut self) {
        let _ = self.stdout.write_all(&self.buffer[..self.filled]);
        self.filled = 0;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.filled == self.buffer.len() {
                self.flush();
            }
            self.buffer[self.filled] = byte;
            self.filled += 1;
        }
        Ok(())
    }
}
