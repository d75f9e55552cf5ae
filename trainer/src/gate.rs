//! A model held against figures recorded earlier: what a CI runs on every change.
//!
//! Measured are top-1 in the integer runtime, parity with the host on emulated boards, instructions of every layer, stack, and
//! sizes. All of them are exact: the same model, images and firmware give the same figures on every machine, so a tolerance allows
//! for what was meant to change, never for noise. What the compiler has a hand in (instructions, stack, the firmware's flash) changes
//! with it; a baseline therefore says which one made its firmware.
//!
//! A baseline is a JSON file to be committed. It is compared with nothing but what it was recorded of: the same images, the same
//! number of them on the same boards, a model of the same input and classes.

use std::fmt;
use std::path::{Path, PathBuf};

use crc::{CRC_32_ISO_HDLC, Crc};
use indicatif::HumanCount;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::board::Board;
use crate::data::{Dataset, SetSpec, Split};
use crate::eval::{check_fit, evaluate_model_with};
use crate::export::parse;
use crate::file::{self, check_writable, write_atomic};
use crate::inspect::inspect;
use crate::qemu::{DeviceReport, run_images};
use crate::{Error, ErrorKind, Result};

/// What a gate is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model file.
    pub model: PathBuf,
    /// Its images are the set's test images.
    pub set: SetSpec,
    /// The baseline file.
    pub baseline: PathBuf,
    /// Boards to run on; where there is none, those of the baseline, else the Cortex-M4.
    pub boards: Vec<Board>,
    /// Number of images to run on each board; else the baseline's, else [`DEVICE_IMAGES`].
    pub images: Option<usize>,
    /// Number of images to measure top-1 on; else the baseline's, else all.
    pub limit: Option<usize>,
    /// What may get worse, and by how much.
    pub tolerances: Tolerances,
    /// Write the baseline.
    pub record: bool,
}

/// Images to run on a board where nothing else is said: parity needs few, and instructions hardly depend on them.
pub const DEVICE_IMAGES: usize = 4;

/// What may get worse, and by how much, before it is a regression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// Points of top-1 (in per cent) that may be lost.
    pub accuracy: f64,
    /// Per cent by which the instructions of an inference, and of each layer, may rise.
    pub instructions: f64,
    /// Per cent by which what the exporter decides may grow: model file, weights, arena.
    pub size: f64,
    /// Per cent by which what the compiler decides may grow: stack, flash of the firmware.
    pub firmware: f64,
}

impl Default for Tolerances {
    /// Half a point is the standard error of a top-1 of 87 % on 5,000 images: less than that cannot be told from luck. One per cent
    /// of instructions and five of stack and flash are left to the compiler; what the exporter decides is exact.
    fn default() -> Self {
        Self {
            accuracy: 0.5,
            instructions: 1.0,
            size: 0.0,
            firmware: 5.0,
        }
    }
}

impl Tolerances {
    fn check(self) -> Result<()> {
        let all = [
            ("accuracy", self.accuracy),
            ("instructions", self.instructions),
            ("size", self.size),
            ("firmware", self.firmware),
        ];
        for (name, tolerance) in all {
            if !(tolerance.is_finite() && tolerance >= 0.0) {
                return Err(
                    Error::new(ErrorKind::Usage, format!("--{name}-tolerance {tolerance} is no tolerance"))
                        .remedy("give a number from 0 up, such as 1"),
                );
            }
        }
        Ok(())
    }
}

