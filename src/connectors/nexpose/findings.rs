//! What the console says of a vulnerability at an asset, as findings.
//!
//! A finding is known by its vulnerability, port and protocol. Results at the same port are told apart by their key (the
//! path of a page, the name of a file), which goes behind the protocol: `tcp /login`. It does so for a single result
//! too: what another result does must not rename this one.

use super::asset::instant;
use super::prose;
use super::wire::{AssetVulnerability, CheckResult};
use crate::connectors::scanner::{Finding, FindingStatus};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Of a protocol with its key, in characters.
const MAX_PROTOCOL: usize = 255;

/// The findings of an asset that was assessed then. Two of the same name are one, and the worse of them.
pub(super) fn findings(
    vulnerabilities: Vec<AssetVulnerability>,
    assessed: Option<DateTime<Utc>>,
) -> Vec<Finding> {
    let mut all: BTreeMap<(String, u16, String), Finding> = BTreeMap::new();
    for vulnerability in vulnerabilities {
        for finding in of_one(vulnerability, assessed) {
            let name = (finding.vulnerability.clone(), finding.port, finding.protocol.clone());
            match all.get_mut(&name) {
                Some(other) if rank(other.status) >= rank(finding.status) => {}
                Some(other) => *other = finding,
                None => drop(all.insert(name, finding)),
            }
        }
    }
    all.into_values().collect()
}

fn of_one(vulnerability: AssetVulnerability, assessed: Option<DateTime<Utc>>) -> Vec<Finding> {
    let since = vulnerability.since.as_deref().and_then(instant);
    let finding = Finding {
        vulnerability: vulnerability.id,
        status: status(&vulnerability.status),
        port: 0,
        protocol: String::new(),
        proof: String::new(),
        first_found: since,
        last_found: None,
        last_updated: assessed,
        times_seen: vulnerability.instances.and_then(|instances| i32::try_from(instances).ok()),
        active_kernel: None,
    };
    let results = vulnerability.results.unwrap_or_default();
    // Some findings have no results, and are findings all the same.
    let findings = if results.is_empty() {
        vec![finding]
    } else {
        results.into_iter().map(|result| of_result(&finding, result)).collect()
    };
    findings
        .into_iter()
        .map(|finding| Finding { last_found: last_found(&finding, assessed), ..finding })
        .collect()
}

fn of_result(finding: &Finding, result: CheckResult) -> Finding {
    Finding {
        // A result without a status of its own says what the finding says.
        status: if result.status.is_empty() { finding.status } else { status(&result.status) },
        port: result.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        protocol: protocol(&result),
        proof: result.proof.as_deref().map(prose::plain).unwrap_or_default(),
        first_found: finding.first_found.or_else(|| result.since.as_deref().and_then(instant)),
        // `instances` counts the results.
        times_seen: None,
        ..finding.clone()
    }
}

/// What is there was there when the asset was assessed; it is never without a date if there is any.
fn last_found(finding: &Finding, assessed: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    match finding.status {
        FindingStatus::Vulnerable | FindingStatus::Potential => assessed.or(finding.first_found),
        _ => None,
    }
}

fn protocol(result: &CheckResult) -> String {
    let protocol = result.protocol.as_deref().unwrap_or_default().trim().to_ascii_lowercase();
    let key = prose::one_line(result.key.as_deref().unwrap_or_default(), usize::MAX);
    let text = if key.is_empty() { protocol } else { format!("{protocol} {key}") };
    prose::one_line(&text, MAX_PROTOCOL)
}

/// The words of results and of findings. Those it does not know say nothing.
fn status(word: &str) -> FindingStatus {
    let word = word.trim().to_ascii_lowercase().replace('_', "-");
    match word.as_str() {
        "vulnerable" | "vulnerable-exploited" | "vulnerable-version" => FindingStatus::Vulnerable,
        "potential" | "vulnerable-potential" => FindingStatus::Potential,
        "invulnerable" | "not-vulnerable" => FindingStatus::Fixed,
        // Somebody decided at the console that it does not count.
        word if word.ends_with("-with-exception-applied") => FindingStatus::Fixed,
        _ => FindingStatus::Unknown,
    }
}

