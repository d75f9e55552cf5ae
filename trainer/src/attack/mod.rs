//! Attacks within a ball around an image, on the grid of 8-bit pixels.
//!
//! The same search serves two ends: towards the true class, to correct an image that the network misclassifies, and away
//! from it, to measure robustness. Every image on the way is one that a camera could deliver, so what is found cannot be lost
//! by rounding afterwards. The network is the frozen one, fake-quantized where it is quantized, with gradients passed
//! straight through.
//!
//! [`attack`] follows the margin: FGSM, PGD, and a minimal-norm attack. For evaluation there are [`apgd`], and [`square`],
//! which needs logits only; [`robustness`] measures with all of them.
//!
//! # Source
//! FGSM: Goodfellow et al. 2015. PGD: Madry et al. 2018. Minimal norm: DeepFool (Moosavi-Dezfooli et al. 2016), then balls that
//! shrink, as in Rony et al. 2019. The margin as objective: Carlini and Wagner 2017.

mod ball;
mod pgd;
mod search;

pub mod apgd;
pub mod robustness;
pub mod square;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use self::ball::Ball;
pub use self::ball::Norm;
use self::search::Search;
use crate::data::Dataset;
use crate::data::batch::to_planar_f32;
use crate::device::Device;
use crate::nn::{self, Frozen, Inner};
use crate::train::Passes;
use crate::{Error, ErrorKind, Result};

/// How the direction of the search is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// One gradient; along it, the first multiple of the step, at most epsilon, that reaches the margin.
    Fgsm,
    /// A gradient at every step.
    Pgd,
    /// Each step as long as a linear network would need to the margin; what is found is then moved back towards the image for
    /// as long as it keeps the margin.
    Minimal,
}

/// Which way to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the image's class: corrections.
    Toward,
    /// To any other class: robustness.
    Away,
}

impl Direction {
    /// What a margin is multiplied by, so that more is nearer to the goal.
    fn sense(self) -> f32 {
        match self {
            Direction::Toward => 1.0,
            Direction::Away => -1.0,
        }
    }
}

/// How far and how to search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttackOptions {
    /// Where the direction comes from.
    pub method: Method,
    /// What epsilon and step are measured in.
    pub norm: Norm,
    /// Largest change, in grey levels: of a pixel value (whole), or the Euclidean length over all pixel values.
    pub epsilon: f32,
    /// Change in one step, measured as epsilon is; may be less than a level. Of no meaning to the minimal-norm attack.
    pub step: f32,
    /// Most steps; FGSM takes as many as lead to epsilon.
    pub steps: usize,
    /// An image is done where its class's logit is this far above every other (or, away from it, below the largest).
    pub margin: f32,
    /// Further searches from random points of the ball, for images that are not done.
    pub restarts: usize,
    /// Of the random points.
    pub seed: u64,
}

impl Default for AttackOptions {
    fn default() -> Self {
        Self {
            method: Method::Pgd,
            norm: Norm::Linf,
            epsilon: 8.0,
            step: 1.0,
            steps: 10,
            margin: 2.0,
            restarts: 0,
            seed: 0,
        }
    }
}

impl AttackOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
        check_epsilon(self.norm, self.epsilon)?;
        if !(self.step > 0.0 && self.step.is_finite()) {
            return usage(format!("--attack-step {} changes nothing", self.step));
        }
        if self.steps == 0 && self.method != Method::Fgsm {
            return usage("--attack-steps 0 changes nothing".into());
        }
        if !(self.margin.is_finite() && self.margin >= 0.0) {
            return usage(format!("--margin {} is negative or not finite", self.margin));
        }
        Ok(())
    }

    fn most_steps(&self) -> usize {
        match self.method {
            Method::Fgsm => (self.epsilon / self.step).ceil() as usize,
            Method::Pgd | Method::Minimal => self.steps,
        }
    }
}

/// Whether there is an 8-bit image at most `epsilon` away, and the number means what it says.
pub(crate) fn check_epsilon(norm: Norm, epsilon: f32) -> Result<()> {
    let usage = |what: String, remedy: &str| Err(Error::new(ErrorKind::Usage, what).remedy(remedy));
    if !(epsilon.is_finite() && epsilon >= 1.0) {
        return usage(
            format!("an attack with --epsilon {epsilon} changes nothing: pixels change by whole grey levels"),
            "give at least 1; epsilon is in grey levels, 1 of 255",
        );
    }
    if norm == Norm::Linf && (epsilon.fract() != 0.0 || epsilon > 255.0) {
        return usage(
            format!("--epsilon {epsilon}: the largest change of a pixel is a whole number of grey levels up to 255"),
            "give a whole number, such as 8 for the literature's 8/255",
        );
    }
    Ok(())
}

