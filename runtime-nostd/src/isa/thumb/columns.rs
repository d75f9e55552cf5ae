//! Columns: the codes under the windows of a group of pixels, widened and side by side, in one pass.
//!
//! With four pixels, the words for each four codes are `x[k+2] + x[k] * 2^16` of each pixel, then `x[k+3] + x[k+1] * 2^16` of each
//! pixel, sums of signed numbers. With two, the words for each code are `x[k]` of each pixel. Both are two words a code. Codes after
//! `k` are 0.

use core::marker::PhantomData;

use super::{PIXELS, rows};
use crate::isa::path;
use crate::kernels::{Convolution, Shape};

/// Codes of which [`rows::widen4`] may add up two halves.
const PIECE: usize = 512;

/// The input of a layer, and the columns of a group of its pixels at a time.
pub(super) struct Columns<'a> {
    x: *const u8,
    shape: Shape,
    zero_point: i32,
    kernel_height: usize,
    kernel_width: usize,
    /// How many rows and columns from 0 on are corners of windows that lie within the input.
    inside: (usize, usize),
    stride: (usize, usize),
    /// Top left corner of the next pixel's window; what lies within the padding wraps.
    corner: (usize, usize),
    /// Columns of the corners of the first and of one after the last pixel in a row.
    start: usize,
    end: usize,
    words: *mut u32,
    words_end: *mut u32,
    kind: Kind,
    memory: PhantomData<(&'a [u8], &'a mut [u8])>,
}

/// How columns are filled.
#[derive(Clone, Copy)]
enum Kind {
    /// Two pixels, code by code.
    Two,
    /// Four pixels, word by word.
    Four,
    /// Four pixels, where channels are no whole words.
    FourUneven,
}

impl<'a> Columns<'a> {
    /// `None` where input or scratch do not begin at a word, or are shorter than the layer says.
    pub(super) fn new(layer: &Convolution<'_>, pixels: usize, x: &'a [u8], scratch: &'a mut [u8]) -> Option<Self> {
        let (shape, window) = (layer.x, &layer.window);
        let scratch = scratch.get_mut(..path::thumb_scratch(layer))?;
        if x.len() < shape.height * shape.width * shape.channels
            || !super::is_aligned(x.as_ptr())
            || !super::is_aligned(scratch.as_ptr())
        {
            return None;
        }
        // Codes after `k` stay zero, as only those before are written again.
        scratch.fill(0);
        let (kernel_height, kernel_width) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
        let stride = (usize::from(window.stride_height), usize::from(window.stride_width));
        let start = 0usize.wrapping_sub(window.pad_left.into());
        let scratch = scratch.as_mut_ptr_range();
        Some(Columns {
            x: x.as_ptr(),
            shape,
            zero_point: layer.x_zero_point.into(),
            kernel_height,
            kernel_width,
            inside: (
                (shape.height + 1).saturating_sub(kernel_height),
                (shape.width + 1).saturating_sub(kernel_width),
            ),
            stride,
            corner: (0usize.wrapping_sub(window.pad_top.into()), start),
            start,
            end: start.wrapping_add(layer.y.width * stride.1),
            words: scratch.start.cast(),
            words_end: scratch.end.cast(),
            kind: match (pixels, shape.channels % 4) {
                (PIXELS, 0) => Kind::Four,
                (PIXELS, _) => Kind::FourUneven,
                _ => Kind::Two,
            },
            memory: PhantomData,
        })
    }

    /// Fills columns with the next `count` pixels; gives the sum of the codes of each, where weights will need it.
    pub(super) fn fill(&mut self, count: usize) -> [i32; PIXELS] {
        let mut sums = [0; PIXELS];
        for (pixel, sum) in sums.iter_mut().enumerate().take(count) {
            *sum = match self.kind {
                Kind::Two | Kind::Four => self.fill_pixel(pixel),
                Kind::FourUneven => self.fill_uneven(pixel),
            };
            self.corner.1 = self.corner.1.wrapping_add(self.stride.1);
            if self.corner.1 == self.end {
                self.corner = (self.corner.0.wrapping_add(self.stride.0), self.start);
            }
        }
        sums
    }

    /// First and one after the last.
    pub(super) fn words(&self) -> (*const u32, *const u32) {
        (self.words, self.words_end)
    }

