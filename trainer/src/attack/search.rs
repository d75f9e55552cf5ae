//! The loop that all attacks along gradients share: ask, keep the best, let go what is done, step; verify at the end.
//!
//! What differs, an objective and a step, is a [`Strategy`]. Everything stays on the device; the host looks at the margins as
//! often as [`Reading`] says.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use crc::{CRC_64_XZ, Crc};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::ball::{Ball, Norm, choose};
use super::{Attacked, Reading, margin_column, margins, one_hot, rows, to_images, to_rows};
use crate::data::batch::{Purpose, rng, to_interleaved_u8};
use crate::nn::{self, Auto, Frozen, Inner, Output};
use crate::train::Passes;

/// What makes an attack: an objective, and a step along its gradient. All columns are `[n, 1]`.
pub(super) trait Strategy {
    /// What is to rise, for each row, `[n, 1]`; `own` is 1 at the row's class. Rows do not mix.
    fn objective<B: Backend>(&self, logits: Tensor<B, 2>, own: Tensor<B, 2>) -> Tensor<B, 2>;

    /// Whether the gradient at the first point serves for all.
    fn one_gradient(&self) -> bool {
        false
    }

    /// The next change, before projection.
    fn step(&mut self, rows: &Rows, ball: Ball) -> Tensor<Inner, 2>;

    /// Only these rows are left.
    fn select(&mut self, _left: Tensor<Inner, 1, Int>) {}
}

/// What is searched, and how far.
#[derive(Clone, Copy)]
pub(super) struct Search<'a> {
    pub network: &'a Frozen,
    pub shape: [usize; 3],
    pub ball: Ball,
    /// 1 where the margin is to rise, -1 where it is to fall.
    pub sense: f32,
    /// An image is done where its margin, in that sense, is this large.
    pub wanted: f32,
    pub reading: Reading,
}

/// What is still searched for, a row an image. Columns are `[n, 1]`; margins count towards the goal.
pub(super) struct Rows {
    /// Numbers of the images.
    numbers: Vec<usize>,
    /// 1 at the image's class.
    own: Tensor<Inner, 2>,
    pub origin: Tensor<Inner, 2>,
    pub change: Tensor<Inner, 2>,
    /// On the grid: what `change` stands for.
    pub x: Tensor<Inner, 2>,
    /// Of `x`.
    pub margin: Tensor<Inner, 2>,
    /// The strategy's, of `x`.
    pub objective: Tensor<Inner, 2>,
    /// Of the objective; at `x`, or the first one where that serves for all.
    pub gradient: Tensor<Inner, 2>,
    /// The image with the largest margin so far, and that margin.
    best: Tensor<Inner, 2>,
    reached: Tensor<Inner, 2>,
}

/// A gradient that leads somewhere, or nowhere: that of a network which overflows is neither.
pub(super) fn finite(gradient: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
    gradient.clone().mask_fill(gradient.is_nan(), 0.0).clamp(f32::MIN, f32::MAX)
}

/// NaN reaches nothing.
pub(super) fn reaches(margin: f32, wanted: f32) -> bool {
    margin >= wanted
}

impl Rows {
    fn select(&mut self, left: &[usize], index: &Tensor<Inner, 1, Int>) {
        let numbers = left.iter().map(|&row| self.numbers[row]).collect();
        let select = |x: &Tensor<Inner, 2>| x.clone().select(0, index.clone());
        *self = Rows {
            numbers,
            own: select(&self.own),
            origin: select(&self.origin),
            change: select(&self.change),
            x: select(&self.x),
            margin: select(&self.margin),
            objective: select(&self.objective),
            gradient: select(&self.gradient),
            best: select(&self.best),
            reached: select(&self.reached),
        };
    }
}

