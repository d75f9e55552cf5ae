//! The Square attack: a random search that needs logits only, so that it runs on the integer runtime too.
//!
//! Each query changes one square of the image, of a size that shrinks with the queries, to the edge of the ball, and keeps the
//! change where it lowers the margin. Every image draws from a stream of its own: what is found does not depend on what else
//! is in the batch (but for the last bits of a float network's logits, which may depend on the size of a batch).
//!
//! # Source
//! Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search", algorithms
//! 1 to 3; constants as in AutoAttack (Croce and Hein 2020b).

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::ball::{Norm, nearest_image};
use super::search::image_rng;
use crate::Result;
use crate::data::Dataset;
use crate::data::batch::Purpose;
use crate::eval::evaluate_model;
use crate::nn::Frozen;

/// A model as a black box: images in, logits out.
#[derive(Clone, Copy, Debug)]
pub enum BlackBox<'a> {
    /// Float or fake-quantized.
    Network(&'a Frozen),
    /// The bytes of a `.adq` file, computed by the integer runtime on all cores.
    Model(&'a [u8]),
}

impl BlackBox<'_> {
    /// `[images, classes]`; comparable within an image, and exact: an integer model's are whole numbers.
    ///
    /// # Errors
    /// [`ErrorKind::Data`](crate::ErrorKind::Data) where the images do not fit the model;
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) where the file is not valid.
    pub fn logits(self, images: &Dataset) -> Result<Vec<f64>> {
        Ok(match self {
            BlackBox::Network(network) => network.logits_of(images, BATCH)?.into_iter().map(f64::from).collect(),
            BlackBox::Model(file) => evaluate_model(file, images)?.logits.into_iter().map(f64::from).collect(),
        })
    }

    /// For each image, the logit of its class less the largest other one; not above zero exactly where it is misclassified: a
    /// tie that another class wins is the smallest negative number.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn margins(self, images: &Dataset) -> Result<Vec<f64>> {
        let logits = self.logits(images)?;
        let classes = images.classes.len().max(1);
        Ok(logits
            .chunks_exact(classes)
            .zip(images.labels())
            .map(|(l, &c)| margin(l, c))
            .collect())
    }
}

/// Images of a network's batch.
const BATCH: usize = 256;

/// The first of equals is the class given.
fn margin(logits: &[f64], label: u16) -> f64 {
    let label = usize::from(label);
    let (before, after) = (&logits[..label], &logits[label + 1..]);
    let largest = |logits: &[f64]| logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (before, after) = (logits[label] - largest(before), logits[label] - largest(after));
    match before.min(after) {
        0.0 if before == 0.0 => -f64::MIN_POSITIVE,
        0.0 => f64::MIN_POSITIVE,
        margin => margin,
    }
}

/// How far and how long to search.
#[derive(Clone, Debug, PartialEq)]
pub struct SquareOptions {
    /// What epsilon is measured in.
    pub norm: Norm,
    /// Largest change, in grey levels, see [`Norm`].
    pub epsilon: f32,
    /// Most images shown to the model for each image attacked.
    pub queries: usize,
    /// Of everything random.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Squared {
    /// The image with the smallest margin of all that were tried, for each image, `[n, height, width, channels]`.
    pub images: Vec<u8>,
    /// Whether it is misclassified.
    pub found: Vec<bool>,
    /// Images shown to the model.
    pub queries: u64,
}

/// Searches, for each image, one within the ball that the model misclassifies. An image is done at the first.
///
/// `progress` is called with the number of queries that every image not yet done has had.
///
/// # Errors
/// As [`BlackBox::logits`].
pub fn square(model: BlackBox, images: &Dataset, options: &SquareOptions, mut progress: impl FnMut(usize)) -> Result<Squared> {
    let mut searches: Vec<Search> = (0..images.len()).map(|i| Search::new(images, i, options)).collect();
    let mut queries = 0;
    let mut open: Vec<usize> = (0..images.len()).collect();
    for query in 0..options.queries {
        if open.is_empty() {
            break;
        }
        let mut shown = Dataset {
            images: Vec::with_capacity(open.len() * images.image_len()),
            labels: open.iter().map(|&i| images.label(i)).collect(),
            name: images.name.clone(),
            classes: images.classes.clone(),
            ..*images
        };
        for &i in &open {
            searches[i].propose(query);
            shown.images.extend_from_slice(&searches[i].proposal.image);
        }
        queries += open.len() as u64;
        for (&i, margin) in open.iter().zip(model.margins(&shown)?) {
            searches[i].judge(margin);
        }
        open.retain(|&i| !searches[i].found());
        progress(query + 1);
    }
    Ok(Squared {
        found: searches.iter().map(Search::found).collect(),
        images: searches.into_iter().flat_map(|search| search.best.image).collect(),
        queries,
    })
}

