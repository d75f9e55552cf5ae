//! Exported networks against a plain interpreter in double precision that shares no code with the lowering or the runtime.

use std::collections::BTreeMap;

use adcorda_formats::{Layer as IntegerLayer, Model, Op as IntegerOp};
use adcorda_runtime::{Image, Observer, Session};
use rand::Rng;

use super::*;
use crate::checkpoint::Provenance;
use crate::data::Dataset;
use crate::data::batch::{Purpose, rng};
use crate::device::Device;
use crate::inspect::inspect;
use crate::network::{BatchNorm, Layer, Network, Normalization, Op, Shape, Window};
use crate::nn::Frozen;
use crate::quantize::activations::quantizer_of_range;
use crate::quantize::weights::{choose_scales, quantize_rows};
use crate::quantize::{ActivationQuantizer, Quantization, QuantizeOptions, WeightQuantizer, Width, dequantized, ptq};
use crate::state_dict::{Array, StateDict};
use crate::zoo::zoo;

const CLASSES: usize = 5;

/// A quantized network of every operation, for images of 10x8x3.
pub(crate) fn every_op(width: Width, seed: u64) -> Checkpoint {
    let mut rng = rng(seed, Purpose::Initialization, 7);
    let norm = |name: &str| {
        Some(BatchNorm {
            name: name.into(),
            epsilon: 1e-3,
        })
    };
    let conv = |out_channels, window, batch_norm, bias, relu| Op::Conv2d {
        out_channels,
        window,
        bias,
        batch_norm,
        relu,
    };
    let layers = [
        (
            "stem",
            vec![0],
            conv(6, window(3, 1, [1, 1, 1, 1]), norm("stem.bn"), true, true),
        ),
        (
            "depthwise",
            vec![1],
            Op::DepthwiseConv2d {
                window: window(3, 2, [0, 1, 0, 1]),
                bias: false,
                batch_norm: norm("depthwise.bn"),
                relu: false,
            },
        ),
        ("shortcut", vec![1], conv(6, window(1, 2, [0; 4]), None, true, false)),
        ("sum", vec![2, 3], Op::Add { relu: true }),
        (
            "subsample",
            vec![4],
            Op::Subsample {
                stride: 2,
                channels_before: 1,
                channels_after: 2,
            },
        ),
        (
            "wide",
            vec![4],
            conv(9, window(2, 2, [0, 1, 1, 0]), norm("wide.bn"), false, false),
        ),
        (
            "pool",
            vec![4],
            Op::MaxPool {
                window: window(3, 1, [1, 1, 0, 1]),
            },
        ),
        (
            "narrow",
            vec![7],
            Op::DepthwiseConv2d {
                window: window(2, 2, [0, 1, 0, 1]),
                bias: true,
                batch_norm: None,
                relu: true,
            },
        ),
        (
            "average",
            vec![8],
            Op::AvgPool {
                window: window(2, 1, [1, 0, 0, 1]),
            },
        ),
        ("grow", vec![9], conv(9, window(1, 1, [0; 4]), norm("grow.bn"), true, false)),
        ("sum2", vec![5, 6], Op::Add { relu: false }),
        ("sum3", vec![10, 11], Op::Add { relu: false }),
        (
            "hidden",
            vec![12],
            Op::Linear {
                out_features: 11,
                bias: true,
                relu: true,
            },
        ),
        (
            "fc",
            vec![13],
            Op::Linear {
                out_features: CLASSES,
                bias: true,
                relu: false,
            },
        ),
    ];
    let network = Network {
        name: "every-op".into(),
        input: Shape {
            height: 10,
            width: 8,
            channels: 3,
        },
        normalization: Normalization {
            mean: vec![120.0, 110.0, 130.0],
            std: vec![60.0, 50.0, 70.0],
        },
        layers: layers
            .into_iter()
            .map(|(name, inputs, op)| Layer {
                name: name.into(),
                inputs,
                op,
            })
            .collect(),
    };
    let mut state = StateDict::init(&network, seed).unwrap();
    for (name, array) in &mut state.tensors {
        let norm = name.contains(".bn.");
        for (i, value) in array.values.iter_mut().enumerate() {
            *value = match name.rsplit('.').next() {
                // Gamma: of both signs; one zero.
                Some("weight") if norm && i == 1 => 0.0,
                Some("weight") if norm => rng.random_range(0.3..1.5) * if rng.random_bool(0.3) { -1.0 } else { 1.0 },
                Some("running_var") => rng.random_range(0.2..4.0),
                Some("running_mean" | "bias") => rng.random_range(-0.8..0.8),
                _ => continue,
            };
        }
    }
    quantized(network, state, width)
}

