//! What our triggers cost an operator who inserts.

use crate::figures::{Aim, Results, ratios};
use crate::world::{World, config_of, insert_rows};
use anyhow::Result;
use sqlx::AssertSqlSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use uuid::Uuid;

const BLOCK: Duration = Duration::from_secs(2);
const PAIRS: usize = 5;
const BULK: i64 = 100_000;

pub(super) const OURS: &str = "insert into JobHistory (ConfigID, StatusID) values ($1, 1)";
/// The bare table has nothing that would fill its columns, so the statement does, with what a client would know.
const BARE: &str = "insert into public.bare (JobID, ConfigID, OrganizationID, StatusID, Priority, Payload, NotBefore, CreatedDate, CreatedBy)
  values (1, $1, $1, 1, 5, '{}', now(), now(), 'bench')";

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut db = world.database("inserts").await?;
    let config = config_of(&mut db, "NoopJob").await?;
    sqlx::raw_sql(
        "create table public.bare (like vm.JobHistory including defaults including generated, primary key (ID))
           with (fillfactor = 50)",
    )
    .execute(&mut db)
    .await?;
    let (mut ours, mut bare, mut bulk) = (Vec::new(), Vec::new(), Vec::new());
    clients(world, "inserts", config, OURS, 4, BLOCK / 2).await?;
    for _ in 0..PAIRS {
        bare.push(clients(world, "inserts", config, BARE, 4, BLOCK).await?);
        ours.push(clients(world, "inserts", config, OURS, 4, BLOCK).await?);
    }
    for _ in 0..3 {
        let began = Instant::now();
        insert_rows(&mut db, config, BULK).await?;
        bulk.push(f64::from(i32::try_from(BULK)?) / began.elapsed().as_secs_f64());
    }
    results.add("inserts", "single-row INSERTs into a bare table, 4 clients", "/s", &bare, Aim::More);
    results.add("inserts", "single-row INSERTs into JobHistory, 4 clients", "/s", &ours, Aim::More);
    results.add(
        "inserts",
        "JobHistory against the bare table, in pairs",
        "",
        &ratios(&ours, &bare),
        Aim::AtLeast(0.8),
    );
    results.add("inserts", "100,000 rows by INSERT .. SELECT", "rows/s", &bulk, Aim::AtLeast(25_000.0));
    drop(db);
    world.drop_database("inserts").await
}

/// Rows a second of so many clients, each committing one after the other.
pub(super) async fn clients(
    world: &World,
    database: &str,
    config: Uuid,
    statement: &'static str,
    count: usize,
    time: Duration,
) -> Result<f64> {
    let barrier = Arc::new(Barrier::new(count));
    let mut tasks = Vec::new();
    for _ in 0..count {
        let mut db = world.connect(database).await?;
        let barrier = Arc::clone(&barrier);
        tasks.push(tokio::spawn(async move {
            // It is prepared before the clock runs.
            sqlx::query(AssertSqlSafe(statement)).bind(config).execute(&mut db).await?;
            barrier.wait().await;
            let began = Instant::now();
            let mut rows = 0;
            while began.elapsed() < time {
                sqlx::query(AssertSqlSafe(statement)).bind(config).execute(&mut db).await?;
                rows += 1;
            }
            anyhow::Ok(f64::from(rows) / began.elapsed().as_secs_f64())
        }));
    }
    let mut rate = 0.0;
    for task in tasks {
        rate += task.await??;
    }
    Ok(rate)
}
