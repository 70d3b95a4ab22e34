//! The schedule's calendar against a brute-force oracle, over every IANA zone from 2000 to 2040.
//!
//! The oracle shares nothing with the code under test but the zones' offsets: it expands the fields
//! with its own few lines, walks real time minute by minute (clocks change on whole minutes, which is
//! asserted), looks at what the local clock shows, and applies the DST rule literally:
//!
//! - an interval fires whenever the clock shows a matching time;
//! - fixed times fire when the clock shows or jumps over a matching time it has not shown before.
//!
//! Around every change of every zone the two must agree, from every kind of starting point. Zones with
//! the same changes throughout are the same zone under several names and are walked once.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Datelike, NaiveDateTime, Utc};
use rosterd::schedule::{Recurrence, Zone, next_after};

/// Seven fields each, in the oracle's dialect: numbers, `a-b`, `*`, `/n`, lists. The day fields are
/// never both restricted here; crontab's "either" rule has tests of its own.
const EXPRESSIONS: [&str; 24] = [
    "0 0 0 * * * *",               // @daily: midnight is missing in Havana, Santiago, Cairo, Beirut
    "0 30 2 * * * *",              // the usual gap
    "0 30 1 * * * *",              // the usual overlap
    "0 0 3 * * * *",               // the end of the usual gap
    "0 15 0,2 * * * *",            // Lord Howe moves by thirty minutes
    "0 0 0-3 * * * *",             // hour ranges are fixed times
    "0 5,25,45 1,2 * * * *",       // several times in one gap
    "0 59 23 * * * *",             // changes at midnight
    "59 59 1 * * * *",             // the last second before a change at 02:00
    "1 0 2 * * * *",               // the first second after the gap began
    "0 45 2 * * 0 *",              // Sundays, when most clocks change
    "0 30 2 * * 1-6 *",            // never on most clocks' change days
    "0 30 2 25-31 3,10 * *",       // the weeks of the European changes
    "0 0 12 30 12 * *",            // the day that Samoa skipped
    "0 30 0 1 4 * 2000-2030",      // years
    "0 0 * * * * *",               // hourly
    "0 */30 * * * * *",            // half-hourly
    "0 */20 2 * * * *",            // an interval inside the gap
    "0 7 */3 * * * *",             // a step in the hour alone
    "0 30 */2 * * 0 *",            // an interval on some days
    "0 */15 0-3 25-31 3,10 * *",   // an interval on the days of the changes
    "0 10/25 1,2 * * * *",         // a step from a number
    "30 0 * * * * *",              // hourly at half a minute past
    "0 59 */1 * 1-12 * 2000-2039", // everything restricted, nothing excluded
];

/// A point of the walk: an instant, and what the local clock shows.
struct Moment {
    at: i64,
    shows: i64,
}

/// What a zone's clock does between 1999 and 2041: the first offset, then every change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Clock {
    first_offset: i64,
    changes: Vec<(i64, i64)>,
}

impl Clock {
    fn of(name: &str) -> Self {
        let zone = jiff::tz::TimeZone::get(name).unwrap();
        let start = seconds("1999-01-01T00:00:00Z");
        let end = seconds("2041-01-01T00:00:00Z");
        let at = jiff::Timestamp::from_second(start).unwrap();
        let first_offset = i64::from(zone.to_offset(at).seconds());
        let mut changes = Vec::new();
        let mut offset = first_offset;
        for change in zone.following(at) {
            let at = change.timestamp().as_second();
            if at >= end {
                break;
            }
            let next = i64::from(change.offset().seconds());
            if next != offset {
                assert_eq!(at % 60, 0, "{name}: the walk goes minute by minute");
                changes.push((at, next));
                offset = next;
            }
        }
        Self { first_offset, changes }
    }

    fn offset(&self, at: i64) -> i64 {
        self.changes.iter().rev().find(|(change, _)| *change <= at).map_or(self.first_offset, |(_, to)| *to)
    }

    /// Every minute from `from` until `until` and what the clock shows then.
    fn walk(&self, from: i64, until: i64) -> Vec<Moment> {
        let mut next = self.changes.partition_point(|(change, _)| *change <= from);
        let mut offset = self.offset(from);
        let mut moments = Vec::new();
        for at in (from..until).step_by(60) {
            while let Some((change, to)) = self.changes.get(next)
                && *change <= at
            {
                offset = *to;
                next += 1;
            }
            moments.push(Moment { at, shows: at + offset });
        }
        moments
    }
}

