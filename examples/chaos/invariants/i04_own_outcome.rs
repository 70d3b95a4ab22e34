//! I4: at least once, and the outcome that is written is that of the very run that owns the row. Completed means that run
//! returned `Ok`, a retry that it failed; with `OnRunnerLoss = 'error'` nothing starts twice.

use super::Findings;
use crate::effects::What;
use crate::history::{Change, History, Run};

pub fn check(history: &History, found: &mut Findings) {
    for (row, trail) in &history.trails {
        let runs = history.runs.get(row).map_or(&[][..], Vec::as_slice);
        let is_http = [history.lanes.paced, history.lanes.narrow].contains(&trail[0].config);
        let mut claimed = None;
        let (mut started, mut put_back) = (0, 0);
        for (at, change) in trail.iter().enumerate() {
            if change.is_claim() {
                claimed = Some(at);
                started += 1;
            }
            if !change.ends_run() || change.is_rescue() {
                continue;
            }
            if change.status == Some(1) && change.attempt < change.old_attempt && change.attempt != 0
                || is_put_back(change)
            {
                put_back += 1;
                continue;
            }
            if is_http {
                continue;
            }
            found.decide("I4");
            // The process that lost its answer wrote it once more: what counts is the end of a run of this claim.
            let own = runs.iter().filter(|run| run.claim == claimed && claimed.is_some());
            let ends: Vec<What> = own.filter_map(|run| ended_before(run, change)).collect();
            let needs: &[What] = match (change.status, change.iteration > change.old_iteration) {
                (Some(3), _) => &[What::Ok],
                (Some(1), true) => &[What::Ok, What::Failed, What::Stopped, What::Dropped],
                // A posting that could not be committed is a failure, after all else was well.
                (Some(1), false) if trail[0].config == history.lanes.ledger => {
                    &[What::Failed, What::Ok, What::Dropped]
                }
                (Some(1), false) => &[What::Failed],
                _ => continue,
            };
            if !ends.iter().any(|end| needs.contains(end)) {
                found.violate(
                    "I4",
                    format!(
                        "{row} was written as {:?} and its run ended as {ends:?}: {change:?}",
                        change.status
                    ),
                );
            }
        }
        if trail[0].config == history.lanes.once && started - put_back > 1 {
            found.violate(
                "I4",
                format!("{row} may start once and started {started} times, put back {put_back}"),
            );
        }
    }
}

/// The daemon stopped, or never heard that it had claimed the row: no attempt is counted.
pub fn is_put_back(change: &Change) -> bool {
    change.status == Some(1)
        && change.iteration == change.old_iteration
        && change.attempt == change.old_attempt - 1
        && !change.is_rescue()
}

fn ended_before(run: &Run, change: &Change) -> Option<What> {
    run.end.filter(|(_, at)| *at <= change.at).map(|(what, _)| what)
}
