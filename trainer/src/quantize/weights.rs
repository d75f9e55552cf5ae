//! The weight quantizers on the host: from float weights to codes and scales.
//!
//! This is the definition: evaluation and export both go through [`quantize_rows`], and the fake quantization that training
//! differentiates through ([`crate::nn`]) must agree with it. A row is all weights of one output channel, which share a
//! scale; the last layer has a single scale for all its rows.
//!
//! # Source
//! W1: Rastegari et al. 2016, XNOR-Net, section 3.1 (sign, mean magnitude). W2: Li et al. 2016, ternary weight networks,
//! section 2.3 (threshold 0.7 of the mean magnitude). W4, W8: uniform, the clipping point with the least squared error. Scales
//! that are learnt: Esser et al. 2020, LSQ, section 2; a ternary grid too is then uniform, with its threshold at half a scale.

use super::{WeightQuantizer, Width};
use crate::state_dict::Array;

/// No scale is smaller, so that none is zero: a row of zeros has this scale.
pub const MIN_SCALE: f32 = 1e-6;

/// Ternary threshold as a share of the mean magnitude.
pub const TERNARY_THRESHOLD: f32 = 0.7;

/// Codes of a weight tensor and what they stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeights {
    /// In the layout of the float tensor.
    pub codes: Vec<i8>,
    /// One a row, or a single one for the whole tensor.
    pub scales: Vec<f32>,
}

impl QuantizedWeights {
    /// `scale * code` of every weight.
    pub fn dequantize(&self) -> Vec<f32> {
        if self.codes.is_empty() {
            return Vec::new();
        }
        let row_len = self.codes.len() / self.scales.len();
        let rows = self.codes.chunks_exact(row_len).zip(&self.scales);
        rows.flat_map(|(row, &scale)| row.iter().map(move |&code| scale * f32::from(code)))
            .collect()
    }
}

/// Quantizes a weight tensor, outermost dimension the output channels.
///
/// # Panics
/// Where a quantizer has another number of scales than the tensor has rows (one for per-tensor), but for W1, and W2 without any.
pub fn quantize_rows(weights: &Array, quantizer: &WeightQuantizer) -> QuantizedWeights {
    let mut codes = Vec::with_capacity(weights.values.len());
    let mut scales = Vec::new();
    for (index, row) in scale_groups(weights, quantizer.per_tensor).enumerate() {
        let scale = match quantizer.width {
            Width::W1 => {
                codes.extend(row.iter().map(|&w| if w >= 0.0 { 1 } else { -1 }));
                mean_magnitude(row.iter()).max(MIN_SCALE)
            }
            Width::W2 if quantizer.scales.is_empty() => {
                let threshold = TERNARY_THRESHOLD * mean_magnitude(row.iter());
                let ternary = |w: f32| if w.abs() <= threshold { 0 } else { w.signum() as i8 };
                codes.extend(row.iter().map(|&w| ternary(w)));
                mean_magnitude(row.iter().filter(|w| w.abs() > threshold)).max(MIN_SCALE)
            }
            Width::W2 | Width::W4 | Width::W8 => {
                let scale = quantizer.scales[index];
                let (min, max) = code_range(quantizer.width);
                codes.extend(row.iter().map(|&w| code(w, scale, min, max) as i8));
                scale
            }
        };
        scales.push(scale);
    }
    QuantizedWeights { codes, scales }
}

/// The scale with the least squared error for each row (or the tensor), over clipping points from 40 to 100 per cent of the
/// largest magnitude; empty for W1 and W2.
pub fn choose_scales(weights: &Array, width: Width, per_tensor: bool) -> Vec<f32> {
    match width {
        Width::W1 | Width::W2 => Vec::new(),
        Width::W4 | Width::W8 => scale_groups(weights, per_tensor).map(|row| best_scale(row, width)).collect(),
    }
}

/// Where scales that are learnt start: those of the quantizer, or of least squared error where it has none. Empty for W1, whose
/// rows BatchNorm scales anyway.
pub fn learnable_scales(weights: &Array, quantizer: &WeightQuantizer) -> Vec<f32> {
    match quantizer.width {
        Width::W1 => Vec::new(),
        Width::W2 if quantizer.scales.is_empty() => scale_groups(weights, quantizer.per_tensor)
            .map(|row| best_scale(row, Width::W2))
            .collect(),
        Width::W2 | Width::W4 | Width::W8 => quantizer.scales.clone(),
    }
}

