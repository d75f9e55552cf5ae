//! Hosts, which have vectors: the rows of four output channels, widened to 16 bits, meet every pixel at once.
//!
//! The input's zero point is taken from the codes on their way: padding is then nothing at all, and the sums differ from those
//! over codes by `zero_point * sum(w)`, once a channel. Steps in between may wrap; the accumulator itself fits.

mod depthwise;

pub(crate) use self::depthwise::depthwise_conv2d;

use super::path::{self, Isa, Path};
use super::unpack;
use crate::kernels::{Convolution, Epilogue, Span};
use crate::requantize::Requantizer;

/// Output channels computed at a time.
const ROWS: usize = 4;

/// Where a window's runs are shorter than a vector and it has no more codes than this, they are gathered first.
const GATHERED: usize = 128;

/// A convolution or a fully connected layer. Returns whether it is done; if not, nothing is written.
///
/// # Shapes
/// `x: [h, w, c_in]` | `y: [oh, ow, c_out]`; with a residual it holds the other addend before
pub(crate) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    let Epilogue::Codes { rules, residual } = &layer.epilogue else {
        return false;
    };
    if path::blocked(Isa::Portable, layer, scratch.len()) != Path::Blocked {
        return false;
    }
    let (window, packing, channels) = (&layer.window, &layer.weights.packing, layer.x.channels);
    let zero_point = i16::from(layer.x_zero_point);
    let row_codes = packing.k.next_multiple_of(32);
    let Some(weights) = scratch.as_chunks_mut().0.get_mut(..ROWS * row_codes) else {
        return false;
    };
    let gathered = channels % 16 != 0 && row_codes <= GATHERED;
    let kernel_width = usize::from(window.kernel_width);
    let mut column = [0; GATHERED];

    for first in (0..packing.rows).step_by(ROWS) {
        let mut biases = [0; ROWS];
        let mut rule = [rules.rule(0); ROWS];
        weights.fill([0; 2]);
        for (row, codes) in (first..packing.rows).zip(weights.chunks_exact_mut(row_codes)) {
            unpack(packing, layer.weights.packed, row, &mut codes[..packing.k]);
            let total: i32 = codes.iter().map(|&code| i32::from(i16::from_le_bytes(code))).sum();
            let bias = layer.weights.bias.get(row);
            biases[row - first] = bias.wrapping_add(total.wrapping_mul(zero_point.into()));
            rule[row - first] = rules.rule(rules.multiplier.get(row));
        }
        let mut rows = weights.chunks_exact(row_codes);
        let rows: [&[[u8; 2]]; ROWS] = core::array::from_fn(|_| rows.next().unwrap_or_default());

        let mut pixels = y.chunks_exact_mut(layer.y.channels.max(1));
        for oy in 0..layer.y.height {
            let span_y = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, layer.x.height);
            for (ox, pixel) in (0..layer.y.width).zip(&mut pixels) {
                let span_x = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, layer.x.width);
                let mut sums = Sums::new(biases);
                if gathered {
                    column[..row_codes].fill(layer.x_zero_point as u8);
                }
                for i in 0..span_y.len {
                    let run = &x[((span_y.start + i) * layer.x.width + span_x.start) * channels..][..span_x.len * channels];
                    let start = ((span_y.tap + i) * kernel_width + span_x.tap) * channels;
                    if gathered {
                        column[start..start + run.len()].copy_from_slice(run);
                    } else {
                        sums.add(run, rows.map(|row| &row[start..]), zero_point);
                    }
                }
                if gathered {
                    sums.add(&column[..row_codes], rows, zero_point);
                }
                for ((code, sum), rule) in pixel[first..].iter_mut().zip(sums.total()).zip(&rule) {
                    let v = Requantizer::apply(rule, sum);
                    *code = residual.map_or(v, |add| add.apply(v, *code as i8)) as u8;
                }
            }
        }
    }
    true
}

/// Sums of four rows, as they come.
struct Sums {
    vectors: [vector::Sums; ROWS],
    /// What is not in a vector.
    rest: [i32; ROWS],
}

impl Sums {
    #[inline(always)]
    fn new(biases: [i32; ROWS]) -> Self {
        Sums {
            vectors: [vector::zero(); ROWS],
            rest: biases,
        }
    }