/// Quantized with ranges from a few random images.
fn quantized(network: Network, state: StateDict, width: Width) -> Checkpoint {
    let last = network.layers.len() - 1;
    let weights = network
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            layer.op.has_weights().then(|| WeightQuantizer {
                width,
                scales: choose_scales(state.get(&format!("{}.weight", layer.name)).unwrap(), width, i == last),
                per_tensor: i == last,
            })
        })
        .collect();
    let mut quantization = Quantization {
        weights,
        activations: Vec::new(),
    };
    let reals = dequantized(&network, &state, &quantization).unwrap();
    let mut ranges = vec![(0f32, 0f32); network.layers.len() + 1];
    for image in images(&network, 4, 99).images.chunks_exact(network.input.elements()) {
        let mut values = vec![normalized(&network, image)];
        for layer in &network.layers {
            let y = real_layer(&network, &reals, layer, &values);
            values.push(y);
        }
        for (range, value) in ranges.iter_mut().zip(&values) {
            // Nine tenths of the range, so that some values saturate.
            *range = value
                .iter()
                .fold(*range, |(low, high), &v| (low.min(0.9 * v as f32), high.max(0.9 * v as f32)));
        }
    }
    quantization.activations = ranges.iter().map(|&(low, high)| quantizer_of_range(low, high)).collect();
    share_quantizers(&network, &mut quantization.activations);
    Checkpoint {
        labels: Vec::new(),
        provenance: Provenance {
            data: "noise".into(),
            method: "ptq".into(),
            seed: 3,
            top1: Some(12.345),
        },
        quantization: Some(quantization),
        network,
        state,
    }
}

/// A network of the zoo with random weights; inner layers of `width`.
pub(crate) fn random_zoo(name: &str, width: Width) -> Checkpoint {
    let network = zoo(name, 10).unwrap();
    let state = StateDict::init(&network, 1).unwrap();
    let weighted: Vec<usize> = network.weighted_layers().collect();
    let (first, last) = (weighted[0], network.layers.len() - 1);
    let weights = network
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            let width = if i == first || i == last { Width::W8 } else { width };
            layer.op.has_weights().then(|| WeightQuantizer {
                width,
                scales: choose_scales(state.get(&format!("{}.weight", layer.name)).unwrap(), width, i == last),
                per_tensor: i == last,
            })
        })
        .collect();
    // Codes of a ReLU begin at zero; all others have it somewhere.
    let mut activations = vec![ActivationQuantizer {
        scale: 0.0213,
        zero_point: -20,
    }];
    activations.extend(network.layers.iter().map(|layer| ActivationQuantizer {
        scale: 0.0213,
        zero_point: if layer.op.relu() { -128 } else { -20 },
    }));
    share_quantizers(&network, &mut activations);
    Checkpoint {
        quantization: Some(Quantization { weights, activations }),
        labels: Vec::new(),
        provenance: Provenance::default(),
        network,
        state,
    }
}

fn share_quantizers(network: &Network, activations: &mut [ActivationQuantizer]) {
    for (i, layer) in network.layers.iter().enumerate() {
        if matches!(layer.op, Op::MaxPool { .. } | Op::Subsample { .. }) {
            activations[i + 1] = activations[layer.inputs[0]];
        }
    }
}

/// Noise of the network's size.
pub(crate) fn images(network: &Network, count: usize, seed: u64) -> Dataset {
    let mut rng = rng(seed, Purpose::Synthetic, 0);
    let Shape { height, width, channels } = network.input;
    Dataset {
        name: "noise".into(),
        classes: (0..network.classes()).map(|c| format!("class {c}")).collect(),
        height,
        width,
        channels,
        images: (0..count * network.input.elements()).map(|_| rng.random()).collect(),
        labels: (0..count).map(|i| (i % network.classes()) as u16).collect(),
    }
}

/// Pads: top, bottom, left, right.
fn window(kernel: u8, stride: u8, pads: [u8; 4]) -> Window {
    Window {
        kernel_height: kernel,
        kernel_width: kernel,
        stride_height: stride,
        stride_width: stride,
        pad_top: pads[0],
        pad_bottom: pads[1],
        pad_left: pads[2],
        pad_right: pads[3],
    }
}

fn normalized(network: &Network, pixels: &[u8]) -> Vec<f64> {
    let Normalization { mean, std } = &network.normalization;
    let channel = |i: usize| i % network.input.channels;
    pixels
        .iter()
        .enumerate()
        .map(|(i, &p)| (f64::from(p) - f64::from(mean[channel(i)])) / f64::from(std[channel(i)]))
        .collect()
}

