//! What the loops of one daemon share.

use super::errand::Errand;
use super::link::Link;
use super::running::{Running, StopCause};
use crate::config::Config;
use crate::job::ProgressBoard;
use crate::lease::Lease;
use crate::postgres::cluster::Cluster;
use crate::postgres::connect::{self, DatabaseError, Limits};
use crate::postgres::lifeline::Lifeline;
use crate::postgres::listen::Hints;
use crate::registry::AnyJob;
use crate::secrets::Keyring;
use crate::vitals::Vitals;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
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
    /// Who we are to the other runners, and until when that is sure.
    pub(crate) lease: Arc<Lease>,
    /// The cluster we speak to, and who we were in the one before.
    cluster: Mutex<KnownCluster>,
    /// `Runner.Draining`, as last read.
    pub(crate) draining: AtomicBool,
    /// The daemon shuts down.
    pub(crate) stopping: AtomicBool,
    /// Too many jobs cannot be stopped: this process shall end, so that a fresh one takes over.
    pub(crate) exhausted: CancellationToken,
    /// A statement has had no answer for a while: is the link alive?
    pub(crate) doubted: Notify,
    /// A runner was found dead: its rows want a new home.
    pub(crate) orphans: Notify,
    /// A row is due that runs alone.
    pub(crate) suspects: Notify,
    /// Opens the sealed credentials of sources.
    pub(crate) keyring: Keyring,
    /// Set in a process that is there for one row.
    pub(crate) errand: Option<Arc<Errand>>,
    pub(crate) control: Handle,
    pub(crate) jobs_runtime: Handle,
    database_up: AtomicBool,
}

#[derive(Debug, Default)]
struct KnownCluster {
    now: Option<Cluster>,
    /// `Runner.ID` that was ours before the cluster changed; its row may stand in the new one.
    left_behind: Option<Uuid>,
}

/// What [`EngineState::new`] wants.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Config>,
    pub(crate) options: PgConnectOptions,
    pub(crate) limits: Limits,
    pub(crate) lifeline: Arc<Lifeline>,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) jobs: HashMap<i32, Arc<dyn AnyJob>>,
    pub(crate) keyring: Keyring,
    pub(crate) errand: Option<Arc<Errand>>,
    pub(crate) control: Handle,
    pub(crate) jobs_runtime: Handle,
}

impl EngineState {
    pub(crate) fn new(parts: Parts) -> Self {
        let grace = parts.settings.engine.cancel_grace();
        let lease = parts.settings.engine.lease();
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
            lease: Arc::new(Lease::new(lease)),
            cluster: Mutex::default(),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            exhausted: CancellationToken::new(),
            doubted: Notify::new(),
            orphans: Notify::new(),
            suspects: Notify::new(),
            keyring: parts.keyring,
            errand: parts.errand,
            control: parts.control,
            jobs_runtime: parts.jobs_runtime,
            database_up: AtomicBool::new(true),
        }
    }

    /// `Runner.ID` for the next registration.
    pub(crate) fn next_identity(&self) -> Uuid {
        self.errand.as_ref().and_then(|errand| errand.first_identity()).unwrap_or_else(Uuid::new_v4)
    }

    /// At INFO for a daemon. A process that is there for one row has its say when it has got that row.
    pub(crate) fn say_registered(&self, id: Uuid) {
        if self.errand.is_none() {
            tracing::info!("Job Runner: registered as {id}");
        } else {
            tracing::debug!("Job Runner: registered as {id}");
        }
    }

    /// Alive tokio tasks of the whole process: a steady rise is a leak.
    pub(crate) fn tasks(&self) -> usize {
        self.control.metrics().num_alive_tasks() + self.jobs_runtime.metrics().num_alive_tasks()
    }

    /// The lease is gone: whatever was claimed under it is no longer ours. Its runs are told to stop, none of them
    /// passes the effect gate or is written any more.
    pub(crate) fn lose_lease(&self) -> Option<Uuid> {
        let was = self.lease.lost();
        if let Some(runner) = was {
            self.running.stop_all(StopCause::Lost, Some(runner));
        }
        was
    }

    /// A connection was opened to this cluster. After a failover our registration may be in it or not, and rows may
    /// stand as they did before we wrote them, so everything begins anew under another identity. A server that lags
    /// behind what we know is refused: it is an old primary that nobody stopped.
    pub(crate) fn saw_cluster(&self, cluster: Cluster) -> Result<(), DatabaseError> {
        let mut known = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        match known.now.replace(cluster) {
            Some(before) if cluster.is_behind(before) => {
                known.now = Some(before);
                return Err(DatabaseError::OldTimeline);
            }
            Some(before) if before != cluster => {
                tracing::warn!(
                    "Job Runner: the database is {cluster} now, it was {before}; the runs are stopped and it registers anew"
                );
                known.left_behind = self.lose_lease().or(known.left_behind);
                // What else is connected speaks to the one that was.
                self.lifeline.cut();
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a connection that was opened to `cluster` still speaks to the one we know.
    pub(crate) fn is_current(&self, cluster: Cluster) -> bool {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).now == Some(cluster)
    }

    /// Who we were before the cluster changed; the caller removes that row.
    pub(crate) fn left_behind(&self) -> Option<Uuid> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).left_behind
    }

    /// That row is removed.
    pub(crate) fn forget_left_behind(&self) {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).left_behind = None;
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
