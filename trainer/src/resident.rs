//! Training images on the device, and batches of them made there.
//!
//! A set is uploaded once; a step sends row numbers and geometry numbers, a few hundred bytes, and the device picks, flips and
//! shifts. The pixels are those that [`to_planar_f32`] makes on the host.

use burn::tensor::{Int, Tensor, TensorData};

use crate::data::Dataset;
use crate::data::batch::{Augmentation, Geometry, to_planar_f32};
use crate::device::Device;
use crate::nn::Inner;

/// Images on the device. A row is an image; rows may be added after the set's own.
pub(crate) struct Resident {
    /// `[rows, channels * height * width]`, values 0 to 255.
    rows: Tensor<Inner, 2>,
    /// Rows that were there from the start.
    len: usize,
    /// `[height, width, channels]`.
    shape: [usize; 3],
    /// Of each geometry and pixel, the pixel shown there: `[geometries, height * width]`.
    sources: Tensor<Inner, 2, Int>,
    shift: i8,
    device: Device,
}

impl Resident {
    /// Uploads `images`, for batches moved by no more than `augmentation`.
    pub fn new(images: &Dataset, augmentation: Augmentation, device: &Device) -> Self {
        let shape = images.shape();
        let shift = augmentation.shift.min(127) as i8;
        let rows = upload((0..images.len()).map(|i| images.image(i)), shape, device);
        let [height, width, _] = shape;
        let mut sources = Vec::new();
        for flip in [false, true] {
            for dy in -shift..=shift {
                for dx in -shift..=shift {
                    let geometry = Geometry { flip, dx, dy };
                    sources.extend((0..height * width).map(|at| geometry.source(at % width, at / width, width, height)));
                }
            }
        }
        let geometries = sources.len() / (height * width);
        Self {
            rows,
            len: images.len(),
            shape,
            sources: Tensor::from_data(TensorData::new(sources, [geometries, height * width]), device.dispatch()),
            shift,
            device: device.clone(),
        }
    }

    /// Puts `images` after the set's own, in place of what was put there before: the first is the row after the set.
    pub fn extend<'a>(&mut self, images: impl IntoIterator<Item = &'a [u8]>) {
        let own = self.rows.clone().narrow(0, 0, self.len);
        let added = upload(images, self.shape, &self.device);
        self.rows = if added.dims()[0] == 0 {
            own
        } else {
            Tensor::cat(vec![own, added], 0)
        };
    }

    /// A batch of rows, each moved by its geometry: `[n, channels, height, width]`.
    ///
    /// # Panics
    /// Where a row does not exist, or a geometry shifts by more than the augmentation given.
    pub fn batch(&self, rows: &[usize], geometries: &[Geometry]) -> Tensor<Inner, 4> {
        assert_eq!(rows.len(), geometries.len(), "every row has a geometry");
        let ([height, width, channels], n) = (self.shape, rows.len());
        let plane = height * width;
        let pixels = self.rows.clone().select(0, numbers(rows, &self.device));
        if geometries.iter().all(|&geometry| geometry == Geometry::IDENTITY) {
            return pixels.reshape([n, channels, height, width]);
        }
        let geometries: Vec<usize> = geometries.iter().map(|&geometry| self.number(geometry)).collect();
        let sources = self.sources.clone().select(0, numbers(&geometries, &self.device));
        let sources = sources
            .reshape([n, 1, plane])
            .repeat_dim(1, channels)
            .reshape([n * channels, plane]);
        let moved = pixels.reshape([n * channels, plane]).gather(1, sources);
        moved.reshape([n, channels, height, width])
    }

    /// Row of `sources`.
    fn number(&self, Geometry { flip, dx, dy }: Geometry) -> usize {
        let (side, shift) = (2 * self.shift as usize + 1, i16::from(self.shift));
        let at = |d: i8| usize::try_from(i16::from(d) + shift).expect("no geometry shifts by more than its augmentation");
        (usize::from(flip) * side + at(dy)) * side + at(dx)
    }
}

/// Numbers as a tensor.
pub(crate) fn numbers(numbers: &[usize], device: &Device) -> Tensor<Inner, 1, Int> {
    let values: Vec<i64> = numbers.iter().map(|&number| number as i64).collect();
    Tensor::from_data(TensorData::new(values, [numbers.len()]), device.dispatch())
}

fn upload<'a>(images: impl IntoIterator<Item = &'a [u8]>, shape: [usize; 3], device: &Device) -> Tensor<Inner, 2> {
    let planar = to_planar_f32(images, shape, None);
    let len: usize = shape.iter().product();
    let rows = planar.len() / len;
    Tensor::from_data(TensorData::new(planar, [rows, len]), device.dispatch())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::to_host;
    use crate::train::fixture;

    #[test]
    fn batches_are_those_of_the_host() {
        let images = fixture::images(12, 1);
        let augmentation = Augmentation::default();
        let resident = Resident::new(&images, augmentation, &Device::flex());
        let rows = [3, 0, 11, 3, 7, 7];
        let mut shifted = 0;
        for epoch in 0..40 {
            let geometries = augmentation.geometries(rows.len(), 5, epoch);
            let expected = to_planar_f32(rows.map(|row| images.image(row)), images.shape(), Some(&geometries));
            assert_eq!(to_host(resident.batch(&rows, &geometries)), expected);
            shifted += geometries.iter().filter(|g| g.dx.abs() == 4 || g.dy.abs() == 4).count();
        }
        assert!(shifted > 20);
        let still = [Geometry::IDENTITY; 6];
        let expected = to_planar_f32(rows.map(|row| images.image(row)), images.shape(), None);
        assert_eq!(to_host(resident.batch(&rows, &still)), expected);
    }

    #[test]
    fn rows_added_come_after_the_sets_own_and_replace_those_added_before() {
        let images = fixture::images(5, 1);
        let mut resident = Resident::new(&images, Augmentation::NONE, &Device::flex());
        for value in [7u8, 9] {
            let added = vec![value; images.image_len()];
            resident.extend([&added[..], &added[..]]);
            assert_eq!((resident.len, resident.rows.dims()[0]), (5, 7));
            let batch = to_host(resident.batch(&[6, 2], &[Geometry::IDENTITY; 2]));
            assert!(batch[..images.image_len()].iter().all(|&pixel| pixel == f32::from(value)));
            assert_eq!(
                batch[images.image_len()..],
                to_planar_f32([images.image(2)], images.shape(), None)
            );
        }
        resident.extend([]);
        assert_eq!(resident.rows.dims()[0], 5);
    }
}
