//! How many rows, how often: woken by a hint or the clock, takes what is due and hands it to dispatch.
//!
//! The clock is the guarantee (`engine.poll_seconds`, or the next due time if that is sooner); hints only make
//! it faster. A look at the queue may serve several claims (`Look`). Before it sleeps it arms the wake-up hint and
//! looks once more, so that a row inserted in between is not left to the clock.

use super::dispatch::dispatch;
use super::execute::{Executor, FinishedJob};
use super::link::Link;
use super::state::EngineState;
use crate::config_rows;
use crate::history::{ClaimedJob, SUSPECT_FROM, lookup, moves};
use crate::postgres::connect::{self, Backoff, DatabaseError};
use crate::seeded_bugs::{self, Bug};
use sqlx::PgConnection;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the sleeping runner says so at INFO; the other times at DEBUG.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// How long a claim may go on unheard on a server that puts no limit on statements.
pub(super) const LONG_STATEMENT: Duration = Duration::from_mins(1);

/// Claims until `stop`.
pub(crate) async fn run(state: Arc<EngineState>, mut executor: Executor, stop: CancellationToken) {
    let mut link = Link::new(&state, "claim");
    let mut backoff = Backoff::new(Duration::from_secs(1));
    let mut identity = state.lease.identity();
    let job_ids: Vec<i32> = state.jobs.keys().copied().collect();
    let mut memory = Memory::default();
    let mut said: Option<Instant> = None;
    loop {
        state.vitals.progress("claim");
        let runner = *identity.borrow_and_update();
        if let Some(runner) = runner {
            executor.claim_as(runner);
        }
        // Asked before the turn: a run that ends during it must not go unheard.
        let was_full = state.running.count() >= state.settings.engine.workers;
        let draining = state.draining.load(Ordering::Acquire);
        let sleep = match runner {
            Some(runner) if !draining || memory.doubts() => {
                // Told to stop, it need not wait for a database that is away. A claim is always heard to its end.
                let linked = tokio::select! {
                    linked = link.get() => linked.map(drop),
                    () = stop.cancelled() => break,
                };
                let turned = match linked {
                    Ok(()) => turn(&state, &executor, &mut link, runner, &job_ids, &mut memory).await,
                    Err(error) => Err(error),
                };
                match turned {
                    Ok(sleep) => {
                        backoff.reset();
                        if !draining {
                            state.vitals.set_ready(true);
                        }
                        sleep
                    }
                    Err(error) => {
                        state.database_trouble("claim", &error, &mut link);
                        if !connect::is_locked(&error) {
                            memory.doubt(2 * state.limits.deadline().unwrap_or(LONG_STATEMENT));
                        }
                        Some(backoff.next_wait())
                    }
                }
            }
            _ => Some(state.settings.engine.poll()),
        };
        if stop.is_cancelled() {
            break;
        }
        let Some(sleep) = sleep else {
            // More may be due; let the other loops of this thread have their turn.
            tokio::task::yield_now().await;
            continue;
        };
        say(&state, sleep, &mut said);
        tokio::select! {
            () = stop.cancelled() => break,
            () = state.vitals.rest("claim", sleep) => {}
            () = state.hints.wake.notified() => memory.hinted = true,
            () = state.running.ended.notified(), if was_full => {}
            _ = identity.changed() => {}
        }
    }
    // What nobody heard of would be rescued after a lease and count as a crash.
    if let Some(runner) = state.lease.runner()
        && memory.doubts()
    {
        let give_back = async {
            let db = link.get().await?;
            give_back_unheard(&state, &executor, db, runner, &mut memory).await
        };
        let given = tokio::time::timeout(state.limits.answer, give_back).await;
        if !matches!(given, Ok(Ok(()))) {
            tracing::debug!("Job Runner: claims whose answer was lost are left to others");
        }
    }
}

fn say(state: &EngineState, sleep: Duration, said: &mut Option<Instant>) {
    let tasks = state.tasks();
    state.vitals.set_tasks(tasks);
    let seconds = sleep.as_secs_f64().ceil();
    if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
        *said = Some(Instant::now());
        tracing::info!("Job Runner: Sleeping for {seconds} seconds - [{tasks} tasks]");
    } else {
        tracing::debug!("Job Runner: Sleeping for {seconds} seconds - [{tasks} tasks]");
    }
}

