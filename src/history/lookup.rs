//! Every read of the history. Rows are looked up one by one (`lateral ... offset 0`), see `claim.sql`.

use super::{Fence, HistoryId, Status};
use sqlx::PgExecutor;
use std::collections::HashSet;
use uuid::Uuid;

/// Which of these runs still own their rows. The others were rescued from this runner while it was away.
pub async fn still_owned(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    fences: &[Fence],
) -> Result<HashSet<HistoryId>, sqlx::Error> {
    let ids: Vec<Uuid> = fences.iter().map(|fence| fence.id.0).collect();
    let claims: Vec<i64> = fences.iter().map(|fence| fence.claim).collect();
    let rows = sqlx::query_scalar!(
        "select h.ID
         from unnest($2::uuid[], $3::bigint[]) as f (ID, ClaimID)
         cross join lateral (
           select h.ID from only JobHistory h
           where h.ID = f.ID and h.ThreadID = $1 and h.ClaimID = f.ClaimID and h.StatusID in (2, -1) offset 0) h",
        runner,
        &ids,
        &claims,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(HistoryId).collect())
}

/// What became of a row that may have been settled by a statement whose answer never came: its status, if
/// this very claim wrote it last.
pub async fn settled_by(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    fence: Fence,
) -> Result<Option<Status>, sqlx::Error> {
    let status = sqlx::query_scalar!(
        "select StatusID from JobHistory where ID = $1 and ThreadID = $2 and ClaimID = $3 and StatusID not in (2, -1)",
        fence.id.0,
        runner,
        fence.claim,
    )
    .fetch_optional(db)
    .await?;
    Ok(status.and_then(Status::from_id))
}

/// Rows of this runner that an operator wants stopped.
pub async fn cancel_requests(db: impl PgExecutor<'_>, runner: Uuid) -> Result<Vec<HistoryId>, sqlx::Error> {
    let ids = sqlx::query_scalar!("select HistoryID from CancelRequest where RunnerID = $1", runner)
        .fetch_all(db)
        .await?;
    Ok(ids.into_iter().map(HistoryId).collect())
}

/// Rows that stand as claimed by this runner under claims after `floor` that are not among `known`, each with its
/// configuration: claims whose answer never came.
pub async fn unheard_claims(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    floor: i64,
    known: &[i64],
) -> Result<Vec<(Fence, Uuid)>, sqlx::Error> {
    let rows = sqlx::query!(
        "with unheard as materialized (
           select k.ID, k.HistoryIDs from Claim k
           where k.RunnerID = $1 and k.ID > $2 and k.ID <> all($3) and k.Open > 0)
         select h.ID, k.ID as claim, h.Attempt, h.ConfigID
         from unheard k
         cross join lateral unnest(k.HistoryIDs) as i (ID)
         cross join lateral (
           select h.ID, h.Attempt, h.ConfigID from only JobHistory h
           where h.ID = i.ID and h.ThreadID = $1 and h.ClaimID = k.ID and h.StatusID in (2, -1) offset 0) h",
        runner,
        floor,
        known,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (Fence { id: HistoryId(row.id), claim: row.claim, attempt: row.attempt }, row.configid))
        .collect())
}

/// Suspects of these jobs (`Job.ID`) for which a process may be started now, at most `limit`, without those in `rest`.
pub async fn suspects(
    db: impl PgExecutor<'_>,
    jobs: &[i32],
    rest: &[Uuid],
    limit: i64,
) -> Result<Vec<HistoryId>, sqlx::Error> {
    let ids = sqlx::query_file_scalar!("src/history/suspects.sql", jobs, rest, limit).fetch_all(db).await?;
    Ok(ids.into_iter().map(HistoryId).collect())
}

/// Live rows of a schedule: pending ones by their lane, running ones by the claims of their configuration.
pub async fn live_rows_of_schedule(
    db: impl PgExecutor<'_>,
    config: Uuid,
    schedule: Uuid,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select h.ID as "id!" from only JobHistory h
           where h.Ready and h.ConfigID = $1 and h.ScheduleID = $2
           union all
           select h.ID from only JobHistory h
           where h.ID = any(array(
               select unnest(k.HistoryIDs) from Claim k where k.ConfigID = $1 and k.Open > 0))
             and h.StatusID in (2, -1) and h.ScheduleID = $2"#,
        config,
        schedule,
    )
    .fetch_all(db)
    .await
}

/// Those of these rows that are not finished.
pub async fn live(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!("select ID from only JobHistory where ID = any($1) and StatusID in (1, 2, -1)", ids,)
        .fetch_all(db)
        .await
}

/// Whether a run of this row is at work.
pub async fn is_in_progress(db: impl PgExecutor<'_>, id: Uuid) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select from only JobHistory where ID = $1 and StatusID in (2, -1)) as "yes!""#,
        id,
    )
    .fetch_one(db)
    .await
}
