//! A table of experiments as a file: which networks, images, starts, seeds and arms; and the cells that follow from it.
//!
//! The file is TOML. Everything random is in it, nothing of a machine has to be: data sets, devices and, if need be, float
//! checkpoints are named on the command line. `experiments/smoke.toml` shows every key.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::attack::robustness::{Attack, RobustnessOptions, default_epsilons};
use crate::attack::{Method, Norm};
use crate::nn::Mode;
use crate::quantize::{Scales, Width};
use crate::refine::{Arm, RefineOptions, Refresh, Schedule};
use crate::train::{Optimizer, TrainOptions};
use crate::{Error, ErrorKind, Result, zoo};

/// Name of the rows that show what the arms began with.
pub const START: &str = "start";

/// A table of experiments.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// What the table is called.
    pub name: String,
    /// Every cell is run once a seed.
    pub seeds: Vec<u64>,
    /// Label of the arm that all others are compared with; the first `qat` where nothing is said.
    pub control: Option<String>,
    /// Options of every arm.
    #[serde(default)]
    pub options: Options,
    /// The networks.
    pub network: Vec<NetworkSpec>,
    /// The sets of training images, each with its budget.
    pub images: Vec<ImagesSpec>,
    /// What the arms begin with.
    pub start: Vec<StartSpec>,
    /// What is compared.
    pub arm: Vec<ArmSpec>,
    /// What is measured beside top-1.
    #[serde(default)]
    pub measure: Measure,
}

/// A float network.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// What it is called; one of [`zoo::NAMES`] where it is trained here.
    pub name: String,
    /// Its checkpoint or run folder, from the table's folder.
    pub float: Option<PathBuf>,
    /// Or how to train it.
    pub train: Option<FloatSpec>,
}

/// How to train a float network. It is trained once, whatever the seeds of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatSpec {
    /// Times that every image is seen.
    pub epochs: usize,
    /// Images of a step.
    pub batch: Option<usize>,
    /// At the first step.
    pub learning_rate: Option<f64>,
    /// `adam` or `sgd`.
    pub optimizer: Option<Optimizer>,
    /// Decoupled for Adam, L2 for SGD.
    pub weight_decay: Option<f32>,
    /// Share of the target spread evenly over the classes.
    pub label_smoothing: Option<f32>,
    /// Random flip and shift.
    pub augment: Option<bool>,
    /// Of initial weights, order, augmentation and validation images.
    pub seed: Option<u64>,
    /// Images to choose the best epoch by.
    pub validation: Option<usize>,
    /// The first so many training images only.
    pub limit: Option<usize>,
}

impl FloatSpec {
    /// As the training loop takes them.
    pub fn options(&self) -> TrainOptions {
        let usual = TrainOptions::default();
        TrainOptions {
            epochs: self.epochs,
            batch: self.batch.unwrap_or(usual.batch),
            learning_rate: self.learning_rate.unwrap_or(usual.learning_rate),
            optimizer: self.optimizer.unwrap_or(usual.optimizer),
            weight_decay: self.weight_decay.unwrap_or(usual.weight_decay),
            label_smoothing: self.label_smoothing.unwrap_or(usual.label_smoothing),
            augment: self.augment.unwrap_or(usual.augment),
            seed: self.seed.unwrap_or(usual.seed),
            validation: self.validation.unwrap_or(usual.validation),
            ..usual
        }
    }
}

/// Training images, and what training on them may cost.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesSpec {
    /// What they are called: their number, and `-noise0.4` at that share, where nothing is said.
    pub name: Option<String>,
    /// The first so many of the set, validation images included; all where nothing is said.
    pub limit: Option<usize>,
    /// How many of them are for choosing a checkpoint by.
    pub validation: Option<usize>,
    /// Share of the labels, those for validation left out, that are replaced by wrong ones.
    #[serde(default)]
    pub label_noise: f64,
    /// Budget of every arm: forward-backward passes, prediction, attacks and teacher included.
    pub passes: f64,
}

impl ImagesSpec {
    /// What they are called.
    pub fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let limit = self.limit.map_or("all".to_owned(), |limit| limit.to_string());
        match self.label_noise {
            0.0 => limit,
            noise => format!("{limit}-noise{noise}"),
        }
    }
}

