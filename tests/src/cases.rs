//! Small models with images: every operation at every width, over the shapes and values at which kernels go wrong.
//!
//! One list for every target. Each model is a few kilobytes and a run takes few thousand multiply-accumulates, so that an
//! emulator gets through all of them in seconds. Everything random follows from the case's name: the list is the same on
//! every machine, and a new case changes no other.

use adcorda_formats::{
    Element, Graph, Layer, Model, Op, Order, Provenance, Requantize, Residual, Scale, Scratch, Section, Tensor, TensorId,
    Weights, Width, Window,
};

/// A model and images to run it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Unique in the list: lower-case letters, digits and underscores.
    pub name: String,
    /// The model file.
    pub model: Vec<u8>,
    /// Images of the model's input size, `u8`, HWC.
    pub images: Vec<Vec<u8>>,
}

/// Every case, in the same order and with the same bytes each time.
///
/// Each comes in two arenas: a tight one with tensors at odd places, and one with the room and the alignment that fast kernels
/// want.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for width in Width::ALL {
        cases.extend(conv2d(width));
        cases.extend(fused(width));
        cases.extend(depthwise_conv2d(width));
        cases.push(linear(width));
        cases.extend(logits(width));
        cases.push(ends(width));
        cases.push(ends_long(width));
    }
    cases.extend(requantization());
    cases.extend(add());
    cases.extend(pools());
    cases.extend(subsample());
    cases.extend(networks());
    cases.into_iter().flat_map(|case| [case.roomy(), case]).collect()
}

/// The case of that name: for tests that need one real model.
///
/// # Panics
/// Where there is none.
pub fn named(name: &str) -> Case {
    let case = all().into_iter().find(|case| case.name == name);
    case.unwrap_or_else(|| panic!("there is no case {name}"))
}

fn conv2d(width: Width) -> Vec<Case> {
    let case = |name: &str, shape: [usize; 3], channels, window| {
        let mut net = Net::new(format!("conv2d_{}_{name}", width.name()), shape);
        net.conv2d(0, window, channels, Matrix::random(width));
        net.finish(width, 3)
    };
    vec![
        case("1x1", [3, 4, 5], 17, window([1, 1], [1, 1], [0; 4])),
        // 32 codes: whole words at each width.
        case("1x1_words", [2, 3, 32], 3, window([1, 1], [1, 1], [0; 4])),
        case("3x3_pad", [5, 4, 3], 5, window([3, 3], [1, 1], [1; 4])),
        // The padding of a stride-2 "same" convolution; with it, the last row and column count.
        case("3x3_stride2", [6, 8, 17], 3, window([3, 3], [2, 2], [0, 1, 0, 1])),
        // Most of the kernel is padding, and most windows touch all four sides.
        case("5x5_larger_than_input", [3, 2, 1], 5, window([5, 5], [1, 1], [4, 2, 3, 2])),
        // Rows are left over below, columns on the right.
        case("3x1_strides", [7, 8, 5], 1, window([3, 1], [2, 3], [1, 0, 0, 0])),
        // The shapes of ResNets, small: pixels and channels that leave a remainder in every kind of block.
        case("3x3_c16", [5, 5, 16], 10, window([3, 3], [1, 1], [1; 4])),
        case("3x3_c32_stride2", [8, 8, 32], 7, window([3, 3], [2, 2], [0, 1, 0, 1])),
        case("3x3_c4", [3, 7, 4], 9, window([3, 3], [1, 2], [1; 4])),
        case("3x3_rgb", [6, 7, 3], 16, window([3, 3], [1, 1], [1; 4])),
        case("3x3_no_padding", [5, 6, 16], 4, window([3, 3], [1, 1], [0; 4])),
        case("1x1_c16_stride2", [5, 6, 16], 12, window([1, 1], [2, 2], [0; 4])),
        case("1x1_c48", [3, 5, 48], 6, window([1, 1], [1, 1], [0; 4])),
        case("1x1_two_pixels", [1, 2, 16], 5, window([1, 1], [1, 1], [0; 4])),
        case("5x3_c8", [5, 4, 8], 6, window([5, 3], [1, 1], [2, 2, 1, 1])),
        // Longer than a 16-bit or a 14-bit lane can sum.
        case("3x3_c128", [2, 3, 128], 5, window([3, 3], [1, 1], [1; 4])),
    ]
}

/// Convolutions with a residual, over it or beside it.
fn fused(width: Width) -> Vec<Case> {
    let case = |name: &str, shape: [usize; 3], sum: Sum, in_place: bool| {
        let mut net = Net::new(format!("fused_{}_{name}", width.name()), shape);
        let same = window([3, 3], [1, 1], [1; 4]);
        let x = net.conv2d(0, same, 16, Matrix::random(width));
        let shortcut = net.conv2d(0, window([1, 1], [1, 1], [0; 4]), 16, Matrix::random(Width::W8));
        net.conv2d_residual(x, same, Matrix::random(width), sum, shortcut, in_place.then_some(shortcut));
        net.finish(width, 3)
    };
    let plain = Sum::new(17_000, 15_000, 15);
    let narrow = Sum {
        min: -100,
        max: 90,
        ..plain
    };
    vec![
        case("in_place", [5, 5, 8], plain, true),
        case("beside", [4, 4, 4], plain, false),
        case("one_pixel", [1, 1, 16], plain, true),
        case("ends", [3, 3, 8], Sum::new(32_767, 32_767, 16), true),
        case("clamp", [3, 4, 8], narrow, true),
        case("ends_deep", [3, 4, 8], Sum::new(32_767, 32_767, 30), true),
    ]
}

