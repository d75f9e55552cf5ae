//! `adcorda experiment`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use adcorda::data::SetSpec;
use adcorda::experiment::{self, CellResult, Outcome, Results, Shard, Table, merge, report, strangers};
use adcorda::{Error, ErrorKind, Result};
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, print};

/// Run a table of experiments and compare its arms at equal compute.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda experiment experiments/smoke.toml --data synthetic:600x300 -o runs/smoke\n         \
adcorda experiment experiments/cpu.toml --data cifar10:data --float resnet8=float.ckpt -o runs/cpu\n         \
adcorda experiment experiments/cpu.toml --data cifar10:data --float resnet8=float.ckpt -o part2 --shard 2/4\n         \
adcorda experiment experiments/cpu.toml --merge part1 part2 part3 part4 -o runs/cpu\n\n\
The table is TOML: networks, sets of images with a budget each, starts (PTQ, or QAT behind it), seeds and arms; every\n\
combination is a cell. experiments/smoke.toml shows every key; an option of an arm is called as the flag of `adcorda refine`,\n\
with _ for -.\n\n\
DIR/cells/CELL/result.json is a cell's result; DIR/table.md has a row for every arm, with mean and deviation over seeds, and\n\
paired tests against the control arm over images and over seeds; DIR/table.jsonl has a line for every cell. A test image is\n\
looked at once, at the end of a cell. A cell that fails is a row that says so, the others go on, and the exit code is that of\n\
the failure. Give the same command again to resume after a kill, or after seeds or arms were added to the table.\n\n\
Shards of one table may share DIR on one file system, or each have its own and be merged. Network by network, where the table\n\
trains a float network, train it once and give it to every machine with --float."
)]
pub struct Experiment {
    /// Table of experiments (TOML)
    table: PathBuf,
    /// cifar10:DIR, cifar100:DIR or synthetic
    #[arg(long, value_name = "SET", required_unless_present_any = ["merge", "dry_run"])]
    data: Option<SetSpec>,
    /// Folder for cells, starts and the table
    #[arg(short, long, value_name = "DIR", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Float checkpoint or run folder of a network of the table; may be repeated
    #[arg(long = "float", value_name = "NAME=CKPT", value_parser = parse_float)]
    floats: Vec<(String, PathBuf)>,
    /// Run the I-th of N parts of the table only
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Run nothing: bring the results in these folders together in DIR
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["shard", "data", "floats"])]
    merge: Vec<PathBuf>,
    /// Run nothing: list the cells, what they may cost, and which have a result in DIR
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Experiment {
    pub fn run(self) -> Result<()> {
        let table = Table::load(&self.table)?;
        if self.dry_run {
            return self.list(&table);
        }
        let (Some(folder), merging) = (&self.output, !self.merge.is_empty()) else {
            return Err(Error::new(ErrorKind::Usage, "there is no folder to write to").remedy("name one with -o"));
        };
        std::fs::create_dir_all(folder).map_err(|cause| Error::io("create folder", folder, cause))?;
        let results = if merging {
            merge(&table, &self.merge, folder)?
        } else {
            self.run_cells(&table, folder)?;
            Results::collect(&table, std::slice::from_ref(folder))?
        };
        report::write(&table, &results, folder)?;
        self.say(&table, &results, folder)?;
        first_failure(&results)
    }

    fn run_cells(&self, table: &Table, folder: &Path) -> Result<()> {
        let Some(set) = &self.data else {
            return Err(Error::new(ErrorKind::Usage, "there are no images to train on").remedy("name them with --data"));
        };
        let device = self.device.open()?;
        let floats: BTreeMap<String, PathBuf> = self.floats.iter().cloned().collect();
        let experiment = experiment::Experiment {
            table,
            floats: &floats,
            set,
            folder,
            device: &device,
        };
        let started = Instant::now();
        experiment.run(self.shard.unwrap_or(Shard::ALL), |result, done, all| {
            // A training has a bar of its own; between two, a line says how far the table is.
            if std::io::stderr().is_terminal() {
                eprintln!("{}", progress(result, done, all, started));
            }
        })
    }

    fn list(&self, table: &Table) -> Result<()> {
        let there = |name: &str| {
            let folder = self.output.as_ref()?;
            Some(folder.join("cells").join(name).join("result.json").exists())
        };
        let cells = table.shard(self.shard.unwrap_or(Shard::ALL));
        let mut text = String::new();
        let mut list = Vec::new();
        for cell in &cells {
            let (name, passes) = (cell.name(), cell.passes());
            let done = there(&name).unwrap_or(false);
            text += &format!("{passes:>12.0}  {name}{}\n", if done { "  (done)" } else { "" });
            list.push(json!({ "cell": name, "passes": passes, "done": done }));
        }
        let passes: f64 = cells.iter().map(|cell| cell.passes()).sum();
        text += &format!(
            "{passes:>12.0}  passes at most, {} cells; float networks not counted",
            cells.len()
        );
        print(self.json, &json!({ "cells": list, "passes": passes }), &text)
    }

    fn say(&self, table: &Table, results: &Results, folder: &Path) -> Result<()> {
        let rows = report::rows(table, results);
        let strangers = strangers(table, folder)?;
        let mut text = String::from_utf8_lossy(&adcorda::file::read(&folder.join("table.md"))?).into_owned();
        if !strangers.is_empty() {
            text += &format!("\nNot of this table, and left out: {}\n", strangers.join(", "));
        }
        text += &format!("\n-> {}", folder.join("table.md").display());
        let failed = results.cells.values().filter(|result| result.measured().is_none()).count();
        print(
            self.json,
            &json!({
                "table": table.name, "rows": rows, "cells": results.cells.len(), "failed": failed, "missing": results.missing,
            }),
            &text,
        )
    }
}