/// Measures a model, compares it with the baseline, and records it where that is asked for: a baseline is replaced only by figures
/// of a model whose every byte on the boards was the host's. `progress` is called with the images evaluated and their number.
///
/// The report of a model that is worse is no error; [`Report::check`] makes it one.
///
/// # Errors
/// [`ErrorKind::Baseline`] where the baseline is missing, damaged, newer, or not of what is asked for; [`ErrorKind::Usage`] for numbers
/// that cannot be; for the model, the images, the boards and QEMU as [`run_images`] and
/// [`evaluate_model`](crate::eval::evaluate_model), but for a difference between host and board, which is in the report.
pub fn gate(request: &Request, progress: impl Fn(usize, usize) + Sync) -> Result<Report> {
    request.tolerances.check()?;
    let baseline = match load(&request.baseline) {
        Ok(baseline) => Some(baseline),
        // Whatever is there is replaced.
        Err(_) if request.record => None,
        Err(error) => return Err(error),
    };
    if request.record {
        check_writable(&request.baseline)?;
    }
    let bytes = file::read(&request.model)?;
    let model_name = request.model.display().to_string();
    let model = parse(&bytes, &model_name)?;
    let mut images = request.set.load(Split::Test)?;
    let recorded = baseline.as_ref().filter(|baseline| baseline.set.name == images.name);
    if let Some(limit) = request.limit.or(recorded.map(|baseline| baseline.set.images)) {
        images = images.take(limit);
    }
    check_fit(&model, &images)?;
    let device_images = (request.images)
        .or(baseline.as_ref().map(|baseline| baseline.device_images))
        .unwrap_or(DEVICE_IMAGES);
    if device_images == 0 || device_images > images.len() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{device_images} images on the board are asked for, of {} that are evaluated",
                images.len()
            ),
        )
        .remedy("give --images from 1 to --limit, and --limit from 1 to the number of test images"));
    }
    let mut subject = Figures {
        set: SetFigures::of(&images),
        device_images,
        model: ModelFigures::of(&bytes)?,
        top1_right: 0,
        boards: Vec::new(),
    };
    let boards = request.boards(baseline.as_ref());
    let baseline = match baseline.as_ref().map(|baseline| baseline.check_same(&subject, &boards)) {
        Some(Err(what)) if !request.record => {
            return Err(
                Error::new(ErrorKind::Baseline, format!("{}: {what}", request.baseline.display())).remedy(format!(
                    "measure what was recorded, or record the baseline anew: {}",
                    request.record_line()
                )),
            );
        }
        Some(Err(_)) | None => None,
        Some(Ok(())) => baseline,
    };

    let mut differences = Vec::new();
    let on_board: Vec<&[u8]> = (0..device_images).map(|i| images.image(i)).collect();
    for board in boards {
        match run_images(&bytes, &on_board, board) {
            Ok(report) => subject.boards.push(BoardFigures::of(report)),
            Err(error) if error.kind() == ErrorKind::Parity => differences.push((board, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    subject.top1_right = evaluate_model_with(&bytes, &images, |done| progress(done, images.len()))?.right;

    let mut report = compare(baseline.as_ref(), &subject, &differences, request.tolerances);
    if request.record && report.parity {
        save(&request.baseline, &subject)?;
        report.recorded = true;
        report.passed = true;
    }
    Ok(report)
}

impl Request {
    /// Each board once.
    fn boards(&self, baseline: Option<&Figures>) -> Vec<Board> {
        let mut boards = self.boards.clone();
        // A baseline that is recorded anew keeps its boards.
        if boards.is_empty() || self.record {
            let recorded = baseline.iter().flat_map(|baseline| &baseline.boards);
            boards.extend(recorded.map(|figures| figures.board));
        }
        if boards.is_empty() {
            boards.push(Board::Mps2An386);
        }
        let mut once = Vec::new();
        for board in boards {
            if !once.contains(&board) {
                once.push(board);
            }
        }
        once
    }

    /// The command that records the baseline as asked for here. Boards and numbers that are not given stay as they are.
    fn record_line(&self) -> String {
        let Self {
            model, set, baseline, ..
        } = self;
        let mut line = format!(
            "adcorda gate {} --data {set} --baseline {}",
            model.display(),
            baseline.display()
        );
        for board in &self.boards {
            line += &format!(" --board {board}");
        }
        for (flag, number) in [("images", self.images), ("limit", self.limit)] {
            if let Some(number) = number {
                line += &format!(" --{flag} {number}");
            }
        }
        line + " --record"
    }
}

/// What was measured of a model: what a baseline holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The images.
    pub set: SetFigures,
    /// How many of them, the first, ran on each board.
    pub device_images: usize,
    /// The model file.
    pub model: ModelFigures,
    /// Of the images, those whose class was found.
    pub top1_right: usize,
    /// Where every byte was the host's.
    pub boards: Vec<BoardFigures>,
}

/// Which images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFigures {
    /// As in reports: `cifar10/test`; folders differ between machines.
    pub name: String,
    /// Their number.
    pub images: usize,
    /// CRC-32 of all pixels, then all labels (u16, little-endian), in hexadecimal: images of the same name may be others.
    pub crc32: String,
}

/// A model file. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFigures {
    /// Its name.
    pub name: String,
    /// Height, width, channels of its image.
    pub input: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// The whole file.
    pub model_bytes: usize,
    /// Of it: the weights.
    pub weight_bytes: usize,
    /// RAM for tensors and scratch.
    pub arena_bytes: usize,
}

/// A model on a board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardFigures {
    /// The board.
    #[serde(deserialize_with = "board_by_name")]
    pub board: Board,
    /// What compiled the firmware; empty where that is unknown.
    pub compiler: String,
    /// Instructions of one inference.
    pub instructions: u64,
    /// Bytes of stack at its deepest.
    pub stack_bytes: usize,
    /// Bytes of flash of the firmware, the model left out.
    pub firmware_flash_bytes: usize,
    /// Name and instructions of each layer, in the order in which they run.
    #[serde(serialize_with = "as_map", deserialize_with = "as_pairs")]
    pub layers: Vec<(String, u64)>,
}

impl SetFigures {
    fn of(images: &Dataset) -> Self {
        const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
        let mut digest = CRC.digest();
        digest.update(&images.images);
        for label in images.labels() {
            digest.update(&label.to_le_bytes());
        }
        Self {
            name: images.name.clone(),
            images: images.len(),
            crc32: format!("{:08x}", digest.finalize()),
        }
    }
}

impl ModelFigures {
    fn of(bytes: &[u8]) -> Result<Self> {
        let inspection = inspect(bytes)?;
        Ok(Self {
            name: inspection.name,
            input: inspection.input,
            classes: inspection.labels.len(),
            model_bytes: inspection.flash_bytes,
            weight_bytes: inspection.weight_bytes,
            arena_bytes: inspection.arena_bytes,
        })
    }
}

impl BoardFigures {
    fn of(report: DeviceReport) -> Self {
        Self {
            board: report.board,
            compiler: report.compiler,
            instructions: report.instructions,
            stack_bytes: report.stack_bytes,
            firmware_flash_bytes: report.firmware_flash_bytes,
            layers: report
                .layers
                .into_iter()
                .map(|layer| (layer.name, layer.instructions))
                .collect(),
        }
    }
}

impl Figures {
    /// Whether these are of the same images, boards and kind of model as `subject`; else what differs.
    fn check_same(&self, subject: &Figures, boards: &[Board]) -> Result<(), String> {
        let (was, is) = (&self.set, &subject.set);
        if was.name != is.name {
            return Err(format!("recorded on {}, not on {}", was.name, is.name));
        }
        if was.images != is.images {
            return Err(format!(
                "recorded on {} images of {}, not on {}",
                was.images, was.name, is.images
            ));
        }
        if was.crc32 != is.crc32 {
            return Err(format!(
                "recorded on other images of {}: their CRC-32 is {}, that of the images given {}",
                was.name, was.crc32, is.crc32
            ));
        }
        if self.device_images != subject.device_images {
            return Err(format!(
                "recorded with {} images on a board, not with {}",
                self.device_images, subject.device_images
            ));
        }
        let (was, is) = (&self.model, &subject.model);
        let takes = |model: &ModelFigures| {
            let [height, width, channels] = model.input;
            format!("{height}x{width}x{channels} to {} classes", model.classes)
        };
        if takes(was) != takes(is) {
            return Err(format!("recorded of a model from {}, not from {}", takes(was), takes(is)));
        }
        for &board in boards {
            if self.boards.iter().all(|figures| figures.board != board) {
                let names: Vec<&str> = self.boards.iter().map(|figures| figures.board.name()).collect();
                return Err(format!("recorded on {}, not on {board}", names.join(", ")));
            }
        }
        Ok(())
    }
}

