//! `adcorda gate`, `scripts/gate.sh` and the GitHub Action as their users have them, on the models under `tests/gate`.

mod command;
mod firmware;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use adcorda_formats::VERSION;
use adcorda_tests::cases;
use adcorda_tests::performance::root;
use command::{binary, tool};
use firmware::has_qemu;
use tempfile::{TempDir, tempdir};

const PAGE: &str = include_str!("../../docs/CI.md");
const ACTION: &str = include_str!("../../action.yml");

/// A folder with the committed models and baseline, under the names that the page gives them.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    for (from, to) in [
        ("tiny.adq", "model.adq"),
        ("changed.adq", "changed.adq"),
        ("tiny.json", "gate.json"),
    ] {
        fs::copy(root().join("tests/gate").join(from), folder.path().join(to)).unwrap();
    }
    folder
}

/// `adcorda gate` in a folder.
fn gate(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = tool(&[&["gate"], arguments].concat());
    command.current_dir(folder);
    command
}

/// `scripts/gate.sh` in a folder, with the files of a GitHub step there.
fn script(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(root().join("scripts/gate.sh"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("ADCORDA", binary())
        .env("GITHUB_STEP_SUMMARY", folder.join("summary.md"))
        .env("GITHUB_OUTPUT", folder.join("output"));
    command
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    Ran {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("UTF-8"),
        stderr: String::from_utf8(stderr).expect("UTF-8"),
    }
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The row of a table that starts with `metric`.
#[track_caller]
fn row<'a>(table: &'a str, metric: &str) -> &'a str {
    let start = format!("| {metric} |");
    let row = table.lines().find(|line| line.starts_with(&start));
    row.unwrap_or_else(|| panic!("no row {metric} in:\n{table}"))
}

/// Where QEMU is; `None`, and a word, where the test may do without.
fn qemu() -> Option<PathBuf> {
    has_qemu().then(|| program("qemu-system-arm")).flatten()
}

/// Where a program is on the path.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(name));
    candidates.find(|candidate| candidate.is_file())
}

#[test]
fn the_script_passes_on_the_committed_baseline() {
    if qemu().is_none() {
        return;
    }
    let folder = folder();
    fs::write(folder.path().join("summary.md"), "before\n").unwrap();
    let ran = run(&mut script(folder.path(), &["model.adq", "synthetic", "gate.json"]));
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.starts_with("**adcorda gate: passed.** `tiny`"), "{}", ran.stdout);
    assert!(row(&ran.stdout, "mps2-an386: parity with the host").ends_with("| same |"));
    assert_eq!(read(folder.path(), "summary.md"), format!("before\n{}\n", ran.stdout));
    let output = read(folder.path(), "output");
    assert!(output.starts_with("passed=true\nsummary<<end-"), "{output}");
    assert!(output.contains(&ran.stdout), "{output}");
}

#[test]
fn the_script_fails_on_a_model_that_is_worse() {
    if qemu().is_none() {
        return;
    }
    let folder = folder();
    let ran = run(&mut script(
        folder.path(),
        &["changed.adq", "synthetic", "gate.json", "--markdown", "table.md"],
    ));
    assert_eq!(ran.code, Some(13), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.starts_with("**adcorda gate: failed.**"), "{}", ran.stdout);
    for expected in [
        "| top-1 | 86.20 % | 56.90 % | -29.30 points | **worse**, 0.5 points allowed |",
        "| `.adq` bytes | 5,960 | 9,320 | +3,360 (+56.38 %) | **worse**, 0 % allowed |",
        "| arena bytes | 6,400 | 6,400 | 0 | same |",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}\nis not in\n{}", ran.stdout);
    }
    for metric in [
        "mps2-an386: instructions",
        "mps2-an386: instructions of `conv2`",
        "mps2-an386: instructions of `block.conv2`",
    ] {
        assert!(
            row(&ran.stdout, metric).ends_with("| **worse**, 1 % allowed |"),
            "{}",
            ran.stdout
        );
    }
    assert!(
        ran.stderr
            .contains("error: changed.adq is worse than gate.json allows: top-1, `.adq` bytes, "),
        "{}",
        ran.stderr
    );
    assert_eq!(read(folder.path(), "table.md"), ran.stdout);
    assert_eq!(read(folder.path(), "summary.md"), format!("{}\n", ran.stdout));
    let output = read(folder.path(), "output");
    assert!(
        output.starts_with("passed=false\n") && output.contains(&ran.stdout),
        "{output}"
    );

    // What a tolerance is given for passes.
    let ran = run(&mut gate(
        folder.path(),
        &[
            "changed.adq",
            "--data",
            "synthetic",
            "--baseline",
            "gate.json",
            "--accuracy-tolerance",
            "29.3",
            "--instructions-tolerance",
            "200",
            "--size-tolerance",
            "100",
            "--json",
        ],
    ));
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["passed"], &report["parity"]), (&true.into(), &true.into()));
    assert_eq!(report["metrics"][0]["verdict"], "within", "{report}");
}

