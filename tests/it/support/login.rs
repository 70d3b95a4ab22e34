//! Logins that are members of one of rosterd's roles, as `psql` and daemons have them.

use super::database::{maintain, runtime, texts};
use super::{TestDb, binary};
use rosterd::postgres::connect::{Speaker, with_settings};
use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use sqlx::{Connection, PgConnection};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database on which `rosterd migrate --roles` was run, with the organizations A and B.
pub fn with_roles() -> TestDb {
    let mut db = TestDb::new();
    let done =
        Command::new(binary()).args(["migrate", "--roles"]).env("DATABASE_URL", db.url()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    db.exec("insert into Organization (Code) values ('A'), ('B')");
    db
}

/// A configuration of this job for the organization with this code. Returns JobConfig.ID.
pub fn config_of(db: &mut TestDb, code: &str, job: &str, columns: &str, values: &str) -> String {
    db.exec(&format!("insert into Job (Struct) values ('{job}') on conflict do nothing"));
    db.text(&format!(
        "insert into JobConfig (JobID, OrganizationID{columns})
         select j.ID, o.ID{values} from Job j, Organization o where j.Struct = '{job}' and o.Code = '{code}' returning ID"
    ))
}

/// A role that can log in, and its connection. Roles belong to the whole server, so it has a name of its own, and is
/// gone when the value is dropped.
pub struct Login {
    pub name: String,
    pub options: PgConnectOptions,
    url: String,
    runtime: tokio::runtime::Runtime,
    connection: Option<PgConnection>,
}

impl Login {
    /// Of all of them.
    pub const PASSWORD: &str = "s3cret-of-a-test";

    /// A member of `role`, who sees these organizations, such as `&["A"]`.
    pub fn new(db: &mut TestDb, role: &str, organizations: &[&str]) -> Self {
        let name = format!("{}_login_{}", db.name, COUNT.fetch_add(1, Ordering::Relaxed));
        let password = Self::PASSWORD;
        db.exec(&format!("create role {name} login password '{password}' in role {role}"));
        for code in organizations {
            db.exec(&format!(
                "insert into OrganizationMember (Login, OrganizationID)
                 select '{name}', ID from Organization where Code = '{code}'"
            ));
        }
        let options = db.options.clone().username(&name).password(password);
        let superuser = db.options.get_username();
        let url =
            db.url().replace(&format!("user={superuser}&"), &format!("user={name}&password={password}&"));
        Self { name, options, url, runtime: runtime(), connection: None }
    }

    /// As `DATABASE_URL` has it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Rows of one or several statements, or SQLSTATE, message and hint of their refusal.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let options = with_settings(self.options.clone(), "login", Speaker::Operator, Duration::from_mins(1));
        let outcome = self.runtime.block_on(async {
            let mut db = match self.connection.take() {
                Some(db) => db,
                None => PgConnection::connect_with(&options).await?,
            };
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut db).await;
            self.connection = Some(db);
            rows
        });
        match outcome {
            Ok(rows) => Ok(rows.iter().map(texts).collect()),
            Err(sqlx::Error::Database(said)) => {
                let said = said.downcast_ref::<PgDatabaseError>();
                Err(format!("{} {} HINT: {}", said.code(), said.message(), said.hint().unwrap_or_default()))
            }
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// How many rows a statement changed.
    pub fn changed(&mut self, sql: &str) -> u64 {
        self.exec("select 1");
        let db = self.connection.as_mut().unwrap();
        let done = self
            .runtime
            .block_on(sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(db))
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        done.rows_affected()
    }

    /// The first value of the first row; a refusal is the test's failure.
    pub fn text(&mut self, sql: &str) -> String {
        let rows = self.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.first().and_then(|row| row.first()).cloned().unwrap_or_default()
    }

    /// Runs it; a refusal is the test's failure.
    pub fn exec(&mut self, sql: &str) {
        self.text(sql);
    }

    /// What the database says no with, behind its SQLSTATE.
    pub fn refusal(&mut self, sql: &str) -> String {
        match self.rows(sql) {
            Ok(rows) => panic!("{sql} was accepted: {rows:?}"),
            Err(said) => said,
        }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let connection = self.connection.take();
        let drop = format!("drop role if exists {}", self.name);
        self.runtime.block_on(async {
            if let Some(connection) = connection {
                let _ = connection.close().await;
            }
            let _ = maintain(drop).await;
        });
    }
}
