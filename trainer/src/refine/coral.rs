//! Deep CORAL: the distance between the second-order statistics of two domains' features.
//!
//! # Source
//! Sun and Saenko 2016, "Deep CORAL: correlation alignment for deep domain adaptation", equations 1 to 3.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::device::Device;
use crate::nn::{self, Auto, Inner};

/// `||C_s - C_t||_F^2 / (4 d^2)`, with `C` the unbiased covariance of the features of a domain.
///
/// # Shapes
/// `source: [n_s, d]` | `target: [n_t, d]`, at least two rows each | result: one number
pub fn coral<B: Backend>(source: Tensor<B, 2>, target: Tensor<B, 2>) -> Tensor<B, 1> {
    let d = source.dims()[1] as f64;
    (covariance(source) - covariance(target)).square().sum() * (1.0 / (4.0 * d * d))
}

/// CORAL whose difference of covariances is averaged over the steps: the noise of sampling a batch, which is larger than what
/// corrections do to the statistics, averages out. The gradient is that of the batch's own difference.
pub(crate) struct Coral {
    momentum: f64,
    /// `[d, d]`, source less target.
    running: Option<Tensor<Inner, 2>>,
}

impl Coral {
    /// `momentum`: share of the past at every step; 0 is [`coral`].
    pub fn new(momentum: f64) -> Self {
        Self { momentum, running: None }
    }

    /// As [`coral`], of the running difference.
    pub fn loss(&mut self, source: Tensor<Auto, 2>, target: Tensor<Auto, 2>) -> Tensor<Auto, 1> {
        let d = source.dims()[1] as f64;
        let difference = covariance(source) - covariance(target);
        let batch = difference.clone().inner();
        let running = match self.running.take() {
            Some(running) => running * self.momentum + batch.clone() * (1.0 - self.momentum),
            None => batch.clone() * (1.0 - self.momentum),
        };
        let difference = difference + Tensor::from_inner(running.clone() - batch);
        self.running = (self.momentum > 0.0).then_some(running);
        difference.square().sum() * (1.0 / (4.0 * d * d))
    }

    /// The running difference, row by row; empty where there is none.
    pub fn state(&self) -> Vec<f32> {
        self.running.clone().map(nn::to_host).unwrap_or_default()
    }

    /// Takes back what [`state`](Self::state) gave.
    pub fn restore(&mut self, state: &[f32], device: &Device) {
        let d = state.len().isqrt();
        self.running = (d > 0).then(|| Tensor::from_data(TensorData::new(state.to_vec(), [d, d]), device.dispatch()));
    }
}