#[test]
fn the_script_fails_on_a_baseline_of_fewer_instructions() {
    if qemu().is_none() {
        return;
    }
    let folder = folder();
    let path = folder.path().join("gate.json");
    let mut baseline: serde_json::Value = serde_json::from_str(&read(folder.path(), "gate.json")).unwrap();
    let board = &mut baseline["boards"][0];
    board["instructions"] = (board["instructions"].as_u64().unwrap() * 95 / 100).into();
    let fc = &mut board["layers"]["fc"];
    *fc = (fc.as_u64().unwrap() * 95 / 100).into();
    fs::write(&path, baseline.to_string()).unwrap();
    let ran = run(&mut script(folder.path(), &["model.adq", "synthetic", "gate.json"]));
    assert_eq!(ran.code, Some(13), "{}{}", ran.stdout, ran.stderr);
    let worse = "allows: mps2-an386: instructions, mps2-an386: instructions of `fc`\nremedy: ";
    assert!(ran.stderr.contains(worse), "{}", ran.stderr);
}

#[test]
fn a_byte_that_differs_fails_and_is_not_recorded() {
    let Some(qemu) = qemu() else { return };
    let folder = folder();
    // A board that computes one layer wrongly.
    let tools = folder.path().join("tools");
    fs::create_dir(&tools).unwrap();
    let wrong = format!(
        "#!/bin/sh\n'{}' \"$@\" 2>&1 | sed 's/^layer 2 crc ......../layer 2 crc 00000000/'\n",
        qemu.display()
    );
    executable(&tools.join("qemu-system-arm"), &wrong);
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path))).unwrap();
    for (record, said) in [
        (&[][..], "host and board differ"),
        (&["--record"], "the baseline is not recorded"),
    ] {
        let before = read(folder.path(), "gate.json");
        let arguments = ["model.adq", "--data", "synthetic", "--baseline", "gate.json"];
        let ran = run(gate(folder.path(), &[&arguments, record].concat()).env("PATH", &path));
        assert_eq!(ran.code, Some(10), "{}{}", ran.stdout, ran.stderr);
        assert!(
            ran.stdout
                .contains("| mps2-an386: parity with the host | holds | differs |  | **differs** |"),
            "{}",
            ran.stdout
        );
        assert!(ran.stdout.contains("image 0, layer 2 \"block.conv1\""), "{}", ran.stdout);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert_eq!(read(folder.path(), "gate.json"), before);
    }
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Without QEMU: nothing here gets as far.
#[test]
fn what_cannot_be_compared_is_said() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let model = fs::read(at("model.adq")).unwrap();
    let mut newer = model.clone();
    newer[8] = VERSION as u8 + 1;
    fs::write(at("newer.adq"), newer).unwrap();
    fs::write(at("cut.adq"), &model[..model.len() - 1]).unwrap();
    fs::write(at("other.adq"), cases::named("conv2d_w2_3x3_pad").model).unwrap();
    let baseline = read(folder.path(), "gate.json");
    fs::write(at("newer.json"), baseline.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
    fs::write(at("cut.json"), &baseline[..baseline.len() / 2]).unwrap();
    // Images of another set, and others that are called the same.
    fs::create_dir(at("cifar")).unwrap();
    fs::write(at("cifar/test_batch.bin"), vec![1; 3073 * 1000]).unwrap();
    fs::write(at("cifar.json"), baseline.replacen("synthetic/test", "cifar10/test", 1)).unwrap();

    let cases: [(&[&str], i32, &str); 17] = [
        (
            &["model.adq", "synthetic", "none.json"],
            14,
            "there is no baseline none.json\nremedy: record one with --record",
        ),
        (
            &["model.adq", "synthetic", "cut.json"],
            14,
            "cut.json: not a gate's baseline: EOF",
        ),
        (
            &["model.adq", "synthetic", "newer.json"],
            14,
            "newer.json: version 2, not 1: a newer adcorda wrote it",
        ),
        (
            &["model.adq", "synthetic", "model.adq"],
            14,
            "model.adq: not a gate's baseline",
        ),
        (
            &["model.adq", "cifar10:cifar", "gate.json"],
            14,
            "gate.json: recorded on synthetic/test, not on cifar10/test",
        ),
        (
            &["model.adq", "cifar10:cifar", "cifar.json"],
            14,
            "recorded on other images of cifar10/test: their CRC-32 is ",
        ),
        (
            &["model.adq", "synthetic:8x8", "gate.json"],
            14,
            "recorded on 1000 images of synthetic/test, not on 8",
        ),
        (
            &["model.adq", "synthetic", "gate.json", "--limit", "64"],
            14,
            "not on 64\nremedy: measure what was recorded, or record",
        ),
        (
            &["model.adq", "synthetic", "gate.json", "--images", "8"],
            14,
            "recorded with 4 images on a board, not with 8",
        ),
        (
            &["model.adq", "synthetic", "gate.json", "--board", "mps3-an547"],
            14,
            "recorded on mps2-an386, not on mps3-an547",
        ),
        (
            &["model.adq", "synthetic", "new.json", "--record", "--board", "nrf52840-dk"],
            7,
            "nrf52840-dk cannot be emulated",
        ),
        (
            &["model.adq", "synthetic", "gate.json", "--board", "mps2"],
            2,
            "no board is called \"mps2\"",
        ),
        (
            &["model.adq", "synthetic", "gate.json", "--images", "0"],
            2,
            "0 images on the board are asked for",
        ),
        (
            &["model.adq", "synthetic", "gate.json", "--size-tolerance=-1"],
            2,
            "--size-tolerance -1 is no tolerance",
        ),
        (
            &["other.adq", "synthetic", "gate.json"],
            3,
            "its images are 32x32x3, not 5x4x3",
        ),
        (&["newer.adq", "synthetic", "gate.json"], 5, "newer.adq: "),
        (&["cut.adq", "synthetic", "gate.json"], 5, "cut.adq: "),
    ];
    for (arguments, code, said) in cases {
        let [model, set, baseline, options @ ..] = arguments else {
            panic!("three at least")
        };
        let named = ["--data", set, "--baseline", baseline];
        let ran = run(&mut gate(folder.path(), &[&[*model], &named[..], options].concat()));
        assert_eq!(ran.code, Some(code), "{arguments:?}: {}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: ") && ran.stderr.contains(said),
            "{arguments:?}: {}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
    assert!(!at("new.json").exists());
    assert_eq!(read(folder.path(), "gate.json"), baseline);
}

#[test]
fn tools_missing() {
    let folder = folder();
    let tools = tempdir().unwrap();
    let arguments = ["model.adq", "--data", "synthetic", "--baseline", "gate.json"];
    let ran = run(gate(folder.path(), &arguments)
        .env("PATH", tools.path())
        .env("ADCORDA_FIRMWARE", "model.adq"));
    assert_eq!(ran.code, Some(8), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("qemu-system-arm is not installed\nremedy: "),
        "{}",
        ran.stderr
    );

    // The script, where all is there but QEMU and what could install it.
    let names = [
        "bash", "cargo", "cat", "cut", "dirname", "env", "grep", "head", "mktemp", "rm", "rustc", "sed", "timeout",
    ];
    #[cfg(unix)]
    for name in names {
        if let Some(program) = program(name) {
            std::os::unix::fs::symlink(program, tools.path().join(name)).unwrap();
        }
    }
    let ran = run(script(folder.path(), &["model.adq", "synthetic", "gate.json"]).env("PATH", tools.path()));
    assert_eq!(ran.code, Some(8), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("remedy: apt-get install qemu-system-arm")
            && ran.stderr.contains("error: QEMU or the compiler's targets"),
        "{}",
        ran.stderr
    );
    let ran = run(script(folder.path(), &["model.adq", "synthetic", "gate.json"]).env("ADCORDA", "./nothing"));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(8), ""), "{}", ran.stderr);
}

