//! From a quantized network to integer operations.
//!
//! All constants are computed here once, in double precision; the runtime only multiplies, adds and shifts. A layer with
//! weights computes, for output channel `c` and real scales `s`,
//!
//! `y / s_out = (gain * (s_in * s_w * sum((x - zp_in) * w) + b - mean) + beta) / s_out`, where
//! `gain = gamma / sqrt(variance + epsilon)`
//!
//! which is `M * (sum(x * w) + bias)` with `M = s_in * s_w * gain / s_out` and
//! `bias = (b - mean + beta / gain) / (s_in * s_w) - zp_in * sum(w)`. So BatchNorm takes part in `M` and `bias` only and the
//! low-bit codes stay what they are. `M` is negative where gamma is. Without BatchNorm, `gain` is 1.
//!
//! # Source
//! Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
//! sections 2.2 to 2.4; here BatchNorm is folded into multiplier and bias instead of the weights.

use std::borrow::Cow;

use adcorda_formats::{
    Element, Layer as IntegerLayer, MAX_CLASSES, MAX_LAYERS, Op as IntegerOp, Order, PackError, Provenance, Requantize, Scale,
    Scratch, Section, Tensor, TensorId, Weights, Width,
};

use crate::checkpoint::Checkpoint;
use crate::network::{Layer, Normalization, Op, Shape};
use crate::quantize::weights::quantize_rows;
use crate::quantize::{ActivationQuantizer, WeightQuantizer};
use crate::state_dict::StateDict;
use crate::{Error, ErrorKind, Result};

/// A network as integers; only the arena is not planned yet.
#[derive(Clone, Debug)]
pub struct Lowered<'a> {
    /// The input, then the output of each layer; all at offset 0.
    pub tensors: Vec<Tensor>,
    /// In the order in which they run; without scratch.
    pub layers: Vec<IntegerLayer<'a>>,
    /// Weights and tables.
    pub section: Section,
    /// Where the input table lies in the section.
    pub input_table: u32,
    /// One a class.
    pub labels: Cow<'a, [String]>,
    /// Where the weights come from.
    pub provenance: Provenance<'a>,
    /// Channels whose value does not depend on the image, by layer name.
    pub constant_channels: Vec<(String, usize)>,
}

/// Lowers a quantized checkpoint.
///
/// # Errors
/// [`ErrorKind::Model`] where it is not quantized or needs more than the format has, naming the layer;
/// [`ErrorKind::Weights`] where weights or quantization do not fit the network or are not finite.
pub fn lower(checkpoint: &Checkpoint) -> Result<Lowered<'_>> {
    let network = &checkpoint.network;
    let fail = |what: String| Error::new(ErrorKind::Model, format!("network {}: {what}", network.name));
    let Some(quantization) = &checkpoint.quantization else {
        return Err(fail("it is not quantized".into()).remedy("run `adcorda quantize CKPT --weights w4 --data SET -o CKPT`"));
    };
    if network.layers.len() > MAX_LAYERS {
        return Err(fail(format!(
            "it has {} layers, a model file holds {MAX_LAYERS}",
            network.layers.len()
        )));
    }
    if network.classes() > MAX_CLASSES {
        return Err(fail(format!(
            "it has {} classes, a model file holds {MAX_CLASSES}",
            network.classes()
        )));
    }
    let shapes = network.shapes()?;
    checkpoint.state.check(network)?;
    quantization.check(network)?;
    if quantization.activations.is_empty() {
        return Err(fail("its weights are quantized, its activations are not".into())
            .remedy("run `adcorda quantize` on the checkpoint; it calibrates the activations"));
    }
    let labels = labels(&checkpoint.labels, network.classes()).map_err(fail)?;

    let mut section = Section::new();
    let table = input_table(&network.normalization, network.input.channels, &quantization.activations[0]);
    let input_table = section.push_table(&table);
    let input = tensor(network.input, quantization.activations[0]).map_err(|what| fail(format!("input image: {what}")))?;
    let mut lowering = Lowering {
        state: &checkpoint.state,
        shapes: &shapes,
        tensors: vec![input],
        section,
        constant_channels: Vec::new(),
    };
    let mut layers = Vec::with_capacity(network.layers.len());
    for (index, layer) in network.layers.iter().enumerate() {
        let fail = |what: String| Error::new(ErrorKind::Model, format!("layer {index} \"{}\": {what}", layer.name));
        let last = index + 1 == network.layers.len();
        if !last && !network.layers[index + 1..].iter().any(|l| l.inputs.contains(&(index + 1))) {
            return Err(fail("no layer reads its output".into()).remedy("leave the layer out of the network"));
        }
        let weights = quantization.weights[index].as_ref();
        let op = lowering
            .layer(layer, weights, quantization.activations[index + 1], last)
            .map_err(fail)?;
        layers.push(IntegerLayer {
            name: &layer.name,
            op,
            scratch: Scratch::default(),
        });
    }
    let provenance = &checkpoint.provenance;
    Ok(Lowered {
        tensors: lowering.tensors,
        layers,
        section: lowering.section,
        input_table,
        labels,
        provenance: Provenance {
            data: &provenance.data,
            method: &provenance.method,
            seed: provenance.seed,
            top1: match provenance.top1 {
                Some(percent) if (0.0..=100.0).contains(&percent) => (f64::from(percent) * 100.0).round() as u16,
                Some(_) | None => u16::MAX,
            },
        },
        constant_channels: lowering.constant_channels,
    })
}