fn rank(status: FindingStatus) -> u8 {
    match status {
        FindingStatus::Fixed => 0,
        FindingStatus::Informational => 1,
        FindingStatus::Unknown => 2,
        FindingStatus::Potential => 3,
        FindingStatus::Vulnerable => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Vec<Finding> {
        findings(serde_json::from_value(value).unwrap(), instant("2026-01-05T00:00:00Z"))
    }

    #[test]
    fn each_word_has_a_meaning_and_an_unknown_one_says_nothing() {
        for (word, meaning) in [
            ("vulnerable", FindingStatus::Vulnerable),
            ("vulnerable-version", FindingStatus::Vulnerable),
            ("VULNERABLE_VERSION", FindingStatus::Vulnerable),
            ("vulnerable-potential", FindingStatus::Potential),
            ("potential", FindingStatus::Potential),
            ("vulnerable-with-exception-applied", FindingStatus::Fixed),
            ("vulnerable-version-with-exception-applied", FindingStatus::Fixed),
            ("vulnerable-potential-with-exception-applied", FindingStatus::Fixed),
            ("invulnerable", FindingStatus::Fixed),
            ("not-vulnerable", FindingStatus::Fixed),
            ("no-results", FindingStatus::Unknown),
            ("error", FindingStatus::Unknown),
            ("skipped-dos", FindingStatus::Unknown),
            ("unknown", FindingStatus::Unknown),
            ("", FindingStatus::Unknown),
            ("ünknown-thing", FindingStatus::Unknown),
        ] {
            assert_eq!(status(word), meaning, "{word}");
        }
    }

    #[test]
    fn results_at_one_port_are_told_apart_by_their_keys_and_nothing_hangs_on_the_vulnerability() {
        let found = read(
            json!([{"id": "tls-old", "status": "vulnerable", "since": "2026-01-01T00:00:00Z", "results": [
                {"port": 443, "protocol": "TCP", "key": "/a", "status": "vulnerable-version", "proof": "<p>old</p>"},
                {"port": 443, "protocol": "tcp", "key": "/b", "status": "vulnerable"},
                {"port": 8443, "protocol": "tcp", "key": "", "status": "not-vulnerable"},
            ]}]),
        );
        let names: Vec<_> =
            found.iter().map(|f| (f.vulnerability.as_str(), f.port, f.protocol.as_str())).collect();
        assert_eq!(names, [("tls-old", 443, "tcp /a"), ("tls-old", 443, "tcp /b"), ("tls-old", 8443, "tcp")]);
        assert_eq!(found[0].proof, "old");
        assert_eq!((found[0].last_found, found[2].last_found), (instant("2026-01-05T00:00:00Z"), None));
    }

    #[test]
    fn of_two_results_with_one_name_the_worse_counts() {
        let found = read(json!([{"id": "v", "status": "vulnerable", "results": [
            {"port": 70000, "protocol": "tcp", "status": "not-vulnerable"},
            {"port": -1, "protocol": "tcp", "status": "vulnerable"},
            {"protocol": "tcp", "status": "unknown"},
        ]}]));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].status, found[0].port), (FindingStatus::Vulnerable, 0));
    }

    #[test]
    fn a_finding_without_results_is_one_and_has_a_date() {
        let vulnerabilities = json!([{"id": "v", "status": "vulnerable", "since": "2026-01-01T00:00:00Z"}]);
        let found = findings(serde_json::from_value(vulnerabilities).unwrap(), None);
        assert_eq!((found.len(), found[0].port, found[0].status), (1, 0, FindingStatus::Vulnerable));
        assert_eq!(found[0].last_found, instant("2026-01-01T00:00:00Z"));
    }
}
