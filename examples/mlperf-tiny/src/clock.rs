//! Microseconds, by the free-running counter of the MPS2 boards (FPGAIO).
//!
//! In QEMU with `-icount shift=6` every instruction lets 64 ns pass: so a time is a number of instructions, the same in every run, and
//! **says nothing about a board**.

/// FPGAIO `COUNTER`, and the register that divides its clock.
const COUNTER: *const u32 = 0x4002_8018 as *const u32;
const PRESCALE: *mut u32 = 0x4002_801C as *mut u32;

/// The boards' clock.
const CLOCK_MHZ: u32 = 25;

/// Counts microseconds in 64 bits, where the board has 32: read it more often than once in an hour.
pub struct Clock {
    now: u64,
}

impl Clock {
    /// Lets the counter count microseconds.
    ///
    /// # Safety
    /// The program runs on an MPS2 board.
    pub unsafe fn start() -> Self {
        // SAFETY: by this function's contract the register is there, and nothing else uses the counter.
        unsafe { PRESCALE.write_volatile(CLOCK_MHZ - 1) };
        Clock { now: 0 }
    }

    /// Microseconds since some moment.
    pub fn now_us(&mut self) -> u64 {
        // SAFETY: as in `start`. Reading the counter changes nothing.
        let counter = unsafe { COUNTER.read_volatile() };
        self.now += u64::from(counter.wrapping_sub(self.now as u32));
        self.now
    }
}
