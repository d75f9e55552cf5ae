//! Instructions of each layer on each board that QEMU emulates, against the record under `benches/instructions`.
//!
//! Counts are exact, so there is no noise to allow for; one per cent is left to the compiler. What takes fewer instructions than
//! recorded passes, and is worth recording:
//!
//!     ./ci.sh record        (ADCORDA_RECORD=1 cargo test -p adcorda-tests --test instructions)
//!
//! The networks are those of [`adcorda_tests::networks`]: real shapes, weights at random, nothing to download.

use std::fmt::Write as _;
use std::path::PathBuf;

use adcorda::board::Board;
use adcorda::qemu::{Firmware, Job};
use adcorda::{Error, ErrorKind};
use adcorda_formats::{Model, Width};
use adcorda_runtime::path;
use adcorda_tests::cases::Case;
use adcorda_tests::{networks, record};

const HEADER: &str = "network,layer,op,path,macs,instructions";

/// One layer's line, without its count.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    layer: String,
    instructions: u64,
}

#[test]
fn mps2_an386() {
    no_layer_takes_more_than_recorded(Board::Mps2An386);
}

#[test]
fn mps2_an385() {
    no_layer_takes_more_than_recorded(Board::Mps2An385);
}

#[test]
fn mps2_an385_m0() {
    no_layer_takes_more_than_recorded(Board::Mps2An385M0);
}

#[test]
fn mps2_an500() {
    no_layer_takes_more_than_recorded(Board::Mps2An500);
}

#[test]
fn mps2_an505() {
    no_layer_takes_more_than_recorded(Board::Mps2An505);
}

#[test]
fn mps3_an547() {
    no_layer_takes_more_than_recorded(Board::Mps3An547);
}

fn no_layer_takes_more_than_recorded(board: Board) {
    let firmware = match Firmware::locate(board) {
        Ok(firmware) => firmware,
        Err(error) if missing(&error) && std::env::var("REQUIRE_QEMU").as_deref() != Ok("1") => {
            println!("SKIPPED: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut grown = Vec::new();
    for width in [Width::W8, Width::W4, Width::W2, Width::W1] {
        let cases = [networks::resnet8(width), networks::resnet20(width), networks::dscnn(width)];
        let found = count(board, &firmware, &cases);
        let file = record(board, width);
        if std::env::var_os("ADCORDA_RECORD").is_some() {
            write(&file, &found);
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        grown.extend(compare(&parse(&text), &found).map(|line| format!("{}: {line}", file.display())));
    }
    assert!(
        grown.is_empty(),
        "{}\nwhere this is meant, `./ci.sh record` writes the new counts; the record says which compiler it is of",
        grown.join("\n")
    );
}

fn missing(error: &Error) -> bool {
    error.kind() == ErrorKind::Toolchain
}

/// Runs the first image of each network.
fn count(board: Board, firmware: &Firmware, cases: &[Case]) -> Vec<Row> {
    let images: Vec<[&[u8]; 1]> = cases.iter().map(|case| [case.images[0].as_slice()]).collect();
    let jobs: Vec<Job> = cases
        .iter()
        .zip(&images)
        .map(|(case, images)| Job {
            model: &case.model,
            images,
        })
        .collect();
    let launch = firmware.launch(&jobs).unwrap_or_else(|error| panic!("{error}"));
    let mut rows = Vec::new();
    for (case, traces) in cases.iter().zip(&launch.traces) {
        let model = Model::parse(&case.model).expect("a valid model");
        let network = case.name.split('_').next().unwrap_or_default();
        for (i, (layer, y)) in model.layers().zip(&model.tensors()[1..]).enumerate() {
            let x = layer.op.inputs().next().expect("every layer reads");
            let macs = layer.op.macs(&model.tensors()[usize::from(x)], y);
            let path = path(board.isa(), &model, &layer, y);
            rows.push(Row {
                layer: format!("{network},{i},{},{path},{macs}", layer.op.name()),
                instructions: traces[0].layers[i].instructions,
            });
        }
    }
    rows
}

/// What is wrong: layers that grew by more than one per cent, and layers of one list only.
fn compare<'a>(recorded: &'a [Row], found: &'a [Row]) -> impl Iterator<Item = String> {
    let lengths = (recorded.len() != found.len()).then(|| format!("{} layers, {} recorded", found.len(), recorded.len()));
    let pairs = recorded.iter().zip(found).filter_map(|(recorded, found)| {
        if recorded.layer != found.layer {
            return Some(format!("{} where {} is recorded", found.layer, recorded.layer));
        }
        let limit = recorded.instructions + recorded.instructions / 100;
        (found.instructions > limit).then(|| {
            let growth = 100.0 * (found.instructions as f64 / recorded.instructions as f64 - 1.0);
            format!(
                "{}: {} instructions, {} recorded (+{growth:.1} %)",
                found.layer, found.instructions, recorded.instructions
            )
        })
    });
    lengths.into_iter().chain(pairs).collect::<Vec<_>>().into_iter()
}

fn record(board: Board, width: Width) -> PathBuf {
    let name = format!("{}-{}.csv", board.name(), width.name());
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../benches/instructions")
        .join(name)
}

fn write(file: &PathBuf, rows: &[Row]) {
    let mut text = record::head(HEADER);
    for row in rows {
        writeln!(text, "{},{}", row.layer, row.instructions).expect("a string grows");
    }
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("can be written");
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

fn parse(text: &str) -> Vec<Row> {
    record::figures(text, HEADER)
        .map(|line| {
            let (layer, instructions) = line.rsplit_once(',').expect("a comma");
            Row {
                layer: layer.into(),
                instructions: instructions.parse().expect("a number"),
            }
        })
        .collect()
}

#[test]
fn a_layer_that_grows_is_found() {
    let row = |layer: &str, instructions| Row {
        layer: layer.into(),
        instructions,
    };
    let recorded = [row("a", 1000), row("b", 1000)];
    let problems = |found: &[Row]| compare(&recorded, found).collect::<Vec<_>>();
    assert_eq!(problems(&recorded), Vec::<String>::new());
    assert_eq!(problems(&[row("a", 1010), row("b", 500)]), Vec::<String>::new());
    let grown = problems(&[row("a", 1011), row("b", 1000)]);
    assert!(
        grown.len() == 1 && grown[0].contains("1011") && grown[0].contains("1.1 %"),
        "{grown:?}"
    );
    assert_eq!(problems(&recorded[..1]).len(), 1);
    assert_eq!(problems(&[row("a", 1), row("c", 1)]).len(), 1);
    let text = format!("# compiler\n{HEADER}\nresnet8,0,conv2d,blocked,5,7\n");
    assert_eq!(parse(&text), [row("resnet8,0,conv2d,blocked,5", 7)]);
}
