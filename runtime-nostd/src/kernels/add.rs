//! Residual addition.

use core::cell::Cell;
use core::ops::Range;

use crate::isa;
use crate::requantize::AddRequantizer;

/// Elementwise sum of two tensors of one shape, each with its own scale.
///
/// The output may lie where one of the inputs does, and the inputs may be one tensor: the three are ranges of the arena,
/// which is borrowed as cells, so that overlap is defined and needs no copy.
///
/// # Shapes
/// `a`, `b`, `y`: ranges of one length
pub(crate) fn add(arena: &mut [u8], a: Range<usize>, b: Range<usize>, y: Range<usize>, rule: AddRequantizer) {
    let done = isa::add(arena, &a, &b, &y, &rule);
    let [a, b, y] = [a, b, y].map(|range| range.start + done..range.end);
    let cells = Cell::from_mut(arena).as_slice_of_cells();
    let [a, b, y] = [a, b, y].map(|range| cells.get(range).unwrap_or_default());
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        y.set(rule.apply(a.get() as i8, b.get() as i8) as u8);
    }
}
