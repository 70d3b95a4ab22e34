//! I9: a schedule has exactly one row for each of its due times, which are computed here anew, and `AutoStart` keeps one
//! live row.

use super::Findings;
use crate::clock::{Nanos, SECOND, seconds};
use crate::history::History;
use crate::nemesis::Fault;
use crate::recorder::ScheduleRecord;
use std::collections::BTreeMap;

/// Later than this, with nothing in the way, is late.
const LATE: Nanos = 4 * SECOND;

pub fn check(history: &History, found: &mut Findings) {
    let mut due: BTreeMap<_, Vec<(i64, Nanos)>> = BTreeMap::new();
    for change in history.trails.values().map(|trail| &trail[0]) {
        if let (Some(schedule), Some(at)) = (change.schedule, change.due) {
            due.entry(schedule).or_default().push((at, change.at));
        }
    }
    for schedule in &history.schedules {
        let mut rows = due.remove(&schedule.id).unwrap_or_default();
        rows.sort_unstable();
        judge(history, schedule, &rows, found);
    }
    autostart(history, found);
}

fn judge(history: &History, schedule: &ScheduleRecord, rows: &[(i64, Nanos)], found: &mut Findings) {
    let step = schedule.every * 1_000_000;
    for (due, inserted) in rows {
        found.decide("I9");
        // Every n seconds of each minute, and n divides sixty: the multiples of n since 1970.
        if due % step != 0 {
            found.violate(
                "I9",
                format!("schedule {} every {} s had a row due at {due}", schedule.id, schedule.every),
            );
        }
        let due_at = history.wall.to_boot(*due);
        if history.troubles(None, due_at, *inserted).next().is_none() && *inserted > due_at {
            found.lateness.push(inserted - due_at);
            if inserted - due_at > LATE {
                let late = seconds(inserted - due_at);
                found.violate("I9", format!("schedule {} had its row {late:.1} s late", schedule.id));
            }
        }
    }
    for pair in rows.windows(2) {
        if pair[0].0 == pair[1].0 {
            found.violate("I9", format!("schedule {} has two rows due at {}", schedule.id, pair[0].0));
        }
    }
    let end = schedule.stopping.unwrap_or(Nanos::MAX);
    let stepped = history.faults.iter().any(|fault| {
        fault.fault == Fault::ClockStep
            && fault.from <= end
            && fault.to.is_none_or(|to| to + SECOND >= schedule.created)
    });
    if stepped {
        return; // whose wall clock was stepped has due times of another day
    }
    if schedule.missed_run == "all" {
        for pair in rows.windows(2) {
            if pair[1].0 - pair[0].0 > step {
                found.violate(
                    "I9",
                    format!(
                        "schedule {} every {} s has none between {} and {}",
                        schedule.id, schedule.every, pair[0].0, pair[1].0
                    ),
                );
            }
        }
    }
    // With nothing in the way it began, and went on to its end.
    let step = step.unsigned_abs() * 1000;
    if history.over
        && end != Nanos::MAX
        && history.troubles(None, schedule.created, end).next().is_none()
        && end > schedule.created + step + LATE
    {
        let last = rows.last().map_or(schedule.created, |(due, _)| history.wall.to_boot(*due));
        if last + step + LATE < end {
            found.violate(
                "I9",
                format!("schedule {} fell silent {:.1} s before its end", schedule.id, seconds(end - last)),
            );
        }
    }
}

fn autostart(history: &History, found: &mut Findings) {
    let mut live = 0;
    for change in
        history.changes_by_time().into_iter().filter(|change| change.config == history.lanes.autostart)
    {
        let lives = |status: Option<i32>| i32::from(matches!(status, Some(1 | 2 | -1)));
        live += lives(change.status) - lives(change.old_status);
        if live > 1 {
            found.violate("I9", format!("the AutoStart configuration has {live} live rows: {change:?}"));
        }
    }
}
