//! The official CIFAR-10 and CIFAR-100 binary files, with any number of records in each.
//!
//! A record is one label byte (CIFAR-100: the coarse class, then the fine one; the fine one is used) and 3,072 pixel
//! bytes: the 32x32 red plane, then green, then blue, each row by row. There is no header, so a file's length is its only
//! check; every label is checked too. Source: Krizhevsky 2009, <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::path::{Path, PathBuf};

use super::{Dataset, Split};
use crate::{Error, ErrorKind, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const CHANNELS: usize = 3;

/// Which of the two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 10 classes, one label byte.
    Cifar10,
    /// 100 fine classes, two label bytes.
    Cifar100,
}

impl Variant {
    /// `cifar10` or `cifar100`.
    pub const fn name(self) -> &'static str {
        match self {
            Variant::Cifar10 => "cifar10",
            Variant::Cifar100 => "cifar100",
        }
    }

    /// The folder in the official archive.
    pub const fn folder(self) -> &'static str {
        match self {
            Variant::Cifar10 => "cifar-10-batches-bin",
            Variant::Cifar100 => "cifar-100-binary",
        }
    }

    /// The files of one half, of which at least one must exist.
    pub const fn files(self, split: Split) -> &'static [&'static str] {
        match (self, split) {
            (Variant::Cifar10, Split::Train) => &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            (Variant::Cifar10, Split::Test) => &["test_batch.bin"],
            (Variant::Cifar100, Split::Train) => &["train.bin"],
            (Variant::Cifar100, Split::Test) => &["test.bin"],
        }
    }

    /// The file with the names of the classes, one a line.
    pub const fn names_file(self) -> &'static str {
        match self {
            Variant::Cifar10 => "batches.meta.txt",
            Variant::Cifar100 => "fine_label_names.txt",
        }
    }

    const fn standard_names(self) -> &'static [&'static str] {
        match self {
            Variant::Cifar10 => &CIFAR10_NAMES,
            Variant::Cifar100 => &CIFAR100_NAMES,
        }
    }

    /// Label bytes of a record; the last one is the class.
    const fn label_bytes(self) -> usize {
        match self {
            Variant::Cifar10 => 1,
            Variant::Cifar100 => 2,
        }
    }

    /// Bytes of a record: 3,073 or 3,074.
    pub const fn record_bytes(self) -> usize {
        self.label_bytes() + CHANNELS * PLANE
    }
}

/// Reads one half of the set from `folder`, or from the official archive's folder within it.
///
/// Of CIFAR-10's five training files those that exist are read, in order. Without the file of class names the standard
/// names are used.
///
/// # Errors
/// [`ErrorKind::Data`]: no such folder, none of the files, an empty file, a file that is not whole records, a label that is
/// no class, another number of class names than classes. [`ErrorKind::Io`]: a file cannot be read.
pub fn load(variant: Variant, folder: &Path, split: Split) -> Result<Dataset> {
    let (folder, files) = locate(variant, folder, split)?;
    let classes = class_names(variant, &folder)?;
    let mut images = Vec::new();
    let mut labels = Vec::new();
    for path in files {
        let bytes = crate::file::read(&path)?;
        read_records(variant, &path, &bytes, &mut images, &mut labels)?;
    }
    Ok(Dataset {
        name: format!("{}/{split}", variant.name()),
        classes,
        height: SIDE,
        width: SIDE,
        channels: CHANNELS,
        images,
        labels,
    })
}

/// The folder that holds the files, and the files that exist there.
fn locate(variant: Variant, folder: &Path, split: Split) -> Result<(PathBuf, Vec<PathBuf>)> {
    let remedy = || {
        format!(
            "`adcorda data fetch {}:{}` downloads the set there",
            variant.name(),
            folder.display()
        )
    };
    if !folder.is_dir() {
        let message = if folder.exists() {
            format!("{} is a file, not a folder of {} files", folder.display(), variant.name())
        } else {
            format!("no folder {}", folder.display())
        };
        return Err(Error::new(ErrorKind::Data, message).remedy(remedy()));
    }
    for candidate in [folder.to_owned(), folder.join(variant.folder())] {
        let files = variant.files(split).iter().map(|name| candidate.join(name));
        let found: Vec<PathBuf> = files.filter(|path| path.exists()).collect();
        if !found.is_empty() {
            return Ok((candidate, found));
        }
    }
    Err(Error::new(
        ErrorKind::Data,
        format!(
            "no {} in {} or its folder {}",
            variant.files(split)[0],
            folder.display(),
            variant.folder()
        ),
    )
    .remedy(remedy()))
}

