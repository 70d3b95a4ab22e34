//! `UPDATE JobHistory SET StatusID = -1`: what a cancel promises, for every kind of row and job.

use crate::support::{COMPUTED, Daemon, TestDb, own_jobs_binary, psql};
use std::process::Command;
use std::time::{Duration, Instant};

const QUICK_GRACE: &[(&str, &str)] = &[("ROSTERD__ENGINE__CANCEL_GRACE_SECONDS", "0.2")];

fn cancel(db: &mut TestDb, id: &str) -> Instant {
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    Instant::now()
}

fn end(db: &mut TestDb, id: &str) -> String {
    db.wait_status(id, 5);
    db.column(id, "StopReason")
}

#[test]
fn a_pending_row_becomes_5_in_that_statement() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let id = db.insert(&config, "{}");
    let said = psql(
        &db,
        &format!(
            "begin; update JobHistory set StatusID = -1 where ID = '{id}' returning StatusID, StopReason, FinishedDate is not null;
             select StatusID from JobHistory; rollback; select StatusID from JobHistory;"
        ),
    );
    assert_eq!(said.out, "BEGIN\n5|never_started|t\nUPDATE 1\n5\nROLLBACK\n1\n");
    assert_eq!(said.err, "");
}

#[test]
fn a_running_cooperative_job_ends_as_5_within_a_second() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    let began = cancel(&mut db, &id);
    assert_eq!(end(&mut db, &id), "stopped");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(db.text("select count(*) from CancelRequest"), "0");
}

#[test]
fn with_hints_lost_a_running_cooperative_job_ends_as_5_within_two_seconds() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    // The functions of rosterd find this one before PostgreSQL's own.
    db.exec("create function vm.pg_notify(text, text) returns void language sql as ''");
    let began = cancel(&mut db, &id);
    assert_eq!(end(&mut db, &id), "stopped");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn with_the_listener_cut_off_a_cancel_ends_within_two_seconds_and_the_next_hint_is_heard_again() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    let listeners =
        "from pg_stat_activity where datname = current_database() and application_name = 'rosterd listen'";
    db.exec(&format!("select pg_terminate_backend(pid) {listeners}"));
    let began = cancel(&mut db, &id);
    assert_eq!(end(&mut db, &id), "stopped");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    db.wait_for(&format!("select count(*) {listeners}"), "1", Duration::from_secs(10));
}

#[test]
fn a_stubborn_job_is_aborted_after_its_grace() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "", "");
    let _daemon = Daemon::start_with(&db, QUICK_GRACE);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    let began = cancel(&mut db, &id);
    assert_eq!(end(&mut db, &id), "aborted");
    assert!(began.elapsed() < Duration::from_millis(5200), "{:?}", began.elapsed());
}

#[test]
fn a_spinning_job_is_abandoned_after_its_grace() {
    let mut db = TestDb::new();
    let config = db.config("SpinJob", "", "");
    let _daemon = Daemon::start_with(&db, QUICK_GRACE);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    let began = cancel(&mut db, &id);
    assert_eq!(end(&mut db, &id), "abandoned");
    assert!(began.elapsed() < Duration::from_millis(5200), "{:?}", began.elapsed());
}

#[test]
fn whoever_commits_first_wins_and_a_cancelled_row_never_completes() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let mut cancelled = 0;
    let mut completed = 0;
    for n in 0..150_u64 {
        let id = db.insert(&config, "{}");
        std::thread::sleep(Duration::from_micros(n % 30 * 300)); // a different moment of its short life each time
        let update = format!("update JobHistory set StatusID = -1 where ID = '{id}' returning StatusID");
        let taken = !db.rows(&update).unwrap().is_empty();
        db.wait_for(
            &format!("select FinishedDate is not null from JobHistory where ID = '{id}'"),
            "t",
            crate::support::SOON,
        );
        assert_eq!(db.status(&id), if taken { "5" } else { "3" });
        *(if taken { &mut cancelled } else { &mut completed }) += 1;
    }
    assert!(cancelled > 0 && completed > 0, "{cancelled} cancelled, {completed} completed: no race at all");
}

#[test]
fn a_finished_row_is_left_alone_with_one_notice() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, "{}");
    cancel(&mut db, &id);
    let before = db.column(&id, "JobHistory::text");
    let said = psql(&db, &format!("update JobHistory set StatusID = -1 where ID = '{id}';"));
    assert_eq!(said.out, "UPDATE 0\n");
    assert_eq!(
        said.err,
        format!("NOTICE:  JobHistory: {id} is already finished (CANCELED); it was left alone\n")
    );
    assert_eq!(db.column(&id, "JobHistory::text"), before);
}

#[test]
fn a_second_cancel_leaves_the_first_one_be() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    cancel(&mut db, &id);
    let before = db.column(&id, "CancelDate");
    let said = psql(&db, &format!("update JobHistory set StatusID = -1 where ID = '{id}';"));
    assert_eq!(said.out, "UPDATE 0\n");
    assert!(said.err.contains("is already being cancelled; it was left alone"), "{}", said.err);
    assert_eq!(db.column(&id, "StatusID || ' ' || CancelDate"), format!("-1 {before}"));
}

