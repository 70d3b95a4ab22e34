//! What can happen next, and what it does.

use crate::state::{Database, Life, Outcome, Phase, Process, Row, Run, State, Stopwatch, Verdict, Wrong};
use crate::{HEALED_WITHIN, LEASE, System};

/// One step. The first number is the process, the second the row or the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The clock goes on.
    Tick,
    /// Registers, or pulses and looks at the others.
    Turn(usize),
    /// The pulse is counted and its answer lost.
    TurnUnheard(usize),
    /// The database does not answer.
    TurnFails(usize),
    /// Removes the Runner rows of the silent.
    Reap(usize),
    /// Pending -> in progress.
    Claim(usize, usize),
    /// The same, but the process never hears of it.
    ClaimUnheard(usize, usize),
    /// Puts back a row that it has without knowing why.
    Recall(usize, usize),
    /// A run passes the gate.
    Pass(usize, usize),
    /// And acts.
    Act(usize, usize),
    /// A run ends.
    End(usize, usize, Verdict),
    /// A run whose runner lost its lease stops; nothing of it is written.
    Drop(usize, usize),
    /// Writes an outcome.
    Settle(usize, usize),
    /// The same, and the answer is lost: it will be written again.
    SettleUnheard(usize, usize),
    /// The outcome gets stuck on its way, and is written again before it arrives.
    SettleLate(usize, usize),
    /// And arrives.
    Deliver,
    /// Takes a row from a runner that is gone.
    Rescue(usize, usize),
    /// An operator sets `StatusID = -1`.
    Cancel(usize),
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// SIGKILL.
    Crash(usize),
    /// A new process.
    Restart(usize),
    /// The database fails in this way.
    Break(Database),
    /// And is back.
    Mend,
}

/// Jobs at once in a process, zombies included.
const WORKERS: usize = 2;

pub(crate) fn possible(system: &System, state: &State, actions: &mut Vec<Action>) {
    let up = state.database == Database::Up;
    let faulty = state.faults > 0;
    if state.rows.iter().all(Row::is_final)
        && state.late.is_none()
        && state.processes.iter().all(|p| p.runs.is_empty())
    {
        return; // nothing of interest can follow
    }
    if may_tick(state) {
        actions.push(Action::Tick);
    }
    for (p, process) in state.processes.iter().enumerate() {
        match process.life {
            Life::Running => {}
            Life::Frozen => {
                actions.push(Action::Thaw(p));
                if faulty || state.crashes > 0 {
                    actions.push(Action::Crash(p));
                }
                continue;
            }
            Life::Down => {
                actions.push(Action::Restart(p));
                continue;
            }
        }
        if faulty || state.crashes > 0 {
            actions.push(Action::Crash(p));
        }
        if faulty {
            actions.push(Action::Freeze(p));
        }
        if process.turn_due && process.silent.is_empty() {
            match state.database {
                Database::Up => {
                    actions.push(Action::Turn(p));
                    if faulty && process.identity.is_some() {
                        actions.push(Action::TurnUnheard(p));
                    }
                }
                Database::Stalled if !system.rules.failed_turns_are_gaps => {
                    actions.push(Action::TurnFails(p));
                }
                Database::Stalled | Database::Away => {}
            }
        }
        if !process.silent.is_empty() && up {
            actions.push(Action::Reap(p));
        }
        for (n, run) in process.runs.iter().enumerate() {
            run_actions(state, system, p, n, run, actions);
        }
        let Some(identity) = process.identity.filter(|_| up) else { continue };
        for (n, row) in state.rows.iter().enumerate() {
            if row.status == 1 && state.runners.contains(&identity) && process.runs.len() < WORKERS {
                actions.push(Action::Claim(p, n));
                if faulty {
                    actions.push(Action::ClaimUnheard(p, n));
                }
            }
            let unheard = !process.runs.iter().any(|run| run.row == n && !run.stale);
            if row.is_owned() && row.owner == identity && unheard {
                actions.push(Action::Recall(p, n));
            }
            if row.is_owned() && (!state.runners.contains(&row.owner) || !system.rules.rescue_checks_owner) {
                actions.push(Action::Rescue(p, n));
            }
        }
    }
    if up {
        if state.late.is_some() {
            actions.push(Action::Deliver);
        }
        if state.cancels > 0 {
            let live = state.rows.iter().enumerate().filter(|(_, row)| [1, 2].contains(&row.status));
            actions.extend(live.map(|(n, _)| Action::Cancel(n)));
        }
        if faulty && all_had_their_turn(state) {
            actions.push(Action::Break(Database::Away));
            // While failed turns are gaps the two are the same.
            if !system.rules.failed_turns_are_gaps {
                actions.push(Action::Break(Database::Stalled));
            }
        }
    } else {
        actions.push(Action::Mend);
    }
}

