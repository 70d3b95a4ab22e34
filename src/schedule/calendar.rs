//! Local times become instants.
//!
//! # The DST rule
//!
//! A schedule is a set of local times; a zone says when the local clock shows them. Twice a year the
//! clock skips a stretch or shows one twice, and then it matters which [`Rhythm`] the schedule has:
//!
//! | | fixed times: `30 2 * * *`, `0 0-3 * * *`, `DaysOfWeek` + `TimeOfDay` | intervals: a `*` or step in second, minute or hour |
//! |---|---|---|
//! | what fires | each local time, the first time the clock reaches **or passes** it | every instant at which the clock shows a matching time |
//! | ordinary days | once, at that time | at that time |
//! | gap (spring, 02:30 missing) | once, at the first valid instant after the gap (03:00) | not at all: the stretch did not happen |
//! | several times in one gap, or one at its end | one firing together, at that instant | only the one at its end |
//! | overlap (autumn, 02:30 twice) | once, at the first 02:30 | at both: as much time passes as on other days |
//!
//! So `30 2 * * *` runs exactly once every day of every year, and `*/10 * * * *` exactly every ten
//! minutes of elapsed time where the zone's offset changes by a multiple of ten minutes.
//! Lists and ranges of hours are fixed times; `0 0-3 * * *` means "at 0, 1, 2 and 3 o'clock".
//! The rule is the same for any change of offset, Samoa's lost day of 2011 included.

use chrono::{DateTime, Datelike, Duration, NaiveDateTime, Timelike, Utc};
use jiff::Timestamp;
use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::expression::{Recurrence, Rhythm};
use super::zone::Zone;

/// Farther apart than two offsets ever are, so clock changes this long ago no longer matter.
const LONGEST_SHIFT: Duration = Duration::days(2);

/// The first instant strictly after `after` at which the schedule fires in the zone.
///
/// Always later than `after`, always on a whole second. `None` when nothing is left: the search ends
/// with the year 2099, as do the years an expression may name. Its cost is bounded by two steps for each
/// month the expression names until then: under a microsecond for ordinary expressions, and 21 at worst
/// in a release build for every tenth minute of a February's fifth Monday.
pub fn next_after(recurrence: &Recurrence, zone: &Zone, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    // Nothing fires outside 1970 to 2099, and jiff and the cron crate know no years beyond their ranges.
    let after = after.max(DateTime::UNIX_EPOCH - LONGEST_SHIFT);
    if after.year() > 2100 {
        return None;
    }
    let after = after.with_nanosecond(0)?;
    match recurrence.rhythm() {
        Rhythm::FixedTimes => next_fixed(recurrence, zone.inner(), after),
        Rhythm::Interval => next_interval(recurrence, zone.inner(), after),
    }
}

/// Fixed times fire when the clock reaches or passes them first, so only times beyond the latest the
/// clock has shown are still to come.
fn next_fixed(recurrence: &Recurrence, zone: &TimeZone, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let second = Duration::seconds(1);
    let mut shown = local(zone, after);
    for change in zone.preceding(timestamp(after + second)?) {
        let change = instant(change.timestamp())?;
        if change < after - LONGEST_SHIFT {
            break;
        }
        shown = shown.max(local(zone, change - second));
    }
    first_reached(zone, recurrence.next_civil(shown)?)
}

/// The first instant at which the zone's clock shows `time` or, where it skips it, a later one.
fn first_reached(zone: &TimeZone, time: NaiveDateTime) -> Option<DateTime<Utc>> {
    match zone.to_ambiguous_timestamp(civil_time(time)?).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
            Some(time.and_utc() - seconds(offset))
        }
        AmbiguousOffset::Gap { after: offset, .. } => {
            let before_the_gap = time.and_utc() - seconds(offset);
            instant(zone.following(timestamp(before_the_gap)?).next()?.timestamp())
        }
    }
}

/// Intervals fire whenever the clock shows a matching time. Between two changes the clock runs evenly,
/// so each stretch is searched by itself, beginning with what the clock shows as the stretch begins.
fn next_interval(recurrence: &Recurrence, zone: &TimeZone, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let second = Duration::seconds(1);
    let mut from = after + second;
    loop {
        let offset = seconds(zone.to_offset(timestamp(from)?));
        let time = recurrence.next_civil(from.naive_utc() + offset - second)?;
        let candidate = time.and_utc() - offset;
        let change = match zone.following(timestamp(from)?).next() {
            Some(change) => instant(change.timestamp())?,
            None => return Some(candidate),
        };
        if candidate < change {
            return Some(candidate);
        }
        // A change that is far off repeats nothing from before `from`, and up to `time` nothing matches:
        // skip the years in between instead of walking them change by change.
        from =
            if change - from > LONGEST_SHIFT { change.max(time.and_utc() - LONGEST_SHIFT) } else { change };
    }
}

fn local(zone: &TimeZone, at: DateTime<Utc>) -> NaiveDateTime {
    let offset = timestamp(at).map_or(Duration::zero(), |at| seconds(zone.to_offset(at)));
    at.naive_utc() + offset
}

fn seconds(offset: jiff::tz::Offset) -> Duration {
    Duration::seconds(offset.seconds().into())
}

fn timestamp(at: DateTime<Utc>) -> Option<Timestamp> {
    Timestamp::from_second(at.timestamp()).ok()
}

