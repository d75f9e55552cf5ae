//! Firmware for boards that QEMU does not have: `adcorda new-firmware` writes it, for every board and width, around ResNet-8; cargo builds
//! it; what it takes of flash and RAM is compared with `benches/size/boards.csv`.
//!
//! Sizes are the compiler's, so two per cent are left to it. What takes less passes, and is worth recording:
//!
//!     ./ci.sh record        (ADCORDA_RECORD=1 cargo test -p adcorda-tests --test boards)
//!
//! Nothing here runs on a board.

mod firmware;

use std::fs;
use std::path::Path;

use adcorda::board::Board;
use adcorda::elf::Sizes;
use adcorda::new_firmware::{Samples, new_firmware};
use adcorda_formats::{Model, Width};
use adcorda_runtime::{Image, Session};
use adcorda_tests::performance::root;
use adcorda_tests::{networks, record};
use firmware::{cargo_in, example};
use tempfile::tempdir;

const BOARDS: [Board; 6] = [
    Board::Nrf52840,
    Board::Rp2040,
    Board::Rp2350,
    Board::Stm32f411,
    Board::Stm32h743,
    Board::Stm32u575,
];

const HEADER: &str = "board,weights,flash,ram,arena";

/// Flash and RAM of one firmware, in bytes; of RAM the arena, and the stack not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    firmware: String,
    flash: usize,
    ram: usize,
    arena: usize,
}

/// Every project is built in the target folder of the examples, so that what they have in common is built once.
fn build(project: &Path) -> Result<(), String> {
    let output = cargo_in(project, "build")
        .env("CARGO_TARGET_DIR", example("target"))
        .output()
        .expect("cargo runs");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn every_board_has_room_and_takes_no_more_than_recorded() {
    let folder = tempdir().unwrap();
    let widths = [Width::W8, Width::W4, Width::W2, Width::W1];
    let model = |width: Width| folder.path().join(format!("{}.adq", width.name()));
    for width in widths {
        fs::write(model(width), networks::resnet8(width).model).unwrap();
    }
    let mut found = Vec::new();
    for board in BOARDS {
        for width in widths {
            // One name for all: what is linked is replaced.
            let project = folder.path().join(format!("{}/firmware", width.name()));
            let _ = fs::remove_dir_all(&project);
            let made = new_firmware(&model(width), board, &Samples::Noise(1), &project).unwrap();
            build(&project).unwrap_or_else(|said| panic!("{board} {}:\n{said}", width.name()));
            let elf = example("target").join(made.target).join("release/firmware");
            let sizes = Sizes::of(&fs::read(elf).unwrap()).expect("cargo wrote an ELF file");
            let ram = sizes.ram_bytes + sizes.uninit_bytes;
            board.fits(sizes.flash_bytes, ram).unwrap();
            found.push(Row {
                firmware: format!("{board},{}", width.name()),
                flash: sizes.flash_bytes,
                ram,
                arena: made.arena_bytes,
            });
        }
    }
    let file = root().join("benches/size/boards.csv");
    if std::env::var_os("ADCORDA_RECORD").is_some() {
        fs::write(&file, write(&found)).unwrap();
        let page = root().join("docs/FIRMWARE.md");
        let text = fs::read_to_string(&page).unwrap();
        let (before, after) = (text.split_once(BEGIN).unwrap().0, text.split_once(END).unwrap().1);
        fs::write(&page, format!("{before}{BEGIN}{}{END}{after}", table(&found))).unwrap();
        return;
    }
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let grown = compare(&parse(&text), &found);
    assert!(
        grown.is_empty(),
        "{}\nwhere this is meant, `./ci.sh record` writes the new sizes",
        grown.join("\n")
    );
}

#[test]
fn the_page_shows_what_is_recorded() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (page, recorded) = (read("docs/FIRMWARE.md"), parse(&read("benches/size/boards.csv")));
    let shown = page.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0;
    assert_eq!(shown, table(&recorded), "`./ci.sh record` writes it");
}

const BEGIN: &str = "<!-- benches/size/boards.csv -->\n";
const END: &str = "<!-- end -->\n";

/// A line a board, a column a width.
fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| board | 8 bit | 4 bit | ternary | binary | RAM | of it the arena |\n|---|---|---|---|---|---|---|\n");
    for rows in rows.chunks(4) {
        let board = rows[0].firmware.split(',').next().unwrap_or_default();
        text += &format!("| `{board}` |");
        for row in rows {
            text += &format!(" {} |", row.flash);
        }
        // Weights stay in flash.
        assert!(
            rows.iter().all(|row| (row.ram, row.arena) == (rows[0].ram, rows[0].arena)),
            "{rows:?}"
        );
        text += &format!(" {} | {} |\n", rows[0].ram, rows[0].arena);
    }
    text
}

