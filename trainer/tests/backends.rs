//! The other backends compute what flex computes: one step of a network, float and quantized, within the tolerances of
//! [`adcorda::agreement`].
//!
//! Compiled in by cargo features: `cargo test -p adcorda --features ndarray --test backends`; with `--features cuda` on a
//! machine with a GPU.

use adcorda::agreement::{compare, noise};
use adcorda::checkpoint::{Checkpoint, Provenance};
use adcorda::device::Device;
use adcorda::quantize::{QuantizeOptions, Width, ptq};
use adcorda::state_dict::StateDict;
use adcorda::zoo;

fn agrees_with_flex(name: &str) {
    let device = match Device::from_name(name) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIPPED {name}: {error}");
            return;
        }
    };
    let flex = Device::flex();
    for (network, width) in [("tiny", Width::W2), ("resnet8", Width::W4)] {
        let network = zoo::zoo(network, 10).unwrap();
        let images = noise(&network, 8, 5);
        let float = Checkpoint {
            state: StateDict::init(&network, 5).unwrap(),
            network,
            quantization: None,
            labels: Vec::new(),
            provenance: Provenance::default(),
        };
        let quantized = ptq(&float, &images, &QuantizeOptions::new(width), &flex).unwrap();
        let agreement = compare(&quantized, &images, &device, &flex).unwrap();
        let exceeded: Vec<_> = agreement.exceeded().collect();
        assert!(exceeded.is_empty(), "{name}: {}: {exceeded:#?}", quantized.network.name);
        println!(
            "{name}: {}: {} tensors agree",
            quantized.network.name,
            agreement.tensors.len()
        );
    }
}

#[test]
fn ndarray_agrees_with_flex() {
    agrees_with_flex("ndarray");
}

#[test]
fn cuda_agrees_with_flex() {
    agrees_with_flex("cuda");
}
