//! A run's folder: what was asked for, what happened, and what a killed run continues from.
//!
//! | file | what |
//! |---|---|
//! | `config.json` | every option, written before anything else; the same command finds its run again by it |
//! | `lock` | held while a process works here |
//! | `<track>/metrics.jsonl` | one JSON object a line |
//! | `<track>/last.safetensors` | where training stands: weights, statistics, optimizer, progress, in one file |
//! | `<track>/best.safetensors` | the best checkpoint by validation |
//!
//! A track is one training within the run; its folder may be the run's own. Every file but the metrics is replaced in one
//! step, and the metrics are cut back to the checkpoint when a run continues, so a kill at any moment costs at most the
//! epoch at hand.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::file::{TEMPORARY, read, write_atomic};
use crate::{Error, ErrorKind, Result};

/// A run folder that this process holds.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    // Released by the operating system when the run ends, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder, or opens it to continue the run in it.
    ///
    /// `config` is everything that decides what the run computes. It is stored with this program's version and compared when
    /// the folder is opened again.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where another process holds the folder, where it is the run of another config (naming what
    /// differs), or where it is a folder of something else; [`ErrorKind::Io`] where it cannot be written.
    pub fn open(path: impl AsRef<Path>, config: &impl Serialize) -> Result<Self> {
        Self::open_locked(path.as_ref().to_owned(), config, Busy::Refuse)
    }

    /// As [`open`](Self::open), but waits where another process holds the folder: for work that several share.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_or_wait(path: impl AsRef<Path>, config: &impl Serialize) -> Result<Self> {
        Self::open_locked(path.as_ref().to_owned(), config, Busy::Wait)
    }

    fn open_locked(path: PathBuf, config: &impl Serialize, busy: Busy) -> Result<Self> {
        let config = serde_json::json!({
            "adcorda": env!("CARGO_PKG_VERSION"),
            "config": serde_json::to_value(config).map_err(|cause| {
                Error::new(ErrorKind::Usage, format!("the config of {} cannot be stored: {cause}", path.display()))
            })?,
        });
        let config_path = path.join("config.json");
        if busy == Busy::Refuse && !config_path.exists() {
            refuse_foreign(&path)?;
        }
        std::fs::create_dir_all(&path).map_err(|cause| {
            Error::io("create folder", &path, cause).remedy("name an output folder that can be written, with -o")
        })?;
        let lock = lock(&path, busy)?;
        if busy == Busy::Wait && !config_path.exists() {
            // Not before: what another process is just writing is not foreign.
            refuse_foreign(&path)?;
        }
        if config_path.exists() {
            compare_config(&path, &config_path, &config)?;
        } else {
            write_atomic(&config_path, format!("{config:#}\n").as_bytes())?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The track in sub-folder `name`, made where it is missing; the run's own folder where `name` is empty.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the folder cannot be made.
    pub fn track(&self, name: &str) -> Result<Track> {
        let folder = self.path.join(name);
        std::fs::create_dir_all(&folder).map_err(|cause| Error::io("create folder", &folder, cause))?;
        Ok(Track { folder })
    }
}

/// One training within a run.
#[derive(Clone, Debug)]
pub struct Track {
    folder: PathBuf,
}

impl Track {
    /// The track's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The best checkpoint's file.
    pub fn best(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    /// The file to continue from.
    pub fn last(&self) -> PathBuf {
        self.folder.join("last.safetensors")
    }

    /// The metrics' file.
    pub fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    /// Replaces the file to continue from.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; the previous file is then still whole.
    pub(crate) fn save_last(&self, checkpoint: &Checkpoint, progress: &impl Serialize, optimizer: Vec<u8>) -> Result<()> {
        let progress = serde_json::to_vec(progress)
            .map_err(|cause| Error::new(ErrorKind::Weights, format!("{}: {cause}", self.last().display())))?;
        let extra = BTreeMap::from([("progress".to_owned(), progress), ("optimizer".to_owned(), optimizer)]);
        checkpoint.save_with(self.last(), &extra)
    }

    /// What [`save_last`](Self::save_last) wrote; `None` where it never did.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] where the file is damaged.
    pub(crate) fn load_last<P: DeserializeOwned>(&self) -> Result<Option<(Checkpoint, P, Vec<u8>)>> {
        let path = self.last();
        if !path.exists() {
            return Ok(None);
        }
        let (checkpoint, mut extra) = Checkpoint::load_with(&path)?;
        let damaged = |what: &str| {
            Error::new(ErrorKind::Weights, format!("{}: {what}", path.display())).remedy("delete the run folder to start over")
        };
        let optimizer = extra
            .remove("optimizer")
            .ok_or_else(|| damaged("it holds no optimizer state"))?;
        let progress = extra.remove("progress").ok_or_else(|| damaged("it holds no progress"))?;
        let progress = serde_json::from_slice(&progress).map_err(|_| damaged("its progress is damaged"))?;
        Ok(Some((checkpoint, progress, optimizer)))
    }

    /// Opens the metrics to append to, without the lines of steps after `step`, nor a line that a kill cut short.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn metrics_until(&self, step: usize) -> Result<Metrics> {
        let path = self.metrics();
        let mut kept = Vec::new();
        if path.exists() && step > 0 {
            for line in read(&path)?.split_inclusive(|&byte| byte == b'\n') {
                let value: Value = serde_json::from_slice(line).unwrap_or_default();
                if line.ends_with(b"\n") && value["step"].as_u64().is_some_and(|s| s <= step as u64) {
                    kept.extend_from_slice(line);
                }
            }
        }
        write_atomic(&path, &kept)?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(|cause| Error::io("write", &path, cause))?;
        Ok(Metrics { path, file })
    }
}

/// An open `metrics.jsonl`.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Appends one line.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn append(&mut self, metric: &impl Serialize) -> Result<()> {
        let fail = |cause: std::io::Error| Error::io("write", &self.path, cause).remedy("check that there is space left");
        let mut line = serde_json::to_vec(metric).map_err(|cause| fail(cause.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(fail)
    }
}

/// An existing folder with other people's files is not taken for a new run.
fn refuse_foreign(path: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => {
            return Err(Error::io("open run folder", path, cause).remedy("name a new folder with -o"));
        }
    };
    // A kill while the config was written leaves a temporary file.
    let ours = |name: &std::ffi::OsStr| name == "lock" || name.to_string_lossy().starts_with(TEMPORARY);
    match entries.flatten().find(|entry| !ours(&entry.file_name())) {
        None => Ok(()),
        Some(entry) => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{} is not a run folder: it holds {} but no config.json",
                path.display(),
                entry.file_name().display()
            ),
        )
        .remedy("name a new or empty folder with -o")),
    }
}

