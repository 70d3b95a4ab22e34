//! A drain beside a transaction that keeps an old snapshot, so that nothing that is claimed can be cleaned up.

use crate::figures::{Aim, Curve, Results, percentile_of};
use crate::world::{World, config_of, scenery};
use anyhow::{Result, ensure};
use std::time::Duration;

const ROWS: i64 = 1_800_000;
const BEFORE: Duration = Duration::from_secs(8);
const HELD: Duration = Duration::from_secs(30);
const AFTER: Duration = Duration::from_secs(12);

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut db = world.database("snapshot").await?;
    let config = config_of(&mut db, "NoopJob").await?;
    scenery(world, "snapshot", config, ROWS, false).await?;
    let mut holder = world.connect("snapshot").await?;
    let daemon = world.idle_daemon(&mut db, "snapshot", &[]).await?;
    tokio::time::sleep(BEFORE).await;
    let held: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut db).await?;
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from Runner")
        .execute(&mut holder)
        .await?;
    tokio::time::sleep(HELD).await;
    sqlx::raw_sql("commit").execute(&mut holder).await?;
    tokio::time::sleep(AFTER).await;
    let left: bool =
        sqlx::query_scalar("select exists (select from JobHistory where Ready)").fetch_one(&mut db).await?;
    drop(daemon);
    ensure!(left, "{ROWS} rows were too few for this machine");
    let ended: Vec<(i32, i64)> = sqlx::query_as(
        "select floor(extract(epoch from FinishedDate - $1))::int, count(*) from JobHistory
         where StatusID = 3 group by 1 order by 1",
    )
    .bind(held)
    .fetch_all(&mut db)
    .await?;
    let within = |from: i32, to: i32| -> Result<Vec<f64>> {
        let count = |second: i32| ended.iter().find(|(at, _)| *at == second).map_or(0, |(_, count)| *count);
        (from..to).map(|second| Ok(f64::from(i32::try_from(count(second))?))).collect()
    };
    // The first seconds are those of a start, and the edges are half.
    let before = within(-6, 0)?;
    let during = within(0, 30)?;
    let after = within(36, 41)?;
    let mean = |some: &[f64]| some.iter().sum::<f64>() / f64::from(u32::try_from(some.len()).unwrap_or(1));
    results.add("snapshot", "jobs in each second before", "/s", &before, Aim::More);
    results.add(
        "snapshot",
        "jobs in each second while a snapshot is held for 30 s",
        "/s",
        &during,
        Aim::More,
    );
    results.add("snapshot", "jobs in each second of the last five of these", "/s", &during[25..], Aim::More);
    results.add("snapshot", "jobs in each second from the sixth after it on", "/s", &after, Aim::More);
    results.add(
        "snapshot",
        "times slower in these 30 s",
        "",
        &[mean(&before) / mean(&during)],
        Aim::AtMost(3.0),
    );
    results.add(
        "snapshot",
        "times slower in the last five",
        "",
        &[mean(&before) / mean(&during[25..])],
        Aim::AtMost(3.0),
    );
    results.add(
        "snapshot",
        "of the rate before, reached again after it",
        "",
        &[percentile_of(&after, 50) / percentile_of(&before, 50)],
        Aim::AtLeast(0.8),
    );
    let points = ended.iter().filter(|(at, _)| (-6..41).contains(at));
    let mut curve = Vec::new();
    for (at, count) in points {
        curve.push((f64::from(*at), f64::from(i32::try_from(*count)?)));
    }
    results.curves.insert(
        "drain-beside-snapshot".to_owned(),
        vec![Curve { name: "one runner".to_owned(), points: curve }],
    );
    drop((db, holder));
    world.drop_database("snapshot").await
}
