//! What the tests share: a server, a database each, daemons, psql.

mod daemon;
mod database;
mod psql;
mod server;

pub use daemon::{Daemon, binary, own_jobs_binary};
pub use database::TestDb;
pub use psql::{Said, psql};
pub use server::server;

use std::time::Duration;

/// How long a test waits for something that is sure to come, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(30);
