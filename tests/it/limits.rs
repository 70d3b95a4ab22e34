//! Delay and Concurrency of a source as the source sees them: real daemons, `HttpJob`, and an API whose kernel stamps
//! each call when it arrives.

use crate::support::stamping_api::{Arrival, StampingApi};
use crate::support::{Daemon, QUICK_LEASE, SOON, TestDb};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(super) const LOOPBACK: (&str, &str) = ("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8");

/// A source of this API and a configuration of `HttpJob` for it; returns both IDs.
pub(super) fn source(
    db: &mut TestDb,
    api: &StampingApi,
    delay_ms: u32,
    concurrency: u32,
) -> (String, String) {
    // The job's row in Job is made by the first daemon; here it must be there before.
    let config = db.config("HttpJob", "MaxInstances", "0");
    let source = db.text(&format!(
        r#"insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
           select 'HTTP', OrganizationID, 'http://{}', '{{"Delay": {}, "Concurrency": {concurrency}}}'
           from JobConfig where ID = '{config}' returning ID"#,
        api.address,
        u64::from(delay_ms) * 1_000_000,
    ));
    db.exec(&format!("update JobConfig set DataInSourceConfigID = '{source}' where ID = '{config}'"));
    (source, config)
}

pub(super) fn call(db: &mut TestDb, config: &str, path: &str, repeat: u32) -> String {
    db.insert(config, &format!(r#"{{"path": "{path}", "repeat": {repeat}}}"#))
}

pub(super) fn wait_calls(api: &StampingApi, name: &str, count: usize) {
    let until = Instant::now() + SOON;
    while api.arrivals(name).len() < count {
        assert!(Instant::now() < until, "{} of {count} calls came", api.arrivals(name).len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn least_gap(arrivals: &[Arrival]) -> Duration {
    arrivals.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).min().expect("two calls")
}

pub(super) fn most_in_flight(arrivals: &[Arrival]) -> usize {
    arrivals.iter().map(|arrival| arrival.in_flight).max().unwrap_or(0)
}

pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[test]
fn no_gap_is_shorter_than_delay_by_the_clock_of_the_api_while_three_runners_call_and_one_is_killed() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 20, 4);
    let env = [LOOPBACK, QUICK_LEASE[0], QUICK_LEASE[1], ("ROSTERD__ENGINE__WORKERS", "1")];
    let mut daemons: Vec<_> = (0..3).map(|_| Daemon::start_with(&db, &env)).collect();
    for _ in 0..3 {
        call(&mut db, &config, "/gaps?millis=30", 60);
    }
    wait_calls(&api, "gaps", 60);
    let killed = daemons.len() - 1;
    daemons[killed].kill();
    // Its row begins anew elsewhere.
    db.wait_count(&config, 3, 3);
    let arrivals = api.arrivals("gaps");
    assert!(arrivals.len() >= 180);
    assert!(least_gap(&arrivals) >= Duration::from_millis(20), "{:?}", least_gap(&arrivals));
    assert!(most_in_flight(&arrivals) <= 4, "{}", most_in_flight(&arrivals));
}

#[test]
fn a_frozen_runner_sends_no_call_once_its_turn_is_another_runners() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 30, 1);
    let env = [LOOPBACK, QUICK_LEASE[0], QUICK_LEASE[1], ("ROSTERD__ENGINE__WORKERS", "1")];
    let frozen = Daemon::start_with(&db, &env);
    call(&mut db, &config, "/frozen?millis=5", 40);
    db.wait_count(&config, 2, 1);
    let _other = Daemon::start_with(&db, &env);
    wait_calls(&api, "frozen", 5);
    frozen.signal("STOP");
    let before = api.arrivals("frozen").len();
    // The row goes on elsewhere, at the same source.
    wait_calls(&api, "frozen", before + 10);
    frozen.signal("CONT");
    db.wait_count(&config, 3, 1);
    let arrivals = api.arrivals("frozen");
    assert!(least_gap(&arrivals) >= Duration::from_millis(30), "{:?}", least_gap(&arrivals));
    assert_eq!(most_in_flight(&arrivals), 1);
}

