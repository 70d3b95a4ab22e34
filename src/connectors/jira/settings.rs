//! `SourceConfig.Payload` of a JIRA: which project, and what things are called there.

use serde::Deserialize;
use serde::de::value::Error;
use serde::de::{IgnoredAny, IntoDeserializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// Which JIRA it is. Both speak of the same things in other shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Flavour {
    /// Server and Data Center: REST v2, texts are texts, users have names.
    Server,
    /// Cloud: REST v3, long texts are documents, users have account IDs.
    Cloud,
}

impl Flavour {
    /// By the host alone, where Payload does not say.
    fn of_host(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        if host.ends_with(".atlassian.net") || host == "api.atlassian.com" {
            Self::Cloud
        } else {
            Self::Server
        }
    }
}

/// What rosterd knows of a ticket, and a JIRA may have a field for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TicketField {
    Organization,
    Solution,
    Priority,
    Cvss,
    AlertDate,
    DiscoveredBy,
    Group,
    Asset,
    HostName,
    Ip,
    Mac,
    Os,
    OsType,
    ServicePort,
    Vulnerability,
    VulnerabilityTitle,
    Cve,
    VendorReferences,
    Category,
    AssignmentGroup,
    Application,
    LastChecked,
    Exception,
    ExceptionExpires,
}

impl TicketField {
    /// Whether rosterd sets it; the others are only read.
    pub(super) fn is_written(self) -> bool {
        !matches!(self, Self::Exception | Self::ExceptionExpires)
    }
}

/// The Payload, checked.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) project: String,
    pub(super) flavour: Flavour,
    pub(super) issue_type: String,
    /// The status of rosterd, and JIRA's.
    pub(super) status_map: BTreeMap<String, String>,
    /// The field of rosterd, and the name or ID of JIRA's.
    pub(super) field_map: BTreeMap<TicketField, String>,
    /// The status of rosterd, and JIRA's resolution.
    pub(super) resolution_map: BTreeMap<String, String>,
    /// From each status (JIRA's, in lower case) those that can be reached in one step.
    pub(super) workflow: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    project: String,
    flavour: Option<Flavour>,
    issue_type: String,
    #[serde(default)]
    status_map: BTreeMap<String, String>,
    #[serde(default)]
    field_map: BTreeMap<String, String>,
    #[serde(default)]
    resolution_map: BTreeMap<String, String>,
    #[serde(default)]
    workflow: BTreeMap<String, Vec<String>>,
    // The HTTP client reads these two.
    #[serde(rename = "tls_ca_pem")]
    _tls_ca_pem: Option<IgnoredAny>,
    #[serde(rename = "tls_ca_file")]
    _tls_ca_file: Option<IgnoredAny>,
}

type IntoName<'a> = <&'a str as IntoDeserializer<'a, Error>>::Deserializer;

