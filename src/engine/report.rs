//! Outcome -> status, written once, in batches, logged once. [`FinishedJob`] ends here.
//!
//! A batch that finds the database away is kept and written when it is back; the fence makes a repeated write
//! harmless. A run that cannot be written because its row belongs to somebody else is dropped with a warning.

use super::execute::FinishedJob;
use super::link::Link;
use super::state::EngineState;
use crate::history::{Fence, HistoryId, Settlement, Status, Verdict, lookup, moves};
use crate::postgres::connect::{self, Backoff, DatabaseError};
use crate::seeded_bugs::{self, Bug};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Most runs written by one statement.
const BATCH: usize = 1000;
/// `JobConfig.LastJobStart` of a busy configuration is written about this often.
const LAST_START_EVERY: Duration = Duration::from_millis(250);
/// How soon a row that somebody holds locked is tried again.
const LOCKED_RETRY: Duration = Duration::from_millis(50);

/// Reports until `stop`, and then whatever was handed over before. (It cannot wait for the senders to be gone:
/// an abandoned job's thread may hold one for ever.)
pub(crate) async fn run(
    state: Arc<EngineState>,
    mut finished: UnboundedReceiver<FinishedJob>,
    stop: CancellationToken,
) {
    let mut link = Link::new(&state, "report");
    let mut backoff = Backoff::new(Duration::from_secs(1));
    let mut batch: Vec<FinishedJob> = Vec::new();
    let mut starts = LastStarts::default();
    let mut open = true;
    let mut wait: Option<Duration> = None;
    while open || !batch.is_empty() || !starts.newest.is_empty() {
        state.vitals.progress("report");
        let now = Instant::now();
        let wake_at = match (wait, starts.flush_at) {
            (Some(wait), _) => now + wait,
            (None, Some(at)) => at,
            (None, None) => now + state.settings.engine.heartbeat().min(super::IDLE_LOOK),
        };
        tokio::select! {
            more = finished.recv_many(&mut batch, BATCH), if open && batch.len() < BATCH => open = more > 0,
            () = tokio::time::sleep_until(wake_at) => {}
            () = stop.cancelled(), if !finished.is_closed() => finished.close(),
        }
        // What is ready now goes into the same statement.
        while batch.len() < BATCH
            && let Ok(job) = finished.try_recv()
        {
            batch.push(job);
        }
        wait = match write(&state, &mut link, &mut batch, &mut starts, !open).await {
            Ok(all) => {
                backoff.reset();
                if all { None } else { Some(LOCKED_RETRY) }
            }
            Err(error) => {
                state.database_trouble("report", &error, &mut link);
                if seeded_bugs::is(Bug::OutcomesDropped) {
                    batch.clear();
                }
                Some(backoff.next_wait())
            }
        };
    }
}

/// Writes what it can; what stays in `batch` is tried again. Returns whether nothing stayed.
async fn write(
    state: &EngineState,
    link: &mut Link,
    batch: &mut Vec<FinishedJob>,
    starts: &mut LastStarts,
    closing: bool,
) -> Result<bool, DatabaseError> {
    // Their own transactions have written these.
    for job in batch.extract_if(.., |job| job.settled.is_some()) {
        if let Some(row) = job.settled
            && account(state, starts, &job, &row)
        {
            state.hints.wake.notify_one();
        }
    }
    // One statement a claimant: after a re-registration two may be in a batch.
    let claimants: BTreeSet<Uuid> = batch.iter().map(|job| job.run.runner).collect();
    for runner in claimants {
        let settlements: Vec<Settlement> =
            batch.iter().filter(|job| job.run.runner == runner).map(|job| job.settlement.clone()).collect();
        let db = link.get().await?;
        let retry_max = state.settings.engine.retry_max_seconds;
        let settled = match state.within(moves::settle(&mut *db, runner, &settlements, retry_max)).await {
            Err(DatabaseError::Sql(error)) if is_about_the_rows(&error) => {
                settle_one_by_one(state, db, runner, &settlements).await?
            }
            Err(error) if connect::is_locked(&error) => {
                settle_claim_by_claim(state, db, runner, &settlements).await?
            }
            settled => settled?,
        };
        state.database_fine();
        let by_id: HashMap<HistoryId, moves::Settled> =
            settled.into_iter().map(|row| (row.id, row)).collect();
        let mut left = Vec::new();
        let mut wake = false;
        for job in std::mem::take(batch) {
            match by_id.get(&job.settlement.fence.id).filter(|_| job.run.runner == runner) {
                Some(row) => wake |= account(state, starts, &job, row),
                None => left.push(job),
            }
        }
        if wake {
            state.hints.wake.notify_one();
        }
        // Before anything else is asked: whatever fails now, they are written later.
        *batch = left;
        let missing: Vec<Fence> =
            batch.iter().filter(|job| job.run.runner == runner).map(|job| job.settlement.fence).collect();
        if !missing.is_empty() {
            drop_lost(state, db, runner, &missing, batch).await?;
        }
    }
    if starts.is_due() || closing {
        starts.write(state, link.get().await?).await?;
    }
    Ok(batch.is_empty())
}

