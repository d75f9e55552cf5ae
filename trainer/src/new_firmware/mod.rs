//! A firmware project around a model: everything that `cargo run --release` needs to build it, start it in QEMU or flash it to a board,
//! and prove, on images inside it, that the board computes what the host did.
//!
//! What depends on the board is in `template`: programs for QEMU lie in `firmware/`, those for boards in `examples`, where they are built
//! as they are. There is one of each file.

mod template;

use std::borrow::Cow;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use adcorda_formats::{Model, Op, Width};
use rand_chacha::rand_core::RngCore;
use serde::Serialize;

use self::template::Template;
use crate::board::Board;
use crate::data::Dataset;
use crate::data::batch::{Purpose, rng};
use crate::export::{parse, source};
use crate::file::{self, write_atomic};
use crate::qemu::{self, host_trace};
use crate::{Error, ErrorKind, Result};

/// Flash of a project's own code: kernels of all widths, parser with its messages, and what prints. Rounded up; before the build
/// nobody knows it better.
const PROGRAM_FLASH_BYTES: usize = 56 * 1024;

/// Stack that a project must have: checking a model and running it takes 4 KB, on a Cortex-M0 4.5; interrupts come on top.
const STACK_BYTES: usize = 6 * 1024;

/// RAM beside the arena: stack and statics.
const PROGRAM_RAM_BYTES: usize = STACK_BYTES + 2 * 1024;

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct NewFirmware {
    /// The project.
    pub folder: PathBuf,
    /// The board.
    pub board: Board,
    /// Rust's target triple.
    pub target: &'static str,
    /// Embedded images.
    pub samples: usize,
    /// Bytes of flash that model and images take; the program comes on top.
    pub flash_bytes: usize,
    /// Bytes of RAM that the arena takes; stack and statics come on top.
    pub arena_bytes: usize,
    /// Where the runtime comes from: a folder, or the version that is published.
    pub runtime: String,
    /// What `cargo run` will need there and this machine has not, each with the line that installs it.
    pub missing: Vec<String>,
}

/// Images to put into the firmware, and their labels where they have any.
#[derive(Clone, Debug)]
pub enum Samples<'a> {
    /// All images of a set.
    Images(&'a Dataset),
    /// So many images of noise: enough for parity, not for an accuracy.
    Noise(usize),
}

/// Writes a project for `board` around the model file `model` to `folder`, which is made: all of it, or nothing.
///
/// # Errors
/// [`ErrorKind::Usage`] where `folder` has something in it, or no image is asked for; [`ErrorKind::Board`] where nobody wrote a
/// program for the board or it has too little flash or RAM, in numbers; [`ErrorKind::Model`] for the file; [`ErrorKind::Data`] where
/// images or labels are not the model's; [`ErrorKind::Io`].
pub fn new_firmware(model: &Path, board: Board, samples: &Samples, folder: &Path) -> Result<NewFirmware> {
    let Some(template) = Template::of(board) else {
        let others = Board::names(|board| matches!(Template::of(board), Some(Template::Flashed(_))));
        return Err(
            Error::new(ErrorKind::Board, format!("there is no program for {board}: nobody wrote one"))
                .remedy(format!("give one of {others}, and change its board.rs and memory.x")),
        );
    };
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return Err(Error::new(ErrorKind::Usage, format!("{} is there already", folder.display()))
            .remedy("name a folder that is not there yet, or an empty one"));
    }
    let bytes = file::read(model)?;
    let parsed = parse(&bytes, &model.display().to_string())?;
    let samples = Embedded::new(&parsed, samples)?;
    let flash_bytes = bytes.len() + samples.bytes();
    board.fits(flash_bytes + PROGRAM_FLASH_BYTES, parsed.arena_bytes() + PROGRAM_RAM_BYTES)?;

    let runtime = Runtime::find();
    let name = package_name(folder);
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(|cause| Error::io("make", parent, cause))?;
    let temporary = tempfile::Builder::new()
        .prefix(file::TEMPORARY)
        .tempdir_in(parent)
        .map_err(|cause| Error::io("write to", parent, cause))?;
    let mut files: Vec<(&str, Cow<[u8]>)> = vec![
        (
            "src/model.rs",
            source::generate(&parsed, bytes.len(), "model.adq").into_bytes().into(),
        ),
        ("src/model.adq", bytes.as_slice().into()),
        ("src/samples.rs", samples.source().into_bytes().into()),
        ("src/samples.bin", samples.pixels.as_slice().into()),
    ];
    let own = template.files(&name, board, &parsed, &samples, &runtime);
    files.extend(own.into_iter().map(|(name, content)| (name, content.into_bytes().into())));
    for (name, content) in &files {
        let path = temporary.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|cause| Error::io("make", folder, cause))?;
        }
        write_atomic(&path, content)?;
    }
    // Temporary folders are their owner's alone; a project is not.
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(temporary.path(), mode).map_err(|cause| Error::io("write to", temporary.path(), cause))?;
    }
    std::fs::rename(temporary.path(), folder).map_err(|cause| Error::io("make", folder, cause))?;
    // What it would delete has been renamed.
    let _ = temporary.keep();
    Ok(NewFirmware {
        folder: folder.to_owned(),
        board,
        target: board.target(),
        samples: samples.labels.len(),
        flash_bytes,
        arena_bytes: parsed.arena_bytes(),
        runtime: runtime.to_string(),
        missing: missing_tools(board),
    })
}

