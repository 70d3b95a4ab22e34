//! Runs one job: its span, its cancellation, its panics. [`RunnableJob`] -> [`FinishedJob`].
//!
//! Jobs run on a runtime of their own. Whatever they do to it, the loops that claim, pulse, cancel and report
//! run on another, so a job that blocks starves other jobs, never the control of them.

use super::dispatch::RunnableJob;
use super::running::{Run, Running, StopCause, stop_reason};
use crate::config::Config;
use crate::history::moves::Settled;
use crate::history::{Fence, Settlement, StopReason, Verdict};
use crate::job::{
    ContextParts, EffectGate, ErrorKind, JobContext, JobError, Outcome, ProgressBoard, storable_result,
};
use crate::lease::{Lease, Standing};
use crate::limits::SourceLimiter;
use crate::log::job_span;
use crate::postgres::database::Database;
use crate::seeded_bugs::{self, Bug};
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

/// A run that ended, on its way to be reported. Consumed by the report; nothing else makes a row end.
#[derive(Debug)]
pub(crate) struct FinishedJob {
    pub(crate) settlement: Settlement,
    /// What the row became, if the job's own transaction has settled it: then there is nothing to write.
    pub(crate) settled: Option<Settled>,
    /// When it was claimed, by the database's clock.
    pub(crate) started: DateTime<Utc>,
    /// When its job began, for the log.
    pub(crate) began: Instant,
    /// Whether others may wait for its end (`MaxInstances`).
    pub(crate) limited: bool,
    pub(crate) run: Arc<Run>,
}

/// What every run needs.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) settings: Arc<Config>,
    pub(crate) database: Database,
    pub(crate) limiter: SourceLimiter,
    pub(crate) lease: Arc<Lease>,
    pub(crate) progress: Arc<ProgressBoard>,
    pub(crate) running: Arc<Running>,
    pub(crate) finished: UnboundedSender<FinishedJob>,
    pub(crate) jobs_runtime: Handle,
}

impl Executor {
    /// Calls of the runs it starts count for this runner from now on.
    pub(crate) fn claim_as(&mut self, runner: Uuid) {
        if self.limiter.runner() != runner {
            self.limiter = self.limiter.registered_as(runner);
        }
    }

    /// Starts a run. It reports itself when it ends, however it ends.
    pub(crate) fn start(&self, runnable: RunnableJob) {
        let RunnableJob { run, row, config, prepared } = runnable;
        let reporter = Reporter {
            run: Arc::clone(&run),
            running: Arc::clone(&self.running),
            finished: self.finished.clone(),
            progress: Arc::clone(&self.progress),
            started: row.started,
            began: Instant::now(),
            limited: config.limited,
            result_max_bytes: self.settings.engine.result_max_bytes,
            lease: Arc::clone(&self.lease),
            reported: false,
        };
        let span = run.span.clone();
        let gate = EffectGate::new(Arc::clone(&self.lease), run.runner, run.over.clone());
        let ctx = JobContext::new(ContextParts {
            limiter: self.limiter.for_run(gate.clone(), row.priority),
            row,
            fence: run.fence,
            runner: run.runner,
            config,
            settings: Arc::clone(&self.settings),
            database: self.database.clone(),
            gate,
            cancel: run.cancel.clone(),
            progress: Arc::clone(&self.progress),
            span: span.clone(),
        });
        self.running.add(Arc::clone(&run));
        let task = self.jobs_runtime.spawn(
            async move {
                // The call itself is inside, because it may panic before there is a future.
                let end = AssertUnwindSafe(async move { prepared(ctx).await }).catch_unwind().await;
                reporter.report(end);
            }
            .instrument(span),
        );
        self.running.set_abort(&run, task.abort_handle());
        // Those that were there when the lease was lost have been told; this one may have come just after.
        if self.lease.standing(run.runner) == Standing::Lost {
            self.running.stop(run.fence.id, StopCause::Lost);
        }
    }

    /// Gives a claimed row back that was never started; no attempt is counted.
    pub(crate) fn put_back(&self, fence: Fence, config: Uuid, runner: Uuid) {
        let settlement = Settlement {
            fence,
            config,
            verdict: Verdict::PutBack,
            error: None,
            result: None,
            stop_reason: None,
            progress: None,
        };
        let span = job_span("", "", fence.id.0);
        let _ = self.finished.send(FinishedJob {
            settlement,
            settled: None,
            started: DateTime::<Utc>::UNIX_EPOCH,
            began: Instant::now(),
            limited: true,
            run: Arc::new(Run::new(fence, config, runner, None, span)),
        });
    }

    /// Reports a run in the place of a job that did not let itself be stopped.
    pub(crate) fn abandon(&self, run: Arc<Run>) {
        let cause = run.cause();
        let put_back = cause == Some(StopCause::Shutdown);
        let settlement = Settlement {
            fence: run.fence,
            config: run.config,
            verdict: if put_back { Verdict::PutBack } else { Verdict::Failed },
            // A row that goes back on the queue has not failed.
            error: (!put_back)
                .then(|| "the job heard neither cancel nor abort; its thread may still be busy".to_owned()),
            result: None,
            stop_reason: stop_reason(cause, StopReason::Abandoned),
            progress: self.progress.take_one(run.fence.id),
        };
        // Handed over before it counts as ended: a stop waits for the count, and then for what was handed over.
        if cause != Some(StopCause::Lost) {
            let _ = self.finished.send(FinishedJob {
                settlement,
                settled: None,
                started: DateTime::<Utc>::UNIX_EPOCH,
                began: Instant::now(),
                limited: true,
                run: Arc::clone(&run),
            });
        }
        self.running.remove(&run);
    }
}

