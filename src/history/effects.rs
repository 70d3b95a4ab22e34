//! Steps that act outside (`JobEffect`): what was begun, what was done.

use super::Fence;
use super::HistoryId;
use sqlx::PgExecutor;
use uuid::Uuid;

/// What is known of a step from before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// Nobody ever began it.
    Never,
    /// An earlier attempt began it and never said that it was done: it was, or it was not.
    Unknown,
    /// It was done; the outside calls it so.
    Done(Option<String>),
}

/// Writes down that a step is about to be done, if the row is still this run's. `None` = it is not.
///
/// The row is locked FOR SHARE meanwhile, so that a rescue under way is waited for and then seen.
pub async fn intend(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    fence: Fence,
    iteration: i64,
    step: &str,
) -> Result<Option<Before>, sqlx::Error> {
    let found = sqlx::query!(
        r#"with mine as materialized (
             select h.ID
             from only JobHistory h
             where h.ID = $1 and h.ThreadID = $2 and h.ClaimID = $3 and h.Attempt = $4 and h.StatusID in (2, -1)
             for share
           ), before as materialized (
             select e.State, e.Reference
             from JobEffect e join mine m on m.ID = e.HistoryID
             where e.Iteration = $5 and e.Step = $6
           ), written as (
             insert into JobEffect as e (HistoryID, Iteration, Step, State, Attempt, RunnerID)
             select m.ID, $5, $6, 'intended', $4, $2 from mine m
             on conflict (HistoryID, Iteration, Step) do update
             set Attempt = excluded.Attempt, RunnerID = excluded.RunnerID
             where e.State = 'intended'
           )
           select (select b.State from before b) as state, (select b.Reference from before b) as reference
           from mine"#,
        fence.id.0,
        runner,
        fence.claim,
        fence.attempt,
        iteration,
        step,
    )
    .fetch_optional(db)
    .await?;
    Ok(found.map(|row| match row.state.as_deref() {
        None => Before::Never,
        Some("done") => Before::Done(row.reference),
        Some(_) => Before::Unknown,
    }))
}

/// Writes down that a step was done. It needs no fence: it says what has happened, whoever has the row now.
pub async fn done(
    db: impl PgExecutor<'_>,
    id: HistoryId,
    iteration: i64,
    step: &str,
    reference: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update JobEffect set State = 'done', Reference = $4, DoneDate = clock_timestamp()
         where HistoryID = $1 and Iteration = $2 and Step = $3 and State = 'intended'",
        id.0,
        iteration,
        step,
        reference,
    )
    .execute(db)
    .await
    .map(drop)
}
