//! Whatever is wrong with a statement is said where it is typed: what, where, and what to do instead. What SQL
//! cannot know ends the row as an error that names the field.

use crate::support::{Daemon, SOON, TestDb, own_jobs_binary, psql};
use std::process::Command;
use std::time::{Duration, Instant};

/// Every statement is refused with this sentence (message, then hint), and no row of `table` is new or changed.
fn refused(db: &mut TestDb, table: &str, cases: &[(String, &str, &str)]) {
    let rows = format!("select coalesce(string_agg(t::text, E'\\n' order by t::text), '') from {table} t");
    let before = db.text(&rows);
    for (sql, message, hint) in cases {
        let shown: String = sql.chars().take(300).collect();
        let said = db.refusal(sql);
        let (said_message, said_hint) = said.split_once(" HINT: ").unwrap_or((&said, ""));
        assert!(said_message.contains(message), "{shown}: {said}");
        assert!(said_hint.contains(hint), "{shown}: {said}");
        assert!(said.len() < 600, "{shown}: a sentence of {} bytes", said.len());
        assert_eq!(db.text(&rows), before, "{shown}");
    }
}

fn insert(columns: &str, values: &str) -> String {
    format!("insert into JobHistory ({columns}) values ({values})")
}

#[test]
fn a_new_row_with_any_other_status_than_1_is_refused() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let with = |status: &str| insert("ConfigID, StatusID", &format!("'{config}', {status}"));
    refused(
        &mut db,
        "JobHistory",
        &[
            (with("7"), "StatusID 7 does not exist", "Insert with StatusID 1"),
            (with("-2"), "StatusID -2 does not exist", "Insert with StatusID 1"),
            (with("0"), "must have StatusID 1 (PENDING), not 0 (UNKNOWN)", "Insert with StatusID 1"),
            (with("2"), "not 2 (IN PROGRESS)", "Insert with StatusID 1"),
            (with("-1"), "not -1 (CANCEL)", "Insert with StatusID 1"),
            (with("3"), "not 3 (COMPLETED)", "Insert with StatusID 1"),
            (with("null"), "StatusID is missing", "Insert with StatusID 1"),
        ],
    );
}

#[test]
fn a_row_must_name_one_known_configuration() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    db.config("TwoJob", "MaxInstances", "1");
    db.config("TwoJob", "MaxInstances", "2");
    db.config("NoneJob", "Active", "false");
    let job = |db: &mut TestDb, name: &str| db.text(&format!("select ID from Job where Struct = '{name}'"));
    let (two, none) = (job(&mut db, "TwoJob"), job(&mut db, "NoneJob"));
    let nobody = "00000000-0000-0000-0000-000000000000";
    refused(
        &mut db,
        "JobHistory",
        &[
            (
                insert("StatusID", "1"),
                "ConfigID is missing",
                "select ID, JobID, OrganizationID from JobConfig",
            ),
            (
                insert("StatusID, ConfigID", &format!("1, '{nobody}'")),
                "JobConfig 00000000-0000-0000-0000-000000000000 does not exist",
                "Choose one of",
            ),
            (
                insert("StatusID, JobID", &format!("1, {two}")),
                "has 2 active configurations",
                "Name one: select ID",
            ),
            (
                insert("StatusID, JobID", &format!("1, {none}")),
                "has 0 active configurations",
                "Name one: select ID",
            ),
            (insert("StatusID, JobID", "1, 987654"), "JobID 987654 has 0 active configurations", "Name one"),
            (
                insert("StatusID, JobID, ConfigID", &format!("1, {two}, '{config}'")),
                "(NoopJob), not to",
                "Leave JobID out",
            ),
            (
                insert("StatusID, ConfigID, OrganizationID", &format!("1, '{config}', '{nobody}'")),
                "belongs to organization",
                "Leave OrganizationID out",
            ),
            (
                insert("StatusID, ConfigID, ParentJobID", &format!("1, '{config}', '{nobody}'")),
                "does not exist",
                "ParentJobID is the ID of another row",
            ),
        ],
    );
    let noop = job(&mut db, "NoopJob");
    db.exec(&insert("StatusID, JobID", &format!("1, {noop}")));
    assert_eq!(db.text("select ConfigID from JobHistory"), config);
}

