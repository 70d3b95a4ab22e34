//! What is the same for all: numbers are enqueued, and the job of each says that it started.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sqlx::PgPool;
use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SAMPLES: u32 = 300;

static STARTED: AtomicUsize = AtomicUsize::new(0);
static FIRST: Mutex<Option<Instant>> = Mutex::new(None);
static LAST: Mutex<Option<(u32, Instant)>> = Mutex::new(None);

/// The one thing that every job does.
pub(crate) fn started(number: u32) {
    if STARTED.fetch_add(1, Ordering::Relaxed) == 0
        && let Ok(mut first) = FIRST.lock()
    {
        *first = Some(Instant::now());
    }
    // Only the closed loop asks for it, and there nobody else wants the lock.
    if let Ok(mut last) = LAST.lock() {
        *last = Some((number, Instant::now()));
    }
}

pub(crate) trait Peer: Sized + Send + Sync + 'static {
    /// Name, version and settings.
    const NAME: &'static str;
    /// How many jobs it drains: fewer where 100,000 would take minutes.
    const JOBS: u32;
    /// Answers true when nothing is left to do.
    const DRAINED: &'static str;

    fn prepare(url: String) -> impl Future<Output = Result<Self>>;
    /// In one go where the peer can.
    fn enqueue(&self, numbers: std::ops::Range<u32>) -> impl Future<Output = Result<()>>;
    fn work(&self) -> impl Future<Output = Result<()>>;
}

pub(crate) async fn measure<P: Peer>(what: &str) -> Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL")?;
    let db = PgPool::connect(&url).await?;
    let peer = P::prepare(url).await?;
    match what {
        "drain" => drain(peer, &db).await,
        "idle" => idle(peer, &db).await,
        _ => bail!("give drain or idle"),
    }
}

/// The worker and whoever watches it share a task, because not every peer's future may change threads; their jobs do.
async fn beside<P: Peer>(peer: &P, watch: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        ended = peer.work() => bail!("the worker has ended: {ended:?}"),
        watched = watch => watched,
    }
}

/// All jobs wait before the worker starts; from the first start until nothing is left in the database.
async fn drain<P: Peer>(peer: P, db: &PgPool) -> Result<()> {
    peer.enqueue(0..P::JOBS).await?;
    for statement in ["vacuum analyze", "checkpoint"] {
        sqlx::query(statement).execute(db).await?;
    }
    let jobs = P::JOBS as usize;
    beside(&peer, async {
        let began = Instant::now();
        while STARTED.load(Ordering::Relaxed) < jobs || !yes(db, P::DRAINED).await? {
            let started = STARTED.load(Ordering::Relaxed);
            ensure!(began.elapsed() < Duration::from_secs(120), "{started} of {jobs} started in two minutes");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let first = FIRST.lock().ok().and_then(|first| *first).context("nothing started")?;
        let rate = f64::from(P::JOBS) / first.elapsed().as_secs_f64();
        let runs = STARTED.load(Ordering::Relaxed);
        ensure!(runs == jobs, "{runs} runs of {jobs} jobs");
        say(&format!("{}: {jobs} jobs drained", P::NAME), "/s", rate);
        Ok(())
    })
    .await
}

/// INSERT to start in a closed loop, and then the transactions of a worker that has nothing to do.
async fn idle<P: Peer>(peer: P, db: &PgPool) -> Result<()> {
    beside(&peer, async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut times = latencies(&peer).await?;
        times.sort_by(f64::total_cmp);
        for percent in [50, 99] {
            let place = (times.len() * percent).div_ceil(100) - 1;
            say(&format!("{}: INSERT to start p{percent}, {SAMPLES} samples", P::NAME), "ms", times[place]);
        }
        say(&format!("{}: idle transactions", P::NAME), "/s", idle_transactions(db).await?);
        Ok(())
    })
    .await
}

async fn latencies<P: Peer>(peer: &P) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for number in 0..SAMPLES + 20 {
        let before = Instant::now();
        peer.enqueue(number..number + 1).await?;
        let at = loop {
            let last = LAST.lock().ok().and_then(|last| *last);
            if let Some((seen, at)) = last
                && seen == number
            {
                break at;
            }
            ensure!(before.elapsed() < Duration::from_secs(60), "job {number} does not start");
            tokio::time::sleep(Duration::from_micros(500)).await;
        };
        // The first ones warm the caches.
        if number >= 20 {
            times.push((at - before).as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(times)
}

async fn idle_transactions(db: &PgPool) -> Result<f64> {
    let name: String = sqlx::query_scalar("select current_database()::text").fetch_one(db).await?;
    db.close().await;
    let elsewhere = PgPool::connect(&std::env::var("ADMIN_URL").context("ADMIN_URL")?).await?;
    let of = "select xact_commit + xact_rollback from pg_stat_database where datname = $1";
    // Sessions say with some delay what they did.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let began = Instant::now();
    let before: i64 = sqlx::query_scalar(of).bind(&name).fetch_one(&elsewhere).await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let after: i64 = sqlx::query_scalar(of).bind(&name).fetch_one(&elsewhere).await?;
    Ok(f64::from(i32::try_from(after - before)?) / began.elapsed().as_secs_f64())
}

async fn yes(db: &PgPool, question: &str) -> Result<bool> {
    Ok(sqlx::query_scalar(question).fetch_one(db).await?)
}

fn say(figure: &str, unit: &str, value: f64) {
    println!("{}", json!({ "figure": figure, "unit": unit, "value": value }));
}