#[test]
fn the_script_says_what_it_needs() {
    let folder = tempdir().unwrap();
    for (arguments, said) in [
        (&[][..], "0 arguments are too few"),
        (&["model.adq", "synthetic"], "2 arguments are too few"),
        (&["model.adq", "", "gate.json"], "\"\" is no model, set or baseline"),
        (
            &["model.adq", "synthetic", "--record"],
            "\"--record\" is no model, set or baseline",
        ),
    ] {
        let ran = run(&mut script(folder.path(), arguments));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: ") && ran.stderr.contains(said),
            "{}",
            ran.stderr
        );
    }
}

/// Lines that start with two spaces more than `key`'s, up to the next that does not.
fn block<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let mut lines = text.lines().skip_while(|line| line.trim_start() != key);
    let start = lines.next().unwrap_or_else(|| panic!("no {key} in action.yml"));
    let indent = " ".repeat(start.len() - start.trim_start().len() + 2);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with(&indent));
    lines.map(|line| line.strip_prefix(&indent).unwrap_or(line)).collect()
}

/// Names of the keys that a block starts lines with.
fn keys<'a>(block: &[&'a str]) -> Vec<&'a str> {
    let keys = block.iter().filter(|line| !line.starts_with([' ', '#']));
    keys.filter_map(|line| Some(line.split_once(':')?.0)).collect()
}

