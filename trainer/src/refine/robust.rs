//! Training for robustness: images are attacked at every step, as they are shown, by the network as it is.
//!
//! # Source
//! Goodfellow et al. 2015 and Madry et al. 2018 (adversarial training by FGSM and PGD), Wong et al. 2020 (one step with a
//! random start), Zhang et al. 2019 (TRADES, equation 5). Not attacking what is misclassified is in the family of
//! friendly adversarial training (Zhang et al. 2020) and MMA (Ding et al. 2020); correcting it is AdCorDA's first step.

use burn::tensor::{Tensor, TensorData, activation};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{AttackOptions, Method};
use crate::data::Dataset;
use crate::data::batch::{Purpose, rng};
use crate::device::Device;
use crate::nn::{Auto, Frozen, Inner};
use crate::resident::numbers;
use crate::train::{Batches, Passes, Student, Task, TrainOptions, cross_entropy, targets};
use crate::{Error, ErrorKind, Result};

/// How images are attacked at every step, within an L-infinity ball. Their pixels need not be whole grey levels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RobustOptions {
    /// Largest change of a pixel value, in grey levels.
    pub epsilon: f32,
    /// Steps of the attack; one is FGSM.
    pub steps: usize,
    /// Start anywhere within the ball instead of at the image. TRADES always starts nearby.
    pub random_start: bool,
    /// TRADES: weight of the divergence between clean and attacked.
    pub beta: f64,
}

impl Default for RobustOptions {
    fn default() -> Self {
        Self {
            epsilon: 2.0,
            steps: 1,
            random_start: false,
            beta: 6.0,
        }
    }
}

impl RobustOptions {
    pub(super) fn check(&self) -> Result<()> {
        let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
        if !(self.epsilon > 0.0 && self.epsilon <= 255.0) {
            return usage(format!("--train-epsilon {} is not above 0 and up to 255", self.epsilon));
        }
        if self.steps == 0 {
            return usage("--train-steps 0 attacks nothing".into());
        }
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            return usage(format!("--beta {} is negative or not finite", self.beta));
        }
        Ok(())
    }

    /// Change of a pixel value in one step: the whole ball in one, else enough to cross it and come back.
    fn step(&self) -> f32 {
        match self.steps {
            1 if self.random_start => 1.25 * self.epsilon,
            1 => self.epsilon,
            steps => 2.5 * self.epsilon / steps as f32,
        }
    }

    /// The attack that checkpoints are chosen by: PGD on pixels within the next whole epsilon.
    pub(super) fn judge(&self) -> AttackOptions {
        AttackOptions {
            method: Method::Pgd,
            epsilon: self.epsilon.ceil(),
            step: 1.0,
            steps: 2 * self.epsilon.ceil() as usize + 3,
            margin: 0.0,
            ..AttackOptions::default()
        }
    }
}

/// Which images are attacked, and what is learnt from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Every image.
    Every,
    /// Every image, beside itself unattacked.
    Trades,
    /// Those that are classified right; the others are corrected.
    CorrectTheWrong,
    /// Those that are classified right; the others stay as they are.
    RightOnly,
}

/// Rows of random starts; each step picks as many as it needs.
const NOISE: usize = 512;

/// Learning from images attacked in passing.
pub(super) struct Robust {
    batches: Batches,
    /// One-hot classes without smoothing, `[images, classes]`.
    own: Tensor<Inner, 2>,
    kind: Kind,
    options: RobustOptions,
    /// Evenly within -1 to 1, `[NOISE, values of an image]`.
    noise: Tensor<Inner, 2>,
    seed: u64,
    device: Device,
}

impl Robust {
    pub fn new(images: &Dataset, kind: Kind, options: RobustOptions, training: &TrainOptions, device: &Device) -> Self {
        let mut rng = rng(training.seed, Purpose::Attack, 0);
        let noise: Vec<f32> = (0..NOISE * images.image_len()).map(|_| rng.random_range(-1.0..1.0)).collect();
        Self {
            batches: Batches::new(images, None, training, device),
            own: targets(images.labels(), images.classes.len(), 0.0, device),
            kind,
            options,
            noise: Tensor::from_data(TensorData::new(noise, [NOISE, images.image_len()]), device.dispatch()),
            seed: training.seed,
            device: device.clone(),
        }
    }

