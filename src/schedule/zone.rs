//! Time zones by IANA name, from the system's zone files.
//!
//! The files are read with `jiff` rather than compiled in, because governments change clocks at a few
//! weeks' notice and a daemon outlives its build. `jiff` looks at a file again after five minutes, so
//! keep the name and call [`Zone::parse`] when a schedule is evaluated; it is cached and cheap.

use std::fmt;

use jiff::tz::{self, TimeZone};
use thiserror::Error;

/// A time zone such as `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

/// A name that is no IANA time zone.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the time zone '{name}' is not known; {instead}")]
pub struct ZoneError {
    name: String,
    instead: String,
}

impl Zone {
    /// Coordinated universal time, the zone where nothing else is set.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// Finds a zone by its IANA name, in any case: `Europe/Berlin`, `europe/berlin`, `UTC`.
    ///
    /// Abbreviations and offsets are refused because they do not say when the clocks change.
    pub fn parse(name: &str) -> Result<Self, ZoneError> {
        if is_iana(name)
            && let Ok(zone) = TimeZone::get(name)
        {
            return Ok(Self(zone));
        }
        let name: String = name.chars().take(64).collect();
        let instead = match nearest(&name) {
            Some(known) => format!("did you mean '{known}'?"),
            None => "give an IANA name such as Europe/Berlin, not an abbreviation or an offset".to_owned(),
        };
        Err(ZoneError { name, instead })
    }

    /// The zone's name as the IANA writes it.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// Every name that [`Zone::parse`] takes, in the IANA's spelling and sorted.
    pub fn all_names() -> Vec<String> {
        tz::db().available().map(|name| name.to_string()).filter(|name| is_iana(name)).collect()
    }

    pub(super) fn inner(&self) -> &TimeZone {
        &self.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Zone directories hold more than zones: the machine's own setting, a placeholder, and copies of
/// everything with leap seconds.
fn is_iana(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !matches!(lower.as_str(), "localtime" | "posixrules" | "factory" | "etc/unknown")
        && !lower.starts_with("posix/")
        && !lower.starts_with("right/")
}

/// The zone whose city this is, or whose name is spelled most alike.
fn nearest(name: &str) -> Option<String> {
    let wanted = name.trim().replace(' ', "_").to_ascii_lowercase();
    let distance = |known: &str| {
        let known = known.to_ascii_lowercase();
        let city = known.rsplit('/').next().unwrap_or(&known);
        if known == wanted || city == wanted { 1.0 } else { strsim::jaro_winkler(&known, &wanted) }
    };
    Zone::all_names()
        .into_iter()
        .map(|known| (distance(&known), known))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .filter(|(alike, _)| *alike >= 0.9)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iana_names_are_taken_in_any_case() {
        assert_eq!(Zone::parse("europe/BERLIN").unwrap().name(), "Europe/Berlin");
        assert_eq!(Zone::parse("UTC").unwrap().name(), "UTC");
        assert_eq!(Zone::parse("Asia/Calcutta").unwrap().name(), "Asia/Calcutta");
        assert_eq!(Zone::UTC.to_string(), "UTC");
        assert!(Zone::all_names().len() > 400);
        assert!(Zone::all_names().iter().all(|name| Zone::parse(name).is_ok()));
    }

    #[test]
    fn near_misses_are_answered_with_the_name_that_was_meant() {
        for (typed, meant) in [
            ("Europe/Berln", "Europe/Berlin"),
            ("Berlin", "Europe/Berlin"),
            ("new york", "America/New_York"),
            ("America/New York", "America/New_York"),
            (" Europe/Paris", "Europe/Paris"),
        ] {
            let sentence = Zone::parse(typed).unwrap_err().to_string();
            assert_eq!(sentence, format!("the time zone '{typed}' is not known; did you mean '{meant}'?"));
        }
    }

    #[test]
    fn what_is_no_zone_is_refused_with_an_example() {
        for typed in [
            "Mars/Base",
            "CEST",
            "+02:00",
            "",
            "CET-1CEST",
            "right/Europe/Berlin",
            "localtime",
            "Factory",
            "../etc",
        ] {
            let sentence = Zone::parse(typed).unwrap_err().to_string();
            assert!(
                sentence.contains("such as Europe/Berlin") || sentence.contains("did you mean"),
                "{sentence}"
            );
        }
        assert!(Zone::parse("Mars/Base").unwrap_err().to_string().contains("such as Europe/Berlin"));
    }
}