/// Weights, and the bits that they have.
fn width<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Width, D::Error> {
    let text = String::deserialize(deserializer)?;
    let known = Width::ALL.into_iter().find(|width| width.name() == text);
    known.ok_or_else(|| serde::de::Error::custom(format!("unknown weights `{text}`, expected one of `w1`, `w2`, `w4`, `w8`")))
}

/// A struct of its own keys and those of the options, each of which may be left out: serde cannot flatten one struct into
/// another and still tell the line of an unknown key.
macro_rules! with_options {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// Evaluations on the validation images, evenly spaced over the budget.
            pub evaluations: Option<usize>,
            /// Images of a step.
            pub batch: Option<usize>,
            /// At the first step.
            pub learning_rate: Option<f64>,
            /// `adam` or `sgd`.
            pub optimizer: Option<Optimizer>,
            /// Decoupled for Adam, L2 for SGD.
            pub weight_decay: Option<f32>,
            /// Share of the target spread evenly over the classes.
            pub label_smoothing: Option<f32>,
            /// Random flip and shift.
            pub augment: Option<bool>,
            /// `reestimated` or `learned`.
            pub scales: Option<Scales>,
            /// `train` or `frozen`.
            pub batch_norm: Option<Mode>,
            /// Weight of a teacher.
            pub distill: Option<f64>,
            /// Of a teacher's logits.
            pub temperature: Option<f64>,
            /// How corrections are searched for: `fgsm`, `pgd` or `minimal`.
            pub attack: Option<Method>,
            /// Norm of that search.
            pub norm: Option<Norm>,
            /// Its largest change, in grey levels.
            pub epsilon: Option<f32>,
            /// Its step, in grey levels.
            pub attack_step: Option<f32>,
            /// Its most steps.
            pub attack_steps: Option<usize>,
            /// Its restarts.
            pub restarts: Option<usize>,
            /// Its goal, in logits.
            pub margin: Option<f32>,
            /// `once`, a number of epochs (as text) or `online`.
            pub refresh: Option<Refresh>,
            /// Only corrections that hold in the integer runtime.
            pub verify_integer: Option<bool>,
            /// Weight of CORAL.
            pub lambda: Option<f64>,
            /// `constant` or `linear`.
            pub lambda_schedule: Option<Schedule>,
            /// Share of the past in the difference of covariances.
            pub coral_momentum: Option<f64>,
            /// Weight of the cross-entropy on the original images.
            pub target_weight: Option<f64>,
            /// Weight of the entropy of the predictions for them.
            pub target_entropy: Option<f64>,
            /// Robust arms: largest change in training, in grey levels.
            pub train_epsilon: Option<f32>,
            /// Robust arms: steps of the attack in training.
            pub train_steps: Option<usize>,
            /// Robust arms: start anywhere within epsilon.
            pub random_start: Option<bool>,
            /// TRADES: weight of the divergence.
            pub beta: Option<f64>,
        }

        impl $name {
            /// Writes what is said here over `options`.
            fn apply(&self, options: &mut RefineOptions) {
                fn set<T: Clone>(option: &mut T, said: &Option<T>) {
                    if let Some(said) = said {
                        option.clone_from(said);
                    }
                }
                let training = &mut options.training;
                set(&mut training.epochs, &self.evaluations);
                set(&mut training.batch, &self.batch);
                set(&mut training.learning_rate, &self.learning_rate);
                set(&mut training.optimizer, &self.optimizer);
                set(&mut training.weight_decay, &self.weight_decay);
                set(&mut training.label_smoothing, &self.label_smoothing);
                set(&mut training.augment, &self.augment);
                set(&mut training.scales, &self.scales);
                set(&mut training.batch_norm, &self.batch_norm);
                set(&mut training.distill, &self.distill);
                set(&mut training.temperature, &self.temperature);
                let attack = &mut options.attack;
                set(&mut attack.method, &self.attack);
                set(&mut attack.norm, &self.norm);
                set(&mut attack.epsilon, &self.epsilon);
                set(&mut attack.step, &self.attack_step);
                set(&mut attack.steps, &self.attack_steps);
                set(&mut attack.restarts, &self.restarts);
                set(&mut attack.margin, &self.margin);
                set(&mut options.refresh, &self.refresh);
                set(&mut options.verify_integer, &self.verify_integer);
                set(&mut options.lambda, &self.lambda);
                set(&mut options.lambda_schedule, &self.lambda_schedule);
                set(&mut options.coral_momentum, &self.coral_momentum);
                set(&mut options.target_weight, &self.target_weight);
                set(&mut options.target_entropy, &self.target_entropy);
                let robust = &mut options.robust;
                set(&mut robust.epsilon, &self.train_epsilon);
                set(&mut robust.steps, &self.train_steps);
                set(&mut robust.random_start, &self.random_start);
                set(&mut robust.beta, &self.beta);
            }
        }
    };
}

