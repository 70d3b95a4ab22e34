//! `TestResult`: which host it is about, and what each rule said there.

use super::prose::{MAX_TEXT, Values, line, one_line, prose};
use super::xml::{Broken, Step, Tag, Xml};
use crate::connectors::scanner::{Device, FindingStatus, Severity, Tracking};
use chrono::{DateTime, Datelike, NaiveDateTime, Utc};
use std::collections::HashMap;
use std::io::BufRead;
use std::net::IpAddr;

/// Of everything that is kept of one document at once, in bytes.
const MAX_KEPT: usize = 64 << 20;
/// The longest identifiers there may be ([`Device::asset`] and
/// [`Vulnerability::id`](crate::connectors::scanner::Vulnerability::id)).
pub(super) const MAX_ASSET: usize = 360;
pub(super) const MAX_ID: usize = 255;
/// A longer name of a check is no name that helps anybody.
const MAX_CHECK: usize = 200;
/// Complaints about one document.
const MAX_COMPLAINTS: usize = 20;

/// What may still be kept of a document.
#[derive(Debug)]
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_KEPT)
    }
}

impl Budget {
    /// Something of so many bytes of text is kept.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Broken> {
        // What surrounds a text takes room as well.
        self.0 = self.0.checked_sub(bytes + 200).ok_or_else(|| {
            Broken::bad(format!(
                "holds more than {MAX_KEPT} bytes of results and rules, and is not read further"
            ))
        })?;
        Ok(())
    }
}

/// All of one document.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) reports: Vec<Report>,
    /// What of it makes no sense, sentences that finish "it "; of targets in [`Detail::Heads`], of what the rules said
    /// in [`Detail::All`], so that whoever asks for both hears each once.
    pub(super) complaints: Vec<String>,
}

/// One `TestResult`.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    pub(super) device: Device,
    pub(super) assessed: Option<DateTime<Utc>>,
    /// Identifier and version of the benchmark, if it says both.
    pub(super) benchmark: Option<(String, String)>,
    /// One for each rule that said something.
    pub(super) said: Vec<Said>,
    /// By rule, also of those that were not selected: a profile may have refined it.
    pub(super) severities: HashMap<String, Severity>,
    pub(super) values: Values,
}

/// What a rule said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    pub(super) rule: String,
    pub(super) status: FindingStatus,
    pub(super) proof: String,
    pub(super) time: Option<DateTime<Utc>>,
}

/// How much of a document is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Hosts and times.
    Heads,
    /// Also what the rules said.
    All,
}

/// Reads a whole document: a Benchmark with results, an ARF collection, or a `TestResult` alone.
pub(super) fn read<R: BufRead>(
    xml: &mut Xml<R>,
    detail: Detail,
    budget: &mut Budget,
) -> Result<Results, Broken> {
    let mut results = Results::default();
    let mut has_results = false;
    let (mut benchmark, mut title, mut platform) = (None, String::new(), String::new());
    loop {
        match xml.next()? {
            Step::Eof => break,
            Step::Start(Tag::Benchmark) => benchmark = Some(xml.depth()),
            Step::Start(Tag::Title) if benchmark.is_some_and(|depth| xml.depth() == depth + 1) => {
                let text = line(xml, &Values::new(), MAX_ID)?;
                title = if title.is_empty() { text } else { title };
            }
            Step::Start(Tag::Platform) if benchmark.is_some_and(|depth| xml.depth() == depth + 1) => {
                let cpe = one_line(&xml.attribute("idref")?.unwrap_or_default(), MAX_ID);
                platform = if platform.is_empty() { cpe } else { platform };
            }
            Step::Start(Tag::Group | Tag::Rule) => xml.skip()?,
            Step::Start(Tag::TestResult) => {
                has_results = true;
                let mut complaints = Complaints(&mut results.complaints);
                let report = report(xml, detail, budget, &mut complaints)?;
                let problem = match report.device.asset.chars().count() {
                    0 => "has a TestResult that names no target",
                    n if n > MAX_ASSET => "has a target with a name of more than 360 characters",
                    _ => "",
                };
                if problem.is_empty() {
                    budget.take(report.device.asset.len())?;
                    results.reports.push(report);
                } else if detail == Detail::Heads {
                    complaints.add(problem);
                }
            }
            Step::Start(_) | Step::End(_) | Step::Text => {}
        }
    }
    if !has_results {
        return Err(Broken::Bad(match xml.other_xccdf() {
            Some(space) => format!(
                "is of the namespace {space:?}; XCCDF 1.2, which is read, is http://checklists.nist.gov/xccdf/1.2"
            ),
            None => "holds no TestResult of XCCDF 1.2".to_owned(),
        }));
    }
    // Titles of the SCAP Security Guide name the system behind these words.
    let title = title.strip_prefix("Guide to the Secure Configuration of ").unwrap_or(&title);
    let os = if platform.is_empty() { title } else { &platform };
    for report in results.reports.iter_mut().filter(|report| report.device.os.is_empty()) {
        os.clone_into(&mut report.device.os);
    }
    Ok(results)
}

struct Complaints<'a>(&'a mut Vec<String>);

