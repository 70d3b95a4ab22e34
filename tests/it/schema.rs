//! What the schema promises by its names: columns, defaults, seeds, comments.

use crate::support::{Daemon, TestDb, own_jobs_binary, psql};
use std::process::Command;

/// Column, type, and a part of its default ("" = whatever it is).
type Column = (&'static str, &'static str, &'static str);

/// What operators rely on, table by table, as the contract has it.
const COLUMNS: &[(&str, &[Column])] = &[
    ("JobStatus", &[("ID", "int4", ""), ("Status", "text", "")]),
    (
        "Job",
        &[
            ("ID", "int4", ""),
            ("Struct", "text", ""),
            ("Priority", "int4", ""),
            ("Description", "text", ""),
            ("PayloadSchema", "jsonb", ""),
        ],
    ),
    (
        "Organization",
        &[
            ("ID", "uuid", "new_id()"),
            ("ParentOrgID", "uuid", ""),
            ("Code", "text", ""),
            ("Description", "text", ""),
            ("Payload", "jsonb", "'{}'"),
            ("TimeZone", "text", "'UTC'"),
            ("Active", "bool", "true"),
        ],
    ),
    ("SourceType", &[("ID", "int4", ""), ("Type", "text", "")]),
    ("Source", &[("ID", "uuid", ""), ("SourceTypeID", "int4", ""), ("Source", "text", "")]),
    (
        "SourceConfig",
        &[
            ("ID", "uuid", "new_id()"),
            ("Source", "text", ""),
            ("SourceID", "uuid", ""),
            ("OrganizationID", "uuid", ""),
            ("Address", "text", ""),
            ("Port", "int4", ""),
            ("AuthInfo", "jsonb", ""),
            ("Payload", "jsonb", ""),
            ("Active", "bool", "true"),
        ],
    ),
    (
        "JobConfig",
        &[
            ("ID", "uuid", "new_id()"),
            ("JobID", "int4", ""),
            ("OrganizationID", "uuid", ""),
            ("DataInSourceConfigID", "uuid", ""),
            ("DataOutSourceConfigID", "uuid", ""),
            ("Payload", "jsonb", ""),
            ("PriorityOverride", "int4", ""),
            ("Continuous", "bool", "false"),
            ("WaitInSeconds", "int4", "60"),
            ("MaxInstances", "int4", "1"),
            ("AutoStart", "bool", "false"),
            ("Active", "bool", "true"),
            ("LastJobStart", "timestamptz", ""),
            ("TimeoutInSeconds", "int4", "null"),
            ("MaxAttempts", "int4", "1"),
            ("RetryDelaySeconds", "int4", ""),
            ("OnRunnerLoss", "text", "'retry'"),
        ],
    ),
    (
        "JobSchedule",
        &[
            ("ID", "uuid", "new_id()"),
            ("ConfigID", "uuid", ""),
            ("DaysOfWeek", "text", "null"),
            ("TimeOfDay", "time", "null"),
            ("Cron", "text", "null"),
            ("TimeZone", "text", "null"),
            ("MissedRun", "text", "'once'"),
            ("Overlap", "text", "'queue'"),
            ("JitterSeconds", "int4", "0"),
            ("Active", "bool", "true"),
            ("LastRun", "timestamptz", ""),
            ("NextRun", "timestamptz", ""),
        ],
    ),
    (
        "JobHistory",
        &[
            ("ID", "uuid", "new_id()"),
            ("JobID", "int4", ""),
            ("ConfigID", "uuid", ""),
            ("OrganizationID", "uuid", ""),
            ("StatusID", "int4", ""),
            ("ParentJobID", "uuid", ""),
            ("Identifier", "text", ""),
            ("Priority", "int4", ""),
            ("Payload", "jsonb", ""),
            ("NotBefore", "timestamptz", ""),
            ("Attempt", "int4", "0"),
            ("CurrentIteration", "int8", "0"),
            ("ThreadID", "uuid", ""),
            ("PulseDate", "timestamptz", ""),
            ("StartedDate", "timestamptz", ""),
            ("FinishedDate", "timestamptz", ""),
            ("StopReason", "text", ""),
            ("Error", "text", ""),
            ("Result", "jsonb", ""),
            ("Progress", "text", ""),
            ("CreatedDate", "timestamptz", ""),
            ("CreatedBy", "text", ""),
            ("UpdatedDate", "timestamptz", ""),
            ("UpdatedBy", "text", ""),
            ("ScheduleID", "uuid", ""),
            ("DueDate", "timestamptz", ""),
        ],
    ),
    ("Logs", &[("JobHistoryID", "uuid", ""), ("Log", "text", "")]),
    ("LogType", &[("ID", "int4", ""), ("Type", "text", "")]),
    (
        "Runner",
        &[
            ("Host", "text", ""),
            ("PID", "int4", ""),
            ("Version", "text", ""),
            ("State", "text", ""),
            ("Pulse", "timestamptz", ""),
            ("Running", "int4", ""),
            ("Tasks", "int4", ""),
            ("Draining", "bool", "false"),
        ],
    ),
    ("JobHistoryWaiting", &[("ID", "uuid", ""), ("Reason", "text", ""), ("Until", "timestamptz", "")]),
];

#[test]
fn the_tables_have_the_columns_types_and_defaults_of_the_contract() {
    let mut db = TestDb::new();
    for (table, columns) in COLUMNS {
        for (column, kind, default) in *columns {
            let found = db
                .rows(&format!(
                    "select udt_name, coalesce(column_default, 'null') from information_schema.columns
                     where table_schema = 'vm' and table_name = lower('{table}') and column_name = lower('{column}')"
                ))
                .unwrap();
            let [found] = &*found else { panic!("there is no {table}.{column}") };
            assert_eq!(found[0], *kind, "{table}.{column}");
            assert!(found[1].contains(default), "{table}.{column} defaults to {}, not {default}", found[1]);
        }
    }
}

#[test]
fn after_a_migration_names_work_without_the_schema_and_in_any_case() {
    let mut db = TestDb::empty();
    db.exec(&format!("alter database {} reset search_path", db.name));
    let _daemon = Daemon::start(&db);
    let said = psql(
        &db,
        "select count(*) from jobhistory; select count(*) from VM.JOBHISTORY; select count(*) from JobHistoryWaiting;",
    );
    assert_eq!((said.out.as_str(), said.err.as_str()), ("0\n0\n0\n", ""));
}

#[test]
fn two_daemons_that_migrate_an_empty_database_at_once_both_become_ready() {
    let mut db = TestDb::empty();
    let spawn = || {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
        Daemon::spawn(command)
    };
    let (one, other) = (spawn(), spawn());
    one.wait_line("rosterd is ready");
    other.wait_line("rosterd is ready");
    assert_eq!(db.text("select count(*) from vm.Runner"), "2");
}

#[test]
fn a_daemon_older_than_the_schema_exits_69_with_a_sentence() {
    let mut db = TestDb::new();
    db.exec(
        "insert into vm._sqlx_migrations (version, description, success, checksum, execution_time)
         values (20991231000000, 'from the future', true, '', 0)",
    );
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait_exit().code(), Some(69));
    daemon.wait_line("it is at version 20991231000000, this rosterd knows versions up to");
    daemon.wait_line("run the newer rosterd");
}

