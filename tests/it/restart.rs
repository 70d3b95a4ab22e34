//! Daemons stop, die, freeze and lose their database; rows do not get lost and attempts are not burned.

use crate::support::{Daemon, QUICK_LEASE, SHORT_GRACE, SOON, TestDb, own_jobs_binary};
use rosterd::postgres::connect::Speaker;
use rosterd::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
use std::process::Command;
use std::time::{Duration, Instant};

const NO_DRAIN: (&str, &str) = ("ROSTERD__ENGINE__DRAIN_SECONDS", "0");

fn quick(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    QUICK_LEASE.into_iter().chain([SHORT_GRACE]).chain(more.iter().copied()).collect()
}

#[test]
fn sigterm_puts_running_rows_back_and_another_daemon_finishes_them_in_their_first_attempt() {
    let mut db = TestDb::new();
    let configs: Vec<String> = ["SleepJob", "StubbornJob", "SpinJob"]
        .iter()
        .map(|job| db.config(job, "MaxAttempts, Payload", r#"1, '{"seconds": 5}'"#))
        .collect();
    let mut daemon = Daemon::start_with(&db, &quick(&[NO_DRAIN, ("ROSTERD__ENGINE__JOB_THREADS", "3")]));
    for config in &configs {
        db.exec(&format!("insert into JobHistory (ConfigID, StatusID) values ('{config}', 1)"));
        db.wait_count(config, 2, 1);
    }
    let began = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let rows = db
        .rows("select Struct, StatusID, Attempt, h.Error from JobHistory h join Job j on j.ID = h.JobID order by Struct")
        .unwrap();
    for (row, job) in rows.iter().zip(["SleepJob", "SpinJob", "StubbornJob"]) {
        assert_eq!(*row, [job, "1", "0", ""], "{rows:?}");
    }
    assert_eq!(db.text("select count(*) from Runner"), "0");
    assert_eq!(db.text("select coalesce(sum(Open), 0) from Claim"), "0");
    let _other = Daemon::start_with(&db, &quick(&[]));
    for config in &configs {
        db.wait_count(config, 3, 1);
    }
    assert_eq!(db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"), "3");
}

#[test]
fn a_job_that_finishes_within_the_drain_time_is_completed() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let mut daemon = Daemon::start(&db);
    let id = db.insert(&config, r#"{"seconds": 1}"#);
    db.wait_status(&id, 2);
    assert!(daemon.stop().success());
    assert_eq!(db.status(&id), "3");
}

#[test]
fn a_second_sigterm_hurries_the_stop() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let mut daemon = Daemon::start(&db); // drains for a minute
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    daemon.signal("TERM");
    daemon.wait_line("1 jobs in progress may finish");
    let began = Instant::now();
    assert!(daemon.stop().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((db.status(&id), db.column(&id, "Attempt")), ("1".to_owned(), "0".to_owned()));
}

#[test]
fn the_rows_of_a_killed_daemon_run_elsewhere_or_end_as_their_configuration_says() {
    let mut db = TestDb::new();
    let retry = db.config("SleepJob", "", "");
    let error = db.config("SleepJob", "OnRunnerLoss", "'error'");
    let cancelled = db.config("SleepJob", "", "");
    let mut first = Daemon::start_with(&db, &quick(&[]));
    let ids: Vec<String> =
        [&retry, &error, &cancelled].iter().map(|config| db.insert(config, "{}")).collect();
    for id in &ids {
        db.wait_status(id, 2);
    }
    let second = Daemon::start_with(&db, &quick(&[]));
    first.kill();
    let killed = Instant::now();
    // Nobody is there to hear it.
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{}'", ids[2]));
    assert_eq!(db.status(&ids[2]), "-1");
    db.wait_for(
        &format!("select Crashes from JobHistory where ID = '{}' and StatusID = 2", ids[0]),
        "1",
        SOON,
    );
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    db.wait_status(&ids[1], 4);
    assert_eq!(db.column(&ids[1], "StopReason"), "runner_lost");
    db.wait_status(&ids[2], 5);
    second.wait_line("is dead, its rows go to others");
    assert_eq!(db.text("select count(*) from Runner"), "1");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{}'", ids[0]));
    db.wait_status(&ids[0], 5);
    assert_eq!(db.text("select count(*) from CancelRequest"), "0");
}

#[test]
fn with_the_default_settings_the_rows_of_a_killed_daemon_run_elsewhere_within_thirty_seconds() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let mut first = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    let _second = Daemon::start(&db);
    db.wait_for("select count(*) from Runner", "2", SOON);
    first.kill();
    let killed = Instant::now();
    db.wait_for(
        &format!("select StatusID = 2 and Crashes = 1 from JobHistory where ID = '{id}'"),
        "t",
        Duration::from_secs(40),
    );
    let took = killed.elapsed();
    eprintln!("elsewhere after {took:.1?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_daemon_frozen_beyond_its_lease_overwrites_nothing_and_works_again() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "MaxInstances", "0");
    let frozen = Daemon::start_with(&db, &quick(&[]));
    let id = db.insert(&config, r#"{"seconds": 2}"#);
    db.wait_status(&id, 2);
    let first = db.column(&id, "ThreadID");
    frozen.signal("STOP");
    let other = Daemon::start_with(&db, &quick(&[]));
    db.wait_for(
        &format!("select ThreadID <> '{first}' and StatusID = 2 from JobHistory where ID = '{id}'"),
        "t",
        SOON,
    );
    let second = db.column(&id, "ThreadID");
    frozen.signal("CONT");
    frozen.wait_line("the lease of");
    db.wait_status(&id, 3);
    assert_eq!((db.column(&id, "ThreadID"), db.column(&id, "Attempt")), (second, "2".to_owned()));
    db.wait_for("select count(*) from Runner", "2", SOON);
    drop(other);
    let again = db.insert(&config, r#"{"seconds": 0}"#);
    db.wait_status(&again, 3);
}

#[test]
fn a_daemon_that_loses_its_lease_and_takes_its_own_row_again_finishes_it() {
    let mut db = TestDb::new();
    let config = db.config("StubbornJob", "MaxInstances", "0");
    let mut daemon = Daemon::start_with(&db, &quick(&[NO_DRAIN]));
    let id = db.insert(&config, r#"{"seconds": 2}"#);
    db.wait_status(&id, 2);
    // As another runner would have done that held it for dead: the first run is still under way here.
    db.exec("delete from Runner");
    daemon.wait_line("the lease of");
    db.wait_for(&format!("select StatusID = 2 and Crashes = 1 from JobHistory where ID = '{id}'"), "t", SOON);
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Attempt"), "2");
    let took: f64 = db.column(&id, "extract(epoch from FinishedDate - StartedDate)").parse().unwrap();
    assert!(took >= 2.0, "the second run has its whole time: {took} s");
    let next = db.insert(&config, r#"{"seconds": 0}"#);
    db.wait_status(&next, 3);
    assert!(daemon.stop().success());
}

#[test]
fn connections_that_are_cut_again_and_again_lose_no_row_and_burn_no_attempt() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 0.1}'"#);
    let limited = db.config("SleepJob", "MaxInstances, Payload", r#"20, '{"seconds": 0.01}'"#);
    let _daemon = Daemon::start(&db);
    let (mut cut, mut rows, until) = (0, 0, Instant::now() + SOON);
    while cut < 60 {
        assert!(Instant::now() < until, "only {cut} connections could be cut");
        for config in [&config, &limited] {
            db.exec(&format!(
                "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 10)"
            ));
        }
        rows += 20;
        cut += db.terminate("");
        std::thread::sleep(Duration::from_millis(40)); // anywhere in the work that goes on
    }
    db.wait_for("select count(*) from JobHistory where StatusID = 3", &rows.to_string(), SOON);
    assert_eq!(
        db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"),
        rows.to_string()
    );
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
}

/// Makes a row stand as a connection leaves it that breaks between a claim's commit and its answer.
fn claim_unheard(db: &mut TestDb, config: &str, id: &str) {
    db.session(Speaker::Runner).exec(&format!(
        "begin;
         insert into Claim (RunnerID, ConfigID, HistoryIDs, Open) select ID, '{config}', array['{id}'::uuid], 1 from Runner;
         update JobHistory set StatusID = 2, Attempt = Attempt + 1, StartedDate = clock_timestamp(),
           ThreadID = (select ID from Runner), ClaimID = (select max(ID) from Claim) where ID = '{id}';
         commit"
    ));
}

#[test]
fn a_claim_whose_answer_was_lost_is_given_back_and_runs() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
    db.exec(&format!("update JobConfig set Active = false where ID = '{config}'"));
    let id = db.insert(&config, "{}");
    claim_unheard(&mut db, &config, &id);
    db.exec(&format!("update JobConfig set Active = true where ID = '{config}'"));
    assert_eq!(db.status(&id), "2");
    db.terminate("claim");
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Attempt"), "1");
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
}

#[test]
fn a_claim_whose_answer_was_lost_is_given_back_also_by_a_daemon_that_drains() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let daemon = Daemon::start(&db);
    db.terminate("claim");
    daemon.wait_line("the database is away");
    db.exec("update Runner set Draining = true");
    daemon.wait_line("drains, claims nothing more");
    let id = db.insert(&config, "{}");
    claim_unheard(&mut db, &config, &id);
    db.wait_status(&id, 1);
    assert_eq!(db.column(&id, "Attempt"), "0");
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
}

/// A folder the embedded server's user can enter.
pub(super) fn state_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("rosterd-restart-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

pub(super) fn embedded_daemon(state: &std::path::Path) -> Daemon {
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off", "--state-dir"]).arg(state).env_remove("DATABASE_URL");
    command.envs(QUICK_LEASE);
    Daemon::spawn(command)
}

pub(super) fn own_server(state: &std::path::Path) -> EmbeddedPostgres {
    let mut options = EmbeddedOptions::new(state.to_owned());
    options.durability = Durability::Durable;
    EmbeddedPostgres::start(&options).unwrap()
}

/// One statement through psql on the server a daemon said it started.
pub(super) fn psql(daemon: &Daemon, sql: &str) -> String {
    let line = daemon.wait_line("Embedded PostgreSQL: postgres://");
    let url = &line[line.find("postgres://").unwrap()..];
    let said = Command::new(crate::support::server().bin_dir().join("psql"))
        .args(["-X", "-A", "-t", "-q", "-d", url, "-c", sql])
        .output()
        .unwrap();
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}

pub(super) fn wait_psql(daemon: &Daemon, sql: &str, wanted: &str) {
    let until = Instant::now() + SOON;
    loop {
        let now = psql(daemon, sql);
        if now == wanted {
            return;
        }
        assert!(Instant::now() < until, "waited for {wanted:?} from {sql}; it is {now:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const NEW_CONFIG: &str = "insert into Organization (Code) values ('ACME');
    insert into JobConfig (JobID, OrganizationID, MaxInstances) select j.ID, o.ID, 0 from Job j, Organization o where Struct = 'SleepJob'";
const NEW_ROW: &str = "insert into JobHistory (ConfigID, StatusID, Payload)
    select ID, 1, '{\"seconds\": 0.5}' from JobConfig returning ID";

#[test]
fn a_killed_daemon_finds_its_embedded_server_and_its_rows_again() {
    let folder = state_folder();
    let mut daemon = embedded_daemon(folder.path());
    daemon.wait_line("rosterd is ready");
    psql(&daemon, NEW_CONFIG);
    psql(&daemon, NEW_ROW);
    wait_psql(&daemon, "select StatusID from JobHistory", "3");
    psql(&daemon, NEW_ROW);
    daemon.kill();
    drop(daemon);
    let mut daemon = embedded_daemon(folder.path());
    daemon.wait_line("rosterd is ready");
    assert_eq!(psql(&daemon, "select count(*) from JobHistory"), "2");
    wait_psql(&daemon, "select count(*) from JobHistory where StatusID = 3", "2");
    assert!(daemon.stop().success());
}

#[test]
fn an_embedded_server_that_is_killed_is_brought_back_and_work_goes_on() {
    let folder = state_folder();
    let mut daemon = embedded_daemon(folder.path());
    daemon.wait_line("rosterd is ready");
    psql(&daemon, NEW_CONFIG);
    psql(&daemon, NEW_ROW);
    let pids = std::fs::read_to_string(folder.path().join("data/postmaster.pid")).unwrap();
    let killed = Command::new("kill").args(["-9", pids.lines().next().unwrap()]).status().unwrap();
    assert!(killed.success());
    daemon.wait_line("it had died and was started again");
    wait_psql(
        &daemon,
        "select StatusID || ' after attempt ' || Attempt from JobHistory",
        "3 after attempt 1",
    );
    psql(&daemon, NEW_ROW);
    wait_psql(&daemon, "select count(*) from JobHistory where StatusID = 3", "2");
    assert!(daemon.stop().success());
}

#[test]
fn a_database_that_is_away_at_the_start_or_later_is_waited_for_and_sigterm_ends_it_all_the_same() {
    let folder = state_folder();
    let server = own_server(folder.path());
    let url = server.url();
    server.stop().unwrap();
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", &url).envs(QUICK_LEASE);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_line("tried again in");
    let server = own_server(folder.path());
    daemon.wait_line("rosterd is ready");
    server.stop().unwrap();
    daemon.wait_line("the database is away");
    let server = own_server(folder.path());
    daemon.wait_line("the database is back");
    server.stop().unwrap();
    let began = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}
