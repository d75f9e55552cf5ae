//! Running a parsed model over a caller's arena.
//!
//! Everything that can go wrong is checked where values enter: the model by
//! [`Model::parse`](adcorda_formats::Model::parse), the arena by [`Session::new`], the pixels by [`Image`]'s constructors. So
//! [`Session::run`] returns logits, not a `Result`.

use core::fmt;
use core::mem;
use core::ops::Range;

use adcorda_formats::{Layer, Model, Op, Scratch, Tensor, TensorId};

use crate::image::Image;
use crate::isa;
use crate::kernels::{self, Convolution, Input, Output};
use crate::requantize::AddRequantizer;

/// A model bound to the memory that it runs in.
pub struct Session<'m> {
    model: &'m Model<'m>,
    /// As long as the model's plan says.
    arena: &'m mut [u8],
}

impl<'m> Session<'m> {
    /// Binds `model` to `arena`, which may be longer than [`Model::arena_bytes`] and need not be aligned or cleared.
    ///
    /// # Errors
    /// [`ArenaTooSmall`] where `arena` is shorter than the model's plan.
    pub fn new(model: &'m Model<'m>, arena: &'m mut [u8]) -> Result<Self, ArenaTooSmall> {
        let (need, have) = (model.arena_bytes(), arena.len());
        let arena = arena.get_mut(..need).ok_or(ArenaTooSmall { need, have })?;
        Ok(Session { model, arena })
    }

    /// Classifies one image, showing every tensor to `observer` as soon as it is written.
    ///
    /// Pass `&mut ()` to observe nothing, at no cost. An image is meant for the model that it was checked against; with
    /// another one its pixels are read in order as far as they go.
    pub fn run(&mut self, image: Image<'_>, observer: &mut (impl Observer + ?Sized)) -> Logits<'_> {
        let model = self.model;
        if let Some(codes) = self.arena.get_mut(range(model.input())) {
            image.write_codes(model.input_table(), codes);
            observer.input(codes);
        }
        for ((index, layer), output) in model.layers().enumerate().zip(model.tensors().iter().skip(1)) {
            observer.layer_begin(index, &layer);
            self.layer(&layer, output);
            observer.layer_end(index, &layer, self.arena.get(range(output)).unwrap_or_default());
        }
        Logits {
            bytes: self.arena.get(range(model.output())).unwrap_or_default(),
        }
    }

    /// The model it runs.
    pub fn model(&self) -> &'m Model<'m> {
        self.model
    }

    /// Computes one layer into `y`. [`Model::parse`] proved every `None` below impossible. Not inlined, so that its code can be told
    /// from the caller's.
    #[inline(never)]
    fn layer(&mut self, layer: &Layer<'_>, y: &Tensor) -> Option<()> {
        let (model, op) = (self.model, &layer.op);
        match op {
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } | Op::Logits { .. } => {
                let convolution = Convolution::new(model, op, y)?;
                if let Op::Conv2d {
                    residual: Some(residual),
                    ..
                } = op
                {
                    self.bring_in_place(tensor(model, residual.input)?, y);
                }
                let (x, y, scratch) = self.buffers(tensor(model, op.inputs().next()?)?, y, layer.scratch)?;
                if !isa::conv2d(&convolution, x.codes, y.codes, scratch) {
                    kernels::conv2d(&convolution, x.codes, y.codes, scratch);
                }
            }
            Op::Add {
                a,
                b,
                mul_a,
                mul_b,
                shift,
                min,
                max,
            } => {
                let (a, b) = (tensor(model, *a)?, tensor(model, *b)?);
                let rule = AddRequantizer {
                    mul_a: *mul_a,
                    mul_b: *mul_b,
                    shift: *shift,
                    zero_point_a: a.zero_point,
                    zero_point_b: b.zero_point,
                    zero_point: y.zero_point,
                    min: *min,
                    max: *max,
                };
                kernels::add(self.arena, range(a), range(b), range(y), rule);
            }
            Op::MaxPool { input, window } => {
                let (x, y, _) = self.buffers(tensor(model, *input)?, y, Scratch::default())?;
                kernels::max_pool(x, window, y);
            }
            Op::AvgPool {
                input,
                window,
                multiplier,
                shift,
            } => {
                let (x, y, _) = self.buffers(tensor(model, *input)?, y, Scratch::default())?;
                kernels::avg_pool(x, window, *multiplier, *shift, y);
            }
            Op::Subsample {
                input,
                stride,
                channels_before,
                channels_after: _,
            } => {
                let (x, y, _) = self.buffers(tensor(model, *input)?, y, Scratch::default())?;
                kernels::subsample(x, *stride, *channels_before, y);
            }
        }
        Some(())
    }

    /// Copies a residual to where the sum will be, unless the plan has put it there already.
    fn bring_in_place(&mut self, residual: &Tensor, y: &Tensor) {
        let (from, to) = (range(residual), range(y));
        if from != to && from.len() == to.len() && self.arena.len() >= from.end.max(to.end) {
            self.arena.copy_within(from, to.start);
        }
    }

