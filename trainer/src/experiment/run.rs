//! Running cells, so that a kill at any moment costs an epoch at most, and several processes can share a folder.
//!
//! | folder | what |
//! |---|---|
//! | `float/NETWORK` | the float network, where it is trained here, and `float.json`, its top-1 |
//! | `starts/START` | `ptq.safetensors`, the QAT behind it, and `start.json`, its figures |
//! | `cells/CELL` | a run folder, `end.safetensors`, the weights at the end of the schedule, `report.json` once it is trained, `result.json` once it is measured |
//!
//! Whoever works in one of these folders holds its lock; others wait, and then find its result.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::results::{
    Bits, CellResult, Failure, Measured, Outcome, Provenance, cell_folder, load, read_json, reread, write_json,
};
use super::table::{Cell, FloatSpec, NetworkSpec, Of, Shard, Table};
use crate::attack::robustness::{self, Victim};
use crate::checkpoint::Checkpoint;
use crate::data::{Dataset, SetSpec, Split};
use crate::device::Device;
use crate::eval::evaluate_model;
use crate::export::{ExportOptions, export};
use crate::nn::Frozen;
use crate::quantize::{Quantization, QuantizeOptions, ptq};
use crate::refine::{ArmReport, RefineOptions, refine_arm};
use crate::run_folder::RunFolder;
use crate::train::{fingerprint, train};
use crate::{Error, ErrorKind, Result};

/// What the cells of a table are run with.
#[derive(Clone, Debug)]
pub struct Experiment<'a> {
    /// The table.
    pub table: &'a Table,
    /// Float checkpoints or run folders by the name of the network; they go before those of the table.
    pub floats: &'a BTreeMap<String, PathBuf>,
    /// Data set.
    pub set: &'a SetSpec,
    /// Where everything is written.
    pub folder: &'a Path,
    /// Where to compute.
    pub device: &'a Device,
}

impl Experiment<'_> {
    /// Runs the cells of `shard` that have no result yet, and calls `done` with each one's result, how many there are now and
    /// how many there will be.
    ///
    /// A cell that fails in a way that it would fail again (its training diverges, nothing can be corrected, its network
    /// cannot be exported) has that as its result, and the others go on.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for options that cannot be, a network without a checkpoint, or a folder with other cells of these
    /// names; else what keeps the cells from being run: data, weights, device, file system.
    pub fn run(&self, shard: Shard, mut done: impl FnMut(&CellResult, usize, usize)) -> Result<()> {
        let cells = self.table.shard(shard);
        if let Some(name) = (self.floats.keys()).find(|name| !self.table.network.iter().any(|network| network.name == **name)) {
            let names: Vec<&str> = self.table.network.iter().map(|network| network.name.as_str()).collect();
            return Err(Error::new(
                ErrorKind::Usage,
                format!("--float names {name}, which is no network of the table"),
            )
            .remedy(format!("give one of {}", names.join(", "))));
        }
        for cell in &cells {
            if let Some(result) = load(self.folder, cell)? {
                result.check(cell, self.folder)?;
            }
        }
        let images = self.set.load(Split::Train)?;
        let test = self.set.load(Split::Test)?;
        let mut floats = BTreeMap::new();
        for cell in &cells {
            let name = &cell.network.name;
            if !floats.contains_key(name) {
                floats.insert(name.clone(), self.float(cell.network, &images, &test)?);
            }
        }
        let bench = Bench {
            experiment: self,
            images,
            test,
            floats,
        };
        bench.check(&cells)?;
        for (i, cell) in cells.iter().enumerate() {
            done(&bench.cell(cell)?, i + 1, cells.len());
        }
        Ok(())
    }

    fn float(&self, spec: &NetworkSpec, images: &Dataset, test: &Dataset) -> Result<Float> {
        let name = &spec.name;
        let folder = self.folder.join("float").join(name);
        let given = self.floats.get(name).or(spec.float.as_ref());
        let (checkpoint, run) = match (given, &spec.train) {
            (Some(path), _) => {
                let path = if path.is_dir() {
                    path.join("best.safetensors")
                } else {
                    path.clone()
                };
                let checkpoint = Checkpoint::load(&path)?;
                let config = json!({ "float": fingerprint(&checkpoint, images) });
                (checkpoint, RunFolder::open_or_wait(&folder, &config)?)
            }
            (None, Some(spec)) => {
                let start = Checkpoint::untrained(name, images, spec.options().seed)?;
                let config = json!({ "train": spec, "start": fingerprint(&start, images) });
                let run = RunFolder::open_or_wait(&folder, &config)?;
                (train_float(&start, images, spec, &run, self.device)?, run)
            }
            (None, None) => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("network {name} has no checkpoint: the table says neither `float` nor `train`"),
                )
                .remedy(format!("name its float checkpoint with --float {name}=CKPT")));
            }
        };
        if checkpoint.quantization.is_some() {
            return Err(Error::new(
                ErrorKind::Weights,
                format!("the checkpoint of network {name} is quantized already"),
            )
            .remedy(format!("name its float checkpoint with --float {name}=CKPT")));
        }
        let top1 = match read_json(run.path(), "float.json")? {
            Some(FloatRecord { top1 }) => top1,
            None => {
                let top1 = correct(&checkpoint, test, self.device)?.percent();
                write_json(run.path(), "float.json", &FloatRecord { top1 })?;
                top1
            }
        };
        Ok(Float {
            fingerprint: fingerprint(&checkpoint, images),
            checkpoint,
            top1,
        })
    }
}

