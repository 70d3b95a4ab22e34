//! Start-up and shut-down order of a process that another daemon started for one row.
//!
//! It is a small daemon: an engine and its log, but no schedules, no AutoStart, no HTTP, no word to systemd, no server
//! of its own and no migrations. All of that is the other's.

use super::{DaemonError, Start, StopSignals};
use crate::engine::errand::{Errand, PATIENCE};
use crate::engine::{Engine, state};
use crate::log::write_logs;
use crate::postgres::connect::{self, Backoff, DatabaseError, Limits, Speaker, within};
use crate::postgres::database::Database;
use crate::postgres::lifeline::Lifeline;
use crate::registry::{AnyJob, Registry};
use crate::vitals::Vitals;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Runs the one row, or finds that it is not to be had. Called on the control runtime.
pub(crate) async fn run(
    start: Start,
    errand: Arc<Errand>,
    jobs_runtime: Handle,
    signals: StopSignals,
) -> Result<(), DaemonError> {
    let Start { settings, registry, options, log_lines, log_handle, keyring, .. } = start;
    stop_with_the_other(signals.stop.clone()).map_err(DaemonError::Thread)?;
    die_before_the_other();
    // After that, because a process that cannot be looked into has files in /proc that it cannot write.
    super::guard_memory(&keyring);
    let limits = settings.database.limits();
    let prepared = tokio::select! {
        () = signals.stop.cancelled() => return Ok(()),
        prepared = prepare(&options, limits, &registry, &errand) => prepared?,
    };
    let Some(jobs) = prepared else { return Ok(()) };

    let lifeline = Arc::new(Lifeline::default());
    let open = |name, most| Database::following(Arc::clone(&lifeline), &options, name, most, limits);
    let (database, limits_database) = (open("jobs", settings.database.max_connections), open("limits", 1));
    let log_database = open("logs", 1);
    let logs_stop = CancellationToken::new();
    let logs = tokio::spawn(write_logs(log_lines, log_database, logs_stop.clone()));
    let drain = settings.engine.drain();
    let state = Arc::new(state::EngineState::new(state::Parts {
        settings,
        options,
        limits,
        vitals: Arc::new(Vitals::new()),
        jobs,
        keyring,
        lifeline,
        errand: Some(Arc::clone(&errand)),
        control: Handle::current(),
        jobs_runtime,
    }));
    let engine = Engine::start(state, database, limits_database, None);
    tokio::select! {
        () = errand.done.cancelled() => {}
        () = signals.stop.cancelled() => {}
    }
    let written = engine.stop(drain, signals.hurry).await;
    if let Some(handle) = log_handle.filter(|_| written) {
        let _ = tokio::time::timeout(Duration::from_secs(2), handle.flush()).await;
    }
    logs_stop.cancel();
    let _ = logs.await;
    Ok(())
}

/// The other daemon holds the far end of our standard input and never writes. When it ends, or wants us to, this one
/// drains. A thread of its own, because nothing can interrupt a read of standard input.
fn stop_with_the_other(stop: CancellationToken) -> std::io::Result<()> {
    let watch = move || {
        let mut byte = [0];
        while match std::io::stdin().read(&mut byte) {
            Ok(n) => n > 0,
            Err(error) => error.kind() == std::io::ErrorKind::Interrupted,
        } {}
        stop.cancel();
    };
    std::thread::Builder::new().name("rosterd-parent".to_owned()).spawn(watch).map(drop)
}

/// Where memory runs out, this process is the one to go, rather than the daemon with all its jobs: under this row
/// runners died twice.
fn die_before_the_other() {
    #[cfg(target_os = "linux")]
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500") {
        tracing::debug!("Job Runner: failed to write /proc/self/oom_score_adj: {error}");
    }
}

/// The IDs of the jobs, or `None` if there is nothing to do here: the row is another's by now, or the database does
/// not answer.
async fn prepare(
    options: &PgConnectOptions,
    limits: Limits,
    registry: &Registry,
    errand: &Errand,
) -> Result<Option<HashMap<i32, Arc<dyn AnyJob>>>, DaemonError> {
    let give_up = Instant::now() + PATIENCE;
    let mut backoff = Backoff::new(Duration::from_secs(2));
    loop {
        let attempt = async {
            let mut db = connect::connect(options, "start", Speaker::Runner, limits).await?;
            within(limits.statement, look(&mut db, registry, errand)).await
        };
        match attempt.await {
            Ok(jobs) => return Ok(jobs),
            Err(DatabaseError::Sql(error)) if !connect::is_outage(&error) => {
                return Err(DatabaseError::Sql(error).into());
            }
            Err(error) if Instant::now() >= give_up => {
                tracing::debug!("Job Runner: {error}");
                return Ok(None);
            }
            Err(_) => tokio::time::sleep(backoff.next_wait()).await,
        }
    }
}

async fn look(
    db: &mut PgConnection,
    registry: &Registry,
    errand: &Errand,
) -> Result<Option<HashMap<i32, Arc<dyn AnyJob>>>, sqlx::Error> {
    let is_there = sqlx::query_scalar!(
        r#"select exists (select from only JobHistory h where h.ID = $1 and h.Ready and h.Crashes >= 2) as "is_there!""#,
        errand.row.0,
    )
    .fetch_one(&mut *db)
    .await?;
    if !is_there {
        return Ok(None);
    }
    let names: Vec<String> = registry.iter().map(|job| job.name().to_owned()).collect();
    let known = sqlx::query!(
        r#"select j.ID, n.Name as "name!" from unnest($1::text[]) as n (Name) join Job j on j.Key = vm.job_key(n.Name)"#,
        &names,
    )
    .fetch_all(&mut *db)
    .await?;
    Ok(Some(known.into_iter().filter_map(|row| Some((row.id, registry.find(&row.name)?))).collect()))
}
