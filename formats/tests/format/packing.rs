//! Where codes lie, stated in two other ways than the crate's formulas: as tables of bits, and as the operands that kernels
//! get out of a word.

use adcorda_formats::{Order, PackError, Packing, Section, Width};
use proptest::prelude::*;

const ORDERS: [Order; 2] = [Order::Blocks, Order::Channels];

/// Every value that a width has.
fn values(width: Width) -> Vec<i8> {
    match width {
        Width::W1 => vec![-1, 1],
        Width::W2 => vec![-1, 0, 1],
        Width::W4 => (-8..=7).collect(),
        Width::W8 => (-127..=127).collect(),
    }
}

fn pack(packing: &Packing, codes: &[i8]) -> Vec<u8> {
    let mut section = Section::new();
    assert_eq!(section.push_rows(packing.order, packing.width, codes, packing.k), Ok(0));
    section.into_bytes()
}

fn words(packed: &[u8]) -> Vec<u32> {
    packed.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// In blocks: the words that some codes of each row share, and for each row where in them these codes begin.
fn group(width: Width) -> (usize, &'static [&'static [usize]]) {
    match width {
        Width::W8 => (2, &[&[0, 8, 16, 24], &[32, 40, 48, 56]]),
        Width::W4 => (1, &[&[0, 4, 16, 20], &[8, 12, 24, 28]]),
        Width::W2 => (1, &[&[0, 8, 16, 24], &[14, 22, 30, 6], &[4, 12, 20, 28], &[18, 26, 2, 10]]),
        Width::W1 => (
            1,
            &[
                &[0, 8, 16, 24, 4, 12, 20, 28],
                &[14, 22, 30, 6, 18, 26, 2, 10],
                &[1, 9, 17, 25, 5, 13, 21, 29],
                &[15, 23, 31, 7, 19, 27, 3, 11],
            ],
        ),
    }
}

/// Packs by the tables.
fn pack_by_table(packing: &Packing, codes: &[i8]) -> Vec<u8> {
    let Packing { order, width, rows, k } = *packing;
    let mut bits = Vec::new();
    match order {
        Order::Blocks => {
            let (words, group) = group(width);
            for block in 0..rows.div_ceil(group.len()) {
                for start in (0..k.next_multiple_of(16)).step_by(group[0].len()) {
                    let mut part = vec![false; 32 * words];
                    for (r, places) in group.iter().enumerate() {
                        for (i, &place) in places.iter().enumerate() {
                            let row = block * group.len() + r;
                            if row < rows && start + i < k {
                                let code = i32::from(codes[row * k + start + i]);
                                let pattern = match width {
                                    Width::W1 => (code + 1) / 2,
                                    Width::W2 if r % 2 == 0 => code + 1,
                                    Width::W4 => code + 8,
                                    Width::W2 | Width::W8 => code,
                                };
                                for bit in 0..width.bits() as usize {
                                    part[place + bit] = pattern >> bit & 1 == 1;
                                }
                            }
                        }
                    }
                    bits.extend(part);
                }
            }
        }
        Order::Channels => {
            for channels in (0..rows).collect::<Vec<_>>().chunks(4) {
                for tap in 0..k {
                    for c in 0..4 {
                        let code = channels.get(c).map_or(0, |row| i32::from(codes[row * k + tap]));
                        let pattern = if width == Width::W1 { i32::from(code > 0) } else { code };
                        bits.extend((0..width.bits()).map(|bit| pattern >> bit & 1 == 1));
                    }
                }
                bits.resize(bits.len().next_multiple_of(32), false);
            }
        }
    }
    bits.as_chunks::<8>()
        .0
        .iter()
        .map(|byte| (0..8).map(|bit| u8::from(byte[bit]) << bit).sum())
        .collect()
}

#[test]
fn encode_accepts_exactly_the_values_of_a_width() {
    for (order, width, row) in ORDERS.into_iter().flat_map(|order| {
        Width::ALL
            .into_iter()
            .flat_map(move |width| (0..4).map(move |row| (order, width, row)))
    }) {
        let packing = Packing {
            order,
            width,
            rows: 4,
            k: 1,
        };
        for code in i8::MIN..=i8::MAX {
            let bits = packing.encode(row, code);
            assert_eq!(bits.is_some(), values(width).contains(&code), "{packing:?} {code}");
            assert!(bits.is_none_or(|bits| u32::from(bits) < 1 << width.bits()));
        }
        let largest = values(width).iter().map(|code| i32::from(*code).abs()).max().unwrap();
        assert_eq!(width.max_magnitude(), largest);
    }
}

#[test]
fn blocks_are_padded_to_whole_words_and_sixteen_codes() {
    let bytes = |order, width, rows, k| Packing { order, width, rows, k }.bytes();
    for (width, rows, sixteen_codes) in [(Width::W8, 2, 32), (Width::W4, 2, 16), (Width::W2, 4, 16), (Width::W1, 4, 8)] {
        for (k, groups) in [(1, 1), (16, 1), (17, 2), (32, 2), (576, 36)] {
            assert_eq!(bytes(Order::Blocks, width, 1, k), groups * sixteen_codes);
            assert_eq!(bytes(Order::Blocks, width, rows, k), groups * sixteen_codes);
            assert_eq!(bytes(Order::Blocks, width, rows + 1, k), 2 * groups * sixteen_codes);
        }
    }
    for (width, nine_taps) in [(Width::W8, 36), (Width::W4, 20), (Width::W2, 12), (Width::W1, 8)] {
        for (channels, blocks) in [(1, 1), (4, 1), (5, 2), (64, 16)] {
            assert_eq!(bytes(Order::Channels, width, channels, 9), blocks * nine_taps);
        }
    }
}

