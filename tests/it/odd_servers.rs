//! Databases that are not set up as one would wish: what is refused, what is warned of, and what does no harm.

use crate::support::{Daemon, SOON, TestDb, own_jobs_binary, server};
use sqlx::{Connection, PgConnection};
use std::process::Command;

fn spawn(url: &str) -> Daemon {
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url);
    Daemon::spawn(command)
}

#[test]
fn defaults_of_the_database_that_would_break_claims_do_no_harm() {
    let mut db = TestDb::new();
    for setting in [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "search_path = public",
        "timezone = 'Pacific/Apia'",
        "enable_indexscan = off",
    ] {
        db.exec(&format!("alter database {} set {setting}", db.name));
    }
    let config = db.config("SleepJob", "MaxInstances, Payload", r#"3, '{"seconds": 0.01}'"#);
    let free = db.config("NoopJob", "MaxInstances", "0");
    let daemons: Vec<Daemon> = (0..2).map(|_| Daemon::start(&db)).collect();
    for config in [&config, &free] {
        db.exec(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 60)"
        ));
    }
    db.wait_for("select count(*) from JobHistory where StatusID = 3 and Attempt = 1", "120", SOON);
    assert_eq!(db.most_at_once(&config), 3);
    for daemon in &daemons {
        assert!(!daemon.output().contains("is away"), "{}", daemon.output());
    }
}

#[test]
fn a_database_that_is_not_utf8_is_refused_with_the_remedy() {
    let mut admin = TestDb::empty();
    let name = format!("{}_ascii", admin.name);
    admin.exec(&format!("create database {name} template template0 encoding 'SQL_ASCII' locale 'C'"));
    let url = server().url().replacen("postgres:///rosterd?", &format!("postgres:///{name}?"), 1);
    let mut daemon = spawn(&url);
    assert_eq!(daemon.wait_exit().code(), Some(69));
    daemon.wait_line("its encoding is SQL_ASCII, rosterd needs UTF8; create it with encoding 'UTF8'");
    admin.exec(&format!("drop database {name} with (force)"));
}

#[test]
fn a_server_that_may_lose_what_it_acknowledged_is_warned_of_at_the_start() {
    let db = TestDb::new();
    let daemon = Daemon::start(&db);
    daemon.wait_line("the server runs with fsync = off, full_page_writes = off, synchronous_commit = off");
}

#[test]
fn a_daemon_at_work_goes_on_when_a_newer_one_adds_to_the_schema_and_then_does_not_start_again() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let mut old = Daemon::start(&db);
    // What a newer release does: something more, and its mark.
    for step in [
        "alter table vm.JobHistory add column Mood text",
        "alter table vm.JobConfig add column Mood text not null default 'fine'",
        "create index jobhistory_mood on vm.JobHistory (Mood) where Mood is not null",
        "insert into vm._sqlx_migrations (version, description, success, checksum, execution_time)
         values (20991231000000, 'from the future', true, '', 0)",
    ] {
        db.exec(step);
    }
    for _ in 0..20 {
        let id = db.insert(&config, "{}");
        db.wait_status(&id, 3);
    }
    assert_eq!(db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"), "20");
    assert!(old.stop().success());
    assert!(!old.output().contains("is away"), "{}", old.output());
    let mut again = spawn(&db.url());
    assert_eq!(again.wait_exit().code(), Some(69));
    again.wait_line("run the newer rosterd");
}

#[test]
fn the_password_of_the_unit_files_credential_lets_the_daemon_in_and_nothing_else_does() {
    let mut db = TestDb::empty();
    let role = format!("app_{}", db.name);
    db.exec(&format!(
        "create role {role} login password 'cor''rect horse'; alter database {} owner to {role}",
        db.name
    ));
    let url = db.url().replacen("user=rosterd", &format!("user={role}"), 1);
    assert!(url.contains(&role), "{url}");
    let folder = tempfile::tempdir().unwrap();
    // As systemd does it: the file of LoadCredential= in a folder that %d stands for.
    let unit =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/rosterd.service")).unwrap();
    let credential = unit.lines().find_map(|line| line.strip_prefix("LoadCredential=")).unwrap();
    let credential = folder.path().join(credential.split(':').next().unwrap());
    let with_unit = || {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", &url).env_remove("PGPASSFILE");
        for line in unit.lines().filter_map(|line| line.strip_prefix("Environment=")) {
            let (name, value) = line.split_once('=').unwrap();
            command.env(name, value.replace("%d", &folder.path().display().to_string()));
        }
        Daemon::spawn(command)
    };
    // No file, a wrong one, the right one.
    let mut without = with_unit();
    assert_eq!(without.wait_exit().code(), Some(64));
    without.wait_line("database.password_file");
    std::fs::write(&credential, "wrong horse\n").unwrap();
    let mut wrong = with_unit();
    assert_eq!(wrong.wait_exit().code(), Some(69));
    assert!(!wrong.output().contains("wrong horse"), "{}", wrong.output());
    std::fs::write(&credential, "cor'rect horse\n").unwrap();
    let right = with_unit();
    right.wait_line("rosterd is ready");
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
    let users = "select string_agg(distinct usename, ',') from pg_stat_activity
        where datname = current_database() and application_name like 'rosterd %' and application_name <> 'rosterd test'";
    assert_eq!(db.text(users), role);
    assert!(!right.output().contains("horse"), "{}", right.output());
}

#[test]
fn an_insert_whose_answer_was_lost_is_sent_again_with_its_own_id_and_stands_once() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let _daemon = Daemon::start(&db);
    let id = db.text("select gen_random_uuid()");
    let insert = format!(
        "insert into JobHistory (ID, ConfigID, StatusID) values ('{id}', '{config}', 1) on conflict (ID) do nothing"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The server carries the statement out and its client is gone before the answer.
    runtime.block_on(async {
        let mut lost = PgConnection::connect_with(&db.options).await.unwrap();
        let sent = sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "set search_path = vm; begin; {insert}; commit; select pg_sleep(30)"
        )));
        let answer =
            tokio::time::timeout(std::time::Duration::from_millis(300), sent.execute(&mut lost)).await;
        assert!(answer.is_err(), "no answer came");
        drop(lost);
    });
    db.exec(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and query like '%pg_sleep(30)%' and pid <> pg_backend_pid()",
    );
    db.wait_status(&id, 3);
    for _ in 0..3 {
        db.exec(&insert);
        db.wait_status(&id, 3);
    }
    assert_eq!(db.text("select count(*) || ' ' || max(Attempt) from JobHistory"), "1 1");
}

#[test]
fn a_migration_that_loses_a_deadlock_is_tried_again() {
    let mut db = TestDb::empty();
    // A sequence keeps its count when the transaction that used it is rolled back.
    db.exec(
        "create sequence public.Tries;
         create function public.lose_once() returns event_trigger language plpgsql as $$
           begin
             if nextval('public.Tries') = 3 then
               raise exception using errcode = 'deadlock_detected', message = 'deadlock detected';
             end if;
           end $$;
         create event trigger lose_once on ddl_command_start when tag in ('CREATE INDEX')
           execute function public.lose_once()",
    );
    let daemon = spawn(&db.url());
    daemon.wait_line("deadlock detected");
    daemon.wait_line("rosterd is ready");
}
