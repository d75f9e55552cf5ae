//! Files as a bad transfer, a bad memory or a bad person leaves them.

use adcorda_formats::{HEADER_BYTES, Model, ParseError};
use proptest::prelude::*;

use crate::invariants::assert_invariants;
use crate::tiny::{fix_crc, tiny};

fn file() -> Vec<u8> {
    let (graph, weights) = tiny();
    graph.to_model_bytes(&weights).unwrap()
}

#[test]
fn the_model_itself_keeps_its_promises() {
    assert_invariants(&Model::parse(&file()).unwrap());
}

#[test]
fn every_truncation_fails() {
    let file = file();
    for len in 0..file.len() {
        let error = Model::parse(&file[..len]).unwrap_err();
        assert!(
            matches!(error, ParseError::Truncated { found, .. } if found == len),
            "{len}: {error}"
        );
    }
}

#[test]
fn every_truncation_with_lengths_and_checksum_mended_fails() {
    let file = file();
    let weights_offset = u32::from_le_bytes(file[16..20].try_into().unwrap()) as usize;
    for len in weights_offset..file.len() {
        let mut short = file[..len].to_vec();
        short[20..24].copy_from_slice(&((len - weights_offset) as u32).to_le_bytes());
        short[24..28].copy_from_slice(&(len as u32).to_le_bytes());
        fix_crc(&mut short);
        Model::parse(&short).unwrap_err();
    }
    let graph_bytes = u32::from_le_bytes(file[12..16].try_into().unwrap());
    for len in 0..graph_bytes {
        let mut short = file[..32 + len as usize].to_vec();
        short.resize(short.len().next_multiple_of(16), 0);
        let start = short.len() as u32;
        short.extend(&file[weights_offset..]);
        short[12..16].copy_from_slice(&len.to_le_bytes());
        short[16..20].copy_from_slice(&start.to_le_bytes());
        let file_bytes = short.len() as u32;
        short[24..28].copy_from_slice(&file_bytes.to_le_bytes());
        fix_crc(&mut short);
        let error = Model::parse(&short).unwrap_err();
        assert!(matches!(error, ParseError::Graph { .. }), "{len}: {error}");
    }
}

#[test]
fn every_changed_header_is_refused_without_the_file_as_with_it() {
    let mut file = file();
    let header = |file: &[u8]| -> [u8; HEADER_BYTES] { file[..HEADER_BYTES].try_into().unwrap() };
    assert_eq!(Model::file_bytes(&header(&file)), Ok(file.len()));
    for i in 0..HEADER_BYTES {
        for change in 1..=255 {
            file[i] ^= change;
            match (Model::file_bytes(&header(&file)), Model::parse(&file).unwrap_err()) {
                // The lengths agree with each other, so it takes the file's own length, its graph or its checksum.
                (Ok(bytes), ParseError::Truncated { needed, .. }) => assert_eq!(bytes, needed as usize),
                (Ok(bytes), ParseError::TrailingBytes { file_bytes, .. }) => assert_eq!(bytes, file_bytes as usize),
                (Ok(bytes), ParseError::Checksum { .. }) => assert_eq!(bytes, file.len()),
                (alone, error) => assert_eq!(alone, Err(error), "byte {i} ^ {change:#x}"),
            }
            file[i] ^= change;
        }
    }
}

#[test]
fn every_changed_byte_fails() {
    let mut file = file();
    for i in 0..file.len() {
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            file[i] ^= change;
            assert!(Model::parse(&file).is_err(), "byte {i} ^ {change:#x}");
            file[i] ^= change;
        }
    }
}

#[test]
fn every_changed_byte_with_the_checksum_mended_fails_or_keeps_the_promises() {
    let original = file();
    let mut file = original.clone();
    let weights_offset = u32::from_le_bytes(file[16..20].try_into().unwrap()) as usize;
    let mut accepted = 0;
    for i in (0..28).chain(32..file.len()) {
        for change in 1..=255 {
            // Header and graph in full; of the tables and weights, one bit at a time.
            if i >= weights_offset && !u8::is_power_of_two(change) {
                continue;
            }
            file[i] = original[i] ^ change;
            fix_crc(&mut file);
            if let Ok(model) = Model::parse(&file) {
                assert_invariants(&model);
                accepted += 1;
            }
        }
        file[i] = original[i];
    }
    // Names, table entries and most weights may change; had nothing been accepted, nothing would have been tested.
    assert!(accepted > 768 * 8, "{accepted}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn several_changed_bytes_with_the_checksum_mended_fail_or_keep_the_promises(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 2..6)
    ) {
        let mut file = file();
        let graph_end = u32::from_le_bytes(file[16..20].try_into().unwrap()) as usize;
        for (index, value) in changes {
            file[32 + index.index(graph_end - 32)] = value;
        }
        fix_crc(&mut file);
        if let Ok(model) = Model::parse(&file) {
            assert_invariants(&model);
        }
    }

    #[test]
    fn arbitrary_graphs_with_a_sound_header_do_not_panic(graph in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = file();
        let weights_offset = (32 + graph.len()).next_multiple_of(16);
        file.truncate(32);
        file.extend(&graph);
        file.resize(weights_offset, 0);
        file[12..16].copy_from_slice(&(graph.len() as u32).to_le_bytes());
        file[16..20].copy_from_slice(&(weights_offset as u32).to_le_bytes());
        file[20..24].copy_from_slice(&0u32.to_le_bytes());
        file[24..28].copy_from_slice(&(weights_offset as u32).to_le_bytes());
        fix_crc(&mut file);
        prop_assert!(Model::parse(&file).is_err());
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Model::parse(&bytes).is_err());
    }
}