fn depthwise_conv2d(width: Width) -> Vec<Case> {
    let case = |name: &str, shape: [usize; 3], window| {
        let mut net = Net::new(format!("depthwise_conv2d_{}_{name}", width.name()), shape);
        net.depthwise_conv2d(0, window, Matrix::random(width));
        net.finish(width, 2)
    };
    vec![
        case("3x3_pad", [5, 4, 5], window([3, 3], [1, 1], [1; 4])),
        case("5x2_strides", [4, 7, 17], window([5, 2], [1, 2], [3, 4, 0, 1])),
        case("1x1", [3, 3, 3], window([1, 1], [2, 1], [0; 4])),
        case("3x3_c16", [6, 5, 16], window([3, 3], [1, 1], [1; 4])),
        case("3x3_c24_stride2", [7, 8, 24], window([3, 3], [2, 2], [0, 1, 0, 1])),
        case("3x3_c8_narrow", [9, 1, 8], window([3, 3], [1, 1], [1; 4])),
    ]
}

fn linear(width: Width) -> Case {
    let mut net = Net::new(format!("linear_{}", width.name()), [3, 2, 5]);
    let x = net.linear(0, 7, Matrix::random(width));
    net.linear(x, 17, Matrix::random(width));
    net.finish(width, 10)
}

fn logits(width: Width) -> Vec<Case> {
    let case = |name: &str, shape, classes| Net::new(format!("logits_{}_{name}", width.name()), shape).finish(width, classes);
    vec![case("3x5x17", [3, 5, 17], 10), case("one_class", [1, 1, 1], 1)]
}

/// Inputs, weights and biases at their ends, up to the last value that the bound on accumulators allows.
fn ends(width: Width) -> Case {
    let mut net = Net::new(format!("ends_{}", width.name()), [3, 3, 4]).input_codes(Table::Identity);
    net.zero_point(0, -128);
    let matrix = Matrix {
        codes: Codes::Ends,
        ..Matrix::random(width)
    };
    let x = net.conv2d(0, window([3, 3], [1, 1], [1; 4]), 4, matrix.clone());
    let x = net.depthwise_conv2d(x, window([2, 2], [1, 1], [0; 4]), matrix.clone());
    let x = net.linear(x, 4, matrix.clone());
    let y = net.conv2d(
        x,
        window([1, 1], [1, 1], [0; 4]),
        4,
        Matrix {
            bias: Bias::Ends,
            ..matrix.clone()
        },
    );
    net.logits(
        y,
        8,
        Matrix {
            bias: Bias::Ends,
            ..matrix
        },
    );
    let mut case = net.case();
    case.images = extreme_images(3 * 3 * 4);
    case
}

/// Inputs and weights at their ends for as long as `k` is in any usual network: what lanes of a wider word must not overflow at.
fn ends_long(width: Width) -> Case {
    let mut net = Net::new(format!("ends_long_{}", width.name()), [1, 4, 128]).input_codes(Table::Identity);
    net.zero_point(0, -128);
    let matrix = Matrix {
        codes: Codes::Ends,
        ..Matrix::random(width)
    };
    net.conv2d(0, window([3, 3], [1, 1], [1; 4]), 8, matrix);
    let mut case = net.finish(width, 2);
    case.images = extreme_images(4 * 128);
    case
}

/// What `Requantize` allows, to its ends; one row a multiplier.
fn requantization() -> Vec<Case> {
    const LARGEST: i32 = i32::MAX;
    const SMALLEST: i32 = 1 << 30;
    let every_pixel = |name: &str, width, (multipliers, shift): (&[i32], u8), (min, max), bias| {
        let mut net = Net::new(name.to_string(), [16, 16, 1]).input_codes(Table::Identity);
        let matrix = Matrix {
            width,
            codes: Codes::Random,
            bias,
            rules: Rules::Fixed(multipliers.to_vec(), shift, min, max),
        };
        net.conv2d(0, window([1, 1], [1, 1], [0; 4]), multipliers.len(), matrix);
        let mut case = net.finish(Width::W2, 2);
        case.images = vec![(0..=255).collect(), (0..=255).rev().collect()];
        case
    };
    let far = [LARGEST, -LARGEST, i32::MIN, SMALLEST, -SMALLEST, 0, 1];
    let ties = [SMALLEST, -SMALLEST, 3 << 28];
    let negative = [-LARGEST, -SMALLEST, -0x5555_5555];
    let plain = [SMALLEST, LARGEST];
    vec![
        every_pixel("requantize_ties", Width::W1, (&ties, 31), (-128, 127), Bias::Zero),
        every_pixel("requantize_ties_32", Width::W1, (&ties, 32), (-128, 127), Bias::Zero),
        every_pixel("requantize_ends_1", Width::W8, (&far, 1), (-128, 127), Bias::Ends),
        every_pixel("requantize_ends_31", Width::W8, (&far, 31), (-128, 127), Bias::Ends),
        every_pixel("requantize_ends_32", Width::W8, (&far, 32), (-128, 127), Bias::Ends),
        every_pixel("requantize_ends_62", Width::W8, (&far, 62), (-128, 127), Bias::Ends),
        every_pixel("requantize_ends_small_1", Width::W8, (&far, 1), (-128, 127), Bias::Zero),
        every_pixel("requantize_ends_small_32", Width::W8, (&far, 32), (-128, 127), Bias::Zero),
        every_pixel("requantize_negative", Width::W8, (&negative, 36), (-128, 127), Bias::Zero),
        every_pixel("requantize_zero", Width::W4, (&[0], 32), (-128, 127), Bias::Random),
        every_pixel("clamp_one_value", Width::W4, (&plain, 32), (-77, -77), Bias::Zero),
        every_pixel("clamp_lowest", Width::W4, (&plain, 32), (-128, -128), Bias::Zero),
        every_pixel("clamp_highest", Width::W4, (&plain, 34), (127, 127), Bias::Zero),
        every_pixel("clamp_narrow", Width::W2, (&plain, 32), (-3, 20), Bias::Zero),
    ]
}