#[test]
fn every_input_of_the_action_reaches_the_script() {
    assert!(!ACTION.contains('\t'), "YAML has no tabs");
    let inputs = keys(&block(ACTION, "inputs:"));
    let environment = block(ACTION, "env:");
    let script = block(ACTION, "run: |").join("\n");
    assert!(inputs.len() == 12 && inputs[0] == "model", "{inputs:?}");
    assert!(
        !script.contains("${{"),
        "an input within the text of a script could be a command"
    );
    for input in &inputs {
        let variable = input.to_uppercase().replace('-', "_");
        let line = format!("{variable}: ${{{{ inputs.{input} }}}}");
        assert!(environment.contains(&line.as_str()), "{line} is not in env");
        assert!(
            script.contains(&format!("${variable}")) || script.contains(&format!("${{{variable}")) || variable == "ADCORDA",
            "{variable} is not used"
        );
        assert!(
            PAGE.contains(&format!("| `{input}` | ")),
            "docs/CI.md does not say what {input} is"
        );
    }
    assert_eq!(environment.len(), inputs.len());
    assert_eq!(ACTION.matches("inputs.").count(), inputs.len());
    for output in keys(&block(ACTION, "outputs:")) {
        assert!(
            PAGE.contains(&format!("`{output}`")),
            "docs/CI.md does not say what {output} is"
        );
    }
}

