//! Rows that two runners died under run alone: each in a process of its own, so that a job which kills its process
//! (an abort, the kernel's out-of-memory killer) takes no other row with it.
//!
//! Such a process is this same program, started for one row (`errand.rs`). It is a runner of its own, with a lease,
//! so nothing here is needed to keep the promises: if this daemon dies, the process hears the end of its standard
//! input and puts its row back; if both die, any runner rescues it after a lease. What this loop adds is speed: it
//! sees at once that a process died, removes its Runner row and has the row rescued.

use super::errand::{Errand, NOT_HAD, PATIENCE, VARIABLE};
use super::link::Link;
use super::state::EngineState;
use crate::config::Config;
use crate::history::{HistoryId, lookup};
use crate::postgres::connect::{Backoff, DatabaseError};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret, SecretString};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A look that found nothing is not repeated sooner, however often a tick says that a suspect is due: it may wait for
/// room, or for its configuration to be active again.
const QUIET: Duration = Duration::from_secs(2);

/// What a process that was told to stop has beyond its own drain and grace time: it aborts, writes its last outcome
/// and leaves.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// How to start this program once more, for one row.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    program: PathBuf,
    config: Option<PathBuf>,
    url: SecretString,
    /// The private server's own: a password file that is configured is not for it.
    embedded: bool,
    /// The operator is in a hurry: what is told to stop shall not drain.
    hurry: CancellationToken,
}

impl Launcher {
    /// `url` is that of the embedded server, if there is one.
    pub(crate) fn new(settings: &Config, url: Option<String>, hurry: CancellationToken) -> io::Result<Self> {
        let embedded = url.is_some();
        Ok(Self {
            program: this_program()?,
            config: settings.file.clone(),
            url: url.map_or_else(|| settings.database.url.clone(), SecretString::from),
            embedded,
            hurry,
        })
    }

    /// The settings that differ go by the environment, which others cannot read; the command line names no secret.
    fn command(&self, row: HistoryId, runner: Uuid) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0(std::env::args_os().next().unwrap_or_else(|| OsString::from("rosterd")));
        command.arg("run");
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        command
            .env(VARIABLE, Errand::variable(row, runner))
            .env("ROSTERD__DATABASE__URL", self.url.expose_secret())
            .env("ROSTERD__HTTP__LISTEN", "off")
            .env("ROSTERD__ENGINE__WORKERS", "1");
        if self.embedded {
            command.env("ROSTERD__DATABASE__PASSWORD_FILE", "");
        }
        // What systemd gave to this process is not for that one.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        // Output goes where ours goes. When this process ends, however it ends, the other reads the end of its input.
        command.stdin(Stdio::piped());
        command
    }
}

/// The very program that runs now, also when its file has been replaced by a newer one meanwhile.
fn this_program() -> io::Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() { Ok(own) } else { std::env::current_exe() }
}

/// A process that ended.
struct Ended {
    row: HistoryId,
    runner: Uuid,
    status: io::Result<ExitStatus>,
}

/// Starts processes for due suspects until `stop`, and then waits for those there are.
pub(super) async fn run(state: Arc<EngineState>, launcher: Launcher, stop: CancellationToken) {
    let mut work = Work {
        link: Link::new(&state, "alone"),
        launcher,
        job_ids: state.jobs.keys().copied().collect(),
        processes: JoinSet::new(),
        rest: HashMap::new(),
        dead: Vec::new(),
        told: stop.clone(),
    };
    let mut backoff = Backoff::new(Duration::from_secs(5));
    // Nobody has to look before a tick or a sweep says that there is something.
    let mut look = false;
    let mut quiet_until = Instant::now();
    loop {
        state.vitals.progress("alone");
        let now = Instant::now();
        let look_now = look && now >= quiet_until;
        let mut wait = if look { quiet_until.saturating_duration_since(now) } else { super::IDLE_LOOK };
        if look_now || !work.dead.is_empty() {
            match work.turn(&state, look_now).await {
                Ok(started) => {
                    backoff.reset();
                    if look_now {
                        look = false;
                        quiet_until = if started > 0 { now } else { now + QUIET };
                        wait = super::IDLE_LOOK;
                    }
                }
                Err(error) => {
                    state.database_trouble("alone", &error, &mut work.link);
                    wait = backoff.next_wait();
                }
            }
        }
        if work.processes.is_empty() && work.dead.is_empty() && !look {
            // Suspects are rare: no connection is kept for them.
            work.link.close();
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = state.vitals.rest("alone", wait) => {}
            () = state.suspects.notified() => look = true,
            Some(ended) = work.processes.join_next() => {
                work.ended(ended);
                look = true;
                quiet_until = Instant::now();
            }
        }
    }
    // What follows may take as long as a drain.
    state.vitals.retire("alone");
    while let Some(ended) = work.processes.join_next().await {
        work.ended(ended);
    }
    // If this fails the others remove the rows after a lease.
    if !work.dead.is_empty()
        && let Err(error) = work.turn(&state, false).await
    {
        state.database_trouble("alone", &error, &mut work.link);
    }
}

