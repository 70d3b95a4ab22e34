//! Jobs that make rosterd useful without a line of Rust: a command, an HTTP request, an SQL statement.

mod allow_list;
mod command;
mod http;
mod sql;
mod sql_json;

pub(crate) use allow_list::check_all as check_allow_list;
pub use command::{CommandJob, CommandPayload};
pub use http::{HttpJob, HttpPayload};
pub use sql::{SqlJob, SqlPayload};

use crate::registry::Registry;

/// Adds the jobs of this family.
pub(super) fn register(registry: Registry) -> Registry {
    registry.register(CommandJob).register(HttpJob).register(SqlJob)
}

/// The longest beginning of `text` of at most `max` bytes that ends between two characters.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