impl Settings {
    /// From the Payload of a source at `host`. An error finishes "source JIRA: ".
    pub(super) fn new(payload: &Value, host: &str) -> Result<Self, String> {
        let payload: Payload = serde_path_to_error::deserialize(payload).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!(" at `{path}`") };
            format!("its Payload does not make sense{place}: {}", error.inner())
        })?;
        let mut field_map = BTreeMap::new();
        for (ours, theirs) in payload.field_map {
            let name: IntoName<'_> = ours.as_str().into_deserializer();
            let field = TicketField::deserialize(name).map_err(|error| {
                format!("`field_map.{ours}` in its Payload is no field of rosterd: {error}")
            })?;
            if theirs.trim().is_empty() {
                return Err(format!(
                    "`field_map.{ours}` in its Payload is empty; give a name or ID of JIRA's"
                ));
            }
            field_map.insert(field, theirs);
        }
        let settings = Self {
            flavour: payload.flavour.unwrap_or_else(|| Flavour::of_host(host)),
            project: payload.project,
            issue_type: payload.issue_type,
            workflow: BTreeMap::new(),
            status_map: payload.status_map,
            field_map,
            resolution_map: payload.resolution_map,
        };
        settings.check()?;
        let theirs = |status: &String| settings.to_jira(status).to_owned();
        let workflow = payload
            .workflow
            .iter()
            .map(|(from, to)| (theirs(from).to_lowercase(), to.iter().map(theirs).collect()))
            .collect();
        Ok(Self { workflow, ..settings })
    }

    fn check(&self) -> Result<(), String> {
        let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.project.is_empty() || !self.project.chars().all(is_key) {
            return Err(format!(
                "`project` in its Payload is {:?}; give the key of a project, such as SEC",
                self.project
            ));
        }
        if self.issue_type.trim().is_empty() {
            return Err("`issue_type` in its Payload is empty; give the name of an issue type".to_owned());
        }
        let maps = [("status_map", &self.status_map), ("resolution_map", &self.resolution_map)];
        for (name, map) in maps {
            if let Some((ours, _)) = map.iter().find(|(_, theirs)| theirs.trim().is_empty()) {
                return Err(format!("`{name}.{ours}` in its Payload is empty; give JIRA's name"));
            }
        }
        // Coming back, a status of JIRA must mean one of ours.
        for (ours, theirs) in &self.status_map {
            let twin = self.sharing(theirs).find(|other| {
                *other != ours
                    && same(
                        self.resolution_map.get(*other).map_or("", String::as_str),
                        self.resolution_map.get(ours).map_or("", String::as_str),
                    )
            });
            if let Some(twin) = twin {
                return Err(format!(
                    "`status_map` in its Payload has {theirs:?} for {ours} and for {twin}; tell them apart in \
                     `resolution_map`, or give each a status of its own"
                ));
            }
        }
        Ok(())
    }

    /// Our statuses that this status of JIRA's stands for.
    fn sharing<'a>(&'a self, theirs: &'a str) -> impl Iterator<Item = &'a String> {
        self.status_map.iter().filter(move |(_, other)| same(other, theirs)).map(|(ours, _)| ours)
    }

    /// JIRA's word for a status of ours: the same word where none is mapped.
    pub(super) fn to_jira<'a>(&'a self, status: &'a str) -> &'a str {
        self.status_map.get(status).map_or(status, String::as_str)
    }

    /// Our word for a status of JIRA's, which a resolution may tell from others; JIRA's own where none is mapped to it.
    pub(super) fn to_rosterd(&self, status: &str, resolution: Option<&str>) -> String {
        let of = |ours: &String| self.resolution_map.get(ours);
        let mut sharing: Vec<&String> = self.sharing(status).collect();
        if sharing.len() > 1 {
            let told = |ours: &&String| match (of(ours), resolution) {
                (Some(one), Some(other)) => same(one, other),
                _ => false,
            };
            let one = sharing.iter().copied().find(told);
            sharing =
                one.or_else(|| sharing.into_iter().find(|ours| of(ours).is_none())).into_iter().collect();
        }
        sharing.first().map_or_else(|| status.to_owned(), |ours| (*ours).clone())
    }

    /// Whether an issue of this status and resolution is where `wanted`, a status of ours, says.
    pub(super) fn is_there(&self, wanted: &str, status: &str, resolution: Option<&str>) -> bool {
        same(self.to_jira(wanted), status)
            && (self.sharing(status).count() < 2 || self.to_rosterd(status, resolution) == wanted)
    }
}

