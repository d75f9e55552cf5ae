//! The integer runtime on this machine, in an arena of the exact size with watched bytes on both sides.

use adcorda_formats::{Layer, Model};
use adcorda_runtime::{Image, Observer, Session};

/// What the arena and its surroundings hold before a run.
pub const FILL: u8 = 0xA5;

/// Watched bytes before and after the arena.
pub const CANARY: usize = 64;

/// Runs `model` over one image: `pixels` in the shape of tensor 0, `u8`, HWC. `shift` moves the arena by so many bytes, to
/// have it at another alignment.
///
/// Gives what [`oracle::run`](crate::oracle::run) gives: the bytes of tensor 0, then those of each layer's output.
///
/// # Panics
/// Where `pixels` is of another size than the model takes, where anything outside of the arena has changed, where a second
/// run in the same session differs from the first, and where the logits are not the last layer's output.
pub fn run(model: &Model<'_>, pixels: &[u8], shift: usize) -> Vec<Vec<u8>> {
    let (start, end) = (CANARY + shift, CANARY + shift + model.arena_bytes());
    let mut memory = vec![FILL; end + CANARY];
    let mut session = Session::new(model, &mut memory[start..end]).expect("an arena as long as planned");
    let image = Image::new(model, pixels).expect("an image of the size of the input");
    let mut once = || {
        let mut seen = Seen::default();
        let logits = session.run(image, &mut seen);
        let bytes: Vec<u8> = logits.iter().flat_map(i32::to_le_bytes).collect();
        assert_eq!(
            seen.tensors.last(),
            Some(&bytes),
            "logits differ from the last layer's output"
        );
        seen.tensors
    };
    let first = once();
    assert_eq!(once(), first, "a second run in the same session differs");
    let outside = memory[..start].iter().chain(&memory[end..]);
    assert!(
        outside.copied().all(|byte| byte == FILL),
        "a byte outside of the arena was written"
    );
    first
}

#[derive(Default)]
struct Seen {
    tensors: Vec<Vec<u8>>,
}

impl Observer for Seen {
    fn input(&mut self, codes: &[u8]) {
        assert!(self.tensors.is_empty(), "the input comes first");
        self.tensors.push(codes.to_vec());
    }

    fn layer_begin(&mut self, index: usize, _: &Layer<'_>) {
        assert_eq!(index + 1, self.tensors.len(), "layers come in order");
    }

    fn layer_end(&mut self, index: usize, _: &Layer<'_>, output: &[u8]) {
        assert_eq!(index + 1, self.tensors.len(), "a layer ends once");
        self.tensors.push(output.to_vec());
    }
}
