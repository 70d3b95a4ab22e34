//! The results of one group: whom each document is about, and which result of a host is the newest.

use super::document::{Document, Reading};
use super::results::{Budget, Detail, Report, Results};
use super::xml::Broken;
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Whom a result is about, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) asset: String,
    pub(super) assessed: Option<DateTime<Utc>>,
    /// Identifier and version of the benchmark, if it says both.
    pub(super) benchmark: Option<(String, String)>,
}

/// What is known of a document without its findings.
#[derive(Debug, Clone, Default)]
pub(super) struct Heads {
    pub(super) heads: Vec<Head>,
    /// Sentences that finish "it ".
    pub(super) complaints: Vec<String>,
}

/// The newest result of each host among documents: the place of its document and its time.
#[derive(Debug, Default)]
pub(super) struct Newest(HashMap<String, (usize, Option<DateTime<Utc>>)>);

impl Newest {
    /// Notes the results of the document at this place. Of two of the same time the later one counts.
    pub(super) fn note(&mut self, place: usize, heads: &Heads) {
        for head in &heads.heads {
            let found = (place, head.assessed);
            let newest = self.0.entry(head.asset.clone()).or_insert(found);
            if head.assessed >= newest.1 {
                *newest = found;
            }
        }
    }

    /// Whether there is a result of this host that is newer than `before`, or any, if there was none.
    pub(super) fn has_newer(&self, asset: &str, before: Option<DateTime<Utc>>) -> bool {
        self.0.get(asset).is_some_and(|(_, assessed)| before.is_none() || *assessed > before)
    }

    /// When this host was assessed last.
    pub(super) fn time(&self, asset: &str) -> Option<DateTime<Utc>> {
        self.0.get(asset).and_then(|(_, assessed)| *assessed)
    }

    /// Where there is any.
    pub(super) fn places(&self) -> HashSet<usize> {
        self.0.values().map(|(place, _)| *place).collect()
    }

    /// Whether this one at this place is the newest of its host. Says so once.
    pub(super) fn take(&mut self, place: usize, report: &Report) -> bool {
        let asset = &report.device.asset;
        let is_newest = self.0.get(asset) == Some(&(place, report.assessed));
        if is_newest {
            self.0.remove(asset);
        }
        is_newest
    }

    /// Without the hosts that are not wanted.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&str) -> bool) {
        self.0.retain(|asset, _| wanted(asset));
    }
}

/// Whom a document is about. A file that did not change since it was read last is not read again: whoever waits for
/// results looks at a folder over and over, and most of it is old.
pub(super) fn heads(document: &Document, reading: &Reading) -> Result<Arc<Heads>, Broken> {
    let Document::File(path, _) = document else { return read(document, reading) };
    let stamp = std::fs::metadata(path).map(|file| Stamp::of(&file));
    let stamp = stamp.map_err(|error| Broken::of(&error))?;
    let cache = || CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, known)) = cache().get(path).filter(|(at, _)| *at == stamp) {
        return Ok(known.clone());
    }
    let read = read(document, reading)?;
    let mut cache = cache();
    if cache.len() >= MAX_CACHED {
        cache.clear();
    }
    cache.insert(path.clone(), (stamp, read.clone()));
    Ok(read)
}

fn read(document: &Document, reading: &Reading) -> Result<Arc<Heads>, Broken> {
    let Results { reports, complaints } = document.results(reading, Detail::Heads, &mut Budget::default())?;
    let heads = reports.into_iter().map(|report| Head {
        asset: report.device.asset,
        assessed: report.assessed,
        benchmark: report.benchmark,
    });
    Ok(Arc::new(Heads { heads: heads.collect(), complaints }))
}

type Cache = HashMap<PathBuf, (Stamp, Arc<Heads>)>;

/// Of the process, because connectors are made anew for every run.
static CACHE: LazyLock<Mutex<Cache>> = LazyLock::new(Mutex::default);
/// Files, most with one host in them: some megabytes.
const MAX_CACHED: usize = 50_000;

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp([i128; 5]);

impl Stamp {
    fn of(file: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self([
            file.dev().into(),
            file.ino().into(),
            file.len().into(),
            nanoseconds(file.mtime(), file.mtime_nsec()),
            nanoseconds(file.ctime(), file.ctime_nsec()),
        ])
    }
}
