//! Every write of a row, one function per arrow of the state diagram.
//!
//! Callers bring the connection. The engine's own connections have `rosterd.actor = 'runner'` set, which is
//! how the guard in the database tells its moves from an operator's.

use super::{ClaimedJob, Fence, HistoryId, NewRow, Settlement, Status};
#[cfg(feature = "seeded-bugs")]
use crate::seeded_bugs;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor};
use std::collections::HashMap;
use uuid::Uuid;

/// What one tick found: lanes (configurations) with a due row and room, and when to look again.
#[derive(Debug, Default, Clone)]
pub struct Tick {
    /// Lanes without `MaxInstances`.
    pub free: Vec<Uuid>,
    /// Lanes with `MaxInstances`, which must be locked before room is counted.
    pub limited: Vec<Uuid>,
    /// Seconds until the next waiting row falls due.
    pub next_due_seconds: Option<f64>,
    /// Whether a schedule is due, or new.
    pub schedules_due: bool,
    /// Whether a row is due that runs alone.
    pub suspects_due: bool,
    /// Whether some slot of the wake-up hint is not armed.
    pub unarmed: bool,
}

impl Tick {
    /// Whether there is anything to claim.
    pub fn is_idle(&self) -> bool {
        self.free.is_empty() && self.limited.is_empty()
    }
}

/// Insert -> pending, from inside the daemon or one of its commands.
pub async fn insert(db: impl PgExecutor<'_>, row: &NewRow) -> Result<HistoryId, sqlx::Error> {
    let id = sqlx::query_scalar!(
        "insert into JobHistory (ConfigID, StatusID, Payload, Priority, NotBefore, Identifier, ParentJobID)
         values ($1, 1, $2, $3, $4, $5, $6)
         returning ID",
        row.config,
        row.payload,
        row.priority,
        row.not_before,
        row.identifier,
        row.parent.map(|parent| parent.0),
    )
    .fetch_one(db)
    .await?;
    Ok(HistoryId(id))
}

/// Insert -> pending, one row for each due date of a schedule. A due date that has its row already gets none.
/// Returns how many rows were added.
pub async fn insert_scheduled(
    db: impl PgExecutor<'_>,
    config: Uuid,
    schedule: Uuid,
    due_dates: &[DateTime<Utc>],
    not_before: &[DateTime<Utc>],
) -> Result<u64, sqlx::Error> {
    #[cfg(feature = "seeded-bugs")]
    if seeded_bugs::is(seeded_bugs::Bug::SchedulesUnguarded) {
        return seeded_bugs::insert_scheduled(db, config, schedule, due_dates, not_before).await;
    }
    let inserted = sqlx::query!(
        "insert into JobHistory (ConfigID, StatusID, Origin, ScheduleID, DueDate, NotBefore)
         select $1, 1, 'schedule', $2, d.DueDate, d.NotBefore
         from unnest($3::timestamptz[], $4::timestamptz[]) as d (DueDate, NotBefore)
         on conflict (ScheduleID, DueDate) where ScheduleID is not null do nothing",
        config,
        schedule,
        due_dates,
        not_before,
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected())
}

/// Insert -> pending, one row for each of these configurations that has no live row. The caller holds the
/// configurations locked. Returns those that got one.
pub async fn insert_autostarted(db: impl PgExecutor<'_>, configs: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "insert into JobHistory (ConfigID, StatusID, Origin)
         select c.ID, 1, 'autostart'
         from unnest($1::uuid[]) as c (ID)
         where not exists (select from only JobHistory h where h.Ready and h.ConfigID = c.ID)
           and not exists (
             select from Claim k
             cross join lateral unnest(k.HistoryIDs) as i (ID)
             join only JobHistory h on h.ID = i.ID
             where k.ConfigID = c.ID and k.Open > 0 and h.ClaimID = k.ID and h.StatusID in (2, -1))
         returning ConfigID",
        configs,
    )
    .fetch_all(db)
    .await
}

