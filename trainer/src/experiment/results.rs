//! What a cell gave, as a file; and the cells of one or several folders brought together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{Cell, Place, Table};
use crate::file::{read, write_atomic};
use crate::refine::CorrectionReport;
use crate::run_folder::differ;
use crate::{Error, ErrorKind, Result};

/// `result.json` of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Where in the table it belongs.
    pub place: Place,
    /// What was run, as the table says it.
    pub config: Value,
    /// What was measured, as the table says it.
    pub measure: Value,
    /// With what, and on what.
    pub provenance: Provenance,
    /// What it gave.
    pub outcome: Outcome,
}

/// With what a cell was run, and on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this program.
    pub adcorda: String,
    /// Its commit, where the build was told.
    pub commit: Option<String>,
    /// Device.
    pub device: String,
    /// Test images.
    pub data: String,
    /// Fingerprint of the float network and all training images.
    pub float: String,
    /// Top-1 of the float network on the test images, in per cent.
    pub float_top1: f64,
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Measured(Box<Measured>),
    /// In a way that another run would repeat: it diverged, say, or nothing could be corrected.
    Failed(Failure),
}

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What a user would have read.
    pub error: String,
    /// What a script would have seen.
    pub exit_code: u8,
}

/// Figures of a cell. Top-1 in per cent, on the test images where nothing else is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Of the cell's start; of a start, that of the float network, or, where it is trained, that after PTQ.
    pub before_top1: f64,
    /// Of the checkpoint kept. Measured once, at the end.
    pub top1: f64,
    /// On the validation images; of nothing that was not trained.
    pub validation_before_top1: Option<f64>,
    /// On the validation images, of the checkpoint kept.
    pub validation_top1: Option<f64>,
    /// Passes spent, prediction, attacks and teacher included.
    pub passes: f64,
    /// Seconds of the training.
    pub seconds: f64,
    /// Which test images are right.
    pub correct: Bits,
    /// The same at the end of the schedule, whatever was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct_at_end: Option<Bits>,
    /// What was corrected.
    pub correction: Option<CorrectionReport>,
    /// Of the exported model, in the runtime.
    pub integer_top1: Option<f64>,
    /// Report of the attacks, by model: `fake-quant`, `integer`.
    pub robustness: BTreeMap<String, Value>,
    /// What a reader of the figures should know.
    pub notes: Vec<String>,
}

/// A yes or no for every test image; written as hexadecimal, the first image in the highest bit of the first digit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bits {
    bits: Vec<bool>,
}

impl Bits {
    /// Which of `predicted` are the `labels`.
    pub fn of(predicted: &[u16], labels: &[u16]) -> Self {
        Self {
            bits: predicted.iter().zip(labels).map(|(a, b)| a == b).collect(),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Share of yes, in per cent; 0 of none.
    pub fn percent(&self) -> f64 {
        let yes = self.bits.iter().filter(|&&bit| bit).count();
        100.0 * yes as f64 / self.len().max(1) as f64
    }

    /// How many are yes here and no there, and the other way round.
    pub fn against(&self, other: &Self) -> (u64, u64) {
        let mut counts = (0, 0);
        for (a, b) in self.bits.iter().zip(&other.bits) {
            counts.0 += u64::from(*a && !*b);
            counts.1 += u64::from(!*a && *b);
        }
        counts
    }
}

impl From<Bits> for String {
    fn from(Bits { bits }: Bits) -> Self {
        let digit = |four: &[bool]| {
            let value = (0..4).fold(0, |value, i| 2 * value + u32::from(four.get(i) == Some(&true)));
            char::from_digit(value, 16).unwrap_or_default()
        };
        format!("{}:{}", bits.len(), bits.chunks(4).map(digit).collect::<String>())
    }
}

impl TryFrom<String> for Bits {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let damaged = || format!("\"{text:.20}\" is no count and hexadecimal digits");
        let (len, digits) = text.split_once(':').ok_or_else(damaged)?;
        let len: usize = len.parse().map_err(|_| damaged())?;
        let mut bits = Vec::with_capacity(4 * digits.len());
        for digit in digits.chars() {
            let value = digit.to_digit(16).ok_or_else(damaged)?;
            bits.extend([8, 4, 2, 1].map(|bit| value & bit != 0));
        }
        if len.div_ceil(4) != digits.len() || bits[len..].contains(&true) {
            return Err(damaged());
        }
        bits.truncate(len);
        Ok(Self { bits })
    }
}

/// Folder of a cell's own files.
pub(super) fn cell_folder(folder: &Path, cell: &Cell) -> PathBuf {
    folder.join("cells").join(cell.name())
}

/// Reads `file` of `folder`, JSON that [`write_json`] wrote; `None` where it is not there.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(folder: &Path, file: &str) -> Result<Option<T>> {
    let path = folder.join(file);
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_slice(&read(&path)?).map(Some).map_err(|cause| {
        Error::new(
            ErrorKind::Usage,
            format!("{}: not a result of this program: {cause}", path.display()),
        )
        .remedy("delete that file to have it made again")
    })
}

