//! Every operator at every width against a naive reference in `i64`, through the public interface: a model is written,
//! parsed and run over an arena full of 0xA5 between canaries.

use crate::net::{Net, Random, Rows, run};
use adcorda_runtime::formats::{Element, Op, Order, Requantize, Residual, Tensor, Width, Window};

const CASES: usize = 150;

/// How activations and weights are drawn.
#[derive(Clone, Copy, Debug)]
enum Draw {
    Random,
    /// Every activation at one end, every weight at an end of its range.
    Extreme,
}

#[test]
fn conv2d() {
    for width in Width::ALL {
        let mut random = Random::new(0xC0 + u64::from(width.bits()));
        for case in 0..CASES {
            let window = window(&mut random, 5);
            let shape = (random.within(1, 7), random.within(1, 7), random.within(1, 20));
            if window.output(shape.0, shape.1).is_some() {
                check_conv2d(
                    &mut random,
                    Draw::Random,
                    width,
                    shape,
                    window,
                    &format!("{width:?} case {case}"),
                );
            }
        }
    }
}

#[test]
fn conv2d_at_the_ends_of_the_ranges() {
    for width in Width::ALL {
        let mut random = Random::new(0xE0 + u64::from(width.bits()));
        for case in 0..CASES {
            let window = window(&mut random, 3);
            let shape = (random.within(1, 4), random.within(1, 4), random.within(1, 70));
            if window.output(shape.0, shape.1).is_some() {
                check_conv2d(
                    &mut random,
                    Draw::Extreme,
                    width,
                    shape,
                    window,
                    &format!("{width:?} case {case}"),
                );
            }
        }
    }
}

#[test]
fn conv2d_shapes_worth_a_name() {
    let window = |kernel: (u8, u8), stride: (u8, u8), pad: [u8; 4]| Window {
        kernel_height: kernel.0,
        kernel_width: kernel.1,
        stride_height: stride.0,
        stride_width: stride.1,
        pad_top: pad[0],
        pad_bottom: pad[1],
        pad_left: pad[2],
        pad_right: pad[3],
    };
    let cases = [
        ("pointwise on one pixel", (1, 1, 1), window((1, 1), (1, 1), [0; 4])),
        ("pointwise over many channels", (3, 3, 67), window((1, 1), (1, 1), [0; 4])),
        (
            "one pixel in the middle of a padded kernel",
            (1, 1, 5),
            window((3, 3), (1, 1), [1; 4]),
        ),
        (
            "kernel larger than the input",
            (2, 3, 4),
            window((5, 5), (1, 1), [4, 1, 2, 4]),
        ),
        (
            "padding on one side at stride 2",
            (8, 8, 16),
            window((3, 3), (2, 2), [0, 1, 0, 1]),
        ),
        ("four paddings", (6, 5, 3), window((5, 4), (1, 2), [4, 1, 0, 3])),
        (
            "rows beyond the last window are not read",
            (6, 7, 2),
            window((2, 2), (3, 4), [0; 4]),
        ),
        ("whole image", (6, 7, 3), window((6, 7), (1, 1), [0; 4])),
        (
            "stride wider than the kernel",
            (9, 9, 2),
            window((1, 2), (4, 5), [0, 0, 1, 0]),
        ),
    ];
    let mut random = Random::new(7);
    for (name, shape, window) in cases {
        for width in Width::ALL {
            check_conv2d(&mut random, Draw::Random, width, shape, window, name);
            check_conv2d(&mut random, Draw::Extreme, width, shape, window, name);
        }
    }
}

