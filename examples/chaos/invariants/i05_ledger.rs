//! I5: effects in rosterd's own database, committed with the completion, happen exactly once.

use super::Findings;
use crate::history::History;

pub fn check(history: &History, found: &mut Findings) {
    for (row, trail) in history.trails.iter().filter(|(_, trail)| trail[0].config == history.lanes.ledger) {
        found.decide("I5");
        let completed = trail.last().is_some_and(|change| change.status == Some(3));
        let posted = history.ledger.get(row).copied().unwrap_or(0);
        if posted != usize::from(completed) {
            found.violate(
                "I5",
                format!(
                    "{row} is {}completed and posted {posted} times",
                    if completed { "" } else { "not " }
                ),
            );
        }
    }
}