/// "How can I make API calls less frequently?": the two statements of docs/sql.md.
pub(super) fn statements_of_the_docs() -> Vec<&'static str> {
    let docs = include_str!("../../docs/sql.md");
    let (_, answer) = docs.split_once("How can I make API calls less frequently?").expect("the question");
    let (_, block) = answer.split_once("```sql\n").expect("the statements");
    let statements = block.split_once("```").expect("their end").0;
    let statements: Vec<&str> = statements.split_inclusive(";\n").map(str::trim).collect();
    assert_eq!(statements.len(), 2, "{statements:?}");
    statements
}

#[test]
fn the_two_statements_of_the_docs_slow_a_running_job_down_within_a_second() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 10);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let id = call(&mut db, &config, "/slower?millis=20", 100_000);
    wait_calls(&api, "slower", 50);
    assert!(most_in_flight(&api.arrivals("slower")) > 1);
    for statement in statements_of_the_docs() {
        db.exec(statement);
    }
    let acts = now() + Duration::from_secs(1);
    let until = Instant::now() + SOON;
    let slowed = loop {
        let after: Vec<_> = api.arrivals("slower").into_iter().filter(|arrival| arrival.at > acts).collect();
        if after.len() >= 4 {
            break after;
        }
        assert!(Instant::now() < until, "the job goes on");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(least_gap(&slowed) >= Duration::from_millis(500), "{:?}", least_gap(&slowed));
    assert_eq!(most_in_flight(&slowed), 1);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
}

#[test]
fn a_source_that_asks_for_a_pause_gets_it_from_all_runners_and_waiting_rows_say_until_when() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (source, config) = source(&mut db, &api, 0, 4);
    let _daemons = [Daemon::start_with(&db, &[LOOPBACK]), Daemon::start_with(&db, &[LOOPBACK])];
    api.answer("pause", Some("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\n"));
    let refused = call(&mut db, &config, "/pause", 1);
    db.wait_status(&refused, 4);
    api.answer("pause", None);
    let asked = api.arrivals("pause").last().unwrap().at;
    let waits: Vec<_> = (0..4).map(|_| call(&mut db, &config, "/pause", 1)).collect();
    let view = format!(
        "select Reason || ' ' || (Until > now())::text from JobHistoryWaiting where ID = '{}'",
        waits[0]
    );
    assert_eq!(db.text(&view), "source paused: HTTP asked for a pause true");
    let limits = format!("select PausedUntil > now() from SourceGate where SourceConfigID = '{source}'");
    assert_eq!(db.text(&limits), "t");
    for id in &waits {
        db.wait_status(id, 3);
    }
    let next = api.arrivals("pause")[1].at;
    assert!(next >= asked + Duration::from_secs(3), "{next:?} after {asked:?}");
}

#[test]
fn refusals_again_and_again_halve_the_rate_and_answers_give_it_back_but_never_more_than_was_allowed() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (source, config) = source(&mut db, &api, 10, 8);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let throttle = format!("select Throttle from SourceGate where SourceConfigID = '{source}'");
    api.answer("halve", Some("HTTP/1.1 429 Too Many Requests\r\n"));
    // Refusals count once while the database has the source paused, which it has until a little after the runner has.
    let no_pause = format!(
        "select not exists (select from SourceGate where SourceConfigID = '{source}' and PausedUntil >= clock_timestamp())"
    );
    for expected in ["1", "0.5", "0.25"] {
        db.wait_for(&no_pause, "t", SOON);
        let id = call(&mut db, &config, "/halve", 1);
        db.wait_status(&id, 4);
        assert_eq!(db.text(&throttle), expected);
    }
    api.answer("halve", None);
    let before = api.arrivals("halve").len();
    let id = call(&mut db, &config, "/halve", 20);
    db.wait_status(&id, 3);
    let gap = least_gap(&api.arrivals("halve")[before..]);
    assert!(gap >= Duration::from_millis(40), "a quarter of the rate, {gap:?}");
    // A success after ten seconds gives some back, as if the last refusal had been a while ago.
    let long_ago = "update SourceGate set ThrottledDate = now() - interval '11 seconds'";
    let answered = |db: &mut TestDb| {
        db.exec(long_ago);
        let id = call(db, &config, "/halve?millis=1", 30);
        db.wait_status(&id, 3);
    };
    for _ in 0..20 {
        if db.text(&throttle) == "1" {
            break;
        }
        answered(&mut db);
    }
    assert_eq!(db.text(&throttle), "1");
    for _ in 0..3 {
        answered(&mut db);
        assert_eq!(db.text(&throttle), "1", "never more than was allowed");
    }
}

