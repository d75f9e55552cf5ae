//! `adcorda eval`.

use std::path::{Path, PathBuf};

use adcorda::Result;
use adcorda::data::{Dataset, SetSpec, Split};
use adcorda::eval::{agreement, evaluate_model_with, load_model_file};
use adcorda::train::progress_bar;
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, freeze, is_model_file, load_checkpoint, load_data, print};

/// Measure top-1: a checkpoint on the trainer, an .adq file in the integer runtime itself.
#[derive(Args)]
#[command(after_help = "Example: adcorda eval model.adq --data cifar10:data\n         \
adcorda eval model.adq --data cifar10:data --against runs/w2   (agreement of integer and fake-quantized network)")]
pub struct Eval {
    /// A .adq file, a checkpoint or a run folder
    model: PathBuf,
    /// cifar10:DIR, cifar100:DIR or synthetic; its test images
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// The first N images only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// A second model: also report the share of images on which both give the same class
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub fn run(self) -> Result<()> {
        let dataset = load_data(&self.data, Split::Test, self.limit)?;
        let predictions = self.predict(&self.model, &dataset)?;
        let top1 = top1_of(&predictions, &dataset);
        let images = dataset.len();
        let mut value = json!({ "top1": top1, "images": images });
        let mut text = format!(
            "{}: {top1:.2} % top-1 on {images} images of {}",
            self.model.display(),
            self.data
        );
        if let Some(other) = &self.against {
            let others = self.predict(other, &dataset)?;
            let (other_top1, same) = (top1_of(&others, &dataset), agreement(&predictions, &others));
            value["against_top1"] = json!(other_top1);
            value["agreement"] = json!(same);
            text += &format!(
                "\n{}: {other_top1:.2} % top-1; same class on {same:.2} % of the images",
                other.display()
            );
        }
        print(self.json, &value, &text)
    }

    fn predict(&self, model: &Path, dataset: &Dataset) -> Result<Vec<u16>> {
        if is_model_file(model)? {
            let bar = progress_bar(dataset.len(), "eval");
            let evaluation = evaluate_model_with(&load_model_file(model)?, dataset, |done| bar.set_position(done as u64))?;
            bar.finish_and_clear();
            return Ok(evaluation.predictions);
        }
        let checkpoint = load_checkpoint(model)?;
        freeze(&checkpoint, &self.device.open()?)?.predict(dataset)
    }
}

fn top1_of(predictions: &[u16], dataset: &Dataset) -> f64 {
    let right = predictions
        .iter()
        .zip(dataset.labels())
        .filter(|(prediction, label)| prediction == label)
        .count();
    100.0 * right as f64 / dataset.len().max(1) as f64
}
