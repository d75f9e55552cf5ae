//! Training: one loop for float training, quantization-aware training (QAT) and refinement.
//!
//! The loop is given a `Task` (a loss for every step) and a number of steps or a budget; it knows learning rate, optimizer,
//! validation, checkpoints and resuming. Cost is counted in passes, so that methods of different cost can be compared: see
//! [`Passes`]. Images, targets and weights stay on the device; a step sends row numbers, and a number comes back every tenth.
//!
//! Everything that a step does follows from the seed and the step's number, so a run that was killed and continued ends in
//! the same bytes as one that was not (on the CPU; nothing is promised on a GPU).

use std::io::IsTerminal;
use std::time::Instant;

use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamW, AdamWConfig, GradientsParams, Optimizer as _, Sgd, SgdConfig};
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};
use burn::tensor::{Tensor, TensorData, activation};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::attack::{self, AttackOptions};
use crate::checkpoint::{Checkpoint, Provenance};
use crate::data::Dataset;
use crate::data::batch::{self, Augmentation, Geometry};
use crate::device::Device;
use crate::memory::{self, StepMemory};
use crate::network::{Network, Shape};
use crate::nn::{self, Auto, Frozen, Inner, Mode, Net, Output};
use crate::quantize::{self, Quantization, Scales, batch_norm};
use crate::resident::{Resident, numbers};
use crate::run_folder::{RunFolder, Track};
use crate::{Error, ErrorKind, Result};

/// How weights follow gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam (Kingma and Ba 2015) with decoupled weight decay.
    Adam,
    /// Stochastic gradient descent with Nesterov momentum 0.9.
    Sgd,
}

/// How to train; the same for every method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainOptions {
    /// Times that every training image is seen.
    pub epochs: usize,
    /// Images of a step. Batches of an epoch differ in size by at most one, so that none is tiny.
    pub batch: usize,
    /// At the first step; falls to 0 along half a cosine.
    pub learning_rate: f64,
    /// How weights follow gradients.
    pub optimizer: Optimizer,
    /// Share of every weight that a step at learning rate 1 takes off (Adam), or its L2 penalty (SGD). Of convolutions and linear
    /// layers only: not of biases, BatchNorm or scales.
    pub weight_decay: f32,
    /// Probability that the target gives to all classes evenly; 0 to below 1.
    pub label_smoothing: f32,
    /// Random flip and shift.
    pub augment: bool,
    /// Of order, augmentation and validation split.
    pub seed: u64,
    /// Images taken off the training set to choose the best epoch by.
    pub validation: usize,
    /// Share of the training labels that are replaced by wrong ones, for experiments; those of the validation images stay.
    pub label_noise: f64,
    /// How the scales of quantized weights follow them.
    pub scales: Scales,
    /// Statistics that BatchNorm uses and whether the running ones move.
    pub batch_norm: Mode,
    /// Weight of a teacher's soft targets in the loss, the labels having the rest; used where there is a teacher.
    pub distill: f64,
    /// Divides the logits of both before they are compared with the teacher's (Hinton et al. 2015, section 2).
    pub temperature: f64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            epochs: 8,
            batch: 64,
            learning_rate: 1e-3,
            optimizer: Optimizer::Adam,
            weight_decay: 0.0,
            label_smoothing: 0.0,
            augment: true,
            seed: 0,
            validation: 500,
            label_noise: 0.0,
            scales: Scales::Reestimated,
            batch_norm: Mode::Train,
            distill: 0.5,
            temperature: 2.0,
        }
    }
}

impl TrainOptions {
    /// Whether these can be used with `network` on `images`. For callers that want to know before they make a run's folder.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the flag; [`ErrorKind::Data`] where the images do not fit the network.
    pub fn check(&self, network: &crate::network::Network, images: &Dataset) -> Result<()> {
        let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
        if self.epochs == 0 {
            return usage("--epochs 0 trains nothing".into());
        }
        if self.batch < 2 {
            return usage(format!(
                "--batch {} is too small for batch statistics: at least 2",
                self.batch
            ));
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return usage(format!("--learning-rate {} is not a positive number", self.learning_rate));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return usage(format!("--weight-decay {} is negative or not finite", self.weight_decay));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return usage(format!("--label-smoothing {} is not within 0 to 1", self.label_smoothing));
        }
        if self.validation == 0 {
            return usage("--validation 0 leaves nothing to choose the best epoch by".into());
        }
        if !(0.0..=1.0).contains(&self.label_noise) {
            return usage(format!("--label-noise {} is not within 0 to 1", self.label_noise));
        }
        if !(0.0..=1.0).contains(&self.distill) {
            return usage(format!("--distill {} is not within 0 to 1", self.distill));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return usage(format!("--temperature {} is not a positive number", self.temperature));
        }
        let training = images.len().saturating_sub(self.validation);
        if training < 2 {
            return usage(format!(
                "--validation {} leaves too few of the {} images of {} to train on",
                self.validation,
                images.len(),
                images.name
            ));
        }
        if self.batch > training {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "--batch {} is larger than the {training} training images of {}",
                    self.batch, images.name
                ),
            )
            .remedy(format!("give --batch {training} or fewer, or more images")));
        }
        if images.class_counts().iter().filter(|&&count| count > 0).count() < 2 {
            return Err(Error::new(
                ErrorKind::Data,
                format!("{}: all images are of one class: there is nothing to tell apart", images.name),
            )
            .remedy("give images of at least two classes"));
        }
        nn::check_fit(network, images)
    }

    /// Parts `images` into what is trained on, with label noise, and what is chosen by, without.
    pub(crate) fn split(&self, images: &Dataset) -> Result<(Dataset, Dataset)> {
        let (training, validation) = images.split_validation(self.validation, self.seed)?;
        Ok((training.with_label_noise(self.label_noise, self.seed)?, validation))
    }

    /// Flip and shift, or neither.
    pub(crate) fn augmentation(&self) -> Augmentation {
        if self.augment {
            Augmentation::default()
        } else {
            Augmentation::NONE
        }
    }
}

/// What a training gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Top-1 on the validation images before training, in per cent.
    pub before_top1: f32,
    /// The same of the checkpoint kept; never below `before_top1`, unless it was kept for its robustness.
    pub top1: f32,
    /// Evaluation at which the checkpoint kept was taken, from 1; 0 where none was better than the start.
    pub best_round: usize,
    /// Passes spent, those before the first step included.
    pub passes: f64,
    /// Seconds spent.
    pub seconds: f64,
}

/// Trains `start` on `images`: float, or quantization-aware where it is quantized. The result is `best.safetensors` in the
/// run's folder, the best epoch by validation, the start included. With a `teacher`, part of the loss is the distance to its
/// logits (knowledge distillation, Hinton et al. 2015).
///
/// # Errors
/// [`ErrorKind::Usage`] for options that cannot be, or a run folder of another start or data; [`ErrorKind::Data`] where the
/// images do not fit the network; [`ErrorKind::Weights`] where they do not fit the teacher; [`ErrorKind::Diverged`] where the loss is no number or does not move; [`ErrorKind::Io`]
/// where a checkpoint cannot be written (the previous one is then still whole).
pub fn train(
    start: &Checkpoint,
    teacher: Option<&Checkpoint>,
    images: &Dataset,
    options: &TrainOptions,
    run: &RunFolder,
    device: &Device,
) -> Result<TrainReport> {
    options.check(&start.network, images)?;
    let (training, validation) = options.split(images)?;
    let teacher = teacher
        .map(|teacher| Teacher::new(teacher, start, options, device))
        .transpose()?;
    let mut task = Classification {
        batches: Batches::new(&training, None, options, device),
        teacher,
    };
    let plan = Plan {
        length: Length::Steps(options.epochs * task.steps_per_epoch()),
        spent: Passes::default(),
        method: if start.quantization.is_some() { "qat" } else { "train" },
        options,
        judge: Judge::Clean,
    };
    fit(start, &mut task, &training, &validation, &plan, &run.track("")?, device)
}

