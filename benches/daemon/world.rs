//! A durable private PostgreSQL, a database for each part in it, and real daemons beside it.

use crate::process;
use anyhow::{Context, Result, ensure};
use rosterd::postgres::embedded::{EmbeddedOptions, EmbeddedPostgres};
use sqlx::postgres::PgListener;
use sqlx::{Connection, PgConnection};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Migrated once and copied for each part, with rows that a daemon has run: a database in use.
const TEMPLATE: &str = "bench_template";
/// The same without any row in JobHistory.
const FRESH: &str = "bench_fresh";
const RUN_BEFORE: i64 = 2000;

pub(crate) struct World {
    server: EmbeddedPostgres,
    folder: PathBuf,
    /// Fewer repetitions, and no ten million rows.
    pub(crate) quick: bool,
    /// What `--set` said: a setting for the sessions in every database, to try one out.
    setting: Option<String>,
    /// Whether statements can be counted: the extension is part of Debian's server, not of every one.
    pub(crate) counts_statements: bool,
}

impl World {
    /// All settings are those of `rosterd run` without a URL. `pg_stat_statements` is loaded, and off until a part
    /// wants it.
    pub(crate) fn start(folder: &Path, quick: bool, setting: Option<String>) -> Result<Self> {
        let mut options = EmbeddedOptions::new(folder.join("state"));
        options.extra_settings = vec![
            ("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned()),
            ("pg_stat_statements.track".to_owned(), "none".to_owned()),
        ];
        let (server, counts_statements) = if let Ok(server) = EmbeddedPostgres::start(&options) {
            (server, true)
        } else {
            options.extra_settings.clear();
            (EmbeddedPostgres::start(&options)?, false)
        };
        Ok(Self { server, folder: folder.to_owned(), quick, setting, counts_statements })
    }

    /// Makes the schema, once, by a daemon.
    pub(crate) async fn prepare(&self) -> Result<()> {
        let mut admin = self.connect("postgres").await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {TEMPLATE}"))).execute(&mut admin).await?;
        if self.counts_statements {
            sqlx::raw_sql("create extension pg_stat_statements").execute(&mut admin).await?;
        }
        let daemon = self.daemon(TEMPLATE, &[])?;
        let mut db = self.connect(TEMPLATE).await?;
        wait(&mut db, "select to_regclass('vm.jobhistory') is not null").await?;
        db.close().await?;
        // The search path of the database counts from the next connection on.
        let mut db = self.connect(TEMPLATE).await?;
        wait(&mut db, "select exists (select from Runner)").await?;
        sqlx::raw_sql(
            "insert into Organization (Code) values ('BENCH');
             insert into JobConfig (JobID, OrganizationID, MaxInstances) select j.ID, o.ID, 0 from Job j, Organization o",
        )
        .execute(&mut db)
        .await?;
        drop(daemon);
        sqlx::raw_sql("delete from Runner").execute(&mut db).await?;
        db.close().await?;
        self.copy(TEMPLATE, FRESH).await?;
        let mut db = self.connect(TEMPLATE).await?;
        let daemon = self.idle_daemon(&mut db, TEMPLATE, &[]).await?;
        let config = config_of(&mut db, "NoopJob").await?;
        insert_rows(&mut db, config, RUN_BEFORE).await?;
        wait(&mut db, "select not exists (select from JobHistory where StatusID <> 3)").await?;
        drop(daemon);
        sqlx::raw_sql("delete from Runner").execute(&mut db).await?;
        db.close().await?;
        Ok(())
    }

    /// A database with the schema, a configuration without a limit for each job, and a few rows that have run.
    pub(crate) async fn database(&self, name: &str) -> Result<PgConnection> {
        self.copy(TEMPLATE, name).await?;
        self.connect(name).await
    }

    /// The same in which no row was ever run.
    pub(crate) async fn fresh_database(&self, name: &str) -> Result<PgConnection> {
        self.copy(FRESH, name).await?;
        self.connect(name).await
    }

    async fn copy(&self, template: &str, name: &str) -> Result<()> {
        let mut admin = self.connect("postgres").await?;
        let create = format!("create database {name} template {template}");
        let until = Instant::now() + Duration::from_secs(20);
        // The sessions of a daemon that was killed may take a moment to notice.
        while let Err(error) = sqlx::raw_sql(sqlx::AssertSqlSafe(create.clone())).execute(&mut admin).await {
            ensure!(Instant::now() < until, error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if let Some(setting) = &self.setting {
            self.set(name, setting).await?;
        }
        self.set(name, "search_path = \"$user\", public, vm").await
    }

    /// Removes what a part no longer needs, because ten million rows are gigabytes.
    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        let mut admin = self.connect("postgres").await?;
        let drop = format!("drop database {name} with (force)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut admin).await?;
        Ok(())
    }

    /// A setting for sessions of this database that begin from now on.
    pub(crate) async fn set(&self, database: &str, setting: &str) -> Result<()> {
        let mut admin = self.connect("postgres").await?;
        let alter = format!("alter database {database} set {setting}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(alter)).execute(&mut admin).await?;
        Ok(())
    }

    pub(crate) async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.server.connect_options().database(database)).await?)
    }

    pub(crate) async fn listener(&self, database: &str) -> Result<PgListener> {
        Ok(PgListener::connect(&self.url(database)).await?)
    }

    pub(crate) fn url(&self, database: &str) -> String {
        self.server.url().replacen("/rosterd?", &format!("/{database}?"), 1)
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.server.log_file()
    }

    pub(crate) fn version(&self) -> (u32, u32) {
        self.server.version()
    }

    /// This program again, as the daemon with the jobs to measure.
    pub(crate) fn daemon(&self, database: &str, env: &[(&str, &str)]) -> Result<Daemon> {
        let log = std::fs::File::create(self.folder.join(format!("{database}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--listen", "off"])
            .env("DATABASE_URL", self.url(database))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()?;
        Ok(Daemon(child))
    }

    /// The same, once it has registered and its first look is over.
    pub(crate) async fn idle_daemon(
        &self,
        db: &mut PgConnection,
        database: &str,
        env: &[(&str, &str)],
    ) -> Result<Daemon> {
        let daemon = self.daemon(database, env)?;
        let pid = i32::try_from(daemon.pid())?;
        let until = Instant::now() + Duration::from_secs(60);
        while !sqlx::query_scalar::<_, bool>("select exists (select from Runner where PID = $1)")
            .bind(pid)
            .fetch_one(&mut *db)
            .await?
        {
            ensure!(Instant::now() < until, "the daemon did not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(daemon)
    }
}

pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.pid())
    }

    pub(crate) fn rss_mib(&self) -> Result<f64> {
        process::rss_mib(self.pid())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn config_of(db: &mut PgConnection, job: &str) -> Result<Uuid> {
    sqlx::query_scalar(
        "select c.ID from JobConfig c join Job j on j.ID = c.JobID where j.Struct = $1 order by c.ID limit 1",
    )
    .bind(job)
    .fetch_one(db)
    .await
    .with_context(|| format!("no configuration of {job}"))
}

pub(crate) async fn wait(db: &mut PgConnection, question: &'static str) -> Result<()> {
    let began = Instant::now();
    while !sqlx::query_scalar::<_, bool>(question).fetch_one(&mut *db).await? {
        ensure!(began.elapsed() < Duration::from_secs(60), "waited in vain: {question}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Rows through all triggers, as an operator makes them.
pub(crate) async fn insert_rows(db: &mut PgConnection, config: Uuid, rows: i64) -> Result<()> {
    sqlx::query("insert into JobHistory (ConfigID, StatusID) select $1, 1 from generate_series(1, $2)")
        .bind(config)
        .bind(rows)
        .execute(db)
        .await?;
    Ok(())
}

/// Rows in the state an operator's INSERT or a finished run leaves them in, without their triggers, because millions
/// of them are only the scenery. IDs are in the order of time, as `vm.new_id()` makes them. No trigger of an INSERT
/// is ENABLE ALWAYS; those of an UPDATE or a DELETE are, and none happens here.
pub(crate) async fn scenery(
    world: &World,
    database: &str,
    config: Uuid,
    rows: i64,
    finished: bool,
) -> Result<()> {
    let mut db = world.connect(database).await?;
    sqlx::raw_sql("alter table vm.JobHistory set (autovacuum_enabled = off)").execute(&mut db).await?;
    // Two sessions, because making a row is all computing.
    let half = rows / 2;
    let mut other = world.connect(database).await?;
    tokio::try_join!(
        scenery_from(&mut db, config, 0, half, finished),
        scenery_from(&mut other, config, half, rows, finished)
    )?;
    sqlx::raw_sql("alter table vm.JobHistory reset (autovacuum_enabled)").execute(&mut db).await?;
    settle_down(&mut db).await
}

async fn scenery_from(db: &mut PgConnection, config: Uuid, from: i64, to: i64, finished: bool) -> Result<()> {
    const PIECE: i64 = 500_000;
    sqlx::raw_sql("set session_replication_role = replica; set synchronous_commit = off")
        .execute(&mut *db)
        .await?;
    let mut made = from;
    while made < to {
        let piece = PIECE.min(to - made);
        sqlx::query(
            "insert into JobHistory (ID, JobID, ConfigID, OrganizationID, StatusID, Priority, Payload, NotBefore,
               CreatedDate, CreatedBy, Attempt, ThreadID, ClaimID, PulseDate, StartedDate, FinishedDate)
             select (lpad(to_hex(t.millis + ($3 + n) / 1000), 12, '0') || '7'
                 || substr(m.noise, 1, 3) || 'a' || substr(m.noise, 4, 15))::uuid,
               c.JobID, c.ID, c.OrganizationID, case when $4 then 3 else 1 end, 5, c.Payload, t.past, t.past,
               session_user, $4::int, case when $4 then '00000000-0000-0000-0000-000000000000'::uuid end,
               case when $4 then 0 end, case when $4 then t.past end, case when $4 then t.past end,
               case when $4 then t.past end
             from JobConfig c,
               (select now() - interval '1 day' as past,
                  (extract(epoch from now() - interval '1 day') * 1000)::bigint as millis offset 0) t,
               generate_series(1, $2) n, lateral (select md5(($3 + n)::text) as noise offset 0) m
             where c.ID = $1",
        )
        .bind(config)
        .bind(piece)
        .bind(made)
        .bind(finished)
        .execute(&mut *db)
        .await?;
        made += piece;
    }
    sqlx::raw_sql("reset session_replication_role; reset synchronous_commit").execute(&mut *db).await?;
    Ok(())
}

/// What autovacuum and the checkpointer would do in the middle of a figure is done before it.
pub(crate) async fn settle_down(db: &mut PgConnection) -> Result<()> {
    for statement in ["vacuum analyze JobHistory", "checkpoint"] {
        sqlx::raw_sql(statement).execute(&mut *db).await?;
    }
    Ok(())
}
