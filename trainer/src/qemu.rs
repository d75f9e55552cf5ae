//! A model on an emulated board: every byte of every layer compared with the host's, instructions counted, stack measured.
//!
//! The firmware of `examples/qemu` reads the model and the images by semihosting and prints one line a layer; its `main.rs` defines
//! the text. This module builds or finds it, runs it under QEMU and a time limit, and reads what it printed. What is counted
//! are executed instructions, exact and the same in every run. They are not cycles.
//!
//! `ADCORDA_FIRMWARE` names a firmware built elsewhere, for machines without the sources or the target.

use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use adcorda_formats::{Layer, Model};
use adcorda_runtime::{Image, Observer, Session, path};
use crc::{CRC_32_ISO_HDLC, Crc};
use serde::Serialize;

use crate::board::Board;
use crate::data::Dataset;
use crate::elf::{self, Sizes};
use crate::export::parse;
use crate::inspect::operation;
use crate::{Error, ErrorKind, Result, file};

/// The firmware's name, as a package and as a file.
const FIRMWARE: &str = "adcorda-qemu";

/// Longest command line handed to the firmware, below the 4096 bytes that it reads.
const COMMAND_LINE_BYTES: usize = 3500;

/// What a model did on a board, and what it took. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceReport {
    /// The board.
    pub board: Board,
    /// The instruction set that its kernels are written for.
    pub isa: &'static str,
    /// Whether every byte of every layer was the host's: always, since anything else is an error.
    pub parity: bool,
    /// Number of images compared.
    pub images: usize,
    /// Instructions of one inference: the sum over the layers.
    pub instructions: u64,
    /// The layers in the order in which they run.
    pub layers: Vec<DeviceLayer>,
    /// Stack that checking the model and running it takes at its deepest.
    pub stack_bytes: usize,
    /// RAM for tensors and scratch.
    pub arena_bytes: usize,
    /// The model file.
    pub model_bytes: usize,
    /// Flash of the firmware: code and constants, the model left out.
    pub firmware_flash_bytes: usize,
    /// RAM of the firmware's statics; the buffers that stand in for flash and camera, the arena and the stack left out.
    pub firmware_ram_bytes: usize,
    /// The compiler of the firmware, as it calls itself; empty where the file does not say.
    pub compiler: String,
}

/// One layer on a board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceLayer {
    /// Its name in the trained network.
    pub name: String,
    /// Kind of operation.
    pub op: &'static str,
    /// Which kernel took it on this board.
    pub path: &'static str,
    /// Instructions of one inference: the mean over the images, rounded down.
    pub instructions: u64,
    /// Multiply-accumulates.
    pub macs: u64,
}

/// Runs a model file on a board for every image of a data set, and compares each layer with the host.
///
/// # Errors
/// [`ErrorKind::Io`] and [`ErrorKind::Model`] for the file, [`ErrorKind::Data`] where the images are not of its size, else as
/// [`run_images`].
pub fn run(model: &Path, images: &Dataset, board: Board) -> Result<DeviceReport> {
    let bytes = file::read(model)?;
    parse(&bytes, &model.display().to_string())?;
    let images: Vec<&[u8]> = (0..images.len()).map(|i| images.image(i)).collect();
    run_images(&bytes, &images, board)
}

