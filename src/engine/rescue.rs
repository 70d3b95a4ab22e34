//! When nobody reported: rows of dead runners go back, or end as errors. And the housekeeping beside it:
//! progress of running rows is written, closed claims are forgotten.

use super::link::Link;
use super::state::EngineState;
use crate::history::moves;
use crate::postgres::connect::{Backoff, DatabaseError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often `JobHistory.Progress` follows what jobs say.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Looks after abandoned rows until `stop`.
pub(crate) async fn run(state: Arc<EngineState>, stop: CancellationToken) {
    let mut link = Link::new(&state, "rescue");
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let sweep_every = state.settings.engine.lease() / 2;
    let mut next_sweep = Instant::now();
    // A process that is there for one row leaves the rows of others to the daemons.
    let sweeps = state.errand.is_none();
    loop {
        state.vitals.progress("rescue");
        let sweep = Instant::now() >= next_sweep;
        let busy = state.running.count() > 0;
        let turned = tokio::select! {
            turned = turn(&state, &mut link, sweep && sweeps, busy) => turned,
            // Each of its statements is whole by itself; one that is cut off here is another runner's to repeat.
            () = stop.cancelled() => return,
        };
        let wait = match turned {
            Ok(()) => {
                backoff.reset();
                if sweep {
                    next_sweep = Instant::now() + sweep_every;
                }
                // Also while nothing runs, because the first job that starts wakes nobody here; it costs no statement.
                next_sweep.saturating_duration_since(Instant::now()).min(PROGRESS_EVERY)
            }
            Err(error) => {
                state.database_trouble("rescue", &error, &mut link);
                backoff.next_wait()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.vitals.rest("rescue", wait) => {}
            () = state.orphans.notified() => next_sweep = Instant::now(),
        }
    }
}

async fn turn(state: &EngineState, link: &mut Link, sweep: bool, busy: bool) -> Result<(), DatabaseError> {
    let Some(runner) = state.lease.runner() else { return Ok(()) };
    if busy {
        let db = link.get().await?;
        let newest = state.progress.take();
        if !newest.is_empty() {
            state.within(moves::write_progress(db, runner, &newest)).await?;
        }
    }
    if sweep {
        let db = link.get().await?;
        // Most of the time there is nothing, and an idle runner shall cost one statement.
        let found = state.within(look(&mut *db, runner)).await?;
        if found.claims {
            rescue(state, db).await?;
            state.within(moves::forget_closed_claims(&mut *db, runner)).await?;
        }
        if found.leavings {
            state.within(forget_answered_requests(&mut *db, runner)).await?;
            state.within(forget_shares_of_the_dead(&mut *db)).await?;
        }
        // For `systemctl status`.
        state.vitals.set_waiting(usize::try_from(found.waiting).unwrap_or(0));
        state.vitals.set_limited(usize::try_from(found.limited).unwrap_or(0));
        // A runner whose workers are all busy does not tick, and suspects need none of them.
        if found.suspects {
            state.suspects.notify_one();
        }
    }
    Ok(())
}

async fn rescue(state: &EngineState, db: &mut sqlx::PgConnection) -> Result<(), DatabaseError> {
    loop {
        let rescued = state.within(moves::rescue(&mut *db)).await?;
        if rescued.is_empty() {
            return Ok(());
        }
        for (id, status) in &rescued {
            tracing::warn!("Job Runner: rescued {id} from a dead runner, now {status}");
        }
        state.hints.wake.notify_one();
    }
}

/// What a sweep would find.
struct Found {
    /// Claims without a runner, or closed ones of ours.
    claims: bool,
    /// Cancel requests or shares of sources without a runner, or requests to us.
    leavings: bool,
    /// Pending rows. Counting stops at ten thousand: it is a hint for people, and must cost nothing.
    waiting: i64,
    /// Sources that are paused or waited for.
    limited: i64,
    /// Rows that run alone are pending.
    suspects: bool,
}

async fn look(db: &mut sqlx::PgConnection, runner: Uuid) -> Result<Found, sqlx::Error> {
    sqlx::query_as!(
        Found,
        r#"select
             exists (select from Claim k where (k.RunnerID = $1 and k.Open <= 0)
               or not exists (select from Runner r where r.ID = k.RunnerID)) as "claims!",
             exists (select from CancelRequest q where q.RunnerID = $1
               or not exists (select from Runner r where r.ID = q.RunnerID))
             or exists (select from SourceShare x where not exists (select from Runner r where r.ID = x.RunnerID)) as "leavings!",
             (select count(*) from (select from only JobHistory h where h.Ready limit 10000) w) as "waiting!",
             (select count(*) from SourceGate g where g.PausedUntil > clock_timestamp()
                or exists (select from SourceShare x where x.SourceConfigID = g.SourceConfigID and (x.Waiting > 0 or x.StartSince is not null))) as "limited!",
             exists (select from only JobHistory h where h.Ready and h.Crashes >= 2) as "suspects!""#,
        runner,
    )
    .fetch_one(db)
    .await
}

/// They count for nothing; this only keeps the table small.
async fn forget_shares_of_the_dead(db: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from SourceShare x where not exists (select from Runner r where r.ID = x.RunnerID)")
        .execute(db)
        .await
        .map(drop)
}

/// Requests to this runner whose rows have ended meanwhile, and those to runners that are gone.
async fn forget_answered_requests(db: &mut sqlx::PgConnection, runner: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from CancelRequest q
         where (q.RunnerID = $1 or not exists (select from Runner r where r.ID = q.RunnerID))
           and not exists (select from only JobHistory h where h.ID = q.HistoryID and h.StatusID = -1)",
        runner,
    )
    .execute(db)
    .await
    .map(drop)
}
