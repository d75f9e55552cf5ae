//! ST NUCLEO-H743ZI2: Cortex-M7 at 400 MHz, both caches on.

use embassy_stm32::gpio::{Level, Output, Speed};
use embassy_stm32::rcc::{
    AHBPrescaler, APBPrescaler, HSIPrescaler, Pll, PllDiv, PllMul, PllPreDiv, PllSource, Sysclk, VoltageScale,
};

use crate::counter;

/// The core's clock.
pub const CLOCK_HZ: u32 = 400_000_000;

/// What the firmware has of the board.
pub struct Board {
    /// LD1 (PB0).
    led: Output<'static>,
}

impl Board {
    /// Clock, caches, cycle counter, pin. Once.
    pub fn start() -> Self {
        let mut config = embassy_stm32::Config::default();
        // The internal 64 MHz oscillator, by 4, times 50, by 2. Flash wait states are the HAL's business.
        config.rcc.hsi = Some(HSIPrescaler::DIV1);
        config.rcc.pll1 = Some(Pll {
            source: PllSource::HSI,
            prediv: PllPreDiv::DIV4,
            mul: PllMul::MUL50,
            fracn: None,
            divp: Some(PllDiv::DIV2),
            divq: None,
            divr: None,
        });
        config.rcc.sys = Sysclk::PLL1_P;
        config.rcc.ahb_pre = AHBPrescaler::DIV2;
        config.rcc.apb1_pre = APBPrescaler::DIV2;
        config.rcc.apb2_pre = APBPrescaler::DIV2;
        config.rcc.apb3_pre = APBPrescaler::DIV2;
        config.rcc.apb4_pre = APBPrescaler::DIV2;
        config.rcc.voltage_scale = VoltageScale::Scale1;
        let peripherals = embassy_stm32::init(config);
        let Some(mut core) = cortex_m::Peripherals::take() else {
            defmt::panic!("the board starts twice")
        };
        core.SCB.enable_icache();
        core.SCB.enable_dcache(&mut core.CPUID);
        counter::start(&mut core);
        Board {
            led: Output::new(peripherals.PB0, Level::Low, Speed::VeryHigh),
        }
    }

    /// Lights the LED, or not: its pin is what a logic analyser or a power meter triggers on.
    pub fn led(&mut self, lit: bool) {
        self.led.set_level(Level::from(lit));
    }
}
