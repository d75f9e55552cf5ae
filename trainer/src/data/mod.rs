//! Labelled images: where they come from, and how a batch of them is drawn.
//!
//! Images are kept as the camera delivers them, `u8` in HWC order, from the file to the integer runtime; only
//! [`batch`] turns them into the planar floats that training wants. Everything random here and in the rest of the
//! trainer draws from [`batch::rng`], so a seed fixes a run.

pub mod batch;
pub mod cifar;
pub mod fetch;
pub mod synthetic;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rand::Rng;
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::{Error, ErrorKind, Result};
use batch::{Purpose, rng};

/// Images of one size with a class each.
///
/// `images.len() == labels.len() * height * width * channels`, and every label is below `classes.len()`: the loaders see
/// to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// What the set is called in reports: `cifar10/test`.
    pub name: String,
    /// Name of each class; a label is an index into it.
    pub classes: Vec<String>,
    /// Rows of an image.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Values of a pixel: 3, in the order red, green, blue.
    pub channels: usize,
    /// All pixels, `[len, height, width, channels]`.
    pub images: Vec<u8>,
    /// Class of each image.
    pub labels: Vec<u16>,
}

impl Dataset {
    /// Keeps the first `limit` images; all of them where there are no more.
    #[must_use]
    pub fn take(mut self, limit: usize) -> Self {
        let limit = limit.min(self.len());
        self.images.truncate(limit * self.image_len());
        self.images.shrink_to_fit();
        self.labels.truncate(limit);
        self
    }

    /// Replaces the labels of `fraction` of the images (rounded to whole images) by another class, drawn evenly from the
    /// classes that are not the image's own: at 0.4, 40 % of the labels are wrong.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where `fraction` is not within 0 to 1, or there is no other class.
    pub fn with_label_noise(mut self, fraction: f64, seed: u64) -> Result<Self> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("label noise of {fraction} is not a share of the labels"),
            )
            .remedy("give a number from 0 to 1, such as 0.4"));
        }
        let count = (fraction * self.len() as f64).round() as usize;
        let classes = self.classes.len();
        if count > 0 && classes < 2 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: label noise needs at least two classes", self.name),
            ));
        }
        let mut rng = rng(seed, Purpose::LabelNoise, 0);
        let mut victims: Vec<usize> = (0..self.len()).collect();
        victims.shuffle(&mut rng);
        for &i in &victims[..count] {
            let step = rng.random_range(1..classes as u32);
            self.labels[i] = ((u32::from(self.labels[i]) + step) % classes as u32) as u16;
        }
        Ok(self)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `[height, width, channels]` of every image.
    pub fn shape(&self) -> [usize; 3] {
        [self.height, self.width, self.channels]
    }

    /// Bytes of one image.
    pub fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Pixels of image `i`, `[height, width, channels]`.
    ///
    /// # Panics
    /// Where `i` is not below [`len`](Self::len).
    pub fn image(&self, i: usize) -> &[u8] {
        &self.images[i * self.image_len()..][..self.image_len()]
    }

    /// Class of image `i`.
    ///
    /// # Panics
    /// Where `i` is not below [`len`](Self::len).
    pub fn label(&self, i: usize) -> u16 {
        self.labels[i]
    }

    /// Class of every image.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Number of images of each class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }

    /// The images with these numbers, in this order; a number may repeat.
    ///
    /// # Panics
    /// Where a number is not below [`len`](Self::len).
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        let mut images = Vec::with_capacity(indices.len() * self.image_len());
        for &i in indices {
            images.extend_from_slice(self.image(i));
        }
        Self {
            name: self.name.clone(),
            classes: self.classes.clone(),
            images,
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            ..*self
        }
    }

    /// Parts the set into `(training, validation)` with `count` images in the second, each class in proportion to its
    /// share (largest remainder, so counts differ from the exact share by less than one image). Both keep the set's order.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where no image would be left to train on.
    pub fn split_validation(&self, count: usize, seed: u64) -> Result<(Self, Self)> {
        if count >= self.len() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{}: {count} validation images leave none of {} to train on",
                    self.name,
                    self.len()
                ),
            )
            .remedy("take fewer validation images or more training images"));
        }
        let mut members = vec![Vec::new(); self.classes.len()];
        for (i, &label) in self.labels.iter().enumerate() {
            members[usize::from(label)].push(i);
        }
        let mut quotas: Vec<usize> = members.iter().map(|m| m.len() * count / self.len()).collect();
        let mut by_remainder: Vec<usize> = (0..members.len()).collect();
        by_remainder.sort_by_key(|&c| std::cmp::Reverse(members[c].len() * count % self.len()));
        let missing = count - quotas.iter().sum::<usize>();
        for &class in &by_remainder[..missing] {
            quotas[class] += 1;
        }

        let mut rng = rng(seed, Purpose::Validation, 0);
        let mut held_out = vec![false; self.len()];
        for (class, quota) in members.iter_mut().zip(quotas) {
            class.shuffle(&mut rng);
            for &i in &class[..quota] {
                held_out[i] = true;
            }
        }
        let (validation, training): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(|&i| held_out[i]);
        Ok((self.subset(&training), self.subset(&validation)))
    }

    /// Mean of each channel over all images, in pixel values 0 to 255, and its standard deviation.
    pub fn channel_statistics(&self) -> (Vec<f64>, Vec<f64>) {
        let mut sums = vec![(0u64, 0u64); self.channels];
        for pixel in self.images.chunks_exact(self.channels.max(1)) {
            for (&value, (sum, squares)) in pixel.iter().zip(&mut sums) {
                *sum += u64::from(value);
                *squares += u64::from(value) * u64::from(value);
            }
        }
        let count = (self.len() * self.height * self.width).max(1) as f64;
        sums.iter()
            .map(|&(sum, squares)| {
                let mean = sum as f64 / count;
                (mean, (squares as f64 / count - mean * mean).max(0.0).sqrt())
            })
            .unzip()
    }
}

