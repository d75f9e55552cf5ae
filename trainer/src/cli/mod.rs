//! One file a verb; this one holds what they share: flags that are alike everywhere, JSON or text output, exit codes.

mod attack;
mod bench;
mod data;
mod demo;
mod eval;
mod experiment;
mod export;
mod gate;
mod import;
mod inspect;
mod new_firmware;
mod quantize;
mod refine;
mod run;
mod train;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use adcorda::checkpoint::Checkpoint;
use adcorda::data::{Dataset, SetSpec, Split};
use adcorda::device::Device;
use adcorda::nn::{Frozen, Mode};
use adcorda::quantize::Scales;
use adcorda::refine::Arm;
use adcorda::train::{Optimizer, TrainOptions};
use adcorda::{Error, ErrorKind, Result};
use clap::{Args, Parser, Subcommand};

/// Refine low-bit CIFAR-class networks with AdCorDA and run them on Cortex-M.
///
/// From images and a float network to a refined network with 1-bit, ternary or 4-bit weights, one model file, and bit-for-bit
/// parity in QEMU. Start with `adcorda demo`.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 success, 2 usage, 3 data set, 4 weights or checkpoint, 5 model file, 6 compute device, \
7 board too small, 8 missing tool, 9 file system, 10 host and device differ, 11 training diverged, 12 download, 13 worse than the baseline, \
14 baseline missing or of something else.";

#[derive(Subcommand)]
enum Verb {
    /// Run the whole path on the built-in images: train, quantize, refine, export, evaluate, compare with QEMU
    Demo(demo::Demo),
    /// Download or describe a data set
    Data(data::Data),
    /// Make a checkpoint of a known network from published weights
    Import(import::Import),
    /// Train a float network, or continue a quantized one (plain QAT)
    Train(train::Train),
    /// Quantize a float checkpoint: weights to 1, 2 (ternary), 4 or 8 bits, activations to 8 (PTQ)
    Quantize(quantize::Quantize),
    /// Refine a quantized checkpoint with AdCorDA, beside plain QAT of the same budget
    Refine(refine::Refine),
    /// Run a table of experiments, resumably and on several machines, and compare its arms at equal compute
    Experiment(experiment::Experiment),
    /// Lower a quantized checkpoint to an integer model file
    Export(export::Export),
    /// Measure top-1: a checkpoint on the trainer, an .adq file in the integer runtime itself
    Eval(eval::Eval),
    /// Measure top-1 under attack, of a checkpoint or an .adq file, and whether the figures can be believed
    Attack(attack::Attack),
    /// Measure a device: images a second forward, in training and under attack, and whether it agrees with another one
    Bench(bench::Bench),
    /// Show a model file: layers, bytes, operations, arena, boards it fits
    Inspect(inspect::Inspect),
    /// Run a model on a board emulated by QEMU and compare it with the host, layer by layer
    Run(run::Run),
    /// Compare a model with a committed baseline: top-1, parity in QEMU, instructions, sizes; fail where it got worse
    Gate(gate::Gate),
    /// Make a firmware project around a model, which proves itself in QEMU or on a board with `cargo run --release`
    NewFirmware(new_firmware::NewFirmware),
}

