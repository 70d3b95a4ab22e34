//! Rows that start over: one ID, many iterations.

use crate::support::{Daemon, SOON, TestDb};
use std::time::Duration;

const BRIEF: &str = r#"{"seconds": 0.01}"#;

/// Waits until a row rests after at least this many iterations.
fn wait_iterations(db: &mut TestDb, id: &str, count: u32) {
    db.wait_for(
        &format!("select CurrentIteration >= {count} and StatusID = 1 from JobHistory where ID = '{id}'"),
        "t",
        SOON,
    );
}

#[test]
fn a_continuous_row_keeps_its_id_counts_its_iterations_and_waits_between_them() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 1");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, BRIEF);
    wait_iterations(&mut db, &id, 1);
    let (started, due) = (db.column(&id, "StartedDate"), db.column(&id, "NotBefore"));
    let wait: f64 = db.column(&id, "extract(epoch from NotBefore - PulseDate)").parse().unwrap();
    assert!((0.95..1.05).contains(&wait), "{wait} s");
    db.wait_for(&format!("select StartedDate > '{started}' from JobHistory where ID = '{id}'"), "t", SOON);
    let late: f64 =
        db.column(&id, &format!("extract(epoch from StartedDate - timestamptz '{due}')")).parse().unwrap();
    assert!((0.0..1.0).contains(&late), "{late} s");
    wait_iterations(&mut db, &id, 2);
    assert_eq!(db.text("select count(*) from JobHistory"), "1");
    assert_eq!(db.column(&id, "Attempt"), "0", "each iteration counts its own attempts");
}

#[test]
fn an_iterations_error_is_logged_and_does_not_end_the_row_and_shows_until_the_next_success() {
    let mut db = TestDb::new();
    let config = db.config("FailJob", "Continuous, WaitInSeconds", "true, 1");
    let daemon = Daemon::start(&db);
    let id = db.insert(&config, r#"{"iterations": 1}"#);
    wait_iterations(&mut db, &id, 1);
    assert_eq!(db.column(&id, "Error"), "attempt 1 failed: the disk is full");
    assert_eq!(db.text("select LastJobStart from JobConfig"), "", "a failure is no start to count from");
    daemon.wait_line("Iteration failed: attempt 1 failed: the disk is full; Sleeping for 1 seconds");
    db.wait_for(&format!("select count(*) from Logs where JobHistoryID = '{id}' and TypeID = 1"), "1", SOON);
    wait_iterations(&mut db, &id, 2);
    assert_eq!(db.column(&id, "Error"), "");
    let started = db.column(&id, "StartedDate");
    db.wait_for(&format!("select LastJobStart = '{started}' from JobConfig"), "t", SOON);
}

#[test]
fn an_iteration_is_tried_again_when_attempts_are_left() {
    let mut db = TestDb::new();
    let config =
        db.config("FailJob", "Continuous, WaitInSeconds, MaxAttempts, RetryDelaySeconds", "true, 600, 3, 0");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, r#"{"times": 2}"#);
    wait_iterations(&mut db, &id, 1);
    assert_eq!(db.column(&id, "Result"), r#"{"attempt": 3}"#);
    assert_eq!(db.column(&id, "Error"), "");
}

#[test]
fn a_shorter_wait_acts_on_a_waiting_row_at_once() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 3600");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, BRIEF);
    wait_iterations(&mut db, &id, 1);
    db.exec("update JobConfig set WaitInSeconds = 1");
    db.wait_for(
        &format!("select CurrentIteration >= 2 from JobHistory where ID = '{id}'"),
        "t",
        Duration::from_secs(5),
    );
}

#[test]
fn a_row_whose_configuration_is_no_longer_continuous_ends_at_once() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 3600");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, BRIEF);
    wait_iterations(&mut db, &id, 1);
    db.exec("update JobConfig set Continuous = false");
    assert_eq!(db.status(&id), "3");
    assert_eq!(db.column(&id, "StopReason"), "no_longer_continuous");
}

#[test]
fn a_waiting_row_of_an_inactive_configuration_rests_until_it_is_active_again() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 1");
    let other = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, BRIEF);
    wait_iterations(&mut db, &id, 1);
    db.exec(&format!("update JobConfig set Active = false where ID = '{config}'"));
    let count = db.column(&id, "CurrentIteration");
    db.wait_for(&format!("select NotBefore < now() from JobHistory where ID = '{id}'"), "t", SOON);
    let later = db.insert(&other, "{}");
    db.wait_status(&later, 3);
    assert_eq!((db.status(&id), db.column(&id, "CurrentIteration")), ("1".to_owned(), count.clone()));
    db.exec(&format!("update JobConfig set Active = true where ID = '{config}'"));
    db.wait_for(&format!("select CurrentIteration > {count} from JobHistory where ID = '{id}'"), "t", SOON);
}

#[test]
fn an_edit_that_races_the_end_of_an_iteration_is_never_lost() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 3600");
    let _daemon = Daemon::start(&db);
    for round in 0..25_u64 {
        db.exec("update JobConfig set Continuous = true, WaitInSeconds = 3600");
        let id = db.insert(&config, BRIEF);
        db.wait_for(
            &format!("select StatusID = 2 or CurrentIteration > 0 from JobHistory where ID = '{id}'"),
            "t",
            SOON,
        );
        std::thread::sleep(Duration::from_millis(8 + round % 8)); // around the end of the run
        db.exec("update JobConfig set WaitInSeconds = 1800");
        wait_iterations(&mut db, &id, 1);
        let wait: f64 = db.column(&id, "extract(epoch from NotBefore - WaitingSince)").parse().unwrap();
        assert!((wait - 1800.0).abs() < 0.01, "round {round}: waits {wait} s");
        db.exec("update JobConfig set Continuous = false");
        db.wait_status(&id, 3);
    }
}

#[test]
fn a_waiting_row_is_cancelled_in_the_statement() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 3600");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, BRIEF);
    wait_iterations(&mut db, &id, 1);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    assert_eq!(db.status(&id), "5");
}
