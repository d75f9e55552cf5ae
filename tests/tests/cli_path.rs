//! The whole path from the command line on a tiny seeded set: every verb's JSON keys, and the same bytes for the same seed.

mod command;

use std::fs;
use std::path::Path;

use command::{adcorda, json, tool};
use tempfile::tempdir;

const SET: &str = "synthetic:256x64";

/// train, quantize, refine with control, export into `folder`; returns the JSON of `refine`.
fn whole_path(folder: &Path) -> serde_json::Value {
    let at = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let (float, w2, refined, model) = (at("float"), at("w2.ckpt"), at("refined"), at("model.adq"));
    let trained = json(&[
        "train",
        "tiny",
        "--data",
        SET,
        "--epochs",
        "2",
        "--validation",
        "32",
        "--seed",
        "7",
        "-o",
        &float,
        "--json",
    ]);
    assert!(trained["top1"].is_number(), "{trained}");
    let quantized = json(&["quantize", &float, "--weights", "w2", "--data", SET, "-o", &w2, "--json"]);
    assert!(quantized["top1"].is_number(), "{quantized}");
    assert_eq!(
        quantized["bits"]["conv1"], 8,
        "the first convolution stays at 8 bits: {quantized}"
    );
    let report = json(&[
        "refine",
        &w2,
        "--data",
        SET,
        "--epochs",
        "1",
        "--validation",
        "64",
        "--seed",
        "7",
        "--control",
        "-o",
        &refined,
        "--json",
    ]);
    for key in ["before_top1", "top1", "control_top1", "corrected"] {
        assert!(report[key].is_number(), "{key}: {report}");
    }
    let exported = json(&["export", &refined, "-o", &model, "--json"]);
    assert_eq!(exported["bytes"], fs::metadata(&model).unwrap().len(), "{exported}");
    assert!(exported["arena_bytes"].is_number());
    report
}

#[test]
fn same_seed_same_file_and_every_verb() {
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let (first, second) = (whole_path(one.path()), whole_path(two.path()));
    for key in ["before_top1", "top1", "control_top1", "corrected"] {
        assert_eq!(first[key], second[key], "{key}");
    }
    for name in [
        "w2.ckpt",
        "model.adq",
        "model.rs",
        "float/best.safetensors",
        "refined/adcorda/best.safetensors",
    ] {
        let read = |folder: &Path| fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            read(one.path()) == read(two.path()),
            "{name} differs between two runs of one seed"
        );
    }

    let model = one.path().join("model.adq");
    let model = model.to_str().unwrap();
    let refined = one.path().join("refined");
    let described = json(&["data", "describe", SET, "--json"]);
    assert_eq!(described["classes"].as_array().map(Vec::len).unwrap_or(10), 10, "{described}");
    let evaluated = json(&["eval", model, "--data", SET, "--against", refined.to_str().unwrap(), "--json"]);
    assert_eq!(evaluated["images"], 64);
    assert!(
        evaluated["agreement"].as_f64().unwrap() >= 95.0,
        "integer and fake-quantized network differ: {evaluated}"
    );
    let attacked = json(&[
        "attack",
        model,
        "--surrogate",
        refined.to_str().unwrap(),
        "--data",
        SET,
        "--limit",
        "8",
        "--epsilon",
        "4,8",
        "--steps",
        "3",
        "--queries",
        "4",
        "--checks",
        "--json",
    ]);
    assert!(
        attacked["clean"].is_number() && attacked["checks"].as_array().is_some_and(|checks| !checks.is_empty()),
        "{attacked}"
    );
    for row in attacked["epsilons"].as_array().unwrap() {
        for key in ["epsilon", "fgsm", "pgd", "apgd", "square", "worst"] {
            assert!(row[key].is_number(), "{key}: {attacked}");
        }
    }
    let inspected = json(&["inspect", model, "--json"]);
    for key in ["layers", "flash_bytes", "arena_bytes", "macs"] {
        assert!(!inspected[key].is_null(), "{key}: {inspected}");
    }

    let output = tool(&[
        "run",
        model,
        "--board",
        "mps2-an386",
        "--data",
        SET,
        "--images",
        "2",
        "--json",
    ])
    .output()
    .unwrap();
    if output.status.code() == Some(8) && std::env::var_os("REQUIRE_QEMU").is_none() {
        println!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["parity"], true, "{report}");
    assert!(
        report["instructions"].as_u64().unwrap() > 0 && report["stack_bytes"].as_u64().unwrap() > 0,
        "{report}"
    );
}

