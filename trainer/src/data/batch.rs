//! From images to what a training step takes: a random order, a random geometry for each image, planar floats; and back.
//!
//! Every draw comes from [`rng`], keyed by seed, purpose and epoch. Nothing is drawn in passing, so a run that resumes in
//! epoch 7 draws what an unbroken run draws there, and drawing more for one purpose never shifts another.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// What random numbers are for. Each purpose has its own stream; the number is part of the key and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Initialization = 1,
    /// Order of the images in an epoch.
    Order = 2,
    /// Geometry of each image in an epoch.
    Augmentation = 3,
    /// Which images are held out.
    Validation = 4,
    /// Which labels are replaced, and by what.
    LabelNoise = 5,
    /// Which images the activations are calibrated on.
    Calibration = 6,
    /// Random starts of attacks during training.
    Attack = 7,
    /// Images of the synthetic set.
    Synthetic = 8,
    /// Points of an image's ball from which an attack starts again.
    Restart = 16,
    /// Queries of the Square attack.
    Square = 17,
    /// Images that are nothing but noise, to measure with.
    Noise = 24,
}

/// An independent random stream: ChaCha8 with seed, purpose and epoch as its key, the same on every platform.
///
/// `epoch` is any counter that tells streams of one purpose apart; 0 where there is only one.
pub fn rng(seed: u64, purpose: Purpose, epoch: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16] = purpose as u8;
    ChaCha8Rng::from_seed(key)
}

/// The numbers 0 to `len - 1` in the order in which `epoch` visits them.
pub fn order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut rng(seed, Purpose::Order, epoch));
    order
}

/// How one image is moved: shown pixel `(x, y)` is the image's pixel `(x' + dx, y + dy)`, with `x' = width - 1 - x` where
/// flipped and `x` otherwise. Pixels outside the image repeat its edge.
///
/// A value, so that an image and its corrected version can be moved alike: another geometry undoes many corrections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// Mirrored left to right.
    pub flip: bool,
    /// Columns by which the window is right of the image.
    pub dx: i8,
    /// Rows by which the window is below the image.
    pub dy: i8,
}

impl Geometry {
    /// The image as it is.
    pub const IDENTITY: Geometry = Geometry {
        flip: false,
        dx: 0,
        dy: 0,
    };

    /// The image's pixel shown at `(x, y)`, as `row * width + column`.
    pub(crate) fn source(self, x: usize, y: usize, width: usize, height: usize) -> i64 {
        let x = if self.flip { width - 1 - x } else { x };
        let x = x.saturating_add_signed(isize::from(self.dx)).min(width - 1);
        let y = y.saturating_add_signed(isize::from(self.dy)).min(height - 1);
        (y * width + x) as i64
    }
}

/// Random geometry of training images: the usual horizontal flip, and a crop of the image padded by `shift` pixels.
///
/// The padding repeats the edge instead of being black: a black border in pixel space is far outside the range that
/// activations are calibrated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augmentation {
    /// Flip every second image, on average.
    pub flip: bool,
    /// Largest shift in each direction, in pixels; more than 127 means 127.
    pub shift: u8,
}

impl Default for Augmentation {
    /// Flip, and shift by up to 4 pixels.
    fn default() -> Self {
        Self { flip: true, shift: 4 }
    }
}

impl Augmentation {
    /// No augmentation: every geometry is the identity.
    pub const NONE: Augmentation = Augmentation { flip: false, shift: 0 };

    /// One geometry for each of `len` images in `epoch`; element `i` belongs to image `i` of the set, wherever the order of
    /// the epoch puts it.
    pub fn geometries(self, len: usize, seed: u64, epoch: u64) -> Vec<Geometry> {
        let mut rng = rng(seed, Purpose::Augmentation, epoch);
        (0..len).map(|_| self.draw(&mut rng)).collect()
    }

    /// The next geometry; always takes one 64-bit word from `rng`.
    pub fn draw(self, rng: &mut impl RngCore) -> Geometry {
        let word = rng.next_u64();
        let shift = i64::from(self.shift.min(127));
        // Multiply-shift of 24 bits on to 2 * shift + 1 values: the bias is below 2^-15.
        let within = |bits: u64| (((bits & 0xFF_FFFF) as i64 * (2 * shift + 1)) >> 24) - shift;
        Geometry {
            flip: self.flip && word >> 63 == 1,
            dx: within(word) as i8,
            dy: within(word >> 24) as i8,
        }
    }
}

/// Images as planar floats: `[n, channels, height, width]`, pixel values 0 to 255, each moved by its geometry.
///
/// # Shapes
/// Each image `[height, width, channels] = shape`; `geometries: [n]`, or `None` to move nothing.
///
/// # Panics
/// Where an image is not of that size, or there are fewer geometries than images.
pub fn to_planar_f32<'a>(
    images: impl IntoIterator<Item = &'a [u8]>,
    shape: [usize; 3],
    geometries: Option<&[Geometry]>,
) -> Vec<f32> {
    let [height, width, channels] = shape;
    let images = images.into_iter();
    let mut planar = Vec::with_capacity(images.size_hint().0 * height * width * channels);
    // First byte of the source pixel of each column, of the image at hand.
    let mut columns = vec![0; width];
    for (n, image) in images.enumerate() {
        assert_eq!(image.len(), height * width * channels, "image {n} is not {shape:?}");
        let Geometry { flip, dx, dy } = geometries.map_or(Geometry::IDENTITY, |g| g[n]);
        for (x, column) in columns.iter_mut().enumerate() {
            let x = if flip { width - 1 - x } else { x };
            *column = x.saturating_add_signed(isize::from(dx)).min(width - 1) * channels;
        }
        for channel in 0..channels {
            for y in 0..height {
                let y = y.saturating_add_signed(isize::from(dy)).min(height - 1);
                let row = &image[y * width * channels..][..width * channels];
                planar.extend(columns.iter().map(|&x| f32::from(row[x + channel])));
            }
        }
    }
    planar
}

