//! Dot products on Armv7-M, and on Armv8-M Mainline without the DSP extension.
//!
//! Accumulators are r4 to r7, one a pixel. They begin at 2^15, for the lower half is between -2^15 and 2^15 - 1 and must not borrow
//! from the upper one.
//!
//! # Accumulators do not overflow
//! Of `n` codes, the lower half has `n / 2` products, the upper one `n`. Weights are multiplied as they are stored:
//! - W4, 0 to 15, 16 codes: `16 * 128 * 15 < 2^15`.
//! - W2, even rows, and W1, 0 to 2, 128 codes: from `-128 * 128 * 2 = -2^15` to `128 * 127 * 2 < 2^15`; half of that fits the lower half.
//! - W2, odd rows, 1 to 3, 80 codes: `80 * 128 * 3 < 2^15`.
//!
//! Sums of 32 bits may wrap on the way. What they end with, `Model::parse` has checked to fit.

use core::arch::naked_asm;

use super::Group;
use super::depthwise::Run;

/// Two codes of one row, in r2 rotated, with four columns; the products of the first are added to `$from`.
macro_rules! pair {
    ($rotate:literal) => {
        pair!($rotate, "r4", "r5", "r6", "r7")
    };
    ($rotate:literal, $from:literal) => {
        pair!($rotate, $from, $from, $from, $from)
    };
    ($rotate:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "ldm r0!, {{r8-r11}}\n",
            "and r12, lr, r2",
            $rotate,
            "\nmla r4, r8, r12, ",
            $a,
            "\nmla r5, r9, r12, ",
            $b,
            "\nmla r6, r10, r12, ",
            $c,
            "\nmla r7, r11, r12, ",
            $d,
            "\n",
        )
    };
}

