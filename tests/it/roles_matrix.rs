//! Every table x verb x role x organization: what the roles may do, in one table. A table to come fails here until it
//! has its line.

mod vulnerability;

use crate::support::{Login, TestDb, with_roles};
use std::fmt::Write as _;

/// What select, insert, update, delete and truncate do, a letter each: `+` it works, `0` it meets no row, `-` permission
/// denied, `!` another rule of the database refuses it.
type Verbs = &'static str;

struct Line {
    table: &'static str,
    /// Its row of an organization: `{org}` is the ID, `{login}` the name of who asks.
    row: &'static str,
    insert: &'static str,
    /// Columns to try an UPDATE with; one that works is enough.
    update: &'static [&'static str],
    runner: Verbs,
    /// Of an operator of the organization, and of another one.
    operator: [Verbs; 2],
    /// The same for a viewer.
    viewer: [Verbs; 2],
}

const READ: Verbs = "+----";
const NOTHING: Verbs = "-----";
const READ_OWN: [Verbs; 2] = ["+----", "0----"];
const READ_ALL: [Verbs; 2] = [READ, READ];
const WRITE_OWN: [Verbs; 2] = ["+++--", "0-0--"];
const NEVER: [Verbs; 2] = [NOTHING, NOTHING];
const BOOKKEEPING: Verbs = "++++-";

const OF_CONFIG: &str = "ConfigID in (select ID from JobConfig where OrganizationID = '{org}')";
const OF_SOURCE: &str = "SourceConfigID in (select ID from SourceConfig where OrganizationID = '{org}')";
const ROW: &str = "(select ID from JobHistory where OrganizationID = '{org}' limit 1)";