/// The six folders in `examples` are what a user gets, but for names, the runtime's place and what explains them.
#[test]
fn examples_are_what_new_firmware_writes() {
    let folder = tempdir().unwrap();
    let model = example("shared/model.adq");
    for board in BOARDS {
        let (project, ours) = (folder.path().join(board.name()), example(board.name()));
        new_firmware(&model, board, &Samples::Noise(1), &project).unwrap();
        for name in [
            "build.rs",
            "memory.x",
            ".cargo/config.toml",
            "src/main.rs",
            "src/board.rs",
            "src/counter.rs",
            "src/firmware.rs",
            "src/stack.rs",
            "src/model.rs",
            "src/model.adq",
        ] {
            assert_eq!(
                fs::read(project.join(name)).unwrap(),
                fs::read(ours.join(name)).unwrap(),
                "{board}: {name}"
            );
        }
        let lines = |folder: &Path| {
            let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
            let kept = |line: &&str| {
                !line.starts_with("adcorda-runtime = ") && !line.contains("[workspace]") && !line.starts_with('#')
            };
            text.lines()
                .filter(kept)
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (mut expected, workspace) = (lines(&ours), lines(&example("")));
        expected.extend(workspace.into_iter().skip_while(|line| line != "[profile.release]"));
        assert_eq!(lines(&project), expected, "{board}");
    }
}

/// Nobody runs them here: that they would print `PASS` is what this says.
#[test]
fn the_logits_in_the_examples_are_the_hosts() {
    let read = |name: &str| fs::read(example("shared").join(name)).unwrap();
    let (model, images, source) = (read("model.adq"), read("samples.bin"), read("samples.rs"));
    let model = Model::parse(&model).unwrap();
    let mut arena = vec![0; model.arena_bytes()];
    let mut session = Session::new(&model, &mut arena).unwrap();
    let logits: Vec<String> = images
        .chunks(model.input().elements())
        .map(|image| format!("    {:?},\n", session.run(Image::new(&model, image).unwrap(), &mut ())))
        .collect();
    let source = String::from_utf8(source).unwrap();
    let (_, found) = source.split_once("LOGITS: ").unwrap().1.split_once("= [\n").unwrap();
    assert_eq!(found, logits.concat() + "];\n");
}

#[test]
fn every_board_in_the_examples_is_here() {
    let folders = fs::read_dir(example("")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<String> = folders
        .filter(|folder| folder.join("src/board.rs").is_file())
        .map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    assert_eq!(folders, BOARDS.map(|board| board.name().to_owned()));
}

fn write(rows: &[Row]) -> String {
    let mut text = record::head(HEADER);
    for Row {
        firmware,
        flash,
        ram,
        arena,
    } in rows
    {
        text += &format!("{firmware},{flash},{ram},{arena}\n");
    }
    text
}

fn parse(text: &str) -> Vec<Row> {
    record::figures(text, HEADER)
        .map(|line| {
            let words: Vec<&str> = line.split(',').collect();
            let [board, width, sizes @ ..] = &*words else {
                panic!("{line}")
            };
            let sizes: Vec<usize> = sizes.iter().map(|size| size.parse().expect("a number")).collect();
            let [flash, ram, arena] = *sizes else { panic!("{line}") };
            Row {
                firmware: format!("{board},{width}"),
                flash,
                ram,
                arena,
            }
        })
        .collect()
}

/// What is wrong: firmware that grew by more than two per cent, and firmware of one list only.
fn compare(recorded: &[Row], found: &[Row]) -> Vec<String> {
    let names = |rows: &[Row]| rows.iter().map(|row| row.firmware.clone()).collect::<Vec<_>>();
    if names(recorded) != names(found) {
        return vec![format!("{:?} where {:?} are recorded", names(found), names(recorded))];
    }
    let mut grown = Vec::new();
    for (recorded, found) in recorded.iter().zip(found) {
        for (what, recorded, now) in [
            ("flash", recorded.flash, found.flash),
            ("RAM", recorded.ram, found.ram),
            ("arena", recorded.arena, found.arena),
        ] {
            if now > recorded + recorded / 50 {
                grown.push(format!("{}: {now} bytes of {what}, {recorded} recorded", found.firmware));
            }
        }
    }
    grown
}

#[test]
fn firmware_that_grows_is_found() {
    let row = |firmware: &str, flash, ram| Row {
        firmware: firmware.into(),
        flash,
        ram,
        arena: 500,
    };
    let recorded = [row("a,w1", 1000, 2000), row("b,w2", 1000, 2000)];
    assert_eq!(parse(&write(&recorded)), recorded);
    assert_eq!(compare(&recorded, &recorded), Vec::<String>::new());
    assert_eq!(
        compare(&recorded, &[row("a,w1", 1020, 1), row("b,w2", 1, 2040)]),
        Vec::<String>::new()
    );
    let grown = compare(&recorded, &[row("a,w1", 1021, 2000), row("b,w2", 1000, 2041)]);
    assert_eq!(
        grown,
        [
            "a,w1: 1021 bytes of flash, 1000 recorded",
            "b,w2: 2041 bytes of RAM, 2000 recorded"
        ]
    );
    assert_eq!(compare(&recorded, &recorded[..1]).len(), 1);
}
