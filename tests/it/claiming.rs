//! What is claimed, in which order, how soon, and what cannot hold it up.

use crate::support::{Daemon, TestDb};
use rosterd::postgres::connect::Speaker;
use std::time::{Duration, Instant};

const ONE_WORKER: (&str, &str) = ("ROSTERD__ENGINE__WORKERS", "1");

/// The identifiers of a configuration's rows in the order of their starts.
fn started_order(db: &mut TestDb) -> Vec<String> {
    let rows =
        db.rows("select Identifier from JobHistory where StartedDate is not null order by StartedDate");
    rows.unwrap().into_iter().flatten().collect()
}

#[test]
fn rows_start_in_the_order_of_priority_then_not_before_then_id() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let other = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 0}'"#);
    for (config, word, priority, age) in [
        (&config, "e", "7", 0),
        (&other, "c", "5", 0),
        (&config, "d", "5", 0),
        (&config, "b", "5", 60),
        (&other, "f", "7", 0),
        (&other, "a", "-3", 0),
    ] {
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID, Identifier, Priority, NotBefore)
             values ('{config}', 1, '{word}', {priority}, '2026-01-01 12:00:00Z'::timestamptz - {age} * interval '1 second')"
        ));
    }
    let _daemon = Daemon::start_with(&db, &[ONE_WORKER]);
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "6", crate::support::SOON);
    assert_eq!(started_order(&mut db), ["a", "b", "c", "d", "e", "f"]);
}

#[test]
fn a_row_without_priority_gets_its_configurations_override_or_its_jobs() {
    let mut db = TestDb::new();
    let plain = db.config("NoopJob", "MaxInstances", "0");
    let urgent = db.config("SleepJob", "PriorityOverride, Payload", r#"1, '{"seconds": 0}'"#);
    db.exec("update Job set Priority = 3 where Struct = 'NoopJob'");
    for (config, word) in [(&plain, "own of its job"), (&urgent, "override"), (&plain, "own of its job too")]
    {
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID, Identifier) values ('{config}', 1, '{word}')"
        ));
    }
    let _daemon = Daemon::start_with(&db, &[ONE_WORKER]);
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "3", crate::support::SOON);
    assert_eq!(started_order(&mut db), ["override", "own of its job", "own of its job too"]);
    assert_eq!(db.text("select Priority from Job where Struct = 'NoopJob'"), "3", "the daemon keeps it");
}

#[test]
fn a_row_with_not_before_in_the_future_starts_then_and_not_earlier() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    for ms in [300, 800, 1500, 1501] {
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID, NotBefore)
             values ('{config}', 1, clock_timestamp() + {ms} * interval '1 millisecond')"
        ));
    }
    db.wait_count(&config, 3, 4);
    let late =
        db.rows("select extract(epoch from StartedDate - NotBefore) from JobHistory order by ID").unwrap();
    for late in late.into_iter().flatten().map(|text| text.parse::<f64>().unwrap()) {
        assert!((0.0..=1.0).contains(&late), "started {late} s after NotBefore");
    }
}

#[test]
fn a_not_before_edited_on_a_pending_row_acts_at_once() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, NotBefore) values ('{config}', 1, now() + interval '1 hour') returning ID"
    ));
    db.exec(&format!("update JobHistory set NotBefore = now() where ID = '{id}'"));
    let began = Instant::now();
    db.wait_status(&id, 3);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn max_instances_is_never_exceeded_by_two_daemons() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances, Payload", r#"3, '{"seconds": 0.03}'"#);
    let _one = Daemon::start(&db);
    let _two = Daemon::start(&db);
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 40)"
    ));
    db.wait_count(&config, 3, 40);
    let most = db.most_at_once(&config);
    assert_eq!(most, 3, "room is used and not exceeded");
}

#[test]
fn a_max_instances_edited_from_no_limit_to_two_holds_for_every_start_after_it() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 0.05}'"#);
    let _one = Daemon::start(&db);
    let _two = Daemon::start(&db);
    for _ in 0..5 {
        db.exec(&format!("update JobConfig set MaxInstances = 0 where ID = '{config}'"));
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 12)"
        ));
        db.exec(&format!("update JobConfig set MaxInstances = 2 where ID = '{config}'"));
        let edited = db.text("select clock_timestamp()");
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 12)"
        ));
        db.wait_for("select count(*) from JobHistory where StatusID in (1, 2)", "0", crate::support::SOON);
        // Whoever started after the edit found at most one other in progress.
        let worst = db.text(&format!(
            "select coalesce(max((select count(*) from JobHistory o
               where o.ID <> h.ID and o.StartedDate <= h.StartedDate and o.FinishedDate > h.StartedDate)), 0)
             from JobHistory h where h.StartedDate > timestamptz '{edited}' + interval '20 ms'"
        ));
        assert!(
            worst.parse::<i32>().unwrap() <= 1,
            "a start after the edit found {worst} others in progress"
        );
    }
}

