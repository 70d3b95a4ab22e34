//! The tables: jobs, schedules, runners, and what waits.

use super::Check;
use crate::cli::Failure;
use crate::cli::output::{count, seconds};
use crate::cli::runner;
use crate::registry::Registry;
use sqlx::PgConnection;

/// A due row that nothing holds back is claimed much sooner.
const LATE_SECONDS: f64 = 60.0;
/// As many are named as one can read.
const NAMED: usize = 5;

pub(super) async fn examine(
    db: &mut PgConnection,
    registry: &Registry,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    checks.push(runners(db).await?);
    checks.push(jobs(db, registry).await?);
    checks.push(schedule_errors(db).await?);
    checks.push(overdue(db).await?);
    checks.push(orphans(db).await?);
    checks.push(waiting(db).await?);
    Ok(())
}

fn named(names: &[String]) -> String {
    let rest = names.len().saturating_sub(NAMED);
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if rest > 0 { format!("{shown} and {rest} more") } else { shown }
}

fn size<T>(items: &[T]) -> i64 {
    i64::try_from(items.len()).unwrap_or(i64::MAX)
}

async fn runners(db: &mut PgConnection) -> Result<Check, Failure> {
    let daemons = runner::all(db).await?.into_iter().filter(|r| r.alone.is_none());
    let (alive, dead): (Vec<_>, Vec<_>) = daemons.partition(|r| r.alive);
    let dead_hosts: Vec<String> = dead.iter().map(|r| format!("{} pid {}", r.host, r.pid)).collect();
    Ok(if alive.is_empty() {
        let gone = if dead.is_empty() { String::new() } else { format!("; gone: {}", named(&dead_hosts)) };
        Check::warn("runners", format!("no daemon runs{gone}"), "Start one with `rosterd run`.")
    } else if dead.is_empty() {
        let draining = alive.iter().filter(|r| r.draining).count();
        let drains = if draining > 0 { format!(", {draining} draining") } else { String::new() };
        Check::ok("runners", format!("{} alive{drains}", alive.len()))
    } else {
        Check::warn(
            "runners",
            format!("{} alive, {} without a pulse: {}", alive.len(), dead.len(), named(&dead_hosts)),
            "Others take over their rows within seconds; if this stays, see whether their machines reach the database.",
        )
    })
}

