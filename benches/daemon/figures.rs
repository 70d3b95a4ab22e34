//! What was measured: kept, printed, written as JSON and compared with the last that was committed.

use crate::process::Load;
use crate::tables::Scaling;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// Relative to the package.
const JSON: &str = "benches/results/daemon.json";
/// A figure this much worse than the committed one is marked.
const WORSE: f64 = 1.15;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aim {
    AtLeast(f64),
    AtMost(f64),
    /// No aim; more is better.
    More,
    /// No aim; less is better.
    Less,
}

impl Aim {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(aim) => Some(value >= aim),
            Self::AtMost(aim) => Some(value <= aim),
            Self::More | Self::Less => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(aim) => format!(">= {}", number(aim)),
            Self::AtMost(aim) => format!("<= {}", number(aim)),
            Self::More | Self::Less => String::new(),
        }
    }

    /// How many times worse `now` is than `before`.
    fn times_worse(self, now: f64, before: f64) -> f64 {
        match self {
            Self::AtLeast(_) | Self::More => before / now,
            Self::AtMost(_) | Self::Less => now / before,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) part: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    /// The median, where there are several.
    pub(crate) value: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) runs: usize,
    pub(crate) aim: Aim,
    /// Processors that other programs kept busy, and that the hypervisor took away, while the part ran.
    pub(crate) others: f64,
    pub(crate) stolen: f64,
    pub(crate) load_average: f64,
    pub(crate) made_under_load: bool,
}

/// Points of a plot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// All that is written to the JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// What each part was made on: date, machine, server.
    pub(crate) made: BTreeMap<String, String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) curves: BTreeMap<String, Vec<Curve>>,
    /// Where the time of a drain goes: lines of a table.
    pub(crate) profile: Vec<Vec<String>>,
    /// What the model of docs/scaling.md is fed with, and how well it did.
    #[serde(default)]
    pub(crate) scaling: Option<Scaling>,
}

impl Results {
    pub(crate) fn add(&mut self, part: &str, name: &str, unit: &str, samples: &[f64], aim: Aim) {
        self.add_value(part, name, unit, percentile_of(samples, 50), samples, aim);
    }

    /// A value that is not the median of its runs, such as a percentile of the samples of all of them.
    pub(crate) fn add_value(
        &mut self,
        part: &str,
        name: &str,
        unit: &str,
        value: f64,
        runs: &[f64],
        aim: Aim,
    ) {
        let figure = Figure {
            part: part.to_owned(),
            name: name.to_owned(),
            unit: unit.to_owned(),
            value,
            least: percentile_of(runs, 0),
            most: percentile_of(runs, 100),
            runs: runs.len(),
            aim,
            others: 0.0,
            stolen: 0.0,
            load_average: 0.0,
            made_under_load: false,
        };
        println!("  {name}: {}", figure.measured());
        self.figures.push(figure);
    }

    /// Says what the figures of a part were made beside and on.
    pub(crate) fn made(&mut self, part: &str, load: Load, on: &str) {
        for figure in self.figures.iter_mut().filter(|figure| figure.part == part) {
            let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
            (figure.others, figure.stolen) = (rounded(load.others), rounded(load.stolen));
            figure.load_average = load.average;
            figure.made_under_load = load.disturbs();
        }
        if part == "scaling"
            && let Some(scaling) = &mut self.scaling
        {
            // Its figures stand in a document of their own.
            (scaling.made, scaling.under_load) = (on.to_owned(), load.disturbs());
            return;
        }
        self.made.insert(part.to_owned(), on.to_owned());
    }

    /// Half of a part is no figure.
    pub(crate) fn forget(&mut self, part: &str) {
        self.figures.retain(|figure| figure.part != part);
    }

    /// The last that was committed; without git, what lies there.
    pub(crate) fn committed() -> Option<Self> {
        let shown = Command::new("git")
            .args(["show", &format!("HEAD:{JSON}")])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let text = match shown {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).ok()?,
            _ => std::fs::read_to_string(path()).ok()?,
        };
        serde_json::from_str(&text).ok()
    }

    /// Puts the parts that were made now in the place of those in the file, and leaves the others.
    pub(crate) fn write(&self, parts: &[&str]) -> Result<Self> {
        let mut all: Self = std::fs::read_to_string(path())
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        all.figures.retain(|figure| !self.made.contains_key(&figure.part));
        all.figures.extend(self.figures.iter().cloned());
        let place = |figure: &Figure| parts.iter().position(|part| *part == figure.part);
        all.figures.sort_by_key(place);
        all.made.extend(self.made.clone());
        for (plot, curves) in &self.curves {
            all.curves.insert(plot.clone(), curves.clone());
        }
        if !self.profile.is_empty() {
            all.profile.clone_from(&self.profile);
        }
        if self.scaling.is_some() {
            all.scaling.clone_from(&self.scaling);
        }
        if let Some(folder) = path().parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path(), serde_json::to_string_pretty(&all)? + "\n")
            .context("failed to write the JSON")?;
        println!("written to {}", path().display());
        Ok(all)
    }

    pub(crate) fn table(&self, before: Option<&Self>) -> String {
        let mut table = String::from("| part | figure | measured | aim | met |\n|---|---|---|---|---|\n");
        if before.is_some() {
            table = String::from(
                "| part | figure | measured | aim | met | against the committed |\n|---|---|---|---|---|---|\n",
            );
        }
        for figure in &self.figures {
            let met = match figure.aim.is_met(figure.value) {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let load = if figure.made_under_load { " (under load)" } else { "" };
            let _ = write!(
                table,
                "| {} | {} | {}{load} | {} | {met} |",
                figure.part,
                figure.name,
                figure.measured(),
                figure.aim.text()
            );
            if let Some(before) = before {
                let then = before
                    .figures
                    .iter()
                    .find(|then| (&then.part, &then.name) == (&figure.part, &figure.name));
                let _ = match then.map(|then| (figure.aim.times_worse(figure.value, then.value), then)) {
                    Some((worse, then)) => {
                        let mark = if worse > WORSE { " **WORSE**" } else { "" };
                        write!(table, " {:.2} x{mark} |", figure.value / then.value)
                    }
                    None => write!(table, " new |"),
                };
            }
            table.push('\n');
        }
        table
    }

    pub(crate) fn profile_table(&self) -> String {
        let mut table = String::new();
        for (n, line) in self.profile.iter().enumerate() {
            let _ = writeln!(table, "| {} |", line.join(" | "));
            if n == 0 {
                let _ = writeln!(table, "|{}", "---|".repeat(line.len()));
            }
        }
        table
    }
}

impl Figure {
    fn measured(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        if self.runs > 1 {
            format!(
                "{}{unit} ({} to {}, {} runs)",
                number(self.value),
                number(self.least),
                number(self.most),
                self.runs
            )
        } else {
            format!("{}{unit}", number(self.value))
        }
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(JSON)
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub(crate) fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

pub(crate) fn percentile_of(samples: &[f64], percent: usize) -> f64 {
    percentile(&sorted(samples), percent)
}

/// The ratios of what was measured in pairs, one beside the other.
pub(crate) fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
}
