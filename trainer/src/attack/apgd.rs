//! APGD: PGD whose step size follows its own progress, on the cross-entropy or on the difference of logits ratio.
//!
//! Steps start at twice epsilon and halve, image by image, at checkpoints at which the loss has not risen often enough; the
//! search then goes on from the best point. As everywhere here, the network is asked on the 8-bit grid only.
//!
//! # Source
//! Croce and Hein 2020b, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
//! algorithm 1 and section 4; constants as published. It starts at the image, as PGD does here; restarts are random.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, activation};
use serde::{Deserialize, Serialize};

use super::ball::{Ball, Norm, choose};
use super::search::{Rows, Search, Strategy};
use super::{Attacked, Direction, Reading, margin_column};
use crate::nn::{Frozen, Inner};

/// What APGD makes larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy. Vanishes in 32 bits where logits differ by a hundred.
    CrossEntropy,
    /// Difference of logits ratio: minus the margin, in units of what lies between the largest and the third largest logit.
    /// Does not depend on the scale of the logits. Of two classes, minus the margin itself.
    LogitsRatio,
}

/// How far and how to search.
#[derive(Clone, Debug, PartialEq)]
pub struct ApgdOptions {
    /// What is made larger.
    pub loss: Loss,
    /// What epsilon is measured in.
    pub norm: Norm,
    /// Largest change, in grey levels, see [`Norm`].
    pub epsilon: f32,
    /// Most steps.
    pub steps: usize,
    /// An image is done where its class's logit is this far below the largest.
    pub margin: f32,
    /// Further searches from random points of the ball, for images that are not done.
    pub restarts: usize,
    /// Of the random points.
    pub seed: u64,
}

/// Searches, for each of a batch of images, one within the ball that is not classified as its label. As
/// [`attack`](super::attack): the images returned are those with the smallest margin of all that were visited.
///
/// # Panics
/// Where images and labels differ in number, or are not of the network's size and classes.
pub fn apgd(network: &Frozen, images: &[&[u8]], shape: [usize; 3], labels: &[u16], options: &ApgdOptions) -> Attacked {
    apgd_read(network, images, shape, labels, options, Reading::of(network.device()))
}

fn apgd_read(
    network: &Frozen,
    images: &[&[u8]],
    shape: [usize; 3],
    labels: &[u16],
    options: &ApgdOptions,
    reading: Reading,
) -> Attacked {
    let search = Search {
        network,
        shape,
        ball: Ball {
            norm: options.norm,
            epsilon: options.epsilon,
        },
        sense: Direction::Away.sense(),
        wanted: options.margin,
        reading,
    };
    search.with_restarts(images, labels, options.restarts, options.seed, |images, labels, start| {
        let mut strategy = Adaptive {
            loss: options.loss,
            schedule: Schedule::new(options.steps),
            state: None,
        };
        search.run(&mut strategy, options.steps, images, labels, start)
    })
}

/// Share of the new direction in a step; the rest is the last step.
const MOMENTUM: f32 = 0.75;

/// Share of the steps between two checkpoints that must raise the loss.
const RISING: f32 = 0.75;

/// Steps from one checkpoint to the next.
struct Schedule {
    /// To the next checkpoint, and since the last.
    period: usize,
    since: usize,
    shorter_by: usize,
    shortest: usize,
}

impl Schedule {
    fn new(steps: usize) -> Self {
        let share = |share: f32| ((share * steps as f32) as usize).max(1);
        Self {
            period: share(0.22),
            since: 0,
            shorter_by: share(0.03),
            shortest: share(0.06),
        }
    }

    /// Counts a step; at a checkpoint, the steps since the last.
    fn next(&mut self) -> Option<usize> {
        self.since += 1;
        if self.since < self.period {
            return None;
        }
        let period = self.period;
        self.period = self.period.saturating_sub(self.shorter_by).max(self.shortest);
        self.since = 0;
        Some(period)
    }
}

/// Of every row; columns are `[n, 1]`.
struct State {
    /// Length of a step.
    step: Tensor<Inner, 2>,
    /// The change one step ago.
    previous: Tensor<Inner, 2>,
    /// Where the loss was largest: change, gradient and loss.
    best_change: Tensor<Inner, 2>,
    best_gradient: Tensor<Inner, 2>,
    best_loss: Tensor<Inner, 2>,
    last_loss: Tensor<Inner, 2>,
    /// Steps since the last checkpoint that raised the loss.
    rises: Tensor<Inner, 2>,
    /// The largest loss as of the last checkpoint, and 1 where the step was halved there.
    checked_loss: Tensor<Inner, 2>,
    halved: Tensor<Inner, 2>,
}

struct Adaptive {
    loss: Loss,
    schedule: Schedule,
    /// None before the first step.
    state: Option<State>,
}

