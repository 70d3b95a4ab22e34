//! What the tests share: a server, a database each, daemons, psql.

mod daemon;
mod database;
pub mod proxy;
mod psql;
mod server;

pub use daemon::{Daemon, binary, own_jobs_binary};
pub use database::{Session, TestDb};
pub use psql::psql;
pub use server::server;

use std::time::Duration;

/// How long a test waits for something that is sure to come, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(30);

/// A daemon that notices a dead neighbour within two seconds.
pub const QUICK_LEASE: [(&str, &str); 2] =
    [("ROSTERD__ENGINE__LEASE_SECONDS", "1.5"), ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.3")];

/// A daemon that waits half a second for a job to stop.
pub const SHORT_GRACE: (&str, &str) = ("ROSTERD__ENGINE__CANCEL_GRACE_SECONDS", "0.5");
