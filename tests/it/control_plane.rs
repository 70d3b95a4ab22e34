//! Jobs that block their threads take nothing from the loops that claim, pulse, cancel and report.

use crate::support::{Daemon, SHORT_GRACE, SOON, TestDb};
use std::time::{Duration, Instant};

#[test]
fn jobs_that_block_every_thread_stop_neither_pulse_nor_cancel_nor_claims() {
    let mut db = TestDb::new();
    let spin = db.config("SpinJob", "MaxInstances, Payload", r#"0, '{"seconds": 9}'"#);
    let noop = db.config("NoopJob", "MaxInstances", "0");
    let mut command = std::process::Command::new(crate::support::own_jobs_binary());
    command.args(["run", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", db.url());
    command.envs([
        SHORT_GRACE,
        ("ROSTERD__ENGINE__JOB_THREADS", "2"),
        ("ROSTERD__ENGINE__MAX_ABANDONED", "0"),
        ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.3"),
    ]);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{spin}', 1 from generate_series(1, 4)"
    ));
    db.wait_count(&spin, 2, 4);
    let seq: u32 = db.text("select Seq from Runner").parse().unwrap();
    let other = db.insert(&noop, "{}");
    db.wait_status(&other, 2);
    db.wait_for(&format!("select Seq > {} from Runner", seq + 3), "t", SOON);
    assert!(super::service::get(&daemon, "/healthz").starts_with("HTTP/1.1 200"));

    let began = Instant::now();
    db.exec(&format!("update JobHistory set StatusID = -1 where ConfigID = '{spin}'"));
    db.wait_count(&spin, 5, 4);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(5500), "grace and five seconds, it took {took:?}");
    assert_eq!(
        db.text(&format!("select distinct StopReason from JobHistory where ConfigID = '{spin}'")),
        "abandoned"
    );
    // Once the threads are free the other row runs, and the abandoned ones stay as they ended.
    db.wait_status(&other, 3);
    let after = db.insert(&noop, "{}");
    db.wait_status(&after, 3);
    assert_eq!(
        db.text(&format!("select count(*) from JobHistory where ConfigID = '{spin}' and StatusID = 5")),
        "4"
    );
}

#[test]
fn a_cooperative_job_is_cancelled_within_a_second_also_with_the_hints_lost_within_two() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    for (hints, limit) in [(true, 1.0), (false, 2.0)] {
        let id = db.insert(&config, "{}");
        db.wait_status(&id, 2);
        if !hints {
            db.terminate("listen");
        }
        db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
        db.wait_status(&id, 5);
        let took: f64 = db.column(&id, "extract(epoch from FinishedDate - CancelDate)").parse().unwrap();
        assert!(took <= limit, "{took} s");
        assert_eq!(db.column(&id, "StopReason"), "stopped");
        assert_eq!(db.column(&id, "Error"), "");
    }
    assert_eq!(db.text("select count(*) from CancelRequest"), "0");
}

#[test]
fn a_stubborn_job_is_aborted_after_its_grace() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "", "");
    let _daemon = Daemon::start_with(&db, &[SHORT_GRACE]);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    assert_eq!(db.column(&id, "StopReason"), "aborted");
}

#[test]
fn cancelling_a_parent_cancels_its_children() {
    let mut db = TestDb::new();
    let parent = db.config("ParentJob", "", "");
    let child = db.config("SleepJob", "MaxInstances", "2");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&parent, &format!(r#"{{"child_config": "{child}", "children": 5}}"#));
    db.wait_count(&child, 2, 2);
    db.wait_count(&child, 1, 3);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    db.wait_count(&child, 5, 5);
}

/// A daemon with this many threads and this `engine.max_abandoned`, and so many jobs that block for a while and are
/// cancelled.
fn with_blocked_threads(db: &mut TestDb, threads: &str, most: &str, blocked: usize) -> (Daemon, String) {
    let spin = db.config("SpinJob", "MaxInstances, Payload", r#"0, '{"seconds": 25}'"#);
    let daemon = Daemon::start_with(
        db,
        &[
            SHORT_GRACE,
            ("ROSTERD__ENGINE__JOB_THREADS", threads),
            ("ROSTERD__ENGINE__MAX_ABANDONED", most),
            ("ROSTERD__ENGINE__DRAIN_SECONDS", "1"),
        ],
    );
    for _ in 0..blocked {
        db.insert(&spin, r#"{"seconds": 25}"#);
    }
    db.wait_count(&spin, 2, blocked);
    (daemon, spin)
}

#[test]
fn with_more_abandoned_jobs_than_allowed_the_daemon_puts_its_rows_back_and_ends_for_a_fresh_one() {
    let mut db = TestDb::new();
    let (mut daemon, spin) = with_blocked_threads(&mut db, "6", "2", 3);
    let sleep = db.config("SleepJob", "", "");
    let innocent = db.insert(&sleep, "{}");
    db.wait_status(&innocent, 2);
    db.exec(&format!("update JobHistory set StatusID = -1 where ConfigID = '{spin}'"));
    assert_eq!(daemon.wait_exit().code(), Some(70));
    daemon.wait_line("3 jobs cannot be stopped and hold threads");
    daemon.wait_line("engine.max_abandoned");
    assert_eq!(db.column(&innocent, "StatusID || ' ' || Attempt || ' ' || Crashes"), "1 0 0");
    assert_eq!(db.text("select count(*) from Runner"), "0");
    let fresh = Daemon::start(&db);
    db.wait_status(&innocent, 2);
    drop(fresh);
}

#[test]
fn with_every_thread_held_by_an_abandoned_job_the_daemon_ends_without_waiting_for_any() {
    let mut db = TestDb::new();
    let (mut daemon, spin) = with_blocked_threads(&mut db, "2", "8", 2);
    let sleep = db.config("SleepJob", "", "");
    let behind = db.insert(&sleep, "{}");
    db.wait_status(&behind, 2);
    db.exec(&format!("update JobHistory set StatusID = -1 where ConfigID = '{spin}'"));
    db.wait_count(&spin, 5, 2);
    assert_eq!(daemon.wait_exit().code(), Some(70));
    assert_eq!(db.column(&behind, "StatusID || ' ' || Attempt"), "1 0");
}
