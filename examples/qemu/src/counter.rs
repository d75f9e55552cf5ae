//! How many instructions ran: the board's free-running counter, driven by QEMU's instruction count.
//!
//! With `-icount shift=7` QEMU lets 128 ns pass per instruction, and the FPGAIO counter of the MPS2 boards ticks at 25 MHz: 3.2
//! ticks an instruction. Both ends of a difference are rounded down to whole ticks, so `n` instructions show as more than
//! `3.2 n - 1` and less than `3.2 n + 1` ticks, and division by 3.2 with rounding gives `n` exactly. (At the usual shift of 6 it
//! would be 1.6 ticks, and a count could be off by one.) The 32 bits wrap after 1.3 G instructions, which bounds one layer.
//!
//! Instructions are not cycles: QEMU has no model of pipelines, wait states or caches.

use core::hint::black_box;
use core::sync::atomic::{Ordering, compiler_fence};

/// FPGAIO `COUNTER`, at the same address on mps2-an385 and mps2-an386.
const COUNTER: *const u32 = 0x4002_8018 as *const u32;

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
    ((ticks * 5 + 8) / 16) as u32
}

/// Whether the counter counts instructions, each one, now: so that a QEMU without `-icount shift=7` shows no wrong numbers.
pub fn is_exact() -> bool {
    const NOPS: u32 = 1000;
    let empty_begin = ticks();
    let empty_end = ticks();
    let begin = ticks();
    // SAFETY: a thousand instructions that do nothing.
    unsafe { core::arch::asm!(".rept 1000", "nop", ".endr", options(nomem, nostack, preserves_flags)) };
    let end = ticks();
    let empty = instructions(black_box(empty_begin), black_box(empty_end));
    instructions(begin, end).wrapping_sub(empty) == NOPS
}