fn add() -> Vec<Case> {
    let one = window([1, 1], [1, 1], [0; 4]);
    let every_sum = |name: &str, rule: Sum, over| {
        // Tensor 0 holds each code once; tensor 1 grows or falls with it, at another rate.
        let mut net = Net::new(name.to_string(), [16, 16, 1]).input_codes(Table::Identity);
        let matrix = Matrix {
            codes: Codes::Constant(37),
            ..Matrix::random(Width::W8)
        };
        let b = net.conv2d(0, one, 1, matrix);
        net.add(0, b, rule, over);
        let mut case = net.finish(Width::W2, 2);
        case.images.push((0..=255).collect());
        case
    };
    let plain = Sum::new(11_111, 22_222, 15);
    let mut cases = vec![
        every_sum("add", plain, None),
        every_sum("add_over_a", plain, Some(0)),
        every_sum("add_over_b", plain, Some(1)),
        every_sum("add_ties", Sum::new(1, 1, 1), None),
        every_sum("add_ties_deep", Sum::new(1 << 13, 3 << 13, 15), None),
        every_sum("add_ends", Sum::new(32_767, 32_767, 1), None),
        every_sum("add_ends_deep", Sum::new(32_767, 32_767, 30), None),
        every_sum("add_zero_multipliers", Sum::new(0, 0, 30), None),
        every_sum("add_only_b", Sum::new(0, 32_767, 15), Some(0)),
        every_sum(
            "add_clamp",
            Sum {
                min: -9,
                max: 40,
                ..plain
            },
            None,
        ),
    ];
    for (name, over) in [("add_to_itself", None), ("add_to_itself_over_itself", Some(0))] {
        let mut net = Net::new(name.to_string(), [3, 5, 3]);
        net.add(0, 0, Sum::new(9_000, 13_000, 15), over);
        cases.push(net.finish(Width::W4, 3));
    }
    // The first sum must not lie over an input that the second one reads again.
    let mut net = Net::new("add_twice".to_string(), [4, 3, 5]);
    let x = net.conv2d(0, one, 5, Matrix::random(Width::W4));
    let y = net.add(0, x, plain, None);
    let z = net.add(y, x, plain, Some(y));
    net.add(z, 0, plain, Some(0));
    cases.push(net.finish(Width::W1, 3));
    cases
}

fn pools() -> Vec<Case> {
    let max = |name: &str, shape, window| {
        let mut net = Net::new(format!("max_pool_{name}"), shape);
        net.max_pool(0, window);
        net.finish(Width::W4, 3)
    };
    let avg = |name: &str, shape, window, rule| {
        let mut net = Net::new(format!("avg_pool_{name}"), shape);
        net.avg_pool(0, window, rule);
        net.finish(Width::W4, 3)
    };
    vec![
        max("2x2", [6, 5, 3], window([2, 2], [2, 2], [0; 4])),
        max("3x3_pad", [5, 4, 5], window([3, 3], [2, 2], [1; 4])),
        max("larger_than_input", [2, 3, 17], window([4, 5], [1, 1], [3, 2, 0, 4])),
        max("1x3_strides", [3, 8, 1], window([1, 3], [2, 3], [0, 0, 2, 0])),
        avg("2x2", [6, 5, 3], window([2, 2], [2, 2], [0; 4]), None),
        avg("3x3_pad", [5, 4, 5], window([3, 3], [1, 2], [1, 0, 2, 1]), None),
        avg("global", [5, 3, 17], window([5, 3], [1, 1], [0; 4]), None),
        avg("larger_than_input", [2, 3, 1], window([4, 5], [1, 1], [3, 2, 0, 4]), None),
        avg("ties", [8, 6, 3], window([2, 1], [1, 1], [0; 4]), Some((1 << 30, 31))),
        avg("ends", [3, 3, 2], window([3, 3], [1, 1], [2; 4]), Some((i32::MAX, 1))),
        avg("ends_deep", [3, 3, 2], window([3, 3], [1, 1], [2; 4]), Some((i32::MAX, 62))),
    ]
}