/// Work done, in thirds of a pass. A pass is one image through the network forward and backward; forward alone is a third of
/// it, and forward and backward to the pixels, without the weights' gradients, two thirds.
///
/// The arithmetic behind it: backward to inputs and backward to weights each cost about as much as forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Passes {
    thirds: u64,
}

impl Passes {
    /// `images` forward and backward.
    pub fn training(images: usize) -> Self {
        Self {
            thirds: 3 * images as u64,
        }
    }

    /// `images` forward and backward to the pixels only.
    pub fn input_gradient(images: usize) -> Self {
        Self {
            thirds: 2 * images as u64,
        }
    }

    /// `images` forward only.
    pub fn forward(images: usize) -> Self {
        Self { thirds: images as u64 }
    }

    /// A budget of so many passes, to the next third.
    pub fn budget(passes: f64) -> Self {
        Self {
            thirds: (3.0 * passes).round() as u64,
        }
    }

    /// As a number of passes.
    pub fn count(self) -> f64 {
        self.thirds as f64 / 3.0
    }
}

impl std::ops::AddAssign for Passes {
    fn add_assign(&mut self, other: Self) {
        self.thirds += other.thirds;
    }
}

impl std::ops::Add for Passes {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

/// What is learnt: a loss for every step.
pub(crate) trait Task {
    /// Steps in which every image is seen once.
    fn steps_per_epoch(&self) -> usize;

    /// How many times each image of a batch may be in a step's graph: what its memory is reckoned by.
    fn views(&self) -> usize {
        1
    }

    /// Called before the first step of every epoch; says what it cost beside the steps.
    ///
    /// # Errors
    /// What keeps the task from going on.
    fn begin_epoch(&mut self, epoch: usize, student: &Student) -> Result<Passes> {
        let _ = (epoch, student);
        Ok(Passes::default())
    }

    /// The loss to make smaller at step `step`, from 0, and what the step costs. It follows from the step, the network and
    /// [`state`](Self::state) alone.
    ///
    /// # Errors
    /// What keeps the task from going on.
    fn step(&mut self, step: usize, student: &Student) -> Result<(Tensor<Auto, 1>, Passes)>;

    /// What the task has gathered over the steps, to be stored with the weights.
    fn state(&self) -> Vec<f32> {
        Vec::new()
    }

    /// Takes back what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// Where what the state refers to is missing.
    fn restore(&mut self, state: Vec<f32>) -> Result<()> {
        let _ = state;
        Ok(())
    }
}

/// The network in training, as a task sees it.
pub(crate) struct Student<'a> {
    pub network: &'a Network,
    pub net: &'a Net<Auto>,
    pub quantization: Option<&'a Quantization>,
    pub mode: Mode,
    /// How far the training is, from 0 to 1.
    pub share: f64,
    pub device: &'a Device,
}

impl Student<'_> {
    /// Runs a batch of pixels for training.
    pub fn forward(&self, x: Tensor<Inner, 4>) -> Output<Auto> {
        self.net
            .forward(self.network, self.quantization, Tensor::from_inner(x), self.mode)
    }

    /// The network as it is now, frozen without leaving the device.
    pub fn frozen(&self) -> Frozen {
        Frozen::of(self.network, self.net, self.quantization, self.device)
    }

    /// The network as it is now, as it would be deployed: quantized on the host, by the function that export uses.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] where weights are no numbers any more.
    pub fn checkpoint(&self, like: &Checkpoint) -> Checkpoint {
        Checkpoint {
            state: self.net.to_state(self.network),
            quantization: self.quantization.cloned(),
            ..like.clone()
        }
    }
}

/// Learning classes from images: the task of float training and of plain QAT, with or without a teacher.
pub(crate) struct Classification {
    pub batches: Batches,
    pub teacher: Option<Teacher>,
}

impl Task for Classification {
    fn steps_per_epoch(&self) -> usize {
        self.batches.steps_per_epoch()
    }

    fn step(&mut self, step: usize, student: &Student) -> Result<(Tensor<Auto, 1>, Passes)> {
        let (rows, geometries) = self.batches.draw(step);
        let x = self.batches.pixels(&rows, &geometries);
        let logits = student.forward(x.clone()).logits;
        let mut passes = Passes::training(rows.len());
        let mut loss = cross_entropy(logits.clone(), self.batches.targets(&rows));
        if let Some(teacher) = &self.teacher {
            loss = teacher.blend(x, logits, loss);
            passes += Passes::forward(rows.len());
        }
        Ok((loss, passes))
    }
}

/// A network whose soft targets another one learns from.
pub(crate) struct Teacher {
    network: Frozen,
    weight: f64,
    temperature: f64,
}

impl Teacher {
    /// # Errors
    /// [`ErrorKind::Weights`] where teacher and student have different inputs or numbers of classes.
    pub fn new(teacher: &Checkpoint, student: &Checkpoint, options: &TrainOptions, device: &Device) -> Result<Self> {
        let (from, to) = (&teacher.network, &student.network);
        if from.input != to.input || from.classes() != to.classes() {
            let of = |network: &Network| {
                let Shape { height, width, channels } = network.input;
                format!(
                    "{} takes {height}x{width}x{channels} and has {} classes",
                    network.name,
                    network.classes()
                )
            };
            return Err(
                Error::new(ErrorKind::Weights, format!("teacher {}, student {}", of(from), of(to)))
                    .remedy("give a teacher for the same images and classes"),
            );
        }
        Ok(Self {
            network: Frozen::new(from, &teacher.state, teacher.quantization.as_ref(), device)?,
            weight: options.distill,
            temperature: options.temperature,
        })
    }

    /// `(1 - weight) * hard + weight * T^2 * KL(teacher || student)`, the logits of both divided by `T`.
    ///
    /// # Shapes
    /// `x: [n, channels, height, width]`, what the student saw | `logits: [n, classes]`, what it made of it
    pub fn blend(&self, x: Tensor<Inner, 4>, logits: Tensor<Auto, 2>, hard: Tensor<Auto, 1>) -> Tensor<Auto, 1> {
        let t = self.temperature;
        let soft = activation::softmax(self.network.forward(x).logits / t, 1);
        // The entropy of the targets moves nothing but the value, which is so 0 where both agree.
        let entropy = (soft.clone() * soft.clone().clamp_min(f32::MIN_POSITIVE).log()).sum() / soft.dims()[0] as f64;
        let divergence = cross_entropy(logits / t, soft) + Tensor::from_inner(entropy);
        hard * (1.0 - self.weight) + divergence * (self.weight * t * t)
    }
}

