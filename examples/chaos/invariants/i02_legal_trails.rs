//! I2: the trail of every row is a path of the state diagram, only its owner moves a running row, and final states never
//! change. What nobody may do is refused.

use super::Findings;
use crate::history::{Change, History};
use crate::recorder::{Answer, Intent};

pub fn check(history: &History, found: &mut Findings) {
    for (row, trail) in &history.trails {
        let mut last: Option<&Change> = None;
        for change in trail {
            found.decide("I2");
            if let Some(wrong) = problem(last, change) {
                found.violate("I2", format!("{row}: {wrong}: {change:?}"));
            }
            last = Some(change);
        }
        let stands = last.and_then(|change| change.status);
        if history.over && history.table.get(row).copied() != stands {
            found.violate("I2", format!("{row} does not stand as its trail says"));
        }
    }
    for operation in history.operations.iter().filter(|operation| operation.intent == Intent::Illegal) {
        if let Answer::Done(rows) = &operation.answer
            && !rows.is_empty()
        {
            found.violate("I2", format!("this was accepted: {}", operation.sql));
        }
    }
}

fn problem(last: Option<&Change>, change: &Change) -> Option<&'static str> {
    if let Some(last) = last
        && (last.status, last.attempt, last.claim)
            != (change.old_status, change.old_attempt, change.old_claim)
    {
        return Some("it does not begin where the change before it ended");
    }
    let same_run = (change.thread, change.claim) == (change.old_thread, change.old_claim);
    let same_attempt = change.attempt == change.old_attempt;
    let legal = match (change.old_status, change.status) {
        (None, Some(1)) => change.op == "INSERT" && change.attempt == 0,
        (None, _) => return Some("a row begins as pending"),
        (Some(3..=5), _) => return Some("a final state changed"),
        (_, None) => return Some("a live row was deleted"),
        (Some(1), Some(1 | 5)) => same_attempt,
        (Some(1), Some(2)) => change.runner && change.attempt == change.old_attempt + 1 && !same_run,
        (Some(1), Some(3 | 4)) => same_attempt && change.was_waiting,
        (Some(2), Some(2..=4)) => change.runner && same_run && same_attempt,
        (Some(2), Some(-1)) => same_run && same_attempt,
        (Some(2), Some(1)) => {
            let iteration = change.iteration == change.old_iteration + 1 && change.attempt == 0;
            let again = change.iteration == change.old_iteration
                && (same_attempt || change.attempt == change.old_attempt - 1);
            change.runner && (iteration || again)
        }
        (Some(-1), Some(-1 | 5)) => same_run && same_attempt,
        _ => false,
    };
    (!legal).then_some("no such move")
}
