//! `rosterd migrate --roles`: laid down again and again, and a daemon that is no more than a runner.

use crate::support::stamping_api::StampingApi;
use crate::support::{
    Daemon, FROM_THE_START, Login, QUICK_LEASE, SHORT_GRACE, SOON, TestDb, binary, config_of,
    own_jobs_binary, with_roles,
};
use rosterd::postgres::connect::Speaker;
use rosterd::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
use sqlx::{Connection, PgConnection, Row};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

const CLAIM: &str = include_str!("../../src/history/claim.sql");
const TICK: &str = include_str!("../../src/history/tick.sql");
const RESCUE: &str = include_str!("../../src/history/rescue.sql");

fn rosterd(url: &str, args: &[&str]) -> Output {
    Command::new(binary()).args(args).env("DATABASE_URL", url).output().unwrap()
}

/// The finding of one check of `rosterd doctor`, behind its level.
fn doctor(db: &TestDb, check: &str) -> String {
    let said = rosterd(&db.url(), &["doctor", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let found = said["checks"].as_array().unwrap().iter().find(|c| c["name"] == check).unwrap();
    format!("{} {}", found["level"].as_str().unwrap(), found["finding"].as_str().unwrap())
}

/// A daemon with this login, ready to claim.
fn daemon(login: &Login, env: &[(&str, &str)]) -> Daemon {
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", login.url()).envs(env.iter().copied());
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    daemon
}

#[test]
fn the_roles_are_laid_down_as_often_as_one_likes_and_doctor_sees_what_came_later() {
    let mut db = TestDb::new();
    assert!(doctor(&db, "roles").starts_with("ok none"));
    let grants = "select md5(string_agg(relname || relacl::text, '' order by relname)) from pg_class where relnamespace = 'vm'::regnamespace";
    let mut seen = Vec::new();
    for _ in 0..2 {
        let done = rosterd(&db.url(), &["migrate", "--roles"]);
        assert!(String::from_utf8_lossy(&done.stdout).contains("rosterd_viewer are laid down"), "{done:?}");
        assert!(doctor(&db, "roles").starts_with("ok every table"));
        seen.push(db.text(grants));
    }
    assert_eq!(seen[0], seen[1]);

    let view = db.text("select pg_get_viewdef('vm.JobHistoryWaiting'::regclass)");
    db.exec(&format!(
        "create table vm.Later (ID int primary key);
         create or replace view vm.JobHistoryWaiting as {view};
         create or replace function vm.is_runner() returns boolean language sql stable
           return current_setting('rosterd.actor', true) = 'runner';
         create function vm.later() returns trigger language plpgsql as 'begin return null; end'"
    ));
    let said = doctor(&db, "roles");
    for lapse in [
        "warn ",
        "table later has no row-level security",
        "later does not belong to rosterd_owner",
        "view jobhistorywaiting shows what its owner sees",
        "function is_runner believes a setting alone",
        "function later can be called by everybody",
        "function later searches temporary tables first",
    ] {
        assert!(said.contains(lapse), "{lapse}: {said}");
    }
}

#[test]
fn a_migration_lays_the_roles_down_again_where_they_were() {
    let mut db = with_roles();
    // As if a migration that makes a function anew had still to come.
    db.exec(
        "delete from vm._sqlx_migrations where version = 20261122001900;
         create or replace function vm.say_left_alone() returns trigger language plpgsql as 'begin return null; end'",
    );
    assert!(doctor(&db, "roles").contains("say_left_alone searches temporary tables first"));
    let done = rosterd(&db.url(), &["migrate"]);
    assert!(String::from_utf8_lossy(&done.stdout).contains("applied: bear a clock put back"), "{done:?}");
    assert!(doctor(&db, "roles").starts_with("ok"));
}

#[test]
fn a_daemon_of_rosterd_runner_does_all_its_work() {
    let mut db = with_roles();
    let runner = Login::new(&mut db, "rosterd_runner", &[]);
    let mut operator = Login::new(&mut db, "rosterd_operator", &["A"]);
    let started = config_of(&mut db, "A", "NoopJob", ", AutoStart", ", true");
    let allowed = [("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8")];
    let quick: Vec<_> = QUICK_LEASE.into_iter().chain([SHORT_GRACE]).chain(allowed).collect();
    let mut first = daemon(&runner, &quick);

    // AutoStart, a schedule, an operator's row with its log lines, a row that goes on.
    db.wait_count(&started, 3, 1);
    operator.exec(&format!(
        "insert into JobSchedule (ConfigID, Cron, TimeZone) values ('{started}', '* * * * * *', 'UTC')"
    ));
    db.wait_for("select count(*) > 0 from JobHistory where Origin = 'schedule' and StatusID = 3", "t", SOON);
    operator.exec("update JobSchedule set Active = false");
    let sleep = config_of(&mut db, "A", "SleepJob", ", MaxInstances, Continuous", ", 3, false");
    let row = |operator: &mut Login, config: &str, payload: &str| {
        operator.text(&format!(
            "insert into JobHistory (ConfigID, StatusID, Payload) values ('{config}', 1, '{payload}') returning ID"
        ))
    };
    let said = row(&mut operator, &sleep, r#"{"seconds": 0.01}"#);
    db.wait_status(&said, 3);
    db.wait_for(&format!("select count(*) > 0 from Logs where JobHistoryID = '{said}'"), "t", SOON);
    assert_ne!(operator.text(&format!("select count(*) from Logs where JobHistoryID = '{said}'")), "0");
    assert_ne!(db.text(&format!("select LastJobStart from JobConfig where ID = '{started}'")), "");
    let on = config_of(&mut db, "A", "NoopJob", ", Continuous, WaitInSeconds", ", true, 1");
    let goes_on = row(&mut operator, &on, "{}");
    db.wait_for(&format!("select CurrentIteration >= 2 from JobHistory where ID = '{goes_on}'"), "t", SOON);
    // The trigger moves a waiting row for whoever changes its configuration.
    operator.exec(&format!("update JobConfig set Continuous = false where ID = '{on}'"));
    db.wait_status(&goes_on, 3);

    // Cancelled while it runs; rescued by another runner; put through the limits of a source.
    let cancelled = row(&mut operator, &sleep, r#"{"seconds": 600}"#);
    db.wait_status(&cancelled, 2);
    operator.exec(&format!("update JobHistory set StatusID = -1 where ID = '{cancelled}'"));
    db.wait_status(&cancelled, 5);
    assert_eq!(db.column(&cancelled, "CancelBy"), operator.name);
    let orphan = row(&mut operator, &sleep, r#"{"seconds": 2}"#);
    db.wait_status(&orphan, 2);
    first.kill();
    let second = daemon(&runner, &quick);
    db.wait_status(&orphan, 3);
    assert_eq!(db.column(&orphan, "Crashes"), "1");
    let api = StampingApi::start().unwrap();
    operator.exec(&format!(
        r#"insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
           select 'HTTP', ID, 'http://{}', '{{"Delay": 1000000, "Concurrency": 2}}' from Organization"#,
        api.address
    ));
    let http = operator.text(
        "insert into JobConfig (JobID, OrganizationID, DataInSourceConfigID)
         select j.ID, s.OrganizationID, s.ID from Job j, SourceConfig s where j.Struct = 'HttpJob' returning ID",
    );
    let called = row(&mut operator, &http, r#"{"path": "/"}"#);
    db.wait_status(&called, 3);
    assert_eq!(db.text("select count(*) from SourceGate"), "1", "it asked the limits");
    let output = second.output();
    for trouble in ["permission denied", "row-level security", "42501"] {
        assert!(!output.contains(trouble), "{output}");
    }
}

#[test]
fn a_daemon_of_rosterd_runner_runs_a_suspect_alone() {
    let mut db = with_roles();
    let runner = Login::new(&mut db, "rosterd_runner", &[]);
    let config = config_of(&mut db, "A", "SleepJob", "", "");
    let mut session = db.session(Speaker::Runner);
    session.exec("begin");
    let id = session.exec(&format!(
        r#"insert into JobHistory (ConfigID, StatusID, Payload) values ('{config}', 1, '{{"seconds": 0.01}}') returning ID"#
    ));
    session.exec(&format!("update JobHistory set Crashes = 2 where ID = '{id}'; commit"));
    let daemon = daemon(&runner, &[]);
    db.wait_status(&id, 3);
    assert!(!daemon.output().contains("permission denied"), "{}", daemon.output());
}

#[test]
fn a_runner_whose_schema_is_too_old_says_who_migrates_it() {
    let mut db = with_roles();
    let runner = Login::new(&mut db, "rosterd_runner", &[]);
    db.exec("delete from vm._sqlx_migrations where version = (select max(version) from vm._sqlx_migrations)");
    let said = rosterd(runner.url(), &["migrate"]);
    assert_eq!(said.status.code(), Some(69));
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("run `rosterd migrate` as a member of rosterd_owner"), "{said}");
}

/// A server without any role of ours: roles belong to the whole server, and from PostgreSQL 16 on CREATEROLE opens only
/// those that its holder made, or was given ADMIN on.
struct FreshServer {
    server: EmbeddedPostgres,
    runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl FreshServer {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("rosterd-test-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut options = EmbeddedOptions::new(folder.path().join("state"));
        options.durability = Durability::ThrowAway;
        options.bin_dir = std::env::var_os("ROSTERD_TEST_BIN_DIR").map(std::path::PathBuf::from);
        let server = EmbeddedPostgres::start(&options).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { server, runtime, _folder: folder }
    }

    /// The first value, as this login on the database of its name; "" is the superuser on rosterd's.
    fn text(&self, login: &str, sql: &str) -> String {
        let mut options = self.server.connect_options();
        if !login.is_empty() {
            options = options.username(login).password(Login::PASSWORD).database("app");
        }
        self.runtime
            .block_on(async {
                let mut db = PgConnection::connect_with(&options).await?;
                let row = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).fetch_optional(&mut db).await?;
                let text = row.and_then(|row| row.try_get_raw(0).unwrap().as_str().ok().map(str::to_owned));
                db.close().await?;
                Ok::<_, sqlx::Error>(text.unwrap_or_default())
            })
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// A login with CREATEROLE, and a database of its own.
    fn owner(&self, name: &str) -> String {
        self.text("", &format!("create role {name} login createrole password '{}'", Login::PASSWORD));
        self.text("", &format!("create database {name} owner {name}"));
        self.url(name, name)
    }

    fn url(&self, database: &str, login: &str) -> String {
        let superuser = self.server.connect_options().get_username().to_owned();
        let url = self.server.url().replacen("postgres:///rosterd?", &format!("postgres:///{database}?"), 1);
        url.replace(&format!("user={superuser}&"), &format!("user={login}&password={}&", Login::PASSWORD))
    }
}

#[test]
fn an_owner_without_superuser_lays_the_roles_down_runs_the_daemon_and_makes_logins() {
    let fresh = FreshServer::start();
    let url = fresh.owner("app");
    for args in [&["migrate"][..], &["migrate", "--roles"], &["migrate", "--roles"]] {
        let done = rosterd(&url, args);
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    for (login, role) in [("host1", "rosterd_runner"), ("alice", "rosterd_operator")] {
        fresh
            .text("app", &format!("create role {login} login password '{}' in role {role}", Login::PASSWORD));
    }
    fresh.text(
        "app",
        "insert into vm.Organization (Code) values ('A');
         insert into vm.OrganizationMember (Login) values ('alice');
         insert into vm.Job (Struct) values ('NoopJob');
         insert into vm.JobConfig (JobID, OrganizationID) select j.ID, o.ID from vm.Job j, vm.Organization o;
         insert into vm.SourceConfig (Source, OrganizationID, AuthInfo)
           select 'JIRA', ID, '{\"Delay\": 1500000000}' from vm.Organization",
    );
    let alice = fresh.url("app", "alice");
    for daemons in ["app", "host1"] {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", fresh.url("app", daemons));
        let daemon = Daemon::spawn(command);
        daemon.wait_line("rosterd is ready");
        let done = rosterd(&alice, &["enqueue", "NoopJob", "--wait"]);
        assert!(done.status.success(), "{daemons}: {done:?}");
    }
    let limits = rosterd(&alice, &["source", "limits"]);
    assert!(String::from_utf8_lossy(&limits.stdout).contains("1.5s (1500000000 ns)"), "{limits:?}");
    let doctor = rosterd(&url, &["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    roles"), "{doctor:?}");

    // The owner of another database, to whom the roles belong that somebody else made.
    let url = fresh.owner("other");
    let done = rosterd(&url, &["migrate"]);
    assert!(done.status.success(), "{done:?}");
    if fresh.text("", "select (current_setting('server_version_num')::int >= 160000)::text") == "true" {
        let done = rosterd(&url, &["migrate", "--roles"]);
        assert_eq!(done.status.code(), Some(69), "{done:?}");
        let said = String::from_utf8_lossy(&done.stderr);
        let grant =
            "grant rosterd_owner, rosterd_runner, rosterd_operator, rosterd_viewer to ... with admin true";
        assert!(said.contains("this login may not do that") && said.contains(grant), "{said}");
        fresh.text("", &format!("{}, inherit true, set false", grant.replace("...", "other")));
    }
    for _ in 0..2 {
        let done = rosterd(&url, &["migrate", "--roles"]);
        assert!(done.status.success(), "{done:?}");
    }
}

#[test]
fn row_level_security_takes_no_index_from_the_engine() {
    let mut db = with_roles();
    let config = config_of(&mut db, "A", "NoopJob", ", MaxInstances", ", 0");
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 2000)"
    ));
    db.exec("analyze");
    let plan = |mut login: Login, statement: &str, arguments: &str| {
        login.exec(&format!(
            "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set plan_cache_mode = force_generic_plan; prepare s as {statement}"
        ));
        let lines = login.rows(&format!("explain (costs off) execute s {arguments}")).unwrap().concat();
        lines.join("\n")
    };
    let claim = format!("(vm.new_id(), '{{}}', 10, '{{}}', 2, {FROM_THE_START})");
    for (statement, arguments) in [(CLAIM, claim.as_str()), (TICK, "('{1}', 2)"), (RESCUE, "")] {
        let as_runner = plan(Login::new(&mut db, "rosterd_runner", &[]), statement, arguments);
        let as_owner = plan(Login::new(&mut db, "rosterd_owner", &[]), statement, arguments);
        assert_eq!(as_runner, as_owner);
        assert!(as_owner.contains("jobhistory_"), "{as_owner}");
    }
}