/// What a layer computes of real values (HWC), in double precision: ReLU included, no output quantization.
fn real_layer(network: &Network, state: &StateDict, layer: &Layer, values: &[Vec<f64>]) -> Vec<f64> {
    let shapes = network.shapes().unwrap();
    let (x, shape) = (&values[layer.inputs[0]], shapes[layer.inputs[0]]);
    let at = |y: i64, x_: i64, c: usize| -> Option<f64> {
        let inside = (0..shape.height as i64).contains(&y) && (0..shape.width as i64).contains(&x_);
        inside.then(|| x[(y as usize * shape.width + x_ as usize) * shape.channels + c])
    };
    let array = |name: &str| -> Option<&Array> { state.tensors.get(name) };
    let values_of = |name: String| array(&name).map(|a| a.values.clone());
    // `cell(oy, ox, channel)` for every output element.
    let out = shapes[1 + network.layers.iter().position(|l| l.name == layer.name).unwrap()];
    let each = |cell: &dyn Fn(usize, usize, usize) -> f64| -> Vec<f64> {
        let mut all = Vec::new();
        for oy in 0..out.height {
            for ox in 0..out.width {
                all.extend((0..out.channels).map(|c| cell(oy, ox, c)));
            }
        }
        all
    };
    let slide = |w: &Window, oy: usize, ox: usize| -> Vec<(usize, usize, i64, i64)> {
        let mut cells = Vec::new();
        for ky in 0..w.kernel_height as usize {
            for kx in 0..w.kernel_width as usize {
                cells.push((
                    ky,
                    kx,
                    (oy * w.stride_height as usize + ky) as i64 - i64::from(w.pad_top),
                    (ox * w.stride_width as usize + kx) as i64 - i64::from(w.pad_left),
                ));
            }
        }
        cells
    };
    let weight = array(&format!("{}.weight", layer.name));
    let bias = values_of(format!("{}.bias", layer.name));
    let norm = layer.op.batch_norm().map(|norm| {
        let part = |part: &str| values_of(format!("{}.{part}", norm.name)).unwrap();
        let (gamma, beta, mean, var) = (part("weight"), part("bias"), part("running_mean"), part("running_var"));
        let epsilon = f64::from(norm.epsilon);
        move |c: usize, y: f64| {
            f64::from(gamma[c]) * (y - f64::from(mean[c])) / (f64::from(var[c]) + epsilon).sqrt() + f64::from(beta[c])
        }
    });
    let finish = |c: usize, y: f64| {
        let y = y + bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
        let y = norm.as_ref().map_or(y, |norm| norm(c, y));
        if layer.op.relu() { y.max(0.0) } else { y }
    };
    match &layer.op {
        Op::Conv2d { window, .. } => each(&|oy, ox, o| {
            let row = weight.unwrap().row(o);
            let mut sum = 0.0;
            for (ky, kx, y, x) in slide(window, oy, ox) {
                for i in 0..shape.channels {
                    let w = row[(i * window.kernel_height as usize + ky) * window.kernel_width as usize + kx];
                    sum += f64::from(w) * at(y, x, i).unwrap_or(0.0);
                }
            }
            finish(o, sum)
        }),
        Op::DepthwiseConv2d { window, .. } => each(&|oy, ox, c| {
            let row = weight.unwrap().row(c);
            let product = |(ky, kx, y, x): (usize, usize, i64, i64)| {
                f64::from(row[ky * window.kernel_width as usize + kx]) * at(y, x, c).unwrap_or(0.0)
            };
            finish(c, slide(window, oy, ox).into_iter().map(product).sum())
        }),
        Op::Linear { .. } => each(&|_, _, o| {
            let row = weight.unwrap().row(o);
            let mut sum = 0.0;
            for c in 0..shape.channels {
                for y in 0..shape.height {
                    for x in 0..shape.width {
                        let w = row[(c * shape.height + y) * shape.width + x];
                        sum += f64::from(w) * at(y as i64, x as i64, c).unwrap();
                    }
                }
            }
            finish(o, sum)
        }),
        Op::Add { .. } => {
            let other = &values[layer.inputs[1]];
            x.iter().zip(other).map(|(a, b)| finish(0, a + b)).collect()
        }
        Op::MaxPool { window } => each(&|oy, ox, c| {
            let cells = slide(window, oy, ox).into_iter().filter_map(|(_, _, y, x)| at(y, x, c));
            cells.fold(f64::NEG_INFINITY, f64::max)
        }),
        Op::AvgPool { window } => each(&|oy, ox, c| {
            let cells = slide(window, oy, ox).into_iter();
            cells.map(|(_, _, y, x)| at(y, x, c).unwrap_or(0.0)).sum::<f64>() / window.positions() as f64
        }),
        Op::Subsample {
            stride, channels_before, ..
        } => each(&|oy, ox, c| {
            let from = c.checked_sub(*channels_before).filter(|&c| c < shape.channels);
            from.map_or(0.0, |c| at((oy * stride) as i64, (ox * stride) as i64, c).unwrap())
        }),
    }
}

