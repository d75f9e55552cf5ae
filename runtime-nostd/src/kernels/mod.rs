//! Operators, one file each, over plain slices.
//!
//! A kernel owns the geometry (windows, padding, channel order) and the order of work; the arithmetic inside a row of codes
//! is [`crate::isa`]'s, the step from accumulator to code [`crate::requantize`]'s. Codes are `u8` with the bits of an `i8`.
//!
//! Shapes, strides and weight counts fit together because [`Model::parse`](adcorda_formats::Model::parse) checked them;
//! so do the bounds that keep every 32-bit accumulator from overflowing. Accumulation is written with wrapping operations:
//! not because sums wrap, but so that no build pays for a check per multiply.

mod add;
mod avg_pool;
mod conv2d;
mod depthwise_conv2d;
mod input_table;
mod linear;
mod max_pool;
mod subsample;

pub(crate) use add::add;
pub(crate) use avg_pool::avg_pool;
pub(crate) use conv2d::conv2d;
pub(crate) use depthwise_conv2d::depthwise_conv2d;
pub(crate) use input_table::input_table;
pub(crate) use linear::{linear, logits};
pub(crate) use max_pool::max_pool;
pub(crate) use subsample::subsample;

use adcorda_formats::{I32Array, Model, Requantize, Tensor, Weights, Width};

use crate::requantize::Requantizer;

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

/// A layer's packed weights and biases, one row an output channel.
pub(crate) struct ChannelWeights<'m> {
    pub(crate) width: Width,
    /// Codes in a row.
    pub(crate) k: usize,
    packed: &'m [u8],
    row_bytes: usize,
    bias: I32Array<'m>,
}

impl<'m> ChannelWeights<'m> {
    /// `rows` rows of `k` codes each.
    pub(crate) fn new(model: &Model<'m>, weights: &Weights, (rows, k): (usize, usize)) -> Self {
        ChannelWeights {
            width: weights.width,
            k,
            packed: model.rows(weights, rows, k),
            // At least 1, so that splitting an (impossible) empty row cannot panic.
            row_bytes: weights.width.row_bytes(k).max(1),
            bias: model.bias(weights, rows),
        }
    }

    /// Packed row and bias of every output channel, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'m [u8], i32)> {
        self.packed.chunks_exact(self.row_bytes).zip(self.bias.iter())
    }
}

/// A layer's requantization, one rule an output channel.
pub(crate) struct ChannelRules<'m> {
    multiplier: I32Array<'m>,
    shift: &'m [u8],
    zero_point: i8,
    min: i8,
    max: i8,
}

impl<'m> ChannelRules<'m> {
    /// For the output `y`.
    pub(crate) fn new(model: &Model<'m>, requantize: &Requantize, y: &Tensor) -> Self {
        let channels = usize::from(y.channels);
        ChannelRules {
            multiplier: model.multiplier(requantize, channels),
            shift: model.shift(requantize, channels),
            zero_point: y.zero_point,
            min: requantize.min,
            max: requantize.max,
        }
    }

    /// The rule of every output channel, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Requantizer> {
        self.multiplier
            .iter()
            .zip(self.shift)
            .map(|(multiplier, &shift)| Requantizer {
                multiplier,
                shift,
                zero_point: self.zero_point,
                min: self.min,
                max: self.max,
            })
    }
}

/// Where a window lies along one axis, with what padding cuts off left out.
#[derive(Clone, Copy)]
struct Span {
    /// First position inside the input.
    start: usize,
    /// First kernel tap inside the input.
    tap: usize,
    /// Taps inside the input.
    len: usize,
}

impl Span {
    /// The `index`-th window of `kernel` taps over `size` positions.
    #[inline]
    fn new(index: usize, stride: u8, pad: u8, kernel: u8, size: usize) -> Self {
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
