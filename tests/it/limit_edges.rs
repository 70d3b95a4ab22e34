//! Delay and Concurrency of a source where edits, deaths, refusals and cancels meet calls that are under way.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::generic_jobs;
use crate::limits::{
    LOOPBACK, call, least_gap, most_in_flight, now, source, statements_of_the_docs, wait_calls,
};
use crate::source_tls::Ca;
use crate::support::stamping_api::{Arrival, StampingApi};
use crate::support::{Daemon, QUICK_LEASE, SOON, TestDb, binary, own_jobs_binary};
use rosterd::connectors::{Call, SourceClient};
use rosterd::history::HistoryId;
use rosterd::postgres::connect::Speaker;
use serde_json::json;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A daemon that does one row at a time.
const ONE_ROW: (&str, &str) = ("ROSTERD__ENGINE__WORKERS", "1");

/// So many rows of one call each.
fn calls(db: &mut TestDb, config: &str, path: &str, count: u32) {
    db.exec(&format!(
        r#"insert into JobHistory (ConfigID, StatusID, Payload)
           select '{config}', 1, '{{"path": "{path}"}}' from generate_series(1, {count})"#
    ));
}

fn set(db: &mut TestDb, source: &str, field: &str, value: u64) {
    db.exec(&format!(
        "update SourceConfig set AuthInfo = jsonb_set(AuthInfo, '{{{field}}}', '{value}') where ID = '{source}'"
    ));
}

fn set_active(db: &mut TestDb, source: &str, active: bool) {
    db.exec(&format!("update SourceConfig set Active = {active} where ID = '{source}'"));
}

/// The calls that came after a time, once there are so many.
fn wait_calls_after(api: &StampingApi, name: &str, at: Duration, count: usize) -> Vec<Arrival> {
    let until = Instant::now() + SOON;
    loop {
        let mut arrivals = api.arrivals(name);
        arrivals.retain(|arrival| arrival.at > at);
        if arrivals.len() >= count {
            return arrivals;
        }
        assert!(Instant::now() < until, "{} of {count} calls came", arrivals.len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A date of the database, since 1970.
fn date(db: &mut TestDb, sql: &str) -> Duration {
    Duration::from_secs_f64(db.text(&format!("select extract(epoch from ({sql}))")).parse().unwrap())
}

/// A port with TLS that lets one connection in after each `pause`, and passes on to an API what is said on it. (A short line
/// of connections to accept would hold up others as well, but TCP takes some of them for connected, and what is written
/// to those arrives when it is sent again, seconds later.)
fn slow_door(ca: &Ca, api: SocketAddr, pause: Duration) -> u16 {
    let acceptor = ca.acceptor("localhost", false);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let turn = Arc::new(tokio::sync::Mutex::new(()));
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, turn) = (acceptor.clone(), Arc::clone(&turn));
                tokio::spawn(async move {
                    let in_turn = turn.lock().await;
                    tokio::time::sleep(pause).await;
                    drop(in_turn);
                    // Who goes away meanwhile is no concern of the door's.
                    let Ok(mut inside) = acceptor.accept(stream).await else { return };
                    let Ok(mut api) = tokio::net::TcpStream::connect(api).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut api).await;
                });
            }
        });
    });
    port
}

// ---- edits ----

#[test]
fn two_runners_that_call_one_after_the_other_never_do_so_at_once_when_concurrency_became_one() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (source, config) = source(&mut db, &api, 0, 2);
    let _daemons =
        [Daemon::start_with(&db, &[LOOPBACK, ONE_ROW]), Daemon::start_with(&db, &[LOOPBACK, ONE_ROW])];
    calls(&mut db, &config, "/turns?millis=100", 500);
    let until = Instant::now() + SOON;
    while most_in_flight(&api.arrivals("turns")) < 2 {
        assert!(Instant::now() < until, "both call");
        std::thread::sleep(Duration::from_millis(5));
    }
    set(&mut db, &source, "Concurrency", 1);
    let acts = now() + Duration::from_secs(1);
    let after = wait_calls_after(&api, "turns", acts, 15);
    assert_eq!(most_in_flight(&after), 1);
}

