// Written by `adcorda new-firmware`. Not meant to be edited.

use crate::model::{CLASSES, INPUT_BYTES};

const _: () = assert!(
    INPUT_BYTES == 3072 && CLASSES == 10,
    "samples.rs is of another model than model.rs: make both anew with `adcorda new-firmware`"
);

/// Number of images.
pub const COUNT: usize = 4;

/// The images, one after the other.
pub static PIXELS: &[u8] = include_bytes!("samples.bin");

/// Class of each image, where it is known.
pub static LABELS: [Option<usize>; COUNT] = [Some(0), Some(1), Some(2), Some(3)];

/// What the host's runtime made of each image.
pub static LOGITS: [[i32; 10]; COUNT] = [
    [31012, -6923, 22704, -8654, -8499, 7409, -11402, -9448, -8737, 3438],
    [-12576, 15005, -7290, 20141, -2149, 12777, -11524, 3829, -1951, -12651],
    [29237, -7870, 34024, 704, -4501, 4276, -13749, -18605, -16400, -16],
    [-3296, -5584, 16260, 14317, -9972, 2262, -3251, 491, -1222, -11251],
];
