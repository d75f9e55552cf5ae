//! Processor cycles of an inference, by the counter that Cortex-M3 and later cores have in their debug unit (DWT).
//! `docs/MEASURING.md` shows this file and says what to mind. QEMU's counter stands still: [`start`] finds that out.

use adcorda_runtime::{Image, Session};
use cortex_m::interrupt;
use cortex_m::peripheral::{DCB, DWT};

/// Starts the counter; `false` where the core has none, or it stands still.
pub fn start(dcb: &mut DCB, dwt: &mut DWT) -> bool {
    dcb.enable_trace();
    // A Cortex-M7 locks its debug unit; other cores ignore the key.
    DWT::unlock();
    dwt.enable_cycle_counter();
    let begin = DWT::cycle_count();
    cortex_m::asm::delay(100);
    DWT::has_cycle_counter() && DWT::cycle_count() != begin
}

/// Cycles of one whole inference, unobserved and with interrupts off: least, median and most of as many as `runs` has room for.
pub fn inference(session: &mut Session<'_>, image: Image<'_>, runs: &mut [u32]) -> Option<[u32; 3]> {
    for cycles in runs.iter_mut() {
        *cycles = interrupt::free(|_| {
            let begin = DWT::cycle_count();
            session.run(image, &mut ());
            DWT::cycle_count().wrapping_sub(begin)
        });
    }
    runs.sort_unstable();
    Some([*runs.first()?, *runs.get(runs.len() / 2)?, *runs.last()?])
}
