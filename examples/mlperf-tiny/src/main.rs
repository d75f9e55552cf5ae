//! MLPerf Tiny's image classification on a Cortex-M board: a host loads images over the serial port, has them classified, and reads
//! times and scores.
//!
//! The protocol is in the library; here is what a board has of its own. `main` shows how the parts go together.
#![no_std]
#![no_main]

mod clock;
mod model;
mod uart;

use core::fmt::{Display, Write};

use adcorda_mlperf_tiny::protocol::{Device, Identity, Monitor};
use adcorda_runtime::formats::Model;
use adcorda_runtime::{Aligned, Image, ImageSize, Session};
use cortex_m::singleton;
use cortex_m_rt::{ExceptionFrame, entry, exception};

use crate::clock::Clock;
use crate::uart::Uart;

const IDENTITY: Identity = Identity {
    vendor: "adcorda",
    model: "ic01",
};

#[entry]
fn main() -> ! {
    // SAFETY: the firmware is linked for an MPS2 board, and `main` runs once.
    let (mut uart, clock) = unsafe { (Uart::start(), Clock::start()) };
    let (Some(arena), Some(monitor)) = (
        singleton!(: Aligned<[u8; model::ARENA_BYTES]> = Aligned([0; model::ARENA_BYTES])),
        singleton!(: Monitor<{ model::INPUT_BYTES }> = Monitor::new(IDENTITY)),
    ) else {
        stop(&mut uart, "main ran twice")
    };
    // Not moved out of the result: a model is 2 KiB of stack.
    let parsed = Model::parse(model::MODEL);
    let session = match &parsed {
        Ok(model) => Session::new(model, &mut arena.0),
        Err(cause) => stop(&mut uart, cause),
    };
    let session = session.unwrap_or_else(|cause| stop(&mut uart, cause));
    let mut board = Board {
        session,
        clock,
        logits: [0; model::CLASSES],
    };

    monitor.start(&mut board, &mut uart);
    loop {
        let byte = uart.read();
        monitor.receive(byte, &mut board, &mut uart);
    }
}

/// The model, and the clock by which it is timed.
struct Board<'m> {
    session: Session<'m>,
    clock: Clock,
    logits: [i32; model::CLASSES],
}

impl Device for Board<'_> {
    type Error = ImageSize;

    fn now_us(&mut self) -> u64 {
        self.clock.now_us()
    }

    fn infer(&mut self, pixels: &[u8]) -> Result<(), ImageSize> {
        let image = Image::new(self.session.model(), pixels)?;
        let logits = self.session.run(image, &mut ());
        for (kept, logit) in self.logits.iter_mut().zip(logits.iter()) {
            *kept = logit;
        }
        // Often enough for the clock, however many inferences a command asks for.
        self.clock.now_us();
        Ok(())
    }

    fn logits(&self) -> &[i32] {
        &self.logits
    }
}

/// Says why the firmware cannot go on.
fn stop(uart: &mut Uart, cause: impl Display) -> ! {
    // Nothing can be told to a host that does not listen.
    let _ = write!(uart, "e-[{cause}]\r\n");
    loop {
        cortex_m::asm::wfi();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing else runs any more.
    let mut uart = unsafe { Uart::start() };
    stop(&mut uart, info.message())
}

// SAFETY: the handler only reads the frame that the core has stacked, and prints.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    // SAFETY: nothing else runs any more.
    let mut uart = unsafe { Uart::start() };
    stop(&mut uart, format_args!("hard fault at {:#010x}", frame.pc()))
}
