//! What a model file holds and needs: layers, bytes, operations, kernels, the arena over time.

use std::collections::BTreeMap;
use std::fmt;

use adcorda_formats::{Model, Op, Tensor};
use adcorda_runtime::{Isa, path};
use serde::Serialize;

use crate::Result;
use crate::board::Board;
use crate::export::parse;

/// A model file in figures. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Name of the model.
    pub name: String,
    /// Where the weights come from.
    pub provenance: Provenance,
    /// Names of the classes.
    pub labels: Vec<String>,
    /// Height, width, channels of the image.
    pub input: [usize; 3],
    /// The layers in the order in which they run.
    pub layers: Vec<Layer>,
    /// The whole file.
    pub flash_bytes: usize,
    /// Of the file: weights, without what pads each row to whole words.
    pub weight_bytes: usize,
    /// Of the file: biases, multipliers and input tables.
    pub table_bytes: usize,
    /// RAM for tensors and scratch.
    pub arena_bytes: usize,
    /// Most bytes of it in use during one layer; more than these, the arena has only where no better plan was found.
    pub peak_bytes: u64,
    /// Names of the layers that need so many.
    pub peak_layers: Vec<String>,
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// Number of weights.
    pub weights: usize,
    /// Boards with room for the file in flash and the arena in RAM. Program and stack come on top of both.
    pub boards: Vec<Board>,
    /// The arena over time, for people: a row a layer, a column a slice of the arena.
    pub arena_map: String,
}

/// Where the weights come from.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// Data set.
    pub data: String,
    /// `ptq`, `qat`, `adcorda`.
    pub method: String,
    /// Seed of the run.
    pub seed: u64,
    /// Top-1 of the trained network in per cent, where it was measured.
    pub top1: Option<f32>,
}

/// One layer in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Its name in the trained network.
    pub name: String,
    /// Kind of operation; `conv2d + add` for a convolution that adds a residual.
    pub op: &'static str,
    /// Bits of a weight as on the command line (`w2`), where there are weights.
    pub width: Option<&'static str>,
    /// Height, width, channels of the output.
    pub shape: [usize; 3],
    /// Number of weights.
    pub weights: usize,
    /// Bytes of the file: packed rows with their padding, biases and multipliers.
    pub bytes: usize,
    /// Multiply-accumulates.
    pub macs: u64,
    /// First byte of the output in the arena.
    pub offset: u32,
    /// First byte of the scratch range in the arena.
    pub scratch_offset: u32,
    /// Bytes of the scratch range.
    pub scratch_bytes: u32,
    /// Bytes of the arena that are in use while it runs.
    pub in_use: u64,
    /// How each instruction set computes it, by the set's name: `blocked` and `depthwise` are fast kernels, `generic` takes any
    /// shape, `plain` has no weights.
    pub paths: BTreeMap<&'static str, &'static str>,
}

