//! The table: one row for all seeds of an arm, `table.md` for people, `table.jsonl` with a line for every cell, and the
//! [pictures](super::figure).
//!
//! Nothing in either tells how long a run took or where its files are: the same cells give the same bytes, however they were
//! brought together.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::figure::tradeoffs;
use super::results::{Bits, CellResult, Failure, Measured, Outcome, Results};
use super::statistics::{Spread, mcnemar, paired_t};
use super::table::{Cell, START, Table};
use crate::file::write_atomic;
use crate::{Error, ErrorKind, Result};

/// All seeds of one arm from one start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Network.
    pub network: String,
    /// Start.
    pub start: String,
    /// Images.
    pub images: String,
    /// Label of the arm, or [`START`].
    pub arm: String,
    /// Top-1 on the test images, in per cent, over the seeds that gave one.
    pub top1: Option<Spread>,
    /// Of a start with QAT, that of the post-training quantization before it.
    pub ptq_top1: Option<Spread>,
    /// [`top1`](Self::top1) less that of the start with the same seed.
    pub gain: Option<Spread>,
    /// Against the control arm; nothing for the control arm itself, nor for starts.
    pub control: Option<Comparison>,
    /// Top-1 at the end of the schedule, whatever was kept.
    pub end_top1: Option<Spread>,
    /// The same against the control arm's end.
    pub end_control: Option<Comparison>,
    /// Top-1 of the exported models in the runtime.
    pub integer_top1: Option<Spread>,
    /// Top-1 under attack, by what the column is called.
    pub robustness: Vec<(String, Spread)>,
    /// Passes spent.
    pub passes: Option<Spread>,
    /// Cells without figures, and why.
    pub failed: Vec<(String, String)>,
    /// Cells without a result.
    pub missing: Vec<String>,
}

/// An arm against the control arm, seed by seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Differences in top-1, in points.
    pub difference: Spread,
    /// Pairs of test image and seed that the arm has right and the control arm wrong.
    pub gained: u64,
    /// Pairs that the arm has wrong and the control arm right.
    pub lost: u64,
    /// Two-sided p of McNemar's exact test of these.
    pub mcnemar: f64,
    /// Two-sided p of the paired t test of the differences; of two seeds or more.
    pub paired_t: Option<f64>,
}

/// The rows of a table.
pub fn rows(table: &Table, results: &Results) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for cells in table.cells().chunk_by(|a, b| a.row() == b.row()) {
        rows.push(Row::of(cells, table, results));
    }
    rows
}

impl Cell<'_> {
    /// What all cells of a row have alike.
    fn row(&self) -> [String; 4] {
        let place = self.place();
        [place.network, place.start, place.images, place.arm]
    }

    /// The name of another arm's cell with all else alike.
    fn beside(&self, arm: &str) -> String {
        format!("{}_{arm}", self.start_name())
    }
}

impl Row {
    fn of(cells: &[Cell], table: &Table, results: &Results) -> Self {
        let [network, start, images, arm] = cells[0].row();
        let measured = |name: &str| results.cells.get(name).and_then(CellResult::measured);
        let own: Vec<(&Cell, &Measured)> = (cells.iter())
            .filter_map(|cell| Some((cell, measured(&cell.name())?)))
            .collect();
        let spread = |of: &dyn Fn(&Cell, &Measured) -> Option<f64>| {
            let figures: Vec<f64> = own.iter().filter_map(|(cell, measured)| of(cell, measured)).collect();
            Spread::of(&figures)
        };
        let against_control = |of: &dyn Fn(&Measured) -> Option<Bits>| {
            let control = table.control().filter(|control| *control != arm && arm != START)?;
            let pairs: Vec<(Bits, Bits)> = (own.iter())
                .filter_map(|&(cell, own)| Some((of(own)?, of(measured(&cell.beside(control))?)?)))
                .collect();
            Comparison::of(&pairs)
        };
        let (kept, end) = (
            |measured: &Measured| Some(measured.correct.clone()),
            |measured: &Measured| measured.correct_at_end.clone(),
        );
        let mut columns: Vec<String> = Vec::new();
        for (name, _) in own.iter().flat_map(|(_, measured)| attacked(measured)) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let under = |column: &str, measured: &Measured| {
            let found = attacked(measured).into_iter().find(|(name, _)| name == column);
            found.map(|(_, top1)| top1)
        };
        let failed = |cell: &Cell| match &results.cells.get(&cell.name())?.outcome {
            Outcome::Failed(Failure { error, .. }) => Some((cell.name(), error.clone())),
            Outcome::Measured(_) => None,
        };
        Self {
            top1: spread(&|_, measured| Some(measured.top1)),
            ptq_top1: spread(&|_, measured| (arm == START && measured.passes > 0.0).then_some(measured.before_top1)),
            gain: spread(&|cell, own| Some(own.top1 - measured(&cell.beside(START))?.top1)).filter(|_| arm != START),
            control: against_control(&kept),
            end_top1: spread(&|_, measured| Some(measured.correct_at_end.as_ref()?.percent())),
            end_control: against_control(&end),
            integer_top1: spread(&|_, measured| measured.integer_top1),
            robustness: (columns.into_iter())
                .filter_map(|column| {
                    let spread = spread(&|_, measured| under(&column, measured))?;
                    Some((column, spread))
                })
                .collect(),
            passes: spread(&|_, measured| Some(measured.passes)),
            failed: cells.iter().filter_map(failed).collect(),
            missing: (cells.iter().map(Cell::name))
                .filter(|name| !results.cells.contains_key(name))
                .collect(),
            network,
            start,
            images,
            arm,
        }
    }
}

