//! The boards known by name: what fits where, and what QEMU can play.
//!
//! Flash and RAM are those that one firmware can use in one piece: where a chip has several RAM banks apart from each other, the
//! largest counts, since an arena is one range. Only the boards that QEMU emulates have ever run this project's code. For six others there is
//! firmware in `examples`, which is built and **never run on silicon**; the rest are data-sheet figures for `inspect`.

use std::fmt;

use adcorda_runtime::Isa;
use serde::{Serialize, Serializer};

use crate::{Error, ErrorKind, Result};

/// A board. Closed on purpose: a new one gets its figures in this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Board {
    /// Arm MPS2 with the Cortex-M4 image AN386; in QEMU.
    Mps2An386,
    /// Arm MPS2 with the Cortex-M3 image AN385; in QEMU.
    Mps2An385,
    /// Cortex-M0 code (Thumb-1) on the same Cortex-M3, made to fault at an unaligned access as a Cortex-M0 does: QEMU's one
    /// Cortex-M0 board has 16 KiB of RAM.
    Mps2An385M0,
    /// Arm MPS2 with the Cortex-M7 image AN500; in QEMU.
    Mps2An500,
    /// Arm MPS2 with the Cortex-M33 image AN505; in QEMU.
    Mps2An505,
    /// Arm MPS3 with the Cortex-M55 image AN547, whose flash is the ITCM; in QEMU.
    Mps3An547,
    /// ST STM32F030F4.
    Stm32f030,
    /// ST STM32F405RG; its 64 KiB of core-coupled RAM lie apart and do not count.
    Stm32f405,
    /// ST NUCLEO-F411RE.
    Stm32f411,
    /// ST NUCLEO-H743ZI2; of 1 MiB of RAM the AXI bank.
    Stm32h743,
    /// ST NUCLEO-U575ZI-Q; SRAM1 to SRAM3.
    Stm32u575,
    /// Nordic nRF52840-DK.
    Nrf52840,
    /// Raspberry Pi Pico: RP2040 with 2 MiB of external flash.
    Rp2040,
    /// Raspberry Pi Pico 2: RP2350 with 4 MiB of external flash.
    Rp2350,
}

/// What is known of a board.
struct Facts {
    name: &'static str,
    core: &'static str,
    target: &'static str,
    isa: Isa,
    flash_kib: usize,
    ram_kib: usize,
    qemu_machine: Option<&'static str>,
}

impl Board {
    /// Every board: those that can be run first, then by name.
    pub const ALL: [Board; 14] = [
        Board::Mps2An386,
        Board::Mps2An385,
        Board::Mps2An385M0,
        Board::Mps2An500,
        Board::Mps2An505,
        Board::Mps3An547,
        Board::Nrf52840,
        Board::Rp2040,
        Board::Rp2350,
        Board::Stm32f030,
        Board::Stm32f405,
        Board::Stm32f411,
        Board::Stm32h743,
        Board::Stm32u575,
    ];

