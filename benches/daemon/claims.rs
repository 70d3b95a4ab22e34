//! How long the server takes for each claim of a real daemon.
//!
//! The server itself writes it to its log: `log_min_duration_statement = 0` for the database of the part, set before
//! its daemon connects. A claim is the time of its bind and of its execution, without the flush of its commit,
//! which is the disk's and follows after; INSERT to start holds that too. Means of `pg_stat_statements` have no
//! percentiles, and the buckets of the daemon's own metric are too wide for a ratio of 1.3.

use crate::world::World;
use anyhow::Result;
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

/// The first line of the statement, by which the log tells it from others.
const CLAIM: &str = include_str!("../../src/history/claim.sql");
const TICK: &str = include_str!("../../src/history/tick.sql");

pub(crate) async fn log_statements(world: &World, database: &str) -> Result<()> {
    world.set(database, "log_min_duration_statement = 0").await?;
    // 500 IDs in each line would be a load of their own.
    world.set(database, "log_parameter_max_length = 0").await
}

/// The claims of one database since the last look.
pub(crate) struct Claims {
    database: String,
    read: u64,
}

/// Milliseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times {
    pub(crate) claims: Vec<f64>,
    pub(crate) ticks: Vec<f64>,
}

impl Claims {
    pub(crate) fn follow(world: &World, database: &str) -> Result<Self> {
        Ok(Self { database: database.to_owned(), read: std::fs::metadata(world.log_file())?.len() })
    }

    pub(crate) async fn since(&mut self, world: &World) -> Result<Times> {
        // The logger is a process of its own.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut file = std::fs::File::open(world.log_file())?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        self.read += u64::try_from(bytes.len())?;
        Ok(times(&String::from_utf8_lossy(&bytes), &self.database))
    }
}

fn times(log: &str, database: &str) -> Times {
    let mut times = Times::default();
    let mut binds: HashMap<(&str, bool), f64> = HashMap::new();
    let first = |sql: &'static str| sql.lines().next().unwrap_or_default();
    let (claim, tick) = (first(CLAIM), first(TICK));
    let ours = format!("@{database} rosterd claim");
    for line in log.lines().filter(|line| line.contains(&ours)) {
        let Some((head, said)) = line.split_once(" LOG:  duration: ") else { continue };
        let Some((took, what)) = said.split_once(" ms  ") else { continue };
        let Ok(took) = took.parse::<f64>() else { continue };
        let is_claim = what.ends_with(claim);
        if !is_claim && !what.ends_with(tick) {
            continue;
        }
        let Some(session) = head.split(['[', ']']).nth(1) else { continue };
        if what.starts_with("bind ") {
            binds.insert((session, is_claim), took);
        } else if what.starts_with("execute ") {
            let whole = took + binds.remove(&(session, is_claim)).unwrap_or(0.0);
            if is_claim { times.claims.push(whole) } else { times.ticks.push(whole) }
        }
    }
    times
}
