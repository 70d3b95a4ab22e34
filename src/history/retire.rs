//! Finished rows leave: first for the table of their month, at last for good. What may go is decided in the database
//! (migrations 20261129000200 and 20261129000300), with the rights of its owner; each call is a transaction of its own.

use super::HistoryId;
use sqlx::PgExecutor;
use sqlx::postgres::types::PgInterval;
use std::time::Duration;
use uuid::Uuid;

/// One step through `JobHistory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archived {
    /// Rows that moved; `None` = another runner is at it, whose turn it is.
    pub rows: Option<u64>,
    /// Where to go on; `None` = this was the last step of a pass.
    pub after: Option<HistoryId>,
}

/// Something that is past its `RetentionDays`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expired {
    /// All rows that ended in this month, such as `2026_11`.
    Month(String),
    /// Some rows of this `JobConfig.ID` that ended in this month.
    Config(String, Uuid),
}

/// Looks at the next `most` rows behind `after` and moves those that finished longer than `older_than` ago.
pub async fn archive(
    db: impl PgExecutor<'_>,
    older_than: Duration,
    after: Option<HistoryId>,
    most: i32,
) -> Result<Archived, sqlx::Error> {
    let older_than = PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX),
    };
    let step = sqlx::query!(
        "select a.Moved as moved, a.LastID as last from vm.archive_history($1, $2, $3) a",
        older_than,
        after.map(|id| id.0),
        most,
    )
    .fetch_one(db)
    .await?;
    Ok(Archived {
        rows: step.moved.map(|rows| u64::try_from(rows).unwrap_or(0)),
        after: step.last.map(HistoryId),
    })
}

/// What may be removed now.
pub async fn expired(db: impl PgExecutor<'_>) -> Result<Vec<Expired>, sqlx::Error> {
    let found =
        sqlx::query!(r#"select e.Month as "month!", e.ConfigID as config from vm.expired_history() e"#)
            .fetch_all(db)
            .await?;
    Ok(found
        .into_iter()
        .map(|row| match row.config {
            None => Expired::Month(row.month),
            Some(config) => Expired::Config(row.month, config),
        })
        .collect())
}

/// Takes a month off `JobHistory`, if all of it may still go: about how many rows it has. `None` = it stays.
///
/// # Errors
/// Somebody reads it, and did not end within a moment: it is tried again at the next turn.
pub async fn detach(db: impl PgExecutor<'_>, month: &str) -> Result<Option<i64>, sqlx::Error> {
    let done = sqlx::query!(
        r#"select d.Detached as "detached!", d.Rows as rows from vm.detach_expired_month($1) d"#,
        month,
    )
    .fetch_one(db)
    .await?;
    Ok(done.detached.then_some(done.rows.unwrap_or(0)))
}

/// Months that are off `JobHistory`, by this runner or by one that died over it, and still there.
pub async fn removed(db: impl PgExecutor<'_>) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(r#"select r as "month!" from vm.removed_months() r"#).fetch_all(db).await
}

/// Removes steps and log lines of the next `most` rows of a removed month. Returns where to go on.
pub async fn forget_removed(
    db: impl PgExecutor<'_>,
    month: &str,
    after: Option<HistoryId>,
    most: i32,
) -> Result<Option<HistoryId>, sqlx::Error> {
    let after = after.map(|id| id.0);
    let last = sqlx::query_scalar!("select vm.forget_removed_rows($1, $2, $3)", month, after, most)
        .fetch_one(db)
        .await?;
    Ok(last.map(HistoryId))
}

/// Drops a removed month.
pub async fn drop_removed(db: impl PgExecutor<'_>, month: &str) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!(r#"select vm.drop_removed_month($1)::text as "nothing""#, month)
        .fetch_one(db)
        .await
        .map(drop)
}

/// Removes the next `most` rows of a configuration from a month that stays. Returns how many.
pub async fn delete(
    db: impl PgExecutor<'_>,
    month: &str,
    config: Uuid,
    most: i32,
) -> Result<u64, sqlx::Error> {
    let rows =
        sqlx::query_scalar!(r#"select vm.delete_expired_rows($1, $2, $3) as "rows!""#, month, config, most)
            .fetch_one(db)
            .await?;
    Ok(u64::try_from(rows).unwrap_or(0))
}
