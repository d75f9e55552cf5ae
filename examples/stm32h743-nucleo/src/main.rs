//! Firmware for the ST NUCLEO-H743ZI2: what it does is in `firmware.rs`, on which pins and clocks in `board.rs`.
#![no_std]
#![no_main]

mod board;
mod counter;
mod firmware;
mod model;
mod samples;
mod stack;
