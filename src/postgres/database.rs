//! rosterd's own database, as jobs, the source limits and the log writer use it: a small pool that cannot be poisoned.
//!
//! sqlx's own pool takes a connection back from a call that was dropped half-way, inside whatever transaction that
//! left open, and loses a place for each connection whose link died. Here a connection goes back only after a call
//! that ended, and outside a transaction; any other is closed, and its place is free at once.

mod away;
mod executor;
mod lent;
mod statement;

pub(crate) use away::away;
pub use away::is_away;
pub use lent::Lent;

use super::connect::{self, Backoff, Limits, Speaker};
use super::lifeline::Lifeline;
use lent::Pooled;
use sqlx::postgres::PgConnectOptions;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Connections to rosterd's own database, lent for one call or one transaction each. Cheap to clone; all clones share
/// the same connections.
///
/// `query.fetch_all(&database)` works as with a pool of sqlx, and so do the other calls. Each has a deadline: what the
/// server allows a statement (`database.statement_timeout_seconds`) and a little for the way. While the database is
/// away a call waits for it. One that is under way when it goes ends with an error that [`is_away`] knows; a job that
/// returns it has its attempt given back.
#[derive(Debug, Clone)]
pub struct Database {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    options: PgConnectOptions,
    name: String,
    limits: Limits,
    lifeline: Arc<Lifeline>,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Pooled>>,
}

/// A connection that rested longer is asked whether it is still there before it is lent.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// A connection that nobody wanted for so long is closed.
const IDLE_FOR: Duration = Duration::from_mins(10);
/// A connection is replaced after this time, so that none keeps the memory of the server for ever.
const LIFE: Duration = Duration::from_mins(30);
/// A call waits at most this long for others to give a connection back, not counting outages.
const QUEUE_FOR: Duration = Duration::from_mins(1);

impl Database {
    /// At most this many connections, named `rosterd {name}` on the server. It connects when first used.
    pub fn new(options: &PgConnectOptions, name: &str, max_connections: u32, limits: Limits) -> Self {
        Self::following(Arc::default(), options, name, max_connections, limits)
    }

    /// The same, told by the control loops of this process when the database is away and when the link is dead.
    pub fn following(
        lifeline: Arc<Lifeline>,
        options: &PgConnectOptions,
        name: &str,
        max_connections: u32,
        limits: Limits,
    ) -> Self {
        let places = usize::try_from(max_connections).unwrap_or(Semaphore::MAX_PERMITS);
        let pool = Pool {
            options: options.clone(),
            name: name.to_owned(),
            limits,
            lifeline,
            places: Arc::new(Semaphore::new(places)),
            idle: Mutex::default(),
        };
        Self { pool: Arc::new(pool) }
    }

    /// How it connects.
    pub fn connect_options(&self) -> &PgConnectOptions {
        &self.pool.options
    }

    /// Begins a transaction on a connection of its own.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let mut lent = self.lend().await?;
        lent.raw("begin").await?;
        Ok(Transaction { lent })
    }

    /// A connection, as soon as there is one. Waits while the database is away, for as long as it takes: dropping the
    /// future ends the wait.
    async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let pool = &self.pool;
        let place = loop {
            pool.lifeline.until_up().await;
            let place = Arc::clone(&pool.places).acquire_owned();
            tokio::select! {
                biased;
                place = place => match place {
                    Ok(place) => break place,
                    Err(_) => return Err(sqlx::Error::PoolClosed), // nobody closes it
                },
                // Whoever holds a place cannot give it back now; the time begins anew afterwards.
                () = pool.lifeline.until_down() => {}
                () = tokio::time::sleep(QUEUE_FOR) => return Err(sqlx::Error::PoolTimedOut),
            }
        };
        let mut lent = Lent::vacant(Arc::clone(pool), place);
        let mut backoff = Backoff::new(Duration::from_secs(2));
        loop {
            pool.lifeline.until_up().await;
            while let Some(pooled) = pool.take_idle() {
                if lent.occupy(pooled).await {
                    return Ok(lent);
                }
            }
            let cuts = pool.lifeline.cuts();
            match connect::connect(&pool.options, &pool.name, Speaker::Operator, pool.limits).await {
                Ok(connection) => {
                    lent.hold(Pooled { connection, cuts, born: Instant::now(), rested: Instant::now() });
                    return Ok(lent);
                }
                Err(error) if error.is_outage() => {
                    tracing::debug!(%error, "Database: no connection yet, tried again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Pool {
    /// The one that rested the shortest; those that are too old are closed.
    fn take_idle(&self) -> Option<Pooled> {
        let mut idle = self.idle();
        idle.retain(|pooled| pooled.rested.elapsed() < IDLE_FOR && self.is_good(pooled));
        idle.pop()
    }

    fn put_idle(&self, mut pooled: Pooled) {
        if self.is_good(&pooled) {
            pooled.rested = Instant::now();
            self.idle().push(pooled);
        }
    }

    fn is_good(&self, pooled: &Pooled) -> bool {
        pooled.cuts == self.lifeline.cuts() && pooled.born.elapsed() < LIFE
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Pooled>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction on a connection of its own. `query.execute(&mut *transaction)` is a statement of it, with the same
/// deadlines as any call. If it is dropped instead of committed, its connection is closed and the server rolls back.
#[derive(Debug)]
pub struct Transaction {
    lent: Lent,
}

impl Transaction {
    /// Makes everything it wrote stand. After an error of the link nobody knows whether it does: look, or let the
    /// next attempt find out. One of whose statements failed cannot be committed, and this says so.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        // To a bare COMMIT of a failed transaction the server answers that it rolled back, which sqlx does not tell
        // from a success; the statement before it is refused then.
        self.lent.raw("select; commit").await?;
        self.lent.give_back();
        Ok(())
    }

    /// Undoes everything it wrote.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.lent.raw("rollback").await?;
        self.lent.give_back();
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = Lent;

    fn deref(&self) -> &Lent {
        &self.lent
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Lent {
        &mut self.lent
    }
}
