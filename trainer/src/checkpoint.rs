//! A checkpoint: one safetensors file with a network, its weights and, once quantized, how.
//!
//! Tensors are the state dict under its PyTorch names; network, quantization, labels and provenance are JSON in the metadata.
//! Readable by every safetensors library.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::quantize::Quantization;
use crate::state_dict::{Array, StateDict};
use crate::{Error, ErrorKind, Result};

/// Where the weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Data set, e.g. `cifar10`.
    pub data: String,
    /// `imported`, `train`, `ptq`, `qat`, `adcorda`.
    pub method: String,
    /// Seed of the run.
    pub seed: u64,
    /// Top-1 on the test set in per cent, where measured.
    pub top1: Option<f32>,
}

/// A network with its weights, float or quantized.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub network: Network,
    /// Float master weights and BatchNorm statistics.
    pub state: StateDict,
    /// Present once quantized.
    pub quantization: Option<Quantization>,
    /// Class names; may be empty.
    pub labels: Vec<String>,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// Version of [`Description`]; a reader refuses a newer one.
const VERSION: u32 = 1;

/// The one key in the file's metadata, which holds a [`Description`] as JSON. One, because the metadata is an unordered map
/// and the file's bytes are to be the same every time.
const KEY: &str = "adcorda";

/// What precedes the name of an extra tensor of bytes. No layer's tensor starts with it: a layer name has no slash.
const EXTRA: &str = "extra/";

/// Everything about a checkpoint that is no tensor.
#[derive(Serialize, Deserialize)]
struct Description<'a> {
    version: u32,
    network: Cow<'a, Network>,
    quantization: Cow<'a, Option<Quantization>>,
    labels: Cow<'a, [String]>,
    provenance: Cow<'a, Provenance>,
}

impl Checkpoint {
    /// Writes the checkpoint in one step: a reader sees the old file or the new one. The same checkpoint gives the same bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the file.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &BTreeMap::new())
    }

    /// As [`save`](Self::save), with named bytes beside the weights: an optimizer's state, say. They come back from
    /// [`load_with`](Self::load_with); [`load`](Self::load) passes over them.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn save_with(&self, path: impl AsRef<Path>, extra: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let path = path.as_ref();
        crate::file::write_atomic(path, &self.to_bytes(extra)?)
    }

    /// Reads a checkpoint written by [`save`](Self::save).
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the file cannot be read; [`ErrorKind::Weights`] where it is damaged, of a newer version, not a
    /// checkpoint of this program, or its weights do not fit its network.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::load_with(path)?.0)
    }

    /// Reads a checkpoint and the named bytes saved with it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(path: impl AsRef<Path>) -> Result<(Self, BTreeMap<String, Vec<u8>>)> {
        let path = path.as_ref();
        let bytes = crate::file::read(path)?;
        Self::from_bytes(&bytes).map_err(|error| Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    fn to_bytes(&self, extra: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
        let description = Description {
            version: VERSION,
            network: Cow::Borrowed(&self.network),
            quantization: Cow::Borrowed(&self.quantization),
            labels: Cow::Borrowed(&self.labels),
            provenance: Cow::Borrowed(&self.provenance),
        };
        let unwritable = |cause: &dyn std::fmt::Display| {
            Error::new(
                ErrorKind::Weights,
                format!("the checkpoint of {} cannot be written: {cause}", self.network.name),
            )
        };
        let json = serde_json::to_string(&description).map_err(|cause| unwritable(&cause))?;
        let weights = self
            .state
            .tensors
            .iter()
            .map(|(name, array)| (name.clone(), Bytes::of_array(array)));
        let extra = extra
            .iter()
            .map(|(name, bytes)| (format!("{EXTRA}{name}"), Bytes::of_bytes(bytes)));
        let metadata = HashMap::from([(KEY.to_owned(), json)]);
        safetensors::serialize(weights.chain(extra), Some(metadata)).map_err(|cause| unwritable(&cause))
    }

    fn from_bytes(bytes: &[u8]) -> Result<(Self, BTreeMap<String, Vec<u8>>)> {
        let damaged = |what: String| Error::new(ErrorKind::Weights, what);
        let foreign = || {
            damaged("it is not a checkpoint of adcorda".into())
                .remedy("`adcorda import NETWORK --weights FILE -o CKPT` makes one of a weights file")
        };
        // A PyTorch file is no damaged safetensors file.
        if bytes.len() >= 9 && bytes[8] != b'{' {
            return Err(foreign());
        }
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|cause| damaged(format!("it is damaged or cut short ({cause})")))?;
        let json = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(KEY))
            .ok_or_else(foreign)?;
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        match serde_json::from_str(json) {
            Ok(Version { version: VERSION }) => {}
            Ok(Version { version }) => {
                return Err(damaged(format!(
                    "it is a checkpoint of version {version}, this program reads version {VERSION}"
                ))
                .remedy("update adcorda"));
            }
            Err(cause) => return Err(damaged(format!("its description is damaged ({cause})"))),
        }
        let description: Description<'static> =
            serde_json::from_str(json).map_err(|cause| damaged(format!("its description is damaged ({cause})")))?;
        let file = SafeTensors::deserialize(bytes).map_err(|cause| damaged(format!("it is damaged or cut short ({cause})")))?;
        let mut state = StateDict::default();
        let mut extra = BTreeMap::new();
        for (name, view) in file.iter() {
            if let Some(name) = name.strip_prefix(EXTRA) {
                extra.insert(name.to_owned(), view.data().to_vec());
            } else if view.dtype() == Dtype::F32 {
                let values = view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                let shape = view.shape().to_vec();
                state.tensors.insert(name.to_owned(), Array { shape, values });
            } else {
                return Err(damaged(format!("tensor {name} is of {:?}, not of F32", view.dtype())));
            }
        }
        let checkpoint = Self {
            network: description.network.into_owned(),
            state,
            quantization: description.quantization.into_owned(),
            labels: description.labels.into_owned(),
            provenance: description.provenance.into_owned(),
        };
        checkpoint.state.check(&checkpoint.network)?;
        if let Some(quantization) = &checkpoint.quantization {
            quantization.check(&checkpoint.network)?;
        }
        Ok((checkpoint, extra))
    }
}

/// A tensor on its way into a file.
struct Bytes<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> Bytes<'a> {
    fn of_array(array: &Array) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: array.shape.clone(),
            data: array.values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn of_bytes(bytes: &'a [u8]) -> Self {
        Self {
            dtype: Dtype::U8,
            shape: vec![bytes.len()],
            data: Cow::Borrowed(bytes),
        }
    }
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}
