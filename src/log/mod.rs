//! Logging: what goes to stdout or the journal, and what goes to the table `Logs`.
//!
//! Events inside a job's span ([`job_span`]) carry the identity of the job: in the classic format as
//! `[TicketingJob:NORTON:<JobHistory ID>]`, in JSON as `job`, in the journal as the fields `F_STRUCT`,
//! `F_ORG` and `F_ID`. They also go to the database, see [`database`]. A job's own threads and detached
//! tasks are outside its span: what they log is written, but without the job's name and not to the
//! database, unless they are run in the span (`tracing::Instrument`, `Span::enter`).
//!
//! Times are UTC everywhere. Nobody can forge a line: line ends and other control characters, and the
//! invisible ones that turn text around, are written as escapes.

mod console;
pub mod database;
mod event;
mod job;

use std::io;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogSection};

pub use self::database::{DatabaseSink, LogHandle, LogLine, LogLines, NotWritten, write_logs};
pub use self::event::LogType;
pub use self::job::{JOB_SPAN, JobIdentity, job_span};

use self::console::{ConsoleLayer, Form};
use self::job::OrJobSpans;

/// One log line holds at most this many bytes of text: message and fields each, and the whole line in
/// the database.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// Why logging could not be started.
#[derive(Debug, Error)]
pub enum LogError {
    /// The directives are not `EnvFilter` syntax; [`crate::config::Config::load`] says it first.
    #[error(
        "failed to start logging: `log.level` is {0:?}, give a level such as \"info\" or EnvFilter directives"
    )]
    Level(String),
    /// The journal was asked for, but nobody listens there. An error rather than a silent change to
    /// another format, because whoever reads the journal would find nothing.
    #[error(
        "failed to start logging: `log.format` is \"journald\", but /run/systemd/journal/socket does not answer ({0}), \
         give \"classic\" or \"json\""
    )]
    NoJournal(#[source] io::Error),
    /// The program was built without the feature `journald`.
    #[error(
        "failed to start logging: `log.format` is \"journald\", which this build leaves out, give \"classic\" or \"json\""
    )]
    JournalLeftOut,
    /// A subscriber is in place already.
    #[error("failed to start logging: it was started before in this process")]
    Started,
}

/// Keeps what logging needs; hold it until the end of the process.
#[derive(Debug)]
pub struct LogGuard {
    handle: Option<LogHandle>,
}

impl LogGuard {
    /// The way to wait for the database lines, where there is a database sink.
    pub fn handle(&self) -> Option<&LogHandle> {
        self.handle.as_ref()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // Nothing can be done about a stdout that is gone.
        let _ = io::Write::flush(&mut io::stdout());
    }
}

/// Starts logging for the whole process, in the configured format and level, and into `database`
/// where given.
pub fn init(config: &LogSection, database: Option<DatabaseSink>) -> Result<LogGuard, LogError> {
    let level =
        EnvFilter::builder().parse(&config.level).map_err(|_| LogError::Level(config.level.clone()))?;
    let console: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Classic => {
            ConsoleLayer::new(Form::Classic, io::stdout).with_filter(OrJobSpans(level)).boxed()
        }
        LogFormat::Json => ConsoleLayer::new(Form::Json, io::stdout).with_filter(OrJobSpans(level)).boxed(),
        LogFormat::Journald => journal(level)?,
    };
    let handle = database.as_ref().map(DatabaseSink::handle);
    let layers = std::iter::once(console).chain(database.map(DatabaseSink::into_layer)).collect::<Vec<_>>();
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| LogError::Started)?;
    Ok(LogGuard { handle })
}

#[cfg(feature = "journald")]
fn journal(level: EnvFilter) -> Result<Box<dyn Layer<Registry> + Send + Sync>, LogError> {
    let journal = tracing_journald::layer().map_err(LogError::NoJournal)?;
    Ok(journal.with_syslog_identifier("rosterd".to_owned()).with_filter(OrJobSpans(level)).boxed())
}

#[cfg(not(feature = "journald"))]
fn journal(_level: EnvFilter) -> Result<Box<dyn Layer<Registry> + Send + Sync>, LogError> {
    Err(LogError::JournalLeftOut)
}
