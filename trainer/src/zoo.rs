//! The networks known by name. Layer names are those of the published PyTorch checkpoints, so their weights load as they are.

use crate::network::{BatchNorm, Layer, Network, Normalization, Op, Shape, Window};
use crate::{Error, ErrorKind, Result};

/// The names [`zoo`] takes.
pub const NAMES: [&str; 6] = ["resnet8", "resnet8-wide", "resnet20", "vgg-small", "dscnn", "tiny"];

/// Mean and standard deviation of ImageNet's channels in grey levels (0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 of 255).
const IMAGENET_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const IMAGENET_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// The network called `name`, for 32x32 RGB images of `classes` classes.
///
/// # Errors
/// [`ErrorKind::Usage`] where there is no such network, or no class.
pub fn zoo(name: &str, classes: usize) -> Result<Network> {
    if classes == 0 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("network {name}: it needs at least one class"),
        ));
    }
    match name {
        "resnet8" => Ok(resnet8("resnet8", 16, classes)),
        // 64 features cannot tell 100 classes apart well; 128 can, in what a large Cortex-M still holds.
        "resnet8-wide" => Ok(resnet8("resnet8-wide", 32, classes)),
        "resnet20" => Ok(resnet20(classes)),
        "vgg-small" => Ok(vgg_small(classes)),
        "dscnn" => Ok(dscnn(classes)),
        "tiny" => Ok(tiny(classes)),
        _ => Err(Error::new(ErrorKind::Usage, format!("unknown network `{name}`"))
            .remedy(format!("give one of {}", NAMES.join(", ")))),
    }
}

/// ResNet-8 of MLPerf Tiny, with `channels` (there 16) in the first stage and twice as many in each further one: pixels as
/// they are, convolutions with bias, TensorFlow's "same" padding, which at stride 2 pads 3x3 windows below and right only.
///
/// # Source
/// mlcommons/tiny, `benchmark/training/image_classification/keras_model.py`.
fn resnet8(name: &str, channels: usize, classes: usize) -> Network {
    let mut net = Builder {
        layers: Vec::new(),
        bias: true,
        epsilon: 1e-3,
    };
    let mut x = net.conv_norm("conv1", "bn1", 0, channels, same(3, 1), true);
    for (stage, channels, stride) in [(1, channels, 1), (2, 2 * channels, 2), (3, 4 * channels, 2)] {
        let block = format!("layer{stage}.0");
        let a = net.block_conv(&block, 1, x, channels, same(3, stride), true);
        let b = net.block_conv(&block, 2, a, channels, same(3, 1), false);
        let shortcut = if stride == 1 {
            x
        } else {
            let window = same(1, stride);
            net.push(
                format!("{block}.downsample.0"),
                Op::Conv2d {
                    out_channels: channels,
                    window,
                    bias: true,
                    batch_norm: None,
                    relu: false,
                },
                [x],
            )
        };
        x = net.push(format!("{block}.add"), Op::Add { relu: true }, [b, shortcut]);
    }
    let pooled = net.push("avgpool".into(), Op::AvgPool { window: whole(8) }, [x]);
    net.classifier("fc", pooled, classes);
    net.network(
        name,
        Normalization {
            mean: vec![0.0; 3],
            std: vec![1.0; 3],
        },
    )
}

/// ResNet-20 for CIFAR-10 with parameter-free shortcuts (option A).
///
/// # Source
/// He et al. 2015, section 4.2; akamaster/pytorch_resnet_cifar10, `resnet.py`.
fn resnet20(classes: usize) -> Network {
    let mut net = Builder {
        layers: Vec::new(),
        bias: false,
        epsilon: 1e-5,
    };
    let mut x = net.conv_norm("conv1", "bn1", 0, 16, padded(3, 1), true);
    for (stage, channels, first_stride) in [(1, 16, 1), (2, 32, 2), (3, 64, 2)] {
        for index in 0..3 {
            let stride = if index == 0 { first_stride } else { 1 };
            let block = format!("layer{stage}.{index}");
            let a = net.block_conv(&block, 1, x, channels, padded(3, stride), true);
            let b = net.block_conv(&block, 2, a, channels, padded(3, 1), false);
            let shortcut = if stride == 1 {
                x
            } else {
                let op = Op::Subsample {
                    stride: stride.into(),
                    channels_before: channels / 4,
                    channels_after: channels / 4,
                };
                net.push(format!("{block}.shortcut"), op, [x])
            };
            x = net.push(format!("{block}.add"), Op::Add { relu: true }, [b, shortcut]);
        }
    }
    let pooled = net.push("avgpool".into(), Op::AvgPool { window: whole(8) }, [x]);
    net.classifier("linear", pooled, classes);
    net.network(
        "resnet20",
        Normalization {
            mean: IMAGENET_MEAN.into(),
            std: IMAGENET_STD.into(),
        },
    )
}

