//! Models from memory that the processor cannot address: an external flash or a card, behind a driver.
//!
//! The weights of a model are read again for every image, so such a file is copied to RAM first, whole. Where a flash is mapped
//! into the address space, the processor's own or an external one, [`Model::parse`] takes the file in place, and nothing
//! here is needed.

use core::fmt;

use adcorda_formats::{HEADER_BYTES, Model, ParseError};
use embedded_io::{Read, ReadExactError};

/// Reads a model file from `reader` to the beginning of `buffer`, and checks all of it.
///
/// The header is read and checked before anything else: so another file, or a model of a newer version, is refused after 32
/// bytes. Nothing is read beyond the model's end; what follows it there is no error.
///
/// `buffer` may be longer than the file. For the fast kernels it must be [`Aligned`](crate::Aligned):
///
/// ```
/// use adcorda_runtime::{Aligned, load};
///
/// # let mut flash: &[u8] = include_bytes!("../examples/tiny.adq");
/// // In a firmware a static, of the length in the generated `model.rs`; the reader is a driver's.
/// let mut buffer = Aligned([0; 2048]);
/// let model = load(&mut flash, &mut buffer.0)?;
/// assert_eq!(model.name(), "tiny");
/// # Ok::<(), adcorda_runtime::LoadError<core::convert::Infallible>>(())
/// ```
///
/// # Errors
/// See [`LoadError`]. What `buffer` holds then, and how far `reader` has been read, is not said.
///
/// # Panics
/// Never, unless `reader` says that it has read more than it was given room for.
pub fn load<'b, R: Read + ?Sized>(reader: &mut R, buffer: &'b mut [u8]) -> Result<Model<'b>, LoadError<R::Error>> {
    match read(reader, buffer) {
        Ok(file) => Model::parse(file).map_err(LoadError::Model),
        Err(error) => Err(error),
    }
}

/// Why a model was not loaded. `Display` says what was found, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError<E> {
    /// The reader failed, with this.
    Reader(E),
    /// The reader ended before the model did.
    Truncated {
        /// Bytes that it did not have all of: those of a header, or, where the header is there, those of the file.
        need: usize,
    },
    /// The file is longer than the buffer.
    BufferTooSmall {
        /// Bytes of the file.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// What was read is not a valid model.
    Model(ParseError),
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Reader(cause) => write!(f, "the model cannot be read: {cause}"),
            LoadError::Truncated { need } => {
                write!(
                    f,
                    "the reader ended before {need} bytes of the model: write the whole file again"
                )
            }
            LoadError::BufferTooSmall { need, have } => {
                write!(
                    f,
                    "the buffer has {have} bytes, the model file {need}: make the buffer as long"
                )
            }
            LoadError::Model(cause) => cause.fmt(f),
        }
    }
}

impl<E: core::error::Error> core::error::Error for LoadError<E> {}

/// Reads a model file, of which the header alone is checked.
// Not inlined, so that what it has on the stack is gone when the rest is checked.
#[inline(never)]
fn read<'b, R: Read + ?Sized>(reader: &mut R, buffer: &'b mut [u8]) -> Result<&'b [u8], LoadError<R::Error>> {
    let mut header = [0; HEADER_BYTES];
    fill(reader, &mut header, HEADER_BYTES)?;
    let need = Model::file_bytes(&header).map_err(LoadError::Model)?;
    let have = buffer.len();
    let file = buffer.get_mut(..need).ok_or(LoadError::BufferTooSmall { need, have })?;
    // No file is shorter than its header.
    if let Some((start, rest)) = file.split_first_chunk_mut() {
        *start = header;
        fill(reader, rest, need)?;
    }
    Ok(file)
}

/// Fills `bytes`, the last ones of the first `need` of a file.
fn fill<R: Read + ?Sized>(reader: &mut R, bytes: &mut [u8], need: usize) -> Result<(), LoadError<R::Error>> {
    reader.read_exact(bytes).map_err(|error| match error {
        ReadExactError::UnexpectedEof => LoadError::Truncated { need },
        ReadExactError::Other(cause) => LoadError::Reader(cause),
    })
}
