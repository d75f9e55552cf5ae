//! Classifies the images of `samples.rs` with the model of `model.rs` on a board, compares every logit with what the host computed, and
//! prints over RTT what each layer takes. Then it classifies the first image for ever, with the LED lit while it does.
//!
//! In a product the pixels come from a camera and the scores go where they are used: keep [`classify`], replace the rest.

use core::fmt::Display;

use adcorda_runtime::formats::{MAX_LAYERS, Model};
use adcorda_runtime::{Aligned, Image, Logits, Observer, Profile, Session};
use cortex_m::register::msp;
use cortex_m::{asm, interrupt, singleton};
use cortex_m_rt::entry;
use defmt::{Debug2Format, Display2Format, println};
use {defmt_rtt as _, panic_probe as _};

use crate::board::{self, Board};
use crate::{counter, model, samples, stack};

#[entry]
fn main() -> ! {
    let mut board = Board::start();
    // The macro gives it once, and `main` runs once.
    let Some(arena) = singleton!(: Aligned<[u8; model::ARENA_BYTES]> = Aligned([0; model::ARENA_BYTES])) else {
        stop("main runs twice")
    };
    let top = msp::read();
    interrupt::free(|_| stack::paint(top));
    prove(&mut arena.0);
    match stack::used(top) {
        Some(bytes) => println!("stack {=u32} bytes", bytes),
        None => stop("the stack ran into the statics: give the firmware more RAM in memory.x, or a model with a smaller arena"),
    }
    println!("PASS: every logit of {=usize} samples is the host's", samples::COUNT);

    let parsed = Model::parse(model::MODEL);
    let model = parsed.as_ref().unwrap_or_else(|cause| stop(cause));
    let mut session = Session::new(model, &mut arena.0).unwrap_or_else(|cause| stop(cause));
    let first = &samples::PIXELS[..model::INPUT_BYTES];

    let mut profile = Profile::<MAX_LAYERS>::new(model, counter::ticks);
    classify(&mut session, first, &mut profile);
    for (layer, count) in model.layers().zip(profile.counts()) {
        println!("{=u32} {=str} {=str}", count, counter::TICK, layer.name);
    }
    let microseconds = profile.total() * 1_000_000 / u64::from(counter::TICKS_PER_SECOND);
    println!(
        "{=u64} {=str} in all, {=u64} us",
        profile.total(),
        counter::TICK,
        microseconds
    );

    loop {
        board.led(true);
        classify(&mut session, first, &mut ());
        board.led(false);
        asm::delay(board::CLOCK_HZ / 100);
    }
}

/// Classifies every sample, and stops at the first logit that is not the host's.
#[inline(never)]
fn prove(arena: &mut [u8]) {
    // Not moved out of the result: a model is 2 KiB of stack.
    let parsed = Model::parse(model::MODEL);
    let model = parsed.as_ref().unwrap_or_else(|cause| stop(cause));
    println!(
        "model {=str}: {=usize} bytes of flash, {=usize} bytes of arena",
        model.name(),
        model::MODEL_BYTES,
        model.arena_bytes()
    );
    let mut session = Session::new(model, arena).unwrap_or_else(|cause| stop(cause));
    let (mut right, mut labelled) = (0, 0);
    for (i, pixels) in samples::PIXELS.chunks_exact(model::INPUT_BYTES).enumerate() {
        let logits = classify(&mut session, pixels, &mut ());
        if !logits.iter().eq(samples::LOGITS[i]) {
            defmt::panic!(
                "FAIL: sample {=usize} has logits {}, on the host they were {=[?]}",
                i,
                Debug2Format(&logits),
                samples::LOGITS[i].as_slice()
            );
        }
        let class = logits.top1();
        println!(
            "sample {=usize}: class {=usize}, {=str}",
            i,
            class,
            model.label(class).unwrap_or_default()
        );
        if let Some(label) = samples::LABELS[i] {
            labelled += 1;
            right += usize::from(class == label);
        }
    }
    if labelled > 0 {
        println!("top-1 {=usize} of {=usize}", right, labelled);
    }
}

/// Scores of the classes for one image: `pixels` row by row, channels innermost, as a camera gives them.
fn classify<'s>(session: &'s mut Session<'_>, pixels: &[u8], observer: &mut impl Observer) -> Logits<'s> {
    let image = Image::new(session.model(), pixels).unwrap_or_else(|cause| stop(cause));
    session.run(image, observer)
}

/// Says what is wrong; probe-rs then ends with an exit code that is not 0.
fn stop(cause: impl Display) -> ! {
    defmt::panic!("{}", Display2Format(&cause))
}
