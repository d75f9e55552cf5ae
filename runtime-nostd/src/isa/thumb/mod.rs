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
#[cfg(adcorda_isa = "thumb1")]
#[path = "v6m.rs"]
mod rows;
#[cfg(adcorda_isa = "thumb2")]
#[path = "v7m.rs"]
mod rows;

use adcorda_formats::Width;

use self::columns::Columns;
use super::path::{self, Isa, Path};
use crate::kernels::{Convolution, Epilogue};
use crate::requantize::AddRequantizer;

/// Pixels of a group, at most.
const PIXELS: usize = 4;

/// Adds dot products to `sums`: of four columns with one row of weights, or of two columns with two rows (W8), the first row's before
/// the second's.
///
/// # Safety
/// `columns` has 8 bytes a code, `weights` a block of rows, both for 16 codes a step; `steps` is not 0. All is aligned to words.
type Dot = unsafe extern "C" fn(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize);

/// How a width is computed.
struct Kernel {
    /// For the rows of a block.
    dots: &'static [Dot],
    /// Pixels that each takes; it takes `PIXELS / pixels` rows.
    pixels: usize,
    /// How much more the weights are than multiplied, in each row of a block.
    offsets: &'static [i32],
    /// How often the dot product of weights counts.
    factor: i32,
}

impl Kernel {
    const fn new(width: Width) -> Self {
        let (dots, offsets, factor): (&[Dot], &[i32], i32) = match width {
            Width::W4 if cfg!(feature = "w4") => (&[rows::w4_0, rows::w4_1], &[8, 8], 1),
            Width::W2 if cfg!(feature = "w2") => (&[rows::w2_0, rows::w2_1, rows::w2_2, rows::w2_3], &[1, 2, 1, 2], 1),
            Width::W1 if cfg!(feature = "w1") => (&[rows::w1_0, rows::w1_1, rows::w1_2, rows::w1_3], &[1, 1, 1, 1], 2),
            Width::W8 | Width::W4 | Width::W2 | Width::W1 => (&[rows::w8], &[0], 1),
        };
        Kernel {
            dots,
            pixels: if dots.len() == 1 { 2 } else { PIXELS },
            offsets,
            factor,
        }
    }
}

/// A convolution or a fully connected layer. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c_in]` | `y: [oh, ow, c_out]`, of `i32` for logits; with a residual it holds the other addend before
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    if path::blocked(Isa::CURRENT, layer, scratch.len()) != Path::Blocked {
        return false;
    }
    let weights = &layer.weights;
    let packing = &weights.packing;
    let kernel = Kernel::new(packing.width);
    let element = match layer.epilogue {
        Epilogue::Codes { .. } => 1,
        Epilogue::Logits => 4,
    };
    let pixels = layer.y.height * layer.y.width;
    if weights.packed.len() < packing.bytes()
        || !weights.packed.as_ptr().addr().is_multiple_of(4)
        || weights.bias.len() < packing.rows
        || y.len() < pixels * packing.rows * element
    {
        return false;
    }
    let Some(mut columns) = Columns::new(layer, kernel.pixels, x, scratch) else {
        return false;
    };

    let rows_at_once = PIXELS / kernel.pixels;
    let finish = Finish::new(&layer.epilogue);
    for first in (0..pixels).step_by(kernel.pixels) {
        let count = kernel.pixels.min(pixels - first);
        let inputs = columns.fill(count);
        let mut row = 0;
        while row < packing.rows {
            let (block, in_block) = (row / packing.block_rows(), row % packing.block_rows() / rows_at_once);
            let mut sums = [0; PIXELS];
            // SAFETY: the columns have 8 bytes for each of `padded_k` codes, which are whole steps, and not none; the block lies in
            // `packed`, of which the length has been checked. Both are aligned, as blocks are whole words.
            unsafe {
                let block = weights.packed.as_ptr().add(block * packing.block_bytes());
                (kernel.dots[in_block])(columns.words(), block, &mut sums, packing.padded_k() / 16);
            }
            let offset = kernel.offsets[in_block];
            for (row, sums) in (row..packing.rows).zip(sums.chunks_exact(kernel.pixels)) {
                let bias = weights.bias.get(row);
                let rule = finish.multiplier(row);
                for (pixel, (&sum, &inputs)) in (first..).zip(sums.iter().zip(&inputs)).take(count) {
                    let acc = sum
                        .wrapping_mul(kernel.factor)
                        .wrapping_sub(inputs.wrapping_mul(offset))
                        .wrapping_add(bias);
                    finish.write(y, pixel * packing.rows + row, acc, rule);
                }
            }
            row += rows_at_once;
        }
    }
    true
}

/// From accumulators to the output.
enum Finish<'a> {
    Codes {
        multiplier: adcorda_formats::I32Array<'a>,
        zero_point: i32,
        residual: Option<AddRequantizer>,
    },
    Logits,
}

impl<'a> Finish<'a> {
    fn new(epilogue: &'a Epilogue<'_>) -> Self {
        match epilogue {
            Epilogue::Codes { rules, residual } => Finish::Codes {
                multiplier: rules.multiplier,
                zero_point: rules.zero_point.into(),
                residual: *residual,
            },
            Epilogue::Logits => Finish::Logits,
        }
    }

    fn multiplier(&self, row: usize) -> i32 {
        match self {
            Finish::Codes { multiplier, .. } => multiplier.get(row),
            Finish::Logits => 0,
        }
    }

    /// Element `index` of the output.
    #[inline(always)]
    fn write(&self, y: &mut [u8], index: usize, acc: i32, multiplier: i32) {
        match self {
            Finish::Codes {
                zero_point, residual, ..
            } => {
                let Some(code) = y.get_mut(index) else { return };
                let v = (rows::upper_half(acc, multiplier) + zero_point).clamp(-128, 127) as i8;
                *code = match residual {
                    Some(add) => add.apply(v, *code as i8),
                    None => v,
                } as u8;
            }
            Finish::Logits => {
                if let Some(logit) = y.as_chunks_mut().0.get_mut(index) {
                    *logit = acc.to_le_bytes();
                }
            }
        }
    }
}
