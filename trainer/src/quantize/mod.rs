//! Quantization: what is quantized how ([`Quantization`]), the weight quantizers, activation calibration, BatchNorm re-estimation.

pub mod activations;
pub mod batch_norm;
pub mod weights;

pub use adcorda_formats::Width;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

pub use activations::Calibration;

use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::data::batch::{Purpose, rng};
use crate::device::Device;
use crate::network::Network;
use crate::state_dict::StateDict;
use crate::{Error, ErrorKind, Result};

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
    /// One entry a value (input image, then each layer's output), or none at all where activations are float. The last one,
    /// the logits, is not used.
    pub activations: Vec<ActivationQuantizer>,
}

impl Quantization {
    /// Whether this can be `network`'s quantization: counts, scales finite and positive.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] naming the layer or value.
    pub fn check(&self, network: &Network) -> Result<()> {
        let fail = |what: String| {
            Err(Error::new(
                ErrorKind::Weights,
                format!("quantization of network {}: {what}", network.name),
            ))
        };
        let layers = &network.layers;
        if self.weights.len() != layers.len() {
            return fail(format!(
                "it is of {} layers, the network has {}",
                self.weights.len(),
                layers.len()
            ));
        }
        if !self.activations.is_empty() && self.activations.len() != layers.len() + 1 {
            return fail(format!(
                "it is of {} values, the network has {}",
                self.activations.len(),
                layers.len() + 1
            ));
        }
        let rows: std::collections::BTreeMap<String, usize> = network
            .parameters()?
            .into_iter()
            .map(|(name, shape)| (name, shape[0]))
            .collect();
        for (index, (layer, quantizer)) in layers.iter().zip(&self.weights).enumerate() {
            let at = format!("layer {index} \"{}\"", layer.name);
            match (rows.get(&format!("{}.weight", layer.name)), quantizer) {
                (None, None) => {}
                (None, Some(_)) => return fail(format!("{at} has no weights to quantize")),
                (Some(_), None) => return fail(format!("{at} has weights but no quantizer")),
                (Some(&rows), Some(quantizer)) => {
                    let expected = match (quantizer.width, quantizer.per_tensor) {
                        (Width::W1 | Width::W2, _) => 0,
                        (Width::W4 | Width::W8, true) => 1,
                        (Width::W4 | Width::W8, false) => rows,
                    };
                    if quantizer.scales.len() != expected {
                        return fail(format!("{at} has {} weight scales, needs {expected}", quantizer.scales.len()));
                    }
                    if let Some(scale) = quantizer.scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
                        return fail(format!("{at} has a weight scale of {scale}"));
                    }
                }
            }
        }
        for (value, quantizer) in self.activations.iter().enumerate() {
            if !(quantizer.scale.is_finite() && quantizer.scale > 0.0) {
                return fail(format!("value {value} has a scale of {}", quantizer.scale));
            }
        }
        Ok(())
    }
}

/// What [`ptq`] is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeOptions {
    /// Weight bits of every layer but the first convolution and the last linear layer, which stay at 8.
    pub width: Width,
    /// Layers with another width, by name; the first and the last layer may be among them.
    pub overrides: Vec<(String, Width)>,
    /// How the range of an activation is chosen.
    pub calibration: Calibration,
    /// Images for BatchNorm re-estimation and calibration, drawn from the set; all where there are no more.
    pub images: usize,
    /// Which images.
    pub seed: u64,
}

impl QuantizeOptions {
    /// The usual way to quantize to `width`: 2,000 images, ranges by percentile, no layer treated apart.
    pub fn new(width: Width) -> Self {
        Self {
            width,
            overrides: Vec::new(),
            calibration: Calibration::default(),
            images: 2000,
            seed: 0,
        }
    }
}

