//! What the archive and the end of ten million rows cost: the functions a daemon calls, by a session of its own.

use crate::figures::{Aim, Results};
use crate::process;
use crate::world::{World, config_of, scenery};
use anyhow::{Result, ensure};
use sqlx::PgConnection;
use std::time::Instant;
use uuid::Uuid;

const DATABASE: &str = "retention";
const ROWS: i64 = 10_000_000;
const QUICK: i64 = 300_000;
const BATCH: i32 = 1000;

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let rows = if world.quick { QUICK } else { ROWS };
    let mut db = world.database(DATABASE).await?;
    let config = config_of(&mut db, "NoopJob").await?;
    scenery(world, DATABASE, config, rows, true).await?;
    archive(&mut db, rows, results).await?;
    end(&mut db, config, results).await?;
    drop(db);
    world.drop_database(DATABASE).await
}

/// A pass without the rests a daemon makes between two steps.
async fn archive(db: &mut PgConnection, rows: i64, results: &mut Results) -> Result<()> {
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *db).await?;
    let pid = u32::try_from(pid)?;
    let (began, computed) = (Instant::now(), process::cpu_seconds(pid)?);
    let (mut after, mut all, mut longest): (Option<Uuid>, i64, f64) = (None, 0, 0.0);
    loop {
        let step = Instant::now();
        let (moved, last): (i32, Option<Uuid>) =
            sqlx::query_as("select Moved, LastID from vm.archive_history('6 hours', $1, $2)")
                .bind(after)
                .bind(BATCH)
                .fetch_one(&mut *db)
                .await?;
        longest = longest.max(step.elapsed().as_secs_f64());
        all += i64::from(moved);
        after = last;
        if after.is_none() {
            break;
        }
    }
    ensure!(all == rows, "{all} of {rows} rows were archived");
    #[allow(clippy::cast_precision_loss, reason = "millions")]
    let count = all as f64;
    let seconds = began.elapsed().as_secs_f64();
    let computed = process::cpu_seconds(pid)? - computed;
    results.add("retention", "rows archived a second", "", &[count / seconds], Aim::More);
    results.add("retention", "server CPU of an archived row", "us", &[computed * 1e6 / count], Aim::Less);
    results.add("retention", "longest step of 1,000 rows", "ms", &[longest * 1e3], Aim::Less);
    Ok(())
}

/// All of it is past its days at once.
async fn end(db: &mut PgConnection, config: Uuid, results: &mut Results) -> Result<()> {
    sqlx::query("update JobConfig set RetentionDays = 1 where ID = $1")
        .bind(config)
        .execute(&mut *db)
        .await?;
    let began = Instant::now();
    let months: Vec<String> =
        sqlx::query_scalar("select Month from vm.expired_history() where ConfigID is null")
            .fetch_all(&mut *db)
            .await?;
    results.add("retention", "look for what is expired", "ms", &[millis(began)], Aim::Less);
    ensure!(!months.is_empty(), "no month is expired");
    let (mut detach, mut forget, mut drop) = (0.0, 0.0, 0.0);
    for month in &months {
        until_vacuumed(&mut *db, month).await?;
        let began = Instant::now();
        let detached: bool = sqlx::query_scalar("select Detached from vm.detach_expired_month($1)")
            .bind(month)
            .fetch_one(&mut *db)
            .await?;
        detach += millis(began);
        ensure!(detached, "{month} stays");
        let began = Instant::now();
        let mut after: Option<Uuid> = None;
        loop {
            after = sqlx::query_scalar("select vm.forget_removed_rows($1, $2, $3)")
                .bind(month)
                .bind(after)
                .bind(BATCH)
                .fetch_one(&mut *db)
                .await?;
            if after.is_none() {
                break;
            }
        }
        forget += millis(began);
        let began = Instant::now();
        sqlx::query("select vm.drop_removed_month($1)").bind(month).execute(&mut *db).await?;
        drop += millis(began);
    }
    results.add("retention", "month taken off JobHistory", "ms", &[detach], Aim::AtMost(1000.0));
    results.add("retention", "steps and log lines of its rows looked for", "ms", &[forget], Aim::Less);
    results.add("retention", "its table dropped, files and all", "ms", &[drop], Aim::Less);
    Ok(())
}

/// Autovacuum comes to a month that has just been filled, and a turn that meets it leaves the month to the next turn.
async fn until_vacuumed(db: &mut PgConnection, month: &str) -> Result<()> {
    let vacuum = format!("vacuum (analyze, freeze) vm.JobHistory_{month}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(vacuum)).execute(&mut *db).await?;
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