/// One look at the queue. Returns how long to sleep, or `None` to look again at once.
async fn turn(
    state: &EngineState,
    executor: &Executor,
    link: &mut Link,
    runner: Uuid,
    job_ids: &[i32],
    memory: &mut Memory,
) -> Result<Option<Duration>, DatabaseError> {
    let engine = &state.settings.engine;
    let draining = state.draining.load(Ordering::Acquire);
    let free = if draining { 0 } else { engine.workers.saturating_sub(state.running.count()) };
    if free == 0 && !memory.doubts() {
        return Ok(Some(engine.poll()));
    }
    let db = link.get().await?;
    if state.lease.runner() != Some(runner) {
        // Connecting has found another cluster. What is claimed as the one we were there would be nobody's.
        return Ok(None);
    }
    give_back_unheard(state, executor, db, runner, memory).await?;
    if free == 0 {
        return Ok(Some(engine.poll()));
    }
    // Without processes for them, suspects run like all others.
    let suspect_from = if engine.alone_processes == 0 { i32::MAX } else { SUSPECT_FROM };
    let hinted = std::mem::take(&mut memory.hinted);
    let look = match memory.look.take().filter(|look| Instant::now() < look.holds_until && !memory.around) {
        Some(look) => look,
        None if hinted && memory.usual_twice => Look::guessed(&memory.usual),
        None => match look_anew(state, db, job_ids, suspect_from).await? {
            Ok(look) => look,
            Err(sleep) => return Ok(Some(sleep)),
        },
    };
    let limit = i64::try_from(free.min(engine.claim_batch)).unwrap_or(i64::MAX);
    let began = Instant::now();
    let bounds = moves::Bounds { limit, after: look.after, around: memory.around, suspect_from };
    let claimed = state.within(moves::claim(&mut *db, runner, &look.tick, bounds)).await?;
    if claimed.jobs.is_empty() && (look.is_guess || look.after > moves::Place::START) {
        // The guess was wrong, or that look has no more.
        memory.usual_twice &= !look.is_guess;
        return Ok(None);
    }
    memory.around = claimed.left_locked;
    memory.learn(&look.tick, !claimed.jobs.is_empty());
    memory.look = look.behind(&claimed, limit);
    if claimed.jobs.is_empty() {
        if memory.around {
            return Ok(None);
        }
        // Another runner was faster, or somebody holds lanes or rows locked, perhaps for long.
        let pause = Duration::from_millis(20 + fastrand::u64(0..30)) * (1 << memory.fruitless.min(5));
        memory.fruitless += 1;
        return Ok(Some(pause.min(engine.poll())));
    }
    memory.fruitless = 0;
    memory.heard(&claimed.jobs);
    state.vitals.claimed(claimed.jobs.len(), began.elapsed());
    start(state, executor, db, runner, claimed.jobs).await?;
    Ok(None)
}

/// How long one look at the queue serves several claims, at least. Rows that come meanwhile in front of those it found,
/// or in other lanes, wait for the next look.
const LOOK_HOLDS: Duration = Duration::from_millis(100);
/// While an old snapshot keeps the dead entries of the index alive, a look steps over all of them and takes long. It holds
/// ten times as long as it took, so that looks never take most of the time, but no longer than a hint may be late.
const LOOK_IS_WORTH: u32 = 10;
const LOOK_HOLDS_AT_MOST: Duration = Duration::from_secs(1);

/// What a look at the queue found, and how far it has been claimed.
#[derive(Debug)]
struct Look {
    tick: moves::Tick,
    holds_until: Instant,
    after: moves::Place,
    is_guess: bool,
}

impl Look {
    /// After a hint: the lanes in which there was something the last two times. Of a job that is started again and again
    /// this saves the look, a quarter of the time from its INSERT to its start.
    fn guessed(usual: &moves::Tick) -> Self {
        let holds_until = Instant::now() + LOOK_HOLDS;
        Self { tick: usual.clone(), holds_until, after: moves::Place::START, is_guess: true }
    }

    /// What is left of it for the next claim, if there is likely to be more: where the claim was full. A limited lane may
    /// have left rows in front of those that were taken, so its room is looked at anew.
    fn behind(self, claimed: &moves::Claimed, limit: i64) -> Option<Self> {
        let full = i64::try_from(claimed.jobs.len()).is_ok_and(|taken| taken >= limit);
        let after = claimed.last.filter(|_| full && !claimed.left_locked && self.tick.limited.is_empty())?;
        Some(Self { after, ..self })
    }
}

/// Asks what there is to claim, or for how long there is nothing.
async fn look_anew(
    state: &EngineState,
    db: &mut PgConnection,
    job_ids: &[i32],
    suspect_from: i32,
) -> Result<Result<Look, Duration>, DatabaseError> {
    let poll = state.settings.engine.poll();
    let mut began = Instant::now();
    let mut tick = state.promptly(moves::tick(&mut *db, job_ids, suspect_from)).await?;
    if tick.schedules_due {
        state.hints.schedule.notify_one();
    }
    if tick.is_idle() && tick.unarmed {
        state.promptly(arm(&mut *db)).await?;
        began = Instant::now();
        tick = state.promptly(moves::tick(&mut *db, job_ids, suspect_from)).await?;
    }
    if tick.suspects_due {
        state.suspects.notify_one();
    }
    if tick.is_idle() {
        let due = tick.next_due_seconds.map_or(poll, |s| Duration::from_secs_f64(s.clamp(0.0, 60.0)));
        return Ok(Err(due.min(poll)));
    }
    let took = began.elapsed();
    let holds_until = Instant::now() + (LOOK_IS_WORTH * took).clamp(LOOK_HOLDS, LOOK_HOLDS_AT_MOST);
    Ok(Ok(Look { tick, holds_until, after: moves::Place::START, is_guess: false }))
}

