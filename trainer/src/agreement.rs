//! Whether two devices compute the same step: one fixed batch, forward, backward and one step of Adam on each.
//!
//! Nothing is promised bit for bit between devices: sums of thousands of products are taken in another order. What is asked for
//! is written in [`Tolerance::of`], for each kind of tensor, and in two parts: how much an element may differ, and what share of
//! the elements may differ by more. A share is needed because some elements are decided by a comparison:
//! - ReLU and the limits of fake quantization let a gradient pass or not; a value next to such a limit may fall on either side.
//! - Fake quantization rounds: a value half way between two codes may take either, which moves it by a whole code. Every
//!   later layer then sees other inputs and rounds other values elsewhere, so that behind a few layers of a quantized network
//!   small differences are everywhere, and a few of a code or more.
//! - Adam's first step is the learning rate times the gradient's sign: an element whose gradient is nothing but rounding
//!   steps either way.
//!
//! # Where the tolerances come from
//! From the same step taken twice on flex, once with every convolution's output rounded to 21 bits, which stands for another
//! order of its sums, and once with its operands rounded to TF32, which is how tensor cores multiply: untrained `tiny`,
//! `resnet8` and `resnet20` at one, two and four bits, two seeds, 16 images of noise, the hardest case there is (gradients that
//! almost cancel). The tolerances are 1.3 to 20 times the worst of these. A gradient that has nothing to do with the right
//! one exceeds them all the same: 48 % of such elements differ by more than the typical magnitude, 32 % where the gradient is
//! zero, and half of Adam's steps go the other way.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer as _};
use burn::tensor::Tensor;
use rand::Rng;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::data::batch::{Purpose, rng};
use crate::device::Device;
use crate::network::Network;
use crate::nn::{self, Auto, Inner, Mode, Net};
use crate::quantize;
use crate::train::{cross_entropy, targets};
use crate::{Error, ErrorKind, Result};

/// Learning rate of the step of Adam.
const LEARNING_RATE: f64 = 1e-3;

/// What a tensor of a step is, and with it how closely two devices must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Output of the last layer.
    Logits,
    /// Mean cross-entropy.
    Loss,
    /// Of the loss, with respect to a parameter.
    Gradient,
    /// Of the loss, with respect to the pixels.
    InputGradient,
    /// BatchNorm's running statistics after the step.
    Statistics,
    /// A parameter after the step. Differences count in learning rates, the most that Adam's first step moves by.
    Updated,
}

/// How closely two devices must agree on a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// Largest difference of an element, relative to the tensor's root mean square (of [`Kind::Updated`]: to the learning rate).
    pub difference: f64,
    /// Share of the elements that may differ by more, to the next whole element.
    pub share: f64,
}

/// How a device multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    /// In f32: flex and ndarray.
    Single,
    /// On tensor cores in TF32, with 10 bits behind the point: burn's convolutions and matrix products on CUDA, where it finds
    /// them faster, and PyTorch's convolutions unless told otherwise.
    TensorFloat32,
}

/// One tensor on two devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// `float logits`, `quantized gradient conv1.weight`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its elements.
    pub elements: usize,
    /// The largest difference, relative as in [`Tolerance`].
    pub difference: f64,
    /// Share of the elements that differ by more than the tolerance.
    pub share: f64,
    /// What was asked for.
    pub tolerance: Tolerance,
}

impl Comparison {
    /// Whether it is within its tolerance.
    pub fn agrees(&self) -> bool {
        let beyond = self.share * self.elements as f64;
        beyond.round() <= (self.tolerance.share * self.elements as f64).ceil()
    }
}

/// Everything compared of one network in one form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// The device compared.
    pub device: String,
    /// The device it is compared with.
    pub against: String,
    /// Every tensor.
    pub tensors: Vec<Comparison>,
}

impl Agreement {
    /// Whether all tensors agree.
    pub fn holds(&self) -> bool {
        self.tensors.iter().all(Comparison::agrees)
    }

