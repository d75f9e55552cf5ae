//! Reference interpreter of the model file: `formats/FORMAT.md`, section "Arithmetic", in plain loops over named dimensions.
//!
//! It shares no code with the runtime, keeps every tensor in a vector of its own (no arena, so that no overlap can hide) and
//! computes in `i64`. It is slow, and meant to be read beside the page. The formats crate reads the file and decodes single
//! weights ([`Packing::decode`]); all else is here.

use adcorda_formats::{Element, Model, Op, Order, Packing, Requantize, Residual, Tensor, Weights, Window};

/// Runs `model` over one image: `pixels` in the shape of tensor 0, `u8`, HWC.
///
/// Gives the bytes of tensor 0 (after the input table), then those of each layer's output: int8 codes as `u8`, the logits as
/// little-endian `i32`.
///
/// # Panics
/// Where `pixels` is not an image of the model's input shape, and where any partial sum of an accumulator leaves `i32`: both
/// mean that [`Model::parse`] has let something through.
pub fn run(model: &Model<'_>, pixels: &[u8]) -> Vec<Vec<u8>> {
    let mut values = vec![input(model, pixels)];
    for (layer, y) in model.layers().zip(&model.tensors()[1..]) {
        let x = |id: u8| Activation {
            shape: &model.tensors()[usize::from(id)],
            codes: &values[usize::from(id)],
        };
        let output = match layer.op {
            Op::Conv2d {
                input,
                window,
                weights,
                requantize,
                residual,
            } => {
                let zero_point = residual.map_or(y.zero_point, |residual| residual.zero_point);
                let codes = conv2d(model, x(input), &window, &weights, &requantize, y, zero_point);
                match residual {
                    Some(residual) => add_residual(&codes, x(residual.input), &residual, y),
                    None => codes,
                }
            }
            Op::DepthwiseConv2d {
                input,
                window,
                weights,
                requantize,
            } => depthwise_conv2d(model, x(input), &window, &weights, &requantize, y),
            Op::Linear {
                input,
                weights,
                requantize,
            } => linear(model, x(input), &weights, &requantize, y),
            Op::Logits { input, weights } => logits(model, x(input), &weights, y),
            Op::Add {
                a,
                b,
                mul_a,
                mul_b,
                shift,
                min,
                max,
            } => {
                let (a, b) = (x(a), x(b));
                let (zero_a, zero_b) = (i64::from(a.shape.zero_point), i64::from(b.shape.zero_point));
                let mut codes = Vec::new();
                for i in 0..y.elements() {
                    let sum = (a.flat(i) - zero_a) * i64::from(mul_a) + (b.flat(i) - zero_b) * i64::from(mul_b);
                    codes.push((i64::from(y.zero_point) + round_shift(sum, shift)).clamp(min.into(), max.into()));
                }
                codes
            }
            Op::MaxPool { input, window } => max_pool(x(input), &window, y),
            Op::AvgPool {
                input,
                window,
                multiplier,
                shift,
            } => avg_pool(x(input), &window, multiplier, shift, y),
            Op::Subsample {
                input,
                stride,
                channels_before,
                channels_after: _,
            } => subsample(x(input), stride, channels_before, y),
        };
        values.push(to_bytes(y, &output));
    }
    values
}

fn input(model: &Model<'_>, pixels: &[u8]) -> Vec<u8> {
    let channels = usize::from(model.input().channels);
    assert_eq!(pixels.len(), model.input().elements(), "pixels of another image size");
    let table = model.input_table();
    let code = |(i, &v): (usize, &u8)| table[(i % channels) * 256 + usize::from(v)];
    pixels.iter().enumerate().map(code).collect()
}

/// `x: [h, w, c_in]` | weights `[c_out, kh, kw, c_in]` | `y: [oh, ow, c_out]`
fn conv2d(
    model: &Model<'_>,
    x: Activation<'_>,
    window: &Window,
    w: &Weights,
    r: &Requantize,
    y: &Tensor,
    zero_point: i8,
) -> Vec<i64> {
    let (kh, kw, c_in) = (
        usize::from(window.kernel_height),
        usize::from(window.kernel_width),
        usize::from(x.shape.channels),
    );
    let (oh, ow, c_out) = shape(y);
    let matrix = Matrix::new(model, w, Order::Blocks, c_out, kh * kw * c_in);
    let mut codes = Vec::new();
    for oy in 0..oh {
        for ox in 0..ow {
            for o in 0..c_out {
                let mut acc = Accumulator::new(matrix.bias(o));
                for ky in 0..kh {
                    for kx in 0..kw {
                        for i in 0..c_in {
                            let (iy, ix) = position(window, oy, ox, ky, kx);
                            let code = x.at(iy, ix, i).unwrap_or(i64::from(x.shape.zero_point));
                            acc.add(code * matrix.weight(o, (ky * kw + kx) * c_in + i));
                        }
                    }
                }
                codes.push(requantize(model, r, c_out, o, acc, zero_point));
            }
        }
    }
    codes
}

