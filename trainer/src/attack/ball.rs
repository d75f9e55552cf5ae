//! The ball that an attack stays in, and the 8-bit grid: every visited image is one that a camera could deliver.
//!
//! Rounding an image at the end can undo what was found, and rounding every step makes small steps vanish. So a change is
//! kept twice: as floats that steps add to, and as the image on the grid that it stands for, which is within the ball too and
//! at which the network is asked.
//!
//! All tensors are `[n, values]`, a row an image, in pixel values (0 to 255); columns are `[n, 1]`. Nothing here waits for
//! the device.

use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use crate::nn::Inner;

/// How the size of a change is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// The largest change of a pixel value, in grey levels.
    Linf,
    /// The Euclidean length of the change over all pixel values, in grey levels; the literature's 0.5 is 127.5 here.
    L2,
}

impl Norm {
    /// Size of the change between two images.
    pub fn distance(self, a: &[u8], b: &[u8]) -> f64 {
        let changes = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)));
        match self {
            Norm::Linf => changes.max().unwrap_or(0) as f64,
            Norm::L2 => (changes.map(|change| change * change).sum::<u64>() as f64).sqrt(),
        }
    }
}

/// All changes of an image up to a size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ball {
    pub norm: Norm,
    /// In grey levels; whole for [`Norm::Linf`].
    pub epsilon: f32,
}

impl Ball {
    /// The change of size 1 along which a linear function with this finite gradient rises fastest; 0 where the gradient is.
    pub fn direction(self, gradient: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        match self.norm {
            Norm::Linf => gradient.sign(),
            Norm::L2 => {
                let gradient = scaled(gradient);
                let length = length(gradient.clone());
                gradient / length.clamp_min(f32::MIN_POSITIVE)
            }
        }
    }

    /// The dual norm of a gradient: what a change of size 1 gains at most, `[n, 1]`.
    pub fn slope(self, gradient: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        match self.norm {
            Norm::Linf => gradient.abs().sum_dim(1),
            Norm::L2 => {
                let largest = gradient.clone().abs().max_dim(1);
                length(scaled(gradient)) * largest
            }
        }
    }

    /// Size of each change, `[n, 1]`.
    pub fn size(self, change: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        match self.norm {
            Norm::Linf => change.abs().max_dim(1),
            Norm::L2 => length(change),
        }
    }

    /// The change cut down to a size, `[n, 1]`, each row to its own.
    pub fn within(self, change: Tensor<Inner, 2>, size: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        match self.norm {
            Norm::Linf => {
                let limit = size.expand(change.shape());
                change.max_pair(-limit.clone()).min_pair(limit)
            }
            Norm::L2 => {
                let length = length(change.clone()).max_pair(size.clone()).clamp_min(f32::MIN_POSITIVE);
                change * (size / length)
            }
        }
    }

    /// The change moved into the ball, and to pixel values that exist.
    pub fn project(self, origin: &Tensor<Inner, 2>, change: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        let change = match self.norm {
            Norm::Linf => change.clamp(-self.epsilon, self.epsilon),
            Norm::L2 => {
                let length = length(change.clone());
                change * (length.clamp_min(self.epsilon).recip() * self.epsilon)
            }
        };
        // Towards no change, so the ball is not left.
        change.max_pair(-origin.clone()).min_pair(-origin.clone() + 255.0)
    }

    /// The image that a projected change stands for: on the grid, and within the ball.
    ///
    /// For L2, each value is rounded after a common factor next to 1: the largest by which the rounded change is no longer
    /// than the change was (and than epsilon). So a long change of many small values becomes one of its largest values.
    pub fn image(self, origin: &Tensor<Inner, 2>, change: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        match self.norm {
            // Epsilon is whole, so rounding cannot leave the ball.
            Norm::Linf => (origin.clone() + change).round().clamp(0.0, 255.0),
            Norm::L2 => {
                let rounded =
                    |factor: &Tensor<Inner, 2>| (origin.clone() + (change.clone() * factor.clone()).round()).clamp(0.0, 255.0);
                // Sums of squares of whole numbers are exact up to 2^24; beyond, a share is kept back.
                let limit = self.epsilon * self.epsilon;
                let limit = if limit < 16_777_216.0 { limit } else { limit * 0.999 };
                let target = squares(change.clone()).add_scalar(1e-3).clamp_max(limit);
                let largest = change.clone().abs().max_dim(1).clamp_min(1e-6);
                let mut low = largest.zeros_like();
                let mut high = largest.recip() + 1.0;
                let mut factor = low.ones_like();
                for _ in 0..BISECTIONS {
                    let fits = squares(rounded(&factor) - origin.clone()).lower_equal(target.clone());
                    low = low.mask_where(fits.clone(), factor.clone());
                    high = factor.mask_where(fits, high);
                    factor = (low.clone() + high.clone()) * 0.5;
                }
                rounded(&low)
            }
        }
    }
}

/// Halvings in search of the factor of [`Ball::image`]: to a 2048th of a grey level, or of the factor.
const BISECTIONS: usize = 12;

/// `new` in the rows where `which`, `old` in the others.
pub(super) fn choose(which: &Tensor<Inner, 2, Bool>, new: Tensor<Inner, 2>, old: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
    let shape = old.shape();
    old.mask_where(which.clone().expand(shape), new)
}

