//! How deep the stack went: free stack is painted, and what has lost its paint was used.

const PAINT: u32 = 0xC5C5_C5C5;

/// Bytes below the caller's stack pointer that are not painted, for the frame of the function that paints.
const OWN_FRAME: u32 = 64;

unsafe extern "C" {
    /// First word after all statics, by cortex-m-rt's linker script: the stack may grow down to here.
    static mut _stack_end: u32;
}

/// Paints the free stack. `top` is the caller's stack pointer.
#[inline(never)]
pub fn paint(top: u32) {
    let mut word = &raw mut _stack_end;
    while (word as u32) < top - OWN_FRAME {
        // SAFETY: from the end of the statics up to the stack pointer there is RAM that nothing lives in, but for this
        // function's own frame, which is smaller than what is spared: it has no locals in memory, calls nothing, and there are
        // no interrupts, or they are off while this runs.
        unsafe {
            word.write_volatile(PAINT);
            word = word.add(1);
        }
    }
}

/// Bytes of stack below `top` that were written since [`paint`] (at least the 64 that it spares), or `None` where the stack
/// ran into the statics.
#[inline(never)]
pub fn used(top: u32) -> Option<u32> {
    let first = &raw const _stack_end;
    let mut word = first;
    // SAFETY: a word between the end of the statics and a former stack pointer; `paint` wrote it, so it is initialised.
    while (word as u32) < top - OWN_FRAME && unsafe { word.read_volatile() } == PAINT {
        // SAFETY: at most `top - OWN_FRAME`, which is RAM.
        word = unsafe { word.add(1) };
    }
    (word != first).then(|| top - word as u32)
}