#[test]
fn a_delay_and_one_call_at_a_time_hold_up_no_runner_whose_calls_are_in_flight_or_still_connect() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let ca = Ca::new("slow");
    let door = slow_door(&ca, api.address, Duration::from_millis(100));
    let (source, config) = source(&mut db, &api, 0, 10);
    db.exec(&format!(
        "update SourceConfig set Address = 'https://localhost:{door}',
           Payload = jsonb_build_object('tls_ca_pem', '{}') where ID = '{source}'",
        ca.pem
    ));
    let _daemons =
        [Daemon::start_with(&db, &[LOOPBACK, ONE_ROW]), Daemon::start_with(&db, &[LOOPBACK, ONE_ROW])];
    for _ in 0..2 {
        call(&mut db, &config, "/edited?millis=300", 100_000);
    }
    wait_calls(&api, "edited", 5);
    assert!(api.accepted() < 10, "some still connect");
    for statement in statements_of_the_docs() {
        db.exec(statement);
    }
    let acts = now() + Duration::from_secs(1);
    let after = wait_calls_after(&api, "edited", acts, 3);
    // The door may be slower to pass one on than the next.
    assert!(least_gap(&after) >= Duration::from_millis(800), "{:?}", least_gap(&after));
    assert_eq!(most_in_flight(&after), 1);
    set(&mut db, &source, "Delay", 0);
    let acts = now() + Duration::from_secs(1);
    let after = wait_calls_after(&api, "edited", acts, 4);
    assert_eq!(most_in_flight(&after), 1);
    assert!(least_gap(&after) < Duration::from_secs(1), "{:?}", least_gap(&after));
}

#[test]
fn a_source_that_gets_its_first_delay_keeps_it_a_second_later_also_behind_the_last_call_that_knew_of_none() {
    const DELAY: Duration = Duration::from_millis(200);
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (source, config) = source(&mut db, &api, 0, 4);
    let _daemons =
        [Daemon::start_with(&db, &[LOOPBACK, ONE_ROW]), Daemon::start_with(&db, &[LOOPBACK, ONE_ROW])];
    for _ in 0..2 {
        call(&mut db, &config, "/first?millis=5", 100_000);
    }
    wait_calls(&api, "first", 50);
    db.wait_for("select count(*) from SourceShare where InFlight + Waiting > 0", "2", SOON);
    set(&mut db, &source, "Delay", DELAY.as_nanos().try_into().unwrap());
    let acts = now() + Duration::from_secs(1);
    wait_calls_after(&api, "first", acts, 5);
    let arrivals = api.arrivals("first");
    let first = arrivals.partition_point(|call| call.at < acts);
    assert!(least_gap(&arrivals[first - 1..]) >= DELAY, "{:?}", &arrivals[first - 1..]);
}

#[test]
fn a_run_whose_source_becomes_inactive_gets_no_further_call_and_ends_as_an_error() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (source, config) = source(&mut db, &api, 0, 2);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let id = call(&mut db, &config, "/stopped?millis=400", 100_000);
    wait_calls(&api, "stopped", 4);
    set_active(&mut db, &source, false);
    let acts = now() + Duration::from_secs(1);
    db.wait_status(&id, 4);
    let said = db.column(&id, "Error");
    assert!(said.contains("it is inactive (SourceConfig.Active)"), "{said}");
    // Rows that were not claimed yet wait, and say for what.
    let pending = call(&mut db, &config, "/pending", 1);
    let reason = format!("select Reason from JobHistoryWaiting where ID = '{pending}'");
    assert_eq!(db.text(&reason), "source paused: HTTP is inactive");
    set_active(&mut db, &source, true);
    db.wait_status(&pending, 3);
    assert!(api.arrivals("stopped").iter().all(|arrival| arrival.at < acts));
}