/// Looks for lanes with due rows of these jobs (`Job.ID`), those with `suspect_from` crashes or more left out. One
/// statement, and the only one of an idle tick.
pub async fn tick(db: impl PgExecutor<'_>, jobs: &[i32], suspect_from: i32) -> Result<Tick, sqlx::Error> {
    sqlx::query_file_as!(Tick, "src/history/tick.sql", jobs, suspect_from).fetch_one(db).await
}

/// What a claim took.
#[derive(Debug, Default)]
pub struct Claimed {
    /// In the order in which they shall start.
    pub jobs: Vec<ClaimedJob>,
    /// The place of the last of them.
    pub last: Option<Place>,
    /// Whether rows were left behind because somebody holds them locked.
    pub left_locked: bool,
}

/// Rows taken at once at most while others are held locked.
const AROUND_LIMIT: i64 = 50;

/// Where a row stands in its lane, which is in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `JobHistory.Priority`.
    pub priority: i32,
    /// `JobHistory.NotBefore`.
    pub not_before: DateTime<Utc>,
    /// `JobHistory.ID`.
    pub id: Uuid,
}

impl Place {
    /// Before every row: the least Priority there is, and no NotBefore is earlier (migration 20261122000400).
    pub const START: Self = Self { priority: i32::MIN, not_before: DateTime::UNIX_EPOCH, id: Uuid::nil() };
}

/// How much a claim may take, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most rows.
    pub limit: i64,
    /// Rows up to this place are left out; [`Place::START`] leaves out none.
    pub after: Place,
    /// Rows behind those that somebody holds locked are reached, from the start, and few of them.
    pub around: bool,
    /// Rows with so many crashes or more are for [`claim_alone`].
    pub suspect_from: i32,
}

/// Pending -> in progress: takes due rows for `runner`, in the order of Priority, NotBefore, ID.
/// Rows that somebody holds locked are left out.
///
/// Runs in a transaction only if a limited lane is among them; `tick.limited` that another session holds
/// locked are left out.
pub async fn claim(
    db: &mut PgConnection,
    runner: Uuid,
    tick: &Tick,
    bounds: Bounds,
) -> Result<Claimed, sqlx::Error> {
    if tick.limited.is_empty() {
        return claim_from(&mut *db, runner, &tick.free, &[], bounds).await;
    }
    // BEGIN and COMMIT as statements: this connection belongs to one loop that closes it on any error, so no
    // half-open transaction can be inherited by anybody.
    sqlx::raw_sql("begin").execute(&mut *db).await?;
    let claimed = claim_limited(&mut *db, runner, tick, bounds).await;
    if let Err(sqlx::Error::Database(_)) = &claimed {
        // Refused, or locked for too long: the connection is fine and may serve the next claim.
        sqlx::raw_sql("rollback").execute(&mut *db).await?;
    } else if claimed.is_ok() {
        sqlx::raw_sql("commit").execute(&mut *db).await?;
    }
    claimed
}

async fn claim_limited(
    db: &mut PgConnection,
    runner: Uuid,
    tick: &Tick,
    bounds: Bounds,
) -> Result<Claimed, sqlx::Error> {
    #[cfg(feature = "seeded-bugs")]
    if let Some(sql) = seeded_bugs::changed(include_str!("lock_lanes.sql")) {
        let lanes = sqlx::query_scalar(sql).bind(&tick.limited).fetch_all(&mut *db).await?;
        return claim_from(&mut *db, runner, &lanes, &lanes, bounds).await;
    }
    let locked =
        sqlx::query_file_scalar!("src/history/lock_lanes.sql", &tick.limited).fetch_all(&mut *db).await?;
    let lanes = [locked.as_slice(), &tick.free].concat();
    claim_from(&mut *db, runner, &lanes, &locked, bounds).await
}

/// What became of an attempt to claim one row.
#[derive(Debug)]
pub enum Alone {
    /// It is ours.
    Claimed(Box<ClaimedJob>),
    /// Its configuration has no room now, or somebody holds it locked.
    NoRoom,
    /// It is not there to be claimed: another runner has it, it was cancelled or put off.
    Gone,
}

