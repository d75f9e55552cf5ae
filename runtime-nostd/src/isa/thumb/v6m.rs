//! Dot products on Armv6-M, which multiplies and loads into low registers only.
//!
//! Accumulators are r8 to r11, one a pixel. The multiplication destroys an operand: of the codes, as one instruction loads four of
//! them again. When an upper half is shifted down, the carry flag becomes what it owes to a negative lower half: the sign of that.
//!
//! # Accumulators do not overflow
//! Of `n` codes, the lower half has `n / 2` products, the upper one `n`. Weights are multiplied as they are stored:
//! - W4, 0 to 15, 16 codes: `16 * 128 * 15 < 2^15`.
//! - W2, even rows 0 to 2, 112 codes: `112 * 128 * 2 < 2^15`.
//! - W2, odd rows 1 to 3, 80 codes: `80 * 128 * 3 < 2^15`.
//! - W1, 0 to 1, 240 codes: `240 * 128 < 2^15`.
//!
//! None gets as far as -2^15 itself, which a borrow would carry beyond the end.

use core::arch::naked_asm;

use super::PIXELS;

/// `(a * b + 2^31) >> 32`, from products of halves: a 64-bit one is a call.
#[inline(always)]
pub(super) fn upper_half(a: i32, b: i32) -> i32 {
    let (a_high, a_low) = (a >> 16, a & 0xFFFF);
    let (b_high, b_low) = (b >> 16, b & 0xFFFF);
    // A signed times an unsigned half and 2^16 more fit: 2^15 * (2^16 - 1) + 2^16 - 1 < 2^31.
    let low = (a_low as u32).wrapping_mul(b_low as u32);
    let middle = a_high.wrapping_mul(b_low).wrapping_add((low >> 16) as i32);
    let rest = a_low.wrapping_mul(b_high).wrapping_add(middle & 0xFFFF);
    let high = a_high.wrapping_mul(b_high).wrapping_add(middle >> 16);
    high.wrapping_add(((rest >> 15) + 1) >> 1)
}

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

/// Frame: 0 sums, 4 end of the columns. The mask goes to r12.
macro_rules! enter {
    ($mask:literal) => {
        concat!(
            "push {{r4-r7, lr}}
             mov r4, r8
             mov r5, r9
             mov r6, r10
             mov r7, r11
             push {{r4-r7}}
             lsls r3, r3, #7
             adds r3, r3, r0
             push {{r2, r3}}
             mov lr, r3
             mov r6, r0
             mov r7, r1
             ldr r0, =",
            $mask,
            "
             mov r12, r0\n"
        )
    };
}

/// Adds the upper halves to the sums.
macro_rules! flush {
    () => {
        "ldr r4, [sp]
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

macro_rules! leave {
    () => {
        "add sp, sp, #8
         pop {{r4-r7}}
         mov r8, r4
         mov r9, r5
         mov r10, r6
         mov r11, r7
         pop {{r4-r7, pc}}
         .ltorg"
    };
}

macro_rules! w4 {
    ($name:ident, $to_row:literal) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize) {
            naked_asm!(
                enter!("0x000f000f"),
                "1: ldm r7!, {{r5}}",
                $to_row,
                pair!("mov"),
                "lsrs r5, r5, #4",
                pair!(),
                ".rept 3
                 ldm r7!, {{r5}}",
                $to_row,
                pair!(),
                "lsrs r5, r5, #4",
                pair!(),
                ".endr",
                flush!(),
                "cmp r6, lr
                 beq 2f
                 b 1b
                 2:",
                leave!(),
            )
        }
    };
}

w4!(w4_0, "");
w4!(w4_1, "lsrs r5, r5, #8");

/// Pieces of `$codes`; in the inner loop lr is the end of one.
macro_rules! pieces {
    ($name:ident, $mask:literal, $codes:literal, $words:literal, $($step:expr),+) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize) {
            naked_asm!(
                enter!($mask),
                concat!("1: movs r0, #", $codes, " / 16"),
                "lsls r0, r0, #7
                 adds r0, r0, r6
                 ldr r1, [sp, #4]
                 cmp r0, r1
                 bls 2f
                 mov r0, r1
                 2: mov lr, r0
                 movs r0, #0
                 mov r8, r0
                 mov r9, r0
                 mov r10, r0
                 mov r11, r0",
                concat!("3: .rept ", $words),
                "ldm r7!, {{r5}}",
                $($step,)+
                ".endr
                 cmp r6, lr
                 beq 4f
                 b 3b
                 4:",
                flush!(),
                "ldr r0, [sp, #4]
                 cmp r6, r0
                 beq 5f
                 b 1b
                 5:",
                leave!(),
            )
        }
    };
}

macro_rules! w2 {
    ($name:ident, $codes:literal, $to_row:literal) => {
        pieces!(
            $name,
            "0x00030003",
            $codes,
            "4",
            $to_row,
            pair!(),
            "lsrs r5, r5, #8",
            pair!()
        );
    };
}

w2!(w2_0, "112", "");
w2!(
    w2_1,
    "80",
    "movs r4, #14
     rors r5, r4
     ldr r4, =0x02020202
     eors r5, r4"
);
w2!(w2_2, "112", "lsrs r5, r5, #4");
w2!(
    w2_3,
    "80",
    "movs r4, #18
     rors r5, r4
     ldr r4, =0x02020202
     eors r5, r4"
);

macro_rules! w1 {
    ($name:ident, $to_row:literal) => {
        pieces!(
            $name,
            "0x00010001",
            "240",
            "2",
            $to_row,
            pair!(),
            "movs r4, #8\nrors r5, r4",
            pair!(),
            "movs r4, #28\nrors r5, r4",
            pair!(),
            "lsrs r5, r5, #8",
            pair!()
        );
    };
}

w1!(w1_0, "");
w1!(w1_1, "movs r4, #14\nrors r5, r4");
w1!(w1_2, "lsrs r5, r5, #1");
w1!(w1_3, "movs r4, #15\nrors r5, r4");

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

#[unsafe(naked)]
pub(super) unsafe extern "C" fn w8(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize) {
    naked_asm!(
        enter!("0"),
        "ldm r2!, {{r0, r1, r4, r5}}
         mov r8, r0
         mov r9, r1
         mov r10, r4
         mov r11, r5
         1: .rept 2
         ldr r5, [r7]",
        four_codes!("r8", "r9"),
        "subs r6, #32
         ldr r5, [r7, #4]
         adds r7, #8",
        four_codes!("r10", "r11"),
        ".endr
         cmp r6, lr
         bne 1b
         ldr r4, [sp]
         mov r0, r8
         mov r1, r9
         mov r2, r10
         mov r3, r11
         stm r4!, {{r0-r3}}",
        leave!(),
    )
}