/// A residual in the epilogue is a convolution and then an addition, wherever the residual lies.
#[test]
fn conv2d_with_a_residual() {
    for width in Width::ALL {
        let mut random = Random::new(0x2E + u64::from(width.bits()));
        for case in 0..CASES {
            let window = window(&mut random, 3);
            let (h, w, c) = (random.within(1, 7), random.within(1, 7), random.within(1, 20));
            let Some((oh, ow)) = window.output(h, w) else { continue };
            let draw = if case % 3 == 0 { Draw::Extreme } else { Draw::Random };
            let (k, outputs) = (window.positions() * c, random.within(1, 6));
            let mut net = Net::new(h, w, c, random.code());
            let mut convolution = |net: &mut Net| {
                let rows = rows(&mut random, draw, width, outputs, k);
                let (weights, requantize) = (net.weights(Order::Blocks, &rows), rule(&mut random, net, &rows));
                (weights, requantize, random.code())
            };
            let (weights, requantize, zero_point) = convolution(&mut net);
            let op = |weights, requantize, residual| Op::Conv2d {
                input: 0,
                window,
                weights,
                requantize,
                residual,
            };
            let r = net.layer(op(weights, requantize, None), oh, ow, outputs, zero_point);
            let (weights, requantize, zero_point) = convolution(&mut net);
            let (mul_conv, mul_residual) = (random.within(0, 32767) as i16, random.within(0, 32767) as i16);
            let shift = random.within(1, 30) as u8;
            let (min, max) = random.clamp();
            let y_zero_point = random.code();
            let residual = Residual {
                input: r as u8,
                zero_point,
                mul_conv,
                mul_residual,
                shift,
                min,
                max,
            };

            let mut apart = net.clone();
            let v = apart.layer(op(weights, requantize, None), oh, ow, outputs, zero_point);
            let add = Op::Add {
                a: v as u8,
                b: r as u8,
                mul_a: mul_conv,
                mul_b: mul_residual,
                shift,
                min,
                max,
            };
            let y = apart.layer(add, oh, ow, outputs, y_zero_point);
            let x = codes(&mut random, draw, h * w * c);
            let expected = &run(&apart, &x).outputs[y - 1];

            let (mut copied, mut in_place) = (net.clone(), net);
            let y = copied.layer(op(weights, requantize, Some(residual)), oh, ow, outputs, y_zero_point);
            assert_eq!(
                &run(&copied, &x).outputs[y - 1],
                expected,
                "{width:?} case {case}, copied: {h}x{w}x{c} {window:?} {residual:?}"
            );
            let y = in_place.layer_over(op(weights, requantize, Some(residual)), r, y_zero_point);
            assert_eq!(
                &run(&in_place, &x).outputs[y - 1],
                expected,
                "{width:?} case {case}, in place: {h}x{w}x{c} {window:?} {residual:?}"
            );
        }
    }
}

/// The input of a convolution may be its residual, too.
#[test]
fn conv2d_added_to_its_own_input() {
    let mut random = Random::new(0x0E);
    for width in Width::ALL {
        let (h, w, c) = (4, 5, 6);
        let mut net = Net::new(h, w, c, random.code());
        let rows = rows(&mut random, Draw::Random, width, c, c);
        let (weights, requantize) = (net.weights(Order::Blocks, &rows), rule(&mut random, &mut net, &rows));
        let residual = Residual {
            input: 0,
            zero_point: random.code(),
            mul_conv: 1 << 10,
            mul_residual: 3 << 8,
            shift: 10,
            min: -100,
            max: 101,
        };
        let op = Op::Conv2d {
            input: 0,
            window: Window::POINT,
            weights,
            requantize,
            residual: Some(residual),
        };
        let y = net.layer(op, h, w, c, random.code());
        let x = codes(&mut random, Draw::Random, h * w * c);
        let (x_zero_point, y_zero_point) = (net.tensor(0).zero_point, net.tensor(y).zero_point);
        let expected = map(net.tensor(y), |oy, ox, channel| {
            let pixel = &x[(oy * w + ox) * c..][..c];
            let v = net.requantize(&requantize, residual.zero_point, channel, rows.dot(channel, pixel)) as i8;
            let v = (i64::from(v) - i64::from(residual.zero_point)) * 1024;
            let r = (i64::from(pixel[channel] as i8) - i64::from(x_zero_point)) * 768;
            (((v + r + 512) >> 10) + i64::from(y_zero_point)).clamp(-100, 101) as i8 as u8
        });
        assert_eq!(run(&net, &x).outputs[y - 1], expected, "{width:?}");
    }
}

