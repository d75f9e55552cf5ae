//! `adcorda train`.

use std::path::{Path, PathBuf};

use adcorda::checkpoint::Checkpoint;
use adcorda::data::{SetSpec, Split};
use adcorda::run_folder::RunFolder;
use adcorda::train::train;
use adcorda::{Error, ErrorKind, Result, zoo};
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, TeacherArgs, TrainingArgs, load_checkpoint, load_data, note_top1, print, top1};

/// Train a float network from scratch, or continue a checkpoint: a quantized one by plain QAT.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda train tiny --data synthetic --epochs 8 -o runs/float\n         \
adcorda train w2.ckpt --data cifar10:data --epochs 2 --learning-rate 1e-3 -o runs/qat\n\n\
Give the same command again to resume after a kill. The best epoch by validation is kept, the start included."
)]
pub struct Train {
    /// A network to train from scratch (resnet8, resnet8-wide, resnet20, vgg-small, dscnn or tiny), or a checkpoint or run folder to continue
    start: String,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    teacher: TeacherArgs,
    /// cifar10:DIR, cifar100:DIR or synthetic
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// Run folder: config, metrics, checkpoints
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Train {
    pub fn run(self) -> Result<()> {
        let device = self.device.open()?;
        let options = self.training.options(&self.teacher);
        let images = load_data(&self.data, Split::Train, self.training.limit)?;
        let path = Path::new(&self.start);
        let start = if zoo::NAMES.contains(&self.start.as_str()) {
            Checkpoint::untrained(&self.start, &images, options.seed)?
        } else if path.exists() {
            load_checkpoint(path)?
        } else {
            let what = format!("`{}` is neither a network nor a checkpoint that exists", self.start);
            return Err(Error::new(ErrorKind::Usage, what)
                .remedy(format!("name a checkpoint, a run folder or one of {}", zoo::NAMES.join(", "))));
        };
        let teacher = self.teacher.load()?;
        let config = json!({
            "verb": "train", "start": self.start, "data": self.data.to_string(), "limit": self.training.limit,
            "teacher": self.teacher.teacher, "options": options,
        });
        options.check(&start.network, &images)?;
        let run = RunFolder::open(&self.output, &config)?;
        let report = train(&start, teacher.as_ref(), &images, &options, &run, &device)?;

        let test = self.data.load(Split::Test)?;
        let best = load_checkpoint(&self.output)?;
        let top1 = top1(&best, &test, &device)?;
        note_top1(&self.output, top1)?;
        print(
            self.json,
            &json!({
                "top1": top1, "images": test.len(), "passes": report.passes, "seconds": report.seconds,
                "validation_before_top1": report.before_top1, "validation_top1": report.top1,
            }),
            &format!(
                "{}: {top1:.2} % top-1 on {} images of {} (validation {:.2} %) -> {}",
                best.network.name,
                test.len(),
                self.data,
                report.top1,
                self.output.display()
            ),
        )
    }
}
