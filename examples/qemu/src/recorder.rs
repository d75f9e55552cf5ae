//! Sees an inference from inside: checksum and instructions of each layer.

use core::hint::black_box;

use adcorda_runtime::formats::{Layer, MAX_CLASSES, MAX_LAYERS, Op, Scratch, Window};
use adcorda_runtime::{Logits, Observer};
use crc::{CRC_32_ISO_HDLC, Crc};

use crate::counter;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// What is kept of a layer.
#[derive(Clone, Copy)]
pub struct Record {
    /// CRC-32 of the output's bytes.
    pub crc: u32,
    /// Instructions it took.
    pub instructions: u32,
}

/// Keeps everything until the inference is over: printing in between would show up in the stack.
pub struct Recorder {
    input_crc: u32,
    layers: [Record; MAX_LAYERS],
    count: usize,
    logits: [i32; MAX_CLASSES],
    classes: usize,
    begin: u32,
    /// Instructions of an empty layer: those of the observer's own calls.
    overhead: u32,
}

impl Recorder {
    /// Measures what observing costs. Exact but for how the compiler arranges the arguments of the two calls, which is a handful
    /// of instructions a layer.
    pub fn new() -> Self {
        let mut recorder = Self {
            input_crc: 0,
            layers: [Record { crc: 0, instructions: 0 }; MAX_LAYERS],
            count: 0,
            logits: [0; MAX_CLASSES],
            classes: 0,
            begin: 0,
            overhead: 0,
        };
        let op = Op::MaxPool {
            input: 0,
            window: Window::POINT,
        };
        let scratch = Scratch::default();
        let layer = black_box(Layer { name: "", op, scratch });
        let output = black_box([].as_slice());
        recorder.layer_begin(0, &layer);
        recorder.layer_end(0, &layer, output);
        recorder.overhead = recorder.layers[0].instructions;
        recorder
    }

    /// Forgets the last inference.
    pub fn restart(&mut self) {
        self.count = 0;
        self.classes = 0;
    }

    /// Keeps the logits.
    pub fn logits(&mut self, logits: Logits<'_>) {
        self.classes = logits.len();
        for (kept, logit) in self.logits.iter_mut().zip(logits.iter()) {
            *kept = logit;
        }
    }

    /// CRC-32 of the input tensor.
    pub fn input_crc(&self) -> u32 {
        self.input_crc
    }

    /// The layers of the last inference.
    pub fn layers(&self) -> &[Record] {
        &self.layers[..self.count]
    }

    /// The logits of the last inference.
    pub fn last_logits(&self) -> &[i32] {
        &self.logits[..self.classes]
    }
}

// Neither call of a layer is inlined, so that their costs are those of the calls in `new`.
impl Observer for Recorder {
    fn input(&mut self, codes: &[u8]) {
        self.input_crc = CRC.checksum(codes);
    }

    #[inline(never)]
    fn layer_begin(&mut self, _index: usize, _layer: &Layer<'_>) {
        self.begin = counter::ticks();
    }

    #[inline(never)]
    fn layer_end(&mut self, index: usize, _layer: &Layer<'_>, output: &[u8]) {
        let end = counter::ticks();
        let instructions = counter::instructions(self.begin, end).saturating_sub(self.overhead);
        if let Some(record) = self.layers.get_mut(index) {
            *record = Record {
                crc: CRC.checksum(output),
                instructions,
            };
            self.count = index + 1;
        }
    }
}
