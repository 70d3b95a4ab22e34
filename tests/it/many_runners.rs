//! There is no leader: what must happen once happens once, with any number of daemons, also while some die.

use crate::support::{Daemon, SOON, TestDb, meanwhile, own_jobs_binary};
use rosterd::postgres::connect::Speaker;
use std::process::Command;
use std::time::{Duration, Instant};

/// The seconds since 1970 at which a schedule had a row, in their order.
fn due_times(db: &mut TestDb, schedule: &str) -> Vec<i64> {
    let rows = db.rows(&format!(
        "select extract(epoch from DueDate)::bigint from JobHistory where ScheduleID = '{schedule}' order by 1"
    ));
    rows.unwrap().into_iter().flatten().map(|text| text.parse().unwrap()).collect()
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn four_daemons_of_which_some_are_killed_put_one_row_for_each_due_time() {
    let mut db = TestDb::new();
    let mut daemons: Vec<Daemon> = (0..4).map(|_| Daemon::start(&db)).collect();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let created: i64 =
        db.text("select floor(extract(epoch from clock_timestamp()))::bigint").parse().unwrap();
    let schedules: Vec<(i64, String)> = [1, 2, 3]
        .into_iter()
        .map(|every| {
            let sql = format!(
                "insert into JobSchedule (ConfigID, Cron, MissedRun) values ('{config}', '*/{every} * * * * *', 'all') returning ID"
            );
            (every, db.text(&sql))
        })
        .collect();
    let began = Instant::now();
    for (n, daemon) in daemons.iter_mut().enumerate() {
        // Whenever: in the middle of a firing too.
        std::thread::sleep(Duration::from_millis(1100 + 170 * n as u64));
        daemon.kill();
        *daemon = Daemon::start(&db);
    }
    let lasted = began.elapsed();
    let last: i64 = db.text("select floor(extract(epoch from clock_timestamp()))::bigint").parse().unwrap();
    for (every, schedule) in &schedules {
        db.wait_for(
            &format!(
                "select extract(epoch from max(DueDate)) >= {last} from JobHistory where ScheduleID = '{schedule}'"
            ),
            "t",
            SOON,
        );
        let fired = due_times(&mut db, schedule);
        // The oracle: every whole multiple, from the first after the INSERT. (The cron's seconds begin anew each
        // minute, which these divide.)
        let (first, newest) = (fired[0], fired[fired.len() - 1]);
        assert!((created..=created + every + 1).contains(&first), "every {every} s: {created}, then {first}");
        let expected: Vec<i64> = (first..=newest).filter(|second| second % every == 0).collect();
        assert_eq!(fired, expected, "every {every} s");
    }
    let late = db.text("select max(extract(epoch from CreatedDate - DueDate)) from JobHistory");
    let rows = db.text("select count(*) from JobHistory");
    println!("{rows} due times in {lasted:.1?} with 4 kills, one row each, {late} s late at most");
}

#[test]
fn eight_daemons_that_start_at_once_and_lose_one_put_one_row_for_each_autostart_configuration() {
    let mut db = TestDb::new();
    let configs: Vec<String> = (0..6).map(|_| db.config("SleepJob", "AutoStart", "true")).collect();
    let spawn = || {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
        command
            .envs([("ROSTERD__ENGINE__LEASE_SECONDS", "4"), ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.5")]);
        Daemon::spawn(command)
    };
    let mut daemons: Vec<Daemon> = (0..8).map(|_| spawn()).collect();
    // The one that has a row in progress dies while others still start.
    let pid =
        "select r.PID from JobHistory h join Runner r on r.ID = h.ThreadID where h.StatusID = 2 limit 1";
    db.wait_for(&format!("select count(*) > 0 from ({pid}) x"), "t", SOON);
    let dead: u32 = db.text(pid).parse().unwrap();
    let at = daemons.iter().position(|daemon| daemon.pid() == dead).unwrap();
    daemons[at].kill();
    for (n, daemon) in daemons.iter().enumerate() {
        if n != at {
            daemon.wait_line("rosterd is ready");
        }
    }
    // Its rows run elsewhere, as the same rows.
    db.wait_for(
        &format!(
            "select count(distinct h.ConfigID) from JobHistory h join Runner r on r.ID = h.ThreadID
             where h.StatusID = 2 and r.PID <> {dead}"
        ),
        &configs.len().to_string(),
        SOON,
    );
    assert_eq!(db.text("select count(*) || ' of ' || count(distinct ConfigID) from JobHistory"), "6 of 6");
    assert_ne!(db.text("select sum(Crashes) from JobHistory"), "0", "the killed one had a row");
}

#[test]
fn max_instances_of_one_three_and_seven_are_used_and_never_exceeded_by_four_daemons() {
    let mut db = TestDb::new();
    let limits = [1, 3, 7];
    let configs: Vec<String> = limits
        .iter()
        .map(|limit| {
            db.config("SleepJob", "MaxInstances, Payload", &format!(r#"{limit}, '{{"seconds": 0.02}}'"#))
        })
        .collect();
    let _daemons: Vec<Daemon> = (0..4).map(|_| Daemon::start(&db)).collect();
    for (config, limit) in configs.iter().zip(limits) {
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, {})",
            30 * limit
        ));
    }
    for (config, limit) in configs.iter().zip(limits) {
        db.wait_count(config, 3, 30 * usize::try_from(limit).unwrap());
        assert_eq!(db.most_at_once(config), limit, "room is used and not exceeded");
    }
    let runners = "select count(distinct ThreadID) from JobHistory";
    assert!(db.text(runners).parse::<i32>().unwrap() > 1, "several daemons took part");
}

#[test]
fn an_edit_of_max_instances_holds_for_every_start_after_it_on_four_daemons() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 0.05}'"#);
    let _daemons: Vec<Daemon> = (0..4).map(|_| Daemon::start(&db)).collect();
    let mut operator = db.session(Speaker::Operator);
    let insert = || {
        operator.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 10)"
        ));
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut edits: Vec<(i64, String, String)> = Vec::new();
    meanwhile(insert, || {
        // Up, down, and from no limit to a limit and back.
        for limit in [0, 3, 1, 7, 0, 2] {
            let before = db.text("select clock_timestamp()");
            db.exec(&format!("update JobConfig set MaxInstances = {limit} where ID = '{config}'"));
            edits.push((limit, before, db.text("select clock_timestamp()")));
            std::thread::sleep(Duration::from_millis(700));
        }
    });
    let end = db.text("select clock_timestamp()");
    db.exec("update JobHistory set StatusID = -1 where StatusID = 1");
    db.wait_for("select count(*) from JobHistory where StatusID in (1, 2, -1)", "0", SOON);
    let mut starts_under_a_limit = 0;
    for (n, (limit, _, since)) in edits.iter().enumerate() {
        let until = edits.get(n + 1).map_or(end.as_str(), |(_, before_the_next, _)| before_the_next);
        // A claim that was under way in the moment of the edit may still count by the old value.
        let told = db.rows(&format!(
            "select count(*), coalesce(max((select count(*) from JobHistory o
               where o.ID <> h.ID and o.StartedDate <= h.StartedDate and o.FinishedDate > h.StartedDate)), 0)
             from JobHistory h where h.StartedDate > timestamptz '{since}' + interval '200 ms' and h.StartedDate < '{until}'"
        ));
        let told = told.unwrap().remove(0);
        let (starts, others): (i64, i64) = (told[0].parse().unwrap(), told[1].parse().unwrap());
        if *limit > 0 {
            starts_under_a_limit += starts;
            assert!(others < *limit, "at MaxInstances {limit} a start found {others} others in progress");
        }
    }
    assert!(starts_under_a_limit > 20, "{starts_under_a_limit} starts are no trial");
}
