//! BatchNorm that is quick on the CPU.
//!
//! Composed of tensor operations, a BatchNorm reads and writes all activations some twenty times in a training step, and waits for
//! memory. Here a channel is read once forward and twice backward while it is in the cache, and gradients replace what they are
//! computed from. Every sum is taken in an order that does not depend on the number of threads. On other devices the operations are
//! composed, and the backend makes of them what it can.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use burn_dispatch::DispatchDevice;
use rayon::prelude::*;
use std::sync::Arc;

use crate::device::is_flex;
use crate::nn::{Auto, Inner, to_host};

/// Mean and biased variance of every channel, `[c]` each; no gradient is recorded through either.
#[derive(Clone, Debug)]
pub struct Moments<B: Backend> {
    pub mean: Tensor<B, 1>,
    pub variance: Tensor<B, 1>,
}

/// A backend that normalizes: [`Inner`] and [`Auto`].
pub trait Normalize: Backend<Device = DispatchDevice, FloatElem = f32> {
    /// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` of each channel (Ioffe and Szegedy 2015, algorithm 1), and the
    /// moments that were used: those given, else the batch's, through which gradients flow.
    ///
    /// # Shapes
    /// `x: [n, c, h, w]` | `gamma`, `beta`: `[c]` | result `[n, c, h, w]`
    fn normalize(
        x: Tensor<Self, 4>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f32,
        given: Option<Moments<Self>>,
    ) -> (Tensor<Self, 4>, Moments<Self>);
}

impl Normalize for Inner {
    fn normalize(
        x: Tensor<Self, 4>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f32,
        given: Option<Moments<Self>>,
    ) -> (Tensor<Self, 4>, Moments<Self>) {
        if !is_flex(&x.device()) {
            return composed(x, gamma, beta, epsilon, given);
        }
        let channels = Channels::new(x.dims(), epsilon, given.map(Moments::into_host));
        let device = x.device();
        let (y, statistics) = channels.forward(&to_host(x), &to_host(gamma), &to_host(beta));
        (channels.tensor(y, &device), channels.moments(&statistics, &device))
    }
}

impl Normalize for Auto {
    fn normalize(
        x: Tensor<Self, 4>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f32,
        given: Option<Moments<Self>>,
    ) -> (Tensor<Self, 4>, Moments<Self>) {
        if !is_flex(&x.device()) {
            return composed(x, gamma, beta, epsilon, given);
        }
        let channels = Channels::new(x.dims(), epsilon, given.map(Moments::into_host));
        let device = x.device();
        let nodes = [
            x.clone().into_primitive().tensor().node,
            gamma.clone().into_primitive().tensor().node,
            beta.clone().into_primitive().tensor().node,
        ];
        let (x, gamma) = (to_host(x.inner()), to_host(gamma.inner()));
        let (y, statistics) = channels.forward(&x, &gamma, &to_host(beta.inner()));
        let moments = channels.moments(&statistics, &device);
        let y = channels.tensor(y, &device).into_primitive().tensor();
        let y = match Normalization.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = Saved {
                    channels,
                    x: x.into(),
                    gamma: gamma.into(),
                    statistics: statistics.into(),
                };
                prep.finish(saved, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        let moments = Moments {
            mean: Tensor::from_inner(moments.mean),
            variance: Tensor::from_inner(moments.variance),
        };
        (Tensor::from_primitive(TensorPrimitive::Float(y)), moments)
    }
}

/// The same of the backend's operations.
fn composed<B: Backend>(
    x: Tensor<B, 4>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f32,
    given: Option<Moments<B>>,
) -> (Tensor<B, 4>, Moments<B>) {
    let [n, c, h, w] = x.dims();
    let x = x.reshape([n * c, h * w]);
    // A 4-D broadcast costs ten times as much on a CPU.
    let column = |per_channel: Tensor<B, 1>| per_channel.reshape([1, c]).repeat_dim(0, n).reshape([n * c, 1]);
    let (y, moments) = match given {
        None => {
            let mean_of = |x: Tensor<B, 2>| x.mean_dim(1).reshape([n, c]).mean_dim(0).reshape([c]);
            let mean: Tensor<B, 1> = mean_of(x.clone());
            let centred = x - column(mean.clone());
            let variance: Tensor<B, 1> = mean_of(centred.clone().square());
            let y = centred * column(gamma / (variance.clone() + epsilon).sqrt()) + column(beta);
            let (mean, variance) = (mean.detach(), variance.detach());
            (y, Moments { mean, variance })
        }
        Some(moments) => {
            let gain = gamma / (moments.variance.clone() + epsilon).sqrt();
            let y = x * column(gain.clone()) + column(beta - moments.mean.clone() * gain);
            (y, moments)
        }
    };
    (y.reshape([n, c, h, w]), moments)
}

impl<B: Backend<FloatElem = f32>> Moments<B> {
    /// Mean and variance.
    fn into_host(self) -> [Vec<f32>; 2] {
        [to_host(self.mean), to_host(self.variance)]
    }
}

/// What a channel is normalized by.
#[derive(Clone, Copy, Debug)]
struct Statistics {
    mean: f32,
    variance: f32,
    /// `1 / sqrt(variance + epsilon)`.
    reciprocal: f32,
}

/// Activations, a channel of an image after the other.
#[derive(Clone, Debug)]
struct Channels {
    /// Images, channels, height, width.
    shape: [usize; 4],
    epsilon: f32,
    /// Mean and variance of every channel, where they are not the batch's.
    given: Option<Arc<[Vec<f32>; 2]>>,
}

impl Channels {
    fn new(shape: [usize; 4], epsilon: f32, given: Option<[Vec<f32>; 2]>) -> Self {
        let given = given.map(Arc::new);
        Self { shape, epsilon, given }
    }

