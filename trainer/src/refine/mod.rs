//! AdCorDA: adversarial correction and domain adaptation of a quantized network, beside arms of the same cost.
//!
//! 1. Predict the training images; misclassified ones are wrong ([`correction`]).
//! 2. For each of them, search a near image that the network classifies as its label ([`attack`](crate::attack)). What cannot
//!    be corrected is left out.
//! 3. Train on the corrected set (source), tied to the original one (target) by Deep CORAL on the features before the last
//!    layer ([`coral`](mod@coral)): `CE(source) + lambda * CORAL(source, target) + mu * CE(target)`. Source and target batches are paired:
//!    the same images under the same flip and shift, the wrong ones replaced. So they differ in nothing but the corrections,
//!    and cost one run of the batch and its corrections, not of two batches.
//! 4. Keep the best of start and every epoch by images that nobody trained on.
//!
//! Every other [`Arm`] leaves something out, or puts something else in its place, under the same schedule, augmentation,
//! validation images and number of evaluations, with as many passes, prediction and search included. Without them nobody
//! knows what refinement is worth; the first of them, plain QAT, is the control arm.
//!
//! # Source
//! Shen et al. 2024, "AdCorDA: classifier refinement via adversarial correction and domain adaptation" (arXiv 2401.13212),
//! for the two steps. Pairing, margin, pixel grid and the arms are this project's.

pub mod coral;
pub mod correction;
mod paired;
mod robust;

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use crate::attack::{AttackOptions, Method};
pub use correction::{Correction, CorrectionReport, Corrections};
pub use robust::RobustOptions;

use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::device::Device;
use crate::nn::Frozen;
use crate::run_folder::{RunFolder, Track};
use crate::train::{
    Batches, Classification, Judge, Length, Passes, Plan, Task, Teacher, TrainOptions, TrainReport, fingerprint, fit,
};
use crate::{Error, ErrorKind, Result};
use paired::{Paired, Source};
use robust::{Kind, Robust};

/// What is done to a quantized network. One way is AdCorDA; the others are what it is compared with, and what lies beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Plain quantization-aware training: the control.
    Qat,
    /// Train on the corrected set, without adaptation.
    Correction,
    /// Train on what is classified right, adapted by CORAL to all images; nothing is corrected.
    Adaptation,
    /// Correction and adaptation.
    #[default]
    Adcorda,
    /// Train on what is classified right; the misclassified images are dropped.
    Drop,
    /// QAT with smoothed labels (Szegedy et al. 2016), 0.1 where nothing else is asked for.
    LabelSmoothing,
    /// QAT with the start as its own teacher (Furlanello et al. 2018).
    SelfDistillation,
    /// QAT with a teacher, usually the float network (Mishra and Marr 2018).
    Distillation,
    /// Train on the corrected set with a teacher's soft targets.
    CorrectionDistillation,
    /// Train on images attacked at every step: FGSM or PGD adversarial training (Madry et al. 2018).
    AdversarialTraining,
    /// TRADES (Zhang et al. 2019): clean loss, and the divergence between clean and attacked.
    Trades,
    /// At every step, attack the images that are classified right and correct the others.
    CorrectAndAttack,
    /// At every step, attack the images that are classified right and leave the others clean.
    AttackRight,
}

impl Arm {
    /// All arms.
    pub const ALL: [Arm; 13] = [
        Arm::Qat,
        Arm::Correction,
        Arm::Adaptation,
        Arm::Adcorda,
        Arm::Drop,
        Arm::LabelSmoothing,
        Arm::SelfDistillation,
        Arm::Distillation,
        Arm::CorrectionDistillation,
        Arm::AdversarialTraining,
        Arm::Trades,
        Arm::CorrectAndAttack,
        Arm::AttackRight,
    ];