fn subsample() -> Vec<Case> {
    let case = |name: &str, shape, stride, before, after| {
        let mut net = Net::new(format!("subsample_{name}"), shape);
        net.subsample(0, stride, before, after);
        net.finish(Width::W4, 3)
    };
    vec![
        case("stride2_odd", [5, 7, 3], 2, 2, 3),
        case("stride2_even", [4, 6, 5], 2, 1, 0),
        case("stride1", [2, 3, 5], 1, 0, 4),
        case("copy", [2, 3, 5], 1, 0, 0),
        case("stride_larger_than_input", [3, 2, 17], 255, 3, 3),
    ]
}

fn networks() -> Vec<Case> {
    let same = window([3, 3], [1, 1], [1; 4]);
    let half = window([3, 3], [2, 2], [1; 4]);
    let one = window([1, 1], [1, 1], [0; 4]);

    let mut point = Net::new("one_pixel".to_string(), [1, 1, 3]);
    let x = point.conv2d(0, same, 5, Matrix::random(Width::W4));
    let x = point.depthwise_conv2d(x, same, Matrix::random(Width::W2));
    let x = point.max_pool(x, same);
    let x = point.avg_pool(x, same, None);
    point.subsample(x, 2, 0, 1);

    let mut line = Net::new("one_row".to_string(), [1, 17, 1]);
    let x = line.conv2d(0, window([1, 5], [1, 2], [0, 0, 2, 2]), 3, Matrix::random(Width::W2));
    line.max_pool(x, window([1, 2], [1, 2], [0; 4]));

    let mut separable = Net::new("separable".to_string(), [8, 8, 3]);
    let x = separable.conv2d(0, half, 8, Matrix::random(Width::W4));
    let x = separable.depthwise_conv2d(x, same, Matrix::random(Width::W8));
    let x = separable.conv2d(x, one, 12, Matrix::random(Width::W2));
    let x = separable.depthwise_conv2d(x, half, Matrix::random(Width::W4));
    let x = separable.conv2d(x, one, 16, Matrix::random(Width::W1));
    separable.avg_pool(x, window([2, 2], [1, 1], [0; 4]), None);

    vec![
        point.finish(Width::W4, 3),
        line.finish(Width::W2, 3),
        separable.finish(Width::W4, 10),
        residual("residual", [9, 8, 3], 8),
        residual("residual_small", [4, 3, 1], 2),
    ]
}

/// Every operation and width in one network, with residual sums in place.
fn residual(name: &str, shape: [usize; 3], channels: usize) -> Case {
    let same = window([3, 3], [1, 1], [1; 4]);
    let half = window([3, 3], [2, 2], [1; 4]);
    let plain = Sum::new(17_000, 15_000, 15);

    let mut net = Net::new(name.to_string(), shape);
    let stem = net.conv2d(0, same, channels, Matrix::random(Width::W8));
    let x = net.conv2d(stem, same, channels, Matrix::random(Width::W1));
    let x = net.conv2d(x, same, channels, Matrix::random(Width::W2));
    let block = net.add(x, stem, plain, Some(x));
    let x = net.conv2d(block, half, 2 * channels, Matrix::random(Width::W2));
    let x = net.depthwise_conv2d(x, same, Matrix::random(Width::W4));
    let shortcut = net.subsample(block, 2, channels / 2, channels - channels / 2);
    let x = net.add(x, shortcut, plain, Some(shortcut));
    let x = net.max_pool(x, window([2, 2], [1, 1], [1, 0, 0, 1]));
    let [height, width, _] = net.shape(x);
    let x = net.avg_pool(x, window([height as u8, width as u8], [1, 1], [0; 4]), None);
    net.linear(x, channels + 1, Matrix::random(Width::W1));
    net.finish(Width::W4, 3)
}

fn window(kernel: [u8; 2], stride: [u8; 2], [pad_top, pad_bottom, pad_left, pad_right]: [u8; 4]) -> Window {
    Window {
        kernel_height: kernel[0],
        kernel_width: kernel[1],
        stride_height: stride[0],
        stride_width: stride[1],
        pad_top,
        pad_bottom,
        pad_left,
        pad_right,
    }
}

/// All lowest, all highest, and both by turns: with [`Table::Identity`] these are the ends of the codes.
fn extreme_images(pixels: usize) -> Vec<Vec<u8>> {
    let turns = (0..pixels).map(|i| if i % 3 == 0 { 0 } else { 255 }).collect();
    vec![vec![0; pixels], vec![255; pixels], turns]
}

/// What the input table holds.
enum Table {
    /// Pixel `v` is code `v - 128`.
    Identity,
    /// Any code for any pixel, another one in each channel.
    Random,
}

/// A weight matrix to be drawn, with its biases and its rules of requantization.
#[derive(Clone)]
struct Matrix {
    width: Width,
    codes: Codes,
    bias: Bias,
    rules: Rules,
}

impl Matrix {
    fn random(width: Width) -> Matrix {
        Matrix {
            width,
            codes: Codes::Random,
            bias: Bias::Random,
            rules: Rules::Fitted,
        }
    }
}

