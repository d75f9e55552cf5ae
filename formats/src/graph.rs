//! The integer graph: what a model computes, as data.
//!
//! Layer `i` reads tensors with numbers up to `i` and writes tensor `i + 1`; tensor 0 is the input image after the
//! input table. All sizes are elements or bytes as named; `offset`s of weights, biases and tables count from the start
//! of the weights section, `offset`s of tensors from the start of the arena. `FORMAT.md` is normative.

use serde::{Deserialize, Serialize};

use crate::packing::{Order, Packing};

/// Number of a tensor: 0 is the network's input, `i + 1` is the output of layer `i`.
pub type TensorId = u8;

/// Bits a weight takes in the file, and the set of values it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Width {
    /// Binary: -1 or +1, one bit (1 means +1).
    W1,
    /// Ternary: -1, 0 or +1, two bits in two's complement (0b10 is invalid).
    W2,
    /// -8 to 7, four bits in two's complement.
    W4,
    /// -127 to 127, eight bits in two's complement (-128 is invalid).
    W8,
}

impl Width {
    /// Every width, narrowest first.
    pub const ALL: [Width; 4] = [Width::W1, Width::W2, Width::W4, Width::W8];

    /// Bits of one packed weight.
    pub const fn bits(self) -> u32 {
        match self {
            Width::W1 => 1,
            Width::W2 => 2,
            Width::W4 => 4,
            Width::W8 => 8,
        }
    }

    /// Largest magnitude of a code: 1, 1, 8, 127.
    pub const fn max_magnitude(self) -> i32 {
        match self {
            Width::W1 | Width::W2 => 1,
            Width::W4 => 8,
            Width::W8 => 127,
        }
    }

    /// `w1`, `w2`, `w4`, `w8`: the name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Width::W1 => "w1",
            Width::W2 => "w2",
            Width::W4 => "w4",
            Width::W8 => "w8",
        }
    }
}

/// The real value of one quantization step, as the bits of an IEEE-754 single.
///
/// Carried for people and for tools on the host; the runtime never computes with it, so that no float reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale(pub u32);

impl Scale {
    /// From a real value. Must be finite and positive to pass [`Model::parse`](crate::Model::parse).
    pub const fn from_f32(value: f32) -> Self {
        Scale(value.to_bits())
    }

    /// The real value.
    pub const fn to_f32(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// Element type of a tensor in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Element {
    /// Activations, `real = scale * (q - zero_point)`.
    I8,
    /// Logits only: the accumulators of the last linear layer, `real = scale * q`, little-endian, 4-byte aligned offset.
    I32,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Element::I8 => 1,
            Element::I32 => 4,
        }
    }
}

/// One activation tensor, NHWC with N = 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
    /// Channels, innermost.
    pub channels: u16,
    /// Element type.
    pub element: Element,
    /// The code that means real zero; 0 for `I32`.
    pub zero_point: i8,
    /// Real value of one step.
    pub scale: Scale,
    /// First byte in the arena.
    pub offset: u32,
}

impl Tensor {
    /// Elements: height x width x channels.
    pub const fn elements(&self) -> usize {
        self.height as usize * self.width as usize * self.channels as usize
    }

    /// Bytes in the arena.
    pub const fn bytes(&self) -> usize {
        self.elements() * self.element.bytes()
    }
}

/// Kernel size, stride and explicit padding of a sliding window. Padding is part of no tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Kernel rows, at least 1.
    pub kernel_height: u8,
    /// Kernel columns, at least 1.
    pub kernel_width: u8,
    /// Vertical step, at least 1.
    pub stride_height: u8,
    /// Horizontal step, at least 1.
    pub stride_width: u8,
    /// Rows added above; less than `kernel_height`.
    pub pad_top: u8,
    /// Rows added below; less than `kernel_height`.
    pub pad_bottom: u8,
    /// Columns added left; less than `kernel_width`.
    pub pad_left: u8,
    /// Columns added right; less than `kernel_width`.
    pub pad_right: u8,
}

impl Window {
    /// 1x1, at stride 1.
    pub const POINT: Window = Window {
        kernel_height: 1,
        kernel_width: 1,
        stride_height: 1,
        stride_width: 1,
        pad_top: 0,
        pad_bottom: 0,
        pad_left: 0,
        pad_right: 0,
    };