struct Work {
    link: Link,
    launcher: Launcher,
    job_ids: Vec<i32>,
    processes: JoinSet<Ended>,
    /// Rows that could not be had just now, and until when they are left alone.
    rest: HashMap<HistoryId, Instant>,
    /// Runners whose processes have ended: their rows in Runner go.
    dead: Vec<Uuid>,
    told: CancellationToken,
}

impl Work {
    /// Buries the dead and, if asked to, looks for suspects. Returns how many processes were started.
    async fn turn(&mut self, state: &EngineState, look: bool) -> Result<usize, DatabaseError> {
        let db = self.link.get().await?;
        while let Some(runner) = self.dead.last() {
            // Safe, because the process is gone. What it sent last may still be carried out, but before this, because
            // its statements hold the row, or not at all.
            let burial = sqlx::query!("delete from Runner where ID = $1", runner);
            if state.within(burial.execute(&mut *db)).await?.rows_affected() > 0 {
                state.orphans.notify_one();
            }
            self.dead.pop();
        }
        let free = state.settings.engine.alone_processes.saturating_sub(self.processes.len());
        let may_start = state.lease.runner().is_some() && !state.draining.load(Ordering::Acquire);
        if !look || free == 0 || !may_start {
            return Ok(0);
        }
        let now = Instant::now();
        self.rest.retain(|_, until| *until > now);
        let rest: Vec<Uuid> = self.rest.keys().map(|row| row.0).collect();
        let limit = i64::try_from(free).unwrap_or(i64::MAX);
        let found = state.within(lookup::suspects(&mut *db, &self.job_ids, &rest, limit)).await?;
        for row in &found {
            self.start(state, *row);
        }
        Ok(found.len())
    }

    fn start(&mut self, state: &EngineState, row: HistoryId) {
        // Until it has a row in Runner, nothing else says that this row is being looked after.
        self.rest.insert(row, Instant::now() + PATIENCE);
        let runner = Uuid::new_v4();
        let child = match self.launcher.command(row, runner).spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!("Job Runner: failed to start a process for {row}, which runs alone: {error}");
                return;
            }
        };
        tracing::debug!("Job Runner: started process {} for {row}", child.id().unwrap_or_default());
        let engine = &state.settings.engine;
        let limit = engine.drain() + engine.cancel_grace() + LAST_WORDS;
        let (told, hurry) = (self.told.clone(), self.launcher.hurry.clone());
        self.processes
            .spawn(async move { Ended { row, runner, status: attend(child, told, hurry, limit).await } });
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ended { row, runner, status } = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // Its lease shows what became of it.
                tracing::error!("Job Runner: lost sight of a process that ran a row alone: {error}");
                return;
            }
        };
        // Only of a process that has surely ended; the lease shows what became of any other.
        if status.is_ok() {
            self.dead.push(runner);
        }
        match status {
            Ok(status) if status.success() => {
                self.rest.remove(&row);
            }
            Ok(status) if status.code() == Some(i32::from(NOT_HAD)) => {
                tracing::debug!("Job Runner: {row} was not to be had");
                self.rest.insert(row, Instant::now() + PATIENCE);
            }
            Ok(status) => {
                tracing::warn!("Job Runner: the process that ran {row} alone died: {status}");
                self.rest.insert(row, Instant::now() + PATIENCE);
            }
            Err(error) => tracing::error!("Job Runner: the process that ran {row} alone was lost: {error}"),
        }
    }
}

/// Waits for the end of a process. When told to, it lets the process know, which then drains as this daemon does.
async fn attend(
    mut child: Child,
    told: CancellationToken,
    hurry: CancellationToken,
    limit: Duration,
) -> io::Result<ExitStatus> {
    let input = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status,
        () = told.cancelled() => drop(input),
    }
    let until = Instant::now() + limit;
    let mut next_signal = Instant::now();
    let hurry_now = async |at| {
        hurry.cancelled().await;
        tokio::time::sleep_until(at).await;
    };
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = hurry_now(next_signal) => {
                // Its first word to stop was the end of its input, so this is the second; said again, in case it was
                // faster than the first.
                next_signal = Instant::now() + Duration::from_secs(1);
                if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                    // No such process: it has ended, which the next round hears.
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            () = tokio::time::sleep_until(until) => {
                tracing::error!("Job Runner: a process that runs a row alone does not stop, it is killed");
                child.kill().await?;
            }
        }
    }
}
