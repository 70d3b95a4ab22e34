//! `JobHistoryWaiting` says why a row waits, and the row starts once the reason is gone.

use crate::support::{Daemon, TestDb, binary, psql};
use std::process::Command;
use std::time::{Duration, Instant};

/// Long before the clock of [`only_hints`] would look again.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A daemon whose clock is so slow that only a hint can make a row start soon.
fn only_hints(db: &TestDb) -> Daemon {
    Daemon::start_with(
        db,
        &[("ROSTERD__ENGINE__POLL_SECONDS", "30"), ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.2")],
    )
}

/// A daemon with its default clock on a database whose NOTIFYs go nowhere: the functions of rosterd find
/// this `pg_notify` before PostgreSQL's own.
fn only_clock(db: &mut TestDb) -> Daemon {
    db.exec("create function vm.pg_notify(text, text) returns void language sql as ''");
    Daemon::start(db)
}

/// The one line the view has for this row.
fn reason(db: &mut TestDb, id: &str) -> String {
    let reasons = db.text(&format!("select array_agg(Reason) from JobHistoryWaiting where ID = '{id}'"));
    reasons.trim_matches(['{', '}', '"']).to_owned()
}

/// The row waits for `wanted`; then `remedy` lets it start at once, and it leaves the view.
fn waits_until(db: &mut TestDb, id: &str, wanted: &str, remedy: &str) {
    assert_eq!(reason(db, id), wanted);
    assert_eq!(db.status(id), "1");
    db.exec(remedy);
    db.wait_for(&format!("select StatusID in (2, 3) from JobHistory where ID = '{id}'"), "t", AT_ONCE);
    assert_eq!(db.text(&format!("select count(*) from JobHistoryWaiting where ID = '{id}'")), "0");
}

#[test]
fn a_row_that_is_not_due_says_until_when() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = only_hints(&db);
    let id = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, NotBefore) values ('{config}', 1, now() + interval '1 day') returning ID"
    ));
    let until = "select w.Until = h.NotBefore from JobHistoryWaiting w join JobHistory h on h.ID = w.ID";
    assert_eq!(db.text(until), "t");
    waits_until(&mut db, &id, "not due", "update JobHistory set NotBefore = now()");
}

#[test]
fn a_row_that_falls_due_starts_then_without_a_hint() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = only_clock(&mut db);
    let id = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, NotBefore) values ('{config}', 1, now() + interval '700 ms') returning ID"
    ));
    db.wait_status(&id, 3);
    let late = "select StartedDate - NotBefore between interval '0' and interval '1 second' from JobHistory";
    assert_eq!(db.text(late), "t");
}

#[test]
fn a_row_of_an_inactive_configuration_waits_for_it() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Active", "false");
    let _daemon = only_hints(&db);
    let id = db.insert(&config, "{}");
    waits_until(&mut db, &id, "config inactive", "update JobConfig set Active = true");
}

#[test]
fn a_row_of_an_inactive_organization_waits_for_it() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    db.exec("update Organization set Active = false");
    let _daemon = only_hints(&db);
    let id = db.insert(&config, "{}");
    waits_until(&mut db, &id, "organization ACME inactive", "update Organization set Active = true");
}

/// An inactive source of ACME.
fn inactive_source(db: &mut TestDb) -> String {
    db.text(
        "insert into SourceConfig (Source, OrganizationID, Active)
         select 'JIRA', ID, false from Organization where Code = 'ACME' returning ID",
    )
}

#[test]
fn a_row_with_an_inactive_source_waits_for_it_whether_in_out_or_further() {
    for place in ["DataInSourceConfigID", "DataOutSourceConfigID", ""] {
        let mut db = TestDb::new();
        let config = db.config("NoopJob", "", "");
        let source = inactive_source(&mut db);
        if place.is_empty() {
            db.exec(&format!("insert into JobConfigSource values ('{config}', 'in', 1, '{source}')"));
        } else {
            db.exec(&format!("update JobConfig set {place} = '{source}'"));
        }
        let _daemon = only_hints(&db);
        let id = db.insert(&config, "{}");
        waits_until(&mut db, &id, "source paused: JIRA is inactive", "update SourceConfig set Active = true");
    }
}

