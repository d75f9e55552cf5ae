//! Damaged and hostile model files: refused with an error that helps, or run without harm.
//!
//! What is left after a change and still parses is a model like any other: it runs inside of its arena and computes what the
//! oracle computes. The starting point is a small network with every operation and width.

use adcorda_formats::{HEADER_BYTES, MAGIC, Model, ParseError, VERSION};
use adcorda_tests::{cases, host, oracle};

/// Models with larger arenas are not run: a change may ask for gigabytes.
const LARGEST_ARENA: usize = 1 << 16;

/// Models that take more steps for an image are not run.
const MOST_STEPS: u64 = 1 << 18;

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    ran: usize,
    /// Valid, but too large to run here.
    skipped: usize,
}

impl Tally {
    /// Parses `file`; runs what parses, and compares it with the oracle.
    fn check(&mut self, file: &[u8]) {
        let model = match Model::parse(file) {
            Ok(model) => model,
            Err(error) => {
                check_message(error);
                self.refused += 1;
                return;
            }
        };
        if model.arena_bytes() > LARGEST_ARENA || steps(&model) > MOST_STEPS {
            self.skipped += 1;
            return;
        }
        let pixels: Vec<u8> = (0..model.input().elements()).map(|i| (i * 89 + 7) as u8).collect();
        assert_eq!(host::run(&model, &pixels, 0), oracle::run(&model, &pixels));
        self.ran += 1;
    }

    /// As [`Tally::check`], with the checksum mended first, so that the checks behind it are reached.
    fn check_resealed(&mut self, file: &mut [u8]) {
        reseal(file);
        self.check(file);
    }
}

/// Positions that the model's layers look at, padding included.
fn steps(model: &Model<'_>) -> u64 {
    let tensors = model.tensors();
    let of_layer = |(layer, y): (adcorda_formats::Layer<'_>, &adcorda_formats::Tensor)| {
        let x = layer.op.inputs().next().map_or(0, usize::from);
        let window = layer.op.window().map_or(1, |window| window.positions());
        layer.op.macs(&tensors[x], y).max((y.elements() * window) as u64)
    };
    model.layers().zip(&tensors[1..]).map(of_layer).sum()
}

/// Writes the checksum that the reader computes.
fn reseal(file: &mut [u8]) {
    if let Err(ParseError::Checksum { computed, .. }) = Model::parse(file) {
        file[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&computed.to_le_bytes());
    }
}

/// A file of these parts, with all of the header right.
fn file_of(graph: &[u8], weights: &[u8]) -> Vec<u8> {
    let weights_offset = (HEADER_BYTES + graph.len()).next_multiple_of(16);
    let mut file = MAGIC.to_vec();
    file.extend(VERSION.to_le_bytes());
    file.extend((HEADER_BYTES as u16).to_le_bytes());
    for length in [graph.len(), weights_offset, weights.len(), weights_offset + weights.len(), 0] {
        file.extend((length as u32).to_le_bytes());
    }
    file.extend(graph);
    file.resize(weights_offset, 0);
    file.extend(weights);
    reseal(&mut file);
    file
}

/// The graph and the weights section of a valid file.
fn parts(file: &[u8]) -> (&[u8], &[u8]) {
    let graph_bytes = u32::from_le_bytes([file[12], file[13], file[14], file[15]]) as usize;
    let model = Model::parse(file).expect("a valid model");
    let weights = model.weights_section().len();
    (&file[HEADER_BYTES..][..graph_bytes], &file[file.len() - weights..])
}

/// One line that says more than that something is wrong, and where it is if there is a where.
fn check_message(error: ParseError) {
    let text = error.to_string();
    assert!(text.len() > 12 && text.is_ascii(), "{text:?} for {error:?}");
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text:?} for {error:?}");
    assert!(text.starts_with(|c: char| !c.is_uppercase()), "{text:?} for {error:?}");
    assert!(!text.contains('{'), "{text:?} for {error:?}");
    let place = if let ParseError::Tensor { tensor, .. } = error {
        format!("tensor {tensor}: ")
    } else if let ParseError::Layer { layer, .. } = error {
        format!("layer {layer}: ")
    } else {
        String::new()
    };
    assert!(text.starts_with(&place), "{text:?} for {error:?}");
}

fn model() -> Vec<u8> {
    cases::named("residual_small").model
}

/// Linear congruential, high bits: the same garbage each time.
struct Garbage(u64);

impl Garbage {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % below as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next(256) as u8).collect()
    }
}

#[test]
fn the_parts_make_the_same_file() {
    let file = model();
    let (graph, weights) = parts(&file);
    assert_eq!(file_of(graph, weights), file);
}

#[test]
fn every_truncation_is_refused() {
    let file = model();
    for length in 0..file.len() {
        let error = Model::parse(&file[..length]).expect_err("a part of a file is no file");
        check_message(error);
        let ParseError::Truncated { found, .. } = error else {
            panic!("{length} of {} bytes: {error}", file.len());
        };
        assert_eq!(found, length);
    }
}

#[test]
fn every_truncation_of_a_part_is_refused_though_its_length_is_right() {
    let file = model();
    let (graph, weights) = parts(&file);
    for length in 0..graph.len() {
        check_message(Model::parse(&file_of(&graph[..length], weights)).expect_err("half a graph"));
    }
    for length in 0..weights.len() {
        check_message(Model::parse(&file_of(graph, &weights[..length])).expect_err("half of the weights"));
    }
}

