//! What a job does outside or in the database is done by one run of its row at a time, is known to the next run,
//! and stands or falls with the completion where it is in the same database.

use crate::restart::{own_server, state_folder};
use crate::support::proxy::{FROZEN, Mode, Proxy, Upstream};
use crate::support::stamping_api::StampingApi;
use crate::support::{Daemon, QUICK_LEASE, SHORT_GRACE, SOON, TestDb, own_jobs_binary, server};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn quick() -> Vec<(&'static str, &'static str)> {
    QUICK_LEASE.into_iter().chain([SHORT_GRACE]).collect()
}

/// The file jobs write down their effects in.
struct Effects {
    _folder: tempfile::TempDir,
    file: PathBuf,
}

impl Effects {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { file: folder.path().join("effects"), _folder: folder }
    }

    fn payload(&self, more: &str) -> String {
        format!(r#"{{"file": "{}", {more}}}"#, self.file.display())
    }

    fn lines(&self) -> Vec<String> {
        lines(&self.file)
    }

    /// Waits until `true_of` the lines.
    fn wait(&self, what: &str, true_of: impl Fn(&[String]) -> bool) -> Vec<String> {
        let until = Instant::now() + SOON;
        loop {
            let lines = self.lines();
            if true_of(&lines) {
                return lines;
            }
            assert!(Instant::now() < until, "waited for {what}; there is {lines:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_run_that_was_frozen_beyond_its_lease_does_nothing_more_once_another_has_its_row() {
    let mut db = TestDb::new();
    let effects = Effects::new();
    let config = db.config("ActJob", "MaxInstances", "0");
    let frozen = Daemon::start_with(&db, &quick());
    let id = db.insert(&config, &effects.payload(r#""seconds": 3"#));
    effects.wait("the first effects", |lines| lines.len() > 5);
    let first = db.column(&id, "ThreadID");
    frozen.signal("STOP");
    let _other = Daemon::start_with(&db, &quick());
    effects.wait("effects of another runner", |lines| lines.last().is_some_and(|last| *last != first));
    frozen.signal("CONT");
    frozen.wait_line("the lease of");
    db.wait_status(&id, 3);
    let lines = effects.lines();
    let second = lines.iter().position(|line| *line != first).unwrap();
    // One effect may have been between its question and its writing when the process froze.
    let late = lines[second..].iter().filter(|line| **line == first).count();
    assert!(late <= 1, "{late} effects of the frozen run came after the first of the next");
}

#[test]
fn effects_wait_while_the_database_is_away_beyond_the_lease_and_the_same_run_goes_on() {
    let folder = state_folder();
    let server = own_server(folder.path());
    let url = server.url();
    let effects = Effects::new();
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", &url).envs(QUICK_LEASE);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    let psql = |sql: &str| {
        let bin = server.bin_dir().join("psql");
        let said = Command::new(bin).args(["-XAtq", "-d", &url, "-c", sql]).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    };
    let payload = effects.payload(r#""seconds": 4"#);
    psql(&format!(
        "insert into Organization (Code) values ('ACME');
         insert into JobConfig (JobID, OrganizationID) select j.ID, o.ID from Job j, Organization o where Struct = 'ActJob';
         insert into JobHistory (ConfigID, StatusID, Payload) select ID, 1, '{payload}' from JobConfig"
    ));
    effects.wait("the first effects", |lines| lines.len() > 5);
    let bin = server.bin_dir().to_owned();
    server.stop().unwrap();
    daemon.wait_line("the database is away");
    // The lease is 1.5 s: within it effects go on, after it they wait.
    let lapsed = effects.wait("the effects to wait", {
        let (seen, since) = (std::cell::Cell::new(0), std::cell::Cell::new(Instant::now()));
        move |lines| {
            if lines.len() != seen.get() {
                seen.set(lines.len());
                since.set(Instant::now());
            }
            since.get().elapsed() > Duration::from_secs(1)
        }
    });
    let server = own_server(folder.path());
    daemon.wait_line("the database is back");
    effects.wait("the run to go on", |lines| lines.len() > lapsed.len() + 5);
    let until = Instant::now() + SOON;
    let row = loop {
        let said = Command::new(bin.join("psql"))
            .args(["-XAtq", "-d", &url, "-c", "select StatusID, Attempt, Crashes from JobHistory"])
            .output()
            .unwrap();
        let row = String::from_utf8(said.stdout).unwrap().trim().to_owned();
        if row.starts_with('3') || Instant::now() > until {
            break row;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(row, "3|1|0");
    let runners = effects.lines().into_iter().collect::<std::collections::HashSet<_>>();
    assert_eq!(runners.len(), 1, "one run did it all");
    drop(daemon);
    drop(server);
}

#[test]
fn a_step_whose_run_died_in_it_is_unknown_to_the_next_and_has_the_same_key() {
    let mut db = TestDb::new();
    let effects = Effects::new();
    let config = db.config("StepJob", "", "");
    let mut first = Daemon::start_with(&db, &quick());
    let id = db.insert(&config, &effects.payload(r#""mishap": "hang""#));
    effects.wait("the step", |lines| lines.len() == 1);
    first.kill();
    let _second = Daemon::start_with(&db, &quick());
    db.wait_status(&id, 3);
    let key = format!("{id}/0/create ticket");
    assert_eq!(effects.lines(), [format!("create {key}"), format!("unknown {key}")]);
    assert_eq!(db.rows("select State, Reference, Attempt from JobEffect").unwrap(), [["done", "T-2", "2"]]);
    db.exec(&format!("delete from JobHistory where ID = '{id}'"));
    assert_eq!(db.text("select count(*) from JobEffect"), "0", "steps go with their row");
}

#[test]
fn a_step_that_was_done_is_not_done_again_by_the_next_attempt_but_anew_in_the_next_iteration() {
    let mut db = TestDb::new();
    let effects = Effects::new();
    let config =
        db.config("StepJob", "MaxAttempts, RetryDelaySeconds, Continuous, WaitInSeconds", "2, 0, true, 1");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, &effects.payload(r#""mishap": "fail_after""#));
    let lines = effects.wait("two iterations", |lines| lines.len() >= 4);
    let (zero, one) = (format!("{id}/0/create ticket"), format!("{id}/1/create ticket"));
    assert_eq!(
        lines[..4],
        [
            format!("create {zero}"),
            format!("done {zero} T-1"),
            format!("create {one}"),
            format!("done {one} T-1"),
        ]
    );
}

#[test]
fn a_daemon_that_drains_goes_on_draining_under_the_identity_it_gets_after_a_lost_lease() {
    let mut db = TestDb::new();
    let daemon = Daemon::start_with(&db, &quick());
    db.exec("update Runner set Draining = true");
    daemon.wait_line("drains, claims nothing more");
    let before = db.text("select ID from Runner");
    db.exec("delete from Runner");
    db.wait_for(&format!("select Draining from Runner where ID <> '{before}'"), "t", SOON);
}

#[test]
fn of_a_continuous_row_only_the_steps_of_its_last_iterations_stay() {
    let mut db = TestDb::new();
    let effects = Effects::new();
    let config = db.config("StepJob", "Continuous, WaitInSeconds", "true, 1");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, &effects.payload(r#""mishap": "none""#));
    db.wait_for(&format!("select CurrentIteration >= 3 from JobHistory where ID = '{id}'"), "t", SOON);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    assert_eq!(db.text("select min(Iteration) > 0 and count(*) between 1 and 2 from JobEffect"), "t");
}

#[test]
fn a_run_that_lost_its_row_can_begin_no_step() {
    let mut db = TestDb::new();
    let effects = Effects::new();
    let config = db.config("ActJob", "MaxInstances", "0");
    let daemon = Daemon::start_with(&db, &quick());
    let id = db.insert(&config, &effects.payload(r#""seconds": 0.7"#));
    effects.wait("the first effects", |lines| lines.len() > 5);
    let first = db.column(&id, "ThreadID");
    // As another runner would have done that held it for dead.
    db.exec("delete from Runner");
    daemon.wait_line("the lease of");
    db.wait_status(&id, 3);
    let lines = effects.lines();
    let second = lines.iter().position(|line| *line != first).unwrap();
    assert_eq!(lines[second..].iter().filter(|line| **line == first).count(), 0);
    assert_ne!(db.column(&id, "ThreadID"), first);
}

fn ledger(db: &mut TestDb) {
    db.exec("create table public.Ledger (ID uuid not null)");
}

#[test]
fn an_entry_commits_with_the_completion_of_its_row() {
    let mut db = TestDb::new();
    ledger(&mut db);
    let config = db.config("LedgerJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, Payload)
         select '{config}', 1, '{{\"seconds\": 0}}' from generate_series(1, 50)"
    ));
    db.wait_count(&config, 3, 50);
    assert_eq!(
        db.text("select count(*) from Ledger l join JobHistory h on h.ID = l.ID and h.Result = '{\"entered\": true}'"),
        "50"
    );
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
    assert_eq!(
        db.text(&format!("select LastJobStart is not null from JobConfig where ID = '{config}'")),
        "t"
    );
}

#[test]
fn an_entry_of_a_continuous_row_commits_with_the_end_of_its_iteration() {
    let mut db = TestDb::new();
    ledger(&mut db);
    let config = db.config("LedgerJob", "Continuous, WaitInSeconds", "true, 1");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, r#"{"seconds": 0}"#);
    db.wait_for(&format!("select CurrentIteration >= 2 from JobHistory where ID = '{id}'"), "t", SOON);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    assert_eq!(
        db.text(&format!(
            "select CurrentIteration - (select count(*) from Ledger) from JobHistory where ID = '{id}'"
        )),
        "0"
    );
}

#[test]
fn a_cancel_that_commits_before_the_completion_leaves_no_entry() {
    let mut db = TestDb::new();
    ledger(&mut db);
    let config = db.config("LedgerJob", "", "");
    let _daemon = Daemon::start(&db); // its grace is ten seconds: the job completes before it is aborted
    let id = db.insert(&config, r#"{"seconds": 0.5}"#);
    db.wait_status(&id, 2);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    assert_eq!(db.text("select count(*) from Ledger"), "0");
}

#[test]
fn a_run_whose_row_went_to_another_leaves_no_entry_beside_that_ones() {
    let mut db = TestDb::new();
    ledger(&mut db);
    let config = db.config("LedgerJob", "MaxInstances", "0");
    let daemon = Daemon::start_with(&db, &QUICK_LEASE); // the lost run is not aborted before it completes
    let id = db.insert(&config, r#"{"seconds": 1.5}"#);
    db.wait_for(&format!("select Progress from JobHistory where ID = '{id}'"), "entered", SOON);
    db.exec("delete from Runner");
    daemon.wait_line("the lease of");
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Attempt"), "2");
    assert_eq!(db.text("select count(*) from Ledger"), "1");
}

#[test]
fn a_daemon_killed_anywhere_in_its_entries_leaves_each_row_exactly_one() {
    let mut db = TestDb::new();
    ledger(&mut db);
    let config = db.config("LedgerJob", "MaxInstances", "0");
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, Payload)
         select '{config}', 1, '{{\"seconds\": 0.02}}' from generate_series(1, 300)"
    ));
    for killed in [60, 160] {
        let mut daemon = Daemon::start_with(&db, &quick());
        db.wait_for(
            &format!(
                "select count(*) >= {killed} from JobHistory where ConfigID = '{config}' and StatusID = 3"
            ),
            "t",
            SOON,
        );
        daemon.kill();
    }
    let _last = Daemon::start_with(&db, &quick());
    db.wait_count(&config, 3, 300);
    assert_eq!(db.text("select count(*) || ' of ' || count(distinct ID) from Ledger"), "300 of 300");
    assert!(db.text("select max(Crashes) > 0 from JobHistory") == "t", "some rows were caught in the middle");
}

#[test]
fn a_runner_whose_pulse_somebody_else_counts_up_gives_up_its_lease() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let twin = Daemon::start_with(&db, &quick());
    let id = db.insert(&config, r#"{"seconds": 1}"#);
    db.wait_status(&id, 2);
    let first = db.column(&id, "ThreadID");
    // As a machine would that was cloned while the daemon ran: the clone pulses under the same ID.
    db.exec("update Runner set Seq = Seq + 3");
    twin.wait_line("the lease of");
    db.wait_for(&format!("select count(*) from Runner where ID <> '{first}'"), "1", SOON);
    // Nobody pulses for the old row now, so that what was claimed under it is rescued.
    db.wait_status(&id, 3);
    assert_ne!(db.column(&id, "ThreadID"), first);
    db.wait_for("select count(*) from Runner", "1", SOON);
}

#[test]
fn a_call_in_flight_ends_with_the_lease_of_a_runner_that_is_cut_off_before_another_takes_its_slot() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let config = db.config("HttpJob", "MaxInstances", "0");
    db.exec(&format!(
        r#"insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
           select 'HTTP', OrganizationID, 'http://{}', '{{"Concurrency": 1}}' from JobConfig where ID = '{config}';
           update JobConfig set DataInSourceConfigID = (select ID from SourceConfig) where ID = '{config}'"#,
        api.address,
    ));
    let env = [
        ("ROSTERD__ENGINE__LEASE_SECONDS", "3"),
        ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.3"),
        ("ROSTERD__ENGINE__WORKERS", "1"),
        ("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8"),
    ];
    let proxy = Proxy::start(Upstream::Unix(server().socket_dir().join(".s.PGSQL.5432")));
    let mut command = Command::new(own_jobs_binary());
    let url = format!(
        "postgres://{}@127.0.0.1:{}/{}?sslmode=disable",
        db.options.get_username(),
        proxy.port(),
        db.name
    );
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url).envs(env);
    let cut_off = Daemon::spawn(command);
    cut_off.wait_line("rosterd is ready");
    // With every other setting as it ships, the call would go on for 17 s after others took its slot.
    let first = db.insert(&config, r#"{"path": "/lease?millis=20000&hears=1"}"#);
    let wait_calls = |count: usize| {
        let until = Instant::now() + SOON;
        while api.arrivals("lease").len() < count {
            assert!(Instant::now() < until, "{} of {count} calls came", api.arrivals("lease").len());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_calls(1);
    let _other = Daemon::start_with(&db, &env);
    let second = db.insert(&config, r#"{"path": "/lease?millis=500&hears=1"}"#);
    db.wait_status(&second, 2);
    proxy.set(FROZEN);
    wait_calls(2);
    db.wait_status(&second, 3);
    // The row of the first is taken over, and its call made anew by the other.
    wait_calls(3);
    proxy.set(Mode::Pass);
    cut_off.wait_line("the lease of");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{first}'"));
    db.wait_status(&first, 5);
    let arrivals = api.arrivals("lease");
    let took = arrivals[1].at.saturating_sub(arrivals[0].at);
    assert!(
        took < Duration::from_secs(20),
        "it was taken over while the first call would have gone on: {took:?}"
    );
    assert!(arrivals.iter().all(|arrival| arrival.in_flight == 1), "{arrivals:?}");
}

#[test]
fn a_run_whose_call_was_ended_with_the_lease_begins_again_without_a_count_if_nobody_took_its_row() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let config = db.config("HttpJob", "MaxAttempts", "1");
    db.exec(&format!(
        "insert into SourceConfig (Source, OrganizationID, Address)
         select 'HTTP', OrganizationID, 'http://{}' from JobConfig where ID = '{config}';
         update JobConfig set DataInSourceConfigID = (select ID from SourceConfig) where ID = '{config}'",
        api.address,
    ));
    let proxy = Proxy::start(Upstream::Unix(server().socket_dir().join(".s.PGSQL.5432")));
    let mut command = Command::new(own_jobs_binary());
    let url = format!(
        "postgres://{}@127.0.0.1:{}/{}?sslmode=disable",
        db.options.get_username(),
        proxy.port(),
        db.name
    );
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url).envs(QUICK_LEASE);
    command.env("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8");
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    let id = db.insert(&config, r#"{"path": "/again?millis=4000&hears=1"}"#);
    let until = Instant::now() + SOON;
    while api.arrivals("again").is_empty() {
        assert!(Instant::now() < until, "no call came");
        std::thread::sleep(Duration::from_millis(5));
    }
    proxy.set(FROZEN);
    let until = Instant::now() + SOON;
    while api.in_flight("again") > 0 {
        assert!(Instant::now() < until, "the call goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    proxy.set(Mode::Pass);
    db.wait_status(&id, 3);
    let row = ["Attempt", "Crashes", "Interruptions"].map(|column| db.column(&id, column));
    assert_eq!(row, ["1", "0", "1"]);
    assert_eq!(api.arrivals("again").len(), 2);
}

#[test]
fn a_statement_in_flight_on_a_source_ends_with_the_lease_too() {
    let mut db = TestDb::new();
    let config = db.config("SqlJob", "", "");
    db.exec(&format!(
        r#"insert into SourceConfig (Source, OrganizationID, Address, Port, AuthInfo)
           select 'PostgreSQL', OrganizationID, '{}', {}, '{{"Username": "{}", "Database": "{}", "Concurrency": 1}}'
           from JobConfig where ID = '{config}';
           update JobConfig set DataInSourceConfigID = (select ID from SourceConfig) where ID = '{config}'"#,
        server().socket_dir().display(),
        db.options.get_port(),
        db.options.get_username(),
        db.name,
    ));
    let proxy = Proxy::start(Upstream::Unix(server().socket_dir().join(".s.PGSQL.5432")));
    let mut command = Command::new(own_jobs_binary());
    let url = format!(
        "postgres://{}@127.0.0.1:{}/{}?sslmode=disable",
        db.options.get_username(),
        proxy.port(),
        db.name
    );
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url).envs(QUICK_LEASE);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    let id = db.insert(&config, r#"{"statement": "select pg_sleep(600)"}"#);
    let sleeping =
        "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
                    and application_name = 'rosterd SqlJob'";
    db.wait_for(sleeping, "1", SOON);
    proxy.set(FROZEN);
    db.wait_for(sleeping, "0", SOON);
    assert_eq!(db.status(&id), "2");
    proxy.set(Mode::Pass);
    // The same run did not fail: it begins again.
    db.wait_for(sleeping, "1", SOON);
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    db.wait_status(&id, 5);
    assert_eq!((db.column(&id, "Attempt"), db.column(&id, "Crashes")), ("1".to_owned(), "0".to_owned()));
}
