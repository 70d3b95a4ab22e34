//! `rosterd migrate`: brings the schema to this binary's version.

use super::output::say;
use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::postgres::migrate;

pub(super) fn run(settings: &Config) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    let done = block_on(async { Ok(migrate::migrate(&database.options, database.limits).await?) })?;
    if done.applied.is_empty() {
        return say(&format!("The schema is up to date, at version {}.", done.to));
    }
    for step in &done.applied {
        say(&format!("applied: {step}"))?;
    }
    say(&format!("The schema is at version {} now.", done.to))
}
