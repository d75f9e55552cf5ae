//! Small models for tests: written by the formats crate, parsed, and run over an arena whose every byte is accounted for.

use adcorda_runtime::formats::{
    Element, Graph, Layer, Model, Op, Plan, Provenance, Requantize, Scale, Section, Tensor, Weights, Width,
};
use adcorda_runtime::{Image, Observer, Session};

/// What the arena and its surroundings hold before a run.
pub const FILL: u8 = 0xA5;
/// Bytes before and after the arena; odd, so that the arena is not aligned.
const CANARY: usize = 33;

/// A model under construction, one tensor after the other in the arena.
pub struct Net {
    tensors: Vec<Tensor>,
    layers: Vec<Op>,
    section: Section,
    input_table: u32,
    scratch: usize,
    /// Multiplier and shift of each channel, by the offset of the multipliers.
    rules: Vec<(u32, Vec<(i32, u8)>)>,
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
            scratch: 0,
            rules: Vec::new(),
        };
        net.push_tensor(h, w, table.len(), Element::I8, zero_point);
        net
    }

    pub fn weights(&mut self, rows: &Rows) -> Weights {
        let k = rows.codes[0].len();
        self.scratch = self.scratch.max(k);
        let offset = self
            .section
            .push_rows(rows.width, &rows.codes.concat(), k)
            .expect("codes of the width");
        Weights {
            width: rows.width,
            offset,
            bias: self.section.push_i32s(&rows.bias),
        }
    }

    pub fn requantization(&mut self, multiplier: Vec<i32>, shift: Vec<u8>, min: i8, max: i8) -> Requantize {
        let requantize = Requantize {
            multiplier: self.section.push_i32s(&multiplier),
            shift: self.section.push_u8s(&shift),
            min,
            max,
        };
        self.rules
            .push((requantize.multiplier, multiplier.into_iter().zip(shift).collect()));
        requantize
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

    pub fn tensor(&self, id: usize) -> &Tensor {
        &self.tensors[id]
    }

    /// The rule of the format, in 128 bits.
    pub fn requantize(&self, requantize: &Requantize, y: usize, channel: usize, acc: i64) -> u8 {
        let (_, rules) = self
            .rules
            .iter()
            .find(|(offset, _)| *offset == requantize.multiplier)
            .expect("pushed before");
        let (multiplier, shift) = rules[channel];
        let scaled = (i128::from(acc) * i128::from(multiplier) + (1i128 << (shift - 1))) >> shift;
        let code = scaled + i128::from(self.tensors[y].zero_point);
        code.clamp(requantize.min.into(), requantize.max.into()) as i8 as u8
    }

    /// The file. A net without a last layer gets one of two classes.
    pub fn file(&self) -> Vec<u8> {
        let (mut tensors, mut layers, mut section) = (self.tensors.clone(), self.layers.clone(), self.section.clone());
        let mut scratch = self.scratch;
        if !matches!(layers.last(), Some(Op::Logits { .. })) {
            let mut net = Net {
                tensors,
                layers,
                section,
                rules: Vec::new(),
                ..*self
            };
            let k = net.tensors[net.tensors.len() - 1].elements();
            let codes = (0..2)
                .map(|class| (0..k).map(|i| ((i + class) % 3) as i8 - 1).collect())
                .collect();
            let weights = net.weights(&Rows {
                width: Width::W2,
                codes,
                bias: vec![5, -5],
            });
            net.logits(
                Op::Logits {
                    input: net.layers.len() as u8,
                    weights,
                },
                2,
            );
            (tensors, layers, section, scratch) = (net.tensors, net.layers, net.section, net.scratch);
        }
        let end = tensors
            .iter()
            .map(|tensor| tensor.offset as usize + tensor.bytes())
            .max()
            .expect("an input");
        let labels: Vec<String> = (0..tensors[tensors.len() - 1].channels)
            .map(|class| format!("class{class}"))
            .collect();
        Graph {
            name: "test",
            provenance: Provenance {
                top1: u16::MAX,
                ..Provenance::default()
            },
            plan: Plan {
                arena_bytes: (end + scratch) as u32,
                scratch_offset: end as u32,
                scratch_bytes: scratch as u32,
            },
            input_table: self.input_table,
            tensors,
            layers: layers.into_iter().map(|op| Layer { name: op.name(), op }).collect(),
            labels: labels.iter().map(String::as_str).collect(),
        }
        .to_model_bytes(section.as_bytes())
        .expect("a valid model")
    }

    fn push_tensor(&mut self, h: usize, w: usize, c: usize, element: Element, zero_point: i8) -> usize {
        let end = self
            .tensors
            .iter()
            .map(|tensor| tensor.offset as usize + tensor.bytes())
            .max()
            .unwrap_or(0);
        self.tensors.push(Tensor {
            height: h as u16,
            width: w as u16,
            channels: c as u16,
            element,
            zero_point,
            scale: Scale::from_f32(0.5),
            offset: end.next_multiple_of(element.bytes()) as u32,
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

/// Runs a net of [`Net::new`] over input codes `x`, twice: in an arena full of [`FILL`], and in what the first run left.
pub fn run(net: &Net, x: &[u8]) -> Ran {
    let pixels: Vec<u8> = x.iter().map(|code| code ^ 0x80).collect();
    let ran = run_pixels(&net.file(), &pixels);
    assert_eq!(ran.input, x);
    ran
}

pub fn run_pixels(file: &[u8], pixels: &[u8]) -> Ran {
    let model = Model::parse(file).expect("a valid model");
    let mut memory = vec![FILL; CANARY + model.arena_bytes() + CANARY];
    let arena = &mut memory[CANARY..][..model.arena_bytes()];
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
    let (before, after) = (&memory[..CANARY], &memory[CANARY + model.arena_bytes()..]);
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