#[derive(Clone)]
enum Codes {
    /// Any of the width.
    Random,
    /// All lowest in some rows, all highest in the others.
    Ends,
    /// This one.
    Constant(i8),
}

#[derive(Clone, Copy)]
enum Bias {
    /// That of a real layer: small, with `- zero_point_in * sum(w)`.
    Random,
    /// The largest that the bound on accumulators allows: positive in two rows, negative in the next two.
    Ends,
    /// 0.
    Zero,
}

#[derive(Clone)]
enum Rules {
    /// So that most outputs lie within the range of a code, with multipliers of both signs.
    Fitted,
    /// These multipliers, row after row, with this shift and this clamp.
    Fixed(Vec<i32>, u8, i8, i8),
}

/// The numbers of an `Add`.
#[derive(Clone, Copy)]
struct Sum {
    mul_a: i16,
    mul_b: i16,
    shift: u8,
    min: i8,
    max: i8,
}

impl Sum {
    fn new(mul_a: i16, mul_b: i16, shift: u8) -> Sum {
        Sum {
            mul_a,
            mul_b,
            shift,
            min: -128,
            max: 127,
        }
    }
}

/// A model under construction. The arena is planned at the end.
struct Net {
    name: String,
    random: Random,
    table: Vec<[i8; 256]>,
    section: Section,
    tensors: Vec<Tensor>,
    ops: Vec<Op>,
    /// For each tensor the one in whose place it lies.
    over: Vec<Option<TensorId>>,
    /// Largest `k`.
    scratch: usize,
}

impl Net {
    fn new(name: String, shape: [usize; 3]) -> Net {
        let mut net = Net {
            random: Random::new(&name),
            name,
            table: Vec::new(),
            section: Section::new(),
            tensors: Vec::new(),
            ops: Vec::new(),
            over: Vec::new(),
            scratch: 0,
        };
        let zero_point = net.random.code();
        net.push_tensor(shape, Element::I8, zero_point, None);
        net.input_codes(Table::Random)
    }

    fn input_codes(mut self, table: Table) -> Net {
        let channels = usize::from(self.tensors[0].channels);
        self.table = (0..channels)
            .map(|_| {
                std::array::from_fn(|v| match table {
                    Table::Identity => (v as i32 - 128) as i8,
                    Table::Random => self.random.code(),
                })
            })
            .collect();
        self
    }

    fn zero_point(&mut self, tensor: TensorId, zero_point: i8) {
        self.tensors[usize::from(tensor)].zero_point = zero_point;
    }

    fn conv2d(&mut self, input: TensorId, window: Window, channels: usize, matrix: Matrix) -> TensorId {
        let k = window.positions() * self.shape(input)[2];
        let weights = self.weights(Order::Blocks, input, channels, k, &matrix);
        let requantize = self.requantize(channels, k, &matrix);
        let shape = self.windowed(input, &window, channels);
        let op = Op::Conv2d {
            input,
            window,
            weights,
            requantize,
            residual: None,
        };
        self.rescaling(op, shape)
    }

    /// A convolution to as many channels as `residual` has, which is then added. In the place of `over`, where given.
    fn conv2d_residual(
        &mut self,
        input: TensorId,
        window: Window,
        matrix: Matrix,
        sum: Sum,
        residual: TensorId,
        over: Option<TensorId>,
    ) -> TensorId {
        let output = self.conv2d(input, window, self.shape(residual)[2], matrix);
        let zero_point = self.tensors[usize::from(output)].zero_point;
        if let Some(Op::Conv2d { residual: slot, .. }) = self.ops.last_mut() {
            *slot = Some(Residual {
                input: residual,
                zero_point,
                mul_conv: sum.mul_a,
                mul_residual: sum.mul_b,
                shift: sum.shift,
                min: sum.min,
                max: sum.max,
            });
        }
        self.over[usize::from(output)] = over;
        self.tensors[usize::from(output)].zero_point = self.random.code();
        output
    }

    fn depthwise_conv2d(&mut self, input: TensorId, window: Window, matrix: Matrix) -> TensorId {
        let (channels, k) = (self.shape(input)[2], window.positions());
        let weights = self.weights(Order::Channels, input, channels, k, &matrix);
        let requantize = self.requantize(channels, k, &matrix);
        let shape = self.windowed(input, &window, channels);
        let op = Op::DepthwiseConv2d {
            input,
            window,
            weights,
            requantize,
        };
        self.rescaling(op, shape)
    }

    fn linear(&mut self, input: TensorId, channels: usize, matrix: Matrix) -> TensorId {
        let k = self.shape(input).iter().product();
        let weights = self.weights(Order::Blocks, input, channels, k, &matrix);
        let requantize = self.requantize(channels, k, &matrix);
        let op = Op::Linear {
            input,
            weights,
            requantize,
        };
        self.rescaling(op, [1, 1, channels])
    }

    fn logits(&mut self, input: TensorId, classes: usize, matrix: Matrix) {
        let k = self.shape(input).iter().product();
        let weights = self.weights(Order::Blocks, input, classes, k, &matrix);
        self.ops.push(Op::Logits { input, weights });
        self.push_tensor([1, 1, classes], Element::I32, 0, None);
    }