/// Tells everybody who keeps count. Returns whether something may start now that could not before.
fn account(state: &EngineState, starts: &mut LastStarts, job: &FinishedJob, row: &moves::Settled) -> bool {
    starts.note(job, row);
    log(job, row);
    state.vitals.finished(match row.status {
        Status::Completed => "completed",
        Status::Canceled => "canceled",
        Status::Pending if job.settlement.error.is_none() => "completed",
        Status::Pending => "retried",
        Status::Error | Status::Cancel | Status::InProgress => "error",
    });
    job.limited || row.status == Status::Pending
}

/// Whether the database refused what was to be written, so that trying the same again cannot help: data it cannot
/// take (22), a broken rule (23), or a limit of the server (54).
fn is_about_the_rows(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

/// A claim's own row is held by a job whose transaction completes one of its rows and is not committed yet: the
/// others of that claim wait, and no other claim does.
async fn settle_claim_by_claim(
    state: &EngineState,
    db: &mut PgConnection,
    runner: Uuid,
    settlements: &[Settlement],
) -> Result<Vec<moves::Settled>, DatabaseError> {
    let retry_max = state.settings.engine.retry_max_seconds;
    let mut by_claim: BTreeMap<i64, Vec<Settlement>> = BTreeMap::new();
    for settlement in settlements {
        by_claim.entry(settlement.fence.claim).or_default().push(settlement.clone());
    }
    let mut settled = Vec::new();
    for of_claim in by_claim.values() {
        match state.within(moves::settle(&mut *db, runner, of_claim, retry_max)).await {
            Err(error) if connect::is_locked(&error) => {}
            some => settled.extend(some?),
        }
    }
    Ok(settled)
}

/// One outcome the database cannot take must not hold up the others: it ends its row as an error that says so.
async fn settle_one_by_one(
    state: &EngineState,
    db: &mut PgConnection,
    runner: Uuid,
    settlements: &[Settlement],
) -> Result<Vec<moves::Settled>, DatabaseError> {
    let retry_max = state.settings.engine.retry_max_seconds;
    let mut settled = Vec::new();
    for one in settlements {
        let one = std::slice::from_ref(one);
        let outcome = state.within(moves::settle(&mut *db, runner, one, retry_max)).await;
        settled.extend(match outcome {
            Err(DatabaseError::Sql(error)) if is_about_the_rows(&error) => {
                tracing::error!("Job Runner: the outcome of {} cannot be stored: {error}", one[0].fence.id);
                let plain = Settlement {
                    verdict: if one[0].verdict == Verdict::PutBack {
                        Verdict::PutBack
                    } else {
                        Verdict::FailedForGood
                    },
                    error: Some(format!("its outcome could not be stored: {error}")),
                    result: None,
                    progress: None,
                    ..one[0].clone()
                };
                let plain = std::slice::from_ref(&plain);
                state.within(moves::settle(&mut *db, runner, plain, retry_max)).await?
            }
            outcome => outcome?,
        });
    }
    Ok(settled)
}

/// Of the runs that were not written, drops those whose rows are not ours any more; the others are held
/// locked by another session and are tried again.
async fn drop_lost(
    state: &EngineState,
    db: &mut PgConnection,
    runner: Uuid,
    missing: &[Fence],
    left: &mut Vec<FinishedJob>,
) -> Result<(), DatabaseError> {
    let owned = state.within(lookup::still_owned(&mut *db, runner, missing)).await?;
    for fence in missing.iter().filter(|fence| !owned.contains(&fence.id)) {
        let Some(at) = left.iter().position(|job| job.settlement.fence == *fence) else { continue };
        let job = left.swap_remove(at);
        // Our own statement may have been carried out although its answer was lost.
        let ours = state.within(lookup::settled_by(&mut *db, runner, *fence)).await?;
        job.run.span.in_scope(|| {
            if let Some(status) = ours {
                tracing::debug!("Job ended as {status} before the connection was lost");
            } else {
                tracing::warn!("Job's row belongs to another run now; this run's outcome is dropped");
            }
        });
    }
    Ok(())
}

/// One line a run, where it is handled. What succeeds is told at DEBUG: a busy runner ends thousands a second.
fn log(job: &FinishedJob, row: &moves::Settled) {
    let error = job.settlement.error.as_deref();
    let took = job.began.elapsed();
    job.run.span.in_scope(|| match row.status {
        Status::Completed => tracing::debug!("Job completed successfully in {took:.3?}"),
        Status::Canceled => {
            let reason = job.settlement.stop_reason.map_or("stopped", crate::history::StopReason::as_str);
            tracing::info!("Job cancelled ({reason})");
        }
        Status::Pending => match (error, job.settlement.verdict) {
            (Some(error), Verdict::Interrupted) if row.due_seconds <= 2.0 => {
                tracing::warn!("Attempt interrupted and not counted: {error}");
            }
            (_, Verdict::PutBack) => tracing::info!("Job put back on the queue, because the runner stops"),
            (Some(error), _) if row.waits => {
                tracing::warn!("Iteration failed: {error}; Sleeping for {:.0} seconds", row.due_seconds);
            }
            (Some(error), _) => {
                tracing::warn!("Attempt failed: {error}; next attempt in {:.1} seconds", row.due_seconds);
            }
            (None, _) => tracing::debug!("Sleeping for {:.0} seconds", row.due_seconds),
        },
        Status::Error | Status::Cancel | Status::InProgress => {
            tracing::error!("Job failed: {}", error.unwrap_or("no reason was given"));
        }
    });
}

/// `JobConfig.LastJobStart` of what succeeded, gathered so that a busy configuration is not rewritten for
/// every run. A runner that dies between leaves an older date, never a newer: the watermark of an incremental
/// job then covers more than it must, not less.
#[derive(Debug, Default)]
struct LastStarts {
    newest: HashMap<Uuid, DateTime<Utc>>,
    flush_at: Option<Instant>,
    written: Option<Instant>,
}

impl LastStarts {
    fn note(&mut self, job: &FinishedJob, row: &moves::Settled) {
        let succeeded = job.settlement.verdict == Verdict::Done && row.status != Status::Canceled;
        if succeeded {
            let newest = self.newest.entry(job.settlement.config).or_insert(job.started);
            *newest = job.started.max(*newest);
            let earliest = self.written.map_or_else(Instant::now, |at| at + LAST_START_EVERY);
            self.flush_at.get_or_insert(earliest);
        }
    }

    fn is_due(&self) -> bool {
        self.flush_at.is_some_and(|at| at <= Instant::now())
    }

    /// Rows of configurations that an operator holds locked wait for the next time.
    async fn write(&mut self, state: &EngineState, db: &mut PgConnection) -> Result<(), DatabaseError> {
        let (ids, starts): (Vec<Uuid>, Vec<DateTime<Utc>>) =
            self.newest.iter().map(|(id, at)| (*id, *at)).unzip();
        let written = state
            .within(
                sqlx::query_scalar!(
                    r#"with free as materialized (
                     select c.ID, n.Started
                     from unnest($1::uuid[], $2::timestamptz[]) as n (ID, Started)
                     join JobConfig c on c.ID = n.ID
                     for no key update of c skip locked),
                   done as (
                     update JobConfig c set LastJobStart = greatest(c.LastJobStart, f.Started)
                     from free f where c.ID = f.ID)
                   select f.ID as "id!" from free f"#,
                    &ids,
                    &starts,
                )
                .fetch_all(&mut *db),
            )
            .await?;
        for id in written {
            self.newest.remove(&id);
        }
        self.written = Some(Instant::now());
        self.flush_at = (!self.newest.is_empty()).then(|| Instant::now() + LAST_START_EVERY);
        Ok(())
    }
}
