//! rosterd's row, its lease, two runners that rescue each other, and an operator, small enough that every order in
//! which things can happen is tried.
//!
//! ```text
//!               claim (own Runner row)            settle (runner, claim, attempt)
//!   1 PENDING ------------------------> 2 IN PROGRESS ---------------------> 3 COMPLETED, 4 ERROR
//!     |    ^                              |    |    |
//!     |    +------------------------------+    |    +--> 4 ERROR   the third runner died under it
//!     |      retry, put back, rescue           |
//!     | cancel                          cancel |
//!     v                                        v        settle, rescue
//!   5 CANCELED <--------------------------- -1 CANCEL
//! ```
//!
//! # What a step is
//!
//! A statement of `src/history/*.sql`, a turn of `src/engine/heartbeat.rs`, an answer that is lost, a process that
//! stops or goes on, a tick of the clock. Statements are atomic, as they are in PostgreSQL on a single row. They
//! may be carried out although their answer is lost, and an outcome may arrive long after its sender gave it up.
//! A process can freeze between any two steps, also between reading a `Seq` and removing that Runner row, and
//! between passing the gate and acting.
//!
//! # Time
//!
//! Clocks tick together: `CLOCK_BOOTTIME` of two machines may differ in what it shows, not in how fast it runs, and
//! only durations are compared. A running process with a database does one turn in each tick; a frozen one does
//! none while its clock goes on. A lease is [`LEASE`] ticks for those who watch and one less for the runner that
//! holds it, which is the margin.
//!
//! # What is left out
//!
//! Payloads, priorities, `NotBefore`, `MaxInstances`, Continuous rows (their wait is the edge 2 -> 1 like a retry) and
//! `OnRunnerLoss = 'error'` (an edge to 4 at the first loss instead of the third). The steps written down in
//! `JobEffect`: they make a repeated effect known, here none of it is trusted. How long a statement takes on its way
//! in, except for outcomes: a pulse or a claim that arrives late is one that was sent late. A `Seq` only grows, so
//! that of each look at one the model keeps whether it has moved since.
//!
//! Between passing the gate and acting a process may be frozen until its lease is over, and nobody can prevent
//! that. Such an effect is marked as late and excluded from the promise; `JobHistory.ID` as the idempotency key is
//! what bounds it.

mod moves;
mod state;

pub use moves::Action;
pub use state::{Bounds, Database, Life, Process, Row, Rules, Run, State, Wrong};

use stateright::{Model, Property};

/// Ticks for which a `Seq` may stand still.
pub const LEASE: u8 = 2;
/// Ticks within which every row is final once nothing fails any more.
pub const HEALED_WITHIN: usize = 12;

/// The system with these rules, within these bounds.
#[derive(Debug, Clone, Copy)]
pub struct System {
    /// What the runners check.
    pub rules: Rules,
    /// How much may happen.
    pub bounds: Bounds,
}

/// No two runs of one row may act at once.
pub const ONE_OPEN_GATE: &str = "a row has one open gate";
/// Nor one after the start of the next.
pub const NO_STALE_EFFECT: &str = "no run acts after a newer one began";
/// 3, 4 and 5 are for ever.
pub const FINAL_IS_FINAL: &str = "a final row never changes";
/// A cancel wins if it committed first.
pub const CANCEL_WINS: &str = "a cancelled row ends as 5";
/// 3 is only said of work that was done, by the run that did it.
pub const COMPLETED_MEANS_DONE: &str = "a completed row's own run did its work";
/// An outage is no crash, and nothing undoes one.
pub const CRASHES_ARE_TRUE: &str = "a row's crashes are freezes and crashes that happened";
/// The third one ends the row.
pub const THIRD_CRASH_ENDS: &str = "a row whose runners died three times is final";
/// Nothing is lost or stuck.
pub const HEALS: &str = "every row becomes final when nothing fails any more";

/// What must be possible within the bounds, or they prove nothing.
pub const EXAMPLES: [&str; 5] = [
    "a poisonous row ends as 4",
    "a rescued row is completed",
    "a running row is cancelled and its own run ends it",
    "a zombie runs beside the run that replaced it",
    "an effect comes late, by the window nobody can close",
];

impl Model for System {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.bounds)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        moves::possible(self, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        moves::carry_out(self, &mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_OPEN_GATE, |system, state: &State| {
                (0..state.rows.len()).all(|row| state.open_gates(system.rules, row) <= 1)
            }),
            Property::always(NO_STALE_EFFECT, |_, state: &State| state.wrong != Some(Wrong::StaleEffect)),
            Property::always(FINAL_IS_FINAL, |_, state: &State| state.wrong != Some(Wrong::FinalChanged)),
            Property::always(CANCEL_WINS, |_, state: &State| {
                state.rows.iter().all(|row| !row.cancelled || [-1, 5].contains(&row.status))
            }),
            Property::always(COMPLETED_MEANS_DONE, |_, state: &State| {
                state.rows.iter().all(|row| row.status != 3 || row.acted)
            }),
            Property::always(CRASHES_ARE_TRUE, |_, state: &State| {
                state.wrong != Some(Wrong::CrashUndone)
                    && state.rows.iter().all(|row| row.crashes <= state.harm)
            }),
            Property::always(THIRD_CRASH_ENDS, |_, state: &State| {
                state.rows.iter().all(|row| row.crashes < 3 || row.is_final())
            }),
            Property::always(HEALS, |system, state: &State| moves::ticks_to_heal(system, state).is_some()),
            Property::sometimes(EXAMPLES[0], |_, state: &State| {
                state.rows.iter().any(|row| row.crashes == 3 && row.status == 4)
            }),
            Property::sometimes(EXAMPLES[1], |_, state: &State| {
                state.rows.iter().any(|row| row.crashes > 0 && row.status == 3)
            }),
            Property::sometimes(EXAMPLES[2], |_, state: &State| {
                state.rows.iter().any(|row| row.status == 5 && row.attempt > 0 && row.crashes == 0)
            }),
            Property::sometimes(EXAMPLES[3], |_, state: &State| {
                state.rows.iter().enumerate().any(|(n, _)| state.runs_of(n) >= 2)
            }),
            Property::sometimes(EXAMPLES[4], |_, state: &State| state.late_effect),
        ]
    }
}