impl Comparison {
    /// Of pairs of what an arm has right and what the control arm has; `None` of none.
    fn of(pairs: &[(Bits, Bits)]) -> Option<Self> {
        let differences: Vec<f64> = pairs.iter().map(|(own, control)| own.percent() - control.percent()).collect();
        let (mut gained, mut lost) = (0, 0);
        for (own, control) in pairs {
            let (more, less) = own.against(control);
            gained += more;
            lost += less;
        }
        Some(Self {
            difference: Spread::of(&differences)?,
            gained,
            lost,
            mcnemar: mcnemar(gained, lost),
            paired_t: paired_t(&differences),
        })
    }
}

/// Top-1 under every attack that was measured, by the name of the column: `pgd 2`, `pgd 2 integer`.
fn attacked(measured: &Measured) -> Vec<(String, f64)> {
    let mut columns = Vec::new();
    for (model, report) in &measured.robustness {
        let model = if model == "integer" { " integer" } else { "" };
        for row in report["epsilons"].as_array().into_iter().flatten() {
            let figures = row.as_object().into_iter().flatten();
            let mut figures: Vec<(&String, f64)> = figures.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect();
            figures.retain(|(name, _)| *name != "epsilon");
            if figures.len() == 2 {
                figures.retain(|(name, _)| *name != "worst"); // of a single attack
            }
            let epsilon = row["epsilon"].as_f64().unwrap_or_default();
            columns.extend(
                figures
                    .into_iter()
                    .map(|(name, top1)| (format!("{name} {epsilon}{model}"), top1)),
            );
        }
    }
    columns
}

/// Writes `table.jsonl`, `table.md` and the pictures into a folder.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn write(table: &Table, results: &Results, folder: &Path) -> Result<()> {
    let rows = rows(table, results);
    write_atomic(&folder.join("table.jsonl"), lines(table, results)?.as_bytes())?;
    for (name, picture) in tradeoffs(&rows)? {
        write_atomic(&folder.join(name), picture.as_bytes())?;
    }
    write_atomic(&folder.join("table.md"), markdown(table, results, &rows).as_bytes())
}

/// `table.jsonl`.
fn lines(table: &Table, results: &Results) -> Result<String> {
    let mut text = String::new();
    for cell in table.cells() {
        let Some(result) = results.cells.get(&cell.name()) else {
            continue;
        };
        let mut line = json!({
            "table": table.name, "cell": result.name(), "place": result.place, "provenance": result.provenance,
            "config": result.config, "measure": result.measure,
        });
        match &result.outcome {
            Outcome::Failed(failure) => line["failed"] = json!(failure.error),
            Outcome::Measured(measured) => {
                let mut figures =
                    serde_json::to_value(measured).map_err(|cause| Error::new(ErrorKind::Io, cause.to_string()))?;
                if let Value::Object(figures) = &mut figures {
                    figures.remove("seconds");
                    // Thousands of digits; what the tests need of them follows.
                    figures.remove("correct");
                    if figures.remove("correct_at_end").is_some() {
                        let end = measured.correct_at_end.as_ref().map(Bits::percent);
                        figures.insert("end_top1".into(), json!(end));
                    }
                    let control = table.control().filter(|_| cell.arm.is_some());
                    let control = control.and_then(|control| results.cells.get(&cell.beside(control))?.measured());
                    if let Some(control) = control {
                        let (gained, lost) = measured.correct.against(&control.correct);
                        figures.insert("against_control".into(), json!({ "gained": gained, "lost": lost }));
                    }
                    figures.insert("images".into(), json!(measured.correct.len()));
                }
                line["figures"] = figures;
            }
        }
        text += &format!("{line}\n");
    }
    Ok(text)
}

