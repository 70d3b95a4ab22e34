//! Start-up order and shut-down order, nothing else.

pub(crate) mod alone;

use crate::config::Config;
use crate::engine::alone::Launcher;
use crate::engine::{Engine, state};
use crate::log::{LogLines, write_logs};
use crate::postgres::connect::{self, Backoff, DatabaseError, Limits, Speaker};
use crate::postgres::database::Database;
use crate::postgres::embedded::EmbeddedPostgres;
use crate::postgres::lifeline::Lifeline;
use crate::postgres::migrate::{self, SchemaError};
use crate::registry::{AnyJob, Registry};
use crate::schedule::{autostart, tick};
use crate::secrets::Keyring;
use crate::vitals::{self, Vitals};
use crate::{log, systemd, web};
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// Connections over which shares of sources are asked for.
const LIMITS_CONNECTIONS: u32 = 2;
/// The database is looked after this often while it is away and ours.
const EMBEDDED_CHECK: Duration = Duration::from_secs(1);

/// Everything a daemon starts with.
pub(crate) struct Start {
    pub(crate) settings: Arc<Config>,
    pub(crate) registry: Registry,
    pub(crate) options: PgConnectOptions,
    pub(crate) embedded: Option<Arc<Mutex<Option<EmbeddedPostgres>>>>,
    pub(crate) log_lines: LogLines,
    pub(crate) log_handle: Option<log::LogHandle>,
    /// How suspects get processes of their own; `None` if they do not.
    pub(crate) launcher: Option<Launcher>,
    /// Opens the sealed credentials of sources.
    pub(crate) keyring: Keyring,
}

/// Why a daemon could not start, or had to give up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("failed to listen on {address} for HTTP: {error}; give another with --listen, or \"off\"")]
    Listen { address: String, error: std::io::Error },
    #[error("failed to start a thread: {0}")]
    Thread(std::io::Error),
    #[error(
        "failed to go on: jobs that cannot be stopped hold the threads of this process (engine.max_abandoned); \
         its rows went back on the queue, a fresh process is needed"
    )]
    Exhausted,
}

/// When to stop: `stop` asks for it, `hurry` asks again.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopSignals {
    pub(crate) stop: CancellationToken,
    pub(crate) hurry: CancellationToken,
    pub(crate) reload: Arc<tokio::sync::Notify>,
}

/// The two runtimes: loops here, jobs there.
pub(crate) fn runtimes(settings: &Config) -> Result<(Runtime, Runtime), DaemonError> {
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("rosterd-control")
        .enable_all()
        .build()
        .map_err(DaemonError::Thread)?;
    let jobs = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.engine.threads())
        .thread_name("rosterd-jobs")
        .enable_all()
        .build()
        .map_err(DaemonError::Thread)?;
    Ok((control, jobs))
}

/// Runs until told to stop. Called on the control runtime.
pub(crate) async fn run(start: Start, jobs_runtime: Handle, signals: StopSignals) -> Result<(), DaemonError> {
    let Start { settings, registry, options, embedded, log_lines, log_handle, launcher, keyring } = start;
    guard_memory(&keyring);
    let vitals = Arc::new(Vitals::new());
    let limits = settings.database.limits();

    // These tell others how we are until the very end.
    let web_stop = CancellationToken::new();
    systemd::start(Arc::clone(&vitals), web_stop.clone());
    let web = match settings.http.address() {
        Some(address) => Some(serve_http(address, &vitals, &web_stop).await?),
        None => None,
    };
    if let Some(embedded) = embedded {
        tokio::spawn(keep_embedded_alive(embedded, Arc::clone(&vitals), signals.stop.clone()));
    }

    let Some(jobs) = prepare(&options, limits, &registry, &vitals, &signals.stop).await? else {
        return Ok(()); // told to stop before the database was there
    };
    let lifeline = Arc::new(Lifeline::default());
    let open =
        |name, connections| Database::following(Arc::clone(&lifeline), &options, name, connections, limits);
    let (database, log_database) = (open("jobs", settings.database.max_connections), open("logs", 1));
    let logs_stop = CancellationToken::new();
    let logs = tokio::spawn(write_logs(log_lines, log_database, logs_stop.clone()));

    let state = Arc::new(state::EngineState::new(state::Parts {
        settings: Arc::clone(&settings),
        options: options.clone(),
        limits,
        lifeline: Arc::clone(&lifeline),
        vitals: Arc::clone(&vitals),
        jobs,
        keyring,
        errand: None,
        control: Handle::current(),
        jobs_runtime,
    }));
    let scheduler = tick::Scheduler {
        options: options.clone(),
        limits,
        lifeline: Arc::clone(&lifeline),
        hints: state.hints.clone(),
        vitals: Arc::clone(&vitals),
        missed_grace: settings.schedule.missed_grace(),
        missed_max: settings.schedule.missed_max,
    };
    let engine = Engine::start(Arc::clone(&state), database, open("limits", LIMITS_CONNECTIONS), launcher);
    let autostart = tokio::spawn(autostart_configs(
        options.clone(),
        limits,
        Arc::clone(&lifeline),
        state.hints.clone(),
        signals.stop.clone(),
    ));
    let schedule_stop = CancellationToken::new();
    let schedule = tokio::spawn(scheduler.run(schedule_stop.clone()));

    until_ready(&vitals, &signals.stop).await;
    if !signals.stop.is_cancelled() {
        say_ready();
        systemd::ready();
    }
    wait_for_stop(&signals, &state).await;

    let exhausted = state.exhausted.is_cancelled();
    if !exhausted {
        tracing::info!("Job Runner: told to stop");
    }
    // With every thread held no job can end by itself.
    let stuck = exhausted && state.running.abandoned() >= settings.engine.threads();
    let drain = if stuck { Duration::ZERO } else { settings.engine.drain() };
    systemd::stopping(drain + settings.engine.cancel_grace());
    vitals.set_ready(false);
    schedule_stop.cancel();
    // It holds nothing but a connection.
    let _ = schedule.await;
    let _ = autostart.await;
    vitals.retire("schedule");
    let written = engine.stop(drain, signals.hurry.clone()).await;
    web_stop.cancel();
    if let Some(web) = web {
        let _ = web.await;
    }
    if let Some(handle) = log_handle.filter(|_| written) {
        let _ = tokio::time::timeout(Duration::from_secs(2), handle.flush()).await;
    }
    logs_stop.cancel();
    let _ = logs.await;
    tracing::info!("Job Runner: stopped");
    if exhausted { Err(DaemonError::Exhausted) } else { Ok(()) }
}