/// Whoever runs is prompt: it takes its turn in each tick, removes whom it found silent, and acts once it has
/// passed the gate. Whoever is slower than that is frozen.
fn may_tick(state: &State) -> bool {
    state.processes.iter().filter(|process| process.life == Life::Running).all(|process| {
        let in_gate = process.runs.iter().any(|run| run.phase == Phase::InGate { late: false });
        let turned = !process.turn_due && process.silent.is_empty();
        (turned || state.database != Database::Up) && !in_gate
    })
}

/// Between two outages everybody gets through. A database that lets one runner through, and another for a whole
/// lease not, has made that one as good as dead.
fn all_had_their_turn(state: &State) -> bool {
    state.processes.iter().all(|process| process.life != Life::Running || process.last_turn < 2)
}

fn run_actions(state: &State, system: &System, p: usize, n: usize, run: &Run, actions: &mut Vec<Action>) {
    let process = &state.processes[p];
    let lost = process.identity != Some(run.identity);
    match run.phase {
        Phase::InGate { .. } => actions.push(Action::Act(p, n)),
        Phase::Working | Phase::Acted => {
            if run.phase == Phase::Working && process.gate_is_open(system.rules, run) {
                actions.push(Action::Pass(p, n));
            }
            if lost {
                actions.push(Action::Drop(p, n));
                return;
            }
            if run.phase == Phase::Acted {
                actions.push(Action::End(p, n, Verdict::Done));
            }
            actions.push(Action::End(p, n, Verdict::Failed));
            if state.put_backs > 0 {
                actions.push(Action::End(p, n, Verdict::PutBack));
            }
        }
        Phase::Ended(_) if state.database == Database::Up => {
            actions.push(Action::Settle(p, n));
            if state.faults > 0 {
                actions.push(Action::SettleUnheard(p, n));
                if state.late.is_none() {
                    actions.push(Action::SettleLate(p, n));
                }
            }
        }
        Phase::Ended(_) => {}
    }
}

