//! Every reason to refuse a file, one test each.

use adcorda_formats::{
    Element, Graph, HEADER_BYTES, LayerError, MAX_CLASSES, MAX_LAYERS, MAX_TENSORS, MAX_TEXT_BYTES, Model, Op, ParseError,
    Part, Provenance, Region, Scale, TensorError, Width,
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
            file[8] = 2;
            file[10] = 64;
        });
        assert_eq!(error, ParseError::NewerVersion { found: 2 });
        assert_eq!(
            error.to_string(),
            "version 2 is newer than 1, the newest known here: update the reader, or export again"
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
        let error = edited(|graph, _| graph.tensors.truncate(8));
        assert_eq!(error, ParseError::TensorCount { tensors: 8, layers: 8 });
        assert_eq!(error.to_string(), "8 layers need 9 tensors, the graph has 8");
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
            edited(|graph, _| graph.tensors[8].element = Element::I8),
            tensor(8, TensorError::Element)
        );
    }

    #[test]
    fn logits_with_a_zero_point() {
        let error = edited(|graph, _| graph.tensors[8].zero_point = 1);
        assert_eq!(error, tensor(8, TensorError::ZeroPoint { found: 1 }));
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
        let error = edited(|graph, _| graph.tensors[8].offset = 30);
        assert_eq!(error, tensor(8, TensorError::Alignment { offset: 30 }));
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
    fn over_the_scratch_range() {
        let error = edited(|graph, _| graph.plan.scratch_offset = 127);
        assert_eq!(error, tensor(2, TensorError::OverlapsScratch));
    }

    #[test]
    fn scratch_past_the_arena() {
        let error = edited(|graph, _| graph.plan.scratch_offset = 129);
        assert_eq!(
            error,
            ParseError::ScratchRange {
                end: 156,
                arena_bytes: 155
            }
        );
        let error = edited(|graph, _| graph.plan.scratch_offset = u32::MAX);
        assert_eq!(
            error,
            ParseError::ScratchRange {
                end: u64::from(u32::MAX) + 27,
                arena_bytes: 155
            }
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
        let error = edited(|graph, _| graph.layers[6].op = graph.layers[7].op);
        assert_eq!(error, layer(6, LayerError::Input { input: 7 }));
        let error = edited(|graph, _| {
            graph.layers[6].op = graph.layers[7].op;
            fields!(graph, 6, Logits { input });
            *input = 6;
        });
        assert_eq!(error, layer(6, LayerError::LogitsNotLast));
    }

    #[test]
    fn another_last_layer() {
        let error = edited(|graph, _| graph.layers[7].op = graph.layers[6].op);
        assert_eq!(error, layer(7, LayerError::LastNotLogits));
    }

    #[test]
    fn an_empty_kernel() {
        for change in [
            |kernel: &mut u8, _: &mut u8| *kernel = 0,
            |_: &mut u8, kernel: &mut u8| *kernel = 0,
        ] {
            let error = edited(|graph, _| {
                fields!(graph, 5, AvgPool { window });
                change(&mut window.kernel_height, &mut window.kernel_width);
            });
            assert_eq!(error, layer(5, LayerError::KernelZero));
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
            fields!(graph, 5, AvgPool { window });
            window.kernel_width = 3;
        });
        assert_eq!(
            error,
            layer(
                5,
                LayerError::KernelTooLarge {
                    kernel: [2, 3],
                    input: [2, 2]
                }
            )
        );
        assert_eq!(error.to_string(), "layer 5: kernel 2x3 does not fit the padded input of 2x2");
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
        let error = edited(|graph, _| (graph.tensors[7].height, graph.tensors[7].channels) = (5, 1));
        assert_eq!(
            error,
            layer(
                6,
                LayerError::OutputShape {
                    found: [5, 1, 1],
                    computed: [1, 1, 1]
                }
            )
        );
        let error = edited(|graph, _| {
            (graph.tensors[8].width, graph.tensors[8].channels) = (3, 1);
            graph.labels.truncate(1);
        });
        assert_eq!(
            error,
            layer(
                7,
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
    fn codes_copied_between_scales() {
        let error = edited(|graph, _| graph.tensors[5].zero_point = 4);
        assert_eq!(error, layer(4, LayerError::CodesDiffer));
        let error = edited(|graph, _| graph.tensors[3].scale = Scale::from_f32(1.0));
        assert_eq!(error, layer(2, LayerError::CodesDiffer));
    }

    #[test]
    fn an_empty_clamp() {
        let error = edited(|graph, _| {
            fields!(graph, 6, Linear { requantize });
            (requantize.min, requantize.max) = (1, 0);
        });
        assert_eq!(error, layer(6, LayerError::Clamp { min: 1, max: 0 }));
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
                fields!(graph, 5, AvgPool { multiplier });
                *multiplier = found;
            });
            assert_eq!(error, layer(5, LayerError::Multiplier { channel: 0, found }));
        }
    }

    #[test]
    fn an_average_with_a_shift_out_of_range() {
        for found in [0, 63] {
            let error = edited(|graph, _| {
                fields!(graph, 5, AvgPool { shift });
                *shift = found;
            });
            assert_eq!(error, layer(5, LayerError::Shift { channel: 0, found }));
        }
    }

    #[test]
    fn too_little_scratch() {
        let error = edited(|graph, _| graph.plan.scratch_bytes = 26);
        assert_eq!(
            error,
            layer(
                0,
                LayerError::Scratch {
                    needed: 27,
                    scratch_bytes: 26
                }
            )
        );
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
            fields!(graph, 7, Logits { weights });
            weights.bias = 2;
        });
        assert_eq!(
            error,
            layer(
                7,
                LayerError::Alignment {
                    region: Region::Bias,
                    offset: 2
                }
            )
        );
        let error = edited(|graph, _| {
            fields!(graph, 6, Linear { requantize });
            requantize.multiplier = u32::MAX;
        });
        assert_eq!(
            error,
            layer(
                6,
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
                    end: 0xffff_fff0 + 112,
                    section
                }
            )
        );
        let error = edited(|_, weights| weights.truncate(weights.len() - 1));
        assert_eq!(
            error,
            layer(
                7,
                LayerError::Range {
                    region: Region::Bias,
                    end: section as u64,
                    section: section - 1
                }
            )
        );
        assert_eq!(
            error.to_string(),
            format!("layer 7: biases end at byte {section} of a section of {} bytes", section - 1)
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
        let error = edited(|graph, weights| {
            fields!(graph, 1, DepthwiseConv2d { requantize });
            requantize.shift = weights.len() as u32 - 3;
        });
        assert_eq!(
            error,
            layer(
                1,
                LayerError::Range {
                    region: Region::Shift,
                    end: section as u64 + 1,
                    section
                }
            )
        );
    }

    #[test]
    fn w8_code_minus_128() {
        let error = edited(|graph, bytes| {
            fields!(graph, 0, Conv2d { weights });
            bytes[weights.offset as usize + 2 * 28 + 26] = 0x80;
        });
        assert_eq!(
            error,
            layer(
                0,
                LayerError::Code {
                    row: 2,
                    column: 26,
                    width: Width::W8
                }
            )
        );
        assert_eq!(error.to_string(), "layer 0: weight 26 of row 2 is no value of w8");
    }

    #[test]
    fn w2_code_minus_2() {
        for column in 0..5 {
            let error = edited(|graph, bytes| {
                fields!(graph, 7, Logits { weights });
                let byte = &mut bytes[weights.offset as usize + 4 + column / 4];
                *byte = *byte & !(0b11 << (column % 4 * 2)) | 0b10 << (column % 4 * 2);
            });
            assert_eq!(
                error,
                layer(
                    7,
                    LayerError::Code {
                        row: 1,
                        column: column as u32,
                        width: Width::W2
                    }
                )
            );
        }
    }

    #[test]
    fn row_padding_that_is_not_zero() {
        // W8: the byte after 27; W4: the high half of the fifth byte; W1: the fifth bit; W2: the sixth pair, invalid as a code.
        let cases: [(u8, usize, u8); 4] = [(0, 27, 0x80), (1, 4, 0x10), (6, 0, 0x10), (7, 1, 0b1000)];
        for (number, byte, bits) in cases {
            let error = edited(|graph, bytes| {
                let weights = graph.layers[usize::from(number)].op.weights().unwrap();
                bytes[weights.offset as usize + byte] |= bits;
            });
            assert_eq!(error, layer(number, LayerError::RowPadding { row: 0 }));
        }
    }

    #[test]
    fn multipliers_out_of_range() {
        for found in [1, (1 << 30) - 1, -1, 1 - (1 << 30), i32::MIN] {
            let error = edited(|graph, bytes| {
                fields!(graph, 6, Linear { requantize });
                let start = requantize.multiplier as usize + 3 * 4;
                bytes[start..start + 4].copy_from_slice(&found.to_le_bytes());
            });
            assert_eq!(error, layer(6, LayerError::Multiplier { channel: 3, found }));
        }
    }

    #[test]
    fn shifts_out_of_range() {
        for found in [0, 63, 255] {
            let error = edited(|graph, bytes| {
                fields!(graph, 6, Linear { requantize });
                bytes[requantize.shift as usize + 4] = found;
            });
            assert_eq!(error, layer(6, LayerError::Shift { channel: 4, found }));
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
            Some(layer(7, LayerError::Accumulator { channel: 2, bound }))
        );
        assert_eq!(
            with_bias(-largest - 1),
            Some(layer(7, LayerError::Accumulator { channel: 2, bound }))
        );
        let bound = (1 << 31) + 640;
        assert_eq!(
            with_bias(i32::MIN),
            Some(layer(7, LayerError::Accumulator { channel: 2, bound }))
        );
    }

    #[test]
    fn rows_too_long_for_an_accumulator() {
        let error = edited(|graph, _| {
            // Logits straight over an input of 4096 x 4096 x 3 pixels: no bias leaves room for so many.
            graph.plan.arena_bytes = u32::MAX;
            graph.tensors = vec![graph.tensors[0], graph.tensors[8]];
            (graph.tensors[0].height, graph.tensors[0].width) = (4096, 4096);
            graph.layers = vec![graph.layers[7]];
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
