//! The server, the database, and the road to them.

use super::Check;
use crate::cli::output::seconds;
use crate::cli::{Database, Failure};
use crate::postgres::connect::{self, Speaker, within};
use crate::postgres::embedded::{NEWEST_SUPPORTED, OLDEST_SUPPORTED};
use crate::postgres::migrate;
use chrono::Utc;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use std::time::Duration;
use uuid::Uuid;

/// Clocks further apart are worth a word.
const SKEW_SECONDS: f64 = 1.0;
/// Transactions open for longer are worth a word.
const OLD_TRANSACTION_SECONDS: f64 = 60.0;
/// A notification to ourselves takes milliseconds.
const LISTEN_LIMIT: Duration = Duration::from_secs(3);

/// Where the database is, without any secret.
pub(super) fn place(database: &Database) -> String {
    let options = &database.options;
    let host =
        options.get_socket().map_or_else(|| options.get_host().to_owned(), |s| s.display().to_string());
    let name = options.get_database().unwrap_or(options.get_username());
    let embedded = if database.embedded.is_some() { "embedded, " } else { "" };
    format!("{embedded}{name} as {} at {host} port {}", options.get_username(), options.get_port())
}

/// Whether the schema is the one this binary knows, so that its tables can be looked at.
pub(super) async fn examine(
    database: &Database,
    db: &mut PgConnection,
    checks: &mut Vec<Check>,
) -> Result<bool, Failure> {
    checks.push(version(db).await?);
    checks.push(role(db).await?);
    let (schema, usable) = schema(db).await?;
    checks.push(schema);
    if usable {
        checks.push(search_path(database).await);
    }
    checks.push(durability(db).await?);
    checks.push(clock(db).await?);
    checks.push(transactions(db).await?);
    checks.push(notifications(database, db).await);
    Ok(usable)
}

async fn version(db: &mut PgConnection) -> Result<Check, Failure> {
    let (number, name, encoding): (i32, String, String) = sqlx::query_as(
        "select current_setting('server_version_num')::int, current_setting('server_version'),
                current_setting('server_encoding')",
    )
    .fetch_one(db)
    .await?;
    let major = u32::try_from(number / 10_000).unwrap_or(0);
    let finding = format!("PostgreSQL {name}, {encoding}");
    Ok(if major < OLDEST_SUPPORTED {
        Check::fail("server", finding, format!("Use PostgreSQL {OLDEST_SUPPORTED} or newer."))
    } else if encoding != "UTF8" {
        Check::fail("server", finding, "Create the database with encoding 'UTF8'.")
    } else if major > NEWEST_SUPPORTED {
        let remedy =
            format!("rosterd is tested up to PostgreSQL {NEWEST_SUPPORTED}; a newer rosterd may be too.");
        Check::warn("server", finding, remedy)
    } else {
        Check::ok("server", finding)
    })
}

async fn role(db: &mut PgConnection) -> Result<Check, Failure> {
    let (standby, read_only): (bool, bool) =
        sqlx::query_as("select pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool")
            .fetch_one(db)
            .await?;
    Ok(if standby {
        Check::fail("primary", "the server is a standby (in recovery)", "Give the primary's address.")
    } else if read_only {
        let remedy = "Find who set default_transaction_read_only (server, database or role) and why.";
        Check::fail("primary", "transactions are read-only by default", remedy)
    } else {
        Check::ok("primary", "the server takes writes")
    })
}

async fn schema(db: &mut PgConnection) -> Result<(Check, bool), Failure> {
    let known = migrate::known_version();
    let version = match migrate::version(db).await.map_err(Failure::from) {
        Ok(version) => version,
        Err(failure) if failure.denied => {
            let remedy =
                "The owner of the tables makes this login a member of a role: grant rosterd_viewer to ...;";
            return Ok((Check::fail("schema", "this login may not look into the schema vm", remedy), false));
        }
        Err(failure) => return Err(failure),
    };
    Ok(match version {
        None => (Check::fail("schema", "there is no schema yet", "Run `rosterd migrate`."), false),
        Some(found) if found > known => {
            let finding = format!("version {found}, this rosterd knows versions up to {known}");
            (Check::fail("schema", finding, "Run the newer rosterd; schemas never go back."), false)
        }
        Some(found) if found < known => {
            let finding = format!("version {found}, this rosterd brings version {known}");
            (
                Check::warn("schema", finding, "Run `rosterd migrate`, or start the daemon, which does it."),
                false,
            )
        }
        Some(found) => (Check::ok("schema", format!("version {found}")), true),
    })
}

