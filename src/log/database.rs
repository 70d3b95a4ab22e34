//! The lines of jobs, on their way to the table `Logs`.
//!
//! A layer turns each event inside a job's span into a [`LogLine`] and puts it on a bounded queue
//! without ever waiting; [`write_logs`] takes them off in batches. While the database is away the queue
//! is the backlog. When it is full (by number or by bytes) lines are dropped, counted in
//! `rosterd_log_lines_dropped_total`, and a line in `Logs` tells each job how many of its lines are
//! missing. A connection that breaks right after a commit makes a batch stand there twice: lines are
//! written at least once, not exactly once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;
use uuid::Uuid;

use super::event::{LogType, Said, capped};
use super::job::{self, OrJobSpans};
use crate::postgres::database::Database;
use crate::vitals;

/// Lines in one INSERT at most.
const BATCH_LINES: usize = 500;
/// How long the first line of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_millis(200);
/// Text on the queue at most, whatever the number of lines.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Jobs whose dropped lines are remembered for a notice at most; further ones are only counted.
const NOTED_JOBS: usize = 10_000;
/// One INSERT may take this long, and so may the wait for a database that is away, before the writer says so.
const INSERT_LIMIT: Duration = Duration::from_secs(10);
/// What is left when the daemon stops has this long to be written.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One line of a job, ready for `Logs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `Logs.JobHistoryID`
    pub history_id: Uuid,
    /// `Logs.TypeID`, see [`LogType`]
    pub type_id: i32,
    /// `Logs.Log`: the message and its fields, escaped, at most [`super::MAX_LINE_BYTES`]
    pub log: String,
    /// `Logs.Error`: the field `error` of the event, escaped and capped likewise
    pub error: Option<String>,
    /// `Logs.CreateDate`: when it was said
    pub created: DateTime<Utc>,
}

impl LogLine {
    fn bytes(&self) -> usize {
        self.log.len() + self.error.as_ref().map_or(0, String::len)
    }
}

#[derive(Debug)]
enum Message {
    Line(LogLine),
    Flush(oneshot::Sender<()>),
}

/// What the layer and the writer both see.
#[derive(Debug, Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    dropped: Mutex<HashMap<Uuid, Dropped>>,
}

#[derive(Debug)]
struct Dropped {
    lines: u64,
    last: DateTime<Utc>,
}

impl Shared {
    fn drop_line(&self, line: &LogLine) {
        metrics::counter!(vitals::LOG_LINES_DROPPED).increment(1);
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        if dropped.len() >= NOTED_JOBS && !dropped.contains_key(&line.history_id) {
            return;
        }
        let count = dropped.entry(line.history_id).or_insert(Dropped { lines: 0, last: line.created });
        count.lines += 1;
        count.last = line.created;
    }

    /// A line for each job that lost some since the last call.
    fn take_notices(&self) -> Vec<LogLine> {
        let dropped = std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner));
        let notice = |(history_id, count): (Uuid, Dropped)| LogLine {
            history_id,
            type_id: LogType::Warn.id(),
            log: format!(
                "{} log {} dropped",
                count.lines,
                if count.lines == 1 { "line was" } else { "lines were" }
            ),
            error: None,
            created: count.last,
        };
        dropped.into_iter().map(notice).collect()
    }
}

/// Makes the queue between jobs and database: the sink is for [`super::init`], the lines for
/// [`write_logs`].
pub fn channel(queue: usize, level: LevelFilter) -> (DatabaseSink, LogLines) {
    let (sender, receiver) = mpsc::channel(queue.max(1));
    let shared = Arc::new(Shared::default());
    (DatabaseSink { sender, shared: Arc::clone(&shared), level }, LogLines { receiver, shared })
}

/// The near end of the queue.
#[derive(Debug)]
pub struct DatabaseSink {
    sender: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    level: LevelFilter,
}

impl DatabaseSink {
    /// A way to wait for what was logged.
    pub fn handle(&self) -> LogHandle {
        LogHandle { sender: self.sender.clone() }
    }

    /// The layer, with its filter: job spans, and events up to the level.
    pub(super) fn into_layer<S>(self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let level = self.level;
        let filter =
            FilterFn::new(move |metadata: &Metadata<'_>| metadata.is_event() && *metadata.level() <= level);
        self.with_filter(OrJobSpans(filter.with_max_level_hint(level))).boxed()
    }

    fn send(&self, line: LogLine) {
        let bytes = line.bytes();
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let sent = if queued > QUEUE_BYTES {
            Err(line)
        } else {
            self.sender.try_send(Message::Line(line)).map_err(|error| match error.into_inner() {
                Message::Line(line) => line,
                Message::Flush(_) => unreachable!("a line was sent"),
            })
        };
        if let Err(line) = sent {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.drop_line(&line);
        }
    }
}

impl<S> Layer<S> for DatabaseSink
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        job::remember(attributes, id, &context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let history_id = job::with_job_of(event, &context, |job| Uuid::parse_str(&job?.id).ok());
        if let Some(history_id) = history_id {
            let said = Said::by(event);
            self.send(LogLine {
                history_id,
                type_id: LogType::from(*event.metadata().level()).id(),
                log: capped(said.text(Some("error"))),
                error: said.error().map(capped),
                created: Utc::now(),
            });
        }
    }
}