fn train_float(start: &Checkpoint, images: &Dataset, spec: &FloatSpec, run: &RunFolder, device: &Device) -> Result<Checkpoint> {
    let images = match spec.limit {
        Some(limit) => Cow::Owned(images.clone().take(limit)),
        None => Cow::Borrowed(images),
    };
    train(start, None, &images, &spec.options(), run, device)?;
    Checkpoint::load(run.track("")?.best())
}

/// `float.json`.
#[derive(Serialize, Deserialize)]
struct FloatRecord {
    top1: f64,
}

/// A float network of the table.
struct Float {
    checkpoint: Checkpoint,
    /// Of the weights and all training images.
    fingerprint: String,
    top1: f64,
}

/// `start.json`: how a start's making ended.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StartRecord {
    Made {
        before_top1: f64,
        correct: Bits,
        report: Option<ArmReport>,
    },
    Failed(Failure),
}

/// All that the cells have in common, in memory.
struct Bench<'a> {
    experiment: &'a Experiment<'a>,
    images: Dataset,
    test: Dataset,
    floats: BTreeMap<String, Float>,
}

impl Bench<'_> {
    /// Whether every cell's options can be, before the first one is run.
    fn check(&self, cells: &[Cell]) -> Result<()> {
        for cell in cells {
            let float = &self.float(cell).checkpoint;
            let quantized = Checkpoint {
                quantization: Some(Quantization {
                    weights: Vec::new(),
                    activations: Vec::new(),
                }),
                ..float.clone()
            };
            let images = self.images(cell);
            for options in cell.options().iter().chain(&cell.start_options()) {
                options.check(&quantized, Some(float), &images).map_err(|error| {
                    let text = format!("cell {}: {error}", cell.name());
                    Error::new(error.kind(), text)
                })?;
            }
        }
        Ok(())
    }

    fn float(&self, cell: &Cell) -> &Float {
        &self.floats[&cell.network.name]
    }

    /// The training images of a cell, label noise aside.
    fn images(&self, cell: &Cell) -> Cow<'_, Dataset> {
        match cell.images.limit {
            Some(limit) if limit < self.images.len() => {
                let first: Vec<usize> = (0..limit).collect();
                Cow::Owned(self.images.subset(&first))
            }
            Some(_) | None => Cow::Borrowed(&self.images),
        }
    }

    /// The result of a cell: what is there, or what running it gives.
    fn cell(&self, cell: &Cell) -> Result<CellResult> {
        let folder = cell_folder(self.experiment.folder, cell);
        let measure = reread(&json!(self.experiment.table.measure))?;
        let there = || -> Result<Option<CellResult>> {
            let result = load(self.experiment.folder, cell)?;
            Ok(result.filter(|result| result.measure == measure || result.measured().is_none()))
        };
        if let Some(result) = there()? {
            return Ok(result);
        }
        let config = self.bound(cell, cell.config());
        let run = RunFolder::open_or_wait(&folder, &config)?;
        if let Some(result) = there()? {
            return Ok(result);
        }
        let result = CellResult {
            place: cell.place(),
            config: cell.config(),
            measure,
            provenance: self.provenance(cell),
            outcome: self.outcome(cell, &run)?,
        };
        write_json(&folder, "result.json", &result)?;
        Ok(result)
    }

    /// A cell's config with what the table does not say: which float network, and which images.
    fn bound(&self, cell: &Cell, config: Value) -> Value {
        json!({ "float": self.float(cell).fingerprint, "cell": config })
    }

    fn provenance(&self, cell: &Cell) -> Provenance {
        let float = self.float(cell);
        Provenance {
            adcorda: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("ADCORDA_COMMIT").map(Into::into),
            device: self.experiment.device.name().into(),
            data: self.test.name.clone(),
            float: float.fingerprint.clone(),
            float_top1: float.top1,
        }
    }

    fn outcome(&self, cell: &Cell, run: &RunFolder) -> Result<Outcome> {
        let (start, record) = self.start(cell)?;
        let (before_top1, right, report) = match record {
            StartRecord::Made {
                before_top1,
                correct,
                report,
            } => (before_top1, correct, report),
            StartRecord::Failed(Failure { error, exit_code }) => {
                let error = format!("its start failed: {error}");
                return Ok(Outcome::Failed(Failure { error, exit_code }));
            }
        };
        let Some(options) = cell.options() else {
            return self.measured(&start, before_top1, Some(right), report);
        };
        let report = match self.trained(cell, &start, &options, run) {
            Ok(report) => report,
            Err(error) => {
                let failure = failure(error)?;
                remove_leftovers(run.path())?;
                return Ok(Outcome::Failed(failure));
            }
        };
        let best = run.track("")?.best();
        let mut checkpoint = Checkpoint::load(&best)?;
        let mut outcome = self.measured(&checkpoint, right.percent(), None, Some(report))?;
        if let Outcome::Measured(measured) = &mut outcome {
            if self.experiment.table.measure.end {
                let end = Checkpoint::load(run.path().join(END))?;
                measured.correct_at_end = Some(correct(&end, &self.test, self.experiment.device)?);
            }
            checkpoint.provenance.top1 = Some(measured.top1 as f32);
            checkpoint.save(&best)?;
        }
        Ok(outcome)
    }

    /// Trains a cell, or finds that it is trained.
    fn trained(&self, cell: &Cell, start: &Checkpoint, options: &RefineOptions, run: &RunFolder) -> Result<ArmReport> {
        let report = match read_json(run.path(), "report.json")? {
            Some(report) => report,
            None => {
                let teacher = options.arm.needs_teacher().then(|| &self.float(cell).checkpoint);
                let images = self.images(cell);
                let report = refine_arm(start, teacher, &images, options, run, "", self.experiment.device)?;
                write_json(run.path(), "report.json", &report)?;
                report
            }
        };
        if let Some((end, _, _)) = run.track("")?.load_last::<Value>()? {
            end.save(run.path().join(END))?;
        }
        remove_leftovers(run.path())?;
        Ok(report)
    }

    /// The start of a cell, made where it is not there.
    fn start(&self, cell: &Cell) -> Result<(Checkpoint, StartRecord)> {
        let device = self.experiment.device;
        let folder = self.experiment.folder.join("starts").join(cell.start_name());
        let run = RunFolder::open_or_wait(&folder, &self.bound(cell, cell.start_config()))?;
        let path = folder.join("ptq.safetensors");
        let float = self.float(cell);
        if !path.exists() {
            let options = QuantizeOptions {
                seed: cell.seed,
                ..QuantizeOptions::new(cell.start.weights)
            };
            ptq(&float.checkpoint, &self.images(cell), &options, device)?.save(&path)?;
        }
        let quantized = Checkpoint::load(&path)?;
        let options = cell.start_options();
        let trained = || match options {
            Some(_) => Checkpoint::load(run.track("")?.best()),
            None => Ok(quantized.clone()),
        };
        match read_json(&folder, "start.json")? {
            Some(record @ StartRecord::Made { .. }) => return Ok((trained()?, record)),
            Some(record @ StartRecord::Failed(_)) => return Ok((quantized, record)),
            None => {}
        }
        let (before_top1, report) = match &options {
            None => (float.top1, None),
            Some(options) => {
                let before = correct(&quantized, &self.test, device)?.percent();
                match self.trained(cell, &quantized, options, &run) {
                    Ok(report) => (before, Some(report)),
                    Err(error) => {
                        let record = StartRecord::Failed(failure(error)?);
                        write_json(&folder, "start.json", &record)?;
                        return Ok((quantized, record));
                    }
                }
            }
        };
        let checkpoint = trained()?;
        let record = StartRecord::Made {
            before_top1,
            correct: correct(&checkpoint, &self.test, device)?,
            report,
        };
        write_json(&folder, "start.json", &record)?;
        Ok((checkpoint, record))
    }

    /// Measures a checkpoint; `right` where it is known which images it has right.
    fn measured(
        &self,
        checkpoint: &Checkpoint,
        before_top1: f64,
        right: Option<Bits>,
        report: Option<ArmReport>,
    ) -> Result<Outcome> {
        let device = self.experiment.device;
        let right = match right {
            Some(right) => right,
            None => correct(checkpoint, &self.test, device)?,
        };
        let measure = &self.experiment.table.measure;
        let attacks = measure.robustness.as_ref();
        let needs_file = measure.integer || attacks.is_some_and(|attacks| attacks.of != Of::FakeQuant);
        let file = match needs_file.then(|| export(checkpoint, &ExportOptions::default())).transpose() {
            Ok(exported) => exported.map(|exported| exported.bytes),
            Err(error) => return Ok(Outcome::Failed(failure(error)?)),
        };
        let integer_top1 = match &file {
            Some(file) if measure.integer => {
                let predicted = evaluate_model(file, &self.test)?.predictions;
                Some(Bits::of(&predicted, self.test.labels()).percent())
            }
            Some(_) | None => None,
        };
        let mut robustness = BTreeMap::new();
        if let Some(attacks) = attacks {
            let images = self.test.clone().take(attacks.images.unwrap_or(usize::MAX));
            let victims = [
                (
                    "fake-quant",
                    (attacks.of != Of::Integer).then_some(Victim::Checkpoint(checkpoint)),
                ),
                (
                    "integer",
                    file.as_deref()
                        .filter(|_| attacks.of != Of::FakeQuant)
                        .map(|file| Victim::Model {
                            file,
                            surrogate: Some(checkpoint),
                        }),
                ),
            ];
            for (name, victim) in victims {
                let Some(victim) = victim else { continue };
                let report = robustness::measure(&victim, &images, &attacks.options(), device)?;
                let report = serde_json::to_value(&report).map_err(|cause| Error::new(ErrorKind::Io, cause.to_string()))?;
                robustness.insert(name.to_owned(), reread(&report)?);
            }
        }
        let validation = |of: fn(&ArmReport) -> f32| report.as_ref().map(|report| f64::from(of(report)));
        Ok(Outcome::Measured(Box::new(Measured {
            before_top1,
            top1: right.percent(),
            validation_before_top1: validation(|report| report.before_top1),
            validation_top1: validation(|report| report.top1),
            passes: report.as_ref().map_or(0.0, |report| report.passes),
            seconds: report.as_ref().map_or(0.0, |report| report.training.seconds),
            correct: right,
            correct_at_end: None,
            correction: report.as_ref().and_then(|report| report.correction.clone()),
            integer_top1,
            robustness,
            notes: report.map_or(Vec::new(), |report| report.notes),
        })))
    }
}