/// `x: [h, w, c]` | weights `[c, kh, kw]` | `y: [oh, ow, c]`
fn depthwise_conv2d(
    model: &Model<'_>,
    x: Activation<'_>,
    window: &Window,
    w: &Weights,
    r: &Requantize,
    y: &Tensor,
) -> Vec<i64> {
    let (kh, kw) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
    let (oh, ow, channels) = shape(y);
    let matrix = Matrix::new(model, w, Order::Channels, channels, kh * kw);
    let mut codes = Vec::new();
    for oy in 0..oh {
        for ox in 0..ow {
            for c in 0..channels {
                let mut acc = Accumulator::new(matrix.bias(c));
                for ky in 0..kh {
                    for kx in 0..kw {
                        let (iy, ix) = position(window, oy, ox, ky, kx);
                        let code = x.at(iy, ix, c).unwrap_or(i64::from(x.shape.zero_point));
                        acc.add(code * matrix.weight(c, ky * kw + kx));
                    }
                }
                codes.push(requantize(model, r, channels, c, acc, y.zero_point));
            }
        }
    }
    codes
}

/// `x: [h, w, c_in]` | weights `[c_out, h * w * c_in]` | `y: [1, 1, c_out]`
fn linear(model: &Model<'_>, x: Activation<'_>, w: &Weights, r: &Requantize, y: &Tensor) -> Vec<i64> {
    let (_, _, c_out) = shape(y);
    let matrix = Matrix::new(model, w, Order::Blocks, c_out, x.shape.elements());
    let row = |o| requantize(model, r, c_out, o, dot(&matrix, x, o), y.zero_point);
    (0..c_out).map(row).collect()
}

/// `x: [h, w, c_in]` | weights `[classes, h * w * c_in]` | `y: [1, 1, classes]`
fn logits(model: &Model<'_>, x: Activation<'_>, w: &Weights, y: &Tensor) -> Vec<i64> {
    let (_, _, classes) = shape(y);
    let matrix = Matrix::new(model, w, Order::Blocks, classes, x.shape.elements());
    (0..classes).map(|o| dot(&matrix, x, o).sum).collect()
}

/// `v`: the convolution's codes, in the shape of `y`
fn add_residual(v: &[i64], x: Activation<'_>, residual: &Residual, y: &Tensor) -> Vec<i64> {
    let (zero_v, zero_x) = (i64::from(residual.zero_point), i64::from(x.shape.zero_point));
    let mut codes = Vec::new();
    for (i, &v) in v.iter().enumerate() {
        let conv = (v - zero_v) * i64::from(residual.mul_conv);
        let sum = conv + (x.flat(i) - zero_x) * i64::from(residual.mul_residual);
        let code = i64::from(y.zero_point) + round_shift(sum, residual.shift);
        codes.push(code.clamp(residual.min.into(), residual.max.into()));
    }
    codes
}

fn dot(matrix: &Matrix<'_>, x: Activation<'_>, o: usize) -> Accumulator {
    let mut acc = Accumulator::new(matrix.bias(o));
    for i in 0..x.shape.elements() {
        acc.add(x.flat(i) * matrix.weight(o, i));
    }
    acc
}

/// `x: [h, w, c]` | `y: [oh, ow, c]`
fn max_pool(x: Activation<'_>, window: &Window, y: &Tensor) -> Vec<i64> {
    let (oh, ow, channels) = shape(y);
    let mut codes = Vec::new();
    for oy in 0..oh {
        for ox in 0..ow {
            for c in 0..channels {
                let mut greatest = None;
                for ky in 0..window.kernel_height.into() {
                    for kx in 0..window.kernel_width.into() {
                        let (iy, ix) = position(window, oy, ox, ky, kx);
                        greatest = greatest.max(x.at(iy, ix, c));
                    }
                }
                codes.push(greatest.expect("a window covers at least one position of the input"));
            }
        }
    }
    codes
}

/// `x: [h, w, c]` | `y: [oh, ow, c]`
fn avg_pool(x: Activation<'_>, window: &Window, multiplier: i32, shift: u8, y: &Tensor) -> Vec<i64> {
    let (oh, ow, channels) = shape(y);
    let mut codes = Vec::new();
    for oy in 0..oh {
        for ox in 0..ow {
            for c in 0..channels {
                let mut sum = 0;
                for ky in 0..window.kernel_height.into() {
                    for kx in 0..window.kernel_width.into() {
                        let (iy, ix) = position(window, oy, ox, ky, kx);
                        if let Some(code) = x.at(iy, ix, c) {
                            sum += code - i64::from(x.shape.zero_point);
                        }
                    }
                }
                let mean = round_shift(sum * i64::from(multiplier), shift);
                codes.push((i64::from(y.zero_point) + mean).clamp(-128, 127));
            }
        }
    }
    codes
}

