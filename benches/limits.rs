//! How exactly, how fast and how fairly sources are called: the figures of docs/BENCHMARKS.md about limits. Run with
//! `cargo bench --bench limits`; `-- --write` puts the table into docs/BENCHMARKS.md.
//!
//! A durable private PostgreSQL, three real daemons that are killed, `HttpJob`s and an API whose kernel stamps each
//! call when it arrives.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, reason = "it measures")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::unchecked_time_subtraction,
    reason = "figures for people"
)]

#[path = "../tests/it/support/stamping_api.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
mod stamping_api;

use anyhow::{Context, Result, ensure};
use rosterd::config_rows::{AuthInfo, SourceConfig};
use rosterd::history::HistoryId;
use rosterd::limits::SourceLimiter;
use rosterd::postgres::connect::Limits;
use rosterd::postgres::database::Database;
use rosterd::postgres::embedded::{EmbeddedOptions, EmbeddedPostgres};
use sqlx::{Connection, PgConnection};
use stamping_api::{Arrival, StampingApi};
use std::fmt::Write as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const DAEMONS: usize = 3;
/// An edit must act within this time, so the looser of both rules counts that long.
const EDIT_ACTS: Duration = Duration::from_secs(1);
const CALLS: usize = 100_000;
/// The shortest of [`SOURCES`], in milliseconds.
const SHORTEST_DELAY: f64 = 5.0;
/// Turns of each kind, and rows in each.
const CLAIM_ROUNDS: usize = 4;
const CLAIM_ROWS: usize = 240;

