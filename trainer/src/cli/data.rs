//! `adcorda data`.

use std::path::PathBuf;

use adcorda::data::fetch::{fetch, progress_bar};
use adcorda::data::{Description, SetSpec};
use adcorda::{Error, ErrorKind, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use super::print;

/// Download or describe a data set.
#[derive(Args)]
pub struct Data {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Subcommand)]
enum DataVerb {
    /// Download the official files, verify their checksum and unpack them; resumes where it stopped
    #[command(after_help = "Example: adcorda data fetch cifar10 --dir data\n         then use  --data cifar10:data")]
    Fetch {
        /// cifar10 or cifar100, or with the folder: cifar10:DIR
        set: String,
        /// Folder to put the files in; made if missing [default: data]
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Another server that has the same files (a mirror)
        #[arg(long, value_name = "URL")]
        base_url: Option<String>,
        /// One JSON object on standard output
        #[arg(long)]
        json: bool,
    },
    /// Read every record and count
    #[command(after_help = "Example: adcorda data describe cifar10:data --json")]
    Describe {
        /// cifar10:DIR, cifar100:DIR or synthetic
        set: SetSpec,
        /// One JSON object on standard output
        #[arg(long)]
        json: bool,
    },
}

impl Data {
    pub fn run(self) -> Result<()> {
        match self.verb {
            DataVerb::Fetch {
                set,
                dir,
                base_url,
                json,
            } => {
                let set = named(&set, dir)?;
                fetch(&set, base_url.as_deref(), &progress_bar())?;
                let described = set.describe()?;
                print(
                    json,
                    &json!(described),
                    &format!("{}\nuse it with  --data {set}", text(&described)),
                )
            }
            DataVerb::Describe { set, json } => {
                let described = set.describe()?;
                print(json, &json!(described), &text(&described))
            }
        }
    }
}

/// `cifar10` with a folder, or a set as every other verb names it.
fn named(set: &str, dir: Option<PathBuf>) -> Result<SetSpec> {
    match (dir, set.contains(':')) {
        (Some(_), true) => {
            Err(Error::new(ErrorKind::Usage, format!("{set} and --dir both name a folder")).remedy("leave one out"))
        }
        (None, true) => set.parse(),
        (_, false) if set == "synthetic" => set.parse(),
        (dir, false) => format!("{set}:{}", dir.unwrap_or_else(|| "data".into()).display()).parse(),
    }
}

fn text(described: &Description) -> String {
    let [height, width, channels] = described.shape;
    let mut text = format!(
        "{}: {} records, {} classes, {height}x{width}x{channels}",
        described.set, described.records, described.classes
    );
    for (name, split) in [("train", &described.train), ("test", &described.test)] {
        let per_channel = |values: &[f64]| values.iter().map(|v| format!("{v:.1}")).collect::<Vec<_>>().join(" ");
        text += &format!(
            "\n{name}: {} records, channel mean {}, standard deviation {}",
            split.records,
            per_channel(&split.mean),
            per_channel(&split.std)
        );
    }
    text += "\nrecords of each class (train, test):";
    for ((name, train), test) in described
        .class_names
        .iter()
        .zip(&described.train.per_class)
        .zip(&described.test.per_class)
    {
        text += &format!("\n  {name:<20} {train:>6} {test:>6}");
    }
    text
}
