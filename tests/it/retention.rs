//! Finished rows move to the table of their month, are seen there as before, and are removed when their time is over.

use crate::support::{
    Daemon, Login, QUICK_LEASE, SOON, Session, TestDb, binary, config_of, own_jobs_binary, psql, with_roles,
};
use rosterd::postgres::connect::Speaker;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// A daemon that takes a turn five times a second.
const OFTEN: (&str, &str) = ("ROSTERD__ENGINE__RETENTION_EVERY_SECONDS", "0.2");

/// An ID as it was made so long and an hour ago.
fn id_of(ago: &str) -> String {
    format!(
        "(left(vm.id_floor(now() - interval '{ago}' - interval '1 hour')::text, 14) || '7' || substr(gen_random_uuid()::text, 16))::uuid"
    )
}

/// So many rows of this configuration that ended so long ago, and were inserted an hour before.
fn finished(db: &mut TestDb, config: &str, ago: &str, count: u32) {
    let id = id_of(ago);
    let mark = db.text("select gen_random_uuid()");
    // One transaction, so that no daemon sees them pending.
    db.session(Speaker::Runner).exec(&format!(
        "insert into JobHistory (ID, ConfigID, StatusID, Identifier, CreatedDate)
           select {id}, '{config}', 1, '{mark}', now() - interval '{ago}' - interval '1 hour' from generate_series(1, {count});
         set local enable_seqscan = on;
         update only JobHistory set StatusID = 2, Attempt = 1, ThreadID = '{NIL}', ClaimID = 0,
           StartedDate = now() - interval '{ago}' - interval '1 minute' where Identifier = '{mark}';
         update only JobHistory set StatusID = 3, FinishedDate = now() - interval '{ago}' where Identifier = '{mark}'"
    ));
}

/// One such row; returns its ID.
fn finished_row(db: &mut TestDb, config: &str, ago: &str) -> String {
    finished(db, config, ago, 1);
    db.text(&format!(
        "select ID from JobHistory where ConfigID = '{config}' and StatusID = 3 order by UpdatedDate desc nulls last, xmin::text::bigint desc limit 1"
    ))
}

/// The table in which a row stands.
fn table_of(db: &mut TestDb, id: &str) -> String {
    db.text(&format!("select tableoid::regclass from JobHistory where ID = '{id}'"))
}

/// The table of the month that was so long ago.
fn month(db: &mut TestDb, ago: &str) -> String {
    db.text(&format!(
        "select to_char((now() - interval '{ago}') at time zone 'UTC', '\"jobhistory_\"YYYY_MM')"
    ))
}

/// A whole pass of the archive, as a daemon makes it. Returns how many rows moved.
fn archive(session: &mut Session) -> u64 {
    let (mut after, mut moved) = (String::from("null"), 0);
    loop {
        let step = session.exec(&format!(
            "select a.Moved || ' ' || coalesce(quote_literal(a.LastID), 'null') from vm.archive_history('24 hours', {after}, 1000) a"
        ));
        let (rows, next) = step.split_once(' ').unwrap();
        moved += rows.parse::<u64>().unwrap();
        next.clone_into(&mut after);
        if after == "null" {
            return moved;
        }
    }
}

/// What a daemon does besides in its turn. Returns the months that were removed as a whole.
fn expire(session: &mut Session) -> String {
    session.exec(
        "do $do$
         declare e record;
         begin
           for e in select * from vm.expired_history() loop
             if e.ConfigID is null then
               perform vm.detach_expired_month(e.Month);
             else
               while vm.delete_expired_rows(e.Month, e.ConfigID, 100) > 0 loop end loop;
             end if;
           end loop;
         end $do$",
    );
    let removed = session.exec("select string_agg(r, ' ') from vm.removed_months() r");
    session.exec("select vm.forget_removed_rows(r, null, 1000000), vm.drop_removed_month(r) from vm.removed_months() r");
    removed
}

fn rosterd(db: &TestDb, args: &[&str]) -> Output {
    Command::new(binary()).args(args).env("DATABASE_URL", db.url()).output().unwrap()
}