#[test]
fn where_there_is_a_delay_too_runs_whose_calls_are_in_flight_ready_or_wait_end_when_the_source_is_inactive() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (source, config) = source(&mut db, &api, 1000, 4);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    // One call is in flight, four are ready, and the last one waits behind them. (With those that are ready, the row
    // counts them as waiting.)
    let first = call(&mut db, &config, "/first?millis=1500", 3);
    wait_calls(&api, "first", 1);
    let second = call(&mut db, &config, "/second", 2);
    db.wait_for("select max(Waiting) from SourceShare", "4", SOON);
    let third = call(&mut db, &config, "/third", 1);
    db.wait_for("select max(Waiting) from SourceShare", "5", SOON);
    set_active(&mut db, &source, false);
    let acts = now() + Duration::from_secs(1);
    for id in [&first, &second, &third] {
        db.wait_status(id, 4);
        let said = db.column(id, "Error");
        assert!(said.contains("it is inactive (SourceConfig.Active)"), "{said}");
    }
    let pending = call(&mut db, &config, "/pending", 1);
    set_active(&mut db, &source, true);
    db.wait_status(&pending, 3);
    for name in ["first", "second", "third"] {
        assert!(api.arrivals(name).iter().all(|arrival| arrival.at < acts), "{name}");
    }
}

// ---- runners ----

#[test]
fn three_runners_keep_a_delay_together_and_use_it() {
    const DELAY: Duration = Duration::from_millis(50);
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 50, 8);
    let _daemons: Vec<_> = (0..3).map(|_| Daemon::start_with(&db, &[LOOPBACK, ONE_ROW])).collect();
    for _ in 0..3 {
        call(&mut db, &config, "/used?millis=100", 20);
    }
    db.wait_count(&config, 3, 3);
    let arrivals = api.arrivals("used");
    assert_eq!(arrivals.len(), 60);
    assert!(least_gap(&arrivals) >= DELAY, "{:?}", least_gap(&arrivals));
    assert!(most_in_flight(&arrivals) <= 8);
    let all = arrivals[59].at.saturating_sub(arrivals[0].at);
    assert!(all < DELAY * 59 * 2, "{all:?}");
}

#[test]
fn the_slot_of_a_killed_runner_is_another_ones_after_its_lease_and_not_before() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 1);
    let env = [LOOPBACK, ONE_ROW, QUICK_LEASE[0], QUICK_LEASE[1]];
    let mut dies = Daemon::start_with(&db, &env);
    call(&mut db, &config, "/held?millis=20000", 1);
    wait_calls(&api, "held", 1);
    let _lives = Daemon::start_with(&db, &env);
    call(&mut db, &config, "/next", 1);
    db.wait_for("select coalesce(sum(Waiting), 0) from SourceShare", "1", SOON);
    dies.kill();
    let lapses = date(
        &mut db,
        &format!("select Pulse + LeaseSeconds * interval '1 second' from Runner where PID = {}", dies.pid()),
    );
    wait_calls(&api, "next", 1);
    let next = api.arrivals("next")[0].at;
    assert!(next > lapses, "{:?} before the end of the lease", lapses.saturating_sub(next));
}

#[test]
fn a_single_caller_is_not_left_out_beside_a_runner_with_twenty() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    // HttpJob has one call more under way than Concurrency.
    let (_, config) = source(&mut db, &api, 20, 19);
    let _many = Daemon::start_with(&db, &[LOOPBACK, ONE_ROW]);
    call(&mut db, &config, "/many?millis=5", 100_000);
    wait_calls(&api, "many", 5);
    let _single = Daemon::start_with(&db, &[LOOPBACK, ONE_ROW]);
    calls(&mut db, &config, "/single?millis=5", 200);
    wait_calls(&api, "single", 8);
    let (many, single) = (api.arrivals("many"), api.arrivals("single"));
    let began = db.rows(&format!(
        "select extract(epoch from StartedDate) from JobHistory
         where ConfigID = '{config}' and Payload ->> 'path' like '/single%' and StartedDate is not null order by 1"
    ));
    let began =
        began.unwrap().into_iter().flatten().map(|text| Duration::from_secs_f64(text.parse().unwrap()));
    // Counted in calls and not in time, from when its row began, because a busy machine is slow to bring the next one.
    let passed: Vec<usize> = std::iter::zip(began, &single)
        .map(|(began, own)| many.iter().filter(|call| call.at > began && call.at < own.at).count())
        .collect();
    // A window is at most half a second long where others wait: 25 calls. A busy machine may miss its own, which is short,
    // and waits for the next then.
    assert!(passed.iter().all(|calls| *calls <= 6 * 25), "{passed:?}");
    let mut all = [many, single].concat();
    all.sort_unstable_by_key(|arrival| arrival.at);
    assert!(least_gap(&all) >= Duration::from_millis(20), "{:?}", least_gap(&all));
}