/// Runs a verb; and again in another folder, where it is killed at its first checkpoint and then continued. Both end in the same
/// file, `best` of the run's folder.
fn killed_and_resumed(arguments: &[&str], track: &str) {
    let folder = tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    let all = |run: &Path| -> Vec<String> {
        let output = ["-o", run.to_str().expect("UTF-8")];
        arguments.iter().chain(&output).map(|&argument| argument.to_owned()).collect()
    };
    let whole_run = |run: &Path| {
        let output = adcorda(&all(run).iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (whole, killed) = (run("whole"), run("killed"));
    whole_run(&whole);

    let mut child = tool(&all(&killed).iter().map(String::as_str).collect::<Vec<_>>())
        .spawn()
        .unwrap();
    let checkpoint = killed.join(track).join("last.safetensors");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let _ = child.kill();
    child.wait().unwrap();
    assert!(checkpoint.exists());
    whole_run(&killed);
    let best = |run: &Path| fs::read(run.join(track).join("best.safetensors")).unwrap();
    assert!(
        best(&whole) == best(&killed),
        "a killed and resumed run ends in other weights"
    );
}

#[test]
fn killed_run_resumes_to_the_same_weights() {
    let options = ["--data", SET, "--epochs", "4", "--validation", "32", "--seed", "3"];
    killed_and_resumed(&[&["train", "tiny"], &options[..]].concat(), "");
}

#[test]
fn killed_refinement_resumes_to_the_same_weights() {
    let w2 = command::checkpoint("tiny w2");
    let options = [
        "--data",
        SET,
        "--epochs",
        "6",
        "--validation",
        "32",
        "--seed",
        "3",
        "--learning-rate",
        "3e-3",
        "--refresh",
        "2",
        "--coral-momentum",
        "0.9",
        "--scales",
        "learned",
        "--target-weight",
        "0.5",
    ];
    let start = ["refine", w2.to_str().expect("UTF-8")];
    killed_and_resumed(&[&start, &options[..]].concat(), "adcorda");
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in [
        &["demo"][..],
        &["data", "fetch"],
        &["data", "describe"],
        &["import"],
        &["train"],
        &["quantize"],
        &["refine"],
        &["export"],
        &["eval"],
        &["attack"],
        &["inspect"],
        &["run"],
        &["gate"],
    ] {
        let output = adcorda(&[verb, &["--help"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("Example: adcorda"),
            "{verb:?}:\n{text}"
        );
    }
}

#[test]
fn bench_gives_three_rates_and_agreement() {
    let report = json(&[
        "bench",
        "tiny",
        "--batch",
        "4",
        "--seconds",
        "0.02",
        "--against",
        "flex",
        "--json",
    ]);
    for key in ["forward", "training", "attack"] {
        assert!(report[key]["images_per_second"].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert_eq!(report["weights"], "w8 w2", "{report}");
    assert_eq!(report["agreement"]["holds"], true, "{report}");
    let compared = json(&[
        "bench",
        "tiny",
        "--weights",
        "w4",
        "--against",
        "flex",
        "--seconds",
        "0",
        "--json",
    ]);
    assert!(compared["agreement"]["tensors"].as_u64().unwrap() > 100, "{compared}");
    assert!(compared.get("forward").is_none(), "nothing is timed: {compared}");
}