/// Which half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The images to learn from.
    Train,
    /// The images to report on, never to choose by.
    Test,
}

impl Split {
    /// `train` or `test`.
    pub const fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A data set as named on the command line: `cifar10:DIR`, `cifar100:DIR`, `synthetic`, `synthetic:TRAINxTEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetSpec {
    /// The official CIFAR-10 binary files in this folder.
    Cifar10(PathBuf),
    /// The official CIFAR-100 binary files in this folder.
    Cifar100(PathBuf),
    /// The built-in set.
    Synthetic {
        /// Training images.
        train: usize,
        /// Test images.
        test: usize,
    },
}

impl SetSpec {
    /// The built-in set with its usual counts.
    pub const SYNTHETIC: SetSpec = SetSpec::Synthetic {
        train: synthetic::TRAIN,
        test: synthetic::TEST,
    };

    /// Reads one half of the set.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] naming the file that is missing or malformed, [`ErrorKind::Io`] where it cannot be read.
    pub fn load(&self, split: Split) -> Result<Dataset> {
        match self {
            SetSpec::Cifar10(folder) => cifar::load(cifar::Variant::Cifar10, folder, split),
            SetSpec::Cifar100(folder) => cifar::load(cifar::Variant::Cifar100, folder, split),
            SetSpec::Synthetic { train, test } => {
                let count = match split {
                    Split::Train => *train,
                    Split::Test => *test,
                };
                Ok(synthetic::load(split, count))
            }
        }
    }

    /// Both halves, counted.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn describe(&self) -> Result<Description> {
        let [train, test] = [self.load(Split::Train)?, self.load(Split::Test)?];
        Ok(Description {
            set: self.to_string(),
            records: train.len() + test.len(),
            classes: train.classes.len(),
            class_names: train.classes.clone(),
            shape: train.shape(),
            train: SplitDescription::of(&train),
            test: SplitDescription::of(&test),
        })
    }
}

impl FromStr for SetSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, argument) = match text.split_once(':') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (text, None),
        };
        let folder = || match argument {
            Some(folder) if !folder.is_empty() => Ok(PathBuf::from(folder)),
            _ => Err(Error::new(ErrorKind::Usage, format!("data set `{text}` names no folder"))
                .remedy(format!("write {kind}:DIR with the folder of the binary files"))),
        };
        match kind {
            "cifar10" => Ok(SetSpec::Cifar10(folder()?)),
            "cifar100" => Ok(SetSpec::Cifar100(folder()?)),
            "synthetic" => match argument {
                None => Ok(SetSpec::SYNTHETIC),
                Some(counts) => synthetic_counts(counts).ok_or_else(|| {
                    Error::new(ErrorKind::Usage, format!("data set `{text}`: `{counts}` is not TRAINxTEST")).remedy(format!(
                        "write two counts from 1 to {SYNTHETIC_LIMIT}, as in synthetic:4000x1000"
                    ))
                }),
            },
            _ => Err(Error::new(ErrorKind::Usage, format!("unknown data set `{text}`"))
                .remedy("give cifar10:DIR, cifar100:DIR or synthetic")),
        }
    }
}

/// Most synthetic images of one half: about 3 GB.
const SYNTHETIC_LIMIT: usize = 1_000_000;

fn synthetic_counts(text: &str) -> Option<SetSpec> {
    let (train, test) = text.split_once('x')?;
    let count = |text: &str| text.parse().ok().filter(|count| (1..=SYNTHETIC_LIMIT).contains(count));
    Some(SetSpec::Synthetic {
        train: count(train)?,
        test: count(test)?,
    })
}

impl fmt::Display for SetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetSpec::Cifar10(folder) => write!(f, "cifar10:{}", folder.display()),
            SetSpec::Cifar100(folder) => write!(f, "cifar100:{}", folder.display()),
            set @ SetSpec::Synthetic { .. } if *set == SetSpec::SYNTHETIC => f.write_str("synthetic"),
            SetSpec::Synthetic { train, test } => write!(f, "synthetic:{train}x{test}"),
        }
    }
}

/// A data set counted: what `data describe` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The set as named on the command line.
    pub set: String,
    /// Images of both halves.
    pub records: usize,
    /// Number of classes.
    pub classes: usize,
    /// Name of each class.
    pub class_names: Vec<String>,
    /// `[height, width, channels]` of an image.
    pub shape: [usize; 3],
    /// The training half.
    pub train: SplitDescription,
    /// The test half.
    pub test: SplitDescription,
}

/// One half of a data set counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitDescription {
    /// Number of images.
    pub records: usize,
    /// Number of images of each class.
    pub per_class: Vec<usize>,
    /// Mean of each channel, in pixel values 0 to 255.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, in pixel values.
    pub std: Vec<f64>,
    /// Bytes of the pixels.
    pub bytes: usize,
}

impl SplitDescription {
    fn of(dataset: &Dataset) -> Self {
        let (mean, std) = dataset.channel_statistics();
        Self {
            records: dataset.len(),
            per_class: dataset.class_counts(),
            mean,
            std,
            bytes: dataset.images.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One-pixel images; image `i` has pixel `[i, 0, 255 - i]`.
    fn dataset(labels: &[u16], classes: usize) -> Dataset {
        Dataset {
            name: "tiny/train".into(),
            classes: (0..classes).map(|c| format!("class {c}")).collect(),
            height: 1,
            width: 1,
            channels: 3,
            images: (0..labels.len() as u8).flat_map(|i| [i, 0, 255 - i]).collect(),
            labels: labels.to_vec(),
        }
    }

    #[test]
    fn take_keeps_the_first_images() {
        let set = dataset(&[3, 1, 2, 0], 4);
        let two = set.clone().take(2);
        assert_eq!((two.len(), two.image(1), two.label(1)), (2, &[1, 0, 254][..], 1));
        assert_eq!(two.images.len(), 6);
        assert_eq!(set.clone().take(9), set);
        assert!(set.take(0).is_empty());
    }

    #[test]
    fn subset_keeps_image_and_label_together() {
        let set = dataset(&[3, 1, 2, 0], 4);
        let picked = set.subset(&[2, 0, 2]);
        assert_eq!(picked.labels(), [2, 3, 2]);
        assert_eq!(picked.images, [2, 0, 253, 0, 0, 255, 2, 0, 253]);
        assert_eq!(picked.class_counts(), [0, 0, 2, 1]);
    }

    #[test]
    fn validation_split_is_stratified_disjoint_and_seeded() {
        // 60, 30 and 11 images of three classes, interleaved.
        let labels: Vec<u16> = (0..101)
            .map(|i| if i % 10 < 6 { 0 } else { 1 + u16::from(i % 10 == 9) })
            .collect();
        let set = dataset(&labels, 3);
        let total = set.class_counts();
        let (train, validation) = set.split_validation(20, 7).unwrap();
        assert_eq!((train.len(), validation.len()), (81, 20));
        for (&found, &all) in validation.class_counts().iter().zip(&total) {
            let exact = all as f64 * 20.0 / 101.0;
            assert!((found as f64 - exact).abs() < 1.0, "{found} of {all}");
        }
        let ids = |s: &Dataset| s.images.chunks(3).map(|p| p[0]).collect::<Vec<u8>>();
        let (a, b) = (ids(&train), ids(&validation));
        assert!(a.is_sorted() && b.is_sorted());
        let mut all = [a, b.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..101).collect::<Vec<u8>>());
        assert_eq!(ids(&set.split_validation(20, 7).unwrap().1), b);
        assert_ne!(ids(&set.split_validation(20, 8).unwrap().1), b);
    }

    #[test]
    fn validation_split_takes_the_exact_count_from_many_small_classes() {
        let labels: Vec<u16> = (0..100).collect();
        let set = dataset(&labels, 100);
        for count in [0, 1, 37, 99] {
            let (train, validation) = set.split_validation(count, 1).unwrap();
            assert_eq!((train.len(), validation.len()), (100 - count, count));
        }
        let error = set.split_validation(100, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("100 validation images"), "{error}");
    }

    #[test]
    fn label_noise_changes_exactly_that_share() {
        let labels: Vec<u16> = (0..200).map(|i| i % 5).collect();
        let set = dataset(&labels, 5);
        let noisy = set.clone().with_label_noise(0.4, 3).unwrap();
        let changed = noisy.labels.iter().zip(&labels).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 80);
        assert!(noisy.labels.iter().all(|&l| l < 5));
        assert_eq!(noisy.images, set.images);
        assert_eq!(set.clone().with_label_noise(0.4, 3).unwrap(), noisy);
        assert_ne!(set.clone().with_label_noise(0.4, 4).unwrap(), noisy);
        assert_eq!(set.clone().with_label_noise(0.0, 3).unwrap(), set);
    }

    #[test]
    fn label_noise_refuses_what_is_no_share() {
        let set = dataset(&[0, 1], 2);
        for fraction in [-0.1, 1.5, f64::NAN] {
            assert_eq!(
                set.clone().with_label_noise(fraction, 0).unwrap_err().kind(),
                ErrorKind::Usage
            );
        }
        assert!(dataset(&[0, 0], 1).with_label_noise(0.5, 0).is_err());
    }

    #[test]
    fn channel_statistics_are_those_of_the_pixels() {
        let (mean, std) = dataset(&[0, 0, 0], 1).channel_statistics();
        assert_eq!(mean, [1.0, 0.0, 254.0]);
        let deviation = (2.0f64 / 3.0).sqrt();
        assert!((std[0] - deviation).abs() < 1e-9 && std[1] == 0.0 && (std[2] - deviation).abs() < 1e-9);
    }

    #[test]
    fn set_names_round_trip() {
        for text in [
            "cifar10:/data/c10",
            "cifar100:some/folder",
            "cifar10:C:\\data",
            "synthetic",
            "synthetic:20x1",
        ] {
            assert_eq!(text.parse::<SetSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_description_counts_both_halves() {
        let description = "synthetic:30x10".parse::<SetSpec>().unwrap().describe().unwrap();
        let json = serde_json::to_value(&description).unwrap();
        assert_eq!((&json["records"], &json["classes"]), (&40.into(), &10.into()));
        assert_eq!(json["set"], "synthetic:30x10");
        assert_eq!(json["train"]["per_class"], serde_json::json!(vec![3; 10]));
        assert_eq!(json["test"]["bytes"], 10 * 32 * 32 * 3);
        assert!(description.train.std.iter().all(|&s| s > 10.0));
    }

    #[test]
    fn set_names_that_are_none_say_what_to_write() {
        for (text, needle) in [
            ("cifar10", "cifar10:DIR"),
            ("cifar100:", "cifar100:DIR"),
            ("imagenet:/data", "unknown data set `imagenet:/data`"),
            ("", "unknown data set"),
            ("synthetic:", "TRAINxTEST"),
            ("synthetic:10", "synthetic:4000x1000"),
            ("synthetic:0x10", "TRAINxTEST"),
            ("synthetic:10x-1", "TRAINxTEST"),
            ("synthetic:10x99999999999999999999", "TRAINxTEST"),
        ] {
            let error = text.parse::<SetSpec>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(needle), "{error}");
        }
    }
}
