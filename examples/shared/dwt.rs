//! What the profile counts: cycles of the core, by the counter in its debug unit (DWT).

use cortex_m::Peripherals;
use cortex_m::peripheral::DWT;

use crate::board::CLOCK_HZ;

/// What [`ticks`] counts.
pub const TICK: &str = "cycles";

/// How many of them a second has.
pub const TICKS_PER_SECOND: u32 = CLOCK_HZ;

/// Starts the counter.
pub fn start(core: &mut Peripherals) {
    core.DCB.enable_trace();
    // A Cortex-M7 locks its counters; other cores ignore the key.
    DWT::unlock();
    core.DWT.enable_cycle_counter();
}

/// A counter that wraps at 2^32.
pub fn ticks() -> u32 {
    DWT::cycle_count()
}
