//! Robustness of a model: accuracy on clean and on attacked test images, and whether the figures can be believed.
//!
//! What counts is always the class that the measured model itself gives to 8-bit images: an integer model's from its runtime.
//! A checkpoint is attacked along its own gradients. An integer model has none: it is queried (Square), and attacked with
//! images found on a surrogate, the fake-quantized checkpoint that it was exported from. Images that are misclassified
//! untouched count as wrong and are not attacked.
//!
//! An attack that fails may mean a robust model, or gradients that lead nowhere (Athalye et al. 2018): the checks tell.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::apgd::{ApgdOptions, Loss, apgd};
use super::square::{BlackBox, SquareOptions, square};
use super::{AttackOptions, Attacked, Direction, Method, Norm, attack, check_epsilon};
use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::device::Device;
use crate::inspect::inspect;
use crate::nn::{Frozen, check_fit};
use crate::train::{Passes, progress_bar};
use crate::{Error, ErrorKind, Result};

/// A model to measure.
#[derive(Clone, Copy, Debug)]
pub enum Victim<'a> {
    /// Float or fake-quantized, on the trainer.
    Checkpoint(&'a Checkpoint),
    /// A `.adq` file, in the integer runtime.
    Model {
        /// The file's bytes.
        file: &'a [u8],
        /// What attacks that need gradients search on; usually the checkpoint that was exported.
        surrogate: Option<&'a Checkpoint>,
    },
}

/// An attack of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// One step of length epsilon along the margin's gradient.
    Fgsm,
    /// Steps of 2.5 epsilon / steps along the margin's gradient (Madry et al. 2018).
    Pgd,
    /// APGD on the cross-entropy.
    ApgdCe,
    /// APGD on the difference of logits ratio.
    ApgdDlr,
    /// Random search by queries alone.
    Square,
}

impl Attack {
    /// Every attack, the cheapest first.
    pub const ALL: [Attack; 5] = [Attack::Fgsm, Attack::Pgd, Attack::ApgdCe, Attack::ApgdDlr, Attack::Square];

    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Attack::Fgsm => "fgsm",
            Attack::Pgd => "pgd",
            Attack::ApgdCe => "apgd_ce",
            Attack::ApgdDlr => "apgd_dlr",
            Attack::Square => "square",
        }
    }

    /// Whether it needs gradients.
    pub fn is_white_box(self) -> bool {
        match self {
            Attack::Fgsm | Attack::Pgd | Attack::ApgdCe | Attack::ApgdDlr => true,
            Attack::Square => false,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RobustnessOptions {
    /// What the epsilons are measured in.
    pub norm: Norm,
    /// In grey levels, see [`Norm`].
    pub epsilons: Vec<f32>,
    /// Which attacks; the worst case is over these.
    pub attacks: Vec<Attack>,
    /// Of PGD and APGD.
    pub steps: usize,
    /// Further runs of PGD and APGD from random points.
    pub restarts: usize,
    /// Most images shown to the model by Square, for each image attacked.
    pub queries: usize,
    /// Of everything random.
    pub seed: u64,
    /// Also check that gradients are not masked; costs about as much again.
    pub checks: bool,
}

impl Default for RobustnessOptions {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            epsilons: default_epsilons(Norm::Linf),
            attacks: Attack::ALL.to_vec(),
            steps: 20,
            restarts: 0,
            queries: 500,
            seed: 0,
            checks: false,
        }
    }
}

/// 1, 2, 4, 8 of 255, or Euclidean 0.25 and 0.5 in units of the full range, all in grey levels.
pub fn default_epsilons(norm: Norm) -> Vec<f32> {
    match norm {
        Norm::Linf => vec![1.0, 2.0, 4.0, 8.0],
        Norm::L2 => vec![63.75, 127.5],
    }
}

