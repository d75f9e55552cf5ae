//! Helium (MVE, integer): Cortex-M55 and M85.
#![allow(unsafe_code)]

mod conv2d;
mod depthwise;

pub(super) use conv2d::conv2d;
pub(super) use depthwise::depthwise_conv2d;
