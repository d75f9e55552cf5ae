//! Every bad input has its own clear error and exit code, and leaves nothing half written.

mod command;

use std::fs;
use std::path::Path;

use adcorda_formats::VERSION;
use command::{adcorda, binary, checkpoint, model, tool};
use tempfile::tempdir;

/// Runs `arguments`, expects `code`, and returns what was printed to standard error.
fn fails(arguments: &[&str], code: i32) -> String {
    let output = adcorda(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?} printed:\n{text}");
    assert!(text.starts_with("error: "), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[track_caller]
fn mentions(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A CIFAR-10 folder whose only training and test file holds `bytes`.
fn cifar10(folder: &Path, bytes: &[u8]) -> String {
    fs::write(folder.join("data_batch_1.bin"), bytes).unwrap();
    fs::write(folder.join("test_batch.bin"), bytes).unwrap();
    format!("cifar10:{}", path(folder))
}

#[test]
fn missing_data_folder() {
    let text = fails(&["data", "describe", "cifar10:/nonexistent/folder"], 3);
    mentions(&text, &["/nonexistent/folder", "remedy: ", "data fetch"]);
}

#[test]
fn truncated_data_file() {
    let folder = tempdir().unwrap();
    let set = cifar10(folder.path(), &vec![0; 3073 * 2 - 5]);
    mentions(&fails(&["data", "describe", &set], 3), &["data_batch_1.bin", "3073"]);
}

#[test]
fn label_out_of_range() {
    let folder = tempdir().unwrap();
    let mut bytes = vec![0; 3073 * 3];
    bytes[3073] = 10;
    let set = cifar10(folder.path(), &bytes);
    mentions(&fails(&["data", "describe", &set], 3), &["data_batch_1.bin", "label 10"]);
}

#[test]
fn unknown_data_set() {
    let output = adcorda(&["data", "describe", "imagenet:x"]);
    assert_eq!(output.status.code(), Some(2));
    mentions(&String::from_utf8_lossy(&output.stderr), &["imagenet", "cifar10"]);
}

#[test]
fn weights_of_another_network() {
    let folder = tempdir().unwrap();
    let weights = checkpoint("tiny float");
    let output = folder.path().join("x.ckpt");
    let text = fails(&["import", "resnet8", "--weights", path(&weights), "-o", path(&output)], 4);
    mentions(&text, &["resnet8", "missing"]);
    assert!(!output.exists());
}

#[test]
fn weights_not_finite() {
    let folder = tempdir().unwrap();
    let mut bytes = fs::read(checkpoint("tiny float")).unwrap();
    // the data section follows the header; its last tensor ends the file
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let weights = folder.path().join("nan.safetensors");
    fs::write(&weights, bytes).unwrap();
    let output = folder.path().join("x.ckpt");
    let text = fails(&["import", "tiny", "--weights", path(&weights), "-o", path(&output)], 4);
    mentions(&text, &["NaN"]);
}

#[test]
fn weights_truncated() {
    let folder = tempdir().unwrap();
    let bytes = fs::read(checkpoint("tiny float")).unwrap();
    let weights = folder.path().join("short.safetensors");
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let output = folder.path().join("x.ckpt");
    mentions(
        &fails(&["import", "tiny", "--weights", path(&weights), "-o", path(&output)], 4),
        &["short.safetensors"],
    );
}

#[test]
fn unknown_network_and_layer_and_device() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("x.ckpt");
    let float = checkpoint("tiny float");
    let common = ["--data", "synthetic:64x32", "-o", path(&output)];
    mentions(
        &fails(&["import", "resnet9", "--weights", "x", "-o", "y"], 2),
        &["resnet9", "resnet8"],
    );
    let text = fails(
        &[
            &["quantize", path(&float), "--weights", "w2", "--layer", "conv9=w4"],
            &common[..],
        ]
        .concat(),
        2,
    );
    mentions(&text, &["conv9", "conv1"]);
    let text = fails(
        &[&["quantize", path(&float), "--weights", "w2", "--device", "tpu"], &common[..]].concat(),
        2,
    );
    mentions(&text, &["tpu", "flex"]);
    assert!(!output.exists());
}

#[test]
fn no_gpu() {
    let text = fails(
        &[
            "eval",
            path(&checkpoint("tiny float")),
            "--data",
            "synthetic:8x8",
            "--device",
            "cuda",
        ],
        6,
    );
    mentions(&text, &["remedy: "]);
    assert_eq!(text.lines().count(), 2, "one sentence and its remedy:\n{text}");
}

#[test]
fn model_truncated_flipped_newer_older() {
    let folder = tempdir().unwrap();
    let bytes = fs::read(model("tiny w2")).unwrap();
    let file = folder.path().join("m.adq");
    type Damage = fn(&mut Vec<u8>);
    let cases: [(Damage, &[&str]); 4] = [
        (|bytes| bytes.truncate(bytes.len() - 7), &["bytes"]),
        (|bytes| *bytes.last_mut().unwrap() ^= 1, &["checksum"]),
        (|bytes| bytes[8] = VERSION as u8 + 1, &["newer"]),
        (|bytes| bytes[8] = VERSION as u8 - 1, &["draft", "export"]),
    ];
    for (damage, parts) in cases {
        let mut damaged = bytes.clone();
        damage(&mut damaged);
        fs::write(&file, damaged).unwrap();
        for verb in [
            &["inspect", path(&file)][..],
            &["eval", path(&file), "--data", "synthetic:8x8"],
        ] {
            let text = fails(verb, 5);
            mentions(&text, &["m.adq"]);
            mentions(&text, parts);
        }
    }
}

#[test]
fn board_too_small_or_unknown() {
    let model = model("tiny w2");
    mentions(&fails(&["inspect", path(&model), "--board", "stm32f030"], 7), &["RAM"]);
    mentions(
        &fails(&["inspect", path(&model), "--board", "arduino"], 2),
        &["arduino", "mps2-an386"],
    );
}

#[test]
fn tools_missing() {
    let model = model("tiny w2");
    let empty = tempdir().unwrap();
    let run = ["run", path(&model), "--data", "synthetic:8x8", "--images", "1"];
    // no QEMU on the path; the firmware itself needs no tool when it is named
    let output = tool(&run)
        .env("PATH", empty.path())
        .env("ADCORDA_FIRMWARE", path(&model))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{text}");
    mentions(&text, &["qemu-system-arm", "remedy: "]);
    // no cargo and no firmware
    let output = tool(&run)
        .env("PATH", empty.path())
        .env_remove("ADCORDA_FIRMWARE")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn output_not_writable() {
    let float = checkpoint("tiny float");
    let text = fails(
        &[
            "quantize",
            path(&float),
            "--weights",
            "w4",
            "--data",
            "synthetic:64x32",
            "-o",
            "/nonexistent/folder/x.ckpt",
        ],
        9,
    );
    mentions(&text, &["/nonexistent/folder/x.ckpt", "remedy: "]);
}

#[test]
fn float_checkpoint_where_a_quantized_one_is_needed() {
    let folder = tempdir().unwrap();
    let float = checkpoint("tiny float");
    let output = folder.path().join("m.adq");
    mentions(
        &fails(&["export", path(&float), "-o", path(&output)], 5),
        &["adcorda quantize"],
    );
    let run = folder.path().join("run");
    let text = fails(&["refine", path(&float), "--data", "synthetic:64x32", "-o", path(&run)], 2);
    mentions(&text, &["adcorda quantize"]);
}

#[test]
fn not_a_checkpoint() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("x.ckpt");
    fs::write(&file, b"nothing of the kind").unwrap();
    mentions(&fails(&["eval", path(&file), "--data", "synthetic:8x8"], 4), &["x.ckpt"]);
    mentions(
        &fails(&["eval", "/nonexistent.ckpt", "--data", "synthetic:8x8"], 9),
        &["/nonexistent.ckpt"],
    );
}

/// A file-size limit stands in for a full disk: the checkpoint cannot be written, the one before stays whole.
#[cfg(unix)]
#[test]
fn disk_full_during_a_checkpoint() {
    let folder = tempdir().unwrap();
    let float = folder.path().join("float.ckpt");
    fs::copy(checkpoint("tiny float"), &float).unwrap();
    let before = fs::read(&float).unwrap();
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; exec \"{}\" quantize {} --weights w4 --data synthetic:64x32 -o {}",
        command::binary().display(),
        path(&float),
        path(&float),
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{text}");
    mentions(&text, &["cannot write", "float.ckpt"]);
    assert_eq!(fs::read(&float).unwrap(), before);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
}

#[test]
fn data_of_other_classes() {
    let folder = tempdir().unwrap();
    let record = vec![0; 3074];
    for name in ["train.bin", "test.bin"] {
        fs::write(folder.path().join(name), &record).unwrap();
    }
    let (set, float) = (format!("cifar100:{}", path(folder.path())), checkpoint("tiny float"));
    let output = folder.path().join("w2.ckpt");
    for arguments in [
        &["eval", path(&float), "--data", &set][..],
        &[
            "quantize",
            path(&float),
            "--weights",
            "w2",
            "--data",
            &set,
            "-o",
            path(&output),
        ],
    ] {
        mentions(&fails(arguments, 3), &["100 classes", "tiny has 10"]);
    }
    assert!(!output.exists());
}

#[test]
fn no_images_asked_for() {
    let float = checkpoint("tiny float");
    let text = fails(&["eval", path(&float), "--data", "synthetic:64x32", "--limit", "0"], 2);
    mentions(&text, &["no images of synthetic:64x32", "remedy: "]);
}

#[test]
fn attacks_that_cannot_be() {
    let (float, model) = (checkpoint("tiny float"), model("tiny w2"));
    let on = |victim: &Path, flags: &[&str], code: i32| {
        let start = ["attack", path(victim), "--data", "synthetic:64x32", "--limit", "4"];
        fails(&[&start, flags].concat(), code)
    };
    mentions(&on(&float, &["--attacks", "pgd,bim"], 2), &["bim", "apgd-dlr", "remedy: "]);
    mentions(&on(&float, &["--epsilon", "0.5"], 2), &["--epsilon 0.5", "grey levels"]);
    mentions(&on(&float, &["--epsilon", "1,2.5"], 2), &["--epsilon 2.5", "whole"]);
    mentions(&on(&model, &["--attacks", "square,pgd"], 2), &["pgd", "--surrogate"]);
    mentions(&on(&float, &["--surrogate", path(&float)], 2), &["--surrogate", "of its own"]);
    mentions(&on(&model, &["--surrogate", path(&model)], 4), &["not a checkpoint"]);
}

/// What cannot be is said before the run's folder is made: a folder with such a config would refuse the mended command.
#[test]
fn options_that_cannot_be_make_no_run() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let start = checkpoint("tiny w2");
    for (verb, start, flag, value) in [
        ("train", "tiny", "--epochs", "0"),
        ("train", "tiny", "--validation", "64"),
        ("refine", path(&start), "--epsilon", "0"),
        ("refine", path(&start), "--attack-steps", "0"),
        ("refine", path(&start), "--label-noise", "2"),
    ] {
        let mut arguments = vec![verb, start, "--data", "synthetic:64x32", flag, value, "-o", path(&run)];
        if flag != "--validation" {
            arguments.extend(["--validation", "16"]);
        }
        mentions(&fails(&arguments, 2), &[flag]);
        assert!(!run.exists());
    }
    mentions(
        &fails(&["train", "tyni.ckpt", "--data", "synthetic:64x32", "-o", path(&run)], 2),
        &["tyni.ckpt", "resnet8"],
    );
}

#[test]
fn what_refine_cannot_do() {
    let folder = tempdir().unwrap();
    let (w2, output) = (checkpoint("tiny w2"), folder.path().join("run"));
    let common = [
        "refine",
        path(&w2),
        "--data",
        "synthetic:256x64",
        "--validation",
        "32",
        "-o",
        path(&output),
    ];
    let refine = |extra: &'static [&'static str]| common.iter().chain(extra).copied().collect::<Vec<&str>>();
    for (extra, parts) in [
        (&["--arm", "distillation"][..], &["distillation", "--teacher"][..]),
        (&["--batch", "500"], &["--batch 500", "224 training images", "remedy: "]),
        (&["--refresh", "0"], &["--refresh", "online"]),
        (&["--arm", "trades", "--train-steps", "0"], &["--train-steps"]),
        (&["--distill", "2"], &["--distill"]),
    ] {
        let output = adcorda(&refine(extra));
        assert_eq!(output.status.code(), Some(2), "{extra:?}");
        mentions(&String::from_utf8_lossy(&output.stderr), parts);
    }
    assert!(!output.exists());
    // Found out only once the search is paid for.
    let text = fails(&refine(&["--passes", "100"]), 2);
    mentions(&text, &["of the 100 passes", "--passes"]);
}

