//! AdCorDA: adversarial correction and domain adaptation of a quantized network, beside a control arm of the same cost.
//!
//! 1. Predict the training images; misclassified ones are wrong ([`correction`]).
//! 2. For each of them, search a near image that the network classifies as its label ([`attack`](crate::attack)). What cannot be corrected
//!    is left out.
//! 3. Train on the corrected set (source), tied to the original one (target) by Deep CORAL on the features before the last
//!    layer ([`coral`](mod@coral)): `CE(source) + lambda * CORAL(source, target) + mu * CE(target)`. Source and target batches are paired:
//!    the same images under the same flip and shift, the wrong ones replaced. So they differ in nothing but the corrections,
//!    and cost one run of the batch and its corrections, not of two batches.
//! 4. Keep the best of start and every epoch by images that nobody trained on.
//!
//! The control arm is plain QAT by the same loop with the same number of passes, prediction and search included, the same
//! schedule, augmentation, validation images and number of evaluations. Without it nobody knows what refinement is worth.
//!
//! # Source
//! Shen et al. 2024, "AdCorDA: classifier refinement via adversarial correction and domain adaptation" (arXiv 2401.13212),
//! for the two steps. Pairing, margin, pixel grid and the control arm are this project's.

pub mod coral;
pub mod correction;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use crate::attack::{AttackOptions, Method};
pub use correction::{Correction, CorrectionReport, Corrections};

use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::data::batch::to_planar_f32;
use crate::device::Device;
use crate::nn::{Auto, Frozen, Output};
use crate::run_folder::RunFolder;
use crate::train::{
    Batch, Classification, Draw, Passes, Plan, Task, TrainOptions, TrainReport, cross_entropy, fingerprint, fit,
};
use crate::{Error, ErrorKind, Result};

/// How to refine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefineOptions {
    /// How the corrections are searched for.
    pub attack: AttackOptions,
    /// Weight of CORAL. Between paired batches it is small, 1e-8 to 1e-5, so large weights are in order.
    pub lambda: f64,
    /// Weight of the cross-entropy of the original images, the wrong ones included.
    pub target_weight: f64,
    /// Schedule of the AdCorDA arm, and all that the control arm shares with it.
    pub training: TrainOptions,
    /// Also run the control arm.
    pub control: bool,
}

impl Default for RefineOptions {
    fn default() -> Self {
        Self {
            attack: AttackOptions::default(),
            lambda: 1000.0,
            target_weight: 0.0,
            training: TrainOptions {
                epochs: 2,
                learning_rate: 3e-4,
                ..TrainOptions::default()
            },
            control: false,
        }
    }
}

impl RefineOptions {
    /// Whether these can refine `start` on `images`. For callers that want to know before they make a run's folder.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the checkpoint is not quantized, or naming the flag; [`ErrorKind::Data`] where the images do
    /// not fit the network.
    pub fn check(&self, start: &Checkpoint, images: &Dataset) -> Result<()> {
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
        for (flag, weight) in [("--lambda", self.lambda), ("--target-weight", self.target_weight)] {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("{flag} {weight} is negative or not finite"),
                ));
            }
        }
        self.training.check(&start.network, images)
    }

    /// Whether the loss looks at the original of a corrected image.
    fn needs_target(&self) -> bool {
        self.lambda > 0.0 || self.target_weight > 0.0
    }
}

/// What refinement gave. Top-1 in per cent, on the validation images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefineReport {
    /// Of the checkpoint given.
    pub before_top1: f32,
    /// Of the best of start and refined.
    pub top1: f32,
    /// Of the best of start and plain QAT with the same passes.
    pub control_top1: Option<f32>,
    /// What was wrong, and what became of it.
    pub correction: CorrectionReport,
    /// The AdCorDA arm's training; its passes leave out those of the correction.
    pub adcorda: TrainReport,
    /// The control arm's training.
    pub control: Option<TrainReport>,
    /// Passes of the AdCorDA arm with those of the correction: the control arm's budget.
    pub passes: f64,
    /// What a reader of the figures should know, a sentence each.
    pub notes: Vec<String>,
}

/// Name of the AdCorDA arm's track in the run's folder.
pub const ADCORDA: &str = "adcorda";

/// Name of the control arm's track in the run's folder.
pub const CONTROL: &str = "control";

/// The corrections' file in the run's folder.
pub const CORRECTIONS: &str = "corrections.safetensors";