/// What this machine lacks to build and run a project for `board`: the compiler's target, QEMU or probe-rs.
fn missing_tools(board: Board) -> Vec<String> {
    let said = |program: &str, arguments: &[&str]| Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let target = board.target();
    let library = said("rustc", &["--print", "target-libdir", "--target", target]);
    let has_target = library.is_ok_and(|library| Path::new(String::from_utf8_lossy(&library.stdout).trim()).is_dir());
    let (program, line) = match board.qemu_machine() {
        Some(_) => ("qemu-system-arm", qemu::INSTALL),
        None => ("probe-rs", "https://probe.rs/docs/getting-started/installation"),
    };
    let mut missing = Vec::new();
    if !has_target {
        missing.push(format!("the compiler lacks the target {target}: rustup target add {target}"));
    }
    if said(program, &["--version"]).is_err() {
        missing.push(format!("{program} is not installed: {line}"));
    }
    missing
}

/// Images as they go into the firmware, with what the host makes of them.
struct Embedded {
    /// One after the other, u8 HWC.
    pixels: Vec<u8>,
    labels: Vec<Option<u16>>,
    logits: Vec<Vec<i32>>,
}

impl Embedded {
    fn new(model: &Model<'_>, samples: &Samples) -> Result<Self> {
        let noise;
        let (images, labels): (Vec<&[u8]>, Vec<Option<u16>>) = match samples {
            Samples::Images(set) => {
                if let Some(label) = set.labels().iter().find(|&&label| usize::from(label) >= model.classes()) {
                    return Err(Error::new(
                        ErrorKind::Data,
                        format!(
                            "{} has an image of class {label}, model {} has {} classes",
                            set.name,
                            model.name(),
                            model.classes()
                        ),
                    )
                    .remedy("give the set that the model was trained on"));
                }
                (0..set.len()).map(|i| (set.image(i), Some(set.labels()[i]))).unzip()
            }
            Samples::Noise(count) => {
                let bytes = model.input().elements();
                let mut values = vec![0; count * bytes];
                rng(0, Purpose::Noise, 0).fill_bytes(&mut values);
                noise = values;
                noise.chunks_exact(bytes).map(|image| (image, None)).unzip()
            }
        };
        if images.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no images to put into the firmware").remedy("ask for at least one"));
        }
        let logits = images.iter().map(|image| Ok(host_trace(model, image)?.logits));
        Ok(Self {
            logits: logits.collect::<Result<_>>()?,
            pixels: images.concat(),
            labels,
        })
    }

    /// Bytes of flash.
    fn bytes(&self) -> usize {
        let logits: usize = self.logits.iter().map(Vec::len).sum();
        self.pixels.len() + 4 * logits + 8 * self.labels.len()
    }

    /// `samples.rs`.
    fn source(&self) -> String {
        let count = self.labels.len();
        let mut text = format!(
            "// Written by `adcorda new-firmware`. Not meant to be edited.\n\n\
             use crate::model::{{CLASSES, INPUT_BYTES}};\n\n\
             const _: () = assert!(\n    INPUT_BYTES == {bytes} && CLASSES == {classes},\n    \
             \"samples.rs is of another model than model.rs: make both anew with `adcorda new-firmware`\"\n);\n\n\
             /// Number of images.\npub const COUNT: usize = {count};\n\n\
             /// The images, one after the other.\n\
             pub static PIXELS: &[u8] = include_bytes!(\"samples.bin\");\n\n\
             /// Class of each image, where it is known.\npub static LABELS: [Option<usize>; COUNT] = {labels:?};\n\n\
             /// What the host's runtime made of each image.\npub static LOGITS: [[i32; {classes}]; COUNT] = [\n",
            bytes = self.pixels.len() / count,
            classes = self.logits[0].len(),
            labels = self.labels,
        );
        for logits in &self.logits {
            let _ = writeln!(text, "    {logits:?},");
        }
        text + "];\n"
    }
}

/// Where the project gets the runtime from.
enum Runtime {
    /// This checkout's.
    Folder(PathBuf),
    /// The one published with this version.
    Version(&'static str),
}

impl Runtime {
    fn find() -> Self {
        let trainer = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = trainer.parent().unwrap_or(trainer).join("runtime-nostd");
        match folder.join("Cargo.toml").is_file() {
            true => Runtime::Folder(folder),
            false => Runtime::Version(env!("CARGO_PKG_VERSION")),
        }
    }

