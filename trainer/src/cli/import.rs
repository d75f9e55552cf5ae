//! `adcorda import`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::checkpoint::{Checkpoint, Provenance};
use adcorda::state_dict::StateDict;
use adcorda::zoo;
use clap::Args;
use serde_json::json;

use super::print;

/// Make a checkpoint of a known network from published weights.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda import resnet8 --weights resnet8.safetensors -o float.ckpt\n\n\
Reads safetensors and PyTorch files (.th, .pt, .pth). Every tensor must be there, in its shape, and finite."
)]
pub struct Import {
    /// resnet8, resnet8-wide, resnet20, vgg-small, dscnn or tiny
    network: String,
    /// The weights: safetensors or PyTorch
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Number of classes
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// Checkpoint to write
    #[arg(short, long, value_name = "CKPT")]
    output: PathBuf,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Import {
    pub fn run(self) -> Result<()> {
        let network = zoo::zoo(&self.network, self.classes)?;
        let state = StateDict::load(&self.weights)?;
        state.check(&network)?;
        let parameters: usize = state.tensors.values().map(|array| array.values.len()).sum();
        let layers = network.layers.len();
        let checkpoint = Checkpoint {
            network,
            state,
            quantization: None,
            labels: Vec::new(),
            provenance: Provenance {
                method: "imported".into(),
                ..Provenance::default()
            },
        };
        checkpoint.save(&self.output)?;
        print(
            self.json,
            &json!({ "parameters": parameters, "layers": layers }),
            &format!(
                "{}: {layers} layers, {parameters} values -> {}",
                self.network,
                self.output.display()
            ),
        )
    }
}
