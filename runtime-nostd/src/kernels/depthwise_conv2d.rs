//! Depthwise 2-D convolution.

use super::{ChannelRules, Convolution, Epilogue};
use crate::isa::{self, Isa};

/// Depthwise 2-D convolution of one image, channel multiplier 1.
///
/// `y[oy,ox,c] = requantize(bias[c] + sum(x[iy,ix,c] * w[c,ky,kx]))`; padding and bias as in
/// [`conv2d`](super::conv2d()).
///
/// As many channels at a time as there is scratch for: neighbours in memory, so that a compiler can make them lanes of a vector.
///
/// # Shapes
/// `x: [h, w, c]` | weights `[c, kh, kw]`, packed | `y: [oh, ow, c]` | `scratch`: at least `[kh * kw]`
pub(crate) fn depthwise_conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) {
    let Epilogue::Codes { rules, .. } = &layer.epilogue else {
        return;
    };
    let (channels, taps) = (layer.x.channels, layer.weights.packing.k);
    let mut channel = 0;
    while channel < channels {
        let left = channels - channel;
        channel += match scratch.len() / taps.max(1) {
            MANY.. if left >= MANY => some_channels::<MANY>(layer, rules, channel, x, y, scratch),
            FEW.. if left >= FEW => some_channels::<FEW>(layer, rules, channel, x, y, scratch),
            _ => some_channels::<1>(layer, rules, channel, x, y, scratch),
        };
    }
}

/// Channels at a time, if there are so many: lanes of vectors, or as many accumulators as there are registers for. Where an
/// instruction set has a kernel of its own for all usual shapes, the rest is not worth code.
const MANY: usize = match Isa::CURRENT {
    Isa::Portable => 16,
    Isa::Thumb1 | Isa::Thumb2 => 4,
    Isa::Dsp | Isa::Mve => 1,
};
/// The same, for what is left.
const FEW: usize = if MANY < 4 { MANY } else { 4 };

/// `N` channels from `first` on; gives `N`.
fn some_channels<const N: usize>(
    layer: &Convolution<'_>,
    rules: &ChannelRules<'_>,
    first: usize,
    x: &[u8],
    y: &mut [u8],
    scratch: &mut [u8],
) -> usize {
    let (window, packing, channels) = (&layer.window, &layer.weights.packing, layer.x.channels);
    let (rows, columns) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
    let padding = [layer.x_zero_point as u8; N];
    // Tap by tap, the channels of each side by side.
    let (codes, _) = scratch.as_chunks_mut::<N>();
    let Some(codes) = codes.get_mut(..packing.k) else {
        return N;
    };
    for (tap, codes) in codes.iter_mut().enumerate() {
        for (i, code) in codes.iter_mut().enumerate() {
            *code = isa::unpack_one(packing, layer.weights.packed, first + i, tap);
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
    N
}
