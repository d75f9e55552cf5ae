//! Columns: the inputs under three windows, widened and interleaved in one pass.
//!
//! Of each four codes `k` to `k + 3`, a column holds six words: `(k, k + 2)` of each pixel, then `(k + 1, k + 3)` of each
//! pixel, as halves of a word. One load-multiple so gives a multiply-accumulate operand for each of the three pixels, and both
//! the widening here and that of weights is one `SXTB16`.
//!
//! # Scratch
//! The columns take 6 bytes a code of the padded `k`; what lies behind them reads as padding. Where channels are no whole
//! words, the codes of each window are gathered first, in the last three eighths of 8 bytes a code: the columns then grow over
//! them, but no faster than they are read.

use core::arch::{asm, naked_asm};
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr;

use super::{PIXELS, is_aligned};
use crate::isa::path;
use crate::kernels::{Convolution, Shape};

/// Runs listed before they are read.
const RUNS: usize = path::DSP_KERNEL_WIDTH;

/// Where codes are read, of each pixel.
type Run = [*const u8; PIXELS];

/// Top left corner of a pixel's window in the input; within the padding it is negative.
#[derive(Clone, Copy)]
pub(super) struct Corner {
    row: isize,
    column: isize,
}

/// The input of a layer, and the columns of three of its pixels at a time.
pub(super) struct Columns<'a> {
    x: *const u8,
    shape: Shape,
    kernel_height: usize,
    kernel_width: usize,
    /// Codes of a kernel row, and of a row of the input.
    kernel_row: usize,
    input_row: usize,
    /// How many rows and columns from 0 on are corners of windows that lie in the input; none under high kernels.
    inside: (usize, usize),
    scratch: *mut u8,
    padded_k: usize,
    /// Whether codes are gathered first.
    gathers: bool,
    zero_point: u8,
    filler: Filler,
    fill: Fill,
    runs: [Run; RUNS],
    /// The next pixel's.
    corner: Corner,
    stride: (isize, isize),
    /// Columns of the corners of the first pixel in a row, and of one after the last.
    start: isize,
    end: isize,
    memory: PhantomData<(&'a [u8], &'a mut [u8])>,
}

impl<'a> Columns<'a> {
    /// `None` where the input or the scratch does not begin at a word, or is shorter than the layer says. `sums` tells whether
    /// the sums of codes are wanted.
    pub(super) fn new(layer: &Convolution<'_>, x: &'a [u8], scratch: &'a mut [u8], sums: bool) -> Option<Self> {
        let (shape, window) = (layer.x, &layer.window);
        let padded_k = layer.weights.packing.padded_k();
        if x.len() < shape.height * shape.width * shape.channels
            || scratch.len() < path::dsp_scratch(layer)
            || !is_aligned(x.as_ptr())
            || !is_aligned(scratch.as_ptr())
        {
            return None;
        }
        let (kernel_height, kernel_width) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
        let stride = (isize::from(window.stride_height), isize::from(window.stride_width));
        let start = -isize::from(window.pad_left);
        // Columns of codes after `k` stay zero, as only those before are written again.
        let (columns, padding) = scratch.split_at_mut(6 * padded_k);
        columns.fill(0);
        padding.fill(layer.x_zero_point as u8);
        Some(Columns {
            x: x.as_ptr(),
            shape,
            kernel_height,
            kernel_width,
            kernel_row: kernel_width * shape.channels,
            input_row: shape.width * shape.channels,
            inside: match kernel_height <= RUNS {
                true => (
                    (shape.height + 1).saturating_sub(kernel_height),
                    (shape.width + 1).saturating_sub(kernel_width),
                ),
                false => (0, 0),
            },
            scratch: scratch.as_mut_ptr(),
            padded_k,
            gathers: path::dsp_gathers(layer),
            zero_point: layer.x_zero_point as u8,
            filler: if sums { fill_and_sum } else { fill },
            fill: Fill {
                to: ptr::null_mut(),
                codes: 0,
                sums: [0; PIXELS],
            },
            runs: [[ptr::null(); PIXELS]; RUNS],
            corner: Corner {
                row: -isize::from(window.pad_top),
                column: start,
            },
            stride,
            start,
            end: start + layer.y.width as isize * stride.1,
            memory: PhantomData,
        })
    }

