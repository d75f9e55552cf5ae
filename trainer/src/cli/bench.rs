//! `adcorda bench`.

use std::path::Path;

use adcorda::agreement::{self, Agreement, Form, Kind};
use adcorda::bench::{BenchOptions, Throughput, throughput};
use adcorda::checkpoint::{Checkpoint, Provenance};
use adcorda::device::Device;
use adcorda::quantize::{QuantizeOptions, Width, ptq};
use adcorda::state_dict::StateDict;
use adcorda::{Error, ErrorKind, Result, zoo};
use clap::Args;
use serde_json::{Value, json};

use super::quantize::parse_width;
use super::{DeviceArgs, load_checkpoint, print, to_json};

/// Measure a device: images a second forward, in training and under attack; agreement with another device.
#[derive(Args)]
#[command(after_help = "Example: adcorda bench resnet8 --weights w2 --batch 64\n         \
adcorda bench resnet8 --device cuda --against flex --seconds 0   (only whether both compute the same; exit code 10 if not)\n\n\
On images of noise, which stay on the device. Forward: running statistics. Training: the fake-quantized network forward,\n\
backward, one step of Adam. Attack: forward and backward to the pixels. Each is the median of five stretches, after a warm-up.\n\
What agreement asks for, and why, is in the documentation of the module `agreement`.")]
pub struct Bench {
    /// A network with random weights (resnet8, resnet20, ...), a checkpoint or a run folder
    network: String,
    /// What a float network is quantized to: w1, w2, w4 or w8 [default: w2; a quantized checkpoint stays as it is]
    #[arg(long, value_name = "WIDTH", value_parser = parse_width)]
    weights: Option<Width>,
    /// Images of a step
    #[arg(long, default_value_t = BenchOptions::default().batch, value_name = "N")]
    batch: usize,
    /// For each of the three measurements; 0 measures nothing, for --against alone
    #[arg(long, default_value_t = BenchOptions::default().seconds, value_name = "S")]
    seconds: f64,
    /// Before measuring, compare logits, loss, gradients and parameters of one step with this device's
    #[arg(long, value_name = "DEVICE")]
    against: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Images of the step on which two devices are compared.
const COMPARED: usize = 16;

impl Bench {
    pub fn run(self) -> Result<()> {
        let device = self.device.open()?;
        let checkpoint = self.checkpoint()?;
        let network = &checkpoint.network;
        let mut value = json!({
            "engine": "burn", "network": network.name, "weights": widths(&checkpoint), "batch": self.batch,
            "device": device.name(), "threads": rayon::current_num_threads(),
        });
        let mut text = format!("{} on {device}", network.name);

        let mut differs = None;
        if let Some(other) = &self.against {
            let other = Device::from_name(other)?;
            let images = agreement::noise(network, COMPARED, 1);
            let agreement = agreement::compare(&checkpoint, &images, &device, &other)?;
            value["agreement"] = summary(&agreement)?;
            text += &said(&agreement);
            if !agreement.holds() {
                let tensors = agreement.exceeded().count();
                differs = Some(Error::new(
                    ErrorKind::Parity,
                    format!(
                        "{device} and {other} do not compute the same step: {tensors} tensors differ by more than they may"
                    ),
                ));
            }
        }
        // What computes something else is not timed.
        if self.seconds != 0.0 && differs.is_none() {
            let options = BenchOptions {
                batch: self.batch,
                seconds: self.seconds,
            };
            let found = throughput(&checkpoint, options, &device)?;
            if let (Value::Object(value), Value::Object(found)) = (&mut value, to_json(&found)?) {
                value.extend(found);
            }
            text += &table(&found, self.batch);
        }
        print(self.json, &value, &text)?;
        differs.map_or(Ok(()), Err)
    }

    /// What is measured, quantized. Calibration is on noise: it is about time.
    fn checkpoint(&self) -> Result<Checkpoint> {
        let path = Path::new(&self.network);
        let start = if zoo::NAMES.contains(&self.network.as_str()) {
            let network = zoo::zoo(&self.network, 10)?;
            Checkpoint {
                state: StateDict::init(&network, 0)?,
                network,
                quantization: None,
                labels: Vec::new(),
                provenance: Provenance::default(),
            }
        } else if path.exists() {
            load_checkpoint(path)?
        } else {
            let what = format!("`{}` is neither a network nor a checkpoint that exists", self.network);
            return Err(Error::new(ErrorKind::Usage, what)
                .remedy(format!("name a checkpoint, a run folder or one of {}", zoo::NAMES.join(", "))));
        };
        if start.quantization.is_some() && self.weights.is_none() {
            return Ok(start);
        }
        let images = agreement::noise(&start.network, 2 * COMPARED, 0);
        let width = self.weights.unwrap_or(Width::W2);
        ptq(&start, &images, &QuantizeOptions::new(width), &Device::flex())
    }
}

/// The widths of the layers' weights, each once, in the order of the layers: `w8 w2`.
fn widths(checkpoint: &Checkpoint) -> String {
    let mut names: Vec<&str> = Vec::new();
    for quantizer in checkpoint
        .quantization
        .iter()
        .flat_map(|quantization| quantization.weights.iter().flatten())
    {
        let name = quantizer.width.name();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(" ")
}

const KINDS: [Kind; 6] = [
    Kind::Logits,
    Kind::Loss,
    Kind::Gradient,
    Kind::InputGradient,
    Kind::Statistics,
    Kind::Updated,
];

fn summary(agreement: &Agreement) -> Result<Value> {
    let kinds = Form::ALL.into_iter().flat_map(|form| KINDS.map(|kind| (form, kind)));
    let worst: Vec<_> = kinds.filter_map(|(form, kind)| agreement.worst(form, kind)).collect();
    Ok(json!({
        "against": agreement.against, "holds": agreement.holds(), "tensors": agreement.tensors.len(),
        "worst": to_json(&worst)?, "exceeded": to_json(&agreement.exceeded().collect::<Vec<_>>())?,
    }))
}

fn said(agreement: &Agreement) -> String {
    let mut text = format!(
        "\nagainst {}: {} tensors of one step",
        agreement.against,
        agreement.tensors.len()
    );
    for form in Form::ALL {
        text += &format!("\n  {:<9}", form.name());
        for kind in KINDS {
            if let Some(worst) = agreement.worst(form, kind) {
                text += &format!("  {} {:.0e}", format!("{kind:?}").to_lowercase(), worst.difference);
            }
        }
    }
    for tensor in agreement.exceeded() {
        text += &format!(
            "\n  differs: {}: {:.2} % of {} elements by more than {:.0e} (allowed {:.0} %), the most by {:.0e}",
            tensor.name,
            100.0 * tensor.share,
            tensor.elements,
            tensor.tolerance.difference,
            100.0 * tensor.tolerance.share,
            tensor.difference
        );
    }
    text
}

fn table(found: &Throughput, batch: usize) -> String {
    let mut text = format!("\nimages a second, batch {batch}");
    for (what, rate) in [
        ("forward", &found.forward),
        ("training step", &found.training),
        ("attack step", &found.attack),
    ] {
        text += &format!("\n  {what:<13} {:>10.0}", rate.images_per_second);
    }
    text
}
