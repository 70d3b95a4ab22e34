//! How much a database and its runners carry: arithmetic over measured costs.
//!
//! All times are microseconds of one processor unless the name says otherwise, all rates are jobs a second. Counts are
//! `f64` as well, because every one of them is the result of a division; where whole ones are needed they are rounded up.
//!
//! What it takes for granted, and what would have to be measured on larger machines: that a statement costs the same
//! on a server of many processors as on two, that sessions do not wait for each other, and that every runner of a
//! database gets the same share of its rows.

use serde::{Deserialize, Serialize};

/// `report` writes so many outcomes at once at most (`engine/report.rs`).
const REPORT_BATCH: f64 = 1000.0;
/// Two, so that one takes over what the other leaves behind.
const LEAST_RUNNERS: f64 = 2.0;

/// A statement over a batch of rows: so much for itself, so much for each row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct PerBatch {
    pub(crate) statement_us: f64,
    pub(crate) row_us: f64,
}

impl PerBatch {
    /// From what one row cost in batches of two sizes. Noise may make either part negative; it is 0 then.
    pub(crate) fn through((small, at_small): (f64, f64), (large, at_large): (f64, f64)) -> Self {
        let statement_us = ((at_small - at_large) / (1.0 / small - 1.0 / large)).max(0.0);
        Self { statement_us, row_us: (at_large - statement_us / large).max(0.0) }
    }

    /// A row's share in a batch of so many.
    pub(crate) fn a_row(self, batch: f64) -> f64 {
        self.statement_us / batch + self.row_us
    }

    /// How many rows a loop finds each time, if so many come in a second: those that came while it was busy with the
    /// ones before, because it looks again as soon as it is done; and no fewer than come at once.
    pub(crate) fn batch_at(self, rate: f64, flush_us: f64, at_once: f64, most: f64) -> f64 {
        let left = 1.0 - rate * self.row_us / 1e6;
        if left <= 0.0 {
            return most;
        }
        (rate * (self.statement_us + flush_us) / 1e6 / left).max(at_once).clamp(1.0, most)
    }
}

/// What was measured, on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// The server, for each row of an INSERT into `JobHistory`.
    pub(crate) insert: PerBatch,
    /// The server, for the session that looks for rows and claims them.
    pub(crate) claim: PerBatch,
    /// The server, for the session that writes outcomes.
    pub(crate) report: PerBatch,
    /// The server's other processes, for each job.
    pub(crate) background_us: f64,
    /// Moving a finished row to where it stays, for each job; 0 as long as rows stay where they are.
    pub(crate) archive_us: f64,
    /// The daemon, for each job that does nothing.
    pub(crate) runner_us: f64,
    /// The server, for each second of an idle runner: looks, pulses, pings.
    pub(crate) idle_server_us: f64,
    /// The daemon, for each idle second.
    pub(crate) idle_runner_us: f64,
    /// How long a commit waits for the disk.
    pub(crate) flush_us: f64,
    /// WAL of an INSERT, a row.
    pub(crate) insert_wal_bytes: f64,
    /// WAL of a claim and a settlement, a row.
    pub(crate) run_wal_bytes: f64,
    /// What a finished row with an empty payload takes on disk, with its place in all indexes.
    pub(crate) history_bytes: f64,
    /// Of the rate that the processors would allow, what one runner reached when everything was busy.
    pub(crate) efficiency: f64,
}

/// What it shall run on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Processors of a database server. One database a server.
    pub(crate) database_cores: f64,
    pub(crate) runner_cores: f64,
    pub(crate) flush_us: f64,
    pub(crate) wal_bytes_per_second: f64,
    /// Of one database server.
    pub(crate) disk_bytes: f64,
    /// That the database server takes.
    pub(crate) connections: f64,
    /// How busy processors, disk and workers may be at the peak.
    pub(crate) utilization: f64,
}

/// What shall run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mix {
    pub(crate) jobs_per_day: f64,
    /// The busiest second against the mean of the day.
    pub(crate) peak: f64,
    /// How long a job runs. It is taken to wait most of that time, not to compute.
    pub(crate) run_seconds: f64,
    /// Rows of one INSERT.
    pub(crate) insert_rows: f64,
    /// How long finished rows stay.
    pub(crate) retention_days: f64,
    /// `engine.claim_batch`.
    pub(crate) claim_batch: f64,
    /// `engine.workers`.
    pub(crate) workers: f64,
    /// Connections a runner takes at most: 10 and `database.max_connections`.
    pub(crate) runner_connections: f64,
    /// What payload, result and log lines of a job add to its row.
    pub(crate) payload_bytes: f64,
}

/// One database with its runners, at some rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cell {
    pub(crate) rate: f64,
    pub(crate) runners: f64,
    /// Rows of a claim on average.
    pub(crate) batch: f64,
    /// The server, for each job, idle costs of its runners included.
    pub(crate) server_us: f64,
    /// Processors of the server that are busy.
    pub(crate) cores: f64,
    pub(crate) wal_bytes_per_second: f64,
    pub(crate) connections: f64,
}

/// What one cell has no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Processors,
    Wal,
    Disk,
    Connections,
}

impl Bound {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Processors => "processors",
            Self::Wal => "WAL",
            Self::Disk => "disk",
            Self::Connections => "connections",
        }
    }
}

/// What a day's jobs need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Plan {
    pub(crate) peak_rate: f64,
    /// The most that one database takes at its peak.
    pub(crate) sustained: f64,
    pub(crate) databases: f64,
    /// Each of them at the peak.
    pub(crate) cell: Cell,
    pub(crate) runners: f64,
    pub(crate) wal_bytes_per_day: f64,
    /// Finished rows that are kept, of all databases.
    pub(crate) history_bytes: f64,
    /// What asks for more than one database, or would first.
    pub(crate) bound: Bound,
}

