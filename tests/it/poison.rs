//! A job that kills its process ends as poison, and takes nobody with it: a row that two runners died under runs
//! alone, in a process of its own.

use super::restart::{embedded_daemon, psql, state_folder, wait_psql};
use crate::support::{
    Daemon, FROM_THE_START, QUICK_LEASE, SHORT_GRACE, SOON, TestDb, binary, own_jobs_binary,
};
use rosterd::postgres::connect::Speaker;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TICK: &str = include_str!("../../src/history/tick.sql");
const CLAIM: &str = include_str!("../../src/history/claim.sql");
const CLAIM_AROUND: &str = include_str!("../../src/history/claim_around.sql");
const CLAIM_ALONE: &str = include_str!("../../src/history/claim_alone.sql");
const NO_DRAIN: (&str, &str) = ("ROSTERD__ENGINE__DRAIN_SECONDS", "0");

fn quick(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    QUICK_LEASE.into_iter().chain([SHORT_GRACE]).chain(more.iter().copied()).collect()
}

/// A pending row that two runners died under already.
fn suspect(db: &mut TestDb, config: &str, payload: &str) -> String {
    let mut runner = db.session(Speaker::Runner);
    runner.exec("begin");
    let id = runner.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, Payload) values ('{config}', 1, '{payload}') returning ID"
    ));
    runner.exec(&format!("update JobHistory set Crashes = 2 where ID = '{id}'"));
    // Seen by others only now.
    runner.exec("commit");
    id
}

/// The process that runs this row, once it does.
fn process_of(db: &mut TestDb, id: &str) -> u32 {
    db.wait_status(id, 2);
    db.text(&format!("select PID from Runner where AloneID = '{id}'")).parse().unwrap()
}