    /// As on the command line; also the name of its folder in a run.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Qat => "qat",
            Arm::Correction => "correction",
            Arm::Adaptation => "adaptation",
            Arm::Adcorda => "adcorda",
            Arm::Drop => "drop",
            Arm::LabelSmoothing => "label-smoothing",
            Arm::SelfDistillation => "self-distillation",
            Arm::Distillation => "distillation",
            Arm::CorrectionDistillation => "correction-distillation",
            Arm::AdversarialTraining => "adversarial-training",
            Arm::Trades => "trades",
            Arm::CorrectAndAttack => "correct-and-attack",
            Arm::AttackRight => "attack-right",
        }
    }

    /// Whether corrections are searched for before training.
    fn corrects(self) -> bool {
        matches!(self, Arm::Correction | Arm::Adcorda | Arm::CorrectionDistillation)
    }

    /// Whether somebody has to name a teacher.
    pub fn needs_teacher(self) -> bool {
        matches!(self, Arm::Distillation | Arm::CorrectionDistillation)
    }

    /// Whether it is trained for robustness, and chosen by it.
    fn robust(self) -> bool {
        matches!(
            self,
            Arm::AdversarialTraining | Arm::Trades | Arm::CorrectAndAttack | Arm::AttackRight
        )
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// When corrections are searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Refresh {
    /// Before training.
    #[default]
    Once,
    /// Before training, and again after every so many epochs.
    Epochs(usize),
    /// At every step, for the batch at hand, by the network as it is then. Reads the batch back to the host.
    Online,
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refresh::Once => f.write_str("once"),
            Refresh::Epochs(epochs) => write!(f, "{epochs}"),
            Refresh::Online => f.write_str("online"),
        }
    }
}

impl FromStr for Refresh {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("once", _) => Ok(Refresh::Once),
            ("online", _) => Ok(Refresh::Online),
            (_, Ok(epochs)) if epochs > 0 => Ok(Refresh::Epochs(epochs)),
            _ => Err(
                Error::new(ErrorKind::Usage, format!("--refresh {text} is no time to correct at"))
                    .remedy("once, a number of epochs, or online"),
            ),
        }
    }
}

impl TryFrom<String> for Refresh {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Refresh> for String {
    fn from(refresh: Refresh) -> Self {
        refresh.to_string()
    }
}

/// How a weight moves over the training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Not at all.
    #[default]
    Constant,
    /// From 0 evenly up to its value.
    Linear,
}

/// How to refine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefineOptions {
    /// What to do.
    pub arm: Arm,
    /// How the corrections are searched for.
    pub attack: AttackOptions,
    /// When they are searched for.
    pub refresh: Refresh,
    /// Only corrections that the integer runtime too classifies as their label count.
    pub verify_integer: bool,
    /// Weight of CORAL. Between paired batches it is small, 1e-8 to 1e-5, so large weights are in order.
    pub lambda: f64,
    /// How that weight moves.
    pub lambda_schedule: Schedule,
    /// Share of the past in the running difference of covariances that CORAL measures; 0 for the batch alone.
    pub coral_momentum: f64,
    /// Weight of the cross-entropy of the original images, the wrong ones included: the supervised target term.
    pub target_weight: f64,
    /// Weight of the mean entropy of what is predicted for the original images: the unsupervised target term (Grandvalet and
    /// Bengio 2005).
    pub target_entropy: f64,
    /// How images are attacked at every step, for the arms that do.
    pub robust: RobustOptions,
    /// Passes to spend, prediction, search and teacher included. Without it, an arm trains for its epochs.
    pub budget: Option<f64>,
    /// Schedule of the arm.
    pub training: TrainOptions,
}

impl Default for RefineOptions {
    fn default() -> Self {
        Self {
            arm: Arm::default(),
            attack: AttackOptions::default(),
            refresh: Refresh::default(),
            verify_integer: false,
            lambda: 1000.0,
            lambda_schedule: Schedule::default(),
            coral_momentum: 0.0,
            target_weight: 0.0,
            target_entropy: 0.0,
            robust: RobustOptions::default(),
            budget: None,
            training: TrainOptions {
                epochs: 2,
                learning_rate: 3e-4,
                ..TrainOptions::default()
            },
        }
    }
}

impl RefineOptions {
    /// Whether these can refine `start` on `images`. For callers that want to know before they make a run's folder.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the checkpoint is not quantized, or naming the flag; [`ErrorKind::Data`] where the images do
    /// not fit the network.
    pub fn check(&self, start: &Checkpoint, teacher: Option<&Checkpoint>, images: &Dataset) -> Result<()> {
        let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
        if start.quantization.is_none() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "refine works on a quantized network, and this {} is float",
                    start.network.name
                ),
            )
            .remedy("quantize it first: `adcorda quantize CKPT --weights w2 --data SET -o QUANTIZED`"));
        }
        self.attack.check()?;
        self.robust.check()?;
        for (flag, weight) in [
            ("--lambda", self.lambda),
            ("--target-weight", self.target_weight),
            ("--target-entropy", self.target_entropy),
        ] {
            if !(weight.is_finite() && weight >= 0.0) {
                return usage(format!("{flag} {weight} is negative or not finite"));
            }
        }
        if !(0.0..1.0).contains(&self.coral_momentum) {
            return usage(format!("--coral-momentum {} is not within 0 to 1", self.coral_momentum));
        }
        if let Some(budget) = self.budget
            && !(budget.is_finite() && budget > 0.0)
        {
            return usage(format!("--passes {budget} is not a positive number"));
        }
        if self.arm.needs_teacher() && teacher.is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("arm {} needs a teacher", self.arm))
                .remedy("name the float checkpoint with --teacher"));
        }
        self.training.check(&start.network, images)
    }
}