/// An expression expanded the naive way.
struct Naive {
    text: &'static str,
    second: i64,
    /// Indexed by minute and hour.
    clock: [[bool; 60]; 24],
    month_days: [bool; 32],
    months: [bool; 13],
    week_days: [bool; 7],
    years: (i64, i64),
    interval: bool,
}

impl Naive {
    fn parse(text: &'static str) -> Self {
        let fields: Vec<&str> = text.split(' ').collect();
        let has = |field: usize, low: i64, high: i64, value: i64| {
            fields[field].split(',').any(|item| {
                let (range, step) = item.split_once('/').unwrap_or((item, "1"));
                let (from, to) = match range.split_once('-') {
                    _ if range == "*" => (low, high),
                    Some((from, to)) => (from.parse().unwrap(), to.parse().unwrap()),
                    None if item.contains('/') => (range.parse().unwrap(), high),
                    None => (range.parse().unwrap(), range.parse().unwrap()),
                };
                (from..=to).contains(&value) && (value - from) % step.parse::<i64>().unwrap() == 0
            })
        };
        let index = |value: usize| i64::try_from(value).unwrap();
        Self {
            text,
            second: fields[0].parse().unwrap(),
            clock: std::array::from_fn(|hour| {
                std::array::from_fn(|minute| has(2, 0, 23, index(hour)) && has(1, 0, 59, index(minute)))
            }),
            month_days: std::array::from_fn(|day| has(3, 1, 31, index(day))),
            months: std::array::from_fn(|month| has(4, 1, 12, index(month))),
            week_days: std::array::from_fn(|day| has(5, 0, 6, index(day))),
            years: ((1970..2100).find(|year| has(6, 1970, 2099, *year)).unwrap(), {
                (1970..2100).rev().find(|year| has(6, 1970, 2099, *year)).unwrap()
            }),
            interval: fields[..3].iter().any(|field| field.contains(['*', '/'])),
        }
    }

    /// Whether the minute that begins at local time `shows` holds a matching time.
    fn matches(&self, shows: i64) -> bool {
        let minute = shows.div_euclid(60);
        let (hour, day) = (minute.div_euclid(60), minute.div_euclid(24 * 60));
        let index = |value: i64| usize::try_from(value).unwrap();
        if !self.clock[index(hour.rem_euclid(24))][index(minute.rem_euclid(60))] {
            return false;
        }
        let date = civil(day * 86_400);
        self.month_days[date.day() as usize]
            && self.months[date.month() as usize]
            && self.week_days[index((day + 4).rem_euclid(7))] // 1 January 1970 was a Thursday
            && (self.years.0..=self.years.1).contains(&date.year().into())
    }

    /// Every firing within the walk, by the letter of the rule. The clock has shown all minutes before
    /// `shown_up_to` when the walk begins.
    fn firings(&self, walk: &[Moment], mut shown_up_to: i64) -> Vec<i64> {
        let mut fired = Vec::new();
        for moment in walk {
            if self.interval {
                if self.matches(moment.shows) {
                    fired.push(moment.at + self.second);
                }
                continue;
            }
            // A jump of the clock passes many minutes at once; all that were skipped fire together.
            let skipped = (shown_up_to..moment.shows).step_by(60).any(|minute| self.matches(minute));
            if skipped {
                fired.push(moment.at);
            }
            if moment.shows >= shown_up_to && self.matches(moment.shows) && !(skipped && self.second == 0) {
                fired.push(moment.at + self.second);
            }
            shown_up_to = shown_up_to.max(moment.shows + 60);
        }
        fired
    }
}

fn seconds(text: &str) -> i64 {
    text.parse::<DateTime<Utc>>().unwrap().timestamp()
}

fn civil(seconds: i64) -> NaiveDateTime {
    DateTime::from_timestamp(seconds, 0).unwrap().naive_utc()
}

