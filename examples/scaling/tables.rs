//! The tables of docs/scaling.md, from what was measured.

use crate::model::{Costs, Machine, Mix, PerBatch, plan};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::PathBuf;

/// The part `scaling` of benches/results/daemon.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scaling {
    /// Date, server and machine in a sentence.
    pub(crate) made: String,
    /// Whether other programs were busy meanwhile.
    pub(crate) under_load: bool,
    pub(crate) cores: f64,
    pub(crate) costs: Costs,
    pub(crate) checks: Vec<Check>,
}

/// What the model said before it was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) unit: String,
    pub(crate) predicted: f64,
    pub(crate) measured: f64,
}

impl Check {
    /// Above 0: the model promised too much of whatever it is.
    pub(crate) fn error_percent(&self) -> f64 {
        (self.predicted / self.measured - 1.0) * 100.0
    }
}

/// An example, not a recommendation: everything the model has to be told about a server.
pub(crate) const MACHINE: Machine = Machine {
    database_cores: 16.0,
    runner_cores: 4.0,
    flush_us: 500.0,
    wal_bytes_per_second: 300e6,
    disk_bytes: 8e12,
    connections: 500.0,
    utilization: 0.6,
};

/// Jobs that wait for something else for a second, inserted in hundreds, kept for a month.
pub(crate) const MIX: Mix = Mix {
    jobs_per_day: 1e6,
    peak: 3.0,
    run_seconds: 1.0,
    insert_rows: 100.0,
    retention_days: 30.0,
    claim_batch: 500.0,
    workers: 1000.0,
    runner_connections: 20.0,
    payload_bytes: 300.0,
};

pub(crate) fn section(scaling: &Scaling, machine: &Machine, mix: &Mix) -> String {
    let mut text = format!("{}{}.\n\n", scaling.made, if scaling.under_load { " (under load)" } else { "" });
    text += &costs_table(&scaling.costs);
    text += "\nThe model against the machine it was measured on:\n\n";
    text += &checks_table(&scaling.checks);
    let _ = writeln!(
        text,
        "\nWhat it predicts for database servers with {} processors, {} TB of disk, {} connections, a commit in {} us \
         and {} MB/s of WAL, and runners with {} processors, all of it at most {:.0} % busy at the peak. The jobs wait \
         for {} s each, {} at a time (`engine.workers`) in a runner, come in INSERTs of {} rows, {} times as many in the \
         busiest second as on average, bring {} bytes of payload, result and log, and stay {} days:\n",
        machine.database_cores,
        machine.disk_bytes / 1e12,
        machine.connections,
        machine.flush_us,
        machine.wal_bytes_per_second / 1e6,
        machine.runner_cores,
        machine.utilization * 100.0,
        mix.run_seconds,
        mix.workers,
        mix.insert_rows,
        mix.peak,
        mix.payload_bytes,
        mix.retention_days,
    );
    text += &plan_table(&scaling.costs, machine, mix);
    let long = Mix { workers: mix.workers * 10.0, ..*mix };
    let _ = writeln!(text, "\nThe same with `engine.workers` = {}:\n", long.workers);
    text + &plan_table(&scaling.costs, machine, &long)
}

fn costs_table(costs: &Costs) -> String {
    let line =
        |part: PerBatch| format!("{:.0} us a statement + {:.1} us a row", part.statement_us, part.row_us);
    format!(
        "| cost | measured |\n|---|---|\n\
         | server: INSERT | {} |\n\
         | server: look and claim | {} |\n\
         | server: report | {} |\n\
         | server: its other processes | {:.1} us a job |\n\
         | server: an idle runner | {:.0} us each second |\n\
         | daemon | {:.1} us a job, {:.0} us each idle second |\n\
         | a commit waits for the disk | {:.0} us |\n\
         | WAL | {:.0} bytes a row for the INSERT, {:.0} for claim and report |\n\
         | a finished row with its indexes, empty payload | {:.0} bytes |\n\
         | of the rate the processors would allow, one runner reached | {:.0} % |\n",
        line(costs.insert),
        line(costs.claim),
        line(costs.report),
        costs.background_us,
        costs.idle_server_us,
        costs.runner_us,
        costs.idle_runner_us,
        costs.flush_us,
        costs.insert_wal_bytes,
        costs.run_wal_bytes,
        costs.history_bytes,
        costs.efficiency * 100.0,
    )
}

fn checks_table(checks: &[Check]) -> String {
    let mut text = "| tried | predicted | measured | error |\n|---|---|---|---|\n".to_owned();
    for check in checks {
        let _ = writeln!(
            text,
            "| {} | {:.0} {unit} | {:.0} {unit} | {:+.0} % |",
            check.what,
            check.predicted,
            check.measured,
            check.error_percent(),
            unit = check.unit,
        );
    }
    text
}

fn plan_table(costs: &Costs, machine: &Machine, mix: &Mix) -> String {
    let mut text = "| jobs a day | at the peak | one database takes | ends at | databases x runners | connections each \
                    | rows a claim | server us a job | WAL a day | history kept |\n|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for exponent in 6..=10 {
        let jobs_per_day = 10_f64.powi(exponent);
        let plan = plan(costs, machine, &Mix { jobs_per_day, ..*mix });
        let _ = writeln!(
            text,
            "| 10^{exponent} | {:.0} /s | {:.0} /s | {} | {:.0} x {:.0} = {:.0} | {:.0} | {:.0} | {:.0} | {} | {} |",
            plan.peak_rate,
            plan.sustained,
            plan.bound.text(),
            plan.databases,
            plan.cell.runners,
            plan.runners,
            plan.cell.connections,
            plan.cell.batch,
            plan.cell.server_us,
            bytes(plan.wal_bytes_per_day),
            bytes(plan.history_bytes),
        );
    }
    text
}

pub(crate) fn bytes(count: f64) -> String {
    match count {
        count if count >= 1e12 => format!("{:.1} TB", count / 1e12),
        count if count >= 1e9 => format!("{:.1} GB", count / 1e9),
        count => format!("{:.0} MB", count / 1e6),
    }
}

/// Puts the section between the marks of docs/scaling.md.
pub(crate) fn write(section: &str) -> std::io::Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/scaling.md");
    let old = std::fs::read_to_string(&path)?;
    let new = between_marks(&old, section)
        .ok_or_else(|| std::io::Error::other("the marks are missing in docs/scaling.md"))?;
    std::fs::write(&path, new)?;
    Ok(path)
}

pub(crate) fn between_marks(old: &str, section: &str) -> Option<String> {
    let (begin, end) = ("<!-- scaling: begin -->\n", "<!-- scaling: end -->");
    let (head, rest) = old.split_once(begin)?;
    let (_, tail) = rest.split_once(end)?;
    Some(format!("{head}{begin}{}\n{end}{tail}", section.trim_end()))
}
