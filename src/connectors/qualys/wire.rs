//! What Qualys' records say. None of their words leaves this folder.

use super::text::{one_line, plain, proof};
use super::xml::Node;
use crate::connectors::scanner::{
    Assessment, Device, Finding, FindingStatus, Reference, ReferenceKind, ScanStatus, Severity, Tracking,
    Vulnerability,
};
use chrono::{DateTime, Utc};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::str::FromStr;

/// A host of the list of detections, or what is wrong with it.
pub(super) fn assessment(host: &Node) -> Result<Assessment, String> {
    let device = Device {
        asset: identifier(host, "ID", 360)?,
        ip: optional(host, "IP")?.or(optional(host, "IPV6")?),
        host_name: one_line(
            [host.text("DNS"), host.text("NETBIOS")].into_iter().find(|name| !name.is_empty()).unwrap_or(""),
            255,
        ),
        mac: None,
        os: one_line(host.text("OS"), 255),
        instance: Some(host.text("EC2_INSTANCE_ID").to_owned()).filter(|id| !id.is_empty()),
        region: None,
        tracking: match host.text("TRACKING_METHOD").to_ascii_uppercase().as_str() {
            "AGENT" => Tracking::Agent,
            "EC2" => Tracking::Ec2,
            _ => Tracking::Ip,
        },
    };
    // The other one may be of a scan for compliance.
    let assessed = time(host, "LAST_VM_SCANNED_DATE")?.or(time(host, "LAST_SCAN_DATETIME")?);
    let mut findings: Vec<Finding> = Vec::new();
    let mut known: HashMap<(String, u16, String), usize> = HashMap::new();
    for detection in host.items("DETECTION_LIST", "DETECTION") {
        let found = finding(detection)?;
        match known.entry((found.vulnerability.clone(), found.port, found.protocol.clone())) {
            Entry::Vacant(place) => {
                place.insert(findings.len());
                findings.push(found);
            }
            Entry::Occupied(place) => {
                let other = &mut findings[*place.get()];
                if weight(&found) > weight(other) {
                    *other = found;
                }
            }
        }
    }
    Ok(Assessment { device, assessed, findings, vulnerabilities: Vec::new() })
}

/// Qualys tells one vulnerability at one port apart by names and instances, which we do not. What is there outweighs what
/// was fixed, and then what was seen last.
fn weight(finding: &Finding) -> (u8, Option<DateTime<Utc>>) {
    let rank = match finding.status {
        FindingStatus::Vulnerable => 4,
        FindingStatus::Potential => 3,
        FindingStatus::Unknown => 2,
        FindingStatus::Informational => 1,
        FindingStatus::Fixed => 0,
    };
    (rank, finding.last_found)
}

fn finding(detection: &Node) -> Result<Finding, String> {
    let vulnerability = identifier(detection, "QID", 255)?;
    let here = |problem: String| format!("QID {vulnerability}: {problem}");
    let status = match (detection.text("STATUS"), detection.text("TYPE")) {
        ("Fixed", _) => FindingStatus::Fixed,
        (_, "Info") => FindingStatus::Informational,
        ("New" | "Active" | "Re-Opened", "Confirmed") => FindingStatus::Vulnerable,
        ("New" | "Active" | "Re-Opened", "Potential") => FindingStatus::Potential,
        _ => FindingStatus::Unknown,
    };
    Ok(Finding {
        status,
        port: optional(detection, "PORT").map_err(here)?.unwrap_or(0),
        protocol: one_line(detection.text("PROTOCOL"), 255),
        proof: proof(detection.text("RESULTS")),
        first_found: time(detection, "FIRST_FOUND_DATETIME").map_err(here)?,
        last_found: time(detection, "LAST_FOUND_DATETIME").map_err(here)?,
        last_updated: time(detection, "LAST_UPDATE_DATETIME").map_err(here)?,
        times_seen: optional(detection, "TIMES_FOUND").map_err(here)?,
        active_kernel: match detection.text("AFFECT_RUNNING_KERNEL") {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        },
        vulnerability,
    })
}