fn class_names(variant: Variant, folder: &Path) -> Result<Vec<String>> {
    let standard = variant.standard_names();
    let path = folder.join(variant.names_file());
    if !path.exists() {
        return Ok(standard.iter().map(|&name| name.to_owned()).collect());
    }
    let text = String::from_utf8(crate::file::read(&path)?)
        .map_err(|_| Error::new(ErrorKind::Data, format!("{}: class names are not UTF-8 text", path.display())))?;
    let names: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect();
    if names.len() != standard.len() {
        return Err(Error::new(
            ErrorKind::Data,
            format!(
                "{}: {} class names for {} classes",
                path.display(),
                names.len(),
                standard.len()
            ),
        )
        .remedy("write one name a line, or delete the file to use the standard names"));
    }
    Ok(names)
}

fn read_records(variant: Variant, path: &Path, bytes: &[u8], images: &mut Vec<u8>, labels: &mut Vec<u16>) -> Result<()> {
    let record_bytes = variant.record_bytes();
    let fail = |message: String| Error::new(ErrorKind::Data, format!("{}: {message}", path.display()));
    if bytes.is_empty() {
        return Err(fail("the file is empty".into()).remedy("copy or download it again"));
    }
    let (records, remainder) = (bytes.len() / record_bytes, bytes.len() % record_bytes);
    if remainder != 0 {
        return Err(fail(format!(
            "{} bytes are {records} records of {record_bytes} bytes and {remainder} bytes more: the file is truncated or not {}",
            bytes.len(),
            variant.name()
        ))
        .remedy("copy or download it again"));
    }
    let classes = variant.standard_names().len();
    images.reserve(records * CHANNELS * PLANE);
    labels.reserve(records);
    for (record, data) in bytes.chunks_exact(record_bytes).enumerate() {
        let (label, pixels) = data.split_at(variant.label_bytes());
        let label = label[label.len() - 1];
        if usize::from(label) >= classes {
            return Err(fail(format!(
                "record {record} has label {label}, but {} has classes 0 to {}",
                variant.name(),
                classes - 1
            ))
            .remedy("the file is damaged or of another set: copy or download it again"));
        }
        labels.push(u16::from(label));
        let (red, rest) = pixels.split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            images.extend_from_slice(&[r, g, b]);
        }
    }
    Ok(())
}

const CIFAR10_NAMES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