/// The weights at the end of the schedule, in a cell's folder.
const END: &str = "end.safetensors";

/// Deletes what a training continues from: of no use once it is done, and the larger part of its folder.
fn remove_leftovers(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|cause| Error::io("read", folder, cause))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == "last.safetensors" || name.starts_with("corrections") {
            std::fs::remove_file(&path).map_err(|cause| Error::io("delete", &path, cause))?;
        }
    }
    Ok(())
}

/// The error as a result, where another run would end in it too; else the error itself.
fn failure(error: Error) -> Result<Failure> {
    match error.kind() {
        ErrorKind::Usage | ErrorKind::Diverged | ErrorKind::Model => Ok(Failure {
            error: error.to_string().replace('\n', "; "),
            exit_code: error.exit_code(),
        }),
        ErrorKind::Data
        | ErrorKind::Weights
        | ErrorKind::Device
        | ErrorKind::Board
        | ErrorKind::Toolchain
        | ErrorKind::Io
        | ErrorKind::Parity
        | ErrorKind::Download
        | ErrorKind::Regression
        | ErrorKind::Baseline => Err(error),
    }
}

/// Which images a checkpoint classifies right, on the trainer.
fn correct(checkpoint: &Checkpoint, images: &Dataset, device: &Device) -> Result<Bits> {
    let (network, quantization) = (&checkpoint.network, checkpoint.quantization.as_ref());
    let predicted = Frozen::new(network, &checkpoint.state, quantization, device)?.predict(images)?;
    Ok(Bits::of(&predicted, images.labels()))
}
