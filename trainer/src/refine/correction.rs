//! Adversarial correction: for every training image that the network misclassifies, a near image that it gets right.
//!
//! Predicted without augmentation and with running statistics, corrected once, before training. The result is one file in
//! the run's folder, so that a run that continues does not search again, and the images can be looked at.

use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::attack::{AttackOptions, Direction, attack};
use crate::checkpoint::{Bytes, Checkpoint};
use crate::data::Dataset;
use crate::device::Device;
use crate::eval::evaluate_model;
use crate::export::{ExportOptions, export};
use crate::file::{read, write_atomic};
use crate::nn::Frozen;
use crate::train::{Passes, progress_bar};
use crate::{Error, ErrorKind, Result};

/// A training image as the network should have seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Correction {
    /// Of the image in the training set, validation images not counted.
    pub index: usize,
    /// Pixels `[height, width, channels]`; classified as the image's label.
    pub image: Vec<u8>,
    /// Largest change of a pixel value, in grey levels.
    pub change: u8,
}

/// All corrections of a training set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrections {
    /// Of images that are misclassified and could be corrected, by rising index.
    pub corrected: Vec<Correction>,
    /// Indices of images that are misclassified, but nothing within epsilon is right.
    pub failed: Vec<usize>,
    /// How many of the failed were corrected for the fake-quantized network, but not for the integer runtime.
    pub refuted: usize,
    /// Work done: predicting every image, searching, checking.
    pub passes: Passes,
}

/// Corrections in figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorrectionReport {
    /// Training images misclassified before refinement.
    pub wrong: usize,
    /// How many of them were corrected.
    pub corrected: usize,
    /// Mean over the corrected of the largest change of a pixel value, in grey levels; 0 of none.
    pub mean_change: f64,
    /// The largest change of all.
    pub max_change: u8,
    /// How many of those not corrected were right in the fake-quantized network, but not in the integer runtime.
    pub refuted: usize,
    /// Work of predicting, searching and checking, in passes.
    pub passes: f64,
}

impl Corrections {
    /// In figures.
    pub fn report(&self) -> CorrectionReport {
        let changes = || self.corrected.iter().map(|correction| correction.change);
        CorrectionReport {
            wrong: self.corrected.len() + self.failed.len(),
            corrected: self.corrected.len(),
            mean_change: changes().map(f64::from).sum::<f64>() / self.corrected.len().max(1) as f64,
            max_change: changes().max().unwrap_or(0),
            refuted: self.refuted,
            passes: self.passes.count(),
        }
    }

    /// Moves what the integer runtime does not classify as its label to the failures.
    fn verify(&mut self, start: &Checkpoint, images: &Dataset) -> Result<()> {
        let model = export(start, &ExportOptions::default())?;
        let indices: Vec<usize> = self.corrected.iter().map(|correction| correction.index).collect();
        let mut shown = images.subset(&indices);
        shown.images = self
            .corrected
            .iter()
            .flat_map(|correction| correction.image.iter().copied())
            .collect();
        let predicted = evaluate_model(&model.bytes, &shown)?.predictions;
        let mut predicted = predicted.iter().zip(shown.labels());
        self.corrected
            .retain(|_| predicted.next().is_some_and(|(found, label)| found == label));
        self.refuted = indices.len() - self.corrected.len();
        let mut kept = self.corrected.iter().map(|correction| correction.index).peekable();
        self.failed
            .extend(indices.into_iter().filter(|&index| kept.next_if_eq(&index).is_none()));
        self.failed.sort_unstable();
        Ok(())
    }

