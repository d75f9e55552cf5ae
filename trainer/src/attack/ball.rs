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
    /// The change of size 1 along which a linear function with this gradient rises fastest; 0 where the gradient is.
    pub fn direction(self, gradient: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        let direction = match self.norm {
            Norm::Linf => gradient.sign(),
            Norm::L2 => {
                let gradient = scaled(gradient);
                let length = length(gradient.clone());
                gradient / length.clamp_min(f32::MIN_POSITIVE)
            }
        };
        // Of a network that overflows.
        direction.clone().mask_fill(direction.is_nan(), 0.0)
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

    /// The change cut down to a share of its size; `share: [n, 1]`, 0 to 1.
    pub fn reduce(self, change: Tensor<Inner, 2>, share: Tensor<Inner, 2>) -> Tensor<Inner, 2> {
        match self.norm {
            Norm::Linf => {
                let limit = (change.clone().abs().max_dim(1) * share).expand(change.shape());
                change.max_pair(-limit.clone()).min_pair(limit)
            }
            Norm::L2 => change * share,
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

/// Halvings in search of the factor of [`Ball::image`]: to a 256th of a grey level, or of the factor.
const BISECTIONS: usize = 9;

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