/// What an arm gave. Top-1 in per cent, on the validation images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Which one it was.
    pub arm: Arm,
    /// Of the checkpoint given.
    pub before_top1: f32,
    /// Of the best of start and trained.
    pub top1: f32,
    /// Passes spent, prediction, search and teacher included.
    pub passes: f64,
    /// What was wrong before training, and what became of it, for arms that look.
    pub correction: Option<CorrectionReport>,
    /// The training itself.
    pub training: TrainReport,
    /// What a reader of the figures should know, a sentence each.
    pub notes: Vec<String>,
}

/// What refinement gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefineReport {
    /// The arm asked for.
    pub arm: ArmReport,
    /// Plain QAT with the same passes.
    pub control: Option<ArmReport>,
}

/// Name of the control arm's track in the run's folder.
pub const CONTROL: &str = "control";

/// Refines a quantized checkpoint on `images`. The results are `ARM/best.safetensors` (see [`Arm::name`]) and, with the
/// control arm, `control/best.safetensors` in the run's folder.
///
/// # Errors
/// As [`refine_arm`].
pub fn refine(
    start: &Checkpoint,
    teacher: Option<&Checkpoint>,
    images: &Dataset,
    options: &RefineOptions,
    control: bool,
    run: &RunFolder,
    device: &Device,
) -> Result<RefineReport> {
    let arm = refine_arm(start, teacher, images, options, run, options.arm.name(), device)?;
    let control = if control {
        let options = RefineOptions {
            arm: Arm::Qat,
            budget: Some(arm.passes),
            ..options.clone()
        };
        Some(refine_arm(start, None, images, &options, run, CONTROL, device)?)
    } else {
        None
    };
    Ok(RefineReport { arm, control })
}

