//! What an operator of one organization can do, and what they cannot.

use crate::support::{Login, config_of, with_roles};

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
