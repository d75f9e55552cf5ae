//! What a parsed model promises, verified in another way than `parse` does: by playing through the arena byte by byte, and
//! by decoding every weight.

use std::collections::HashMap;

use adcorda_formats::{Element, Model, Op, Packing, Tensor, Window};

/// Panics where the model breaks a promise.
pub fn assert_invariants(model: &Model) {
    let tensors = model.tensors();
    let layers: Vec<_> = model.layers().collect();
    assert_eq!((layers.len() + 1, model.labels().count()), (tensors.len(), model.classes()));
    assert_eq!(model.input_table().len(), usize::from(model.input().channels) * 256);

    // Which tensor each byte holds.
    let mut arena = HashMap::new();
    write(&mut arena, model, 0, tensors);
    for (i, layer) in layers.iter().enumerate() {
        let output = &tensors[i + 1];
        let inputs: Vec<&Tensor> = layer.op.inputs().map(|input| &tensors[usize::from(input)]).collect();
        for input in layer.op.inputs() {
            assert!(bytes(&tensors[usize::from(input)]).all(|byte| arena.get(&byte) == Some(&usize::from(input))));
        }
        let scratch = layer.scratch.offset as usize..(layer.scratch.offset + layer.scratch.bytes) as usize;
        assert!(scratch.end <= model.arena_bytes());
        let scratch = || scratch.clone();
        let (x, others) = inputs.split_first().unwrap();
        for input in &inputs {
            let shared = bytes(input).filter(|byte| bytes(output).contains(byte)).count();
            let adds = matches!(layer.op, Op::Add { .. })
                || matches!(layer.op, Op::Conv2d { residual: Some(_), .. } if bytes(input) != bytes(x));
            let in_place = adds && bytes(input) == bytes(output);
            assert!(shared == 0 || in_place, "layer {i} overwrites what it reads");
        }
        if let Op::Conv2d {
            residual: Some(residual),
            ..
        } = layer.op
        {
            let shape = |tensor: &Tensor| (tensor.height, tensor.width, tensor.channels);
            assert_eq!(shape(others[0]), shape(output));
            assert!(residual.mul_conv >= 0 && residual.mul_residual >= 0 && residual.min <= residual.max);
            assert!((1..=30).contains(&residual.shift));
        }
        if let Some(packing) = layer.op.packing(x, output) {
            assert!(scratch().len() >= packing.k);
            assert_weights(model, &layer.op, &packing);
        }
        if let Some(window) = layer.op.window() {
            assert_window(window, inputs[0], output);
        }
        assert!(!scratch().any(|byte| bytes(output).contains(&byte)));
        for byte in scratch() {
            arena.remove(&byte);
        }
        write(&mut arena, model, i + 1, tensors);
    }
    assert!(bytes(model.output()).all(|byte| arena.get(&byte) == Some(&layers.len())));
    assert_eq!(model.output().element, Element::I32);
}

fn bytes(tensor: &Tensor) -> std::ops::Range<usize> {
    tensor.offset as usize..tensor.offset as usize + tensor.bytes()
}

fn write(arena: &mut HashMap<usize, usize>, model: &Model, id: usize, tensors: &[Tensor]) {
    for byte in bytes(&tensors[id]) {
        assert!(byte < model.arena_bytes());
        arena.insert(byte, id);
    }
}

fn assert_weights(model: &Model, op: &Op, packing: &Packing) {
    let (weights, rows) = (op.weights().unwrap(), packing.rows);
    let packed = model.packed(weights);
    let mut rest = packed[..packing.bytes()].to_vec();
    let bias = model.bias(weights, rows);
    for row in 0..rows {
        let codes: Vec<i8> = (0..packing.k).map(|i| packing.decode(packed, row, i)).collect();
        for (i, &code) in codes.iter().enumerate() {
            let (byte, bit) = packing.position(row, i);
            rest[byte] ^= packing.encode(row, code).unwrap() << bit;
        }
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
    assert!(rest.iter().all(|&byte| byte == 0), "bits that no code takes");
    if let Some(requantize) = op.requantize() {
        assert!(requantize.min <= requantize.max);
        let half = 1i64 << requantize.shift.checked_sub(1).unwrap();
        for multiplier in model.multiplier(requantize, rows).iter() {
            for acc in [-i64::from(i32::MAX), i64::from(i32::MAX)] {
                let rounded = acc.checked_mul(multiplier.into()).unwrap().checked_add(half).unwrap();
                (rounded >> requantize.shift).checked_add(-128).unwrap();
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
