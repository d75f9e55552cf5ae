use adcorda_formats::{PackError, Section, Width};
use proptest::prelude::*;

/// Every value that a width has.
fn values(width: Width) -> Vec<i8> {
    match width {
        Width::W1 => vec![-1, 1],
        Width::W2 => vec![-1, 0, 1],
        Width::W4 => (-8..=7).collect(),
        Width::W8 => (-127..=127).collect(),
    }
}

#[test]
fn encode_accepts_exactly_the_values_of_a_width() {
    for width in Width::ALL {
        for code in i8::MIN..=i8::MAX {
            assert_eq!(
                width.encode(code).is_some(),
                values(width).contains(&code),
                "{width:?} {code}"
            );
        }
        let largest = values(width).iter().map(|code| i32::from(*code).abs()).max().unwrap();
        assert_eq!(width.max_magnitude(), largest);
    }
}

#[test]
fn packed_bytes_are_low_bits_first() {
    let pack = |width, codes: &[i8]| {
        let mut section = Section::new();
        section.push_rows(width, codes, codes.len()).unwrap();
        section.into_bytes()
    };
    assert_eq!(pack(Width::W1, &[1, -1, -1, 1, 1, 1, 1, 1, 1, -1]), [0b1111_1001, 0b01, 0, 0]);
    assert_eq!(pack(Width::W2, &[1, 0, -1, 1, -1]), [0b01_11_00_01, 0b11, 0, 0]);
    assert_eq!(pack(Width::W4, &[1, -8, 7]), [0x81, 0x07, 0, 0]);
    assert_eq!(pack(Width::W8, &[-127, 127, -1]), [0x81, 0x7f, 0xff, 0]);
}

#[test]
fn a_row_takes_whole_words() {
    for (width, in_a_word) in [(Width::W1, 32), (Width::W2, 16), (Width::W4, 8), (Width::W8, 4)] {
        assert_eq!(width.row_bytes(1), 4);
        assert_eq!(width.row_bytes(in_a_word), 4);
        assert_eq!(width.row_bytes(in_a_word + 1), 8);
    }
}

#[test]
fn codes_out_of_range_are_named_and_nothing_is_written() {
    let mut section = Section::new();
    section.push_u8s(&[9]);
    let error = section.push_rows(Width::W2, &[0, 1, 1, -2], 2).unwrap_err();
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
    assert_eq!(
        section.push_rows(Width::W2, &[0, 1, 1], 2),
        Err(PackError::Rows { codes: 3, k: 2 })
    );
    assert_eq!(section.push_rows(Width::W2, &[], 0), Err(PackError::Rows { codes: 0, k: 0 }));
    assert_eq!(section.as_bytes(), [9]);
}

#[test]
fn pushes_are_aligned() {
    let mut section = Section::new();
    assert_eq!(section.push_u8s(&[1]), 0);
    assert_eq!(section.push_u8s(&[2]), 1);
    assert_eq!(section.push_i32s(&[-2]), 4);
    assert_eq!(section.push_rows(Width::W8, &[5], 1), Ok(16));
    assert_eq!(section.push_table(&[[0; 256]]), 32);
    assert_eq!(
        section.as_bytes()[..20],
        [1, 2, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]
    );
}

fn width_and_rows() -> impl Strategy<Value = (Width, usize, Vec<i8>)> {
    (prop::sample::select(Width::ALL.to_vec()), 1usize..70, 1usize..5).prop_flat_map(|(width, k, rows)| {
        (
            Just(width),
            Just(k),
            prop::collection::vec(prop::sample::select(values(width)), k * rows),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decode_undoes_packing((width, k, codes) in width_and_rows()) {
        let mut section = Section::new();
        section.push_rows(width, &codes, k).unwrap();
        let rows: Vec<&[u8]> = section.as_bytes().chunks_exact(width.row_bytes(k)).collect();
        let decoded: Vec<i8> = rows.iter().flat_map(|row| (0..k).map(|i| width.decode(row, i))).collect();
        prop_assert_eq!(decoded, codes);
    }

    #[test]
    fn rows_are_padded_with_zero_bits((width, k, codes) in width_and_rows()) {
        let mut section = Section::new();
        section.push_rows(width, &codes, k).unwrap();
        for row in section.as_bytes().chunks_exact(width.row_bytes(k)) {
            for bit in k * width.bits() as usize..row.len() * 8 {
                prop_assert_eq!(row[bit / 8] >> (bit % 8) & 1, 0);
            }
        }
    }
}
