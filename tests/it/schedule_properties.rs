//! What holds for any schedule: the parser survives any text, firings only move forward and come
//! quickly, and where `croner` means the same by an expression it gives the same times.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use croner::parser::{CronParser, Seconds, Year};
use proptest::prelude::*;
use rosterd::schedule::{CatchUp, MissedRun, Recurrence, Rhythm, Zone, missed, next_after};

/// What the reliability table promises, with room for unoptimised builds and a busy machine.
const QUICK: Duration = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 5 });

const ZONES: [&str; 12] = [
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/Havana",
    "America/Santiago",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Asia/Kathmandu",
    "Africa/Cairo",
    "Asia/Beirut",
];

/// Expressions that can fire only on very few days, and some that fire all the time.
const RARE_AND_BUSY: [&str; 12] = [
    "0 0 29 2 */7",
    "* * 29 2 */7",
    "0 0 * 2 MON#5",
    "*/10 * * 2 MON#5",
    "0 0 0 L-29,31W 1-2 ? 2090-2099",
    "0 0 0 29 2 */7 2088",
    "* * * * * * 2099",
    "0 0 1W,15W,LW * *",
    "0 0 L-30 * *",
    "0 0 31W * FRI#5",
    "* * * * * *",
    "0-58/2 1-57 0-22 1-30 1-11 0-5 1970-2098",
];

fn instant() -> impl Strategy<Value = DateTime<Utc>> {
    (0_i64..4_102_444_800).prop_map(|seconds| DateTime::from_timestamp(seconds, 0).unwrap())
}

fn zone() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&ZONES[..])
}

/// One field: a number, a range, a star, a step, or a list of numbers.
fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
    let range = (low..=high, low..=high).prop_map(|(one, other)| (one.min(other), one.max(other)));
    let step = 1..=(high - low).min(12);
    prop_oneof![
        4 => Just("*".to_owned()),
        3 => (low..=high).prop_map(|number| number.to_string()),
        1 => range.clone().prop_map(|(first, last)| format!("{first}-{last}")),
        1 => step.clone().prop_map(|step| format!("*/{step}")),
        1 => (range, step).prop_map(|((first, last), step)| format!("{first}-{last}/{step}")),
        1 => (low..=high, low..=high).prop_map(|(one, other)| format!("{one},{other}")),
    ]
}

/// Day fields on which `croner` and crontab(5) agree: see [`croner_gives_the_same_times`].
fn days() -> impl Strategy<Value = (String, String)> {
    let of_month = prop_oneof![
        3 => (1..=31_u32).prop_map(|day| day.to_string()),
        1 => (1..=15_u32, 16..=31_u32).prop_map(|(first, last)| format!("{first}-{last}")),
        1 => Just("L".to_owned()),
        1 => Just("LW".to_owned()),
        1 => (1..=31_u32).prop_map(|day| format!("{day}W")),
    ];
    let of_week = prop_oneof![
        3 => (0..=7_u32).prop_map(|day| day.to_string()),
        1 => prop::sample::select(&["MON-FRI", "SUN", "TUE,THU", "1-5"][..]).prop_map(str::to_owned),
        1 => (0..=6_u32, 1..=5_u32).prop_map(|(day, nth)| format!("{day}#{nth}")),
        1 => (0..=6_u32).prop_map(|day| format!("{day}L")),
    ];
    let free = || Just("*".to_owned());
    prop_oneof![
        2 => (free(), free()),
        2 => (of_month.clone(), free()),
        2 => (free(), of_week.clone()),
        2 => (of_month, of_week),
    ]
}

/// An instant within two days before a clock change of the zone, or anywhere in zones without.
fn before_a_change(zone: &str, pick: u64) -> DateTime<Utc> {
    let start = jiff::Timestamp::from_second(946_684_800).unwrap(); // 2000
    let end = jiff::Timestamp::from_second(1_704_067_200).unwrap(); // 2024
    let changes: Vec<i64> = jiff::tz::TimeZone::get(zone)
        .unwrap()
        .following(start)
        .map(|change| change.timestamp())
        .take_while(|change| *change < end)
        .map(jiff::Timestamp::as_second)
        .collect();
    let any = 946_684_800 + i64::try_from(pick % 757_382_400).unwrap();
    let from = match usize::try_from(pick).ok().and_then(|pick| changes.get(pick % changes.len().max(1))) {
        Some(change) => change - any % 172_800,
        None => any,
    };
    DateTime::from_timestamp(from, 0).unwrap()
}

/// The quickest of three calls, because what is measured is the code and not its neighbours.
fn quickest(recurrence: &Recurrence, zone: &Zone, after: DateTime<Utc>) -> (Option<DateTime<Utc>>, Duration) {
    let timed = || {
        let started = Instant::now();
        let next = next_after(recurrence, zone, after);
        (next, started.elapsed())
    };
    let first = timed();
    if first.1 < QUICK {
        first
    } else {
        [timed(), timed()].into_iter().min_by_key(|(_, took)| *took).unwrap()
    }
}

