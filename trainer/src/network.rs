//! A network as data: a list of named layers over numbered values, interpreted by one burn module ([`crate::nn`]) and lowered
//! to one integer graph ([`crate::export`]).
//!
//! Value 0 is the input image, value `i + 1` is the output of layer `i`: the numbering of the `.adq` graph, so that a layer
//! has the same index and name in training, in the file and on the device. BatchNorm and ReLU belong to the layer they
//! follow, because they are fused into its requantization.

pub use adcorda_formats::Window;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Height, width and channels of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Shape {
    /// Elements of one image.
    pub fn elements(&self) -> usize {
        self.height * self.width * self.channels
    }
}

/// What the network was trained to see: `(pixel - mean) / std` for each channel, in pixel units 0 to 255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Per channel, 0 to 255.
    pub mean: Vec<f32>,
    /// Per channel, in grey levels, not zero.
    pub std: Vec<f32>,
}

/// Batch normalisation after a convolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    /// Prefix of its tensors in the state dict: `<name>.weight`, `.bias`, `.running_mean`, `.running_var`.
    pub name: String,
    /// Added to the variance.
    pub epsilon: f32,
}

/// One operation with what is fused into it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// 2-D convolution, weights `[out_channels, in_channels, kh, kw]`.
    Conv2d {
        /// Output channels.
        out_channels: usize,
        /// Kernel, stride, explicit padding.
        window: Window,
        /// Has `<layer>.bias`.
        bias: bool,
        /// Fused BatchNorm.
        batch_norm: Option<BatchNorm>,
        /// Fused ReLU.
        relu: bool,
    },
    /// Depthwise convolution with channel multiplier 1, weights `[channels, 1, kh, kw]`.
    DepthwiseConv2d {
        /// Kernel, stride, explicit padding.
        window: Window,
        /// Has `<layer>.bias`.
        bias: bool,
        /// Fused BatchNorm.
        batch_norm: Option<BatchNorm>,
        /// Fused ReLU.
        relu: bool,
    },
    /// Fully connected over the flattened input, weights `[out_features, in_features]` with features in CHW order as PyTorch
    /// flattens them. The last layer must be one, without ReLU: it gives the logits.
    Linear {
        /// Output features.
        out_features: usize,
        /// Has `<layer>.bias`.
        bias: bool,
        /// Fused ReLU.
        relu: bool,
    },
    /// Sum of two values of one shape.
    Add {
        /// Fused ReLU.
        relu: bool,
    },
    /// Largest value in each window, padding left out.
    MaxPool {
        /// Kernel, stride, explicit padding.
        window: Window,
    },
    /// Mean of each window; padding counts as zero.
    AvgPool {
        /// Kernel, stride, explicit padding.
        window: Window,
    },
    /// Every `stride`-th row and column, zero channels added: the CIFAR ResNets' option-A shortcut.
    Subsample {
        /// Step in both directions.
        stride: usize,
        /// Zero channels before.
        channels_before: usize,
        /// Zero channels after.
        channels_after: usize,
    },
}

impl Op {
    /// Values the operation reads: two for [`Op::Add`], else one.
    pub fn arity(&self) -> usize {
        match self {
            Op::Add { .. } => 2,
            Op::Conv2d { .. }
            | Op::DepthwiseConv2d { .. }
            | Op::Linear { .. }
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::Subsample { .. } => 1,
        }
    }

    /// Whether the layer has a weight tensor.
    pub fn has_weights(&self) -> bool {
        match self {
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } => true,
            Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => false,
        }
    }

    /// The fused BatchNorm.
    pub fn batch_norm(&self) -> Option<&BatchNorm> {
        match self {
            Op::Conv2d { batch_norm, .. } | Op::DepthwiseConv2d { batch_norm, .. } => batch_norm.as_ref(),
            Op::Linear { .. } | Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => None,
        }
    }

    /// Whether the layer has `<layer>.bias`.
    pub fn has_bias(&self) -> bool {
        match self {
            Op::Conv2d { bias, .. } | Op::DepthwiseConv2d { bias, .. } | Op::Linear { bias, .. } => *bias,
            Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => false,
        }
    }

    /// Whether a ReLU is fused.
    pub fn relu(&self) -> bool {
        match self {
            Op::Conv2d { relu, .. } | Op::DepthwiseConv2d { relu, .. } | Op::Linear { relu, .. } | Op::Add { relu } => *relu,
            Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => false,
        }
    }
}

/// A named operation and the values it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Unique; also the prefix of its tensors in the state dict (`<name>.weight`, `<name>.bias`).
    pub name: String,
    /// Values read: numbers up to the layer's own index.
    pub inputs: Vec<usize>,
    /// What it computes.
    pub op: Op,
}

/// An image classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// E.g. `resnet8`.
    pub name: String,
    /// Of the input image.
    pub input: Shape,
    /// From pixels to what the first layer reads.
    pub normalization: Normalization,
    /// In execution order.
    pub layers: Vec<Layer>,
}

impl Network {
    /// Number of classes: the last layer's features; 0 where the last layer is not linear (which [`Network::shapes`] reports).
    pub fn classes(&self) -> usize {
        match self.layers.last().map(|layer| &layer.op) {
            Some(Op::Linear { out_features, .. }) => *out_features,
            _ => 0,
        }
    }