/// How many jobs a second one runner drains at most, if it has all the processors it can use.
pub(crate) fn runner_rate(costs: &Costs, flush_us: f64, cores: f64, batch: f64) -> f64 {
    let claim = costs.claim.a_row(batch) + flush_us / batch;
    let report_batch = batch.min(REPORT_BATCH);
    let report = costs.report.a_row(report_batch) + flush_us / report_batch;
    1e6 / claim.max(report).max(costs.runner_us / cores)
}

/// Of rows that wait already, on one machine that runners and databases share. Databases on the same processors add
/// nothing, so that only the runners of all of them count.
pub(crate) fn drain_rate(costs: &Costs, cores: f64, runners: f64, batch: f64) -> f64 {
    costs.efficiency * drain_bound(costs, cores, runners, batch)
}

/// The same if nothing ever waited for anything but processors and the disk.
pub(crate) fn drain_bound(costs: &Costs, cores: f64, runners: f64, batch: f64) -> f64 {
    let a_job = costs.claim.a_row(batch)
        + costs.report.a_row(batch.min(REPORT_BATCH))
        + costs.background_us
        + costs.archive_us
        + costs.runner_us;
    (runners * runner_rate(costs, costs.flush_us, cores, batch)).min(cores * 1e6 / a_job)
}

/// One database at this rate, with as many runners as that needs.
pub(crate) fn cell(costs: &Costs, machine: &Machine, mix: &Mix, rate: f64) -> Cell {
    let busy = machine.utilization;
    let drained =
        costs.efficiency * runner_rate(costs, machine.flush_us, machine.runner_cores, mix.claim_batch);
    let computing = (rate * costs.runner_us / 1e6) / (machine.runner_cores * busy);
    let runners = (rate * mix.run_seconds / (mix.workers * busy))
        .max(rate / (drained * busy))
        .max(computing)
        .ceil()
        .max(LEAST_RUNNERS);
    let each = rate / runners;
    let batch = costs.claim.batch_at(each, machine.flush_us, mix.insert_rows, mix.claim_batch);
    // Jobs that were claimed together do not end together.
    let reported = costs.report.batch_at(each, machine.flush_us, 1.0, REPORT_BATCH);
    let a_job = costs.insert.a_row(mix.insert_rows)
        + costs.claim.a_row(batch)
        + costs.report.a_row(reported)
        + costs.background_us
        + costs.archive_us;
    let cores = (rate * a_job + runners * costs.idle_server_us) / 1e6;
    Cell {
        rate,
        runners,
        batch,
        server_us: if rate > 0.0 { cores * 1e6 / rate } else { 0.0 },
        cores,
        wal_bytes_per_second: rate * wal_bytes(costs, mix),
        connections: runners * mix.runner_connections,
    }
}

/// What a payload adds is counted once: an UPDATE on the same page leaves out of WAL what did not change.
fn wal_bytes(costs: &Costs, mix: &Mix) -> f64 {
    costs.insert_wal_bytes + costs.run_wal_bytes + mix.payload_bytes
}

/// What the cell has too little of, if anything.
pub(crate) fn exceeds(cell: &Cell, machine: &Machine) -> Option<Bound> {
    if cell.cores > machine.database_cores * machine.utilization {
        Some(Bound::Processors)
    } else if cell.wal_bytes_per_second > machine.wal_bytes_per_second * machine.utilization {
        Some(Bound::Wal)
    } else if cell.connections > machine.connections {
        Some(Bound::Connections)
    } else {
        None
    }
}

/// The highest rate one database takes, and what ends it. Everything grows with the rate, so it is found by halving.
pub(crate) fn sustained(costs: &Costs, machine: &Machine, mix: &Mix) -> (f64, Bound) {
    let (mut fits, mut too_much, mut bound) = (0.0, 1.0, Bound::Processors);
    while exceeds(&cell(costs, machine, mix, too_much), machine).is_none() && too_much < 1e12 {
        too_much *= 2.0;
    }
    for _ in 0..60 {
        let middle = f64::midpoint(fits, too_much);
        match exceeds(&cell(costs, machine, mix, middle), machine) {
            None => fits = middle,
            Some(why) => (too_much, bound) = (middle, why),
        }
    }
    (fits, bound)
}

pub(crate) fn plan(costs: &Costs, machine: &Machine, mix: &Mix) -> Plan {
    let peak_rate = mix.jobs_per_day / 86_400.0 * mix.peak;
    let (sustained, bound) = sustained(costs, machine, mix);
    let kept = mix.jobs_per_day * mix.retention_days * (costs.history_bytes + mix.payload_bytes);
    let by_rate = (peak_rate / sustained).ceil().max(1.0);
    let by_disk = (kept / (machine.disk_bytes * machine.utilization)).ceil().max(1.0);
    let databases = by_rate.max(by_disk);
    let cell = cell(costs, machine, mix, peak_rate / databases);
    // Which of the two is nearer to asking for another database.
    let disk_first = kept / (machine.disk_bytes * machine.utilization) > peak_rate / sustained;
    Plan {
        peak_rate,
        sustained,
        databases,
        cell,
        runners: cell.runners * databases,
        wal_bytes_per_day: mix.jobs_per_day * wal_bytes(costs, mix),
        history_bytes: kept,
        bound: if disk_first { Bound::Disk } else { bound },
    }
}