/// Batches of a set of images on the device, and their targets.
pub(crate) struct Batches {
    images: Resident,
    /// `[images, classes]`.
    targets: Tensor<Inner, 2>,
    /// Numbers of the images that are drawn.
    kept: Vec<usize>,
    draw: Draw,
    device: Device,
}

impl Batches {
    /// Of the images `kept`, or of all.
    pub fn new(images: &Dataset, kept: Option<Vec<usize>>, options: &TrainOptions, device: &Device) -> Self {
        let kept = kept.unwrap_or_else(|| (0..images.len()).collect());
        Self {
            images: Resident::new(images, options.augmentation(), device),
            targets: targets(images.labels(), images.classes.len(), options.label_smoothing, device),
            draw: Draw::new(kept.len(), options),
            kept,
            device: device.clone(),
        }
    }

    pub fn steps_per_epoch(&self) -> usize {
        self.draw.steps_per_epoch
    }

    /// Numbers of the images of a step, and their geometries.
    pub fn draw(&mut self, step: usize) -> (Vec<usize>, Vec<Geometry>) {
        let (drawn, geometries) = self.draw.step(step);
        (drawn.iter().map(|&i| self.kept[i]).collect(), geometries)
    }

    /// `[n, channels, height, width]`; rows from the set's length on are those [put beside it](Self::put_beside).
    pub fn pixels(&self, rows: &[usize], geometries: &[Geometry]) -> Tensor<Inner, 4> {
        self.images.batch(rows, geometries)
    }

    /// `[n, classes]`, of images of the set.
    pub fn targets(&self, rows: &[usize]) -> Tensor<Inner, 2> {
        self.targets.clone().select(0, numbers(rows, &self.device))
    }

    /// Uploads images beside the set's own, in place of those uploaded before; the first one is the row after the set.
    pub fn put_beside<'a>(&mut self, images: impl IntoIterator<Item = &'a [u8]>) {
        self.images.extend(images);
    }
}

/// Which images a step takes and how each is moved, drawn from seed and epoch.
pub(crate) struct Draw {
    len: usize,
    steps_per_epoch: usize,
    seed: u64,
    augmentation: Augmentation,
    // Of the epoch drawn last.
    epoch: Option<usize>,
    order: Vec<usize>,
    geometries: Vec<Geometry>,
}

impl Draw {
    /// Of `len` images, at least one.
    pub fn new(len: usize, options: &TrainOptions) -> Self {
        Self {
            len,
            // Rounded to nearest, so that batches are as close as possible to the size asked for; but a batch of one image
            // has no covariance.
            steps_per_epoch: ((len + options.batch / 2) / options.batch).min(len / 2).max(1),
            seed: options.seed,
            augmentation: options.augmentation(),
            epoch: None,
            order: Vec::new(),
            geometries: Vec::new(),
        }
    }

    /// Images of step `step`, and the geometry of each.
    pub fn step(&mut self, step: usize) -> (&[usize], Vec<Geometry>) {
        let (epoch, step) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        if self.epoch != Some(epoch) {
            self.order = batch::order(self.len, self.seed, epoch as u64);
            self.geometries = self.augmentation.geometries(self.len, self.seed, epoch as u64);
            self.epoch = Some(epoch);
        }
        let cut = |step: usize| self.len * step / self.steps_per_epoch;
        let indices = &self.order[cut(step)..cut(step + 1)];
        (indices, indices.iter().map(|&i| self.geometries[i]).collect())
    }
}

/// Probabilities that training aims at, `[n, classes]`: one class each, smoothed.
pub(crate) fn targets(labels: &[u16], classes: usize, smoothing: f32, device: &Device) -> Tensor<Inner, 2> {
    let mut targets = vec![smoothing / classes as f32; labels.len() * classes];
    for (row, &label) in targets.chunks_exact_mut(classes).zip(labels) {
        row[usize::from(label)] += 1.0 - smoothing;
    }
    Tensor::from_data(TensorData::new(targets, [labels.len(), classes]), device.dispatch())
}

/// Mean cross-entropy of `logits: [n, classes]` against probabilities `[n, classes]`.
pub(crate) fn cross_entropy(logits: Tensor<Auto, 2>, targets: Tensor<Inner, 2>) -> Tensor<Auto, 1> {
    let n = logits.dims()[0] as f64;
    (activation::log_softmax(logits, 1) * Tensor::from_inner(targets)).sum() * (-1.0 / n)
}

/// How long [`fit`] trains, and how.
pub(crate) struct Plan<'a> {
    /// Where it ends.
    pub length: Length,
    /// Passes spent before the first step; they count towards the report and a budget.
    pub spent: Passes,
    /// Provenance of what is trained: `train`, `qat`, `adcorda`.
    pub method: &'a str,
    /// Learning rate and the like; its epochs are the number of evaluations, evenly spaced, the last one at the end. A
    /// checkpoint is written at each.
    pub options: &'a TrainOptions,
    /// What makes a checkpoint better than another.
    pub judge: Judge,
}

/// Where a training ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    /// After so many steps.
    Steps(usize),
    /// With the step that reaches so many passes, those spent before the first step included.
    Passes(Passes),
}

/// What makes a checkpoint better than another, on the validation images.
#[derive(Clone, Debug)]
pub(crate) enum Judge {
    /// Top-1.
    Clean,
    /// Top-1 under an attack: by clean images, nothing that was trained for robustness would ever be kept.
    Robust(AttackOptions),
}

/// Validation images that are attacked for a [`Judge::Robust`].
const ATTACKED: usize = 500;

impl Plan<'_> {
    /// What tells this training from another.
    fn fingerprint(&self, start: &Checkpoint, images: &Dataset) -> String {
        let Self {
            length,
            spent,
            method,
            options,
            judge,
        } = self;
        let fingerprint = fingerprint(start, images);
        format!("{fingerprint} {method} {length:?} {spent:?} {judge:?} {options:?}")
    }

    /// How far a training is, from 0 to 1, after `step` steps and `passes` passes.
    fn share(&self, step: usize, passes: Passes) -> f64 {
        let (done, all) = match self.length {
            Length::Steps(steps) => (step as u64, steps as u64),
            Length::Passes(budget) => (
                passes.thirds.saturating_sub(self.spent.thirds),
                budget.thirds.saturating_sub(self.spent.thirds),
            ),
        };
        if done >= all { 1.0 } else { done as f64 / all as f64 }
    }

    /// Top-1 of a checkpoint on the validation images, and what it is judged by.
    fn judge(&self, checkpoint: &Checkpoint, validation: &Dataset, device: &Device) -> Result<(f32, f32)> {
        let Checkpoint {
            network,
            state,
            quantization,
            ..
        } = checkpoint;
        let network = Frozen::new(network, state, quantization.as_ref(), device)?;
        let top1 = network.accuracy(validation)?;
        match &self.judge {
            Judge::Clean => Ok((top1, top1)),
            Judge::Robust(options) => Ok((top1, attack::robust_accuracy(&network, validation, ATTACKED, options))),
        }
    }
}

