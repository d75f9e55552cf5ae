//! What a project takes from its board: build files, sources around the model, and what its README says of it.

use adcorda_formats::Model;

use super::{Embedded, Runtime, STACK_BYTES, features};
use crate::board::Board;

/// Where a board's project comes from.
pub(super) enum Template {
    /// A program that runs in QEMU and ends, from `firmware/`.
    Emulated {
        machine: &'static str,
        memory: &'static str,
        /// What the compiler must be told beside the target to use all of the core.
        compiler_flags: Option<&'static str>,
    },
    /// A program to be flashed: the board's folder in `examples`, which is built as it is there, too.
    Flashed(Example),
}

/// A board's folder in `examples`; what all boards share is in `examples/shared`.
pub(super) struct Example {
    manifest: &'static str,
    cargo_config: &'static str,
    memory: &'static str,
    main: &'static str,
    board: &'static str,
    counter: &'static str,
    readme: &'static str,
}

macro_rules! example {
    ($folder:literal) => {
        Template::Flashed(Example {
            manifest: include_str!(concat!("../../../examples/", $folder, "/Cargo.toml")),
            cargo_config: include_str!(concat!("../../../examples/", $folder, "/.cargo/config.toml")),
            memory: include_str!(concat!("../../../examples/", $folder, "/memory.x")),
            main: include_str!(concat!("../../../examples/", $folder, "/src/main.rs")),
            board: include_str!(concat!("../../../examples/", $folder, "/src/board.rs")),
            counter: include_str!(concat!("../../../examples/", $folder, "/src/counter.rs")),
            readme: include_str!(concat!("../../../examples/", $folder, "/README.md")),
        })
    };
}

macro_rules! emulated {
    ($machine:literal, $memory:literal, $flags:expr) => {
        Template::Emulated {
            machine: $machine,
            memory: include_str!(concat!("../../../examples/qemu/memory/", $memory)),
            compiler_flags: $flags,
        }
    };
}

impl Template {
    /// `None` for boards that nobody has written a program for.
    pub(super) fn of(board: Board) -> Option<Self> {
        Some(match board {
            Board::Mps2An386 => emulated!("mps2-an386", "mps2.x", None),
            Board::Mps2An385 | Board::Mps2An385M0 => emulated!("mps2-an385", "mps2.x", None),
            Board::Mps2An500 => emulated!("mps2-an500", "mps2.x", None),
            Board::Mps2An505 => emulated!("mps2-an505", "mps2-an505.x", Some("-Ctarget-cpu=cortex-m33")),
            Board::Mps3An547 => emulated!("mps3-an547", "mps3-an547.x", Some("-Ctarget-cpu=cortex-m55")),
            Board::Stm32f411 => example!("stm32f411-nucleo"),
            Board::Stm32h743 => example!("stm32h743-nucleo"),
            Board::Stm32u575 => example!("stm32u575-nucleo"),
            Board::Nrf52840 => example!("nrf52840-dk"),
            Board::Rp2040 => example!("rp2040-pico"),
            Board::Rp2350 => example!("rp2350-pico2"),
            Board::Stm32f030 | Board::Stm32f405 => return None,
        })
    }

    /// Files of the project, but for model and images: name and content.
    pub(super) fn files(
        &self,
        name: &str,
        board: Board,
        model: &Model<'_>,
        samples: &Embedded,
        runtime: &Runtime,
    ) -> Vec<(&'static str, String)> {
        let mut files = vec![
            (".gitignore", "/target\n".into()),
            (".github/workflows/firmware.yml", self.workflow(board)),
            ("README.md", self.readme(name, board, model, samples)),
            ("src/stack.rs", include_str!("../../../examples/qemu/src/stack.rs").into()),
        ];
        match self {
            Template::Emulated {
                machine,
                memory,
                compiler_flags,
            } => files.extend([
                ("Cargo.toml", emulated_manifest(name, model, runtime)),
                (".cargo/config.toml", emulated_cargo_config(board, machine, *compiler_flags)),
                ("build.rs", include_str!("../../firmware/build.rs").into()),
                ("memory.x", format!("{memory}{}", stack_check())),
                ("src/main.rs", include_str!("../../firmware/main.rs").into()),
            ]),
            Template::Flashed(example) => files.extend([
                ("Cargo.toml", example.manifest(name, model, runtime)),
                // The versions that were built; cargo drops what a project does not use.
                ("Cargo.lock", include_str!("../../../examples/Cargo.lock").into()),
                (".cargo/config.toml", example.cargo_config.into()),
                ("build.rs", include_str!("../../../examples/shared/build.rs").into()),
                ("memory.x", example.memory.into()),
                ("src/main.rs", example.main.into()),
                ("src/firmware.rs", include_str!("../../../examples/shared/firmware.rs").into()),
                ("src/board.rs", example.board.into()),
                ("src/counter.rs", example.counter.into()),
            ]),
        }
        files
    }

