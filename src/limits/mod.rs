//! How hard an API may be hit: `Delay` and `Concurrency` per `SourceConfig`, across all jobs and runners.
//!
//! Every call asks the database (`vm.take_source_slot`) and holds a [`CallPermit`] until its answer was read.
//! Within one process the oldest caller of a source asks first, and only that one asks; runners that have
//! waited long go before others. Starts are given out a moment ahead and waited for on this machine's
//! monotonic clock, so no two clocks are ever compared.

mod release;

use crate::config_rows::SourceConfig;
use crate::history::HistoryId;
use crate::job::{EffectGate, NotOursAnyMore};
use crate::postgres::database::{Database, is_away};
use release::{Release, Releases};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Grants calls to sources. Cheap to clone; all clones of one process share their queues.
#[derive(Debug, Clone)]
pub struct SourceLimiter {
    inner: Arc<Inner>,
    /// Of the run it grants calls to.
    gate: Option<EffectGate>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    runner: Uuid,
    lanes: Mutex<HashMap<Uuid, Arc<Lane>>>,
    releases: OnceLock<Releases>,
}

/// The callers of one source in this process.
#[derive(Debug, Default)]
struct Lane {
    /// Whoever holds it is the oldest waiter (the lock is fair) and the only one that asks the database.
    turn: tokio::sync::Mutex<()>,
    /// A slot of this process came back.
    freed: Notify,
    /// A pause heard in this process, for starts that were given out before it.
    paused_until: Mutex<Option<Instant>>,
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
        error: sqlx::Error,
    },
}

/// A call that may be made now. Dropping it lets the next one start; keep it until the answer was read.
#[derive(Debug)]
pub struct CallPermit {
    id: Uuid,
    source: Uuid,
    concurrency: u32,
    in_doubt: bool,
    granted: bool,
    releases: Releases,
}

impl CallPermit {
    /// `Concurrency` of the source as it stood when this call was granted.
    pub fn concurrency(&self) -> u32 {
        self.concurrency
    }

    /// Says whether the source may still be busy with the call if this permit is dropped now. Such a slot
    /// comes back a moment later, when the source has had time to notice that nobody listens any more.
    pub fn in_doubt(&mut self, in_doubt: bool) {
        self.in_doubt = in_doubt;
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        if !self.granted {
            return;
        }
        let after = if self.in_doubt { Releases::DOUBT } else { Duration::ZERO };
        self.releases.send(Release::Slot { id: self.id, source: self.source, at: Instant::now() + after });
    }
}

enum Answer {
    Granted { permit: CallPermit, start: Instant, delayed: bool },
    Wait(Duration),
    Refused(LimitError),
}

impl SourceLimiter {
    /// Between two questions of a caller that waits for a slot held by another process.
    const POLL: Duration = Duration::from_millis(100);
    /// Between two questions of a caller that waits for its start, so that edits act within a second.
    const LOOK_AGAIN: Duration = Duration::from_millis(500);
    /// A start missed by more than this is given back, because the next call does not know of it.
    const LATE: Duration = Duration::from_millis(3);
    /// How long the database may refuse to answer before a waiting call gives up. (While it is away a call waits.)
    const PATIENCE: Duration = Duration::from_mins(1);
    /// Longest pause a source can ask for.
    const LONGEST_PAUSE: Duration = Duration::from_hours(24);

    /// A limiter for this runner, on this database.
    pub fn new(database: Database, runner: Uuid) -> Self {
        let inner = Inner { database, runner, lanes: Mutex::default(), releases: OnceLock::new() };
        Self { inner: Arc::new(inner), gate: None }
    }

    /// The same for one run: a call is granted only while that run may act outside.
    pub(crate) fn behind(&self, gate: EffectGate) -> Self {
        Self { inner: Arc::clone(&self.inner), gate: Some(gate) }
    }

    /// `Runner.ID` its calls count for.
    pub fn runner(&self) -> Uuid {
        self.inner.runner
    }

    /// Waits until one call to `source` may be made, and answers at the moment it may. `history` is the row
    /// that makes it, for operators who look at `SourceSlot`. `Delay` and `Concurrency` are those of the
    /// database, not those of `source`.
    pub async fn acquire(
        &self,
        source: &SourceConfig,
        history: HistoryId,
        cancel: &CancellationToken,
    ) -> Result<CallPermit, LimitError> {
        let cancelled = cancel.cancelled();
        tokio::select! {
            biased;
            () = cancelled => Err(LimitError::Cancelled(source.id)),
            permit = self.acquire_uncancelled(source.id, history) => permit,
        }
    }

    async fn acquire_uncancelled(&self, source: Uuid, history: HistoryId) -> Result<CallPermit, LimitError> {
        let lane = self.inner.lane(source);
        for attempt in 0.. {
            let (permit, start, delayed) = self.wait_for_turn(&lane, source, history).await?;
            tokio::time::sleep_until(start).await;
            let missed = start.elapsed() > Self::LATE;
            if delayed && attempt < 3 && (missed || lane.is_paused()) {
                continue;
            }
            if let Some(gate) = &self.gate
                && !gate.is_open()?
            {
                // Whether this run may still call will be known when the database is back; by then the start that was
                // given out is long past.
                drop(permit);
                gate.pass().await?;
                continue;
            }
            return Ok(permit);
        }
        unreachable!("the loop ends by returning")
    }

