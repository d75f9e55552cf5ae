//! Dot products of three pixels with block after block of rows, up to the stored codes.
//!
//! There is one loop a width. Each takes the columns of three pixels (see [`Columns`](super::columns::Columns)) and walks over
//! the packed weights once, block by block: 3 pixels x 2 rows of accumulators in W8 and W4, 3 x 4 in W2 and W1, where one
//! accumulator holds two rows. That is all that fits the registers: what else a loop needs lies in its stack frame. Unrolled
//! bodies are entered in their middle, so that any multiple of 16 codes will do.
//!
//! # Accumulators do not overflow
//! An accumulator `bias + sum(x * w)` fits an `i32` whatever the inputs are: `Model::parse` has checked it. W8 and W4 sum in
//! wrapping 32-bit arithmetic, W4 with `w + 8` for `w` and `- 8 * sum(x)` in the start value, so what they end with is right
//! even if something on the way was not.
//!
//! W2 and W1 multiply by `w_even + w_odd * 2^14`, where `w_even` is `w + 1` in W2, and the bit of the weight in W1, and so is
//! `w_odd` in W1 (it is `w` in W2); `sum(x)` makes up for both at the end. Twice as many products per instruction, under two
//! conditions:
//! - The low lane has 14 bits. It is emptied every 32 codes in W2 and every 64 in W1: as `x` is -128 to 127 and `w_even` up to
//!   2 and up to 1, it then holds -8192 to 8128, within -2^13 to 2^13 - 1.
//! - The high lane is never emptied. `|x * w_odd|` is at most 128, so with fewer than 1024 codes, and the low lane below it,
//!   the accumulator is within 1023 * 2^21 + 2^13 < 2^31 of zero. Longer rows are not for these loops, see `path`.
//!
//! The cases `ends_*` of the conformance list run all of this at the ends of its ranges: inputs all -128 and all 127, weights
//! all lowest and all highest, 1023 codes.

use core::arch::naked_asm;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::{array, ptr};

use adcorda_formats::{I32Array, Width};

use super::{PIXELS, is_aligned};
use crate::kernels::{Convolution, Epilogue};

/// All rows of a layer's weights, and what becomes of their dot products.
pub(super) struct Rows<'a> {
    run: Loop,
    /// Bytes of a pixel's codes or logits that whole blocks of rows give.
    whole: usize,
    group: Group,
    /// The last block, where it is not whole, computed on its own.
    rest: Option<Rest>,
    memory: PhantomData<&'a [u8]>,
}

/// A block with fewer rows than usual.
struct Rest {
    weights: *const u8,
    bias: [i32; BLOCK],
    multiplier: [i32; BLOCK],
    /// Bytes of a pixel's codes or logits: of the rows that there are, and of all.
    bytes: usize,
    block_bytes: usize,
}

/// Most rows of a block.
const BLOCK: usize = 4;

