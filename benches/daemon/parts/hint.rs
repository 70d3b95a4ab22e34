//! What the wake-up hint costs those who insert.

use super::inserts::{OURS, clients};
use crate::figures::{Aim, Results, ratios};
use crate::world::{World, config_of};
use anyhow::Result;
use sqlx::postgres::PgListener;
use std::time::Duration;
use uuid::Uuid;

const CLIENTS: usize = 16;
const BLOCK: Duration = Duration::from_secs(2);
const ROUNDS: usize = 6;
/// As the runner does before it sleeps.
const ARM: &str = "update WakeHint set Armed = true
  where Slot = any(array(select Slot from WakeHint where not Armed order by Slot for update skip locked))";

/// The rows belong to a configuration that is not active, so that nothing but the hint differs: without anybody who
/// listens, with a session that listens and asks for the next hint right after each, and with a real runner, which
/// looks at the queue after each hint and finds nothing it may start. All at the most that is possible: a runner that
/// finds rows asks for no hint while it has work.
pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut db = world.database("hint").await?;
    let config = config_of(&mut db, "NoopJob").await?;
    sqlx::query("update JobConfig set Active = false where ID = $1").bind(config).execute(&mut db).await?;
    let (mut without, mut with, mut runner) = (Vec::new(), Vec::new(), Vec::new());
    block(world, config).await?;
    for _ in 0..if world.quick { 3 } else { ROUNDS } {
        without.push(block(world, config).await?);
        let listener = tokio::spawn(listen(world.listener("hint").await?, world.connect("hint").await?));
        with.push(block(world, config).await?);
        listener.abort();
        let daemon = world.idle_daemon(&mut db, "hint", &[]).await?;
        runner.push(block(world, config).await?);
        drop(daemon);
        // So that the next daemon is waited for, and the next block finds no slot armed but those of its own.
        sqlx::raw_sql("delete from Runner; update WakeHint set Armed = false").execute(&mut db).await?;
    }
    let per_cent =
        |some: &[f64]| ratios(some, &without).iter().map(|ratio| (1.0 - ratio) * 100.0).collect::<Vec<_>>();
    results.add("hint", "single-row INSERTs, 16 clients, nobody listens", "/s", &without, Aim::More);
    results.add(
        "hint",
        "lost with a session that listens and arms after each hint, in pairs",
        "%",
        &per_cent(&with),
        Aim::AtMost(5.0),
    );
    results.add(
        "hint",
        "lost with an idle runner that looks after each hint, in pairs",
        "%",
        &per_cent(&runner),
        Aim::Less,
    );
    drop(db);
    world.drop_database("hint").await
}

async fn block(world: &World, config: Uuid) -> Result<f64> {
    clients(world, "hint", config, OURS, CLIENTS, BLOCK).await
}

async fn listen(mut listener: PgListener, mut db: sqlx::PgConnection) -> Result<()> {
    listener.listen("rosterd_wake").await?;
    loop {
        sqlx::query(ARM).execute(&mut db).await?;
        listener.recv().await?;
    }
}
