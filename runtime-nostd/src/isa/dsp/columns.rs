//! Columns: the inputs under three windows, widened and interleaved in one pass.
//!
//! Of each four codes `k` to `k + 3`, a column holds six words: `(k, k + 2)` of each pixel, then `(k + 1, k + 3)` of each pixel,
//! as halves of a word. One load-multiple so gives a multiply-accumulate operand for each of the three pixels, and both the
//! widening here and that of weights is one `SXTB16`.
//!
//! # Scratch
//! The columns take 6 bytes a code of the padded `k`; what lies behind them reads as padding. Where channels are no whole words,
//! the codes of each window are gathered first, in the last three eighths of 8 bytes a code: the columns then grow over them, but
//! no faster than they are read.

use core::arch::naked_asm;
use core::marker::PhantomData;
use core::ptr;

use super::{PIXELS, is_aligned};
use crate::isa::path;
use crate::kernels::{Convolution, Shape};

/// Runs listed before they are read.
const RUNS: usize = 16;

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
    zero_point: u8,
    kernel_height: usize,
    kernel_width: usize,
    /// How many rows and columns from 0 on are corners of windows that lie within the input.
    inside: (usize, usize),
    scratch: *mut u8,
    padded_k: usize,
    /// Whether codes are gathered first.
    gathers: bool,
    filler: Filler,
    runs: [Run; RUNS],
    /// The next pixel's.
    corner: Corner,
    stride: (isize, isize),
    /// Columns of the corners of the first and of one after the last pixel in a row.
    start: isize,
    end: isize,
    memory: PhantomData<(&'a [u8], &'a mut [u8])>,
}

impl<'a> Columns<'a> {
    /// `None` where the input or the scratch does not begin at a word, or is shorter than the layer says. `sums` tells whether the
    /// sums of codes are wanted.
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
            zero_point: layer.x_zero_point as u8,
            kernel_height,
            kernel_width,
            inside: (
                (shape.height + 1).saturating_sub(kernel_height),
                (shape.width + 1).saturating_sub(kernel_width),
            ),
            scratch: scratch.as_mut_ptr(),
            padded_k,
            gathers: !shape.channels.is_multiple_of(4),
            filler: if sums { fill_and_sum } else { fill },
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

    /// That of the next pixel.
    #[inline]
    pub(super) fn corner(&mut self) -> Corner {
        let corner = self.corner;
        self.corner.column += self.stride.1;
        if self.corner.column == self.end {
            self.corner.column = self.start;
            self.corner.row += self.stride.0;
        }
        corner
    }

    /// Fills the columns of three pixels; gives the sum of the codes of each, if wanted.
    pub(super) fn fill(&mut self, corners: &[Corner; PIXELS]) -> [i32; PIXELS] {
        if self.gathers {
            return self.gather(corners);
        }
        let run = self.kernel_width * self.shape.channels;
        let mut fill = Fill {
            to: self.scratch.cast(),
            codes: run,
            sums: [0; PIXELS],
        };
        let (rows, columns) = self.inside;
        let inside = |corner: &Corner| (corner.row as usize) < rows && (corner.column as usize) < columns;
        if self.kernel_height <= RUNS && corners.iter().all(inside) {
            // One run a kernel row.
            let pitch = self.shape.width * self.shape.channels;
            let mut at = corners.map(|corner| self.address(corner.row as usize, corner.column as usize));
            for run in &mut self.runs[..self.kernel_height] {
                *run = at;
                at = at.map(|at| at.wrapping_add(pitch));
            }
            // SAFETY: all windows lie within the input, of which a kernel row is one run; the columns have room for `k` codes.
            unsafe { fill.append(self.filler, &self.runs[..self.kernel_height]) };
            return fill.sums;
        }
        fill.codes = self.shape.channels;
        let mut used = 0;
        for row in 0..self.kernel_height {
            for column in 0..self.kernel_width {
                let padding = self.scratch.wrapping_add(6 * self.padded_k).cast_const();
                self.runs[used] = corners.map(|corner| self.tap(corner, row, column).unwrap_or(padding));
                used += 1;
                if used == RUNS {
                    // SAFETY: a pixel of the input, or as many codes of padding, at each tap; the columns have room for all taps.
                    unsafe { fill.append(self.filler, &self.runs) };
                    used = 0;
                }
            }
        }
        // SAFETY: as above.
        unsafe { fill.append(self.filler, &self.runs[..used]) };
        fill.sums
    }

