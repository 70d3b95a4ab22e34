//! What the loops of one daemon share.

use super::running::Running;
use crate::config::Config;
use crate::job::ProgressBoard;
use crate::postgres::connect::{DatabaseError, Limits};
use crate::postgres::listen::Hints;
use crate::registry::AnyJob;
use crate::vitals::Vitals;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Shared by the loops; each brings its own connection.
pub(crate) struct EngineState {
    pub(crate) settings: Arc<Config>,
    pub(crate) options: PgConnectOptions,
    pub(crate) limits: Limits,
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
    /// Too many jobs cannot be stopped: this process shall end, so that a fresh one takes over.
    pub(crate) exhausted: CancellationToken,
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
            hints: Hints::default(),
            running: Arc::new(Running::new(grace)),
            progress: Arc::default(),
            vitals: parts.vitals,
            jobs: parts.jobs,
            identity: watch::Sender::new(None),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            exhausted: CancellationToken::new(),
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

    /// Says once, at the first failing call, that the database is away; the calls go on trying.
    pub(crate) fn database_trouble(&self, who: &str, error: &DatabaseError) {
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
        }
        self.vitals.set_database_up(true);
    }
}
