//! Due schedule -> one row, exactly once whichever runner ticks.
//!
//! There is no leader. Every runner computes the same due times, and the first to move `NextRun` on from the
//! value it read inserts the row in the same transaction; a unique index on (ScheduleID, DueDate) stands behind
//! that. Between ticks the loop sleeps until the earliest `NextRun`, at most a poll.

use super::{CatchUp, MissedPlan, MissedRun, Overlap, Recurrence, Zone, jitter, missed, next_after};
use crate::history::{lookup, moves};
use crate::postgres::connect::{self, Backoff, DatabaseError, Limits, Speaker};
use crate::postgres::lifeline::Lifeline;
use crate::postgres::listen::Hints;
use crate::seeded_bugs::{self, Bug};
use crate::vitals::Vitals;
use chrono::{DateTime, NaiveTime, Utc};
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// `JobSchedule`, with the zone it fires in.
#[derive(Debug, Clone)]
pub struct ScheduleRow {
    /// `JobSchedule.ID`.
    pub id: Uuid,
    /// `JobSchedule.ConfigID`.
    pub config: Uuid,
    /// `Cron`, or else `DaysOfWeek` and `TimeOfDay`.
    pub cron: Option<String>,
    /// See `cron`.
    pub days_of_week: Option<String>,
    /// See `cron`.
    pub time_of_day: Option<NaiveTime>,
    /// Its own zone, or its organization's.
    pub zone: String,
    /// `MissedRun`.
    pub missed_run: String,
    /// `Overlap`.
    pub overlap: String,
    /// `JitterSeconds`.
    pub jitter_seconds: i32,
    /// `NextRun`; `None` = to be computed.
    pub next_run: Option<DateTime<Utc>>,
    /// Whether its configuration and organization are active.
    pub live: bool,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

impl ScheduleRow {
    /// Its text and zone, or the sentence for `JobSchedule.Error`.
    pub fn parse(&self) -> Result<(Recurrence, Zone), String> {
        let recurrence = match (&self.cron, self.time_of_day) {
            (Some(cron), _) => Recurrence::cron(cron),
            (None, Some(time)) => Recurrence::weekly(self.days_of_week.as_deref(), time),
            (None, None) => return Err("has neither Cron nor TimeOfDay; set one".to_owned()),
        }
        .map_err(|e| e.to_string())?;
        recurrence.check_still_fires(self.now).map_err(|e| e.to_string())?;
        let zone = Zone::parse(&self.zone).map_err(|e| e.to_string())?;
        Ok((recurrence, zone))
    }
}

/// What the loop needs.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) options: PgConnectOptions,
    pub(crate) limits: Limits,
    pub(crate) lifeline: Arc<Lifeline>,
    pub(crate) hints: Hints,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) missed_grace: Duration,
    pub(crate) missed_max: usize,
}

/// Stored due times are checked against the zone data this often: zones change their rules.
const RECOMPUTE_EVERY: Duration = Duration::from_hours(24);

