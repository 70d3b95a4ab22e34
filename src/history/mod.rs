//! The row: `JobHistory`, the queue and the history in one.
//!
//! ```text
//!            insert                claim                    settle
//!   operator ──────▶ 1 PENDING ───────────▶ 2 IN PROGRESS ───────────▶ 3 COMPLETED, 4 ERROR
//!   schedule           ▲   │                  │    │
//!   autostart          │   │ StatusID = -1    │    │ StatusID = -1
//!   job                │   ▼                  │    ▼
//!   rerun              │  5 CANCELED ◀────────┼── -1 CANCEL
//!                      │          settle      │
//!                      └──────────────────────┘
//!          retry, wait of a Continuous row, drain, rescue
//! ```
//!
//! Only this folder writes the table. Every write of a running row names what it expects: ID, runner,
//! attempt, claim and status. A write that finds something else changes nothing, so a late runner never
//! overwrites a newer state.

pub mod effects;
pub mod lookup;
pub mod moves;
pub mod retire;
mod status;

pub use status::Status;

use chrono::{DateTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use uuid::Uuid;

/// `JobHistory.ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct HistoryId(pub Uuid);

impl fmt::Display for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Uuid> for HistoryId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

/// From so many crashes on a row is a suspect: it runs alone, in a process of its own. One crash is usually the
/// machine's or a `kill -9`, and thousands of rows may share it. (The SQL beside this has the number too, for its index.)
pub const SUSPECT_FROM: i32 = 2;

/// What proves that a run still owns its row: every write names it, and a newer claim has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The row.
    pub id: HistoryId,
    /// `Claim.ID`, which no other claim ever gets.
    pub claim: i64,
    /// The attempt this claim started.
    pub attempt: i32,
}

/// A row this runner took: pending before, in progress now.
#[derive(Debug)]
pub struct ClaimedJob {
    /// What every later write of it names.
    pub fence: Fence,
    /// `JobHistory.ConfigID`.
    pub config: Uuid,
    /// `JobHistory.JobID`.
    pub job: i32,
    /// The payload as PostgreSQL prints it, not parsed yet.
    pub payload: Box<RawValue>,
    /// Finished iterations.
    pub iteration: i64,
    /// `JobHistory.ParentJobID`.
    pub parent: Option<HistoryId>,
    /// The due time of its schedule.
    pub due: Option<DateTime<Utc>>,
    /// When it was claimed, by the database's clock.
    pub started: DateTime<Utc>,
    /// `JobHistory.Priority`.
    pub priority: i32,
    /// Seconds between the moment it could have started and now.
    pub waited_seconds: f64,
}

/// What became of a run, for [`moves::settle`].
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The row and the proof that it is still ours.
    pub fence: Fence,
    /// Its configuration.
    pub config: Uuid,
    /// What happened.
    pub verdict: Verdict,
    /// `JobHistory.Error`.
    pub error: Option<String>,
    /// `JobHistory.Result`.
    pub result: Option<Value>,
    /// `JobHistory.StopReason`, where the status alone does not say why it stopped.
    pub stop_reason: Option<StopReason>,
    /// The last word on its progress.
    pub progress: Option<String>,
}

/// What happened to a run. The row's next status follows from this, a cancel, and its configuration as it
/// stands when the verdict is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The work was done.
    Done = 0,
    /// It failed; another attempt may help.
    Failed = 1,
    /// It failed; another attempt cannot help.
    FailedForGood = 2,
    /// It could not even start: no such payload. Ends a Continuous row too.
    Unrunnable = 3,
    /// The daemon stops; it goes back on the queue and no attempt is counted.
    PutBack = 4,
    /// The database went away under it: as for `PutBack`, after a moment. Counted, because a statement that brings the
    /// server down would else run for ever; after ten times it counts as `Failed`.
    Interrupted = 5,
}

/// Why a run stopped, where its status alone does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// It heard the cancel and stopped.
    Stopped,
    /// It had finished before it heard the cancel.
    FinishedBeforeStop,
    /// It had failed before it heard the cancel.
    FailedBeforeStop,
    /// It did not hear the cancel within the grace time and was aborted.
    Aborted,
    /// It did not even let itself be aborted: its thread is still busy, its writes are fenced off.
    Abandoned,
    /// Its time was up (`JobConfig.TimeoutInSeconds`).
    Timeout,
}

impl StopReason {
    /// As it stands in `JobHistory.StopReason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::FinishedBeforeStop => "finished_before_stop",
            Self::FailedBeforeStop => "failed_before_stop",
            Self::Aborted => "aborted",
            Self::Abandoned => "abandoned",
            Self::Timeout => "timeout",
        }
    }
}

/// A row to put on the queue. What is `None` is filled from `JobConfig` and `Job`.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// `JobConfig.ID`.
    pub config: Uuid,
    /// Its payload.
    pub payload: Option<Value>,
    /// Its priority; lower runs earlier.
    pub priority: Option<i32>,
    /// When it may start.
    pub not_before: Option<DateTime<Utc>>,
    /// A word of the caller's own.
    pub identifier: Option<String>,
    /// The row whose job puts it there.
    pub parent: Option<HistoryId>,
}
