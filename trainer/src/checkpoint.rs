//! A checkpoint: one safetensors file with a network, its weights and, once quantized, how.
//!
//! Tensors are the state dict under its PyTorch names; network, quantization, labels and provenance are JSON in the metadata.
//! Readable by every safetensors library.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::data::Dataset;
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
    /// A float network of the zoo with random weights, for images of these classes.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there is no network of that name.
    pub fn untrained(name: &str, images: &Dataset, seed: u64) -> Result<Self> {
        let network = crate::zoo::zoo(name, images.classes.len())?;
        Ok(Self {
            state: StateDict::init(&network, seed)?,
            network,
            quantization: None,
            labels: images.classes.clone(),
            provenance: Provenance {
                data: images.name.split('/').next().unwrap_or_default().to_owned(),
                method: "train".into(),
                seed,
                top1: None,
            },
        })
    }

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
pub(crate) struct Bytes<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Cow<'a, [u8]>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{ActivationQuantizer, WeightQuantizer, Width};
    use crate::zoo::zoo;

    fn checkpoint() -> Checkpoint {
        let network = zoo("tiny", 3).unwrap();
        Checkpoint {
            state: StateDict::init(&network, 9).unwrap(),
            quantization: Some(Quantization {
                weights: network
                    .layers
                    .iter()
                    .map(|layer| {
                        layer.op.has_weights().then(|| WeightQuantizer {
                            width: Width::W2,
                            scales: Vec::new(),
                            per_tensor: layer.name == "fc",
                        })
                    })
                    .collect(),
                activations: vec![
                    ActivationQuantizer {
                        scale: 0.1,
                        zero_point: -128,
                    };
                    network.layers.len() + 1
                ],
            }),
            network,
            labels: vec!["cat".into(), "dog".into(), "frog".into()],
            provenance: Provenance {
                data: "synthetic".into(),
                method: "ptq".into(),
                seed: 1 << 60,
                top1: Some(81.25),
            },
        }
    }

    fn assert_same(a: &Checkpoint, b: &Checkpoint) {
        assert_eq!(a.network, b.network);
        assert_eq!(a.state, b.state);
        assert_eq!(a.quantization, b.quantization);
        assert_eq!(a.labels, b.labels);
        assert_eq!(a.provenance, b.provenance);
    }

    #[test]
    fn checkpoints_come_back_whole_and_have_fixed_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let mut saved = checkpoint();
        saved.save(&path).unwrap();
        assert_same(&Checkpoint::load(&path).unwrap(), &saved);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            checkpoint().to_bytes(&BTreeMap::new()).unwrap()
        );
        saved.quantization = None;
        saved.provenance.top1 = None;
        saved.save(&path).unwrap();
        assert_same(&Checkpoint::load(&path).unwrap(), &saved);
    }

    #[test]
    fn weights_are_readable_as_any_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        checkpoint().save(&path).unwrap();
        assert_eq!(StateDict::load(&path).unwrap(), checkpoint().state);
    }

    #[test]
    fn extra_bytes_travel_along() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let extra = BTreeMap::from([("optimizer".to_owned(), vec![1, 2, 3]), ("empty".to_owned(), vec![])]);
        checkpoint().save_with(&path, &extra).unwrap();
        let (loaded, found) = Checkpoint::load_with(&path).unwrap();
        assert_same(&loaded, &checkpoint());
        assert_eq!(found, extra);
        assert_same(&Checkpoint::load(&path).unwrap(), &checkpoint());
    }

    fn refusal(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let error = Checkpoint::load(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        let text = error.to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        text
    }

    #[test]
    fn foreign_files_point_to_import() {
        let array = Bytes::of_bytes(&[1, 2, 3, 4]);
        let foreign = safetensors::serialize([("w", array)], None).unwrap();
        for bytes in [
            &foreign[..],
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P",
            b"PK\x03\x04abcdefghij",
        ] {
            assert!(refusal(bytes).contains("adcorda import"));
        }
    }

    #[test]
    fn cut_files_are_refused() {
        let whole = checkpoint().to_bytes(&BTreeMap::new()).unwrap();
        for len in (0..whole.len()).step_by(997).chain([1, 8, 9, 100, whole.len() - 1]) {
            refusal(&whole[..len]);
        }
    }

    #[test]
    fn newer_versions_and_broken_descriptions_are_told_apart() {
        let with = |json: &str| {
            let metadata = HashMap::from([(KEY.to_owned(), json.to_owned())]);
            refusal(&safetensors::serialize([("w", Bytes::of_bytes(&[1]))], Some(metadata)).unwrap())
        };
        assert!(with(r#"{"version": 2, "layers": "of another kind"}"#).contains("version 2"));
        assert!(with(r#"{"version": 1}"#).contains("description is damaged"));
        assert!(with("version 1").contains("description is damaged"));
    }

    #[test]
    fn checkpoints_with_wrong_weights_are_refused() {
        let mut broken = checkpoint();
        broken.state.tensors.remove("bn1.bias");
        assert!(refusal(&broken.to_bytes(&BTreeMap::new()).unwrap()).contains("missing bn1.bias"));
        let mut broken = checkpoint();
        broken.quantization.as_mut().unwrap().activations.pop();
        assert!(refusal(&broken.to_bytes(&BTreeMap::new()).unwrap()).contains("values"));
    }

    #[test]
    fn a_failed_save_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = checkpoint().save(folder.path().join("missing/a.safetensors")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}