/// What an attack found.
#[derive(Clone, Debug, PartialEq)]
pub struct Attacked {
    /// Pixels of every image, `[n, height, width, channels]`.
    pub images: Vec<u8>,
    /// Of every image, as these pixels are classified: the logit of its class less the largest other one.
    pub margins: Vec<f32>,
    /// Work done. On a GPU more than on the CPU, for the same images: there the host looks only now and then which are done.
    pub passes: Passes,
}

/// Searches, for each of a batch of images, a near image that is classified as its label (or as anything else).
///
/// An image that has reached the margin is left as it is, and the batch goes on without it. Where none reaches it, the
/// nearest to it of all visited is the result. At the end all are classified once more from their bytes.
///
/// # Shapes
/// Each image `[height, width, channels] = shape`; one label each.
///
/// # Panics
/// Where images and labels differ in number, or are not of the network's size and classes.
pub fn attack(
    network: &Frozen,
    images: &[&[u8]],
    shape: [usize; 3],
    labels: &[u16],
    options: &AttackOptions,
    direction: Direction,
) -> Attacked {
    attack_read(
        network,
        images,
        shape,
        labels,
        options,
        direction,
        Reading::of(network.device()),
    )
}

fn attack_read(
    network: &Frozen,
    images: &[&[u8]],
    shape: [usize; 3],
    labels: &[u16],
    options: &AttackOptions,
    direction: Direction,
    reading: Reading,
) -> Attacked {
    let search = Search {
        network,
        shape,
        ball: Ball {
            norm: options.norm,
            epsilon: options.epsilon,
        },
        sense: direction.sense(),
        wanted: options.margin,
        reading,
    };
    pgd::attack(&search, images, labels, options)
}

/// How often the host looks which images are done. The images found do not depend on it.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Steps between two looks.
    every: usize,
    /// The batch goes on without those that are done where at least this share is.
    least_done: f32,
}

impl Reading {
    /// At every step, as it costs nothing on a CPU.
    const CPU: Reading = Reading {
        every: 1,
        least_done: 0.0,
    };
    /// Each look waits for the device, and each size of a batch may have kernels of its own.
    const GPU: Reading = Reading {
        every: 5,
        least_done: 0.5,
    };

    fn of(device: &Device) -> Self {
        if device.name().starts_with("cuda") {
            Self::GPU
        } else {
            Self::CPU
        }
    }
}

/// Share of the first `limit` images that keep their class under attack, in per cent; 0 of no images.
pub(crate) fn robust_accuracy(network: &Frozen, images: &Dataset, limit: usize, options: &AttackOptions) -> f32 {
    let count = limit.min(images.len());
    let mut right = 0;
    for batch in (0..count).collect::<Vec<_>>().chunks(ROBUST_BATCH) {
        let pixels: Vec<&[u8]> = batch.iter().map(|&i| images.image(i)).collect();
        let labels: Vec<u16> = batch.iter().map(|&i| images.label(i)).collect();
        let attacked = attack(network, &pixels, images.shape(), &labels, options, Direction::Away);
        right += attacked.margins.iter().filter(|&&margin| margin > 0.0).count();
    }
    100.0 * right as f32 / count.max(1) as f32
}

/// Images attacked at a time for [`robust_accuracy`].
const ROBUST_BATCH: usize = 128;

/// Images as rows of pixel values, in the order of planes, `[n, channels * height * width]`.
fn to_rows<'a>(images: impl ExactSizeIterator<Item = &'a [u8]>, shape: [usize; 3], device: &Device) -> Tensor<Inner, 2> {
    let n = images.len();
    nn::pixels(to_planar_f32(images, shape, None), n, shape, device).reshape([n, shape.iter().product()])
}

/// Rows as the network takes them.
fn to_images(rows: Tensor<Inner, 2>, shape: [usize; 3]) -> Tensor<Inner, 4> {
    let [height, width, channels] = shape;
    let n = rows.dims()[0];
    rows.reshape([n, channels, height, width])
}

