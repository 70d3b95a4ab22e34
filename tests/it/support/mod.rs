//! What the tests share: a server, a database each, daemons, psql.

pub mod api;
mod daemon;
mod database;
pub mod fake_jira;
pub mod fake_nexpose;
pub mod fake_qualys;
mod login;
pub mod oscap_lab;
pub mod proxy;
mod psql;
pub mod scanner_lab;
pub mod secrets;
mod server;
#[allow(dead_code, reason = "the benchmark of limits uses the rest")]
pub mod stamping_api;
pub mod trouble;

pub use daemon::{Daemon, binary, own_jobs_binary};
pub use database::{Session, TestDb};
pub use login::{Login, config_of, with_roles};
pub use psql::psql;
pub use server::server;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The place before every row, as the last three arguments of `claim.sql`.
pub const FROM_THE_START: &str = "-2147483648, 'epoch', '00000000-0000-0000-0000-000000000000'";

/// How long a test waits for something that is sure to come, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks the server process of a session how many seconds it has computed. Unlike the time on the wall, that does not
/// depend on what else the machine does.
pub const COMPUTED: &str = "select (f[12]::numeric + f[13]::numeric) / 100
    from string_to_array(split_part(pg_read_file('/proc/self/stat'), ') ', 2), ' ') f";

/// A daemon that notices a dead neighbour within two seconds.
pub const QUICK_LEASE: [(&str, &str); 2] =
    [("ROSTERD__ENGINE__LEASE_SECONDS", "1.5"), ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.3")];

/// A daemon that waits half a second for a job to stop.
pub const SHORT_GRACE: (&str, &str) = ("ROSTERD__ENGINE__CANCEL_GRACE_SECONDS", "0.5");

/// Does `work` again and again on a thread of its own for as long as `during` lasts.
pub fn meanwhile<T>(mut work: impl FnMut() + Send, during: impl FnOnce() -> T) -> T {
    struct Over<'a>(&'a AtomicBool);
    // Also when `during` panics: a scope waits for its threads.
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                work();
            }
        });
        let _over = Over(&over);
        during()
    })
}
