//! What depends on the instruction set, one file each.
//!
//! A file offers `conv2d` and `depthwise_conv2d` for the shapes that it is good at, multiplying the packed weights where
//! they lie. They say whether they took the layer; if not, the kernel that takes every shape does, over [`unpack`]ed rows.
//! Which shapes a file takes is decided in one place, [`path`], so that a report made on the host is what the device does.
//!
//! The file is chosen by the compilation target alone (see `build.rs`). Codes travel as `u8` with the bits of an `i8`:
//! activations in the arena and unpacked weights are then plain slices of the caller's bytes, without a cast. This folder is
//! the only one that may allow unsafe code.

mod depthwise;
#[cfg(adcorda_isa = "dsp")]
mod dsp;
#[cfg(adcorda_isa = "mve")]
mod mve;
mod path;
mod portable;
#[cfg(any(adcorda_isa = "thumb1", adcorda_isa = "thumb2"))]
mod thumb;
#[cfg(adcorda_isa = "portable")]
mod widened;

pub use path::{Isa, Path, path};
pub(crate) use portable::{dot, sum, unpack};

use core::ops::Range;

use adcorda_formats::Order;

use crate::kernels::Convolution;
use crate::requantize::AddRequantizer;

/// A convolution, depthwise or not, or a fully connected layer. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c_in]` | `y: [oh, ow, c_out]`, of `i32` for logits; with a residual it holds the other addend before
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    #[cfg(adcorda_isa = "dsp")]
    use dsp as isa;
    #[cfg(adcorda_isa = "mve")]
    use mve as isa;
    #[cfg(any(adcorda_isa = "thumb1", adcorda_isa = "thumb2"))]
    use thumb as isa;
    #[cfg(adcorda_isa = "portable")]
    use widened as isa;

    match layer.weights.packing.order {
        Order::Blocks => isa::conv2d(layer, x, y, scratch),
        Order::Channels => cfg!(feature = "depthwise") && isa::depthwise_conv2d(layer, x, y, scratch),
    }
}

/// A residual addition, of as many elements from the first on as the instruction set is good for; gives their number. `y` lies
/// where an input does, or apart from it.
///
/// # Shapes
/// `a`, `b`, `y`: ranges of one length
pub(crate) fn add(arena: &mut [u8], a: &Range<usize>, b: &Range<usize>, y: &Range<usize>, rule: &AddRequantizer) -> usize {
    #[cfg(adcorda_isa = "dsp")]
    return dsp::add(arena, a, b, y, rule);
    #[cfg(not(adcorda_isa = "dsp"))]
    {
        let _ = (arena, a, b, y, rule);
        0
    }
}

/// Whether `bytes` begins at a word.
#[cfg(any(adcorda_isa = "dsp", adcorda_isa = "thumb1", adcorda_isa = "thumb2"))]
fn is_aligned(bytes: *const u8) -> bool {
    bytes.addr().is_multiple_of(4)
}

/// Pixels of an output row whose windows reach over neither side of the input.
#[cfg(any(adcorda_isa = "mve", adcorda_isa = "thumb1", adcorda_isa = "thumb2"))]
fn inside(layer: &Convolution<'_>) -> Range<usize> {
    let (pad, stride) = (usize::from(layer.window.pad_left), usize::from(layer.window.stride_width));
    let last = (layer.x.width + pad).checked_sub(layer.window.kernel_width.into());
    let end = last.map_or(0, |last| last / stride + 1).min(layer.y.width);
    pad.div_ceil(stride).min(end)..end
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use adcorda_formats::{Order, Packing, Width};

    /// Longer than two vectors of any instruction set, with every remainder.
    const LENGTHS: core::ops::Range<usize> = 0..100;

    /// What each file must do, stated once: one line a file.
    macro_rules! agrees_with_the_definition {
        ($isa:ident) => {
            mod $isa {
                use crate::isa::$isa as isa;

                #[test]
                fn unpack() {
                    super::unpack(isa::unpack);
                }

                #[test]
                fn dot() {
                    super::dot(isa::dot);
                }

                #[test]
                fn sum() {
                    super::sum(isa::sum);
                }
            }
        };
    }

    agrees_with_the_definition!(portable);

    fn unpack(unpack: fn(&Packing, &[u8], usize, &mut [u8])) {
        for order in [Order::Blocks, Order::Channels] {
            for width in Width::ALL {
                for k in LENGTHS {
                    let packing = Packing {
                        order,
                        width,
                        rows: 7,
                        k,
                    };
                    let packed = bytes(packing.bytes(), k as u32);
                    for row in 0..packing.rows {
                        let expected: Vec<u8> = (0..k).map(|i| packing.decode(&packed, row, i) as u8).collect();
                        let mut codes = vec![0xA5; k];
                        unpack(&packing, &packed, row, &mut codes);
                        assert_eq!(codes, expected, "{packing:?}, row {row}");
                    }
                }
            }
        }
    }

    fn dot(dot: fn(&[u8], &[u8]) -> i32) {
        let naive = |x: &[u8], w: &[u8]| {
            x.iter()
                .zip(w)
                .map(|(&x, &w)| i64::from(x as i8) * i64::from(w as i8))
                .sum::<i64>()
        };
        for len in LENGTHS {
            // Ends of the range, and at every alignment.
            for (x, w) in [(0x80, 0x81), (0x80, 0x7F), (0x7F, 0x7F), (0x7F, 0x81)] {
                let (x, w) = (vec![x; len], vec![w; len]);
                assert_eq!(i64::from(dot(&x, &w)), naive(&x, &w), "{len} of {x:?} and {w:?}");
            }
            for start in 0..16 {
                let (x, w) = (bytes(start + len, 1), bytes(start + len, 2));
                let (x, w) = (&x[start..], &w[start..]);
                assert_eq!(i64::from(dot(x, w)), naive(x, w), "{len} from {start}");
            }
        }
    }

    fn sum(sum: fn(&[u8]) -> i32) {
        for len in LENGTHS {
            for w in [vec![0x81; len], vec![0x7F; len], bytes(len, 3)] {
                let naive: i32 = w.iter().map(|&w| i32::from(w as i8)).sum();
                assert_eq!(sum(&w), naive, "{len}");
            }
        }
    }

    /// Bytes with no period that a vector could hide.
    fn bytes(len: usize, salt: u32) -> Vec<u8> {
        let step = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*state >> 24) as u8)
        };
        core::iter::repeat_n((), len)
            .scan(salt.wrapping_mul(0x9E37_79B9) ^ 0xADC0, |state, ()| step(state))
            .collect()
    }
}
