//! GPU memory: what a training step needs, known before the first one.
//!
//! burn panics where an allocation fails, in a worker thread and minutes after the start, so the need is worked out from the
//! network and compared with what the driver says is free. [`guard`] is for what the arithmetic does not foresee.
//!
//! # The estimate
//! `bytes(batch) = fixed + 4 * batch * (kept + IN_FLIGHT * largest)`, of f32 values:
//! - `kept`, what one image leaves in the graph until backward has come to it. Every value that a layer gives is kept as the
//!   next one's input. A layer that rounds or clips keeps what it rounded, BatchNorm what it centred, a convolution padded
//!   unevenly its padded input, a pool the places of the maxima. With fake quantization that is three times the output of a
//!   convolution with BatchNorm, and twice that of an addition.
//! - `largest`, the largest of the values: backward holds a few gradients of it at once, and the backend's kernels copies in
//!   another order.
//! - `fixed`: the images that stay on the device, and `PER_PARAMETER` times the weights.
//!
//! A step fits where that is `SHARE` of the free memory or less: the backend takes memory in pages and leaves parts of them
//! empty. Of ternary ResNet-8, `kept` is 1.28 MiB an image; on flex, where backward adds next to nothing, the peak memory of the
//! process grew by 1.33 MiB an image from batch 64 to 128 and by 1.24 from 128 to 256. `IN_FLIGHT` and `SHARE` are allowances and
//! were not measured on a GPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::device::Device;
use crate::network::{Network, Op, Shape, Window};
use crate::{Error, ErrorKind, Result};

/// Bytes of a value.
const ELEMENT: u64 = 4;

/// Tensors as large as the largest value that backward needs beside those kept.
const IN_FLIGHT: u64 = 8;

/// Copies of a weight: itself, quantized, its gradient, Adam's two averages, and the new one beside the old.
const PER_PARAMETER: u64 = 8;

/// Part of the free memory that a step may plan with, as numerator and denominator.
const SHARE: (u64, u64) = (4, 5);

/// What a training step needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMemory {
    /// Bytes for each image of the batch.
    per_image: u64,
    /// Bytes whatever the batch.
    fixed: u64,
}

impl StepMemory {
    /// Of a step of `network`, with `resident` training images kept on the device.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] where the network's layers do not fit together.
    pub fn new(network: &Network, resident: usize) -> Result<Self> {
        let shapes = network.shapes()?;
        let elements: Vec<u64> = shapes.iter().map(|shape| shape.elements() as u64).collect();
        // The pixels, and what the first convolution reads.
        let mut kept = 2 * elements[0];
        for (index, layer) in network.layers.iter().enumerate() {
            let (input, output) = (shapes[layer.inputs[0]], elements[index + 1]);
            kept += match &layer.op {
                Op::Conv2d { window, .. } | Op::DepthwiseConv2d { window, .. } => {
                    let centred = if layer.op.batch_norm().is_some() { output } else { 0 };
                    2 * output + centred + padded(input, window)
                }
                Op::Linear { .. } | Op::Add { .. } | Op::AvgPool { .. } => 2 * output,
                // Places are 64-bit numbers.
                Op::MaxPool { window } => 3 * output + padded(input, window),
                Op::Subsample { .. } => 4 * output,
            };
        }
        let largest = elements.iter().copied().max().unwrap_or(0);
        let weights: usize = network
            .parameters()?
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        Ok(Self {
            per_image: ELEMENT * (kept + IN_FLIGHT * largest),
            fixed: ELEMENT * (resident as u64 * elements[0] + PER_PARAMETER * weights as u64),
        })
    }

    /// Bytes of a step with `images` in its graph.
    pub fn bytes(&self, images: usize) -> u64 {
        self.fixed.saturating_add(self.per_image.saturating_mul(images as u64))
    }

    /// The most images that fit into `free` bytes; 0 where not even the training images do.
    pub fn largest(&self, free: u64) -> usize {
        let (share, of) = SHARE;
        let usable = (free / of * share).saturating_sub(self.fixed);
        usize::try_from(usable / self.per_image.max(1)).unwrap_or(usize::MAX)
    }

    /// Whether a step of `batch` images, `views` of each in the graph, fits into `free` bytes of `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] naming the largest batch that fits, or what to do where none does.
    pub fn check(&self, batch: usize, views: usize, device: &str, free: u64) -> Result<()> {
        if batch.saturating_mul(views) <= self.largest(free) {
            return Ok(());
        }
        let what = format!(
            "device {device}: a training step with --batch {batch} needs about {}, {} are free",
            readable(self.bytes(batch.saturating_mul(views))),
            readable(free)
        );
        Err(Error::new(ErrorKind::Device, what).remedy(self.remedy(views, free)))
    }

    /// What to do where memory does not suffice.
    fn remedy(&self, views: usize, free: u64) -> String {
        match self.largest(free) / views.max(1) {
            // A batch of one has no statistics.
            0 | 1 => "use fewer training images with --limit, end other programs on the GPU, or use `--device flex`".into(),
            fits => format!("give --batch {fits} or less"),
        }
    }
}

/// Refuses a training that `device` has no memory for; says nothing of a device whose free memory is not known.
///
/// `views` is how many times each image of a batch is in the step's graph: 2 where it is trained with its corrected pair.
///
/// # Errors
/// As [`StepMemory::check`].
pub fn check(step: &StepMemory, batch: usize, views: usize, device: &Device) -> Result<()> {
    match device.free_memory() {
        Some(free) => step.check(batch, views, device.name(), free),
        None => Ok(()),
    }
}

