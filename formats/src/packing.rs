//! How codes lie in packed weights: the reference definition, one code at a time.
//!
//! The order is that in which register-blocked kernels consume weights, so that a device multiplies straight from flash and
//! never repacks: a word of packed weights is masked, perhaps shifted, and is then the operand of a multiply-accumulate.
//! Unpackers and kernels elsewhere are faster and must agree with this. `FORMAT.md` is normative.

use crate::graph::Width;

/// Codes that the rows of a block are padded to a multiple of.
const CODES: usize = 16;

/// In which order the codes of a layer's weights follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Rows in blocks of two (W8, W4) or four (W2, W1), a few codes of each row in turn: dot products over `k`.
    Blocks,
    /// Four channels in turn at each tap: depthwise convolution.
    Channels,
}

/// The packed weights of one layer.
///
/// Positions that no code takes hold zero bits: codes from `k` on up to [`Packing::padded_k`], and rows that fill up the last
/// block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    /// Order of the codes.
    pub order: Order,
    /// Bits a code.
    pub width: Width,
    /// Rows: output channels.
    pub rows: usize,
    /// Codes in a row.
    pub k: usize,
}

impl Packing {
    /// Rows of a block.
    pub const fn block_rows(&self) -> usize {
        match (self.order, self.width) {
            (Order::Blocks, Width::W8 | Width::W4) => 2,
            (Order::Blocks, Width::W2 | Width::W1) | (Order::Channels, _) => 4,
        }
    }

    /// Blocks, the last one perhaps filled up with rows of zero bits.
    pub const fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block_rows())
    }

    /// Codes that a row of a block has room for: `k` rounded up to a multiple of 16, or `k` itself in [`Order::Channels`].
    pub const fn padded_k(&self) -> usize {
        match self.order {
            Order::Blocks => self.k.next_multiple_of(CODES),
            Order::Channels => self.k,
        }
    }

    /// Bytes of a block, a multiple of 4.
    pub const fn block_bytes(&self) -> usize {
        (self.block_rows() * self.padded_k() * self.width.bits() as usize).div_ceil(32) * 4
    }

    /// Bytes of all blocks. They follow each other without gaps.
    pub const fn bytes(&self) -> usize {
        self.blocks() * self.block_bytes()
    }

    /// Where code `i` of row `row` lies: its byte, and in it its lowest bit. Rows and codes of the padding have a place, too.
    #[inline]
    pub const fn position(&self, row: usize, i: usize) -> (usize, usize) {
        let rows = self.block_rows();
        let (start, row) = (row / rows * self.block_bytes(), row % rows);
        // Of four codes, which of a pair, and which pair; of four rows likewise: the halves of a SIMD operand hold two codes, and
        // a half in turn two rows, 14 bits apart.
        let (i0, i1) = (i % 2, i / 2 % 2);
        let (row0, row1) = (row % 2, row / 2);
        let bit = match (self.order, self.width) {
            (Order::Channels, width) => (4 * i + row) * width.bits() as usize,
            (Order::Blocks, Width::W8) => 64 * (i / 4) + 32 * row + 8 * (i % 4),
            (Order::Blocks, Width::W4) => 32 * (i / 4) + 16 * i1 + 8 * row + 4 * i0,
            (Order::Blocks, Width::W2) => 32 * (i / 4) + (16 * i1 + 14 * row0 + 8 * i0 + 4 * row1) % 32,
            (Order::Blocks, Width::W1) => 32 * (i / 8) + (16 * i1 + 14 * row0 + 8 * i0 + 4 * (i / 4 % 2) + row1) % 32,
        };
        (start + bit / 8, bit % 8)
    }

    /// Code `i` of row `row`. Of a parsed model it is always one of the width's values; an invalid code reads as a value just
    /// out of range.
    ///
    /// # Panics
    /// Where `packed` is shorter than [`Packing::bytes`] and ends before the code.
    #[inline]
    pub const fn decode(&self, packed: &[u8], row: usize, i: usize) -> i8 {
        let bits = self.bits(packed, row, i);
        match (self.order, self.width) {
            (_, Width::W1) => bits as i8 * 2 - 1,
            (Order::Blocks, Width::W2) if row.is_multiple_of(2) => bits as i8 - 1,
            (_, Width::W2) => (bits << 6) as i8 >> 6,
            (Order::Blocks, Width::W4) => bits as i8 - 8,
            (Order::Channels, Width::W4) => (bits << 4) as i8 >> 4,
            (_, Width::W8) => bits as i8,
        }
    }

    /// The bits of one code of row `row`, in the low bits of the byte; `None` where the width has no such code (0 in W1, for
    /// one).
    pub const fn encode(&self, row: usize, code: i8) -> Option<u8> {
        let width = self.width;
        if code < width.min_code() || code > width.max_code() {
            return None;
        }
        match (self.order, width) {
            (_, Width::W1) if code == 0 => None,
            (_, Width::W1) => Some((code > 0) as u8),
            (Order::Blocks, Width::W2) if row.is_multiple_of(2) => Some((code + 1) as u8),
            (_, Width::W2) => Some(code as u8 & 0b11),
            (Order::Blocks, Width::W4) => Some((code + 8) as u8),
            (Order::Channels, Width::W4) => Some(code as u8 & 0b1111),
            (_, Width::W8) => Some(code as u8),
        }
    }

    /// The bits at the place of code `i` of row `row`.
    pub(crate) const fn bits(&self, packed: &[u8], row: usize, i: usize) -> u8 {
        let (byte, bit) = self.position(row, i);
        // As wide as a code: the shift of a byte's whole length does not exist for W8.
        (packed[byte] >> bit) & (u8::MAX >> (8 - self.width.bits()))
    }
}

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
}
