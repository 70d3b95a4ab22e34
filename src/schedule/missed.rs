//! Due times that passed unserved, and jitter.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::MissedRun;
use super::calendar::next_after;
use super::expression::Recurrence;
use super::zone::Zone;

/// Dropped due times are counted one by one up to here, so that a year of missed seconds costs
/// milliseconds; this number in [`MissedPlan::dropped`] means "so many or more".
pub const MAX_COUNTED: u64 = 10_000;

/// How a schedule catches up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatchUp {
    /// `JobSchedule.MissedRun`.
    pub policy: MissedRun,
    /// How late a due time may be served and still count as on time.
    pub grace: Duration,
    /// The most rows put on the queue at once, under any policy; at least 1.
    pub limit: usize,
}

impl Default for CatchUp {
    /// `once`, a minute of grace, a hundred rows.
    fn default() -> Self {
        Self { policy: MissedRun::Once, grace: Duration::from_mins(1), limit: 100 }
    }
}

/// What to put on the queue now, and when to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissedPlan {
    /// The due times that get a row now, oldest first; none is later than now.
    pub fire: Vec<DateTime<Utc>>,
    /// How many due times up to now get no row, counted up to [`MAX_COUNTED`]. Log it when it is not 0.
    pub dropped: u64,
    /// The first due time after now, or `None` when the schedule is over.
    pub next: Option<DateTime<Utc>>,
}

/// Decides which due times from `due` (the stored `NextRun`) up to `now` are served.
///
/// A due time is *missed* when `now` is later by more than the grace. Then:
///
/// | policy | fires |
/// |---|---|
/// | `skip` | the due times still within the grace; the missed ones are dropped |
/// | `once` | if any was missed, only the latest of all, standing for the rest; otherwise each |
/// | `all` | each |
///
/// More than `limit` due times under any policy: the newest `limit` fire and the older ones are dropped.
pub fn missed(
    recurrence: &Recurrence,
    zone: &Zone,
    due: DateTime<Utc>,
    now: DateTime<Utc>,
    catch_up: CatchUp,
) -> MissedPlan {
    let next = next_after(recurrence, zone, now);
    if due > now {
        return MissedPlan { fire: Vec::new(), dropped: 0, next: Some(due) };
    }
    let grace = TimeDelta::from_std(catch_up.grace).unwrap_or(TimeDelta::MAX);
    let any_missed = now - due > grace;
    let on_time = |at: &DateTime<Utc>| now - *at <= grace;

    let limit = match catch_up.policy {
        MissedRun::Once if any_missed => 1,
        _ => catch_up.limit.max(1),
    };
    let mut fire = newest(recurrence, zone, due, now, limit);
    if catch_up.policy == MissedRun::Skip {
        fire.retain(on_time);
    }
    let is_dropped = |at: &DateTime<Utc>| *at <= now && fire.first().is_none_or(|first| at < first);
    let due_times = std::iter::successors(Some(due), |at| next_after(recurrence, zone, *at));
    let dropped = due_times.take_while(is_dropped).zip(1..=MAX_COUNTED).last().map_or(0, |(_, count)| count);
    MissedPlan { fire, dropped, next }
}

