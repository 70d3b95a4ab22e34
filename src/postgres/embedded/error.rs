//! What can go wrong with a private server, each with the place and the remedy.

use std::{io, path::PathBuf};

/// Why the private PostgreSQL could not be started, used or stopped.
///
/// Every text says what failed, where, and what an operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No folder on this machine holds usable server binaries.
    #[error(
        "failed to find the PostgreSQL server programs `initdb` and `postgres`, version {} to {} \
         (looked in {looked_in}{rejected}): install them (Debian, Ubuntu: `apt install postgresql`; \
         Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql@17`), \
         or set DATABASE_URL to a server that already runs",
        super::OLDEST_SUPPORTED,
        super::NEWEST_SUPPORTED
    )]
    NoBinaries {
        /// The places searched, for a sentence.
        looked_in: String,
        /// What was found and could not be used, empty or starting with a separator.
        rejected: String,
    },

    /// The data folder was made by a major version that is not installed.
    #[error(
        "failed to use the data folder {}: PostgreSQL {made_by} made it, and only version {installed} is \
         installed here. Install PostgreSQL {made_by}, or move the data to a newer version with `pg_upgrade`",
        data_dir.display()
    )]
    OtherVersion {
        /// The cluster.
        data_dir: PathBuf,
        /// Its major version, as `PG_VERSION` gives it.
        made_by: String,
        /// The versions found, for a sentence.
        installed: String,
    },

    /// There is a `data` folder and it is not a cluster.
    #[error(
        "failed to use the data folder {}: it is not empty and holds no PostgreSQL cluster. \
         Move it away, or choose another state folder with `--state-dir`",
        .0.display()
    )]
    NotACluster(PathBuf),

    /// Started as root, and no ordinary user can run the server.
    #[error(
        "failed to choose a user for the private PostgreSQL, which refuses to run as root: {0}. \
         Create one (`useradd --system rosterd`) and name it, or start rosterd as an ordinary user"
    )]
    NoUser(String),

    /// The cluster belongs to somebody the server will not run as.
    #[error(
        "failed to use the data folder {}: it belongs to uid {owner}, and the server would run as `{user}` \
         (uid {uid}). Start rosterd as the owner, or hand the folder over with `chown -R {user} {}`",
        data_dir.display(), data_dir.display()
    )]
    OtherOwner {
        /// The cluster.
        data_dir: PathBuf,
        /// The user id that owns it.
        owner: u32,
        /// The user the server would run as.
        user: String,
        /// That user's id.
        uid: u32,
    },

    /// The server's user cannot walk into a folder on the way to its files.
    #[error(
        "failed to let the user `{user}` reach {}: it may not enter {}. Allow it with `chmod o+x {}`, \
         or choose a state folder elsewhere (`--state-dir /var/lib/rosterd`)",
        target.display(), folder.display(), folder.display()
    )]
    Unreachable {
        /// The server's OS user.
        user: String,
        /// The closed folder.
        folder: PathBuf,
        /// The path below it that the server needs.
        target: PathBuf,
    },

    /// The state folder's path cannot be written into a connection URL.
    #[error("failed to use the state folder {}: its path is not UTF-8. Choose another with `--state-dir`", .0.display())]
    NotUtf8(PathBuf),

    /// An option asked for something that the private server reserves or cannot hold.
    #[error("failed to accept the option {option}: {reason}")]
    BadOption {
        /// Which option, with its value.
        option: String,
        /// Why not, and what to give instead.
        reason: String,
    },

    /// No folder for the socket has a path short enough, or all were taken by others.
    #[error(
        "failed to find a folder for the server's socket: {} is too long for a socket path (limit {limit} bytes), \
         and {tried} could not be used. Choose a state folder with a shorter path (`--state-dir`)",
        wanted.display()
    )]
    NoSocketFolder {
        /// The folder in the state folder.
        wanted: PathBuf,
        /// The longest path a socket may have, in bytes.
        limit: usize,
        /// The short folders that were refused, for a sentence.
        tried: String,
    },

    /// Another rosterd owns the state folder and its server does not come up.
    #[error(
        "failed to use the state folder {}: the rosterd with pid {holder} holds it, and its server did not \
         accept connections within {waited_seconds} s. Look at that process's log, stop it, or choose another \
         state folder with `--state-dir`",
        state_dir.display()
    )]
    Held {
        /// The state folder.
        state_dir: PathBuf,
        /// Pid of the owner, or `unknown`.
        holder: String,
        /// How long we waited for its server.
        waited_seconds: u64,
    },

    /// An earlier server on our data folder does not go away.
    #[error(
        "failed to take over the data folder {}: the processes {pids} of an earlier server still use it after \
         {waited_seconds} s. Wait for them or stop them with `kill -INT {first}`; never delete postmaster.pid \
         while they run",
        data_dir.display()
    )]
    StillInUse {
        /// The cluster.
        data_dir: PathBuf,
        /// The processes, for a sentence.
        pids: String,
        /// One of them.
        first: i32,
        /// How long we waited.
        waited_seconds: u64,
    },

    /// A helper program (`initdb`, single-user `postgres`) ended badly.
    #[error("failed to {task} with {} ({status}): {output}", program.display())]
    Program {
        /// What it was to do.
        task: String,
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        output: String,
    },

    /// The server ended, or went silent, before it was ready.
    #[error("failed to start the private PostgreSQL in {}: {what}. Its last lines ({}):\n{last_lines}",
        data_dir.display(), log_file.display())]
    NotReady {
        /// The cluster.
        data_dir: PathBuf,
        /// What happened instead.
        what: String,
        /// Where the lines below come from.
        log_file: PathBuf,
        /// The end of the server's log.
        last_lines: String,
    },

    /// The server ignored every request to stop.
    #[error(
        "failed to stop the private PostgreSQL (pid {pid}): it still runs after fast, immediate and forced stop"
    )]
    WontStop {
        /// Pid of the postmaster.
        pid: i32,
    },

    /// A file or folder is closed to us.
    #[error(
        "failed to {task} {}: uid {uid} has no permission. Run rosterd as the owner of the state folder or as root, \
         choose another state folder with `--state-dir`, or set DATABASE_URL",
        path.display()
    )]
    Forbidden {
        /// What was to be done, a verb.
        task: &'static str,
        /// To which file, folder or program.
        path: PathBuf,
        /// Who we are.
        uid: u32,
    },

    /// The operating system refused something else.
    #[error("failed to {task} {}: {source}", path.display())]
    Io {
        /// What was to be done, a verb.
        task: &'static str,
        /// To which file, folder or program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Adds the deed and the place to an [`io::Error`].
pub(super) fn io(task: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> EmbeddedError {
    let path = path.into();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            EmbeddedError::Forbidden { task, path, uid: rustix::process::geteuid().as_raw() }
        }
        _ => EmbeddedError::Io { task, path, source },
    }
}
