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
use core::{array, ptr};

use adcorda_formats::{Width, Window};

use crate::isa::depthwise::{CHANNELS, DOT_WORDS, Layout, Sweep};
use crate::isa::path::{self, Isa, Path};
use crate::kernels::{ChannelWeights, Convolution, Epilogue};

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
    let window = &layer.window;
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
    let (taps, scratch) = scratch.split_at_mut(layout.taps);
    let (weights, planes) = scratch.split_at_mut(layout.weights);
    let (zero_point, pad_left) = (layer.x_zero_point, usize::from(window.pad_left));
    let inside = layer.x.width.min(layout.columns - pad_left);
    // Columns of the padding stay as they are now, and so do weights that no tap has.
    planes.fill(u32::from(i16::from(zero_point) as u16) * 0x1_0001);
    weights.fill(0);
    for block in 0..pixel {
        let channel = |i: usize| CHANNELS * block + i;
        let kernel = Image {
            first: expand(&layer.weights, block, taps).as_ptr(),
            height: window.kernel_height.into(),
            row_bytes: 4 * usize::from(window.kernel_width),
        };
        let rows = Rows {
            window,
            layout: &layout,
            x: Image {
                first: &x[block],
                height: layer.x.height,
                row_bytes: 4 * x_row,
            },
            columns: Columns {
                minus_bytes: (4 * layout.pairs * inside).wrapping_neg(),
                step: 4 * layout.pairs,
                plane_bytes: 4 * layout.plane,
                pixel_bytes: 4 * pixel,
                outside: u32::from_ne_bytes([zero_point as u8; 4]),
            },
            end: planes.as_mut_ptr().wrapping_add((pad_left + inside) * layout.pairs),
            planes: planes.as_ptr(),
            weights: weights.as_mut_ptr(),
            bias: array::from_fn(|i| layer.weights.bias.get(channel(i))),
            rule: Rule {
                zero_point: rules.zero_point.into(),
                multiplier: array::from_fn(|i| rules.multiplier.get(channel(i))),
                step: 4 * pixel,
            },
            sums: sums.as_mut_ptr().cast(),
            height: layer.y.height,
            width: layer.y.width,
        };
        // SAFETY: all slices are as long as the layout and the shapes say.
        unsafe {
            rows.unpack(&kernel);
            rows.run(&mut y[block]);
        }
    }
    true
}

/// The weights of a block as bytes: those of four channels at one tap after the other. In W8 they are that already.
fn expand<'a>(weights: &ChannelWeights<'a>, block: usize, taps: &'a mut [u32]) -> &'a [u32] {
    let packing = &weights.packing;
    let packed = weights.packed.get(block * packing.block_bytes()..).unwrap_or_default();
    match packing.width {
        Width::W8 => {
            for (tap, bytes) in taps.iter_mut().zip(packed.as_chunks().0) {
                *tap = u32::from_le_bytes(*bytes);
            }
        }
        Width::W4 => {
            for (tap, bytes) in taps.iter_mut().zip(packed.as_chunks().0) {
                let bits = u32::from(u16::from_le_bytes(*bytes));
                let bits = (bits | bits << 8) & 0x00FF_00FF;
                let bits = (bits | bits << 4) & 0x0F0F_0F0F;
                *tap = bits | (bits & 0x0808_0808) * 0x1E;
            }
        }
        Width::W2 => {
            for (tap, &byte) in taps.iter_mut().zip(packed) {
                let bits = u32::from(byte);
                let bits = (bits | bits << 12) & 0x000F_000F;
                let bits = (bits | bits << 6) & 0x0303_0303;
                *tap = bits | (bits & 0x0202_0202) * 0x7E;
            }
        }
        Width::W1 => {
            for (taps, &byte) in taps.chunks_mut(2).zip(packed) {
                for (tap, bits) in taps.iter_mut().zip([byte & 0xF, byte >> 4]) {
                    let bits = u32::from(bits);
                    let bits = (bits | bits << 14) & 0x0003_0003;
                    let bits = (bits | bits << 7) & 0x0101_0101;
                    *tap = bits | (bits ^ 0x0101_0101) * 0xFF;
                }
            }
        }
    }
    taps
}

/// Rows of pixels of four channels.
struct Image {
    first: *const u32,
    height: usize,
    row_bytes: usize,
}

impl Image {
    /// The first pixel of a row; null where there is no such row.
    fn row(&self, row: usize) -> *const u32 {
        if row < self.height {
            self.first.wrapping_byte_add(row * self.row_bytes)
        } else {
            ptr::null()
        }
    }
}

/// All rows of windows over one block of channels.
struct Rows<'a> {
    window: &'a Window,
    layout: &'a Layout,
    x: Image,
    /// Those inside the input.
    columns: Columns,
    /// Behind the last of them in the first plane.
    end: *mut u32,
    planes: *const u32,
    weights: *mut u32,
    bias: [i32; CHANNELS],
    rule: Rule,
    sums: *mut i32,
    /// Of the output.
    height: usize,
    width: usize,
}