impl Scheduler {
    /// Fires schedules until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut link: Option<(PgConnection, u64)> = None;
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let mut recomputed: Option<tokio::time::Instant> = None;
        loop {
            self.vitals.progress("schedule");
            let recompute = recomputed.is_none_or(|at| at.elapsed() >= RECOMPUTE_EVERY);
            let turned = tokio::select! {
                turned = self.turn(&mut link, recompute) => turned,
                // What it had begun goes with its connection.
                () = stop.cancelled() => return,
            };
            let wait = match turned {
                Ok(wait) => {
                    backoff.reset();
                    if recompute {
                        recomputed = Some(tokio::time::Instant::now());
                    }
                    wait
                }
                Err(error) => {
                    tracing::debug!("Scheduler: {error}; tried again");
                    link = None;
                    backoff.next_wait()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.hints.schedule.notified() => {}
            }
        }
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DatabaseError> {
        self.lifeline.within(self.limits.deadline(), call).await
    }

    async fn turn(
        &self,
        link: &mut Option<(PgConnection, u64)>,
        recompute: bool,
    ) -> Result<Duration, DatabaseError> {
        // What was open when the link was cut, or the cluster replaced, is of no use any more.
        let cuts = self.lifeline.cuts();
        let mut db = match link.take() {
            Some((db, opened)) if opened == cuts => db,
            _ => connect::connect(&self.options, "schedule", Speaker::Runner, self.limits).await?,
        };
        if recompute {
            self.recompute(&mut db).await?;
        }
        let mut fired = 0;
        // Those that somebody holds locked, or that the database refuses to serve: they delay no other.
        let mut held = HashSet::new();
        let next = loop {
            // Alone it is all that an idle runner asks.
            let next = self.within(seconds_to_next(&mut db)).await?;
            if next.is_none_or(|seconds| seconds > 0.0) {
                break next;
            }
            let mut due = self.within(due(&mut db)).await?;
            due.retain(|schedule| !held.contains(&schedule.id));
            if due.is_empty() {
                break next;
            }
            for schedule in &due {
                match self.within(self.serve(&mut db, schedule)).await {
                    Ok(Some(rows)) => fired += rows,
                    Ok(None) => drop(held.insert(schedule.id)),
                    Err(DatabaseError::Sql(error)) if !connect::is_outage(&error) => {
                        tracing::warn!("Scheduler: schedule {} is tried again: {error}", schedule.id);
                        self.within(sqlx::raw_sql("rollback").execute(&mut db)).await?;
                        held.insert(schedule.id);
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        if fired > 0 {
            tracing::debug!("Job Runner: Queueing [{fired}] Scheduled Jobs");
            self.hints.wake.notify_one();
        }
        *link = Some((db, cuts));
        // The claim loop's tick looks at schedules too and gives a hint, so this sleep need not be short.
        let next = next.map_or(IDLE_LOOK, |s| Duration::from_secs_f64(s.clamp(0.0, IDLE_LOOK.as_secs_f64())));
        Ok(if held.is_empty() { next } else { next.max(HELD_LOOK) })
    }

    /// One schedule that is new or due. Returns how many rows it put on the queue, or `None` if it was not ours to
    /// serve now: another runner was faster, or somebody holds it locked.
    async fn serve(&self, db: &mut PgConnection, schedule: &ScheduleRow) -> Result<Option<u64>, sqlx::Error> {
        let (recurrence, zone) = match schedule.parse() {
            Ok(parsed) => parsed,
            Err(sentence) => return set_error(db, schedule, &sentence).await,
        };
        let Some(due) = schedule.next_run else {
            let next = next_after(&recurrence, &zone, schedule.now);
            return set_next(db, schedule, next).await;
        };
        let policy: MissedRun = schedule.missed_run.parse().unwrap_or_default();
        let catch_up = CatchUp { policy, grace: self.missed_grace, limit: self.missed_max };
        let plan = missed(&recurrence, &zone, due, schedule.now, catch_up);
        if plan.dropped > 0 && schedule.live {
            tracing::warn!(
                "Scheduler: {} due times of schedule {} passed while no daemon ran and get no row (MissedRun = '{policy}')",
                plan.dropped,
                schedule.id
            );
        }
        // Rows an operator holds locked (of the configuration, or those to be cancelled) must not stop the others.
        sqlx::raw_sql("begin; set local lock_timeout = '500ms'").execute(&mut *db).await?;
        let fired = fire(&mut *db, schedule, due, &plan).await?;
        sqlx::raw_sql("commit").execute(&mut *db).await?;
        Ok(fired)
    }

    /// Due times in the future follow the zone data of today.
    async fn recompute(&self, db: &mut PgConnection) -> Result<(), DatabaseError> {
        for schedule in self.within(in_the_future(db)).await? {
            let Ok((recurrence, zone)) = schedule.parse() else { continue };
            let next = next_after(&recurrence, &zone, schedule.now);
            if next != schedule.next_run {
                tracing::info!(
                    "Scheduler: zone data changed, schedule {} is due at {next:?} now",
                    schedule.id
                );
                self.within(set_next(db, &schedule, next)).await?;
            }
        }
        Ok(())
    }
}

/// The next look at a schedule that somebody held locked.
const HELD_LOOK: Duration = Duration::from_millis(100);
/// Longest sleep without a hint; short enough to prove that the loop is alive.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// Moves `NextRun` on and inserts the rows, or does nothing because another runner did.
async fn fire(
    db: &mut PgConnection,
    schedule: &ScheduleRow,
    due: DateTime<Utc>,
    plan: &MissedPlan,
) -> Result<Option<u64>, sqlx::Error> {
    let latest = plan.fire.last().copied().filter(|_| schedule.live);
    let moved = sqlx::query!(
        "update JobSchedule
         set NextRun = $3::timestamptz, LastRun = coalesce($4, LastRun),
             Error = case when $3::timestamptz is null then $5::text end
         where ID = (
           select ID from JobSchedule where ID = $1 and NextRun = $2 and Active for no key update skip locked)",
        schedule.id,
        due,
        plan.next,
        latest,
        NO_MORE,
    )
    .execute(&mut *db)
    .await?;
    if moved.rows_affected() == 0 && !seeded_bugs::is(Bug::SchedulesUnguarded) {
        return Ok(None);
    }
    if seeded_bugs::is(Bug::DueTimeForgotten) {
        sqlx::raw_sql("commit; begin; set local lock_timeout = '500ms'").execute(&mut *db).await?;
    }
    if plan.fire.is_empty() || !schedule.live {
        return Ok(Some(0));
    }
    let mut due_dates = plan.fire.as_slice();
    match schedule.overlap.parse().unwrap_or_default() {
        Overlap::Queue => {}
        Overlap::Skip => {
            if !lookup::live_rows_of_schedule(&mut *db, schedule.config, schedule.id).await?.is_empty() {
                tracing::info!(
                    "Scheduler: schedule {} skips {due}: an earlier row is still live",
                    schedule.id
                );
                return Ok(Some(0));
            }
            // Of several that were missed, each would find the one before it live.
            due_dates = &due_dates[due_dates.len() - 1..];
        }
        Overlap::CancelOld => {
            let old = lookup::live_rows_of_schedule(&mut *db, schedule.config, schedule.id).await?;
            moves::cancel_all(&mut *db, &old).await?;
        }
    }
    let max_jitter = u32::try_from(schedule.jitter_seconds).unwrap_or(0);
    let not_before: Vec<DateTime<Utc>> =
        due_dates.iter().map(|at| *at + jitter(schedule.id, *at, max_jitter)).collect();
    moves::insert_scheduled(db, schedule.config, schedule.id, due_dates, &not_before).await.map(Some)
}

/// Schedules whose time has come, and new ones.
async fn due(db: &mut PgConnection) -> Result<Vec<ScheduleRow>, sqlx::Error> {
    sqlx::query_as!(
        ScheduleRow,
        r#"select s.ID as id, s.ConfigID as config, s.Cron as cron, s.DaysOfWeek as days_of_week,
             s.TimeOfDay as time_of_day, coalesce(s.TimeZone, o.TimeZone) as "zone!", s.MissedRun as missed_run,
             s.Overlap as overlap, s.JitterSeconds as jitter_seconds, s.NextRun as next_run,
             c.Active and o.Active as "live!", statement_timestamp() as "now!"
           from JobSchedule s
           join JobConfig c on c.ID = s.ConfigID
           join Organization o on o.ID = c.OrganizationID
           where s.Active and s.Error is null and (s.NextRun is null or s.NextRun <= statement_timestamp())
           order by s.NextRun nulls last
           limit 500"#
    )
    .fetch_all(db)
    .await
}

async fn in_the_future(db: &mut PgConnection) -> Result<Vec<ScheduleRow>, sqlx::Error> {
    sqlx::query_as!(
        ScheduleRow,
        r#"select s.ID as id, s.ConfigID as config, s.Cron as cron, s.DaysOfWeek as days_of_week,
             s.TimeOfDay as time_of_day, coalesce(s.TimeZone, o.TimeZone) as "zone!", s.MissedRun as missed_run,
             s.Overlap as overlap, s.JitterSeconds as jitter_seconds, s.NextRun as next_run,
             c.Active and o.Active as "live!", statement_timestamp() as "now!"
           from JobSchedule s
           join JobConfig c on c.ID = s.ConfigID
           join Organization o on o.ID = c.OrganizationID
           where s.Active and s.Error is null and s.NextRun > statement_timestamp()"#
    )
    .fetch_all(db)
    .await
}

/// The schedules an operator's word means: an ID, a `Name`, or the `Struct` of their job.
pub async fn find(db: &mut PgConnection, word: &str) -> Result<Vec<ScheduleRow>, sqlx::Error> {
    sqlx::query_as!(
        ScheduleRow,
        r#"select s.ID as id, s.ConfigID as config, s.Cron as cron, s.DaysOfWeek as days_of_week,
             s.TimeOfDay as time_of_day, coalesce(s.TimeZone, o.TimeZone) as "zone!", s.MissedRun as missed_run,
             s.Overlap as overlap, s.JitterSeconds as jitter_seconds, s.NextRun as next_run,
             c.Active and o.Active as "live!", statement_timestamp() as "now!"
           from JobSchedule s
           join JobConfig c on c.ID = s.ConfigID
           join Organization o on o.ID = c.OrganizationID
           join Job j on j.ID = c.JobID
           where s.ID::text = lower($1) or s.ConfigID::text = lower($1) or s.Name = $1 or j.Key = vm.job_key($1)
           order by s.ID"#,
        word,
    )
    .fetch_all(db)
    .await
}

/// Until the next due time; 0 or less if there is something to serve now, also a schedule that is new.
async fn seconds_to_next(db: &mut PgConnection) -> Result<Option<f64>, sqlx::Error> {
    sqlx::query_scalar!(
        "select extract(epoch from min(coalesce(NextRun, statement_timestamp())) - statement_timestamp())::float8
         from JobSchedule where Active and Error is null"
    )
    .fetch_one(db)
    .await
}

async fn set_next(
    db: &mut PgConnection,
    schedule: &ScheduleRow,
    next: Option<DateTime<Utc>>,
) -> Result<Option<u64>, sqlx::Error> {
    sqlx::query!(
        "update JobSchedule set NextRun = $3::timestamptz, Error = case when $3::timestamptz is null then $4::text end
         where ID = (
           select ID from JobSchedule where ID = $1 and NextRun is not distinct from $2
           for no key update skip locked)",
        schedule.id,
        schedule.next_run,
        next,
        NO_MORE,
    )
    .execute(db)
    .await
    .map(|done| (done.rows_affected() > 0).then_some(0))
}

async fn set_error(
    db: &mut PgConnection,
    schedule: &ScheduleRow,
    sentence: &str,
) -> Result<Option<u64>, sqlx::Error> {
    let done = sqlx::query!(
        "update JobSchedule set NextRun = null, Error = $3
         where ID = (
           select ID from JobSchedule where ID = $1 and NextRun is not distinct from $2 and Error is null
           for no key update skip locked)",
        schedule.id,
        schedule.next_run,
        sentence,
    )
    .execute(db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    tracing::error!("Scheduler: schedule {} cannot fire: {sentence}", schedule.id);
    Ok(Some(0))
}

/// `JobSchedule.Error` of a schedule that has had its last due time.
const NO_MORE: &str = "has no due time left; change Cron, or set Active = false";