    /// In the place of `over`, where given.
    fn add(&mut self, a: TensorId, b: TensorId, sum: Sum, over: Option<TensorId>) -> TensorId {
        self.ops.push(Op::Add {
            a,
            b,
            mul_a: sum.mul_a,
            mul_b: sum.mul_b,
            shift: sum.shift,
            min: sum.min,
            max: sum.max,
        });
        let zero_point = self.random.code();
        self.push_tensor(self.shape(a), Element::I8, zero_point, over)
    }

    fn max_pool(&mut self, input: TensorId, window: Window) -> TensorId {
        let shape = self.windowed(input, &window, self.shape(input)[2]);
        self.copying(Op::MaxPool { input, window }, input, shape)
    }

    /// By `rule` (multiplier and shift), or as a mean.
    fn avg_pool(&mut self, input: TensorId, window: Window, rule: Option<(i32, u8)>) -> TensorId {
        let mean = || {
            let positions = window.positions() as u64;
            // 1 / positions with 31 significant bits.
            let shift = 30 + positions.next_power_of_two().ilog2() as u8;
            (((1u64 << shift) / positions) as i32, shift)
        };
        let (multiplier, shift) = rule.unwrap_or_else(mean);
        let shape = self.windowed(input, &window, self.shape(input)[2]);
        let op = Op::AvgPool {
            input,
            window,
            multiplier,
            shift,
        };
        self.rescaling(op, shape)
    }

    fn subsample(&mut self, input: TensorId, stride: u8, before: usize, after: usize) -> TensorId {
        let [height, width, channels] = self.shape(input);
        let shape = [
            height.div_ceil(stride.into()),
            width.div_ceil(stride.into()),
            before + channels + after,
        ];
        let op = Op::Subsample {
            input,
            stride,
            channels_before: before as u16,
            channels_after: after as u16,
        };
        self.copying(op, input, shape)
    }

    /// Appends random logits over the last tensor.
    fn finish(mut self, width: Width, classes: usize) -> Case {
        self.logits(self.ops.len() as u8, classes, Matrix::random(width));
        self.case()
    }

    /// The model, with an image of random pixels and one of lowest and highest pixels.
    fn case(mut self) -> Case {
        let pixels = self.tensors[0].elements();
        let images = vec![
            (0..pixels).map(|_| self.random.within(0, 255) as u8).collect(),
            (0..pixels).map(|_| self.random.within(0, 1) as u8 * 255).collect(),
        ];
        let input_table = self.section.push_table(&self.table);
        let (arena_bytes, scratch) = self.place();
        let name = self.name;
        let graph = Graph {
            name: &name,
            provenance: Provenance {
                top1: u16::MAX,
                ..Provenance::default()
            },
            arena_bytes,
            input_table,
            tensors: self.tensors,
            layers: self
                .ops
                .iter()
                .map(|&op| Layer {
                    name: op.name(),
                    op,
                    scratch,
                })
                .collect(),
            labels: Vec::new(),
        };
        let classes = graph.tensors[graph.tensors.len() - 1].channels;
        let labels: Vec<String> = (0..classes).map(|class| format!("c{class}")).collect();
        let graph = Graph {
            labels: labels.iter().map(String::as_str).collect(),
            ..graph
        };
        let model = graph.to_model_bytes(self.section.as_bytes());
        let model = model.unwrap_or_else(|error| panic!("case {name}: {error}"));
        Case { name, model, images }
    }

    /// Puts each tensor at the lowest offset at which it meets none that is in use. The scratch range comes first in every
    /// other case: as `k` is often odd, so are then the offsets.
    fn place(&mut self) -> (u32, Scratch) {
        let bytes = self.scratch as u32;
        let start = if self.random.within(0, 1) == 0 { bytes } else { 0 };
        let end = place(&mut self.tensors, &self.ops, &self.over, start, 1);
        let offset = if start == 0 { end } else { 0 };
        (end + bytes - start, Scratch { offset, bytes })
    }

    fn shape(&self, tensor: TensorId) -> [usize; 3] {
        let tensor = &self.tensors[usize::from(tensor)];
        [tensor.height.into(), tensor.width.into(), tensor.channels.into()]
    }

    fn windowed(&self, input: TensorId, window: &Window, channels: usize) -> [usize; 3] {
        let [height, width, _] = self.shape(input);
        let (height, width) = window.output(height, width).expect("the kernel fits");
        [height, width, channels]
    }

    /// Appends a layer whose output has codes of its own.
    fn rescaling(&mut self, op: Op, shape: [usize; 3]) -> TensorId {
        self.ops.push(op);
        let zero_point = self.random.within(0, 200) as i32 - 100;
        self.push_tensor(shape, Element::I8, zero_point as i8, None)
    }

    /// Appends a layer whose output has the codes of its input.
    fn copying(&mut self, op: Op, input: TensorId, shape: [usize; 3]) -> TensorId {
        self.ops.push(op);
        self.push_tensor(shape, Element::I8, self.tensors[usize::from(input)].zero_point, None)
    }

