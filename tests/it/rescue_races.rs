//! A rescue never overwrites a newer state: one interleaving each, with rescue.sql as it stands.

use crate::support::{SOON, Session, TestDb};
use rosterd::postgres::connect::Speaker;

const RESCUE: &str = include_str!("../../src/history/rescue.sql");

/// A row in progress under a runner that is gone; returns row, runner, claim.
fn orphan(db: &mut TestDb, columns: &str, values: &str) -> (String, String, String) {
    let config = db.config("NoopJob", columns, values);
    let id = db.insert(&config, "{}");
    let mut runner = db.session(Speaker::Runner);
    let thread = runner.exec("select gen_random_uuid()");
    let claim = runner.exec(&format!(
        "insert into Claim (RunnerID, ConfigID, HistoryIDs, Open) values ('{thread}', '{config}', array['{id}'::uuid], 1) returning ID"
    ));
    runner.exec(&format!(
        "update JobHistory set StatusID = 2, Attempt = 1, ThreadID = '{thread}', ClaimID = {claim}, StartedDate = now() where ID = '{id}'"
    ));
    (id, thread, claim)
}

/// As settle.sql names the row: its runner, claim, attempt and status.
fn completes(session: &mut Session, id: &str, thread: &str, claim: &str) -> bool {
    let settled = session.exec(&format!(
        "with owned as (
           select h.ID from JobHistory h
           where h.ID = '{id}' and h.ThreadID = '{thread}' and h.ClaimID = {claim} and h.Attempt = 1 and h.StatusID in (2, -1)
           for no key update skip locked),
         done as (
           update JobHistory h set StatusID = 3, FinishedDate = clock_timestamp() from owned o where h.ID = o.ID returning h.ID),
         closed as (update Claim set Open = Open - 1 where ID = {claim} and exists (select from done))
         select count(*) from done"
    ));
    settled == "1"
}

#[test]
fn an_owner_that_settles_while_it_is_rescued_changes_nothing_any_more() {
    let mut db = TestDb::new();
    let (id, thread, claim) = orphan(&mut db, "", "");
    let (mut rescuer, mut owner) = (db.session(Speaker::Runner), db.session(Speaker::Runner));
    rescuer.exec("begin");
    assert_eq!(rescuer.exec(RESCUE), id);
    assert!(!completes(&mut owner, &id, &thread, &claim), "it is held by the rescuer");
    rescuer.exec("commit");
    assert!(!completes(&mut owner, &id, &thread, &claim), "it is pending again");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("1".into(), "1".into()));
    assert_eq!(db.column(&id, "StopReason"), "runner_lost");
}

#[test]
fn a_rescuer_leaves_alone_what_its_owner_settles_and_counts_no_crash() {
    let mut db = TestDb::new();
    let (id, thread, claim) = orphan(&mut db, "", "");
    let (mut rescuer, mut owner) = (db.session(Speaker::Runner), db.session(Speaker::Runner));
    owner.exec("begin");
    assert!(completes(&mut owner, &id, &thread, &claim));
    assert_eq!(rescuer.exec(RESCUE), "", "it is held by its owner");
    owner.exec("commit");
    assert_eq!(rescuer.exec(RESCUE), "");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("3".into(), "0".into()));

    // The same for a row its runner put back when it stopped.
    let (id, thread, claim) = orphan(&mut db, "", "");
    owner.exec(&format!(
        "update JobHistory set StatusID = 1, Attempt = 0 where ID = '{id}' and ThreadID = '{thread}' and ClaimID = {claim} and StatusID = 2"
    ));
    assert_eq!(rescuer.exec(RESCUE), "");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("1".into(), "0".into()));
}

#[test]
fn a_rescuer_leaves_alone_what_another_runner_has_taken_since() {
    let mut db = TestDb::new();
    // Its old claim still stands open: a claim counts its rows, the rows decide.
    let (id, ..) = orphan(&mut db, "", "");
    let newer = "00000000-0000-0000-0000-000000000001";
    let mut runner = db.session(Speaker::Runner);
    runner.exec(&format!(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ('{newer}', 'x', 1, '1', 100, 1);
         insert into Claim (RunnerID, ConfigID, HistoryIDs, Open) select '{newer}', ConfigID, HistoryIDs, 1 from Claim;
         update JobHistory set StatusID = 1 where ID = '{id}';
         update JobHistory set StatusID = 2, Attempt = 2, ThreadID = '{newer}', ClaimID = (select max(ID) from Claim)
         where ID = '{id}'"
    ));
    assert_eq!(runner.exec(RESCUE), "");
    // The same runner may have taken it anew, before it died: only the newest claim is rescued, and once.
    runner.exec("delete from Runner");
    assert_eq!(runner.exec(RESCUE), id);
    assert_eq!(runner.exec(RESCUE), "");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("1".into(), "1".into()));
}