    /// As a key of a dependency.
    fn key(&self) -> String {
        match self {
            Runtime::Folder(folder) => format!("path = {:?}", folder.display().to_string()),
            Runtime::Version(version) => format!("version = {version:?}"),
        }
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Runtime::Folder(folder) => folder.display().fmt(f),
            Runtime::Version(version) => f.write_str(version),
        }
    }
}

/// The folder's name in letters that a package may have.
fn package_name(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    match name.trim_matches('-') {
        "" => "firmware".into(),
        // A package's name may not begin with a digit, nor be that of the crate in every dependency tree.
        name if name.starts_with(|c: char| c.is_ascii_digit()) || ["core", "std", "test", "alloc"].contains(&name) => {
            format!("firmware-{name}")
        }
        name => name.into(),
    }
}

/// The fast kernels that the model has a use for, as features of the runtime.
fn features(model: &Model<'_>) -> Vec<&'static str> {
    let mut features = Vec::new();
    for layer in model.layers() {
        if matches!(layer.op, Op::DepthwiseConv2d { .. }) {
            features.push("depthwise");
        }
        features.extend(layer.op.weights().and_then(|weights| match weights.width {
            Width::W1 => Some("w1"),
            Width::W2 => Some("w2"),
            Width::W4 => Some("w4"),
            // Always there.
            Width::W8 => None,
        }));
    }
    features.sort_unstable();
    features.dedup();
    features
}

#[cfg(test)]
mod tests {
    use adcorda_formats::Width as Bits;

    use super::*;
    use crate::export::tests::random_zoo;
    use crate::export::{ExportOptions, export};

    fn model(folder: &Path) -> PathBuf {
        let path = folder.join("some.adq");
        let exported = export(&random_zoo("resnet8", crate::quantize::Width::W2), &ExportOptions::default()).unwrap();
        exported.write(&path).unwrap();
        path
    }

    /// Nothing of the temporary folder stays, and nothing else is in the project.
    #[test]
    fn a_project_is_whole_and_alone() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        let project = folder.path().join("made/here/My Firmware");
        let made = new_firmware(&model, Board::Mps2An386, &Samples::Noise(3), &project).unwrap();
        assert_eq!((made.samples, made.target), (3, "thumbv7em-none-eabihf"));
        let read = |name: &str| std::fs::read_to_string(project.join(name)).unwrap();
        assert!(read("Cargo.toml").contains("name = \"my-firmware\""));
        assert!(read("Cargo.toml").contains("features = [\"w2\"]"));
        assert!(read("src/samples.rs").contains("[None, None, None]"));
        assert_eq!(std::fs::read(project.join("src/samples.bin")).unwrap().len(), 3 * 32 * 32 * 3);
        assert_eq!(
            std::fs::read(project.join("src/model.adq")).unwrap(),
            std::fs::read(&model).unwrap()
        );
        let beside = std::fs::read_dir(project.parent().unwrap()).unwrap().count();
        assert_eq!(beside, 1, "temporary folders stay");
        let again = new_firmware(&model, Board::Mps2An386, &Samples::Noise(3), &project).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Usage);
    }

    #[test]
    fn what_cannot_be_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        let project = folder.path().join("project");
        for (board, samples, kind, said) in [
            (Board::Stm32f405, Samples::Noise(1), ErrorKind::Board, "stm32f411-nucleo"),
            (Board::Mps2An386, Samples::Noise(0), ErrorKind::Usage, "at least one"),
            // 512 KiB of flash.
            (
                Board::Mps3An547,
                Samples::Noise(200),
                ErrorKind::Board,
                "bytes of flash are needed, 524288 are there",
            ),
        ] {
            let error = new_firmware(&model, board, &samples, &project).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(said), "{error}");
            assert!(!project.exists());
        }
    }

    #[test]
    fn package_names_are_such() {
        for (folder, name) in [
            ("a/My Firmware!", "my-firmware"),
            ("2nd", "firmware-2nd"),
            ("..", "firmware"),
            ("core", "firmware-core"),
            ("ä", "firmware"),
        ] {
            assert_eq!(package_name(Path::new(folder)), name);
        }
    }

    #[test]
    fn only_kernels_of_the_models_widths_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(model(folder.path())).unwrap();
        let parsed = Model::parse(&bytes).unwrap();
        assert_eq!(features(&parsed), ["w2"]);
        let widths: Vec<Bits> = parsed.layers().filter_map(|layer| Some(layer.op.weights()?.width)).collect();
        assert!(widths.contains(&Bits::W2) && widths.contains(&Bits::W8));
    }
}
