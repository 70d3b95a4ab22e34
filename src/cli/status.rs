//! `rosterd status`: who runs, what runs, what waits and why, what is due next.

use super::output::{count, say, say_json, seconds, section, table, time};
use super::runner::{self, RunnerRow};
use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::history::Status as RowStatus;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

/// Options of `rosterd status`.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(settings: &Config, args: &Status) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let runners = runner::all(&mut db).await?;
        let live = live(&mut db).await?;
        let waiting = waiting(&mut db).await?;
        let next = next_due(&mut db).await?;
        // Last, because it may be told to give up.
        let finished = finished(&mut db).await?;
        if args.json {
            let running = runners.iter().any(|runner| runner.alive && runner.alone.is_none());
            let counts: serde_json::Map<_, _> = live
                .iter()
                .map(|(status, n)| (status.name().to_lowercase().replace(' ', "_"), json!(n)))
                .collect();
            return say_json(&json!({
                "daemon_running": running, "runners": runners, "live": counts, "finished_last_hour": finished,
                "waiting": waiting, "next_due": next,
            }));
        }
        show(&runners, &live, finished.as_deref(), &waiting, &next)
    })
}

fn show(
    runners: &[RunnerRow],
    live: &[(RowStatus, i64)],
    finished: Option<&[Finished]>,
    waiting: &[Waiting],
    next: &[NextDue],
) -> Result<(), Failure> {
    section("Runners", &runner::shown(runners))?;
    if !runners.is_empty() && !runners.iter().any(|runner| runner.alive) {
        say("No daemon runs: these rows are of daemons that are gone. Start one with `rosterd run`.\n")?;
    }

    let counts: Vec<String> = live.iter().map(|(status, n)| format!("{n} {status}")).collect();
    section("Live rows", &counts.join(", "))?;

    let body = match waiting {
        [] => "none".to_owned(),
        waiting => table(
            ["ROWS", "REASON", "OLDEST", "NEXT UNTIL (UTC)"],
            waiting
                .iter()
                .map(|w| [w.rows.to_string(), w.reason.clone(), seconds(w.oldest_seconds), time(w.until)]),
        ),
    };
    section("Waiting rows, by reason", &body)?;

    let body = match finished {
        None => "not counted: the history is too large to do so quickly".to_owned(),
        Some([]) => "none".to_owned(),
        Some(finished) => table(
            ["JOB", "COMPLETED", "ERROR", "CANCELED"],
            finished.iter().map(|f| {
                [f.job.clone(), f.completed.to_string(), f.error.to_string(), f.canceled.to_string()]
            }),
        ),
    };
    section("Finished in the last hour (of rows made within a day)", &body)?;

    let body = match next {
        [] => "none".to_owned(),
        next => table(
            ["DUE (UTC)", "IN", "SCHEDULE", "JOB", "ORG"],
            next.iter().map(|n| {
                let name = n.name.clone().unwrap_or_else(|| n.id.to_string());
                let left = if n.in_seconds < 0.0 {
                    format!("{} late", seconds(-n.in_seconds))
                } else {
                    seconds(n.in_seconds)
                };
                [time(n.due), left, name, n.job.clone(), n.organization.clone()]
            }),
        ),
    };
    say(&format!("Next due schedules\n{body}"))?;
    let failed: i64 = finished.unwrap_or_default().iter().map(|f| f.error).sum();
    if failed > 0 {
        let rows = count(failed, "row");
        say(&format!(
            "\n{rows} ended as ERROR: select ID, Error from JobHistory where StatusID = 4 order by ID desc limit 20;"
        ))?;
    }
    Ok(())
}

/// Rows by status. Those in progress are found by the claims that hold them, so that no finished row is read; the
/// function shows them to logins that may not read claims, too.
async fn live(db: &mut PgConnection) -> Result<Vec<(RowStatus, i64)>, sqlx::Error> {
    let counts = sqlx::query!(
        r#"select
             (select count(*) from only JobHistory where Ready) as "pending!",
             count(*) filter (where h.StatusID = 2) as "in_progress!",
             count(*) filter (where h.StatusID = -1) as "cancel!"
           from only JobHistory h
           where h.ID = any(array(select vm.rows_in_progress())) and h.StatusID in (2, -1)"#
    )
    .fetch_one(db)
    .await?;
    Ok(vec![
        (RowStatus::Pending, counts.pending),
        (RowStatus::InProgress, counts.in_progress),
        (RowStatus::Cancel, counts.cancel),
    ])
}

/// Waiting rows with one reason.
#[derive(Debug, Serialize)]
struct Waiting {
    reason: String,
    rows: i64,
    /// Since the oldest of them could have started, or 0.
    oldest_seconds: f64,
    until: Option<DateTime<Utc>>,
}

async fn waiting(db: &mut PgConnection) -> Result<Vec<Waiting>, sqlx::Error> {
    sqlx::query_as!(
        Waiting,
        r#"select Reason as "reason!", count(*) as "rows!", min(Until) as until,
             greatest(0, extract(epoch from clock_timestamp() - min(NotBefore)))::float8 as "oldest_seconds!"
           from JobHistoryWaiting
           group by Reason
           order by count(*) desc, Reason"#
    )
    .fetch_all(db)
    .await
}

/// What became of a job's rows.
#[derive(Debug, Serialize)]
struct Finished {
    job: String,
    completed: i64,
    error: i64,
    canceled: i64,
}

/// Finished rows have no index of their own (contract: claim cost is flat), so only rows made within a day are
/// looked at, found by their time-ordered IDs. `None` when even that takes too long.
async fn finished(db: &mut PgConnection) -> Result<Option<Vec<Finished>>, Failure> {
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *db).await?;
    let day_ago = u64::try_from(now.timestamp_millis()).unwrap_or(0).saturating_sub(86_400_000);
    let oldest = Uuid::from_u128(u128::from(day_ago) << 80);
    sqlx::raw_sql("set statement_timeout = '5s'").execute(&mut *db).await?;
    let found = sqlx::query_as!(
        Finished,
        r#"select j.Struct as job,
             count(*) filter (where h.StatusID = 3) as "completed!",
             count(*) filter (where h.StatusID = 4) as "error!",
             count(*) filter (where h.StatusID = 5) as "canceled!"
           from JobHistory h
           join Job j on j.ID = h.JobID
           where h.ID >= $1 and h.StatusID in (3, 4, 5) and h.FinishedDate > clock_timestamp() - interval '1 hour'
           group by j.Struct
           order by j.Struct"#,
        oldest,
    )
    .fetch_all(&mut *db)
    .await;
    match found {
        Ok(finished) => Ok(Some(finished)),
        Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("57014")) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A schedule that fires soon.
#[derive(Debug, Serialize)]
struct NextDue {
    id: Uuid,
    name: Option<String>,
    job: String,
    organization: String,
    due: Option<DateTime<Utc>>,
    in_seconds: f64,
}

async fn next_due(db: &mut PgConnection) -> Result<Vec<NextDue>, sqlx::Error> {
    sqlx::query_as!(
        NextDue,
        r#"select s.ID as id, s.Name as name, j.Struct as job, o.Code as organization, s.NextRun as due,
             extract(epoch from s.NextRun - clock_timestamp())::float8 as "in_seconds!"
           from JobSchedule s
           join JobConfig c on c.ID = s.ConfigID
           join Job j on j.ID = c.JobID
           join Organization o on o.ID = c.OrganizationID
           where s.Active and s.Error is null and s.NextRun is not null and c.Active and o.Active
           order by s.NextRun
           limit 5"#
    )
    .fetch_all(db)
    .await
}
