//! Convolution whose gradient with respect to the weights is quick on the CPU.
//!
//! That gradient is a convolution of the input by the output's gradient, both with images and channels exchanged. burn
//! exchanges them as a view, which flex 0.21 then copies element by element: a third of a training step. Here planes are
//! copied as rows. On a GPU the backend's own kernels are used.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, ModuleOps, PadMode, PaddedConvOptions};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use burn_dispatch::DispatchDevice;

use crate::nn::{Auto, Inner};

/// A backend that convolves: [`Inner`] and [`Auto`].
pub trait Convolve: Backend<Device = DispatchDevice, FloatElem = f32> {
    /// 2-D convolution without bias, as [`conv2d`].
    ///
    /// # Shapes
    /// `x: [n, c_in, h, w]` | `weight: [c_out, c_in / groups, kh, kw]` | result `[n, c_out, oh, ow]`
    fn convolve(x: Tensor<Self, 4>, weight: Tensor<Self, 4>, options: PaddedConvOptions<2>) -> Tensor<Self, 4>;
}

impl Convolve for Inner {
    fn convolve(x: Tensor<Self, 4>, weight: Tensor<Self, 4>, options: PaddedConvOptions<2>) -> Tensor<Self, 4> {
        conv2d(x, weight, None, options)
    }
}

impl Convolve for Auto {
    fn convolve(x: Tensor<Self, 4>, weight: Tensor<Self, 4>, options: PaddedConvOptions<2>) -> Tensor<Self, 4> {
        let PaddedConvOptions { options, padding_end } = options;
        if options.groups != 1 || !matches!(x.device(), DispatchDevice::Flex(_)) {
            return conv2d(x, weight, None, PaddedConvOptions { options, padding_end });
        }
        let (x, options) = match padding_end {
            Some([bottom, right]) => {
                let [top, left] = options.padding;
                let x = x.pad((left, right, top, bottom), PadMode::Constant(0.0));
                (
                    x,
                    ConvOptions {
                        padding: [0, 0],
                        ..options
                    },
                )
            }
            None => (x, options),
        };
        let y = conv2d(x.clone().inner(), weight.clone().inner(), None, options.clone());
        let nodes = [&x, &weight].map(|tensor| tensor.clone().into_primitive().tensor().node);
        let y = y.into_primitive().tensor();
        let y = match Convolution.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.inner(), weight.inner(), options), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        Tensor::from_primitive(TensorPrimitive::Float(y))
    }
}

/// The two gradients.
#[derive(Debug)]
struct Convolution;

impl Backward<Inner, 2> for Convolution {
    type State = (Tensor<Inner, 4>, Tensor<Inner, 4>, ConvOptions<2>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, options) = ops.state;
        let of_input = |gradient| {
            let [x, weight] = [x.clone(), weight.clone()].map(|tensor| tensor.into_primitive().tensor());
            Inner::conv2d_x_backward(x, weight, gradient, options.clone())
        };
        let of_weight = |gradient| {
            let gradient = Tensor::<Inner, 4>::from_primitive(TensorPrimitive::Float(gradient));
            weight_gradient(x.clone(), gradient, weight.dims(), &options)
                .into_primitive()
                .tensor()
        };
        binary::<Inner, _, _>(ops.parents, ops.node, grads, of_input, of_weight);
    }
}

/// Gradient of the weights: as burn's, but for the exchange.
fn weight_gradient(
    x: Tensor<Inner, 4>,
    gradient: Tensor<Inner, 4>,
    [c_out, c_in, kh, kw]: [usize; 4],
    options: &ConvOptions<2>,
) -> Tensor<Inner, 4> {
    // Steps over the input become holes between the gradient's values, and the other way round.
    let swapped = ConvOptions::new(options.dilation, options.padding, options.stride, 1);
    let y = conv2d(exchange(x), exchange(gradient), None, swapped);
    // A stride that does not divide the input leaves rows and columns that no weight has.
    exchange(y.slice([0..c_in, 0..c_out, 0..kh, 0..kw]))
}

/// `[a, b, h, w]` as `[b, a, h, w]`.
fn exchange(x: Tensor<Inner, 4>) -> Tensor<Inner, 4> {
    let [a, b, h, w] = x.dims();
    let order: Vec<i64> = (0..b).flat_map(|j| (0..a).map(move |i| (i * b + j) as i64)).collect();
    let order = Tensor::from_data(TensorData::new(order, [a * b]), &x.device());
    x.reshape([a * b, h * w]).select(0, order).reshape([b, a, h, w])
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};
    use crate::device::Device;
    use crate::nn::to_host;

    /// Against burn's own, for every kind of kernel, stride, padding and size that a stride does not divide.
    #[test]
    fn values_and_gradients_are_burns() {
        let device = Device::flex();
        let mut rng = rng(3, Purpose::Synthetic, 12);
        let mut random = |shape: [usize; 4]| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
            TensorData::new(values, shape)
        };
        for (h, w, kernel, stride, start, end) in [
            (8, 8, [3, 3], [1, 1], [1, 1], [1, 1]),
            (8, 8, [3, 3], [2, 2], [0, 0], [1, 1]),
            (9, 6, [3, 3], [2, 2], [1, 1], [1, 1]),
            (7, 8, [1, 1], [2, 2], [0, 0], [0, 0]),
            (8, 9, [3, 2], [2, 1], [1, 0], [0, 1]),
            (5, 5, [5, 5], [1, 1], [2, 2], [2, 2]),
        ] {
            let (x, weight) = (random([3, 4, h, w]), random([5, 4, kernel[0], kernel[1]]));
            let gradients = |own: bool| {
                let [x, weight] =
                    [&x, &weight].map(|data| Tensor::<Auto, 4>::from_data(data.clone(), device.dispatch()).require_grad());
                let options = PaddedConvOptions::asymmetric(stride, start, end, [1, 1], 1);
                let y = if own {
                    Auto::convolve(x.clone(), weight.clone(), options)
                } else {
                    conv2d(x.clone(), weight.clone(), None, options)
                };
                let gradients = y.clone().square().sum().backward();
                [y.inner(), x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()].map(to_host)
            };
            for (own, burns) in gradients(true).iter().zip(gradients(false)) {
                assert_eq!(own.len(), burns.len());
                for (a, b) in own.iter().zip(burns) {
                    assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{kernel:?} {stride:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn only_what_is_tracked_gets_a_gradient() {
        let device = Device::flex();
        let ones = |shape: [usize; 4]| Tensor::<Auto, 4>::ones(shape, device.dispatch());
        let options = || PaddedConvOptions::asymmetric([1, 1], [0, 0], [0, 0], [1, 1], 1);
        let (x, weight) = (ones([1, 2, 3, 3]).require_grad(), ones([1, 2, 3, 3]));
        let gradients = Auto::convolve(x.clone(), weight.clone(), options()).sum().backward();
        assert_eq!(to_host(x.grad(&gradients).unwrap()), [1.0; 18]);
        assert!(weight.grad(&gradients).is_none());
        let y = Auto::convolve(weight.clone(), weight, options());
        assert_eq!(to_host(y.inner()), [18.0]);
    }
}
