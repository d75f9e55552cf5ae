//! The one rounding rule: from an accumulator to an int8 code.
//!
//! Every kernel of every ISA ends here, so that host and device agree bit for bit. A real multiplier below one is carried as
//! an integer `multiplier` and a right `shift`; the product is rounded once, half up (toward positive infinity), never twice.
//! Nothing here can overflow for values that [`Model::parse`](adcorda_formats::Model::parse) let through: a product of two
//! 32-bit values is at most 2^62, half a step at most 2^61.
//!
//! # Source
//! Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
//! section 2.3. Their fixed-point multiplication rounds twice (a doubling high multiply, then a rounding shift); here one
//! 64-bit product is rounded once.

/// What turns an accumulator of one output channel into its code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requantizer {
    /// Negative where BatchNorm's gamma is.
    pub(crate) multiplier: i32,
    /// 1 to 62.
    pub(crate) shift: u8,
    /// Code of real zero in the output.
    pub(crate) zero_point: i8,
    /// Lower end of the clamp.
    pub(crate) min: i8,
    /// Upper end of the clamp.
    pub(crate) max: i8,
}

impl Requantizer {
    /// `clamp(zero_point + ((acc * multiplier + (1 << (shift - 1))) >> shift), min, max)`, in 64 bits.
    // On a device, kernels of the instruction set have this in their own code; one copy does for the rest.
    #[cfg_attr(adcorda_isa = "portable", inline)]
    #[cfg_attr(not(adcorda_isa = "portable"), inline(never))]
    pub(crate) const fn apply(&self, acc: i32) -> i8 {
        let product = acc as i64 * self.multiplier as i64;
        // What nearly all layers have: no shift at all on a machine of 32 bits.
        if self.shift == 32 {
            let scaled = ((product + (1 << 31)) >> 32) as i32;
            // The product is at most 2^62, its upper half 2^30.
            return self.clamp(scaled + self.zero_point as i32);
        }
        let scaled = (product + (1 << (self.shift - 1))) >> self.shift;
        let code = scaled + self.zero_point as i64;
        if code < self.min as i64 {
            self.min
        } else if code > self.max as i64 {
            self.max
        } else {
            code as i8
        }
    }

    #[inline]
    const fn clamp(&self, code: i32) -> i8 {
        if code < self.min as i32 {
            self.min
        } else if code > self.max as i32 {
            self.max
        } else {
            code as i8
        }
    }
}

/// The same rule for a residual addition, whose products fit in 32 bits: 16-bit multipliers on nine-bit differences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddRequantizer {
    /// Multiplier of the first input, 0 to 32767.
    pub(crate) mul_a: i16,
    /// Multiplier of the second input, 0 to 32767.
    pub(crate) mul_b: i16,
    /// 1 to 30.
    pub(crate) shift: u8,
    /// Code of real zero in the first input.
    pub(crate) zero_point_a: i8,
    /// Code of real zero in the second input.
    pub(crate) zero_point_b: i8,
    /// Code of real zero in the output.
    pub(crate) zero_point: i8,
    /// Lower end of the clamp.
    pub(crate) min: i8,
    /// Upper end of the clamp.
    pub(crate) max: i8,
}

impl AddRequantizer {
    /// `clamp(zero_point + (((a - zero_point_a) * mul_a + (b - zero_point_b) * mul_b + (1 << (shift - 1))) >> shift), min, max)`,
    /// in 32 bits.
    #[inline]
    pub(crate) const fn apply(&self, a: i8, b: i8) -> i8 {
        let a = (a as i32 - self.zero_point_a as i32) * self.mul_a as i32;
        let b = (b as i32 - self.zero_point_b as i32) * self.mul_b as i32;
        let code = ((a + b + (1 << (self.shift - 1))) >> self.shift) + self.zero_point as i32;
        if code < self.min as i32 {
            self.min
        } else if code > self.max as i32 {
            self.max
        } else {
            code as i8
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Requantizer = Requantizer {
        multiplier: 1 << 30,
        shift: 31,
        zero_point: 0,
        min: -128,
        max: 127,
    };

    #[test]
    fn rounds_half_toward_positive_infinity() {
        for (acc, code) in [(-4, -2), (-3, -1), (-2, -1), (-1, 0), (0, 0), (1, 1), (2, 1), (3, 2), (4, 2)] {
            assert_eq!(HALF.apply(acc), code, "half of {acc}");
        }
        let negated = Requantizer {
            multiplier: -(1 << 30),
            ..HALF
        };
        for (acc, code) in [(-3, 2), (-1, 1), (0, 0), (1, 0), (3, -1)] {
            assert_eq!(negated.apply(acc), code, "minus half of {acc}");
        }
    }

    #[test]
    fn ends_of_the_ranges_do_not_overflow() {
        for multiplier in [i32::MAX, -i32::MAX, 1 << 30, -(1 << 30), 0] {
            for acc in [i32::MAX, i32::MIN, 0, 1, -1] {
                for shift in [1, 2, 31, 32, 33, 61, 62] {
                    for zero_point in [i8::MIN, 0, i8::MAX] {
                        let rule = Requantizer {
                            multiplier,
                            shift,
                            zero_point,
                            min: -128,
                            max: 127,
                        };
                        let exact = (i128::from(acc) * i128::from(multiplier) + (1i128 << (shift - 1))) >> shift;
                        let exact = (exact + i128::from(zero_point)).clamp(-128, 127);
                        assert_eq!(
                            i128::from(rule.apply(acc)),
                            exact,
                            "{acc} * {multiplier} >> {shift} + {zero_point}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn addition_rounds_once_and_reaches_the_ends() {
        let rule = AddRequantizer {
            mul_a: 1,
            mul_b: 1,
            shift: 1,
            zero_point_a: 0,
            zero_point_b: 0,
            zero_point: 0,
            min: -128,
            max: 127,
        };
        assert_eq!(rule.apply(1, 0), 1);
        assert_eq!(rule.apply(-1, 0), 0);
        assert_eq!(rule.apply(-3, 0), -1);
        let ends = AddRequantizer {
            mul_a: i16::MAX,
            mul_b: i16::MAX,
            shift: 30,
            zero_point_a: -128,
            zero_point_b: -128,
            ..rule
        };
        assert_eq!(ends.apply(127, 127), 0);
        assert_eq!(AddRequantizer { shift: 1, ..ends }.apply(127, 127), 127);
        assert_eq!(
            AddRequantizer {
                shift: 1,
                zero_point_a: 127,
                zero_point_b: 127,
                ..ends
            }
            .apply(-128, -128),
            -128
        );
    }
}
