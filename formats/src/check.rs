//! What a decoded graph must satisfy, so that a runtime may trust it without a further look.
//!
//! The order matters: each check may rely on those before it. Sizes are 64-bit until they are known to fit, since a file is
//! read on 32-bit devices, too.

use crate::MAX_TENSORS;
use crate::error::{LayerError, ParseError, Region, TensorError};
use crate::graph::{Element, Op, Requantize, Tensor, Weights, Width, Window};
use crate::model::{I32Array, Parts};

/// Everything about a model that its decoding does not show already.
///
/// Neither inlined nor are its parts: so their frames, of hundreds of bytes on a device, do not add up.
#[inline(never)]
pub(crate) fn check(parts: &Parts) -> Result<(), ParseError> {
    let head = &parts.head;
    if head.provenance.top1 > 10_000 && head.provenance.top1 != u16::MAX {
        return Err(ParseError::Top1 {
            found: head.provenance.top1,
        });
    }
    let layers = parts.layers.len();
    if layers == 0 {
        return Err(ParseError::NoLayers);
    }
    if parts.tensors.len() != layers + 1 {
        return Err(ParseError::TensorCount {
            tensors: parts.tensors.len(),
            layers,
        });
    }
    for (i, tensor) in parts.tensors.iter().enumerate() {
        check_tensor(&tensor, i == layers, head.plan.arena_bytes)
            .map_err(|cause| ParseError::Tensor { tensor: i as u8, cause })?;
    }
    let classes = parts.tensors.get(layers).channels;
    if parts.labels.len() != usize::from(classes) {
        return Err(ParseError::LabelCount {
            labels: parts.labels.len(),
            classes,
        });
    }

    let section = parts.weights.len();
    let mut used = u64::from(head.input_table) + u64::from(parts.tensors.get(0).channels) * 256;
    if used > section as u64 {
        return Err(ParseError::InputTable { end: used, section });
    }
    for (i, layer) in parts.layers.clone().enumerate() {
        let end = LayerCheck { parts, layer: i }
            .check(&layer.op)
            .map_err(|cause| ParseError::Layer { layer: i as u8, cause })?;
        used = used.max(end);
    }
    if used < section as u64 {
        return Err(ParseError::UnusedWeights { used, section });
    }
    check_arena(parts)
}

fn check_tensor(tensor: &Tensor, last: bool, arena_bytes: u32) -> Result<(), TensorError> {
    if tensor.height == 0 || tensor.width == 0 || tensor.channels == 0 {
        return Err(TensorError::Empty);
    }
    match tensor.element {
        Element::I8 if !last => {}
        Element::I32 if last => {
            if tensor.zero_point != 0 {
                return Err(TensorError::ZeroPoint {
                    found: tensor.zero_point,
                });
            }
            if !tensor.offset.is_multiple_of(4) {
                return Err(TensorError::Alignment { offset: tensor.offset });
            }
        }
        Element::I8 | Element::I32 => return Err(TensorError::Element),
    }
    // Finite and positive, seen in the bits: positive zero is 0, infinity is 0x7f80_0000, the sign is the highest bit.
    if tensor.scale.0 == 0 || tensor.scale.0 >= 0x7f80_0000 {
        return Err(TensorError::Scale { bits: tensor.scale.0 });
    }
    let elements = u64::from(tensor.height) * u64::from(tensor.width) * u64::from(tensor.channels);
    let end = u64::from(tensor.offset) + elements * tensor.element.bytes() as u64;
    if end > u64::from(arena_bytes) {
        return Err(TensorError::Range { end, arena_bytes });
    }
    Ok(())
}

/// One layer's checks. Its tensors are in the arena already, so their sizes fit `usize`.
struct LayerCheck<'m> {
    parts: &'m Parts<'m>,
    layer: usize,
}

