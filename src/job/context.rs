//! What a job gets: who it runs for, with which sources, how it hears a cancel, and where it may speak.

use crate::config::Config;
use crate::config_rows::{JobConfig, SourceConfig};
use crate::connectors::{ClientError, SourceClient};
use crate::history::{Fence, HistoryId, NewRow, moves};
use crate::job::{Effect, EffectGate, JobError, NotOursAnyMore, Outcome};
use crate::limits::SourceLimiter;
use crate::postgres::database::{Database, Transaction, away};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The row a run belongs to.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// `JobHistory.ID`: the idempotency key of everything this row does outside.
    pub id: HistoryId,
    /// Which attempt of this iteration this is, from 1.
    pub attempt: i32,
    /// Finished iterations of a Continuous row, from 0.
    pub iteration: i64,
    /// The row that put it on the queue, if a job did.
    pub parent: Option<HistoryId>,
    /// The due time, if a schedule put it on the queue.
    pub due: Option<DateTime<Utc>>,
    /// When this run started, by the database's clock.
    pub started: DateTime<Utc>,
    /// Lower runs earlier, and its calls to a source go before those of higher numbers.
    pub priority: i32,
}

/// A run's view of the world. Cheap to clone; every clone is of the same run.
#[derive(Clone)]
pub struct JobContext {
    parts: Arc<ContextParts>,
}

pub(crate) struct ContextParts {
    pub(crate) row: JobRow,
    pub(crate) fence: Fence,
    pub(crate) runner: Uuid,
    pub(crate) gate: EffectGate,
    pub(crate) config: Arc<JobConfig>,
    pub(crate) settings: Arc<Config>,
    pub(crate) database: Database,
    pub(crate) limiter: SourceLimiter,
    pub(crate) cancel: CancellationToken,
    pub(crate) progress: Arc<ProgressBoard>,
    pub(crate) span: tracing::Span,
}

impl JobContext {
    pub(crate) fn new(parts: ContextParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// The row this run belongs to.
    pub fn row(&self) -> &JobRow {
        &self.parts.row
    }

    /// The configuration as it stood when this run started, with its organization and sources.
    pub fn config(&self) -> &JobConfig {
        &self.parts.config
    }

    /// The daemon's own settings.
    pub fn settings(&self) -> &Config {
        &self.parts.settings
    }

    /// `JobConfig.DataInSourceConfigID`, or a sentence for the operator if there is none.
    pub fn in_source(&self) -> Result<&SourceConfig, JobError> {
        self.parts.config.in_source.as_ref().ok_or_else(|| self.no_source("DataInSourceConfigID"))
    }

    /// `JobConfig.DataOutSourceConfigID`, or a sentence for the operator if there is none.
    pub fn out_source(&self) -> Result<&SourceConfig, JobError> {
        self.parts.config.out_source.as_ref().ok_or_else(|| self.no_source("DataOutSourceConfigID"))
    }

    fn no_source(&self, column: &str) -> JobError {
        JobError::fatal_message(format_args!(
            "JobConfig {} has no {column}; set it to the SourceConfig this job shall use",
            self.parts.config.id
        ))
    }

    /// Calls this source on behalf of this run, within its limits. If the runner's lease lapses while a call is in
    /// flight, the call is ended, because others may make theirs in its place.
    pub fn client(&self, source: &SourceConfig) -> Result<SourceClient, ClientError> {
        let parts = &self.parts;
        let (limiter, cancel) = (parts.limiter.clone(), parts.cancel.clone());
        SourceClient::new(source, &parts.settings.sources, limiter, parts.row.id, cancel)
    }

    /// Grants calls to sources, so that `Delay` and `Concurrency` hold across every job and runner.
    pub fn limiter(&self) -> &SourceLimiter {
        &self.parts.limiter
    }

    /// `Runner.ID` of the daemon this runs in.
    pub fn runner_id(&self) -> Uuid {
        self.parts.runner
    }

    /// rosterd's own database: connections shared by all jobs, apart from the engine's own. While it is away a call
    /// waits; return the error of one that it went away under, and this attempt is not counted.
    pub fn database(&self) -> &Database {
        &self.parts.database
    }

    /// The token of this run: cancelled when an operator sets `StatusID = -1`, when time runs out, and when
    /// the daemon stops.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.parts.cancel
    }

    /// Completes when this run shall stop. Every wait inside a job selects on it.
    pub async fn cancelled(&self) {
        self.parts.cancel.cancelled().await;
    }

    /// Whether this run shall stop.
    pub fn is_cancelled(&self) -> bool {
        self.parts.cancel.is_cancelled()
    }

    /// The effect gate: returns when this run may act outside now. It waits while the database is away and the
    /// runner's lease has lapsed, because others may have taken the row meanwhile, and fails once one may have.
    /// It costs no statement, so ask before every call that is not behind [`JobContext::limiter`] (which asks by
    /// itself) or [`JobContext::effect`].
    pub async fn may_act(&self) -> Result<(), NotOursAnyMore> {
        self.parts.gate.pass().await
    }

