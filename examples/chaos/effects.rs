//! The effects log: what jobs did to the world, written outside the database, one line an event.
//!
//! Each line is one `write` to a file opened with `O_APPEND`, so a process that is killed leaves whole lines, and
//! nothing a job did is forgotten because its process died.

use crate::clock::{self, Nanos};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The folder, for daemons.
pub const FOLDER: &str = "ROSTERD_CHAOS_EFFECTS";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The job was entered.
    Start,
    /// It did something that cannot be undone.
    Effect,
    /// It returned `Ok`.
    Ok,
    /// It returned an error, or is about to panic.
    Failed,
    /// It heard that it shall stop.
    Stopped,
    /// Its future was dropped before it returned.
    Dropped,
}

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// When.
    pub t: Nanos,
    /// What.
    pub what: What,
    /// `JobHistory.ID`.
    pub row: Uuid,
    /// The attempt and the iteration of this run.
    pub attempt: i32,
    pub iteration: i64,
    /// `Runner.ID` this run belongs to.
    pub runner: Uuid,
    /// The process.
    pub pid: u32,
    /// Tells this run from every other.
    pub run: u64,
    /// The step of an effect.
    #[serde(default)]
    pub step: u32,
    /// When the gate let it pass.
    #[serde(default)]
    pub gate: Nanos,
}

/// Where a daemon writes.
pub struct EffectsLog {
    file: File,
}

impl EffectsLog {
    /// The log of this process.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        let path = folder.join(format!("{}.jsonl", std::process::id()));
        Ok(Self { file: OpenOptions::new().create(true).append(true).open(path)? })
    }

    /// Writes one line at once.
    pub fn write(&self, line: &Line) {
        let mut text = serde_json::to_vec(line).expect("a line is plain data");
        text.push(b'\n');
        (&self.file).write_all(&text).expect("the effects log is on a disk of its own");
    }
}

/// Reads what all daemons wrote so far, in order of time. A line that is being written just now is left out.
pub fn read(folder: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    let files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of the effects")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("an effects log");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        lines.extend(whole.lines().map(|line| -> Line {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {line}: {e}", file.display()))
        }));
    }
    lines.sort_by_key(|line| line.t);
    lines
}

/// Now, as the log has it.
pub fn now() -> Nanos {
    clock::now()
}
