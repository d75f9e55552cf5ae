#![doc = include_str!("../README.md")]
//!
//! # Guarantees
//!
//! 1. **Nothing is allocated.** `no_std`, no `alloc`; all working memory is the caller's arena, of the size that
//!    [`Model::arena_bytes`](formats::Model::arena_bytes) says. The weights are used where the file lies.
//! 2. **No float.** What a model computes is integer arithmetic with one rounding rule, defined by the file format. Every
//!    target gives the same bits.
//! 3. **[`Session::run`] cannot fail or panic.** [`Model::parse`](formats::Model::parse), [`Session::new`] and
//!    the constructors of [`Image`] check everything that could go wrong, and their results are proof of it.
//! 4. **Unsafe code and assembly only in the kernels of an instruction set**, the private module `isa`; every block says why it is sound.
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
