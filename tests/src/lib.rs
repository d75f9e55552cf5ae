//! What the end-to-end tests compare against, and what they run.
//!
//! - [`oracle`]: a second interpreter of the model file, written from `FORMAT.md` alone.
//! - [`cases`]: one list of small models with images, for every target that runs the integer runtime.
//! - [`host`]: the runtime on this machine, in an arena whose surroundings are watched.
//! - [`performance`]: the generated part of `docs/PERFORMANCE.md`.
//! - [`record`]: the head of the records under `benches`.
//! - [`networks`]: networks of real shapes, for counting instructions.

pub mod cases;
pub mod host;
mod net;
pub mod networks;
pub mod oracle;
pub mod performance;
pub mod record;