#[test]
fn bytes_too_many_are_refused_wherever_they_are() {
    let file = model();
    let (graph, weights) = parts(&file);
    for byte in [0, 0xff] {
        let longer = |part: &[u8]| [part, &[byte]].concat();
        for file in [
            longer(&file),
            file_of(&longer(graph), weights),
            file_of(graph, &longer(weights)),
        ] {
            check_message(Model::parse(&file).expect_err("a byte too many"));
        }
    }
}

#[test]
fn every_changed_byte_is_refused() {
    let mut file = model();
    for at in 0..file.len() {
        let byte = file[at];
        for change in 1..=255 {
            file[at] = byte ^ change;
            check_message(Model::parse(&file).expect_err("a checksum sees every changed byte"));
        }
        file[at] = byte;
    }
}

#[test]
fn every_changed_byte_with_a_right_checksum_is_refused_or_runs() {
    let file = model();
    let weights_offset = file.len() - parts(&file).1.len();
    let mut tally = Tally::default();
    for at in 0..file.len() {
        for change in 1..=255u8 {
            // Of a weight or a table's entry, single bits and all of them: there is no structure to break.
            if at >= weights_offset && !change.is_power_of_two() && change != 0xff {
                continue;
            }
            let mut changed = file.clone();
            changed[at] ^= change;
            tally.check_resealed(&mut changed);
        }
    }
    // Both ways were taken many times, and hardly a model was too large to look at.
    assert!(
        tally.refused > 50_000 && tally.ran > 20_000 && tally.skipped < 100,
        "{tally:?}"
    );
}

#[test]
fn many_changes_at_once_are_refused_or_run() {
    let file = model();
    let (graph, weights) = parts(&file);
    let mut garbage = Garbage(1);
    let mut tally = Tally::default();
    for _ in 0..20_000 {
        let mut graph = graph.to_vec();
        for _ in 0..1 + garbage.next(3) {
            let at = garbage.next(graph.len());
            match garbage.next(4) {
                0 => graph[at] = garbage.next(256) as u8,
                1 => graph[at] = graph[at].wrapping_add(1),
                2 => drop(graph.remove(at)),
                _ => graph.insert(at, garbage.next(256) as u8),
            }
        }
        tally.check(&file_of(&graph, weights));
    }
    assert!(tally.refused > 5_000 && tally.ran > 500, "{tally:?}");
}

#[test]
fn garbage_is_refused() {
    let mut garbage = Garbage(2);
    check_message(Model::parse(&[]).expect_err("nothing at all"));
    for length in 1..2_000 {
        let body = garbage.bytes(length);
        assert_eq!(Model::parse(&body).expect_err("garbage"), ParseError::NotAModel);
        let signed = [MAGIC.as_slice(), &body].concat();
        check_message(Model::parse(&signed).expect_err("garbage with a signature"));
        let weights = garbage.bytes(length / 2);
        check_message(Model::parse(&file_of(&body, &weights)).expect_err("garbage in a right frame"));
    }
}

#[test]
fn huge_lengths_are_refused() {
    let file = model();
    let (graph, weights) = parts(&file);
    for field in [12, 16, 20, 24] {
        for value in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff_u32] {
            let mut changed = file.clone();
            changed[field..field + 4].copy_from_slice(&value.to_le_bytes());
            reseal(&mut changed);
            check_message(Model::parse(&changed).expect_err("a length that is wrong"));
        }
    }
    // All four lengths agree with each other, but for their sum leaving 32 bits.
    let mut changed = file.clone();
    for (field, value) in [(12, 0xffff_ffd0_u32), (16, 0xffff_fff0), (20, 0x10), (24, 0)] {
        changed[field..field + 4].copy_from_slice(&value.to_le_bytes());
    }
    check_message(Model::parse(&changed).expect_err("lengths that wrap around"));
    // Anywhere in the graph, the largest number that five or ten bytes can hold, and one that never ends.
    for at in 0..graph.len() {
        for number in [
            [0xff, 0xff, 0xff, 0xff, 0x0f].as_slice(),
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0xff; 11],
        ] {
            let mut replaced = graph[..at].to_vec();
            replaced.extend(number);
            replaced.extend(&graph[at + 1..]);
            Tally::default().check(&file_of(&replaced, weights));
        }
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let message = |at: usize, byte: u8| {
        let mut file = model();
        file[at] = byte;
        Model::parse(&file).expect_err("a broken header").to_string()
    };
    assert!(message(0, b'P').starts_with("not an adq model"));
    assert!(message(8, 9).starts_with(&format!("version 9 is newer than {VERSION}")));
    assert!(message(8, 1).starts_with(&format!("version 1 is a draft of version {VERSION}")));
    assert!(message(8, 0).starts_with("version 0 does not exist"));
    assert!(message(10, 33).starts_with("the header says it has 33 bytes"));
    let last = model().len() - 1;
    assert!(message(last, model()[last] ^ 1).ends_with("the file is damaged, copy it again"));

    let file = model();
    let error = Model::parse(&file[..100]).expect_err("truncated").to_string();
    assert_eq!(
        error,
        format!("the file ends after 100 of {} bytes: copy it again", file.len())
    );
}
