//! How fast pending rows become finished ones, and where the time goes.

use crate::figures::{Aim, Curve, Results, percentile_of, ratios};
use crate::process;
use crate::world::{Daemon, World, config_of, insert_rows, settle_down};
use anyhow::{Result, ensure};
use sqlx::PgConnection;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

pub(super) const ROWS: i64 = 100_000;
const ROUNDS: usize = 5;
/// `engine.claim_batch`; 500 is the default.
const BATCHES: &[usize] = &[50, 100, 250, 500, 1000, 2000];

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut rates: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut alone = Vec::new();
    for round in 0..if world.quick { 1 } else { ROUNDS } {
        for runners in [1, 2, 4] {
            // Four are only for the plot.
            if runners == 4 && (round > 1 || world.quick) {
                continue;
            }
            let drained = drain(world, runners, &[]).await?;
            println!("  {runners} runners: {:.0} jobs/s", drained.rate);
            rates.entry(runners).or_default().push(drained.rate);
            if runners == 1 {
                alone.push(drained);
            }
        }
    }
    results.add(
        "drain",
        "no-op jobs drained from 100,000 pending rows, one runner",
        "/s",
        &rates[&1],
        Aim::AtLeast(30_000.0),
    );
    results.add("drain", "the same, two runners", "/s", &rates[&2], Aim::More);
    let pairs = ratios(&rates[&2], &rates[&1]);
    results.add("drain", "two runners against one, in pairs", "", &pairs, Aim::AtLeast(1.0));
    let db = world.fresh_database("drain").await?;
    let fresh = drain_and_drop(world, db, 1, &[]).await?;
    let name = "one runner, in a database that has run nothing yet and was analyzed with the rows in it";
    results.add("drain", name, "/s", &[fresh.rate], Aim::More);
    let of = |take: fn(&Drained) -> f64| alone.iter().map(take).collect::<Vec<f64>>();
    results.add("drain", "WAL", "bytes/job", &of(|drained| drained.wal), Aim::Less);
    results.add("drain", "CPU of the daemon", "us/job", &of(|drained| drained.daemon), Aim::Less);
    results.add("drain", "CPU of the server", "us/job", &of(Drained::server), Aim::Less);

    let mut batches = Vec::new();
    for batch in BATCHES {
        if world.quick && ![100, 500].contains(batch) {
            continue;
        }
        let rate = if *batch == 500 {
            percentile_of(&rates[&1], 50)
        } else {
            let (size, workers) = (batch.to_string(), (2 * batch).max(1000).to_string());
            let env = [
                ("ROSTERD__ENGINE__CLAIM_BATCH", size.as_str()),
                ("ROSTERD__ENGINE__WORKERS", workers.as_str()),
            ];
            drain(world, 1, &env).await?.rate
        };
        println!("  claim_batch {batch}: {rate:.0} jobs/s");
        batches.push((f64::from(u32::try_from(*batch)?), rate));
    }
    let curve = |name: &str, points| vec![Curve { name: name.to_owned(), points }];
    results.curves.insert("throughput-by-batch".to_owned(), curve("one runner", batches));
    let mut by_runners = Vec::new();
    for (runners, rates) in &rates {
        by_runners.push((f64::from(u32::try_from(*runners)?), percentile_of(rates, 50)));
    }
    results.curves.insert("throughput-by-runners".to_owned(), curve("median", by_runners));
    profile(world, &alone, results).await
}

/// A drain, and what each job of it cost: microseconds of processor, bytes of WAL.
pub(super) struct Drained {
    pub(super) rate: f64,
    wal: f64,
    daemon: f64,
    sessions: BTreeMap<String, f64>,
    statements: Vec<Vec<String>>,
}

impl Drained {
    fn server(&self) -> f64 {
        self.sessions.values().sum()
    }
}

/// All rows are pending before the daemons start; from the first row's start to the last row's end.
pub(super) async fn drain(world: &World, runners: usize, env: &[(&str, &str)]) -> Result<Drained> {
    let db = world.database("drain").await?;
    drain_and_drop(world, db, runners, env).await
}

async fn drain_and_drop(
    world: &World,
    db: PgConnection,
    runners: usize,
    env: &[(&str, &str)],
) -> Result<Drained> {
    let drained = drain_in(world, db, runners, env).await;
    world.drop_database("drain").await?;
    drained
}

