//! Networks on burn: one module that interprets a [`Network`], with fake quantization that gradients pass through.
//!
//! This is the one place that names burn's layers and operations; training and attacks use the aliases below, so that a move
//! to another version of burn stays local. Two types of tensor, one device: [`Inner`] computes, [`Auto`] also records a graph,
//! and mixing them up does not compile.
//!
//! BatchNorm is here because burn's own updates its statistics whenever gradients are recorded, which an attack on a frozen
//! network must not do. Everything per channel works on `[n * channels, height * width]`: a 4-D broadcast costs ten times as
//! much on flex.

use burn::module::{AutodiffModule, Module, Param, ParamId, RunningState};
use burn::tensor::backend::Backend;
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{PadMode, PaddedConvOptions};
use burn::tensor::{Tensor, TensorData, activation};
use burn_dispatch::Dispatch;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, batch};
use crate::device::Device;
use crate::fake_quantization::FakeQuantize;
use crate::network::{BatchNorm, Network, Op, Window};
use crate::normalization::Moments;
use crate::quantize::{self, ActivationQuantizer, Quantization, WeightQuantizer, Width, weights};
use crate::state_dict::{Array, StateDict};
use crate::{Error, ErrorKind, Result};

/// Tensors without a graph.
pub type Inner = Dispatch;
/// Tensors that record how they came about.
pub type Auto = burn::backend::Autodiff<Inner>;

/// Id of the first layer's learnt scales: above the positions that all other parameters have.
const LOG_SCALES: u64 = 1 << 32;

/// Share of a new batch in the running statistics.
const MOMENTUM: f64 = 0.1;

/// Which statistics BatchNorm uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The batch's; the running ones move towards them.
    Train,
    /// The running ones, which stay as they are; differentiable all the same.
    Frozen,
}

/// What the network computes of a batch.
#[derive(Clone, Debug)]
pub struct Output<B: Backend> {
    /// Input of the last layer, `[n, features]`.
    pub features: Tensor<B, 2>,
    /// `[n, classes]`, not quantized.
    pub logits: Tensor<B, 2>,
}

/// The network's parameters, one entry a layer.
#[derive(Module, Debug)]
pub struct Net<B: Backend> {
    layers: Vec<Parameters<B>>,
}

/// Parameters of a layer: none, or at least weights.
#[derive(Module, Debug)]
pub struct Parameters<B: Backend> {
    /// `[rows, values of a row]`: convolutions too, so that a row is an output channel everywhere.
    weight: Option<Param<Tensor<B, 2>>>,
    bias: Option<Param<Tensor<B, 1>>>,
    norm: Option<Norm<B>>,
    /// Where scales are learnt: the natural logarithm of what each of the quantizer's is multiplied by, `[rows]` or one. So
    /// Adam's step is a share of the scale, and no step makes a scale negative.
    log_scale: Option<Param<Tensor<B, 1>>>,
}

/// BatchNorm: scale, shift, and running statistics.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    gamma: Param<Tensor<B, 1>>,
    beta: Param<Tensor<B, 1>>,
    mean: RunningState<Tensor<B, 1>>,
    variance: RunningState<Tensor<B, 1>>,
}

/// As [`Mode`], with the share of the batch.
#[derive(Clone, Copy)]
enum Statistics {
    Batch { momentum: f64 },
    Running,
}

impl<B: FakeQuantize> Net<B> {
    /// The network's parameters from the host.
    ///
    /// A parameter's id is its position, so that an optimizer's state, which burn keys by id, fits a network built anew.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] as [`StateDict::check`].
    pub fn from_state(network: &Network, state: &StateDict, device: &Device) -> Result<Self> {
        state.check(network)?;
        let device = device.dispatch();
        let mut next_id = 0u64;
        let mut id = || {
            next_id += 1;
            ParamId::from(next_id)
        };
        let vector = |name: &str| -> Result<Tensor<B, 1>> {
            let array = state.get(name)?;
            Ok(Tensor::from_data(
                TensorData::new(array.values.clone(), [array.values.len()]),
                device,
            ))
        };
        let mut layers = Vec::with_capacity(network.layers.len());
        for layer in &network.layers {
            let name = &layer.name;
            let weight = if layer.op.has_weights() {
                let array = state.get(&format!("{name}.weight"))?;
                let data = TensorData::new(array.values.clone(), [array.rows(), array.row_len()]);
                Some(Param::initialized(id(), Tensor::from_data(data, device).require_grad()))
            } else {
                None
            };
            let mut parameter = |name: &str| Ok::<_, Error>(Param::initialized(id(), vector(name)?.require_grad()));
            let bias = layer.op.has_bias().then(|| parameter(&format!("{name}.bias"))).transpose()?;
            let norm = match layer.op.batch_norm() {
                Some(BatchNorm { name, .. }) => Some(Norm {
                    gamma: parameter(&format!("{name}.weight"))?,
                    beta: parameter(&format!("{name}.bias"))?,
                    mean: RunningState::with_id(id(), vector(&format!("{name}.running_mean"))?),
                    variance: RunningState::with_id(id(), vector(&format!("{name}.running_var"))?),
                }),
                None => None,
            };
            layers.push(Parameters {
                weight,
                bias,
                norm,
                log_scale: None,
            });
        }
        Ok(Self { layers })
    }

    /// The same with a parameter for every weight scale of `quantization`.
    pub(crate) fn with_learned_scales(mut self, quantization: &Quantization, device: &Device) -> Self {
        for (index, (parameters, quantizer)) in self.layers.iter_mut().zip(&quantization.weights).enumerate() {
            let scales = quantizer.as_ref().map_or(0, |quantizer| quantizer.scales.len());
            parameters.log_scale = (scales > 0).then(|| {
                let id = ParamId::from(LOG_SCALES + index as u64);
                Param::initialized(id, Tensor::zeros([scales], device.dispatch()).require_grad())
            });
        }
        self
    }

    /// Moves what was learnt of the scales into `quantization`, where evaluation and export read it, and starts from there.
    pub(crate) fn fold_scales(self, quantization: &mut Quantization, device: &Device) -> Self {
        let mut learnt = false;
        for (parameters, quantizer) in self.layers.iter().zip(&mut quantization.weights) {
            if let (Some(log_scale), Some(quantizer)) = (&parameters.log_scale, quantizer) {
                let factors = to_host(log_scale.val().exp());
                for (scale, factor) in quantizer.scales.iter_mut().zip(factors) {
                    *scale = (*scale * factor).max(weights::MIN_SCALE);
                }
                learnt = true;
            }
        }
        if learnt {
            self.with_learned_scales(quantization, device)
        } else {
            self
        }
    }

    /// Ids of the weights of convolutions and linear layers: what weight decay is for.
    pub(crate) fn weight_ids(&self) -> Vec<ParamId> {
        self.layers
            .iter()
            .filter_map(|layer| Some(layer.weight.as_ref()?.id))
            .collect()
    }

    /// Ids of everything else: biases, BatchNorm, scales.
    pub(crate) fn other_ids(&self) -> Vec<ParamId> {
        let ids = self.layers.iter().map(|layer| {
            let norm = layer.norm.iter().flat_map(|norm| [norm.gamma.id, norm.beta.id]);
            let bias = layer.bias.iter().chain(&layer.log_scale).map(|vector| vector.id);
            norm.chain(bias).collect::<Vec<_>>()
        });
        ids.flatten().collect()
    }

    /// The parameters back on the host. `network` must be the one that this was built from.
    pub fn to_state(&self, network: &Network) -> StateDict {
        let mut state = StateDict::default();
        let shapes = network.parameters().unwrap_or_default();
        let mut tensors = self.layers.iter().flat_map(Parameters::tensors);
        for (name, shape) in shapes {
            if let Some(values) = tensors.next() {
                state.tensors.insert(name, Array { shape, values });
            }
        }
        state
    }

