//! The trade-off between clean and robust accuracy, as a picture: a curve for every family of arms that was run at several
//! strengths.
//!
//! A family is what labels have in common before a number at their end: `attack-right-1` and `attack-right-2`. What stands alone is a
//! point. The same rows give the same bytes.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::Row;
use super::statistics::Spread;
use super::table::START;
use crate::{Error, ErrorKind, Result};

/// Pixels of a panel.
const PANEL: (u32, u32) = (520, 460);

/// Of the families, in the order of the table.
const COLOURS: [RGBColor; 8] = [
    RGBColor(86, 86, 86),
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
];

/// Pictures by file name, `tradeoff-NETWORK_START_IMAGES.svg`: of each start with a family that was attacked, a panel for every
/// radius of the attack, clean top-1 to the right and top-1 under the strongest attack upwards, means over seeds.
///
/// # Errors
/// [`ErrorKind::Io`] where a picture cannot be drawn.
pub fn tradeoffs(rows: &[Row]) -> Result<Vec<(String, String)>> {
    let start = |row: &Row| (row.network.clone(), row.start.clone(), row.images.clone());
    let mut pictures = Vec::new();
    for rows in rows.chunk_by(|a, b| start(a) == start(b)) {
        let families = families(rows);
        if families.iter().any(|family| family.points.len() > 1) {
            let (network, start, images) = start(&rows[0]);
            let name = format!("tradeoff-{network}_{start}_{images}.svg");
            let picture = draw(&families).map_err(|cause| Error::new(ErrorKind::Io, format!("draw {name}: {cause}")))?;
            pictures.push((name, picture));
        }
    }
    Ok(pictures)
}

/// Arms that differ in one number.
#[derive(Debug, PartialEq)]
struct Family<'a> {
    name: &'a str,
    points: Vec<Point<'a>>,
}

/// An arm.
#[derive(Debug, PartialEq)]
struct Point<'a> {
    /// The number at the end of its label; nothing where it has none.
    strength: &'a str,
    clean: f64,
    /// Under attack, by what the panel is called.
    attacked: Vec<(&'a str, f64)>,
}

fn families(rows: &[Row]) -> Vec<Family<'_>> {
    let mut families: Vec<Family> = Vec::new();
    for row in rows {
        let attacked = strongest(&row.robustness);
        let Some(Spread { mean: clean, .. }) = row.top1.filter(|_| !attacked.is_empty()) else {
            continue;
        };
        let (name, strength) = match row.arm.rsplit_once('-') {
            Some((name, number)) if row.arm != START && number.parse::<f64>().is_ok() => (name, number),
            _ => (row.arm.as_str(), ""),
        };
        let point = Point {
            strength,
            clean,
            attacked,
        };
        match families.iter_mut().find(|family| family.name == name) {
            Some(family) => family.points.push(point),
            None => families.push(Family {
                name,
                points: vec![point],
            }),
        }
    }
    families
}

/// Of columns such as `pgd 2` and `worst 2 integer`, those of the strongest attack by what follows its name: the worst of
/// several, or the only one.
fn strongest(columns: &[(String, Spread)]) -> Vec<(&str, f64)> {
    let mut panels: Vec<(&str, f64)> = Vec::new();
    for (column, top1) in columns {
        let Some((attack, panel)) = column.split_once(' ') else {
            continue;
        };
        match panels.iter_mut().find(|(name, _)| *name == panel) {
            Some(found) if attack == "worst" => found.1 = top1.mean,
            Some(_) => {}
            None => panels.push((panel, top1.mean)),
        }
    }
    panels
}