const MATRIX: &[Line] = &[
    Line {
        table: "Organization",
        row: "ID = '{org}'",
        insert: "(Code) values ('new')",
        update: &["Active", "ParentOrgID"],
        runner: READ,
        operator: READ_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "OrganizationMember",
        row: "OrganizationID = '{org}' and Login in ('{login}', 'somebody')",
        insert: "(Login, OrganizationID) values ('{login}', null)",
        update: &["OrganizationID", "Login"],
        runner: NOTHING,
        operator: READ_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "AuditLog",
        row: "OrganizationID = '{org}' and TableName = 'JobConfig'",
        insert: "(Action, TableName, Login, Application) values ('INSERT', 'x', 'x', 'x')",
        update: &["Login"],
        runner: NOTHING,
        operator: READ_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "Job",
        row: "Struct = 'NoopJob'",
        insert: "(Struct) values ('MatrixJob')",
        update: &["Priority"],
        runner: "+++--",
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "JobStatus",
        row: "ID = 3",
        insert: "values (9, 'NEW')",
        update: &["Status"],
        runner: READ,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "LogType",
        row: "ID = 3",
        insert: "values (9, 'NEW', 'x')",
        update: &["Type"],
        runner: READ,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "SourceType",
        row: "ID = 3",
        insert: "(Type) values ('new')",
        update: &["Type"],
        runner: READ,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "Source",
        row: "Source = 'JIRA'",
        insert: "(SourceTypeID, Source) values (1, 'new')",
        update: &["Source"],
        runner: READ,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "_sqlx_migrations",
        row: "version = (select min(version) from _sqlx_migrations)",
        insert: "(version, description, success, checksum, execution_time) values (1, 'x', true, '', 0)",
        update: &["description"],
        runner: READ,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "SourceConfig",
        row: "OrganizationID = '{org}'",
        insert: r#"(Source, OrganizationID, AuthInfo) values ('HTTP', '{org}', '{"Password": "x"}')"#,
        update: &["Active"],
        runner: READ,
        operator: WRITE_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "JobConfig",
        row: "OrganizationID = '{org}'",
        insert: "(JobID, OrganizationID) select ID, '{org}' from Job",
        update: &["Active", "LastJobStart"],
        runner: "+-+--",
        operator: WRITE_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "JobConfigSource",
        row: OF_CONFIG,
        insert: "(ConfigID, Direction, Position, SourceConfigID) values ('{config}', 'in', 7, '{source}')",
        update: &["Position"],
        runner: READ,
        operator: WRITE_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "JobSchedule",
        row: OF_CONFIG,
        insert: "(ConfigID, TimeOfDay) values ('{config}', '02:30')",
        update: &["Active", "NextRun"],
        runner: "+-+--",
        operator: WRITE_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "JobHistory",
        row: "OrganizationID = '{org}'",
        insert: "(ConfigID, StatusID) values ('{config}', 1)",
        update: &["Priority"],
        runner: "+++--",
        // The trigger finds no such configuration before row-level security is asked.
        operator: ["+++--", "0!0--"],
        viewer: ["+----", "0----"],
    },
    Line {
        table: "Logs",
        row: "JobHistoryID = {row}",
        insert: "(TypeID, Log, CreateDate, JobHistoryID) values (0, 'x', now(), '{row_id}')",
        update: &["Log"],
        runner: "++---",
        operator: READ_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "JobEffect",
        row: "HistoryID = {row}",
        insert: "(HistoryID, Iteration, Step, State, Attempt, RunnerID) values ('{row_id}', 9, 'x', 'intended', 1, vm.new_id())",
        update: &["Attempt"],
        runner: BOOKKEEPING,
        operator: READ_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "Runner",
        row: "true",
        insert: "(ID, Host, PID, Version, LeaseSeconds, Workers) values (vm.new_id(), 'x', 1, '1', 1, 1)",
        update: &["Draining"],
        runner: BOOKKEEPING,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "Claim",
        row: OF_CONFIG,
        insert: "(RunnerID, ConfigID, HistoryIDs, Open) values (vm.new_id(), '{config}', '{}', 1)",
        update: &["Open"],
        runner: BOOKKEEPING,
        operator: READ_ALL,
        viewer: READ_ALL,
    },
    Line {
        table: "CancelRequest",
        row: "HistoryID = {row}",
        insert: "(HistoryID, RunnerID) values (vm.new_id(), vm.new_id())",
        update: &["RunnerID"],
        runner: BOOKKEEPING,
        operator: NEVER,
        viewer: NEVER,
    },
    Line {
        table: "WakeHint",
        row: "Slot = 1",
        insert: "values (9, true)",
        update: &["Armed"],
        runner: "+-+--",
        operator: NEVER,
        viewer: NEVER,
    },
    Line {
        table: "SourceGate",
        row: OF_SOURCE,
        insert: "(SourceConfigID) values ('{source}') on conflict do nothing",
        update: &["WindowEnd"],
        runner: "+++--",
        operator: READ_OWN,
        viewer: READ_OWN,
    },
    Line {
        table: "SourceShare",
        row: OF_SOURCE,
        insert: "(SourceConfigID, RunnerID) values ('{source}', vm.new_id())",
        update: &["Seen"],
        runner: BOOKKEEPING,
        operator: READ_OWN,
        viewer: READ_OWN,
    },
];

fn lines() -> impl Iterator<Item = &'static Line> {
    MATRIX.iter().chain(vulnerability::LINES)
}

/// A row of this organization in every table that has rows of organizations.
fn fill(db: &mut TestDb, code: &str) {
    db.exec(&format!(
        r#"do $$
        declare org uuid; source uuid; config uuid; history uuid;
          device uuid; key uuid; vulnerability uuid; detection uuid; ticket uuid;
        begin
          select ID into org from Organization where Code = '{code}';
          insert into Job (Struct) values ('NoopJob') on conflict do nothing;
          insert into SourceConfig (Source, OrganizationID, AuthInfo)
            values ('JIRA', org, '{{"Username": "u", "Password": "canary"}}') returning ID into source;
          insert into JobConfig (JobID, OrganizationID, MaxInstances) select ID, org, 0 from Job returning ID into config;
          insert into JobConfigSource values (config, 'in', 1, source);
          insert into JobSchedule (ConfigID, TimeOfDay) values (config, '02:30');
          insert into JobHistory (ConfigID, StatusID) values (config, 1) returning ID into history;
          insert into Logs (TypeID, Log, CreateDate, JobHistoryID) values (0, 'x', now(), history);
          insert into JobEffect (HistoryID, Iteration, Step, State, Attempt, RunnerID)
            values (history, 0, 'x', 'intended', 1, new_id());
          insert into Claim (RunnerID, ConfigID, HistoryIDs, Open) values (new_id(), config, array[history], 1);
          insert into CancelRequest (HistoryID, RunnerID) values (history, new_id());
          insert into SourceGate (SourceConfigID) values (source);
          insert into SourceShare (SourceConfigID, RunnerID) values (source, new_id());
          insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values (new_id(), 'x', 1, '1', 1, 1);
          insert into OrganizationMember (Login, OrganizationID) values ('somebody', org);
          {}
        end $$"#,
        vulnerability::FILL
    ));
}

