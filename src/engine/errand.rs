//! The claim of a process that is there for one row: a suspect, which runs alone (see `alone.rs`).
//!
//! It stands in the place of the claim loop. All the rest of the engine is the same: a lease, cancels, time limits,
//! the report. When the row has run, or is not to be had, the errand is done and the process ends.

use super::claim::{self, Memory};
use super::execute::Executor;
use super::link::Link;
use super::state::EngineState;
use crate::history::moves::{self, Alone};
use crate::history::{HistoryId, lookup};
use crate::postgres::connect::{self, Backoff, DatabaseError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Where the daemon that starts such a process writes the errand: `<JobHistory.ID>/<Runner.ID>`.
pub(crate) const VARIABLE: &str = "ROSTERD_ALONE";

/// How long it waits for room in the row's lane, and for the database at its start. Meanwhile a place is kept free
/// for it there; then the processes of other rows have their turn.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Its exit code if the row was not to be had: another runner has it, or there was no room in time.
pub(crate) const NOT_HAD: u8 = 75;

/// Between two looks for room.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// One row to run, and nothing else.
#[derive(Debug)]
pub(crate) struct Errand {
    pub(crate) row: HistoryId,
    /// `Runner.ID`, chosen by the daemon that started this process, which removes it when the process dies.
    runner: Uuid,
    registered: AtomicBool,
    ran: AtomicBool,
    /// There is nothing more to do.
    pub(crate) done: CancellationToken,
}

impl Errand {
    /// What this process was started for, if it was started for one row.
    pub(crate) fn from_environment() -> Result<Option<Self>, String> {
        let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let text = text.to_string_lossy();
        Self::parse(&text).map(Some).ok_or_else(|| {
            format!("the environment variable {VARIABLE} is {text:?}; it is rosterd's own, remove it")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (row, runner) = text.split_once('/')?;
        Some(Self {
            row: HistoryId(row.parse().ok()?),
            runner: runner.parse().ok()?,
            registered: AtomicBool::new(false),
            ran: AtomicBool::new(false),
            done: CancellationToken::new(),
        })
    }

    /// As it stands in [`VARIABLE`].
    pub(crate) fn variable(row: HistoryId, runner: Uuid) -> String {
        format!("{row}/{runner}")
    }

    /// The `Runner.ID` it was given, once: whoever registers anew must not be taken for the runner that was lost.
    pub(super) fn first_identity(&self) -> Option<Uuid> {
        (!self.registered.swap(true, Ordering::AcqRel)).then_some(self.runner)
    }

    /// Whether the row was claimed here.
    pub(crate) fn ran(&self) -> bool {
        self.ran.load(Ordering::Acquire)
    }
}

/// Claims the row as soon as it can, and waits for the end of its run, or until `stop`.
pub(super) async fn run(
    state: Arc<EngineState>,
    mut executor: Executor,
    errand: Arc<Errand>,
    stop: CancellationToken,
) {
    let mut link = Link::new(&state, "claim");
    let mut backoff = Backoff::new(Duration::from_secs(1));
    let mut identity = state.lease.identity();
    let mut memory = Memory::default();
    let mut reserved_as = None;
    let give_up = Instant::now() + PATIENCE;
    loop {
        let runner = *identity.borrow_and_update();
        let wait = match runner {
            None => LOOK_EVERY,
            Some(runner) => {
                executor.claim_as(runner);
                let errand = &errand;
                let turn = turn(&state, &executor, &mut link, runner, errand, &mut memory, &mut reserved_as);
                match turn.await {
                    // Only once it is clear that no claim of ours is under way.
                    Ok(Next::Over) if !memory.doubts() => break,
                    Ok(Next::Over | Next::Look) => {
                        backoff.reset();
                        state.database_fine();
                        LOOK_EVERY
                    }
                    Err(error) => {
                        state.database_trouble("claim", &error, &mut link);
                        if !connect::is_locked(&error) {
                            memory.doubt(2 * state.limits.deadline().unwrap_or(claim::LONG_STATEMENT));
                        }
                        backoff.next_wait()
                    }
                }
            }
        };
        if Instant::now() >= give_up && !memory.doubts() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            _ = identity.changed() => {}
        }
    }
    while state.running.count() > 0 {
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.running.ended.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    tokio::select! {
        () = stop.cancelled() => return,
        () = written(&state, &mut link) => {}
    }
    errand.done.cancel();
}

/// Completes when the outcome of the run is in the database, however long that is away or the row is held locked: a
/// process that ended before would leave its row to a rescue, and be counted as one more death under it.
async fn written(state: &EngineState, link: &mut Link) {
    let mut backoff = Backoff::new(Duration::from_secs(1));
    loop {
        // Without a lease nothing of it is written any more.
        let Some(runner) = state.lease.runner() else { return };
        let look = async {
            let db = link.get().await?;
            state.within(lookup::unheard_claims(db, runner, 0, &[])).await
        };
        match look.await {
            Ok(open) if open.is_empty() => return,
            Ok(_) => {}
            Err(error) => {
                state.database_trouble("claim", &error, link);
            }
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

enum Next {
    /// The row has been started, or is not to be had.
    Over,
    Look,
}

async fn turn(
    state: &EngineState,
    executor: &Executor,
    link: &mut Link,
    runner: Uuid,
    errand: &Errand,
    memory: &mut Memory,
    reserved_as: &mut Option<Uuid>,
) -> Result<Next, DatabaseError> {
    let db = link.get().await?;
    if state.lease.runner() != Some(runner) {
        return Ok(Next::Look); // another cluster, and nobody there yet
    }
    claim::give_back_unheard(state, executor, db, runner, memory).await?;
    if *reserved_as != Some(runner) {
        if !state.within(moves::reserve_alone(&mut *db, runner, errand.row)).await? {
            return Ok(Next::Look); // the heartbeat finds out, and registers anew
        }
        *reserved_as = Some(runner);
    }
    match state.within(moves::claim_alone(&mut *db, runner, errand.row)).await? {
        Alone::Claimed(job) => {
            tracing::info!(
                "Job Runner: {} runs alone in process {}, because runners died under it",
                errand.row,
                std::process::id()
            );
            errand.ran.store(true, Ordering::Release);
            let jobs = vec![*job];
            memory.heard(&jobs);
            claim::start(state, executor, db, runner, jobs).await?;
            Ok(Next::Over)
        }
        Alone::NoRoom => Ok(Next::Look),
        Alone::Gone => Ok(Next::Over),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_comes_back_from_its_variable_and_gives_its_runner_once() {
        let (row, runner) = (HistoryId(Uuid::from_u128(1)), Uuid::from_u128(2));
        let errand = Errand::parse(&Errand::variable(row, runner)).unwrap();
        assert_eq!(errand.row, row);
        assert_eq!((errand.first_identity(), errand.first_identity()), (Some(runner), None));
        assert!(Errand::parse("yes").is_none());
    }
}
