//! Processor cycles of an inference and of its layers, by the counter that Cortex-M3 and later cores have in their debug unit (DWT).
//! `docs/MEASURING.md` shows this file and says what to mind. QEMU's counter stands still: [`Cycles::start`] finds that out.

use adcorda_runtime::formats::Layer;
use adcorda_runtime::{Image, Observer, Session};
use cortex_m::interrupt;
use cortex_m::peripheral::{DCB, DWT};

/// Cycles of each layer of the last inference: pass it to [`Session::run`].
pub struct Cycles<const LAYERS: usize> {
    /// In the order of the model's layers, each modulo 2^32.
    pub layers: [u32; LAYERS],
    begin: u32,
}

impl<const LAYERS: usize> Cycles<LAYERS> {
    /// Starts the counter; `None` where the core has none, or it stands still.
    pub fn start(dcb: &mut DCB, dwt: &mut DWT) -> Option<Self> {
        dcb.enable_trace();
        // A Cortex-M7 locks its debug unit; other cores ignore the key.
        DWT::unlock();
        dwt.enable_cycle_counter();
        let begin = DWT::cycle_count();
        cortex_m::asm::delay(100);
        (DWT::has_cycle_counter() && DWT::cycle_count() != begin).then_some(Self {
            layers: [0; LAYERS],
            begin,
        })
    }
}

impl<const LAYERS: usize> Observer for Cycles<LAYERS> {
    fn layer_begin(&mut self, _index: usize, _layer: &Layer<'_>) {
        self.begin = DWT::cycle_count();
    }

    fn layer_end(&mut self, index: usize, _layer: &Layer<'_>, _output: &[u8]) {
        let cycles = DWT::cycle_count().wrapping_sub(self.begin);
        if let Some(layer) = self.layers.get_mut(index) {
            *layer = cycles;
        }
    }
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
