//! Which kernel computes a layer.

use core::fmt;

use adcorda_formats::{Layer, Model, Order, Tensor, Width};

use super::depthwise::{CHANNELS, Layout};
use crate::kernels::{Convolution, Epilogue};

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
    pub const CURRENT: Isa = if cfg!(adcorda_isa = "mve") {
        Isa::Mve
    } else if cfg!(adcorda_isa = "dsp") {
        Isa::Dsp
    } else if cfg!(adcorda_isa = "thumb2") {
        Isa::Thumb2
    } else if cfg!(adcorda_isa = "thumb1") {
        Isa::Thumb1
    } else {
        Isa::Portable
    };

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
/// else [`Path::Generic`], should the instruction set care), with the features that this crate is built with.
pub fn path(isa: Isa, model: &Model<'_>, layer: &Layer<'_>, y: &Tensor) -> Path {
    match Convolution::new(model, &layer.op, y) {
        Some(convolution) => {
            let path = match convolution.weights.packing.order {
                Order::Blocks => blocked,
                Order::Channels => depthwise,
            };
            path(isa, &convolution, layer.scratch.bytes as usize)
        }
        None => Path::Plain,
    }
}

/// How `isa` computes a convolution or a fully connected layer with that much aligned scratch.
pub(super) fn blocked(isa: Isa, layer: &Convolution<'_>, scratch_bytes: usize) -> Path {
    debug_assert!(layer.weights.packing.order == Order::Blocks);
    let built_in = match layer.weights.packing.width {
        Width::W8 => true,
        Width::W4 => cfg!(feature = "w4"),
        Width::W2 => cfg!(feature = "w2"),
        Width::W1 => cfg!(feature = "w1"),
    };
    let fast = match isa {
        _ if !built_in => false,
        Isa::Dsp => dsp(layer, scratch_bytes),
        Isa::Mve => mve(layer, scratch_bytes),
        Isa::Portable => widened(layer, scratch_bytes),
        Isa::Thumb1 | Isa::Thumb2 => scratch_bytes >= thumb_scratch(layer) && is_plain(&layer.epilogue),
    };
    if fast { Path::Blocked } else { Path::Generic }
}

/// Whether the portable kernels for machines with vectors take a layer: there must be room for four rows of 16-bit weights.
fn widened(layer: &Convolution<'_>, scratch_bytes: usize) -> bool {
    matches!(layer.epilogue, Epilogue::Codes { .. }) && scratch_bytes >= 8 * layer.weights.packing.k.next_multiple_of(32)
}

/// Whether the DSP kernels take a layer.
fn dsp(layer: &Convolution<'_>, scratch_bytes: usize) -> bool {
    // So long are the sums that a lane of two rows holds.
    let fits = match layer.weights.packing.width {
        Width::W8 | Width::W4 => true,
        Width::W2 | Width::W1 => layer.weights.packing.k < 1024,
    };
    fits && scratch_bytes >= dsp_scratch(layer) && is_plain(&layer.epilogue)
}

/// Scratch that the DSP kernels want: columns of three pixels, and padding or a buffer. Not more than 8 bytes a code.
pub(super) fn dsp_scratch(layer: &Convolution<'_>) -> usize {
    let (window, padded_k) = (&layer.window, layer.weights.packing.padded_k());
    let padding = window.pad_top | window.pad_bottom | window.pad_left | window.pad_right;
    match (dsp_gathers(layer), padding) {
        (true, _) => 8 * padded_k,
        (false, 0) => 6 * padded_k,
        (false, _) => 6 * padded_k + layer.x.channels,
    }
}

/// Whether the DSP kernels copy inputs to a buffer first: where codes are not whole words, and under wide kernels.
pub(super) fn dsp_gathers(layer: &Convolution<'_>) -> bool {
    !layer.x.channels.is_multiple_of(4) || usize::from(layer.window.kernel_width) > DSP_KERNEL_WIDTH
}

/// Widest kernel of which the DSP kernels read the inputs where they are.
pub(super) const DSP_KERNEL_WIDTH: usize = 16;

/// Scratch that the kernels without DSP instructions want: columns of four pixels in halves of words, or of two in words.
pub(super) fn thumb_scratch(layer: &Convolution<'_>) -> usize {
    8 * layer.weights.packing.padded_k()
}

/// Whether the MVE kernels take a layer.
fn mve(layer: &Convolution<'_>, scratch_bytes: usize) -> bool {
    let packing = &layer.weights.packing;
    // A step of 32 codes may end behind the last block.
    let beyond = match packing.width {
        Width::W4 if !packing.padded_k().is_multiple_of(32) => 16,
        Width::W1 if !packing.padded_k().is_multiple_of(32) => 8,
        Width::W8 | Width::W4 | Width::W2 | Width::W1 => 0,
    };
    packing.rows.is_multiple_of(packing.block_rows())
        && packing.k < 1 << 17
        && layer.weights.packed.len() >= packing.bytes() + beyond
        && scratch_bytes >= 4 * mve_column_bytes(layer)
        && matches!(layer.epilogue, Epilogue::Codes { .. })
        && is_plain(&layer.epilogue)
}

/// Length of a column of the MVE kernels.
pub(super) fn mve_column_bytes(layer: &Convolution<'_>) -> usize {
    layer.weights.packing.k.next_multiple_of(32)
}

/// Whether codes are the upper half of a product, cut off at the ends of their 8 bits, and residuals fit 32 bits with all of
/// their constants.
fn is_plain(epilogue: &Epilogue<'_>) -> bool {
    const ALL: (i8, i8) = (i8::MIN, i8::MAX);
    match epilogue {
        Epilogue::Codes { rules, residual } => {
            rules.shift == 32
                && (rules.min, rules.max) == ALL
                && residual.is_none_or(|add| add.shift <= 22 && (add.min, add.max) == ALL)
        }
        Epilogue::Logits => true,
    }
}

/// How `isa` computes a depthwise convolution with that much aligned scratch.
pub(super) fn depthwise(isa: Isa, layer: &Convolution<'_>, scratch_bytes: usize) -> Path {
    debug_assert!(layer.weights.packing.order == Order::Channels);
    let fast = match isa {
        _ if !cfg!(feature = "depthwise") => false,
        Isa::Dsp => {
            layer.x.channels.is_multiple_of(CHANNELS)
                && is_plain(&layer.epilogue)
                && scratch_bytes >= Layout::new(layer).bytes()
        }
        // Unpacked weights of sixteen channels, and as many activations.
        Isa::Mve => is_plain(&layer.epilogue) && scratch_bytes >= 32 * layer.weights.packing.k,
        // Unpacked weights of four channels, as words, and as many activations.
        Isa::Thumb1 | Isa::Thumb2 => {
            layer.x.channels.is_multiple_of(CHANNELS)
                && is_plain(&layer.epilogue)
                && scratch_bytes >= 5 * CHANNELS * layer.weights.packing.k
        }
        // Unpacked weights of sixteen channels.
        Isa::Portable => layer.x.channels.is_multiple_of(CHANNELS) && scratch_bytes >= 16 * layer.weights.packing.k,
    };
    if fast { Path::Depthwise } else { Path::Generic }
}