/// Planar floats `[n, channels, height, width]` as images `[n, height, width, channels]`: rounded to the nearest pixel
/// value, limited to 0 to 255; NaN becomes 0. The inverse of [`to_planar_f32`] without geometry.
///
/// # Panics
/// Where `planar` is not whole images.
pub fn to_interleaved_u8(planar: &[f32], shape: [usize; 3]) -> Vec<u8> {
    let [height, width, channels] = shape;
    let (plane, image) = (height * width, height * width * channels);
    if planar.is_empty() {
        return Vec::new();
    }
    assert!(
        image > 0 && planar.len().is_multiple_of(image),
        "{} values are no {shape:?} images",
        planar.len()
    );
    let mut interleaved = vec![0; planar.len()];
    for (from, to) in planar.chunks_exact(image).zip(interleaved.chunks_exact_mut(image)) {
        for (channel, values) in from.chunks_exact(plane).enumerate() {
            for (pixel, &value) in to.chunks_exact_mut(channels).zip(values) {
                pixel[channel] = value.round() as u8;
            }
        }
    }
    interleaved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_and_differ_by_seed_purpose_and_epoch() {
        let first = |seed, purpose, epoch| rng(seed, purpose, epoch).next_u64();
        let words = [
            first(1, Purpose::Order, 0),
            first(2, Purpose::Order, 0),
            first(1, Purpose::Augmentation, 0),
            first(1, Purpose::Order, 1),
        ];
        for (i, a) in words.iter().enumerate() {
            assert!(words[i + 1..].iter().all(|b| a != b));
        }
        // Frozen: another value changes every recorded run.
        assert_eq!(words[0], 14_411_990_144_182_599_019);
        assert_eq!(order(8, 1, 0), [3, 2, 4, 1, 5, 7, 0, 6]);
    }

    #[test]
    fn an_order_is_a_permutation_that_differs_by_epoch() {
        let first = order(1000, 5, 0);
        assert_ne!(first, order(1000, 5, 1));
        assert_ne!(first, order(1000, 6, 0));
        assert_eq!(first, order(1000, 5, 0));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert!(order(0, 5, 0).is_empty());
    }

    #[test]
    fn geometries_cover_their_range_evenly() {
        let drawn = Augmentation::default().geometries(18_000, 3, 0);
        assert_eq!(drawn, Augmentation::default().geometries(18_000, 3, 0));
        let flips = drawn.iter().filter(|g| g.flip).count();
        assert!((8_500..9_500).contains(&flips), "{flips}");
        for shift in -4..=4 {
            for count in [
                drawn.iter().filter(|g| g.dx == shift).count(),
                drawn.iter().filter(|g| g.dy == shift).count(),
            ] {
                assert!((1_800..2_200).contains(&count), "{count} of shift {shift}");
            }
        }
        assert!(drawn.iter().all(|g| g.dx.abs() <= 4 && g.dy.abs() <= 4));
        assert!(drawn.iter().any(|g| g.dx != g.dy));
        assert!(
            Augmentation::NONE
                .geometries(50, 3, 0)
                .iter()
                .all(|&g| g == Geometry::IDENTITY)
        );
    }

    /// 2 rows, 3 columns, 2 channels: pixel (x, y) is [10 y + x, 100 + 10 y + x].
    const IMAGE: [u8; 12] = [0, 100, 1, 101, 2, 102, 10, 110, 11, 111, 12, 112];

    fn first_channel(geometry: Geometry) -> Vec<f32> {
        let planar = to_planar_f32([&IMAGE[..]], [2, 3, 2], Some(&[geometry]));
        let (first, second) = planar.split_at(6);
        assert!(first.iter().zip(second).all(|(a, b)| a + 100.0 == *b));
        first.to_vec()
    }

    #[test]
    fn planar_images_are_nchw() {
        let planar = to_planar_f32([&IMAGE[..], &IMAGE[..]], [2, 3, 2], None);
        let once = [0., 1., 2., 10., 11., 12., 100., 101., 102., 110., 111., 112.];
        assert_eq!(planar, [once, once].concat());
        assert_eq!(to_interleaved_u8(&planar, [2, 3, 2]), [IMAGE, IMAGE].concat());
    }

    #[test]
    fn geometry_flips_shifts_and_repeats_the_edge() {
        let geometry = |flip, dx, dy| Geometry { flip, dx, dy };
        assert_eq!(first_channel(Geometry::IDENTITY), [0., 1., 2., 10., 11., 12.]);
        assert_eq!(first_channel(geometry(true, 0, 0)), [2., 1., 0., 12., 11., 10.]);
        assert_eq!(first_channel(geometry(false, 1, 0)), [1., 2., 2., 11., 12., 12.]);
        assert_eq!(first_channel(geometry(false, -2, 0)), [0., 0., 0., 10., 10., 10.]);
        assert_eq!(first_channel(geometry(false, 0, 1)), [10., 11., 12., 10., 11., 12.]);
        assert_eq!(first_channel(geometry(true, 1, -1)), [2., 2., 1., 2., 2., 1.]);
        assert_eq!(first_channel(geometry(false, 127, -128)), [2., 2., 2., 2., 2., 2.]);
    }

    #[test]
    fn pixels_are_rounded_and_limited() {
        let planar = [-3.0, 0.49, 0.5, 254.5, 300.0, f32::NAN];
        assert_eq!(to_interleaved_u8(&planar, [1, 2, 3]), [0, 1, 255, 0, 255, 0]);
        assert!(to_interleaved_u8(&[], [1, 2, 3]).is_empty());
    }
}