#[test]
fn images_of_one_class() {
    let folder = tempdir().unwrap();
    let mut bytes = vec![7; 3073 * 40];
    for record in bytes.chunks_exact_mut(3073) {
        record[0] = 3;
    }
    let set = cifar10(folder.path(), &bytes);
    let output = folder.path().join("run");
    let arguments = ["--data", &set, "--validation", "8", "--batch", "16", "-o", path(&output)];
    let float = checkpoint("tiny float");
    let text = fails(&[&["train", path(&float)], &arguments[..]].concat(), 3);
    mentions(&text, &["one class", "remedy: "]);
    assert!(!output.exists());
}

#[test]
fn data_folder_not_writable() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for arguments in [
        vec!["data", "fetch", "cifar10", "--dir", path(&file)],
        vec!["data", "fetch", &format!("cifar10:{}", path(&file))],
    ] {
        mentions(&fails(&arguments, 9), &[path(&file), "remedy: "]);
    }
    fails(&["data", "fetch", "cifar10:here", "--dir", "there"], 2);
}

/// A reader that has seen enough is no error; an output that cannot be written is one, and no panic.
#[cfg(target_os = "linux")]
#[test]
fn standard_output_gone_or_full() {
    for (command, code) in [
        // The pipe's reader is gone before anything is written.
        ("{ sleep 0.2; \"$0\" data describe synthetic:9x9; echo $? >&2; } | true", "0"),
        ("\"$0\" data describe synthetic:9x9 >/dev/full; echo $? >&2", "9"),
    ] {
        let mut shell = std::process::Command::new("sh");
        let output = shell.args(["-c", command]).arg(binary()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.lines().last(), Some(code), "{text}");
    }
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    mentions(&fails(&["bench", "resnet9"], 2), &["`resnet9`", "resnet8"]);
    mentions(&fails(&["bench", "tiny", "--batch", "1"], 2), &["--batch 1", "at least 2"]);
    mentions(&fails(&["bench", "tiny", "--seconds=-1"], 2), &["--seconds"]);
    mentions(&fails(&["bench", "tiny", "--against", "gpu"], 2), &["`gpu`", "flex"]);
    mentions(&fails(&["bench", "tiny", "--device", "cuda"], 6), &["cuda:0"]);
}