impl RobustnessOptions {
    /// # Errors
    /// [`ErrorKind::Usage`] naming the flag that cannot be.
    pub fn check(&self) -> Result<()> {
        let usage = |what: &str, remedy: &str| Err(Error::new(ErrorKind::Usage, what).remedy(remedy));
        if self.epsilons.is_empty() {
            return usage("there is no --epsilon to attack at", "give one or more, such as 1,2,4,8");
        }
        for &epsilon in &self.epsilons {
            check_epsilon(self.norm, epsilon)?;
        }
        if self.attacks.is_empty() {
            return usage("there is no attack to run", "name one or more with --attacks");
        }
        if self.steps == 0 {
            return usage("--steps 0 changes nothing", "give at least 1");
        }
        if self.queries == 0 {
            return usage("--queries 0 asks nothing", "give at least 1, better some hundreds");
        }
        Ok(())
    }
}

/// Where attacks that need gradients take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradients {
    /// The measured network's own.
    Own,
    /// A surrogate's: its images are shown to the measured model.
    Surrogate,
    /// There are none: black box only.
    None,
}

/// Accuracies in per cent under each attack at one epsilon; `None` where the attack was not asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// In grey levels.
    pub epsilon: f32,
    /// Under one step.
    pub fgsm: Option<f64>,
    /// Under many.
    pub pgd: Option<f64>,
    /// The worse of the two below, image by image.
    pub apgd: Option<f64>,
    /// Under APGD on the cross-entropy.
    pub apgd_ce: Option<f64>,
    /// Under APGD on the difference of logits ratio.
    pub apgd_dlr: Option<f64>,
    /// Under queries alone.
    pub square: Option<f64>,
    /// Share of images that no attack broke.
    pub worst: f64,
    /// Standard error of each figure, in points, by its name.
    pub standard_error: BTreeMap<&'static str, f64>,
}

/// One check that the figures can be believed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// `steps`, `epsilon`, `black-box`, `unbounded`.
    pub name: &'static str,
    /// Whether nothing speaks against the figures.
    pub passed: bool,
    /// What was found, in a sentence.
    pub finding: String,
}

/// Robustness in figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Images measured.
    pub images: usize,
    /// What the epsilons are measured in.
    pub norm: Norm,
    /// Whose gradients were followed.
    pub gradients: Gradients,
    /// Steps of PGD and APGD.
    pub steps: usize,
    /// Accuracy on untouched images, in per cent.
    pub clean: f64,
    /// Its standard error, in points.
    pub clean_standard_error: f64,
    /// By rising epsilon.
    pub epsilons: Vec<Row>,
    /// Whether the gradients can be trusted; empty where not asked for.
    pub checks: Vec<Check>,
    /// Work of the attacks that follow gradients, in passes; checks included.
    pub passes: f64,
    /// Images shown to the model by Square.
    pub queries: u64,
}

/// Measures the robustness of a model on all of `images`.
///
/// # Errors
/// [`ErrorKind::Usage`] for options that cannot be, or attacks that need gradients on an integer model without a surrogate;
/// [`ErrorKind::Data`] where there is no image or only one class, or the images do not fit the model; [`ErrorKind::Weights`]
/// where the surrogate is of another network; [`ErrorKind::Model`] where the file is not valid.
pub fn measure(victim: &Victim, images: &Dataset, options: &RobustnessOptions, device: &Device) -> Result<Report> {
    options.check()?;
    if images.is_empty() {
        return Err(Error::new(
            ErrorKind::Data,
            format!("{} has no images to attack", images.name),
        ));
    }
    if images.classes.len() < 2 {
        return Err(Error::new(
            ErrorKind::Data,
            format!("{} has a single class: no image can be taken for another", images.name),
        )
        .remedy("measure on a set with two classes or more"));
    }
    let freeze = |checkpoint: &Checkpoint| -> Result<Frozen> {
        let (network, state, quantization) = (&checkpoint.network, &checkpoint.state, checkpoint.quantization.as_ref());
        let frozen = Frozen::new(network, state, quantization, device)?;
        check_fit(network, images)?;
        Ok(frozen)
    };
    let (network, gradients) = match victim {
        Victim::Checkpoint(checkpoint) => (Some(freeze(checkpoint)?), Gradients::Own),
        Victim::Model { surrogate: None, .. } => (None, Gradients::None),
        Victim::Model {
            file,
            surrogate: Some(surrogate),
        } => {
            check_surrogate(file, surrogate)?;
            (Some(freeze(surrogate)?), Gradients::Surrogate)
        }
    };
    let model = match (victim, &network) {
        (Victim::Model { file, .. }, _) => BlackBox::Model(file),
        (Victim::Checkpoint(_), Some(network)) => BlackBox::Network(network),
        (Victim::Checkpoint(_), None) => unreachable!("a checkpoint is frozen above"),
    };
    if let (Gradients::None, Some(attack)) = (gradients, options.attacks.iter().find(|attack| attack.is_white_box())) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("an integer model has no gradients for {}", attack.name()),
        )
        .remedy("give the checkpoint it was exported from with --surrogate, or ask for --attacks square"));
    }
    let mut measurement = Measurement {
        model,
        network: network.as_ref(),
        gradients,
        images,
        options,
        clean: right(model, images)?,
        passes: Passes::default(),
        queries: 0,
    };
    measurement.report()
}

