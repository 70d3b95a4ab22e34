//! `rosterd schedule next` and `rosterd schedule list`: when things fire, in their zone and in UTC.

use super::output::{one_line, say, say_json, table, time};
use super::{Database, Failure, block_on, load_config};
use crate::cli::Global;
use crate::schedule::tick::{self, ScheduleRow};
use crate::schedule::{Recurrence, Zone, next_after};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use std::collections::HashMap;
use uuid::Uuid;

/// What to tell about schedules.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Schedule {
    /// Print the next firings of schedules, or of a cron expression that you want to try.
    Next(Next),
    /// List all schedules.
    List {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// Options of `rosterd schedule next`.
#[derive(Debug, clap::Args)]
pub(super) struct Next {
    /// A schedule's ID or Name, or the ID of a JobConfig, or the name of a job.
    #[arg(required_unless_present = "cron", conflicts_with = "cron")]
    name: Option<String>,
    /// A cron expression to try, without any row and without a database.
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// The time zone for --cron, an IANA name.
    #[arg(long, value_name = "ZONE", default_value = "UTC", conflicts_with = "name")]
    time_zone: String,
    /// How many firings to print.
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Print firings after this instant (RFC 3339, such as 2026-03-28T12:00:00Z) instead of now.
    #[arg(long, value_name = "TIME")]
    after: Option<DateTime<Utc>>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(global: &Global, command: &Schedule) -> Result<(), Failure> {
    if let Schedule::Next(args) = command
        && let Some(cron) = &args.cron
    {
        return try_cron(args, cron);
    }
    let settings = load_config(global)?;
    let database = Database::open(&settings)?;
    block_on(async {
        let mut db = database.session().await?;
        match command {
            Schedule::Next(args) => next(&mut db, args).await,
            Schedule::List { json } => list(&mut db, *json).await,
        }
    })
}

/// When one schedule fires.
#[derive(Debug, Serialize)]
struct Firings {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    when: String,
    time_zone: String,
    /// Sentences that qualify the firings.
    notes: Vec<String>,
    #[serde(rename = "firings")]
    times: Vec<Firing>,
}

#[derive(Debug, Serialize)]
struct Firing {
    weekday: String,
    local: String,
    utc: DateTime<Utc>,
}

fn firings(
    recurrence: &Recurrence,
    zone: &Zone,
    after: DateTime<Utc>,
    count: u16,
) -> Result<Vec<Firing>, Failure> {
    let zone_data = jiff::tz::TimeZone::get(zone.name()).map_err(Failure::bug)?;
    std::iter::successors(next_after(recurrence, zone, after), |at| next_after(recurrence, zone, *at))
        .take(usize::from(count))
        .map(|utc| {
            let at = jiff::Timestamp::from_second(utc.timestamp()).map_err(Failure::bug)?;
            let local = at.to_zoned(zone_data.clone());
            Ok(Firing {
                weekday: local.strftime("%a").to_string(),
                local: local.strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
                utc,
            })
        })
        .collect()
}

fn try_cron(args: &Next, cron: &str) -> Result<(), Failure> {
    let recurrence = Recurrence::cron(cron).map_err(Failure::usage)?;
    let zone = Zone::parse(&args.time_zone).map_err(Failure::usage)?;
    let after = args.after.unwrap_or_else(Utc::now);
    recurrence.check_still_fires(after).map_err(Failure::usage)?;
    let found = Firings {
        id: None,
        name: None,
        job: None,
        when: cron.to_owned(),
        time_zone: zone.name().to_owned(),
        notes: Vec::new(),
        times: firings(&recurrence, &zone, after, args.count)?,
    };
    print(&[found], args.json)
}

async fn next(db: &mut PgConnection, args: &Next) -> Result<(), Failure> {
    let word = args.name.as_deref().unwrap_or_default();
    let rows = tick::find(db, word).await?;
    if rows.is_empty() {
        let known: Vec<String> =
            all(db).await?.into_iter().map(|s| s.name.unwrap_or(s.job)).take(10).collect();
        return Err(Failure::usage(if known.is_empty() {
            "there are no schedules: the table JobSchedule is empty".to_owned()
        } else {
            format!(
                "no schedule has the ID, name, configuration or job `{word}`; there are {}",
                known.join(", ")
            )
        }));
    }
    let mut about: HashMap<Uuid, Listed> = all(db).await?.into_iter().map(|s| (s.id, s)).collect();
    let mut found = Vec::new();
    for row in rows {
        let Some(listed) = about.remove(&row.id) else { continue };
        found.push(of_row(&row, listed, args)?);
    }
    print(&found, args.json)
}

fn of_row(row: &ScheduleRow, listed: Listed, args: &Next) -> Result<Firings, Failure> {
    let mut notes = Vec::new();
    if !listed.active {
        notes.push("Nothing fires: the schedule is inactive.".to_owned());
    } else if !row.live {
        notes.push("Nothing fires: its configuration or organization is inactive.".to_owned());
    }
    if let Some(error) = &listed.error {
        notes.push(format!("Nothing fires: it {error}"));
    }
    if row.jitter_seconds > 0 {
        notes.push(format!("Rows start up to {} s later (JitterSeconds).", row.jitter_seconds));
    }
    let times = match row.parse() {
        Ok((recurrence, zone)) => firings(&recurrence, &zone, args.after.unwrap_or(row.now), args.count)?,
        Err(problem) => {
            if listed.error.is_none() {
                notes.push(format!("Nothing fires: it cannot be read: {problem}"));
            }
            Vec::new()
        }
    };
    Ok(Firings {
        id: Some(row.id),
        name: listed.name,
        job: Some(listed.job),
        when: listed.when,
        time_zone: row.zone.clone(),
        notes,
        times,
    })
}

fn print(found: &[Firings], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say_json(&serde_json::json!({ "schedules": found }));
    }
    for (n, schedule) in found.iter().enumerate() {
        if n > 0 {
            say("")?;
        }
        let id = schedule.id.map(|id| id.to_string());
        let words = [schedule.name.clone().or(id), schedule.job.clone(), Some(schedule.when.clone())];
        let words: Vec<String> = words.into_iter().flatten().map(|word| one_line(&word)).collect();
        say(&format!("{} ({})", words.join(" - "), schedule.time_zone))?;
        for note in &schedule.notes {
            say(&one_line(note))?;
        }
        if !schedule.times.is_empty() {
            let rows = schedule.times.iter().map(|firing| {
                let utc = firing.utc.format("%a %Y-%m-%d %H:%M:%S").to_string();
                [firing.weekday.clone(), firing.local.clone(), utc]
            });
            say(&table(["DAY", "LOCAL TIME", "UTC"], rows))?;
        }
    }
    Ok(())
}

/// A row of `JobSchedule`, as an operator wants to see it.
#[derive(Debug, Serialize)]
struct Listed {
    id: Uuid,
    name: Option<String>,
    config: Uuid,
    job: String,
    organization: String,
    when: String,
    time_zone: String,
    active: bool,
    next_run: Option<DateTime<Utc>>,
    last_run: Option<DateTime<Utc>>,
    error: Option<String>,
}

async fn all(db: &mut PgConnection) -> Result<Vec<Listed>, sqlx::Error> {
    sqlx::query_as!(
        Listed,
        r#"select s.ID as id, s.Name as name, s.ConfigID as config, j.Struct as job, o.Code as organization,
             coalesce(s.Cron, s.TimeOfDay || coalesce(' on ' || nullif(s.DaysOfWeek, ''), ' daily')) as "when!",
             coalesce(s.TimeZone, o.TimeZone) as "time_zone!", s.Active as active, s.NextRun as next_run,
             s.LastRun as last_run, s.Error as error
           from JobSchedule s
           join JobConfig c on c.ID = s.ConfigID
           join Job j on j.ID = c.JobID
           join Organization o on o.ID = c.OrganizationID
           order by s.NextRun nulls last, s.Name, s.ID"#
    )
    .fetch_all(db)
    .await
}

async fn list(db: &mut PgConnection, as_json: bool) -> Result<(), Failure> {
    let schedules = all(db).await?;
    if as_json {
        return say_json(&serde_json::json!({ "schedules": schedules }));
    }
    if schedules.is_empty() {
        return say("There are no schedules: the table JobSchedule is empty.");
    }
    let rows = schedules.into_iter().map(|s| {
        let next = match (&s.error, s.active) {
            (Some(error), _) => format!("error: {error}"),
            (None, false) => "inactive".to_owned(),
            (None, true) => time(s.next_run),
        };
        [
            s.name.unwrap_or_else(|| s.id.to_string()),
            s.job,
            s.organization,
            s.when,
            s.time_zone,
            next,
            time(s.last_run),
        ]
    });
    say(&table(["SCHEDULE", "JOB", "ORG", "WHEN", "ZONE", "NEXT (UTC)", "LAST (UTC)"], rows))
}
