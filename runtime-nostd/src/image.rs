//! The pixels that a session takes.

use core::fmt;

use adcorda_formats::Model;

/// The pixels of one image, of the size that a model takes.
#[derive(Clone, Copy, Debug)]
pub struct Image<'p> {
    pub(crate) pixels: &'p [u8],
}

impl<'p> Image<'p> {
    /// Checks that `pixels` is an image of `model`'s input size: row by row, channels innermost (RGB as a camera gives it),
    /// one byte a channel, not normalised.
    ///
    /// # Errors
    /// [`ImageSize`] where the number of bytes is not height x width x channels.
    pub fn new(model: &Model<'_>, pixels: &'p [u8]) -> Result<Self, ImageSize> {
        let (need, have) = (model.input().elements(), pixels.len());
        if need == have {
            Ok(Image { pixels })
        } else {
            Err(ImageSize { need, have })
        }
    }
}

/// The image is not of the size that the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Bytes that the model takes: height x width x channels.
    pub need: usize,
    /// Bytes given.
    pub have: usize,
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the image has {} bytes, the model takes {}", self.have, self.need)
    }
}

impl core::error::Error for ImageSize {}
