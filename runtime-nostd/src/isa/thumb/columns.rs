//! Columns: the codes under the windows of a group of pixels, widened and side by side, in one pass.
//!
//! With four pixels, the words for each four codes are `x[k+2] + x[k] * 2^16` of each pixel, then `x[k+3] + x[k+1] * 2^16` of each
//! pixel, sums of signed numbers. With two, the words for each code are `x[k]` of each pixel. Codes after `k` are 0.

use super::{PIXELS, rows};
use crate::isa::path;
use crate::kernels::{Convolution, Span};

/// Codes of which the sum in 16 bits cannot overflow.
const PIECE: usize = 512;

/// The input of a layer, and the columns of a group of its pixels at a time.
pub(super) struct Columns<'a, 'm> {
    layer: &'a Convolution<'m>,
    x: &'a [u8],
    /// The same, where channels are whole words.
    x_words: &'a [u32],
    words: &'a mut [u32],
    pixels: usize,
    /// Output position of the next pixel.
    next: (usize, usize),
}

/// A part of a window.
enum Part {
    /// As many codes, from an index of the input on.
    Codes(usize, usize),
    /// As many times the zero point.
    Padding(usize),
}

impl<'a, 'm> Columns<'a, 'm> {
    /// `None` where input or scratch do not begin at a word, or are shorter than the layer says.
    pub(super) fn new(layer: &'a Convolution<'m>, pixels: usize, x: &'a [u8], scratch: &'a mut [u8]) -> Option<Self> {
        let shape = layer.x;
        let scratch = scratch.get_mut(..path::thumb_scratch(layer))?;
        let x = x.get(..shape.height * shape.width * shape.channels)?;
        // SAFETY: any four bytes are a word.
        let ((before, x_words, _), (before_scratch, words, _)) = unsafe { (x.align_to(), scratch.align_to_mut()) };
        if !before.is_empty() || !before_scratch.is_empty() {
            return None;
        }
        // Codes after `k` stay zero, as only those before are written again.
        words.fill(0);
        Some(Columns {
            layer,
            x,
            x_words,
            words,
            pixels,
            next: (0, 0),
        })
    }

    /// Fills columns with the next `count` pixels; gives the sum of the codes of each, where weights will need it.
    pub(super) fn fill(&mut self, count: usize) -> [i32; PIXELS] {
        let mut sums = [0; PIXELS];
        for (pixel, sum) in sums.iter_mut().enumerate().take(count) {
            *sum = match self.pixels {
                PIXELS if self.layer.x.channels.is_multiple_of(4) => self.fill_words(pixel),
                PIXELS => self.fill_codes(pixel),
                _ => self.fill_wide(pixel),
            };
            self.next.1 += 1;
            if self.next.1 == self.layer.y.width {
                self.next = (self.next.0 + 1, 0);
            }
        }
        sums
    }

    /// The columns.
    pub(super) fn words(&self) -> (*const u32, *const u32) {
        let words = self.words.as_ptr_range();
        (words.start, words.end)
    }

    fn fill_words(&mut self, pixel: usize) -> i32 {
        let zero_point = i32::from(self.layer.x_zero_point);
        let (mut to, mut sum) = (pixel, 0);
        parts(self.layer, self.next, |part| match part {
            Part::Codes(first, count) => {
                let words = self.x_words.get(first / 4..(first + count) / 4).unwrap_or_default();
                for words in words.chunks(PIECE / 4) {
                    // SAFETY: `words` are not none; the columns have 8 words for each four codes of the window, from the pixel's on.
                    let halves = unsafe { rows::widen(words.as_ptr(), self.words.as_mut_ptr().add(to), words.len()) };
                    sum += ((halves & 0xFFFF) + (halves >> 16)) as i32 - 128 * 4 * words.len() as i32;
                    to += 8 * words.len();
                }
            }
            Part::Padding(count) => {
                let pair = zero_point.wrapping_mul(0x1_0001) as u32;
                for _ in 0..count / 2 {
                    self.words[to] = pair;
                    to += PIXELS;
                }
                sum += zero_point * count as i32;
            }
        });
        sum
    }

    /// Code by code, for any number of channels.
    fn fill_codes(&mut self, pixel: usize) -> i32 {
        let mut to = self.words.as_chunks_mut::<PIXELS>().0.as_chunks_mut::<2>().0.iter_mut();
        let (mut sum, mut word, mut k) = (0, 0, 0);
        let mut push = |code: u8| {
            word = word >> 8 | u32::from(code) << 24;
            k += 1;
            if k % 4 == 0
                && let Some(to) = to.next()
            {
                let (even, odd) = halves(word);
                to[0][pixel % PIXELS] = signed(even);
                to[1][pixel % PIXELS] = signed(odd);
            }
            sum += i32::from(code as i8);
        };
        parts(self.layer, self.next, |part| match part {
            Part::Codes(first, count) => self.x.iter().skip(first).take(count).for_each(|&code| push(code)),
            Part::Padding(count) => (0..count).for_each(|_| push(self.layer.x_zero_point as u8)),
        });
        (0..3).for_each(|_| push(0));
        sum
    }

    fn fill_wide(&mut self, pixel: usize) -> i32 {
        let mut to = self.words.as_chunks_mut::<2>().0.iter_mut();
        parts(self.layer, self.next, |part| match part {
            Part::Codes(first, count) => {
                for (&code, to) in self.x[first..][..count].iter().zip(&mut to) {
                    to[pixel % 2] = i32::from(code as i8) as u32;
                }
            }
            Part::Padding(count) => {
                for to in to.by_ref().take(count) {
                    to[pixel % 2] = i32::from(self.layer.x_zero_point) as u32;
                }
            }
        });
        0
    }
}

/// Shows the window of a pixel, in order.
#[inline(always)]
fn parts(layer: &Convolution<'_>, (oy, ox): (usize, usize), mut show: impl FnMut(Part)) {
    let (shape, window) = (layer.x, &layer.window);
    let row_codes = usize::from(window.kernel_width) * shape.channels;
    let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, shape.width);
    let (before, inside) = (columns.tap * shape.channels, columns.len * shape.channels);
    let top = (oy * usize::from(window.stride_height)).wrapping_sub(usize::from(window.pad_top));
    for ky in 0..usize::from(window.kernel_height) {
        let iy = top.wrapping_add(ky);
        if iy >= shape.height || inside == 0 {
            show(Part::Padding(row_codes));
            continue;
        }
        if before > 0 {
            show(Part::Padding(before));
        }
        show(Part::Codes((iy * shape.width + columns.start) * shape.channels, inside));
        if before + inside < row_codes {
            show(Part::Padding(row_codes - before - inside));
        }
    }
}

/// Of four codes, plus 128 each: `x[2] + x[0] * 2^16` and `x[3] + x[1] * 2^16`.
#[inline(always)]
fn halves(word: u32) -> (u32, u32) {
    let word = (word ^ 0x8080_8080).rotate_right(16);
    (word & 0x00FF_00FF, (word >> 8) & 0x00FF_00FF)
}

/// Without the 128.
#[inline(always)]
fn signed(halves: u32) -> u32 {
    halves.wrapping_sub(0x0080_0080)
}