/// With private keys in its memory the process leaves no core dump, and no other process of the same user, such as a
/// command, may look into it (ptrace, /proc/PID/mem).
pub(crate) fn guard_memory(keyring: &Keyring) {
    #[cfg(target_os = "linux")]
    if !keyring.is_empty()
        && let Err(error) =
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(
            "Job Runner: core dumps cannot be turned off, they would hold the private keys: {error}"
        );
    }
}

/// Contract: printed and logged once it claims. `println!` would panic on a full disk.
fn say_ready() {
    tracing::info!("rosterd is ready");
    if writeln!(std::io::stdout(), "rosterd is ready").is_err() {
        metrics::counter!(vitals::LOG_LINES_UNWRITTEN).increment(1);
    }
}

async fn serve_http(
    address: &str,
    vitals: &Arc<Vitals>,
    stop: &CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, DaemonError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| DaemonError::Listen { address: address.to_owned(), error })?;
    let bound: Option<SocketAddr> = listener.local_addr().ok();
    web::metrics::install();
    if let Some(bound) = bound {
        tracing::info!("HTTP: listening on http://{bound}/ (healthz, readyz, metrics)");
    }
    let vitals = Arc::clone(vitals);
    let stop = stop.clone();
    Ok(tokio::spawn(async move {
        if let Err(error) = web::serve(listener, vitals, stop).await {
            tracing::error!("HTTP: stopped serving: {error}");
        }
    }))
}

