//! The runtime through its public interface: models are written, parsed and run.

mod net;
mod operators;
mod session;
