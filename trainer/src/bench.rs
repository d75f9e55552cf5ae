//! How fast a device computes: images a second forward, in training and under attack.
//!
//! Each is timed on one batch of noise that stays on the device, in stretches of so many steps that one takes its share of the
//! time asked for. Nothing is read back within a stretch; at its end one number is, which waits for all that was asked for
//! before. What comes before the first stretch (kernels compiled and tuned, memory taken) is not timed.

use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use serde::Serialize;

use crate::agreement::noise;
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::memory::{self, StepMemory};
use crate::nn::{self, Auto, Frozen, Inner, Mode, Net};
use crate::train::{Stepper, TrainOptions, cross_entropy, targets};
use crate::{Error, ErrorKind, Result};

/// Stretches of each measurement; their median is the result.
const STRETCHES: usize = 5;

/// Steps before the first stretch.
const WARM_UP: usize = 3;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BenchOptions {
    /// Images of a step.
    pub batch: usize,
    /// Seconds that each of the three measurements takes, warm-up not counted.
    pub seconds: f64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { batch: 64, seconds: 3.0 }
    }
}

/// Images a second, and what it is the median of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Median of the stretches.
    pub images_per_second: f64,
    /// Each stretch, in the order measured.
    pub stretches: Vec<f64>,
    /// Steps of a stretch.
    pub steps: usize,
}

/// The three measurements of one network on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Throughput {
    /// Running statistics, no gradients.
    pub forward: Rate,
    /// Forward with batch statistics, backward to the weights, one step of Adam: the training loop's own.
    pub training: Rate,
    /// Forward with running statistics, backward to the pixels.
    pub attack: Rate,
}

/// Measures `checkpoint`, fake-quantized where it is quantized, on `device`.
///
/// # Errors
/// [`ErrorKind::Usage`] where a batch or a time cannot be; [`ErrorKind::Weights`] where the weights do not fit the network;
/// [`ErrorKind::Device`] where the device has no memory for a step, or fails.
pub fn throughput(checkpoint: &Checkpoint, options: BenchOptions, device: &Device) -> Result<Throughput> {
    let BenchOptions { batch, seconds } = options;
    if batch < 2 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("--batch {batch} is too small for batch statistics: at least 2"),
        ));
    }
    if !(seconds.is_finite() && seconds > 0.0) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("--seconds {seconds} is not a positive number"),
        ));
    }
    let need = StepMemory::new(&checkpoint.network, batch)?;
    memory::check(&need, batch, 1, device)?;
    memory::guard(&need, 1, device, || measure(checkpoint, options, device))
}

fn measure(checkpoint: &Checkpoint, options: BenchOptions, device: &Device) -> Result<Throughput> {
    let (network, quantization) = (&checkpoint.network, checkpoint.quantization.as_ref());
    let images = noise(network, options.batch, 0);
    let rows: Vec<usize> = (0..images.len()).collect();
    let x = nn::to_device(&images, &rows, device);
    let targets = targets(images.labels(), network.classes(), 0.0, device);

    let frozen = Frozen::new(network, &checkpoint.state, quantization, device)?;
    let forward = rate(options, |_| one(frozen.forward(x.clone()).logits));

    let mut optimizer = Stepper::new(&TrainOptions::default());
    let mut net = Some(Net::<Auto>::from_state(network, &checkpoint.state, device)?);
    let training = rate(options, |_| {
        let before = net.take().expect("every step leaves a network");
        let output = before.forward(network, quantization, Tensor::from_inner(x.clone()), Mode::Train);
        let loss = cross_entropy(output.logits, targets.clone());
        net = Some(optimizer.step(1e-4, before, &loss));
        // Computed before the step of Adam, but read after it: the device works in order.
        loss.inner()
    });

    let attack = rate(options, |_| {
        let loss = |output: nn::Output<Auto>| cross_entropy(output.logits, targets.clone());
        one(frozen.input_gradient(x.clone(), loss).0)
    });
    Ok(Throughput {
        forward,
        training,
        attack,
    })
}

/// One element of a tensor, still on the device.
fn one<B: Backend<FloatElem = f32>, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    let first = Tensor::<B, 1, Int>::from_data(TensorData::new(vec![0i64], [1]), &x.device());
    let elements: usize = x.dims().iter().product();
    x.reshape([elements]).select(0, first)
}

/// Times `step`, whose result is a number that depends on all of its work.
fn rate(options: BenchOptions, mut step: impl FnMut(usize) -> Tensor<Inner, 1>) -> Rate {
    let mut stretch = |steps: usize| {
        let start = Instant::now();
        let mut last = None;
        for number in 0..steps {
            last = Some(step(number));
        }
        last.map(nn::to_host);
        // A clock too coarse for one step would make it infinitely fast.
        start.elapsed().as_secs_f64().max(1e-9)
    };
    stretch(WARM_UP);
    let steps = steps_of(stretch(1), options.seconds / STRETCHES as f64);
    let stretches: Vec<f64> = (0..STRETCHES)
        .map(|_| (options.batch * steps) as f64 / stretch(steps))
        .collect();
    Rate {
        images_per_second: median(&stretches),
        stretches,
        steps,
    }
}

/// Steps that fill `seconds`, where one takes `each`.
fn steps_of(each: f64, seconds: f64) -> usize {
    ((seconds / each).ceil() as usize).max(1)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::train::fixture;

    fn quantized() -> Checkpoint {
        let float = fixture::float(1);
        ptq(
            &float,
            &fixture::images(16, 2),
            &QuantizeOptions::new(Width::W2),
            &Device::flex(),
        )
        .unwrap()
    }

    #[test]
    fn three_measurements_of_as_many_stretches_and_the_checkpoint_stays_as_it_is() {
        let checkpoint = quantized();
        let before = checkpoint.state.clone();
        let options = BenchOptions { batch: 4, seconds: 0.02 };
        let found = throughput(&checkpoint, options, &Device::flex()).unwrap();
        for rate in [&found.forward, &found.training, &found.attack] {
            assert_eq!(rate.stretches.len(), STRETCHES);
            assert!(rate.steps >= 1 && rate.stretches.contains(&rate.images_per_second));
            assert!(rate.stretches.iter().all(|rate| rate.is_finite() && *rate > 0.0));
        }
        assert_eq!(checkpoint.state, before);
    }

    #[test]
    fn a_stretch_does_every_step_and_reads_one_number() {
        let device = Device::flex();
        let mut seen = Vec::new();
        let options = BenchOptions {
            batch: 10,
            seconds: 1e-6,
        };
        let found = rate(options, |number| {
            seen.push(number);
            Tensor::from_data([number as f32], device.dispatch())
        });
        assert_eq!(seen.len(), WARM_UP + 1 + STRETCHES * found.steps);
    }

    #[test]
    fn stretches_fill_their_time_and_the_median_is_the_one_in_the_middle() {
        assert_eq!(steps_of(0.1, 0.55), 6);
        assert_eq!(steps_of(3.0, 0.1), 1);
        assert_eq!(median(&[5.0, 1.0, 9.0, 3.0, 2.0]), 3.0);
    }

    #[test]
    fn batches_and_times_that_cannot_be_are_usage_errors() {
        for (batch, seconds) in [(0, 1.0), (1, 1.0), (8, 0.0), (8, -1.0), (8, f64::NAN)] {
            let error = throughput(&quantized(), BenchOptions { batch, seconds }, &Device::flex()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{batch} {seconds}");
        }
    }
}
