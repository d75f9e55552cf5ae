//! Training on paired batches: the original images as the target, and the same with some of them replaced as the source.

use burn::tensor::{Tensor, activation};

use super::coral::Coral;
use super::{Arm, RefineOptions, Refresh, Schedule, correction, corrections_key, refreshed};
use crate::attack::{Direction, attack};
use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::data::batch::{Geometry, to_interleaved_u8, to_planar_f32};
use crate::device::Device;
use crate::nn::{self, Auto, Inner};
use crate::refine::Corrections;
use crate::resident::numbers;
use crate::run_folder::Track;
use crate::train::{Batches, Passes, Student, Task, Teacher, cross_entropy};
use crate::{Error, ErrorKind, Result};

/// What the source is, beside the images that are classified right.
pub(super) enum Source {
    /// The corrections of the others.
    Corrected(Corrections),
    /// Nothing: the others, whose numbers these are by rising number, are left out.
    Right(Vec<usize>),
    /// Corrections of the batch at hand, made in passing.
    Online,
}

/// Learning from paired batches.
pub(super) struct Paired<'a> {
    start: &'a Checkpoint,
    images: &'a Dataset,
    options: &'a RefineOptions,
    track: &'a Track,
    device: &'a Device,
    batches: Batches,
    teacher: Option<Teacher>,
    coral: Coral,
    /// What each image of the set is in the source.
    versions: Vec<Version>,
    online: bool,
    /// Epoch at which the corrections in use were made.
    corrected_at: usize,
}

/// What an image is in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Itself.
    Same,
    /// Row of its correction among the batches' pixels.
    Corrected(usize),
    /// Not there, but in the target.
    TargetOnly,
    /// In neither: it could not be corrected.
    Omitted,
}

/// A batch on its way to the loss.
struct Pair {
    /// `[rows, channels, height, width]`: the target's images, then those that replace some of them.
    pixels: Tensor<Inner, 4>,
    /// Numbers of the target's images.
    target: Vec<usize>,
    /// Rows that are the source, and the number of the image that each is a version of.
    source: Vec<(usize, usize)>,
    passes: Passes,
}

