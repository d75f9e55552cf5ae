//! What a firmware for the MLPerf Tiny benchmark needs, whatever the board: the [`protocol`], and the cycles of an inference in [`cycles`].
//!
//! The board is in `main.rs` and the two modules beside it, `uart` and `clock`: for another one, write those anew.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]

pub mod cycles;
pub mod protocol;
