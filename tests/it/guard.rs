//! The guard of `JobHistory`: which statements of an operator it takes, and what it says to the others.

use crate::support::{Daemon, TestDb, psql};

/// A row in this status, moved there as a runner would.
fn row_in(db: &mut TestDb, config: &str, status: i32) -> String {
    let id = db.insert(config, "{}");
    if status == 1 {
        return id;
    }
    let claim =
        "StatusID = 2, ThreadID = gen_random_uuid(), ClaimID = 1, Attempt = Attempt + 1, StartedDate = now()";
    let as_runner = |set: String| {
        format!(
            "set rosterd.actor = 'runner'; update JobHistory set {set} where ID = '{id}'; reset rosterd.actor"
        )
    };
    if status != 5 {
        db.exec(&as_runner(claim.to_owned()));
    }
    match status {
        3 | 4 => db.exec(&as_runner(format!("StatusID = {status}, FinishedDate = now()"))),
        -1 | 5 => db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'")),
        _ => {}
    }
    assert_eq!(db.status(&id), status.to_string());
    id
}

#[test]
fn every_pair_of_statuses_is_allowed_or_refused_as_the_state_diagram_has_it() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    for old in [-1, 1, 2, 3, 4, 5] {
        for new in ["-1", "0", "1", "2", "3", "4", "5", "99", "null"] {
            let id = row_in(&mut db, &config, old);
            let update = format!("update JobHistory set StatusID = {new} where ID = '{id}'");
            let finished = old >= 3;
            let wanted = match (old, new) {
                (1, "-1") => 5,
                (2, "-1") => -1,
                (1, "1") | (_, "-1") => old,
                _ => {
                    let said = db.refusal(&update);
                    let sentence = match new {
                        _ if finished => "finished rows never change",
                        "99" | "null" => "does not exist",
                        _ if new == old.to_string() => "only a PENDING row can be edited",
                        _ => "by hand HINT:",
                    };
                    assert!(said.contains(sentence), "{old} -> {new}: {said}");
                    let advice = if finished { "vm.rerun(" } else { "-1" };
                    assert!(said.split(" HINT: ").nth(1).unwrap().contains(advice), "{old} -> {new}: {said}");
                    assert_eq!(db.status(&id), old.to_string());
                    continue;
                }
            };
            db.exec(&update);
            assert_eq!(db.status(&id), wanted.to_string(), "{old} -> {new}");
        }
    }
}

#[test]
fn even_a_runner_cannot_revive_a_finished_row_or_complete_a_cancelled_one() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let set = "StatusID = {}, FinishedDate = case when {} in (3, 4, 5) then now() end";
    for (old, new) in
        [(-1, 3), (-1, 4), (-1, 1), (-1, 2), (2, 5), (1, 3), (1, 5), (3, 1), (3, 2), (4, 1), (5, 1), (5, 3)]
    {
        let id = row_in(&mut db, &config, old);
        let set = set.replace("{}", &new.to_string());
        db.exec("set rosterd.actor = 'runner'");
        let said = db.refusal(&format!("update JobHistory set {set} where ID = '{id}'"));
        db.exec("reset rosterd.actor");
        assert!(said.contains("JobHistory"), "{old} -> {new}: {said}");
        assert_eq!(db.status(&id), old.to_string());
    }
}

fn columns(db: &mut TestDb) -> Vec<(String, String)> {
    let rows = db
        .rows(
            "select column_name, udt_name from information_schema.columns
             where table_schema = 'vm' and table_name = 'jobhistory' and is_generated = 'NEVER'",
        )
        .unwrap_or_else(|e| panic!("the columns of JobHistory: {e}"));
    rows.into_iter().map(|mut row| (row.remove(0), row.remove(0))).collect()
}

fn some_value(kind: &str) -> &'static str {
    match kind {
        "uuid" => "gen_random_uuid()",
        "int4" | "int8" => "77",
        "text" => "'forged'",
        "timestamptz" => "'2001-01-01'",
        "jsonb" => r#"'{"forged": true}'"#,
        other => panic!("a column of type {other}"),
    }
}

#[test]
fn a_finished_row_is_immutable_in_every_column() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let id = row_in(&mut db, &config, 3);
    for (column, kind) in columns(&mut db) {
        for value in [column.as_str(), some_value(&kind)] {
            let said = db.refusal(&format!("update JobHistory set {column} = {value} where ID = '{id}'"));
            assert!(said.contains("finished rows never change"), "{column}: {said}");
        }
    }
}