fn is_alive(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn wait_gone(pid: u32) {
    let until = Instant::now() + SOON;
    while is_alive(pid) {
        assert!(Instant::now() < until, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

fn main_runner(db: &mut TestDb) -> String {
    db.text("select ID from Runner where AloneID is null")
}

#[test]
fn a_job_that_kills_its_process_three_times_is_poison_and_its_twenty_neighbours_complete() {
    let mut db = TestDb::new();
    let innocent = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 1}'"#);
    let guilty = db.config("AbortJob", "Payload", r#"'{"seconds": 0.5}'"#);
    let env = quick(&[("ROSTERD__ENGINE__ALONE_PROCESSES", "8")]);
    let mut daemon = Daemon::start_with(&db, &env);
    db.exec(&format!(
        "begin;
         insert into JobHistory (ConfigID, StatusID) select '{innocent}', 1 from generate_series(1, 20);
         insert into JobHistory (ConfigID, StatusID) values ('{guilty}', 1);
         commit"
    ));
    // All of them are in progress when the guilty one strikes.
    for crashes in 1..=2 {
        assert!(!daemon.wait_exit().success(), "the job kills its daemon");
        assert_eq!(
            db.text(&format!(
                "select count(*) from JobHistory where StatusID = 2 and Crashes = {}",
                crashes - 1
            )),
            "21"
        );
        daemon = Daemon::start_with(&db, &env);
    }
    db.wait_count(&innocent, 3, 20);
    db.wait_count(&guilty, 4, 1);
    let row =
        db.rows(&format!("select StopReason, Crashes, Error from JobHistory where ConfigID = '{guilty}'"));
    assert_eq!(row.unwrap()[0], ["poison", "3", "the runner died under it (3 times)"]);
    assert_eq!(
        db.text(&format!(
            "select count(*) from JobHistory where ConfigID = '{innocent}' and Crashes = 2 and Attempt = 3"
        )),
        "20"
    );
    // The daemon that started the last process still works, and no trace of the processes is left.
    db.wait_for("select count(*) from Runner", "1", SOON);
    assert_eq!(db.text("select PID from Runner"), daemon.pid().to_string());
    let config = db.config("NoopJob", "", "");
    let next = db.insert(&config, "{}");
    db.wait_status(&next, 3);
    assert!(daemon.output().contains("alone died: signal: 6"), "{}", daemon.output());
    assert!(daemon.stop().success());
}

#[test]
fn a_row_that_runs_alone_is_cancelled_like_any_other() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start_with(&db, &quick(&[]));
    let id = suspect(&mut db, &config, "{}");
    let pid = process_of(&mut db, &id);
    assert_ne!(db.column(&id, "ThreadID"), main_runner(&mut db));
    let list =
        Command::new(binary()).args(["runner", "list"]).env("DATABASE_URL", db.url()).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let line = list.lines().find(|line| line.contains(&format!(" {pid} "))).unwrap();
    assert!(line.contains("one row alone") && line.contains("/1 "), "{list}");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    let took: f64 = db.column(&id, "extract(epoch from FinishedDate - CancelDate)").parse().unwrap();
    assert!(took <= 2.0, "{took} s");
    assert_eq!((db.column(&id, "StopReason"), db.column(&id, "Crashes")), ("stopped".into(), "2".into()));
    wait_gone(pid);
    db.wait_for("select count(*) from Runner", "1", SOON);
}

#[test]
fn a_row_that_runs_alone_goes_back_without_a_crash_when_its_daemon_is_killed() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let env = quick(&[NO_DRAIN]);
    let mut daemon = Daemon::start_with(&db, &env);
    let id = suspect(&mut db, &config, r#"{"seconds": 3}"#);
    let pid = process_of(&mut db, &id);
    daemon.kill();
    wait_gone(pid);
    assert_eq!(
        db.rows(&format!("select StatusID, Attempt, Crashes from JobHistory where ID = '{id}'")).unwrap()[0],
        ["1", "0", "2"]
    );
    let _other = Daemon::start_with(&db, &env);
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Crashes"), "2");
}

#[test]
fn sigterm_lets_a_row_that_runs_alone_finish_within_the_drain_time_or_puts_it_back() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let mut daemon = Daemon::start_with(&db, &quick(&[]));
    let finishes = suspect(&mut db, &config, r#"{"seconds": 1}"#);
    db.wait_status(&finishes, 2);
    assert!(daemon.stop().success());
    assert_eq!((db.status(&finishes), db.column(&finishes, "Attempt")), ("3".into(), "1".into()));

    let mut daemon = Daemon::start_with(&db, &quick(&[]));
    let goes_back = suspect(&mut db, &config, "{}");
    let pid = process_of(&mut db, &goes_back);
    daemon.signal("TERM");
    db.wait_for("select count(*) from Runner where State = 'stopping'", "2", SOON);
    assert_eq!(db.status(&goes_back), "2", "it drains for a minute");
    let began = Instant::now();
    assert!(daemon.stop().success(), "a second signal hurries both");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!is_alive(pid));
    assert_eq!(
        db.rows(&format!("select StatusID, Attempt, Crashes from JobHistory where ID = '{goes_back}'"))
            .unwrap()[0],
        ["1", "0", "2"]
    );
    assert_eq!(db.text("select count(*) from Runner"), "0");
    assert_eq!(db.text("select coalesce(sum(Open), 0) from Claim"), "0");
}

#[test]
fn a_process_stays_until_the_outcome_of_its_row_is_written() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "", "");
    let _daemon = Daemon::start_with(&db, &quick(&[]));
    let id = suspect(&mut db, &config, r#"{"seconds": 1}"#);
    let pid = process_of(&mut db, &id);
    let mut operator = db.session(Speaker::Operator);
    operator.exec(&format!("begin; select from JobHistory where ID = '{id}' for update"));
    db.wait_for(&format!("select Running from Runner where AloneID = '{id}'"), "1", SOON);
    db.wait_for(&format!("select Running from Runner where AloneID = '{id}'"), "0", SOON);
    // Longer than a daemon that stops would try.
    let until = Instant::now() + Duration::from_millis(5500);
    while Instant::now() < until {
        assert!(is_alive(pid), "it left its row behind");
        std::thread::sleep(Duration::from_millis(50));
    }
    operator.exec("commit");
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Crashes"), "2");
    wait_gone(pid);
}

#[test]
fn a_process_that_is_killed_ends_its_row_at_once_and_not_after_a_lease() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start(&db); // its lease is 20 seconds
    let id = suspect(&mut db, &config, "{}");
    let pid = process_of(&mut db, &id);
    let killed = Instant::now();
    signal("KILL", pid);
    db.wait_status(&id, 4);
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!((db.column(&id, "StopReason"), db.column(&id, "Crashes")), ("poison".into(), "3".into()));
    assert_eq!(db.text("select count(*) from Runner"), "1");
}

#[test]
fn a_tick_claims_nothing_where_only_suspects_are_due() {
    let mut db = TestDb::new();
    let lanes = ["0", "1"].map(|limit| db.config("NoopJob", "MaxInstances", limit));
    for lane in &lanes {
        suspect(&mut db, lane, "{}");
    }
    let mut session = db.session(Speaker::Runner);
    let jobs = session.exec("select quote_literal(array_agg(ID)::text) from Job");
    session.exec(&format!(
        "prepare tick as with tick (free, limited, next, schedules, suspects, unarmed) as ({TICK})
        select row(free, limited, suspects) from tick"
    ));
    assert_eq!(session.exec(&format!("execute tick({jobs}, 2)")), "({},{},t)");
    db.insert(&lanes[1], "{}");
    assert_eq!(session.exec(&format!("execute tick({jobs}, 2)")), format!("({{}},{{{}}},t)", lanes[1]));
}

