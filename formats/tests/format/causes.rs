//! Every reason to refuse a file, one test each.

use adcorda_formats::{
    Element, Graph, HEADER_BYTES, LayerError, MAX_CLASSES, MAX_LAYERS, MAX_TENSORS, MAX_TEXT_BYTES, Model, Op, Packing,
    ParseError, Part, Provenance, Region, Residual, Scale, Tensor, TensorError, Width,
};

use crate::tiny::{fix_crc, tiny};

/// The error of the tiny model after an edit.
fn edited(edit: impl FnOnce(&mut Graph, &mut Vec<u8>)) -> ParseError {
    let (mut graph, mut weights) = tiny();
    edit(&mut graph, &mut weights);
    graph.to_model_bytes(&weights).unwrap_err()
}

/// The error of the tiny model's file after an edit, with the checksum mended.
fn patched(edit: impl FnOnce(&mut Vec<u8>)) -> ParseError {
    let (graph, weights) = tiny();
    let mut file = graph.to_bytes(&weights);
    edit(&mut file);
    fix_crc(&mut file);
    Model::parse(&file).unwrap_err()
}

fn layer(layer: u8, cause: LayerError) -> ParseError {
    ParseError::Layer { layer, cause }
}

fn tensor(tensor: u8, cause: TensorError) -> ParseError {
    ParseError::Tensor { tensor, cause }
}

/// How the weights of one layer are packed, and their first byte.
fn packing(graph: &Graph, layer: usize) -> (Packing, usize) {
    let op = &graph.layers[layer].op;
    let input = &graph.tensors[usize::from(op.inputs().next().unwrap())];
    let packing = op.packing(input, &graph.tensors[layer + 1]).unwrap();
    (packing, op.weights().unwrap().offset as usize)
}

/// Replaces the bits at the place of a code, one of the padding perhaps.
fn put(weights: &mut [u8], (packing, start): (Packing, usize), row: usize, i: usize, bits: u8) {
    let (byte, bit) = packing.position(row, i);
    let byte = &mut weights[start + byte];
    *byte = *byte & !((u8::MAX >> (8 - packing.width.bits())) << bit) | bits << bit;
}

/// Binds fields of one layer's operation, to change them.
macro_rules! fields {
    ($graph:ident, $layer:literal, $op:ident { $($field:ident),+ }) => {
        let Op::$op { $($field,)+ .. } = &mut $graph.layers[$layer].op else { panic!("layer {} is another", $layer) };
    };
}

mod header {
    use super::*;

    #[test]
    fn another_file() {
        assert_eq!(Model::parse(b"PK\x03\x04 a zip archive").unwrap_err(), ParseError::NotAModel);
        assert_eq!(patched(|file| file[4] = b'\n'), ParseError::NotAModel);
    }

    #[test]
    fn an_empty_file() {
        let error = Model::parse(&[]).unwrap_err();
        assert_eq!(error, ParseError::Truncated { found: 0, needed: 32 });
        assert_eq!(error.to_string(), "the file ends after 0 of 32 bytes: copy it again");
    }

    #[test]
    fn a_newer_version_whatever_else_it_changed() {
        let error = patched(|file| {
            file[8] = 3;
            file[10] = 64;
        });
        assert_eq!(error, ParseError::NewerVersion { found: 3 });
        assert_eq!(
            error.to_string(),
            "version 3 is newer than 2, the newest known here: update the reader, or export again"
        );
    }

    #[test]
    fn the_draft_version() {
        let error = patched(|file| file[8] = 1);
        assert_eq!(error, ParseError::DraftVersion { found: 1 });
        assert_eq!(
            error.to_string(),
            "version 1 is a draft of version 2: export the checkpoint again"
        );
    }

    #[test]
    fn version_zero() {
        assert_eq!(patched(|file| file[8] = 0), ParseError::VersionZero);
    }

    #[test]
    fn another_header_length() {
        assert_eq!(patched(|file| file[10] = 33), ParseError::HeaderBytes { found: 33 });
    }

    #[test]
    fn a_weights_section_elsewhere() {
        let error = patched(|file| file[16] = file[16].wrapping_add(16));
        assert!(matches!(error, ParseError::WeightsOffset { .. }), "{error}");
    }