/// Takes a model file apart.
///
/// # Errors
/// [`ErrorKind::Model`](crate::ErrorKind::Model) where the file is not valid.
pub fn inspect(file: &[u8]) -> Result<Inspection> {
    let model = parse(file, "the model")?;
    let in_use = in_use(&model);
    let peak_bytes = in_use.iter().copied().max().unwrap_or(0);
    let (mut layers, mut weight_bits, mut table_bytes) = (Vec::new(), 0, usize::from(model.input().channels) * 256);
    for ((layer, output), &in_use) in model.layers().zip(&model.tensors()[1..]).zip(&in_use) {
        let input = layer
            .op
            .inputs()
            .next()
            .map_or(output, |id| &model.tensors()[usize::from(id)]);
        let (mut weights, mut bytes) = (0, 0);
        if let (Some((rows, k)), Some(packed)) = (layer.op.rows_and_k(input, output), layer.op.weights()) {
            weights = rows * k;
            weight_bits += weights * packed.width.bits() as usize;
            // bias: i32; where there is a requantization, multiplier: i32.
            let tables = rows * if layer.op.requantize().is_some() { 8 } else { 4 };
            table_bytes += tables;
            bytes = layer.op.packing(input, output).map_or(0, |packing| packing.bytes()) + tables;
        }
        layers.push(Layer {
            name: layer.name.into(),
            op: operation(&layer.op),
            width: layer.op.weights().map(|w| w.width.name()),
            shape: shape(output),
            weights,
            bytes,
            macs: layer.op.macs(input, output),
            offset: output.offset,
            scratch_offset: layer.scratch.offset,
            scratch_bytes: layer.scratch.bytes,
            in_use,
            paths: Isa::ALL
                .map(|isa| (isa.name(), path(isa, &model, &layer, output).name()))
                .into(),
        });
    }
    let provenance = model.provenance();
    Ok(Inspection {
        name: model.name().into(),
        provenance: Provenance {
            data: provenance.data.into(),
            method: provenance.method.into(),
            seed: provenance.seed,
            top1: (provenance.top1 != u16::MAX).then(|| f32::from(provenance.top1) / 100.0),
        },
        labels: model.labels().map(String::from).collect(),
        input: shape(model.input()),
        flash_bytes: file.len(),
        weight_bytes: weight_bits.div_ceil(8),
        table_bytes,
        arena_bytes: model.arena_bytes(),
        peak_bytes,
        peak_layers: layers
            .iter()
            .filter(|layer| layer.in_use == peak_bytes)
            .map(|layer| layer.name.clone())
            .collect(),
        macs: layers.iter().map(|layer| layer.macs).sum(),
        weights: layers.iter().map(|layer| layer.weights).sum(),
        boards: Board::ALL
            .into_iter()
            .filter(|board| board.fits(file.len(), model.arena_bytes()).is_ok())
            .collect(),
        arena_map: arena_map(&model),
        layers,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width, channels] = self.input;
        let Provenance {
            data,
            method,
            seed,
            top1,
        } = &self.provenance;
        let known = |text: &str| if text.is_empty() { "?".into() } else { text.to_owned() };
        write!(
            f,
            "{}: {height}x{width}x{channels} to {} classes",
            self.name,
            self.labels.len()
        )?;
        write!(f, "; {} on {}, seed {seed}", known(method), known(data))?;
        if let Some(top1) = top1 {
            write!(f, ", top-1 {top1:.2} % in the trainer")?;
        }
        writeln!(f, "\n")?;
        let name_width = self.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).max(5);
        writeln!(
            f,
            "{:>3}  {:name_width$}  {:16}  {:5}  {:>11}  {:>8}  {:>11}",
            "", "layer", "operation", "width", "output", "bytes", "MACs"
        )?;
        for (i, layer) in self.layers.iter().enumerate() {
            let [height, width, channels] = layer.shape;
            writeln!(
                f,
                "{i:>3}  {:name_width$}  {:16}  {:5}  {:>11}  {:>8}  {:>11}",
                layer.name,
                layer.op,
                layer.width.unwrap_or("-"),
                format!("{height}x{width}x{channels}"),
                layer.bytes,
                layer.macs
            )?;
        }
        writeln!(
            f,
            "\nflash  {:>9} bytes: {} of {} weights, {} of tables",
            self.flash_bytes, self.weight_bytes, self.weights, self.table_bytes
        )?;
        writeln!(
            f,
            "arena  {:>9} bytes; most in use at once {}, in {}",
            self.arena_bytes,
            self.peak_bytes,
            self.peak_layers.join(", ")
        )?;
        writeln!(f, "MACs   {:>9}", self.macs)?;
        let boards: Vec<&str> = self.boards.iter().map(|board| board.name()).collect();
        let boards = if boards.is_empty() {
            "none known here".into()
        } else {
            boards.join(", ")
        };
        writeln!(
            f,
            "boards with room for both (data sheets; program and stack come on top): {boards}"
        )?;
        write!(
            f,
            "\n{:>3}  {:name_width$}  {:>9}  {:>16}  {:>9}",
            "", "layer", "output at", "scratch at", "in use"
        )?;
        let columns = |name: &dyn Fn(Isa) -> &'static str| {
            let names: String = Isa::ALL.iter().map(|&isa| format!("  {:9}", name(isa))).collect();
            names.trim_end().to_owned()
        };
        write!(f, "{}", columns(&|isa| isa.name()))?;
        for (i, layer) in self.layers.iter().enumerate() {
            let scratch = match layer.scratch_bytes {
                0 => "-".into(),
                bytes => format!("{bytes} at {}", layer.scratch_offset),
            };
            write!(
                f,
                "\n{i:>3}  {:name_width$}  {:>9}  {scratch:>16}  {:>9}{}",
                layer.name,
                layer.offset,
                layer.in_use,
                columns(&|isa| layer.paths[isa.name()])
            )?;
        }
        write!(f, "\n\n{}", self.arena_map)
    }
}

/// Columns of the arena map.
const COLUMNS: usize = 64;