    /// Index of the layer called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] listing the layers that there are.
    pub fn layer_index(&self, name: &str) -> Result<usize> {
        self.layers.iter().position(|layer| layer.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
            Error::new(ErrorKind::Usage, format!("network {} has no layer \"{name}\"", self.name))
                .remedy(format!("its layers are: {}", names.join(", ")))
        })
    }

    /// Indices of the layers with weights, in order.
    pub fn weighted_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers.len()).filter(|&i| self.layers[i].op.has_weights())
    }

    /// Shape of every value: the input, then each layer's output.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the first layer that does not fit, and why; or what is wrong with the normalization.
    pub fn shapes(&self) -> Result<Vec<Shape>> {
        self.check_normalization()?;
        let mut shapes = vec![self.input];
        for (index, layer) in self.layers.iter().enumerate() {
            let fail = |what: String| Error::new(ErrorKind::Model, format!("layer {index} \"{}\": {what}", layer.name));
            if layer.inputs.len() != layer.op.arity() {
                return Err(fail(format!(
                    "reads {} values, needs {}",
                    layer.inputs.len(),
                    layer.op.arity()
                )));
            }
            if let Some(&late) = layer.inputs.iter().find(|&&input| input > index) {
                return Err(fail(format!("reads value {late}, which is computed later")));
            }
            let input = shapes[layer.inputs[0]];
            let slide = |window: &Window, channels: usize| {
                window
                    .output(input.height, input.width)
                    .map(|(height, width)| Shape { height, width, channels })
                    .ok_or_else(|| {
                        fail(format!(
                            "its window does not fit an input of {}x{}",
                            input.height, input.width
                        ))
                    })
            };
            shapes.push(match &layer.op {
                Op::Conv2d {
                    out_channels, window, ..
                } => slide(window, *out_channels)?,
                Op::DepthwiseConv2d { window, .. } | Op::MaxPool { window } | Op::AvgPool { window } => {
                    slide(window, input.channels)?
                }
                Op::Linear { out_features, .. } => Shape {
                    height: 1,
                    width: 1,
                    channels: *out_features,
                },
                Op::Add { .. } => {
                    let other = shapes[layer.inputs[1]];
                    if other != input {
                        return Err(fail(format!(
                            "adds {}x{}x{} to {}x{}x{}",
                            other.height, other.width, other.channels, input.height, input.width, input.channels
                        )));
                    }
                    input
                }
                Op::Subsample {
                    stride,
                    channels_before,
                    channels_after,
                } => {
                    if *stride == 0 {
                        return Err(fail("its stride is 0".into()));
                    }
                    Shape {
                        height: input.height.div_ceil(*stride),
                        width: input.width.div_ceil(*stride),
                        channels: input.channels + channels_before + channels_after,
                    }
                }
            });
        }
        match self.layers.last().map(|layer| &layer.op) {
            Some(Op::Linear { relu: false, .. }) => Ok(shapes),
            _ => Err(Error::new(
                ErrorKind::Model,
                format!("network {}: the last layer must be linear without ReLU", self.name),
            )),
        }
    }

    fn check_normalization(&self) -> Result<()> {
        let Normalization { mean, std } = &self.normalization;
        let fail = |what: String| {
            let what = format!("network {}: its normalization {what}", self.name);
            Err(Error::new(ErrorKind::Model, what))
        };
        let channels = self.input.channels;
        if mean.len() != channels || std.len() != channels {
            return fail(format!(
                "has {} means and {} deviations for {channels} channels",
                mean.len(),
                std.len()
            ));
        }
        match (0..channels).find(|&c| !(mean[c].is_finite() && std[c].is_finite() && std[c] != 0.0)) {
            Some(c) => fail(format!("of channel {c} is (pixel - {}) / {}", mean[c], std[c])),
            None => Ok(()),
        }
    }

    /// Name and shape of every tensor in the state dict, in layer order, PyTorch layout.
    ///
    /// # Errors
    /// As [`Network::shapes`].
    pub fn parameters(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let shapes = self.shapes()?;
        let mut parameters = Vec::new();
        for layer in &self.layers {
            let input = shapes[layer.inputs[0]];
            let weight = match &layer.op {
                Op::Conv2d {
                    out_channels, window, ..
                } => {
                    vec![
                        *out_channels,
                        input.channels,
                        window.kernel_height as usize,
                        window.kernel_width as usize,
                    ]
                }
                Op::DepthwiseConv2d { window, .. } => {
                    vec![input.channels, 1, window.kernel_height as usize, window.kernel_width as usize]
                }
                Op::Linear { out_features, .. } => vec![*out_features, input.elements()],
                Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => continue,
            };
            let rows = weight[0];
            parameters.push((format!("{}.weight", layer.name), weight));
            if layer.op.has_bias() {
                parameters.push((format!("{}.bias", layer.name), vec![rows]));
            }
            if let Some(norm) = layer.op.batch_norm() {
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    parameters.push((format!("{}.{part}", norm.name), vec![rows]));
                }
            }
        }
        Ok(parameters)
    }
}
