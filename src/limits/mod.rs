//! How hard an API may be hit: `Delay` and `Concurrency` per `SourceConfig`, across all jobs and runners.
//!
//! The database deals out shares of each source to runners (`vm.share_source`): so many slots of its Concurrency, and
//! where it has a Delay, windows of time that belong to one runner alone. Inside its share a runner grants calls
//! itself, by its own clock and without a statement: in the order of priority, then of arrival, each behind the effect
//! gate of its run, and the Delay counted from the moment the bytes of one call were written to that of the next.
//!
//! | part | does |
//! |---|---|
//! | `lane` | what this process knows of one source, and what may happen now |
//! | `share` | what is asked of the database and when, and what its answers mean |
//! | `keeper` | asks the database about one source while it is called |
//! | `line` | who is first |
//! | `permit` | one call, from its slot to its end |
//! | `clock` | waiting to within a fraction of a millisecond |

mod clock;
mod keeper;
mod lane;
mod line;
mod permit;
mod share;

pub(crate) use lane::SourceNews;
pub use permit::CallPermit;
pub(crate) use permit::{Missed, Start};

use crate::config_rows::SourceConfig;
use crate::history::HistoryId;
use crate::job::{EffectGate, NotOursAnyMore};
use crate::lease::boottime;
use crate::postgres::database::Database;
use lane::{Admission, Lane, Refusal};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Grants calls to sources. Cheap to clone; all clones of one process share what they know of each source.
#[derive(Debug, Clone)]
pub struct SourceLimiter {
    inner: Arc<Inner>,
    runner: Uuid,
    run: Option<RunCalls>,
}

/// The run calls are granted to.
#[derive(Debug, Clone)]
struct RunCalls {
    gate: EffectGate,
    priority: i32,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    /// Where questions to the database are asked, whatever the threads of the jobs are doing.
    runtime: Handle,
    /// The newest identity of this process. Questions are asked in its name.
    runner: Mutex<Uuid>,
    lanes: Mutex<HashMap<Uuid, Arc<Lane>>>,
}

/// Why a call was not granted.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The run was cancelled while it waited.
    #[error("failed to wait for a call to source {0}: the run was cancelled")]
    Cancelled(Uuid),
    /// `SourceConfig.Active` is false.
    #[error("failed to call source {name} ({id}): it is inactive (SourceConfig.Active)")]
    Inactive {
        /// `SourceConfig.Source`.
        name: String,
        /// `SourceConfig.ID`.
        id: Uuid,
    },
    /// The row was deleted.
    #[error("failed to call source {0}: there is no such SourceConfig")]
    Unknown(Uuid),
    /// Other runners took this one for dead, so it must not call anybody.
    #[error("failed to call source {0}: this runner is no longer registered")]
    RunnerGone(Uuid),
    /// The row is another run's by now.
    #[error(transparent)]
    NotOurs(#[from] NotOursAnyMore),
    /// The database could not be asked.
    #[error("failed to ask for a call to source {id}")]
    Database {
        /// `SourceConfig.ID`.
        id: Uuid,
        /// What it said.
        #[source]
        error: Arc<sqlx::Error>,
    },
}

/// Priority of calls that belong to no run.
const NO_RUN: i32 = 100;
/// How long the database may refuse to answer before a waiting call gives up. (While it is away a call waits.)
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest pause a source can ask for.
const LONGEST_PAUSE: Duration = Duration::from_hours(24);