with_options! {
    /// Options by the names of the flags of `adcorda refine`, with `_` for `-`. What is said in `[options]` holds for every
    /// arm, what is said in a `[[start]]` for every arm from there, what is said in an `[[arm]]` above both.
    #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
    pub struct Options {}
}

with_options! {
    /// A quantized network to begin with: post-training quantization, with or without QAT behind it. The options in it are
    /// those of the arms that begin with it.
    #[derive(Clone, Debug, PartialEq, Deserialize)]
    pub struct StartSpec {
        /// What it is called; `w2-ptq` or `w2-qat` where nothing is said.
        pub label: Option<String>,
        /// `w1`, `w2`, `w4` or `w8`.
        #[serde(deserialize_with = "width")]
        pub weights: Width,
        /// Names of the images that it is for; all where nothing is said.
        pub images: Option<Vec<String>>,
        /// Training before the arms begin.
        pub qat: Option<QatSpec>,
    }
}

with_options! {
    /// Training that a start has behind it.
    #[derive(Clone, Debug, PartialEq, Deserialize)]
    pub struct QatSpec {
        /// Passes to spend.
        pub passes: f64,
        /// Another arm than plain QAT: `distillation`, say.
        pub arm: Option<Arm>,
    }
}

with_options! {
    /// Something to compare.
    #[derive(Clone, Debug, PartialEq, Deserialize)]
    pub struct ArmSpec {
        /// What is done.
        pub arm: Arm,
        /// What it is called; the arm's name where nothing is said.
        pub label: Option<String>,
    }
}

impl StartSpec {
    /// What it is called.
    pub fn label(&self) -> String {
        let method = if self.qat.is_some() { "qat" } else { "ptq" };
        let usual = || format!("{}-{method}", self.weights.name());
        self.label.clone().unwrap_or_else(usual)
    }
}

impl ArmSpec {
    /// What it is called.
    pub fn label(&self) -> &str {
        self.label.as_deref().unwrap_or_else(|| self.arm.name())
    }
}

/// What is measured of every cell beside top-1 on the test images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Measure {
    /// Export, and evaluate the model file in the runtime.
    pub integer: bool,
    /// Also evaluate the weights at the end of the schedule, whatever checkpoint was kept. Where the start is kept on the
    /// validation images, this still tells what an arm did; and validation images that the float network has seen favour the
    /// start.
    pub end: bool,
    /// Attack the test images.
    pub robustness: Option<Robustness>,
}

/// Which models are attacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// The trained checkpoint.
    #[default]
    FakeQuant,
    /// The exported model, with images found on the checkpoint.
    Integer,
    /// Each.
    Both,
}

/// How robustness is measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Robustness {
    /// Names of attacks.
    pub attacks: Option<Vec<Attack>>,
    /// In grey levels.
    pub epsilons: Option<Vec<f32>>,
    /// `linf` or `l2`.
    pub norm: Option<Norm>,
    /// The first so many of the test images; all where nothing is said.
    pub images: Option<usize>,
    /// Which models are attacked.
    pub of: Of,
    /// Steps of attacks that take steps.
    pub steps: Option<usize>,
    /// Further runs from random points.
    pub restarts: Option<usize>,
    /// Most queries of an image.
    pub queries: Option<usize>,
    /// Check that gradients are not masked.
    pub checks: bool,
}

