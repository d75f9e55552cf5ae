//! Quantization: what is quantized how ([`Quantization`]), the weight quantizers, activation calibration, BatchNorm re-estimation.

pub use adcorda_formats::Width;
use serde::{Deserialize, Serialize};

/// Affine int8 quantization of an activation: `real = scale * (q - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivationQuantizer {
    /// Real value of one step, finite and positive.
    pub scale: f32,
    /// Code of real zero.
    pub zero_point: i8,
}

/// How one layer's weights are quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightQuantizer {
    /// Bits.
    pub width: Width,
    /// W4, W8: one chosen scale a row (output channel), or a single one (per tensor) for the last layer. Empty for W1 and W2,
    /// whose scales follow from the weights.
    pub scales: Vec<f32>,
    /// One scale for the whole tensor instead of one a row: the last layer, so that its accumulators are comparable logits.
    pub per_tensor: bool,
}

/// How a network is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// One entry a layer, `None` for layers without weights.
    pub weights: Vec<Option<WeightQuantizer>>,
    /// One entry a value (input image, then each layer's output). The last one, the logits, is not used.
    pub activations: Vec<ActivationQuantizer>,
}