    /// Kernel rows x kernel columns.
    pub const fn positions(&self) -> usize {
        self.kernel_height as usize * self.kernel_width as usize
    }

    /// Output (height, width) for an input of `height` x `width`, or `None` where the kernel does not fit.
    pub const fn output(&self, height: usize, width: usize) -> Option<(usize, usize)> {
        let h = height + self.pad_top as usize + self.pad_bottom as usize;
        let w = width + self.pad_left as usize + self.pad_right as usize;
        if self.stride_height == 0
            || self.stride_width == 0
            || h < self.kernel_height as usize
            || w < self.kernel_width as usize
        {
            return None;
        }
        Some((
            (h - self.kernel_height as usize) / self.stride_height as usize + 1,
            (w - self.kernel_width as usize) / self.stride_width as usize + 1,
        ))
    }
}

/// Where a layer's packed weights and per-channel parameters lie in the weights section.
///
/// Weights are `rows` rows of `k` codes, OHWI (for depthwise: one row of kh x kw codes a channel), in the order of
/// [`Packing`](crate::Packing). `bias` is `i32[rows]`, already holding `- zero_point_in * sum(w)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// Bits a weight.
    pub width: Width,
    /// First byte of the packed weights, a multiple of 16.
    pub offset: u32,
    /// First byte of `bias: i32[rows]`, little-endian, a multiple of 4.
    pub bias: u32,
}

/// Per-channel requantization and the fused activation of an `I8` output.
///
/// `y = clamp(zero_point_out + ((acc * multiplier[c] + (1 << (shift - 1))) >> shift), min, max)`, in 64 bits. With a shift of
/// 32 that is the upper half of a rounded product, one instruction on most cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requantize {
    /// First byte of `multiplier: i32[rows]`, any; negative where BatchNorm's gamma is. Little-endian, a multiple of 4.
    pub multiplier: u32,
    /// 1 to 62, one for all channels; 32 unless a multiplier would not fit.
    pub shift: u8,
    /// Lower end of the clamp (the zero point for a ReLU).
    pub min: i8,
    /// Upper end of the clamp.
    pub max: i8,
}

/// A residual addition in the epilogue of a convolution: what an [`Op::Add`] of the convolution's codes and of a second tensor
/// gives, bit for bit, without the codes in between.
///
/// `y = clamp(zp_out + (((v - zero_point) * mul_conv + (r - zp_r) * mul_residual + (1 << (shift - 1))) >> shift), min, max)`, in 32
/// bits, where `v` is the requantized accumulator and `r` the element of the residual tensor at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residual {
    /// The tensor added, of the output's shape.
    pub input: TensorId,
    /// Code of real zero of the convolution's own codes: `zero_point_out` in its requantization.
    pub zero_point: i8,
    /// Multiplier of the convolution's codes, 0 to 32767.
    pub mul_conv: i16,
    /// Multiplier of the residual, 0 to 32767.
    pub mul_residual: i16,
    /// 1 to 30.
    pub shift: u8,
    /// Lower end of the clamp.
    pub min: i8,
    /// Upper end of the clamp.
    pub max: i8,
}

