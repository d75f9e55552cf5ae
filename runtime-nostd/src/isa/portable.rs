//! Plain Rust: the reference for every other file here, and fast where the compiler vectorizes.
//!
//! Where this is all there is, the loops run over chunks of constant length: on x86-64 each chunk becomes a handful of vector
//! instructions even with nothing beyond SSE2. Elsewhere this is for the few layers that no kernel takes, and small.

use adcorda_formats::{Order, Packing, Width};

use super::Isa;

/// Whether speed is worth code: not where kernels of an instruction set take the usual shapes.
const LARGE: bool = matches!(Isa::CURRENT, Isa::Portable);

/// Whether the last layer, of 8 bits in most networks, comes here.
const GENERIC_LOGITS: bool = matches!(Isa::CURRENT, Isa::Mve);

/// Codes handled per step: one 128-bit vector.
const CHUNK: usize = if LARGE { 16 } else { 1 };

/// One row of packed weights, to codes of one or two bytes.
///
/// # Shapes
/// `packed`: at least [`Packing::bytes`] | `codes: [k]`, overwritten
#[inline(never)]
pub(crate) fn unpack<C: Code>(packing: &Packing, packed: &[u8], row: usize, codes: &mut [C]) {
    let rows = packing.block_rows();
    let block = packed.get(row / rows * packing.block_bytes()..).unwrap_or_default();
    let row = row % rows;
    match (packing.order, packing.width) {
        (Order::Blocks, Width::W8) if LARGE || GENERIC_LOGITS => {
            let pairs = block.as_chunks::<8>().0.iter();
            unpack_words(
                pairs.map(|pair| [pair[4 * row], pair[4 * row + 1], pair[4 * row + 2], pair[4 * row + 3]]),
                codes,
            );
        }
        (Order::Blocks, Width::W4) if LARGE => {
            let bytes = |word: u32| [word, word >> 4, word >> 16, word >> 20].map(|bits| (bits as u8 & 0xF).wrapping_sub(8));
            unpack_words(words(block).map(|word| bytes(word >> (8 * row))), codes);
        }
        // Rotated so that the row's codes are the lowest bits of the bytes, in order.
        (Order::Blocks, Width::W2) if LARGE => {
            let (first, rotation) = (row.is_multiple_of(2), lane(row, 4));
            let code = |bits: u8| match first {
                true => (bits & 0b11).wrapping_sub(1),
                false => ((bits << 6) as i8 >> 6) as u8,
            };
            unpack_words(
                words(block).map(|word| word.rotate_right(rotation).to_le_bytes().map(code)),
                codes,
            );
        }
        (Order::Blocks, Width::W1) if LARGE => {
            let rotation = lane(row, 1);
            let code = |bits: u8| (bits & 1).wrapping_mul(2).wrapping_sub(1);
            unpack_words(
                words(block).map(|word| word.rotate_right(rotation)).map(|word| {
                    let [a, b, c, d] = word.to_le_bytes();
                    [a, b, c, d, a >> 4, b >> 4, c >> 4, d >> 4].map(code)
                }),
                codes,
            );
        }
        (Order::Blocks | Order::Channels, _) => {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = C::new(packing.decode(block, row, i) as u8);
            }
        }
    }
}

/// An unpacked code.
pub(crate) trait Code: Copy {
    fn new(code: u8) -> Self;
}

impl Code for u8 {
    fn new(code: u8) -> Self {
        code
    }
}

/// A little-endian `i16`.
impl Code for [u8; 2] {
    fn new(code: u8) -> Self {
        i16::from(code as i8).to_le_bytes()
    }
}

/// Sum of `x * w` over two slices of one length. Wraps, as every accumulator is proven to fit by the time it is complete.
#[inline]
pub(crate) fn dot(x: &[u8], w: &[u8]) -> i32 {
    let (x_chunks, x_rest) = x.as_chunks::<CHUNK>();
    let (w_chunks, w_rest) = w.as_chunks::<CHUNK>();
    let chunks = x_chunks
        .iter()
        .zip(w_chunks)
        .fold(0, |acc: i32, (x, w)| acc.wrapping_add(dot_codes(x, w)));
    chunks.wrapping_add(dot_codes(x_rest, w_rest))
}

/// Sum of weight codes.
#[inline]
pub(crate) fn sum(w: &[u8]) -> i32 {
    w.iter().fold(0, |acc: i32, &w| acc.wrapping_add(i32::from(w as i8)))
}

fn words(block: &[u8]) -> impl Iterator<Item = u32> {
    block.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word))
}

/// Where a row's codes begin in the words of a block of four rows.
fn lane(row: usize, per_pair: usize) -> u32 {
    (14 * (row % 2) + per_pair * (row / 2)) as u32
}

/// Writes `N` codes a step; the last step may be cut short.
#[inline(always)]
fn unpack_words<C: Code, const N: usize>(mut steps: impl Iterator<Item = [u8; N]>, codes: &mut [C]) {
    let (whole, rest) = codes.as_chunks_mut::<N>();
    for (codes, step) in whole.iter_mut().zip(&mut steps) {
        *codes = step.map(C::new);
    }
    for (code, step) in rest.iter_mut().zip(steps.next().into_iter().flatten()) {
        *code = C::new(step);
    }
}

#[inline(always)]
fn dot_codes(x: &[u8], w: &[u8]) -> i32 {
    x.iter().zip(w).fold(0, |acc: i32, (&x, &w)| {
        acc.wrapping_add(i32::from(x as i8) * i32::from(w as i8))
    })
}