#[test]
fn a_misspelt_key_in_the_configuration_exits_64_and_names_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rosterd.toml");
    std::fs::write(&file, "[engine]\nworkerz = 3\n").unwrap();
    let mut command = Command::new(own_jobs_binary());
    command.arg("run").arg("--config").arg(&file);
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait_exit().code(), Some(64));
    let line = daemon.wait_line("engine.workerz");
    assert!(line.contains("engine.workers"), "{line}");
}

#[test]
fn the_statuses_are_those_of_the_contract() {
    let mut db = TestDb::new();
    let statuses = db.text("select string_agg(ID || ' ' || Status, ', ' order by ID) from JobStatus");
    assert_eq!(statuses, "-1 CANCEL, 0 UNKNOWN, 1 PENDING, 2 IN PROGRESS, 3 COMPLETED, 4 ERROR, 5 CANCELED");
}

#[test]
fn the_sources_and_types_of_the_seed_system_are_there() {
    let mut db = TestDb::new();
    for (source, kind) in [
        ("JIRA", "TicketEngine"),
        ("Nexpose", "Scanner"),
        ("Qualys", "Scanner"),
        ("AWS", "Cloud"),
        ("Azure", "Cloud"),
        ("Dome9", "CISBench"),
        ("Aqua", "ImageScanner"),
    ] {
        let found = db.text(&format!(
            "select t.Type from Source s join SourceType t on t.ID = s.SourceTypeID where s.Source = '{source}'"
        ));
        assert_eq!(found, kind, "{source}");
    }
}

