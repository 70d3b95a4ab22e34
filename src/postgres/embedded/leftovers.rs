//! What an earlier life left on the data folder: a server that still runs, or a pid file that lies.
//!
//! Called only while we hold the lock of the state folder, so nobody else is starting a server meanwhile. PostgreSQL
//! itself refuses to start while the pid file names *any* living process of the same user, also one that merely got
//! the number, and for ever while the file is empty; and it cannot know that a server is an orphan. We can.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{
    EmbeddedError, PORT,
    error::io,
    folders::{Folders, socket_in},
};

/// How long an orphan may take for a fast stop while its log stands still, then for an immediate one.
const FAST: Duration = Duration::from_secs(30);
const IMMEDIATE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Leaves the data folder without a server, and without files that would keep one from starting.
pub(super) fn clear(folders: &Folders, socket_dir: &Path) -> Result<(), EmbeddedError> {
    let pid_file = folders.data.join("postmaster.pid");
    let text = match fs::read_to_string(&pid_file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io("read", &pid_file)(error)),
    };
    let number = text.as_deref().and_then(|text| text.lines().next()?.trim().parse::<i32>().ok());
    let named = number.filter(|number| *number > 0).and_then(Pid::from_raw);
    // A server whose pid file somebody deleted is found by its command line, which anybody may read.
    let orphan = named
        .into_iter()
        .chain(processes().filter_map(Pid::from_raw))
        .find(|pid| is_postmaster_of(*pid, &folders.data));
    if let Some(pid) = orphan {
        tracing::warn!(pid = pid.as_raw_nonzero(), "stopping the server that an earlier rosterd left behind");
        stop(pid, folders)?;
    }
    wait_for_backends(folders)?;
    // A pid that nobody has does no harm: PostgreSQL sees that, and its own look at the shared memory which the file
    // names stays in force. Empty, or another program's number, or a dead postmaster's that nobody reaped: it must go.
    if orphan.is_none() && text.is_some() && named.is_none_or(lives) {
        tracing::warn!(path = %pid_file.display(), "removing a pid file that names no server of ours");
        remove(&pid_file)?;
    }
    // The socket's own lock file has the same weakness, and the folder is nobody's but this server's.
    let socket = socket_in(socket_dir);
    remove(&socket.with_file_name(format!(".s.PGSQL.{PORT}.lock")))?;
    remove(&socket)
}

fn remove(path: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Stops an orphan: fast, and where that takes too long, at once.
fn stop(pid: Pid, folders: &Folders) -> Result<(), EmbeddedError> {
    for (signal, limit) in [(Signal::INT, FAST), (Signal::QUIT, IMMEDIATE)] {
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(io("stop the earlier server that uses", &folders.data)(error.into()));
            }
        }
        let mut logged = folders.logged_bytes();
        let mut since = Instant::now();
        while since.elapsed() < limit {
            if !is_postmaster_of(pid, &folders.data) {
                return wait_for_backends(folders);
            }
            if folders.logged_bytes() != logged {
                logged = folders.logged_bytes();
                since = Instant::now();
            }
            thread::sleep(POLL);
        }
    }
    Err(EmbeddedError::StillInUse {
        data_dir: folders.data.clone(),
        pids: pid.as_raw_nonzero().to_string(),
        first: pid.as_raw_nonzero().get(),
        waited_seconds: (FAST + IMMEDIATE).as_secs(),
    })
}

/// Waits until the server processes whose postmaster is gone have noticed it.
fn wait_for_backends(folders: &Folders) -> Result<(), EmbeddedError> {
    let since = Instant::now();
    loop {
        let pids = processes_in(&folders.data);
        let Some(first) = pids.first() else { return Ok(()) };
        if since.elapsed() > IMMEDIATE {
            return Err(EmbeddedError::StillInUse {
                data_dir: folders.data.clone(),
                pids: pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                first: *first,
                waited_seconds: IMMEDIATE.as_secs(),
            });
        }
        thread::sleep(POLL);
    }
}

/// Server processes that work in the data folder, as far as `/proc` tells: nothing elsewhere than on Linux, nor to a
/// root without the capability to look into other users' processes. PostgreSQL's own check is the net for those.
fn processes_in(data_dir: &Path) -> Vec<i32> {
    let here = |pid: &i32| {
        // A shell that somebody left in the folder is no server.
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "postgres")
            && same_file(Path::new(&format!("/proc/{pid}/cwd")), data_dir)
    };
    processes().filter(here).collect()
}

/// Every process there is, where there is a `/proc` of Linux's kind.
fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process has this number; one that we may not signal lives too.
fn lives(pid: Pid) -> bool {
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// Whether the process is a `postgres -D <our data folder>`. A dead one that was not reaped is not: it has no
/// command line any more.
fn is_postmaster_of(pid: Pid, data_dir: &Path) -> bool {
    let pid = pid.as_raw_nonzero();
    if let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) {
        let words: Vec<&str> =
            line.split(|byte| *byte == 0).filter_map(|word| str::from_utf8(word).ok()).collect();
        return is_command_of(&words, data_dir);
    }
    // Without /proc the words are not told apart, but the folder as we pass it is in the line as a whole.
    let output = Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output();
    output.is_ok_and(|output| {
        let line = String::from_utf8_lossy(&output.stdout);
        line.contains("postgres") && line.contains(&format!(" -D {}", data_dir.display()))
    })
}

fn is_command_of(words: &[&str], data_dir: &Path) -> bool {
    let program = words.first().and_then(|word| Path::new(word).file_name()?.to_str());
    let folder = words.iter().skip_while(|word| **word != "-D").nth(1).map(PathBuf::from);
    matches!(program, Some("postgres" | "postmaster"))
        && folder.is_some_and(|folder| folder == data_dir || same_file(&folder, data_dir))
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_postgres_on_the_same_folder_is_ours() {
        let data = Path::new("/srv/rosterd/data");
        assert!(is_command_of(&["/usr/lib/postgresql/15/bin/postgres", "-D", "/srv/rosterd/data"], data));
        assert!(!is_command_of(&["/usr/lib/postgresql/15/bin/postgres", "-D", "/srv/other"], data));
        assert!(!is_command_of(&["vim", "-D", "/srv/rosterd/data"], data));
        assert!(!is_command_of(&["postgres:", "checkpointer"], data));
        assert!(!is_command_of(&[""], data));
    }

    #[test]
    fn this_test_lives_and_is_no_postmaster() {
        let me = rustix::process::getpid();
        assert!(lives(me));
        assert!(!is_postmaster_of(me, Path::new("/")));
        assert!(!lives(Pid::from_raw(i32::MAX).expect("positive")));
    }
}
