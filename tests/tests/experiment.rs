//! `adcorda experiment`: killed and resumed, shared and merged, it writes the same table; a cell that fails is a row.

mod command;

use std::path::Path;
use std::time::Duration;

use command::{adcorda, tool};
use serde_json::Value;

/// Two starts, two seeds, three arms, one of which cannot pay for its own search.
const TABLE: &str = r#"
name = "small"
seeds = [1, 2]
[options]
batch = 16
augment = false
evaluations = 2
learning_rate = 2e-3
[[network]]
name = "tiny"
train = { epochs = 1, limit = 128, validation = 32 }
[[images]]
limit = 128
validation = 32
passes = 192
[[start]]
weights = "w2"
[[start]]
weights = "w4"
qat = { passes = 96 }
[[arm]]
arm = "qat"
[[arm]]
arm = "drop"
[[arm]]
arm = "adcorda"
attack_steps = 5
margin = 50.0
[measure]
integer = true
robustness = { attacks = ["fgsm"], epsilons = [4], images = 20, of = "both" }
"#;

const CELLS: usize = 2 * 2 * 4;

fn run(table: &Path, folder: &Path, more: &[&str]) -> Vec<String> {
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let mut arguments = vec![
        "experiment".to_owned(),
        text(table),
        "-o".to_owned(),
        text(folder),
        "--json".to_owned(),
    ];
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    arguments
}

fn with_data(table: &Path, folder: &Path, more: &[&str]) -> Vec<String> {
    let mut arguments = run(table, folder, more);
    arguments.extend(["--data", "synthetic:256x64"].map(Into::into));
    arguments
}

/// Runs the command, expects this exit code, and returns its JSON.
fn json(arguments: &[String], code: i32) -> Value {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = adcorda(&arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?} printed:\n{error}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|cause| panic!("{cause} after:\n{error}"))
}

fn results(folder: &Path) -> usize {
    let cells = std::fs::read_dir(folder.join("cells"));
    let is_done = |cell: &std::fs::DirEntry| cell.path().join("result.json").exists();
    cells.map_or(0, |cells| cells.flatten().filter(is_done).count())
}

fn table_of(folder: &Path) -> [String; 2] {
    ["table.jsonl", "table.md"].map(|name| std::fs::read_to_string(folder.join(name)).expect("the table"))
}