#[test]
fn a_row_that_finished_moves_after_its_hours_and_is_seen_as_before_and_a_young_one_stays() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let old = finished_row(&mut db, &config, "25 hours");
    let before = db.rows(&format!("select * from JobHistory where ID = '{old}'")).unwrap();
    let other = db.config("NoopJob", "MaxInstances", "0");
    let young = finished_row(&mut db, &other, "23 hours");
    db.exec(&format!(
        "insert into JobEffect (HistoryID, Iteration, Step, State, Attempt, RunnerID) values ('{old}', 0, 'x', 'intended', 1, '{NIL}');
         insert into Logs (TypeID, Log, CreateDate, JobHistoryID) values (0, 'said', now(), '{old}')"
    ));
    let daemon = Daemon::start_with(&db, &[OFTEN]);
    let place = month(&mut db, "25 hours");
    db.wait_for(&format!("select tableoid::regclass from JobHistory where ID = '{old}'"), &place, SOON);
    daemon.wait_line("Retention: archived 1 rows");
    assert_eq!(table_of(&mut db, &young), "jobhistory");

    assert_eq!(db.rows(&format!("select * from JobHistory where ID = '{old}'")).unwrap(), before);
    assert_eq!(db.text("select count(*) from JobHistory"), "2");
    assert_eq!(db.text(&format!("select Log from Logs where JobHistoryID = '{old}'")), "said");
    assert_eq!(db.text(&format!("select Step from JobEffect where HistoryID = '{old}'")), "x");

    // It is as finished as before: a cancel leaves it alone, nothing changes it, and it can be run again.
    let said = psql(&db, &format!("update JobHistory set StatusID = -1 where ID = '{old}';"));
    assert_eq!(said.out, "UPDATE 0\n");
    assert!(said.err.contains(&format!("NOTICE:  JobHistory: {old} is already finished")), "{said:?}");
    let refused = db.refusal(&format!("update JobHistory set StatusID = 1 where ID = '{old}'"));
    assert!(refused.contains("finished rows never change"), "{refused}");
    assert!(refused.contains(&format!("vm.rerun('{old}')")), "{refused}");
    let refused = db.refusal(&format!("update JobHistory set Priority = 1 where ID = '{old}'"));
    assert!(refused.contains("finished rows never change"), "{refused}");
    let fresh = db.text(&format!("select vm.rerun('{old}')"));
    db.wait_status(&fresh, 3);
    let again = rosterd(&db, &["rerun", &old]);
    assert!(again.status.success(), "{again:?}");
    let cancel = rosterd(&db, &["cancel", &old]);
    assert!(cancel.status.success(), "{cancel:?}");
    assert!(String::from_utf8_lossy(&cancel.stdout).contains(&old), "{cancel:?}");
}

#[test]
fn a_live_row_never_moves_however_old_it_is() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, Continuous", "0, true");
    let mut runner = db.session(Speaker::Runner);
    for (status, set) in [
        ("pending", ""),
        ("waiting", "WaitingSince = now() - interval '2 days', CurrentIteration = 7"),
        ("running", "StatusID = 2, Attempt = 1"),
        ("cancelled", "StatusID = 2, Attempt = 1"),
    ] {
        runner.exec(&format!(
            "insert into JobHistory (ID, ConfigID, StatusID, Identifier) values ({}, '{config}', 1, '{status}')",
            id_of("400 days")
        ));
        if !set.is_empty() {
            runner.exec(&format!(
                "update JobHistory set ThreadID = '{NIL}', ClaimID = 0, {set} where Identifier = '{status}'"
            ));
        }
    }
    db.exec("update JobHistory set StatusID = -1 where Identifier = 'cancelled'");
    let ended = finished_row(&mut db, &config, "400 days");
    assert_eq!(archive(&mut runner), 1);
    assert_eq!(
        db.text("select string_agg(StatusID::text, ' ' order by Identifier) from only JobHistory"),
        "-1 1 2 1"
    );
    assert_eq!(table_of(&mut db, &ended), month(&mut db, "400 days"));
}

#[test]
fn a_row_whose_id_tells_no_time_or_a_time_to_come_is_archived_in_its_turn() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let mut runner = db.session(Speaker::Runner);
    let to_come =
        "(left(vm.id_floor(now() + interval '2 days')::text, 14) || '7000-8000-000000000001')::uuid";
    for (id, name) in [("'f0000000-0000-4000-8000-000000000001'::uuid", "random"), (to_come, "to come")] {
        runner.exec(&format!(
            "insert into JobHistory (ID, ConfigID, StatusID, Identifier) values ({id}, '{config}', 1, '{name}');
             update JobHistory set StatusID = 2, Attempt = 1, ThreadID = '{NIL}', ClaimID = 0 where Identifier = '{name}';
             update JobHistory set StatusID = 3, FinishedDate = now() - interval '2 days' where Identifier = '{name}'"
        ));
    }
    assert_eq!(archive(&mut runner), 1);
    assert_eq!(
        db.text("select Identifier from only JobHistory"),
        "to come",
        "its ID would be taken for a new one"
    );
}