/// `x: [h, w, n]` | `y: [ceil(h / stride), ceil(w / stride), channels_before + n + channels_after]`
fn subsample(x: Activation<'_>, stride: u8, channels_before: u16, y: &Tensor) -> Vec<i64> {
    let (oh, ow, channels) = shape(y);
    let (n, before) = (usize::from(x.shape.channels), usize::from(channels_before));
    let mut codes = Vec::new();
    for oy in 0..oh {
        for ox in 0..ow {
            for c in 0..channels {
                let (iy, ix) = (oy * usize::from(stride), ox * usize::from(stride));
                codes.push(if (before..before + n).contains(&c) {
                    x.at(iy as i64, ix as i64, c - before).expect("every step lies in the input")
                } else {
                    i64::from(y.zero_point)
                });
            }
        }
    }
    codes
}

/// The input position that output position `(oy, ox)` sees at `(ky, kx)` of the window; it may lie outside the input.
fn position(window: &Window, oy: usize, ox: usize, ky: usize, kx: usize) -> (i64, i64) {
    let along = |o: usize, stride: u8, k: usize, pad: u8| o as i64 * i64::from(stride) + k as i64 - i64::from(pad);
    (
        along(oy, window.stride_height, ky, window.pad_top),
        along(ox, window.stride_width, kx, window.pad_left),
    )
}

/// `(x + 2^(s - 1)) >> s`: division by `2^s`, halves rounded up.
fn round_shift(x: i64, s: u8) -> i64 {
    (x + (1 << (s - 1))) >> s
}

fn requantize(model: &Model<'_>, r: &Requantize, rows: usize, c: usize, acc: Accumulator, zero_point: i8) -> i64 {
    let multiplier = i64::from(model.multiplier(r, rows).get(c));
    let code = i64::from(zero_point) + round_shift(acc.sum * multiplier, r.shift);
    code.clamp(r.min.into(), r.max.into())
}

/// Height, width, channels.
fn shape(tensor: &Tensor) -> (usize, usize, usize) {
    (tensor.height.into(), tensor.width.into(), tensor.channels.into())
}

/// As the arena holds them.
fn to_bytes(tensor: &Tensor, values: &[i64]) -> Vec<u8> {
    assert_eq!(values.len(), tensor.elements());
    match tensor.element {
        Element::I8 => {
            let code = |&value| i8::try_from(value).expect("a code is an i8") as u8;
            values.iter().map(code).collect()
        }
        Element::I32 => {
            let logit = |&value| i32::try_from(value).expect("an accumulator is an i32").to_le_bytes();
            values.iter().flat_map(logit).collect()
        }
    }
}

/// An int8 tensor: its shape and its codes.
#[derive(Clone, Copy)]
struct Activation<'a> {
    shape: &'a Tensor,
    codes: &'a [u8],
}

impl Activation<'_> {
    /// Code `i` of the flattened tensor.
    fn flat(self, i: usize) -> i64 {
        i64::from(self.codes[i] as i8)
    }

    /// The code at `(y, x, c)`, `None` outside of the height and width.
    fn at(self, y: i64, x: i64, c: usize) -> Option<i64> {
        let (height, width, channels) = shape(self.shape);
        let (y, x) = (usize::try_from(y).ok()?, usize::try_from(x).ok()?);
        (y < height && x < width).then(|| self.flat((y * width + x) * channels + c))
    }
}

/// Packed weights `[rows][k]` and biases `[rows]`.
struct Matrix<'a> {
    model: &'a Model<'a>,
    weights: &'a Weights,
    packing: Packing,
}

impl<'a> Matrix<'a> {
    fn new(model: &'a Model<'a>, weights: &'a Weights, order: Order, rows: usize, k: usize) -> Self {
        let width = weights.width;
        Matrix {
            model,
            weights,
            packing: Packing { order, width, rows, k },
        }
    }

    fn weight(&self, row: usize, i: usize) -> i64 {
        i64::from(self.packing.decode(self.model.packed(self.weights), row, i))
    }

    fn bias(&self, row: usize) -> i64 {
        i64::from(self.model.bias(self.weights, self.packing.rows).get(row))
    }
}

/// A sum that must fit 32 bits at every step.
#[derive(Clone, Copy)]
struct Accumulator {
    sum: i64,
}

impl Accumulator {
    fn new(bias: i64) -> Self {
        Accumulator { sum: bias }
    }

    fn add(&mut self, product: i64) {
        self.sum += product;
        assert!(i32::try_from(self.sum).is_ok(), "an accumulator left 32 bits: {}", self.sum);
    }
}
