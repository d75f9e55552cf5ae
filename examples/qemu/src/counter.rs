//! How many instructions ran: the board's free-running counter, driven by QEMU's instruction count.
//!
//! With `-icount shift=7` QEMU lets 128 ns pass per instruction, and the FPGAIO counter ticks at the board's clock: 3.2 ticks an
//! instruction at 25 MHz, 2.56 at 20. Both ends of a difference are rounded down to whole ticks, so `n` instructions
//! at `r` ticks each show as more than `r n - 1` and less than `r n + 1` ticks, and, `r` being above 2, division by `r` with
//! rounding gives `n` exactly. (At the usual shift of 6 a count could be off by one.) The 32 bits wrap after a thousand million
//! instructions, which bounds one layer.
//!
//! Instructions are not cycles: QEMU has no model of pipelines, wait states or caches.

use core::hint::black_box;
use core::sync::atomic::{Ordering, compiler_fence};

/// FPGAIO `COUNTER`, at its secure address where there is a choice.
const COUNTER: *const u32 = if cfg!(board = "mps2-an505") {
    0x5030_2018
} else if cfg!(board = "mps3-an547") {
    0x5930_2018
} else {
    0x4002_8018
} as *const u32;

/// The clock that it counts, in MHz.
const MEGAHERTZ: u64 = if cfg!(any(board = "mps2-an505", board = "mps3-an547")) {
    20
} else {
    25
};

/// What `-icount shift=7` makes of an instruction.
const NANOSECONDS: u64 = 128;

/// The counter's ticks now. Never inlined, so that each reading costs the same instructions.
#[inline(never)]
pub fn ticks() -> u32 {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: on the boards that this firmware is linked for, the address is a readable, aligned device register; reading it
    // changes nothing.
    let ticks = unsafe { COUNTER.read_volatile() };
    compiler_fence(Ordering::SeqCst);
    ticks
}

/// Instructions from one reading of [`ticks`] to a later one, those of the reading itself included.
pub fn instructions(begin: u32, end: u32) -> u32 {
    let ticks = u64::from(end.wrapping_sub(begin));
    let ticks_of_1000 = MEGAHERTZ * NANOSECONDS;
    ((ticks * 1000 + ticks_of_1000 / 2) / ticks_of_1000) as u32
}

/// Whether the counter counts instructions, each one, now: so that a QEMU without `-icount shift=7` shows no wrong numbers.
pub fn is_exact() -> bool {
    let empty_begin = ticks();
    let empty_end = ticks();
    let begin = ticks();
    thousand();
    let end = ticks();
    let empty = instructions(black_box(empty_begin), black_box(empty_end));
    instructions(begin, end).wrapping_sub(empty) == 1000
}

/// A thousand instructions, call and return among them.
#[unsafe(naked)]
extern "C" fn thousand() {
    core::arch::naked_asm!(".rept 998", "nop", ".endr", "bx lr")
}
