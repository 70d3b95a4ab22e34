//! Restarts that nobody notices: daemons are told to stop one after the other, under load, and no row pays for it.

use crate::support::{Daemon, SHORT_GRACE, SOON, TestDb, binary, meanwhile};
use rosterd::postgres::connect::Speaker;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SHORT_DRAIN: (&str, &str) = ("ROSTERD__ENGINE__DRAIN_SECONDS", "1");

/// Rows in progress on this very process.
fn in_progress(daemon: &Daemon) -> String {
    format!(
        "select count(*) from JobHistory h join Runner r on r.ID = h.ThreadID where h.StatusID = 2 and r.PID = {}",
        daemon.pid()
    )
}

/// How often each row had its effect, by the file its job wrote a line into.
pub(super) fn effects(file: &Path) -> BTreeMap<String, usize> {
    let mut effects = BTreeMap::new();
    for row in std::fs::read_to_string(file).unwrap_or_default().lines() {
        *effects.entry(row.to_owned()).or_default() += 1;
    }
    effects
}

#[test]
fn three_daemons_restarted_one_after_the_other_under_load_cost_no_row_an_attempt() {
    let mut db = TestDb::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("effects");
    // Short ones end within the drain time; long ones do not, and go back on the queue.
    let payload = serde_json::json!({ "file": file, "seconds": 0.2 });
    let short = db.config("WriteJob", "MaxInstances, Payload", &format!("0, '{payload}'"));
    let long = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 3}'"#);
    let start = |db: &TestDb| Daemon::start_with(db, &[SHORT_DRAIN, SHORT_GRACE]);
    let mut daemons: Vec<Daemon> = (0..3).map(|_| start(&db)).collect();

    let mut operator = db.session(Speaker::Operator);
    let insert = || {
        operator.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID)
             select c::uuid, 1 from unnest(array_fill('{short}'::text, array[8]) || array_fill('{long}'::text, array[2])) c"
        ));
        std::thread::sleep(Duration::from_millis(50));
    };
    meanwhile(insert, || {
        for daemon in &mut daemons {
            // With work under way here, and more on the queue.
            db.wait_for(&format!("select ({}) > 0", in_progress(daemon)), "t", SOON);
            assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.output());
            assert_eq!(db.text(&in_progress(daemon)), "0");
            *daemon = start(&db);
        }
    });
    db.wait_for("select count(*) from JobHistory where StatusID <> 3", "0", SOON);
    assert_eq!(db.text("select count(*) from JobHistory where Attempt <> 1 or Crashes <> 0"), "0");
    let effects = effects(&file);
    assert_eq!(
        effects.len().to_string(),
        db.text(&format!("select count(*) from JobHistory where ConfigID = '{short}'"))
    );
    let twice: Vec<_> = effects.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_ne!(db.text(&format!("select count(*) from JobHistory where ConfigID = '{long}'")), "0");
    assert_eq!(db.text("select coalesce(sum(Open), 0) from Claim"), "0");
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn sigterm_with_a_thousand_jobs_in_progress_releases_them_within_ten_seconds_of_the_drain_time() {
    let mut db = TestDb::new();
    for job in ["SleepJob", "StubbornJob"] {
        let config = db.config(job, "MaxInstances", "0");
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 500)"
        ));
    }
    let mut daemon = Daemon::start_with(&db, &[SHORT_DRAIN, SHORT_GRACE, ("ROSTERD__LOG__LEVEL", "warn")]);
    db.wait_for("select count(*) from JobHistory where StatusID = 2", "1000", SOON);
    let began = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0));
    let took = began.elapsed();
    println!("SIGTERM with 1,000 jobs and a drain time of 1 s: ended after {took:.1?}");
    assert!(took < Duration::from_secs(11), "{took:?}");
    // As if they had never been started.
    let untouched = "select count(*) from JobHistory where StatusID = 1 and Attempt = 0 and Crashes = 0 and Error is null";
    assert_eq!(db.text(untouched), "1000");
    assert_eq!(
        db.text("select (select count(*) from Runner) + (select coalesce(sum(Open), 0) from Claim)"),
        "0"
    );
}

#[test]
fn a_drained_daemon_finishes_what_it_runs_while_another_takes_what_is_new_and_back() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let beat = ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.2");
    let drained = Daemon::start_with(&db, &[beat]);
    let url = db.url();
    let drain = |runner: &str, more: &[&str]| {
        let said = Command::new(binary())
            .args(["runner", "drain", runner])
            .args(more)
            .env("DATABASE_URL", &url)
            .output()
            .unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    };
    let id = db.insert(&config, r#"{"seconds": 2}"#);
    db.wait_status(&id, 2);
    let runner = db.text("select ID from Runner");
    let mut other = Daemon::start_with(&db, &[beat]);
    drain(&runner, &[]);
    db.wait_for(&format!("select State from Runner where ID = '{runner}'"), "draining", SOON);
    for _ in 0..20 {
        db.insert(&config, r#"{"seconds": 0}"#);
    }
    db.wait_count(&config, 3, 21);
    let by_the_drained = format!("select count(*) from JobHistory where ThreadID = '{runner}'");
    assert_eq!(db.text(&by_the_drained), "1", "the one it had");
    assert_eq!(db.column(&id, "StatusID || ' ' || Attempt"), "3 1");
    assert!(other.stop().success());
    let waits = db.insert(&config, r#"{"seconds": 0}"#);
    db.wait_for(
        &format!("select Reason from JobHistoryWaiting where ID = '{waits}'"),
        "runners draining",
        SOON,
    );
    drain(&runner, &["--undo"]);
    db.wait_status(&waits, 3);
    assert_eq!(db.text(&by_the_drained), "2");
    drop(drained);
}
