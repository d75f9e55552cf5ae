//! Small models for tests: written by the formats crate, parsed, and run over an arena whose every byte is accounted for.

use adcorda_runtime::formats::{
    Element, Graph, Layer, Model, Op, Order, Provenance, Requantize, Scale, Scratch, Section, Tensor, Weights, Width,
};
use adcorda_runtime::{Image, Observer, Session};

/// What the arena and its surroundings hold before a run.
pub const FILL: u8 = 0xA5;
/// Bytes before and after the arena.
const CANARY: usize = 33;

/// A model under construction, one tensor after the other in the arena.
#[derive(Clone)]
pub struct Net {
    tensors: Vec<Tensor>,
    layers: Vec<Op>,
    section: Section,
    input_table: u32,
    /// Layers that have been told where to work, and where.
    scratch: Vec<(usize, u32)>,
    /// Multipliers of the channels, by their offset.
    multipliers: Vec<(u32, Vec<i32>)>,
}

/// How much scratch the layers have, behind all tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As much as the format demands, at an odd address.
    Least,
    /// As much as it recommends, at a multiple of 8.
    Recommended,
}

/// Unpacked weights of one layer.
pub struct Rows {
    pub width: Width,
    /// `[rows][k]`
    pub codes: Vec<Vec<i8>>,
    pub bias: Vec<i32>,
}

impl Rows {
    /// The accumulator of one row over all of `x`.
    pub fn dot(&self, row: usize, x: &[u8]) -> i64 {
        let products = x
            .iter()
            .zip(&self.codes[row])
            .map(|(&x, &w)| i64::from(x as i8) * i64::from(w));
        i64::from(self.bias[row]) + products.sum::<i64>()
    }
}

impl Net {
    /// Takes images of `h x w x c` whose pixels, with the highest bit inverted, are the codes of the input.
    pub fn new(h: usize, w: usize, c: usize, zero_point: i8) -> Net {
        let identity = std::array::from_fn(|pixel| (pixel as u8 ^ 0x80) as i8);
        Net::with_table(h, w, zero_point, &vec![identity; c])
    }

    /// Takes images of `h x w` pixels and as many channels as there are tables.
    pub fn with_table(h: usize, w: usize, zero_point: i8, table: &[[i8; 256]]) -> Net {
        let mut section = Section::new();
        let input_table = section.push_table(table);
        let mut net = Net {
            tensors: Vec::new(),
            layers: Vec::new(),
            section,
            input_table,
            scratch: Vec::new(),
            multipliers: Vec::new(),
        };
        net.push_tensor(h, w, table.len(), Element::I8, zero_point);
        net
    }

    pub fn weights(&mut self, order: Order, rows: &Rows) -> Weights {
        let offset = self
            .section
            .push_rows(order, rows.width, &rows.codes.concat(), rows.codes[0].len())
            .expect("codes of the width");
        Weights {
            width: rows.width,
            offset,
            bias: self.section.push_i32s(&rows.bias),
        }
    }

    pub fn requantization(&mut self, multipliers: Vec<i32>, shift: u8, min: i8, max: i8) -> Requantize {
        let multiplier = self.section.push_i32s(&multipliers);
        self.multipliers.push((multiplier, multipliers));
        Requantize {
            multiplier,
            shift,
            min,
            max,
        }
    }

    /// Appends a layer with an output of its own; gives the output's number.
    pub fn layer(&mut self, op: Op, h: usize, w: usize, c: usize, zero_point: i8) -> usize {
        self.layers.push(op);
        self.push_tensor(h, w, c, Element::I8, zero_point)
    }

    /// Appends a layer whose output lies where tensor `over` lies.
    pub fn layer_over(&mut self, op: Op, over: usize, zero_point: i8) -> usize {
        self.layers.push(op);
        self.tensors.push(Tensor {
            zero_point,
            ..self.tensors[over]
        });
        self.tensors.len() - 1
    }

    /// Appends the last layer.
    pub fn logits(&mut self, op: Op, classes: usize) {
        self.layers.push(op);
        self.push_tensor(1, 1, classes, Element::I32, 0);
    }

    /// Lets a layer work from this byte of the arena on.
    pub fn scratch(&mut self, layer: usize, offset: u32) {
        self.scratch.push((layer, offset));
    }

    pub fn tensor(&self, id: usize) -> &Tensor {
        &self.tensors[id]
    }

    /// The rule of the format, in 128 bits, for codes of this zero point.
    pub fn requantize(&self, requantize: &Requantize, zero_point: i8, channel: usize, acc: i64) -> u8 {
        let pushed = self.multipliers.iter().find(|(offset, _)| *offset == requantize.multiplier);
        let (_, multipliers) = pushed.expect("pushed before");
        let half = 1i128 << (requantize.shift - 1);
        let scaled = (i128::from(acc) * i128::from(multipliers[channel]) + half) >> requantize.shift;
        let code = scaled + i128::from(zero_point);
        code.clamp(requantize.min.into(), requantize.max.into()) as i8 as u8
    }

    /// The file. A net without a last layer gets one of two classes.
    pub fn file(&self, room: Room) -> Vec<u8> {
        let mut net = Net {
            multipliers: Vec::new(),
            ..self.clone()
        };
        if !matches!(net.layers.last(), Some(Op::Logits { .. })) {
            let k = net.tensors[net.tensors.len() - 1].elements();
            let rows = Rows {
                width: Width::W2,
                codes: (0..2)
                    .map(|class| (0..k).map(|i| ((i + class) % 3) as i8 - 1).collect())
                    .collect(),
                bias: vec![5, -5],
            };
            let weights = net.weights(Order::Blocks, &rows);
            let input = net.layers.len() as u8;
            net.logits(Op::Logits { input, weights }, 2);
        }
        net.whole_file(room)
    }

