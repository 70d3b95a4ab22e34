//! From the INSERT of one row to its job's first line.

use crate::clock::now_micros;
use crate::figures::{Aim, Results, percentile_of};
use crate::world::{World, config_of};
use anyhow::{Result, ensure};
use sqlx::PgConnection;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SAMPLES: usize = 1000;
/// The first ones warm the caches.
const WARM: usize = 50;

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut db = world.database("latency").await?;
    let _daemon = world.idle_daemon(&mut db, "latency", &[]).await?;
    let commits = commit_rate(&mut db).await?;
    results.add(
        "latency",
        "single-row INSERTs into a bare table, one connection",
        "/s",
        &[commits],
        Aim::More,
    );
    let config = config_of(&mut db, "StampJob").await?;
    starts(&mut db, config, WARM).await?;
    let times = starts(&mut db, config, SAMPLES).await?;
    for (percent, aim) in [(50, Aim::AtMost(3.0)), (95, Aim::Less), (99, Aim::AtMost(8.0))] {
        let name = format!("INSERT to start, idle runner, {SAMPLES} samples: p{percent}");
        results.add("latency", &name, "ms", &[percentile_of(&times, percent)], aim);
    }
    Ok(())
}

/// How fast the disk lets one connection commit, beside which the other figures are to be read.
async fn commit_rate(db: &mut PgConnection) -> Result<f64> {
    sqlx::raw_sql("create table public.bench_commit (n int)").execute(&mut *db).await?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(2) {
        sqlx::query("insert into public.bench_commit values (1)").execute(&mut *db).await?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// Milliseconds from the INSERT call to the job's first line. The next INSERT follows when the row has ended and the
/// runner is idle again.
pub(super) async fn starts(db: &mut PgConnection, config: Uuid, samples: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let before = now_micros();
        let id: Uuid =
            sqlx::query_scalar("insert into JobHistory (ConfigID, StatusID) values ($1, 1) returning ID")
                .bind(config)
                .fetch_one(&mut *db)
                .await?;
        let asked = Instant::now();
        let started = loop {
            let result: Option<i64> =
                sqlx::query_scalar("select Result::bigint from JobHistory where ID = $1 and StatusID = 3")
                    .bind(id)
                    .fetch_optional(&mut *db)
                    .await?
                    .flatten();
            if let Some(micros) = result {
                break u64::try_from(micros)?;
            }
            ensure!(asked.elapsed() < Duration::from_secs(60), "{id} has not ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        ensure!(started >= before, "a job started before it was inserted");
        times.push(f64::from(u32::try_from(started - before)?) / 1000.0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(times)
}
