//! What there is: rows, Runner rows, processes, and an outcome still on its way.

use crate::LEASE;

/// The checks that make it safe. Each can be left out, to see what it was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The gate lets a run act only under the very identity that claimed its row.
    pub gate_checks_runner: bool,
    /// An outcome names claim and attempt, not only row and runner.
    pub settle_names_claim: bool,
    /// A silent runner is removed only if its `Seq` still stands where it was seen.
    pub reap_compares_seq: bool,
    /// A row is rescued only if its owner has no Runner row.
    pub rescue_checks_owner: bool,
    /// After a gap in its own turns an observer starts its stopwatches anew.
    pub observer_minds_gaps: bool,
    /// A turn that failed is a gap too, not a turn.
    pub failed_turns_are_gaps: bool,
}

impl Rules {
    /// All of them.
    pub const ALL: Self = Self {
        gate_checks_runner: true,
        settle_names_claim: true,
        reap_compares_seq: true,
        rescue_checks_owner: true,
        observer_minds_gaps: true,
        failed_turns_are_gaps: true,
    };
}

/// How much may happen on one path.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows in the queue.
    pub rows: usize,
    /// Freezes, crashes, outages, lost and late answers.
    pub faults: u8,
    /// Crashes besides.
    pub crashes: u8,
    /// Cancels by the operator.
    pub cancels: u8,
    /// Runs put back by a drain.
    pub put_backs: u8,
    /// `JobConfig.MaxAttempts`.
    pub max_attempts: u8,
}

/// A row of `JobHistory`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Row {
    /// `StatusID`.
    pub status: i8,
    /// `ThreadID`, 0 before the first claim.
    pub owner: u8,
    /// `Attempt`.
    pub attempt: u8,
    /// `Crashes`.
    pub crashes: u8,
    /// Whether an operator cancelled it while it was live.
    pub cancelled: bool,
    /// Whether the run of its newest claim acted outside.
    pub acted: bool,
}

impl Row {
    /// Whether nothing may change it any more.
    pub fn is_final(&self) -> bool {
        self.status >= 3
    }

    /// Whether it is in progress, or being cancelled.
    pub fn is_owned(&self) -> bool {
        [2, -1].contains(&self.status)
    }
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    /// It does what it should.
    Running,
    /// SIGSTOP, a paused machine: its clock goes on.
    Frozen,
    /// Dead, with all it knew.
    Down,
}

/// The database, as the processes see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Database {
    /// It answers.
    Up,
    /// Nobody can connect.
    Away,
    /// It lets itself be connected to, and then nothing is answered (a lock, a full disk).
    Stalled,
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The work was done.
    Done,
    /// It was not; another attempt may help.
    Failed,
    /// Drained.
    PutBack,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before its effect.
    Working,
    /// It passed the gate and is about to act; late if its lease ended since.
    InGate {
        /// Whether the clock ticked while it was frozen there.
        late: bool,
    },
    /// After its effect.
    Acted,
    /// Its outcome is to be written.
    Ended(Verdict),
}

/// A job in progress, in the memory of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Run {
    /// Which row.
    pub row: usize,
    /// The identity it was claimed under.
    pub identity: u8,
    /// Whether its row was claimed again since: `ClaimID` only grows, so that one bit tells whether it still
    /// matches. (An attempt belongs to one claim.)
    pub stale: bool,
    /// How far it is.
    pub phase: Phase,
}

/// A stopwatch on another runner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stopwatch {
    /// Whose.
    pub identity: u8,
    /// Whether its `Seq` has moved since it was last seen.
    pub moved: bool,
    /// Ticks since this `Seq` was first seen.
    pub age: u8,
    /// Further turns that saw the same `Seq`.
    pub rounds: u8,
}

/// A rosterd process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Whether it runs.
    pub life: Life,
    /// `Runner.ID` as it believes.
    pub identity: Option<u8>,
    /// Ticks since the last pulse it heard the answer of was sent.
    pub lease_age: u8,
    /// Whether its turn of this tick is still to come.
    pub turn_due: bool,
    /// Ticks since its last turn.
    pub last_turn: u8,
    /// On the others.
    pub watch: Vec<Stopwatch>,
    /// Seen to be silent, about to be removed; with whether the `Seq` has moved since.
    pub silent: Vec<(u8, bool)>,
    /// Jobs in progress.
    pub runs: Vec<Run>,
}