/// Migrates and registers the jobs, as often as it takes; `None` when told to stop before.
async fn prepare(
    options: &PgConnectOptions,
    limits: Limits,
    registry: &Registry,
    vitals: &Vitals,
    stop: &CancellationToken,
) -> Result<Option<HashMap<i32, Arc<dyn AnyJob>>>, DaemonError> {
    let mut backoff = Backoff::new(Duration::from_secs(2));
    loop {
        vitals.progress("start");
        let outcome = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            outcome = prepare_once(options, limits, registry) => outcome,
            limit = link_is_dead(options, limits) => Err(DatabaseError::Deadline(limit).into()),
        };
        match outcome {
            Ok(jobs) => {
                vitals.set_database_up(true);
                vitals.retire("start");
                return Ok(Some(jobs));
            }
            Err(error) if error.is_outage() => {
                let wait = backoff.next_wait();
                tracing::warn!("Job Runner: {error}; tried again in {wait:.1?}");
                tokio::select! {
                    () = stop.cancelled() => return Ok(None),
                    () = tokio::time::sleep(wait) => {}
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn prepare_once(
    options: &PgConnectOptions,
    limits: Limits,
    registry: &Registry,
) -> Result<HashMap<i32, Arc<dyn AnyJob>>, SchemaError> {
    let migrated = migrate::migrate(options, limits).await?;
    for step in &migrated.applied {
        tracing::info!("Schema: applied '{step}'");
    }
    let mut db = connect::connect(options, "start", Speaker::Runner, limits).await?;
    warn_of_lossy_server(&mut db).await?;
    Ok(register_jobs(&mut db, registry).await?)
}

/// A migration may take long, and waiting for another daemon's too, so nothing of the start has a deadline. Instead a
/// connection made beside it every now and then shows whether the database can be reached at all.
async fn link_is_dead(options: &PgConnectOptions, limits: Limits) -> Duration {
    const LOOK: Duration = Duration::from_secs(2);
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(DatabaseError::Deadline(limit)) =
            connect::connect(options, "start", Speaker::Operator, limits).await
        {
            return limit;
        }
    }
}

/// Settings under which a crash of the server's machine may lose what was acknowledged.
async fn warn_of_lossy_server(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    let lossy: Vec<String> = sqlx::query_scalar(
        "select name || ' = ' || setting from pg_settings
         where (name in ('fsync', 'full_page_writes') and setting = 'off')
            or (name = 'synchronous_commit' and setting = 'off')",
    )
    .fetch_all(db)
    .await?;
    if !lossy.is_empty() {
        tracing::warn!(
            "Schema: the server runs with {}: a crash of its machine may lose rows",
            lossy.join(", ")
        );
    }
    Ok(())
}

/// Makes a row in `Job` for each registered job, and learns its ID. An operator's Priority stays.
pub(crate) async fn register_jobs(
    db: &mut PgConnection,
    registry: &Registry,
) -> Result<HashMap<i32, Arc<dyn AnyJob>>, sqlx::Error> {
    let mut jobs = HashMap::new();
    for job in registry.iter() {
        // No conflict target: another daemon that starts now may be first on either of the two unique columns.
        sqlx::query!(
            "insert into Job (Struct, Priority) values ($1, $2) on conflict do nothing",
            job.name(),
            job.priority(),
        )
        .execute(&mut *db)
        .await?;
        sqlx::query!(
            "update Job set Description = $2, PayloadSchema = $3
             where Key = vm.job_key($1) and (Description is distinct from $2 or PayloadSchema is distinct from $3)",
            job.name(),
            job.description(),
            job.schema(),
        )
        .execute(&mut *db)
        .await?;
        let id = sqlx::query_scalar!("select ID from Job where Key = vm.job_key($1)", job.name())
            .fetch_one(&mut *db)
            .await?;
        jobs.insert(id, Arc::clone(job));
    }
    Ok(jobs)
}

/// Every start puts a row on the queue for each AutoStart configuration without one, however long the
/// database, or an operator who holds one locked, keeps us waiting for it.
async fn autostart_configs(
    options: PgConnectOptions,
    limits: Limits,
    lifeline: Arc<Lifeline>,
    hints: crate::postgres::listen::Hints,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_secs(2));
    let mut served = Vec::new();
    loop {
        let attempt = async {
            let mut db = connect::connect(&options, "autostart", Speaker::Runner, limits).await?;
            lifeline.within(limits.deadline(), autostart::run(&mut db, &served)).await
        };
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = attempt => outcome,
        };
        let wait = match outcome {
            Ok(done) => {
                for config in &done.already_live {
                    tracing::info!("AutoStart: configuration {config} has a live row already, none is added");
                }
                if !done.started.is_empty() {
                    tracing::info!("AutoStart: {} rows put on the queue", done.started.len());
                    hints.wake.notify_one();
                }
                if !done.more {
                    return;
                }
                served.extend(done.already_live.iter().chain(&done.started));
                backoff.next_wait()
            }
            Err(error) => {
                let wait = backoff.next_wait();
                tracing::warn!("AutoStart: {error}; tried again in {wait:.1?}");
                wait
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn until_ready(vitals: &Vitals, stop: &CancellationToken) {
    while !vitals.ready() && !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_for_stop(signals: &StopSignals, state: &state::EngineState) {
    let hints = &state.hints;
    loop {
        tokio::select! {
            () = signals.stop.cancelled() => return,
            () = state.exhausted.cancelled() => return,
            () = signals.reload.notified() => {
                // Everything operators change lives in the database and acts at once; what a reload adds is a
                // fresh look at all of it.
                systemd::reloading();
                tracing::info!("Job Runner: reloading");
                hints.wake.notify_one();
                hints.cancel.notify_one();
                hints.schedule.notify_one();
                systemd::ready();
            }
        }
    }
}

/// An embedded server that was killed is started again.
async fn keep_embedded_alive(
    embedded: Arc<Mutex<Option<EmbeddedPostgres>>>,
    vitals: Arc<Vitals>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EMBEDDED_CHECK) => {}
        }
        if vitals.database_up() {
            continue;
        }
        let server = Arc::clone(&embedded);
        let outcome = tokio::task::spawn_blocking(move || {
            let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
            server.as_mut().map_or(Ok(false), EmbeddedPostgres::restart_if_dead)
        })
        .await;
        match outcome {
            Ok(Ok(true)) => tracing::warn!("Embedded PostgreSQL: it had died and was started again"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!("Embedded PostgreSQL: {error}"),
            Err(error) => tracing::error!("Embedded PostgreSQL: {error}"),
        }
    }
}

impl From<DatabaseError> for DaemonError {
    fn from(error: DatabaseError) -> Self {
        Self::Schema(error.into())
    }
}
