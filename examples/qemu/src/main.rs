//! Runs `.adq` models on a Cortex-M board in QEMU, and prints what a host needs to check every bit of it.
//!
//! Arguments, by semihosting: `MODEL IMAGES COUNT`, any number of times. Both files are the host's, relative to the folder where
//! QEMU was started; IMAGES holds COUNT images back to back, u8 HWC.
//!
//! Output, one record a line:
//!
//! ```text
//! model MODEL layers N arena BYTES isa NAME
//! image I input crc HEX
//! layer J crc HEX instructions N
//! image I top1 CLASS instructions N logits A B ...
//! stack BYTES
//! done
//! ```
//!
//! `crc` is the CRC-32/ISO-HDLC of a tensor's bytes. A layer's instructions are those of the runtime between the observer's two
//! calls; what this program does with the result is not in them. An image's are the sum over its layers. `stack` is what checking
//! a model and running it takes below the caller's frame, at its deepest. Anything wrong is one line `error: ...` and exit code 1.
#![no_std]
#![no_main]

mod console;
mod counter;
mod memory;
mod recorder;
mod stack;

use core::ffi::CStr;
use core::fmt;

use adcorda_runtime::formats::{Model, ParseError};
use adcorda_runtime::{ArenaTooSmall, Image, ImageSize, Isa, Session};
use cortex_m::register::msp;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use semihosting::experimental::env;
use semihosting::fs::File;
use semihosting::io::Read;
use semihosting::process;

use crate::console::{Console, Failed};
use crate::memory::{ARENA_BYTES, Buffers, FILL, GUARD_BYTES};
use crate::recorder::Recorder;

/// Longest command line: some two hundred models.
const ARGUMENT_BYTES: usize = 4096;

/// Longest name of a file.
const NAME_BYTES: usize = 256;

#[entry]
fn main() -> ! {
    refuse_unaligned_access();
    // SAFETY: the one call, and `main` runs once.
    let mut buffers = unsafe { Buffers::take() };
    let code = match Console::new().map(|mut console| run_all(&mut buffers, &mut console)) {
        Ok(Ok(())) => 0,
        Ok(Err(Failed)) | Err(_) => 1,
    };
    process::exit(code)
}

fn run_all(buffers: &mut Buffers, console: &mut Console) -> Result<(), Failed> {
    if !counter::is_exact() {
        return Err(console.fail("the instruction counter does not count: start QEMU with -icount shift=7"));
    }
    let arguments = env::args::<ARGUMENT_BYTES>().map_err(|_| console.fail("the command line is too long"))?;
    let mut arguments = arguments.skip(1);
    let mut recorder = Recorder::new();
    let mut deepest = None;
    while let Some(model) = arguments.next() {
        let (Ok(model), Some(Ok(images)), Some(Ok(count))) = (model, arguments.next(), arguments.next()) else {
            return Err(console.fail("arguments are MODEL IMAGES COUNT, any number of times"));
        };
        let Ok(count) = count.parse() else {
            return Err(console.fail(format_args!("{count} is no number of images")));
        };
        let model_bytes = read_model(model, buffers.model, console)?;
        let job = Job {
            model,
            model_bytes,
            images,
            count,
        };
        deepest = deepest.max(Some(run_job(&job, buffers.arena, buffers.image, &mut recorder, console)?));
    }
    let Some(deepest) = deepest else {
        return Err(console.fail("nothing to do: arguments are MODEL IMAGES COUNT, any number of times"));
    };
    console.line(format_args!("stack {deepest}"));
    console.line("done");
    Ok(())
}

/// Makes the board that stands in for a Cortex-M0 fault where that core would.
fn refuse_unaligned_access() {
    if cfg!(board = "mps2-m0") {
        const CCR: *mut u32 = 0xE000_ED14 as *mut u32;
        const UNALIGN_TRP: u32 = 1 << 3;
        // SAFETY: the Cortex-M3 has the register there. With the bit set, unaligned words and halfwords fault.
        unsafe { CCR.write_volatile(CCR.read_volatile() | UNALIGN_TRP) };
    }
}

/// One model and the images to run it on.
struct Job<'a> {
    model: &'a str,
    model_bytes: &'a [u8],
    images: &'a str,
    count: usize,
}

