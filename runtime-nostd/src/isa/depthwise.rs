//! How fast kernels lay out a depthwise convolution in its scratch space: plain arithmetic, for device and host alike.

use crate::kernels::Convolution;

/// Channels computed at a time: those of one block of packed weights.
pub(super) const CHANNELS: usize = 4;

/// Words that a [`Sweep::Dot`] takes at a time.
pub(super) const DOT_WORDS: usize = 4;

/// Numbers of words that follow from a layer's shape.
///
/// Each of [`CHANNELS`] channels has a *plane*: the rows under a row of windows, padding included, as words of two 16-bit halves
/// that hold a column's codes in two rows, one above the other.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(adcorda_isa = "dsp"),
    expect(dead_code, reason = "only the sum of them all matters to a report")
)]
pub(super) struct Layout {
    pub(super) sweep: Sweep,
    /// Pairs of rows under a window: words of a column.
    pub(super) pairs: usize,
    /// Columns under a row of windows.
    pub(super) columns: usize,
    /// Words of a plane, column by column.
    pub(super) plane: usize,
    /// All planes, and after them what a dot product may read too much.
    pub(super) planes: usize,
    /// Weights of all channels.
    pub(super) weights: usize,
    /// Taps of the kernel, of four bytes.
    pub(super) taps: usize,
    /// Accumulators of a row of outputs.
    pub(super) sums: usize,
}

impl Layout {
    pub(super) fn new(layer: &Convolution<'_>) -> Self {
        let (window, y_width) = (&layer.window, layer.y.width);
        let (kernel_width, stride) = (usize::from(window.kernel_width), usize::from(window.stride_width));
        let sweep = match (window.kernel_height, window.kernel_width, window.stride_width) {
            (3, 3, 1) => Sweep::Stride1,
            (3, 3, 2) => Sweep::Stride2,
            _ => Sweep::Dot,
        };
        let pairs = usize::from(window.kernel_height).div_ceil(2);
        let columns = y_width.saturating_sub(1) * stride + kernel_width;
        let plane = columns * pairs;
        let weights = match sweep {
            // Two pairs of rows in two orders.
            Sweep::Stride1 | Sweep::Stride2 => 2 * 2 * kernel_width,
            Sweep::Dot => (kernel_width * pairs).next_multiple_of(DOT_WORDS),
        };
        Layout {
            sweep,
            pairs,
            columns,
            plane,
            planes: CHANNELS * plane + DOT_WORDS - 1,
            weights: CHANNELS * weights,
            taps: window.positions(),
            sums: CHANNELS * y_width,
        }
    }

    /// Bytes of scratch space that all of it takes.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.planes + self.weights + self.taps + self.sums)
    }
}

/// How a row of windows is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    /// 3x3, one column a step; each is read once for all windows that it is part of.
    Stride1,
    /// 3x3, two columns a step; likewise.
    Stride2,
    /// Any kernel, window by window.
    Dot,
}
