//! Models drawn at random, layer by layer: what the cases and the benchmark networks are made of.

use adcorda_formats::{
    Element, Graph, Layer, Op, Order, Provenance, Requantize, Residual, Scale, Scratch, Section, Tensor, TensorId, Weights,
    Width, Window,
};

use crate::cases::Case;

pub(crate) const fn window(kernel: [u8; 2], stride: [u8; 2], [pad_top, pad_bottom, pad_left, pad_right]: [u8; 4]) -> Window {
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

/// What the input table holds.
pub(crate) enum Table {
    /// Pixel `v` is code `v - 128`.
    Identity,
    /// Any code for any pixel, another one in each channel.
    Random,
}

/// A weight matrix to be drawn, with its biases and its rules of requantization.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) width: Width,
    pub(crate) codes: Codes,
    pub(crate) bias: Bias,
    pub(crate) rules: Rules,
}

impl Matrix {
    pub(crate) fn random(width: Width) -> Matrix {
        Matrix {
            width,
            codes: Codes::Random,
            bias: Bias::Random,
            rules: Rules::Fitted,
        }
    }
}

#[derive(Clone)]
pub(crate) enum Codes {
    /// Any of the width.
    Random,
    /// All lowest in some rows, all highest in the others.
    Ends,
    /// This one.
    Constant(i8),
}

#[derive(Clone, Copy)]
pub(crate) enum Bias {
    /// That of a real layer: small, with `- zero_point_in * sum(w)`.
    Random,
    /// The largest that the bound on accumulators allows: positive in two rows, negative in the next two.
    Ends,
    /// 0.
    Zero,
}

#[derive(Clone)]
pub(crate) enum Rules {
    /// So that most outputs lie within the range of a code, with multipliers of both signs.
    Fitted,
    /// These multipliers, row after row, with this shift and this clamp.
    Fixed(Vec<i32>, u8, i8, i8),
}

/// The numbers of an `Add`.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) mul_a: i16,
    pub(crate) mul_b: i16,
    pub(crate) shift: u8,
    pub(crate) min: i8,
    pub(crate) max: i8,
}

impl Sum {
    pub(crate) const fn new(mul_a: i16, mul_b: i16, shift: u8) -> Sum {
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
pub(crate) struct Net {
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
    pub(crate) fn new(name: String, shape: [usize; 3]) -> Net {
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

    pub(crate) fn input_codes(mut self, table: Table) -> Net {
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

    pub(crate) fn zero_point(&mut self, tensor: TensorId, zero_point: i8) {
        self.tensors[usize::from(tensor)].zero_point = zero_point;
    }

    pub(crate) fn conv2d(&mut self, input: TensorId, window: Window, channels: usize, matrix: Matrix) -> TensorId {
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
    pub(crate) fn conv2d_residual(
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

    pub(crate) fn depthwise_conv2d(&mut self, input: TensorId, window: Window, matrix: Matrix) -> TensorId {
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

    pub(crate) fn linear(&mut self, input: TensorId, channels: usize, matrix: Matrix) -> TensorId {
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

    pub(crate) fn logits(&mut self, input: TensorId, classes: usize, matrix: Matrix) {
        let k = self.shape(input).iter().product();
        let weights = self.weights(Order::Blocks, input, classes, k, &matrix);
        self.ops.push(Op::Logits { input, weights });
        self.push_tensor([1, 1, classes], Element::I32, 0, None);
    }

    /// In the place of `over`, where given.
    pub(crate) fn add(&mut self, a: TensorId, b: TensorId, sum: Sum, over: Option<TensorId>) -> TensorId {
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

    pub(crate) fn max_pool(&mut self, input: TensorId, window: Window) -> TensorId {
        let shape = self.windowed(input, &window, self.shape(input)[2]);
        self.copying(Op::MaxPool { input, window }, input, shape)
    }

    /// By `rule` (multiplier and shift), or as a mean.
    pub(crate) fn avg_pool(&mut self, input: TensorId, window: Window, rule: Option<(i32, u8)>) -> TensorId {
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

    pub(crate) fn subsample(&mut self, input: TensorId, stride: u8, before: usize, after: usize) -> TensorId {
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
    pub(crate) fn finish(mut self, width: Width, classes: usize) -> Case {
        self.logits(self.ops.len() as u8, classes, Matrix::random(width));
        self.case()
    }

    /// The model, with an image of random pixels and one of lowest and highest pixels.
    pub(crate) fn case(mut self) -> Case {
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
    pub(crate) fn place(&mut self) -> (u32, Scratch) {
        let bytes = self.scratch as u32;
        let start = if self.random.within(0, 1) == 0 { bytes } else { 0 };
        let end = place(&mut self.tensors, &self.ops, &self.over, start, 1);
        let offset = if start == 0 { end } else { 0 };
        (end + bytes - start, Scratch { offset, bytes })
    }

    pub(crate) fn shape(&self, tensor: TensorId) -> [usize; 3] {
        let tensor = &self.tensors[usize::from(tensor)];
        [tensor.height.into(), tensor.width.into(), tensor.channels.into()]
    }

    pub(crate) fn windowed(&self, input: TensorId, window: &Window, channels: usize) -> [usize; 3] {
        let [height, width, _] = self.shape(input);
        let (height, width) = window.output(height, width).expect("the kernel fits");
        [height, width, channels]
    }

    /// Appends a layer whose output has codes of its own.
    pub(crate) fn rescaling(&mut self, op: Op, shape: [usize; 3]) -> TensorId {
        self.ops.push(op);
        let zero_point = self.random.within(0, 200) as i32 - 100;
        self.push_tensor(shape, Element::I8, zero_point as i8, None)
    }

    /// Appends a layer whose output has the codes of its input.
    pub(crate) fn copying(&mut self, op: Op, input: TensorId, shape: [usize; 3]) -> TensorId {
        self.ops.push(op);
        self.push_tensor(shape, Element::I8, self.tensors[usize::from(input)].zero_point, None)
    }

    pub(crate) fn push_tensor(
        &mut self,
        shape: [usize; 3],
        element: Element,
        zero_point: i8,
        over: Option<TensorId>,
    ) -> TensorId {
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

    pub(crate) fn weights(&mut self, order: Order, input: TensorId, rows: usize, k: usize, matrix: &Matrix) -> Weights {
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

    pub(crate) fn requantize(&mut self, rows: usize, k: usize, matrix: &Matrix) -> Requantize {
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
pub(crate) fn place(tensors: &mut [Tensor], ops: &[Op], over: &[Option<TensorId>], start: u32, alignment: u32) -> u32 {
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

/// SplitMix64, seeded by a name.
pub(crate) struct Random(u64);

impl Random {
    /// FNV-1a of the name.
    pub(crate) fn new(name: &str) -> Random {
        let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
    }

    /// Evenly from `low..=high`, nearly.
    pub(crate) fn within(&mut self, low: usize, high: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + ((z ^ (z >> 31)) % (high - low + 1) as u64) as usize
    }

    /// An int8 code, one in eight at an end.
    pub(crate) fn code(&mut self) -> i8 {
        match self.within(0, 15) {
            0 => i8::MIN,
            1 => i8::MAX,
            _ => self.within(0, 255) as u8 as i8,
        }
    }

    /// A weight that the width has.
    pub(crate) fn weight(&mut self, width: Width) -> i8 {
        let (low, high) = (i32::from(width.min_code()), i32::from(width.max_code()));
        loop {
            let code = (low + self.within(0, (high - low) as usize) as i32) as i8;
            if width != Width::W1 || code != 0 {
                return code;
            }
        }
    }
}
