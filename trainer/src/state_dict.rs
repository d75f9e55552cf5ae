//! Named float tensors on the host: what files hold and what [`crate::nn`] is filled from.

use std::collections::BTreeMap;

/// A dense float tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub values: Vec<f32>,
}

/// Tensors by name, PyTorch names and layouts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    /// Sorted by name.
    pub tensors: BTreeMap<String, Array>,
}
