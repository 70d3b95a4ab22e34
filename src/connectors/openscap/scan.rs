//! A scan only waits: the hosts are evaluated by somebody else, or by a row of `OpenScapRunJob`, and it is over when there
//! is something newer of each of them, or when that row is over.

use super::group::Newest;
use super::unreachable::{Hosts, Unreachable};
use crate::connectors::scanner::{ScanHandle, ScanRequest, ScanStatus, ScannerError, Target};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;

/// What a handle remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) request: ScanRequest,
    /// By our own clock, and compared with nothing else.
    launched: DateTime<Utc>,
    #[serde(skip)]
    known: Known,
}

/// What there was of each target when a scan was asked for that rosterd runs itself: [`ScanRequest::known`].
pub(super) type Known = HashMap<String, Before>;

/// By the clocks of the host and of whoever wrote the line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Before {
    result: Option<DateTime<Utc>>,
    unreachable: Option<DateTime<Utc>>,
}

/// What there is of these targets at this moment.
pub(super) fn known(targets: &[Target], newest: &Newest, unreachable: &Hosts) -> Known {
    let before = |asset: &str| Before {
        result: newest.time(asset),
        unreachable: unreachable.get(asset).map(|host| host.time),
    };
    targets.iter().map(|target| (target.asset.clone(), before(&target.asset))).collect()
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
        let problem = |error: &dyn std::fmt::Display| ScannerError::Item {
            item: format!("scan {}", scan.key),
            problem: format!("its handle is none of OpenSCAP: {error}"),
        };
        let mut begun: Self =
            serde_path_to_error::deserialize(&scan.detail).map_err(|error| problem(&error))?;
        let known: Option<Known> =
            serde_path_to_error::deserialize(&begun.request.known).map_err(|error| problem(&error))?;
        begun.known = known.unwrap_or_default();
        Ok(begun)
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
            targets.iter().filter(|target| self.fate(target, newest, unreachable) == Fate::Silent).count();
        let waited = (now - self.launched).to_std().unwrap_or_default();
        match silent {
            0 => ScanStatus::Finished,
            _ if waited < wait => ScanStatus::Processing,
            _ if silent < targets.len() => ScanStatus::Finished,
            _ => ScanStatus::Error,
        }
    }

    /// What there is of a target. All times are those of the scanner and of whoever collects for it.
    pub(super) fn fate<'a>(&self, target: &Target, newest: &Newest, unreachable: &'a Hosts) -> Fate<'a> {
        let before = self.known.get(&target.asset);
        let result = target.assessed.max(before.and_then(|before| before.result));
        if newest.has_newer(&target.asset, result) {
            return Fate::Assessed;
        }
        // A line of ours is newer than what lay there, and a host's clock may be ahead of it.
        let line = before.map_or(target.assessed, |before| before.result.max(before.unreachable));
        let is_new = |host: &&Unreachable| line.is_none_or(|before| host.time > before);
        match unreachable.get(&target.asset).filter(is_new) {
            Some(host) => Fate::Unreachable(host),
            None => Fate::Silent,
        }
    }
}
