//! Depthwise convolutions: every width, any window, sixteen channels at a time.
//!
//! Activations lie with the channels innermost, so that a tap is one vector of codes by one vector of weights: products of 16
//! bits, widened and added to sums of 32. The weights of sixteen channels are unpacked to bytes, tap by tap, and meet all pixels
//! before the next sixteen do; of the last group the channels that are not there are masked in every load and store. Where
//! a window reaches over the border, a patch as large as it takes the input's place.

use core::arch::asm;

use super::fill;
use crate::isa::inside;
use crate::isa::path::{self, Isa, Path};
use crate::isa::unpack;
use crate::kernels::{Convolution, Epilogue, Span};

/// Channels computed at a time.
const CHANNELS: usize = 16;

/// What a run of pixels is given; the assembly below knows each place.
#[repr(C)]
struct Run {
    /// In the order in which sums of 32 bits come out of vectors of 8: channels 0, 4, 8, 12, then 2, 6, ..., 1, 5, ..., 3, 7, ...
    bias: [i32; CHANNELS],
    multiplier: [i32; CHANNELS],
    /// `[kh, kw, 16]`
    weights: *const u8,
    kernel_height: usize,
    /// From a window to the next.
    step: usize,
    /// From a pixel of the output to the next.
    out_step: usize,
    zero_point: i32,
}

#[inline(never)]
pub(in crate::isa) fn depthwise_conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    let (packing, window, channels) = (&layer.weights.packing, &layer.window, layer.x.channels);
    let (kernel_height, kernel_width) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
    let (stride, width) = (usize::from(window.stride_width), layer.x.width);
    let Epilogue::Codes { rules, .. } = &layer.epilogue else {
        return false;
    };
    if path::depthwise(Isa::Mve, layer, scratch.len()) != Path::Depthwise
        || layer.y.channels != channels
        || y.len() != layer.y.height * layer.y.width * channels
        || x.len() != layer.x.height * width * channels
    {
        return false;
    }
    let (weights, rest) = scratch.split_at_mut(CHANNELS * packing.k);
    let patch = &mut rest[..CHANNELS * packing.k];
    let inside = inside(layer);
    for first in (0..channels).step_by(CHANNELS) {
        let lanes = CHANNELS.min(channels - first);
        let mut run = Run {
            bias: [0; CHANNELS],
            multiplier: [0; CHANNELS],
            weights: weights.as_ptr(),
            kernel_height,
            step: stride * channels,
            out_step: channels,
            zero_point: rules.zero_point.into(),
        };
        for lane in 0..lanes {
            let place = [0, 8, 4, 12][lane % 4] + lane / 4;
            run.bias[place] = layer.weights.bias.get(first + lane);
            run.multiplier[place] = rules.multiplier.get(first + lane);
            let codes = &mut patch[..packing.k];
            unpack(packing, layer.weights.packed, first + lane, codes);
            for (weight, &code) in weights[lane..].iter_mut().step_by(CHANNELS).zip(&*codes) {
                *weight = code;
            }
        }
        for oy in 0..layer.y.height {
            let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, layer.x.height);
            let mut ox = 0;
            while ox < layer.y.width {
                let out = (oy * layer.y.width + ox) * channels + first;
                if rows.len == kernel_height && inside.contains(&ox) {
                    let count = inside.end - ox;
                    let start = (rows.start * width + ox * stride - usize::from(window.pad_left)) * channels + first;
                    let end =
                        start + ((kernel_height - 1) * width + (count - 1) * stride + kernel_width - 1) * channels + lanes;
                    let out = &mut y[out..][..(count - 1) * channels + lanes];
                    pixels(
                        &run,
                        &x[start..end],
                        width * channels,
                        channels,
                        kernel_width,
                        out,
                        lanes,
                        count,
                    );
                    ox += count;
                } else {
                    let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, width);
                    fill(patch, layer.x_zero_point);
                    for row in 0..rows.len {
                        let from = ((rows.start + row) * width + columns.start) * channels + first;
                        let to = ((rows.tap + row) * kernel_width + columns.tap) * CHANNELS;
                        if let Some(gap) = columns.len.checked_sub(1) {
                            let from = &x[from..from + gap * channels + lanes];
                            copy_taps(from, channels, &mut patch[to..][..columns.len * CHANNELS], lanes);
                        }
                    }
                    let out = &mut y[out..][..lanes];
                    pixels(&run, patch, kernel_width * CHANNELS, CHANNELS, kernel_width, out, lanes, 1);
                    ox += 1;
                }
            }
        }
    }
    true
}