#[test]
fn nothing_of_what_is_inactive_starts_and_all_of_it_once_it_is_active() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let source = "insert into SourceConfig (Source, OrganizationID, Address)
        select 'HTTP', ID, 'http://127.0.0.1' from Organization returning ID";
    let (in_source, further) = (db.text(source), db.text(source));
    db.exec(&format!("update JobConfig set DataInSourceConfigID = '{in_source}' where ID = '{config}'"));
    db.exec(&format!("insert into JobConfigSource (ConfigID, Direction, Position, SourceConfigID) values ('{config}', 'in', 1, '{further}')"));
    let marker = db.config("SleepJob", "Payload", r#"'{"seconds": 0}'"#);
    db.exec("insert into Organization (Code) values ('OTHER')");
    db.exec(&format!("update JobConfig set OrganizationID = (select ID from Organization where Code = 'OTHER') where ID = '{marker}'"));
    let _daemon = Daemon::start(&db);
    for switch in [
        format!("JobConfig set Active = $ where ID = '{config}'"),
        "Organization set Active = $ where Code = 'ACME'".to_owned(),
        format!("SourceConfig set Active = $ where ID = '{in_source}'"),
        format!("SourceConfig set Active = $ where ID = '{further}'"),
    ] {
        db.exec(&format!("update {}", switch.replace('$', "false")));
        let id = db.insert(&config, "{}");
        // A row inserted later has run, so the queue was looked at.
        let later = db.insert(&marker, r#"{"seconds": 0}"#);
        db.wait_status(&later, 3);
        assert_eq!(db.status(&id), "1", "{switch}");
        db.exec(&format!("update {}", switch.replace('$', "true")));
        db.wait_status(&id, 3);
    }
}

#[test]
fn a_row_of_a_job_nobody_knows_stays_and_says_so() {
    let mut db = TestDb::new();
    let known = db.config("NoopJob", "", "");
    let unknown = db.config("FoldLaundryJob", "", "");
    let _daemon = Daemon::start(&db);
    let waits = db.insert(&unknown, "{}");
    let runs = db.insert(&known, "{}");
    db.wait_status(&runs, 3);
    assert_eq!(db.status(&waits), "1");
    let reason = db.text(&format!("select Reason from JobHistoryWaiting where ID = '{waits}'"));
    assert_eq!(reason, "no runner knows the job FoldLaundryJob");
}

#[test]
fn an_open_transaction_of_an_operator_holds_up_neither_inserts_nor_claims_of_others() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let other = db.config("SleepJob", "Payload", r#"'{"seconds": 0}'"#);
    db.exec("update JobConfig set Active = false");
    let held = db.insert(&config, "{}");
    let mut operators: Vec<_> = (0..7).map(|_| db.session(Speaker::Operator)).collect();
    // One holds a pending row, one edits a configuration, five insert, which holds every slot of the wake-up hint.
    operators[0].exec(&format!("begin; select ID from JobHistory where ID = '{held}' for update"));
    for operator in &mut operators[2..] {
        operator.exec(&format!("begin; insert into JobHistory (ConfigID, StatusID) values ('{config}', 1)"));
    }
    db.exec("update JobConfig set Active = true");
    let _daemon = Daemon::start_with(&db, &[ONE_WORKER]);
    let limit = Duration::from_secs(4);
    // The held row is the first of its lane and its lane has room for one.
    let behind = db.insert(&config, "{}");
    let status = |id: &str| format!("select StatusID from JobHistory where ID = '{id}'");
    db.wait_for(&status(&behind), "3", limit);
    operators[1].exec(&format!("begin; update JobConfig set WaitInSeconds = 5 where ID = '{config}'"));
    let began = Instant::now();
    let same = db.insert(&config, "{}");
    let elsewhere = db.insert(&other, r#"{"seconds": 0}"#);
    assert!(began.elapsed() < Duration::from_secs(1), "the INSERTs waited {:?}", began.elapsed());
    db.wait_for(&status(&elsewhere), "3", limit);
    assert_eq!(db.status(&held), "1");
    for operator in &mut operators {
        operator.exec("commit");
    }
    db.wait_status(&held, 3);
    db.wait_status(&same, 3);
    db.wait_for("select count(*) from JobHistory where StatusID <> 3", "0", crate::support::SOON);
}

#[test]
fn an_insert_in_a_transaction_with_an_old_snapshot_is_taken_and_runs() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let mut operator = db.session(Speaker::Operator);
    operator.exec("begin isolation level repeatable read; select count(*) from JobHistory");
    for _ in 0..6 {
        let id = db.insert(&config, "{}");
        db.wait_status(&id, 3);
    }
    let id = operator
        .exec(&format!("insert into JobHistory (ConfigID, StatusID) values ('{config}', 1) returning ID"));
    operator.exec("commit");
    db.wait_status(&id, 3);
}

/// Milliseconds from INSERT to start of one row after the other, sorted.
fn start_latencies(
    db: &mut TestDb,
    config: &str,
    count: usize,
    mut before_each: impl FnMut(&mut TestDb),
) -> Vec<f64> {
    let mut waits: Vec<f64> = (0..count)
        .map(|_| {
            before_each(db);
            let id = db.insert(config, "{}");
            db.wait_status(&id, 3);
            db.text(&format!(
                "select extract(epoch from StartedDate - CreatedDate) * 1000 from JobHistory where ID = '{id}'"
            ))
            .parse()
            .unwrap()
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    waits
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn an_idle_runner_starts_a_row_within_milliseconds() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let waits = start_latencies(&mut db, &config, 200, |_| {});
    println!(
        "INSERT to start: p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        waits[100], waits[198], waits[199]
    );
    assert!(waits[100] < 50.0 && waits[198] < 250.0, "p50 {} ms, p99 {} ms", waits[100], waits[198]);
}

#[test]
fn with_the_hints_lost_a_row_starts_by_the_clock() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let waits = start_latencies(&mut db, &config, 4, |db| {
        db.terminate("listen");
    });
    assert!(waits[3] <= 1500.0, "{waits:?} ms");
}

#[test]
fn a_row_of_another_lane_than_the_usual_one_does_not_wait_for_the_clock() {
    let mut db = TestDb::new();
    let [usual, other] = ["NoopJob", "SleepJob"].map(|job| db.config(job, "MaxInstances", "0"));
    let _daemon = Daemon::start_with(&db, &[("ROSTERD__ENGINE__POLL_SECONDS", "60")]);
    for config in [&usual, &usual, &usual, &other, &usual, &other] {
        let id = db.insert(config, if config == &other { r#"{"seconds": 0}"# } else { "{}" });
        db.wait_status(&id, 3);
    }
}

#[test]
fn a_more_urgent_row_overtakes_a_drain_that_is_under_way() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let urgent = db.config("SleepJob", "MaxInstances", "0");
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, Priority) select '{config}', 1, 5 from generate_series(1, 10000)"
    ));
    let _daemon = Daemon::start_with(&db, &[("ROSTERD__ENGINE__CLAIM_BATCH", "5")]);
    db.wait_for("select count(*) > 100 from JobHistory where StatusID = 3", "t", crate::support::SOON);
    // Behind the place at which the drain has arrived: in its own lane, and in another.
    for (config, payload) in [(&config, "{}"), (&urgent, r#"{"seconds": 0}"#)] {
        let id = db.text(&format!(
            "insert into JobHistory (ConfigID, StatusID, Priority, Payload) values ('{config}', 1, 1, '{payload}') returning ID"
        ));
        db.wait_status(&id, 3);
    }
    assert_eq!(db.text("select count(*) > 1000 from JobHistory where StatusID = 1"), "t", "it overtook");
}

#[test]
fn two_daemons_never_run_a_row_twice() {
    let mut db = TestDb::new();
    let config = db.config("TalkJob", "MaxInstances", "0");
    let _one = Daemon::start(&db);
    let _two = Daemon::start(&db);
    db.exec(&format!(
        r#"insert into JobHistory (ConfigID, StatusID, Payload) select '{config}', 1, '{{"lines": 1}}' from generate_series(1, 500)"#
    ));
    db.wait_count(&config, 3, 500);
    assert_eq!(db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"), "500");
    // Each run says one line, so a second run of a row would show.
    db.wait_for(
        "select count(*) || ' of ' || count(distinct JobHistoryID) from Logs",
        "500 of 500",
        crate::support::SOON,
    );
}