    /// Runs a batch.
    ///
    /// Weights and activations are quantized as `quantization` says and gradients pass straight through; without it, all is
    /// float.
    ///
    /// # Shapes
    /// `x: [n, channels, height, width]`, pixels 0 to 255.
    ///
    /// # Panics
    /// Where `network` is not the one that this was built from, or `x` has another size than its input.
    pub fn forward(&self, network: &Network, quantization: Option<&Quantization>, x: Tensor<B, 4>, mode: Mode) -> Output<B> {
        let statistics = match mode {
            Mode::Train => Statistics::Batch { momentum: MOMENTUM },
            Mode::Frozen => Statistics::Running,
        };
        let weights = quantization.map_or(&[][..], |q| &q.weights);
        let activations = quantization.map_or(&[][..], |q| &q.activations);
        self.run(network, weights, activations, x, statistics, |_, _| {})
    }

    /// [`forward`](Self::forward) with all its switches. Empty `weights`: taken as they are; empty `activations`: float.
    /// `observe` sees every value that is no logit.
    fn run(
        &self,
        network: &Network,
        weights: &[Option<WeightQuantizer>],
        activations: &[ActivationQuantizer],
        x: Tensor<B, 4>,
        statistics: Statistics,
        mut observe: impl FnMut(usize, &Tensor<B, 4>),
    ) -> Output<B> {
        // Number of the last layer that reads each value: after it, the value is dropped.
        let mut last_use = vec![0; network.layers.len() + 1];
        for (index, layer) in network.layers.iter().enumerate() {
            for &input in &layer.inputs {
                last_use[input] = index;
            }
        }
        let x = normalize(x, &network.normalization.mean, &network.normalization.std);
        let x = finish(x, false, activations.first());
        observe(0, &x);
        let mut values: Vec<Option<Tensor<B, 4>>> = vec![Some(x)];
        for (index, (layer, parameters)) in network.layers.iter().zip(&self.layers).enumerate() {
            let mut read = |input: usize| {
                let value = if last_use[input] == index && layer.inputs.iter().filter(|&&i| i == input).count() == 1 {
                    values[input].take()
                } else {
                    values[input].clone()
                };
                value.expect("a checked network reads values that exist")
            };
            let x = read(layer.inputs[0]);
            let quantizer = activations.get(index + 1);
            let y = match &layer.op {
                Op::Conv2d {
                    window,
                    batch_norm,
                    relu,
                    ..
                }
                | Op::DepthwiseConv2d {
                    window,
                    batch_norm,
                    relu,
                    ..
                } => {
                    let weight = parameters.weight(weights.get(index));
                    let y = parameters.convolve(x, weight, window, batch_norm.as_ref(), statistics);
                    finish(y, *relu, quantizer)
                }
                Op::Linear { relu, .. } => {
                    let weight = parameters.weight(weights.get(index));
                    let features = x.flatten::<2>(1, 3);
                    let mut y = features.clone().matmul(weight.transpose());
                    if let Some(bias) = &parameters.bias {
                        y = y + bias.val().unsqueeze();
                    }
                    if index + 1 == network.layers.len() {
                        return Output { features, logits: y };
                    }
                    let [n, outputs] = y.dims();
                    finish(y.reshape([n, outputs, 1, 1]), *relu, quantizer)
                }
                Op::Add { relu } => finish(x + read(layer.inputs[1]), *relu, quantizer),
                Op::AvgPool { window } => finish(average(x, window), false, quantizer),
                // These only move values that are quantized already, and share their quantizer.
                Op::MaxPool { window } => maximum(x, window),
                Op::Subsample {
                    stride,
                    channels_before,
                    channels_after,
                } => subsample(x, *stride, *channels_before, *channels_after),
            };
            observe(index + 1, &y);
            values.push(Some(y));
        }
        unreachable!("a checked network ends with a linear layer")
    }
}

impl<B: FakeQuantize> Parameters<B> {
    /// The weight as the layer multiplies with it, `[rows, values of a row]`.
    fn weight(&self, quantizer: Option<&Option<WeightQuantizer>>) -> Tensor<B, 2> {
        let weight = self.weight.as_ref().expect("the layer was built with weights").val();
        match quantizer {
            Some(Some(quantizer)) => {
                let log_scale = self.log_scale.as_ref().map(Param::val);
                fake_quantize_weight(weight, quantizer, log_scale)
            }
            Some(None) | None => weight,
        }
    }

    /// Convolution, then BatchNorm. The bias is left to BatchNorm where there is one: batch statistics cancel it, and with
    /// running ones it is part of the shift; so it costs no pass over the activations.
    fn convolve(
        &self,
        x: Tensor<B, 4>,
        weight: Tensor<B, 2>,
        window: &Window,
        batch_norm: Option<&BatchNorm>,
        statistics: Statistics,
    ) -> Tensor<B, 4> {
        let [rows, row_len] = weight.dims();
        let channels = x.dims()[1];
        let kernel = [window.kernel_height as usize, window.kernel_width as usize];
        // A depthwise row has one input channel, any other all of them.
        let row_channels = row_len / (kernel[0] * kernel[1]);
        let options = PaddedConvOptions::asymmetric(
            [window.stride_height as usize, window.stride_width as usize],
            [window.pad_top as usize, window.pad_left as usize],
            [window.pad_bottom as usize, window.pad_right as usize],
            [1, 1],
            channels / row_channels,
        );
        let weight = weight.reshape([rows, row_channels, kernel[0], kernel[1]]);
        let bias = self.bias.as_ref().map(Param::val);
        match (&self.norm, batch_norm) {
            (Some(norm), Some(BatchNorm { epsilon, .. })) => {
                norm.forward(B::convolve(x, weight, options), bias, *epsilon, statistics)
            }
            _ => {
                let y = B::convolve(x, weight, options);
                match bias {
                    Some(bias) => add_per_channel(y, bias),
                    None => y,
                }
            }
        }
    }

    /// Every tensor's values, in the order of [`Network::parameters`].
    fn tensors(&self) -> Vec<Vec<f32>> {
        let mut tensors = Vec::new();
        tensors.extend(self.weight.iter().map(|weight| to_host(weight.val())));
        tensors.extend(self.bias.iter().map(|bias| to_host(bias.val())));
        if let Some(norm) = &self.norm {
            tensors.push(to_host(norm.gamma.val()));
            tensors.push(to_host(norm.beta.val()));
            tensors.push(to_host(norm.mean.value_sync()));
            tensors.push(to_host(norm.variance.value_sync()));
        }
        tensors
    }
}

impl<B: FakeQuantize> Norm<B> {
    /// Normalizes a convolution's output that still lacks `bias`.
    fn forward(&self, x: Tensor<B, 4>, bias: Option<Tensor<B, 1>>, epsilon: f32, statistics: Statistics) -> Tensor<B, 4> {
        let [n, _, h, w] = x.dims();
        let (gamma, beta) = (self.gamma.val(), self.beta.val());
        match statistics {
            Statistics::Batch { momentum } => {
                let (y, Moments { mean, variance }) = B::normalize(x, gamma, beta, epsilon, None);
                // The running variance is the unbiased one, as in PyTorch.
                let count = (n * h * w) as f64;
                let unbiased = variance * (count / (count - 1.0).max(1.0));
                let mean = match bias {
                    Some(bias) => mean + bias,
                    None => mean,
                };
                for (running, batch) in [(&self.mean, mean), (&self.variance, unbiased)] {
                    running.update(running.value_sync() * (1.0 - momentum) + batch.detach() * momentum);
                    // Until it is read, the update waits in a queue that copies and saves do not see.
                    running.value_sync();
                }
                y
            }
            Statistics::Running => {
                let (mean, variance) = (self.mean.value_sync(), self.variance.value_sync());
                let beta = match bias {
                    Some(bias) => beta + bias * gamma.clone() / (variance.clone() + epsilon).sqrt(),
                    None => beta,
                };
                B::normalize(x, gamma, beta, epsilon, Some(Moments { mean, variance })).0
            }
        }
    }
}

