//! Helium (MVE, integer): Cortex-M55 and M85.
#![allow(unsafe_code)]

mod conv2d;
mod depthwise;

use core::arch::asm;
use core::ops::Range;

pub(super) use conv2d::conv2d;
pub(super) use depthwise::depthwise_conv2d;

use crate::kernels::Convolution;

/// Pixels of an output row whose windows reach over neither side of the input.
fn inside(layer: &Convolution<'_>) -> Range<usize> {
    let (pad, stride) = (usize::from(layer.window.pad_left), usize::from(layer.window.stride_width));
    let last = (layer.x.width + pad).checked_sub(layer.window.kernel_width.into());
    let end = last.map_or(0, |last| last / stride + 1).min(layer.y.width);
    pad.div_ceil(stride).min(end)..end
}

/// Sets every byte.
#[inline]
fn fill(out: &mut [u8], code: i8) {
    // SAFETY: the loop writes exactly as many bytes as the slice has; the last vector is cut off by predication.
    unsafe {
        asm!(
            "vdup.8 q0, {code}",
            "wlstp.8 lr, {n}, 3f",
            "2:",
            "vstrb.8 q0, [{out}], #16",
            "letp lr, 2b",
            "3:",
            code = in(reg) i32::from(code),
            n = in(reg) out.len(),
            out = inout(reg) out.as_mut_ptr() => _,
            out("lr") _, out("d0") _, out("d1") _,
            options(nostack),
        );
    }
}
