//! Average pooling.

use adcorda_formats::Window;

use super::{Input, Output, Span};
use crate::requantize::Requantizer;

/// Channels summed at a time, in registers.
const CHANNELS: usize = 8;

/// Mean of each window; a padded position counts as real zero. Global average pooling is a window as large as the input.
///
/// `y = requantize(sum(x - zero_point_in))`, where the multiplier holds the divisor too.
///
/// # Shapes
/// `x: [h, w, c]` | `y: [oh, ow, c]`
pub(crate) fn avg_pool(x: Input<'_>, window: &Window, multiplier: i32, shift: u8, y: Output<'_>) {
    let (height, width) = (usize::from(x.shape.height), usize::from(x.shape.width));
    let channels = usize::from(x.shape.channels).max(1);
    let y_width = usize::from(y.shape.width).max(1);
    let zero_point = i32::from(x.shape.zero_point);
    let rule = Requantizer {
        multiplier,
        shift,
        zero_point: y.shape.zero_point,
        min: i8::MIN,
        max: i8::MAX,
    };

    for (index, codes) in y.codes.chunks_exact_mut(channels).enumerate() {
        let (oy, ox) = (index / y_width, index % y_width);
        let rows = Span::new(oy, window.stride_height, window.pad_top, window.kernel_height, height);
        let columns = Span::new(ox, window.stride_width, window.pad_left, window.kernel_width, width);
        for (group, codes) in codes.chunks_mut(CHANNELS).enumerate() {
            let mut sums = [0i32; CHANNELS];
            for row in rows.start..rows.start + rows.len {
                let x_row = &x.codes[(row * width + columns.start) * channels..][..columns.len * channels];
                for pixel in x_row.chunks_exact(channels) {
                    for (sum, &x) in sums.iter_mut().zip(&pixel[group * CHANNELS..]) {
                        *sum = sum.wrapping_add(i32::from(x as i8));
                    }
                }
            }
            let zeros = zero_point.wrapping_mul((rows.len * columns.len) as i32);
            for (code, sum) in codes.iter_mut().zip(sums) {
                *code = rule.apply(sum.wrapping_sub(zeros)) as u8;
            }
        }
    }
}