proptest! {
    #[test]
    fn the_parser_survives_any_text(text in ".{0,300}") {
        let _ = Recurrence::cron(&text);
        let _ = Recurrence::weekly(Some(&text), chrono::NaiveTime::MIN);
        let _ = Zone::parse(&text);
    }

    #[test]
    fn the_parser_survives_whatever_looks_like_cron(text in "[0-9*/,#?LWFRIMON@ \t-]{1,40}( [0-9*/,-]{1,6}){0,6}") {
        let _ = Recurrence::cron(&text);
    }

    #[test]
    fn firings_move_forward_and_come_quickly(
        clock in (field(0, 59), field(0, 59), field(0, 23)),
        (of_month, of_week) in (field(1, 31), field(0, 7)),
        (month, year) in (field(1, 12), field(2020, 2099)),
        zone in zone(),
        after in instant(),
    ) {
        let text = format!("{} {} {} {of_month} {month} {of_week} {year}", clock.0, clock.1, clock.2);
        let Ok(recurrence) = Recurrence::cron(&text) else { return Ok(()) };
        let zone = Zone::parse(zone).unwrap();
        let mut after = after;
        for _ in 0..5 {
            let (next, took) = quickest(&recurrence, &zone, after);
            prop_assert!(took < QUICK, "'{text}' after {after} took {took:?}");
            let Some(next) = next else { break };
            prop_assert!(next > after, "'{text}' went from {after} to {next}");
            // Nothing lies between: asking from just before the answer gives the answer.
            prop_assert_eq!(next_after(&recurrence, &zone, next - TimeDelta::seconds(1)), Some(next));
            after = next;
        }
    }

    /// Left out, because the two differ on purpose:
    ///
    /// - lists and ranges of hours, minutes or seconds without a step or star around clock changes:
    ///   `croner` takes them for intervals, rosterd for fixed times;
    /// - a day field that begins with `*` but is not `*` beside a restricted one: `croner` takes either,
    ///   crontab(5) and rosterd need both;
    /// - what only rosterd takes (`10/15`, `FRI-MON`, `22-2`, `L-3`), and lists that mix `L`, `W` and `LW`;
    /// - years after 2023, because `chrono-tz` carries the zone rules of its build, and after 2099.
    #[test]
    fn croner_gives_the_same_times(
        clock in (field(0, 59), field(0, 59), field(0, 23)),
        (of_month, of_week) in days(),
        month in prop_oneof![3 => Just("*".to_owned()), 1 => field(1, 12)],
        zone in zone(),
        pick in any::<u64>(),
    ) {
        let text = format!("{} {} {} {of_month} {month} {of_week}", clock.0, clock.1, clock.2);
        let Ok(ours) = Recurrence::cron(&text) else { return Ok(()) };
        let several = [&clock.0, &clock.1, &clock.2].iter().any(|field| field.contains([',', '-']));
        let zone = if several && ours.rhythm() == Rhythm::FixedTimes { "UTC" } else { zone };
        let theirs = CronParser::builder().seconds(Seconds::Required).year(Year::Optional).build().parse(&text);
        let theirs = theirs.map_err(|error| TestCaseError::fail(format!("croner refuses '{text}': {error}")))?;
        let tz: chrono_tz::Tz = zone.parse().unwrap();
        let mut after = before_a_change(zone, pick);
        let zone = Zone::parse(zone).unwrap();
        for _ in 0..12 {
            let Ok(expected) = theirs.find_next_occurrence(&after.with_timezone(&tz), false) else { break };
            let expected = expected.with_timezone(&Utc);
            if expected.timestamp() >= 1_704_067_200 {
                break;
            }
            prop_assert_eq!(next_after(&ours, &zone, after), Some(expected), "'{}' after {} in {}", text, after, zone);
            after = expected;
        }
    }

    #[test]
    fn a_plan_serves_or_counts_every_due_time(
        minutes in field(0, 59),
        hours in field(0, 23),
        start in instant(),
        away_seconds in 0_i64..200_000,
        zone in zone(),
        policy in prop::sample::select(&[MissedRun::Skip, MissedRun::Once, MissedRun::All][..]),
    ) {
        let recurrence = Recurrence::cron(&format!("{minutes} {hours} * * *")).unwrap();
        let zone = Zone::parse(zone).unwrap();
        let Some(due) = next_after(&recurrence, &zone, start) else { return Ok(()) };
        let now = due + TimeDelta::seconds(away_seconds);
        let all: Vec<_> = std::iter::successors(Some(due), |at| next_after(&recurrence, &zone, *at))
            .take_while(|at| *at <= now)
            .collect();
        let plan = missed(&recurrence, &zone, due, now, CatchUp { policy, ..CatchUp::default() });
        prop_assert_eq!(plan.fire.len() as u64 + plan.dropped, all.len() as u64);
        prop_assert!(all.ends_with(&plan.fire));
        prop_assert_eq!(plan.next, next_after(&recurrence, &zone, now));
    }
}

#[test]
fn rare_and_busy_schedules_answer_quickly_too() {
    for text in RARE_AND_BUSY {
        let recurrence = Recurrence::cron(text).unwrap();
        for zone in ZONES {
            let zone = Zone::parse(zone).unwrap();
            for after in [
                "1970-01-01T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2044-03-01T00:00:00Z",
                "2088-03-01T00:00:00Z",
            ] {
                let (_, took) = quickest(&recurrence, &zone, after.parse().unwrap());
                assert!(took < QUICK, "'{text}' after {after} in {zone} took {took:?}");
            }
        }
    }
}