/// The action's own script as GitHub starts it, with a `scripts/gate.sh` that says what it is given.
#[test]
fn the_action_gives_what_it_is_given() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("scripts")).unwrap();
    executable(
        &folder.path().join("scripts/gate.sh"),
        "#!/usr/bin/env bash\nprintf '%s\\n' \"ADCORDA=$ADCORDA\" \"$@\"\nexit 13\n",
    );
    fs::write(folder.path().join("step.sh"), block(ACTION, "run: |").join("\n")).unwrap();
    let step = |values: &[(&str, &str)]| {
        let mut command = Command::new("bash");
        command
            .args(["--noprofile", "--norc", "-eo", "pipefail", "step.sh"])
            .current_dir(folder.path())
            .env("GITHUB_ACTION_PATH", folder.path());
        for name in keys(&block(ACTION, "env:")) {
            command.env(name, "");
        }
        run(command.envs(values.iter().copied()))
    };
    let hostile = "$(touch stolen) `touch stolen`\"; touch stolen; \"";
    let ran = step(&[
        ("MODEL", hostile),
        ("DATA", "cifar10:my data"),
        ("BASELINE", "gate.json"),
        ("RECORD", "false"),
    ]);
    assert_eq!(ran.code, Some(13), "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("ADCORDA=\n{hostile}\ncifar10:my data\ngate.json\n"));
    assert!(!folder.path().join("stolen").exists());

    let ran = step(&[
        ("MODEL", "m.adq"),
        ("DATA", "synthetic"),
        ("BASELINE", "gate.json"),
        ("BOARD", "mps2-an386 mps3-an547\n* --json"),
        ("IMAGES", "8"),
        ("LIMIT", "100"),
        ("ACCURACY_TOLERANCE", "1"),
        ("INSTRUCTIONS_TOLERANCE", "2"),
        ("SIZE_TOLERANCE", "3"),
        ("FIRMWARE_TOLERANCE", "-4"),
        ("RECORD", "true"),
        ("ADCORDA", "/opt/adcorda"),
    ]);
    assert_eq!(
        ran.stdout,
        "ADCORDA=/opt/adcorda\nm.adq\nsynthetic\ngate.json\n--board=mps2-an386\n--board=mps3-an547\n--board=*\n--board=--json\n\
        --images=8\n--limit=100\n--accuracy-tolerance=1\n--instructions-tolerance=2\n--size-tolerance=3\n--firmware-tolerance=-4\n\
        --record\n"
    );
    let ran = step(&[("MODEL", "m.adq"), ("RECORD", "yes")]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert_eq!(ran.stderr, "error: the input record is \"yes\", neither true nor false\n");
}

/// Numbers depend on the compiler; everything else is what the page shows.
fn comparable(text: &str) -> String {
    let mut masked = String::new();
    for c in text.trim().replace(',', "").chars() {
        match (c.is_ascii_digit(), masked.ends_with('#')) {
            (true, true) => {}
            (true, false) => masked.push('#'),
            (false, _) => masked.push(c),
        }
    }
    masked
}

/// What lies between two marks of the page, after `from`.
fn shown<'a>(from: &str, start: &str, end: &str) -> &'a str {
    let rest = PAGE.split_once(from).unwrap_or_else(|| panic!("the page has no {from}")).1;
    rest.split_once(start).unwrap().1.split_once(end).unwrap().0
}

#[test]
fn the_page_shows_what_a_user_sees() {
    if qemu().is_none() {
        return;
    }
    let folder = folder();
    fs::remove_file(folder.path().join("gate.json")).unwrap();
    let typed = |line: &str| {
        let line = line.strip_prefix("$ adcorda gate ").expect("a command");
        run(&mut gate(folder.path(), &line.split(' ').collect::<Vec<_>>()))
    };
    let record = shown("## Record once", "```console\n", "\n```");
    let ran = typed(record);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.starts_with("**adcorda gate: recorded.**"), "{}", ran.stdout);
    // Of a compiler, its version and the hash of its sources: up to the value.
    let names = |text: &str| -> Vec<String> {
        let names = text
            .trim()
            .lines()
            .map(|line| line.split_once(": ").map_or(line, |(name, _)| name));
        names.map(|name| name.trim().to_owned()).collect()
    };
    let baseline = shown("## Record once", "```json\n", "\n```");
    assert_eq!(names(baseline), names(&read(folder.path(), "gate.json")));

    // What is recorded is what is found.
    let ran = typed(record.strip_suffix(" --record").expect("it records"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let rows = ran.stdout.lines().filter(|line| line.starts_with("| ")).skip(1);
    for row in rows {
        assert!(row.ends_with("| same |"), "{}", ran.stdout);
    }

    let (line, said) = shown("## When it fails", "```console\n", "\n```").split_once('\n').unwrap();
    let ran = typed(line);
    assert_eq!(ran.code, Some(13), "{}", ran.stderr);
    assert_eq!(comparable(said), comparable(&ran.stderr));
    let table = shown("## When it fails", "<!-- what it printed -->", "<!-- end -->");
    assert_eq!(comparable(table), comparable(&ran.stdout));
}