#[test]
fn where_there_is_a_delay_a_lower_priority_number_goes_before_sixteen_that_wait_already() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 400, 16);
    let (_, free) = source(&mut db, &api, 0, 16);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let row = |config: &str, priority: u32, name: &str, repeat: u32| {
        format!(r#"('{config}', 1, {priority}, '{{"path": "/{name}", "repeat": {repeat}}}')"#)
    };
    let insert =
        |rows: &str| format!("insert into JobHistory (ConfigID, StatusID, Priority, Payload) values {rows}");
    db.exec(&insert(&row(&config, 50, "late", 1000)));
    db.wait_for("select max(Waiting) >= 16 from SourceShare", "t", SOON);
    // How long a row needs to its first call on a busy machine is told by one that waits for nobody.
    db.exec(&insert(&format!("{}, {}", row(&free, 6, "free", 1), row(&config, 5, "early", 1))));
    wait_calls(&api, "early", 1);
    wait_calls(&api, "free", 1);
    let (free, early) = (api.arrivals("free")[0].at, api.arrivals("early")[0].at);
    let late = api.arrivals("late");
    let before = late.iter().filter(|call| call.at > free && call.at < early).count();
    // One starts before it is connected, and one had its turn already; another may while the row begins.
    assert!(before <= 4, "{before} of a higher priority number went first");
}

// ---- cancels ----

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_go_away_at_any_moment_of_a_delay_leave_no_share_behind() {
    let api = StampingApi::start().unwrap();
    let pool = generic_jobs::pool().await;
    let auth = json!({"Delay": 5_000_000, "Concurrency": 4});
    let source = generic_jobs::source(&pool, "HTTP", &format!("http://{}", api.address), auth).await;
    let limiter = generic_jobs::runner(&pool).await;
    let client = |cancel: &CancellationToken| {
        let history = HistoryId(Uuid::now_v7());
        let settings = generic_jobs::settings().sources;
        SourceClient::new(&source, &settings, limiter.clone(), history, cancel.clone()).unwrap()
    };
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200_u64 {
        let cancel = CancellationToken::new();
        let client = client(&cancel);
        let lasts = Duration::from_micros(n * 4397 % 400_000);
        tasks.spawn(async move {
            let call = client.call(Call::get("/gone?millis=3"));
            if n % 2 == 0 {
                // As a run that is cancelled.
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    cancel.cancel();
                });
                let _ = call.await;
            } else {
                // As one that does not want the answer any more.
                let _ = tokio::time::timeout(lasts, call).await;
            }
        });
    }
    tasks.join_all().await;
    generic_jobs::until("all shares came back", async || {
        sqlx::query_scalar(
            "select not exists (select from vm.SourceShare where SourceConfigID = $1
               and (Slots > 0 or InFlight > 0 or Waiting > 0 or StartSince is not null))",
        )
        .bind(source.id)
        .fetch_one(&pool)
        .await
        .unwrap()
    })
    .await;
    let arrivals = api.arrivals("gone");
    assert!(arrivals.len() > 10, "{}", arrivals.len());
    assert!(least_gap(&arrivals) >= Duration::from_millis(5), "{:?}", least_gap(&arrivals));
    assert!(most_in_flight(&arrivals) <= 4);
    let asked = now();
    client(&CancellationToken::new()).call(Call::get("/next")).await.unwrap();
    let waited = api.arrivals("next")[0].at.saturating_sub(asked);
    assert!(waited < Duration::from_millis(500), "{waited:?}");
}

// ---- questions ----

