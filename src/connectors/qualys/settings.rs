//! `SourceConfig.Payload` of a Qualys: how scans are launched, and which findings are asked for.

use super::api::Form;
use crate::connectors::scanner::ScanKind;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// The Payload, checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    option_profile_id: Option<u64>,
    discovery_option_profile_id: Option<u64>,
    scanner_appliances: Option<Appliances>,
    #[serde(default)]
    external_groups: Vec<String>,
    ip_network_id: Option<u64>,
    #[serde(default)]
    kernel_filter: u8,
    // The HTTP client reads these two.
    #[serde(rename = "tls_ca_pem")]
    _tls_ca_pem: Option<IgnoredAny>,
    #[serde(rename = "tls_ca_file")]
    _tls_ca_file: Option<IgnoredAny>,
}

/// What scans.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "give a list of the numbers of scanner appliances, or \"External\"")]
enum Appliances {
    Word(External),
    Numbers(Vec<u64>),
}

/// The scanners of Qualys itself, on the internet.
#[derive(Debug, Deserialize)]
enum External {
    External,
}

impl Settings {
    /// From the Payload of a source. An error finishes "source Qualys: ".
    pub(super) fn new(payload: &Value) -> Result<Self, String> {
        let settings: Self = serde_path_to_error::deserialize(payload).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!(" at `{path}`") };
            format!("its Payload does not make sense{place}: {}", error.inner())
        })?;
        if settings.kernel_filter > 4 {
            return Err(format!("`kernel_filter` in its Payload is {}, give 0 to 4", settings.kernel_filter));
        }
        if matches!(&settings.scanner_appliances, Some(Appliances::Numbers(ids)) if ids.is_empty()) {
            return Err(
                "`scanner_appliances` in its Payload is empty, give at least one number or \"External\""
                    .to_owned(),
            );
        }
        Ok(settings)
    }

    /// The parameters that say how a group is scanned.
    pub(super) fn launch(&self, kind: ScanKind, group: &str) -> Result<Form, String> {
        let (profile, field) = match kind {
            ScanKind::Vulnerabilities => (self.option_profile_id, "option_profile_id"),
            ScanKind::Discovery => (self.discovery_option_profile_id, "discovery_option_profile_id"),
        };
        let profile = profile.ok_or_else(|| {
            format!("`{field}` in its Payload is missing, give the number of an option profile")
        })?;
        let mut form = vec![("option_id", profile.to_string())];
        let is_external = self.external_groups.iter().any(|external| external == group);
        form.push(match &self.scanner_appliances {
            _ if is_external => ("iscanner_name", "External".to_owned()),
            Some(Appliances::Word(External::External)) => ("iscanner_name", "External".to_owned()),
            Some(Appliances::Numbers(ids)) => ("iscanner_id", csv(ids)),
            None => {
                return Err(
                    "`scanner_appliances` in its Payload is missing, give a list of the numbers of scanner \
                            appliances, or \"External\""
                        .to_owned(),
                );
            }
        });
        form.extend(self.ip_network_id.map(|id| ("ip_network_id", id.to_string())));
        Ok(form)
    }

    /// The parameters that choose among findings. Fixed ones are asked for, so that what was repaired is told.
    pub(super) fn findings(&self) -> Form {
        vec![
            ("show_reopened_info", "1".to_owned()),
            ("show_results", "1".to_owned()),
            ("status", "New,Active,Re-Opened,Fixed".to_owned()),
            ("arf_kernel_filter", self.kernel_filter.to_string()),
        ]
    }

    /// The network of which addresses are meant, where there are several.
    pub(super) fn network(&self) -> Option<u64> {
        self.ip_network_id
    }
}

fn csv(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn launch(payload: Value, kind: ScanKind, group: &str) -> Result<Form, String> {
        Settings::new(&payload)?.launch(kind, group)
    }

    #[test]
    fn a_scan_is_launched_with_what_the_payload_says() {
        let payload = json!({
            "option_profile_id": 7, "scanner_appliances": [1, 2], "external_groups": ["99"], "ip_network_id": 5,
            "tls_ca_file": "corp.pem",
        });
        let form = launch(payload.clone(), ScanKind::Vulnerabilities, "12").unwrap();
        let expected = [("option_id", "7"), ("iscanner_id", "1,2"), ("ip_network_id", "5")];
        assert_eq!(form, expected.map(|(name, value)| (name, value.to_owned())));
        let form = launch(payload.clone(), ScanKind::Vulnerabilities, "99").unwrap();
        assert_eq!(form[1], ("iscanner_name", "External".to_owned()));
        let problem = launch(payload, ScanKind::Discovery, "12").unwrap_err();
        assert!(problem.contains("`discovery_option_profile_id`"), "{problem}");
    }

    #[test]
    fn a_payload_that_makes_no_sense_is_told_with_the_field() {
        for (payload, word) in [
            (json!({"option_profile": 7}), "option_profile"),
            (json!({"kernel_filter": 5}), "0 to 4"),
            (json!({"scanner_appliances": []}), "scanner_appliances"),
            (json!({"scanner_appliances": "Extern"}), "External"),
        ] {
            let problem = Settings::new(&payload).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
        let problem = launch(json!({"option_profile_id": 7}), ScanKind::Vulnerabilities, "1").unwrap_err();
        assert!(problem.contains("`scanner_appliances`"), "{problem}");
    }
}