#[test]
fn a_lane_keeps_a_place_free_for_the_process_that_waits_to_run_its_suspect() {
    let mut db = TestDb::new();
    let lane = db.config("NoopJob", "MaxInstances", "2");
    let id = suspect(&mut db, &lane, "{}");
    for _ in 0..3 {
        db.insert(&lane, "{}");
    }
    let mut session = db.session(Speaker::Runner);
    let (daemon, process) = ("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002");
    session.exec(&format!(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers, AloneID)
         values ('{daemon}', 'x', 1, '1', 100, 9, null), ('{process}', 'x', 2, '1', 100, 1, '{id}')"
    ));
    let jobs = session.exec("select quote_literal(array_agg(ID)::text) from Job");
    session.exec(&format!(
        "prepare tick as with tick (free, limited, next, schedules, suspects, unarmed) as ({TICK})
        select cardinality(limited) from tick"
    ));
    for (claim, from) in [(CLAIM, format!(", {FROM_THE_START}")), (CLAIM_AROUND, String::new())] {
        session.exec("begin");
        session.exec(&format!("prepare claim as {claim}"));
        let claim = format!(
            "execute claim('{daemon}', array['{lane}']::uuid[], 9, array['{lane}']::uuid[], 2{from})"
        );
        assert_ne!(session.exec(&claim), "");
        assert_eq!(session.exec("select sum(Open) from Claim"), "1", "one of two places is taken");
        assert_eq!(session.exec(&format!("execute tick({jobs}, 2)")), "0");
        assert_eq!(session.exec(&claim), "", "the other is kept");
        session.exec(&format!("prepare alone as {CLAIM_ALONE}"));
        assert_eq!(
            session.exec(&format!("execute alone('{daemon}', '{id}', true)")),
            "",
            "not for any runner"
        );
        assert_eq!(session.exec(&format!("execute alone('{process}', '{id}', true)")), id);
        // Its end frees the place for all.
        session.exec(&format!("delete from Runner where ID = '{process}'"));
        assert_eq!(session.exec(&format!("execute tick({jobs}, 2)")), "0");
        session.exec(&format!("update Claim set Open = 0 where RunnerID = '{process}'"));
        assert_eq!(session.exec(&format!("execute tick({jobs}, 2)")), "1");
        session.exec("rollback; deallocate claim; deallocate alone");
    }
}

#[test]
fn a_suspect_runs_alone_on_the_private_server_of_its_daemon_too() {
    let folder = state_folder();
    let mut daemon = embedded_daemon(folder.path());
    daemon.wait_line("rosterd is ready");
    psql(
        &daemon,
        "insert into Organization (Code) values ('ACME');
         insert into JobConfig (JobID, OrganizationID) select j.ID, o.ID from Job j, Organization o where Struct = 'NoopJob';
         set rosterd.actor = 'runner';
         begin;
         insert into JobHistory (ConfigID, StatusID) select ID, 1 from JobConfig;
         update JobHistory set Crashes = 2;
         commit",
    );
    wait_psql(&daemon, "select StatusID from JobHistory", "3");
    daemon.wait_line("runs alone in process");
    assert!(daemon.stop().success());
}

#[test]
fn without_processes_for_them_suspects_run_like_all_others() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start_with(&db, &quick(&[("ROSTERD__ENGINE__ALONE_PROCESSES", "0")]));
    let id = suspect(&mut db, &config, "{}");
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "ThreadID"), main_runner(&mut db));
}

#[test]
fn an_iteration_that_finishes_alone_clears_a_continuous_row_of_suspicion() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Continuous, WaitInSeconds", "true, 1");
    let _daemon = Daemon::start_with(&db, &quick(&[]));
    let id = suspect(&mut db, &config, "{}");
    let main = main_runner(&mut db);
    db.wait_for(&format!("select CurrentIteration > 0 from JobHistory where ID = '{id}'"), "t", SOON);
    let first = db.rows(&format!("select Crashes, ThreadID from JobHistory where ID = '{id}'")).unwrap();
    assert_eq!(first[0][0], "0");
    assert_ne!(first[0][1], main, "the first iteration ran alone");
    db.wait_for(&format!("select ThreadID = '{main}' from JobHistory where ID = '{id}'"), "t", SOON);
}