impl Complaints<'_> {
    fn add(&mut self, problem: impl Into<String>) {
        if self.0.len() < MAX_COMPLAINTS {
            self.0.push(problem.into());
        }
    }
}

fn report<R: BufRead>(
    xml: &mut Xml<R>,
    detail: Detail,
    budget: &mut Budget,
    complaints: &mut Complaints<'_>,
) -> Result<Report, Broken> {
    let inside = xml.depth();
    let (end, start) = (xml.attribute("end-time")?, xml.attribute("start-time")?);
    let assessed = end.as_deref().and_then(time).or_else(|| start.as_deref().and_then(time));
    let version = xml.attribute("version")?;
    let mut report = Report { assessed, ..Report::default() };
    let (mut target, mut facts, mut addresses) = (String::new(), Facts::default(), Vec::new());
    let mut places = HashMap::new();
    while xml.depth() >= inside {
        match xml.next()? {
            Step::Start(Tag::BenchmarkRef) => {
                let id = xml.attribute("id")?.filter(|id| !id.is_empty() && id.len() <= MAX_ID);
                report.benchmark = id.zip(version.clone().filter(|version| version.len() <= MAX_ID));
                xml.skip()?;
            }
            Step::Start(Tag::Target) => {
                let name = line(xml, &Values::new(), MAX_ASSET + 1)?;
                target = if target.is_empty() { name } else { target };
            }
            Step::Start(Tag::TargetAddress) => {
                let address = line(xml, &Values::new(), 100)?;
                addresses.extend(usable_address(&address).filter(|_| addresses.len() < 1000));
            }
            Step::Start(Tag::Fact) => {
                let name = xml.attribute("name")?.unwrap_or_default();
                facts.note(&name, line(xml, &Values::new(), MAX_ASSET + 1)?);
            }
            Step::Start(Tag::Platform) => {
                let cpe = one_line(&xml.attribute("idref")?.unwrap_or_default(), MAX_ID);
                if report.device.os.is_empty() {
                    report.device.os = cpe;
                }
                xml.skip()?;
            }
            Step::Start(Tag::SetValue) if detail == Detail::All => {
                let id = xml.attribute("idref")?.unwrap_or_default();
                let value = prose(xml, &Values::new())?;
                budget.take(id.len() + value.len())?;
                report.values.insert(id, value);
            }
            Step::Start(Tag::RuleResult) if detail == Detail::All => {
                let (rule, severity, said) = rule_result(xml, complaints)?;
                if let Some(severity) = severity {
                    budget.take(rule.len())?;
                    report.severities.insert(rule, severity);
                }
                let Some(said) = said else { continue };
                budget.take(said.rule.len() + said.proof.len())?;
                match places.get(&said.rule) {
                    None => {
                        places.insert(said.rule.clone(), report.said.len());
                        report.said.push(said);
                    }
                    Some(&place) => join(&mut report.said[place], said),
                }
            }
            // Facts stand inside of target-facts.
            Step::Start(Tag::RuleResult | Tag::SetValue) => xml.skip()?,
            Step::Start(_) | Step::End(_) | Step::Text | Step::Eof => {}
        }
    }
    report.device.asset = facts.fqdn.or(facts.host_name).unwrap_or_else(|| target.clone());
    report.device.host_name = if target.is_empty() { report.device.asset.clone() } else { target };
    report.device.host_name = one_line(&report.device.host_name, MAX_ID);
    report.device.ip = addresses.iter().find(|ip| ip.is_ipv4()).or(addresses.first()).copied();
    report.device.mac = facts.mac;
    report.device.tracking = Tracking::Ip;
    Ok(report)
}

/// A rule that was checked at several places of a host says the worst of them.
fn join(said: &mut Said, more: Said) {
    let rank = |status| match status {
        FindingStatus::Vulnerable => 4,
        FindingStatus::Potential => 3,
        FindingStatus::Unknown => 2,
        FindingStatus::Informational => 1,
        FindingStatus::Fixed => 0,
    };
    match rank(more.status).cmp(&rank(said.status)) {
        std::cmp::Ordering::Greater => *said = more,
        std::cmp::Ordering::Equal
            if said.proof.len() + more.proof.len() < MAX_TEXT && !said.proof.contains(&more.proof) =>
        {
            said.proof = format!("{}\n{}", said.proof, more.proof);
            said.time = said.time.max(more.time);
        }
        _ => {}
    }
}

