//! Activation calibration: the int8 range of every value, from its histogram over calibration images.

use serde::{Deserialize, Serialize};

use super::{ActivationQuantizer, Quantization};
use crate::Result;
use crate::data::Dataset;
use crate::device::Device;
use crate::export::lower::sum_scale;
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
/// [`ErrorKind::Data`](crate::ErrorKind::Data) where the images have another size or other classes.
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
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } | Op::AvgPool { .. } => {
                histograms[index + 1].quantizer(calibration)
            }
            Op::Add { .. } => {
                let [a, b] = [0, 1].map(|input| quantizers[layer.inputs[input]].scale);
                let quantizer = histograms[index + 1].quantizer(calibration);
                ActivationQuantizer {
                    scale: sum_scale(a, b, quantizer.scale),
                    ..quantizer
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, synthetic};
    use crate::network::{Layer, Shape, Window};
    use crate::zoo::zoo;

    fn quantizer(scale: f32, zero_point: i8) -> ActivationQuantizer {
        ActivationQuantizer { scale, zero_point }
    }

    #[test]
    fn raw_pixels_are_exact() {
        let normalization = zoo("resnet8", 10).unwrap().normalization;
        assert_eq!(input_quantizer(&normalization), quantizer(1.0, -128));
    }

    #[test]
    fn normalized_pixels_use_all_codes() {
        let normalization = zoo("resnet20", 10).unwrap().normalization;
        let ActivationQuantizer { scale, zero_point } = input_quantizer(&normalization);
        let code = |pixel: f32, c: usize| {
            let real = (pixel - normalization.mean[c]) / normalization.std[c];
            (real / scale).round() as i32 + i32::from(zero_point)
        };
        let codes: Vec<i32> = (0..3).flat_map(|c| [code(0.0, c), code(255.0, c)]).collect();
        assert_eq!(codes.iter().min(), Some(&-128));
        assert_eq!(codes.iter().max(), Some(&127));
    }

    #[test]
    fn ranges_hold_zero_exactly() {
        assert_eq!(quantizer_of_range(0.0, 510.0), quantizer(2.0, -128));
        assert_eq!(quantizer_of_range(-510.0, 0.0), quantizer(2.0, 127));
        assert_eq!(quantizer_of_range(100.0, 510.0), quantizer(2.0, -128));
        assert_eq!(quantizer_of_range(-200.0, 310.0), quantizer(2.0, -28));
        assert_eq!(quantizer_of_range(0.0, 0.0), quantizer(1.0, 0));
    }

    #[test]
    fn percentile_leaves_outliers_outside() {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0).collect();
        histogram.add(&values);
        histogram.add(&[40.0; 5]);
        let found = histogram.quantizer(Calibration::Percentile);
        assert_eq!(found.zero_point, -128);
        assert!((found.scale * 255.0 - 1.0).abs() < 0.02, "{found:?}");
    }

    #[test]
    fn least_squares_weighs_saturation_against_steps() {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0).collect();
        histogram.add(&values);
        histogram.add(&[3.0]);
        let clipped = histogram.quantizer(Calibration::Mse);
        assert!(clipped.scale * 255.0 < 2.9, "{clipped:?}");
        // Where many values are large, they are kept.
        histogram.add(&[3.0; 20_000]);
        let kept = histogram.quantizer(Calibration::Mse);
        assert!(kept.scale * 255.0 > 2.95, "{kept:?}");
    }

    #[test]
    fn signed_values_have_a_zero_point_between() {
        for calibration in [Calibration::Percentile, Calibration::Mse] {
            let mut histogram = Histogram::default();
            let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 5_000.0 - 1.5).collect();
            histogram.add(&values);
            let ActivationQuantizer { scale, zero_point } = histogram.quantizer(calibration);
            assert!((scale - 2.0 / 255.0).abs() < 2e-4, "{scale}");
            assert!((60..=66).contains(&zero_point), "{zero_point}");
        }
    }

    #[test]
    fn constant_values_have_a_usable_scale() {
        for calibration in [Calibration::Percentile, Calibration::Mse] {
            let mut zeros = Histogram::default();
            zeros.add(&[0.0; 10]);
            assert_eq!(zeros.quantizer(calibration), quantizer(1.0, 0));
            let mut ones = Histogram::default();
            ones.add(&[1.0; 10]);
            let found = ones.quantizer(calibration);
            assert!(
                (found.scale * 255.0 - 1.0).abs() < 0.01 && found.zero_point == -128,
                "{found:?}"
            );
        }
    }

    #[test]
    fn growing_range_keeps_counts_in_place() {
        let mut grown = Histogram::default();
        grown.add(&[0.01, -0.01, 0.003]);
        grown.add(&[1.0, -0.6, 0.01]);
        assert_eq!(grown.counts.iter().sum::<u64>(), 6);
        let width = 2.0 * grown.limit / Histogram::BINS as f32;
        let expected = [(-0.6, 1), (-0.01, 1), (0.003, 1), (0.01, 2), (1.0, 1)];
        for ((middle, count), (value, times)) in grown.bins().zip(expected) {
            assert_eq!(count, times);
            assert!((middle - value).abs() <= width, "{middle} for {value}");
        }
    }

    #[test]
    fn moved_values_share_their_quantizer() {
        let pool = Window {
            kernel_height: 2,
            kernel_width: 2,
            stride_height: 2,
            stride_width: 2,
            pad_top: 0,
            pad_bottom: 0,
            pad_left: 0,
            pad_right: 0,
        };
        let layer = |name: &str, op, input| Layer {
            name: name.into(),
            op,
            inputs: vec![input],
        };
        let network = Network {
            name: "moves".into(),
            input: Shape {
                height: 32,
                width: 32,
                channels: 3,
            },
            normalization: Normalization {
                mean: vec![0.0; 3],
                std: vec![1.0; 3],
            },
            layers: vec![
                layer("pool", Op::MaxPool { window: pool }, 0),
                layer("average", Op::AvgPool { window: pool }, 1),
                layer(
                    "skip",
                    Op::Subsample {
                        stride: 4,
                        channels_before: 1,
                        channels_after: 1,
                    },
                    2,
                ),
                layer(
                    "fc",
                    Op::Linear {
                        out_features: 10,
                        bias: false,
                        relu: false,
                    },
                    3,
                ),
            ],
        };
        let state = StateDict::init(&network, 1).unwrap();
        let weights = vec![None, None, None, None];
        let mut quantization = Quantization {
            weights,
            activations: Vec::new(),
        };
        let scales = crate::quantize::weights::choose_scales(&state.tensors["fc.weight"], crate::quantize::Width::W8, true);
        quantization.weights[3] = Some(crate::quantize::WeightQuantizer {
            width: crate::quantize::Width::W8,
            scales,
            per_tensor: true,
        });
        let images = synthetic::load(Split::Train, 20);
        let device = Device::flex();
        let found = calibrate(&network, &state, &quantization, &images, Calibration::Percentile, &device).unwrap();
        assert_eq!(found.len(), 5);
        assert_eq!(found[1], found[0]);
        assert_eq!(found[3], found[2]);
        assert_eq!(found[2].zero_point, -128);
        assert!(found[2].scale <= found[0].scale);
    }
}