/// Which images the model gets right.
fn right(model: BlackBox, images: &Dataset) -> Result<Vec<bool>> {
    Ok(model.margins(images)?.into_iter().map(|margin| margin > 0.0).collect())
}

/// Whether the model can be an export of the surrogate: the same layers with the same number of weights.
fn check_surrogate(file: &[u8], surrogate: &Checkpoint) -> Result<()> {
    let inspection = inspect(file)?;
    let network = &surrogate.network;
    let of_model: BTreeSet<(&str, usize)> = (inspection.layers.iter())
        .filter(|layer| layer.weights > 0)
        .map(|layer| (layer.name.as_str(), layer.weights))
        .collect();
    let mut of_surrogate = BTreeSet::new();
    for index in network.weighted_layers() {
        let name = &network.layers[index].name;
        let weights = surrogate.state.get(&format!("{name}.weight"))?.values.len();
        of_surrogate.insert((name.as_str(), weights));
    }
    if of_model == of_surrogate {
        return Ok(());
    }
    let differs = of_model.symmetric_difference(&of_surrogate).map(|(name, _)| *name).next();
    Err(Error::new(
        ErrorKind::Weights,
        format!(
            "--surrogate is another network than model {}: {} with {} weighted layers against {}; layer {} differs",
            inspection.name,
            network.name,
            of_surrogate.len(),
            of_model.len(),
            differs.unwrap_or_default()
        ),
    )
    .remedy("give the checkpoint that the model was exported from"))
}

struct Measurement<'a> {
    /// What is measured.
    model: BlackBox<'a>,
    /// Whose gradients are followed.
    network: Option<&'a Frozen>,
    gradients: Gradients,
    images: &'a Dataset,
    options: &'a RobustnessOptions,
    /// Which images are right untouched.
    clean: Vec<bool>,
    passes: Passes,
    queries: u64,
}

/// Images attacked at a time.
const BATCH: usize = 128;

/// Which images are right under each attack, by its name, at an epsilon.
struct Outcome {
    epsilon: f32,
    right: BTreeMap<&'static str, Vec<bool>>,
}

