//! What the operator of the demo does, statement by statement, and what must come of it.

use super::screen::Screen;
use super::{Daemon, Home, vulnerability};
use crate::cli::{Database, Failure};
use sqlx::{AssertSqlSafe, PgConnection, Row, ValueRef};
use std::fs;
use std::time::Duration;

/// How often the operator looks.
const LOOK: Duration = Duration::from_millis(100);

const HISTORY_HEADER: [&str; 8] = ["what", "job", "by", "status", "attempt", "iterations", "took", "said"];

/// Newest rows of this demo. `$since` keeps those of earlier demos in the same folder out.
const HISTORY: &str = "
    select coalesce(h.Identifier, c.Payload ->> 'command', c.Payload ->> 'path', left(c.Payload ->> 'statement', 24)),
      j.Struct, h.Origin, s.Status, h.Attempt, h.CurrentIteration,
      round(extract(epoch from coalesce(h.FinishedDate, clock_timestamp()) - h.StartedDate)::numeric, 2) || ' s',
      left(coalesce(h.Error, h.StopReason, h.Progress,
        case j.Struct
          when 'CommandJob' then (length(h.Result ->> 'stdout') - length(replace(h.Result ->> 'stdout', E'\\n', '')))
            || ' lines, exit code ' || (h.Result ->> 'exit_code')
          when 'HttpJob' then 'HTTP ' || (h.Result ->> 'status')
          when 'SqlJob' then left((h.Result -> 'rows' -> 0)::text, 48) end), 60)
    from JobHistory h
    join Job j on j.ID = h.JobID
    join JobConfig c on c.ID = h.ConfigID
    join JobStatus s on s.ID = h.StatusID
    where h.CreatedDate >= (select max(CreatedDate) from Organization where Code like 'DEMO%')
    order by h.ID";

pub(super) struct Operator<'a, 'd> {
    db: PgConnection,
    pub(super) screen: &'a mut Screen,
    daemon: &'a mut Daemon<'d>,
}