    /// Those that do not agree.
    pub fn exceeded(&self) -> impl Iterator<Item = &Comparison> {
        self.tensors.iter().filter(|tensor| !tensor.agrees())
    }

    /// Of the tensors of `kind` in a `form` (`float`, `weights`, `quantized`), the one with the largest difference.
    pub fn worst(&self, form: Form, kind: Kind) -> Option<&Comparison> {
        self.tensors
            .iter()
            .filter(|tensor| tensor.kind == kind && tensor.name.starts_with(form.name()))
            .max_by(|a, b| a.difference.total_cmp(&b.difference))
    }
}

/// How much of the network is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing.
    Float,
    /// Weights only, with learnt scales where the width has them.
    Weights,
    /// Weights and activations.
    Quantized,
}

impl Form {
    /// All of them, in the order in which they are compared.
    pub const ALL: [Form; 3] = [Form::Float, Form::Weights, Form::Quantized];

    /// `float`, `weights` or `quantized`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Float => "float",
            Form::Weights => "weights",
            Form::Quantized => "quantized",
        }
    }

    fn of(self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        let mut checkpoint = checkpoint.clone();
        match (self, &mut checkpoint.quantization) {
            (Form::Float, quantization) => *quantization = None,
            (Form::Weights, Some(quantization)) => {
                quantization.activations.clear();
                quantize::start_scales(quantization, &checkpoint.network, &checkpoint.state)?;
            }
            (Form::Weights, None) | (Form::Quantized, _) => {}
        }
        Ok(checkpoint)
    }
}

impl Tolerance {
    /// What is asked of a tensor of `kind`.
    pub fn of(kind: Kind, form: Form, products: Products) -> Self {
        use {Form::*, Kind::*, Products::*};
        let (difference, share) = match (form, products, kind) {
            (Float | Weights, Single, Logits | Loss | Statistics) => (1e-4, 0.0),
            (Float | Weights, Single, Gradient | InputGradient) => (0.1, 0.01),
            (Float | Weights, Single, Updated) => (0.1, 0.05),
            (Float | Weights, TensorFloat32, Logits) => (1e-2, 0.0),
            (Float | Weights, TensorFloat32, Loss | Statistics) => (1e-3, 0.0),
            (Float | Weights, TensorFloat32, Gradient | InputGradient) => (0.5, 0.02),
            (Float | Weights, TensorFloat32, Updated) => (0.1, 0.25),
            // Codes that flip outweigh how products are rounded.
            (Quantized, Single | TensorFloat32, Logits) => (0.1, 0.0),
            (Quantized, Single | TensorFloat32, Loss | Statistics) => (1e-2, 0.0),
            (Quantized, Single | TensorFloat32, Gradient) => (1.0, 0.25),
            (Quantized, Single | TensorFloat32, InputGradient) => (1.0, 0.1),
            (Quantized, Single | TensorFloat32, Updated) => (0.1, 0.4),
        };
        Self { difference, share }
    }
}

impl Products {
    /// How `device` multiplies.
    pub fn of(device: &Device) -> Self {
        if device.is_gpu() {
            Products::TensorFloat32
        } else {
            Products::Single
        }
    }
}

/// Runs one step of `checkpoint`, which is quantized, on `images` on both devices, in each [`Form`].
///
/// # Errors
/// [`ErrorKind::Data`] where the images do not fit the network; [`ErrorKind::Weights`] where the weights do not;
/// [`ErrorKind::Usage`] where the checkpoint is not quantized.
pub fn compare(checkpoint: &Checkpoint, images: &Dataset, device: &Device, against: &Device) -> Result<Agreement> {
    if checkpoint.quantization.is_none() {
        return Err(Error::new(ErrorKind::Usage, "agreement is measured on a quantized network").remedy("quantize it first"));
    }
    nn::check_fit(&checkpoint.network, images)?;
    let products = Products::of(device).max(Products::of(against));
    let mut tensors = Vec::new();
    for form in Form::ALL {
        let checkpoint = form.of(checkpoint)?;
        let (ours, theirs) = (
            step(&checkpoint, form, images, device)?,
            step(&checkpoint, form, images, against)?,
        );
        for (ours, theirs) in ours.iter().zip(&theirs) {
            tensors.push(ours.compare(theirs, form, Tolerance::of(ours.kind, form, products)));
        }
    }
    Ok(Agreement {
        device: device.name().to_owned(),
        against: against.name().to_owned(),
        tensors,
    })
}