    /// The bytes of an input, an output and the scratch space, which never overlap.
    fn buffers<'s>(
        &'s mut self,
        x: &'s Tensor,
        y: &'s Tensor,
        scratch: Scratch,
    ) -> Option<(Input<'s>, Output<'s>, &'s mut [u8])> {
        let start = scratch.offset as usize;
        // Where a layer has no scratch, its offset means nothing.
        let scratch = if scratch.bytes == 0 {
            0..0
        } else {
            start..start + scratch.bytes as usize
        };
        let [x_codes, y_codes, scratch] = self.arena.get_disjoint_mut([range(x), range(y), scratch]).ok()?;
        Some((
            Input {
                shape: x,
                codes: x_codes,
            },
            Output {
                shape: y,
                codes: y_codes,
            },
            scratch,
        ))
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("model", self.model).finish_non_exhaustive()
    }
}

fn tensor<'m>(model: &'m Model<'m>, id: TensorId) -> Option<&'m Tensor> {
    model.tensors().get(usize::from(id))
}

/// Bytes of a tensor in the arena.
fn range(tensor: &Tensor) -> Range<usize> {
    let offset = tensor.offset as usize;
    offset..offset + tensor.bytes()
}

/// Scores of the classes, in the order of the model's labels; a larger one means likelier.
///
/// They are the accumulators of the last layer: comparable with each other and between images, not probabilities.
/// `model.output().scale` times a logit is its real value.
#[derive(Clone, Copy)]
pub struct Logits<'s> {
    /// `[classes]` little-endian `i32`.
    bytes: &'s [u8],
}

impl<'s> Logits<'s> {
    /// Number of classes.
    pub fn len(self) -> usize {
        self.bytes.len() / 4
    }

    /// Never true for a model that passed [`Model::parse`].
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Score of one class, or `None` beyond the last.
    pub fn get(self, class: usize) -> Option<i32> {
        self.bytes.as_chunks().0.get(class).map(|bytes| i32::from_le_bytes(*bytes))
    }

    /// Scores in class order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = i32> + Clone + 's {
        self.bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes))
    }

    /// The class with the largest score; of equal ones the first.
    pub fn top1(self) -> usize {
        let mut best = (0, i32::MIN);
        for (class, score) in self.iter().enumerate() {
            if score > best.1 {
                best = (class, score);
            }
        }
        best.0
    }

    /// The `K` classes with the largest scores, or all where there are fewer: the largest first, of equal ones the lower class.
    ///
    /// ```
    /// # fn show(model: &adcorda_runtime::formats::Model, logits: adcorda_runtime::Logits) {
    /// for guess in logits.top_k::<3>() {
    ///     println!("{} {}", guess.score, model.label(guess.class).unwrap_or_default());
    /// }
    /// # }
    /// ```
    pub fn top_k<const K: usize>(self) -> heapless::Vec<ClassScore, K> {
        let mut best: heapless::Vec<ClassScore, K> = heapless::Vec::new();
        for (class, score) in self.iter().enumerate() {
            let rank = best.iter().take_while(|kept| kept.score >= score).count();
            // It takes its place, each one behind it the place of the next, and the last one the end, where there is room.
            // `Vec::insert` would be the same, with a panic in it.
            let mut displaced = ClassScore { class, score };
            for kept in best.iter_mut().skip(rank) {
                mem::swap(kept, &mut displaced);
            }
            let _ = best.push(displaced);
        }
        best
    }
}

/// A class and its score, see [`Logits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassScore {
    /// Index of the class, as for [`Model::label`].
    pub class: usize,
    /// Its logit.
    pub score: i32,
}

impl fmt::Debug for Logits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Sees a run from inside: for checksums, counts, profiles.
///
/// Every method does nothing unless written. What is not used is compiled away.
pub trait Observer {
    /// The input tensor, after the input table: int8 codes `[height, width, channels]`.
    fn input(&mut self, codes: &[u8]) {
        let _ = codes;
    }

    /// Layer `index` is about to be computed.
    fn layer_begin(&mut self, index: usize, layer: &Layer<'_>) {
        let _ = (index, layer);
    }

    /// Layer `index` has been computed into tensor `index + 1`. `output` holds its bytes, NHWC: int8 codes, or little-endian
    /// `i32` for the logits.
    fn layer_end(&mut self, index: usize, layer: &Layer<'_>, output: &[u8]) {
        let _ = (index, layer, output);
    }
}

/// Observes nothing.
impl Observer for () {}

/// The arena is shorter than the model's plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaTooSmall {
    /// Bytes that the model needs.
    pub need: usize,
    /// Bytes given.
    pub have: usize,
}

impl fmt::Display for ArenaTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the arena has {} bytes, the model needs {}", self.have, self.need)
    }
}

impl core::error::Error for ArenaTooSmall {}