/// Reports a run exactly once: at its end, or, if its task is dropped by an abort, from its `Drop`.
struct Reporter {
    run: Arc<Run>,
    running: Arc<Running>,
    finished: UnboundedSender<FinishedJob>,
    progress: Arc<ProgressBoard>,
    started: DateTime<Utc>,
    began: Instant,
    limited: bool,
    result_max_bytes: usize,
    lease: Arc<Lease>,
    reported: bool,
}

type End = Result<Result<Outcome, JobError>, Box<dyn Any + Send>>;

impl Reporter {
    fn report(mut self, end: End) {
        self.send(Some(end));
    }

    fn send(&mut self, end: Option<End>) {
        self.reported = true;
        if !self.run.settle_right() {
            // Abandoned: its row has ended without it.
            self.running.came_back();
            return;
        }
        let settled = match &end {
            Some(Ok(Ok(outcome))) => outcome.settled.filter(|(fence, _)| *fence == self.run.fence),
            _ => None,
        };
        let settled = settled.map(|(_, settled)| settled);
        // A row that is settled has ended well, whatever the run was told meanwhile. And a run without a lease is lost,
        // also in the moment before it is told.
        let lost = self.lease.standing(self.run.runner) == Standing::Lost;
        let cause = if lost { Some(StopCause::Lost) } else { self.run.cause() }.filter(|_| settled.is_none());
        let mut settlement = judge(&self.run, cause, end);
        settlement.result =
            settlement.result.and_then(|result| storable_result(result, self.result_max_bytes));
        settlement.progress = self.progress.take_one(self.run.fence.id);
        // Handed over before it counts as ended: a stop waits for the count, and then for what was handed over.
        // A lost row is another runner's now.
        if cause != Some(StopCause::Lost) || seeded_bugs::is(Bug::SettleById) {
            let _ = self.finished.send(FinishedJob {
                settlement,
                settled,
                started: self.started,
                began: self.began,
                limited: self.limited,
                run: Arc::clone(&self.run),
            });
        }
        self.running.remove(&self.run);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.reported {
            self.send(None);
        }
    }
}

/// What became of a run, from how its task ended (`None` = it was aborted) and why it was told to stop.
fn judge(run: &Run, cause: Option<StopCause>, end: Option<End>) -> Settlement {
    let mut settlement = Settlement {
        fence: run.fence,
        config: run.config,
        verdict: Verdict::Done,
        error: None,
        result: None,
        stop_reason: None,
        progress: None,
    };
    let cooperative = match end {
        None => {
            settlement.verdict = Verdict::Failed;
            settlement.error = Some("the job did not stop within its grace time and was aborted".to_owned());
            StopReason::Aborted
        }
        Some(Err(panic)) => {
            settlement.verdict = Verdict::Failed;
            settlement.error = Some(format!("the job panicked: {}", panic_message(&*panic)));
            StopReason::FailedBeforeStop
        }
        Some(Ok(Err(error))) => {
            settlement.verdict = match error.kind() {
                ErrorKind::Fatal => Verdict::FailedForGood,
                ErrorKind::DatabaseAway => Verdict::Interrupted,
                ErrorKind::Retry | ErrorKind::Stopped => Verdict::Failed,
            };
            settlement.error = Some(storable(&error.to_string()));
            let stopped = error.kind() == ErrorKind::Stopped;
            settlement.result = error.result;
            if stopped { StopReason::Stopped } else { StopReason::FailedBeforeStop }
        }
        Some(Ok(Ok(outcome))) => {
            settlement.result = outcome.result;
            StopReason::FinishedBeforeStop
        }
    };
    match cause {
        // A job that was cut short may well return Ok; only a run nobody told to stop counts as done.
        Some(StopCause::Timeout) if settlement.verdict != Verdict::Interrupted => {
            settlement.verdict = Verdict::Failed;
            let seconds = run.time_limit.unwrap_or_default().as_secs();
            let after = settlement.error.take().map(|error| format!(" ({error})")).unwrap_or_default();
            settlement.error =
                Some(format!("timed out after {seconds} s (JobConfig.TimeoutInSeconds){after}"));
        }
        Some(StopCause::Shutdown) => {
            settlement.verdict = Verdict::PutBack;
            settlement.error = None;
        }
        Some(StopCause::Cancel) if cooperative == StopReason::Stopped => settlement.error = None,
        Some(StopCause::Cancel | StopCause::Timeout | StopCause::Lost) | None => {}
    }
    settlement.stop_reason = stop_reason(cause, cooperative);
    settlement
}

/// The text of a panic: `panic!` with a format gives a `String`, without one a `&str`.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&'static str>().copied())
        .unwrap_or("with a value that is no text");
    storable(text)
}

/// PostgreSQL stores no NUL, and an error is for people: 16 KiB of it are enough.
fn storable(text: &str) -> String {
    const MAX_CHARS: usize = 16_384;
    let mut kept: String = text.replace('\0', "\\0").chars().take(MAX_CHARS).collect();
    if kept.len() < text.len() && text.chars().count() > MAX_CHARS {
        kept.push_str(" ... (cut)");
    }
    kept
}