#[test]
fn of_a_pending_row_only_four_columns_can_be_edited_and_the_stamps_are_true() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, "{}");
    for (column, kind) in columns(&mut db) {
        let update = format!("update JobHistory set {column} = {} where ID = '{id}'", some_value(&kind));
        match column.as_str() {
            "priority" | "payload" | "notbefore" | "identifier" | "updateddate" | "updatedby" => {
                db.exec(&update);
            }
            "statusid" => {}
            _ => {
                let said = db.refusal(&update);
                assert!(said.contains("Priority, Payload, NotBefore and Identifier"), "{column}: {said}");
            }
        }
    }
    assert_eq!(
        db.text(
            "select UpdatedBy = session_user and UpdatedDate > now() - interval '1 hour' from JobHistory"
        ),
        "t"
    );
    for column in ["Priority", "Payload", "NotBefore"] {
        let said = db.refusal(&format!("update JobHistory set {column} = null where ID = '{id}'"));
        assert!(said.contains("cannot be null HINT: Set a value"), "{said}");
    }
}

#[test]
fn what_only_the_engine_writes_cannot_be_forged_by_an_insert() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let given =
        ["id", "jobid", "configid", "organizationid", "statusid", "parentjobid", "notbefore", "origin"];
    let (names, values): (Vec<String>, Vec<&str>) = columns(&mut db)
        .into_iter()
        .filter(|(column, _)| !given.contains(&column.as_str()))
        .map(|(column, kind)| (column, some_value(&kind)))
        .unzip();
    let (names, values) = (names.join(", "), values.join(", "));
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, {names}) values ('{config}', 1, {values})"
    ));
    let row = db.text("select row(Attempt, CurrentIteration, Crashes, ThreadID, ClaimID, PulseDate, StartedDate, FinishedDate,
        WaitingSince, CancelDate, CancelBy, StopReason, Error, Result, Progress, ScheduleID, DueDate, UpdatedDate, UpdatedBy)::text
        from JobHistory");
    assert_eq!(row, format!("(0,0,0{})", ",".repeat(16)));
    assert_eq!(
        db.text(
            "select CreatedBy = session_user and CreatedDate > now() - interval '1 hour' from JobHistory"
        ),
        "t"
    );
    assert_eq!(
        db.text("select Priority || Identifier || Payload from JobHistory"),
        r#"77forged{"forged": true}"#
    );
}

#[test]
fn live_rows_are_not_deleted_finished_ones_are() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    for status in [-1, 1, 2, 3, 4, 5] {
        let id = row_in(&mut db, &config, status);
        let delete = format!("delete from JobHistory where ID = '{id}'");
        if status < 3 {
            let said = db.refusal(&delete);
            assert!(said.contains("cannot be deleted HINT: Cancel it first"), "{said}");
        } else {
            db.exec(&delete);
            assert_eq!(db.status(&id), "");
        }
    }
}

#[test]
fn a_superuser_in_replica_mode_does_not_walk_past_the_guard() {
    let mut db = TestDb::new();
    assert_eq!(db.text("select usesuper from pg_user where usename = current_user"), "t");
    let config = db.config("NoopJob", "MaxInstances", "0");
    let (live, finished) = (row_in(&mut db, &config, 2), row_in(&mut db, &config, 3));
    for mode in ["origin", "replica", "local"] {
        db.exec(&format!("set session_replication_role = {mode}"));
        let said = db.refusal("truncate JobHistory cascade");
        assert!(said.contains("would lose live rows HINT: Cancel live rows"), "{mode}: {said}");
        db.refusal(&format!("delete from JobHistory where ID = '{live}'"));
        db.refusal(&format!("update JobHistory set StatusID = 3, FinishedDate = now() where ID = '{live}'"));
        db.refusal(&format!(
            "update JobHistory set StatusID = 1, FinishedDate = null where ID = '{finished}'"
        ));
        db.refusal(&format!("update JobHistory set Error = 'x' where ID = '{finished}'"));
    }
}

#[test]
fn a_cancel_in_replica_mode_takes_the_children_too() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let parent = db.insert(&config, "{}");
    let child = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, ParentJobID) values ('{config}', 1, '{parent}') returning ID"
    ));
    db.exec("set session_replication_role = replica");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{parent}'"));
    assert_eq!((db.status(&parent), db.status(&child)), ("5".to_owned(), "5".to_owned()));
}

#[test]
fn an_edited_priority_changes_the_order_in_which_pending_rows_run() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let (first, second) = (db.insert(&config, "{}"), db.insert(&config, "{}"));
    db.exec(&format!("update JobHistory set Priority = -1 where ID = '{second}'"));
    let _daemon = Daemon::start(&db);
    db.wait_status(&first, 3);
    let order = db.text("select string_agg(ID::text, ' ' order by StartedDate) from JobHistory");
    assert_eq!(order, format!("{second} {first}"));
}

