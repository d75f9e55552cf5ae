//! ST NUCLEO-U575ZI-Q: Cortex-M33 at 160 MHz, instruction cache on.

use embassy_stm32::gpio::{Level, Output, Speed};
use embassy_stm32::pac;
use embassy_stm32::rcc::{MSIRange, Pll, PllDiv, PllMul, PllPreDiv, PllSource, Sysclk, VoltageScale};

use crate::counter;

/// The core's clock.
pub const CLOCK_HZ: u32 = 160_000_000;

/// What the firmware has of the board.
pub struct Board {
    /// LD1 (PC7).
    led: Output<'static>,
}

impl Board {
    /// Clock, cache, cycle counter, pin. Once.
    pub fn start() -> Self {
        let mut config = embassy_stm32::Config::default();
        // The internal 48 MHz oscillator, by 3, times 10. Flash wait states are the HAL's business.
        config.rcc.msis = Some(MSIRange::RANGE_48MHZ);
        config.rcc.pll1 = Some(Pll {
            source: PllSource::MSIS,
            prediv: PllPreDiv::DIV3,
            mul: PllMul::MUL10,
            divp: None,
            divq: None,
            divr: Some(PllDiv::DIV1),
        });
        config.rcc.sys = Sysclk::PLL1_R;
        config.rcc.voltage_range = VoltageScale::RANGE1;
        let peripherals = embassy_stm32::init(config);
        // Without it every fetch from flash, weights included, waits.
        pac::ICACHE.cr().modify(|register| register.set_en(true));
        let Some(mut core) = cortex_m::Peripherals::take() else {
            defmt::panic!("the board starts twice")
        };
        counter::start(&mut core);
        Board {
            led: Output::new(peripherals.PC7, Level::Low, Speed::VeryHigh),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(lit));
    }
}
