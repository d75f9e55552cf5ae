//! BatchNorm statistics re-estimated under quantized weights, whose outputs have another mean and variance than the float
//! weights'. Without it a network of 4 bits or fewer loses most of what it knows.

use super::{Quantization, dequantized};
use crate::Result;
use crate::data::Dataset;
use crate::device::Device;
use crate::network::Network;
use crate::nn;
use crate::state_dict::StateDict;

/// Images of a batch: the variance of so many is close to that of all.
const BATCH: usize = 256;

/// `state` with every running mean and variance replaced by that over `images`, each layer fed by quantized, batch-normalized
/// layers. Activations stay float: their ranges are only chosen afterwards.
///
/// # Errors
/// [`ErrorKind::Weights`](crate::ErrorKind::Weights) where the weights do not fit the network;
/// [`ErrorKind::Data`](crate::ErrorKind::Data) where the images have another size.
pub fn reestimate(
    network: &Network,
    state: &StateDict,
    quantization: &Quantization,
    images: &Dataset,
    device: &Device,
) -> Result<StateDict> {
    let quantized = dequantized(network, state, quantization)?;
    let estimated = nn::estimate_statistics(network, &quantized, images, BATCH, device)?;
    let mut state = state.clone();
    for norm in network.layers.iter().filter_map(|layer| layer.op.batch_norm()) {
        for part in ["running_mean", "running_var"] {
            let name = format!("{}.{part}", norm.name);
            state.tensors.insert(name.clone(), estimated.get(&name)?.clone());
        }
    }
    Ok(state)
}
