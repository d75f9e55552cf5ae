//! 2-D convolution and fully connected layers.

use core::iter::{Skip, StepBy};
use core::slice::IterMut;

use super::{Convolution, Epilogue, Span};
use crate::isa;
use crate::requantize::{AddRequantizer, Requantizer};

/// 2-D convolution of one image: weights of any width, int8 activations, any shape.
///
/// `y[oy,ox,o] = requantize(bias[o] + sum(x[iy,ix,i] * w[o,ky,kx,i]))`; `bias` already holds `- zero_point_in * sum(w)`, so
/// the inner loop is a plain dot product, and a padded position counts as `zero_point_in`.
///
/// Output channels are the outer loop: each row is unpacked once and then meets every pixel. In an HWC input the taps of one
/// kernel row lie side by side, so a window is `kh` dot products of `kw * c_in` codes.
///
/// # Shapes
/// `x: [h, w, c_in]` | weights `[c_out, kh, kw, c_in]`, packed | `y: [oh, ow, c_out]`, of `i32` for logits |
/// `scratch`: at least `[kh * kw * c_in]`
///
/// # Source
/// Jacob et al. 2018, section 2.2 and 2.3.
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) {
    let (window, packing) = (&layer.window, &layer.weights.packing);
    let channels = layer.x.channels;
    let zero_point = i32::from(layer.x_zero_point);
    let kernel_width = usize::from(window.kernel_width);
    let Some(codes) = scratch.get_mut(..packing.k) else {
        return;
    };

    for (row, bias) in layer.weights.bias.iter().enumerate() {
        isa::unpack(packing, layer.weights.packed, row, codes);
        let total = isa::sum(codes);
        let mut out = ChannelOutput::new(layer, row, y);
        for oy in 0..layer.y.height {
            let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, layer.x.height);
            for ox in 0..layer.y.width {
                let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, layer.x.width);
                let run = columns.len * channels;
                let padding = zero_point != 0 && run * rows.len < codes.len();
                let mut acc = bias;
                let mut padded = total;
                for row in 0..rows.len {
                    let x_row = &x[((rows.start + row) * layer.x.width + columns.start) * channels..][..run];
                    let w_row = &codes[((rows.tap + row) * kernel_width + columns.tap) * channels..][..run];
                    acc = acc.wrapping_add(isa::dot(x_row, w_row));
                    if padding {
                        padded = padded.wrapping_sub(isa::sum(w_row));
                    }
                }
                if padding {
                    acc = acc.wrapping_add(zero_point.wrapping_mul(padded));
                }
                out.push(acc);
            }
        }
    }
}

/// Where the accumulators of one output channel go, pixel by pixel.
pub(super) enum ChannelOutput<'a> {
    Codes {
        rule: Requantizer,
        residual: Option<AddRequantizer>,
        out: StepBy<Skip<IterMut<'a, u8>>>,
    },
    Logits {
        out: StepBy<Skip<IterMut<'a, [u8; 4]>>>,
    },
}

impl<'a> ChannelOutput<'a> {
    pub(super) fn new(layer: &Convolution<'_>, row: usize, y: &'a mut [u8]) -> Self {
        let stride = layer.y.channels.max(1);
        match &layer.epilogue {
            Epilogue::Codes { rules, residual } => ChannelOutput::Codes {
                rule: rules.rule(rules.multiplier.get(row)),
                residual: *residual,
                out: y.iter_mut().skip(row).step_by(stride),
            },
            Epilogue::Logits => ChannelOutput::Logits {
                out: y.as_chunks_mut().0.iter_mut().skip(row).step_by(stride),
            },
        }
    }

    /// The next pixel.
    #[inline]
    pub(super) fn push(&mut self, acc: i32) {
        match self {
            ChannelOutput::Codes { rule, residual, out } => {
                if let Some(code) = out.next() {
                    let v = rule.apply(acc);
                    *code = match residual {
                        Some(add) => add.apply(v, *code as i8),
                        None => v,
                    } as u8;
                }
            }
            ChannelOutput::Logits { out } => {
                if let Some(logit) = out.next() {
                    *logit = acc.to_le_bytes();
                }
            }
        }
    }
}
