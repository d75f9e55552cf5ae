//! Pixel formats: a camera's frame gives the codes of the same frame in RGB888, and the rules are as exact as they say.

use crate::net::{FILL, Net, Random, Room, Rows};
use adcorda_runtime::formats::{Model, Op, Order, Width};
use adcorda_runtime::{Image, ImageMismatch, Observer, PixelFormat, Session};

/// Height and width of a frame with 65,536 pixels.
const SIDE: usize = 256;

/// `height x width` pixels to one class.
fn net(height: usize, width: usize, table: &[[i8; 256]]) -> Vec<u8> {
    let mut net = Net::with_table(height, width, -3, table);
    let weights = net.weights(
        Order::Blocks,
        &Rows {
            width: Width::W1,
            codes: vec![vec![1; height * width * table.len()]],
            bias: vec![0],
        },
    );
    net.logits(Op::Logits { input: 0, weights }, 1);
    net.file(Room::Recommended)
}

/// Pixel values as they are, with the highest bit inverted.
fn identity(channels: usize) -> Vec<[i8; 256]> {
    vec![std::array::from_fn(|pixel| (pixel as u8 ^ 0x80) as i8); channels]
}

/// Three tables that differ, each with every code once: two pixels never look the same.
fn shuffled() -> [[i8; 256]; 3] {
    [(77, 13), (35, 200), (219, 91)].map(|(factor, start)| std::array::from_fn(|pixel| (pixel * factor + start) as u8 as i8))
}

/// Keeps the codes of the input.
#[derive(Default)]
struct Codes(Vec<u8>);

impl Observer for Codes {
    fn input(&mut self, codes: &[u8]) {
        self.0.clear();
        self.0.extend_from_slice(codes);
    }
}

/// A session, run by run.
struct Camera<'m> {
    session: Session<'m>,
    codes: Codes,
}

impl<'m> Camera<'m> {
    fn new(model: &'m Model<'m>, arena: &'m mut [u8]) -> Self {
        Camera {
            session: Session::new(model, arena).unwrap(),
            codes: Codes::default(),
        }
    }

    /// Codes of the input, and the logits.
    fn run(&mut self, image: Image<'_>) -> (&[u8], Vec<i32>) {
        let logits = self.session.run(image, &mut self.codes).iter().collect();
        (&self.codes.0, logits)
    }

    /// Asserts that a frame is run as `rgb` is.
    fn assert_same(&mut self, format: PixelFormat, frame: &[u8], rgb: &[u8]) {
        let model = self.session.model();
        let (codes, logits) = self.run(Image::new(model, rgb).unwrap());
        let expected = (codes.to_vec(), logits);
        let (codes, logits) = self.run(Image::with_format(model, format, frame).unwrap());
        assert!(codes == expected.0, "{format:?}: codes differ");
        assert_eq!(logits, expected.1, "{format:?}");
    }
}

/// The rule for RGB565, by arithmetic on strings of bits.
fn rgb_of_565(word: u16) -> [u8; 3] {
    let bits = format!("{word:016b}");
    let widened = |bits: &str| u8::from_str_radix(&format!("{bits}{bits}")[..8], 2).unwrap();
    [&bits[..5], &bits[5..11], &bits[11..]].map(widened)
}

/// The rule for YUV, with divisions that round down instead of shifts, in 64 bits.
fn rgb_of_yuv([y, u, v]: [u8; 3]) -> [u8; 3] {
    let (y, u, v) = (i64::from(y), i64::from(u) - 128, i64::from(v) - 128);
    [91_881 * v, -22_553 * u - 46_802 * v, 116_130 * u]
        .map(|difference| (65_536 * y + difference + 32_768).div_euclid(65_536).clamp(0, 255) as u8)
}

#[test]
fn rgb888_by_its_name_is_what_it_is_without() {
    let file = net(6, 5, &shuffled());
    let model = Model::parse(&file).unwrap();
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut camera = Camera::new(&model, &mut arena);
    let mut random = Random::new(0x888);
    let pixels: Vec<u8> = (0..90).map(|_| random.within(0, 255) as u8).collect();
    camera.assert_same(PixelFormat::Rgb888, &pixels, &pixels);
}

#[test]
fn every_rgb565_pixel_is_as_its_rgb888() {
    let file = net(SIDE, SIDE, &shuffled());
    let model = Model::parse(&file).unwrap();
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut camera = Camera::new(&model, &mut arena);
    let rgb: Vec<u8> = (0..=u16::MAX).flat_map(rgb_of_565).collect();
    let low_first: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let high_first: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_be_bytes).collect();
    camera.assert_same(PixelFormat::Rgb565Le, &low_first, &rgb);
    camera.assert_same(PixelFormat::Rgb565Be, &high_first, &rgb);
}

/// Every luma, u and v, as the first of a pair and as the second.
#[test]
fn every_yuv_pixel_is_as_its_rgb888() {
    let file = net(SIDE, SIDE, &shuffled());
    let model = Model::parse(&file).unwrap();
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut camera = Camera::new(&model, &mut arena);
    for u in 0..=255 {
        let [mut rgb, mut yuyv, mut uyvy] = [const { Vec::new() }; 3];
        for v in 0..=255 {
            for half in 0..128 {
                let (y0, y1) = (2 * half, 255 - 2 * half);
                rgb.extend(rgb_of_yuv([y0, u, v]));
                rgb.extend(rgb_of_yuv([y1, u, v]));
                yuyv.extend([y0, u, y1, v]);
                uyvy.extend([u, y0, v, y1]);
            }
        }
        camera.assert_same(PixelFormat::Yuyv, &yuyv, &rgb);
        camera.assert_same(PixelFormat::Uyvy, &uyvy, &rgb);
    }
}

