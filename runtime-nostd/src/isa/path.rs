//! Which kernel computes a layer.

use core::fmt;

use adcorda_formats::{Layer, Model, Op, Order, Tensor};

use crate::kernels::Convolution;

/// An instruction set that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Any: plain Rust.
    Portable,
    /// Armv6-M and Armv8-M baseline: Cortex-M0, M0+, M23.
    Thumb1,
    /// Armv7-M and Armv8-M mainline without the DSP extension: Cortex-M3.
    Thumb2,
    /// Armv7E-M and Armv8-M mainline with the DSP extension: Cortex-M4, M7, M33.
    Dsp,
    /// Armv8.1-M with Helium: Cortex-M55, M85.
    Mve,
}

impl Isa {
    /// Every instruction set.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Thumb1, Isa::Thumb2, Isa::Dsp, Isa::Mve];

    /// The one that this build is for.
    pub const CURRENT: Isa = Isa::Portable;

    /// `portable`, `thumb1`, `thumb2`, `dsp`, `mve`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Thumb1 => "thumb1",
            Isa::Thumb2 => "thumb2",
            Isa::Dsp => "dsp",
            Isa::Mve => "mve",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a layer is computed. All paths give the same bits; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Packed weights meet columns of several pixels, several output channels at a time.
    Blocked,
    /// Depthwise, several channels at a time.
    Depthwise,
    /// Row by row over unpacked weights: any shape.
    Generic,
    /// Without weights, one way for all.
    Plain,
}

impl Path {
    /// `blocked`, `depthwise`, `generic`, `plain`.
    pub const fn name(self) -> &'static str {
        match self {
            Path::Blocked => "blocked",
            Path::Depthwise => "depthwise",
            Path::Generic => "generic",
            Path::Plain => "plain",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How `isa` computes `layer` of `model` into tensor `y`, where the model and the arena begin at a multiple of 8 bytes (and
/// else [`Path::Generic`], should the instruction set care).
pub fn path(isa: Isa, model: &Model<'_>, layer: &Layer<'_>, y: &Tensor) -> Path {
    match Convolution::new(model, &layer.op, y) {
        Some(convolution) if matches!(layer.op, Op::DepthwiseConv2d { .. }) => {
            depthwise(isa, &convolution, layer.scratch.bytes as usize)
        }
        Some(convolution) => blocked(isa, &convolution, layer.scratch.bytes as usize),
        None => Path::Plain,
    }
}

/// How `isa` computes a convolution or a fully connected layer with that much aligned scratch.
pub(super) fn blocked(isa: Isa, layer: &Convolution<'_>, scratch_bytes: usize) -> Path {
    debug_assert!(layer.weights.packing.order == Order::Blocks);
    let _ = scratch_bytes;
    match isa {
        Isa::Portable | Isa::Thumb1 | Isa::Thumb2 | Isa::Dsp | Isa::Mve => Path::Generic,
    }
}

/// How `isa` computes a depthwise convolution with that much aligned scratch.
pub(super) fn depthwise(isa: Isa, layer: &Convolution<'_>, scratch_bytes: usize) -> Path {
    debug_assert!(layer.weights.packing.order == Order::Channels);
    let _ = scratch_bytes;
    match isa {
        Isa::Portable | Isa::Thumb1 | Isa::Thumb2 | Isa::Dsp | Isa::Mve => Path::Generic,
    }
}
