//! The audit: who changed which configuration, and who cancelled which rows.

use crate::support::{Daemon, SOON, TestDb, psql};

/// The newest entry, in the words of its columns.
fn last(db: &mut TestDb, what: &str) -> String {
    db.text(&format!("select {what} from AuditLog order by ID desc limit 1"))
}

#[test]
fn a_change_is_written_down_with_who_when_and_the_changed_columns_alone() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "WaitInSeconds", "60");
    assert_eq!(
        last(&mut db, "concat_ws(' ', Action, TableName, RowID)"),
        format!("INSERT JobConfig {config}")
    );
    assert_eq!(last(&mut db, "After ->> 'waitinseconds'"), "60");
    psql(
        &db,
        &format!(
            "set application_name = 'the ticket tool'; update JobConfig set WaitInSeconds = 120, MaxInstances = 1 where ID = '{config}';"
        ),
    );
    assert_eq!(
        last(&mut db, "concat_ws(' ', Action, Before, After, Application, Login = session_user)"),
        r#"UPDATE {"waitinseconds": 60} {"waitinseconds": 120} the ticket tool t"#
    );
    assert_eq!(last(&mut db, "OrganizationID = (select ID from Organization)"), "t");
    let before = db.text("select count(*) from AuditLog");
    db.exec("update JobConfig set WaitInSeconds = 120");
    assert_eq!(db.text("select count(*) from AuditLog"), before, "nothing changed");

    let schedule = db.text(&format!(
        "insert into JobSchedule (ConfigID, TimeOfDay) values ('{config}', '02:30') returning ID"
    ));
    db.exec("update JobSchedule set TimeOfDay = '03:30'");
    assert_eq!(
        last(&mut db, "concat_ws(' ', RowID, Before, After, OrganizationID is not null)"),
        format!(r#"{schedule} {{"timeofday": "02:30:00"}} {{"timeofday": "03:30:00"}} t"#)
    );
    db.exec("delete from JobSchedule");
    assert_eq!(last(&mut db, "concat_ws(' ', Action, RowID, After is null)"), format!("DELETE {schedule} t"));
    db.exec("update Organization set TimeZone = 'Europe/Berlin'");
    assert_eq!(last(&mut db, "After::text"), r#"{"timezone": "Europe/Berlin"}"#);
    db.exec("insert into OrganizationMember (Login) values ('alice')");
    assert_eq!(last(&mut db, "TableName || ' ' || (After ->> 'login')"), "OrganizationMember alice");
}

#[test]
fn a_secret_is_seen_to_change_and_never_seen() {
    let mut db = TestDb::new();
    db.exec("insert into Organization (Code) values ('ACME')");
    db.exec(
        r#"insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
           select 'JIRA', ID, 'https://u:canary0@jira.example.com/?key=canary1', '{"Username": "svc",
             "Password": "canary2", "Delay": 5, "Odd thing": {"Inner": "canary3"}, "List": ["canary4"], "Pin": 12345678,
             "Host": {"a": "canary5"}, "Token": "stays"}'
           from Organization"#,
    );
    let show = |what: &str| {
        format!("select {what} from AuditLog where TableName = 'SourceConfig' order by ID desc limit 1")
    };
    let shown = db.text(&show("After -> 'authinfo'"));
    assert!(shown.contains(r#""Delay": 5"#) && shown.contains(r#""Username": "svc""#), "{shown}");
    assert_eq!(shown.matches("sha256:").count(), 6, "{shown}");

    db.exec(r#"update SourceConfig set AuthInfo = AuthInfo || '{"Password": "canary6", "Delay": 7}'"#);
    for (field, equal) in [("Password", "f"), ("Token", "t"), ("Pin", "t"), ("Username", "t"), ("Delay", "f")]
    {
        let same = format!("Before #>> '{{authinfo,{field}}}' = After #>> '{{authinfo,{field}}}'");
        assert_eq!(db.text(&show(&same)), equal, "{field}");
    }
    // Salted anew: the same token has another hash in the next entry.
    let token = "After #>> '{authinfo,Token}'";
    let hashes =
        db.text(&format!("select count(distinct {token}) from AuditLog where TableName = 'SourceConfig'"));
    assert_eq!(hashes, "2");
    db.exec("update SourceConfig set AuthInfo = '{}'; delete from SourceConfig");
    let all = db.text("select string_agg(a::text, ' ') from AuditLog a");
    assert!(!all.contains("canary") && !all.contains("stays") && !all.contains("12345678"), "{all}");
    assert!(all.contains("https://***@jira.example.com/?***"), "{all}");
}

#[test]
fn what_the_daemon_keeps_for_itself_is_not_written_down() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let daemon = Daemon::start(&db);
    db.exec(&format!(
        "insert into JobSchedule (ConfigID, Cron, TimeZone) values ('{config}', '* * * * * *', 'UTC')"
    ));
    db.wait_for("select count(*) >= 2 from JobHistory where Origin = 'schedule' and StatusID = 3", "t", SOON);
    db.wait_for("select LastRun is not null from JobSchedule", "t", SOON);
    db.wait_for("select LastJobStart is not null from JobConfig", "t", SOON);
    let told = db.text("select string_agg(Action || ' ' || TableName, ', ' order by ID) from AuditLog");
    assert_eq!(told, "INSERT Organization, INSERT JobConfig, INSERT JobSchedule", "{}", daemon.output());
}

#[test]
fn every_cancelled_row_is_written_down_with_its_children_and_none_that_was_left_alone() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let parent = db.insert(&config, "{}");
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{parent}')"
    ));
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 3000)"
    ));
    db.exec("update JobHistory set StatusID = -1 where StatusID = 1");
    db.exec("update JobHistory set StatusID = -1");
    let told =
        "select count(*), count(distinct RowID), count(distinct AuditDate), bool_and(Login = session_user),
        string_agg(distinct Before::text || After::text, ' ') from AuditLog where Action = 'CANCEL'";
    assert_eq!(db.rows(told).unwrap(), [["3002", "3002", "1", "t", r#"{"statusid": 1}{"statusid": 5}"#]]);
}

#[test]
fn a_running_row_is_written_down_when_it_is_cancelled_whatever_the_statement_sets_and_not_when_it_ends() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    db.exec(&format!(
        "update JobHistory set StatusID = -1 where ID = '{id}' returning set_config('rosterd.actor', 'runner', true)"
    ));
    db.wait_status(&id, 5);
    let told = "select RowID, Before, After from AuditLog where Action = 'CANCEL'";
    assert_eq!(db.rows(told).unwrap(), [[id.as_str(), r#"{"statusid": 2}"#, r#"{"statusid": -1}"#]]);
}

#[test]
fn the_audit_only_grows_for_everybody() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    for forged in [
        "update AuditLog set Login = 'somebody else'",
        "delete from AuditLog where false",
        "truncate AuditLog",
    ] {
        let said = db.refusal(forged);
        assert!(said.starts_with("AuditLog only grows"), "{said}");
    }
    assert!(
        db.refusal("set session_replication_role = replica; delete from AuditLog")
            .starts_with("AuditLog only")
    );
}

/// A change of every audited table, and the Action it is written down as.
fn changes(config: &str) -> Vec<(&'static str, &'static str, String)> {
    let source = "(select ID from SourceConfig where Source = 'HTTP' and Address = 'h')";
    let of = |table, insert: &str, update: &str, delete: &str| {
        [("INSERT", insert), ("UPDATE", update), ("DELETE", delete)]
            .map(|(action, sql)| (table, action, sql.to_owned()))
    };
    let config_insert = format!(
        "insert into JobConfig (JobID, OrganizationID, WaitInSeconds) select JobID, OrganizationID, 77 from JobConfig where ID = '{config}'"
    );
    [
        of(
            "Organization",
            "insert into Organization (Code) values ('NEW')",
            "update Organization set TimeZone = 'Europe/Berlin' where Code = 'NEW'",
            "delete from Organization where Code = 'NEW'",
        ),
        of(
            "OrganizationMember",
            "insert into OrganizationMember (Login) values ('alice')",
            "update OrganizationMember set Login = 'bob'",
            "delete from OrganizationMember",
        ),
        of(
            "JobConfig",
            &config_insert,
            "update JobConfig set MaxInstances = 7 where WaitInSeconds = 77",
            "delete from JobConfig where WaitInSeconds = 77",
        ),
        of(
            "JobSchedule",
            &format!("insert into JobSchedule (ConfigID, TimeOfDay) values ('{config}', '02:30')"),
            "update JobSchedule set TimeOfDay = '03:30'",
            "delete from JobSchedule",
        ),
        of(
            "SourceConfig",
            "insert into SourceConfig (Source, SourceID, OrganizationID, Address)
             select Source, SourceID, OrganizationID, 'i' from SourceConfig",
            "update SourceConfig set Port = 7 where Address = 'i'",
            "delete from SourceConfig where Address = 'i'",
        ),
        of(
            "JobConfigSource",
            &format!("insert into JobConfigSource (ConfigID, SourceConfigID, Direction, Position) values ('{config}', {source}, 'in', 1)"),
            "update JobConfigSource set Position = 2",
            "delete from JobConfigSource",
        ),
    ]
    .concat()
}

fn every_change_leaves_its_entry(setting: &str) {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    db.exec(
        "insert into SourceConfig (Source, OrganizationID, Address) select 'HTTP', ID, 'h' from Organization",
    );
    let id = db.insert(&config, "{}");
    db.exec(setting);
    for (table, action, sql) in changes(&config) {
        let before = db.text("select count(*) from AuditLog");
        db.exec(&sql);
        let entries = db.text(&format!(
            "select string_agg(Action || ' ' || TableName, ', ' order by ID) from AuditLog
             where ID > (select coalesce(max(ID), 0) from (select ID from AuditLog order by ID limit {before}) a)"
        ));
        assert_eq!(entries, format!("{action} {table}"), "{setting}: {sql}");
    }
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
    assert_eq!(last(&mut db, "Action || ' ' || RowID"), format!("CANCEL {id}"), "{setting}");
}

#[test]
fn an_insert_an_update_and_a_delete_of_every_audited_table_leaves_its_entry() {
    every_change_leaves_its_entry("select");
}

#[test]
fn a_session_that_replicates_is_audited_like_any_other() {
    every_change_leaves_its_entry("set session_replication_role = replica");
    let mut db = TestDb::new();
    let resting =
        "select string_agg(tgname, ', ') from pg_trigger where tgname like '%\\_audit' and tgenabled <> 'A'";
    assert_eq!(db.text(&format!("select coalesce(({resting}), 'none')")), "none");
}