fn board_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Board, D::Error> {
    let name = String::deserialize(deserializer)?;
    Board::from_name(&name).map_err(|_| serde::de::Error::custom(format!("no board is called {name:?}")))
}

/// A line a layer, in their order.
fn as_map<S: Serializer>(layers: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(layers.len()))?;
    for (name, instructions) in layers {
        map.serialize_entry(name, instructions)?;
    }
    map.end()
}

fn as_pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, u64)>, D::Error> {
    struct Pairs;
    impl<'de> serde::de::Visitor<'de> for Pairs {
        type Value = Vec<(String, u64)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("instructions by layer")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    deserializer.deserialize_map(Pairs)
}

/// What the `format` of a baseline file says.
const FORMAT: &str = "adcorda gate baseline";

/// Rises with every change after which an older program would misread the file.
const VERSION: u32 = 1;

/// Writes a baseline file.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn save(path: &Path, figures: &Figures) -> Result<()> {
    #[derive(Serialize)]
    struct Baseline<'a> {
        format: &'a str,
        version: u32,
        #[serde(flatten)]
        figures: &'a Figures,
    }
    let baseline = Baseline {
        format: FORMAT,
        version: VERSION,
        figures,
    };
    let text = serde_json::to_string_pretty(&baseline)
        .map_err(|cause| Error::new(ErrorKind::Io, format!("cannot write {}: {cause}", path.display())))?;
    write_atomic(path, format!("{text}\n").as_bytes())
}

/// Reads a baseline file.
///
/// # Errors
/// [`ErrorKind::Baseline`] where it is missing, damaged, no baseline or of a newer version; [`ErrorKind::Io`] where it cannot be
/// read.
pub fn load(path: &Path) -> Result<Figures> {
    #[derive(Deserialize)]
    struct Header {
        format: String,
        version: u32,
    }
    let fail = |what: String, remedy: &str| Err(Error::new(ErrorKind::Baseline, what).remedy(remedy));
    let name = path.display();
    if !path.exists() {
        let remedy = "record one with --record, and commit it";
        return fail(format!("there is no baseline {name}"), remedy);
    }
    let bytes = file::read(path)?;
    let damaged = "take it from version control again, or record it anew with --record";
    let header: Header = match serde_json::from_slice(&bytes) {
        Ok(header) => header,
        Err(cause) => return fail(format!("{name}: not a gate's baseline: {cause}"), damaged),
    };
    if header.format != FORMAT {
        return fail(format!("{name}: its format is {:?}, not {FORMAT:?}", header.format), damaged);
    }
    if header.version != VERSION {
        let (what, remedy) = match header.version > VERSION {
            true => ("a newer adcorda wrote it", "update adcorda, or record it anew with --record"),
            false => ("there is no such version", damaged),
        };
        return fail(format!("{name}: version {}, not {VERSION}: {what}", header.version), remedy);
    }
    let figures: Figures = match serde_json::from_slice(&bytes) {
        Ok(figures) => figures,
        Err(cause) => return fail(format!("{name}: {cause}"), damaged),
    };
    let boards: Vec<Board> = figures.boards.iter().map(|figures| figures.board).collect();
    let (right, images) = (figures.top1_right, figures.set.images);
    let impossible = if right > images || figures.device_images == 0 || figures.device_images > images {
        Some(format!(
            "{right} right and {} on a board, of {images} images",
            figures.device_images
        ))
    } else if boards.is_empty() {
        Some("it names no board".into())
    } else {
        let twice = boards.iter().enumerate().find(|&(i, board)| boards[..i].contains(board));
        twice.map(|(_, board)| format!("{board} is there twice"))
    };
    match impossible {
        Some(what) => fail(format!("{name}: {what}"), damaged),
        None => Ok(figures),
    }
}

/// A model beside its baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// Name of the set.
    pub set: String,
    /// Number of images.
    pub images: usize,
    /// How many of them ran on each board.
    pub device_images: usize,
    /// Whether nothing is worse than the tolerances allow; or it was recorded.
    pub passed: bool,
    /// Whether every byte of every layer was the host's on every board.
    pub parity: bool,
    /// Whether the baseline was written.
    pub recorded: bool,
    /// What is worse than the tolerances allow, in the table's words.
    pub regressions: Vec<String>,
    /// Everything compared.
    pub metrics: Vec<Metric>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// One figure beside its baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// What is measured.
    pub metric: Quantity,
    /// On which board; `None` on the host.
    pub board: Option<Board>,
    /// In which layer; `None` for the whole model.
    pub layer: Option<String>,
    /// In the baseline; `None` where it does not have it.
    pub baseline: Option<Figure>,
    /// Now; `None` for a layer that is gone.
    pub now: Option<Figure>,
    /// What is made of it.
    pub verdict: Verdict,
    /// By how much it may get worse: points of top-1, per cent of all else.
    pub tolerance: f64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Share of images whose class was found, in per cent.
    Top1,
    /// The model file.
    ModelBytes,
    /// Its weights.
    WeightBytes,
    /// RAM for tensors and scratch.
    ArenaBytes,
    /// Whether every byte of every layer is the host's.
    Parity,
    /// Instructions of one inference, or of a layer in it.
    Instructions,
    /// Stack at its deepest.
    StackBytes,
    /// Flash of the firmware, the model left out.
    FirmwareFlashBytes,
}

