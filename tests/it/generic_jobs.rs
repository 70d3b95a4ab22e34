//! The limits of sources and the three generic jobs, on a real database and a real HTTP server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]
#![allow(clippy::needless_pass_by_value, clippy::assigning_clones)]

use crate::support::{TestDb, server};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use rosterd::config::Config;
use rosterd::config_rows::{AuthInfo, JobConfig, SourceConfig};
use rosterd::connectors::{Call, SourceClient};
use rosterd::history::HistoryId;
use rosterd::job::{ErrorKind, JobError, Outcome};
use rosterd::limits::{CallPermit, LimitError, SourceLimiter};
use rosterd::postgres::connect::Limits;
use rosterd::postgres::database::Database;
use rosterd::testing;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(20);

// ---- the database ----

/// One database for all of these tests; each makes sources of its own in it.
pub async fn pool() -> Database {
    static OPTIONS: OnceLock<PgConnectOptions> = OnceLock::new();
    let options = tokio::task::spawn_blocking(|| {
        OPTIONS.get_or_init(|| {
            let db = TestDb::new();
            let options = db.options.clone();
            std::mem::forget(db); // it goes with the server
            options
        })
    });
    let limits = Limits { connect: SOON, statement: SOON, answer: Duration::from_secs(5) };
    Database::new(options.await.unwrap(), "test", 8, limits)
}

/// A runner that is alive as far as the database knows.
pub async fn runner(pool: &Database) -> SourceLimiter {
    let id = Uuid::now_v7();
    sqlx::query("insert into vm.Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ($1, 'test', 1, '0', 20, 10)")
        .bind(id)
        .execute(pool)
        .await
        .unwrap();
    SourceLimiter::new(pool.clone(), id)
}

pub async fn source(pool: &Database, kind: &str, address: &str, auth: Value) -> SourceConfig {
    let (organization, id) = (Uuid::now_v7(), Uuid::now_v7());
    sqlx::query("insert into vm.Organization (ID, Code) values ($1, $1::text)")
        .bind(organization)
        .execute(pool)
        .await
        .unwrap();
    sqlx::query(
        "insert into vm.SourceConfig (ID, Source, OrganizationID, Address, AuthInfo) values ($1, $2, $3, $4, $5)",
    )
    .bind(id)
    .bind(kind)
    .bind(organization)
    .bind(address)
    .bind(&auth)
    .execute(pool)
    .await
    .unwrap();
    SourceConfig {
        id,
        source: kind.to_owned(),
        organization,
        address: address.to_owned(),
        port: None,
        auth: AuthInfo::new(auth),
        payload: json!({}),
    }
}

async fn edit_auth(pool: &Database, source: &SourceConfig, auth: Value) {
    sqlx::query("update vm.SourceConfig set AuthInfo = $2 where ID = $1")
        .bind(source.id)
        .bind(auth)
        .execute(pool)
        .await
        .unwrap();
}

async fn slots(pool: &Database, source: &SourceConfig) -> i64 {
    sqlx::query_scalar("select coalesce(sum(InFlight), 0) from vm.SourceShare where SourceConfigID = $1")
        .bind(source.id)
        .fetch_one(pool)
        .await
        .unwrap()
}

pub async fn until<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let waited = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, waited).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

pub fn settings() -> Config {
    let mut config = Config::built_in();
    config.sources.allow_private = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    config
}

async fn take(limiter: &SourceLimiter, source: &SourceConfig) -> Result<CallPermit, LimitError> {
    limiter.acquire(source, HistoryId(Uuid::now_v7()), &CancellationToken::new()).await
}

// ---- the outside ----

/// What the API saw, by its own clock.
#[derive(Default)]
struct Seen {
    arrivals: Vec<Instant>,
    headers: Vec<HeaderMap>,
    in_flight: usize,
    most_in_flight: usize,
}

#[derive(Clone, Default)]
struct Api {
    seen: Arc<Mutex<Seen>>,
    arrived: Arc<Notify>,
    address: String,
}

struct InFlight(Arc<Mutex<Seen>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.lock().unwrap().in_flight -= 1;
    }
}

