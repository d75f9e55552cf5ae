//! Version 2 is frozen once released: these bytes must be written, and must be read, for ever.

use adcorda_formats::{
    Element, Graph, Layer, MAX_CLASSES, MAX_LAYERS, MAX_TENSORS, MAX_TEXT_BYTES, Model, Op, Order, Packing, Provenance, Scale,
    Scratch, Section, Tensor, VERSION, Weights, Width,
};

use crate::tiny::{crc32, fix_crc, tiny};

const TINY: &[u8] = include_bytes!("../golden/tiny.adq");

#[test]
fn writing_gives_the_golden_bytes() {
    let (graph, weights) = tiny();
    assert!(
        graph.to_model_bytes(&weights).unwrap() == TINY,
        "version {VERSION} is frozen: a change needs a new version"
    );
}

#[test]
fn reading_the_golden_bytes_gives_the_graph() {
    let (graph, weights) = tiny();
    let model = Model::parse(TINY).unwrap();
    assert_eq!(Graph::from(&model), graph);
    assert_eq!(model.weights_section(), weights);
}

#[test]
fn reading_works_at_every_alignment() {
    for shift in 0..16 {
        let mut moved = vec![0xa5; shift];
        moved.extend(TINY);
        assert_eq!(Graph::from(&Model::parse(&moved[shift..]).unwrap()), tiny().0);
    }
}

#[test]
fn accessors_give_what_was_written() {
    let model = Model::parse(TINY).unwrap();
    assert_eq!(model.name(), "tiny");
    assert_eq!(model.provenance().top1, 3333);
    assert_eq!((model.classes(), model.arena_bytes()), (3, 155));
    assert_eq!((model.input().channels, model.output().element), (3, Element::I32));
    assert_eq!(model.labels().collect::<Vec<_>>(), ["plane", "car", "oiseau à ailes"]);
    assert_eq!((model.label(2), model.label(3)), (Some("oiseau à ailes"), None));
    assert_eq!((model.layers().len(), model.tensors().len()), (9, 10));
    assert_eq!(model.layer(8).unwrap().name, "fc2");
    assert_eq!(model.layer(8).unwrap().scratch, Scratch { offset: 0, bytes: 5 });
    assert_eq!(model.layer(9), None);

    let table = model.input_table();
    assert_eq!(
        (table.len(), table[0] as i8, table[255] as i8, table[2 * 256] as i8),
        (768, -64, 63, -62)
    );

    let Op::Conv2d { weights, requantize, .. } = model.layer(0).unwrap().op else {
        panic!("conv1 is a convolution")
    };
    // From the first code to the end of the section.
    assert_eq!(model.packed(&weights), &model.weights_section()[weights.offset as usize..]);
    assert_eq!(model.weights_section().len(), model.packed(&weights).len() + 768);
    assert_eq!(model.bias(&weights, 4).iter().collect::<Vec<_>>(), [1000, 300, -400, -1100]);
    let multiplier = model.multiplier(&requantize, 4);
    assert_eq!(
        (multiplier.len(), multiplier.is_empty(), multiplier.get(2)),
        (4, false, i32::MIN)
    );
    assert_eq!(requantize.shift, 36);
}

#[test]
fn rows_k_and_macs_follow_from_the_shapes() {
    let model = Model::parse(TINY).unwrap();
    let computed: Vec<_> = model
        .layers()
        .enumerate()
        .map(|(i, layer)| {
            let input = &model.tensors()[usize::from(layer.op.inputs().next().unwrap())];
            let output = &model.tensors()[i + 1];
            (
                layer.op.name(),
                layer.op.rows_and_k(input, output),
                layer.op.macs(input, output),
            )
        })
        .collect();
    assert_eq!(
        computed,
        [
            ("conv2d", Some((4, 27)), 16 * 4 * 27),
            ("depthwise_conv2d", Some((4, 9)), 4 * 4 * 9),
            ("subsample", None, 0),
            ("add", None, 0),
            ("max_pool", None, 0),
            ("conv2d", Some((4, 4)), 4 * 4 * 4),
            ("avg_pool", None, 0),
            ("linear", Some((5, 4)), 20),
            ("logits", Some((3, 5)), 15),
        ]
    );
}

#[test]
fn the_checksum_is_crc_32_iso_hdlc() {
    assert_eq!(TINY[28..32], crc32(TINY).to_le_bytes());
}

/// Longer encodings of a number decode to the same number, as postcard has it.
#[test]
fn numbers_may_be_encoded_longer_than_needed() {
    let (graph, weights) = tiny();
    // The length of the name, 4, as two bytes; the padding before the weights has room for one more byte.
    let graph_bytes = u32::from_le_bytes(TINY[12..16].try_into().unwrap());
    assert_ne!(graph_bytes % 16, 0);
    let mut longer = TINY.to_vec();
    longer.splice(32..33, [0x84, 0x00]);
    longer.remove(33 + graph_bytes as usize);
    longer[12..16].copy_from_slice(&(graph_bytes + 1).to_le_bytes());
    fix_crc(&mut longer);
    let model = Model::parse(&longer).unwrap();
    assert_eq!((Graph::from(&model), model.weights_section()), (graph, &weights[..]));
}