/// One tensor of a step.
struct Seen {
    name: String,
    kind: Kind,
    values: Vec<f32>,
}

impl Seen {
    fn compare(&self, reference: &Seen, form: Form, tolerance: Tolerance) -> Comparison {
        let squares: f64 = reference.values.iter().map(|&value| f64::from(value).powi(2)).sum();
        let typical = (squares / reference.values.len().max(1) as f64).sqrt();
        let scale = match self.kind {
            Kind::Updated => LEARNING_RATE,
            // Where all should be zero, nothing is relative to it.
            Kind::Logits | Kind::Loss | Kind::Gradient | Kind::InputGradient | Kind::Statistics => typical.max(1e-9),
        };
        let (mut difference, mut beyond) = (0f64, 0);
        for (a, b) in self.values.iter().zip(&reference.values) {
            let found = f64::from((a - b).abs()) / scale;
            if found.is_nan() || found > tolerance.difference {
                beyond += 1;
            }
            difference = if found.is_nan() {
                f64::INFINITY
            } else {
                difference.max(found)
            };
        }
        let elements = reference.values.len();
        if self.values.len() != elements {
            (difference, beyond) = (f64::INFINITY, elements);
        }
        Comparison {
            name: format!("{} {}", form.name(), self.name),
            kind: self.kind,
            elements,
            difference,
            share: beyond as f64 / elements.max(1) as f64,
            tolerance,
        }
    }
}

/// Everything that one step computes, in an order that depends on the network alone.
fn step(checkpoint: &Checkpoint, form: Form, images: &Dataset, device: &Device) -> Result<Vec<Seen>> {
    let network = &checkpoint.network;
    let mut net = Net::<Auto>::from_state(network, &checkpoint.state, device)?;
    if let (Form::Weights, Some(quantization)) = (form, &checkpoint.quantization) {
        net = net.with_learned_scales(quantization, device);
    }
    let rows: Vec<usize> = (0..images.len()).collect();
    let x = Tensor::<Auto, 4>::from_inner(nn::to_device(images, &rows, device)).require_grad();
    let output = net.forward(network, checkpoint.quantization.as_ref(), x.clone(), Mode::Train);
    let targets = targets(images.labels(), network.classes(), 0.0, device);
    let loss = cross_entropy(output.logits.clone(), targets);
    let seen = |kind, name: &str, values| Seen {
        name: name.to_owned(),
        kind,
        values,
    };
    let mut found = vec![
        seen(Kind::Logits, "logits", nn::to_host(output.logits)),
        seen(Kind::Loss, "loss", nn::to_host(loss.clone())),
    ];
    let gradients = loss.backward();
    if let Some(gradient) = x.grad(&gradients) {
        found.push(seen(Kind::InputGradient, "input gradient", nn::to_host(gradient)));
    }
    let gradients = GradientsParams::from_grads(gradients, &net);
    let mut walk = Walk::new(network, Some(&gradients));
    net.visit(&mut walk);
    found.append(&mut walk.found);
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).init();
    let net: Net<Auto> = optimizer.step(LEARNING_RATE, net, gradients);
    let mut walk = Walk::new(network, None);
    net.valid().train::<Auto>().visit(&mut walk);
    found.append(&mut walk.found);
    Ok(found)
}

