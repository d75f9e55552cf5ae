//! The runtime through its public interface: models are written, parsed and run.

mod image;
#[cfg(feature = "embedded-io")]
mod load;
mod net;
mod operators;
mod profile;
mod session;
