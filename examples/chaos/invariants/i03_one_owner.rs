//! I3: two runs of a row never act at once under valid leases: no run acts after its runner was removed, nor after a later
//! run of its row began.

use super::Findings;
use crate::clock::{MILLI, seconds};
use crate::history::History;

/// Between passing the gate and acting. Nobody can close that window; what falls into it is counted apart.
const CHECK_TO_SEND: u64 = 50 * MILLI;

pub fn check(history: &History, found: &mut Findings) {
    for runs in history.runs.values() {
        for (at, run) in runs.iter().enumerate() {
            let successor = runs[at + 1..].iter().map(|next| next.started).min();
            let removed = history.runners.get(&run.runner).and_then(|runner| runner.2);
            for (step, acted, gate) in &run.effects {
                found.decide("I3");
                for (limit, what) in
                    [(successor, "its row was begun by another run"), (removed, "its runner was removed")]
                {
                    let Some(limit) = limit.filter(|limit| acted > limit) else { continue };
                    if *gate > limit {
                        found.violate(
                            "I3",
                            format!(
                                "{} step {step}: attempt {} in process {} acted {:.3} s after {what}",
                                run.row,
                                run.attempt,
                                run.pid,
                                seconds(acted - limit)
                            ),
                        );
                    } else if acted - gate > CHECK_TO_SEND {
                        found.slack("effects of processes frozen between the gate and the effect");
                    } else {
                        found.slack("effects within 50 ms of the gate");
                    }
                }
            }
        }
    }
}
