//! Where model files and arenas begin.

/// Bytes that begin at a multiple of 16, as the fast kernels want a model file and an arena.
///
/// ```
/// use adcorda_runtime::Aligned;
///
/// // A static without `mut` lies in flash, and the kernels read it there. Its length is that of the file.
/// static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../examples/tiny.adq"));
/// assert!(MODEL.0.as_ptr().addr().is_multiple_of(16));
/// ```
///
/// Both work at any address, to the same bits. But on Cortex-M the fast kernels read and write words: with a model or an arena that
/// does not begin at a multiple of 4, convolutions and fully connected layers go through the generic kernels, which take several
/// times longer. (Those of depthwise convolutions look at the arena alone.) A multiple of 8 is what the file format recommends,
/// and 16 what the model file itself is laid out by.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Aligned<T: ?Sized>(pub T);
