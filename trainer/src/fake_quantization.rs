//! Fake quantization of activations: rounded to what an int8 code can say, with a gradient that passes straight through (Bengio et
//! al. 2013) where the value was within its limits (Jacob et al. 2018, section 3).
//!
//! On the CPU values are read once forward and once backward; on other devices the backend's operations are composed.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use burn_dispatch::DispatchDevice;
use rayon::prelude::*;

use crate::convolution::Convolve;
use crate::device::is_flex;
use crate::nn::{Auto, Inner, to_host};
use crate::normalization::Normalize;

/// A backend that can quantize an activation in passing: [`Inner`] and [`Auto`].
pub trait FakeQuantize: Convolve + Normalize {
    /// `x` limited to `low..=high` and rounded to whole multiples of `step`. The gradient passes where `x` is within.
    fn fake_quantize(x: Tensor<Self, 4>, step: f32, low: f32, high: f32) -> Tensor<Self, 4>;
}

impl FakeQuantize for Inner {
    fn fake_quantize(x: Tensor<Self, 4>, step: f32, low: f32, high: f32) -> Tensor<Self, 4> {
        let limits = Limits { step, low, high };
        let (shape, device) = (x.dims(), x.device());
        if !is_flex(&device) {
            return limits.composed(x);
        }
        let mut values = to_host(x);
        limits.quantize(&mut values);
        tensor(values, shape, &device)
    }
}

impl FakeQuantize for Auto {
    fn fake_quantize(x: Tensor<Self, 4>, step: f32, low: f32, high: f32) -> Tensor<Self, 4> {
        let limits = Limits { step, low, high };
        let node = x.clone().into_primitive().tensor().node;
        let (shape, device) = (x.dims(), x.device());
        let x = x.inner();
        let (quantized, x) = if is_flex(&device) {
            let x = to_host(x);
            let mut values = x.clone();
            limits.quantize(&mut values);
            (tensor(values, shape, &device), Input::Host(Arc::new(x)))
        } else {
            (limits.composed(x.clone()), Input::Device(x))
        };
        let quantized = quantized.into_primitive().tensor();
        let y = match PassWithin.prepare::<NoCheckpointing>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, limits), quantized),
            OpsKind::UnTracked(prep) => prep.finish(quantized),
        };
        Tensor::from_primitive(TensorPrimitive::Float(y))
    }
}

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 14;

#[derive(Clone, Copy, Debug)]
struct Limits {
    step: f32,
    low: f32,
    high: f32,
}

impl Limits {
    /// The limits as codes, so that they are exact multiples of a step too.
    fn codes(self) -> (f32, f32) {
        ((self.low / self.step).round(), (self.high / self.step).round())
    }

    fn quantize(self, values: &mut [f32]) {
        let (low, high) = self.codes();
        values.par_chunks_mut(CHUNK).for_each(|values| {
            for value in values {
                *value = round((*value / self.step).clamp(low, high)) * self.step;
            }
        });
    }

    fn composed(self, x: Tensor<Inner, 4>) -> Tensor<Inner, 4> {
        let (low, high) = self.codes();
        (x / self.step).clamp(low, high).round() * self.step
    }

    fn contain(self, x: f32) -> bool {
        self.low <= x && x <= self.high
    }
}

/// To the nearest whole number, the even one of two, of a number below 2^22 in magnitude: adding 1.5 * 2^23 leaves no room for a
/// fraction. [`f32::round_ties_even`] is a call for every value where the compiler may not assume a newer processor.
fn round(x: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    x + NO_FRACTION - NO_FRACTION
}

/// What was quantized.
#[derive(Clone, Debug)]
enum Input {
    Host(Arc<Vec<f32>>),
    Device(Tensor<Inner, 4>),
}

/// Passes the gradient where the input was within its limits.
#[derive(Debug)]
struct PassWithin;

impl Backward<Inner, 1> for PassWithin {
    type State = (Input, Limits);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, limits) = ops.state;
        unary::<Inner, _>(ops.parents, ops.node, grads, |gradient| {
            let gradient = Tensor::<Inner, 4>::from_primitive(TensorPrimitive::Float(gradient));
            let gradient = match x {
                Input::Host(x) => {
                    let (shape, device) = (gradient.dims(), gradient.device());
                    let mut gradient = to_host(gradient);
                    gradient
                        .par_chunks_mut(CHUNK)
                        .zip(x.par_chunks(CHUNK))
                        .for_each(|(gradient, x)| {
                            for (gradient, x) in gradient.iter_mut().zip(x) {
                                *gradient = if limits.contain(*x) { *gradient } else { 0.0 };
                            }
                        });
                    tensor(gradient, shape, &device)
                }
                Input::Device(x) => {
                    let outside = x.clone().lower_elem(limits.low).bool_or(x.greater_elem(limits.high));
                    gradient.mask_fill(outside, 0.0)
                }
            };
            gradient.into_primitive().tensor()
        });
    }
}

fn tensor(values: Vec<f32>, shape: [usize; 4], device: &DispatchDevice) -> Tensor<Inner, 4> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// Every code's middle, both sides of every tie, the limits, and beyond.
    #[test]
    fn values_and_gradients_are_those_of_the_operations() {
        let device = Device::flex();
        let device = device.dispatch();
        for (step, low, high) in [(0.5, -64.0, 63.5), (0.1, 0.0, 12.7), (0.037, -1.0, 3.0)] {
            let limits = Limits { step, low, high };
            let mut values: Vec<f32> = (-600..600).map(|i| i as f32 * step / 4.0).collect();
            values.extend([low, high, low - step, high + step, 1e6, -1e6, -0.0]);
            let shape = [1, 1, 1, values.len()];
            let x = tensor(values.clone(), shape, device);
            let expected = to_host(limits.composed(x.clone()));
            assert_eq!(to_host(Inner::fake_quantize(x.clone(), step, low, high)), expected);

            let x = Tensor::<Auto, 4>::from_inner(x).require_grad();
            let y = Auto::fake_quantize(x.clone(), step, low, high);
            assert_eq!(to_host(y.clone().inner()), expected);
            let gradient = to_host(x.grad(&(y * 3.0).sum().backward()).unwrap());
            for (value, gradient) in values.into_iter().zip(gradient) {
                let within = low <= value && value <= high;
                assert_eq!(gradient, if within { 3.0 } else { 0.0 }, "of {value} within {low} to {high}");
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_the_even_one_of_two() {
        for i in -2048..2048 {
            let x = i as f32 / 8.0;
            assert_eq!(round(x), x.round_ties_even(), "{x}");
        }
    }

    /// What goes in is not changed for those who hold it too.
    #[test]
    fn a_shared_input_stays_as_it_is() {
        let device = Device::flex();
        let x = tensor(vec![0.3, 0.7], [1, 1, 1, 2], device.dispatch());
        let kept = x.clone();
        assert_eq!(to_host(Inner::fake_quantize(x, 0.5, 0.0, 1.0)), [0.5, 0.5]);
        assert_eq!(to_host(kept), [0.3, 0.7]);
    }
}
