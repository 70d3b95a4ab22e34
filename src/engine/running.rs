//! What this runner has in progress, and who may end it.
//!
//! A run ends once: whoever takes its [`Run::settle_right`] first writes its settlement. Normally that is the
//! run itself; if it hears neither cancel nor abort, the watch takes the right away from it and its row ends
//! as abandoned while its thread may still be busy. Its writes are fenced off from then on.

use crate::history::{Fence, HistoryId, StopReason};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Why a run was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum StopCause {
    /// An operator set `StatusID = -1`.
    Cancel = 1,
    /// `TimeoutInSeconds` is over.
    Timeout = 2,
    /// The daemon stops or drains.
    Shutdown = 3,
    /// The row is no longer ours; nothing of this run is written any more.
    Lost = 4,
}

impl StopCause {
    fn from_u8(code: u8) -> Option<Self> {
        [Self::Cancel, Self::Timeout, Self::Shutdown, Self::Lost]
            .into_iter()
            .find(|cause| *cause as u8 == code)
    }
}

/// One run in progress.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) fence: Fence,
    pub(crate) config: Uuid,
    /// `Runner.ID` under which it was claimed.
    pub(crate) runner: Uuid,
    pub(crate) cancel: CancellationToken,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) span: tracing::Span,
    cause: AtomicU8,
    settled: AtomicBool,
}

impl Run {
    pub(crate) fn new(
        fence: Fence,
        config: Uuid,
        runner: Uuid,
        time_limit: Option<Duration>,
        span: tracing::Span,
    ) -> Self {
        Self {
            fence,
            config,
            runner,
            cancel: CancellationToken::new(),
            time_limit,
            span,
            cause: AtomicU8::new(0),
            settled: AtomicBool::new(false),
        }
    }

    /// The right to say how this run ended; true once.
    pub(crate) fn settle_right(&self) -> bool {
        !self.settled.swap(true, Ordering::AcqRel)
    }

    /// Why it was told to stop, if it was.
    pub(crate) fn cause(&self) -> Option<StopCause> {
        StopCause::from_u8(self.cause.load(Ordering::Acquire))
    }