fn instant(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// Compares both over `[from, until)`; `starts` are further points to ask from. Returns how many answers
/// of the code under test were compared.
fn compare(
    zone: &Zone,
    clock: &Clock,
    pairs: &[(Naive, Recurrence)],
    from: i64,
    until: i64,
    starts: &[i64],
    differences: &mut Vec<String>,
) -> usize {
    // Two days are more than any two offsets differ: what the clock has shown already when the walk begins.
    let shown_up_to =
        clock.walk(from - 2 * 86_400, from).iter().map(|moment| moment.shows + 60).max().unwrap();
    let walk = clock.walk(from, until);
    let mut compared = 0;
    for (naive, recurrence) in pairs {
        let expected: Vec<i64> =
            naive.firings(&walk, shown_up_to).into_iter().filter(|at| *at < until).collect();
        let mut check = |start: i64| {
            let oracle = expected.iter().copied().find(|at| *at > start);
            let ours = next_after(recurrence, zone, instant(start)).map(|at| at.timestamp());
            compared += 1;
            // Beyond the walk the oracle knows only that nothing fired within it.
            if ours.filter(|at| *at < until) != oracle {
                let show = |at: Option<i64>| at.map(|at| instant(at).to_rfc3339());
                differences.push(format!(
                    "{zone} '{}' after {}: oracle {:?}, ours {:?}",
                    naive.text,
                    instant(start).to_rfc3339(),
                    show(oracle),
                    show(ours)
                ));
            }
            ours
        };
        let mut start = from - 1;
        while let Some(at) = check(start)
            && start < at
            && at < until
        {
            start = at;
        }
        for start in starts {
            check(*start);
        }
    }
    compared
}

/// A generator good enough for picking test points, and the same on every machine.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn compare_zone(
    name: &str,
    clock: &Clock,
    pairs: &[(Naive, Recurrence)],
    differences: &mut Vec<String>,
) -> usize {
    let zone = Zone::parse(name).unwrap();
    let mut compared = 0;
    let (first, last) = (seconds("2000-01-01T00:00:00Z"), seconds("2040-12-31T00:00:00Z"));
    let mut before = clock.first_offset;
    for (change, after) in &clock.changes {
        let shift = (after - before).abs();
        before = *after;
        if !(first..last).contains(change) {
            continue;
        }
        // From two hours before what the change moves until two hours after it.
        let (from, until) = (change - shift - 7_200, change + shift + 7_200);
        let starts =
            [change - 1, *change, change + 1, change + shift / 2, change + shift - 1, change + shift];
        compared += compare(&zone, clock, pairs, from, until, &starts, differences);
    }
    let mut state =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15, |hash: u64, byte| hash.rotate_left(7) ^ u64::from(byte));
    for _ in 0..3 {
        let span = u64::try_from(last - first).unwrap() / 60;
        let from = first + i64::try_from(random(&mut state) % span).unwrap() * 60;
        compared += compare(&zone, clock, pairs, from, from + 26 * 3_600, &[], differences);
    }
    compared
}

#[test]
fn no_zone_and_no_change_from_2000_to_2040_differs_from_the_oracle() {
    let started = std::time::Instant::now();
    let names = Zone::all_names();
    let mut clocks: BTreeMap<Clock, String> = BTreeMap::new();
    for name in &names {
        clocks.entry(Clock::of(name)).or_insert_with(|| name.clone());
    }
    let clocks: Vec<(Clock, String)> = clocks.into_iter().collect();
    let next = AtomicUsize::new(0);
    let worker = || {
        let pairs: Vec<_> =
            EXPRESSIONS.iter().map(|text| (Naive::parse(text), Recurrence::cron(text).unwrap())).collect();
        let (mut compared, mut differences) = (0, Vec::new());
        while let Some((clock, name)) = clocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            compared += compare_zone(name, clock, &pairs, &mut differences);
        }
        (compared, differences)
    };
    let (compared, differences) = std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().map(|worker| worker.join().unwrap()).fold((0, Vec::new()), |mut all, one| {
            all.0 += one.0;
            all.1.extend(one.1);
            all
        })
    });
    let changes: usize = clocks.iter().map(|(clock, _)| clock.changes.len()).sum();
    #[expect(clippy::print_stdout, reason = "the figures are what a reader of the test run wants to see")]
    {
        println!(
            "{} zones, {} distinct, {changes} changes, {compared} answers compared in {:?}",
            names.len(),
            clocks.len(),
            started.elapsed()
        );
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(20)].join("\n")
    );
    assert!(names.len() > 400 && compared > 100_000, "the oracle must not pass by comparing nothing");
}
