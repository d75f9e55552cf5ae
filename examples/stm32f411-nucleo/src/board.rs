//! ST NUCLEO-F411RE: Cortex-M4 at 100 MHz, prefetch and both caches of its flash on.

use embassy_stm32::gpio::{Level, Output, Speed};
use embassy_stm32::pac;
use embassy_stm32::rcc::{APBPrescaler, Pll, PllMul, PllPDiv, PllPreDiv, PllSource, Sysclk};

use crate::counter;

/// The core's clock.
pub const CLOCK_HZ: u32 = 100_000_000;

/// What the firmware has of the board.
pub struct Board {
    /// LD2, which is also D13 (PA5) of the Arduino header.
    led: Output<'static>,
}

impl Board {
    /// Clock, caches, cycle counter, pin. Once.
    pub fn start() -> Self {
        let mut config = embassy_stm32::Config::default();
        // The internal 16 MHz oscillator, by 8, times 100, by 2. Flash wait states are the HAL's business.
        config.rcc.hsi = true;
        config.rcc.pll_src = PllSource::HSI;
        config.rcc.pll = Some(Pll {
            prediv: PllPreDiv::DIV8,
            mul: PllMul::MUL100,
            divp: Some(PllPDiv::DIV2),
            divq: None,
            divr: None,
        });
        config.rcc.apb1_pre = APBPrescaler::DIV2;
        config.rcc.sys = Sysclk::PLL1_P;
        let peripherals = embassy_stm32::init(config);
        // The HAL leaves them off; every fetch from flash, weights included, would wait.
        pac::FLASH.acr().modify(|register| {
            register.set_prften(true);
            register.set_icen(true);
            register.set_dcen(true);
        });
        let Some(mut core) = cortex_m::Peripherals::take() else {
            defmt::panic!("the board starts twice")
        };
        counter::start(&mut core);
        Board {
            led: Output::new(peripherals.PA5, Level::Low, Speed::VeryHigh),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(lit));
    }
}
