//! How a job says that it failed, and what shall happen next.

use crate::postgres::database::is_away;
use serde_json::Value;
use std::fmt;

/// A job's failure. `?` on any error makes one that is tried again while `JobConfig.MaxAttempts` allows;
/// [`JobError::fatal`] ends the row at once. Either way the text ends up in `JobHistory.Error`.
///
/// It does not implement [`std::error::Error`] itself, so that every error converts into it.
pub struct JobError {
    kind: ErrorKind,
    pub(crate) error: anyhow::Error,
    pub(crate) result: Option<Value>,
}

/// What happens after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Tried again after a back-off, while `MaxAttempts` allows.
    Retry,
    /// Never tried again: trying cannot help.
    Fatal,
    /// It stopped because it was told to. Without a cancel or a time limit behind it, the same as `Retry`.
    Stopped,
    /// rosterd's own database went away under a call of the job: the attempt is not counted, and begins again when the
    /// database is back. No constructor makes this kind; an error of [`JobContext::database`] in the chain does,
    /// whatever the job made of it.
    ///
    /// [`JobContext::database`]: super::JobContext::database
    DatabaseAway,
}

impl JobError {
    /// Ends the row as ERROR whatever `MaxAttempts` says: trying again cannot help.
    pub fn fatal(error: impl Into<anyhow::Error>) -> Self {
        Self { kind: ErrorKind::Fatal, error: error.into(), result: None }
    }

    /// The same from a sentence.
    pub fn fatal_message(message: impl fmt::Display) -> Self {
        Self::fatal(anyhow::anyhow!("{message}"))
    }

    /// What a job returns when it heard [`JobContext::cancelled`](super::JobContext::cancelled) and stopped.
    pub fn stopped() -> Self {
        Self::stopped_because("stopped")
    }

    /// The same with a sentence; a cancelled row does not show it, a timed-out one does.
    pub fn stopped_because(message: impl fmt::Display) -> Self {
        Self { kind: ErrorKind::Stopped, ..Self::retry_message(message) }
    }

    /// A failure worth another attempt, from a sentence.
    pub fn retry_message(message: impl fmt::Display) -> Self {
        Self::from(anyhow::anyhow!("{message}"))
    }

    /// Keeps what is known for `JobHistory.Result`, although the run failed.
    #[must_use]
    pub fn with_result(mut self, result: impl Into<Value>) -> Self {
        self.result = Some(result.into());
        self
    }

    /// What happens next.
    pub fn kind(&self) -> ErrorKind {
        if is_away(self.error.as_ref()) { ErrorKind::DatabaseAway } else { self.kind }
    }

    /// What is kept for `JobHistory.Result`.
    pub fn result(&self) -> Option<&Value> {
        self.result.as_ref()
    }
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self { kind: ErrorKind::Retry, error: error.into(), result: None }
    }
}

/// The error with its chain of causes, on one line.
impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:#}", self.kind, self.error)
    }
}
