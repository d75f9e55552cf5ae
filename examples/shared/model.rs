// Written by `adcorda export` with "model.adq". Not meant to be edited.

/// Bytes of RAM that the model runs in: a `static` of this size, at a multiple of 16 (`Aligned`), is the arena.
pub const ARENA_BYTES: usize = 6400;

/// Bytes of flash that the model takes.
pub const MODEL_BYTES: usize = 5960;

/// Number of classes, and so of logits.
pub const CLASSES: usize = 10;

/// Rows of an image.
pub const INPUT_HEIGHT: usize = 32;

/// Pixels of a row.
pub const INPUT_WIDTH: usize = 32;

/// Bytes of a pixel.
pub const INPUT_CHANNELS: usize = 3;

/// Bytes of an image: row by row, channels innermost.
pub const INPUT_BYTES: usize = INPUT_HEIGHT * INPUT_WIDTH * INPUT_CHANNELS;

/// The model file, where the linker puts constants (flash), aligned as its kernels like it.
pub static MODEL: &[u8; MODEL_BYTES] = &ALIGNED.0;

#[repr(C, align(16))]
struct Aligned([u8; MODEL_BYTES]);

static ALIGNED: Aligned = Aligned(*include_bytes!("model.adq"));
