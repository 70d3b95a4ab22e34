//! Runs a command with DATABASE_URL naming a migrated, private PostgreSQL that ends with it:
//! `prepare_database FOLDER COMMAND ARGS...`. For `.ci/sqlx-prepare` and for trying SQL by hand.

use anyhow::{Context, Result};
use rosterd::postgres::connect::Limits;
use rosterd::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
use rosterd::postgres::migrate;
use std::process::{Command, ExitCode};
use std::time::Duration;

fn main() -> Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let folder = args.next().context("usage: prepare_database FOLDER COMMAND ARGS...")?;
    let program = args.next().context("usage: prepare_database FOLDER COMMAND ARGS...")?;
    let mut options = EmbeddedOptions::new(folder);
    options.durability = Durability::ThrowAway;
    let server = EmbeddedPostgres::start(&options)?;
    let limits = Limits {
        connect: Duration::from_secs(10),
        statement: Duration::from_mins(1),
        answer: Duration::from_secs(5),
    };
    tokio::runtime::Runtime::new()?.block_on(migrate::migrate(&server.connect_options(), limits))?;
    let status = Command::new(program).args(args).env("DATABASE_URL", server.url()).status()?;
    server.stop()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
