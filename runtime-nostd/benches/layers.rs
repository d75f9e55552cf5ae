//! Layers as they come in CIFAR-size networks, on the host: `cargo bench -p adcorda-runtime [-- FILTER]`.
//!
//! Elements are multiply-accumulates, or codes where there are none. To compare with another state of the code, run once with
//! `-- --save-baseline before`, and then with `-- --baseline before`. On a device, instructions are counted by
//! `adcorda run --board`.

use std::time::{Duration, Instant};

use adcorda_runtime::formats::{
    Element, Graph, Layer, Model, Op, Order, Provenance, Requantize, Residual, Scale, Scratch, Section, Tensor, Weights, Width,
    Window,
};
use adcorda_runtime::{Image, Observer, Session};
use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    conv2d(&mut criterion);
    depthwise_conv2d(&mut criterion);
    add(&mut criterion);
    criterion.final_summary();
}

/// Kernel size, input channels, output channels, height and width.
const CONVOLUTIONS: [(u8, u16, u16, u16); 5] = [
    (3, 3, 16, 32),
    (3, 16, 16, 32),
    (3, 32, 32, 16),
    (3, 64, 64, 8),
    (1, 64, 64, 8),
];

fn conv2d(criterion: &mut Criterion) {
    for (kernel, channels, outputs, size) in CONVOLUTIONS {
        for width in Width::ALL {
            let k = usize::from(kernel) * usize::from(kernel) * usize::from(channels);
            let mut net = Net::new(channels, size);
            let (weights, requantize) = net.weights(Order::Blocks, width, outputs, k);
            let op = Op::Conv2d {
                input: 0,
                window: same(kernel),
                weights,
                requantize,
                residual: None,
            };
            let shape = format!("{kernel}x{kernel} {channels}->{outputs} {size}x{size} {}", width.name());
            net.bench(outputs, op, criterion, &shape);
        }
    }
    let mut net = Net::new(16, 32);
    let (weights, requantize) = net.weights(Order::Blocks, Width::W8, 16, 144);
    let op = Op::Conv2d {
        input: 0,
        window: same(3),
        weights,
        requantize,
        // The image, which is copied to under the sum.
        residual: Some(Residual {
            input: 0,
            zero_point: 3,
            mul_conv: 900,
            mul_residual: 1100,
            shift: 10,
            min: -128,
            max: 127,
        }),
    };
    net.bench(16, op, criterion, "3x3 16->16 32x32 w8 with a residual");
}

fn depthwise_conv2d(criterion: &mut Criterion) {
    for width in [Width::W8, Width::W2] {
        let mut net = Net::new(64, 16);
        let (weights, requantize) = net.weights(Order::Channels, width, 64, 9);
        let op = Op::DepthwiseConv2d {
            input: 0,
            window: same(3),
            weights,
            requantize,
        };
        net.bench(64, op, criterion, &format!("3x3 64 16x16 {}", width.name()));
    }
}

fn add(criterion: &mut Criterion) {
    let op = Op::Add {
        a: 0,
        b: 0,
        mul_a: 1 << 9,
        mul_b: 3 << 8,
        shift: 10,
        min: -128,
        max: 127,
    };
    Net::new(16, 32).bench(16, op, criterion, "16 32x32");
}

/// A model of one layer, which is measured, and a last one of one class.
struct Net {
    section: Section,
    input: Tensor,
}

impl Net {
    fn new(channels: u16, size: u16) -> Net {
        let input = Tensor {
            height: size,
            width: size,
            channels,
            element: Element::I8,
            // Padding does not read as 0.
            zero_point: -128,
            scale: Scale::from_f32(1.0),
            offset: 0,
        };
        let section = Section::new();
        Net { section, input }
    }

