//! Depthwise convolutions of sixteen channels at a time: neighbours in memory, so that a compiler makes them lanes of vectors.

use crate::isa::depthwise::CHANNELS;
use crate::isa::path::{self, Isa, Path};
use crate::kernels::{ChannelRules, Convolution, Epilogue};

/// Channels computed at a time.
const MANY: usize = 16;
/// The same, for what is left.
const FEW: usize = CHANNELS;

/// A depthwise convolution. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c]` | `y: [oh, ow, c]`
pub(crate) fn depthwise_conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    let Epilogue::Codes { rules, .. } = &layer.epilogue else {
        return false;
    };
    if path::depthwise(Isa::Portable, layer, scratch.len()) != Path::Depthwise {
        return false;
    }
    let channels = layer.x.channels;
    let many = channels - channels % MANY;
    for first in (0..many).step_by(MANY) {
        some_channels::<MANY>(layer, rules, first, x, y, scratch);
    }
    for first in (many..channels).step_by(FEW) {
        some_channels::<FEW>(layer, rules, first, x, y, scratch);
    }
    true
}

/// `N` channels from `first` on.
fn some_channels<const N: usize>(
    layer: &Convolution<'_>,
    rules: &ChannelRules<'_>,
    first: usize,
    x: &[u8],
    y: &mut [u8],
    scratch: &mut [u8],
) {
    let (window, packing, channels) = (&layer.window, &layer.weights.packing, layer.x.channels);
    let (rows, columns) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
    let padding = [layer.x_zero_point as u8; N];
    // Tap by tap, the channels of each side by side.
    let (codes, _) = scratch.as_chunks_mut::<N>();
    let Some(codes) = codes.get_mut(..packing.k) else {
        return;
    };
    for (tap, codes) in codes.iter_mut().enumerate() {
        for (i, code) in codes.iter_mut().enumerate() {
            *code = packing.decode(layer.weights.packed, first + i, tap) as u8;
        }
    }
    let bias: [i32; N] = core::array::from_fn(|i| layer.weights.bias.get(first + i));
    let rules: [_; N] = core::array::from_fn(|i| rules.rule(rules.multiplier.get(first + i)));

    for (index, pixel) in y.chunks_exact_mut(channels.max(1)).enumerate() {
        let (oy, ox) = (index / layer.y.width.max(1), index % layer.y.width.max(1));
        // Beyond the upper or left edge they wrap around, and are as far outside as beyond the others.
        let top = (oy * usize::from(window.stride_height)).wrapping_sub(window.pad_top.into());
        let left = (ox * usize::from(window.stride_width)).wrapping_sub(window.pad_left.into());
        let mut acc = bias;
        let mut weights = codes.iter();
        for row in 0..rows {
            let iy = top.wrapping_add(row);
            let width = if iy < layer.x.height { layer.x.width } else { 0 };
            let mut ix = left;
            let mut at = (iy.wrapping_mul(layer.x.width).wrapping_add(left))
                .wrapping_mul(channels)
                .wrapping_add(first);
            for weights in weights.by_ref().take(columns) {
                let inside = x.get(at..).and_then(|x| x.first_chunk()).filter(|_| ix < width);
                let x: &[u8; N] = inside.unwrap_or(&padding);
                ix = ix.wrapping_add(1);
                at = at.wrapping_add(channels);
                for ((acc, &x), &w) in acc.iter_mut().zip(x).zip(weights) {
                    *acc = acc.wrapping_add(i32::from(x as i8) * i32::from(w as i8));
                }
            }
        }
        if let Some(codes) = pixel.get_mut(first..first + N) {
            for ((code, acc), rule) in codes.iter_mut().zip(acc).zip(&rules) {
                *code = rule.apply(acc) as u8;
            }
        }
    }
}
