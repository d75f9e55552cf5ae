//! Depthwise convolution, four channels at a time.
//!
//! A multiply-accumulate instruction takes two products, so codes meet weights in pairs, of which one lies above the other in
//! the image. The rows under a row of windows are widened to such pairs, one plane a channel (see [`Layout`]), with the padding
//! left and right of them, where then all windows are alike. Of a 3x3 kernel, two pairs of rows lie under a window, and one of
//! them under the next row of windows, too, where it stays: pair `i` has slot `i % 2` in the columns, and meets weights that
//! have a zero above or below where the window begins or ends within the pair. Each column is then read once for all windows
//! of a row.
//!
//! # Accumulators do not overflow
//! Halves hold any code and any weight as they are; nothing is packed tighter. `bias + sum(x * w)` fits an `i32` whatever the
//! inputs are: `Model::parse` has checked it, and parts of the sum that wrap on the way do not show at the end. The cases
//! `ends_*` of the conformance list run this at the ends of its ranges.

use core::arch::{asm, naked_asm};
use core::array;

use adcorda_formats::Width;

use crate::isa::depthwise::{CHANNELS, DOT_WORDS, Layout, Sweep};
use crate::isa::path::{self, Isa, Path};
use crate::kernels::{Convolution, Epilogue};

/// A depthwise convolution. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c]` | `y: [oh, ow, c]`
#[inline(never)]
pub(crate) fn depthwise_conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    let Epilogue::Codes { rules, .. } = &layer.epilogue else {
        return false;
    };
    // SAFETY: any bytes are words, and the other way round.
    let (x, y, scratch) = unsafe { (x.align_to::<u32>(), y.align_to_mut::<u32>(), scratch.align_to_mut::<u32>()) };
    let (([], x, []), ([], y, []), ([], scratch, _)) = (x, y, scratch) else {
        return false;
    };
    let weights = &layer.weights;
    // In words, as all that follows.
    let pixel = layer.x.channels / CHANNELS;
    let (x_row, y_row) = (layer.x.width * pixel, layer.y.width * pixel);
    if path::depthwise(Isa::Dsp, layer, 4 * scratch.len()) != Path::Depthwise
        || x.len() != layer.x.height * x_row
        || y.len() != layer.y.height * y_row
    {
        return false;
    }

    let layout = Layout::new(layer);
    let (sums, scratch) = scratch.split_at_mut(layout.sums);
    let (taps, planes) = scratch.split_at_mut(layout.weights);
    let zero_point = layer.x_zero_point;
    // Columns of the padding stay as they are now.
    planes.fill(pair(zero_point.into(), zero_point.into()));
    for block in 0..pixel {
        unpack(layer, &layout, block, taps);
        let channel = |i: usize| CHANNELS * block + i;
        let rows = Rows {
            layer,
            layout: &layout,
            x: &x[block],
            padding: u32::from_ne_bytes([zero_point as u8; 4]),
            taps: taps.as_ptr(),
            planes: planes.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
            bias: array::from_fn(|i| weights.bias.get(channel(i))),
            rule: Rule {
                zero_point: rules.zero_point.into(),
                multiplier: array::from_fn(|i| rules.multiplier.get(channel(i))),
                step: 4 * pixel,
            },
        };
        // SAFETY: all slices are as long as the layout and the shapes say.
        unsafe { rows.run(&mut y[block]) };
    }
    true
}

/// Widens the weights of a block to pairs.
#[inline(never)]
fn unpack(layer: &Convolution<'_>, layout: &Layout, block: usize, pairs: &mut [u32]) {
    let packing = &layer.weights.packing;
    let packed = layer.weights.packed.get(block * packing.block_bytes()..).unwrap_or_default();
    let [kernel_height, kernel_width] = [layer.window.kernel_height, layer.window.kernel_width].map(usize::from);
    let tap = |row, column| match row < kernel_height {
        true => tap(packed, packing.width, row * kernel_width + column),
        false => [0; CHANNELS],
    };
    pairs.fill(0);
    let mut put = |index: usize, step: usize, upper: [i32; CHANNELS], lower: [i32; CHANNELS]| {
        let weights = upper.into_iter().zip(lower);
        for (word, (upper, lower)) in pairs[index..].iter_mut().step_by(step).zip(weights) {
            *word = pair(upper, lower);
        }
    };
    for column in 0..kernel_width {
        match layout.sweep {
            Sweep::Stride1 | Sweep::Stride2 => {
                let [a, b, c] = array::from_fn(|row| tap(row, column));
                let none = [0; CHANNELS];
                // From an even row on: two rows and one; from an odd one on: one and two.
                for (i, (upper, lower)) in [(a, b), (c, none), (none, a), (b, c)].into_iter().enumerate() {
                    put(SLOT * i + column, SLOT / CHANNELS, upper, lower);
                }
            }
            Sweep::Dot => {
                for i in 0..layout.pairs {
                    let (upper, lower) = (tap(2 * i, column), tap(2 * i + 1, column));
                    put(column * layout.pairs + i, layout.weights / CHANNELS, upper, lower);
                }
            }
        }
    }
}