/// Replaces `file` of `folder` in one step.
pub(super) fn write_json(folder: &Path, file: &str, value: &impl Serialize) -> Result<()> {
    let path = folder.join(file);
    let fail = |cause: serde_json::Error| Error::io("write", &path, cause.into());
    let mut bytes = serde_json::to_vec_pretty(value).map_err(fail)?;
    bytes.push(b'\n');
    write_atomic(&path, &bytes)
}

/// The result of a cell in a folder, where it is there; whether it is of this very table is for the caller to ask.
pub(super) fn load(folder: &Path, cell: &Cell) -> Result<Option<CellResult>> {
    read_json(&cell_folder(folder, cell), "result.json")
}

impl CellResult {
    /// Whether this is what the table now asks of the cell, measurements aside.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the cell and what differs.
    pub fn check(&self, cell: &Cell, folder: &Path) -> Result<()> {
        let mut differences = Vec::new();
        let config = reread(&cell.config())?;
        differ("", &self.config, &config, &mut differences);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Usage,
            format!(
                "cell {} in {} was run with other options: {}",
                cell.name(),
                folder.display(),
                differences.join("; ")
            ),
        )
        .remedy("give it another `label` in the table, delete its folder to run it anew, or name another folder with -o"))
    }

    /// What two runs of the cell on one kind of device have alike.
    fn reproducible(&self) -> Self {
        let mut result = self.clone();
        if let Outcome::Measured(measured) = &mut result.outcome {
            measured.seconds = 0.0;
        }
        result.provenance.commit = None;
        result
    }
}

/// As JSON reads it: a number's type can change on that way.
pub(super) fn reread(value: &Value) -> Result<Value> {
    serde_json::from_str(&value.to_string()).map_err(|cause| Error::new(ErrorKind::Usage, cause.to_string()))
}

/// The results of a table, as far as they are there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// By the name of the cell.
    pub cells: BTreeMap<String, CellResult>,
    /// Names of the cells without one.
    pub missing: Vec<String>,
}

impl Results {
    /// Reads what `folders` hold of `table`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the cells that were run with other options, on other data, with another float network or by
    /// another version, that are in two folders with different results, or that are in a folder and not in the table.
    pub fn collect(table: &Table, folders: &[PathBuf]) -> Result<Self> {
        let fail = |what: String, remedy: &str| Err(Error::new(ErrorKind::Usage, what).remedy(remedy));
        let mut results = Self::default();
        for cell in table.cells() {
            let mut found: Option<(CellResult, &PathBuf)> = None;
            for folder in folders {
                let Some(result) = load(folder, &cell)? else { continue };
                result.check(&cell, folder)?;
                match &found {
                    None => found = Some((result, folder)),
                    Some((first, place)) if first.reproducible() != result.reproducible() => {
                        return fail(
                            format!(
                                "cell {} has one result in {} and another in {}",
                                cell.name(),
                                place.display(),
                                folder.display()
                            ),
                            "delete its folder in one of them",
                        );
                    }
                    Some(_) => {}
                }
            }
            match found {
                Some((result, _)) => {
                    results.cells.insert(cell.name(), result);
                }
                None => results.missing.push(cell.name()),
            }
        }
        results.agree()?;
        Ok(results)
    }