/// Frame: 0 sums, 16 end of the columns, 20 [`Group`]. Weights are in r1.
macro_rules! enter {
    () => {
        "push {{r4-r11, lr}}
         ldr r1, [r0, #32]
         ldr r2, [r0, #28]
         sub sp, sp, #24
         strd r2, r0, [sp, #16]
         1:\n"
    };
}

/// Goes on with the next block.
macro_rules! leave {
    () => {
        "b 1b
         9:
         add sp, sp, #24
         pop {{r4-r11, pc}}"
    };
}

/// A row: the group is in r0, its corrections at an offset.
macro_rules! begin {
    ($corrections:literal, $mask:literal) => {
        concat!(
            "add r2, r0, #",
            $corrections,
            "
             ldr r0, [r0, #24]
             ldm r2, {{r8-r11}}
             stm sp, {{r8-r11}}
             mov lr, #",
            $mask,
            "\n"
        )
    };
}

/// Adds the upper halves to the sums. After the last codes of a row, finishes that; after the last row, goes to 9.
macro_rules! flush {
    () => {
        "ldm sp, {{r8-r12}}
         add r8, r8, r4, asr #16
         add r9, r9, r5, asr #16
         add r10, r10, r6, asr #16
         add r11, r11, r7, asr #16
         stm sp, {{r8-r11}}
         cmp r0, r12
         bne 2b
         ldr r0, [sp, #20]
         ldr r12, [r0, #36]
         blx r12
         beq 9f\n"
    };
}

/// The same block once more.
macro_rules! same_block {
    () => {
        "ldr r2, [r0, #40]
         sub r1, r1, r2\n"
    };
}

macro_rules! w4_row {
    ($rotate0:literal, $rotate1:literal) => {
        concat!(
            begin!("60", "0x000f000f"),
            "mov r3, #0x8000
             2: ldr r2, [r1], #4\n",
            pair!($rotate0, "r3"),
            pair!($rotate1),
            ".rept 3
             ldr r2, [r1], #4\n",
            pair!($rotate0),
            pair!($rotate1),
            ".endr\n",
            flush!(),
        )
    };
}

/// See [`Tile`](super::Tile).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w4(group: &mut Group) {
    naked_asm!(
        enter!(),
        w4_row!("", ", ror #4"),
        same_block!(),
        w4_row!(", ror #8", ", ror #12"),
        leave!(),
    )
}

/// Pieces of `$bytes` of columns; in the inner loop r3 is the end of one.
macro_rules! row {
    ($corrections:literal, $mask:literal, $bytes:literal, $words:literal, $($step:expr),+) => {
        concat!(
            begin!($corrections, $mask),
            "2: ldr r12, [sp, #16]
             add r3, r0, #", $bytes, "
             cmp r3, r12
             it hi
             movhi r3, r12
             mov r4, #0x8000
             mov r5, r4
             mov r6, r4
             mov r7, r4
             3: .rept ", $words, "
             ldr r2, [r1], #4\n",
            $($step,)+
            ".endr
             cmp r0, r3
             bne 3b\n",
            flush!(),
        )
    };
}

macro_rules! w2_even {
    ($rotate0:literal, $rotate1:literal) => {
        row!("60", "0x00030003", "8 * 128", "4", pair!($rotate0), pair!($rotate1))
    };
}

macro_rules! w2_odd {
    ($rotate0:literal, $rotate1:literal) => {
        row!(
            "76",
            "0x00030003",
            "8 * 80",
            "4",
            "eor r2, r2, #0x88888888\n",
            pair!($rotate0),
            pair!($rotate1)
        )
    };
}

/// See [`Tile`](super::Tile).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w2(group: &mut Group) {
    naked_asm!(
        enter!(),
        w2_even!("", ", ror #8"),
        same_block!(),
        w2_odd!(", ror #14", ", ror #22"),
        same_block!(),
        w2_even!(", ror #4", ", ror #12"),
        same_block!(),
        w2_odd!(", ror #18", ", ror #26"),
        leave!(),
    )
}

macro_rules! w1_row {
    ($rotate0:literal, $rotate1:literal, $rotate2:literal, $rotate3:literal) => {
        row!(
            "60",
            "0x00020002",
            "8 * 128",
            "2",
            pair!($rotate0),
            pair!($rotate1),
            pair!($rotate2),
            pair!($rotate3)
        )
    };
}

/// See [`Tile`](super::Tile).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w1(group: &mut Group) {
    naked_asm!(
        enter!(),
        w1_row!(", ror #31", ", ror #7", ", ror #3", ", ror #11"),
        same_block!(),
        w1_row!(", ror #13", ", ror #21", ", ror #17", ", ror #25"),
        same_block!(),
        w1_row!("", ", ror #8", ", ror #4", ", ror #12"),
        same_block!(),
        w1_row!(", ror #14", ", ror #22", ", ror #18", ", ror #26"),
        leave!(),
    )
}

/// A code of each of two rows, in r2 and r3 rotated, with the codes of two pixels.
macro_rules! codes {
    ($rotate:literal, $x0:literal, $x1:literal) => {
        concat!(
            "sxtb r12, r2",
            $rotate,
            "\nmla r8, ",
            $x0,
            ", r12, r8\nmla r9, ",
            $x1,
            ", r12, r9\nsxtb r12, r3",
            $rotate,
            "\nmla r10, ",
            $x0,
            ", r12, r10\nmla r11, ",
            $x1,
            ", r12, r11\n",
        )
    };
}

/// See [`Tile`](super::Tile). Accumulators are r8 to r11, two rows of two pixels.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w8(group: &mut Group) {
    naked_asm!(
        enter!(),
        "ldr r0, [r0, #24]
         ldr lr, [sp, #16]
         mov r8, #0
         mov r9, #0
         mov r10, #0
         mov r11, #0
         2: .rept 4
         ldm r1!, {{r2, r3}}
         ldm r0!, {{r4-r7}}",
        codes!("", "r4", "r5"),
        codes!(", ror #8", "r6", "r7"),
        "ldm r0!, {{r4-r7}}",
        codes!(", ror #16", "r4", "r5"),
        codes!(", ror #24", "r6", "r7"),
        ".endr
         cmp r0, lr
         bne 2b
         ldr r0, [sp, #20]
         ldr r12, [r0, #36]
         blx r12
         beq 9f
         mov r8, r10
         mov r9, r11
         ldr r12, [r0, #36]
         blx r12
         beq 9f",
        leave!(),
    )
}

/// Loads bias and multiplier of the next row, the latter to r5; adds the bias to the sums. Output, distance of pixels and zero point
/// go to r2, r3, r4.
macro_rules! next_row {
    ($($sum:literal),+) => {
        concat!(
            "ldrd r2, r3, [r0]
             ldr r4, [r2], #4
             ldr r5, [r3], #4
             strd r2, r3, [r0]\n",
            $("add ", $sum, ", ", $sum, ", r4\n",)+
            "ldr r2, [r0, #8]
             ldrd r3, r4, [r0, #16]\n",
        )
    };
}

/// A sum to a code.
macro_rules! requantize {
    ($($sum:literal),+) => {
        concat!($(
            "mov r6, #0x80000000
             mov r7, r4
             smlal r6, r7, ", $sum, ", r5
             ssat ", $sum, ", #8, r7\n",
        )+)
    };
}

/// A code and the one at `$at` to their sum, with all that needs in r4 to r7.
macro_rules! add_residual {
    ($sum:literal, $at:literal) => {
        concat!(
            "ldrsb r12, [r2",
            $at,
            "]
             mla ",
            $sum,
            ", ",
            $sum,
            ", r4, r6
             mla ",
            $sum,
            ", r12, r5, ",
            $sum,
            "
             asr ",
            $sum,
            ", ",
            $sum,
            ", r7
             ssat ",
            $sum,
            ", #8, ",
            $sum,
            "\n",
        )
    };
}

/// Whether that was the last row, as the zero flag; the group to r0.
macro_rules! end_row {
    () => {
        "ldr r0, [sp, #20]
         str r2, [r0, #8]
         ldr r3, [r0, #12]
         cmp r2, r3
         bx lr"
    };
}

/// Codes of four pixels, or of two, to their places; of four, r0 has three times the distance.
macro_rules! store {
    (4) => {
        "strb r11, [r2, r0]
         strb r10, [r2, r3, lsl #1]
         strb r9, [r2, r3]
         strb r8, [r2], #1"
    };
    (2) => {
        "strb r9, [r2, r3]
         strb r8, [r2], #1"
    };
}

/// Four pixels to codes. Like all that follow, writes the first pixel last: with no distance between them, it is the one that stays.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn codes4(group: &mut Group) {
    naked_asm!(
        next_row!("r8", "r9", "r10", "r11"),
        "add r0, r3, r3, lsl #1",
        requantize!("r11", "r10", "r9", "r8"),
        store!(4),
        end_row!()
    )
}

#[unsafe(naked)]
pub(super) unsafe extern "C" fn sums4(group: &mut Group) {
    naked_asm!(
        next_row!("r8", "r9", "r10", "r11"),
        requantize!("r8", "r9", "r10", "r11"),
        "add r0, r0, #44
         ldm r0, {{r4-r7}}
         add r0, r3, r3, lsl #1",
        add_residual!("r8", ""),
        add_residual!("r9", ", r3"),
        add_residual!("r10", ", r3, lsl #1"),
        add_residual!("r11", ", r0"),
        store!(4),
        end_row!()
    )
}

#[unsafe(naked)]
pub(super) unsafe extern "C" fn logits4(group: &mut Group) {
    naked_asm!(
        next_row!("r8", "r9", "r10", "r11"),
        "add r0, r3, r3, lsl #1
         str r11, [r2, r0]
         str r10, [r2, r3, lsl #1]
         str r9, [r2, r3]
         str r8, [r2], #4",
        end_row!()
    )
}

/// Two pixels to codes.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn codes2(group: &mut Group) {
    naked_asm!(next_row!("r8", "r9"), requantize!("r9", "r8"), store!(2), end_row!())
}

#[unsafe(naked)]
pub(super) unsafe extern "C" fn sums2(group: &mut Group) {
    naked_asm!(
        next_row!("r8", "r9"),
        requantize!("r9", "r8"),
        "add r0, r0, #44
         ldm r0, {{r4-r7}}",
        add_residual!("r8", ""),
        add_residual!("r9", ", r3"),
        store!(2),
        end_row!()
    )
}

#[unsafe(naked)]
pub(super) unsafe extern "C" fn logits2(group: &mut Group) {
    naked_asm!(
        next_row!("r8", "r9"),
        "str r9, [r2, r3]
         str r8, [r2], #4",
        end_row!()
    )
}

/// Four codes.
macro_rules! widen {
    () => {
        "ldr r4, [r0], #4
         eor r4, r4, #0x80808080
         and r5, lr, r4, ror #16
         and r4, lr, r4, ror #24
         add r12, r12, r5
         sub r5, r5, #0x00800080
         str r5, [r1], #16
         add r12, r12, r4
         sub r4, r4, #0x00800080
         str r4, [r1], #16"
    };
}

/// Appends rows of codes, `pitch` bytes apart, to a pixel's column of four; gives their sum, plus 128 each, as the sum of two halves.
///
/// # Safety
/// `words` words, not none, of `rows` rows, not none, can be read; for each, 8 words can be written, of which one in four is.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn widen4(from: *const u32, to: *mut u32, words: usize, rows: usize, pitch: usize) -> u32 {
    naked_asm!(
        "push {{r4-r8, lr}}
         ldr r8, [sp, #24]
         mov r12, #0
         mov lr, #0x00ff00ff
         lsl r2, r2, #2
         sub r8, r8, r2
         1: add r6, r0, r2
         tst r2, #4
         bne 3f
         2:",
        widen!(),
        "3:",
        widen!(),
        "cmp r0, r6
         bne 2b
         add r0, r0, r8
         subs r3, r3, #1
         bne 1b
         mov r0, r12
         pop {{r4-r8, pc}}",
    )
}

/// Appends rows of codes, `pitch` bytes apart, to a pixel's column of two.
///
/// # Safety
/// `codes` codes, not none, of `rows` rows, not none, can be read; for each, two words can be written, of which the first is.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn widen2(from: *const u8, to: *mut u32, codes: usize, rows: usize, pitch: usize) {
    naked_asm!(
        "push {{r4, lr}}
         ldr lr, [sp, #8]
         sub lr, lr, r2
         1: add r12, r0, r2
         2: ldrsb r4, [r0], #1
         cmp r0, r12
         str r4, [r1], #8
         bne 2b
         add r0, r0, lr
         subs r3, r3, #1
         bne 1b
         pop {{r4, pc}}",
    )
}

/// A channel's sum to a code at an offset of r1.
macro_rules! channel {
    ($sum:literal, $multiplier:literal, $at:literal) => {
        concat!(
            "mov r2, #0x80000000
             mov r3, r12
             smlal r2, r3, ",
            $sum,
            ", ",
            $multiplier,
            "
             ssat r3, #8, r3
             strb r3, [r1, #",
            $at,
            "]\n",
        )
    };
}

/// Computes a run.
///
/// # Safety
/// Windows, weights and outputs are there.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn depthwise(run: &mut Run) {
    naked_asm!(
        "push {{r0, r4-r11, lr}}
         1: ldr r2, [r0, #32]
         ldr r1, [r0, #56]
         ldrd r8, r9, [r0, #40]
         ldr r10, [r0, #48]
         ldm r0, {{r4-r7}}
         2: mov r11, r9
         3: ldr r12, [r1]
         add r1, r1, r10
         ldm r2!, {{r3, lr}}
         sxtb r0, r12
         mla r4, r0, r3, r4
         sxtb r0, r12, ror #8
         mla r5, r0, lr, r5
         ldm r2!, {{r3, lr}}
         sxtb r0, r12, ror #16
         mla r6, r0, r3, r6
         asr r0, r12, #24
         mla r7, r0, lr, r7
         subs r11, r11, #1
         bne 3b
         ldr r0, [sp]
         ldr r3, [r0, #52]
         add r1, r1, r3
         subs r8, r8, #1
         bne 2b
         add r1, r0, #16
         ldm r1, {{r8-r11}}
         ldr r12, [r0, #36]
         ldr r1, [r0, #60]",
        channel!("r4", "r8", "0"),
        channel!("r5", "r9", "1"),
        channel!("r6", "r10", "2"),
        channel!("r7", "r11", "3"),
        "ldr r2, [r0, #56]
         ldrd r3, r4, [r0, #64]
         ldr r5, [r0, #72]
         add r2, r2, r3
         add r1, r1, r4
         strd r2, r1, [r0, #56]
         subs r5, r5, #1
         str r5, [r0, #72]
         bne 1b
         pop {{r0, r4-r11, pc}}",
    )
}
