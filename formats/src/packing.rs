//! How codes lie in packed rows: the reference definition, one code at a time.
//!
//! Low bits first: code `i` of a row of `b`-bit codes takes the bits `i * b % 8` and up of byte `i * b / 8`. No code
//! straddles two bytes. Unpackers elsewhere are faster and must agree with this.

use crate::graph::Width;

impl Width {
    /// Smallest code: -1, -1, -8, -127.
    pub const fn min_code(self) -> i8 {
        match self {
            Width::W1 | Width::W2 => -1,
            Width::W4 => -8,
            Width::W8 => -127,
        }
    }

    /// Largest code: 1, 1, 7, 127.
    pub const fn max_code(self) -> i8 {
        match self {
            Width::W1 | Width::W2 => 1,
            Width::W4 => 7,
            Width::W8 => 127,
        }
    }

    /// Code `i` of a packed row.
    ///
    /// For rows of a parsed model the result is always one of the width's values; an invalid code reads as its two's
    /// complement (-2 for W2, -128 for W8).
    ///
    /// # Panics
    /// Where `i` lies past the end of `row`.
    #[inline]
    pub const fn decode(self, row: &[u8], i: usize) -> i8 {
        match self {
            Width::W1 => (row[i / 8] >> (i % 8) & 1) as i8 * 2 - 1,
            Width::W2 => (row[i / 4] << (6 - i % 4 * 2)) as i8 >> 6,
            Width::W4 => (row[i / 2] << (4 - i % 2 * 4)) as i8 >> 4,
            Width::W8 => row[i] as i8,
        }
    }

    /// The bits of one code, in the low bits of the byte; `None` where this width has no such code (0 in W1, for one).
    pub const fn encode(self, code: i8) -> Option<u8> {
        if code < self.min_code() || code > self.max_code() {
            return None;
        }
        match self {
            Width::W1 if code == 0 => None,
            Width::W1 => Some((code > 0) as u8),
            Width::W2 => Some(code as u8 & 0b11),
            Width::W4 => Some(code as u8 & 0b1111),
            Width::W8 => Some(code as u8),
        }
    }
}