/// Refines a quantized checkpoint on `images`. The results are `adcorda/best.safetensors` and, with the control arm,
/// `control/best.safetensors` in the run's folder.
///
/// # Errors
/// [`ErrorKind::Usage`] where the checkpoint is not quantized or an option cannot be; else as [`train`](crate::train::train).
pub fn refine(
    start: &Checkpoint,
    images: &Dataset,
    options: &RefineOptions,
    run: &RunFolder,
    device: &Device,
) -> Result<RefineReport> {
    options.check(start, images)?;
    let training = &options.training;
    let (images, validation) = training.split(images)?;
    let corrections = corrections(start, &images, options, run, device)?;
    let correction = corrections.report();
    let mut notes = Vec::new();
    if correction.wrong == 0 {
        notes.push("no training image is misclassified: there is nothing to correct, and refinement is plain QAT".into());
    }
    if 3 * correction.wrong > images.len() {
        notes.push(format!(
            "{} of {} training images are misclassified: correcting so many costs more than it gives; plain QAT first \
             (`adcorda train CKPT`) leaves fewer",
            correction.wrong,
            images.len()
        ));
    }
    if correction.corrected < correction.wrong {
        notes.push(format!(
            "{} of {} misclassified images could not be corrected and were left out",
            correction.wrong - correction.corrected,
            correction.wrong
        ));
    }

    let mut paired = Paired::new(&images, &corrections, options)?;
    let steps = training.epochs * paired.steps_per_epoch();
    // What every step costs is known beforehand: the control arm's budget does not wait for the other arm.
    let budget = corrections.passes + Passes::training(training.epochs * paired.rows_per_epoch());
    let plan = |steps, method| Plan {
        steps,
        rounds: training.epochs,
        method,
        options: training,
    };
    let adcorda = fit(
        start,
        &mut paired,
        &images,
        &validation,
        &plan(steps, "adcorda"),
        &run.track(ADCORDA)?,
        device,
    )?;
    let control = if options.control {
        let mut plain = Classification::new(&images, training);
        let per_step = images.len() as f64 / plain.steps_per_epoch() as f64;
        let steps = (budget.count() / per_step).round() as usize;
        let track = run.track(CONTROL)?;
        Some(fit(
            start,
            &mut plain,
            &images,
            &validation,
            &plan(steps, "qat"),
            &track,
            device,
        )?)
    } else {
        None
    };
    Ok(RefineReport {
        before_top1: adcorda.before_top1,
        top1: adcorda.top1,
        control_top1: control.as_ref().map(|control| control.top1),
        correction,
        adcorda,
        control,
        passes: budget.count(),
        notes,
    })
}

/// The corrections of `images`, from the run's folder where it has them.
fn corrections(
    start: &Checkpoint,
    images: &Dataset,
    options: &RefineOptions,
    run: &RunFolder,
    device: &Device,
) -> Result<Corrections> {
    let path = run.path().join(CORRECTIONS);
    let key = format!("{} {:?}", fingerprint(start, images), options.attack);
    if let Some(corrections) = Corrections::load(&path, images, &key)? {
        return Ok(corrections);
    }
    let network = Frozen::new(&start.network, &start.state, start.quantization.as_ref(), device)?;
    let corrections = correction::correct(&network, images, &options.attack)?;
    corrections.save(&path, images.shape(), &key)?;
    Ok(corrections)
}

/// Learning from paired batches: original images as the target, and the same with the wrong ones corrected as the source.
struct Paired<'a> {
    images: &'a Dataset,
    /// Numbers of the images trained on: all but those that could not be corrected.
    kept: Vec<usize>,
    /// The correction of each image of the set.
    corrected: Vec<Option<&'a [u8]>>,
    draw: Draw,
    options: &'a RefineOptions,
}

impl<'a> Paired<'a> {
    fn new(images: &'a Dataset, corrections: &'a Corrections, options: &'a RefineOptions) -> Result<Self> {
        let mut corrected = vec![None; images.len()];
        for correction in &corrections.corrected {
            corrected[correction.index] = Some(&correction.image[..]);
        }
        let kept: Vec<usize> = (0..images.len())
            .filter(|i| corrections.failed.binary_search(i).is_err())
            .collect();
        if kept.len() < 2 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: every image is misclassified and none could be corrected", images.name),
            )
            .remedy("give a larger --epsilon, or start from a better network"));
        }
        let draw = Draw::new(kept.len(), &options.training);
        Ok(Self {
            images,
            kept,
            corrected,
            draw,
            options,
        })
    }

    /// Images run in an epoch.
    fn rows_per_epoch(&self) -> usize {
        let corrected = self.corrected.iter().flatten().count();
        self.kept.len() + if self.options.needs_target() { corrected } else { 0 }
    }
}

