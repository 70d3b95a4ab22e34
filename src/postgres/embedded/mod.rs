//! A private PostgreSQL, for a rosterd that was given no `DATABASE_URL`.
//!
//! It is made from the server programs that are installed here, lives in the state folder, listens on a Unix socket
//! only, and lets in only the OS users it knows (`peer`) or roles with a SCRAM password. Started by root, it runs as
//! an ordinary user. [`EmbeddedPostgres::start`] is synchronous: `main` calls it before there is a runtime.
//!
//! # Who owns the server
//!
//! Any number of rosterd processes may share one state folder: a daemon or several, and commands such as
//! `rosterd status`. Exactly one of them holds the folder's lock and thereby **owns** the server; the others **use** it.
//!
//! ```text
//!                    lock free: take it, clear what was left, start the server
//!       start ────────────────────────────────────────────────────────────────▶ OWNER ──drop, stop──▶ server stopped,
//!         │                                                                     ▲   │                 lock free
//!         │ lock held and its server answers                                    │   └─kill -9──▶ lock free at once;
//!         ▼                                                                     │      the kernel tells the server to stop
//!       USER ──restart_if_dead: lock free, so the owner is gone─────────────────┘
//!         └───drop, stop──▶ nothing happens to the server
//! ```
//!
//! - When the owner ends, its server stops, also for the users: their database is away, and they keep reconnecting
//!   as with any database. A daemon then calls [`EmbeddedPostgres::restart_if_dead`], which makes the first one that
//!   asks the new owner. A command that lives for a second need not.
//! - When the postmaster dies under a living owner, only the owner may start it again, by the same call.
//! - After `kill -9` of the owner, Linux tells the server to stop (`setpriv --pdeathsig`). On macOS, or without
//!   util-linux, it runs on as an orphan until the next owner of the folder stops it. Either way the next owner starts
//!   its own server on the same data, after the last process of the earlier one has gone. Never are there two.

mod account;
mod binaries;
mod cluster;
mod error;
mod folders;
mod leftovers;
mod lock;
mod server;
mod settings;

use std::{
    env,
    fmt::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

pub use binaries::{Binaries, Search, find_binaries};
pub use error::EmbeddedError;

use account::{Account, Launcher};
use folders::Folders;
use lock::{Facts, StateLock};
use server::Postmaster;

/// The oldest major version of PostgreSQL that rosterd runs on.
pub const OLDEST_SUPPORTED: u32 = 15;
/// The newest major version of PostgreSQL that rosterd is tested on.
pub const NEWEST_SUPPORTED: u32 = 18;

/// The database role that owns everything in the private server.
const ROLE: &str = "rosterd";
/// No port is opened: the number only names the socket.
const PORT: u16 = 5432;
/// How long to wait for the server of another rosterd that holds the state folder.
const OWNER_LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// What a private server is to be.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Where everything is kept; made if missing. See [`default_state_dir`].
    pub state_dir: PathBuf,
    /// The folder with `initdb` and `postgres`; `None` searches, see [`find_binaries`].
    pub bin_dir: Option<PathBuf>,
    /// The OS user that runs the server when we are root; `None` is the owner of an existing cluster, else `postgres`,
    /// else another ordinary user of this machine. Without root it is always our own.
    pub user: Option<String>,
    /// The database to make and to connect to.
    pub database: String,
    /// Settings of PostgreSQL, name and value, over those that rosterd chooses. A few are reserved, such as `port`.
    pub extra_settings: Vec<(String, String)>,
    /// Whether the data must survive a crash of the machine.
    pub durability: Durability,
}

impl EmbeddedOptions {
    /// A durable server in `state_dir`, everything else found or usual.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            bin_dir: None,
            user: None,
            database: "rosterd".to_owned(),
            extra_settings: Vec::new(),
            durability: Durability::Durable,
        }
    }
}

/// Whether the data must survive a crash of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Every commit is on disk before it is answered.
    #[default]
    Durable,
    /// `fsync`, `synchronous_commit` and `full_page_writes` are off: only for tests.
    ThrowAway,
}

/// A private server that runs, and our part in it: see the [module](self) on owners and users.
///
/// Dropping the owner stops the server: fast, and where that takes too long, at once.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    options: EmbeddedOptions,
    folders: Folders,
    facts: Facts,
    /// `None` for a user. Dropped in this order: the server stops before the lock is free.
    owned: Option<(Postmaster, StateLock)>,
}

