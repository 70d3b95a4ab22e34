//! `rosterd enqueue`: the INSERT an operator would type, and the wait for its end.

use super::output::{one_line, remark, say, say_json};
use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::history::Status;
use crate::postgres::connect::is_outage;
use crate::registry::Registry;
use serde_json::{Value, json};
use sqlx::PgConnection;
use std::io::Read;
use std::time::Duration;
use uuid::Uuid;

/// Between two looks at the row.
const POLL: Duration = Duration::from_millis(200);
/// Between two looks at why it waits.
const LOOKS_PER_REASON: u32 = 10;
/// More than any payload may have, less than would hurt us.
const READ_MAX: u64 = 8 << 20;

/// Options of `rosterd enqueue`.
#[derive(Debug, clap::Args)]
pub(super) struct Enqueue {
    /// The ID of a JobConfig, or the name of a job with exactly one active JobConfig.
    #[arg(value_name = "STRUCT_OR_CONFIG_ID")]
    what: String,
    /// The payload, a JSON object: as such, @FILE, or - for stdin. Without it, that of the JobConfig counts.
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    payload: Option<String>,
    /// Lower runs earlier; without it, that of the JobConfig or Job counts.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    priority: Option<i32>,
    /// Do not start before this time, as PostgreSQL reads it: 2026-03-28T12:00:00+01:00, or 'tomorrow 02:00' in UTC.
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// A word of your own that says what this run is about.
    #[arg(long, value_name = "TEXT")]
    identifier: Option<String>,
    /// Wait for the end and exit with 0 if the row is COMPLETED, else with 1.
    #[arg(long)]
    wait: bool,
    /// Print one JSON document (with --wait, when the row has ended).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(settings: &Config, registry: &Registry, args: &Enqueue) -> Result<(), Failure> {
    let payload = args.payload.as_deref().map(read_payload).transpose()?;
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let (config, job) = match args.what.parse::<Uuid>() {
            Ok(config) => (Some(config), None),
            Err(_) => (None, Some(find_job(&mut db, registry, &args.what).await?)),
        };
        let id = sqlx::query_scalar!(
            r#"insert into JobHistory (ConfigID, JobID, StatusID, Payload, Priority, NotBefore, Identifier)
               values ($1, $2, 1, $3::text::jsonb, $4, $5::text::timestamptz, $6)
               returning ID"#,
            config as Option<Uuid>,
            job as Option<i32>,
            payload as Option<String>,
            args.priority as Option<i32>,
            args.not_before.as_deref() as Option<&str>,
            args.identifier.as_deref() as Option<&str>,
        )
        .fetch_one(&mut db)
        .await?;
        if !args.json {
            say(&id.to_string())?;
        } else if !args.wait {
            return say_json(&json!({ "id": id }));
        }
        if args.wait { wait(&database, db, id, args.json).await } else { Ok(()) }
    })
}

fn read_payload(given: &str) -> Result<String, Failure> {
    let text = if given == "-" {
        read_text("stdin", std::io::stdin().lock())?
    } else if let Some(file) = given.strip_prefix('@') {
        let opened =
            std::fs::File::open(file).map_err(|e| Failure::usage(format!("--payload: {file}: {e}")))?;
        read_text(file, opened)?
    } else {
        given.to_owned()
    };
    // The message only: a payload is not repeated, because it may hold what is nobody's business.
    serde_json::from_str::<serde::de::IgnoredAny>(&text)
        .map_err(|e| Failure::usage(format!("--payload is not JSON: {e}")))?;
    Ok(text)
}

fn read_text(name: &str, from: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = from.take(READ_MAX).read_to_string(&mut text);
    let bytes = read.map_err(|e| Failure::usage(format!("--payload: {name}: {e}")))?;
    if bytes as u64 == READ_MAX {
        return Err(Failure::usage(format!(
            "--payload: {name} is larger than 1 MiB; store large input elsewhere and pass a reference"
        )));
    }
    Ok(text)
}

async fn find_job(db: &mut PgConnection, registry: &Registry, name: &str) -> Result<i32, Failure> {
    let found = sqlx::query_scalar!("select ID from Job where Key = vm.job_key($1)", name)
        .fetch_optional(&mut *db)
        .await?;
    if let Some(id) = found {
        return Ok(id);
    }
    if let Some(job) = registry.find(name) {
        return Err(Failure::usage(format!(
            "{} is not in the table Job yet: a daemon adds it when it starts (rosterd run); then give it a JobConfig",
            job.name()
        )));
    }
    let known = sqlx::query_scalar!("select Struct from Job").fetch_all(&mut *db).await?;
    Err(Failure::usage(super::job::unknown(name, known.iter().map(String::as_str))))
}

/// Looks until the row is finished, however often the database goes away meanwhile.
async fn wait(database: &Database, db: PgConnection, id: Uuid, as_json: bool) -> Result<(), Failure> {
    let mut link = Some(db);
    let mut told = String::new();
    let mut looks = 0;
    loop {
        let seen = async {
            let mut db = match link.take() {
                Some(db) => db,
                None => database.connect().await.map_err(|_| sqlx::Error::PoolTimedOut)?,
            };
            let row = sqlx::query!(
                "select StatusID as status, Error as error, Result as result from JobHistory where ID = $1",
                id
            )
            .fetch_optional(&mut db)
            .await?;
            let mut reason = None;
            if looks % LOOKS_PER_REASON == LOOKS_PER_REASON - 1 {
                reason = sqlx::query_scalar!("select Reason from JobHistoryWaiting where ID = $1", id)
                    .fetch_optional(&mut db)
                    .await?
                    .flatten();
            }
            link = Some(db);
            Ok::<_, sqlx::Error>((row, reason))
        };
        let news = match seen.await {
            Ok((None, _)) => return Err(Failure::usage(format!("{id} was deleted while we waited for it"))),
            Ok((Some(row), reason)) => match Status::from_id(row.status) {
                Some(status) if status.is_final() => {
                    return tell_end(id, status, row.error, row.result, as_json);
                }
                _ => reason.map(|reason| format!("rosterd: {id} waits: {}", one_line(&reason))),
            },
            Err(error) if is_outage(&error) => {
                Some(format!("rosterd: the database is away; {id} is waited for until it is back"))
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(news) = news
            && news != told
        {
            remark(&news);
            told = news;
        }
        looks += 1;
        tokio::time::sleep(POLL).await;
    }
}

fn tell_end(
    id: Uuid,
    status: Status,
    error: Option<String>,
    result: Option<Value>,
    as_json: bool,
) -> Result<(), Failure> {
    if as_json {
        say_json(&json!({
            "id": id, "status_id": status.id(), "status": status.name(), "error": error, "result": result,
        }))?;
    } else {
        say(status.name())?;
        if let Some(error) = error {
            say(&format!("Error: {}", one_line(&error)))?;
        }
        if let Some(result) = result {
            say(&format!("Result: {result}"))?;
        }
    }
    if status == Status::Completed { Ok(()) } else { Err(Failure::exit(1)) }
}