#[test]
fn known_colours() {
    let file = net(1, 2, &identity(3));
    let model = Model::parse(&file).unwrap();
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut camera = Camera::new(&model, &mut arena);
    for (format, frame, rgb) in [
        (PixelFormat::Rgb565Le, [0x00, 0xF8, 0xE0, 0x07], [255, 0, 0, 0, 255, 0]),
        (PixelFormat::Rgb565Be, [0xF8, 0x00, 0x00, 0x1F], [255, 0, 0, 0, 0, 255]),
        (
            PixelFormat::Rgb565Be,
            [0x84, 0x10, 0xFF, 0xFF],
            [132, 130, 132, 255, 255, 255],
        ),
        // Grey of two lightnesses; red, and red as light as white.
        (PixelFormat::Yuyv, [0, 128, 200, 128], [0, 0, 0, 200, 200, 200]),
        (PixelFormat::Uyvy, [85, 76, 255, 255], [254, 0, 0, 255, 179, 179]),
    ] {
        camera.assert_same(format, &frame, &rgb);
    }
}

/// 0.72 and 0.502 levels, as the documentation of `PixelFormat` says.
#[test]
fn conversions_are_as_exact_as_they_say() {
    for word in 0..=u16::MAX {
        let [r, g, b] = rgb_of_565(word).map(i64::from);
        for (eight, bits, max) in [(r, word >> 11, 31), (g, word >> 5 & 63, 63), (b, word & 31, 31)] {
            let exact = 255 * i64::from(bits);
            assert!(100 * (eight * max - exact).abs() <= 72 * max, "{word:#06x}");
            assert!((eight * max == exact) || (1..max).contains(&bits.into()), "{word:#06x}");
        }
    }
    let within =
        |eight: u8, exact: i64, unit: i64| 1000 * (i64::from(eight) * unit - exact.clamp(0, 255 * unit)).abs() <= 502 * unit;
    for y in 0..=255 {
        for u in 0..=255 {
            for v in 0..=255 {
                let [r, g, b] = rgb_of_yuv([y, u, v]);
                let (y, u, v) = (i64::from(y), i64::from(u) - 128, i64::from(v) - 128);
                assert!(within(r, 1000 * y + 1402 * v, 1000), "{y} {u} {v}");
                assert!(
                    within(g, 587_000 * y - 114 * 1772 * u - 299 * 1402 * v, 587_000),
                    "{y} {u} {v}"
                );
                assert!(within(b, 1000 * y + 1772 * u, 1000), "{y} {u} {v}");
            }
        }
    }
}

#[test]
fn a_frame_that_does_not_fit_the_model_is_refused() {
    const ALL: [PixelFormat; 5] = [
        PixelFormat::Rgb888,
        PixelFormat::Rgb565Le,
        PixelFormat::Rgb565Be,
        PixelFormat::Yuyv,
        PixelFormat::Uyvy,
    ];
    for format in ALL {
        let file = net(3, 4, &identity(3));
        let model = Model::parse(&file).unwrap();
        let need = 12 * format.bytes_per_pixel();
        for have in [0, need - 1, need + 1, 2 * need] {
            let error = Image::with_format(&model, format, &vec![0; have]).unwrap_err();
            assert_eq!(error, ImageMismatch::Size { need, have });
            let text = format!("the image has {have} bytes, the model takes {need}");
            assert_eq!(error.to_string(), text);
        }
        assert!(Image::with_format(&model, format, &vec![0; need]).is_ok());

        for channels in [1, 2, 4] {
            let file = net(3, 4, &identity(channels));
            let model = Model::parse(&file).unwrap();
            let error = Image::with_format(&model, format, &vec![0; need]).unwrap_err();
            let found = channels as u16;
            assert_eq!(error, ImageMismatch::Channels { found });
            let text = format!("the pixels are red, green and blue, the model takes {channels} channels");
            assert_eq!(error.to_string(), text);
        }

        let file = net(4, 3, &identity(3));
        let model = Model::parse(&file).unwrap();
        let frame = vec![0; need];
        let result = Image::with_format(&model, format, &frame);
        match format {
            PixelFormat::Rgb888 | PixelFormat::Rgb565Le | PixelFormat::Rgb565Be => assert!(result.is_ok()),
            PixelFormat::Yuyv | PixelFormat::Uyvy => {
                let error = result.unwrap_err();
                assert_eq!(error, ImageMismatch::OddWidth { found: 3 });
                let text = "the pixels come in pairs, the model takes rows of 3, an odd number";
                assert_eq!(error.to_string(), text);
            }
        }
    }
}

/// As for `Image::new`: pixels are read as far as they go.
#[test]
fn a_frame_of_another_model_does_no_harm() {
    let other_file = net(2, 2, &identity(3));
    let other = Model::parse(&other_file).unwrap();
    for (height, width, channels) in [(1, 1, 1), (1, 1, 2), (1, 1, 3), (5, 5, 3), (9, 1, 4)] {
        let file = net(height, width, &identity(channels));
        let model = Model::parse(&file).unwrap();
        let mut arena = vec![FILL; model.arena_bytes()];
        let mut session = Session::new(&model, &mut arena).unwrap();
        for format in [PixelFormat::Rgb565Le, PixelFormat::Yuyv] {
            let image = Image::with_format(&other, format, &[128; 8]).unwrap();
            assert_eq!(session.run(image, &mut ()).len(), 1);
        }
    }
}
