//! `rosterd runner list` and `rosterd runner drain`.

use super::output::{count, say, say_json, seconds, table};
use super::{Database, Failure, block_on};
use crate::config::Config;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// What to do with runners.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Runner {
    /// List the runners (daemons) that have a row in the table Runner.
    List {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Let a runner claim nothing more, while what it runs goes on to its end.
    Drain {
        /// The host of the runners, or the ID of one.
        #[arg(value_name = "HOST")]
        host: String,
        /// Let it claim again.
        #[arg(long)]
        undo: bool,
    },
}

pub(super) fn run(settings: &Config, command: &Runner) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        match command {
            Runner::List { json } => {
                let runners = all(&mut db).await?;
                if *json {
                    return say_json(&serde_json::json!({ "runners": runners }));
                }
                say(&shown(&runners))
            }
            Runner::Drain { host, undo } => drain(&mut db, host, !undo).await,
        }
    })
}

/// A row of `Runner`.
#[derive(Debug, Serialize)]
pub(super) struct RunnerRow {
    pub(super) id: Uuid,
    pub(super) host: String,
    pub(super) pid: i32,
    pub(super) version: String,
    pub(super) state: String,
    pub(super) running: i32,
    pub(super) workers: i32,
    pub(super) tasks: i32,
    pub(super) draining: bool,
    pub(super) started: DateTime<Utc>,
    pub(super) pulse_age_seconds: f64,
    /// Whether its pulse is younger than its lease.
    pub(super) alive: bool,
    /// The one row it is there for, if a daemon started it to run that row alone.
    pub(super) alone: Option<Uuid>,
}

/// Every row of `Runner`, by host.
pub(super) async fn all(db: &mut PgConnection) -> Result<Vec<RunnerRow>, sqlx::Error> {
    sqlx::query_as!(
        RunnerRow,
        r#"select r.ID as id, r.Host as host, r.PID as pid, r.Version as version, r.State as state,
             r.Running as running, r.Workers as workers, r.Tasks as tasks, r.Draining as draining,
             r.StartedDate as started,
             extract(epoch from clock_timestamp() - r.Pulse)::float8 as "pulse_age_seconds!",
             r.Pulse > clock_timestamp() - r.LeaseSeconds * interval '1 second' as "alive!",
             r.AloneID as alone
           from Runner r
           order by r.Host, r.StartedDate"#
    )
    .fetch_all(db)
    .await
}

/// For people.
pub(super) fn shown(runners: &[RunnerRow]) -> String {
    if runners.is_empty() {
        return "No daemon runs: start one with `rosterd run`.".to_owned();
    }
    let rows = runners.iter().map(|r| {
        let state = match (r.alive, r.draining && r.state == "running") {
            (false, _) => "dead".to_owned(),
            (true, true) => "draining".to_owned(),
            (true, false) if r.alone.is_some() && r.state == "running" => "one row alone".to_owned(),
            (true, false) => r.state.clone(),
        };
        let running = format!("{}/{}", r.running, r.workers);
        [
            r.host.clone(),
            r.pid.to_string(),
            r.version.clone(),
            state,
            running,
            r.tasks.to_string(),
            seconds(r.pulse_age_seconds),
            r.id.to_string(),
        ]
    });
    table(["HOST", "PID", "VERSION", "STATE", "RUNNING", "TASKS", "PULSE AGE", "ID"], rows)
}

async fn drain(db: &mut PgConnection, host: &str, draining: bool) -> Result<(), Failure> {
    let changed = sqlx::query!(
        "update Runner set Draining = $2 where lower(Host) = lower($1) or ID::text = lower($1)",
        host,
        draining,
    )
    .execute(&mut *db)
    .await?
    .rows_affected();
    if changed == 0 {
        let mut hosts: Vec<String> = all(db).await?.into_iter().map(|runner| runner.host).collect();
        hosts.dedup();
        return Err(Failure::usage(if hosts.is_empty() {
            format!("there is no runner on {host}: no daemon runs at all")
        } else {
            format!("there is no runner on {host}; runners are on {}", hosts.join(", "))
        }));
    }
    let runners = count(i64::try_from(changed).unwrap_or(i64::MAX), "runner");
    if draining {
        say(&format!("{runners} told to drain; what runs goes on to its end"))
    } else {
        say(&format!("{runners} told to claim again"))
    }
}
