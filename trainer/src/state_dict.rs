//! Named float tensors on the host: what files hold and what [`crate::nn`] is filled from.
//!
//! Reads safetensors and PyTorch files (zip and the older format), writes nothing: that is [`crate::checkpoint`]'s.

use std::collections::BTreeMap;
use std::path::Path;

use burn_store::pytorch::PytorchReader;
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
            drop(bytes);
            read_pytorch(path)?
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
    /// The same for a seed on every platform.
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

/// A zip archive, or a pickle (protocol 2 and later start with 0x80).
fn looks_like_pytorch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.first() == Some(&0x80)
}

/// Box-Muller; one of the two numbers is dropped, so that a tensor's values do not depend on its neighbours' parity.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
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

fn read_pytorch(path: &Path) -> Result<BTreeMap<String, Array>> {
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

/// Without the prefix that PyTorch's DataParallel adds; `None` for BatchNorm's counter, which nothing here uses.
fn kept_name(name: &str) -> Option<&str> {
    let name = name.strip_prefix("module.").unwrap_or(name);
    (name.rsplit('.').next() != Some("num_batches_tracked")).then_some(name)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
