//! The rules of `JobHistory` once more, in plain Rust: what each statement of an operator does to the rows, or the
//! name it is refused by. Written from what the documentation promises, so that the triggers have somebody to
//! disagree with. (What a runner does is in `runner.rs`, because it only has to bring rows into every state.)

use super::statement::{Knob, NewId, NewRow, Payload, Scope, Set, Statement, When};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub struct Config {
    pub job: i32,
    pub organization: Uuid,
    pub priority: i32,
    pub max_instances: usize,
    pub max_attempts: i32,
    pub error_on_loss: bool,
    pub continuous: bool,
    pub wait: i32,
    pub active: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "each stands for a column that is null or not")]
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub config: Uuid,
    pub status: i32,
    pub parent: Option<Uuid>,
    pub identifier: Option<String>,
    pub priority: i32,
    pub payload: Payload,
    pub due: Due,
    pub attempt: i32,
    pub iteration: i64,
    pub crashes: i32,
    pub started: bool,
    /// Between two iterations of a Continuous row.
    pub waiting: bool,
    pub cancelled: bool,
    pub edited: bool,
    pub failed: bool,
    pub origin: &'static str,
    pub stop_reason: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Due {
    At(i64),
    Now,
    Later,
}

/// How many rows it touched, or the names it may be refused by: which of several bad rows the database meets first
/// is its own affair.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Taken(usize),
    Refused(BTreeSet<&'static str>),
}

fn refused(name: &'static str) -> Verdict {
    Verdict::Refused(BTreeSet::from([name]))
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub configs: BTreeMap<Uuid, Config>,
    pub rows: BTreeMap<Uuid, Row>,
    /// Rows whose ID the database chose, by the names they have here until it is known.
    pub unnamed: Vec<Uuid>,
}

impl Model {
    pub fn apply(&mut self, statement: &Statement) -> Verdict {
        match statement {
            Statement::Insert(rows) => self.insert(rows),
            Statement::Update(sets, scope) => self.update(sets, scope),
            Statement::Delete(scope) => self.delete(scope),
            Statement::Rerun(id) => self.rerun(*id),
            Statement::Configure(id, knobs) => self.configure(*id, knobs),
            Statement::Nonsense(_, code) => refused(code),
        }
    }

    fn insert(&mut self, new: &[NewRow]) -> Verdict {
        let (mut added, unnamed) = (Vec::new(), self.unnamed.len());
        let mut refusal = new.iter().find_map(|row| match self.insert_one(row) {
            Ok(id) => {
                added.push(id);
                None
            }
            Err(name) => Some(name),
        });
        // The foreign key looks when the statement is over: the parent may be among its own rows.
        if new.iter().any(|row| row.parent.is_some_and(|parent| !self.rows.contains_key(&parent))) {
            refusal = refusal.or(Some("jobhistory_parent_exists"));
        }
        let Some(name) = refusal else { return Verdict::Taken(new.len()) };
        self.rows.retain(|id, _| !added.contains(id));
        self.unnamed.truncate(unnamed);
        refused(name)
    }