impl<'a> Paired<'a> {
    /// # Errors
    /// [`ErrorKind::Usage`] where fewer than two images are left.
    pub fn new(
        start: &'a Checkpoint,
        images: &'a Dataset,
        source: Source,
        options: &'a RefineOptions,
        teacher: Option<Teacher>,
        track: &'a Track,
        device: &'a Device,
    ) -> Result<Self> {
        let versions = match &source {
            Source::Corrected(corrections) => versions(images.len(), corrections),
            Source::Right(wrong) => (0..images.len())
                .map(|i| match wrong.binary_search(&i) {
                    Ok(_) => Version::TargetOnly,
                    Err(_) => Version::Same,
                })
                .collect(),
            Source::Online => vec![Version::Same; images.len()],
        };
        let kept: Vec<usize> = (0..images.len()).filter(|&i| versions[i] != Version::Omitted).collect();
        if kept.len() < 2 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{}: nearly every image is misclassified and could not be corrected",
                    images.name
                ),
            )
            .remedy("give a larger --epsilon, or start from a better network"));
        }
        let mut batches = Batches::new(images, Some(kept), &options.training, device);
        let online = matches!(source, Source::Online);
        if let Source::Corrected(corrections) = source {
            batches.put_beside(corrections.corrected.iter().map(|correction| &correction.image[..]));
        }
        Ok(Self {
            start,
            images,
            options,
            track,
            device,
            batches,
            teacher,
            coral: Coral::new(options.coral_momentum),
            versions,
            online,
            corrected_at: 0,
        })
    }

    /// Takes other corrections. Images that could not be corrected at first stay away: the order of an epoch is fixed.
    fn replace(&mut self, corrections: &Corrections, epoch: usize) {
        self.versions = versions(self.images.len(), corrections);
        self.batches
            .put_beside(corrections.corrected.iter().map(|correction| &correction.image[..]));
        self.corrected_at = epoch;
    }

    /// What the corrections of a later epoch depend on: everything before.
    fn key(&self, epoch: usize) -> String {
        let key = corrections_key(self.start, self.images, self.options);
        format!("{key} {epoch} {:?}", self.options)
    }

    /// Weight of CORAL at a share of the training.
    fn lambda(&self, share: f64) -> f64 {
        if matches!(self.options.arm, Arm::Correction | Arm::CorrectionDistillation) {
            return 0.0;
        }
        match self.options.lambda_schedule {
            Schedule::Constant => self.options.lambda,
            Schedule::Linear => self.options.lambda * share,
        }
    }

    /// Whether the loss looks at the original of a corrected image.
    fn needs_target(&self) -> bool {
        let Self { options, .. } = self;
        self.lambda(1.0) > 0.0 || options.target_weight > 0.0 || options.target_entropy > 0.0
    }

    fn pair(&mut self, step: usize, student: &Student) -> Pair {
        let (target, mut geometries): (Vec<usize>, Vec<Geometry>) = {
            let (rows, geometries) = self.batches.draw(step);
            let both = rows.into_iter().zip(geometries);
            both.filter(|&(i, _)| self.versions[i] != Version::Omitted).unzip()
        };
        if self.online {
            return self.correct_batch(target, &geometries, student);
        }
        let n = target.len();
        let mut rows = target.clone();
        let mut source: Vec<(usize, usize)> = Vec::with_capacity(n);
        let paired = self.needs_target();
        for (at, &i) in target.iter().enumerate() {
            match self.versions[i] {
                Version::Same => source.push((at, i)),
                Version::Corrected(row) if paired => {
                    // The same flip and shift: another would undo many corrections.
                    source.push((rows.len(), i));
                    rows.push(row);
                    geometries.push(geometries[at]);
                }
                Version::Corrected(row) => {
                    source.push((at, i));
                    rows[at] = row;
                }
                Version::TargetOnly | Version::Omitted => {}
            }
        }
        let pixels = self.batches.pixels(&rows, &geometries);
        Pair {
            pixels,
            target,
            source,
            passes: Passes::training(rows.len()),
        }
    }

    /// Corrects the wrong images of a batch as they are shown, by the network as it is. What cannot be corrected stays in the
    /// target only.
    fn correct_batch(&self, target: Vec<usize>, geometries: &[Geometry], student: &Student) -> Pair {
        let shape = self.images.shape();
        let x = self.batches.pixels(&target, geometries);
        let frozen = student.frozen();
        let mut passes = Passes::forward(target.len());
        let classes = self.images.classes.len();
        let logits = nn::to_host(frozen.forward(x.clone()).logits);
        let right: Vec<bool> = logits
            .chunks_exact(classes)
            .zip(&target)
            .map(|(logits, &i)| nn::top1(logits) == self.images.label(i))
            .collect();
        let wrong: Vec<usize> = (0..target.len()).filter(|&row| !right[row]).collect();
        let mut source: Vec<(usize, usize)> = (0..target.len())
            .filter(|&row| right[row])
            .map(|row| (row, target[row]))
            .collect();
        let mut parts = vec![x.clone()];
        let mut rows = target.len();
        if !wrong.is_empty() {
            let shown = to_interleaved_u8(&nn::to_host(x.select(0, numbers(&wrong, self.device))), shape);
            let shown: Vec<&[u8]> = shown.chunks_exact(self.images.image_len()).collect();
            let labels: Vec<u16> = wrong.iter().map(|&row| self.images.label(target[row])).collect();
            let attacked = attack(&frozen, &shown, shape, &labels, &self.options.attack, Direction::Toward);
            passes += attacked.passes;
            let found = attacked.images.chunks_exact(self.images.image_len());
            let corrected: Vec<(&[u8], usize)> = found
                .zip(&attacked.margins)
                .zip(&wrong)
                .filter(|((_, margin), _)| **margin > 0.0)
                .map(|((image, _), &row)| (image, target[row]))
                .collect();
            for (at, &(_, i)) in corrected.iter().enumerate() {
                source.push((rows + at, i));
            }
            rows += corrected.len();
            if !corrected.is_empty() {
                let planar = to_planar_f32(corrected.iter().map(|&(image, _)| image), shape, None);
                parts.push(nn::pixels(planar, corrected.len(), shape, self.device));
            }
        }
        Pair {
            pixels: Tensor::cat(parts, 0),
            target,
            source,
            passes: passes + Passes::training(rows),
        }
    }
}