/// A network as it is deployed: weights quantized once, on the host, by the function that export uses; running statistics;
/// no parameter records a gradient.
#[derive(Clone, Debug)]
pub struct Frozen {
    network: Network,
    activations: Vec<ActivationQuantizer>,
    net: Net<Inner>,
    tracking: Net<Auto>,
    device: Device,
}

impl Frozen {
    /// # Errors
    /// [`ErrorKind::Weights`] where weights or quantization do not fit the network.
    pub fn new(network: &Network, state: &StateDict, quantization: Option<&Quantization>, device: &Device) -> Result<Self> {
        let (state, activations) = match quantization {
            Some(quantization) => {
                state.check(network)?;
                quantization.check(network)?;
                (
                    quantize::dequantized(network, state, quantization)?,
                    quantization.activations.clone(),
                )
            }
            None => (state.clone(), Vec::new()),
        };
        Ok(Self {
            network: network.clone(),
            activations,
            net: Net::from_state(network, &state, device)?,
            tracking: Net::from_state(network, &state, device)?.no_grad(),
            device: device.clone(),
        })
    }

    /// A network in training as it is now. Nothing leaves the device: weights are quantized there.
    pub(crate) fn of(network: &Network, net: &Net<Auto>, quantization: Option<&Quantization>, device: &Device) -> Self {
        let mut net = net.valid();
        if let Some(quantization) = quantization {
            for (parameters, quantizer) in net.layers.iter_mut().zip(&quantization.weights) {
                if let Some(weight) = &parameters.weight {
                    parameters.weight = Some(Param::initialized(weight.id, parameters.weight(Some(quantizer))));
                }
            }
        }
        Self {
            network: network.clone(),
            activations: quantization.map_or(Vec::new(), |quantization| quantization.activations.clone()),
            tracking: net.clone().train::<Auto>().no_grad(),
            net,
            device: device.clone(),
        }
    }

    /// Runs a batch of pixels `[n, channels, height, width]`, 0 to 255.
    ///
    /// # Panics
    /// Where `x` has another size than the network's input.
    pub fn forward(&self, x: Tensor<Inner, 4>) -> Output<Inner> {
        self.net
            .run(&self.network, &[], &self.activations, x, Statistics::Running, |_, _| {})
    }

    /// The gradient of a loss with respect to the pixels, and what the network computed of them.
    ///
    /// `loss` makes one number of the output; to get each image's own gradient, sum over images.
    ///
    /// # Panics
    /// Where `x` has another size than the network's input, or the loss does not depend on the output.
    pub fn input_gradient(
        &self,
        x: Tensor<Inner, 4>,
        loss: impl FnOnce(Output<Auto>) -> Tensor<Auto, 1>,
    ) -> (Tensor<Inner, 4>, Output<Inner>) {
        let x = Tensor::<Auto, 4>::from_inner(x).require_grad();
        let output = self.tracking.run(
            &self.network,
            &[],
            &self.activations,
            x.clone(),
            Statistics::Running,
            |_, _| {},
        );
        let detached = Output {
            features: output.features.clone().inner(),
            logits: output.logits.clone().inner(),
        };
        let gradients = loss(output).backward();
        let gradient = x.grad(&gradients).expect("the loss depends on the network's output");
        (gradient, detached)
    }

    /// Logits of every image, `[images, classes]`, computed `batch` at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] where the images have another size than the network's input, or other classes.
    pub fn logits_of(&self, images: &Dataset, batch: usize) -> Result<Vec<f32>> {
        let mut logits = Vec::with_capacity(images.len() * self.network.classes());
        for batch in batches(&self.network, images, batch)? {
            let x = to_device(images, &batch, &self.device);
            logits.extend(to_host(self.forward(x).logits));
        }
        Ok(logits)
    }

    /// The class with the largest logit of every image, the first one of equals.
    ///
    /// # Errors
    /// As [`logits_of`](Self::logits_of).
    pub fn predict(&self, images: &Dataset) -> Result<Vec<u16>> {
        let logits = self.logits_of(images, BATCH)?;
        Ok(logits.chunks_exact(self.network.classes()).map(top1).collect())
    }

    /// Share of images whose largest logit is their class's, in per cent; 0 of no images.
    ///
    /// # Errors
    /// As [`logits_of`](Self::logits_of).
    pub fn accuracy(&self, images: &Dataset) -> Result<f32> {
        let right = self
            .predict(images)?
            .iter()
            .zip(images.labels())
            .filter(|(a, b)| a == b)
            .count();
        Ok(100.0 * right as f32 / images.len().max(1) as f32)
    }

    /// Shows `see` every value of every batch: its number and its elements, NCHW. Logits are not shown.
    ///
    /// # Errors
    /// As [`logits_of`](Self::logits_of).
    pub fn observe(&self, images: &Dataset, batch: usize, mut see: impl FnMut(usize, &[f32])) -> Result<()> {
        for batch in batches(&self.network, images, batch)? {
            let x = to_device(images, &batch, &self.device);
            let see = |value: usize, tensor: &Tensor<Inner, 4>| see(value, &to_host(tensor.clone()));
            self.net
                .run(&self.network, &[], &self.activations, x, Statistics::Running, see);
        }
        Ok(())
    }

    /// The network it computes.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// Images evaluated at a time.
const BATCH: usize = 128;

/// Index of the largest, the first of equals.
pub fn top1(logits: &[f32]) -> u16 {
    let mut best = 0;
    for (class, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = class;
        }
    }
    best as u16
}

/// Running statistics over all images, for weights as they are in `state`: the average of the batches, each normalized by
/// its own.
///
/// # Errors
/// [`ErrorKind::Weights`] where the weights do not fit the network; [`ErrorKind::Data`] where the images have another size or other classes.
pub fn estimate_statistics(
    network: &Network,
    state: &StateDict,
    images: &Dataset,
    batch: usize,
    device: &Device,
) -> Result<StateDict> {
    let net = Net::<Inner>::from_state(network, state, device)?;
    let mut seen = 0;
    for batch in batches(network, images, batch)? {
        seen += batch.len();
        let statistics = Statistics::Batch {
            momentum: batch.len() as f64 / seen as f64,
        };
        net.run(network, &[], &[], to_device(images, &batch, device), statistics, |_, _| {});
    }
    Ok(net.to_state(network))
}

/// Images as a tensor of pixels, `[n, channels, height, width]`.
pub fn to_device(images: &Dataset, indices: &[usize], device: &Device) -> Tensor<Inner, 4> {
    let planar = batch::to_planar_f32(indices.iter().map(|&i| images.image(i)), images.shape(), None);
    pixels(planar, indices.len(), images.shape(), device)
}

/// Planar pixels `[n, channels, height, width]` as a tensor; `shape` is `[height, width, channels]`.
///
/// # Panics
/// Where there are not `n` images of values.
pub fn pixels(planar: Vec<f32>, n: usize, shape: [usize; 3], device: &Device) -> Tensor<Inner, 4> {
    let [height, width, channels] = shape;
    Tensor::from_data(TensorData::new(planar, [n, channels, height, width]), device.dispatch())
}

/// A tensor's values, row-major.
pub fn to_host<B: Backend<FloatElem = f32>, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("every tensor of this program is of f32")
}

