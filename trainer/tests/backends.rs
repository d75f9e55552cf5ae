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

/// What one step leaves behind: logits, loss, and every tensor of the state after one plain SGD step at rate 1 (so the
/// difference to the start is the gradient), by name.
fn step(checkpoint: &Checkpoint, images: &adcorda::data::Dataset, device: &Device) -> Vec<(String, Vec<f32>)> {
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
    let mut seen = vec![
        ("logits".to_owned(), to_host(output.logits)),
        ("loss".to_owned(), to_host(loss.clone())),
    ];
    let gradients = GradientsParams::from_grads(loss.backward(), &net);
    let net = SgdConfig::new().init::<Auto, Net<Auto>>().step(1.0, net, gradients);
    // the independent copy holds the statistics, too
    let after = net.valid().train::<Auto>().to_state(network);
    for (name, array) in after.tensors {
        let before = &checkpoint.state.tensors[&name].values;
        seen.push((
            name,
            array
                .values
                .iter()
                .zip(before)
                .map(|(after, before)| after - before)
                .collect(),
        ));
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
    let images = "synthetic:64x8".parse::<SetSpec>().unwrap().load(Split::Train).unwrap();
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
        for checkpoint in [&float, &quantized] {
            let (ours, theirs) = (step(checkpoint, &images, &flex), step(checkpoint, &images, &device));
            for ((tensor, ours), (other, theirs)) in ours.iter().zip(&theirs) {
                assert_eq!(tensor, other);
                let largest = ours.iter().fold(1e-6f32, |largest, value| largest.max(value.abs()));
                let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(
                    difference <= TOLERANCE * largest,
                    "{name}: {} {tensor}: differs by {difference}, largest value {largest}",
                    checkpoint.network.name
                );
            }
            println!("{name}: {} {}: agrees", checkpoint.network.name, checkpoint.provenance.method);
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