impl Task for Paired<'_> {
    fn steps_per_epoch(&self) -> usize {
        self.batches.steps_per_epoch()
    }

    fn views(&self) -> usize {
        2
    }

    fn begin_epoch(&mut self, epoch: usize, student: &Student) -> Result<Passes> {
        let Refresh::Epochs(every) = self.options.refresh else {
            return Ok(Passes::default());
        };
        if epoch == 0 || !epoch.is_multiple_of(every) || !self.options.arm.corrects() {
            return Ok(Passes::default());
        }
        let (path, key) = (refreshed(self.track, epoch), self.key(epoch));
        let corrections = match Corrections::load(&path, self.images, &key)? {
            Some(corrections) => corrections,
            None => {
                let now = student.checkpoint(self.start);
                let RefineOptions {
                    attack, verify_integer, ..
                } = self.options;
                let corrections = correction::correct(&now, self.images, attack, *verify_integer, self.device)?;
                corrections.save(&path, self.images.shape(), &key)?;
                corrections
            }
        };
        self.replace(&corrections, epoch);
        Ok(corrections.passes)
    }

    fn step(&mut self, step: usize, student: &Student) -> Result<(Tensor<Auto, 1>, Passes)> {
        let Pair {
            pixels,
            target,
            source,
            mut passes,
        } = self.pair(step, student);
        let n = target.len();
        let output = student.forward(pixels.clone());
        // Where nothing is replaced, source and target are the same rows.
        let same =
            source.len() == n && source.iter().enumerate().all(|(at, &(row, _))| at == row) && output.logits.dims()[0] == n;
        let (rows, versions_of): (Vec<usize>, Vec<usize>) = source.into_iter().unzip();
        let picked = numbers(&rows, self.device);
        let pick = |x: Tensor<Auto, 2>| {
            if same {
                x
            } else {
                x.select(0, Tensor::from_inner(picked.clone()))
            }
        };

        let mut loss = if rows.is_empty() {
            output.logits.clone().sum() * 0.0
        } else {
            let logits = pick(output.logits.clone());
            let mut loss = cross_entropy(logits.clone(), self.batches.targets(&versions_of));
            if let Some(teacher) = &self.teacher {
                passes += Passes::forward(rows.len());
                loss = teacher.blend(pixels.select(0, picked.clone()), logits, loss);
            }
            loss
        };
        let lambda = self.lambda(student.share);
        if lambda > 0.0 && rows.len() >= 2 {
            let features = output.features.clone().narrow(0, 0, n);
            loss = loss + self.coral.loss(pick(output.features), features) * lambda;
        }
        let logits = output.logits.narrow(0, 0, n);
        if self.options.target_weight > 0.0 {
            let targets = self.batches.targets(&target);
            loss = loss + cross_entropy(logits.clone(), targets) * self.options.target_weight;
        }
        if self.options.target_entropy > 0.0 {
            let log = activation::log_softmax(logits, 1);
            let entropy = (log.clone().exp() * log).sum() * (-1.0 / n as f64);
            loss = loss + entropy * self.options.target_entropy;
        }
        Ok((loss, passes))
    }

    fn state(&self) -> Vec<f32> {
        let mut state = vec![self.corrected_at as f32];
        state.extend(self.coral.state());
        state
    }

    fn restore(&mut self, state: Vec<f32>) -> Result<()> {
        let Some((&epoch, running)) = state.split_first() else {
            return Ok(());
        };
        self.coral.restore(running, self.device);
        let epoch = epoch as usize;
        if epoch > 0 {
            let path = refreshed(self.track, epoch);
            let corrections = Corrections::load(&path, self.images, &self.key(epoch))?
                .ok_or_else(|| Error::new(ErrorKind::Io, format!("{} is missing", path.display())).remedy("start a new run"))?;
            self.replace(&corrections, epoch);
        }
        Ok(())
    }
}

