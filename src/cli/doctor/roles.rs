//! The database roles, where there are any.

use super::Check;
use crate::cli::Failure;
use crate::cli::output::count;
use crate::postgres::roles;
use sqlx::PgConnection;

/// Tables, views and functions that were made since the roles were laid down have no rules yet.
pub(super) async fn examine(db: &mut PgConnection) -> Result<Check, Failure> {
    if !roles::in_place(&mut *db).await? {
        let finding = "none: whoever may write to the tables may do it for every organization";
        return Ok(Check::ok("roles", finding));
    }
    let lapses = roles::lapses(&mut *db).await?;
    let (login, restricted, sees): (String, bool, i64) = sqlx::query_as(
        "select session_user::text,
           not has_column_privilege('vm.claim', 'historyids', 'select'), (select count(*) from Organization)",
    )
    .fetch_one(db)
    .await?;
    Ok(if lapses.is_empty() && restricted && sees == 0 {
        Check::warn(
            "roles",
            format!("{login} sees no organization: the tables look empty to it"),
            format!(
                "The owner says whose rows it sees: insert into OrganizationMember (Login, OrganizationID) values ('{login}', ...);"
            ),
        )
    } else if lapses.is_empty() {
        let whose = if restricted {
            format!("; {login} sees the rows of {}", count(sees, "organization"))
        } else {
            String::new()
        };
        Check::ok("roles", format!("every table, view and function of vm has its grants and policies{whose}"))
    } else {
        let remedy = "Run `rosterd migrate --roles` as a superuser or a member of rosterd_owner.";
        Check::warn("roles", lapses.join("; "), remedy)
    })
}