/// What a turn leaves for the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What the last look found and no claim has taken yet.
    look: Option<Look>,
    /// It was a hint that ended the sleep.
    hinted: bool,
    /// The lanes of the last claim that brought something, where they were few.
    usual: moves::Tick,
    /// They were those of the one before it, too.
    usual_twice: bool,
    /// The last claim left rows behind that somebody holds locked.
    around: bool,
    /// Claims in a row that brought nothing although rows were due.
    fruitless: u32,
    /// The newest `Claim.ID` that was heard of while nothing was in doubt.
    floor: i64,
    /// Those heard of since.
    known: Vec<i64>,
    /// After an error: a claim may have been carried out although its answer never came.
    doubt_until: Option<Instant>,
}

/// More lanes than this are not guessed.
const MOST_USUAL: usize = 8;

impl Memory {
    fn learn(&mut self, tick: &moves::Tick, brought: bool) {
        if !brought || tick.free.len() + tick.limited.len() > MOST_USUAL {
            return;
        }
        self.usual_twice = self.usual.free == tick.free && self.usual.limited == tick.limited;
        if !self.usual_twice {
            self.usual = tick.clone();
        }
    }

    pub(super) fn doubt(&mut self, time: Duration) {
        self.doubt_until = Some(Instant::now() + time);
    }

    /// Whether a claim of ours may be under way of which we have not heard.
    pub(super) fn doubts(&self) -> bool {
        self.doubt_until.is_some()
    }

    pub(super) fn heard(&mut self, jobs: &[ClaimedJob]) {
        for claim in jobs.iter().map(|job| job.fence.claim) {
            if self.doubt_until.is_none() {
                self.floor = self.floor.max(claim);
            } else if !self.known.contains(&claim) {
                self.known.push(claim);
            }
        }
    }
}

/// Rows of claims whose answer was lost stand as in progress here, and nobody runs them: they go back. The server
/// may still be at it when we look first, so this is asked until no such statement can be under way.
pub(super) async fn give_back_unheard(
    state: &EngineState,
    executor: &Executor,
    db: &mut PgConnection,
    runner: Uuid,
    memory: &mut Memory,
) -> Result<(), DatabaseError> {
    let Some(until) = memory.doubt_until.filter(|_| !seeded_bugs::is(Bug::UnheardClaimsKept)) else {
        return Ok(());
    };
    let over = Instant::now() >= until;
    let unheard = lookup::unheard_claims(&mut *db, runner, memory.floor, &memory.known);
    for (fence, config) in state.within(unheard).await? {
        tracing::warn!("Job Runner: {} was claimed but the answer was lost, it goes back", fence.id);
        executor.put_back(fence, config, runner);
        memory.known.push(fence.claim);
    }
    if over {
        memory.doubt_until = None;
        memory.floor = memory.known.drain(..).fold(memory.floor, i64::max);
    }
    Ok(())
}

/// Hands what was claimed to dispatch. If the configurations cannot be read now, the rows go back.
pub(super) async fn start(
    state: &EngineState,
    executor: &Executor,
    db: &mut PgConnection,
    runner: Uuid,
    claimed: Vec<ClaimedJob>,
) -> Result<(), DatabaseError> {
    let mut ids: Vec<Uuid> = claimed.iter().map(|job| job.config).collect();
    ids.sort_unstable();
    ids.dedup();
    let configs = match state.within(config_rows::load(db, &ids, &state.keyring)).await {
        Ok(configs) => configs,
        Err(error) => {
            for job in &claimed {
                executor.put_back(job.fence, job.config, runner);
            }
            return Err(error);
        }
    };
    for job in claimed {
        let Some(config) = configs.get(&job.config) else {
            // A foreign key holds it; nothing but a broken database gets here.
            executor.put_back(job.fence, job.config, runner);
            continue;
        };
        state.vitals.started(Duration::from_secs_f64(job.waited_seconds.max(0.0)));
        let known = state.jobs.get(&job.job);
        match dispatch(job, Arc::clone(config), known, runner) {
            Ok(runnable) => executor.start(runnable),
            Err(finished) => send(executor, finished),
        }
    }
    Ok(())
}

fn send(executor: &Executor, finished: FinishedJob) {
    // The report loop outlives this one.
    let _ = executor.finished.send(finished);
}

/// Asks for a hint at the next INSERT. Slots that an operator's open transaction holds are left alone.
async fn arm(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update WakeHint set Armed = true
         where Slot = any(array(select Slot from WakeHint where not Armed order by Slot for update skip locked))",
    )
    .execute(db)
    .await
    .map(drop)
}