/// What is wrong with a layer; the caller knows its name.
type Outcome<T> = Result<T, String>;

struct Lowering<'a> {
    state: &'a StateDict,
    /// Of every value of the network.
    shapes: &'a [Shape],
    /// Of the values so far.
    tensors: Vec<Tensor>,
    section: Section,
    constant_channels: Vec<(String, usize)>,
}

impl Lowering<'_> {
    /// Lowers the next layer and adds its output tensor, which `quantizer` is for.
    fn layer(
        &mut self,
        layer: &Layer,
        weights: Option<&WeightQuantizer>,
        quantizer: ActivationQuantizer,
        last: bool,
    ) -> Outcome<IntegerOp> {
        let shape = self.shapes[self.tensors.len()];
        let input = self.tensors[layer.inputs[0]];
        let input_id = layer.inputs[0] as TensorId;
        let mut output = match layer.op {
            // These only move codes: they keep their input's quantizer, whatever was calibrated for them.
            Op::MaxPool { .. } | Op::Subsample { .. } => Tensor {
                zero_point: input.zero_point,
                scale: input.scale,
                ..tensor(shape, quantizer)?
            },
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } | Op::Add { .. } | Op::AvgPool { .. } => {
                tensor(shape, quantizer)?
            }
        };
        let (min, max) = (if layer.op.relu() { output.zero_point } else { i8::MIN }, i8::MAX);
        let ratio = scale(&input) / scale(&output);
        let op = match layer.op {
            Op::Conv2d { window, .. } => {
                let rows = self.rows(layer, weights)?;
                let (weights, requantize) = self.weighted(layer, rows, &input, &output, (min, max))?;
                IntegerOp::Conv2d {
                    input: input_id,
                    window,
                    weights,
                    requantize,
                    residual: None,
                }
            }
            Op::DepthwiseConv2d { window, .. } => {
                let rows = self.rows(layer, weights)?;
                let (weights, requantize) = self.weighted(layer, rows, &input, &output, (min, max))?;
                IntegerOp::DepthwiseConv2d {
                    input: input_id,
                    window,
                    weights,
                    requantize,
                }
            }
            Op::Linear { .. } if last => {
                let rows = self.rows(layer, weights)?;
                let (weights, scale) = self.logits(layer, rows, &input)?;
                output = Tensor {
                    element: Element::I32,
                    zero_point: 0,
                    scale,
                    ..output
                };
                IntegerOp::Logits {
                    input: input_id,
                    weights,
                }
            }
            Op::Linear { .. } => {
                let rows = self.rows(layer, weights)?;
                let (weights, requantize) = self.weighted(layer, rows, &input, &output, (min, max))?;
                IntegerOp::Linear {
                    input: input_id,
                    weights,
                    requantize,
                }
            }
            Op::Add { .. } => {
                let other = self.tensors[layer.inputs[1]];
                let (mul_a, mul_b, shift) = add_multipliers(ratio, scale(&other) / scale(&output))?;
                IntegerOp::Add {
                    a: input_id,
                    b: layer.inputs[1] as TensorId,
                    mul_a,
                    mul_b,
                    shift,
                    min,
                    max,
                }
            }
            Op::MaxPool { window } => IntegerOp::MaxPool { input: input_id, window },
            Op::AvgPool { window } => {
                let (multiplier, shift) = q31(ratio / window.positions() as f64)
                    .ok_or_else(|| format!("its input's scale is {ratio:e} times its output's, which is out of range"))?;
                IntegerOp::AvgPool {
                    input: input_id,
                    window,
                    multiplier,
                    shift,
                }
            }
            Op::Subsample {
                stride,
                channels_before,
                channels_after,
            } => IntegerOp::Subsample {
                input: input_id,
                stride: u8::try_from(stride).map_err(|_| format!("its stride is {stride}, a model file holds {}", u8::MAX))?,
                // Its output's channels fit, so these do.
                channels_before: channels_before as u16,
                channels_after: channels_after as u16,
            },
        };
        self.tensors.push(output);
        Ok(op)
    }

    /// The layer's codes in the runtime's layout.
    fn rows(&mut self, layer: &Layer, quantizer: Option<&WeightQuantizer>) -> Outcome<Rows> {
        let quantizer = quantizer.ok_or("its weights are not quantized")?;
        let weights = self.values(&format!("{}.weight", layer.name))?;
        let quantized = quantize_rows(weights, quantizer);
        let k = weights.row_len();
        let input = self.shapes[layer.inputs[0]];
        let codes = match &layer.op {
            Op::Conv2d { window, .. } => channels_innermost(&quantized.codes, input.channels, window.positions()),
            Op::Linear { .. } => channels_innermost(&quantized.codes, input.channels, input.height * input.width),
            Op::DepthwiseConv2d { .. } | Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => {
                quantized.codes
            }
        };
        let largest_sum = k as i64 * 128 * i64::from(quantizer.width.max_magnitude());
        if largest_sum > i64::from(i32::MAX) {
            return Err(format!(
                "a sum of {k} products of {} weights does not fit 32 bits",
                quantizer.width.name()
            ));
        }
        Ok(Rows {
            order: match layer.op {
                Op::DepthwiseConv2d { .. } => Order::Channels,
                Op::Conv2d { .. }
                | Op::Linear { .. }
                | Op::Add { .. }
                | Op::MaxPool { .. }
                | Op::AvgPool { .. }
                | Op::Subsample { .. } => Order::Blocks,
            },
            width: quantizer.width,
            k,
            codes,
            scales: quantized.scales,
            bias_limit: i64::from(i32::MAX) - largest_sum,
        })
    }

    /// Folds and appends a layer with an int8 output.
    fn weighted(
        &mut self,
        layer: &Layer,
        mut rows: Rows,
        input: &Tensor,
        output: &Tensor,
        (min, max): (i8, i8),
    ) -> Outcome<(Weights, Requantize)> {
        let affine = self.affine(layer)?;
        let rules: Vec<ChannelRule> = affine
            .iter()
            .enumerate()
            .map(|(channel, &(gain, offset))| ChannelRule {
                multiplier: scale(input) * f64::from(rows.scale(channel)) / scale(output) * gain,
                constant: offset / scale(output),
                zero_point_in: i64::from(input.zero_point),
                lowest: f64::from(min) - f64::from(output.zero_point),
                highest: f64::from(max) - f64::from(output.zero_point),
                bias_limit: rows.bias_limit,
            })
            .collect();
        let named = |channel: usize, what: String| format!("output channel {channel}: {what}");
        if let Some(channel) = rules.iter().position(|rule| fixed_point(rule.multiplier, 1).is_none()) {
            let multiplier = rules[channel].multiplier;
            let what = format!("its multiplier is {multiplier:e}, which is out of range: its output's scale is too small");
            return Err(named(channel, what));
        }
        let channels: Vec<(f64, f64)> = rules
            .iter()
            .enumerate()
            .map(|(channel, rule)| (rule.multiplier, rule.reach(rows.row(channel))))
            .collect();
        let shift = layer_shift(&channels);
        let (mut biases, mut multipliers) = (Vec::new(), Vec::new());
        for (channel, rule) in rules.iter().enumerate() {
            let folded = rule.fold(rows.row(channel), shift).map_err(|what| named(channel, what))?;
            if folded.is_constant {
                rows.clear(channel);
                self.constant_channels.push((layer.name.clone(), channel));
            }
            biases.push(folded.bias);
            multipliers.push(folded.multiplier);
        }
        let weights = Weights {
            width: rows.width,
            offset: self.push(&rows)?,
            bias: self.section.push_i32s(&biases),
        };
        let requantize = Requantize {
            multiplier: self.section.push_i32s(&multipliers),
            shift,
            min,
            max,
        };
        Ok((weights, requantize))
    }

    /// Appends the last layer; gives its output's scale, too.
    fn logits(&mut self, layer: &Layer, rows: Rows, input: &Tensor) -> Outcome<(Weights, Scale)> {
        let [scale_w] = rows.scales[..] else {
            return Err(
                "the last layer has a scale for each class, so its sums cannot be compared: quantize it per tensor".into(),
            );
        };
        let step = scale(input) * f64::from(scale_w);
        let affine = self.affine(layer)?;
        let mut biases = Vec::new();
        for (class, &(_, offset)) in affine.iter().enumerate() {
            let folded = (offset / step).round_ties_even() - f64::from(input.zero_point) * rows.sum(class) as f64;
            if folded.abs() > rows.bias_limit as f64 {
                return Err(format!(
                    "the bias of class {class} is {folded:e} weight steps, too many for 32 bits: the weights are next to nothing \
                     beside it"
                ));
            }
            biases.push(folded as i32);
        }
        let output_scale = step as f32;
        if !(output_scale.is_finite() && output_scale > 0.0) {
            return Err(format!("its logits have a scale of {step:e}, which is out of range"));
        }
        let weights = Weights {
            width: rows.width,
            offset: self.push(&rows)?,
            bias: self.section.push_i32s(&biases),
        };
        Ok((weights, Scale::from_f32(output_scale)))
    }

    fn push(&mut self, rows: &Rows) -> Outcome<u32> {
        self.section
            .push_rows(rows.order, rows.width, &rows.codes, rows.k)
            .map_err(|cause: PackError| cause.to_string())
    }

    /// `(gain, offset)` of each output channel: BatchNorm and bias as `gain * convolution + offset`.
    fn affine(&self, layer: &Layer) -> Outcome<Vec<(f64, f64)>> {
        let name = &layer.name;
        let rows = self.values(&format!("{name}.weight"))?.rows();
        let bias = match layer.op.has_bias() {
            true => self.values(&format!("{name}.bias"))?.values.clone(),
            false => vec![0.0; rows],
        };
        let Some(norm) = layer.op.batch_norm() else {
            return Ok(bias.iter().map(|&b| (1.0, f64::from(b))).collect());
        };
        let part = |part: &str| Ok::<_, String>(&self.values(&format!("{}.{part}", norm.name))?.values);
        let (gamma, beta) = (part("weight")?, part("bias")?);
        let (mean, variance) = (part("running_mean")?, part("running_var")?);
        (0..rows)
            .map(|c| {
                let deviation = (f64::from(variance[c]) + f64::from(norm.epsilon)).sqrt();
                let gain = f64::from(gamma[c]) / deviation;
                let offset = f64::from(beta[c]) + (f64::from(bias[c]) - f64::from(mean[c])) * gain;
                if gain.is_finite() && offset.is_finite() {
                    Ok((gain, offset))
                } else {
                    Err(format!(
                        "output channel {c}: BatchNorm \"{}\" divides by {deviation} (variance {}, epsilon {})",
                        norm.name, variance[c], norm.epsilon
                    ))
                }
            })
            .collect()
    }

    fn values(&self, name: &str) -> Outcome<&crate::state_dict::Array> {
        self.state.get(name).map_err(|missing| missing.to_string())
    }
}