    async fn wait_for_turn(
        &self,
        lane: &Lane,
        source: Uuid,
        history: HistoryId,
    ) -> Result<(CallPermit, Instant, bool), LimitError> {
        let _turn = lane.turn.lock().await;
        let forget = ForgetOnDrop { releases: self.inner.releases(), source, armed: true };
        let mut poll = Duration::from_millis(5);
        let mut refused_since: Option<Instant> = None;
        loop {
            let wait = match self.ask(source, history).await {
                Answer::Granted { permit, start, delayed } => {
                    forget.disarm();
                    return Ok((permit, start, delayed));
                }
                // The next question waits until it is back.
                Answer::Refused(LimitError::Database { error, .. }) if is_away(&error) => Self::POLL,
                Answer::Refused(LimitError::Database { error, .. })
                    if is_passing(&error)
                        && refused_since.get_or_insert_with(Instant::now).elapsed() < Self::PATIENCE =>
                {
                    Duration::from_secs(1)
                }
                Answer::Refused(error) => return Err(error),
                Answer::Wait(Duration::ZERO) => {
                    refused_since = None;
                    poll = (poll * 2).min(Self::POLL);
                    poll.mul_f64(0.75 + fastrand::f64() / 2.0)
                }
                Answer::Wait(wait) => {
                    refused_since = None;
                    (wait + Duration::from_millis(1)).min(Self::LOOK_AGAIN)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = lane.freed.notified() => {}
            }
        }
    }

    /// Asks the database once. The statement runs in a task of its own: a caller that goes away in the middle
    /// neither breaks the connection nor loses the slot it got, which then comes back at once.
    async fn ask(&self, source: Uuid, history: HistoryId) -> Answer {
        let (answer, answered) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let _ = answer.send(inner.take_slot(source, history).await);
        });
        answered.await.unwrap_or(Answer::Wait(Duration::ZERO))
    }

    /// No runner starts a call to this source for so long: the source asked for it.
    pub async fn pause(&self, source: Uuid, length: Duration) -> Result<(), sqlx::Error> {
        let length = length.min(Self::LONGEST_PAUSE);
        self.inner.lane(source).pause(Instant::now() + length);
        let database = self.inner.database.clone();
        let statement = async move {
            sqlx::query!(
                "insert into SourceGate as g (SourceConfigID, PausedUntil)
                 select s.ID, clock_timestamp() + $2 * interval '1 second' from SourceConfig s where s.ID = $1
                 on conflict (SourceConfigID) do update
                 set PausedUntil = greatest(g.PausedUntil, excluded.PausedUntil)",
                source,
                length.as_secs_f64(),
            )
            .execute(&database)
            .await
        };
        match tokio::spawn(statement).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(sqlx::Error::WorkerCrashed),
        }
    }
}

impl Inner {
    fn lane(&self, source: Uuid) -> Arc<Lane> {
        Arc::clone(self.lanes.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default())
    }

    fn releases(self: &Arc<Self>) -> Releases {
        self.releases
            .get_or_init(|| Releases::start(self.database.clone(), self.runner, Arc::downgrade(self)))
            .clone()
    }

    async fn take_slot(self: Arc<Self>, source: Uuid, history: HistoryId) -> Answer {
        // "Granted" until the database says otherwise: a slot it may have taken is always given back.
        let (id, releases) = (Uuid::now_v7(), self.releases());
        let mut permit = CallPermit { id, source, concurrency: 1, in_doubt: false, granted: true, releases };
        let answer = sqlx::query!(
            r#"select Verdict as "verdict!", WaitSeconds as wait_seconds, Concurrency as concurrency,
                 Delayed as delayed, SourceName as name
               from vm.take_source_slot($1, $2, $3, $4)"#,
            permit.id,
            source,
            self.runner,
            history.0,
        )
        .fetch_one(&self.database)
        .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // Whether the slot was taken is not known. It is given back now, and once more when the
                // server must have ended a statement that had not reached it yet.
                let at = Instant::now() + Releases::SURE;
                self.releases().send(Release::Slot { id: permit.id, source, at });
                return Answer::Refused(LimitError::Database { id: source, error });
            }
        };
        let wait = Duration::try_from_secs_f64(answer.wait_seconds.unwrap_or(0.0)).unwrap_or_default();
        if answer.verdict == "granted" {
            permit.concurrency = answer.concurrency.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
            // Counted from the arrival of the answer, which is after the database read its clock: never early.
            let start = Instant::now() + wait;
            return Answer::Granted { permit, start, delayed: answer.delayed == Some(true) };
        }
        permit.granted = false;
        match answer.verdict.as_str() {
            "wait" => Answer::Wait(wait),
            "inactive" => {
                Answer::Refused(LimitError::Inactive { name: answer.name.unwrap_or_default(), id: source })
            }
            "runner_gone" => Answer::Refused(LimitError::RunnerGone(source)),
            _ => Answer::Refused(LimitError::Unknown(source)),
        }
    }
}

impl Lane {
    fn pause(&self, until: Instant) {
        let mut paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = (*paused).max(Some(until));
    }

    fn is_paused(&self) -> bool {
        self.paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|until| until > Instant::now())
    }
}

/// Takes this runner off the waiting list if its oldest caller stops waiting.
struct ForgetOnDrop {
    releases: Releases,
    source: Uuid,
    armed: bool,
}

impl ForgetOnDrop {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for ForgetOnDrop {
    fn drop(&mut self) {
        if self.armed {
            self.releases.send(Release::Waiter { source: self.source });
        }
    }
}

/// Whether the database may answer if asked again: it is starting, stopping, or somebody holds a lock.
fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(e) => e.code().is_some_and(|code| {
            ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                || code == "55P03"
                || code == "40P01"
        }),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        _ => false,
    }
}
