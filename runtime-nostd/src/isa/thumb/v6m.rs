//! Dot products on Armv6-M, which multiplies and loads into low registers only.
//!
//! Accumulators are r8 to r11, one a pixel. The multiplication destroys an operand: of the codes, as one instruction loads four of
//! them again. When an upper half is shifted down, the carry flag becomes what it owes to a negative lower half: the sign of that.
//!
//! # Accumulators do not overflow
//! Of `n` codes, the lower half has `n / 2` products, the upper one `n`. Weights are multiplied as they are stored:
//! - W4, 0 to 15, 16 codes: `16 * 128 * 15 < 2^15`.
//! - W2, even rows, and W1, 0 to 2, 112 codes: `112 * 128 * 2 < 2^15`.
//! - W2, odd rows 1 to 3, 80 codes: `80 * 128 * 3 < 2^15`.
//!
//! None gets as far as -2^15 itself, which a borrow would carry beyond the end.

use core::arch::naked_asm;

use super::Group;
use super::depthwise::Run;

// They take as many pixels as there are.
pub(super) use self::{codes as codes2, codes as codes4, logits as logits2, logits as logits4, sums as sums2, sums as sums4};

/// Two codes of one row, lowest in the halves of r5, with four columns. `$first` takes the products: it adds or sets.
macro_rules! pair {
    () => {
        pair!("add")
    };
    ($first:literal) => {
        concat!(
            "mov r4, r12
             ands r4, r5
             ldm r6!, {{r0-r3}}
             muls r0, r4, r0
             muls r1, r4, r1
             muls r2, r4, r2
             muls r3, r4, r3\n",
            $first,
            " r8, r0\n",
            $first,
            " r9, r1\n",
            $first,
            " r10, r2\n",
            $first,
            " r11, r3\n",
        )
    };
}

/// Saves all registers that are the caller's.
macro_rules! push_all {
    () => {
        "push {{r4-r7, lr}}
         mov r4, r8
         mov r5, r9
         mov r6, r10
         mov r7, r11
         push {{r4-r7}}\n"
    };
}

/// Gives them back, and returns.
macro_rules! pop_all {
    () => {
        "pop {{r4-r7}}
         mov r8, r4
         mov r9, r5
         mov r10, r6
         mov r11, r7
         pop {{r4-r7, pc}}"
    };
}

