//! A database for one test, made from a migrated template.

use super::server::server;
use rosterd::postgres::connect::{Limits, Speaker, with_settings};
use rosterd::postgres::migrate;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{Connection, PgConnection, Row, ValueRef};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const TEMPLATE: &str = "rosterd_template";
static TEMPLATE_READY: OnceLock<()> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database and one operator's connection to it.
pub struct TestDb {
    pub options: PgConnectOptions,
    pub name: String,
    runtime: tokio::runtime::Runtime,
    connection: Option<PgConnection>,
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A statement on the server that needs no database of its own.
pub(super) async fn maintain(statement: String) -> Result<(), sqlx::Error> {
    let mut db = PgConnection::connect_with(&server().connect_options().database("postgres")).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut db).await?;
    db.close().await
}

impl TestDb {
    /// With rosterd's schema in it.
    pub fn new() -> Self {
        Self::in_tablespace("pg_default")
    }

    /// The same, with its files elsewhere.
    pub fn in_tablespace(space: &str) -> Self {
        TEMPLATE_READY.get_or_init(|| {
            runtime().block_on(async {
                maintain(format!("create database {TEMPLATE}")).await.unwrap();
                let limits = Limits {
                    connect: Duration::from_secs(10),
                    statement: Duration::from_secs(60),
                    answer: Duration::from_secs(5),
                };
                migrate::migrate(&server().connect_options().database(TEMPLATE), limits).await.unwrap();
            });
        });
        Self::from_template(TEMPLATE, space)
    }

    /// Without any schema.
    pub fn empty() -> Self {
        Self::from_template("template0", "pg_default")
    }

    fn from_template(template: &str, space: &str) -> Self {
        let runtime = runtime();
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        runtime.block_on(async {
            maintain(format!("create database {name} template {template} tablespace {space}")).await.unwrap();
            maintain(format!("alter database {name} set search_path = \"$user\", public, vm")).await.unwrap();
        });
        let options = server().connect_options().database(&name);
        Self { options, name, runtime, connection: None }
    }

    /// As `DATABASE_URL` has it; psql takes it too.
    pub fn url(&self) -> String {
        server().url().replacen("postgres:///rosterd?", &format!("postgres:///{}?", self.name), 1)
    }

