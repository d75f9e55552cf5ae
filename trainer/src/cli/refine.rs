//! `adcorda refine`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::checkpoint::Checkpoint;
use adcorda::data::{SetSpec, Split};
use adcorda::refine::{ADCORDA, AttackOptions, CONTROL, Method, RefineOptions, refine};
use adcorda::run_folder::RunFolder;
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, TrainingArgs, load_checkpoint, load_data, note_top1, print, to_json, top1};

/// Refine a quantized checkpoint with AdCorDA, beside plain QAT of the same budget.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda refine runs/qat --data cifar10:data --limit 10000 --epochs 2 --control -o runs/w2\n\n\
Misclassified training images are replaced by near ones that the network gets right; training on those is tied to the\n\
original images by Deep CORAL. --control spends the same number of forward-backward passes (attack included) on plain QAT.\n\
RUN/adcorda and RUN/control hold the two; the best by validation is kept, the start included. Test figures are measured\n\
once, at the end. Give the same command again to resume after a kill."
)]
pub struct Refine {
    /// Quantized checkpoint or run folder
    checkpoint: PathBuf,
    #[command(flatten)]
    training: TrainingArgs,
    /// How corrections are searched for: fgsm or pgd
    #[arg(long, value_enum, default_value = "pgd")]
    attack: Method,
    /// Largest change of a pixel, in grey levels
    #[arg(long, default_value_t = 8, value_name = "LEVELS")]
    epsilon: u8,
    /// Most steps of pgd, one grey level each
    #[arg(long, default_value_t = 10, value_name = "N")]
    attack_steps: usize,
    /// A corrected image's class leads every other by this many logits
    #[arg(long, default_value_t = 2.0, value_name = "LOGITS")]
    margin: f32,
    /// Weight of the Deep CORAL loss
    #[arg(long, default_value_t = 1000.0, value_name = "WEIGHT")]
    lambda: f64,
    /// Weight of the cross-entropy on the original images
    #[arg(long, default_value_t = 0.0, value_name = "WEIGHT")]
    target_weight: f64,
    /// Also run plain QAT with the same budget
    #[arg(long)]
    control: bool,
    /// cifar10:DIR, cifar100:DIR or synthetic
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// Run folder: config, corrections, metrics, checkpoints
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Refine {
    pub fn run(self) -> Result<()> {
        let device = self.device.open()?;
        let start = load_checkpoint(&self.checkpoint)?;
        let images = load_data(&self.data, Split::Train, self.training.limit)?;
        let options = RefineOptions {
            attack: AttackOptions {
                method: self.attack,
                epsilon: self.epsilon,
                steps: self.attack_steps,
                margin: self.margin,
                ..AttackOptions::default()
            },
            lambda: self.lambda,
            target_weight: self.target_weight,
            training: self.training.options(),
            control: self.control,
        };
        let config = json!({
            "verb": "refine", "start": self.checkpoint, "data": self.data.to_string(), "limit": self.training.limit,
            "options": options,
        });
        options.check(&start, &images)?;
        let run = RunFolder::open(&self.output, &config)?;
        let report = refine(&start, &images, &options, &run, &device)?;

        let test = self.data.load(Split::Test)?;
        let measure = |checkpoint: &Checkpoint| top1(checkpoint, &test, &device);
        let before_top1 = measure(&start)?;
        let measure_arm = |name| {
            let folder = self.output.join(name);
            let top1 = measure(&load_checkpoint(&folder)?)?;
            note_top1(&folder, top1)?;
            Ok(top1)
        };
        let refined_top1 = measure_arm(ADCORDA)?;
        let control_top1 = report.control.as_ref().map(|_| measure_arm(CONTROL)).transpose()?;
        let mut text = format!(
            "before   {before_top1:.2} % top-1 on {} images of {}\nadcorda  {refined_top1:.2} %   ({} of {} misclassified \
             training images corrected; {:.0} passes)",
            test.len(),
            self.data,
            report.correction.corrected,
            report.correction.wrong,
            report.passes
        );
        if let Some(control) = control_top1 {
            text += &format!("\ncontrol  {control:.2} %   (plain QAT, the same passes)");
        }
        for note in &report.notes {
            text += &format!("\nnote: {note}");
        }
        print(
            self.json,
            &json!({
                "before_top1": before_top1, "top1": refined_top1, "control_top1": control_top1,
                "corrected": report.correction.corrected, "images": test.len(), "validation": to_json(&report)?,
            }),
            &text,
        )
    }
}
