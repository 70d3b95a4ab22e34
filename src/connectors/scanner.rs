//! What a vulnerability scanner can do, whatever product it is. Each has a folder of its own beside this file.

use super::ClientError;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;

/// A scanner. Its clock is not ours: times of one scanner are compared with each other only.
pub trait Scanner: Send + Sync {
    /// Everything it knows of vulnerabilities, or what changed after `since` if it can tell.
    fn knowledge(&self, since: Option<DateTime<Utc>>) -> BoxStream<'_, Result<Vulnerability, ScannerError>>;

    /// What it found at the devices of one group, a device at a time. An item that does not make sense is an
    /// [`ScannerError::Item`] and others follow it; any other error is the last item.
    fn assessments<'a>(&'a self, group: &'a str) -> BoxStream<'a, Result<Assessment, ScannerError>>;

    /// Begins a scan. `request.marker` is the name of the scan at the scanner, so that [`Scanner::find`] can tell
    /// whether an attempt that died had begun it.
    fn launch<'a>(&'a self, request: &'a ScanRequest) -> BoxFuture<'a, Result<ScanHandle, ScannerError>>;

    /// The scan of this marker, if there is one.
    fn find<'a>(
        &'a self,
        request: &'a ScanRequest,
    ) -> BoxFuture<'a, Result<Option<ScanHandle>, ScannerError>>;

    /// How far a scan is.
    fn status<'a>(&'a self, scan: &'a ScanHandle) -> BoxFuture<'a, Result<ScanStatus, ScannerError>>;

    /// Whether it is a program that rosterd has to run itself: then a scan is a row of a job of ours, and this scanner only
    /// says what came of it.
    fn is_run_by_us(&self) -> bool {
        false
    }

    /// Before a scan that rosterd runs itself is written down: notes in `request.known` what there is already, so that
    /// nothing of it is taken for a result later.
    fn prepare<'a>(&'a self, request: &'a mut ScanRequest) -> BoxFuture<'a, Result<(), ScannerError>> {
        let _ = request;
        async { Ok(()) }.boxed()
    }

    /// How a scan ended of which nothing more will come, because the row that ran it is over.
    fn outcome<'a>(&'a self, scan: &'a ScanHandle) -> BoxFuture<'a, Result<ScanStatus, ScannerError>> {
        self.status(scan)
    }

    /// What a finished scan found. A device of the request about which it says nothing was not covered.
    fn results<'a>(&'a self, scan: &'a ScanHandle) -> BoxStream<'a, Result<ScanResult, ScannerError>>;

    /// Whether a vulnerability that an assessment of the device does not mention is known not to be there.
    fn silence_means_fixed(&self) -> bool;
}

/// An entry of the scanner's knowledge base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Vulnerability {
    /// The scanner's identifier, 1 to 255 characters.
    pub id: String,
    /// One line.
    pub title: String,
    /// What it is, as plain text.
    pub description: String,
    /// What an attacker gains, or why it matters.
    pub threat: String,
    /// What to do about it.
    pub solution: String,
    /// The scanner's word for how bad it is.
    pub severity: Severity,
    /// CVSS version 2 base score, 0 to 10.
    pub cvss2: Option<f64>,
    /// CVSS version 3 base score, 0 to 10.
    pub cvss3: Option<f64>,
    /// The scanner's own category.
    pub category: Option<String>,
    /// Whether there is a patch.
    pub patchable: Option<bool>,
    /// Affected software.
    pub software: Option<String>,
    /// By the scanner's clock.
    pub updated: Option<DateTime<Utc>>,
    /// Identifiers others have for it.
    pub references: Vec<Reference>,
}

impl Vulnerability {
    /// Bytes of its long texts.
    pub(crate) fn text_bytes(&self) -> usize {
        self.description.len() + self.threat.len() + self.solution.len()
    }

    /// One of which nothing is known but its identifier.
    pub fn bare(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            title: id.to_owned(),
            description: String::new(),
            threat: String::new(),
            solution: String::new(),
            severity: Severity::Unknown,
            cvss2: None,
            cvss3: None,
            category: None,
            patchable: None,
            software: None,
            updated: None,
            references: Vec::new(),
        }
    }
}

/// How bad, by the scanner's own word. The scores are the least of the qualitative ratings of CVSS 3.1, section 5, and
/// hold where a scanner gives no score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Severity {
    Unknown,
    Info,
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// An identifier of a vulnerability elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Reference {
    /// Who gives it.
    pub kind: ReferenceKind,
    /// The identifier or address itself.
    pub text: String,
}

/// Who gives identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs)]
pub enum ReferenceKind {
    Cve,
    Cce,
    Microsoft,
    Vendor,
}

impl ReferenceKind {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cve => "CVE",
            Self::Cce => "CCE",
            Self::Microsoft => "MS",
            Self::Vendor => "VENDOR",
        }
    }
}

/// A device as the scanner knows it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Device {
    /// The scanner's identifier of the asset, 1 to 360 characters.
    pub asset: String,
    /// Its address, if the scanner reached it by one.
    pub ip: Option<IpAddr>,
    /// Its name, or empty.
    pub host_name: String,
    /// Its network card.
    pub mac: Option<String>,
    /// The operating system in the scanner's words, or empty.
    pub os: String,
    /// The instance at a cloud.
    pub instance: Option<String>,
    /// The region at a cloud.
    pub region: Option<String>,
    /// How the scanner finds it again.
    pub tracking: Tracking,
}

