//! The curves as SVG under docs/benchmarks/.

use crate::figures::{Curve, Results};
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Write as _;
use std::path::PathBuf;

const SIZE: (u32, u32) = (760, 420);

/// One plot: the name of its file and of its curves, and what stands on it.
struct Plot {
    name: &'static str,
    title: &'static str,
    across: &'static str,
    up: &'static str,
}

const PLOTS: &[Plot] = &[
    Plot {
        name: "claim-by-history",
        title: "Server time of a claim beside finished rows",
        across: "finished rows",
        up: "ms",
    },
    Plot {
        name: "throughput-by-batch",
        title: "No-op jobs drained by one runner",
        across: "engine.claim_batch",
        up: "jobs/s",
    },
    Plot {
        name: "drain-beside-snapshot",
        title: "No-op jobs drained; a snapshot is held from second 0 to 30",
        across: "s",
        up: "jobs/s",
    },
    Plot { name: "throughput-by-runners", title: "No-op jobs drained", across: "runners", up: "jobs/s" },
];

/// Draws every plot there are curves for.
pub(crate) fn draw(results: &Results) -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks");
    std::fs::create_dir_all(&folder)?;
    for plot in PLOTS {
        let Some(curves) = results.curves.get(plot.name) else { continue };
        let path = folder.join(format!("{}.svg", plot.name));
        let area = SVGBackend::new(&path, SIZE).into_drawing_area();
        draw_one(plot, curves, &area).map_err(|error| anyhow!("failed to draw {}: {error}", plot.name))?;
        area.present().map_err(|error| anyhow!("failed to write {}: {error}", path.display()))?;
        println!("written to {}", path.display());
    }
    Ok(())
}

/// The plots there are curves for, as docs/BENCHMARKS.md shows them.
pub(crate) fn shown(results: &Results) -> String {
    let mut text = String::new();
    for plot in PLOTS.iter().filter(|plot| results.curves.contains_key(plot.name)) {
        // A String takes every write.
        let _ = writeln!(text, "![{}](benchmarks/{}.svg)", plot.title, plot.name);
    }
    text
}

/// The values on the x axis are steps of equal width, because 0 and ten millions share no scale.
fn draw_one(
    plot: &Plot,
    curves: &[Curve],
    area: &DrawingArea<SVGBackend<'_>, Shift>,
) -> Result<(), Box<dyn std::error::Error>> {
    let colours = [BLUE, RED, GREEN, BLACK];
    let mut steps: Vec<f64> = curves.iter().flat_map(|curve| &curve.points).map(|point| point.0).collect();
    steps.sort_by(f64::total_cmp);
    steps.dedup();
    let place = |value: f64| steps.iter().position(|step| *step >= value).unwrap_or(0);
    let highest = curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).fold(0.0, f64::max);
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(plot.title, ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0..steps.len().saturating_sub(1).max(1), 0.0..highest * 1.15)?;
    let label = |n: &usize| steps.get(*n).map(|step| short(*step)).unwrap_or_default();
    chart
        .configure_mesh()
        .x_desc(plot.across)
        .y_desc(plot.up)
        .x_labels(steps.len().min(12))
        .x_label_formatter(&label)
        .draw()?;
    for (curve, colour) in curves.iter().zip(colours) {
        let points = || curve.points.iter().map(|(x, y)| (place(*x), *y));
        chart
            .draw_series(LineSeries::new(points(), colour.stroke_width(2)).point_size(4))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value => format!("{value}"),
    }
}