#[test]
fn depthwise_conv2d() {
    for width in Width::ALL {
        let mut random = Random::new(0xD0 + u64::from(width.bits()));
        for case in 0..CASES {
            let window = window(&mut random, 5);
            let (h, w, c) = (random.within(1, 7), random.within(1, 7), random.within(1, 20));
            let Some((oh, ow)) = window.output(h, w) else { continue };
            let draw = if case % 3 == 0 { Draw::Extreme } else { Draw::Random };

            let mut net = Net::new(h, w, c, random.code());
            let k = usize::from(window.kernel_height) * usize::from(window.kernel_width);
            let rows = rows(&mut random, draw, width, c, k);
            let (weights, requantize) = (net.weights(Order::Channels, &rows), rule(&mut random, &mut net, &rows));
            let y = net.layer(
                Op::DepthwiseConv2d {
                    input: 0,
                    window,
                    weights,
                    requantize,
                },
                oh,
                ow,
                c,
                random.code(),
            );
            let x = codes(&mut random, draw, h * w * c);

            let (zero_point, y_shape) = (net.tensor(0).zero_point, *net.tensor(y));
            let expected = map(&y_shape, |oy, ox, channel| {
                let acc = (0..k).fold(i64::from(rows.bias[channel]), |acc, tap| {
                    let (ky, kx) = (tap / usize::from(window.kernel_width), tap % usize::from(window.kernel_width));
                    let x = padded(&x, (h, w, c), zero_point, at(&window, oy, ox, ky, kx), channel);
                    acc + x * i64::from(rows.codes[channel][tap])
                });
                net.requantize(&requantize, y_shape.zero_point, channel, acc)
            });
            assert_eq!(
                run(&net, &x).outputs[y - 1],
                expected,
                "{width:?} case {case}: {h}x{w}x{c} {window:?}"
            );
        }
    }
}

#[test]
fn linear() {
    for width in Width::ALL {
        let mut random = Random::new(0x11 + u64::from(width.bits()));
        for case in 0..CASES {
            let (h, w, c) = (random.within(1, 3), random.within(1, 3), random.within(1, 40));
            let (k, outputs) = (h * w * c, random.within(1, 9));
            let draw = if case % 3 == 0 { Draw::Extreme } else { Draw::Random };

            let mut net = Net::new(h, w, c, random.code());
            let rows = rows(&mut random, draw, width, outputs, k);
            let (weights, requantize) = (net.weights(Order::Blocks, &rows), rule(&mut random, &mut net, &rows));
            let y = net.layer(
                Op::Linear {
                    input: 0,
                    weights,
                    requantize,
                },
                1,
                1,
                outputs,
                random.code(),
            );
            let x = codes(&mut random, draw, k);
            let expected: Vec<u8> = (0..outputs)
                .map(|row| net.requantize(&requantize, net.tensor(y).zero_point, row, rows.dot(row, &x)))
                .collect();
            assert_eq!(
                run(&net, &x).outputs[y - 1],
                expected,
                "{width:?} case {case}: {k} to {outputs}"
            );
        }
    }
}

#[test]
fn logits() {
    for width in Width::ALL {
        let mut random = Random::new(0x70 + u64::from(width.bits()));
        for case in 0..CASES {
            let (h, w, c) = (random.within(1, 3), random.within(1, 3), random.within(1, 40));
            let (k, classes) = (h * w * c, random.within(1, 12));
            let draw = if case % 3 == 0 { Draw::Extreme } else { Draw::Random };

            let mut net = Net::new(h, w, c, random.code());
            let rows = rows(&mut random, draw, width, classes, k);
            let weights = net.weights(Order::Blocks, &rows);
            net.logits(Op::Logits { input: 0, weights }, classes);
            let x = codes(&mut random, draw, k);
            let expected: Vec<i64> = (0..classes).map(|row| rows.dot(row, &x)).collect();
            let ran = run(&net, &x);
            assert_eq!(
                ran.logits.iter().copied().map(i64::from).collect::<Vec<_>>(),
                expected,
                "{width:?} case {case}: {k}"
            );
            let bytes: Vec<u8> = ran.logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
            assert_eq!(ran.outputs[0], bytes, "{width:?} case {case}: {k}");
            let best = expected.iter().max().expect("at least one class");
            assert_eq!(Some(ran.top1), expected.iter().position(|logit| logit == best));
        }
    }
}

