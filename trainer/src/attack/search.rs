//! FGSM, PGD and the minimal-norm attack: one loop along the gradient of the margin.

use burn::tensor::{Tensor, TensorData};
use crc::{CRC_64_XZ, Crc};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::ball::{Ball, Norm, choose};
use super::{AttackOptions, Attacked, Direction, Method, Reading, margin_column, margins, one_hot, rows, to_images, to_rows};
use crate::data::batch::{Purpose, rng, to_interleaved_u8};
use crate::nn::{self, Auto, Frozen, Inner, Output};
use crate::train::Passes;

/// By how much more than to the margin a step of the minimal-norm attack goes, as in DeepFool.
const OVERSHOOT: f32 = 1.02;

/// Halvings of a Euclidean length on the way back to the image.
const HALVINGS: usize = 6;

pub(super) fn attack(
    network: &Frozen,
    images: &[&[u8]],
    shape: [usize; 3],
    labels: &[u16],
    options: &AttackOptions,
    direction: Direction,
    reading: Reading,
) -> Attacked {
    assert_eq!(images.len(), labels.len(), "every image has a label");
    let sense = direction.sense();
    let search = Search {
        network,
        shape,
        options,
        sense,
        reading,
        ball: Ball {
            norm: options.norm,
            epsilon: options.epsilon,
        },
    };
    let mut result = search.run(images, labels, None);
    for restart in 1..=options.restarts {
        let open: Vec<usize> = (0..images.len())
            .filter(|&i| !reaches(sense * result.margins[i], options.margin))
            .collect();
        if open.is_empty() {
            break;
        }
        let some: Vec<&[u8]> = open.iter().map(|&i| images[i]).collect();
        let classes: Vec<u16> = open.iter().map(|&i| labels[i]).collect();
        let start = random_changes(&some, shape, search.ball, options.seed, restart as u64);
        let again = search.run(&some, &classes, Some(start));
        result.passes += again.passes;
        let len: usize = shape.iter().product();
        for (row, &i) in open.iter().enumerate() {
            if sense * again.margins[row] > sense * result.margins[i] {
                result.margins[i] = again.margins[row];
                result.images[i * len..][..len].copy_from_slice(&again.images[row * len..][..len]);
            }
        }
    }
    result
}

/// NaN reaches nothing.
fn reaches(margin: f32, wanted: f32) -> bool {
    margin >= wanted
}

/// A point of the ball for each image, drawn from a stream of the image's own: what else is in the batch does not matter.
/// Planar, as rows are.
pub(super) fn random_changes(images: &[&[u8]], shape: [usize; 3], ball: Ball, seed: u64, number: u64) -> Vec<f32> {
    let mut changes = Vec::with_capacity(images.len() * shape.iter().product::<usize>());
    for image in images {
        let mut rng = image_rng(image, seed, Purpose::Restart, number);
        let change: Vec<f32> = image.iter().map(|_| rng.random_range(-1.0f32..=1.0)).collect();
        let factor = match ball.norm {
            Norm::Linf => ball.epsilon,
            Norm::L2 => ball.epsilon / change.iter().map(|c| c * c).sum::<f32>().sqrt().max(1e-6),
        };
        changes.extend(change.iter().map(|c| c * factor));
    }
    changes
}

/// A stream that depends on the image, not on where in a batch or set it is.
pub(super) fn image_rng(image: &[u8], seed: u64, purpose: Purpose, number: u64) -> ChaCha8Rng {
    let digest = Crc::<u64>::new(&CRC_64_XZ).checksum(image);
    rng(seed, purpose, digest.wrapping_add(number))
}

struct Search<'a> {
    network: &'a Frozen,
    shape: [usize; 3],
    options: &'a AttackOptions,
    sense: f32,
    reading: Reading,
    ball: Ball,
}

