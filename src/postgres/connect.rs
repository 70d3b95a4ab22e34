//! Connections, each with the settings that keep a dropped future or a dead link from doing harm.
//!
//! sqlx neither stops a statement whose future was dropped nor notices a silent link, so every connection
//! carries server-side time limits and every call a deadline of its own; a connection that missed its deadline
//! is dropped, never used again.

use futures_util::stream::{FuturesUnordered, StreamExt};
use sqlx::postgres::PgConnectOptions;
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

/// Plans of the engine's statements stay on their indexes whatever the statistics say of a table that is empty one moment
/// and full the next: a look-up for each row of a batch, and no walk over a whole table or index, which is what the other
/// joins would be. Such a plan is as good for one row as for a thousand, so it is made once: to plan a tick anew takes
/// several times what its execution does.
pub(crate) const PLANS_OF_THE_ENGINE: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// How long things may take on a connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To connect and log in.
    pub connect: Duration,
    /// For one statement, enforced by the server; zero is no limit, as for PostgreSQL itself.
    pub statement: Duration,
    /// For the answer to a statement that costs nothing, and for the way of any answer.
    pub answer: Duration,
}

impl Limits {
    /// How long to wait for the answer of any statement: what the server allows it, and its way.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.statement.is_zero()).then_some(self.statement + self.answer)
    }

    /// How long a statement of the engine waits for a lock: less than for its answer, so that the server says that
    /// it is locked before we take the link for dead.
    fn lock(&self) -> Duration {
        self.answer.mul_f64(0.8)
    }
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
    /// Another statement of this process had no answer in time, so the link is taken for dead.
    #[error("failed to hear from the database: its link is dead")]
    Cut,
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
    // Its own logging of statements is off: it asks whether a line would be written and then writes none, after
    // which tracing-subscriber may hold back the next line of ours.
    options
        .application_name(&format!("rosterd {name}"))
        .options(settings(speaker, statement_limit))
        .disable_statement_logging()
}

fn settings(speaker: Speaker, statement_limit: Duration) -> Vec<(&'static str, String)> {
    let statement_limit = format!("{}ms", statement_limit.as_millis());
    let mut settings = vec![
        // pg_catalog is searched behind vm, so that a function made in vm stands before PostgreSQL's own of that name:
        // the checker steps the clock that way. vm has none otherwise.
        ("search_path", "vm,pg_catalog,public"),
        ("timezone", "UTC"),
        ("statement_timeout", statement_limit.as_str()),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "30s"),
        // Ignored where the server's system does not know them.
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "15s"),
        ("default_transaction_isolation", "read committed"),
    ];
    if speaker == Speaker::Runner {
        settings.push(("rosterd.actor", "runner"));
        settings.extend(PLANS_OF_THE_ENGINE);
    }
    settings.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

/// One connection, within the time limit.
pub async fn connect(
    options: &PgConnectOptions,
    name: &str,
    speaker: Speaker,
    limits: Limits,
) -> Result<PgConnection, DatabaseError> {
    let mut settings = settings(speaker, limits.statement);
    if speaker == Speaker::Runner {
        settings.push(("lock_timeout", format!("{}ms", limits.lock().as_millis())));
    }
    let options = with_settings(options.clone(), name, speaker, limits.statement).options(settings.clone());
    let mut db = within(limits.connect, knock(&options)).await?;
    // A pooler may drop what a connection asks for at its start (PgBouncer: ignore_startup_parameters), and without
    // its settings a runner would be an operator to the guard and would find no table.
    let (names, values): (Vec<&str>, Vec<String>) = settings.into_iter().unzip();
    let again =
        "select set_config(Name, Value, false) from unnest($1::text[], $2::text[]) as s (Name, Value)";
    let again = sqlx::query(again).persistent(false).bind(names).bind(values).execute(&mut db);
    within(limits.connect, again).await?;
    Ok(db)
}

/// Connects by several attempts at once. One that fell into a black hole repeats its SYN after 1, 3 and 7 seconds
/// only, so a fresh one is begun beside it again and again: when the hole closes the next is let in at once.
async fn knock(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    const AGAIN: Duration = Duration::from_millis(1500);
    let mut attempts = FuturesUnordered::new();
    loop {
        attempts.push(open(options));
        tokio::select! {
            Some(outcome) = attempts.next() => return outcome,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn open(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut db = PgConnection::connect_with(options).await?;
    notice_our_end(&mut db).await?;
    Ok(db)
}

/// Lets the server look whether we are still there while it works for us, so that a statement whose caller is gone
/// ends and frees its locks. Asked for afterwards, because where the server cannot do it, it refuses connections that
/// ask for it at their start.
pub(super) async fn notice_our_end(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    match sqlx::raw_sql("set client_connection_check_interval = '2s'").execute(db).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error),
    }
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

impl DatabaseError {
    /// Whether trying again later may help.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Deadline(_) | Self::Cut | Self::Standby | Self::OldTimeline => true,
            Self::Sql(error) => is_outage(error),
        }
    }
}

impl From<DatabaseError> for sqlx::Error {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Sql(error) => error,
            unheard => Self::Io(std::io::Error::other(unheard)),
        }
    }
}

/// Whether somebody held locked what a statement wanted for longer than it may wait (55P03). The connection is fine.
pub fn is_locked(error: &DatabaseError) -> bool {
    let DatabaseError::Sql(sqlx::Error::Database(error)) = error else { return false };
    error.code().is_some_and(|code| code == "55P03")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_take_what_the_server_allows_and_its_way_and_a_lock_less_than_an_answer() {
        let mut limits = crate::config::Config::built_in().database.limits();
        assert_eq!(limits.deadline(), Some(Duration::from_millis(32_500)));
        assert_eq!(limits.lock(), Duration::from_secs(2));
        limits.statement = Duration::ZERO;
        assert_eq!(limits.deadline(), None, "no limit, as for the server");
    }

    #[test]
    fn knocking_is_capped_and_jittered() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let waits: Vec<Duration> = (0..50).map(|_| backoff.next_wait()).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(1)));
        let late = &waits[10..];
        assert!(late.iter().all(|wait| *wait >= Duration::from_millis(500)));
        assert!(late.iter().any(|wait| wait != &late[0]), "daemons would knock in step");
    }
}