impl Measurement<'_> {
    fn report(&mut self) -> Result<Report> {
        let mut epsilons = self.options.epsilons.clone();
        epsilons.sort_by(f32::total_cmp);
        epsilons.dedup();
        let mut attacks = self.options.attacks.clone();
        attacks.sort_unstable();
        attacks.dedup();
        let mut outcomes = Vec::new();
        for &epsilon in &epsilons {
            let mut right = BTreeMap::new();
            for &attack in &attacks {
                right.insert(attack.name(), self.under(attack, epsilon)?);
            }
            outcomes.push(Outcome { epsilon, right });
        }
        let checks = if self.options.checks {
            self.checks(&outcomes)?
        } else {
            Vec::new()
        };
        let clean = share(&self.clean);
        Ok(Report {
            images: self.images.len(),
            norm: self.options.norm,
            gradients: self.gradients,
            steps: self.options.steps,
            clean,
            clean_standard_error: standard_error(clean, self.images.len()),
            epsilons: outcomes.iter().map(row).collect(),
            checks,
            passes: self.passes.count(),
            queries: self.queries,
        })
    }

    /// Which images are still right under an attack.
    fn under(&mut self, attack: Attack, epsilon: f32) -> Result<Vec<bool>> {
        let steps = self.options.steps;
        match attack {
            Attack::Fgsm => self.follow(Method::Fgsm, epsilon, epsilon, 1, 0),
            Attack::Pgd => self.pgd(epsilon, steps, self.options.restarts),
            Attack::ApgdCe => self.apgd(Loss::CrossEntropy, epsilon),
            Attack::ApgdDlr => self.apgd(Loss::LogitsRatio, epsilon),
            Attack::Square => self.square(epsilon),
        }
    }

    /// Under PGD, its steps as long as is usual for their number.
    fn pgd(&mut self, epsilon: f32, steps: usize, restarts: usize) -> Result<Vec<bool>> {
        self.follow(Method::Pgd, epsilon, 2.5 * epsilon / steps as f32, steps, restarts)
    }

    /// Under FGSM or PGD.
    fn follow(&mut self, method: Method, epsilon: f32, step: f32, steps: usize, restarts: usize) -> Result<Vec<bool>> {
        let options = AttackOptions {
            method,
            norm: self.options.norm,
            epsilon,
            step,
            steps,
            margin: self.margin(),
            restarts,
            seed: self.options.seed,
        };
        let what = format!("{method:?} {epsilon}").to_lowercase();
        self.transfer(&what, |network, images, shape, labels| {
            attack(network, images, shape, labels, &options, Direction::Away)
        })
    }

    fn apgd(&mut self, loss: Loss, epsilon: f32) -> Result<Vec<bool>> {
        let options = ApgdOptions {
            loss,
            norm: self.options.norm,
            epsilon,
            steps: self.options.steps,
            margin: self.margin(),
            restarts: self.options.restarts,
            seed: self.options.seed,
        };
        self.transfer(&format!("apgd {epsilon}"), |network, images, shape, labels| {
            apgd(network, images, shape, labels, &options)
        })
    }

    /// How far below the largest other logit an attack goes. The network that is measured is misled by any difference; on a
    /// surrogate the search goes as far as it can.
    fn margin(&self) -> f32 {
        match self.gradients {
            Gradients::Own => f32::MIN_POSITIVE,
            Gradients::Surrogate | Gradients::None => 1e30,
        }
    }

    /// Shows the model the images that `find` makes of those that are right untouched.
    fn transfer(
        &mut self,
        what: &str,
        mut find: impl FnMut(&Frozen, &[&[u8]], [usize; 3], &[u16]) -> Attacked,
    ) -> Result<Vec<bool>> {
        let network = self.network.expect("attacks that need gradients have them");
        let (numbers, mut found) = self.attacked();
        let bar = progress_bar(numbers.len(), what);
        let mut pixels = Vec::with_capacity(found.images.len());
        for batch in numbers.chunks(BATCH) {
            let images: Vec<&[u8]> = batch.iter().map(|&i| self.images.image(i)).collect();
            let labels: Vec<u16> = batch.iter().map(|&i| self.images.label(i)).collect();
            let attacked = find(network, &images, self.images.shape(), &labels);
            self.passes += attacked.passes;
            pixels.extend(attacked.images);
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
        found.images = pixels;
        Ok(self.of_all(&numbers, right(self.model, &found)?))
    }

    fn square(&mut self, epsilon: f32) -> Result<Vec<bool>> {
        let options = SquareOptions {
            norm: self.options.norm,
            epsilon,
            queries: self.options.queries,
            seed: self.options.seed,
        };
        let (numbers, images) = self.attacked();
        let bar = progress_bar(options.queries, &format!("square {epsilon}"));
        let squared = square(self.model, &images, &options, |query| bar.set_position(query as u64))?;
        bar.finish_and_clear();
        self.queries += squared.queries;
        Ok(self.of_all(&numbers, squared.found.into_iter().map(|found| !found).collect()))
    }

    /// The images that are right untouched, and their numbers.
    fn attacked(&self) -> (Vec<usize>, Dataset) {
        let numbers: Vec<usize> = (0..self.images.len()).filter(|&i| self.clean[i]).collect();
        let images = self.images.subset(&numbers);
        (numbers, images)
    }

    /// For all images, what is known of those with these numbers.
    fn of_all(&self, numbers: &[usize], right: Vec<bool>) -> Vec<bool> {
        let mut all = vec![false; self.images.len()];
        for (&i, right) in numbers.iter().zip(right) {
            all[i] = right;
        }
        all
    }

    fn checks(&mut self, outcomes: &[Outcome]) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        if self.network.is_some() {
            checks.push(self.check_steps(outcomes)?);
        }
        checks.extend(check_epsilons(outcomes));
        checks.extend(check_black_box(outcomes));
        checks.push(self.check_unbounded()?);
        Ok(checks)
    }

    /// More and smaller steps must not find less.
    fn check_steps(&mut self, outcomes: &[Outcome]) -> Result<Check> {
        // Where there is most to lose: as many images broken as not.
        let half = share(&self.clean) / 2.0;
        let distance = |outcome: &&Outcome| {
            let figure = outcome.right.get("pgd").or(outcome.right.values().next());
            (figure.map_or(0.0, |right| share(right)) - half).abs()
        };
        let Some(outcome) = outcomes.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) else {
            unreachable!("options without epsilons are refused");
        };
        let epsilon = outcome.epsilon;
        let (mut passed, mut figures, mut last): (bool, Vec<String>, Option<Vec<bool>>) = (true, Vec::new(), None);
        for factor in [1, 2, 4] {
            let steps = factor * self.options.steps;
            let right = self.pgd(epsilon, steps, 0)?;
            figures.push(format!("{:.1} % after {steps}", share(&right)));
            passed &= last.is_none_or(|last| !breaks_more(&last, &right));
            last = Some(right);
        }
        let verdict = if passed {
            "more and smaller steps are not weaker"
        } else {
            "more and smaller steps are weaker, so the gradients mislead"
        };
        Ok(Check {
            name: "steps",
            passed,
            finding: format!("{verdict}: PGD at {epsilon} leaves {}", figures.join(", ")),
        })
    }

    /// Where anything may become of an image, nothing may stay right.
    fn check_unbounded(&mut self) -> Result<Check> {
        let whole = match self.options.norm {
            Norm::Linf => 255.0,
            Norm::L2 => 255.0 * (self.images.image_len() as f32).sqrt(),
        };
        let (right, attack) = if self.network.is_some() {
            let steps = self.options.steps.max(UNBOUNDED_STEPS);
            (self.follow(Method::Pgd, whole, whole / 32.0, steps, 0)?, "PGD")
        } else {
            (self.square(whole)?, "Square")
        };
        let left = share(&right);
        let passed = left <= 1.0 || right.iter().filter(|&&right| right).count() <= 1;
        let verdict = if passed {
            "without a bound nothing stays right"
        } else {
            "even without a bound images stay right, so the attack fails and not the model resists"
        };
        Ok(Check {
            name: "unbounded",
            passed,
            finding: format!("{verdict}: {attack} at {whole:.0} leaves {left:.1} %"),
        })
    }
}

