//! Convolution that is quick on the CPU.
//!
//! flex 0.21 spends three quarters of a training step's convolutions on moving values: to channels last, to windows one value
//! at a time, and back with a comparison for each. Here an image's windows are copied row by row, as channels first have them,
//! and multiplied by flex's matrix product; padding is never stored. Every sum is taken in an order that does not depend on the number
//! of threads. On a GPU, and for depthwise convolutions, the backend's own kernels are used.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::PaddedConvOptions;
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use burn_dispatch::DispatchDevice;
use rayon::prelude::*;

use crate::device::is_flex;
use crate::nn::{Auto, Inner, to_host};

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
        match Windows::new(x.dims(), weight.dims(), &options, &x.device()) {
            Some(windows) => windows.forward(&x, &weight),
            None => conv2d(x, weight, None, options),
        }
    }
}

impl Convolve for Auto {
    fn convolve(x: Tensor<Self, 4>, weight: Tensor<Self, 4>, options: PaddedConvOptions<2>) -> Tensor<Self, 4> {
        let Some(windows) = Windows::new(x.dims(), weight.dims(), &options, &x.device()) else {
            return conv2d(x, weight, None, options);
        };
        let nodes = [&x, &weight].map(|tensor| tensor.clone().into_primitive().tensor().node);
        let (x, weight) = (x.inner(), weight.inner());
        let y = windows.forward(&x, &weight).into_primitive().tensor();
        let y = match Convolution.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, windows), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        Tensor::from_primitive(TensorPrimitive::Float(y))
    }
}

/// The two gradients.
#[derive(Debug)]
struct Convolution;

impl Backward<Inner, 2> for Convolution {
    type State = (Tensor<Inner, 4>, Tensor<Inner, 4>, Windows);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, windows) = ops.state;
        let of_input = |gradient| {
            let gradient = Tensor::from_primitive(TensorPrimitive::Float(gradient));
            windows.input_gradient(&weight, &gradient).into_primitive().tensor()
        };
        let of_weight = |gradient| {
            let gradient = Tensor::from_primitive(TensorPrimitive::Float(gradient));
            windows.weight_gradient(&x, &gradient).into_primitive().tensor()
        };
        binary::<Inner, _, _>(ops.parents, ops.node, grads, of_input, of_weight);
    }
}

/// Images whose gradients of the weights are added up by one thread, and those sums one after the other.
const IMAGES_OF_A_SUM: usize = 8;

/// A window that slides over an image.
#[derive(Clone, Copy, Debug)]
struct Windows {
    /// Channels, height and width of an image.
    input: [usize; 3],
    /// The same of its output.
    output: [usize; 3],
    kernel: [usize; 2],
    stride: [usize; 2],
    /// Rows above and columns left of the image.
    padding: [usize; 2],
}

impl Windows {
    /// `None` where the backend has the better kernel: off flex, with groups, with holes.
    fn new(
        [_, channels, height, width]: [usize; 4],
        [c_out, _, kh, kw]: [usize; 4],
        options: &PaddedConvOptions<2>,
        device: &DispatchDevice,
    ) -> Option<Self> {
        let PaddedConvOptions { options, padding_end } = options;
        if !is_flex(device) || options.groups != 1 || options.dilation != [1, 1] {
            return None;
        }
        let [top, left] = options.padding;
        let [bottom, right] = padding_end.unwrap_or(options.padding);
        let steps = |padded: usize, kernel: usize, stride: usize| Some(padded.checked_sub(kernel)? / stride + 1);
        let oh = steps(top + height + bottom, kh, options.stride[0])?;
        let ow = steps(left + width + right, kw, options.stride[1])?;
        Some(Self {
            input: [channels, height, width],
            output: [c_out, oh, ow],
            kernel: [kh, kw],
            stride: options.stride,
            padding: options.padding,
        })
    }

    /// Positions of the window.
    fn positions(&self) -> usize {
        self.output[1] * self.output[2]
    }

    /// Values of a window, over all channels.
    fn len(&self) -> usize {
        self.input[0] * self.kernel[0] * self.kernel[1]
    }

    fn forward(&self, x: &Tensor<Inner, 4>, weight: &Tensor<Inner, 4>) -> Tensor<Inner, 4> {
        let [c_out, oh, ow] = self.output;
        let n = x.dims()[0];
        let weight = weight.clone().reshape([c_out, self.len()]);
        let mut y = vec![0.0; n * c_out * oh * ow];
        y.par_chunks_mut(c_out * oh * ow).enumerate().for_each(|(i, y)| {
            y.copy_from_slice(&to_host(weight.clone().matmul(self.columns(x, i))));
        });
        Tensor::from_data(TensorData::new(y, [n, c_out, oh, ow]), &x.device())
    }

    /// `[c_out, c_in, kh, kw]`, summed over images.
    fn weight_gradient(&self, x: &Tensor<Inner, 4>, gradient: &Tensor<Inner, 4>) -> Tensor<Inner, 4> {
        let n = x.dims()[0];
        let sums: Vec<Tensor<Inner, 2>> = (0..n.div_ceil(IMAGES_OF_A_SUM))
            .into_par_iter()
            .filter_map(|sum| {
                let images = sum * IMAGES_OF_A_SUM..((sum + 1) * IMAGES_OF_A_SUM).min(n);
                images
                    .map(|i| self.plane(gradient, i).matmul(self.columns(x, i).transpose()))
                    .reduce(|a, b| a + b)
            })
            .collect();
        let [kh, kw] = self.kernel;
        let shape = [self.output[0], self.input[0], kh, kw];
        match sums.into_iter().reduce(|a, b| a + b) {
            Some(sum) => sum.reshape(shape),
            None => Tensor::zeros(shape, &x.device()),
        }
    }