    fn weights(&mut self, order: Order, width: Width, rows: u16, k: usize) -> (Weights, Requantize) {
        let (rows, section) = (usize::from(rows), &mut self.section);
        let codes: Vec<i8> = (0..rows * k).map(|i| if i * 7 % 11 < 5 { 1 } else { -1 }).collect();
        let weights = Weights {
            width,
            offset: section
                .push_rows(order, width, &codes, k)
                .expect("codes that every width has"),
            bias: section.push_i32s(&vec![0; rows]),
        };
        let requantize = Requantize {
            multiplier: section.push_i32s(&vec![1 << 25; rows]),
            shift: 32,
            min: i8::MIN,
            max: i8::MAX,
        };
        (weights, requantize)
    }

    fn bench(self, outputs: u16, op: Op, criterion: &mut Criterion, shape: &str) {
        let file = self.file(outputs, op);
        let model = Model::parse(&file).expect("a valid model");
        let elements = op
            .macs(model.input(), &model.tensors()[1])
            .max(model.input().elements() as u64);
        let mut arena = vec![0; model.arena_bytes()];
        let mut session = Session::new(&model, &mut arena).expect("an arena as long as the model needs");
        let pixels: Vec<u8> = (0..model.input().elements()).map(|i| (i * 37 % 251) as u8).collect();
        let image = Image::new(&model, &pixels).expect("an image of the size of the input");

        let mut group = criterion.benchmark_group(op.name());
        group.throughput(Throughput::Elements(elements));
        group.bench_function(shape, |bencher| {
            bencher.iter_custom(|times| {
                let mut watch = Watch {
                    started: Instant::now(),
                    total: Duration::ZERO,
                };
                for _ in 0..times {
                    session.run(image, &mut watch);
                }
                watch.total
            });
        });
    }

    fn file(mut self, outputs: u16, op: Op) -> Vec<u8> {
        let offset = |after: &Tensor| (after.offset as usize + after.bytes()).next_multiple_of(8) as u32;
        let output = Tensor {
            channels: outputs,
            zero_point: 0,
            offset: offset(&self.input),
            ..self.input
        };
        let logits = Tensor {
            height: 1,
            width: 1,
            channels: 1,
            element: Element::I32,
            offset: offset(&output),
            ..output
        };
        let (weights, _) = self.weights(Order::Blocks, Width::W1, 1, output.elements());
        let table: [i8; 256] = std::array::from_fn(|pixel| (pixel as u8 ^ 0x80) as i8);
        let layers: Vec<Layer> = [(op, self.input, output), (Op::Logits { input: 1, weights }, output, logits)]
            .map(|(op, input, output)| Layer {
                name: op.name(),
                op,
                scratch: Scratch {
                    offset: offset(&logits),
                    bytes: op.rows_and_k(&input, &output).map_or(0, |(_, k)| 8 * k.next_multiple_of(32)) as u32,
                },
            })
            .to_vec();
        let graph = Graph {
            name: "bench",
            provenance: Provenance {
                top1: u16::MAX,
                ..Provenance::default()
            },
            arena_bytes: layers
                .iter()
                .fold(0, |end, layer| end.max(layer.scratch.offset + layer.scratch.bytes)),
            input_table: self.section.push_table(&vec![table; usize::from(self.input.channels)]),
            tensors: vec![self.input, output, logits],
            layers,
            labels: vec!["class"],
        };
        graph.to_model_bytes(self.section.as_bytes()).expect("a valid model")
    }
}

/// Adds up the time that layer 0 takes.
struct Watch {
    started: Instant,
    total: Duration,
}

impl Observer for Watch {
    fn layer_begin(&mut self, _: usize, _: &Layer<'_>) {
        self.started = Instant::now();
    }

    fn layer_end(&mut self, index: usize, _: &Layer<'_>, _: &[u8]) {
        if index == 0 {
            self.total += self.started.elapsed();
        }
    }
}

/// A window at every position, padded.
fn same(kernel: u8) -> Window {
    let pad = kernel / 2;
    Window {
        kernel_height: kernel,
        kernel_width: kernel,
        stride_height: 1,
        stride_width: 1,
        pad_top: pad,
        pad_bottom: pad,
        pad_left: pad,
        pad_right: pad,
    }
}
