//! From camera pixels to the codes of the input tensor.

/// `codes[i] = table[i % channels][pixels[i]]`: normalisation and quantization of a `u8` pixel, looked up.
///
/// # Shapes
/// `pixels: [h, w, c]` | `table: [c, 256]` | `codes: [h, w, c]`
pub(crate) fn input_table(pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    let (tables, _) = table.as_chunks::<256>();
    for (table, (&pixel, code)) in tables.iter().cycle().zip(pixels.iter().zip(codes)) {
        *code = table[usize::from(pixel)];
    }
}