impl Strategy for Adaptive {
    fn objective<B: Backend>(&self, logits: Tensor<B, 2>, own: Tensor<B, 2>) -> Tensor<B, 2> {
        let classes = logits.dims()[1];
        match self.loss {
            Loss::CrossEntropy => -(activation::log_softmax(logits, 1) * own).sum_dim(1),
            Loss::LogitsRatio if classes < 3 => -margin_column(logits, own),
            Loss::LogitsRatio => {
                let spread = largest(logits.clone(), 0) - largest(logits.clone(), 2);
                -margin_column(logits, own) / (spread + 1e-12)
            }
        }
    }

    fn step(&mut self, rows: &Rows, ball: Ball) -> Tensor<Inner, 2> {
        let (mut change, mut gradient) = (rows.change.clone(), rows.gradient.clone());
        let loss = rows.objective.clone();
        let first = self.state.is_none();
        let state = self.state.get_or_insert_with(|| State {
            step: loss.zeros_like() + 2.0 * ball.epsilon,
            previous: change.clone(),
            best_change: change.clone(),
            best_gradient: gradient.clone(),
            best_loss: loss.clone(),
            last_loss: loss.clone(),
            rises: loss.zeros_like(),
            checked_loss: loss.clone(),
            halved: loss.ones_like(),
        });
        let way = if first {
            ball.direction(gradient) * state.step.clone()
        } else {
            state.learn(&change, &gradient, loss);
            if let Some(period) = self.schedule.next() {
                let halve = state.check(period);
                change = choose(&halve, state.best_change.clone(), change);
                gradient = choose(&halve, state.best_gradient.clone(), gradient);
            }
            let ahead = ball.project(&rows.origin, change.clone() + ball.direction(gradient) * state.step.clone());
            (ahead - change.clone()) * MOMENTUM + (change.clone() - state.previous.clone()) * (1.0 - MOMENTUM)
        };
        state.previous = change.clone();
        change + way
    }

    fn select(&mut self, left: Tensor<Inner, 1, Int>) {
        let Some(state) = &mut self.state else { return };
        for column in [
            &mut state.step,
            &mut state.previous,
            &mut state.best_change,
            &mut state.best_gradient,
            &mut state.best_loss,
            &mut state.last_loss,
            &mut state.rises,
            &mut state.checked_loss,
            &mut state.halved,
        ] {
            *column = column.clone().select(0, left.clone());
        }
    }
}

impl State {
    /// Takes note of a point.
    fn learn(&mut self, change: &Tensor<Inner, 2>, gradient: &Tensor<Inner, 2>, loss: Tensor<Inner, 2>) {
        self.rises = self.rises.clone() + loss.clone().greater(self.last_loss.clone()).float();
        let better = loss.clone().greater(self.best_loss.clone());
        self.best_change = choose(&better, change.clone(), self.best_change.clone());
        self.best_gradient = choose(&better, gradient.clone(), self.best_gradient.clone());
        self.best_loss = choose(&better, loss.clone(), self.best_loss.clone());
        self.last_loss = loss;
    }

    /// Halves the step where the loss rose too seldom, or where nothing was gained since the last checkpoint at an unchanged
    /// step; says where.
    fn check(&mut self, period: usize) -> Tensor<Inner, 2, burn::tensor::Bool> {
        let seldom = self.rises.clone().lower_equal_elem(RISING * period as f32);
        let idle =
            (self.checked_loss.clone().greater_equal(self.best_loss.clone())).bool_and(self.halved.clone().equal_elem(0.0));
        let halve = seldom.bool_or(idle);
        self.step = choose(&halve, self.step.clone() * 0.5, self.step.clone());
        self.halved = halve.clone().float();
        self.checked_loss = self.best_loss.clone();
        self.rises = self.rises.zeros_like();
        halve
    }
}

