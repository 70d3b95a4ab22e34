//! Ten thousand jobs asleep in one runner, and cancels by the ten thousand.

use crate::figures::{Aim, Results};
use crate::world::{World, config_of, insert_rows, settle_down, wait};
use anyhow::{Result, ensure};
use sqlx::PgConnection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use uuid::Uuid;

const SLEEPERS: i64 = 10_000;
const PENDING: i64 = 100_000;
const BEATS: Duration = Duration::from_secs(20);
/// `engine.heartbeat_seconds` is 5; the beat after a late one must still come well within the lease of 20.
const ON_TIME: f64 = 6.0;

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut db = world.database("cancel").await?;
    let sleep = config_of(&mut db, "SleepJob").await?;
    let workers = SLEEPERS.to_string();
    let daemon =
        world.idle_daemon(&mut db, "cancel", &[("ROSTERD__ENGINE__WORKERS", workers.as_str())]).await?;
    insert_rows(&mut db, sleep, SLEEPERS).await?;
    wait(&mut db, "select (select coalesce(sum(Open), 0) from Claim) = 10000").await?;
    // A session that has nothing to do reports what it wrote after ten seconds.
    tokio::time::sleep(Duration::from_secs(12)).await;
    results.add(
        "cancel",
        "RSS of the daemon with 10,000 jobs asleep",
        "MiB",
        &[daemon.rss_mib()?],
        Aim::AtMost(400.0),
    );

    let (rows, beats) = (rows_written(world).await?, beats(&mut db).await?);
    tokio::time::sleep(BEATS).await;
    let beaten = f64::from(i32::try_from(self::beats(&mut db).await? - beats)?);
    let written = f64::from(i32::try_from(rows_written(world).await? - rows)?);
    ensure!(beaten > 0.0, "the runner has not pulsed");
    results.add(
        "cancel",
        "rows written for each pulse with 10,000 jobs asleep",
        "",
        &[written / beaten],
        Aim::AtMost(1.4),
    );

    let pulses = Pulses::watch(world, "cancel").await?;
    let (took, ended) =
        cancel(&mut db, sleep, "select not exists (select from Claim where Open > 0)").await?;
    results.add("cancel", "10,000 running rows, one UPDATE", "s", &[took], Aim::AtMost(10.0));
    results.add("cancel", "until all of them are CANCELED", "s", &[ended], Aim::Less);
    let gap = pulses.longest_gap().await?;
    results.add("cancel", "longest time between two pulses meanwhile", "s", &[gap], Aim::AtMost(ON_TIME));

    let noop = config_of(&mut db, "NoopJob").await?;
    sqlx::query("update JobConfig set Active = false where ID = $1").bind(noop).execute(&mut db).await?;
    let (mut times, mut gaps) = (Vec::new(), Vec::new());
    for _ in 0..if world.quick { 1 } else { 3 } {
        insert_rows(&mut db, noop, PENDING).await?;
        settle_down(&mut db).await?;
        let pulses = Pulses::watch(world, "cancel").await?;
        let (took, _) = cancel(&mut db, noop, "select true").await?;
        times.push(took);
        gaps.push(pulses.longest_gap().await?);
    }
    results.add("cancel", "100,000 pending rows, one UPDATE", "s", &times, Aim::AtMost(10.0));
    results.add("cancel", "longest time between two pulses around it", "s", &gaps, Aim::AtMost(ON_TIME));
    drop((daemon, db));
    world.drop_database("cancel").await
}

/// Seconds that the UPDATE took, and until the question is answered by yes.
async fn cancel(db: &mut PgConnection, config: Uuid, question: &'static str) -> Result<(f64, f64)> {
    let began = Instant::now();
    sqlx::query("update JobHistory set StatusID = -1 where ConfigID = $1 and StatusID in (1, 2)")
        .bind(config)
        .execute(&mut *db)
        .await?;
    let took = began.elapsed().as_secs_f64();
    wait(db, question).await?;
    Ok((took, began.elapsed().as_secs_f64()))
}

/// By sessions of this database; they publish it within a second or so while they work.
async fn rows_written(world: &World) -> Result<i64> {
    let mut elsewhere = world.connect("postgres").await?;
    Ok(sqlx::query_scalar(
        "select tup_inserted + tup_updated + tup_deleted from pg_stat_database where datname = 'cancel'",
    )
    .fetch_one(&mut elsewhere)
    .await?)
}

async fn beats(db: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar("select Seq from Runner").fetch_one(db).await?)
}

/// Looks every 20 ms whether the runner has pulsed.
struct Pulses {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<f64>>,
}

impl Pulses {
    /// Returns when it has seen the first one, so that every gap has a beginning.
    async fn watch(world: &World, database: &str) -> Result<Self> {
        let mut db = world.connect(database).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let first = beats(&mut db).await?;
        let mut seen = first;
        while seen == first {
            tokio::time::sleep(Duration::from_millis(20)).await;
            seen = beats(&mut db).await?;
        }
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut since, mut longest) = (Instant::now(), 0.0_f64);
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let now = beats(&mut db).await?;
                if now != seen {
                    longest = longest.max(since.elapsed().as_secs_f64());
                    (seen, since) = (now, Instant::now());
                    // A beat that ends the gap in which we were told to stop.
                    if stopped.load(Ordering::Relaxed) {
                        return Ok(longest);
                    }
                }
                ensure!(since.elapsed() < Duration::from_secs(60), "the runner pulses no more");
            }
        });
        Ok(Self { stop, task })
    }

    async fn longest_gap(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