impl<'m> LayerCheck<'m> {
    /// Checks the layer; gives the end of what it uses of the weights section.
    #[inline(never)]
    fn check(&self, op: &Op) -> Result<u64, LayerError> {
        let tensors = &self.parts.tensors;
        for input in op.inputs() {
            if usize::from(input) > self.layer {
                return Err(LayerError::Input { input });
            }
        }
        let last = self.layer + 2 == tensors.len();
        match op {
            Op::Logits { .. } if !last => return Err(LayerError::LogitsNotLast),
            Op::Logits { .. } => {}
            Op::Conv2d { .. }
            | Op::DepthwiseConv2d { .. }
            | Op::Linear { .. }
            | Op::Add { .. }
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::Subsample { .. }
                if last =>
            {
                return Err(LayerError::LastNotLogits);
            }
            Op::Conv2d { .. }
            | Op::DepthwiseConv2d { .. }
            | Op::Linear { .. }
            | Op::Add { .. }
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::Subsample { .. } => {}
        }
        let output = &tensors.get(self.layer + 1);
        let tensor = |id: u8| tensors.get(usize::from(id));
        match *op {
            Op::Conv2d {
                input,
                window,
                weights,
                requantize,
            } => {
                let input = &tensor(input);
                check_window(&window, input, output, output.channels)?;
                self.check_weights(op, input, output, &weights, Some(&requantize))
            }
            Op::DepthwiseConv2d {
                input,
                window,
                weights,
                requantize,
            } => {
                let input = &tensor(input);
                check_window(&window, input, output, input.channels)?;
                self.check_weights(op, input, output, &weights, Some(&requantize))
            }
            Op::Linear {
                input,
                weights,
                requantize,
            } => {
                check_shape(output, [1, 1, u32::from(output.channels)])?;
                self.check_weights(op, &tensor(input), output, &weights, Some(&requantize))
            }
            Op::Logits { input, weights } => {
                check_shape(output, [1, 1, u32::from(output.channels)])?;
                self.check_weights(op, &tensor(input), output, &weights, None)
            }
            Op::Add {
                a,
                b,
                mul_a,
                mul_b,
                shift,
                min,
                max,
            } => {
                let (a, b) = (shape(&tensor(a)), shape(&tensor(b)));
                if a != b {
                    return Err(LayerError::InputShapes { a, b });
                }
                check_shape(output, a.map(u32::from))?;
                for found in [mul_a, mul_b] {
                    if found < 0 {
                        return Err(LayerError::AddMultiplier { found });
                    }
                }
                if !(1..=30).contains(&shift) {
                    return Err(LayerError::AddShift { found: shift });
                }
                check_clamp(min, max)?;
                Ok(0)
            }
            Op::MaxPool { input, window } => {
                let input = &tensor(input);
                check_window(&window, input, output, input.channels)?;
                check_codes(input, output)?;
                Ok(0)
            }
            Op::AvgPool {
                input,
                window,
                multiplier,
                shift,
            } => {
                let input = &tensor(input);
                check_window(&window, input, output, input.channels)?;
                // The sum of 255 x 255 differences of at most 255 is below 2^24: no bound to check.
                if multiplier < 1 << 30 {
                    return Err(LayerError::Multiplier {
                        channel: 0,
                        found: multiplier,
                    });
                }
                check_shift(0, shift)?;
                Ok(0)
            }
            Op::Subsample {
                input,
                stride,
                channels_before,
                channels_after,
            } => {
                if stride == 0 {
                    return Err(LayerError::StrideZero);
                }
                let input = &tensor(input);
                check_shape(
                    output,
                    [
                        u32::from(input.height).div_ceil(u32::from(stride)),
                        u32::from(input.width).div_ceil(u32::from(stride)),
                        u32::from(channels_before) + u32::from(input.channels) + u32::from(channels_after),
                    ],
                )?;
                check_codes(input, output)?;
                Ok(0)
            }
        }
    }