impl SourceLimiter {
    /// A limiter for this runner, on this database. It asks on the runtime this is called from.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(database: Database, runner: Uuid) -> Self {
        let inner = Inner {
            database,
            runtime: Handle::current(),
            runner: Mutex::new(runner),
            lanes: Mutex::default(),
        };
        Self { inner: Arc::new(inner), runner, run: None }
    }

    /// The same under a new identity. What is in flight under the old one still counts, now for the new one.
    pub(crate) fn registered_as(&self, runner: Uuid) -> Self {
        *self.inner.runner.lock().unwrap_or_else(PoisonError::into_inner) = runner;
        Self { inner: Arc::clone(&self.inner), runner, run: self.run.clone() }
    }

    /// The same for one run: a call is granted only while that run may act outside, and before calls of runs with a
    /// higher priority number.
    pub(crate) fn for_run(&self, gate: EffectGate, priority: i32) -> Self {
        let run = Some(RunCalls { gate, priority });
        Self { inner: Arc::clone(&self.inner), runner: self.runner, run }
    }

    /// Of the run it grants calls to.
    pub(crate) fn gate(&self) -> Option<&EffectGate> {
        self.run.as_ref().map(|run| &run.gate)
    }

    /// `Runner.ID` its calls count for.
    pub fn runner(&self) -> Uuid {
        self.runner
    }

    /// Waits until one call to `source` may be made, and answers at the moment it may: make it at once. `history` is
    /// the row that makes it. `Delay` and `Concurrency` are those of the database, not those of `source`.
    pub async fn acquire(
        &self,
        source: &SourceConfig,
        history: HistoryId,
        cancel: &CancellationToken,
    ) -> Result<CallPermit, LimitError> {
        let granted = async {
            loop {
                let permit = self.admit(source.id).await?;
                let start = permit.start().await?;
                if start.fire().is_ok() {
                    start.written();
                    return Ok(permit);
                }
            }
        };
        self.unless_cancelled(source, history, cancel, granted).await
    }

    /// Waits until it is worth connecting; then ask the permit for the [`Start`].
    pub(crate) async fn reserve(
        &self,
        source: &SourceConfig,
        history: HistoryId,
        cancel: &CancellationToken,
    ) -> Result<CallPermit, LimitError> {
        self.unless_cancelled(source, history, cancel, self.admit(source.id)).await
    }

    async fn unless_cancelled(
        &self,
        source: &SourceConfig,
        history: HistoryId,
        cancel: &CancellationToken,
        granted: impl Future<Output = Result<CallPermit, LimitError>>,
    ) -> Result<CallPermit, LimitError> {
        tracing::trace!(source = %source.id, %history, "waits for a call");
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(LimitError::Cancelled(source.id)),
            permit = granted => permit,
        }
    }

    async fn admit(&self, source: Uuid) -> Result<CallPermit, LimitError> {
        let lane = self.inner.lane(source);
        let priority = self.run.as_ref().map_or(NO_RUN, |run| run.priority);
        let waiting = Waiting::begin(&self.inner, &lane, priority);
        let mut turn = lane.slots.enter(priority).await;
        let mut changes = lane.changes();
        loop {
            match lane.admit(self.runner, priority, boottime()) {
                Admission::Ready => break,
                Admission::Later => {}
                Admission::Refused(refusal) => refusal.into_error(source, boottime())?,
            }
            self.stand()?;
            lane.ask.notify_one();
            tokio::select! {
                // The lane is ours as long as we wait, so its sender cannot be gone.
                _ = changes.changed() => {}
                () = lane.slots.overtaken() => turn = lane.slots.let_others_go_first(turn).await,
            }
        }
        drop((waiting, turn));
        Ok(CallPermit::new(lane, self.runner, priority, self.run.as_ref().map(|run| run.gate.clone())))
    }

    /// A run that is over waits for nothing.
    fn stand(&self) -> Result<(), LimitError> {
        if let Some(run) = &self.run {
            run.gate.is_open()?;
        }
        Ok(())
    }

    /// No runner starts a call to this source for so long: the source asked for it. `halve` says that it refused a
    /// call because there were too many (429); a second time within a minute halves the rate for all.
    pub async fn pause(&self, source: Uuid, length: Duration, halve: bool) -> Result<(), sqlx::Error> {
        let length = length.min(LONGEST_PAUSE);
        let lane = self.inner.lane(source);
        let until = boottime() + length;
        lane.pause(until);
        let database = self.inner.database.clone();
        let told = self.inner.runtime.spawn(async move {
            sqlx::query!("select vm.push_back_source($1, $2, $3)", source, length.as_secs_f64(), halve)
                .execute(&database)
                .await
        });
        match told.await {
            Ok(done) => done.map(|_| lane.pause_is_known(until, boottime())),
            Err(_) => Err(sqlx::Error::WorkerCrashed),
        }
    }

    /// Something about this source has changed in the database: whoever calls it asks at once.
    pub(crate) fn hint(&self, source: Option<(Uuid, SourceNews)>) {
        let lanes = self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        match source {
            Some((source, news)) => lanes.get(&source).into_iter().for_each(|lane| lane.hint(news)),
            None => lanes.values().for_each(|lane| lane.hint(SourceNews::Changed)),
        }
    }
}

impl Inner {
    fn lane(&self, source: Uuid) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry(source).or_insert_with(|| Arc::new(Lane::new(source))))
    }
}

impl Refusal {
    /// An error, unless waiting may help.
    fn into_error(self, source: Uuid, now: Duration) -> Result<(), LimitError> {
        match self {
            Self::Inactive(name) => Err(LimitError::Inactive { name, id: source }),
            Self::Unknown => Err(LimitError::Unknown(source)),
            Self::RunnerGone => Err(LimitError::RunnerGone(source)),
            Self::Trouble(since, error) if now > since + PATIENCE => {
                Err(LimitError::Database { id: source, error })
            }
            Self::Trouble(..) => Ok(()),
        }
    }
}

/// A caller that waits, until dropped.
struct Waiting {
    lane: Arc<Lane>,
    priority: i32,
}

impl Waiting {
    fn begin(inner: &Arc<Inner>, lane: &Arc<Lane>, priority: i32) -> Self {
        if lane.wait(priority, boottime()) {
            let names = Arc::clone(inner);
            let runner = move || *names.runner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.runtime.spawn(keeper::keep(Arc::clone(lane), inner.database.clone(), runner));
        }
        lane.ask.notify_one();
        Self { lane: Arc::clone(lane), priority }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.lane.wait_no_more(self.priority);
    }
}