/// VGG-small, on which binary and ternary networks are compared: three pairs of 3x3 convolutions with 128, 256 and 512
/// channels, each pair before a 2x2 max-pool, BatchNorm after every convolution, one linear layer.
///
/// # Source
/// Courbariaux et al. 2015, "BinaryConnect", section 3.3, with one linear layer instead of three as in Zhang et al. 2018,
/// "LQ-Nets", section 5.1.
fn vgg_small(classes: usize) -> Network {
    let mut net = Builder {
        layers: Vec::new(),
        bias: false,
        epsilon: 1e-5,
    };
    let halve = Window {
        stride_height: 2,
        stride_width: 2,
        ..whole(2)
    };
    let mut x = 0;
    for (stage, channels) in [(0, 128), (1, 256), (2, 512)] {
        for index in [2 * stage + 1, 2 * stage + 2] {
            x = net.conv_norm(
                &format!("conv{index}"),
                &format!("bn{index}"),
                x,
                channels,
                padded(3, 1),
                true,
            );
        }
        x = net.push(format!("pool{}", stage + 1), Op::MaxPool { window: halve }, [x]);
    }
    net.classifier("fc", x, classes);
    net.network(
        "vgg-small",
        Normalization {
            mean: vec![128.0; 3],
            std: vec![64.0; 3],
        },
    )
}

/// Depthwise separable convolutions in the shape of DS-CNN, MLPerf Tiny's keyword spotting: a first convolution at stride 2, then
/// four blocks of 64 channels. Here on images, with a 3x3 first window and without dropout.
///
/// # Source
/// Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers", section 4.5; mlcommons/tiny,
/// `benchmark/training/keyword_spotting/keras_model.py`.
fn dscnn(classes: usize) -> Network {
    let mut net = Builder {
        layers: Vec::new(),
        bias: false,
        epsilon: 1e-3,
    };
    let mut x = net.conv_norm("conv1", "bn1", 0, 64, same(3, 2), true);
    for block in 1..=4 {
        let depthwise = Op::DepthwiseConv2d {
            window: same(3, 1),
            bias: false,
            batch_norm: Some(BatchNorm {
                name: format!("block{block}.bn1"),
                epsilon: net.epsilon,
            }),
            relu: true,
        };
        x = net.push(format!("block{block}.depthwise"), depthwise, [x]);
        let (name, norm) = (format!("block{block}.pointwise"), format!("block{block}.bn2"));
        x = net.conv_norm(&name, &norm, x, 64, same(1, 1), true);
    }
    let pooled = net.push("avgpool".into(), Op::AvgPool { window: whole(16) }, [x]);
    net.classifier("fc", pooled, classes);
    net.network(
        "dscnn",
        Normalization {
            mean: vec![128.0; 3],
            std: vec![64.0; 3],
        },
    )
}

/// A network that trains in seconds on a CPU: 16x16 from the first convolution on, one residual block.
fn tiny(classes: usize) -> Network {
    let mut net = Builder {
        layers: Vec::new(),
        bias: false,
        epsilon: 1e-5,
    };
    let x = net.conv_norm("conv1", "bn1", 0, 12, padded(3, 2), true);
    let x = net.conv_norm("conv2", "bn2", x, 24, padded(3, 2), true);
    let a = net.block_conv("block", 1, x, 24, padded(3, 1), true);
    let b = net.block_conv("block", 2, a, 24, padded(3, 1), false);
    let x = net.push("block.add".into(), Op::Add { relu: true }, [b, x]);
    let pooled = net.push("avgpool".into(), Op::AvgPool { window: whole(8) }, [x]);
    net.classifier("fc", pooled, classes);
    net.network(
        "tiny",
        Normalization {
            mean: vec![128.0; 3],
            std: vec![64.0; 3],
        },
    )
}

/// Layers so far, and what all convolutions of the network have in common.
struct Builder {
    layers: Vec<Layer>,
    bias: bool,
    epsilon: f32,
}

impl Builder {
    /// Appends a layer; the number of its output.
    fn push<const N: usize>(&mut self, name: String, op: Op, inputs: [usize; N]) -> usize {
        self.layers.push(Layer {
            name,
            op,
            inputs: inputs.into(),
        });
        self.layers.len()
    }

    fn conv_norm(&mut self, name: &str, norm: &str, input: usize, out_channels: usize, window: Window, relu: bool) -> usize {
        let op = Op::Conv2d {
            out_channels,
            window,
            bias: self.bias,
            batch_norm: Some(BatchNorm {
                name: norm.into(),
                epsilon: self.epsilon,
            }),
            relu,
        };
        self.push(name.into(), op, [input])
    }