/// The statements of the five verbs for a row of this organization; an UPDATE for each column.
fn statements(db: &mut TestDb, line: &Line, code: &str, login: &str) -> [Vec<String>; 5] {
    let of = |what: &str, db: &mut TestDb| {
        db.text(&format!(
            "select t.ID from {what} t join Organization o on o.ID = t.OrganizationID where o.Code = '{code}' limit 1"
        ))
    };
    let org = db.text(&format!("select ID from Organization where Code = '{code}'"));
    let (config, source, history) = (of("JobConfig", db), of("SourceConfig", db), of("JobHistory", db));
    let mut ids = vec![("{row}".to_owned(), ROW.to_owned()), ("{login}".to_owned(), login.to_owned())];
    for table in ["Device", "TagKey", "VulnerabilityInfo", "Detection", "Ticket"] {
        ids.push((format!("{{{table}}}"), of(table, db)));
    }
    let own = [("{org}", org), ("{config}", config), ("{source}", source), ("{row_id}", history)];
    ids.extend(own.map(|(name, id)| (name.to_owned(), id)));
    let fill = |text: &str| ids.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id));
    // The row by its key, found by one who sees everything.
    let table = line.table;
    let keys = db
        .rows(&format!(
            "select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
             where i.indrelid = 'vm.{table}'::regclass and i.indisprimary"
        ))
        .unwrap();
    let mut row = String::from("true");
    for key in keys.into_iter().flatten() {
        // A login's own entry stands before those of others.
        let value = db.text(&format!(
            "select {key} from {table} t where {} order by t::text like '%somebody%', {key} limit 1",
            fill(line.row)
        ));
        assert!(!value.is_empty(), "{table} has no row of {code}");
        write!(row, " and {key} = '{value}'").unwrap();
    }
    [
        vec![format!("select count(*) from {table} where {row}")],
        vec![format!("insert into {table} {}", fill(line.insert))],
        line.update
            .iter()
            .map(|column| format!("update {table} set {column} = {column} where {row}"))
            .collect(),
        vec![format!("delete from {table} where {row}")],
        vec![format!("truncate {table}")],
    ]
}

/// Tries a statement and takes it back.
fn outcome(login: &mut Login, verb: usize, sql: &str) -> char {
    login.exec("begin");
    let tried = if verb == 0 { login.rows(sql).map(|rows| rows[0][0] != "0") } else { changes(login, sql) };
    login.exec("rollback");
    match tried {
        Ok(true) => '+',
        // What a conflict keeps out, and TRUNCATE, count no rows.
        Ok(false) if verb == 1 || verb == 4 => '+',
        Ok(false) => '0',
        Err(said) if said.starts_with("42501") => '-',
        Err(_) => '!',
    }
}

fn changes(login: &mut Login, sql: &str) -> Result<bool, String> {
    login.rows(&format!("savepoint s; {sql}"))?;
    login.exec("rollback to s");
    Ok(login.changed(sql) > 0)
}

fn verbs(db: &mut TestDb, login: &mut Login, line: &Line, code: &str) -> String {
    let name = login.name.clone();
    let tried = statements(db, line, code, &name);
    tried
        .iter()
        .enumerate()
        .map(|(verb, tries)| {
            let outcomes: Vec<char> = tries.iter().map(|sql| outcome(login, verb, sql)).collect();
            // The most that any of its columns allows.
            ['+', '!', '0', '-'].into_iter().find(|letter| outcomes.contains(letter)).unwrap()
        })
        .collect()
}

