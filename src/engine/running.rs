//! What this runner has in progress, and who may end it.
//!
//! A run ends once: whoever takes its [`Run::settle_right`] first writes its settlement. Normally that is the
//! run itself; if it hears neither cancel nor abort, the watch takes the right away from it and its row ends
//! as abandoned while its thread may still be busy. Its writes are fenced off from then on.

use crate::history::{Fence, HistoryId, StopReason};
use crate::seeded_bugs::{self, Bug};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU8, AtomicUsize, Ordering};
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
    /// Cancelled when nothing may be done in its name any more, whatever its code still does.
    pub(crate) over: CancellationToken,
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
            over: CancellationToken::new(),
            cause: AtomicU8::new(0),
            settled: AtomicBool::new(false),
        }
    }

    /// The right to say how this run ended; true once.
    pub(crate) fn settle_right(&self) -> bool {
        self.over.cancel();
        !self.settled.swap(true, Ordering::AcqRel)
    }

    /// Why it was told to stop, if it was.
    pub(crate) fn cause(&self) -> Option<StopCause> {
        StopCause::from_u8(self.cause.load(Ordering::Acquire))
    }

    /// Tells it to stop. The first cause stands, except that a lost row is lost whatever came before.
    fn stop(&self, cause: StopCause) -> bool {
        if cause == StopCause::Lost && seeded_bugs::is(Bug::GateIgnoresRunner) {
            return false; // it goes on, under whatever lease there is
        }
        let first = self.cause.compare_exchange(0, cause as u8, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if cause == StopCause::Lost {
            self.cause.store(cause as u8, Ordering::Release);
            self.over.cancel();
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

/// A row and the claim of it. The claim belongs to it because a runner that lost its lease may claim a row
/// anew while its first run of it still unwinds.
type Key = (HistoryId, i64);

fn key(run: &Run) -> Key {
    (run.fence.id, run.fence.claim)
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<Key, Entry>,
    pushes: BTreeSet<(Instant, Key)>,
}

impl Table {
    fn plan(&mut self, key: Key, next: Option<(Instant, Push)>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            if let Some((at, _)) = entry.push {
                self.pushes.remove(&(at, key));
            }
            entry.push = next;
            if let Some((at, _)) = next {
                self.pushes.insert((at, key));
            }
        }
    }
}

/// The runs of this runner.
#[derive(Debug)]
pub(crate) struct Running {
    table: Mutex<Table>,
    count: AtomicUsize,
    /// Signed, because a run may come back in the moment it is given up.
    abandoned: AtomicIsize,
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
            abandoned: AtomicIsize::new(0),
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

    /// Runs that were abandoned and are still there, each with a thread in its hands.
    pub(crate) fn abandoned(&self) -> usize {
        usize::try_from(self.abandoned.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// An abandoned run ended after all.
    pub(crate) fn came_back(&self) {
        self.abandoned.fetch_sub(1, Ordering::AcqRel);
    }

    /// Before its task is spawned.
    pub(crate) fn add(&self, run: Arc<Run>) {
        let push = run.time_limit.map(|limit| (Instant::now() + limit, Push::TimeOut));
        let key = key(&run);
        let mut table = self.table();
        table.entries.insert(key, Entry { run, abort: None, push: None });
        table.plan(key, push);
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
        if let Some(entry) = self.table().entries.get_mut(&key(run)) {
            entry.abort = Some(abort);
        }
    }

    /// When it ended, by whoever held the right to settle it.
    pub(crate) fn remove(&self, run: &Arc<Run>) {
        let mut table = self.table();
        let key = key(run);
        table.plan(key, None);
        if table.entries.remove(&key).is_some() {
            drop(table);
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.ended.notify_one();
        }
    }

    /// Tells the runs of one row to stop, and plans what happens if they do not. Returns whether there are any.
    pub(crate) fn stop(&self, id: HistoryId, cause: StopCause) -> bool {
        let keys: Vec<Key> =
            self.table().entries.range((id, i64::MIN)..=(id, i64::MAX)).map(|(key, _)| *key).collect();
        for key in &keys {
            self.stop_one(*key, cause);
        }
        !keys.is_empty()
    }

    fn stop_one(&self, key: Key, cause: StopCause) {
        let mut table = self.table();
        if table.entries.get(&key).is_some_and(|entry| entry.run.stop(cause)) {
            table.plan(key, Some((Instant::now() + self.grace, Push::Abort)));
            drop(table);
            self.replanned.notify_one();
        }
    }

    /// Tells every run to stop, or every run of one claimant.
    pub(crate) fn stop_all(&self, cause: StopCause, runner: Option<Uuid>) {
        let keys: Vec<Key> = self
            .table()
            .entries
            .iter()
            .filter(|(_, entry)| runner.is_none_or(|runner| entry.run.runner == runner))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.stop_one(key, cause);
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
        while let Some((at, key)) = table.pushes.first().copied()
            && at <= now
        {
            let Some(entry) = table.entries.get(&key) else {
                table.pushes.pop_first();
                continue;
            };
            let run = Arc::clone(&entry.run);
            match entry.push.map(|(_, push)| push) {
                Some(Push::TimeOut) => {
                    run.stop(StopCause::Timeout);
                    table.plan(key, Some((now + self.grace, Push::Abort)));
                    done.push(Overdue::TimedOut(run));
                }
                Some(Push::Abort) => {
                    if let Some(abort) = &entry.abort {
                        abort.abort();
                    }
                    table.plan(key, Some((now + ABORT_TIME, Push::Abandon)));
                    done.push(Overdue::Aborted(run));
                }
                Some(Push::Abandon) | None => {
                    table.plan(key, None);
                    if run.settle_right() {
                        self.abandoned.fetch_add(1, Ordering::AcqRel);
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