impl Robustness {
    /// As the measurement takes them.
    pub fn options(&self) -> RobustnessOptions {
        let usual = RobustnessOptions::default();
        let norm = self.norm.unwrap_or(usual.norm);
        RobustnessOptions {
            norm,
            epsilons: self.epsilons.clone().unwrap_or_else(|| default_epsilons(norm)),
            attacks: self.attacks.clone().unwrap_or(usual.attacks),
            steps: self.steps.unwrap_or(usual.steps),
            restarts: self.restarts.unwrap_or(usual.restarts),
            queries: self.queries.unwrap_or(usual.queries),
            checks: self.checks,
            ..usual
        }
    }
}

impl Table {
    /// Reads and checks a table.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the file cannot be read; [`ErrorKind::Usage`] naming line and key where it is no such table.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = crate::file::read(path)?;
        let mut table = Self::parse(&String::from_utf8_lossy(&text))
            .map_err(|error| Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        for network in &mut table.network {
            if let (Some(float), Some(folder)) = (&mut network.float, path.parent()) {
                *float = folder.join(&float);
            }
        }
        Ok(table)
    }

    /// [`load`](Self::load) of a text; paths in it stay as they are.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str) -> Result<Self> {
        let table: Self = toml::from_str(text).map_err(|cause| {
            let line = cause.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::new(ErrorKind::Usage, format!("line {line}: {}", cause.message()))
                .remedy("see `adcorda experiment --help` and experiments/smoke.toml for the keys of a table")
        })?;
        table.check()?;
        Ok(table)
    }

    fn check(&self) -> Result<()> {
        let fail = |what: String, remedy: &str| Err(Error::new(ErrorKind::Usage, what).remedy(remedy));
        for (key, empty) in [
            ("seeds", self.seeds.is_empty()),
            ("network", self.network.is_empty()),
            ("images", self.images.is_empty()),
            ("start", self.start.is_empty()),
            ("arm", self.arm.is_empty()),
        ] {
            if empty {
                return fail(format!("`{key}` is empty: there is no cell"), "give at least one");
            }
        }
        let seeds: BTreeSet<u64> = self.seeds.iter().copied().collect();
        if seeds.len() < self.seeds.len() {
            return fail(
                "`seeds` has a seed twice".into(),
                "give different ones: equal seeds give equal runs",
            );
        }
        for network in &self.network {
            let name = &network.name;
            if network.float.is_some() && network.train.is_some() {
                return fail(
                    format!("network `{name}` has both `float` and `train`"),
                    "give the checkpoint, or how to train it",
                );
            }
            if network.train.is_some() && !zoo::NAMES.contains(&name.as_str()) {
                return fail(
                    format!(
                        "network `{name}` cannot be trained: it is not one of {}",
                        zoo::NAMES.join(", ")
                    ),
                    "give its checkpoint with `float`, or on the command line with --float NAME=CKPT",
                );
            }
        }
        for images in &self.images {
            let name = images.name();
            if !(images.passes.is_finite() && images.passes > 0.0) {
                return fail(
                    format!("images `{name}`: `passes` {} is not a positive number", images.passes),
                    "give the forward-backward passes that every arm may spend, such as 20000",
                );
            }
            if !(0.0..=1.0).contains(&images.label_noise) {
                return fail(
                    format!("images `{name}`: `label_noise` {} is not within 0 to 1", images.label_noise),
                    "give a share of the labels, such as 0.4",
                );
            }
            if images.limit == Some(0) {
                return fail(format!("images `{name}`: `limit` 0 leaves none"), "give at least one");
            }
        }
        let names: Vec<String> = self.images.iter().map(ImagesSpec::name).collect();
        for start in &self.start {
            let label = start.label();
            if let Some(unknown) = start.images.iter().flatten().find(|name| !names.contains(name)) {
                return fail(
                    format!("start `{label}`: `images` names `{unknown}`"),
                    &format!("give some of {}", names.join(", ")),
                );
            }
            if let Some(qat) = &start.qat
                && !(qat.passes.is_finite() && qat.passes > 0.0)
            {
                return fail(
                    format!("start `{label}`: `passes` {} of `qat` is not a positive number", qat.passes),
                    "give the passes to spend before the arms begin, or leave `qat` out",
                );
            }
        }
        for (label, key) in (self.network.iter().map(|network| (network.name.clone(), "network `name`")))
            .chain(names.into_iter().map(|name| (name, "images `name`")))
            .chain(self.start.iter().map(|start| (start.label(), "start `label`")))
            .chain(self.arm.iter().map(|arm| (arm.label().to_owned(), "arm `label`")))
        {
            // These are parts of file names, separated by `_`.
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.+".contains(c);
            if label.is_empty() || label.starts_with('.') || !label.chars().all(plain) {
                return fail(
                    format!("{key} \"{label}\" cannot be part of a folder's name"),
                    "use letters, digits, - . and +, not a dot first",
                );
            }
        }
        if self.arm.iter().any(|arm| arm.label() == START) {
            return fail(
                format!("an arm is called \"{START}\", as the rows of the starts are"),
                "give it another `label`",
            );
        }
        if let Some(control) = &self.control
            && !self.arm.iter().any(|arm| arm.label() == control)
        {
            let labels: Vec<&str> = self.arm.iter().map(ArmSpec::label).collect();
            return fail(
                format!("`control` \"{control}\" is no arm of the table"),
                &format!("give one of {}", labels.join(", ")),
            );
        }
        if let Some(robustness) = &self.measure.robustness {
            robustness.options().check()?;
            if robustness.images == Some(0) {
                return fail("`images` 0 of `robustness` leaves none".into(), "give at least one");
            }
        }
        let mut seen = BTreeSet::new();
        for cell in self.cells() {
            let name = cell.name();
            if !seen.insert(name.clone()) {
                return fail(
                    format!("two cells are called {name}"),
                    "give networks and images different names, and starts and arms a `label`",
                );
            }
        }
        Ok(())
    }

    /// Label of the arm that all others are compared with.
    pub fn control(&self) -> Option<&str> {
        let first_qat = || self.arm.iter().find(|arm| arm.arm == Arm::Qat).map(ArmSpec::label);
        self.control.as_deref().or_else(first_qat)
    }

    /// All cells, the starts among them, in the order of the table's rows: by network, start, images, arm, seed.
    pub fn cells(&self) -> Vec<Cell<'_>> {
        let mut cells = Vec::new();
        for network in &self.network {
            for start in &self.start {
                for images in self.images.iter().filter(|images| start.is_for(&images.name())) {
                    for arm in std::iter::once(None).chain(self.arm.iter().map(Some)) {
                        cells.extend(self.seeds.iter().map(|&seed| Cell {
                            table: self,
                            network,
                            start,
                            images,
                            seed,
                            arm,
                        }));
                    }
                }
            }
        }
        cells
    }

    /// The cells of one machine of several, in the order in which they are best run: all arms from one start, seed by seed.
    ///
    /// Every cell is in exactly one of the N shards. They are dealt out one by one, arm after arm: so where N divides the
    /// number of starts (networks x starts x images x seeds), no start is made on two machines.
    pub fn shard(&self, shard: Shard) -> Vec<Cell<'_>> {
        let mut cells = self.cells();
        // Both sorts are stable: within an arm, and within a seed, the table's order.
        cells.sort_by_key(|cell| position(&self.arm, cell.arm));
        let mut dealt: Vec<Cell> = cells.into_iter().skip(shard.index - 1).step_by(shard.count).collect();
        dealt.sort_by_key(|cell| {
            (
                self.seeds.iter().position(|&seed| seed == cell.seed),
                position(&self.network, Some(cell.network)),
                position(&self.start, Some(cell.start)),
                position(&self.images, Some(cell.images)),
            )
        });
        dealt
    }
}

