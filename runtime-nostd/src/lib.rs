//! Integer-only inference of low-bit image classifiers: on Cortex-M and, bit for bit the same, on the host.
//!
//! # Scope
//!
//! One image at a time through a model file of [`adcorda-formats`](formats): convolutions and fully connected layers with
//! weights of 1, 2, 4 or 8 bits and int8 activations, residual additions, pooling. Pixels go in as a camera gives them, in
//! any [`PixelFormat`]; class scores come out. No training, no batches, no graph optimisation, no layer that the file format does not have.
//!
//! # Guarantees
//!
//! 1. **Nothing is allocated.** `no_std`, no `alloc`; all working memory is the caller's arena, of the size that
//!    [`Model::arena_bytes`](formats::Model::arena_bytes) says. The weights are used where the file lies, in flash.
//! 2. **No float.** What a model computes is integer arithmetic with one rounding rule, defined by the file format. Every
//!    target gives the same bits.
//! 3. **[`Session::run`] cannot fail or panic.** [`Model::parse`](formats::Model::parse), [`Session::new`] and
//!    the constructors of [`Image`] check everything that could go wrong, and their results are proof of it.
//! 4. **Unsafe code and assembly only in the kernels of an instruction set**, the private module `isa`; every block says why it is sound.
//!
//! # Example
//!
//! A model of one pixel with two channels, whose two scores are those of the channels:
//!
//! ```
//! use adcorda_runtime::{Image, Session};
//! use adcorda_runtime::formats::Model;
//!
//! # let file = {
//! #     use adcorda_runtime::formats::*;
//! #     let mut section = Section::new();
//! #     let input_table = section.push_table(&[core::array::from_fn(|v| (v as i32 - 128) as i8); 2]);
//! #     let offset = section.push_rows(Order::Blocks, Width::W2, &[1, 0, 0, 1], 2).unwrap();
//! #     let weights = Weights { width: Width::W2, offset, bias: section.push_i32s(&[0, 0]) };
//! #     let scale = Scale::from_f32(1.0);
//! #     let image = Tensor { height: 1, width: 1, channels: 2, element: Element::I8, zero_point: 0, scale, offset: 8 };
//! #     let logits = Tensor { element: Element::I32, offset: 0, ..image };
//! #     let scratch = Scratch { offset: 10, bytes: 2 };
//! #     let layer = Layer { name: "fc", op: Op::Logits { input: 0, weights }, scratch };
//! #     let provenance = Provenance { top1: u16::MAX, ..Provenance::default() };
//! #     let (tensors, layers, labels) = (vec![image, logits], vec![layer], vec!["left", "right"]);
//! #     let graph = Graph { name: "demo", provenance, arena_bytes: 12, input_table, tensors, layers, labels };
//! #     graph.to_model_bytes(section.as_bytes()).unwrap()
//! # };
//! // In a firmware: `include_bytes!("model.adq")`, and a static arena of the size in the generated `model.rs`.
//! let model = Model::parse(&file)?;
//! let mut arena = vec![0; model.arena_bytes()];
//! let mut session = Session::new(&model, &mut arena)?;
//!
//! let logits = session.run(Image::new(&model, &[100, 200])?, &mut ());
//! assert_eq!(logits.iter().collect::<Vec<_>>(), [-28, 72]);
//! assert_eq!(model.label(logits.top1()), Some("right"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To see inside of a run, pass an [`Observer`] instead of `()`: a [`Profile`] counts cycles layer by layer.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]
#![deny(clippy::float_arithmetic)]

mod aligned;
mod image;
mod isa;
mod kernels;
#[cfg(feature = "embedded-io")]
mod load;
mod profile;
mod requantize;
mod session;

pub use adcorda_formats as formats;
pub use aligned::Aligned;
/// The traits of readers.
#[cfg(feature = "embedded-io")]
pub use embedded_io;
/// Collections of bounded size, in which results come.
pub use heapless;
pub use image::{Image, ImageMismatch, ImageSize, PixelFormat};
pub use isa::{Isa, Path, path};
#[cfg(feature = "embedded-io")]
pub use load::{LoadError, load};
pub use profile::Profile;
pub use session::{ArenaTooSmall, ClassScore, Logits, Observer, Session};