/// A figure in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Figure {
    /// Bytes or instructions.
    Count(u64),
    /// Per cent.
    Percent(f64),
    /// Parity holds or does not.
    Holds(bool),
}

/// What is made of a figure and its baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The same.
    Same,
    /// Better.
    Better,
    /// Worse, by what is allowed at most.
    Within,
    /// Worse by more: a regression.
    Worse,
    /// Without a baseline.
    New,
    /// In the baseline alone.
    Gone,
}

/// Compares figures with a baseline of the same images, boards and kind of model. `differences` are the boards on which a byte was
/// not the host's, with what was said about it; they have no figures.
pub fn compare(baseline: Option<&Figures>, now: &Figures, differences: &[(Board, String)], tolerances: Tolerances) -> Report {
    let mut metrics = vec![top1(
        baseline.map(|baseline| baseline.top1_right),
        now.top1_right,
        now.set.images,
        tolerances.accuracy,
    )];
    let mut size = |quantity, bytes: fn(&ModelFigures) -> usize| {
        let was = baseline.map(|baseline| bytes(&baseline.model) as u64);
        metrics.push(count(quantity, None, was, bytes(&now.model) as u64, tolerances.size));
    };
    size(Quantity::ModelBytes, |model| model.model_bytes);
    size(Quantity::WeightBytes, |model| model.weight_bytes);
    size(Quantity::ArenaBytes, |model| model.arena_bytes);
    let mut notes = Vec::new();
    for figures in &now.boards {
        let earlier = baseline.and_then(|baseline| baseline.boards.iter().find(|earlier| earlier.board == figures.board));
        metrics.push(parity(figures.board, earlier.is_some(), true));
        metrics.extend(on_board(earlier, figures, tolerances));
        if let Some(earlier) = earlier.filter(|earlier| earlier.compiler != figures.compiler) {
            let name = |compiler: &str| {
                if compiler.is_empty() {
                    "an unknown compiler".into()
                } else {
                    compiler.to_owned()
                }
            };
            notes.push(format!(
                "{}: the firmware was built by {}, that of the baseline by {}: instructions, stack and flash can differ for that alone",
                figures.board,
                name(&figures.compiler),
                name(&earlier.compiler)
            ));
        }
    }
    for (board, said) in differences {
        let earlier = baseline.is_some_and(|baseline| baseline.boards.iter().any(|earlier| earlier.board == *board));
        metrics.push(parity(*board, earlier, false));
        notes.push(format!("{board}: {}", code(&said.replace('\n', "; "))));
    }
    let regressions: Vec<String> = (metrics.iter())
        .filter(|metric| metric.verdict == Verdict::Worse)
        .map(Metric::title)
        .collect();
    Report {
        model: now.model.name.clone(),
        set: now.set.name.clone(),
        images: now.set.images,
        device_images: now.device_images,
        passed: regressions.is_empty(),
        parity: differences.is_empty(),
        recorded: false,
        regressions,
        metrics,
        notes,
    }
}

fn top1(was: Option<usize>, now: usize, images: usize, tolerance: f64) -> Metric {
    let percent = |right: usize| 100.0 * right as f64 / images as f64;
    let verdict = match was {
        None => Verdict::New,
        Some(was) if was == now => Verdict::Same,
        Some(was) if was < now => Verdict::Better,
        // Of whole numbers and rounded once, so that a loss of just the tolerance compares equal to it.
        Some(was) if percent(was - now) > tolerance => Verdict::Worse,
        Some(_) => Verdict::Within,
    };
    Metric {
        metric: Quantity::Top1,
        board: None,
        layer: None,
        baseline: was.map(|was| Figure::Percent(percent(was))),
        now: Some(Figure::Percent(percent(now))),
        verdict,
        tolerance,
    }
}

/// Of bytes or instructions, fewer are better.
fn count(metric: Quantity, board: Option<Board>, was: Option<u64>, now: u64, tolerance: f64) -> Metric {
    let verdict = match was {
        None => Verdict::New,
        Some(was) if was == now => Verdict::Same,
        Some(was) if was > now => Verdict::Better,
        Some(was) if 100.0 * (now - was) as f64 / was as f64 > tolerance => Verdict::Worse,
        Some(_) => Verdict::Within,
    };
    Metric {
        metric,
        board,
        layer: None,
        baseline: was.map(Figure::Count),
        now: Some(Figure::Count(now)),
        verdict,
        tolerance,
    }
}

/// A baseline holds only boards with parity.
fn parity(board: Board, recorded: bool, holds: bool) -> Metric {
    Metric {
        metric: Quantity::Parity,
        board: Some(board),
        layer: None,
        baseline: recorded.then_some(Figure::Holds(true)),
        now: Some(Figure::Holds(holds)),
        verdict: match (recorded, holds) {
            (_, false) => Verdict::Worse,
            (true, true) => Verdict::Same,
            (false, true) => Verdict::New,
        },
        tolerance: 0.0,
    }
}

