//! Helium (MVE, integer): Cortex-M55 and M85.
#![allow(unsafe_code)]

mod conv2d;
mod depthwise;

use core::arch::asm;

pub(super) use conv2d::conv2d;
pub(super) use depthwise::depthwise_conv2d;

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
