//! Meanwhile: this runner is alive; who else is; who asked for a cancel?
//!
//! The lease is the Runner row. This loop counts its `Seq` up; every runner watches the `Seq` of the others by
//! its own clock and removes a row that stood still for a whole lease. What was claimed under a removed row is
//! rescued by whoever notices. No wall clock decides anything here.

use super::link::Link;
use super::others::{Round, Seen, Watch};
use super::running::StopCause;
use super::state::EngineState;
use crate::history::lookup;
use crate::lease::boottime;
use crate::postgres::connect::{self, Backoff, DatabaseError};
use crate::seeded_bugs::{self, Bug};
use sqlx::PgConnection;
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
    let mut pulse = Pulse::default();
    let mut next_beat = Duration::ZERO;
    let mut doubted = false;
    loop {
        state.vitals.progress("heartbeat");
        state.vitals.set_running(state.running.count());
        // While drained it looks every time, so that it claims again as soon as it may.
        let beat_is_due =
            std::mem::take(&mut doubted) || state.draining.load(Ordering::Acquire) || boottime() >= next_beat;
        let turned = tokio::select! {
            turned = turn(&state, &mut link, &mut watch, &mut pulse, beat_is_due) => turned,
            () = stop.cancelled() => {
                link.close();
                break;
            }
        };
        let wait = match turned {
            Ok(()) => {
                backoff.reset();
                let engine = &state.settings.engine;
                if beat_is_due {
                    next_beat = watch.next_round(boottime() + engine.heartbeat());
                }
                let until_beat = next_beat.saturating_sub(boottime());
                if state.running.count() > 0 || state.draining.load(Ordering::Acquire) {
                    engine.poll().min(until_beat)
                } else {
                    until_beat
                }
            }
            Err(error) => {
                state.database_trouble("heartbeat", &error, &mut link);
                // The next turn shall renew the lease, whatever this one was for.
                next_beat = Duration::ZERO;
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
    if let Some(id) = state.lease.runner() {
        let leave = async {
            let db = link.get().await?;
            state.promptly(sqlx::query!("delete from Runner where ID = $1", id).execute(db)).await
        };
        // If this fails the others remove the row after a lease.
        let _ = tokio::time::timeout(state.limits.answer, leave).await;
    }
}

/// What we know of our own `Seq`. Only this loop counts it up, so any other value means that somebody else has
/// our ID (a machine that was cloned while we ran), or that what we wrote was lost in a failover.
#[derive(Debug, Default)]
struct Pulse {
    /// As last read.
    seq: i64,
    /// When pulses were sent whose answer never came: each was counted, or not, or will be when the server gets to it.
    unheard: Vec<Duration>,
}

/// A statement that was given up is not carried out later than this, on a server that puts no limit on statements.
const LONG_STATEMENT: Duration = Duration::from_mins(1);

impl Pulse {
    /// The values that `Seq` may have when a pulse sent now is carried out.
    fn expected(&mut self, now: Duration, longest: Duration) -> (i64, i64) {
        self.unheard.retain(|sent| now.saturating_sub(*sent) < longest);
        let unheard = i64::try_from(self.unheard.len()).unwrap_or(i64::MAX);
        (self.seq, self.seq.saturating_add(unheard))
    }
}

async fn turn(
    state: &EngineState,
    link: &mut Link,
    watch: &mut Watch,
    pulse: &mut Pulse,
    beat_is_due: bool,
) -> Result<(), DatabaseError> {
    // Connecting may find another cluster, and then we are nobody in it.
    let db = link.get().await?;
    let Some(id) = state.lease.runner() else { return register(state, db, pulse).await };
    if beat_is_due && !beat(state, db, id, watch, pulse).await? {
        return register(state, db, pulse).await;
    }
    if state.running.count() > 0 && !seeded_bugs::is(Bug::CancelsUnheard) {
        let cancels = state.promptly(lookup::cancel_requests(&mut *db, id)).await?;
        for history in cancels {
            // One that is not in progress here is on its way in or out, or has ended: the rescue loop forgets it. (This
            // one touches no table that an operator may hold locked, because others judge our life by it.)
            state.running.stop(history, StopCause::Cancel);
        }
    }
    Ok(())
}

async fn register(
    state: &EngineState,
    db: &mut PgConnection,
    pulse: &mut Pulse,
) -> Result<(), DatabaseError> {
    let id = state.next_identity();
    let jobs: Vec<i32> = state.jobs.keys().copied().collect();
    let sent = boottime();
    let insert = sqlx::query!(
        "with before as (delete from Runner where ID = $10)
         insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers, Jobs, Running, Tasks, Draining)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $11)",
        id,
        host_name(),
        i32::try_from(std::process::id()).unwrap_or(i32::MAX),
        env!("CARGO_PKG_VERSION"),
        state.settings.engine.lease_seconds,
        count(state.settings.engine.workers),
        &jobs,
        count(state.running.count()),
        count(state.tasks()),
        state.left_behind(),
        // Whoever drained this daemon meant the daemon, not the name it had.
        state.draining.load(Ordering::Acquire),
    );
    state.within(insert.execute(db)).await?;
    state.forget_left_behind();
    *pulse = Pulse::default();
    state.lease.registered(id, sent);
    // Whoever died before may have left rows.
    state.orphans.notify_one();
    state.say_registered(id);
    Ok(())
}

