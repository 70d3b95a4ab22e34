//! Qualys: vulnerability management (VM) by its XML API, version 2.0.
//!
//! | part | does |
//! |---|---|
//! | `api`, `refusal`, `xml` | calls, refusals, and answers as records, one at a time |
//! | `wire`, `text`, `addresses` | what the records say |
//! | `detections`, `knowledge`, `portion` | lists, asked for in pieces that can be read |
//! | `scans`, `results` | launching a scan, finding it again, and what it found |
//! | `settings`, `group` | what the Payload and a group say |
//!
//! A scan is found again by its title, so whatever became of an attempt that got no answer, the next one does not scan
//! twice. Web applications (WAS) and `CloudView` are other products.

mod addresses;
mod api;
mod detections;
mod group;
mod knowledge;
mod portion;
mod refusal;
mod results;
mod scans;
mod settings;
mod text;
mod wire;
mod xml;

use super::SourceClient;
use super::scanner::{
    Assessment, ScanHandle, ScanRequest, ScanResult, ScanStatus, Scanner, ScannerError, Vulnerability,
};
use api::Api;
use chrono::{DateTime, Utc};
use detections::Hosts;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use knowledge::Entries;
use settings::Settings;

/// A subscription of Qualys.
#[derive(Debug)]
pub struct Qualys {
    api: Api,
    settings: Settings,
}

impl Qualys {
    /// For a source whose Payload says how to scan (`docs/sources.md`). Asks nothing yet.
    pub fn new(client: SourceClient) -> Result<Self, ScannerError> {
        let settings = Settings::new(&client.source().payload);
        let api = Api::new(client);
        match settings {
            Ok(settings) => Ok(Self { api, settings }),
            Err(problem) => Err(api.source_problem(problem)),
        }
    }
}

impl Scanner for Qualys {
    /// A text that Qualys writes in HTML comes as plain text.
    fn knowledge(&self, since: Option<DateTime<Utc>>) -> BoxStream<'_, Result<Vulnerability, ScannerError>> {
        let entries = Entries::new(&self.api, since);
        Box::pin(stream::unfold(entries, |mut entries| async move { Some((entries.next().await?, entries)) }))
    }

    /// A group is the number of an asset group, or `tag-` and the number or name of a tag. With commas between several:
    /// hosts of any of the asset groups, or with all of the tags.
    fn assessments<'a>(&'a self, group: &'a str) -> BoxStream<'a, Result<Assessment, ScannerError>> {
        let mut form = self.settings.findings();
        match group::filter(group) {
            Ok(filter) => form.extend(filter),
            Err(problem) => {
                let error = self.api.source_problem(format!("the group `{group}` {problem}"));
                return Box::pin(stream::iter([Err(error)]));
            }
        }
        let hosts = Hosts::new(&self.api, form);
        Box::pin(stream::unfold(hosts, |mut hosts| async move { Some((hosts.next().await?, hosts)) }))
    }

    /// As many scans as the subscription allows at once is an error that passes. Targets without an IPv4 address are left
    /// out, and [`Scanner::results`] says so of each.
    fn launch<'a>(&'a self, request: &'a ScanRequest) -> BoxFuture<'a, Result<ScanHandle, ScannerError>> {
        Box::pin(self.launch_scan(request))
    }

    fn find<'a>(
        &'a self,
        request: &'a ScanRequest,
    ) -> BoxFuture<'a, Result<Option<ScanHandle>, ScannerError>> {
        Box::pin(self.find_scan(request))
    }

    /// A scan that is finished is in progress until Qualys has processed its results.
    fn status<'a>(&'a self, scan: &'a ScanHandle) -> BoxFuture<'a, Result<ScanStatus, ScannerError>> {
        Box::pin(self.scan_status(scan))
    }

    fn results<'a>(&'a self, scan: &'a ScanHandle) -> BoxStream<'a, Result<ScanResult, ScannerError>> {
        results::stream(self, scan)
    }

    /// No: what was fixed is asked for and told. Where Qualys says nothing it may have purged what it knew of the host, or
    /// have left it out because of `kernel_filter`.
    fn silence_means_fixed(&self) -> bool {
        false
    }
}
