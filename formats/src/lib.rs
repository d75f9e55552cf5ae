//! The `.adq` model file: its bytes, its limits, and every check on them.
//!
//! A model is read in place: [`Model::parse`] borrows the file (from flash, as a rule), allocates nothing and checks
//! everything once. What it returns cannot make a runtime that follows `FORMAT.md` fail, panic or overflow. `FORMAT.md`
//! beside this crate's manifest is normative; this crate is its implementation.
//!
//! - [`Model`], [`I32Array`]: reading.
//! - [`Tensor`], [`Layer`], [`Op`] and their parts: what a model computes, as data.
//! - [`Width`], [`Packing`]: what a weight is, and where it lies.
//! - `Graph` and `Section` (feature `alloc`): writing.
//! - [`ParseError`]: what is wrong with a file, where, and what to do.
//!
//! `no_std`; reading needs no allocator; no float is computed with.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod check;
mod error;
mod graph;
mod model;
mod packing;
#[cfg(feature = "alloc")]
mod write;

pub use error::{LayerError, ParseError, Part, Region, TensorError};
pub use graph::{
    Element, Layer, Op, Provenance, Requantize, Residual, Scale, Scratch, Tensor, TensorId, Weights, Width, Window,
};
pub use model::{I32Array, Labels, Layers, Model};
pub use packing::{Order, Packing};
#[cfg(feature = "alloc")]
pub use write::{Graph, PackError, Section};

/// First eight bytes of every model file. The high bit, the line ends and the control character show damage by transfers
/// that take the file for text.
pub const MAGIC: [u8; 8] = *b"\x89ADQ\r\n\x1a\n";

/// The file version that this crate reads and writes. Version 1 was a draft.
pub const VERSION: u16 = 2;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;

/// Alignment of the weights section in the file, and of packed rows in the weights section.
pub const ALIGNMENT: usize = 16;

/// Most layers of a model.
pub const MAX_LAYERS: usize = 127;

/// Most tensors of a model: the input, and one a layer.
pub const MAX_TENSORS: usize = MAX_LAYERS + 1;

/// Most classes of a model.
pub const MAX_CLASSES: usize = 1024;

/// Most bytes of any one text: model name, layer name, label, provenance.
pub const MAX_TEXT_BYTES: usize = 128;
