//! I7: a cancel that was acknowledged is honoured: a pending row ends at once, a running one soon, always as canceled, and
//! nothing of it begins afterwards.

use super::Findings;
use crate::clock::{Nanos, SECOND, seconds};
use crate::history::History;
use crate::recorder::{Answer, Intent};

/// After the acknowledgement.
const NO_NEW_RUN_AFTER: Nanos = 2 * SECOND;
/// The hint may be lost (a poll), the job hear it late (its grace), be aborted (two seconds), and this machine be busy.
const SOON: Nanos = 4 * SECOND;

pub fn check(history: &History, found: &mut Findings) {
    for operation in history.operations.iter().filter(|operation| operation.intent == Intent::Cancel) {
        if let Answer::Refused(why) = &operation.answer {
            found.violate("I7", format!("a cancel was refused: {why}"));
        }
        let Answer::Done(rows) = &operation.answer else { continue };
        for (row, answered) in rows {
            found.decide("I7");
            let was_pending = history.trails.get(row).into_iter().flatten().any(|change| change.is(1, -1));
            if was_pending {
                found.violate("I7", format!("{row} was pending and did not end with its cancel"));
            }
            let stands = history.table.get(row).copied();
            if history.over && stands != Some(5) {
                found.violate(
                    "I7",
                    format!("the cancel of {row} was acknowledged and it stands as {stands:?}"),
                );
            }
            if ![5, -1].contains(answered) {
                found.violate("I7", format!("the cancel of {row} was answered with status {answered}"));
            }
            // A process that was frozen or cut off may begin what it claimed before the cancel; the gate stops it there.
            let late = history.runs.get(row).into_iter().flatten().find(|run| {
                let daemon = history.daemon_of(run.pid);
                run.started > operation.answered + NO_NEW_RUN_AFTER
                    && history.troubles(daemon, operation.answered, run.started).next().is_none()
            });
            if let Some(run) = late {
                let after = seconds(run.started - operation.answered);
                found.violate("I7", format!("{row} began {after:.1} s after its cancel was acknowledged"));
            }
        }
    }
    for (row, trail) in &history.trails {
        let Some(asked) = trail.iter().find(|change| change.is(2, -1)) else { continue };
        let Some(ended) = trail.iter().find(|change| change.is(-1, 5)) else { continue };
        let took = ended.at.saturating_sub(asked.at);
        found.cancels.push(took);
        let daemon =
            asked.thread.and_then(|runner| history.daemon_of_runner(runner)).map(|(_, number)| number);
        if history.troubles(daemon, asked.at, ended.at).next().is_none() {
            found.calm_cancels.push(took);
            if took > SOON {
                found.violate(
                    "I7",
                    format!("{row} ended {:.1} s after its cancel, with nothing in the way", seconds(took)),
                );
            }
        }
    }
}
