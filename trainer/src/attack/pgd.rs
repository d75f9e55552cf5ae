//! FGSM, PGD and the minimal-norm attack, all along the gradient of the margin.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};

use super::ball::{Ball, Norm, choose};
use super::search::{Rows, Search, Strategy, finite, reaches};
use super::{AttackOptions, Attacked, Method, margin_column, one_hot, to_images, to_rows};
use crate::nn::{self, Auto, Inner, Output};
use crate::train::Passes;

/// By how much more than to the margin a step of the minimal-norm attack goes, as in DeepFool.
const OVERSHOOT: f32 = 1.02;

/// Halvings on the way straight back to the image.
const HALVINGS: usize = 4;

/// Gradients spent in ever smaller balls, and how much smaller they are than the best change so far (Euclidean; else a grey level).
const SMALLER_BALLS: usize = 4;
const SMALLER: f32 = 0.95;

pub(super) fn attack(search: &Search, images: &[&[u8]], labels: &[u16], options: &AttackOptions) -> Attacked {
    let steps = options.most_steps();
    search.with_restarts(images, labels, options.restarts, options.seed, |images, labels, start| {
        let mut strategy = AlongMargin {
            options,
            sense: search.sense,
        };
        let mut found = search.run(&mut strategy, steps, images, labels, start);
        if options.method == Method::Minimal {
            shrink(search, images, labels, &mut found);
        }
        found
    })
}

struct AlongMargin<'a> {
    options: &'a AttackOptions,
    sense: f32,
}

impl Strategy for AlongMargin<'_> {
    fn objective<B: Backend>(&self, logits: Tensor<B, 2>, own: Tensor<B, 2>) -> Tensor<B, 2> {
        margin_column(logits, own) * self.sense
    }

    fn one_gradient(&self) -> bool {
        self.options.method == Method::Fgsm
    }

    fn step(&mut self, rows: &Rows, ball: Ball) -> Tensor<Inner, 2> {
        let way = ball.direction(rows.gradient.clone());
        let step = match self.options.method {
            Method::Fgsm | Method::Pgd => way * self.options.step,
            Method::Minimal => {
                let lacking = -rows.margin.clone() + self.options.margin;
                let length = length(lacking, rows.gradient.clone(), ball);
                // Less than a level would be lost in rounding. Along signs a linear network is a poor guide, and every value pays
                // for going too far: so half the way, by whole levels.
                way * match ball.norm {
                    Norm::Linf => (length * 0.5).ceil().clamp_min(1.0),
                    Norm::L2 => length.clamp_min(1.0),
                }
            }
        };
        rows.change.clone() + step
    }
}

/// How far along the gradient a linear network would gain this much of the margin; from 0 to twice epsilon.
fn length(lacking: Tensor<Inner, 2>, gradient: Tensor<Inner, 2>, ball: Ball) -> Tensor<Inner, 2> {
    let slope = ball.slope(gradient).clamp_min(f32::MIN_POSITIVE);
    (lacking * OVERSHOOT / slope).clamp(0.0, 2.0 * ball.epsilon)
}

/// Brings what was found nearer to the image while it keeps the margin: first straight back, then in balls that are a little
/// smaller than the best change so far.
fn shrink(search: &Search, images: &[&[u8]], labels: &[u16], found: &mut Attacked) {
    let (device, shape, ball, sense) = (search.network.device(), search.shape, search.ball, search.sense);
    let len: usize = shape.iter().product();
    let numbers: Vec<usize> = (0..images.len())
        .filter(|&i| reaches(sense * found.margins[i], search.wanted))
        // There is nothing smaller than one level, but none.
        .filter(|&i| ball.norm.distance(&found.images[i * len..][..len], images[i]) > 1.0)
        .collect();
    if numbers.is_empty() {
        return;
    }
    let n = numbers.len();
    let classes: Vec<u16> = numbers.iter().map(|&i| labels[i]).collect();
    let own = one_hot(&classes, search.network.network().classes(), device);
    let origin = to_rows(numbers.iter().map(|&i| images[i]), shape, device);
    let x = to_rows(numbers.iter().map(|&i| &found.images[i * len..][..len]), shape, device);
    let margin: Vec<f32> = numbers.iter().map(|&i| sense * found.margins[i]).collect();
    let mut best = Best {
        size: ball.size(x.clone() - origin.clone()),
        margin: Tensor::from_data(TensorData::new(margin, [n, 1]), device.dispatch()),
        x,
    };

    let whole = best.x.clone() - origin.clone();
    let (mut low, mut high) = (best.size.zeros_like(), best.size.ones_like());
    for _ in 0..HALVINGS {
        let share = (low.clone() + high.clone()) * 0.5;
        let change = ball.within(whole.clone(), ball.size(whole.clone()) * share.clone());
        let x = ball.image(&origin, change);
        found.passes += Passes::forward(n);
        let margin = search.margin(search.network.forward(to_images(x.clone(), shape)).logits, own.clone());
        let good = best.offer(search, x, &origin, margin);
        high = choose(&good, share.clone(), high);
        low = choose(&good, low, share);
    }

    let mut x = best.x.clone();
    let mut change = x.clone() - origin.clone();
    for _ in 0..SMALLER_BALLS {
        found.passes += Passes::input_gradient(n);
        let tracked = Tensor::<Auto, 2>::from_inner(own.clone());
        let sum = |output: Output<Auto>| (margin_column(output.logits, tracked) * sense).sum();
        let (gradient, output) = search.network.input_gradient(to_images(x.clone(), shape), sum);
        let margin = search.margin(output.logits, own.clone());
        best.offer(search, x, &origin, margin.clone());
        let radius = match ball.norm {
            Norm::Linf => (best.size.clone() - 1.0).clamp_min(1.0),
            Norm::L2 => best.size.clone() * SMALLER,
        };
        let gradient = finite(gradient.reshape(change.dims()));
        let step = length(-margin + search.wanted, gradient.clone(), ball).clamp_min(1.0);
        change = ball.within(change + ball.direction(gradient) * step, radius);
        change = ball.project(&origin, change);
        x = ball.image(&origin, change.clone());
    }
    found.passes += Passes::forward(n);
    let margin = search.margin(search.network.forward(to_images(x.clone(), shape)).logits, own);
    best.offer(search, x, &origin, margin);

    search.store(&best.x, &numbers, &mut found.images);
    for (i, margin) in numbers.into_iter().zip(nn::to_host(best.margin)) {
        found.margins[i] = sense * margin;
    }
}

/// The smallest changes so far that keep the margin; columns are `[n, 1]`.
struct Best {
    x: Tensor<Inner, 2>,
    margin: Tensor<Inner, 2>,
    size: Tensor<Inner, 2>,
}

impl Best {
    /// Takes those that are better; says which keep the margin.
    fn offer(
        &mut self,
        search: &Search,
        x: Tensor<Inner, 2>,
        origin: &Tensor<Inner, 2>,
        margin: Tensor<Inner, 2>,
    ) -> Tensor<Inner, 2, Bool> {
        let good = margin.clone().greater_equal_elem(search.wanted);
        let size = search.ball.size(x.clone() - origin.clone());
        let better = good.clone().bool_and(size.clone().lower(self.size.clone()));
        self.x = choose(&better, x, self.x.clone());
        self.margin = choose(&better, margin, self.margin.clone());
        self.size = choose(&better, size, self.size.clone());
        good
    }
}