    fn fill_pixel(&mut self, pixel: usize) -> i32 {
        let (row, column) = self.corner;
        let run = self.kernel_width * self.shape.channels;
        let mut to = self.words.wrapping_add(pixel);
        if row < self.inside.0 && column < self.inside.1 {
            // SAFETY: the window lies within the input. Columns have room for its codes.
            return unsafe { self.append(&mut to, self.address(row, column), run, self.kernel_height) };
        }
        let mut sum = 0;
        // Of each row, what lies before the input, within, and after.
        let before = 0usize.wrapping_sub(column).min(self.kernel_width);
        let before = if (column as isize) < 0 { before } else { 0 };
        let first = column.wrapping_add(before);
        let within = self.shape.width.saturating_sub(first).min(self.kernel_width - before);
        let after = self.kernel_width - before - within;
        for row in (0..self.kernel_height).map(|tap| row.wrapping_add(tap)) {
            // SAFETY: only codes of the input are read, and columns have room for those of a window.
            unsafe {
                if row >= self.shape.height || within == 0 {
                    sum += self.pad(&mut to, run);
                    continue;
                }
                sum += self.pad(&mut to, before * self.shape.channels);
                sum += self.append(&mut to, self.address(row, first), within * self.shape.channels, 1);
                sum += self.pad(&mut to, after * self.shape.channels);
            }
        }
        sum
    }

    /// Appends rows of `run` codes. Gives the sum of them.
    ///
    /// # Safety
    /// They are within the input, and the column from `to` on has room for them. Neither number is 0.
    #[inline(always)]
    unsafe fn append(&self, to: &mut *mut u32, from: *const u8, run: usize, rows: usize) -> i32 {
        let pitch = self.shape.width * self.shape.channels;
        let mut at = *to;
        *to = at.wrapping_add(2 * run * rows);
        // SAFETY: by this function's contract; with four pixels, channels are whole words.
        unsafe {
            if matches!(self.kind, Kind::Two) {
                rows::widen2(from, at, run, rows, pitch);
                return 0;
            }
            if run * rows <= PIECE {
                return widen(from, at, run, rows, pitch);
            }
            let mut sum = 0;
            for row in 0..rows {
                for first in (0..run).step_by(PIECE) {
                    let piece = PIECE.min(run - first);
                    sum += widen(from.wrapping_add(row * pitch + first), at, piece, 1, pitch);
                    at = at.wrapping_add(2 * piece);
                }
            }
            sum
        }
    }

    /// Appends codes of padding. Gives the sum of them.
    ///
    /// # Safety
    /// The column from `to` on has room for them.
    unsafe fn pad(&self, to: &mut *mut u32, codes: usize) -> i32 {
        let (word, step) = match self.kind {
            Kind::Two => (self.zero_point, 2),
            Kind::Four | Kind::FourUneven => (self.zero_point.wrapping_mul(0x1_0001), PIXELS),
        };
        let end = to.wrapping_add(2 * codes);
        while *to != end {
            // SAFETY: by this function's contract; with four pixels, channels are whole words.
            unsafe { to.write(word as u32) };
            *to = to.wrapping_add(step);
        }
        self.zero_point * codes as i32
    }

    /// As [`Columns::fill_pixel`], by way of a buffer of four codes.
    fn fill_uneven(&mut self, pixel: usize) -> i32 {
        let (row, column) = self.corner;
        let mut to = self.words.wrapping_add(pixel);
        let (mut sum, mut word, mut k) = (0, 0u32, 0);
        let mut push = |code: u8| {
            sum += i32::from(code as i8);
            word = word >> 8 | u32::from(code) << 24;
            k += 1;
            if k % 4 == 0 {
                // SAFETY: one word is read; columns have room for the padded `k`, which is not less than `k` here.
                unsafe { widen(core::ptr::from_ref(&word).cast(), to, 4, 1, 4) };
                to = to.wrapping_add(2 * PIXELS);
            }
        };
        for row in (0..self.kernel_height).map(|tap| row.wrapping_add(tap)) {
            for column in (0..self.kernel_width).map(|tap| column.wrapping_add(tap)) {
                let inside = row < self.shape.height && column < self.shape.width;
                for channel in 0..self.shape.channels {
                    push(match inside {
                        // SAFETY: within the input.
                        true => unsafe { self.address(row, column).add(channel).read() },
                        false => self.zero_point as u8,
                    });
                }
            }
        }
        // Codes to fill up the last word; if there is none, they are too few for another.
        (0..3).for_each(|_| push(0));
        sum
    }

    #[inline]
    fn address(&self, row: usize, column: usize) -> *const u8 {
        self.x.wrapping_add((row * self.shape.width + column) * self.shape.channels)
    }
}

/// [`rows::widen4`], with the sum of the codes.
///
/// # Safety
/// That of [`rows::widen4`]. There are not more than [`PIECE`] codes.
#[inline]
unsafe fn widen(from: *const u8, to: *mut u32, codes: usize, rows: usize, pitch: usize) -> i32 {
    // SAFETY: by this function's contract.
    let halves = unsafe { rows::widen4(from.cast(), to, codes / 4, rows, pitch) };
    ((halves & 0xFFFF) + (halves >> 16)) as i32 - 128 * (codes * rows) as i32
}
