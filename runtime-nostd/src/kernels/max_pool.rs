//! Maximum pooling.

use adcorda_formats::Window;

use super::{Input, Output, Span};

/// Largest code in each window; padded positions are left out.
///
/// Padding is narrower than the kernel, so every window holds at least one position of the input.
///
/// # Shapes
/// `x: [h, w, c]` | `y: [oh, ow, c]`
pub(crate) fn max_pool(x: Input<'_>, window: &Window, y: Output<'_>) {
    let (height, width) = (usize::from(x.shape.height), usize::from(x.shape.width));
    let channels = usize::from(x.shape.channels).max(1);
    let y_width = usize::from(y.shape.width).max(1);

    for (index, codes) in y.codes.chunks_exact_mut(channels).enumerate() {
        let (oy, ox) = (index / y_width, index % y_width);
        let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, height);
        let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, width);
        codes.fill(i8::MIN as u8);
        for row in rows.start..rows.start + rows.len {
            let x_row = &x.codes[(row * width + columns.start) * channels..][..columns.len * channels];
            for pixel in x_row.chunks_exact(channels) {
                for (code, &x) in codes.iter_mut().zip(pixel) {
                    *code = (*code as i8).max(x as i8) as u8;
                }
            }
        }
    }
}
