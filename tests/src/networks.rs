//! Networks of real shapes with weights at random: what instructions are counted on.
//!
//! The kernels do the same work whatever the weights are, so nothing here needs training, and everybody counts the same model.
//! The first convolution, 1x1 shortcuts and the last layer have 8-bit weights, as in a trained network.

use adcorda_formats::{TensorId, Width, Window};

use crate::cases::Case;
use crate::net::{Matrix, Net, Sum, window};

/// ResNet-8 of MLPerf Tiny on a 32x32 image: 16, 32 and 64 channels, 12,501,632 multiply-accumulates.
pub fn resnet8(width: Width) -> Case {
    let mut net = Net::new(format!("resnet8_{}", width.name()), [32, 32, 3]);
    let mut x = net.conv2d(0, SAME, 16, Matrix::random(Width::W8));
    for channels in [16, 32, 64] {
        let down = channels > 16;
        let first = net.conv2d(x, if down { HALF } else { SAME }, channels, Matrix::random(width));
        let shortcut = match down {
            true => net.conv2d(x, window([1, 1], [2, 2], [0; 4]), channels, Matrix::random(Width::W8)),
            false => x,
        };
        x = net.conv2d_residual(first, SAME, Matrix::random(width), SUM, shortcut, Some(shortcut));
    }
    finish(net, x, [8, 8], 10)
}

/// ResNet-20 on a 32x32 image, shortcuts without weights: 40,551,040 multiply-accumulates.
pub fn resnet20(width: Width) -> Case {
    let mut net = Net::new(format!("resnet20_{}", width.name()), [32, 32, 3]);
    let mut x = net.conv2d(0, SAME, 16, Matrix::random(Width::W8));
    for (stage, channels) in [16, 32, 64].into_iter().enumerate() {
        for block in 0..3 {
            let down = stage > 0 && block == 0;
            let first = net.conv2d(x, if down { HALF } else { SAME }, channels, Matrix::random(width));
            let shortcut = match down {
                true => net.subsample(x, 2, channels / 4, channels / 4),
                false => x,
            };
            x = net.conv2d_residual(first, SAME, Matrix::random(width), SUM, shortcut, Some(shortcut));
        }
    }
    finish(net, x, [8, 8], 10)
}

/// A network of depthwise separable convolutions in the shape of DS-CNN (MLPerf Tiny's keyword spotting), on a 32x32 image: 64
/// channels, four blocks.
pub fn dscnn(width: Width) -> Case {
    let mut net = Net::new(format!("dscnn_{}", width.name()), [32, 32, 3]);
    let mut x = net.conv2d(0, HALF, 64, Matrix::random(Width::W8));
    for _ in 0..4 {
        x = net.depthwise_conv2d(x, SAME, Matrix::random(width));
        x = net.conv2d(x, window([1, 1], [1, 1], [0; 4]), 64, Matrix::random(width));
    }
    finish(net, x, [16, 16], 10)
}

const SAME: Window = window([3, 3], [1, 1], [1; 4]);
/// The one-sided padding of TensorFlow's "same" at stride 2.
const HALF: Window = window([3, 3], [2, 2], [0, 1, 0, 1]);
const SUM: Sum = Sum::new(17_000, 15_000, 15);

fn finish(mut net: Net, x: TensorId, [height, width]: [u8; 2], classes: usize) -> Case {
    let x = net.avg_pool(x, window([height, width], [1, 1], [0; 4]), None);
    net.logits(x, classes, Matrix::random(Width::W8));
    let case = net.case();
    Case {
        name: case.name.clone(),
        ..case.roomy()
    }
}