    /// Whether all cells are of one program, one data set, and each network of one float checkpoint.
    fn agree(&self) -> Result<()> {
        for (name, result) in &self.cells {
            let same_network = |other: &&CellResult| other.place.network == result.place.network;
            // Compared with the first: the order of names is no matter.
            let (Some(first), Some(sister)) = (self.cells.values().next(), self.cells.values().find(same_network)) else {
                continue;
            };
            let (a, b) = (&result.provenance, &first.provenance);
            let difference = if a.data != b.data {
                format!("data: {} and {}", a.data, b.data)
            } else if a.adcorda != b.adcorda {
                format!("versions: {} and {}", a.adcorda, b.adcorda)
            } else if a.float != sister.provenance.float {
                "float networks or training images".to_owned()
            } else {
                continue;
            };
            let other = if a.data == b.data && a.adcorda == b.adcorda {
                sister
            } else {
                first
            };
            return Err(Error::new(
                ErrorKind::Usage,
                format!("cells {name} and {} are of different {difference}", other.name()),
            )
            .remedy(
                "run one of them anew; where a float network is trained by the table, train it once and give it to every \
                 machine with --float NAME=CKPT",
            ));
        }
        Ok(())
    }
}

impl CellResult {
    /// Name of the cell.
    pub fn name(&self) -> String {
        let Place {
            network,
            start,
            images,
            arm,
            seed,
        } = &self.place;
        format!("{network}_{start}_{images}_seed{seed}_{arm}")
    }

    /// The figures, where there are some.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }
}

/// Names of the cells in `folder` that `table` does not have.
///
/// # Errors
/// [`ErrorKind::Io`] where the folder cannot be read.
pub fn strangers(table: &Table, folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("cells");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&path).map_err(|cause| Error::io("read", &path, cause))?;
    let known: Vec<String> = table.cells().iter().map(Cell::name).collect();
    let mut strangers: Vec<String> = (entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !known.contains(name))
        .collect();
    strangers.sort();
    Ok(strangers)
}