    fn insert_one(&mut self, new: &NewRow) -> Result<Uuid, &'static str> {
        if new.status != Some(1) {
            return Err("jobhistory_new_row_is_pending");
        }
        let of_the_job = || self.configs.iter().filter(|(_, c)| new.job == Some(c.job) && c.active);
        let id =
            new.config.or_else(|| of_the_job().next().filter(|_| of_the_job().count() == 1).map(|c| *c.0));
        let config = id.and_then(|id| self.configs.get(&id)).ok_or("jobhistory_config_exists")?;
        if new.job.is_some_and(|job| job != config.job)
            || new.organization.is_some_and(|organization| organization != config.organization)
        {
            return Err("jobhistory_config_exists");
        }
        if matches!(new.payload, Some(Payload::Bad(_))) {
            return Err("jobhistory_payload_is_acceptable");
        }
        let due = match new.not_before {
            Some(When::Never(_)) => return Err("jobhistory_notbefore_is_a_date"),
            Some(When::At(seconds)) => Due::At(seconds),
            None => Due::Now,
        };
        if new.parent.and_then(|parent| self.rows.get(&parent)).is_some_and(|p| [-1, 5].contains(&p.status)) {
            return Err("jobhistory_parent_is_not_cancelled");
        }
        let row = Row {
            parent: new.parent,
            identifier: new.identifier.clone(),
            due,
            origin: if new.parent.is_some() { "job" } else { "operator" },
            ..pending(
                id.unwrap_or_default(),
                new.priority.unwrap_or(config.priority),
                new.payload.clone().unwrap_or(Payload::Good(0)),
            )
        };
        let id = match new.id {
            NewId::Null => return Err("23502"),
            NewId::Given(id) if self.rows.contains_key(&id) => return Err("jobhistory_pkey"),
            NewId::Given(id) => id,
            NewId::Default => self.next_unnamed(),
        };
        self.rows.insert(id, row);
        Ok(id)
    }

    fn next_unnamed(&mut self) -> Uuid {
        let name = Uuid::from_u128(self.unnamed.len() as u128 + 1);
        self.unnamed.push(name);
        name
    }

    fn update(&mut self, sets: &[Set], scope: &Scope) -> Verdict {
        let ids: Vec<Uuid> = self.matched(scope);
        let mut refusals = BTreeSet::new();
        let mut edits = Vec::new();
        for id in ids {
            match edit(&self.rows[&id], sets) {
                Ok(None) => {}
                Ok(Some(row)) => edits.push((id, row)),
                Err(name) => drop(refusals.insert(name)),
            }
        }
        if !refusals.is_empty() {
            return Verdict::Refused(refusals);
        }
        let touched = edits.len();
        for (id, row) in edits {
            if row.status == -1 {
                self.cancel(id);
            } else {
                self.rows.insert(id, Row { edited: true, ..row });
            }
        }
        Verdict::Taken(touched)
    }

    /// A waiting row ends here and now, a running one is told, and so are the live children of either.
    fn cancel(&mut self, id: Uuid) {
        let Some(row) = self.rows.get_mut(&id).filter(|row| [1, 2].contains(&row.status)) else { return };
        (row.cancelled, row.edited) = (true, true);
        if row.status == 2 {
            row.status = -1;
        } else {
            row.status = 5;
            row.stop_reason = Some(if row.started { "stopped_while_waiting" } else { "never_started" });
        }
        for child in self.matched(&Scope::Children(id)) {
            self.cancel(child);
        }
    }

    fn delete(&mut self, scope: &Scope) -> Verdict {
        let ids = self.matched(scope);
        if ids.iter().any(|id| self.rows[id].status < 3) {
            return refused("jobhistory_live_rows_are_not_deleted");
        }
        let goes = |id: &Uuid| ids.binary_search(id).is_ok();
        let orphaned = |row: &Row| row.parent.as_ref().is_some_and(goes);
        if !ids.is_empty() && self.rows.iter().any(|(id, row)| orphaned(row) && !goes(id)) {
            return refused("jobhistory_parent_exists");
        }
        self.rows.retain(|id, _| !ids.contains(id));
        Verdict::Taken(ids.len())
    }

    fn rerun(&mut self, id: Uuid) -> Verdict {
        match self.rows.get(&id) {
            None => refused("jobhistory_pkey"),
            Some(row) if row.status < 3 => refused("jobhistory_rerun_takes_a_finished_row"),
            Some(old) => {
                let fresh = pending(old.config, old.priority, old.payload.clone());
                let fresh = Row { identifier: old.identifier.clone(), origin: "rerun", ..fresh };
                let id = self.next_unnamed();
                self.rows.insert(id, fresh);
                Verdict::Taken(1)
            }
        }
    }

    /// Continuous and `WaitInSeconds` act on waiting rows at once.
    fn configure(&mut self, id: Uuid, knobs: &[Knob]) -> Verdict {
        if knobs.iter().any(|knob| matches!(knob, Knob::WaitInSeconds(s) if !(0..=31_536_000).contains(s))) {
            return refused("jobconfig_waitinseconds_is_0_to_31536000");
        }
        let Some(config) = self.configs.get_mut(&id) else { return Verdict::Taken(0) };
        let (was_continuous, old_wait) = (config.continuous, config.wait);
        for knob in knobs {
            match *knob {
                Knob::Continuous(to) => config.continuous = to,
                Knob::WaitInSeconds(to) => config.wait = to,
                Knob::Active(to) => config.active = to,
            }
        }
        let (ends, moves) = (was_continuous && !config.continuous, config.wait != old_wait);
        for row in self.rows.values_mut().filter(|row| row.config == id && row.status == 1 && row.waiting) {
            if ends {
                row.status = if row.failed { 4 } else { 3 };
                row.stop_reason = Some("no_longer_continuous");
            } else if moves {
                row.due = Due::Later;
            }
        }
        Verdict::Taken(1)
    }

    pub fn matched(&self, scope: &Scope) -> Vec<Uuid> {
        let parents: BTreeSet<Uuid> = match scope {
            Scope::Retired => self.rows.values().filter_map(|row| row.parent).collect(),
            _ => BTreeSet::new(),
        };
        let matches = |id: &Uuid, row: &Row| match scope {
            Scope::One(wanted) => id == wanted,
            Scope::Identifier(word) => row.identifier.as_ref() == Some(word),
            Scope::Children(parent) => row.parent == Some(*parent),
            Scope::ConfigAndStatus(config, status) => row.config == *config && row.status == *status,
            Scope::LiveFrom(priority) => [1, 2].contains(&row.status) && row.priority >= *priority,
            Scope::Retired => row.status >= 3 && !parents.contains(id),
        };
        match scope {
            Scope::One(id) => self.rows.contains_key(id).then_some(*id).into_iter().collect(),
            _ => self.rows.iter().filter(|(id, row)| matches(id, row)).map(|(id, _)| *id).collect(),
        }
    }
}