#[test]
fn an_id_that_was_archived_is_not_inserted_again_not_even_while_it_moves() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let id = finished_row(&mut db, &config, "3 days");
    let mut runner = db.session(Speaker::Runner);
    let insert = format!("insert into JobHistory (ID, ConfigID, StatusID) values ('{id}', '{config}', 1)");

    runner.exec("begin");
    assert_eq!(archive(&mut runner), 1);
    let mut operator = db.session(Speaker::Operator);
    let (name, again) = (db.name.clone(), insert.clone());
    let waiting = std::thread::spawn(move || {
        operator.exec(&format!(
            "do $do$ begin {again}; raise exception 'it was taken in {name}';
             exception when unique_violation then raise notice '%', sqlerrm; end $do$"
        ));
    });
    db.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        "1",
        SOON,
    );
    runner.exec("commit");
    waiting.join().unwrap();

    assert_eq!(db.broken_constraint(&insert), "jobhistory_pkey");
    let said = db.refusal(&insert);
    assert!(said.contains("it is finished and archived") && said.contains("Leave ID out"), "{said}");
    assert_eq!(db.text(&format!("select count(*) from JobHistory where ID = '{id}'")), "1");
    // An ID that the database chooses, and one that its client makes, are taken.
    db.insert(&config, "{}");
    db.exec(&insert.replace(&format!("'{id}'"), "gen_random_uuid()"));
}

#[test]
fn parents_configurations_and_due_times_of_archived_rows_are_still_theirs() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let parent = finished_row(&mut db, &config, "3 days");
    let child = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{parent}') returning ID"
    ));
    let mut runner = db.session(Speaker::Runner);
    let schedule = runner.exec(&format!(
        "insert into JobSchedule (ConfigID, Cron, Active) values ('{config}', '0 0 1 1 *', false) returning ID"
    ));
    let due = format!(
        "insert into JobHistory (ID, ConfigID, StatusID, Origin, ScheduleID, DueDate)
         values ({}, '{config}', 1, 'schedule', '{schedule}', '2025-01-01')
         on conflict (ScheduleID, DueDate) where ScheduleID is not null do nothing returning ID",
        id_of("2 days")
    );
    let scheduled = runner.exec(&due);
    runner.exec(&format!(
        "update JobHistory set StatusID = 2, Attempt = 1, ThreadID = '{NIL}', ClaimID = 0 where ID = '{scheduled}';
         update JobHistory set StatusID = 3, FinishedDate = now() - interval '2 days' where ID = '{scheduled}'"
    ));
    assert_eq!(archive(&mut runner), 2);

    assert_eq!(runner.exec(&due), "", "it has its row");
    let second = format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{parent}') returning ID"
    );
    let second = db.text(&second);
    assert_ne!(second, "", "a finished parent takes children, archived or not");
    let nobody = "11111111-1111-1111-1111-111111111111";
    let orphan = format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{nobody}')"
    );
    assert_eq!(db.broken_constraint(&orphan), "jobhistory_parent_exists");
    let delete = format!("delete from JobHistory where ID = '{parent}'");
    assert_eq!(db.broken_constraint(&delete), "jobhistory_parent_exists");

    db.exec("update JobHistory set StatusID = -1 where StatusID = 1");
    db.exec(&format!("delete from JobHistory where ID in ('{parent}', '{child}', '{second}')"));
    assert_eq!(db.text("select count(*) from JobHistory"), "1", "parent and children went in one statement");
    assert_eq!(db.text("select count(*) from only JobHistory"), "0");
    db.exec("delete from JobSchedule");
    for change in ["delete from JobConfig", "update JobConfig set ID = gen_random_uuid()"] {
        let said = db.refusal(change);
        assert!(said.contains("still has archived rows"), "{said}");
    }
    db.exec("delete from JobHistory; delete from JobConfig");
    let cancelled = db.config("NoopJob", "MaxInstances", "0");
    let parent = db.insert(&cancelled, "{}");
    runner.exec(&format!("update JobHistory set StatusID = -1 where ID = '{parent}'"));
}

#[test]
fn a_cancelled_parent_takes_no_children_when_it_is_archived_either() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let mut runner = db.session(Speaker::Runner);
    let parent = runner.exec(&format!(
        "insert into JobHistory (ID, ConfigID, StatusID) values ({}, '{config}', 1) returning ID",
        id_of("3 days")
    ));
    runner.exec(&format!(
        "update JobHistory set StatusID = 2, Attempt = 1, ThreadID = '{NIL}', ClaimID = 0 where ID = '{parent}';
         update JobHistory set StatusID = -1 where ID = '{parent}';
         update JobHistory set StatusID = 5, FinishedDate = now() - interval '3 days' where ID = '{parent}'"
    ));
    assert_eq!(archive(&mut runner), 1);
    let child = format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{parent}')"
    );
    assert_eq!(db.broken_constraint(&child), "jobhistory_parent_is_not_cancelled");
}