    fn workflow(&self, board: Board) -> String {
        let target = board.target();
        let head = "on: [push, pull_request]\njobs:\n  firmware:\n    runs-on: ubuntu-latest\n    steps:\n      \
                    - uses: actions/checkout@v4\n";
        match self {
            Template::Emulated { .. } => format!(
                "# Builds the firmware and runs it in QEMU: fails where one logit is not the host's.\nname: firmware\n{head}      \
                 - run: rustup target add {target}\n      \
                 - run: sudo apt-get update && sudo apt-get install -y --no-install-recommends qemu-system-arm\n      \
                 - run: cargo run --release\n"
            ),
            Template::Flashed(_) => format!(
                "# Builds the firmware: fails where it has no room.\nname: firmware\n{head}      \
                 - run: rustup target add {target}\n      - run: cargo build --release\n"
            ),
        }
    }

    fn readme(&self, name: &str, board: Board, model: &Model<'_>, samples: &Embedded) -> String {
        let input = model.input();
        let (core, target, count) = (board.core(), board.target(), samples.labels.len());
        let head = format!(
            "# {name}\n\n\
             Firmware for `{board}` ({core}) around the model `{model}`: images of {height} x {width} x {channels}, {classes} classes, \
             {arena} bytes of arena.\n\n",
            model = model.name(),
            height = input.height,
            width = input.width,
            channels = input.channels,
            classes = model.classes(),
            arena = model.arena_bytes(),
        );
        let (own, how) = match self {
            Template::Emulated { .. } => (
                "src/main.rs",
                format!(
                    "```sh\nrustup target add {target}\nsudo apt-get install --no-install-recommends qemu-system-arm\ncargo run --release\n```\n\n\
                 It classifies the {count} images in `src/samples.bin`, compares every logit with the host's, and prints `PASS` or what \
                 differs; the exit code says the same. `.github/workflows/firmware.yml` does that on every push.\n\n\
                 - QEMU shows that the bits are right and says nothing about time on a chip. This was never run on silicon.\n"
                ),
            ),
            // Without its heading.
            Template::Flashed(example) => (
                "src/firmware.rs",
                example.readme.split_once("\n\n").map_or("", |(_, rest)| rest).to_owned(),
            ),
        };
        format!(
            "{head}{how}\
             - `{own}` is yours to change: `classify` is all that a product needs.\n\
             - `src/model.rs` and `src/model.adq` are as `adcorda export` writes them; copy new ones over them. The logits in \
             `src/samples.rs` are those of the model here: `adcorda new-firmware` makes both anew.\n"
        )
    }
}

impl Example {
    /// The example's manifest with another name, another place of the runtime, the kernels of this model, and the workspace that the
    /// example is part of.
    fn manifest(&self, name: &str, model: &Model<'_>, runtime: &Runtime) -> String {
        let mut manifest = String::new();
        for line in self.manifest.lines() {
            if line.starts_with("name = ") {
                manifest += &format!("name = \"{name}\"");
            } else if line.starts_with("adcorda-runtime = ") {
                manifest += &runtime_dependency(model, runtime);
            } else if line == "[dependencies]" {
                manifest += "# A workspace of its own, wherever it lies.\n[workspace]\n\n[dependencies]";
            } else {
                manifest += line;
            }
            manifest.push('\n');
        }
        let workspace = include_str!("../../../examples/Cargo.toml");
        let profiles = workspace.find("[profile.release]").map_or("", |at| &workspace[at..]);
        manifest + "\n" + profiles
    }
}

fn runtime_dependency(model: &Model<'_>, runtime: &Runtime) -> String {
    let elsewhere = match runtime {
        Runtime::Folder(_) => "# On this machine; elsewhere, give the path of another checkout or a published version.\n",
        Runtime::Version(_) => "",
    };
    format!(
        "{elsewhere}adcorda-runtime = {{ {}, default-features = false, features = {:?} }}",
        runtime.key(),
        features(model)
    )
}

