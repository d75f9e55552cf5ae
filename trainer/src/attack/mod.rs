//! Attacks within an L-infinity ball, on the grid of 8-bit pixels.
//!
//! The same search serves two ends: towards the true class, to correct an image that the network misclassifies, and away
//! from it, to measure robustness. Epsilon and step are whole grey levels, so every image on the way is one that a camera
//! could deliver; what is found cannot be lost by rounding afterwards. The network is the frozen one, fake-quantized where
//! it is quantized, with gradients passed straight through.
//!
//! # Source
//! FGSM: Goodfellow et al. 2015. PGD: Madry et al. 2018. The margin as objective: Carlini and Wagner 2017.

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::data::batch::{to_interleaved_u8, to_planar_f32};
use crate::nn::{self, Auto, Frozen, Inner, Output};
use crate::train::Passes;
use crate::{Error, ErrorKind, Result};

/// How the direction of the search is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// One gradient; along its sign, the first multiple of the step, at most epsilon, that reaches the margin.
    Fgsm,
    /// A gradient at every step.
    Pgd,
}

/// Which way to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the image's class: corrections.
    Toward,
    /// To any other class: robustness.
    Away,
}

/// How far and how to search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttackOptions {
    /// Where the direction comes from.
    pub method: Method,
    /// Largest change of a pixel value, in grey levels.
    pub epsilon: u8,
    /// Change of a pixel value in one step, in grey levels.
    pub step: u8,
    /// Most steps (PGD); FGSM takes as many as lead to epsilon.
    pub steps: usize,
    /// An image is done where its class's logit is this far above every other (or, away from it, below the largest).
    pub margin: f32,
}

impl Default for AttackOptions {
    fn default() -> Self {
        Self {
            method: Method::Pgd,
            epsilon: 8,
            step: 1,
            steps: 10,
            margin: 2.0,
        }
    }
}

impl AttackOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
        if self.epsilon == 0 || self.step == 0 {
            return usage("an attack with --epsilon 0, or steps of 0 grey levels, changes nothing".into());
        }
        if self.steps == 0 && self.method == Method::Pgd {
            return usage("--attack-steps 0 changes nothing".into());
        }
        if !(self.margin.is_finite() && self.margin >= 0.0) {
            return usage(format!("--margin {} is negative or not finite", self.margin));
        }
        Ok(())
    }

    fn most_steps(&self) -> usize {
        match self.method {
            Method::Fgsm => usize::from(self.epsilon.div_ceil(self.step.max(1))),
            Method::Pgd => self.steps,
        }
    }
}

/// What an attack found.
#[derive(Clone, Debug, PartialEq)]
pub struct Attacked {
    /// Pixels of every image, `[n, height, width, channels]`.
    pub images: Vec<u8>,
    /// Of every image, as these pixels are classified: the logit of its class less the largest other one.
    pub margins: Vec<f32>,
    /// Work done.
    pub passes: Passes,
}