#[test]
fn a_notbefore_or_priority_out_of_range_is_refused_and_one_long_past_is_due() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let with = |column: &str, value: &str| {
        insert(&format!("ConfigID, StatusID, {column}"), &format!("'{config}', 1, {value}"))
    };
    refused(
        &mut db,
        "JobHistory",
        &[
            (with("NotBefore", "'infinity'"), "NotBefore is infinity", "between the years 1970 and 9999"),
            (with("NotBefore", "'-infinity'"), "NotBefore is -infinity", "between the years 1970 and 9999"),
            (
                with("NotBefore", "'0044-03-15 BC'"),
                "NotBefore is 0044-03-15",
                "between the years 1970 and 9999",
            ),
            (with("NotBefore", "'12026-01-01'"), "NotBefore is 12026", "between the years 1970 and 9999"),
            (with("Priority", "2147483648"), "integer out of range", ""),
            (with("Priority", "'soon'"), "invalid input syntax for type integer", ""),
        ],
    );
    db.exec(&with("NotBefore", "'1970-01-01 00:00:00+00'"));
    db.exec(&with("NotBefore", "'2001-01-01'"));
    db.exec(&with("Priority", "-2147483648"));
    let _daemon = Daemon::start(&db);
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "3", SOON);
}

#[test]
fn a_payload_that_is_no_object_is_refused_wherever_it_is_typed() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let cases = [
        ("[]", "not an array"),
        (r#""x""#, "not a string"),
        ("5", "not a number"),
        ("true", "not a boolean"),
        ("null", "not null"),
    ];
    for (json, sentence) in cases {
        for (table, sql) in [
            ("JobHistory", insert("ConfigID, StatusID, Payload", &format!("'{config}', 1, '{json}'"))),
            ("JobConfig", format!("update JobConfig set Payload = '{json}'")),
            ("Organization", format!("update Organization set Payload = '{json}'")),
        ] {
            refused(
                &mut db,
                table,
                &[(
                    sql,
                    &format!("Payload must be a JSON object such as {{\"key\": \"value\"}}, {sentence}"),
                    "",
                )],
            );
        }
    }
    let id = db.insert(&config, "{}");
    let update = format!("update JobHistory set Payload = '[]' where ID = '{id}'");
    refused(&mut db, "JobHistory", &[(update, "Payload must be a JSON object", "")]);
}

#[test]
fn a_payload_of_1_mib_is_accepted_and_one_byte_more_is_not() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    // {"x": "..."} takes 9 bytes more than the string.
    let of = |bytes: usize| {
        let filler = bytes - 9;
        format!(
            "insert into JobHistory (ConfigID, StatusID, Payload)
             values ('{config}', 1, jsonb_build_object('x', repeat('a', {filler})))"
        )
    };
    refused(
        &mut db,
        "JobHistory",
        &[(of(1_048_577), "Payload is 1048577 bytes, at most 1048576 (1 MiB) are allowed", "")],
    );
    db.exec(&of(1_048_576));
    assert_eq!(db.text("select octet_length(Payload::text) from JobHistory"), "1048576");
}

#[test]
fn json_nested_too_deep_is_refused() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let nested = |levels: usize| {
        // The payload itself is the first level.
        let json = format!(r#"{{"x": {}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        insert("ConfigID, StatusID, Payload", &format!("'{config}', 1, '{json}'"))
    };
    let objects = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    let objects = insert("ConfigID, StatusID, Payload", &format!("'{config}', 1, '{objects}'"));
    refused(
        &mut db,
        "JobHistory",
        &[
            (nested(200), "Payload is nested more than 100 levels deep", ""),
            (objects, "Payload is nested more than 100 levels deep", ""),
            (nested(100_000), "stack depth limit exceeded", ""),
        ],
    );
    db.exec(&nested(90));
}

