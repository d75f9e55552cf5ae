//! Inner loops, one file an instruction set.
//!
//! Every file offers the same names with the same meaning, and the kernels call them as `isa::name`:
//!
//! - [`unpack`]: one packed row of weights of any width to one code a byte;
//! - [`dot`]: dot product of activations and unpacked weights;
//! - [`sum`]: sum of unpacked weights.
//!
//! A bit width is an unpacker, not a family of kernels, so that operators, widths and instruction sets add up instead of
//! multiplying. Codes travel as `u8` with the bits of an `i8`: packed rows, activations in the arena and unpacked weights
//! are then plain slices of the caller's bytes, without a cast. This folder is the only one that may ever allow unsafe code.

mod portable;

pub(crate) use portable::{dot, sum, unpack};

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use adcorda_formats::Width;

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

    fn unpack(unpack: for<'r> fn(Width, &'r [u8], &'r mut [u8]) -> &'r [u8]) {
        for width in Width::ALL {
            for k in LENGTHS {
                for salt in 0..8 {
                    let packed: Vec<u8> = bytes(width.row_bytes(k), salt);
                    let expected: Vec<u8> = (0..k).map(|i| width.decode(&packed, i) as u8).collect();
                    let mut scratch = vec![0xA5; k];
                    assert_eq!(unpack(width, &packed, &mut scratch), expected, "{width:?}, k = {k}");
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