fn emulated_manifest(name: &str, model: &Model<'_>, runtime: &Runtime) -> String {
    format!(
        r#"[package]
name = "{name}"
description = "Firmware that classifies images with the model {model}"
version = "0.1.0"
edition = "2024"
publish = false

# A workspace of its own, wherever it lies.
[workspace]

[dependencies]
# Of the fast kernels those of this model's widths; those of 8 bits are always there.
{dependency}
cortex-m = {{ version = "0.7.7", features = ["inline-asm", "critical-section-single-core"] }}
cortex-m-rt = "0.7.5"
semihosting = {{ version = "0.1.25", features = ["stdio"] }}

[[bin]]
name = "{name}"
test = false
bench = false

[profile.release]
opt-level = 3
lto = true
codegen-units = 1
panic = "abort"
debug = "line-tables-only"

# The inner loops are assembly; the rest of the runtime is a third smaller this way.
[profile.release.package.adcorda-runtime]
opt-level = "s"

[profile.dev]
opt-level = 1
panic = "abort"
"#,
        model = model.name().escape_default(),
        dependency = runtime_dependency(model, runtime),
    )
}

fn emulated_cargo_config(board: Board, machine: &str, compiler_flags: Option<&str>) -> String {
    let (core, target) = (board.core(), board.target());
    let flags = compiler_flags.map_or(String::new(), |flags| format!("rustflags = [{flags:?}]\n"));
    format!(
        "# {board}: {core}.\n[build]\ntarget = {target:?}\n{flags}\n[target.{target}]\n\
         runner = \"qemu-system-arm -M {machine} -nographic -monitor none -serial none \
         -semihosting-config enable=on,target=native -kernel\"\n"
    )
}

/// Makes the linker refuse a program with too little stack, which would otherwise overwrite the arena without a word.
pub(super) fn stack_check() -> String {
    format!(
        "\n/* Between the statics, of which the arena is the largest, and the top of RAM. */\n\
         ASSERT(_stack_start - _stack_end >= {STACK_BYTES}, \"less than {STACK_BYTES} bytes of RAM are left for the stack: \
         take a board with more RAM or a model with a smaller arena\");\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags, target and machine of `adcorda run`.
    #[test]
    fn every_emulated_board_is_built_as_in_the_example() {
        for board in Board::ALL {
            let Some(Template::Emulated {
                machine, compiler_flags, ..
            }) = Template::of(board)
            else {
                assert_eq!(board.qemu_machine(), None);
                continue;
            };
            assert_eq!(board.qemu_machine(), Some(machine));
            let path = format!("{}/../examples/qemu/boards/{board}.toml", env!("CARGO_MANIFEST_DIR"));
            let example = std::fs::read_to_string(path).unwrap();
            let own = emulated_cargo_config(board, machine, compiler_flags);
            for line in own
                .lines()
                .filter(|line| line.starts_with("target =") || line.starts_with("rustflags"))
            {
                assert!(example.contains(line), "{board}: {line}");
            }
            assert_eq!(own.contains("rustflags"), example.contains("rustflags"), "{board}");
            assert!(example.contains(&format!("run.sh {machine}\"")));
        }
    }

    /// What `inspect` promises of a board is what its program has.
    #[test]
    fn every_flashed_board_is_as_its_facts_say() {
        for board in Board::ALL {
            let Some(Template::Flashed(example)) = Template::of(board) else {
                continue;
            };
            let (target, kib) = (board.target(), |bytes: usize| format!("LENGTH = {}K", bytes / 1024));
            assert!(example.cargo_config.contains(&format!("target = {target:?}")), "{board}");
            assert!(example.cargo_config.contains(&format!("[target.{target}]")), "{board}");
            assert!(example.readme.contains(&format!("rustup target add {target}`")), "{board}");
            assert!(example.readme.contains(board.core()), "{board}");
            let length = |region: &str| {
                example
                    .memory
                    .lines()
                    .find(|line| line.trim_start().starts_with(region))
                    .unwrap()
            };
            assert!(length("FLASH").contains(&kib(board.flash_bytes())), "{board}");
            assert!(length("RAM").contains(&kib(board.ram_bytes())), "{board}");
            assert!(example.memory.ends_with(&stack_check()), "{board}");
            assert!(example.manifest.contains(&format!("name = \"{board}\"")), "{board}");
        }
    }
}
