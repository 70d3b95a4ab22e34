//! How a run may fail, and what becomes of its row.

use crate::support::{Daemon, SHORT_GRACE, TestDb};

/// Runs one row of this job to its end, and returns its ID.
fn run_one(db: &mut TestDb, job: &str, columns: &str, values: &str, payload: &str, status: i32) -> String {
    let config = db.config(job, columns, values);
    let _daemon = Daemon::start_with(db, &[SHORT_GRACE]);
    let id = db.insert(&config, payload);
    db.wait_status(&id, status);
    id
}

#[test]
fn a_failing_row_is_tried_max_attempts_times_with_a_doubling_back_off() {
    let mut db = TestDb::new();
    let config = db.config("FailJob", "MaxAttempts, RetryDelaySeconds", "3, 1");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    for (attempt, delay) in [("1", 1.0), ("2", 2.0)] {
        db.wait_for(
            &format!("select Attempt from JobHistory where ID = '{id}' and StatusID = 1 and StartedDate is not null"),
            attempt,
            crate::support::SOON,
        );
        assert_eq!(db.column(&id, "Error"), format!("attempt {attempt} failed: the disk is full"));
        let back_off: f64 = db.column(&id, "extract(epoch from NotBefore - PulseDate)").parse().unwrap();
        assert!((delay - 0.05..=delay * 1.25 + 0.05).contains(&back_off), "attempt {attempt}: {back_off} s");
        let (started, due) = (db.column(&id, "StartedDate"), db.column(&id, "NotBefore"));
        db.wait_for(
            &format!("select StartedDate > '{started}' from JobHistory where ID = '{id}'"),
            "t",
            crate::support::SOON,
        );
        assert_eq!(db.column(&id, &format!("StartedDate >= '{due}'")), "t");
    }
    db.wait_status(&id, 4);
    assert_eq!(db.column(&id, "Attempt"), "3");
    assert_eq!(db.column(&id, "Error"), "attempt 3 failed: the disk is full");
}