impl<'a> Rows<'a> {
    /// `None` where weights, biases or multipliers do not begin at a word, or are fewer than the layer says.
    pub(super) fn new(layer: &'a Convolution<'_>, columns: *const u32) -> Option<Self> {
        let (packing, bias) = (&layer.weights.packing, &layer.weights.bias);
        let (multiplier, element) = match &layer.epilogue {
            Epilogue::Codes { rules, .. } => (&rules.multiplier, 1),
            // Never used.
            Epilogue::Logits => (bias, 4),
        };
        let aligned = |array: &I32Array<'_>| is_aligned(array.words().as_ptr().cast());
        if layer.weights.packed.len() < packing.bytes()
            || bias.len() < packing.rows
            || multiplier.len() < packing.rows
            || !is_aligned(layer.weights.packed.as_ptr())
            || !aligned(bias)
            || !aligned(multiplier)
        {
            return None;
        }

        // Steps of the unrolled body, and the codes of each. 36 codes suit the 9 taps of most kernels.
        let (run, body, step): (Loop, usize, usize) = match packing.width {
            Width::W8 => (w8, 9, 4),
            Width::W4 if cfg!(feature = "w4") => (w4, 9, 4),
            Width::W2 if cfg!(feature = "w2") => (w2, 8, 4),
            Width::W1 if cfg!(feature = "w1") => (w1, 8, 8),
            Width::W4 | Width::W2 | Width::W1 => return None,
        };
        let padded_k = packing.padded_k();
        let mut group = Group {
            multiplier: multiplier.words().as_ptr().cast(),
            y: ptr::null_mut(),
            stride: 0,
            zero_point: 0,
            bias: bias.words().as_ptr().cast(),
            columns,
            columns_end: columns.wrapping_byte_add(6 * padded_k),
            y_end: ptr::null_mut(),
            finish: Some(logits),
            sums: [0; PIXELS],
            add_multipliers: 0,
            add_constant: 0,
            add_shift: 0,
            skip: (padded_k / step).next_multiple_of(body) - padded_k / step,
            weights: layer.weights.packed.as_ptr(),
            mask: 0,
        };
        if let Epilogue::Codes { rules, residual } = &layer.epilogue {
            group.zero_point = rules.zero_point.into();
            group.finish = match packing.width {
                Width::W8 | Width::W4 => None,
                Width::W2 | Width::W1 => Some(codes),
            };
            if let Some(add) = residual {
                let (a, b) = (i32::from(add.mul_a), i32::from(add.mul_b));
                group.finish = Some(codes_and_residual);
                group.add_multipliers = (a | b << 16) as u32;
                group.add_shift = add.shift.into();
                group.add_constant = (i32::from(add.zero_point) << add.shift) + (1 << (add.shift - 1))
                    - i32::from(add.zero_point_a) * a
                    - i32::from(add.zero_point_b) * b;
            }
        }
        let block = packing.block_rows();
        let left = packing.rows % block;
        let whole = packing.rows - left;
        let last = |array: &I32Array<'_>| array::from_fn(|row| if row < left { array.get(whole + row) } else { 0 });
        Some(Rows {
            run,
            whole: whole * element,
            group,
            rest: (left > 0).then(|| Rest {
                weights: layer.weights.packed[whole / block * packing.block_bytes()..].as_ptr(),
                bias: last(bias),
                multiplier: last(multiplier),
                bytes: left * element,
                block_bytes: block * element,
            }),
            memory: PhantomData,
        })
    }

    /// Computes three pixels, whose outputs begin `stride` bytes apart from `y` on. With a `stride` of 0 they are one pixel,
    /// three times over.
    ///
    /// # Safety
    /// `columns` are those of the layer's `k`, filled; and `y`, `y + stride`, `y + 2 * stride` have room for a pixel each.
    #[inline]
    pub(super) unsafe fn run(&mut self, sums: &[i32; PIXELS], y: *mut u8, stride: usize) {
        let group = &mut self.group;
        group.sums = *sums;
        group.y = y;
        group.y_end = y.wrapping_add(self.whole);
        group.stride = stride;
        if self.whole > 0 {
            // SAFETY: weights and parameters of whole blocks, whose numbers were checked; columns and outputs by this
            // function's contract.
            unsafe { (self.run)(group) }
        }
        if let Some(rest) = &self.rest {
            // SAFETY: as above.
            unsafe { rest.run(self.run, *group) }
        }
    }
}

impl Rest {
    /// Computes the block in a place of its own, as more is written than there is room for.
    ///
    /// # Safety
    /// That of [`Rows::run`], whose group it is.
    #[inline(never)]
    unsafe fn run(&self, run: Loop, whole: Group) {
        let mut block = [0u32; 4];
        let block = block.as_mut_ptr().cast::<u8>();
        let stride = if whole.stride == 0 { 0 } else { self.block_bytes };
        let group = Group {
            multiplier: self.multiplier.as_ptr(),
            bias: self.bias.as_ptr(),
            weights: self.weights,
            y: block,
            y_end: block.wrapping_add(self.block_bytes),
            stride,
            ..whole
        };
        // SAFETY: `y_end` is where the rows after the whole blocks begin. The block's weights are packed like any other's, its
        // parameters are filled up, and its output has 3 pixels x 4 codes, or 1 x 4 logits.
        unsafe {
            for pixel in 0..PIXELS {
                let y = whole.y_end.add(pixel * whole.stride);
                // With a residual there are codes to start with.
                ptr::copy_nonoverlapping(y, block.add(pixel * stride), self.bytes);
            }
            run(&group);
            for pixel in 0..PIXELS {
                let y = whole.y_end.add(pixel * whole.stride);
                ptr::copy_nonoverlapping(block.add(pixel * stride), y, self.bytes);
            }
        }
    }
}