pub(super) async fn play(
    database: &Database,
    home: &Home,
    screen: &mut Screen,
    daemon: &mut Daemon<'_>,
) -> Result<(), Failure> {
    let mut op = Operator { db: connect(database, daemon).await?, screen, daemon };
    // The daemon makes the schema and registers its jobs; from then on everything is SQL.
    op.wait("select exists (select from Runner where State = 'running')").await?;
    op.screen.say("the daemon is ready; from here on everything is SQL\n");

    let org = op.one("select 'DEMO' || (count(*) + 1) from Organization where Code like 'DEMO%'").await?;
    op.type_sql(&format!("insert into Organization (Code, TimeZone) values ('{org}', 'Europe/Berlin');"))
        .await?;
    op.type_sql(&format!(
        "insert into SourceConfig (Source, OrganizationID, Address, Port, AuthInfo)
         select 'HTTP', ID, 'http://127.0.0.1', {}, '{{\"Delay\": 50000000, \"Concurrency\": 2}}'
         from Organization where Code = '{org}';",
        home.port
    ))
    .await?;
    let config = |job: &str, payload: &str, columns: &str, values: &str| {
        format!(
            "insert into JobConfig (JobID, OrganizationID, Payload{columns})
             select j.ID, o.ID, '{payload}'{values}
             from Job j, Organization o where j.Struct = '{job}' and o.Code = '{org}' returning ID;"
        )
    };

    op.screen.say("\n-- a real folder tree is hashed, three times, as the limit allows two at once");
    let hash =
        op.config(&config("CommandJob", r#"{"command": "hash-tree"}"#, ", MaxInstances", ", 2")).await?;
    for n in 1..=3 {
        op.type_sql(&format!(
            "insert into JobHistory (ConfigID, StatusID, Identifier) values ('{hash}', 1, 'hash-tree {n}');"
        ))
        .await?;
    }

    op.screen.say("\n-- every two seconds, by cron: what the history says");
    let summary = op
        .config(&config(
            "SqlJob",
            r#"{"statement": "select count(*) as runs, count(*) filter (where StatusID = 3) as completed from JobHistory"}"#,
            ", MaxInstances",
            ", 0",
        ))
        .await?;
    op.type_sql(&format!("insert into JobSchedule (ConfigID, Cron) values ('{summary}', '*/2 * * * * *');"))
        .await?;

    op.screen.say(
        "\n-- its own metrics, over and over, through a source that may be called every 50 ms, two at once",
    );
    let metrics = op
        .config(&format!(
            "insert into JobConfig (JobID, OrganizationID, Payload, DataInSourceConfigID, Continuous, WaitInSeconds, AutoStart)
             select j.ID, s.OrganizationID, '{{\"path\": \"/metrics\", \"repeat\": 5}}', s.ID, true, 1, true
             from Job j, SourceConfig s join Organization o on o.ID = s.OrganizationID
             where j.Struct = 'HttpJob' and o.Code = '{org}' returning ID;"
        ))
        .await?;
    op.screen.say("\n-- AutoStart: it starts with every start of the daemon, so the daemon is restarted");
    op.wait(&format!(
        "select not exists (select from JobHistory where ConfigID = '{hash}' and StatusID in (1, 2))"
    ))
    .await?;
    op.daemon.restart()?;
    op.wait(&format!(
        "select exists (select from JobHistory where ConfigID = '{metrics}' and Origin = 'autostart')"
    ))
    .await?;

    op.screen.say("\n-- a folder that is not there yet: fails, is mended, succeeds at the second attempt");
    let inbox = op
        .config(&config(
            "CommandJob",
            r#"{"command": "list-inbox"}"#,
            ", MaxAttempts, RetryDelaySeconds",
            ", 3, 1",
        ))
        .await?;
    op.type_sql(&format!(
        "insert into JobHistory (ConfigID, StatusID, Identifier) values ('{inbox}', 1, 'list-inbox');"
    ))
    .await?;
    op.wait(&format!("select exists (select from JobHistory where ConfigID = '{inbox}' and Attempt = 1 and Error is not null)"))
        .await?;
    fs::create_dir_all(&home.inbox)
        .map_err(|e| Failure::usage(format!("failed to make {}: {e}", home.inbox.display())))?;

    op.screen.say("\n-- ten minutes of sleep, cancelled");
    let sleep = op.config(&config("CommandJob", r#"{"command": "sleep", "args": ["600"]}"#, "", "")).await?;
    op.type_sql(&format!(
        "insert into JobHistory (ConfigID, StatusID, Identifier) values ('{sleep}', 1, 'sleep 600');"
    ))
    .await?;
    op.wait(&format!("select exists (select from JobHistory where ConfigID = '{sleep}' and StatusID = 2)"))
        .await?;
    op.type_sql(&format!("update JobHistory set StatusID = -1 where ConfigID = '{sleep}';")).await?;

    // Until everything by hand has ended, two due times were served, and the metrics were read twice.
    op.wait(&format!(
        "select not exists (select from JobHistory where ConfigID in ('{hash}', '{inbox}', '{sleep}') and StatusID in (1, 2, -1))
           and (select count(*) from JobHistory where ConfigID = '{summary}' and StatusID = 3) >= 2
           and (select CurrentIteration from JobHistory where ConfigID = '{metrics}') >= 2"
    ))
    .await?;

    op.screen.say("\n-- enough: no more schedules, and the continuous row is cancelled");
    op.type_sql(&format!("update JobSchedule set Active = false where ConfigID = '{summary}';")).await?;
    op.type_sql(&format!("update JobConfig set AutoStart = false where ID = '{metrics}';")).await?;
    op.type_sql(&format!("update JobHistory set StatusID = -1 where ConfigID = '{metrics}';")).await?;
    op.wait(&format!(
        "select not exists (select from JobHistory where ConfigID in ('{metrics}', '{summary}') and StatusID in (1, 2, -1))"
    ))
    .await?;

    let history = op.rows(HISTORY).await?;
    op.screen.say("");
    op.screen.show(&HISTORY_HEADER, &history);

    // What must have come of it; a row that ended otherwise is the demo's failure.
    let wrong = op
        .rows(&format!(
            "select ID, StatusID, coalesce(Error, StopReason) from JobHistory where
               (ConfigID = '{hash}' and (StatusID <> 3 or (Result ->> 'exit_code')::int <> 0 or Result ->> 'stdout' = ''))
               or (ConfigID = '{summary}' and (StatusID <> 3 or DueDate is null))
               or (ConfigID = '{inbox}' and (StatusID <> 3 or Attempt < 2))
               or (ConfigID = '{sleep}' and StatusID <> 5)
               or (ConfigID = '{metrics}' and (StatusID <> 5 or (Result ->> 'status')::int <> 200))"
        ))
        .await?;
    if wrong.is_empty() {
        return vulnerability::play(&mut op, home, &org).await;
    }
    let rows: Vec<String> = wrong.iter().map(|row| row.join(" ")).collect();
    Err(Failure::bug(format!("these rows did not end as they should:\n{}", rows.join("\n"))))
}

/// The schema is there once the daemon has made it.
async fn connect(database: &Database, daemon: &mut Daemon<'_>) -> Result<PgConnection, Failure> {
    let mut db = database.connect().await?;
    loop {
        daemon.check()?;
        let there: bool =
            sqlx::query_scalar("select to_regclass('vm.runner') is not null").fetch_one(&mut db).await?;
        if there {
            return Ok(db);
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Operator<'_, '_> {
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.db).await?;
        let text = |row: &sqlx::postgres::PgRow| {
            (0..row.len())
                .map(|n| {
                    row.try_get_raw(n)
                        .ok()
                        .filter(|v| !v.is_null())
                        .and_then(|v| v.as_str().ok().map(str::to_owned))
                })
                .map(Option::unwrap_or_default)
                .collect()
        };
        Ok(rows.iter().map(text).collect())
    }

    pub(super) async fn one(&mut self, sql: &str) -> Result<String, Failure> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or_default())
    }

    /// Shows a statement and runs it.
    pub(super) async fn type_sql(&mut self, sql: &str) -> Result<(), Failure> {
        self.screen.type_sql(sql);
        self.rows(sql).await.map(drop)
    }

    /// Shows it, runs it, and keeps the ID it returns.
    async fn config(&mut self, sql: &str) -> Result<String, Failure> {
        self.screen.type_sql(sql);
        self.one(sql).await
    }

    /// Shows what a question answers.
    pub(super) async fn show(&mut self, header: &[&str], sql: &str) -> Result<(), Failure> {
        let rows = self.rows(sql).await?;
        self.screen.say("");
        self.screen.show(header, &rows);
        Ok(())
    }

    /// Looks until the answer is true, with the history on the screen.
    pub(super) async fn wait(&mut self, question: &str) -> Result<(), Failure> {
        loop {
            self.daemon.check()?;
            if self.one(question).await? == "t" {
                return Ok(());
            }
            let history = self.rows(HISTORY).await?;
            self.screen.draw(&HISTORY_HEADER, &history);
            tokio::time::sleep(LOOK).await;
        }
    }
}