    fn whole_file(self, room: Room) -> Vec<u8> {
        let end = self.end();
        let layers: Vec<Layer> = self
            .layers
            .iter()
            .enumerate()
            .map(|(i, op)| {
                let input = self.tensors[usize::from(op.inputs().next().expect("at least one input"))];
                let k = op.rows_and_k(&input, &self.tensors[i + 1]).map_or(0, |(_, k)| k);
                let (offset, bytes) = match room {
                    Room::Least => (end, k),
                    Room::Recommended => (end.next_multiple_of(8), 8 * k.next_multiple_of(32)),
                };
                let told = self.scratch.iter().find(|(layer, _)| *layer == i);
                let (offset, bytes) = told.map_or((offset as u32, bytes as u32), |&(_, offset)| (offset, k as u32));
                Layer {
                    name: op.name(),
                    op: *op,
                    scratch: Scratch { offset, bytes },
                }
            })
            .collect();
        let scratch_ends = layers.iter().map(|layer| layer.scratch.offset + layer.scratch.bytes);
        let labels: Vec<String> = (0..self.tensors[self.layers.len()].channels)
            .map(|class| format!("class{class}"))
            .collect();
        Graph {
            name: "test",
            provenance: Provenance {
                top1: u16::MAX,
                ..Provenance::default()
            },
            arena_bytes: scratch_ends.fold(end as u32, u32::max),
            input_table: self.input_table,
            layers,
            tensors: self.tensors,
            labels: labels.iter().map(String::as_str).collect(),
        }
        .to_model_bytes(self.section.as_bytes())
        .expect("a valid model")
    }

    /// Of all tensors.
    fn end(&self) -> usize {
        let ends = self.tensors.iter().map(|tensor| tensor.offset as usize + tensor.bytes());
        ends.max().unwrap_or(0)
    }

    fn push_tensor(&mut self, h: usize, w: usize, c: usize, element: Element, zero_point: i8) -> usize {
        let offset = self.end().next_multiple_of(element.bytes()) as u32;
        self.tensors.push(Tensor {
            height: h as u16,
            width: w as u16,
            channels: c as u16,
            element,
            zero_point,
            scale: Scale::from_f32(0.5),
            offset,
        });
        self.tensors.len() - 1
    }
}

/// Everything that a run shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ran {
    pub input: Vec<u8>,
    /// Of each layer.
    pub outputs: Vec<Vec<u8>>,
    pub logits: Vec<i32>,
    pub top1: usize,
}

impl Observer for Ran {
    fn input(&mut self, codes: &[u8]) {
        assert!(self.outputs.is_empty());
        self.input = codes.to_vec();
    }

    fn layer_begin(&mut self, index: usize, _: &Layer<'_>) {
        assert_eq!(index, self.outputs.len());
    }

    fn layer_end(&mut self, index: usize, _: &Layer<'_>, output: &[u8]) {
        assert_eq!(index, self.outputs.len());
        self.outputs.push(output.to_vec());
    }
}

/// Runs a net of [`Net::new`] over input codes `x`, with little and with much scratch.
pub fn run(net: &Net, x: &[u8]) -> Ran {
    let pixels: Vec<u8> = x.iter().map(|code| code ^ 0x80).collect();
    let ran = run_pixels(net, &pixels);
    assert_eq!(ran.input, x);
    ran
}

/// Runs a net over pixels, with little and with much scratch.
pub fn run_pixels(net: &Net, pixels: &[u8]) -> Ran {
    let ran = run_in(net, Room::Least, pixels);
    assert_eq!(
        run_in(net, Room::Recommended, pixels),
        ran,
        "more scratch gives other results"
    );
    ran
}

/// Runs a net twice: in an arena full of [`FILL`], and in what the first run left.
fn run_in(net: &Net, room: Room, pixels: &[u8]) -> Ran {
    let file = net.file(room);
    let model = Model::parse(&file).expect("a valid model");
    let mut memory = vec![FILL; CANARY + model.arena_bytes() + CANARY];
    let aligned = memory[CANARY - 8..].as_ptr().align_offset(8) + CANARY - 8;
    let start = match room {
        Room::Least => aligned - 1,
        Room::Recommended => aligned,
    };
    let arena = &mut memory[start..][..model.arena_bytes()];
    let mut session = Session::new(&model, arena).expect("an arena as long as planned");
    let image = Image::new(&model, pixels).expect("an image of the size of the input");
    let mut once = || {
        let mut ran = Ran::default();
        let logits = session.run(image, &mut ran);
        assert_eq!(logits.len(), model.classes());
        let (top1, logits) = (logits.top1(), logits.iter().collect());
        Ran { logits, top1, ..ran }
    };
    let ran = once();
    assert_eq!(once(), ran, "a used arena gives other results");
    let (before, after) = (&memory[..start], &memory[start + model.arena_bytes()..]);
    assert!(
        before.iter().chain(after).all(|&byte| byte == FILL),
        "written outside of the arena"
    );
    ran
}

/// SplitMix64: the same cases on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Evenly from `low..=high`, nearly.
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        low + ((z ^ (z >> 31)) % (high - low + 1) as u64) as usize
    }

    /// An int8 code, one in eight at an end.
    pub fn code(&mut self) -> i8 {
        match self.within(0, 15) {
            0 => i8::MIN,
            1 => i8::MAX,
            _ => self.within(0, 255) as u8 as i8,
        }
    }

    /// Ends of a clamp: the whole range half of the time.
    pub fn clamp(&mut self) -> (i8, i8) {
        let (a, b) = (self.code(), self.code());
        if self.within(0, 1) == 0 {
            (i8::MIN, i8::MAX)
        } else {
            (a.min(b), a.max(b))
        }
    }
}
