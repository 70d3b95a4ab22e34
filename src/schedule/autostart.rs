//! Active AutoStart configurations -> one row at each start of a daemon.

use crate::history::moves;
use crate::seeded_bugs::{self, Bug};
use sqlx::PgConnection;
use uuid::Uuid;

/// What one look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AutoStarted {
    /// Configurations that got a row.
    pub started: Vec<Uuid>,
    /// Configurations that have a live row already.
    pub already_live: Vec<Uuid>,
    /// Whether somebody holds further ones locked: look again.
    pub more: bool,
}

/// Puts one row on the queue for each active AutoStart configuration that has no live row (1, 2, -1), except
/// those in `served`.
///
/// Two daemons that start at once serialize on the configuration's row, so the second sees the first one's
/// row. A configuration that an operator holds locked is left for the next look, so that it delays no other. An
/// error leaves the transaction open: close the connection.
pub async fn run(db: &mut PgConnection, served: &[Uuid]) -> Result<AutoStarted, sqlx::Error> {
    sqlx::raw_sql("begin").execute(&mut *db).await?;
    let configs = if seeded_bugs::is(Bug::AutostartUnlocked) {
        sqlx::query_scalar("select ID from JobConfig where AutoStart and Active").fetch_all(&mut *db).await?
    } else {
        sqlx::query_scalar!(
            "select ID from JobConfig where AutoStart and Active and ID <> all($1) order by ID
         for no key update skip locked",
            served,
        )
        .fetch_all(&mut *db)
        .await?
    };
    // A statement of its own, so that it sees what was committed before the lock was had.
    let started = moves::insert_autostarted(&mut *db, &configs).await?;
    let more = sqlx::query_scalar!(
        r#"select exists (
             select from JobConfig where AutoStart and Active and ID <> all($1) and ID <> all($2)) as "more!""#,
        served,
        &configs,
    )
    .fetch_one(&mut *db)
    .await?;
    if seeded_bugs::is(Bug::AutostartUnlocked) {
        // Daemons seldom start within the same millisecond.
        sqlx::query("select pg_sleep(0.2)").execute(&mut *db).await?;
    }
    sqlx::raw_sql("commit").execute(&mut *db).await?;
    let already_live = configs.into_iter().filter(|id| !started.contains(id)).collect();
    Ok(AutoStarted { started, already_live, more })
}
