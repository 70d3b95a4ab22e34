//! The daemons: this very program, started as `rosterd run` with the checker's jobs.

use crate::clock::{self, Nanos};
use crate::effects;
use crate::network::Path as NetworkPath;
use crate::signals;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Set in a process that is a daemon.
pub const IS_DAEMON: &str = "ROSTERD_CHAOS_DAEMON";

/// Seconds a runner may be silent.
pub const LEASE: f64 = 3.0;

/// One process's life.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Life {
    pub pid: u32,
    pub from: Nanos,
    pub to: Option<Nanos>,
    /// Exit code; `None` for a signal or while it lives.
    pub code: Option<i32>,
}

/// A daemon that is started again each time it ended.
pub struct Daemon {
    /// From 0.
    pub number: usize,
    /// How it reaches the database.
    pub path: NetworkPath,
    folder: PathBuf,
    more: Vec<(String, String)>,
    state: Mutex<State>,
    /// Held by the fault that works on it.
    pub busy: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    lives: Vec<Life>,
    max_rss_kib: u64,
    max_files: usize,
    last_rss_kib: u64,
    last_files: usize,
}

/// The most memory and open files seen, and the last.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Usage {
    pub max_rss_kib: u64,
    pub last_rss_kib: u64,
    pub max_files: usize,
    pub last_files: usize,
}

impl Daemon {
    pub fn new(number: usize, path: NetworkPath, folder: &Path, more: Vec<(String, String)>) -> Self {
        let state = Mutex::default();
        Self { number, path, folder: folder.to_owned(), more, state, busy: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process.
    pub fn start(&self) {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = match &self.path.namespace {
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("daemon-{}.log", self.number)))
            .expect("a log file");
        let state_dir = self.folder.join(format!("daemon-{}", self.number));
        command
            .args(["run", "--listen", "off", "--state-dir"])
            .arg(state_dir)
            .env(IS_DAEMON, "1")
            .env(effects::FOLDER, self.folder.join("effects"))
            .env("DATABASE_URL", &self.path.url)
            .env("ROSTERD__ENGINE__LEASE_SECONDS", LEASE.to_string())
            .env("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.5")
            .env("ROSTERD__ENGINE__POLL_SECONDS", "0.5")
            .env("ROSTERD__ENGINE__CANCEL_GRACE_SECONDS", "1")
            .env("ROSTERD__ENGINE__DRAIN_SECONDS", "1")
            .env("ROSTERD__ENGINE__WORKERS", "24")
            .env("ROSTERD__ENGINE__JOB_THREADS", "2")
            .env("ROSTERD__DATABASE__CONNECT_TIMEOUT_SECONDS", "2")
            .env("ROSTERD__DATABASE__STATEMENT_TIMEOUT_SECONDS", "10")
            .env("ROSTERD__DATABASE__MAX_CONNECTIONS", "6")
            .env("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8,10.0.0.0/8")
            .env("ROSTERD__LOG__DATABASE_LEVEL", "warn")
            .envs(self.more.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        let child = command.spawn().expect("this program can be started");
        let mut state = self.state();
        state.lives.push(Life { pid: child.id(), from: clock::now(), to: None, code: None });
        state.child = Some(child);
    }

    /// The process, if it lives.
    pub fn pid(&self) -> Option<i32> {
        let mut state = self.state();
        reap(&mut state);
        state.child.as_ref().and_then(|child| i32::try_from(child.id()).ok())
    }

    /// Sends a signal to the process, if it lives.
    pub fn signal(&self, name: &str) {
        if let Some(pid) = self.pid() {
            signals::send(pid, name);
        }
    }

    /// kill -9, and its end.
    pub fn kill(&self) {
        let mut state = self.state();
        if let Some(mut child) = state.child.take() {
            let _ = child.kill();
            let status = child.wait().expect("it was ours");
            note_end(&mut state, status.code());
        }
    }

    /// Waits for its end, and kills it if it takes too long. Returns whether it ended by itself.
    pub async fn wait_end(&self, limit: Duration) -> bool {
        let until = clock::now() + u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        while self.pid().is_some() {
            if clock::now() > until {
                self.kill();
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Every process it had.
    pub fn lives(&self) -> Vec<Life> {
        self.state().lives.clone()
    }

    /// Looks at memory and open files.
    pub fn measure(&self) {
        let Some(pid) = self.pid() else { return };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return };
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let mut state = self.state();
        (state.last_rss_kib, state.last_files) = (rss, files);
        state.max_rss_kib = state.max_rss_kib.max(rss);
        state.max_files = state.max_files.max(files);
    }

    pub fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            max_rss_kib: state.max_rss_kib,
            last_rss_kib: state.last_rss_kib,
            max_files: state.max_files,
            last_files: state.last_files,
        }
    }
}

fn reap(state: &mut State) {
    let ended = state.child.as_mut().and_then(|child| child.try_wait().expect("it was ours"));
    if let Some(status) = ended {
        state.child = None;
        note_end(state, status.code());
    }
}

fn note_end(state: &mut State, code: Option<i32>) {
    if let Some(life) = state.lives.last_mut() {
        life.to = Some(clock::now());
        life.code = code;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