/// Indices of consecutive batches.
fn batches(network: &Network, images: &Dataset, batch: usize) -> Result<Vec<Vec<usize>>> {
    check_fit(network, images)?;
    let indices: Vec<usize> = (0..images.len()).collect();
    Ok(indices.chunks(batch.max(1)).map(<[usize]>::to_vec).collect())
}

/// Whether images are of the network's size and classes.
pub(crate) fn check_fit(network: &Network, images: &Dataset) -> Result<()> {
    let input = network.input;
    if images.shape() != [input.height, input.width, input.channels] {
        let [height, width, channels] = images.shape();
        return Err(Error::new(
            ErrorKind::Data,
            format!(
                "{}: images are {height}x{width}x{channels}, network {} takes {}x{}x{}",
                images.name, network.name, input.height, input.width, input.channels
            ),
        ));
    }
    let (found, classes) = (images.classes.len(), network.classes());
    if found != classes {
        return Err(Error::new(
            ErrorKind::Data,
            format!("{} has {found} classes, network {} has {classes}", images.name, network.name),
        ));
    }
    Ok(())
}

/// Adds `[c]` to `[n, c, h, w]`: normalization by moments that change nothing.
fn add_per_channel<B: FakeQuantize>(x: Tensor<B, 4>, bias: Tensor<B, 1>) -> Tensor<B, 4> {
    let [_, c, _, _] = x.dims();
    let device = x.device();
    let (zeros, ones) = (Tensor::zeros([c], &device), Tensor::<B, 1>::ones([c], &device));
    let (mean, variance) = (zeros, ones.clone());
    B::normalize(x, ones, bias, 0.0, Some(Moments { mean, variance })).0
}

/// `(x - mean) / std` of each channel; nothing where that is the identity.
fn normalize<B: FakeQuantize>(x: Tensor<B, 4>, mean: &[f32], std: &[f32]) -> Tensor<B, 4> {
    if mean.iter().all(|&mean| mean == 0.0) && std.iter().all(|&std| std == 1.0) {
        return x;
    }
    let [n, c, h, w] = x.dims();
    let device = x.device();
    let column = |per_channel: &[f32]| -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(per_channel.repeat(n), [n * c, 1]), &device)
    };
    ((x.reshape([n * c, h * w]) - column(mean)) / column(std)).reshape([n, c, h, w])
}

/// The end of a layer: ReLU and quantization, in one where there are both.
fn finish<B: FakeQuantize>(x: Tensor<B, 4>, relu: bool, quantizer: Option<&ActivationQuantizer>) -> Tensor<B, 4> {
    match quantizer {
        Some(&ActivationQuantizer { scale, zero_point }) => {
            let real = |code: i32| scale * (code - i32::from(zero_point)) as f32;
            let low = if relu { 0.0 } else { real(-128) };
            B::fake_quantize(x, scale, low, real(127))
        }
        None if relu => activation::relu(x),
        None => x,
    }
}

/// As [`weights::quantize_rows`], straight through: the gradient of the quantized weight is the weight's. Where scales are
/// learnt, it is 0 for weights that are clipped, and the scales have one of their own.
fn fake_quantize_weight<B: FakeQuantize>(
    weight: Tensor<B, 2>,
    quantizer: &WeightQuantizer,
    log_scale: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    if let Some(log_scale) = log_scale {
        return learned_step(weight, quantizer, log_scale);
    }
    let [rows, row_len] = weight.dims();
    let fixed = weight.clone().detach();
    let groups = if quantizer.per_tensor {
        fixed.clone().reshape([1, rows * row_len])
    } else {
        fixed.clone()
    };
    let quantized = match quantizer.width {
        Width::W1 => {
            let scale = groups.clone().abs().mean_dim(1).clamp_min(weights::MIN_SCALE);
            // Twice "not negative" less one: the sign, with +1 for zero.
            (groups.greater_equal_elem(0.0).float() * 2.0 - 1.0) * scale
        }
        Width::W2 if quantizer.scales.is_empty() => {
            let magnitude = groups.clone().abs();
            let threshold = magnitude.clone().mean_dim(1) * weights::TERNARY_THRESHOLD;
            let kept = magnitude.clone().greater(threshold.expand(magnitude.shape())).float();
            let count = kept.clone().sum_dim(1).clamp_min(1.0);
            let scale = ((magnitude * kept.clone()).sum_dim(1) / count).clamp_min(weights::MIN_SCALE);
            groups.sign() * kept * scale
        }
        Width::W2 | Width::W4 | Width::W8 => {
            let (min, max) = weights::code_range(quantizer.width);
            let scale = chosen_scales(quantizer, &weight.device());
            (groups / scale.clone()).round().clamp(min, max) * scale
        }
    };
    weight + (quantized.reshape([rows, row_len]) - fixed)
}

/// LSQ (Esser et al. 2020, equations 1 to 3 and 5): `scale * round(clip(weight / scale))`, rounding straight through.
fn learned_step<B: FakeQuantize>(weight: Tensor<B, 2>, quantizer: &WeightQuantizer, log_scale: Tensor<B, 1>) -> Tensor<B, 2> {
    let [rows, row_len] = weight.dims();
    let groups = log_scale.dims()[0];
    let (min, max) = weights::code_range(quantizer.width);
    // The paper's gradient scale, 1 / sqrt(N Q): for SGD, a step of a scale is then of the size of a weight's.
    let share = 1.0 / ((rows * row_len / groups) as f64 * f64::from(max)).sqrt();
    let log_scale = log_scale.clone() * share + log_scale.detach() * (1.0 - share);
    let scale = chosen_scales(quantizer, &weight.device()) * log_scale.reshape([groups, 1]).exp();
    let clipped = (weight.reshape([groups, rows * row_len / groups]) / scale.clone()).clamp(min, max);
    let codes = clipped.clone() + (clipped.clone().round() - clipped).detach();
    (codes * scale).reshape([rows, row_len])
}

/// `[groups, 1]`.
fn chosen_scales<B: FakeQuantize>(quantizer: &WeightQuantizer, device: &B::Device) -> Tensor<B, 2> {
    let scales = quantizer.scales.clone();
    let groups = scales.len();
    Tensor::from_data(TensorData::new(scales, [groups, 1]), device)
}

/// Mean of each window, padding counted as zero.
fn average<B: FakeQuantize>(x: Tensor<B, 4>, window: &Window) -> Tensor<B, 4> {
    let [n, c, h, w] = x.dims();
    let (x, padding) = pad(x, window, 0.0);
    let kernel = [window.kernel_height as usize, window.kernel_width as usize];
    if padding == [0, 0] && x.dims() == [n, c, h, w] && kernel == [h, w] {
        return x.reshape([n * c, h * w]).mean_dim(1).reshape([n, c, 1, 1]);
    }
    let stride = [window.stride_height as usize, window.stride_width as usize];
    avg_pool2d(x, kernel, stride, padding, true, false)
}

/// Largest value of each window, padding left out.
fn maximum<B: FakeQuantize>(x: Tensor<B, 4>, window: &Window) -> Tensor<B, 4> {
    let (x, padding) = pad(x, window, f32::MIN);
    let kernel = [window.kernel_height as usize, window.kernel_width as usize];
    let stride = [window.stride_height as usize, window.stride_width as usize];
    max_pool2d(x, kernel, stride, padding, [1, 1], false)
}

