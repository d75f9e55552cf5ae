//! Reading: the header, the graph, and typed views into the weights section.

use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc};
use serde::Deserialize;

use crate::check;
use crate::error::{ParseError, Part};
use crate::graph::{Element, Layer, Provenance, Requantize, Scale, Tensor, Weights};
use crate::{ALIGNMENT, HEADER_BYTES, MAGIC, MAX_CLASSES, MAX_LAYERS, MAX_TENSORS, MAX_TEXT_BYTES, VERSION};

/// A model file that passed every check.
///
/// Borrows the file; 2 KiB of decoded tensors are its own. Layers and labels are decoded again at each walk over them, which
/// costs a few hundred cycles a layer and no memory.
///
/// Each move may be another copy of 2 KiB on the stack. Where that counts, match on a reference to the result of
/// [`Model::parse`], which itself takes about 1.5 KiB on a Cortex-M and has given them back when the model runs.
///
/// Methods that take [`Weights`] or [`Requantize`] want those of this model's own layers, with the rows and `k` of
/// [`Op::rows_and_k`](crate::Op::rows_and_k); with others they may panic.
#[derive(Clone)]
pub struct Model<'a> {
    head: Head<'a>,
    tensors: [Tensor; MAX_TENSORS],
    tensor_count: usize,
    layers: Layers<'a>,
    labels: Labels<'a>,
    weights: &'a [u8],
}

impl<'a> Model<'a> {
    /// Checks a whole file, and gives the model in it. Everything that `FORMAT.md` demands of a file is checked here, and
    /// nowhere else: what a conforming runtime does with the result cannot fail, panic or overflow.
    ///
    /// `file` must be exactly the file: bytes after its end are an error. Any alignment will do; kernels may be faster where
    /// it is a multiple of 16.
    ///
    /// # Errors
    /// The first thing found wrong, as numbers: see [`ParseError`].
    #[inline(never)]
    pub fn parse(file: &'a [u8]) -> Result<Self, ParseError> {
        // A device's stack is small. So the checks make do without the decoded table of tensors, which is most of a model, and
        // the table is written once, into the caller's result.
        let parts = Parts::decode(file)?;
        check::check(&parts)?;
        Ok(Model {
            tensors: parts.tensors.table(),
            head: parts.head,
            tensor_count: parts.tensors.len(),
            layers: parts.layers,
            labels: parts.labels,
            weights: parts.weights,
        })
    }

    /// Length of the file that begins with `header`, for those who must know how much to read, or where in a partition the
    /// file ends. What a header shows by itself is checked as in [`Model::parse`]; its checksum takes the whole file.
    ///
    /// # Errors
    /// Those of [`Model::parse`] that the header is the reason for: [`ParseError::NotAModel`], those of the version and of the
    /// header's lengths.
    pub fn file_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, ParseError> {
        Ok(Header::check(header)?.file_bytes as usize)
    }