/// How long to hold back the row of one due time: between nothing and `max_seconds`, in milliseconds.
///
/// Every runner, build and version computes the same, because it is FNV-1a over the schedule's ID and
/// the due time, mixed as in `SplitMix64`; the tests pin values.
pub fn jitter(schedule_id: Uuid, due: DateTime<Utc>, max_seconds: u32) -> Duration {
    let bytes = schedule_id.into_bytes().into_iter().chain(due.timestamp().to_be_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    Duration::from_millis(hash % (u64::from(max_seconds) * 1000 + 1))
}

/// The last `limit` due times from `due` to `now`, oldest first.
fn newest(
    recurrence: &Recurrence,
    zone: &Zone,
    due: DateTime<Utc>,
    now: DateTime<Utc>,
    limit: usize,
) -> Vec<DateTime<Utc>> {
    let mut newest = Vec::new();
    let mut until = now;
    while newest.len() < limit
        && let Some(at) = latest(recurrence, zone, due, until)
    {
        newest.push(at);
        until = at - TimeDelta::seconds(1);
    }
    newest.reverse();
    newest
}

/// The last due time from `due` to `until`: "is there one after x?" turns from yes to no exactly once, so
/// halving finds it in some thirty steps where walking from `due` could take millions.
fn latest(
    recurrence: &Recurrence,
    zone: &Zone,
    due: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    if until < due {
        return None;
    }
    let (mut latest, mut none_after) = (due, until);
    while none_after - latest >= TimeDelta::seconds(1) {
        let middle = latest + (none_after - latest) / 2;
        match next_after(recurrence, zone, middle).filter(|at| *at <= until) {
            Some(at) => latest = at,
            None => none_after = middle,
        }
    }
    Some(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-22T{text}Z").parse().unwrap()
    }

    fn plan(cron: &str, due: &str, now: &str, policy: MissedRun) -> (Vec<String>, u64, Option<String>) {
        let recurrence = Recurrence::cron(cron).unwrap();
        let catch_up = CatchUp { policy, limit: 5, ..CatchUp::default() };
        let plan = missed(&recurrence, &Zone::UTC, at(due), at(now), catch_up);
        let time = |at: DateTime<Utc>| at.format("%T").to_string();
        (plan.fire.into_iter().map(time).collect(), plan.dropped, plan.next.map(time))
    }

    fn result(fire: &[&str], dropped: u64, next: &str) -> (Vec<String>, u64, Option<String>) {
        (fire.iter().map(ToString::to_string).collect(), dropped, Some(next.to_owned()))
    }

    const POLICIES: [MissedRun; 3] = [MissedRun::Skip, MissedRun::Once, MissedRun::All];

    #[test]
    fn a_due_time_served_within_the_grace_fires_under_every_policy() {
        for policy in POLICIES {
            let on_time = plan("*/10 * * * *", "10:00:00", "10:01:00", policy);
            assert_eq!(on_time, result(&["10:00:00"], 0, "10:10:00"));
            let two_in_one_tick = plan("* * * * * *", "10:00:00", "10:00:01.900", policy);
            assert_eq!(two_in_one_tick, result(&["10:00:00", "10:00:01"], 0, "10:00:02"));
            let not_yet = plan("*/10 * * * *", "10:10:00", "10:09:59", policy);
            assert_eq!(not_yet, result(&[], 0, "10:10:00"));
        }
    }

    #[test]
    fn missed_due_times_are_skipped_run_once_or_run_all() {
        let after_an_outage = |policy| plan("*/10 * * * *", "10:00:00", "10:35:00", policy);
        assert_eq!(after_an_outage(MissedRun::Skip), result(&[], 4, "10:40:00"));
        assert_eq!(after_an_outage(MissedRun::Once), result(&["10:30:00"], 3, "10:40:00"));
        let all = ["10:00:00", "10:10:00", "10:20:00", "10:30:00"];
        assert_eq!(after_an_outage(MissedRun::All), result(&all, 0, "10:40:00"));

        let back_just_in_time = |policy| plan("*/10 * * * *", "10:00:00", "10:20:30", policy);
        assert_eq!(back_just_in_time(MissedRun::Skip), result(&["10:20:00"], 2, "10:30:00"));
        assert_eq!(back_just_in_time(MissedRun::Once), result(&["10:20:00"], 2, "10:30:00"));
    }

    #[test]
    fn all_keeps_the_newest_up_to_the_limit_and_counts_the_rest() {
        let newest = ["10:55:00", "10:56:00", "10:57:00", "10:58:00", "10:59:00"];
        assert_eq!(
            plan("* * * * *", "10:00:00", "10:59:59", MissedRun::All),
            result(&newest, 55, "11:00:00")
        );
    }

    #[test]
    fn a_year_of_missed_seconds_is_planned_in_bounded_time() {
        let every_second = Recurrence::cron("* * * * * *").unwrap();
        let (due, now) = (at("00:00:00"), at("00:00:00") + TimeDelta::days(365));
        for policy in POLICIES {
            let plan = missed(&every_second, &Zone::UTC, due, now, CatchUp { policy, ..CatchUp::default() });
            assert_eq!(plan.dropped, MAX_COUNTED);
            assert!(plan.fire.len() <= 100);
            assert_eq!(plan.next, Some(now + TimeDelta::seconds(1)));
        }
    }

    #[test]
    fn a_schedule_that_is_over_still_serves_its_last_due_time() {
        let once = Recurrence::cron("0 0 10 22 11 * 2026").unwrap();
        let plan = missed(&once, &Zone::UTC, at("10:00:00"), at("10:00:01"), CatchUp::default());
        assert_eq!(plan, MissedPlan { fire: vec![at("10:00:00")], dropped: 0, next: None });
    }

    #[test]
    fn jitter_is_the_same_everywhere_and_stays_within_its_bound() {
        let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        let due = at("10:00:00");
        assert_eq!(jitter(id, due, 0), Duration::ZERO);
        assert_eq!(jitter(id, due, 60), Duration::from_millis(26_893));
        let values: Vec<Duration> =
            (0..1000).map(|minute| jitter(id, due + TimeDelta::minutes(minute), 10)).collect();
        assert!(values.iter().all(|value| *value <= Duration::from_secs(10)));
        let mean = values.iter().sum::<Duration>() / 1000;
        assert!(mean > Duration::from_millis(4500) && mean < Duration::from_millis(5500), "{mean:?}");
    }
}