/// What the pooling operation can pad itself, which is the same on opposite sides and at most half a window; else `x` padded.
fn pad<B: FakeQuantize>(x: Tensor<B, 4>, window: &Window, value: f32) -> (Tensor<B, 4>, [usize; 2]) {
    let sides = [window.pad_left, window.pad_right, window.pad_top, window.pad_bottom].map(usize::from);
    let [left, right, top, bottom] = sides;
    let symmetric = left == right && top == bottom;
    if symmetric && 2 * left <= window.kernel_width as usize && 2 * top <= window.kernel_height as usize {
        return (x, [top, left]);
    }
    (x.pad((left, right, top, bottom), PadMode::Constant(value)), [0, 0])
}

/// Every `stride`-th row and column, zero channels before and after.
fn subsample<B: FakeQuantize>(x: Tensor<B, 4>, stride: usize, before: usize, after: usize) -> Tensor<B, 4> {
    let device = x.device();
    let x = if stride == 1 {
        x
    } else {
        max_pool2d(x, [1, 1], [stride, stride], [0, 0], [1, 1], false)
    };
    let [n, _, h, w] = x.dims();
    let zeros = |channels| Tensor::zeros([n, channels, h, w], &device);
    let parts = [
        (before > 0).then(|| zeros(before)),
        Some(x),
        (after > 0).then(|| zeros(after)),
    ];
    Tensor::cat(parts.into_iter().flatten().collect(), 1)
}

#[cfg(test)]
mod tests {

