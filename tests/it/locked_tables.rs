//! An operator who locks JobHistory delays what needs the table and nothing else, and no outcome is lost by it.

use crate::support::{Daemon, QUICK_LEASE, SOON, TestDb};
use rosterd::postgres::connect::Speaker;
use std::time::Duration;

const LOCK_TABLE: &str = "lock table vm.JobHistory";

/// What this loop of the daemon does at the moment.
fn report_is(which: &str) -> String {
    format!(
        "select count(*) from pg_stat_activity
         where datname = current_database() and application_name = 'rosterd report' and {which}"
    )
}

#[test]
fn an_outcome_whose_owner_cannot_be_asked_for_is_written_when_the_table_is_free() {
    let mut db = TestDb::new();
    let config = db.config("QueryJob", "MaxInstances", "0");
    let daemon = Daemon::start_with(&db, &[("ROSTERD__LOG__LEVEL", "debug")]);
    let mut gate = db.session(Speaker::Operator);
    gate.exec("select pg_advisory_lock(1), pg_advisory_lock(2)");
    // One claim has both, so that both outcomes come from one connection.
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, Payload)
         select '{config}', 1, jsonb_build_object('statement', format('select pg_advisory_xact_lock_shared(%s)', n))
         from generate_series(1, 2) n"
    ));
    db.wait_count(&config, 2, 2);
    let held = db.text("select ID from JobHistory where Payload ->> 'statement' like '%(1)'");

    // The first outcome meets a locked row: it stays, and who owns the row is asked for again and again.
    let mut row = db.session(Speaker::Operator);
    row.exec(&format!("begin; select from JobHistory where ID = '{held}' for update"));
    gate.exec("select pg_advisory_unlock(1)");
    db.wait_for(&report_is("query like '%as f (ID, ClaimID)%from only JobHistory%'"), "1", SOON);
    // The second outcome is written while the table's lock is already asked for. That is granted before the next
    // question about the first one, which fails.
    let mut claim = db.session(Speaker::Operator);
    claim.exec("begin; select from Claim for update");
    gate.exec("select pg_advisory_unlock(2)");
    db.wait_for(&report_is("wait_event_type = 'Lock'"), "1", SOON);
    std::thread::scope(|scope| {
        let locks = scope.spawn(|| row.exec(LOCK_TABLE));
        db.wait_for(
            "select count(*) from pg_locks where relation = 'vm.JobHistory'::regclass
               and mode = 'AccessExclusiveLock' and not granted",
            "1",
            SOON,
        );
        claim.exec("rollback");
        locks.join().unwrap();
    });
    daemon.wait_line("report: error returned from database: canceling statement due to lock timeout");
    row.exec("rollback");
    db.wait_count(&config, 3, 2);
}

#[test]
fn a_locked_table_does_not_hold_up_the_pulse() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let _daemon = Daemon::start_with(&db, &QUICK_LEASE);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    // A request whose row has ended meanwhile is what the pulse once looked up in JobHistory.
    let mut operator = db.session(Speaker::Operator);
    operator.exec(
        "begin; insert into CancelRequest (HistoryID, RunnerID) select gen_random_uuid(), ID from Runner; commit;
         begin",
    );
    operator.exec(LOCK_TABLE);
    let runner = db.text("select ID from Runner");
    let seq: u32 = db.text("select Seq from Runner").parse().unwrap();
    // Six beats of 0.3 s; a wait for the lock alone would take two seconds.
    db.wait_for(
        &format!("select Seq >= {} from Runner where ID = '{runner}'", seq + 6),
        "t",
        Duration::from_secs(4),
    );
    operator.exec("rollback");
    assert_eq!(db.text("select string_agg(ID::text, ' ') from Runner"), runner, "it never lost its lease");
    assert_eq!((db.status(&id), db.column(&id, "Crashes")), ("2".into(), "0".into()));
}
