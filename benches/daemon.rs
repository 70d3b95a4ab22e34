//! The figures of docs/BENCHMARKS.md, made by one command: `cargo bench`.
//!
//! A durable private PostgreSQL in a folder of its own, and a real daemon as a process beside it. Every figure
//! is printed with what it was measured from. `--write` puts the table into docs/BENCHMARKS.md.

#![allow(clippy::print_stdout, reason = "it is what it is for")]

use anyhow::{Context, Result, bail, ensure};
use rosterd::job::{Job, JobContext, JobError, NoPayload, Outcome};
use rosterd::postgres::embedded::{EmbeddedOptions, EmbeddedPostgres};
use sqlx::{Connection, PgConnection};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LATENCY_SAMPLES: usize = 1000;
const DRAIN_ROWS: i64 = 100_000;
const DRAIN_RUNS: usize = 3;
const IDLE: Duration = Duration::from_secs(30);
const SLEEPERS: i64 = 10_000;

fn main() -> ExitCode {
    // The daemon is this program again, with the jobs to measure.
    if std::env::args().nth(1).as_deref() == Some("run") {
        return rosterd::run(
            rosterd::jobs::built_in().register(NoopJob).register(StampJob).register(SleepJob),
        );
    }
    let runtime = tokio::runtime::Runtime::new().context("failed to start a runtime");
    match runtime.and_then(|runtime| measure(&runtime)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct NoopJob;

impl Job for NoopJob {
    const STRUCT: &'static str = "NoopJob";
    const DESCRIPTION: &'static str = "Does nothing";
    type Payload = NoPayload;

    async fn run(&self, _: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        Ok(Outcome::done())
    }
}

/// Says when it started, by the clock of the machine it shares with whoever measures.
struct StampJob;

impl Job for StampJob {
    const STRUCT: &'static str = "StampJob";
    const DESCRIPTION: &'static str = "Says when it started";
    type Payload = NoPayload;

    async fn run(&self, _: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        Ok(Outcome::with_result(now_micros()))
    }
}

struct SleepJob;

impl Job for SleepJob {
    const STRUCT: &'static str = "SleepJob";
    const DESCRIPTION: &'static str = "Waits to be cancelled";
    type Payload = NoPayload;

    async fn run(&self, ctx: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        ctx.cancelled().await;
        Err(JobError::stopped())
    }
}

fn now_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

struct Daemon(Child);

impl Daemon {
    fn start(server: &EmbeddedPostgres, folder: &Path, env: &[(&str, &str)]) -> Result<Self> {
        let log = std::fs::File::create(folder.join("daemon.log"))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--listen", "off"])
            .env("DATABASE_URL", server.url())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()?;
        Ok(Self(child))
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        // utime and stime, in hundredths of a second on Linux.
        Ok((ticks(11) + ticks(12)) / 100.0)
    }

    fn rss_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("rosterd-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut options = EmbeddedOptions::new(folder.join("state"));
    options.extra_settings = vec![("shared_buffers".to_owned(), "1GB".to_owned())];
    let server = EmbeddedPostgres::start(&options)?;
    let outcome = runtime.block_on(measure_on(&server, &folder));
    drop(server);
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

async fn measure_on(server: &EmbeddedPostgres, folder: &Path) -> Result<()> {
    let mut db = PgConnection::connect_with(&server.connect_options()).await?;
    let daemon = Daemon::start(server, folder, &[])?;
    wait(&mut db, "select to_regclass('vm.jobhistory') is not null").await?;
    // The search path of the database counts from the next connection on.
    let mut db = PgConnection::connect_with(&server.connect_options()).await?;
    wait(&mut db, "select exists (select from Runner)").await?;
    sqlx::raw_sql(
        "insert into Organization (Code) values ('BENCH');
         insert into JobConfig (JobID, OrganizationID, MaxInstances) select j.ID, o.ID, 0 from Job j, Organization o",
    )
    .execute(&mut db)
    .await?;

    let commit = commit_rate(&mut db).await?;
    println!("single-row commits by one connection: {commit:.0}/s");
    let latency = latency(&mut db).await?;
    println!("latency done");
    drop(daemon);
    let (queries, cpu, idle_rss) = idle(server, folder).await?;
    println!("idle done");
    let mut rates = Vec::new();
    for run in 1..=DRAIN_RUNS {
        let rate = drain(&mut db, server, folder).await?;
        println!("drain {run}: {rate:.0} jobs/s");
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    let sleepers = sleepers(&mut db, server, folder).await?;

    let settings: String = sqlx::query_scalar(
        "select string_agg(name || ' = ' || current_setting(name), ', ' order by name) from pg_settings
         where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'autovacuum', 'wal_level')",
    )
    .fetch_one(&mut db)
    .await?;
    let mut table = String::new();
    let (major, minor) = server.version();
    writeln!(
        table,
        "PostgreSQL {major}.{minor} ({settings}), Unix socket, on the same machine: {}.",
        machine()
    )?;
    writeln!(table, "One connection committed {commit:.0} single-row INSERTs a second just before.\n")?;
    writeln!(table, "| figure | measured | aim |\n|---|---|---|")?;
    writeln!(
        table,
        "| INSERT call to job's first line, idle runner, {LATENCY_SAMPLES} samples: p50 / p95 / p99 | {:.2} / {:.2} / {:.2} ms | p50 <= 5 ms |",
        percentile(&latency, 50),
        percentile(&latency, 95),
        percentile(&latency, 99)
    )?;
    writeln!(
        table,
        "| no-op jobs drained from {DRAIN_ROWS} pending rows, median of {DRAIN_RUNS} (min, max) | {:.0}/s ({:.0}, {:.0}) | >= 10,000/s |",
        rates[DRAIN_RUNS / 2],
        rates[0],
        rates[DRAIN_RUNS - 1]
    )?;
    writeln!(table, "| idle: transactions/s, over {} s | {queries:.2} | <= 2 |", IDLE.as_secs())?;
    writeln!(table, "| idle: CPU of the daemon | {:.2} % of one core | |", cpu * 100.0)?;
    writeln!(table, "| idle: RSS of the daemon | {idle_rss:.0} MiB | |")?;
    writeln!(table, "| RSS of the daemon with {SLEEPERS} jobs asleep | {sleepers:.0} MiB | |")?;
    println!("\n{table}");
    if std::env::args().any(|arg| arg == "--write") {
        write_table(&table)?;
    }
    Ok(())
}

async fn commit_rate(db: &mut PgConnection) -> Result<f64> {
    sqlx::raw_sql("create table if not exists bench_commit (n int)").execute(&mut *db).await?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(2) {
        sqlx::query("insert into bench_commit values (1)").execute(&mut *db).await?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// Milliseconds from the INSERT call to the job's first line, sorted. The next INSERT follows when the row has
/// ended and the runner is idle again.
async fn latency(db: &mut PgConnection) -> Result<Vec<f64>> {
    let config: uuid::Uuid = config_of(db, "StampJob").await?;
    let mut samples = Vec::with_capacity(LATENCY_SAMPLES);
    for n in 0..LATENCY_SAMPLES + 50 {
        let before = now_micros();
        let id: uuid::Uuid =
            sqlx::query_scalar("insert into JobHistory (ConfigID, StatusID) values ($1, 1) returning ID")
                .bind(config)
                .fetch_one(&mut *db)
                .await?;
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
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        ensure!(started >= before, "a job started before it was inserted");
        // The first ones warm the caches.
        if n >= 50 {
            samples.push(f64::from(u32::try_from(started - before)?) / 1000.0);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples)
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Transactions a second of the whole database, and the daemon's share of a core and its memory, while nothing
/// happens. Asked from another database, so that our own questions do not count; sessions report what they did
/// with up to ten seconds' delay, so it waits before it begins.
async fn idle(server: &EmbeddedPostgres, folder: &Path) -> Result<(f64, f64, f64)> {
    const COUNT: &str = "select xact_commit + xact_rollback from pg_stat_database where datname = 'rosterd'";
    let daemon = Daemon::start(server, folder, &[])?;
    let mut elsewhere = PgConnection::connect_with(&server.connect_options().database("postgres")).await?;
    tokio::time::sleep(Duration::from_secs(25)).await;
    let before: i64 = sqlx::query_scalar(COUNT).fetch_one(&mut elsewhere).await?;
    let (began, cpu) = (Instant::now(), daemon.cpu_seconds()?);
    tokio::time::sleep(IDLE).await;
    let after: i64 = sqlx::query_scalar(COUNT).fetch_one(&mut elsewhere).await?;
    let seconds = began.elapsed().as_secs_f64();
    let transactions = f64::from(i32::try_from(after - before)?);
    Ok((transactions / seconds, (daemon.cpu_seconds()? - cpu) / seconds, daemon.rss_mib()?))
}

/// Rows a second from the first start to the last end.
async fn drain(db: &mut PgConnection, server: &EmbeddedPostgres, folder: &Path) -> Result<f64> {
    let config = config_of(db, "NoopJob").await?;
    let began: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *db).await?;
    sqlx::query("insert into JobHistory (ConfigID, StatusID) select $1, 1 from generate_series(1, $2)")
        .bind(config)
        .bind(DRAIN_ROWS)
        .execute(&mut *db)
        .await?;
    for statement in ["vacuum analyze JobHistory", "checkpoint"] {
        sqlx::raw_sql(statement).execute(&mut *db).await?;
    }
    let _daemon = Daemon::start(server, folder, &[])?;
    let done = loop {
        let left: bool = sqlx::query_scalar(
            "select exists (select from JobHistory where Ready) or exists (select from Claim where Open > 0)",
        )
        .fetch_one(&mut *db)
        .await?;
        if !left {
            break sqlx::query_as::<_, (i64, i64, f64)>(
                "select count(*), count(*) filter (where StatusID = 3 and Attempt = 1),
                   extract(epoch from max(FinishedDate) - min(StartedDate))::float8
                 from JobHistory where CreatedDate > $1",
            )
            .bind(began)
            .fetch_one(&mut *db)
            .await?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let (rows, completed, seconds) = done;
    if rows != DRAIN_ROWS || completed != DRAIN_ROWS {
        bail!("{rows} rows, {completed} of them completed at the first attempt; {DRAIN_ROWS} were inserted");
    }
    Ok(f64::from(i32::try_from(rows)?) / seconds)
}

async fn sleepers(db: &mut PgConnection, server: &EmbeddedPostgres, folder: &Path) -> Result<f64> {
    let config = config_of(db, "SleepJob").await?;
    let workers = SLEEPERS.to_string();
    let daemon = Daemon::start(server, folder, &[("ROSTERD__ENGINE__WORKERS", workers.as_str())])?;
    sqlx::query("insert into JobHistory (ConfigID, StatusID) select $1, 1 from generate_series(1, $2)")
        .bind(config)
        .bind(SLEEPERS)
        .execute(&mut *db)
        .await?;
    wait(db, "select (select coalesce(sum(Open), 0) from Claim) = 10000").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    daemon.rss_mib()
}

async fn config_of(db: &mut PgConnection, job: &str) -> Result<uuid::Uuid> {
    Ok(sqlx::query_scalar("select c.ID from JobConfig c join Job j on j.ID = c.JobID where j.Struct = $1")
        .bind(job)
        .fetch_one(db)
        .await?)
}

async fn wait(db: &mut PgConnection, question: &'static str) -> Result<()> {
    let began = Instant::now();
    while !sqlx::query_scalar::<_, bool>(question).fetch_one(&mut *db).await? {
        ensure!(began.elapsed() < Duration::from_secs(60), "waited in vain: {question}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let gib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(0.0, |kib| kib / 1024.0 / 1024.0);
    format!(
        "{cores} cores ({}), {gib:.0} GiB, shared with the daemon and this bench",
        model.trim_matches([' ', '\t', ':'])
    )
}

/// Between the marks of docs/BENCHMARKS.md.
fn write_table(table: &str) -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/BENCHMARKS.md");
    let text = std::fs::read_to_string(&path)?;
    let (begin, end) = ("<!-- bench: begin -->\n", "<!-- bench: end -->");
    let (head, rest) = text.split_once(begin).context("the begin mark is missing in docs/BENCHMARKS.md")?;
    let (_, tail) = rest.split_once(end).context("the end mark is missing in docs/BENCHMARKS.md")?;
    std::fs::write(&path, format!("{head}{begin}{table}{end}{tail}"))?;
    println!("written to {}", path.display());
    Ok(())
}
