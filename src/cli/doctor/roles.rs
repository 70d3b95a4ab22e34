//! The database roles, where there are any.

use super::Check;
use crate::cli::Failure;
use crate::postgres::roles;
use sqlx::PgConnection;

/// Tables, views and functions that were made since the roles were laid down have no rules yet.
pub(super) async fn examine(db: &mut PgConnection) -> Result<Check, Failure> {
    if !roles::in_place(db).await? {
        let finding = "none: whoever may write to the tables may do it for every organization";
        return Ok(Check::ok("roles", finding));
    }
    let lapses = roles::lapses(db).await?;
    Ok(if lapses.is_empty() {
        Check::ok("roles", "every table, view and function of vm has its grants and policies")
    } else {
        let remedy = "Run `rosterd migrate --roles` as a superuser or a member of rosterd_owner.";
        Check::warn("roles", lapses.join("; "), remedy)
    })
}