    /// `[n, c_in, h, w]`.
    fn input_gradient(&self, weight: &Tensor<Inner, 4>, gradient: &Tensor<Inner, 4>) -> Tensor<Inner, 4> {
        let [channels, height, width] = self.input;
        let n = gradient.dims()[0];
        let weight = weight.clone().reshape([self.output[0], self.len()]).transpose();
        let mut x = vec![0.0; n * channels * height * width];
        x.par_chunks_mut(channels * height * width).enumerate().for_each(|(i, x)| {
            self.add_columns(&to_host(weight.clone().matmul(self.plane(gradient, i))), x);
        });
        Tensor::from_data(TensorData::new(x, [n, channels, height, width]), &gradient.device())
    }

    /// Image `i` of a gradient as `[c_out, positions]`.
    fn plane(&self, gradient: &Tensor<Inner, 4>, i: usize) -> Tensor<Inner, 2> {
        gradient.clone().narrow(0, i, 1).reshape([self.output[0], self.positions()])
    }

    /// What the windows of image `i` show, `[values of a window, positions]`.
    fn columns(&self, x: &Tensor<Inner, 4>, i: usize) -> Tensor<Inner, 2> {
        let image = to_host(x.clone().narrow(0, i, 1));
        let mut columns = vec![0.0; self.len() * self.positions()];
        let mut rows = columns.chunks_exact_mut(self.output[2]);
        self.rows(|source, shown| {
            let row = rows.next().expect("as many rows as there are of windows");
            let Some(start) = source else { return };
            let row = &mut row[shown];
            match self.stride[1] {
                1 => row.copy_from_slice(&image[start..start + row.len()]),
                stride => {
                    for (value, pixels) in row.iter_mut().zip(image[start..].chunks(stride)) {
                        *value = pixels[0];
                    }
                }
            }
        });
        Tensor::from_data(TensorData::new(columns, [self.len(), self.positions()]), &x.device())
    }

    /// The opposite of [`columns`](Self::columns): adds every value where it was taken from.
    fn add_columns(&self, columns: &[f32], image: &mut [f32]) {
        let mut at = 0;
        self.rows(|source, shown| {
            let row = &columns[at..at + self.output[2]][shown.clone()];
            at += self.output[2];
            match (source, self.stride[1]) {
                (Some(start), 1) => {
                    for (pixel, value) in image[start..start + row.len()].iter_mut().zip(row) {
                        *pixel += value;
                    }
                }
                (Some(start), stride) => {
                    for (pixels, value) in image[start..].chunks_mut(stride).zip(row) {
                        pixels[0] += value;
                    }
                }
                (None, _) => {}
            }
        });
    }

    /// Shows `see` every row of an image's columns, in order: where in the image the first of its values is, and which of its
    /// positions are inside; nothing, and none, where the whole row is padding.
    fn rows(&self, mut see: impl FnMut(Option<usize>, std::ops::Range<usize>)) {
        let [channels, height, width] = self.input;
        let ([kh, kw], [_, oh, ow]) = (self.kernel, self.output);
        let ([stride_y, stride_x], [top, left]) = (self.stride, self.padding);
        for channel in 0..channels {
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                // Positions whose column, `position * stride_x + kx - left`, is inside.
                let start = left.saturating_sub(kx).div_ceil(stride_x).min(ow);
                let end = (width + left).saturating_sub(kx).div_ceil(stride_x).clamp(start, ow);
                for y in 0..oh {
                    let row = (y * stride_y + ky)
                        .checked_sub(top)
                        .filter(|&row| row < height && start < end);
                    match row {
                        Some(row) => see(
                            Some((channel * height + row) * width + start * stride_x + kx - left),
                            start..end,
                        ),
                        None => see(None, 0..0),
                    }
                }
            }
        }
    }
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
            (4, 6, [3, 3], [3, 2], [3, 4], [2, 5]),
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

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let device = Device::flex();
        let mut rng = rng(4, Purpose::Synthetic, 12);
        let mut random = |shape: [usize; 4]| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
            TensorData::new(values, shape)
        };
        let (x, weight) = (random([21, 8, 16, 16]), random([8, 8, 3, 3]));
        let step = || {
            let [x, weight] =
                [&x, &weight].map(|data| Tensor::<Auto, 4>::from_data(data.clone(), device.dispatch()).require_grad());
            let options = PaddedConvOptions::asymmetric([1, 1], [1, 1], [1, 1], [1, 1], 1);
            let y = Auto::convolve(x.clone(), weight.clone(), options);
            let gradients = y.clone().square().sum().backward();
            [y.inner(), x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()].map(to_host)
        };
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(step)
        };
        let one = with(1);
        for threads in [2, 3, 8] {
            assert!(with(threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn what_the_backend_does_better_is_left_to_it() {
        let device = Device::flex();
        let windows = |groups: usize, dilation: usize, height: usize| {
            let options = PaddedConvOptions::asymmetric([1, 1], [0, 0], [0, 1], [dilation, dilation], groups);
            Windows::new([2, 4, height, 8], [4, 4 / groups, 3, 3], &options, device.dispatch())
        };
        assert_eq!(windows(1, 1, 5).unwrap().output, [4, 3, 7]);
        assert!(windows(4, 1, 5).is_none() && windows(1, 2, 5).is_none());
        // Smaller than the window: the backend says so.
        assert!(windows(1, 1, 2).is_none());
    }
}
