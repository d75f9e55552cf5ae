//! `adcorda new-firmware`: the project that it writes is built and run to PASS for every board, and the page that shows it shows
//! what a user sees.

mod command;
mod firmware;

use std::fs;
use std::path::Path;

use command::{adcorda, json, model, tool};
use firmware::{cargo_in, has_qemu};
use tempfile::tempdir;

const SET: &str = "synthetic:256x64";
const PAGE: &str = include_str!("../../docs/FIRMWARE.md");

/// Boards of `adcorda run`; each is built for its own target and flags.
const BOARDS: [&str; 6] = [
    "mps2-an386",
    "mps2-an385",
    "mps2-an385-m0",
    "mps2-an500",
    "mps2-an505",
    "mps3-an547",
];

/// Where a model file has its version, by `FORMAT.md`.
const VERSION_AT: usize = 8;

/// `cargo run --release` as a user types it in the project: what it printed, and whether it ended well.
fn run(project: &Path, target: &Path) -> (String, bool) {
    let output = cargo_in(project, "run")
        .env("CARGO_TARGET_DIR", target)
        .output()
        .expect("cargo runs");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

#[test]
fn every_board_runs_its_project_to_pass() {
    if !has_qemu() {
        return;
    }
    let folder = tempdir().unwrap();
    let (model, target) = (model("tiny w2"), folder.path().join("target"));
    for board in BOARDS {
        let project = folder.path().join(board);
        let made = json(&[
            "new-firmware",
            model.to_str().unwrap(),
            project.to_str().unwrap(),
            "--board",
            board,
            "--data",
            SET,
            "--images",
            "3",
            "--json",
        ]);
        assert_eq!((&made["board"], &made["samples"]), (&board.into(), &3.into()), "{made}");
        let (text, success) = run(&project, &target);
        let passed = text
            .lines()
            .any(|line| line == "PASS: every logit of 3 samples is the host's");
        assert!(success && passed, "{board} printed:\n{text}");
        assert!(
            text.lines().any(|line| line.starts_with("top-1 ") && line.ends_with(" of 3")),
            "{text}"
        );
    }

    // One logit of the host's that is another one: the same project says so, and the exit code does.
    let samples = folder.path().join("mps2-an386/src/samples.rs");
    let text = fs::read_to_string(&samples).unwrap();
    let (head, logits) = text.rsplit_once("= [\n    [").unwrap();
    let (first, rest) = logits.split_once(',').unwrap();
    let other = first.parse::<i32>().unwrap() + 1;
    fs::write(&samples, format!("{head}= [\n    [{other},{rest}")).unwrap();
    let (text, success) = run(&folder.path().join("mps2-an386"), &target);
    assert!(
        !success && text.contains(&format!("FAIL: logit 0 is {first}, on the host it was {other}")),
        "{text}"
    );
    assert!(!text.contains("PASS"), "{text}");

    // Images of another model, and a model that the runtime is too old for.
    let project = folder.path().join("mps2-an385");
    let (source, file) = (project.join("src/model.rs"), project.join("src/model.adq"));
    let (text, mut bytes) = (fs::read_to_string(&source).unwrap(), fs::read(&file).unwrap());
    fs::write(
        &source,
        text.replace("INPUT_CHANNELS: usize = 3", "INPUT_CHANNELS: usize = 1"),
    )
    .unwrap();
    let (said, success) = run(&project, &target);
    assert!(
        !success && said.contains("samples.rs is of another model than model.rs"),
        "{said}"
    );
    fs::write(&source, &text).unwrap();
    bytes[VERSION_AT] += 1;
    fs::write(&file, &bytes).unwrap();
    let (said, success) = run(&project, &target);
    assert!(!success && said.contains("newer"), "{said}");

    // A stack that is too small is not left to chance: the linker says so.
    let memory = folder.path().join("mps2-an386/memory.x");
    let arena = json(&["inspect", model.to_str().unwrap(), "--json"])["arena_bytes"]
        .as_u64()
        .unwrap();
    let narrow = fs::read_to_string(&memory).unwrap();
    let narrow = narrow.replace(
        "0x20000000, LENGTH = 4M",
        &format!("0x20000000, LENGTH = {}", arena / 8 * 8 + 4096),
    );
    fs::write(&memory, narrow).unwrap();
    let (text, success) = run(&folder.path().join("mps2-an386"), &target);
    assert!(!success && text.contains("bytes of RAM are left for the stack"), "{text}");
}

/// Numbers and the names of classes depend on the model; everything else is what the page shows.
fn comparable(line: &str) -> String {
    let line = match line.split_once(": ") {
        Some((sample, _)) if sample.starts_with("sample ") => sample,
        _ => line,
    };
    let mut text = String::new();
    for c in line.chars() {
        match (c.is_ascii_digit(), text.ends_with('#')) {
            (true, true) => {}
            (true, false) => text.push('#'),
            (false, _) => text.push(c),
        }
    }
    text
}

#[test]
fn the_page_shows_what_a_user_sees() {
    if !has_qemu() {
        return;
    }
    let shown = PAGE.split_once("```console\n").unwrap().1.split_once("```").unwrap().0;
    let folder = tempdir().unwrap();
    fs::copy(model("tiny w2"), folder.path().join("model.adq")).unwrap();
    let mut seen = Vec::new();
    for line in shown.lines().filter_map(|line| line.strip_prefix("$ ")) {
        seen.push(format!("$ {line}"));
        let printed = match line.split_once(' ') {
            Some(("adcorda", arguments)) => {
                let arguments: Vec<&str> = arguments.split(' ').collect();
                let output = tool(&arguments).current_dir(folder.path()).output().unwrap();
                assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap()
            }
            _ => {
                assert_eq!(line, "cd firmware && cargo run --release");
                let (text, success) = run(&folder.path().join("firmware"), &folder.path().join("target"));
                assert!(success, "{text}");
                text
            }
        };
        seen.extend(printed.lines().map(str::to_owned));
    }
    let (shown, seen): (Vec<String>, Vec<String>) = (
        shown.lines().map(comparable).collect(),
        seen.iter().map(|line| comparable(line)).collect(),
    );
    assert_eq!(shown, seen);
}

#[test]
fn what_cannot_be_made_is_said_before_anything_is() {
    let folder = tempdir().unwrap();
    let (model, project) = (model("tiny w2"), folder.path().join("project"));
    let model = model.to_str().unwrap();
    let other = folder.path().join("text.adq");
    fs::write(&other, "no model").unwrap();
    for (arguments, code, said) in [
        (vec![model, "--board", "stm32f405"], 7, "nobody wrote one"),
        (vec![model, "--board", "nrf"], 2, "give one of"),
        (
            vec![model, "--board", "mps3-an547", "--images", "500"],
            7,
            "bytes of flash are needed, 524288 are there",
        ),
        (vec![model, "--images", "0"], 2, "at least one"),
        (
            vec![model, "--board", "stm32f411-nucleo", "--images", "200"],
            7,
            "bytes of flash are needed, 524288 are there",
        ),
        (vec![other.to_str().unwrap()], 5, "text.adq"),
        (vec!["missing.adq"], 9, "missing.adq"),
    ] {
        let mut all = vec!["new-firmware", arguments[0], project.to_str().unwrap()];
        all.extend(&arguments[1..]);
        let output = adcorda(&all);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{all:?}: {text}");
        assert!(text.contains(said), "{all:?}: {text}");
        assert!(!project.exists());
    }
}
