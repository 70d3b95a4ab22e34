//! What a run came to: figures, violations, and the times of recovery.

use crate::clock::{Nanos, seconds};
use crate::daemons::Usage;
use crate::history::History;
use crate::invariants::{Findings, Violation};
use crate::nemesis::Fault;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Of many times.
#[derive(Debug, Default, Serialize)]
pub struct Times {
    pub count: usize,
    pub p50_seconds: f64,
    pub p99_seconds: f64,
    pub max_seconds: f64,
}

impl Times {
    fn of(mut all: Vec<Nanos>) -> Self {
        all.sort_unstable();
        let at = |share: f64| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index of a short list"
            )]
            let index = ((all.len() as f64 - 1.0) * share).round() as usize;
            all.get(index).map_or(0.0, |nanos| (seconds(*nanos) * 1000.0).round() / 1000.0)
        };
        Self { count: all.len(), p50_seconds: at(0.5), p99_seconds: at(0.99), max_seconds: at(1.0) }
    }
}

/// The report.
#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: u64,
    pub daemons: usize,
    pub faults: BTreeMap<String, usize>,
    pub faults_total: usize,
    pub stalls_of_this_machine: usize,
    pub rows: usize,
    pub runs: usize,
    pub effects: usize,
    pub changes: usize,
    pub calls: usize,
    pub operations: usize,
    pub unknown_answers: usize,
    pub cancels_acknowledged: usize,
    pub final_states: BTreeMap<String, usize>,
    pub violations: Vec<Violation>,
    pub slack: BTreeMap<&'static str, usize>,
    pub decided: BTreeMap<&'static str, usize>,
    /// From kill -9 to the row being in progress elsewhere, or at its end.
    pub rows_after_kill: Times,
    pub rows_after_partition: Times,
    /// From the server's first answer to the first claim.
    pub first_claim_after_restart: Times,
    pub cancel_of_running_rows: Times,
    pub cancel_without_faults: Times,
    pub schedule_lateness_without_faults: Times,
    pub drained_in_seconds: f64,
    pub usage: Vec<Usage>,
}

impl Report {
    pub fn new(
        seed: u64,
        secs: u64,
        history: &History,
        findings: Findings,
        drained: f64,
        usage: Vec<Usage>,
    ) -> Self {
        let mut faults = BTreeMap::new();
        for fault in history.faults.iter().filter(|fault| fault.fault != Fault::Stall) {
            *faults.entry(fault.fault.name()).or_default() += 1;
        }
        let mut final_states = BTreeMap::new();
        for status in history.table.values() {
            *final_states.entry(status.to_string()).or_default() += 1;
        }
        let unknown =
            |operation: &&crate::recorder::Operation| operation.answer == crate::recorder::Answer::Unknown;
        let changes = history.trails.values().flatten();
        Self {
            seed,
            seconds: secs,
            daemons: usage.len(),
            faults_total: faults.values().sum(),
            faults,
            stalls_of_this_machine: history.faults.iter().filter(|fault| fault.fault == Fault::Stall).count(),
            rows: history.table.len(),
            runs: history.runs.values().map(Vec::len).sum(),
            effects: history.runs.values().flatten().map(|run| run.effects.len()).sum(),
            changes: changes.clone().count(),
            calls: history.arrivals.len(),
            operations: history.operations.len(),
            unknown_answers: history.operations.iter().filter(unknown).count(),
            cancels_acknowledged: changes.filter(|change| change.is(2, -1) || change.is(1, 5)).count(),
            final_states,
            violations: findings.violations,
            slack: findings.slack,
            decided: findings.decided,
            rows_after_kill: Times::of(rows_after(history, Fault::KillDaemon)),
            rows_after_partition: Times::of(rows_after(history, Fault::LinkDown)),
            first_claim_after_restart: Times::of(claims_after_restart(history)),
            cancel_of_running_rows: Times::of(findings.cancels),
            cancel_without_faults: Times::of(findings.calm_cancels),
            schedule_lateness_without_faults: Times::of(findings.lateness),
            drained_in_seconds: drained,
            usage,
        }
    }

