//! A model with every operation and every width, small enough to damage in every byte.

use adcorda_formats::{
    Element, Graph, Layer, Op, Order, Provenance, Requantize, Residual, Scale, Scratch, Section, Tensor, Weights, Width, Window,
};

const NO_PADDING: Window = Window {
    kernel_height: 3,
    kernel_width: 3,
    stride_height: 1,
    stride_width: 1,
    pad_top: 0,
    pad_bottom: 0,
    pad_left: 0,
    pad_right: 0,
};

/// Graph and weights section.
pub fn tiny() -> (Graph<'static>, Vec<u8>) {
    let mut section = Section::new();
    let input_table = section.push_table(&[0, 1, 2].map(|c| std::array::from_fn(|v| (v as i32 / 2 - 64 + c) as i8)));

    let mut codes = Codes(1);
    let mut rows = |order: Order, width: Width, rows: usize, k: usize, shift: u8| {
        let offset = section.push_rows(order, width, &codes.draw(width, rows * k), k).unwrap();
        let bias = section.push_i32s(&(0..rows as i32).map(|c| 1000 - 700 * c).collect::<Vec<_>>());
        let weights = Weights { width, offset, bias };
        let multipliers = [1 << 30, i32::MAX, i32::MIN, 0, -3];
        let requantize = Requantize {
            multiplier: section.push_i32s(&multipliers[..rows]),
            shift,
            min: -20,
            max: 127,
        };
        (weights, requantize)
    };
    let (conv, conv_out) = rows(Order::Blocks, Width::W8, 4, 27, 36);
    let (depthwise, depthwise_out) = rows(Order::Channels, Width::W2, 4, 9, 32);
    let (pointwise, pointwise_out) = rows(Order::Blocks, Width::W4, 4, 4, 1);
    let (linear, linear_out) = rows(Order::Blocks, Width::W1, 5, 4, 62);
    let logits = Weights {
        width: Width::W2,
        offset: section
            .push_rows(Order::Blocks, Width::W2, &codes.draw(Width::W2, 15), 5)
            .unwrap(),
        bias: section.push_i32s(&[0, -1, i32::MAX - 640]),
    };

    let tensor = |shape: [u16; 3], offset: u32, scale: f32, zero_point: i8| Tensor {
        height: shape[0],
        width: shape[1],
        channels: shape[2],
        element: Element::I8,
        zero_point,
        scale: Scale::from_f32(scale),
        offset,
    };
    let tensors = vec![
        tensor([4, 4, 3], 0, 0.02, -3),
        tensor([4, 4, 4], 48, 0.05, -20),
        tensor([2, 2, 4], 112, 0.04, -20),
        tensor([2, 2, 4], 48, 0.02, -3),
        tensor([2, 2, 4], 112, 0.06, 5),
        tensor([2, 2, 4], 0, 0.06, 5),
        tensor([2, 2, 4], 112, 0.07, 8),
        tensor([1, 1, 4], 16, 0.06, 5),
        tensor([1, 1, 5], 20, 0.03, -20),
        Tensor {
            element: Element::I32,
            ..tensor([1, 1, 3], 28, 0.001, 0)
        },
    ];
    let scratch = |offset, bytes| Scratch { offset, bytes };
    let layers = [
        (
            "conv1",
            Op::Conv2d {
                input: 0,
                window: Window {
                    pad_top: 1,
                    pad_bottom: 1,
                    pad_left: 1,
                    pad_right: 1,
                    ..NO_PADDING
                },
                weights: conv,
                requantize: conv_out,
                residual: None,
            },
            scratch(128, 27),
        ),
        (
            "layer1.0.depthwise",
            Op::DepthwiseConv2d {
                input: 1,
                window: Window {
                    stride_height: 2,
                    stride_width: 2,
                    pad_bottom: 1,
                    pad_right: 1,
                    ..NO_PADDING
                },
                weights: depthwise,
                requantize: depthwise_out,
            },
            scratch(128, 9),
        ),
        (
            "layer1.0.shortcut",
            Op::Subsample {
                input: 0,
                stride: 2,
                channels_before: 0,
                channels_after: 1,
            },
            Scratch::default(),
        ),
        (
            "layer1.0.add",
            Op::Add {
                a: 2,
                b: 3,
                mul_a: 16384,
                mul_b: 8192,
                shift: 15,
                min: 5,
                max: 127,
            },
            Scratch::default(),
        ),
        (
            "maxpool",
            Op::MaxPool {
                input: 4,
                window: Window {
                    kernel_height: 2,
                    kernel_width: 2,
                    pad_bottom: 1,
                    pad_right: 1,
                    ..NO_PADDING
                },
            },
            // In the midst of a tensor, but it takes no byte of it.
            scratch(2, 0),
        ),
        (
            "layer2.0.conv2",
            Op::Conv2d {
                input: 5,
                window: Window {
                    kernel_height: 1,
                    kernel_width: 1,
                    ..NO_PADDING
                },
                weights: pointwise,
                requantize: pointwise_out,
                residual: Some(Residual {
                    input: 4,
                    zero_point: -9,
                    mul_conv: 32767,
                    mul_residual: 0,
                    shift: 30,
                    min: -128,
                    max: 99,
                }),
            },
            // Where tensors lie that are not in use any more.
            scratch(64, 48),
        ),
        (
            "avgpool",
            Op::AvgPool {
                input: 6,
                window: Window {
                    kernel_height: 2,
                    kernel_width: 2,
                    ..NO_PADDING
                },
                multiplier: 1 << 30,
                shift: 32,
            },
            scratch(0, 16),
        ),
        (
            "fc1",
            Op::Linear {
                input: 7,
                weights: linear,
                requantize: linear_out,
            },
            scratch(0, 4),
        ),
        (
            "fc2",
            Op::Logits {
                input: 8,
                weights: logits,
            },
            scratch(0, 5),
        ),
    ];
    let graph = Graph {
        name: "tiny",
        provenance: Provenance {
            data: "synthetic",
            method: "none",
            seed: 7,
            top1: 3333,
        },
        arena_bytes: 155,
        input_table,
        tensors,
        layers: layers.map(|(name, op, scratch)| Layer { name, op, scratch }).to_vec(),
        labels: vec!["plane", "car", "oiseau à ailes"],
    };
    (graph, section.into_bytes())
}

/// CRC-32/ISO-HDLC bit by bit, over a file without its own CRC: shares nothing with the crate's.
pub fn crc32(file: &[u8]) -> u32 {
    let mut crc = !0;
    for &byte in file[..28].iter().chain(&file[32..]) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Makes the CRC in the header fit the contents.
pub fn fix_crc(file: &mut [u8]) {
    let crc = crc32(file);
    file[28..32].copy_from_slice(&crc.to_le_bytes());
}

/// Pseudo-random codes (xorshift).
struct Codes(u32);

impl Codes {
    fn draw(&mut self, width: Width, count: usize) -> Vec<i8> {
        let values: Vec<i8> = (width.min_code()..=width.max_code())
            .filter(|&code| width != Width::W1 || code != 0)
            .collect();
        (0..count)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 17;
                self.0 ^= self.0 << 5;
                values[self.0 as usize % values.len()]
            })
            .collect()
    }
}
