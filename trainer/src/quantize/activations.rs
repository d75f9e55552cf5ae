//! Activation calibration: the int8 range of every value, from its histogram over calibration images.

use serde::{Deserialize, Serialize};

use super::{ActivationQuantizer, Quantization};
use crate::Result;
use crate::data::Dataset;
use crate::device::Device;
use crate::network::{Network, Normalization, Op};
use crate::nn;
use crate::state_dict::StateDict;

/// Images of a batch.
const BATCH: usize = 128;

/// How the range of an activation is chosen. Values outside it saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Calibration {
    /// All but the outermost ten-thousandth of the values on either side.
    #[default]
    Percentile,
    /// The range with the least squared error of quantization and saturation together.
    Mse,
}

/// Share of the values left outside on either side by [`Calibration::Percentile`].
const OUTSIDE: f64 = 1e-4;

/// One quantizer a value, from running `images` through the network with its weights as `quantization` has them.
///
/// The input's range is that of pixels 0 to 255, whatever the images show. Values that only move (max pooling, subsampling)
/// keep their input's quantizer.
///
/// # Errors
/// [`ErrorKind::Weights`](crate::ErrorKind::Weights) where the weights do not fit the network;
/// [`ErrorKind::Data`](crate::ErrorKind::Data) where the images have another size.
pub fn calibrate(
    network: &Network,
    state: &StateDict,
    quantization: &Quantization,
    images: &Dataset,
    calibration: Calibration,
    device: &Device,
) -> Result<Vec<ActivationQuantizer>> {
    let float_activations = Quantization {
        weights: quantization.weights.clone(),
        activations: Vec::new(),
    };
    let frozen = nn::Frozen::new(network, state, Some(&float_activations), device)?;
    let mut histograms = vec![Histogram::default(); network.layers.len() + 1];
    frozen.observe(images, BATCH, |value, values| histograms[value].add(values))?;

    let mut quantizers = vec![input_quantizer(&network.normalization)];
    for (index, layer) in network.layers.iter().enumerate() {
        quantizers.push(match layer.op {
            Op::MaxPool { .. } | Op::Subsample { .. } => quantizers[layer.inputs[0]],
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } | Op::Add { .. } | Op::AvgPool { .. } => {
                histograms[index + 1].quantizer(calibration)
            }
        });
    }
    Ok(quantizers)
}

/// The quantizer of a range that holds zero: `low <= 0 <= high`.
pub fn quantizer_of_range(low: f32, high: f32) -> ActivationQuantizer {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = (high - low) / 255.0;
    if !(scale.is_finite() && scale >= f32::MIN_POSITIVE) {
        // Only zero was seen: any step does.
        return ActivationQuantizer {
            scale: 1.0,
            zero_point: 0,
        };
    }
    let zero_point = (-128.0 - low / scale).round().clamp(-128.0, 127.0) as i8;
    ActivationQuantizer { scale, zero_point }
}

/// Of pixels 0 to 255 after normalization, all channels together.
fn input_quantizer(normalization: &Normalization) -> ActivationQuantizer {
    let ends = normalization
        .mean
        .iter()
        .zip(&normalization.std)
        .flat_map(|(mean, std)| [-mean / std, (255.0 - mean) / std]);
    let (low, high) = ends.fold((0f32, 0f32), |(low, high), end| (low.min(end), high.max(end)));
    quantizer_of_range(low, high)
}

/// Counts of values in bins over `-limit..limit`, where `limit` doubles when a value lies outside.
#[derive(Clone, Debug, Default)]
struct Histogram {
    /// Empty until the first value other than zero.
    counts: Vec<u64>,
    limit: f32,
    zeros: u64,
    total: u64,
    low: f32,
    high: f32,
}

impl Histogram {
    /// Even, so that zero is an edge. Between doublings at least a quarter of them holds values of one sign: 8 a step.
    const BINS: usize = 8192;

    fn add(&mut self, values: &[f32]) {
        let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
        self.low = self.low.min(low);
        self.high = self.high.max(high);
        self.total += values.len() as u64;
        let largest = high.max(-low);
        if largest == 0.0 || !largest.is_finite() {
            self.zeros += values.len() as u64;
            return;
        }
        if self.counts.is_empty() {
            self.counts = vec![0; Self::BINS];
            self.limit = largest * 1.0001;
        }
        while self.limit <= largest {
            self.double();
        }
        let half = (Self::BINS / 2) as f32;
        let bins_per_unit = half / self.limit;
        for &value in values {
            if value == 0.0 {
                self.zeros += 1;
            } else {
                let bin = (value * bins_per_unit + half) as usize;
                self.counts[bin.min(Self::BINS - 1)] += 1;
            }
        }
    }

    /// Twice the range: each pair of bins, counted from zero outwards, becomes one.
    fn double(&mut self) {
        let half = Self::BINS / 2;
        let mut counts = vec![0; Self::BINS];
        for (bin, count) in self.counts.iter().enumerate() {
            // Bins 2i and 2i + 1 of either side; `half` is even, so both sides pair alike.
            counts[half / 2 + bin / 2] += count;
        }
        self.counts = counts;
        self.limit *= 2.0;
    }

    /// Middle and count of every bin that holds values, lowest first.
    fn bins(&self) -> impl Iterator<Item = (f32, u64)> {
        let half = (Self::BINS / 2) as f32;
        let width = self.limit / half;
        let middle = move |bin: usize| (bin as f32 + 0.5 - half) * width;
        self.counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(move |(bin, &count)| (middle(bin), count))
    }

    fn quantizer(&self, calibration: Calibration) -> ActivationQuantizer {
        match calibration {
            Calibration::Percentile => self.percentile(),
            Calibration::Mse => self.least_squares(),
        }
    }

    fn percentile(&self) -> ActivationQuantizer {
        let outside = (self.total as f64 * OUTSIDE) as u64;
        let bins: Vec<(f32, u64)> = self.bins().collect();
        let width = 2.0 * self.limit / Self::BINS as f32;
        let mut seen = 0;
        let low = bins.iter().find(|(_, count)| {
            seen += count;
            seen > outside
        });
        let mut seen = 0;
        let high = bins.iter().rev().find(|(_, count)| {
            seen += count;
            seen > outside
        });
        // The outer edge of the bin, within what was seen; zero is always within.
        let low = low.map_or(0.0, |(middle, _)| (middle - width / 2.0).max(self.low).min(0.0));
        let high = high.map_or(0.0, |(middle, _)| (middle + width / 2.0).min(self.high).max(0.0));
        quantizer_of_range(low, high)
    }

    fn least_squares(&self) -> ActivationQuantizer {
        let bins: Vec<(f32, u64)> = self.bins().collect();
        let mut best = (f64::INFINITY, quantizer_of_range(self.low, self.high));
        for percent in (20..=100).rev() {
            let share = percent as f32 / 100.0;
            let quantizer = quantizer_of_range(self.low * share, self.high * share);
            let zero_point = f32::from(quantizer.zero_point);
            let error = bins
                .iter()
                .map(|&(value, count)| {
                    let code = (value / quantizer.scale + zero_point).round().clamp(-128.0, 127.0);
                    let difference = f64::from(value - quantizer.scale * (code - zero_point));
                    difference * difference * count as f64
                })
                .sum();
            if error < best.0 {
                best = (error, quantizer);
            }
        }
        best.1
    }
}