    /// Name of the model, e.g. `resnet8`.
    pub fn name(&self) -> &'a str {
        self.head.name
    }

    /// Where the model comes from.
    pub fn provenance(&self) -> Provenance<'a> {
        self.head.provenance
    }

    /// Names of the classes, in the order of the logits.
    pub fn labels(&self) -> Labels<'a> {
        self.labels.clone()
    }

    /// Name of one class, or `None` past the last. Walks the labels before it.
    pub fn label(&self, class: usize) -> Option<&'a str> {
        self.labels().nth(class)
    }

    /// Number of classes, logits and labels.
    pub fn classes(&self) -> usize {
        self.labels.left
    }

    /// The input image: tensor 0.
    pub fn input(&self) -> &Tensor {
        &self.tensors[0]
    }

    /// The logits: the last tensor, `I32`, `[1, 1, classes]`.
    pub fn output(&self) -> &Tensor {
        &self.tensors[self.tensor_count - 1]
    }

    /// All tensors: the input, then the output of each layer.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors[..self.tensor_count]
    }

    /// The layers in the order in which they run.
    pub fn layers(&self) -> Layers<'a> {
        self.layers.clone()
    }

    /// Layer `i`, or `None` past the last. Decodes the layers before it: walk [`Model::layers`] where all are wanted.
    pub fn layer(&self, i: usize) -> Option<Layer<'a>> {
        self.layers().nth(i)
    }

    /// The code of each pixel value, `i8[channels][256]`: pixel value `v` of channel `c` becomes code `c * 256 + v`.
    pub fn input_table(&self) -> &'a [u8] {
        let start = self.head.input_table as usize;
        &self.weights[start..start + self.input().channels as usize * 256]
    }

    /// Bytes of RAM that the runtime needs for tensors and scratch.
    pub fn arena_bytes(&self) -> usize {
        self.head.arena_bytes as usize
    }

    /// All weights, tables and per-channel parameters.
    pub fn weights_section(&self) -> &'a [u8] {
        self.weights
    }

    /// Packed weights: [`Packing::bytes`](crate::Packing::bytes), and then whatever follows them in the section, which means
    /// nothing but may be read.
    pub fn packed(&self, weights: &Weights) -> &'a [u8] {
        &self.weights[weights.offset as usize..]
    }

    /// `bias: i32[rows]`.
    pub fn bias(&self, weights: &Weights, rows: usize) -> I32Array<'a> {
        self.i32s(weights.bias, rows)
    }

    /// `multiplier: i32[rows]`.
    pub fn multiplier(&self, requantize: &Requantize, rows: usize) -> I32Array<'a> {
        self.i32s(requantize.multiplier, rows)
    }

    #[cfg(feature = "alloc")]
    pub(crate) fn head(&self) -> &Head<'a> {
        &self.head
    }

    fn i32s(&self, offset: u32, len: usize) -> I32Array<'a> {
        I32Array::new(self.slice(offset, len * 4))
    }

    fn slice(&self, offset: u32, bytes: usize) -> &'a [u8] {
        let start = offset as usize;
        &self.weights[start..start + bytes]
    }
}

impl fmt::Debug for Model<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name())
            .field("layers", &self.layers.left)
            .field("classes", &self.classes())
            .field("arena_bytes", &self.arena_bytes())
            .field("weights_bytes", &self.weights.len())
            .finish_non_exhaustive()
    }
}

/// The layers of a model, in the order in which they run.
#[derive(Clone, Debug)]
pub struct Layers<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Layers<'a> {
    type Item = Layer<'a>;

    fn next(&mut self) -> Option<Layer<'a>> {
        next(&mut self.rest, &mut self.left)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Layers<'_> {}

/// The names of a model's classes, in the order of the logits.
#[derive(Clone, Debug)]
pub struct Labels<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        next(&mut self.rest, &mut self.left)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Labels<'_> {}

/// Little-endian `i32`s, read in place at any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct I32Array<'a> {
    words: &'a [[u8; 4]],
}

impl<'a> I32Array<'a> {
    /// Of whole words.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        I32Array {
            words: bytes.as_chunks().0,
        }
    }

    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The elements as they are stored: for those who can read them faster where they are aligned.
    pub const fn words(&self) -> &'a [[u8; 4]] {
        self.words
    }

    /// Element `i`.
    ///
    /// # Panics
    /// Where `i >= len()`.
    #[inline]
    pub const fn get(&self, i: usize) -> i32 {
        i32::from_le_bytes(self.words[i])
    }

    /// All elements.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = i32> + 'a {
        self.words.iter().map(|word| i32::from_le_bytes(*word))
    }
}

/// The CRC of a file of which all lengths are right: every byte but the CRC's own.
pub(crate) fn checksum(file: &[u8]) -> u32 {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut digest = CRC.digest();
    digest.update(&file[..HEADER_BYTES - 4]);
    digest.update(&file[HEADER_BYTES..]);
    digest.finalize()
}

/// A file whose header is right and whose graph can be decoded: what the other checks look at.
pub(crate) struct Parts<'a> {
    pub(crate) head: Head<'a>,
    pub(crate) tensors: Tensors<'a>,
    pub(crate) layers: Layers<'a>,
    pub(crate) labels: Labels<'a>,
    pub(crate) weights: &'a [u8],
}