/// How often a second five runners ask that wait for the only slot, which is in flight for five seconds.
fn questions_a_second(delay_ms: u32) -> f64 {
    let mut db = TestDb::new();
    let name = db.name.clone();
    db.exec(&format!("alter database {name} set track_functions = 'all'"));
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, delay_ms, 1);
    let env = [LOOPBACK, ("ROSTERD__ENGINE__WORKERS", "2")];
    let _daemons: Vec<_> = (0..5).map(|_| Daemon::start_with(&db, &env)).collect();
    let holds = call(&mut db, &config, "/holds?millis=6000", 1);
    wait_calls(&api, "holds", 1);
    calls(&mut db, &config, "/waits", 9);
    db.wait_for("select count(*) from SourceShare where Waiting > 0", "5", SOON);
    let asked = "select coalesce(sum(calls), 0) from pg_stat_user_functions where funcname = 'share_source'";
    let count = |db: &mut TestDb| db.text(asked).parse::<f64>().unwrap();
    let (began, before) = (now(), count(&mut db));
    db.wait_status(&holds, 3);
    let (took, asked) = (now().saturating_sub(began), count(&mut db) - before);
    assert!(took > Duration::from_secs(3) && asked > 0.0, "{asked} in {took:?}");
    asked / took.as_secs_f64()
}

#[test]
fn five_runners_that_wait_for_the_only_slot_ask_a_few_times_a_second() {
    let asked = questions_a_second(0);
    assert!(asked < 60.0, "{asked:.1} a second");
}

#[test]
fn five_runners_that_wait_for_the_only_slot_of_a_source_with_a_delay_cause_no_storm_of_questions() {
    let asked = questions_a_second(10);
    assert!(asked < 120.0, "{asked:.1} a second");
}

// ---- refusals ----

#[test]
fn a_503_with_retry_after_silences_both_runners_until_then() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 4);
    let _daemons =
        [Daemon::start_with(&db, &[LOOPBACK, ONE_ROW]), Daemon::start_with(&db, &[LOOPBACK, ONE_ROW])];
    for name in ["refused", "beside"] {
        db.insert(&config, &format!(r#"{{"path": "/{name}?millis=20", "repeat": 100000, "retries": 5}}"#));
    }
    wait_calls(&api, "refused", 5);
    wait_calls(&api, "beside", 5);
    api.answer("refused", Some("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\n"));
    let refused = now();
    db.wait_for("select PausedUntil > clock_timestamp() from SourceGate", "t", SOON);
    api.answer("refused", None);
    let until = date(&mut db, "select PausedUntil from SourceGate");
    for name in ["refused", "beside"] {
        let after = wait_calls_after(&api, name, until, 3);
        let during = api.arrivals(name);
        let during: Vec<_> = during
            .iter()
            .filter(|call| {
                call.at > refused + Duration::from_secs(1) && call.at < refused + Duration::from_secs(3)
            })
            .collect();
        assert!(during.is_empty(), "{name}: {during:?}, {after:?}");
    }
}

#[test]
fn a_source_that_asks_for_a_pause_of_a_year_gets_a_day() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 4);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let id = call(&mut db, &config, "/year?status=503&retry-after=31536000", 1);
    db.wait_status(&id, 4);
    let length =
        "select PausedUntil - PausedDate between interval '23:59:59' and interval '24:00:01' from SourceGate";
    assert_eq!(db.text(length), "t");
}

/// A source with a Delay that refused a call half a minute ago, and a runner.
fn refused_once(db: &mut TestDb) -> (String, String) {
    let api = StampingApi::start().unwrap();
    let (source, _) = source(db, &api, 20, 4);
    let runner = db.text(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers)
         values (gen_random_uuid(), 'test', 1, '0', 20, 10) returning ID",
    );
    db.exec(&format!("select vm.push_back_source('{source}', 0, true)"));
    db.wait_for("select PausedUntil < clock_timestamp() from SourceGate", "t", SOON);
    (source, runner)
}

/// It gets a window, which is written down beside the rate.
fn share(source: &str, runner: &str) -> String {
    format!(
        "select Verdict from vm.share_source('{source}', '{runner}', 1, 0, 1, 5, 1, 1, 0, 1, 0.005, true, null, true)"
    )
}

