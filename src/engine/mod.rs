//! What moves the row. The only file that knows the order of the steps:
//!
//! ```text
//!   claim ─▶ ClaimedJob ─▶ dispatch ─▶ RunnableJob ─▶ execute ─▶ FinishedJob ─▶ report
//!                                                        ▲
//!                       heartbeat (cancels) ── running ── watch (time limits, grace)
//! ```
//!
//! Long after report, retire moves the row to the table of its month, and at last removes it.
//!
//! Beside claim stands alone, which has suspects run in processes of their own; such a process has errand instead.
//!
//! All loops run on the control runtime, jobs on another, so that a job that blocks its thread starves no
//! claim, pulse, cancel or report. Each loop has a connection of its own.

pub(crate) mod alone;
mod claim;
mod dispatch;
pub(crate) mod errand;
mod execute;
mod heartbeat;
mod link;
mod others;
mod report;
mod rescue;
mod retire;
mod running;
pub(crate) mod state;

use crate::limits::SourceLimiter;
use crate::postgres::database::Database;
use crate::postgres::listen;
use execute::Executor;
use running::{Overdue, StopCause};
use state::EngineState;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the last outcomes may take to be written when the daemon stops.
const LAST_REPORTS: Duration = Duration::from_secs(5);

/// Longest wait of a loop that has nothing to do; short enough to prove that it is alive.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// The running loops.
pub(crate) struct Engine {
    state: Arc<EngineState>,
    claiming: CancellationToken,
    caring: CancellationToken,
    reporting: CancellationToken,
    pulsing: CancellationToken,
    claim: JoinHandle<()>,
    report: JoinHandle<()>,
    heartbeat: JoinHandle<()>,
    alone: Option<JoinHandle<()>>,
    carers: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts every loop on the runtime this is called from. With a launcher, suspects run in processes of their own.
    pub(crate) fn start(
        state: Arc<EngineState>,
        database: Database,
        limits_database: Database,
        launcher: Option<alone::Launcher>,
    ) -> Self {
        let claiming = CancellationToken::new();
        let caring = CancellationToken::new();
        let reporting = CancellationToken::new();
        let pulsing = CancellationToken::new();
        let (finished, reports) = mpsc::unbounded_channel();
        // It gets its name at the first claim, when there is a Runner row.
        let limiter = SourceLimiter::new(limits_database, uuid::Uuid::nil());
        let executor = Executor {
            settings: Arc::clone(&state.settings),
            limiter: limiter.clone(),
            database,
            lease: Arc::clone(&state.lease),
            progress: Arc::clone(&state.progress),
            running: Arc::clone(&state.running),
            finished,
            jobs_runtime: state.jobs_runtime.clone(),
        };
        let spawn = &state.control;
        let claim = match state.errand.clone() {
            None => spawn.spawn(claim::run(Arc::clone(&state), executor.clone(), claiming.clone())),
            Some(errand) => {
                spawn.spawn(errand::run(Arc::clone(&state), executor.clone(), errand, claiming.clone()))
            }
        };
        let mut carers = vec![
            spawn.spawn(rescue::run(Arc::clone(&state), caring.clone())),
            spawn.spawn(watch(Arc::clone(&state), executor, caring.clone())),
            spawn.spawn(follow_sources(limiter, state.hints.clone(), caring.clone())),
            spawn.spawn(listen::run(
                state.options.clone(),
                state.limits,
                state.hints.clone(),
                caring.clone(),
            )),
        ];
        if state.errand.is_none() {
            carers.push(spawn.spawn(retire::run(Arc::clone(&state), caring.clone())));
        }
        Self {
            claim,
            alone: launcher
                .map(|launcher| spawn.spawn(alone::run(Arc::clone(&state), launcher, claiming.clone()))),
            report: spawn.spawn(report::run(Arc::clone(&state), reports, reporting.clone())),
            heartbeat: spawn.spawn(heartbeat::run(Arc::clone(&state), pulsing.clone())),
            carers,
            claiming,
            caring,
            reporting,
            pulsing,
            state,
        }
    }

