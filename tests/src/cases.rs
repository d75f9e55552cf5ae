//! Small models with images: every operation at every width, over the shapes and values at which kernels go wrong.
//!
//! One list for every target. Most models are a few kilobytes and a run takes few thousand multiply-accumulates, so that an
//! emulator gets through all of them in seconds. Everything random follows from the case's name: the list is the same on
//! every machine, and a new case changes no other.

use adcorda_formats::{Graph, Model, Op, Order, Scratch, TensorId, Width};

use crate::net::{Bias, Codes, Matrix, Net, Random, Rules, Sum, Table, place, window};

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

/// Networks of shapes that nobody thought of.
const RANDOM: usize = 100;

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
        cases.push(ends_longest(width));
        cases.extend(ends_of_lanes(width));
        cases.push(ends_depthwise(width));
    }
    cases.extend(requantization());
    cases.extend(add());
    cases.extend(pools());
    cases.extend(subsample());
    cases.extend(networks());
    cases.extend((0..RANDOM).map(random));
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
        // Kernels longer than lists of addresses are.
        case("1x20", [2, 24, 4], 6, window([1, 20], [1, 1], [0, 0, 9, 10])),
        case("20x1", [24, 2, 4], 6, window([20, 1], [1, 1], [9, 10, 0, 0])),
        // Longer than a 16-bit or a 14-bit lane can sum.
        case("3x3_c128", [2, 3, 128], 5, window([3, 3], [1, 1], [1; 4])),
    ]
}

/// Convolutions with a residual, over it or beside it.
fn fused(width: Width) -> Vec<Case> {
    let case = |name: &str, shape: [usize; 3], channels: usize, sum: Sum, in_place: bool| {
        let mut net = Net::new(format!("fused_{}_{name}", width.name()), shape);
        let same = window([3, 3], [1, 1], [1; 4]);
        let x = net.conv2d(0, same, channels, Matrix::random(width));
        let shortcut = net.conv2d(0, window([1, 1], [1, 1], [0; 4]), channels, Matrix::random(Width::W8));
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
        case("in_place", [5, 5, 8], 16, plain, true),
        case("beside", [4, 4, 4], 16, plain, false),
        // Two pixels and one or two rows are left over: none of them may be added twice.
        case("left_over", [4, 5, 8], 18, plain, true),
        case("left_over_odd", [2, 4, 4], 5, plain, true),
        case("one_pixel", [1, 1, 16], 16, plain, true),
        case("ends", [3, 3, 8], 16, Sum::new(32_767, 32_767, 16), true),
        case("clamp", [3, 4, 8], 16, narrow, true),
        case("ends_deep", [3, 4, 8], 16, Sum::new(32_767, 32_767, 30), true),
    ]
}

/// Network `number` of three layers with any shapes: a convolution; another one, depthwise or not, over a residual or not; and
/// one of any width.
fn random(number: usize) -> Case {
    let mut random = Random::new(&format!("random {number}"));
    let channels = |random: &mut Random| match random.within(0, 3) {
        0 => 4 * random.within(1, 12),
        1 => 16 * random.within(1, 4),
        _ => random.within(1, 40),
    };
    let any_window = |[height, width, _]: [usize; 3], random: &mut Random| {
        let largest = if random.within(0, 4) == 0 { 8 } else { 3 };
        let mut axis = |size: usize| {
            let kernel = random.within(1, largest);
            let (before, after) = (random.within(0, kernel - 1), random.within(0, kernel - 1));
            // Not larger than what it moves over.
            let kernel = kernel.min(size + before + after);
            [kernel, random.within(1, 3), before, after].map(|n| n as u8)
        };
        let [rows, columns] = [axis(height), axis(width)];
        let padding = [rows[2], rows[3], columns[2], columns[3]];
        window([rows[0], columns[0]], [rows[1], columns[1]], padding)
    };
    let width = |random: &mut Random| Width::ALL[random.within(0, 3)];
    let shape = [random.within(1, 9), random.within(1, 9), channels(&mut random)];
    let mut net = Net::new(format!("random_{number}"), shape);
    let first = any_window(shape, &mut random);
    let x = net.conv2d(0, first, channels(&mut random), Matrix::random(width(&mut random)));
    let matrix = Matrix::random(width(&mut random));
    let second = any_window(net.shape(x), &mut random);
    let y = match random.within(0, 2) {
        0 => net.depthwise_conv2d(x, second, matrix),
        1 => net.conv2d(x, second, channels(&mut random), matrix),
        _ => {
            let (size, many) = (random.within(0, 1), net.shape(x)[2]);
            let same = [window([1, 1], [1, 1], [0; 4]), window([3, 3], [1, 1], [1; 4])][size];
            let y = net.conv2d(x, same, many, matrix.clone());
            let sum = Sum::new(17_000, 15_000, random.within(13, 16) as u8);
            let over = (random.within(0, 1) == 0).then_some(x);
            net.conv2d_residual(y, same, matrix, sum, x, over)
        }
    };
    if random.within(0, 1) == 0 {
        net.linear(y, channels(&mut random), Matrix::random(width(&mut random)));
    }
    net.finish(width(&mut random), random.within(1, 12))
}