/// Does `work` and makes an error of a panic of a GPU, such as running out of memory all the same. On a CPU a panic is a bug
/// and stays one.
///
/// # Errors
/// Those of `work`; [`ErrorKind::Device`] with the panic's message and the largest batch that should fit.
pub fn guard<T>(step: &StepMemory, views: usize, device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if device.is_gpu() {
        caught(step, views, device, work)
    } else {
        work()
    }
}

fn caught<T>(step: &StepMemory, views: usize, device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the work had borrowed is not looked at again: the error ends the verb, and a run continues from its files.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        let remedy = match device.free_memory() {
            Some(free) => format!("if it ran out of memory, {}", step.remedy(views, free)),
            None => "if it ran out of memory, give a smaller --batch".into(),
        };
        let what = format!(
            "device {device}: it failed while computing: {}",
            message.lines().next().unwrap_or(message)
        );
        Err(Error::new(ErrorKind::Device, what).remedy(remedy))
    })
}

/// Elements of the input with its padding, where the backend pads it before it convolves: at uneven sides.
fn padded(input: Shape, window: &Window) -> u64 {
    if window.pad_top == window.pad_bottom && window.pad_left == window.pad_right {
        return 0;
    }
    let height = input.height + usize::from(window.pad_top) + usize::from(window.pad_bottom);
    let width = input.width + usize::from(window.pad_left) + usize::from(window.pad_right);
    (height * width * input.channels) as u64
}

/// `1.5 GiB`, or MiB below one.
fn readable(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mib = bytes as f64 / MIB;
    if mib < 1024.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.1} GiB", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::fixture;
    use crate::zoo::zoo;

    /// Two convolutions with BatchNorm (6 channels of 8x8, 8 of 4x4), a pool to 8 values of 2x2, 4 classes.
    #[test]
    fn counts_what_is_kept_layer_by_layer() {
        let step = StepMemory::new(&fixture::network(), 100).unwrap();
        let image = 3 * 8 * 8;
        let kept = 2 * image + 3 * 6 * 64 + 3 * 8 * 16 + 2 * 8 * 4 + 2 * 4;
        assert_eq!(step.per_image, 4 * (kept + 8 * 6 * 64));
        let weights = 6 * 27 + 4 * 6 + 8 * 54 + 4 * 8 + 4 * 32 + 4;
        assert_eq!(step.fixed, 4 * (100 * image + 8 * weights));
        assert_eq!(step.bytes(7) - step.bytes(0), 7 * step.per_image);
    }

    #[test]
    fn an_unevenly_padded_convolution_keeps_its_padded_input() {
        let even = fixture::network();
        let mut uneven = even.clone();
        if let Op::Conv2d { window, .. } = &mut uneven.layers[1].op {
            (window.pad_top, window.pad_left) = (0, 0);
        }
        let per_image = |network: &Network| StepMemory::new(network, 0).unwrap().per_image;
        assert_eq!(per_image(&uneven) - per_image(&even), 4 * 6 * 9 * 9);
    }

    #[test]
    fn the_batch_that_it_names_fits_and_one_more_does_not() {
        let step = StepMemory::new(&zoo("resnet8", 10).unwrap(), 50_000).unwrap();
        for free in [2 << 30, 5 << 30, 80 << 30] {
            let fits = step.largest(free);
            assert!(step.check(fits, 1, "cuda:0", free).is_ok());
            let error = step.check(fits + 1, 1, "cuda:0", free).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            let text = error.to_string();
            let free = readable(free);
            assert!(text.contains(&format!("--batch {} needs about", fits + 1)), "{text}");
            assert!(
                text.contains(&format!("{free} are free")) && text.contains("cuda:0"),
                "{text}"
            );
            assert!(text.ends_with(&format!("give --batch {fits} or less")), "{text}");
        }
        // Pairs halve it.
        let fits = step.largest(5 << 30) / 2;
        assert!(step.check(fits, 2, "cuda:0", 5 << 30).is_ok());
        let error = step.check(fits + 1, 2, "cuda:0", 5 << 30).unwrap_err();
        assert!(
            error.to_string().ends_with(&format!("give --batch {fits} or less")),
            "{error}"
        );
    }

    #[test]
    fn where_no_batch_fits_it_says_what_else_to_do() {
        let step = StepMemory::new(&zoo("resnet8", 10).unwrap(), 50_000).unwrap();
        for free in [0, 1 << 20, 600 << 20] {
            let text = step.check(64, 1, "cuda:1", free).unwrap_err().to_string();
            assert!(text.contains("--limit") && text.contains("--device flex"), "{text}");
        }
        assert_eq!(step.largest(0), 0);
        assert!(step.check(usize::MAX, 2, "cuda:0", u64::MAX).is_err());
    }

    #[test]
    fn a_device_of_unknown_memory_is_not_refused() {
        let step = StepMemory::new(&zoo("resnet8", 10).unwrap(), 50_000).unwrap();
        assert!(check(&step, usize::MAX, 1, &Device::flex()).is_ok());
    }

    #[test]
    fn a_panic_of_the_device_becomes_an_error_with_a_remedy() {
        let step = StepMemory::new(&fixture::network(), 0).unwrap();
        let device = Device::flex();
        let error = caught(&step, 1, &device, || -> Result<()> { panic!("out of memory\nbacktrace") }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        let text = error.to_string();
        assert!(
            text.contains("out of memory") && !text.contains("backtrace") && text.contains("--batch"),
            "{text}"
        );
        assert_eq!(caught(&step, 1, &device, || Ok(7)).unwrap(), 7);
        let own = Error::new(ErrorKind::Diverged, "the loss is NaN");
        assert_eq!(
            caught(&step, 1, &device, || Err::<(), _>(own)).unwrap_err().kind(),
            ErrorKind::Diverged
        );
    }
}
