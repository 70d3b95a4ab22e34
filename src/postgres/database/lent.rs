//! One connection while it is lent, and the judgement whether it may go back.

use super::away::away;
use super::statement::Statement;
use super::{Pool, TRUSTED_FOR};
use crate::postgres::connect::{DatabaseError, is_outage};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgDatabaseError, PgQueryResult, PgRow, PgSeverity};
use sqlx::{Connection, Either, Executor, PgConnection};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// A part of an answer.
pub(super) type Step = Either<PgQueryResult, PgRow>;

/// A connection that rests or works.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) connection: PgConnection,
    /// Cuts of the link before it was opened.
    pub(super) cuts: u64,
    pub(super) born: Instant,
    pub(super) rested: Instant,
}

/// A connection lent for one call or one transaction. Dropped, it is closed; only a call that ended gives it back.
///
/// `&mut` of it is an `Executor`. A call that is dropped half-way costs the connection: what the server still does for
/// that call, and what it will answer, is not known.
pub struct Lent {
    pool: Arc<Pool>,
    state: State,
    _place: OwnedSemaphorePermit,
}

enum State {
    Usable(Pooled),
    /// In the hands of a call. If that is dropped, so is the connection.
    AtWork,
    /// The database went away under a call.
    Away,
    /// A call broke it in another way.
    Broken,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usable = matches!(self.state, State::Usable(_));
        f.debug_struct("Lent").field("usable", &usable).finish_non_exhaustive()
    }
}

impl Lent {
    pub(super) fn vacant(pool: Arc<Pool>, place: OwnedSemaphorePermit) -> Self {
        Self { pool, state: State::Broken, _place: place }
    }

    pub(super) fn hold(&mut self, pooled: Pooled) {
        self.state = State::Usable(pooled);
    }

    /// Takes one that rested, if it is still there.
    pub(super) async fn occupy(&mut self, mut pooled: Pooled) -> bool {
        if pooled.rested.elapsed() > TRUSTED_FOR {
            let answer = Some(self.pool.limits.answer);
            if self.pool.lifeline.within(answer, pooled.connection.ping()).await.is_err() {
                return false;
            }
        }
        self.hold(pooled);
        true
    }

    /// To the others, outside a transaction. One that broke is closed instead.
    pub(super) fn give_back(mut self) {
        if let State::Usable(pooled) = std::mem::replace(&mut self.state, State::AtWork) {
            self.pool.put_idle(pooled);
        }
    }

    /// The bare connection, for what needs one. Its calls have no deadline and hang on a dead link for ever; prefer
    /// `&mut` of this value itself.
    pub fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match &mut self.state {
            State::Usable(pooled) => Ok(&mut pooled.connection),
            State::Away => Err(away("the connection was lost in an earlier call")),
            State::AtWork | State::Broken => Err(sqlx::Error::InvalidArgument(
                "an earlier call on this connection was dropped or broke it, so it was closed".to_owned(),
            )),
        }
    }

    /// Statements of ours, without arguments.
    pub(super) async fn raw(&mut self, text: &'static str) -> Result<(), sqlx::Error> {
        self.call(|db| db.execute(sqlx::raw_sql(text))).await.map(drop)
    }

    /// One call, with its deadline.
    pub(super) async fn call<T, C>(&mut self, call: C) -> Result<T, sqlx::Error>
    where
        C: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    {
        let mut pooled = self.take()?;
        let answer = call(&mut pooled.connection);
        let answer = self.pool.lifeline.within(self.pool.limits.deadline(), answer).await;
        self.end(pooled, answer)
    }

    /// One call of many answers, each with the deadline. `each` says whether it goes on.
    pub(super) async fn stream<F: Future<Output = bool>>(
        &mut self,
        statement: Statement,
        mut each: impl FnMut(Step) -> F,
    ) -> Result<(), sqlx::Error> {
        let mut pooled = self.take()?;
        let ended = {
            let mut steps = pooled.connection.fetch_many(statement);
            loop {
                let deadline = self.pool.limits.deadline();
                match self.pool.lifeline.within(deadline, steps.try_next()).await {
                    Ok(Some(step)) => {
                        if !each(step).await {
                            // Nobody wants the rest, and this connection is in the middle of it.
                            return Ok(());
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            }
        };
        self.end(pooled, ended)
    }

    fn take(&mut self) -> Result<Pooled, sqlx::Error> {
        self.connection()?;
        match std::mem::replace(&mut self.state, State::AtWork) {
            State::Usable(pooled) => Ok(pooled),
            _ => unreachable!("it was usable just now"),
        }
    }

    /// Keeps the connection if the call ended, with an answer or a refusal.
    fn end<T>(&mut self, pooled: Pooled, answer: Result<T, DatabaseError>) -> Result<T, sqlx::Error> {
        let (state, answer) = match answer {
            Ok(answer) => (State::Usable(pooled), Ok(answer)),
            Err(DatabaseError::Sql(error)) if is_refusal(&error) => (State::Usable(pooled), Err(error)),
            Err(DatabaseError::Sql(error)) if !is_outage(&error) => (State::Broken, Err(error)),
            Err(error) => (State::Away, Err(away(error))),
        };
        self.state = state;
        answer
    }
}

/// Whether the server refused the statement and is ready for the next one.
fn is_refusal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.try_downcast_ref::<PgDatabaseError>().is_some_and(|error| error.severity() == PgSeverity::Error)
}
