//! Fully connected layers.

use super::{ChannelRules, ChannelWeights, Input, Output};
use crate::isa;

/// Fully connected layer: `y[o] = requantize(bias[o] + sum(x[i] * w[o,i]))`.
///
/// # Shapes
/// `x: [k]`, an HWC tensor flattened | weights `[c_out, k]`, packed | `rules: [c_out]` | `y: [c_out]` | `scratch: [k]`
pub(crate) fn linear(x: Input<'_>, weights: &ChannelWeights<'_>, rules: &ChannelRules<'_>, y: Output<'_>, scratch: &mut [u8]) {
    for (((packed, bias), rule), code) in weights.iter().zip(rules.iter()).zip(y.codes) {
        let codes = isa::unpack(weights.width, packed, scratch);
        *code = rule.apply(bias.wrapping_add(isa::dot(x.codes, codes))) as u8;
    }
}

/// The last layer: `y[o] = bias[o] + sum(x[i] * w[o,i])`, the accumulators as little-endian `i32`.
///
/// # Shapes
/// `x: [k]` | weights `[classes, k]`, packed | `y: [classes]` of four bytes | `scratch: [k]`
pub(crate) fn logits(x: Input<'_>, weights: &ChannelWeights<'_>, y: Output<'_>, scratch: &mut [u8]) {
    let (logits, _) = y.codes.as_chunks_mut::<4>();
    for ((packed, bias), logit) in weights.iter().zip(logits) {
        let codes = isa::unpack(weights.width, packed, scratch);
        *logit = bias.wrapping_add(isa::dot(x.codes, codes)).to_le_bytes();
    }
}
