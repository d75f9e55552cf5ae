//! The runtime on every board that QEMU has, one core each, against the oracle: the cases of `host_cases.rs`, every image, every layer.
//!
//! Without QEMU or the compiler's target these tests print SKIPPED; with `REQUIRE_QEMU=1`, as in CI, they fail instead.

use adcorda::ErrorKind;
use adcorda::board::Board;
use adcorda::qemu::{Firmware, Job, Launch, compare, host_trace, run_images, tensor_crc};
use adcorda_formats::Model;
use adcorda_tests::{cases, oracle};

/// The board's firmware, or `None` where this machine cannot have it.
fn firmware(board: Board) -> Option<Firmware> {
    match Firmware::locate(board) {
        Ok(firmware) => Some(firmware),
        Err(error) if error.kind() == ErrorKind::Toolchain && std::env::var("REQUIRE_QEMU").as_deref() != Ok("1") => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn launch(firmware: &Firmware, cases: &[cases::Case]) -> Launch {
    let images: Vec<Vec<&[u8]>> = cases
        .iter()
        .map(|case| case.images.iter().map(Vec::as_slice).collect())
        .collect();
    let jobs: Vec<Job> = cases
        .iter()
        .zip(&images)
        .map(|(case, images)| Job {
            model: &case.model,
            images,
        })
        .collect();
    firmware.launch(&jobs).unwrap_or_else(|error| panic!("{error}"))
}

fn every_layer_agrees_with_the_oracle(board: Board) {
    let Some(firmware) = firmware(board) else { return };
    let cases = cases::all();
    let launch = launch(&firmware, &cases);
    assert_eq!(launch.traces.len(), cases.len());
    for (case, traces) in cases.iter().zip(&launch.traces) {
        assert_eq!(traces.len(), case.images.len(), "{}", case.name);
        let model = Model::parse(&case.model).expect("a valid model");
        for (image, (pixels, trace)) in case.images.iter().zip(traces).enumerate() {
            let expected = oracle::run(&model, pixels);
            assert_eq!(
                trace.input_crc,
                tensor_crc(&expected[0]),
                "{}: image {image}, input",
                case.name
            );
            assert_eq!(trace.layers.len() + 1, expected.len(), "{}: image {image}", case.name);
            for ((layer, found), expected) in model.layers().zip(&trace.layers).zip(&expected[1..]) {
                let name = layer.name;
                assert_eq!(found.crc, tensor_crc(expected), "{}: image {image}, layer {name}", case.name);
                assert!(found.instructions > 0, "{}: image {image}, layer {name}", case.name);
            }
            let logits: Vec<u8> = trace.logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
            assert_eq!(Some(&logits), expected.last(), "{}: image {image}", case.name);
        }
    }
}

#[test]
fn cortex_m4_agrees_with_the_oracle() {
    every_layer_agrees_with_the_oracle(Board::Mps2An386);
}

#[test]
fn cortex_m3_agrees_with_the_oracle() {
    every_layer_agrees_with_the_oracle(Board::Mps2An385);
}

#[test]
fn cortex_m0_code_agrees_with_the_oracle() {
    every_layer_agrees_with_the_oracle(Board::Mps2An385M0);
}

#[test]
fn cortex_m7_agrees_with_the_oracle() {
    every_layer_agrees_with_the_oracle(Board::Mps2An500);
}

#[test]
fn cortex_m33_agrees_with_the_oracle() {
    every_layer_agrees_with_the_oracle(Board::Mps2An505);
}

#[test]
fn cortex_m55_agrees_with_the_oracle() {
    every_layer_agrees_with_the_oracle(Board::Mps3An547);
}

#[test]
fn counts_are_the_same_in_every_run() {
    let Some(firmware) = firmware(Board::Mps2An386) else { return };
    let cases = [cases::named("residual"), cases::named("separable")];
    let first = launch(&firmware, &cases);
    assert_eq!(launch(&firmware, &cases), first);
    // Nor do they depend on what ran before in the same launch.
    let alone = launch(&firmware, &cases[1..]);
    assert_eq!(alone.traces[0], first.traces[1]);
}

#[test]
fn a_report_adds_up() {
    let Some(firmware) = firmware(Board::Mps2An386) else { return };
    let case = cases::named("residual");
    let images: Vec<&[u8]> = case.images.iter().map(Vec::as_slice).collect();
    let report = run_images(&case.model, &images, Board::Mps2An386).unwrap_or_else(|error| panic!("{error}"));
    let model = Model::parse(&case.model).expect("a valid model");
    assert!(report.parity);
    assert_eq!(report.images, images.len());
    assert_eq!(report.layers.len(), model.layers().len());
    assert_eq!(
        report.instructions,
        report.layers.iter().map(|layer| layer.instructions).sum::<u64>()
    );
    for layer in &report.layers {
        assert!(layer.instructions > 0, "{layer:?}");
    }
    assert_eq!(report.arena_bytes, model.arena_bytes());
    // About 4 KiB, of which half is the one copy of the decoded model: further copies of it are what this finds.
    assert!(
        (64..8 * 1024).contains(&report.stack_bytes),
        "{} bytes of stack",
        report.stack_bytes
    );
    assert_eq!(report.firmware_flash_bytes, firmware.flash_bytes);
    assert!((4 * 1024..256 * 1024).contains(&report.firmware_flash_bytes), "{report:?}");
    assert!(report.firmware_ram_bytes < 64 * 1024, "{report:?}");
    let text = report.to_string();
    for layer in model.layers() {
        assert!(text.contains(layer.name), "{text}");
    }
}

#[test]
fn the_first_difference_is_named() {
    let case = cases::named("residual");
    let model = Model::parse(&case.model).expect("a valid model");
    let host: Vec<_> = case
        .images
        .iter()
        .map(|pixels| host_trace(&model, pixels).expect("its image"))
        .collect();
    compare(&model, &host, &host).expect("equal to itself");

    let mut board = host.clone();
    board[1].layers[1].crc ^= 1;
    board[1].layers[2].crc ^= 1;
    let error = compare(&model, &host, &board).expect_err("layer 1 of image 1 differs");
    assert_eq!(error.kind(), ErrorKind::Parity);
    let text = error.to_string();
    let name = model.layer(1).expect("there is one").name;
    let (found, expected) = (board[1].layers[1].crc, host[1].layers[1].crc);
    for part in [
        "image 1",
        &format!("layer 1 {name:?}"),
        &format!("{found:08x}"),
        &format!("{expected:08x}"),
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }

    let mut board = host.clone();
    board[0].input_crc ^= 1;
    assert!(
        compare(&model, &host, &board)
            .unwrap_err()
            .to_string()
            .contains("image 0, the input")
    );
    let mut board = host.clone();
    board[0].logits[0] ^= 1;
    assert!(compare(&model, &host, &board).unwrap_err().to_string().contains("logits"));
    assert!(compare(&model, &host, &host[1..]).is_err());
}

#[test]
fn a_model_that_the_firmware_has_no_room_for_is_a_board_error() {
    let Some(firmware) = firmware(Board::Mps2An386) else { return };
    // Only its size is looked at before it is refused.
    let model = vec![0; 3 * 1024 * 1024];
    let error = firmware
        .launch(&[Job {
            model: &model,
            images: &[],
        }])
        .expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Board, "{error}");
    assert!(error.to_string().contains("3145728 bytes"), "{error}");
}
