//! 2-D convolution, depthwise too, and fully connected layers.

use adcorda_formats::Order;

use super::{Convolution, Epilogue};
use crate::isa;

/// 2-D convolution of one image: weights of any width, int8 activations, any shape. A depthwise one has rows of one channel.
///
/// `y[oy,ox,o] = requantize(bias[o] + sum(x[iy,ix,i] * w[o,ky,kx,i]))`; `bias` already holds `- zero_point_in * sum(w)`, so
/// a padded position counts as `zero_point_in`, and the inner loop is a plain dot product.
///
/// Output channels are the outer loop: each row is unpacked once and then meets every pixel. In an HWC input the codes of a tap
/// lie side by side, so a window is `kh * kw` dot products of `c_in` codes.
///
/// # Shapes
/// `x: [h, w, c_in]` | weights `[c_out, kh, kw, c_in]` or, depthwise, `[c, kh, kw]`, packed | `y: [oh, ow, c_out]`, of `i32` for
/// logits | `scratch`: at least a row's codes
///
/// # Source
/// Jacob et al. 2018, section 2.2 and 2.3.
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) {
    let (window, packing) = (&layer.window, &layer.weights.packing);
    // Codes of a tap, and where those of the next row begin.
    let (channels, next) = match packing.order {
        Order::Blocks => (layer.x.channels.max(1), 0),
        Order::Channels => (1, 1),
    };
    let kernel_width = usize::from(window.kernel_width).max(1);
    let Some(codes) = scratch.get_mut(..packing.k) else {
        return;
    };

    for (row, bias) in layer.weights.bias.iter().enumerate() {
        isa::unpack(packing, layer.weights.packed, row, codes);
        for oy in 0..layer.y.height {
            // Beyond the upper or left edge they wrap around, and are as far outside as beyond the others.
            let top = (oy * usize::from(window.stride_height)).wrapping_sub(window.pad_top.into());
            for ox in 0..layer.y.width {
                let left = (ox * usize::from(window.stride_width)).wrapping_sub(window.pad_left.into());
                let mut acc = bias;
                for (tap, codes) in codes.chunks_exact(channels).enumerate() {
                    let (iy, ix) = (top.wrapping_add(tap / kernel_width), left.wrapping_add(tap % kernel_width));
                    acc = acc.wrapping_add(if iy < layer.x.height && ix < layer.x.width {
                        let at = (iy * layer.x.width + ix) * layer.x.channels + next * row;
                        isa::dot(x.get(at..at + channels).unwrap_or_default(), codes)
                    } else {
                        isa::sum(codes).wrapping_mul(layer.x_zero_point.into())
                    });
                }
                let pixel = oy * layer.y.width + ox;
                store(layer, acc, row, pixel, y);
            }
        }
    }
}

/// Makes of an accumulator what the layer makes of it.
#[inline]
fn store(layer: &Convolution<'_>, acc: i32, row: usize, pixel: usize, y: &mut [u8]) {
    let at = pixel * layer.y.channels + row;
    match &layer.epilogue {
        Epilogue::Codes { rules, residual } => {
            if let Some(code) = y.get_mut(at) {
                let v = rules.rule(rules.multiplier.get(row)).apply(acc);
                *code = match residual {
                    Some(add) => add.apply(v, *code as i8),
                    None => v,
                } as u8;
            }
        }
        Epilogue::Logits => {
            if let Some(logit) = y.as_chunks_mut().0.get_mut(at) {
                *logit = acc.to_le_bytes();
            }
        }
    }
}
