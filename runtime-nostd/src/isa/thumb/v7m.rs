//! Dot products on Armv7-M.
//!
//! Accumulators are r4 to r7, one a pixel. They begin at 2^15, for the lower half is between -2^15 and 2^15 - 1 and must not borrow
//! from the upper one.
//!
//! # Accumulators do not overflow
//! Of `n` codes, the lower half has `n / 2` products, the upper one `n`. Weights are multiplied as they are stored:
//! - W4, 0 to 15, 16 codes: `16 * 128 * 15 < 2^15`.
//! - W2, even rows 0 to 2, 128 codes: from `-128 * 128 * 2 = -2^15` to `128 * 127 * 2 < 2^15`; half of that fits the lower half.
//! - W2, odd rows 1 to 3, 80 codes: `80 * 128 * 3 < 2^15`.
//! - W1, 0 to 1, 256 codes: from `-256 * 128 = -2^15` to `256 * 127 < 2^15`.

use core::arch::naked_asm;

use super::PIXELS;

/// `(a * b + 2^31) >> 32`
#[inline(always)]
pub(super) fn upper_half(a: i32, b: i32) -> i32 {
    ((i64::from(a) * i64::from(b) + (1 << 31)) >> 32) as i32
}

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
            "ldm r0!, {{r8-r11}}
             and r12, lr, r2",
            $rotate,
            "
             mla r4, r8, r12, ",
            $a,
            "
             mla r5, r9, r12, ",
            $b,
            "
             mla r6, r10, r12, ",
            $c,
            "
             mla r7, r11, r12, ",
            $d,
            "\n",
        )
    };
}

/// Frame: 0 sums, 4 end of the columns.
macro_rules! enter {
    ($mask:literal) => {
        concat!(
            "push {{r4-r11, lr}}
             add r3, r0, r3, lsl #7
             push {{r2, r3}}
             mov lr, #",
            $mask,
            "\n"
        )
    };
}

/// Adds the upper halves to the sums. After the last codes, returns; else goes on at 1.
macro_rules! flush {
    () => {
        "ldr r2, [sp]
         ldm r2, {{r8-r11}}
         add r8, r8, r4, asr #16
         add r9, r9, r5, asr #16
         add r10, r10, r6, asr #16
         add r11, r11, r7, asr #16
         stm r2, {{r8-r11}}
         ldr r12, [sp, #4]
         cmp r0, r12
         bne 1b
         add sp, sp, #8
         pop {{r4-r11, pc}}"
    };
}

macro_rules! w4 {
    ($name:ident, $rotate0:literal, $rotate1:literal) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize) {
            naked_asm!(
                enter!("0x000f000f"),
                "mov r3, #0x8000",
                "1: ldr r2, [r1], #4",
                pair!($rotate0, "r3"),
                pair!($rotate1),
                ".rept 3
                 ldr r2, [r1], #4",
                pair!($rotate0),
                pair!($rotate1),
                ".endr",
                flush!(),
            )
        }
    };
}

w4!(w4_0, "", ", ror #4");
w4!(w4_1, ", ror #8", ", ror #12");

/// Pieces of `$bytes` of columns; in the inner loop r3 is the end of one.
macro_rules! pieces {
    ($name:ident, $mask:literal, $bytes:literal, $words:literal, $($step:expr),+) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize) {
            naked_asm!(
                enter!($mask),
                concat!("1: add r3, r0, #", $bytes),
                "ldr r12, [sp, #4]
                 cmp r3, r12
                 it hi
                 movhi r3, r12
                 mov r4, #0x8000
                 mov r5, r4
                 mov r6, r4
                 mov r7, r4",
                concat!("2: .rept ", $words),
                "ldr r2, [r1], #4",
                $($step,)+
                ".endr
                 cmp r0, r3
                 bne 2b",
                flush!(),
            )
        }
    };
}

macro_rules! w2 {
    ($name:ident, $bytes:literal, $to_unsigned:literal, $rotate0:literal, $rotate1:literal) => {
        pieces!(
            $name,
            "0x00030003",
            $bytes,
            "4",
            $to_unsigned,
            pair!($rotate0),
            pair!($rotate1)
        );
    };
}

w2!(w2_0, "8 * 128", "", "", ", ror #8");
w2!(w2_1, "8 * 80", "eor r2, r2, #0x88888888", ", ror #14", ", ror #22");
w2!(w2_2, "8 * 128", "", ", ror #4", ", ror #12");
w2!(w2_3, "8 * 80", "eor r2, r2, #0x88888888", ", ror #18", ", ror #26");

macro_rules! w1 {
    ($name:ident, $rotate0:literal, $rotate1:literal, $rotate2:literal, $rotate3:literal) => {
        pieces!(
            $name,
            "0x00010001",
            "8 * 256",
            "2",
            pair!($rotate0),
            pair!($rotate1),
            pair!($rotate2),
            pair!($rotate3)
        );
    };
}

w1!(w1_0, "", ", ror #8", ", ror #4", ", ror #12");
w1!(w1_1, ", ror #14", ", ror #22", ", ror #18", ", ror #26");
w1!(w1_2, ", ror #1", ", ror #9", ", ror #5", ", ror #13");
w1!(w1_3, ", ror #15", ", ror #23", ", ror #19", ", ror #27");

/// A code of each of two rows, in r8 and r9 rotated, with the codes of two pixels.
macro_rules! codes {
    ($rotate:literal, $x0:literal, $x1:literal) => {
        concat!(
            "sxtb r2, r8",
            $rotate,
            "\n",
            "mla r4, ",
            $x0,
            ", r2, r4\n",
            "mla r5, ",
            $x1,
            ", r2, r5\n",
            "sxtb r2, r9",
            $rotate,
            "\n",
            "mla r6, ",
            $x0,
            ", r2, r6\n",
            "mla r7, ",
            $x1,
            ", r2, r7\n",
        )
    };
}

#[unsafe(naked)]
pub(super) unsafe extern "C" fn w8(columns: *const u32, weights: *const u8, sums: &mut [i32; PIXELS], steps: usize) {
    naked_asm!(
        "push {{r2, r4-r11, lr}}
         ldm r2, {{r4-r7}}
         1: .rept 4
         ldm r1!, {{r8, r9}}
         ldm r0!, {{r10-r12, lr}}",
        codes!("", "r10", "r11"),
        codes!(", ror #8", "r12", "lr"),
        "ldm r0!, {{r10-r12, lr}}",
        codes!(", ror #16", "r10", "r11"),
        codes!(", ror #24", "r12", "lr"),
        ".endr
         subs r3, r3, #1
         bne 1b
         pop {{r2}}
         stm r2, {{r4-r7}}
         pop {{r4-r11, pc}}",
    )
}