    /// Tells it to stop. The first cause stands, except that a lost row is lost whatever came before.
    fn stop(&self, cause: StopCause) -> bool {
        let first = self.cause.compare_exchange(0, cause as u8, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if cause == StopCause::Lost {
            self.cause.store(cause as u8, Ordering::Release);
        }
        self.cancel.cancel();
        first
    }
}

/// A run that is due for its next push.
#[derive(Debug)]
pub(crate) enum Overdue {
    /// Its time limit is over: it was told to stop just now.
    TimedOut(Arc<Run>),
    /// It did not stop within the grace time: it was aborted just now.
    Aborted(Arc<Run>),
    /// It did not even end by being aborted: settle it in its place.
    Abandoned(Arc<Run>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Push {
    TimeOut,
    Abort,
    Abandon,
}

#[derive(Debug)]
struct Entry {
    run: Arc<Run>,
    abort: Option<AbortHandle>,
    push: Option<(Instant, Push)>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<HistoryId, Entry>,
    pushes: BTreeSet<(Instant, HistoryId)>,
}

impl Table {
    fn plan(&mut self, id: HistoryId, next: Option<(Instant, Push)>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            if let Some((at, _)) = entry.push {
                self.pushes.remove(&(at, id));
            }
            entry.push = next;
            if let Some((at, _)) = next {
                self.pushes.insert((at, id));
            }
        }
    }
}

/// The runs of this runner.
#[derive(Debug)]
pub(crate) struct Running {
    table: Mutex<Table>,
    count: AtomicUsize,
    grace: Duration,
    /// A push was planned that may be earlier than the one the watch sleeps for.
    pub(crate) replanned: Notify,
    /// A run ended.
    pub(crate) ended: Notify,
    /// There was nothing in progress, now there is.
    pub(crate) first: Notify,
}

/// How long an aborted run may take to unwind before its row ends without it.
const ABORT_TIME: Duration = Duration::from_secs(2);

impl Running {
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            table: Mutex::default(),
            count: AtomicUsize::new(0),
            grace,
            replanned: Notify::new(),
            ended: Notify::new(),
            first: Notify::new(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs in progress.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Before its task is spawned.
    pub(crate) fn add(&self, run: Arc<Run>) {
        let push = run.time_limit.map(|limit| (Instant::now() + limit, Push::TimeOut));
        let id = run.fence.id;
        let mut table = self.table();
        table.entries.insert(id, Entry { run, abort: None, push: None });
        table.plan(id, push);
        drop(table);
        if self.count.fetch_add(1, Ordering::AcqRel) == 0 {
            self.first.notify_one();
        }
        if push.is_some() {
            self.replanned.notify_one();
        }
    }

    /// After its task was spawned; it may have ended already.
    pub(crate) fn set_abort(&self, run: &Arc<Run>, abort: AbortHandle) {
        if let Some(entry) = self.table().entries.get_mut(&run.fence.id)
            && Arc::ptr_eq(&entry.run, run)
        {
            entry.abort = Some(abort);
        }
    }

    /// When it ended, by whoever held the right to settle it.
    pub(crate) fn remove(&self, run: &Arc<Run>) {
        let mut table = self.table();
        let id = run.fence.id;
        if table.entries.get(&id).is_some_and(|entry| Arc::ptr_eq(&entry.run, run)) {
            table.plan(id, None);
            table.entries.remove(&id);
            drop(table);
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.ended.notify_one();
        }
    }

    /// Tells one run to stop, and plans what happens if it does not. Returns whether it is running here.
    pub(crate) fn stop(&self, id: HistoryId, cause: StopCause) -> bool {
        let mut table = self.table();
        let Some(entry) = table.entries.get(&id) else { return false };
        if entry.run.stop(cause) {
            table.plan(id, Some((Instant::now() + self.grace, Push::Abort)));
            drop(table);
            self.replanned.notify_one();
        }
        true
    }

    /// Tells every run to stop, or every run of one claimant.
    pub(crate) fn stop_all(&self, cause: StopCause, runner: Option<Uuid>) {
        let ids: Vec<HistoryId> = self
            .table()
            .entries
            .values()
            .filter(|entry| runner.is_none_or(|runner| entry.run.runner == runner))
            .map(|entry| entry.run.fence.id)
            .collect();
        for id in ids {
            self.stop(id, cause);
        }
    }

    /// When the next push is planned.
    pub(crate) fn next_push(&self) -> Option<Instant> {
        self.table().pushes.first().map(|(at, _)| *at)
    }

    /// Carries out the pushes that are due, and says which.
    pub(crate) fn push(&self, now: Instant) -> Vec<Overdue> {
        let mut table = self.table();
        let mut done = Vec::new();
        while let Some((at, id)) = table.pushes.first().copied()
            && at <= now
        {
            let Some(entry) = table.entries.get(&id) else {
                table.pushes.pop_first();
                continue;
            };
            let run = Arc::clone(&entry.run);
            match entry.push.map(|(_, push)| push) {
                Some(Push::TimeOut) => {
                    run.stop(StopCause::Timeout);
                    table.plan(id, Some((now + self.grace, Push::Abort)));
                    done.push(Overdue::TimedOut(run));
                }
                Some(Push::Abort) => {
                    if let Some(abort) = &entry.abort {
                        abort.abort();
                    }
                    table.plan(id, Some((now + ABORT_TIME, Push::Abandon)));
                    done.push(Overdue::Aborted(run));
                }
                Some(Push::Abandon) | None => {
                    table.plan(id, None);
                    if run.settle_right() {
                        done.push(Overdue::Abandoned(run));
                    }
                }
            }
        }
        done
    }
}

/// How a stop shows in `JobHistory.StopReason`.
pub(crate) fn stop_reason(cause: Option<StopCause>, cooperative: StopReason) -> Option<StopReason> {
    match cause {
        Some(StopCause::Cancel) => Some(cooperative),
        Some(StopCause::Timeout) => Some(StopReason::Timeout),
        Some(StopCause::Shutdown | StopCause::Lost) | None => None,
    }
}
