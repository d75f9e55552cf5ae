//! Raspberry Pi Pico 2: Cortex-M33 at 150 MHz (one core of two), code and weights through the 16 KB cache of the external flash.

use embassy_rp::gpio::{Level, Output};

use crate::counter;

/// The core's clock.
pub const CLOCK_HZ: u32 = 150_000_000;

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
        counter::start(&mut core);
        Board {
            led: Output::new(peripherals.PIN_25, Level::Low),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(lit));
    }
}