    /// `x` attacked: `[n, channels, height, width]`.
    fn attack(&self, network: &Frozen, x: &Tensor<Inner, 4>, own: &Tensor<Inner, 2>, step: usize) -> Tensor<Inner, 4> {
        let dims = x.dims();
        let (n, len) = (dims[0], dims[1] * dims[2] * dims[3]);
        let epsilon = f64::from(self.options.epsilon);
        let clean = x.clone().reshape([n, len]);
        let start = match (self.kind, self.options.random_start) {
            (Kind::Trades, _) => Some(1e-3 * 255.0),
            (_, true) => Some(epsilon),
            (_, false) => None,
        };
        let mut change = match start {
            Some(size) => {
                let mut rng = rng(self.seed, Purpose::Attack, 1 + step as u64);
                let rows: Vec<usize> = (0..n).map(|_| rng.random_range(0..NOISE)).collect();
                self.noise.clone().select(0, numbers(&rows, &self.device)) * size
            }
            None => Tensor::zeros([n, len], self.device.dispatch()),
        };
        let aim = (self.kind == Kind::Trades).then(|| activation::softmax(network.forward(x.clone()).logits, 1));
        let mut sense: Option<Tensor<Inner, 2>> = None;
        for _ in 0..self.options.steps {
            let shown = (clean.clone() + change.clone()).clamp(0.0, 255.0).reshape(dims);
            let targets = aim.clone().unwrap_or_else(|| own.clone());
            let (gradient, output) = network.input_gradient(shown, |output| cross_entropy(output.logits, targets) * n as f64);
            let way = gradient.sign().reshape([n, len]);
            let sense = sense.get_or_insert_with(|| self.sense(output.logits, own));
            change = (change + way * sense.clone() * self.options.step()).clamp(-epsilon, epsilon);
        }
        (clean + change).clamp(0.0, 255.0).reshape(dims)
    }

    /// Which way each image goes along the gradient of the loss, `[n, 1]`: 1 up (attacked), -1 down (corrected), 0 not at all.
    fn sense(&self, logits: Tensor<Inner, 2>, own: &Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        /// Above any difference of logits.
        const FAR: f32 = 8192.0;
        let others = (logits.clone() - own.clone() * FAR).max_dim(1);
        let right = (logits * own.clone()).sum_dim(1).greater(others).float();
        match self.kind {
            Kind::RightOnly => right,
            Kind::CorrectTheWrong => right * 2.0 - 1.0,
            Kind::Every | Kind::Trades => right.ones_like(),
        }
    }
}

impl Task for Robust {
    fn steps_per_epoch(&self) -> usize {
        self.batches.steps_per_epoch()
    }

    fn views(&self) -> usize {
        if self.kind == Kind::Trades { 2 } else { 1 }
    }