/// The largest logit of each row after `skip` others, `[n, 1]`. A sort would leave the device.
fn largest<B: Backend>(logits: Tensor<B, 2>, skip: usize) -> Tensor<B, 2> {
    let [n, classes] = logits.dims();
    let index = Tensor::<B, 1, Int>::arange(0..classes as i64, &logits.device())
        .reshape([1, classes])
        .expand([n, classes]);
    // Which entry is only looked up, so no gradient passes there.
    let mut rest = logits.clone().detach();
    for _ in 0..skip {
        let taken = rest.clone().argmax(1).expand([n, classes]).equal(index.clone());
        rest = rest.mask_fill(taken, f32::NEG_INFINITY);
    }
    let chosen = rest.argmax(1).expand([n, classes]).equal(index);
    logits.mask_fill(chosen.bool_not(), 0.0).sum_dim(1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::attack::tests::{assert_sound, freeze, trained};
    use crate::attack::{AttackOptions, Method, attack};
    use crate::data::Dataset;
    use crate::device::Device;
    use crate::nn::to_host;
    use crate::train::fixture;

    fn options(loss: Loss, norm: Norm, epsilon: f32) -> ApgdOptions {
        ApgdOptions {
            loss,
            norm,
            epsilon,
            steps: 20,
            margin: f32::MIN_POSITIVE,
            restarts: 0,
            seed: 0,
        }
    }

    fn run(network: &Frozen, images: &Dataset, options: &ApgdOptions, reading: Reading) -> Attacked {
        let pixels: Vec<&[u8]> = (0..images.len()).map(|i| images.image(i)).collect();
        apgd_read(network, &pixels, images.shape(), images.labels(), options, reading)
    }

    fn right(attacked: &Attacked) -> usize {
        attacked.margins.iter().filter(|&&margin| margin > 0.0).count()
    }

    const LOSSES: [Loss; 2] = [Loss::CrossEntropy, Loss::LogitsRatio];

    #[test]
    fn it_is_as_strong_as_pgd_of_as_many_steps() {
        let (network, images) = (freeze(trained()), fixture::images(120, 9));
        let pixels: Vec<&[u8]> = (0..images.len()).map(|i| images.image(i)).collect();
        for (norm, epsilon) in [(Norm::Linf, 4.0), (Norm::L2, 40.0)] {
            let pgd = AttackOptions {
                method: Method::Pgd,
                norm,
                epsilon,
                step: 2.5 * epsilon / 20.0,
                steps: 20,
                margin: f32::MIN_POSITIVE,
                ..AttackOptions::default()
            };
            let pgd = attack(&network, &pixels, images.shape(), images.labels(), &pgd, Direction::Away);
            let broken_by_none = ApgdOptions {
                steps: 0,
                ..options(Loss::CrossEntropy, norm, epsilon)
            };
            let clean = right(&run(&network, &images, &broken_by_none, Reading::CPU));
            assert!(right(&pgd) + 20 < clean, "{norm:?}: {} of {clean}", right(&pgd));
            let left = LOSSES.map(|loss| {
                let attacked = run(&network, &images, &options(loss, norm, epsilon), Reading::CPU);
                assert_sound(&network, &images, &attacked, norm, epsilon);
                right(&attacked)
            });
            // PGD follows the margin itself, which for the cross-entropy is a guess.
            assert!(
                left[0] <= right(&pgd) + 2 && left[1] <= right(&pgd),
                "{norm:?}: {left:?} {}",
                right(&pgd)
            );
        }
    }

    /// Neither the rest of the batch, nor how often the host looks, nor a second run.
    #[test]
    fn nothing_but_the_image_matters() {
        let (network, images) = (freeze(trained()), fixture::images(16, 9));
        for (norm, epsilon) in [(Norm::Linf, 5.0), (Norm::L2, 50.0)] {
            for loss in LOSSES {
                let options = ApgdOptions {
                    restarts: 1,
                    ..options(loss, norm, epsilon)
                };
                let attacked = run(&network, &images, &options, Reading::CPU);
                assert!(attacked == run(&network, &images, &options, Reading::CPU));
                let seldom = run(&network, &images, &options, Reading::GPU);
                assert!(attacked.images == seldom.images && attacked.margins == seldom.margins);
                for i in 0..images.len() {
                    let alone = run(&network, &images.subset(&[i]), &options, Reading::CPU);
                    let len = images.image_len();
                    assert!(
                        alone.images == attacked.images[i * len..][..len],
                        "{norm:?} {loss:?} image {i}"
                    );
                }
            }
        }
    }

    /// Logits so far apart that the cross-entropy is 0 to the last bit.
    #[test]
    fn the_logits_ratio_does_not_see_the_scale() {
        let images = fixture::images(60, 9);
        let mut scaled = trained().clone();
        for name in ["fc.weight", "fc.bias"] {
            let values = &mut scaled.state.tensors.get_mut(name).unwrap().values;
            values.iter_mut().for_each(|value| *value *= 65_536.0);
        }
        let found = |checkpoint, loss| run(&freeze(checkpoint), &images, &options(loss, Norm::Linf, 4.0), Reading::CPU);
        assert_eq!(
            right(&found(&scaled, Loss::LogitsRatio)),
            right(&found(trained(), Loss::LogitsRatio))
        );
        assert!(right(&found(&scaled, Loss::CrossEntropy)) > right(&found(trained(), Loss::CrossEntropy)) + 10);
    }

    /// Of 100 steps, as published.
    #[test]
    fn checkpoints_come_ever_sooner() {
        let mut schedule = Schedule::new(100);
        let checkpoints: Vec<usize> = (1..=100).filter(|_| schedule.next().is_some()).collect();
        assert_eq!(checkpoints, [22, 41, 57, 70, 80, 87, 93, 99]);
        let mut schedule = Schedule::new(1);
        assert_eq!(schedule.next(), Some(1));
    }

    #[test]
    fn the_third_largest_is_counted_with_equals() {
        let rows = [[1.0f32, 5.0, 5.0, -2.0], [-1.0, -2.0, -3.0, -4.0], [7.0, 7.0, 7.0, 7.0]];
        let logits = Tensor::<Inner, 2>::from_data(TensorData::new(rows.concat(), [3, 4]), Device::flex().dispatch());
        assert_eq!(to_host(largest(logits.clone(), 0)), [5.0, -1.0, 7.0]);
        assert_eq!(to_host(largest(logits, 2)), [1.0, -3.0, 7.0]);
    }
}
