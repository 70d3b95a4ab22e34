//! How hard an API may be hit: `Delay` and `Concurrency` per `SourceConfig`, across all jobs and runners.

use sqlx::PgPool;
use uuid::Uuid;

/// Grants calls to sources.
#[derive(Debug, Clone)]
pub struct SourceLimiter {
    pool: PgPool,
    runner: Uuid,
}

impl SourceLimiter {
    /// A limiter for this runner, on this database.
    pub fn new(pool: PgPool, runner: Uuid) -> Self {
        Self { pool, runner }
    }
}
