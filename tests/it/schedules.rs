//! Schedules put rows on the queue: when, how many, and what operators may do about it.

use crate::support::{Daemon, SOON, TestDb};
use rosterd::postgres::connect::Speaker;
use std::time::Duration;

const EVERY_SECOND: &str = "* * * * * *";

/// A configuration of `NoopJob` and a cron schedule of it with these further columns. Returns JobSchedule.ID.
fn schedule(db: &mut TestDb, cron: &str, columns: &str, values: &str) -> String {
    let config = db.config("NoopJob", "MaxInstances", "0");
    schedule_of(db, &config, cron, columns, values)
}

fn schedule_of(db: &mut TestDb, config: &str, cron: &str, columns: &str, values: &str) -> String {
    let (columns, values) = if columns.is_empty() {
        (String::new(), String::new())
    } else {
        (format!(", {columns}"), format!(", {values}"))
    };
    db.text(&format!(
        "insert into JobSchedule (ConfigID, Cron{columns}) values ('{config}', '{cron}'{values}) returning ID"
    ))
}

fn wait_rows(db: &mut TestDb, schedule: &str, at_least: u32) {
    db.wait_for(
        &format!("select count(*) >= {at_least} from JobHistory where ScheduleID = '{schedule}'"),
        "t",
        SOON,
    );
}

fn wait_next_run(db: &mut TestDb, schedule: &str) -> String {
    db.wait_for(&format!("select NextRun is not null from JobSchedule where ID = '{schedule}'"), "t", SOON);
    db.text(&format!("select NextRun from JobSchedule where ID = '{schedule}'"))
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn three_daemons_fire_an_every_second_schedule_once_a_second_and_on_time() {
    let mut db = TestDb::new();
    let _daemons: Vec<Daemon> = (0..3).map(|_| Daemon::start(&db)).collect();
    let id = schedule(&mut db, EVERY_SECOND, "", "");
    wait_rows(&mut db, &id, 6);
    let told = db.rows(&format!(
        "select count(*) = count(distinct DueDate),
           extract(epoch from max(DueDate) - min(DueDate)) + 1 = count(*),
           max(extract(epoch from CreatedDate - DueDate)), bool_and(CreatedDate >= DueDate)
         from JobHistory where ScheduleID = '{id}'"
    ));
    let told = told.unwrap().remove(0);
    println!("rows of an every-second schedule were late by {} s at most", told[2]);
    assert_eq!((told[0].as_str(), told[1].as_str(), told[3].as_str()), ("t", "t", "t"), "{told:?}");
    assert!(told[2].parse::<f64>().unwrap() <= 1.0, "{told:?}");
}

#[test]
fn a_new_schedule_and_an_edited_one_act_without_a_restart() {
    let mut db = TestDb::new();
    let _daemon = Daemon::start(&db);
    let id = schedule(&mut db, "0 0 1 1 *", "", "");
    let next = wait_next_run(&mut db, &id);
    assert!(next.contains("-01-01 00:00:00"), "{next}");
    db.exec(&format!("update JobSchedule set Cron = '{EVERY_SECOND}' where ID = '{id}'"));
    db.wait_for(
        &format!("select count(*) > 0 from JobHistory where ScheduleID = '{id}'"),
        "t",
        Duration::from_secs(5),
    );
    db.exec(&format!("update JobSchedule set Cron = '0 0 1 1 *' where ID = '{id}'"));
    let next = wait_next_run(&mut db, &id);
    assert!(next.contains("-01-01 00:00:00"), "{next}");
}

#[test]
fn a_day_and_time_in_the_zone_of_the_schedule_fires_then() {
    let mut db = TestDb::new();
    let _daemon = Daemon::start(&db);
    let config = db.config("NoopJob", "", "");
    let id = db.text(&format!(
        "insert into JobSchedule (ConfigID, DaysOfWeek, TimeOfDay, TimeZone)
         select '{config}', extract(dow from t)::int + 1, t::time, 'Asia/Kathmandu'
         from (select date_trunc('second', clock_timestamp() at time zone 'Asia/Kathmandu') + interval '2 s' as t) x
         returning ID"
    ));
    wait_rows(&mut db, &id, 1);
    let late: f64 = db
        .text(&format!(
            "select extract(epoch from h.CreatedDate - h.DueDate) from JobHistory h join JobSchedule s on s.ID = h.ScheduleID
             where s.ID = '{id}' and (h.DueDate at time zone 'Asia/Kathmandu')::time = s.TimeOfDay"
        ))
        .parse()
        .unwrap();
    assert!((0.0..=1.0).contains(&late), "{late} s");
    let next = db.text(&format!("select NextRun - LastRun from JobSchedule where ID = '{id}'"));
    assert_eq!(next, "7 days", "the same day next week");
}

#[test]
fn the_zone_is_the_schedules_else_the_organizations_else_utc() {
    let mut db = TestDb::new();
    let _daemon = Daemon::start(&db);
    let daily = |db: &mut TestDb, columns: &str, values: &str| schedule(db, "30 12 * * *", columns, values);
    let utc = daily(&mut db, "", "");
    let own = daily(&mut db, "TimeZone", "'Australia/Lord_Howe'");
    // The next 12:30 there, by PostgreSQL's own reckoning.
    let expected = |zone: &str| {
        format!(
            "select min(at)::text from (
               select ((current_date + n) + time '12:30') at time zone '{zone}' as at from generate_series(-1, 2) n) x
             where at > clock_timestamp()"
        )
    };
    for (id, zone) in [(&utc, "UTC"), (&own, "Australia/Lord_Howe")] {
        assert_eq!(wait_next_run(&mut db, id), db.text(&expected(zone)), "{zone}");
    }
    db.exec("update Organization set TimeZone = 'America/St_Johns'");
    assert_eq!(wait_next_run(&mut db, &utc), db.text(&expected("America/St_Johns")));
    assert_eq!(wait_next_run(&mut db, &own), db.text(&expected("Australia/Lord_Howe")));
}

