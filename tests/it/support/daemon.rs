//! A real daemon process. It is killed when the value is dropped.

use super::{SOON, TestDb};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The rosterd that ships.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_rosterd"))
}

/// The rosterd with the misbehaving jobs of `examples/own_jobs/`. `cargo test` builds it.
pub fn own_jobs_binary() -> PathBuf {
    let path = binary().with_file_name("examples").join("own_jobs");
    assert!(
        path.exists(),
        "{} is missing; `cargo test` builds it, `cargo test --test it` does not",
        path.display()
    );
    path
}

type Lines = Arc<(Mutex<Vec<String>>, Condvar)>;

pub struct Daemon {
    child: Child,
    lines: Lines,
}

impl Daemon {
    /// `own_jobs run` on this database, ready to claim.
    pub fn start(db: &TestDb) -> Self {
        Self::start_with(db, &[])
    }

    /// The same with further environment variables, such as `("ROSTERD__ENGINE__WORKERS", "1")`.
    pub fn start_with(db: &TestDb, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
        command.envs(env.iter().copied());
        let daemon = Self::spawn(command);
        daemon.wait_line("rosterd is ready");
        daemon
    }

    /// Any command line that goes on running; its output is gathered.
    pub fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Lines::default();
        gather(child.stdout.take().unwrap(), &lines);
        gather(child.stderr.take().unwrap(), &lines);
        Self { child, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of output that contains `text`, and returns it.
    pub fn wait_line(&self, text: &str) -> String {
        self.wait_line_within(text, SOON)
    }

    pub fn wait_line_within(&self, text: &str, limit: Duration) -> String {
        let until = Instant::now() + limit;
        let (lines, more) = &*self.lines;
        let mut lines = lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                panic!("waited {limit:?} for {text:?}");
            }
            lines = more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Everything it said so far.
    pub fn output(&self) -> String {
        // A wait that failed panicked with the lock in its hand; what was said is still good.
        self.lines.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(done.success());
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and its exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_exit()
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let until = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end; it said:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.output());
        }
    }
}

fn gather(from: impl Read + Send + 'static, lines: &Lines) {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            lines.0.lock().unwrap().push(line);
            lines.1.notify_all();
        }
    });
}
