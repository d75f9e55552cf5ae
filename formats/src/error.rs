//! What can be wrong with a model file: numbers only, so that a device can carry and print it without memory.

use core::fmt;

use crate::graph::{TensorId, Width};
use crate::{ALIGNMENT, HEADER_BYTES, MAX_TEXT_BYTES, VERSION};

/// Why a file is not a valid model. `Display` says what was found where, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// The file does not begin with [`MAGIC`](crate::MAGIC).
    NotAModel,
    /// The version is newer than [`VERSION`].
    NewerVersion {
        /// Version in the header.
        found: u16,
    },
    /// The version is a draft that no release has written.
    DraftVersion {
        /// Version in the header.
        found: u16,
    },
    /// The version is 0, which no writer writes.
    VersionZero,
    /// The header's own length is not [`HEADER_BYTES`].
    HeaderBytes {
        /// Length in the header.
        found: u16,
    },
    /// The weights section does not begin at the first multiple of [`ALIGNMENT`] after the graph.
    WeightsOffset {
        /// Offset in the header.
        found: u32,
        /// Bytes of the graph.
        graph_bytes: u32,
    },
    /// The file length in the header is not where the weights section ends.
    FileBytes {
        /// File length in the header.
        found: u32,
        /// First byte of the weights section.
        weights_offset: u32,
        /// Bytes of the weights section.
        weights_bytes: u32,
    },
    /// The file is shorter than its header says, or than a header.
    Truncated {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        needed: u32,
    },
    /// The file is longer than its header says.
    TrailingBytes {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        file_bytes: u32,
    },
    /// The CRC-32 does not fit the contents.
    Checksum {
        /// CRC in the header.
        stored: u32,
        /// CRC of the contents.
        computed: u32,
    },
    /// Bytes between graph and weights section are not zero.
    Padding,
    /// A part of the graph cannot be decoded: it ends too early, has an unknown variant, a number too large for its field,
    /// or text that is not UTF-8.
    Graph {
        /// The part.
        part: Part,
    },
    /// The graph ends before `graph_bytes`.
    GraphTrailingBytes {
        /// Bytes left over.
        found: usize,
    },
    /// A sequence is longer than its limit.
    TooMany {
        /// The sequence.
        part: Part,
        /// Its length.
        found: u32,
        /// The limit.
        limit: u32,
    },
    /// A text is longer than [`MAX_TEXT_BYTES`].
    TextTooLong {
        /// The part it belongs to.
        part: Part,
        /// Its bytes.
        found: usize,
    },
    /// A text holds a control character.
    ControlCharacter {
        /// The part it belongs to.
        part: Part,
    },
    /// The accuracy is neither 0 to 10000 nor 65535.
    Top1 {
        /// The value.
        found: u16,
    },
    /// There is no layer.
    NoLayers,
    /// There must be one tensor more than layers.
    TensorCount {
        /// Tensors there are.
        tensors: usize,
        /// Layers there are.
        layers: usize,
    },
    /// There must be one label a class.
    LabelCount {
        /// Labels there are.
        labels: usize,
        /// Channels of the last tensor.
        classes: u16,
    },
    /// The input table does not lie in the weights section.
    InputTable {
        /// End of the table, in bytes of the weights section.
        end: u64,
        /// Bytes of the weights section.
        section: usize,
    },
    /// The weights section goes on after the last byte that the graph refers to.
    UnusedWeights {
        /// End of the last table or row in use.
        used: u64,
        /// Bytes of the weights section.
        section: usize,
    },
    /// Something about one tensor.
    Tensor {
        /// Its number.
        tensor: TensorId,
        /// What.
        cause: TensorError,
    },
    /// Something about one layer.
    Layer {
        /// Its number.
        layer: u8,
        /// What.
        cause: LayerError,
    },
}