/// What the loops want to know of three pixels. They copy it to their stack frame, where the codes below find it by offset.
#[derive(Clone, Copy)]
#[repr(C)]
struct Group {
    /// Multipliers of the first block. (0)
    multiplier: *const i32,
    /// Output of the first pixel, first row. (4)
    y: *mut u8,
    /// Biases of the first block. (8)
    bias: *const i32,
    /// Bytes from one pixel's output to the next one's. (12)
    stride: usize,
    /// Zero point of the requantized codes. (16)
    zero_point: i32,
    /// Columns of the pixels. (20)
    columns: *const u32,
    /// Their end. (24)
    columns_end: *const u32,
    /// Output of the first pixel after the last row. (28)
    y_end: *mut u8,
    /// None to store codes, where the loop does that itself. (32)
    finish: Option<Finish>,
    /// Sum of the inputs of each pixel; not read in W8. (36)
    sums: [i32; 3],
    /// Residual addition: multipliers of the codes (low half) and of the residual. (48)
    add_multipliers: u32,
    /// All constants of its sum. (52)
    add_constant: i32,
    /// (56)
    add_shift: u32,
    /// Steps that the first pass through the unrolled body leaves out; in the frame, the address to enter it. (60)
    skip: usize,
    /// The first block. (64)
    weights: *const u8,
    /// Only in the frame: the mask of W2 and W1. (68)
    mask: u32,
}

// What the loops below count on.
const _: () = assert!(size_of::<Group>() == 72);
const _: () = assert!(offset_of!(Group, columns) == 20 && offset_of!(Group, finish) == 32 && offset_of!(Group, sums) == 36);
const _: () =
    assert!(offset_of!(Group, add_multipliers) == 48 && offset_of!(Group, skip) == 60 && offset_of!(Group, weights) == 64);

/// A loop over blocks of rows. To be called with the address of a [`Group`].
type Loop = unsafe extern "C" fn(*const Group);

/// Takes the accumulators of two rows, `r2` to `r4` and `r5` to `r7`, and moves the frame's `multiplier` and `y` on. Leaves `y`
/// in `r9`; keeps `r1`. Not to be called from Rust.
type Finish = unsafe extern "C" fn();