/// Least and largest code, as floats.
pub fn code_range(width: Width) -> (f32, f32) {
    match width {
        Width::W1 | Width::W2 => (-1.0, 1.0),
        Width::W4 => (-8.0, 7.0),
        Width::W8 => (-127.0, 127.0),
    }
}

/// The rows, or the whole tensor as one.
fn scale_groups(weights: &Array, per_tensor: bool) -> impl Iterator<Item = &[f32]> {
    let len = if per_tensor { weights.values.len() } else { weights.row_len() };
    weights.values.chunks_exact(len.max(1))
}

/// Mean of the magnitudes, 0 of none.
fn mean_magnitude<'a>(values: impl Iterator<Item = &'a f32>) -> f32 {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += f64::from(value.abs());
        count += 1;
    }
    if count == 0 { 0.0 } else { (sum / f64::from(count)) as f32 }
}

fn code(w: f32, scale: f32, min: f32, max: f32) -> f32 {
    (w / scale).round_ties_even().clamp(min, max)
}

fn best_scale(row: &[f32], width: Width) -> f32 {
    let (min, max) = code_range(width);
    let largest = row.iter().fold(0f32, |largest, w| largest.max(w.abs()));
    // W4 has one more code below zero than above: its full range is half a step wider than `max`.
    let full = largest / ((max - min) / 2.0);
    let error = |scale: f32| -> f64 {
        row.iter()
            .map(|&w| {
                let difference = w - scale * code(w, scale, min, max);
                f64::from(difference * difference)
            })
            .sum()
    };
    // Of three codes, the outer two stand for weights far below the largest.
    let least = if width == Width::W2 { 10 } else { 40 };
    let candidates = (least..=100)
        .rev()
        .map(|percent| (full * percent as f32 / 100.0).max(MIN_SCALE));
    let mut best = (f64::INFINITY, MIN_SCALE);
    for scale in candidates {
        let error = error(scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn array(rows: usize, values: &[f32]) -> Array {
        Array {
            shape: vec![rows, values.len() / rows],
            values: values.to_vec(),
        }
    }

    fn quantizer(width: Width, scales: &[f32]) -> WeightQuantizer {
        WeightQuantizer {
            width,
            scales: scales.to_vec(),
            per_tensor: false,
        }
    }

    #[test]
    fn binary_is_sign_times_mean_magnitude() {
        let weights = array(2, &[0.5, -1.5, 0.0, -2.0, 4.0, 4.0, -4.0, 4.0]);
        let quantized = quantize_rows(&weights, &quantizer(Width::W1, &[]));
        assert_eq!(quantized.codes, [1, -1, 1, -1, 1, 1, -1, 1]);
        assert_eq!(quantized.scales, [1.0, 4.0]);
        assert_eq!(quantized.dequantize(), [1.0, -1.0, 1.0, -1.0, 4.0, 4.0, -4.0, 4.0]);
    }

    #[test]
    fn ternary_drops_what_is_below_the_threshold() {
        // Mean magnitude 1, threshold 0.7; kept are 2, 0.9 and 0.8 in magnitude.
        let weights = array(1, &[-2.0, 0.3, 0.9, -0.8]);
        let quantized = quantize_rows(&weights, &quantizer(Width::W2, &[]));
        assert_eq!(quantized.codes, [-1, 0, 1, -1]);
        assert!((quantized.scales[0] - 3.7 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_learnt_ternary_grid_is_uniform_and_starts_near_the_least_error() {
        let weights = array(1, &[-2.0, 0.45, 0.55, -0.8]);
        let quantized = quantize_rows(&weights, &quantizer(Width::W2, &[1.0]));
        assert_eq!(quantized.codes, [-1, 0, 1, -1]);
        assert_eq!(quantized.scales, [1.0]);

        // Of evenly spread weights, a threshold at a third and a scale at two thirds of the largest are best.
        let values: Vec<f32> = (-300..=300).map(|i| i as f32 / 300.0).collect();
        let even = array(1, &values);
        let scales = learnable_scales(&even, &quantizer(Width::W2, &[]));
        assert!((scales[0] - 2.0 / 3.0).abs() < 0.01, "{}", scales[0]);
        assert_eq!(learnable_scales(&even, &quantizer(Width::W2, &[0.3])), [0.3]);
        assert_eq!(learnable_scales(&even, &quantizer(Width::W4, &[0.2])), [0.2]);
        assert!(learnable_scales(&even, &quantizer(Width::W1, &[])).is_empty());
    }

    #[test]
    fn uniform_codes_round_and_saturate() {
        let weights = array(1, &[0.24, 0.26, -0.26, 5.0, -5.0, 0.0]);
        let quantized = quantize_rows(&weights, &quantizer(Width::W4, &[0.5]));
        assert_eq!(quantized.codes, [0, 1, -1, 7, -8, 0]);
        let quantized = quantize_rows(&weights, &quantizer(Width::W8, &[0.01]));
        assert_eq!(quantized.codes, [24, 26, -26, 127, -127, 0]);
    }

    #[test]
    fn per_tensor_shares_one_scale() {
        let weights = array(2, &[1.0, 1.0, 3.0, -3.0]);
        for width in Width::ALL {
            let quantizer = WeightQuantizer {
                width,
                scales: choose_scales(&weights, width, true),
                per_tensor: true,
            };
            assert_eq!(quantize_rows(&weights, &quantizer).scales.len(), 1, "{width:?}");
        }
        let binary = WeightQuantizer {
            per_tensor: true,
            ..quantizer(Width::W1, &[])
        };
        assert_eq!(quantize_rows(&weights, &binary).scales, [2.0]);
    }

    #[test]
    fn rows_of_zeros_stay_zeros() {
        let weights = array(2, &[0.0, 0.0, 1.0, 1.0]);
        for width in [Width::W2, Width::W4, Width::W8] {
            let scales = choose_scales(&weights, width, false);
            let quantized = quantize_rows(&weights, &quantizer(width, &scales));
            assert_eq!(quantized.codes[..2], [0, 0], "{width:?}");
            assert!(quantized.scales.iter().all(|s| s.is_finite() && *s > 0.0));
        }
        let binary = quantize_rows(&weights, &quantizer(Width::W1, &[]));
        assert_eq!(binary.scales, [MIN_SCALE, 1.0]);
    }

    #[test]
    fn four_bits_reach_minus_eight() {
        // On the grid of -8 to 7 steps of 0.1: the chosen scale must find it.
        let values: Vec<f32> = (-8..=7).map(|code| code as f32 * 0.1).collect();
        let weights = array(1, &values);
        let scales = choose_scales(&weights, Width::W4, false);
        let quantized = quantize_rows(&weights, &quantizer(Width::W4, &scales));
        assert_eq!(quantized.codes, (-8..=7).collect::<Vec<i8>>());
        assert!((scales[0] - 0.1).abs() < 0.002, "{}", scales[0]);
    }

    #[test]
    fn an_outlier_is_clipped_when_that_costs_less() {
        let mut values = vec![0.0; 400];
        for (i, value) in values.iter_mut().enumerate() {
            *value = (i as f32 / 200.0 - 1.0) * 0.1;
        }
        values.push(0.2);
        let scale = choose_scales(&array(1, &values), Width::W4, false)[0];
        assert!(scale < 0.8 * 0.2 / 7.5, "{scale}");
    }

    proptest! {
        #[test]
        fn codes_are_in_range_and_chosen_scales_no_worse_than_the_full_range(
            values in proptest::collection::vec(-3f32..3.0, 1..60),
            width in prop_oneof![Just(Width::W4), Just(Width::W8)],
        ) {
            let weights = array(1, &values);
            let (min, max) = code_range(width);
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            let error = |scale: f32| -> f64 {
                let real = quantize_rows(&weights, &quantizer(width, &[scale])).dequantize();
                real.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            let scale = choose_scales(&weights, width, false)[0];
            prop_assert!(scale >= MIN_SCALE);
            let full = (largest / ((max - min) / 2.0)).max(MIN_SCALE);
            prop_assert!(error(scale) <= error(full) * 1.001 + 1e-9);
            for code in quantize_rows(&weights, &quantizer(width, &[scale])).codes {
                prop_assert!(f32::from(code) >= min && f32::from(code) <= max);
            }
        }
    }
}