    /// For people.
    pub fn print(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "seed {} · {} s · {} daemons · {} faults · {} rows · {} runs · {} effects · {} calls · {} cancels · {} statements ({} with unknown answer)",
            self.seed,
            self.seconds,
            self.daemons,
            self.faults_total,
            self.rows,
            self.runs,
            self.effects,
            self.calls,
            self.cancels_acknowledged,
            self.operations,
            self.unknown_answers
        );
        let _ = writeln!(
            text,
            "faults: {:?}; this machine stood still {} times",
            self.faults, self.stalls_of_this_machine
        );
        let _ = writeln!(text, "rows by status: {:?}; decided: {:?}", self.final_states, self.decided);
        for (what, times) in [
            ("rows of a killed daemon run elsewhere after", &self.rows_after_kill),
            ("rows of a cut-off daemon run elsewhere after", &self.rows_after_partition),
            ("first claim after PostgreSQL is back", &self.first_claim_after_restart),
            ("cancel of a running row, faults or not", &self.cancel_of_running_rows),
            ("cancel of a running row, no fault near", &self.cancel_without_faults),
            ("schedule lateness, no fault near", &self.schedule_lateness_without_faults),
        ] {
            let Times { count, p50_seconds, p99_seconds, max_seconds } = times;
            let _ = writeln!(
                text,
                "{what}: p50 {p50_seconds:.3} s, p99 {p99_seconds:.3} s, max {max_seconds:.3} s ({count})"
            );
        }
        let _ = writeln!(
            text,
            "everything final {:.1} s after the last fault; {:?}",
            self.drained_in_seconds, self.usage
        );
        let _ = writeln!(text, "within tolerances: {:?}", self.slack);
        for violation in self.violations.iter().take(40) {
            let _ = writeln!(text, "VIOLATION {}: {}", violation.invariant, violation.sentence);
        }
        let _ = writeln!(text, "violations: {}", self.violations.len());
        text
    }
}

/// For each row a struck daemon lost: from the fault to its next claim, or its end. What began later because other faults
/// followed is in it, too.
fn rows_after(history: &History, kind: Fault) -> Vec<Nanos> {
    let mut times = Vec::new();
    for trail in history.trails.values() {
        // After a second crash a row waits ten seconds on purpose.
        let rescues =
            trail.iter().enumerate().filter(|(_, change)| change.is_rescue() && change.old_crashes == 0);
        for (at, change) in rescues {
            let Some((_, daemon)) = change.old_thread.and_then(|runner| history.daemon_of_runner(runner))
            else {
                continue;
            };
            let fault = history.faults.iter().rev().find(|fault| {
                fault.daemon == Some(daemon) && fault.from < change.at && fault.fault != Fault::Stall
            });
            let Some(fault) = fault.filter(|fault| fault.fault == kind) else { continue };
            let next = trail[at..].iter().find(|later| later.is_claim() || !matches!(later.status, Some(1)));
            if let Some(next) = next {
                times.push(next.at - fault.from);
            }
        }
    }
    times
}

fn claims_after_restart(history: &History) -> Vec<Nanos> {
    let kinds = [Fault::PostgresFast, Fault::PostgresImmediate, Fault::PostgresKill, Fault::PostgresOutage];
    let claims: Vec<Nanos> = history
        .changes_by_time()
        .into_iter()
        .filter(|change| change.is_claim())
        .map(|change| change.at)
        .collect();
    let back =
        history.faults.iter().filter(|fault| kinds.contains(&fault.fault)).filter_map(|fault| fault.to);
    back.filter_map(|back| {
        let at = claims.partition_point(|claim| *claim < back);
        claims.get(at).map(|claim| claim - back)
    })
    .collect()
}