/// Brings the cells of `folders` together in `into`.
///
/// # Errors
/// As [`Results::collect`], and where a folder has a cell that the table has not.
pub fn merge(table: &Table, folders: &[PathBuf], into: &Path) -> Result<Results> {
    for folder in folders {
        if !folder.join("cells").is_dir() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} is no folder of an experiment: it has no cells", folder.display()),
            )
            .remedy("name folders that `adcorda experiment -o` wrote"));
        }
        let strangers = strangers(table, folder)?;
        if !strangers.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{} is of another table: it has {}, and {} has not",
                    folder.display(),
                    strangers.join(", "),
                    table.name
                ),
            )
            .remedy("merge it with the table that it was run with"));
        }
    }
    let results = Results::collect(table, folders)?;
    for (name, result) in &results.cells {
        let folder = into.join("cells").join(name);
        std::fs::create_dir_all(&folder).map_err(|cause| Error::io("create folder", &folder, cause))?;
        write_json(&folder, "result.json", result)?;
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{TABLE, result};
    use super::*;

    #[test]
    fn bits_come_back() {
        let bits = Bits::of(&[1, 2, 3, 4, 5, 6], &[1, 2, 0, 4, 0, 6]);
        assert_eq!(bits.percent(), 100.0 * 4.0 / 6.0);
        let text = String::from(bits.clone());
        assert_eq!(text, "6:d4");
        assert_eq!(Bits::try_from(text).unwrap(), bits);
        let other = Bits::of(&[1, 1, 1, 1, 1, 1], &[1, 0, 1, 0, 0, 1]);
        assert_eq!((bits.against(&other), other.against(&bits)), ((2, 1), (1, 2)));
        let none = Bits::of(&[], &[]);
        assert_eq!((none.len(), none.percent(), none.is_empty()), (0, 0.0, true));
        assert_eq!(Bits::try_from(String::from(none.clone())).unwrap(), none);
        for damaged in ["", "6", "6:d", "6:d44", "6:dx", "6:d5", "x:d4"] {
            assert!(Bits::try_from(damaged.to_owned()).is_err(), "{damaged}");
        }
    }

    /// Writes the result of every `step`-th cell into a new folder.
    fn folder(table: &Table, first: usize, step: usize, change: impl Fn(&mut CellResult)) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (i, cell) in table.cells().iter().enumerate().skip(first).step_by(step) {
            let path = cell_folder(folder.path(), cell);
            std::fs::create_dir_all(&path).unwrap();
            let mut result = result(cell, i);
            change(&mut result);
            write_json(&path, "result.json", &result).unwrap();
        }
        folder
    }

    fn paths(folders: &[&tempfile::TempDir]) -> Vec<PathBuf> {
        folders.iter().map(|folder| folder.path().to_owned()).collect()
    }

    #[test]
    fn parts_give_the_whole() {
        let table = Table::parse(TABLE).unwrap();
        let whole = folder(&table, 0, 1, |_| {});
        let expected = Results::collect(&table, &paths(&[&whole])).unwrap();
        assert_eq!((expected.cells.len(), expected.missing.len()), (6, 0));
        let (even, odd) = (folder(&table, 0, 2, |_| {}), folder(&table, 1, 2, |_| {}));
        let into = tempfile::tempdir().unwrap();
        assert_eq!(merge(&table, &paths(&[&odd, &even]), into.path()).unwrap(), expected);
        // Merged folders can be merged again, and cells may be there twice.
        assert_eq!(merge(&table, &paths(&[&even, &into]), into.path()).unwrap(), expected);
        let half = Results::collect(&table, &paths(&[&even])).unwrap();
        assert_eq!((half.cells.len(), half.missing.len()), (3, 3));
        assert_eq!(half.missing[0], "tiny_w2-ptq_all_seed2_start");
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let table = Table::parse(TABLE).unwrap();
        let first = folder(&table, 0, 6, |_| {});
        let into = tempfile::tempdir().unwrap();
        let refusal = |other: &tempfile::TempDir, table: &Table| {
            let error = merge(table, &paths(&[&first, other]), into.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            error.to_string()
        };
        let refused = |change: fn(&mut CellResult), parts: &[&str]| {
            let text = refusal(&folder(&table, 1, 6, change), &table);
            for part in parts {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
        };
        refused(
            |result| result.provenance.data = "cifar10/test".into(),
            &["seed2_start", "data", "cifar10/test"],
        );
        refused(|result| result.provenance.adcorda = "0.2.0".into(), &["versions", "0.2.0"]);
        refused(|result| result.provenance.float = "g".into(), &["float networks", "--float"]);
        refused(
            |result| result.config["limit"] = 7.into(),
            &["seed2_start", "limit is 7 there and null here", "label"],
        );
        let twice = folder(&table, 0, 6, |result| {
            if let Outcome::Measured(measured) = &mut result.outcome {
                measured.passes = 1.0;
            }
        });
        assert!(refusal(&twice, &table).contains("tiny_w2-ptq_all_seed1_start has one result in"));

        let all = folder(&table, 0, 1, |_| {});
        let other = Table::parse(&TABLE.replace("arm = \"adcorda\"", "arm = \"drop\"")).unwrap();
        let text = refusal(&all, &other);
        assert!(
            text.contains("tiny_w2-ptq_all_seed1_adcorda, tiny_w2-ptq_all_seed2_adcorda"),
            "{text}"
        );
        let changed = Table::parse(&TABLE.replace("arm = \"adcorda\"", "arm = \"adcorda\"\nmargin = 9")).unwrap();
        assert!(refusal(&all, &changed).contains("options.attack.margin is 2.0 there and 9.0 here"));
        assert!(refusal(&tempfile::tempdir().unwrap(), &table).contains("no cells"));
    }

    #[test]
    fn a_damaged_result_is_named() {
        let table = Table::parse(TABLE).unwrap();
        let folder = folder(&table, 0, 1, |_| {});
        let path = folder.path().join("cells/tiny_w2-ptq_all_seed1_start/result.json");
        std::fs::write(&path, "{").unwrap();
        let error = Results::collect(&table, &paths(&[&folder])).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}
