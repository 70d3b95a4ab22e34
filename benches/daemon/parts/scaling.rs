//! What the model of docs/scaling.md is fed with, and whether what it says then comes true.
//!
//! The costs are slopes: each is the difference of two runs of different size, so that starting a daemon, connecting and
//! planning for the first time are in none of them. The model's word is taken before the tries it is compared with.

use super::drain::server_cpu_of;
use crate::figures::{Results, percentile_of};
use crate::model::{self, Costs, PerBatch};
use crate::process;
use crate::tables::{Check, Scaling};
use crate::world::{Daemon, World, config_of, insert_rows, settle_down, wait};
use anyhow::{Result, ensure};
use sqlx::{Connection, PgConnection};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

const USUAL_BATCH: f64 = 500.0;
const SMALL_BATCH: f64 = 20.0;
const SINGLE: &str = "insert into JobHistory (ConfigID, StatusID) values ($1, 1)";

/// How much is run: everything is a multiple of this many rows.
fn unit(world: &World) -> i64 {
    if world.quick { 2000 } else { 10_000 }
}

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let unit = unit(world);
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| count(cores.get()));
    let costs = costs(world, unit, cores).await?;
    println!("  {costs:?}");
    let mut checks = Vec::new();
    for (runners, databases, rows) in [(1, 1, 2 * unit), (2, 1, 10 * unit), (2, 2, 30 * unit)] {
        let predicted = model::drain_rate(&costs, cores, count(runners), USUAL_BATCH);
        let name = |count: usize, of: &str| format!("{count} {of}{}", if count == 1 { "" } else { "s" });
        let what =
            format!("drain of {rows} rows, {} on {}", name(runners, "runner"), name(databases, "database"));
        let tried = drain(world, Shape { runners, databases, rows, batch: 500 }).await?;
        say(&mut checks, Check { what, unit: "/s".to_owned(), predicted, measured: tried.rate });
    }
    for check in flow(world, &costs, cores).await? {
        say(&mut checks, check);
    }
    results.scaling = Some(Scaling { made: String::new(), under_load: false, cores, costs, checks });
    Ok(())
}

fn say(checks: &mut Vec<Check>, check: Check) {
    println!(
        "  {}: predicted {:.0} {unit}, measured {:.0} {unit} ({:+.0} %)",
        check.what,
        check.predicted,
        check.measured,
        check.error_percent(),
        unit = check.unit
    );
    checks.push(check);
}

/// Counts here are small.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn rows_f64(rows: i64) -> f64 {
    f64::from(i32::try_from(rows).unwrap_or(i32::MAX))
}

async fn costs(world: &World, unit: i64, cores: f64) -> Result<Costs> {
    let shape = |rows, batch| Shape { runners: 1, databases: 1, rows, batch };
    let short = drain(world, shape(unit, 500)).await?;
    let long = drain(world, shape(6 * unit, 500)).await?;
    let (fewest, few) = (drain(world, shape(unit / 4, 20)).await?, drain(world, shape(unit, 20)).await?);
    let slope = |more: f64, less: f64, rows: i64| ((more - less) * 1e6 / rows_f64(rows)).max(0.0);
    let session = |name: &str| {
        let of = |drained: &Drained| drained.server.get(name).copied().unwrap_or(0.0);
        PerBatch::through(
            (SMALL_BATCH, slope(of(&few), of(&fewest), unit - unit / 4)),
            (USUAL_BATCH, slope(of(&long), of(&short), 5 * unit)),
        )
    };
    let others = |drained: &Drained| {
        let ours = ["rosterd claim", "rosterd report"];
        drained.server.iter().filter(|(name, _)| !ours.contains(&name.as_str())).map(|(_, cpu)| cpu).sum()
    };
    let inserted = inserts(world, unit).await?;
    let idle = idle(world).await?;
    let mut costs = Costs {
        insert: inserted.cost,
        claim: session("rosterd claim"),
        report: session("rosterd report"),
        background_us: slope(others(&long), others(&short), 5 * unit),
        // Rows stay where they are.
        archive_us: 0.0,
        runner_us: slope(long.daemon, short.daemon, 5 * unit),
        idle_server_us: idle.0,
        idle_runner_us: idle.1,
        flush_us: inserted.flush_us,
        insert_wal_bytes: inserted.wal,
        run_wal_bytes: long.wal,
        history_bytes: long.bytes,
        efficiency: 1.0,
    };
    let mut rates = vec![long.rate];
    while rates.len() < if world.quick { 1 } else { 3 } {
        rates.push(drain(world, shape(6 * unit, 500)).await?.rate);
    }
    let bound = model::drain_bound(&costs, cores, 1.0, USUAL_BATCH);
    costs.efficiency = (percentile_of(&rates, 50) / bound).min(1.0);
    Ok(costs)
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    runners: usize,
    databases: usize,
    /// Of all databases together.
    rows: i64,
    batch: usize,
}