#[test]
fn a_month_that_is_past_retention_is_removed_as_a_whole_with_what_was_written_about_its_rows() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 30");
    let old = finished_row(&mut db, &config, "100 days");
    finished(&mut db, &config, "100 days", 2500);
    let newer = finished_row(&mut db, &config, "2 days");
    for id in [&old, &newer] {
        db.exec(&format!(
            "insert into JobEffect (HistoryID, Iteration, Step, State, Attempt, RunnerID) values ('{id}', 0, 'x', 'intended', 1, '{NIL}');
             insert into Logs (TypeID, Log, CreateDate, JobHistoryID) values (0, 'said', now(), '{id}')"
        ));
    }
    let gone = month(&mut db, "100 days");
    let daemon = Daemon::start_with(&db, &[OFTEN]);
    let line = daemon.wait_line("Retention: removed JobHistory_");
    assert!(line.contains(&gone[11..]) && line.contains("all of it is past RetentionDays"), "{line}");
    daemon.wait_line("Retention: dropped the files of JobHistory_");
    assert_eq!(db.text("select string_agg(ID::text, ' ') from JobHistory"), newer);
    assert_eq!(db.text("select string_agg(HistoryID::text, ' ') from JobEffect"), newer);
    assert_eq!(db.text("select string_agg(JobHistoryID::text, ' ') from Logs"), newer);
    assert_eq!(db.text(&format!("select to_regclass('vm.{gone}')")), "");
    assert_eq!(db.text(&format!("select to_regclass('vm.{gone}_removed')")), "");
}

#[test]
fn a_month_that_was_taken_off_by_a_runner_that_died_is_dropped_at_the_next_turn() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 30");
    finished(&mut db, &config, "100 days", 3);
    let mut runner = db.session(Speaker::Runner);
    archive(&mut runner);
    let name = month(&mut db, "100 days");
    runner.exec(&format!("select vm.detach_expired_month('{}')", &name[11..]));
    assert_eq!(db.text("select count(*) from JobHistory"), "0");
    assert_eq!(
        db.text("select Reason from JobHistoryRetention where TableName like '%removed'"),
        "removed: its files go at the next turn"
    );
    // A table that somebody took off by hand is his.
    db.exec("create table vm.JobHistory_2001_01 (ID int); comment on table vm.JobHistory_2001_01 is 'mine'");
    let daemon = Daemon::start_with(&db, &[OFTEN]);
    daemon.wait_line("Retention: dropped the files of JobHistory_");
    assert_eq!(db.text(&format!("select to_regclass('vm.{name}_removed')")), "");
    assert_ne!(db.text("select to_regclass('vm.JobHistory_2001_01')"), "");
}

#[test]
fn of_two_configurations_one_without_retention_keeps_its_rows_while_those_of_the_other_go() {
    let mut db = TestDb::new();
    let kept = db.config("NoopJob", "MaxInstances", "0");
    let short = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 10");
    finished(&mut db, &kept, "100 days", 40);
    finished(&mut db, &short, "100 days", 3000);
    let daemon = Daemon::start_with(&db, &[OFTEN]);
    let line = daemon.wait_line("Retention: removed 3000 rows of JobConfig");
    assert!(line.contains(&short), "{line}");
    assert_eq!(db.text("select count(*) || ' ' || count(distinct ConfigID) from JobHistory"), "40 1");
    let why = "select Reason || ', ' || HeldRows from JobHistoryRetention where TableName <> 'JobHistory'";
    assert_eq!(db.text(why), "no RetentionDays for 1 of 1 configurations, 0");
}

#[test]
fn a_legal_hold_on_the_configuration_or_on_an_organization_above_it_keeps_rows_and_says_so() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 30");
    db.exec(
        "insert into Organization (Code) values ('GROUP');
         update Organization set ParentOrgID = (select ID from Organization where Code = 'GROUP') where Code = 'ACME'",
    );
    let mut runner = db.session(Speaker::Runner);
    finished(&mut db, &config, "100 days", 5);
    assert_eq!(archive(&mut runner), 5);
    let why = "select Reason || ', ' || HeldRows || ', ' || (KeptUntil is null) from JobHistoryRetention where TableName <> 'JobHistory'";
    for (hold, whose) in [
        ("update JobConfig set LegalHold = $", "legal hold on the configuration"),
        ("update Organization set LegalHold = $ where Code = 'ACME'", "legal hold on organization ACME"),
        ("update Organization set LegalHold = $ where Code = 'GROUP'", "legal hold on organization GROUP"),
    ] {
        db.exec(&hold.replace('$', "true"));
        assert_eq!(expire(&mut runner), "");
        assert_eq!(db.text("select count(*) from JobHistory"), "5", "{hold}");
        assert_eq!(db.text(why), "legal hold on 1 of 1 configurations, 5, true");
        assert_eq!(db.text("select Reason from JobConfigRetention"), whose);
        let said = db.refusal("delete from JobHistory");
        assert!(said.contains(whose) && said.contains("LegalHold = false"), "{said}");
        db.exec(&hold.replace('$', "false"));
    }
    assert_ne!(expire(&mut runner), "");
    assert_eq!(db.text("select count(*) from JobHistory"), "0");
}