    /// The board called `name` on the command line.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], listing the names there are.
    pub fn from_name(name: &str) -> Result<Self> {
        Board::ALL.into_iter().find(|board| board.name() == name).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("no board is called {name:?}"))
                .remedy(format!("give one of {}", Board::names(|_| true)))
        })
    }

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Its processor core, e.g. `Cortex-M4`.
    pub const fn core(self) -> &'static str {
        self.facts().core
    }

    /// Rust's target triple for it.
    pub const fn target(self) -> &'static str {
        self.facts().target
    }

    /// The instruction set whose kernels it gets, with the flags of `examples/qemu/boards` or their like.
    pub const fn isa(self) -> Isa {
        self.facts().isa
    }

    /// Bytes of flash.
    pub const fn flash_bytes(self) -> usize {
        self.facts().flash_kib * 1024
    }

    /// Bytes of RAM in one piece.
    pub const fn ram_bytes(self) -> usize {
        self.facts().ram_kib * 1024
    }

    /// What QEMU's `-M` calls it, for boards that it emulates; code of this project has run on these only. How the firmware is
    /// built for each is in `examples/qemu/boards`, one file a board.
    pub const fn qemu_machine(self) -> Option<&'static str> {
        self.facts().qemu_machine
    }

    /// The boards that QEMU emulates, by name and with commas, as remedies list them.
    pub fn emulated() -> String {
        Board::names(|board| board.qemu_machine().is_some())
    }

    /// Names of the boards for which `which` holds, with commas.
    pub(crate) fn names(which: impl Fn(Board) -> bool) -> String {
        let names: Vec<&str> = (Board::ALL.into_iter().filter(|&board| which(board)))
            .map(Board::name)
            .collect();
        names.join(", ")
    }

    /// Checks that so many bytes of flash and RAM are there. The caller says what is in them: a model file and its arena alone
    /// leave out the program and its stack.
    ///
    /// # Errors
    /// [`ErrorKind::Board`] with the bytes needed and the bytes there.
    pub fn fits(self, flash_bytes: usize, ram_bytes: usize) -> Result<()> {
        let short: Vec<String> = [
            ("flash", flash_bytes, self.flash_bytes()),
            ("RAM", ram_bytes, self.ram_bytes()),
        ]
        .into_iter()
        .filter(|&(_, needed, there)| needed > there)
        .map(|(what, needed, there)| format!("{needed} bytes of {what} are needed, {there} are there"))
        .collect();
        if short.is_empty() {
            return Ok(());
        }
        let larger = Board::names(|board| board.flash_bytes() >= flash_bytes && board.ram_bytes() >= ram_bytes);
        let remedy = if larger.is_empty() {
            "take fewer bits a weight or a smaller network; no board known here has room for it".to_owned()
        } else {
            format!("take fewer bits a weight, a smaller network, or one of {larger}")
        };
        Err(Error::new(ErrorKind::Board, format!("{self}: {}", short.join("; "))).remedy(remedy))
    }

    const fn facts(self) -> Facts {
        const fn facts(
            name: &'static str,
            core: &'static str,
            (target, isa): (&'static str, Isa),
            [flash_kib, ram_kib]: [usize; 2],
            qemu_machine: Option<&'static str>,
        ) -> Facts {
            Facts {
                name,
                core,
                target,
                isa,
                flash_kib,
                ram_kib,
                qemu_machine,
            }
        }
        const V6: (&str, Isa) = ("thumbv6m-none-eabi", Isa::Thumb1);
        const V7: (&str, Isa) = ("thumbv7m-none-eabi", Isa::Thumb2);
        const V7E: (&str, Isa) = ("thumbv7em-none-eabihf", Isa::Dsp);
        const V8: (&str, Isa) = ("thumbv8m.main-none-eabihf", Isa::Dsp);
        const V81: (&str, Isa) = ("thumbv8m.main-none-eabihf", Isa::Mve);
        match self {
            Board::Mps2An386 => facts("mps2-an386", "Cortex-M4", V7E, [4096, 4096], Some("mps2-an386")),
            Board::Mps2An385 => facts("mps2-an385", "Cortex-M3", V7, [4096, 4096], Some("mps2-an385")),
            Board::Mps2An385M0 => facts(
                "mps2-an385-m0",
                "Cortex-M3 running Cortex-M0 code",
                V6,
                [4096, 4096],
                Some("mps2-an385"),
            ),
            Board::Mps2An500 => facts("mps2-an500", "Cortex-M7", V7E, [4096, 4096], Some("mps2-an500")),
            Board::Mps2An505 => facts("mps2-an505", "Cortex-M33", V8, [4096, 4096], Some("mps2-an505")),
            Board::Mps3An547 => facts("mps3-an547", "Cortex-M55", V81, [512, 4096], Some("mps3-an547")),
            Board::Stm32f030 => facts("stm32f030", "Cortex-M0", V6, [16, 4], None),
            Board::Stm32f405 => facts("stm32f405", "Cortex-M4", V7E, [1024, 128], None),
            Board::Stm32f411 => facts("stm32f411-nucleo", "Cortex-M4", V7E, [512, 128], None),
            Board::Stm32h743 => facts("stm32h743-nucleo", "Cortex-M7", V7E, [2048, 512], None),
            Board::Stm32u575 => facts("stm32u575-nucleo", "Cortex-M33", V8, [2048, 768], None),
            Board::Nrf52840 => facts("nrf52840-dk", "Cortex-M4", V7E, [1024, 256], None),
            Board::Rp2040 => facts("rp2040-pico", "Cortex-M0+", V6, [2048, 264], None),
            Board::Rp2350 => facts("rp2350-pico2", "Cortex-M33", V8, [4096, 520], None),
        }
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As its name.
impl Serialize for Board {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_board() {
        for board in Board::ALL {
            assert_eq!(Board::from_name(board.name()).unwrap(), board);
        }
    }

    #[test]
    fn an_unknown_name_lists_those_there_are() {
        let error = Board::from_name("mps2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let text = error.to_string();
        assert!(text.contains("\"mps2\""), "{text}");
        for board in Board::ALL {
            assert!(text.contains(board.name()), "{text}");
        }
    }

    #[test]
    fn the_last_byte_fits_and_one_more_does_not() {
        let board = Board::Stm32f411;
        let (flash, ram) = (512 * 1024, 128 * 1024);
        board.fits(flash, ram).unwrap();
        for (flash, ram, said) in [
            (flash + 1, ram, "524289 bytes of flash are needed, 524288 are there"),
            (flash, ram + 1, "131073 bytes of RAM are needed, 131072 are there"),
        ] {
            let error = board.fits(flash, ram).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Board);
            let text = error.to_string();
            assert!(text.starts_with("stm32f411-nucleo: ") && text.contains(said), "{text}");
            assert!(text.contains("nrf52840-dk"), "a larger board is named: {text}");
        }
        let both = board.fits(usize::MAX, usize::MAX).unwrap_err().to_string();
        assert!(both.contains("flash") && both.contains("RAM"), "{both}");
    }
}