#[test]
fn every_table_verb_role_and_organization_is_as_the_matrix_says() {
    let mut db = with_roles();
    fill(&mut db, "A");
    fill(&mut db, "B");
    let mut wrong = String::new();
    let mut check = |line: &Line, who: &str, found: &str, wanted: &str| {
        if found != wanted {
            writeln!(wrong, "{} for {who}: {found}, not {wanted}", line.table).unwrap();
        }
    };
    let mut runner = Login::new(&mut db, "rosterd_runner", &[]);
    let mut operator = Login::new(&mut db, "rosterd_operator", &["A"]);
    let mut viewer = Login::new(&mut db, "rosterd_viewer", &["A"]);
    let mut nobody = Login::new(&mut db, "rosterd_operator", &[]);
    for line in lines() {
        for (n, code) in ["A", "B"].into_iter().enumerate() {
            check(line, "the runner", &verbs(&mut db, &mut runner, line, code), line.runner);
            let place = if n == 0 { "an operator at home" } else { "an operator abroad" };
            check(line, place, &verbs(&mut db, &mut operator, line, code), line.operator[n]);
            let place = if n == 0 { "a viewer at home" } else { "a viewer abroad" };
            check(line, place, &verbs(&mut db, &mut viewer, line, code), line.viewer[n]);
            // Who is a member of nothing is abroad everywhere.
            check(line, "a member of nothing", &verbs(&mut db, &mut nobody, line, code), line.operator[1]);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_owner_may_do_all_but_rewrite_the_audit() {
    let mut db = with_roles();
    fill(&mut db, "A");
    let mut owner = Login::new(&mut db, "rosterd_owner", &[]);
    for line in lines() {
        let found = verbs(&mut db, &mut owner, line, "A");
        if line.table == "AuditLog" {
            assert_eq!(found, "++---", "appends and reads");
        } else {
            // TRUNCATE of JobHistory is a rule for everybody.
            let denied = found.chars().take(if line.table == "JobHistory" { 4 } else { 5 });
            assert!(denied.into_iter().all(|c| c == '+' || c == '!'), "{}: {found}", line.table);
        }
    }
}

#[test]
fn every_table_of_the_schema_has_its_line_in_the_matrix() {
    let mut db = TestDb::new();
    let tables = db
        .rows("select relname from pg_class where relnamespace = 'vm'::regnamespace and relkind in ('r', 'p') order by 1")
        .unwrap();
    let mut listed: Vec<String> = lines().map(|line| line.table.to_lowercase()).collect();
    listed.sort_unstable();
    assert_eq!(tables.concat(), listed);
}

#[test]
fn of_a_source_all_but_its_credentials_can_be_read() {
    let mut db = with_roles();
    fill(&mut db, "A");
    let columns = db
        .rows("select column_name from information_schema.columns where table_schema = 'vm' and table_name = 'sourceconfig'")
        .unwrap()
        .concat();
    for role in ["rosterd_operator", "rosterd_viewer"] {
        let mut login = Login::new(&mut db, role, &["A"]);
        for column in &columns {
            let said = login.rows(&format!("select {column}::text from SourceConfig"));
            assert_eq!(said.is_ok(), column != "authinfo", "{role}, {column}: {said:?}");
        }
        for way in [
            "select * from SourceConfig",
            "select s::text from SourceConfig s",
            "select to_jsonb(s) from SourceConfig s",
            "update SourceConfig set Address = AuthInfo ->> 'Password'",
            "update SourceConfig set AuthInfo = '{}' returning AuthInfo",
            "insert into SourceConfig (Source, OrganizationID) select 'HTTP', ID from Organization returning *",
            "copy SourceConfig to stdout",
            "select 1 from SourceConfig where AuthInfo ->> 'Password' like 'c%'",
        ] {
            let said = login.refusal(way);
            assert!(said.starts_with("42501") && !said.contains("canary"), "{way}: {said}");
        }
    }
}
