//! Meanwhile: this runner is alive; who else is; who asked for a cancel?
//!
//! The lease is the Runner row. This loop counts its `Seq` up; every runner watches the `Seq` of the others by
//! its own clock and removes a row that stood still for a whole lease. What was claimed under a removed row is
//! rescued by whoever notices. No wall clock decides anything here.

use super::link::Link;
use super::running::StopCause;
use super::state::EngineState;
use crate::history::lookup;
use crate::postgres::connect::{Backoff, DatabaseError};
use sqlx::PgConnection;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Registers, pulses, watches the other runners and hears cancels, until `stop`. Then the row is removed.
pub(crate) async fn run(state: Arc<EngineState>, stop: CancellationToken) {
    let mut link = Link::new(&state, "heartbeat");
    let mut backoff = Backoff::new(Duration::from_secs(1));
    let mut watch = Watch::new(state.settings.engine.lease());
    let mut last_beat: Option<Duration> = None;
    let mut doubted = false;
    loop {
        state.vitals.progress("heartbeat");
        state.vitals.set_running(state.running.count());
        // While drained it looks every time, so that it claims again as soon as it may.
        let beat_is_due = std::mem::take(&mut doubted)
            || state.draining.load(Ordering::Acquire)
            || last_beat.is_none_or(|at| boottime() >= at + state.settings.engine.heartbeat());
        let turned = tokio::select! {
            turned = turn(&state, &mut link, &mut watch, beat_is_due) => turned,
            () = stop.cancelled() => {
                link.close();
                break;
            }
        };
        let wait = match turned {
            Ok(()) => {
                backoff.reset();
                if beat_is_due {
                    last_beat = Some(boottime());
                }
                let engine = &state.settings.engine;
                if state.running.count() > 0 || state.draining.load(Ordering::Acquire) {
                    engine.poll().min(engine.heartbeat())
                } else {
                    engine.heartbeat()
                }
            }
            Err(error) => {
                state.database_trouble("heartbeat", &error, &mut link);
                backoff.next_wait()
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = state.vitals.rest("heartbeat", wait) => {}
            () = state.hints.cancel.notified() => {}
            () = state.doubted.notified() => doubted = true,
            // The first job in progress: from now on cancels are polled for.
            () = state.running.first.notified() => {}
        }
    }
    let identity = *state.identity.borrow();
    if let Some(id) = identity {
        let leave = async {
            let db = link.get().await?;
            state.promptly(sqlx::query!("delete from Runner where ID = $1", id).execute(db)).await
        };
        // If this fails the others remove the row after a lease.
        let _ = tokio::time::timeout(state.limits.answer, leave).await;
    }
}

async fn turn(
    state: &EngineState,
    link: &mut Link,
    watch: &mut Watch,
    beat_is_due: bool,
) -> Result<(), DatabaseError> {
    let identity = *state.identity.borrow();
    let db = link.get().await?;
    let Some(id) = identity else { return register(state, db).await };
    if beat_is_due && !beat(state, db, id, watch).await? {
        return register(state, db).await;
    }
    if state.running.count() > 0 {
        let cancels = state.promptly(lookup::cancel_requests(&mut *db, id)).await?;
        let gone: Vec<Uuid> = cancels
            .into_iter()
            .filter(|history| !state.running.stop(*history, StopCause::Cancel))
            .map(|history| history.0)
            .collect();
        if !gone.is_empty() {
            forget_answered(state, db, &gone).await?;
        }
    }
    Ok(())
}

/// A request whose row has ended meanwhile. One whose row is still on its way here or out stays.
async fn forget_answered(
    state: &EngineState,
    db: &mut PgConnection,
    ids: &[Uuid],
) -> Result<(), DatabaseError> {
    let forget = sqlx::query!(
        "delete from CancelRequest r
         using JobHistory h
         where r.HistoryID = any($1) and h.ID = r.HistoryID and h.StatusID <> -1",
        ids,
    );
    state.within(forget.execute(db)).await?;
    Ok(())
}

async fn register(state: &EngineState, db: &mut PgConnection) -> Result<(), DatabaseError> {
    let id = Uuid::new_v4();
    let jobs: Vec<i32> = state.jobs.keys().copied().collect();
    let insert = sqlx::query!(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers, Jobs, Running, Tasks)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        id,
        host_name(),
        i32::try_from(std::process::id()).unwrap_or(i32::MAX),
        env!("CARGO_PKG_VERSION"),
        state.settings.engine.lease_seconds,
        count(state.settings.engine.workers),
        &jobs,
        count(state.running.count()),
        count(state.tasks()),
    );
    state.within(insert.execute(db)).await?;
    state.draining.store(false, Ordering::Release);
    state.identity.send_replace(Some(id));
    // Whoever died before may have left rows.
    state.orphans.notify_one();
    tracing::info!("Job Runner: registered as {id}");
    Ok(())
}