/// Keeps every tensor of a run.
#[derive(Default)]
struct Keep {
    tensors: Vec<Vec<u8>>,
}

impl Observer for Keep {
    fn input(&mut self, codes: &[u8]) {
        self.tensors.push(codes.to_vec());
    }

    fn layer_end(&mut self, _: usize, _: &IntegerLayer<'_>, output: &[u8]) {
        self.tensors.push(output.to_vec());
    }
}

fn run(file: &[u8], pixels: &[u8]) -> Vec<Vec<u8>> {
    let model = Model::parse(file).unwrap();
    let mut arena = vec![0xA5; model.arena_bytes()];
    let mut session = Session::new(&model, &mut arena).unwrap();
    let mut keep = Keep::default();
    session.run(Image::new(&model, pixels).unwrap(), &mut keep);
    keep.tensors
}

/// In the network's own order, and every sum a layer.
fn layer_by_layer(checkpoint: &Checkpoint) -> Exported {
    let options = ExportOptions::default();
    export_in_order(checkpoint, &options, |_, layers| vec![schedule::unchanged(layers.len())]).unwrap()
}

/// Biases and BatchNorm's shifts rounded to whole steps of the accumulator, which is all that the integer network rounds of
/// a layer's constants.
fn round_biases(checkpoint: &Checkpoint, state: &mut StateDict) {
    let quantization = checkpoint.quantization.as_ref().unwrap();
    for (layer, quantizer) in checkpoint.network.layers.iter().zip(&quantization.weights) {
        let Some(quantizer) = quantizer else { continue };
        let weight = checkpoint.state.get(&format!("{}.weight", layer.name)).unwrap();
        let scales = quantize_rows(weight, quantizer).scales;
        let bias_name = format!("{}.bias", layer.name);
        for c in 0..weight.rows() {
            let input = quantization.activations[layer.inputs[0]].scale;
            let mut step = f64::from(input) * f64::from(scales[c % scales.len()]);
            let value = |name: &str| state.tensors.get(name).map_or(0.0, |array| f64::from(array.values[c]));
            // `gain * (bias - mean) + beta`, of which one may be moved.
            let (mut name, mut rest) = (bias_name.clone(), 0.0);
            if let Some(norm) = layer.op.batch_norm() {
                let part = |part: &str| value(&format!("{}.{part}", norm.name));
                let gain = part("weight") / (part("running_var") + f64::from(norm.epsilon)).sqrt();
                if gain == 0.0 {
                    continue;
                }
                rest = gain * (value(&bias_name) - part("running_mean"));
                step *= gain;
                name = format!("{}.bias", norm.name);
            }
            let rounded = ((value(&name) + rest) / step).round() * step - rest;
            if let Some(array) = state.tensors.get_mut(&name) {
                array.values[c] = rounded as f32;
            }
        }
    }
}