#[test]
fn however_it_is_run_the_table_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let table = at("small.toml");
    std::fs::write(&table, TABLE).expect("a table");

    // In one go. Usage: four cells failed.
    let whole = json(&with_data(&table, &at("whole"), &[]), 2);
    assert_eq!(
        (whole["cells"].as_u64(), whole["failed"].as_u64()),
        (Some(CELLS as u64), Some(4))
    );
    assert_eq!(whole["missing"], Value::Array(Vec::new()));
    let [lines, text] = table_of(&at("whole"));
    assert_eq!(lines.lines().count(), CELLS);
    assert!(!lines.contains(folder.path().to_str().expect("UTF-8")) && !text.contains(folder.path().to_str().expect("UTF-8")));
    for part in [
        "| tiny | w2-ptq | 128 | start | 2 |",
        "| tiny | w4-qat | 128 | drop | 2 |",
        "| adcorda | 0 | failed |",
        "Failed: `tiny_w2-ptq_128_seed1_adcorda`: prediction and search alone cost",
        "fgsm 4 integer",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    for row in whole["rows"].as_array().expect("rows") {
        match row["arm"].as_str() {
            Some("adcorda") => assert_eq!(row["failed"].as_array().map(Vec::len), Some(2), "{row}"),
            _ => assert!(row["top1"]["n"] == 2 && row["integer_top1"]["n"] == 2, "{row}"),
        }
        let compared = row["control"]["mcnemar"].is_number() && row["control"]["paired_t"].is_number();
        assert_eq!(compared, row["arm"] == "drop", "{row}");
    }
    // Once more: everything is there.
    let stamp = |name: &str| std::fs::metadata(at(name)).and_then(|data| data.modified()).expect("a file");
    let result = "whole/cells/tiny_w2-ptq_128_seed1_qat/result.json";
    let before = stamp(result);
    assert_eq!(json(&with_data(&table, &at("whole"), &[]), 2), whole);
    assert_eq!(stamp(result), before);

    // Killed again and again, whenever another cell is done, and sooner.
    let killed = at("killed");
    for kill in 0..4 {
        let arguments = with_data(&table, &killed, &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = tool(&arguments)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        let enough = results(&killed) + kill % 3;
        while child.try_wait().expect("a child").is_none() && (!killed.exists() || results(&killed) < enough) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().expect("a kill"); // SIGKILL
        child.wait().expect("an end");
    }
    assert!(results(&killed) < CELLS);
    json(&with_data(&table, &killed, &[]), 2);
    assert_eq!(table_of(&killed), table_of(&at("whole")));

    // Two processes, each with a folder of its own; one of them started twice, which is no harm.
    let spawn = |shard: &str, folder: &str| {
        let arguments = with_data(&table, &at(folder), &["--shard", shard]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tool(&arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts")
    };
    let mut children = [spawn("1/2", "one"), spawn("1/2", "one"), spawn("2/2", "two")];
    for child in &mut children {
        assert_eq!(child.wait().expect("an end").code(), Some(2));
    }
    assert_eq!((results(&at("one")), results(&at("two"))), (CELLS / 2, CELLS / 2));
    let parts = [at("one"), at("two")].map(|path| path.to_str().expect("UTF-8").to_owned());
    let half = json(&run(&table, &at("half"), &["--merge", &parts[0]]), 2);
    assert_eq!(half["missing"].as_array().map(Vec::len), Some(CELLS / 2));
    let merged = json(&run(&table, &at("merged"), &["--merge", &parts[1], &parts[0]]), 2);
    assert_eq!(merged, whole);
    assert_eq!(table_of(&at("merged")), table_of(&at("whole")));

    // A changed table is another one.
    std::fs::write(&table, TABLE.replace("attack_steps = 5", "attack_steps = 6")).expect("a table");
    for arguments in [
        run(&table, &at("other"), &["--merge", &parts[0]]),
        with_data(&table, &at("whole"), &[]),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = adcorda(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            error.contains("_adcorda") && error.contains("attack.steps is 5 there and 6 here"),
            "{error}"
        );
    }
    assert_eq!(table_of(&at("whole")), [lines, text]);
}

#[test]
fn a_dry_run_lists_the_cells_of_a_shard() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("small.toml");
    std::fs::write(&table, TABLE).expect("a table");
    let table = table.to_str().expect("UTF-8");
    let all = command::json(&["experiment", table, "--dry-run", "--json"]);
    assert_eq!(all["cells"].as_array().map(Vec::len), Some(CELLS));
    assert_eq!(all["passes"], 12.0 * 192.0 + 2.0 * 96.0);
    let part = command::json(&["experiment", table, "--dry-run", "--json", "--shard", "2/3"]);
    assert_eq!(part["cells"].as_array().map(Vec::len), Some(5));
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("small.toml");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let output = text(&folder.path().join("out"));
    for (from, to, more, parts) in [
        (
            "name = \"small\"",
            "nam = \"small\"",
            &[][..],
            &["line 2", "`nam`", "small.toml"][..],
        ),
        ("train =", "#", &[], &["tiny", "no checkpoint", "--float tiny=CKPT"]),
        ("", "", &["--float", "huge=x"], &["huge", "give one of tiny"]),
        ("", "", &["--shard", "3/2"], &["3/2", "I/N"]),
        (
            "margin = 50.0",
            "margin = -1.0",
            &[],
            &["seed1_adcorda", "--margin -1", "negative"],
        ),
        ("batch = 16", "batch = 300", &[], &["--batch 300"]),
    ] {
        std::fs::write(&table, TABLE.replace(from, to)).expect("a table");
        let mut arguments = vec![
            "experiment",
            table.to_str().expect("UTF-8"),
            "-o",
            &output,
            "--data",
            "synthetic:256x64",
        ];
        arguments.extend(more);
        let answer = adcorda(&arguments);
        let error = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(2), "{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        assert!(!folder.path().join("out/cells").exists());
    }
}