pub(crate) fn carry_out(system: &System, state: &mut State, action: Action) {
    match action {
        Action::Tick => tick(state),
        Action::Turn(p) => turn(system, state, p),
        Action::TurnUnheard(p) => {
            state.faults -= 1;
            let identity = state.processes[p].identity.unwrap_or_default();
            if state.runners.contains(&identity) {
                count_up(state, identity);
            }
            let process = &mut state.processes[p];
            process.turn_due = false;
            failed_turn(system, process);
        }
        Action::TurnFails(p) => failed_turn(system, &mut state.processes[p]),
        Action::Reap(p) => {
            for (identity, moved) in std::mem::take(&mut state.processes[p].silent) {
                if !moved || !system.rules.reap_compares_seq {
                    state.runners.retain(|id| *id != identity);
                }
            }
        }
        Action::Claim(p, row) => {
            let run = claim(state, p, row);
            state.processes[p].runs.push(run);
        }
        Action::ClaimUnheard(p, row) => {
            state.faults -= 1;
            claim(state, p, row);
        }
        Action::Recall(p, row) => {
            let identity = state.rows[row].owner;
            debug_assert_eq!(state.processes[p].identity, Some(identity));
            let run = Run { row, identity, stale: false, phase: Phase::Ended(Verdict::PutBack) };
            settle(system, state, &run, Verdict::PutBack);
        }
        Action::Pass(p, n) => state.processes[p].runs[n].phase = Phase::InGate { late: false },
        Action::Act(p, n) => {
            let run = &mut state.processes[p].runs[n];
            let row = &mut state.rows[run.row];
            row.acted |= !run.stale;
            if run.phase == (Phase::InGate { late: true }) {
                state.late_effect |= run.stale;
            } else if run.stale {
                state.wrong = state.wrong.or(Some(Wrong::StaleEffect));
            }
            run.phase = Phase::Acted;
        }
        Action::End(p, n, verdict) => {
            state.put_backs -= u8::from(verdict == Verdict::PutBack);
            state.processes[p].runs[n].phase = Phase::Ended(verdict);
        }
        Action::Drop(p, n) => drop(state.processes[p].runs.remove(n)),
        Action::Settle(p, n) => {
            let run = state.processes[p].runs.remove(n);
            if let Phase::Ended(verdict) = run.phase {
                settle(system, state, &run, verdict);
            }
        }
        Action::SettleUnheard(p, n) | Action::SettleLate(p, n) => {
            state.faults -= 1;
            let run = state.processes[p].runs[n].clone();
            match (run.phase, action) {
                (Phase::Ended(verdict), Action::SettleLate(..)) => {
                    state.late = Some(Outcome { run, verdict });
                }
                (Phase::Ended(verdict), _) => settle(system, state, &run, verdict),
                _ => {}
            }
        }
        Action::Deliver => {
            if let Some(Outcome { run, verdict }) = state.late.take() {
                settle(system, state, &run, verdict);
            }
        }
        Action::Rescue(_, n) => {
            let row = state.rows[n].clone();
            let crashes = row.crashes + 1;
            let status = match row.status {
                -1 => 5,
                _ if crashes >= 3 => 4,
                _ => 1,
            };
            state.write(n, Row { status, crashes, ..row });
        }
        Action::Cancel(n) => {
            state.cancels -= 1;
            let row = state.rows[n].clone();
            let status = if row.status == 1 { 5 } else { -1 };
            state.write(n, Row { status, cancelled: true, ..row });
        }
        Action::Freeze(p) => {
            (state.faults, state.harm) = (state.faults - 1, state.harm + 1);
            state.processes[p].life = Life::Frozen;
        }
        Action::Thaw(p) => state.processes[p].life = Life::Running,
        Action::Crash(p) => {
            let budget = if state.crashes > 0 { &mut state.crashes } else { &mut state.faults };
            *budget -= 1;
            state.harm += 1;
            state.processes[p] = Process { life: Life::Down, ..Process::new() };
        }
        Action::Restart(p) => state.processes[p] = Process::new(),
        Action::Break(how) => {
            state.faults -= 1;
            state.database = how;
        }
        Action::Mend => state.database = Database::Up,
    }
    state.rename();
}

fn tick(state: &mut State) {
    let older = |age: u8, most: u8| (age + 1).min(most);
    for process in &mut state.processes {
        if process.life == Life::Down {
            continue;
        }
        process.turn_due = true;
        process.lease_age = older(process.lease_age, LEASE + 1);
        process.last_turn = older(process.last_turn, LEASE);
        for watch in &mut process.watch {
            watch.age = older(watch.age, LEASE + 1);
        }
        for run in &mut process.runs {
            if let Phase::InGate { late } = &mut run.phase {
                *late = true;
            }
        }
    }
}

/// A `Seq` goes up, which everybody who saw it before can tell.
fn count_up(state: &mut State, identity: u8) {
    for process in &mut state.processes {
        for watch in process.watch.iter_mut().filter(|watch| watch.identity == identity) {
            watch.moved = true;
        }
        for (_, moved) in process.silent.iter_mut().filter(|(id, _)| *id == identity) {
            *moved = true;
        }
    }
}

