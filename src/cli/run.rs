//! `rosterd run`: the daemon.

use super::{Database, Failure};
use crate::config::Config;
use crate::daemon::{self, DaemonError, Start, StopSignals};
use crate::engine::alone::Launcher;
use crate::engine::errand::{self, Errand};
use crate::log;
use crate::postgres::embedded::EmbeddedPostgres;
use crate::registry::Registry;
use crate::secrets::Keyring;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

pub(super) fn run(settings: &Arc<Config>, registry: Registry) -> Result<(), Failure> {
    let (sink, log_lines) = log::database::channel(settings.log.database_queue, settings.log.database_level);
    let logging = log::init(&settings.log, Some(sink)).map_err(Failure::usage)?;
    log_panics();
    let keyring = Keyring::load(&settings.secrets).map_err(Failure::usage)?;
    let errand = Errand::from_environment().map_err(Failure::usage)?.map(Arc::new);
    let mut database = Database::open(settings)?;
    if let Some(server) = &database.embedded {
        tracing::info!("Embedded PostgreSQL: {}", server.url());
    }
    let url = database.embedded.as_ref().map(EmbeddedPostgres::url);
    let embedded = database.embedded.take().map(|server| Arc::new(Mutex::new(Some(server))));

    let signals = StopSignals::default();
    let launcher = if errand.is_none() && settings.engine.alone_processes > 0 {
        let launcher = Launcher::new(settings, url, signals.hurry.clone());
        Some(launcher.map_err(|e| Failure::bug(format!("failed to find this program's file: {e}")))?)
    } else {
        None
    };
    let (control, jobs) = daemon::runtimes(settings)?;
    let start = Start {
        settings: Arc::clone(settings),
        registry,
        options: database.options.clone(),
        embedded: embedded.clone(),
        log_lines,
        log_handle: logging.handle().cloned(),
        launcher,
        keyring,
    };
    let outcome = control.block_on(async {
        listen_for_signals(signals.clone())
            .map_err(|e| Failure::bug(format!("failed to hear signals: {e}")))?;
        let jobs = jobs.handle().clone();
        let Some(errand) = errand else { return Ok(daemon::run(start, jobs, signals).await?) };
        daemon::alone::run(start, Arc::clone(&errand), jobs, signals).await?;
        if errand.ran() { Ok(()) } else { Err(Failure::exit(errand::NOT_HAD)) }
    });
    // Threads of jobs that do not let themselves be stopped are left behind; the process ends under them.
    jobs.shutdown_timeout(Duration::from_millis(100));
    control.shutdown_timeout(Duration::from_secs(2));
    if let Some(embedded) = embedded
        && let Some(server) = embedded.lock().unwrap_or_else(PoisonError::into_inner).take()
    {
        server.stop()?;
    }
    outcome
}

/// SIGTERM and SIGINT stop the daemon, a second one hurries it; SIGHUP makes it look at everything anew.
fn listen_for_signals(signals: StopSignals) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    signals.reload.notify_one();
                    continue;
                }
            }
            if signals.stop.is_cancelled() {
                signals.hurry.cancel();
            }
            signals.stop.cancel();
        }
    });
    Ok(())
}

/// A panic of a job is logged where it happens, in the job's own span; the row gets its message as its Error.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("(no text)");
        tracing::error!("panicked at {place}: {text}");
    }));
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Schema(error) => error.into(),
            DaemonError::Listen { .. } => Self::usage(error),
            DaemonError::Thread(_) | DaemonError::Exhausted => Self::bug(error),
        }
    }
}
