//! Plain Rust: the reference for every other file here, and fast where the compiler vectorizes.
//!
//! The loops run over chunks of constant length. On x86-64 each chunk becomes a handful of vector instructions even with
//! nothing beyond SSE2; on a core without vectors it is an unrolled multiply-accumulate, with neither bounds checks nor
//! 64-bit arithmetic.

use adcorda_formats::Width;

/// Codes handled per step: one 128-bit vector.
const CHUNK: usize = 16;

/// One packed row to one code a byte. Returns the codes: `scratch`, or `packed` itself where nothing is to unpack.
///
/// # Shapes
/// `packed: [row_bytes(k)]`, first code in the lowest bits | `scratch: [k]`, overwritten
#[inline]
pub(crate) fn unpack<'r>(width: Width, packed: &'r [u8], scratch: &'r mut [u8]) -> &'r [u8] {
    match width {
        Width::W1 => unpack_codes::<1, 8>(packed, scratch, |bit| bit.wrapping_mul(2).wrapping_sub(1)),
        Width::W2 => unpack_codes::<2, 4>(packed, scratch, |code| ((code << 6) as i8 >> 6) as u8),
        Width::W4 => unpack_codes::<4, 2>(packed, scratch, |code| ((code << 4) as i8 >> 4) as u8),
        Width::W8 => return packed.get(..scratch.len()).unwrap_or(packed),
    }
    scratch
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

/// Unpacks `PER_BYTE` codes of `BITS` bits from each byte, lowest bits first.
#[inline(always)]
fn unpack_codes<const BITS: usize, const PER_BYTE: usize>(packed: &[u8], codes: &mut [u8], decode: impl Fn(u8) -> u8) {
    let mask = (1u8 << BITS) - 1;
    let (whole, rest) = codes.as_chunks_mut::<PER_BYTE>();
    let last = packed.get(whole.len()).copied().unwrap_or(0);
    for (codes, &byte) in whole.iter_mut().zip(packed) {
        for (position, code) in codes.iter_mut().enumerate() {
            *code = decode((byte >> (position * BITS)) & mask);
        }
    }
    for (position, code) in rest.iter_mut().enumerate() {
        *code = decode((last >> (position * BITS)) & mask);
    }
}

#[inline(always)]
fn dot_codes(x: &[u8], w: &[u8]) -> i32 {
    x.iter().zip(w).fold(0, |acc: i32, (&x, &w)| {
        acc.wrapping_add(i32::from(x as i8) * i32::from(w as i8))
    })
}
