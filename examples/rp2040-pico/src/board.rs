//! Raspberry Pi Pico: Cortex-M0+ at 125 MHz (one core of two), code and weights through the 16 KB cache of the external flash.

use embassy_rp::gpio::{Level, Output};

/// The core's clock.
pub const CLOCK_HZ: u32 = 125_000_000;

/// What the firmware has of the board.
pub struct Board {
    /// The LED (GPIO 25).
    led: Output<'static>,
}

impl Board {
    /// Clock, pin. Once.
    pub fn start() -> Self {
        // The 12 MHz crystal, and 125 MHz from it.
        let peripherals = embassy_rp::init(embassy_rp::config::Config::default());
        Board {
            led: Output::new(peripherals.PIN_25, Level::Low),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(lit));
    }
}
