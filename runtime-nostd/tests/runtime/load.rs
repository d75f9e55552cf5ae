//! Loading, from readers that give as much as they are told to.

use crate::net::{FILL, Random};
use adcorda_runtime::embedded_io::{ErrorKind, ErrorType, Read};
use adcorda_runtime::formats::{HEADER_BYTES, Model, ParseError};
use adcorda_runtime::{Aligned, Image, LoadError, Session, load};

const TINY: &[u8] = include_bytes!("../../examples/tiny.adq");

/// Gives the bytes of `file`, at most `most` at a time, and fails where it is told to.
struct Script<'f> {
    file: &'f [u8],
    given: usize,
    most: usize,
    fails_at: Option<usize>,
    random: Random,
}

impl<'f> Script<'f> {
    fn new(file: &'f [u8], most: usize) -> Self {
        let random = Random::new(most as u64);
        Script {
            file,
            given: 0,
            most,
            fails_at: None,
            random,
        }
    }
}

impl ErrorType for Script<'_> {
    type Error = ErrorKind;
}

impl Read for Script<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ErrorKind> {
        assert!(!bytes.is_empty());
        if self.fails_at == Some(self.given) {
            return Err(ErrorKind::TimedOut);
        }
        let end = self.fails_at.unwrap_or(self.file.len());
        let count = bytes.len().min(end - self.given).min(self.random.within(1, self.most));
        bytes[..count].copy_from_slice(&self.file[self.given..][..count]);
        self.given += count;
        Ok(count)
    }
}

/// The error of loading a file to a buffer of `room` bytes, and how much of the file has been read by then.
fn refused(file: &[u8], room: usize) -> (LoadError<ErrorKind>, usize) {
    let mut reader = Script::new(file, 100);
    let error = load(&mut reader, &mut vec![FILL; room]).unwrap_err();
    (error, reader.given)
}

/// The tiny model with one byte of its header changed.
fn header_with(at: usize, byte: u8) -> Vec<u8> {
    let mut file = TINY.to_vec();
    file[at] = byte;
    file
}

#[test]
fn reads_may_be_short() {
    for most in [1, 2, 7, 31, 32, 33, 500, 5000] {
        let mut buffer = vec![FILL; TINY.len() + 9];
        let mut reader = Script::new(TINY, most);
        let model = load(&mut reader, &mut buffer).unwrap();
        assert_eq!((model.name(), model.label(1)), ("tiny", Some("car")));
        assert_eq!(reader.given, TINY.len());
        let (file, behind) = buffer.split_at(TINY.len());
        assert_eq!(file, TINY);
        assert!(behind.iter().all(|&byte| byte == FILL), "written behind the file");
    }
}

#[test]
fn a_reader_that_ends_early() {
    for end in 0..TINY.len() {
        let need = if end < HEADER_BYTES { HEADER_BYTES } else { TINY.len() };
        assert_eq!(refused(&TINY[..end], TINY.len()), (LoadError::Truncated { need }, end));
    }
}

#[test]
fn a_reader_that_fails() {
    for at in 0..TINY.len() {
        let mut reader = Script::new(TINY, 100);
        reader.fails_at = Some(at);
        let error = load(&mut reader, &mut [FILL; TINY.len()]).unwrap_err();
        assert_eq!((error, reader.given), (LoadError::Reader(ErrorKind::TimedOut), at));
    }
}

#[test]
fn nothing_is_read_behind_the_model() {
    let two = [TINY, TINY].concat();
    let mut reader = Script::new(&two, 5000);
    reader.fails_at = Some(two.len());
    for read in [TINY.len(), two.len()] {
        load(&mut reader, &mut [FILL; TINY.len()]).unwrap();
        assert_eq!(reader.given, read);
    }
}

#[test]
fn a_buffer_that_is_too_small() {
    for have in 0..TINY.len() {
        let need = TINY.len();
        assert_eq!(refused(TINY, have), (LoadError::BufferTooSmall { need, have }, HEADER_BYTES));
    }
}

#[test]
fn what_is_no_model_is_refused_before_the_buffer_is_looked_at() {
    for (file, cause) in [
        (header_with(0, b'A'), ParseError::NotAModel),
        // As an erased flash reads.
        (vec![0xFF; 4096], ParseError::NotAModel),
        (header_with(8, 3), ParseError::NewerVersion { found: 3 }),
        (header_with(8, 1), ParseError::DraftVersion { found: 1 }),
    ] {
        assert_eq!(refused(&file, 0), (LoadError::Model(cause), HEADER_BYTES));
    }
}

#[test]
fn a_damaged_model() {
    let mut file = TINY.to_vec();
    *file.last_mut().unwrap() ^= 1;
    let (error, read) = refused(&file, 5000);
    assert!(matches!(error, LoadError::Model(ParseError::Checksum { .. })), "{error}");
    assert_eq!(read, file.len());
}

#[test]
fn errors_say_what_to_do() {
    for (error, sentence) in [
        (LoadError::Reader(ErrorKind::TimedOut), "the model cannot be read: TimedOut"),
        (
            LoadError::Truncated { need: 32 },
            "the reader ended before 32 bytes of the model: write the whole file again",
        ),
        (
            LoadError::BufferTooSmall { need: 1580, have: 9 },
            "the buffer has 9 bytes, the model file 1580: make the buffer as long",
        ),
        (
            LoadError::Model(ParseError::VersionZero),
            "version 0 does not exist: the header is damaged",
        ),
    ] {
        let error: &dyn std::error::Error = &error;
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn a_loaded_model_runs_at_every_alignment() {
    let in_place = logits(&Model::parse(TINY).unwrap());
    for shift in 0..16 {
        let mut buffer = Aligned([FILL; TINY.len() + 16]);
        assert!(buffer.0.as_ptr().addr().is_multiple_of(16));
        let model = load(&mut Script::new(TINY, 64), &mut buffer.0[shift..]).unwrap();
        assert_eq!(logits(&model), in_place);
    }
}

fn logits(model: &Model<'_>) -> Vec<i32> {
    let pixels: Vec<u8> = (0..model.input().elements()).map(|i| (37 * i) as u8).collect();
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut session = Session::new(model, &mut arena).unwrap();
    session.run(Image::new(model, &pixels).unwrap(), &mut ()).iter().collect()
}
