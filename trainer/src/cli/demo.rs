//! `adcorda demo`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use adcorda::board::Board;
use adcorda::checkpoint::Checkpoint;
use adcorda::data::{SetSpec, Split};
use adcorda::eval::evaluate_model;
use adcorda::export::{ExportOptions, export};
use adcorda::quantize::{QuantizeOptions, Width, ptq};
use adcorda::refine::{RefineOptions, refine};
use adcorda::run_folder::RunFolder;
use adcorda::train::{TrainOptions, train};
use adcorda::{Error, ErrorKind, Result, qemu};
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, load_checkpoint, top1};

/// Run the whole path on the built-in images.
#[derive(Args)]
#[command(after_help = "Example: adcorda demo -o runs/demo\n\n\
Trains a small float network, quantizes it to ternary weights (PTQ), refines it with AdCorDA and, with the same budget, by\n\
plain QAT, exports it, evaluates it in the integer runtime, and compares with a Cortex-M4 in QEMU where QEMU is present.\n\
No download. A few minutes on two cores; run again, it resumes.")]
pub struct Demo {
    /// Folder for runs, checkpoints and the model
    #[arg(short, long, default_value = "runs/demo", value_name = "DIR")]
    output: PathBuf,
    /// Another seed gives other weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Images that the emulated board runs.
const QEMU_IMAGES: usize = 4;

impl Demo {
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let device = self.device.open()?;
        let set = SetSpec::SYNTHETIC;
        let (images, test) = (set.load(Split::Train)?, set.load(Split::Test)?);
        let folder = |name: &str| self.output.join(name);
        fs::create_dir_all(&self.output).map_err(|cause| Error::io("make folder", &self.output, cause))?;
        let say = |step: &str, result: String| match self.json {
            true => Ok(()),
            false => super::say(&format!("{step:<11}{result}")),
        };
        say(
            "data",
            format!(
                "{} training and {} test images, {} classes",
                images.len(),
                test.len(),
                images.classes.len()
            ),
        )?;

        let options = TrainOptions {
            epochs: 15,
            learning_rate: 5e-3,
            augment: false, // some of the classes are told apart by their direction
            seed: self.seed,
            ..TrainOptions::default()
        };
        let start = Checkpoint::untrained("tiny", &images, self.seed)?;
        let run = RunFolder::open(folder("float"), &json!({ "verb": "demo", "options": options }))?;
        train(&start, None, &images, &options, &run, &device)?;
        drop(run);
        let float = load_checkpoint(&folder("float"))?;
        let float_top1 = top1(&float, &test, &device)?;
        say("float", format!("{float_top1:.2} % top-1 on the test images"))?;

        let quantized = ptq(&float, &images, &QuantizeOptions::new(Width::W2), &device)?;
        quantized.save(folder("w2.ckpt"))?;
        let ptq_top1 = top1(&quantized, &test, &device)?;
        say("ptq", format!("{ptq_top1:.2} % with ternary weights"))?;

        let options = RefineOptions {
            training: TrainOptions {
                epochs: 6,
                learning_rate: 2e-3,
                augment: false,
                seed: self.seed,
                ..TrainOptions::default()
            },
            ..RefineOptions::default()
        };
        let run = RunFolder::open(folder("refined"), &json!({ "verb": "demo", "options": options }))?;
        let report = refine(&quantized, None, &images, &options, true, &run, &device)?;
        drop(run);
        let refined = load_checkpoint(&folder("refined"))?;
        let refined_top1 = top1(&refined, &test, &device)?;
        let control_top1 = top1(&load_checkpoint(&folder("refined/control"))?, &test, &device)?;
        say(
            "refined",
            format!(
                "{refined_top1:.2} % by AdCorDA; {} misclassified images corrected",
                report.arm.correction.map_or(0, |correction| correction.corrected)
            ),
        )?;
        say("control", format!("{control_top1:.2} % by plain QAT with the same budget"))?;

        let exported = export(&refined, &ExportOptions::default())?;
        let model = folder("model.adq");
        exported.write(&model)?;
        let integer_top1 = evaluate_model(&exported.bytes, &test)?.top1;
        say(
            "integer",
            format!(
                "{integer_top1:.2} % in the runtime; {} bytes of flash, {} bytes of arena",
                exported.bytes.len(),
                exported.arena_bytes
            ),
        )?;

        let parity = self.parity(&model, &test, &say)?;
        say(
            "written",
            format!("{} after {:.0} s", model.display(), started.elapsed().as_secs_f32()),
        )?;
        if self.json {
            super::say(
                &json!({
                    "float_top1": float_top1, "ptq_top1": ptq_top1, "control_top1": control_top1,
                    "refined_top1": refined_top1, "integer_top1": integer_top1, "parity": parity,
                    "seconds": started.elapsed().as_secs_f32(),
                })
                .to_string(),
            )?;
        }
        Ok(())
    }

    /// Whether a Cortex-M4 in QEMU computes the host's bits; `None` where QEMU or the target is missing.
    fn parity(
        &self,
        model: &Path,
        test: &adcorda::data::Dataset,
        say: &impl Fn(&str, String) -> Result<()>,
    ) -> Result<Option<bool>> {
        let board = Board::from_name("mps2-an386")?;
        match qemu::run(model, &test.clone().take(QEMU_IMAGES), board) {
            Ok(report) => {
                let what = format!(
                    "{QEMU_IMAGES} images on a Cortex-M4: every byte of every layer equal; {} instructions an inference",
                    report.instructions
                );
                say("parity", what)?;
                Ok(Some(true))
            }
            Err(error) if error.kind() == ErrorKind::Toolchain => {
                say("parity", format!("not checked: {error}"))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