    /// The columns.
    pub(super) fn words(&self) -> *const u32 {
        self.scratch.cast_const().cast()
    }

    /// As [`Columns::fill`], by way of a buffer of whole words for each pixel.
    fn gather(&mut self, corners: &[Corner; PIXELS]) -> [i32; PIXELS] {
        let start = self.scratch.wrapping_add(5 * self.padded_k);
        let buffers = [0, 1, 2].map(|pixel| start.wrapping_add(pixel * self.padded_k));
        for (corner, buffer) in corners.iter().zip(buffers) {
            let mut to = buffer;
            let (rows, columns) = self.inside;
            let whole = (corner.row as usize) < rows && (corner.column as usize) < columns;
            let step = if whole { self.kernel_width } else { 1 };
            let codes = step * self.shape.channels;
            for row in 0..self.kernel_height {
                for column in (0..self.kernel_width).step_by(step) {
                    // SAFETY: the buffer has room for all taps, and a window within the input is read a kernel row at a time.
                    unsafe {
                        match self.tap(*corner, row, column) {
                            Some(from) => copy(from, to, codes),
                            None => to.write_bytes(self.zero_point, codes),
                        }
                    }
                    to = to.wrapping_add(codes);
                }
            }
            let rest = buffer.addr() + self.padded_k - to.addr();
            // SAFETY: up to the end of the buffer.
            unsafe { to.write_bytes(0, rest) };
        }
        let mut fill = Fill {
            to: self.scratch.cast(),
            codes: self.padded_k,
            sums: [0; PIXELS],
        };
        // SAFETY: whole buffers, and room for the padded `k`. The 24 bytes written for the codes at `k` end at or before the first
        // buffer's codes at `k + 4`: 6 * (k + 4) <= 5 * padded_k + k + 4 for every k <= padded_k - 4.
        unsafe { fill.append(self.filler, &[buffers.map(|buffer| buffer.cast_const())]) };
        fill.sums
    }

    /// Where the codes under a tap of a window begin, unless it lies in the padding.
    #[inline]
    fn tap(&self, corner: Corner, row: usize, column: usize) -> Option<*const u8> {
        let (row, column) = (
            corner.row.wrapping_add_unsigned(row) as usize,
            corner.column.wrapping_add_unsigned(column) as usize,
        );
        (row < self.shape.height && column < self.shape.width).then(|| self.address(row, column))
    }

    #[inline]
    fn address(&self, row: usize, column: usize) -> *const u8 {
        self.x.wrapping_add((row * self.shape.width + column) * self.shape.channels)
    }
}

/// Copies a few bytes between any addresses.
///
/// # Safety
/// That of [`ptr::copy_nonoverlapping`].
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    let words = count / 4;
    // SAFETY: each byte of the two ranges once, by this function's contract.
    unsafe {
        for i in 0..words {
            to.cast::<u32>()
                .add(i)
                .write_unaligned(from.cast::<u32>().add(i).read_unaligned());
        }
        for i in 4 * words..count {
            to.add(i).write(from.add(i).read());
        }
    }
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

impl Fill {
    /// # Safety
    /// That of [`Filler`].
    #[inline]
    unsafe fn append(&mut self, filler: Filler, runs: &[Run]) {
        if !runs.is_empty() {
            let runs = runs.as_ptr_range();
            // SAFETY: by this function's contract; the list is not empty.
            unsafe { filler(self, runs.start, runs.end) };
        }
    }
}

/// Appends runs of codes.
///
/// # Safety
/// `runs` to `end` are at least one, readable, and so are `codes` codes, not none, at each pointer of each run, which is a multiple of 4;
/// `to` has room for 6 bytes a code of a run.
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
