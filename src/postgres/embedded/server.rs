//! The postmaster as our child: start it, know when it is ready, stop it.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{EmbeddedError, error, folders::Folders, leftovers};

/// How long the server may be silent before it is ready. A recovery that makes progress says so every ten seconds.
const SILENCE: Duration = Duration::from_mins(1);
/// How long a start may be refused because the processes of a killed server are still going away.
const REFUSED: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A postmaster that we started. Nothing stops it when this value is dropped; see [`Postmaster::stop`].
#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    watch: Arc<Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    exit: Mutex<Option<ExitStatus>>,
    ended: Condvar,
}

impl Watch {
    fn exit(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the server and waits until it is ready, again and again while an earlier one is still going away.
pub(super) fn start(
    folders: &Folders,
    socket_dir: &Path,
    command: impl Fn() -> Command,
) -> Result<Postmaster, EmbeddedError> {
    let since = Instant::now();
    loop {
        leftovers::clear(folders, socket_dir)?;
        let log = File::create(&folders.start_log).map_err(error::io("write", &folders.start_log))?;
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let postmaster =
            Postmaster::launch(command).map_err(error::io("start the server in", &folders.data))?;
        let what = match postmaster.wait_until_ready(folders) {
            Ok(()) => return Ok(postmaster),
            Err(what) => what,
        };
        postmaster.stop()?;
        let (log_file, last_lines) = folders.last_words();
        let refused = ["is still in use", "is another postmaster", "postmaster.pid\""];
        if !refused.iter().any(|words| last_lines.contains(words)) || since.elapsed() > REFUSED {
            return Err(EmbeddedError::NotReady {
                data_dir: folders.data.clone(),
                what,
                log_file,
                last_lines,
            });
        }
        thread::sleep(POLL * 10);
    }
}

impl Postmaster {
    /// Starts the process from a thread of its own that then waits for its end.
    ///
    /// The kernel sends the death signal when the *thread* that started the child ends, so no thread of the caller's,
    /// which may come and go, can be the parent. The waiting also reaps the process at once, so no dead postmaster
    /// keeps its pid, which would make the next start believe that it lives.
    fn launch(mut command: Command) -> io::Result<Self> {
        let watch = Arc::new(Watch::default());
        let (tell, told) = mpsc::sync_channel(1);
        let theirs = Arc::clone(&watch);
        thread::Builder::new().name("postgres-keeper".to_owned()).spawn(move || match command.spawn() {
            Ok(child) => {
                let _ = tell.send(Ok(child.id()));
                keep(child, &theirs);
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        })?;
        let id = told.recv().map_err(io::Error::other)??;
        let pid =
            i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no such pid"))?;
        Ok(Self { pid, watch })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) fn is_running(&self) -> bool {
        self.watch.exit().is_none()
    }

    /// Ready is when the pid file names our child and its eighth line says so; other servers' files say other pids.
    fn wait_until_ready(&self, folders: &Folders) -> Result<(), String> {
        let pid_file = folders.data.join("postmaster.pid");
        let mut since = Instant::now();
        let mut logged = 0;
        loop {
            if is_ready(&pid_file, self.pid()) {
                return Ok(());
            }
            if let Some(status) = self.wait(POLL) {
                return Err(format!("the server ended with {status}"));
            }
            if folders.logged_bytes() != logged {
                logged = folders.logged_bytes();
                since = Instant::now();
            }
            if since.elapsed() > SILENCE {
                return Err(format!("the server was not ready after {} s of silence", SILENCE.as_secs()));
            }
        }
    }

    /// Stops the server: fast (clients are disconnected), then immediate, then by force.
    pub(super) fn stop(&self) -> Result<(), EmbeddedError> {
        for (signal, seconds) in [(Signal::INT, 30), (Signal::QUIT, 10), (Signal::KILL, 5)] {
            self.signal(signal);
            if self.wait(Duration::from_secs(seconds)).is_some() {
                return Ok(());
            }
            tracing::warn!(pid = self.pid(), ?signal, seconds, "the private PostgreSQL does not stop");
        }
        Err(EmbeddedError::WontStop { pid: self.pid() })
    }

    /// Under the lock that the keeper takes before it reaps, so the pid cannot have become another process's.
    fn signal(&self, signal: Signal) {
        let exit = self.watch.exit();
        if exit.is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let exit = self.watch.exit();
        let waited = self.watch.ended.wait_timeout_while(exit, limit, |exit| exit.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Waits for the end of the child without reaping it, then reaps it while nobody can signal it.
fn keep(mut child: Child, watch: &Watch) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
    }
    let mut exit = watch.exit();
    *exit = child.wait().ok().or_else(|| Some(ExitStatus::default()));
    watch.ended.notify_all();
}

fn is_ready(pid_file: &Path, pid: i32) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let mut lines = text.lines();
    lines.next().is_some_and(|line| line.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}