impl Process {
    /// Just started.
    pub fn new() -> Self {
        Self {
            life: Life::Running,
            identity: None,
            lease_age: LEASE + 1,
            turn_due: true,
            last_turn: LEASE,
            watch: Vec::new(),
            silent: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Whether this run may act now.
    pub fn gate_is_open(&self, rules: Rules, run: &Run) -> bool {
        let own = self.identity == Some(run.identity) || !rules.gate_checks_runner && self.identity.is_some();
        own && self.lease_age < LEASE
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

/// An outcome that its sender gave up, on its way to the database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// The run as it ended.
    pub run: Run,
    /// What became of it.
    pub verdict: Verdict,
}

/// What no state alone shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A run acted after a newer one of its row had begun.
    StaleEffect,
    /// A final row was written.
    FinalChanged,
    /// A count of crashes went down.
    CrashUndone,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// `JobHistory`.
    pub rows: Vec<Row>,
    /// `Runner`: who has a row.
    pub runners: Vec<u8>,
    /// The two processes.
    pub processes: [Process; 2],
    /// An outcome on its way.
    pub late: Option<Outcome>,
    /// Whether the database answers.
    pub database: Database,
    /// Faults left.
    pub faults: u8,
    /// Crashes left, besides.
    pub crashes: u8,
    /// Cancels left.
    pub cancels: u8,
    /// Drains left.
    pub put_backs: u8,
    /// Freezes and crashes so far.
    pub harm: u8,
    /// Whether an effect came late.
    pub late_effect: bool,
    /// What went wrong first.
    pub wrong: Option<Wrong>,
}

impl State {
    /// Everything pending, nobody registered.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            rows: vec![Row { status: 1, ..Row::default() }; bounds.rows],
            runners: Vec::new(),
            processes: [Process::new(), Process::new()],
            late: None,
            database: Database::Up,
            faults: bounds.faults,
            crashes: bounds.crashes,
            cancels: bounds.cancels,
            put_backs: bounds.put_backs,
            harm: 0,
            late_effect: false,
            wrong: None,
        }
    }

    /// How many runs of this row could act right now.
    pub fn open_gates(&self, rules: Rules, row: usize) -> usize {
        let open = |p: &Process| {
            let acting = |run: &&Run| run.row == row && !matches!(run.phase, Phase::Ended(_));
            p.runs.iter().filter(acting).filter(|run| p.gate_is_open(rules, run)).count()
        };
        self.processes.iter().filter(|p| p.life != Life::Down).map(open).sum()
    }

    /// How many runs of this row are at work, rightly or not.
    pub fn runs_of(&self, row: usize) -> usize {
        let working = |run: &&Run| run.row == row && !matches!(run.phase, Phase::Ended(_));
        self.processes.iter().map(|p| p.runs.iter().filter(working).count()).sum()
    }

    /// Gives identities the smallest numbers, in the order in which they are met. They are random UUIDs: states that
    /// differ in nothing but their names are one.
    pub fn rename(&mut self) {
        let mut names: Vec<u8> = vec![0];
        let mut name = |id: &mut u8| {
            let at = names.iter().position(|known| known == id).unwrap_or(names.len());
            if at == names.len() {
                names.push(*id);
            }
            *id = u8::try_from(at).unwrap_or(u8::MAX);
        };
        for process in &mut self.processes {
            process.identity.iter_mut().for_each(&mut name);
            process.runs.iter_mut().for_each(|run| name(&mut run.identity));
        }
        for row in &mut self.rows {
            // Of a row nobody owns any more it is only a record.
            if row.is_owned() { name(&mut row.owner) } else { row.owner = 0 }
        }
        self.late.iter_mut().for_each(|late| name(&mut late.run.identity));
        self.runners.iter_mut().for_each(&mut name);
        self.runners.sort_unstable();
        for process in &mut self.processes {
            process.watch.iter_mut().for_each(|watch| name(&mut watch.identity));
            process.watch.sort_unstable();
            process.silent.iter_mut().for_each(|(id, _)| name(id));
            process.silent.sort_unstable();
        }
    }

    /// A write of a row, with what no write may do.
    pub fn write(&mut self, row: usize, new: Row) {
        let old = &self.rows[row];
        if old.is_final() {
            self.wrong = self.wrong.or(Some(Wrong::FinalChanged));
        }
        if new.crashes < old.crashes {
            self.wrong = self.wrong.or(Some(Wrong::CrashUndone));
        }
        self.rows[row] = new;
    }
}
