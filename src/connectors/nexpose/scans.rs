//! Scans: begun once, found again by their name, watched until they are over.

use super::pages::Pages;
use super::rest::{Failure, Rest};
use super::wire::{CreatedScan, NewScan, Scan};
use super::{Nexpose, template};
use crate::connectors::scanner::{ScanHandle, ScanKind, ScanRequest, ScanStatus, ScannerError};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Scans asked for at once.
const SCANS: usize = 256;

/// What is remembered of a scan, because its results are asked for with nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Detail {
    pub(super) scan: i64,
    pub(super) site: i64,
    pub(super) kind: ScanKind,
    /// The devices it covers.
    pub(super) targets: Vec<Covered>,
    /// The copy of a template that goes when the scan is over.
    #[serde(default)]
    pub(super) template: Option<String>,
}

/// A device of a scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Covered {
    pub(super) asset: String,
    pub(super) assessed: Option<DateTime<Utc>>,
}

impl Detail {
    fn new(
        nexpose: &Nexpose,
        request: &ScanRequest,
        scan: i64,
        template: Option<String>,
    ) -> Result<Self, ScannerError> {
        // One without an address is not scanned, and its silence says nothing.
        let scanned = request.targets.iter().filter(|target| target.ip.is_some());
        let targets =
            scanned.map(|target| Covered { asset: target.asset.clone(), assessed: target.assessed });
        let site = nexpose.scan_site(request)?;
        Ok(Self { scan, site, kind: request.kind, targets: targets.collect(), template })
    }

    /// What a handle of this connector remembers.
    pub(super) fn of(nexpose: &Nexpose, handle: &ScanHandle) -> Result<Self, ScannerError> {
        Self::deserialize(&handle.detail).map_err(|error| {
            let problem = format!("what was kept of scan {} does not make sense: {error}", handle.key);
            nexpose.rest.source_problem(problem)
        })
    }

    fn handle(&self) -> Result<ScanHandle, ScannerError> {
        let detail = serde_json::to_value(self).map_err(|error| ScannerError::Answer(error.to_string()))?;
        Ok(ScanHandle { key: self.scan.to_string(), detail })
    }
}

/// See [`crate::connectors::scanner::Scanner::launch`].
pub(super) async fn launch(nexpose: &Nexpose, request: &ScanRequest) -> Result<ScanHandle, ScannerError> {
    let rest = &nexpose.rest;
    let site = nexpose.scan_site(request)?;
    let hosts: BTreeSet<String> = request.targets.iter().filter_map(|t| Some(t.ip?.to_string())).collect();
    if hosts.is_empty() {
        return Err(rest.source_problem(format!(
            "the scan {} has no target with an address, and the console scans addresses; let the devices be read again",
            request.marker
        )));
    }
    let copy = copy(nexpose, request).await.map_err(|failure| failure.into_error(rest))?;
    let settings = &nexpose.settings;
    let template_id = match request.kind {
        ScanKind::Discovery => Some(settings.discovery_template.as_str()),
        ScanKind::Vulnerabilities => copy.as_deref().or(settings.scan_template.as_deref()),
    };
    let scan = NewScan {
        name: &request.marker,
        hosts: hosts.into_iter().collect(),
        template_id,
        engine_id: settings.engine_id,
    };
    let created: Result<CreatedScan, Failure> =
        rest.create(&format!("sites/{site}/scans"), &scan, "start a scan").await;
    match created {
        Ok(created) => Detail::new(nexpose, request, created.id, copy)?.handle(),
        Err(failure) => {
            // A scan that may run needs its template; who finds the scan finds the copy, and the next launch deletes it.
            if let Some(copy) = copy.filter(|_| !failure.is_in_doubt()) {
                remove(rest, &copy).await;
            }
            Err(failure.into_error(rest))
        }
    }
}

