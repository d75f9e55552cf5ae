//! `adcorda gate`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::board::Board;
use adcorda::data::SetSpec;
use adcorda::file::{check_writable, write_atomic};
use adcorda::gate::{DEVICE_IMAGES, Request, Tolerances, gate};
use adcorda::train::progress_bar;
use clap::Args;

use super::{print, to_json};

/// Compare a model with a committed baseline: top-1, parity in QEMU, instructions, sizes; fail where it got worse.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda gate model.adq --data cifar10:data --baseline gate.json --record   (once, and commit gate.json)\n         \
adcorda gate model.adq --data cifar10:data --baseline gate.json\n\n\
Prints a Markdown table. Exit code 0: nothing is worse than the tolerances allow; 13: something is; 10: host and board differ;\n\
14: the baseline is missing, damaged, or not of these images, boards and kind of model. docs/CI.md has a GitHub Action around it."
)]
pub struct Gate {
    /// A .adq file
    model: PathBuf,
    /// cifar10:DIR, cifar100:DIR or synthetic; its test images
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// The figures to compare with: a JSON file
    #[arg(long, value_name = "FILE")]
    baseline: PathBuf,
    /// A board in QEMU, as for `adcorda run`; may be repeated [default: those of the baseline, else mps2-an386]
    #[arg(long, value_name = "NAME")]
    board: Vec<String>,
    /// Images to run on each board
    #[arg(long, value_name = "N", help = format!("Images to run on each board [default: as in the baseline, else {DEVICE_IMAGES}]"))]
    images: Option<usize>,
    /// Measure top-1 on the first N images only [default: as many as in the baseline, else all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Points of top-1 that may be lost
    #[arg(long, default_value_t = Tolerances::default().accuracy, value_name = "POINTS")]
    accuracy_tolerance: f64,
    /// Per cent by which the instructions of an inference, and of each layer, may rise
    #[arg(long, default_value_t = Tolerances::default().instructions, value_name = "PERCENT")]
    instructions_tolerance: f64,
    /// Per cent by which model file, weights and arena may grow
    #[arg(long, default_value_t = Tolerances::default().size, value_name = "PERCENT")]
    size_tolerance: f64,
    /// Per cent by which the firmware's stack and flash may grow, which the compiler decides
    #[arg(long, default_value_t = Tolerances::default().firmware, value_name = "PERCENT")]
    firmware_tolerance: f64,
    /// Write the baseline, whatever changed; only where host and boards differ it is left alone
    #[arg(long)]
    record: bool,
    /// Also write the table to this file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Gate {
    pub fn run(self) -> Result<()> {
        let request = Request {
            boards: self.board.iter().map(|name| Board::from_name(name)).collect::<Result<_>>()?,
            model: self.model,
            set: self.data,
            baseline: self.baseline,
            images: self.images,
            limit: self.limit,
            tolerances: Tolerances {
                accuracy: self.accuracy_tolerance,
                instructions: self.instructions_tolerance,
                size: self.size_tolerance,
                firmware: self.firmware_tolerance,
            },
            record: self.record,
        };
        if let Some(file) = &self.markdown {
            check_writable(file)?;
        }
        let bar = progress_bar(0, "eval");
        let report = gate(&request, |done, images| {
            bar.set_length(images as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let table = report.to_string();
        if let Some(file) = &self.markdown {
            write_atomic(file, table.as_bytes())?;
        }
        print(self.json, &to_json(&report)?, &table)?;
        report.check(&request)
    }
}
