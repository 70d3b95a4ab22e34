//! What lies where in the state folder.
//!
//! The state folder itself, the lock and the configuration belong to the daemon's user, so that the server's user
//! cannot trick a daemon that runs as root into writing through a link; `data`, `run` and `log` belong to the
//! server's user alone (mode 0700).

use std::{
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

use super::{EmbeddedError, PORT, account::Account, error::io};

/// A socket path has 108 bytes on Linux and 104 on macOS and the BSDs, one of them for the end mark.
const LONGEST_SOCKET_PATH: usize = 103;

/// The paths of one state folder.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    pub(super) state: PathBuf,
    pub(super) data: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) settings: PathBuf,
    /// What the server says before its own log is open.
    pub(super) start_log: PathBuf,
    pub(super) lock: PathBuf,
    /// The names of the databases that were made, a line each.
    pub(super) databases: PathBuf,
    /// Where the socket is, when it is not in `run`.
    socket_record: PathBuf,
}

impl Folders {
    /// Makes the state folder where there is none, and names what is in it.
    pub(super) fn open(state_dir: &Path) -> Result<Self, EmbeddedError> {
        let state = std::path::absolute(state_dir).map_err(io("find the state folder", state_dir))?;
        if !state.exists() {
            fs::create_dir_all(&state).map_err(io("make the state folder", &state))?;
            let mode = if geteuid().is_root() { 0o755 } else { 0o700 };
            fs::set_permissions(&state, Permissions::from_mode(mode))
                .map_err(io("set the mode of", &state))?;
        }
        let state = state.canonicalize().map_err(io("find the state folder", &state))?;
        if state.to_str().is_none() {
            return Err(EmbeddedError::NotUtf8(state));
        }
        Ok(Self {
            data: state.join("data"),
            logs: state.join("log"),
            settings: state.join("settings"),
            start_log: state.join("start.log"),
            lock: state.join("lock"),
            databases: state.join("databases"),
            socket_record: state.join("socket-folder"),
            state,
        })
    }

    /// Makes `log` and `settings`.
    pub(super) fn prepare(&self, account: &Account) -> Result<(), EmbeddedError> {
        private_folder(&self.logs, account)?;
        if !self.settings.exists() {
            fs::create_dir(&self.settings).map_err(io("make the folder", &self.settings))?;
            fs::set_permissions(&self.settings, Permissions::from_mode(0o755))
                .map_err(io("set the mode of", &self.settings))?;
        }
        Ok(())
    }

    /// The folder for the socket: `run`, or a short one elsewhere where that is too long for a socket's path.
    pub(super) fn socket_folder(&self, account: &Account) -> Result<PathBuf, EmbeddedError> {
        let wanted = self.state.join("run");
        // A comma or a quote would end the path in the server's list of folders.
        if fits(&wanted) && !wanted.to_string_lossy().contains([',', '"']) {
            private_folder(&wanted, account)?;
            return Ok(wanted);
        }
        let recorded =
            fs::read_to_string(&self.socket_record).ok().map(|line| PathBuf::from(line.trim_end()));
        let mut tried = Vec::new();
        for folder in recorded.into_iter().chain(short_folders(&self.data)).filter(|folder| fits(folder)) {
            match private_folder(&folder, account) {
                Ok(()) => {
                    let line = format!("{}\n", folder.display());
                    fs::write(&self.socket_record, line).map_err(io("write", &self.socket_record))?;
                    return Ok(folder);
                }
                Err(refused) => tried.push(format!("{} ({refused})", folder.display())),
            }
        }
        Err(EmbeddedError::NoSocketFolder { wanted, limit: LONGEST_SOCKET_PATH, tried: tried.join(", ") })
    }

    /// The newest of the server's own logs, or the log of its start.
    pub(super) fn log_file(&self) -> PathBuf {
        let newest = fs::read_dir(&self.logs).ok().and_then(|entries| {
            let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
            files.max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())
        });
        newest.map_or_else(|| self.start_log.clone(), |entry| entry.path())
    }

    /// How much the server has logged: it grows while a long recovery makes progress.
    pub(super) fn logged_bytes(&self) -> u64 {
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        size(&self.start_log) + size(&self.log_file())
    }

    /// What the server said last, for an error, and the file that says more.
    ///
    /// A server that gives up before its own log is open says so in the log of its start, and nothing there is old.
    pub(super) fn last_words(&self) -> (PathBuf, String) {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (started, log) = (read(&self.start_log), self.log_file());
        if started.contains("FATAL") || log == self.start_log {
            (self.start_log.clone(), last_lines(&started))
        } else {
            let text = last_lines(&(started + &read(&log)));
            (log, text)
        }
    }
}

/// The last fifteen lines of a text.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Path of the socket in a folder.
pub(super) fn socket_in(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
}

fn fits(folder: &Path) -> bool {
    socket_in(folder).as_os_str().len() <= LONGEST_SOCKET_PATH
}

/// Names for a short folder, in the user's run-time folder, then `/run` for root, then the temporary folder.
fn short_folders(data_dir: &Path) -> Vec<PathBuf> {
    let user_runtime =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !geteuid().is_root()).map(PathBuf::from);
    let system_runtime = geteuid().is_root().then(|| PathBuf::from("/run"));
    let bases =
        user_runtime.into_iter().chain(system_runtime).chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let hash = fnv1a(data_dir.as_os_str().as_encoded_bytes());
    bases
        .filter(|base| base.is_dir())
        // Somebody else may sit on the first name in a folder open to all, so there is a second and a third.
        .flat_map(|base| ["", "-2", "-3"].map(|suffix| base.join(format!("rosterd-{hash:016x}{suffix}"))))
        .collect()
}

/// FNV-1a: the name must be the same after an upgrade, which the standard library's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Makes sure that `folder` is a real folder of the server's user with mode 0700.
pub(super) fn private_folder(folder: &Path, account: &Account) -> Result<(), EmbeddedError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return account.own(folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io("make the folder", folder)(error)),
    }
    let meta = fs::symlink_metadata(folder).map_err(io("look at", folder))?;
    let refusal = if !meta.is_dir() {
        "it is not a folder"
    } else if meta.uid() == account.uid {
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(io("set the mode of", folder))?;
        return Ok(());
    } else if meta.uid() == 0
        && geteuid().is_root()
        && fs::read_dir(folder).is_ok_and(|mut f| f.next().is_none())
    {
        // Made by us, a moment before a kill -9.
        return account.own(folder);
    } else {
        "it belongs to another user"
    };
    Err(io("use the folder", folder)(std::io::Error::other(refusal)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_folders_have_a_stable_name_that_fits() {
        let folders = short_folders(Path::new("/a/b/data"));
        assert!(folders.contains(&PathBuf::from("/tmp/rosterd-1d96a144c7939569")), "{folders:?}");
        assert!(fits(Path::new("/tmp/rosterd-1d96a144c7939569")));
        assert!(!fits(Path::new(&format!("/{}", "x".repeat(120)))));
    }
}
