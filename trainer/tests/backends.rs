//! The other backends compute what flex computes: logits, loss, every gradient and the batch statistics of one training step
//! of a quantized network.
//!
//! Compiled in by cargo features: `cargo test -p adcorda --features ndarray --test backends`; with `--features cuda` on a
//! machine with a GPU.

use adcorda::data::batch;
use adcorda::data::{SetSpec, Split};
use adcorda::device::Device;
use adcorda::nn::{Auto, Mode, Net, pixels, to_host};
use adcorda::quantize::{QuantizeOptions, Width, ptq};
use adcorda::state_dict::StateDict;
use adcorda::{checkpoint::Checkpoint, checkpoint::Provenance, zoo};
use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;

/// Agreement asked for, relative to the largest magnitude of each tensor.
const TOLERANCE: f32 = 1e-3;

/// One tensor of a step.
struct Seen {
    name: String,
    values: Vec<f32>,
    /// Below this, values are the rounding of the subtraction that they come from.
    floor: f32,
}

/// What one step leaves behind: logits, loss, and every tensor of the state after one plain SGD step at rate 1 (so the
/// difference to the start is the gradient), by name.
fn step(checkpoint: &Checkpoint, images: &adcorda::data::Dataset, device: &Device) -> Vec<Seen> {
    let network = &checkpoint.network;
    let quantization = checkpoint.quantization.as_ref();
    let net = Net::<Auto>::from_state(network, &checkpoint.state, device).unwrap();
    let n = images.len();
    let planar = batch::to_planar_f32((0..n).map(|i| images.image(i)), images.shape(), None);
    let x = Tensor::<Auto, 4>::from_inner(pixels(planar, n, images.shape(), device));
    let output = net.forward(network, quantization, x, Mode::Train);
    let classes = network.classes();
    let mut one_hot = vec![0.0; n * classes];
    for (i, &label) in images.labels().iter().enumerate() {
        one_hot[i * classes + usize::from(label)] = 1.0 / n as f32;
    }
    let target = Tensor::<Auto, 4>::from_inner(pixels(one_hot, n, [1, classes, 1], device)).reshape([n, classes]);
    let loss = (log_softmax(output.logits.clone(), 1) * target).sum().neg();
    let whole = |name: &str, values| Seen {
        name: name.to_owned(),
        values,
        floor: 1e-6,
    };
    let mut seen = vec![whole("logits", to_host(output.logits)), whole("loss", to_host(loss.clone()))];
    let gradients = GradientsParams::from_grads(loss.backward(), &net);
    let net = SgdConfig::new().init::<Auto, Net<Auto>>().step(1.0, net, gradients);
    // the independent copy holds the statistics, too
    let after = net.valid().train::<Auto>().to_state(network);
    for (name, array) in after.tensors {
        let before = &checkpoint.state.tensors[&name].values;
        let largest = before.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        seen.push(Seen {
            name,
            values: array
                .values
                .iter()
                .zip(before)
                .map(|(after, before)| after - before)
                .collect(),
            floor: (1e-3 * largest).max(1e-6),
        });
    }
    seen
}

fn agrees_with_flex(name: &str) {
    let device = match Device::from_name(name) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIPPED {name}: {error}");
            return;
        }
    };
    let flex = Device::flex();
    let images = "synthetic:16x8".parse::<SetSpec>().unwrap().load(Split::Train).unwrap();
    for network in ["tiny", "resnet8"] {
        let network = zoo::zoo(network, 10).unwrap();
        let float = Checkpoint {
            state: StateDict::init(&network, 5).unwrap(),
            network,
            quantization: None,
            labels: Vec::new(),
            provenance: Provenance::default(),
        };
        let quantized = ptq(&float, &images, &QuantizeOptions::new(Width::W4), &flex).unwrap();
        let mut weights_only = quantized.clone();
        if let Some(quantization) = &mut weights_only.quantization {
            quantization.activations.clear();
        }
        // Rounding is a step: an activation next to one may take it on one backend only, and depth multiplies the difference.
        // So with quantized activations the outputs are compared, and not so closely.
        for (checkpoint, what, tolerance, tensors) in [
            (&float, "float", TOLERANCE, usize::MAX),
            (&weights_only, "4-bit weights", TOLERANCE, usize::MAX),
            (&quantized, "4-bit weights, 8-bit activations", 50.0 * TOLERANCE, 2),
        ] {
            let (ours, theirs) = (step(checkpoint, &images, &flex), step(checkpoint, &images, &device));
            for (ours, theirs) in ours.iter().zip(&theirs).take(tensors) {
                assert_eq!(ours.name, theirs.name);
                let largest = ours.values.iter().fold(ours.floor, |largest, value| largest.max(value.abs()));
                let differences = ours.values.iter().zip(&theirs.values).map(|(a, b)| (a - b).abs());
                let difference = differences.fold(0.0, f32::max);
                assert!(
                    difference <= tolerance * largest,
                    "{name}: {} {}: differs by {difference}, largest value {largest}",
                    checkpoint.network.name,
                    ours.name
                );
            }
            println!("{name}: {} with {what}: agrees", checkpoint.network.name);
        }
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
