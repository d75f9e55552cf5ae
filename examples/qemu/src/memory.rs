//! The three large buffers. On a product the model lies in flash and the image comes from a camera; here both are read from the
//! host, so that one firmware serves every model.

use core::mem::MaybeUninit;

/// Largest model file.
pub const MODEL_BYTES: usize = 1792 * 1024;
/// Largest arena, its two guards not counted.
pub const ARENA_BYTES: usize = 1536 * 1024;
/// Largest image.
pub const IMAGE_BYTES: usize = 256 * 1024;
/// Bytes before and after the arena that nobody may write.
pub const GUARD_BYTES: usize = 64;
/// What arena and guards hold before each inference: zeros would hide a tensor that is read before it is written.
pub const FILL: u8 = 0xA5;

/// Aligned as a model in flash would be.
#[repr(C, align(16))]
struct Buffer<const N: usize>(MaybeUninit<[u8; N]>);

// In `.uninit`, which is neither loaded nor zeroed: so the size of `.data` and `.bss` is what the firmware itself needs.
#[unsafe(link_section = ".uninit.model")]
static mut MODEL: Buffer<MODEL_BYTES> = Buffer(MaybeUninit::uninit());
#[unsafe(link_section = ".uninit.arena")]
static mut ARENA: Buffer<{ ARENA_BYTES + 2 * GUARD_BYTES }> = Buffer(MaybeUninit::uninit());
#[unsafe(link_section = ".uninit.image")]
static mut IMAGE: Buffer<IMAGE_BYTES> = Buffer(MaybeUninit::uninit());

/// The buffers of this program.
pub struct Buffers {
    /// For the model file.
    pub model: &'static mut [u8],
    /// For the arena, with a guard at either end.
    pub arena: &'static mut [u8],
    /// For one image.
    pub image: &'static mut [u8],
}

impl Buffers {
    /// All buffers, filled with [`FILL`].
    ///
    /// # Safety
    /// To be called once only: each call gives the same memory.
    pub unsafe fn take() -> Self {
        /// # Safety
        /// `buffer` points to a static that nothing else refers to, now or later.
        unsafe fn filled<const N: usize>(buffer: *mut Buffer<N>) -> &'static mut [u8] {
            // SAFETY: the static is live for ever and, by this function's contract, no one else's; all of it is written before
            // a reference to it is made.
            unsafe {
                buffer.cast::<u8>().write_bytes(FILL, N);
                core::slice::from_raw_parts_mut(buffer.cast::<u8>(), N)
            }
        }
        // SAFETY: called once, by this function's contract, and nothing else in this module names the statics.
        unsafe {
            Self {
                model: filled(&raw mut MODEL),
                arena: filled(&raw mut ARENA),
                image: filled(&raw mut IMAGE),
            }
        }
    }
}