/// Frame: 0 sums, 16 [`Group`], 20 end of the columns, 24 what turns W2's odd rows to numbers from 0 on. Weights are in r7.
macro_rules! enter {
    () => {
        concat!(
            push_all!(),
            "sub sp, #28
             str r0, [sp, #16]
             ldr r1, [r0, #28]
             str r1, [sp, #20]
             ldr r1, =0x02020202
             str r1, [sp, #24]
             ldr r7, [r0, #32]
             b 1f
             .ltorg
             1:\n"
        )
    };
}

/// Goes on with the next block.
macro_rules! leave {
    () => {
        concat!(
            "b 1b
             9:
             add sp, #28\n",
            pop_all!()
        )
    };
}

/// A row: the group is in r0, its corrections at an offset. The mask has twice the same half.
macro_rules! begin {
    ($corrections:literal, $mask:literal) => {
        concat!(
            "ldr r6, [r0, #24]
             adds r0, #",
            $corrections,
            "
             ldm r0!, {{r1-r4}}
             mov r5, sp
             stm r5!, {{r1-r4}}
             movs r0, #",
            $mask,
            "
             lsls r1, r0, #16
             adds r0, r0, r1
             mov r12, r0\n"
        )
    };
}

/// Finishes a row; after the last one, goes to 9.
macro_rules! finish {
    () => {
        "ldr r0, [sp, #16]
         ldr r1, [r0, #36]
         blx r1
         bne 5f
         b 9f
         5:\n"
    };
}

/// The same block once more.
macro_rules! same_block {
    () => {
        "ldr r1, [r0, #40]
         subs r7, r7, r1\n"
    };
}

/// Adds the upper halves to the sums.
macro_rules! flush {
    () => {
        "mov r4, sp
         ldm r4!, {{r0-r3}}
         mov r5, r8
         asrs r5, r5, #16
         adcs r0, r5
         mov r5, r9
         asrs r5, r5, #16
         adcs r1, r5
         mov r5, r10
         asrs r5, r5, #16
         adcs r2, r5
         mov r5, r11
         asrs r5, r5, #16
         adcs r3, r5
         subs r4, #16
         stm r4!, {{r0-r3}}\n"
    };
}

macro_rules! w4_row {
    ($to_row:literal) => {
        concat!(
            begin!("60", "0xf"),
            "ldr r0, [sp, #20]
             mov lr, r0
             2: ldm r7!, {{r5}}\n",
            $to_row,
            pair!("mov"),
            "lsrs r5, r5, #4\n",
            pair!(),
            ".rept 3
             ldm r7!, {{r5}}\n",
            $to_row,
            pair!(),
            "lsrs r5, r5, #4\n",
            pair!(),
            ".endr\n",
            flush!(),
            "cmp r6, lr
             beq 3f
             b 2b
             3:\n",
            finish!(),
        )
    };
}

/// See [`Tile`](super::Tile).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w4(group: &mut Group) {
    naked_asm!(enter!(), w4_row!(""), same_block!(), w4_row!("lsrs r5, r5, #8\n"), leave!())
}

/// A row in pieces of so many steps of 16 codes; in the inner loop lr is the end of one.
macro_rules! row {
    ($corrections:literal, $mask:literal, $steps:literal, $words:literal, $($step:expr),+) => {
        concat!(
            begin!($corrections, $mask),
            "2: movs r0, #", $steps, "
             lsls r0, r0, #7
             adds r0, r0, r6
             ldr r1, [sp, #20]
             cmp r0, r1
             bls 3f
             mov r0, r1
             3: mov lr, r0
             movs r0, #0
             mov r8, r0
             mov r9, r0
             mov r10, r0
             mov r11, r0
             4: .rept ", $words, "
             ldm r7!, {{r5}}\n",
            $($step,)+
            ".endr
             cmp r6, lr
             beq 3f
             b 4b
             3:\n",
            flush!(),
            "ldr r0, [sp, #20]
             cmp r6, r0
             beq 3f
             b 2b
             3:\n",
            finish!(),
        )
    };
}

macro_rules! w2_even {
    ($to_row:literal) => {
        row!("60", "3", "7", "4", $to_row, pair!(), "lsrs r5, r5, #8\n", pair!())
    };
}

macro_rules! w2_odd {
    ($rotate:literal) => {
        row!(
            "76",
            "3",
            "5",
            "4",
            concat!(
                "movs r4, #",
                $rotate,
                "
                 rors r5, r4
                 ldr r4, [sp, #24]
                 eors r5, r4\n"
            ),
            pair!(),
            "lsrs r5, r5, #8\n",
            pair!()
        )
    };
}

/// See [`Tile`](super::Tile).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w2(group: &mut Group) {
    naked_asm!(
        enter!(),
        w2_even!(""),
        same_block!(),
        w2_odd!("14"),
        same_block!(),
        w2_even!("lsrs r5, r5, #4\n"),
        same_block!(),
        w2_odd!("18"),
        leave!()
    )
}

macro_rules! w1_row {
    ($to_row:literal) => {
        row!(
            "60",
            "2",
            "7",
            "2",
            $to_row,
            pair!(),
            "movs r4, #8
             rors r5, r4\n",
            pair!(),
            "movs r4, #28
             rors r5, r4\n",
            pair!(),
            "lsrs r5, r5, #8\n",
            pair!()
        )
    };
}

/// See [`Tile`](super::Tile).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w1(group: &mut Group) {
    naked_asm!(
        enter!(),
        w1_row!("lsls r5, r5, #1\n"),
        same_block!(),
        w1_row!("movs r4, #13\nrors r5, r4\n"),
        same_block!(),
        w1_row!(""),
        same_block!(),
        w1_row!("movs r4, #14\nrors r5, r4\n"),
        leave!()
    )
}

/// Two codes of a row, the first lowest in r5, with those of two pixels.
macro_rules! two_codes {
    ($sum0:literal, $sum1:literal, $second:literal) => {
        concat!(
            "sxtb r4, r5
             asrs r5, r5, #8
             ldm r6!, {{r0-r3}}
             muls r0, r4, r0
             muls r1, r4, r1\n",
            "add ",
            $sum0,
            ", r0\n",
            "add ",
            $sum1,
            ", r1\n",
            $second,
            "add ",
            $sum0,
            ", r2\n",
            "add ",
            $sum1,
            ", r3\n",
        )
    };
}

/// Four codes of a row, in r5.
macro_rules! four_codes {
    ($sum0:literal, $sum1:literal) => {
        concat!(
            two_codes!(
                $sum0,
                $sum1,
                "sxtb r4, r5
                 asrs r5, r5, #8
                 muls r2, r4, r2
                 muls r3, r4, r3\n"
            ),
            two_codes!(
                $sum0,
                $sum1,
                "muls r2, r5, r2
                 muls r3, r5, r3\n"
            )
        )
    };
}

/// See [`Tile`](super::Tile). Accumulators are r8 to r11, two rows of two pixels.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn w8(group: &mut Group) {
    naked_asm!(
        enter!(),
        "ldr r6, [r0, #24]
         ldr r0, [sp, #20]
         mov lr, r0
         movs r0, #0
         mov r8, r0
         mov r9, r0
         mov r10, r0
         mov r11, r0
         2: .rept 2
         ldr r5, [r7]",
        four_codes!("r8", "r9"),
        "subs r6, #32
         ldr r5, [r7, #4]
         adds r7, #8",
        four_codes!("r10", "r11"),
        ".endr
         cmp r6, lr
         bne 2b
         mov r0, r8
         mov r1, r9
         mov r2, r10
         mov r3, r11
         mov r4, sp
         stm r4!, {{r0-r3}}",
        finish!(),
        "ldr r1, [sp, #8]
         ldr r2, [sp, #12]
         str r1, [sp]
         str r2, [sp, #4]",
        finish!(),
        leave!(),
    )
}

/// Loads what is needed for the next row: sums from the last pixel's on to r4, halves of the multiplier to r5 and r6, output of the last
/// pixel to r7; weights to r8, minus the distance of pixels to r9, zero point to r10, bias to r11.
macro_rules! next_row {
    () => {
        "mov r8, r7
         ldr r1, [r0]
         ldm r1!, {{r2}}
         str r1, [r0]
         mov r11, r2
         ldr r1, [r0, #4]
         ldm r1!, {{r5}}
         str r1, [r0, #4]
         asrs r6, r5, #16
         uxth r5, r5
         ldr r1, [r0, #16]
         rsbs r2, r1, #0
         mov r9, r2
         ldr r2, [r0, #20]
         mov r10, r2
         ldr r2, [r0, #92]
         muls r1, r2, r1
         ldr r7, [r0, #8]
         adds r7, r7, r1
         lsls r2, r2, #2
         mov r4, sp
         adds r4, r4, r2
         1:
         ldr r0, [r4]
         add r0, r11\n"
    };
}

/// `(sum * multiplier + 2^31) >> 32` from products of halves, plus the zero point. A signed times an unsigned half and 2^16 more fit:
/// `2^15 * (2^16 - 1) + 2^16 - 1 < 2^31`. The last shift puts the rounding into the carry flag.
macro_rules! requantize {
    () => {
        "uxth r1, r0
         asrs r0, r0, #16
         mov r2, r1
         muls r2, r5, r2
         lsrs r2, r2, #16
         mov r3, r0
         muls r3, r5, r3
         adds r3, r3, r2
         muls r1, r6, r1
         muls r0, r6, r0
         asrs r2, r3, #16
         adds r0, r0, r2
         uxth r3, r3
         adds r1, r1, r3
         asrs r1, r1, #16
         adcs r0, r1
         add r0, r10\n"
    };
}

/// From r0 to r1, within 8 bits.
macro_rules! saturate {
    () => {
        "sxtb r1, r0
         cmp r1, r0
         beq 2f
         asrs r0, r0, #31
         movs r1, #127
         eors r1, r0
         2:\n"
    };
}

/// Goes on with the pixel before; after the first, tells whether that was the last row, as the zero flag.
macro_rules! end_row {
    ($element:literal) => {
        concat!(
            "add r7, r9
             subs r4, #4
             cmp r4, sp
             bhs 1b
             ldr r0, [sp, #16]
             ldr r1, [r0, #8]
             adds r1, #",
            $element,
            "
             str r1, [r0, #8]
             ldr r2, [r0, #12]
             mov r7, r8
             cmp r1, r2
             bx lr"
        )
    };
}

/// See [`Finish`](super::Finish).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn codes(group: &mut Group) {
    naked_asm!(next_row!(), requantize!(), saturate!(), "strb r1, [r7]", end_row!("1"))
}

/// See [`Finish`](super::Finish).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn sums(group: &mut Group) {
    naked_asm!(
        next_row!(),
        requantize!(),
        saturate!(),
        "movs r2, #0
         ldrsb r2, [r7, r2]
         ldr r3, [sp, #16]
         adds r3, #44
         ldm r3!, {{r0}}
         muls r1, r0, r1
         ldm r3!, {{r0}}
         muls r2, r0, r2
         adds r1, r1, r2
         ldm r3!, {{r0, r2}}
         adds r0, r0, r1
         asrs r0, r2",
        saturate!(),
        "strb r1, [r7]",
        end_row!("1")
    )
}

/// See [`Finish`](super::Finish).
#[unsafe(naked)]
pub(super) unsafe extern "C" fn logits(group: &mut Group) {
    naked_asm!(next_row!(), "str r0, [r7]", end_row!("4"))
}

/// Four codes, with the place of their words behind r1.
macro_rules! widen {
    ($even:literal, $odd:literal) => {
        concat!(
            "ldm r0!, {{r4}}
             eors r4, r7
             rors r4, r2
             mov r5, r4
             ands r5, r6
             adds r3, r3, r5
             add r5, r8
             str r5, [r1, #",
            $even,
            "]
             lsrs r4, r4, #8
             ands r4, r6
             adds r3, r3, r4
             add r4, r8
             str r4, [r1, #",
            $odd,
            "]\n",
        )
    };
}

/// Appends rows of codes, `pitch` bytes apart, to a pixel's column of four; gives their sum, plus 128 each, as the sum of two halves.
///
/// # Safety
/// `words` words, not none, of `rows` rows, not none, can be read; for each, 8 words can be written, of which one in four is.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn widen4(from: *const u32, to: *mut u32, words: usize, rows: usize, pitch: usize) -> u32 {
    naked_asm!(
        "push {{r4-r7, lr}}
         mov r4, r8
         mov r5, r9
         mov r6, r10
         push {{r4-r6}}
         lsls r2, r2, #2
         mov r9, r2
         ldr r4, [sp, #32]
         subs r4, r4, r2
         mov r10, r4
         mov lr, r3
         ldr r2, =-0x00800080
         mov r8, r2
         ldr r6, =0x00ff00ff
         ldr r7, =0x80808080
         movs r2, #16
         movs r3, #0
         1: mov r4, r9
         adds r5, r0, r4
         mov r12, r5
         lsls r4, r4, #29
         bpl 2f
         subs r1, #32
         b 3f
         2:",
        widen!("0", "16"),
        "3:",
        widen!("32", "48"),
        "adds r1, #64
         cmp r0, r12
         bne 2b
         add r0, r10
         mov r4, lr
         subs r4, #1
         mov lr, r4
         bne 1b
         mov r0, r3
         pop {{r4-r6}}
         mov r8, r4
         mov r9, r5
         mov r10, r6
         pop {{r4-r7, pc}}
         .ltorg",
    )
}

/// Appends rows of codes, `pitch` bytes apart, to a pixel's column of two.
///
/// # Safety
/// `codes` codes, not none, of `rows` rows, not none, can be read; for each, two words can be written, of which the first is.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn widen2(from: *const u8, to: *mut u32, codes: usize, rows: usize, pitch: usize) {
    naked_asm!(
        "push {{r4-r7, lr}}
         ldr r7, [sp, #20]
         subs r7, r7, r2
         movs r5, #0
         1: adds r6, r0, r2
         2: ldrsb r4, [r0, r5]
         str r4, [r1]
         adds r1, #8
         adds r0, #1
         cmp r0, r6
         bne 2b
         adds r0, r0, r7
         subs r3, #1
         bne 1b
         pop {{r4-r7, pc}}",
    )
}

/// Computes a run. Frame: 0 sums, 16 the run.
///
/// # Safety
/// Windows, weights and outputs are there.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn depthwise(run: &mut Run) {
    naked_asm!(
        push_all!(),
        "sub sp, #20
         str r0, [sp, #16]
         1: ldr r2, [r0, #32]
         ldr r1, [r0, #56]
         ldr r5, [r0, #48]
         ldr r3, [r0, #40]
         mov lr, r3
         ldr r3, [r0, #44]
         mov r12, r3
         ldm r0!, {{r3, r4, r6, r7}}
         mov r8, r3
         mov r9, r4
         mov r10, r6
         mov r11, r7
         2: mov r6, r12
         3: ldr r4, [r1]
         adds r1, r1, r5
         ldm r2!, {{r3, r7}}
         sxtb r0, r4
         muls r0, r3, r0
         add r8, r0
         asrs r4, r4, #8
         sxtb r0, r4
         muls r0, r7, r0
         add r9, r0
         asrs r4, r4, #8
         ldm r2!, {{r3, r7}}
         sxtb r0, r4
         muls r0, r3, r0
         add r10, r0
         asrs r4, r4, #8
         muls r4, r7, r4
         add r11, r4
         subs r6, #1
         bne 3b
         ldr r0, [sp, #16]
         ldr r3, [r0, #52]
         adds r1, r1, r3
         mov r3, lr
         subs r3, #1
         mov lr, r3
         bne 2b
         mov r1, r8
         mov r2, r9
         mov r3, r10
         mov r5, r11
         mov r4, sp
         stm r4!, {{r1, r2, r3, r5}}
         mov r9, r4
         mov r4, sp
         ldr r1, [r0, #36]
         mov r10, r1
         ldr r1, [r0, #60]
         mov r11, r1
         mov r7, r0
         adds r7, #16
         4: ldm r4!, {{r0}}
         ldm r7!, {{r5}}
         asrs r6, r5, #16
         uxth r5, r5",
        requantize!(),
        saturate!(),
        "mov r2, r11
         strb r1, [r2]
         adds r2, #1
         mov r11, r2
         cmp r4, r9
         bne 4b
         ldr r0, [sp, #16]
         mov r3, r0
         adds r3, #56
         ldm r3!, {{r1, r2}}
         ldm r3!, {{r4-r6}}
         adds r1, r1, r4
         adds r2, r2, r5
         subs r6, #1
         subs r3, #20
         stm r3!, {{r1, r2}}
         str r6, [r3, #8]
         cmp r6, #0
         bne 1b
         add sp, #20",
        pop_all!(),
    )
}