/// Trains, and keeps the best checkpoint by validation in `track`; continues where `track` was left.
///
/// Where scales are not learnt, those of W4 and W8 are chosen anew at the start of every epoch. At the end, BatchNorm statistics of the best checkpoint are
/// re-estimated on `images` and kept where validation gains. Validation and this last step are not counted as passes: they
/// are the same for every method that has the same number of rounds.
///
/// # Errors
/// As [`train`]; [`ErrorKind::Device`] where a GPU has no memory for a step, or fails.
pub(crate) fn fit(
    start: &Checkpoint,
    task: &mut dyn Task,
    images: &Dataset,
    validation: &Dataset,
    plan: &Plan,
    track: &Track,
    device: &Device,
) -> Result<TrainReport> {
    let views = task.views();
    let need = StepMemory::new(&start.network, views * images.len())?;
    memory::check(&need, plan.options.batch, views, device)?;
    memory::guard(&need, views, device, || {
        fit_unguarded(start, task, images, validation, plan, track, device)
    })
}

/// [`fit`], whatever the device does.
fn fit_unguarded(
    start: &Checkpoint,
    task: &mut dyn Task,
    images: &Dataset,
    validation: &Dataset,
    plan: &Plan,
    track: &Track,
    device: &Device,
) -> Result<TrainReport> {
    let options = plan.options;
    let network = &start.network;
    let judge = |checkpoint: &Checkpoint| plan.judge(checkpoint, validation, device);
    let robust = |score: f32| matches!(plan.judge, Judge::Robust(_)).then_some(score);
    let (mut trained, mut progress, mut optimizer) = match resume(start, images, plan, track, device)? {
        Some(stand) => stand,
        None => {
            let (top1, score) = judge(start)?;
            start.save(track.best())?;
            let mut trained = start.clone();
            trained.provenance = Provenance {
                data: images.name.clone(),
                method: plan.method.into(),
                seed: options.seed,
                top1: None,
            };
            let mut progress = Progress::new(plan.fingerprint(start, images), top1, score);
            progress.passes = plan.spent;
            (trained, progress, Stepper::new(options))
        }
    };
    if progress.finished {
        return Ok(progress.report());
    }
    task.restore(std::mem::take(&mut progress.task))?;

    let mut metrics = track.metrics_until(progress.step)?;
    let clock = Clock::since(progress.seconds);
    let per_epoch = task.steps_per_epoch();
    let epoch = |step: usize| step as f64 / per_epoch as f64;
    if progress.step == 0 {
        metrics.append(&Metric {
            epoch: 0.0,
            step: 0,
            passes: progress.passes.count(),
            loss: None,
            learning_rate: options.learning_rate,
            validation_top1: Some(progress.best_top1),
            validation_robust_top1: robust(progress.best_score),
            seconds: clock.seconds(),
        })?;
    }
    let bar = progress_bar(BAR, plan.method);
    let mut net = Net::<Auto>::from_state(network, &trained.state, device)?;
    if let Some(quantization) = learned_scales(&mut trained, options) {
        if progress.step == 0 {
            quantize::start_scales(quantization, network, &start.state)?;
        }
        net = net.with_learned_scales(quantization, device);
    }
    let mut watch = LossWatch::new(options.learning_rate, per_epoch);
    let (mut loss_sum, mut losses) = (0.0, 0);
    while plan.share(progress.step, progress.passes) < 1.0 {
        let step = progress.step;
        if step % per_epoch == 0
            && options.scales == Scales::Reestimated
            && let Some(quantization) = &mut trained.quantization
        {
            quantize::refresh_scales(quantization, network, &net.to_state(network))?;
        }
        let student = Student {
            network,
            net: &net,
            quantization: trained.quantization.as_ref(),
            mode: options.batch_norm,
            share: plan.share(step, progress.passes),
            device,
        };
        if step % per_epoch == 0 {
            progress.passes += task.begin_epoch(step / per_epoch, &student)?;
        }
        let learning_rate = cosine(options.learning_rate, plan.share(step, progress.passes));
        let (loss, passes) = task.step(step, &student)?;
        progress.passes += passes;
        progress.step += 1;
        let share = plan.share(progress.step, progress.passes);
        let round = if share < 1.0 {
            (share * options.epochs as f64) as usize
        } else {
            options.epochs
        };
        let evaluated = round > progress.round;
        // Reading a number waits for the device, so not at every step.
        let value = (step % READ_EVERY == 0 || evaluated).then(|| nn::to_host(loss.clone().inner())[0]);
        net = optimizer.step(learning_rate, net, &loss);
        bar.set_position((share * BAR as f64) as u64);
        if let Some(loss) = value {
            watch.see(loss, step)?;
            loss_sum += f64::from(loss);
            losses += 1;
            bar.set_message(format!("loss {loss:.3}, validation {:.2} %", progress.best_top1));
            if !evaluated {
                metrics.append(&Metric {
                    epoch: epoch(progress.step),
                    step: progress.step,
                    passes: progress.passes.count(),
                    loss: Some(f64::from(loss)),
                    learning_rate,
                    validation_top1: None,
                    validation_robust_top1: None,
                    seconds: clock.seconds(),
                })?;
            }
        }
        if !evaluated {
            continue;
        }
        trained.state = net.to_state(network);
        if let Some(quantization) = learned_scales(&mut trained, options) {
            net = net.fold_scales(quantization, device);
        }
        if let Err(error) = trained.state.check(network) {
            return Err(diverged(
                format!("weights are not finite after step {}: {error}", progress.step),
                options.learning_rate,
            ));
        }
        let (top1, score) = judge(&trained)?;
        progress.round = round;
        if score > progress.best_score {
            progress.best(top1, score, round);
            trained.save(track.best())?;
        }
        progress.seconds = clock.seconds();
        progress.task = task.state();
        metrics.append(&Metric {
            epoch: epoch(progress.step),
            step: progress.step,
            passes: progress.passes.count(),
            loss: (losses > 0).then(|| loss_sum / f64::from(losses)),
            learning_rate,
            validation_top1: Some(top1),
            validation_robust_top1: robust(score),
            seconds: progress.seconds,
        })?;
        (loss_sum, losses) = (0.0, 0);
        track.save_last(&trained, &progress, optimizer.save()?)?;
    }
    bar.finish_and_clear();

    if progress.best_round > 0 {
        let mut best = Checkpoint::load(track.best())?;
        if let Some(quantization) = &best.quantization {
            let sample = quantize::calibration_images(images, REESTIMATION_IMAGES, options.seed)?;
            best.state = batch_norm::reestimate(network, &best.state, quantization, &sample, device)?;
            let (top1, score) = judge(&best)?;
            if score > progress.best_score {
                progress.best(top1, score, progress.best_round);
                best.save(track.best())?;
            }
        }
    }
    progress.finished = true;
    progress.seconds = clock.seconds();
    track.save_last(&trained, &progress, optimizer.save()?)?;
    Ok(progress.report())
}

/// The quantization whose scales are parameters.
fn learned_scales<'a>(trained: &'a mut Checkpoint, options: &TrainOptions) -> Option<&'a mut Quantization> {
    trained.quantization.as_mut().filter(|_| options.scales == Scales::Learned)
}