impl StartSpec {
    fn is_for(&self, images: &str) -> bool {
        self.images
            .as_ref()
            .is_none_or(|names| names.iter().any(|name| name == images))
    }
}

/// Where in `all` the very item is that `one` refers to.
fn position<T>(all: &[T], one: Option<&T>) -> Option<usize> {
    one.and_then(|one| all.iter().position(|other| std::ptr::eq(other, one)))
}

/// One run, or one start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell<'a> {
    table: &'a Table,
    /// The float network.
    pub network: &'a NetworkSpec,
    /// What is begun with.
    pub start: &'a StartSpec,
    /// Training images and budget.
    pub images: &'a ImagesSpec,
    /// Of everything random.
    pub seed: u64,
    /// What is done; `None` for the start itself.
    pub arm: Option<&'a ArmSpec>,
}

/// Where a cell is in its table, by names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Network.
    pub network: String,
    /// Start.
    pub start: String,
    /// Images.
    pub images: String,
    /// Label of the arm, or [`START`].
    pub arm: String,
    /// Seed.
    pub seed: u64,
}

impl Cell<'_> {
    /// By names.
    pub fn place(&self) -> Place {
        Place {
            network: self.network.name.clone(),
            start: self.start.label(),
            images: self.images.name(),
            arm: self.arm.map_or(START, ArmSpec::label).to_owned(),
            seed: self.seed,
        }
    }

    /// Name of its folder.
    pub fn name(&self) -> String {
        format!("{}_{}", self.start_name(), self.arm.map_or(START, ArmSpec::label))
    }

    /// Name of its start's folder.
    pub fn start_name(&self) -> String {
        let (start, images) = (self.start.label(), self.images.name());
        format!("{}_{start}_{images}_seed{}", self.network.name, self.seed)
    }

    /// How its arm is run; `None` for the start itself.
    pub fn options(&self) -> Option<RefineOptions> {
        let spec = self.arm?;
        let mut options = RefineOptions::default();
        self.table.options.apply(&mut options);
        self.start.apply(&mut options);
        spec.apply(&mut options);
        self.settle(&mut options, spec.arm, self.images.passes);
        Some(options)
    }

    /// How its start is trained, where it is.
    pub fn start_options(&self) -> Option<RefineOptions> {
        let qat = self.start.qat.as_ref()?;
        let mut options = RefineOptions::default();
        self.table.options.apply(&mut options);
        qat.apply(&mut options);
        self.settle(&mut options, qat.arm.unwrap_or(Arm::Qat), qat.passes);
        Some(options)
    }

    /// What no table says about an arm, because it is the same for all.
    fn settle(&self, options: &mut RefineOptions, arm: Arm, passes: f64) {
        options.arm = arm;
        options.budget = Some(passes);
        options.attack.seed = self.seed;
        let training = &mut options.training;
        training.seed = self.seed;
        training.label_noise = self.images.label_noise;
        if let Some(validation) = self.images.validation {
            training.validation = validation;
        }
    }

    /// Everything in the table that decides what is trained, for comparison with what was run.
    pub fn config(&self) -> Value {
        json!({
            "weights": self.start.weights.name(), "limit": self.images.limit, "qat": self.start_options(),
            "options": self.options(),
        })
    }

    /// What decides its start, likewise.
    pub fn start_config(&self) -> Value {
        json!({ "weights": self.start.weights.name(), "limit": self.images.limit, "qat": self.start_options() })
    }

    /// What it may cost in passes: its arm's budget, or its start's.
    pub fn passes(&self) -> f64 {
        match self.arm {
            Some(_) => self.images.passes,
            None => self.start.qat.as_ref().map_or(0.0, |qat| qat.passes),
        }
    }
}

