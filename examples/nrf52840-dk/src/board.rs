//! Nordic nRF52840-DK: Cortex-M4 at 64 MHz, instruction cache on.

use embassy_nrf::config::HfclkSource;
use embassy_nrf::gpio::{Level, Output, OutputDrive};
use embassy_nrf::pac;

use crate::counter;

/// The core's clock.
pub const CLOCK_HZ: u32 = 64_000_000;

/// What the firmware has of the board.
pub struct Board {
    /// LED1 (P0.13), which a low level lights.
    led: Output<'static>,
}

impl Board {
    /// Clock, cache, cycle counter, pin. Once.
    pub fn start() -> Self {
        let mut config = embassy_nrf::config::Config::default();
        config.hfclk_source = HfclkSource::ExternalXtal;
        let peripherals = embassy_nrf::init(config);
        // Off after reset; every fetch from flash, weights included, would wait.
        pac::NVMC.icachecnf().write(|register| register.set_cacheen(true));
        let Some(mut core) = cortex_m::Peripherals::take() else {
            defmt::panic!("the board starts twice")
        };
        counter::start(&mut core);
        Board {
            led: Output::new(peripherals.P0_13, Level::High, OutputDrive::Standard),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(!lit));
    }
}