#[test]
fn a_bomb_of_numbers_is_refused_in_less_than_a_second() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    for number in ["1e131071", "-1e131071", "1e400", "1e-16383"] {
        let bomb = vec![number; 1000].join(",");
        let began = Instant::now();
        let sql = insert("ConfigID, StatusID, Payload", &format!("'{config}', 1, '{{\"n\": [{bomb}]}}'"));
        refused(
            &mut db,
            "JobHistory",
            &[(sql, "holds a number beyond the range of a double", "NoopJob wants an object")],
        );
        assert!(began.elapsed() < Duration::from_secs(1), "{number}: {:?}", began.elapsed());
    }
}

#[test]
fn a_nul_in_a_payload_is_refused() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let sql = insert("ConfigID, StatusID, Payload", &format!(r#"'{config}', 1, '{{"x": "a\u0000b"}}'"#));
    refused(&mut db, "JobHistory", &[(sql, "unsupported Unicode escape sequence", "")]);
}

#[test]
fn a_payload_the_job_does_not_take_ends_the_row_as_an_error_that_names_the_field() {
    let mut db = TestDb::new();
    let sleep = db.config("SleepJob", "MaxInstances", "0");
    let fail = db.config("FailJob", "MaxInstances, MaxAttempts", "0, 5");
    let parent = db.config("ParentJob", "MaxInstances, Continuous", "0, true");
    let _daemon = Daemon::start(&db);
    for (config, payload, wanted) in [
        (&sleep, r#"{"secondz": 1}"#, &["secondz", "seconds"][..]),
        (&sleep, r#"{"seconds": "ten"}"#, &["seconds", "ten", "f64"]),
        (&sleep, r#"{"seconds": null}"#, &["seconds", "null", "f64"]),
        (&fail, r#"{"times": 99999999999}"#, &["times", "99999999999", "i32"]),
        (&fail, r#"{"times": 1.5}"#, &["times", "1.5", "i32"]),
        (&fail, r#"{"fatal": "yes"}"#, &["fatal", "yes", "boolean"]),
        (&parent, r#"{"children": 1}"#, &["child_config"]),
        (&parent, r#"{"child_config": "nonsense", "children": 1}"#, &["child_config"]),
        (
            &parent,
            r#"{"child_config": "00000000-0000-0000-0000-000000000000", "children": -1}"#,
            &["children", "-1"],
        ),
    ] {
        let id = db.insert(config, payload);
        db.wait_status(&id, 4);
        let error = db.column(&id, "Error");
        for part in wanted {
            assert!(error.contains(part), "{payload}: {error:?} does not say {part:?}");
        }
        assert_eq!(db.column(&id, &format!("Attempt || ' ' || (Payload = '{payload}')")), "1 true");
    }
}

#[test]
fn a_row_of_a_job_nobody_registered_stays_pending_and_says_so() {
    let mut db = TestDb::new();
    let unknown = db.config("SentientJob", "", "");
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let (waiting, other) = (db.insert(&unknown, "{}"), db.insert(&config, "{}"));
    db.wait_status(&other, 3);
    assert_eq!(db.status(&waiting), "1");
    assert_eq!(
        db.text("select ID || ' ' || Reason from JobHistoryWaiting"),
        format!("{waiting} no runner knows the job SentientJob")
    );
}

#[test]
fn two_daemons_that_start_at_once_put_one_autostart_row_and_an_operators_second_waits() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "AutoStart", "true");
    let spawn = || {
        let mut command = Command::new(own_jobs_binary());
        command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
        Daemon::spawn(command)
    };
    let (one, other) = (spawn(), spawn());
    one.wait_line("rosterd is ready");
    other.wait_line("rosterd is ready");
    db.wait_for("select string_agg(StatusID::text, ' ') from JobHistory", "2", SOON);
    let second = db.insert(&config, "{}");
    let waiting = db.text("select ID || ' ' || Reason from JobHistoryWaiting");
    assert_eq!(waiting, format!("{second} at MaxInstances 1/1"));
}

#[test]
fn a_configuration_out_of_range_is_refused() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let set = |what: &str| format!("update JobConfig set {what}");
    refused(
        &mut db,
        "JobConfig",
        &[
            (set("WaitInSeconds = -1"), "WaitInSeconds is -1", "Give 0 (taken as 1)"),
            (set("WaitInSeconds = 31536001"), "WaitInSeconds is 31536001", "Give 0 (taken as 1)"),
            (set("WaitInSeconds = 2147483648"), "integer out of range", ""),
            (set("MaxInstances = -1"), "MaxInstances is -1", "Give 0 (no limit)"),
            (set("TimeoutInSeconds = 0"), "TimeoutInSeconds is 0", "or null for no limit"),
            (set("MaxAttempts = 0"), "MaxAttempts is 0", "Give 1 (no retry)"),
            (set("RetryDelaySeconds = -1"), "RetryDelaySeconds is -1", "Give 0 to 86400"),
            (set("OnRunnerLoss = 'panic'"), "OnRunnerLoss is 'panic'", "Give 'retry' or 'error'"),
            (set("JobID = 987654"), "jobconfig_job_exists", ""),
            (
                set("DataInSourceConfigID = gen_random_uuid()"),
                "jobconfig_in_source_is_of_the_same_organization",
                "",
            ),
        ],
    );
    db.exec("update JobConfig set WaitInSeconds = 0, MaxInstances = 0, TimeoutInSeconds = null");
}

#[test]
fn a_delay_or_concurrency_that_is_no_integer_in_range_is_refused() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let with = |auth: &str| {
        format!(
            "insert into SourceConfig (Source, OrganizationID, AuthInfo) select 'JIRA', ID, '{auth}' from Organization"
        )
    };
    let edited = |field: &str, value: &str| {
        format!("update SourceConfig set AuthInfo = jsonb_set(AuthInfo, '{{{field}}}', '{value}')")
    };
    db.exec(&with("{}"));
    let (mut cases, mut edits) = (Vec::new(), Vec::new());
    for delay in [
        "\"5\"",
        "1.5",
        "-1",
        "null",
        "true",
        "[]",
        "{}",
        "9223372036854775808",
        "18446744073709551616",
        "3600000000001",
        "1e300",
    ] {
        edits.push((edited("Delay", delay), "sourceconfig_delay_is_0_to_3600000000000_nanoseconds"));
        cases.push((
            with(&format!(r#"{{"Delay": {delay}}}"#)),
            "SourceConfig JIRA: Delay in AuthInfo is ",
            "whole number of nanoseconds from 0 to 3600000000000",
        ));
    }
    for concurrency in ["\"5\"", "1.5", "-1", "0", "null", "true", "1025", "9223372036854775808"] {
        edits.push((edited("Concurrency", concurrency), "sourceconfig_concurrency_is_1_to_1024"));
        cases.push((
            with(&format!(r#"{{"Concurrency": {concurrency}}}"#)),
            "SourceConfig JIRA: Concurrency in AuthInfo is ",
            "whole number of calls from 1 to 1024",
        ));
    }
    cases.push((with("[]"), "AuthInfo must be a JSON object", "Example: "));
    cases.push((with("null"), "AuthInfo must be a JSON object", "Example: "));
    refused(&mut db, "SourceConfig", &cases);
    edits.push(("update SourceConfig set AuthInfo = '[]'".to_owned(), "sourceconfig_authinfo_is_an_object"));
    for (sql, constraint) in &edits {
        assert_eq!(db.broken_constraint(sql), *constraint, "{sql}");
    }
    assert_eq!(db.text("select AuthInfo from SourceConfig"), "{}");
    for fine in [
        "{}",
        r#"{"Delay": 0, "Concurrency": 1}"#,
        r#"{"Delay": 3600000000000, "Concurrency": 1024}"#,
        r#"{"Delay": 1e9}"#,
    ] {
        db.exec(&with(fine));
    }
}

/// A JSON value by dice: numbers around every edge, and whatever else JSON has.
fn random_json(dice: &mut u64, depth: u32) -> String {
    let mut roll = |sides: u64| {
        *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*dice >> 33) % sides
    };
    match roll(if depth == 0 { 8 } else { 10 }) {
        0 => roll(2000).to_string(),
        1 => (3_600_000_000_000_i64 + i64::try_from(roll(5)).unwrap() - 2).to_string(),
        2 => format!("{}{}", 1 + roll(9), "0".repeat(usize::try_from(roll(40)).unwrap())),
        3 => format!("-{}", roll(100)),
        4 => format!("{}.{}", roll(2000), roll(1000)),
        5 => format!("{}e{}", roll(10), i64::try_from(roll(700)).unwrap() - 330),
        6 => ["null", "true", "false", "\"\"", "\"5\"", "\"1e3\""][usize::try_from(roll(6)).unwrap()]
            .to_owned(),
        7 => format!("\"{}\"", "x".repeat(usize::try_from(roll(300)).unwrap())),
        8 => format!("[{}]", random_json(dice, depth - 1)),
        _ => format!("{{\"Delay\": {}}}", random_json(dice, depth - 1)),
    }
}

#[test]
fn ten_thousand_random_values_of_delay_and_concurrency_are_in_range_or_refused_by_name() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let mut dice = 20_261_122;
    let values: Vec<String> = (0..10_000).map(|_| random_json(&mut dice, 3)).collect();
    db.exec("create table public.Tried (Key text, Value text, Code text, Message text)");
    // One statement tries them all, because a round trip each would take a minute.
    let keys = "case n % 2 when 0 then 'Delay' else 'Concurrency' end";
    db.exec(&format!(
        "do $do$
         declare
           v text; k text; n int := 0; code text; message text;
           org uuid := (select ID from Organization limit 1);
         begin
           foreach v in array $values${{{}}}$values$::text[] loop
             n := n + 1;
             k := {keys};
             code := null; message := null;
             begin
               insert into SourceConfig (Source, OrganizationID, AuthInfo)
               values ('JIRA', org, format('{{%s: %s}}', to_json(k), v)::jsonb);
             exception when others then
               get stacked diagnostics code = returned_sqlstate, message = message_text;
             end;
             insert into public.Tried values (k, v, code, message);
           end loop;
         end $do$",
        values
            .iter()
            .map(|value| format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
            .collect::<Vec<_>>()
            .join(",")
    ));
    assert_eq!(db.text("select count(*) from public.Tried"), "10000");
    let strange = db.rows(
        "select distinct on (Code) Key, Value, Code, Message from public.Tried
         where Code is not null and not (Code = '23514' and Message like 'SourceConfig JIRA: ' || Key || ' in AuthInfo is %')
           and not (Code = '23514' and Message like '%AuthInfo holds a number beyond the range of a double%')",
    );
    assert_eq!(strange.unwrap(), Vec::<Vec<String>>::new());
    let out_of_range = "select count(*) from SourceConfig
        where (AuthInfo ->> 'Delay')::numeric not between 0 and 3600000000000
           or (AuthInfo ->> 'Concurrency')::numeric not between 1 and 1024";
    assert_eq!(db.text(out_of_range), "0");
    let both =
        db.text("select count(*) filter (where Code is null) > 500 and count(Code) > 500 from public.Tried");
    assert_eq!(both, "t", "too many of one kind are no trial");
}

#[test]
fn an_unknown_source_is_refused_with_those_that_are_known() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let with = |source: &str| {
        format!("insert into SourceConfig (Source, OrganizationID) select {source}, ID from Organization")
    };
    refused(
        &mut db,
        "SourceConfig",
        &[
            (with("'Jra'"), "there is no source 'Jra'", "JIRA"),
            (with("''"), "there is no source ''", "JIRA"),
            (with("null"), "there is no source", "JIRA"),
            (
                "insert into SourceConfig (Source, Port, OrganizationID) select 'JIRA', 70000, ID from Organization".to_owned(),
                "Port is 70000",
                "Give 1 to 65535",
            ),
        ],
    );
}

#[test]
fn a_schedule_that_cannot_fire_is_refused() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let with = |columns: &str, values: &str| {
        format!("insert into JobSchedule (ConfigID, {columns}) values ('{config}', {values})")
    };
    let long = format!("'{}'", "1".repeat(300));
    refused(
        &mut db,
        "JobSchedule",
        &[
            (with("Cron", "'30 2 * *'"), "has 4 fields", "Five fields"),
            (with("Cron", "'61 * * * *'"), "minute '61' is out of range; give 0 to 59", "Five fields"),
            (with("Cron", "'0 0 30 2 *'"), "never fires", "Five fields"),
            (
                with("Cron", "'0 0 0 1 1 * 2020'"),
                "its last year has passed; give a later year",
                "Five fields",
            ),
            (with("Cron", "'@reboot'"), "set JobConfig.AutoStart", "Five fields"),
            (with("Cron", "''"), "is empty", "Five fields"),
            (with("Cron", &long), "has 300 bytes, more than 256", "Five fields"),
            (with("TimeOfDay, DaysOfWeek", "'02:30', '8'"), "DaysOfWeek '8'", "Digits 1 (Sunday) to 7"),
            (with("TimeOfDay, DaysOfWeek", "'02:30', '0'"), "DaysOfWeek '0'", "Digits 1 (Sunday) to 7"),
            (with("TimeOfDay, DaysOfWeek", "'02:30', 'abc'"), "DaysOfWeek 'abc'", "Digits 1 (Sunday) to 7"),
            (with("TimeOfDay", "'24:00'"), "TimeOfDay is 24:00:00", "Give a time from 00:00:00 to 23:59:59"),
            (with("TimeOfDay", "'02:30:00.5'"), "TimeOfDay is 02:30:00.5", "without fractions"),
            (with("TimeOfDay", "'25:00'"), "out of range", ""),
            (
                with("TimeOfDay, Cron", "'02:30', '30 2 * * *'"),
                "give either Cron or TimeOfDay",
                "Cron = '30 2 * * 1-5'",
            ),
            (with("DaysOfWeek", "'246'"), "give either Cron or TimeOfDay", "Cron = '30 2 * * 1-5'"),
            (
                with("Cron, DaysOfWeek", "'30 2 * * *', '246'"),
                "DaysOfWeek goes with TimeOfDay",
                "fifth field",
            ),
            (
                with("Cron, TimeZone", "'@daily', 'Mars/Base'"),
                "TimeZone 'Mars/Base' is not a time zone",
                "IANA name",
            ),
            (with("Cron, TimeZone", "'@daily', ''"), "TimeZone '' is not a time zone", "IANA name"),
            (
                with("Cron, MissedRun", "'@daily', 'twice'"),
                "MissedRun is 'twice'",
                "Give 'skip', 'once' or 'all'",
            ),
            (
                with("Cron, Overlap", "'@daily', 'maybe'"),
                "Overlap is 'maybe'",
                "Give 'queue', 'skip' or 'cancel_old'",
            ),
            (with("Cron, JitterSeconds", "'@daily', -1"), "JitterSeconds is -1", "Give 0 to 86400"),
        ],
    );
    refused(
        &mut db,
        "Organization",
        &[
            (
                "update Organization set TimeZone = 'Mars/Base'".to_owned(),
                "TimeZone 'Mars/Base'",
                "IANA name",
            ),
            ("update Organization set TimeZone = ''".to_owned(), "TimeZone ''", "IANA name"),
            ("update Organization set TimeZone = null".to_owned(), "TimeZone NULL", "IANA name"),
        ],
    );
}

#[test]
fn a_zone_the_database_accepts_is_one_the_daemon_can_work_with() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    for zone in ["posix/Europe/Berlin", "posixrules", "localtime", "Factory", "CEST", "+02:00"] {
        let said = db.refusal(&format!(
            "insert into JobSchedule (ConfigID, Cron, TimeZone) values ('{config}', '@daily', '{zone}')"
        ));
        assert!(said.contains("is not a time zone HINT: Use an IANA name"), "{said}");
    }
    db.exec(&format!(
        "insert into JobSchedule (ConfigID, Cron, TimeZone) values ('{config}', '@daily', 'est5edt'), ('{config}', '@daily', 'europe/berlin')"
    ));
    assert_eq!(
        db.text("select string_agg(TimeZone, ' ' order by TimeZone) from JobSchedule"),
        "EST5EDT Europe/Berlin"
    );
    // All others in one go: the trigger looks through all names for each row.
    db.exec(&format!(
        "alter table JobSchedule disable trigger jobschedule_check;
         insert into JobSchedule (ConfigID, Cron, TimeZone) select '{config}', '@daily', name from pg_timezone_names
           where name !~ '^(posix|right)/' and name not in ('posixrules', 'localtime', 'Factory');
         alter table JobSchedule enable trigger jobschedule_check"
    ));
    let _daemon = Daemon::start(&db);
    db.wait_for("select count(*) from JobSchedule where NextRun is null and Error is null", "0", SOON);
    assert_eq!(db.text("select string_agg(Error, E'\n') from JobSchedule"), "");
}

#[test]
fn an_update_to_any_other_status_than_cancel_is_refused_and_says_what_to_do() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, "{}");
    let set = |status: &str| format!("update JobHistory set StatusID = {status} where ID = '{id}'");
    let advice = "set to -1, which cancels it";
    refused(
        &mut db,
        "JobHistory",
        &[
            (set("0"), "from 1 (PENDING) to 0 (UNKNOWN) by hand", advice),
            (set("2"), "to 2 (IN PROGRESS) by hand", advice),
            (set("3"), "to 3 (COMPLETED) by hand", advice),
            (set("4"), "to 4 (ERROR) by hand", advice),
            (set("5"), "to 5 (CANCELED) by hand", "To cancel it set StatusID = -1"),
            (set("99"), "StatusID 99 does not exist", advice),
            (set("null"), "StatusID null does not exist", advice),
        ],
    );
}

#[test]
fn a_statement_of_many_rows_with_a_wrong_one_among_them_writes_none() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let said = psql(
        &db,
        &format!(
            "insert into JobHistory (ConfigID, StatusID) values ('{config}', 1), ('{config}', 7), ('{config}', 1);"
        ),
    );
    assert!(
        said.err.contains("ERROR:  JobHistory: StatusID 7 does not exist\nHINT:  Insert with StatusID 1"),
        "{}",
        said.err
    );
    assert_eq!(db.text("select count(*) from JobHistory"), "0");
}

#[test]
fn the_database_judges_every_cron_expression_as_the_daemon_does() {
    let mut db = TestDb::new();
    let cases = include_str!("../data/cron-cases.txt");
    let mut wrong = Vec::new();
    for line in cases.lines().filter(|line| !line.starts_with("# ")) {
        let (expression, wanted) = line.rsplit_once('\t').unwrap();
        let said =
            db.text(&format!("select coalesce(vm.cron_problem('{}'), 'ok')", expression.replace('\'', "''")));
        let right = if wanted == "ok" { said == "ok" } else { said.contains(wanted) };
        if !right {
            wrong.push(format!("{expression:?}: {said:?}, not {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