#[test]
fn ids_sort_in_the_order_of_their_inserts() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let rows: Vec<String> = (0..50).map(|_| db.insert(&config, "{}")).collect();
    assert!(rows.is_sorted());
    assert_eq!(db.text("select count(*) from JobHistory where substr(ID::text, 15, 1) = '7'"), "50");
}

#[test]
fn every_constraint_has_a_name_that_says_what_it_holds() {
    let mut db = TestDb::new();
    let nameless = db
        .rows(
            "select conname from pg_constraint where connamespace = 'vm'::regnamespace
               and contype in ('c', 'u', 'f') and conname !~ '_(is|has|exists|belongs|names|never|are)(_|$)'",
        )
        .unwrap();
    assert!(nameless.is_empty(), "{nameless:?}");
}

#[test]
fn every_table_and_view_says_what_it_is_for() {
    let mut db = TestDb::new();
    let silent = db
        .rows(
            "select relname from pg_class where relnamespace = 'vm'::regnamespace and relkind in ('r', 'v')
               and relname <> '_sqlx_migrations' and obj_description(oid, 'pg_class') is null",
        )
        .unwrap();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn every_column_of_vulnerability_management_says_what_it_means() {
    let mut db = TestDb::new();
    let silent = db
        .rows(
            "select c.relname || '.' || a.attname
             from pg_class c
             join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             where c.oid = any ('{Device,Detection,DetectionStatus,VulnerabilityInfo,VulnerabilityReference,Ticket,TicketHistory,
               TicketChange,TicketEngineState,TicketStatus,TicketRescan,Ignore,IgnoreType,AssetGroup,AssignmentRules,CategoryRule,
               Tag,TagKey,TagMap,OperatingSystemType,ScanSummary}'::regclass[])
               and col_description(c.oid, a.attnum) is null",
        )
        .unwrap();
    assert!(silent.is_empty(), "{silent:?}");
    // In every key the organization comes first.
    let others = db
        .rows(
            "select c.relname from pg_index i join pg_class c on c.oid = i.indrelid
             join pg_attribute a on a.attrelid = c.oid and a.attname = 'organizationid'
             where c.relnamespace = 'vm'::regnamespace and i.indisunique and i.indkey[0] <> a.attnum
               and c.relname in ('device', 'detection', 'vulnerabilityinfo', 'vulnerabilityreference', 'ticket', 'tickethistory',
                 'ticketchange', 'ticketenginestate', 'ticketrescan', 'ignore', 'assetgroup', 'assignmentrules', 'categoryrule',
                 'tag', 'tagkey', 'tagmap', 'scansummary')",
        )
        .unwrap();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn what_an_insert_leaves_out_is_filled_from_its_configuration_and_job() {
    let mut db = TestDb::new();
    db.exec("insert into Job (Struct, Priority) values ('NoopJob', 4)");
    let plain = db.config("NoopJob", "Payload", r#"'{"x": 1}'"#);
    let urgent = db.config("NoopJob", "PriorityOverride", "-3");
    for (config, wanted) in [(plain, r#"4 {"x": 1} t t"#), (urgent, "-3 {} t t")] {
        let filled = db.text(&format!(
            "insert into JobHistory (ConfigID, StatusID) values ('{config}', 1) returning
               concat_ws(' ', Priority, Payload, NotBefore = CreatedDate, OrganizationID = (select ID from Organization))"
        ));
        assert_eq!(filled, wanted);
    }
}
