//! The database roles: `rosterd_owner`, `rosterd_runner`, `rosterd_operator`, `rosterd_viewer`, and what each may do.
//!
//! They are not made by a migration, because whoever migrates may not be allowed to make roles, and a database without
//! them is complete. Where they were laid down once, migrations that come later lay them down again.

use super::connect::{self, DatabaseError, Limits, Speaker};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, PgExecutor};

/// The roles, none of which can log in. Logins are made members of them.
pub const ROLES: [&str; 4] = ["rosterd_owner", "rosterd_runner", "rosterd_operator", "rosterd_viewer"];

/// In this order: the grants name the roles, and the functions are handed over when the tables know their rules.
const STEPS: [&str; 3] =
    [include_str!("roles/create.sql"), include_str!("roles/tables.sql"), include_str!("roles/database.sql")];

/// Whether `migrate --roles` was ever run on this database. The roles themselves may be there for another one.
pub async fn in_place(db: impl PgExecutor<'_>) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_policy where polrelid = to_regclass('vm.jobhistory') and polname = 'runner')",
    )
    .fetch_one(db)
    .await
}

/// Makes the roles and lays down what each may do; doing it again changes nothing. The schema must be migrated.
///
/// # Errors
/// The database is away, or the login may not do it: it has to be a superuser, or own the tables and have CREATEROLE.
pub async fn lay_down(options: &PgConnectOptions, limits: Limits) -> Result<(), DatabaseError> {
    let mut db = connect::connect(options, "migrate", Speaker::Operator, limits).await?;
    lay_down_on(&mut db).await?;
    let _ = db.close().await;
    Ok(())
}

/// The same on a connection that is there. Each table is locked for a moment, so it may meet daemons at work, and be
/// the one that gives way.
pub(super) async fn lay_down_on(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    const ATTEMPTS: u32 = 5;
    let mut attempt = 1;
    loop {
        match lay_down_once(db).await {
            Err(error) if attempt < ATTEMPTS && met_others(&error) => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn lay_down_once(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = db.begin().await?;
    sqlx::raw_sql("set local lock_timeout = '5s'; set local client_min_messages = warning")
        .execute(&mut *transaction)
        .await?;
    for step in STEPS {
        sqlx::raw_sql(step).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Deadlock, serialization failure, lock timeout; or another database that makes the same roles right now, which the
/// server reports as a duplicate key or as a tuple that was concurrently updated.
fn met_others(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["40P01", "40001", "55P03", "23505", "XX000"].contains(&&*code))
}

/// What is not as the roles want it, a sentence each: tables, views and functions that were made, or made anew, since
/// they were laid down.
pub async fn lapses(db: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(include_str!("roles/lapses.sql")).fetch_all(db).await
}
