//! What must hold whatever went wrong: twelve sentences, a file each, decided over the recorded history.

mod i01_nothing_lost;
mod i02_legal_trails;
mod i03_one_owner;
mod i04_own_outcome;
mod i05_ledger;
mod i06_explained;
mod i07_cancels;
mod i08_rates;
mod i09_schedules;
mod i10_instances;

use crate::clock::Nanos;
use crate::history::History;
use std::collections::BTreeMap;

/// Something that must not be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Violation {
    /// I1 to I12.
    pub invariant: &'static str,
    /// What was found.
    pub sentence: String,
}

/// What the invariants found, and what they measured on the way.
#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<Violation>,
    /// Within the tolerances that are reported apart, by name.
    pub slack: BTreeMap<&'static str, usize>,
    /// Nanoseconds from a cancel of a running row to its end, with and without a fault nearby.
    pub cancels: Vec<Nanos>,
    pub calm_cancels: Vec<Nanos>,
    /// Nanoseconds between a due time and its row, with no fault nearby.
    pub lateness: Vec<Nanos>,
    /// How many times each invariant was decided on something.
    pub decided: BTreeMap<&'static str, usize>,
}

impl Findings {
    fn violate(&mut self, invariant: &'static str, sentence: String) {
        self.violations.push(Violation { invariant, sentence });
    }

    fn slack(&mut self, what: &'static str) {
        *self.slack.entry(what).or_default() += 1;
    }

    fn decide(&mut self, invariant: &'static str) {
        *self.decided.entry(invariant).or_default() += 1;
    }
}

/// Decides all that can be decided from a history. I11 and I12 are decided by the world itself at its end.
pub fn check(history: &History) -> Findings {
    let mut found = Findings::default();
    for check in [
        i01_nothing_lost::check,
        i02_legal_trails::check,
        i03_one_owner::check,
        i04_own_outcome::check,
        i05_ledger::check,
        i06_explained::check,
        i07_cancels::check,
        i08_rates::check,
        i09_schedules::check,
        i10_instances::check,
    ] {
        check(history, &mut found);
    }
    found
}
