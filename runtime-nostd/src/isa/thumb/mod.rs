//! Cores without DSP instructions: Armv7-M and Armv8-M Mainline (Cortex-M3), and Armv6-M and Armv8-M Baseline (Cortex-M0, M0+, M23).
//!
//! With weights of up to four bits, one 32-bit multiplication does two of a dot product. Of codes `x` and weights `w` at `k` and
//! `k + 2` it multiplies
//!
//! ```text
//! (x[k+2] + x[k] * 2^16) * (w[k] + w[k+2] * 2^16) = x[k+2] * w[k] + (x[k] * w[k] + x[k+2] * w[k+2]) * 2^16    (mod 2^32)
//! ```
//!
//! and packed weights, which hold `w[k]` and `w[k+2]` in the halves of a word, need no more than a mask. The upper half is wanted; the
//! lower one only must not disturb it. Before either half can overflow, the upper one goes to a 32-bit sum; [`rows`] states the
//! bounds. Weights of eight bits leave no room for this: they meet one code a multiplication.
//!
//! A layer goes through its output in groups of four pixels (two with weights of eight bits). The codes under their windows become
//! [`columns`], which meet one row of weights after another.
#![allow(unsafe_code)]

mod columns;
mod depthwise;
#[cfg(adcorda_isa = "thumb1")]
#[path = "v6m.rs"]
mod rows;
#[cfg(adcorda_isa = "thumb2")]
#[path = "v7m.rs"]
mod rows;

use core::ptr;

use adcorda_formats::Width;

pub(crate) use self::depthwise::depthwise_conv2d;

use self::columns::Columns;
use super::is_aligned;
use super::path::{self, Isa, Path};
use crate::kernels::{Convolution, Epilogue};

/// Pixels of a group, at most.
const PIXELS: usize = 4;

/// A group of pixels, and what the assembly needs to compute all rows of them; it knows each place. All pointers are aligned to words.
#[repr(C)]
struct Group {
    /// The next row's.
    bias: *const i32,
    /// The next row's; never used for logits.
    multiplier: *const i32,
    /// First pixel of the next row, and after the last row. (8)
    y: *mut u8,
    y_end: *mut u8,
    /// From pixel to pixel in `y`, in bytes. (16)
    stride: usize,
    zero_point: i32,
    columns: *const u32,
    columns_end: *const u32,
    /// (32)
    weights: *const u8,
    finish: Finish,
    block_bytes: usize,
    /// Of codes and residuals. The constant has all zero points and the rounding. (44)
    mul_v: i32,
    mul_r: i32,
    constant: i32,
    shift: u32,
    /// What the sums of even and odd rows begin at: the sum of the pixel's inputs, times minus what the stored numbers are more than
    /// the weights. (60)
    corrections: [[i32; PIXELS]; 2],
    /// Number of the last pixel. (92)
    last: usize,
}

/// Computes a group: four columns with one row after the other, or two columns with two rows at a time (W8).
///
/// Other than those of W8, weights count as they are stored, as numbers from 0 on; and a bit of W1 counts as 2.
///
/// # Safety
/// `columns` to `columns_end` are 8 bytes for each of the padded `k`; `weights` are as many blocks as hold the rows; there are a bias and a
/// multiplier a row, and room for the rows of each pixel in `y`.
type Tile = unsafe extern "C" fn(group: &mut Group);

/// The end of a row, called from a [`Tile`] in registers of its own choice: from sums to the output.
type Finish = unsafe extern "C" fn(group: &mut Group);

/// A convolution or a fully connected layer. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c_in]` | `y: [oh, ow, c_out]`, of `i32` for logits; with a residual it holds the other addend before
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    if path::blocked(Isa::CURRENT, layer, scratch.len()) != Path::Blocked {
        return false;
    }
    let packing = &layer.weights.packing;
    let (rows, pixels) = (packing.rows, layer.y.height * layer.y.width);
    let (tile, offsets): (Tile, [i32; 2]) = match packing.width {
        Width::W4 if cfg!(feature = "w4") => (rows::w4, [8, 8]),
        Width::W2 if cfg!(feature = "w2") => (rows::w2, [1, 2]),
        Width::W1 if cfg!(feature = "w1") => (rows::w1, [1, 1]),
        Width::W8 => (rows::w8, [0, 0]),
        Width::W4 | Width::W2 | Width::W1 => return false,
    };
    let size = match packing.width {
        Width::W8 => 2,
        Width::W4 | Width::W2 | Width::W1 => PIXELS,
    };
    let finish = |four: Finish, two: Finish| if size == 2 { two } else { four };
    let mut group = Group {
        bias: ptr::null(),
        multiplier: ptr::null(),
        y: ptr::null_mut(),
        y_end: ptr::null_mut(),
        stride: rows,
        zero_point: 0,
        columns: ptr::null(),
        columns_end: ptr::null(),
        weights: layer.weights.packed.as_ptr(),
        finish: finish(rows::codes4, rows::codes2),
        block_bytes: packing.block_bytes(),
        mul_v: 0,
        mul_r: 0,
        constant: 0,
        shift: 0,
        corrections: [[0; PIXELS]; 2],
        last: size - 1,
    };
    let mut multiplier = &layer.weights.bias;
    match &layer.epilogue {
        Epilogue::Codes { rules, residual } => {
            multiplier = &rules.multiplier;
            group.zero_point = rules.zero_point.into();
            if let Some(add) = residual {
                group.finish = finish(rows::sums4, rows::sums2);
                (group.mul_v, group.mul_r) = (add.mul_a.into(), add.mul_b.into());
                group.constant = (i32::from(add.zero_point) << add.shift) + (1 << (add.shift - 1))
                    - i32::from(add.zero_point_a) * group.mul_v
                    - i32::from(add.zero_point_b) * group.mul_r;
                group.shift = add.shift.into();
            }
        }
        Epilogue::Logits => {
            group.finish = finish(rows::logits4, rows::logits2);
            group.stride = 4 * rows;
        }
    }
    let (bias, multiplier) = (layer.weights.bias.words(), multiplier.words());
    let pixel_bytes = group.stride;
    if layer.weights.packed.len() < packing.bytes()
        || bias.len() < rows
        || multiplier.len() < rows
        || y.len() < pixels * pixel_bytes
        || !(is_aligned(group.weights) && is_aligned(y.as_ptr()))
        || !(is_aligned(bias.as_ptr().cast()) && is_aligned(multiplier.as_ptr().cast()))
    {
        return false;
    }
    let Some(mut columns) = Columns::new(layer, size, x, scratch) else {
        return false;
    };

    let mut first = 0;
    while first < pixels {
        // What remains is computed pixel by pixel.
        let count = if pixels - first >= size { size } else { 1 };
        if count < size {
            (group.stride, group.last) = (0, 0);
        }
        let inputs = columns.fill(count);
        group.corrections = offsets.map(|offset| inputs.map(|input| input.wrapping_mul(-offset)));
        (group.columns, group.columns_end) = columns.words();
        (group.bias, group.multiplier) = (bias.as_ptr().cast(), multiplier.as_ptr().cast());
        group.y = y[first * pixel_bytes..].as_mut_ptr();
        group.y_end = group.y.wrapping_add(pixel_bytes);
        // SAFETY: weights, biases, multipliers and output have been checked to be aligned and as long as the layer says. Columns
        // are. The pixels that are computed, `count` ones or one several times over, lie in `y`.
        unsafe { tile(&mut group) };
        first += count;
    }
    true
}
