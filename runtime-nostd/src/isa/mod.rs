//! Inner loops, one file an instruction set.
//!
//! Every file offers the same names with the same meaning, and the kernels call them as `isa::name`:
//!
//! - [`unpack`]: one packed row of weights of any width to one code a byte;
//! - [`dot`]: dot product of activations and unpacked weights;
//! - [`sum`]: sum of unpacked weights.
//!
//! A bit width is an unpacker, not a family of kernels, so that operators, widths and instruction sets add up instead of
//! multiplying. Codes travel as `u8` with the bits of an `i8`: packed rows, activations in the arena and unpacked weights
//! are then plain slices of the caller's bytes, without a cast. This folder is the only one that may ever allow unsafe code.

mod portable;

pub(crate) use portable::{dot, sum, unpack};