/// Runs one arm; its result is `best.safetensors` in the folder `track` of the run.
///
/// # Errors
/// [`ErrorKind::Usage`] where the checkpoint is not quantized, an option cannot be, nothing could be corrected, or the budget
/// does not pay for the search; else as [`train`](crate::train::train).
pub fn refine_arm(
    start: &Checkpoint,
    teacher: Option<&Checkpoint>,
    images: &Dataset,
    options: &RefineOptions,
    run: &RunFolder,
    track: &str,
    device: &Device,
) -> Result<ArmReport> {
    options.check(start, teacher, images)?;
    let arm = options.arm;
    let mut training = options.training.clone();
    if arm == Arm::LabelSmoothing && training.label_smoothing == 0.0 {
        training.label_smoothing = 0.1;
    }
    let (images, validation) = training.split(images)?;
    let track = run.track(track)?;
    let teacher = match arm {
        Arm::SelfDistillation => Some(start),
        Arm::Distillation | Arm::CorrectionDistillation => teacher,
        Arm::Qat
        | Arm::Correction
        | Arm::Adaptation
        | Arm::Adcorda
        | Arm::Drop
        | Arm::LabelSmoothing
        | Arm::AdversarialTraining
        | Arm::Trades
        | Arm::CorrectAndAttack
        | Arm::AttackRight => None,
    };
    let teacher = teacher
        .map(|teacher| Teacher::new(teacher, start, &training, device))
        .transpose()?;
    let classification = |kept, teacher| Classification {
        batches: Batches::new(&images, kept, &training, device),
        teacher,
    };
    let paired = |source, teacher| Paired::new(start, &images, source, options, teacher, &track, device);
    let robust = |kind| Robust::new(&images, kind, options.robust.clone(), &training, device);

    let mut notes = Vec::new();
    let mut spent = Passes::default();
    let mut correction = None;
    let mut task: Box<dyn Task> = match arm {
        Arm::Qat | Arm::LabelSmoothing | Arm::SelfDistillation | Arm::Distillation => Box::new(classification(None, teacher)),
        Arm::Drop | Arm::Adaptation => {
            let (wrong, passes) = correction::misclassified(&freeze(start, device)?, &images)?;
            spent += passes;
            notes.extend(note_none_wrong(wrong.len()));
            let right = (0..images.len())
                .filter(|i| wrong.binary_search(i).is_err())
                .collect::<Vec<_>>();
            if right.len() < 2 {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "{}: nearly every image is misclassified: arm {arm} has nothing to train on",
                        images.name
                    ),
                )
                .remedy("start from a better network"));
            }
            if arm == Arm::Drop {
                Box::new(classification(Some(right), teacher))
            } else {
                Box::new(paired(Source::Right(wrong), teacher)?)
            }
        }
        Arm::Correction | Arm::Adcorda | Arm::CorrectionDistillation if options.refresh == Refresh::Online => {
            Box::new(paired(Source::Online, teacher)?)
        }
        Arm::Correction | Arm::Adcorda | Arm::CorrectionDistillation => {
            let corrections = corrections(start, &images, options, run, device)?;
            let report = corrections.report();
            notes.extend(notes_on(&report, images.len()));
            if report.corrected == 0 && report.wrong > 0 {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "{}: {} images are misclassified and none could be corrected",
                        images.name, report.wrong
                    ),
                )
                .remedy("give a larger --epsilon or more --attack-steps, or start from a better network"));
            }
            spent += corrections.passes;
            correction = Some(report);
            Box::new(paired(Source::Corrected(corrections), teacher)?)
        }
        Arm::AdversarialTraining => Box::new(robust(Kind::Every)),
        Arm::Trades => Box::new(robust(Kind::Trades)),
        Arm::CorrectAndAttack => Box::new(robust(Kind::CorrectTheWrong)),
        Arm::AttackRight => Box::new(robust(Kind::RightOnly)),
    };
    let length = match options.budget {
        Some(budget) => {
            if spent.count() >= budget {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "prediction and search alone cost {:.0} of the {budget:.0} passes: nothing is left to train with",
                        spent.count()
                    ),
                )
                .remedy(format!(
                    "give --passes {:.0} or more, or start from a better network",
                    2.0 * spent.count()
                )));
            }
            Length::Passes(Passes::budget(budget))
        }
        None => Length::Steps(training.epochs * task.steps_per_epoch()),
    };
    let plan = Plan {
        length,
        spent,
        method: arm.name(),
        options: &training,
        judge: if arm.robust() {
            Judge::Robust(options.robust.judge())
        } else {
            Judge::Clean
        },
    };
    let training = fit(start, &mut *task, &images, &validation, &plan, &track, device)?;
    Ok(ArmReport {
        arm,
        before_top1: training.before_top1,
        top1: training.top1,
        passes: training.passes,
        correction,
        training,
        notes,
    })
}

fn note_none_wrong(wrong: usize) -> Option<String> {
    (wrong == 0)
        .then(|| "no training image is misclassified: there is nothing to correct, and refinement is plain QAT".to_owned())
}

fn notes_on(report: &CorrectionReport, images: usize) -> Vec<String> {
    let CorrectionReport { wrong, corrected, .. } = *report;
    let mut notes = Vec::from_iter(note_none_wrong(wrong));
    if 3 * wrong > images {
        notes.push(format!(
            "{wrong} of {images} training images are misclassified: correcting so many costs more than it gives; plain QAT first \
             (`adcorda train CKPT`) leaves fewer"
        ));
    }
    if corrected < wrong {
        notes.push(format!(
            "{} of {wrong} misclassified images could not be corrected and were left out",
            wrong - corrected
        ));
    }
    notes
}

fn freeze(checkpoint: &Checkpoint, device: &Device) -> Result<Frozen> {
    Frozen::new(
        &checkpoint.network,
        &checkpoint.state,
        checkpoint.quantization.as_ref(),
        device,
    )
}

/// The corrections' file in the run's folder.
pub const CORRECTIONS: &str = "corrections.safetensors";