/// Words of weights that the pairs of rows in one slot meet: three columns a channel.
const SLOT: usize = 3 * CHANNELS;

/// The weights of a block's channels at one tap.
fn tap(packed: &[u8], width: Width, tap: usize) -> [i32; CHANNELS] {
    let bits = width.bits();
    let bit = tap * CHANNELS * bits as usize;
    let mut word = [0; 4];
    for (byte, &packed) in word.iter_mut().zip(packed.get(bit / 8..).unwrap_or_default()) {
        *byte = packed;
    }
    let word = u32::from_le_bytes(word) >> (bit % 8);
    array::from_fn(|i| {
        let code = (word << (32 - bits * (i as u32 + 1))) as i32 >> (32 - bits);
        match width {
            Width::W1 => -2 * code - 1,
            Width::W2 | Width::W4 | Width::W8 => code,
        }
    })
}

fn pair(upper: i32, lower: i32) -> u32 {
    (upper as u32 & 0xFFFF) | (lower as u32) << 16
}

/// All rows of windows over one block of channels.
struct Rows<'a> {
    layer: &'a Convolution<'a>,
    layout: &'a Layout,
    /// First pixel.
    x: *const u32,
    /// A pixel of the padding.
    padding: u32,
    taps: *const u32,
    planes: *mut u32,
    sums: *mut u32,
    bias: [i32; CHANNELS],
    rule: Rule,
}

impl Rows<'_> {
    /// # Safety
    /// The pointers are to the block's first word in each tensor, and to as many words of scratch as the layout says.
    #[inline(never)]
    unsafe fn run(&self, mut y: *mut u32) {
        let (layout, window) = (self.layout, &self.layer.window);
        let stride = usize::from(window.stride_height);
        let (height, width) = (self.layer.y.height, self.layer.y.width);
        let mut held = [usize::MAX; 2];
        for top in (0..height).map(|oy| oy * stride) {
            // SAFETY: so much room as the layout says has each step; `finish` takes a row of windows, of which `y` has another.
            unsafe {
                match layout.sweep {
                    Sweep::Dot => {
                        for i in 0..layout.pairs {
                            self.widen(top + 2 * i, i);
                        }
                        self.dot();
                    }
                    Sweep::Stride1 => {
                        self.hold(&mut held, top / 2);
                        self.slide(top, slide_1);
                    }
                    Sweep::Stride2 => {
                        self.hold(&mut held, top / 2);
                        self.slide(top, slide_2);
                    }
                }
                finish(self.sums, y, width, &self.rule);
                y = y.wrapping_byte_add(self.rule.step * width);
            }
        }
    }

    /// Sees to it that the slots hold the first pair and the one after it.
    unsafe fn hold(&self, held: &mut [usize; 2], first: usize) {
        for pair in [first, first + 1] {
            let slot = pair % 2;
            if held[slot] != pair {
                held[slot] = pair;
                // SAFETY: as of `run`.
                unsafe { self.widen(2 * pair, slot) };
            }
        }
    }

    /// Fills a slot of all columns inside the input with a row, counted from the top of the padding, and the one below it.
    unsafe fn widen(&self, row: usize, slot: usize) {
        let (layout, window, x) = (self.layout, &self.layer.window, &self.layer.x);
        let pad_left = usize::from(window.pad_left);
        let columns = x.width.min(layout.columns - pad_left);
        let source = |row: usize| {
            let row = row.wrapping_sub(window.pad_top.into());
            if row < x.height {
                (self.x.wrapping_byte_add(row * x.width * self.rule.step), self.rule.step)
            } else {
                (&raw const self.padding, 0)
            }
        };
        let ((upper, upper_step), (lower, lower_step)) = (source(row), source(row + 1));
        let pair = Pair {
            upper,
            upper_step,
            lower,
            lower_step,
            end: self.planes.wrapping_add((pad_left + columns) * layout.pairs + slot),
            minus_bytes: (4 * layout.pairs * columns).wrapping_neg(),
            step: 4 * layout.pairs,
            plane_bytes: 4 * layout.plane,
        };
        // SAFETY: a row of the input has at least `columns` pixels, and the one pixel of padding is read over and over; the planes
        // have so many columns after those of the padding.
        unsafe { widen(&pair) };
    }

    /// The accumulators of a row of windows of three rows from `top` on.
    unsafe fn slide(&self, top: usize, slide: unsafe extern "C" fn(&mut Windows)) {
        let (order, slot) = (2 * SLOT * (top % 2), top / 2 % 2);
        let mut windows = Windows {
            slots: [slot, 1 - slot].map(|pair| self.taps.wrapping_add(order + SLOT * pair)),
            planes: self.planes,
            plane_bytes: 4 * self.layout.plane,
            bias: self.bias.as_ptr(),
            sums: self.sums,
            count: self.layer.y.width,
            end: self.sums.wrapping_add(CHANNELS),
        };
        // SAFETY: there are weights of two slots, columns and accumulators of a row of windows, and at least one of these.
        unsafe { slide(&mut windows) };
    }

    /// The accumulators of a row of windows of any size.
    unsafe fn dot(&self) {
        let layout = self.layout;
        let taps = layout.weights / CHANNELS;
        let step = usize::from(self.layer.window.stride_width) * layout.pairs;
        for (channel, &bias) in self.bias.iter().enumerate() {
            let weights = self.taps.wrapping_add(channel * taps);
            for window in 0..self.layer.y.width {
                let x = self.planes.wrapping_add(channel * layout.plane + window * step);
                let mut acc = bias;
                for i in (0..taps).step_by(DOT_WORDS) {
                    for i in i..i + DOT_WORDS {
                        // SAFETY: `taps` is a multiple of the step. So many weights has the channel; so many words has the
                        // window, or there are others after it, which meet weights of zero.
                        acc = unsafe { smlad(*x.add(i), *weights.add(i), acc) };
                    }
                }
                // SAFETY: one of a row of windows.
                unsafe { *self.sums.add(CHANNELS * window + channel) = acc as u32 };
            }
        }
    }
}

