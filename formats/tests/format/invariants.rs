//! What a parsed model promises, verified in another way than `parse` does: by playing through the arena byte by byte, and
//! by decoding every weight.

use std::collections::HashMap;

use adcorda_formats::{Element, Model, Op, Tensor, Window};

/// Panics where the model breaks a promise.
pub fn assert_invariants(model: &Model) {
    let tensors = model.tensors();
    let layers: Vec<_> = model.layers().collect();
    assert_eq!((layers.len() + 1, model.labels().count()), (tensors.len(), model.classes()));
    assert_eq!(model.input_table().len(), usize::from(model.input().channels) * 256);
    assert!(model.scratch().end <= model.arena_bytes());

    let mut arena = HashMap::new();
    write(&mut arena, model, 0, tensors);
    let mut scratch_needed = 0;
    for (i, layer) in layers.iter().enumerate() {
        let output = &tensors[i + 1];
        let inputs: Vec<&Tensor> = layer.op.inputs().map(|input| &tensors[usize::from(input)]).collect();
        for input in layer.op.inputs() {
            assert!(bytes(&tensors[usize::from(input)]).all(|byte| arena.get(&byte) == Some(&usize::from(input))));
        }
        for input in &inputs {
            let shared = bytes(input).filter(|byte| bytes(output).contains(byte)).count();
            let in_place = matches!(layer.op, Op::Add { .. }) && bytes(input) == bytes(output);
            assert!(shared == 0 || in_place, "layer {i} overwrites what it reads");
        }
        if let Some((rows, k)) = layer.op.rows_and_k(inputs[0], output) {
            scratch_needed = scratch_needed.max(k);
            assert_weights(model, &layer.op, rows, k);
        }
        if let Some(window) = layer.op.window() {
            assert_window(window, inputs[0], output);
        }
        write(&mut arena, model, i + 1, tensors);
    }
    assert!(model.scratch().len() >= scratch_needed);
    assert_eq!(model.output().element, Element::I32);
}

fn bytes(tensor: &Tensor) -> std::ops::Range<usize> {
    tensor.offset as usize..tensor.offset as usize + tensor.bytes()
}

fn write(arena: &mut HashMap<usize, usize>, model: &Model, id: usize, tensors: &[Tensor]) {
    for byte in bytes(&tensors[id]) {
        assert!(byte < model.arena_bytes() && !model.scratch().contains(&byte));
        arena.insert(byte, id);
    }
}

fn assert_weights(model: &Model, op: &Op, rows: usize, k: usize) {
    let weights = op.weights().unwrap();
    let packed = model.rows(weights, rows, k);
    let bias = model.bias(weights, rows);
    for (row, packed) in packed.chunks_exact(weights.width.row_bytes(k)).enumerate() {
        let codes: Vec<i8> = (0..k).map(|i| weights.width.decode(packed, i)).collect();
        assert!(codes.iter().all(|&code| weights.width.encode(code).is_some()));
        // Any prefix of the sum, in any order, with the bias first or last.
        let positive: i64 = codes
            .iter()
            .map(|&code| (i64::from(code) * -128).max(i64::from(code) * 127))
            .sum();
        let negative: i64 = codes
            .iter()
            .map(|&code| (i64::from(code) * -128).min(i64::from(code) * 127))
            .sum();
        let bias = i64::from(bias.get(row));
        for reached in [positive, negative, positive + bias, negative + bias] {
            assert!(i32::try_from(reached).is_ok());
        }
    }
    if let Some(requantize) = op.requantize() {
        assert!(requantize.min <= requantize.max);
        for (multiplier, &shift) in model.multiplier(requantize, rows).iter().zip(model.shift(requantize, rows)) {
            for acc in [i64::from(i32::MIN), i64::from(i32::MAX)] {
                let product = acc.checked_mul(multiplier.into()).unwrap();
                product.checked_add(1 << shift.checked_sub(1).unwrap()).unwrap();
            }
        }
    }
}

/// Every window lies in the padded input, and has at least one position in the input itself.
fn assert_window(window: &Window, input: &Tensor, output: &Tensor) {
    let axis = |output: u16, stride: u8, kernel: u8, before: u8, after: u8, size: u16| {
        for o in 0..i64::from(output) {
            let start = o * i64::from(stride) - i64::from(before);
            let end = start + i64::from(kernel);
            assert!(end <= i64::from(size) + i64::from(after) && start < i64::from(size) && end > 0);
        }
    };
    axis(
        output.height,
        window.stride_height,
        window.kernel_height,
        window.pad_top,
        window.pad_bottom,
        input.height,
    );
    axis(
        output.width,
        window.stride_width,
        window.kernel_width,
        window.pad_left,
        window.pad_right,
        input.width,
    );
}
