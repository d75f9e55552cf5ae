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
use crate::network::{Layer, Network};
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
    /// W4, W8, and W2 where they were learnt: one scale a row (output channel), or a single one (per tensor) for the last layer.
    /// Else empty: the scales follow from the weights.
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
                        (Width::W1, _) => 0,
                        (Width::W2, _) if quantizer.scales.is_empty() => 0,
                        (Width::W2 | Width::W4 | Width::W8, true) => 1,
                        (Width::W2 | Width::W4 | Width::W8, false) => rows,
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
    /// Whether to re-estimate BatchNorm statistics; `None`: where any layer has fewer than 8 bits. At 8 bits it corrects
    /// little but moves the network to the statistics of these images, and so away from the float network it is compared to.
    pub reestimate: Option<bool>,
    /// Images for BatchNorm re-estimation and calibration, drawn from the set; all where there are no more.
    pub images: usize,
    /// Which images.
    pub seed: u64,
}

impl QuantizeOptions {
    /// The usual way to quantize to `width`: 2,000 images, ranges by percentile, no layer with a width of its own.
    pub fn new(width: Width) -> Self {
        Self {
            width,
            overrides: Vec::new(),
            calibration: Calibration::default(),
            reestimate: None,
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
/// [`ErrorKind::Data`] where the images have another size than the network's input, or other classes.
pub fn ptq(float: &Checkpoint, images: &Dataset, options: &QuantizeOptions, device: &Device) -> Result<Checkpoint> {
    let network = &float.network;
    let mut quantization = Quantization {
        weights: weight_quantizers(network, &float.state, options)?,
        activations: Vec::new(),
    };
    let images = calibration_images(images, options.images, options.seed)?;
    let narrow = quantization
        .weights
        .iter()
        .flatten()
        .any(|quantizer| quantizer.width != Width::W8);
    let state = if options.reestimate.unwrap_or(narrow) {
        batch_norm::reestimate(network, &float.state, &quantization, &images, device)?
    } else {
        float.state.clone()
    };
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

/// How the scales of weights follow them in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scales {
    /// Estimated from the weights: W4 and W8 at the start of every epoch, W1 and W2 at every step.
    #[default]
    Reestimated,
    /// Parameters like any other (LSQ); of W1 estimated, because BatchNorm scales its rows anyway.
    Learned,
}

/// Gives every quantizer that can have learnt scales some to start from.
///
/// # Errors
/// [`ErrorKind::Weights`] where a weight tensor is missing.
pub fn start_scales(quantization: &mut Quantization, network: &Network, state: &StateDict) -> Result<()> {
    for (layer, quantizer) in network.layers.iter().zip(&mut quantization.weights) {
        if let Some(quantizer) = quantizer {
            let weight = state.get(&format!("{}.weight", layer.name))?;
            quantizer.scales = weights::learnable_scales(weight, quantizer);
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

/// `state` with every quantized weight replaced by the real value of its code, and [`whole_biases`]: what the integer network
/// computes with.
///
/// # Errors
/// [`ErrorKind::Weights`] where a tensor is missing.
pub fn dequantized(network: &Network, state: &StateDict, quantization: &Quantization) -> Result<StateDict> {
    let mut dequantized = whole_biases(network, state, quantization)?;
    for (layer, quantizer) in network.layers.iter().zip(&quantization.weights) {
        if let Some(quantizer) = quantizer {
            let name = format!("{}.weight", layer.name);
            let values = weights::quantize_rows(state.get(&name)?, quantizer).dequantize();
            if let Some(array) = dequantized.tensors.get_mut(&name) {
                array.values = values;
            }
        }
    }
    Ok(dequantized)
}

/// `state` with every bias, BatchNorm's included, rounded as the integer network rounds it: to whole steps of the layer's
/// accumulator. With float activations there is no such step, and nothing is rounded.
///
/// With one or two bits a weight and a short row, a step is a good part of an output code: without this rounding, fake
/// quantization is visibly another network.
///
/// # Errors
/// [`ErrorKind::Weights`] where a tensor is missing.
pub fn whole_biases(network: &Network, state: &StateDict, quantization: &Quantization) -> Result<StateDict> {
    let mut rounded = state.clone();
    for (layer, quantizer) in network.layers.iter().zip(&quantization.weights) {
        if let (Some(quantizer), Some(input)) = (quantizer, quantization.activations.get(layer.inputs[0])) {
            let weights = state.get(&format!("{}.weight", layer.name))?;
            let scales = weights::quantize_rows(weights, quantizer).scales;
            round_biases(&mut rounded, layer, input.scale, &scales)?;
        }
    }
    Ok(rounded)
}

/// Rounds what a layer adds to its sums of products to whole steps of `input_scale * weight_scale`.
fn round_biases(state: &mut StateDict, layer: &Layer, input_scale: f32, weight_scales: &[f32]) -> Result<()> {
    let step = |row: usize| {
        let scale = if weight_scales.len() == 1 {
            weight_scales[0]
        } else {
            weight_scales[row]
        };
        f64::from(input_scale) * f64::from(scale)
    };
    let round = |value: f64, step: f64| (value / step).round_ties_even() * step;
    let bias = layer.op.has_bias().then(|| format!("{}.bias", layer.name));
    let Some(norm) = layer.op.batch_norm() else {
        if let Some(array) = bias.and_then(|name| state.tensors.get_mut(&name)) {
            for (row, b) in array.values.iter_mut().enumerate() {
                *b = round(f64::from(*b), step(row)) as f32;
            }
        }
        return Ok(());
    };
    let bias = bias.map(|name| state.get(&name).cloned()).transpose()?;
    let part = |part: &str| state.get(&format!("{}.{part}", norm.name)).cloned();
    let (gamma, mean, variance) = (part("weight")?, part("running_mean")?, part("running_var")?);
    let mut beta = part("bias")?;
    for (row, beta) in beta.values.iter_mut().enumerate() {
        let gain = f64::from(gamma.values[row]) / (f64::from(variance.values[row]) + f64::from(norm.epsilon)).sqrt();
        let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias.values[row]));
        let rest = (bias - f64::from(mean.values[row])) * gain;
        let rounded = round(f64::from(*beta) + rest, step(row) * gain) - rest;
        // Where gamma is zero there is no step: the constant is rounded as any output is.
        if rounded.is_finite() {
            *beta = rounded as f32;
        }
    }
    state.tensors.insert(format!("{}.bias", norm.name), beta);
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Provenance;
    use crate::data::{Split, synthetic};
    use crate::zoo::zoo;

    fn float() -> Checkpoint {
        let network = zoo("tiny", 10).unwrap();
        Checkpoint {
            state: StateDict::init(&network, 1).unwrap(),
            network,
            quantization: None,
            labels: synthetic::classes(),
            provenance: Provenance {
                method: "train".into(),
                top1: Some(50.0),
                ..Provenance::default()
            },
        }
    }

    fn options(width: Width) -> QuantizeOptions {
        QuantizeOptions {
            images: 40,
            ..QuantizeOptions::new(width)
        }
    }

    fn widths(checkpoint: &Checkpoint) -> Vec<(String, Width)> {
        let quantization = checkpoint.quantization.as_ref().unwrap();
        let named = checkpoint.network.layers.iter().zip(&quantization.weights);
        named
            .filter_map(|(layer, quantizer)| Some((layer.name.clone(), quantizer.as_ref()?.width)))
            .collect()
    }

    #[test]
    fn first_and_last_layer_stay_at_8_bits_unless_named() {
        let images = synthetic::load(Split::Train, 50);
        let mut options = options(Width::W2);
        let widths_of = |options: &QuantizeOptions| widths(&ptq(&float(), &images, options, &Device::flex()).unwrap());
        let names = ["conv1", "conv2", "block.conv1", "block.conv2", "fc"].map(String::from);
        let expected = |widths: [Width; 5]| names.clone().into_iter().zip(widths).collect::<Vec<_>>();
        use Width::{W1, W2, W4, W8};
        assert_eq!(widths_of(&options), expected([W8, W2, W2, W2, W8]));
        options.overrides = vec![("conv1".into(), W4), ("block.conv2".into(), W1), ("fc".into(), W4)];
        assert_eq!(widths_of(&options), expected([W4, W2, W2, W1, W4]));
    }

    #[test]
    fn overrides_that_cannot_be_are_usage_errors() {
        let images = synthetic::load(Split::Train, 4);
        for (name, needle) in [("conv9", "conv9"), ("avgpool", "no weights")] {
            let mut options = options(Width::W4);
            options.overrides = vec![(name.into(), Width::W1)];
            let error = ptq(&float(), &images, &options, &Device::flex()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(needle), "{error}");
        }
        let none = QuantizeOptions {
            images: 0,
            ..options(Width::W4)
        };
        assert_eq!(
            ptq(&float(), &images, &none, &Device::flex()).unwrap_err().kind(),
            ErrorKind::Usage
        );
    }

    #[test]
    fn ptq_keeps_master_weights_and_is_repeatable() {
        let (float, images) = (float(), synthetic::load(Split::Train, 60));
        let quantized = ptq(&float, &images, &options(Width::W4), &Device::flex()).unwrap();
        let quantization = quantized.quantization.as_ref().unwrap();
        quantization.check(&quantized.network).unwrap();
        assert_eq!(
            (quantized.provenance.method.as_str(), quantized.provenance.top1),
            ("ptq", None)
        );
        for (name, array) in &float.state.tensors {
            let kept = quantized.state.tensors[name] == *array;
            assert_eq!(kept, !name.contains(".running_"), "{name}");
        }
        // Only the last layer has a single scale.
        let scales: Vec<usize> = quantization.weights.iter().flatten().map(|q| q.scales.len()).collect();
        assert_eq!(scales, [12, 24, 24, 24, 1]);
        let again = ptq(&quantized, &images, &options(Width::W4), &Device::flex()).unwrap();
        assert_eq!(again.state.tensors["fc.weight"], quantized.state.tensors["fc.weight"]);
        let repeated = ptq(&float, &images, &options(Width::W4), &Device::flex()).unwrap();
        assert_eq!(repeated.quantization, quantized.quantization);
        assert_eq!(repeated.state, quantized.state);
    }

    #[test]
    fn eight_bits_keep_their_statistics_and_nearly_their_logits() {
        let (float, images) = (float(), synthetic::load(Split::Train, 60));
        let quantized = ptq(&float, &images, &options(Width::W8), &Device::flex()).unwrap();
        assert_eq!(quantized.state, float.state);
        let logits = |quantization| {
            let frozen = crate::nn::Frozen::new(&float.network, &float.state, quantization, &Device::flex()).unwrap();
            frozen.logits_of(&images, 16).unwrap()
        };
        let (a, b) = (logits(None), logits(quantized.quantization.as_ref()));
        let spread = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst > 0.0 && worst < 0.05 * spread, "{worst} of {spread}");
    }

    #[test]
    fn refreshed_scales_follow_the_weights() {
        let (mut float, images) = (float(), synthetic::load(Split::Train, 8));
        let mut quantization = ptq(&float, &images, &options(Width::W4), &Device::flex())
            .unwrap()
            .quantization
            .unwrap();
        let before = quantization.clone();
        for array in float.state.tensors.values_mut() {
            array.values.iter_mut().for_each(|v| *v *= 2.0);
        }
        refresh_scales(&mut quantization, &float.network, &float.state).unwrap();
        for (before, after) in before.weights.iter().flatten().zip(quantization.weights.iter().flatten()) {
            for (before, after) in before.scales.iter().zip(&after.scales) {
                assert!((after / before - 2.0).abs() < 1e-5, "{before} {after}");
            }
        }
    }

    #[test]
    fn calibration_images_are_drawn_without_repetition() {
        let set = synthetic::load(Split::Train, 30);
        let drawn = calibration_images(&set, 12, 5).unwrap();
        assert_eq!(drawn.len(), 12);
        let distinct: std::collections::BTreeSet<&[u8]> = (0..12).map(|i| drawn.image(i)).collect();
        assert_eq!(distinct.len(), 12);
        assert_eq!(calibration_images(&set, 12, 5).unwrap(), drawn);
        assert_ne!(calibration_images(&set, 12, 6).unwrap(), drawn);
        assert_eq!(calibration_images(&set, 31, 5).unwrap(), set);
    }

    #[test]
    fn quantizations_of_another_network_are_refused() {
        let (float, images) = (float(), synthetic::load(Split::Train, 8));
        let good = ptq(&float, &images, &options(Width::W4), &Device::flex())
            .unwrap()
            .quantization
            .unwrap();
        let broken = |change: fn(&mut Quantization), needle: &str| {
            let mut quantization = good.clone();
            change(&mut quantization);
            let error = quantization.check(&float.network).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weights);
            assert!(error.to_string().contains(needle), "{error}");
        };
        broken(|q| q.weights.truncate(3), "layers");
        broken(|q| q.activations.truncate(3), "values");
        broken(|q| q.weights[0] = None, "layer 0 \"conv1\" has weights but no quantizer");
        broken(
            |q| q.weights[4] = q.weights[0].clone(),
            "layer 4 \"block.add\" has no weights",
        );
        broken(
            |q| q.weights[1].as_mut().unwrap().scales.truncate(3),
            "3 weight scales, needs 24",
        );
        broken(|q| q.weights[1].as_mut().unwrap().scales[0] = 0.0, "scale of 0");
        broken(|q| q.activations[2].scale = f32::NAN, "value 2 has a scale of NaN");
    }
}
