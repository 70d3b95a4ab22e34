//! Everything that was recorded, side by side, for the invariants to judge.

use crate::api::Arrival;
use crate::clock::{Nanos, SECOND, WallOffset};
use crate::daemons::Life;
use crate::effects::{self, Line, What};
use crate::lanes::Lanes;
use crate::recorder::{FaultRecord, Operation, ScheduleRecord};
use crate::world::World;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// One change of a row of `JobHistory`. What no invariant asks for is there for whoever reads a violation.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "printed with violations")]
pub struct Change {
    pub at: Nanos,
    pub op: String,
    pub id: Uuid,
    pub config: Uuid,
    pub old_status: Option<i32>,
    pub status: Option<i32>,
    pub old_thread: Option<Uuid>,
    pub thread: Option<Uuid>,
    pub old_claim: Option<i64>,
    pub claim: Option<i64>,
    pub old_attempt: i32,
    pub attempt: i32,
    pub old_iteration: i64,
    pub iteration: i64,
    pub old_crashes: i32,
    pub crashes: i32,
    pub reason: Option<String>,
    pub schedule: Option<Uuid>,
    /// Microseconds since 1970.
    pub due: Option<i64>,
    pub was_waiting: bool,
    pub runner: bool,
    pub app: String,
}

impl Change {
    /// From one status to another.
    pub fn is(&self, from: i32, to: i32) -> bool {
        self.old_status == Some(from) && self.status == Some(to)
    }

    /// A runner takes the row.
    pub fn is_claim(&self) -> bool {
        self.is(1, 2)
    }

    /// The run that had the row has it no longer.
    pub fn ends_run(&self) -> bool {
        matches!(self.old_status, Some(2 | -1)) && !matches!(self.status, Some(2 | -1))
    }

    /// It was taken from a runner that is gone.
    pub fn is_rescue(&self) -> bool {
        self.ends_run() && self.crashes > self.old_crashes
    }
}

/// One run of a job, from its own lines.
#[derive(Debug, Clone)]
pub struct Run {
    pub row: Uuid,
    pub runner: Uuid,
    pub pid: u32,
    pub attempt: i32,
    pub iteration: i64,
    pub started: Nanos,
    /// Effects: step, when, and when the gate let it pass.
    pub effects: Vec<(u32, Nanos, Nanos)>,
    pub end: Option<(What, Nanos)>,
    /// The change that claimed it, by its place in the row's trail.
    pub claim: Option<usize>,
}

/// The books, all of them.
pub struct History {
    pub trails: BTreeMap<Uuid, Vec<Change>>,
    /// Rows of the table as it stands: status.
    pub table: HashMap<Uuid, i32>,
    /// Runs of each row, in order of their start.
    pub runs: HashMap<Uuid, Vec<Run>>,
    pub operations: Vec<Operation>,
    pub faults: Vec<FaultRecord>,
    pub schedules: Vec<ScheduleRecord>,
    pub arrivals: Vec<Arrival>,
    /// `Runner.ID` -> pid, born, gone.
    pub runners: HashMap<Uuid, (u32, Nanos, Option<Nanos>)>,
    /// Configuration -> `MaxInstances` and since when.
    pub limits: HashMap<Uuid, Vec<(Nanos, i32)>>,
    pub ledger: HashMap<Uuid, usize>,
    pub lives: Vec<(usize, Life)>,
    pub lanes: Lanes,
    pub wall: WallOffset,
    /// Whether everything has come to its end.
    pub over: bool,
}