/// The row as an UPDATE would leave it, `None` if it is left alone, or why not. Status -1 asks for a cancel.
fn edit(old: &Row, sets: &[Set]) -> Result<Option<Row>, &'static str> {
    let mut new = old.clone();
    let (mut status, mut null, mut bad_payload, mut never, mut forbidden) =
        (Some(old.status), false, false, false, false);
    for set in sets {
        match set {
            Set::Status(to) => status = *to,
            Set::Priority(Some(to)) => new.priority = *to,
            Set::NotBefore(Some(When::At(seconds))) => new.due = Due::At(*seconds),
            Set::NotBefore(Some(When::Never(_))) => never = true,
            Set::Payload(Some(to)) => {
                new.payload = to.clone();
                bad_payload = matches!(to, Payload::Bad(_));
            }
            Set::Priority(None) | Set::Payload(None) | Set::NotBefore(None) => null = true,
            Set::Identifier(to) => new.identifier.clone_from(to),
            Set::Same(_) | Set::Stamp(_) => {}
            Set::Forbidden(_) => forbidden = true,
        }
    }
    match (old.status, status) {
        (3..=5 | -1, Some(-1)) => Ok(None),
        (3..=5, _) => Err("jobhistory_finished_rows_never_change"),
        (1 | 2, Some(-1)) if null || never || forbidden || new != *old => Err("jobhistory_moves_are_legal"),
        (1 | 2, Some(-1)) => Ok(Some(Row { status: -1, ..new })),
        (1, Some(1)) if !null && !forbidden && bad_payload => Err("jobhistory_payload_is_acceptable"),
        (1, Some(1)) if !null && !forbidden && never => Err("jobhistory_notbefore_is_a_date"),
        (1, Some(1)) if !null && !forbidden => Ok(Some(new)),
        _ => Err("jobhistory_moves_are_legal"),
    }
}

/// A row as it stands after an INSERT.
fn pending(config: Uuid, priority: i32, payload: Payload) -> Row {
    Row {
        config,
        status: 1,
        parent: None,
        identifier: None,
        priority,
        payload,
        due: Due::Now,
        attempt: 0,
        iteration: 0,
        crashes: 0,
        started: false,
        waiting: false,
        cancelled: false,
        edited: false,
        failed: false,
        origin: "operator",
        stop_reason: None,
    }
}
