//! What a run is to be.

use crate::nemesis::Fault;
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Real daemons, a real PostgreSQL, operators with SQL, and everything that can go wrong; then the books are checked.
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos")]
pub struct Options {
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long faults and load go on, in seconds.
    #[arg(long, default_value_t = 75)]
    pub secs: u64,
    /// Mean seconds between two faults.
    #[arg(long, default_value_t = 2.0)]
    pub pace: f64,
    /// Only these faults (names as in the report), comma-separated.
    #[arg(long, value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Daemons.
    #[arg(long, default_value_t = 4)]
    pub daemons: usize,
    /// Writes the report as JSON too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Removes one guard (needs `--features seeded-bugs`) and stops at the first violation.
    #[arg(long)]
    pub bug: Option<String>,
    /// Each seeded bug in turn, and a table of which were caught.
    #[arg(long)]
    pub all_bugs: bool,
    /// Keeps the folder of the run.
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// How long faults and load go on.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.secs)
    }
}
