//! Depthwise 2-D convolution.

use super::conv2d::ChannelOutput;
use super::{Convolution, Span};
use crate::isa;

/// Depthwise 2-D convolution of one image, channel multiplier 1.
///
/// `y[oy,ox,c] = requantize(bias[c] + sum(x[iy,ix,c] * w[c,ky,kx]))`; padding and bias as in
/// [`conv2d`](super::conv2d()).
///
/// # Shapes
/// `x: [h, w, c]` | weights `[c, kh, kw]`, packed | `y: [oh, ow, c]` | `scratch`: at least `[kh * kw]`
pub(crate) fn depthwise_conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) {
    let (window, packing) = (&layer.window, &layer.weights.packing);
    let channels = layer.x.channels.max(1);
    let zero_point = i32::from(layer.x_zero_point);
    let kernel_width = usize::from(window.kernel_width);
    let Some(codes) = scratch.get_mut(..packing.k) else {
        return;
    };

    for (channel, bias) in layer.weights.bias.iter().enumerate() {
        isa::unpack(packing, layer.weights.packed, channel, codes);
        let total = isa::sum(codes);
        let mut out = ChannelOutput::new(layer, channel, y);
        for oy in 0..layer.y.height {
            let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, layer.x.height);
            for ox in 0..layer.y.width {
                let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, layer.x.width);
                let mut acc = bias;
                let mut padded = total;
                for row in 0..rows.len {
                    let x_row = &x[((rows.start + row) * layer.x.width + columns.start) * channels + channel..];
                    let w_row = &codes[(rows.tap + row) * kernel_width + columns.tap..][..columns.len];
                    for (&x, &w) in x_row.iter().step_by(channels).zip(w_row) {
                        acc = acc.wrapping_add(i32::from(x as i8) * i32::from(w as i8));
                        padded = padded.wrapping_sub(i32::from(w as i8));
                    }
                }
                out.push(acc.wrapping_add(zero_point.wrapping_mul(padded)));
            }
        }
    }
}