fn turn(system: &System, state: &mut State, p: usize) {
    let Some(identity) = state.processes[p].identity else {
        // No name that is in use; `rename` finds a smaller one.
        let fresh = u8::MAX;
        state.runners.push(fresh);
        let process = &mut state.processes[p];
        (process.identity, process.lease_age, process.turn_due) = (Some(fresh), 0, false);
        return;
    };
    if !state.runners.contains(&identity) {
        // Its runs are told to stop; it registers in its next turn, which is at once.
        (state.processes[p].identity, state.processes[p].lease_age) = (None, LEASE + 1);
        return;
    }
    count_up(state, identity);
    let process = &mut state.processes[p];
    (process.lease_age, process.turn_due) = (0, false);
    // Half a lease, as in the code: with a turn in each tick anything longer is a gap.
    if process.last_turn > LEASE / 2 && system.rules.observer_minds_gaps {
        process.watch.clear();
    }
    process.last_turn = 0;
    let seen = std::mem::take(&mut process.watch);
    for other in state.runners.iter().copied().filter(|other| *other != identity) {
        let known = seen.iter().find(|watch| watch.identity == other && !watch.moved);
        let watch = known.map_or(Stopwatch { identity: other, moved: false, age: 0, rounds: 0 }, |watch| {
            Stopwatch { rounds: (watch.rounds + 1).min(2), ..watch.clone() }
        });
        if watch.age > LEASE && watch.rounds >= 2 {
            process.silent.push((other, false));
        }
        process.watch.push(watch);
    }
}

/// Tried again soon; what it says about gaps is the question.
fn failed_turn(system: &System, process: &mut Process) {
    if !system.rules.failed_turns_are_gaps {
        if process.last_turn > LEASE / 2 && system.rules.observer_minds_gaps {
            process.watch.clear();
        }
        process.last_turn = 0;
    }
}

fn claim(state: &mut State, p: usize, n: usize) -> Run {
    let identity = state.processes[p].identity.unwrap_or_default();
    let runs = state.processes.iter_mut().flat_map(|process| &mut process.runs);
    for run in runs.chain(state.late.iter_mut().map(|late| &mut late.run)) {
        run.stale |= run.row == n;
    }
    let old = state.rows[n].clone();
    state.write(n, Row { status: 2, owner: identity, attempt: old.attempt + 1, acted: false, ..old });
    Run { row: n, identity, stale: false, phase: Phase::Working }
}

/// In progress -> what became of it, if the row is still this run's.
fn settle(system: &System, state: &mut State, run: &Run, verdict: Verdict) {
    let row = state.rows[run.row].clone();
    if !row.is_owned() || row.owner != run.identity || system.rules.settle_names_claim && run.stale {
        return;
    }
    let attempt = row.attempt - u8::from(verdict == Verdict::PutBack && row.status != -1);
    let status = match verdict {
        _ if row.status == -1 => 5,
        Verdict::PutBack => 1,
        Verdict::Done => 3,
        Verdict::Failed if row.attempt < system.bounds.max_attempts => 1,
        Verdict::Failed => 4,
    };
    state.write(run.row, Row { status, attempt, ..row });
}

/// Ticks until every row is final, if from now on nothing fails, nobody freezes and jobs do their work. `None` if
/// they are more than [`HEALED_WITHIN`], or if nothing moves any more.
pub(crate) fn ticks_to_heal(system: &System, state: &State) -> Option<usize> {
    let mut state = State { faults: 0, crashes: 0, cancels: 0, put_backs: 0, ..state.clone() };
    let (mut ticks, mut actions) = (0, Vec::new());
    while !state.rows.iter().all(Row::is_final) {
        actions.clear();
        possible(system, &state, &mut actions);
        let next = actions.iter().copied().min_by_key(|action| match action {
            Action::Tick => 2,
            Action::End(_, _, Verdict::Failed) | Action::TurnFails(_) => 3,
            _ => u8::from(matches!(action, Action::Drop(..))),
        })?;
        if matches!(next, Action::End(_, _, Verdict::Failed)) {
            return None;
        }
        ticks += usize::from(next == Action::Tick);
        if ticks > HEALED_WITHIN {
            return None;
        }
        carry_out(system, &mut state, next);
    }
    Some(ticks)
}
