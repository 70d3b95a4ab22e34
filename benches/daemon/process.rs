//! What processes used, and what others took from us meanwhile: `/proc`.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::time::Instant;

/// Hundredths of a second on Linux.
const TICKS: f64 = 100.0;

/// Processor time of one process, its ended children left out.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(fields(&stat, &[11, 12]) / TICKS)
}

/// The same of a process with one thread, as those of the server are, to the nanosecond where the kernel keeps that.
pub(crate) fn session_seconds(pid: u32) -> Result<f64> {
    let nanos = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))
        .ok()
        .and_then(|stat| stat.split_whitespace().next()?.parse::<f64>().ok())
        .filter(|nanos| *nanos > 0.0);
    nanos.map_or_else(|| cpu_seconds(pid), |nanos| Ok(nanos / 1e9))
}

pub(crate) fn rss_mib(pid: u32) -> Result<f64> {
    memory_mib(pid, "VmRSS:")
}

/// The most it ever was.
pub(crate) fn peak_rss_mib(pid: u32) -> Result<f64> {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: u32, name: &'static str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).context(name)?;
    let kib: f64 = line.split_whitespace().nth(1).context(name)?.parse()?;
    Ok(kib / 1024.0)
}

/// The sum of these fields of `/proc/PID/stat`, counted from the state on (which is 0).
fn fields(stat: &str, which: &[usize]) -> f64 {
    let all: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    which.iter().filter_map(|n| all.get(*n)?.parse::<f64>().ok()).sum()
}

/// How busy the machine was with other things than this bench, from one moment to another.
pub(crate) struct Others {
    since: Instant,
    busy: f64,
    stolen: f64,
    ours: f64,
}

/// What a figure was made beside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Processors that other programs kept busy on average.
    pub(crate) others: f64,
    /// Processors that the hypervisor gave to somebody else on average.
    pub(crate) stolen: f64,
    /// The load average of the last minute at the end; the bench itself is in it.
    pub(crate) average: f64,
}

impl Load {
    /// Whether others may have changed the figure.
    pub(crate) fn disturbs(self) -> bool {
        self.others + self.stolen > 0.1
    }
}

impl Others {
    pub(crate) fn watch() -> Self {
        let (busy, stolen) = machine();
        Self { since: Instant::now(), busy, stolen, ours: ours() }
    }

    pub(crate) fn load(&self) -> Load {
        let seconds = self.since.elapsed().as_secs_f64().max(0.001);
        let (busy, stolen) = machine();
        let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Load {
            others: ((busy - self.busy - (ours() - self.ours)) / seconds).max(0.0),
            stolen: (stolen - self.stolen) / seconds,
            average: average.split_whitespace().next().and_then(|one| one.parse().ok()).unwrap_or(f64::NAN),
        }
    }
}

/// Busy and stolen processor seconds since the machine started.
fn machine() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let all: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let sum = |which: &[usize]| which.iter().filter_map(|n| all.get(*n)).sum::<f64>() / TICKS;
    // user, nice, system, irq, softirq; then steal.
    (sum(&[0, 1, 2, 5, 6]), sum(&[7]))
}

/// Processor seconds of this process, its children and theirs, with those that have ended and were waited for.
fn ours() -> f64 {
    let Ok(folder) = std::fs::read_dir("/proc") else { return 0.0 };
    let mut parents: HashMap<u32, u32> = HashMap::new();
    let mut used: HashMap<u32, f64> = HashMap::new();
    for pid in folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(1);
        parents.insert(pid, parent.and_then(|parent| parent.parse().ok()).unwrap_or(0));
        used.insert(pid, fields(&stat, &[11, 12, 13, 14]) / TICKS);
    }
    let me = std::process::id();
    let is_ours = |pid: u32| {
        std::iter::successors(Some(pid), |pid| parents.get(pid).copied()).take(32).any(|pid| pid == me)
    };
    used.iter().filter(|(pid, _)| is_ours(**pid)).map(|(_, seconds)| seconds).sum()
}