/// Searches, for each of a batch of images, a near image that is classified as its label (or as anything else).
///
/// An image that has reached the margin is left as it is, and the batch goes on without it. At the end all are classified
/// once more from their bytes.
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
    assert_eq!(images.len(), labels.len(), "every image has a label");
    let device = network.device();
    let sense = match direction {
        Direction::Toward => 1.0,
        Direction::Away => -1.0,
    };
    let mut found = images.concat();
    let mut passes = Passes::default();
    // What is still searched for: numbers of images, and their tensors row by row.
    let mut active: Vec<usize> = (0..images.len()).collect();
    let mut origin = nn::pixels(
        to_planar_f32(images.iter().copied(), shape, None),
        images.len(),
        shape,
        device,
    );
    let mut x = origin.clone();
    let mut way: Option<Tensor<Inner, 4>> = None;
    for _ in 0..options.most_steps() {
        if active.is_empty() {
            break;
        }
        let classes: Vec<u16> = active.iter().map(|&i| labels[i]).collect();
        let output = match (&way, options.method) {
            (Some(_), Method::Fgsm) => {
                passes += Passes::forward(active.len());
                network.forward(x.clone())
            }
            (None, Method::Fgsm) | (_, Method::Pgd) => {
                passes += Passes::input_gradient(active.len());
                let (gradient, output) = network.input_gradient(x.clone(), |output| margin_sum(output, &classes));
                way = Some(gradient.sign());
                output
            }
        };
        let margins = margins(&nn::to_host(output.logits), &classes);
        let (done, left): (Vec<usize>, Vec<usize>) = (0..active.len()).partition(|&row| sense * margins[row] >= options.margin);
        if !done.is_empty() {
            store(&x, &done, &active, shape, &mut found);
            active = left.iter().map(|&row| active[row]).collect();
            if active.is_empty() {
                break;
            }
            let left = rows(&left, &x.device());
            x = x.select(0, left.clone());
            origin = origin.select(0, left.clone());
            way = way.map(|way| way.select(0, left));
        }
        if let Some(way) = &way {
            let epsilon = f64::from(options.epsilon);
            x = (x + way.clone() * (sense * f32::from(options.step)))
                .max_pair(origin.clone() - epsilon)
                .min_pair(origin.clone() + epsilon)
                .clamp(0.0, 255.0);
        }
    }
    store(&x, &(0..active.len()).collect::<Vec<_>>(), &active, shape, &mut found);

    let planar = to_planar_f32(found.chunks_exact(shape.iter().product()), shape, None);
    let output = network.forward(nn::pixels(planar, images.len(), shape, device));
    passes += Passes::forward(images.len());
    Attacked {
        images: found,
        margins: margins(&nn::to_host(output.logits), labels),
        passes,
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

/// Writes rows of `x`, of the images `active`, to their places in `found`.
fn store(x: &Tensor<Inner, 4>, which: &[usize], active: &[usize], shape: [usize; 3], found: &mut [u8]) {
    if which.is_empty() {
        return;
    }
    let len = shape.iter().product();
    let pixels = to_interleaved_u8(&nn::to_host(x.clone().select(0, rows(which, &x.device()))), shape);
    for (image, &row) in pixels.chunks_exact(len).zip(which) {
        found[active[row] * len..][..len].copy_from_slice(image);
    }
}

/// Row numbers as a tensor.
pub(crate) fn rows<B: burn::tensor::backend::Backend>(rows: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let len = rows.len();
    Tensor::from_data(TensorData::new(rows, [len]), device)
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

/// [`margins`], summed, with a graph. Rows do not mix, so the gradient of the sum holds every image's own.
fn margin_sum(output: Output<Auto>, labels: &[u16]) -> Tensor<Auto, 1> {
    /// Above any difference of logits. Only an image's own class is moved by it, so the others stay exact.
    const FAR: f32 = 8192.0;
    let logits = output.logits;
    let [n, classes] = logits.dims();
    let mut own = vec![0.0f32; n * classes];
    for (row, &label) in own.chunks_exact_mut(classes).zip(labels) {
        row[usize::from(label)] = 1.0;
    }
    let own = Tensor::<Auto, 2>::from_data(TensorData::new(own, [n, classes]), &logits.device());
    let others = (logits.clone() - own.clone() * FAR).max_dim(1);
    ((logits * own).sum_dim(1) - others).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Dataset;
    use crate::device::Device;
    use crate::train::fixture;

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
                epsilon: 40,
                step: 4,
                steps,
                margin: 0.1,
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
            epsilon: 8,
            step: 2,
            ..unreachable
        };
        let fgsm = run(&network, &images, &fgsm, Direction::Toward).passes;
        assert_eq!(fgsm, Passes::input_gradient(12) + Passes::forward(3 * 12 + 12));
    }

    /// Compaction must not mix images up: alone, each is led to the same pixels.
    #[test]
    fn a_batch_finds_what_each_image_finds_alone() {
        let (network, images) = (frozen(3), fixture::images(24, 5));
        let options = AttackOptions {
            epsilon: 12,
            step: 2,
            margin: 0.05,
            ..AttackOptions::default()
        };
        let together = run(&network, &images, &options, Direction::Toward);
        for i in 0..images.len() {
            let alone = run(&network, &images.subset(&[i]), &options, Direction::Toward);
            let len = images.image_len();
            assert_eq!(alone.images, together.images[i * len..][..len], "image {i}");
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
            epsilon: 16,
            step: 2,
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

    #[test]
    fn attacks_that_change_nothing_are_usage_errors() {
        let good = AttackOptions::default();
        for bad in [
            AttackOptions {
                epsilon: 0,
                ..good.clone()
            },
            AttackOptions { step: 0, ..good.clone() },
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
