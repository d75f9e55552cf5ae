//! Depthwise convolutions: every width, any window, four channels at a time.
//!
//! The weights of four channels are unpacked to words, tap by tap, and meet all pixels before those of the next four do. A word of the
//! input is a tap of them. Where a window reaches over the border, a patch of its size takes the input's place.

use core::ptr;

use super::rows;
use crate::isa::depthwise::CHANNELS;
use crate::isa::path::{self, Isa, Path};
use crate::isa::{inside, is_aligned};
use crate::kernels::{Convolution, Epilogue, Span};

/// Neighbouring pixels of four channels; the assembly knows each place. Pointers are aligned to words, and so are distances, which are
/// in bytes.
#[repr(C)]
pub(super) struct Run {
    bias: [i32; CHANNELS],
    multiplier: [i32; CHANNELS],
    /// `[kh, kw, 4]` (32)
    weights: *const i32,
    zero_point: i32,
    kernel_height: usize,
    kernel_width: usize,
    /// From tap to tap, and from after the last one of a row to the next row. (48)
    tap: usize,
    row: usize,
    x: *const u8,
    y: *mut u8,
    /// From pixel to pixel in `x` and `y`. (64)
    x_step: usize,
    y_step: usize,
    /// Pixels, not none; counted down.
    count: usize,
}

/// A depthwise convolution. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c]` | `y: [oh, ow, c]`
pub(crate) fn depthwise_conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    let (packing, window) = (&layer.weights.packing, &layer.window);
    let (channels, width) = (layer.x.channels, layer.x.width);
    let (kernel_height, kernel_width) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
    let Epilogue::Codes { rules, .. } = &layer.epilogue else {
        return false;
    };
    if path::depthwise(Isa::CURRENT, layer, scratch.len()) != Path::Depthwise
        || layer.y.channels != channels
        || x.len() < layer.x.height * width * channels
        || y.len() < layer.y.height * layer.y.width * channels
        || !(is_aligned(x.as_ptr()) && is_aligned(y.as_ptr()) && is_aligned(scratch.as_ptr()))
    {
        return false;
    }
    let (weights, patch) = scratch.split_at_mut(4 * CHANNELS * packing.k);
    let patch = &mut patch[..CHANNELS * packing.k];
    let (stride, pad_left) = (usize::from(window.stride_width), usize::from(window.pad_left));
    let inside = inside(layer);

    for first in (0..channels).step_by(CHANNELS) {
        let mut run = Run {
            bias: [0; CHANNELS],
            multiplier: [0; CHANNELS],
            weights: weights.as_ptr().cast(),
            zero_point: rules.zero_point.into(),
            kernel_height,
            kernel_width,
            tap: 0,
            row: 0,
            x: ptr::null(),
            y: ptr::null_mut(),
            x_step: stride * channels,
            y_step: channels,
            count: 0,
        };
        for channel in 0..CHANNELS {
            run.bias[channel] = layer.weights.bias.get(first + channel);
            run.multiplier[channel] = rules.multiplier.get(first + channel);
            for (i, tap) in weights.as_chunks_mut::<{ 4 * CHANNELS }>().0.iter_mut().enumerate() {
                let code = packing.decode(layer.weights.packed, first + channel, i);
                tap[4 * channel..][..4].copy_from_slice(&i32::from(code).to_le_bytes());
            }
        }
        for oy in 0..layer.y.height {
            let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, layer.x.height);
            let mut ox = 0;
            while ox < layer.y.width {
                let out = (oy * layer.y.width + ox) * channels + first;
                run.y = y[out..].as_mut_ptr();
                if rows.len == kernel_height && inside.contains(&ox) {
                    let column = ox * stride - pad_left;
                    run.x = x[(rows.start * width + column) * channels + first..].as_ptr();
                    (run.tap, run.row) = (channels, (width - kernel_width) * channels);
                    run.count = inside.end - ox;
                } else {
                    let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, width);
                    patch.fill(layer.x_zero_point as u8);
                    for row in 0..rows.len {
                        let from = ((rows.start + row) * width + columns.start) * channels + first;
                        let to = ((rows.tap + row) * kernel_width + columns.tap) * CHANNELS;
                        for tap in 0..columns.len {
                            let from = &x[from + tap * channels..][..CHANNELS];
                            patch[to + tap * CHANNELS..][..CHANNELS].copy_from_slice(from);
                        }
                    }
                    run.x = patch.as_ptr();
                    (run.tap, run.row) = (CHANNELS, 0);
                    run.count = 1;
                }
                ox += run.count;
                // SAFETY: windows lie within the input, or the one does in the patch; there are weights for each tap. Four
                // channels of `count` pixels from `ox` on lie in `y`. All is aligned, as channels are whole words.
                unsafe { rows::depthwise(&mut run) };
            }
        }
    }
    true
}