/// Steps of a 32nd of the range of pixel values each, in search of anything else.
const UNBOUNDED_STEPS: usize = 40;

/// Robust accuracy must not rise with epsilon.
fn check_epsilons(outcomes: &[Outcome]) -> Option<Check> {
    if outcomes.len() < 2 {
        return None;
    }
    let mut rises = Vec::new();
    for pair in outcomes.windows(2) {
        for (attack, near) in &pair[0].right {
            let far = &pair[1].right[attack];
            if breaks_more(near, far) {
                rises.push(format!(
                    "{attack} leaves {:.1} % at {} and {:.1} % at {}",
                    share(near),
                    pair[0].epsilon,
                    share(far),
                    pair[1].epsilon
                ));
            }
        }
    }
    Some(Check {
        name: "epsilon",
        passed: rises.is_empty(),
        finding: if rises.is_empty() {
            "a larger epsilon never leaves more right".into()
        } else {
            format!("a larger epsilon leaves more right: {}", rises.join("; "))
        },
    })
}

/// What sees logits only must not find more than what sees gradients.
fn check_black_box(outcomes: &[Outcome]) -> Option<Check> {
    let (mut beaten, mut compared) = (Vec::new(), Vec::new());
    for Outcome { epsilon, right } in outcomes {
        let square = right.get("square")?;
        let others: Vec<&Vec<bool>> = right
            .iter()
            .filter(|(name, _)| **name != "square")
            .map(|(_, right)| right)
            .collect();
        if others.is_empty() {
            return None;
        }
        let white: Vec<bool> = (0..square.len()).map(|i| others.iter().all(|right| right[i])).collect();
        let finding = format!("{:.1} % against {:.1} % at {epsilon}", share(square), share(&white));
        if breaks_more(square, &white) {
            beaten.push(finding);
        } else {
            compared.push(finding);
        }
    }
    Some(Check {
        name: "black-box",
        passed: beaten.is_empty(),
        finding: if beaten.is_empty() {
            format!(
                "queries do not break more than gradients: Square leaves {}",
                compared.join(", ")
            )
        } else {
            format!(
                "queries break more than gradients, so the gradients mislead: Square leaves {}",
                beaten.join(", ")
            )
        },
    })
}

