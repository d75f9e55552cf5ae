//! From camera pixels to the codes of the input tensor, one format a function.
//!
//! All have one signature, so that an image carries the function of its format and a firmware links no other. None has a
//! buffer: a pixel becomes RGB888 in registers and goes through the table at once.
//!
//! # Shapes
//! `pixels: [h, w]` of the format | `table: [c, 256]` | `codes: [h, w, c]`; `c` is 3 but for [`input_table`]. Should they not
//! fit together, as for another model's image, the shortest ends it.
//!
//! # Source
//! W3C 2003, "Portable Network Graphics (PNG) Specification", section 13.12 (left bit replication). ITU-T T.871, section 7
//! (full-range BT.601).

/// `codes[i] = table[i % channels][pixels[i]]`: normalisation and quantization of a `u8` pixel, looked up.
pub(crate) fn input_table(pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    let (tables, _) = table.as_chunks::<256>();
    for (table, (&pixel, code)) in tables.iter().cycle().zip(pixels.iter().zip(codes)) {
        *code = table[usize::from(pixel)];
    }
}

/// RGB565, low byte first.
pub(crate) fn rgb565_le(pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    rgb565(u16::from_le_bytes, pixels, table, codes);
}

/// RGB565, high byte first.
pub(crate) fn rgb565_be(pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    rgb565(u16::from_be_bytes, pixels, table, codes);
}

/// YUV 4:2:2 in the order Y0 U Y1 V.
pub(crate) fn yuyv(pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    yuv422(|[y0, u, y1, v]| ([y0, y1], u, v), pixels, table, codes);
}

/// YUV 4:2:2 in the order U Y0 V Y1.
pub(crate) fn uyvy(pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    yuv422(|[u, y0, v, y1]| ([y0, y1], u, v), pixels, table, codes);
}

// Both are written without arrays of three in between, which a compiler that saves flash keeps in memory.

fn rgb565(word: impl Fn([u8; 2]) -> u16, pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    let Some(tables) = of_rgb(table) else { return };
    for (&pixel, codes) in pixels.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
        let word = word(pixel);
        let (r, g, b) = (word >> 11, word >> 5 & 63, word & 31);
        // The upper bits again below the lower: the ends of the range stay its ends.
        let (r, g, b) = (r << 3 | r >> 2, g << 2 | g >> 4, b << 3 | b >> 2);
        *codes = look_up(tables, r as u8, g as u8, b as u8);
    }
}

fn yuv422(samples: impl Fn([u8; 4]) -> ([u8; 2], u8, u8), pixels: &[u8], table: &[u8], codes: &mut [u8]) {
    let Some(tables) = of_rgb(table) else { return };
    for (&pair, codes) in pixels.as_chunks().0.iter().zip(codes.as_chunks_mut::<6>().0) {
        let (luma, u, v) = samples(pair);
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        // 1.402, 0.114 * 1.772 / 0.587, 0.299 * 1.402 / 0.587 and 1.772, in units of 2^-16. Rounding them before luma is added
        // changes nothing, since luma is whole.
        let rounded = |scaled: i32| (scaled + (1 << 15)) >> 16;
        let red = rounded(91_881 * v);
        let green = rounded(-22_553 * u - 46_802 * v);
        let blue = rounded(116_130 * u);
        for (y, codes) in luma.into_iter().zip(codes.as_chunks_mut().0) {
            let channel = |difference: i32| (i32::from(y) + difference).clamp(0, 255) as u8;
            *codes = look_up(tables, channel(red), channel(green), channel(blue));
        }
    }
}

/// The tables of red, green and blue.
fn of_rgb(table: &[u8]) -> Option<&[[u8; 256]; 3]> {
    table.as_chunks().0.first_chunk()
}

fn look_up([red, green, blue]: &[[u8; 256]; 3], r: u8, g: u8, b: u8) -> [u8; 3] {
    [red[usize::from(r)], green[usize::from(g)], blue[usize::from(b)]]
}