/// `table.md`.
fn markdown(table: &Table, results: &Results, rows: &[Row]) -> String {
    let mut text = format!("# {}\n\n{}\n", table.name, provenance(table, results));
    text += &top1_table(table, rows);
    text += "\nTop-1 on the test images in per cent, mean and sample standard deviation over seeds; differences in points, between \
             runs of the same seed. `start` is what the arms began with, `ptq` what its QAT began with. Passes: images forward and backward, prediction, attacks \
             and teacher included; every arm may spend the same.\n";
    if let Some(control) = table.control() {
        text += &format!(
            "\nBoth p are two-sided. Images: McNemar's exact test of the pairs of test image and seed that only the arm or only \
             {control} has right; runs of several seeds see the same images, so it is not a test over seeds. Seeds: paired t test \
             of the differences in top-1, one a seed.\n"
        );
    }
    if rows.iter().any(|row| row.end_top1.is_some()) {
        text += &format!("\n## At the end of the schedule\n\n{}", end_table(table, rows));
        text += "\nThe same runs and tests, with the last weights in place of those kept on the validation images. These figures \
                 choose nothing.\n";
    }
    if rows.iter().any(|row| !row.robustness.is_empty()) {
        let attacked: BTreeSet<String> = (results.cells.values().filter_map(CellResult::measured))
            .flat_map(|measured| measured.robustness.values())
            .map(|report| format!("{} of norm {}", report["images"], report["norm"].as_str().unwrap_or_default()))
            .collect();
        text += &format!("\n## Under attack\n\n{}", attack_table(rows));
        text += &format!(
            "\nTop-1 under the attack of that name within that many grey levels, in per cent; `worst` where any of them succeeds, \
             `integer` of the exported model in the runtime. Test images, norm: {}.\n",
            Vec::from_iter(attacked).join(", ")
        );
    }
    for (cell, error) in rows.iter().flat_map(|row| &row.failed) {
        text += &format!("\nFailed: `{cell}`: {error}\n");
    }
    if !results.missing.is_empty() {
        text += &format!("\nMissing: {}\n", results.missing.join(", "));
    }
    text
}

fn top1_table(table: &Table, rows: &[Row]) -> String {
    let control = table.control();
    let has_integer = rows.iter().any(|row| row.integer_top1.is_some());
    let mut head = names(["network", "start", "images", "arm", "seeds", "top-1", "- start"]);
    if let Some(control) = control {
        head.extend([format!("- {control}"), "p (images)".into(), "p (seeds)".into()]);
    }
    head.extend(has_integer.then(|| "integer".into()));
    head.push("passes".into());
    let mut text = header(&head);
    for row in rows {
        if let Some(ptq) = row.ptq_top1 {
            let mut fields = names([&row.network, &row.start, &row.images, "ptq"]);
            fields.extend([ptq.n.to_string(), percent(&ptq)]);
            fields.resize(head.len(), "-".into());
            text += &line(&fields);
        }
        let state = if row.failed.is_empty() { "missing" } else { "failed" };
        let mut fields = names([&row.network, &row.start, &row.images, &row.arm]);
        fields.push(row.top1.map_or(0, |top1| top1.n).to_string());
        fields.push(row.top1.map_or_else(|| state.into(), |top1| percent(&top1)));
        fields.push(or_dash(row.gain, points));
        if let Some(control) = control {
            fields.extend(compared(row, control, &row.control));
        }
        if has_integer {
            fields.push(or_dash(row.integer_top1, percent));
        }
        fields.push(or_dash(row.passes, |passes| format!("{:.0}", passes.mean)));
        text += &line(&fields);
    }
    text
}

