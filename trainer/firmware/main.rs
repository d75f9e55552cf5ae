//! Classifies the images of `samples.rs` with the model of `model.rs` on a board that QEMU emulates, and compares every logit with
//! what the host computed when this project was made.
//!
//! In a product the pixels come from a camera and the scores go where they are used: keep [`classify`], replace the rest.
//! Anything wrong is one line that says so and an exit code that is not 0, which `cargo run` passes on.
#![no_std]
#![no_main]

mod model;
mod samples;
mod stack;

use core::fmt;

use adcorda_runtime::formats::Model;
use adcorda_runtime::{Aligned, Image, Session};
use cortex_m::register::msp;
use cortex_m::singleton;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use semihosting::{eprintln, println, process};

#[entry]
fn main() -> ! {
    // The macro gives it once, and `main` runs once.
    let Some(arena) = singleton!(: Aligned<[u8; model::ARENA_BYTES]> = Aligned([0; model::ARENA_BYTES])) else {
        process::exit(1)
    };
    let top = msp::read();
    stack::paint(top);
    let outcome = run(&mut arena.0);
    match stack::used(top) {
        Some(bytes) => println!("stack {bytes} bytes"),
        None => {
            eprintln!("error: the stack ran into the statics: give the firmware more RAM in memory.x, or a model with a smaller arena");
            process::exit(1)
        }
    }
    match outcome {
        Ok(right) => {
            if let Some((right, labelled)) = right {
                println!("top-1 {right} of {labelled}");
            }
            println!("PASS: every logit of {} samples is the host's", samples::COUNT);
            process::exit(0)
        }
        Err(Failed) => process::exit(1),
    }
}

/// What is wrong has been printed.
struct Failed;

/// Classifies every sample: how many of those with a label are right, and how many there are.
#[inline(never)]
fn run(arena: &mut [u8]) -> Result<Option<(usize, usize)>, Failed> {
    // Not moved out of the result: a model is 2 KiB of stack.
    let parsed = Model::parse(model::MODEL);
    let model = match &parsed {
        Ok(model) => model,
        Err(cause) => return Err(failed(cause)),
    };
    println!("model {}: {} bytes of flash, {} bytes of arena", model.name(), model::MODEL_BYTES, model.arena_bytes());
    let mut session = Session::new(model, arena).map_err(failed)?;
    let (mut right, mut labelled) = (0, 0);
    for (i, pixels) in samples::PIXELS.chunks_exact(model::INPUT_BYTES).enumerate() {
        let class = classify(&mut session, pixels, &samples::LOGITS[i])?;
        match samples::LABELS[i] {
            Some(label) => {
                labelled += 1;
                right += usize::from(class == label);
                println!("sample {i}: {}, labelled {}", Name(model, class), Name(model, label));
            }
            None => println!("sample {i}: {}", Name(model, class)),
        }
    }
    Ok((labelled > 0).then_some((right, labelled)))
}

/// The class of one image: `pixels` row by row, channels innermost, as a camera gives them.
fn classify(session: &mut Session<'_>, pixels: &[u8], expected: &[i32]) -> Result<usize, Failed> {
    let image = Image::new(session.model(), pixels).map_err(failed)?;
    let logits = session.run(image, &mut ());
    for (class, (found, expected)) in logits.iter().zip(expected).enumerate() {
        if found != *expected {
            eprintln!("FAIL: logit {class} is {found}, on the host it was {expected}");
            return Err(Failed);
        }
    }
    Ok(logits.top1())
}

fn failed(cause: impl fmt::Display) -> Failed {
    eprintln!("error: {cause}");
    Failed
}

/// A class by its label, or its number where the model has none.
struct Name<'m>(&'m Model<'m>, usize);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.label(self.1) {
            Some(label) if !label.is_empty() => f.write_str(label),
            Some(_) | None => write!(f, "class {}", self.1),
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    eprintln!("error: {info}");
    process::exit(101)
}

// SAFETY: the handler only reads the frame that the core has stacked, prints, and leaves the machine.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    eprintln!("error: hard fault at {:#010x}", frame.pc());
    process::exit(102)
}
