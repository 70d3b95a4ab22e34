//! `rosterd doctor`: looks at everything that can be wrong, and says what to do about it.

mod queue;
mod roles;
mod secrets;
mod server;

use super::output::{one_line, say, say_json};
use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::postgres::connect::{self, Speaker};
use crate::postgres::embedded::find_binaries;
use crate::registry::Registry;
use serde::Serialize;
use serde_json::json;

/// Options of `rosterd doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// What was looked at, what was found, and what helps.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, finding: finding.into(), remedy: None }
    }

    fn warn(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, level: Level::Warn, finding: finding.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, level: Level::Fail, finding: finding.into(), remedy: Some(remedy.into()) }
    }
}

pub(super) fn run(settings: &Config, registry: &Registry, args: &Doctor) -> Result<(), Failure> {
    let checks = examine(settings, registry)?;
    let worst = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok);
    if args.json {
        say_json(&json!({ "verdict": worst, "checks": checks }))?;
    } else {
        for check in &checks {
            let level = match check.level {
                Level::Ok => "ok  ",
                Level::Warn => "WARN",
                Level::Fail => "FAIL",
            };
            say(&format!("{level}  {:<18} {}", check.name, one_line(&check.finding)))?;
            if let Some(remedy) = &check.remedy {
                say(&format!("{:25}-> {}", "", one_line(remedy)))?;
            }
        }
    }
    if worst == Level::Fail { Err(Failure::exit(Failure::DATABASE)) } else { Ok(()) }
}

/// Every check that is possible: what needs a server is left out without one, what needs the schema without that.
fn examine(settings: &Config, registry: &Registry) -> Result<Vec<Check>, Failure> {
    let mut checks = Vec::new();
    if !settings.database.has_url() {
        match find_binaries(settings.embedded.bin_dir()) {
            Ok(found) => checks.push(Check::ok(
                "binaries",
                format!("PostgreSQL {}.{} in {}", found.major, found.minor, found.bin_dir.display()),
            )),
            Err(error) => {
                let remedy = "Install PostgreSQL 15 or newer, or give DATABASE_URL.";
                checks.push(Check::fail("binaries", error.to_string(), remedy));
                return Ok(checks);
            }
        }
    }
    let database = match Database::open(settings) {
        Ok(database) => database,
        Err(failure) if failure.code == Failure::DATABASE => {
            checks.push(Check::fail(
                "database",
                failure.message,
                "Look into the log of the embedded server.",
            ));
            return Ok(checks);
        }
        Err(failure) => return Err(failure),
    };
    block_on(async {
        let connected = connect::connect(&database.options, "doctor", Speaker::Operator, database.limits);
        match connected.await {
            Ok(mut db) => {
                checks.push(Check::ok("database", server::place(&database)));
                let usable = server::examine(&database, &mut db, &mut checks).await?;
                if usable {
                    checks.push(roles::examine(&mut db).await?);
                    queue::examine(&mut db, registry, &mut checks).await?;
                    checks.push(secrets::examine(&mut db, settings).await?);
                }
            }
            Err(error) => checks.push(Check::fail(
                "database",
                format!("{}: {}", server::place(&database), Failure::from(error).message),
                "Check that the server runs and that DATABASE_URL (or database.url) is right; a pooler must let startup options pass.",
            )),
        }
        Ok(checks)
    })
}
