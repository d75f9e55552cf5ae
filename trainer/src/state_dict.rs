//! Named float tensors on the host: what files hold and what [`crate::nn`] is filled from.
//!
//! Reads safetensors and PyTorch files (zip and the older format), writes nothing: that is [`crate::checkpoint`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn_store::pytorch::PytorchReader;
use burn_store::pytorch::lazy_data::LazyDataSource;
use burn_store::pytorch::pickle_reader::{Object, read_pickle, skip_pickle};
use rand::Rng;
use safetensors::{Dtype, SafeTensors};

use crate::data::batch::{Purpose, rng};
use crate::network::{Network, Op};
use crate::{Error, ErrorKind, Result};

/// A dense float tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub values: Vec<f32>,
}

impl Array {
    /// The values of row `row` of a tensor seen as `[shape[0], rest]`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        let k = self.row_len();
        &self.values[row * k..][..k]
    }

    /// Rows: the outermost dimension, output channels for weights.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Values of a row.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// Tensors by name, PyTorch names and layouts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    /// Sorted by name.
    pub tensors: BTreeMap<String, Array>,
}

impl StateDict {
    /// Reads a safetensors file or a PyTorch checkpoint (`.pt`, `.pth`, `.th`, zip or older), told apart by content.
    ///
    /// In a PyTorch file the tensors may lie at the top or under `state_dict`. The prefix `module.` is dropped and
    /// `num_batches_tracked` left out; 16-bit floats and doubles are converted.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the file cannot be read; [`ErrorKind::Weights`] where it is neither format, damaged, or holds a
    /// tensor that is not of floats.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = crate::file::read(path)?;
        let tensors = if looks_like_pytorch(&bytes) {
            read_pytorch(path, &bytes)?
        } else {
            read_safetensors(path, &bytes)?
        };
        if tensors.is_empty() {
            return Err(Error::new(
                ErrorKind::Weights,
                format!("{}: it holds no tensor", path.display()),
            ));
        }
        Ok(Self { tensors })
    }

    /// Random initial weights: Kaiming normal for the fan-out with the gain of ReLU, biases 0, BatchNorm the identity.
    /// The same bits for a seed on every platform.
    ///
    /// # Errors
    /// As [`Network::shapes`].
    ///
    /// # Source
    /// He et al. 2015, "Delving deep into rectifiers".
    pub fn init(network: &Network, seed: u64) -> Result<Self> {
        let mut rng = rng(seed, Purpose::Initialization, 0);
        let fan_outs: BTreeMap<String, usize> = network
            .layers
            .iter()
            .filter_map(|layer| {
                let fan_out = match &layer.op {
                    Op::Conv2d {
                        out_channels, window, ..
                    } => out_channels * window.kernel_height as usize * window.kernel_width as usize,
                    Op::DepthwiseConv2d { window, .. } => window.kernel_height as usize * window.kernel_width as usize,
                    Op::Linear { out_features, .. } => *out_features,
                    Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => return None,
                };
                Some((format!("{}.weight", layer.name), fan_out))
            })
            .collect();
        let mut tensors = BTreeMap::new();
        for (name, shape) in network.parameters()? {
            let len = shape.iter().product();
            let values = match fan_outs.get(&name) {
                Some(&fan_out) => {
                    let std = (2.0 / fan_out as f64).sqrt();
                    (0..len).map(|_| (standard_normal(&mut rng) * std) as f32).collect()
                }
                // What is left of that name is BatchNorm's gamma.
                None if name.ends_with(".weight") || name.ends_with(".running_var") => vec![1.0; len],
                None => vec![0.0; len],
            };
            tensors.insert(name, Array { shape, values });
        }
        Ok(Self { tensors })
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] where there is none.
    pub fn get(&self, name: &str) -> Result<&Array> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::new(ErrorKind::Weights, format!("tensor {name} is missing")))
    }

    /// Number of values of all tensors.
    pub fn values(&self) -> usize {
        self.tensors.values().map(|array| array.values.len()).sum()
    }

    /// Whether these are exactly `network`'s tensors, all finite, no variance negative.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] with one line for every tensor that is missing, not the network's, of another shape, or holds
    /// a value that cannot be.
    pub fn check(&self, network: &Network) -> Result<()> {
        let expected: BTreeMap<String, Vec<usize>> = network.parameters()?.into_iter().collect();
        let mut problems = Vec::new();
        for (name, shape) in &expected {
            match self.tensors.get(name) {
                None => problems.push(format!("missing {name} {}", dimensions(shape))),
                Some(array) if array.shape != *shape => problems.push(format!(
                    "{name}: expected {}, found {}",
                    dimensions(shape),
                    dimensions(&array.shape)
                )),
                Some(array) => problems.extend(array.impossible_value(name)),
            }
        }
        for (name, array) in &self.tensors {
            if !expected.contains_key(name) {
                problems.push(format!("{name} {}: the network has no such tensor", dimensions(&array.shape)));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Weights,
            format!(
                "the weights do not fit network {} ({}):\n  {}",
                network.name,
                match problems.len() {
                    1 => "1 problem".into(),
                    n => format!("{n} problems"),
                },
                problems.join("\n  ")
            ),
        )
        .remedy("give the weights of this network and number of classes, or name the network that they belong to"))
    }
}