#[test]
fn due_times_missed_while_no_daemon_ran_are_skipped_run_once_or_run_all() {
    let mut db = TestDb::new();
    let grace = ("ROSTERD__SCHEDULE__MISSED_GRACE_SECONDS", "0.5");
    let ids: Vec<String> = ["skip", "once", "all"]
        .iter()
        .map(|word| schedule(&mut db, EVERY_SECOND, "MissedRun", &format!("'{word}'")))
        .collect();
    let mut daemon = Daemon::start_with(&db, &[grace]);
    for id in &ids {
        wait_rows(&mut db, id, 1);
    }
    assert!(daemon.stop().success());
    let stopped = db.text("select clock_timestamp()");
    std::thread::sleep(Duration::from_millis(3600)); // the time that is missed
    let back = db.text("select clock_timestamp()");
    let _daemon = Daemon::start_with(&db, &[grace]);
    for id in &ids {
        db.wait_for(
            &format!(
                "select count(*) >= 1 from JobHistory where ScheduleID = '{id}' and CreatedDate > '{back}'"
            ),
            "t",
            SOON,
        );
    }
    db.wait_for(
        &format!("select count(*) >= 2 from JobHistory where ScheduleID = '{}' and CreatedDate > '{back}' and DueDate > '{back}'", ids[2]),
        "t",
        SOON,
    );
    let caught_up = |db: &mut TestDb, id: &str| -> u32 {
        db.text(&format!(
            "select count(*) from JobHistory where ScheduleID = '{id}' and CreatedDate > '{back}'
             and DueDate between '{stopped}' and timestamptz '{back}' - interval '600 ms'"
        ))
        .parse()
        .unwrap()
    };
    let all_due = db.text(&format!(
        "select count(*) from JobHistory where ScheduleID = '{}' and DueDate between '{stopped}' and timestamptz '{back}' - interval '600 ms'",
        ids[2]
    ));
    assert_eq!(caught_up(&mut db, &ids[0]), 0, "skip");
    assert!(caught_up(&mut db, &ids[1]) <= 1, "once: only the latest stands for the rest");
    assert!(all_due.parse::<u32>().unwrap() >= 2, "all: {all_due} due times were missed");
    assert_eq!(caught_up(&mut db, &ids[2]).to_string(), all_due, "all");
    let gaps = db.text(&format!(
        "select (extract(epoch from max(DueDate) - min(DueDate)) + 1 - count(*))::int from JobHistory where ScheduleID = '{}'",
        ids[2]
    ));
    assert_eq!(gaps, "0", "all: no due time without a row");
    let once = db.text(&format!(
        "select count(*) from JobHistory where ScheduleID = '{}' and CreatedDate > '{back}' and DueDate <= '{back}'",
        ids[1]
    ));
    assert!(once == "1" || once == "0", "once: {once} rows");
}

