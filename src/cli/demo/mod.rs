//! `rosterd demo`: a private PostgreSQL, a real daemon, and somebody who works it with SQL.
//!
//! Nothing here reaches into the daemon. It runs as a process of its own, and the demo does what an operator
//! does: INSERT, UPDATE, look.

mod screen;
mod script;
mod vulnerability;

use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::postgres::embedded;
use screen::Screen;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The whole demo takes about fifteen seconds; a machine that needs longer than this has a problem worth seeing.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Config) -> Result<(), Failure> {
    let home = Home::make(settings)?;
    // It plays on a database of its own, whatever DATABASE_URL says.
    let mut settings = settings.clone();
    settings.database.url = String::new().into();
    settings.state.dir.clone_from(&home.state);
    let mut screen = Screen::new();
    screen.say("rosterd demo: a private PostgreSQL, a daemon, and SQL");
    let began = Instant::now();
    let database = Database::open(&settings)?;
    let Some(server) = &database.embedded else {
        return Err(Failure::bug("failed to run the demo: no private PostgreSQL was started"));
    };
    let url = server.url();
    screen.say(&format!(
        "PostgreSQL {}.{} is up after {:.1?}",
        server.version().0,
        server.version().1,
        began.elapsed()
    ));

    let mut daemon = Daemon::start(&home, &url)?;
    let outcome = block_on(async {
        let finished =
            tokio::time::timeout(LIMIT, script::play(&database, &home, &mut screen, &mut daemon)).await;
        finished.unwrap_or_else(|_| Err(Failure::bug(format!("the demo did not end within {LIMIT:?}"))))
    });
    let stopped = daemon.stop();
    if outcome.is_err() {
        screen.say(&format!("the daemon's log is {}", home.log.display()));
    }
    outcome?;
    stopped?;
    screen.say(&format!("\nEvery row ended as it should, in {:.1?}. Go on by hand:", began.elapsed()));
    let program = std::env::args().next().unwrap_or_else(|| "rosterd".to_owned());
    let state = home.state.display();
    screen.say(&format!("  {program} psql --state-dir {state}"));
    screen.say(&format!("  {program} run --state-dir {state} --config {}", home.config.display()));
    Ok(())
}

/// The demo's folders.
pub(super) struct Home {
    state: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// A folder that is missing when a job first wants to list it.
    inbox: PathBuf,
    /// What a scanner found.
    scans: PathBuf,
    port: u16,
}

impl Home {
    fn make(settings: &Config) -> Result<Self, Failure> {
        let base = settings.state.dir().map_or_else(embedded::default_state_dir, Path::to_owned).join("demo");
        let fail = |what: &Path, error: std::io::Error| {
            Failure::usage(format!(
                "failed to write {}: {error}; give another folder with --state-dir",
                what.display()
            ))
        };
        let commands = base.join("commands.d");
        fs::create_dir_all(&commands).map_err(|e| fail(&commands, e))?;
        // A port nobody has right now; the daemon takes it in a moment.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|e| Failure::bug(format!("failed to find a free port: {e}")))?
            .port();
        let home = Self {
            state: base.join("state"),
            config: base.join("rosterd.toml"),
            log: base.join("daemon.log"),
            inbox: base.join("inbox"),
            scans: base.join("scans"),
            port,
        };
        // A log for each demo.
        File::create(&home.log).map_err(|e| fail(&home.log, e))?;
        begin_afresh(&home.state).map_err(|e| fail(&home.state, e))?;
        if home.inbox.exists() {
            fs::remove_dir(&home.inbox).map_err(|e| fail(&home.inbox, e))?;
        }
        vulnerability::prepare(&home.scans).map_err(|e| fail(&home.scans, e))?;
        let config = format!(
            "[http]\nlisten = \"127.0.0.1:{port}\"\n\n[sources]\nallow_private = [\"127.0.0.0/8\"]\nfolders = [{}]\n\n\
             [sql_job]\nallow_own_database = true\n",
            toml::Value::from(home.scans.display().to_string())
        );
        let hash = find_program(&["sha256sum", "cksum"])?;
        let tree = std::env::current_dir().map_err(|e| fail(Path::new("."), e))?;
        let tree = if tree.join("src").is_dir() { tree.join("src") } else { PathBuf::from("/etc") };
        let files = [
            (home.config.clone(), config),
            (
                commands.join("hash-tree.toml"),
                command_file(
                    &find_program(&["find"])?,
                    &[&tree.display().to_string(), "-type", "f", "-name", "*.*", "-exec", &hash, "{}", "+"],
                ),
            ),
            (
                commands.join("list-inbox.toml"),
                command_file(&find_program(&["ls"])?, &["-ld", &home.inbox.display().to_string()]),
            ),
            (
                commands.join("sleep.toml"),
                format!("{}allow_args = true\n", command_file(&find_program(&["sleep"])?, &[])),
            ),
        ];
        for (path, text) in files {
            fs::write(&path, text).map_err(|e| fail(&path, e))?;
            restrict(&path).map_err(|e| fail(&path, e))?;
        }
        restrict(&commands).map_err(|e| fail(&commands, e))?;
        Ok(home)
    }
}

/// A demo begins with an empty database, unless somebody is working with the one of the last demo right now.
fn begin_afresh(state: &Path) -> std::io::Result<()> {
    let lock = match File::open(state.join("lock")) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // Whoever runs that database holds this lock.
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fs::remove_dir_all(state),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Allow-lists must not be writable by others, whatever the umask.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(if path.is_dir() { 0o755 } else { 0o644 }))
}

fn command_file(program: &str, args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| toml::Value::from(*arg).to_string()).collect();
    format!("program = {}\nargs = [{}]\n", toml::Value::from(program), args.join(", "))
}

fn find_program(names: &[&str]) -> Result<String, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    names
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)))
        .find(|program| program.is_file())
        .map(|program| program.display().to_string())
        .ok_or_else(|| Failure::usage(format!("failed to find {} in PATH", names.join(" or "))))
}

/// The daemon, a process like any other.
pub(super) struct Daemon<'a> {
    child: Child,
    home: &'a Home,
    url: &'a str,
}

impl<'a> Daemon<'a> {
    fn start(home: &'a Home, url: &'a str) -> Result<Self, Failure> {
        Ok(Self { child: Self::spawn(home, url)?, home, url })
    }

    fn spawn(home: &Home, url: &str) -> Result<Child, Failure> {
        let fail = |e: std::io::Error| Failure::bug(format!("failed to start the daemon: {e}"));
        let log = File::options().create(true).append(true).open(&home.log).map_err(fail)?;
        Command::new(std::env::current_exe().map_err(fail)?)
            .arg("run")
            .arg("--config")
            .arg(&home.config)
            .env("DATABASE_URL", url)
            .stdin(Stdio::null())
            .stderr(log.try_clone().map_err(fail)?)
            .stdout(log)
            .spawn()
            .map_err(fail)
    }

    /// As `systemctl restart` does it.
    fn restart(&mut self) -> Result<(), Failure> {
        self.stop()?;
        self.child = Self::spawn(self.home, self.url)?;
        Ok(())
    }

    /// An error if it has ended.
    fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(Failure::bug(format!("the daemon ended; its log is {}", self.home.log.display()))),
        }
    }

    /// SIGTERM, as systemd does it, and its end.
    fn stop(&mut self) -> Result<(), Failure> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::bug(format!(
                "the daemon ended with {status}; its log is {}",
                self.home.log.display()
            ))),
            Err(error) => Err(Failure::bug(format!("failed to wait for the daemon: {error}"))),
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // After stop() there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