impl Array {
    fn impossible_value(&self, name: &str) -> Option<String> {
        let variance = name.ends_with(".running_var");
        let at = self.values.iter().position(|v| !v.is_finite() || (variance && *v < 0.0))?;
        let more = self.values[at + 1..].iter().filter(|v| !v.is_finite()).count();
        let more = match more {
            0 => String::new(),
            more => format!(" ({more} more are not finite)"),
        };
        Some(format!("{name}: value {} at {}{more}", self.values[at], self.position(at)))
    }

    /// `[i, j, ...]` of element `index`.
    fn position(&self, mut index: usize) -> String {
        let mut position = vec![0; self.shape.len()];
        for (coordinate, &size) in position.iter_mut().zip(&self.shape).rev() {
            *coordinate = index % size;
            index /= size;
        }
        format!("{position:?}")
    }
}

/// `64x32x3x3`, or `scalar`.
fn dimensions(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// What a zip archive starts with.
const ZIP: &[u8] = b"PK\x03\x04";

/// A zip archive, or a pickle (protocol 2 and later start with 0x80).
fn looks_like_pytorch(bytes: &[u8]) -> bool {
    bytes.starts_with(ZIP) || bytes.first() == Some(&0x80)
}

/// Nearly normal, mean 0 and variance 1: the sum of twelve uniform numbers. Only additions, unlike the exact methods, whose
/// logarithms differ in their last bit between platforms.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Weights, format!("{}: {what}", path.display()))
        .remedy("give a whole safetensors file or PyTorch checkpoint; download it again if it was cut short")
}

fn read_safetensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Array>> {
    let file =
        SafeTensors::deserialize(bytes).map_err(|cause| damaged(path, format!("not a whole safetensors file ({cause})")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let Some(name) = kept_name(name) else { continue };
        let values = floats(view.dtype(), view.data())
            .ok_or_else(|| damaged(path, format!("tensor {name} is of {:?}, not of floats", view.dtype())))?;
        let shape = view.shape().to_vec();
        tensors.insert(name.to_owned(), Array { shape, values });
    }
    Ok(tensors)
}

/// Little-endian bytes as singles; `None` where they are not floats.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    // The remainders are empty: the file's reader checked length against shape.
    if dtype == Dtype::F32 {
        Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    } else if dtype == Dtype::F64 {
        Some(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect())
    } else if dtype == Dtype::BF16 {
        let wide = |&b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
        Some(bytes.as_chunks().0.iter().map(wide).collect())
    } else if dtype == Dtype::F16 {
        Some(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32_from_f16(u16::from_le_bytes(b)))
                .collect(),
        )
    } else {
        None
    }
}

fn f32_from_f16(half: u16) -> f32 {
    let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1F), f32::from(half & 0x3FF) / 1024.0);
    sign * match exponent {
        0 => fraction * 2f32.powi(-14),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction) * 2f32.powi(exponent - 15),
    }
}