/// `[ 3/30] resnet8_w2-qat_10000_seed1_adcorda  84.31 %, 2:10 h to go`
fn progress(result: &CellResult, done: usize, all: usize, started: Instant) -> String {
    let what = match &result.outcome {
        Outcome::Measured(measured) => format!("{:.2} %", measured.top1),
        Outcome::Failed(failure) => format!("failed: {}", failure.error),
    };
    let minutes = started.elapsed().as_secs_f64() / 60.0 / done as f64 * (all - done) as f64;
    format!(
        "[{done:>width$}/{all}] {}  {what}, about {}:{:02} h to go",
        result.name(),
        (minutes / 60.0) as usize,
        (minutes % 60.0) as usize,
        width = all.to_string().len()
    )
}

/// Scripts are to notice that cells failed.
fn first_failure(results: &Results) -> Result<()> {
    let failed: Vec<&CellResult> = results.cells.values().filter(|result| result.measured().is_none()).collect();
    let Some(Outcome::Failed(failure)) = failed.first().map(|result| &result.outcome) else {
        return Ok(());
    };
    let kinds = [ErrorKind::Usage, ErrorKind::Model, ErrorKind::Diverged];
    let kind = kinds.into_iter().find(|kind| *kind as u8 == failure.exit_code);
    let mut names: Vec<String> = failed.iter().take(5).map(|result| result.name()).collect();
    if failed.len() > names.len() {
        names.push(format!("and {} more", failed.len() - names.len()));
    }
    Err(Error::new(
        kind.unwrap_or(ErrorKind::Diverged),
        format!(
            "{} of {} cells failed: {}; the first one: {}",
            failed.len(),
            results.cells.len(),
            names.join(", "),
            failure.error
        ),
    )
    .remedy("change the options in the table, or delete the folders of these cells to have them run again"))
}

fn parse_float(text: &str) -> Result<(String, PathBuf)> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err(Error::new(ErrorKind::Usage, format!("\"{text}\" is not NAME=CKPT")).remedy("for example resnet8=float.ckpt")),
    }
}
