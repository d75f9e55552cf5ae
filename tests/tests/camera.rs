//! `examples/camera`: its frames and the logits in it are what the host makes of a picture of the built-in set, and in QEMU it ends with
//! PASS.
//!
//! With `ADCORDA_RECORD=1` the frames and the logits are written anew, for another model or another picture.

mod firmware;

use std::fs;

use adcorda::data::{Split, synthetic};
use adcorda_formats::Model;
use adcorda_runtime::{Image, PixelFormat, Session};

/// Of the built-in set's test images.
const PICTURE: usize = 0;

#[test]
fn the_frames_and_logits_are_the_hosts() {
    let folder = firmware::example("camera").join("src");
    let set = synthetic::load(Split::Test, PICTURE + 1);
    let frames = [rgb565(set.image(PICTURE)), yuyv(set.image(PICTURE))];
    let model = fs::read(folder.join("model.adq")).unwrap();
    let model = Model::parse(&model).unwrap();
    let mut expected =
        "// What the host's runtime made of the frames. Written by the tests' `camera.rs`.\n\nuse crate::model::CLASSES;\n"
            .to_owned();
    let mut arena = vec![0; model.arena_bytes()];
    let mut session = Session::new(&model, &mut arena).unwrap();
    for (name, format, frame) in [
        ("RGB565", PixelFormat::Rgb565Le, &frames[0]),
        ("YUYV", PixelFormat::Yuyv, &frames[1]),
    ] {
        let logits = session.run(Image::with_format(&model, format, frame).unwrap(), &mut ());
        assert_eq!(
            logits.top1(),
            usize::from(set.label(PICTURE)),
            "{name}: an example that is wrong"
        );
        expected += &format!("\n/// Of the frame in {name}.\npub static {name}: [i32; CLASSES] = {logits:?};\n");
    }

    for (name, bytes) in [
        ("frame.rgb565", frames[0].as_slice()),
        ("frame.yuyv", &frames[1]),
        ("expected.rs", expected.as_bytes()),
    ] {
        let path = folder.join(name);
        if std::env::var_os("ADCORDA_RECORD").is_some() {
            fs::write(&path, bytes).unwrap();
        }
        let found = fs::read(&path).unwrap_or_default();
        assert!(
            found == bytes,
            "{name} is not what the host makes; with ADCORDA_RECORD=1 this test writes it"
        );
    }
}

#[test]
fn it_ends_with_pass_in_qemu() {
    if !firmware::has_qemu() {
        return;
    }
    let output = firmware::cargo("camera", "run").output().expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.ends_with("PASS: every logit of both frames is the host's\n"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The picture as a camera in RGB565 would give it, low byte first: each channel's upper bits.
fn rgb565(rgb: &[u8]) -> Vec<u8> {
    let pixels = rgb.as_chunks::<3>().0.iter();
    pixels
        .flat_map(|&[r, g, b]| (u16::from(r >> 3) << 11 | u16::from(g >> 2) << 5 | u16::from(b >> 3)).to_le_bytes())
        .collect()
}

/// The picture as a camera in YUYV would give it: full-range BT.601, the chroma of two neighbours their mean.
fn yuyv(rgb: &[u8]) -> Vec<u8> {
    let yuv = |&[r, g, b]: &[u8; 3]| {
        let [r, g, b] = [r, g, b].map(f64::from);
        let y = 0.299 * r + 0.587 * g + 0.114 * b;
        [y, 128.0 + (b - y) / 1.772, 128.0 + (r - y) / 1.402]
    };
    let mut frame = Vec::new();
    for [left, right] in rgb.as_chunks::<3>().0.as_chunks::<2>().0 {
        let [[y0, u0, v0], [y1, u1, v1]] = [yuv(left), yuv(right)];
        frame.extend([y0, (u0 + u1) / 2.0, y1, (v0 + v1) / 2.0].map(|value| value.round().clamp(0.0, 255.0) as u8));
    }
    frame
}