    fn push_tensor(&mut self, shape: [usize; 3], element: Element, zero_point: i8, over: Option<TensorId>) -> TensorId {
        self.tensors.push(Tensor {
            height: shape[0] as u16,
            width: shape[1] as u16,
            channels: shape[2] as u16,
            element,
            zero_point,
            scale: Scale::from_f32(0.125),
            offset: 0,
        });
        self.over.push(over);
        (self.tensors.len() - 1) as TensorId
    }

    fn weights(&mut self, order: Order, input: TensorId, rows: usize, k: usize, matrix: &Matrix) -> Weights {
        let width = matrix.width;
        let mut codes = Vec::new();
        for row in 0..rows {
            for _ in 0..k {
                codes.push(match matrix.codes {
                    Codes::Random => self.random.weight(width),
                    // Both and each of two rows that share a lane.
                    Codes::Ends if matches!(row % 8, 0 | 3 | 6 | 7) => width.min_code(),
                    Codes::Ends => width.max_code(),
                    Codes::Constant(code) => code,
                });
            }
        }
        let zero_point = i32::from(self.tensors[usize::from(input)].zero_point);
        let largest_bias = i32::MAX - k as i32 * 128 * width.max_magnitude();
        let bias: Vec<i32> = codes
            .chunks(k)
            .enumerate()
            .map(|(row, codes)| match matrix.bias {
                Bias::Random => {
                    let sum: i32 = codes.iter().copied().map(i32::from).sum();
                    self.random.within(0, 200) as i32 - 100 - zero_point * sum
                }
                Bias::Ends if row % 4 < 2 => largest_bias,
                Bias::Ends => -largest_bias,
                Bias::Zero => 0,
            })
            .collect();
        self.scratch = self.scratch.max(k);
        Weights {
            width,
            offset: self.section.push_rows(order, width, &codes, k).expect("codes of the width"),
            bias: self.section.push_i32s(&bias),
        }
    }

    fn requantize(&mut self, rows: usize, k: usize, matrix: &Matrix) -> Requantize {
        let (multipliers, shift, min, max) = match &matrix.rules {
            Rules::Fitted => {
                // The accumulator's usual magnitude is 100 * sqrt(k) * w, in bits; a code has 7.
                let weight = match matrix.bias {
                    Bias::Ends => 24,
                    Bias::Random | Bias::Zero => matrix.width.max_magnitude().ilog2() + k.ilog2() / 2,
                };
                let multipliers = (0..rows)
                    .map(|_| {
                        let multiplier = self.random.within(1 << 30, i32::MAX as usize) as i32 >> weight;
                        let sign = if self.random.within(0, 3) == 0 { -1 } else { 1 };
                        sign * multiplier
                    })
                    .collect();
                (multipliers, 32, -128, 127)
            }
            Rules::Fixed(multipliers, shift, min, max) => (multipliers.clone(), *shift, *min, *max),
        };
        Requantize {
            multiplier: self.section.push_i32s(&multipliers),
            shift,
            min,
            max,
        }
    }
}

/// Sets the offset of each tensor: the lowest multiple of `alignment` from `start` at which it meets none that is in use, or that
/// of the tensor that it is to lie `over`. Gives the end.
fn place(tensors: &mut [Tensor], ops: &[Op], over: &[Option<TensorId>], start: u32, alignment: u32) -> u32 {
    let last_reader = |tensor: usize| {
        let reads = |op: &Op| op.inputs().any(|input| usize::from(input) == tensor);
        ops.iter().rposition(reads)
    };
    let mut end = start;
    for t in 0..tensors.len() {
        let bytes = tensors[t].bytes() as u32;
        let alignment = alignment.max(tensors[t].element.bytes() as u32);
        let in_use: Vec<Tensor> = (0..t)
            .filter(|&other| last_reader(other) >= Some(t - 1))
            .map(|other| tensors[other])
            .collect();
        let free = |offset: &u32| {
            let apart = |other: &Tensor| offset + bytes <= other.offset || other.offset + other.bytes() as u32 <= *offset;
            in_use.iter().all(apart)
        };
        tensors[t].offset = match over[t] {
            Some(other) => tensors[usize::from(other)].offset,
            None => (start.next_multiple_of(alignment)..)
                .step_by(alignment as usize)
                .find(free)
                .expect("there is room after the last tensor"),
        };
        end = end.max(tensors[t].offset + bytes);
    }
    end
}