impl Api {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let api = Self { address, ..Self::default() };
        let router = Router::new()
            .route("/work", any(work))
            .route("/big", get(|| async { "x".repeat(100_000) }))
            .route("/json", get(|| async { r#"{"a": [1, 2]}"# }))
            .route(
                "/echo",
                any(|headers: HeaderMap| async move { format!("{:?}", headers.get("authorization")) }),
            )
            .with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        api
    }

    fn calls(&self) -> usize {
        self.seen.lock().unwrap().arrivals.len()
    }

    fn gaps(&self) -> Vec<Duration> {
        let mut arrivals = self.seen.lock().unwrap().arrivals.clone();
        arrivals.sort_unstable();
        arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

async fn work(
    State(api): State<Api>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> impl IntoResponse {
    let _in_flight = {
        let mut seen = api.seen.lock().unwrap();
        seen.arrivals.push(Instant::now());
        seen.headers.push(headers);
        seen.in_flight += 1;
        seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
        InFlight(Arc::clone(&api.seen))
    };
    api.arrived.notify_one();
    if let Some(millis) = query.get("millis").and_then(|m| m.parse().ok()) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    // The statuses in `each`, one a call, then 200.
    let nth = api.calls() - 1;
    let each = query
        .get("each")
        .map(|each| each.split('-').map(str::to_owned).collect::<Vec<_>>())
        .unwrap_or_default();
    let status = each.get(nth).and_then(|status| status.parse().ok()).unwrap_or(200);
    let mut headers = HeaderMap::new();
    if status == 429 {
        headers.insert("retry-after", "1".parse().unwrap());
    }
    if status == 302 {
        headers.insert("location", "/work".parse().unwrap());
    }
    (StatusCode::from_u16(status).unwrap(), headers, "done")
}

// ---- runs ----

struct Bench {
    pool: Database,
    limiter: SourceLimiter,
    settings: Config,
    config: JobConfig,
    cancel: CancellationToken,
}

impl Bench {
    async fn new(in_source: Option<SourceConfig>) -> Self {
        let pool = pool().await;
        let limiter = runner(&pool).await;
        let mut config = testing::job_config("Job", None);
        config.in_source = in_source;
        Self { pool, limiter, settings: settings(), config, cancel: CancellationToken::new() }
    }

    fn run(
        &self,
        job: &str,
        payload: Value,
    ) -> impl Future<Output = Result<Outcome, JobError>> + Send + 'static {
        let ctx = testing::context(
            self.pool.clone(),
            self.limiter.clone(),
            self.config.clone(),
            self.settings.clone(),
            self.cancel.clone(),
        );
        let job = rosterd::jobs::built_in().find(job).unwrap();
        let run = job.prepare(&RawValue::from_string(payload.to_string()).unwrap());
        async move {
            let run = run.map_err(JobError::fatal_message)?;
            timeout(SOON, run(ctx)).await.expect("the run ends")
        }
    }
}

fn result(done: Result<Outcome, JobError>) -> Value {
    done.unwrap().result().unwrap().clone()
}

fn failure(done: Result<Outcome, JobError>) -> (String, ErrorKind, Value) {
    let error = done.unwrap_err();
    (error.to_string(), error.kind(), error.result().cloned().unwrap_or_default())
}

// ---- limits ----

async fn hammer(api: &Api, source: &SourceConfig, path: &str, runners: usize, calls_each: usize) {
    let pool = pool().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..runners {
        let limiter = runner(&pool).await;
        let history = HistoryId(Uuid::now_v7());
        let client =
            SourceClient::new(source, &settings().sources, limiter, history, CancellationToken::new())
                .unwrap();
        for _ in 0..calls_each {
            let (client, path) = (client.clone(), path.to_owned());
            tasks.spawn(async move { client.call(Call::get(path)).await.unwrap() });
        }
    }
    timeout(Duration::from_mins(1), tasks.join_all()).await.unwrap();
    assert_eq!(api.calls(), runners * calls_each);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_holds_across_three_runners_by_the_count_of_the_api() {
    let api = Api::start().await;
    let source = source(&pool().await, "HTTP", &api.address, json!({"Concurrency": 3})).await;
    hammer(&api, &source, "/work?millis=15", 3, 60).await;
    assert_eq!(api.seen.lock().unwrap().most_in_flight, 3);
    let pool = pool().await;
    until("all slots came back", async || slots(&pool, &source).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_delay_acts_on_waiting_calls_within_a_second() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "h", json!({"Delay": 60_000_000_000_u64})).await;
    let limiter = runner(&pool).await;
    drop(take(&limiter, &source).await.unwrap());
    let waiting = tokio::spawn({
        let (limiter, source) = (limiter.clone(), source.clone());
        async move { take(&limiter, &source).await }
    });
    until("it waits", async || {
        sqlx::query_scalar("select exists (select from vm.SourceShare where SourceConfigID = $1 and (Waiting > 0 or StartSince is not null))")
            .bind(source.id)
            .fetch_one(&pool)
            .await
            .unwrap()
    })
    .await;
    edit_auth(&pool, &source, json!({"Delay": 0})).await;
    timeout(Duration::from_secs(1), waiting).await.expect("within a second").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_concurrency_acts_within_a_second_up_and_down() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "h", json!({"Concurrency": 1})).await;
    let limiter = runner(&pool).await;
    let first = take(&limiter, &source).await.unwrap();
    assert!(timeout(Duration::from_millis(300), take(&limiter, &source)).await.is_err());
    edit_auth(&pool, &source, json!({"Concurrency": 3})).await;
    let second = timeout(Duration::from_secs(1), take(&limiter, &source)).await.unwrap().unwrap();
    let third = timeout(Duration::from_secs(1), take(&limiter, &source)).await.unwrap().unwrap();
    edit_auth(&pool, &source, json!({"Concurrency": 2})).await;
    drop(first);
    until("its slot came back", async || slots(&pool, &source).await == 2).await;
    assert!(timeout(Duration::from_millis(300), take(&limiter, &source)).await.is_err(), "2 of 2 are taken");
    drop((second, third));
    timeout(Duration::from_secs(1), take(&limiter, &source)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_row_is_gone_is_refused() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "h", json!({})).await;
    let dead = runner(&pool).await;
    sqlx::query("delete from vm.Runner where ID = $1").bind(dead.runner()).execute(&pool).await.unwrap();
    let refused = take(&dead, &source).await.unwrap_err();
    assert!(matches!(refused, LimitError::RunnerGone(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_waiter_returns_at_once_and_leaves_nothing_behind() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "h", json!({"Concurrency": 1})).await;
    let limiter = runner(&pool).await;
    let held = take(&limiter, &source).await.unwrap();
    let cancel = CancellationToken::new();
    let waiting = tokio::spawn({
        let (limiter, source, cancel) = (limiter.clone(), source.clone(), cancel.clone());
        async move { limiter.acquire(&source, HistoryId(Uuid::now_v7()), &cancel).await }
    });
    until("it waits", async || {
        sqlx::query_scalar("select exists (select from vm.SourceShare where SourceConfigID = $1 and (Waiting > 0 or StartSince is not null))")
            .bind(source.id)
            .fetch_one(&pool)
            .await
            .unwrap()
    })
    .await;
    cancel.cancel();
    let refused = timeout(Duration::from_millis(100), waiting).await.expect("at once").unwrap().unwrap_err();
    assert!(matches!(refused, LimitError::Cancelled(_)), "{refused}");
    drop(held);
    drop(timeout(Duration::from_secs(1), take(&limiter, &source)).await.unwrap().unwrap());
    until("all slots came back", async || slots(&pool, &source).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_give_up_at_any_moment_leak_no_slot() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "h", json!({"Concurrency": 2})).await;
    let limiter = runner(&pool).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200_u64 {
        let (limiter, source) = (limiter.clone(), source.clone());
        tasks.spawn(async move {
            let _ = timeout(Duration::from_micros(n * 97 % 7000), take(&limiter, &source)).await;
        });
    }
    tasks.join_all().await;
    until("all slots came back", async || slots(&pool, &source).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_runner_does_not_starve_another() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "h", json!({"Concurrency": 1})).await;
    let (busy, patient) = (runner(&pool).await, runner(&pool).await);
    let greedy: Vec<_> = (0..4)
        .map(|_| {
            let (busy, source) = (busy.clone(), source.clone());
            tokio::spawn(async move {
                loop {
                    let permit = take(&busy, &source).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    drop(permit);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        timeout(Duration::from_secs(2), take(&patient, &source)).await.expect("its turn comes").unwrap();
    }
    greedy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inactive_source_is_refused_by_name() {
    let pool = pool().await;
    let source = source(&pool, "JIRA", "h", json!({})).await;
    sqlx::query("update vm.SourceConfig set Active = false where ID = $1")
        .bind(source.id)
        .execute(&pool)
        .await
        .unwrap();
    let refused = take(&runner(&pool).await, &source).await.unwrap_err().to_string();
    assert!(refused.contains("JIRA") && refused.contains(&source.id.to_string()), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_saturated_source_does_not_slow_another() {
    let pool = pool().await;
    let full = source(&pool, "HTTP", "h", json!({"Concurrency": 1})).await;
    let free = source(&pool, "HTTP", "h", json!({})).await;
    let limiter = runner(&pool).await;
    let _held = take(&limiter, &full).await.unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (limiter, full) = (limiter.clone(), full.clone());
            tokio::spawn(async move { take(&limiter, &full).await })
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..20 {
        take(&limiter, &free).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

// ---- HttpJob ----

async fn http_bench(auth: Value) -> (Api, Bench) {
    let api = Api::start().await;
    let source = source(&pool().await, "HTTP", &api.address, auth).await;
    (api, Bench::new(Some(source)).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_job_brings_credentials_and_the_rows_id_and_returns_status_and_json() {
    let (api, bench) = http_bench(json!({"Username": "svc", "Password": "pw"})).await;
    let done = result(bench.run("HttpJob", json!({"path": "/json", "query": {"a": [1, "x y"]}})).await);
    assert_eq!(
        (&done["status"], &done["body"], &done["calls"]),
        (&json!(200), &json!({"a": [1, 2]}), &json!(1))
    );
    assert!(done["duration_ms"].is_u64());
    bench.run("HttpJob", json!({"method": "post", "path": "/work", "body": {"k": 1}})).await.unwrap();
    let headers = api.seen.lock().unwrap().headers[0].clone();
    assert_eq!(headers["authorization"], "Basic c3ZjOnB3");
    assert_eq!(headers["content-type"], "application/json");
    assert!(headers["user-agent"].to_str().unwrap().starts_with("rosterd/"));
    assert!(Uuid::parse_str(headers["x-rosterd-job"].to_str().unwrap()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_sends_that_many_calls_as_concurrently_as_the_source_allows() {
    let (api, bench) = http_bench(json!({"Concurrency": 4})).await;
    let done = result(bench.run("HttpJob", json!({"path": "/work?millis=40", "repeat": 40})).await);
    assert_eq!(
        (&done["calls"], &done["failed"], &done["statuses"]),
        (&json!(40), &json!(0), &json!({"200": 40}))
    );
    assert_eq!((api.calls(), api.seen.lock().unwrap().most_in_flight), (40, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unexpected_status_is_an_error_that_keeps_the_result() {
    let (_api, bench) = http_bench(json!({})).await;
    let (error, kind, kept) = failure(bench.run("HttpJob", json!({"path": "/none"})).await);
    assert_eq!(
        (error.as_str(), kind),
        ("GET /none answered 404 Not Found, expected 200 to 299", ErrorKind::Fatal)
    );
    assert_eq!(kept["status"], 404);
    bench.run("HttpJob", json!({"path": "/none", "expect_status": [404]})).await.unwrap();
    let (error, kind, _) = failure(bench.run("HttpJob", json!({"path": "/work?each=503"})).await);
    assert_eq!((error.contains("503"), kind), (true, ErrorKind::Retry), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_with_retry_after_pauses_the_source_for_every_runner() {
    let (api, bench) = http_bench(json!({"Concurrency": 1})).await;
    let (_, kind, kept) = failure(bench.run("HttpJob", json!({"path": "/work?each=429", "repeat": 2})).await);
    assert_eq!((kind, &kept["statuses"]), (ErrorKind::Retry, &json!({"200": 1, "429": 1})));
    assert!(api.gaps()[0] >= Duration::from_secs(1), "{:?}", api.gaps());
    // Another runner.
    let source = bench.config.in_source.as_ref().unwrap();
    bench.limiter.pause(source.id, Duration::from_secs(1), true).await.unwrap();
    let begun = Instant::now();
    take(&runner(&bench.pool).await, source).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(950), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_sent_again_only_if_the_payload_asks_for_it() {
    let (api, bench) = http_bench(json!({})).await;
    let (_, _, kept) =
        failure(bench.run("HttpJob", json!({"path": "/work?each=503-500", "repeat": 2})).await);
    assert_eq!((api.calls(), &kept["calls"], kept.get("retried")), (2, &json!(2), None));
    let (api, bench) = http_bench(json!({})).await;
    let done = result(bench.run("HttpJob", json!({"path": "/work?each=503-502", "retries": 2})).await);
    assert_eq!((api.calls(), &done["calls"], &done["retried"]), (3, &json!(1), &json!(2)));
    assert_eq!(done["statuses"], json!({"200": 1}));
    let post = json!({"method": "POST", "path": "/work?each=200-200-200-503", "retries": 2});
    let (error, ..) = failure(bench.run("HttpJob", post).await);
    assert_eq!((error.contains("503"), api.calls()), (true, 4), "{error}");
    let (error, ..) = failure(bench.run("HttpJob", json!({"path": "/work", "retries": 21})).await);
    assert!(error.contains("`retries`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let (api, bench) = http_bench(json!({"Token": "canary"})).await;
    let (error, kind, _) = failure(bench.run("HttpJob", json!({"path": "/work?each=302"})).await);
    assert!(error.contains("redirects are not followed"), "{error}");
    assert_eq!((kind, api.calls()), (ErrorKind::Fatal, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_is_cut_and_says_so() {
    let (_api, mut bench) = http_bench(json!({})).await;
    bench.settings.sources.response_max_bytes = 1000;
    let done = result(bench.run("HttpJob", json!({"path": "/big"})).await);
    assert_eq!((done["body"].as_str().unwrap().len(), &done["truncated"]), (1000, &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_come_back_with_the_body() {
    let (_api, bench) = http_bench(json!({"Token": "canary"})).await;
    let done = result(bench.run("HttpJob", json!({"path": "/echo"})).await);
    assert!(!done.to_string().contains("canary"), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_refused_and_the_error_names_the_key() {
    for address in [
        "http://127.0.0.1:1",
        "http://localhost:1",
        "http://[::1]:1",
        "http://2130706433",
        "http://169.254.0.1",
    ] {
        let mut bench = Bench::new(Some(source(&pool().await, "HTTP", address, json!({})).await)).await;
        bench.settings.sources.allow_private.clear();
        let (error, kind, _) = failure(bench.run("HttpJob", json!({"path": "/"})).await);
        assert!(error.contains("`sources.allow_private`") && kind == ErrorKind::Fatal, "{address}: {error}");
    }
    let mut bench =
        Bench::new(Some(source(&pool().await, "HTTP", "http://169.254.169.254", json!({})).await)).await;
    bench.settings.sources.allow_private = vec!["0.0.0.0/0".parse().unwrap()];
    let (error, ..) = failure(bench.run("HttpJob", json!({"path": "/latest/meta-data"})).await);
    assert!(error.contains("never allowed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_cannot_change_the_host_or_the_credentials() {
    let (api, bench) = http_bench(json!({"Header": "X-Api-Key", "Key": "k"})).await;
    for (payload, word) in [
        (json!({"path": "http://evil.example/"}), "must begin with /"),
        (json!({"path": "/", "headers": {"host": "evil.example"}}), "headers.host"),
        (json!({"path": "/", "headers": {"Authorization": "x"}}), "headers.Authorization"),
        (json!({"path": "/", "headers": {"x-api-key": "x"}}), "headers.x-api-key"),
        (json!({"path": "/", "repeat": 0}), "`repeat`"),
        (json!({"path": "/", "method": "CONNECT"}), "`method`"),
        (json!({"path": "/", "expect_statuses": [200]}), "unknown field"),
    ] {
        let (error, kind, _) = failure(bench.run("HttpJob", payload).await);
        assert!(error.contains(word) && kind == ErrorKind::Fatal, "{error}");
    }
    for path in ["//evil.example/work", "/\\evil.example/work", "/@evil.example"] {
        let (error, ..) = failure(bench.run("HttpJob", json!({"path": path})).await);
        assert!(error.contains("404"), "{path} stayed on the source: {error}");
    }
    assert_eq!(api.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_http_job_stops_early_and_its_slots_come_back() {
    let (api, bench) = http_bench(json!({"Concurrency": 2})).await;
    let run = tokio::spawn(bench.run("HttpJob", json!({"path": "/work?millis=60000", "repeat": 100})));
    timeout(SOON, api.arrived.notified()).await.unwrap();
    bench.cancel.cancel();
    let begun = Instant::now();
    assert!(run.await.unwrap().is_err());
    assert!(begun.elapsed() < Duration::from_millis(500));
    let source = bench.config.in_source.clone().unwrap();
    until("all slots came back", async || slots(&bench.pool, &source).await == 0).await;
    assert!(api.calls() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_an_error_worth_another_attempt() {
    let bench = Bench::new(Some(source(&pool().await, "HTTP", "http://127.0.0.1:1", json!({})).await)).await;
    let (error, kind, kept) = failure(bench.run("HttpJob", json!({"path": "/", "repeat": 1000})).await);
    assert!(error.contains("no connection") && kind == ErrorKind::Retry, "{error}");
    assert_eq!(kept["calls"], 10);
}

// ---- CommandJob ----

struct Commands {
    bench: Bench,
    dir: tempfile::TempDir,
}

impl Commands {
    async fn new() -> Self {
        let mut bench = Bench::new(None).await;
        let dir = tempfile::tempdir().unwrap();
        bench.settings.commands.dir = dir.path().to_owned();
        bench.settings.engine.cancel_grace_seconds = 1.0;
        Self { bench, dir }
    }

    fn allow(&self, name: &str, text: &str) -> std::path::PathBuf {
        let file = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        file
    }

    /// A shell script; `$1` and so on are the row's arguments.
    fn script(&self, name: &str, script: &str) {
        let script = toml::Value::from(script);
        self.allow(name, &format!("program = '/bin/sh'\nargs = ['-c', {script}, 'sh']\nallow_args = true"));
    }
}

fn is_alive(pid: &str) -> bool {
    // A zombie has ended; only its parent has not looked yet.
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn pid_in(file: &Path) -> String {
    until("the process said its number", async || {
        std::fs::read_to_string(file).is_ok_and(|pid| pid.ends_with('\n'))
    })
    .await;
    std::fs::read_to_string(file).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_returns_its_exit_code_and_both_outputs() {
    let commands = Commands::new().await;
    commands.script("hello", "echo out; echo err >&2; printf 'a\\377\\000b'");
    let done = result(commands.bench.run("CommandJob", json!({"command": "hello"})).await);
    assert_eq!(
        done,
        json!({"exit_code": 0, "stdout": "out\na\u{fffd}b", "stderr": "err\n", "truncated": false})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_is_an_error_with_the_last_line_of_stderr() {
    let commands = Commands::new().await;
    commands.script("fail", "echo first >&2; echo no such host >&2; exit 3");
    let (error, _, kept) = failure(commands.bench.run("CommandJob", json!({"command": "fail"})).await);
    assert_eq!(error, "command fail exited with code 3: no such host");
    assert_eq!(kept["exit_code"], 3);
    commands.script("die", "kill -SEGV $$");
    let (error, _, kept) = failure(commands.bench.run("CommandJob", json!({"command": "die"})).await);
    assert_eq!(
        (error.as_str(), &kept["exit_code"]),
        ("command die was killed by signal 11 (SEGV)", &json!(null))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mebibyte_goes_in_and_out_without_deadlock() {
    let mut commands = Commands::new().await;
    commands.bench.settings.commands.output_max_bytes = 2 << 20;
    commands.allow("cat", "program = '/bin/cat'");
    let stdin = "0123456789abcde\n".repeat(1 << 16);
    let done = result(commands.bench.run("CommandJob", json!({"command": "cat", "stdin": stdin})).await);
    assert!(done["stdout"] == json!(stdin), "{} bytes", done["stdout"].as_str().unwrap().len());
    commands.allow("true", "program = '/bin/true'");
    commands.bench.run("CommandJob", json!({"command": "true", "stdin": stdin})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_reach_the_program_as_they_stand_and_only_where_allowed() {
    let commands = Commands::new().await;
    let file = commands.allow("echo", "program = '/bin/echo'\nargs = ['-n']");
    let (error, ..) =
        failure(commands.bench.run("CommandJob", json!({"command": "echo", "args": ["x"]})).await);
    assert!(error.contains(file.to_str().unwrap()), "{error}");
    commands.allow("echo", "program = '/bin/echo'\nargs = ['-n']\nallow_args = true");
    let args = json!(["$(id)", "; id", "*", "`id`", "a b"]);
    let done = result(commands.bench.run("CommandJob", json!({"command": "echo", "args": args})).await);
    assert_eq!(done["stdout"], "$(id) ; id * `id` a b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_sees_only_the_environment_it_is_given() {
    let mut commands = Commands::new().await;
    commands.bench.settings.commands.env = vec!["PATH".to_owned()];
    commands.allow("env", "program = '/usr/bin/env'\ncwd = '/tmp'\nenv = { GIVEN = 'yes' }");
    let done = result(commands.bench.run("CommandJob", json!({"command": "env"})).await);
    let mut names: Vec<_> =
        done["stdout"].as_str().unwrap().lines().map(|line| line.split('=').next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["GIVEN", "PATH"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_others_could_have_written_is_refused() {
    let commands = Commands::new().await;
    let file = commands.allow("open", "program = '/bin/true'");
    let refusal = async || failure(commands.bench.run("CommandJob", json!({"command": "open"})).await).0;
    let chmod =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o666, 0o664, 0o622] {
        chmod(&file, mode);
        assert!(refusal().await.contains("chmod go-w"), "{mode:o}");
    }
    chmod(&file, 0o644);
    chmod(commands.dir.path(), 0o777);
    assert!(refusal().await.contains("chmod go-w"));
    chmod(commands.dir.path(), 0o755);
    let program = commands.dir.path().join("program");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    commands.allow("open", &format!("program = '{}'", program.display()));
    assert!(refusal().await.contains("is not executable"));
    chmod(&program, 0o775);
    assert!(refusal().await.contains("is writable by its group"));
    commands.allow("open", "program = 'true'");
    assert!(refusal().await.contains("absolute path"));
    commands.allow("open", "program = '/bin/true'\nshell = true");
    assert!(refusal().await.contains("unknown field `shell`"));
    std::fs::remove_file(&file).unwrap();
    assert!(refusal().await.contains("command open is not allowed"));
    if rustix::process::geteuid().is_root() {
        commands.allow("open", "program = '/bin/true'");
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        assert!(refusal().await.contains("belongs to user 12345"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_can_run_as_another_user_without_the_groups_of_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let commands = Commands::new().await;
    commands.allow("id", "program = '/usr/bin/id'\nuser = 'nobody'");
    let done = result(commands.bench.run("CommandJob", json!({"command": "id"})).await);
    let said = done["stdout"].as_str().unwrap();
    assert!(said.contains("(nobody)") && !said.contains("(root)"), "{said}");
    commands.allow("id", "program = '/usr/bin/id'\nuser = 'no-such-user'");
    let (error, ..) = failure(commands.bench.run("CommandJob", json!({"command": "id"})).await);
    assert!(error.contains("no such user"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_kept_up_to_its_cap_and_an_endless_one_does_no_harm() {
    let mut commands = Commands::new().await;
    commands.bench.settings.commands.output_max_bytes = 1000;
    commands.script("much", "head -c 3000000 /dev/zero | tr '\\0' x");
    let done = result(commands.bench.run("CommandJob", json!({"command": "much"})).await);
    assert_eq!((done["stdout"].as_str().unwrap().len(), &done["truncated"]), (1000, &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_command_gets_term_and_can_end_in_its_own_way() {
    let commands = Commands::new().await;
    let mark = commands.dir.path().join("pid");
    commands.script("polite", "trap 'echo bye; exit 7' TERM; echo $$ > $1; while :; do sleep 0.05; done");
    let run = tokio::spawn(commands.bench.run("CommandJob", json!({"command": "polite", "args": [mark]})));
    pid_in(&mark).await;
    commands.bench.cancel.cancel();
    let (error, _, kept) = failure(run.await.unwrap());
    assert!(error.contains("was stopped"), "{error}");
    assert_eq!((&kept["exit_code"], &kept["stdout"]), (&json!(7), &json!("bye\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_group_is_killed_with_its_grandchildren() {
    let commands = Commands::new().await;
    let (mark, child) = (commands.dir.path().join("pid"), commands.dir.path().join("child"));
    commands.script(
        "stubborn",
        "trap '' TERM; (trap '' TERM; sh -c 'echo $$' > $2; while :; do sleep 0.1; done) & echo $! > $1; wait; while :; do sleep 0.1; done",
    );
    let run =
        tokio::spawn(commands.bench.run("CommandJob", json!({"command": "stubborn", "args": [mark, child]})));
    let grandchild = pid_in(&mark).await;
    pid_in(&child).await;
    commands.bench.cancel.cancel();
    let begun = Instant::now();
    let (error, ..) = failure(run.await.unwrap());
    assert!(error.contains("was stopped"), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(400), "it had its grace: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    until("the grandchild is gone", async || !is_alive(&grandchild)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_runs_out_of_its_memory_is_an_error_of_its_row_alone() {
    let commands = Commands::new().await;
    // 200 MB in a space of 60.
    commands.script("greedy", "ulimit -v 60000; head -c 200000000 /dev/zero | tail; exit $?");
    commands.script("modest", "ulimit -v 60000; echo fine");
    let (error, ..) = failure(commands.bench.run("CommandJob", json!({"command": "greedy"})).await);
    assert!(error.contains("memory exhausted"), "{error}");
    let fine = result(commands.bench.run("CommandJob", json!({"command": "modest"})).await);
    assert_eq!(fine["stdout"], "fine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_leaves_no_process_behind() {
    let commands = Commands::new().await;
    let mark = commands.dir.path().join("pid");
    commands.script("sleep", "sleep 600 & echo $! > $1; wait");
    let run = tokio::spawn(commands.bench.run("CommandJob", json!({"command": "sleep", "args": [mark]})));
    let sleeper = pid_in(&mark).await;
    assert!(is_alive(&sleeper));
    run.abort();
    until("the group is gone", async || !is_alive(&sleeper)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_process_that_holds_the_pipes_does_not_hang_the_job() {
    let commands = Commands::new().await;
    commands.script("background", "sleep 600 & echo $!");
    let begun = Instant::now();
    let done = result(commands.bench.run("CommandJob", json!({"command": "background"})).await);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let sleeper = done["stdout"].as_str().unwrap().to_owned();
    until("the background process is gone", async || !is_alive(&sleeper)).await;
}

// ---- SqlJob ----

async fn sql_bench() -> Bench {
    let pool = pool().await;
    let options = pool.connect_options();
    let folder = server().socket_dir().to_string_lossy();
    let auth = json!({
        "Username": options.get_username(), "Password": "canary-9", "Database": options.get_database().unwrap()
    });
    let mut source = source(&pool, "PostgreSQL", &folder, auth).await;
    source.port = Some(options.get_port());
    Bench::new(Some(source)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sql_job_takes_parameters_of_every_kind_and_returns_rows_as_json() {
    let bench = sql_bench().await;
    let done = result(
        bench
            .run(
                "SqlJob",
                json!({
                    "statement": "select $1::int + 1 as n, $2::text as t, $3::boolean as b, $4::jsonb as j, $5::text as missing,
                                    $6::numeric as big, $7::int[] as list, $8::timestamptz at time zone 'UTC' as at; -- comment",
                    "parameters": [41, "it's $1 \\ \"x\"", true, {"k": ["v"]}, null, 1.5, [1, 2], "2026-01-01T00:00:00Z"],
                }),
            )
            .await,
    );
    assert_eq!(
        done,
        json!({
            "rows_affected": 1,
            "rows": [{"n": 42, "t": "it's $1 \\ \"x\"", "b": true, "j": {"k": ["v"]}, "missing": null,
                      "big": 1.5, "list": "{1,2}", "at": "2026-01-01 00:00:00"}],
            "truncated": false,
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_kept_up_to_the_cap_and_changes_are_counted() {
    let mut bench = sql_bench().await;
    bench.settings.sql_job.max_rows = 3;
    let done =
        result(bench.run("SqlJob", json!({"statement": "select generate_series(1, 1000) as n"})).await);
    assert_eq!((&done["rows"], &done["truncated"]), (&json!([{"n": 1}, {"n": 2}, {"n": 3}]), &json!(true)));
    let id = bench.config.in_source.as_ref().unwrap().organization;
    let statement = "update vm.Organization set Description = $2 where ID = $1 returning Description";
    let done = result(bench.run("SqlJob", json!({"statement": statement, "parameters": [id, "new"]})).await);
    assert_eq!((&done["rows_affected"], &done["rows"]), (&json!(1), &json!([{"description": "new"}])));
    let done = result(bench.run("SqlJob", json!({"statement": "show server_version_num"})).await);
    assert!(done["rows"][0]["server_version_num"].is_string(), "{done}");
    bench.run("SqlJob", json!({"statement": "create temporary table t (id int)"})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sql_error_tells_its_sqlstate_message_and_hint_and_no_secret() {
    let bench = sql_bench().await;
    let (error, kind, _) = failure(bench.run("SqlJob", json!({"statement": "select * from nowhere"})).await);
    assert_eq!(
        (error.as_str(), kind),
        ("SQLSTATE 42P01: relation \"nowhere\" does not exist", ErrorKind::Fatal)
    );
    let (error, ..) = failure(bench.run("SqlJob", json!({"statement": "select length(1)"})).await);
    assert!(error.contains("SQLSTATE 42883") && error.contains("(hint: "), "{error}");
    let (error, ..) = failure(bench.run("SqlJob", json!({"statement": "select 'canary-9'::int"})).await);
    assert!(error.contains("SQLSTATE 22P02") && !error.contains("canary"), "{error}");
    let (error, ..) = failure(bench.run("SqlJob", json!({"statement": "select $1::int"})).await);
    assert_eq!(error, "Payload field `parameters`: 0 given, the statement has 1");
    for two in ["select 1; select 2", "select 1; drop table vm.Logs", "select $1::int) as x; select 1"] {
        let parameters = if two.contains('$') { json!([1]) } else { json!([]) };
        let (error, ..) =
            failure(bench.run("SqlJob", json!({"statement": two, "parameters": parameters})).await);
        assert!(error.contains("SQLSTATE 42601"), "{error}");
    }
}

async fn is_running(pool: &Database, mark: Uuid) -> bool {
    sqlx::query_scalar("select exists (select from pg_stat_activity where state = 'active' and query like $1 and pid <> pg_backend_pid())")
        .bind(format!("%/*{mark}*/%"))
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_statement_is_stopped_on_the_server() {
    let bench = sql_bench().await;
    let mark = Uuid::now_v7();
    let statement = json!({"statement": format!("select pg_sleep(600) /*{mark}*/")});
    let run = tokio::spawn(bench.run("SqlJob", statement.clone()));
    until("it runs", async || is_running(&bench.pool, mark).await).await;
    bench.cancel.cancel();
    let begun = Instant::now();
    assert!(failure(run.await.unwrap()).0.contains("was stopped"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!is_running(&bench.pool, mark).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_statement_is_stopped_on_the_server() {
    let bench = sql_bench().await;
    let mark = Uuid::now_v7();
    let run =
        tokio::spawn(bench.run("SqlJob", json!({"statement": format!("select pg_sleep(600) /*{mark}*/")})));
    until("it runs", async || is_running(&bench.pool, mark).await).await;
    run.abort();
    until("it is gone", async || !is_running(&bench.pool, mark).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_itself_holds_the_time_limit() {
    let mut bench = sql_bench().await;
    bench.config.time_limit = Some(Duration::from_millis(200));
    let (error, ..) = failure(bench.run("SqlJob", json!({"statement": "select pg_sleep(600)"})).await);
    assert!(error.contains("SQLSTATE 57014") && error.contains("statement timeout"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rosterds_own_database_is_refused_unless_the_key_allows_it_and_then_no_runners_rights_come_with_it() {
    let mut bench = Bench::new(None).await;
    let statement = json!({"statement": "select current_setting('rosterd.actor', true) as actor, current_database() as db"});
    let (error, kind, _) = failure(bench.run("SqlJob", statement.clone()).await);
    assert!(error.contains("`sql_job.allow_own_database`") && kind == ErrorKind::Fatal, "{error}");
    bench.settings.sql_job.allow_own_database = true;
    let done = result(bench.run("SqlJob", statement).await);
    assert_eq!(done["rows"][0]["actor"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sql_source_obeys_the_same_rule_of_addresses() {
    let mut bench = sql_bench().await;
    bench.settings.sources.allow_private.clear();
    for address in ["127.0.0.1", "localhost", "::1", "10.0.0.1"] {
        bench.config.in_source.as_mut().unwrap().address = String::from(address);
        let (error, kind, _) = failure(bench.run("SqlJob", json!({"statement": "select 1"})).await);
        assert!(error.contains("`sources.allow_private`") && kind == ErrorKind::Fatal, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sql_address_that_a_url_would_read_as_another_host_is_refused() {
    let mut bench = sql_bench().await;
    for address in [
        "db.example/.evil.example",
        "db.example?.evil.example",
        "db.example#.evil.example",
        "evil.example\\.db.example",
        "db.example@evil.example",
        "db.example:5433",
        "postgres://db.example/x",
    ] {
        bench.config.in_source.as_mut().unwrap().address = String::from(address);
        let (error, kind, _) = failure(bench.run("SqlJob", json!({"statement": "select 1"})).await);
        assert!(error.contains("its Address is more than a host") && kind == ErrorKind::Fatal, "{error}");
    }
}