/// What can be wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorError {
    /// Height, width or channels are zero.
    Empty,
    /// The last tensor must be `I32`, every other `I8`.
    Element,
    /// An `I32` tensor must have zero point 0.
    ZeroPoint {
        /// The zero point.
        found: i8,
    },
    /// The scale is not finite and positive.
    Scale {
        /// Its bits.
        bits: u32,
    },
    /// An `I32` tensor must begin at a multiple of 4.
    Alignment {
        /// Its offset.
        offset: u32,
    },
    /// The tensor ends after the arena.
    Range {
        /// Its end.
        end: u64,
        /// Bytes of the arena.
        arena_bytes: u32,
    },
    /// No layer reads it.
    Unused,
    /// It shares bytes with another tensor that is in use at the same time.
    Overlap {
        /// The other.
        other: TensorId,
    },
}

/// What can be wrong with a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerError {
    /// It reads a tensor that an earlier layer does not write.
    Input {
        /// The tensor.
        input: TensorId,
    },
    /// `Logits` before the last layer.
    LogitsNotLast,
    /// The last layer is not `Logits`.
    LastNotLogits,
    /// A kernel size is zero.
    KernelZero,
    /// A stride is zero.
    StrideZero,
    /// Padding as large as the kernel, or larger.
    Padding {
        /// The padding.
        pad: u8,
        /// The kernel size in that direction.
        kernel: u8,
    },
    /// The kernel is larger than the padded input.
    KernelTooLarge {
        /// Kernel height and width.
        kernel: [u8; 2],
        /// Input height and width.
        input: [u16; 2],
    },
    /// The output tensor has another shape than the operation gives.
    OutputShape {
        /// Height, width, channels of the tensor.
        found: [u16; 3],
        /// Height, width, channels that the operation gives.
        computed: [u32; 3],
    },
    /// The two inputs of `Add` differ in shape, or the residual of a convolution from its output.
    InputShapes {
        /// Height, width, channels of the first.
        a: [u16; 3],
        /// Height, width, channels of the second.
        b: [u16; 3],
    },
    /// Input and output of an operation that copies codes differ in scale or zero point.
    CodesDiffer,
    /// `min` is greater than `max`.
    Clamp {
        /// Lower end.
        min: i8,
        /// Upper end.
        max: i8,
    },
    /// A region of the weights section begins at the wrong multiple.
    Alignment {
        /// The region.
        region: Region,
        /// Its offset.
        offset: u32,
    },
    /// A region ends after the weights section.
    Range {
        /// The region.
        region: Region,
        /// Its end.
        end: u64,
        /// Bytes of the weights section.
        section: usize,
    },
    /// A packed weight that is no value of its width.
    Code {
        /// Row.
        row: u16,
        /// Position in the row.
        column: u32,
        /// Width.
        width: Width,
    },
    /// Bits that no weight takes are not zero.
    RowPadding {
        /// Row; past the last one in a block that is not full.
        row: u32,
    },
    /// The multiplier of `AvgPool` is not 2^30 to 2^31 - 1.
    Multiplier {
        /// The multiplier.
        found: i32,
    },
    /// A shift is not 1 to 62.
    Shift {
        /// The shift.
        found: u8,
    },
    /// A multiplier of an addition is negative.
    AddMultiplier {
        /// The multiplier.
        found: i16,
    },
    /// The shift of an addition is not 1 to 30.
    AddShift {
        /// The shift.
        found: u8,
    },
    /// Some input could overflow a 32-bit accumulator.
    Accumulator {
        /// Output channel.
        channel: u16,
        /// Largest magnitude that the accumulator could reach.
        bound: u64,
    },
    /// The scratch range cannot hold one unpacked row.
    Scratch {
        /// Bytes of the row.
        needed: usize,
        /// Bytes of the range.
        scratch_bytes: u32,
    },
    /// The scratch range ends after the arena.
    ScratchRange {
        /// Its end.
        end: u64,
        /// Bytes of the arena.
        arena_bytes: u32,
    },
    /// The scratch range shares bytes with a tensor that is in use.
    ScratchOverlap {
        /// The tensor.
        tensor: TensorId,
    },
}

/// A part of the encoded graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Name, provenance, arena and input table.
    Head,
    /// The number of tensors.
    Tensors,
    /// One tensor.
    Tensor(u8),
    /// The number of layers.
    Layers,
    /// One layer.
    Layer(u8),
    /// The number of labels.
    Labels,
    /// One label.
    Label(u16),
}