/// What is still searched for, a row an image. Columns are `[n, 1]`; margins count towards the goal.
struct Rows {
    /// Numbers of the images.
    numbers: Vec<usize>,
    /// 1 at the image's class.
    own: Tensor<Inner, 2>,
    origin: Tensor<Inner, 2>,
    change: Tensor<Inner, 2>,
    /// On the grid: what `change` stands for.
    x: Tensor<Inner, 2>,
    /// Of `x`.
    margin: Tensor<Inner, 2>,
    /// The image with the largest margin so far, and that margin.
    best: Tensor<Inner, 2>,
    reached: Tensor<Inner, 2>,
    /// Of the margin; at the image itself for FGSM, at `x` for the others.
    gradient: Option<Tensor<Inner, 2>>,
}

impl Rows {
    fn select(&mut self, left: &[usize]) {
        let numbers = left.iter().map(|&row| self.numbers[row]).collect();
        let left = rows(left, &self.x.device());
        let select = |x: &Tensor<Inner, 2>| x.clone().select(0, left.clone());
        *self = Rows {
            numbers,
            own: select(&self.own),
            origin: select(&self.origin),
            change: select(&self.change),
            x: select(&self.x),
            margin: select(&self.margin),
            best: select(&self.best),
            reached: select(&self.reached),
            gradient: self.gradient.as_ref().map(select),
        };
    }
}

/// What is known on the host.
struct Found {
    /// `[n, height, width, channels]`.
    images: Vec<u8>,
    /// Of the images that the minimal-norm attack has led to the margin: the nearest change that a linear network would need,
    /// planar.
    nearest: Vec<Option<Vec<f32>>>,
    passes: Passes,
}

