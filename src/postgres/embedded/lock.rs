//! One owner per state folder: an advisory lock that dies with its holder, and the note the owner leaves in it.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{EmbeddedError, error::io};

/// What others need to use the owner's server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) postmaster: i32,
    pub(super) bin_dir: PathBuf,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) socket_dir: PathBuf,
}

/// The content of the lock file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// The owner.
    pub(super) pid: u32,
    /// Its server, while it is ready.
    pub(super) server: Option<Facts>,
}

/// The lock, held until dropped or until the process is gone, however it goes.
#[derive(Debug)]
pub(super) struct StateLock {
    file: File,
    path: PathBuf,
}

impl StateLock {
    /// Takes the lock, or answers `None` when another process, or another value in this one, holds it.
    pub(super) fn try_take(path: &Path) -> Result<Option<Self>, EmbeddedError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io("open the lock file", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let lock = Self { file, path: path.to_path_buf() };
                lock.publish(None)?;
                Ok(Some(lock))
            }
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(io("lock", path)(error.into())),
        }
    }

    /// Tells the other processes who owns the folder and where its server is.
    pub(super) fn publish(&self, server: Option<&Facts>) -> Result<(), EmbeddedError> {
        let note = Note { pid: std::process::id(), server: server.cloned() };
        let text =
            serde_json::to_string(&note).map_err(std::io::Error::from).map_err(io("describe", &self.path))?;
        // Shorter first: a reader that comes in between sees an unfinished note and reads again.
        self.file.set_len(0).map_err(io("write", &self.path))?;
        self.file.write_all_at(text.as_bytes(), 0).map_err(io("write", &self.path))
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // Unlocking by name, because a child that was just forked may hold a copy of the descriptor for a moment.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The owner's note, or `None` while it is being written.
pub(super) fn read_note(path: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