/// One pulse, and a look at the others. False if our own row is gone: others held us for dead and may run our
/// rows by now, so every run here is told to stop and none of them is written any more.
async fn beat(
    state: &EngineState,
    db: &mut PgConnection,
    id: Uuid,
    watch: &mut Watch,
) -> Result<bool, DatabaseError> {
    let gap_is_over = watch.begin_round();
    let beat = sqlx::query!(
        r#"with mine as (
             update Runner r
             set Seq = r.Seq + 1, Pulse = clock_timestamp(), Running = $2, Tasks = $3,
                 State = case when $4 then 'stopping' when r.Draining then 'draining' else 'running' end
             where r.ID = $1
             returning r.Draining)
           select (select m.Draining from mine m) as draining,
             array(select r.ID from Runner r where r.ID <> $1 order by r.ID) as "others!",
             array(select r.Seq from Runner r where r.ID <> $1 order by r.ID) as "seqs!""#,
        id,
        count(state.running.count()),
        count(state.tasks()),
        state.stopping.load(Ordering::Acquire),
    );
    let answer = state.promptly(beat.fetch_one(&mut *db)).await?;
    let Some(draining) = answer.draining else {
        tracing::warn!("Job Runner: the lease of {id} was lost; its runs are stopped and it registers anew");
        state.identity.send_replace(None);
        state.running.stop_all(StopCause::Lost, Some(id));
        return Ok(false);
    };
    if state.draining.swap(draining, Ordering::AcqRel) != draining {
        tracing::info!(
            "Job Runner: {}",
            if draining { "drains, claims nothing more" } else { "claims again" }
        );
        state.hints.wake.notify_one();
    }
    if gap_is_over {
        for (other, seq) in watch.silent(answer.others.into_iter().zip(answer.seqs)) {
            let reap = sqlx::query!("delete from Runner where ID = $1 and Seq = $2", other, seq);
            if state.within(reap.execute(&mut *db)).await?.rows_affected() > 0 {
                tracing::warn!("Job Runner: runner {other} is dead, its rows go to others");
                state.orphans.notify_one();
            }
        }
    }
    Ok(true)
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Time since boot, counting the time a virtual machine was suspended, which `Instant` does not.
fn boottime() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Stopwatches on the other runners.
///
/// A runner is dead when its `Seq` stood still for a lease by our clock. After a gap in our own rounds (we
/// were frozen, or the database was away) every stopwatch starts anew: the others could not pulse either.
#[derive(Debug)]
struct Watch {
    lease: Duration,
    last_round: Option<Duration>,
    seen: HashMap<Uuid, (i64, Duration)>,
}

impl Watch {
    fn new(lease: Duration) -> Self {
        Self { lease, last_round: None, seen: HashMap::new() }
    }

    /// Starts a round; false if there was a gap before it.
    fn begin_round(&mut self) -> bool {
        self.begin_round_at(boottime())
    }

    fn begin_round_at(&mut self, now: Duration) -> bool {
        let gapless = self.last_round.is_some_and(|last| now.saturating_sub(last) <= self.lease * 3 / 4);
        self.last_round = Some(now);
        if !gapless {
            self.seen.clear();
        }
        gapless
    }

    /// Those that stood still for a lease, with the `Seq` they stopped at.
    fn silent(&mut self, others: impl Iterator<Item = (Uuid, i64)>) -> Vec<(Uuid, i64)> {
        let now = self.last_round.unwrap_or_default();
        let mut seen = HashMap::new();
        let mut silent = Vec::new();
        for (id, seq) in others {
            let since = match self.seen.get(&id) {
                Some((known, since)) if *known == seq => *since,
                _ => now,
            };
            if now.saturating_sub(since) > self.lease {
                silent.push((id, seq));
            }
            seen.insert(id, (seq, since));
        }
        self.seen = seen;
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_runner_that_stands_still_for_a_lease_is_dead_and_one_that_pulses_is_not() {
        let (dead, alive) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut watch = Watch::new(at(20));
        let mut reaped = Vec::new();
        for round in 0..6_u64 {
            watch.begin_round_at(at(100 + 5 * round));
            let seq = i64::try_from(round).unwrap();
            reaped.extend(watch.silent([(dead, 7), (alive, seq)].into_iter()));
        }
        assert_eq!(reaped, [(dead, 7)]);
    }

    #[test]
    fn after_a_gap_of_our_own_every_stopwatch_starts_anew() {
        let other = Uuid::from_u128(1);
        let mut watch = Watch::new(at(20));
        watch.begin_round_at(at(100));
        watch.silent([(other, 7)].into_iter());
        assert!(!watch.begin_round_at(at(160)), "sixty seconds without a round are a gap");
        assert!(watch.silent([(other, 7)].into_iter()).is_empty());
        assert!(watch.begin_round_at(at(165)));
        assert!(watch.silent([(other, 7)].into_iter()).is_empty());
    }
}
