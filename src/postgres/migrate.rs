//! The schema: embedded migrations, applied forward only, one daemon at a time.

use super::connect::{self, DatabaseError, Limits, Speaker};
use super::roles;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use std::time::Duration;

/// The migrations compiled into this binary.
pub fn migrator() -> Migrator {
    sqlx::migrate!()
}

/// Why the schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer rosterd has been here.
    #[error(
        "failed to use the schema: it is at version {found}, this rosterd knows versions up to {known}; \
         run the newer rosterd (schemas never go back)"
    )]
    Newer {
        /// The database's version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Ours is newer, and this login owns nothing here.
    #[error(
        "failed to use the schema: it is at version {found}, this rosterd needs version {known}, and this login may not \
         migrate it; run `rosterd migrate` as a member of rosterd_owner"
    )]
    MayNotMigrate {
        /// The database's version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Somebody changed a migration that was applied, or one failed half-way.
    #[error("failed to migrate the schema: {0}")]
    Migration(#[from] MigrateError),
    /// The server is one rosterd does not support.
    #[error("failed to use PostgreSQL {found}: rosterd needs version 15 or newer")]
    ServerTooOld {
        /// `server_version`.
        found: String,
    },
    /// A read-only server.
    #[error("failed to use this server: it is a standby (in recovery); give the primary's address")]
    Standby,
    /// The encoding cannot hold every text.
    #[error(
        "failed to use this database: its encoding is {0}, rosterd needs UTF8; create it with encoding 'UTF8'"
    )]
    Encoding(String),
    /// No answer, or no access.
    #[error("failed to reach the database: {0}")]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl SchemaError {
    /// Whether waiting may help.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Standby => true,
            Self::Database(DatabaseError::Sql(error)) if is_in_trouble(error) => true,
            Self::Database(error) => error.is_outage(),
            // A migration that changes several tables may deadlock with the daemons at work, and be the one that loses.
            Self::Migration(MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _)) => {
                connect::is_outage(e) || lost_to_others(e) || is_in_trouble(e)
            }
            _ => false,
        }
    }
}

/// A server in trouble, which passes: disk full, out of memory, too many connections (53), or its files cannot be read or
/// written (58). One that recovered from a crash cannot even let anybody in while its disk is full, and calls that an
/// internal error (XX: `could not write init file`).
fn is_in_trouble(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["53", "58", "XX"].iter().any(|class| code.starts_with(class)))
}

/// Deadlock, serialization failure, lock timeout: nothing is wrong with the statement, others were in its way.
fn lost_to_others(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["40P01", "40001", "55P03"].contains(&&*code))
}

/// The newest version this binary knows.
pub fn known_version() -> i64 {
    migrator().iter().map(|m| m.version).max().unwrap_or(0)
}

/// What [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Version before, if the schema existed.
    pub from: Option<i64>,
    /// Version now.
    pub to: i64,
    /// Descriptions of the migrations applied.
    pub applied: Vec<String>,
}

/// Brings the schema to this binary's version. Two at once wait for each other by sqlx's advisory lock; a
/// schema newer than this binary is refused.
pub async fn migrate(options: &PgConnectOptions, limits: Limits) -> Result<Migrated, SchemaError> {
    // Building indexes on a filled table may take long; the server's limit does not apply here.
    let mut db = connect::connect(
        options,
        "migrate",
        Speaker::Operator,
        Limits { statement: Duration::ZERO, ..limits },
    )
    .await?;
    check_server(&mut db).await?;
    // lock_timeout would end the wait for another daemon that migrates right now.
    sqlx::raw_sql("set lock_timeout = 0; set client_min_messages = warning").execute(&mut db).await?;
    db.lock().await?;
    let outcome = migrate_locked(&mut db).await;
    // The lock ends with the connection anyway; unlocking first frees a waiting daemon sooner.
    let _ = db.unlock().await;
    let _ = db.close().await;
    outcome
}

async fn migrate_locked(db: &mut PgConnection) -> Result<Migrated, SchemaError> {
    // The schema comes first, so that sqlx keeps its own table in it whatever the database's search_path. IF NOT EXISTS
    // would ask for the right to make schemas even where it is there.
    let (exists, ours): (bool, bool) = sqlx::query_as(
        "select s.ID is not null, coalesce(has_schema_privilege(s.ID, 'create'), true)
         from (select to_regnamespace('vm')::oid as ID) s",
    )
    .fetch_one(&mut *db)
    .await?;
    if !exists {
        sqlx::raw_sql("create schema if not exists vm").execute(&mut *db).await?;
    }
    let from = version(&mut *db).await?;
    let known = known_version();
    if let Some(found) = from
        && found > known
    {
        return Err(SchemaError::Newer { found, known });
    }
    if !ours {
        // A login of rosterd_runner uses the schema and changes nothing of it.
        return match from {
            Some(found) if found == known => Ok(Migrated { from, to: known, applied: Vec::new() }),
            found => Err(SchemaError::MayNotMigrate { found: found.unwrap_or(0), known }),
        };
    }
    let mut migrator = migrator();
    let before: Vec<i64> = match from {
        Some(_) => {
            sqlx::query_scalar("select version from vm._sqlx_migrations where success")
                .fetch_all(&mut *db)
                .await?
        }
        None => Vec::new(),
    };
    let applied: Vec<String> =
        migrator.iter().filter(|m| !before.contains(&m.version)).map(|m| m.description.to_string()).collect();
    migrator.set_locking(false); // we hold the lock already
    migrator.run_direct(None, &mut *db, false).await?;
    if !applied.is_empty() && roles::in_place(&mut *db).await? {
        // What the migration made, or made anew, has no grants yet.
        roles::lay_down_on(&mut *db).await?;
    }
    Ok(Migrated { from, to: known, applied })
}

/// The schema's version, or `None` where there is none yet.
pub async fn version(db: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("select to_regclass('vm._sqlx_migrations') is not null")
        .fetch_one(&mut *db)
        .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("select max(version) from vm._sqlx_migrations where success").fetch_one(db).await
}

/// Refuses servers and databases rosterd cannot keep its promises on.
async fn check_server(db: &mut PgConnection) -> Result<(), SchemaError> {
    let (number, name, standby, encoding): (i32, String, bool, String) = sqlx::query_as(
        "select current_setting('server_version_num')::int, current_setting('server_version'),
                pg_is_in_recovery(), current_setting('server_encoding')",
    )
    .fetch_one(db)
    .await?;
    if number < 150_000 {
        return Err(SchemaError::ServerTooOld { found: name });
    }
    if standby {
        return Err(SchemaError::Standby);
    }
    if encoding != "UTF8" {
        return Err(SchemaError::Encoding(encoding));
    }
    Ok(())
}