    /// Writes all in one file, in one step. `key` tells what they are the corrections of.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn save(&self, path: &Path, shape: [usize; 3], key: &str) -> Result<()> {
        let [height, width, channels] = shape;
        let numbers = |indices: &mut dyn Iterator<Item = usize>| -> Vec<u8> {
            indices.flat_map(|index| (index as u32).to_le_bytes()).collect()
        };
        let count = self.corrected.len();
        let images = self.corrected.iter().flat_map(|c| c.image.iter().copied()).collect();
        let tensors = [
            (
                "failed",
                Dtype::U32,
                vec![self.failed.len()],
                numbers(&mut self.failed.iter().copied()),
            ),
            ("image", Dtype::U8, vec![count, height, width, channels], images),
            (
                "index",
                Dtype::U32,
                vec![count],
                numbers(&mut self.corrected.iter().map(|c| c.index)),
            ),
            (
                "change",
                Dtype::U8,
                vec![count],
                self.corrected.iter().map(|c| c.change).collect(),
            ),
        ];
        let description = Description {
            key: key.into(),
            refuted: self.refuted,
            passes: self.passes,
        };
        let fail =
            |cause: &dyn std::fmt::Display| Error::new(ErrorKind::Io, format!("cannot write {}: {cause}", path.display()));
        let json = serde_json::to_string(&description).map_err(|cause| fail(&cause))?;
        let tensors = tensors.map(|(name, dtype, shape, data)| {
            (
                name,
                Bytes {
                    dtype,
                    shape,
                    data: data.into(),
                },
            )
        });
        let bytes = safetensors::serialize(tensors, Some(HashMap::from([(METADATA.to_owned(), json)])))
            .map_err(|cause| fail(&cause))?;
        write_atomic(path, &bytes)
    }

    /// Reads what [`save`](Self::save) wrote under the same `key`; `None` where the file is missing, or of another key.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] where the file is damaged, or not of `images`.
    pub(crate) fn load(path: &Path, images: &Dataset, key: &str) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read(path)?;
        let damaged = |what: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Weights, format!("{}: {what}", path.display()))
                .remedy("delete it to correct the images again")
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|cause| damaged(&cause))?;
        let json = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA));
        let json = json.ok_or_else(|| damaged(&"it holds no corrections"))?;
        let description: Description = serde_json::from_str(json).map_err(|cause| damaged(&cause))?;
        if description.key != key {
            return Ok(None);
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|cause| damaged(&cause))?;
        let tensor = |name: &str, dtype: Dtype| match file.tensor(name) {
            Ok(view) if view.dtype() == dtype => Ok(view.data().to_vec()),
            Ok(_) => Err(damaged(&format!("tensor {name} is of the wrong type"))),
            Err(cause) => Err(damaged(&cause)),
        };
        let numbers = |name: &str| -> Result<Vec<usize>> {
            let data = tensor(name, Dtype::U32)?;
            let numbers: Vec<usize> = data.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b) as usize).collect();
            if numbers.iter().any(|&index| index >= images.len()) || !numbers.is_sorted() {
                return Err(damaged(&format!("{name} is not of these images")));
            }
            Ok(numbers)
        };
        let (indices, changes, pixels) = (numbers("index")?, tensor("change", Dtype::U8)?, tensor("image", Dtype::U8)?);
        if changes.len() != indices.len() || pixels.len() != indices.len() * images.image_len() {
            return Err(damaged(&"its tensors do not fit together"));
        }
        let pixels = pixels.chunks_exact(images.image_len());
        let corrected = indices.into_iter().zip(changes).zip(pixels);
        Ok(Some(Self {
            corrected: corrected
                .map(|((index, change), image)| Correction {
                    index,
                    image: image.to_vec(),
                    change,
                })
                .collect(),
            failed: numbers("failed")?,
            refuted: description.refuted,
            passes: description.passes,
        }))
    }
}

/// Numbers of the images that a network misclassifies, rising, and what it cost to know.
///
/// # Errors
/// [`ErrorKind::Data`] where the images have another size than the network's input.
pub fn misclassified(network: &Frozen, images: &Dataset) -> Result<(Vec<usize>, Passes)> {
    let predicted = network.predict(images)?;
    let wrong = (0..images.len()).filter(|&i| predicted[i] != images.label(i)).collect();
    Ok((wrong, Passes::forward(images.len())))
}