/// Waits for lines to be written.
#[derive(Debug, Clone)]
pub struct LogHandle {
    sender: mpsc::Sender<Message>,
}

/// The writer ended before everything was written.
#[derive(Debug, Error)]
#[error("failed to write the log lines of jobs: their writer has ended")]
pub struct NotWritten;

impl LogHandle {
    /// Returns when every line sent before is in the database. While the database is away this waits
    /// with the writer; put a time-out around it.
    pub async fn flush(&self) -> Result<(), NotWritten> {
        let (done, written) = oneshot::channel();
        self.sender.send(Message::Flush(done)).await.map_err(|_| NotWritten)?;
        written.await.map_err(|_| NotWritten)
    }
}

/// The far end of the queue, for [`write_logs`].
#[derive(Debug)]
pub struct LogLines {
    receiver: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
}

/// Writes lines in batches of up to 500 or 200 ms until `stop`, then what is left, for 2 s at most.
///
/// A database that is away is tried again with growing, jittered pauses up to 5 s; it is said once when
/// it goes and once when it is back. A line that the database refuses for itself is dropped and counted.
/// Stop it last, after the jobs have ended.
pub async fn write_logs(lines: LogLines, database: Database, stop: CancellationToken) {
    let mut writer = Writer { lines, database, batch: Batch::default() };
    let too_late = async {
        stop.cancelled().await;
        sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        () = writer.run(&stop) => {}
        () = too_late => {}
    }
    let lost = writer.count_left();
    if lost > 0 {
        metrics::counter!(vitals::LOG_LINES_DROPPED).increment(lost);
        tracing::error!(lines = lost, "Job Logs: the database did not take the last lines of jobs in time");
    }
}

#[derive(Debug, Default)]
struct Batch {
    lines: Vec<LogLine>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn is_full(&self) -> bool {
        // Somebody who waits for a flush does not want to wait for company.
        self.lines.len() >= BATCH_LINES || !self.waiting.is_empty()
    }
}

struct Writer {
    lines: LogLines,
    database: Database,
    batch: Batch,
}

impl Writer {
    async fn run(&mut self, stop: &CancellationToken) {
        while self.gather(stop).await {
            self.batch.lines.extend(self.lines.shared.take_notices());
            self.write(stop).await;
            self.batch.lines.clear();
            for waiting in self.batch.waiting.drain(..) {
                // Whoever gave up waiting needs no answer.
                let _ = waiting.send(());
            }
        }
    }

