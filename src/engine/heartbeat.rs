//! Meanwhile: this runner is alive; who else is; who asked for a cancel?
//!
//! The lease is the Runner row. This loop counts its `Seq` up; every runner watches the `Seq` of the others by
//! its own clock and removes a row that stood still for a whole lease. What was claimed under a removed row is
//! rescued by whoever notices. No wall clock decides anything here.

use super::link::Link;
use super::running::StopCause;
use super::state::EngineState;
use crate::history::lookup;
use crate::lease::boottime;
use crate::postgres::connect::{Backoff, DatabaseError};
use crate::seeded_bugs::{self, Bug};
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
    /// Pulses sent since whose answer never came: each was counted or not.
    unheard: i64,
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
         insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers, Jobs, Running, Tasks)
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
        state.left_behind(),
    );
    state.within(insert.execute(db)).await?;
    state.forget_left_behind();
    *pulse = Pulse::default();
    state.draining.store(false, Ordering::Release);
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
        pulse.seq,
        pulse.seq + pulse.unheard,
    );
    pulse.unheard += 1;
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
    *pulse = Pulse { seq, unheard: 0 };
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
    watch.begin_round_at(sent);
    let others = answer.others.into_iter().zip(answer.seqs).zip(answer.leases);
    let others = others.map(|((id, seq), lease)| Seen { id, seq, lease: known_lease(state, lease) });
    for Seen { id: other, seq, .. } in watch.silent(others) {
        // The row may have pulsed since we looked, or be gone.
        let reap = sqlx::query!("delete from Runner where ID = $1 and Seq = $2", other, seq);
        if state.within(reap.execute(&mut *db)).await?.rows_affected() > 0 {
            tracing::warn!("Job Runner: runner {other} is dead, its rows go to others");
            state.orphans.notify_one();
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

/// Another runner, as a pulse found it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    id: Uuid,
    seq: i64,
    /// `Runner.LeaseSeconds`: its own, which it counts on.
    lease: Duration,
}

/// How long a `Seq` has stood still.
#[derive(Debug, Clone, Copy)]
struct Stopwatch {
    seq: i64,
    since: Duration,
    rounds: u32,
}

/// Stopwatches on the other runners.
///
/// A runner is dead when its `Seq` stood still for its lease by our clock. After a gap in our own rounds (we
/// were frozen, or the database was away) every stopwatch starts anew: the others could not pulse either. One
/// interval is never enough, because a runner whose lease is shorter than our interval may just be coming back.
#[derive(Debug)]
struct Watch {
    /// Longest time between two rounds that is no gap. With the pulse that was seen just before an outage and the
    /// one that is sent just after it, an outage of this length does not make up a lease.
    longest_gap: Duration,
    last_round: Option<Duration>,
    seen: HashMap<Uuid, Stopwatch>,
    /// When the first of them has stood still for its lease, if it goes on to.
    first_end: Option<Duration>,
}

impl Watch {
    fn new(lease: Duration) -> Self {
        Self { longest_gap: lease / 2, last_round: None, seen: HashMap::new(), first_end: None }
    }

    /// A round was sent at this time, and answered; false if there was a gap before it.
    fn begin_round_at(&mut self, now: Duration) -> bool {
        let gapless = self.last_round.is_some_and(|last| now.saturating_sub(last) <= self.longest_gap);
        self.last_round = Some(now);
        if !gapless && !seeded_bugs::is(Bug::ReapAfterOwnGap) {
            self.seen.clear();
        }
        gapless
    }

    /// When to look again: at `usual`, or as soon as one of them may be dead, so that its rows need not wait for our
    /// own rhythm.
    fn next_round(&self, usual: Duration) -> Duration {
        /// A lease is over when more than its time has passed.
        const JUST_AFTER: Duration = Duration::from_millis(20);
        self.first_end.map_or(usual, |end| (end + JUST_AFTER).min(usual))
    }

    /// Those that stood still for their lease.
    fn silent(&mut self, others: impl Iterator<Item = Seen>) -> Vec<Seen> {
        let now = self.last_round.unwrap_or_default();
        let mut seen = HashMap::new();
        let mut silent = Vec::new();
        self.first_end = None;
        for other in others {
            let watch = match self.seen.get(&other.id) {
                Some(watch) if watch.seq == other.seq => Stopwatch { rounds: watch.rounds + 1, ..*watch },
                _ => Stopwatch { seq: other.seq, since: now, rounds: 0 },
            };
            let early = seeded_bugs::is(Bug::ReapEarly) && watch.rounds >= 1;
            if now.saturating_sub(watch.since) > other.lease && watch.rounds >= 2 || early {
                silent.push(other);
            } else if let end = watch.since.saturating_add(other.lease)
                && watch.rounds > 0
                && end > now
            {
                self.first_end = Some(self.first_end.map_or(end, |first| first.min(end)));
            }
            seen.insert(other.id, watch);
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

    fn seen(id: u128, seq: i64) -> Seen {
        Seen { id: Uuid::from_u128(id), seq, lease: at(20) }
    }

    #[test]
    fn a_runner_that_stands_still_for_its_own_lease_is_dead_and_one_that_pulses_is_not() {
        let mut watch = Watch::new(at(20));
        let mut reaped = Vec::new();
        let patient = Seen { lease: at(60), ..seen(3, 7) };
        for round in 0..6_u64 {
            watch.begin_round_at(at(100 + 5 * round));
            let alive = seen(2, i64::try_from(round).unwrap());
            reaped.extend(watch.silent([seen(1, 7), alive, patient].into_iter()));
        }
        assert_eq!(reaped, [seen(1, 7)]);
    }

    #[test]
    fn the_next_round_is_earlier_than_usual_only_for_one_that_stands_still() {
        let mut watch = Watch::new(at(20));
        watch.begin_round_at(at(100));
        watch.silent([seen(1, 7), seen(2, 1)].into_iter());
        assert_eq!(watch.next_round(at(105)), at(105));
        watch.begin_round_at(at(109));
        watch.silent([seen(1, 7), seen(2, 2)].into_iter());
        watch.begin_round_at(at(118));
        watch.silent([seen(1, 7), seen(2, 3)].into_iter());
        assert_eq!(watch.next_round(at(123)), at(120) + Duration::from_millis(20));
    }

    #[test]
    fn a_lease_shorter_than_our_interval_is_over_after_two_of_them() {
        let mut watch = Watch::new(at(60));
        let brief = Seen { lease: at(3), ..seen(1, 7) };
        watch.begin_round_at(at(100));
        assert!(watch.silent([brief].into_iter()).is_empty());
        watch.begin_round_at(at(115));
        assert!(watch.silent([brief].into_iter()).is_empty(), "it may have been away with the database");
        watch.begin_round_at(at(130));
        assert_eq!(watch.silent([brief].into_iter()), [brief]);
    }

    #[test]
    fn after_a_gap_of_our_own_every_stopwatch_starts_anew() {
        let mut watch = Watch::new(at(20));
        watch.begin_round_at(at(100));
        watch.silent([seen(1, 7)].into_iter());
        assert!(!watch.begin_round_at(at(160)), "sixty seconds without a round are a gap");
        assert!(watch.silent([seen(1, 7)].into_iter()).is_empty());
        assert!(watch.begin_round_at(at(165)));
        assert!(watch.silent([seen(1, 7)].into_iter()).is_empty());
    }

    /// Runs itself once more where the time since boot is a day ahead and every other clock is as it was: to such a
    /// process it looks as if its machine had been suspended for that day.
    #[test]
    #[cfg(target_os = "linux")]
    #[allow(clippy::print_stderr, clippy::print_stdout, reason = "a test that did not run must say so")]
    fn the_clock_of_leases_counts_the_time_a_machine_was_suspended() {
        const INSIDE: &str = "ROSTERD_TEST_BOOTTIME";
        if std::env::var_os(INSIDE).is_some() {
            println!("boottime {}", boottime().as_secs());
            return;
        }
        let this = "engine::heartbeat::tests::the_clock_of_leases_counts_the_time_a_machine_was_suspended";
        let said = std::process::Command::new("unshare")
            .args(["--time", "--boottime", "86400"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(INSIDE, "1")
            .output();
        let text =
            said.as_ref().map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        let Some(inside) = text.lines().find_map(|line| line.split("boottime ").nth(1)) else {
            eprintln!(
                "SKIPPED: a suspended machine was NOT tried, because no clock can be moved here: {said:?}"
            );
            return;
        };
        let ahead = inside.trim().parse::<u64>().unwrap() - boottime().as_secs();
        assert!((86_390..=86_400).contains(&ahead), "{ahead} s ahead");
    }
}
