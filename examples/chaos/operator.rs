//! One operator's connection: plain SQL, each statement with a time limit, and an honest word on how it ended.

use crate::clock;
use crate::recorder::{Answer, Intent, Operation, Recorder};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Longer than any fault that holds a statement up.
const PATIENCE: Duration = Duration::from_secs(12);

/// A person with `psql`.
pub struct Operator {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    recorder: Arc<Recorder>,
}

impl Operator {
    pub fn new(options: PgConnectOptions, recorder: Arc<Recorder>) -> Self {
        let options = options.options([("lock_timeout", "3s"), ("statement_timeout", "10s")]);
        Self { options, connection: None, recorder }
    }

    /// Runs one statement and writes down what came of it. The rows it returns are (ID, `StatusID`).
    pub async fn run(&mut self, intent: Intent, rows: Vec<Uuid>, sql: String) -> Answer {
        let Some(mut db) = self.connected().await else { return Answer::Failed("no connection".into()) };
        let asked = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch_all(&mut db);
        let answer = match tokio::time::timeout(PATIENCE, asked).await {
            Err(_) => Answer::Unknown,
            Ok(Err(error)) => judge(&error),
            Ok(Ok(rows)) => Answer::Done(
                rows.iter().filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?))).collect(),
            ),
        };
        if answer != Answer::Unknown {
            self.connection = Some(db);
        }
        let operation = Operation { answered: clock::now(), intent, rows, sql, answer: answer.clone() };
        self.recorder.note(operation);
        answer
    }

    /// The same again and again until it is known to be done; for what must not be left half-way.
    pub async fn insist(&mut self, intent: Intent, sql: &str) {
        while !matches!(self.run(intent, Vec::new(), sql.to_owned()).await, Answer::Done(_)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks for texts; `None` if the database is away.
    pub async fn ask(&mut self, sql: &str) -> Option<Vec<Vec<String>>> {
        let mut db = self.connected().await?;
        let asked = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut db);
        let rows = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
        self.connection = Some(db);
        let text = |row: &sqlx::postgres::PgRow, at: usize| row.try_get_unchecked::<Option<String>, _>(at);
        Some(
            rows.iter()
                .map(|row| {
                    (0..row.len()).map(|at| text(row, at).ok().flatten().unwrap_or_default()).collect()
                })
                .collect(),
        )
    }

    async fn connected(&mut self) -> Option<PgConnection> {
        if let Some(db) = self.connection.take() {
            return Some(db);
        }
        let connect = PgConnection::connect_with(&self.options);
        if let Ok(Ok(db)) = tokio::time::timeout(Duration::from_secs(3), connect).await {
            return Some(db);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        None
    }
}

fn judge(error: &sqlx::Error) -> Answer {
    let Some(said) = error.as_database_error() else { return Answer::Unknown };
    let code = said.code().unwrap_or_default().into_owned();
    let text = format!("{code}: {}", said.message());
    match code.as_str() {
        // The session was ended, perhaps after the commit.
        code if code.starts_with("57P") || code.starts_with("08") => Answer::Unknown,
        code if ["40", "53", "55", "57"].iter().any(|class| code.starts_with(class)) => Answer::Failed(text),
        _ => Answer::Refused(text),
    }
}
