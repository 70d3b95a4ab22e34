//! How the daemon is: set by the engine, read by the health pages, the metrics and systemd.
//!
//! A loop calls [`Vitals::progress`] each time round, also while it waits out an outage of the database:
//! health means that the loops turn, not that the world around them is well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counter: rows claimed.
pub const JOBS_CLAIMED: &str = "rosterd_jobs_claimed_total";
/// Counter: runs that ended, by label `status` (see [`FINISHED_STATUSES`]).
pub const JOBS_FINISHED: &str = "rosterd_jobs_finished_total";
/// Gauge: jobs in progress.
pub const JOBS_RUNNING: &str = "rosterd_jobs_running";
/// Gauge: alive tokio tasks.
pub const TASKS_ALIVE: &str = "rosterd_tasks_alive";
/// Histogram: seconds one claim statement took.
pub const CLAIM_SECONDS: &str = "rosterd_claim_seconds";
/// Histogram: seconds from when a row was due to when its job started.
pub const START_LATENCY_SECONDS: &str = "rosterd_start_latency_seconds";
/// Counter: log lines of jobs that never reached the table.
pub const LOG_LINES_DROPPED: &str = "rosterd_log_lines_dropped_total";
/// Counter: log lines that stdout did not take.
pub const LOG_LINES_UNWRITTEN: &str = "rosterd_log_lines_unwritten_total";
/// Gauge: 1 while the database answers.
pub const DATABASE_UP: &str = "rosterd_database_up";
/// Sources that are paused or that a runner waits for, as counted at the last sweep.
pub const SOURCES_LIMITED: &str = "rosterd_sources_limited";
/// The values of the label `status`; the pages show each from the start, at zero.
pub const FINISHED_STATUSES: &[&str] = &["completed", "error", "canceled", "retried"];

/// How the daemon is. Shared as `Arc<Vitals>`; every method takes `&self` and none waits.
#[derive(Debug)]
pub struct Vitals {
    ready: AtomicBool,
    database_up: AtomicBool,
    running: AtomicUsize,
    waiting: AtomicUsize,
    limited: AtomicUsize,
    tasks: AtomicUsize,
    loops: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self::new()
    }
}

impl Vitals {
    /// Not ready, nothing running, database not seen yet. Start-up counts as a loop named `start` until
    /// the first real one reports, so that a start that hangs is unhealthy too.
    pub fn new() -> Self {
        Self {
            ready: AtomicBool::new(false),
            database_up: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            limited: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            loops: Mutex::new(BTreeMap::from([(START, Instant::now())])),
        }
    }

    /// The loop `name` has gone round once more.
    pub fn progress(&self, name: &'static str) {
        self.progress_at(name, Instant::now());
    }

    /// A rest of the loop `name`. Settings may make it longer than a loop may be silent, so it is taken in pieces.
    pub async fn rest(&self, name: &'static str, time: Duration) {
        const PIECE: Duration = Duration::from_secs(10);
        let mut left = time;
        while left > PIECE {
            tokio::time::sleep(PIECE).await;
            self.progress(name);
            left -= PIECE;
        }
        tokio::time::sleep(left).await;
    }

    /// The loop `name` has ended as it should and is expected no more.
    pub fn retire(&self, name: &'static str) {
        self.loops().remove(name);
    }

    /// Whether every loop has gone round within this time.
    pub fn healthy(&self, within: Duration) -> bool {
        self.stuck(within).is_empty()
    }

