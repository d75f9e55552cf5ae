//! The Rust file beside a model: what firmware needs to know at compile time, and the model itself as an aligned static.

use adcorda_formats::Model;

/// `model.rs` for a model of `bytes` bytes, called `file_name`, in the same folder: sizes as constants, and the file by
/// `include_bytes!`.
///
/// It names nothing outside of `core`, so it can be included anywhere.
pub fn generate(model: &Model<'_>, bytes: usize, file_name: &str) -> String {
    let (input, arena_bytes, classes) = (model.input(), model.arena_bytes(), model.classes());
    let mut source = format!("// Written by `adcorda export` with {file_name:?}. Not meant to be edited.\n");
    for (what, declaration) in [
        (
            "Bytes of RAM that the model runs in: a `static` of this size, at a multiple of 16 (`Aligned`), is the arena.",
            format!("ARENA_BYTES: usize = {arena_bytes}"),
        ),
        (
            "Bytes of flash that the model takes.",
            format!("MODEL_BYTES: usize = {bytes}"),
        ),
        ("Number of classes, and so of logits.", format!("CLASSES: usize = {classes}")),
        ("Rows of an image.", format!("INPUT_HEIGHT: usize = {}", input.height)),
        ("Pixels of a row.", format!("INPUT_WIDTH: usize = {}", input.width)),
        ("Bytes of a pixel.", format!("INPUT_CHANNELS: usize = {}", input.channels)),
        (
            "Bytes of an image: row by row, channels innermost.",
            "INPUT_BYTES: usize = INPUT_HEIGHT * INPUT_WIDTH * INPUT_CHANNELS".into(),
        ),
    ] {
        source += &format!("\n/// {what}\npub const {declaration};\n");
    }
    source += &format!(
        "\n/// The model file, where the linker puts constants (flash), aligned as its kernels like it.\n\
         pub static MODEL: &[u8; MODEL_BYTES] = &ALIGNED.0;\n\
         \n#[repr(C, align(16))]\nstruct Aligned([u8; MODEL_BYTES]);\n\
         \nstatic ALIGNED: Aligned = Aligned(*include_bytes!({file_name:?}));\n"
    );
    source
}