/// An image and how it differs from the original, `[height, width, channels]` both. The change is that of the image but for
/// rounding.
#[derive(Clone, Debug)]
struct Point {
    image: Vec<u8>,
    change: Vec<f32>,
}

/// The search for one image.
struct Search<'a> {
    origin: &'a [u8],
    /// `[height, width, channels]`.
    shape: [usize; 3],
    options: &'a SquareOptions,
    rng: ChaCha8Rng,
    best: Point,
    margin: f64,
    proposal: Point,
}

impl<'a> Search<'a> {
    fn new(images: &'a Dataset, i: usize, options: &'a SquareOptions) -> Self {
        let origin = images.image(i);
        let start = Point {
            image: origin.to_vec(),
            change: vec![0.0; origin.len()],
        };
        Self {
            origin,
            shape: images.shape(),
            options,
            rng: image_rng(origin, options.seed, Purpose::Square, 0),
            best: start.clone(),
            margin: f64::INFINITY,
            proposal: start,
        }
    }

    fn found(&self) -> bool {
        self.margin < 0.0
    }

    fn judge(&mut self, margin: f64) {
        if margin < self.margin {
            self.margin = margin;
            std::mem::swap(&mut self.best, &mut self.proposal);
        }
    }

    fn propose(&mut self, query: usize) {
        let mut change = self.best.change.clone();
        match (self.options.norm, query) {
            (Norm::Linf, 0) => self.stripes(&mut change),
            (Norm::Linf, _) => self.flip_square(query, &mut change),
            (Norm::L2, 0) => self.tiles(&mut change),
            (Norm::L2, _) => self.move_mass(query, &mut change),
        }
        if self.options.norm == Norm::L2 {
            let length = length(change.iter());
            change.iter_mut().for_each(|c| *c *= self.options.epsilon / length.max(1e-12));
        }
        for (change, &pixel) in change.iter_mut().zip(self.origin) {
            *change = change.clamp(-f32::from(pixel), 255.0 - f32::from(pixel));
        }
        self.proposal.image = nearest_image(self.options.norm, self.options.epsilon, self.origin, &change);
        self.proposal.change = change;
    }

    fn sign(&mut self) -> f32 {
        if self.rng.random() { 1.0 } else { -1.0 }
    }

    /// Where a square of this side may lie: first row and column.
    fn place(&mut self, side: usize) -> [usize; 2] {
        let [height, width, _] = self.shape;
        [height, width].map(|length| self.rng.random_range(0..=length - side))
    }

    /// Every column of every channel one way or the other.
    fn stripes(&mut self, change: &mut [f32]) {
        let [_, width, channels] = self.shape;
        let signs: Vec<f32> = (0..width * channels).map(|_| self.sign() * self.options.epsilon).collect();
        for row in change.chunks_exact_mut(width * channels) {
            row.copy_from_slice(&signs);
        }
    }

    /// A square, each channel one way or the other; never just as it was.
    fn flip_square(&mut self, query: usize, change: &mut [f32]) {
        let [height, width, channels] = self.shape;
        let area = share(query, self.options.queries) * (height * width) as f32;
        let side = (area.sqrt().round() as usize).clamp(1, height.min(width));
        let corner = self.place(side);
        let before = change.to_vec();
        // A square of one value has one other way, so this takes two draws on average.
        for _ in 0..16 {
            for channel in 0..channels {
                let way = self.sign() * self.options.epsilon;
                self.window(corner, side, channel).for_each(|i| change[i] = way);
            }
            if change != before {
                return;
            }
        }
    }

    /// Tiles of a fifth of the image's height, each with a bump of random sign.
    fn tiles(&mut self, change: &mut [f32]) {
        let [height, width, channels] = self.shape;
        let side = (height / 5).clamp(1, width.max(1));
        for y in (0..=height - side).step_by(side) {
            for x in (0..=width - side).step_by(side) {
                let bump = self.bump(side);
                for channel in 0..channels {
                    let sign = self.sign();
                    let window: Vec<usize> = self.window([y, x], side, channel).collect();
                    for (i, value) in window.into_iter().zip(&bump) {
                        change[i] = sign * value;
                    }
                }
            }
        }
    }