#[test]
fn the_configuration_is_asked_for_retention_before_its_organization_and_that_before_the_one_above() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    db.exec(
        "insert into Organization (Code) values ('GROUP');
         update Organization set ParentOrgID = (select ID from Organization where Code = 'GROUP') where Code = 'ACME'",
    );
    let said = "select concat_ws(' ', RetentionDays, Reason) from JobConfigRetention";
    assert_eq!(db.text(said), "no RetentionDays: kept for ever");
    db.exec("update Organization set RetentionDays = 300 where Code = 'GROUP'");
    assert_eq!(db.text(said), "300 RetentionDays of organization GROUP: 300");
    db.exec("update Organization set RetentionDays = 20 where Code = 'ACME'");
    assert_eq!(db.text(said), "20 RetentionDays of organization ACME: 20");
    db.exec(&format!("update JobConfig set RetentionDays = 50 where ID = '{config}'"));
    assert_eq!(db.text(said), "50 RetentionDays of the configuration: 50");
    // A ring of parents ends.
    db.exec(
        "update Organization set ParentOrgID = (select ID from Organization where Code = 'ACME') where Code = 'GROUP'",
    );
    assert_eq!(db.text(said), "50 RetentionDays of the configuration: 50");
    for (table, days) in [("JobConfig", "0"), ("Organization", "-1"), ("JobConfig", "36501")] {
        let said = db.refusal(&format!("update {table} set RetentionDays = {days}"));
        assert!(said.contains("RetentionDays is") && said.contains("Give 1 to 36500 days"), "{said}");
    }
    let audited = "select After ->> 'retentiondays' from AuditLog where TableName = 'JobConfig' order by ID desc limit 1";
    assert_eq!(db.text(audited), "50");
}

#[test]
fn rows_of_a_month_that_are_not_old_enough_say_until_when_they_are_kept() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 365");
    finished(&mut db, &config, "100 days", 5);
    let mut runner = db.session(Speaker::Runner);
    archive(&mut runner);
    assert_eq!(expire(&mut runner), "");
    let line = db
        .rows(
            "select Reason, Oldest = Newest, KeptUntil = Newest + interval '365 days', Bytes > 0 from JobHistoryRetention
             where TableName ~ '^JobHistory_....\\_..$'",
        )
        .unwrap();
    assert_eq!(line, [["its rows are not as old as RetentionDays yet", "t", "t", "t"]]);
}

#[test]
fn two_runners_archive_each_row_once() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    finished(&mut db, &config, "40 days", 3000);
    // Of two that meet one goes on.
    let (mut one, mut other) = (db.session(Speaker::Runner), db.session(Speaker::Runner));
    one.exec("begin");
    assert_eq!(one.exec("select Moved from vm.archive_history('24 hours', null, 1000)"), "1000");
    assert_eq!(other.exec("select Moved from vm.archive_history('24 hours', null, 500)"), "");
    one.exec("commit");
    let _daemons = [Daemon::start_with(&db, &[OFTEN]), Daemon::start_with(&db, &[OFTEN])];
    db.wait_for("select count(*) from only JobHistory", "0", SOON);
    assert_eq!(db.text("select count(*) || ' ' || count(distinct ID) from JobHistory"), "3000 3000");
}

#[test]
fn a_daemon_that_is_killed_while_it_archives_loses_no_row_and_doubles_none() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    finished(&mut db, &config, "40 days", 20_000);
    for _ in 0..3 {
        let before = db.text("select count(*) from only JobHistory");
        let mut daemon = Daemon::start_with(&db, &[OFTEN]);
        db.wait_for(&format!("select count(*) < {before} from only JobHistory"), "t", SOON);
        daemon.kill();
        assert_eq!(db.text("select count(*) || ' ' || count(distinct ID) from JobHistory"), "20000 20000");
    }
    let _daemon = Daemon::start_with(&db, &[OFTEN]);
    db.wait_for("select count(*) from only JobHistory", "0", SOON);
    assert_eq!(db.text("select count(*) || ' ' || count(distinct ID) from JobHistory"), "20000 20000");
}

#[test]
fn whoever_reads_a_month_for_long_delays_its_end_and_holds_up_nobody() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 30");
    finished(&mut db, &config, "100 days", 100);
    archive(&mut db.session(Speaker::Runner));
    let mut reader = db.session(Speaker::Operator);
    reader.exec("begin isolation level repeatable read");
    assert_eq!(reader.exec("select count(*) from JobHistory"), "100");
    let daemon = Daemon::start_with(&db, &[OFTEN]);
    daemon.wait_line("so it stays until the next turn");
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let row = db.insert(&config, "{}");
        assert_eq!(db.text("select count(*) >= 100 from JobHistory"), "t");
        db.wait_status(&row, 3);
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_secs(2), "{longest:?} for an INSERT, a look at all rows, and a run");
    assert_eq!(reader.exec("select count(*) from JobHistory"), "100");
    reader.exec("commit");
    daemon.wait_line("Retention: dropped the files of JobHistory_");
    assert_eq!(db.text("select count(*) from JobHistory"), "20");
}