#[test]
fn add() {
    let mut random = Random::new(0xADD);
    // Where the output lies: apart, over the first input, over the second.
    for (case, over) in (0..CASES).zip([None, Some(0), Some(1)].into_iter().cycle()) {
        let (h, w, c) = (random.within(1, 5), random.within(1, 5), random.within(1, 33));
        let draw = if case % 4 == 0 { Draw::Extreme } else { Draw::Random };
        let (mut net, other) = identity_net(&mut random, h, w, c);
        let (a, b) = if case % 2 == 0 { (0, other) } else { (other, 0) };
        let (mul_a, mul_b) = (random.within(0, 32767) as i16, random.within(0, 32767) as i16);
        let shift = random.within(1, 30) as u8;
        let (min, max) = random.clamp();
        let op = Op::Add {
            a: a as u8,
            b: b as u8,
            mul_a,
            mul_b,
            shift,
            min,
            max,
        };
        let y = match over {
            None => net.layer(op, h, w, c, random.code()),
            Some(input) => net.layer_over(op, [a, b][input], random.code()),
        };
        let x = codes(&mut random, draw, h * w * c);

        let ran = run(&net, &x);
        let operand = |id: usize| if id == 0 { &ran.input } else { &ran.outputs[id - 1] };
        let term = |id: usize, i: usize, multiplier: i16| {
            (i64::from(operand(id)[i] as i8) - i64::from(net.tensor(id).zero_point)) * i64::from(multiplier)
        };
        let expected: Vec<u8> = (0..x.len())
            .map(|i| {
                let sum = term(a, i, mul_a) + term(b, i, mul_b);
                let scaled = (sum + (1 << (shift - 1))) >> shift;
                (scaled + i64::from(net.tensor(y).zero_point)).clamp(min.into(), max.into()) as i8 as u8
            })
            .collect();
        assert_eq!(ran.outputs[y - 1], expected, "case {case}: {h}x{w}x{c}, over {over:?}");
    }
}

#[test]
fn add_of_a_tensor_to_itself() {
    let mut random = Random::new(0xADD2);
    for over in [false, true] {
        let (mut net, other) = identity_net(&mut random, 3, 4, 5);
        let op = Op::Add {
            a: 1,
            b: 1,
            mul_a: 3 << 8,
            mul_b: 1 << 8,
            shift: 10,
            min: -128,
            max: 127,
        };
        let zero_point = net.tensor(other).zero_point;
        let y = if over {
            net.layer_over(op, other, zero_point)
        } else {
            net.layer(op, 3, 4, 5, zero_point)
        };
        let ran = run(&net, &codes(&mut random, Draw::Random, 60));
        assert_eq!(ran.outputs[y - 1], ran.outputs[other - 1], "over {over}");
    }
}

#[test]
fn max_pool() {
    let mut random = Random::new(0x3A);
    for case in 0..CASES {
        let window = window(&mut random, 5);
        let (h, w, c) = (random.within(1, 7), random.within(1, 7), random.within(1, 20));
        let Some((oh, ow)) = window.output(h, w) else { continue };
        let draw = if case % 4 == 0 { Draw::Extreme } else { Draw::Random };
        let zero_point = random.code();
        let mut net = Net::new(h, w, c, zero_point);
        let y = net.layer(Op::MaxPool { input: 0, window }, oh, ow, c, zero_point);
        let x = codes(&mut random, draw, h * w * c);
        let expected = map(net.tensor(y), |oy, ox, channel| {
            let taps = taps(&window).filter_map(|(ky, kx)| element(&x, (h, w, c), at(&window, oy, ox, ky, kx), channel));
            taps.max().expect("padding is narrower than the kernel") as i8 as u8
        });
        assert_eq!(run(&net, &x).outputs[y - 1], expected, "case {case}: {h}x{w}x{c} {window:?}");
    }
}

#[test]
fn avg_pool() {
    let mut random = Random::new(0xA6);
    for case in 0..CASES {
        let mut window = window(&mut random, 5);
        let (h, w, c) = (random.within(1, 7), random.within(1, 7), random.within(1, 20));
        if case % 3 == 0 {
            // Global.
            window = Window {
                kernel_height: h as u8,
                kernel_width: w as u8,
                pad_top: 0,
                pad_bottom: 0,
                pad_left: 0,
                pad_right: 0,
                ..window
            };
        }
        let Some((oh, ow)) = window.output(h, w) else { continue };
        let draw = if case % 4 == 0 { Draw::Extreme } else { Draw::Random };
        let mut net = Net::new(h, w, c, random.code());
        let multiplier = random.within(1 << 30, (1 << 31) - 1) as i32;
        let shift = random.within(29, 38) as u8;
        let y = net.layer(
            Op::AvgPool {
                input: 0,
                window,
                multiplier,
                shift,
            },
            oh,
            ow,
            c,
            random.code(),
        );
        let x = codes(&mut random, draw, h * w * c);
        let (zero_in, zero_out) = (i64::from(net.tensor(0).zero_point), i64::from(net.tensor(y).zero_point));
        let expected = map(net.tensor(y), |oy, ox, channel| {
            let taps = taps(&window).filter_map(|(ky, kx)| element(&x, (h, w, c), at(&window, oy, ox, ky, kx), channel));
            let sum: i64 = taps.map(|x| x - zero_in).sum();
            let scaled = (sum * i64::from(multiplier) + (1 << (shift - 1))) >> shift;
            (scaled + zero_out).clamp(-128, 127) as i8 as u8
        });
        assert_eq!(run(&net, &x).outputs[y - 1], expected, "case {case}: {h}x{w}x{c} {window:?}");
    }
}