    #[inline(never)]
    fn check_weights(
        &self,
        op: &Op,
        input: &Tensor,
        output: &Tensor,
        weights: &Weights,
        requantize: Option<&Requantize>,
    ) -> Result<u64, LayerError> {
        let Some((rows, k)) = op.rows_and_k(input, output) else {
            return Ok(0);
        };
        // The bound on the accumulator bounds k, too: from here on, row_bytes(k) fits 32 bits.
        let largest_sum = k as u64 * 128 * weights.width.max_magnitude() as u64;
        if largest_sum > i32::MAX as u64 {
            return Err(LayerError::Accumulator {
                channel: 0,
                bound: largest_sum,
            });
        }
        let scratch_bytes = self.parts.head.plan.scratch_bytes;
        if k as u64 > u64::from(scratch_bytes) {
            return Err(LayerError::Scratch {
                needed: k,
                scratch_bytes,
            });
        }

        let row_bytes = weights.width.row_bytes(k);
        let (packed, mut used) = self.check_region(Region::Weights, weights.offset, rows as u64 * row_bytes as u64)?;
        for (row, bytes) in packed.chunks_exact(row_bytes).enumerate() {
            check_row(bytes, weights.width, k, row as u16)?;
        }

        let (bias, end) = self.check_region(Region::Bias, weights.bias, rows as u64 * 4)?;
        used = used.max(end);
        for (channel, bias) in I32Array::new(bias).iter().enumerate() {
            let bound = largest_sum + u64::from(bias.unsigned_abs());
            if bound > i32::MAX as u64 {
                return Err(LayerError::Accumulator {
                    channel: channel as u16,
                    bound,
                });
            }
        }

        let Some(requantize) = requantize else {
            return Ok(used);
        };
        let (multiplier, end) = self.check_region(Region::Multiplier, requantize.multiplier, rows as u64 * 4)?;
        used = used.max(end);
        for (channel, found) in I32Array::new(multiplier).iter().enumerate() {
            if found != 0 && !(1 << 30..=i32::MAX as u32).contains(&found.unsigned_abs()) {
                return Err(LayerError::Multiplier {
                    channel: channel as u16,
                    found,
                });
            }
        }
        let (shift, end) = self.check_region(Region::Shift, requantize.shift, rows as u64)?;
        used = used.max(end);
        for (channel, &found) in shift.iter().enumerate() {
            check_shift(channel as u16, found)?;
        }
        check_clamp(requantize.min, requantize.max)?;
        Ok(used)
    }

    /// The bytes of a region and where it ends.
    fn check_region(&self, region: Region, offset: u32, bytes: u64) -> Result<(&'m [u8], u64), LayerError> {
        if !(offset as usize).is_multiple_of(region.alignment()) {
            return Err(LayerError::Alignment { region, offset });
        }
        let section = self.parts.weights.len();
        let end = u64::from(offset) + bytes;
        if end > section as u64 {
            return Err(LayerError::Range { region, end, section });
        }
        Ok((&self.parts.weights[offset as usize..end as usize], end))
    }
}

fn check_window(window: &Window, input: &Tensor, output: &Tensor, channels: u16) -> Result<(), LayerError> {
    if window.kernel_height == 0 || window.kernel_width == 0 {
        return Err(LayerError::KernelZero);
    }
    if window.stride_height == 0 || window.stride_width == 0 {
        return Err(LayerError::StrideZero);
    }
    for (pad, kernel) in [
        (window.pad_top, window.kernel_height),
        (window.pad_bottom, window.kernel_height),
        (window.pad_left, window.kernel_width),
        (window.pad_right, window.kernel_width),
    ] {
        if pad >= kernel {
            return Err(LayerError::Padding { pad, kernel });
        }
    }
    match window.output(input.height.into(), input.width.into()) {
        Some((height, width)) => check_shape(output, [height as u32, width as u32, channels.into()]),
        None => Err(LayerError::KernelTooLarge {
            kernel: [window.kernel_height, window.kernel_width],
            input: [input.height, input.width],
        }),
    }
}

fn check_shape(output: &Tensor, computed: [u32; 3]) -> Result<(), LayerError> {
    let found = shape(output);
    if found.map(u32::from) != computed {
        return Err(LayerError::OutputShape { found, computed });
    }
    Ok(())
}