async fn copy(nexpose: &Nexpose, request: &ScanRequest) -> Result<Option<String>, Failure> {
    let settings = &nexpose.settings;
    let Some(whole) = settings.scan_template.as_deref() else { return Ok(None) };
    // A target without a wish is looked at for everything.
    let is_narrow = request.targets.iter().all(|target| !target.vulnerabilities.is_empty());
    if request.kind != ScanKind::Vulnerabilities || !settings.narrow_template || !is_narrow {
        return Ok(None);
    }
    let wanted =
        request.targets.iter().flat_map(|target| &target.vulnerabilities).map(String::as_str).collect();
    template::narrowed(&nexpose.rest, whole, &wanted, &request.marker).await
}

/// See [`crate::connectors::scanner::Scanner::find`].
pub(super) async fn find(
    nexpose: &Nexpose,
    request: &ScanRequest,
) -> Result<Option<ScanHandle>, ScannerError> {
    let rest = &nexpose.rest;
    let site = nexpose.scan_site(request)?;
    // Those that run first: one that ends in between is among the others then.
    for active in ["true", "false"] {
        let mut scans = Pages::new(
            rest,
            format!("sites/{site}/scans"),
            SCANS,
            "list the scans of a site",
            |scan: &Scan, _| scan.id.to_string(),
        )
        .query("active", active);
        while let Some(scan) = scans.next().await.map_err(|failure| failure.into_error(rest))? {
            // One that makes no sense is not one of ours: those have names.
            let Ok(scan) = scan else { continue };
            if scan.name.as_deref().map(str::trim) != Some(request.marker.as_str()) {
                continue;
            }
            let copy = if nexpose.settings.narrow_template {
                template::named(rest, &request.marker).await.map_err(|failure| failure.into_error(rest))?
            } else {
                None
            };
            return Detail::new(nexpose, request, scan.id, copy)?.handle().map(Some);
        }
    }
    Ok(None)
}

/// See [`crate::connectors::scanner::Scanner::status`].
pub(super) async fn status(nexpose: &Nexpose, handle: &ScanHandle) -> Result<ScanStatus, ScannerError> {
    let detail = Detail::of(nexpose, handle)?;
    let status = match show(&nexpose.rest, detail.scan).await {
        Ok(scan) => meaning(&scan.status),
        // Somebody deleted it at the console. There will be no results, and waiting for it would not end.
        Err(failure) if failure.is_not_found() => ScanStatus::Error,
        Err(failure) => return Err(failure.into_error(&nexpose.rest)),
    };
    if status.is_over()
        && let Some(copy) = &detail.template
    {
        // Also of a scan that failed, whose results nobody will ask for.
        remove(&nexpose.rest, copy).await;
    }
    Ok(status)
}

/// One scan.
pub(super) async fn show(rest: &Rest, scan: i64) -> Result<Scan, Failure> {
    rest.get_one(&format!("scans/{scan}"), "show a scan").await
}

/// A copy that stays is a nuisance at the console, and no reason to lose a scan.
async fn remove(rest: &Rest, copy: &str) {
    if let Err(failure) = template::delete(rest, copy).await {
        let error = failure.into_error(rest);
        tracing::warn!(%error, template = copy, "a copy of a scan template is left at the console");
    }
}

/// A word that is not known is one of a scan that is not over, as far as anybody can tell.
pub(super) fn meaning(word: &str) -> ScanStatus {
    match word.trim().to_ascii_lowercase().as_str() {
        "finished" => ScanStatus::Finished,
        "stopped" => ScanStatus::Stopped,
        "paused" => ScanStatus::Paused,
        "error" | "aborted" => ScanStatus::Error,
        _ => ScanStatus::Processing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_of_the_console_has_a_meaning() {
        for (word, status) in [
            ("running", ScanStatus::Processing),
            ("integrating", ScanStatus::Processing),
            ("dispatched", ScanStatus::Processing),
            ("unknown", ScanStatus::Processing),
            ("", ScanStatus::Processing),
            ("paused", ScanStatus::Paused),
            ("Stopped", ScanStatus::Stopped),
            ("finished", ScanStatus::Finished),
            ("error", ScanStatus::Error),
            ("aborted", ScanStatus::Error),
        ] {
            assert_eq!(meaning(word), status, "{word}");
        }
    }
}