/// A fresh connection, as psql makes one: nothing of ours set.
async fn search_path(database: &Database) -> Check {
    let options = database.options.clone().application_name("rosterd doctor");
    let asked = within(database.limits.connect, async {
        let mut db = PgConnection::connect_with(&options).await?;
        let path: String = sqlx::query_scalar("show search_path").fetch_one(&mut db).await?;
        let found = sqlx::raw_sql("select 1 from JobHistory limit 0").execute(&mut db).await;
        let _ = db.close().await;
        Ok((path, found.is_ok()))
    });
    let name = database.options.get_database().unwrap_or(database.options.get_username());
    let remedy = format!(r#"alter database "{name}" set search_path = "$user", public, vm;"#);
    match asked.await {
        Ok((path, true)) => Check::ok("search_path", format!("{path}: JobHistory is found without `vm.`")),
        Ok((path, false)) => {
            Check::warn("search_path", format!("{path}: JobHistory is not found without `vm.`"), remedy)
        }
        Err(error) => Check::warn("search_path", format!("a plain connection failed: {error}"), remedy),
    }
}

async fn durability(db: &mut PgConnection) -> Result<Check, Failure> {
    let off: Vec<String> = sqlx::query_scalar(
        "select name || ' = ' || setting from pg_settings
         where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off'
         order by name",
    )
    .fetch_all(db)
    .await?;
    Ok(if off.is_empty() {
        Check::ok("durability", "fsync, full_page_writes and synchronous_commit are on")
    } else {
        let finding = format!("{}: a crash of the server's machine may lose rows", off.join(", "));
        Check::warn("durability", finding, "Turn them on in postgresql.conf and reload.")
    })
}

/// The best of three, because a slow answer looks like a skew.
async fn clock(db: &mut PgConnection) -> Result<Check, Failure> {
    let mut skew = f64::INFINITY;
    for _ in 0..3 {
        let asked = Utc::now();
        let theirs: chrono::DateTime<Utc> =
            sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *db).await?;
        let answered = Utc::now();
        // Within the round trip nobody knows better.
        let ahead = (theirs - answered).as_seconds_f64().max(0.0);
        let behind = (asked - theirs).as_seconds_f64().max(0.0);
        let now = if ahead > 0.0 { ahead } else { -behind };
        if now.abs() < skew.abs() {
            skew = now;
        }
    }
    let direction = if skew > 0.0 { "ahead of" } else { "behind" };
    let finding = format!("the database's clock is {:.3} s {direction} this machine's", skew.abs());
    Ok(if skew.abs() > SKEW_SECONDS {
        let remedy = "Let both machines follow NTP; schedules go by the database's clock, log lines by this machine's.";
        Check::warn("clock", finding, remedy)
    } else {
        Check::ok("clock", format!("the clocks agree within {SKEW_SECONDS:.0} s"))
    })
}

async fn transactions(db: &mut PgConnection) -> Result<Check, Failure> {
    let shown: bool =
        sqlx::query_scalar("select pg_has_role('pg_read_all_stats', 'usage')").fetch_one(&mut *db).await?;
    if !shown {
        return Ok(Check::ok(
            "transactions",
            "not looked at: this login sees its own only (pg_read_all_stats)",
        ));
    }
    let oldest: Option<(i32, Option<String>, Option<String>, f64)> = sqlx::query_as(
        "select pid, application_name, state, extract(epoch from clock_timestamp() - xact_start)::float8
         from pg_stat_activity
         where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
           and xact_start is not null
         order by xact_start limit 1",
    )
    .fetch_optional(db)
    .await?;
    Ok(match oldest {
        Some((pid, name, state, age)) if age > OLD_TRANSACTION_SECONDS => {
            let name =
                name.filter(|name| !name.is_empty()).unwrap_or_else(|| "no application_name".to_owned());
            let state = state.unwrap_or_default();
            Check::warn(
                "transactions",
                format!("one is open for {}: pid {pid} ({name}, {state})", seconds(age)),
                format!(
                    "Vacuum cannot clean up behind it and rows it locks do not move; end it, or select pg_terminate_backend({pid});"
                ),
            )
        }
        _ => Check::ok("transactions", format!("none is open for more than {OLD_TRANSACTION_SECONDS:.0} s")),
    })
}

/// A pooler in transaction mode takes LISTEN and never delivers.
async fn notifications(database: &Database, db: &mut PgConnection) -> Check {
    let options = connect::with_settings(
        database.options.clone(),
        "doctor",
        Speaker::Operator,
        database.limits.statement,
    );
    let channel = format!("rosterd_doctor_{}", Uuid::now_v7().simple());
    let heard = async {
        let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(&channel).await?;
        sqlx::query("select pg_notify($1, '')").bind(&channel).execute(db).await?;
        listener.recv().await
    };
    let problem = match tokio::time::timeout(LISTEN_LIMIT, heard).await {
        Ok(Ok(_)) => return Check::ok("notifications", "LISTEN and NOTIFY arrive"),
        Ok(Err(error)) => format!("LISTEN failed: {error}"),
        Err(_) => format!("a NOTIFY to ourselves did not arrive within {} s", LISTEN_LIMIT.as_secs()),
    };
    let remedy = "A pooler in transaction mode drops them: connect to the server itself or use session mode. \
                  Without them rows start within engine.poll_seconds.";
    Check::warn("notifications", problem, remedy)
}
