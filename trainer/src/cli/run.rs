//! `adcorda run`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::board::Board;
use adcorda::data::{SetSpec, Split};
use adcorda::qemu;
use clap::Args;

use super::{load_data, print, to_json};

/// Run a model on a board emulated by QEMU and compare it with the host, layer by layer.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda run model.adq --board mps2-an386 --data cifar10:data --images 32\n\n\
Counts are executed instructions, exact and repeatable; they are not cycles."
)]
pub struct Run {
    /// A .adq file
    model: PathBuf,
    /// mps2-an386 (Cortex-M4), mps2-an385 (M3), mps2-an385-m0 (M0 code on an M3), mps2-an500 (M7), mps2-an505 (M33) or
    /// mps3-an547 (M55)
    #[arg(long, default_value = "mps2-an386", value_name = "NAME")]
    board: String,
    /// cifar10:DIR, cifar100:DIR or synthetic; its test images
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// How many images
    #[arg(long, default_value_t = 4, value_name = "N")]
    images: usize,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Run {
    pub fn run(self) -> Result<()> {
        let board = Board::from_name(&self.board)?;
        let dataset = load_data(&self.data, Split::Test, Some(self.images))?;
        let report = qemu::run(&self.model, &dataset, board)?;
        print(self.json, &to_json(&report)?, &report.to_string())
    }
}
