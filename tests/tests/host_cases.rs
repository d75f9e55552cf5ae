//! The runtime on the host against the oracle: every case, every image, every layer, every byte.

use adcorda_formats::Model;
use adcorda_runtime::{ArenaTooSmall, Session};
use adcorda_tests::{cases, host, oracle};

#[test]
fn every_layer_agrees_with_the_oracle() {
    for case in cases::all() {
        let model = Model::parse(&case.model).expect("a valid model");
        for (image, pixels) in case.images.iter().enumerate() {
            let expected = oracle::run(&model, pixels);
            let found = host::run(&model, pixels, 0);
            assert_eq!(found.len(), expected.len(), "{}", case.name);
            for (tensor, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let layer = tensor.checked_sub(1).and_then(|i| model.layer(i));
                let layer = layer.map_or("input", |layer| layer.name);
                assert_eq!(found, expected, "{}: image {image}, tensor {tensor} ({layer})", case.name);
            }
        }
    }
}

#[test]
fn alignment_of_file_and_arena_changes_nothing() {
    for case in cases::all() {
        let expected = host::run(&Model::parse(&case.model).expect("a valid model"), &case.images[0], 0);
        for by in 1..4 {
            let file = [&vec![0; by], case.model.as_slice()].concat();
            let model = Model::parse(&file[by..]).expect("a valid model");
            let found = host::run(&model, &case.images[0], by);
            assert_eq!(found, expected, "{}, shifted by {by}", case.name);
        }
    }
}

#[test]
fn an_arena_one_byte_too_small_is_an_error() {
    for case in cases::all() {
        let model = Model::parse(&case.model).expect("a valid model");
        let need = model.arena_bytes();
        let error = Session::new(&model, &mut vec![host::FILL; need - 1]).expect_err("too small");
        assert_eq!(error, ArenaTooSmall { need, have: need - 1 }, "{}", case.name);
    }
}