/// One operation. Closed on purpose: a new variant must be handled everywhere. Append-only on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// 2-D convolution. Padding reads as the input's zero point.
    Conv2d {
        /// Input tensor.
        input: TensorId,
        /// Sliding window.
        window: Window,
        /// Weights `[c_out, kh, kw, c_in]`.
        weights: Weights,
        /// Output requantization.
        requantize: Requantize,
        /// Residual addition after it.
        residual: Option<Residual>,
    },
    /// Depthwise 2-D convolution, channel multiplier 1.
    DepthwiseConv2d {
        /// Input tensor.
        input: TensorId,
        /// Sliding window.
        window: Window,
        /// Weights `[c, kh, kw]`.
        weights: Weights,
        /// Output requantization.
        requantize: Requantize,
    },
    /// Fully connected layer over the flattened (HWC) input, with an `I8` output.
    Linear {
        /// Input tensor.
        input: TensorId,
        /// Weights `[c_out, h * w * c_in]`.
        weights: Weights,
        /// Output requantization.
        requantize: Requantize,
    },
    /// The last layer: fully connected, weights quantized per tensor, so that the accumulators are comparable logits and no
    /// rounding can tie two classes that they tell apart.
    Logits {
        /// Input tensor.
        input: TensorId,
        /// Weights `[classes, h * w * c_in]`.
        weights: Weights,
    },
    /// Elementwise sum of two tensors of one shape:
    /// `y = clamp(zp_out + (((a - zp_a) * mul_a + (b - zp_b) * mul_b + (1 << (shift - 1))) >> shift), min, max)`, in 32 bits.
    Add {
        /// First input.
        a: TensorId,
        /// Second input.
        b: TensorId,
        /// Multiplier of the first input, 0 to 32767.
        mul_a: i16,
        /// Multiplier of the second input, 0 to 32767.
        mul_b: i16,
        /// 1 to 30.
        shift: u8,
        /// Lower end of the clamp.
        min: i8,
        /// Upper end of the clamp.
        max: i8,
    },
    /// Largest code in each window; padding is left out. Input and output share scale and zero point.
    MaxPool {
        /// Input tensor.
        input: TensorId,
        /// Sliding window.
        window: Window,
    },
    /// Mean of each window; padding counts as real zero. The divisor is part of the multiplier:
    /// `y = clamp(zp_out + ((sum(x - zp_in) * multiplier + (1 << (shift - 1))) >> shift), -128, 127)`, in 64 bits.
    /// Global average pooling is a window as large as the input.
    AvgPool {
        /// Input tensor.
        input: TensorId,
        /// Sliding window.
        window: Window,
        /// Q31, 2^30 to 2^31 - 1.
        multiplier: i32,
        /// 1 to 62.
        shift: u8,
    },
    /// Every `stride`-th row and column, with zero channels added before and after: the parameter-free shortcut of the CIFAR
    /// ResNets (option A). Input and output share scale and zero point; added channels hold the zero point.
    Subsample {
        /// Input tensor.
        input: TensorId,
        /// Step in both directions, at least 1. Output size is `ceil(input / stride)`.
        stride: u8,
        /// Zero channels before.
        channels_before: u16,
        /// Zero channels after.
        channels_after: u16,
    },
}

impl Op {
    /// The tensors that it reads: two for [`Op::Add`] (which may be the same) and for a convolution with a residual, one
    /// otherwise.
    pub fn inputs(&self) -> impl Iterator<Item = TensorId> + use<> {
        let (first, second) = match *self {
            Op::Conv2d { input, residual, .. } => (input, residual.map(|residual| residual.input)),
            Op::DepthwiseConv2d { input, .. }
            | Op::Linear { input, .. }
            | Op::Logits { input, .. }
            | Op::MaxPool { input, .. }
            | Op::AvgPool { input, .. }
            | Op::Subsample { input, .. } => (input, None),
            Op::Add { a, b, .. } => (a, Some(b)),
        };
        core::iter::once(first).chain(second)
    }

    /// Its sliding window, if it has one.
    pub const fn window(&self) -> Option<&Window> {
        match self {
            Op::Conv2d { window, .. }
            | Op::DepthwiseConv2d { window, .. }
            | Op::MaxPool { window, .. }
            | Op::AvgPool { window, .. } => Some(window),
            Op::Linear { .. } | Op::Logits { .. } | Op::Add { .. } | Op::Subsample { .. } => None,
        }
    }

    /// Its weights, if it has any.
    pub const fn weights(&self) -> Option<&Weights> {
        match self {
            Op::Conv2d { weights, .. }
            | Op::DepthwiseConv2d { weights, .. }
            | Op::Linear { weights, .. }
            | Op::Logits { weights, .. } => Some(weights),
            Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => None,
        }
    }

    /// The tensor whose bytes its output may take over, element by element: those of a residual or of an addition's inputs.
    pub fn may_overwrite(&self, input: TensorId) -> bool {
        match *self {
            Op::Add { a, b, .. } => input == a || input == b,
            Op::Conv2d {
                input: x,
                residual: Some(residual),
                ..
            } => input == residual.input && input != x,
            Op::Conv2d { .. }
            | Op::DepthwiseConv2d { .. }
            | Op::Linear { .. }
            | Op::Logits { .. }
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::Subsample { .. } => false,
        }
    }

