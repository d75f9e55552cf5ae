//! `adcorda refine`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::attack::Norm;
use adcorda::checkpoint::Checkpoint;
use adcorda::data::{SetSpec, Split};
use adcorda::refine::{Arm, AttackOptions, CONTROL, Method, RefineOptions, Refresh, RobustOptions, Schedule, refine};
use adcorda::run_folder::RunFolder;
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, TeacherArgs, TrainingArgs, load_checkpoint, load_data, note_top1, print, to_json, top1};

/// Refine a quantized checkpoint with AdCorDA, beside plain QAT of the same budget.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda refine runs/qat --data cifar10:data --limit 10000 --epochs 2 --control -o runs/w2\n         \
adcorda refine runs/qat --data cifar10:data --arm attack-right --passes 20000 -o runs/robust\n\n\
Misclassified training images are replaced by near ones that the network gets right; training on those is tied to the\n\
original images by Deep CORAL. --arm leaves parts of that out, or does something else instead. --control spends the same\n\
number of forward-backward passes (attack and teacher included) on plain QAT. RUN/ARM and RUN/control hold the two; the best\n\
by validation is kept, the start included (arms that train for robustness: the best under attack). Test figures are measured\n\
once, at the end. Give the same command again to resume after a kill."
)]
pub struct Refine {
    /// Quantized checkpoint or run folder
    checkpoint: PathBuf,
    /// What to do
    #[arg(long, value_enum, default_value = "adcorda")]
    arm: Arm,
    /// Passes to spend, search and teacher included; --epochs then is the number of evaluations only
    #[arg(long, value_name = "N")]
    passes: Option<f64>,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    teacher: TeacherArgs,
    /// How corrections are searched for
    #[arg(long, value_enum, default_value = "pgd")]
    attack: Method,
    /// What the change of an image is measured by
    #[arg(long, value_enum, default_value = "linf")]
    norm: Norm,
    /// Largest change in grey levels: of a pixel value, or (l2) the Euclidean length over all of them, 64 say
    #[arg(long, default_value_t = AttackOptions::default().epsilon, value_name = "LEVELS")]
    epsilon: f32,
    /// Change in one step of pgd, measured as epsilon is; fgsm tries every multiple of it
    #[arg(long, default_value_t = AttackOptions::default().step, value_name = "LEVELS")]
    attack_step: f32,
    /// Most steps of pgd and minimal
    #[arg(long, default_value_t = AttackOptions::default().steps, value_name = "N")]
    attack_steps: usize,
    /// A corrected image's class leads every other by this many logits
    #[arg(long, default_value_t = AttackOptions::default().margin, value_name = "LOGITS")]
    margin: f32,
    /// When to correct: once, every so many epochs, or online (each batch as it is shown)
    #[arg(long, default_value = "once", value_name = "once|N|online")]
    refresh: Refresh,
    /// Keep only corrections that the integer runtime too classifies as their label
    #[arg(long)]
    verify_integer: bool,
    /// Weight of the Deep CORAL loss
    #[arg(long, default_value_t = RefineOptions::default().lambda, value_name = "WEIGHT")]
    lambda: f64,
    /// Whether that weight stays or grows from 0
    #[arg(long, value_enum, default_value = "constant")]
    lambda_schedule: Schedule,
    /// Share of the past in the difference of covariances that CORAL measures
    #[arg(long, default_value_t = RefineOptions::default().coral_momentum, value_name = "SHARE")]
    coral_momentum: f64,
    /// Weight of the cross-entropy on the original images
    #[arg(long, default_value_t = 0.0, value_name = "WEIGHT")]
    target_weight: f64,
    /// Weight of the entropy of what is predicted for the original images
    #[arg(long, default_value_t = 0.0, value_name = "WEIGHT")]
    target_entropy: f64,
    /// Robust arms: largest change of a pixel in training, in grey levels
    #[arg(long, default_value_t = RobustOptions::default().epsilon, value_name = "LEVELS")]
    train_epsilon: f32,
    /// Robust arms: steps of the attack in training; 1 is FGSM
    #[arg(long, default_value_t = RobustOptions::default().steps, value_name = "N")]
    train_steps: usize,
    /// Robust arms: start the attack anywhere within epsilon
    #[arg(long)]
    random_start: bool,
    /// trades: weight of the divergence between clean and attacked
    #[arg(long, default_value_t = RobustOptions::default().beta, value_name = "WEIGHT")]
    beta: f64,
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
        let teacher = self.teacher.load()?;
        let images = load_data(&self.data, Split::Train, self.training.limit)?;
        let options = self.options();
        let config = json!({
            "verb": "refine", "start": self.checkpoint, "data": self.data.to_string(), "limit": self.training.limit,
            "teacher": self.teacher.teacher, "control": self.control, "options": options,
        });
        options.check(&start, teacher.as_ref(), &images)?;
        let run = RunFolder::open(&self.output, &config)?;
        let report = refine(&start, teacher.as_ref(), &images, &options, self.control, &run, &device)?;

        let test = self.data.load(Split::Test)?;
        let measure = |checkpoint: &Checkpoint| top1(checkpoint, &test, &device);
        let before_top1 = measure(&start)?;
        let measure_track = |name| {
            let folder = self.output.join(name);
            let top1 = measure(&load_checkpoint(&folder)?)?;
            note_top1(&folder, top1)?;
            Ok(top1)
        };
        let refined_top1 = measure_track(self.arm.name())?;
        let control_top1 = report.control.as_ref().map(|_| measure_track(CONTROL)).transpose()?;
        let arm = &report.arm;
        let corrected = arm.correction.as_ref().map(|correction| correction.corrected);
        let mut text = format!(
            "before   {before_top1:.2} % top-1 on {} images of {}\n{:<8} {refined_top1:.2} %   ({}{:.0} passes)",
            test.len(),
            self.data,
            self.arm.name(),
            match &arm.correction {
                Some(correction) => format!(
                    "{} of {} misclassified training images corrected; ",
                    correction.corrected, correction.wrong
                ),
                None => String::new(),
            },
            arm.passes
        );
        if let Some(control) = control_top1 {
            text += &format!("\ncontrol  {control:.2} %   (plain QAT, the same passes)");
        }
        for note in &arm.notes {
            text += &format!("\nnote: {note}");
        }
        print(
            self.json,
            &json!({
                "before_top1": before_top1, "top1": refined_top1, "control_top1": control_top1,
                "corrected": corrected, "images": test.len(), "validation": to_json(&report)?,
            }),
            &text,
        )
    }

    fn options(&self) -> RefineOptions {
        RefineOptions {
            arm: self.arm,
            attack: AttackOptions {
                method: self.attack,
                norm: self.norm,
                epsilon: self.epsilon,
                step: self.attack_step,
                steps: self.attack_steps,
                margin: self.margin,
                ..AttackOptions::default()
            },
            refresh: self.refresh,
            verify_integer: self.verify_integer,
            lambda: self.lambda,
            lambda_schedule: self.lambda_schedule,
            coral_momentum: self.coral_momentum,
            target_weight: self.target_weight,
            target_entropy: self.target_entropy,
            robust: RobustOptions {
                epsilon: self.train_epsilon,
                steps: self.train_steps,
                random_start: self.random_start,
                beta: self.beta,
            },
            budget: self.passes,
            training: self.training.options(&self.teacher),
        }
    }
}