/// Layer by layer: fed with the codes that the runtime computed, the interpreter must find the same code, but for values that
/// lie next to the middle between two. Gives the share of codes that are the same.
fn compare(checkpoint: &Checkpoint, seed: u64) -> f64 {
    let network = &checkpoint.network;
    let quantization = checkpoint.quantization.as_ref().unwrap();
    let mut state = dequantized(network, &checkpoint.state, quantization).unwrap();
    round_biases(checkpoint, &mut state);
    let exported = layer_by_layer(checkpoint);
    let model = Model::parse(&exported.bytes).unwrap();
    let (mut same, mut total) = (0, 0);
    for pixels in images(network, 3, seed).images.chunks_exact(network.input.elements()) {
        let tensors = run(&exported.bytes, pixels);
        let mut judge = |value: usize, real: &[f64], codes: &[u8], relu: bool, name: &str| {
            let ActivationQuantizer { scale, zero_point } = quantization.activations[value];
            let low = if relu { f64::from(zero_point) } else { -128.0 };
            // The multipliers of a sum have 15 bits and work on at most 255 steps each; all else is next to exact.
            let slack = 0.5 + 2.0 * 255.0 / 32768.0;
            for (i, (&real, &code)) in real.iter().zip(codes).enumerate() {
                let exact = (real / f64::from(scale) + f64::from(zero_point)).clamp(low, 127.0);
                let code = f64::from(code as i8);
                assert!((code - exact).abs() < slack, "{name} [{i}]: {code} for {exact}");
                total += 1;
                same += usize::from(code == (exact + 0.5).floor());
            }
        };
        judge(0, &normalized(network, pixels), &tensors[0], false, "input");
        let real = |value: usize| -> Vec<f64> {
            let ActivationQuantizer { scale, zero_point } = quantization.activations[value];
            let codes = tensors[value].iter();
            codes
                .map(|&q| f64::from(scale) * f64::from(i32::from(q as i8) - i32::from(zero_point)))
                .collect()
        };
        let last = network.layers.len();
        let mut values: Vec<Vec<f64>> = (0..last).map(real).collect();
        values.push(Vec::new());
        for (i, layer) in network.layers.iter().enumerate() {
            let exact = real_layer(network, &state, layer, &values);
            if i + 1 < last {
                judge(i + 1, &exact, &tensors[i + 1], layer.op.relu(), &layer.name);
                continue;
            }
            let logits = tensors[last].as_chunks().0.iter().map(|&b| i32::from_le_bytes(b));
            assert_eq!(exact.len(), logits.len());
            for (exact, logit) in exact.iter().zip(logits) {
                let steps = exact / f64::from(model.output().scale.to_f32());
                assert!(
                    (steps - f64::from(logit)).abs() < 0.01 + steps.abs() * 1e-6,
                    "logit {logit} for {steps}"
                );
            }
        }
    }
    same as f64 / total as f64
}

#[test]
fn every_operation_agrees_with_real_arithmetic_at_every_width() {
    for width in Width::ALL {
        for seed in 0..8 {
            let same = compare(&every_op(width, seed), seed);
            assert!(same > 0.999, "{} {seed}: {same}", width.name());
        }
    }
}

#[test]
fn networks_of_the_zoo_agree_with_real_arithmetic() {
    let same = compare(&random_zoo("tiny", Width::W2), 0);
    assert!(same > 0.999, "{same}");
}

/// Sums in convolutions and other orders of layers: every tensor that is left has the same codes. Gives the number of schedules
/// and the most sums that one of them moves.
fn compare_schedules(checkpoint: &Checkpoint, images: &Dataset) -> (usize, usize) {
    let (plain, options) = (layer_by_layer(checkpoint), ExportOptions::default());
    let network = &checkpoint.network;
    let lowered = lower::lower(checkpoint).unwrap();
    let mut schedules = schedule::schedules(&lowered.tensors, &lowered.layers);
    let count = schedules.len();
    assert_eq!(schedules.last(), Some(&schedule::unchanged(network.layers.len())));
    schedules.pop();
    let files: Vec<Exported> = schedules
        .iter()
        .map(|steps| export_in_order(checkpoint, &options, |_, _| vec![steps.clone()]).unwrap())
        .chain([export(checkpoint, &options).unwrap()])
        .collect();
    let mut most = 0;
    for pixels in images.images.chunks_exact(network.input.elements()) {
        let expected = run(&plain.bytes, pixels);
        let distinct: std::collections::BTreeSet<&u8> = expected[expected.len() - 2].iter().collect();
        assert!(distinct.len() > 2, "{}: the logits come from next to nothing", network.name);
        for file in &files {
            let found = run(&file.bytes, pixels);
            let model = Model::parse(&file.bytes).unwrap();
            let mut sums = 0;
            for (layer, codes) in model.layers().zip(&found[1..]) {
                let mut value = 1 + network.layers.iter().position(|l| l.name == layer.name).unwrap();
                if let IntegerOp::Conv2d { residual: Some(_), .. } = layer.op {
                    // The one that reads the convolution.
                    value = 1 + network.layers.iter().position(|l| l.inputs.contains(&value)).unwrap();
                    sums += 1;
                }
                assert!(*codes == expected[value], "{}: {}", network.name, layer.name);
            }
            assert_eq!(found.last(), expected.last());
            assert_eq!(model.layers().len() + sums, network.layers.len());
            most = most.max(sums);
        }
        assert!(
            files
                .iter()
                .all(|file| file.arena_bytes >= files[files.len() - 1].arena_bytes)
        );
    }
    (count, most)
}