    /// Fills the batch; false when there is nothing more to come. After `stop` it takes what is there.
    async fn gather(&mut self, stop: &CancellationToken) -> bool {
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => self.lines.receiver.try_recv().ok(),
            message = self.lines.receiver.recv() => message,
        };
        let Some(first) = first else { return false };
        self.take(first);
        let until = tokio::time::Instant::now() + BATCH_WAIT;
        while !self.batch.is_full() {
            let next = tokio::select! {
                biased;
                message = timeout_at(until, self.lines.receiver.recv()) => message.ok().flatten(),
                () = stop.cancelled() => self.lines.receiver.try_recv().ok(),
            };
            match next {
                Some(message) => self.take(message),
                None => break,
            }
        }
        true
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => {
                self.lines.shared.queued_bytes.fetch_sub(line.bytes(), Ordering::Relaxed);
                self.batch.lines.push(line);
            }
            Message::Flush(waiting) => self.batch.waiting.push(waiting),
        }
    }

    /// Tries until the batch is written. The caller's deadline ends it after `stop`.
    async fn write(&mut self, stop: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut away = false;
        while let Err(error) = insert(&self.database, &self.batch.lines).await {
            if is_about_the_lines(&error) {
                return self.write_one_by_one(&error).await;
            }
            if !away {
                away = true;
                tracing::warn!(%error, "Job Logs: the database takes no lines, trying again");
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            pause = (pause * 2).min(LONGEST_PAUSE);
            if stop.is_cancelled() {
                sleep(FIRST_PAUSE).await;
            } else {
                tokio::select! {
                    () = sleep(jittered) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        if away {
            tracing::info!("Job Logs: the database takes lines again");
        }
    }

    async fn write_one_by_one(&mut self, error: &sqlx::Error) {
        let mut refused: u64 = 0;
        for line in &self.batch.lines {
            if insert(&self.database, std::slice::from_ref(line)).await.is_err() {
                refused += 1;
            }
        }
        metrics::counter!(vitals::LOG_LINES_DROPPED).increment(refused);
        tracing::error!(%error, lines = refused, "Job Logs: the database refused lines");
    }

    fn count_left(&mut self) -> u64 {
        self.lines.receiver.close();
        let mut left = self.batch.lines.len() as u64;
        while let Ok(message) = self.lines.receiver.try_recv() {
            left += u64::from(matches!(message, Message::Line(_)));
        }
        left
    }
}

/// Bad data (class 22) or a constraint that somebody added (class 23): trying again would not help.
fn is_about_the_lines(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

async fn insert(database: &Database, lines: &[LogLine]) -> Result<(), sqlx::Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let types: Vec<i32> = lines.iter().map(|line| line.type_id).collect();
    let logs: Vec<&str> = lines.iter().map(|line| line.log.as_str()).collect();
    let errors: Vec<Option<&str>> = lines.iter().map(|line| line.error.as_deref()).collect();
    let created: Vec<DateTime<Utc>> = lines.iter().map(|line| line.created).collect();
    let histories: Vec<Uuid> = lines.iter().map(|line| line.history_id).collect();
    let statement = sqlx::query(
        "insert into vm.Logs (TypeID, Log, Error, CreateDate, JobHistoryID)
         select type, log, error, created, history
         from unnest($1::int[], $2::text[], $3::text[], $4::timestamptz[], $5::uuid[])
           with ordinality as line (type, log, error, created, history, place)
         order by place -- readers order by ID",
    )
    .bind(types)
    .bind(logs)
    .bind(errors)
    .bind(created)
    .bind(histories);
    timeout(INSERT_LIMIT, statement.execute(database))
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use sqlx::Row;
    use tracing::{debug, error, info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::MAX_LINE_BYTES;
    use super::super::job::job_span;
    use super::*;
    use crate::postgres::connect::Limits;
    use crate::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
    use crate::postgres::migrate;

    const LIMITS: Limits = Limits {
        connect: Duration::from_secs(10),
        statement: Duration::from_mins(1),
        answer: Duration::from_secs(5),
    };

    const ID: Uuid = Uuid::from_u128(7);

    fn while_logging(sink: DatabaseSink, work: impl FnOnce()) {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(sink.into_layer()), work);
    }

    fn lines_of(mut lines: LogLines) -> Vec<LogLine> {
        let mut all = Vec::new();
        while let Ok(Message::Line(line)) = lines.receiver.try_recv() {
            all.push(line);
        }
        all
    }

    fn nowhere() -> Database {
        // Port 1 of loopback refuses at once.
        Database::new(&"postgres://nobody@127.0.0.1:1/none".parse().unwrap(), "logs", 1, LIMITS)
    }

    #[test]
    fn a_line_of_a_job_becomes_a_row_with_its_error_apart() {
        let (sink, lines) = channel(10, LevelFilter::INFO);
        while_logging(sink, || {
            job_span("A", "B", ID).in_scope(|| error!(page = 3, error = %"no\nroute", "Fetch failed"));
        });
        let line = &lines_of(lines)[0];
        assert_eq!((line.history_id, line.type_id), (ID, LogType::Error.id()));
        assert_eq!(line.log, "Fetch failed page=3");
        assert_eq!(line.error.as_deref(), Some("no\\nroute"));
    }

    #[test]
    fn a_line_outside_a_job_stays_out_of_the_database() {
        let (sink, lines) = channel(10, LevelFilter::INFO);
        while_logging(sink, || info!("Job Runner: Sleeping"));
        assert!(lines_of(lines).is_empty());
    }

    #[test]
    fn the_level_of_the_database_holds_by_itself_and_keeps_the_job() {
        let (sink, lines) = channel(10, LevelFilter::WARN);
        while_logging(sink, || {
            job_span("A", "B", ID).in_scope(|| {
                debug!("no");
                info!("no");
                warn!("yes");
            });
        });
        assert_eq!(lines_of(lines).iter().map(|line| line.log.as_str()).collect::<Vec<_>>(), ["yes"]);
    }

    #[test]
    fn off_writes_nothing() {
        let (sink, lines) = channel(10, LevelFilter::OFF);
        while_logging(sink, || job_span("A", "B", ID).in_scope(|| error!("no")));
        assert!(lines_of(lines).is_empty());
    }

    #[test]
    fn a_stored_line_has_no_nul_and_at_most_16_kib() {
        let (sink, lines) = channel(10, LevelFilter::INFO);
        while_logging(sink, || {
            job_span("A", "B", ID).in_scope(|| info!(b = "y".repeat(9000), "a\0b{}", "\n".repeat(9000)));
        });
        let line = &lines_of(lines)[0];
        assert!(line.log.starts_with("ab\\n\\n"));
        assert!(line.log.len() <= MAX_LINE_BYTES && line.log.ends_with(" bytes more)"), "{}", line.log.len());
    }

    #[test]
    fn lines_over_a_full_queue_are_dropped_counted_and_told_to_their_job() {
        let (sink, lines) = channel(2, LevelFilter::INFO);
        let shared = Arc::clone(&lines.shared);
        while_logging(sink, || {
            job_span("A", "B", ID).in_scope(|| (0..5).for_each(|number| info!("{number}")));
        });
        assert_eq!(lines_of(lines).iter().map(|line| line.log.as_str()).collect::<Vec<_>>(), ["0", "1"]);
        let notices = shared.take_notices();
        assert_eq!((notices.len(), notices[0].history_id), (1, ID));
        assert_eq!(notices[0].log, "3 log lines were dropped");
        assert!(shared.take_notices().is_empty());
    }

    #[test]
    fn lines_are_dropped_when_the_queue_holds_too_many_bytes() {
        let (sink, lines) = channel(10, LevelFilter::INFO);
        lines.shared.queued_bytes.store(QUEUE_BYTES, Ordering::Relaxed);
        let shared = Arc::clone(&lines.shared);
        while_logging(sink, || job_span("A", "B", ID).in_scope(|| info!("one more")));
        assert!(lines_of(lines).is_empty());
        assert_eq!(shared.take_notices()[0].log, "1 log line was dropped");
        assert_eq!(shared.queued_bytes.load(Ordering::Relaxed), QUEUE_BYTES);
    }

    #[tokio::test]
    async fn without_a_database_the_writer_ends_within_its_deadline() {
        let (sink, lines) = channel(10, LevelFilter::INFO);
        let handle = sink.handle();
        let stop = CancellationToken::new();
        let writer = tokio::spawn(write_logs(lines, nowhere(), stop.clone()));
        while_logging(sink, || job_span("A", "B", ID).in_scope(|| info!("lost")));
        stop.cancel();
        let begun = Instant::now();
        writer.await.unwrap();
        assert!(begun.elapsed() < DRAIN_LIMIT + Duration::from_secs(1));
        assert!(handle.flush().await.is_err());
    }

    #[tokio::test]
    async fn a_flush_of_nothing_returns_at_once() {
        let (sink, lines) = channel(10, LevelFilter::INFO);
        let stop = CancellationToken::new();
        let writer = tokio::spawn(write_logs(lines, nowhere(), stop.clone()));
        timeout(Duration::from_secs(5), sink.handle().flush()).await.unwrap().unwrap();
        stop.cancel();
        writer.await.unwrap();
    }

    /// A server of its own: the table refuses a line here, which no test from outside can bring about.
    fn server(folder: &tempfile::TempDir) -> EmbeddedPostgres {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut options = EmbeddedOptions::new(folder.path().join("state"));
        options.durability = Durability::ThrowAway;
        EmbeddedPostgres::start(&options).unwrap()
    }

    #[tokio::test]
    async fn a_line_the_table_refuses_is_counted_and_keeps_no_other_line_out() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let server = server(&folder);
        migrate::migrate(&server.connect_options(), LIMITS).await.unwrap();
        let database = Database::new(&server.connect_options(), "logs", 1, LIMITS);
        let id = Uuid::now_v7();
        let (sink, lines) = channel(2000, LevelFilter::INFO);
        let (handle, shared) = (sink.handle(), Arc::clone(&lines.shared));
        let stop = CancellationToken::new();
        let writer = tokio::spawn(write_logs(lines, database.clone(), stop.clone()));
        let poison =
            LogLine { history_id: id, type_id: 99, log: "x".into(), error: None, created: Utc::now() };
        sink.send(poison.clone());
        shared.drop_line(&poison);
        while_logging(sink, || job_span("A", "B", id).in_scope(|| (0..1200).for_each(|n| info!("{n}"))));
        handle.flush().await.unwrap();
        let rows = sqlx::query("select Log from vm.Logs where JobHistoryID = $1 order by ID")
            .bind(id)
            .fetch_all(&database)
            .await
            .unwrap();
        let mut said: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let notice = said.iter().position(|line| line == "1 log line was dropped").unwrap();
        said.remove(notice);
        assert_eq!(said, (0..1200).map(|number| number.to_string()).collect::<Vec<_>>());
        stop.cancel();
        writer.await.unwrap();
    }
}
