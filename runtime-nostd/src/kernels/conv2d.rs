//! 2-D convolution.

use adcorda_formats::Window;

use super::{ChannelRules, ChannelWeights, Input, Output, Span};
use crate::isa;

/// 2-D convolution of one image: weights of any width, int8 activations.
///
/// `y[oy,ox,o] = requantize(bias[o] + sum(x[iy,ix,i] * w[o,ky,kx,i]))`; `bias` already holds `- zero_point_in * sum(w)`, so
/// the inner loop is a plain dot product, and a padded position counts as `zero_point_in`.
///
/// Output channels are the outer loop: each row is unpacked once and then meets every pixel. In an HWC input the taps of one
/// kernel row lie side by side, so a window is `kh` dot products of `kw * c_in` codes.
///
/// # Shapes
/// `x: [h, w, c_in]` | weights `[c_out, kh, kw, c_in]`, packed | `rules: [c_out]` | `y: [oh, ow, c_out]` |
/// `scratch: [kh * kw * c_in]`
///
/// # Source
/// Jacob et al. 2018, section 2.2 and 2.3.
pub(crate) fn conv2d(
    x: Input<'_>,
    window: &Window,
    weights: &ChannelWeights<'_>,
    rules: &ChannelRules<'_>,
    y: Output<'_>,
    scratch: &mut [u8],
) {
    let (height, width) = (usize::from(x.shape.height), usize::from(x.shape.width));
    let channels = usize::from(x.shape.channels);
    let zero_point = i32::from(x.shape.zero_point);
    let kernel_width = usize::from(window.kernel_width);
    let (y_width, y_channels) = (usize::from(y.shape.width), usize::from(y.shape.channels));

    for (channel, ((packed, bias), rule)) in weights.iter().zip(rules.iter()).enumerate() {
        let codes = isa::unpack(weights.width, packed, scratch);
        let total = isa::sum(codes);
        let mut out = y.codes.iter_mut().skip(channel).step_by(y_channels.max(1));
        for oy in 0..usize::from(y.shape.height) {
            let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, height);
            for ox in 0..y_width {
                let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, width);
                let run = columns.len * channels;
                let padding = zero_point != 0 && run * rows.len < codes.len();
                let mut acc = bias;
                let mut padded = total;
                for row in 0..rows.len {
                    let x_row = &x.codes[((rows.start + row) * width + columns.start) * channels..][..run];
                    let w_row = &codes[((rows.tap + row) * kernel_width + columns.tap) * channels..][..run];
                    acc = acc.wrapping_add(isa::dot(x_row, w_row));
                    if padding {
                        padded = padded.wrapping_sub(isa::sum(w_row));
                    }
                }
                if padding {
                    acc = acc.wrapping_add(zero_point.wrapping_mul(padded));
                }
                if let Some(code) = out.next() {
                    *code = rule.apply(acc) as u8;
                }
            }
        }
    }
}