#[test]
fn a_row_starts_at_once_when_its_configuration_lets_go_of_an_inactive_source() {
    for remedy in ["update JobConfig set DataInSourceConfigID = null", "delete from JobConfigSource"] {
        let mut db = TestDb::new();
        let config = db.config("NoopJob", "", "");
        let source = inactive_source(&mut db);
        if remedy.starts_with("update") {
            db.exec(&format!("update JobConfig set DataInSourceConfigID = '{source}'"));
        } else {
            db.exec(&format!("insert into JobConfigSource values ('{config}', 'out', 1, '{source}')"));
        }
        let _daemon = only_hints(&db);
        let id = db.insert(&config, "{}");
        waits_until(&mut db, &id, "source paused: JIRA is inactive", remedy);
    }
}

#[test]
fn a_row_at_maxinstances_waits_for_room() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "2");
    let _daemon = only_hints(&db);
    let rows: Vec<String> = (0..3).map(|_| db.insert(&config, "{}")).collect();
    db.wait_status(&rows[1], 2);
    waits_until(&mut db, &rows[2], "at MaxInstances 2/2", "update JobConfig set MaxInstances = 3");
}

#[test]
fn a_row_at_maxinstances_starts_when_the_row_before_it_is_cancelled() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = only_hints(&db);
    let (first, second) = (db.insert(&config, "{}"), db.insert(&config, "{}"));
    db.wait_status(&first, 2);
    let cancel = format!("update JobHistory set StatusID = -1 where ID = '{first}'");
    waits_until(&mut db, &second, "at MaxInstances 1/1", &cancel);
}

#[test]
fn a_row_whose_job_no_runner_knows_waits_for_a_runner_that_does() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
    let stranger = Daemon::spawn(command);
    stranger.wait_line("rosterd is ready");
    let id = db.insert(&config, "{}");
    assert_eq!(reason(&mut db, &id), "no runner knows the job NoopJob");
    let _daemon = only_hints(&db);
    db.wait_for(&format!("select StatusID from JobHistory where ID = '{id}'"), "3", AT_ONCE);
}

#[test]
fn a_row_waits_while_all_runners_drain() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let daemon = only_hints(&db);
    db.exec("update Runner set Draining = true");
    daemon.wait_line("drains, claims nothing more");
    let id = db.insert(&config, "{}");
    waits_until(&mut db, &id, "runners draining", "update Runner set Draining = false");
}

#[test]
fn a_row_inserted_in_the_moment_of_the_drain_does_not_start() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let daemon = only_hints(&db);
    db.exec(&format!(
        "update Runner set Draining = true; insert into JobHistory (ConfigID, StatusID) values ('{config}', 1)"
    ));
    daemon.wait_line("drains, claims nothing more");
    assert_eq!(db.text("select Reason from JobHistoryWaiting"), "runners draining");
}

#[test]
fn a_row_waits_while_no_runner_is_alive() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, "{}");
    assert_eq!(reason(&mut db, &id), "no runner alive");
    db.exec(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers, Jobs, Pulse)
         select gen_random_uuid(), 'dead', 1, '0', 20, 10, array_agg(ID), now() - interval '1 minute' from Job",
    );
    assert_eq!(reason(&mut db, &id), "no runner alive");
    let _daemon = only_hints(&db);
    db.wait_for(&format!("select StatusID from JobHistory where ID = '{id}'"), "3", AT_ONCE);
}

#[test]
fn a_row_waits_while_all_workers_are_busy() {
    let mut db = TestDb::new();
    let busy = db.config("SleepJob", "", "");
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start_with(
        &db,
        &[("ROSTERD__ENGINE__WORKERS", "1"), ("ROSTERD__ENGINE__POLL_SECONDS", "30")],
    );
    let first = db.insert(&busy, "{}");
    db.wait_status(&first, 2);
    let id = db.insert(&config, "{}");
    let cancel = format!("update JobHistory set StatusID = -1 where ID = '{first}'");
    waits_until(&mut db, &id, "all workers busy", &cancel);
}

