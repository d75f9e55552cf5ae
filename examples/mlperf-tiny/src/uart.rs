//! The first serial port of the MPS2 boards: a CMSDK APB UART.
//!
//! The core sleeps until a byte comes. It need not take an interrupt for that: one that is pending ends its sleep.
//!
//! # Source
//! Arm Cortex-M System Design Kit, Technical Reference Manual (DDI 0479), "APB UART".

use core::fmt;

use cortex_m::asm::wfi;
use cortex_m::interrupt::{self, InterruptNumber};
use cortex_m::peripheral::NVIC;

/// UART0 of the MPS2 boards.
const BASE: *mut u32 = 0x4000_4000 as *mut u32;

/// Registers, as words from the base.
const DATA: usize = 0;
const STATE: usize = 1;
const CTRL: usize = 2;
const INTCLEAR: usize = 3;
const BAUDDIV: usize = 4;

const TX_FULL: u32 = 1 << 0;
const RX_FULL: u32 = 1 << 1;
const TX_ENABLE: u32 = 1 << 0;
const RX_ENABLE: u32 = 1 << 1;
const RX_INTERRUPT_ENABLE: u32 = 1 << 3;
const RX_INTERRUPT: u32 = 1 << 1;

/// The boards' clock, and the speed that the benchmark's host starts from.
const CLOCK_HZ: u32 = 25_000_000;
const BAUD: u32 = 115_200;

/// The interrupt by which the board says that a byte has come.
#[derive(Clone, Copy)]
struct Received;

// SAFETY: on the MPS2 boards it is the first one, now and always.
unsafe impl InterruptNumber for Received {
    fn number(self) -> u16 {
        0
    }
}

/// The serial port.
pub struct Uart(());

impl Uart {
    /// Switches it on, and the taking of interrupts off.
    ///
    /// # Safety
    /// The program runs on an MPS2 board, and no other `Uart` is in use.
    pub unsafe fn start() -> Self {
        interrupt::disable();
        // SAFETY: by this function's contract the device is there, and ours; its interrupt is never taken.
        unsafe {
            BASE.add(BAUDDIV).write_volatile(CLOCK_HZ / BAUD);
            BASE.add(CTRL).write_volatile(TX_ENABLE | RX_ENABLE | RX_INTERRUPT_ENABLE);
            NVIC::unmask(Received);
        }
        Uart(())
    }

    /// Waits for a byte from the host.
    pub fn read(&mut self) -> u8 {
        while self.state() & RX_FULL == 0 {
            wfi();
            // First the interrupt, then the state: a byte that comes in between is seen by one of them.
            // SAFETY: as in `start`.
            unsafe { BASE.add(INTCLEAR).write_volatile(RX_INTERRUPT) };
            NVIC::unpend(Received);
        }
        // SAFETY: as in `start`. Reading takes the byte out of the device.
        unsafe { BASE.add(DATA).read_volatile() as u8 }
    }

    fn write(&mut self, byte: u8) {
        while self.state() & TX_FULL != 0 {
            core::hint::spin_loop();
        }
        // SAFETY: as in `start`. There is room for the byte.
        unsafe { BASE.add(DATA).write_volatile(byte.into()) }
    }

    fn state(&self) -> u32 {
        // SAFETY: as in `start`. Reading the state changes nothing.
        unsafe { BASE.add(STATE).read_volatile() }
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.write(byte));
        Ok(())
    }
}
