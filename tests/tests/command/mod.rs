//! The `adcorda` command as tests run it, and the small files that several tests start from (made once a test binary).
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The built command: the one that `ADCORDA_BINARY` names, else built here, because cargo does not build another package's binary for
/// a test of one package.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("ADCORDA_BINARY") {
            return path.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the tests lie in the workspace");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "adcorda", "--bin", "adcorda"])
            .current_dir(root)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "building the command failed");
        // a test runs from <target>/<profile>/deps
        let own = std::env::current_exe().expect("a test has a path");
        let folder = own.parent().and_then(Path::parent).expect("a test lies two folders deep");
        folder.join(format!("adcorda{}", std::env::consts::EXE_SUFFIX))
    })
}

/// The command with `arguments`, to add an environment to.
pub fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments);
    command
}

/// Runs the command.
pub fn adcorda(arguments: &[&str]) -> Output {
    tool(arguments).output().expect("the command starts")
}

/// Runs the command, expects success, and returns its JSON.
pub fn json(arguments: &[&str]) -> serde_json::Value {
    let output = adcorda(arguments);
    assert!(
        output.status.success(),
        "{arguments:?} printed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&output.stdout)))
}

fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path()
}

/// `tiny float`: a barely trained float network. `tiny w2`: the same, ternary.
pub fn checkpoint(name: &str) -> PathBuf {
    static FLOAT: OnceLock<PathBuf> = OnceLock::new();
    static W2: OnceLock<PathBuf> = OnceLock::new();
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let float = FLOAT.get_or_init(|| {
        let run = folder().join("float");
        json(&[
            "train",
            "tiny",
            "--data",
            "synthetic:256x64",
            "--epochs",
            "1",
            "--validation",
            "32",
            "-o",
            &text(&run),
            "--json",
        ]);
        run.join("best.safetensors")
    });
    match name {
        "tiny float" => float.clone(),
        "tiny w2" => W2
            .get_or_init(|| {
                let file = folder().join("w2.ckpt");
                json(&[
                    "quantize",
                    &text(float),
                    "--weights",
                    "w2",
                    "--data",
                    "synthetic:256x64",
                    "-o",
                    &text(&file),
                    "--json",
                ]);
                file
            })
            .clone(),
        other => panic!("no checkpoint {other}"),
    }
}

/// The checkpoint of that name, exported.
pub fn model(name: &str) -> PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let file = folder().join("model.adq");
            json(&[
                "export",
                checkpoint(name).to_str().expect("UTF-8"),
                "-o",
                file.to_str().expect("UTF-8"),
                "--json",
            ]);
            file
        })
        .clone()
}
