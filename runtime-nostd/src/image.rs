//! The pixels that a session takes, in the formats that cameras give them.
//!
//! A camera's frame goes to the input tensor in one pass, through the model's input table, without a second frame in between.
//! For every format it is, bit for bit, the frame converted to RGB888 by the rule of [`PixelFormat`] and then run. So a model
//! is trained and evaluated on RGB888 alone.

use core::fmt;

use adcorda_formats::{Model, Tensor};

use crate::kernels;

/// The pixels of one image, of the size that a model takes.
#[derive(Clone, Copy)]
pub struct Image<'p> {
    pixels: &'p [u8],
    /// Writes pixels through an input table as codes: arguments in this order, as in `kernels::input_table`.
    // A function and no format to match on: a firmware then links the conversions that its constructors name, and no others,
    // and a session has one `run` for all of them. The price is one indirect call an image.
    convert: fn(&[u8], &[u8], &mut [u8]),
}

impl<'p> Image<'p> {
    /// Checks that `pixels` is an image of `model`'s input size: row by row, channels innermost (RGB as a camera gives it),
    /// one byte a channel, not normalised. Any number of channels.
    ///
    /// # Errors
    /// [`ImageSize`] where the number of bytes is not height x width x channels.
    pub fn new(model: &Model<'_>, pixels: &'p [u8]) -> Result<Self, ImageSize> {
        let (need, have) = (model.input().elements(), pixels.len());
        if need == have {
            let convert = kernels::input_table;
            Ok(Image { pixels, convert })
        } else {
            Err(ImageSize { need, have })
        }
    }

    /// Checks that `pixels` is a frame of `model`'s height and width in `format`, row by row without gaps, for a model of
    /// three channels: red, green, blue.
    ///
    /// Where `format` is a constant, an optimised firmware links the conversion from this format alone.
    ///
    /// # Errors
    /// [`ImageMismatch`] where the model has not three channels, where its width is odd and the pixels of `format` come in
    /// pairs, and where the number of bytes is not height x width x [`PixelFormat::bytes_per_pixel`].
    // Inlined always: only where the constant meets the match are the other conversions dropped.
    #[inline(always)]
    pub fn with_format(model: &Model<'_>, format: PixelFormat, pixels: &'p [u8]) -> Result<Self, ImageMismatch> {
        format.check(model.input(), pixels.len())?;
        let convert = match format {
            PixelFormat::Rgb888 => kernels::input_table,
            PixelFormat::Rgb565Le => kernels::rgb565_le,
            PixelFormat::Rgb565Be => kernels::rgb565_be,
            PixelFormat::Yuyv => kernels::yuyv,
            PixelFormat::Uyvy => kernels::uyvy,
        };
        Ok(Image { pixels, convert })
    }

    /// Writes the codes of the input tensor.
    pub(crate) fn write_codes(self, table: &[u8], codes: &mut [u8]) {
        (self.convert)(self.pixels, table, codes);
    }
}

impl fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("pixels", &self.pixels).finish_non_exhaustive()
    }
}

/// How a camera lays out the pixels of a frame, and what they are in RGB888.
///
/// # Source
/// The layouts are those that V4L2 calls `RGB24`, `RGB565`, `RGB565X`, `YUYV` and `UYVY`. RGB565 is widened as in the PNG
/// specification (W3C 2003), section 13.12, "left bit replication". YUV is BT.601 with all 256 levels, as JPEG has it (ITU-T
/// T.871, section 7), its factors rounded to multiples of 2^-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Three bytes a pixel: red, green, blue.
    Rgb888,
    /// Two bytes a pixel, low byte first: red in the upper five bits, green in six, blue in the lower five.
    ///
    /// `R = r << 3 | r >> 2`, `G = g << 2 | g >> 4`, `B = b << 3 | b >> 2`: at most 0.72 from the exact `r * 255 / 31` and
    /// `g * 255 / 63`, and equal at both ends.
    Rgb565Le,
    /// As [`Rgb565Le`](PixelFormat::Rgb565Le), high byte first: as the OV7670 and the OV2640 put it on their bus, and so what
    /// a byte-wide camera interface with DMA leaves in memory.
    Rgb565Be,
    /// Four bytes for two neighbours in a row: Y0, U, Y1, V, all of them 0 to 255, U and V with 128 as zero.
    ///
    /// With `u = U - 128`, `v = V - 128`, and `>>` rounding toward minus infinity:
    ///
    /// ```text
    /// R = clamp(Y + ((           91881 * v + 32768) >> 16), 0, 255)
    /// G = clamp(Y + ((-22553 * u - 46802 * v + 32768) >> 16), 0, 255)
    /// B = clamp(Y + ((116130 * u             + 32768) >> 16), 0, 255)
    /// ```
    ///
    /// This is at most 0.502 from the exact value before rounding, for every Y, U and V. Cameras that keep to video levels (Y
    /// from 16 to 235) look flat this way: choose full range in their registers.
    Yuyv,
    /// As [`Yuyv`](PixelFormat::Yuyv), in the order U, Y0, V, Y1.
    Uyvy,
}

impl PixelFormat {
    /// Bytes that a pixel takes; where pixels come in pairs, half of the pair's.
    pub const fn bytes_per_pixel(self) -> usize {
        match self {
            PixelFormat::Rgb888 => 3,
            PixelFormat::Rgb565Le | PixelFormat::Rgb565Be | PixelFormat::Yuyv | PixelFormat::Uyvy => 2,
        }
    }

    /// Whether two neighbours in a row share their chroma.
    const fn is_paired(self) -> bool {
        match self {
            PixelFormat::Rgb888 | PixelFormat::Rgb565Le | PixelFormat::Rgb565Be => false,
            PixelFormat::Yuyv | PixelFormat::Uyvy => true,
        }
    }

    /// Whether a frame of `have` bytes is an image of `input`'s shape.
    fn check(self, input: &Tensor, have: usize) -> Result<(), ImageMismatch> {
        if input.channels != 3 {
            return Err(ImageMismatch::Channels { found: input.channels });
        }
        if self.is_paired() && !input.width.is_multiple_of(2) {
            return Err(ImageMismatch::OddWidth { found: input.width });
        }
        // No more than the elements of the tensor, which fit.
        let need = usize::from(input.height) * usize::from(input.width) * self.bytes_per_pixel();
        if need == have {
            Ok(())
        } else {
            Err(ImageMismatch::Size { need, have })
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

/// Why a frame of a [`PixelFormat`] is no image for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageMismatch {
    /// The model has other channels than red, green and blue.
    Channels {
        /// Channels of the model's input.
        found: u16,
    },
    /// The format has its pixels in pairs, and the model's rows do not.
    OddWidth {
        /// Width of the model's input.
        found: u16,
    },
    /// The frame is not of the size that the model takes.
    Size {
        /// Bytes that the model takes: height x width x [`PixelFormat::bytes_per_pixel`].
        need: usize,
        /// Bytes given.
        have: usize,
    },
}

impl fmt::Display for ImageMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ImageMismatch::Channels { found } => {
                write!(f, "the pixels are red, green and blue, the model takes {found} channels")
            }
            ImageMismatch::OddWidth { found } => {
                write!(f, "the pixels come in pairs, the model takes rows of {found}, an odd number")
            }
            ImageMismatch::Size { need, have } => ImageSize { need, have }.fmt(f),
        }
    }
}

impl core::error::Error for ImageMismatch {}
