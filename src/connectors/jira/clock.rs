//! Times in questions. JIRA reads them in the time zone of the user who asks, to the minute, and without an offset.

use super::rest::Rest;
use super::wire::Myself;
use crate::connectors::ticket_engine::TicketError;
use chrono::{DateTime, Utc};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// The time zone of the user who asks.
#[derive(Debug)]
pub(super) struct Zone(TimeZone);

impl Zone {
    /// Asks JIRA whom it takes us for.
    pub(super) async fn read(rest: &Rest) -> Result<Self, TicketError> {
        let myself: Myself = rest.read(rest.get("myself"), "say who we are").await?;
        Self::named(&myself.time_zone).ok_or_else(|| {
            rest.source_problem(format!(
                "its account is in the time zone {:?}, which this machine does not know; give the account another",
                myself.time_zone
            ))
        })
    }

    fn named(name: &str) -> Option<Self> {
        TimeZone::get(name).ok().map(Self)
    }

    /// The newest minute at or before `at` that the user's clock shows once only, so that JIRA cannot take it for a
    /// later one: `at` may be in the hour that comes twice in autumn.
    pub(super) fn at_or_before(&self, at: DateTime<Utc>) -> DateTime<Utc> {
        self.step(minute(at), -1)
    }

    /// The first minute after `at` that the user's clock shows once only.
    pub(super) fn after(&self, at: DateTime<Utc>) -> DateTime<Utc> {
        self.step(minute(at) + chrono::Duration::minutes(1), 1)
    }

    /// A minute of these as JQL writes it.
    pub(super) fn text(&self, at: DateTime<Utc>) -> String {
        match Timestamp::from_second(at.timestamp()) {
            Ok(at) => self.0.to_datetime(at).strftime("%Y/%m/%d %H:%M").to_string(),
            // Before the year -9999 or after 9999.
            Err(_) => at.format("%Y/%m/%d %H:%M").to_string(),
        }
    }

    fn step(&self, mut at: DateTime<Utc>, minutes: i64) -> DateTime<Utc> {
        // No clock is set back by more than a day.
        for _ in 0..=1440 {
            if !self.comes_twice(at) {
                break;
            }
            at += chrono::Duration::minutes(minutes);
        }
        at
    }

    fn comes_twice(&self, at: DateTime<Utc>) -> bool {
        let Ok(at) = Timestamp::from_second(at.timestamp()) else { return false };
        let shown = self.0.to_datetime(at);
        // A clock may have been set back to here in the middle of a minute.
        let end = shown.saturating_add(59.seconds());
        [shown, end].into_iter().any(|shown| self.0.to_ambiguous_timestamp(shown).is_ambiguous())
    }
}

fn minute(at: DateTime<Utc>) -> DateTime<Utc> {
    let seconds = at.timestamp().rem_euclid(60);
    DateTime::from_timestamp(at.timestamp() - seconds, 0).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_time_is_written_as_the_users_clock_shows_it() {
        let zone = Zone::named("Asia/Kolkata").unwrap();
        let asked = zone.at_or_before(at("2026-11-30T20:24:57.9Z"));
        assert_eq!(asked, at("2026-11-30T20:24:00Z"));
        assert_eq!(zone.text(asked), "2026/12/01 01:54");
        assert_eq!(zone.after(at("2026-11-30T20:24:57.9Z")), at("2026-11-30T20:25:00Z"));
        assert!(Zone::named("Mars/Olympus").is_none());
    }

    #[test]
    fn no_time_is_asked_for_that_the_clock_shows_twice() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        // At 01:00 UTC on 25 October 2026 the clock goes from 03:00 back to 02:00.
        for inside in ["2026-10-25T00:00:30Z", "2026-10-25T00:30:00Z", "2026-10-25T01:59:59Z"] {
            let (before, after) = (zone.at_or_before(at(inside)), zone.after(at(inside)));
            assert_eq!(
                (zone.text(before), before),
                ("2026/10/25 01:59".to_owned(), at("2026-10-24T23:59:00Z"))
            );
            assert_eq!(
                (zone.text(after), after),
                ("2026/10/25 03:00".to_owned(), at("2026-10-25T02:00:00Z"))
            );
        }
        // In spring an hour is missing, and no time is in it.
        assert_eq!(zone.text(zone.at_or_before(at("2026-03-29T01:00:00Z"))), "2026/03/29 03:00");
    }
}