/// Where the training in `track` stands; `None` where there is none yet.
fn resume(
    start: &Checkpoint,
    images: &Dataset,
    plan: &Plan,
    track: &Track,
    device: &Device,
) -> Result<Option<(Checkpoint, Progress, Stepper)>> {
    let Some((trained, progress, state)) = track.load_last::<Progress>()? else {
        return Ok(None);
    };
    let last = track.last();
    if progress.fingerprint != plan.fingerprint(start, images) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{} is of another start checkpoint, other images or other options",
                last.display()
            ),
        )
        .remedy("name another run folder with -o"));
    }
    let optimizer = Stepper::new(plan.options).load(&state, device).map_err(|cause| {
        Error::new(ErrorKind::Weights, format!("{}: {cause}", last.display())).remedy("delete the run folder to start over")
    })?;
    Ok(Some((trained, progress, optimizer)))
}

/// Steps between two readings of the loss.
const READ_EVERY: usize = 10;

/// Length of a training's progress bar: the end may be a number of steps or of passes.
const BAR: usize = 1000;

/// Images that BatchNorm statistics are re-estimated on.
const REESTIMATION_IMAGES: usize = 2000;

/// Where a training stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    fingerprint: String,
    step: usize,
    round: usize,
    passes: Passes,
    before_top1: f32,
    /// Of the checkpoint kept.
    best_top1: f32,
    /// What it was kept for: top-1, or top-1 under attack.
    best_score: f32,
    best_round: usize,
    seconds: f64,
    finished: bool,
    /// The task's own state.
    task: Vec<f32>,
}

impl Progress {
    fn new(fingerprint: String, top1: f32, score: f32) -> Self {
        Self {
            fingerprint,
            step: 0,
            round: 0,
            passes: Passes::default(),
            before_top1: top1,
            best_top1: top1,
            best_score: score,
            best_round: 0,
            seconds: 0.0,
            finished: false,
            task: Vec::new(),
        }
    }

    fn best(&mut self, top1: f32, score: f32, round: usize) {
        self.best_top1 = top1;
        self.best_score = score;
        self.best_round = round;
    }

    fn report(&self) -> TrainReport {
        TrainReport {
            before_top1: self.before_top1,
            top1: self.best_top1,
            best_round: self.best_round,
            passes: self.passes.count(),
            seconds: self.seconds,
        }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Serialize)]
struct Metric {
    epoch: f64,
    /// Steps done.
    step: usize,
    passes: f64,
    /// Of the step; where `validation_top1` is given, the mean of the readings since the last such line.
    loss: Option<f64>,
    learning_rate: f64,
    /// Of the weights as they are, not of the best.
    validation_top1: Option<f32>,
    /// The same under attack, where that is what the best is chosen by.
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_robust_top1: Option<f32>,
    seconds: f64,
}

/// Seconds worked, over all processes that worked on the run.
struct Clock {
    before: f64,
    start: Instant,
}

impl Clock {
    fn since(before: f64) -> Self {
        Self {
            before,
            start: Instant::now(),
        }
    }

    fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }
}

/// Looks for what shows that training does not train: a loss that is no number, or always the same one. burn's GPU workers
/// die with a line in the log and leave their results as they were.
struct LossWatch {
    learning_rate: f64,
    /// Where every step sees all images, a network at rest repeats its loss with good reason.
    repeats_are_odd: bool,
    last: f32,
    repeats: usize,
}

impl LossWatch {
    fn new(learning_rate: f64, steps_per_epoch: usize) -> Self {
        Self {
            learning_rate,
            repeats_are_odd: steps_per_epoch > 1,
            last: f32::NAN,
            repeats: 0,
        }
    }

    fn see(&mut self, loss: f32, step: usize) -> Result<()> {
        if !loss.is_finite() {
            return Err(diverged(format!("the loss is {loss} at step {step}"), self.learning_rate));
        }
        self.repeats = if loss == self.last { self.repeats + 1 } else { 0 };
        self.last = loss;
        // A loss of exactly 0 is what a network has that knows a small set by heart.
        if self.repeats_are_odd && self.repeats >= 3 && loss != 0.0 {
            return Err(Error::new(
                ErrorKind::Diverged,
                format!(
                    "the loss is exactly {loss} again and again, up to step {step}: the device does not compute, or no \
                         gradient reaches the weights"
                ),
            )
            .remedy("try `--device flex`, or a lower --learning-rate"));
        }
        Ok(())
    }
}

fn diverged(what: String, learning_rate: f64) -> Error {
    Error::new(ErrorKind::Diverged, what).remedy(format!(
        "start a new run with a lower --learning-rate, such as {:.0e}",
        learning_rate / 3.0
    ))
}

/// From `first` at share 0 of the training down to 0 at its end.
fn cosine(first: f64, share: f64) -> f64 {
    first * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
}

/// What tells one training from another where the options are alike: weights, quantization, images and labels.
pub(crate) fn fingerprint(start: &Checkpoint, images: &Dataset) -> String {
    let crc = crc::Crc::<u64>::new(&crc::CRC_64_XZ);
    let mut digest = crc.digest();
    for (name, array) in &start.state.tensors {
        digest.update(name.as_bytes());
        for value in &array.values {
            digest.update(&value.to_le_bytes());
        }
    }
    digest.update(format!("{:?}{:?}", start.network, start.quantization).as_bytes());
    digest.update(&images.images);
    for label in &images.labels {
        digest.update(&label.to_le_bytes());
    }
    format!("{:016x}", digest.finalize())
}