#[test]
fn sums_in_convolutions_give_the_same_codes() {
    for width in Width::ALL {
        for seed in 0..4 {
            let checkpoint = every_op(width, seed);
            let (schedules, most) = compare_schedules(&checkpoint, &images(&checkpoint.network, 2, seed));
            // Of three sums, one has a depthwise convolution and a shortcut, which takes it; one has no convolution that
            // nothing else reads.
            assert!(schedules > 2 && most >= 2, "{schedules} {most}");
        }
    }
    for (name, sums) in [("resnet8", 3), ("resnet20", 9), ("tiny", 1), ("dscnn", 0)] {
        let checkpoint = random_zoo(name, Width::W4);
        let (_, most) = compare_schedules(&checkpoint, &images(&checkpoint.network, 1, 0));
        assert_eq!(most, sums, "{name}");
    }
}

#[test]
fn channels_without_gamma_are_reported_and_constant() {
    let checkpoint = every_op(Width::W1, 0);
    let exported = export(&checkpoint, &ExportOptions::default()).unwrap();
    let expected: Vec<(String, usize)> = ["stem", "depthwise", "wide", "grow"].map(|name| (name.to_owned(), 1)).into();
    assert_eq!(exported.constant_channels, expected);
}

#[test]
fn the_file_says_where_it_comes_from() {
    let mut checkpoint = every_op(Width::W4, 1);
    let exported = export(&checkpoint, &ExportOptions::default()).unwrap();
    let model = Model::parse(&exported.bytes).unwrap();
    assert_eq!(model.name(), "every-op");
    let provenance = model.provenance();
    assert_eq!((provenance.data, provenance.method), ("noise", "ptq"));
    assert_eq!((provenance.seed, provenance.top1), (3, 1235));
    assert_eq!(model.labels().collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    assert_eq!(model.arena_bytes(), exported.arena_bytes);

    checkpoint.labels = ["a", "b", "c", "d", "e"].map(String::from).into();
    checkpoint.provenance.top1 = None;
    let name = Some("doorbell".into());
    let exported = export(&checkpoint, &ExportOptions { name }).unwrap();
    let model = Model::parse(&exported.bytes).unwrap();
    assert_eq!((model.name(), model.provenance().top1), ("doorbell", u16::MAX));
    assert_eq!(model.labels().last(), Some("e"));
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let bytes = |seed| export(&every_op(Width::W2, seed), &ExportOptions::default()).unwrap().bytes;
    assert_eq!(bytes(5), bytes(5));
    assert_ne!(bytes(5), bytes(6));
}

#[test]
fn files_of_the_zoo_take_bits_times_weights() {
    let size = |name, width| {
        let exported = export(&random_zoo(name, width), &ExportOptions::default()).unwrap();
        println!(
            "{name} {}: {} bytes, arena {}",
            width.name(),
            exported.bytes.len(),
            exported.arena_bytes
        );
        exported.bytes.len()
    };
    assert!(size("resnet8", Width::W1) < 17_000);
    assert!(size("resnet8", Width::W2) < 26_000);
    // 77,360 weights, of which 1,072 are in layers that keep 8 bits.
    let tables = size("resnet8", Width::W8) - 77_360;
    assert!(tables < 6_000, "{tables}");
    // But for alignment.
    let saved = size("resnet8", Width::W8) - size("resnet8", Width::W4);
    assert!((76_288 / 2..76_288 / 2 + 32).contains(&saved), "{saved}");
    assert!(size("resnet20", Width::W2) < 80_000);
}

/// For as many classes as CIFAR-100 has, flattened maps and wide layers included, at small cost: one image.
#[test]
fn large_networks_of_the_zoo_compute_what_the_trainer_does() {
    for name in ["resnet8-wide", "vgg-small"] {
        let network = zoo(name, 100).unwrap();
        let float = Checkpoint {
            state: StateDict::init(&network, 3).unwrap(),
            network,
            quantization: None,
            labels: Vec::new(),
            provenance: Provenance::default(),
        };
        let images = images(&float.network, 2, 5);
        let quantized = ptq(&float, &images, &QuantizeOptions::new(Width::W2), &Device::flex()).unwrap();
        let exported = export(&quantized, &ExportOptions::default()).unwrap();
        let scale = f32::from_bits(Model::parse(&exported.bytes).unwrap().output().scale.0);
        let one = images.take(1);
        let integer = crate::eval::evaluate_model(&exported.bytes, &one).unwrap().logits;
        let frozen = Frozen::new(
            &quantized.network,
            &quantized.state,
            quantized.quantization.as_ref(),
            &Device::flex(),
        );
        let fake = frozen.unwrap().logits_of(&one, 1).unwrap();
        let range = fake.iter().fold(0f32, |range, logit| range.max(logit.abs()));
        let worst = fake
            .iter()
            .zip(integer)
            .map(|(f, i)| (f - scale * i as f32).abs())
            .fold(0f32, f32::max);
        assert!(worst < 0.05 * range, "{name}: {worst} of {range}");
    }
}

#[test]
fn arenas_of_the_zoo_are_as_small_as_can_be() {
    // Two tensors of a block's size and the columns of one convolution, which are in use at once.
    for (name, layers, bytes) in [
        ("resnet8", 11, 32_768 + 8 * 160),
        ("resnet20", 23, 32_768 + 8 * 160),
        ("tiny", 6, 6_144 + 8 * 32),
        // Two tensors and what a depthwise convolution works in.
        ("dscnn", 11, 32_768 + 16 * (2 * 18 + 16 + 18) + 64),
    ] {
        let exported = export(&random_zoo(name, Width::W2), &ExportOptions::default()).unwrap();
        let inspection = inspect(&exported.bytes).unwrap();
        assert_eq!((exported.arena_bytes, inspection.layers.len()), (bytes, layers), "{name}");
        assert_eq!(inspection.peak_bytes, bytes as u64, "{name}");
    }
}

fn refusal(change: impl FnOnce(&mut Checkpoint)) -> Error {
    let mut checkpoint = every_op(Width::W4, 2);
    change(&mut checkpoint);
    export(&checkpoint, &ExportOptions::default()).unwrap_err()
}

fn quantization(checkpoint: &mut Checkpoint) -> &mut Quantization {
    checkpoint.quantization.as_mut().unwrap()
}

#[test]
fn what_cannot_be_lowered_is_named() {
    for (error, kind, words) in [
        (
            refusal(|c| c.quantization = None),
            ErrorKind::Model,
            &["not quantized", "adcorda quantize"][..],
        ),
        (
            refusal(|c| quantization(c).activations.clear()),
            ErrorKind::Model,
            &["activations are not", "adcorda quantize"],
        ),
        (
            refusal(|c| c.state.tensors.get_mut("wide.weight").unwrap().values[3] = f32::NAN),
            ErrorKind::Weights,
            &["wide.weight", "NaN"],
        ),
        (
            refusal(|c| quantization(c).activations[6].scale = f32::NAN),
            ErrorKind::Weights,
            &["value 6", "NaN"],
        ),
        (
            refusal(|c| {
                let rows = c.state.get("fc.weight").unwrap().rows();
                quantization(c).weights[13] = Some(WeightQuantizer {
                    width: Width::W8,
                    scales: vec![0.1; rows],
                    per_tensor: false,
                });
            }),
            ErrorKind::Model,
            &["layer 13 \"fc\"", "per tensor"],
        ),
        (
            refusal(|c| c.state.tensors.get_mut("fc.bias").unwrap().values[2] = 1e30),
            ErrorKind::Model,
            &["layer 13 \"fc\"", "class 2", "32 bits"],
        ),
        (
            refusal(|c| {
                let Op::Conv2d { batch_norm, .. } = &mut c.network.layers[0].op else {
                    unreachable!()
                };
                batch_norm.as_mut().unwrap().epsilon = 0.0;
                c.state.tensors.get_mut("stem.bn.running_var").unwrap().values[4] = 0.0;
            }),
            ErrorKind::Model,
            &["layer 0 \"stem\"", "channel 4", "stem.bn", "variance 0"],
        ),
        (
            refusal(|c| c.labels = vec!["one".into()]),
            ErrorKind::Model,
            &["1 labels for 5 classes"],
        ),
        (
            refusal(|c| {
                // Nothing reads the subsampled value any more.
                c.network.layers[10].inputs = vec![6, 6];
            }),
            ErrorKind::Model,
            &["layer 4 \"subsample\"", "no layer reads"],
        ),
        (
            refusal(|c| c.network.normalization.std[1] = 0.0),
            ErrorKind::Model,
            &["normalization of channel 1"],
        ),
        (
            refusal(|c| c.provenance.data = "x".repeat(200)),
            ErrorKind::Model,
            &["every-op", "200 bytes"],
        ),
        (
            refusal(|c| quantization(c).activations[9].scale = 1e-30),
            ErrorKind::Model,
            &["layer 8 \"average\"", "out of range"],
        ),
    ] {
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        for word in words {
            assert!(text.contains(word), "{text:?} does not say {word:?}");
        }
    }
}

/// Pools of one pixel, then a classifier.
fn chain(layers: usize, input: Shape, stride: usize) -> Checkpoint {
    let mut all: Vec<Layer> = (0..layers)
        .map(|i| Layer {
            name: format!("step{i}"),
            inputs: vec![i],
            op: Op::Subsample {
                stride,
                channels_before: 0,
                channels_after: 0,
            },
        })
        .collect();
    all.push(Layer {
        name: "fc".into(),
        inputs: vec![layers],
        op: Op::Linear {
            out_features: 2,
            bias: false,
            relu: false,
        },
    });
    let network = Network {
        name: "chain".into(),
        input,
        normalization: Normalization {
            mean: vec![0.0; input.channels],
            std: vec![1.0; input.channels],
        },
        layers: all,
    };
    let state = StateDict {
        tensors: network
            .parameters()
            .unwrap()
            .into_iter()
            .map(|(name, shape)| {
                let values = vec![0.5; shape.iter().product()];
                (name, Array { shape, values })
            })
            .collect::<BTreeMap<_, _>>(),
    };
    let mut weights = vec![None; layers];
    weights.push(Some(WeightQuantizer {
        width: Width::W1,
        scales: Vec::new(),
        per_tensor: true,
    }));
    let activation = ActivationQuantizer {
        scale: 1.0,
        zero_point: -128,
    };
    Checkpoint {
        quantization: Some(Quantization {
            weights,
            activations: vec![activation; layers + 2],
        }),
        labels: Vec::new(),
        provenance: Provenance::default(),
        network,
        state,
    }
}

#[test]
fn sizes_that_the_format_does_not_have_are_refused() {
    let shape = |height, width, channels| Shape { height, width, channels };
    let refuse = |checkpoint: &Checkpoint| export(checkpoint, &ExportOptions::default()).unwrap_err().to_string();
    assert!(export(&chain(126, shape(2, 2, 1), 1), &ExportOptions::default()).is_ok());
    let error = refuse(&chain(127, shape(2, 2, 1), 1));
    assert!(error.contains("128 layers") && error.contains("127"), "{error}");
    let error = refuse(&chain(1, shape(70_000, 1, 1), 200));
    assert!(error.contains("input image") && error.contains("70000 rows"), "{error}");
    let error = refuse(&chain(1, shape(300, 1, 1), 256));
    assert!(
        error.contains("layer 0 \"step0\"") && error.contains("stride is 256"),
        "{error}"
    );
    let mut checkpoint = chain(1, shape(2, 2, 1), 1);
    checkpoint.network.layers[0].op = Op::MaxPool {
        window: window(2, 1, [2, 0, 0, 0]),
    };
    // The padding is the format's own rule: its words, our name.
    let mut linear = checkpoint.state.get("fc.weight").unwrap().clone();
    linear.shape = vec![2, 3];
    linear.values.truncate(6);
    checkpoint.state.tensors.insert("fc.weight".into(), linear);
    let error = refuse(&checkpoint);
    assert!(error.contains("layer 0 \"step0\"") && error.contains("padding 2"), "{error}");
}

#[test]
fn model_and_source_are_written_and_the_source_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door bell.adq");
    let exported = export(&every_op(Width::W1, 4), &ExportOptions::default()).unwrap();
    let source = exported.write(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), exported.bytes);
    assert_eq!(source, folder.path().join("door bell.rs"));

    // A firmware would hold these to be so at compile time, too.
    let firmware = folder.path().join("firmware.rs");
    std::fs::write(
        &firmware,
        format!(
            "#![no_std]\npub mod model {{ include!(\"door bell.rs\"); }}\n\
             const _: () = assert!(model::MODEL.len() == {} && model::ARENA_BYTES == {} && model::CLASSES == {CLASSES});\n\
             const _: () = assert!(model::INPUT_BYTES == 10 * 8 * 3 && model::MODEL[1] == b'A');\n",
            exported.bytes.len(),
            exported.arena_bytes
        ),
    )
    .unwrap();
    let compiled = std::process::Command::new("rustc")
        .args([
            "--edition=2024",
            "--crate-type=lib",
            "--emit=metadata",
            "-Dwarnings",
            "--out-dir",
        ])
        .arg(folder.path())
        .arg(&firmware)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

#[test]
fn a_model_that_cannot_be_written_leaves_nothing() {
    let exported = export(&every_op(Width::W1, 4), &ExportOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = exported.write(&folder.path().join("missing/model.adq")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("model.adq"), "{error}");
    let error = exported.write(&folder.path().join("model.rs")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
