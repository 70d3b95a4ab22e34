//! What a runner costs while nothing happens.

use crate::figures::{Aim, Results};
use crate::world::World;
use anyhow::Result;
use std::time::{Duration, Instant};

const IDLE: Duration = Duration::from_secs(30);
const COUNT: &str = "select xact_commit + xact_rollback from pg_stat_database where datname = 'idle'";

/// Transactions are asked from another database, so that our own questions do not count; sessions report what they
/// did with up to ten seconds' delay, so it waits before it begins.
pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    drop(world.database("idle").await?);
    let daemon = world.daemon("idle", &[])?;
    let mut elsewhere = world.connect("postgres").await?;
    tokio::time::sleep(Duration::from_secs(25)).await;
    let before: i64 = sqlx::query_scalar(COUNT).fetch_one(&mut elsewhere).await?;
    let (began, cpu) = (Instant::now(), daemon.cpu_seconds()?);
    tokio::time::sleep(IDLE).await;
    let after: i64 = sqlx::query_scalar(COUNT).fetch_one(&mut elsewhere).await?;
    let seconds = began.elapsed().as_secs_f64();
    let transactions = f64::from(i32::try_from(after - before)?) / seconds;
    let cpu = (daemon.cpu_seconds()? - cpu) / seconds * 100.0;
    results.add("idle", "transactions of the whole database", "/s", &[transactions], Aim::AtMost(1.0));
    results.add("idle", "CPU of the daemon, % of one core", "%", &[cpu], Aim::AtMost(0.3));
    results.add("idle", "RSS of the daemon", "MiB", &[daemon.rss_mib()?], Aim::AtMost(25.0));
    Ok(())
}