impl<'a> Parts<'a> {
    #[inline(never)]
    fn decode(file: &'a [u8]) -> Result<Self, ParseError> {
        let (graph, weights) = sections(file)?;
        let mut cursor = Cursor { rest: graph };

        let head: Head = cursor.take(Part::Head)?;
        for text in [head.name, head.provenance.data, head.provenance.method] {
            check_text(text, Part::Head)?;
        }

        let tensor_count = cursor.count(Part::Tensors, MAX_TENSORS)?;
        let mut tensors = Tensors {
            bytes: cursor.rest,
            starts: [0; MAX_TENSORS],
            count: tensor_count,
        };
        for (i, start) in tensors.starts[..tensor_count].iter_mut().enumerate() {
            *start = (tensors.bytes.len() - cursor.rest.len()) as u16;
            cursor.take::<Tensor>(Part::Tensor(i as u8))?;
        }

        let layer_count = cursor.count(Part::Layers, MAX_LAYERS)?;
        let layers = Layers {
            rest: cursor.rest,
            left: layer_count,
        };
        for i in 0..layer_count {
            let layer: Layer = cursor.take(Part::Layer(i as u8))?;
            check_text(layer.name, Part::Layer(i as u8))?;
        }

        let label_count = cursor.count(Part::Labels, MAX_CLASSES)?;
        let labels = Labels {
            rest: cursor.rest,
            left: label_count,
        };
        for i in 0..label_count {
            check_text(cursor.take(Part::Label(i as u16))?, Part::Label(i as u16))?;
        }

        if !cursor.rest.is_empty() {
            return Err(ParseError::GraphTrailingBytes {
                found: cursor.rest.len(),
            });
        }
        Ok(Parts {
            head,
            tensors,
            layers,
            labels,
            weights,
        })
    }
}

/// The encoded tensors, found at once: an eighth of the memory of their decoded table.
pub(crate) struct Tensors<'a> {
    bytes: &'a [u8],
    /// First byte of each; an encoded tensor has 25 bytes at most.
    starts: [u16; MAX_TENSORS],
    count: usize,
}

impl Tensors<'_> {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Tensor `i`, which `Parts::decode` has decoded before.
    #[inline(never)]
    pub(crate) fn get(&self, i: usize) -> Tensor {
        let encoded = &self.bytes[usize::from(self.starts[i])..];
        postcard::take_from_bytes(encoded).map_or(EMPTY, |(tensor, _)| tensor)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Tensor> {
        (0..self.count).map(|i| self.get(i))
    }

    /// All of them, decoded.
    // The loop is such that the compiler writes to the caller's memory; `from_fn` would build a copy first.
    #[inline(never)]
    fn table(&self) -> [Tensor; MAX_TENSORS] {
        let mut table = [EMPTY; MAX_TENSORS];
        let mut i = 0;
        while i < self.count {
            table[i] = self.get(i);
            i += 1;
        }
        table
    }
}

/// What precedes the sequences in the encoded graph.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Head<'a> {
    #[serde(borrow)]
    pub(crate) name: &'a str,
    #[serde(borrow)]
    pub(crate) provenance: Provenance<'a>,
    pub(crate) arena_bytes: u32,
    pub(crate) input_table: u32,
}

/// Checks the header, the lengths, the CRC and the padding; gives the graph and the weights section.
fn sections(file: &[u8]) -> Result<(&[u8], &[u8]), ParseError> {
    let Some((header, body)) = file.split_first_chunk() else {
        check_magic(file)?;
        return Err(ParseError::Truncated {
            found: file.len(),
            needed: HEADER_BYTES as u32,
        });
    };
    let header = Header::check(header)?;
    let file_bytes = header.file_bytes;
    if (file.len() as u64) < u64::from(file_bytes) {
        return Err(ParseError::Truncated {
            found: file.len(),
            needed: file_bytes,
        });
    }
    if file.len() as u64 > u64::from(file_bytes) {
        return Err(ParseError::TrailingBytes {
            found: file.len(),
            file_bytes,
        });
    }
    let (stored, computed) = (header.crc32, checksum(file));
    if stored != computed {
        return Err(ParseError::Checksum { stored, computed });
    }
    let (graph, rest) = body.split_at(header.graph_bytes as usize);
    let (padding, weights) = rest.split_at(header.weights_offset as usize - HEADER_BYTES - header.graph_bytes as usize);
    if padding.iter().any(|&byte| byte != 0) {
        return Err(ParseError::Padding);
    }
    Ok((graph, weights))
}

