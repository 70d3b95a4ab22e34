//! The system keeps its promises in every order of events; without any one of its rules it does not.

use rosterd_model::{Bounds, CRASHES_ARE_TRUE, EXAMPLES, NO_STALE_EFFECT, ONE_OPEN_GATE, Rules, System};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::collections::BTreeSet;
use std::time::Instant;

const QUIET: Bounds = Bounds { rows: 1, faults: 0, crashes: 0, cancels: 0, put_backs: 0, max_attempts: 2 };

/// Together they hold what has to be tried: any two faults; any fault beside a cancel and a drain; three crashes; two
/// rows and a crash. Each is explored to its end.
const BOUNDS: [Bounds; 4] = [
    Bounds { faults: 2, ..QUIET },
    Bounds { faults: 1, cancels: 1, put_backs: 1, ..QUIET },
    Bounds { crashes: 3, cancels: 1, max_attempts: 1, ..QUIET },
    Bounds { rows: 2, crashes: 1, max_attempts: 1, ..QUIET },
];

#[test]
fn every_promise_holds_in_every_order_of_events() {
    let examples: BTreeSet<&str> = BOUNDS.into_iter().flat_map(explore).collect();
    // A promise about what never happens would be worth nothing.
    assert_eq!(examples, BTreeSet::from(EXAMPLES));
}

#[test]
#[ignore = "four million states take about a minute"]
fn every_promise_holds_for_two_rows_and_any_fault() {
    explore(Bounds { rows: 2, faults: 1, max_attempts: 1, ..QUIET });
}

/// Tries everything within these bounds; returns which examples there were.
fn explore(bounds: Bounds) -> BTreeSet<&'static str> {
    let began = Instant::now();
    let system = System { rules: Rules::ALL, bounds };
    let checker = system.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{bounds:?}: {} states, {} steps, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    let found = checker.discoveries().into_iter();
    found
        .map(|(name, path)| {
            let sometimes = system.property(name).expectation == Expectation::Sometimes;
            assert!(sometimes, "{name} does not hold within {bounds:?}: {:?}", path.into_actions());
            name
        })
        .collect()
}

/// Without a rule, and within these bounds, this promise is broken; the path that shows it is printed.
fn breaks(rules: Rules, bounds: Bounds, promise: &'static str) {
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    let checker = System { rules, bounds }.checker().threads(2).finish_when(wanted).spawn_bfs().join();
    let Some(path) = checker.discovery(promise) else {
        panic!("{} states without {rules:?} and {promise:?} holds in all", checker.unique_state_count())
    };
    println!("{} states until not {promise:?}: {:?}", checker.unique_state_count(), path.into_actions());
}

#[test]
fn a_gate_that_asks_only_for_a_valid_lease_lets_a_zombie_act() {
    // It registers anew, and its lease is valid again: another lease.
    let rules = Rules { gate_checks_runner: false, ..Rules::ALL };
    breaks(rules, Bounds { faults: 1, ..QUIET }, ONE_OPEN_GATE);
    breaks(rules, Bounds { faults: 1, ..QUIET }, NO_STALE_EFFECT);
}

#[test]
fn an_outcome_that_names_only_row_and_runner_ends_the_next_run_of_that_runner() {
    let rules = Rules { settle_names_claim: false, ..Rules::ALL };
    breaks(rules, Bounds { faults: 1, put_backs: 1, ..QUIET }, ONE_OPEN_GATE);
}

#[test]
fn a_reaper_that_does_not_compare_the_seq_removes_a_runner_that_came_back() {
    let rules = Rules { reap_compares_seq: false, ..Rules::ALL };
    breaks(rules, Bounds { faults: 1, ..QUIET }, ONE_OPEN_GATE);
}

#[test]
fn a_rescuer_that_does_not_look_for_the_owner_takes_rows_from_the_living() {
    let rules = Rules { rescue_checks_owner: false, ..Rules::ALL };
    breaks(rules, QUIET, ONE_OPEN_GATE);
}

#[test]
fn an_observer_that_counts_through_its_own_gaps_takes_an_outage_for_a_crash() {
    let rules = Rules { observer_minds_gaps: false, ..Rules::ALL };
    breaks(rules, Bounds { faults: 1, ..QUIET }, CRASHES_ARE_TRUE);
}

#[test]
fn an_observer_that_counts_failed_turns_as_turns_takes_a_stall_for_a_crash() {
    let rules = Rules { failed_turns_are_gaps: false, ..Rules::ALL };
    breaks(rules, Bounds { faults: 1, ..QUIET }, CRASHES_ARE_TRUE);
}
