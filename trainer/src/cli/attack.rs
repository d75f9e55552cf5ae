//! `adcorda attack`.

use std::path::PathBuf;

use adcorda::attack::Norm;
use adcorda::attack::robustness::{Attack as Kind, Gradients, Report, RobustnessOptions, Victim, default_epsilons, measure};
use adcorda::data::{SetSpec, Split};
use adcorda::eval::load_model_file;
use adcorda::{Error, ErrorKind, Result};
use clap::Args;

use super::{DeviceArgs, is_model_file, load_checkpoint, load_data, print, to_json};

/// Measure top-1 under attack: FGSM, PGD, APGD and Square on a checkpoint or an .adq file.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda attack runs/w2 --data cifar10:data --limit 500 --checks\n         \
adcorda attack model.adq --data cifar10:data --limit 500 --surrogate runs/w2 --attacks pgd,square\n\n\
Attacked images are 8-bit images within epsilon of the original. A checkpoint is attacked along its own gradients. An\n\
integer model has none: Square queries it in the runtime itself, the others attack the checkpoint given with --surrogate,\n\
and the model classifies what they find. Misclassified images count as wrong and are not attacked.\n\
--checks looks for gradient masking: more steps or a larger epsilon that find less, queries that beat gradients, images\n\
that stay right without any bound."
)]
pub struct Attack {
    /// A .adq file, a checkpoint or a run folder
    model: PathBuf,
    /// cifar10:DIR, cifar100:DIR or synthetic; its test images
    #[arg(long, value_name = "SET")]
    data: SetSpec,
    /// The first N images only
    #[arg(long, default_value_t = 1000, value_name = "N")]
    limit: usize,
    /// What epsilon measures: the largest change of a pixel value, or the Euclidean length over all of them
    #[arg(long, value_enum, default_value = "linf")]
    norm: Norm,
    /// In grey levels, separated by commas [default: 1,2,4,8 for linf; 63.75,127.5 for l2, the literature's 0.25 and 0.5]
    #[arg(long, value_delimiter = ',', value_name = "LEVELS")]
    epsilon: Vec<f32>,
    /// Of fgsm, pgd, apgd-ce, apgd-dlr, apgd (both), square; separated by commas [default: all, as far as there are gradients]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    attacks: Vec<String>,
    /// Steps of pgd and apgd
    #[arg(long, default_value_t = RobustnessOptions::default().steps, value_name = "N")]
    steps: usize,
    /// Further runs of pgd and apgd from random points within epsilon
    #[arg(long, default_value_t = RobustnessOptions::default().restarts, value_name = "N")]
    restarts: usize,
    /// Images that square shows the model for each image attacked
    #[arg(long, default_value_t = RobustnessOptions::default().queries, value_name = "N")]
    queries: usize,
    /// For a .adq file: the checkpoint it was exported from, to take gradients from
    #[arg(long, value_name = "CKPT")]
    surrogate: Option<PathBuf>,
    /// Of random starts and queries: the same seed gives the same figures
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Also check that the figures are not an effect of masked gradients
    #[arg(long)]
    checks: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Attack {
    pub fn run(self) -> Result<()> {
        let integer = is_model_file(&self.model)?;
        let options = RobustnessOptions {
            norm: self.norm,
            epsilons: if self.epsilon.is_empty() {
                default_epsilons(self.norm)
            } else {
                self.epsilon.clone()
            },
            attacks: self.attacks(integer && self.surrogate.is_none())?,
            steps: self.steps,
            restarts: self.restarts,
            queries: self.queries,
            seed: self.seed,
            checks: self.checks,
        };
        options.check()?;
        let device = self.device.open()?;
        let images = load_data(&self.data, Split::Test, Some(self.limit))?;
        let report = if integer {
            let file = load_model_file(&self.model)?;
            let surrogate = self.surrogate.as_deref().map(load_checkpoint).transpose()?;
            let victim = Victim::Model {
                file: &file,
                surrogate: surrogate.as_ref(),
            };
            measure(&victim, &images, &options, &device)?
        } else {
            if self.surrogate.is_some() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("{} is no .adq file and has gradients of its own", self.model.display()),
                )
                .remedy("leave --surrogate out"));
            }
            let checkpoint = load_checkpoint(&self.model)?;
            measure(&Victim::Checkpoint(&checkpoint), &images, &options, &device)?
        };
        print(self.json, &to_json(&report)?, &self.text(&report))
    }

    fn attacks(&self, black_box: bool) -> Result<Vec<Kind>> {
        if self.attacks.is_empty() {
            return Ok(Kind::ALL
                .into_iter()
                .filter(|attack| !black_box || !attack.is_white_box())
                .collect());
        }
        let mut attacks = Vec::new();
        for name in &self.attacks {
            match name.trim().replace('_', "-").as_str() {
                "fgsm" => attacks.push(Kind::Fgsm),
                "pgd" => attacks.push(Kind::Pgd),
                "apgd" => attacks.extend([Kind::ApgdCe, Kind::ApgdDlr]),
                "apgd-ce" => attacks.push(Kind::ApgdCe),
                "apgd-dlr" => attacks.push(Kind::ApgdDlr),
                "square" => attacks.push(Kind::Square),
                _ => {
                    return Err(
                        Error::new(ErrorKind::Usage, format!("--attacks: there is no attack \"{name}\""))
                            .remedy("give some of fgsm, pgd, apgd-ce, apgd-dlr, apgd (both), square"),
                    );
                }
            }
        }
        Ok(attacks)
    }

    fn text(&self, report: &Report) -> String {
        let gradients = match (report.gradients, &self.surrogate) {
            (Gradients::Own, _) => "gradients of its own".to_owned(),
            (Gradients::Surrogate, Some(path)) => format!("gradients of the surrogate {}", path.display()),
            (Gradients::Surrogate, None) => "gradients of a surrogate".to_owned(),
            (Gradients::None, _) => "no gradients (without --surrogate): queries only".to_owned(),
        };
        let mut text = format!(
            "{}: {:.2} % top-1 on {} images of {} (standard error {:.2}); {gradients}\n",
            self.model.display(),
            report.clean,
            report.images,
            self.data,
            report.clean_standard_error
        );
        text += &format!("{:>10}", format!("{:?}", report.norm).to_lowercase());
        for name in ["fgsm", "pgd", "apgd-ce", "apgd-dlr", "square", "worst"] {
            text += &format!(" {name:>8}");
        }
        for row in &report.epsilons {
            text += &format!("\n{:>10}", row.epsilon);
            for figure in [row.fgsm, row.pgd, row.apgd_ce, row.apgd_dlr, row.square, Some(row.worst)] {
                text += &figure.map_or_else(|| format!(" {:>8}", "-"), |figure| format!(" {figure:>8.2}"));
            }
            let error = row.standard_error.get("worst").copied().unwrap_or_default();
            text += &format!("  (standard error {error:.2})");
        }
        text += &format!("\n{:.0} passes, {} queries", report.passes, report.queries);
        for check in &report.checks {
            let verdict = if check.passed { "passed" } else { "FAILED" };
            text += &format!("\ncheck {} {verdict}: {}", check.name, check.finding);
        }
        text
    }
}