/// What to do where another process holds a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Refuse,
    Wait,
}

fn lock(folder: &Path, busy: Busy) -> Result<File> {
    let path = folder.join("lock");
    let fail = |cause| Error::io("write", &path, cause).remedy("check that the folder is writable and has space left");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(fail)?;
    if busy == Busy::Wait {
        return file.lock().map(|()| file).map_err(fail);
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Usage,
            format!("another process is working in {}", folder.display()),
        )
        .remedy("wait for it, or name another folder with -o")),
        Err(TryLockError::Error(cause)) => Err(fail(cause)),
    }
}

fn compare_config(folder: &Path, path: &Path, config: &Value) -> Result<()> {
    let stored: Value = serde_json::from_slice(&read(path)?).map_err(|cause| {
        Error::new(ErrorKind::Usage, format!("{}: not JSON: {cause}", path.display()))
            .remedy("delete the run folder, or name another one with -o")
    })?;
    // Both sides as read from text: a number's last bit can change on that way.
    let config: Value = serde_json::from_str(&config.to_string()).unwrap_or_default();
    let mut differences = Vec::new();
    differ("", &stored, &config, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "{} is the folder of another run: {}",
            folder.display(),
            differences.join("; ")
        ),
    )
    .remedy("give the same options to continue that run, or name another folder with -o"))
}

/// Lists where two configs differ, by the path of keys.
pub(crate) fn differ(at: &str, stored: &Value, now: &Value, differences: &mut Vec<String>) {
    if let (Value::Object(a), Value::Object(b)) = (stored, now) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let at = match at {
                // The two outermost levels are this file's own.
                "" | "config" => key.clone(),
                at => format!("{at}.{key}"),
            };
            let side = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
            differ(&at, &side(a), &side(b), differences);
        }
    } else if stored != now {
        differences.push(format!("{at} is {stored} there and {now} here"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_config_opens_the_folder_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/run");
        // A number whose last bit a parser that does not round correctly loses.
        let config = json!({"seed": 1, "learning_rate": 0.14187652699999997});
        drop(RunFolder::open(&path, &config).unwrap());
        drop(RunFolder::open(&path, &config).unwrap());
        let stored: Value = serde_json::from_slice(&read(&path.join("config.json")).unwrap()).unwrap();
        assert_eq!(stored["config"], config);
        assert_eq!(stored["adcorda"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn another_config_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        drop(RunFolder::open(folder.path(), &json!({"seed": 1, "attack": {"epsilon": 8}})).unwrap());
        let error = RunFolder::open(folder.path(), &json!({"attack": {"epsilon": 4}, "limit": 10})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let text = error.to_string();
        for needle in [
            "attack.epsilon is 8 there and 4 here",
            "limit is null there and 10 here",
            "seed is 1 there",
        ] {
            assert!(text.contains(needle), "{text}");
        }
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunFolder::open(folder.path(), &json!({})).unwrap();
        // A second handle in one process conflicts just as another process's does.
        let error = RunFolder::open(folder.path(), &json!({})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("another process"), "{error}");
        let path = folder.path().to_owned();
        let waiting = std::thread::spawn(move || RunFolder::open_or_wait(path, &json!({})).is_ok());
        drop(first);
        assert!(waiting.join().unwrap());
        RunFolder::open(folder.path(), &json!({})).unwrap();
    }

    #[test]
    fn a_kill_while_the_config_is_written_is_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lock"), "").unwrap();
        std::fs::write(folder.path().join(format!("{TEMPORARY}x1y2z3")), "{").unwrap();
        drop(RunFolder::open(folder.path(), &json!({})).unwrap());
        RunFolder::open_or_wait(folder.path(), &json!({})).unwrap();
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let error = RunFolder::open(folder.path(), &json!({})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("thesis.tex"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_io_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        let error = RunFolder::open(folder.path().join("file/run"), &json!({})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }

    #[test]
    fn metrics_are_cut_back_to_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::open(folder.path(), &json!({})).unwrap();
        let track = run.track("adcorda").unwrap();
        let mut metrics = track.metrics_until(0).unwrap();
        for step in [0, 5, 10, 15] {
            metrics.append(&json!({"step": step})).unwrap();
        }
        metrics.file.write_all(b"{\"step\": 7, \"lo").unwrap();
        let mut metrics = track.metrics_until(10).unwrap();
        metrics.append(&json!({"step": 11})).unwrap();
        let text = std::fs::read_to_string(track.metrics()).unwrap();
        assert_eq!(text, "{\"step\":0}\n{\"step\":5}\n{\"step\":10}\n{\"step\":11}\n");
    }
}