/// Copies as many taps as `to` has vectors, `lanes` channels of each, from places `column` bytes apart.
#[inline]
fn copy_taps(from: &[u8], column: usize, to: &mut [u8], lanes: usize) {
    let taps = to.len() / CHANNELS;
    debug_assert!(taps > 0 && from.len() == (taps - 1) * column + lanes && lanes <= CHANNELS);
    // SAFETY: loads are masked to `lanes` bytes, which `from` holds at each tap; `to` holds a vector a tap.
    unsafe {
        asm!(
            "vctp.8 {lanes}",
            "dls lr, {taps}",
            "2:",
            "vpst",
            "vldrbt.u8 q0, [{from}]",
            "vstrb.8 q0, [{to}], #16",
            "add {from}, {from}, {column}",
            "le lr, 2b",
            lanes = in(reg) lanes,
            taps = in(reg) taps,
            column = in(reg) column,
            from = inout(reg) from.as_ptr() => _,
            to = inout(reg) to.as_mut_ptr() => _,
            out("lr") _, out("d0") _, out("d1") _,
            options(nostack),
        );
    }
}

/// Computes `count` pixels, one after the other in a row: `lanes` channels of each.
///
/// # Shapes
/// `x`: from the first tap of the first window to the last of the last one, rows `row` and columns `column` bytes apart | `out`:
/// from the first pixel to the last, `out_step` bytes apart
#[allow(clippy::too_many_arguments)]
#[inline]
fn pixels(run: &Run, x: &[u8], row: usize, column: usize, kernel_width: usize, out: &mut [u8], lanes: usize, count: usize) {
    debug_assert!(x.len() >= (run.kernel_height - 1) * row + (count - 1) * run.step + (kernel_width - 1) * column + lanes);
    debug_assert!(out.len() == (count - 1) * run.out_step + lanes);
    // SAFETY: the instructions exist on this target, which build.rs has seen. Loads of activations and stores are masked to
    // `lanes` bytes, which the slices hold at each tap of each window and at each pixel; `weights` holds sixteen bytes a tap;
    // the words of `run` are aligned.
    unsafe {
        asm!(
            "
            vctp.8  {lanes}
            2:
            ldr     {w}, [{run}, #128]
            ldr     {rows}, [{run}, #132]
            mov     {tap}, {x}
            vldrw.u32 q4, [{run}]
            vldrw.u32 q5, [{run}, #16]
            vldrw.u32 q6, [{run}, #32]
            vldrw.u32 q7, [{run}, #48]
            3:
            dls     lr, {kernel_width}
            4:
            vpst
            vldrbt.u8 q0, [{tap}]
            vldrb.u8 q1, [{w}], #16
            add     {tap}, {tap}, {column}
            vmullb.s8 q2, q0, q1
            vmullt.s8 q3, q0, q1
            vmovlb.s16 q0, q2
            vmovlt.s16 q1, q2
            vadd.i32 q4, q4, q0
            vmovlb.s16 q0, q3
            vadd.i32 q5, q5, q1
            vmovlt.s16 q1, q3
            vadd.i32 q6, q6, q0
            vadd.i32 q7, q7, q1
            le      lr, 4b
            add     {tap}, {tap}, {to_next_row}
            subs    {rows}, {rows}, #1
            bne     3b
            ldr     {rows}, [{run}, #144]
            vldrw.u32 q0, [{run}, #64]
            vldrw.u32 q1, [{run}, #80]
            vldrw.u32 q2, [{run}, #96]
            vldrw.u32 q3, [{run}, #112]
            vrmulh.s32 q4, q4, q0
            vrmulh.s32 q5, q5, q1
            vrmulh.s32 q6, q6, q2
            vrmulh.s32 q7, q7, q3
            vadd.i32 q4, q4, {rows}
            vadd.i32 q5, q5, {rows}
            vadd.i32 q6, q6, {rows}
            vadd.i32 q7, q7, {rows}
            vqmovnb.s32 q4, q4
            vqmovnt.s32 q4, q5
            vqmovnb.s32 q6, q6
            vqmovnt.s32 q6, q7
            vqmovnb.s16 q4, q4
            vqmovnt.s16 q4, q6
            ldrd    {w}, {rows}, [{run}, #136]
            vpst
            vstrbt.8 q4, [{out}]
            add     {x}, {x}, {w}
            add     {out}, {out}, {rows}
            subs    {count}, {count}, #1
            bne     2b
            ",
            run = in(reg) core::ptr::from_ref(run),
            x = inout(reg) x.as_ptr() => _,
            out = inout(reg) out.as_mut_ptr() => _,
            count = inout(reg) count => _,
            lanes = in(reg) lanes,
            kernel_width = in(reg) kernel_width,
            column = in(reg) column,
            to_next_row = in(reg) row - kernel_width * column,
            w = out(reg) _,
            rows = out(reg) _,
            tap = out(reg) _,
            out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _, out("d15") _,
            options(nostack),
        );
    }
}