/// A layer's codes, OHWI, and their scales.
struct Rows {
    order: Order,
    width: Width,
    k: usize,
    codes: Vec<i8>,
    /// One a row, or one for all.
    scales: Vec<f32>,
    /// Largest magnitude of a bias: beside the largest sum of products it still fits 32 bits.
    bias_limit: i64,
}

impl Rows {
    fn row(&self, row: usize) -> &[i8] {
        &self.codes[row * self.k..][..self.k]
    }

    fn sum(&self, row: usize) -> i64 {
        self.row(row).iter().map(|&code| i64::from(code)).sum()
    }

    fn scale(&self, row: usize) -> f32 {
        self.scales[if self.scales.len() == 1 { 0 } else { row }]
    }

    /// Zeroes a row; a binary one keeps its weights, for it has no zero.
    fn clear(&mut self, row: usize) {
        match self.width {
            Width::W1 => {}
            Width::W2 | Width::W4 | Width::W8 => self.codes[row * self.k..][..self.k].fill(0),
        }
    }
}

/// What an output channel computes, in real numbers: `code - zero_point_out = multiplier * sum((x - zp_in) * w) + constant`.
struct ChannelRule {
    multiplier: f64,
    constant: f64,
    zero_point_in: i64,
    /// Ends of the clamp, less the output's zero point.
    lowest: f64,
    highest: f64,
    bias_limit: i64,
}