/// Which part of a table one machine runs: `I/N`, I from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// The whole table.
    pub const ALL: Shard = Shard { index: 1, count: 1 };
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (index, count) = text.split_once('/').unwrap_or_default();
        match (index.parse(), count.parse()) {
            (Ok(index), Ok(count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(Error::new(ErrorKind::Usage, format!("--shard {text} is no part of a whole"))
                .remedy("give I/N, from 1/N to N/N: --shard 2/4, or in a Slurm array --shard $SLURM_ARRAY_TASK_ID/4")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOKE: &str = include_str!("../../../experiments/smoke.toml");

    /// A table with one cell of everything.
    const SMALL: &str = r#"
name = "small"
seeds = [1]
[[network]]
name = "tiny"
[[images]]
passes = 100
[[start]]
weights = "w2"
[[arm]]
arm = "qat"
"#;

    fn refusal(text: &str) -> String {
        let error = Table::parse(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        error.to_string()
    }

    #[test]
    fn every_table_of_the_repository_is_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let table = Table::load(&path).unwrap();
                assert_eq!(path.file_stem().unwrap(), table.name.as_str());
                assert!(table.control().is_some(), "{}", table.name);
                names.push(table.name);
            }
        }
        assert!(names.len() >= 6, "{names:?}");
    }

    #[test]
    fn the_example_says_what_it_means() {
        let table = Table::parse(SMOKE).unwrap();
        // (w2 on two sets of images, w4 on one) x (start and three arms) x seeds.
        let cells = table.cells();
        assert_eq!(cells.len(), 3 * 4 * 2);
        assert_eq!(cells[0].name(), "tiny_w2-ptq_300_seed1_start");
        assert_eq!(cells.last().unwrap().name(), "tiny_w4-qat_300_seed2_attack-right-4");
        assert_eq!(
            (cells[0].options(), cells[0].start_options(), cells[0].passes()),
            (None, None, 0.0)
        );

        let named = |name: &str| *cells.iter().find(|cell| cell.name() == name).unwrap();
        let cell = named("tiny_w2-ptq_noisy_seed2_adcorda");
        let options = cell.options().unwrap();
        assert_eq!(
            (options.arm, options.lambda, options.budget),
            (Arm::Adcorda, 100.0, Some(2000.0))
        );
        let training = &options.training;
        assert_eq!((training.epochs, training.batch, training.augment), (2, 32, false));
        assert_eq!((training.learning_rate, training.label_noise), (2e-3, 0.4));
        assert_eq!((training.seed, training.validation, options.attack.seed), (2, 60, 2));

        let cell = named("tiny_w4-qat_300_seed1_attack-right-4");
        let options = cell.options().unwrap();
        assert_eq!((options.arm, options.robust.epsilon), (Arm::AttackRight, 4.0));
        assert_eq!(
            (options.training.learning_rate, options.lambda),
            (5e-4, RefineOptions::default().lambda)
        );
        let qat = cell.start_options().unwrap();
        assert_eq!(
            (qat.arm, qat.budget, qat.training.learning_rate),
            (Arm::Qat, Some(300.0), 1e-3)
        );
        assert_eq!((qat.training.batch, qat.training.seed), (32, 1));
        assert_eq!(named("tiny_w4-qat_300_seed1_start").passes(), 300.0);

        assert_eq!(table.network[0].train.as_ref().unwrap().options().epochs, 20);
        let robustness = table.measure.robustness.as_ref().unwrap();
        assert_eq!(robustness.options().epsilons, [2.0, 4.0]);
        assert_eq!((robustness.of, table.measure.integer), (Of::Both, true));
    }

    #[test]
    fn what_is_no_table_is_refused_with_line_and_key() {
        for (from, to, parts) in [
            (
                "seeds = [1]",
                "seed = [1]",
                &["line 3", "`seed`", "`seeds`", "smoke.toml"][..],
            ),
            ("passes = 100", "pases = 100", &["line 7", "`pases`", "`passes`"]),
            ("passes = 100", "passes = \"many\"", &["line 7", "many"]),
            ("arm = \"qat\"", "arm = \"qta\"", &["line 11", "`qta`", "`adcorda`"]),
            (
                "arm = \"qat\"",
                "arm = \"qat\"\nlearning-rate = 1",
                &["line 12", "`learning-rate`", "`learning_rate`"],
            ),
            (
                "arm = \"qat\"",
                "arm = \"qat\"\nrefresh = \"often\"",
                &["line 12", "often", "online"],
            ),
            ("weights = \"w2\"", "weights = \"w3\"", &["line 9", "w3", "`w4`"]),
            (
                "weights = \"w2\"",
                "weights = \"w2\"\nqat = { learning_rate = 1 }",
                &["line 10", "`passes`"],
            ),
            ("[[arm]]", "[[arms]]", &["line 10", "`arms`", "`arm`"]),
            ("seeds = [1]", "seeds = [1", &["line"]),
            ("seeds = [1]", "", &["`seeds`"]),
            ("seeds = [1]", "seeds = []", &["`seeds`", "at least one"]),
            ("seeds = [1]", "seeds = [1, 2, 1]", &["`seeds`", "twice"]),
            ("passes = 100", "passes = 0", &["`passes`", "images `all`", "20000"]),
            ("passes = 100", "passes = 1\nlabel_noise = 2", &["`label_noise`", "0.4"]),
            ("passes = 100", "passes = 1\nlimit = 0", &["`limit`", "at least one"]),
            (
                "weights = \"w2\"",
                "weights = \"w2\"\nqat = { passes = 0 }",
                &["w2-qat", "`passes`", "`qat`"],
            ),
            (
                "weights = \"w2\"",
                "weights = \"w2\"\nimages = [\"some\"]",
                &["w2-ptq", "`some`", "give some of all"],
            ),
            (
                "seeds = [1]",
                "seeds = [1]\ncontrol = \"none\"",
                &["`control`", "none", "give one of qat"],
            ),
            (
                "arm = \"qat\"",
                "arm = \"qat\"\nlabel = \"a/b\"",
                &["`label`", "a/b", "letters"],
            ),
            ("arm = \"qat\"", "arm = \"qat\"\nlabel = \"start\"", &["start", "`label`"]),
            (
                "arm = \"qat\"",
                "arm = \"qat\"\n[[arm]]\narm = \"qat\"",
                &["two cells", "tiny_w2-ptq_all_seed1_qat", "`label`"],
            ),
            (
                "name = \"tiny\"",
                "name = \"large\"\ntrain = { epochs = 1 }",
                &["large", "resnet8", "--float"],
            ),
            (
                "name = \"tiny\"",
                "name = \"tiny\"\nfloat = \"f\"\ntrain = { epochs = 1 }",
                &["`float`", "`train`"],
            ),
            (
                "arm = \"qat\"",
                "arm = \"qat\"\n[measure]\nrobustness = { epsilons = [0.5] }",
                &["0.5", "at least 1"],
            ),
            (
                "arm = \"qat\"",
                "arm = \"qat\"\n[measure]\nrobustness = { attacks = [\"fab\"] }",
                &["line 13", "`fab`"],
            ),
        ] {
            assert!(SMALL.contains(from));
            let text = refusal(&SMALL.replacen(from, to, 1));
            for part in parts {
                assert!(text.contains(part), "{to:?} gives {text:?}, without {part:?}");
            }
        }
    }

    #[test]
    fn a_missing_file_and_a_relative_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        assert_eq!(Table::load(&path).unwrap_err().kind(), ErrorKind::Io);
        std::fs::write(&path, SMALL.replace("[[images]]", "float = \"a/float.ckpt\"\n[[images]]")).unwrap();
        let table = Table::load(&path).unwrap();
        assert_eq!(table.network[0].float, Some(folder.path().join("a/float.ckpt")));
        std::fs::write(&path, "names = 1").unwrap();
        assert!(Table::load(&path).unwrap_err().to_string().contains("table.toml: line 1"));
    }

    #[test]
    fn shards_cover_every_cell_exactly_once() {
        let table = Table::parse(SMOKE).unwrap();
        let all: BTreeSet<String> = table.cells().iter().map(Cell::name).collect();
        for count in 1..=30 {
            let mut seen = BTreeSet::new();
            for index in 1..=count {
                let shard: Shard = format!("{index}/{count}").parse().unwrap();
                let cells = table.shard(shard);
                assert!(cells.len().abs_diff(all.len() / count) <= 1);
                for cell in cells {
                    assert!(seen.insert(cell.name()), "{} twice", cell.name());
                }
            }
            assert_eq!(seen, all, "{count}");
        }
    }

    /// Six starts: no start twice on two, three or six machines; and each machine finishes with a start before it goes on.
    #[test]
    fn shards_share_no_starts_where_their_number_fits() {
        let table = Table::parse(SMOKE).unwrap();
        for count in [1, 2, 3, 6] {
            let mut starts = BTreeSet::new();
            for index in 1..=count {
                let cells = table.shard(Shard { index, count });
                let order: Vec<String> = cells.iter().map(Cell::start_name).collect();
                let mut runs = order.clone();
                runs.dedup();
                for start in runs {
                    assert!(starts.insert(start.clone()), "{start} twice");
                }
                assert!(cells.iter().step_by(4).all(|cell| cell.arm.is_none()));
            }
            assert_eq!(starts.len(), 6);
        }
    }

    #[test]
    fn parts_of_no_whole_are_refused() {
        for text in ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2"] {
            let error = text.parse::<Shard>().unwrap_err();
            assert!(error.to_string().contains("I/N"), "{error}");
        }
        assert_eq!("2/4".parse::<Shard>().unwrap().to_string(), "2/4");
    }
}
