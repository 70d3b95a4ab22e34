//! Which cluster a connection speaks to: after a failover, or a restore, it is not the one we registered with.

use super::connect::{DatabaseError, within};
use sqlx::PgConnection;
use std::fmt;
use std::time::Duration;

/// A history of writes. It changes when a standby was promoted, and when another server stands at the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cluster {
    system: i64,
    timeline: i32,
}

impl Cluster {
    /// Whether this is an earlier history of the same cluster.
    pub(crate) fn is_behind(self, other: Self) -> bool {
        self.system == other.system && self.timeline < other.timeline
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {} of system {}", self.timeline, self.system)
    }
}

/// Asks a new connection which cluster it speaks to. A standby is refused: it only replays what a primary
/// wrote, perhaps long ago, and takes no write.
pub(crate) async fn identify(db: &mut PgConnection, limit: Duration) -> Result<Cluster, DatabaseError> {
    let answer = sqlx::query!(
        r#"select pg_is_in_recovery() as "standby!", s.system_identifier as "system!",
             -- The timeline of what is written now; the control file may still have the one before a promotion.
             case when not pg_is_in_recovery()
               then ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end as timeline
           from pg_control_system() s"#
    );
    let answer = within(limit, answer.fetch_one(db)).await?;
    match answer.timeline {
        Some(timeline) if !answer.standby => Ok(Cluster { system: answer.system, timeline }),
        _ => Err(DatabaseError::Standby),
    }
}