/// A region of the weights section that a layer refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Packed rows.
    Weights,
    /// `bias: i32[rows]`.
    Bias,
    /// `multiplier: i32[rows]`.
    Multiplier,
}

impl Region {
    /// What its offset must be a multiple of.
    pub const fn alignment(self) -> usize {
        match self {
            Region::Weights => ALIGNMENT,
            Region::Bias | Region::Multiplier => 4,
        }
    }
}

impl core::error::Error for ParseError {}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ParseError::NotAModel => {
                f.write_str("not an adq model: the first 8 bytes are not its signature (wrong file, or a transfer as text)")
            }
            ParseError::NewerVersion { found } => {
                write!(
                    f,
                    "version {found} is newer than {VERSION}, the newest known here: update the reader, or export again"
                )
            }
            ParseError::DraftVersion { found } => {
                write!(
                    f,
                    "version {found} is a draft of version {VERSION}: export the checkpoint again"
                )
            }
            ParseError::VersionZero => f.write_str("version 0 does not exist: the header is damaged"),
            ParseError::HeaderBytes { found } => {
                write!(
                    f,
                    "the header says it has {found} bytes; version {VERSION} has {HEADER_BYTES}"
                )
            }
            ParseError::WeightsOffset { found, graph_bytes } => write!(
                f,
                "the weights section begins at byte {found}, which is not the first multiple of {ALIGNMENT} after a graph of \
                 {graph_bytes} bytes"
            ),
            ParseError::FileBytes {
                found,
                weights_offset,
                weights_bytes,
            } => write!(
                f,
                "the header says the file has {found} bytes, but {weights_bytes} bytes of weights begin at byte {weights_offset}"
            ),
            ParseError::Truncated { found, needed } => {
                write!(f, "the file ends after {found} of {needed} bytes: copy it again")
            }
            ParseError::TrailingBytes { found, file_bytes } => {
                write!(f, "{found} bytes given for a file of {file_bytes}: pass exactly the file")
            }
            ParseError::Checksum { stored, computed } => {
                write!(
                    f,
                    "the checksum is {computed:08x}, not {stored:08x}: the file is damaged, copy it again"
                )
            }
            ParseError::Padding => f.write_str("the bytes between graph and weights section are not zero"),
            ParseError::Graph { part } => write!(f, "{part}: cannot be decoded"),
            ParseError::GraphTrailingBytes { found } => {
                write!(f, "the graph is followed by {found} bytes that belong to nothing")
            }
            ParseError::TooMany { part, found, limit } => write!(f, "{part}: {found}, the limit is {limit}"),
            ParseError::TextTooLong { part, found } => {
                write!(f, "{part}: a text has {found} bytes, the limit is {MAX_TEXT_BYTES}")
            }
            ParseError::ControlCharacter { part } => write!(f, "{part}: a text holds a control character"),
            ParseError::Top1 { found } => write!(f, "top1 is {found}, neither 0 to 10000 nor 65535 (not measured)"),
            ParseError::NoLayers => f.write_str("the graph has no layers"),
            ParseError::TensorCount { tensors, layers } => {
                write!(f, "{layers} layers need {} tensors, the graph has {tensors}", layers + 1)
            }
            ParseError::LabelCount { labels, classes } => {
                write!(f, "{classes} logits need {classes} labels, the graph has {labels}")
            }
            ParseError::InputTable { end, section } => {
                write!(
                    f,
                    "the input table ends at byte {end} of a weights section of {section} bytes"
                )
            }
            ParseError::UnusedWeights { used, section } => {
                write!(
                    f,
                    "the weights section has {section} bytes, of which the graph uses the first {used}"
                )
            }
            ParseError::Tensor { tensor, cause } => write!(f, "tensor {tensor}: {cause}"),
            ParseError::Layer { layer, cause } => write!(f, "layer {layer}: {cause}"),
        }
    }
}