    /// Values of one channel of one image.
    fn plane(&self) -> usize {
        self.shape[2] * self.shape[3]
    }

    /// Values of one channel of all images.
    fn count(&self) -> f64 {
        (self.shape[0] * self.plane()) as f64
    }

    fn tensor(&self, values: Vec<f32>, device: &DispatchDevice) -> Tensor<Inner, 4> {
        Tensor::from_data(TensorData::new(values, self.shape), device)
    }

    fn moments(&self, statistics: &[Statistics], device: &DispatchDevice) -> Moments<Inner> {
        let vector = |of: fn(&Statistics) -> f32| vector(statistics.iter().map(of).collect(), device);
        Moments {
            mean: vector(|statistics| statistics.mean),
            variance: vector(|statistics| statistics.variance),
        }
    }

    /// Channel `c` of every image.
    fn of<'a>(&self, values: &'a [f32], c: usize) -> impl Iterator<Item = &'a [f32]> + Clone {
        values.chunks_exact(self.plane().max(1)).skip(c).step_by(self.shape[1])
    }

    /// The same of all channels, to be written to.
    fn split<'a>(&self, values: &'a mut [f32]) -> Vec<Vec<&'a mut [f32]>> {
        let mut channels: Vec<Vec<&mut [f32]>> = (0..self.shape[1]).map(|_| Vec::with_capacity(self.shape[0])).collect();
        for (i, plane) in values.chunks_exact_mut(self.plane().max(1)).enumerate() {
            channels[i % self.shape[1]].push(plane);
        }
        channels
    }

    fn statistics(&self, x: &[f32], c: usize) -> Statistics {
        let (mean, variance) = match &self.given {
            Some(given) => (given[0][c], given[1][c]),
            None => {
                let mean = (self.of(x, c).map(|plane| sum(plane, |x| x)).sum::<f64>() / self.count()) as f32;
                let squares = self.of(x, c).map(|plane| sum(plane, |x| (x - mean) * (x - mean)));
                (mean, (squares.sum::<f64>() / self.count()) as f32)
            }
        };
        Statistics {
            mean,
            variance,
            reciprocal: 1.0 / (variance + self.epsilon).sqrt(),
        }
    }

    fn forward(&self, x: &[f32], gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<Statistics>) {
        let mut y = vec![0.0; x.len()];
        let statistics = (self.split(&mut y).into_par_iter().enumerate())
            .map(|(c, planes)| {
                let statistics = self.statistics(x, c);
                let Statistics { mean, reciprocal, .. } = statistics;
                let (gain, shift) = (gamma[c] * reciprocal, beta[c]);
                for (y, x) in planes.into_iter().zip(self.of(x, c)) {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = (x - mean) * gain + shift;
                    }
                }
                statistics
            })
            .collect();
        (y, statistics)
    }

    /// Replaces the gradient of the result by that of `x`; those of gamma and beta.
    fn backward(&self, x: &[f32], gamma: &[f32], statistics: &[Statistics], gradient: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
        (self.split(gradient).into_par_iter().enumerate())
            .map(|(c, planes)| {
                let Statistics { mean, reciprocal, .. } = statistics[c];
                let (mut of_gamma, mut of_beta) = (0.0, 0.0);
                for (gradient, x) in planes.iter().zip(self.of(x, c)) {
                    of_gamma += sum_of_products(gradient, x, mean);
                    of_beta += sum(gradient, |gradient| gradient);
                }
                of_gamma *= f64::from(reciprocal);
                let gain = gamma[c] * reciprocal;
                // What flows back through mean and variance, where they are the batch's.
                let (through_mean, through_variance) = match self.given {
                    Some(_) => (0.0, 0.0),
                    None => ((of_beta / self.count()) as f32, (of_gamma / self.count()) as f32 * reciprocal),
                };
                for (gradient, x) in planes.into_iter().zip(self.of(x, c)) {
                    for (gradient, x) in gradient.iter_mut().zip(x) {
                        *gradient = (*gradient - through_mean - (x - mean) * through_variance) * gain;
                    }
                }
                (of_gamma as f32, of_beta as f32)
            })
            .unzip()
    }
}