    /// The columns.
    pub(super) fn words(&self) -> *const u32 {
        self.scratch.cast_const().cast()
    }

    /// Fills the columns with the next three pixels, or with the next one three times; gives the sum of the codes of each, if
    /// wanted.
    #[inline]
    pub(super) fn next(&mut self, pixels: usize) -> &[i32; PIXELS] {
        self.fill.to = self.scratch.cast();
        self.fill.sums = [0; PIXELS];
        let first = self.corner;
        let step = if pixels == 1 { 0 } else { self.stride.1 };
        let last = first.column + 2 * step;
        let (rows, columns) = self.inside;
        if !self.gathers && (first.row as usize) < rows && first.column >= 0 && last < columns as isize {
            // All windows lie in the input, and side by side.
            self.advance(last);
            let at = self.address(first.row, first.column);
            let step = step as usize * self.shape.channels;
            self.fill_inside([at, at.wrapping_add(step), at.wrapping_add(2 * step)]);
        } else {
            let mut corners = [first; PIXELS];
            for corner in corners.iter_mut().take(pixels) {
                *corner = self.corner;
                self.advance(corner.column);
            }
            match self.gathers {
                false => self.fill_any(&corners),
                true => self.gather(&corners),
            }
        }
        &self.fill.sums
    }

    /// Moves on from the pixel with its corner in that column of the current row.
    #[inline]
    fn advance(&mut self, column: isize) {
        self.corner.column = column + self.stride.1;
        if self.corner.column == self.end {
            self.corner.column = self.start;
            self.corner.row += self.stride.0;
        }
    }

    /// Where a code of the input is, or would be.
    #[inline]
    fn address(&self, row: isize, column: isize) -> *const u8 {
        let (width, channels) = (self.shape.width as isize, self.shape.channels as isize);
        self.x.wrapping_offset((row * width + column) * channels)
    }

    /// From windows that lie in the input, with one run a kernel row.
    #[inline]
    fn fill_inside(&mut self, mut at: Run) {
        self.fill.codes = self.kernel_row;
        for run in self.runs.iter_mut().take(self.kernel_height) {
            *run = at;
            at = at.map(|at| at.wrapping_add(self.input_row));
        }
        // SAFETY: all windows lie in the input, of which a kernel row is one run; the columns have room for `k` codes.
        unsafe { self.append(self.kernel_height) };
    }

    /// From any windows, with one run a tap.
    #[inline(never)]
    fn fill_any(&mut self, corners: &[Corner; PIXELS]) {
        let Shape { height, width, channels } = self.shape;
        let padding = self.scratch.wrapping_add(6 * self.padded_k).cast_const();
        self.fill.codes = channels;
        let mut used = 0;
        for row in 0..self.kernel_height {
            for (pixel, corner) in corners.iter().enumerate() {
                let row = corner.row.wrapping_add_unsigned(row);
                // Columns of the input that there are in this row.
                let there = if (row as usize) < height { width } else { 0 };
                let runs = self.runs.as_mut_ptr().cast::<*const u8>().wrapping_add(used * PIXELS + pixel);
                // SAFETY: there is room for a kernel row of runs.
                unsafe {
                    list(
                        runs,
                        self.kernel_width,
                        self.address(row, corner.column),
                        channels,
                        corner.column,
                        there,
                        padding,
                    );
                }
            }
            used += self.kernel_width;
            if used + self.kernel_width > RUNS {
                // SAFETY: a pixel of the input, or as many codes of padding, at each tap; the columns have room for all taps.
                unsafe { self.append(used) };
                used = 0;
            }
        }
        // SAFETY: as above.
        unsafe { self.append(used) };
    }