/// The same in integers, over the layer's shift.
#[derive(Debug, PartialEq, Eq)]
struct FoldedChannel {
    bias: i32,
    multiplier: i32,
    /// The weights take no part: they are to be zeroed where the width has a zero.
    is_constant: bool,
}

impl ChannelRule {
    fn fold(&self, row: &[i8], shift: u8) -> Outcome<FoldedChannel> {
        let sum: i64 = row.iter().map(|&w| i64::from(w)).sum();
        let multiplier = fixed_point(self.multiplier, shift).ok_or("its multiplier is out of range")?;
        // With the multiplier as it is rounded, so that no part of the constant is lost with the rest of it.
        let bias = (self.constant / (f64::from(multiplier) / 2f64.powi(shift.into()))).round_ties_even();
        let bias = bias - (self.zero_point_in * sum) as f64;
        if multiplier != 0 && bias.abs() <= self.bias_limit as f64 {
            return Ok(FoldedChannel {
                bias: bias as i32,
                multiplier,
                is_constant: false,
            });
        }
        // gamma is zero, or so small that what the constant needs of bias does not fit beside the sum.
        self.constant(row, shift)
    }

    /// The output where the weights hardly count. Exact unless the width has no zero; then off by less than
    /// `k * 128 / 2^22` codes, far below one for any layer that a device can hold.
    fn constant(&self, row: &[i8], shift: u8) -> Outcome<FoldedChannel> {
        let reach = self.multiplier.abs() * self.reach(row);
        let clamp = |code: f64| code.round_ties_even().clamp(self.lowest, self.highest);
        let code = clamp(self.constant);
        if clamp(self.constant + reach) - code > 1.0 || code - clamp(self.constant - reach) > 1.0 {
            return Err(format!(
                "its bias is {:e} weight steps, too many for 32 bits: the weights are next to nothing beside it",
                self.constant / self.multiplier
            ));
        }
        if code == 0.0 {
            return Ok(FoldedChannel {
                bias: 0,
                multiplier: 0,
                is_constant: true,
            });
        }
        // `code << up` with a multiplier of `2^-up`: as far up as the bias may go, so that weights which cannot be zeroed
        // are shifted out.
        let up = (shift.saturating_sub(30)..=shift)
            .rev()
            .find(|&up| (i128::from(code.abs() as i64) << up) <= self.bias_limit.into())
            .ok_or("its sum of products leaves no room for a bias in 32 bits")?;
        Ok(FoldedChannel {
            bias: ((code as i64) << up) as i32,
            multiplier: 1 << (shift - up),
            is_constant: true,
        })
    }