    #[test]
    fn lengths_at_the_end_of_their_range() {
        let error = patched(|file| file[12..28].fill(0xff));
        assert_eq!(
            error,
            ParseError::WeightsOffset {
                found: u32::MAX,
                graph_bytes: u32::MAX
            }
        );
        let error = patched(|file| file[20..24].fill(0xff));
        assert!(
            matches!(
                error,
                ParseError::FileBytes {
                    weights_bytes: u32::MAX,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn lengths_that_contradict_each_other() {
        let error = patched(|file| file[24] ^= 1);
        assert!(matches!(error, ParseError::FileBytes { .. }), "{error}");
    }

    #[test]
    fn bytes_after_the_end() {
        let error = patched(|file| file.push(0));
        assert!(
            matches!(error, ParseError::TrailingBytes { found, file_bytes } if found as u32 == file_bytes + 1),
            "{error}"
        );
    }

    #[test]
    fn a_checksum_that_does_not_fit() {
        let (graph, weights) = tiny();
        let mut file = graph.to_bytes(&weights);
        *file.last_mut().unwrap() ^= 1;
        let error = Model::parse(&file).unwrap_err();
        assert!(
            matches!(error, ParseError::Checksum { stored, computed } if stored != computed),
            "{error}"
        );
    }

    #[test]
    fn padding_that_is_not_zero() {
        let error = patched(|file| {
            let weights_offset = usize::from(u16::from_le_bytes([file[16], file[17]]));
            file[weights_offset - 1] = 1;
        });
        assert_eq!(error, ParseError::Padding);
    }
}

mod graph {
    use super::*;

    #[test]
    fn an_unknown_operation() {
        let error = patched(|file| {
            let name = file.windows(7).position(|bytes| bytes == b"maxpool").unwrap();
            file[name + 7] = 8;
        });
        assert_eq!(error, ParseError::Graph { part: Part::Layer(4) });
        assert_eq!(error.to_string(), "layer 4: cannot be decoded");
    }

    #[test]
    fn a_residual_neither_absent_nor_there() {
        let error = patched(|file| {
            // The last field of the first layer's operation; its scratch and the second layer's name follow.
            let name = file.windows(8).position(|bytes| bytes == b"layer1.0").unwrap();
            assert_eq!(file[name - 5..name], [0, 128, 1, 27, 18]);
            file[name - 5] = 2;
        });
        assert_eq!(error, ParseError::Graph { part: Part::Layer(0) });
    }

    #[test]
    fn text_that_is_not_utf_8() {
        assert_eq!(
            patched(|file| file[HEADER_BYTES + 1] = 0xff),
            ParseError::Graph { part: Part::Head }
        );
    }

    #[test]
    fn bytes_after_the_last_label() {
        let error = patched(|file| {
            // One of the padding bytes becomes part of the graph.
            file[12] += 1;
        });
        assert_eq!(error, ParseError::GraphTrailingBytes { found: 1 });
    }

    #[test]
    fn too_many_tensors() {
        let error = edited(|graph, _| graph.tensors.resize(MAX_TENSORS + 1, graph.tensors[0]));
        assert_eq!(
            error,
            ParseError::TooMany {
                part: Part::Tensors,
                found: 129,
                limit: 128
            }
        );
        assert_eq!(error.to_string(), "number of tensors: 129, the limit is 128");
    }

    #[test]
    fn too_many_layers() {
        let error = edited(|graph, _| graph.layers.resize(MAX_LAYERS + 1, graph.layers[0]));
        assert_eq!(
            error,
            ParseError::TooMany {
                part: Part::Layers,
                found: 128,
                limit: 127
            }
        );
    }

    #[test]
    fn too_many_labels() {
        let error = edited(|graph, _| graph.labels.resize(MAX_CLASSES + 1, ""));
        assert_eq!(
            error,
            ParseError::TooMany {
                part: Part::Labels,
                found: 1025,
                limit: 1024
            }
        );
    }

    #[test]
    fn long_text() {
        let longest = "n".repeat(MAX_TEXT_BYTES);
        let long = "n".repeat(MAX_TEXT_BYTES + 1);
        let (mut graph, weights) = tiny();
        graph.name = &longest;
        graph.layers[0].name = &longest;
        graph.labels[0] = &longest;
        graph.provenance = Provenance {
            data: &longest,
            method: &longest,
            ..graph.provenance
        };
        graph.to_model_bytes(&weights).unwrap();

        let refused = |part, change: fn(&mut Graph<'_>, &'static str)| {
            let (mut graph, weights) = tiny();
            change(&mut graph, long.clone().leak());
            assert_eq!(
                graph.to_model_bytes(&weights).unwrap_err(),
                ParseError::TextTooLong { part, found: 129 }
            );
        };
        refused(Part::Head, |graph, long| graph.name = long);
        refused(Part::Head, |graph, long| graph.provenance.data = long);
        refused(Part::Head, |graph, long| graph.provenance.method = long);
        refused(Part::Layer(2), |graph, long| graph.layers[2].name = long);
        refused(Part::Label(2), |graph, long| graph.labels[2] = long);
    }

    #[test]
    fn control_characters() {
        for text in ["\n", "a\u{1b}[31m", "\u{85}"] {
            let error = edited(|graph, _| graph.layers[1].name = text);
            assert_eq!(error, ParseError::ControlCharacter { part: Part::Layer(1) });
        }
    }

    #[test]
    fn an_accuracy_above_all() {
        assert_eq!(
            edited(|graph, _| graph.provenance.top1 = 10_001),
            ParseError::Top1 { found: 10_001 }
        );
    }

    #[test]
    fn no_layers() {
        assert_eq!(edited(|graph, _| graph.layers.clear()), ParseError::NoLayers);
    }

    #[test]
    fn a_tensor_too_few() {
        let error = edited(|graph, _| graph.tensors.truncate(9));
        assert_eq!(error, ParseError::TensorCount { tensors: 9, layers: 9 });
        assert_eq!(error.to_string(), "9 layers need 10 tensors, the graph has 9");
    }

    #[test]
    fn a_label_too_few() {
        let error = edited(|graph, _| graph.labels.truncate(2));
        assert_eq!(error, ParseError::LabelCount { labels: 2, classes: 3 });
    }

    #[test]
    fn an_input_table_past_the_end() {
        let error = edited(|graph, weights| graph.input_table = weights.len() as u32 - 767);
        let section = tiny().1.len();
        assert_eq!(
            error,
            ParseError::InputTable {
                end: section as u64 + 1,
                section
            }
        );
    }

    #[test]
    fn weights_that_nothing_uses() {
        let used = tiny().1.len();
        let error = edited(|_, weights| weights.push(0));
        assert_eq!(
            error,
            ParseError::UnusedWeights {
                used: used as u64,
                section: used + 1
            }
        );
    }
}

mod tensors {
    use super::*;

    #[test]
    fn an_empty_one() {
        assert_eq!(
            edited(|graph, _| graph.tensors[3].channels = 0),
            tensor(3, TensorError::Empty)
        );
    }

    #[test]
    fn i32_before_the_last() {
        assert_eq!(
            edited(|graph, _| graph.tensors[2].element = Element::I32),
            tensor(2, TensorError::Element)
        );
    }

    #[test]
    fn a_last_one_of_i8() {
        assert_eq!(
            edited(|graph, _| graph.tensors[9].element = Element::I8),
            tensor(9, TensorError::Element)
        );
    }

    #[test]
    fn logits_with_a_zero_point() {
        let error = edited(|graph, _| graph.tensors[9].zero_point = 1);
        assert_eq!(error, tensor(9, TensorError::ZeroPoint { found: 1 }));
    }

    #[test]
    fn scales_that_are_no_scales() {
        for scale in [0.0, -0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
            let error = edited(|graph, _| graph.tensors[1].scale = Scale::from_f32(scale));
            assert_eq!(error, tensor(1, TensorError::Scale { bits: scale.to_bits() }));
        }
        for scale in [f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX] {
            let (mut graph, weights) = tiny();
            graph.tensors[1].scale = Scale::from_f32(scale);
            graph.to_model_bytes(&weights).unwrap();
        }
    }

    #[test]
    fn logits_out_of_alignment() {
        let error = edited(|graph, _| graph.tensors[9].offset = 30);
        assert_eq!(error, tensor(9, TensorError::Alignment { offset: 30 }));
    }

    #[test]
    fn past_the_arena() {
        let error = edited(|graph, _| graph.tensors[1].offset = 92);
        assert_eq!(
            error,
            tensor(
                1,
                TensorError::Range {
                    end: 156,
                    arena_bytes: 155
                }
            )
        );
        assert_eq!(error.to_string(), "tensor 1: ends at byte 156 of an arena of 155 bytes");
    }

    #[test]
    fn larger_than_an_address_space() {
        let error = edited(|graph, _| {
            let tensor = &mut graph.tensors[1];
            (tensor.height, tensor.width, tensor.channels, tensor.offset) = (u16::MAX, u16::MAX, u16::MAX, u32::MAX);
        });
        let end = u64::from(u16::MAX).pow(3) + u64::from(u32::MAX);
        assert_eq!(error, tensor(1, TensorError::Range { end, arena_bytes: 155 }));
    }

    #[test]
    fn unused() {
        let error = edited(|graph, _| {
            fields!(graph, 3, Add { a, b });
            *b = *a;
        });
        assert_eq!(error, tensor(3, TensorError::Unused));
    }

    #[test]
    fn an_output_over_an_input() {
        let error = edited(|graph, _| graph.tensors[1].offset = 47);
        assert_eq!(error, tensor(1, TensorError::Overlap { other: 0 }));
        assert_eq!(
            error.to_string(),
            "tensor 1: shares bytes with tensor 0, which is in use at the same time"
        );
    }

    #[test]
    fn an_output_over_what_a_later_layer_reads() {
        // Tensor 0 is read by layer 2 again.
        let error = edited(|graph, _| graph.tensors[2].offset = 32);
        assert_eq!(error, tensor(2, TensorError::Overlap { other: 0 }));
    }

    #[test]
    fn an_addition_over_its_second_input_may_be() {
        let (mut graph, weights) = tiny();
        graph.tensors[4].offset = graph.tensors[3].offset;
        graph.to_model_bytes(&weights).unwrap();
    }

    #[test]
    fn an_addition_partly_over_an_input() {
        let error = edited(|graph, _| graph.tensors[4].offset = 111);
        assert_eq!(error, tensor(4, TensorError::Overlap { other: 2 }));
        let error = edited(|graph, _| graph.tensors[4].offset = 49);
        assert_eq!(error, tensor(4, TensorError::Overlap { other: 3 }));
    }

    #[test]
    fn an_addition_over_an_input_that_is_read_again() {
        let error = edited(|graph, _| {
            // Instead of the pooling: a second addition, which reads tensor 2 once more.
            graph.layers[4].op = graph.layers[3].op;
            fields!(graph, 4, Add { a, b });
            (*a, *b) = (4, 2);
        });
        assert_eq!(error, tensor(4, TensorError::Overlap { other: 2 }));
    }

    #[test]
    fn another_operation_in_place() {
        let error = edited(|graph, _| graph.tensors[5].offset = graph.tensors[4].offset);
        assert_eq!(error, tensor(5, TensorError::Overlap { other: 4 }));
    }

    #[test]
    fn a_residual_over_the_convolutions_own_input() {
        let error = edited(|graph, _| {
            fields!(graph, 5, Conv2d { residual });
            residual.as_mut().unwrap().input = 5;
            graph.tensors[6].offset = graph.tensors[5].offset;
        });
        assert_eq!(error, tensor(6, TensorError::Overlap { other: 5 }));
    }

    #[test]
    fn a_residual_apart_may_be_the_convolutions_own_input() {
        let (mut graph, weights) = tiny();
        fields!(graph, 5, Conv2d { residual });
        residual.as_mut().unwrap().input = 5;
        graph.to_model_bytes(&weights).unwrap();
    }

    #[test]
    fn a_residual_elsewhere_may_be() {
        let (mut graph, weights) = tiny();
        graph.tensors[6].offset = 128;
        graph.to_model_bytes(&weights).unwrap();
    }

    #[test]
    fn a_sum_partly_over_its_residual() {
        let error = edited(|graph, _| graph.tensors[6].offset = 113);
        assert_eq!(error, tensor(6, TensorError::Overlap { other: 4 }));
    }

    #[test]
    fn a_sum_over_a_residual_that_is_read_again() {
        let error = edited(|graph, _| {
            // Between the sum and the pooling: an addition of the sum and the residual.
            let mut again = graph.layers[3];
            let Op::Add { a, b, .. } = &mut again.op else {
                panic!("layer 3 is another")
            };
            (*a, *b) = (4, 6);
            graph.layers.insert(6, again);
            graph.tensors.insert(
                7,
                Tensor {
                    offset: 128,
                    ..graph.tensors[4]
                },
            );
            fields!(graph, 7, AvgPool { input });
            *input = 7;
            fields!(graph, 8, Linear { input });
            *input = 8;
            fields!(graph, 9, Logits { input });
            *input = 9;
        });
        assert_eq!(error, tensor(6, TensorError::Overlap { other: 4 }));
    }

    #[test]
    fn a_convolution_in_place_without_a_residual() {
        let error = edited(|graph, _| {
            fields!(graph, 5, Conv2d { residual });
            *residual = None;
            graph.tensors[6].offset = graph.tensors[5].offset;
        });
        assert_eq!(error, tensor(6, TensorError::Overlap { other: 5 }));
    }
}

mod scratch {
    use super::*;

    fn with_scratch(number: usize, offset: u32, bytes: u32) -> Option<ParseError> {
        let (mut graph, weights) = tiny();
        let scratch = &mut graph.layers[number].scratch;
        (scratch.offset, scratch.bytes) = (offset, bytes);
        graph.to_model_bytes(&weights).err()
    }

    #[test]
    fn too_little() {
        // One row: 27, 9, 4, 4 and 5 codes.
        for (number, needed) in [(0, 27), (1, 9), (5, 4), (7, 4), (8, 5)] {
            let offset = tiny().0.layers[number].scratch.offset;
            assert_eq!(with_scratch(number, offset, needed), None);
            for scratch_bytes in [0, needed - 1] {
                let error = with_scratch(number, offset, scratch_bytes).unwrap();
                assert_eq!(
                    error,
                    layer(
                        number as u8,
                        LayerError::Scratch {
                            needed: needed as usize,
                            scratch_bytes
                        }
                    )
                );
            }
        }
        assert_eq!(
            with_scratch(0, 128, 26).unwrap().to_string(),
            "layer 0: one row needs 27 bytes of scratch, the layer has 26"
        );
    }

    #[test]
    fn past_the_arena() {
        let error = with_scratch(0, 129, 27).unwrap();
        assert_eq!(
            error,
            layer(
                0,
                LayerError::ScratchRange {
                    end: 156,
                    arena_bytes: 155
                }
            )
        );
        assert_eq!(
            error.to_string(),
            "layer 0: the scratch range ends at byte 156 of an arena of 155 bytes"
        );
        let end = 2 * u64::from(u32::MAX);
        let error = with_scratch(4, u32::MAX, u32::MAX).unwrap();
        assert_eq!(error, layer(4, LayerError::ScratchRange { end, arena_bytes: 155 }));
    }

    #[test]
    fn over_a_tensor_in_use() {
        // The depthwise convolution reads tensor 1 and writes tensor 2; tensor 0 is read again after it.
        for (offset, other) in [(47, 0), (0, 0), (48, 1), (103, 1), (112, 2), (127, 2)] {
            let error = with_scratch(1, offset, 9).unwrap();
            assert_eq!(error, layer(1, LayerError::ScratchOverlap { tensor: other }), "{offset}");
        }
        assert_eq!(
            with_scratch(1, 127, 9).unwrap().to_string(),
            "layer 1: the scratch range shares bytes with tensor 2, which is in use"
        );
        // The residual's bytes are the output's.
        let error = with_scratch(5, 112, 4).unwrap();
        assert_eq!(error, layer(5, LayerError::ScratchOverlap { tensor: 4 }));
        // The logits, which the caller reads.
        let error = with_scratch(8, 24, 5).unwrap();
        assert_eq!(error, layer(8, LayerError::ScratchOverlap { tensor: 8 }));
        let error = with_scratch(8, 25, 5).unwrap();
        assert_eq!(error, layer(8, LayerError::ScratchOverlap { tensor: 9 }));
    }

    #[test]
    fn of_a_layer_without_weights_is_checked_like_any() {
        let error = with_scratch(2, 40, 10).unwrap();
        assert_eq!(error, layer(2, LayerError::ScratchOverlap { tensor: 0 }));
        assert_eq!(with_scratch(2, 64, 48), None);
    }

    #[test]
    fn over_tensors_that_are_not_in_use_any_more() {
        // Tensors 1 and 3.
        assert_eq!(with_scratch(5, 16, 96), None);
        assert_eq!(
            with_scratch(5, 15, 96),
            Some(layer(5, LayerError::ScratchOverlap { tensor: 5 }))
        );
    }

    #[test]
    fn of_no_bytes_is_nowhere() {
        for offset in [0, 5, 155] {
            assert_eq!(with_scratch(4, offset, 0), None);
        }
        let error = with_scratch(4, 156, 0);
        assert_eq!(
            error,
            Some(layer(
                4,
                LayerError::ScratchRange {
                    end: 156,
                    arena_bytes: 155
                }
            ))
        );
    }
}

mod layers {
    use super::*;

    #[test]
    fn reading_a_later_tensor() {
        for later in [3, 8, 9, 255] {
            let error = edited(|graph, _| {
                fields!(graph, 2, Subsample { input });
                *input = later;
            });
            assert_eq!(error, layer(2, LayerError::Input { input: later }));
        }
        let error = edited(|graph, _| {
            fields!(graph, 3, Add { b });
            *b = 4;
        });
        assert_eq!(error, layer(3, LayerError::Input { input: 4 }));
    }

    #[test]
    fn logits_before_the_last() {
        let error = edited(|graph, _| graph.layers[7].op = graph.layers[8].op);
        assert_eq!(error, layer(7, LayerError::Input { input: 8 }));
        let error = edited(|graph, _| {
            graph.layers[7].op = graph.layers[8].op;
            fields!(graph, 7, Logits { input });
            *input = 7;
        });
        assert_eq!(error, layer(7, LayerError::LogitsNotLast));
    }

    #[test]
    fn another_last_layer() {
        let error = edited(|graph, _| graph.layers[8].op = graph.layers[7].op);
        assert_eq!(error, layer(8, LayerError::LastNotLogits));
    }

    #[test]
    fn an_empty_kernel() {
        for change in [
            |kernel: &mut u8, _: &mut u8| *kernel = 0,
            |_: &mut u8, kernel: &mut u8| *kernel = 0,
        ] {
            let error = edited(|graph, _| {
                fields!(graph, 6, AvgPool { window });
                change(&mut window.kernel_height, &mut window.kernel_width);
            });
            assert_eq!(error, layer(6, LayerError::KernelZero));
        }
    }

    #[test]
    fn a_stride_of_zero() {
        let error = edited(|graph, _| {
            fields!(graph, 0, Conv2d { window });
            window.stride_height = 0;
        });
        assert_eq!(error, layer(0, LayerError::StrideZero));
        let error = edited(|graph, _| {
            fields!(graph, 4, MaxPool { window });
            window.stride_width = 0;
        });
        assert_eq!(error, layer(4, LayerError::StrideZero));
        let error = edited(|graph, _| {
            fields!(graph, 2, Subsample { stride });
            *stride = 0;
        });
        assert_eq!(error, layer(2, LayerError::StrideZero));
    }

    #[test]
    fn padding_as_large_as_the_kernel() {
        type Side = fn(&mut adcorda_formats::Window) -> &mut u8;
        let sides: [Side; 4] = [
            |w| &mut w.pad_top,
            |w| &mut w.pad_bottom,
            |w| &mut w.pad_left,
            |w| &mut w.pad_right,
        ];
        for side in sides {
            let error = edited(|graph, _| {
                fields!(graph, 1, DepthwiseConv2d { window });
                *side(window) = 3;
            });
            assert_eq!(error, layer(1, LayerError::Padding { pad: 3, kernel: 3 }));
        }
    }

    #[test]
    fn a_kernel_larger_than_its_input() {
        let error = edited(|graph, _| {
            fields!(graph, 6, AvgPool { window });
            window.kernel_width = 3;
        });
        assert_eq!(
            error,
            layer(
                6,
                LayerError::KernelTooLarge {
                    kernel: [2, 3],
                    input: [2, 2]
                }
            )
        );
        assert_eq!(error.to_string(), "layer 6: kernel 2x3 does not fit the padded input of 2x2");
    }

    #[test]
    fn an_output_of_another_size() {
        let error = edited(|graph, _| {
            fields!(graph, 0, Conv2d { window });
            window.stride_width = 2;
        });
        assert_eq!(
            error,
            layer(
                0,
                LayerError::OutputShape {
                    found: [4, 4, 4],
                    computed: [4, 2, 4]
                }
            )
        );
        assert_eq!(
            error.to_string(),
            "layer 0: the output tensor is 4x4x4, the operation gives 4x2x4"
        );
    }

    #[test]
    fn an_output_of_other_channels() {
        let error = edited(|graph, _| graph.tensors[2].channels = 3);
        assert_eq!(
            error,
            layer(
                1,
                LayerError::OutputShape {
                    found: [2, 2, 3],
                    computed: [2, 2, 4]
                }
            )
        );
        let error = edited(|graph, _| {
            fields!(
                graph,
                2,
                Subsample {
                    channels_before,
                    channels_after
                }
            );
            (*channels_before, *channels_after) = (u16::MAX, u16::MAX);
        });
        assert_eq!(
            error,
            layer(
                2,
                LayerError::OutputShape {
                    found: [2, 2, 4],
                    computed: [2, 2, 2 * 65535 + 3]
                }
            )
        );
    }

    #[test]
    fn a_linear_output_with_rows() {
        let error = edited(|graph, _| (graph.tensors[8].height, graph.tensors[8].channels) = (5, 1));
        assert_eq!(
            error,
            layer(
                7,
                LayerError::OutputShape {
                    found: [5, 1, 1],
                    computed: [1, 1, 1]
                }
            )
        );
        let error = edited(|graph, _| {
            (graph.tensors[9].width, graph.tensors[9].channels) = (3, 1);
            graph.labels.truncate(1);
        });
        assert_eq!(
            error,
            layer(
                8,
                LayerError::OutputShape {
                    found: [1, 3, 1],
                    computed: [1, 1, 1]
                }
            )
        );
    }

    #[test]
    fn an_addition_of_different_shapes() {
        let error = edited(|graph, _| {
            fields!(graph, 3, Add { a });
            *a = 1;
        });
        assert_eq!(
            error,
            layer(
                3,
                LayerError::InputShapes {
                    a: [4, 4, 4],
                    b: [2, 2, 4]
                }
            )
        );
    }

    #[test]
    fn a_residual_of_another_shape() {
        let error = edited(|graph, _| {
            fields!(graph, 5, Conv2d { residual });
            residual.as_mut().unwrap().input = 1;
        });
        assert_eq!(
            error,
            layer(
                5,
                LayerError::InputShapes {
                    a: [2, 2, 4],
                    b: [4, 4, 4]
                }
            )
        );
        assert_eq!(
            error.to_string(),
            "layer 5: adds tensors of different shapes, 2x2x4 and 4x4x4"
        );
    }

    #[test]
    fn a_residual_of_a_later_tensor() {
        for later in [6, 10, 255] {
            let error = edited(|graph, _| {
                fields!(graph, 5, Conv2d { residual });
                residual.as_mut().unwrap().input = later;
            });
            assert_eq!(error, layer(5, LayerError::Input { input: later }));
        }
    }

    #[test]
    fn a_residual_whose_numbers_are_out_of_range() {
        let refused = |change: fn(&mut Residual), cause| {
            let error = edited(|graph, _| {
                fields!(graph, 5, Conv2d { residual });
                change(residual.as_mut().unwrap());
            });
            assert_eq!(error, layer(5, cause));
        };
        refused(|sum| sum.shift = 0, LayerError::AddShift { found: 0 });
        refused(|sum| sum.shift = 31, LayerError::AddShift { found: 31 });
        refused(|sum| sum.mul_conv = -1, LayerError::AddMultiplier { found: -1 });
        refused(
            |sum| sum.mul_residual = i16::MIN,
            LayerError::AddMultiplier { found: i16::MIN },
        );
        refused(|sum| sum.min = 100, LayerError::Clamp { min: 100, max: 99 });
    }

    #[test]
    fn codes_copied_between_scales() {
        let error = edited(|graph, _| graph.tensors[5].zero_point = 4);
        assert_eq!(error, layer(4, LayerError::CodesDiffer));
        let error = edited(|graph, _| graph.tensors[3].scale = Scale::from_f32(1.0));
        assert_eq!(error, layer(2, LayerError::CodesDiffer));
    }

    #[test]
    fn an_empty_clamp() {
        let error = edited(|graph, _| {
            fields!(graph, 7, Linear { requantize });
            (requantize.min, requantize.max) = (1, 0);
        });
        assert_eq!(error, layer(7, LayerError::Clamp { min: 1, max: 0 }));
        let error = edited(|graph, _| {
            fields!(graph, 3, Add { min, max });
            (*min, *max) = (127, -128);
        });
        assert_eq!(error, layer(3, LayerError::Clamp { min: 127, max: -128 }));
    }

    #[test]
    fn a_negative_multiplier_of_an_addition() {
        let error = edited(|graph, _| {
            fields!(graph, 3, Add { mul_b });
            *mul_b = -1;
        });
        assert_eq!(error, layer(3, LayerError::AddMultiplier { found: -1 }));
    }

    #[test]
    fn a_shift_of_an_addition_out_of_range() {
        for found in [0, 31, 255] {
            let error = edited(|graph, _| {
                fields!(graph, 3, Add { shift });
                *shift = found;
            });
            assert_eq!(error, layer(3, LayerError::AddShift { found }));
        }
    }

    #[test]
    fn an_average_with_a_multiplier_out_of_range() {
        for found in [0, (1 << 30) - 1, -(1 << 30), i32::MIN] {
            let error = edited(|graph, _| {
                fields!(graph, 6, AvgPool { multiplier });
                *multiplier = found;
            });
            assert_eq!(error, layer(6, LayerError::Multiplier { found }));
            assert_eq!(
                error.to_string(),
                format!("layer 6: multiplier {found} is not 2^30 to 2^31 - 1")
            );
        }
    }

    #[test]
    fn an_average_with_a_shift_out_of_range() {
        for found in [0, 63] {
            let error = edited(|graph, _| {
                fields!(graph, 6, AvgPool { shift });
                *shift = found;
            });
            assert_eq!(error, layer(6, LayerError::Shift { found }));
        }
    }
}

mod weights {
    use super::*;

    #[test]
    fn regions_out_of_alignment() {
        let error = edited(|graph, _| {
            fields!(graph, 0, Conv2d { weights });
            weights.offset += 8;
        });
        assert_eq!(
            error,
            layer(
                0,
                LayerError::Alignment {
                    region: Region::Weights,
                    offset: 776
                }
            )
        );
        assert_eq!(
            error.to_string(),
            "layer 0: weights begin at byte 776, not at a multiple of 16"
        );
        let error = edited(|graph, _| {
            fields!(graph, 8, Logits { weights });
            weights.bias = 2;
        });
        assert_eq!(
            error,
            layer(
                8,
                LayerError::Alignment {
                    region: Region::Bias,
                    offset: 2
                }
            )
        );
        let error = edited(|graph, _| {
            fields!(graph, 7, Linear { requantize });
            requantize.multiplier = u32::MAX;
        });
        assert_eq!(
            error,
            layer(
                7,
                LayerError::Alignment {
                    region: Region::Multiplier,
                    offset: u32::MAX
                }
            )
        );
    }

    #[test]
    fn regions_past_the_end() {
        let section = tiny().1.len();
        let error = edited(|graph, _| {
            fields!(graph, 0, Conv2d { weights });
            weights.offset = u32::MAX - 15;
        });
        assert_eq!(
            error,
            layer(
                0,
                LayerError::Range {
                    region: Region::Weights,
                    end: 0xffff_fff0 + 128,
                    section
                }
            )
        );
        let error = edited(|_, weights| weights.truncate(weights.len() - 1));
        assert_eq!(
            error,
            layer(
                8,
                LayerError::Range {
                    region: Region::Bias,
                    end: section as u64,
                    section: section - 1
                }
            )
        );
        assert_eq!(
            error.to_string(),
            format!("layer 8: biases end at byte {section} of a section of {} bytes", section - 1)
        );
        let error = edited(|graph, weights| {
            fields!(graph, 1, DepthwiseConv2d { requantize });
            requantize.multiplier = weights.len() as u32 / 4 * 4;
        });
        let end = section as u64 / 4 * 4 + 16;
        assert_eq!(
            error,
            layer(
                1,
                LayerError::Range {
                    region: Region::Multiplier,
                    end,
                    section
                }
            )
        );
    }

    /// The error after the bits of one code, or of its place in the padding, have been replaced.
    fn with_bits(number: usize, row: usize, i: usize, bits: u8) -> Option<ParseError> {
        let (graph, mut bytes) = tiny();
        put(&mut bytes, packing(&graph, number), row, i, bits);
        graph.to_model_bytes(&bytes).err()
    }

    #[test]
    fn codes_that_a_width_does_not_have() {
        // W8: -128. W2 in blocks: 2 in even rows, -2 in odd ones. W2 of a depthwise convolution: -2.
        for (number, rows, k, width, bits) in [
            (0, 0..4, 27, Width::W8, [0x80, 0x80]),
            (1, 0..4, 9, Width::W2, [0b10, 0b10]),
            (8, 0..3, 5, Width::W2, [0b11, 0b10]),
        ] {
            for (row, column) in rows.flat_map(|row| (0..k).map(move |i| (row, i))) {
                let error = with_bits(number as usize, row, column, bits[row % 2]);
                let (row, column) = (row as u16, column as u32);
                assert_eq!(error, Some(layer(number, LayerError::Code { row, column, width })));
            }
        }
        assert_eq!(
            with_bits(0, 2, 26, 0x80).unwrap().to_string(),
            "layer 0: weight 26 of row 2 is no value of w8"
        );
    }

    #[test]
    fn codes_that_only_the_other_rows_have() {
        for (row, bits) in [(0, 0b10), (1, 0b11), (2, 0b10)] {
            assert_eq!(with_bits(8, row, 4, bits), None);
        }
    }

    #[test]
    fn codes_after_a_row_that_are_not_zero_bits() {
        // From k to the next multiple of 16: W8, W4, W1, W2.
        for (number, rows, k, padded_k) in [(0, 4, 27, 32), (5, 4, 4, 16), (7, 5, 4, 16), (8, 3, 5, 16)] {
            for (row, i) in (0..rows).flat_map(|row| (k..padded_k).map(move |i| (row, i))) {
                let error = with_bits(number as usize, row, i, 1);
                assert_eq!(error, Some(layer(number, LayerError::RowPadding { row: row as u32 })));
                assert_eq!(with_bits(number as usize, row, i, 0), None);
            }
        }
        // An invalid code is wrong as padding, too.
        assert_eq!(with_bits(8, 1, 9, 0b10), Some(layer(8, LayerError::RowPadding { row: 1 })));
        assert_eq!(with_bits(0, 0, 27, 0x80), Some(layer(0, LayerError::RowPadding { row: 0 })));
        assert_eq!(
            with_bits(8, 1, 9, 0b01).unwrap().to_string(),
            "layer 8: row 1 is not padded with zero bits"
        );
    }

    #[test]
    fn rows_after_the_last_that_are_not_zero_bits() {
        // Five rows of W1 and three of W2, in blocks of four.
        for (number, rows) in [(7, 5..8), (8, 3..4)] {
            for (row, i) in rows.flat_map(|row| (0..16).map(move |i| (row, i))) {
                let error = with_bits(number as usize, row, i, 1);
                assert_eq!(error, Some(layer(number, LayerError::RowPadding { row: row as u32 })));
            }
        }
    }

    #[test]
    fn bits_after_a_block_of_channels_that_are_not_zero() {
        // 4 channels of 9 codes of 2 bits: 72 bits of 12 bytes.
        for bit in 72..96 {
            let error = edited(|graph, bytes| bytes[packing(graph, 1).1 + bit / 8] |= 1 << (bit % 8));
            assert_eq!(error, layer(1, LayerError::RowPadding { row: 0 }));
        }
    }

    #[test]
    fn any_multiplier_will_do() {
        for multiplier in [1, -1, i32::MIN, i32::MAX, 0] {
            let (mut graph, mut bytes) = tiny();
            fields!(graph, 7, Linear { requantize });
            let start = requantize.multiplier as usize + 3 * 4;
            bytes[start..start + 4].copy_from_slice(&multiplier.to_le_bytes());
            graph.to_model_bytes(&bytes).unwrap();
        }
    }

    #[test]
    fn shifts_out_of_range() {
        for shift in [1, 62] {
            let (mut graph, bytes) = tiny();
            fields!(graph, 0, Conv2d { requantize });
            requantize.shift = shift;
            graph.to_model_bytes(&bytes).unwrap();
        }
        for found in [0, 63, 255] {
            let error = edited(|graph, _| {
                fields!(graph, 7, Linear { requantize });
                requantize.shift = found;
            });
            assert_eq!(error, layer(7, LayerError::Shift { found }));
            assert_eq!(error.to_string(), format!("layer 7: shift {found} is not 1 to 62"));
        }
    }

    #[test]
    fn an_accumulator_that_could_overflow() {
        // The last logit has k = 5 codes of at most 1, and the largest bias that leaves room for them.
        let with_bias = |bias: i32| {
            let (graph, mut bytes) = tiny();
            let start = bytes.len() - 4;
            bytes[start..].copy_from_slice(&bias.to_le_bytes());
            graph.to_model_bytes(&bytes).err()
        };
        let largest = i32::MAX - 5 * 128;
        assert_eq!(with_bias(largest), None);
        assert_eq!(with_bias(-largest), None);
        let bound = 1 << 31;
        assert_eq!(
            with_bias(largest + 1),
            Some(layer(8, LayerError::Accumulator { channel: 2, bound }))
        );
        assert_eq!(
            with_bias(-largest - 1),
            Some(layer(8, LayerError::Accumulator { channel: 2, bound }))
        );
        let bound = (1 << 31) + 640;
        assert_eq!(
            with_bias(i32::MIN),
            Some(layer(8, LayerError::Accumulator { channel: 2, bound }))
        );
    }

    #[test]
    fn rows_too_long_for_an_accumulator() {
        let error = edited(|graph, _| {
            // Logits straight over an input of 4096 x 4096 x 3 pixels: no bias leaves room for so many.
            graph.arena_bytes = u32::MAX;
            graph.tensors = vec![graph.tensors[0], graph.tensors[9]];
            (graph.tensors[0].height, graph.tensors[0].width) = (4096, 4096);
            graph.layers = vec![graph.layers[8]];
            fields!(graph, 0, Logits { input });
            *input = 0;
        });
        assert_eq!(
            error,
            layer(
                0,
                LayerError::Accumulator {
                    channel: 0,
                    bound: 4096 * 4096 * 3 * 128
                }
            )
        );
    }
}