/// Pending -> in progress for this one row, by a runner whose `AloneID` it is.
///
/// Runs in a transaction if its lane is limited, so `db` is closed after an error as for [`claim`].
pub async fn claim_alone(db: &mut PgConnection, runner: Uuid, id: HistoryId) -> Result<Alone, sqlx::Error> {
    let lane = sqlx::query!(
        r#"select c.ID, c.MaxInstances,
             (select coalesce(sum(k.Open), 0) from Claim k where k.ConfigID = c.ID) as "open!"
           from only JobHistory h join JobConfig c on c.ID = h.ConfigID
           where h.ID = $1 and h.Ready and h.Crashes >= 2 and h.NotBefore <= statement_timestamp()"#,
        id.0,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(lane) = lane else { return Ok(Alone::Gone) };
    let limited = lane.maxinstances > 0;
    if limited && lane.open >= i64::from(lane.maxinstances) {
        return Ok(Alone::NoRoom);
    }
    if limited {
        sqlx::raw_sql("begin").execute(&mut *db).await?;
    }
    let taken = take_alone(&mut *db, runner, id, limited.then_some(lane.id)).await;
    if limited {
        // Refused, or locked for too long: the connection is fine and may serve the next claim.
        let end = match &taken {
            Ok(_) => Some("commit"),
            Err(sqlx::Error::Database(_)) => Some("rollback"),
            Err(_) => None,
        };
        if let Some(end) = end {
            sqlx::raw_sql(end).execute(&mut *db).await?;
        }
    }
    taken?.map_or(Ok(Alone::NoRoom), |row| Ok(Alone::Claimed(Box::new(row.claimed()?))))
}

async fn take_alone(
    db: &mut PgConnection,
    runner: Uuid,
    id: HistoryId,
    limited: Option<Uuid>,
) -> Result<Option<TakenRow>, sqlx::Error> {
    let locked = match limited {
        Some(lane) => !sqlx::query_file_scalar!("src/history/lock_lanes.sql", &[lane])
            .fetch_all(&mut *db)
            .await?
            .is_empty(),
        None => false,
    };
    sqlx::query_file_as!(TakenRow, "src/history/claim_alone.sql", runner, id.0, locked)
        .fetch_optional(&mut *db)
        .await
}

/// A runner says for which one row it is there; from now on its lane keeps a place free for it. Returns false if the
/// runner has no row any more.
pub async fn reserve_alone(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    id: HistoryId,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!("update Runner set AloneID = $2 where ID = $1", runner, id.0).execute(db).await?;
    Ok(done.rows_affected() > 0)
}

struct TakenRow {
    id: Uuid,
    claim: i64,
    attempt: i32,
    config: Uuid,
    job: i32,
    payload: String,
    iteration: i64,
    parent: Option<Uuid>,
    due: Option<DateTime<Utc>>,
    started: DateTime<Utc>,
    priority: i32,
    not_before: DateTime<Utc>,
    waited_seconds: f64,
    found: i64,
}

impl TakenRow {
    fn place(&self) -> Place {
        Place { priority: self.priority, not_before: self.not_before, id: self.id }
    }

    fn claimed(self) -> Result<ClaimedJob, sqlx::Error> {
        Ok(ClaimedJob {
            fence: Fence { id: HistoryId(self.id), claim: self.claim, attempt: self.attempt },
            config: self.config,
            job: self.job,
            payload: RawValue::from_string(self.payload).map_err(|e| sqlx::Error::Decode(e.into()))?,
            iteration: self.iteration,
            parent: self.parent.map(HistoryId),
            due: self.due,
            started: self.started,
            priority: self.priority,
            waited_seconds: self.waited_seconds,
        })
    }
}

async fn claim_from(
    db: &mut PgConnection,
    runner: Uuid,
    lanes: &[Uuid],
    locked: &[Uuid],
    bounds: Bounds,
) -> Result<Claimed, sqlx::Error> {
    let Bounds { limit, after, around, suspect_from } = bounds;
    if lanes.is_empty() {
        return Ok(Claimed::default());
    }
    let mut rows = if around {
        let limit = limit.min(AROUND_LIMIT);
        sqlx::query_file_as!(
            TakenRow,
            "src/history/claim_around.sql",
            runner,
            lanes,
            limit,
            locked,
            suspect_from,
        )
        .fetch_all(&mut *db)
        .await?
    } else {
        sqlx::query_file_as!(
            TakenRow,
            "src/history/claim.sql",
            runner,
            lanes,
            limit,
            locked,
            suspect_from,
            after.priority,
            after.not_before,
            after.id,
        )
        .fetch_all(&mut *db)
        .await?
    };
    let left_locked =
        !around && rows.first().is_none_or(|row| row.found > i64::try_from(rows.len()).unwrap_or(i64::MAX));
    // RETURNING has no order of its own.
    rows.sort_unstable_by_key(TakenRow::place);
    let last = rows.last().map(TakenRow::place);
    let jobs: Result<Vec<ClaimedJob>, sqlx::Error> = rows.into_iter().map(TakenRow::claimed).collect();
    Ok(Claimed { jobs: jobs?, last, left_locked })
}

/// What a settled row became.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settled {
    /// The row.
    pub id: HistoryId,
    /// Its status now.
    pub status: Status,
    /// Seconds until it may start again, if it is pending.
    pub due_seconds: f64,
    /// Whether it waits between two iterations.
    pub waits: bool,
}

