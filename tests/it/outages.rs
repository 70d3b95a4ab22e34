//! The database goes away in every way it can. Work goes on when it is back: no attempt is burned, no row is lost, no
//! connection is inherited in a bad state, and nothing waits longer than it must.

use crate::restart::state_folder;
use crate::support::proxy::{FROZEN, Mode, Proxy, Upstream};
use crate::support::{Daemon, QUICK_LEASE, SHORT_GRACE, SOON, TestDb, own_jobs_binary, server};
use rosterd::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

/// A partition is to be noticed within this time.
const NOTICED: Duration = Duration::from_secs(4);
/// A claim is to follow within this time after the database is back; half a second more for a busy machine.
const CLAIMED: Duration = Duration::from_millis(2500);
const SHORT_ANSWER: (&str, &str) = ("ROSTERD__DATABASE__ANSWER_TIMEOUT_SECONDS", "1.5");
const TWO_CONNECTIONS: (&str, &str) = ("ROSTERD__DATABASE__MAX_CONNECTIONS", "2");
const AWAY: &str = "the database is away";
const BACK: &str = "the database is back";

fn upstream() -> Upstream {
    Upstream::Unix(server().socket_dir().join(".s.PGSQL.5432"))
}

/// Through a proxy at this address.
fn url(db: &TestDb, host: &str, port: u16) -> String {
    format!("postgres://{}@{host}:{port}/{}?sslmode=disable", db.options.get_username(), db.name)
}

/// A daemon that reaches this database only through this proxy.
fn behind(proxy: &Proxy, db: &TestDb, env: &[(&str, &str)]) -> Daemon {
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url(db, "127.0.0.1", proxy.port()));
    command.envs(env.iter().copied());
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    daemon
}

fn count_lines(daemon: &Daemon, text: &str) -> usize {
    daemon.output().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_link_that_froze_in_silence_is_noticed_within_four_seconds_and_work_goes_on_within_two_of_its_thaw() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let sleep = db.config("SleepJob", "", "");
    let proxy = Proxy::start(upstream());
    let daemon = behind(&proxy, &db, &[]);
    let id = db.insert(&sleep, r#"{"seconds": 8}"#);
    db.wait_status(&id, 2);
    let frozen = Instant::now();
    proxy.set(FROZEN);
    let waiting = db.insert(&config, "{}");
    daemon.wait_line_within(AWAY, SOON);
    assert!(frozen.elapsed() < NOTICED + Duration::from_millis(500), "{:?}", frozen.elapsed());
    // What it asked on connections made while frozen must not hold it up after the thaw.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(db.status(&waiting), "1");
    proxy.set(Mode::Pass);
    let thawed = Instant::now();
    db.wait_status(&waiting, 3);
    assert!(thawed.elapsed() < CLAIMED, "{:?}", thawed.elapsed());
    daemon.wait_line(BACK);
    db.wait_status(&id, 3);
    assert_eq!((db.column(&id, "Attempt"), db.column(&id, "Crashes")), ("1".to_owned(), "0".to_owned()));
}

#[test]
fn a_link_frozen_in_one_direction_only_is_noticed_as_well() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let proxy = Proxy::start(upstream());
    let daemon = behind(&proxy, &db, &[SHORT_ANSWER]);
    for (nth, (to_server, to_client)) in [(false, true), (true, false)].into_iter().enumerate() {
        proxy.set(Mode::Freeze { to_server, to_client });
        let id = db.insert(&config, "{}");
        let until = Instant::now() + NOTICED;
        while count_lines(&daemon, AWAY) <= nth {
            assert!(Instant::now() < until, "not noticed: {to_server} {to_client}");
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy.set(Mode::Pass);
        db.wait_status(&id, 3);
        // A claim whose answer froze was carried out; its row is given back and no attempt is counted.
        assert_eq!(db.column(&id, "Attempt"), "1");
    }
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
}

#[test]
fn jobs_whose_statements_froze_keep_their_attempt_and_all_their_connections_come_back() {
    let mut db = TestDb::new();
    db.exec("create table Mark (At timestamptz default clock_timestamp())");
    let config = db.config("QueryJob", "MaxInstances", "0");
    let proxy = Proxy::start(upstream());
    let daemon = behind(&proxy, &db, &[SHORT_ANSWER, TWO_CONNECTIONS]);
    // No statement is answered until two were cut off.
    let mut gate = db.session(rosterd::postgres::connect::Speaker::Operator);
    gate.exec("select pg_advisory_lock(1)");
    let payload = r#"{"statement": "select pg_advisory_xact_lock_shared(1); insert into Mark default values",
        "transaction": true}"#;
    for _ in 0..4 {
        db.insert(&config, payload);
    }
    db.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and query like '%pg_advisory_xact%'
           and application_name = 'rosterd jobs' and wait_event_type = 'Lock'",
        "2",
        SOON,
    );
    proxy.set(FROZEN);
    daemon.wait_line(AWAY);
    proxy.set(Mode::Pass);
    db.wait_for("select sum(Interruptions) >= 2 from JobHistory", "t", SOON);
    gate.exec("select pg_advisory_unlock(1)");
    db.wait_count(&config, 3, 4);
    assert_eq!(db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"), "4");
    // Both places still lend, at once: the statements of two jobs overlap.
    let pair = r#"{"statement": "select pg_sleep(1)"}"#;
    let ids = [db.insert(&config, pair), db.insert(&config, pair)];
    db.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(1)'
           and application_name = 'rosterd jobs' and state = 'active'",
        "2",
        SOON,
    );
    for id in &ids {
        db.wait_status(id, 3);
    }
}

