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

use super::{AttackOptions, Direction, Method, Norm, attack, check_epsilon};
use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::device::Device;
use crate::eval::evaluate_model;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// One step of length epsilon along the margin's gradient.
    Fgsm,
    /// Steps of 2.5 epsilon / steps along the margin's gradient (Madry et al. 2018).
    Pgd,
}

impl Attack {
    /// Every attack, the cheapest first.
    pub const ALL: [Attack; 2] = [Attack::Fgsm, Attack::Pgd];

    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Attack::Fgsm => "fgsm",
            Attack::Pgd => "pgd",
        }
    }

    /// Whether it needs gradients.
    pub fn is_white_box(self) -> bool {
        match self {
            Attack::Fgsm | Attack::Pgd => true,
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
    let (target, network, gradients) = match victim {
        Victim::Checkpoint(checkpoint) => (Target::Network, Some(freeze(checkpoint)?), Gradients::Own),
        Victim::Model { file, surrogate } => {
            let network = match surrogate {
                Some(surrogate) => {
                    check_surrogate(file, surrogate)?;
                    Some(freeze(surrogate)?)
                }
                None => None,
            };
            let gradients = if network.is_some() {
                Gradients::Surrogate
            } else {
                Gradients::None
            };
            (Target::Model(file), network, gradients)
        }
    };
    if let (Gradients::None, Some(attack)) = (gradients, options.attacks.iter().find(|attack| attack.is_white_box())) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("an integer model has no gradients for {}", attack.name()),
        )
        .remedy("give the checkpoint it was exported from with --surrogate, or ask for --attacks square"));
    }
    let mut measurement = Measurement {
        target,
        network,
        gradients,
        images,
        options,
        clean: Vec::new(),
        passes: Passes::default(),
        queries: 0,
    };
    measurement.clean = measurement.right(images)?;
    measurement.report()
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

/// What answers.
enum Target<'a> {
    /// The network of the measurement.
    Network,
    Model(&'a [u8]),
}

struct Measurement<'a> {
    target: Target<'a>,
    /// Whose gradients are followed.
    network: Option<Frozen>,
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

impl Measurement<'_> {
    /// Which images the measured model gets right.
    fn right(&self, images: &Dataset) -> Result<Vec<bool>> {
        let predictions = match (&self.target, &self.network) {
            (Target::Model(file), _) => evaluate_model(file, images)?.predictions,
            (Target::Network, Some(network)) => network.predict(images)?,
            (Target::Network, None) => unreachable!("a network to measure has gradients of its own"),
        };
        Ok(predictions.iter().zip(images.labels()).map(|(a, b)| a == b).collect())
    }

    fn report(mut self) -> Result<Report> {
        let mut epsilons = self.options.epsilons.clone();
        epsilons.sort_by(f32::total_cmp);
        epsilons.dedup();
        let mut attacks = self.options.attacks.clone();
        attacks.sort_unstable();
        attacks.dedup();
        let mut rows = Vec::new();
        for &epsilon in &epsilons {
            let mut right: BTreeMap<&'static str, Vec<bool>> = BTreeMap::new();
            for &attack in &attacks {
                right.insert(attack.name(), self.under(attack, epsilon)?);
            }
            rows.push(row(epsilon, &right));
        }
        let clean = share(&self.clean);
        Ok(Report {
            images: self.images.len(),
            norm: self.options.norm,
            gradients: self.gradients,
            steps: self.options.steps,
            clean,
            clean_standard_error: standard_error(clean, self.images.len()),
            epsilons: rows,
            checks: Vec::new(),
            passes: self.passes.count(),
            queries: self.queries,
        })
    }

    /// Which images are still right under an attack.
    fn under(&mut self, attack: Attack, epsilon: f32) -> Result<Vec<bool>> {
        let steps = self.options.steps as f32;
        match attack {
            Attack::Fgsm => self.follow(Method::Fgsm, epsilon, epsilon, 1),
            Attack::Pgd => self.follow(Method::Pgd, epsilon, 2.5 * epsilon / steps, self.options.steps),
        }
    }

    /// Which images are still right under FGSM or PGD.
    fn follow(&mut self, method: Method, epsilon: f32, step: f32, steps: usize) -> Result<Vec<bool>> {
        let options = AttackOptions {
            method,
            norm: self.options.norm,
            epsilon,
            step,
            steps,
            margin: self.margin(),
            restarts: if method == Method::Pgd { self.options.restarts } else { 0 },
            seed: self.options.seed,
        };
        let what = format!("{method:?} {epsilon}").to_lowercase();
        self.transfer(&what, |network, images, shape, labels, passes| {
            let attacked = attack(network, images, shape, labels, &options, Direction::Away);
            *passes += attacked.passes;
            attacked.images
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

    /// Shows the measured model the images that `find` makes of those that are right untouched.
    fn transfer(
        &mut self,
        what: &str,
        mut find: impl FnMut(&Frozen, &[&[u8]], [usize; 3], &[u16], &mut Passes) -> Vec<u8>,
    ) -> Result<Vec<bool>> {
        let network = self.network.as_ref().expect("attacks that need gradients have them");
        let attacked: Vec<usize> = (0..self.images.len()).filter(|&i| self.clean[i]).collect();
        let mut found = self.images.subset(&attacked);
        let bar = progress_bar(attacked.len(), what);
        let mut pixels = Vec::with_capacity(found.images.len());
        for batch in attacked.chunks(BATCH) {
            let images: Vec<&[u8]> = batch.iter().map(|&i| self.images.image(i)).collect();
            let labels: Vec<u16> = batch.iter().map(|&i| self.images.label(i)).collect();
            pixels.extend(find(network, &images, self.images.shape(), &labels, &mut self.passes));
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
        found.images = pixels;
        let mut right = vec![false; self.images.len()];
        for (i, still) in attacked.into_iter().zip(self.right(&found)?) {
            right[i] = still;
        }
        Ok(right)
    }
}

/// A row of which images are right under each attack.
fn row(epsilon: f32, right: &BTreeMap<&'static str, Vec<bool>>) -> Row {
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
        epsilon,
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
    use crate::run_folder::RunFolder;
    use crate::train::{fixture, train};

    fn trained() -> Checkpoint {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::open(folder.path(), &serde_json::json!({})).unwrap();
        train(
            &fixture::float(3),
            None,
            &fixture::images(200, 1),
            &fixture::options(),
            &run,
            &Device::flex(),
        )
        .unwrap();
        Checkpoint::load(run.track("").unwrap().best()).unwrap()
    }

    #[test]
    fn a_network_is_measured_along_its_own_gradients() {
        let (start, images) = (trained(), fixture::images(100, 9));
        let options = RobustnessOptions {
            epsilons: vec![8.0, 1.0],
            ..RobustnessOptions::default()
        };
        let report = measure(&Victim::Checkpoint(&start), &images, &options, &Device::flex()).unwrap();
        assert_eq!(report.gradients, Gradients::Own);
        assert_eq!(report.epsilons.iter().map(|row| row.epsilon).collect::<Vec<_>>(), [1.0, 8.0]);
        assert!(report.clean > 60.0, "{report:?}");
        for row in &report.epsilons {
            assert!(row.worst <= row.pgd.unwrap() && row.worst <= row.fgsm.unwrap());
            assert!(row.fgsm.unwrap() <= report.clean);
        }
        assert!(report.epsilons[1].pgd < report.epsilons[0].pgd);
        assert!(report.passes > 0.0);
    }
}