#[test]
fn an_edit_of_waitinseconds_continuous_or_active_acts_on_a_waiting_row_at_once() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Continuous, WaitInSeconds", "true, 3600");
    let _daemon = only_hints(&db);
    let id = db.insert(&config, "{}");
    let iteration = format!("select CurrentIteration || ' ' || StatusID from JobHistory where ID = '{id}'");
    db.wait_for(&iteration, "1 1", AT_ONCE);
    assert_eq!(reason(&mut db, &id), "not due: waits between iterations");
    db.exec("update JobConfig set Active = false, WaitInSeconds = 0");
    assert_eq!(reason(&mut db, &id), "config inactive");
    db.exec("update JobConfig set WaitInSeconds = 3600");
    db.exec("update JobConfig set Active = true");
    assert_eq!(reason(&mut db, &id), "not due: waits between iterations");
    db.exec("update JobConfig set WaitInSeconds = 0");
    db.wait_for(&format!("select CurrentIteration > 1 from JobHistory where ID = '{id}'"), "t", AT_ONCE);
    db.exec("update JobConfig set WaitInSeconds = 3600");
    db.wait_for(&format!("select WaitingSince is not null from JobHistory where ID = '{id}'"), "t", AT_ONCE);
    db.exec("update JobConfig set Continuous = false");
    assert_eq!(db.column(&id, "StatusID || ' ' || StopReason"), "3 no_longer_continuous");
}

#[test]
fn a_waitinseconds_of_0_leaves_a_second_between_two_iterations() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Continuous, WaitInSeconds", "true, 0");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_for(&format!("select CurrentIteration from JobHistory where ID = '{id}'"), "1", AT_ONCE);
    assert_eq!(db.column(&id, "NotBefore - WaitingSince"), "00:00:01");
    let ended = db.column(&id, "WaitingSince");
    db.wait_for(&format!("select CurrentIteration from JobHistory where ID = '{id}'"), "2", AT_ONCE);
    assert_eq!(db.column(&id, &format!("StartedDate >= timestamptz '{ended}' + interval '1 second'")), "t");
}

#[test]
fn with_hints_lost_a_row_starts_within_a_second_of_its_insert_and_of_its_reason_going() {
    let mut db = TestDb::new();
    let _daemon = only_clock(&mut db);
    let config = db.config("NoopJob", "", "");
    let second = Duration::from_secs(1);
    let free = db.insert(&config, "{}");
    db.wait_for(&format!("select StatusID from JobHistory where ID = '{free}'"), "3", second * 2);
    assert_eq!(db.column(&free, "StartedDate - CreatedDate <= interval '1 second'"), "t");

    let source = inactive_source(&mut db);
    for (obstacle, remedy) in [
        ("update JobConfig set Active = false".to_owned(), "update JobConfig set Active = true"),
        ("update Organization set Active = false".to_owned(), "update Organization set Active = true"),
        (
            format!("update JobConfig set DataInSourceConfigID = '{source}'"),
            "update SourceConfig set Active = true",
        ),
        ("update Runner set Draining = true".to_owned(), "update Runner set Draining = false"),
    ] {
        db.exec(&obstacle);
        let id = db.insert(&config, "{}");
        let began = Instant::now();
        db.exec(remedy);
        db.wait_status(&id, 3);
        assert!(began.elapsed() < second * 3 / 2, "{remedy}: {:?}", began.elapsed());
    }
}

#[test]
fn every_waiting_row_is_in_the_view_once_and_no_other_row_is() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let source = inactive_source(&mut db);
    db.exec(&format!(
        "update JobConfig set DataInSourceConfigID = '{source}', DataOutSourceConfigID = '{source}', Active = false;
         insert into JobConfigSource values ('{config}', 'in', 1, '{source}'), ('{config}', 'in', 2, '{source}');
         insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers)
           select gen_random_uuid(), 'host', n, '0', 20, 1 from generate_series(1, 3) n;
         insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 5);
         update JobHistory set StatusID = -1 where ID = (select min(ID::text)::uuid from JobHistory)"
    ));
    let said = psql(&db, "select Reason, count(*), count(distinct ID) from JobHistoryWaiting group by 1;");
    assert_eq!(said.out, "config inactive|4|4\n");
}

#[test]
fn due_rows_start_in_the_order_of_priority_then_notbefore_then_id() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    for (name, priority, hours_ago) in [
        ("fourth", 5, 1),
        ("fifth", 5, 1),
        ("third", 5, 2),
        ("second", -1, 1),
        ("first", -1, 3),
        ("sixth", 6, 9),
    ] {
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID, Identifier, Priority, NotBefore)
             values ('{config}', 1, '{name}', {priority}, date_trunc('day', now()) - interval '{hours_ago} hours')"
        ));
    }
    let _daemon = Daemon::start(&db);
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "6", crate::support::SOON);
    let order = db.text("select string_agg(Identifier, ' ' order by StartedDate) from JobHistory");
    assert_eq!(order, "first second third fourth fifth sixth");
}