fn end_table(table: &Table, rows: &[Row]) -> String {
    let control = table.control();
    let mut head = names(["network", "start", "images", "arm", "top-1"]);
    if let Some(control) = control {
        head.extend([format!("- {control}"), "p (images)".into(), "p (seeds)".into()]);
    }
    let mut text = header(&head);
    for row in rows.iter().filter(|row| row.end_top1.is_some()) {
        let mut fields = names([&row.network, &row.start, &row.images, &row.arm]);
        fields.push(or_dash(row.end_top1, percent));
        if let Some(control) = control {
            fields.extend(compared(row, control, &row.end_control));
        }
        text += &line(&fields);
    }
    text
}

/// Difference and both p, or what stands in their place.
fn compared(row: &Row, control: &str, comparison: &Option<Comparison>) -> [String; 3] {
    match comparison {
        Some(comparison) => [
            points(&comparison.difference),
            probability(&comparison.mcnemar),
            or_dash(comparison.paired_t, probability),
        ],
        None if row.arm == control => ["control", "-", "-"].map(Into::into),
        None => ["-"; 3].map(Into::into),
    }
}

fn attack_table(rows: &[Row]) -> String {
    let mut attacks: Vec<&String> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.robustness) {
        if !attacks.contains(&name) {
            attacks.push(name);
        }
    }
    let mut head = names(["network", "start", "images", "arm", "top-1"]);
    head.extend(attacks.iter().map(|&name| name.clone()));
    let mut text = header(&head);
    for row in rows {
        let mut fields = names([&row.network, &row.start, &row.images, &row.arm]);
        fields.push(or_dash(row.top1, percent));
        for &attack in &attacks {
            let found = row.robustness.iter().find(|(name, _)| name == attack);
            fields.push(or_dash(found.map(|(_, top1)| *top1), percent));
        }
        text += &line(&fields);
    }
    text
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn header(head: &[String]) -> String {
    format!("{}{}", line(head), line(&vec!["---".into(); head.len()]))
}

fn line(fields: &[String]) -> String {
    format!("| {} |\n", fields.join(" | "))
}

/// The lines above the table.
fn provenance(table: &Table, results: &Results) -> String {
    let all = |of: &dyn Fn(&CellResult) -> Option<String>| {
        let found: BTreeSet<String> = results.cells.values().filter_map(of).collect();
        Vec::from_iter(found).join(", ")
    };
    let mut text = format!(
        "- Program: adcorda {}",
        all(&|result| Some(result.provenance.adcorda.clone()))
    );
    let commits = all(&|result| result.provenance.commit.clone());
    if !commits.is_empty() {
        text += &format!(", commit {commits}");
    }
    let images = all(&|result| Some(result.measured()?.correct.len().to_string()));
    text += &format!(
        "\n- Device: {}\n- Test images: {images} of {}\n- Seeds: {}\n- Float networks, top-1: {}\n",
        all(&|result| Some(result.provenance.device.clone())),
        all(&|result| Some(result.provenance.data.clone())),
        table.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        all(&|result| Some(format!("{} {:.2}", result.place.network, result.provenance.float_top1))),
    );
    text
}

fn or_dash<T>(figure: Option<T>, text: impl FnOnce(&T) -> String) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| text(&figure))
}

fn percent(spread: &Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{:.2} ± {deviation:.2}", spread.mean),
        None => format!("{:.2}", spread.mean),
    }
}

fn points(spread: &Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{:+.2} ± {deviation:.2}", spread.mean),
        None => format!("{:+.2}", spread.mean),
    }
}

