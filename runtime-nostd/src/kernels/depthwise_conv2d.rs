//! Depthwise 2-D convolution.

use adcorda_formats::Window;

use super::{ChannelRules, ChannelWeights, Input, Output, Span};
use crate::isa;

/// Depthwise 2-D convolution of one image, channel multiplier 1.
///
/// `y[oy,ox,c] = requantize(bias[c] + sum(x[iy,ix,c] * w[c,ky,kx]))`; padding and bias as in
/// [`conv2d`](super::conv2d()).
///
/// # Shapes
/// `x: [h, w, c]` | weights `[c, kh, kw]`, packed | `rules: [c]` | `y: [oh, ow, c]` | `scratch: [kh * kw]`
pub(crate) fn depthwise_conv2d(
    x: Input<'_>,
    window: &Window,
    weights: &ChannelWeights<'_>,
    rules: &ChannelRules<'_>,
    y: Output<'_>,
    scratch: &mut [u8],
) {
    let (height, width) = (usize::from(x.shape.height), usize::from(x.shape.width));
    let channels = usize::from(x.shape.channels).max(1);
    let zero_point = i32::from(x.shape.zero_point);
    let kernel_width = usize::from(window.kernel_width);

    for (channel, ((packed, bias), rule)) in weights.iter().zip(rules.iter()).enumerate() {
        let codes = isa::unpack(weights.width, packed, scratch);
        let total = isa::sum(codes);
        let mut out = y.codes.iter_mut().skip(channel).step_by(channels);
        for oy in 0..usize::from(y.shape.height) {
            let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, height);
            for ox in 0..usize::from(y.shape.width) {
                let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, width);
                let mut acc = bias;
                let mut padded = total;
                for row in 0..rows.len {
                    let x_row = &x.codes[((rows.start + row) * width + columns.start) * channels + channel..];
                    let w_row = &codes[(rows.tap + row) * kernel_width + columns.tap..][..columns.len];
                    for (&x, &w) in x_row.iter().step_by(channels).zip(w_row) {
                        acc = acc.wrapping_add(i32::from(x as i8) * i32::from(w as i8));
                        padded = padded.wrapping_sub(i32::from(w as i8));
                    }
                }
                acc = acc.wrapping_add(zero_point.wrapping_mul(padded));
                if let Some(code) = out.next() {
                    *code = rule.apply(acc) as u8;
                }
            }
        }
    }
}
