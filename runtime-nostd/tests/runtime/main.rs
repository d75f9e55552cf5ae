//! The runtime through its public interface: models are written, parsed and run.

mod image;
mod net;
mod operators;
mod profile;
mod session;
