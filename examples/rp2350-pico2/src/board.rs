//! Raspberry Pi Pico 2: Cortex-M33 at 150 MHz (one core of two), code and weights through the 16 KB cache of the external flash.

use cortex_m::peripheral::DWT;
use embassy_rp::gpio::{Level, Output};

/// The core's clock.
pub const CLOCK_HZ: u32 = 150_000_000;

/// What [`ticks`] counts.
pub const TICK: &str = "cycles";

/// How many of them a second has.
pub const TICKS_PER_SECOND: u32 = CLOCK_HZ;

/// What the firmware has of the board.
pub struct Board {
    /// The LED (GPIO 25).
    led: Output<'static>,
}

impl Board {
    /// Clock, cycle counter, pin. Once.
    pub fn start() -> Self {
        // The 12 MHz crystal, and 150 MHz from it.
        let peripherals = embassy_rp::init(embassy_rp::config::Config::default());
        let Some(mut core) = cortex_m::Peripherals::take() else {
            defmt::panic!("the board starts twice")
        };
        core.DCB.enable_trace();
        core.DWT.enable_cycle_counter();
        Board {
            led: Output::new(peripherals.PIN_25, Level::Low),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(lit));
    }
}

/// A counter that wraps at 2^32.
pub fn ticks() -> u32 {
    DWT::cycle_count()
}