impl Search<'_> {
    /// One search for every image, from the image itself or changed as `start` says.
    fn run(&self, images: &[&[u8]], labels: &[u16], start: Option<Vec<f32>>) -> Attacked {
        let mut found = Found {
            images: images.concat(),
            nearest: vec![None; images.len()],
            passes: Passes::default(),
        };
        let mut rows = self.start(images, labels, start);
        for step in 0..self.options.most_steps() {
            if rows.numbers.is_empty() {
                break;
            }
            self.evaluate(&mut rows, &mut found.passes);
            if step % self.reading.every == 0 {
                self.retire(&mut rows, self.reading.least_done, &mut found);
            }
            if !rows.numbers.is_empty() {
                self.step(&mut rows);
            }
        }

        self.retire(&mut rows, 0.0, &mut found);

        // The last step may have led away from the goal.
        let len: usize = self.shape.iter().product();
        self.store(&rows.x, &rows.numbers, &mut found.images);
        let mut margins = self.classify(&found.images, labels, &mut found.passes);
        let worse: Vec<usize> = (nn::to_host(rows.reached.clone()).iter().zip(&rows.numbers).enumerate())
            .filter(|&(_, (&reached, &i))| reached > self.sense * margins[i])
            .map(|(row, _)| row)
            .collect();
        if !worse.is_empty() {
            rows.select(&worse);
            self.store(&rows.best, &rows.numbers, &mut found.images);
            let pixels = rows
                .numbers
                .iter()
                .flat_map(|&i| found.images[i * len..][..len].iter().copied());
            let classes: Vec<u16> = rows.numbers.iter().map(|&i| labels[i]).collect();
            let again = self.classify(&pixels.collect::<Vec<_>>(), &classes, &mut found.passes);
            for (&i, margin) in rows.numbers.iter().zip(again) {
                margins[i] = margin;
            }
        }
        if self.options.method == Method::Minimal {
            self.shrink(images, labels, &mut found, &mut margins);
        }
        Attacked {
            images: found.images,
            margins,
            passes: found.passes,
        }
    }

    fn start(&self, images: &[&[u8]], labels: &[u16], start: Option<Vec<f32>>) -> Rows {
        let device = self.network.device();
        let n = images.len();
        let origin = to_rows(images.iter().copied(), self.shape, device);
        let (change, x) = match start {
            None => (origin.zeros_like(), origin.clone()),
            Some(start) => {
                let change = Tensor::from_data(TensorData::new(start, origin.dims()), device.dispatch());
                let change = self.ball.project(&origin, change);
                (change.clone(), self.ball.image(&origin, change))
            }
        };
        let least = Tensor::full([n, 1], f32::NEG_INFINITY, device.dispatch());
        Rows {
            numbers: (0..n).collect(),
            own: one_hot(labels, self.network.network().classes(), device),
            origin,
            change,
            best: x.clone(),
            x,
            margin: least.clone(),
            reached: least,
            gradient: None,
        }
    }

    /// Asks the network at `x`, and keeps the best.
    fn evaluate(&self, rows: &mut Rows, passes: &mut Passes) {
        let x = to_images(rows.x.clone(), self.shape);
        let n = rows.numbers.len();
        let logits = if self.options.method == Method::Fgsm && rows.gradient.is_some() {
            *passes += Passes::forward(n);
            self.network.forward(x).logits
        } else {
            *passes += Passes::input_gradient(n);
            let own = Tensor::<Auto, 2>::from_inner(rows.own.clone());
            // Rows do not mix, so the gradient of the sum holds every image's own.
            let goal = |output: Output<Auto>| (margin_column(output.logits, own) * self.sense).sum();
            let (gradient, output) = self.network.input_gradient(x, goal);
            rows.gradient = Some(gradient.reshape(rows.x.dims()));
            output.logits
        };
        rows.margin = margin_column(logits, rows.own.clone()) * self.sense;
        let better = rows.margin.clone().greater(rows.reached.clone());
        rows.best = choose(&better, rows.x.clone(), rows.best.clone());
        rows.reached = choose(&better, rows.margin.clone(), rows.reached.clone());
    }

    /// Takes the images that have reached the margin off the batch, where they are at least a share of it.
    fn retire(&self, rows: &mut Rows, least: f32, found: &mut Found) {
        let reached = nn::to_host(rows.reached.clone());
        let (done, left): (Vec<usize>, Vec<usize>) =
            (0..rows.numbers.len()).partition(|&row| reaches(reached[row], self.options.margin));
        if done.is_empty() || (done.len() as f32) < least * rows.numbers.len() as f32 {
            return;
        }
        let numbers: Vec<usize> = done.iter().map(|&row| rows.numbers[row]).collect();
        let index = self::rows(&done, &rows.x.device());
        self.store(&rows.best.clone().select(0, index.clone()), &numbers, &mut found.images);
        if let (Method::Minimal, Some(gradient)) = (self.options.method, &rows.gradient) {
            let nearest = nn::to_host(self.nearest(rows, gradient.clone()).select(0, index));
            for (change, i) in nearest.chunks_exact(self.shape.iter().product()).zip(numbers) {
                found.nearest[i] = Some(change.to_vec());
            }
        }
        if left.is_empty() {
            rows.numbers.clear();
        } else {
            rows.select(&left);
        }
    }

    /// One step along the gradient. Images that have reached the margin stay as they are.
    fn step(&self, rows: &mut Rows) {
        let Some(gradient) = rows.gradient.clone() else { return };
        let epsilon = self.options.epsilon;
        let way = self.ball.direction(gradient.clone());
        let step = match self.options.method {
            Method::Fgsm | Method::Pgd => way * self.options.step,
            Method::Minimal => {
                let lacking = -rows.margin.clone() + self.options.margin;
                // Less than a level would be lost in rounding.
                let length =
                    (lacking * OVERSHOOT / self.ball.slope(gradient).clamp_min(f32::MIN_POSITIVE)).clamp(1.0, 2.0 * epsilon);
                way * match self.options.norm {
                    Norm::Linf => length.ceil(),
                    Norm::L2 => length,
                }
            }
        };
        let change = self.ball.project(&rows.origin, rows.change.clone() + step);
        let x = self.ball.image(&rows.origin, change.clone());
        let done = rows.reached.clone().greater_equal_elem(self.options.margin);
        rows.change = choose(&done, rows.change.clone(), change);
        rows.x = choose(&done, rows.x.clone(), x);
    }

    /// The smallest change that reaches the margin where the network is linear, as it is at `x`.
    fn nearest(&self, rows: &Rows, gradient: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        let gained = (gradient.clone() * (rows.x.clone() - rows.origin.clone())).sum_dim(1);
        let lacking = gained - rows.margin.clone() + self.options.margin;
        let slope = self.ball.slope(gradient.clone()).clamp_min(f32::MIN_POSITIVE);
        let length = (lacking * OVERSHOOT / slope).clamp(0.0, self.options.epsilon);
        self.ball.direction(gradient) * length
    }

    /// Moves what was found back towards the image for as long as it keeps the margin: from the found image or, where that is
    /// nearer, from [`nearest`](Self::nearest).
    fn shrink(&self, images: &[&[u8]], labels: &[u16], found: &mut Found, margins: &mut [f32]) {
        let device = self.network.device();
        let len: usize = self.shape.iter().product();
        let numbers: Vec<usize> = (0..images.len())
            .filter(|&i| reaches(self.sense * margins[i], self.options.margin) && found.images[i * len..][..len] != *images[i])
            .collect();
        if numbers.is_empty() {
            return;
        }
        let n = numbers.len();
        let classes: Vec<u16> = numbers.iter().map(|&i| labels[i]).collect();
        let own = one_hot(&classes, self.network.network().classes(), device);
        let origin = to_rows(numbers.iter().map(|&i| images[i]), self.shape, device);
        let mut best = to_rows(numbers.iter().map(|&i| &found.images[i * len..][..len]), self.shape, device);
        let reached: Vec<f32> = numbers.iter().map(|&i| self.sense * margins[i]).collect();
        let mut reached = Tensor::<Inner, 2>::from_data(TensorData::new(reached, [n, 1]), device.dispatch());
        let mut whole = best.clone() - origin.clone();
        // Where there is none, the change found, which is not smaller than itself.
        let found_changes = nn::to_host(whole.clone());
        let nearest = numbers.iter().enumerate().flat_map(|(row, &i)| {
            let instead = || found_changes[row * len..][..len].to_vec();
            found.nearest[i].clone().unwrap_or_else(instead)
        });
        let nearest = Tensor::from_data(TensorData::new(nearest.collect::<Vec<_>>(), [n, len]), device.dispatch());
        let nearest = self.ball.project(&origin, nearest);

        let ask = |x: &Tensor<Inner, 2>, passes: &mut Passes| {
            *passes += Passes::forward(n);
            let logits = self.network.forward(to_images(x.clone(), self.shape)).logits;
            margin_column(logits, own.clone()) * self.sense
        };
        let x = self.ball.image(&origin, nearest.clone());
        let margin = ask(&x, &mut found.passes);
        let nearer = self
            .ball
            .size(x.clone() - origin.clone())
            .lower(self.ball.size(whole.clone()));
        let good = margin.clone().greater_equal_elem(self.options.margin).bool_and(nearer);
        best = choose(&good, x, best);
        reached = choose(&good, margin, reached);
        whole = choose(&good, nearest, whole);

        let mut low = reached.zeros_like();
        let mut high = reached.ones_like();
        let halvings = match self.options.norm {
            // To half a level.
            Norm::Linf => (2.0 * self.options.epsilon).log2().ceil() as usize,
            Norm::L2 => HALVINGS,
        };
        for _ in 0..halvings {
            let share = (low.clone() + high.clone()) * 0.5;
            let x = self.ball.image(&origin, self.ball.reduce(whole.clone(), share.clone()));
            let margin = ask(&x, &mut found.passes);
            let good = margin.clone().greater_equal_elem(self.options.margin);
            best = choose(&good, x, best);
            reached = choose(&good, margin, reached);
            high = choose(&good, share.clone(), high);
            low = choose(&good, low, share);
        }
        self.store(&best, &numbers, &mut found.images);
        for (i, reached) in numbers.into_iter().zip(nn::to_host(reached)) {
            margins[i] = self.sense * reached;
        }
    }

    /// Writes rows to the places of their images.
    fn store(&self, rows: &Tensor<Inner, 2>, numbers: &[usize], images: &mut [u8]) {
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
        if labels.is_empty() {
            return Vec::new();
        }
        *passes += Passes::forward(labels.len());
        let rows = to_rows(
            images.chunks_exact(self.shape.iter().product()),
            self.shape,
            self.network.device(),
        );
        margins(&nn::to_host(self.network.forward(to_images(rows, self.shape)).logits), labels)
    }
}
