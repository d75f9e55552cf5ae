//! Writing model files. Needs an allocator.

use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::error::ParseError;
use crate::graph::{Layer, Provenance, Tensor, Width};
use crate::model::{Model, checksum};
use crate::packing::{Order, Packing};
use crate::{ALIGNMENT, HEADER_BYTES, MAGIC, VERSION};

/// A whole model but for its weights section: what the file's postcard part holds, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Graph<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Where it comes from.
    pub provenance: Provenance<'a>,
    /// Bytes of the arena.
    pub arena_bytes: u32,
    /// First byte of the input table, `i8[channels][256]`, in the weights section.
    pub input_table: u32,
    /// The input, then the output of each layer.
    pub tensors: Vec<Tensor>,
    /// The layers, in the order in which they run.
    pub layers: Vec<Layer<'a>>,
    /// Names of the classes.
    pub labels: Vec<&'a str>,
}

impl<'a> Graph<'a> {
    /// The model file of this graph and this weights section ([`Section::into_bytes`]).
    ///
    /// The same graph and weights give the same bytes. The result has been parsed: nothing invalid is ever written.
    ///
    /// # Errors
    /// What [`Model::parse`] finds wrong with the result.
    pub fn to_model_bytes(&self, weights: &[u8]) -> Result<Vec<u8>, ParseError> {
        let bytes = self.to_bytes(weights);
        Model::parse(&bytes)?;
        Ok(bytes)
    }

    /// Like [`Graph::to_model_bytes`], but without a look at what is written: for tests of readers.
    pub fn to_bytes(&self, weights: &[u8]) -> Vec<u8> {
        let mut graph = postcard::to_allocvec(self).expect("a vector grows, and every length is known");
        let graph_bytes = graph.len();
        graph.resize((HEADER_BYTES + graph_bytes).next_multiple_of(ALIGNMENT) - HEADER_BYTES, 0);
        let weights_offset = HEADER_BYTES + graph.len();
        let file_bytes = weights_offset + weights.len();

        let mut file = Vec::with_capacity(file_bytes);
        file.extend(MAGIC);
        file.extend(VERSION.to_le_bytes());
        file.extend((HEADER_BYTES as u16).to_le_bytes());
        for value in [graph_bytes, weights_offset, weights.len(), file_bytes, 0] {
            file.extend(saturate(value).to_le_bytes());
        }
        file.extend(graph);
        file.extend(weights);
        let crc = checksum(&file);
        file[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        file
    }
}

impl<'a> From<&Model<'a>> for Graph<'a> {
    fn from(model: &Model<'a>) -> Self {
        Graph {
            name: model.name(),
            provenance: model.provenance(),
            arena_bytes: model.head().arena_bytes,
            input_table: model.head().input_table,
            tensors: model.tensors().to_vec(),
            layers: model.layers().collect(),
            labels: model.labels().collect(),
        }
    }
}

/// Builds a weights section. Each `push` aligns, appends and gives the offset to put into the graph.
///
/// What lies past 4 GiB gets offsets that [`Model::parse`] refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    bytes: Vec<u8>,
}

impl Section {
    /// An empty section.
    pub const fn new() -> Self {
        Section { bytes: Vec::new() }
    }

    /// Appends the input table: for each channel the code of each pixel value.
    pub fn push_table(&mut self, channels: &[[i8; 256]]) -> u32 {
        let offset = self.align(ALIGNMENT);
        self.bytes.extend(channels.as_flattened().iter().map(|&code| code as u8));
        offset
    }

    /// Appends packed weights: `codes` is rows of `k` codes, one after the other. Gives [`Weights::offset`](crate::Weights).
    ///
    /// # Errors
    /// A code that the width does not have, or codes that are not whole rows; then nothing is appended.
    pub fn push_rows(&mut self, order: Order, width: Width, codes: &[i8], k: usize) -> Result<u32, PackError> {
        if k == 0 || !codes.len().is_multiple_of(k) {
            return Err(PackError::Rows { codes: codes.len(), k });
        }
        let packing = Packing {
            order,
            width,
            rows: codes.len() / k,
            k,
        };
        let bits = |index: usize| packing.encode(index / k, codes[index]);
        if let Some(index) = (0..codes.len()).find(|&index| bits(index).is_none()) {
            return Err(PackError::Code {
                row: index / k,
                column: index % k,
                code: codes[index],
                width,
            });
        }
        let offset = self.align(ALIGNMENT);
        let start = self.bytes.len();
        self.bytes.resize(start + packing.bytes(), 0);
        let packed = &mut self.bytes[start..];
        for index in 0..codes.len() {
            let (byte, bit) = packing.position(index / k, index % k);
            packed[byte] |= bits(index).unwrap_or(0) << bit;
        }
        Ok(offset)
    }

    /// Appends biases or multipliers.
    pub fn push_i32s(&mut self, values: &[i32]) -> u32 {
        let offset = self.align(4);
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        offset
    }

    /// The section so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The section.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn align(&mut self, to: usize) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
        saturate(self.bytes.len())
    }
}

/// Why weights cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PackError {
    /// A code that the width does not have.
    Code {
        /// Row.
        row: usize,
        /// Position in the row.
        column: usize,
        /// The code.
        code: i8,
        /// The width.
        width: Width,
    },
    /// The codes are not whole rows of `k`.
    Rows {
        /// Codes given.
        codes: usize,
        /// Codes in a row.
        k: usize,
    },
}

impl core::error::Error for PackError {}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PackError::Code {
                row,
                column,
                code,
                width,
            } => {
                write!(
                    f,
                    "weight {column} of row {row} is {code}, which is no value of {}",
                    width.name()
                )
            }
            PackError::Rows { codes, k } => write!(f, "{codes} weights are not whole rows of {k}"),
        }
    }
}

fn saturate(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