/// Whether somebody waits for a lock in this database.
const BLOCKED: &str = "select exists (select from pg_stat_activity
    where datname = current_database() and application_name = 'rosterd session' and wait_event_type = 'Lock')";

#[test]
fn a_refusal_halves_the_rate_also_while_a_share_is_asked_for() {
    let mut db = TestDb::new();
    let (source, runner) = refused_once(&mut db);
    let (mut refuses, mut asks) = (db.session(Speaker::Operator), db.session(Speaker::Operator));
    refuses.exec("begin");
    refuses.exec(&format!("select vm.push_back_source('{source}', 1, true)"));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| asks.exec(&share(&source, &runner)));
        let until = Instant::now() + SOON;
        while !asked.is_finished() && db.text(BLOCKED) == "f" {
            assert!(Instant::now() < until, "it is answered, or waits");
            std::thread::sleep(Duration::from_millis(5));
        }
        refuses.exec("commit");
        asked.join().unwrap();
    });
    assert_eq!(db.text("select Throttle from SourceGate"), "0.5");
}

#[test]
fn a_refusal_halves_the_rate_also_while_a_share_is_given_out() {
    let mut db = TestDb::new();
    let (source, runner) = refused_once(&mut db);
    let (mut asks, mut refuses) = (db.session(Speaker::Operator), db.session(Speaker::Operator));
    asks.exec("begin");
    assert_eq!(asks.exec(&share(&source, &runner)), "ok");
    std::thread::scope(|scope| {
        let told = scope.spawn(|| refuses.exec(&format!("select vm.push_back_source('{source}', 1, true)")));
        let until = Instant::now() + SOON;
        while !told.is_finished() && db.text(BLOCKED) == "f" {
            assert!(Instant::now() < until, "it is told, or waits");
            std::thread::sleep(Duration::from_millis(5));
        }
        asks.exec("commit");
        told.join().unwrap();
    });
    assert_eq!(db.text("select Throttle from SourceGate"), "0.5");
}

#[test]
fn a_paused_source_at_half_its_rate_is_shown_as_such_to_operators_and_counted() {
    let mut db = TestDb::new();
    let (source, _) = refused_once(&mut db);
    db.exec(&format!("select vm.push_back_source('{source}', 600, true)"));
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", db.url()).envs(QUICK_LEASE);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    let limits =
        Command::new(binary()).args(["source", "limits"]).env("DATABASE_URL", db.url()).output().unwrap();
    let said = String::from_utf8_lossy(&limits.stdout).into_owned();
    let until =
        db.text("select to_char(PausedUntil at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') from SourceGate");
    let line = said.lines().find(|line| line.contains("ACME HTTP")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(" 50 % ") && line.ends_with(&until), "{said}");
    let patience = Instant::now() + SOON;
    loop {
        let metrics = super::service::get(&daemon, "/metrics");
        if metrics.lines().any(|line| line == "rosterd_sources_limited 1") {
            break;
        }
        assert!(Instant::now() < patience, "{metrics}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

// ---- connections ----

#[test]
fn ten_calls_one_after_the_other_use_one_connection() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 1);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let id = call(&mut db, &config, "/again", 10);
    db.wait_status(&id, 3);
    assert_eq!((api.arrivals("again").len(), api.accepted()), (10, 1));
}

#[test]
fn a_connection_that_takes_too_long_is_an_error_that_names_its_configuration_key() {
    let mut db = TestDb::new();
    // It takes nobody in, and its line is full.
    let api = StampingApi::start_slow(SOON * 10).unwrap();
    let _line: Vec<_> = (0..4)
        .map(|_| std::net::TcpStream::connect_timeout(&api.address, Duration::from_millis(100)))
        .collect();
    let (_, config) = source(&mut db, &api, 0, 1);
    let env = [LOOPBACK, ("ROSTERD__SOURCES__CONNECT_TIMEOUT_SECONDS", "0.3")];
    let _daemon = Daemon::start_with(&db, &env);
    let id = call(&mut db, &config, "/never", 1);
    db.wait_status(&id, 4);
    let said = db.column(&id, "Error");
    assert!(said.contains("GET ") && said.contains("`sources.connect_timeout_seconds`"), "{said}");
}