impl Task for Paired<'_> {
    fn steps_per_epoch(&self) -> usize {
        self.draw.steps_per_epoch()
    }

    fn batch(&mut self, step: usize) -> Batch {
        let (drawn, mut geometries) = self.draw.step(step);
        let indices: Vec<usize> = drawn.iter().map(|&i| self.kept[i]).collect();
        let labels = indices.iter().map(|&i| self.images.label(i)).collect();
        let mut replaced = Vec::new();
        let mut rows: Vec<&[u8]> = Vec::with_capacity(2 * indices.len());
        if self.options.needs_target() {
            rows.extend(indices.iter().map(|&i| self.images.image(i)));
            for (row, &i) in indices.iter().enumerate() {
                if let Some(corrected) = self.corrected[i] {
                    // The same flip and shift: another would undo many corrections.
                    geometries.push(geometries[row]);
                    rows.push(corrected);
                    replaced.push(row);
                }
            }
        } else {
            rows.extend(indices.iter().map(|&i| self.corrected[i].unwrap_or(self.images.image(i))));
        }
        Batch {
            pixels: to_planar_f32(rows, self.images.shape(), Some(&geometries)),
            labels,
            replaced,
        }
    }

    fn loss(&self, output: Output<Auto>, batch: &Batch) -> Tensor<Auto, 1> {
        let n = batch.labels.len();
        let smoothing = self.options.training.label_smoothing;
        if batch.replaced.is_empty() {
            // Source and target are the same images.
            let weight = 1.0 + self.options.target_weight;
            return cross_entropy(output.logits, &batch.labels, smoothing) * weight;
        }
        let mut source: Vec<usize> = (0..n).collect();
        for (row, &replaced) in batch.replaced.iter().enumerate() {
            source[replaced] = n + row;
        }
        let source = crate::attack::rows::<Auto>(&source, &output.logits.device());
        let mut loss = cross_entropy(output.logits.clone().select(0, source.clone()), &batch.labels, smoothing);
        if self.options.lambda > 0.0 {
            let target = output.features.clone().narrow(0, 0, n);
            loss = loss + coral::coral(output.features.select(0, source), target) * self.options.lambda;
        }
        if self.options.target_weight > 0.0 {
            let target = output.logits.narrow(0, 0, n);
            loss = loss + cross_entropy(target, &batch.labels, smoothing) * self.options.target_weight;
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use serde_json::json;

    use super::*;
    use crate::file::read;
    use crate::nn::to_host;
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::run_folder::Track;
    use crate::train::{fixture, train};

    fn options() -> RefineOptions {
        RefineOptions {
            attack: AttackOptions {
                epsilon: 24,
                step: 2,
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
            control: true,
            ..RefineOptions::default()
        }
    }

    /// A network trained for one epoch and quantized: right more often than not, never always.
    fn start() -> (Checkpoint, Dataset) {
        let images = fixture::images(300, 1);
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::open(folder.path(), &json!({})).unwrap();
        let options = TrainOptions {
            epochs: 1,
            ..fixture::options()
        };
        train(&fixture::float(3), &images, &options, &run, &Device::flex()).unwrap();
        let float = Checkpoint::load(run.track("").unwrap().best()).unwrap();
        let quantized = ptq(&float, &images, &QuantizeOptions::new(Width::W2), &Device::flex()).unwrap();
        (quantized, images)
    }

    fn run(folder: &std::path::Path) -> RunFolder {
        RunFolder::open(folder, &json!({})).unwrap()
    }

    #[test]
    fn both_arms_cost_the_same_and_lose_nothing() {
        let (start, images) = start();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let report = refine(&start, &images, &options(), &run, &Device::flex()).unwrap();
        assert!(report.correction.wrong > 10, "{report:?}");
        assert!(report.correction.corrected > report.correction.wrong / 2, "{report:?}");
        let control = report.control.as_ref().unwrap();
        // Sums of thirds: the last bit depends on the order.
        let sum = report.adcorda.passes + report.correction.passes;
        assert!((report.passes - sum).abs() < 1e-9 * sum, "{report:?}");
        assert!((control.passes / report.passes - 1.0).abs() < 0.02, "{report:?}");
        assert_eq!(control.before_top1, report.before_top1);
        assert!(report.top1 >= report.before_top1 && report.control_top1.unwrap() >= report.before_top1);
        assert!(report.top1 > report.before_top1 || report.adcorda.best_round == 0);

        // Two evaluations each, after the one of the start.
        let (_, validation) = images.split_validation(40, 7).unwrap();
        for (track, top1, method) in [(ADCORDA, report.top1, "adcorda"), (CONTROL, control.top1, "qat")] {
            let track = run.track(track).unwrap();
            let metrics = std::fs::read_to_string(track.metrics()).unwrap();
            let evaluations = metrics.lines().filter(|line| !line.contains("\"validation_top1\":null"));
            assert_eq!(evaluations.count(), 3);
            let best = Checkpoint::load(track.best()).unwrap();
            let frozen = Frozen::new(&best.network, &best.state, best.quantization.as_ref(), &Device::flex()).unwrap();
            assert_eq!(frozen.accuracy(&validation).unwrap(), top1);
            let (last, _, _) = track.load_last::<serde_json::Value>().unwrap().unwrap();
            assert_eq!(last.provenance.method, method);
        }
    }

    #[test]
    fn a_second_run_gives_the_same_bytes_and_a_third_call_does_nothing() {
        let (start, images) = start();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let reports = folders.each_ref().map(|folder| {
            let run = run(folder.path());
            refine(&start, &images, &options(), &run, &Device::flex()).unwrap()
        });
        for name in ["adcorda/best.safetensors", "control/best.safetensors", CORRECTIONS] {
            let [a, b] = folders.each_ref().map(|folder| read(&folder.path().join(name)).unwrap());
            assert!(a == b, "{name}");
        }
        let run = run(folders[0].path());
        let metrics = read(&run.track(ADCORDA).unwrap().metrics()).unwrap();
        let again = refine(&start, &images, &options(), &run, &Device::flex()).unwrap();
        assert_eq!(again, reports[0]);
        assert!(metrics == read(&run.track(ADCORDA).unwrap().metrics()).unwrap());
    }

    #[test]
    fn a_run_that_continues_does_not_correct_again() {
        let (start, images) = start();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let options = options();
        let (training, _) = images.split_validation(40, 7).unwrap();
        let mut kept = corrections(&start, &training, &options, &run, &Device::flex()).unwrap();
        kept.corrected.truncate(3);
        let path = run.path().join(CORRECTIONS);
        let key = format!("{} {:?}", fingerprint(&start, &training), options.attack);
        kept.save(&path, images.shape(), &key).unwrap();
        assert_eq!(corrections(&start, &training, &options, &run, &Device::flex()).unwrap(), kept);
        // Of another attack they are no use.
        let mut other = options.clone();
        other.attack.epsilon = 1;
        assert_ne!(corrections(&start, &training, &other, &run, &Device::flex()).unwrap(), kept);
    }

    #[test]
    fn a_float_checkpoint_is_sent_to_quantize() {
        let folder = tempfile::tempdir().unwrap();
        let images = fixture::images(100, 1);
        let error = refine(&fixture::float(3), &images, &options(), &run(folder.path()), &Device::flex()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("adcorda quantize"), "{error}");
    }

    #[test]
    fn nothing_wrong_is_said_and_trained_all_the_same() {
        let (start, images) = start();
        let network = Frozen::new(&start.network, &start.state, start.quantization.as_ref(), &Device::flex()).unwrap();
        let predicted = network.predict(&images).unwrap();
        let right: Vec<usize> = (0..images.len()).filter(|&i| predicted[i] == images.label(i)).collect();
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let report = refine(&start, &images.subset(&right), &options(), &run, &Device::flex()).unwrap();
        assert_eq!((report.correction.wrong, report.correction.corrected), (0, 0));
        assert!(
            report.notes[0].contains("no training image is misclassified"),
            "{:?}",
            report.notes
        );
        assert_eq!(
            (report.before_top1, report.top1, report.control_top1),
            (100.0, 100.0, Some(100.0))
        );
        let track: Track = run.track(ADCORDA).unwrap();
        assert!(track.best().exists());
    }

    #[test]
    fn what_cannot_be_corrected_is_left_out() {
        let images = fixture::images(4, 1);
        let corrections = Corrections {
            corrected: vec![Correction {
                index: 2,
                image: vec![9; images.image_len()],
                change: 1,
            }],
            failed: vec![0],
            passes: Passes::default(),
        };
        let mut options = options();
        options.training.augment = false;
        let mut paired = Paired::new(&images, &corrections, &options).unwrap();
        assert_eq!((paired.steps_per_epoch(), paired.rows_per_epoch()), (1, 4));
        let batch = paired.batch(0);
        assert_eq!((batch.labels.len(), batch.rows()), (3, 4));
        assert!(!batch.labels.contains(&images.label(0)));
        // The last row is the corrected image, and the row it replaces is its original.
        let planar = |image| to_planar_f32([image], images.shape(), None);
        let row = |i: usize| &batch.pixels[i * images.image_len()..][..images.image_len()];
        assert_eq!(row(3), planar(&[9; 192][..]));
        assert_eq!(row(batch.replaced[0]), planar(images.image(2)));
        assert_eq!(batch.labels[batch.replaced[0]], images.label(2));

        // Where the loss does not look at originals, they are not run.
        options.lambda = 0.0;
        let mut paired = Paired::new(&images, &corrections, &options).unwrap();
        let batch = paired.batch(0);
        assert_eq!((batch.rows(), paired.rows_per_epoch(), batch.replaced.len()), (3, 3, 0));
        assert!(
            batch
                .pixels
                .chunks_exact(images.image_len())
                .any(|row| row == planar(&[9; 192][..]))
        );

        let nothing = Corrections {
            corrected: Vec::new(),
            failed: vec![0, 1, 2, 3],
            passes: Passes::default(),
        };
        assert_eq!(
            Paired::new(&images, &nothing, &options).err().unwrap().kind(),
            ErrorKind::Usage
        );
    }

    #[test]
    fn pairs_share_flip_and_shift() {
        let images = fixture::images(40, 1);
        let corrections = Corrections {
            // Corrected by nothing at all, so that a pair must be equal.
            corrected: (0..40)
                .step_by(2)
                .map(|index| Correction {
                    index,
                    image: images.image(index).to_vec(),
                    change: 0,
                })
                .collect(),
            failed: Vec::new(),
            passes: Passes::default(),
        };
        let options = options();
        let mut paired = Paired::new(&images, &corrections, &options).unwrap();
        let mut moved = 0;
        for step in 0..paired.steps_per_epoch() {
            let batch = paired.batch(step);
            let row = |i: usize| &batch.pixels[i * images.image_len()..][..images.image_len()];
            for (i, &replaced) in batch.replaced.iter().enumerate() {
                assert_eq!(row(batch.labels.len() + i), row(replaced));
                let still = to_planar_f32(images.images.chunks_exact(images.image_len()), images.shape(), None);
                moved += usize::from(still.chunks_exact(images.image_len()).all(|image| image != row(replaced)));
            }
        }
        assert!(moved > 10);
    }

    #[test]
    fn the_loss_is_that_of_its_terms() {
        let images = fixture::images(3, 1);
        let corrections = Corrections {
            corrected: Vec::new(),
            failed: Vec::new(),
            passes: Passes::default(),
        };
        let mut options = options();
        (options.lambda, options.target_weight) = (10.0, 0.5);
        let paired = Paired::new(&images, &corrections, &options).unwrap();
        let tensor = |values: &[f32], columns: usize| -> Tensor<Auto, 2> {
            let data = TensorData::new(values.to_vec(), [values.len() / columns, columns]);
            Tensor::from_data(data, Device::flex().dispatch())
        };
        // Three images, the middle one corrected by the fourth row.
        let features = [1.0f32, 2.0, 0.5, -1.0, 3.0, 0.0, 2.5, 1.0];
        let logits = [
            2.0f32, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 0.0,
        ];
        let batch = Batch {
            pixels: Vec::new(),
            labels: vec![0, 1, 2],
            replaced: vec![1],
        };
        let output = Output {
            features: tensor(&features, 2),
            logits: tensor(&logits, 4),
        };
        let loss = to_host(paired.loss(output, &batch).inner())[0];

        let pick =
            |values: &[f32], columns: usize, rows: [usize; 3]| rows.map(|r| values[r * columns..][..columns].to_vec()).concat();
        let [source, target] = [[0, 3, 2], [0, 1, 2]];
        let number = |tensor: Tensor<Auto, 1>| to_host(tensor.inner())[0];
        let ce = |rows| number(cross_entropy(tensor(&pick(&logits, 4, rows), 4), &[0, 1, 2], 0.0));
        let distance = number(coral::coral(
            tensor(&pick(&features, 2, source), 2),
            tensor(&pick(&features, 2, target), 2),
        ));
        let expected = ce(source) + 10.0 * distance + 0.5 * ce(target);
        assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
        assert!(distance > 0.01);
    }
}
