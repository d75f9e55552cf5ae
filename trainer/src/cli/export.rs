//! `adcorda export`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::export::{ExportOptions, export};
use clap::Args;
use serde_json::json;

use super::{load_checkpoint, print};

/// Lower a quantized checkpoint to an integer model file.
#[derive(Args)]
#[command(after_help = "Example: adcorda export runs/w2 -o model.adq\n\n\
Beside model.adq, model.rs is written: the sizes as constants and the file as an aligned static, ready to include in firmware.")]
pub struct Export {
    /// Quantized checkpoint or run folder
    checkpoint: PathBuf,
    /// Model file to write
    #[arg(short, long, value_name = "MODEL.adq")]
    output: PathBuf,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let checkpoint = load_checkpoint(&self.checkpoint)?;
        let exported = export(&checkpoint, &ExportOptions::default())?;
        exported.write(&self.output)?;
        let (bytes, arena_bytes) = (exported.bytes.len(), exported.arena_bytes);
        print(
            self.json,
            &json!({ "bytes": bytes, "arena_bytes": arena_bytes }),
            &format!(
                "{}: {bytes} bytes of flash, {arena_bytes} bytes of arena",
                self.output.display()
            ),
        )
    }
}