/// `acc + x0 * w0 + x1 * w1` of two halves each.
#[inline(always)]
fn smlad(x: u32, w: u32, mut acc: i32) -> i32 {
    // SAFETY: registers only.
    unsafe {
        asm!("smlad {acc}, {x}, {w}, {acc}", acc = inlateout(reg) acc, x = in(reg) x, w = in(reg) w,
            options(pure, nomem, nostack));
    }
    acc
}

/// Two rows of pixels, to be widened into one slot of four planes.
#[repr(C)]
struct Pair {
    upper: *const u32,
    upper_step: usize,
    lower: *const u32,
    lower_step: usize,
    /// Behind the last column of the first plane.
    end: *mut u32,
    /// Length of the columns, negative.
    minus_bytes: usize,
    step: usize,
    plane_bytes: usize,
}

/// # Safety
/// At least one column, so many pixels of each row, and so many columns of four planes.
#[unsafe(naked)]
unsafe extern "C" fn widen(pair: &Pair) {
    naked_asm!(
        "push {{r4-r11, lr}}
         ldm r0, {{r0-r7}}
         add r8, r4, r7
         add r9, r8, r7
         add r10, r9, r7
         2:
         ldr r7, [r0]
         ldr r11, [r2]
         add r0, r1
         add r2, r3
         pkhbt r12, r7, r11, lsl #16
         pkhtb lr, r11, r7, asr #16
         sxtb16 r7, r12
         sxtb16 r12, r12, ror #8
         sxtb16 r11, lr
         sxtb16 lr, lr, ror #8
         str r7, [r4, r5]
         str r12, [r8, r5]
         str r11, [r9, r5]
         str lr, [r10, r5]
         adds r5, r6
         bne 2b
         pop {{r4-r11, pc}}"
    )
}

/// How accumulators become words of codes.
#[repr(C)]
struct Rule {
    zero_point: i32,
    multiplier: [i32; CHANNELS],
    /// Bytes from one pixel to the next.
    step: usize,
}

/// # Safety
/// `count`, at least one, times four accumulators, and as many pixels in `y`.
#[unsafe(naked)]
unsafe extern "C" fn finish(sums: *const u32, y: *mut u32, count: usize, rule: &Rule) {
    naked_asm!(
        "push {{r4-r11, lr}}
         ldm r3, {{r3-r8}}
         2:
         ldm r0!, {{r9-r12}}
         smmlar r9, r9, r4, r3
         smmlar r10, r10, r5, r3
         smmlar r11, r11, r6, r3
         smmlar r12, r12, r7, r3
         ssat r9, #8, r9
         ssat r10, #8, r10
         ssat r11, #8, r11
         ssat r12, #8, r12
         bfi r9, r10, #8, #8
         bfi r11, r12, #8, #8
         pkhbt r9, r9, r11, lsl #16
         str r9, [r1]
         add r1, r8
         subs r2, #1
         bne 2b
         pop {{r4-r11, pc}}"
    )
}