/// What a 4-bit kernel multiplies: the 16-bit halves of a masked word are codes 0 and 2, or 1 and 3, of one row.
#[test]
fn a_w4_word_is_masked_to_operands() {
    let packing = Packing {
        order: Order::Blocks,
        width: Width::W4,
        rows: 2,
        k: 4,
    };
    let codes = [-8, -3, 7, 0, 1, 6, -2, 5];
    let word = words(&pack(&packing, &codes))[0];
    for (row, i) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let operand = word >> (8 * row + 4 * i) & 0x000f_000f;
        let code = |i: usize| (codes[4 * row + i] + 8) as u32;
        assert_eq!(operand, code(i) | code(i + 2) << 16, "row {row}, from {i}");
    }
}

/// What a ternary kernel multiplies: a rotated and masked word has in each half two rows, 14 bits apart, so that one
/// multiplication serves both.
#[test]
fn a_w2_word_is_masked_to_operands_of_two_rows() {
    let packing = Packing {
        order: Order::Blocks,
        width: Width::W2,
        rows: 4,
        k: 4,
    };
    let codes = [1, -1, 0, 1, -1, 1, 0, -1, 0, 1, 1, -1, 1, 0, -1, 1];
    let word = words(&pack(&packing, &codes))[0];
    for (pair, i) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let operand = word.rotate_right((4 * pair + 8 * i) as u32) & 0xc003_c003;
        let half = |i: usize| {
            let code = |row: usize| i32::from(codes[4 * row + i]);
            code(2 * pair) + 1 + (code(2 * pair + 1) << 14)
        };
        let halves = [i32::from(operand as i16), i32::from((operand >> 16) as i16)];
        assert_eq!(halves, [half(i), half(i + 2)], "rows {} and on, from {i}", 2 * pair);
    }
}

#[test]
fn a_w1_word_is_masked_to_operands_of_two_rows() {
    let packing = Packing {
        order: Order::Blocks,
        width: Width::W1,
        rows: 4,
        k: 8,
    };
    let codes: Vec<i8> = (0..32).map(|i| if 0x5be1_c90d_u32 >> i & 1 == 1 { 1 } else { -1 }).collect();
    let word = words(&pack(&packing, &codes))[0];
    for (pair, i, half) in [0, 1]
        .into_iter()
        .flat_map(|pair| [(pair, 0, 0), (pair, 1, 0), (pair, 0, 1), (pair, 1, 1)])
    {
        let operand = word.rotate_right((pair + 8 * i + 4 * half) as u32) & 0x4001_4001;
        let bits = |i: usize| {
            let bit = |row: usize| u32::from(codes[8 * row + 4 * half + i] > 0);
            bit(2 * pair) | bit(2 * pair + 1) << 14
        };
        assert_eq!(operand, bits(i) | bits(i + 2) << 16, "rows {} and on, from {i}", 2 * pair);
    }
}

#[test]
fn codes_out_of_range_are_named_and_nothing_is_written() {
    let mut section = Section::new();
    section.push_i32s(&[9]);
    for order in ORDERS {
        let mut push = |codes: &[i8], k| section.push_rows(order, Width::W2, codes, k);
        let error = push(&[0, 1, 1, -2], 2).unwrap_err();
        assert_eq!(
            error,
            PackError::Code {
                row: 1,
                column: 1,
                code: -2,
                width: Width::W2
            }
        );
        assert_eq!(error.to_string(), "weight 1 of row 1 is -2, which is no value of w2");
        let error = push(&[0, 1, 1], 2).unwrap_err();
        assert_eq!(error, PackError::Rows { codes: 3, k: 2 });
        assert_eq!(error.to_string(), "3 weights are not whole rows of 2");
        assert_eq!(push(&[], 0), Err(PackError::Rows { codes: 0, k: 0 }));
    }
    assert_eq!(section.as_bytes(), [9, 0, 0, 0]);
}

#[test]
fn pushes_are_aligned() {
    let mut section = Section::new();
    assert_eq!(section.push_i32s(&[-2]), 0);
    assert_eq!(section.push_rows(Order::Channels, Width::W8, &[5], 1), Ok(16));
    assert_eq!(section.push_rows(Order::Blocks, Width::W1, &[1], 1), Ok(32));
    assert_eq!(section.push_i32s(&[]), 40);
    assert_eq!(section.push_table(&[[0; 256]]), 48);
    assert_eq!(
        section.as_bytes()[..20],
        [0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]
    );
}

fn packing_and_codes() -> impl Strategy<Value = (Packing, Vec<i8>)> {
    let packing = (
        prop::sample::select(&ORDERS[..]),
        prop::sample::select(&Width::ALL[..]),
        1usize..10,
        1usize..70,
    )
        .prop_map(|(order, width, rows, k)| Packing { order, width, rows, k });
    packing.prop_flat_map(|packing| {
        let codes = prop::sample::select(values(packing.width));
        (Just(packing), prop::collection::vec(codes, packing.rows * packing.k))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decode_undoes_packing((packing, codes) in packing_and_codes()) {
        let packed = pack(&packing, &codes);
        prop_assert_eq!(packed.len(), packing.bytes());
        let decoded: Vec<i8> = (0..codes.len()).map(|index| packing.decode(&packed, index / packing.k, index % packing.k)).collect();
        prop_assert_eq!(decoded, codes);
    }

    /// Padding included.
    #[test]
    fn packed_bytes_are_those_of_the_tables((packing, codes) in packing_and_codes()) {
        prop_assert_eq!(pack(&packing, &codes), pack_by_table(&packing, &codes));
    }
}