/// How a scanner finds a device again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs)]
pub enum Tracking {
    #[default]
    Ip,
    Agent,
    Ec2,
}

impl Tracking {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "IP",
            Self::Agent => "AGENT",
            Self::Ec2 => "EC2",
        }
    }
}

/// What was found at one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Assessment {
    /// The device.
    pub device: Device,
    /// When the scanner looked at it last, by its own clock.
    pub assessed: Option<DateTime<Utc>>,
    /// What it found.
    pub findings: Vec<Finding>,
    /// What the same document says of the vulnerabilities in `findings`. Empty where the knowledge base is asked for
    /// apart.
    pub vulnerabilities: Vec<Vulnerability>,
}

impl Assessment {
    /// Bytes of its long texts.
    pub(crate) fn text_bytes(&self) -> usize {
        let proofs: usize = self.findings.iter().map(|finding| finding.proof.len()).sum();
        proofs + self.vulnerabilities.iter().map(Vulnerability::text_bytes).sum::<usize>()
    }
}

/// What a scanner says of one vulnerability at one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// [`Vulnerability::id`].
    pub vulnerability: String,
    /// What it says.
    pub status: FindingStatus,
    /// 0: none.
    pub port: u16,
    /// `tcp`, `udp`, or where else it was found; may be empty.
    pub protocol: String,
    /// What the scanner saw, as plain text.
    pub proof: String,
    /// When it saw it first, by its own clock.
    pub first_found: Option<DateTime<Utc>>,
    /// When it saw it last.
    pub last_found: Option<DateTime<Utc>>,
    /// When it looked last, whatever it saw.
    pub last_updated: Option<DateTime<Utc>>,
    /// How often it saw it.
    pub times_seen: Option<i32>,
    /// Whether it is in the kernel that runs, for vulnerabilities of kernels.
    pub active_kernel: Option<bool>,
}

/// What a finding says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FindingStatus {
    /// It is there.
    Vulnerable,
    /// It may be there.
    Potential,
    /// It was looked for and is not there.
    Fixed,
    /// Told for information only.
    Informational,
    /// The scanner tried and could not tell.
    Unknown,
}

impl FindingStatus {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vulnerable => "vulnerable",
            Self::Potential => "potential",
            Self::Fixed => "fixed",
            Self::Informational => "informational",
            Self::Unknown => "unknown",
        }
    }
}

/// A scan to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// Unique, and the same in every attempt.
    pub marker: String,
    /// What to look for.
    pub kind: ScanKind,
    /// The scanner's group of these devices.
    pub group: String,
    /// The devices.
    pub targets: Vec<Target>,
    /// What [`Scanner::prepare`] noted.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub known: Value,
}

/// What a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScanKind {
    /// The vulnerabilities of the targets.
    Vulnerabilities,
    /// Whether the targets are there at all.
    Discovery,
}

/// A device to scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// [`Device::asset`].
    pub asset: String,
    /// [`Device::ip`].
    pub ip: Option<IpAddr>,
    /// [`Device::host_name`].
    pub host_name: String,
    /// [`Device::instance`].
    pub instance: Option<String>,
    /// [`Device::region`].
    pub region: Option<String>,
    /// [`Assessment::assessed`] of the newest assessment there is: only what is newer is a result of this scan.
    pub assessed: Option<DateTime<Utc>>,
    /// What to look for, by [`Vulnerability::id`].
    pub vulnerabilities: Vec<String>,
}

/// A scan that was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanHandle {
    /// The scanner's reference of it, 1 to 100 characters.
    pub key: String,
    /// What the connector wants to remember of it.
    pub detail: Value,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ScanStatus {
    Queued,
    Processing,
    Paused,
    Finished,
    Error,
    Stopped,
    Canceled,
}

impl ScanStatus {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Error => "error",
            Self::Stopped => "stopped",
            Self::Canceled => "canceled",
        }
    }

    /// Whether nothing more will come of it, results or not.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Error | Self::Stopped | Self::Canceled)
    }
}

/// What a scan says of one device.
#[derive(Debug, Clone, PartialEq)]
pub enum ScanResult {
    /// It was there, and this was found.
    Assessed(Assessment),
    /// It did not answer.
    Dead {
        /// [`Device::asset`], if the scanner knows it by one.
        asset: Option<String>,
        /// Its address, if that is what the scanner tried.
        ip: Option<IpAddr>,
        /// What the scanner saw.
        proof: String,
    },
}

/// Why a scanner did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ScannerError {
    /// A call got no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The source or its Payload does not make sense.
    #[error("source {name}: {problem}")]
    Source {
        /// `SourceConfig.Source` and ID.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// One item does not make sense; the others are not touched by it.
    #[error("{item}: {problem}")]
    Item {
        /// Which.
        item: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What it answered as a whole does not make sense.
    #[error("{0}")]
    Answer(String),
}

impl ScannerError {
    /// Whether another attempt may succeed.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Client(error) => error.is_passing(),
            Self::Source { .. } | Self::Item { .. } => false,
            Self::Answer(_) => true,
        }
    }
}
