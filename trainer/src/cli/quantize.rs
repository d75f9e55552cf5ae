//! `adcorda quantize`.

use std::path::PathBuf;

use adcorda::data::{SetSpec, Split};
use adcorda::file::check_writable;
use adcorda::quantize::activations::Calibration;
use adcorda::quantize::{QuantizeOptions, Width, ptq};
use adcorda::{Error, ErrorKind, Result};
use clap::Args;
use serde_json::{Map, json};

use super::{DeviceArgs, load_checkpoint, load_data, print, set_name, top1};

/// Quantize a float checkpoint (PTQ).
#[derive(Args)]
#[command(
    after_help = "Example: adcorda quantize float.ckpt --weights w2 --data cifar10:data -o w2.ckpt\n\n\
The first convolution and the last linear layer stay at 8 bits unless --layer names them. BatchNorm statistics are\n\
re-estimated and activations calibrated on --images training images."
)]
pub struct Quantize {
    /// Float checkpoint or run folder
    checkpoint: PathBuf,
    /// w1 (binary), w2 (ternary), w4 or w8
    #[arg(long, value_name = "WIDTH", value_parser = parse_width)]
    weights: Width,
    /// Another width for one layer; may be repeated
    #[arg(long = "layer", value_name = "NAME=WIDTH", value_parser = parse_override)]
    layers: Vec<(String, Width)>,
    /// How activation ranges are chosen: percentile or mse
    #[arg(long, default_value = "percentile", value_name = "METHOD", value_parser = parse_calibration)]
    calibration: Calibration,
    /// Training images for calibration and re-estimation
    #[arg(long, default_value_t = 2000, value_name = "N")]
    images: usize,
    /// Which images those are
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// cifar10:DIR, cifar100:DIR or synthetic
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// Checkpoint to write
    #[arg(short, long, value_name = "CKPT")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Quantize {
    pub fn run(self) -> Result<()> {
        let device = self.device.open()?;
        let float = load_checkpoint(&self.checkpoint)?;
        check_writable(&self.output)?;
        let train = load_data(&self.data, Split::Train, None)?;
        let options = QuantizeOptions {
            overrides: self.layers,
            calibration: self.calibration,
            images: self.images,
            seed: self.seed,
            ..QuantizeOptions::new(self.weights)
        };
        let mut quantized = ptq(&float, &train, &options, &device)?;
        quantized.labels.clone_from(&train.classes);
        if quantized.provenance.data.is_empty() {
            quantized.provenance.data = set_name(&self.data);
        }
        let test = load_data(&self.data, Split::Test, None)?;
        let top1 = top1(&quantized, &test, &device)?;
        quantized.provenance.top1 = Some(top1);
        quantized.save(&self.output)?;

        let quantizers = quantized.quantization.iter().flat_map(|quantization| &quantization.weights);
        let bits: Map<_, _> = quantized
            .network
            .layers
            .iter()
            .zip(quantizers)
            .filter_map(|(layer, quantizer)| Some((layer.name.clone(), json!(quantizer.as_ref()?.width.bits()))))
            .collect();
        print(
            self.json,
            &json!({ "top1": top1, "images": test.len(), "bits": bits }),
            &format!(
                "{}: {top1:.2} % top-1 on {} images of {} -> {}",
                self.weights.name(),
                test.len(),
                self.data,
                self.output.display()
            ),
        )
    }
}

pub fn parse_width(text: &str) -> Result<Width> {
    Width::ALL
        .into_iter()
        .find(|width| width.name() == text)
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("unknown weight width \"{text}\"")).remedy("one of w1, w2, w4, w8"))
}

fn parse_calibration(text: &str) -> Result<Calibration> {
    match text {
        "percentile" => Ok(Calibration::Percentile),
        "mse" => Ok(Calibration::Mse),
        _ => Err(Error::new(ErrorKind::Usage, format!("unknown calibration \"{text}\"")).remedy("percentile or mse")),
    }
}

fn parse_override(text: &str) -> Result<(String, Width)> {
    let (name, width) = text
        .split_once('=')
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("\"{text}\" is not NAME=WIDTH")).remedy("for example conv1=w4"))?;
    Ok((name.to_owned(), parse_width(width)?))
}