#[test]
fn an_edited_notbefore_and_payload_act_on_a_waiting_row() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let _daemon = Daemon::start_with(&db, &[("ROSTERD__ENGINE__POLL_SECONDS", "30")]);
    let id = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, NotBefore) values ('{config}', 1, now() + interval '1 day') returning ID"
    ));
    db.exec(&format!(
        "update JobHistory set Payload = '{{\"seconds\": 0}}', Identifier = 'mine', NotBefore = now() where ID = '{id}'"
    ));
    db.wait_for(
        &format!("select StatusID from JobHistory where ID = '{id}'"),
        "3",
        std::time::Duration::from_secs(5),
    );
    assert_eq!(db.column(&id, "Identifier || Result"), r#"mine{"slept_seconds": 0.0}"#);
}

#[test]
fn rerun_puts_a_fresh_row_beside_a_finished_one() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let old = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, Priority, Payload, Identifier)
         values ('{config}', 1, 3, '{{\"seconds\": 7}}', 'mine') returning ID"
    ));
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{old}'"));
    let fresh = db.text(&format!("select vm.rerun('{old}')"));
    assert_ne!(fresh, old);
    let columns = "concat_ws(' ', StatusID, Priority, Payload, Identifier, Attempt, Origin)";
    assert_eq!(db.column(&fresh, columns), r#"1 3 {"seconds": 7} mine 0 rerun"#);
    assert_eq!(db.status(&old), "5");
}

#[test]
fn rerun_refuses_live_rows_and_unknown_ids_with_a_sentence() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    for status in [-1, 1, 2] {
        let id = row_in(&mut db, &config, status);
        let said = db.refusal(&format!("select vm.rerun('{id}')"));
        assert!(
            said.contains("only a finished row can be run again HINT: Wait for it, or cancel it"),
            "{said}"
        );
    }
    let said = db.refusal("select vm.rerun('00000000-0000-0000-0000-000000000000')");
    assert!(said.contains("there is no row 00000000"), "{said}");
    assert_eq!(db.text("select count(*) from JobHistory"), "3");
}

#[test]
fn no_refusal_prints_authinfo() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    db.exec(
        r#"insert into SourceConfig (Source, OrganizationID, AuthInfo)
           select 'JIRA', ID, '{"Password": "canary"}' from Organization"#,
    );
    let columns = db
        .rows("select column_name from information_schema.columns where table_schema = 'vm' and table_name = 'sourceconfig'")
        .unwrap();
    let mut statements: Vec<String> = columns
        .iter()
        .map(|column| column[0].as_str())
        .filter(|column| {
            !["authinfo", "payload", "port", "source", "sourceid", "updateddate", "updatedby"]
                .contains(column)
        })
        .map(|column| format!("{column} = null"))
        .collect();
    for wrong in [
        "Port = 0",
        "Port = 65536",
        "Source = null, SourceID = null",
        "Source = 'nobody'",
        "SourceID = gen_random_uuid()",
        "OrganizationID = gen_random_uuid()",
        r#"AuthInfo = AuthInfo || '{"Delay": -1}'"#,
        r#"AuthInfo = AuthInfo || '{"Delay": "1"}'"#,
        r#"AuthInfo = AuthInfo || '{"Concurrency": 0}'"#,
        "AuthInfo = jsonb_build_array(AuthInfo)",
        "AuthInfo = AuthInfo || jsonb_build_object('n', 1e400)",
        "AuthInfo = AuthInfo || jsonb_build_object('n', repeat('x', 1100000))",
        "Payload = '[]'",
    ] {
        statements.push(wrong.to_owned());
    }
    for set in statements {
        let said = psql(&db, &format!("\\set VERBOSITY verbose\nupdate SourceConfig set {set};"));
        assert!(said.err.contains("ERROR"), "{set} was accepted");
        assert!(!said.err.contains("canary"), "{set}: {}", said.err);
    }
}

#[test]
fn a_further_source_of_another_organization_is_refused() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let source = db.text(
        "with o as (insert into Organization (Code) values ('OTHER') returning ID)
         insert into SourceConfig (Source, OrganizationID) select 'HTTP', ID from o returning ID",
    );
    let said = db.refusal(&format!("insert into JobConfigSource values ('{config}', 'in', 1, '{source}')"));
    assert!(said.contains("belongs to another organization"), "{said}");
}