/// Runs a model file's bytes on a board for every image (u8, HWC), and compares each layer with the host.
///
/// # Errors
/// [`ErrorKind::Usage`] without images; [`ErrorKind::Model`] where the file is not valid; [`ErrorKind::Data`] where an image is not
/// of its size; [`ErrorKind::Board`] where QEMU does not emulate the board, or it has too little flash or RAM;
/// [`ErrorKind::Toolchain`] where QEMU, cargo, the compiler's target or the firmware's sources are missing;
/// [`ErrorKind::Parity`] naming the first image and layer whose output is not the host's.
pub fn run_images(model: &[u8], images: &[&[u8]], board: Board) -> Result<DeviceReport> {
    if images.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "no images to run on the board").remedy("give at least one"));
    }
    let parsed = parse(model, "the model")?;
    let expected: Vec<Trace> = images
        .iter()
        .map(|pixels| host_trace(&parsed, pixels))
        .collect::<Result<_>>()?;

    let firmware = Firmware::locate(board)?;
    board.fits(model.len() + firmware.flash_bytes, parsed.arena_bytes() + firmware.ram_bytes)?;
    let launch = firmware.launch(&[Job { model, images }])?;
    if launch.isa != board.isa().name() {
        return Err(Error::new(
            ErrorKind::Toolchain,
            format!("the firmware is built for {}, {board} takes {}", launch.isa, board.isa()),
        )
        .remedy("build examples/qemu for this board, or unset ADCORDA_FIRMWARE"));
    }
    let found = &launch.traces[0];
    compare(&parsed, &expected, found)?;

    let mut layers = Vec::new();
    for (j, (layer, output)) in parsed.layers().zip(&parsed.tensors()[1..]).enumerate() {
        let input = layer
            .op
            .inputs()
            .next()
            .map_or(output, |id| &parsed.tensors()[usize::from(id)]);
        let sum: u64 = found.iter().map(|trace| trace.layers[j].instructions).sum();
        layers.push(DeviceLayer {
            name: layer.name.into(),
            op: operation(&layer.op),
            path: path(board.isa(), &parsed, &layer, output).name(),
            instructions: sum / found.len() as u64,
            macs: layer.op.macs(input, output),
        });
    }
    Ok(DeviceReport {
        board,
        isa: board.isa().name(),
        parity: true,
        images: images.len(),
        instructions: layers.iter().map(|layer| layer.instructions).sum(),
        layers,
        stack_bytes: launch.stack_bytes,
        arena_bytes: parsed.arena_bytes(),
        model_bytes: model.len(),
        firmware_flash_bytes: firmware.flash_bytes,
        firmware_ram_bytes: firmware.ram_bytes,
        compiler: firmware.compiler,
    })
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (board, core) = (self.board, self.board.core());
        writeln!(
            f,
            "{board} ({core} in QEMU, {} kernels), {} images: every byte of every layer is the host's\n",
            self.isa, self.images
        )?;
        let width = self.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).max(5);
        let row = |f: &mut fmt::Formatter<'_>, name: &str, op: &str, path: &str, instructions: u64, macs: u64| {
            write!(f, "{name:width$}  {op:16}  {path:9}  {instructions:>12}  {macs:>12}  ")?;
            match macs {
                0 => writeln!(f, "{:>8}", "-"),
                macs => writeln!(f, "{:>8.2}", instructions as f64 / macs as f64),
            }
        };
        writeln!(
            f,
            "{:width$}  {:16}  {:9}  {:>12}  {:>12}  {:>8}",
            "layer", "", "path", "instructions", "MACs", "per MAC"
        )?;
        for layer in &self.layers {
            row(f, &layer.name, layer.op, layer.path, layer.instructions, layer.macs)?;
        }
        row(
            f,
            "total",
            "",
            "",
            self.instructions,
            self.layers.iter().map(|layer| layer.macs).sum(),
        )?;
        write!(
            f,
            "\nflash {} bytes: model {}, firmware {}\nRAM {} bytes: arena {}, stack {}, statics {}",
            self.model_bytes + self.firmware_flash_bytes,
            self.model_bytes,
            self.firmware_flash_bytes,
            self.arena_bytes + self.stack_bytes + self.firmware_ram_bytes,
            self.arena_bytes,
            self.stack_bytes,
            self.firmware_ram_bytes
        )
    }
}

/// What one inference shows to an observer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// CRC-32 of the input tensor's bytes.
    pub input_crc: u32,
    /// The layers in the order in which they ran.
    pub layers: Vec<LayerTrace>,
    /// The class found.
    pub top1: usize,
    /// The logits.
    pub logits: Vec<i32>,
}

/// What one layer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerTrace {
    /// CRC-32 of the output's bytes.
    pub crc: u32,
    /// Instructions it took on the board; 0 on the host, where none are counted.
    pub instructions: u64,
}

/// The CRC-32 by which tensors are compared.
pub fn tensor_crc(bytes: &[u8]) -> u32 {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    CRC.checksum(bytes)
}

/// Runs one image on the host.
///
/// # Errors
/// [`ErrorKind::Data`] where `pixels` is not of the model's input size.
pub fn host_trace(model: &Model<'_>, pixels: &[u8]) -> Result<Trace> {
    let image = Image::new(model, pixels).map_err(|cause| {
        Error::new(ErrorKind::Data, format!("model {}: {cause}", model.name()))
            .remedy("give images of the size that the model was made for")
    })?;
    let mut arena = vec![0; model.arena_bytes()];
    let mut session =
        Session::new(model, &mut arena).map_err(|cause| Error::new(ErrorKind::Model, format!("{}: {cause}", model.name())))?;
    let mut trace = Trace::default();
    let logits = session.run(image, &mut trace);
    let (top1, logits) = (logits.top1(), logits.iter().collect());
    Ok(Trace { top1, logits, ..trace })
}