    /// Its per-channel requantization, if it has one.
    pub const fn requantize(&self) -> Option<&Requantize> {
        match self {
            Op::Conv2d { requantize, .. } | Op::DepthwiseConv2d { requantize, .. } | Op::Linear { requantize, .. } => {
                Some(requantize)
            }
            Op::Logits { .. } | Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => None,
        }
    }

    /// How its weights are packed, `None` where there are none. `input` and `output` are the tensors it reads and writes.
    pub const fn packing(&self, input: &Tensor, output: &Tensor) -> Option<Packing> {
        match (self.rows_and_k(input, output), self.weights()) {
            (Some((rows, k)), Some(weights)) => Some(Packing {
                order: match self {
                    Op::DepthwiseConv2d { .. } => Order::Channels,
                    Op::Conv2d { .. }
                    | Op::Linear { .. }
                    | Op::Logits { .. }
                    | Op::Add { .. }
                    | Op::MaxPool { .. }
                    | Op::AvgPool { .. }
                    | Op::Subsample { .. } => Order::Blocks,
                },
                width: weights.width,
                rows,
                k,
            }),
            _ => None,
        }
    }

    /// Rows of weights and codes in a row, `None` where there are no weights. `input` and `output` are the tensors it reads and
    /// writes.
    ///
    /// Conv2d: `(c_out, kh * kw * c_in)`; DepthwiseConv2d: `(c, kh * kw)`; Linear and Logits: `(c_out, h * w * c_in)`.
    pub const fn rows_and_k(&self, input: &Tensor, output: &Tensor) -> Option<(usize, usize)> {
        let rows = output.channels as usize;
        match self {
            Op::Conv2d { window, .. } => Some((rows, window.positions() * input.channels as usize)),
            Op::DepthwiseConv2d { window, .. } => Some((rows, window.positions())),
            Op::Linear { .. } | Op::Logits { .. } => Some((rows, input.elements())),
            Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => None,
        }
    }

    /// Multiply-accumulates of one inference, padding included: what the layer's weights take part in. 0 without weights.
    pub const fn macs(&self, input: &Tensor, output: &Tensor) -> u64 {
        match self.rows_and_k(input, output) {
            Some((_, k)) => output.elements() as u64 * k as u64,
            None => 0,
        }
    }

    /// The kind of operation, in words: `conv2d`, `depthwise_conv2d`, `linear`, `logits`, `add`, `max_pool`, `avg_pool`,
    /// `subsample`.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Conv2d { .. } => "conv2d",
            Op::DepthwiseConv2d { .. } => "depthwise_conv2d",
            Op::Linear { .. } => "linear",
            Op::Logits { .. } => "logits",
            Op::Add { .. } => "add",
            Op::MaxPool { .. } => "max_pool",
            Op::AvgPool { .. } => "avg_pool",
            Op::Subsample { .. } => "subsample",
        }
    }
}

/// A named operation. Borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer<'a> {
    /// The name it has in the trained network, e.g. `layer1.0.conv1`.
    pub name: &'a str,
    /// What it computes.
    pub op: Op,
    /// Working space that it may use.
    pub scratch: Scratch,
}

/// A range of the arena that one layer may use as it likes: it overlaps no tensor in use during the layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// First byte in the arena.
    pub offset: u32,
    /// At least `k` for a layer with weights: one unpacked row. Fast kernels want more, see `FORMAT.md`.
    pub bytes: u32,
}

/// Where the model comes from, as text for people. Empty strings where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance<'a> {
    /// Data set, e.g. `cifar10`.
    pub data: &'a str,
    /// How the weights came about, e.g. `ptq`, `qat`, `adcorda`.
    pub method: &'a str,
    /// Seed of the run.
    pub seed: u64,
    /// Top-1 on the data's test set in hundredths of a per cent, 0 to 10000; 65535 where not measured.
    pub top1: u16,
}