#[test]
fn a_cancelled_call_counts_until_the_api_has_answered_it() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 1);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let cancelled = call(&mut db, &config, "/linger?millis=1500", 1);
    wait_calls(&api, "linger", 1);
    let next = call(&mut db, &config, "/linger", 1);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{cancelled}'"));
    db.wait_status(&cancelled, 5);
    assert_eq!(api.arrivals("linger").len(), 1, "the cancel did not wait for the answer");
    db.wait_status(&next, 3);
    assert_eq!(most_in_flight(&api.arrivals("linger")), 1);
}

#[test]
fn a_server_that_closes_idle_connections_fails_no_call_of_a_source_with_a_long_delay() {
    let mut db = TestDb::new();
    let api = StampingApi::start_with(Some(Duration::from_millis(300))).unwrap();
    let (_, config) = source(&mut db, &api, 1300, 2);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    let id = call(&mut db, &config, "/idle", 4);
    db.wait_status(&id, 3);
    let arrivals = api.arrivals("idle");
    assert_eq!(arrivals.len(), 4);
    assert!(least_gap(&arrivals) >= Duration::from_millis(1300), "{:?}", least_gap(&arrivals));
}

#[test]
fn a_saturated_and_a_paused_source_hold_up_no_call_of_another() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, saturated) = source(&mut db, &api, 0, 1);
    let (paused, waits) = source(&mut db, &api, 0, 1);
    let (_, free) = source(&mut db, &api, 0, 1);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    db.exec(&format!("select vm.push_back_source('{paused}', 600, false)"));
    let busy: Vec<_> = (0..20).map(|_| call(&mut db, &saturated, "/busy?millis=60000", 1)).collect();
    wait_calls(&api, "busy", 1);
    call(&mut db, &waits, "/paused", 1);
    for _ in 0..5 {
        let began = Instant::now();
        let id = call(&mut db, &free, "/free", 1);
        db.wait_status(&id, 3);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    assert_eq!((api.arrivals("busy").len(), api.arrivals("paused").len()), (1, 0));
    for id in &busy {
        db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    }
    db.wait_count(&saturated, 5, 20);
}

#[test]
fn calls_of_a_job_with_a_lower_priority_number_go_first() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 1);
    let _daemon = Daemon::start_with(&db, &[LOOPBACK]);
    // The first call holds the only slot until all others wait in line.
    call(&mut db, &config, "/first?millis=1500", 1);
    wait_calls(&api, "first", 1);
    for (priority, name) in [(50, "late"), (5, "early")] {
        db.exec(&format!(
            r#"insert into JobHistory (ConfigID, StatusID, Priority, Payload)
               values ('{config}', 1, {priority}, '{{"path": "/{name}"}}')"#
        ));
        db.wait_count(&config, 2, if name == "late" { 2 } else { 3 });
    }
    db.wait_for("select coalesce(sum(Waiting), 0) from SourceShare", "2", SOON);
    db.wait_count(&config, 3, 3);
    assert!(api.arrivals("early")[0].at < api.arrivals("late")[0].at);
}