/// The rule, its severity if the result has one, and what it said if it said something.
fn rule_result<R: BufRead>(
    xml: &mut Xml<R>,
    complaints: &mut Complaints<'_>,
) -> Result<(String, Option<Severity>, Option<Said>), Broken> {
    let inside = xml.depth();
    let rule = xml.attribute("idref")?.unwrap_or_default();
    let severity = xml.attribute("severity")?.map(|word| severity(&word));
    let time = xml.attribute("time")?.as_deref().and_then(time);
    let (mut word, mut proof) = (String::new(), String::new());
    while xml.depth() >= inside {
        match xml.next()? {
            Step::Start(Tag::Result) => word = line(xml, &Values::new(), 100)?,
            // What would repair it may name an instance as well.
            Step::Start(Tag::Fix) => xml.skip()?,
            Step::Start(Tag::Instance | Tag::Message) => add(&mut proof, &prose(xml, &Values::new())?),
            Step::Start(Tag::CheckContentRef) => {
                if let Some(name) = xml.attribute("name")?.filter(|name| name.len() <= MAX_CHECK) {
                    add(&mut proof, &format!("check {}", one_line(&name, MAX_CHECK)));
                }
            }
            Step::Start(_) | Step::End(_) | Step::Text | Step::Eof => {}
        }
    }
    if rule.is_empty() || rule.chars().count() > MAX_ID {
        complaints.add(format!("has a rule-result whose idref has not 1 to {MAX_ID} characters"));
        return Ok((String::new(), None, None));
    }
    let status = match word.as_str() {
        "pass" | "fixed" => FindingStatus::Fixed,
        "fail" => FindingStatus::Vulnerable,
        "informational" => FindingStatus::Informational,
        "notapplicable" | "notselected" => return Ok((rule, severity, None)),
        "error" | "unknown" | "notchecked" => FindingStatus::Unknown,
        other => {
            complaints.add(format!("says {other:?} as the result of {rule}, which is no word of XCCDF 1.2"));
            FindingStatus::Unknown
        }
    };
    let said = Said { rule: rule.clone(), status, proof, time };
    Ok((rule, severity, Some(said)))
}

/// One more line of proof, as long as there is room.
fn add(proof: &mut String, line: &str) {
    if !line.is_empty() && proof.len() + line.len() < MAX_TEXT {
        proof.push_str(if proof.is_empty() { "" } else { "\n" });
        proof.push_str(line);
    }
}

/// The word of XCCDF.
pub(super) fn severity(word: &str) -> Severity {
    match word.trim() {
        "info" => Severity::Info,
        "low" => Severity::Low,
        "medium" => Severity::Medium,
        "high" => Severity::High,
        "critical" => Severity::Critical,
        _ => Severity::Unknown,
    }
}

/// A time as XML Schema has it; one without a zone is UTC.
pub(super) fn time(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    let with_zone = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    let time = with_zone
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").map(|time| time.and_utc()));
    time.ok().filter(|time| (1..=9999).contains(&time.year()))
}

#[derive(Default)]
struct Facts {
    fqdn: Option<String>,
    host_name: Option<String>,
    mac: Option<String>,
}

impl Facts {
    fn note(&mut self, name: &str, value: String) {
        let place = match name {
            "urn:xccdf:fact:asset:identifier:fqdn" if is_name(&value) => &mut self.fqdn,
            "urn:xccdf:fact:asset:identifier:host_name" if is_name(&value) => &mut self.host_name,
            "urn:xccdf:fact:asset:identifier:mac" | "urn:xccdf:fact:ethernet:MAC" if is_mac(&value) => {
                &mut self.mac
            }
            _ => return,
        };
        place.get_or_insert(value);
    }
}

/// Every host whose names nobody has set up is called localhost; taken for its name, all of them were one.
fn is_name(value: &str) -> bool {
    !value.is_empty() && value != "localhost" && !value.starts_with("localhost.")
}

fn is_mac(value: &str) -> bool {
    let pairs: Vec<&str> = value.split([':', '-']).collect();
    pairs.len() == 6
        && pairs.iter().all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
        && pairs.iter().any(|pair| *pair != "00")
}

/// An address others can reach the host by.
fn usable_address(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.split('%').next()?.parse().ok()?;
    let ip = ip.to_canonical();
    let is_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    (!is_local && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_zone_is_utc() {
        let at = |text| time(text).map(|time| time.to_rfc3339());
        assert_eq!(at("2026-11-22T01:51:12").as_deref(), Some("2026-11-22T01:51:12+00:00"));
        assert_eq!(at(" 2026-11-22T01:51:12.5+02:00 ").as_deref(), Some("2026-11-21T23:51:12.500+00:00"));
        for no in ["", "yesterday", "2026-11-22", "+12026-11-22T01:51:12"] {
            assert_eq!(at(no), None, "{no}");
        }
    }

    #[test]
    fn an_address_is_one_that_others_can_reach() {
        for no in
            ["127.0.0.1", "0:0:0:0:0:0:0:1", "169.254.3.4", "fe80::1%eth0", "0.0.0.0", "::", "web-01", ""]
        {
            assert_eq!(usable_address(no), None, "{no}");
        }
        assert_eq!(usable_address("::ffff:192.0.2.1"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(usable_address("fd00:0:0:0:0:0:0:2"), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn a_card_is_one_with_an_address() {
        assert!(is_mac("02:00:5E:00:53:01") && is_mac("02-00-5e-00-53-01"));
        assert!(!is_mac("00:00:00:00:00:00") && !is_mac("02:00:5E:00:53") && !is_mac("lo"));
    }

    #[test]
    fn what_is_kept_of_a_document_is_bounded() {
        let mut budget = Budget::default();
        let taken = (0..1000).take_while(|_| budget.take(1 << 20).is_ok()).count();
        assert_eq!(taken, 63);
    }
}