    /// Takes the change of one window, and adds it to a bump in another.
    fn move_mass(&mut self, query: usize, change: &mut [f32]) {
        let [height, width, channels] = self.shape;
        let area = share(query, self.options.queries) * (height * width) as f32;
        let largest = height.min(width);
        let side = (area.sqrt().round() as usize).max(3).min(largest);
        let side = if side % 2 == 0 && side < largest { side + 1 } else { side };
        let (to, from) = (self.place(side), self.place(side));
        let bump = self.bump(side);
        let unused = (self.options.epsilon.powi(2) - length(change.iter()).powi(2)).max(0.0) / channels as f32;
        for channel in 0..channels {
            let sign = self.sign();
            let to: Vec<usize> = self.window(to, side, channel).collect();
            let old: Vec<f32> = to.iter().map(|&i| change[i]).collect();
            let there = length(old.iter());
            let target = (to.iter().map(|&i| change[i].powi(2)).sum::<f32>()
                + self
                    .window(from, side, channel)
                    .filter(|i| !to.contains(i))
                    .map(|i| change[i].powi(2))
                    .sum::<f32>()
                + unused)
                .sqrt();
            let new: Vec<f32> = old
                .iter()
                .zip(&bump)
                .map(|(old, bump)| sign * bump + old / (there + 1e-12))
                .collect();
            let factor = target / length(new.iter()).max(1e-12);
            self.window(from, side, channel).for_each(|i| change[i] = 0.0);
            for (i, new) in to.into_iter().zip(new) {
                change[i] = new * factor;
            }
        }
    }

    /// Two pyramids side by side, one up and one down, of length 1; lying or standing. `[side, side]`
    fn bump(&mut self, side: usize) -> Vec<f32> {
        let mut bump = vec![0.0f32; side * side];
        let half = side / 2;
        pyramid(&mut bump, side, 0..half, 1.0);
        pyramid(&mut bump, side, half..side, -1.0);
        let length = length(bump.iter()).max(1e-12);
        bump.iter_mut().for_each(|value| *value /= length);
        if self.rng.random() {
            return (0..side * side).map(|i| bump[i % side * side + i / side]).collect();
        }
        bump
    }

    /// Indices of one channel's values in a square, row by row.
    fn window(&self, corner: [usize; 2], side: usize, channel: usize) -> impl Iterator<Item = usize> + use<> {
        let [_, width, channels] = self.shape;
        let [y, x] = corner;
        (y..y + side).flat_map(move |y| (x..x + side).map(move |x| (y * width + x) * channels + channel))
    }
}

/// A pyramid over some rows of a square: rectangles about the middle, each one wider than the last, of falling height; its
/// size length 1, times `sign`.
fn pyramid(bump: &mut [f32], side: usize, rows: Range<usize>, sign: f32) {
    let count = rows.len();
    let middle = [count / 2, side / 2];
    let mut values = vec![0.0f32; count * side];
    for ring in 0..=middle[0].max(middle[1]) {
        let height = 1.0 / ((ring + 1) * (ring + 1)) as f32;
        let within = |middle: usize, len: usize| middle.saturating_sub(ring)..(middle + ring + 1).min(len);
        for y in within(middle[0], count) {
            for x in within(middle[1], side) {
                values[y * side + x] += height;
            }
        }
    }
    let length = length(values.iter()).max(1e-12);
    for (to, value) in bump[rows.start * side..rows.end * side].iter_mut().zip(values) {
        *to = sign * value / length;
    }
}