#[test]
fn subsample() {
    let mut random = Random::new(0x5B);
    for case in 0..CASES {
        let (h, w, c) = (random.within(1, 9), random.within(1, 9), random.within(1, 20));
        let stride = random.within(1, 4);
        let (before, after) = (random.within(0, 5), random.within(0, 5));
        let zero_point = random.code();
        let mut net = Net::new(h, w, c, zero_point);
        let op = Op::Subsample {
            input: 0,
            stride: stride as u8,
            channels_before: before as u16,
            channels_after: after as u16,
        };
        let y = net.layer(op, h.div_ceil(stride), w.div_ceil(stride), before + c + after, zero_point);
        let x = codes(&mut random, Draw::Random, h * w * c);
        let expected = map(net.tensor(y), |oy, ox, channel| {
            match channel.checked_sub(before).filter(|channel| *channel < c) {
                Some(channel) => x[(oy * stride * w + ox * stride) * c + channel],
                None => zero_point as u8,
            }
        });
        assert_eq!(run(&net, &x).outputs[y - 1], expected, "case {case}: {h}x{w}x{c} by {stride}");
    }
}

fn check_conv2d(random: &mut Random, draw: Draw, width: Width, (h, w, c): (usize, usize, usize), window: Window, what: &str) {
    let (oh, ow) = window.output(h, w).expect("the kernel fits");
    let kernel_width = usize::from(window.kernel_width);
    let (k, outputs) = (usize::from(window.kernel_height) * kernel_width * c, random.within(1, 5));

    let mut net = Net::new(h, w, c, random.code());
    let rows = rows(random, draw, width, outputs, k);
    let (weights, requantize) = (net.weights(Order::Blocks, &rows), rule(random, &mut net, &rows));
    let y = net.layer(
        Op::Conv2d {
            input: 0,
            window,
            weights,
            requantize,
            residual: None,
        },
        oh,
        ow,
        outputs,
        random.code(),
    );
    let x = codes(random, draw, h * w * c);

    let zero_point = net.tensor(0).zero_point;
    let expected = map(net.tensor(y), |oy, ox, channel| {
        let acc = (0..k).fold(i64::from(rows.bias[channel]), |acc, i| {
            let (ky, kx, channel_in) = (i / (kernel_width * c), i / c % kernel_width, i % c);
            let x = padded(&x, (h, w, c), zero_point, at(&window, oy, ox, ky, kx), channel_in);
            acc + x * i64::from(rows.codes[channel][i])
        });
        net.requantize(&requantize, net.tensor(y).zero_point, channel, acc)
    });
    assert_eq!(
        run(&net, &x).outputs[y - 1],
        expected,
        "{what}, {draw:?}, {width:?}: {h}x{w}x{c} to {outputs} {window:?}"
    );
}

/// A network whose first layer copies the input to a second tensor of other scale and zero point.
fn identity_net(random: &mut Random, h: usize, w: usize, c: usize) -> (Net, usize) {
    let mut net = Net::new(h, w, c, random.code());
    let rows = rows(random, Draw::Random, Width::W4, c, 1);
    let (weights, requantize) = (net.weights(Order::Channels, &rows), rule(random, &mut net, &rows));
    let y = net.layer(
        Op::DepthwiseConv2d {
            input: 0,
            window: Window::POINT,
            weights,
            requantize,
        },
        h,
        w,
        c,
        random.code(),
    );
    (net, y)
}