    /// The loops that have not gone round within this time, and for how long.
    pub fn stuck(&self, within: Duration) -> Vec<(&'static str, Duration)> {
        let since = |(name, at): (&&'static str, &Instant)| (*name, at.elapsed());
        self.loops().iter().map(since).filter(|(_, silent)| *silent > within).collect()
    }

    /// Whether the daemon claims; false before the first claim and while it drains.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Says whether the daemon claims.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the database answered when it was last asked.
    pub fn database_up(&self) -> bool {
        self.database_up.load(Ordering::Relaxed)
    }

    /// Says whether the database answered.
    pub fn set_database_up(&self, up: bool) {
        self.database_up.store(up, Ordering::Relaxed);
    }

    /// Jobs in progress here.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Says how many jobs are in progress here.
    pub fn set_running(&self, jobs: usize) {
        self.running.store(jobs, Ordering::Relaxed);
    }

    /// Rows that wait, as last counted.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Says how many rows wait.
    pub fn set_waiting(&self, rows: usize) {
        self.waiting.store(rows, Ordering::Relaxed);
    }

    /// Sources that are paused or at their limit, as last counted.
    pub fn limited(&self) -> usize {
        self.limited.load(Ordering::Relaxed)
    }

    /// Says how many sources are paused or at their limit.
    pub fn set_limited(&self, sources: usize) {
        self.limited.store(sources, Ordering::Relaxed);
    }

    /// Alive tokio tasks, as last counted.
    pub fn tasks(&self) -> usize {
        self.tasks.load(Ordering::Relaxed)
    }

    /// Says how many tokio tasks are alive.
    pub fn set_tasks(&self, tasks: usize) {
        self.tasks.store(tasks, Ordering::Relaxed);
    }

    /// Counts a claim: how many rows it brought and how long it took.
    pub fn claimed(&self, rows: usize, took: Duration) {
        metrics::counter!(JOBS_CLAIMED).increment(rows as u64);
        metrics::histogram!(CLAIM_SECONDS).record(took);
    }

    /// Counts the start of a job, `latency` after it was due.
    pub fn started(&self, latency: Duration) {
        metrics::histogram!(START_LATENCY_SECONDS).record(latency);
    }

    /// Counts the end of a run; `status` is one of [`FINISHED_STATUSES`].
    pub fn finished(&self, status: &'static str) {
        metrics::counter!(JOBS_FINISHED, "status" => status).increment(1);
    }

    /// One line for `systemctl status` (`STATUS=`).
    pub fn status(&self) -> String {
        let state = if self.ready() { "claiming" } else { "not claiming" };
        let mut line = format!(
            "{state}: {} running, {} waiting, {} limited, {} tasks",
            self.running(),
            self.waiting(),
            self.limited(),
            self.tasks()
        );
        if !self.database_up() {
            // A String takes every write.
            let _ = write!(line, "; the database does not answer");
        }
        line
    }

    pub(crate) fn progress_at(&self, name: &'static str, at: Instant) {
        let mut loops = self.loops();
        loops.remove(START);
        loops.insert(name, at);
    }

    fn loops(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const START: &str = "start";

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    fn long_ago() -> Instant {
        Instant::now().checked_sub(2 * WITHIN).unwrap()
    }

    #[test]
    fn one_loop_that_stands_still_makes_it_unhealthy_and_is_named() {
        let vitals = Vitals::new();
        vitals.progress("claim");
        vitals.progress_at("schedule", long_ago());
        assert!(!vitals.healthy(WITHIN));
        assert_eq!(vitals.stuck(WITHIN)[0].0, "schedule");
        vitals.progress("schedule");
        assert!(vitals.healthy(WITHIN));
    }

    #[test]
    fn a_loop_that_ended_as_it_should_is_not_missed() {
        let vitals = Vitals::new();
        vitals.progress_at("connect", long_ago());
        vitals.retire("connect");
        assert!(vitals.healthy(WITHIN));
    }

    #[test]
    fn a_start_that_hangs_is_unhealthy() {
        let vitals = Vitals::new();
        assert!(vitals.healthy(WITHIN));
        assert!(!vitals.healthy(Duration::ZERO));
    }

    #[test]
    fn an_outage_of_the_database_is_told_but_is_not_ill_health() {
        let vitals = Vitals::new();
        vitals.progress("claim");
        vitals.set_ready(true);
        vitals.set_running(3);
        vitals.set_database_up(false);
        assert!(vitals.healthy(WITHIN));
        let told = "claiming: 3 running, 0 waiting, 0 limited, 0 tasks; the database does not answer";
        assert_eq!(vitals.status(), told);
    }
}