/// Starts a rescue that has seen the rows and stands still before it locks them; `meanwhile` happens, and it goes on.
fn rescue_around(db: &mut TestDb, meanwhile: impl FnOnce(&mut Session)) -> String {
    let locks = "for no key update skip locked) h\n";
    assert_eq!(RESCUE.matches(locks).count(), 1);
    let slow =
        RESCUE.replace(locks, &format!("{locks} where (select pg_advisory_xact_lock(1)) is not null\n"));
    let mut gate = db.session(Speaker::Operator);
    gate.exec("select pg_advisory_lock(1)");
    let mut rescuer = db.session(Speaker::Runner);
    let rescuing = std::thread::spawn(move || rescuer.exec(&slow));
    db.wait_for(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'advisory'",
        "1",
        SOON,
    );
    meanwhile(&mut db.session(Speaker::Runner));
    gate.exec("select pg_advisory_unlock(1)");
    rescuing.join().unwrap()
}

#[test]
fn a_rescue_that_saw_a_row_in_progress_does_not_overwrite_what_became_of_it_meanwhile() {
    let mut db = TestDb::new();
    let (id, thread, claim) = orphan(&mut db, "", "");
    let rescued = rescue_around(&mut db, |owner| assert!(completes(owner, &id, &thread, &claim)));
    assert_eq!(rescued, "");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("3".into(), "0".into()));

    let (id, ..) = orphan(&mut db, "", "");
    let rescued = rescue_around(&mut db, |operator| {
        operator.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    });
    assert_eq!(rescued, id);
    assert_eq!(db.status(&id), "5");
}

#[test]
fn two_rescuers_count_one_crash() {
    let mut db = TestDb::new();
    let (id, ..) = orphan(&mut db, "", "");
    let (mut one, mut other) = (db.session(Speaker::Runner), db.session(Speaker::Runner));
    one.exec("begin");
    assert_eq!(one.exec(RESCUE), id);
    assert_eq!(other.exec(RESCUE), "");
    one.exec("commit");
    assert_eq!(other.exec(RESCUE), "");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("1".into(), "1".into()));
}

#[test]
fn a_cancel_before_or_during_a_rescue_is_not_lost() {
    let mut db = TestDb::new();
    let (before, ..) = orphan(&mut db, "", "");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{before}'"));
    let mut rescuer = db.session(Speaker::Runner);
    assert_eq!(rescuer.exec(RESCUE), before);
    assert_eq!(db.status(&before), "5");

    let (during, ..) = orphan(&mut db, "", "");
    rescuer.exec("begin");
    assert_eq!(rescuer.exec(RESCUE), during);
    let mut operator = db.session(Speaker::Operator);
    let cancel = format!("update JobHistory set StatusID = -1 where ID = '{during}'");
    let waiting = std::thread::spawn(move || operator.exec(&cancel));
    db.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        "1",
        SOON,
    );
    rescuer.exec("commit");
    waiting.join().unwrap();
    assert_eq!((db.status(&during), db.column(&during, "Crashes")), ("5".into(), "1".into()));
    assert_eq!(db.column(&during, "StopReason"), "stopped_while_waiting");
    assert_eq!(db.text("select count(*) from CancelRequest"), "0");
}

#[test]
fn a_configuration_may_end_its_rows_at_the_first_crash() {
    let mut db = TestDb::new();
    let (id, ..) = orphan(&mut db, "OnRunnerLoss", "'error'");
    assert_eq!(db.session(Speaker::Runner).exec(RESCUE), id);
    assert_eq!(
        db.rows(&format!("select StatusID, StopReason, Crashes, Error from JobHistory where ID = '{id}'"))
            .unwrap()[0],
        ["4", "runner_lost", "1", "the runner died under it (1 times)"]
    );
}
