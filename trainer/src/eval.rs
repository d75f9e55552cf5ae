//! Accuracy of a model file, measured by the runtime itself: the very code, and so the very bits, of the device.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use adcorda_formats::Model;
use adcorda_runtime::{Image, Session};
use rayon::prelude::*;
use serde::Serialize;

use crate::data::Dataset;
use crate::export::parse;
use crate::{Error, ErrorKind, Result};

/// What a model makes of a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Share of images whose class was found, in per cent; 0 of no images.
    pub top1: f32,
    /// Number of images.
    pub images: usize,
    /// Number of images whose class was found.
    #[serde(skip)]
    pub right: usize,
    /// The class found for each image.
    #[serde(skip)]
    pub predictions: Vec<u16>,
    /// `[images, classes]`, the accumulators of the last layer; `Model::output().scale` times one is its real value.
    #[serde(skip)]
    pub logits: Vec<i32>,
}

/// Runs every image through a model file, on all cores.
///
/// # Errors
/// [`ErrorKind::Model`] where the file is not valid; [`ErrorKind::Data`] where images or classes are not the model's.
pub fn evaluate_model(file: &[u8], images: &Dataset) -> Result<Evaluation> {
    evaluate_model_with(file, images, |_| {})
}

/// [`evaluate_model`] that calls `progress` with the number of images done so far: once an image, from any thread, in any
/// order.
///
/// # Errors
/// As [`evaluate_model`].
pub fn evaluate_model_with(file: &[u8], images: &Dataset, progress: impl Fn(usize) + Sync) -> Result<Evaluation> {
    let model = parse(file, "the model")?;
    check_fit(&model, images)?;
    let done = AtomicUsize::new(0);
    let run = |arena: &mut Vec<u8>, i: usize| -> Result<(u16, Vec<i32>)> {
        let image = Image::new(&model, images.image(i)).map_err(impossible)?;
        let mut session = Session::new(&model, arena).map_err(impossible)?;
        let logits = session.run(image, &mut ());
        let result = (logits.top1() as u16, logits.iter().collect());
        progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(result)
    };
    let results: Vec<(u16, Vec<i32>)> = (0..images.len())
        .into_par_iter()
        .map_init(|| vec![0; model.arena_bytes()], run)
        .collect::<Result<_>>()?;

    let (predictions, logits): (Vec<u16>, Vec<Vec<i32>>) = results.into_iter().unzip();
    let right = predictions.iter().zip(images.labels()).filter(|(a, b)| a == b).count();
    Ok(Evaluation {
        top1: 100.0 * right as f32 / images.len().max(1) as f32,
        images: images.len(),
        right,
        predictions,
        logits: logits.concat(),
    })
}

/// Share of the images on which two models find the same class, in per cent; 100 of none.
///
/// # Panics
/// Where the two are not of equally many images.
pub fn agreement(a: &[u16], b: &[u16]) -> f32 {
    assert_eq!(a.len(), b.len(), "predictions of the same images");
    if a.is_empty() {
        return 100.0;
    }
    100.0 * a.iter().zip(b).filter(|(a, b)| a == b).count() as f32 / a.len() as f32
}

/// Reads and checks a model file; its bytes will parse.
///
/// # Errors
/// [`ErrorKind::Io`] where it cannot be read; [`ErrorKind::Model`] where it is cut short, damaged, of a newer version or no
/// model file at all, with what to do.
pub fn load_model_file(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let bytes = crate::file::read(path)?;
    parse(&bytes, &path.display().to_string())?;
    Ok(bytes)
}

/// Checks that images and classes are those of a model.
pub(crate) fn check_fit(model: &Model, images: &Dataset) -> Result<()> {
    let input = model.input();
    let takes = [input.height, input.width, input.channels].map(usize::from);
    let fail = |what: String| {
        Err(Error::new(
            ErrorKind::Data,
            format!("{}: {what} model {}", images.name, model.name()),
        ))
    };
    if images.shape() != takes {
        let [h, w, c] = images.shape();
        return fail(format!(
            "its images are {h}x{w}x{c}, not {}x{}x{} as for",
            takes[0], takes[1], takes[2]
        ));
    }
    if images.classes.len() != model.classes() {
        return fail(format!("it has {} classes, not {} as", images.classes.len(), model.classes()));
    }
    Ok(())
}