    /// The largest magnitude of `sum((x - zp_in) * w)` for any image.
    fn reach(&self, row: &[i8]) -> f64 {
        let ends = [127 - self.zero_point_in, -128 - self.zero_point_in];
        let most = |sign: i64| -> i64 {
            let products = |&w: &i8| ends.map(|x| sign * x * i64::from(w));
            row.iter().map(products).map(|[a, b]| a.max(b)).sum()
        };
        most(1).max(most(-1)) as f64
    }
}

/// The shift of a layer whose channels have these multipliers, and these largest sums of products in front of them.
///
/// 32, at which a requantization is the upper half of a rounded product and kernels are fastest, unless
/// - a multiplier is not below 1/2: less, so that all fit 31 bits;
/// - 2^-33, by which a multiplier may be off, would move some code by more than 2^-8: more, as far as all still fit. That
///   takes a sum of products beyond 2^25, so more than 1036 8-bit weights, and a multiplier below 2^-17.
fn layer_shift(channels: &[(f64, f64)]) -> u8 {
    let fits = |shift: u8| {
        channels
            .iter()
            .all(|&(multiplier, _)| fixed_point(multiplier, shift).is_some())
    };
    // Codes by which rounding a multiplier moves an output that is not saturated anyway.
    let error = |multiplier: f64, reach: f64, shift: u8| {
        2f64.powi(-1 - i32::from(shift)).min(multiplier) * reach.min(256.0 / multiplier)
    };
    let is_exact = |shift: u8| {
        channels
            .iter()
            .all(|&(multiplier, reach)| multiplier == 0.0 || error(multiplier.abs(), reach, shift) <= 1.0 / 256.0)
    };
    let Some(mut shift) = (1..=32).rev().find(|&shift| fits(shift)) else {
        return 1;
    };
    while (32..62).contains(&shift) && !is_exact(shift) && fits(shift + 1) {
        shift += 1;
    }
    shift
}

/// `m * 2^shift`, rounded; `None` where it does not fit 31 bits and a sign.
fn fixed_point(m: f64, shift: u8) -> Option<i32> {
    let rounded = (m * 2f64.powi(shift.into())).round();
    (rounded.abs() <= f64::from(i32::MAX)).then_some(rounded as i32)
}

/// A tensor of the arena, not placed yet.
fn tensor(shape: Shape, quantizer: ActivationQuantizer) -> Outcome<Tensor> {
    let size = |what: &str, value: usize| {
        u16::try_from(value).map_err(|_| format!("{value} {what}, a model file holds at most {}", u16::MAX))
    };
    Ok(Tensor {
        height: size("rows", shape.height)?,
        width: size("columns", shape.width)?,
        channels: size("channels", shape.channels)?,
        element: Element::I8,
        zero_point: quantizer.zero_point,
        scale: Scale::from_f32(quantizer.scale),
        offset: 0,
    })
}

fn scale(tensor: &Tensor) -> f64 {
    f64::from(tensor.scale.to_f32())
}

/// The labels, or numbers where there are none.
fn labels(labels: &[String], classes: usize) -> Outcome<Cow<'_, [String]>> {
    if labels.is_empty() {
        return Ok((0..classes).map(|class| class.to_string()).collect());
    }
    if labels.len() != classes {
        return Err(format!("it has {} labels for {classes} classes", labels.len()));
    }
    Ok(Cow::Borrowed(labels))
}