/// In progress -> completed, error, canceled, or pending again, for a batch of runs.
///
/// Rows that are not in the answer were not written: another session holds them or their configuration
/// locked (ask again), or they are no longer ours (see [`super::lookup::still_owned`]).
pub async fn settle(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    runs: &[Settlement],
    retry_max_seconds: f64,
) -> Result<Vec<Settled>, sqlx::Error> {
    let ids: Vec<Uuid> = runs.iter().map(|run| run.fence.id.0).collect();
    let claims: Vec<i64> = runs.iter().map(|run| run.fence.claim).collect();
    let attempts: Vec<i32> = runs.iter().map(|run| run.fence.attempt).collect();
    let verdicts: Vec<i32> = runs.iter().map(|run| run.verdict as i32).collect();
    let errors: Vec<Option<String>> = runs.iter().map(|run| run.error.clone()).collect();
    let results: Vec<Option<serde_json::Value>> = runs.iter().map(|run| run.result.clone()).collect();
    let stop_reasons: Vec<Option<String>> =
        runs.iter().map(|run| run.stop_reason.map(|reason| reason.as_str().to_owned())).collect();
    let progress: Vec<Option<String>> = runs.iter().map(|run| run.progress.clone()).collect();
    let jitter: Vec<f64> = runs.iter().map(|_| fastrand::f64()).collect();
    let mut configs: Vec<Uuid> = runs.iter().map(|run| run.config).collect();
    configs.sort_unstable();
    configs.dedup();
    #[cfg(feature = "seeded-bugs")]
    if let Some(sql) = seeded_bugs::changed(include_str!("settle.sql")) {
        let rows = sqlx::query(sql).bind(runner).bind(&ids).bind(&claims).bind(&attempts).bind(&verdicts);
        let rows = rows.bind(&errors).bind(&results).bind(&stop_reasons).bind(&progress).bind(&jitter);
        let rows = rows.bind(&configs).bind(retry_max_seconds).fetch_all(db).await?;
        return rows.iter().map(seeded_bugs::settled).collect();
    }
    let rows = sqlx::query_file!(
        "src/history/settle.sql",
        runner,
        &ids,
        &claims,
        &attempts,
        &verdicts,
        &errors as &[Option<String>],
        &results as &[Option<serde_json::Value>],
        &stop_reasons as &[Option<String>],
        &progress as &[Option<String>],
        &jitter,
        &configs,
        retry_max_seconds,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Settled {
                id: HistoryId(row.id),
                status: known_status(row.status)?,
                due_seconds: row.due_seconds,
                waits: row.waits,
            })
        })
        .collect()
}

