//! Nexpose, also sold as `InsightVM`: the console's API, version 3.
//!
//! A group is a site, by its ID. A scan has the marker of its request for a name, so whatever became of an attempt that
//! got no answer, the next one finds it. Lists are read whole or not at all, because what is missing counts as mended.

mod assessments;
mod asset;
mod findings;
mod knowledge;
mod pages;
mod prose;
mod rest;
mod results;
mod scans;
mod settings;
mod template;
mod wire;

use super::SourceClient;
use super::scanner::{
    Assessment, ScanHandle, ScanRequest, ScanResult, ScanStatus, Scanner, ScannerError, Vulnerability,
};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use rest::Rest;
use settings::Settings;

/// A console. A value of this type lasts for one run, so the next run sees what was changed.
#[derive(Debug)]
pub struct Nexpose {
    rest: Rest,
    settings: Settings,
    remedies: knowledge::Remedies,
}

impl Nexpose {
    /// For a source whose Payload says with what it scans (`docs/sources.md`). Asks nothing yet.
    pub fn new(client: SourceClient) -> Result<Self, ScannerError> {
        let settings = Settings::new(&client.source().payload);
        let rest = Rest::new(client);
        match settings {
            Ok(settings) => Ok(Self { rest, settings, remedies: knowledge::Remedies::default() }),
            Err(problem) => Err(rest.source_problem(problem)),
        }
    }

    /// The site that a group is.
    fn site(&self, group: &str) -> Result<i64, ScannerError> {
        group.trim().parse().ok().filter(|site| *site > 0).ok_or_else(|| {
            self.rest.source_problem(format!(
                "the group {group:?} is no site of the console; give the ID of a site"
            ))
        })
    }

    /// The site in which a scan runs.
    fn scan_site(&self, request: &ScanRequest) -> Result<i64, ScannerError> {
        self.settings.rescan_site.map_or_else(|| self.site(&request.group), Ok)
    }
}

impl Scanner for Nexpose {
    /// What the vendor changed since a week before `since`, because the console learns of it later.
    fn knowledge(&self, since: Option<DateTime<Utc>>) -> BoxStream<'_, Result<Vulnerability, ScannerError>> {
        knowledge::stream(self, since)
    }

    /// `group` is the ID of a site.
    fn assessments<'a>(&'a self, group: &'a str) -> BoxStream<'a, Result<Assessment, ScannerError>> {
        match self.site(group) {
            Ok(site) => assessments::of_site(&self.rest, site),
            Err(error) => Box::pin(stream::iter([Err(error)])),
        }
    }

    /// Sent once. A call without an answer may have begun the scan: look for it before another attempt.
    fn launch<'a>(&'a self, request: &'a ScanRequest) -> BoxFuture<'a, Result<ScanHandle, ScannerError>> {
        Box::pin(scans::launch(self, request))
    }

    fn find<'a>(
        &'a self,
        request: &'a ScanRequest,
    ) -> BoxFuture<'a, Result<Option<ScanHandle>, ScannerError>> {
        Box::pin(scans::find(self, request))
    }

    /// A scan that the console does not know any more is an error.
    fn status<'a>(&'a self, scan: &'a ScanHandle) -> BoxFuture<'a, Result<ScanStatus, ScannerError>> {
        Box::pin(scans::status(self, scan))
    }

    fn results<'a>(&'a self, scan: &'a ScanHandle) -> BoxStream<'a, Result<ScanResult, ScannerError>> {
        results::stream(self, scan)
    }

    /// The list of an asset holds all that is there.
    fn silence_means_fixed(&self) -> bool {
        true
    }
}