/// Post-training quantization: weights to the widths asked for, BatchNorm statistics re-estimated under them, activations
/// calibrated to int8 behind both.
///
/// A checkpoint that is quantized already is quantized anew from its master weights.
///
/// # Errors
/// [`ErrorKind::Usage`] for an unknown layer or no images; [`ErrorKind::Weights`] where the weights do not fit;
/// [`ErrorKind::Data`] where the images have another size than the network's input.
pub fn ptq(float: &Checkpoint, images: &Dataset, options: &QuantizeOptions, device: &Device) -> Result<Checkpoint> {
    let network = &float.network;
    let mut quantization = Quantization {
        weights: weight_quantizers(network, &float.state, options)?,
        activations: Vec::new(),
    };
    let images = calibration_images(images, options.images, options.seed)?;
    let state = batch_norm::reestimate(network, &float.state, &quantization, &images, device)?;
    quantization.activations = activations::calibrate(network, &state, &quantization, &images, options.calibration, device)?;
    let mut provenance = float.provenance.clone();
    provenance.method = "ptq".into();
    provenance.top1 = None;
    Ok(Checkpoint {
        network: network.clone(),
        state,
        quantization: Some(quantization),
        labels: float.labels.clone(),
        provenance,
    })
}

/// Chooses the W4 and W8 weight scales anew for the weights as they are now; W1 and W2 need none. For the start of an epoch.
///
/// # Errors
/// [`ErrorKind::Weights`] where a weight tensor is missing.
pub fn refresh_scales(quantization: &mut Quantization, network: &Network, state: &StateDict) -> Result<()> {
    for (layer, quantizer) in network.layers.iter().zip(&mut quantization.weights) {
        if let Some(quantizer) = quantizer {
            let weight = state.get(&format!("{}.weight", layer.name))?;
            quantizer.scales = weights::choose_scales(weight, quantizer.width, quantizer.per_tensor);
        }
    }
    Ok(())
}

/// Calibrates the activations anew for the weights and statistics as they are now.
///
/// # Errors
/// As [`activations::calibrate`].
pub fn recalibrate(
    quantization: &mut Quantization,
    network: &Network,
    state: &StateDict,
    images: &Dataset,
    calibration: Calibration,
    device: &Device,
) -> Result<()> {
    quantization.activations = activations::calibrate(network, state, quantization, images, calibration, device)?;
    Ok(())
}

/// `count` images of `set`, drawn without repetition.
///
/// # Errors
/// [`ErrorKind::Usage`] where there would be none.
pub fn calibration_images(set: &Dataset, count: usize, seed: u64) -> Result<Dataset> {
    if count == 0 || set.is_empty() {
        return Err(
            Error::new(ErrorKind::Usage, format!("{}: there are no images to calibrate on", set.name))
                .remedy("give at least one image"),
        );
    }
    if count >= set.len() {
        return Ok(set.clone());
    }
    let mut rng = rng(seed, Purpose::Calibration, 0);
    let mut indices: Vec<usize> = (0..set.len()).collect();
    let (drawn, _) = indices.partial_shuffle(&mut rng, count);
    Ok(set.subset(drawn))
}

/// `state` with every quantized weight replaced by the real value of its code: what the integer network computes with.
///
/// # Errors
/// [`ErrorKind::Weights`] where a weight tensor is missing.
pub fn dequantized(network: &Network, state: &StateDict, quantization: &Quantization) -> Result<StateDict> {
    let mut state = state.clone();
    for (layer, quantizer) in network.layers.iter().zip(&quantization.weights) {
        if let Some(quantizer) = quantizer {
            let name = format!("{}.weight", layer.name);
            let quantized = weights::quantize_rows(state.get(&name)?, quantizer);
            if let Some(array) = state.tensors.get_mut(&name) {
                array.values = quantized.dequantize();
            }
        }
    }
    Ok(state)
}

fn weight_quantizers(network: &Network, state: &StateDict, options: &QuantizeOptions) -> Result<Vec<Option<WeightQuantizer>>> {
    state.check(network)?;
    let mut widths = vec![options.width; network.layers.len()];
    let last = network.layers.len() - 1;
    for kept in network.weighted_layers().next().into_iter().chain([last]) {
        widths[kept] = Width::W8;
    }
    for (name, width) in &options.overrides {
        let layer = network.layer_index(name)?;
        if !network.layers[layer].op.has_weights() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("layer \"{name}\" has no weights to quantize"),
            ));
        }
        widths[layer] = *width;
    }
    network
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            if !layer.op.has_weights() {
                return Ok(None);
            }
            let weight = state.get(&format!("{}.weight", layer.name))?;
            let (width, per_tensor) = (widths[index], index == last);
            Ok(Some(WeightQuantizer {
                width,
                scales: weights::choose_scales(weight, width, per_tensor),
                per_tensor,
            }))
        })
        .collect()
}