/// A bar for `steps` steps of `what`: on standard error, and only where that is a terminal.
pub fn progress_bar(steps: usize, what: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(steps as u64), target).with_prefix(what.to_owned());
    match ProgressStyle::with_template("{prefix:>8} {wide_bar} {pos}/{len} {msg} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The optimizer with its state: one for the weights of convolutions and linear layers, which decay, and one for the rest.
pub(crate) struct Stepper {
    weights: Rule,
    others: Rule,
}

/// One of the optimizers.
enum Rule {
    Adam(OptimizerAdaptor<AdamW, Net<Auto>, Auto>),
    Sgd(OptimizerAdaptor<Sgd<Inner>, Net<Auto>, Auto>),
}

impl Stepper {
    pub fn new(options: &TrainOptions) -> Self {
        Self {
            weights: Rule::new(options.optimizer, options.weight_decay),
            others: Rule::new(options.optimizer, 0.0),
        }
    }

    /// One step along the gradients of `loss`.
    pub fn step(&mut self, learning_rate: f64, net: Net<Auto>, loss: &Tensor<Auto, 1>) -> Net<Auto> {
        let mut gradients = loss.backward();
        let [weights, others] =
            [net.weight_ids(), net.other_ids()].map(|ids| GradientsParams::from_params(&mut gradients, &net, &ids));
        let net = self.weights.step(learning_rate, net, weights);
        self.others.step(learning_rate, net, others)
    }

    /// Both states, the first behind its length.
    fn save(&self) -> Result<Vec<u8>> {
        let [weights, others] = [self.weights.save()?, self.others.save()?];
        let mut state = (weights.len() as u64).to_le_bytes().to_vec();
        state.extend(weights);
        state.extend(others);
        Ok(state)
    }

    fn load(self, state: &[u8], device: &Device) -> Result<Self, String> {
        let (len, state) = state.split_first_chunk().ok_or("the optimizer's state is cut short")?;
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (weights, others) = state.split_at_checked(len).ok_or("the optimizer's state is cut short")?;
        Ok(Self {
            weights: self.weights.load(weights.to_vec(), device)?,
            others: self.others.load(others.to_vec(), device)?,
        })
    }
}

impl Rule {
    fn new(optimizer: Optimizer, weight_decay: f32) -> Self {
        match optimizer {
            Optimizer::Adam => {
                let config = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(weight_decay);
                Rule::Adam(config.init())
            }
            Optimizer::Sgd => {
                let momentum = MomentumConfig::new()
                    .with_momentum(0.9)
                    .with_dampening(0.0)
                    .with_nesterov(true);
                let decay = (weight_decay > 0.0).then(|| WeightDecayConfig::new(weight_decay));
                let config = SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(decay);
                Rule::Sgd(config.init())
            }
        }
    }

    fn step(&mut self, learning_rate: f64, net: Net<Auto>, gradients: GradientsParams) -> Net<Auto> {
        match self {
            Rule::Adam(optimizer) => optimizer.step(learning_rate, net, gradients),
            Rule::Sgd(optimizer) => optimizer.step(learning_rate, net, gradients),
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        match self {
            Rule::Adam(optimizer) => Recorder::<Auto>::record(&recorder(), optimizer.to_record(), ()),
            Rule::Sgd(optimizer) => Recorder::<Auto>::record(&recorder(), optimizer.to_record(), ()),
        }
        .map_err(|cause| Error::new(ErrorKind::Weights, format!("the optimizer's state cannot be stored: {cause}")))
    }

    fn load(self, state: Vec<u8>, device: &Device) -> Result<Self, String> {
        let device = device.dispatch();
        let damaged = |cause| format!("the optimizer's state is damaged ({cause})");
        Ok(match self {
            Rule::Adam(optimizer) => {
                let record = Recorder::<Auto>::load(&recorder(), state, device).map_err(damaged)?;
                Rule::Adam(optimizer.load_record(record))
            }
            Rule::Sgd(optimizer) => {
                let record = Recorder::<Auto>::load(&recorder(), state, device).map_err(damaged)?;
                Rule::Sgd(optimizer.load_record(record))
            }
        })
    }
}

fn recorder() -> NamedMpkBytesRecorder<FullPrecisionSettings> {
    NamedMpkBytesRecorder::default()
}

/// A small network and a small set of images, hard enough that training is never done.
#[cfg(test)]
pub(crate) mod fixture {
    use rand::Rng;

    use super::*;
    use crate::checkpoint::Provenance;
    use crate::data::batch::{Purpose, rng};
    use crate::network::{BatchNorm, Layer, Network, Normalization, Op, Shape, Window};
    use crate::state_dict::StateDict;

    /// Two convolutions and a linear layer on 8x8 images of four classes.
    pub fn network() -> Network {
        let window = |kernel: u8, stride: u8, pad: u8| Window {
            kernel_height: kernel,
            kernel_width: kernel,
            stride_height: stride,
            stride_width: stride,
            pad_top: pad,
            pad_bottom: pad,
            pad_left: pad,
            pad_right: pad,
        };
        let convolution = |name: &str, input: usize, out_channels: usize, stride: u8| Layer {
            name: name.into(),
            inputs: vec![input],
            op: Op::Conv2d {
                out_channels,
                window: window(3, stride, 1),
                bias: false,
                batch_norm: Some(BatchNorm {
                    name: format!("{name}.bn"),
                    epsilon: 1e-5,
                }),
                relu: true,
            },
        };
        Network {
            name: "fixture".into(),
            input: Shape {
                height: 8,
                width: 8,
                channels: 3,
            },
            normalization: Normalization {
                mean: vec![128.0; 3],
                std: vec![64.0; 3],
            },
            layers: vec![
                convolution("conv1", 0, 6, 1),
                convolution("conv2", 1, 8, 2),
                Layer {
                    name: "pool".into(),
                    inputs: vec![2],
                    op: Op::AvgPool { window: window(2, 2, 0) },
                },
                Layer {
                    name: "fc".into(),
                    inputs: vec![3],
                    op: Op::Linear {
                        out_features: 4,
                        bias: true,
                        relu: false,
                    },
                },
            ],
        }
    }

    /// Class `c` is brighter in quadrant `c`, by less than the noise.
    pub fn images(len: usize, seed: u64) -> Dataset {
        let mut rng = rng(seed, Purpose::Synthetic, 99);
        let labels: Vec<u16> = (0..len).map(|i| (i % 4) as u16).collect();
        let mut images = Vec::new();
        for &label in &labels {
            for (y, x) in (0..64).map(|i| (i / 8, i % 8)) {
                let bright = usize::from(label) == y / 4 * 2 + x / 4;
                for _ in 0..3 {
                    images.push(rng.random_range(60u8..=180) + if bright { 20 } else { 0 });
                }
            }
        }
        Dataset {
            name: "fixture/train".into(),
            classes: (0..4).map(|c| format!("quadrant {c}")).collect(),
            height: 8,
            width: 8,
            channels: 3,
            images,
            labels,
        }
    }

    /// Random weights.
    pub fn float(seed: u64) -> Checkpoint {
        let network = network();
        Checkpoint {
            state: StateDict::init(&network, seed).unwrap(),
            network,
            quantization: None,
            labels: Vec::new(),
            provenance: Provenance::default(),
        }
    }

    /// As many epochs as a test can wait for.
    pub fn options() -> TrainOptions {
        TrainOptions {
            epochs: 3,
            batch: 16,
            learning_rate: 0.01,
            augment: false,
            seed: 7,
            validation: 40,
            ..TrainOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use serde_json::{Value, json};

    use super::*;
    use crate::file::read;
    use crate::quantize::{QuantizeOptions, Width, ptq};

    fn run(folder: &std::path::Path) -> RunFolder {
        RunFolder::open(folder, &json!({})).unwrap()
    }

    fn quantized(width: Width) -> (Checkpoint, Dataset) {
        let images = fixture::images(200, 1);
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        train(&fixture::float(3), None, &images, &fixture::options(), &run, &Device::flex()).unwrap();
        let float = Checkpoint::load(run.track("").unwrap().best()).unwrap();
        let quantized = ptq(&float, &images, &QuantizeOptions::new(width), &Device::flex()).unwrap();
        (quantized, images)
    }

    #[test]
    fn training_learns_and_keeps_the_best_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let images = fixture::images(200, 1);
        let report = train(&fixture::float(3), None, &images, &fixture::options(), &run, &Device::flex()).unwrap();
        assert!(report.top1 > report.before_top1 + 20.0, "{report:?}");
        assert_eq!(report.passes, 480.0);
        let track = run.track("").unwrap();
        let best = Checkpoint::load(track.best()).unwrap();
        assert_eq!((best.provenance.method.as_str(), best.provenance.seed), ("train", 7));
        let (_, validation) = images.split_validation(40, 7).unwrap();
        let frozen = Frozen::new(&best.network, &best.state, None, &Device::flex()).unwrap();
        assert_eq!(frozen.accuracy(&validation).unwrap(), report.top1);

        let text = std::fs::read_to_string(track.metrics()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let rounds: Vec<&Value> = lines.iter().filter(|line| !line["validation_top1"].is_null()).collect();
        assert_eq!(
            rounds.iter().map(|l| l["epoch"].as_f64().unwrap()).collect::<Vec<_>>(),
            [0.0, 1.0, 2.0, 3.0]
        );
        assert_eq!(rounds[3]["step"], 30);
        assert_eq!(rounds[3]["passes"], 480.0);
        for line in &lines[1..] {
            for key in ["loss", "learning_rate", "seconds"] {
                assert!(line[key].is_number(), "{line}");
            }
        }
    }

    #[test]
    fn every_width_and_optimizer_trains() {
        for (width, optimizer) in [
            (Width::W1, Optimizer::Adam),
            (Width::W2, Optimizer::Sgd),
            (Width::W4, Optimizer::Sgd),
        ] {
            let (start, images) = quantized(width);
            let folder = tempfile::tempdir().unwrap();
            let options = TrainOptions {
                optimizer,
                epochs: 1,
                label_smoothing: 0.1,
                augment: true,
                ..fixture::options()
            };
            let run = run(folder.path());
            let report = train(&start, None, &images, &options, &run, &Device::flex()).unwrap();
            assert!(report.top1 >= report.before_top1);
            let (last, _, _) = run.track("").unwrap().load_last::<Value>().unwrap().unwrap();
            assert_ne!(last.state, start.state);
            assert_eq!(last.provenance.method, "qat");
        }
    }

    /// Panics at a step, as a kill would end the process there.
    struct Killed(Classification, usize);

    impl Task for Killed {
        fn steps_per_epoch(&self) -> usize {
            self.0.steps_per_epoch()
        }

        fn step(&mut self, step: usize, student: &Student) -> Result<(Tensor<Auto, 1>, Passes)> {
            assert_ne!(step, self.1, "killed");
            self.0.step(step, student)
        }
    }

    fn classification(images: &Dataset, options: &TrainOptions) -> Classification {
        Classification {
            batches: Batches::new(images, None, options, &Device::flex()),
            teacher: None,
        }
    }

    fn plan<'a>(length: Length, options: &'a TrainOptions) -> Plan<'a> {
        Plan {
            length,
            spent: Passes::default(),
            method: "qat",
            options,
            judge: Judge::Clean,
        }
    }

    #[test]
    fn a_killed_run_continues_to_the_same_bytes() {
        let (start, images) = quantized(Width::W4);
        for (optimizer, scales) in [
            (Optimizer::Adam, Scales::Reestimated),
            (Optimizer::Sgd, Scales::Learned),
            (Optimizer::Adam, Scales::Learned),
        ] {
            let options = TrainOptions {
                optimizer,
                scales,
                augment: true,
                ..fixture::options()
            };
            let (training, validation) = images.split_validation(options.validation, options.seed).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let run = run(folder.path());
            let train = |track: &str, killed_at: usize| {
                let mut task = Killed(classification(&training, &options), killed_at);
                // Evaluations that are no whole epochs.
                let plan = plan(Length::Steps(25), &options);
                let track = run.track(track).unwrap();
                fit(&start, &mut task, &training, &validation, &plan, &track, &Device::flex()).unwrap()
            };
            let whole = train("whole", usize::MAX);
            for killed_at in [3, 14, 24] {
                catch_unwind(AssertUnwindSafe(|| train("killed", killed_at))).unwrap_err();
            }
            let continued = train("killed", usize::MAX);
            assert_eq!(
                TrainReport { seconds: 0.0, ..whole },
                TrainReport {
                    seconds: 0.0,
                    ..continued.clone()
                }
            );
            let [a, b] = ["whole", "killed"].map(|track| run.track(track).unwrap());
            assert!(read(&a.best()).unwrap() == read(&b.best()).unwrap());
            let last = |track: &Track| track.load_last::<Value>().unwrap().unwrap().0.state;
            assert!(last(&a) == last(&b));
            let steps = |track: &Track| -> Vec<Value> {
                let text = std::fs::read_to_string(track.metrics()).unwrap();
                let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
                lines
                    .map(|line| json!([line["step"], line["loss"], line["validation_top1"]]))
                    .collect()
            };
            assert_eq!(steps(&a), steps(&b));
            // Once more: nothing is left to do.
            assert_eq!(train("killed", 0), continued);
        }
    }

    #[test]
    fn learned_scales_move_and_stay_the_quantizers() {
        for width in [Width::W2, Width::W4] {
            let (start, images) = quantized(width);
            let folder = tempfile::tempdir().unwrap();
            let options = TrainOptions {
                scales: Scales::Learned,
                ..fixture::options()
            };
            let run = run(folder.path());
            let report = train(&start, None, &images, &options, &run, &Device::flex()).unwrap();
            assert!(report.top1 >= report.before_top1);
            let (last, _, _) = run.track("").unwrap().load_last::<Value>().unwrap().unwrap();
            let mut untouched = start.quantization.clone().unwrap();
            quantize::start_scales(&mut untouched, &start.network, &start.state).unwrap();
            let learnt = last.quantization.unwrap();
            for (a, b) in learnt.weights.iter().flatten().zip(untouched.weights.iter().flatten()) {
                assert_eq!(a.scales.len(), b.scales.len());
                let moved = a.scales.iter().zip(&b.scales).filter(|(a, b)| a != b).count();
                assert!(moved > a.scales.len() / 2, "{moved} of {}", a.scales.len());
                assert!(a.scales.iter().zip(&b.scales).all(|(a, b)| (0.3..3.0).contains(&(a / b))));
            }
        }
    }

    #[test]
    fn only_weights_decay() {
        let (start, images) = quantized(Width::W4);
        let last = |weight_decay: f32| {
            let folder = tempfile::tempdir().unwrap();
            let options = TrainOptions {
                weight_decay,
                epochs: 1,
                // So small that decay is all that moves anything far.
                learning_rate: 1e-6,
                ..fixture::options()
            };
            let run = run(folder.path());
            train(&start, None, &images, &options, &run, &Device::flex()).unwrap();
            run.track("").unwrap().load_last::<Value>().unwrap().unwrap().0.state
        };
        let state = last(1e5);
        for (name, array) in &start.state.tensors {
            let size = |array: &crate::state_dict::Array| array.values.iter().map(|v| f64::from(v.abs())).sum::<f64>();
            let share = size(&state.tensors[name]) / size(array);
            let decays = name.ends_with(".weight") && !name.contains(".bn");
            if decays {
                assert!(share < 0.7, "{name} {share}");
            } else if name.ends_with(".bn.weight") {
                assert!((share - 1.0).abs() < 1e-3, "{name} {share}");
            }
        }
    }

    #[test]
    fn another_start_other_images_or_options_do_not_continue_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let images = fixture::images(80, 1);
        let options = TrainOptions {
            epochs: 1,
            ..fixture::options()
        };
        train(&fixture::float(3), None, &images, &options, &run, &Device::flex()).unwrap();
        let longer = TrainOptions {
            epochs: 2,
            ..options.clone()
        };
        let other_images = fixture::images(80, 2);
        for (start, images, options) in [(4, &images, &options), (3, &other_images, &options), (3, &images, &longer)] {
            let error = train(&fixture::float(start), None, images, options, &run, &Device::flex()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    /// Runs itself a second time in a process that may write no file as long as the checkpoint.
    #[cfg(unix)]
    #[test]
    fn a_full_disk_leaves_the_last_checkpoint_whole() {
        const FOLDER: &str = "ADCORDA_TEST_FULL_DISK";
        let images = fixture::images(200, 1);
        let options = fixture::options();
        let (training, validation) = images.split_validation(options.validation, options.seed).unwrap();
        let fit = |folder: &std::path::Path, killed_at: usize| {
            let start = Checkpoint::load(folder.join("start.safetensors")).unwrap();
            let mut task = Killed(classification(&training, &options), killed_at);
            let plan = plan(Length::Steps(20), &options);
            let track = run(&folder.join("run")).track("").unwrap();
            fit(&start, &mut task, &training, &validation, &plan, &track, &Device::flex())
        };
        if let Some(folder) = std::env::var_os(FOLDER) {
            let error = fit(folder.as_ref(), usize::MAX).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert!(error.to_string().contains("last.safetensors"), "{error}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        quantized(Width::W8).0.save(folder.path().join("start.safetensors")).unwrap();
        catch_unwind(AssertUnwindSafe(|| fit(folder.path(), 15))).unwrap_err();
        let [last, best] = ["last", "best"].map(|name| folder.path().join(format!("run/{name}.safetensors")));
        let before = read(&last).unwrap();
        let (limit, size) = (20 * 512, |path| read(path).unwrap().len());
        assert!(size(&best) < limit && limit < size(&last), "{} {}", size(&best), size(&last));

        let child = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 20; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg("train::tests::a_full_disk_leaves_the_last_checkpoint_whole")
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
        assert!(read(&last).unwrap() == before);
        assert!(fit(folder.path(), usize::MAX).unwrap().passes > 0.0);
    }

    #[test]
    fn a_damaged_checkpoint_is_an_error_not_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let track = run(folder.path()).track("").unwrap();
        let (images, options) = (fixture::images(40, 1), fixture::options());
        let plan = plan(Length::Steps(2), &options);
        let progress = Progress::new(plan.fingerprint(&fixture::float(3), &images), 0.0, 0.0);
        track.save_last(&fixture::float(3), &progress, b"no record".to_vec()).unwrap();
        let mut task = classification(&images, &options);
        let error = fit(
            &fixture::float(3),
            &mut task,
            &images,
            &images,
            &plan,
            &track,
            &Device::flex(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        assert!(error.to_string().contains("optimizer"), "{error}");
    }

    #[test]
    fn a_loss_that_is_no_number_or_stands_still_is_divergence() {
        let folder = tempfile::tempdir().unwrap();
        let options = TrainOptions {
            learning_rate: 1e30,
            ..fixture::options()
        };
        let images = fixture::images(200, 1);
        let error = train(
            &fixture::float(3),
            None,
            &images,
            &options,
            &run(folder.path()),
            &Device::flex(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Diverged);
        assert!(error.to_string().contains("--learning-rate"), "{error}");

        let mut watch = LossWatch::new(0.1, 10);
        let seen: Vec<bool> = [1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9]
            .iter()
            .map(|&loss| watch.see(loss, 0).is_ok())
            .collect();
        assert_eq!(seen, [true, true, true, true, true, true, false]);
        assert!((0..9).all(|_| LossWatch::new(0.1, 1).see(0.5, 0).is_ok()));
    }

    #[test]
    fn label_noise_is_for_training_only() {
        let images = fixture::images(200, 1);
        let clean = fixture::options();
        let noisy = TrainOptions {
            label_noise: 0.4,
            ..clean.clone()
        };
        let [(a, validation), (b, same)] = [clean, noisy].map(|options| options.split(&images).unwrap());
        assert_eq!(validation, same);
        assert_eq!(a.labels.iter().zip(&b.labels).filter(|(a, b)| a != b).count(), 64);
    }

    #[test]
    fn options_that_cannot_be_are_usage_errors() {
        let images = fixture::images(80, 1);
        let good = fixture::options();
        for (bad, needle) in [
            (
                TrainOptions {
                    epochs: 0,
                    ..good.clone()
                },
                "--epochs",
            ),
            (
                TrainOptions {
                    batch: 1,
                    ..good.clone()
                },
                "--batch",
            ),
            (
                TrainOptions {
                    learning_rate: f64::NAN,
                    ..good.clone()
                },
                "--learning-rate",
            ),
            (
                TrainOptions {
                    learning_rate: 0.0,
                    ..good.clone()
                },
                "--learning-rate",
            ),
            (
                TrainOptions {
                    weight_decay: -1.0,
                    ..good.clone()
                },
                "--weight-decay",
            ),
            (
                TrainOptions {
                    label_smoothing: 1.0,
                    ..good.clone()
                },
                "--label-smoothing",
            ),
            (
                TrainOptions {
                    validation: 0,
                    ..good.clone()
                },
                "--validation",
            ),
            (
                TrainOptions {
                    validation: 79,
                    ..good.clone()
                },
                "--validation",
            ),
            (
                TrainOptions {
                    label_noise: 1.5,
                    ..good.clone()
                },
                "--label-noise",
            ),
        ] {
            let error = bad.check(&fixture::network(), &images).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(needle), "{error}");
        }
        let ten = Dataset {
            classes: vec![String::new(); 10],
            ..images
        };
        assert_eq!(good.check(&fixture::network(), &ten).unwrap_err().kind(), ErrorKind::Data);
    }

    #[test]
    fn an_epoch_shows_every_image_once_in_even_batches() {
        for (len, batch) in [(100, 32), (10, 64), (65, 64), (95, 64), (97, 64), (7, 2)] {
            let options = TrainOptions {
                batch,
                ..TrainOptions::default()
            };
            let mut draw = Draw::new(len, &options);
            let steps = draw.steps_per_epoch;
            let batches: Vec<Vec<usize>> = (steps..2 * steps).map(|step| draw.step(step).0.to_vec()).collect();
            let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            assert!(sizes.iter().all(|&size| size >= 2), "{sizes:?}");
            let mut seen = batches.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn cross_entropy_is_the_textbooks() {
        let logits = [1.0f32, 2.0, 0.5, -1.0, 0.0, 3.0];
        let tensor = Tensor::from_data(TensorData::new(logits.to_vec(), [2, 3]), Device::flex().dispatch());
        for smoothing in [0.0f32, 0.1] {
            let mut expected = 0.0f64;
            for (row, label) in logits.chunks_exact(3).zip([1usize, 0]) {
                let log_sum = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
                for (class, &logit) in row.iter().enumerate() {
                    let target = f64::from(smoothing) / 3.0 + if class == label { 1.0 - f64::from(smoothing) } else { 0.0 };
                    expected -= target * (f64::from(logit) - log_sum) / 2.0;
                }
            }
            let loss = nn::to_host(cross_entropy(tensor.clone(), targets(&[1, 0], 3, smoothing, &Device::flex())).inner())[0];
            assert!((f64::from(loss) - expected).abs() < 1e-6, "{loss} {expected}");
        }
    }

    #[test]
    fn the_learning_rate_falls_along_a_cosine() {
        assert_eq!(cosine(0.2, 0.0), 0.2);
        assert!((cosine(0.2, 0.5) - 0.1).abs() < 1e-12);
        assert!(cosine(0.2, 0.99) < 1e-4);
    }
}