    /// Adds `x - zero_point` times each row.
    #[inline(always)]
    fn add(&mut self, x: &[u8], rows: [&[[u8; 2]]; ROWS], zero_point: i16) {
        let (steps, rest) = x.as_chunks::<16>();
        let [a, b, c, d] = rows.map(|row| &row.as_chunks::<16>().0[..steps.len()]);
        for ((((x, a), b), c), d) in steps.iter().zip(a).zip(b).zip(c).zip(d) {
            let x = vector::widen(x, zero_point);
            self.vectors[0] = vector::multiply(self.vectors[0], x, a);
            self.vectors[1] = vector::multiply(self.vectors[1], x, b);
            self.vectors[2] = vector::multiply(self.vectors[2], x, c);
            self.vectors[3] = vector::multiply(self.vectors[3], x, d);
        }
        if !rest.is_empty() {
            for (sum, row) in self.rest.iter_mut().zip(rows) {
                for (&x, &w) in rest.iter().zip(&row[x.len() - rest.len()..]) {
                    let product = (i32::from(x as i8) - i32::from(zero_point)) * i32::from(i16::from_le_bytes(w));
                    *sum = sum.wrapping_add(product);
                }
            }
        }
    }

    #[inline(always)]
    fn total(self) -> [i32; ROWS] {
        let mut sums = vector::sums(self.vectors);
        for (sum, rest) in sums.iter_mut().zip(self.rest) {
            *sum = sum.wrapping_add(rest);
        }
        sums
    }
}

/// Sixteen codes at a time. Compilers do not find the sum of products of SSE2 by themselves.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
#[allow(unsafe_code)]
mod vector {
    use core::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_loadu_si128, _mm_madd_epi16, _mm_set1_epi16, _mm_setzero_si128, _mm_srai_epi16,
        _mm_storeu_si128, _mm_sub_epi16, _mm_unpackhi_epi8, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi8,
        _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    };

    pub(super) type Sums = __m128i;

    #[inline(always)]
    pub(super) fn zero() -> Sums {
        // SAFETY: this module is built only where every processor has SSE2; so below.
        unsafe { _mm_setzero_si128() }
    }

    /// `x - zero_point`
    #[inline(always)]
    pub(super) fn widen(x: &[u8; 16], zero_point: i16) -> [__m128i; 2] {
        let x = load(x);
        // SAFETY: as above.
        unsafe {
            let zero_point = _mm_set1_epi16(zero_point);
            let (low, high) = (_mm_unpacklo_epi8(x, x), _mm_unpackhi_epi8(x, x));
            [
                _mm_sub_epi16(_mm_srai_epi16::<8>(low), zero_point),
                _mm_sub_epi16(_mm_srai_epi16::<8>(high), zero_point),
            ]
        }
    }

    /// Four sums, and products added to them.
    #[inline(always)]
    pub(super) fn multiply(sums: Sums, [low, high]: [__m128i; 2], w: &[[u8; 2]; 16]) -> Sums {
        let (w, _) = w.as_flattened().as_chunks();
        let (w_low, w_high) = (load(&w[0]), load(&w[1]));
        // SAFETY: as above.
        unsafe {
            let sums = _mm_add_epi32(sums, _mm_madd_epi16(low, w_low));
            _mm_add_epi32(sums, _mm_madd_epi16(high, w_high))
        }
    }

    /// The sum of each.
    #[inline(always)]
    pub(super) fn sums([a, b, c, d]: [Sums; 4]) -> [i32; 4] {
        let mut sums = [0; 4];
        // SAFETY: as above, and there is room for what is written, at whatever address.
        unsafe {
            let ab = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
            let cd = _mm_add_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
            let abcd = _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
            _mm_storeu_si128(sums.as_mut_ptr().cast(), abcd);
        }
        sums
    }

    #[inline(always)]
    fn load(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: as above, and there are as many bytes as are read, at whatever address.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }
}

/// Sixteen codes at a time.
#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
mod vector {
    pub(super) type Sums = i32;

    pub(super) fn zero() -> Sums {
        0
    }

    /// `x - zero_point`
    #[inline(always)]
    pub(super) fn widen(x: &[u8; 16], zero_point: i16) -> [i16; 16] {
        x.map(|code| i16::from(code as i8) - zero_point)
    }

    #[inline(always)]
    pub(super) fn multiply(sum: Sums, x: [i16; 16], w: &[[u8; 2]; 16]) -> Sums {
        x.iter().zip(w).fold(sum, |sum: i32, (&x, &w)| {
            sum.wrapping_add(i32::from(x) * i32::from(i16::from_le_bytes(w)))
        })
    }

    pub(super) fn sums(sums: [Sums; 4]) -> [i32; 4] {
        sums
    }
}
