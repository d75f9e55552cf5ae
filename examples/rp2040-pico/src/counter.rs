//! What the profile counts: microseconds of the chip's timer. A Cortex-M0+ has no cycle counter.

use embassy_rp::pac;

/// What [`ticks`] counts.
pub const TICK: &str = "us";

/// How many of them a second has.
pub const TICKS_PER_SECOND: u32 = 1_000_000;

/// A counter that wraps at 2^32; the HAL has started it.
pub fn ticks() -> u32 {
    pac::TIMER.timerawl().read()
}
