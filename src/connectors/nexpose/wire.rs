//! The JSON of API version 3 of the console, as far as it is used. Never leaves this folder.
//!
//! What may be missing is an `Option` or empty: consoles leave out what they have nothing for. Identifiers of assets,
//! sites and scans are whole numbers, never anything that was a float on the way.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One page of a list. Its items are read one by one, so that one that makes no sense spoils no other.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) page: PageInfo,
    #[serde(default)]
    pub(super) resources: Vec<Box<RawValue>>,
}

/// Which page it is, and of how many.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageInfo {
    /// From 0.
    pub(super) number: usize,
    /// What a full page holds; may be less than was asked for.
    pub(super) size: usize,
    pub(super) total_pages: usize,
    pub(super) total_resources: usize,
}

/// A list that comes whole.
#[derive(Debug, Deserialize)]
pub(super) struct Resources<T> {
    #[serde(default = "Vec::new")]
    pub(super) resources: Vec<T>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asset {
    pub(super) id: i64,
    pub(super) ip: Option<String>,
    pub(super) mac: Option<String>,
    pub(super) host_name: Option<String>,
    pub(super) os: Option<String>,
    pub(super) os_fingerprint: Option<OsFingerprint>,
    /// `None` where a list leaves it out.
    pub(super) history: Option<Vec<Event>>,
    pub(super) ids: Option<Vec<UniqueId>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct OsFingerprint {
    pub(super) description: Option<String>,
    pub(super) vendor: Option<String>,
    pub(super) product: Option<String>,
    pub(super) version: Option<String>,
}

/// Something that happened to an asset.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    pub(super) date: Option<String>,
    pub(super) scan_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UniqueId {
    pub(super) source: Option<String>,
}

/// A vulnerability at an asset.
#[derive(Debug, Deserialize)]
pub(super) struct AssetVulnerability {
    pub(super) id: String,
    #[serde(default)]
    pub(super) status: String,
    pub(super) since: Option<String>,
    pub(super) instances: Option<i64>,
    pub(super) results: Option<Vec<CheckResult>>,
}

/// Where and how it was found.
#[derive(Debug, Deserialize)]
pub(super) struct CheckResult {
    pub(super) port: Option<i64>,
    pub(super) protocol: Option<String>,
    pub(super) key: Option<String>,
    pub(super) proof: Option<String>,
    pub(super) since: Option<String>,
    #[serde(default)]
    pub(super) status: String,
}

/// Both are given; which of them holds markup differs.
#[derive(Debug, Deserialize)]
pub(super) struct Text {
    pub(super) html: Option<String>,
    pub(super) text: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct KnownVulnerability {
    pub(super) id: String,
    #[serde(default)]
    pub(super) title: String,
    pub(super) description: Option<Text>,
    pub(super) severity: Option<String>,
    pub(super) cvss: Option<Cvss>,
    pub(super) categories: Option<Vec<String>>,
    pub(super) cves: Option<Vec<String>>,
    /// A day.
    pub(super) modified: Option<String>,
    /// A day.
    pub(super) added: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Cvss {
    pub(super) v2: Option<Score>,
    pub(super) v3: Option<Score>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Score {
    pub(super) score: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Solution {
    pub(super) summary: Option<Text>,
    pub(super) steps: Option<Text>,
    pub(super) applies_to: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct VulnerabilityReference {
    pub(super) reference: Option<String>,
    pub(super) source: Option<String>,
    pub(super) advisory: Option<Advisory>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Advisory {
    pub(super) href: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Scan {
    pub(super) id: i64,
    #[serde(rename = "scanName")]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) status: String,
    /// How many assets it found.
    pub(super) assets: Option<u64>,
}

/// A scan of some hosts of a site. What is missing is as the site has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewScan<'a> {
    pub(super) name: &'a str,
    pub(super) hosts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) template_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) engine_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CreatedScan {
    pub(super) id: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct TemplateName {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct CreatedTemplate {
    pub(super) id: String,
}

/// What a refusal says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Refused {
    #[serde(default)]
    pub(super) message: String,
}
