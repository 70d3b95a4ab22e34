//! I10: never more rows of a configuration in progress than its `MaxInstances`, counted over all runners.

use super::Findings;
use crate::clock::SECOND;
use crate::history::History;
use std::collections::HashMap;

pub fn check(history: &History, found: &mut Findings) {
    let mut running: HashMap<_, i32> = HashMap::new();
    // By the time of the change: whoever counts a run as ended began its statement after that run's end was committed.
    for change in history.changes_by_time() {
        let Some(limits) = history.limits.get(&change.config) else { continue };
        let runs = |status: Option<i32>| i32::from(matches!(status, Some(2 | -1)));
        let now = running.entry(change.config).or_default();
        *now += runs(change.status) - runs(change.old_status);
        if !change.is_claim() {
            continue;
        }
        // The largest limit in force about then: an edit counts from its commit, which is after its time.
        let in_force = limits.iter().enumerate().filter(|(at, (since, _))| {
            let until = limits.get(at + 1).map_or(u64::MAX, |next| next.0 + SECOND);
            *since <= change.at && change.at <= until
        });
        let most = in_force.map(|(_, (_, most))| if *most == 0 { i32::MAX } else { *most }).max();
        if let Some(most) = most.filter(|most| *most < i32::MAX) {
            found.decide("I10");
            if *now > most {
                found.violate(
                    "I10",
                    format!("{now} rows of {} ran at once, {most} may: {change:?}", change.config),
                );
            }
        }
    }
}