#[test]
fn somebody_who_sets_a_hold_at_that_moment_is_waited_for() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 30");
    finished(&mut db, &config, "100 days", 10);
    let mut runner = db.session(Speaker::Runner);
    archive(&mut runner);
    let name = month(&mut db, "100 days");
    let mut lawyer = db.session(Speaker::Operator);
    lawyer.exec("begin; update JobConfig set LegalHold = true");
    let said = db.refusal(&format!("select vm.detach_expired_month('{}')", &name[11..]));
    assert!(said.contains("lock timeout"), "{said}");
    lawyer.exec("commit");
    assert_eq!(runner.exec(&format!("select (vm.detach_expired_month('{}')).Detached", &name[11..])), "f");
    assert_eq!(
        runner.exec(&format!("select vm.delete_expired_rows('{}', '{config}', 10)", &name[11..])),
        "0"
    );
    assert_eq!(db.text("select count(*) from JobHistory"), "10");
}

#[test]
fn a_daemon_of_rosterd_runner_archives_and_removes_and_nobody_else_may() {
    let mut db = with_roles();
    let runner = Login::new(&mut db, "rosterd_runner", &[]);
    let ours = config_of(&mut db, "A", "NoopJob", ", MaxInstances, RetentionDays", ", 0, 60");
    let theirs = config_of(&mut db, "B", "NoopJob", ", MaxInstances, RetentionDays", ", 0, 365");
    finished(&mut db, &ours, "40 days", 3);
    finished(&mut db, &theirs, "40 days", 4);
    finished(&mut db, &ours, "100 days", 5);
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", runner.url()).envs([OFTEN]);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("Retention: dropped the files of JobHistory_");
    db.wait_for("select count(*) from only JobHistory", "0", SOON);
    assert_eq!(db.text("select count(*) from JobHistory"), "7");
    let output = daemon.output();
    for trouble in ["permission denied", "row-level security", "42501"] {
        assert!(!output.contains(trouble), "{output}");
    }
    let place = month(&mut db, "40 days");
    let owner = format!("select pg_get_userbyid(relowner) from pg_class where oid = 'vm.{place}'::regclass");
    assert_eq!(db.text(&owner), "rosterd_owner");

    for role in ["rosterd_operator", "rosterd_viewer", "rosterd_runner"] {
        let mut login = Login::new(&mut db, role, &["A"]);
        let sees = if role == "rosterd_runner" { "7" } else { "3" };
        assert_eq!(login.text("select count(*) from JobHistory"), sees);
        assert_eq!(login.text(&format!("select count(*) from {place}")), sees, "{role} of the month itself");
        assert_eq!(
            login.text("select count(*) from JobConfigRetention"),
            if sees == "7" { "2" } else { "1" }
        );
        assert_eq!(
            login.text(&format!("select Reason from JobHistoryRetention where lower(TableName) = '{place}'")),
            "its rows are not as old as RetentionDays yet"
        );
        for forbidden in [
            format!("drop table {place}"),
            format!("alter table {place} no inherit JobHistory"),
            format!("delete from {place}"),
            format!("truncate {place}"),
            format!("insert into {place} (ID) values (gen_random_uuid())"),
            format!("update {place} set Priority = 1"),
            "delete from JobHistory".to_owned(),
            "update JobConfig set RetentionDays = 1".to_owned(),
            "update JobConfig set LegalHold = false".to_owned(),
            "update Organization set RetentionDays = 1".to_owned(),
            "select vm.month_table('2026_01')".to_owned(),
        ] {
            let said = login.refusal(&forbidden);
            assert!(said.starts_with("42501"), "{role}: {forbidden}: {said}");
        }
        for turn in [
            "select vm.archive_history('1 day', null, 10)",
            "select vm.expired_history()",
            "select vm.detach_expired_month('2026_01')",
            "select vm.forget_removed_rows('2026_01', null, 10)",
            "select vm.drop_removed_month('2026_01')",
            "select vm.delete_expired_rows('2026_01', gen_random_uuid(), 10)",
        ] {
            let allowed = login.rows(turn);
            assert_eq!(allowed.is_ok(), role == "rosterd_runner", "{role}: {turn}: {allowed:?}");
        }
    }
    // Laid down again, the months are as they were, and doctor has nothing to say.
    assert!(rosterd(&db, &["migrate", "--roles"]).status.success());
    let doctor = rosterd(&db, &["doctor", "--json"]);
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let roles = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "roles").unwrap();
    assert_eq!(roles["level"], "ok", "{roles}");
}

