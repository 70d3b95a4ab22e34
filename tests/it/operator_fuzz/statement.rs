//! What an operator may type, as values: the model reads them, `Display` makes SQL of them.

use std::fmt;
use uuid::Uuid;

/// One statement.
#[derive(Debug, Clone)]
pub enum Statement {
    Insert(Vec<NewRow>),
    Update(Vec<Set>, Scope),
    Delete(Scope),
    Rerun(Uuid),
    Configure(Uuid, Vec<Knob>),
    /// What PostgreSQL itself refuses, whatever the rows are: the statement and its SQLSTATE.
    Nonsense(&'static str, &'static str),
}

/// The columns an INSERT may name; `None` leaves one out, or says null.
#[derive(Debug, Clone)]
pub struct NewRow {
    pub id: NewId,
    pub status: Option<i32>,
    pub config: Option<Uuid>,
    pub job: Option<i32>,
    pub organization: Option<Uuid>,
    pub priority: Option<i32>,
    pub payload: Option<Payload>,
    pub not_before: Option<When>,
    pub parent: Option<Uuid>,
    pub identifier: Option<String>,
    /// Whether it also claims to know what only the engine writes.
    pub forged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewId {
    /// The database chooses.
    Default,
    Null,
    Given(Uuid),
}

/// One assignment of an UPDATE.
#[derive(Debug, Clone)]
pub enum Set {
    Status(Option<i32>),
    Priority(Option<i32>),
    Payload(Option<Payload>),
    NotBefore(Option<When>),
    Identifier(Option<String>),
    /// To itself: no change, in whatever column.
    Same(&'static str),
    /// `UpdatedDate`, `UpdatedBy`: taken, and overwritten by the truth.
    Stamp(&'static str),
    /// Columns that are not an operator's, each to a value it never has.
    Forbidden(&'static str),
}

/// Which rows.
#[derive(Debug, Clone)]
pub enum Scope {
    One(Uuid),
    Identifier(String),
    Children(Uuid),
    ConfigAndStatus(Uuid, i32),
    /// Live rows of at least this priority, as a bulk cancel has it.
    LiveFrom(i32),
    /// Finished rows that are nobody's parent, as retention has it.
    Retired,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    Good(u32),
    /// JSON that is no payload: an array, a null, nested too deep, beyond a double, above 1 MiB.
    Bad(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Seconds since 1970, in years that are allowed.
    At(i64),
    /// Outside of them.
    Never(&'static str),
}

/// One assignment to a `JobConfig`.
#[derive(Debug, Clone, Copy)]
pub enum Knob {
    Continuous(bool),
    WaitInSeconds(i32),
    Active(bool),
}

pub const BAD_PAYLOADS: [&str; 5] = [
    "'[1]'",
    "'null'",
    "'{\"n\": 1e400}'",
    "(repeat('{\"a\":', 101) || '1' || repeat('}', 101))::jsonb",
    "jsonb_build_object('a', repeat('x', 1048577))",
];

pub const NEVER: [&str; 4] = ["'1960-01-01'", "'infinity'", "'-infinity'", "'9999-06-01'"];

pub const FORBIDDEN: [&str; 16] = [
    "ID = gen_random_uuid()",
    "JobID = JobID + 1",
    "ConfigID = gen_random_uuid()",
    "OrganizationID = null",
    "ParentJobID = gen_random_uuid()",
    "Attempt = Attempt + 1",
    "CurrentIteration = CurrentIteration + 1",
    "Crashes = -1",
    "ThreadID = gen_random_uuid()",
    "StartedDate = '1999-01-01'",
    "FinishedDate = '1999-01-01'",
    "StopReason = 'forged'",
    "Error = 'forged'",
    "Result = '{\"forged\": true}'",
    "Origin = 'schedule'",
    "CreatedBy = 'forged'",
];

pub const NONSENSE: [(&str, &str); 6] = [
    ("update JobHistory set StatusID = 'cancel'", "22P02"),
    ("update JobHistory set Ready = false", "428C9"),
    ("update JobHistory set Priority = 2147483648", "22003"),
    ("insert into JobHistory (ConfigID, StatusID) values ('the first one', 1)", "22P02"),
    ("delete from JobHistory where Status = 3", "42703"),
    ("insert into JobHistory (ConfigID, StatusID, Payload) values (null, 1, '{\"n\": }')", "22P02"),
];

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insert(rows) => {
                let forged = rows.iter().any(|row| row.forged);
                f.write_str(
                    "insert into JobHistory (ID, StatusID, ConfigID, JobID, OrganizationID, Priority, Payload, \
                     NotBefore, ParentJobID, Identifier",
                )?;
                if forged {
                    f.write_str(
                        ", Attempt, Crashes, ThreadID, StartedDate, FinishedDate, StopReason, Origin",
                    )?;
                }
                f.write_str(") values ")?;
                for (n, row) in rows.iter().enumerate() {
                    write!(f, "{}({row}", if n > 0 { ", " } else { "" })?;
                    if forged {
                        f.write_str(", 7, 2, gen_random_uuid(), now(), now(), 'forged', 'autostart'")?;
                    }
                    f.write_str(")")?;
                }
                f.write_str(" returning ID")
            }
            Self::Update(sets, scope) => {
                let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
                write!(f, "update JobHistory set {} where {scope}", sets.join(", "))
            }
            Self::Delete(scope) => write!(f, "delete from JobHistory where {scope}"),
            Self::Rerun(id) => write!(f, "select vm.rerun('{id}')"),
            Self::Configure(id, knobs) => {
                let sets: Vec<String> = knobs.iter().map(ToString::to_string).collect();
                write!(f, "update JobConfig set {} where ID = '{id}'", sets.join(", "))
            }
            Self::Nonsense(text, _) => f.write_str(text),
        }
    }
}

impl fmt::Display for NewRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            NewId::Default => f.write_str("default")?,
            NewId::Null => f.write_str("null")?,
            NewId::Given(id) => write!(f, "'{id}'")?,
        }
        let values = [
            or_null(self.status.as_ref()),
            quoted(self.config.as_ref()),
            or_null(self.job.as_ref()),
            quoted(self.organization.as_ref()),
            or_null(self.priority.as_ref()),
            or_null(self.payload.as_ref()),
            or_null(self.not_before.as_ref()),
            quoted(self.parent.as_ref()),
            quoted(self.identifier.as_ref()),
        ];
        values.iter().try_for_each(|value| write!(f, ", {value}"))
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(to) => write!(f, "StatusID = {}", or_null(to.as_ref())),
            Self::Priority(to) => write!(f, "Priority = {}", or_null(to.as_ref())),
            Self::Payload(to) => write!(f, "Payload = {}", or_null(to.as_ref())),
            Self::NotBefore(to) => write!(f, "NotBefore = {}", or_null(to.as_ref())),
            Self::Identifier(to) => write!(f, "Identifier = {}", quoted(to.as_ref())),
            Self::Same(column) => write!(f, "{column} = {column}"),
            Self::Stamp(text) | Self::Forbidden(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(id) => write!(f, "ID = '{id}'"),
            Self::Identifier(word) => write!(f, "Identifier = '{word}'"),
            Self::Children(id) => write!(f, "ParentJobID = '{id}'"),
            Self::ConfigAndStatus(id, status) => write!(f, "ConfigID = '{id}' and StatusID = {status}"),
            Self::LiveFrom(priority) => write!(f, "StatusID in (1, 2) and Priority >= {priority}"),
            Self::Retired => f.write_str(
                "StatusID in (3, 4, 5) and ID not in (select ParentJobID from JobHistory where ParentJobID is not null)",
            ),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(n) => write!(f, "'{{\"n\": {n}}}'"),
            Self::Bad(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(seconds) => write!(f, "to_timestamp({seconds})"),
            Self::Never(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continuous(to) => write!(f, "Continuous = {to}"),
            Self::WaitInSeconds(to) => write!(f, "WaitInSeconds = {to}"),
            Self::Active(to) => write!(f, "Active = {to}"),
        }
    }
}

fn or_null(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "null".to_owned(), ToString::to_string)
}

fn quoted(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("'{value}'"))
}