fn instant(at: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(at.as_second(), 0)
}

/// `time` as jiff writes it.
fn civil_time(time: NaiveDateTime) -> Option<civil::DateTime> {
    civil::DateTime::new(
        i16::try_from(time.year()).ok()?,
        i8::try_from(time.month()).ok()?,
        i8::try_from(time.day()).ok()?,
        i8::try_from(time.hour()).ok()?,
        i8::try_from(time.minute()).ok()?,
        i8::try_from(time.second()).ok()?,
        0,
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The firings between two instants, in local time with offset.
    fn firings(text: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
        let (recurrence, zone) = (Recurrence::cron(text).unwrap(), Zone::parse(zone).unwrap());
        let (from, until): (DateTime<Utc>, DateTime<Utc>) = (from.parse().unwrap(), until.parse().unwrap());
        std::iter::successors(next_after(&recurrence, &zone, from), |at| next_after(&recurrence, &zone, *at))
            .take_while(|at| *at < until)
            .map(|at| {
                timestamp(at).unwrap().to_zoned(zone.inner().clone()).strftime("%d %H:%M%:z").to_string()
            })
            .collect()
    }

    fn spring(text: &str) -> Vec<String> {
        firings(text, "Europe/Berlin", "2026-03-28T23:30:00Z", "2026-03-29T03:00:00Z")
    }

    fn autumn(text: &str) -> Vec<String> {
        firings(text, "Europe/Berlin", "2026-10-24T23:30:00Z", "2026-10-25T03:00:00Z")
    }

    #[test]
    fn a_fixed_time_in_the_gap_fires_once_when_the_gap_ends() {
        assert_eq!(spring("30 2 * * *"), ["29 03:00+02:00"]);
        assert_eq!(spring("10,30,50 2 * * *"), ["29 03:00+02:00"], "several collapse to one");
        assert_eq!(spring("0 1-4 * * *"), ["29 01:00+01:00", "29 03:00+02:00", "29 04:00+02:00"]);
        let havana = firings("@daily", "America/Havana", "2026-03-07T12:00:00Z", "2026-03-09T12:00:00Z");
        assert_eq!(havana, ["08 01:00-04:00", "09 00:00-04:00"], "a midnight that does not exist");
        let apia = firings("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", "2011-12-31T12:00:00Z");
        assert_eq!(
            apia,
            ["29 12:00-10:00", "31 00:00+14:00", "31 12:00+14:00"],
            "30 December 2011 is missing"
        );
    }

    #[test]
    fn a_fixed_time_in_the_overlap_fires_at_the_first_pass_only() {
        assert_eq!(autumn("30 2 * * *"), ["25 02:30+02:00"]);
        assert_eq!(autumn("0 0-3 * * *"), ["25 02:00+02:00", "25 03:00+01:00"]);
    }

    #[test]
    fn an_interval_skips_the_gap_and_goes_on_through_the_overlap() {
        assert_eq!(
            spring("*/30 * * * *"),
            [
                "29 01:00+01:00",
                "29 01:30+01:00",
                "29 03:00+02:00",
                "29 03:30+02:00",
                "29 04:00+02:00",
                "29 04:30+02:00"
            ]
        );
        assert_eq!(spring("*/20 2 * * *"), Vec::<String>::new());
        assert_eq!(autumn("0 * * * *"), ["25 02:00+02:00", "25 02:00+01:00", "25 03:00+01:00"]);
        assert_eq!(
            autumn("*/30 2 * * *"),
            ["25 02:00+02:00", "25 02:30+02:00", "25 02:00+01:00", "25 02:30+01:00"]
        );
    }

    #[test]
    fn an_interval_that_names_the_day_of_the_overlap_does_not_lose_its_second_pass() {
        let fired =
            firings("*/30 2 25 10 *", "Europe/Berlin", "2026-10-25T00:15:00Z", "2027-10-25T00:30:00Z");
        assert_eq!(fired, ["25 02:30+02:00", "25 02:00+01:00", "25 02:30+01:00", "25 02:00+02:00"]);
    }

    #[test]
    fn the_search_ends_with_2099_and_takes_any_instant() {
        let (daily, utc) = (Recurrence::cron("@daily").unwrap(), Zone::UTC);
        assert_eq!(next_after(&daily, &utc, DateTime::<Utc>::MAX_UTC), None);
        assert_eq!(next_after(&daily, &utc, "2099-12-31T00:00:00Z".parse().unwrap()), None);
        assert_eq!(next_after(&daily, &utc, DateTime::<Utc>::MIN_UTC), Some(DateTime::UNIX_EPOCH));
        let once = Recurrence::cron("0 0 12 1 6 * 2030").unwrap();
        assert_eq!(next_after(&once, &utc, "2030-06-01T12:00:00Z".parse().unwrap()), None);
    }

    #[test]
    fn fractions_of_a_second_neither_repeat_nor_lose_a_firing() {
        let every_second = Recurrence::cron("* * * * * *").unwrap();
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let next = next_after(&every_second, &Zone::UTC, at("2026-01-01T00:00:00.999Z"));
        assert_eq!(next, Some(at("2026-01-01T00:00:01Z")));
        let next = next_after(&every_second, &Zone::UTC, at("2026-01-01T00:00:01Z"));
        assert_eq!(next, Some(at("2026-01-01T00:00:02Z")));
    }
}