#[test]
fn roles_that_come_later_count_for_the_months_there_are() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    finished(&mut db, &config, "40 days", 3);
    archive(&mut db.session(Speaker::Runner));
    assert!(rosterd(&db, &["migrate", "--roles"]).status.success());
    let place = month(&mut db, "40 days");
    let mut stranger = Login::new(&mut db, "rosterd_operator", &[]);
    assert_eq!(stranger.text(&format!("select count(*) from {place}")), "0");
    let mut operator = Login::new(&mut db, "rosterd_operator", &["ACME"]);
    assert_eq!(operator.text(&format!("select count(*) from {place}")), "3");
}

#[test]
fn what_a_month_is_asked_to_be_is_checked() {
    let mut db = TestDb::new();
    for (call, sentence) in [
        ("vm.month_table('2026_13')", "is not a month"),
        ("vm.month_table('x; drop table vm.JobHistory')", "is not a month"),
        ("vm.month_table(null)", "is not a month"),
        ("vm.archive_history('1 minute', null, 10)", "cannot be archived"),
        ("vm.archive_history(null, null, 10)", "cannot be archived"),
        ("vm.archive_history('1 day', null, 0)", "a batch of 0 rows"),
    ] {
        let said = db.refusal(&format!("select {call}"));
        assert!(said.contains(sentence) && said.contains("Give "), "{call}: {said}");
    }
    assert_eq!(db.text("select (vm.detach_expired_month('jobconfig')).Detached"), "f");
    db.exec("select vm.drop_removed_month('x'), vm.forget_removed_rows('x', null, 1), vm.delete_expired_rows('x', gen_random_uuid(), 1)");
}

#[test]
fn a_month_is_made_like_its_parent_and_says_what_it_is() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let id = finished_row(&mut db, &config, "40 days");
    archive(&mut db.session(Speaker::Runner));
    let place = month(&mut db, "40 days");
    let differs = format!(
        "select string_agg(a.attname, ' ') from pg_attribute a left join pg_attribute b
           on b.attrelid = 'vm.{place}'::regclass and b.attname = a.attname and b.atttypid = a.atttypid
             and b.attnotnull = a.attnotnull and b.attgenerated = a.attgenerated
             and col_description(b.attrelid, b.attnum) is not distinct from col_description(a.attrelid, a.attnum)
         where a.attrelid = 'vm.jobhistory'::regclass and a.attnum > 0 and b.attname is null"
    );
    assert_eq!(db.text(&differs), "");
    let nameless = db
        .rows(
            "select conname from pg_constraint where connamespace = 'vm'::regnamespace
               and contype in ('c', 'u', 'f') and conname !~ '_(is|has|exists|belongs|names|never|are)(_|$)'",
        )
        .unwrap();
    assert!(nameless.is_empty(), "{nameless:?}");
    let said = db.text(&format!("select obj_description('vm.{place}'::regclass)"));
    assert!(said.contains(&place[11..].replace('_', "-")), "{said}");
    for refused in [
        format!("update {place} set Priority = 1 where ID = '{id}'"),
        format!("truncate {place}"),
        "truncate JobHistory".to_owned(),
    ] {
        db.refusal(&refused);
    }
    let told = psql(&db, &format!("update {place} set StatusID = -1;"));
    assert!(told.err.contains("it was left alone"), "{told:?}");
    db.exec(&format!(
        "insert into JobEffect (HistoryID, Iteration, Step, State, Attempt, RunnerID) values ('{id}', 0, 'x', 'intended', 1, '{NIL}')"
    ));
    db.exec(&format!("delete from {place}"));
    assert_eq!(db.text("select count(*) from JobEffect"), "0");
}

/// Statements that look for a row wherever it may stand: an operator's, and the seldom question what became of an
/// outcome whose answer was lost.
const OF_ALL_TABLES: &[&str] = &[
    "insert into ",
    "update JobHistory set StatusID = -1 where ID = $1",
    "select StatusID from JobHistory where ID = $1",
    "select StatusID as status, Error as error, Result as result from JobHistory where ID = $1",
    "h.FinishedDate > clock_timestamp() - interval '1 hour'",
    "from vm.expired_history()",
];