    /// `<block>.conv<index>` with `<block>.bn<index>`.
    fn block_conv(&mut self, block: &str, index: u8, input: usize, out_channels: usize, window: Window, relu: bool) -> usize {
        self.conv_norm(
            &format!("{block}.conv{index}"),
            &format!("{block}.bn{index}"),
            input,
            out_channels,
            window,
            relu,
        )
    }

    fn classifier(&mut self, name: &str, input: usize, classes: usize) {
        let op = Op::Linear {
            out_features: classes,
            bias: true,
            relu: false,
        };
        self.push(name.into(), op, [input]);
    }

    fn network(self, name: &str, normalization: Normalization) -> Network {
        Network {
            name: name.into(),
            input: Shape {
                height: 32,
                width: 32,
                channels: 3,
            },
            normalization,
            layers: self.layers,
        }
    }
}

/// A square window padded alike on all sides, as PyTorch's `padding=kernel // 2`.
fn padded(kernel: u8, stride: u8) -> Window {
    let pad = kernel / 2;
    Window {
        kernel_height: kernel,
        kernel_width: kernel,
        stride_height: stride,
        stride_width: stride,
        pad_top: pad,
        pad_bottom: pad,
        pad_left: pad,
        pad_right: pad,
    }
}

/// A square window padded as TensorFlow's "same" pads an input whose size is a multiple of the stride: `kernel - stride` in
/// all, the smaller half above and left.
fn same(kernel: u8, stride: u8) -> Window {
    let total = kernel.saturating_sub(stride);
    let before = total / 2;
    Window {
        pad_top: before,
        pad_bottom: total - before,
        pad_left: before,
        pad_right: total - before,
        ..padded(kernel, stride)
    }
}

/// One window over the whole of a `side` x `side` input.
fn whole(side: u8) -> Window {
    Window {
        pad_top: 0,
        pad_bottom: 0,
        pad_left: 0,
        pad_right: 0,
        ..padded(side, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(network: &Network) -> usize {
        let shapes = network.parameters().unwrap();
        shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn networks_have_the_published_number_of_values() {
        // The values of the published files, running statistics included.
        assert_eq!(parameters(&zoo("resnet8", 10).unwrap()), 78_666);
        assert_eq!(parameters(&zoo("resnet20", 10).unwrap()), 271_098);
        // DS-CNN for keywords has 24,908 in Keras: 2,560 of them in its first layer, here 1,728; 576 biases under BatchNorm, which
        // are not here; 12 classes of 65 values, here 10.
        assert_eq!(parameters(&zoo("dscnn", 10).unwrap()), 24_908 - 2_560 + 1_728 - 576 - 2 * 65);
        assert!(parameters(&zoo("tiny", 10).unwrap()) < 20_000);
        // 4.6 M, as published; of a linear layer over 4x4x512 values.
        let convolutions = 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512);
        let (norms, linear) = (4 * 2 * (128 + 256 + 512), 8192 * 10 + 10);
        assert_eq!(parameters(&zoo("vgg-small", 10).unwrap()), convolutions + norms + linear);
        assert_eq!(parameters(&zoo("resnet8-wide", 100).unwrap()), 321_508);
    }

    #[test]
    fn every_network_computes_its_classes_from_a_small_image() {
        for name in NAMES {
            let network = zoo(name, 7).unwrap();
            assert_eq!(network.name, name);
            let shapes = network.shapes().unwrap();
            assert_eq!(shapes.last().unwrap().elements(), 7);
            // The last pooling leaves one pixel, or the 4x4 of VGG.
            let side = if name == "vgg-small" { 4 } else { 1 };
            let pooled = shapes[shapes.len() - 2];
            assert_eq!((pooled.height, pooled.width), (side, side), "{name}");
        }
    }

    #[test]
    fn tensorflow_padding_is_one_sided_at_stride_2() {
        let pads = |w: Window| [w.pad_top, w.pad_left, w.pad_bottom, w.pad_right];
        assert_eq!(pads(same(3, 1)), [1, 1, 1, 1]);
        assert_eq!(pads(same(3, 2)), [0, 0, 1, 1]);
        assert_eq!(pads(same(1, 2)), [0, 0, 0, 0]);
    }

    #[test]
    fn unknown_networks_are_usage_errors_that_list_the_names() {
        let error = zoo("resnet9", 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(
            error
                .to_string()
                .contains("resnet8, resnet8-wide, resnet20, vgg-small, dscnn, tiny"),
            "{error}"
        );
        assert!(zoo("tiny", 0).is_err());
    }
}
