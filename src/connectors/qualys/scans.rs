//! Launching scans, finding them again, and how far they are.

use super::Qualys;
use super::api::{Api, Form, Said};
use super::wire::{self, Scan};
use super::xml::Broken;
use crate::connectors::scanner::{ScanHandle, ScanRequest, ScanStatus, ScannerError, Target};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

const PATH: &str = "scan/";
const LIST: &str = "SCAN_LIST_OUTPUT";
const LAUNCH: &str = "launch a scan";
/// How far back a scan of ours is looked for. No job tries for so long, and no clocks differ by so much.
const LOOK_BACK: TimeDelta = TimeDelta::days(30);

/// What is remembered of a scan: [`ScanHandle::detail`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    /// By the clock of Qualys.
    pub(super) launched: DateTime<Utc>,
    pub(super) targets: Vec<Aim>,
    /// Targets that were not scanned, and why.
    pub(super) left_out: Vec<(String, String)>,
}

/// A target that is scanned.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Aim {
    pub(super) asset: String,
    pub(super) ip: Ipv4Addr,
    /// [`Target::assessed`].
    pub(super) assessed: Option<DateTime<Utc>>,
}

impl Begun {
    fn new(request: &ScanRequest, launched: DateTime<Utc>) -> Self {
        let (mut targets, mut left_out) = (Vec::new(), Vec::new());
        for target in &request.targets {
            match address(target) {
                Ok(ip) => targets.push(Aim { asset: target.asset.clone(), ip, assessed: target.assessed }),
                Err(why) => left_out.push((target.asset.clone(), why.to_owned())),
            }
        }
        Self { launched, targets, left_out }
    }

    /// The addresses, each once.
    pub(super) fn ips(&self) -> String {
        let ips: BTreeSet<Ipv4Addr> = self.targets.iter().map(|target| target.ip).collect();
        ips.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(",")
    }

    fn handle(&self, reference: &str) -> ScanHandle {
        ScanHandle { key: reference.to_owned(), detail: json!(self) }
    }
}

/// Where a target is scanned, or why it is not.
fn address(target: &Target) -> Result<Ipv4Addr, &'static str> {
    match target.ip {
        Some(IpAddr::V4(ip)) => Ok(ip),
        Some(IpAddr::V6(_)) => {
            Err("it was not scanned: Qualys scans an IPv6 address only where it is mapped to an IPv4 address")
        }
        None if target.instance.is_some() => Err(
            "it was not scanned: it has no address, and scans of instances of a cloud are not launched from here",
        ),
        None => Err("it was not scanned: it has no address"),
    }
}

impl Qualys {
    pub(super) async fn launch_scan(&self, request: &ScanRequest) -> Result<ScanHandle, ScannerError> {
        let how = self.settings.launch(request.kind, &request.group);
        let how = how.map_err(|problem| self.api.source_problem(problem))?;
        let mut begun = Begun::new(request, DateTime::UNIX_EPOCH);
        if begun.targets.is_empty() {
            return Err(self
                .api
                .item_problem(&request.marker, "none of its targets has an IPv4 address to scan"));
        }
        let mut form: Form = vec![("scan_title", request.marker.clone()), ("ip", begun.ips())];
        form.extend(how);
        // Sent once: after a call without an answer the scan may run, and only a search for its title can tell.
        let response = match self.api.try_call(Api::act(PATH, "launch", &form), LAUNCH).await? {
            Ok(Said::Simple(response)) => response,
            Ok(_) => return Err(self.api.odd(LAUNCH, &Broken("does not say what became of it".to_owned()))),
            Err(refusal) if !refusal.is_passing() && !refusal.is_login() => {
                return Err(self.api.item_problem(&request.marker, refusal.sentence()));
            }
            Err(refusal) => return Err(self.api.refused(&refusal)),
        };
        // It runs. An error from here on lets another attempt find it.
        let odd = |problem: String| self.api.odd(LAUNCH, &Broken(problem));
        let reference = wire::item(&response, "REFERENCE").filter(|text| (1..=100).contains(&text.len()));
        let reference = reference.ok_or_else(|| odd("holds no reference of the scan".to_owned()))?;
        let launched = wire::time(&response, "DATETIME").map_err(odd)?;
        begun.launched = launched.ok_or_else(|| odd("does not say what time it is".to_owned()))?;
        Ok(begun.handle(reference))
    }

    pub(super) async fn find_scan(&self, request: &ScanRequest) -> Result<Option<ScanHandle>, ScannerError> {
        const DOING: &str = "list scans";
        let since = (Utc::now() - LOOK_BACK).to_rfc3339_opts(SecondsFormat::Secs, true);
        let call = Api::list(PATH, &[("launched_after_datetime", since)]);
        let mut scans = self.api.all(call, LIST, DOING).await?;
        while let Some(node) = scans.next(&["SCAN"]).map_err(|broken| self.api.odd(DOING, &broken))? {
            // One that makes no sense is not ours: ours has a title.
            let Ok(scan) = Scan::new(&node) else { continue };
            if scan.title == request.marker
                && let Some(launched) = scan.launched
            {
                return Ok(Some(Begun::new(request, launched).handle(&scan.reference)));
            }
        }
        Ok(None)
    }

    pub(super) async fn scan_status(&self, scan: &ScanHandle) -> Result<ScanStatus, ScannerError> {
        const DOING: &str = "show a scan";
        let call = Api::list(PATH, &[("scan_ref", scan.key.clone()), ("show_status", "1".to_owned())]);
        let mut scans = self.api.all(call, LIST, DOING).await?;
        while let Some(node) = scans.next(&["SCAN"]).map_err(|broken| self.api.odd(DOING, &broken))? {
            if node.text("REF") != scan.key {
                continue;
            }
            let it = Scan::new(&node).map_err(|problem| self.api.item_problem(&scan.key, problem))?;
            return it.status.ok_or_else(|| {
                self.api.odd(DOING, &Broken(format!("says `{}`, which is no state we know", it.state)))
            });
        }
        Err(self.api.item_problem(&scan.key, "Qualys has no such scan, or the account may not see it"))
    }
}
