//! A million pending rows: what a claim of them costs, and what they do to the daemon's memory.

use crate::claims::{Claims, log_statements};
use crate::figures::{Aim, Results, percentile_of};
use crate::world::{World, config_of, scenery};
use anyhow::{Result, ensure};
use std::time::Duration;

const ROWS: [i64; 2] = [100_000, 1_000_000];
/// Less than 100,000 rows last, so that the daemon never idles.
const WHILE: Duration = Duration::from_millis(1500);

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut rss = Vec::new();
    for rows in ROWS {
        let database = format!("backlog_{rows}");
        let mut db = world.database(&database).await?;
        let config = config_of(&mut db, "NoopJob").await?;
        scenery(world, &database, config, rows, false).await?;
        log_statements(world, &database).await?;
        let mut claims = Claims::follow(world, &database)?;
        let daemon = world.idle_daemon(&mut db, &database, &[]).await?;
        tokio::time::sleep(WHILE).await;
        rss.push(daemon.rss_mib()?);
        if rows == ROWS[1] {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let left: bool = sqlx::query_scalar("select exists (select from JobHistory where Ready)")
                .fetch_one(&mut db)
                .await?;
            ensure!(left, "the million rows were drained too soon");
            let times = claims.since(world).await?.claims;
            for (percent, aim) in [(50, Aim::Less), (99, Aim::AtMost(20.0))] {
                let name =
                    format!("claim of 500 of 1,000,000 pending rows, while they are drained: p{percent}");
                results.add("backlog", &name, "ms", &[percentile_of(&times, percent)], aim);
            }
            results.add(
                "backlog",
                "RSS of the daemon, later in the drain",
                "MiB",
                &[daemon.rss_mib()?],
                Aim::Less,
            );
        }
        drop((daemon, db));
        world.drop_database(&database).await?;
    }
    results.add("backlog", "RSS of the daemon, two seconds into 1,000,000 rows", "MiB", &rss[1..], Aim::Less);
    results.add(
        "backlog",
        "the same against two seconds into 100,000 rows",
        "",
        &[rss[1] / rss[0]],
        Aim::AtMost(1.3),
    );
    Ok(())
}