/// Parses the command line and runs the verb.
pub fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Demo(verb) => verb.run(),
        Verb::Data(verb) => verb.run(),
        Verb::Import(verb) => verb.run(),
        Verb::Train(verb) => verb.run(),
        Verb::Quantize(verb) => verb.run(),
        Verb::Refine(verb) => verb.run(),
        Verb::Experiment(verb) => verb.run(),
        Verb::Export(verb) => verb.run(),
        Verb::Eval(verb) => verb.run(),
        Verb::Attack(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Run(verb) => verb.run(),
        Verb::Gate(verb) => verb.run(),
        Verb::NewFirmware(verb) => verb.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Where to compute.
#[derive(Args, Clone)]
struct DeviceArgs {
    /// flex (CPU), ndarray (CPU, slow, cargo feature `ndarray`), cuda or cuda:N (cargo feature `cuda`)
    #[arg(long, default_value = "flex", value_name = "NAME")]
    device: String,
}

impl DeviceArgs {
    fn open(&self) -> Result<Device> {
        Device::from_name(&self.device)
    }
}

/// How to train; alike for every verb that does.
#[derive(Args, Clone)]
struct TrainingArgs {
    /// Times that every training image is seen
    #[arg(long, default_value_t = 8, value_name = "N")]
    epochs: usize,
    /// Images of a step
    #[arg(long, default_value_t = 64, value_name = "N")]
    batch: usize,
    /// At the first step; falls to 0 along half a cosine
    #[arg(long, default_value_t = 1e-3, value_name = "RATE")]
    learning_rate: f64,
    /// adam or sgd
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: Optimizer,
    /// Decoupled for Adam, L2 for SGD
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    weight_decay: f32,
    /// Share of the target spread evenly over the classes
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    label_smoothing: f32,
    /// No random flip and shift
    #[arg(long)]
    no_augment: bool,
    /// Of order, augmentation, validation split and initial weights: the same seed gives the same file
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Images taken off the training set to choose the best epoch by
    #[arg(long, default_value_t = 500, value_name = "N")]
    validation: usize,
    /// The first N training images only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// For experiments: this share of the training labels replaced at random; validation labels stay
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    label_noise: f64,
    /// How the scales of quantized weights follow them: reestimated, or learned as parameters (LSQ; W1 is estimated in any case)
    #[arg(long, value_enum, default_value = "reestimated")]
    scales: Scales,
    /// train: BatchNorm normalizes with the batch, and running statistics move; frozen: with running statistics that stay
    #[arg(long, value_enum, default_value = "train")]
    batch_norm: Mode,
}

/// Whom to learn from beside the labels.
#[derive(Args, Clone)]
struct TeacherArgs {
    /// Checkpoint, usually the float network, whose logits are targets too (knowledge distillation)
    #[arg(long, value_name = "CKPT")]
    teacher: Option<PathBuf>,
    /// Weight of the teacher in the loss, the labels having the rest
    #[arg(long, default_value_t = TrainOptions::default().distill, value_name = "SHARE")]
    distill: f64,
    /// Divides the logits before they are compared with the teacher's
    #[arg(long, default_value_t = TrainOptions::default().temperature, value_name = "T")]
    temperature: f64,
}

impl TeacherArgs {
    fn load(&self) -> Result<Option<Checkpoint>> {
        self.teacher.as_deref().map(load_checkpoint).transpose()
    }
}

impl TrainingArgs {
    fn options(&self, teacher: &TeacherArgs) -> TrainOptions {
        TrainOptions {
            epochs: self.epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            optimizer: self.optimizer,
            weight_decay: self.weight_decay,
            label_smoothing: self.label_smoothing,
            augment: !self.no_augment,
            seed: self.seed,
            validation: self.validation,
            label_noise: self.label_noise,
            scales: self.scales,
            batch_norm: self.batch_norm,
            distill: teacher.distill,
            temperature: teacher.temperature,
        }
    }
}

/// Prints one JSON object or the text, on standard output.
fn print(json: bool, value: &serde_json::Value, text: &str) -> Result<()> {
    if json { say(&value.to_string()) } else { say(text) }
}

/// Prints lines on standard output. A reader that has gone away, such as `head`, wants no more of them: that is no error.
fn say(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write to", "standard output", cause)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A report as JSON.
fn to_json(report: &impl serde::Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(report)
        .map_err(|cause| Error::new(ErrorKind::Io, format!("the report cannot be written as JSON: {cause}")))
}

/// Whether a path is that of a model file: by its name, or by its content.
fn is_model_file(path: &Path) -> Result<bool> {
    Ok(path.extension().is_some_and(|extension| extension == "adq")
        || path.is_file() && adcorda::file::read(path)?.starts_with(&adcorda_formats::MAGIC))
}

/// A checkpoint file, or the best checkpoint of a run folder.
fn load_checkpoint(path: &Path) -> Result<Checkpoint> {
    Checkpoint::load(&checkpoint_path(path)?)
}

fn checkpoint_path(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let folders = std::iter::once("").chain(Arm::ALL.map(Arm::name));
    folders
        .map(|folder| path.join(folder).join("best.safetensors"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Weights,
                format!("{} is a folder without a best.safetensors", path.display()),
            )
            .remedy("name a checkpoint file or a finished run folder")
        })
}

/// Loads a split; `limit` keeps the first records.
fn load_data(set: &SetSpec, split: Split, limit: Option<usize>) -> Result<Dataset> {
    if limit == Some(0) {
        return Err(Error::new(ErrorKind::Usage, format!("no images of {set} are asked for")).remedy("ask for at least one"));
    }
    let dataset = set.load(split)?;
    Ok(match limit {
        Some(limit) => dataset.take(limit),
        None => dataset,
    })
}

/// Top-1 of a checkpoint on the trainer, in per cent.
fn top1(checkpoint: &Checkpoint, dataset: &Dataset, device: &Device) -> Result<f32> {
    freeze(checkpoint, device)?.accuracy(dataset)
}

/// A checkpoint as the trainer evaluates it.
fn freeze(checkpoint: &Checkpoint, device: &Device) -> Result<Frozen> {
    Frozen::new(
        &checkpoint.network,
        &checkpoint.state,
        checkpoint.quantization.as_ref(),
        device,
    )
}

/// Writes what a checkpoint reached on the test images into its file, where export takes it from.
fn note_top1(path: &Path, top1: f32) -> Result<()> {
    let path = checkpoint_path(path)?;
    let mut checkpoint = Checkpoint::load(&path)?;
    if checkpoint.provenance.top1 == Some(top1) {
        return Ok(());
    }
    checkpoint.provenance.top1 = Some(top1);
    checkpoint.save(path)
}

/// `cifar10` of `cifar10:DIR`.
fn set_name(set: &SetSpec) -> String {
    let text = set.to_string();
    text.split(':').next().unwrap_or_default().to_owned()
}
