// What the host's runtime made of the frames. Written by the tests' `camera.rs`.

use crate::model::CLASSES;

/// Of the frame in RGB565.
pub static RGB565: [i32; CLASSES] = [64785, -5215, 31433, -18570, -771, 15562, 15702, -30997, -13656, 28884];

/// Of the frame in YUYV.
pub static YUYV: [i32; CLASSES] = [65733, -7914, 33839, -20775, 1915, 18344, 15594, -30509, -15739, 27281];