/// Saves registers, copies the group to the frame (with the state of W2 and W1 above it, at 72), points `r1` at the weights,
/// and replaces `skip` by where to enter the body at `3:`, whose steps have `$step` bytes. Bit 0 says that it is Thumb code.
#[rustfmt::skip]
macro_rules! enter {
    ($step:literal) => {
        concat!(
            "push {{r4-r11, lr}}
             sub sp, sp, #112
             mov lr, sp
             ldm r0!, {{r1-r9}}
             stm lr!, {{r1-r9}}
             ldm r0!, {{r1-r9}}
             stm lr!, {{r1-r9}}
             mov r1, r8
             movw r2, #", $step, "
             adr.w r3, 3f
             mla r3, r7, r2, r3
             orr r3, r3, #1
             str r3, [sp, #60]"
        )
    };
}

/// Back to the body at `3:` until the columns end.
macro_rules! repeat {
    () => {
        "ldr lr, [sp, #24]
         cmp r0, lr
         bne 3b"
    };
}

/// Hands two finished rows on.
macro_rules! finish {
    () => {
        "ldr r12, [sp, #32]
         blx r12"
    };
}

/// On to the next block at `2:` until the rows end; then back to the caller.
macro_rules! leave {
    () => {
        "ldr lr, [sp, #28]
         cmp r9, lr
         bne 2b
         add sp, sp, #112
         pop {{r4-r11, pc}}"
    };
}

/// Four products for each pixel, with the weights in `$w`: into the accumulators of the first or of the second row.
#[rustfmt::skip]
macro_rules! first {
    ($w:literal) => {
        concat!("smlad r2, ", $w, ", r8, r2\n smlad r3, ", $w, ", r9, r3\n smlad r4, ", $w, ", r10, r4\n")
    };
}
#[rustfmt::skip]
macro_rules! second {
    ($w:literal) => {
        concat!("smlad r5, ", $w, ", r8, r5\n smlad r6, ", $w, ", r9, r6\n smlad r7, ", $w, ", r10, r7\n")
    };
}

/// Requantizes two rows and stores their codes, at `r9` in the first row of the first pixel and `r11` bytes apart. Wants the
/// address of multipliers in `r8`, and moves both on. With a stride of 0 the three pixels are one. Keeps `r12`, the zero point.
#[rustfmt::skip]
macro_rules! store_codes {
    ($second:literal) => {
        concat!(
            "ldrd r0, ", $second, ", [r8], #8\n",
            requantize!("r0", $second),
            store!("r2", "r3", "r4"),
            store!("r5", "r6", "r7")
        )
    };
}

/// Accumulators to codes.
#[rustfmt::skip]
macro_rules! requantize {
    ($first:literal, $second:literal) => {
        concat!(
            "smmlar r2, r2, ", $first, ", r12
             smmlar r3, r3, ", $first, ", r12
             smmlar r4, r4, ", $first, ", r12
             smmlar r5, r5, ", $second, ", r12
             smmlar r6, r6, ", $second, ", r12
             smmlar r7, r7, ", $second, ", r12
             ssat r2, #8, r2
             ssat r3, #8, r3
             ssat r4, #8, r4
             ssat r5, #8, r5
             ssat r6, #8, r6
             ssat r7, #8, r7\n"
        )
    };
}

/// Stores the codes of a row, and moves on to the next one.
#[rustfmt::skip]
macro_rules! store {
    ($a:literal, $b:literal, $c:literal) => {
        concat!(
            "strb ", $b, ", [r9, r11]
             strb ", $c, ", [r9, r11, lsl #1]
             strb ", $a, ", [r9], #1\n"
        )
    };
}

/// Ends a block of two rows: stores codes right here, or calls what else there is to do. On to the next block at `2:` until the
/// rows end, with `multiplier`, `y` and `bias` in `r8` to `r10`; then back to the caller.
macro_rules! end_two_rows {
    () => {
        concat!(
            "ldr r0, [sp, #32]
             cbnz r0, 5f
             ldm sp, {{r8-r12}}\n",
            store_codes!("lr"),
            "4: ldr lr, [sp, #28]
             cmp r9, lr
             bne 2b
             add sp, sp, #112
             pop {{r4-r11, pc}}
             5: blx r0
             ldm sp, {{r8-r10}}
             b 4b"
        )
    };
}

/// W8: per 4 codes a word of each row.
#[unsafe(naked)]
unsafe extern "C" fn w8(group: *const Group) {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        enter!("76"),
        "ldm sp, {{r8-r10}}
         2: ldrd r2, r5, [r10], #8
            stm sp, {{r8-r10}}
            ldr r0, [sp, #20]
            mov r3, r2
            mov r4, r2
            mov r6, r5
            mov r7, r5
            ldr pc, [sp, #60]",
        "3: .rept 9",
        "ldrd r11, r12, [r1], #8
         ldm r0!, {{r8-r10}}
         sxtb16 lr, r11",
        first!("lr"),
        "sxtb16 lr, r12",
        second!("lr"),
        "ldm r0!, {{r8-r10}}
         sxtb16 lr, r11, ror #8",
        first!("lr"),
        "sxtb16 lr, r12, ror #8",
        second!("lr"),
        ".endr",
        repeat!(),
        end_two_rows!(),
    )
}

/// W4: per 4 codes one word; of each half, the low byte is the first row.
#[unsafe(naked)]
unsafe extern "C" fn w4(group: *const Group) {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        enter!("76"),
        "ldm sp, {{r8-r10}}
         2: ldrd r2, r5, [r10], #8
            stm sp, {{r8-r10}}
            add r0, sp, #36
            ldm r0, {{r8-r10}}
            ldr r0, [sp, #20]
            sub r3, r2, r9, lsl #3
            sub r4, r2, r10, lsl #3
            sub r2, r2, r8, lsl #3
            sub r6, r5, r9, lsl #3
            sub r7, r5, r10, lsl #3
            sub r5, r5, r8, lsl #3
            mov r12, #0x000F000F
            ldr pc, [sp, #60]",
        "3: .rept 9",
        "ldr r11, [r1], #4
         ldm r0!, {{r8-r10}}
         and lr, r12, r11",
        first!("lr"),
        "and lr, r12, r11, lsr #8",
        second!("lr"),
        "ldm r0!, {{r8-r10}}
         and lr, r12, r11, lsr #4",
        first!("lr"),
        "and lr, r12, r11, lsr #12",
        second!("lr"),
        ".endr",
        repeat!(),
        end_two_rows!(),
    )
}

/// Start of a block of W2 and W1. `r2` to `r4` will hold rows 0 and 1, `r5` to `r7` rows 2 and 3, as `even + odd * 2^14`; the
/// even sums gather in memory, at 72 those of row 0, at 84 of row 2.
macro_rules! lanes {
    () => {
        "2: ldr lr, [sp, #8]
            add r0, sp, #36
            ldm r0, {{r8-r10}}
            ldm lr!, {{r2-r5}}
            str lr, [sp, #8]
            add lr, sp, #72
            sub r5, r2, r8
            sub r6, r2, r9
            sub r7, r2, r10
            sub r8, r4, r8
            sub r9, r4, r9
            sub r10, r4, r10
            stm lr, {{r5-r10}}
            movs r2, #0
            movs r3, #0
            movs r4, #0
            movs r5, #0
            movs r6, #0
            movs r7, #0
            ldr r0, [sp, #20]
            ldr r12, [sp, #68]
            ldr pc, [sp, #60]"
    };
}

/// Moves the low lane of an accumulator to its sum in memory, `$times` it.
#[rustfmt::skip]
macro_rules! flush {
    ($sum:literal, $lanes:literal, $times:literal) => {
        concat!(
            "sbfx lr, ", $lanes, ", #0, #14
             add ", $sum, ", ", $sum, ", lr", $times, "
             sub ", $lanes, ", ", $lanes, ", lr\n"
        )
    };
}

/// Empties all low lanes. Leaves the sums of row 2 in `r8` to `r10` and their address in `r11`.
macro_rules! flush_all {
    ($times:literal) => {
        concat!(
            "add r11, sp, #72
             ldm r11, {{r8-r10}}\n",
            flush!("r8", "r2", $times),
            flush!("r9", "r3", $times),
            flush!("r10", "r4", $times),
            "stm r11!, {{r8-r10}}
             ldm r11, {{r8-r10}}\n",
            flush!("r8", "r5", $times),
            flush!("r9", "r6", $times),
            flush!("r10", "r7", $times),
            "stm r11, {{r8-r10}}\n"
        )
    };
}

/// W2: per 4 codes one word of four rows.
#[unsafe(naked)]
unsafe extern "C" fn w2(group: *const Group) {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        enter!("76"),
        "movw r2, #0xC003
         movt r2, #0xC003
         str r2, [sp, #68]",
        lanes!(),
        "3: .rept 8",
        "ldr r11, [r1], #4
         ldm r0!, {{r8-r10}}
         and lr, r12, r11",
        first!("lr"),
        "and lr, r12, r11, ror #4",
        second!("lr"),
        "ldm r0!, {{r8-r10}}
         and lr, r12, r11, ror #8",
        first!("lr"),
        "and lr, r12, r11, ror #12",
        second!("lr"),
        ".endr",
        flush_all!(""),
        repeat!(),
        // Rows 2 and 3 wait above the sums of row 2 until rows 0 and 1 are done.
        "ldr lr, [sp, #8]
         ldr r12, [lr, #-4]
         ldr r0, [lr, #-12]
         add r5, r12, r5, asr #14
         add r6, r12, r6, asr #14
         add r7, r12, r7, asr #14
         add r11, r11, #12
         stm r11, {{r5-r7}}
         add r5, r0, r2, asr #14
         add r6, r0, r3, asr #14
         add r7, r0, r4, asr #14
         add r11, sp, #72
         ldm r11, {{r2-r4}}",
        finish!(),
        "add r11, sp, #84
         ldm r11, {{r2-r7}}",
        finish!(),
        leave!(),
    )
}

/// W1: per 8 codes one word of four rows. A dot product is twice that of the bits, less the sum of the inputs.
#[unsafe(naked)]
unsafe extern "C" fn w1(group: *const Group) {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        enter!("148"),
        "movw r2, #0x4001
         movt r2, #0x4001
         str r2, [sp, #68]",
        lanes!(),
        "3: .rept 8",
        "ldr r11, [r1], #4
         ldm r0!, {{r8-r10}}
         and lr, r12, r11",
        first!("lr"),
        "and lr, r12, r11, ror #1",
        second!("lr"),
        "ldm r0!, {{r8-r10}}
         and lr, r12, r11, ror #8",
        first!("lr"),
        "and lr, r12, r11, ror #9",
        second!("lr"),
        "ldm r0!, {{r8-r10}}
         and lr, r12, r11, ror #4",
        first!("lr"),
        "and lr, r12, r11, ror #5",
        second!("lr"),
        "ldm r0!, {{r8-r10}}
         and lr, r12, r11, ror #12",
        first!("lr"),
        "and lr, r12, r11, ror #13",
        second!("lr"),
        ".endr",
        flush_all!(", lsl #1"),
        repeat!(),
        "ldr lr, [sp, #8]
         ldr r12, [lr, #-4]
         ldr r0, [lr, #-12]
         add r11, sp, #36
         ldm r11, {{r8-r10}}
         add r11, sp, #96
         sub lr, r12, r8
         add r5, lr, r5, asr #13
         sub lr, r12, r9
         add r6, lr, r6, asr #13
         sub lr, r12, r10
         add r7, lr, r7, asr #13
         stm r11, {{r5-r7}}
         sub lr, r0, r8
         add r5, lr, r2, asr #13
         sub lr, r0, r9
         add r6, lr, r3, asr #13
         sub lr, r0, r10
         add r7, lr, r4, asr #13
         add r11, sp, #72
         ldm r11, {{r2-r4}}",
        finish!(),
        "add r11, sp, #84
         ldm r11, {{r2-r7}}",
        finish!(),
        leave!(),
    )
}

/// Codes, requantized: `zero_point + acc * multiplier / 2^32`, rounded half up, clamped to 8 bits.
#[unsafe(naked)]
unsafe extern "C" fn codes() {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        "ldm sp, {{r8-r12}}",
        store_codes!("r10"),
        "stm sp, {{r8, r9}}
         bx lr",
    )
}

/// Adds one residual to a code.
#[rustfmt::skip]
macro_rules! add {
    ($code:literal, $residual:literal) => {
        concat!(
            "ldrsb r0, ", $residual, "
             pkhbt r0, ", $code, ", r0, lsl #16
             smlad r0, r0, r8, r10
             asr r0, r0, r12
             ssat ", $code, ", #8, r0\n"
        )
    };
}

/// Codes, added to those that lie in the output.
#[unsafe(naked)]
unsafe extern "C" fn codes_and_residual() {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        "ldm sp, {{r8-r12}}
         ldrd r0, r10, [r8], #8",
        requantize!("r0", "r10"),
        "str r8, [sp]
         add r0, sp, #48
         ldm r0, {{r8, r10, r12}}",
        add!("r2", "[r9]"),
        add!("r3", "[r9, r11]"),
        add!("r4", "[r9, r11, lsl #1]"),
        store!("r2", "r3", "r4"),
        add!("r5", "[r9]"),
        add!("r6", "[r9, r11]"),
        add!("r7", "[r9, r11, lsl #1]"),
        store!("r5", "r6", "r7"),
        "str r9, [sp, #4]
         bx lr",
    )
}

/// Accumulators as they are, of the first pixel only.
#[unsafe(naked)]
unsafe extern "C" fn logits() {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        "ldr r9, [sp, #4]
         strd r2, r5, [r9], #8
         str r9, [sp, #4]
         bx lr",
    )
}
