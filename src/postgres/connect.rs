//! Connections, each with the settings that keep a dropped future or a dead link from doing harm.
//!
//! sqlx neither stops a statement whose future was dropped nor notices a silent link, so every connection
//! carries server-side time limits and every call of the engine a deadline of its own; a connection that
//! missed its deadline is dropped, never used again.

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection};
use std::future::Future;
use std::time::Duration;

/// Who speaks on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The engine: the guard lets its moves of rows pass.
    Runner,
    /// Everybody else: jobs, commands of the CLI. To the guard they are operators.
    Operator,
}

/// How long things may take on a connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To connect and log in.
    pub connect: Duration,
    /// For one statement, enforced by the server.
    pub statement: Duration,
}

/// What can go wrong between us and the database, besides a statement's own errors.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// No answer in time. The connection must not be used again.
    #[error("failed to hear from the database within {0:?}")]
    Deadline(Duration),
    /// A standby, which takes no writes.
    #[error("failed to use the database: this server is a standby (pg_is_in_recovery)")]
    Standby,
    /// An old primary beside the one that replaced it.
    #[error("failed to use the database: this server is on an older timeline than the one used before")]
    OldTimeline,
    /// Everything else, in sqlx's words.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// `options` with what every connection of rosterd has: search path, UTC, time limits, and its name.
pub fn with_settings(
    options: PgConnectOptions,
    name: &str,
    speaker: Speaker,
    statement_limit: Duration,
) -> PgConnectOptions {
    let statement_limit = format!("{}ms", statement_limit.as_millis());
    let mut settings = vec![
        // pg_catalog is searched behind vm, so that a function made in vm stands before PostgreSQL's own of that name:
        // the checker steps the clock that way. vm has none otherwise.
        ("search_path", "vm,pg_catalog,public"),
        ("timezone", "UTC"),
        ("statement_timeout", statement_limit.as_str()),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "30s"),
        ("tcp_keepalives_idle", "10"),
        ("default_transaction_isolation", "read committed"),
    ];
    if speaker == Speaker::Runner {
        settings.push(("rosterd.actor", "runner"));
        // Plans of the engine's statements stay on their indexes whatever the statistics say of a table that
        // is empty one moment and full the next.
        settings.push(("enable_seqscan", "off"));
        settings.push(("jit", "off"));
    }
    // Its own logging of statements is off: it asks whether a line would be written and then writes none, after
    // which tracing-subscriber may hold back the next line of ours.
    options.application_name(&format!("rosterd {name}")).options(settings).disable_statement_logging()
}

/// One connection, within the time limit.
pub async fn connect(
    options: &PgConnectOptions,
    name: &str,
    speaker: Speaker,
    limits: Limits,
) -> Result<PgConnection, DatabaseError> {
    let options = with_settings(options.clone(), name, speaker, limits.statement);
    within(limits.connect, PgConnection::connect_with(&options)).await
}

/// A pool for jobs and log lines. It connects when first used.
pub fn pool(options: &PgConnectOptions, name: &str, max_connections: u32, limits: Limits) -> PgPool {
    let options = with_settings(options.clone(), name, Speaker::Operator, limits.statement);
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(limits.connect.max(Duration::from_secs(5)))
        .connect_lazy_with(options)
}

/// A database call with a deadline.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, DatabaseError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(DatabaseError::Deadline(limit)),
    }
}

/// Whether trying again later may help: the server is away, starting, stopping, or the link broke.
pub fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(e) => e.code().is_some_and(|code| {
            // 08 connection, 57P admin shutdown, crash, cannot connect now; 53300 too many connections.
            code.starts_with("08") || code.starts_with("57P") || code == "53300"
        }),
        _ => false,
    }
}

/// Waits between attempts to reach the database: doubling from 50 ms to a cap, with jitter, so that many
/// daemons do not knock in step.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    cap: Duration,
}

impl Backoff {
    /// Up to `cap` between two attempts.
    pub fn new(cap: Duration) -> Self {
        Self { next: Duration::from_millis(50), cap }
    }

    /// How long to wait now; longer the next time.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next.min(self.cap);
        self.next = (self.next * 2).min(self.cap);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = Duration::from_millis(50);
    }
}