/// Layers are the same where their names are; the n-th of a name is compared with the n-th. A layer that is new or gone is judged by the
/// total alone.
fn on_board(was: Option<&BoardFigures>, now: &BoardFigures, tolerances: Tolerances) -> Vec<Metric> {
    let board = Some(now.board);
    let instructions = |was, now| count(Quantity::Instructions, board, was, now, tolerances.instructions);
    let mut metrics = vec![instructions(was.map(|was| was.instructions), now.instructions)];
    let mut left: Vec<&(String, u64)> = was.iter().flat_map(|was| &was.layers).collect();
    for (name, now) in &now.layers {
        let earlier = left.iter().position(|(earlier, _)| earlier == name);
        metrics.push(Metric {
            layer: Some(name.clone()),
            ..instructions(earlier.map(|at| left.remove(at).1), *now)
        });
    }
    metrics.extend(left.into_iter().map(|(name, was)| Metric {
        layer: Some(name.clone()),
        baseline: Some(Figure::Count(*was)),
        now: None,
        verdict: Verdict::Gone,
        ..instructions(None, 0)
    }));
    let mut size = |quantity, bytes: fn(&BoardFigures) -> usize| {
        let was = was.map(|was| bytes(was) as u64);
        metrics.push(count(quantity, board, was, bytes(now) as u64, tolerances.firmware));
    };
    size(Quantity::StackBytes, |figures| figures.stack_bytes);
    size(Quantity::FirmwareFlashBytes, |figures| figures.firmware_flash_bytes);
    metrics
}

impl Report {
    /// An error where the model is worse than its baseline allows, and that was not recorded.
    ///
    /// # Errors
    /// [`ErrorKind::Parity`] where host and board differ, recorded or not; [`ErrorKind::Regression`] naming all that is worse.
    pub fn check(&self, request: &Request) -> Result<()> {
        if self.passed {
            return Ok(());
        }
        let (model, baseline) = (request.model.display(), request.baseline.display());
        let worse = self.regressions.join(", ");
        if !self.parity {
            let kept = if request.record {
                "; the baseline is not recorded"
            } else {
                ""
            };
            return Err(Error::new(
                ErrorKind::Parity,
                format!("{model}: host and board differ, or what ran there did not end ({worse}){kept}"),
            )
            .remedy("this is a defect of the runtime or the emulator: please report it with the model file"));
        }
        Err(Error::new(
            ErrorKind::Regression,
            format!("{model} is worse than {baseline} allows: {worse}"),
        )
        .remedy(format!(
            "mend it; where it is meant, record it and say why: {}",
            request.record_line()
        )))
    }
}