    fn step(&mut self, step: usize, student: &Student) -> Result<(Tensor<Auto, 1>, Passes)> {
        let (rows, geometries) = self.batches.draw(step);
        let n = rows.len();
        let x = self.batches.pixels(&rows, &geometries);
        let own = self.own.clone().select(0, numbers(&rows, &self.device));
        let attacked = self.attack(&student.frozen(), &x, &own, step);
        let mut passes = Passes::input_gradient(n * self.options.steps);
        let targets = self.batches.targets(&rows);
        if self.kind != Kind::Trades {
            let logits = student.forward(attacked).logits;
            return Ok((cross_entropy(logits, targets), passes + Passes::training(n)));
        }
        // In one run, so that BatchNorm sees both and moves once.
        let logits = student.forward(Tensor::cat(vec![x, attacked], 0)).logits;
        let (clean, moved) = (logits.clone().narrow(0, 0, n), logits.narrow(0, n, n));
        let log = activation::log_softmax(clean.clone(), 1);
        let divergence = log.clone().exp() * (log - activation::log_softmax(moved, 1));
        passes += Passes::forward(n) + Passes::training(2 * n);
        let loss = cross_entropy(clean, targets) + divergence.sum() * (self.options.beta / n as f64);
        Ok((loss, passes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Mode, Net, to_device, to_host, top1};
    use crate::refine::tests::start;
    use crate::train::fixture;

    /// Change of every image, and whether it is classified right before, of one attack.
    fn attacked(kind: Kind, options: &RobustOptions) -> Vec<(bool, Vec<f32>, f32)> {
        let (start, _, images) = start();
        let device = Device::flex();
        let net = Net::from_state(&start.network, &start.state, &device).unwrap();
        let student = Student {
            network: &start.network,
            net: &net,
            quantization: start.quantization.as_ref(),
            mode: Mode::Frozen,
            share: 0.0,
            device: &device,
        };
        let robust = Robust::new(&images, kind, options.clone(), &fixture::options(), &device);
        let rows: Vec<usize> = (0..64).collect();
        let (x, own) = (to_device(&images, &rows, &device), robust.own.clone().narrow(0, 0, 64));
        let frozen = student.frozen();
        let moved = robust.attack(&frozen, &x, &own, 3);
        assert_eq!(to_host(moved.clone()), to_host(robust.attack(&frozen, &x, &own, 3)));
        let logits = |x: &Tensor<Inner, 4>| to_host(frozen.forward(x.clone()).logits);
        let loss = |logits: &[f32], i: usize| {
            let sum: f32 = logits.iter().map(|l| l.exp()).sum();
            sum.ln() - logits[usize::from(images.label(i))]
        };
        let (before, after) = (logits(&x), logits(&moved));
        let change: Vec<f32> = to_host(moved).iter().zip(to_host(x)).map(|(a, b)| a - b).collect();
        let images_of = change
            .chunks_exact(images.image_len())
            .zip(before.chunks_exact(4).zip(after.chunks_exact(4)));
        images_of
            .enumerate()
            .map(|(i, (change, (before, after)))| {
                let right = top1(before) == images.label(i);
                (right, change.to_vec(), loss(after, i) - loss(before, i))
            })
            .collect()
    }

    #[test]
    fn each_kind_moves_what_it_says_and_within_epsilon() {
        for (steps, random_start) in [(1, false), (4, false)] {
            let options = RobustOptions {
                epsilon: 3.5,
                steps,
                random_start,
                ..RobustOptions::default()
            };
            for kind in [Kind::Every, Kind::RightOnly, Kind::CorrectTheWrong, Kind::Trades] {
                let images = attacked(kind, &options);
                let counts = [true, false].map(|right| images.iter().filter(|image| image.0 == right).count());
                assert!(counts.iter().all(|&count| count > 5), "{counts:?}");
                let mut up = [0, 0];
                for (right, change, rise) in &images {
                    let largest = change.iter().fold(0f32, |largest, change| largest.max(change.abs()));
                    assert!(largest <= 3.5 + 1e-4, "{largest}");
                    let still = kind == Kind::RightOnly && !right;
                    assert_eq!(largest == 0.0, still, "{kind:?} {right} {largest}");
                    up[usize::from(!right)] += usize::from(*rise > 0.0);
                }
                // Nearly all of the right ones go up; the wrong ones as the arm says.
                assert!(
                    10 * up[0] >= 9 * counts[0] || kind == Kind::Trades,
                    "{kind:?} {up:?} {counts:?}"
                );
                match kind {
                    Kind::Every => assert!(10 * up[1] >= 9 * counts[1], "{up:?} {counts:?}"),
                    Kind::CorrectTheWrong => assert!(10 * up[1] <= counts[1], "{up:?} {counts:?}"),
                    Kind::RightOnly | Kind::Trades => {}
                }
            }
        }
    }

    #[test]
    fn a_random_start_is_another_one_at_every_step_and_stays_within() {
        let options = RobustOptions {
            epsilon: 2.0,
            random_start: true,
            ..RobustOptions::default()
        };
        let images = attacked(Kind::Every, &options);
        assert!(
            images
                .iter()
                .flat_map(|image| &image.1)
                .all(|change| change.abs() <= 2.0 + 1e-4)
        );
        let whole = images
            .iter()
            .flat_map(|image| &image.1)
            .filter(|change| change.fract() == 0.0)
            .count();
        let all = images.len() * images[0].1.len();
        assert!(whole < all, "{whole} of {all}");
    }
}