/// The code of each pixel value of each channel: what fake quantization makes of the normalized pixel, in the same single
/// precision and with the same rounding, so that the trainer and the device see the same image.
fn input_table(normalization: &Normalization, channels: usize, quantizer: &ActivationQuantizer) -> Vec<[i8; 256]> {
    let Normalization { mean, std } = normalization;
    let zero_point = f32::from(quantizer.zero_point);
    let mut table = vec![[0; 256]; channels];
    for (channel, codes) in table.iter_mut().enumerate() {
        for (pixel, code) in codes.iter_mut().enumerate() {
            let real = (pixel as f32 - mean[channel]) / std[channel];
            *code = ((real / quantizer.scale)
                .clamp(-128.0 - zero_point, 127.0 - zero_point)
                .round_ties_even()
                + zero_point) as i8;
        }
    }
    table
}

/// PyTorch's order within a row, channels outermost, to the runtime's, channels innermost.
fn channels_innermost(codes: &[i8], channels: usize, positions: usize) -> Vec<i8> {
    let mut reordered = Vec::with_capacity(codes.len());
    for row in codes.chunks_exact((channels * positions).max(1)) {
        for position in 0..positions {
            reordered.extend((0..channels).map(|channel| row[channel * positions + position]));
        }
    }
    reordered
}

/// `m` as `multiplier / 2^shift`: the multiplier in Q31 with its highest bit set, the shift 1 to 62. `None` for 0, and where
/// the magnitude is not from 2^-32 to just below 2^30.
fn q31(m: f64) -> Option<(i32, u8)> {
    let bits = m.abs().to_bits();
    // m = fraction * 2^exponent with a fraction from 0.5 to 1; zero and what is subnormal are far below the range.
    let mut exponent = (bits >> 52) as i32 - 1022;
    let fraction = f64::from_bits(bits & ((1 << 52) - 1) | 1022 << 52);
    let mut multiplier = (fraction * 2f64.powi(31)).round() as i64;
    if multiplier == 1 << 31 {
        multiplier = 1 << 30;
        exponent += 1;
    }
    let shift = 31 - exponent;
    if !(1..=62).contains(&shift) {
        return None;
    }
    let multiplier = multiplier as i32;
    Some((if m < 0.0 { -multiplier } else { multiplier }, shift as u8))
}

/// Two positive ratios over one power of two, as precise as 15 bits allow.
fn add_multipliers(a: f64, b: f64) -> Outcome<(i16, i16, u8)> {
    let largest = a.max(b);
    let shift = (1..=30u8)
        .rev()
        .find(|&shift| (largest * f64::from(1u32 << shift)).round() <= f64::from(i16::MAX))
        .ok_or_else(|| format!("its input's scale is {largest:e} times its output's, which is out of range"))?;
    let multiplier = |ratio: f64| (ratio * f64::from(1u32 << shift)).round() as i16;
    Ok((multiplier(a), multiplier(b), shift))
}