/// What each of `len` images is in the source; the first correction is the row after the set.
fn versions(len: usize, corrections: &Corrections) -> Vec<Version> {
    let mut versions = vec![Version::Same; len];
    for (row, correction) in corrections.corrected.iter().enumerate() {
        versions[correction.index] = Version::Corrected(len + row);
    }
    for &index in &corrections.failed {
        versions[index] = Version::Omitted;
    }
    versions
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::nn::{Mode, Net, Output, to_host};
    use crate::refine::coral::coral;
    use crate::refine::tests::{options, run, start};
    use crate::refine::{Correction, correction};
    use crate::train::{fixture, targets};

    fn corrections(corrected: Vec<Correction>, failed: Vec<usize>) -> Corrections {
        Corrections {
            corrected,
            failed,
            refuted: 0,
            passes: Passes::default(),
        }
    }

    /// What a task sees of `checkpoint`, with running statistics, so that a batch's rows do not mix.
    fn with_student<R>(checkpoint: &Checkpoint, see: impl FnOnce(&Student) -> R) -> R {
        let device = Device::flex();
        let net = Net::from_state(&checkpoint.network, &checkpoint.state, &device).unwrap();
        see(&Student {
            network: &checkpoint.network,
            net: &net,
            quantization: checkpoint.quantization.as_ref(),
            mode: Mode::Frozen,
            share: 0.5,
            device: &device,
        })
    }

    fn with_paired<R>(
        checkpoint: &Checkpoint,
        images: &Dataset,
        source: Source,
        options: &RefineOptions,
        see: impl FnOnce(Result<Paired>) -> R,
    ) -> R {
        let folder = tempfile::tempdir().unwrap();
        let track = run(folder.path()).track("arm").unwrap();
        see(Paired::new(
            checkpoint,
            images,
            source,
            options,
            None,
            &track,
            &Device::flex(),
        ))
    }

    #[test]
    fn what_cannot_be_corrected_is_left_out() {
        let (checkpoint, images) = (fixture::float(3), fixture::images(4, 1));
        let nine = Correction {
            index: 2,
            image: vec![9; images.image_len()],
            change: 1,
        };
        let some = || Source::Corrected(corrections(vec![nine.clone()], vec![0]));
        let mut options = options();
        options.training.augment = false;
        let planar = |image| to_planar_f32([image], images.shape(), None);
        let row = |pixels: &[f32], i: usize| pixels[i * images.image_len()..][..images.image_len()].to_vec();
        with_student(&checkpoint, |student| {
            with_paired(&checkpoint, &images, some(), &options, |paired| {
                let pair = paired.unwrap().pair(0, student);
                assert_eq!((pair.target.len(), pair.pixels.dims()[0]), (3, 4));
                assert_eq!(pair.passes, Passes::training(4));
                assert!(!pair.target.contains(&0));
                // The last row is the corrected image, and takes the place of its original in the source.
                let at = pair.target.iter().position(|&i| i == 2).unwrap();
                let pixels = to_host(pair.pixels);
                assert_eq!(row(&pixels, 3), planar(&[9; 192][..]));
                assert_eq!(row(&pixels, at), planar(images.image(2)));
                assert_eq!(pair.source[at], (3, 2));
                assert_eq!(pair.source.len(), 3);
            });
            // Where the loss does not look at originals, they are not run.
            options.lambda = 0.0;
            with_paired(&checkpoint, &images, some(), &options, |paired| {
                let pair = paired.unwrap().pair(0, student);
                assert_eq!((pair.source.len(), pair.pixels.dims()[0]), (3, 3));
                let pixels = to_host(pair.pixels);
                assert!((0..3).any(|i| row(&pixels, i) == planar(&[9; 192][..])));
            });
            // Nothing is corrected: the wrong ones are in the target only.
            options.lambda = 1.0;
            with_paired(&checkpoint, &images, Source::Right(vec![1, 3]), &options, |paired| {
                let pair = paired.unwrap().pair(0, student);
                assert_eq!((pair.source.len(), pair.target.len(), pair.pixels.dims()[0]), (2, 4, 4));
                assert!(pair.source.iter().all(|&(row, i)| pair.target[row] == i && i % 2 == 0));
            });
            let nothing = Source::Corrected(corrections(Vec::new(), vec![0, 1, 2, 3]));
            with_paired(&checkpoint, &images, nothing, &options, |paired| {
                assert_eq!(paired.err().unwrap().kind(), ErrorKind::Usage);
            });
        });
    }

    #[test]
    fn pairs_share_flip_and_shift() {
        let (checkpoint, images) = (fixture::float(3), fixture::images(40, 1));
        // Corrected by nothing at all, so that a pair must be equal.
        let same = (0..40).step_by(2).map(|index| Correction {
            index,
            image: images.image(index).to_vec(),
            change: 0,
        });
        let source = Source::Corrected(corrections(same.collect(), Vec::new()));
        let options = options();
        let still = to_planar_f32(images.images.chunks_exact(images.image_len()), images.shape(), None);
        with_student(&checkpoint, |student| {
            with_paired(&checkpoint, &images, source, &options, |paired| {
                let mut paired = paired.unwrap();
                let (mut moved, mut pairs) = (0, 0);
                for step in 0..paired.steps_per_epoch() {
                    let pair = paired.pair(step, student);
                    let pixels = to_host(pair.pixels);
                    let row = |i: usize| &pixels[i * images.image_len()..][..images.image_len()];
                    for (at, &(source, image)) in pair.source.iter().enumerate() {
                        assert_eq!(pair.target[at], image);
                        assert_eq!(row(source), row(at));
                        pairs += usize::from(source != at);
                        moved += usize::from(still.chunks_exact(images.image_len()).all(|image| image != row(at)));
                    }
                }
                assert_eq!(pairs, 20);
                assert!(moved > 10);
            });
        });
    }

    #[test]
    fn corrections_in_passing_are_right_where_they_are_shown() {
        let (start, _, images) = start();
        let options = options();
        with_student(&start, |student| {
            with_paired(&start, &images, Source::Online, &options, |paired| {
                let mut paired = paired.unwrap();
                let pair = paired.pair(0, student);
                let logits = to_host(student.frozen().forward(pair.pixels.clone()).logits);
                let classes = images.classes.len();
                let right = |row: usize, image: usize| nn::top1(&logits[row * classes..][..classes]) == images.label(image);
                assert!(pair.source.iter().all(|&(row, image)| right(row, image)));
                let corrected = pair.source.iter().filter(|&&(row, _)| row >= pair.target.len()).count();
                let wrong = pair.target.iter().enumerate().filter(|&(row, &i)| !right(row, i)).count();
                assert!(corrected > 0 && corrected <= wrong, "{corrected} {wrong}");
            });
        });
    }

    /// Whatever the arm: the loss is the sum of its documented terms, of what the frozen network computes of source and target.
    #[test]
    fn the_loss_is_that_of_its_terms() {
        let (start, _, images) = start();
        let mut options = options();
        (options.lambda, options.target_weight, options.target_entropy) = (1e4, 0.5, 0.25);
        options.lambda_schedule = Schedule::Linear;
        let found = correction::correct(&start, &images, &options.attack, false, &Device::flex()).unwrap();
        let (wrong, _) = correction::misclassified(&super::super::freeze(&start, &Device::flex()).unwrap(), &images).unwrap();
        with_student(&start, |student| {
            for source in [Source::Corrected(found.clone()), Source::Right(wrong.clone())] {
                with_paired(&start, &images, source, &options, |paired| {
                    let mut paired = paired.unwrap();
                    let pair = paired.pair(0, student);
                    let (loss, _) = paired.step(0, student).unwrap();
                    let Output { features, logits } = student.forward(pair.pixels);
                    let (rows, labelled): (Vec<usize>, Vec<usize>) = pair.source.iter().copied().unzip();
                    let target: Vec<usize> = (0..pair.target.len()).collect();
                    let pick = |x: &Tensor<Auto, 2>, rows: &[usize]| {
                        x.clone().select(0, Tensor::from_inner(numbers(rows, &Device::flex())))
                    };
                    let number = |x: Tensor<Auto, 1>| f64::from(to_host(x.inner())[0]);
                    let ce = |rows: &[usize], images_of: &[usize]| {
                        let labels: Vec<u16> = images_of.iter().map(|&i| images.label(i)).collect();
                        number(cross_entropy(pick(&logits, rows), targets(&labels, 4, 0.0, &Device::flex())))
                    };
                    let distance = number(coral(pick(&features, &rows), pick(&features, &target)));
                    let probabilities = to_host(activation::softmax(pick(&logits, &target), 1).inner());
                    let entropy: f64 = probabilities
                        .iter()
                        .map(|&p| -f64::from(p) * f64::from(p.max(1e-30)).ln())
                        .sum();
                    let expected = ce(&rows, &labelled)
                        + 0.5 * 1e4 * distance
                        + 0.5 * ce(&target, &pair.target)
                        + 0.25 * entropy / target.len() as f64;
                    let loss = number(loss);
                    assert!((loss / expected - 1.0).abs() < 1e-4, "{loss} {expected}");
                    assert!(1e4 * distance > 1e-3 * loss, "{distance}");
                });
            }
        });
    }

    #[test]
    fn a_teachers_loss_is_zero_where_both_agree() {
        let (start, float, images) = start();
        let options = options().training;
        let device = Device::flex();
        with_student(&float, |student| {
            let x = nn::to_device(&images, &[0, 1, 2, 3], &device);
            let logits = student.forward(x.clone()).logits;
            let hard = Tensor::from_data(TensorData::new(vec![3.0f32], [1]), device.dispatch());
            let blended = |teacher: &Checkpoint| {
                let teacher = Teacher::new(teacher, &float, &options, &device).unwrap();
                to_host(teacher.blend(x.clone(), logits.clone(), hard.clone()).inner())[0]
            };
            // Half of the labels' 3, and nothing more.
            assert!((blended(&float) - 1.5).abs() < 1e-4, "{}", blended(&float));
            assert!(blended(&start) > 1.5001);
        });
    }
}