fn depthwise_conv2d(width: Width) -> Vec<Case> {
    let case = |name: &str, shape: [usize; 3], window| {
        let mut net = Net::new(format!("depthwise_conv2d_{}_{name}", width.name()), shape);
        net.depthwise_conv2d(0, window, Matrix::random(width));
        net.finish(width, 2)
    };
    let mut clamped = Net::new(format!("depthwise_conv2d_{}_clamped", width.name()), [5, 4, 4]);
    let multipliers = vec![(1 << 30) >> width.max_magnitude().ilog2(); 4];
    let matrix = Matrix {
        rules: Rules::Fixed(multipliers, 32, -90, 80),
        ..Matrix::random(width)
    };
    clamped.depthwise_conv2d(0, window([3, 3], [1, 1], [1; 4]), matrix);
    vec![
        case("3x3_pad", [5, 4, 5], window([3, 3], [1, 1], [1; 4])),
        case("5x2_strides", [4, 7, 17], window([5, 2], [1, 2], [3, 4, 0, 1])),
        case("1x1", [3, 3, 3], window([1, 1], [2, 1], [0; 4])),
        case("3x3_c16", [6, 5, 16], window([3, 3], [1, 1], [1; 4])),
        case("3x3_c24_stride2", [7, 8, 24], window([3, 3], [2, 2], [0, 1, 0, 1])),
        case("3x3_c8_narrow", [9, 1, 8], window([3, 3], [1, 1], [1; 4])),
        // Rows that are even and odd, first and last, above each other and apart.
        case("3x3_c4_no_padding", [5, 8, 4], window([3, 3], [1, 1], [0; 4])),
        case("3x3_c8_strides_1_2", [5, 9, 8], window([3, 3], [1, 2], [1, 0, 1, 1])),
        case("3x3_c8_strides_3_1", [10, 5, 8], window([3, 3], [3, 1], [2, 1, 2, 0])),
        case("3x3_c4_larger_than_input", [2, 1, 4], window([3, 3], [1, 1], [2; 4])),
        case("3x3_c4_one_window", [4, 4, 4], window([3, 3], [2, 2], [0; 4])),
        // Other kernels, with heights that are no pairs, and columns left over.
        case("5x5_c8", [6, 7, 8], window([5, 5], [1, 1], [2; 4])),
        case("4x3_c4_strides", [9, 8, 4], window([4, 3], [2, 3], [1, 2, 0, 1])),
        case("9x1_c8", [11, 3, 8], window([9, 1], [1, 1], [4, 4, 0, 0])),
        case("1x5_c4", [3, 9, 4], window([1, 5], [1, 2], [0, 0, 2, 2])),
        case("1x1_c16_stride2", [5, 4, 16], window([1, 1], [2, 2], [0; 4])),
        clamped.finish(width, 2),
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

/// Inputs and weights at their ends for nearly as long as 8 bits allow: `128 * 127 * 132104` is beyond 31 bits.
fn ends_longest(width: Width) -> Case {
    let mut net = Net::new(format!("ends_longest_{}", width.name()), [32, 128, 31]).input_codes(Table::Identity);
    net.zero_point(0, 0);
    let matrix = Matrix {
        codes: Codes::Ends,
        ..Matrix::random(width)
    };
    net.linear(0, 4, matrix);
    let mut case = net.finish(width, 2);
    case.images = extreme_images(32 * 128 * 31);
    case
}

/// Inputs, weights and biases of depthwise kernels at their ends.
fn ends_depthwise(width: Width) -> Case {
    let mut net = Net::new(format!("ends_depthwise_{}", width.name()), [6, 5, 8]).input_codes(Table::Identity);
    net.zero_point(0, -128);
    let matrix = Matrix {
        codes: Codes::Ends,
        ..Matrix::random(width)
    };
    let same = window([3, 3], [1, 1], [1; 4]);
    let x = net.depthwise_conv2d(0, same, matrix.clone());
    let matrix = Matrix {
        bias: Bias::Ends,
        ..matrix
    };
    let x = net.depthwise_conv2d(x, same, matrix.clone());
    net.depthwise_conv2d(x, window([5, 5], [1, 1], [2; 4]), matrix);
    let mut case = net.finish(width, 2);
    case.images = extreme_images(6 * 5 * 8);
    case
}

/// Inputs and weights at their ends for as long as two rows in one 32-bit accumulator may sum, 14 bits apart, and for one code
/// longer: 2^17 * 2^14 is one too many.
fn ends_of_lanes(width: Width) -> Vec<Case> {
    let case = |k: usize, shape: [usize; 3], kernel| {
        let mut net = Net::new(format!("ends_of_lanes_{}_{k}", width.name()), shape).input_codes(Table::Identity);
        net.zero_point(0, -128);
        let matrix = Matrix {
            codes: Codes::Ends,
            ..Matrix::random(width)
        };
        net.conv2d(0, window(kernel, [1, 1], [0; 4]), 8, matrix);
        let mut case = net.finish(width, 2);
        case.images = extreme_images(shape.iter().product());
        case
    };
    vec![
        case(1020, [15, 19, 4], [15, 17]),
        case(1023, [31, 12, 3], [31, 11]),
        case(1024, [16, 18, 4], [16, 16]),
    ]
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

/// All lowest, all highest, and both by turns: with [`Table::Identity`] these are the ends of the codes.
fn extreme_images(pixels: usize) -> Vec<Vec<u8>> {
    let turns = (0..pixels).map(|i| if i % 3 == 0 { 0 } else { 255 }).collect();
    vec![vec![0; pixels], vec![255; pixels], turns]
}

impl Case {
    /// The same network in an arena with room for the columns of eight pixels and all tensors at multiples of 8.
    pub(crate) fn roomy(&self) -> Case {
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
                    let [kernel_height, kernel_width] = [window.kernel_height, window.kernel_width].map(usize::from);
                    let columns = usize::from(y.width - 1) * usize::from(window.stride_width) + kernel_width;
                    16 * (kernel_height.div_ceil(2) * columns + usize::from(y.width) + 2 * packing.k) + 64
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use adcorda_runtime::{Isa, Path, path};

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
            let (most_macs, most_bytes, most_arena) = match case.name.split('_').next() {
                // A long sum has many products.
                _ if case.name.starts_with("ends_longest") => (600_000, 600_000, 1_200_000),
                Some("random") => (5_000_000, 100_000, 30_000),
                _ => (200_000, 50_000, 20_000),
            };
            let model = Model::parse(&case.model).expect("a valid model");
            let macs: u64 = model
                .layers()
                .zip(&model.tensors()[1..])
                .map(|(layer, y)| {
                    let x = layer.op.inputs().next().expect("an input");
                    layer.op.macs(&model.tensors()[usize::from(x)], y)
                })
                .sum();
            assert!(macs < most_macs, "{}: {macs} multiply-accumulates", case.name);
            assert!(case.model.len() < most_bytes, "{}: {} bytes", case.name, case.model.len());
            assert!(
                model.arena_bytes() < most_arena,
                "{}: {} bytes",
                case.name,
                model.arena_bytes()
            );
        }
    }

    /// Else the cases would compare the generic path with itself.
    #[test]
    fn depthwise_kernels_take_blocks_of_channels() {
        for case in all().iter().filter(|case| case.name.ends_with("_roomy")) {
            let model = Model::parse(&case.model).expect("a valid model");
            for (layer, y) in model.layers().zip(&model.tensors()[1..]) {
                if matches!(layer.op, Op::DepthwiseConv2d { .. }) {
                    let fast = y.channels.is_multiple_of(4) && !case.name.contains("clamped");
                    let expected = if fast { Path::Depthwise } else { Path::Generic };
                    assert_eq!(path(Isa::Dsp, &model, &layer, y), expected, "{}: {}", case.name, layer.name);
                }
            }
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
        let mut random = HashSet::new();
        for case in all() {
            let meant = ["ends", "clamp", "zero", "one_pixel", "one_class"];
            if meant.iter().any(|part| case.name.contains(part)) {
                continue;
            }
            let model = Model::parse(&case.model).expect("a valid model");
            let outputs = oracle::run(&model, &case.images[0]);
            for (layer, output) in model.layers().zip(&outputs[1..]) {
                let inside: HashSet<_> = output.iter().filter(|&&code| code != 0x80 && code != 0x7f).collect();
                // Among many, some may.
                if case.name.starts_with("random") && inside.len() < 3.min(output.len()) {
                    random.insert(case.name.clone());
                    continue;
                }
                assert!(
                    inside.len() >= 3.min(output.len()),
                    "{}: {} gives {output:?}",
                    case.name,
                    layer.name
                );
            }
        }
        // Each is there twice.
        assert!(random.len() < 2 * RANDOM / 5, "{random:?}");
    }
}