fn known_status(id: i32) -> Result<Status, sqlx::Error> {
    Status::from_id(id).ok_or_else(|| sqlx::Error::Decode(format!("StatusID {id} is not known").into()))
}

/// Writes the newest progress of rows in progress. Rows no longer ours, or held locked, keep what they have.
pub async fn write_progress(
    db: impl PgExecutor<'_>,
    runner: Uuid,
    newest: &HashMap<HistoryId, String>,
) -> Result<u64, sqlx::Error> {
    let (ids, texts): (Vec<Uuid>, Vec<String>) = newest.iter().map(|(id, text)| (id.0, text.clone())).unzip();
    let done = sqlx::query!(
        "with news as (select * from unnest($2::uuid[], $3::text[]) as n (ID, Progress)),
         mine as materialized (
           select h.ID, n.Progress
           from news n join only JobHistory h on h.ID = n.ID
           where h.ThreadID = $1 and h.StatusID = 2
           for no key update of h skip locked)
         update only JobHistory h
         set Progress = m.Progress, PulseDate = clock_timestamp()
         from mine m
         where h.ID = m.ID",
        runner,
        &ids,
        &texts,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Rows of runners that are gone -> pending, error or canceled. Returns what became of each.
pub async fn rescue(db: impl PgExecutor<'_>) -> Result<Vec<(HistoryId, Status)>, sqlx::Error> {
    #[cfg(feature = "seeded-bugs")]
    if let Some(sql) = seeded_bugs::changed(include_str!("rescue.sql")) {
        let rows: Vec<(Uuid, i32)> = sqlx::query_as(sql).fetch_all(db).await?;
        return rows.into_iter().map(|(id, status)| Ok((HistoryId(id), known_status(status)?))).collect();
    }
    let rows = sqlx::query_file!("src/history/rescue.sql").fetch_all(db).await?;
    rows.into_iter().map(|row| Ok((HistoryId(row.id), known_status(row.status)?))).collect()
}

/// Forgets claims none of whose rows is in progress any more: those of this runner by their count, those of
/// dead runners by looking at the rows themselves.
pub async fn forget_closed_claims(db: impl PgExecutor<'_>, runner: Uuid) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from Claim k
         where (k.RunnerID = $1 and k.Open <= 0)
            or (not exists (select from Runner r where r.ID = k.RunnerID)
                and not exists (
                  select from unnest(k.HistoryIDs) as i (ID)
                  join only JobHistory h on h.ID = i.ID
                  where h.ThreadID = k.RunnerID and h.ClaimID = k.ID and h.StatusID in (2, -1)))",
        runner,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Live -> cancel, as an operator would by hand. Returns the status after it, or `None` if there is no such row.
pub async fn cancel(db: &mut PgConnection, id: HistoryId) -> Result<Option<Status>, sqlx::Error> {
    sqlx::query!("update JobHistory set StatusID = -1 where ID = $1", id.0).execute(&mut *db).await?;
    let status = sqlx::query_scalar!("select StatusID from JobHistory where ID = $1", id.0)
        .fetch_optional(&mut *db)
        .await?;
    status.map(known_status).transpose()
}

/// Live -> cancel for several rows, as an operator would by hand.
pub async fn cancel_all(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query!("update only JobHistory set StatusID = -1 where ID = any($1) and StatusID in (1, 2)", ids)
        .execute(db)
        .await
        .map(drop)
}

/// A fresh row from a finished one; `vm.rerun` says why, if it cannot be.
pub async fn rerun(db: impl PgExecutor<'_>, id: HistoryId) -> Result<HistoryId, sqlx::Error> {
    let fresh = sqlx::query_scalar!(r#"select vm.rerun($1) as "id!""#, id.0).fetch_one(db).await?;
    Ok(HistoryId(fresh))
}