impl fmt::Display for TensorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TensorError::Empty => f.write_str("height, width or channels are zero"),
            TensorError::Element => f.write_str("the last tensor must be i32, every other i8"),
            TensorError::ZeroPoint { found } => write!(f, "zero point {found}, an i32 tensor must have 0"),
            TensorError::Scale { bits } => write!(f, "scale with the bits {bits:#010x} is not finite and positive"),
            TensorError::Alignment { offset } => {
                write!(f, "begins at byte {offset}, an i32 tensor must begin at a multiple of 4")
            }
            TensorError::Range { end, arena_bytes } => write!(f, "ends at byte {end} of an arena of {arena_bytes} bytes"),
            TensorError::Unused => f.write_str("no layer reads it"),
            TensorError::Overlap { other } => write!(f, "shares bytes with tensor {other}, which is in use at the same time"),
        }
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LayerError::Input { input } => write!(f, "reads tensor {input}, which no earlier layer writes"),
            LayerError::LogitsNotLast => f.write_str("logits must be the last layer"),
            LayerError::LastNotLogits => f.write_str("the last layer must be logits"),
            LayerError::KernelZero => f.write_str("a kernel size is zero"),
            LayerError::StrideZero => f.write_str("a stride is zero"),
            LayerError::Padding { pad, kernel } => write!(f, "padding {pad} must be less than the kernel size {kernel}"),
            LayerError::KernelTooLarge {
                kernel: [kh, kw],
                input: [h, w],
            } => {
                write!(f, "kernel {kh}x{kw} does not fit the padded input of {h}x{w}")
            }
            LayerError::OutputShape {
                found: [h, w, c],
                computed: [oh, ow, oc],
            } => {
                write!(f, "the output tensor is {h}x{w}x{c}, the operation gives {oh}x{ow}x{oc}")
            }
            LayerError::InputShapes {
                a: [ah, aw, ac],
                b: [bh, bw, bc],
            } => {
                write!(f, "adds tensors of different shapes, {ah}x{aw}x{ac} and {bh}x{bw}x{bc}")
            }
            LayerError::CodesDiffer => f.write_str("copies codes between tensors of different scale or zero point"),
            LayerError::Clamp { min, max } => write!(f, "clamps to {min}..={max}, which is empty"),
            LayerError::Alignment { region, offset } => {
                write!(
                    f,
                    "{region} begin at byte {offset}, not at a multiple of {}",
                    region.alignment()
                )
            }
            LayerError::Range { region, end, section } => {
                write!(f, "{region} end at byte {end} of a section of {section} bytes")
            }
            LayerError::Code { row, column, width } => {
                write!(f, "weight {column} of row {row} is no value of {}", width.name())
            }
            LayerError::RowPadding { row } => write!(f, "row {row} is not padded with zero bits"),
            LayerError::Multiplier { found } => write!(f, "multiplier {found} is not 2^30 to 2^31 - 1"),
            LayerError::Shift { found } => write!(f, "shift {found} is not 1 to 62"),
            LayerError::AddMultiplier { found } => write!(f, "multiplier {found} is not 0 to 32767"),
            LayerError::AddShift { found } => write!(f, "shift {found} is not 1 to 30"),
            LayerError::Accumulator { channel, bound } => {
                write!(
                    f,
                    "the accumulator of channel {channel} could reach {bound}, more than {}",
                    i32::MAX
                )
            }
            LayerError::Scratch { needed, scratch_bytes } => {
                write!(f, "one row needs {needed} bytes of scratch, the layer has {scratch_bytes}")
            }
            LayerError::ScratchRange { end, arena_bytes } => {
                write!(f, "the scratch range ends at byte {end} of an arena of {arena_bytes} bytes")
            }
            LayerError::ScratchOverlap { tensor } => {
                write!(f, "the scratch range shares bytes with tensor {tensor}, which is in use")
            }
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Part::Head => f.write_str("head of the graph"),
            Part::Tensors => f.write_str("number of tensors"),
            Part::Tensor(i) => write!(f, "tensor {i}"),
            Part::Layers => f.write_str("number of layers"),
            Part::Layer(i) => write!(f, "layer {i}"),
            Part::Labels => f.write_str("number of labels"),
            Part::Label(i) => write!(f, "label {i}"),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Region::Weights => "weights",
            Region::Bias => "biases",
            Region::Multiplier => "multipliers",
        })
    }
}
