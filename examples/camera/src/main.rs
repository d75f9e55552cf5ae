//! Classifies one picture as two cameras would give it, in RGB565 and in YUV 4:2:2, and compares every logit with the host's.
//!
//! The frames lie in flash as a camera's DMA would leave them in RAM. They go straight to the model's input tensor: there is no
//! second frame, in RGB888 or otherwise.
#![no_std]
#![no_main]

mod expected;
#[allow(dead_code, reason = "as `adcorda export` writes it: more than this firmware uses")]
mod model;

use core::fmt::Display;

use adcorda_runtime::formats::Model;
use adcorda_runtime::{Aligned, Image, PixelFormat, Session};
use cortex_m::singleton;
use cortex_m_rt::entry;
use semihosting::{eprintln, println, process};

const FRAME_BYTES: usize = 2 * model::INPUT_HEIGHT * model::INPUT_WIDTH;
static RGB565: &[u8; FRAME_BYTES] = include_bytes!("frame.rgb565");
static YUYV: &[u8; FRAME_BYTES] = include_bytes!("frame.yuyv");

#[entry]
fn main() -> ! {
    let outcome = match singleton!(: Aligned<[u8; model::ARENA_BYTES]> = Aligned([0; model::ARENA_BYTES])) {
        Some(arena) => run(&mut arena.0),
        None => Err(failed("main ran twice")),
    };
    match outcome {
        Ok(()) => {
            println!("PASS: every logit of both frames is the host's");
            process::exit(0)
        }
        Err(Failed) => process::exit(1),
    }
}

/// What is wrong has been printed.
struct Failed;

fn run(arena: &mut [u8]) -> Result<(), Failed> {
    // Not moved out of the result: a model is 2 KiB of stack.
    let parsed = Model::parse(model::MODEL);
    let model = parsed.as_ref().map_err(failed)?;
    let mut session = Session::new(model, arena).map_err(failed)?;

    // The format is a constant, so only the conversions of these two are linked.
    let frame = Image::with_format(model, PixelFormat::Rgb565Le, RGB565).map_err(failed)?;
    classify("RGB565", &mut session, frame, &expected::RGB565)?;

    let frame = Image::with_format(model, PixelFormat::Yuyv, YUYV).map_err(failed)?;
    classify("YUYV", &mut session, frame, &expected::YUYV)
}

fn classify(format: &str, session: &mut Session<'_>, frame: Image<'_>, host: &[i32; model::CLASSES]) -> Result<(), Failed> {
    let model = session.model();
    let logits = session.run(frame, &mut ());
    println!("{format}: {}", model.label(logits.top1()).unwrap_or("?"));
    match logits.iter().eq(host.iter().copied()) {
        true => Ok(()),
        false => Err(failed(format_args!(
            "{format}: the logits are {logits:?}, on the host they were {host:?}"
        ))),
    }
}

fn failed(cause: impl Display) -> Failed {
    eprintln!("FAIL: {cause}");
    Failed
}
