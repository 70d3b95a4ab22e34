//! `SourceConfig.Payload` of a Nexpose: with what, and where, it scans.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// The template of every console that looks whether hosts are there, and nothing more.
const DISCOVERY: &str = "discovery";

/// The Payload, checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// For vulnerabilities; `None`: that of the site.
    pub(super) scan_template: Option<String>,
    /// Whether hosts are there.
    #[serde(default = "discovery")]
    pub(super) discovery_template: String,
    /// Whether a scan looks with a copy of `scan_template` for what it was asked for alone.
    #[serde(default)]
    pub(super) narrow_template: bool,
    /// Where scans are started; `None`: in the site of the devices.
    pub(super) rescan_site: Option<i64>,
    /// `None`: that of the site.
    pub(super) engine_id: Option<i64>,
    // The HTTP client reads these two.
    #[serde(rename = "tls_ca_pem")]
    _tls_ca_pem: Option<IgnoredAny>,
    #[serde(rename = "tls_ca_file")]
    _tls_ca_file: Option<IgnoredAny>,
}

fn discovery() -> String {
    DISCOVERY.to_owned()
}

impl Settings {
    /// An error finishes "source Nexpose: ".
    pub(super) fn new(payload: &Value) -> Result<Self, String> {
        let settings: Self = serde_path_to_error::deserialize(payload).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!(" at `{path}`") };
            format!("its Payload does not make sense{place}: {}", error.inner())
        })?;
        let empty = |text: &str| text.trim().is_empty();
        for (field, is_empty) in [
            ("scan_template", settings.scan_template.as_deref().is_some_and(empty)),
            ("discovery_template", empty(&settings.discovery_template)),
        ] {
            if is_empty {
                return Err(format!("`{field}` in its Payload is empty; give the ID of a scan template"));
            }
        }
        if settings.narrow_template && settings.scan_template.is_none() {
            return Err(
                "`narrow_template` in its Payload needs `scan_template`, which is what it narrows".to_owned()
            );
        }
        for (field, id) in [("rescan_site", settings.rescan_site), ("engine_id", settings.engine_id)] {
            if id.is_some_and(|id| id < 1) {
                return Err(format!(
                    "`{field}` in its Payload is {}, give 1 or more",
                    id.unwrap_or_default()
                ));
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_empty_payload_is_enough() {
        let settings = Settings::new(&json!({})).unwrap();
        assert_eq!(settings.discovery_template, "discovery");
        assert!(settings.scan_template.is_none() && !settings.narrow_template);
    }

    #[test]
    fn every_problem_names_the_field() {
        for (payload, words) in [
            (json!({"scan_templat": "x"}), "unknown field `scan_templat`"),
            (json!({"scan_template": " "}), "`scan_template` in its Payload is empty"),
            (json!({"discovery_template": ""}), "`discovery_template` in its Payload is empty"),
            (json!({"narrow_template": true}), "needs `scan_template`"),
            (json!({"rescan_site": 0}), "`rescan_site` in its Payload is 0"),
            (json!({"rescan_site": 12.5}), "`rescan_site`"),
            (json!({"engine_id": "3"}), "`engine_id`"),
        ] {
            let problem = Settings::new(&payload).unwrap_err();
            assert!(problem.contains(words) && problem.contains("Payload"), "{problem}");
        }
    }

    #[test]
    fn what_the_http_client_reads_is_allowed() {
        assert!(Settings::new(&json!({"tls_ca_file": "corp.pem"})).is_ok());
        assert!(Settings::new(&json!({"tls_ca_pem": "-----BEGIN"})).is_ok());
    }
}
