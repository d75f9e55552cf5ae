//! Armv7E-M, and Armv8-M Mainline with the DSP extension: Cortex-M4, M7, M33.
//!
//! A convolution goes through its output in groups of three pixels. The inputs under their windows become [`columns`], which
//! meet all [`rows`] of weights, block by block. A fully connected layer is a group of one pixel.
#![allow(unsafe_code)]

mod add;
mod columns;
mod depthwise;
mod rows;

pub(crate) use self::add::add;
pub(crate) use self::depthwise::depthwise_conv2d;

use adcorda_formats::Width;

use self::columns::Columns;
use self::rows::Rows;
use super::is_aligned;
use super::path::{self, Isa, Path};
use crate::kernels::{Convolution, Epilogue};

/// Pixels computed at a time.
const PIXELS: usize = 3;

/// A convolution or a fully connected layer. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c_in]` | `y: [oh, ow, c_out]`, of `i32` for logits; with a residual it holds the other addend before
// Not inlined, so that its frame is on the stack only while it runs.
#[inline(never)]
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    if path::blocked(Isa::Dsp, layer, scratch.len()) != Path::Blocked {
        return false;
    }
    let Some(mut columns) = Columns::new(layer, x, scratch, layer.weights.packing.width != Width::W8) else {
        return false;
    };
    let Some(mut rows) = Rows::new(layer, columns.words()) else {
        return false;
    };
    let pixel_bytes = match layer.epilogue {
        Epilogue::Codes { .. } => layer.weights.packing.rows,
        Epilogue::Logits => layer.weights.packing.rows * 4,
    };
    let mut left = layer.y.height * layer.y.width;
    if y.len() < left * pixel_bytes || !is_aligned(y.as_ptr()) {
        return false;
    }

    let mut y = y.as_mut_ptr();
    while left > 0 {
        // What remains of less than a group is computed pixel by pixel, three times over in one place.
        let (pixels, stride) = if left < PIXELS { (1, 0) } else { (PIXELS, pixel_bytes) };
        let sums = columns.next(pixels);
        // SAFETY: `y` has room for the pixels that are left, and the columns have just been filled.
        unsafe { rows.run(sums, y, stride) };
        y = y.wrapping_add(pixels * pixel_bytes);
        left -= pixels;
    }
    true
}