    /// From any windows, by way of a buffer of whole words for each pixel.
    #[inline(never)]
    fn gather(&mut self, corners: &[Corner; PIXELS]) {
        let start = self.scratch.wrapping_add(5 * self.padded_k);
        for (pixel, corner) in corners.iter().enumerate() {
            let buffer = start.wrapping_add(pixel * self.padded_k);
            self.runs[0][pixel] = buffer;
            let (rows, columns) = self.inside;
            // SAFETY: in the buffer, the codes after `k` among its last 16, and then codes before `k`: those of taps in the
            // input, and of all others first.
            unsafe {
                buffer.add(self.padded_k - 16).cast::<[u32; 4]>().write([0; 4]);
                if (corner.row as usize) < rows && (corner.column as usize) < columns {
                    let from = self.address(corner.row, corner.column);
                    self.copy_rows(from, buffer, self.kernel_height, self.kernel_row);
                } else {
                    buffer.write_bytes(self.zero_point, self.kernel_height * self.kernel_row);
                    let rows = taps(corner.row, self.kernel_height, self.shape.height);
                    let columns = taps(corner.column, self.kernel_width, self.shape.width);
                    if !rows.is_empty() && !columns.is_empty() {
                        let to = buffer.add(rows.start * self.kernel_row + columns.start * self.shape.channels);
                        let from = self.address(
                            corner.row.wrapping_add_unsigned(rows.start),
                            corner.column.wrapping_add_unsigned(columns.start),
                        );
                        self.copy_rows(from, to, rows.len(), columns.len() * self.shape.channels);
                    }
                }
            }
        }
        self.fill.codes = self.padded_k;
        // SAFETY: whole buffers, and room for the padded `k`. The 24 bytes written for the codes at `k` end at or before the
        // first buffer's codes at `k + 4`: 6 * (k + 4) <= 5 * padded_k + k + 4 for every k <= padded_k - 4.
        unsafe { self.append(1) };
    }

    /// Copies some codes of some kernel rows.
    ///
    /// # Safety
    /// From `from` on, that many codes of that many rows of the input are there, more than none; and in a buffer from `to` on.
    #[inline]
    unsafe fn copy_rows(&self, mut from: *const u8, mut to: *mut u8, rows: usize, codes: usize) {
        for _ in 0..rows {
            // SAFETY: by this function's contract.
            unsafe { copy(from, to, codes) };
            from = from.wrapping_add(self.input_row);
            to = to.wrapping_add(self.kernel_row);
        }
    }

    /// Appends the first `used` runs to the columns.
    ///
    /// # Safety
    /// That of [`Filler`] for each run.
    #[inline]
    unsafe fn append(&mut self, used: usize) {
        if used > 0 {
            let runs = self.runs.as_ptr();
            // SAFETY: by this function's contract; the list is not empty.
            unsafe { (self.filler)(&mut self.fill, runs, runs.add(used)) };
        }
    }
}

/// The taps of a kernel that lie in the input, in one dimension.
fn taps(corner: isize, kernel: usize, size: usize) -> Range<usize> {
    let end = (size as isize - corner).min(kernel as isize).max(0);
    (-corner).max(0) as usize..end as usize
}

/// State of filling a column.
#[repr(C)]
struct Fill {
    /// Next word of the column. (0)
    to: *mut u32,
    /// Codes in a run, a multiple of 4. (4)
    codes: usize,
    /// Sum of the codes so far, of each pixel; not touched by [`fill`]. (8)
    sums: [i32; PIXELS],
}

/// Lists one pixel's runs of a kernel row: those under columns from `column` on, `step` bytes apart from `at` on, or `padding`
/// where the column is not one of those that are `there`.
///
/// # Safety
/// `runs` is valid for `count` runs, more than none, of which it writes one pointer each.
#[inline]
unsafe fn list(
    runs: *mut *const u8,
    count: usize,
    at: *const u8,
    step: usize,
    column: isize,
    there: usize,
    padding: *const u8,
) {
    // SAFETY: by this function's contract. In Rust it would be unrolled.
    unsafe {
        asm!(
            "2: cmp {column}, {there}
             ite lo
             strlo {at}, [{runs}], #12
             strhs {padding}, [{runs}], #12
             add {at}, {at}, {step}
             add {column}, {column}, #1
             subs {count}, {count}, #1
             bne 2b",
            runs = inout(reg) runs => _,
            count = inout(reg) count => _,
            at = inout(reg) at => _,
            step = in(reg) step,
            column = inout(reg) column => _,
            there = in(reg) there,
            padding = in(reg) padding,
            options(nostack),
        );
    }
}

