//! The device's side of MLPerf Tiny's serial protocol: bytes in, lines out. It knows no board: that is a [`Device`].
//!
//! A command is words between blanks, ended by `%`, of at most [`COMMAND_BYTES`] characters. Every `%` is answered by lines that end
//! in CR LF, the last one `m-ready` and no other one, so that a host never waits in vain and never reads ahead. What is wrong is one line
//! `e-[...]` before it, and changes nothing: not the image, not the results.
//!
//! ```text
//! name              m-name-dut-[VENDOR]
//! timestamp         m-lap-us-MICROSECONDS
//! profile           m-profile-[...], m-model-[MODEL]
//! help              a line a command
//! db load N         m-[Expecting N bytes]; N must be what the model takes
//! db HEX            m-load-done once all N bytes are in, nothing before
//! db print          m-buffer-XX-XX-..., eight bytes a line
//! infer [N [W]]     m-warmup-start-W, m-warmup-done, m-infer-start-N, a timestamp, another one, m-infer-done, results
//! results           m-results-[A,B,...] of the last inference
//! ```
//!
//! # Scores
//! The host divides the results by their sum before it takes the largest one, so with logits, whose sum may be negative, it would
//! find the smallest. What is sent is each logit's distance from the least logit, plus one: positive, in the order of the
//! logits, exact, and without the constant that a softmax would not see either. A figure on them that compares images with each
//! other (the host prints an AUC) is not that of probabilities.
//!
//! # Source
//! `benchmark/api/internally_implemented.cpp` and `benchmark/runner` of <https://github.com/mlcommons/tiny>, as of 2025. Stricter than there:
//! the size of the image is checked, a line of bytes is taken whole or not at all, and nothing runs on half an image.

use core::fmt::{self, Display, Write};
use core::mem;

use heapless::Vec;

/// Longest command, its `%` not counted: the host sends 31 bytes of an image at a time, in 65 characters.
pub const COMMAND_BYTES: usize = 80;

/// Most inferences of one command: hours, where one takes a tenth of a second. A slip of the finger is refused.
pub const MAX_INFERENCES: u32 = 100_000;

/// Warm-up inferences where the command does not say.
const WARMUPS: u32 = 10;

/// By this the host knows the kind of firmware.
const PROFILE: &str = "ULPMark for tinyML Firmware V0.0.1";

/// What the protocol is spoken for: a model on a board.
pub trait Device {
    /// Why an inference is refused.
    type Error: Display;

    /// Microseconds since some moment; never less than before.
    fn now_us(&mut self) -> u64;

    /// Classifies one image: as many bytes as the [`Monitor`] was made for.
    ///
    /// # Errors
    /// Where the image is not the model's.
    fn infer(&mut self, image: &[u8]) -> Result<(), Self::Error>;

    /// Scores of the last image that was classified.
    fn logits(&self) -> &[i32];
}

/// What the device says it is. ASCII, without `]`.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Who made it.
    pub vendor: &'static str,
    /// Which benchmark it runs: `ic01` for images of CIFAR-10. By this the host picks its script and its data.
    pub model: &'static str,
}

/// The device's end of the line, for images of `IMAGE` bytes.
pub struct Monitor<const IMAGE: usize> {
    identity: Identity,
    command: Vec<u8, COMMAND_BYTES>,
    is_too_long: bool,
    image: Vec<u8, IMAGE>,
    is_expecting: bool,
    has_results: bool,
}

impl<const IMAGE: usize> Monitor<IMAGE> {
    /// With nothing loaded.
    pub const fn new(identity: Identity) -> Self {
        Self {
            identity,
            command: Vec::new(),
            is_too_long: false,
            image: Vec::new(),
            is_expecting: false,
            has_results: false,
        }
    }

    /// Says that the device is there.
    pub fn start(&self, device: &mut impl Device, out: &mut impl Write) {
        let mut out = Lines(out);
        out.line("m-timestamp-mode-performance");
        out.timestamp(device.now_us());
        out.line("m-init-done");
        out.line("m-ready");
    }

