//! The `.adq` model file.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod graph;
pub use graph::*;
/// (being written)
#[derive(Debug)]
pub struct Model;