fn window(random: &mut Random, largest: usize) -> Window {
    let (kernel_height, kernel_width) = (random.within(1, largest) as u8, random.within(1, largest) as u8);
    let mut pad = |kernel: u8| random.within(0, usize::from(kernel) - 1) as u8;
    let (pad_top, pad_bottom, pad_left, pad_right) =
        (pad(kernel_height), pad(kernel_height), pad(kernel_width), pad(kernel_width));
    let (stride_height, stride_width) = (random.within(1, 3) as u8, random.within(1, 3) as u8);
    Window {
        kernel_height,
        kernel_width,
        stride_height,
        stride_width,
        pad_top,
        pad_bottom,
        pad_left,
        pad_right,
    }
}

fn rows(random: &mut Random, draw: Draw, width: Width, rows: usize, k: usize) -> Rows {
    let (low, high) = match width {
        Width::W1 | Width::W2 => (-1, 1),
        Width::W4 => (-8, 7),
        Width::W8 => (-127, 127),
    };
    let mut code = |row: usize| {
        let code = match draw {
            Draw::Random => random.within(0, (high - low) as usize) as i64 + low,
            Draw::Extreme if row.is_multiple_of(3) => low,
            Draw::Extreme if row % 3 == 1 => high,
            Draw::Extreme => [low, high][random.within(0, 1)],
        };
        if width == Width::W1 && code == 0 { 1 } else { code as i8 }
    };
    let codes = (0..rows).map(|row| (0..k).map(|_| code(row)).collect()).collect();
    let bias = (0..rows).map(|_| random.within(0, 200_000) as i32 - 100_000).collect();
    Rows { width, codes, bias }
}

/// Requantization that spreads the accumulators of these rows over the codes, with the odd extreme among them.
fn rule(random: &mut Random, net: &mut Net, rows: &Rows) -> Requantize {
    let k = rows.codes[0].len() as u32;
    let spread = k.ilog2() / 2 + rows.width.max_magnitude().ilog2() + random.within(0, 10) as u32;
    let shift = match random.within(0, 7) {
        0 => [1, 62][random.within(0, 1)],
        1..4 => random.within(20, 48) as u32,
        _ => 32,
    };
    let largest = 1 << (shift.saturating_sub(spread)).clamp(1, 31);
    let multipliers = (0..rows.codes.len())
        .map(|_| {
            let magnitude = random.within(largest / 2, largest - 1) as i32;
            [magnitude, magnitude, magnitude, -magnitude, 0, i32::MAX, i32::MIN][random.within(0, 6)]
        })
        .collect();
    let (min, max) = random.clamp();
    net.requantization(multipliers, shift as u8, min, max)
}

fn codes(random: &mut Random, draw: Draw, len: usize) -> Vec<u8> {
    let end = [i8::MIN, i8::MAX][random.within(0, 1)] as u8;
    (0..len)
        .map(|_| if let Draw::Random = draw { random.code() as u8 } else { end })
        .collect()
}

/// `f(oy, ox, channel)` for every element of a tensor, NHWC.
fn map(shape: &Tensor, mut f: impl FnMut(usize, usize, usize) -> u8) -> Vec<u8> {
    assert_eq!(shape.element, Element::I8);
    let (w, c) = (usize::from(shape.width), usize::from(shape.channels));
    (0..shape.elements()).map(|i| f(i / c / w, i / c % w, i % c)).collect()
}

fn taps(window: &Window) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (kh, kw) = (usize::from(window.kernel_height), usize::from(window.kernel_width));
    (0..kh * kw).map(move |i| (i / kw, i % kw))
}

/// Input position under a kernel tap; outside of the image where padded.
fn at(window: &Window, oy: usize, ox: usize, ky: usize, kx: usize) -> (i64, i64) {
    let along = |out: usize, stride: u8, tap: usize, pad: u8| out as i64 * i64::from(stride) + tap as i64 - i64::from(pad);
    (
        along(oy, window.stride_height, ky, window.pad_top),
        along(ox, window.stride_width, kx, window.pad_left),
    )
}

fn element(x: &[u8], (h, w, c): (usize, usize, usize), (iy, ix): (i64, i64), channel: usize) -> Option<i64> {
    let (iy, ix) = (
        usize::try_from(iy).ok().filter(|iy| *iy < h)?,
        usize::try_from(ix).ok().filter(|ix| *ix < w)?,
    );
    Some(i64::from(x[(iy * w + ix) * c + channel] as i8))
}

fn padded(x: &[u8], shape: (usize, usize, usize), zero_point: i8, at: (i64, i64), channel: usize) -> i64 {
    element(x, shape, at, channel).unwrap_or(zero_point.into())
}