impl Observer for Trace {
    fn input(&mut self, codes: &[u8]) {
        self.input_crc = tensor_crc(codes);
    }

    fn layer_end(&mut self, _index: usize, _layer: &Layer<'_>, output: &[u8]) {
        self.layers.push(LayerTrace {
            crc: tensor_crc(output),
            instructions: 0,
        });
    }
}

/// Compares what a board computed with what the host did: one [`Trace`] an image. Instructions are not compared.
///
/// # Errors
/// [`ErrorKind::Parity`] naming the first image and layer that differ, and both CRCs.
pub fn compare(model: &Model<'_>, host: &[Trace], board: &[Trace]) -> Result<()> {
    let differ = |what: String| {
        Err(Error::new(ErrorKind::Parity, format!("model {}: {what}", model.name()))
            .remedy("this is a defect of the runtime or the emulator: please report it with the model file"))
    };
    if host.len() != board.len() {
        return differ(format!("the board ran {} of {} images", board.len(), host.len()));
    }
    for (i, (host, board)) in host.iter().zip(board).enumerate() {
        if host.layers.len() != board.layers.len() {
            let (found, expected) = (board.layers.len(), host.layers.len());
            return differ(format!("image {i}: the board ran {found} of {expected} layers"));
        }
        let input = [("the input".to_owned(), host.input_crc, board.input_crc)];
        let layers = model.layers().zip(host.layers.iter().zip(&board.layers)).enumerate();
        let layers = layers.map(|(j, (layer, (host, board)))| (format!("layer {j} {:?}", layer.name), host.crc, board.crc));
        for (what, host, board) in input.into_iter().chain(layers) {
            if host != board {
                return differ(format!(
                    "image {i}, {what}: the output's CRC is {board:08x} on the board, {host:08x} on the host"
                ));
            }
        }
        if (host.top1, &host.logits) != (board.top1, &board.logits) {
            return differ(format!(
                "image {i}: class {} of logits {:?} on the board, {} of {:?} on the host",
                board.top1, board.logits, host.top1, host.logits
            ));
        }
    }
    Ok(())
}

/// A model file and the images (u8, HWC) to run it on.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Bytes of the model file.
    pub model: &'a [u8],
    /// The images.
    pub images: &'a [&'a [u8]],
}

/// What came out of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// For each job, for each image.
    pub traces: Vec<Vec<Trace>>,
    /// Stack of the deepest inference.
    pub stack_bytes: usize,
    /// The instruction set that the firmware was built for.
    pub isa: String,
}

/// The firmware for one board, built and measured.
#[derive(Clone, Debug)]
pub struct Firmware {
    machine: &'static str,
    elf: PathBuf,
    /// Code and constants, and the initial values of statics.
    pub flash_bytes: usize,
    /// Statics, without the buffers for model, arena and image.
    pub ram_bytes: usize,
    /// What compiled it, such as `rustc 1.95.0 (59807616e 2026-04-14)`; empty where the file does not say.
    pub compiler: String,
}

impl Firmware {
    /// Takes the firmware that `ADCORDA_FIRMWARE` names, or builds it from `examples/qemu`.
    ///
    /// # Errors
    /// [`ErrorKind::Board`] for a board that QEMU does not emulate; [`ErrorKind::Toolchain`] where QEMU, cargo, the sources or the
    /// compiler's target are missing, with the one line to type.
    pub fn locate(board: Board) -> Result<Self> {
        let Some(machine) = board.qemu_machine() else {
            return Err(Error::new(ErrorKind::Board, format!("{board} cannot be emulated"))
                .remedy(format!("give one of {}", Board::emulated())));
        };
        find_qemu()?;
        let elf = match std::env::var_os("ADCORDA_FIRMWARE") {
            Some(path) => PathBuf::from(path),
            None => build(board)?,
        };
        // QEMU is started in another folder.
        let elf = elf.canonicalize().map_err(|cause| Error::io("read", &elf, cause))?;
        let bytes = file::read(&elf)?;
        // Its buffers, which are in `.uninit`, are for any model: they count as neither.
        let Some(Sizes {
            flash_bytes, ram_bytes, ..
        }) = Sizes::of(&bytes)
        else {
            return Err(
                Error::new(ErrorKind::Toolchain, format!("{}: not a 32-bit ELF file", elf.display()))
                    .remedy("build examples/qemu anew, or let ADCORDA_FIRMWARE name what was built there"),
            );
        };
        Ok(Self {
            machine,
            elf,
            flash_bytes,
            ram_bytes,
            compiler: elf::compiler(&bytes),
        })
    }