#[test]
fn overlap_queues_skips_or_cancels_the_old_row() {
    let mut db = TestDb::new();
    let config = |db: &mut TestDb| db.config("SleepJob", "MaxInstances, Payload", r#"1, '{"seconds": 30}'"#);
    let (queue, skip, cancel) = (config(&mut db), config(&mut db), config(&mut db));
    let queue = schedule_of(&mut db, &queue, EVERY_SECOND, "Overlap", "'queue'");
    let skip = schedule_of(&mut db, &skip, EVERY_SECOND, "Overlap", "'skip'");
    let cancel = schedule_of(&mut db, &cancel, EVERY_SECOND, "Overlap", "'cancel_old'");
    let daemon = Daemon::start(&db);
    wait_rows(&mut db, &queue, 3);
    wait_rows(&mut db, &cancel, 3);
    daemon.wait_line(&format!("schedule {skip} skips"));
    let count = |db: &mut TestDb, id: &str, status: &str| -> u32 {
        db.text(&format!(
            "select count(*) from JobHistory where ScheduleID = '{id}' and StatusID in ({status})"
        ))
        .parse()
        .unwrap()
    };
    assert_eq!(count(&mut db, &queue, "2"), 1);
    assert!(count(&mut db, &queue, "1") >= 2);
    assert_eq!(count(&mut db, &skip, "1, 2, 3, 4, 5, -1"), 1);
    assert_eq!(count(&mut db, &cancel, "3, 4"), 0);
    db.wait_for(
        &format!("select count(*) >= 2 from JobHistory where ScheduleID = '{cancel}' and StatusID = 5 and CancelBy is not null"),
        "t",
        SOON,
    );
}

#[test]
fn jitter_delays_each_due_time_within_its_bounds() {
    let mut db = TestDb::new();
    let id = schedule(&mut db, EVERY_SECOND, "JitterSeconds", "600");
    let _daemons: Vec<Daemon> = (0..2).map(|_| Daemon::start(&db)).collect();
    wait_rows(&mut db, &id, 4);
    let told = db
        .rows(&format!("select DueDate, (extract(epoch from NotBefore - DueDate) * 1000)::int from JobHistory where ScheduleID = '{id}'"))
        .unwrap();
    let schedule = id.parse().unwrap();
    for row in &told {
        let due = chrono::DateTime::parse_from_str(&row[0], "%Y-%m-%d %H:%M:%S%#z").unwrap().to_utc();
        let delay: u128 = row[1].parse().unwrap();
        assert!(delay <= 600_000);
        assert_eq!(
            delay,
            rosterd::schedule::jitter(schedule, due, 600).as_millis(),
            "the same on every runner"
        );
    }
    let mut delays: Vec<&String> = told.iter().map(|row| &row[1]).collect();
    delays.dedup();
    assert!(delays.len() > 1, "different due times have different delays: {delays:?}");
}

#[test]
fn a_schedule_the_daemon_cannot_use_says_so_and_stops_no_other() {
    let mut db = TestDb::new();
    let good = schedule(&mut db, EVERY_SECOND, "", "");
    let bad = schedule(&mut db, "0 0 * * *", "", "");
    // Past the checks, as a replica or a restored dump might bring it.
    db.exec(&format!(
        "set session_replication_role = replica; update JobSchedule set Cron = 'now and then' where ID = '{bad}';
         set session_replication_role = origin"
    ));
    let _daemon = Daemon::start(&db);
    wait_rows(&mut db, &good, 2);
    let error = db.text(&format!("select Error from JobSchedule where ID = '{bad}'"));
    assert!(error.contains("now and then"), "{error}");
    db.exec(&format!("update JobSchedule set Cron = '{EVERY_SECOND}' where ID = '{bad}'"));
    wait_rows(&mut db, &bad, 1);
    assert_eq!(db.text(&format!("select Error from JobSchedule where ID = '{bad}'")), "");
}

#[test]
fn nothing_inactive_fires() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let off = schedule_of(&mut db, &config, EVERY_SECOND, "Active", "false");
    let stopped = db.config("NoopJob", "Active", "false");
    let stopped = schedule_of(&mut db, &stopped, EVERY_SECOND, "", "");
    db.exec("insert into Organization (Code, Active) values ('ASLEEP', false)");
    let asleep = db.config("NoopJob", "", "");
    db.exec(&format!("update JobConfig set OrganizationID = (select ID from Organization where Code = 'ASLEEP') where ID = '{asleep}'"));
    let asleep = schedule_of(&mut db, &asleep, EVERY_SECOND, "", "");
    let marker = schedule_of(&mut db, &config, EVERY_SECOND, "", "");
    let _daemon = Daemon::start(&db);
    wait_rows(&mut db, &marker, 3);
    let others = db.text(&format!(
        "select count(*) from JobHistory where ScheduleID in ('{off}', '{stopped}', '{asleep}')"
    ));
    assert_eq!(others, "0");
    db.exec("update Organization set Active = true where Code = 'ASLEEP'");
    wait_rows(&mut db, &asleep, 1);
}

#[test]
fn a_schedule_an_operator_holds_locked_delays_no_other() {
    let mut db = TestDb::new();
    let held = schedule(&mut db, EVERY_SECOND, "", "");
    let other = schedule(&mut db, EVERY_SECOND, "", "");
    let _daemon = Daemon::start(&db);
    wait_rows(&mut db, &held, 1);
    let mut operator = db.session(Speaker::Operator);
    operator.exec(&format!("begin; select ID from JobSchedule where ID = '{held}' for update"));
    let since = db.text("select clock_timestamp()");
    db.wait_for(
        &format!(
            "select count(*) >= 3 from JobHistory where ScheduleID = '{other}' and CreatedDate > '{since}'"
        ),
        "t",
        Duration::from_secs(8),
    );
    let late = db.text(&format!("select max(CreatedDate - DueDate) < interval '1 s' from JobHistory where ScheduleID = '{other}' and CreatedDate > '{since}'"));
    assert_eq!(late, "t");
    operator.exec("commit");
    db.wait_for(
        &format!(
            "select count(*) > 0 from JobHistory where ScheduleID = '{held}' and CreatedDate > '{since}'"
        ),
        "t",
        SOON,
    );
}