/// [`check_fit`] and the arena's own size rule these out.
fn impossible(cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Model, cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{every_op, images};
    use crate::export::{ExportOptions, export};
    use crate::quantize::Width;

    fn file(seed: u64) -> Vec<u8> {
        export(&every_op(Width::W2, seed), &ExportOptions::default()).unwrap().bytes
    }

    fn set(count: usize) -> Dataset {
        images(&every_op(Width::W2, 0).network, count, 11)
    }

    #[test]
    fn every_image_gets_its_own_logits_and_class() {
        let (file, set) = (file(0), set(41));
        let seen = AtomicUsize::new(0);
        let evaluation = evaluate_model_with(&file, &set, |done| {
            assert!((1..=41).contains(&done));
            seen.fetch_add(done, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(seen.into_inner(), 41 * 42 / 2);
        assert_eq!(evaluation, evaluate_model(&file, &set).unwrap());

        let model = Model::parse(&file).unwrap();
        let mut arena = vec![0; model.arena_bytes()];
        let mut session = Session::new(&model, &mut arena).unwrap();
        let mut right = 0;
        for i in 0..set.len() {
            let logits = session.run(Image::new(&model, set.image(i)).unwrap(), &mut ());
            assert_eq!(logits.iter().collect::<Vec<_>>(), evaluation.logits[i * 5..][..5]);
            assert_eq!(logits.top1() as u16, evaluation.predictions[i]);
            right += usize::from(logits.top1() as u16 == set.label(i));
        }
        assert_eq!(evaluation.images, 41);
        assert_eq!(evaluation.top1, 100.0 * right as f32 / 41.0);
        let json = serde_json::to_value(&evaluation).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["images", "top1"]);
    }

    #[test]
    fn no_images_are_no_accuracy() {
        let evaluation = evaluate_model(&file(0), &set(0)).unwrap();
        assert_eq!((evaluation.top1, evaluation.images), (0.0, 0));
    }

    #[test]
    fn images_of_another_size_or_set_are_data_errors() {
        let mut other = set(2);
        (other.height, other.width) = (other.width, other.height);
        let error = evaluate_model(&file(0), &other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("8x10x3, not 10x8x3"), "{error}");
        let mut other = set(2);
        other.classes.push("one more".into());
        let error = evaluate_model(&file(0), &other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("6 classes, not 5"), "{error}");
    }

    #[test]
    fn agreement_is_a_share() {
        assert_eq!(agreement(&[1, 2, 3, 4], &[1, 2, 0, 4]), 75.0);
        assert_eq!(agreement(&[], &[]), 100.0);
    }

    #[test]
    fn damaged_files_are_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let load = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            load_model_file(&path)
        };
        let whole = file(1);
        assert_eq!(load("whole.adq", &whole).unwrap(), whole);
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 4;
        let mut newer = whole.clone();
        newer[8] = 9;
        for (name, bytes, words) in [
            (
                "cut.adq",
                &whole[..whole.len() - 1],
                &["ends after", "copy the file again"][..],
            ),
            ("flipped.adq", &flipped, &["checksum", "copy the file again"]),
            ("newer.adq", &newer, &["version 9", "newer adcorda"]),
            (
                "photo.adq",
                b"\xff\xd8\xff\xe0 and so on",
                &["not an adq model", "adcorda export"],
            ),
            ("empty.adq", b"", &["ends after 0", "copy the file again"]),
        ] {
            let error = load(name, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Model);
            let text = error.to_string();
            assert!(text.contains(name), "{text}");
            for word in words {
                assert!(text.contains(word), "{text:?} does not say {word:?}");
            }
        }
        let error = load_model_file(folder.path().join("none.adq")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}
