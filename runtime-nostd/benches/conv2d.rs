//! Multiply-accumulates a second of one core, for convolutions as they come in CIFAR-size networks.
//!
//! `cargo bench -p adcorda-runtime` measures; run in any other way (as a test, say) each case runs once.

use std::time::{Duration, Instant};

use adcorda_runtime::formats::{
    Element, Graph, Layer, Model, Op, Plan, Provenance, Requantize, Scale, Section, Tensor, Weights, Width, Window,
};
use adcorda_runtime::{Image, Observer, Session};

/// Kernel size, input channels, output channels, height and width.
const CASES: [(u8, u16, u16, u16); 5] = [
    (3, 3, 16, 32),
    (3, 16, 16, 32),
    (3, 32, 32, 16),
    (3, 64, 64, 8),
    (1, 64, 64, 8),
];

fn main() {
    let budget = if std::env::args().any(|argument| argument == "--bench") {
        Duration::from_millis(300)
    } else {
        Duration::ZERO
    };
    println!("{:32}{:>10}", "conv2d", "GMAC/s");
    for (kernel, channels, outputs, size) in CASES {
        for width in Width::ALL {
            let file = convolution(width, kernel, channels, outputs, size);
            let model = Model::parse(&file).expect("a valid model");
            let layer = model.layer(0).expect("a layer");
            let macs = layer.op.macs(model.input(), &model.tensors()[1]);
            let mut arena = vec![0; model.arena_bytes()];
            let mut session = Session::new(&model, &mut arena).expect("an arena as long as planned");
            let pixels: Vec<u8> = (0..model.input().elements()).map(|i| (i * 37 % 251) as u8).collect();
            let image = Image::new(&model, &pixels).expect("an image of the size of the input");

            let mut watch = Watch {
                started: Instant::now(),
                fastest: Duration::MAX,
            };
            let begin = Instant::now();
            loop {
                std::hint::black_box(session.run(image, &mut watch).top1());
                if begin.elapsed() >= budget {
                    break;
                }
            }
            let shape = format!("{kernel}x{kernel} {channels}->{outputs} {size}x{size} {}", width.name());
            println!("{shape:32}{:>10.2}", macs as f64 / watch.fastest.as_secs_f64() / 1e9);
        }
    }
}

/// The fastest run of layer 0: what the code can do, where other processes share the machine.
struct Watch {
    started: Instant,
    fastest: Duration,
}

impl Observer for Watch {
    fn layer_begin(&mut self, _: usize, _: &Layer<'_>) {
        self.started = Instant::now();
    }

    fn layer_end(&mut self, index: usize, _: &Layer<'_>, _: &[u8]) {
        if index == 0 {
            self.fastest = self.fastest.min(self.started.elapsed());
        }
    }
}

/// A model of one "same" convolution, with padding that does not read as 0, and a last layer of one class.
fn convolution(width: Width, kernel: u8, channels: u16, outputs: u16, size: u16) -> Vec<u8> {
    let tensor = |channels, element, offset, zero_point| Tensor {
        height: size,
        width: size,
        channels,
        element,
        zero_point,
        scale: Scale::from_f32(1.0),
        offset,
    };
    let mut section = Section::new();
    let mut weights = |rows: u16, k: usize| {
        let codes: Vec<i8> = (0..usize::from(rows) * k)
            .map(|i| if i * 7 % 11 < 5 { 1 } else { -1 })
            .collect();
        let offset = section.push_rows(width, &codes, k).expect("codes that every width has");
        Weights {
            width,
            offset,
            bias: section.push_i32s(&vec![0; usize::from(rows)]),
        }
    };
    let input = tensor(channels, Element::I8, 0, -128);
    let output = tensor(outputs, Element::I8, input.bytes() as u32, 0);
    let logits_offset = (output.offset as usize + output.bytes()).next_multiple_of(4) as u32;
    let logits = Tensor {
        height: 1,
        width: 1,
        ..tensor(1, Element::I32, logits_offset, 0)
    };

    let first = weights(outputs, usize::from(kernel) * usize::from(kernel) * usize::from(channels));
    let last = weights(1, output.elements());
    let requantize = Requantize {
        multiplier: section.push_i32s(&vec![1 << 30; usize::from(outputs)]),
        shift: section.push_u8s(&vec![38; usize::from(outputs)]),
        min: i8::MIN,
        max: i8::MAX,
    };
    let pad = kernel / 2;
    let window = Window {
        kernel_height: kernel,
        kernel_width: kernel,
        stride_height: 1,
        stride_width: 1,
        pad_top: pad,
        pad_bottom: pad,
        pad_left: pad,
        pad_right: pad,
    };
    let scratch_offset = logits_offset + 4;
    let scratch_bytes = output
        .elements()
        .max(usize::from(kernel) * usize::from(kernel) * usize::from(channels)) as u32;
    let input_table = section.push_table(&vec![
        std::array::from_fn(|pixel| (pixel as u8 ^ 0x80) as i8);
        usize::from(channels)
    ]);
    Graph {
        name: "conv2d",
        provenance: Provenance {
            top1: u16::MAX,
            ..Provenance::default()
        },
        plan: Plan {
            arena_bytes: scratch_offset + scratch_bytes,
            scratch_offset,
            scratch_bytes,
        },
        input_table,
        tensors: vec![input, output, logits],
        layers: vec![
            Layer {
                name: "conv",
                op: Op::Conv2d {
                    input: 0,
                    window,
                    weights: first,
                    requantize,
                },
            },
            Layer {
                name: "fc",
                op: Op::Logits { input: 1, weights: last },
            },
        ],
        labels: vec!["class"],
    }
    .to_model_bytes(section.as_bytes())
    .expect("a valid model")
}