/// An entry of the knowledge base, or what is wrong with it.
///
/// DIAGNOSIS says what it is, and CONSEQUENCE what comes of it; Qualys calls them threat and impact on its pages.
pub(super) fn vulnerability(entry: &Node) -> Result<Vulnerability, String> {
    let software =
        |software: &Node| one_line(&format!("{} {}", software.text("VENDOR"), software.text("PRODUCT")), 255);
    let software: Vec<String> = entry.items("SOFTWARE_LIST", "SOFTWARE").map(software).collect();
    let cves = entry.items("CVE_LIST", "CVE").map(|cve| (ReferenceKind::Cve, cve.text("ID")));
    let vendors = entry.items("VENDOR_REFERENCE_LIST", "VENDOR_REFERENCE").map(|vendor| {
        let id = vendor.text("ID");
        (if is_microsoft(id) { ReferenceKind::Microsoft } else { ReferenceKind::Vendor }, id)
    });
    let mut references: Vec<Reference> = Vec::new();
    for (kind, text) in cves.chain(vendors) {
        let reference = Reference { kind, text: one_line(text, 255) };
        if !reference.text.is_empty() && !references.contains(&reference) {
            references.push(reference);
        }
    }
    Ok(Vulnerability {
        id: identifier(entry, "QID", 255)?,
        title: one_line(&plain(entry.text("TITLE")), 1000),
        description: plain(entry.text("DIAGNOSIS")),
        threat: plain(entry.text("CONSEQUENCE")),
        solution: plain(entry.text("SOLUTION")),
        severity: match entry.text("SEVERITY_LEVEL") {
            "1" => Severity::Info,
            "2" => Severity::Low,
            "3" => Severity::Medium,
            "4" => Severity::High,
            "5" => Severity::Critical,
            _ => Severity::Unknown,
        },
        cvss2: score(entry, "CVSS")?,
        cvss3: score(entry, "CVSS_V3")?,
        category: Some(one_line(entry.text("CATEGORY"), 255)).filter(|text| !text.is_empty()),
        patchable: match entry.text("PATCHABLE") {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        },
        software: (!software.is_empty()).then(|| software.join(", ")),
        updated: time(entry, "LAST_SERVICE_MODIFICATION_DATETIME")?,
        references,
    })
}

/// Bulletins (`MS17-010`) and articles (`KB4012598`) of Microsoft.
fn is_microsoft(id: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let bulletin = id.strip_prefix("MS").and_then(|rest| rest.split_once('-'));
    bulletin.is_some_and(|(year, number)| is_number(year) && is_number(number))
        || id.strip_prefix("KB").is_some_and(is_number)
}

/// `-` stands where there is none.
fn score(entry: &Node, list: &str) -> Result<Option<f64>, String> {
    let Some(text) = entry.child(list).map(|cvss| cvss.text("BASE")).filter(|text| !["", "-"].contains(text))
    else {
        return Ok(None);
    };
    let score: Option<f64> = text.parse().ok().filter(|score| (0.0..=10.0).contains(score));
    score.map(Some).ok_or_else(|| format!("its {list}/BASE is `{}`, which is no score", one_line(text, 50)))
}

/// A scan of the list of scans.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) reference: String,
    pub(super) title: String,
    pub(super) launched: Option<DateTime<Utc>>,
    /// `None`: a word we do not know.
    pub(super) status: Option<ScanStatus>,
    /// Qualys' own word.
    pub(super) state: String,
}

impl Scan {
    pub(super) fn new(scan: &Node) -> Result<Self, String> {
        let state = one_line(scan.child("STATUS").map_or("", |status| status.text("STATE")), 50);
        let status = match state.as_str() {
            "Queued" | "Loading" => Some(ScanStatus::Queued),
            // Its results are not where they are asked for until they have been processed.
            "Finished" if scan.text("PROCESSED") == "0" => Some(ScanStatus::Processing),
            "Running" | "Pausing" | "Resuming" | "Canceling" => Some(ScanStatus::Processing),
            "Finished" => Some(ScanStatus::Finished),
            "Paused" => Some(ScanStatus::Paused),
            "Canceled" | "Cancelled" => Some(ScanStatus::Canceled),
            "Stopped" => Some(ScanStatus::Stopped),
            "Error" => Some(ScanStatus::Error),
            _ => None,
        };
        Ok(Self {
            reference: identifier(scan, "REF", 100)?,
            title: scan.text("TITLE").to_owned(),
            launched: time(scan, "LAUNCH_DATETIME")?,
            status,
            state,
        })
    }
}

/// A value of an item list: `<ITEM><KEY>REFERENCE</KEY><VALUE>scan/1.2</VALUE></ITEM>`.
pub(super) fn item<'a>(response: &'a Node, key: &str) -> Option<&'a str> {
    response.items("ITEM_LIST", "ITEM").find(|item| item.text("KEY") == key).map(|item| item.text("VALUE"))
}

fn identifier(node: &Node, name: &str, max: usize) -> Result<String, String> {
    let id = node.text(name);
    if id.is_empty() || id.chars().count() > max || id.chars().any(char::is_control) {
        return Err(format!("its {name} is not 1 to {max} characters"));
    }
    Ok(id.to_owned())
}

fn optional<T: FromStr>(node: &Node, name: &str) -> Result<Option<T>, String> {
    let text = node.text(name);
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| format!("its {name} is `{}`, which makes no sense", one_line(text, 50)))
}

/// A time, if there is one.
pub(super) fn time(node: &Node, name: &str) -> Result<Option<DateTime<Utc>>, String> {
    optional(node, name)
}