    use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
    use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};
    use crate::data::{Split, synthetic};
    use crate::network::{Layer, Normalization, Shape};
    use crate::quantize::{QuantizeOptions, ptq};
    use crate::zoo::zoo;

    fn random(len: usize, seed: u64, low: f32, high: f32) -> Vec<f32> {
        let mut rng = rng(seed, Purpose::Initialization, 99);
        (0..len).map(|_| low + (high - low) * rng.random::<f32>()).collect()
    }

    fn window(kernel: u8, stride: u8, [top, bottom, left, right]: [u8; 4]) -> Window {
        Window {
            kernel_height: kernel,
            kernel_width: kernel,
            stride_height: stride,
            stride_width: stride,
            pad_top: top,
            pad_bottom: bottom,
            pad_left: left,
            pad_right: right,
        }
    }

    /// Every operation, with every kind of padding and fusion, on a 7x6 image.
    fn zoo_of_operations() -> (Network, StateDict) {
        let norm = |name: &str| {
            Some(BatchNorm {
                name: name.into(),
                epsilon: 0.01,
            })
        };
        let conv = |out_channels, window, bias, batch_norm, relu| Op::Conv2d {
            out_channels,
            window,
            bias,
            batch_norm,
            relu,
        };
        let operations: Vec<(Op, Vec<usize>)> = vec![
            (conv(4, window(3, 2, [0, 1, 1, 2]), true, norm("bn0"), true), vec![0]),
            (
                Op::DepthwiseConv2d {
                    window: window(3, 1, [1, 1, 1, 1]),
                    bias: true,
                    batch_norm: norm("bn1"),
                    relu: false,
                },
                vec![1],
            ),
            (Op::Add { relu: true }, vec![2, 1]),
            (conv(4, window(1, 1, [0; 4]), true, None, false), vec![3]),
            (Op::Add { relu: false }, vec![4, 4]),
            (
                Op::MaxPool {
                    window: window(2, 1, [1, 0, 1, 0]),
                },
                vec![5],
            ),
            (
                Op::Subsample {
                    stride: 2,
                    channels_before: 1,
                    channels_after: 2,
                },
                vec![6],
            ),
            (conv(7, window(2, 2, [1, 0, 0, 1]), false, norm("bn7"), false), vec![5]),
            (Op::Add { relu: false }, vec![7, 8]),
            (
                Op::AvgPool {
                    window: window(2, 1, [0, 1, 1, 1]),
                },
                vec![9],
            ),
            (
                Op::MaxPool {
                    window: window(3, 2, [1, 1, 1, 1]),
                },
                vec![10],
            ),
            (
                Op::Linear {
                    out_features: 9,
                    bias: true,
                    relu: true,
                },
                vec![11],
            ),
            (
                Op::Linear {
                    out_features: 3,
                    bias: false,
                    relu: false,
                },
                vec![12],
            ),
        ];
        let network = Network {
            name: "operations".into(),
            input: Shape {
                height: 7,
                width: 6,
                channels: 2,
            },
            normalization: Normalization {
                mean: vec![100.0, 140.0],
                std: vec![50.0, 70.0],
            },
            layers: operations
                .into_iter()
                .enumerate()
                .map(|(index, (op, inputs))| Layer {
                    name: format!("layer{index}"),
                    op,
                    inputs,
                })
                .collect(),
        };
        let mut state = StateDict::init(&network, 5).unwrap();
        for (seed, (name, array)) in state.tensors.iter_mut().enumerate() {
            let low = if name.ends_with("running_var") { 0.3 } else { -0.8 };
            array.values = random(array.values.len(), seed as u64, low, 1.0);
        }
        (network, state)
    }

    /// One image through the network as written in the operations' documentation, in doubles and plain loops.
    fn naive(network: &Network, state: &StateDict, pixels: &[f32]) -> Vec<Vec<f64>> {
        let shapes = network.shapes().unwrap();
        let tensor = |name: String| -> Vec<f64> { state.tensors[&name].values.iter().map(|&v| f64::from(v)).collect() };
        let plane = network.input.height * network.input.width;
        let normalization = &network.normalization;
        let mut values = vec![
            pixels
                .iter()
                .enumerate()
                .map(|(i, &p)| f64::from((p - normalization.mean[i / plane]) / normalization.std[i / plane]))
                .collect::<Vec<f64>>(),
        ];
        for (index, layer) in network.layers.iter().enumerate() {
            let (from, to) = (shapes[layer.inputs[0]], shapes[index + 1]);
            let x = values[layer.inputs[0]].clone();
            let at = |c: usize, y: isize, x_: isize| -> Option<f64> {
                let inside = (0..from.height as isize).contains(&y) && (0..from.width as isize).contains(&x_);
                inside.then(|| x[(c * from.height + y as usize) * from.width + x_ as usize])
            };
            let mut output = vec![0.0; to.elements()];
            for (i, out) in output.iter_mut().enumerate() {
                let (o, y, x_) = (i / (to.height * to.width), i / to.width % to.height, i % to.width);
                let taps = |window: &Window| {
                    let (top, left) = (window.pad_top as isize, window.pad_left as isize);
                    let (sy, sx) = (window.stride_height as usize, window.stride_width as usize);
                    let mut taps = Vec::new();
                    for ky in 0..window.kernel_height as usize {
                        for kx in 0..window.kernel_width as usize {
                            taps.push(((y * sy + ky) as isize - top, (x_ * sx + kx) as isize - left));
                        }
                    }
                    taps
                };
                *out = match &layer.op {
                    Op::Conv2d { window, .. } | Op::DepthwiseConv2d { window, .. } => {
                        let weight = tensor(format!("{}.weight", layer.name));
                        let depthwise = matches!(layer.op, Op::DepthwiseConv2d { .. });
                        let channels = if depthwise { o..o + 1 } else { 0..from.channels };
                        let per_row = channels.len() * taps(window).len();
                        let mut weights = weight[o * per_row..].iter();
                        let mut sum = 0.0;
                        for c in channels {
                            for (y, x_) in taps(window) {
                                sum += weights.next().unwrap() * at(c, y, x_).unwrap_or(0.0);
                            }
                        }
                        sum
                    }
                    Op::Linear { .. } => {
                        let weight = tensor(format!("{}.weight", layer.name));
                        x.iter().zip(&weight[o * x.len()..]).map(|(x, w)| x * w).sum()
                    }
                    Op::Add { .. } => x[i] + values[layer.inputs[1]][i],
                    Op::MaxPool { window } => {
                        let taps = taps(window).into_iter().filter_map(|(y, x_)| at(o, y, x_));
                        taps.fold(f64::MIN, f64::max)
                    }
                    Op::AvgPool { window } => {
                        let taps = taps(window);
                        taps.iter().map(|&(y, x_)| at(o, y, x_).unwrap_or(0.0)).sum::<f64>() / taps.len() as f64
                    }
                    Op::Subsample {
                        stride, channels_before, ..
                    } => match o.checked_sub(*channels_before) {
                        Some(c) if c < from.channels => at(c, (y * stride) as isize, (x_ * stride) as isize).unwrap(),
                        _ => 0.0,
                    },
                };
                if layer.op.has_bias() {
                    *out += tensor(format!("{}.bias", layer.name))[o];
                }
                if let Some(norm) = layer.op.batch_norm() {
                    let part = |part: &str| tensor(format!("{}.{part}", norm.name))[o];
                    *out = (*out - part("running_mean")) / (part("running_var") + f64::from(norm.epsilon)).sqrt();
                    *out = *out * part("weight") + part("bias");
                }
                if layer.op.relu() {
                    *out = out.max(0.0);
                }
            }
            values.push(output);
        }
        values
    }

    fn image_batch(network: &Network, n: usize) -> Vec<f32> {
        random(n * network.input.elements(), 77, 0.0, 255.0)
    }

    fn tensor(network: &Network, planar: &[f32], n: usize) -> Tensor<Inner, 4> {
        let Shape { height, width, channels } = network.input;
        pixels(planar.to_vec(), n, [height, width, channels], &Device::flex())
    }

    fn assert_close(found: &[f32], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let tolerance = 1e-4 * (1.0 + expected.abs());
            assert!(
                (f64::from(*found) - expected).abs() < tolerance,
                "{what} [{i}]: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn every_operation_computes_what_it_documents() {
        let (network, state) = zoo_of_operations();
        let planar = image_batch(&network, 2);
        let net = Net::<Inner>::from_state(&network, &state, &Device::flex()).unwrap();
        let mut seen = Vec::new();
        let x = tensor(&network, &planar, 2);
        let output = net.run(&network, &[], &[], x, Statistics::Running, |value, tensor| {
            assert_eq!(value, seen.len());
            seen.push(to_host(tensor.clone()));
        });
        let images: Vec<Vec<Vec<f64>>> = planar
            .chunks_exact(network.input.elements())
            .map(|image| naive(&network, &state, image))
            .collect();
        let expected = |value: usize| images.iter().flat_map(|image| image[value].clone()).collect::<Vec<_>>();
        assert_eq!(seen.len(), network.layers.len());
        for (value, found) in seen.iter().enumerate() {
            assert_close(found, &expected(value), &format!("value {value}"));
        }
        let last = network.layers.len();
        assert_close(&to_host(output.logits), &expected(last), "logits");
        assert_close(&to_host(output.features), &expected(last - 1), "features");
    }

    #[test]
    fn parameters_survive_the_way_to_the_device_and_back() {
        let (network, state) = zoo_of_operations();
        let net = Net::<Auto>::from_state(&network, &state, &Device::flex()).unwrap();
        assert_eq!(net.to_state(&network), state);
        assert_eq!(net.valid().to_state(&network), state);
    }

    #[test]
    fn weights_of_another_network_are_refused() {
        let (network, _) = zoo_of_operations();
        let state = StateDict::init(&zoo("tiny", 10).unwrap(), 1).unwrap();
        let error = Net::<Inner>::from_state(&network, &state, &Device::flex()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        assert!(Frozen::new(&network, &state, None, &Device::flex()).is_err());
    }

    #[test]
    fn fake_quantized_weights_are_those_of_the_host() {
        let device = Device::flex();
        let variants = Width::ALL.into_iter().flat_map(|width| [(width, false), (width, true)]);
        for ((width, per_tensor), learned) in variants.flat_map(|variant| [(variant, false), (variant, true)]) {
            let mut values = random(40 * 27, 3, -0.3, 0.3);
            values[..27].fill(0.0);
            values[30] = 0.0;
            let array = Array {
                shape: vec![40, 3, 3, 3],
                values,
            };
            let mut quantizer = WeightQuantizer {
                width,
                scales: weights::choose_scales(&array, width, per_tensor),
                per_tensor,
            };
            if learned {
                quantizer.scales = weights::learnable_scales(&array, &quantizer);
            }
            let host = weights::quantize_rows(&array, &quantizer).dequantize();
            let data = TensorData::new(array.values.clone(), [40, 27]);
            let weight = Tensor::<Auto, 2>::from_data(data, device.dispatch()).require_grad();
            let quantized = fake_quantize_weight(weight.clone(), &quantizer, None);
            for (i, (found, expected)) in to_host(quantized.clone().inner()).iter().zip(&host).enumerate() {
                assert!(
                    (found - expected).abs() <= 1e-6,
                    "{width:?} {per_tensor} [{i}]: {found}, expected {expected}"
                );
            }
            // Straight through: the gradient of the sum of squares is twice the quantized weight.
            let gradients = quantized.clone().square().sum().backward();
            let gradient = to_host(weight.grad(&gradients).unwrap());
            let twice: Vec<f64> = to_host(quantized.inner()).iter().map(|&q| 2.0 * f64::from(q)).collect();
            assert_close(&gradient, &twice, "gradient");
        }
    }

    /// Against LSQ's own formulas, and the codes against the host's.
    #[test]
    fn learned_steps_have_the_papers_gradients() {
        let device = Device::flex();
        for (width, per_tensor) in [(Width::W2, false), (Width::W4, false), (Width::W4, true), (Width::W8, true)] {
            let array = Array {
                shape: vec![6, 20],
                values: random(120, 5, -0.5, 0.5),
            };
            let groups = if per_tensor { 1 } else { 6 };
            // Some weights are clipped.
            let largest = 0.4 / f64::from(weights::code_range(width).1);
            let mut quantizer = WeightQuantizer {
                width,
                scales: vec![largest as f32; groups],
                per_tensor,
            };
            let factors = random(groups, 9, -0.2, 0.2);
            let vector = |values: &[f32]| {
                Tensor::<Auto, 1>::from_data(TensorData::new(values.to_vec(), [values.len()]), device.dispatch())
            };
            let weight =
                Tensor::<Auto, 2>::from_data(TensorData::new(array.values.clone(), [6, 20]), device.dispatch()).require_grad();
            let log_scale = vector(&factors).require_grad();
            let quantized = fake_quantize_weight(weight.clone(), &quantizer, Some(log_scale.clone()));
            let found = to_host(quantized.clone().inner());
            // Each weight's gradient is its number, so that they can be told apart.
            let upstream: Vec<f32> = (0..120).map(|i| (i % 7) as f32 - 3.0).collect();
            let by = Tensor::<Auto, 2>::from_data(TensorData::new(upstream.clone(), [6, 20]), device.dispatch());
            let gradients = (quantized * by).sum().backward();

            for (scale, factor) in quantizer.scales.iter_mut().zip(&factors) {
                *scale *= factor.exp();
            }
            let host = weights::quantize_rows(&array, &quantizer);
            assert_close(
                &found,
                &host.dequantize().iter().map(|&q| f64::from(q)).collect::<Vec<_>>(),
                "values",
            );
            let (min, max) = weights::code_range(width);
            let per_group = 120 / groups;
            let share = 1.0 / (per_group as f64 * f64::from(max)).sqrt();
            let mut of_scale = vec![0.0; groups];
            let mut of_weight = Vec::new();
            let mut clipped = 0;
            for i in 0..120 {
                let scale = quantizer.scales[i / per_group];
                let v = array.values[i] / scale;
                let inside = v > min && v < max;
                clipped += usize::from(!inside);
                let slope = f64::from(f32::from(host.codes[i]) - if inside { v } else { 0.0 });
                of_scale[i / per_group] += f64::from(upstream[i]) * slope * f64::from(scale) * share;
                of_weight.push(if inside { f64::from(upstream[i]) } else { 0.0 });
            }
            assert!(clipped > 5);
            assert_close(&to_host(log_scale.grad(&gradients).unwrap()), &of_scale, "scales");
            assert_close(&to_host(weight.grad(&gradients).unwrap()), &of_weight, "weights");
        }
    }

    #[test]
    fn folding_learned_scales_changes_nothing_that_is_computed() {
        let (network, state) = tiny();
        let images = synthetic::load(Split::Train, 8);
        let device = Device::flex();
        let float = crate::checkpoint::Checkpoint {
            network: network.clone(),
            state: state.clone(),
            quantization: None,
            labels: Vec::new(),
            provenance: Default::default(),
        };
        let mut quantization = ptq(&float, &images, &QuantizeOptions::new(Width::W2), &device)
            .unwrap()
            .quantization
            .unwrap();
        quantize::start_scales(&mut quantization, &network, &state).unwrap();
        let mut net = Net::<Auto>::from_state(&network, &state, &device)
            .unwrap()
            .with_learned_scales(&quantization, &device);
        let mut learnt = 0;
        for parameters in &mut net.layers {
            if let Some(log_scale) = &parameters.log_scale {
                let dims = log_scale.dims();
                parameters.log_scale = Some(Param::initialized(log_scale.id, Tensor::full(dims, 0.1, device.dispatch())));
                learnt += 1;
            }
        }
        assert_eq!(learnt, network.weighted_layers().count());
        let x = to_device(&images, &[0, 1, 2, 3], &device);
        let logits = |net: &Net<Auto>, quantization: &Quantization| -> Vec<f64> {
            let output = net.forward(&network, Some(quantization), Tensor::from_inner(x.clone()), Mode::Frozen);
            to_host(output.logits.inner()).into_iter().map(f64::from).collect()
        };
        let (before, scales) = (logits(&net, &quantization), quantization.clone());
        let net = net.fold_scales(&mut quantization, &device);
        assert_ne!(quantization, scales);
        quantization.check(&network).unwrap();
        let after: Vec<f32> = logits(&net, &quantization).into_iter().map(|v| v as f32).collect();
        assert_close(&after, &before, "logits");
        // And so does the network that is deployed, but for its rounded biases.
        let on_device = Frozen::of(&network, &net, Some(&quantization), &device);
        assert_close(&to_host(on_device.forward(x.clone()).logits), &before, "frozen");
    }

    #[test]
    fn fake_quantized_activations_round_limit_and_pass_gradients_within() {
        let values = vec![-3.0, -1.02, -0.99, -0.26, -0.24, 0.0, 0.24, 0.26, 0.99, 1.3];
        let quantizer = ActivationQuantizer {
            scale: 0.5,
            zero_point: 126,
        };
        // Codes -128 to 127 are -127.0 to 0.5.
        let check = |relu: bool, expected: [f32; 10], slope: [f32; 10]| {
            let data = TensorData::new(values.clone(), [1, 1, 2, 5]);
            let x = Tensor::<Auto, 4>::from_data(data, Device::flex().dispatch()).require_grad();
            let y = finish(x.clone(), relu, Some(&quantizer));
            assert_eq!(to_host(y.clone().inner()), expected);
            let gradients = (y * 3.0).sum().backward();
            assert_eq!(to_host(x.grad(&gradients).unwrap()), slope.map(|s| 3.0 * s));
            let plain = finish(x.inner(), relu, Some(&quantizer));
            assert_eq!(to_host(plain), expected);
        };
        check(
            false,
            [-3.0, -1.0, -1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5],
            [1., 1., 1., 1., 1., 1., 1., 1., 0., 0.],
        );
        check(
            true,
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5],
            [0., 0., 0., 0., 0., 1., 1., 1., 0., 0.],
        );
    }

    fn tiny() -> (Network, StateDict) {
        let network = zoo("tiny", 10).unwrap();
        let state = StateDict::init(&network, 11).unwrap();
        (network, state)
    }

    #[test]
    fn training_normalizes_with_the_batch_and_moves_the_statistics() {
        let (network, state) = tiny();
        let images = synthetic::load(Split::Train, 32);
        let net = Net::<Auto>::from_state(&network, &state, &Device::flex()).unwrap();
        let x = to_device(&images, &(0..32).collect::<Vec<_>>(), &Device::flex());
        let mut first = Vec::new();
        let statistics = Statistics::Batch { momentum: MOMENTUM };
        net.run(
            &network,
            &[],
            &[],
            Tensor::from_inner(x.clone()),
            statistics,
            |value, tensor| {
                if value == 1 {
                    first = to_host(tensor.clone().inner());
                }
            },
        );
        // After ReLU of a standard normal number, the mean square is a half.
        let square = first.iter().map(|v| f64::from(v * v)).sum::<f64>() / first.len() as f64;
        assert!((0.3..0.7).contains(&square), "{square}");
        let moved = net.to_state(&network);
        assert_ne!(moved.tensors["bn1.running_mean"], state.tensors["bn1.running_mean"]);
        // One batch is a tenth of the new variance, the initial 1 nine tenths.
        let estimated = estimate_statistics(&network, &state, &images, 32, &Device::flex()).unwrap();
        let expected: Vec<f64> = estimated.tensors["bn1.running_var"]
            .values
            .iter()
            .map(|&v| 0.9 + 0.1 * f64::from(v))
            .collect();
        assert_close(&moved.tensors["bn1.running_var"].values, &expected, "running variance");

        let before = net.to_state(&network);
        net.forward(&network, None, Tensor::from_inner(x), Mode::Frozen);
        assert_eq!(net.to_state(&network), before);
    }

    #[test]
    fn a_bias_before_batch_norm_only_shifts_the_running_mean() {
        let (network, mut state) = tiny();
        let mut biased = network.clone();
        if let Op::Conv2d { bias, .. } = &mut biased.layers[0].op {
            *bias = true;
        }
        let images = synthetic::load(Split::Train, 16);
        let plain = estimate_statistics(&network, &state, &images, 16, &Device::flex()).unwrap();
        let bias = random(12, 8, -1.0, 1.0);
        let array = Array {
            shape: vec![12],
            values: bias.clone(),
        };
        state.tensors.insert("conv1.bias".into(), array);
        let shifted = estimate_statistics(&biased, &state, &images, 16, &Device::flex()).unwrap();
        let mean = |state: &StateDict| state.tensors["bn1.running_mean"].values.clone();
        let expected: Vec<f64> = mean(&plain).iter().zip(&bias).map(|(m, b)| f64::from(m + b)).collect();
        assert_close(&mean(&shifted), &expected, "mean");
        assert_eq!(shifted.tensors["bn1.running_var"], plain.tensors["bn1.running_var"]);
        assert_eq!(shifted.tensors["bn2.running_mean"], plain.tensors["bn2.running_mean"]);
        // And the network computes the same with either pair.
        let logits = |network: &Network, state: &StateDict| {
            let frozen = Frozen::new(network, state, None, &Device::flex()).unwrap();
            frozen.logits_of(&images, 5).unwrap()
        };
        let expected: Vec<f64> = logits(&network, &plain).iter().map(|&v| f64::from(v)).collect();
        assert_close(&logits(&biased, &shifted), &expected, "logits");
    }

    #[test]
    fn pixel_gradients_are_those_of_finite_differences() {
        let (network, state) = zoo_of_operations();
        let planar = image_batch(&network, 1);
        let frozen = Frozen::new(&network, &state, None, &Device::flex()).unwrap();
        let loss = |output: Output<Auto>| output.logits.square().sum();
        let (gradient, output) = frozen.input_gradient(tensor(&network, &planar, 1), loss);
        assert_eq!(
            to_host(output.logits),
            to_host(frozen.forward(tensor(&network, &planar, 1)).logits)
        );
        let gradient = to_host(gradient);
        let exact = |planar: &[f32]| -> f64 { naive(&network, &state, planar).last().unwrap().iter().map(|v| v * v).sum() };
        let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
        assert!(largest > 0.0);
        for (i, &found) in gradient.iter().enumerate() {
            let step = 1e-2;
            let moved = |by: f32| {
                let mut planar = planar.clone();
                planar[i] += by;
                exact(&planar)
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let tolerance = 0.01 * f64::from(largest);
            assert!(
                (f64::from(found) - expected).abs() < tolerance,
                "pixel {i}: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn attacks_leave_a_frozen_network_as_it_is() {
        let (network, state) = tiny();
        let images = synthetic::load(Split::Train, 8);
        let frozen = Frozen::new(&network, &state, None, &Device::flex()).unwrap();
        let x = to_device(&images, &[0, 1, 2], &Device::flex());
        let before = frozen.logits_of(&images, 8).unwrap();
        for _ in 0..2 {
            frozen.input_gradient(x.clone(), |output| output.logits.sum());
        }
        assert_eq!(frozen.logits_of(&images, 8).unwrap(), before);
        assert_eq!(frozen.tracking.to_state(&network), state);
    }

    #[test]
    fn batch_size_does_not_change_an_image_s_logits() {
        let (network, state) = tiny();
        let images = synthetic::load(Split::Test, 10);
        let frozen = Frozen::new(&network, &state, None, &Device::flex()).unwrap();
        let whole: Vec<f64> = frozen.logits_of(&images, 10).unwrap().iter().map(|&v| f64::from(v)).collect();
        assert_close(&frozen.logits_of(&images, 3).unwrap(), &whole, "logits");
        let right = frozen
            .predict(&images)
            .unwrap()
            .iter()
            .zip(images.labels())
            .filter(|(a, b)| a == b)
            .count();
        assert_eq!(frozen.accuracy(&images).unwrap(), 10.0 * right as f32);
    }

    #[test]
    fn images_of_another_size_are_data_errors() {
        let (network, state) = zoo_of_operations();
        let frozen = Frozen::new(&network, &state, None, &Device::flex()).unwrap();
        let error = frozen.accuracy(&synthetic::load(Split::Test, 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(
            error.to_string().contains("32x32x3") && error.to_string().contains("7x6x2"),
            "{error}"
        );
    }

    #[test]
    fn images_of_other_classes_are_data_errors() {
        let network = crate::zoo::zoo("tiny", 11).unwrap();
        let state = StateDict::init(&network, 1).unwrap();
        let frozen = Frozen::new(&network, &state, None, &Device::flex()).unwrap();
        let error = frozen.predict(&synthetic::load(Split::Test, 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("has 10 classes, network tiny has 11"), "{error}");
    }

    #[test]
    fn training_and_frozen_networks_see_the_same_quantization() {
        let (network, state) = tiny();
        let images = synthetic::load(Split::Train, 64);
        for width in Width::ALL {
            let float = crate::checkpoint::Checkpoint {
                network: network.clone(),
                state: state.clone(),
                quantization: None,
                labels: Vec::new(),
                provenance: Default::default(),
            };
            let quantized = ptq(&float, &images, &QuantizeOptions::new(width), &Device::flex()).unwrap();
            let quantization = quantized.quantization.as_ref();
            let frozen = Frozen::new(&network, &quantized.state, quantization, &Device::flex()).unwrap();
            // Training leaves biases as they are.
            let state = quantize::whole_biases(&network, &quantized.state, quantization.unwrap()).unwrap();
            let net = Net::<Auto>::from_state(&network, &state, &Device::flex()).unwrap();
            let x = to_device(&images, &[0, 1, 2, 3, 4, 5, 6, 7], &Device::flex());
            let a = to_host(frozen.forward(x.clone()).features);
            let b = to_host(
                net.forward(&network, quantization, Tensor::from_inner(x), Mode::Frozen)
                    .features
                    .inner(),
            );
            // A last bit of a scale may move a value that lies between two codes.
            let step = quantization.unwrap().activations[network.layers.len() - 1].scale;
            let other = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 0.5 * step).count();
            assert!(other * 100 <= a.len(), "{width:?}: {other} of {}", a.len());
        }
    }

    #[test]
    fn optimizer_state_fits_a_network_built_anew() {
        let (network, state) = tiny();
        let images = synthetic::load(Split::Train, 24);
        let device = Device::flex();
        let step = |net: Net<Auto>, optimizer: &mut dyn FnMut(Net<Auto>, GradientsParams) -> Net<Auto>, at: usize| {
            let x = to_device(&images, &[at, at + 1, at + 2, at + 3], &device);
            let output = net.forward(&network, None, Tensor::from_inner(x), Mode::Train);
            let gradients = GradientsParams::from_grads(output.logits.square().mean().backward(), &net);
            optimizer(net, gradients)
        };
        let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();

        let mut optimizer = AdamWConfig::new().init::<Auto, Net<Auto>>();
        let mut net = Net::from_state(&network, &state, &device).unwrap();
        for at in 0..3 {
            net = step(net, &mut |net, gradients| optimizer.step(1e-2, net, gradients), at);
        }
        let stored = net.to_state(&network);
        let record: Vec<u8> = Recorder::<Auto>::record(&recorder, optimizer.to_record(), ()).unwrap();
        let unbroken = step(net, &mut |net, gradients| optimizer.step(1e-2, net, gradients), 5).to_state(&network);

        let resume = |record: Option<Vec<u8>>| {
            let mut optimizer = AdamWConfig::new().init::<Auto, Net<Auto>>();
            if let Some(record) = record {
                optimizer = optimizer.load_record(Recorder::<Auto>::load(&recorder, record, device.dispatch()).unwrap());
            }
            let net = Net::from_state(&network, &stored, &device).unwrap();
            step(net, &mut |net, gradients| optimizer.step(1e-2, net, gradients), 5).to_state(&network)
        };
        assert_eq!(resume(Some(record)), unbroken);
        assert_ne!(resume(None), unbroken);
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn ndarray_agrees_with_flex() {
        let (network, state) = zoo_of_operations();
        let planar = image_batch(&network, 2);
        let logits = |device: Device| {
            let net = Net::<Auto>::from_state(&network, &state, &device).unwrap();
            let Shape { height, width, channels } = network.input;
            let x = pixels(planar.clone(), 2, [height, width, channels], &device);
            let output = net.forward(&network, None, Tensor::from_inner(x), Mode::Train);
            let gradients = GradientsParams::from_grads(output.logits.clone().square().sum().backward(), &net);
            let id = net.layers[0].weight.as_ref().unwrap().id;
            let gradient: Tensor<Inner, 2> = gradients.get(id).unwrap();
            [to_host(output.logits.inner()), to_host(gradient)].concat()
        };
        let expected: Vec<f64> = logits(Device::flex()).iter().map(|&v| f64::from(v)).collect();
        assert_close(
            &logits(Device::from_name("ndarray").unwrap()),
            &expected,
            "logits and gradient",
        );
    }

    #[test]
    fn equal_logits_give_the_first_class() {
        assert_eq!(top1(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(top1(&[0.0, 0.0]), 0);
        assert_eq!(top1(&[-2.0, -1.0]), 1);
    }
}
