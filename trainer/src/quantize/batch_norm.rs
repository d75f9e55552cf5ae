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
/// [`ErrorKind::Data`](crate::ErrorKind::Data) where the images have another size or other classes.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, synthetic};
    use crate::quantize::{QuantizeOptions, Width, ptq};
    use crate::zoo::zoo;

    /// Statistics of the first convolution, from its outputs as the network itself shows them.
    #[test]
    fn first_layer_gets_the_mean_and_variance_of_its_outputs() {
        let network = zoo("tiny", 10).unwrap();
        let state = StateDict::init(&network, 4).unwrap();
        let float = crate::checkpoint::Checkpoint {
            network: network.clone(),
            state: state.clone(),
            quantization: None,
            labels: Vec::new(),
            provenance: Default::default(),
        };
        let images = synthetic::load(Split::Train, 300);
        let device = Device::flex();
        let few = images.clone().take(8);
        let mut quantization = ptq(&float, &few, &QuantizeOptions::new(Width::W2), &device)
            .unwrap()
            .quantization
            .unwrap();
        quantization.activations.clear();
        let found = reestimate(&network, &state, &quantization, &images, &device).unwrap();

        // With mean 0, variance 1 and no ReLU the frozen network shows the convolution's output as it is.
        let mut bare = network.clone();
        if let crate::network::Op::Conv2d { relu, batch_norm, .. } = &mut bare.layers[0].op {
            *relu = false;
            batch_norm.as_mut().unwrap().epsilon = 0.0;
        }
        let frozen = nn::Frozen::new(&bare, &state, Some(&quantization), &device).unwrap();
        let (mut sums, mut count) = (vec![[0f64; 2]; 12], 0);
        frozen
            .observe(&images, 300, |value, values| {
                if value == 1 {
                    for (plane, values) in values.chunks_exact(16 * 16).enumerate() {
                        for &v in values {
                            sums[plane % 12][0] += f64::from(v);
                            sums[plane % 12][1] += f64::from(v) * f64::from(v);
                        }
                    }
                    count += values.len() / 12;
                }
            })
            .unwrap();
        let count = count as f64;
        for (channel, [sum, squares]) in sums.into_iter().enumerate() {
            let mean = sum / count;
            let variance = (squares / count - mean * mean) * count / (count - 1.0);
            let got = |part: &str| f64::from(found.tensors[&format!("bn1.running_{part}")].values[channel]);
            assert!((got("mean") - mean).abs() < 1e-4, "{channel}: {} {mean}", got("mean"));
            // Batches have means of their own, so the average of their variances is a little smaller.
            assert!(
                (got("var") / variance - 1.0).abs() < 0.02,
                "{channel}: {} {variance}",
                got("var")
            );
        }
        // Nothing else moved.
        for (name, array) in &state.tensors {
            assert_eq!(found.tensors[name] == *array, !name.contains(".running_"), "{name}");
        }
    }
}