async fn drain_in(
    world: &World,
    mut db: PgConnection,
    runners: usize,
    env: &[(&str, &str)],
) -> Result<Drained> {
    let config = config_of(&mut db, "NoopJob").await?;
    let inserted: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut db).await?;
    insert_rows(&mut db, config, ROWS).await?;
    settle_down(&mut db).await?;
    // With the clock of the processes that stay, so that only this drain is counted.
    let before = server_cpu(&mut db).await?;
    let wal: i64 = sqlx::query_scalar("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        .fetch_one(&mut db)
        .await?;
    let daemons = (0..runners).map(|_| world.daemon("drain", env)).collect::<Result<Vec<Daemon>>>()?;
    let began = Instant::now();
    loop {
        let left: bool = sqlx::query_scalar(
            "select exists (select from JobHistory where Ready) or exists (select from Claim where Open > 0)",
        )
        .fetch_one(&mut db)
        .await?;
        if !left {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(180), "the rows are not drained");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let per_job = 1e6 / f64::from(i32::try_from(ROWS)?);
    let mut daemon = 0.0;
    for one in &daemons {
        daemon += one.cpu_seconds()? * per_job;
    }
    let wal_after: i64 = sqlx::query_scalar("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        .fetch_one(&mut db)
        .await?;
    let mut sessions: BTreeMap<String, f64> = BTreeMap::new();
    for (pid, (name, seconds)) in server_cpu(&mut db).await? {
        let earlier = before.get(&pid).map_or(0.0, |(_, seconds)| *seconds);
        *sessions.entry(name).or_default() += (seconds - earlier) * per_job;
    }
    let statements = statements(world, &mut db).await?;
    drop(daemons);
    let (rows, completed, seconds): (i64, i64, f64) = sqlx::query_as(
        "select count(*), count(*) filter (where StatusID = 3 and Attempt = 1),
           extract(epoch from max(FinishedDate) - min(StartedDate))::float8
         from JobHistory where CreatedDate > $1",
    )
    .bind(inserted)
    .fetch_one(&mut db)
    .await?;
    ensure!(
        rows == ROWS && completed == ROWS,
        "{rows} rows, {completed} of them completed at the first attempt; {ROWS} were inserted"
    );
    Ok(Drained {
        rate: f64::from(i32::try_from(rows)?) / seconds,
        wal: f64::from(i32::try_from(wal_after - wal)?) / f64::from(i32::try_from(ROWS)?),
        daemon,
        sessions,
        statements,
    })
}

/// Processor seconds of each process of the server but our own session, and what it is there for.
async fn server_cpu(db: &mut PgConnection) -> Result<HashMap<i32, (String, f64)>> {
    let database: String = sqlx::query_scalar("select current_database()::text").fetch_one(&mut *db).await?;
    server_cpu_of(db, &[database]).await
}

/// The same of the sessions of these databases.
pub(super) async fn server_cpu_of(
    db: &mut PgConnection,
    databases: &[String],
) -> Result<HashMap<i32, (String, f64)>> {
    let processes: Vec<(i32, String)> = sqlx::query_as(
        "select pid, coalesce(nullif(application_name, ''), backend_type) from pg_stat_activity
         where pid <> pg_backend_pid() and (datname is null or datname = any($1))",
    )
    .bind(databases)
    .fetch_all(db)
    .await?;
    let mut cpu = HashMap::new();
    for (pid, name) in processes {
        // Workers of autovacuum come and go.
        if let Ok(seconds) = process::session_seconds(u32::try_from(pid)?) {
            cpu.insert(pid, (name, seconds));
        }
    }
    Ok(cpu)
}

/// What `pg_stat_statements` counted in this database, the most expensive first. Empty unless it was switched on.
async fn statements(world: &World, db: &mut PgConnection) -> Result<Vec<Vec<String>>> {
    if !world.counts_statements {
        return Ok(Vec::new());
    }
    let database: String = sqlx::query_scalar("select current_database()::text").fetch_one(db).await?;
    let mut admin = world.connect("postgres").await?;
    let rows: Vec<(String, i64, f64, f64, i64, i64)> = sqlx::query_as(
        r"select left(regexp_replace(s.query, '\s+', ' ', 'g'), 60), s.calls, s.total_exec_time, s.mean_exec_time,
            s.rows, s.wal_bytes::bigint
          from pg_stat_statements s join pg_database d on d.oid = s.dbid
          where d.datname = $1 and s.query ~* 'jobhistory|claim|jobconfig|runner|hint'
          order by s.total_exec_time desc limit 8",
    )
    .bind(database)
    .fetch_all(&mut admin)
    .await?;
    let per_job = |total: f64| total / f64::from(u32::try_from(ROWS).unwrap_or(u32::MAX));
    let line = |(query, calls, total, mean, rows, wal): (String, i64, f64, f64, i64, i64)| {
        #[allow(clippy::cast_precision_loss, reason = "megabytes")]
        let wal = per_job(wal as f64);
        vec![
            query.replace('|', "\\|"),
            calls.to_string(),
            rows.to_string(),
            format!("{mean:.3} ms"),
            format!("{:.1} us", per_job(total) * 1000.0),
            format!("{wal:.0}"),
        ]
    };
    Ok(rows.into_iter().map(line).collect())
}

/// Once more with every statement counted, which costs a little, so that its rate is no figure.
async fn profile(world: &World, alone: &[Drained], results: &mut Results) -> Result<()> {
    let db = world.database("drain").await?;
    if world.counts_statements {
        world.set("drain", "pg_stat_statements.track = 'top'").await?;
    }
    let counted = drain_in(world, db, 1, &[]).await;
    world.drop_database("drain").await?;
    let counted = counted?;
    let mut table =
        vec![["what", "calls", "rows", "mean", "a job", "WAL bytes a job"].map(str::to_owned).to_vec()];
    table.extend(counted.statements);
    let mut cpu: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for drained in alone {
        cpu.entry("CPU: daemon").or_default().push(drained.daemon);
        for (name, micros) in &drained.sessions {
            cpu.entry(name).or_default().push(*micros);
        }
    }
    for (name, micros) in cpu {
        let micros = percentile_of(&micros, 50);
        if micros >= 0.1 {
            let name =
                if name.starts_with("CPU") { name.to_owned() } else { format!("CPU: server, `{name}`") };
            let empty = String::new;
            table.push(vec![name, empty(), empty(), empty(), format!("{micros:.1} us"), empty()]);
        }
    }
    results.profile = table;
    Ok(())
}