    /// Runs the jobs, as many as go into one start of QEMU at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Board`] where the firmware has no room for a model; [`ErrorKind::Parity`] where it failed otherwise or did not
    /// end; [`ErrorKind::Io`] where files for it cannot be written.
    pub fn launch(&self, jobs: &[Job<'_>]) -> Result<Launch> {
        let folder = tempfile::tempdir().map_err(|cause| Error::io("write to", std::env::temp_dir(), cause))?;
        let mut all = Launch {
            traces: Vec::new(),
            stack_bytes: 0,
            isa: String::new(),
        };
        let mut arguments: Vec<String> = Vec::new();
        let mut pending = 0;
        for (i, job) in jobs.iter().enumerate() {
            let (model, images) = (format!("{i}.adq"), format!("{i}.bin"));
            for (name, bytes) in [(&model, job.model), (&images, &job.images.concat())] {
                let path = folder.path().join(name);
                std::fs::write(&path, bytes).map_err(|cause| Error::io("write", &path, cause))?;
            }
            arguments.extend([model, images, job.images.len().to_string()]);
            pending += 1;
            let length: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
            if length > COMMAND_LINE_BYTES || i + 1 == jobs.len() {
                let launched = read_output(&self.start(folder.path(), &arguments, &jobs[i + 1 - pending..=i])?)?;
                if launched.traces.len() != pending {
                    return Err(unreadable(&format!("{} models of {pending}", launched.traces.len())));
                }
                all.traces.extend(launched.traces);
                all.isa = launched.isa;
                all.stack_bytes = all.stack_bytes.max(launched.stack_bytes);
                arguments.clear();
                pending = 0;
            }
        }
        Ok(all)
    }

    /// Starts QEMU and gives what the firmware printed before it ended well.
    fn start(&self, folder: &Path, arguments: &[String], jobs: &[Job<'_>]) -> Result<String> {
        let mut semihosting = format!("enable=on,target=native,arg={FIRMWARE}");
        for argument in arguments {
            semihosting.push_str(",arg=");
            semihosting.push_str(argument);
        }
        let mut qemu = Command::new("qemu-system-arm");
        qemu.current_dir(folder)
            .args(["-M", self.machine, "-nographic", "-monitor", "none", "-serial", "none"])
            .args(["-icount", "shift=7", "-semihosting-config", &semihosting, "-kernel"])
            .arg(&self.elf);
        let limit = time_limit(jobs);
        let Some((status, stdout, stderr)) = output_within(&mut qemu, limit).map_err(missing_qemu)? else {
            return Err(Error::new(
                ErrorKind::Parity,
                format!("the firmware did not end within {} seconds", limit.as_secs()),
            )
            .remedy("run fewer images; if one alone does not end, please report it with the model file"));
        };
        // Semihosting's console is QEMU's standard output or error, which of them depends on its version.
        let failure = stdout
            .lines()
            .chain(stderr.lines())
            .find_map(|line| line.strip_prefix("error: "));
        if let Some(failure) = failure {
            let kind = match failure.contains("this firmware has") {
                true => ErrorKind::Board,
                false => ErrorKind::Parity,
            };
            return Err(Error::new(kind, format!("{}: {failure}", self.machine)));
        }
        if !status.success() {
            let last = stderr.lines().last().unwrap_or("it said nothing");
            return Err(Error::new(
                ErrorKind::Toolchain,
                format!("qemu-system-arm ended with {status}: {last}"),
            ));
        }
        Ok(stdout + &stderr)
    }
}

/// QEMU does 50 M instructions a second on a slow and busy machine, and no kernel needs a hundred of them for one
/// multiply-accumulate; starting takes its time, too.
fn time_limit(jobs: &[Job<'_>]) -> Duration {
    let macs: u64 = jobs.iter().map(|job| macs(job.model) * job.images.len() as u64).sum();
    let bytes: u64 = jobs.iter().map(|job| (job.model.len() * job.images.len()) as u64).sum();
    Duration::from_secs(120 + (macs + bytes) * 100 / 50_000_000)
}

fn macs(file: &[u8]) -> u64 {
    let Ok(model) = Model::parse(file) else { return 0 };
    let tensors = model.tensors();
    let layers = model.layers().zip(&tensors[1..]);
    layers
        .filter_map(|(layer, output)| Some(layer.op.macs(tensors.get(usize::from(layer.op.inputs().next()?))?, output)))
        .sum()
}

/// Runs a command without input; `None` where it was stopped since it took too long.
fn output_within(command: &mut Command, limit: Duration) -> std::io::Result<Option<(ExitStatus, String, String)>> {
    fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // A pipe breaks only where its writer is gone, and then what came is all there is.
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let text = |reader: Option<thread::JoinHandle<String>>| reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    Ok(status.map(|status| (status, stdout, stderr)))
}

fn find_qemu() -> Result<()> {
    let found = Command::new("qemu-system-arm").arg("--version").stdin(Stdio::null()).output();
    found.map(|_| ()).map_err(missing_qemu)
}

/// The line that installs QEMU.
pub(crate) const INSTALL: &str = if cfg!(target_os = "macos") {
    "brew install qemu"
} else {
    "sudo apt-get install --no-install-recommends qemu-system-arm"
};

fn missing_qemu(cause: std::io::Error) -> Error {
    let message = if cause.kind() == IoErrorKind::NotFound {
        "qemu-system-arm is not installed".to_owned()
    } else {
        format!("cannot run qemu-system-arm: {cause}")
    };
    Error::new(ErrorKind::Toolchain, message).remedy(INSTALL)
}

/// Builds the firmware for a board; cargo does nothing where nothing has changed. The board's file among the sources says for which
/// target, with which flags and where to: boards of one target differ in their flags, and each has its own folder so that two
/// builds at a time do not take each other's place.
fn build(board: Board) -> Result<PathBuf> {
    let trainer = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = trainer.parent().unwrap_or(trainer).join("examples/qemu");
    let target = board.target();
    let config = format!("boards/{board}.toml");
    if !sources.join("Cargo.toml").is_file() {
        return Err(Error::new(
            ErrorKind::Toolchain,
            format!("the firmware's sources are not at {}", sources.display()),
        )
        .remedy("let ADCORDA_FIRMWARE name a firmware built from examples/qemu"));
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&sources)
        .args(["build", "--release", "--config", &config])
        .stdin(Stdio::null());
    // What the caller's build was told is not meant for the firmware: it is another target with profiles of its own.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let prefixes = [
            "CARGO_BUILD_",
            "CARGO_ENCODED_",
            "CARGO_PROFILE_",
            "CARGO_TARGET_",
            "CARGO_UNSTABLE_",
        ];
        let names = [
            "QEMU_BOARD",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
        ];
        if prefixes.iter().any(|prefix| text.starts_with(prefix)) || names.contains(&&*text) {
            cargo.env_remove(&name);
        }
    }
    let output = cargo.output().map_err(|cause| {
        Error::new(
            ErrorKind::Toolchain,
            format!("cannot run cargo to build the firmware: {cause}"),
        )
        .remedy("install Rust from https://rustup.rs, or let ADCORDA_FIRMWARE name a built firmware")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("E0463") || said.contains("may not be installed") {
            return Err(
                Error::new(ErrorKind::Toolchain, format!("the compiler lacks the target {target}")).remedy(format!(
                    "rustup target add {target} (or, without that server, scripts/thumb-targets.sh)"
                )),
            );
        }
        let first = said
            .lines()
            .find(|line| line.starts_with("error"))
            .unwrap_or("it did not say why");
        return Err(
            Error::new(ErrorKind::Toolchain, format!("building the firmware failed: {first}")).remedy(format!(
                "see all of it with: cd {} && cargo build --release --config {config}",
                sources.display()
            )),
        );
    }
    let folder = sources.join("target").join(board.name()).join(target);
    Ok(folder.join("release").join(FIRMWARE))
}

/// Reads what the firmware prints; see its `main.rs`.
fn read_output(text: &str) -> Result<Launch> {
    let mut launch = Launch {
        traces: Vec::new(),
        stack_bytes: 0,
        isa: String::new(),
    };
    let mut done = false;
    for line in text.lines() {
        read_line(line, &mut launch, &mut done).ok_or_else(|| unreadable(line))?;
    }
    match done {
        true => Ok(launch),
        false => Err(unreadable("the end, too early")),
    }
}

/// Takes one line into `launch`; `None` where it is not one that may come next.
fn read_line(line: &str, launch: &mut Launch, done: &mut bool) -> Option<()> {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next();
    match word()? {
        "model" => {
            let (_name, "layers", _layers, "arena", _bytes, "isa", isa) =
                (word()?, word()?, word()?, word()?, word()?, word()?, word()?)
            else {
                return None;
            };
            isa.clone_into(&mut launch.isa);
            launch.traces.push(Vec::new());
        }
        "image" => {
            let traces = launch.traces.last_mut()?;
            let index: usize = word()?.parse().ok()?;
            match (word()?, word()?) {
                ("input", "crc") if index == traces.len() => traces.push(Trace {
                    input_crc: u32::from_str_radix(word()?, 16).ok()?,
                    ..Trace::default()
                }),
                ("top1", class) if index + 1 == traces.len() => {
                    let trace = traces.last_mut()?;
                    trace.top1 = class.parse().ok()?;
                    let (_, _, _) = (word()?, word()?, word()?);
                    trace.logits = words.map(|logit| logit.parse().ok()).collect::<Option<_>>()?;
                }
                _ => return None,
            }
        }
        "layer" => {
            let layers = &mut launch.traces.last_mut()?.last_mut()?.layers;
            let index: usize = word()?.parse().ok()?;
            let ("crc", crc, "instructions", count) = (word()?, word()?, word()?, word()?) else {
                return None;
            };
            if index != layers.len() {
                return None;
            }
            layers.push(LayerTrace {
                crc: u32::from_str_radix(crc, 16).ok()?,
                instructions: count.parse().ok()?,
            });
        }
        "stack" => launch.stack_bytes = word()?.parse().ok()?,
        "done" => *done = true,
        _ => return None,
    }
    Some(())
}

fn unreadable(what: &str) -> Error {
    Error::new(
        ErrorKind::Toolchain,
        format!("the firmware printed what it should not: {what}"),
    )
    .remedy("build examples/qemu from the sources of this adcorda, and unset ADCORDA_FIRMWARE")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "model 0.adq layers 2 arena 468 isa dsp\n\
        image 0 input crc c2f75e5f\n\
        layer 0 crc b7c0c10d instructions 55259\n\
        layer 1 crc 7d8eee5d instructions 4668\n\
        image 0 top1 2 instructions 59927 logits -326 -1070 329\n\
        stack 4148\n\
        done\n";

    #[test]
    fn reads_what_the_firmware_prints() {
        let launch = read_output(OUTPUT).unwrap();
        let layer = |crc, instructions| LayerTrace { crc, instructions };
        let trace = Trace {
            input_crc: 0xc2f7_5e5f,
            layers: vec![layer(0xb7c0_c10d, 55259), layer(0x7d8e_ee5d, 4668)],
            top1: 2,
            logits: vec![-326, -1070, 329],
        };
        assert_eq!(launch.traces, [[trace]]);
        assert_eq!(launch.stack_bytes, 4148);
        assert_eq!(launch.isa, "dsp");
    }

    #[test]
    fn refuses_output_that_is_cut_short_or_mixed_up() {
        for lines in 0..OUTPUT.lines().count() {
            let cut: Vec<&str> = OUTPUT.lines().take(lines).collect();
            assert_eq!(
                read_output(&cut.join("\n")).unwrap_err().kind(),
                ErrorKind::Toolchain,
                "{lines} lines"
            );
        }
        for left_out in [0, 1, 2] {
            let lines = OUTPUT.lines().enumerate().filter(|&(i, _)| i != left_out);
            let text: Vec<&str> = lines.map(|(_, line)| line).collect();
            assert!(read_output(&text.join("\n")).is_err(), "without line {left_out}");
        }
        let strange = OUTPUT.replace("crc 7d8e", "crc xyz");
        assert!(read_output(&strange).unwrap_err().to_string().contains("layer 1 crc xyz"));
    }

    #[test]
    fn a_board_that_qemu_does_not_have_is_an_error() {
        let error = Firmware::locate(Board::Rp2040).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Board);
        assert!(error.to_string().contains("mps2-an386, mps2-an385, mps2-an385-m0"), "{error}");
    }

    #[test]
    fn no_images_is_an_error() {
        let error = run_images(&[], &[], Board::Mps2An386).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_command_that_does_not_end_is_stopped() {
        let limit = Duration::from_millis(50);
        let begin = Instant::now();
        assert!(output_within(Command::new("sleep").arg("60"), limit).unwrap().is_none());
        assert!(begin.elapsed() < Duration::from_secs(30));
        let (status, stdout, _) = output_within(Command::new("echo").arg("done"), Duration::from_secs(60))
            .unwrap()
            .unwrap();
        assert!(status.success());
        assert_eq!(stdout, "done\n");
    }
}