    /// Completes when this run may not act outside any more, or not until the database is back: others will soon count
    /// the slots of its calls as free. Whoever keeps a permit of [`JobContext::limiter`] ends the call then and returns
    /// this error, with which the attempt is not counted. Calls of [`JobContext::client`] end by themselves.
    pub async fn lapsed(&self) -> sqlx::Error {
        self.parts.gate.lapsed().await;
        lapsed()
    }

    /// Begins a step that acts outside and must not be repeated unawares: passes the gate, writes the intention
    /// down in `JobEffect`, and says what earlier attempts of this row and iteration did about it. `step` is a name
    /// of 1 to 200 characters of the job's own, such as `"create ticket"`. A cancelled run begins no step.
    pub async fn effect(&self, step: &str) -> Result<Effect, JobError> {
        Effect::begin(&self.parts, step).await
    }

    /// Commits a transaction of this job's ([`Database::begin`]) together with the completion of its row: exactly
    /// once, whatever dies when. What it returns is what the job returns. The other way round: if the row was
    /// cancelled, or is another run's by now, nothing is committed and the error says so.
    pub async fn complete(&self, transaction: Transaction, outcome: Outcome) -> Result<Outcome, JobError> {
        super::complete::complete(&self.parts, transaction, outcome).await
    }

    /// Says how far it is, for `JobHistory.Progress`; the newest word is written about once a second.
    pub fn progress(&self, text: impl Into<String>) {
        self.parts.progress.set(self.parts.row.id, text.into());
    }

    /// A line for the log and for `Logs`, at level INFO.
    pub fn info(&self, message: impl Display) {
        self.parts.span.in_scope(|| tracing::info!("{message}"));
    }

    /// The same at level WARN.
    pub fn warn(&self, message: impl Display) {
        self.parts.span.in_scope(|| tracing::warn!("{message}"));
    }

    /// The same at level ERR.
    pub fn error(&self, message: impl Display) {
        self.parts.span.in_scope(|| tracing::error!("{message}"));
    }

    /// The span its log lines belong to; tasks a job spawns itself are `.instrument`ed with it.
    pub fn span(&self) -> &tracing::Span {
        &self.parts.span
    }

    /// Puts a child row on the queue and returns its ID. Refused once this row is being cancelled: a
    /// cancelled parent takes no more children. Cancelling this row later cancels the child.
    pub async fn enqueue(&self, child: Child) -> Result<HistoryId, JobError> {
        Ok(moves::insert(&self.parts.database, &child.row(self.parts.row.id)).await?)
    }

    /// The same as part of a transaction of this job's: the child is there if and only if what the transaction wrote is.
    pub async fn enqueue_in(
        &self,
        transaction: &mut Transaction,
        child: Child,
    ) -> Result<HistoryId, JobError> {
        Ok(moves::insert(&mut **transaction, &child.row(self.parts.row.id)).await?)
    }
}

/// Why a call was ended: the run begins again when the database is back, without a count.
pub(crate) fn lapsed() -> sqlx::Error {
    away("the lease of this runner lapsed, so others may be calling in its place")
}

/// A row a job puts on the queue.
#[derive(Debug, Clone)]
pub struct Child {
    config: Uuid,
    payload: Option<Value>,
    priority: Option<i32>,
    not_before: Option<DateTime<Utc>>,
    identifier: Option<String>,
}

impl Child {
    /// A row of this configuration (`JobConfig.ID`), with the configuration's payload and priority.
    pub fn of(config: Uuid) -> Self {
        Self { config, payload: None, priority: None, not_before: None, identifier: None }
    }

    fn row(self, parent: HistoryId) -> NewRow {
        NewRow {
            config: self.config,
            payload: self.payload,
            priority: self.priority,
            not_before: self.not_before,
            identifier: self.identifier,
            parent: Some(parent),
        }
    }

    /// With this payload instead.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Value>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// With this priority instead; lower runs earlier.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Not before this time.
    #[must_use]
    pub fn not_before(mut self, time: DateTime<Utc>) -> Self {
        self.not_before = Some(time);
        self
    }

    /// With a word of its own in `JobHistory.Identifier`.
    #[must_use]
    pub fn identifier(mut self, identifier: impl Into<String>) -> Self {
        self.identifier = Some(identifier.into());
        self
    }
}

/// The newest progress of each run, until the engine writes it.
#[derive(Default)]
pub(crate) struct ProgressBoard {
    newest: Mutex<HashMap<HistoryId, String>>,
}

impl ProgressBoard {
    /// Longer words are cut: a progress is one line in a table.
    const MAX_CHARS: usize = 500;

    pub(crate) fn set(&self, id: HistoryId, text: String) {
        let text = text.replace('\0', "").chars().take(Self::MAX_CHARS).collect();
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).insert(id, text);
    }

    /// Takes what is new since the last call.
    pub(crate) fn take(&self) -> HashMap<HistoryId, String> {
        std::mem::take(&mut *self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what is new for one run.
    pub(crate) fn take_one(&self, id: HistoryId) -> Option<String> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }
}