/// Predicts every image and corrects those that are misclassified.
///
/// An image counts as corrected where, after all, its 8-bit pixels are classified as its label, be it with less than the
/// margin asked for. With `verify_integer`, the network is exported and the integer runtime has to agree; the few that it
/// does not are failures.
///
/// # Errors
/// [`ErrorKind::Data`] where the images have another size than the network's input; with `verify_integer`, what
/// [`export`] cannot lower.
pub fn correct(
    start: &Checkpoint,
    images: &Dataset,
    options: &AttackOptions,
    verify_integer: bool,
    device: &Device,
) -> Result<Corrections> {
    let network = Frozen::new(&start.network, &start.state, start.quantization.as_ref(), device)?;
    let (wrong, passes) = misclassified(&network, images)?;
    let mut corrections = Corrections {
        corrected: Vec::new(),
        failed: Vec::new(),
        refuted: 0,
        passes,
    };
    let bar = progress_bar(wrong.len(), "correct");
    for wrong in wrong.chunks(BATCH) {
        let pixels: Vec<&[u8]> = wrong.iter().map(|&i| images.image(i)).collect();
        let labels: Vec<u16> = wrong.iter().map(|&i| images.label(i)).collect();
        let attacked = attack(&network, &pixels, images.shape(), &labels, options, Direction::Toward);
        corrections.passes += attacked.passes;
        let found = attacked.images.chunks_exact(images.image_len());
        for ((&index, image), &margin) in wrong.iter().zip(found).zip(&attacked.margins) {
            if margin > 0.0 {
                let change = image.iter().zip(images.image(index)).map(|(a, b)| a.abs_diff(*b)).max();
                corrections.corrected.push(Correction {
                    index,
                    image: image.to_vec(),
                    change: change.unwrap_or(0),
                });
            } else {
                corrections.failed.push(index);
            }
        }
        bar.inc(wrong.len() as u64);
    }
    bar.finish_and_clear();
    if verify_integer && !corrections.corrected.is_empty() {
        corrections.verify(start, images)?;
    }
    Ok(corrections)
}

/// Images corrected at a time.
const BATCH: usize = 256;

/// Key of the [`Description`] in the file's metadata.
const METADATA: &str = "adcorda.corrections";

#[derive(Serialize, Deserialize)]
struct Description {
    key: String,
    refuted: usize,
    passes: Passes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::train::fixture;

    #[test]
    fn every_wrong_image_is_corrected_or_counted() {
        let start = fixture::float(3);
        let network = Frozen::new(&start.network, &start.state, None, &Device::flex()).unwrap();
        let images = fixture::images(300, 5);
        let predicted = network.predict(&images).unwrap();
        let options = AttackOptions {
            epsilon: 6.0,
            margin: 0.0,
            ..AttackOptions::default()
        };
        let corrections = correct(&start, &images, &options, false, &Device::flex()).unwrap();
        assert!(!corrections.corrected.is_empty() && !corrections.failed.is_empty());
        let mut handled: Vec<usize> = corrections.corrected.iter().map(|c| c.index).collect();
        assert!(handled.is_sorted());
        handled.extend(&corrections.failed);
        handled.sort_unstable();
        let wrong: Vec<usize> = (0..300).filter(|&i| predicted[i] != images.label(i)).collect();
        assert_eq!(handled, wrong);

        for correction in &corrections.corrected {
            let mut one = images.subset(&[correction.index]);
            let changes = correction.image.iter().zip(&one.images).map(|(a, b)| a.abs_diff(*b));
            assert_eq!(changes.max(), Some(correction.change));
            assert!((1..=6).contains(&correction.change));
            one.images = correction.image.clone();
            assert_eq!(network.accuracy(&one).unwrap(), 100.0);
        }
        let report = corrections.report();
        assert_eq!((report.wrong, report.corrected), (wrong.len(), corrections.corrected.len()));
        assert!(report.mean_change >= 1.0 && report.mean_change <= f64::from(report.max_change));
        // Everything predicted, everything wrong searched for at least once and checked.
        assert!(report.passes >= 100.0 + wrong.len() as f64);
    }

    #[test]
    fn a_file_gives_back_what_it_was_given() {
        let images = fixture::images(20, 5);
        let corrections = Corrections {
            corrected: vec![
                Correction {
                    index: 2,
                    image: vec![7; images.image_len()],
                    change: 3,
                },
                Correction {
                    index: 19,
                    image: vec![255; images.image_len()],
                    change: 8,
                },
            ],
            failed: vec![0, 5],
            refuted: 1,
            passes: Passes::training(12),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corrections.safetensors");
        assert_eq!(Corrections::load(&path, &images, "a").unwrap(), None);
        corrections.save(&path, images.shape(), "a").unwrap();
        assert_eq!(Corrections::load(&path, &images, "a").unwrap().as_ref(), Some(&corrections));
        assert_eq!(Corrections::load(&path, &images, "b").unwrap(), None);
        // Of a larger set: index 19 does not exist here.
        let error = Corrections::load(&path, &images.clone().take(10), "a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        let bytes = read(&path).unwrap();
        for len in [0, 7, 40, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(Corrections::load(&path, &images, "a").unwrap_err().kind(), ErrorKind::Weights);
        }
    }
}