fn probability(p: &f64) -> String {
    if *p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::results::Provenance;
    use super::*;

    pub const TABLE: &str = r#"
name = "made-up"
seeds = [1, 2]
[[network]]
name = "tiny"
[[images]]
passes = 100
[[start]]
weights = "w2"
[[arm]]
arm = "adcorda"
[[arm]]
arm = "qat"
[measure]
integer = true
"#;

    /// A result in which the first `right` of ten images are right.
    pub fn result(cell: &Cell, right: usize) -> CellResult {
        let predicted: Vec<u16> = (0..10).map(|i| u16::from(i < right)).collect();
        let correct = Bits::of(&predicted, &[1; 10]);
        let attacked = json!({
            "images": 4, "norm": "linf",
            "epsilons": [{ "epsilon": 2.0, "pgd": 25.0, "square": null, "worst": 25.0, "standard_error": {"pgd": 1.0} }],
        });
        CellResult {
            place: cell.place(),
            config: cell.config(),
            measure: json!({ "integer": true, "robustness": null }),
            provenance: Provenance {
                adcorda: "0.1.0".into(),
                commit: None,
                device: "flex".into(),
                data: "synthetic/test".into(),
                float: "f".into(),
                float_top1: 90.0,
            },
            outcome: Outcome::Measured(Box::new(Measured {
                before_top1: 10.0,
                top1: correct.percent(),
                validation_before_top1: None,
                validation_top1: None,
                passes: if cell.arm.is_some() { 100.0 } else { 0.0 },
                seconds: 5.0,
                correct,
                correct_at_end: None,
                correction: None,
                integer_top1: Some(50.0),
                robustness: BTreeMap::from([("fake-quant".to_owned(), attacked)]),
                notes: Vec::new(),
            })),
        }
    }

    /// Right images of start, adcorda and qat, two seeds each.
    fn results(table: &Table, right: [[usize; 2]; 3]) -> Results {
        let mut results = Results::default();
        for (cell, right) in table.cells().iter().zip(right.concat()) {
            results.cells.insert(cell.name(), result(cell, right));
        }
        results
    }

    #[test]
    fn rows_compare_runs_of_the_same_seed() {
        let table = Table::parse(TABLE).unwrap();
        let results = results(&table, [[2, 2], [9, 5], [4, 4]]);
        let rows = rows(&table, &results);
        let arms: Vec<&str> = rows.iter().map(|row| row.arm.as_str()).collect();
        assert_eq!(arms, ["start", "adcorda", "qat"]);
        assert_eq!(
            (rows[0].gain, rows[0].control.clone(), rows[2].control.clone()),
            (None, None, None)
        );
        assert_eq!(rows[1].top1.unwrap().mean, 70.0);
        assert_eq!(rows[1].gain.unwrap().mean, 50.0);
        let comparison = rows[1].control.clone().unwrap();
        // 5 and 1 more images than the control, none fewer.
        assert_eq!((comparison.gained, comparison.lost), (6, 0));
        assert_eq!(comparison.difference, Spread::of(&[50.0, 10.0]).unwrap());
        assert!((comparison.mcnemar - 2.0 / 64.0).abs() < 1e-9);
        assert_eq!(comparison.paired_t, paired_t(&[50.0, 10.0]));
        assert_eq!(rows[1].robustness, [("pgd 2".to_owned(), Spread::of(&[25.0, 25.0]).unwrap())]);
    }

    #[test]
    fn what_qat_began_with_is_a_line_of_its_own() {
        let table = Table::parse(TABLE).unwrap();
        let mut results = results(&table, [[2, 2], [4, 4], [4, 4]]);
        assert!(!markdown(&table, &results, &rows(&table, &results)).contains("| ptq |"));
        for (name, result) in &mut results.cells {
            if let (true, Outcome::Measured(measured)) = (name.ends_with("start"), &mut result.outcome) {
                measured.passes = 100.0;
            }
        }
        let text = markdown(&table, &results, &rows(&table, &results));
        let row = "| tiny | w2-ptq | all | ptq | 2 | 10.00 ± 0.00 | - | - | - | - | - | - |";
        assert!(text.lines().any(|line| line == row), "no {row:?} in\n{text}");
    }

    #[test]
    fn the_table_reads_as_written() {
        let table = Table::parse(TABLE).unwrap();
        let results = results(&table, [[2, 2], [9, 5], [4, 4]]);
        let text = markdown(&table, &results, &rows(&table, &results));
        for line in [
            "# made-up",
            "- Program: adcorda 0.1.0",
            "- Test images: 10 of synthetic/test",
            "- Seeds: 1, 2",
            "- Float networks, top-1: tiny 90.00",
            "| network | start | images | arm | seeds | top-1 | - start | - qat | p (images) | p (seeds) | integer | passes |",
            "| tiny | w2-ptq | all | start | 2 | 20.00 ± 0.00 | - | - | - | - | 50.00 ± 0.00 | 0 |",
            "| tiny | w2-ptq | all | adcorda | 2 | 70.00 ± 28.28 | +50.00 ± 28.28 | +30.00 ± 28.28 | 0.031 | 0.374 | 50.00 ± 0.00 | 100 |",
            "| tiny | w2-ptq | all | qat | 2 | 40.00 ± 0.00 | +20.00 ± 0.00 | control | - | - | 50.00 ± 0.00 | 100 |",
            "| network | start | images | arm | top-1 | pgd 2 |",
            "| tiny | w2-ptq | all | adcorda | 70.00 ± 28.28 | 25.00 ± 0.00 |",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
        assert!(
            text.contains("4 of norm linf") && text.contains("McNemar's exact test"),
            "{text}"
        );
        assert!(!text.contains("Failed") && !text.contains("Missing"), "{text}");
    }

    /// What was kept can be the start of both; their last weights still differ.
    #[test]
    fn the_end_of_the_schedule_has_a_table_of_its_own() {
        let table = Table::parse(TABLE).unwrap();
        let mut results = results(&table, [[2, 2], [4, 4], [4, 4]]);
        assert!(!markdown(&table, &results, &rows(&table, &results)).contains("At the end"));
        for (name, result) in &mut results.cells {
            let Outcome::Measured(measured) = &mut result.outcome else {
                unreachable!()
            };
            let right = match name {
                name if name.ends_with("adcorda") => 8,
                name if name.ends_with("qat") => 5,
                _ => continue,
            };
            let predicted: Vec<u16> = (0..10).map(|i| u16::from(i < right)).collect();
            measured.correct_at_end = Some(Bits::of(&predicted, &[1; 10]));
        }
        let found = rows(&table, &results);
        let end = found.iter().find(|row| row.arm == "adcorda").unwrap();
        assert_eq!(
            (end.control.as_ref().unwrap().gained, end.control.as_ref().unwrap().lost),
            (0, 0)
        );
        let against = end.end_control.as_ref().unwrap();
        assert_eq!((against.difference.mean, against.gained, against.lost), (30.0, 6, 0));
        let text = markdown(&table, &results, &found);
        let section = &text[text.find("## At the end of the schedule").unwrap()..];
        assert!(
            section.contains("| adcorda | 80.00 ± 0.00 | +30.00 ± 0.00 | 0.031 |"),
            "{section}"
        );
        assert!(section.contains("| qat | 50.00 ± 0.00 | control | - | - |"), "{section}");
        assert!(lines(&table, &results).unwrap().contains("\"end_top1\":80.0"));
    }

    #[test]
    fn failed_and_missing_cells_are_said() {
        let table = Table::parse(TABLE).unwrap();
        let mut results = results(&table, [[2, 2], [9, 5], [4, 4]]);
        let failed = results.cells.get_mut("tiny_w2-ptq_all_seed1_adcorda").unwrap();
        failed.outcome = Outcome::Failed(Failure {
            error: "the loss is NaN".into(),
            exit_code: 11,
        });
        for seed in [1, 2] {
            let name = format!("tiny_w2-ptq_all_seed{seed}_qat");
            results.cells.remove(&name);
            results.missing.push(name);
        }
        let rows = rows(&table, &results);
        assert_eq!((rows[1].top1.unwrap().n, rows[1].control.clone()), (1, None));
        let text = markdown(&table, &results, &rows);
        for part in [
            "| adcorda | 1 | 50.00 | +30.00 | - | - | - |",
            "| qat | 0 | missing | - | control |",
            "Failed: `tiny_w2-ptq_all_seed1_adcorda`: the loss is NaN",
            "Missing: tiny_w2-ptq_all_seed1_qat, tiny_w2-ptq_all_seed2_qat",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn lines_tell_everything_but_time() {
        let table = Table::parse(TABLE).unwrap();
        let text = lines(&table, &results(&table, [[2, 2], [9, 5], [4, 4]])).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[2]["cell"], "tiny_w2-ptq_all_seed1_adcorda");
        assert_eq!(lines[2]["figures"]["top1"], 90.0);
        assert_eq!(lines[2]["figures"]["against_control"], json!({ "gained": 5, "lost": 0 }));
        assert_eq!(lines[2]["config"]["options"]["training"]["seed"], 1);
        assert_eq!(lines[0]["figures"]["against_control"], Value::Null);
        assert!(!text.contains("seconds"));
    }
}