/// As many layers, tensors and classes, as long texts and as large an arena as a model may have.
#[test]
fn the_largest_graph_is_read() {
    let name = "n".repeat(MAX_TEXT_BYTES);
    let mut section = Section::new();
    let input_table = section.push_table(&[[0; 256]]);
    let weights = Weights {
        width: Width::W1,
        offset: section.push_rows(Order::Blocks, Width::W1, &[1; MAX_CLASSES], 1).unwrap(),
        bias: section.push_i32s(&[0; MAX_CLASSES]),
    };
    // Layers write in turns to the last two bytes of the arena, so that offsets are as long as can be.
    let tensors = (0..MAX_TENSORS).map(|i| Tensor {
        height: 1,
        width: 1,
        channels: 1,
        element: Element::I8,
        zero_point: 0,
        scale: Scale::from_f32(1.0),
        offset: u32::MAX - 1 - i as u32 % 2,
    });
    let mut tensors: Vec<Tensor> = tensors.collect();
    tensors[MAX_LAYERS] = Tensor {
        channels: MAX_CLASSES as u16,
        element: Element::I32,
        offset: 4,
        ..tensors[0]
    };
    let mut layers: Vec<Layer> = (0..MAX_LAYERS)
        .map(|i| Layer {
            name: &name,
            op: Op::Subsample {
                input: i as u8,
                stride: 1,
                channels_before: 0,
                channels_after: 0,
            },
            scratch: Scratch { offset: 0, bytes: 1 },
        })
        .collect();
    layers[MAX_LAYERS - 1].op = Op::Logits {
        input: (MAX_LAYERS - 1) as u8,
        weights,
    };
    let graph = Graph {
        name: &name,
        provenance: Provenance {
            data: &name,
            method: &name,
            seed: u64::MAX,
            top1: 10_000,
        },
        arena_bytes: u32::MAX,
        input_table,
        tensors,
        layers,
        labels: vec![&name; MAX_CLASSES],
    };
    let file = graph.to_model_bytes(section.as_bytes()).unwrap();
    assert_eq!(Graph::from(&Model::parse(&file).unwrap()), graph);
}

/// The example of FORMAT.md, byte for byte.
#[test]
fn the_documented_example_is_what_is_written() {
    let document = include_str!("../../FORMAT.md");
    let example = document
        .split("<!-- example -->")
        .nth(1)
        .expect("FORMAT.md marks its example");
    let documented: Vec<u8> = example
        .lines()
        .filter_map(|line| line.split_once('|'))
        .flat_map(|(bytes, _)| bytes.split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hex digits"))
        .collect();

    let mut section = Section::new();
    let input_table = section.push_table(&[std::array::from_fn(|v| (v as i32 - 128) as i8)]);
    let offset = section
        .push_rows(Order::Blocks, Width::W2, &[1, -1, 0, 0, -1, 0, 1, 1], 4)
        .unwrap();
    let bias = section.push_i32s(&[10, 123]);
    let tensor = |shape: [u16; 3], element, zero_point, scale, offset| Tensor {
        height: shape[0],
        width: shape[1],
        channels: shape[2],
        element,
        zero_point,
        scale: Scale::from_f32(scale),
        offset,
    };
    let graph = Graph {
        name: "ex",
        provenance: Provenance {
            data: "",
            method: "",
            seed: 0,
            top1: u16::MAX,
        },
        arena_bytes: 16,
        input_table,
        tensors: vec![
            tensor([2, 2, 1], Element::I8, -128, 0.5, 0),
            tensor([1, 1, 2], Element::I32, 0, 0.125, 8),
        ],
        layers: vec![Layer {
            name: "fc",
            op: Op::Logits {
                input: 0,
                weights: Weights {
                    width: Width::W2,
                    offset,
                    bias,
                },
            },
            scratch: Scratch { offset: 4, bytes: 4 },
        }],
        labels: vec!["no", "yes"],
    };
    let written = graph.to_model_bytes(section.as_bytes()).unwrap();
    let weights_offset = u32::from_le_bytes(written[16..20].try_into().unwrap()) as usize;
    let expected = [&written[..weights_offset], &written[weights_offset + 256..]].concat();
    assert_eq!(
        documented,
        expected,
        "{}",
        expected.iter().map(|byte| format!("{byte:02x} ")).collect::<String>()
    );
}

/// The words of FORMAT.md, each of the codes beside it.
#[test]
fn the_documented_words_are_what_is_written() {
    let document = include_str!("../../FORMAT.md");
    let words: Vec<&str> = document
        .split("<!-- words -->")
        .nth(1)
        .expect("FORMAT.md marks its words")
        .lines()
        .filter(|line| line.contains('|'))
        .skip(1)
        .collect();
    assert_eq!(words.len(), 8, "one for each order and width");
    for line in words {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [order, width, word, rows] = columns[..] else {
            panic!("{line}")
        };
        let order = if order == "blocks" { Order::Blocks } else { Order::Channels };
        let width = Width::ALL.into_iter().find(|w| w.name().eq_ignore_ascii_case(width)).unwrap();
        let rows: Vec<Vec<i8>> = rows
            .split(';')
            .map(|row| row.split_whitespace().map(|code| code.parse().unwrap()).collect())
            .collect();
        let mut section = Section::new();
        section.push_rows(order, width, &rows.concat(), rows[0].len()).unwrap();
        let words: Vec<String> = section
            .as_bytes()
            .as_chunks()
            .0
            .iter()
            .map(|word| format!("{:08x}", u32::from_le_bytes(*word)))
            .collect();
        // What the line leaves out is padding.
        let documented: Vec<&str> = word.split_whitespace().collect();
        assert_eq!(documented, words[..documented.len()], "{line}");
        assert!(words[documented.len()..].iter().all(|word| word == "00000000"), "{line}");
        let packing = Packing {
            order,
            width,
            rows: rows.len(),
            k: rows[0].len(),
        };
        assert_eq!(section.as_bytes().len(), packing.bytes());
    }
}

/// Run once for a new version: `cargo test -p adcorda-formats write_golden_bytes -- --ignored`.
#[test]
#[ignore = "writes tests/golden/tiny.adq"]
fn write_golden_bytes() {
    let (graph, weights) = tiny();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny.adq");
    std::fs::write(path, graph.to_model_bytes(&weights).unwrap()).unwrap();
}