impl EmbeddedPostgres {
    /// Starts the server of the state folder, making it first if need be, or joins the one that runs there.
    ///
    /// The first start takes a second or two, later ones about a tenth of one; after a crash it takes as long as
    /// PostgreSQL needs to recover. Blocks meanwhile.
    pub fn start(options: &EmbeddedOptions) -> Result<Self, EmbeddedError> {
        Self::start_within(options, OWNER_LIMIT)
    }

    fn start_within(options: &EmbeddedOptions, limit: Duration) -> Result<Self, EmbeddedError> {
        settings::check(options)?;
        cluster::check_database_name(&options.database)?;
        let folders = Folders::open(&options.state_dir)?;
        let since = Instant::now();
        let (facts, owned) = loop {
            if let Some(lock) = StateLock::try_take(&folders.lock)? {
                let (postmaster, facts) = bring_up(options, &folders, &lock)?;
                break (facts, Some((postmaster, lock)));
            }
            let note = lock::read_note(&folders.lock);
            let server = note.as_ref().and_then(|note| note.server.as_ref());
            if let Some(facts) = server.filter(|facts| answers(&facts.socket_dir)) {
                tracing::info!(state_dir = %folders.state.display(), "using the server of another rosterd");
                break (facts.clone(), None);
            }
            if since.elapsed() > limit {
                return Err(EmbeddedError::Held {
                    state_dir: folders.state,
                    holder: note.map_or_else(|| "unknown".to_owned(), |note| note.pid.to_string()),
                    waited_seconds: limit.as_secs(),
                });
            }
            thread::sleep(POLL);
        };
        Ok(Self { options: options.clone(), folders, facts, owned })
    }

    /// How to connect with sqlx.
    pub fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.facts.socket_dir)
            .port(PORT)
            .username(ROLE)
            .database(&self.options.database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// How to connect with sqlx, `psql` and whatever else understands PostgreSQL's URLs.
    pub fn url(&self) -> String {
        let (database, host) =
            (encoded(&self.options.database), encoded(&self.facts.socket_dir.to_string_lossy()));
        format!("postgres:///{database}?host={host}&port={PORT}&user={ROLE}&sslmode=disable")
    }

    /// The folder of the server's programs.
    pub fn bin_dir(&self) -> &Path {
        &self.facts.bin_dir
    }

    /// Major and minor version of the server.
    pub fn version(&self) -> (u32, u32) {
        (self.facts.major, self.facts.minor)
    }

    /// The cluster.
    pub fn data_dir(&self) -> &Path {
        &self.folders.data
    }

    /// The folder of the socket, open to the server's user and root only.
    pub fn socket_dir(&self) -> &Path {
        &self.facts.socket_dir
    }

    /// The log that the server writes now. There is one per weekday, kept for a week.
    pub fn log_file(&self) -> PathBuf {
        self.folders.log_file()
    }

    /// Pid of the postmaster, as of the last start.
    pub fn pid(&self) -> i32 {
        self.facts.postmaster
    }

    /// Whether it is ours to stop and restart, or another rosterd's that we use.
    pub fn is_owner(&self) -> bool {
        self.owned.is_some()
    }

    /// Whether there is a server: for the owner, whether its process runs; for a user, whether the socket answers.
    pub fn is_running(&mut self) -> bool {
        match &self.owned {
            Some((postmaster, _)) => postmaster.is_running(),
            None => answers(&self.facts.socket_dir),
        }
    }

    /// Starts the server again if it died, and tells whether it did.
    ///
    /// For a daemon whose database is away. A user of the server becomes its owner if the owner is gone, and leaves
    /// it to a living owner otherwise. After an error it may be called again.
    pub fn restart_if_dead(&mut self) -> Result<bool, EmbeddedError> {
        if let Some((postmaster, lock)) = &mut self.owned {
            if postmaster.is_running() {
                return Ok(false);
            }
            tracing::warn!(pid = postmaster.pid(), "the private PostgreSQL died; starting it again");
            (*postmaster, self.facts) = bring_up(&self.options, &self.folders, lock)?;
            return Ok(true);
        }
        let Some(lock) = StateLock::try_take(&self.folders.lock)? else {
            // Another owner: a new one may have brought the server up somewhere else.
            if let Some(facts) = lock::read_note(&self.folders.lock).and_then(|note| note.server) {
                self.facts = facts;
            }
            return Ok(false);
        };
        tracing::warn!("the rosterd that owned the private PostgreSQL is gone; taking it over");
        let (postmaster, facts) = bring_up(&self.options, &self.folders, &lock)?;
        (self.facts, self.owned) = (facts, Some((postmaster, lock)));
        Ok(true)
    }

    /// Stops the server if we own it; a user only lets go of it. Dropping does the same and can only log a failure.
    pub fn stop(mut self) -> Result<(), EmbeddedError> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), EmbeddedError> {
        let Some((postmaster, lock)) = self.owned.take() else { return Ok(()) };
        // Nobody should join a server that is about to stop.
        let _ = lock.publish(None);
        postmaster.stop()?;
        if !self.facts.socket_dir.starts_with(&self.folders.state) {
            // The short folder elsewhere is litter now. Not empty, it is not only ours, and stays.
            let _ = std::fs::remove_dir(&self.facts.socket_dir);
        }
        Ok(())
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::error!(%error, "the private PostgreSQL was left behind");
        }
    }
}