/// Runs one model on its images; gives the bytes of stack that took.
fn run_job(
    job: &Job<'_>,
    arena: &mut [u8],
    image: &mut [u8],
    recorder: &mut Recorder,
    console: &mut Console,
) -> Result<u32, Failed> {
    let (layers, arena_bytes, image_bytes) = match Model::parse(job.model_bytes) {
        Ok(model) => (model.layers().len(), model.arena_bytes(), model.input().elements()),
        Err(cause) => return Err(console.fail(format_args!("{}: {cause}", job.model))),
    };
    if arena_bytes > ARENA_BYTES {
        return Err(console.fail(format_args!(
            "{}: needs an arena of {arena_bytes} bytes, this firmware has {ARENA_BYTES}",
            job.model
        )));
    }
    let available = image.len();
    let Some(image) = image.get_mut(..image_bytes) else {
        return Err(console.fail(format_args!(
            "{}: takes images of {image_bytes} bytes, this firmware has room for {available}",
            job.model
        )));
    };
    console.line(format_args!(
        "model {} layers {layers} arena {arena_bytes} isa {}",
        job.model,
        Isa::CURRENT
    ));

    let mut file = open(job.images, console)?;
    let mut deepest = 0;
    for i in 0..job.count {
        file.read_exact(image)
            .map_err(|_| console.fail(format_args!("{}: ends in image {i} of {}", job.images, job.count)))?;
        // A guard, the arena, a guard.
        let guarded = &mut arena[..arena_bytes + 2 * GUARD_BYTES];
        guarded.fill(FILL);
        let top = msp::read();
        stack::paint(top);
        let (before, rest) = guarded.split_at_mut(GUARD_BYTES);
        let (arena, after) = rest.split_at_mut(arena_bytes);
        let result = infer(job.model_bytes, arena, image, recorder);
        let Some(used) = stack::used(top) else {
            return Err(console.fail(format_args!("{}: the stack ran into the statics", job.model)));
        };
        deepest = deepest.max(used);
        let top1 = match result {
            Ok(top1) => top1,
            Err(refused) => return Err(console.fail(format_args!("{}: {refused}", job.model))),
        };
        if before.iter().chain(&*after).any(|&byte| byte != FILL) {
            return Err(console.fail(format_args!("{}: a byte outside of the arena was written", job.model)));
        }
        console.image(i, top1, recorder);
    }
    Ok(deepest)
}

/// All that a product does with a model, and all that the stack is measured over.
#[inline(never)]
fn infer(file: &[u8], arena: &mut [u8], pixels: &[u8], recorder: &mut Recorder) -> Result<usize, Refused> {
    // Not moved out of the result: a model is 2 KiB of stack.
    let parsed = Model::parse(file);
    let model = match &parsed {
        Ok(model) => model,
        Err(cause) => return Err(Refused::Model(*cause)),
    };
    let mut session = Session::new(model, arena).map_err(Refused::Arena)?;
    let image = Image::new(model, pixels).map_err(Refused::Image)?;
    recorder.restart();
    let logits = session.run(image, recorder);
    recorder.logits(logits);
    Ok(logits.top1())
}

fn read_model<'b>(name: &str, buffer: &'b mut [u8], console: &mut Console) -> Result<&'b [u8], Failed> {
    let mut file = open(name, console)?;
    let room = buffer.len();
    let bytes = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(_) => return Err(console.fail(format_args!("{name}: cannot be read"))),
    };
    let Some(buffer) = usize::try_from(bytes).ok().and_then(|bytes| buffer.get_mut(..bytes)) else {
        return Err(console.fail(format_args!("{name}: has {bytes} bytes, this firmware has room for {room}")));
    };
    match file.read_exact(buffer) {
        Ok(()) => Ok(buffer),
        Err(_) => Err(console.fail(format_args!("{name}: cannot be read"))),
    }
}

fn open(name: &str, console: &mut Console) -> Result<File, Failed> {
    let mut terminated = [0; NAME_BYTES];
    let file = match terminated.get_mut(..name.len()) {
        Some(bytes) => {
            bytes.copy_from_slice(name.as_bytes());
            CStr::from_bytes_until_nul(&terminated).ok().map(File::open)
        }
        None => None,
    };
    match file {
        Some(Ok(file)) => Ok(file),
        Some(Err(_)) => Err(console.fail(format_args!("{name}: cannot be opened"))),
        None => Err(console.fail(format_args!("{name}: longer than {} bytes", NAME_BYTES - 1))),
    }
}

/// Why a model cannot be run.
enum Refused {
    Model(ParseError),
    Arena(ArenaTooSmall),
    Image(ImageSize),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Model(cause) => cause.fmt(f),
            Refused::Arena(cause) => cause.fmt(f),
            Refused::Image(cause) => cause.fmt(f),
        }
    }
}

/// On one line, unlike the message of semihosting's own handler, and as an error like any other.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if let (Ok(mut console), Some(at)) = (Console::new(), info.location()) {
        console.fail(format_args!("panic at {}:{}: {}", at.file(), at.line(), info.message()));
    }
    process::exit(101)
}

// SAFETY: the handler only reads the frame that the core has stacked, prints, and leaves the machine.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    if let Ok(mut console) = Console::new() {
        console.fail(format_args!("hard fault at {:#010x}", frame.pc()));
    }
    process::exit(102)
}