/// Share of the image that a square takes at a query: it halves ever more seldom, the same for any number of queries.
fn share(query: usize, queries: usize) -> f32 {
    const START: f32 = 0.8;
    /// Of 10,000 queries.
    const HALVED_AFTER: [usize; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
    let query = query * 10_000 / queries.max(1);
    let halvings = HALVED_AFTER.iter().filter(|&&after| query > after).count();
    START / 2f32.powi(halvings as i32)
}

fn length<'a>(values: impl Iterator<Item = &'a f32>) -> f32 {
    values.map(|value| value * value).sum::<f32>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::tests::{freeze, trained};
    use crate::device::Device;
    use crate::export::{ExportOptions, export};
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::train::fixture;

    fn options(norm: Norm, epsilon: f32) -> SquareOptions {
        SquareOptions {
            norm,
            epsilon,
            queries: 60,
            seed: 5,
        }
    }

    fn assert_attacks(model: BlackBox, norm: Norm, epsilon: f32) {
        let images = fixture::images(40, 9);
        let options = options(norm, epsilon);
        let right = model.margins(&images).unwrap().iter().filter(|&&margin| margin > 0.0).count();
        let mut calls = 0;
        let squared = square(model, &images, &options, |query| {
            calls += 1;
            assert_eq!(query, calls);
        })
        .unwrap();
        let found = Dataset {
            images: squared.images.clone(),
            ..images.clone()
        };
        for i in 0..images.len() {
            let distance = norm.distance(found.image(i), images.image(i));
            assert!(distance <= f64::from(epsilon), "{norm:?} image {i}: {distance}");
        }
        let margins = model.margins(&found).unwrap();
        assert!(
            margins
                .iter()
                .zip(&squared.found)
                .all(|(margin, found)| (*margin < 0.0) == *found)
        );
        let left = squared.found.iter().filter(|found| !**found).count();
        assert!(left > 0 && left + 8 < right, "{norm:?}: {left} of {right} left");
        // Those that hold out see every query, those that are found no more.
        assert_eq!(calls, 60);
        assert!(squared.queries > 60 * left as u64 && squared.queries < 60 * 40);
        assert!(squared == square(model, &images, &options, |_| {}).unwrap());
        for i in [0, 11, 39] {
            let alone = square(model, &images.subset(&[i]), &options, |_| {}).unwrap();
            assert!(alone.images == found.image(i), "{norm:?} image {i}");
            assert_eq!(alone.found[0], squared.found[i]);
        }
        let other = SquareOptions { seed: 6, ..options };
        assert!(squared.images != square(model, &images, &other, |_| {}).unwrap().images);
    }

    #[test]
    fn queries_break_a_network() {
        let network = freeze(trained());
        assert_attacks(BlackBox::Network(&network), Norm::Linf, 8.0);
        assert_attacks(BlackBox::Network(&network), Norm::L2, 90.0);
    }

    #[test]
    fn queries_break_an_integer_model() {
        let images = fixture::images(240, 1);
        let quantized = ptq(trained(), &images, &QuantizeOptions::new(Width::W4), &Device::flex()).unwrap();
        let file = export(&quantized, &ExportOptions::default()).unwrap().bytes;
        assert_attacks(BlackBox::Model(&file), Norm::Linf, 8.0);
        assert_attacks(BlackBox::Model(&file), Norm::L2, 90.0);
    }

    #[test]
    fn images_of_any_size_have_squares() {
        for [height, width] in [[1, 1], [2, 9], [3, 4], [7, 5]] {
            let images = Dataset {
                name: "odd".into(),
                classes: vec!["a".into(), "b".into()],
                height,
                width,
                channels: 3,
                images: vec![100; 3 * height * width],
                labels: vec![0],
            };
            for norm in [Norm::Linf, Norm::L2] {
                let options = options(norm, 9.0);
                let mut search = Search::new(&images, 0, &options);
                let mut seen = Vec::new();
                for query in 0..40 {
                    search.propose(query);
                    assert!(norm.distance(&search.proposal.image, search.origin) <= 9.0);
                    seen.push(search.proposal.image.clone());
                    search.judge(1.0 / (query + 1) as f64);
                }
                assert!(seen.iter().any(|image| *image != images.images), "{height}x{width} {norm:?}");
            }
        }
    }

    #[test]
    fn ties_go_to_the_first_class() {
        assert_eq!(margin(&[1.0, 5.0, 2.0], 1), 3.0);
        assert_eq!(margin(&[1.0, 5.0, 2.0], 0), -4.0);
        assert!(margin(&[5.0, 5.0, 2.0], 0) > 0.0);
        assert!(margin(&[5.0, 5.0, 2.0], 1) < 0.0);
    }

    #[test]
    fn squares_shrink_alike_for_any_number_of_queries() {
        let shares = |queries: usize| [0.0, 0.003, 0.03, 0.3, 0.9].map(|at| share((at * queries as f32) as usize, queries));
        assert_eq!(shares(10_000), shares(1000));
        assert_eq!(shares(10_000), [0.8, 0.4, 0.1, 0.0125, 0.0015625]);
    }
}