/// Sums that a processor can take side by side.
const LANES: usize = 16;

/// The sum over a plane of `of` every value.
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += of(*value);
        }
    }
    let rest = rest.iter().map(|value| f64::from(of(*value)));
    lanes.iter().map(|lane| f64::from(*lane)).chain(rest).sum()
}

/// The sum over a plane of `a * (b - mean)`.
fn sum_of_products(a: &[f32], b: &[f32], mean: f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    for (a, b) in a.zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * (b - mean);
        }
    }
    let rest = rest.map(|(a, b)| f64::from(a * (b - mean)));
    lanes.iter().map(|lane| f64::from(*lane)).chain(rest).sum()
}

fn vector(values: Vec<f32>, device: &DispatchDevice) -> Tensor<Inner, 1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// The gradients of `x`, gamma and beta.
#[derive(Debug)]
struct Normalization;

/// What they are computed from.
#[derive(Clone, Debug)]
struct Saved {
    channels: Channels,
    x: Arc<Vec<f32>>,
    gamma: Arc<Vec<f32>>,
    statistics: Arc<Vec<Statistics>>,
}

impl Backward<Inner, 3> for Normalization {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Saved {
            channels,
            x,
            gamma,
            statistics,
        } = ops.state;
        let gradient = Tensor::<Inner, 4>::from_primitive(TensorPrimitive::Float(grads.consume::<Inner>(&ops.node)));
        let device = gradient.device();
        let mut gradient = to_host(gradient);
        let (of_gamma, of_beta) = channels.backward(&x, &gamma, &statistics, &mut gradient);
        let [x, gamma, beta] = ops.parents;
        if let Some(node) = x {
            grads.register::<Inner>(node.id, channels.tensor(gradient, &device).into_primitive().tensor());
        }
        for (node, gradient) in [(gamma, of_gamma), (beta, of_beta)] {
            if let Some(node) = node {
                grads.register::<Inner>(node.id, vector(gradient, &device).into_primitive().tensor());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};
    use crate::device::Device;

    /// Result, moments, and gradients of `x`, gamma and beta, of a loss in which every value counts differently.
    type Found = [Vec<f32>; 6];

    fn random(shape: [usize; 4], seed: u64) -> Vec<f32> {
        let mut rng = rng(seed, Purpose::Synthetic, 13);
        (0..shape.iter().product()).map(|_| rng.random_range(-2.0..3.0)).collect()
    }

    fn found(
        shape: [usize; 4],
        given: bool,
        normalize: impl Fn(
            Tensor<Auto, 4>,
            Tensor<Auto, 1>,
            Tensor<Auto, 1>,
            f32,
            Option<Moments<Auto>>,
        ) -> (Tensor<Auto, 4>, Moments<Auto>),
    ) -> Found {
        let device = Device::flex();
        let device = device.dispatch();
        let channels = shape[1];
        let tensor = |seed| Tensor::<Auto, 4>::from_data(TensorData::new(random(shape, seed), shape), device);
        let per_channel = |seed| {
            let values = random([1, channels, 1, 1], seed).iter().map(|x| x.abs() + 0.1).collect();
            Tensor::<Auto, 1>::from_inner(vector(values, device))
        };
        let (x, gamma, beta) = (
            tensor(1).require_grad(),
            per_channel(2).require_grad(),
            per_channel(3).require_grad(),
        );
        let given = given.then(|| Moments {
            mean: per_channel(4),
            variance: per_channel(5),
        });
        let (y, moments) = normalize(x.clone(), gamma.clone(), beta.clone(), 0.01, given);
        let gradients = (y.clone().square() * tensor(6)).sum().backward();
        [
            to_host(y.inner()),
            to_host(moments.mean.inner()),
            to_host(moments.variance.inner()),
            to_host(x.grad(&gradients).unwrap()),
            to_host(gamma.grad(&gradients).unwrap()),
            to_host(beta.grad(&gradients).unwrap()),
        ]
    }

    fn assert_close(a: &Found, b: &Found) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert_eq!(a.len(), b.len());
            let size = b.iter().fold(1.0, |size: f32, b| size.max(b.abs()));
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() <= 2e-5 * size, "tensor {i}: {a} {b}");
            }
        }
    }

    /// Planes that are whole lanes, less, and more.
    const SHAPES: [[usize; 4]; 4] = [[4, 3, 8, 8], [5, 4, 3, 5], [2, 1, 5, 7], [3, 2, 1, 1]];

    #[test]
    fn values_moments_and_gradients_are_those_of_the_operations() {
        for (shape, given) in SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
            assert_close(&found(shape, given, Auto::normalize), &found(shape, given, composed));
        }
    }

    #[test]
    fn without_a_graph_the_values_are_the_same() {
        let device = Device::flex();
        for shape in SHAPES {
            let [y, mean, ..] = found(shape, false, Auto::normalize);
            let per_channel = |seed| {
                let values = random([1, shape[1], 1, 1], seed).iter().map(|x| x.abs() + 0.1).collect();
                vector(values, device.dispatch())
            };
            let x = Tensor::from_data(TensorData::new(random(shape, 1), shape), device.dispatch());
            let (own, moments) = Inner::normalize(x, per_channel(2), per_channel(3), 0.01, None);
            assert!(to_host(own) == y && to_host(moments.mean) == mean);
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| found([7, 9, 12, 12], false, Auto::normalize))
        };
        let one = with(1);
        for threads in [2, 3, 8] {
            assert!(with(threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn only_what_is_tracked_gets_a_gradient() {
        let device = Device::flex();
        let x = Tensor::<Auto, 4>::ones([2, 1, 2, 2], device.dispatch()).require_grad();
        let gamma = Tensor::<Auto, 1>::from_inner(vector(vec![3.0], device.dispatch()));
        let moments = Moments {
            mean: gamma.clone(),
            variance: gamma.clone() * 0.0 + 4.0,
        };
        let (y, _) = Auto::normalize(x.clone(), gamma.clone(), gamma.clone(), 0.0, Some(moments));
        let gradients = y.sum().backward();
        assert_eq!(to_host(x.grad(&gradients).unwrap()), [1.5; 8]);
        assert!(gamma.grad(&gradients).is_none());
    }
}