    /// Takes the next byte from the host; at the end of a command, does it.
    pub fn receive(&mut self, byte: u8, device: &mut impl Device, out: &mut impl Write) {
        if byte != b'%' {
            self.is_too_long |= self.command.push(byte).is_err();
            return;
        }
        let command = mem::take(&mut self.command);
        let mut out = Lines(out);
        let outcome = match core::str::from_utf8(&command) {
            _ if mem::take(&mut self.is_too_long) => Err(Refused::TooLong),
            Ok(command) if command.is_ascii() => self.execute(command, device, &mut out),
            Ok(_) | Err(_) => Err(Refused::NotAscii),
        };
        if let Err(refused) = outcome {
            out.line(format_args!("e-[{refused}]"));
        }
        out.line("m-ready");
    }

    fn execute<'c>(
        &mut self,
        command: &'c str,
        device: &mut impl Device,
        out: &mut Lines<'_, impl Write>,
    ) -> Result<(), Refused<'c>> {
        // One word more than any command has.
        let words: Vec<&str, 4> = command.split_ascii_whitespace().take(4).collect();
        match *words.as_slice() {
            // A lone % flushes the line.
            [] => {}
            ["name"] => out.line(format_args!("m-name-dut-[{}]", self.identity.vendor)),
            ["timestamp"] => out.timestamp(device.now_us()),
            ["profile"] => {
                out.line(format_args!("m-profile-[{PROFILE}]"));
                out.line(format_args!("m-model-[{}]", self.identity.model));
            }
            ["help"] => HELP.iter().for_each(|line| out.line(line)),
            ["db", "load", bytes] => self.expect(bytes, out)?,
            ["db", "print"] => self.image.chunks(8).for_each(|bytes| out.line(Buffer(bytes))),
            ["db", digits] => self.load(digits, out)?,
            ["infer"] => self.infer(1, WARMUPS, device, out)?,
            ["infer", inferences] => self.infer(count(inferences, 1)?, WARMUPS, device, out)?,
            ["infer", inferences, warmups] => self.infer(count(inferences, 1)?, count(warmups, 0)?, device, out)?,
            ["results"] if self.has_results => out.line(Results(device.logits())),
            ["results"] => return Err(Refused::NoResults),
            _ => return Err(Refused::Unknown(command)),
        }
        Ok(())
    }

    /// Makes room for an image.
    fn expect<'c>(&mut self, bytes: &'c str, out: &mut Lines<'_, impl Write>) -> Result<(), Refused<'c>> {
        if bytes.parse() != Ok(IMAGE) {
            return Err(Refused::Size {
                need: IMAGE,
                have: bytes,
            });
        }
        self.image.clear();
        self.is_expecting = true;
        out.line(format_args!("m-[Expecting {IMAGE} bytes]"));
        Ok(())
    }

    /// Takes bytes of the image, in hexadecimal digits: all of them, or none.
    fn load<'c>(&mut self, digits: &'c str, out: &mut Lines<'_, impl Write>) -> Result<(), Refused<'c>> {
        if !self.is_expecting {
            return Err(Refused::Unexpected { need: IMAGE });
        }
        let (pairs, odd) = digits.as_bytes().as_chunks();
        if !odd.is_empty() {
            return Err(Refused::OddDigits { have: digits.len() });
        }
        let mut bytes = Vec::<u8, { COMMAND_BYTES / 2 }>::new();
        for pair in pairs {
            let byte = byte(*pair).ok_or(Refused::NoDigits(digits))?;
            // There is room for half as many bytes as a command has characters.
            let _ = bytes.push(byte);
        }
        let left = IMAGE - self.image.len();
        self.image
            .extend_from_slice(&bytes)
            .map_err(|_| Refused::TooMany { left, have: bytes.len() })?;
        if self.image.is_full() {
            out.line("m-load-done");
        }
        Ok(())
    }

    fn infer<'c>(
        &mut self,
        inferences: u32,
        warmups: u32,
        device: &mut impl Device,
        out: &mut Lines<'_, impl Write>,
    ) -> Result<(), Refused<'c>> {
        if !self.image.is_full() {
            let have = self.image.len();
            return Err(Refused::NoImage { need: IMAGE, have });
        }
        let mut outcome = Ok(());
        out.line(format_args!("m-warmup-start-{warmups}"));
        for _ in 0..warmups {
            outcome = outcome.and_then(|()| device.infer(&self.image));
        }
        out.line("m-warmup-done");
        out.line(format_args!("m-infer-start-{inferences}"));
        // Both are printed when the second one is known: the host waits for neither, and a line takes longer than a layer.
        let begin = device.now_us();
        for _ in 0..inferences {
            outcome = outcome.and_then(|()| device.infer(&self.image));
        }
        let end = device.now_us();
        out.timestamp(begin);
        out.timestamp(end);
        out.line("m-infer-done");
        match outcome {
            Ok(()) => {
                self.has_results = true;
                out.line(Results(device.logits()));
            }
            Err(cause) => out.line(format_args!("e-[{cause}]")),
        }
        Ok(())
    }
}

