//! One document with results. It is read twice: once for the results, which come last in some documents and first in
//! others, and once more for the rules they are about, so that nothing has to be kept that may not be needed.

use super::prose::Values;
use super::results::{self, Budget, Detail, Report, Results};
use super::rules;
use super::unpack::{Limits, unpack};
use super::xml::{Broken, Xml};
use crate::connectors::Bytes;
use crate::connectors::scanner::{Assessment, Finding, FindingStatus, Vulnerability};
use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, Cursor, Read};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// Where a document is.
#[derive(Debug, Clone)]
pub(super) enum Document {
    /// A file: its whole path without symbolic links, and how to call it.
    File(PathBuf, String),
    /// It was fetched already: its bytes, and how to call it.
    Fetched(Bytes, String),
}

/// A file that ends in the middle is left for the next time while it is not older than this: somebody writes it.
pub(super) const STILL_WRITTEN: Duration = Duration::from_secs(60);

/// What makes no sense, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    /// A file, or a line of it.
    pub(super) about: String,
    /// A sentence of its own.
    pub(super) problem: String,
}

/// How documents are read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) limits: Limits,
    /// Cancelled when nobody waits for it any more.
    pub(super) stop: CancellationToken,
}

impl Document {
    /// How an operator would call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::File(_, name) | Self::Fetched(_, name) => name,
        }
    }

    /// Whether the last change of it was a moment ago, as it is while it is being written.
    pub(super) fn is_fresh(&self) -> bool {
        match self {
            Self::File(path, _) => is_fresh(std::fs::metadata(path).and_then(|file| file.modified())),
            Self::Fetched(..) => false,
        }
    }

    /// The results in it.
    pub(super) fn results(
        &self,
        reading: &Reading,
        detail: Detail,
        budget: &mut Budget,
    ) -> Result<Results, Broken> {
        results::read(&mut self.open(reading)?, detail, budget)
    }

    /// The assessments among its results that are wanted, one after the other. Returns what of it makes no sense.
    pub(super) fn assessments(
        &self,
        reading: &Reading,
        mut wanted: impl FnMut(&Report) -> bool,
        mut emit: impl FnMut(Assessment) -> Result<(), Broken>,
    ) -> Result<Vec<String>, Broken> {
        let mut budget = Budget::default();
        let Results { mut reports, complaints } = self.results(reading, Detail::All, &mut budget)?;
        reports.retain(|report| wanted(report));
        let needed: HashSet<&str> =
            reports.iter().flat_map(|report| &report.said).map(|said| said.rule.as_str()).collect();
        let mut known: HashMap<String, Vulnerability> = HashMap::new();
        if !needed.is_empty() {
            rules::read(
                &mut self.open(reading)?,
                &values_of(&reports),
                |id| needed.contains(id),
                |rule| {
                    budget.take(size_of_rule(&rule))?;
                    known.entry(rule.id.clone()).or_insert(rule);
                    Ok(())
                },
            )?;
        }
        reports.into_iter().try_for_each(|report| emit(assessment(report, &known)))?;
        Ok(complaints)
    }

    /// Every rule in it, as often as it stands there, as the results in it rate it.
    pub(super) fn rules(
        &self,
        reading: &Reading,
        wanted: impl FnMut(&str) -> bool,
        mut emit: impl FnMut(Vulnerability) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let reports = self.results(reading, Detail::All, &mut Budget::default())?.reports;
        rules::read(&mut self.open(reading)?, &values_of(&reports), wanted, |mut rule| {
            let rated = reports.iter().find_map(|report| report.severities.get(&rule.id));
            rule.severity = rated.copied().unwrap_or(rule.severity);
            emit(rule)
        })
    }

    fn open(&self, reading: &Reading) -> Result<Xml<Box<dyn BufRead + '_>>, Broken> {
        let raw: Box<dyn Read> = match self {
            Self::File(path, _) => Box::new(open_file(path).map_err(|error| Broken::of(&error))?),
            Self::Fetched(bytes, _) => Box::new(Cursor::new(bytes.clone())),
        };
        let document = unpack(raw, reading.limits).map_err(|error| Broken::of(&error))?;
        Ok(Xml::new(document, reading.stop.clone()))
    }
}

/// Opens a file that is one, and waits for no other end of a pipe.
pub(super) fn open_file(path: &std::path::Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    Ok(file)
}

/// Whether it was changed less than [`STILL_WRITTEN`] ago, and not in the future.
pub(super) fn is_fresh(modified: io::Result<SystemTime>) -> bool {
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < STILL_WRITTEN))
}

fn values_of(reports: &[Report]) -> Values {
    let mut values = Values::new();
    for (id, value) in reports.iter().flat_map(|report| &report.values) {
        values.entry(id.clone()).or_insert_with(|| value.clone());
    }
    values
}

fn size_of_rule(rule: &Vulnerability) -> usize {
    let texts = [&rule.id, &rule.title, &rule.description, &rule.threat, &rule.solution];
    let references = rule.references.iter().map(|reference| reference.text.len() + 50);
    texts.iter().map(|text| text.len()).chain(references).sum()
}

fn assessment(report: Report, known: &HashMap<String, Vulnerability>) -> Assessment {
    let vulnerabilities = report.said.iter().map(|said| {
        let rule = known.get(&said.rule).cloned().unwrap_or_else(|| rules::unknown_rule(&said.rule));
        let severity = report.severities.get(&said.rule).copied().unwrap_or(rule.severity);
        Vulnerability { severity, ..rule }
    });
    let vulnerabilities = vulnerabilities.collect();
    let assessed: Option<DateTime<Utc>> = report.assessed;
    let findings = report.said.into_iter().map(|said| Finding {
        vulnerability: said.rule,
        status: said.status,
        port: 0,
        protocol: String::new(),
        proof: said.proof,
        first_found: None,
        last_found: assessed.filter(|_| said.status == FindingStatus::Vulnerable),
        last_updated: said.time.or(assessed),
        times_seen: None,
        active_kernel: None,
    });
    Assessment { device: report.device, assessed, findings: findings.collect(), vulnerabilities }
}
