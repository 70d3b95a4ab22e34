//! Long after report: finished rows move to the table of their month, and what is past its `RetentionDays` is removed.
//!
//! A turn is made of small steps, each a transaction of its own, so that a runner may die between any two. After a step it
//! rests for as long as the step took: it never keeps more than half a processor of the server busy.

use super::link::Link;
use super::state::EngineState;
use crate::history::HistoryId;
use crate::history::retire::{self, Expired};
use crate::postgres::connect::{self, Backoff, DatabaseError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Rows looked at in one step. Those that move are locked until it ends, which an operator's UPDATE of them notices.
const BATCH: i32 = 1000;

/// Puts away what has finished, until `stop`.
pub(super) async fn run(state: Arc<EngineState>, stop: CancellationToken) {
    let mut link = Link::new(&state, "retire");
    let every = state.settings.engine.retention_every();
    let mut backoff = Backoff::new(every.max(Duration::from_secs(1)));
    // Daemons that were started together need not knock together.
    let mut wait = every.mul_f64(fastrand::f64());
    loop {
        state.vitals.progress("retire");
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.vitals.rest("retire", wait) => {}
        }
        let turned = tokio::select! {
            turned = turn(&state, &mut link) => turned,
            // What is cut off here is done by the next turn, whoever has it.
            () = stop.cancelled() => return,
        };
        wait = every;
        match turned {
            Ok(()) => backoff.reset(),
            Err(error) if error.is_outage() => {
                state.database_trouble("retire", &error, &mut link);
                wait = backoff.next_wait();
            }
            // The database is there, and jobs run. So it is said here, and not that the database is away.
            Err(error) => tracing::error!("Retention: failed, the next turn tries again: {error}"),
        }
        // Turns are rare: no connection is kept for them.
        link.close();
    }
}

async fn turn(state: &EngineState, link: &mut Link) -> Result<(), DatabaseError> {
    if state.lease.runner().is_none() {
        return Ok(());
    }
    let db = link.get().await?;
    // A table of that name may be in the way of the archive.
    said("drop what was removed", drop_removed(state, db).await)?;
    if said("archive", archive(state, db).await)? == Some(Pass::OfAnother) {
        tracing::debug!("Retention: it is another runner's turn");
        return Ok(());
    }
    said("remove what is past RetentionDays", remove_expired(state, db).await)?;
    said("drop what was removed", drop_removed(state, db).await)?;
    Ok(())
}

/// Whose pass through the rows it was.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    Ours,
    OfAnother,
}

/// What the database refuses in one part of a turn is said and keeps nobody from the next part; a view that somebody made of
/// a month, say, keeps that month from being dropped.
fn said<T>(part: &str, outcome: Result<T, DatabaseError>) -> Result<Option<T>, DatabaseError> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(error @ DatabaseError::Sql(sqlx::Error::Database(_))) if !error.is_outage() => {
            tracing::error!("Retention: failed to {part}, the next turn tries again: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn remove_expired(state: &EngineState, db: &mut sqlx::PgConnection) -> Result<(), DatabaseError> {
    for expired in state.within(retire::expired(&mut *db)).await? {
        match expired {
            Expired::Month(month) => {
                let step = Step::begin();
                match state.within(retire::detach(&mut *db, &month)).await {
                    Ok(Some(rows)) => tracing::info!(
                        "Retention: removed JobHistory_{month} (about {rows} rows), all of it is past RetentionDays"
                    ),
                    Ok(None) => {}
                    Err(error) if connect::is_locked(&error) => {
                        tracing::info!(
                            "Retention: JobHistory_{month} is past RetentionDays; somebody reads it or changes configurations, so it stays until the next turn"
                        );
                    }
                    Err(error) => return Err(error),
                }
                step.rest(state).await;
            }
            Expired::Config(month, config) => {
                let all = delete_rows(state, db, &month, config).await?;
                if all > 0 {
                    tracing::info!(
                        "Retention: removed {all} rows of JobConfig {config} from JobHistory_{month}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Rows of one configuration in a month that stays. Returns how many.
async fn delete_rows(
    state: &EngineState,
    db: &mut sqlx::PgConnection,
    month: &str,
    config: Uuid,
) -> Result<u64, DatabaseError> {
    let mut all = 0;
    loop {
        let step = Step::begin();
        match state.within(retire::delete(&mut *db, month, config, BATCH)).await {
            Ok(0) => return Ok(all),
            Ok(rows) => all += rows,
            // Somebody is changing the configuration or an organization, perhaps to hold these very rows.
            Err(error) if connect::is_locked(&error) => {
                tracing::debug!("Retention: JobConfig {config}: {error}");
                return Ok(all);
            }
            Err(error) => return Err(error),
        }
        step.rest(state).await;
    }
}

/// One pass through the rows beside the live ones.
async fn archive(state: &EngineState, db: &mut sqlx::PgConnection) -> Result<Pass, DatabaseError> {
    let older_than = state.settings.engine.archive_after();
    let (mut after, mut all, mut pass): (Option<HistoryId>, u64, Pass) = (None, 0, Pass::Ours);
    loop {
        let step = Step::begin();
        match state.within(retire::archive(&mut *db, older_than, after, BATCH)).await {
            Ok(done) => {
                let Some(rows) = done.rows else {
                    pass = Pass::OfAnother;
                    break;
                };
                all += rows;
                after = done.after;
            }
            // The table of a month could not be made, because vacuum or somebody's DDL has JobHistory.
            Err(error) if connect::is_locked(&error) => {
                tracing::info!("Retention: rows stay in JobHistory until the next turn: {error}");
                break;
            }
            Err(error) => return Err(error),
        }
        if after.is_none() {
            break;
        }
        step.rest(state).await;
    }
    if all > 0 {
        tracing::info!("Retention: archived {all} rows");
    }
    Ok(pass)
}

/// Months that this or another runner took off `JobHistory`.
async fn drop_removed(state: &EngineState, db: &mut sqlx::PgConnection) -> Result<(), DatabaseError> {
    for month in state.within(retire::removed(&mut *db)).await? {
        let mut after = None;
        loop {
            let step = Step::begin();
            after = state.within(retire::forget_removed(&mut *db, &month, after, BATCH)).await?;
            if after.is_none() {
                break;
            }
            step.rest(state).await;
        }
        // Its COMMIT unlinks the files, which may take longer than any statement is given; a dead link ends it all the same.
        match state.lifeline.within(None, retire::drop_removed(&mut *db, &month)).await {
            Ok(()) => tracing::info!("Retention: dropped the files of JobHistory_{month}"),
            Err(error) if connect::is_locked(&error) => {
                tracing::info!(
                    "Retention: somebody reads JobHistory_{month}_removed, its files stay until the next turn"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Step(Instant);

impl Step {
    fn begin() -> Self {
        Self(Instant::now())
    }

    async fn rest(self, state: &EngineState) {
        state.vitals.progress("retire");
        state.vitals.rest("retire", self.0.elapsed()).await;
    }
}