/// `[d, d]`, of `features: [n, d]`. Centred before it is multiplied, where the paper subtracts afterwards: the same number
/// with less cancellation.
fn covariance<B: Backend>(features: Tensor<B, 2>) -> Tensor<B, 2> {
    let [n, _] = features.dims();
    let centred = features.clone() - features.mean_dim(0);
    centred.clone().transpose().matmul(centred) * (1.0 / (n as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};
    use crate::device::Device;
    use crate::nn::{Auto, Inner, to_host};

    const D: usize = 5;

    fn features(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rng(seed, Purpose::Synthetic, 7);
        (0..n * D)
            .map(|i| rng.random_range(-1.0..2.0) * (1.0 + (i % D) as f32))
            .collect()
    }

    fn tensor<B: Backend<Device = burn_dispatch::DispatchDevice>>(values: Vec<f32>) -> Tensor<B, 2> {
        let n = values.len() / D;
        Tensor::from_data(TensorData::new(values, [n, D]), Device::flex().dispatch())
    }

    /// Equations 1 to 3 as they are printed: D^T D less (1^T D)^T (1^T D) / n, over n - 1.
    fn naive(source: &[f32], target: &[f32]) -> f64 {
        let covariance = |x: &[f32]| {
            let n = x.len() / D;
            let at = |row: usize, column: usize| f64::from(x[row * D + column]);
            let mut c = [[0.0; D]; D];
            for (i, row) in c.iter_mut().enumerate() {
                for (j, entry) in row.iter_mut().enumerate() {
                    let products: f64 = (0..n).map(|k| at(k, i) * at(k, j)).sum();
                    let sums = (0..n).map(|k| at(k, i)).sum::<f64>() * (0..n).map(|k| at(k, j)).sum::<f64>();
                    *entry = (products - sums / n as f64) / (n as f64 - 1.0);
                }
            }
            c
        };
        let (s, t) = (covariance(source), covariance(target));
        let squares: f64 = (0..D * D).map(|i| (s[i / D][i % D] - t[i / D][i % D]).powi(2)).sum();
        squares / (4.0 * (D * D) as f64)
    }

    #[test]
    fn it_is_the_papers_distance() {
        for (n_s, n_t, seed) in [(2, 3, 1), (17, 17, 2), (40, 25, 3)] {
            let (source, target) = (features(n_s, seed), features(n_t, seed + 100));
            let loss = to_host(coral::<Inner>(tensor(source.clone()), tensor(target.clone())))[0];
            let expected = naive(&source, &target);
            assert!((f64::from(loss) / expected - 1.0).abs() < 1e-4, "{loss} {expected}");
        }
    }

    #[test]
    fn it_is_zero_between_equals_and_blind_to_a_shift() {
        let source = features(20, 1);
        let shifted: Vec<f32> = source.iter().map(|v| v + 3.0).collect();
        assert_eq!(
            to_host(coral::<Inner>(tensor(source.clone()), tensor(source.clone())))[0],
            0.0
        );
        assert!(to_host(coral::<Inner>(tensor(source), tensor(shifted)))[0] < 1e-9);
    }

    #[test]
    fn a_running_difference_averages_the_noise_away_and_survives_a_restart() {
        let batch = |seed: u64| (tensor::<Auto>(features(12, seed)), tensor::<Auto>(features(12, seed + 1000)));
        let losses = |mut coral: Coral, seeds: std::ops::Range<u64>| -> (Vec<f32>, Coral) {
            let losses = seeds
                .map(|seed| {
                    let (source, target) = batch(seed);
                    to_host(coral.loss(source, target).inner())[0]
                })
                .collect();
            (losses, coral)
        };
        // Without memory it is the batch's own distance.
        let (alone, coral) = losses(Coral::new(0.0), 0..5);
        let expected: Vec<f32> = (0..5)
            .map(|seed| {
                let (source, target) = batch(seed);
                to_host(super::coral(source, target).inner())[0]
            })
            .collect();
        assert_eq!(alone, expected);
        assert!(coral.state().is_empty());
        // Both sides are of one distribution, so all there is is noise.
        let (running, coral) = losses(Coral::new(0.95), 0..200);
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        let (alone, _) = losses(Coral::new(0.0), 0..200);
        assert!(
            mean(&running[100..]) < 0.1 * mean(&alone),
            "{} {}",
            mean(&running[100..]),
            mean(&alone)
        );
        let mut again = Coral::new(0.95);
        again.restore(&coral.state(), &Device::flex());
        assert_eq!(losses(coral, 200..210).0, losses(again, 200..210).0);
    }

    #[test]
    fn its_gradient_is_that_of_the_naive_distance() {
        let (source, target) = (features(6, 1), features(8, 2));
        let tracked = tensor::<Auto>(source.clone()).require_grad();
        let gradients = coral(tracked.clone(), tensor(target.clone())).backward();
        let gradient = to_host(tracked.grad(&gradients).unwrap());
        for at in [0, 7, 29] {
            let moved = |by: f32| {
                let mut moved = source.clone();
                moved[at] += by;
                naive(&moved, &target)
            };
            let expected = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (f64::from(gradient[at]) - expected).abs() < 1e-3 * (1.0 + expected.abs()),
                "{} {expected}",
                gradient[at]
            );
        }
    }
}
