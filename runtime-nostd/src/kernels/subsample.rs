//! The parameter-free shortcut.

use super::{Input, Output};

/// Every `stride`-th row and column, with channels of real zero before and after.
///
/// # Shapes
/// `x: [h, w, c]` | `y: [ceil(h / stride), ceil(w / stride), channels_before + c + channels_after]`
///
/// # Source
/// He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, option A.
pub(crate) fn subsample(x: Input<'_>, stride: u8, channels_before: u16, y: Output<'_>) {
    let (width, channels) = (usize::from(x.shape.width), usize::from(x.shape.channels));
    let (before, stride) = (usize::from(channels_before), usize::from(stride));
    let y_width = usize::from(y.shape.width).max(1);

    for (index, codes) in y.codes.chunks_exact_mut(usize::from(y.shape.channels).max(1)).enumerate() {
        let (iy, ix) = (index / y_width * stride, index % y_width * stride);
        codes.fill(y.shape.zero_point as u8);
        codes[before..][..channels].copy_from_slice(&x.codes[(iy * width + ix) * channels..][..channels]);
    }
}