/// The scale for the sum of two values of scales `a` and `b`, within a tenth of a per cent of `output`, at which the 15-bit
/// multipliers of [`adcorda_formats::Op::Add`] come closest to the real ratios.
///
/// At just any scale the multipliers are off by up to half a unit, which moves one code in a thousand; every layer behind
/// multiplies that, so that integer and fake-quantized network drift apart. `output` itself where no multiplier fits.
pub fn sum_scale(a: f32, b: f32, output: f32) -> f32 {
    let ratio = |input: f32, output: f32| f64::from(input) / f64::from(output);
    // In output codes for an input step.
    let error = |output: f32| {
        let (a, b) = (ratio(a, output), ratio(b, output));
        add_multipliers(a, b).map_or(f64::INFINITY, |(mul_a, mul_b, shift)| {
            let step = 1.0 / f64::from(1u32 << shift);
            (a - f64::from(mul_a) * step).abs() + (b - f64::from(mul_b) * step).abs()
        })
    };
    let larger = a.max(b);
    let Ok((mul_a, mul_b, shift)) = add_multipliers(ratio(a, output), ratio(b, output)) else {
        return output;
    };
    // Scales that make the larger multiplier exact; among so many, the smaller one is nearly so at one.
    let nearest = f64::from(mul_a.max(mul_b));
    let unit = f64::from(larger) * f64::from(1u32 << shift);
    let candidates = (-16..=16).map(|d| (unit / (nearest + f64::from(d))) as f32);
    let mut best = (error(output), output);
    for candidate in candidates.filter(|candidate| (ratio(*candidate, output) - 1.0).abs() <= 1e-3) {
        let error = error(candidate);
        if error < best.0 {
            best = (error, candidate);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_are_normalised_and_exact_to_31_bits() {
        assert_eq!(q31(1.0), Some((1 << 30, 30)));
        assert_eq!(q31(-0.5), Some((-(1 << 30), 31)));
        assert_eq!(q31(0.75), Some((3 << 29, 31)));
        // Rounds up to the next power of two.
        assert_eq!(q31(1.0 - f64::EPSILON), Some((1 << 30, 30)));
        assert_eq!(q31(2f64.powi(-32)), Some((1 << 30, 62)));
        assert_eq!(q31(2f64.powi(30) * 0.999), Some(((2f64.powi(31) * 0.999).round() as i32, 1)));
        for out_of_range in [0.0, -0.0, 2f64.powi(-33), 2f64.powi(30), 1e-310, f64::MAX] {
            assert_eq!(q31(out_of_range), None, "{out_of_range}");
        }
        for m in [1e-6, 3.7e-3, 0.1234567, 0.9999, 1.5, 77.7, 1e8] {
            let (multiplier, shift) = q31(m).unwrap();
            assert!((1 << 30..=i32::MAX).contains(&multiplier));
            assert!(
                (f64::from(multiplier) * 2f64.powi(-i32::from(shift)) / m - 1.0).abs() < 2f64.powi(-31),
                "{m}"
            );
        }
    }

    #[test]
    fn sums_are_as_precise_as_15_bits_allow() {
        assert_eq!(add_multipliers(1.0, 1.0), Ok((1 << 14, 1 << 14, 14)));
        assert_eq!(add_multipliers(0.99, 0.5), Ok((32440, 16384, 15)));
        assert_eq!(add_multipliers(1e-9, 1e-12), Ok((1, 0, 30)));
        assert_eq!(add_multipliers(0.0, 16383.4), Ok((0, 32767, 1)));
        assert!(add_multipliers(16384.0, 1.0).is_err());
    }

    #[test]
    fn a_sum_has_a_scale_at_which_its_multipliers_are_nearly_exact() {
        let off = |a: f32, b: f32, output: f32| {
            let (a, b) = (f64::from(a) / f64::from(output), f64::from(b) / f64::from(output));
            let (mul_a, mul_b, shift) = add_multipliers(a, b).unwrap();
            let step = f64::from(1u32 << shift);
            (a - f64::from(mul_a) / step).abs() + (b - f64::from(mul_b) / step).abs()
        };
        // Of the residual blocks of ResNet-8.
        let (mut before, mut after) = (0.0, 0.0);
        for (a, b, output) in [
            (0.0457, 0.0167, 0.0251),
            (0.0734, 0.0218, 0.0397),
            (0.1345, 0.0397, 0.0586),
            (0.0167, 0.0457, 0.0236),
        ] {
            let scale = sum_scale(a, b, output);
            assert!((scale / output - 1.0).abs() <= 1e-3, "{scale} for {output}");
            assert!(off(a, b, scale) <= off(a, b, output));
            before += off(a, b, output);
            after += off(a, b, scale);
        }
        assert!(after < before / 8.0, "{after}, {before} before");
        assert_eq!(sum_scale(1.0, 1.0, 1.0), 1.0);
        // No multiplier fits.
        assert_eq!(sum_scale(1.0, 1.0, 1e-9), 1e-9);
    }

    #[test]
    fn channels_move_innermost() {
        // Two rows of 2 channels x 3 positions.
        let codes: Vec<i8> = (0..12).collect();
        assert_eq!(channels_innermost(&codes, 2, 3), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }

    const RULE: ChannelRule = ChannelRule {
        multiplier: 0.0,
        constant: 0.0,
        zero_point_in: -128,
        lowest: -128.0,
        highest: 127.0,
        bias_limit: i32::MAX as i64 - 64 * 128 * 127,
    };

    /// `code - zero_point` of an accumulator with these products.
    fn code_of(folded: &FoldedChannel, products: i64, shift: u8) -> i64 {
        let scaled = (i64::from(folded.bias) + products) * i64::from(folded.multiplier);
        (scaled + (1 << (shift - 1))) >> shift
    }

    #[test]
    fn a_gamma_of_zero_leaves_the_constant() {
        for shift in [1, 2, 20, 31, 32, 33, 45, 62] {
            for (constant, code) in [
                (0.0, 0),
                (0.4, 0),
                (-0.6, -1),
                (1.2, 1),
                (99.7, 100),
                (-127.6, -128),
                (1e9, 127),
                (-1e30, -128),
            ] {
                // A shift beyond what the bias has room for above it: no layer gets it, as its largest multiplier is small.
                let Ok(folded) = ChannelRule { constant, ..RULE }.fold(&[127; 64], shift) else {
                    assert!(shift > 50 && code != 0);
                    continue;
                };
                assert!(folded.is_constant);
                assert!(i64::from(folded.bias).abs() <= RULE.bias_limit);
                assert_eq!(code_of(&folded, 0, shift), code, "{constant}");
            }
        }
    }

    #[test]
    fn weights_that_cannot_be_zeroed_do_not_show() {
        // 576 binary weights, the most and the least that they can sum to.
        let bias_limit = i64::from(i32::MAX) - 576 * 128;
        for (constant, code) in [(0.0, 0), (1.0, 1), (-1.0, -1), (127.0, 127), (-128.0, -128)] {
            let rule = ChannelRule {
                constant,
                bias_limit,
                ..RULE
            };
            let folded = rule.fold(&[1; 576], 32).unwrap();
            for products in [-576 * 128, 0, 576 * 127] {
                assert_eq!(code_of(&folded, products, 32), code, "{constant} with {products}");
            }
        }
    }

    #[test]
    fn a_tiny_gamma_holds_the_constant_where_the_bias_would_overflow() {
        for multiplier in [1e-12, -1e-12, 1e-300] {
            let rule = ChannelRule {
                multiplier,
                constant: 42.0,
                ..RULE
            };
            let folded = rule.fold(&[3; 64], 32).unwrap();
            assert!(folded.is_constant);
            assert_eq!(code_of(&folded, 0, 32), 42);
        }
        // The bias fits: nothing is held, and rounding the multiplier does not touch the constant.
        for multiplier in [1e-6, 3.7e-7, -3.3e-7] {
            let rule = ChannelRule {
                multiplier,
                constant: 42.0,
                ..RULE
            };
            let folded = rule.fold(&[3; 64], 32).unwrap();
            assert!(!folded.is_constant);
            let exact = 42.0 / f64::from(folded.multiplier) * 2f64.powi(32) + f64::from(128 * 3 * 64);
            assert_eq!(f64::from(folded.bias), exact.round_ties_even());
            assert_eq!(code_of(&folded, -128 * 3 * 64, 32), 42);
        }
    }

    #[test]
    fn a_constant_that_would_change_the_result_is_an_error() {
        // Half the codes come from the weights, and the bias does not fit.
        let rule = ChannelRule {
            multiplier: 1e-4,
            constant: 100.0,
            bias_limit: 1000,
            ..RULE
        };
        assert!(rule.fold(&[127; 64], 32).unwrap_err().contains("too many for 32 bits"));
    }

    #[test]
    fn a_layer_is_shifted_by_32_unless_a_multiplier_does_not_fit_or_would_be_coarse() {
        let shift = |channels: &[(f64, f64)]| layer_shift(channels);
        let reach = 2e6;
        assert_eq!(shift(&[(1e-3, reach), (-2e-6, reach), (0.0, reach), (1e-12, reach)]), 32);
        assert_eq!(shift(&[(0.4999, 100.0), (1e-3, reach)]), 32);
        // 1/2 is one more than fits, and so on upwards.
        assert_eq!(shift(&[(0.5, 100.0), (1e-3, reach)]), 31);
        assert_eq!(shift(&[(-0.5, 100.0)]), 31);
        assert_eq!(shift(&[(1000.0, 100.0)]), 21);
        assert_eq!(shift(&[(2f64.powi(29), 100.0)]), 1);
        // 4096 8-bit weights of full size: one code in 255 would be wrong at 32.
        assert_eq!(shift(&[(1e-6, 4096.0 * 255.0 * 127.0)]), 34);
        // Coarse, too, but another channel has no room for more.
        assert_eq!(shift(&[(1e-6, 4096.0 * 255.0 * 127.0), (0.3, 100.0)]), 32);
        // Steps that are large, but saturated long before they show.
        assert_eq!(shift(&[(1e-4, 4096.0 * 255.0 * 127.0)]), 32);
        assert_eq!(shift(&[(0.0, 0.0)]), 32);
    }

    #[test]
    fn a_multiplier_is_rounded_to_the_nearest_that_fits() {
        assert_eq!(fixed_point(0.25, 32), Some(1 << 30));
        assert_eq!(fixed_point(-0.25, 32), Some(-(1 << 30)));
        assert_eq!(fixed_point(1e-11, 32), Some(0));
        assert_eq!(fixed_point(0.5, 32), None);
        assert_eq!(fixed_point(0.5 - 2f64.powi(-34), 32), None);
        assert_eq!(fixed_point(-0.5, 32), None);
        assert_eq!(fixed_point(2f64.powi(30), 1), None);
        assert_eq!(fixed_point(f64::NAN, 32), None);
        assert_eq!(fixed_point(f64::INFINITY, 1), None);
    }

    #[test]
    fn the_input_table_is_what_fake_quantization_makes_of_pixels() {
        let normalization = Normalization {
            mean: vec![0.0, 127.5],
            std: vec![1.0, 51.0],
        };
        let quantizer = ActivationQuantizer {
            scale: 1.0,
            zero_point: -128,
        };
        let table = input_table(&normalization, 2, &quantizer);
        assert_eq!(
            table[0].map(|code| i32::from(code) + 128),
            std::array::from_fn::<i32, 256, _>(|pixel| pixel as i32)
        );
        // -2.5 to 2.5: below zero nothing is left, and ties go to the even code.
        let codes = [0, 127, 128, 153, 204, 255].map(|pixel| i32::from(table[1][pixel]) + 128);
        assert_eq!(codes, [0, 0, 0, 0, 2, 2]);
    }
}
