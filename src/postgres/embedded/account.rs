//! The OS user the server runs as, and how a program is started as that user and tied to our life.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;

use super::{EmbeddedError, EmbeddedOptions, error::io};

/// Users that exist for such a purpose, in the order of preference.
const USUAL_USERS: [&str; 4] = ["postgres", "_postgres", "rosterd", "nobody"];

/// An OS user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The user with this name, or with this id written as a number.
    fn find(name_or_id: &str) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let listed = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            (name == name_or_id || uid == name_or_id).then_some(Self {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        });
        // Users of a directory service, and ordinary users of macOS, are not in the file; `id` knows them.
        let ask = |what: &str| {
            let output =
                Command::new("id").args([what, name_or_id]).output().ok().filter(|o| o.status.success())?;
            String::from_utf8(output.stdout).ok().map(|text| text.trim_end().to_owned())
        };
        listed.or_else(|| {
            Some(Self { name: ask("-un")?, uid: ask("-u")?.parse().ok()?, gid: ask("-g")?.parse().ok()? })
        })
    }

    /// The user of this process.
    pub(super) fn current() -> Result<Self, EmbeddedError> {
        let uid = geteuid().as_raw();
        Self::find(&uid.to_string())
            .ok_or_else(|| EmbeddedError::NoUser(format!("uid {uid}, which runs rosterd, has no name here")))
    }

    /// Who runs the server: ourselves, or, as root, an ordinary user. An existing cluster keeps its owner.
    pub(super) fn for_server(options: &EmbeddedOptions, data_dir: &Path) -> Result<Self, EmbeddedError> {
        let owner = fs::metadata(data_dir).ok().map(|data| data.uid());
        let account = if !geteuid().is_root() {
            Self::current()?
        } else if let Some(name) = &options.user {
            Self::find(name).ok_or_else(|| EmbeddedError::NoUser(format!("there is no user `{name}`")))?
        } else if let Some(uid) = owner.filter(|uid| *uid != 0) {
            Self::find(&uid.to_string()).ok_or_else(|| {
                EmbeddedError::NoUser(format!(
                    "{} belongs to uid {uid}, which has no name here",
                    data_dir.display()
                ))
            })?
        } else {
            USUAL_USERS.iter().find_map(|name| Self::find(name)).ok_or_else(|| {
                EmbeddedError::NoUser(format!("none of the users {} exists", USUAL_USERS.join(", ")))
            })?
        };
        if account.uid == 0 {
            return Err(EmbeddedError::NoUser(format!("`{}` is root itself", account.name)));
        }
        match owner {
            Some(owner) if owner != account.uid => Err(EmbeddedError::OtherOwner {
                data_dir: data_dir.to_path_buf(),
                owner,
                user: account.name,
                uid: account.uid,
            }),
            _ => Ok(account),
        }
    }

    /// Refuses a path below a folder that this user may not enter, naming the folder.
    pub(super) fn must_reach(&self, target: &Path) -> Result<(), EmbeddedError> {
        let mut folders: Vec<&Path> = target.ancestors().collect();
        folders.reverse();
        for folder in folders {
            let meta = fs::metadata(folder).map_err(io("look at", folder))?;
            let needed = match (meta.uid() == self.uid, meta.gid() == self.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            // An access control list may allow what the mode does not say, so a closed folder is tried for real.
            if meta.mode() & needed == 0 && !self.can_enter(folder) {
                return Err(EmbeddedError::Unreachable {
                    user: self.name.clone(),
                    folder: folder.to_path_buf(),
                    target: target.to_path_buf(),
                });
            }
        }
        Ok(())
    }

    fn can_enter(&self, folder: &Path) -> bool {
        let mut test = Command::new("test");
        test.arg("-x").arg(folder).current_dir("/");
        if geteuid().is_root() {
            test.uid(self.uid).gid(self.gid);
        }
        test.status().is_ok_and(|status| status.success())
    }

    /// Gives a folder to this user, if we are root and it is not theirs yet.
    pub(super) fn own(&self, folder: &Path) -> Result<(), EmbeddedError> {
        if geteuid().is_root() {
            std::os::unix::fs::lchown(folder, Some(self.uid), Some(self.gid))
                .map_err(io("give to the server's user", folder))?;
        }
        Ok(())
    }
}

/// Starts programs as the server's user, with an empty environment, out of the terminal's process group.
///
/// On Linux they are launched through util-linux's `setpriv`, whose `--pdeathsig` makes the kernel signal them when
/// the *thread* that spawned them ends; `setpriv` asks for that after it has changed the user, because the change
/// would cancel it. Elsewhere, and where `setpriv` is missing or too simple, they are started directly: then a
/// `kill -9` of the daemon leaves the server running, and the next owner of the state folder stops it.
#[derive(Debug)]
pub(super) struct Launcher {
    account: Account,
    setpriv: Option<PathBuf>,
}

impl Launcher {
    pub(super) fn new(account: Account) -> Self {
        Self { account, setpriv: setpriv_with_death_signal() }
    }

    /// A command that runs `program`, to which the death of its parent thread is told as `signal` (INT, TERM ...).
    pub(super) fn command(&self, program: &Path, signal: &str) -> Command {
        let (uid, gid) = (self.account.uid, self.account.gid);
        let mut command = if let Some(setpriv) = &self.setpriv {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal]);
            if geteuid().is_root() {
                command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
            }
            command.arg("--").arg(program);
            command
        } else {
            let mut command = Command::new(program);
            if geteuid().is_root() {
                command.uid(uid).gid(gid);
            }
            command
        };
        // NOTIFY_SOCKET would let postgres answer systemd in our name; PG* variables would redirect it.
        command.env_clear().env("LC_ALL", "C");
        for kept in ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        // The user may not be able to enter our own folder, and Ctrl-C in a terminal is for us alone.
        command.current_dir("/").process_group(0);
        command
    }
}

fn setpriv_with_death_signal() -> Option<PathBuf> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin"].map(PathBuf::from);
    let program = std::env::split_paths(&folders)
        .chain(usual)
        .map(|folder| folder.join("setpriv"))
        .find(|p| p.is_file())?;
    let help = Command::new(&program).arg("--help").output().ok()?;
    String::from_utf8_lossy(&help.stdout).contains("--pdeathsig").then_some(program)
}