/// Collects gradients, or else parameters, under the names of the state dict where they have one there.
struct Walk<'a> {
    network: &'a Network,
    gradients: Option<&'a GradientsParams>,
    path: Vec<String>,
    found: Vec<Seen>,
}

impl<'a> Walk<'a> {
    fn new(network: &'a Network, gradients: Option<&'a GradientsParams>) -> Self {
        Self {
            network,
            gradients,
            path: Vec::new(),
            found: Vec::new(),
        }
    }

    /// `conv1.weight` for `layers 0 weight`, `bn1.bias` for `layers 0 norm beta`.
    fn name(&self) -> String {
        let mut path = self.path.iter().map(String::as_str).filter(|part| *part != "layers");
        let layer = path
            .next()
            .and_then(|index| self.network.layers.get(index.parse::<usize>().ok()?));
        let rest: Vec<&str> = path.collect();
        let Some(layer) = layer else { return self.path.join(".") };
        match (rest.as_slice(), layer.op.batch_norm()) {
            (["norm", part], Some(norm)) => {
                let part = match *part {
                    "gamma" => "weight",
                    "beta" => "bias",
                    "mean" => "running_mean",
                    "variance" => "running_var",
                    other => other,
                };
                format!("{}.{part}", norm.name)
            }
            _ => format!("{}.{}", layer.name, rest.join(".")),
        }
    }
}

impl ModuleVisitor<Auto> for Walk<'_> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<Auto, D>>) {
        let name = self.name();
        let (kind, word, values) = match self.gradients {
            Some(gradients) => match gradients.get::<Inner, D>(parameter.id) {
                Some(gradient) => (Kind::Gradient, "gradient", nn::to_host(gradient)),
                // Statistics, and a bias that batch statistics cancel.
                None => return,
            },
            None => {
                let statistic = name.ends_with("running_mean") || name.ends_with("running_var");
                let (kind, word) = if statistic {
                    (Kind::Statistics, "statistics")
                } else {
                    (Kind::Updated, "updated")
                };
                (kind, word, nn::to_host(parameter.val().inner()))
            }
        };
        self.found.push(Seen {
            name: format!("{word} {name}"),
            kind,
            values,
        });
    }

    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
}