    /// Rows of one or several statements, every value as psql prints it, null as "".
    pub fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, sqlx::Error> {
        let options = with_settings(self.options.clone(), "test", Speaker::Operator, Duration::from_mins(1));
        self.runtime.block_on(async {
            let mut db = match self.connection.take() {
                Some(db) => db,
                None => PgConnection::connect_with(&options).await?,
            };
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut db).await;
            self.connection = Some(db);
            Ok(rows?.iter().map(texts).collect())
        })
    }

    /// Runs it; a refusal is the test's failure.
    pub fn exec(&mut self, sql: &str) {
        self.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The first value of the first row.
    pub fn text(&mut self, sql: &str) -> String {
        let rows = self.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.first().and_then(|row| row.first()).cloned().unwrap_or_default()
    }

    /// What the database says no with.
    pub fn refusal(&mut self, sql: &str) -> String {
        match self.rows(sql) {
            Ok(rows) => panic!("{sql} was accepted: {rows:?}"),
            Err(error) => {
                let said = error.as_database_error().unwrap_or_else(|| panic!("{sql}: {error}"));
                let said = said.downcast_ref::<sqlx::postgres::PgDatabaseError>();
                format!("{} HINT: {}", said.message(), said.hint().unwrap_or_default())
            }
        }
    }

    /// The name of the constraint that the database says no with.
    pub fn broken_constraint(&mut self, sql: &str) -> String {
        match self.rows(sql) {
            Ok(rows) => panic!("{sql} was accepted: {rows:?}"),
            Err(error) => {
                let said = error.as_database_error().unwrap_or_else(|| panic!("{sql}: {error}"));
                said.constraint().unwrap_or_default().to_owned()
            }
        }
    }

    /// Waits until the first value of `sql` is `wanted`. Panics with what it last was.
    pub fn wait_for(&mut self, sql: &str, wanted: &str, limit: Duration) {
        let began = Instant::now();
        loop {
            let now = self.text(sql);
            if now == wanted {
                return;
            }
            assert!(began.elapsed() < limit, "waited {limit:?} for {wanted:?} from {sql}; it is {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An Organization and a JobConfig of this job with these further columns, such as
    /// `("MaxInstances, Continuous", "0, true")`. The Job row is made if no daemon did. Returns JobConfig.ID.
    pub fn config(&mut self, job: &str, columns: &str, values: &str) -> String {
        self.exec(
            "insert into Organization (Code) select 'ACME' where not exists (select from Organization where Code = 'ACME')",
        );
        self.exec(&format!("insert into Job (Struct) values ('{job}') on conflict do nothing"));
        let (columns, values) = if columns.is_empty() {
            (String::new(), String::new())
        } else {
            (format!(", {columns}"), format!(", {values}"))
        };
        self.text(&format!(
            "insert into JobConfig (JobID, OrganizationID{columns})
             select j.ID, o.ID{values} from Job j, Organization o where j.Struct = '{job}' and o.Code = 'ACME' returning ID"
        ))
    }

    /// A pending row of this configuration, with this payload. Returns JobHistory.ID.
    pub fn insert(&mut self, config: &str, payload: &str) -> String {
        self.text(&format!(
            "insert into JobHistory (ConfigID, StatusID, Payload) values ('{config}', 1, '{payload}') returning ID"
        ))
    }

    /// `StatusID` of a row.
    pub fn status(&mut self, id: &str) -> String {
        self.text(&format!("select StatusID from JobHistory where ID = '{id}'"))
    }

    /// Waits until a row has this status.
    pub fn wait_status(&mut self, id: &str, status: i32) {
        self.wait_for(
            &format!("select StatusID from JobHistory where ID = '{id}'"),
            &status.to_string(),
            super::SOON,
        );
    }

    /// One column of a row.
    pub fn column(&mut self, id: &str, column: &str) -> String {
        self.text(&format!("select {column} from JobHistory where ID = '{id}'"))
    }
}

/// Another operator, whose transactions may stay open.
pub struct Session {
    runtime: tokio::runtime::Runtime,
    connection: PgConnection,
}

impl Session {
    /// Runs it and returns the first value of the first row; a refusal is the test's failure.
    pub fn exec(&mut self, sql: &str) -> String {
        let rows = self
            .runtime
            .block_on(sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.connection))
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.first().map(texts).and_then(|row| row.first().cloned()).unwrap_or_default()
    }
}

impl TestDb {
    /// A connection of its own, with the settings of this speaker.
    pub fn session(&self, speaker: Speaker) -> Session {
        let options = with_settings(self.options.clone(), "session", speaker, Duration::from_mins(1));
        let runtime = runtime();
        let connection = runtime.block_on(PgConnection::connect_with(&options)).unwrap();
        Session { runtime, connection }
    }

    /// Ends every connection whose name begins with `rosterd ` and then `which`; returns how many.
    pub fn terminate(&mut self, which: &str) -> usize {
        self.text(&format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and application_name like 'rosterd {which}%' and pid <> pg_backend_pid()
               and application_name not in ('rosterd test', 'rosterd session')"
        ))
        .parse()
        .unwrap()
    }

    /// The most rows of this configuration that were in progress at once, from their dates.
    pub fn most_at_once(&mut self, config: &str) -> i64 {
        self.text(&format!(
            "select max(n) from (
               select sum(d) over (order by at, d) as n
               from JobHistory h, lateral (values (StartedDate, 1), (FinishedDate, -1)) v (at, d)
               where ConfigID = '{config}' and StartedDate is not null) o"
        ))
        .parse()
        .unwrap()
    }

    /// Waits until this many rows of this configuration have this status.
    pub fn wait_count(&mut self, config: &str, status: i32, count: usize) {
        self.wait_for(
            &format!("select count(*) from JobHistory where ConfigID = '{config}' and StatusID = {status}"),
            &count.to_string(),
            super::SOON,
        );
    }
}

impl Drop for TestDb {
    #[allow(clippy::print_stderr, reason = "a database that stays behind must be heard of")]
    fn drop(&mut self) {
        let connection = self.connection.take();
        let drop = format!("drop database if exists {} with (force)", self.name);
        self.runtime.block_on(async {
            std::mem::drop(connection);
            if let Err(error) = maintain(drop).await {
                eprintln!("{} was not dropped: {error}", self.name);
            }
        });
    }
}

pub(super) fn texts(row: &PgRow) -> Vec<String> {
    (0..row.len())
        .map(|n| {
            let value = row.try_get_raw(n).unwrap();
            if value.is_null() { String::new() } else { value.as_str().unwrap().to_owned() }
        })
        .collect()
}