    /// The order of a stop: claim nothing more, let jobs finish for the drain time (or until `hurry`), tell
    /// the rest to stop and put them back, write the last outcomes, leave. Returns whether the database took those
    /// outcomes; one that did not is not worth waiting for with anything else.
    pub(crate) async fn stop(self, drain: Duration, hurry: CancellationToken) -> bool {
        let Self { state, claiming, caring, reporting, pulsing, claim, report, heartbeat, alone, carers } =
            self;
        state.stopping.store(true, Ordering::Release);
        claiming.cancel();
        // It holds an executor; its last claim has been handed over when it ends.
        let _ = claim.await;
        // Its last turn may have said that it claims.
        state.vitals.set_ready(false);
        state.vitals.retire("claim");
        let running = &state.running;
        if running.count() > 0 {
            tracing::info!(
                "Job Runner: stopping, {} jobs in progress may finish within {drain:?}",
                running.count()
            );
        }
        tokio::select! {
            () = drained(&state) => {}
            () = tokio::time::sleep(drain) => {}
            () = hurry.cancelled() => {}
        }
        if running.count() > 0 {
            tracing::info!("Job Runner: stopping, {} jobs are put back on the queue", running.count());
            running.stop_all(StopCause::Shutdown, None);
            // The watch aborts and at last abandons what does not hear.
            drained(&state).await;
        }
        if let Some(alone) = alone {
            // Its processes were told at the same time as the jobs here, and have as long.
            let _ = alone.await;
        }
        caring.cancel();
        for carer in carers {
            let _ = carer.await;
        }
        reporting.cancel();
        if tokio::time::timeout(LAST_REPORTS, report).await.is_err() {
            tracing::error!(
                "Job Runner: the database did not take the last outcomes; the rows run again elsewhere"
            );
            heartbeat.abort(); // the others remove the Runner row after a lease
            return false;
        }
        // Last, because a row without a Runner row is anybody's to rescue.
        pulsing.cancel();
        let _ = heartbeat.await;
        true
    }
}

/// Completes when nothing is in progress.
async fn drained(state: &EngineState) {
    while state.running.count() > 0 {
        tokio::select! {
            () = state.running.ended.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

/// A thread that a job blocks cannot be freed; when too many are lost, only a fresh process helps.
fn give_up_if_exhausted(state: &EngineState) {
    let abandoned = state.running.abandoned();
    let too_many = state.settings.engine.most_abandoned().is_some_and(|most| abandoned > most);
    if too_many && !state.stopping.load(Ordering::Acquire) && !state.exhausted.is_cancelled() {
        tracing::error!("Job Runner: {abandoned} jobs cannot be stopped and hold threads, this process ends");
        state.exhausted.cancel();
    }
}

/// Carries out time limits and the escalation of cancels: token, grace, abort, abandon.
async fn watch(state: Arc<EngineState>, executor: Executor, stop: CancellationToken) {
    loop {
        state.vitals.progress("watch");
        let idle = Instant::now() + state.settings.engine.heartbeat().min(IDLE_LOOK);
        let at = state.running.next_push().map_or(idle, |at| at.min(idle));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(at) => {}
            () = state.running.replanned.notified() => {}
        }
        for overdue in state.running.push(Instant::now()) {
            match overdue {
                Overdue::TimedOut(run) => {
                    run.span.in_scope(|| tracing::warn!("Job's time is up, it is told to stop"));
                }
                Overdue::Aborted(run) => {
                    run.span
                        .in_scope(|| tracing::warn!("Job did not stop within its grace time, it is aborted"));
                }
                Overdue::Abandoned(run) => {
                    run.span.in_scope(|| tracing::error!("Job cannot be stopped, its row ends without it"));
                    executor.abandon(run);
                }
            }
        }
        give_up_if_exhausted(&state);
    }
}

/// Tells the limiter what the listener hears of sources.
async fn follow_sources(limiter: SourceLimiter, hints: listen::Hints, stop: CancellationToken) {
    let mut heard = hints.source.subscribe();
    loop {
        let source = tokio::select! {
            () = stop.cancelled() => return,
            source = heard.recv() => source,
        };
        match source {
            Ok(source) => limiter.hint(source),
            // Too many at once to be told one by one.
            Err(broadcast::error::RecvError::Lagged(_)) => limiter.hint(None),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
