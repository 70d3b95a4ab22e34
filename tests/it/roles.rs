//! `rosterd migrate --roles`: an operator, a viewer and a daemon that is nobody special, each as far as their role goes.

use crate::support::{
    Daemon, Login, QUICK_LEASE, SHORT_GRACE, SOON, TestDb, binary, own_jobs_binary, with_roles,
};
use rosterd::postgres::connect::Speaker;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
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

/// An API that says yes to one call.
fn answer_once(api: &TcpListener) {
    let (mut call, _) = api.accept().unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(call.try_clone().unwrap());
    while lines.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    call.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
}

/// A configuration of this job for the organization with this code. Returns JobConfig.ID.
fn config_of(db: &mut TestDb, code: &str, job: &str, columns: &str, values: &str) -> String {
    db.exec(&format!("insert into Job (Struct) values ('{job}') on conflict do nothing"));
    db.text(&format!(
        "insert into JobConfig (JobID, OrganizationID{columns})
         select j.ID, o.ID{values} from Job j, Organization o where j.Struct = '{job}' and o.Code = '{code}' returning ID"
    ))
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
    let second = daemon(&runner, &quick);
    first.kill();
    db.wait_status(&orphan, 3);
    assert_eq!(db.column(&orphan, "Crashes"), "1");
    let api = TcpListener::bind("127.0.0.1:0").unwrap();
    operator.exec(&format!(
        r#"insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
           select 'HTTP', ID, 'http://{}', '{{"Delay": 1000000, "Concurrency": 2}}' from Organization"#,
        api.local_addr().unwrap()
    ));
    let http = operator.text(
        "insert into JobConfig (JobID, OrganizationID, DataInSourceConfigID)
         select j.ID, s.OrganizationID, s.ID from Job j, SourceConfig s where j.Struct = 'HttpJob' returning ID",
    );
    std::thread::spawn(move || answer_once(&api));
    let called = row(&mut operator, &http, r#"{"path": "/"}"#);
    db.wait_status(&called, 3);
    assert_eq!(
        db.text("select count(*) from SourceGate where LastStart is not null"),
        "1",
        "it asked the limits"
    );
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

#[test]
fn the_questions_of_the_faq_are_answered_to_an_operator() {
    let mut db = with_roles();
    let mut operator = Login::new(&mut db, "rosterd_operator", &["A"]);
    config_of(&mut db, "A", "TicketingJob", ", Payload", r#", '{"minimum": 7}'"#);
    config_of(&mut db, "B", "TicketingJob", "", "");
    operator.exec(
        "INSERT INTO VM.JobHistory (JobId, ConfigID, StatusId, Priority, Payload)
         VALUES (
           (select ID from Job where Struct = 'TicketingJob'),
           (select ID from JobConfig where JobID = (select ID from Job where Struct = 'TicketingJob' LIMIT 1) LIMIT 1),
           '1', '0',
           (select Payload from JobConfig where JobID = (select ID from Job where Struct = 'TicketingJob') LIMIT 1))",
    );
    let inserted = operator.changed(
        "INSERT INTO VM.JobHistory (JobId, ConfigID, StatusId, Priority, Payload)
         select JobID, ID, 1, 0, Payload from JobConfig",
    );
    assert_eq!(inserted, 1, "of the own organization");
    let row = operator.text("select ID from JobHistory limit 1");
    let waits = "Set WaitInSeconds = 120 where ID = (select ConfigID from JobHistory where ID";
    assert_eq!(operator.changed(&format!("UPDATE JobConfig {waits} = '{row}')")), 1);
    assert!(
        operator
            .text(&format!("select Reason from JobHistoryWaiting where ID = '{row}'"))
            .contains("no runner")
    );
    assert_eq!(operator.changed(&format!("Update JobHistory set StatusID = -1 where ID = '{row}'")), 1);
    let fresh = operator.text(&format!("select vm.rerun('{row}')"));
    assert_eq!(operator.text(&format!("select Origin from JobHistory where ID = '{fresh}'")), "rerun");

    // How hard an API is hit: read beside AuthInfo, and set without knowing what else is in it.
    operator.exec(
        r#"insert into SourceConfig (Source, OrganizationID, AuthInfo) select 'JIRA', ID, '{"Password": "kept"}' from Organization"#,
    );
    assert!(operator.refusal("select AuthInfo from SourceConfig where Source = 'JIRA'").starts_with("42501"));
    operator.exec("select vm.limit_source(ID, delay => 1000000000, concurrency => 1) from SourceConfig where Source = 'JIRA'");
    operator.exec("select vm.limit_source(ID, concurrency => 2) from SourceConfig where Source = 'JIRA'");
    let limits = operator.rows("select Delay, Concurrency from SourceConfig where Source = 'JIRA'").unwrap();
    assert_eq!(limits, [["1000000000", "2"]]);
    assert_eq!(db.text("select AuthInfo ->> 'Password' from SourceConfig"), "kept");
    let said = operator.refusal("select vm.limit_source(ID, delay => -1) from SourceConfig");
    assert!(said.contains("Delay in AuthInfo is -1"), "{said}");

    let source = db.text(
        "insert into SourceConfig (Source, OrganizationID) select 'HTTP', ID from Organization where Code = 'B' returning ID",
    );
    assert!(
        operator
            .refusal(&format!("select vm.limit_source('{source}', delay => 1)"))
            .contains("there is no row")
    );
    let mut viewer = Login::new(&mut db, "rosterd_viewer", &["A"]);
    assert!(viewer.refusal("select vm.limit_source(ID, delay => 1) from SourceConfig").starts_with("42501"));
}

#[test]
fn an_operator_neither_sees_nor_touches_another_organization() {
    let mut db = with_roles();
    let mut operator = Login::new(&mut db, "rosterd_operator", &["B"]);
    let theirs = config_of(&mut db, "A", "NoopJob", "", "");
    let ours = config_of(&mut db, "B", "NoopJob", "", "");
    let row = db.insert(&theirs, "{}");
    let source = db.text(
        "insert into SourceConfig (Source, OrganizationID) select 'HTTP', ID from Organization where Code = 'A' returning ID",
    );
    assert_eq!(operator.text("select count(*) from JobHistory"), "0");
    assert_eq!(operator.text("select count(*) from JobHistoryWaiting"), "0");
    assert_eq!(operator.text("select string_agg(ID::text, ' ') from ClaimableConfig"), ours);
    assert_eq!(operator.changed("update JobHistory set StatusID = -1"), 0);
    assert_eq!(operator.changed("update JobConfig set Active = false"), 1);
    assert_eq!(db.status(&row), "1");

    let insert = format!("insert into JobHistory (ConfigID, StatusID) values ('{theirs}', 1)");
    assert!(operator.refusal(&insert).contains("does not exist"));
    assert!(operator.refusal(&format!("select vm.rerun('{row}')")).contains("there is no row"));
    // As the child of a row that is not theirs to see.
    let child =
        format!("insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{ours}', 1, '{row}')");
    assert!(operator.refusal(&child).starts_with("42501"));
    // With the credentials of others, by either way.
    let borrowed = format!("insert into JobConfigSource values ('{ours}', 'in', 1, '{source}')");
    assert!(operator.refusal(&borrowed).contains("another organization"));
    let borrowed = format!("update JobConfig set DataInSourceConfigID = '{source}'");
    assert!(operator.refusal(&borrowed).contains("jobconfig_in_source_is_of_the_same_organization"));
    let moved = "update JobConfig set OrganizationID = OrganizationID";
    assert!(operator.refusal(moved).starts_with("42501"));
}

#[test]
fn an_operator_cannot_pose_as_a_runner_or_an_owner() {
    let mut db = with_roles();
    let mut operator = Login::new(&mut db, "rosterd_operator", &["A"]);
    let config = config_of(&mut db, "A", "NoopJob", ", Continuous", ", true");
    let row = db.insert(&config, "{}");
    for role in ["rosterd_runner", "rosterd_owner", "rosterd_viewer", "rosterd"] {
        assert!(operator.refusal(&format!("set role {role}")).starts_with("42501"), "{role}");
    }
    operator.exec("set rosterd.actor = 'runner'");
    for forged in ["set StatusID = 2", "set StatusID = 3"] {
        let said = operator.refusal(&format!("update JobHistory {forged} where ID = '{row}'"));
        assert!(said.contains("by hand"), "{said}");
    }
    let edited = "update JobHistory set ThreadID = vm.new_id(), Attempt = 7";
    assert!(operator.refusal(edited).starts_with("42501"));
    operator
        .exec("insert into JobHistory (ConfigID, StatusID, Origin) select ID, 1, 'schedule' from JobConfig");
    assert_eq!(db.text("select string_agg(distinct Origin, ' ') from JobHistory"), "operator");
    // Nor does it hide a change.
    operator.exec("update JobConfig set WaitInSeconds = 77");
    let told = db.text("select UpdatedBy from JobConfig")
        + " "
        + &db.text("select Login from AuditLog order by ID desc");
    assert_eq!(told, format!("{0} {0}", operator.name));
}

#[test]
fn an_operator_cannot_make_the_owners_functions_work_for_them() {
    let mut db = with_roles();
    let mut operator = Login::new(&mut db, "rosterd_operator", &["B"]);
    let theirs = config_of(&mut db, "A", "NoopJob", "", "");
    let ours = config_of(&mut db, "B", "NoopJob", "", "");
    let row = db.insert(&theirs, "{}");

    operator.exec("create temp table trap (ID uuid, StatusID int)");
    let functions = db
        .rows("select proname from pg_proc where pronamespace = 'vm'::regnamespace and prorettype = 'trigger'::regtype")
        .unwrap()
        .concat();
    assert!(functions.len() > 15);
    for function in functions {
        let hung =
            format!("create trigger t after update on trap for each row execute function vm.{function}()");
        assert!(operator.refusal(&hung).starts_with("42501"), "{function}");
    }
    // Tables of their own by the names of ours stand before none.
    operator.exec(&format!(
        "create temp table JobConfig as select * from vm.JobConfig;
         create temp table WakeHint (Slot int, Armed boolean);
         insert into pg_temp.WakeHint values (1, true);
         create temp table OrganizationMember as select '{}'::text as Login, null::uuid as OrganizationID;
         create temp table AuditLog as select * from vm.AuditLog limit 0",
        operator.name
    ));
    operator.exec(&format!("insert into vm.JobHistory (ConfigID, StatusID) values ('{ours}', 1)"));
    assert_eq!(operator.text("select count(*) from vm.JobHistory"), "1");
    assert_eq!(operator.text("select Armed from pg_temp.WakeHint"), "t");
    operator.exec("update vm.JobConfig set WaitInSeconds = 5");
    assert_eq!(operator.text("select count(*) from pg_temp.AuditLog"), "0");
    operator.exec("set search_path = pg_temp, vm");
    operator.exec("update vm.JobHistory set StatusID = -1");
    assert_eq!(db.status(&row), "1");
}

#[test]
fn an_operator_sees_the_organizations_below_their_own_and_an_entry_without_one_means_all() {
    let mut db = with_roles();
    db.exec(
        "insert into Organization (Code, ParentOrgID) select 'A1', ID from Organization where Code = 'A';
         insert into Organization (Code, ParentOrgID) select 'A11', ID from Organization where Code = 'A1'",
    );
    let mut operator = Login::new(&mut db, "rosterd_operator", &["A1"]);
    let seen = "select string_agg(Code, ' ' order by Code) from Organization";
    assert_eq!(operator.text(seen), "A1 A11");
    db.exec(&format!("insert into OrganizationMember (Login) values ('{}')", operator.name));
    assert_eq!(operator.text(seen), "A A1 A11 B", "at the next statement");
    db.exec("delete from OrganizationMember");
    assert_eq!(operator.text(seen), "");
}

#[test]
fn cancelling_a_parent_cancels_its_children_of_other_organizations_too() {
    let mut db = with_roles();
    let mut operator = Login::new(&mut db, "rosterd_operator", &["A"]);
    let (ours, theirs) =
        (config_of(&mut db, "A", "NoopJob", "", ""), config_of(&mut db, "B", "NoopJob", "", ""));
    let parent = db.insert(&ours, "{}");
    let child = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{theirs}', 1, '{parent}') returning ID"
    ));
    operator.exec(&format!("update JobHistory set StatusID = -1 where ID = '{parent}'"));
    assert_eq!(db.status(&child), "5");
    let told =
        db.rows("select Login, count(*) from AuditLog where Action = 'CANCEL' group by Login").unwrap();
    assert_eq!(told, [[operator.name.as_str(), "2"]]);
    assert_eq!(
        operator.text("select count(*) from AuditLog where Action = 'CANCEL'"),
        "1",
        "of the own organization"
    );
}

#[test]
fn an_owner_without_superuser_lays_the_roles_down_and_runs_the_daemon() {
    let mut db = TestDb::empty();
    if db.text("select current_setting('server_version_num')::int >= 160000") == "t" {
        // There CREATEROLE alone does not open a role that another login of this shared server has made.
        return;
    }
    let app = Login::new(&mut db, "pg_monitor", &[]);
    db.exec(&format!("alter role {0} createrole; alter database {1} owner to {0}", app.name, db.name));
    for args in [&["migrate"][..], &["migrate", "--roles"], &["migrate", "--roles"]] {
        let done = rosterd(app.url(), args);
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    let config = db.config("NoopJob", "", "");
    let mut runner = daemon(&app, &[]);
    let row = db.insert(&config, "{}");
    db.wait_status(&row, 3);
    runner.stop();
    // The login owns the database, so that goes first.
    drop(db);
    drop(app);
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
            "set enable_seqscan = off; set plan_cache_mode = force_generic_plan; prepare s as {statement}"
        ));
        let lines = login.rows(&format!("explain (costs off) execute s {arguments}")).unwrap().concat();
        lines.join("\n")
    };
    for (statement, arguments) in
        [(CLAIM, "(vm.new_id(), '{}', 10, '{}', 2)"), (TICK, "('{1}', 2)"), (RESCUE, "")]
    {
        let as_runner = plan(Login::new(&mut db, "rosterd_runner", &[]), statement, arguments);
        let as_owner = plan(Login::new(&mut db, "rosterd_owner", &[]), statement, arguments);
        assert_eq!(as_runner, as_owner);
        assert!(as_owner.contains("jobhistory_"), "{as_owner}");
    }
}

#[test]
fn the_statements_of_the_security_page_run() {
    let mut db = with_roles();
    db.exec("insert into Organization (Code) values ('NORTON')");
    let page = include_str!("../../docs/security.md");
    let blocks: Vec<&str> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 4);
    // Roles belong to the whole server, so these get names of their own.
    let named = |text: &str| {
        let people = ["rosterd_host1", "alice", "bob"];
        people.iter().fold(text.to_owned(), |text, who| text.replace(who, &format!("{}_{who}", db.name)))
    };
    let blocks: Vec<String> = blocks.into_iter().map(named).collect();
    for block in blocks {
        db.exec(&block);
    }
    assert_eq!(db.text("select count(*) from OrganizationMember where Login like '%alice'"), "1");
    for who in ["rosterd_host1", "alice", "bob"] {
        let name = format!("{}_{who}", db.name);
        db.exec(&format!("drop role {name}"));
    }
}