fn check_codes(input: &Tensor, output: &Tensor) -> Result<(), LayerError> {
    if input.scale != output.scale || input.zero_point != output.zero_point {
        return Err(LayerError::CodesDiffer);
    }
    Ok(())
}

fn check_clamp(min: i8, max: i8) -> Result<(), LayerError> {
    if min > max {
        return Err(LayerError::Clamp { min, max });
    }
    Ok(())
}

fn check_shift(channel: u16, found: u8) -> Result<(), LayerError> {
    if !(1..=62).contains(&found) {
        return Err(LayerError::Shift { channel, found });
    }
    Ok(())
}

fn check_row(bytes: &[u8], width: Width, k: usize, row: u16) -> Result<(), LayerError> {
    let invalid = match width {
        Width::W1 | Width::W4 => false,
        // 0b10: the high bit of a pair without the low one.
        Width::W2 => bytes.iter().any(|byte| byte >> 1 & !byte & 0x55 != 0),
        Width::W8 => bytes.contains(&0x80),
    };
    if invalid {
        // Invalid bits after the last code are wrong as padding, not as a code.
        if let Some(column) = (0..k).position(|i| width.decode(bytes, i) < width.min_code()) {
            return Err(LayerError::Code {
                row,
                column: column as u32,
                width,
            });
        }
    }
    let bits = k * width.bits() as usize;
    let (whole, part) = (bits / 8, bits % 8);
    let after = &bytes[whole..];
    if after
        .iter()
        .enumerate()
        .any(|(i, &byte)| if i == 0 { byte >> part != 0 } else { byte != 0 })
    {
        return Err(LayerError::RowPadding { row });
    }
    Ok(())
}

/// Tensors in use at the same time share no byte, and none shares one with the scratch range.
///
/// Tensor `t` is in use from layer `t - 1`, which writes it, to the last layer that reads it; the input from the start.
#[inline(never)]
fn check_arena(parts: &Parts) -> Result<(), ParseError> {
    let plan = parts.head.plan;
    let scratch_end = u64::from(plan.scratch_offset) + u64::from(plan.scratch_bytes);
    if scratch_end > u64::from(plan.arena_bytes) {
        return Err(ParseError::ScratchRange {
            end: scratch_end,
            arena_bytes: plan.arena_bytes,
        });
    }
    let tensors = &parts.tensors;
    let error = |tensor: usize, cause| {
        Err(ParseError::Tensor {
            tensor: tensor as u8,
            cause,
        })
    };
    if let Some(i) = tensors
        .iter()
        .position(|tensor| overlap(range(&tensor), (plan.scratch_offset.into(), scratch_end)))
    {
        return error(i, TensorError::OverlapsScratch);
    }
    let mut last_reader = [None; MAX_TENSORS];
    for (i, layer) in parts.layers.clone().enumerate() {
        for input in layer.op.inputs() {
            last_reader[usize::from(input)] = Some(i as u8);
        }
    }
    if let Some(i) = last_reader[..tensors.len() - 1].iter().position(Option::is_none) {
        return error(i, TensorError::Unused);
    }
    for (i, layer) in parts.layers.clone().enumerate() {
        let written = range(&tensors.get(i + 1));
        let now = Some(i as u8);
        for (t, tensor) in tensors.iter().take(i + 1).enumerate() {
            let range = range(&tensor);
            let in_use = last_reader[t] >= now;
            let in_place = matches!(layer.op, Op::Add { .. }) && last_reader[t] == now && range == written;
            if in_use && !in_place && overlap(range, written) {
                return error(i + 1, TensorError::Overlap { other: t as u8 });
            }
        }
    }
    Ok(())
}

fn shape(tensor: &Tensor) -> [u16; 3] {
    [tensor.height, tensor.width, tensor.channels]
}

fn range(tensor: &Tensor) -> (u64, u64) {
    let start = u64::from(tensor.offset);
    (start, start + tensor.bytes() as u64)
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}