#[test]
fn an_attempt_that_the_database_interrupts_again_and_again_is_not_given_back_for_ever() {
    let mut db = TestDb::new();
    // As a statement would that brings its session down.
    let kill = r#"{"statement": "select pg_terminate_backend(pg_backend_pid())"}"#;
    let config = db.config("QueryJob", "MaxAttempts, RetryDelaySeconds, Continuous", "1, 0, false");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, kill);
    db.wait_for(
        &format!("select Interruptions >= 1 and StatusID in (1, 2) from JobHistory where ID = '{id}'"),
        "t",
        SOON,
    );
    assert!(db.column(&id, "Error").contains("rosterd's own database was away"));
    db.wait_for(&format!("select Interruptions >= 2 from JobHistory where ID = '{id}'"), "t", SOON);
    // Instead of waiting a second for each of the others.
    db.session(rosterd::postgres::connect::Speaker::Runner)
        .exec(&format!("update JobHistory set Interruptions = 10 where ID = '{id}' and StatusID = 1"));
    db.wait_status(&id, 4);
    assert_eq!((db.column(&id, "Attempt"), db.column(&id, "Interruptions")), ("1".into(), "10".into()));
    assert!(db.column(&id, "Error").contains("rosterd's own database was away"));
    let born = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, Interruptions) values ('{config}', 1, -99) returning Interruptions"
    ));
    assert_eq!(born, "0", "an operator has no say in it");
}

#[test]
fn a_locked_table_is_neither_an_outage_nor_a_reason_to_connect_anew() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let limited = db.config("NoopJob", "MaxInstances", "1");
    let proxy = Proxy::start(upstream());
    let daemon = behind(&proxy, &db, &[SHORT_ANSWER, ("ROSTERD__LOG__LEVEL", "debug")]);
    for config in [&config, &limited] {
        let id = db.insert(config, "{}");
        db.wait_status(&id, 3);
    }
    let before = proxy.accepted();
    let mut operator = db.session(rosterd::postgres::connect::Speaker::Operator);
    operator.exec("begin; lock table vm.JobHistory");
    // Each refusal is one wait of the engine that ended before its deadline.
    let until = Instant::now() + SOON;
    while count_lines(&daemon, "lock timeout") < 3 {
        assert!(Instant::now() < until, "no loop ran into the lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    operator.exec("rollback");
    for config in [&config, &limited] {
        let id = db.insert(config, "{}");
        db.wait_status(&id, 3);
    }
    assert_eq!(count_lines(&daemon, AWAY), 0);
    assert_eq!(proxy.accepted(), before, "no connection was made anew");
}

#[test]
fn a_listener_on_a_half_open_socket_costs_a_poll_and_comes_back_by_itself() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let sleep = db.config("SleepJob", "MaxInstances", "0");
    let proxy = Proxy::start(upstream());
    let _daemon = behind(&proxy, &db, &[SHORT_ANSWER, ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "1")]);
    let listeners = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'rosterd listen'";
    db.wait_for(listeners, "1", SOON);
    let running = db.insert(&sleep, "{}");
    db.wait_status(&running, 2);
    // Its server process is frozen, so its socket stands and says nothing, while every other goes on.
    let pid = db.text(&listeners.replace("count(*)", "pid"));
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let began = Instant::now();
    let id = db.insert(&config, "{}");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{running}'"));
    db.wait_status(&id, 3);
    db.wait_status(&running, 5);
    let took = began.elapsed();
    db.wait_for(listeners, "2", SOON); // the frozen one, and its successor
    signal("-CONT");
    db.wait_for(listeners, "1", SOON);
    assert!(took < Duration::from_millis(2500), "{took:?}");
    proxy.reset_all();
    db.wait_for(listeners, "1", SOON);
}