/// A Markdown table of everything but layers that are the same, between a line of what came out and the notes.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match (self.recorded, self.passed) {
            (true, _) => "recorded",
            (false, true) => "passed",
            (false, false) => "failed",
        };
        writeln!(
            f,
            "**adcorda gate: {outcome}.** {} on {} images of {}, {} of them on a board\n",
            code(&self.model),
            HumanCount(self.images as u64),
            self.set,
            HumanCount(self.device_images as u64)
        )?;
        writeln!(f, "| metric | baseline | now | change | verdict |\n|---|---:|---:|---:|---|")?;
        let mut board_is_new = false;
        for metric in &self.metrics {
            match metric.layer {
                None => board_is_new = metric.verdict == Verdict::New,
                Some(_) if board_is_new || metric.verdict == Verdict::Same => continue,
                Some(_) => {}
            }
            let figure = |figure: Option<Figure>| figure.map_or("-".into(), |figure| figure.to_string());
            writeln!(
                f,
                "| {} | {} | {} | {} | {} |",
                metric.title(),
                figure(metric.baseline),
                figure(metric.now),
                metric.change(),
                metric.judgement()
            )?;
        }
        let better = self.metrics.iter().any(|metric| metric.verdict == Verdict::Better);
        let record = (better && self.passed && !self.recorded)
            .then_some("some of it is better than the baseline: `--record` keeps it so");
        for (i, note) in self.notes.iter().map(String::as_str).chain(record).enumerate() {
            writeln!(f, "{}- {note}", if i == 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl Metric {
    /// What it is called in the table.
    pub fn title(&self) -> String {
        let name = match self.metric {
            Quantity::Top1 => "top-1",
            Quantity::ModelBytes => "`.adq` bytes",
            Quantity::WeightBytes => "weight bytes",
            Quantity::ArenaBytes => "arena bytes",
            Quantity::Parity => "parity with the host",
            Quantity::Instructions => "instructions",
            Quantity::StackBytes => "stack bytes",
            Quantity::FirmwareFlashBytes => "firmware flash bytes",
        };
        let board = self.board.map_or(String::new(), |board| format!("{board}: "));
        let layer = self
            .layer
            .as_ref()
            .map_or(String::new(), |layer| format!(" of {}", code(layer)));
        format!("{board}{name}{layer}")
    }

    fn change(&self) -> String {
        match (self.baseline, self.now) {
            (Some(Figure::Count(was)), Some(Figure::Count(now))) if was != now => {
                let (sign, by) = if now > was { ('+', now - was) } else { ('-', was - now) };
                let percent = match was {
                    0 => String::new(),
                    was => format!(" ({sign}{:.2} %)", 100.0 * by as f64 / was as f64),
                };
                format!("{sign}{}{percent}", HumanCount(by))
            }
            (Some(Figure::Percent(was)), Some(Figure::Percent(now))) if was != now => format!("{:+.2} points", now - was),
            (Some(_), Some(Figure::Count(_) | Figure::Percent(_))) => "0".into(),
            (Some(_) | None, Some(_) | None) => String::new(),
        }
    }

    fn judgement(&self) -> String {
        let unit = match self.metric {
            Quantity::Top1 => "points",
            Quantity::ModelBytes
            | Quantity::WeightBytes
            | Quantity::ArenaBytes
            | Quantity::Parity
            | Quantity::Instructions
            | Quantity::StackBytes
            | Quantity::FirmwareFlashBytes => "%",
        };
        match (self.verdict, self.metric) {
            (Verdict::Worse, Quantity::Parity) => "**differs**".into(),
            (Verdict::Same, _) => "same".into(),
            (Verdict::Better, _) => "better".into(),
            (Verdict::Within, _) => format!("within {} {unit}", self.tolerance),
            (Verdict::Worse, _) => format!("**worse**, {} {unit} allowed", self.tolerance),
            (Verdict::New, _) => "new".into(),
            (Verdict::Gone, _) => "gone".into(),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Figure::Count(count) => HumanCount(count).fmt(f),
            Figure::Percent(percent) => write!(f, "{percent:.2} %"),
            Figure::Holds(true) => f.write_str("holds"),
            Figure::Holds(false) => f.write_str("differs"),
        }
    }
}

/// A name out of a model file as Markdown code, in a cell of a table: nothing in it ends the one or the other.
fn code(name: &str) -> String {
    let safe: String = (name.chars())
        .map(|c| if c.is_control() || "`|\\".contains(c) { '?' } else { c })
        .collect();
    format!("`{safe}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::every_op;
    use crate::export::{ExportOptions, export};
    use crate::quantize::Width;

    fn figures() -> Figures {
        Figures {
            set: SetFigures {
                name: "synthetic/test".into(),
                images: 1000,
                crc32: "0123abcd".into(),
            },
            device_images: 4,
            model: ModelFigures {
                name: "tiny".into(),
                input: [32, 32, 3],
                classes: 10,
                model_bytes: 5960,
                weight_bytes: 4000,
                arena_bytes: 6400,
            },
            top1_right: 873,
            boards: vec![BoardFigures {
                board: Board::Mps2An386,
                compiler: "rustc 1.95.0".into(),
                instructions: 1_110_000,
                stack_bytes: 4000,
                firmware_flash_bytes: 40_000,
                layers: vec![("conv1".into(), 1_000_000), ("pool".into(), 10_000), ("fc".into(), 100_000)],
            }],
        }
    }

    /// The report of a model that is changed in one way.
    fn report(change: impl Fn(&mut Figures)) -> Report {
        let mut now = figures();
        change(&mut now);
        compare(Some(&figures()), &now, &[], Tolerances::default())
    }

    fn request(record: bool) -> Request {
        Request {
            model: "m.adq".into(),
            set: SetSpec::SYNTHETIC,
            baseline: "gate.json".into(),
            boards: Vec::new(),
            images: None,
            limit: None,
            tolerances: Tolerances::default(),
            record,
        }
    }

    #[test]
    fn what_is_the_same_passes() {
        let same = report(|_| {});
        assert!(same.passed && same.parity && same.regressions.is_empty() && same.notes.is_empty());
        same.check(&request(false)).unwrap();
        assert_eq!(
            same.to_string(),
            "**adcorda gate: passed.** `tiny` on 1,000 images of synthetic/test, 4 of them on a board\n\n\
            | metric | baseline | now | change | verdict |\n\
            |---|---:|---:|---:|---|\n\
            | top-1 | 87.30 % | 87.30 % | 0 | same |\n\
            | `.adq` bytes | 5,960 | 5,960 | 0 | same |\n\
            | weight bytes | 4,000 | 4,000 | 0 | same |\n\
            | arena bytes | 6,400 | 6,400 | 0 | same |\n\
            | mps2-an386: parity with the host | holds | holds |  | same |\n\
            | mps2-an386: instructions | 1,110,000 | 1,110,000 | 0 | same |\n\
            | mps2-an386: stack bytes | 4,000 | 4,000 | 0 | same |\n\
            | mps2-an386: firmware flash bytes | 40,000 | 40,000 | 0 | same |\n"
        );
    }

    /// Each figure at its tolerance and one beyond it.
    #[test]
    fn a_tolerance_is_allowed_and_one_more_is_not() {
        type Set = fn(&mut Figures, u64);
        let cases: [(&str, Set, u64, u64, &str); 8] = [
            ("top-1", |f, v| f.top1_right = v as usize, 868, 867, "within 0.5 points"),
            ("`.adq` bytes", |f, v| f.model.model_bytes = v as usize, 5960, 5961, "same"),
            ("weight bytes", |f, v| f.model.weight_bytes = v as usize, 4000, 4001, "same"),
            ("arena bytes", |f, v| f.model.arena_bytes = v as usize, 6400, 6401, "same"),
            (
                "mps2-an386: instructions",
                |f, v| f.boards[0].instructions = v,
                1_121_100,
                1_121_101,
                "within 1 %",
            ),
            (
                "mps2-an386: instructions of `pool`",
                |f, v| f.boards[0].layers[1].1 = v,
                10_100,
                10_101,
                "within 1 %",
            ),
            (
                "mps2-an386: stack bytes",
                |f, v| f.boards[0].stack_bytes = v as usize,
                4200,
                4201,
                "within 5 %",
            ),
            (
                "mps2-an386: firmware flash bytes",
                |f, v| f.boards[0].firmware_flash_bytes = v as usize,
                42_000,
                42_001,
                "within 5 %",
            ),
        ];
        for (title, set, at_most, too_much, allowed) in cases {
            let fine = report(|figures| set(figures, at_most));
            assert!(fine.passed, "{title}: {:?}", fine.regressions);
            let metric = fine.metrics.iter().find(|metric| metric.title() == title).unwrap();
            assert_eq!(metric.judgement(), allowed, "{title}");
            let bad = report(|figures| set(figures, too_much));
            assert!(!bad.passed && bad.parity);
            assert_eq!(bad.regressions, [title]);
            let error = bad.check(&request(false)).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Regression, 13));
            assert_eq!(
                error.to_string(),
                format!(
                    "m.adq is worse than gate.json allows: {title}\nremedy: mend it; where it is meant, record it and say why: \
                    adcorda gate m.adq --data synthetic --baseline gate.json --record"
                )
            );
        }
    }

    #[test]
    fn what_is_worse_and_what_is_better_is_in_the_table() {
        let report = report(|figures| {
            figures.top1_right = 850;
            figures.model.model_bytes = 7000;
            figures.model.arena_bytes = 6000;
            figures.boards[0].instructions = 1_050_000;
            figures.boards[0].stack_bytes = 4008;
            figures.boards[0].compiler = "rustc 1.96.0".into();
            figures.boards[0].layers = vec![("conv1".into(), 930_000), ("fc".into(), 102_000), ("a|`b".into(), 18_000)];
        });
        assert_eq!(
            report.regressions,
            ["top-1", "`.adq` bytes", "mps2-an386: instructions of `fc`"]
        );
        assert_eq!(
            report.to_string(),
            "**adcorda gate: failed.** `tiny` on 1,000 images of synthetic/test, 4 of them on a board\n\n\
            | metric | baseline | now | change | verdict |\n\
            |---|---:|---:|---:|---|\n\
            | top-1 | 87.30 % | 85.00 % | -2.30 points | **worse**, 0.5 points allowed |\n\
            | `.adq` bytes | 5,960 | 7,000 | +1,040 (+17.45 %) | **worse**, 0 % allowed |\n\
            | weight bytes | 4,000 | 4,000 | 0 | same |\n\
            | arena bytes | 6,400 | 6,000 | -400 (-6.25 %) | better |\n\
            | mps2-an386: parity with the host | holds | holds |  | same |\n\
            | mps2-an386: instructions | 1,110,000 | 1,050,000 | -60,000 (-5.41 %) | better |\n\
            | mps2-an386: instructions of `conv1` | 1,000,000 | 930,000 | -70,000 (-7.00 %) | better |\n\
            | mps2-an386: instructions of `fc` | 100,000 | 102,000 | +2,000 (+2.00 %) | **worse**, 1 % allowed |\n\
            | mps2-an386: instructions of `a??b` | - | 18,000 |  | new |\n\
            | mps2-an386: instructions of `pool` | 10,000 | - |  | gone |\n\
            | mps2-an386: stack bytes | 4,000 | 4,008 | +8 (+0.20 %) | within 5 % |\n\
            | mps2-an386: firmware flash bytes | 40,000 | 40,000 | 0 | same |\n\n\
            - mps2-an386: the firmware was built by rustc 1.96.0, that of the baseline by rustc 1.95.0: instructions, stack and \
            flash can differ for that alone\n"
        );
    }

    #[test]
    fn an_improvement_passes_and_asks_to_be_recorded() {
        let mut better = report(|figures| figures.top1_right = 880);
        assert!(better.passed);
        let table = better.to_string();
        assert!(
            table.contains("| top-1 | 87.30 % | 88.00 % | +0.70 points | better |\n"),
            "{table}"
        );
        let note = "- some of it is better than the baseline: `--record` keeps it so";
        assert!(table.contains(note), "{table}");
        better.recorded = true;
        let table = better.to_string();
        assert!(
            !table.contains(note) && table.starts_with("**adcorda gate: recorded.**"),
            "{table}"
        );
    }

    #[test]
    fn a_byte_that_differs_fails_whatever_is_tolerated() {
        let mut now = figures();
        now.boards.clear();
        let said =
            "model a|`b: image 0, layer 1 \"pool\": the output's CRC is 1 on the board, 2 on the host\nremedy: report it";
        let tolerances = Tolerances {
            accuracy: 100.0,
            instructions: 1e9,
            size: 1e9,
            firmware: 1e9,
        };
        let report = compare(Some(&figures()), &now, &[(Board::Mps2An386, said.into())], tolerances);
        assert!(!report.parity && !report.passed);
        let table = report.to_string();
        assert!(
            table.contains("| mps2-an386: parity with the host | holds | differs |  | **differs** |"),
            "{table}"
        );
        // Names are a stranger's, and the table is shown as Markdown.
        assert!(table.contains("`model a??b: image 0"), "{table}");
        assert!(table.ends_with("2 on the host; remedy: report it`\n"), "{table}");
        for record in [false, true] {
            let error = report.check(&request(record)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Parity);
            assert_eq!(error.to_string().contains("is not recorded"), record, "{error}");
        }
    }

    #[test]
    fn without_a_baseline_all_is_new() {
        let report = compare(None, &figures(), &[], Tolerances::default());
        assert!(report.passed);
        assert!(
            report.metrics.iter().all(|metric| metric.verdict == Verdict::New),
            "{report:?}"
        );
        let table = report.to_string();
        assert!(table.contains("| top-1 | - | 87.30 % |  | new |"), "{table}");
        assert!(!table.contains("conv1"), "nothing to compare layers with:\n{table}");
    }

    #[test]
    fn scripts_find_their_keys() {
        let json = serde_json::to_value(report(|figures| figures.boards[0].layers[1].1 = 20_000)).unwrap();
        assert_eq!(
            (&json["passed"], &json["parity"], &json["recorded"]),
            (&false.into(), &true.into(), &false.into())
        );
        assert_eq!(json["regressions"], serde_json::json!(["mps2-an386: instructions of `pool`"]));
        let metrics = json["metrics"].as_array().unwrap();
        assert_eq!(metrics.len(), 11);
        assert_eq!(
            metrics[7],
            serde_json::json!({
                "metric": "instructions", "board": "mps2-an386", "layer": "pool", "baseline": 10_000, "now": 20_000,
                "verdict": "worse", "tolerance": 1.0
            })
        );
        assert_eq!((&metrics[0]["metric"], &metrics[0]["now"]), (&"top1".into(), &87.3.into()));
        assert_eq!((&metrics[4]["metric"], &metrics[4]["now"]), (&"parity".into(), &true.into()));
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.json");
        save(&path, &figures()).unwrap();
        assert_eq!(load(&path).unwrap(), figures());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("{\n  \"format\": \"adcorda gate baseline\",\n  \"version\": 1,\n"),
            "{text}"
        );
        assert!(
            text.contains("\"conv1\": 1000000,\n        \"pool\": 10000,\n"),
            "in their order: {text}"
        );

        let half = text[..text.len() / 2].to_owned();
        for (old, new, said) in [
            (
                "\"version\": 1",
                "\"version\": 2",
                "version 2, not 1: a newer adcorda wrote it\nremedy: update adcorda",
            ),
            ("\"version\": 1", "\"version\": 0", "there is no such version"),
            ("gate baseline", "recipe", "its format is \"adcorda recipe\""),
            ("\"format\"", "\"kind\"", "not a gate's baseline: missing field `format`"),
            ("\"top1_right\": 873", "\"top1_right\": 1001", "1001 right"),
            ("\"device_images\": 4", "\"device_images\": 0", "0 on a board"),
            ("\"instructions\": 1110000", "\"instructions\": -1", "invalid value"),
            ("\"stack_bytes\"", "\"stack\"", "unknown field `stack`"),
            ("mps2-an386", "mps2-an999", "no board is called \"mps2-an999\""),
            (&text, &half, "not a gate's baseline: EOF"),
        ] {
            std::fs::write(&path, text.replacen(old, new, 1)).unwrap();
            let error = load(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Baseline, "{error}");
            let shown = error.to_string();
            assert!(
                shown.contains("gate.json") && shown.contains(said),
                "{shown} does not say {said}"
            );
            assert!(shown.contains("--record"), "{shown}");
        }
        let mut boards = figures();
        boards.boards.push(boards.boards[0].clone());
        save(&path, &boards).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("mps2-an386 is there twice"));
        boards.boards.clear();
        save(&path, &boards).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("names no board"));

        let error = load(&folder.path().join("none.json")).unwrap_err();
        assert_eq!(error.exit_code(), 14);
        assert!(error.to_string().starts_with("there is no baseline "), "{error}");
    }

    #[test]
    fn a_baseline_of_something_else_is_not_compared_with() {
        let baseline = figures();
        let differs = |change: fn(&mut Figures), boards: &[Board]| {
            let mut subject = figures();
            change(&mut subject);
            baseline.check_same(&subject, boards).unwrap_err()
        };
        let m4 = [Board::Mps2An386];
        assert_eq!(baseline.check_same(&figures(), &m4), Ok(()));
        assert_eq!(
            differs(|f| f.set.name = "cifar10/test".into(), &m4),
            "recorded on synthetic/test, not on cifar10/test"
        );
        assert_eq!(
            differs(|f| f.set.images = 64, &m4),
            "recorded on 1000 images of synthetic/test, not on 64"
        );
        assert_eq!(
            differs(|f| f.set.crc32 = "00000000".into(), &m4),
            "recorded on other images of synthetic/test: their CRC-32 is 0123abcd, that of the images given 00000000"
        );
        assert_eq!(
            differs(|f| f.device_images = 8, &m4),
            "recorded with 4 images on a board, not with 8"
        );
        assert_eq!(
            differs(|f| f.model.input = [10, 8, 3], &m4),
            "recorded of a model from 32x32x3 to 10 classes, not from 10x8x3 to 10 classes"
        );
        assert_eq!(
            differs(|_| {}, &[Board::Mps2An386, Board::Mps3An547]),
            "recorded on mps2-an386, not on mps3-an547"
        );
    }

    #[test]
    fn the_line_that_records_keeps_what_was_asked_for() {
        let mut request = request(false);
        request.boards = vec![Board::Mps2An386, Board::Mps3An547];
        (request.images, request.limit) = (Some(8), Some(100));
        assert_eq!(
            request.record_line(),
            "adcorda gate m.adq --data synthetic --baseline gate.json --board mps2-an386 --board mps3-an547 --images 8 --limit 100 \
            --record"
        );
    }

    #[test]
    fn boards_not_given_are_those_of_the_baseline() {
        let mut request = request(false);
        assert_eq!(request.boards(None), [Board::Mps2An386]);
        let mut baseline = figures();
        baseline.boards[0].board = Board::Mps3An547;
        assert_eq!(request.boards(Some(&baseline)), [Board::Mps3An547]);
        request.boards = vec![Board::Mps2An505, Board::Mps2An500, Board::Mps2An505];
        assert_eq!(request.boards(Some(&baseline)), [Board::Mps2An505, Board::Mps2An500]);
    }

    #[test]
    fn what_cannot_be_asked_for_is_said_before_anything_runs() {
        let folder = tempfile::tempdir().unwrap();
        let mut request = request(true);
        request.baseline = folder.path().join("gate.json");
        request.model = folder.path().join("m.adq");
        request.set = "synthetic:8x8".parse().unwrap();
        let said = |request: &Request| {
            let error = gate(request, |_, _| {}).unwrap_err();
            assert!(!request.baseline.exists());
            (error.kind(), error.to_string())
        };
        assert_eq!(said(&request).0, ErrorKind::Io);
        let model = export(&every_op(Width::W2, 0), &ExportOptions::default()).unwrap().bytes;
        std::fs::write(&request.model, &model).unwrap();
        let (kind, text) = said(&request);
        assert_eq!(kind, ErrorKind::Data);
        assert!(text.contains("its images are 32x32x3, not 10x8x3"), "{text}");
        for tolerance in [-1.0, f64::NAN, f64::INFINITY] {
            let mut request = request.clone();
            request.tolerances.size = tolerance;
            let (kind, text) = said(&request);
            assert_eq!(kind, ErrorKind::Usage);
            assert!(text.contains(&format!("--size-tolerance {tolerance} ")), "{text}");
        }
        request.record = false;
        assert_eq!(said(&request).0, ErrorKind::Baseline);
    }

    #[test]
    fn counts_are_read_by_people() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_501_632, "12,501,632")] {
            assert_eq!(Figure::Count(count).to_string(), text);
        }
    }
}
