//! `rosterd rerun`: a fresh row from a finished one.

use super::output::say;
use super::{Database, Failure, block_on};
use crate::config::Config;
use uuid::Uuid;

/// Options of `rosterd rerun`.
#[derive(Debug, clap::Args)]
pub(super) struct Rerun {
    /// The finished row (JobHistory.ID).
    #[arg(value_name = "ID")]
    id: Uuid,
}

pub(super) fn run(settings: &Config, args: &Rerun) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let fresh =
            sqlx::query_scalar!(r#"select vm.rerun($1) as "id!""#, args.id).fetch_one(&mut db).await?;
        say(&fresh.to_string())
    })
}