/// From whatever is in the state folder to a server that is ready. The caller holds the lock.
fn bring_up(
    options: &EmbeddedOptions,
    folders: &Folders,
    lock: &StateLock,
) -> Result<(Postmaster, Facts), EmbeddedError> {
    lock.publish(None)?;
    let made_by = cluster::made_by(&folders.data)?;
    let search = Search::of_this_machine();
    let binaries = match &made_by {
        Some(version) => search.for_cluster(options.bin_dir.as_deref(), &folders.data, version)?,
        None => search.newest(options.bin_dir.as_deref())?,
    };
    let account = Account::for_server(options, &folders.data)?;
    account.must_reach(&binaries.bin_dir)?;
    account.must_reach(&folders.state)?;
    folders.prepare(&account)?;
    let socket_dir = folders.socket_folder(&account)?;
    let launcher = Launcher::new(account.clone());
    if made_by.is_some() {
        leftovers::clear(folders, &socket_dir)?;
        cluster::ensure_database(options, folders, &binaries, &launcher)?;
    } else {
        cluster::make(options, folders, &binaries, &account, &launcher)?;
    }
    let config = settings::write(options, folders, &socket_dir, &account)?;
    let program = binaries.program("postgres");
    let postmaster = server::start(folders, &socket_dir, || {
        let mut command = launcher.command(&program, "INT");
        command.arg("-D").arg(&folders.data).arg("-c").arg(format!("config_file={}", config.display()));
        command
    })?;
    let Binaries { bin_dir, major, minor } = binaries;
    let facts = Facts { postmaster: postmaster.pid(), bin_dir, major, minor, socket_dir };
    if let Err(error) = lock.publish(Some(&facts)) {
        postmaster.stop()?;
        return Err(error);
    }
    Ok((postmaster, facts))
}

fn answers(socket_dir: &Path) -> bool {
    UnixStream::connect(folders::socket_in(socket_dir)).is_ok()
}

/// Percent-encodes what may not stand in the path or the query of a URL.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Where the state is kept unless the configuration says otherwise.
///
/// What systemd gives (`StateDirectory=`), else `/var/lib/rosterd` for root, else `rosterd` in `$XDG_STATE_HOME`,
/// which is `~/.local/state` where it is not set.
pub fn default_state_dir() -> PathBuf {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(given) = folder("STATE_DIRECTORY").and_then(|list| env::split_paths(&list).next()) {
        return given;
    }
    if geteuid().is_root() {
        return PathBuf::from("/var/lib/rosterd");
    }
    let home = || folder("HOME").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    folder("XDG_STATE_HOME").map_or_else(|| home().join(".local/state"), PathBuf::from).join("rosterd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_held_by_an_owner_without_a_server_names_its_pid() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let _held = StateLock::try_take(&folder.path().join("lock")).expect("locks").expect("is free");
        let refused = EmbeddedPostgres::start_within(&EmbeddedOptions::new(folder.path()), Duration::ZERO);
        let text = refused.expect_err("the folder is held").to_string();
        assert!(text.contains(&format!("the rosterd with pid {} holds it", std::process::id())), "{text}");
    }

    #[test]
    fn urls_are_percent_encoded() {
        assert_eq!(encoded("/srv/a b+c%/ü"), "/srv/a%20b%2Bc%25/%C3%BC");
    }
}
