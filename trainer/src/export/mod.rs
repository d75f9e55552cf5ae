//! From a trained, quantized network to a model file: the one place that knows both worlds.
//!
//! [`lower`] turns layers into integer operations, `schedule` puts them in order and sums into convolutions, `arena` places
//! their tensors in one buffer, [`source`] writes the Rust constants that firmware includes. The file's own crate checks the
//! result, so nothing invalid is ever written.

pub(crate) mod arena;
pub mod lower;
mod schedule;
pub mod source;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};

use adcorda_formats::{Graph, Layer, Model, ParseError, Tensor};

use self::schedule::Step;
use crate::checkpoint::Checkpoint;
use crate::file::write_atomic;
use crate::network::Network;
use crate::{Error, ErrorKind, Result};

/// What [`export`] is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Name of the model in the file; the network's where there is none.
    pub name: Option<String>,
}

/// A model file and what firmware must know of it.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The `.adq` file, checked.
    pub bytes: Vec<u8>,
    /// RAM that the runtime needs for tensors and scratch.
    pub arena_bytes: usize,
    /// Output channels whose value does not depend on the image (BatchNorm's gamma is zero or next to it) and is therefore
    /// in the bias alone: layer name and channel.
    pub constant_channels: Vec<(String, usize)>,
}

impl Exported {
    /// Writes the model file, and beside it the same name with `.rs`: sizes and bytes for firmware ([`source`]).
    ///
    /// Each is written in one step: no one sees half a file.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where `path` itself ends in `.rs` or names no file; [`ErrorKind::Io`] naming the file that cannot
    /// be written.
    pub fn write(&self, path: &Path) -> Result<PathBuf> {
        let (Some(file_name), false) = (path.file_name(), path.extension().is_some_and(|e| e == "rs")) else {
            return Err(
                Error::new(ErrorKind::Usage, format!("a model cannot be written to {}", path.display()))
                    .remedy("give the name of a file that ends in .adq"),
            );
        };
        let file_name = file_name.to_string_lossy();
        let model = parse(&self.bytes, &file_name)?;
        write_atomic(path, &self.bytes)?;
        let source_path = path.with_extension("rs");
        let source = source::generate(&model, self.bytes.len(), &file_name);
        write_atomic(&source_path, source.as_bytes())?;
        Ok(source_path)
    }
}

/// Lowers a quantized checkpoint to an integer model file. The same checkpoint gives the same bytes.
///
/// # Errors
/// [`ErrorKind::Model`] where the checkpoint is not quantized or the format cannot hold it, naming the layer;
/// [`ErrorKind::Weights`] where weights or quantization do not fit the network or are not finite.
pub fn export(checkpoint: &Checkpoint, options: &ExportOptions) -> Result<Exported> {
    export_in_order(checkpoint, options, schedule::schedules)
}

/// [`export`] with the best of the schedules that `schedules` gives.
fn export_in_order(
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    schedules: impl FnOnce(&[Tensor], &[Layer]) -> Vec<Vec<Step>>,
) -> Result<Exported> {
    let network = &checkpoint.network;
    let lowered = lower::lower(checkpoint)?;
    let schedules = schedules(&lowered.tensors, &lowered.layers);
    let plan = arena::plan(&lowered.tensors, &lowered.layers, &schedules)?;
    let name = options.name.as_deref().unwrap_or(&network.name);
    let graph = Graph {
        name,
        provenance: lowered.provenance,
        arena_bytes: plan.arena_bytes,
        input_table: lowered.input_table,
        tensors: plan.tensors,
        layers: plan.layers,
        labels: lowered.labels.iter().map(String::as_str).collect(),
    };
    let bytes = graph
        .to_model_bytes(&lowered.section.into_bytes())
        .map_err(|cause| refused(network, &graph.layers, cause))?;
    Ok(Exported {
        arena_bytes: plan.arena_bytes as usize,
        constant_channels: lowered.constant_channels,
        bytes,
    })
}

/// What the format refuses, in the network's words.
fn refused(network: &Network, layers: &[Layer], cause: ParseError) -> Error {
    let at = |layer: usize| {
        let name = layers.get(layer).map_or("", |layer| layer.name);
        let number = network.layers.iter().position(|layer| layer.name == name).unwrap_or(layer);
        format!("layer {number} \"{name}\"")
    };
    let what = if let ParseError::Layer { layer, cause } = cause {
        format!("{}: {cause}", at(layer.into()))
    } else if let ParseError::Tensor { tensor, cause } = cause {
        match usize::from(tensor).checked_sub(1) {
            Some(layer) => format!("{}: output: {cause}", at(layer)),
            None => format!("network {}: input image: {cause}", network.name),
        }
    } else {
        format!("network {}: {cause}", network.name)
    };
    Error::new(ErrorKind::Model, what)
}

/// Checks a model file's bytes; `name` is what an error calls it.
///
/// # Errors
/// [`ErrorKind::Model`] saying what is wrong with the file and what to do.
pub fn parse<'a>(bytes: &'a [u8], name: &str) -> Result<Model<'a>> {
    Model::parse(bytes).map_err(|cause| {
        let remedy = if matches!(cause, ParseError::NewerVersion { .. }) {
            "it was made by a newer adcorda: update this one, or export again"
        } else if matches!(cause, ParseError::NotAModel) {
            "give a file made by `adcorda export CKPT -o MODEL.adq`"
        } else {
            "copy the file again, or make it anew with `adcorda export CKPT -o MODEL.adq`"
        };
        Error::new(ErrorKind::Model, format!("{name}: {cause}")).remedy(remedy)
    })
}