#[derive(Debug)]
struct Drained {
    rate: f64,
    /// Processor seconds of the server's processes by what they are there for.
    server: BTreeMap<String, f64>,
    /// Processor seconds of all daemons.
    daemon: f64,
    /// Bytes of WAL a row.
    wal: f64,
    /// Bytes on disk a row, when all are finished.
    bytes: f64,
}

/// All rows are pending before the daemons start; from the first row's start to the last row's end in any database.
async fn drain(world: &World, shape: Shape) -> Result<Drained> {
    ensure!(shape.runners.is_multiple_of(shape.databases), "as many runners for each database");
    let names: Vec<String> = (0..shape.databases).map(|n| format!("scaling_{n}")).collect();
    let each = shape.rows / i64::try_from(shape.databases)?;
    let mut sessions = Vec::new();
    for name in &names {
        let mut db = world.database(name).await?;
        let before: i64 = sqlx::query_scalar("select count(*) from JobHistory").fetch_one(&mut db).await?;
        let config = config_of(&mut db, "NoopJob").await?;
        let empty = size(&mut db).await?;
        insert_rows(&mut db, config, each).await?;
        settle_down(&mut db).await?;
        sessions.push((db, before, empty));
    }
    let drained = drain_in(world, shape, &names, &mut sessions).await;
    drop(sessions);
    for name in &names {
        world.drop_database(name).await?;
    }
    drained
}

