//! Operators, one file each, over plain slices.
//!
//! Kernels here take every shape on every target. What an instruction set does faster for many shapes is in [`crate::isa`],
//! and is asked first. The step from accumulator to code is [`crate::requantize`]'s. Codes are `u8` with the bits of an `i8`.
//!
//! Shapes, strides and weight counts fit together because [`Model::parse`](adcorda_formats::Model::parse) checked them;
//! so do the bounds that keep every 32-bit accumulator from overflowing. Accumulation is written with wrapping operations:
//! not because sums wrap, but so that no build pays for a check per multiply.

mod add;
mod avg_pool;
mod conv2d;
mod input_table;
mod max_pool;
mod subsample;

pub(crate) use add::add;
pub(crate) use avg_pool::avg_pool;
pub(crate) use conv2d::conv2d;
pub(crate) use input_table::{input_table, rgb565_be, rgb565_le, uyvy, yuyv};
pub(crate) use max_pool::max_pool;
pub(crate) use subsample::subsample;

use adcorda_formats::{I32Array, Model, Op, Packing, Requantize, Tensor, Window};

use crate::requantize::{AddRequantizer, Requantizer};

/// A tensor to read.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) shape: &'a Tensor,
    /// `[height, width, channels]`
    pub(crate) codes: &'a [u8],
}

/// A tensor to write.
pub(crate) struct Output<'a> {
    pub(crate) shape: &'a Tensor,
    /// `[height, width, channels]`, arbitrary bytes before.
    pub(crate) codes: &'a mut [u8],
}

/// Height, width and channels of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl From<&Tensor> for Shape {
    fn from(tensor: &Tensor) -> Self {
        Shape {
            height: tensor.height.into(),
            width: tensor.width.into(),
            channels: tensor.channels.into(),
        }
    }
}

/// A layer with weights: a convolution, a depthwise convolution, or a fully connected layer, which is a 1x1 convolution of one
/// pixel.
pub(crate) struct Convolution<'m> {
    pub(crate) x: Shape,
    /// Code of real zero in the input: what padding reads as.
    pub(crate) x_zero_point: i8,
    pub(crate) y: Shape,
    pub(crate) window: Window,
    pub(crate) weights: ChannelWeights<'m>,
    pub(crate) epilogue: Epilogue<'m>,
}

impl<'m> Convolution<'m> {
    /// The layer that computes tensor `y` of `model`; `None` where it has no weights.
    pub(crate) fn new(model: &Model<'m>, op: &Op, y: &Tensor) -> Option<Self> {
        let tensor = |id: u8| model.tensors().get(usize::from(id));
        let x = tensor(op.inputs().next()?)?;
        let packing = op.packing(x, y)?;
        let pixel = |channels| Shape {
            height: 1,
            width: 1,
            channels,
        };
        let (x_shape, window) = match op.window() {
            Some(window) => (x.into(), *window),
            None => (pixel(packing.k), Window::POINT),
        };
        let epilogue = match op.requantize() {
            None => Epilogue::Logits,
            Some(requantize) => {
                let mut zero_point = y.zero_point;
                let mut add = None;
                if let Op::Conv2d {
                    residual: Some(residual),
                    ..
                } = op
                {
                    zero_point = residual.zero_point;
                    add = Some(AddRequantizer {
                        mul_a: residual.mul_conv,
                        mul_b: residual.mul_residual,
                        shift: residual.shift,
                        zero_point_a: residual.zero_point,
                        zero_point_b: tensor(residual.input)?.zero_point,
                        zero_point: y.zero_point,
                        min: residual.min,
                        max: residual.max,
                    });
                }
                Epilogue::Codes {
                    rules: ChannelRules::new(model, requantize, packing.rows, zero_point),
                    residual: add,
                }
            }
        };
        let weights = op.weights()?;
        Some(Convolution {
            x: x_shape,
            x_zero_point: x.zero_point,
            y: y.into(),
            window,
            weights: ChannelWeights {
                packing,
                packed: model.packed(weights),
                bias: model.bias(weights, packing.rows),
            },
            epilogue,
        })
    }
}

/// A layer's weights and biases.
pub(crate) struct ChannelWeights<'m> {
    pub(crate) packing: Packing,
    /// All blocks, then the rest of the model's weights section, which may be read but means nothing here.
    pub(crate) packed: &'m [u8],
    /// `[rows]`
    pub(crate) bias: I32Array<'m>,
}

/// What becomes of the accumulators.
pub(crate) enum Epilogue<'m> {
    /// Requantized. With a residual, the code is then added to the one that lies in its place in the output already.
    Codes {
        rules: ChannelRules<'m>,
        residual: Option<AddRequantizer>,
    },
    /// Stored as they are, little-endian `i32`.
    Logits,
}

/// A layer's requantization: [`Requantizer`]s that differ in the multiplier only.
pub(crate) struct ChannelRules<'m> {
    /// `[rows]`
    pub(crate) multiplier: I32Array<'m>,
    pub(crate) shift: u8,
    pub(crate) zero_point: i8,
    pub(crate) min: i8,
    pub(crate) max: i8,
}

impl<'m> ChannelRules<'m> {
    fn new(model: &Model<'m>, requantize: &Requantize, rows: usize, zero_point: i8) -> Self {
        ChannelRules {
            multiplier: model.multiplier(requantize, rows),
            shift: requantize.shift,
            zero_point,
            min: requantize.min,
            max: requantize.max,
        }
    }

    /// The rule of one output channel.
    #[inline]
    pub(crate) fn rule(&self, multiplier: i32) -> Requantizer {
        Requantizer {
            multiplier,
            shift: self.shift,
            zero_point: self.zero_point,
            min: self.min,
            max: self.max,
        }
    }
}

/// Where a window lies along one axis, with what padding cuts off left out.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// First position inside the input.
    pub(crate) start: usize,
    /// First kernel tap inside the input.
    #[cfg_attr(adcorda_isa = "dsp", expect(dead_code, reason = "kernels there count taps themselves"))]
    pub(crate) tap: usize,
    /// Taps inside the input.
    pub(crate) len: usize,
}

impl Span {
    /// The `index`-th window of `kernel` taps over `size` positions.
    #[inline]
    pub(crate) fn new(index: usize, stride: u8, pad: u8, kernel: u8, size: usize) -> Self {
        let (begin, pad) = (index * usize::from(stride), usize::from(pad));
        let tap = pad.saturating_sub(begin);
        let end = usize::from(kernel).min((size + pad).saturating_sub(begin));
        Span {
            start: begin.saturating_sub(pad),
            tap,
            len: end.saturating_sub(tap),
        }
    }
}