/// `count` images of evenly distributed noise that fit `network`, with labels.
pub fn noise(network: &Network, count: usize, seed: u64) -> Dataset {
    let mut rng = rng(seed, Purpose::Noise, 0);
    let classes = network.classes();
    Dataset {
        name: "noise".into(),
        classes: (0..classes).map(|class| class.to_string()).collect(),
        height: network.input.height,
        width: network.input.width,
        channels: network.input.channels,
        images: (0..count * network.input.elements()).map(|_| rng.random()).collect(),
        labels: (0..count).map(|_| rng.random_range(0..classes) as u16).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::state_dict::StateDict;
    use crate::zoo::zoo;

    fn quantized(width: Width) -> (Checkpoint, Dataset) {
        let network = zoo("tiny", 10).unwrap();
        let images = noise(&network, 8, 3);
        let float = Checkpoint {
            state: StateDict::init(&network, 5).unwrap(),
            network,
            quantization: None,
            labels: Vec::new(),
            provenance: Default::default(),
        };
        (
            ptq(&float, &images, &QuantizeOptions::new(width), &Device::flex()).unwrap(),
            images,
        )
    }

    #[test]
    fn a_device_agrees_with_itself_to_the_bit_and_every_tensor_is_named() {
        let (checkpoint, images) = quantized(Width::W2);
        let agreement = compare(&checkpoint, &images, &Device::flex(), &Device::flex()).unwrap();
        assert!(agreement.holds() && agreement.exceeded().count() == 0);
        assert!(
            agreement
                .tensors
                .iter()
                .all(|tensor| tensor.difference == 0.0 && tensor.share == 0.0)
        );
        for form in Form::ALL {
            let has = |rest: &str| agreement.tensors.iter().any(|t| t.name == format!("{} {rest}", form.name()));
            for name in checkpoint.state.tensors.keys() {
                if name.ends_with("running_mean") || name.ends_with("running_var") {
                    assert!(has(&format!("statistics {name}")), "{name}");
                } else {
                    assert!(has(&format!("gradient {name}")) && has(&format!("updated {name}")), "{name}");
                }
            }
            assert!(has("logits") && has("loss") && has("input gradient"));
            assert_eq!(agreement.worst(form, Kind::InputGradient).unwrap().elements, 8 * 32 * 32 * 3);
        }
        assert!(!serde_json::to_string(&agreement).unwrap().contains("null"));
    }

    /// One weight of one layer: what a kernel does that is right but for an edge.
    #[test]
    fn another_computation_does_not_agree() {
        let (checkpoint, images) = quantized(Width::W4);
        let mut other = checkpoint.clone();
        other.state.tensors.get_mut("conv2.weight").unwrap().values[0] += 0.5;
        let device = Device::flex();
        for form in Form::ALL {
            let [ours, theirs] =
                [&other, &checkpoint].map(|checkpoint| step(&form.of(checkpoint).unwrap(), form, &images, &device).unwrap());
            for products in [Products::Single, Products::TensorFloat32] {
                let exceeded: Vec<String> = ours
                    .iter()
                    .zip(&theirs)
                    .map(|(a, b)| a.compare(b, form, Tolerance::of(a.kind, form, products)))
                    .filter(|tensor| !tensor.agrees())
                    .map(|tensor| tensor.name)
                    .collect();
                assert!(!exceeded.is_empty(), "{form:?} {products:?}");
            }
        }
    }

    #[test]
    fn a_gradient_of_another_batch_or_none_exceeds_every_tolerance() {
        let (checkpoint, images) = quantized(Width::W2);
        let others = noise(&checkpoint.network, 8, 4);
        let device = Device::flex();
        for form in Form::ALL {
            let [ours, theirs] =
                [&others, &images].map(|images| step(&form.of(&checkpoint).unwrap(), form, images, &device).unwrap());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let of_pixels = ours.kind == Kind::InputGradient;
                let of_many = ours.kind == Kind::Gradient && ours.values.len() > 500;
                if !(of_pixels || of_many) {
                    continue;
                }
                let tolerance = Tolerance::of(ours.kind, form, Products::TensorFloat32);
                assert!(!ours.compare(theirs, form, tolerance).agrees(), "{form:?} {}", ours.name);
                let none = Seen {
                    name: ours.name.clone(),
                    values: vec![0.0; ours.values.len()],
                    ..*ours
                };
                assert!(!none.compare(theirs, form, tolerance).agrees(), "{form:?} {}", ours.name);
            }
        }
    }

    #[test]
    fn numbers_that_are_none_never_agree() {
        let seen = |value: f32| Seen {
            name: "gradient".into(),
            kind: Kind::Gradient,
            values: vec![value; 4],
        };
        let tolerance = Tolerance::of(Kind::Gradient, Form::Quantized, Products::TensorFloat32);
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, 1.0)] {
            let comparison = seen(a).compare(&seen(b), Form::Quantized, tolerance);
            assert!(!comparison.agrees() && comparison.difference == f64::INFINITY, "{a} {b}");
        }
        // Where all is zero, so must the other be.
        assert!(seen(0.0).compare(&seen(0.0), Form::Float, tolerance).agrees());
        assert!(!seen(1e-6).compare(&seen(0.0), Form::Float, tolerance).agrees());
    }

    #[test]
    fn a_float_checkpoint_is_a_usage_error() {
        let (checkpoint, images) = quantized(Width::W2);
        let error = compare(
            &Form::Float.of(&checkpoint).unwrap(),
            &images,
            &Device::flex(),
            &Device::flex(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}