impl Case {
    /// The same network in an arena with room for the columns of eight pixels and all tensors at multiples of 8.
    fn roomy(&self) -> Case {
        let model = Model::parse(&self.model).expect("a valid model");
        let mut graph = Graph::from(&model);
        let ops: Vec<Op> = graph.layers.iter().map(|layer| layer.op).collect();
        let mut over = vec![None];
        for (op, y) in ops.iter().zip(&graph.tensors[1..]) {
            let under = |&x: &TensorId| op.may_overwrite(x) && graph.tensors[usize::from(x)].offset == y.offset;
            over.push(op.inputs().find(under));
        }
        let offset = place(&mut graph.tensors, &ops, &over, 0, 8).next_multiple_of(8);
        let mut most = 0;
        for (layer, y) in graph.layers.iter_mut().zip(&graph.tensors[1..]) {
            let x = layer.op.inputs().next().expect("an input");
            let x = &graph.tensors[usize::from(x)];
            let bytes = match (layer.op.packing(x, y), layer.op.window()) {
                (Some(packing), Some(window)) if packing.order == Order::Channels => {
                    let columns = usize::from(x.width) + usize::from(window.kernel_width);
                    8 * usize::from(window.kernel_height) * columns + 16 * packing.k + 64
                }
                (Some(packing), _) => 8 * packing.k.next_multiple_of(32),
                (None, _) => 0,
            } as u32;
            layer.scratch = Scratch { offset, bytes };
            most = most.max(bytes);
        }
        graph.arena_bytes = offset + most;
        Case {
            name: format!("{}_roomy", self.name),
            model: graph.to_model_bytes(model.weights_section()).expect("a valid model"),
            images: self.images.clone(),
        }
    }
}

/// SplitMix64, seeded by a name.
struct Random(u64);

impl Random {
    /// FNV-1a of the name.
    fn new(name: &str) -> Random {
        let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
    }

    /// Evenly from `low..=high`, nearly.
    fn within(&mut self, low: usize, high: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + ((z ^ (z >> 31)) % (high - low + 1) as u64) as usize
    }

    /// An int8 code, one in eight at an end.
    fn code(&mut self) -> i8 {
        match self.within(0, 15) {
            0 => i8::MIN,
            1 => i8::MAX,
            _ => self.within(0, 255) as u8 as i8,
        }
    }

    /// A weight that the width has.
    fn weight(&mut self, width: Width) -> i8 {
        let (low, high) = (i32::from(width.min_code()), i32::from(width.max_code()));
        loop {
            let code = (low + self.within(0, (high - low) as usize) as i32) as i8;
            if width != Width::W1 || code != 0 {
                return code;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::oracle;

    #[test]
    fn every_operation_occurs_at_every_width() {
        let mut found = HashSet::new();
        for case in all() {
            let model = Model::parse(&case.model).expect("a valid model");
            found.extend(
                model
                    .layers()
                    .map(|layer| (layer.op.name(), layer.op.weights().map(|w| w.width))),
            );
        }
        for op in ["conv2d", "depthwise_conv2d", "linear", "logits"] {
            for width in Width::ALL {
                assert!(found.remove(&(op, Some(width))), "no {op} at {}", width.name());
            }
        }
        for op in ["add", "max_pool", "avg_pool", "subsample"] {
            assert!(found.remove(&(op, None)), "no {op}");
        }
        assert!(found.is_empty(), "operations that this test does not know: {found:?}");
    }

    #[test]
    fn sums_lie_over_each_input_and_over_none() {
        let mut found = HashSet::new();
        for case in all() {
            let model = Model::parse(&case.model).expect("a valid model");
            for (layer, y) in model.layers().zip(&model.tensors()[1..]) {
                if let Op::Add { a, b, .. } = layer.op {
                    let over = |x: TensorId| model.tensors()[usize::from(x)].offset == y.offset;
                    found.insert((a == b, over(a), over(b)));
                }
            }
        }
        for place in [
            (false, false, false),
            (false, true, false),
            (false, false, true),
            (true, false, false),
            (true, true, true),
        ] {
            assert!(found.contains(&place), "no sum with {place:?} (itself, over a, over b)");
        }
    }

    #[test]
    fn cases_are_small() {
        for case in all() {
            let model = Model::parse(&case.model).expect("a valid model");
            let macs: u64 = model
                .layers()
                .zip(&model.tensors()[1..])
                .map(|(layer, y)| {
                    let x = layer.op.inputs().next().expect("an input");
                    layer.op.macs(&model.tensors()[usize::from(x)], y)
                })
                .sum();
            assert!(macs < 200_000, "{}: {macs} multiply-accumulates", case.name);
            assert!(case.model.len() < 50_000, "{}: {} bytes", case.name, case.model.len());
            assert!(model.arena_bytes() < 20_000, "{}: {} bytes", case.name, model.arena_bytes());
        }
    }

    #[test]
    fn names_are_unique_and_plain() {
        let mut names = HashSet::new();
        for case in all() {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(case.name.chars().all(plain), "{}", case.name);
            assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
        }
    }

    #[test]
    fn the_list_is_the_same_each_time() {
        assert_eq!(all(), all());
    }

    /// A kernel that computes nothing right would still pass a case whose outputs all saturate.
    #[test]
    fn outputs_are_varied() {
        for case in all() {
            let meant = ["ends", "clamp", "zero", "one_pixel", "one_class"];
            if meant.iter().any(|part| case.name.contains(part)) {
                continue;
            }
            let model = Model::parse(&case.model).expect("a valid model");
            let outputs = oracle::run(&model, &case.images[0]);
            for (layer, output) in model.layers().zip(&outputs[1..]) {
                let inside: HashSet<_> = output.iter().filter(|&&code| code != 0x80 && code != 0x7f).collect();
                assert!(
                    inside.len() >= 3.min(output.len()),
                    "{}: {} gives {output:?}",
                    case.name,
                    layer.name
                );
            }
        }
    }
}
