//! A model with every operation and every width, small enough to damage in every byte.

use adcorda_formats::{
    Element, Graph, Layer, Op, Plan, Provenance, Requantize, Scale, Section, Tensor, Weights, Width, Window,
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
    let mut rows = |width: Width, rows: usize, k: usize| {
        let offset = section.push_rows(width, &codes.draw(width, rows * k), k).unwrap();
        let bias = section.push_i32s(&(0..rows as i32).map(|c| 1000 - 700 * c).collect::<Vec<_>>());
        let weights = Weights { width, offset, bias };
        let multipliers: Vec<i32> = (0..rows as i32)
            .map(|c| match c {
                0 => 1 << 30,
                1 => i32::MAX,
                2 => -(1 << 30),
                _ => 0,
            })
            .collect();
        let multiplier = section.push_i32s(&multipliers);
        let shift = section.push_u8s(&(0..rows as u8).map(|c| 36 + c).collect::<Vec<_>>());
        (
            weights,
            Requantize {
                multiplier,
                shift,
                min: -20,
                max: 127,
            },
        )
    };
    let (conv, conv_out) = rows(Width::W8, 4, 27);
    let (depthwise, depthwise_out) = rows(Width::W4, 4, 9);
    let (linear, linear_out) = rows(Width::W1, 5, 4);
    let logits = Weights {
        width: Width::W2,
        offset: section.push_rows(Width::W2, &codes.draw(Width::W2, 15), 5).unwrap(),
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
        tensor([1, 1, 4], 16, 0.06, 5),
        tensor([1, 1, 5], 20, 0.03, -20),
        Tensor {
            element: Element::I32,
            ..tensor([1, 1, 3], 28, 0.001, 0)
        },
    ];
    let ops = [
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
            },
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
        ),
        (
            "layer1.0.shortcut",
            Op::Subsample {
                input: 0,
                stride: 2,
                channels_before: 0,
                channels_after: 1,
            },
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
        ),
        (
            "avgpool",
            Op::AvgPool {
                input: 5,
                window: Window {
                    kernel_height: 2,
                    kernel_width: 2,
                    ..NO_PADDING
                },
                multiplier: 1 << 30,
                shift: 32,
            },
        ),
        (
            "fc1",
            Op::Linear {
                input: 6,
                weights: linear,
                requantize: linear_out,
            },
        ),
        (
            "fc2",
            Op::Logits {
                input: 7,
                weights: logits,
            },
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
        plan: Plan {
            arena_bytes: 155,
            scratch_offset: 128,
            scratch_bytes: 27,
        },
        input_table,
        tensors,
        layers: ops.map(|(name, op)| Layer { name, op }).to_vec(),
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