#[test]
fn the_statements_of_the_engine_never_touch_a_month() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    for ago in ["40 days", "80 days", "120 days"] {
        finished(&mut db, &config, ago, 3);
    }
    archive(&mut db.session(Speaker::Runner));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let mut session = db.session(Speaker::Runner);
    session.exec("set plan_cache_mode = force_generic_plan");
    let (mut looked_at, mut left_out) = (0, 0);
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let checked: serde_json::Value = serde_json::from_str(&text).unwrap();
        let statement = checked["query"].as_str().unwrap();
        let lower = statement.to_lowercase();
        if !["jobhistory", "claimableconfig", "vm."].iter().any(|name| lower.contains(name)) {
            continue;
        }
        let inserts_elsewhere =
            lower.contains("insert into claim") || lower.contains("insert into jobeffect");
        if !inserts_elsewhere && OF_ALL_TABLES.iter().any(|part| statement.contains(part)) {
            left_out += 1;
            continue;
        }
        let parameters = checked["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        let nulls = vec!["null"; parameters].join(", ");
        session.exec(&format!("deallocate all; prepare s as {statement}"));
        let execute = if parameters == 0 { "execute s".to_owned() } else { format!("execute s({nulls})") };
        let plan = session.exec(&format!("explain (format json) {execute}"));
        assert!(!plan.contains("jobhistory_2"), "{statement}: {plan}");
        looked_at += 1;
    }
    assert!(looked_at >= 25, "{looked_at} statements were looked at, {left_out} left out");
}

#[test]
fn the_engine_works_on_while_every_month_is_locked_by_somebody() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    finished(&mut db, &config, "40 days", 3);
    finished(&mut db, &config, "80 days", 3);
    archive(&mut db.session(Speaker::Runner));
    let mut somebody = db.session(Speaker::Operator);
    let months = somebody.exec("select string_agg(m.Month::text, ', ') from vm.history_months() m");
    somebody.exec(&format!("begin; lock table {months} in access exclusive mode"));

    // What touched a month in any way, be it for a plan, would wait now.
    let status = |id: &str| format!("select StatusID from only JobHistory where ID = '{id}'");
    let sleep = |seconds: &str| format!(r#"{{"seconds": {seconds}}}"#);
    let mut first = Daemon::start_with(&db, &QUICK_LEASE);
    let done = db.insert(&config, &sleep("0.01"));
    db.wait_for(&status(&done), "3", SOON);
    let parent = db.insert(&config, &sleep("600"));
    let child = db.text(&format!(
        r#"insert into JobHistory (ConfigID, StatusID, ParentJobID, Payload)
           values ('{config}', 1, '{parent}', '{{"seconds": 600}}') returning ID"#
    ));
    db.wait_for(&status(&child), "2", SOON);
    db.exec(&format!("update only JobHistory set StatusID = -1 where ID = '{parent}'"));
    db.wait_for(&status(&child), "5", SOON);
    let again = db.config("NoopJob", "Continuous, WaitInSeconds", "true, 600");
    let goes_on = db.insert(&again, "{}");
    let iteration = format!("select CurrentIteration from only JobHistory where ID = '{goes_on}'");
    db.wait_for(&iteration, "1", SOON);
    db.exec(&format!("update JobConfig set WaitInSeconds = 1 where ID = '{again}'"));
    db.wait_for(&iteration, "2", SOON);
    db.exec(&format!("update JobConfig set Continuous = false where ID = '{again}'"));
    db.wait_for(&status(&goes_on), "3", SOON);
    db.exec(&format!(
        "insert into JobSchedule (ConfigID, Cron, Overlap) values ('{again}', '* * * * * *', 'cancel_old')"
    ));
    db.wait_for(
        "select count(*) > 1 from only JobHistory where Origin = 'schedule' and StatusID = 3",
        "t",
        SOON,
    );
    db.exec("update JobSchedule set Active = false");
    let orphan = db.insert(&config, &sleep("2"));
    db.wait_for(&status(&orphan), "2", SOON);
    first.kill();
    let mut second = Daemon::start_with(&db, &QUICK_LEASE);
    db.wait_for(&status(&orphan), "3", SOON);
    assert_eq!(db.text(&format!("select Crashes from only JobHistory where ID = '{orphan}'")), "1");
    assert_eq!(db.text("select count(*) from JobHistoryWaiting"), "0");
    assert!(second.stop().success());
    somebody.exec("commit");
}

#[test]
fn a_view_that_somebody_made_of_a_month_keeps_that_month_alone_from_being_dropped() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances, RetentionDays", "0, 30");
    finished(&mut db, &config, "100 days", 3);
    archive(&mut db.session(Speaker::Runner));
    let place = month(&mut db, "100 days");
    db.exec(&format!("create view public.mine as select ID from {place}"));
    let daemon = Daemon::start_with(&db, &[OFTEN]);
    daemon.wait_line("Retention: failed to drop what was removed, the next turn tries again");
    let later = finished_row(&mut db, &config, "2 days");
    let place = month(&mut db, "2 days");
    db.wait_for(&format!("select tableoid::regclass from JobHistory where ID = '{later}'"), &place, SOON);
    db.exec("drop view public.mine");
    daemon.wait_line("Retention: dropped the files of JobHistory_");
}
