//! `adcorda inspect`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::board::Board;
use adcorda::eval::load_model_file;
use adcorda::inspect::inspect;
use clap::Args;

use super::{print, to_json};

/// Show a model file: layers, bytes, operations, arena, boards it fits.
#[derive(Args)]
#[command(after_help = "Example: adcorda inspect model.adq --board stm32f411-nucleo")]
pub struct Inspect {
    /// A .adq file
    model: PathBuf,
    /// Fail where this board has not enough flash or RAM
    #[arg(long, value_name = "NAME")]
    board: Option<String>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let board = self.board.as_deref().map(Board::from_name).transpose()?;
        let bytes = load_model_file(&self.model)?;
        let inspection = inspect(&bytes)?;
        if let Some(board) = board {
            board.fits(inspection.flash_bytes, inspection.arena_bytes)?;
        }
        print(self.json, &to_json(&inspection)?, &inspection.to_string())
    }
}