/// Jobs in the database that neither this binary nor a live runner can run.
async fn jobs(db: &mut PgConnection, registry: &Registry) -> Result<Check, Failure> {
    let jobs = sqlx::query!(
        r#"select j.Struct as struct,
             (select count(*) from JobConfig c where c.JobID = j.ID and c.Active) as "configs!",
             (select count(*) from JobConfig c join only JobHistory h on h.ConfigID = c.ID and h.Ready
              where c.JobID = j.ID) as "pending!",
             exists (select from Runner r where j.ID = any(r.Jobs)
               and r.Pulse > clock_timestamp() - r.LeaseSeconds * interval '1 second') as "runs!"
           from Job j
           order by j.Struct"#
    )
    .fetch_all(db)
    .await?;
    let known = jobs.len();
    let unknown: Vec<_> = jobs.into_iter().filter(|j| registry.find(&j.r#struct).is_none()).collect();
    let pending: i64 = unknown.iter().filter(|j| !j.runs).map(|j| j.pending).sum();
    let in_use = unknown.iter().any(|j| !j.runs && (j.configs > 0 || j.pending > 0));
    let names: Vec<String> = unknown
        .iter()
        .map(|j| match (j.pending, j.runs) {
            (_, true) => format!("{} (a live runner does)", j.r#struct),
            (0, false) => j.r#struct.clone(),
            (pending, false) => format!("{} ({} pending)", j.r#struct, count(pending, "row")),
        })
        .collect();
    Ok(if unknown.is_empty() {
        let n = i64::try_from(known).unwrap_or(i64::MAX);
        Check::ok("jobs", format!("this rosterd can run all that the database has ({})", count(n, "job")))
    } else if in_use {
        Check::warn(
            "jobs",
            format!("this rosterd cannot run {}; {} pending in all", named(&names), count(pending, "row")),
            "Run the binary that has them registered, or set their configurations to Active = false.",
        )
    } else {
        Check::ok("jobs", format!("this rosterd cannot run {}, which nothing asks it to", named(&names)))
    })
}

async fn schedule_errors(db: &mut PgConnection) -> Result<Check, Failure> {
    let broken = sqlx::query!(
        r#"select coalesce(Name, ID::text) as "name!", Error as "error!" from JobSchedule
           where Error is not null and Active order by 1"#
    )
    .fetch_all(db)
    .await?;
    Ok(if broken.is_empty() {
        Check::ok("schedules", "none has an Error")
    } else {
        let n = count(size(&broken), "active schedule");
        let names: Vec<String> = broken.into_iter().map(|s| format!("{} ({})", s.name, s.error)).collect();
        Check::warn(
            "schedules",
            format!("{n} cannot fire: {}", named(&names)),
            "Change Cron, TimeOfDay, DaysOfWeek or TimeZone of each, or set Active = false.",
        )
    })
}

async fn overdue(db: &mut PgConnection) -> Result<Check, Failure> {
    let late: Vec<String> = sqlx::query_scalar!(
        r#"select coalesce(Name, ID::text) as "name!" from JobSchedule
           where Active and Error is null and NextRun < clock_timestamp() - interval '1 minute' order by NextRun"#
    )
    .fetch_all(db)
    .await?;
    Ok(if late.is_empty() {
        Check::ok("overdue", "no schedule is more than a minute late")
    } else {
        Check::warn(
            "overdue",
            format!(
                "{} should have fired more than a minute ago: {}",
                count(size(&late), "schedule"),
                named(&late)
            ),
            "A daemon fires them: start one, or see in its log why it does not. MissedRun decides what is made up for.",
        )
    })
}

async fn orphans(db: &mut PgConnection) -> Result<Check, Failure> {
    let orphans = sqlx::query_scalar!(
        r#"select coalesce(sum(k.Open), 0)::bigint as "n!" from Claim k
           where k.Open > 0 and not exists (select from Runner r where r.ID = k.RunnerID
             and r.Pulse > clock_timestamp() - r.LeaseSeconds * interval '1 second')"#
    )
    .fetch_one(db)
    .await?;
    Ok(if orphans == 0 {
        Check::ok("orphans", "every row in progress has a live runner")
    } else {
        Check::warn(
            "orphans",
            format!("{} in progress, but the runner is gone", count(orphans, "row")),
            "Any live daemon takes them over within 30 s of the loss; if none runs, start one.",
        )
    })
}

async fn waiting(db: &mut PgConnection) -> Result<Check, Failure> {
    let reasons = sqlx::query!(
        r#"select Reason as "reason!", count(*) as "rows!",
             extract(epoch from clock_timestamp() - min(NotBefore))::float8 as "oldest_seconds!"
           from JobHistoryWaiting
           where NotBefore <= clock_timestamp()
           group by Reason
           order by min(NotBefore)"#
    )
    .fetch_all(db)
    .await?;
    if reasons.is_empty() {
        return Ok(Check::ok("waiting", "no due row waits"));
    }
    let stuck = reasons.iter().any(|w| {
        w.reason.starts_with("no runner") || (w.reason == "about to start" && w.oldest_seconds > LATE_SECONDS)
    });
    let told: Vec<String> = reasons
        .iter()
        .map(|w| {
            format!("{}: {}, the oldest for {}", w.reason, count(w.rows, "row"), seconds(w.oldest_seconds))
        })
        .collect();
    Ok(if stuck {
        let remedy =
            "Start a daemon that has the job registered; select * from JobHistoryWaiting; shows each row.";
        Check::warn("waiting", named(&told), remedy)
    } else {
        Check::ok("waiting", named(&told))
    })
}