/// One pulse, and a look at the others. False if our own row is gone or no longer ours: others held us for dead
/// and may run our rows by now, so every run here is told to stop and none of them is written any more.
async fn beat(
    state: &EngineState,
    db: &mut PgConnection,
    id: Uuid,
    watch: &mut Watch,
    pulse: &mut Pulse,
) -> Result<bool, DatabaseError> {
    let sent = boottime();
    let longest = state.limits.deadline().unwrap_or(LONG_STATEMENT);
    let (least, most) = pulse.expected(sent, longest);
    let beat = sqlx::query!(
        r#"with mine as (
             update Runner r
             set Seq = r.Seq + 1, Pulse = clock_timestamp(), Running = $2, Tasks = $3,
                 State = case when $4 then 'stopping' when r.Draining then 'draining' else 'running' end
             where r.ID = $1 and r.Seq between $5 and $6
             returning r.Seq, r.Draining)
           select (select m.Seq from mine m) as seq, (select m.Draining from mine m) as draining,
             array(select r.ID from Runner r where r.ID <> $1 order by r.ID) as "others!",
             array(select r.Seq from Runner r where r.ID <> $1 order by r.ID) as "seqs!",
             array(select r.LeaseSeconds from Runner r where r.ID <> $1 order by r.ID) as "leases!""#,
        id,
        count(state.running.count()),
        count(state.tasks()),
        state.stopping.load(Ordering::Acquire),
        least,
        most,
    );
    pulse.unheard.push(sent);
    let answer = state.promptly(beat.fetch_one(&mut *db)).await?;
    let (Some(seq), Some(draining)) = (answer.seq, answer.draining) else {
        if seeded_bugs::is(Bug::LeaseLossUnnoticed) {
            state.lease.renewed(id, sent);
            return Ok(true);
        }
        tracing::warn!("Job Runner: the lease of {id} was lost; its runs are stopped and it registers anew");
        state.lose_lease();
        return Ok(false);
    };
    pulse.seq = seq;
    pulse.unheard.pop();
    state.lease.renewed(id, sent);
    if state.draining.swap(draining, Ordering::AcqRel) != draining {
        tracing::info!(
            "Job Runner: {}",
            if draining { "drains, claims nothing more" } else { "claims again" }
        );
        state.hints.wake.notify_one();
    }
    // A round that was not answered is none: while the database accepts connections and answers nothing, the
    // others cannot pulse either, and to count on would take them for dead.
    watch.begin(Round { sent, answered: boottime() });
    let others = answer.others.into_iter().zip(answer.seqs).zip(answer.leases);
    let others = others.map(|((id, seq), lease)| Seen { id, seq, lease: known_lease(state, lease) });
    for Seen { id: other, seq, .. } in watch.silent(others) {
        // The row may have pulsed since we looked, or be gone.
        let reap = sqlx::query!("delete from Runner where ID = $1 and Seq = $2", other, seq);
        match state.within(reap.execute(&mut *db)).await {
            Ok(done) if done.rows_affected() > 0 => {
                tracing::warn!("Job Runner: runner {other} is dead, its rows go to others");
                state.orphans.notify_one();
            }
            // An operator edits it; there is the next round.
            Err(error) if connect::is_locked(&error) => {
                tracing::debug!("Job Runner: runner {other}: {error}");
            }
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// A lease that makes no sense was edited by hand; ours does instead.
fn known_lease(state: &EngineState, seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|lease| !lease.is_zero())
        .unwrap_or(state.settings.engine.lease())
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
