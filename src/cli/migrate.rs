//! `rosterd migrate`: brings the schema to this binary's version.

use super::output::say;
use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::postgres::{migrate, roles};

/// Options of `rosterd migrate`.
#[derive(Debug, clap::Args)]
pub(super) struct Migrate {
    /// Also make the database roles and lay down what each may do, so that not every login may do everything.
    /// Needs a superuser, or the owner of the tables with CREATEROLE. docs/security.md says what follows from it.
    #[arg(long)]
    pub(super) roles: bool,
}

pub(super) fn run(settings: &Config, args: &Migrate) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    let done = block_on(async {
        let done = migrate::migrate(&database.options, database.limits).await?;
        if args.roles {
            roles::lay_down(&database.options, database.limits).await?;
        }
        Ok(done)
    })?;
    for step in &done.applied {
        say(&format!("applied: {step}"))?;
    }
    if done.applied.is_empty() {
        say(&format!("The schema is up to date, at version {}.", done.to))?;
    } else {
        say(&format!("The schema is at version {} now.", done.to))?;
    }
    if args.roles {
        say(&format!("The roles {} are laid down.", roles::ROLES.join(", ")))?;
    }
    Ok(())
}
