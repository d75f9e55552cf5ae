//! The host side of adcorda: data, networks, quantization, AdCorDA refinement, export and evaluation.
//!
//! The command line (`adcorda`) is a thin layer over this library; every verb is one function here. Only [`nn`], [`train`], [`attack`] and
//! [`refine`] name burn's types, only [`export`] knows both the trained network and the integer graph.

pub mod agreement;
pub mod attack;
pub mod bench;
pub mod board;
pub mod checkpoint;
mod convolution;
pub mod data;
pub mod device;
pub mod elf;
pub mod error;
pub mod eval;
pub mod experiment;
pub mod export;
mod fake_quantization;
pub mod file;
pub mod gate;
pub mod inspect;
pub mod memory;
pub mod network;
pub mod new_firmware;
pub mod nn;
mod normalization;
pub mod qemu;
pub mod quantize;
pub mod refine;
mod resident;
pub mod run_folder;
pub mod state_dict;
pub mod train;
pub mod zoo;

pub use error::{Error, ErrorKind, Result};