fn read_pytorch(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Array>> {
    check_pytorch_data(path, bytes)?;
    let reader = match PytorchReader::with_top_level_key(path, "state_dict") {
        Ok(reader) if !reader.is_empty() => reader,
        _ => PytorchReader::new(path).map_err(|cause| {
            damaged(
                path,
                format!("not a whole PyTorch checkpoint ({})", one_line(&cause.to_string())),
            )
        })?,
    };
    let mut tensors = BTreeMap::new();
    for (name, snapshot) in reader.into_tensors() {
        let Some(name) = kept_name(&name) else { continue };
        let data = snapshot.to_data().map_err(|cause| {
            damaged(
                path,
                format!("tensor {name} cannot be read ({})", one_line(&format!("{cause:?}"))),
            )
        })?;
        if !data.dtype.is_float() {
            return Err(damaged(path, format!("tensor {name} is of {:?}, not of floats", data.dtype)));
        }
        let shape = data.shape.to_vec();
        let values = data
            .convert::<f32>()
            .into_vec()
            .map_err(|cause| damaged(path, format!("tensor {name} cannot be read ({cause:?})")))?;
        tensors.insert(name.to_owned(), Array { shape, values });
    }
    Ok(tensors)
}

/// burn's reader takes tensor data that is missing or damaged for zeros, so whether it is all there is checked beforehand.
fn check_pytorch_data(path: &Path, bytes: &[u8]) -> Result<()> {
    let cut = |cause: &dyn std::fmt::Display| {
        damaged(
            path,
            format!("not a whole PyTorch checkpoint ({})", one_line(&cause.to_string())),
        )
    };
    if bytes.starts_with(ZIP) {
        let archive = LazyDataSource::from_zip(path).map_err(|cause| cut(&cause))?;
        for key in archive.keys() {
            // Reading to the end of an entry checks its CRC.
            archive.read(&key).map_err(|cause| cut(&format!("{key}: {cause}")))?;
        }
        return Ok(());
    }
    // The older format: magic number, protocol, system and the object as a pickle each, then a pickle with the keys of the
    // storages, then for each of them its number of elements and their bytes.
    let mut rest = bytes;
    for _ in 0..4 {
        skip_pickle(&mut rest).map_err(|cause| cut(&format!("{cause:?}")))?;
    }
    let storages = match read_pickle(&mut rest) {
        Ok(Object::List(keys)) => keys.len(),
        Ok(_) => return Err(cut(&"it has no list of storages")),
        Err(cause) => return Err(cut(&format!("{cause:?}"))),
    };
    // The size of an element is known to the object's pickle alone. So every size is tried; a wrong one hardly ever leads to
    // another storage's head, and never all the way to the end of the file.
    let mut starts = BTreeSet::from([0]);
    for _ in 0..storages {
        let mut ends = BTreeSet::new();
        for start in starts {
            let Some(head) = rest.get(start..).and_then(|tail| tail.first_chunk()) else {
                continue;
            };
            let elements = u64::from_le_bytes(*head);
            let end = |size| {
                usize::try_from(elements)
                    .ok()?
                    .checked_mul(size)?
                    .checked_add(start + head.len())
            };
            ends.extend([1, 2, 4, 8].into_iter().filter_map(end).filter(|&end| end <= rest.len()));
        }
        starts = ends;
    }
    if starts.contains(&rest.len()) {
        Ok(())
    } else {
        Err(cut(&"it ends within its tensors, or has bytes after them"))
    }
}

/// Without the prefix that PyTorch's DataParallel adds; `None` for BatchNorm's counter, which nothing here uses.
fn kept_name(name: &str) -> Option<&str> {
    let name = name.strip_prefix("module.").unwrap_or(name);
    (name.rsplit('.').next() != Some("num_batches_tracked")).then_some(name)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::zoo::zoo;

    fn tiny() -> (Network, StateDict) {
        let network = zoo("tiny", 10).unwrap();
        let state = StateDict::init(&network, 3).unwrap();
        (network, state)
    }

    fn safetensors_file(tensors: &[(&str, Dtype, Vec<usize>, &[u8])]) -> tempfile::NamedTempFile {
        let views: HashMap<String, safetensors::tensor::TensorView> = tensors
            .iter()
            .map(|(name, dtype, shape, data)| {
                let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
                (name.to_string(), view)
            })
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), safetensors::serialize(views, None).unwrap()).unwrap();
        file
    }

    #[test]
    fn initial_weights_have_the_spread_of_their_fan_out() {
        let network = zoo("resnet20", 10).unwrap();
        let state = StateDict::init(&network, 1).unwrap();
        state.check(&network).unwrap();
        assert_eq!(state, StateDict::init(&network, 1).unwrap());
        assert_ne!(state, StateDict::init(&network, 2).unwrap());
        let weights = &state.tensors["layer3.2.conv1.weight"].values;
        let count = weights.len() as f64;
        let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / count;
        let std = (weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / count).sqrt();
        let expected = (2.0f64 / (64.0 * 9.0)).sqrt();
        assert!(
            (std / expected - 1.0).abs() < 0.02 && mean.abs() < 0.02 * expected,
            "{mean} {std}"
        );
        // Four standard deviations occur in so many numbers, seven cannot.
        let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
        assert!(f64::from(largest) > 3.5 * expected && f64::from(largest) < 6.0 * expected);
        assert_eq!(state.tensors["bn1.weight"].values, [1.0; 16]);
        assert_eq!(state.tensors["bn1.running_var"].values, [1.0; 16]);
        assert_eq!(state.tensors["bn1.running_mean"].values, [0.0; 16]);
        assert_eq!(state.tensors["linear.bias"].values, [0.0; 10]);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let (network, mut state) = tiny();
        let renamed = state.tensors.remove("conv2.weight").unwrap();
        state.tensors.insert("conv3.weight".into(), renamed);
        state.tensors.get_mut("fc.weight").unwrap().shape = vec![24, 10];
        let conv = &mut state.tensors.get_mut("conv1.weight").unwrap().values;
        conv[3 * 9 + 5] = f32::NAN;
        conv[40] = f32::INFINITY;
        state.tensors.get_mut("bn1.running_var").unwrap().values[7] = -0.5;
        let error = state.check(&network).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        let text = error.to_string();
        for needle in [
            "missing conv2.weight 24x12x3x3",
            "conv3.weight 24x12x3x3: the network has no such tensor",
            "fc.weight: expected 10x24, found 24x10",
            "conv1.weight: value NaN at [1, 0, 1, 2] (1 more are not finite)",
            "bn1.running_var: value -0.5 at [7]",
            "5 problems",
        ] {
            assert!(text.contains(needle), "{needle} in {text}");
        }
    }

    #[test]
    fn safetensors_of_every_float_type_are_read() {
        let halves: Vec<u8> = [0x3C00u16, 0xC000, 0x0001, 0x7BFF]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let brains: Vec<u8> = [0x3F80u16, 0xC040].iter().flat_map(|v| v.to_le_bytes()).collect();
        let singles: Vec<u8> = [1.5f32, -0.25].iter().flat_map(|v| v.to_le_bytes()).collect();
        let doubles: Vec<u8> = 0.1f64.to_le_bytes().to_vec();
        let file = safetensors_file(&[
            ("module.a", Dtype::F16, vec![2, 2], &halves),
            ("b", Dtype::BF16, vec![2], &brains),
            ("c", Dtype::F32, vec![2, 1], &singles),
            ("d", Dtype::F64, vec![1], &doubles),
            ("bn.num_batches_tracked", Dtype::I64, vec![1], &[0; 8]),
        ]);
        let state = StateDict::load(file.path()).unwrap();
        let values = |name: &str| state.tensors[name].values.clone();
        assert_eq!(state.tensors.keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert_eq!(values("a"), [1.0, -2.0, 2f32.powi(-24), 65504.0]);
        assert_eq!(state.tensors["a"].shape, [2, 2]);
        assert_eq!(values("b"), [1.0, -3.0]);
        assert_eq!(values("c"), [1.5, -0.25]);
        assert_eq!(values("d"), [0.1f32]);
    }

    #[test]
    fn tensors_of_integers_are_refused() {
        let file = safetensors_file(&[("steps", Dtype::I64, vec![1], &[0; 8])]);
        let error = StateDict::load(file.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        assert!(error.to_string().contains("tensor steps is of I64"), "{error}");
    }

    #[test]
    fn damaged_files_name_themselves() {
        let whole = std::fs::read(safetensors_file(&[("w", Dtype::F32, vec![2], &[0; 8])]).path()).unwrap();
        let mut cases: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        cases.push(b"PK\x03\x04 no archive".to_vec());
        cases.push([&[0x80, 2][..], b"no pickle at all"].concat());
        cases.push(b"GIF89a and so on, some more bytes".to_vec());
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in cases {
            std::fs::write(file.path(), &bytes).unwrap();
            let error = StateDict::load(file.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weights, "{bytes:?}");
            assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
        }
    }

    #[test]
    fn missing_files_are_io_errors() {
        let error = StateDict::load("no/such/weights.safetensors").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("no/such/weights.safetensors"), "{error}");
    }

    /// The published files, where `ADCORDA_TEST_DATA` is a folder with `models` in it.
    #[test]
    fn published_weights_load_and_fit() {
        let Some(folder) = std::env::var_os("ADCORDA_TEST_DATA") else {
            eprintln!("skipped: ADCORDA_TEST_DATA is not set");
            return;
        };
        let models = Path::new(&folder).join("models");
        let load = |file: &str| StateDict::load(models.join(file)).unwrap();
        load("mlperf-tiny-resnet8.safetensors")
            .check(&zoo("resnet8", 10).unwrap())
            .unwrap();
        let resnet20 = load("resnet20-cifar10.safetensors");
        resnet20.check(&zoo("resnet20", 10).unwrap()).unwrap();
        assert_eq!(load("resnet20-cifar10.th"), resnet20);
        assert!(resnet20.check(&zoo("resnet8", 10).unwrap()).is_err());

        let legacy = std::fs::read(models.join("resnet20-cifar10.th")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for len in [1, 100, 5000, legacy.len() / 2, legacy.len() - 4, legacy.len() - 1] {
            std::fs::write(file.path(), &legacy[..len]).unwrap();
            let error = StateDict::load(file.path()).map(|state| state.values()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weights, "{len}");
        }
    }
}