#[test]
fn a_backlog_of_ordinary_rows_leaves_a_suspect_its_place_and_the_limit_holds() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances, Payload", r#"1, '{"seconds": 0.05}'"#);
    let _daemon = Daemon::start_with(&db, &quick(&[]));
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 400)"
    ));
    db.wait_for(
        &format!("select count(*) > 5 from JobHistory where ConfigID = '{config}' and StatusID = 3"),
        "t",
        SOON,
    );
    let id = suspect(&mut db, &config, r#"{"seconds": 0.05}"#);
    db.wait_status(&id, 3);
    let behind =
        format!("select count(*) > 200 from JobHistory where ConfigID = '{config}' and StatusID = 1");
    assert_eq!(db.text(&behind), "t", "it did not wait for the backlog");
    db.exec(&format!("update JobHistory set StatusID = -1 where ConfigID = '{config}' and StatusID = 1"));
    db.wait_for(
        &format!("select count(*) from JobHistory where ConfigID = '{config}' and FinishedDate is null"),
        "0",
        SOON,
    );
    assert_eq!(db.most_at_once(&config), 1);
}

#[test]
fn a_suspect_waits_for_its_configuration_and_says_why_it_waits() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Active", "false");
    let daemon = Daemon::start_with(&db, &quick(&[("RUST_LOG", "rosterd=debug")]));
    let id = suspect(&mut db, &config, "{}");
    let reason = format!("select Reason from JobHistoryWaiting where ID = '{id}'");
    assert_eq!(db.text(&reason), "config inactive");
    db.exec("update Runner set Draining = true");
    db.exec(&format!("update JobConfig set Active = true where ID = '{config}'"));
    assert_eq!(db.text(&reason), "runners draining");
    daemon.wait_line("drains, claims nothing more");
    db.exec("update Runner set Draining = false");
    db.wait_status(&id, 3);
    // With nobody there, and all workers busy: what a view says of them differs.
    let mut operator = db.session(Speaker::Runner);
    operator.exec("begin; update Runner set Workers = 0; delete from Claim");
    let again = operator
        .exec(&format!("insert into JobHistory (ConfigID, StatusID) values ('{config}', 1) returning ID"));
    operator.exec(&format!("update JobHistory set Crashes = 2 where ID = '{again}'"));
    assert_eq!(
        operator.exec(&format!("select Reason from JobHistoryWaiting where ID = '{again}'")),
        "runs alone, because runners died under it 2 times"
    );
    operator.exec("rollback");
}

#[test]
fn two_daemons_run_a_suspect_once_and_the_process_that_is_late_says_nothing() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let daemons = [(); 2].map(|()| Daemon::start_with(&db, &quick(&[])));
    let ids: Vec<String> = (0..6).map(|_| suspect(&mut db, &config, "{}")).collect();
    for id in &ids {
        db.wait_status(id, 3);
        assert_eq!(db.column(id, "Attempt"), "1");
    }
    db.wait_for("select count(*) from Runner", "2", SOON);
    // Of the processes only those that got a row say so, and nobody complains.
    let said = daemons.each_ref().map(Daemon::output).join("\n");
    assert_eq!(said.matches("runs alone in process").count(), 6, "{said}");
    assert_eq!(said.matches("registered as").count(), 2, "{said}");
    assert_eq!(
        said.matches("[WARN]").count(),
        said.matches("[WARN] - Schema: the server runs with").count(),
        "{said}"
    );
    assert!(!said.contains("[ERROR]"), "{said}");
}

#[test]
fn no_process_shows_the_password_of_the_database_on_its_command_line() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    // The server trusts its socket, so any password will do.
    let url = format!("{}&password=hunter2", db.url());
    let mut command = Command::new(own_jobs_binary());
    command
        .args(["run", "--listen", "off", "--database-url", &url])
        .env_remove("DATABASE_URL")
        .envs(QUICK_LEASE);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    let id = suspect(&mut db, &config, "{}");
    let pid = process_of(&mut db, &id);
    let read = |what: &str| {
        let bytes = std::fs::read(Path::new("/proc").join(pid.to_string()).join(what)).unwrap();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    assert!(read("environ").contains("hunter2"), "it has the password");
    assert!(!read("cmdline").contains("hunter2"), "{}", read("cmdline"));
    assert!(read("cmdline").contains(" run"), "{}", read("cmdline"));
    assert_eq!(read("oom_score_adj").trim(), "500", "it goes before the daemon where memory runs out");
    assert!(!daemon.output().contains("hunter2"));
}
