//! Residual addition, eight elements a step.
//!
//! A code of each input in the halves of a register, times a multiplier in each half, on top of all constants, is one multiply-
//! accumulate; a shift and a saturation make the code of the sum.
//!
//! # Nothing overflows
//! A shift of at most 22 moves the zero point to within 2^29; the products, each of at most 2^7 * 2^15, and those with the inputs'
//! zero points are within 2^24 in all, and half a step is at most 2^21: the accumulator stays within an `i32`.

use core::arch::naked_asm;
use core::ops::Range;

use crate::requantize::AddRequantizer;

/// Elements of a step.
const STEP: usize = 8;

/// Sums of elements from the first on, as many as are whole steps. Returns how many that were: none where the rule or the places
/// of the tensors do not suit.
///
/// # Shapes
/// `a`, `b`, `y`: ranges of the arena, of one length
pub(crate) fn add(arena: &mut [u8], a: &Range<usize>, b: &Range<usize>, y: &Range<usize>, rule: &AddRequantizer) -> usize {
    let steps = y.len() / STEP;
    let (start, end) = (arena.as_ptr().addr(), arena.len());
    let is_readable = |x: &Range<usize>| {
        let apart = x.start == y.start || x.end <= y.start || y.end <= x.start;
        apart && x.len() == y.len() && x.end <= end && (start + x.start).is_multiple_of(4)
    };
    let is_plain = rule.shift <= 22 && (rule.min, rule.max) == (i8::MIN, i8::MAX);
    if steps == 0 || !is_plain || ![a, b, y].into_iter().all(is_readable) {
        return 0;
    }
    let (mul_a, mul_b) = (i32::from(rule.mul_a), i32::from(rule.mul_b));
    let sum = Sum {
        multipliers: mul_a | mul_b << 16,
        constant: (i32::from(rule.zero_point) << rule.shift) + (1 << (rule.shift - 1))
            - i32::from(rule.zero_point_a) * mul_a
            - i32::from(rule.zero_point_b) * mul_b,
        shift: rule.shift.into(),
    };
    let arena = arena.as_mut_ptr();
    // SAFETY: the ranges lie in the arena, begin at words, and have room for the steps. What is written was either read in the
    // same step, or is in neither input.
    unsafe {
        let (a, b, y) = (arena.add(a.start), arena.add(b.start), arena.add(y.start));
        steps_of(a.cast(), b.cast(), y.cast(), steps, &sum);
    }
    STEP * steps
}

/// `(multipliers . (a, b) + constant) >> shift`
#[repr(C)]
struct Sum {
    /// In the lower half that of `a`, in the upper one that of `b`.
    multipliers: i32,
    constant: i32,
    shift: u32,
}

/// # Safety
/// At least one step; as many times two words in each place.
#[unsafe(naked)]
unsafe extern "C" fn steps_of(a: *const u32, b: *const u32, y: *mut u32, steps: usize, sum: &Sum) {
    // One word of each input in $a and $b; the sums end up in $a. r11 and r12 are free.
    #[rustfmt::skip]
    macro_rules! word {
        ($a:literal, $b:literal) => {
            concat!(
                "pkhbt r11, ", $a, ", ", $b, ", lsl #16\n",
                "pkhtb r12, ", $b, ", ", $a, ", asr #16\n",
                "sxtb16 ", $a, ", r11\n",
                "sxtb16 r11, r11, ror #8\n",
                "sxtb16 ", $b, ", r12\n",
                "sxtb16 r12, r12, ror #8\n",
                "smlad ", $a, ", ", $a, ", r4, r5\n",
                "smlad r11, r11, r4, r5\n",
                "smlad ", $b, ", ", $b, ", r4, r5\n",
                "smlad r12, r12, r4, r5\n",
                "asr ", $a, ", r6\n",
                "asr r11, r6\n",
                "asr ", $b, ", r6\n",
                "asr r12, r6\n",
                "ssat ", $a, ", #8, ", $a, "\n",
                "ssat r11, #8, r11\n",
                "ssat ", $b, ", #8, ", $b, "\n",
                "ssat r12, #8, r12\n",
                "bfi ", $a, ", r11, #8, #8\n",
                "bfi ", $b, ", r12, #8, #8\n",
                "pkhbt ", $a, ", ", $a, ", ", $b, ", lsl #16\n",
            )
        };
    }
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        "push {{r4-r12, lr}}
         ldr r4, [sp, #40]
         ldm r4, {{r4-r6}}
         2:
         ldrd r7, r8, [r0], #8
         ldrd r9, r10, [r1], #8",
        word!("r7", "r9"),
        word!("r8", "r10"),
        "strd r7, r8, [r2], #8
         subs r3, #1
         bne 2b
         pop {{r4-r12, pc}}"
    )
}