/// Whether the first attack breaks more of the same images than the second, by more than twice the standard error of the
/// difference (McNemar's test).
fn breaks_more(first: &[bool], second: &[bool]) -> bool {
    let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|&(a, b)| !a && *b).count() as f64;
    let (more, less) = (only(first, second), only(second, first));
    more - less > 2.0 * (more + less).sqrt()
}

/// A row of which images are right under each attack.
fn row(Outcome { epsilon, right }: &Outcome) -> Row {
    let mut errors = BTreeMap::new();
    // Right under all of those attacks that were run.
    let mut figure = |name: &'static str, attacks: &[&str]| {
        let run: Vec<&Vec<bool>> = attacks.iter().filter_map(|attack| right.get(attack)).collect();
        let first = run.first()?;
        let all: Vec<bool> = (0..first.len()).map(|i| run.iter().all(|right| right[i])).collect();
        let figure = share(&all);
        errors.insert(name, standard_error(figure, all.len()));
        Some(figure)
    };
    Row {
        epsilon: *epsilon,
        fgsm: figure("fgsm", &["fgsm"]),
        pgd: figure("pgd", &["pgd"]),
        apgd: figure("apgd", &["apgd_ce", "apgd_dlr"]),
        apgd_ce: figure("apgd_ce", &["apgd_ce"]),
        apgd_dlr: figure("apgd_dlr", &["apgd_dlr"]),
        square: figure("square", &["square"]),
        worst: figure("worst", &right.keys().copied().collect::<Vec<_>>()).unwrap_or_default(),
        standard_error: errors,
    }
}

/// Of a binomial share in per cent, in points.
fn standard_error(share: f64, n: usize) -> f64 {
    (share * (100.0 - share) / n.max(1) as f64).max(0.0).sqrt()
}

