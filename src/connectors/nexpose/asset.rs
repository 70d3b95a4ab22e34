//! An asset of the console as a device, and when it was looked at.

use super::wire::{Asset, Event};
use crate::connectors::scanner::{Device, Tracking};
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

/// The asset as a device.
pub(super) fn device(asset: &Asset) -> Device {
    let text = |text: &Option<String>| text.as_deref().map(str::trim).unwrap_or_default().to_owned();
    let mac = text(&asset.mac);
    Device {
        asset: asset.id.to_string(),
        ip: asset.ip.as_deref().and_then(|ip| ip.trim().parse().ok()),
        host_name: text(&asset.host_name),
        mac: (!mac.is_empty()).then_some(mac),
        os: os(asset),
        instance: None,
        region: None,
        tracking: if has_agent(asset) { Tracking::Agent } else { Tracking::Ip },
    }
}

/// When the asset was assessed last, by a scan or by the agent on it. An agent's assets have no scans, and findings
/// without a date would never become tickets.
pub(super) fn assessed(asset: &Asset) -> Option<DateTime<Utc>> {
    let assessments = events(asset).filter(|event| is_scan(event) || is_agent(event));
    assessments.filter_map(|event| event.date.as_deref().and_then(instant)).max()
}

/// Whether this scan reached the asset. The console notes the scan in the asset's history; one that does not say which
/// scan it was has to be newer than `before`, which is a time of the same clock.
pub(super) fn was_in(asset: &Asset, scan: i64, before: Option<DateTime<Utc>>) -> bool {
    events(asset).filter(|event| is_scan(event)).any(|event| match event.scan_id {
        Some(id) => id == scan,
        None => match (event.date.as_deref().and_then(instant), before) {
            (Some(date), Some(before)) => date > before,
            // Any scan there ever was.
            _ => false,
        },
    })
}

/// A time of the console. It writes most with an offset, and means UTC where it does not.
pub(super) fn instant(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.with_timezone(&Utc))
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").map(|at| at.and_utc()))
        .ok()
        .or_else(|| day(text).and_then(|day| day.and_hms_opt(0, 0, 0)).map(|at| at.and_utc()))
}

/// A day of the console.
pub(super) fn day(text: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(text.get(..10)?, "%Y-%m-%d").ok()
}

fn events(asset: &Asset) -> impl Iterator<Item = &Event> {
    asset.history.iter().flatten()
}

fn is_scan(event: &Event) -> bool {
    event.kind.eq_ignore_ascii_case("SCAN") || event.kind.eq_ignore_ascii_case("SCAN-LOG-IMPORT")
}

fn is_agent(event: &Event) -> bool {
    event.kind.eq_ignore_ascii_case("AGENT-IMPORT")
}

fn has_agent(asset: &Asset) -> bool {
    // The console calls it "R7 Agent".
    let names_agent = |source: &str| source.to_ascii_lowercase().contains("agent");
    events(asset).any(is_agent)
        || asset.ids.iter().flatten().any(|id| id.source.as_deref().is_some_and(names_agent))
}

fn os(asset: &Asset) -> String {
    let filled =
        |text: &Option<String>| text.as_deref().map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned);
    let fingerprint = asset.os_fingerprint.as_ref();
    filled(&asset.os)
        .or_else(|| filled(&fingerprint?.description))
        .or_else(|| {
            let fingerprint = fingerprint?;
            let words = [&fingerprint.vendor, &fingerprint.product, &fingerprint.version];
            Some(words.into_iter().filter_map(filled).collect::<Vec<_>>().join(" "))
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asset(more: serde_json::Value) -> Asset {
        let mut asset = json!({"id": 282});
        asset.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(asset).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn the_newest_scan_or_report_of_the_agent_counts_whatever_else_happened() {
        let asset = asset(json!({"history": [
            {"type": "SCAN", "date": "2026-01-03T00:00:00Z", "scanId": 4},
            {"type": "AGENT-IMPORT", "date": "2026-01-02T00:00:00.123Z"},
            {"type": "VULNERABILITY_EXCEPTION_APPLIED", "date": "2026-02-01T00:00:00Z"},
            {"type": "SCAN", "date": "not a date"}, {"date": null},
        ]}));
        assert_eq!(assessed(&asset), Some(at("2026-01-03T00:00:00Z")));
        assert_eq!(device(&asset).tracking, Tracking::Agent);
        assert!(was_in(&asset, 4, None) && !was_in(&asset, 5, Some(at("2026-01-02T00:00:00Z"))));
    }

    #[test]
    fn a_scan_without_a_number_has_to_be_newer_than_what_was_known() {
        let asset = asset(json!({"history": [{"type": "SCAN", "date": "2026-01-03T00:00:00Z"}]}));
        assert!(was_in(&asset, 9, Some(at("2026-01-02T23:59:59Z"))));
        assert!(!was_in(&asset, 9, Some(at("2026-01-03T00:00:00Z"))));
        assert!(!was_in(&asset, 9, None), "it may be any scan there ever was");
    }

    #[test]
    fn what_is_missing_is_empty() {
        let device =
            device(&asset(json!({"ip": "nonsense", "mac": "", "osFingerprint": {"product": "Linux"}})));
        assert_eq!((device.asset.as_str(), device.ip, device.mac), ("282", None, None));
        assert_eq!((device.os.as_str(), device.tracking), ("Linux", Tracking::Ip));
    }
}
