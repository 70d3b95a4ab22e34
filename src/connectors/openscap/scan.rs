//! A scan of a source that only collects: nothing is started anywhere. Somebody else has the hosts evaluated, and the
//! scan waits until there is something newer of each of them.

use super::group::Newest;
use super::unreachable::{Hosts, Unreachable};
use crate::connectors::scanner::{ScanHandle, ScanRequest, ScanStatus, ScannerError, Target};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// What a handle remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) request: ScanRequest,
    /// By our own clock, and compared with nothing else.
    launched: DateTime<Utc>,
}

/// What there is of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    /// A result that is newer than the newest there was.
    Assessed,
    /// It did not answer after that.
    Unreachable(&'a Unreachable),
    /// Nothing new.
    Silent,
}

impl Begun {
    /// The handle of a request.
    pub(super) fn handle(request: &ScanRequest, now: DateTime<Utc>) -> ScanHandle {
        ScanHandle { key: request.marker.clone(), detail: json!({ "request": request, "launched": now }) }
    }

    /// From the handle.
    pub(super) fn of(scan: &ScanHandle) -> Result<Self, ScannerError> {
        serde_path_to_error::deserialize(&scan.detail).map_err(|error| ScannerError::Item {
            item: format!("scan {}", scan.key),
            problem: format!("its handle is none of OpenSCAP: {error}"),
        })
    }

    /// How far it is.
    pub(super) fn status(
        &self,
        newest: &Newest,
        unreachable: &Hosts,
        now: DateTime<Utc>,
        wait: Duration,
    ) -> ScanStatus {
        let targets = &self.request.targets;
        let silent =
            targets.iter().filter(|target| fate(target, newest, unreachable) == Fate::Silent).count();
        let waited = (now - self.launched).to_std().unwrap_or_default();
        match silent {
            0 => ScanStatus::Finished,
            _ if waited < wait => ScanStatus::Processing,
            _ if silent < targets.len() => ScanStatus::Finished,
            _ => ScanStatus::Error,
        }
    }
}

/// What there is of a target. All times are those of the scanner and of whoever collects for it.
pub(super) fn fate<'a>(target: &Target, newest: &Newest, unreachable: &'a Hosts) -> Fate<'a> {
    if newest.has_newer(&target.asset, target.assessed) {
        return Fate::Assessed;
    }
    let is_new = |host: &&Unreachable| target.assessed.is_none_or(|before| host.time > before);
    match unreachable.get(&target.asset).filter(is_new) {
        Some(host) => Fate::Unreachable(host),
        None => Fate::Silent,
    }
}
