//! `rosterd cancel`: what `UPDATE JobHistory SET StatusID = -1` does, and what became of each row.

use super::output::say;
use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::history::Status;
use uuid::Uuid;

/// Options of `rosterd cancel`.
#[derive(Debug, clap::Args)]
pub(super) struct Cancel {
    /// The rows to cancel (JobHistory.ID).
    #[arg(required = true, value_name = "ID")]
    ids: Vec<Uuid>,
}

pub(super) fn run(settings: &Config, args: &Cancel) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let mut unknown = Vec::new();
        for id in &args.ids {
            let changed = sqlx::query!("update JobHistory set StatusID = -1 where ID = $1", id)
                .execute(&mut db)
                .await?
                .rows_affected();
            let status = sqlx::query_scalar!("select StatusID from JobHistory where ID = $1", id)
                .fetch_optional(&mut db)
                .await?;
            match status.map(|id| (id, Status::from_id(id))) {
                None => unknown.push(id.to_string()),
                // The row may have ended between the two statements; who made it end does not matter then.
                Some((_, Some(Status::Canceled))) if changed > 0 => say(&format!("{id} is canceled"))?,
                Some((_, Some(Status::Cancel))) if changed > 0 => {
                    say(&format!("{id} is being cancelled: its runner stops it"))?;
                }
                Some((_, Some(Status::Cancel))) => say(&format!("{id} is already being cancelled"))?,
                Some((_, Some(status))) if status.is_final() => {
                    say(&format!("{id} is already finished ({status}); it was left alone"))?;
                }
                Some((number, status)) => {
                    let name = status.map_or("?", Status::name);
                    say(&format!("{id} has StatusID {number} ({name})"))?;
                }
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Failure::usage(format!("there is no row {} in JobHistory", unknown.join(", "))))
    })
}
