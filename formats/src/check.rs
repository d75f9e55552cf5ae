//! What a decoded graph must satisfy, so that a runtime may trust it without a further look.
//!
//! The order matters: each check may rely on those before it. Sizes are 64-bit until they are known to fit, since a file is
//! read on 32-bit devices, too.

use crate::MAX_TENSORS;
use crate::error::{LayerError, ParseError, Region, TensorError};
use crate::graph::{Element, Op, Requantize, Residual, Scratch, Tensor, Weights, Width, Window};
use crate::model::{I32Array, Parts};
use crate::packing::{Order, Packing};

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
        check_tensor(&tensor, i == layers, head.arena_bytes).map_err(|cause| ParseError::Tensor { tensor: i as u8, cause })?;
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
            .check(&layer.op, layer.scratch)
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
    fn check(&self, op: &Op, scratch: Scratch) -> Result<u64, LayerError> {
        let tensors = &self.parts.tensors;
        for input in op.inputs() {
            if usize::from(input) > self.layer {
                return Err(LayerError::Input { input });
            }
        }
        let (end, arena_bytes) = (scratch_range(scratch).1, self.parts.head.arena_bytes);
        if end > arena_bytes.into() {
            return Err(LayerError::ScratchRange { end, arena_bytes });
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
                residual,
            } => {
                let input = &tensor(input);
                check_window(&window, input, output, output.channels)?;
                if let Some(residual) = residual {
                    check_residual(&residual, &tensor(residual.input), output)?;
                }
                self.check_weights(op, scratch, input, output, &weights, Some(&requantize))
            }
            Op::DepthwiseConv2d {
                input,
                window,
                weights,
                requantize,
            } => {
                let input = &tensor(input);
                check_window(&window, input, output, input.channels)?;
                self.check_weights(op, scratch, input, output, &weights, Some(&requantize))
            }
            Op::Linear {
                input,
                weights,
                requantize,
            } => {
                check_shape(output, [1, 1, u32::from(output.channels)])?;
                self.check_weights(op, scratch, &tensor(input), output, &weights, Some(&requantize))
            }
            Op::Logits { input, weights } => {
                check_shape(output, [1, 1, u32::from(output.channels)])?;
                self.check_weights(op, scratch, &tensor(input), output, &weights, None)
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
                check_add(mul_a, mul_b, shift, min, max)?;
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
                    return Err(LayerError::Multiplier { found: multiplier });
                }
                check_shift(shift)?;
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
        scratch: Scratch,
        input: &Tensor,
        output: &Tensor,
        weights: &Weights,
        requantize: Option<&Requantize>,
    ) -> Result<u64, LayerError> {
        let Some(packing) = op.packing(input, output) else {
            return Ok(0);
        };
        let Packing { rows, k, .. } = packing;
        // The bound on the accumulator bounds k, too: from here on, block_bytes() fits 32 bits.
        let largest_sum = k as u64 * 128 * weights.width.max_magnitude() as u64;
        if largest_sum > i32::MAX as u64 {
            return Err(LayerError::Accumulator {
                channel: 0,
                bound: largest_sum,
            });
        }
        if k as u64 > u64::from(scratch.bytes) {
            return Err(LayerError::Scratch {
                needed: k,
                scratch_bytes: scratch.bytes,
            });
        }

        let bytes = packing.blocks() as u64 * packing.block_bytes() as u64;
        let (packed, mut used) = self.check_region(Region::Weights, weights.offset, bytes)?;
        check_codes_valid(packed, &packing)?;
        check_padding(packed, &packing)?;

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
        let (_, end) = self.check_region(Region::Multiplier, requantize.multiplier, rows as u64 * 4)?;
        used = used.max(end);
        check_shift(requantize.shift)?;
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

fn check_shift(found: u8) -> Result<(), LayerError> {
    if !(1..=62).contains(&found) {
        return Err(LayerError::Shift { found });
    }
    Ok(())
}

fn check_add(mul_a: i16, mul_b: i16, shift: u8, min: i8, max: i8) -> Result<(), LayerError> {
    for found in [mul_a, mul_b] {
        if found < 0 {
            return Err(LayerError::AddMultiplier { found });
        }
    }
    if !(1..=30).contains(&shift) {
        return Err(LayerError::AddShift { found: shift });
    }
    check_clamp(min, max)
}

fn check_residual(residual: &Residual, input: &Tensor, output: &Tensor) -> Result<(), LayerError> {
    let (a, b) = (shape(output), shape(input));
    if a != b {
        return Err(LayerError::InputShapes { a, b });
    }
    check_add(
        residual.mul_conv,
        residual.mul_residual,
        residual.shift,
        residual.min,
        residual.max,
    )
}

/// Whether every bit pattern is one of the width's values. Patterns of the padding are looked at, too: zero bits are valid.
fn check_codes_valid(packed: &[u8], packing: &Packing) -> Result<(), LayerError> {
    let words = || packed.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    let invalid = match (packing.width, packing.order) {
        (Width::W1 | Width::W4, _) => false,
        // 0b10 in two's complement: the high bit of a pair without the low one.
        (Width::W2, Order::Channels) => words().any(|word| word >> 1 & !word & 0x5555_5555 != 0),
        // Rows that hold code + 1 have no 0b11; the other half of the pairs is in two's complement.
        (Width::W2, Order::Blocks) => {
            words().any(|word| (word >> 1 & word & 0x1111_1111) | (word >> 1 & !word & 0x4444_4444) != 0)
        }
        (Width::W8, _) => packed.contains(&0x80),
    };
    if !invalid {
        return Ok(());
    }
    for row in 0..packing.rows {
        for i in 0..packing.k {
            let code = packing.decode(packed, row, i);
            if code < packing.width.min_code() || code > packing.width.max_code() {
                return Err(LayerError::Code {
                    row: row as u16,
                    column: i as u32,
                    width: packing.width,
                });
            }
        }
    }
    // An invalid code in the padding is wrong as padding.
    Ok(())
}

/// Whether all bits that no code takes are zero.
fn check_padding(packed: &[u8], packing: &Packing) -> Result<(), LayerError> {
    for row in 0..packing.blocks() * packing.block_rows() {
        let codes = if row < packing.rows { packing.k } else { 0 };
        if (codes..packing.padded_k()).any(|i| packing.bits(packed, row, i) != 0) {
            return Err(LayerError::RowPadding { row: row as u32 });
        }
    }
    // Depthwise blocks are whole words, whatever their codes take.
    if packing.order == Order::Channels {
        let bits = packing.block_rows() * packing.k * packing.width.bits() as usize;
        for (block, bytes) in packed.chunks_exact(packing.block_bytes()).enumerate() {
            let mut rest = bytes[bits / 8..].iter();
            let part = rest.next().is_some_and(|&byte| byte >> (bits % 8) != 0);
            if part || rest.any(|&byte| byte != 0) {
                return Err(LayerError::RowPadding {
                    row: (block * packing.block_rows()) as u32,
                });
            }
        }
    }
    Ok(())
}

/// Tensors in use at the same time share no byte, and none shares one with the scratch range of a layer.
///
/// Tensor `t` is in use from layer `t - 1`, which writes it, to the last layer that reads it; the input from the start.
#[inline(never)]
fn check_arena(parts: &Parts) -> Result<(), ParseError> {
    let tensors = &parts.tensors;
    let mut last_reader = [None; MAX_TENSORS];
    for (i, layer) in parts.layers.clone().enumerate() {
        for input in layer.op.inputs() {
            last_reader[usize::from(input)] = Some(i as u8);
        }
    }
    if let Some(i) = last_reader[..tensors.len() - 1].iter().position(Option::is_none) {
        return Err(ParseError::Tensor {
            tensor: i as u8,
            cause: TensorError::Unused,
        });
    }
    for (i, layer) in parts.layers.clone().enumerate() {
        let written = range(&tensors.get(i + 1));
        let now = Some(i as u8);
        for (t, tensor) in tensors.iter().take(i + 2).enumerate() {
            let range = range(&tensor);
            if t <= i && last_reader[t] < now {
                continue;
            }
            if layer.scratch.bytes != 0 && overlap(range, scratch_range(layer.scratch)) {
                return Err(ParseError::Layer {
                    layer: i as u8,
                    cause: LayerError::ScratchOverlap { tensor: t as u8 },
                });
            }
            let in_place = layer.op.may_overwrite(t as u8) && last_reader[t] == now && range == written;
            if t <= i && !in_place && overlap(range, written) {
                return Err(ParseError::Tensor {
                    tensor: i as u8 + 1,
                    cause: TensorError::Overlap { other: t as u8 },
                });
            }
        }
    }
    Ok(())
}

fn scratch_range(scratch: Scratch) -> (u64, u64) {
    let start = u64::from(scratch.offset);
    (start, start + u64::from(scratch.bytes))
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