impl Search<'_> {
    /// `run` from the images themselves and then, for those that are not done, from random points of their balls; the better
    /// result is kept.
    pub fn with_restarts(
        &self,
        images: &[&[u8]],
        labels: &[u16],
        restarts: usize,
        seed: u64,
        mut run: impl FnMut(&[&[u8]], &[u16], Option<Vec<f32>>) -> Attacked,
    ) -> Attacked {
        assert_eq!(images.len(), labels.len(), "every image has a label");
        let mut result = run(images, labels, None);
        for restart in 1..=restarts {
            let open: Vec<usize> = (0..images.len())
                .filter(|&i| !reaches(self.sense * result.margins[i], self.wanted))
                .collect();
            if open.is_empty() {
                break;
            }
            let some: Vec<&[u8]> = open.iter().map(|&i| images[i]).collect();
            let classes: Vec<u16> = open.iter().map(|&i| labels[i]).collect();
            let again = run(&some, &classes, Some(random_changes(&some, self.ball, seed, restart as u64)));
            result.passes += again.passes;
            let len: usize = self.shape.iter().product();
            for (row, &i) in open.iter().enumerate() {
                if self.sense * again.margins[row] > self.sense * result.margins[i] {
                    result.margins[i] = again.margins[row];
                    result.images[i * len..][..len].copy_from_slice(&again.images[row * len..][..len]);
                }
            }
        }
        result
    }

    /// At most `steps` steps for every image, from the image itself or changed as `start` says.
    pub fn run(
        &self,
        strategy: &mut impl Strategy,
        steps: usize,
        images: &[&[u8]],
        labels: &[u16],
        start: Option<Vec<f32>>,
    ) -> Attacked {
        let mut found = Attacked {
            images: images.concat(),
            margins: Vec::new(),
            passes: Passes::default(),
        };
        if images.is_empty() {
            return found;
        }
        let mut rows = self.start(images, labels, start);
        for step in 0..steps {
            self.evaluate(strategy, &mut rows, step == 0, &mut found.passes);
            if step % self.reading.every == 0 {
                self.retire(strategy, &mut rows, self.reading.least_done, &mut found.images);
            }
            if rows.numbers.is_empty() {
                break;
            }
            let change = strategy.step(&rows, self.ball);
            let change = self.ball.project(&rows.origin, change);
            let x = self.ball.image(&rows.origin, change.clone());
            // Images that have reached the margin stay as they are.
            let done = rows.reached.clone().greater_equal_elem(self.wanted);
            rows.change = choose(&done, rows.change, change);
            rows.x = choose(&done, rows.x, x);
        }
        if steps > 0 {
            self.retire(strategy, &mut rows, 0.0, &mut found.images);
        }
        self.store(&rows.x, &rows.numbers, &mut found.images);
        found.margins = self.classify(&found.images, labels, &mut found.passes);

        // The last step may have led away from the goal.
        let len: usize = self.shape.iter().product();
        let worse: Vec<usize> = (nn::to_host(rows.reached.clone()).iter().zip(&rows.numbers).enumerate())
            .filter(|&(_, (&reached, &i))| reached > self.sense * found.margins[i])
            .map(|(row, _)| row)
            .collect();
        if !worse.is_empty() {
            let numbers: Vec<usize> = worse.iter().map(|&row| rows.numbers[row]).collect();
            let best = rows.best.clone().select(0, self::rows(&worse, &rows.best.device()));
            self.store(&best, &numbers, &mut found.images);
            let pixels = numbers.iter().flat_map(|&i| found.images[i * len..][..len].iter().copied());
            let classes: Vec<u16> = numbers.iter().map(|&i| labels[i]).collect();
            let again = self.classify(&pixels.collect::<Vec<_>>(), &classes, &mut found.passes);
            for (i, margin) in numbers.into_iter().zip(again) {
                found.margins[i] = margin;
            }
        }
        found
    }

    fn start(&self, images: &[&[u8]], labels: &[u16], start: Option<Vec<f32>>) -> Rows {
        let device = self.network.device();
        let origin = to_rows(images.iter().copied(), self.shape, device);
        let (change, x) = match start {
            None => (origin.zeros_like(), origin.clone()),
            Some(start) => {
                let change = Tensor::from_data(TensorData::new(start, origin.dims()), device.dispatch());
                let change = self.ball.project(&origin, change);
                (change.clone(), self.ball.image(&origin, change))
            }
        };
        let least = Tensor::full([images.len(), 1], f32::NEG_INFINITY, device.dispatch());
        Rows {
            numbers: (0..images.len()).collect(),
            own: one_hot(labels, self.network.network().classes(), device),
            gradient: change.zeros_like(),
            origin,
            change,
            best: x.clone(),
            x,
            margin: least.clone(),
            objective: least.clone(),
            reached: least,
        }
    }

    /// Asks the network at `x`, and keeps the best.
    fn evaluate(&self, strategy: &impl Strategy, rows: &mut Rows, first: bool, passes: &mut Passes) {
        let x = to_images(rows.x.clone(), self.shape);
        let n = rows.numbers.len();
        let logits = if strategy.one_gradient() && !first {
            *passes += Passes::forward(n);
            self.network.forward(x).logits
        } else {
            *passes += Passes::input_gradient(n);
            let own = Tensor::<Auto, 2>::from_inner(rows.own.clone());
            // Rows do not mix, so the gradient of the sum holds every image's own.
            let sum = |output: Output<Auto>| strategy.objective(output.logits, own).sum();
            let (gradient, output) = self.network.input_gradient(x, sum);
            rows.gradient = finite(gradient.reshape(rows.x.dims()));
            output.logits
        };
        rows.objective = strategy.objective(logits.clone(), rows.own.clone());
        rows.margin = self.margin(logits, rows.own.clone());
        let better = rows.margin.clone().greater(rows.reached.clone());
        rows.best = choose(&better, rows.x.clone(), rows.best.clone());
        rows.reached = choose(&better, rows.margin.clone(), rows.reached.clone());
    }

    /// Takes the images that have reached the margin off the batch, where they are at least a share of it.
    fn retire(&self, strategy: &mut impl Strategy, rows: &mut Rows, least: f32, images: &mut [u8]) {
        let n = rows.numbers.len();
        if n == 0 {
            return;
        }
        let reached = nn::to_host(rows.reached.clone());
        let (done, left): (Vec<usize>, Vec<usize>) = (0..n).partition(|&row| reaches(reached[row], self.wanted));
        if done.is_empty() || (done.len() as f32) < least * n as f32 {
            return;
        }
        let numbers: Vec<usize> = done.iter().map(|&row| rows.numbers[row]).collect();
        let index = self::rows(&done, &rows.x.device());
        self.store(&rows.best.clone().select(0, index), &numbers, images);
        if left.is_empty() {
            rows.numbers.clear();
            return;
        }
        let index = self::rows(&left, &rows.x.device());
        rows.select(&left, &index);
        strategy.select(index);
    }

    /// Margins in the sense of the search, `[n, 1]`.
    pub fn margin(&self, logits: Tensor<Inner, 2>, own: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        margin_column(logits, own) * self.sense
    }

    /// Writes rows to the places of their images.
    pub fn store(&self, rows: &Tensor<Inner, 2>, numbers: &[usize], images: &mut [u8]) {
        if numbers.is_empty() {
            return;
        }
        let len = self.shape.iter().product();
        let pixels = to_interleaved_u8(&nn::to_host(rows.clone()), self.shape);
        for (image, &i) in pixels.chunks_exact(len).zip(numbers) {
            images[i * len..][..len].copy_from_slice(image);
        }
    }

    /// Margins of images as their bytes are classified.
    fn classify(&self, images: &[u8], labels: &[u16], passes: &mut Passes) -> Vec<f32> {
        *passes += Passes::forward(labels.len());
        let images = images.chunks_exact(self.shape.iter().product());
        let rows = to_rows(images, self.shape, self.network.device());
        let output = self.network.forward(to_images(rows, self.shape));
        margins(&nn::to_host(output.logits), labels)
    }
}

/// A point of the ball for each image, drawn from a stream of the image's own: what else is in the batch does not matter.
fn random_changes(images: &[&[u8]], ball: Ball, seed: u64, number: u64) -> Vec<f32> {
    let change = |image: &&[u8]| {
        let mut rng = image_rng(image, seed, Purpose::Restart, number);
        let change: Vec<f32> = image.iter().map(|_| rng.random_range(-1.0f32..=1.0)).collect();
        let factor = match ball.norm {
            Norm::Linf => ball.epsilon,
            Norm::L2 => ball.epsilon / change.iter().map(|c| c * c).sum::<f32>().sqrt().max(1e-6),
        };
        change.into_iter().map(move |c| c * factor)
    };
    images.iter().flat_map(change).collect()
}

/// A stream that depends on the image, not on where in a batch or set it is.
pub(super) fn image_rng(image: &[u8], seed: u64, purpose: Purpose, number: u64) -> ChaCha8Rng {
    let digest = Crc::<u64>::new(&CRC_64_XZ).checksum(image);
    rng(seed, purpose, digest.wrapping_add(number))
}
