//! What operators did and what was done to the system, as it was seen from outside.

use crate::clock::{self, Nanos};
use crate::nemesis::Fault;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// What an operator's statement was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    Insert,
    Cancel,
    /// Priority or `NotBefore` of a pending row.
    Edit,
    /// Something nobody may do.
    Illegal,
    Config,
    Schedule,
}

/// How it ended, as far as the operator knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is committed; these rows came back, each with its status.
    Done(Vec<(Uuid, i32)>),
    /// The database said no.
    Refused(String),
    /// It did nothing: lock not had in time, deadlock, disk full.
    Failed(String),
    /// The connection broke: it may or may not be committed.
    Unknown,
}

/// One statement.
#[derive(Debug, Clone)]
pub struct Operation {
    pub answered: Nanos,
    pub intent: Intent,
    pub rows: Vec<Uuid>,
    pub sql: String,
    pub answer: Answer,
}

/// One fault, while it lasted and until its effects must be over.
#[derive(Debug, Clone)]
pub struct FaultRecord {
    pub fault: Fault,
    /// The daemon it was about; `None` for all.
    pub daemon: Option<usize>,
    pub from: Nanos,
    pub to: Option<Nanos>,
}

/// A schedule `*/every * * * * *`.
#[derive(Debug, Clone)]
pub struct ScheduleRecord {
    pub id: Uuid,
    pub every: i64,
    pub missed_run: &'static str,
    pub created: Nanos,
    /// When its end was asked for.
    pub stopping: Option<Nanos>,
}

/// The books.
#[derive(Default)]
pub struct Recorder {
    operations: Mutex<Vec<Operation>>,
    faults: Mutex<Vec<FaultRecord>>,
    schedules: Mutex<Vec<ScheduleRecord>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    pub fn note(&self, operation: Operation) {
        lock(&self.operations).push(operation);
    }

    pub fn operations(&self) -> Vec<Operation> {
        lock(&self.operations).clone()
    }

    /// A fault begins; returns its number.
    pub fn begin(&self, fault: Fault, daemon: Option<usize>) -> usize {
        let mut faults = lock(&self.faults);
        faults.push(FaultRecord { fault, daemon, from: clock::now(), to: None });
        faults.len() - 1
    }

    /// It ends.
    pub fn end(&self, number: usize) {
        lock(&self.faults)[number].to = Some(clock::now());
    }

    /// A fault that was noticed after it was over.
    pub fn past(&self, fault: Fault, from: Nanos) {
        lock(&self.faults).push(FaultRecord { fault, daemon: None, from, to: Some(clock::now()) });
    }

    pub fn faults(&self) -> Vec<FaultRecord> {
        lock(&self.faults).clone()
    }

    pub fn add_schedule(&self, schedule: ScheduleRecord) {
        lock(&self.schedules).push(schedule);
    }

    pub fn stop_schedule(&self, id: Uuid) {
        for schedule in lock(&self.schedules).iter_mut().filter(|schedule| schedule.id == id) {
            schedule.stopping.get_or_insert(clock::now());
        }
    }

    pub fn schedules(&self) -> Vec<ScheduleRecord> {
        lock(&self.schedules).clone()
    }
}