/// Delay in milliseconds, Concurrency, and how long the API takes for a call, in milliseconds.
const SOURCES: [(f64, usize, u64); 20] = [
    (0.0, 1, 20),
    (0.0, 2, 30),
    (0.0, 4, 30),
    (0.0, 8, 50),
    (0.0, 3, 20),
    (5.0, 4, 5),
    (5.0, 8, 10),
    (5.0, 16, 50),
    (5.0, 2, 4),
    (7.5, 4, 10),
    (10.0, 4, 10),
    (10.0, 1, 2),
    (10.0, 10, 50),
    (20.0, 2, 10),
    (20.0, 4, 30),
    (50.0, 1, 10),
    (50.0, 3, 50),
    (100.0, 1, 20),
    (100.0, 2, 100),
    (250.0, 2, 100),
];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("run") {
        return rosterd::run(rosterd::jobs::built_in());
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

fn measure(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let server = EmbeddedPostgres::start(&EmbeddedOptions::new(folder.path()))?;
    let api = StampingApi::start()?;
    let mut bench = Bench { server, api, folder: folder.path().to_owned() };
    let mut lines = Vec::new();
    // The schema is made by a daemon.
    runtime.block_on(async {
        let _daemon = bench.daemon(0, 1)?;
        let until = Instant::now() + Duration::from_secs(30);
        while sqlx::query("select 1 from vm.Runner")
            .fetch_optional(&mut bench.session().await?)
            .await
            .ok()
            .flatten()
            .is_none()
        {
            ensure!(Instant::now() < until, "the daemon did not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    })?;
    // For whoever tunes one figure and has no patience for the others.
    let only = std::env::var("ONLY").ok();
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    if wanted("alone") {
        lines.extend(bench.alone(runtime)?);
    }
    if wanted("permits") {
        lines.extend(bench.without_delay(runtime)?);
        lines.extend(bench.neighbours(runtime)?);
    }
    if wanted("claims") {
        lines.extend(bench.claims(runtime)?);
    }
    if wanted("fleet") {
        lines.extend(bench.fleet(runtime)?);
    }
    let mut table = "| figure | measured |\n|---|---|\n".to_owned();
    for (what, figure) in &lines {
        println!("{what}: {figure}");
        writeln!(table, "| {what} | {figure} |")?;
    }
    if std::env::args().any(|arg| arg == "--write") {
        write_table(&table)?;
    }
    Ok(())
}

/// Between its marks in docs/BENCHMARKS.md.
fn write_table(table: &str) -> Result<()> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/BENCHMARKS.md");
    let text = std::fs::read_to_string(&path)?;
    let (begin, end) = ("<!-- limits: begin -->\n", "<!-- limits: end -->");
    let (head, rest) = text.split_once(begin).context("the mark where the table begins")?;
    let (_, tail) = rest.split_once(end).context("the mark where the table ends")?;
    std::fs::write(&path, format!("{head}{begin}{table}{end}{tail}"))?;
    Ok(())
}

struct Bench {
    server: EmbeddedPostgres,
    api: StampingApi,
    folder: std::path::PathBuf,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Lines = Vec<(String, String)>;

impl Bench {
    fn daemon(&self, n: usize, workers: usize) -> Result<Daemon> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("daemon-{n}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--listen", "off"])
            .env("DATABASE_URL", self.server.url())
            .env("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8")
            .env("ROSTERD__ENGINE__WORKERS", workers.to_string())
            .env("ROSTERD__ENGINE__LEASE_SECONDS", "3")
            .env("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.5")
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()?;
        Ok(Daemon(child))
    }

    async fn session(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.server.connect_options()).await?)
    }

    /// A source of the API, and a configuration of `HttpJob` for it.
    async fn source(
        &self,
        db: &mut PgConnection,
        name: &str,
        delay: f64,
        concurrency: usize,
        millis: u64,
    ) -> Result<Uuid> {
        let source = sqlx::query_scalar(
            "with o as (insert into vm.Organization (Code) values ($1) returning ID),
               s as (insert into vm.SourceConfig (Source, OrganizationID, Address, AuthInfo)
                 select 'HTTP', o.ID, $2, jsonb_build_object('Delay', $3::bigint, 'Concurrency', $4::int) from o returning ID),
               c as (insert into vm.JobConfig (JobID, OrganizationID, DataInSourceConfigID, MaxInstances, Payload)
                 select j.ID, o.ID, s.ID, 0, jsonb_build_object('path', $5::text, 'repeat', 1000000)
                 from o, s, vm.Job j where j.Struct = 'HttpJob' returning ID)
             select ID from s, (select 1 from c) x",
        )
        .bind(name)
        .bind(format!("http://{}", self.api.address))
        .bind((delay * 1e6) as i64)
        .bind(i32::try_from(concurrency)?)
        .bind(format!("/{name}?millis={millis}"))
        .fetch_one(db)
        .await?;
        Ok(source)
    }

    async fn queue(&self, db: &mut PgConnection, like: &str) -> Result<()> {
        sqlx::query(
            "insert into vm.JobHistory (ConfigID, StatusID)
             select c.ID, 1 from vm.JobConfig c join vm.Organization o on o.ID = c.OrganizationID where o.Code like $1 order by o.Code",
        )
        .bind(like)
        .execute(db)
        .await?;
        Ok(())
    }

    async fn cancel_all(&self, db: &mut PgConnection) -> Result<()> {
        sqlx::query("update vm.JobHistory set StatusID = -1 where StatusID in (1, 2)")
            .execute(&mut *db)
            .await?;
        while sqlx::query_scalar::<_, i64>("select count(*) from vm.JobHistory where StatusID in (1, 2, -1)")
            .fetch_one(&mut *db)
            .await?
            > 0
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// What the runners say of calls that they were too late with, because they stood still.
    fn written_late(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for n in 0..DAEMONS {
            let log = std::fs::read_to_string(self.folder.join(format!("daemon-{n}.log")))?;
            found.extend(
                log.lines()
                    .filter(|line| line.contains("left after the end of its window"))
                    .map(str::to_owned),
            );
        }
        Ok(found)
    }

    async fn ready(&self, db: &mut PgConnection, daemons: i64) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let alive =
                sqlx::query_scalar::<_, i64>("select count(*) from vm.Runner").fetch_one(&mut *db).await;
            if alive.is_ok_and(|n| n >= daemons) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the daemons did not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One runner, a millisecond apart.
    fn alone(&mut self, runtime: &tokio::runtime::Runtime) -> Result<Lines> {
        runtime.block_on(async {
            let daemon = self.daemon(0, 10)?;
            let mut db = self.session().await?;
            self.ready(&mut db, 1).await?;
            self.source(&mut db, "alone", 1.0, 64, 20).await?;
            self.queue(&mut db, "alone").await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let (from, measured) = (now(), Duration::from_secs(8));
            tokio::time::sleep(measured).await;
            self.cancel_all(&mut db).await?;
            drop(daemon);
            let arrivals = self.api.arrivals("alone");
            let inside: Vec<_> = arrivals.iter().filter(|a| a.at >= from && a.at < from + measured).collect();
            let rate = inside.len() as f64 / measured.as_secs_f64() / 1000.0;
            let least = least_gap(&arrivals);
            let most = arrivals.iter().map(|a| a.in_flight).max().unwrap_or(0);
            ensure!(rate >= 0.9, "one runner reached {rate:.3} of the allowed rate");
            Ok(vec![(
                "one runner, Delay 1 ms, Concurrency 64 (aim: 90 %)".to_owned(),
                format!(
                    "{:.1} % of the allowed rate, least gap {least:?}, at most {most} in flight",
                    rate * 100.0
                ),
            )])
        })
    }

    /// A runner in this process.
    async fn limiter(&self, db: &mut PgConnection) -> Result<(Uuid, SourceLimiter)> {
        let limits = Limits { connect: EDIT_ACTS * 5, statement: EDIT_ACTS * 30, answer: EDIT_ACTS * 3 };
        let database = Database::new(&self.server.connect_options(), "bench", 4, limits);
        let runner = Uuid::now_v7();
        sqlx::query("insert into vm.Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ($1, 'bench', 1, '0', 20, 10)")
                .bind(runner)
                .execute(&mut *db)
                .await?;
        Ok((runner, SourceLimiter::new(database, runner)))
    }

    /// What a grant costs where there is no Delay.
    fn without_delay(&mut self, runtime: &tokio::runtime::Runtime) -> Result<Lines> {
        runtime.block_on(async {
            let mut db = self.session().await?;
            let id = self.source(&mut db, "free", 0.0, 10, 0).await?;
            let (runner, limiter) = self.limiter(&mut db).await?;
            let source = source_row(id);
            let cancel = CancellationToken::new();
            let mut times = Vec::new();
            for _ in 0..20_000 {
                let began = Instant::now();
                drop(limiter.acquire(&source, HistoryId(Uuid::nil()), &cancel).await?);
                times.push(began.elapsed());
            }
            times.sort_unstable();
            sqlx::query("delete from vm.Runner where ID = $1").bind(runner).execute(&mut db).await?;
            ensure!(times[19_800] < Duration::from_millis(1), "a permit costs {:?}", times[19_800]);
            Ok(vec![(
                "a permit of a source without Delay (aim: below 1 ms)".to_owned(),
                format!("p50 {:?}, p99 {:?}, the first {:?}", times[10_000], times[19_800], times[19_999]),
            )])
        })
    }

    /// Fifty sources, called one after the other: alone, and while two hundred callers wait for one of them.
    fn neighbours(&mut self, runtime: &tokio::runtime::Runtime) -> Result<Lines> {
        runtime.block_on(async {
            let mut db = self.session().await?;
            let mut sources = Vec::new();
            for n in 0..50 {
                sources.push(source_row(self.source(&mut db, &format!("near{n:02}"), 0.0, 2, 0).await?));
            }
            let (runner, limiter) = self.limiter(&mut db).await?;
            let cancel = CancellationToken::new();
            let mut lines = Vec::new();
            for saturated in [false, true] {
                let mut held = Vec::new();
                let mut waiting = tokio::task::JoinSet::new();
                if saturated {
                    for _ in 0..2 {
                        held.push(limiter.acquire(&sources[0], HistoryId(Uuid::nil()), &cancel).await?);
                    }
                    for _ in 0..200 {
                        let (limiter, source, cancel) = (limiter.clone(), sources[0].clone(), cancel.clone());
                        waiting.spawn(async move {
                            limiter.acquire(&source, HistoryId(Uuid::nil()), &cancel).await.map(drop)
                        });
                    }
                }
                let mut times = Vec::new();
                for _ in 0..40 {
                    for source in &sources[1..] {
                        let began = Instant::now();
                        drop(limiter.acquire(source, HistoryId(Uuid::nil()), &cancel).await?);
                        times.push(began.elapsed());
                    }
                }
                times.sort_unstable();
                let at = |part: usize| times[times.len() * part / 100];
                let what = if saturated { "with 200 callers waiting for one" } else { "alone" };
                lines.push((
                    format!("a permit of one of 49 sources in turn, {what}"),
                    format!("p50 {:?}, p95 {:?}, p99 {:?}", at(50), at(95), at(99)),
                ));
                waiting.abort_all();
            }
            sqlx::query("delete from vm.Runner where ID = $1").bind(runner).execute(&mut db).await?;
            Ok(lines)
        })
    }

    /// INSERT to start of jobs of 48 sources: alone, and while one other source is saturated and one is paused, in turns,
    /// so that both see the same machine.
    fn claims(&mut self, runtime: &tokio::runtime::Runtime) -> Result<Lines> {
        runtime.block_on(async {
            let daemon = self.daemon(9, 64)?;
            let mut db = self.session().await?;
            self.ready(&mut db, 1).await?;
            let mut sources = Vec::new();
            for n in 0..50 {
                sources.push(self.source(&mut db, &format!("claim{n:02}"), 0.0, 2, 0).await?);
            }
            let mut waited = [Vec::new(), Vec::new()];
            for round in 0..2 * CLAIM_ROUNDS {
                let disturbed = round % 2 == 1;
                if disturbed {
                    sqlx::query("select vm.push_back_source($1, 3600, false)")
                        .bind(sources[1])
                        .execute(&mut db)
                        .await?;
                    for source in [sources[0], sources[1]] {
                        for _ in 0..20 {
                            insert_claim(&mut db, source, "/saturated?millis=200", 1_000_000).await?;
                        }
                    }
                }
                let from: chrono::DateTime<chrono::Utc> =
                    sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut db).await?;
                for n in 0..CLAIM_ROWS {
                    insert_claim(&mut db, sources[2 + n % 48], "/claims", 1).await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let until = Instant::now() + Duration::from_secs(30);
                let times = loop {
                    let times: Vec<f64> = sqlx::query_scalar(
                        "select extract(epoch from StartedDate - CreatedDate)::float8 * 1000
                         from vm.JobHistory where CreatedDate > $1 and StatusID = 3",
                    )
                    .bind(from)
                    .fetch_all(&mut db)
                    .await?;
                    if times.len() == CLAIM_ROWS {
                        break times;
                    }
                    ensure!(Instant::now() < until, "{} of {CLAIM_ROWS} jobs ran", times.len());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                };
                waited[usize::from(disturbed)].extend(times);
                self.cancel_all(&mut db).await?;
                sqlx::query("update vm.SourceGate set PausedUntil = null").execute(&mut db).await?;
            }
            drop(daemon);
            let mut lines = Vec::new();
            for (what, mut times) in ["alone", "one source saturated, one paused"].into_iter().zip(waited) {
                times.sort_unstable_by(f64::total_cmp);
                let at = |part: usize| times[times.len() * part / 100];
                lines.push((
                    format!("INSERT to start of jobs of 48 sources, a row each 10 ms, {what}"),
                    format!("p50 {:.1} ms, p99 {:.1} ms", at(50), at(99)),
                ));
            }
            Ok(lines)
        })
    }

    /// Three runners and twenty sources; then the same with kills and edits.
    fn fleet(&mut self, runtime: &tokio::runtime::Runtime) -> Result<Lines> {
        runtime.block_on(async {
            let mut daemons: Vec<_> = (0..DAEMONS).map(|n| self.daemon(n, SOURCES.len())).collect::<Result<_>>()?;
            let mut db = self.session().await?;
            self.ready(&mut db, DAEMONS as i64).await?;
            let mut rules = Vec::new();
            for (n, (delay, concurrency, millis)) in SOURCES.into_iter().enumerate() {
                let name = format!("fleet{n:02}");
                let id = self.source(&mut db, &name, delay, concurrency, millis).await?;
                let first = Edit { sent: Duration::ZERO, done: Duration::ZERO, delay, concurrency };
                rules.push(Rules { name, id, over_time: vec![first] });
            }
            for _ in 0..DAEMONS {
                self.queue(&mut db, "fleet%").await?;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            let (from, steady) = (now(), Duration::from_secs(15));
            tokio::time::sleep(steady).await;
            let mut rates = Vec::new();
            let mut shortest = Lost::default();
            for (rule, (delay, concurrency, millis)) in rules.iter().zip(SOURCES) {
                let mut arrivals = self.api.arrivals(&rule.name);
                arrivals.retain(|a| a.at >= from && a.at < from + steady);
                if delay >= 5.0 {
                    // What Concurrency allows beside Delay.
                    let allowed = (1000.0 / delay).min(concurrency as f64 * 1000.0 / millis as f64) * steady.as_secs_f64();
                    let rate = arrivals.len() as f64 / allowed;
                    println!("  {} Delay {delay} ms, Concurrency {concurrency}, {millis} ms: {rate:.3}", rule.name);
                    if concurrency as f64 * delay > 1.5 * millis as f64 {
                        rates.push(rate);
                        if delay == SHORTEST_DELAY {
                            shortest.add(delay, &arrivals);
                        }
                    }
                }
            }
            rates.sort_unstable_by(f64::total_cmp);
            let mut kills = 0;
            let mut edits = 0;
            let mut random = fastrand::Rng::with_seed(4);
            let before = self.api.calls();
            while self.api.calls() < before + CALLS || kills < 5 {
                tokio::time::sleep(Duration::from_millis(random.u64(500..1500))).await;
                if random.u32(0..4) == 0 {
                    let n = random.usize(0..DAEMONS);
                    drop(std::mem::replace(&mut daemons[n], self.daemon(n, SOURCES.len())?));
                    kills += 1;
                } else {
                    let rule = &mut rules[random.usize(0..SOURCES.len())];
                    let Edit { delay, concurrency, .. } = *rule.over_time.last().unwrap();
                    let (delay, concurrency) = if random.bool() {
                        ((delay * [0.5, 2.0][random.usize(0..2)]).clamp(if delay > 0.0 { 5.0 } else { 0.0 }, 300.0), concurrency)
                    } else {
                        (delay, random.usize(1..12))
                    };
                    let sent = now();
                    sqlx::query(
                        "update vm.SourceConfig set AuthInfo = AuthInfo || jsonb_build_object('Delay', $2::bigint, 'Concurrency', $3::int) where ID = $1",
                    )
                    .bind(rule.id)
                    .bind((delay * 1e6) as i64)
                    .bind(i32::try_from(concurrency)?)
                    .execute(&mut db)
                    .await?;
                    rule.over_time.push(Edit { sent, done: now(), delay, concurrency });
                    edits += 1;
                }
            }
            self.cancel_all(&mut db).await?;
            drop(daemons);
            let late = self.written_late()?;
            let calls: usize = rules.iter().map(|rule| self.api.arrivals(&rule.name).len()).sum();
            let mut breaches = (0, 0);
            let mut worst = 0.0_f64;
            for rule in &rules {
                let arrivals = self.api.arrivals(&rule.name);
                for pair in arrivals.windows(2) {
                    let (delay, _) = rule.at(pair[1].at);
                    let gap = (pair[1].at - pair[0].at).as_secs_f64() * 1000.0;
                    if gap < delay {
                        breaches.0 += 1;
                        worst = worst.max(delay - gap);
                        println!("  breach: {} gap {gap:.3} ms of {delay} ms, from {:?} to {:?}", rule.name, pair[0], pair[1]);
                        for edit in &rule.over_time {
                            println!("    {edit:?}");
                        }
                    }
                }
                breaches.1 += arrivals.iter().filter(|a| a.in_flight > rule.at(a.at).1).count();
            }
            if breaches != (0, 0) {
                for line in &late {
                    println!("  {line}");
                }
            }
            ensure!(breaches == (0, 0), "{breaches:?} calls broke Delay or Concurrency");
            Ok(vec![
                ("three runners, twenty sources".to_owned(), format!("{calls} calls, {kills} kills, {edits} edits")),
                ("gaps shorter than Delay".to_owned(), format!("{} (at most {worst:.3} ms)", breaches.0)),
                ("calls in flight beyond Concurrency".to_owned(), breaches.1.to_string()),
                ("calls of which a runner says that they left after its window".to_owned(), late.len().to_string()),
                (
                    "achieved of the allowed rate, Delay of 5 ms and more (aim: 0.95)".to_owned(),
                    format!("least {:.3}, median {:.3}", rates[0], rates[rates.len() / 2]),
                ),
                (format!("where the rest goes at a Delay of {SHORTEST_DELAY} ms"), shortest.to_string()),
            ])
        })
    }
}

/// What gaps were longer than the Delay, in milliseconds: between calls of one runner, and from one runner to the next.
#[derive(Default)]
struct Lost {
    within: Vec<f64>,
    between: Vec<f64>,
    /// Of all the gaps.
    total: f64,
}

impl Lost {
    fn add(&mut self, delay: f64, arrivals: &[Arrival]) {
        for pair in arrivals.windows(2) {
            let gap = (pair[1].at - pair[0].at).as_secs_f64() * 1000.0;
            // Each runner has one row of a source.
            let over = if pair[0].job == pair[1].job { &mut self.within } else { &mut self.between };
            over.push(gap - delay);
            self.total += gap;
        }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts =
            [("between calls of one runner", &self.within), ("from one runner to the next", &self.between)];
        for (n, (what, over)) in parts.into_iter().enumerate() {
            let mut over = over.clone();
            over.sort_unstable_by(f64::total_cmp);
            let at = |percent: usize| over.get(over.len() * percent / 100).copied().unwrap_or(f64::NAN);
            let share = over.iter().sum::<f64>() / self.total * 100.0;
            let separator = if n == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}{share:.1} % {what} ({} gaps, each longer by p50 {:.2}, p90 {:.2}, p99 {:.2} ms)",
                over.len(),
                at(50),
                at(90),
                at(99)
            )?;
        }
        Ok(())
    }
}

/// A source, and what it allowed over time.
struct Rules {
    name: String,
    id: Uuid,
    over_time: Vec<Edit>,
}

/// A statement that says what a source allows from now on. It may act as soon as it was sent, and must a second after it
/// was done.
#[derive(Debug, Clone, Copy)]
struct Edit {
    sent: Duration,
    done: Duration,
    delay: f64,
    concurrency: usize,
}

impl Rules {
    /// The loosest rule that may hold.
    fn at(&self, at: Duration) -> (f64, usize) {
        let mut found = (f64::MAX, 0);
        for (n, edit) in self.over_time.iter().enumerate() {
            let ends = self.over_time.get(n + 1).map_or(Duration::MAX, |next| next.done + EDIT_ACTS);
            if edit.sent <= at && at < ends {
                found = (found.0.min(edit.delay), found.1.max(edit.concurrency));
            }
        }
        found
    }
}

async fn insert_claim(db: &mut PgConnection, source: Uuid, path: &str, calls: i32) -> Result<()> {
    sqlx::query(
        "insert into vm.JobHistory (ConfigID, StatusID, Payload)
         select c.ID, 1, jsonb_build_object('path', $2::text, 'repeat', $3::int)
         from vm.JobConfig c where c.DataInSourceConfigID = $1",
    )
    .bind(source)
    .bind(path)
    .bind(calls)
    .execute(db)
    .await?;
    Ok(())
}

fn source_row(id: Uuid) -> SourceConfig {
    SourceConfig {
        id,
        source: "HTTP".to_owned(),
        organization: Uuid::nil(),
        address: "http://127.0.0.1".to_owned(),
        port: None,
        auth: AuthInfo::new(serde_json::json!({})),
        payload: serde_json::json!({}),
    }
}

fn least_gap(arrivals: &[Arrival]) -> Duration {
    arrivals.windows(2).map(|pair| pair[1].at - pair[0].at).min().unwrap_or_default()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
