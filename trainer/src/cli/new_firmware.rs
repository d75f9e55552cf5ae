//! `adcorda new-firmware`.

use std::path::PathBuf;

use adcorda::Result;
use adcorda::board::Board;
use adcorda::data::{SetSpec, Split};
use adcorda::new_firmware::{Samples, new_firmware};
use clap::Args;

use super::{load_data, print, to_json};

/// Make a firmware project around a model, which proves itself in QEMU or on a board with `cargo run --release`.
#[derive(Args)]
#[command(
    after_help = "Example: adcorda new-firmware model.adq firmware --board mps2-an386 --data cifar10:data --images 8\n         \
cd firmware && cargo run --release   (ends with PASS, and top-1 on the images)\n\n\
The project holds the model, the images, what the host computed of them, a main.rs to go on from, the linker's memory map, a\n\
runner (QEMU, or probe-rs for boards to flash) and a GitHub workflow. It depends on the runtime of the checkout that this program was built in, or, where\n\
that is gone, on the published version."
)]
pub struct NewFirmware {
    /// A .adq file
    model: PathBuf,
    /// The project's folder, which is made
    folder: PathBuf,
    /// In QEMU: mps2-an386 (Cortex-M4), mps2-an385 (M3), mps2-an385-m0 (M0 code on an M3), mps2-an500 (M7), mps2-an505 (M33),
    /// mps3-an547 (M55). To flash: stm32f411-nucleo, nrf52840-dk (M4), stm32h743-nucleo (M7), stm32u575-nucleo, rp2350-pico2 (M33),
    /// rp2040-pico (M0+)
    #[arg(long, default_value = "mps2-an386", value_name = "NAME")]
    board: String,
    /// cifar10:DIR, cifar100:DIR or synthetic: its first test images go into the firmware [default: noise, without labels]
    #[arg(long, value_name = "SET")]
    data: Option<SetSpec>,
    /// How many images
    #[arg(long, default_value_t = 4, value_name = "N")]
    images: usize,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl NewFirmware {
    pub fn run(self) -> Result<()> {
        let board = Board::from_name(&self.board)?;
        let set = (self.data.as_ref())
            .map(|set| load_data(set, Split::Test, Some(self.images)))
            .transpose()?;
        let samples = set.as_ref().map_or(Samples::Noise(self.images), Samples::Images);
        let made = new_firmware(&self.model, board, &samples, &self.folder)?;
        for missing in &made.missing {
            eprintln!("warning: {missing}");
        }
        let folder = made.folder.display();
        print(
            self.json,
            &to_json(&made)?,
            &format!(
                "{folder}: {board}, {} images, model and images {} bytes of flash, arena {} bytes\ncd {folder} && cargo run --release",
                made.samples, made.flash_bytes, made.arena_bytes
            ),
        )
    }
}