#[test]
fn storms_of_resets_burn_no_attempt_and_lose_no_row() {
    let mut db = TestDb::new();
    db.exec("create table Mark (ID uuid)");
    let noop = db.config("NoopJob", "MaxInstances", "3");
    let query =
        db.config("QueryJob", "MaxInstances, Payload", r#"0, '{"statement": "select 1", "times": 20}'"#);
    let proxy = Proxy::start(upstream());
    let _daemon = behind(&proxy, &db, &[]);
    let mut resets = 0;
    for _ in 0..20 {
        for config in [&noop, &query] {
            db.exec(&format!(
                "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 5)"
            ));
        }
        resets += proxy.reset_all();
        std::thread::sleep(Duration::from_millis(50)); // anywhere in the work that goes on
    }
    // A busy machine connects anew more slowly.
    while resets <= 40 {
        resets += proxy.reset_all();
        std::thread::sleep(Duration::from_millis(50));
    }
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "200", SOON);
    assert_eq!(db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"), "200");
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
}

#[test]
fn a_statement_whose_answer_was_cut_is_neither_lost_nor_doubled() {
    let mut db = TestDb::new();
    let free = db.config("NoopJob", "MaxInstances", "0");
    let limited = db.config("NoopJob", "MaxInstances", "1");
    let proxy = Proxy::start(upstream());
    let _daemon = behind(&proxy, &db, &[SHORT_ANSWER]);
    // A claim that commits by itself, one in a transaction, and the writing of an outcome.
    let statements = [
        (&free, "insert into Claim"),
        (&limited, "commit"),
        (&free, "-- In progress -> what became of it"),
        (&limited, "-- In progress -> what became of it"),
    ];
    for (nth, (config, statement)) in statements.into_iter().enumerate() {
        proxy.cut_after(statement);
        let id = db.insert(config, "{}");
        db.wait_status(&id, 3);
        // The row is settled when the server has committed, and the answer is cut a moment later.
        let until = Instant::now() + SOON;
        while proxy.cuts() <= nth {
            assert!(Instant::now() < until, "{statement} was not cut");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!((proxy.cuts(), db.column(&id, "Attempt")), (nth + 1, "1".to_owned()), "{statement}");
        assert_eq!(db.column(&id, "Crashes"), "0");
    }
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
}

#[test]
fn sigterm_on_a_frozen_link_is_honoured_within_the_grace_and_a_few_seconds() {
    let mut db = TestDb::new();
    let stubborn = db.config("StubbornJob", "", "");
    let query = db.config("QueryJob", "", "");
    let proxy = Proxy::start(upstream());
    let env = [SHORT_GRACE, SHORT_ANSWER, ("ROSTERD__ENGINE__DRAIN_SECONDS", "0")];
    for noticed in [false, true] {
        let mut daemon = behind(&proxy, &db, &env);
        let ids = [db.insert(&stubborn, "{}"), db.insert(&query, r#"{"statement": "select pg_sleep(25)"}"#)];
        for id in &ids {
            db.wait_status(id, 2);
        }
        proxy.set(FROZEN);
        if noticed {
            daemon.wait_line(AWAY);
        }
        let began = Instant::now();
        assert_eq!(daemon.stop().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        proxy.set(Mode::Pass);
        // Nobody wrote that they stopped; as after a crash the next daemon does.
        db.exec("delete from Runner");
        db.exec("update JobHistory set StatusID = -1 where StatusID in (1, 2)");
    }
}

#[test]
fn a_daemon_that_starts_on_a_frozen_link_waits_for_it_and_then_works() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let proxy = Proxy::start(upstream());
    proxy.set(FROZEN);
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url(&db, "127.0.0.1", proxy.port()));
    command.env("ROSTERD__DATABASE__CONNECT_TIMEOUT_SECONDS", "1");
    let daemon = Daemon::spawn(command);
    daemon.wait_line("tried again in");
    proxy.set(Mode::Pass);
    daemon.wait_line("rosterd is ready");
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
}

#[test]
fn a_daemon_works_behind_a_pooler_that_drops_the_settings_of_a_connection() {
    let mut db = TestDb::new();
    let [free, limited] = ["0", "1"].map(|most| db.config("NoopJob", "MaxInstances", most));
    let proxy = Proxy::start(upstream());
    proxy.drop_options();
    let daemon = behind(&proxy, &db, &[]);
    for config in [free, limited] {
        let id = db.insert(&config, "{}");
        db.wait_status(&id, 3);
    }
    assert!(!daemon.output().contains("the database is away"), "{}", daemon.output());
}

/// A server of our own, which can be stopped and started.
struct Server {
    folder: tempfile::TempDir,
    running: Option<EmbeddedPostgres>,
}

impl Server {
    fn start() -> Self {
        let folder = state_folder();
        let mut server = Self { folder, running: None };
        server.begin();
        server
    }

    fn begin(&mut self) {
        let mut options = EmbeddedOptions::new(self.folder.path().to_owned());
        options.durability = Durability::Durable;
        self.running = Some(EmbeddedPostgres::start(&options).unwrap());
    }

    fn stop(&mut self) {
        self.running.take().unwrap().stop().unwrap();
    }

    fn url(&self) -> String {
        self.running.as_ref().unwrap().url()
    }

    fn ask(&self, sql: &str) -> String {
        let server = self.running.as_ref().unwrap();
        let said = Command::new(server.bin_dir().join("psql"))
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &server.url(), "-c", sql])
            .output()
            .unwrap();
        assert!(said.status.success(), "{sql}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    }

    fn wait_for(&self, sql: &str, wanted: &str) {
        let until = Instant::now() + SOON;
        loop {
            let now = self.ask(sql);
            if now == wanted {
                return;
            }
            assert!(Instant::now() < until, "waited for {wanted:?} from {sql}; it is {now:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn daemon(&self, env: &[(&str, &str)]) -> Daemon {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", self.url());
        command.envs(env.iter().copied());
        let daemon = Daemon::spawn(command);
        daemon.wait_line("rosterd is ready");
        daemon
    }
}

/// One row of this job, with this payload.
fn row_of(job: &str, payload: &str) -> String {
    format!(
        "set search_path = vm, public;
         insert into Organization (Code) values ('ACME') on conflict do nothing;
         insert into JobConfig (JobID, OrganizationID, MaxInstances)
           select j.ID, o.ID, 0 from Job j, Organization o
           where j.Struct = '{job}' and not exists (select from JobConfig c where c.JobID = j.ID);
         insert into JobHistory (ConfigID, StatusID, Payload)
           select c.ID, 1, '{payload}' from JobConfig c join Job j on j.ID = c.JobID where j.Struct = '{job}'"
    )
}

#[test]
fn an_outage_longer_than_the_lease_suspends_jobs_and_the_same_attempts_go_on() {
    let mut server = Server::start();
    let daemons = [server.daemon(&QUICK_LEASE), server.daemon(&QUICK_LEASE)];
    for _ in 0..6 {
        server.ask(&row_of("SleepJob", r#"{"seconds": 7}"#));
    }
    server.ask(&row_of("QueryJob", r#"{"statement": "select pg_sleep(0.2)", "times": 12}"#));
    server.wait_for("select count(*) from vm.JobHistory where StatusID = 2", "7");
    let runners = server.ask("select string_agg(ID::text, ' ' order by ID) from vm.Runner");
    server.stop();
    for daemon in &daemons {
        daemon.wait_line(AWAY);
    }
    std::thread::sleep(Duration::from_secs(4)); // more than twice the lease
    server.begin();
    let back = Instant::now();
    server.ask(&row_of("NoopJob", "{}"));
    server.wait_for(
        "select h.StatusID from vm.JobHistory h join vm.Job j on j.ID = h.JobID where Struct = 'NoopJob'",
        "3",
    );
    assert!(back.elapsed() < CLAIMED, "{:?}", back.elapsed());
    server.wait_for("select count(*) from vm.JobHistory where StatusID = 3", "8");
    assert_eq!(
        server.ask("select count(*) from vm.JobHistory where Attempt = 1 and Crashes = 0"),
        "8",
        "the same attempts went on"
    );
    assert_eq!(server.ask("select string_agg(ID::text, ' ' order by ID) from vm.Runner"), runners);
    for daemon in &daemons {
        assert_eq!(count_lines(daemon, "is dead"), 0, "nobody was reaped");
    }
}

#[test]
fn a_job_whose_database_call_meets_a_restart_keeps_its_attempt() {
    let mut server = Server::start();
    let _daemon = server.daemon(&[]);
    server.ask("create table vm.Mark (N int)");
    server
        .ask(&row_of("QueryJob", r#"{"statement": "select pg_sleep(1.5); insert into vm.Mark values (1)"}"#));
    server.wait_for(
        "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep(1.5)%'",
        "1",
    );
    server.stop();
    server.begin();
    server.wait_for("select StatusID from vm.JobHistory", "3");
    assert_eq!(
        server.ask("select Attempt || ' ' || Crashes || ' ' || Interruptions from vm.JobHistory"),
        "1 0 1"
    );
    assert_eq!(server.ask("select count(*) from vm.Mark"), "1");
}

/// A network of its own for one daemon, with a cable that can be pulled.
struct Island {
    name: String,
    subnet: u8,
}

fn ip(arguments: &str) -> Result<(), String> {
    let done = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()) }
}

impl Island {
    /// `None` where this machine does not let us; the reason is printed.
    fn make() -> Option<Self> {
        let number = std::process::id() % 200;
        let island = Self { name: format!("rosterd{number}"), subnet: u8::try_from(number).unwrap() };
        let Self { name, subnet } = &island;
        let steps = [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name {name}i netns {name}"),
            format!("addr add 10.231.{subnet}.1/24 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add 10.231.{subnet}.2/24 dev {name}i"),
            format!("-n {name} link set {name}i up"),
        ];
        for step in steps {
            if let Err(reason) = ip(&step) {
                eprintln!("SKIPPED, no partition is tested here: `ip {step}`: {reason}");
                return None;
            }
        }
        Some(island)
    }

    fn cable(&self, state: &str) {
        ip(&format!("link set {} {state}", self.name)).unwrap();
    }

    fn address(&self) -> SocketAddr {
        format!("10.231.{}.1:0", self.subnet).parse().unwrap()
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
        let _ = ip(&format!("link del {}", self.name));
    }
}

#[test]
fn a_runner_cut_off_by_its_network_notices_its_rows_run_elsewhere_and_it_comes_back_by_itself() {
    let Some(island) = Island::make() else { return };
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let proxy = Proxy::start_on(island.address(), upstream());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &island.name]).arg(own_jobs_binary()).args(["run", "--listen", "off"]);
    command.env("DATABASE_URL", url(&db, &format!("10.231.{}.1", island.subnet), proxy.port()));
    command.envs(QUICK_LEASE);
    let alone = Daemon::spawn(command);
    alone.wait_line("rosterd is ready");
    let id = db.insert(&config, r#"{"seconds": 3}"#);
    db.wait_status(&id, 2);
    let first = db.column(&id, "ThreadID");
    let other = Daemon::start_with(&db, &QUICK_LEASE);
    let cut = Instant::now();
    island.cable("down");
    alone.wait_line(AWAY);
    assert!(cut.elapsed() < NOTICED, "{:?}", cut.elapsed());
    db.wait_for(
        &format!("select ThreadID <> '{first}' and StatusID = 2 from JobHistory where ID = '{id}'"),
        "t",
        SOON,
    );
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Attempt"), "2");
    island.cable("up");
    let healed = Instant::now();
    db.wait_for("select count(*) from Runner", "2", SOON);
    assert!(healed.elapsed() < CLAIMED + Duration::from_secs(1), "{:?}", healed.elapsed());
    drop(other);
    let again = db.insert(&config, r#"{"seconds": 0}"#);
    db.wait_status(&again, 3);
    // The lease of the one that was killed just now may still count; the row ran where the cable was pulled.
    assert_ne!(db.column(&again, "ThreadID"), "");
}