/// A number of inferences, at least `least`.
fn count(word: &str, least: u32) -> Result<u32, Refused<'_>> {
    match word.parse() {
        Ok(count) if (least..=MAX_INFERENCES).contains(&count) => Ok(count),
        Ok(_) | Err(_) => Err(Refused::Count { least, have: word }),
    }
}

/// The byte that two hexadecimal digits write.
fn byte(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? << 4 | low?).ok()
}

const HELP: [&str; 10] = [
    "help            these lines",
    "name            who made the device",
    "timestamp       its clock, in microseconds",
    "profile         the firmware and the model",
    "db load N       begin to load an image of N bytes",
    "db HH[HH...]    the next bytes of it, in hexadecimal digits",
    "db print        the bytes loaded so far",
    "infer [N [W]]   N inferences (default 1) after W that are not timed (default 10), and the results of the last",
    "results         the results of the last inference",
    "each command ends in a percent sign",
];

/// Lines for the host.
struct Lines<'o, W>(&'o mut W);

impl<W: Write> Lines<'_, W> {
    fn line(&mut self, text: impl Display) {
        // Nothing can be told to a host that does not listen.
        let _ = write!(self.0, "{text}\r\n");
    }

    fn timestamp(&mut self, microseconds: u64) {
        self.line(format_args!("m-lap-us-{microseconds}"));
    }
}

/// Some bytes of the image.
struct Buffer<'i>(&'i [u8]);

impl Display for Buffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("m-buffer")?;
        self.0.iter().try_for_each(|byte| write!(f, "-{byte:02x}"))
    }
}

/// Logits as positive scores; see the top of this file. With three decimals, as the benchmark's own devices write them.
struct Results<'l>(&'l [i32]);

impl Display for Results<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().min().unwrap_or_default();
        f.write_str("m-results-[")?;
        for (class, logit) in self.0.iter().enumerate() {
            let comma = if class == 0 { "" } else { "," };
            write!(f, "{comma}{}.000", u64::from(logit.abs_diff(least)) + 1)?;
        }
        f.write_str("]")
    }
}

/// Why a command is refused. The host's own characters are escaped where they are not printable.
enum Refused<'c> {
    TooLong,
    NotAscii,
    Unknown(&'c str),
    Size { need: usize, have: &'c str },
    Unexpected { need: usize },
    OddDigits { have: usize },
    NoDigits(&'c str),
    TooMany { left: usize, have: usize },
    Count { least: u32, have: &'c str },
    NoImage { need: usize, have: usize },
    NoResults,
}

impl Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Refused::TooLong => write!(
                f,
                "the command is longer than {COMMAND_BYTES} characters: send fewer bytes at a time"
            ),
            Refused::NotAscii => f.write_str("the command is not ASCII: check the line's speed and its ground"),
            Refused::Unknown(command) => write!(f, "unknown command {command:?}: help lists them all"),
            Refused::Size { need, have } => write!(f, "the model takes {need} bytes, not {have:?}: send db load {need}"),
            Refused::Unexpected { need } => write!(f, "no bytes are expected: send db load {need} first"),
            Refused::OddDigits { have } => write!(f, "{have} digits are not whole bytes: send two a byte"),
            Refused::NoDigits(digits) => write!(f, "{digits:?} are not all hexadecimal digits"),
            Refused::TooMany { left, have } => {
                write!(f, "{have} bytes came, {left} are left to load: begin again with db load")
            }
            Refused::Count { least, have } => {
                write!(f, "the number of inferences is {least} to {MAX_INFERENCES}, not {have:?}")
            }
            Refused::NoImage { need, have } => {
                write!(f, "{have} of {need} bytes of the image are loaded: send the others with db")
            }
            Refused::NoResults => f.write_str("there are no results: send infer first"),
        }
    }
}
