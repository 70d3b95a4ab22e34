//! Statements at random, from a seed: mostly sensible, often wrong in one place, and about rows that are there.

use super::statement::{
    BAD_PAYLOADS, FORBIDDEN, Knob, NEVER, NONSENSE, NewId, NewRow, Payload, Scope, Set, Statement, When,
};
use fastrand::Rng;
use uuid::Uuid;

pub struct Generator {
    pub rng: Rng,
    /// `JobConfig.ID`, its job, its organization.
    pub configs: Vec<(Uuid, i32, Uuid)>,
    /// IDs that were ever given to a row, oldest first; some were refused or deleted since.
    pub known: Vec<Uuid>,
    /// Rows that waited a moment ago.
    pub waiting: Vec<Uuid>,
    /// Rows that were in progress, or being cancelled.
    pub running: Vec<Uuid>,
    labels: u32,
}

const PAST: std::ops::Range<i64> = 1_500_000_000..1_600_000_000;
const FUTURE: std::ops::Range<i64> = 4_000_000_000..5_000_000_000;

impl Generator {
    pub fn new(seed: u64, configs: Vec<(Uuid, i32, Uuid)>) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            configs,
            known: Vec::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            labels: 0,
        }
    }

    /// True this often in a hundred.
    pub fn percent(&mut self, often: u32) -> bool {
        self.rng.u32(0..100) < often
    }

    /// `may_be_unnamed`: whether the database may choose IDs.
    pub fn statement(&mut self, may_be_unnamed: bool) -> Statement {
        match self.rng.u32(0..100) {
            0..35 => {
                let rows = if self.percent(12) { self.rng.usize(2..5) } else { 1 };
                Statement::Insert((0..rows).map(|_| self.new_row(may_be_unnamed)).collect())
            }
            35..82 => Statement::Update(self.sets(), self.scope()),
            82..91 => Statement::Delete(self.scope_of_a_delete()),
            91..95 if may_be_unnamed => Statement::Rerun(self.row()),
            91..99 => Statement::Configure(self.config().0, self.knobs()),
            _ => {
                let (text, code) = NONSENSE[self.rng.usize(..NONSENSE.len())];
                Statement::Nonsense(text, code)
            }
        }
    }

    fn config(&mut self) -> (Uuid, i32, Uuid) {
        self.configs[self.rng.usize(..self.configs.len())]
    }

    pub fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.rng.u128(..).to_ne_bytes()).into_uuid()
    }

    /// A row, most likely a live one or one of the newest; now and then one that never was.
    fn row(&mut self) -> Uuid {
        let all = self.known.len();
        match self.rng.u32(0..100) {
            _ if all == 0 => self.uuid(),
            0..2 => self.uuid(),
            2..35 if !self.waiting.is_empty() => self.waiting[self.rng.usize(..self.waiting.len())],
            35..50 if !self.running.is_empty() => self.running[self.rng.usize(..self.running.len())],
            2..60 => self.known[self.rng.usize(..all)],
            _ => self.known[self.rng.usize(all.saturating_sub(60)..all)],
        }
    }

    fn new_row(&mut self, may_be_unnamed: bool) -> NewRow {
        let (config, job, organization) = self.config();
        let id = match self.rng.u32(0..100) {
            0..3 => NewId::Given(self.row()),
            3..4 => NewId::Null,
            4..14 if may_be_unnamed => NewId::Default,
            _ => {
                let id = self.uuid();
                self.known.push(id);
                NewId::Given(id)
            }
        };
        let names_config = self.percent(90);
        let not_before = match self.rng.u32(0..100) {
            0..50 => None,
            _ => Some(self.when()),
        };
        NewRow {
            id,
            status: if self.percent(95) { Some(1) } else { self.any_status() },
            config: names_config.then(|| if self.percent(97) { config } else { self.uuid() }),
            job: match self.rng.u32(0..100) {
                0..3 => Some(self.rng.i32(0..9999)),
                3..30 => Some(job),
                _ if !names_config && self.percent(90) => Some(job),
                _ => None,
            },
            organization: match self.rng.u32(0..100) {
                0..3 => Some(self.uuid()),
                3..6 => Some(self.config().2),
                6..30 => Some(organization),
                _ => None,
            },
            priority: self.percent(50).then(|| self.rng.i32(0..12)),
            payload: self.percent(50).then(|| self.payload()),
            not_before,
            parent: match (self.rng.u32(0..100), id) {
                (0..25, _) => Some(self.row()),
                (25..26, NewId::Given(own)) => Some(own),
                _ => None,
            },
            identifier: self.identifier(),
            forged: self.percent(5),
        }
    }

    fn any_status(&mut self) -> Option<i32> {
        let all = [
            None,
            Some(-2),
            Some(-1),
            Some(0),
            Some(1),
            Some(2),
            Some(3),
            Some(4),
            Some(5),
            Some(6),
            Some(i32::MAX),
        ];
        all[self.rng.usize(..all.len())]
    }

    fn payload(&mut self) -> Payload {
        // A payload above 1 MiB costs a hundred times as much as any other statement.
        let kinds = if self.percent(5) { BAD_PAYLOADS.len() } else { BAD_PAYLOADS.len() - 1 };
        if self.percent(95) {
            Payload::Good(self.rng.u32(..))
        } else {
            Payload::Bad(BAD_PAYLOADS[self.rng.usize(..kinds)])
        }
    }

    fn when(&mut self) -> When {
        match self.rng.u32(0..100) {
            0..5 => When::Never(NEVER[self.rng.usize(..NEVER.len())]),
            5..30 => When::At(self.rng.i64(FUTURE)),
            _ => When::At(self.rng.i64(PAST)),
        }
    }

    /// Shared by a handful of rows.
    fn identifier(&mut self) -> Option<String> {
        self.labels += 1;
        self.percent(80).then(|| format!("batch {}", self.labels / 6))
    }

    fn sets(&mut self) -> Vec<Set> {
        match self.rng.u32(0..100) {
            0..20 => vec![Set::Status(Some(-1))],
            20..40 => vec![Set::Status(self.any_status())],
            _ => {
                let wanted = if self.percent(70) { 1 } else { self.rng.usize(2..5) };
                let mut sets: Vec<Set> = Vec::new();
                while sets.len() < wanted {
                    let set = self.set();
                    // PostgreSQL refuses two assignments to one column before anybody asks the rows.
                    if sets.iter().all(|other| column(other) != column(&set)) {
                        sets.push(set);
                    }
                }
                sets
            }
        }
    }

    fn set(&mut self) -> Set {
        const SAME: [&str; 6] = ["Priority", "Payload", "Attempt", "ConfigID", "StopReason", "CreatedDate"];
        match self.rng.u32(0..100) {
            0..20 => Set::Priority(self.percent(92).then(|| self.rng.i32(0..12))),
            20..45 => Set::NotBefore(self.percent(92).then(|| self.when())),
            45..60 => Set::Payload(self.percent(92).then(|| self.payload())),
            60..70 => Set::Identifier(self.identifier()),
            70..75 => Set::Stamp(["UpdatedBy = 'forged'", "UpdatedDate = '2000-01-01'"][self.rng.usize(..2)]),
            75..85 => Set::Same(SAME[self.rng.usize(..SAME.len())]),
            85..90 => Set::Status(self.any_status()),
            _ => Set::Forbidden(FORBIDDEN[self.rng.usize(..FORBIDDEN.len())]),
        }
    }

    fn scope(&mut self) -> Scope {
        match self.rng.u32(0..100) {
            0..8 => Scope::Identifier(format!(
                "batch {}",
                self.rng.u32(self.labels.saturating_sub(60)..=self.labels) / 6
            )),
            8..14 => Scope::Children(self.row()),
            14..16 => Scope::ConfigAndStatus(self.config().0, self.any_status().unwrap_or(1)),
            16..17 => Scope::LiveFrom(self.rng.i32(10..13)),
            _ => Scope::One(self.row()),
        }
    }

    fn scope_of_a_delete(&mut self) -> Scope {
        match self.rng.u32(0..100) {
            0 => Scope::Retired,
            1..20 => Scope::ConfigAndStatus(self.config().0, self.rng.i32(3..6)),
            _ => self.scope(),
        }
    }

    fn knobs(&mut self) -> Vec<Knob> {
        const WAITS: [i32; 6] = [-1, 3600, 7200, 86_400, 31_536_000, 31_536_001];
        // More on than off, so that there is something to switch off.
        let (continuous, active) = (Knob::Continuous(self.percent(65)), Knob::Active(self.percent(75)));
        let wait = Knob::WaitInSeconds(WAITS[self.rng.usize(..WAITS.len())]);
        match self.rng.u32(0..10) {
            0..3 => vec![continuous],
            3..6 => vec![wait],
            6..9 => vec![active],
            _ => vec![continuous, wait, active],
        }
    }
}

fn column(set: &Set) -> &'static str {
    match set {
        Set::Status(_) => "StatusID",
        Set::Priority(_) => "Priority",
        Set::Payload(_) => "Payload",
        Set::NotBefore(_) => "NotBefore",
        Set::Identifier(_) => "Identifier",
        Set::Same(text) | Set::Stamp(text) | Set::Forbidden(text) => text.split(' ').next().unwrap_or(text),
    }
}