#[test]
fn a_cancel_that_would_set_another_column_too_is_refused() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, "{}");
    let said = db.refusal("update JobHistory set StatusID = -1, Identifier = 'no longer wanted'");
    assert!(
        said.contains("can set nothing but StatusID HINT: update JobHistory set StatusID = -1 where"),
        "{said}"
    );
    assert_eq!(db.status(&id), "1");
    db.exec("update JobHistory set StatusID = -1, UpdatedDate = now(), UpdatedBy = 'me'");
    assert_eq!(db.status(&id), "5");
}

#[test]
fn a_continuous_row_that_waits_becomes_5_at_once() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Continuous", "true");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_for("select CurrentIteration || ' ' || StatusID from JobHistory", "1 1", crate::support::SOON);
    cancel(&mut db, &id);
    assert_eq!(db.column(&id, "StatusID || ' ' || StopReason"), "5 stopped_while_waiting");
}

#[test]
fn a_continuous_row_that_runs_does_not_start_over_after_a_cancel() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "Continuous, WaitInSeconds", "true, 0");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    cancel(&mut db, &id);
    assert_eq!(end(&mut db, &id), "stopped");
}

#[test]
fn a_cancelled_row_waits_for_no_further_attempt() {
    let mut db = TestDb::new();
    let config = db.config("FailJob", "MaxAttempts, RetryDelaySeconds", "9, 3600");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_for("select Attempt || ' ' || StatusID from JobHistory", "1 1", crate::support::SOON);
    cancel(&mut db, &id);
    assert_eq!(db.column(&id, "StatusID || ' ' || StopReason"), "5 stopped_while_waiting");
}

#[test]
fn the_children_of_a_cancelled_parent_are_cancelled_and_theirs_too() {
    let mut db = TestDb::new();
    let leaf = db.config("SleepJob", "MaxInstances", "3");
    let middle = db.config(
        "ParentJob",
        "MaxInstances, Payload",
        &format!(r#"0, '{{"child_config": "{leaf}", "children": 2}}'"#),
    );
    let _daemon = Daemon::start(&db);
    let id = db.insert(&middle, &format!(r#"{{"child_config": "{middle}", "children": 2}}"#));
    // One parent, two children, four grandchildren; three of those run, one is at MaxInstances.
    let census = "select string_agg(n || ' of ' || StatusID, ', ' order by StatusID)
                  from (select StatusID, count(*) n from JobHistory group by 1) s";
    db.wait_for(census, "1 of 1, 6 of 2", crate::support::SOON);
    cancel(&mut db, &id);
    db.wait_for(census, "7 of 5", crate::support::SOON);
    assert_eq!(
        db.text("select count(*) from JobHistory where Origin = 'job' and ParentJobID is not null"),
        "6"
    );
}

#[test]
fn a_cancelled_parent_takes_no_more_children() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let (running, pending) = (
        db.insert(&config, "{}"),
        db.text(&format!(
            "insert into JobHistory (ConfigID, StatusID, NotBefore) values ('{config}', 1, now() + interval '1 day') returning ID"
        )),
    );
    db.wait_status(&running, 2);
    db.exec("update JobHistory set StatusID = -1");
    for (parent, status) in [(running, "-1"), (pending, "5")] {
        assert_eq!(db.status(&parent), status);
        let said = db.refusal(&format!(
            "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{parent}')"
        ));
        assert!(
            said.contains(&format!("the parent {parent} is cancelled HINT: A cancelled row takes no more")),
            "{said}"
        );
    }
}

#[test]
fn a_hundred_thousand_pending_rows_are_cancelled_in_one_statement_with_one_notice() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    for _ in 0..2 {
        let id = db.insert(&config, "{}");
        cancel(&mut db, &id);
    }
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 100000)"
    ));
    let said = psql(&db, &format!("update JobHistory set StatusID = -1;\n{COMPUTED};"));
    let (tag, seconds) = said.out.split_once('\n').unwrap();
    assert_eq!(tag, "UPDATE 100000");
    assert!(seconds.trim().parse::<f64>().unwrap() < 10.0, "{seconds} s");
    assert_eq!(
        said.err,
        "NOTICE:  JobHistory: 2 rows are finished or already being cancelled; they were left alone\n"
    );
    assert_eq!(db.text("select count(*) from JobHistory where StatusID = 5"), "100002");
}

#[test]
fn a_thousand_running_jobs_cancelled_in_one_statement_all_end_as_5() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url()).env("ROSTERD__LOG__LEVEL", "warn");
    let _daemon = Daemon::spawn(command);
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 1000)"
    ));
    db.wait_for("select count(*) from JobHistory where StatusID = 2", "1000", crate::support::SOON);
    db.exec("update JobHistory set StatusID = -1");
    db.wait_for(
        "select count(*) from JobHistory where StatusID = 5 and StopReason = 'stopped'",
        "1000",
        crate::support::SOON,
    );
}
