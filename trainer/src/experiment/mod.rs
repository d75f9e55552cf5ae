//! Tables of experiments: networks x starts x images x seeds x arms, run cell by cell, compared at equal compute.
//!
//! [`Table`] says what is run and [`Cell`] is one run; [`Experiment`] runs them, resumably and on several machines;
//! [`Results`] brings them together, and [`report`] writes the table, with a [paired test](statistics) of every arm
//! against the control.

pub mod figure;
pub mod report;
mod results;
mod run;
pub mod statistics;
mod table;

pub use results::{Bits, CellResult, Failure, Measured, Outcome, Provenance, Results, merge, strangers};
pub use run::Experiment;
pub use table::{
    ArmSpec, Cell, FloatSpec, ImagesSpec, Measure, NetworkSpec, Of, Options, Place, QatSpec, Robustness, START, Shard,
    StartSpec, Table,
};
