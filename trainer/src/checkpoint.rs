//! A checkpoint: one safetensors file with a network, its weights and, once quantized, how.
//!
//! Tensors are the state dict under its PyTorch names; network, quantization, labels and provenance are JSON in the metadata.
//! Readable by every safetensors library.

use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::quantize::Quantization;
use crate::state_dict::StateDict;

/// Where the weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Data set, e.g. `cifar10`.
    pub data: String,
    /// `imported`, `train`, `ptq`, `qat`, `adcorda`.
    pub method: String,
    /// Seed of the run.
    pub seed: u64,
    /// Top-1 on the test set in per cent, where measured.
    pub top1: Option<f32>,
}

/// A network with its weights, float or quantized.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub network: Network,
    /// Float master weights and BatchNorm statistics.
    pub state: StateDict,
    /// Present once quantized.
    pub quantization: Option<Quantization>,
    /// Class names; may be empty.
    pub labels: Vec<String>,
    /// Where it comes from.
    pub provenance: Provenance,
}