/// The corrections of `images` before training, from the run's folder where it has them.
fn corrections(
    start: &Checkpoint,
    images: &Dataset,
    options: &RefineOptions,
    run: &RunFolder,
    device: &Device,
) -> Result<Corrections> {
    let path = run.path().join(CORRECTIONS);
    let key = corrections_key(start, images, options);
    if let Some(corrections) = Corrections::load(&path, images, &key)? {
        return Ok(corrections);
    }
    let corrections = correction::correct(start, images, &options.attack, options.verify_integer, device)?;
    corrections.save(&path, images.shape(), &key)?;
    Ok(corrections)
}

fn corrections_key(start: &Checkpoint, images: &Dataset, options: &RefineOptions) -> String {
    let RefineOptions {
        attack, verify_integer, ..
    } = options;
    format!("{} {attack:?} {verify_integer}", fingerprint(start, images))
}

/// The corrections' file of a later epoch.
fn refreshed(track: &Track, epoch: usize) -> std::path::PathBuf {
    track.folder().join(format!("corrections-{epoch}.safetensors"))
}

#[cfg(test)]
pub(super) mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use serde_json::json;

    use super::*;
    use crate::attack::{Direction, attack, robust_accuracy};
    use crate::eval::evaluate_model;
    use crate::export::{ExportOptions, export};
    use crate::file::read;
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::train::{fixture, train};

    pub fn options() -> RefineOptions {
        RefineOptions {
            attack: AttackOptions {
                epsilon: 24.0,
                step: 2.0,
                steps: 12,
                margin: 0.5,
                ..AttackOptions::default()
            },
            training: TrainOptions {
                epochs: 2,
                learning_rate: 3e-3,
                augment: true,
                ..fixture::options()
            },
            ..RefineOptions::default()
        }
    }

    /// A network trained for one epoch and quantized: right more often than not, never always. And its float parent.
    pub fn start() -> (Checkpoint, Checkpoint, Dataset) {
        let images = fixture::images(300, 1);
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let options = TrainOptions {
            epochs: 1,
            ..fixture::options()
        };
        train(&fixture::float(3), None, &images, &options, &run, &Device::flex()).unwrap();
        let float = Checkpoint::load(run.track("").unwrap().best()).unwrap();
        let quantized = ptq(&float, &images, &QuantizeOptions::new(Width::W2), &Device::flex()).unwrap();
        (quantized, float, images)
    }

    pub fn run(folder: &std::path::Path) -> RunFolder {
        RunFolder::open(folder, &json!({})).unwrap()
    }

    fn arm(options: &RefineOptions, start: &(Checkpoint, Checkpoint, Dataset), folder: &std::path::Path) -> Result<ArmReport> {
        let (start, float, images) = start;
        refine_arm(start, Some(float), images, options, &run(folder), "arm", &Device::flex())
    }

    #[test]
    fn both_arms_cost_the_same_and_lose_nothing() {
        let (start, _, images) = start();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let RefineReport { arm, control } = refine(&start, None, &images, &options(), true, &run, &Device::flex()).unwrap();
        let (control, correction) = (control.unwrap(), arm.correction.clone().unwrap());
        assert!(correction.wrong > 10, "{arm:?}");
        assert!(correction.corrected > correction.wrong / 2, "{arm:?}");
        // Search is part of it: two epochs are 260 images each and as many again of the corrected.
        let trained = 2.0 * (260.0 - (correction.wrong - correction.corrected) as f64 + correction.corrected as f64);
        assert!((arm.passes - trained - correction.passes).abs() < 1e-6 * trained, "{arm:?}");
        // Within a batch of 16.
        assert!(
            control.passes >= arm.passes && control.passes < arm.passes + 17.0,
            "{control:?}"
        );
        assert_eq!(control.before_top1, arm.before_top1);
        assert!(arm.top1 >= arm.before_top1 && control.top1 >= arm.before_top1);
        assert!(arm.top1 > arm.before_top1 || arm.training.best_round == 0);

        // Two evaluations each, after the one of the start.
        let (_, validation) = images.split_validation(40, 7).unwrap();
        for (track, report, method) in [("adcorda", &arm, "adcorda"), (CONTROL, &control, "qat")] {
            let track = run.track(track).unwrap();
            let metrics = std::fs::read_to_string(track.metrics()).unwrap();
            let evaluations = metrics.lines().filter(|line| !line.contains("\"validation_top1\":null"));
            assert_eq!(evaluations.count(), 3);
            let best = Checkpoint::load(track.best()).unwrap();
            assert_eq!(
                freeze(&best, &Device::flex()).unwrap().accuracy(&validation).unwrap(),
                report.top1
            );
            let (last, _, _) = track.load_last::<serde_json::Value>().unwrap().unwrap();
            assert_eq!(last.provenance.method, method);
        }
    }

    #[test]
    fn every_arm_trains_and_keeps_its_budget() {
        let start = start();
        for arm_of in Arm::ALL {
            let folder = tempfile::tempdir().unwrap();
            let options = RefineOptions {
                arm: arm_of,
                budget: Some(900.0),
                ..options()
            };
            let report = arm(&options, &start, folder.path()).unwrap();
            // The last step may reach over it: at most 32 images, their attack and their teacher.
            assert!((900.0..900.0 + 90.0).contains(&report.passes), "{report:?}");
            assert_eq!(report.correction.is_some(), arm_of.corrects());
            let track = run(folder.path()).track("arm").unwrap();
            let (last, _, _) = track.load_last::<serde_json::Value>().unwrap().unwrap();
            assert_ne!(last.state, start.0.state, "{arm_of}");
            assert_eq!(last.provenance.method, arm_of.name());
            assert!(arm_of.robust() || report.top1 >= report.before_top1);
        }
    }

    #[test]
    fn names_are_those_of_the_command_line_and_of_files() {
        for arm in Arm::ALL {
            assert_eq!(arm.to_possible_value().unwrap().get_name(), arm.name());
            assert_eq!(serde_json::to_value(arm).unwrap(), arm.name());
        }
        for text in ["once", "3", "online"] {
            let refresh: Refresh = text.parse().unwrap();
            assert_eq!(serde_json::to_value(refresh).unwrap(), text);
            assert_eq!(serde_json::from_value::<Refresh>(json!(text)).unwrap(), refresh);
        }
        for text in ["0", "never", "-1"] {
            assert_eq!(text.parse::<Refresh>().unwrap_err().kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn a_second_run_gives_the_same_bytes_and_a_third_call_does_nothing() {
        let (start, _, images) = start();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let refine =
            |folder: &std::path::Path| refine(&start, None, &images, &options(), true, &run(folder), &Device::flex()).unwrap();
        let reports = folders.each_ref().map(|folder| refine(folder.path()));
        for name in ["adcorda/best.safetensors", "control/best.safetensors", CORRECTIONS] {
            let [a, b] = folders.each_ref().map(|folder| read(&folder.path().join(name)).unwrap());
            assert!(a == b, "{name}");
        }
        let metrics = folders[0].path().join("adcorda/metrics.jsonl");
        let before = read(&metrics).unwrap();
        assert_eq!(refine(folders[0].path()), reports[0]);
        assert!(before == read(&metrics).unwrap());
    }

    #[test]
    fn a_run_that_continues_does_not_correct_again() {
        let (start, _, images) = start();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let options = options();
        let (training, _) = images.split_validation(40, 7).unwrap();
        let corrections = |options: &RefineOptions| corrections(&start, &training, options, &run, &Device::flex()).unwrap();
        let mut kept = corrections(&options);
        kept.corrected.truncate(3);
        let path = run.path().join(CORRECTIONS);
        kept.save(&path, images.shape(), &corrections_key(&start, &training, &options))
            .unwrap();
        assert_eq!(corrections(&options), kept);
        // Of another attack they are no use.
        let mut other = options.clone();
        other.attack.epsilon = 1.0;
        assert_ne!(corrections(&other), kept);
    }

    /// Panics at a step, as a kill would end the process there.
    struct Killed<'a>(Paired<'a>, usize);

    impl Task for Killed<'_> {
        fn steps_per_epoch(&self) -> usize {
            self.0.steps_per_epoch()
        }

        fn begin_epoch(&mut self, epoch: usize, student: &crate::train::Student) -> Result<Passes> {
            self.0.begin_epoch(epoch, student)
        }

        fn step(
            &mut self,
            step: usize,
            student: &crate::train::Student,
        ) -> Result<(burn::tensor::Tensor<crate::nn::Auto, 1>, Passes)> {
            assert_ne!(step, self.1, "killed");
            self.0.step(step, student)
        }

        fn state(&self) -> Vec<f32> {
            self.0.state()
        }

        fn restore(&mut self, state: Vec<f32>) -> Result<()> {
            self.0.restore(state)
        }
    }

    /// Refreshed corrections and running covariances are part of what a run continues from.
    #[test]
    fn a_killed_run_continues_to_the_same_bytes() {
        let (start, _, images) = start();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let mut options = options();
        options.refresh = Refresh::Epochs(1);
        options.coral_momentum = 0.9;
        options.lambda_schedule = Schedule::Linear;
        let (training, validation) = options.training.split(&images).unwrap();
        let corrections = corrections(&start, &training, &options, &run, &Device::flex()).unwrap();
        let fit = |track: &str, killed_at: usize| {
            let (track, device) = (run.track(track).unwrap(), Device::flex());
            let source = Source::Corrected(corrections.clone());
            let paired = Paired::new(&start, &training, source, &options, None, &track, &device).unwrap();
            // Evaluations in the middle of an epoch, after the second and third corrections: three epochs, two evaluations.
            let plan = Plan {
                length: Length::Steps(3 * paired.steps_per_epoch()),
                spent: corrections.passes,
                method: "adcorda",
                options: &options.training,
                judge: Judge::Clean,
            };
            fit(
                &start,
                &mut Killed(paired, killed_at),
                &training,
                &validation,
                &plan,
                &track,
                &device,
            )
            .unwrap()
        };
        let whole = fit("whole", usize::MAX);
        for killed_at in [10, 28, 40] {
            catch_unwind(AssertUnwindSafe(|| fit("killed", killed_at))).unwrap_err();
        }
        let continued = fit("killed", usize::MAX);
        assert_eq!(whole.passes, continued.passes);
        let [a, b] = ["whole", "killed"].map(|track| run.track(track).unwrap());
        for epoch in [1, 2] {
            assert!(read(&refreshed(&a, epoch)).unwrap() == read(&refreshed(&b, epoch)).unwrap());
        }
        assert!(read(&a.best()).unwrap() == read(&b.best()).unwrap());
        let last = |track: &Track| track.load_last::<serde_json::Value>().unwrap().unwrap().0.state;
        assert!(last(&a) == last(&b));
    }

    #[test]
    fn corrections_made_in_passing_train_too() {
        let start = start();
        let folder = tempfile::tempdir().unwrap();
        let options = RefineOptions {
            refresh: Refresh::Online,
            ..options()
        };
        let report = arm(&options, &start, folder.path()).unwrap();
        // More than the two epochs alone: searches, and corrected images beside their originals.
        assert!(report.passes > 2.0 * 260.0 * 4.0 / 3.0, "{report:?}");
        assert_eq!(report.correction, None);
    }

    #[test]
    fn verified_corrections_are_right_in_the_integer_runtime() {
        let (start, _, images) = start();
        let mut attack = options().attack;
        attack.margin = 0.0;
        let correct = |verify| correction::correct(&start, &images, &attack, verify, &Device::flex()).unwrap();
        let (loose, verified) = (correct(false), correct(true));
        let model = export(&start, &ExportOptions::default()).unwrap().bytes;
        let right = |corrections: &Corrections| {
            let indices: Vec<usize> = corrections.corrected.iter().map(|c| c.index).collect();
            let mut shown = images.subset(&indices);
            shown.images = corrections.corrected.iter().flat_map(|c| c.image.clone()).collect();
            let found = evaluate_model(&model, &shown).unwrap().predictions;
            found.iter().zip(shown.labels()).filter(|(a, b)| a == b).count()
        };
        assert_eq!(right(&verified), verified.corrected.len());
        assert_eq!(right(&loose), verified.corrected.len());
        assert_eq!(verified.refuted, loose.corrected.len() - verified.corrected.len());
        assert_eq!(verified.failed.len(), loose.failed.len() + verified.refuted);
        assert!(verified.failed.is_sorted() && verified.corrected.len() > 10);
    }

    #[test]
    fn robust_arms_are_chosen_by_their_robustness() {
        let start = start();
        let judge = RobustOptions {
            epsilon: 2.0,
            ..RobustOptions::default()
        };
        let robust = |checkpoint: &Checkpoint| {
            let (_, validation) = options().training.split(&start.2).unwrap();
            robust_accuracy(
                &freeze(checkpoint, &Device::flex()).unwrap(),
                &validation,
                500,
                &judge.judge(),
            )
        };
        let before = robust(&start.0);
        for arm_of in [Arm::AdversarialTraining, Arm::AttackRight, Arm::CorrectAndAttack, Arm::Trades] {
            let folder = tempfile::tempdir().unwrap();
            let mut options = options();
            options.arm = arm_of;
            options.robust = judge.clone();
            // A flip would show another class's quadrant.
            options.training.augment = false;
            options.training.epochs = 12;
            options.training.learning_rate = 0.01;
            arm(&options, &start, folder.path()).unwrap();
            let best = Checkpoint::load(run(folder.path()).track("arm").unwrap().best()).unwrap();
            let after = robust(&best);
            assert!(after > before + 30.0, "{arm_of}: {before} {after}");
        }
    }

    #[test]
    fn what_cannot_be_is_a_usage_error_that_says_what_to_do() {
        let start = start();
        let (_, float, images) = &start;
        let folder = tempfile::tempdir().unwrap();
        let refuse = |options: &RefineOptions, needle: &str| {
            let error = arm(options, &start, folder.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(needle), "{error}");
        };
        let good = options();
        refuse(
            &RefineOptions {
                lambda: -1.0,
                ..good.clone()
            },
            "--lambda",
        );
        refuse(
            &RefineOptions {
                coral_momentum: 1.0,
                ..good.clone()
            },
            "--coral-momentum",
        );
        refuse(
            &RefineOptions {
                budget: Some(0.0),
                ..good.clone()
            },
            "--passes",
        );
        refuse(
            &RefineOptions {
                budget: Some(90.0),
                ..good.clone()
            },
            "give --passes",
        );
        let device = Device::flex();
        let teacherless = RefineOptions {
            arm: Arm::Distillation,
            ..good.clone()
        };
        let error = refine_arm(&start.0, None, images, &teacherless, &run(folder.path()), "arm", &device).unwrap_err();
        assert!(error.to_string().contains("--teacher"), "{error}");
        let error = refine_arm(float, None, images, &good, &run(folder.path()), "arm", &device).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("adcorda quantize"), "{error}");
        let stranger = Checkpoint {
            network: crate::zoo::zoo("tiny", 10).unwrap(),
            ..float.clone()
        };
        let taught = RefineOptions {
            arm: Arm::Distillation,
            ..good
        };
        let error = refine_arm(
            &start.0,
            Some(&stranger),
            images,
            &taught,
            &run(folder.path()),
            "arm",
            &device,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
    }

    #[test]
    fn nothing_correctable_is_an_error_with_a_remedy() {
        let (start, _, images) = start();
        let frozen = freeze(&start, &Device::flex()).unwrap();
        let (wrong, _) = correction::misclassified(&frozen, &images).unwrap();
        let mut options = options();
        options.attack = AttackOptions {
            epsilon: 1.0,
            steps: 1,
            margin: 0.0,
            ..AttackOptions::default()
        };
        // All that is right, and what one grey level cannot mend.
        let pixels: Vec<&[u8]> = wrong.iter().map(|&i| images.image(i)).collect();
        let labels: Vec<u16> = wrong.iter().map(|&i| images.label(i)).collect();
        let margins = attack(&frozen, &pixels, images.shape(), &labels, &options.attack, Direction::Toward).margins;
        let mended: Vec<usize> = wrong.iter().zip(margins).filter(|(_, m)| *m > 0.0).map(|(&i, _)| i).collect();
        let kept: Vec<usize> = (0..images.len()).filter(|i| !mended.contains(i)).collect();
        assert!(mended.len() < wrong.len());
        let folder = tempfile::tempdir().unwrap();
        let error = refine_arm(
            &start,
            None,
            &images.subset(&kept),
            &options,
            &run(folder.path()),
            "arm",
            &Device::flex(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("--epsilon"), "{error}");
    }

    #[test]
    fn nothing_wrong_is_said_and_trained_all_the_same() {
        let (start, _, images) = start();
        let predicted = freeze(&start, &Device::flex()).unwrap().predict(&images).unwrap();
        let right: Vec<usize> = (0..images.len()).filter(|&i| predicted[i] == images.label(i)).collect();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let images = images.subset(&right);
        let RefineReport { arm, control } = refine(&start, None, &images, &options(), true, &run, &Device::flex()).unwrap();
        let correction = arm.correction.unwrap();
        assert_eq!((correction.wrong, correction.corrected), (0, 0));
        assert!(arm.notes[0].contains("no training image is misclassified"), "{:?}", arm.notes);
        assert_eq!((arm.before_top1, arm.top1, control.unwrap().top1), (100.0, 100.0, 100.0));
        assert!(run.track("adcorda").unwrap().best().exists());
    }
}