/// Copies a few codes between any addresses, in fewer instructions than a call of `memcpy` takes. Words are loaded from where
/// they are, which all cores with DSP instructions can.
///
/// # Safety
/// `from` and `to` are valid for `count` bytes, more than none, and do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: whole words, then the last four bytes, some perhaps again; or bytes, where there are less than four.
    unsafe {
        asm!(
            "subs {n}, {n}, #4
             blt 3f
             2: ldr {t}, [{from}], #4
             str {t}, [{to}], #4
             subs {n}, {n}, #4
             bge 2b
             ldr {t}, [{from}, {n}]
             str {t}, [{to}, {n}]
             b 5f
             3: adds {n}, {n}, #4
             4: ldrb {t}, [{from}], #1
             strb {t}, [{to}], #1
             subs {n}, {n}, #1
             bne 4b
             5:",
            n = inout(reg) count => _,
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            t = out(reg) _,
            options(nostack),
        );
    }
}

/// Appends runs of codes.
///
/// # Safety
/// `runs` to `end` are at least one run, readable, and so are `codes` codes, more than none, at each address of each run. The
/// addresses are multiples of 4, and `to` has room for 6 bytes a code of each run.
type Filler = unsafe extern "C" fn(fill: *mut Fill, runs: *const Run, end: *const Run);

/// Four codes of each pixel. The unrolled body has four times them, and is entered in the middle where a run has a remainder.
/// Frame: 0 end of the run, 4 runs, 8 their end, 12 address to enter at, 16 codes of a run, 20 the state.
macro_rules! fill {
    ($unit:literal, $load:literal, $sum:literal, $save:literal) => {
        naked_asm!(
            env!("ADCORDA_DSP_CPU"),
            "push {{r4-r11, lr}}
             sub sp, sp, #28
             ldrd r4, r5, [r0]
             strd r1, r2, [sp, #4]
             str r0, [sp, #20]",
            // Units to leave out: minus the number of words, modulo 4.
            "rsb r6, r5, #0
             ubfx r6, r6, #2, #2",
            concat!("movw r7, #", $unit),
            "adr.w r8, 3f
             mla r6, r6, r7, r8
             orr r6, r6, #1
             strd r6, r5, [sp, #12]",
            $load,
            "mov r0, r4",
            "2: ldr r4, [sp, #4]
                ldr r5, [sp, #16]
                ldm r4!, {{r1-r3}}
                str r4, [sp, #4]
                add r5, r5, r1
                str r5, [sp]
                ldr pc, [sp, #12]",
            "3: .rept 4
                ldr r7, [r1], #4
                ldr r8, [r2], #4
                ldr r9, [r3], #4
                sxtb16 r4, r7
                sxtb16 r5, r8
                sxtb16 r6, r9
                sxtb16 r7, r7, ror #8
                sxtb16 r8, r8, ror #8
                sxtb16 r9, r9, ror #8",
            $sum,
            "stm r0!, {{r4-r9}}
             .endr
             ldr r4, [sp]
             cmp r1, r4
             bne 3b
             ldrd r4, r5, [sp, #4]
             cmp r4, r5
             bne 2b
             ldr r4, [sp, #20]
             str r0, [r4]",
            $save,
            "add sp, sp, #28
             pop {{r4-r11, pc}}",
        )
    };
}

/// See [`Filler`].
#[unsafe(naked)]
unsafe extern "C" fn fill(fill: *mut Fill, runs: *const Run, end: *const Run) {
    fill!("40", "", "", "")
}

/// See [`Filler`]; also sums the codes.
#[unsafe(naked)]
unsafe extern "C" fn fill_and_sum(fill: *mut Fill, runs: *const Run, end: *const Run) {
    fill!(
        "64",
        "add r0, r0, #8
         ldm r0, {{r10-r12}}
         mov lr, #0x00010001",
        "smlad r10, r4, lr, r10
         smlad r11, r5, lr, r11
         smlad r12, r6, lr, r12
         smlad r10, r7, lr, r10
         smlad r11, r8, lr, r11
         smlad r12, r9, lr, r12",
        "add r4, r4, #8
         stm r4, {{r10-r12}}"
    )
}