/// The kind of operation, in words; `conv2d + add` for a convolution that adds a residual.
pub(crate) fn operation(op: &Op) -> &'static str {
    match op {
        Op::Conv2d { residual: Some(_), .. } => "conv2d + add",
        Op::Conv2d { residual: None, .. }
        | Op::DepthwiseConv2d { .. }
        | Op::Linear { .. }
        | Op::Logits { .. }
        | Op::Add { .. }
        | Op::MaxPool { .. }
        | Op::AvgPool { .. }
        | Op::Subsample { .. } => op.name(),
    }
}

/// Number of the last layer that reads each tensor; of what none reads, the logits, 0.
fn last_readers(model: &Model) -> Vec<usize> {
    let mut last_readers = vec![0; model.tensors().len()];
    for (i, layer) in model.layers().enumerate() {
        for input in layer.op.inputs() {
            last_readers[usize::from(input)] = i;
        }
    }
    last_readers
}

/// Bytes of the arena that are in use during each layer, each counted once.
fn in_use(model: &Model) -> Vec<u64> {
    let last_readers = last_readers(model);
    let tensors = |i: usize| {
        let tensors = model.tensors()[..=i + 1].iter().enumerate();
        tensors
            .filter(|&(t, _)| t == i + 1 || last_readers[t] >= i)
            .map(|(_, tensor)| (u64::from(tensor.offset), tensor.bytes() as u64))
            .collect::<Vec<_>>()
    };
    let bytes = |(i, layer): (usize, adcorda_formats::Layer)| {
        let mut ranges = tensors(i);
        ranges.push((layer.scratch.offset.into(), layer.scratch.bytes.into()));
        ranges.sort_unstable();
        let (mut used, mut end) = (0, 0);
        for (start, bytes) in ranges {
            let next = end.max(start + bytes);
            used += next - end.max(start);
            end = next;
        }
        used
    };
    model.layers().enumerate().map(bytes).collect()
}

/// A row for each layer: what of the arena it writes (`#`), what it reads (`=`), what it must leave alone for later layers
/// (`-`), the scratch range (`s`), and what is free (`.`).
fn arena_map(model: &Model) -> String {
    let arena = model.arena_bytes().max(1);
    let tensors = model.tensors();
    let last_readers = last_readers(model);
    let name_width = model.layers().map(|l| l.name.chars().count()).max().unwrap_or(0);
    let mut map = format!(
        "arena, {:.0} bytes a column: # written, = read, - kept, s scratch, . free\n",
        arena as f64 / COLUMNS as f64
    );
    for (i, layer) in model.layers().enumerate() {
        let mut row = ['.'; COLUMNS];
        let mut paint = |start: usize, bytes: usize, mark: char| {
            if bytes > 0 {
                // Every range shows, however small.
                let (first, last) = (start * COLUMNS / arena, (start + bytes - 1) * COLUMNS / arena);
                row[first.min(COLUMNS - 1)..=last.min(COLUMNS - 1)].fill(mark);
            }
        };
        paint(layer.scratch.offset as usize, layer.scratch.bytes as usize, 's');
        for (t, tensor) in tensors[..=i].iter().enumerate() {
            if last_readers[t] > i {
                paint(tensor.offset as usize, tensor.bytes(), '-');
            }
        }
        for input in layer.op.inputs() {
            let tensor = &tensors[usize::from(input)];
            paint(tensor.offset as usize, tensor.bytes(), '=');
        }
        paint(tensors[i + 1].offset as usize, tensors[i + 1].bytes(), '#');
        let row: String = row.iter().collect();
        map += &format!("{i:>3}  {:name_width$}  {row}\n", layer.name);
    }
    map
}