#[test]
fn a_row_that_fails_twice_and_then_succeeds_is_completed_without_an_error() {
    let mut db = TestDb::new();
    let id = run_one(&mut db, "FailJob", "MaxAttempts, RetryDelaySeconds", "5, 0", r#"{"times": 2}"#, 3);
    assert_eq!(db.column(&id, "Attempt"), "3");
    assert_eq!(db.column(&id, "Error"), "");
    assert_eq!(db.column(&id, "Result"), r#"{"attempt": 3}"#);
}

#[test]
fn a_fatal_error_is_not_tried_again_and_keeps_its_result() {
    let mut db = TestDb::new();
    let id = run_one(&mut db, "FailJob", "MaxAttempts, RetryDelaySeconds", "5, 0", r#"{"fatal": true}"#, 4);
    assert_eq!(db.column(&id, "Attempt"), "1");
    assert_eq!(db.column(&id, "Error"), "attempt 1 failed: the disk is full");
    assert_eq!(db.column(&id, "Result"), r#"{"attempt": 1}"#);
}

#[test]
fn a_job_that_hears_ends_as_timeout_when_its_time_is_up() {
    let mut db = TestDb::new();
    let id = run_one(&mut db, "SleepJob", "TimeoutInSeconds", "1", "{}", 4);
    assert_eq!(db.column(&id, "StopReason"), "timeout");
    assert!(db.column(&id, "Error").starts_with("timed out after 1 s (JobConfig.TimeoutInSeconds)"));
}

#[test]
fn a_job_that_does_not_hear_ends_as_timeout_after_its_grace() {
    let mut db = TestDb::new();
    let id = run_one(&mut db, "StubbornJob", "TimeoutInSeconds", "1", "{}", 4);
    assert_eq!(db.column(&id, "StopReason"), "timeout");
    let took: f64 = db.column(&id, "extract(epoch from FinishedDate - StartedDate)").parse().unwrap();
    assert!((1.4..6.5).contains(&took), "{took} s");
}

#[test]
fn a_panic_with_any_value_ends_the_row_with_its_message() {
    let mut db = TestDb::new();
    let config = db.config("PanicJob", "MaxInstances, MaxAttempts", "0, 1");
    let _daemon = Daemon::start(&db);
    for (how, message) in [
        ("plain", "a plain text"),
        ("early", "gone before it began"),
        ("mute", "with a value that is no text"),
    ] {
        let id = db.insert(&config, &format!(r#"{{"how": "{how}"}}"#));
        db.wait_status(&id, 4);
        assert_eq!(db.column(&id, "Error"), format!("the job panicked: {message}"));
    }
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 4);
    assert!(db.column(&id, "Error").ends_with("found the cupboard bare"));
}

#[test]
fn a_payload_that_does_not_decode_ends_the_row_and_names_the_field_even_when_continuous() {
    let mut db = TestDb::new();
    let id = run_one(&mut db, "SleepJob", "Continuous, MaxAttempts", "true, 5", r#"{"seconds": "many"}"#, 4);
    let error = db.column(&id, "Error");
    assert!(error.starts_with("Payload field `seconds`: "), "{error}");
    assert_eq!(db.column(&id, "Attempt"), "1");
}

#[test]
fn a_result_over_the_cap_is_replaced_by_a_sentence() {
    let mut db = TestDb::new();
    let config = db.config("AnswerJob", "", "");
    let _daemon = Daemon::start_with(&db, &[("ROSTERD__ENGINE__RESULT_MAX_BYTES", "1000")]);
    let id = db.insert(&config, r#"{"bytes": 2000}"#);
    db.wait_for(
        &format!("select StatusID in (3, 4) from JobHistory where ID = '{id}'"),
        "t",
        crate::support::SOON,
    );
    assert_eq!(db.column(&id, "Result ->> 'reason'"), "larger than engine.result_max_bytes (1000)");
}

#[test]
fn a_nul_in_a_result_or_an_error_does_not_lose_the_row() {
    let mut db = TestDb::new();
    let config = db.config("AnswerJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let done = db.insert(&config, r#"{"nul": true}"#);
    let failed = db.insert(&config, r#"{"nul": true, "fails": true}"#);
    db.wait_status(&done, 3);
    db.wait_status(&failed, 4);
    assert_eq!(db.column(&done, "Result ->> 'text'"), "a\u{fffd}b");
    assert_eq!(db.column(&done, "Progress"), "answering ab");
    assert_eq!(db.column(&failed, "Error"), "no answer a\\0b");
}

#[test]
fn a_result_nested_too_deep_is_replaced_by_a_sentence_and_holds_up_no_other_row() {
    let mut db = TestDb::new();
    let config = db.config("AnswerJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let deep = db.insert(&config, r#"{"depth": 3000}"#);
    let fine = db.insert(&config, "{}");
    db.wait_status(&fine, 3);
    db.wait_for(
        &format!("select StatusID in (3, 4) from JobHistory where ID = '{deep}'"),
        "t",
        crate::support::SOON,
    );
    assert_eq!(db.column(&deep, "Result ->> 'reason'"), "nested more than 100 levels deep");
    let fine = db.insert(&config, "{}");
    db.wait_status(&fine, 3);
}

#[test]
fn progress_shows_while_the_job_runs() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_for(
        &format!("select Progress from JobHistory where ID = '{id}' and StatusID = 2"),
        "asleep",
        std::time::Duration::from_secs(5), // said once a second, also when the runner was idle before
    );
}

#[test]
fn an_outcome_is_written_while_an_operator_holds_its_configuration_locked() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, r#"{"seconds": 0.3}"#);
    db.wait_status(&id, 2);
    db.exec(&format!("begin; update JobConfig set RetryDelaySeconds = 11 where ID = '{config}'"));
    db.wait_status(&id, 3);
    db.exec("rollback");
}