/// Words of weights that the pairs of rows in one slot meet: three columns a channel.
const SLOT: usize = 3 * CHANNELS;

impl Rows<'_> {
    /// Widens weights to pairs.
    ///
    /// # Safety
    /// As of [`run`](Rows::run); the kernel has the window's size.
    #[inline(never)]
    unsafe fn unpack(&self, kernel: &Image) {
        let (layout, width) = (self.layout, usize::from(self.window.kernel_width));
        let columns = |step: usize, plane: usize| Columns {
            minus_bytes: (4 * step * width).wrapping_neg(),
            step: 4 * step,
            plane_bytes: 4 * plane,
            pixel_bytes: 4,
            outside: 0,
        };
        match layout.sweep {
            // From an even row on, two rows and one; from an odd one on, one and two.
            Sweep::Stride1 | Sweep::Stride2 => {
                let columns = columns(1, SLOT / CHANNELS);
                for (slot, row) in [0, 2, usize::MAX, 1].into_iter().enumerate() {
                    let end = self.weights.wrapping_add(SLOT * slot + width);
                    // SAFETY: there are four such slots.
                    unsafe { widen(kernel.row(row), kernel.row(row.wrapping_add(1)), end, &columns) };
                }
            }
            Sweep::Dot => {
                let columns = columns(layout.pairs, layout.weights / CHANNELS);
                for pair in 0..layout.pairs {
                    let end = self.weights.wrapping_add(width * layout.pairs + pair);
                    // SAFETY: as many pairs of rows has each column of the weights.
                    unsafe { widen(kernel.row(2 * pair), kernel.row(2 * pair + 1), end, &columns) };
                }
            }
        }
    }

    /// # Safety
    /// The pointers are to the block's first word in each tensor, and to as many words of scratch as the layout says.
    #[inline(never)]
    unsafe fn run(&self, mut y: *mut u32) {
        let stride = usize::from(self.window.stride_height);
        let windows = Windows {
            bias: self.bias.as_ptr(),
            sums: self.sums,
            count: self.width,
        };
        let slide = match self.layout.sweep {
            Sweep::Stride1 => Some(slide_1 as unsafe extern "C" fn(_, _, _, _)),
            Sweep::Stride2 => Some(slide_2 as _),
            Sweep::Dot => None,
        };
        // The pair of rows to be widened next.
        let mut next = 0;
        for top in (0..self.height).map(|oy| oy * stride) {
            // SAFETY: so many columns has the input, and have the planes in each slot after those of the padding. There are
            // weights of two slots, and columns and accumulators of a row of windows, of which `y` has another.
            unsafe {
                match slide {
                    Some(slide) => {
                        let first = top / 2;
                        next = first.max(next);
                        while next < first + 2 {
                            self.widen(2 * next, next % 2);
                            next += 1;
                        }
                        let (order, slot) = (2 * SLOT * (top % 2), first % 2);
                        let weights = |pair: usize| self.weights.wrapping_add(order + SLOT * pair).cast_const();
                        slide(self.planes, weights(slot), weights(1 - slot), &windows);
                    }
                    None => {
                        for pair in 0..self.layout.pairs {
                            self.widen(top + 2 * pair, pair);
                        }
                        self.dot();
                    }
                }
                finish(self.sums, y, self.width, &self.rule);
            }
            y = y.wrapping_byte_add(self.rule.step * self.width);
        }
    }

    /// Fills a slot with a row, counted from the top of the padding, and the one below it.
    unsafe fn widen(&self, row: usize, slot: usize) {
        let row = row.wrapping_sub(self.window.pad_top.into());
        let (upper, lower) = (self.x.row(row), self.x.row(row.wrapping_add(1)));
        // SAFETY: as the caller says.
        unsafe { widen(upper, lower, self.end.wrapping_add(slot), &self.columns) };
    }

    /// The accumulators of a row of windows of any size.
    unsafe fn dot(&self) {
        let layout = self.layout;
        let taps = layout.weights / CHANNELS;
        let step = usize::from(self.window.stride_width) * layout.pairs;
        for (channel, &bias) in self.bias.iter().enumerate() {
            let weights = self.weights.wrapping_add(channel * taps);
            for window in 0..self.width {
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
                unsafe { *self.sums.add(CHANNELS * window + channel) = acc };
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

/// Where widened rows go: a word of each column, in four planes.
#[repr(C)]
struct Columns {
    /// Bytes of all columns in a plane, negative.
    minus_bytes: usize,
    /// Bytes of a column.
    step: usize,
    plane_bytes: usize,
    /// Bytes of a pixel where it comes from.
    pixel_bytes: usize,
    /// A pixel of rows that are not there.
    outside: u32,
}

/// Widens a row of pixels and the one below it to pairs. A row that is not there is null.
///
/// # Safety
/// The rows have as many pixels as there are columns, at least one. These end at `end` in the first plane.
#[unsafe(naked)]
unsafe extern "C" fn widen(upper: *const u32, lower: *const u32, end: *mut u32, columns: &Columns) {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        "push {{r4-r11, lr}}
         ldm r3, {{r5-r8}}
         mov r4, r8
         cmp r0, #0
         itt eq
         addeq r0, r3, #16
         moveq r8, #0
         cmp r1, #0
         itt eq
         addeq r1, r3, #16
         moveq r4, #0
         add r3, r2, r7
         add r9, r3, r7
         add r10, r9, r7
         2:
         ldr r7, [r0]
         ldr r11, [r1]
         add r0, r8
         add r1, r4
         pkhbt r12, r7, r11, lsl #16
         pkhtb lr, r11, r7, asr #16
         sxtb16 r7, r12
         sxtb16 r12, r12, ror #8
         sxtb16 r11, lr
         sxtb16 lr, lr, ror #8
         str r7, [r2, r5]
         str r12, [r3, r5]
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
unsafe extern "C" fn finish(sums: *const i32, y: *mut u32, count: usize, rule: &Rule) {
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
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

/// A row of windows.
#[repr(C)]
struct Windows {
    /// Of four channels.
    bias: *const i32,
    /// Accumulators of four channels for each window.
    sums: *mut i32,
    count: usize,
}

/// Begins a function over planes, weights for the first and the second word of their columns, and [`Windows`]: for each plane,
/// weights are in r4-r9, the bias is in r12, pointers to the first column in r3 and to the first accumulator in r10, and the
/// number of windows in lr. Free are r0, r1, r2, r11. At the end r3 must point behind the last column.
macro_rules! plane {
    () => {
        "push {{r4-r11, lr}}
         ldm r3, {{r4, r5, r7}}
         mov r3, r0
         add r6, r5, #16
         push {{r1, r2, r4-r7}}
         2:
         ldrd r0, r1, [sp]
         ldm r0!, {{r4-r6}}
         ldm r1!, {{r7-r9}}
         strd r0, r1, [sp]
         ldrd r0, r10, [sp, #8]
         ldr r12, [r0], #4
         add r1, r10, #4
         strd r0, r1, [sp, #8]
         ldr lr, [sp, #20]"
    };
}

/// Goes back to [`plane`], or returns.
macro_rules! next_plane {
    () => {
        "ldrd r0, r1, [sp, #12]
         cmp r0, r1
         bne 2b
         add sp, #24
         pop {{r4-r11, pc}}"
    };
}

/// The next column: to r0 and r1, from where its products begin a window as its first column, go on as its second, or end and store
/// it as its third.
macro_rules! next_column {
    () => {
        "\nldrd r0, r1, [r3], #8\n"
    };
}
#[rustfmt::skip]
macro_rules! first {
    ($sum:literal) => {
        concat!("smlad ", $sum, ", r0, r4, r12\n", "smlad ", $sum, ", r1, r7, ", $sum, "\n")
    };
}
#[rustfmt::skip]
macro_rules! second {
    ($sum:literal) => {
        concat!("smlad ", $sum, ", r0, r5, ", $sum, "\n", "smlad ", $sum, ", r1, r8, ", $sum, "\n")
    };
}
#[rustfmt::skip]
macro_rules! third {
    ($sum:literal) => {
        concat!(
            "smlad ", $sum, ", r0, r6, ", $sum, "\n", "smlad ", $sum, ", r1, r9, ", $sum, "\n",
            "str ", $sum, ", [r10], #16\n",
        )
    };
}

/// # Safety
/// Columns of four planes one after the other, as many as the windows at a stride of one column take, of which there is at least
/// one; weights of three columns for each plane; room for the accumulators.
#[unsafe(naked)]
unsafe extern "C" fn slide_1(planes: *const u32, first: *const u32, second: *const u32, windows: &Windows) {
    // Two windows are under way at any time.
    macro_rules! begin {
        ($a:literal, $b:literal) => {
            concat!(next_column!(), first!($a), next_column!(), second!($a), first!($b))
        };
    }
    macro_rules! step {
        ($a:literal, $b:literal) => {
            concat!(next_column!(), third!($a), second!($b), first!($a))
        };
    }
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        plane!(),
        "tst lr, #1
         bne 4f",
        begin!("r2", "r11"),
        "3:",
        step!("r2", "r11"),
        "5:",
        step!("r11", "r2"),
        "subs lr, #2
         bne 3b",
        next_plane!(),
        "4:",
        begin!("r11", "r2"),
        "add lr, #1
         b 5b",
    )
}

/// # Safety
/// As of [`slide_1`], but for a stride of two columns.
#[unsafe(naked)]
unsafe extern "C" fn slide_2(planes: *const u32, first: *const u32, second: *const u32, windows: &Windows) {
    macro_rules! step {
        () => {
            concat!(
                next_column!(),
                second!("r2"),
                next_column!(),
                third!("r2"),
                first!("r2")
            )
        };
    }
    naked_asm!(
        env!("ADCORDA_DSP_CPU"),
        plane!(),
        next_column!(),
        first!("r2"),
        "tst lr, #1
         it ne
         addne lr, #1
         bne 4f
         3:",
        step!(),
        "4:",
        step!(),
        "subs lr, #2
         bne 3b",
        next_plane!(),
    )
}