/// The header's fields, which agree with each other: `32 + graph_bytes <= weights_offset <= file_bytes`.
struct Header {
    graph_bytes: u32,
    weights_offset: u32,
    file_bytes: u32,
    crc32: u32,
}

impl Header {
    /// Everything about a header that it shows without the rest of the file.
    fn check(header: &[u8; HEADER_BYTES]) -> Result<Self, ParseError> {
        check_magic(header)?;
        let u16_at = |i: usize| u16::from_le_bytes([header[i], header[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);

        // The version comes first: what the other fields mean is known only for versions up to ours.
        match u16_at(8) {
            VERSION => {}
            0 => return Err(ParseError::VersionZero),
            found if found < VERSION => return Err(ParseError::DraftVersion { found }),
            found => return Err(ParseError::NewerVersion { found }),
        }
        if u16_at(10) != HEADER_BYTES as u16 {
            return Err(ParseError::HeaderBytes { found: u16_at(10) });
        }
        let (graph_bytes, weights_offset, weights_bytes, file_bytes) = (u32_at(12), u32_at(16), u32_at(20), u32_at(24));
        if u64::from(weights_offset) != (HEADER_BYTES as u64 + u64::from(graph_bytes)).next_multiple_of(ALIGNMENT as u64) {
            return Err(ParseError::WeightsOffset {
                found: weights_offset,
                graph_bytes,
            });
        }
        if u64::from(file_bytes) != u64::from(weights_offset) + u64::from(weights_bytes) {
            return Err(ParseError::FileBytes {
                found: file_bytes,
                weights_offset,
                weights_bytes,
            });
        }
        Ok(Header {
            graph_bytes,
            weights_offset,
            file_bytes,
            crc32: u32_at(28),
        })
    }
}

/// Checks as much of the magic as there is: what is no model at all is not called a truncated one.
fn check_magic(file: &[u8]) -> Result<(), ParseError> {
    let magic = file.get(..MAGIC.len()).unwrap_or(file);
    if magic == &MAGIC[..magic.len()] {
        Ok(())
    } else {
        Err(ParseError::NotAModel)
    }
}

/// The part of the graph not decoded yet.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take<T: Deserialize<'a>>(&mut self, part: Part) -> Result<T, ParseError> {
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(|_| ParseError::Graph { part })?;
        self.rest = rest;
        Ok(value)
    }

    fn count(&mut self, part: Part, limit: usize) -> Result<usize, ParseError> {
        let found: u32 = self.take(part)?;
        if found as usize > limit {
            return Err(ParseError::TooMany {
                part,
                found,
                limit: limit as u32,
            });
        }
        Ok(found as usize)
    }
}

/// Decodes what `parse` has decoded before.
fn next<'a, T: Deserialize<'a>>(rest: &mut &'a [u8], left: &mut usize) -> Option<T> {
    *left = left.checked_sub(1)?;
    let (value, after) = postcard::take_from_bytes(rest).ok()?;
    *rest = after;
    Some(value)
}

fn check_text(text: &str, part: Part) -> Result<(), ParseError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(ParseError::TextTooLong { part, found: text.len() });
    }
    if text.chars().any(char::is_control) {
        return Err(ParseError::ControlCharacter { part });
    }
    Ok(())
}

const EMPTY: Tensor = Tensor {
    height: 0,
    width: 0,
    channels: 0,
    element: Element::I8,
    zero_point: 0,
    scale: Scale(0),
    offset: 0,
};