fn shape(tensor: &Tensor) -> [usize; 3] {
    [tensor.height, tensor.width, tensor.channels].map(usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{every_op, random_zoo};
    use crate::export::{ExportOptions, export};
    use crate::quantize::Width;

    #[test]
    fn figures_add_up() {
        let exported = export(&every_op(Width::W2, 0), &ExportOptions::default()).unwrap();
        let inspection = inspect(&exported.bytes).unwrap();
        let layer = |name: &str| inspection.layers.iter().find(|l| l.name == name).unwrap();
        assert_eq!(inspection.flash_bytes, exported.bytes.len());
        assert_eq!(inspection.arena_bytes, exported.arena_bytes);
        assert_eq!(inspection.provenance.top1, Some(12.35));
        assert_eq!(inspection.input, [10, 8, 3]);

        let stem = layer("stem");
        assert_eq!((stem.op, stem.width), ("conv2d", Some("w2")));
        assert_eq!((stem.shape, stem.weights, stem.macs), ([10, 8, 6], 6 * 27, 10 * 8 * 6 * 27));
        // Two blocks of four rows of 32 two-bit weights; four bytes of bias, four of multiplier.
        assert_eq!(stem.bytes, 2 * 32 + 6 * 8);
        let fc = layer("fc");
        assert_eq!((fc.op, fc.weights, fc.macs, fc.bytes), ("logits", 55, 55, 2 * 16 + 5 * 4));
        assert_eq!(layer("pool").width, None);
        // Of three sums, the convolution of a shortcut takes the first.
        assert_eq!(layer("shortcut").op, "conv2d + add");

        // What is left of the file is header, graph, padding: less than 64 bytes a layer here.
        let layers: usize = inspection.layers.iter().map(|l| l.bytes).sum();
        let rest = inspection.flash_bytes - layers - 3 * 256;
        assert!((100..1200).contains(&rest), "{rest}");
        assert!(inspection.weight_bytes + inspection.table_bytes <= layers + 3 * 256);
        assert_eq!(inspection.weight_bytes, (inspection.weights * 2).div_ceil(8));
        assert_eq!(inspection.boards, Board::ALL);
    }

    #[test]
    fn the_peak_is_where_most_is_in_use() {
        let exported = export(&random_zoo("resnet8", Width::W4), &ExportOptions::default()).unwrap();
        let inspection = inspect(&exported.bytes).unwrap();
        // Two tensors of 32x32x16 and eight columns of 144 codes, padded.
        assert_eq!((inspection.peak_bytes, inspection.arena_bytes), (34_048, 34_048));
        assert_eq!(inspection.peak_layers, ["layer1.0.conv1", "layer1.0.conv2"]);
        let stem = &inspection.layers[0];
        assert_eq!(stem.in_use, 3_072 + 16_384 + u64::from(stem.scratch_bytes));
        assert_eq!(stem.scratch_bytes, 8 * 32);
        let pool = &inspection.layers[9];
        assert_eq!((pool.name.as_str(), pool.in_use), ("avgpool", 4_096 + 64));
    }

    #[test]
    fn paths_are_those_of_the_runtime() {
        let exported = export(&random_zoo("dscnn", Width::W4), &ExportOptions::default()).unwrap();
        let inspection = inspect(&exported.bytes).unwrap();
        for layer in &inspection.layers {
            let names: Vec<&str> = layer.paths.keys().copied().collect();
            assert_eq!(names, ["dsp", "mve", "portable", "thumb1", "thumb2"]);
            // Kernels for the DSP instructions take all that a real network has, given the scratch that the exporter gives.
            let expected = match layer.op {
                "conv2d" | "logits" => "blocked",
                "depthwise_conv2d" => "depthwise",
                _ => "plain",
            };
            assert_eq!(layer.paths["dsp"], expected, "{}", layer.name);
        }
    }

    #[test]
    fn scripts_find_their_keys() {
        let exported = export(&every_op(Width::W8, 0), &ExportOptions::default()).unwrap();
        let json = serde_json::to_value(inspect(&exported.bytes).unwrap()).unwrap();
        let layers = json["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 11);
        assert!(layers[0]["paths"]["portable"].is_string() && layers[0]["scratch_bytes"].is_u64());
        assert_eq!(json["flash_bytes"], exported.bytes.len());
        assert_eq!(json["arena_bytes"], exported.arena_bytes);
        assert!(json["peak_layers"].as_array().is_some_and(|names| !names.is_empty()));
        assert!(json["macs"].as_u64().unwrap() > 0);
    }

    #[test]
    fn people_see_every_layer_and_the_arena() {
        let exported = export(&every_op(Width::W4, 0), &ExportOptions::default()).unwrap();
        let inspection = inspect(&exported.bytes).unwrap();
        let text = inspection.to_string();
        for layer in &inspection.layers {
            // In both tables and in the map.
            assert!(text.matches(&layer.name).count() >= 3, "{text}");
        }
        assert!(text.contains("conv2d + add") && text.contains("generic"), "{text}");
        let rows: Vec<&str> = inspection.arena_map.lines().skip(1).collect();
        assert_eq!(rows.len(), 11);
        for (row, layer) in rows.into_iter().zip(&inspection.layers) {
            let marks = row.rsplit(' ').next().unwrap();
            assert!(marks.contains('#') && marks.contains('s') == layer.width.is_some(), "{row}");
        }
        assert!(text.contains("mps2-an386"), "{text}");
        assert!(inspect(&exported.bytes[1..]).is_err());
    }
}