impl History {
    /// Reads everything as it stands now. `over` says that nothing is under way any more.
    pub async fn read(world: &World, over: bool) -> Result<Self, sqlx::Error> {
        use sqlx::Connection;
        // Operations first: what they saw done must be in what is read later.
        let operations = world.recorder.operations();
        let mut db = PgConnection::connect_with(&world.server.operator()).await?;
        let wall = world.wall;
        // One snapshot, or a row may be missing that was inserted between two statements.
        sqlx::raw_sql("begin isolation level repeatable read").execute(&mut db).await?;
        let changes = sqlx::raw_sql(
            "select at, op, id, config, old_status, status, old_thread, thread, old_claim, claim,
               coalesce(old_attempt, 0) as old_attempt, coalesce(attempt, 0) as attempt,
               coalesce(old_iteration, 0) as old_iteration, coalesce(iteration, 0) as iteration,
               coalesce(old_crashes, 0) as old_crashes, coalesce(crashes, 0) as crashes,
               reason, schedule, due, was_waiting, runner, app
             from chaos.audit order by seq",
        )
        .fetch_all(&mut db)
        .await?;
        let mut trails: BTreeMap<Uuid, Vec<Change>> = BTreeMap::new();
        for row in &changes {
            let change = change(row, wall)?;
            trails.entry(change.id).or_default().push(change);
        }
        let mut table = HashMap::new();
        for row in sqlx::raw_sql("select ID, StatusID from vm.JobHistory").fetch_all(&mut db).await? {
            table.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let mut runners: HashMap<Uuid, (u32, Nanos, Option<Nanos>)> = HashMap::new();
        for row in
            sqlx::raw_sql("select at, op, id, pid from chaos.runners order by seq").fetch_all(&mut db).await?
        {
            let at = wall.to_boot(row.try_get("at")?);
            let pid = u32::try_from(row.try_get::<i32, _>("pid")?).unwrap_or(0);
            let entry = runners.entry(row.try_get("id")?).or_insert((pid, at, None));
            if row.try_get::<String, _>("op")? == "DELETE" {
                entry.2 = Some(at);
            }
        }
        let mut limits: HashMap<Uuid, Vec<(Nanos, i32)>> = HashMap::new();
        for row in
            sqlx::raw_sql("select at, config, most from chaos.limits order by seq").fetch_all(&mut db).await?
        {
            let at = wall.to_boot(row.try_get("at")?);
            limits.entry(row.try_get("config")?).or_default().push((at, row.try_get("most")?));
        }
        let mut ledger = HashMap::new();
        for row in sqlx::raw_sql("select id from chaos.ledger").fetch_all(&mut db).await? {
            *ledger.entry(row.try_get(0)?).or_default() += 1;
        }
        // The log of effects last: a change that was read has its lines in it, because they are written first.
        let lines = effects::read(&world.folder.join("effects"));
        let runs = runs(&lines, &trails);
        let processes = world
            .daemons
            .iter()
            .flat_map(|daemon| daemon.lives().into_iter().map(|life| (daemon.number, life)))
            .collect();
        Ok(Self {
            trails,
            table,
            runs,
            operations,
            faults: world.recorder.faults(),
            schedules: world.recorder.schedules(),
            arrivals: world.api.arrivals(),
            runners,
            limits,
            ledger,
            lives: processes,
            lanes: world.lanes,
            wall,
            over,
        })
    }

    /// The daemon of a process.
    pub fn daemon_of(&self, pid: u32) -> Option<usize> {
        self.lives.iter().find(|(_, life)| life.pid == pid).map(|(number, _)| *number)
    }

    /// The process and the daemon behind a `Runner.ID`.
    pub fn daemon_of_runner(&self, runner: Uuid) -> Option<(u32, usize)> {
        let pid = self.runners.get(&runner)?.0;
        Some((pid, self.daemon_of(pid)?))
    }

    /// Faults that could be felt by this daemon (or by any, without one) in this time; each is felt for a while longer.
    pub fn troubles(
        &self,
        daemon: Option<usize>,
        from: Nanos,
        to: Nanos,
    ) -> impl Iterator<Item = &FaultRecord> {
        const AFTERMATH: Nanos = 4 * SECOND;
        self.faults.iter().filter(move |fault| {
            let about = fault.daemon.is_none() || daemon.is_none() || fault.daemon == daemon;
            about && fault.from <= to && fault.to.is_none_or(|end| end + AFTERMATH >= from)
        })
    }

    /// All changes, by their time.
    pub fn changes_by_time(&self) -> Vec<&Change> {
        let mut all: Vec<&Change> = self.trails.values().flatten().collect();
        all.sort_by_key(|change| change.at);
        all
    }
}

fn change(row: &PgRow, wall: WallOffset) -> Result<Change, sqlx::Error> {
    Ok(Change {
        at: wall.to_boot(row.try_get("at")?),
        op: row.try_get("op")?,
        id: row.try_get("id")?,
        config: row.try_get("config")?,
        old_status: row.try_get("old_status")?,
        status: row.try_get("status")?,
        old_thread: row.try_get("old_thread")?,
        thread: row.try_get("thread")?,
        old_claim: row.try_get("old_claim")?,
        claim: row.try_get("claim")?,
        old_attempt: row.try_get("old_attempt")?,
        attempt: row.try_get("attempt")?,
        old_iteration: row.try_get("old_iteration")?,
        iteration: row.try_get("iteration")?,
        old_crashes: row.try_get("old_crashes")?,
        crashes: row.try_get("crashes")?,
        reason: row.try_get("reason")?,
        schedule: row.try_get("schedule")?,
        due: row.try_get("due")?,
        was_waiting: row.try_get("was_waiting")?,
        runner: row.try_get("runner")?,
        app: row.try_get("app")?,
    })
}

/// Groups lines by run and finds the claim each run belongs to.
fn runs(lines: &[Line], trails: &BTreeMap<Uuid, Vec<Change>>) -> HashMap<Uuid, Vec<Run>> {
    let mut by_run: HashMap<(Uuid, u64), Run> = HashMap::new();
    for line in lines {
        let run = by_run.entry((line.row, line.run)).or_insert_with(|| Run {
            row: line.row,
            runner: line.runner,
            pid: line.pid,
            attempt: line.attempt,
            iteration: line.iteration,
            started: line.t,
            effects: Vec::new(),
            end: None,
            claim: None,
        });
        match line.what {
            What::Start => run.started = line.t,
            What::Effect => run.effects.push((line.step, line.t, line.gate)),
            end => run.end = Some((end, line.t)),
        }
    }
    let mut runs: HashMap<Uuid, Vec<Run>> = HashMap::new();
    for (_, run) in by_run {
        runs.entry(run.row).or_default().push(run);
    }
    for (row, runs) in &mut runs {
        runs.sort_by_key(|run| run.started);
        let trail = trails.get(row).map_or(&[][..], Vec::as_slice);
        for run in runs {
            run.claim = trail.iter().enumerate().rev().find_map(|(at, change)| {
                let same = change.is_claim()
                    && change.thread == Some(run.runner)
                    && change.attempt == run.attempt
                    && change.iteration == run.iteration
                    && change.at <= run.started;
                same.then_some(at)
            });
        }
    }
    runs
}