/// Row numbers as a tensor.
pub(crate) fn rows<B: Backend>(rows: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let len = rows.len();
    Tensor::from_data(TensorData::new(rows, [len]), device)
}

/// 1 at each row's class and 0 elsewhere, `[n, classes]`.
fn one_hot(labels: &[u16], classes: usize, device: &Device) -> Tensor<Inner, 2> {
    let mut own = vec![0.0f32; labels.len() * classes];
    for (row, &label) in own.chunks_exact_mut(classes).zip(labels) {
        row[usize::from(label)] = 1.0;
    }
    Tensor::from_data(TensorData::new(own, [labels.len(), classes]), device.dispatch())
}

/// For each row of logits, that of its class less the largest other one.
fn margins(logits: &[f32], labels: &[u16]) -> Vec<f32> {
    let classes = logits.len() / labels.len().max(1);
    let margin = |(logits, &label): (&[f32], &u16)| {
        let label = usize::from(label);
        let others = logits.iter().enumerate().filter(|&(class, _)| class != label);
        logits[label] - others.map(|(_, &logit)| logit).fold(f32::NEG_INFINITY, f32::max)
    };
    logits.chunks_exact(classes.max(1)).zip(labels).map(margin).collect()
}

/// [`margins`] on the device, to the same bits; `own` as from [`one_hot`]. `[n, 1]`.
fn margin_column<B: Backend>(logits: Tensor<B, 2>, own: Tensor<B, 2>) -> Tensor<B, 2> {
    /// Above any logit. Only an image's own class is moved by it, so the others stay exact.
    const FAR: f32 = 1e30;
    let others = (logits.clone() - own.clone() * FAR).max_dim(1);
    (logits * own).sum_dim(1) - others
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::run_folder::RunFolder;
    use crate::train::{fixture, train};

    const METHODS: [Method; 3] = [Method::Fgsm, Method::Pgd, Method::Minimal];

    /// A network that gets most images right.
    pub fn trained() -> &'static Checkpoint {
        static TRAINED: OnceLock<Checkpoint> = OnceLock::new();
        TRAINED.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let run = RunFolder::open(folder.path(), &serde_json::json!({})).unwrap();
            let images = fixture::images(240, 1);
            train(&fixture::float(3), None, &images, &fixture::options(), &run, &Device::flex()).unwrap();
            Checkpoint::load(run.track("").unwrap().best()).unwrap()
        })
    }

    pub fn freeze(checkpoint: &Checkpoint) -> Frozen {
        let quantization = checkpoint.quantization.as_ref();
        Frozen::new(&checkpoint.network, &checkpoint.state, quantization, &Device::flex()).unwrap()
    }

    /// Every pixel within the ball, and the margins those of the bytes.
    pub fn assert_sound(network: &Frozen, images: &Dataset, attacked: &Attacked, norm: Norm, epsilon: f32) {
        let len = images.image_len();
        assert_eq!(attacked.images.len(), images.images.len());
        for (i, image) in attacked.images.chunks_exact(len).enumerate() {
            let distance = norm.distance(image, images.image(i));
            assert!(distance <= f64::from(epsilon), "image {i}: {distance} > {epsilon}");
        }
        let classified = Dataset {
            images: attacked.images.clone(),
            ..images.clone()
        };
        let logits = network.logits_of(&classified, 7).unwrap();
        for (found, margin) in margins(&logits, images.labels()).iter().zip(&attacked.margins) {
            // Of another batch, so the sums may be in another order.
            assert!((found - margin).abs() < 1e-4 * (1.0 + margin.abs()), "{found} {margin}");
        }
    }

    fn frozen(seed: u64) -> Frozen {
        let start = fixture::float(seed);
        Frozen::new(&start.network, &start.state, None, &Device::flex()).unwrap()
    }

    fn run(network: &Frozen, images: &Dataset, options: &AttackOptions, direction: Direction) -> Attacked {
        let pixels: Vec<&[u8]> = (0..images.len()).map(|i| images.image(i)).collect();
        attack(network, &pixels, images.shape(), images.labels(), options, direction)
    }

    fn largest_changes(a: &[u8], images: &Dataset) -> Vec<u8> {
        let changes = |(a, b): (&[u8], &[u8])| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let len = images.image_len();
        a.chunks_exact(len)
            .zip(images.images.chunks_exact(len))
            .map(changes)
            .collect()
    }

    /// Random weights know nothing: a quarter of the images is right by chance.
    #[test]
    fn corrections_reach_the_margin_within_epsilon() {
        let (network, images) = (frozen(3), fixture::images(60, 5));
        for (method, steps) in [(Method::Pgd, 20), (Method::Fgsm, 0)] {
            let options = AttackOptions {
                method,
                epsilon: 40.0,
                step: 4.0,
                steps,
                margin: 0.1,
                ..AttackOptions::default()
            };
            let attacked = run(&network, &images, &options, Direction::Toward);
            let reached = attacked.margins.iter().filter(|&&margin| margin >= 0.1).count();
            let before = run(
                &network,
                &images,
                &AttackOptions {
                    margin: 1e9,
                    ..options.clone()
                },
                Direction::Away,
            );
            assert!(before.margins.iter().filter(|&&margin| margin >= 0.0).count() < 10);
            assert!(reached >= 50, "{method:?} {reached}");
            let changes = largest_changes(&attacked.images, &images);
            assert!(changes.iter().all(|&change| change <= 40));
            // FGSM's multiples of the step, unless a pixel is clamped.
            assert!(changes.iter().all(|change| change % 4 == 0), "{changes:?}");
            let classified = Dataset {
                images: attacked.images.clone(),
                ..images.clone()
            };
            let right = network.predict(&classified).unwrap();
            for (i, margin) in attacked.margins.iter().enumerate() {
                assert_eq!(*margin > 0.0, right[i] == images.label(i), "image {i}: margin {margin}");
            }
        }
    }

    #[test]
    fn an_image_that_has_the_margin_is_left_alone_and_costs_little() {
        let (network, images) = (frozen(3), fixture::images(60, 5));
        let right: Vec<usize> = (0..60)
            .filter(|&i| network.predict(&images).unwrap()[i] == images.label(i))
            .collect();
        let images = images.subset(&right);
        let options = AttackOptions {
            margin: 0.0,
            ..AttackOptions::default()
        };
        let attacked = run(&network, &images, &options, Direction::Toward);
        assert_eq!(attacked.images, images.images);
        // A gradient at the image, and the check at the end.
        assert_eq!(
            attacked.passes,
            Passes::input_gradient(images.len()) + Passes::forward(images.len())
        );
    }

    #[test]
    fn passes_are_those_of_what_is_still_searched_for() {
        let (network, images) = (frozen(3), fixture::images(12, 5));
        let unreachable = AttackOptions {
            margin: 1e6,
            steps: 5,
            ..AttackOptions::default()
        };
        let pgd = run(&network, &images, &unreachable, Direction::Toward).passes;
        assert_eq!(pgd, Passes::input_gradient(5 * 12) + Passes::forward(12));
        let fgsm = AttackOptions {
            method: Method::Fgsm,
            epsilon: 8.0,
            step: 2.0,
            ..unreachable
        };
        let fgsm = run(&network, &images, &fgsm, Direction::Toward).passes;
        assert_eq!(fgsm, Passes::input_gradient(12) + Passes::forward(3 * 12 + 12));
    }

    /// Compaction must not mix images up: alone, each is led to the same pixels.
    #[test]
    fn a_batch_finds_what_each_image_finds_alone() {
        let (network, images) = (frozen(3), fixture::images(16, 5));
        for method in METHODS {
            for norm in [Norm::Linf, Norm::L2] {
                let options = AttackOptions {
                    epsilon: if norm == Norm::L2 { 100.0 } else { 12.0 },
                    step: if norm == Norm::L2 { 20.0 } else { 2.0 },
                    steps: 8,
                    margin: 0.05,
                    ..wide(method, norm)
                };
                let together = run(&network, &images, &options, Direction::Toward);
                for i in 0..images.len() {
                    let alone = run(&network, &images.subset(&[i]), &options, Direction::Toward);
                    let len = images.image_len();
                    assert_eq!(
                        alone.images,
                        together.images[i * len..][..len],
                        "{method:?} {norm:?} image {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn away_lowers_the_margin() {
        let (network, images) = (frozen(3), fixture::images(40, 5));
        let none = AttackOptions {
            margin: 0.0,
            ..AttackOptions::default()
        };
        let untouched = Attacked {
            margins: margins(&network.logits_of(&images, 16).unwrap(), images.labels()),
            ..run(&network, &images, &none, Direction::Away)
        };
        let options = AttackOptions {
            epsilon: 16.0,
            step: 2.0,
            margin: 0.2,
            ..AttackOptions::default()
        };
        let attacked = run(&network, &images, &options, Direction::Away);
        assert!(
            attacked
                .margins
                .iter()
                .zip(&untouched.margins)
                .all(|(after, before)| *after <= before.max(-0.2))
        );
        assert!(attacked.margins.iter().all(|&margin| margin < 0.0));
    }

    #[test]
    fn pixels_stay_pixels() {
        let network = frozen(3);
        let mut images = fixture::images(8, 5);
        images.images = (0..images.images.len()).map(|i| if i % 2 == 0 { 0 } else { 255 }).collect();
        let options = AttackOptions {
            margin: 1e6,
            ..AttackOptions::default()
        };
        let attacked = run(&network, &images, &options, Direction::Toward);
        for (after, before) in attacked.images.iter().zip(&images.images) {
            assert!(after.abs_diff(*before) <= 8);
        }
        assert_ne!(attacked.images, images.images);
    }

    #[test]
    fn margins_are_to_the_largest_other_class() {
        assert_eq!(margins(&[1.0, 5.0, 2.0, 0.0, -1.0, 3.0], &[1, 0]), [3.0, -3.0]);
        assert!(margins(&[], &[]).is_empty());
    }

    /// A ball in which most images of the fixture find what they look for.
    fn wide(method: Method, norm: Norm) -> AttackOptions {
        let (epsilon, step) = match norm {
            Norm::Linf => (40.0, 4.0),
            Norm::L2 => (300.0, 30.0),
        };
        AttackOptions {
            method,
            norm,
            epsilon,
            step,
            steps: 20,
            margin: 0.1,
            ..AttackOptions::default()
        }
    }

    #[test]
    fn every_method_and_norm_finds_both_ways_and_stays_in_the_ball() {
        let (network, images) = (frozen(3), fixture::images(48, 5));
        for (method, norm) in METHODS
            .into_iter()
            .flat_map(|method| [Norm::Linf, Norm::L2].map(|norm| (method, norm)))
        {
            for direction in [Direction::Toward, Direction::Away] {
                let options = wide(method, norm);
                let attacked = run(&network, &images, &options, direction);
                assert_sound(&network, &images, &attacked, norm, options.epsilon);
                let reached = attacked
                    .margins
                    .iter()
                    .filter(|&&margin| direction.sense() * margin >= 0.1)
                    .count();
                assert!(reached >= 36, "{method:?} {norm:?} {direction:?}: {reached}");
                assert!(attacked == run(&network, &images, &options, direction));
                // So little that rounding matters.
                let narrow = AttackOptions {
                    epsilon: if norm == Norm::L2 { 4.5 } else { 1.0 },
                    ..options
                };
                let attacked = run(&network, &images, &narrow, direction);
                assert_sound(&network, &images, &attacked, norm, narrow.epsilon);
                assert!(attacked.images != images.images);
            }
        }
    }

    /// On a GPU done images stay in the batch for a while: what is found is the same.
    #[test]
    fn how_often_the_host_looks_changes_nothing_but_the_passes() {
        let (network, images) = (frozen(3), fixture::images(40, 5));
        let pixels: Vec<&[u8]> = (0..images.len()).map(|i| images.image(i)).collect();
        for method in METHODS {
            for norm in [Norm::Linf, Norm::L2] {
                let options = AttackOptions {
                    restarts: 1,
                    margin: 0.3,
                    ..wide(method, norm)
                };
                let read = |reading| {
                    let (shape, labels) = (images.shape(), images.labels());
                    attack_read(&network, &pixels, shape, labels, &options, Direction::Toward, reading)
                };
                let (often, seldom) = (read(Reading::CPU), read(Reading::GPU));
                assert!(often.images == seldom.images, "{method:?} {norm:?}");
                assert!(often.margins == seldom.margins);
                assert!(often.passes < seldom.passes, "{method:?} {norm:?}: {:?}", often.passes);
            }
        }
    }

    #[test]
    fn the_minimal_attack_finds_smaller_changes_than_pgd() {
        let (network, images) = (freeze(trained()), fixture::images(60, 5));
        for (norm, step) in [(Norm::Linf, 1.0), (Norm::L2, 10.0)] {
            let size = |method| {
                let options = AttackOptions {
                    step,
                    steps: 30,
                    margin: 0.05,
                    ..wide(method, norm)
                };
                let attacked = run(&network, &images, &options, Direction::Away);
                let sizes = attacked.images.chunks_exact(images.image_len()).enumerate();
                let sizes: Vec<f64> = sizes.map(|(i, image)| norm.distance(image, images.image(i))).collect();
                let reached = attacked.margins.iter().filter(|&&margin| margin <= -0.05).count();
                (reached, sizes.iter().sum::<f64>() / sizes.len() as f64)
            };
            let ((minimal, small), (pgd, large)) = (size(Method::Minimal), size(Method::Pgd));
            assert!(minimal >= pgd && pgd >= 50, "{norm:?}: {minimal} {pgd}");
            assert!(small < large, "{norm:?}: {small} {large}");
        }
    }

    /// Each of these steps alone rounds to nothing.
    #[test]
    fn small_steps_add_up() {
        let (network, images) = (freeze(trained()), fixture::images(20, 5));
        for norm in [Norm::Linf, Norm::L2] {
            let options = AttackOptions {
                step: if norm == Norm::L2 { 0.3 } else { 0.1 },
                steps: 60,
                margin: 1e6,
                ..wide(Method::Pgd, norm)
            };
            let attacked = run(&network, &images, &options, Direction::Away);
            let before = margins(&network.logits_of(&images, 20).unwrap(), images.labels());
            let lower = attacked.margins.iter().zip(&before).filter(|(after, before)| after < before);
            assert!(lower.count() >= 19, "{norm:?}");
        }
    }

    #[test]
    fn restarts_find_no_less_and_follow_the_seed() {
        let (network, images) = (freeze(trained()), fixture::images(60, 5));
        for norm in [Norm::Linf, Norm::L2] {
            let one = AttackOptions {
                epsilon: if norm == Norm::L2 { 60.0 } else { 6.0 },
                step: if norm == Norm::L2 { 20.0 } else { 2.0 },
                steps: 5,
                margin: 1e6,
                ..wide(Method::Pgd, norm)
            };
            let more = AttackOptions {
                restarts: 3,
                ..one.clone()
            };
            let first = run(&network, &images, &one, Direction::Away);
            let best = run(&network, &images, &more, Direction::Away);
            assert_sound(&network, &images, &best, norm, more.epsilon);
            assert!(best.margins.iter().zip(&first.margins).all(|(best, first)| best <= first));
            assert!(best.images != first.images);
            assert!(best == run(&network, &images, &more, Direction::Away));
            let other = AttackOptions { seed: 1, ..more.clone() };
            assert!(best.images != run(&network, &images, &other, Direction::Away).images);
            let alone = run(&network, &images.subset(&[7]), &more, Direction::Away);
            assert!(alone.images == best.images[7 * images.image_len()..][..images.image_len()]);
        }
    }

    #[test]
    fn no_images_are_no_work() {
        let images = fixture::images(0, 5);
        for method in METHODS {
            let attacked = run(&frozen(3), &images, &wide(method, Norm::L2), Direction::Away);
            assert!(attacked.images.is_empty() && attacked.passes == Passes::default());
        }
    }

    #[test]
    fn epsilons_without_an_image_are_refused() {
        for (norm, epsilon) in [
            (Norm::Linf, 0.5),
            (Norm::Linf, 1.5),
            (Norm::Linf, 256.0),
            (Norm::L2, 0.5),
            (Norm::L2, f32::NAN),
        ] {
            let error = check_epsilon(norm, epsilon).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains("--epsilon"), "{error}");
        }
        check_epsilon(Norm::L2, 1.5).unwrap();
        check_epsilon(Norm::Linf, 255.0).unwrap();
    }

    #[test]
    fn attacks_that_change_nothing_are_usage_errors() {
        let good = AttackOptions::default();
        for bad in [
            AttackOptions {
                epsilon: 0.0,
                ..good.clone()
            },
            AttackOptions {
                step: 0.0,
                ..good.clone()
            },
            AttackOptions {
                steps: 0,
                ..good.clone()
            },
            AttackOptions {
                margin: -1.0,
                ..good.clone()
            },
            AttackOptions {
                margin: f32::NAN,
                ..good.clone()
            },
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::Usage);
        }
        good.check().unwrap();
    }
}
