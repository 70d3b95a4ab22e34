//! `query.fetch_all(&database)` and its relatives, as for a pool or a transaction of sqlx.

use super::Database;
use super::lent::{Lent, Step};
use super::statement::Statement;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use sqlx::postgres::{PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection, Execute, Executor, Postgres, SqlStr};
use std::future::Future;
use std::task::Poll;
use tokio::sync::mpsc;

/// Rows that are ready before somebody asks for them.
const AHEAD: usize = 64;

impl<'p> Executor<'p> for &Database {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (database, statement) = (self.clone(), Statement::of(query));
        streamed(move |steps| async move {
            let statement = statement?;
            let may_begin = statement.may_begin();
            let mut lent = database.lend().await?;
            let answer = forward(&mut lent, statement, &steps).await;
            settle(lent, may_begin, answer).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (database, statement) = (self.clone(), Statement::of(query));
        Box::pin(async move {
            let statement = statement?;
            let may_begin = statement.may_begin();
            let mut lent = database.lend().await?;
            let answer = lent.call(|db| db.fetch_optional(statement)).await;
            settle(lent, may_begin, answer).await
        })
    }

    fn prepare_with<'e>(
        self,
        text: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        let (database, parameters) = (self.clone(), parameters.to_vec());
        Box::pin(async move {
            let mut lent = database.lend().await?;
            let answer = (&mut lent).prepare_with(text, &parameters).await;
            settle(lent, false, answer).await
        })
    }

    fn describe<'e>(self, text: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let database = self.clone();
        Box::pin(async move {
            let mut lent = database.lend().await?;
            let answer = lent.call(|db| db.describe(text)).await;
            settle(lent, false, answer).await
        })
    }
}

impl<'c> Executor<'c> for &'c mut Lent {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::of(query);
        streamed(move |steps| async move { forward(self, statement?, &steps).await })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::of(query);
        Box::pin(async move {
            let statement = statement?;
            self.call(|db| db.fetch_optional(statement)).await
        })
    }

    fn prepare_with<'e>(
        self,
        text: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let parameters = parameters.to_vec();
        Box::pin(async move {
            self.call(|db| Box::pin(async move { db.prepare_with(text, &parameters).await })).await
        })
    }

    fn describe<'e>(self, text: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.call(|db| db.describe(text)).await })
    }
}

/// After the only call on a connection: it goes back, unless that call left a transaction open.
async fn settle<T>(
    mut lent: Lent,
    may_begin: bool,
    answer: Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    if may_begin {
        // A statement that begins a transaction and then fails leaves it failed, which the question below cannot see.
        let answer = answer?;
        if lent.call(|db| Box::pin(is_in_transaction(db))).await? {
            return Err(sqlx::Error::InvalidArgument(
                "the statement began a transaction, which ended at once with its connection: use Database::begin"
                    .to_owned(),
            ));
        }
        lent.give_back();
        return Ok(answer);
    }
    lent.give_back();
    answer
}

/// Asks the server, by an empty statement: sqlx itself knows only the transactions that it began.
async fn is_in_transaction(db: &mut sqlx::PgConnection) -> Result<bool, sqlx::Error> {
    match db.begin_with("").await {
        Ok(_) => Ok(true),
        Err(sqlx::Error::BeginFailed) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn forward(
    lent: &mut Lent,
    statement: Statement,
    steps: &mpsc::Sender<Step>,
) -> Result<(), sqlx::Error> {
    lent.stream(statement, |step| async move { steps.send(step).await.is_ok() }).await
}

/// What `work` sends, and then its error. The work goes on only while the stream is asked, and ends with it.
fn streamed<'e, W>(work: impl FnOnce(mpsc::Sender<Step>) -> W) -> BoxStream<'e, Result<Step, sqlx::Error>>
where
    W: Future<Output = Result<(), sqlx::Error>> + Send + 'e,
{
    let (sender, mut steps) = mpsc::channel(AHEAD);
    let mut work = Box::pin(work(sender));
    let mut outcome = None;
    stream::poll_fn(move |cx| {
        let mut next = steps.poll_recv(cx);
        if !matches!(next, Poll::Ready(Some(_))) && outcome.is_none() {
            if let Poll::Ready(ended) = work.as_mut().poll(cx) {
                outcome = Some(ended.err());
            }
            next = steps.poll_recv(cx);
        }
        match (next, &mut outcome) {
            (Poll::Ready(Some(step)), _) => Poll::Ready(Some(Ok(step))),
            // The work has ended and all it sent was taken: only now is its end that of the stream.
            (Poll::Ready(None), Some(failure)) => Poll::Ready(failure.take().map(Err)),
            // Pending is no end, not even after that of the work: tokio has a task that did much at one go come again,
            // whatever lies ready for it.
            (_, _) => Poll::Pending,
        }
    })
    .boxed()
}