#[rustfmt::skip]
const CIFAR100_NAMES: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A record whose pixel `i` of plane `c` is `i + 50 c + salt`, modulo 256.
    fn record(labels: &[u8], salt: usize) -> Vec<u8> {
        let mut bytes = labels.to_vec();
        bytes.extend((0..CHANNELS).flat_map(|c| (0..PLANE).map(move |i| (i + 50 * c + salt) as u8)));
        bytes
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn error(variant: Variant, folder: &Path, split: Split, needles: &[&str]) {
        let error = load(variant, folder, split).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        for needle in needles {
            assert!(error.to_string().contains(needle), "no `{needle}` in: {error}");
        }
    }

    #[test]
    fn cifar10_joins_the_files_that_exist_and_turns_planes_into_pixels() {
        let dir = folder();
        fs::write(
            dir.path().join("data_batch_2.bin"),
            [record(&[3], 0), record(&[9], 1)].concat(),
        )
        .unwrap();
        fs::write(dir.path().join("data_batch_5.bin"), record(&[0], 7)).unwrap();
        let set = load(Variant::Cifar10, dir.path(), Split::Train).unwrap();
        assert_eq!(set.name, "cifar10/train");
        assert_eq!(set.labels(), [3, 9, 0]);
        assert_eq!(set.shape(), [32, 32, 3]);
        assert_eq!(set.classes[9], "truck");
        for (image, salt) in [(0, 0), (1, 1), (2, 7)] {
            let expected: Vec<u8> = (0..PLANE)
                .flat_map(|i| [i + salt, i + 50 + salt, i + 100 + salt].map(|v| v as u8))
                .collect();
            assert_eq!(set.image(image), expected);
        }
    }

    #[test]
    fn cifar100_uses_the_fine_label() {
        let dir = folder();
        fs::write(
            dir.path().join("test.bin"),
            [record(&[19, 99], 0), record(&[0, 1], 0)].concat(),
        )
        .unwrap();
        let set = load(Variant::Cifar100, dir.path(), Split::Test).unwrap();
        assert_eq!(set.labels(), [99, 1]);
        assert_eq!((set.classes.len(), set.classes[99].as_str()), (100, "worm"));
        assert_eq!(set.image(0)[..3], [0, 50, 100]);
    }

    #[test]
    fn the_folder_of_the_official_archive_is_found_below() {
        for variant in [Variant::Cifar10, Variant::Cifar100] {
            let dir = folder();
            let inner = dir.path().join(variant.folder());
            fs::create_dir(&inner).unwrap();
            let labels = vec![1; variant.label_bytes()];
            fs::write(inner.join(variant.files(Split::Test)[0]), record(&labels, 0)).unwrap();
            assert_eq!(load(variant, dir.path(), Split::Test).unwrap().len(), 1);
            assert_eq!(load(variant, &inner, Split::Test).unwrap().len(), 1);
        }
    }

    #[test]
    fn class_names_come_from_the_file() {
        let dir = folder();
        fs::write(dir.path().join("test_batch.bin"), record(&[0], 0)).unwrap();
        let names = dir.path().join("batches.meta.txt");
        fs::write(&names, "a\r\nb\nc\nd\ne\nf\ng\nh\ni\nj j\n\n").unwrap();
        let set = load(Variant::Cifar10, dir.path(), Split::Test).unwrap();
        assert_eq!(set.classes.concat(), "abcdefghij j");
        fs::write(&names, "a\nb\n").unwrap();
        error(
            Variant::Cifar10,
            dir.path(),
            Split::Test,
            &["batches.meta.txt", "2 class names for 10 classes"],
        );
        fs::write(&names, [0xFF, 0xFE]).unwrap();
        error(Variant::Cifar10, dir.path(), Split::Test, &["not UTF-8"]);
    }

    #[test]
    fn a_missing_folder_or_file_names_the_remedy() {
        let dir = folder();
        let none = dir.path().join("none");
        error(
            Variant::Cifar10,
            &none,
            Split::Train,
            &["no folder", "none", "adcorda data fetch cifar10:"],
        );
        error(
            Variant::Cifar100,
            dir.path(),
            Split::Train,
            &["no train.bin", "adcorda data fetch cifar100:"],
        );
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        error(Variant::Cifar10, &file, Split::Test, &["is a file"]);
    }

    #[test]
    fn an_empty_file_is_an_error() {
        let dir = folder();
        fs::write(dir.path().join("test_batch.bin"), "").unwrap();
        error(Variant::Cifar10, dir.path(), Split::Test, &["test_batch.bin", "empty"]);
    }

    #[test]
    fn a_part_of_a_record_is_an_error() {
        let dir = folder();
        let mut bytes = [record(&[1], 0), record(&[2], 0)].concat();
        bytes.truncate(5000);
        fs::write(dir.path().join("data_batch_1.bin"), bytes).unwrap();
        error(
            Variant::Cifar10,
            dir.path(),
            Split::Train,
            &["data_batch_1.bin", "5000 bytes", "3073 bytes", "1927 bytes more", "truncated"],
        );
    }

    #[test]
    fn a_label_out_of_range_is_an_error() {
        let dir = folder();
        fs::write(
            dir.path().join("test_batch.bin"),
            [record(&[9], 0), record(&[10], 0)].concat(),
        )
        .unwrap();
        error(
            Variant::Cifar10,
            dir.path(),
            Split::Test,
            &["test_batch.bin", "record 1", "label 10", "0 to 9"],
        );
        fs::write(dir.path().join("train.bin"), record(&[0, 100], 0)).unwrap();
        error(
            Variant::Cifar100,
            dir.path(),
            Split::Train,
            &["train.bin", "record 0", "label 100", "0 to 99"],
        );
    }
}