/// Divided by the largest magnitude of the row, so that squares neither vanish nor overflow.
fn scaled(x: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
    let largest = x.clone().abs().max_dim(1);
    x / largest.clamp_min(f32::MIN_POSITIVE)
}

fn squares(x: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
    x.square().sum_dim(1)
}

fn length(x: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
    squares(x).sqrt()
}

/// [`Ball::image`] of one image on the host, in any order of values; `change` leads to pixel values that exist.
pub(super) fn nearest_image(norm: Norm, epsilon: f32, origin: &[u8], change: &[f32]) -> Vec<u8> {
    let rounded = |factor: f32| {
        let pixel = |(&pixel, change): (&u8, &f32)| (f32::from(pixel) + (change * factor).round()).clamp(0.0, 255.0) as u8;
        origin.iter().zip(change).map(pixel).collect::<Vec<u8>>()
    };
    let squares = change.iter().map(|&c| f64::from(c).powi(2)).sum::<f64>();
    let limit = match norm {
        Norm::Linf => return rounded(1.0),
        Norm::L2 => (squares + 1e-3).min(f64::from(epsilon).powi(2)),
    };
    let largest = change.iter().fold(1e-6f32, |largest, change| largest.max(change.abs()));
    let (mut low, mut high, mut factor) = (0.0, largest.recip() + 1.0, 1.0);
    for _ in 0..BISECTIONS {
        if norm.distance(origin, &rounded(factor)).powi(2) <= limit {
            low = factor;
        } else {
            high = factor;
        }
        factor = (low + high) / 2.0;
    }
    rounded(low)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};
    use crate::device::Device;
    use crate::nn::to_host;

    fn row(values: &[f32]) -> Tensor<Inner, 2> {
        let data = TensorData::new(values.to_vec(), [1, values.len()]);
        Tensor::from_data(data, Device::flex().dispatch())
    }

    fn image(ball: Ball, origin: &[u8], change: &[f32]) -> Vec<u8> {
        let origin: Vec<f32> = origin.iter().map(|&pixel| f32::from(pixel)).collect();
        to_host(ball.image(&row(&origin), row(change)))
            .iter()
            .map(|&x| x as u8)
            .collect()
    }

    #[test]
    fn rounded_changes_stay_in_the_ball_and_use_it() {
        let mut rng = rng(1, Purpose::Restart, 0);
        for epsilon in [2.5f32, 7.0, 40.0, 127.5, 900.0] {
            let ball = Ball { norm: Norm::L2, epsilon };
            for _ in 0..20 {
                let origin: Vec<u8> = (0..300).map(|_| rng.random()).collect();
                let far: Vec<f32> = (0..300).map(|_| rng.random_range(-90.0f32..90.0)).collect();
                let floats: Vec<f32> = origin.iter().map(|&pixel| f32::from(pixel)).collect();
                let change = to_host(ball.project(&row(&floats), row(&far)));
                let rounded = image(ball, &origin, &change);
                let distance = Norm::L2.distance(&rounded, &origin);
                assert!(distance <= f64::from(epsilon), "{distance} of {epsilon}");
                // Even where most values are below half a level.
                assert!(distance >= 0.5 * f64::from(epsilon).min(600.0), "{distance} of {epsilon}");
                assert_eq!(rounded, nearest_image(Norm::L2, epsilon, &origin, &change));
            }
        }
    }

    #[test]
    fn a_whole_change_stands_for_itself() {
        let origin = [10u8, 250, 0, 128, 90];
        let change = [3.0f32, -50.0, 0.0, 1.0, -2.0];
        for (norm, epsilon) in [(Norm::L2, 60.0), (Norm::Linf, 50.0)] {
            let ball = Ball { norm, epsilon };
            assert_eq!(image(ball, &origin, &change), [13, 200, 0, 129, 88]);
            assert_eq!(nearest_image(norm, epsilon, &origin, &change), [13, 200, 0, 129, 88]);
        }
    }

    #[test]
    fn directions_have_length_one_at_any_scale_of_the_gradient() {
        let gradient = [3.0f32, -4.0, 0.0, 12.0];
        for scale in [1e-30f32, 1.0, 1e30] {
            let scaled = gradient.map(|g| g * scale);
            let ball = |norm| Ball { norm, epsilon: 1.0 };
            let way = to_host(ball(Norm::L2).direction(row(&scaled)));
            for (way, g) in way.iter().zip(gradient) {
                assert!((way - g / 13.0).abs() < 1e-6, "{scale}: {way}");
            }
            assert_eq!(to_host(ball(Norm::Linf).direction(row(&scaled))), [1.0, -1.0, 0.0, 1.0]);
            let slope = |norm| to_host(ball(norm).slope(row(&scaled)))[0];
            assert!((slope(Norm::L2) / (13.0 * scale) - 1.0).abs() < 1e-5);
            assert!((slope(Norm::Linf) / (19.0 * scale) - 1.0).abs() < 1e-5);
        }
        let ball = Ball {
            norm: Norm::L2,
            epsilon: 1.0,
        };
        assert_eq!(to_host(ball.direction(row(&[0.0, 0.0]))), [0.0, 0.0]);
    }

    #[test]
    fn distances_are_the_textbooks() {
        assert_eq!(Norm::Linf.distance(&[0, 255, 7], &[4, 252, 7]), 4.0);
        assert_eq!(Norm::L2.distance(&[0, 255, 7], &[4, 252, 7]), 5.0);
    }
}
