//! What a finished scan found.
//!
//! Qualys keeps what is known of a host and not what a scan saw. So a host belongs to the scan if it was looked at since
//! the newest assessment there was; both times are Qualys'. Hosts that did not answer are in the summary of the scan.

use super::Qualys;
use super::addresses::Addresses;
use super::api::Api;
use super::detections::Hosts;
use super::scans::{Aim, Begun};
use crate::connectors::scanner::{Assessment, ScanHandle, ScanResult, ScannerError};
use chrono::TimeDelta;
use futures_util::stream::{self, BoxStream};
use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

/// See [`crate::connectors::scanner::Scanner::results`].
pub(super) fn stream<'a>(
    qualys: &'a Qualys,
    scan: &'a ScanHandle,
) -> BoxStream<'a, Result<ScanResult, ScannerError>> {
    let reader = match Reader::new(qualys, scan) {
        Ok(reader) => reader,
        Err(error) => return Box::pin(stream::iter([Err(error)])),
    };
    Box::pin(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        let item = reader.next().await?;
        let is_last = matches!(&item, Err(error) if !matches!(error, ScannerError::Item { .. }));
        Some((item, (!is_last).then_some(reader)))
    }))
}

struct Reader<'a> {
    qualys: &'a Qualys,
    scan: &'a ScanHandle,
    begun: Begun,
    hosts: Option<Hosts<'a>>,
    /// Addresses at which something was found.
    alive: HashSet<IpAddr>,
    /// What is told before and after the hosts.
    ready: VecDeque<Result<ScanResult, ScannerError>>,
    is_over: bool,
}

impl<'a> Reader<'a> {
    fn new(qualys: &'a Qualys, scan: &'a ScanHandle) -> Result<Self, ScannerError> {
        let begun: Begun = serde_json::from_value(scan.detail.clone()).map_err(|error| {
            qualys.api.item_problem(&scan.key, format!("what was remembered of it makes no sense: {error}"))
        })?;
        let left_out = begun.left_out.iter();
        let ready =
            left_out.map(|(asset, why)| Err(qualys.api.item_problem(format!("host {asset}"), why))).collect();
        let mut form = qualys.settings.findings();
        form.push(("ips", begun.ips()));
        // The same address may be in another network too.
        form.extend(qualys.settings.network().map(|id| ("network_ids", id.to_string())));
        let hosts = Some(Hosts::new(&qualys.api, form));
        Ok(Self { qualys, scan, begun, hosts, alive: HashSet::new(), ready, is_over: false })
    }

    async fn next(&mut self) -> Option<Result<ScanResult, ScannerError>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            let Some(hosts) = &mut self.hosts else {
                if std::mem::replace(&mut self.is_over, true) {
                    return None;
                }
                if let Err(error) = self.read_summary().await {
                    return Some(Err(error));
                }
                continue;
            };
            match hosts.next().await {
                None => self.hosts = None,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(assessment)) if self.is_of_this_scan(&assessment) => {
                    self.alive.extend(assessment.device.ip);
                    return Some(Ok(ScanResult::Assessed(assessment)));
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// A host that was made anew has another number at the same address.
    fn is_of_this_scan(&self, assessment: &Assessment) -> bool {
        let device = &assessment.device;
        let targets = &self.begun.targets;
        let by_asset = targets.iter().find(|target| target.asset == device.asset);
        let target =
            by_asset.or_else(|| targets.iter().find(|target| device.ip == Some(IpAddr::V4(target.ip))));
        target.is_some_and(|target| assessment.assessed > target.assessed)
    }

    async fn read_summary(&mut self) -> Result<(), ScannerError> {
        const DOING: &str = "show which hosts a scan did not reach";
        let api = &self.qualys.api;
        // It takes days. The day before, because a day is not the same everywhere.
        let since = (self.begun.launched - TimeDelta::days(1)).format("%Y-%m-%d").to_string();
        let others = ["include_excluded", "include_unresolved", "include_cancelled"]
            .map(|name| (name, "0".to_owned()));
        let mut form = vec![("scan_date_since", since), ("include_dead", "1".to_owned())];
        form.extend(others);
        let mut summaries = api.all(Api::get("scan/summary/", &form), "SCAN_SUMMARY_OUTPUT", DOING).await?;
        let mut dead = Addresses::default();
        while let Some(summary) =
            summaries.next(&["SCAN_SUMMARY"]).map_err(|broken| api.odd(DOING, &broken))?
        {
            if summary.text("SCAN_REF") != self.scan.key {
                continue;
            }
            for hosts in summary.children("HOST_SUMMARY") {
                if hosts.attribute("category").eq_ignore_ascii_case("dead") {
                    dead.add(hosts.own_text());
                }
            }
        }
        // An agent may have told of a host that nobody reaches.
        let is_dead = |target: &&Aim| dead.holds(target.ip.into()) && !self.alive.contains(&target.ip.into());
        let results =
            self.begun.targets.iter().filter(is_dead).map(|target| Ok(self.dead(&target.asset, target.ip)));
        let results: Vec<_> = results.collect();
        self.ready.extend(results);
        Ok(())
    }

    fn dead(&self, asset: &str, ip: Ipv4Addr) -> ScanResult {
        ScanResult::Dead {
            asset: Some(asset.to_owned()).filter(|asset| !asset.is_empty()),
            ip: Some(ip.into()),
            proof: format!("{}: no host answered at {ip}", self.scan.key),
        }
    }
}