async fn drain_in(
    world: &World,
    shape: Shape,
    names: &[String],
    sessions: &mut [(PgConnection, i64, f64)],
) -> Result<Drained> {
    let mut admin = world.connect("postgres").await?;
    let before = server_cpu_of(&mut admin, names).await?;
    let wal = wal(&mut admin).await?;
    let (batch, workers) = (shape.batch.to_string(), (2 * shape.batch).max(1000).to_string());
    let env =
        [("ROSTERD__ENGINE__CLAIM_BATCH", batch.as_str()), ("ROSTERD__ENGINE__WORKERS", workers.as_str())];
    let mut daemons = Vec::new();
    for name in names.iter().cycle().take(shape.runners) {
        daemons.push(world.daemon(name, &env)?);
    }
    let began = Instant::now();
    for (db, _, _) in sessions.iter_mut() {
        let open =
            "select exists (select from JobHistory where Ready) or exists (select from Claim where Open > 0)";
        while sqlx::query_scalar::<_, bool>(open).fetch_one(&mut *db).await? {
            ensure!(began.elapsed() < Duration::from_secs(600), "the rows are not drained");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let daemon = daemons.iter().map(Daemon::cpu_seconds).sum::<Result<f64>>()?;
    let mut server: BTreeMap<String, f64> = BTreeMap::new();
    for (pid, (name, seconds)) in server_cpu_of(&mut admin, names).await? {
        let earlier = before.get(&pid).map_or(0.0, |(_, seconds)| *seconds);
        *server.entry(name).or_default() += seconds - earlier;
    }
    let wal = (self::wal(&mut admin).await? - wal) / rows_f64(shape.rows);
    drop(daemons);
    let (mut first, mut last, mut bytes) = (f64::MAX, f64::MIN, 0.0);
    for (db, before, empty) in sessions.iter_mut() {
        let (rows, completed, start, end): (i64, i64, f64, f64) = sqlx::query_as(
            "select count(*), count(*) filter (where StatusID = 3 and Attempt = 1),
               extract(epoch from min(StartedDate))::float8, extract(epoch from max(FinishedDate))::float8
             from (select * from JobHistory order by ID offset $1) h",
        )
        .bind(*before)
        .fetch_one(&mut *db)
        .await?;
        ensure!(rows == completed, "{rows} rows, {completed} of them completed at the first attempt");
        (first, last) = (first.min(start), last.max(end));
        settle_down(db).await?;
        bytes += (size(db).await? - *empty) / rows_f64(shape.rows);
    }
    Ok(Drained { rate: rows_f64(shape.rows) / (last - first), server, daemon, wal, bytes })
}

async fn size(db: &mut PgConnection) -> Result<f64> {
    Ok(sqlx::query_scalar("select pg_total_relation_size('JobHistory')::float8").fetch_one(db).await?)
}

async fn wal(db: &mut PgConnection) -> Result<f64> {
    Ok(sqlx::query_scalar("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8")
        .fetch_one(db)
        .await?)
}

#[derive(Debug)]
struct Inserted {
    cost: PerBatch,
    wal: f64,
    flush_us: f64,
}

/// By one session: a transaction a row, and many rows in one statement.
async fn inserts(world: &World, unit: i64) -> Result<Inserted> {
    let mut db = world.database("scaling_inserts").await?;
    let mut admin = world.connect("postgres").await?;
    let config = config_of(&mut db, "NoopJob").await?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut db).await?;
    let used = || process::session_seconds(u32::try_from(pid).unwrap_or_default());
    let singles = unit / 4;
    // The first ones plan.
    for _ in 0..100 {
        sqlx::query(SINGLE).bind(config).execute(&mut db).await?;
    }
    let began = used()?;
    for _ in 0..singles {
        sqlx::query(SINGLE).bind(config).execute(&mut db).await?;
    }
    let single = (used()? - began) * 1e6 / rows_f64(singles);
    settle_down(&mut db).await?;
    let (began, written) = (used()?, wal(&mut admin).await?);
    insert_rows(&mut db, config, 2 * unit).await?;
    let bulk = (used()? - began) * 1e6 / rows_f64(2 * unit);
    let wal = (wal(&mut admin).await? - written) / rows_f64(2 * unit);
    let flush_us = flush(&mut db).await?;
    drop(db);
    world.drop_database("scaling_inserts").await?;
    Ok(Inserted { cost: PerBatch::through((1.0, single), (rows_f64(2 * unit), bulk)), wal, flush_us })
}

/// The median of commits that write almost nothing, with the way of their statement.
async fn flush(db: &mut PgConnection) -> Result<f64> {
    sqlx::raw_sql("create table public.flushed (n int)").execute(&mut *db).await?;
    let mut times = Vec::new();
    for n in 0..300 {
        let began = Instant::now();
        sqlx::query("insert into public.flushed values ($1)").bind(n).execute(&mut *db).await?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentile_of(&times, 50))
}

/// Microseconds of the server and of the daemon in each second of an idle runner.
async fn idle(world: &World) -> Result<(f64, f64)> {
    let name = "scaling_idle".to_owned();
    let mut db = world.database(&name).await?;
    let mut admin = world.connect("postgres").await?;
    let daemon = world.idle_daemon(&mut db, &name, &[]).await?;
    db.close().await?;
    let names = [name];
    // Of the sessions only: what the server does besides is not the runner's.
    let sessions = async |admin: &mut PgConnection| -> Result<f64> {
        let all = server_cpu_of(admin, &names).await?;
        Ok(all.values().filter(|(name, _)| name.starts_with("rosterd")).map(|(_, cpu)| cpu).sum())
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (server, used, began) = (sessions(&mut admin).await?, daemon.cpu_seconds()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(if world.quick { 10 } else { 60 })).await;
    let seconds = began.elapsed().as_secs_f64();
    let idle = (
        (sessions(&mut admin).await? - server) / seconds * 1e6,
        (daemon.cpu_seconds()? - used) / seconds * 1e6,
    );
    drop(daemon);
    world.drop_database("scaling_idle").await?;
    Ok(idle)
}

/// Rows that come as the daemon runs them, at a tenth and at half of what it could drain: what the server works for each.
async fn flow(world: &World, costs: &Costs, cores: f64) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for share in [0.1, 0.5] {
        let rate = share * model::drain_rate(costs, cores, 1.0, USUAL_BATCH);
        let name = "scaling_flow".to_owned();
        let mut db = world.database(&name).await?;
        let config = config_of(&mut db, "NoopJob").await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut db).await?;
        let daemon = world.idle_daemon(&mut db, &name, &[]).await?;
        let mut admin = world.connect("postgres").await?;
        let names = [name];
        let before = server_cpu_of(&mut admin, &names).await?;
        let ours = process::session_seconds(u32::try_from(pid)?)?;
        let inserted = arrive(&mut db, config, rate, world.quick).await?;
        let inserting = process::session_seconds(u32::try_from(pid)?)? - ours;
        let mut running = 0.0;
        for (pid, (name, seconds)) in server_cpu_of(&mut admin, &names).await? {
            if name == "rosterd claim" || name == "rosterd report" {
                running += seconds - before.get(&pid).map_or(0.0, |(_, seconds)| *seconds);
            }
        }
        drop((daemon, db));
        world.drop_database("scaling_flow").await?;
        // The same sessions in the model. The share of the background is not in either. Jobs that do nothing end
        // together as they came.
        let batch = costs.claim.batch_at(inserted.rate, costs.flush_us, inserted.at_once, USUAL_BATCH);
        let reported = costs.report.batch_at(inserted.rate, costs.flush_us, inserted.at_once, 1000.0);
        let predicted =
            costs.insert.a_row(inserted.at_once) + costs.claim.a_row(batch) + costs.report.a_row(reported);
        checks.push(Check {
            what: format!("server for each of {:.0} jobs/s, {:.0} a INSERT", inserted.rate, inserted.at_once),
            unit: "us".to_owned(),
            predicted,
            measured: (inserting + running) * 1e6 / inserted.rows,
        });
    }
    Ok(checks)
}

#[derive(Debug)]
struct Arrived {
    rows: f64,
    /// A second.
    rate: f64,
    at_once: f64,
}

/// An INSERT every ten milliseconds, or as soon as the one before is done.
async fn arrive(db: &mut PgConnection, config: Uuid, rate: f64, quick: bool) -> Result<Arrived> {
    const EVERY: Duration = Duration::from_millis(10);
    let time = Duration::from_secs(if quick { 5 } else { 20 });
    #[allow(clippy::cast_possible_truncation, reason = "some hundred rows")]
    let at_once = (rate * EVERY.as_secs_f64()).round().max(1.0) as i64;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    let mut rows = 0;
    while began.elapsed() < time {
        ticks.tick().await;
        insert_rows(db, config, at_once).await?;
        rows += at_once;
    }
    let rate = rows_f64(rows) / began.elapsed().as_secs_f64();
    // The last of them are still under way.
    wait(db, "select not exists (select from JobHistory where StatusID <> 3)").await?;
    Ok(Arrived { rows: rows_f64(rows), rate, at_once: rows_f64(at_once) })
}