/// In per cent.
fn share(right: &[bool]) -> f64 {
    100.0 * right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::tests::trained;
    use crate::export::{ExportOptions, export};
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::train::fixture;

    fn options() -> RobustnessOptions {
        RobustnessOptions {
            epsilons: vec![8.0, 2.0],
            steps: 10,
            queries: 60,
            checks: true,
            ..RobustnessOptions::default()
        }
    }

    fn measured(victim: Victim, options: &RobustnessOptions) -> Report {
        measure(&victim, &fixture::images(80, 9), options, &Device::flex()).unwrap()
    }

    fn check<'a>(report: &'a Report, name: &str) -> &'a Check {
        report.checks.iter().find(|check| check.name == name).unwrap()
    }

    fn quantized() -> (Checkpoint, Vec<u8>) {
        let options = QuantizeOptions::new(Width::W4);
        let checkpoint = ptq(trained(), &fixture::images(240, 1), &options, &Device::flex()).unwrap();
        let file = export(&checkpoint, &ExportOptions::default()).unwrap().bytes;
        (checkpoint, file)
    }

    #[test]
    fn a_network_is_measured_along_its_own_gradients() {
        for norm in [Norm::Linf, Norm::L2] {
            let options = RobustnessOptions {
                norm,
                epsilons: if norm == Norm::L2 { vec![80.0, 20.0] } else { vec![8.0, 2.0] },
                ..options()
            };
            let report = measured(Victim::Checkpoint(trained()), &options);
            assert_eq!(report.gradients, Gradients::Own);
            assert_eq!(report.epsilons.iter().map(|row| row.epsilon).collect::<Vec<_>>(), {
                let mut epsilons = options.epsilons.clone();
                epsilons.reverse();
                epsilons
            });
            assert!(report.clean > 60.0, "{report:?}");
            for row in &report.epsilons {
                let figures = [row.fgsm, row.pgd, row.apgd_ce, row.apgd_dlr, row.square].map(Option::unwrap);
                assert!(
                    figures.iter().all(|&figure| row.worst <= figure && figure <= report.clean),
                    "{row:?}"
                );
                assert!(row.apgd <= row.apgd_ce && row.apgd <= row.apgd_dlr);
                let names = ["apgd", "apgd_ce", "apgd_dlr", "fgsm", "pgd", "square", "worst"];
                assert_eq!(row.standard_error.keys().copied().collect::<Vec<_>>(), names);
            }
            assert!(report.epsilons[1].worst < report.epsilons[0].worst);
            let names: Vec<&str> = report.checks.iter().map(|check| check.name).collect();
            assert_eq!(names, ["steps", "epsilon", "black-box", "unbounded"]);
            assert!(report.checks.iter().all(|check| check.passed), "{:?}", report.checks);
            assert!(report.passes > 0.0 && report.queries > 0);
            assert_eq!(report, measured(Victim::Checkpoint(trained()), &options));
        }
    }

    /// The same function, but the product of its gradients is below the smallest number of 32 bits.
    fn masked() -> Checkpoint {
        let mut masked = trained().clone();
        let mut scale = |name: &str, factor: f32| {
            let values = &mut masked.state.tensors.get_mut(name).unwrap().values;
            values.iter_mut().for_each(|value| *value *= factor);
        };
        for name in ["conv1.bn.weight", "conv1.bn.bias", "conv2.bn.running_mean"] {
            scale(name, 1e30);
        }
        scale("conv2.bn.weight", 1e-24);
        scale("conv2.bn.bias", 1e6);
        for name in ["fc.weight", "fc.bias"] {
            scale(name, 1e-24);
        }
        scale("fc.bias", 1e6);
        masked
    }

    #[test]
    fn checks_see_that_gradients_are_masked() {
        // The logits ratio divides by what vanishes, and is not misled.
        let options = RobustnessOptions {
            attacks: vec![Attack::Fgsm, Attack::Pgd, Attack::Square],
            ..options()
        };
        let (honest, masked) = (
            measured(Victim::Checkpoint(trained()), &options),
            measured(Victim::Checkpoint(&masked()), &options),
        );
        assert_eq!(masked.clean, honest.clean);
        for row in &masked.epsilons {
            assert_eq!(row.pgd, Some(masked.clean), "the gradient is nothing but zero");
        }
        for name in ["black-box", "unbounded"] {
            assert!(
                check(&honest, name).passed && !check(&masked, name).passed,
                "{name}: {masked:?}"
            );
        }
    }

    #[test]
    fn an_integer_model_is_queried_and_attacked_through_a_surrogate() {
        let (checkpoint, file) = quantized();
        let queried = RobustnessOptions {
            attacks: vec![Attack::Square],
            ..options()
        };
        let alone = measured(
            Victim::Model {
                file: &file,
                surrogate: None,
            },
            &queried,
        );
        assert_eq!(alone.gradients, Gradients::None);
        assert_eq!(alone.passes, 0.0);
        assert!(alone.epsilons[1].square.unwrap() < alone.clean - 10.0, "{alone:?}");
        assert_eq!(alone.epsilons[1].pgd, None);
        assert!(
            check(&alone, "unbounded").passed && check(&alone, "epsilon").passed,
            "{alone:?}"
        );

        let victim = Victim::Model {
            file: &file,
            surrogate: Some(&checkpoint),
        };
        let report = measured(victim, &options());
        assert_eq!(report.gradients, Gradients::Surrogate);
        assert_eq!(
            (report.clean, report.epsilons[1].square),
            (alone.clean, alone.epsilons[1].square)
        );
        assert!(report.epsilons[1].pgd.unwrap() < report.clean - 20.0, "{report:?}");
        assert!(check(&report, "black-box").passed, "{:?}", report.checks);

        // What is found on a network that has learnt nothing does not carry over, and that is seen.
        let stranger = ptq(
            &fixture::float(8),
            &fixture::images(240, 1),
            &QuantizeOptions::new(Width::W4),
            &Device::flex(),
        );
        let stranger = stranger.unwrap();
        let victim = Victim::Model {
            file: &file,
            surrogate: Some(&stranger),
        };
        let report = measured(victim, &options());
        assert!(!check(&report, "black-box").passed, "{report:?}");
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        let (checkpoint, file) = quantized();
        let images = fixture::images(8, 9);
        let refusal = |victim: Victim, images: &Dataset, options: &RobustnessOptions| {
            let error = measure(&victim, images, options, &Device::flex()).unwrap_err();
            (error.kind(), error.to_string())
        };
        let model = Victim::Model {
            file: &file,
            surrogate: None,
        };
        let (kind, text) = refusal(model, &images, &options());
        assert_eq!(kind, ErrorKind::Usage);
        assert!(text.contains("--surrogate") && text.contains("fgsm"), "{text}");

        let mut other = checkpoint.clone();
        other.network.layers[1].name = "another".into();
        for tensor in ["weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"] {
            if let Some(array) = other.state.tensors.remove(&format!("conv2.{tensor}")) {
                other.state.tensors.insert(format!("another.{tensor}"), array);
            }
        }
        let model = Victim::Model {
            file: &file,
            surrogate: Some(&other),
        };
        let (kind, text) = refusal(model, &images, &options());
        assert_eq!(kind, ErrorKind::Weights);
        assert!(
            text.contains("--surrogate is another network") && text.contains("another"),
            "{text}"
        );

        let one_class = Dataset {
            classes: vec!["all".into()],
            labels: vec![0; 8],
            ..images.clone()
        };
        let (kind, text) = refusal(Victim::Checkpoint(&checkpoint), &one_class, &options());
        assert_eq!(kind, ErrorKind::Data);
        assert!(text.contains("single class"), "{text}");
        let (kind, _) = refusal(Victim::Checkpoint(&checkpoint), &images.clone().take(0), &options());
        assert_eq!(kind, ErrorKind::Data);

        type Change = fn(&mut RobustnessOptions);
        let changes: [(Change, &str); 5] = [
            (|o| o.epsilons = vec![1.5], "--epsilon 1.5"),
            (|o| o.epsilons.clear(), "--epsilon"),
            (|o| o.attacks.clear(), "--attacks"),
            (|o| o.steps = 0, "--steps"),
            (|o| o.queries = 0, "--queries"),
        ];
        for (change, word) in changes {
            let mut options = options();
            change(&mut options);
            let (kind, text) = refusal(Victim::Checkpoint(&checkpoint), &images, &options);
            assert_eq!(kind, ErrorKind::Usage);
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn more_is_broken_only_beyond_chance() {
        let broken = |count: usize| (0..20).map(|i| i >= count).collect::<Vec<_>>();
        assert!(breaks_more(&broken(5), &broken(0)));
        assert!(!breaks_more(&broken(4), &broken(0)));
        assert!(!breaks_more(&broken(0), &broken(5)));
        assert!(!breaks_more(&broken(3), &broken(3)));
        assert_eq!(standard_error(50.0, 100), 5.0);
        assert_eq!(standard_error(100.0, 100), 0.0);
    }
}