/// JIRA's names are compared without regard to case, as JQL does.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    names
        .map(|other| (strsim::jaro_winkler(&name, &other.to_lowercase()), other))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(more: &Value) -> Result<Settings, String> {
        let mut payload = json!({"project": "SEC", "issue_type": "Request"});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Settings::new(&payload, "jira.example.com")
    }

    #[test]
    fn the_host_says_which_jira_it_is_unless_payload_does() {
        let flavour = |host: &str, more: Value| {
            let mut payload = json!({"project": "SEC", "issue_type": "Request"});
            payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Settings::new(&payload, host).unwrap().flavour
        };
        assert_eq!(flavour("jira.example.com", json!({})), Flavour::Server);
        assert_eq!(flavour("Acme.Atlassian.net", json!({})), Flavour::Cloud);
        assert_eq!(flavour("atlassian.net.example.com", json!({})), Flavour::Server);
        assert_eq!(flavour("acme.atlassian.net", json!({"flavour": "server"})), Flavour::Server);
        assert_eq!(flavour("127.0.0.1", json!({"flavour": "cloud"})), Flavour::Cloud);
    }

    #[test]
    fn every_problem_names_the_field() {
        for (more, words) in [
            (json!({"projekt": "SEC"}), "unknown field `projekt`"),
            (json!({"project": "SEC OR 1"}), "`project` in its Payload"),
            (json!({"project": 5}), "`project`"),
            (json!({"issue_type": " "}), "`issue_type` in its Payload is empty"),
            (json!({"flavour": "datacenter"}), "expected `server` or `cloud`"),
            (json!({"field_map": {"host_nam": "Host"}}), "unknown variant `host_nam`"),
            (json!({"field_map": {"host_name": 5}}), "`field_map.host_name`"),
            (json!({"field_map": {"host_name": " "}}), "`field_map.host_name` in its Payload is empty"),
            (json!({"status_map": {"Open": ""}}), "`status_map.Open`"),
            (json!({"workflow": {"Open": "Closed"}}), "`workflow.Open`"),
            (
                json!({"status_map": {"Closed-Remediated": "Closed", "Closed-Error": "closed"}}),
                "tell them apart in `resolution_map`",
            ),
        ] {
            let problem = settings(&more).unwrap_err();
            assert!(problem.contains(words) && problem.contains("Payload"), "{problem}");
        }
        let missing = Settings::new(&json!({"project": "SEC"}), "h").unwrap_err();
        assert!(missing.contains("missing field `issue_type`"), "{missing}");
    }

    #[test]
    fn what_the_http_client_reads_is_allowed() {
        assert!(settings(&json!({"tls_ca_file": "corp.pem"})).is_ok());
        assert!(settings(&json!({"tls_ca_pem": "-----BEGIN"})).is_ok());
    }

    #[test]
    fn a_status_goes_there_and_comes_back() {
        let settings = settings(&json!({
            "status_map": {
                "In-Progress": "In Progress", "Closed-Remediated": "Closed", "Closed-False-Positive": "Closed",
                "Closed-Error": "Closed",
            },
            "resolution_map": {"Closed-Remediated": "Fixed", "Closed-False-Positive": "Won't Fix"},
            "workflow": {"In-Progress": ["Closed-Remediated", "Waiting"]},
        }))
        .unwrap();
        assert_eq!(settings.to_jira("In-Progress"), "In Progress");
        assert_eq!(settings.to_jira("Open"), "Open");
        let back = |status: &str, resolution: Option<&str>| settings.to_rosterd(status, resolution);
        assert_eq!(back("IN PROGRESS", None), "In-Progress");
        assert_eq!(back("Closed", Some("fixed")), "Closed-Remediated");
        assert_eq!(back("closed", Some("Won't Fix")), "Closed-False-Positive");
        assert_eq!(back("Closed", Some("Duplicate")), "Closed-Error");
        assert_eq!(back("Waiting", None), "Waiting");
        assert!(settings.is_there("Closed-Remediated", "Closed", Some("Fixed")));
        assert!(!settings.is_there("Closed-Remediated", "Closed", Some("Won't Fix")));
        assert!(settings.is_there("In-Progress", "in progress", Some("whatever")));
        assert_eq!(settings.workflow["in progress"], ["Closed", "Waiting"]);
    }

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let names = ["Host Name", "Hostile", "Due Date"];
        assert_eq!(nearest("hostname", names.into_iter()), Some("Host Name"));
        assert_eq!(nearest("zzz", names.into_iter()), None);
    }
}
