//! What the loops of one daemon share.

use super::link::Link;
use super::running::Running;
use crate::config::Config;
use crate::job::ProgressBoard;
use crate::postgres::connect::{self, DatabaseError, Limits};
use crate::postgres::lifeline::Lifeline;
use crate::postgres::listen::Hints;
use crate::registry::AnyJob;
use crate::vitals::Vitals;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// A statement unanswered for so long raises the question whether the link is dead.
const DOUBT: Duration = Duration::from_secs(1);

/// Shared by the loops; each brings its own connection.
pub(crate) struct EngineState {
    pub(crate) settings: Arc<Config>,
    pub(crate) options: PgConnectOptions,
    pub(crate) limits: Limits,
    pub(crate) lifeline: Arc<Lifeline>,
    pub(crate) hints: Hints,
    pub(crate) running: Arc<Running>,
    pub(crate) progress: Arc<ProgressBoard>,
    pub(crate) vitals: Arc<Vitals>,
    /// `Job.ID` -> the job this binary has for it.
    pub(crate) jobs: HashMap<i32, Arc<dyn AnyJob>>,
    /// `Runner.ID`, while registered. A new one after each registration, so that what was claimed under an
    /// old one can never be mistaken for ours.
    pub(crate) identity: watch::Sender<Option<Uuid>>,
    /// `Runner.Draining`, as last read.
    pub(crate) draining: AtomicBool,
    /// The daemon shuts down.
    pub(crate) stopping: AtomicBool,
    /// A statement has had no answer for a while: is the link alive?
    pub(crate) doubted: Notify,
    /// A runner was found dead: its rows want a new home.
    pub(crate) orphans: Notify,
    pub(crate) control: Handle,
    pub(crate) jobs_runtime: Handle,
    database_up: AtomicBool,
}

/// What [`EngineState::new`] wants.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Config>,
    pub(crate) options: PgConnectOptions,
    pub(crate) limits: Limits,
    pub(crate) lifeline: Arc<Lifeline>,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) jobs: HashMap<i32, Arc<dyn AnyJob>>,
    pub(crate) control: Handle,
    pub(crate) jobs_runtime: Handle,
}

impl EngineState {
    pub(crate) fn new(parts: Parts) -> Self {
        let grace = parts.settings.engine.cancel_grace();
        Self {
            settings: parts.settings,
            options: parts.options,
            limits: parts.limits,
            lifeline: parts.lifeline,
            hints: Hints::default(),
            running: Arc::new(Running::new(grace)),
            progress: Arc::default(),
            vitals: parts.vitals,
            jobs: parts.jobs,
            identity: watch::Sender::new(None),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            doubted: Notify::new(),
            orphans: Notify::new(),
            control: parts.control,
            jobs_runtime: parts.jobs_runtime,
            database_up: AtomicBool::new(true),
        }
    }

    /// Alive tokio tasks of the whole process: a steady rise is a leak.
    pub(crate) fn tasks(&self) -> usize {
        self.control.metrics().num_alive_tasks() + self.jobs_runtime.metrics().num_alive_tasks()
    }

    /// A statement of a loop, with its deadline. While it goes unanswered the heartbeat asks for a sign of life: its
    /// loop sends no small statement meanwhile, and perhaps no other does.
    pub(crate) async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DatabaseError> {
        let answer = self.lifeline.within(self.limits.deadline(), call);
        let doubts = async {
            loop {
                tokio::time::sleep(DOUBT).await;
                self.doubted.notify_one();
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = doubts => unreachable!("it has no end"),
        }
    }

    /// One so small that it is answered at once, unless the link is dead. Its answer proves that the database is there.
    pub(crate) async fn promptly<T>(
        &self,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DatabaseError> {
        let answer = self.lifeline.promptly(self.limits.answer, call).await?;
        self.database_fine();
        Ok(answer)
    }

    /// After a call of a loop failed: it is tried again. Says once, at the first failing call, that the database is
    /// away. The loop's connection is closed, unless all is well but that somebody holds locked what it wanted.
    pub(crate) fn database_trouble(&self, who: &str, error: &DatabaseError, link: &mut Link) {
        if connect::is_locked(error) {
            tracing::debug!("Job Runner: {who}: {error}");
            return;
        }
        link.close();
        if error.is_outage() {
            self.lifeline.set_up(false);
        }
        if self.database_up.swap(false, Ordering::AcqRel) {
            tracing::warn!(
                "Job Runner: the database is away, jobs go on and calls are tried again ({who}: {error})"
            );
        } else {
            tracing::debug!("Job Runner: {who}: {error}");
        }
        self.vitals.set_database_up(false);
    }

    /// After a call that worked.
    pub(crate) fn database_fine(&self) {
        if !self.database_up.load(Ordering::Acquire) && !self.database_up.swap(true, Ordering::AcqRel) {
            tracing::info!("Job Runner: the database is back");
            // The other loops need not sit out their back-off.
            self.hints.all();
            self.orphans.notify_one();
        }
        self.lifeline.set_up(true);
        self.vitals.set_database_up(true);
    }
}