fn draw(families: &[Family]) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let mut panels: Vec<&str> = Vec::new();
    for (panel, _) in families
        .iter()
        .flat_map(|family| &family.points)
        .flat_map(|point| &point.attacked)
    {
        if !panels.contains(panel) {
            panels.push(panel);
        }
    }
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (PANEL.0 * panels.len() as u32, PANEL.1)).into_drawing_area();
        area.fill(&WHITE)?;
        for (panel, area) in panels.iter().zip(area.split_evenly((1, panels.len()))) {
            draw_panel(families, panel, &area)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn draw_panel(
    families: &[Family],
    panel: &str,
    area: &DrawingArea<SVGBackend, Shift>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let of = |point: &Point| {
        let found = point.attacked.iter().find(|(name, _)| *name == panel);
        found.map(|(_, attacked)| (point.clean, *attacked))
    };
    let points: Vec<(f64, f64)> = families
        .iter()
        .flat_map(|family| family.points.iter().filter_map(of))
        .collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points
            .iter()
            .map(of)
            .fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        let margin = 0.08 * (high - low).max(1.0);
        (low - margin).max(0.0)..high + margin
    };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("under attack within {panel} / 255"), ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(46)
        .build_cartesian_2d(range(|point| point.0), range(|point| point.1))?;
    chart
        .configure_mesh()
        .x_desc("clean top-1, %")
        .y_desc("top-1 under attack, %")
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (family, colour) in families.iter().zip(COLOURS.iter().cycle()) {
        let line: Vec<(f64, f64)> = family.points.iter().filter_map(of).collect();
        let legend = *colour;
        chart
            .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?
            .label(family.name)
            .legend(move |(x, y)| Circle::new((x + 10, y), 4, legend.filled()));
        chart.draw_series(line.iter().map(|at| Circle::new(*at, 4, colour.filled())))?;
        let strengths = family
            .points
            .iter()
            .filter_map(|point| Some((of(point)?, point.strength.to_owned())));
        chart.draw_series(
            strengths.map(|(at, strength)| EmptyElement::at(at) + Text::new(strength, (6, -14), ("sans-serif", 13))),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: &str, clean: f64, attacked: &[(&str, f64)]) -> Row {
        let spread = |mean| Spread {
            n: 1,
            mean,
            deviation: None,
        };
        Row {
            network: "tiny".into(),
            start: "w2-ptq".into(),
            images: "all".into(),
            arm: arm.into(),
            top1: Some(spread(clean)),
            ptq_top1: None,
            gain: None,
            control: None,
            end_top1: None,
            end_control: None,
            integer_top1: None,
            robustness: (attacked.iter())
                .map(|(name, top1)| ((*name).to_owned(), spread(*top1)))
                .collect(),
            passes: None,
            failed: Vec::new(),
            missing: Vec::new(),
        }
    }

    #[test]
    fn arms_that_differ_in_a_number_are_one_curve() {
        let attacked = [
            ("pgd 2", 30.0),
            ("square 2", 35.0),
            ("worst 2", 29.0),
            ("fgsm 4 integer", 7.0),
        ];
        let rows = [
            row("start", 80.0, &attacked),
            row("attack-right-0.5", 78.0, &attacked),
            row("attack-right-4", 70.0, &attacked),
            row("not-attacked", 70.0, &[]),
        ];
        let families = families(&rows);
        let names: Vec<&str> = families.iter().map(|family| family.name).collect();
        assert_eq!(names, ["start", "attack-right"]);
        let strengths: Vec<&str> = families[1].points.iter().map(|point| point.strength).collect();
        assert_eq!(strengths, ["0.5", "4"]);
        assert_eq!(families[0].points[0].attacked, [("2", 29.0), ("4 integer", 7.0)]);
    }

    #[test]
    fn a_picture_has_every_family_and_panel_and_is_the_same_twice() {
        let rows = [
            row("start", 80.0, &[("pgd 1", 20.0), ("pgd 2", 2.0)]),
            row("adversarial-training-1", 75.0, &[("pgd 1", 45.0), ("pgd 2", 20.0)]),
            row("adversarial-training-2", 70.0, &[("pgd 1", 46.0), ("pgd 2", 25.0)]),
        ];
        let pictures = tradeoffs(&rows).unwrap();
        assert_eq!(pictures.len(), 1);
        let (name, svg) = &pictures[0];
        assert_eq!(name, "tradeoff-tiny_w2-ptq_all.svg");
        for part in ["adversarial-training", "start", "within 1 / 255", "within 2 / 255", "<circle"] {
            assert!(svg.contains(part), "no {part:?} in\n{svg}");
        }
        assert_eq!(tradeoffs(&rows).unwrap(), pictures);
        // Without a family at several strengths there is no trade-off to be seen.
        assert_eq!(tradeoffs(&rows[..2]).unwrap(), []);
        assert_eq!(tradeoffs(&[]).unwrap(), []);
    }
}
