//! Wall clocks that jump. The database's clock is moved under everything rosterd asks it: its statements and
//! functions look into the schema vm first, and there stand functions of these names.

use crate::support::{Daemon, SOON, TestDb};

/// From now on the clock of this database can be moved; daemons must start after it.
fn with_movable_clock() -> TestDb {
    let mut db = TestDb::new();
    db.exec(
        "create table public.Shift (Amount interval not null);
         insert into public.Shift values ('0');
         create function vm.clock_timestamp() returns timestamptz volatile language sql
           as 'select pg_catalog.clock_timestamp() + (select Amount from public.Shift)';
         create function vm.statement_timestamp() returns timestamptz stable language sql
           as 'select pg_catalog.statement_timestamp() + (select Amount from public.Shift)';
         create function vm.now() returns timestamptz stable language sql
           as 'select pg_catalog.now() + (select Amount from public.Shift)'",
    );
    db
}

fn jump(db: &mut TestDb, amount: &str) {
    db.exec(&format!("update public.Shift set Amount = {amount}"));
}

/// Waits until every runner has pulsed a few times more.
fn wait_beats(db: &mut TestDb) {
    let wanted = db.text("select string_agg((Seq + 4)::text, ',' order by ID) from Runner");
    db.wait_for(
        &format!(
            "select bool_and(Seq >= Wanted) from (
               select Seq, (string_to_array('{wanted}', ','))[row_number() over (order by ID)]::bigint as Wanted
               from Runner) r"
        ),
        "t",
        SOON,
    );
}

#[test]
fn a_jump_of_the_wall_clock_by_an_hour_ends_no_lease_and_no_run() {
    let mut db = with_movable_clock();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let lease = [("ROSTERD__ENGINE__LEASE_SECONDS", "4"), ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.3")];
    let daemons: Vec<Daemon> = (0..2).map(|_| Daemon::start_with(&db, &lease)).collect();
    let running = db.insert(&config, "{}");
    db.wait_status(&running, 2);
    let runners = db.text("select string_agg(ID::text, ',' order by ID) from Runner");
    for amount in ["interval '1 hour'", "interval '-1 hour'", "interval '0'"] {
        jump(&mut db, amount);
        wait_beats(&mut db);
        // And work goes on, by the clock as it is now.
        let next = db.insert(&config, r#"{"seconds": 0}"#);
        db.wait_status(&next, 3);
    }
    assert_eq!(db.text("select string_agg(ID::text, ',' order by ID) from Runner"), runners);
    assert_eq!(db.column(&running, "StatusID || ' ' || Attempt || ' ' || Crashes"), "2 1 0");
    for daemon in &daemons {
        let said = daemon.output();
        assert!(!said.contains("is dead") && !said.contains("the lease of"), "{said}");
    }
}

#[test]
fn a_forward_jump_is_caught_up_as_missed_run_says_and_a_backward_one_fires_nothing_twice() {
    let mut db = with_movable_clock();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let _daemons: Vec<Daemon> = (0..2).map(|_| Daemon::start(&db)).collect();
    let schedules: Vec<(&str, String)> = [("skip", "0"), ("once", "1"), ("all", "5")]
        .into_iter()
        .map(|(policy, rows)| {
            let sql = format!(
                "insert into JobSchedule (ConfigID, Cron, MissedRun) values ('{config}', '0 * * * *', '{policy}') returning ID"
            );
            (rows, db.text(&sql))
        })
        .collect();
    db.wait_for("select count(NextRun) from JobSchedule", "3", SOON);
    // From whenever we are to half past, five hours on: five full hours lie between.
    jump(
        &mut db,
        "date_trunc('hour', pg_catalog.clock_timestamp()) + interval '5 hours 30 minutes' - pg_catalog.clock_timestamp()",
    );
    db.wait_for(
        "select count(*) from JobSchedule where NextRun > pg_catalog.clock_timestamp() + interval '5 hours'",
        "3",
        SOON,
    );
    let count = |db: &mut TestDb, schedule: &str| {
        db.text(&format!(
            "select count(*) || ' ' || count(distinct DueDate) from JobHistory where ScheduleID = '{schedule}'"
        ))
    };
    for (rows, schedule) in &schedules {
        assert_eq!(count(&mut db, schedule), format!("{rows} {rows}"));
    }
    db.wait_count(&config, 3, 6);
    // Back where it was: these hours come again, and every second one of another schedule shows that the loop turns.
    jump(&mut db, "interval '0'");
    let every_second = db.text(&format!(
        "insert into JobSchedule (ConfigID, Cron) values ('{config}', '* * * * * *') returning ID"
    ));
    db.wait_for(
        &format!("select count(*) >= 3 from JobHistory where ScheduleID = '{every_second}'"),
        "t",
        SOON,
    );
    for (rows, schedule) in &schedules {
        assert_eq!(count(&mut db, schedule), format!("{rows} {rows}"));
    }
}

#[test]
fn a_clock_put_back_by_an_hour_holds_up_the_calls_to_a_source_by_no_more_than_its_delay() {
    let mut db = with_movable_clock();
    db.exec("insert into Organization (Code) values ('ACME')");
    let source = db.text(
        r#"insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
           select 'JIRA', ID, 'http://127.0.0.1:1', '{"Delay": 200000000}' from Organization where Code = 'ACME' returning ID"#,
    );
    let runner = "00000000-0000-0000-0000-000000000001";
    db.exec(&format!(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ('{runner}', 'x', 1, '1', 1000, 1)"
    ));
    let ask = format!(
        "select Verdict || ' ' || (WindowUntil is not null or AskIn <= 1)::text
         from vm.share_source('{source}', '{runner}', (select coalesce(max(Question), 0) + 1 from SourceShare),
           0, 1, 5, 1, 1, 0, 1, 0.005, false, null, false)"
    );
    assert_eq!(db.text(&ask), "ok true");
    jump(&mut db, "interval '-1 hour'");
    assert_eq!(db.text(&ask), "ok true");
    // The window before the step may still run, so the next one comes a little later than Delay.
    db.wait_for(&ask.replace("or AskIn <= 1", ""), "ok true", SOON);
}