/// A row of windows over four planes.
#[repr(C)]
struct Windows {
    /// Weights of the next channel that meet the first and the second word of a column.
    slots: [*const u32; 2],
    planes: *const u32,
    plane_bytes: usize,
    bias: *const i32,
    sums: *mut u32,
    count: usize,
    /// Where `sums` is after the last channel.
    end: *const u32,
}

/// Begins a function over [`Windows`], and each channel: weights in r4-r9, bias in r12, pointers to the first column in r3 and to
/// the first accumulator in r10, and the number of windows in lr. Free are r0, r1, r2, r11.
macro_rules! channel {
    () => {
        "push {{r0, r4-r11, lr}}
         2:
         ldm r0!, {{r1, r2, r3, r12}}
         ldm r1!, {{r4-r6}}
         ldm r2!, {{r7-r9}}
         add r12, r3
         strd r1, r2, [r0, #-16]
         str r12, [r0, #-8]
         ldm r0, {{r1, r10, lr}}
         ldr r12, [r1], #4
         add r2, r10, #4
         strd r1, r2, [r0]"
    };
}

/// Goes back to [`channel`], or returns.
macro_rules! next_channel {
    () => {
        "ldr r0, [sp]
         ldr r1, [r0, #20]
         ldr r2, [r0, #28]
         cmp r1, r2
         bne 2b
         pop {{r0, r4-r11, pc}}"
    };
}

/// # Safety
/// What is to be read and written is there for at least one window, at a stride of one column.
#[unsafe(naked)]
unsafe extern "C" fn slide_1(windows: &mut Windows) {
    naked_asm!(
        channel!(),
        // Two windows are under way at a time: the first two columns of one are in r2, the first of the next is in r11.
        "ldrd r0, r1, [r3], #8
         smlad r2, r0, r4, r12
         smlad r2, r1, r7, r2
         ldrd r0, r1, [r3], #8
         smlad r2, r0, r5, r2
         smlad r2, r1, r8, r2
         smlad r11, r0, r4, r12
         smlad r11, r1, r7, r11
         tst lr, #1
         beq 3f
         mov r0, r2
         mov r2, r11
         mov r11, r0
         add lr, #1
         b 4f
         3:
         ldrd r0, r1, [r3], #8
         smlad r2, r0, r6, r2
         smlad r2, r1, r9, r2
         str r2, [r10], #16
         smlad r11, r0, r5, r11
         smlad r11, r1, r8, r11
         smlad r2, r0, r4, r12
         smlad r2, r1, r7, r2
         4:
         ldrd r0, r1, [r3], #8
         smlad r11, r0, r6, r11
         smlad r11, r1, r9, r11
         str r11, [r10], #16
         smlad r2, r0, r5, r2
         smlad r2, r1, r8, r2
         smlad r11, r0, r4, r12
         smlad r11, r1, r7, r11
         subs lr, #2
         bne 3b",
        next_channel!(),
    )
}

/// # Safety
/// What is to be read and written is there for at least one window, at a stride of two columns.
#[unsafe(naked)]
unsafe extern "C" fn slide_2(windows: &mut Windows) {
    naked_asm!(
        channel!(),
        "ldrd r0, r1, [r3], #8
         smlad r2, r0, r4, r12
         smlad r2, r1, r7, r2
         tst lr, #1
         it ne
         addne lr, #1
         bne 4f
         3:
         ldrd r0, r1, [r3], #8
         smlad r2, r0, r5, r2
         smlad r2, r1, r8, r2
         ldrd r0, r1, [r3], #8
         smlad r2, r0, r6, r2
         smlad r2, r1, r9, r2
         str r2, [r10], #16
         smlad r2, r0, r4, r12
         smlad r2, r1, r7, r2
         4:
         ldrd r0, r1, [r3], #8
         smlad r2, r0, r5, r2
         smlad r2, r1, r8, r2
         ldrd r0, r1, [r3], #8
         smlad r2, r0, r6, r2
         smlad r2, r1, r9, r2
         str r2, [r10], #16
         smlad r2, r0, r4, r12
         smlad r2, r1, r7, r2
         subs lr, #2
         bne 3b",
        next_channel!(),
    )
}
