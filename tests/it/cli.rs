//! The command line, through the real binary.

#![allow(clippy::unwrap_used)]

use crate::support::{Daemon, SOON, TestDb, binary};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// No output may ever hold it.
const CANARY: &str = "c4n4ry-Passw0rd";

/// The command with nothing around it that could tell it of another database.
fn rosterd(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null());
    for name in ["DATABASE_URL", "PGPASSWORD", "PGUSER", "PGDATABASE", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// The database's address with a password that its server does not ask for.
fn url(db: &TestDb) -> String {
    format!("{}&password={CANARY}", db.url())
}

fn on(db: &TestDb, args: &[&str]) -> Done {
    let mut command = rosterd(args);
    command.env("DATABASE_URL", url(db));
    Done::of(command)
}

/// What a command said, and its exit code.
#[derive(Debug)]
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn of(mut command: Command) -> Self {
        Self::from(command.output().unwrap())
    }

    fn from(output: Output) -> Self {
        let done = Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!done.out.contains(CANARY) && !done.err.contains(CANARY), "the password is told: {done:?}");
        assert!(!done.err.contains("panicked"), "{done:?}");
        done
    }

    /// The exit code as expected.
    fn with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Every word is in stdout.
    fn shows(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.out.contains(word), "{word:?} is not in {self:?}");
        }
        self
    }

    /// Every word is in stderr.
    fn complains(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self:?}");
        }
        self
    }
}

fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("rosterd-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

// ---- every command ----

#[test]
fn every_help_text_is_made_of_sentences() {
    let commands: [&[&str]; 26] = [
        &[],
        &["run"],
        &["migrate"],
        &["check-config"],
        &["doctor"],
        &["status"],
        &["psql"],
        &["enqueue"],
        &["cancel"],
        &["rerun"],
        &["schedule"],
        &["schedule", "next"],
        &["schedule", "list"],
        &["source"],
        &["source", "limits"],
        &["secret"],
        &["secret", "keygen"],
        &["secret", "seal"],
        &["secret", "rewrap"],
        &["secret", "status"],
        &["runner"],
        &["runner", "list"],
        &["runner", "drain"],
        &["job"],
        &["job", "list"],
        &["job", "schema"],
    ];
    for command in commands {
        let done = Done::of(rosterd(&[command, &["--help"]].concat())).with(0);
        let about = done.out.lines().next().unwrap_or_default();
        assert!(about.contains(' ') && about.starts_with(char::is_uppercase), "{command:?}: {about:?}");
    }
}

#[test]
fn wrong_usage_ends_with_64() {
    let wrong: [&[&str]; 6] = [
        &["fly"],
        &["cancel"],
        &["cancel", "not-an-id"],
        &["schedule", "next"],
        &["rerun"],
        &["status", "--nope"],
    ];
    for args in wrong {
        Done::of(rosterd(args)).with(64);
    }
    Done::of(rosterd(&["--version"])).with(0).shows(&["rosterd "]);
}

#[test]
fn a_database_that_is_away_ends_one_shot_commands_with_69() {
    let commands: [&[&str]; 9] = [
        &["migrate"],
        &["status"],
        &["doctor"],
        &["cancel", "01890000-0000-7000-8000-000000000000"],
        &["enqueue", "CommandJob"],
        &["rerun", "01890000-0000-7000-8000-000000000000"],
        &["source", "limits"],
        &["runner", "list"],
        &["schedule", "list"],
    ];
    for args in commands {
        let mut command = rosterd(args);
        command.env("DATABASE_URL", format!("postgres://u:{CANARY}@127.0.0.1:1/nowhere"));
        Done::of(command).with(69);
    }
}

#[test]
fn a_database_without_the_schema_is_told_to_run_migrate() {
    let db = TestDb::empty();
    for args in [&["status"][..], &["cancel", "01890000-0000-7000-8000-000000000000"], &["runner", "list"]] {
        on(&db, args).with(69).complains(&["run `rosterd migrate`"]);
    }
}

#[test]
fn a_closed_pipe_is_no_panic_and_no_failure() {
    let db = TestDb::new();
    for args in [&["job", "list"][..], &["status"], &["status", "--json"], &["doctor"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = rosterd(args);
        command.env("DATABASE_URL", url(&db)).stdout(writer).stderr(Stdio::piped());
        Done::from(command.spawn().unwrap().wait_with_output().unwrap()).with(0);
    }
}

#[test]
fn every_listing_is_one_json_document_for_machines() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    db.exec(&format!("insert into JobSchedule (ConfigID, Cron) values ('{config}', '@daily')"));
    for (args, key) in [
        (&["status"][..], "runners"),
        (&["doctor"], "checks"),
        (&["source", "limits"], "sources"),
        (&["runner", "list"], "runners"),
        (&["schedule", "list"], "schedules"),
        (&["schedule", "next", "NoopJob"], "schedules"),
        (&["job", "list"], "jobs"),
    ] {
        let json = on(&db, &[args, &["--json"]].concat()).with(0).json();
        assert!(json[key].is_array(), "{args:?}: {json}");
    }
}

// ---- migrate ----

#[test]
fn migrate_applies_the_migrations_and_then_says_that_it_is_up_to_date() {
    let mut db = TestDb::empty();
    on(&db, &["migrate"]).with(0).shows(&["applied: create jobs", "The schema is at version"]);
    on(&db, &["migrate"]).with(0).shows(&["up to date"]);
    assert_eq!(db.text("select count(*) from vm.JobHistory"), "0");
}

#[test]
fn two_migrations_at_once_both_end_well() {
    let mut db = TestDb::empty();
    let started: Vec<_> = (0..2)
        .map(|_| {
            let mut command = rosterd(&["migrate"]);
            command.env("DATABASE_URL", url(&db)).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let ended: Vec<Done> =
        started.into_iter().map(|child| Done::from(child.wait_with_output().unwrap()).with(0)).collect();
    assert_eq!(ended.iter().filter(|done| done.out.contains("up to date")).count(), 1, "{ended:?}");
    assert_eq!(db.text("select count(*) = count(distinct version) from vm._sqlx_migrations"), "t");
}

#[test]
fn a_newer_schema_is_refused_with_69_and_a_sentence() {
    let mut db = TestDb::new();
    db.exec(
        "insert into vm._sqlx_migrations (version, description, success, checksum, execution_time)
         values (99990101000000, 'from the future', true, '\\x00', 0)",
    );
    for args in [&["migrate"][..], &["status"], &["enqueue", "NoopJob"]] {
        on(&db, args).with(69).complains(&["99990101000000", "run the newer rosterd"]);
    }
    let doctor = on(&db, &["doctor", "--json"]).with(69).json();
    assert_eq!(doctor["verdict"], "fail");
}

// ---- check-config ----

#[test]
fn a_good_configuration_is_fine_without_any_database() {
    let mut command = rosterd(&["check-config"]);
    command.env("DATABASE_URL", format!("postgres://u:{CANARY}@127.0.0.1:1/nowhere"));
    Done::of(command).with(0).shows(&["configuration is fine"]);
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_and_64() {
    let home = folder();
    let file = home.path().join("rosterd.toml");
    write(&file, "[engine]\nworker = 5\npoll_seconds = 0\n", 0o644);
    let mut command = rosterd(&["check-config", "--config", file.to_str().unwrap()]);
    command.env("ROSTERD__HTTP__LISTN", "off");
    Done::of(command).with(64).complains(&[
        "`engine.worker` is not a key, the nearest is `engine.workers`",
        "`engine.poll_seconds` is 0",
        "nearest is `http.listen`",
        "ROSTERD__HTTP__LISTN",
    ]);
}

#[test]
fn every_file_in_commands_d_is_checked() {
    let home = folder();
    let commands = home.path().join("commands.d");
    fs::create_dir(&commands).unwrap();
    fs::set_permissions(&commands, fs::Permissions::from_mode(0o755)).unwrap();
    let file = home.path().join("rosterd.toml");
    write(&file, "", 0o644);
    let check = || Done::of(rosterd(&["check-config", "--config", file.to_str().unwrap()]));

    write(&commands.join("hello.toml"), "program = \"/bin/echo\"\n", 0o644);
    check().with(0).shows(&["1 command usable", "configuration is fine"]);

    write(&commands.join("open.toml"), "program = \"/bin/echo\"\n", 0o666);
    write(&commands.join("relative.toml"), "program = \"echo\"\n", 0o644);
    write(&commands.join("stranger.toml"), "program = \"/bin/echo\"\nuser = \"no-such-user\"\n", 0o644);
    write(&commands.join("two words.toml"), "program = \"/bin/echo\"\n", 0o644);
    write(&commands.join("broken.toml"), "programme = \"/bin/echo\"\n", 0o644);
    write(&commands.join("README"), "read me", 0o644);
    check().with(64).complains(&[
        "open.toml is writable by its group or by everybody",
        "relative.toml: `program` is echo, give an absolute path",
        "no-such-user",
        "two words.toml: \"two words\" is not the name of a command",
        "broken.toml: unknown field `programme`",
        "README is not called NAME.toml",
    ]);
}

#[test]
fn show_prints_every_value_its_place_and_no_secret() {
    let home = folder();
    let file = home.path().join("rosterd.toml");
    write(&file, "[engine]\nworkers = 7\n", 0o644);
    let mut command = rosterd(&["check-config", "--show", "--config", file.to_str().unwrap()]);
    command.env("DATABASE_URL", format!("postgres://svc:{CANARY}@db.example:5433/jobs"));
    Done::of(command).with(0).shows(&[
        "[engine]",
        &format!("workers = 7  # {} line 2", file.display()),
        "url = \"postgres://svc:***@db.example:5433/jobs\"  # environment variable DATABASE_URL",
        "poll_seconds = 1  # built-in default",
        "configuration is fine",
    ]);
}

// ---- doctor, status ----

#[test]
fn doctor_finds_nothing_that_fails_on_a_good_database() {
    let db = TestDb::new();
    let json = on(&db, &["doctor", "--json"]).with(0).json();
    let level = |name: &str| {
        let checks = json["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no {name} in {json}"))["level"].as_str().unwrap().to_owned()
    };
    for name in
        ["server", "primary", "schema", "search_path", "clock", "transactions", "notifications", "jobs"]
    {
        assert_eq!(level(name), "ok", "{name}: {json}");
    }
    assert_eq!(level("durability"), "warn", "the tests' server has fsync off: {json}");
    assert_eq!(level("runners"), "warn", "no daemon runs: {json}");
}

#[test]
fn doctor_names_each_trouble_and_its_remedy() {
    let mut db = TestDb::new();
    let config = db.config("VanishedJob", "", "");
    db.insert(&config, "{}");
    let broken = db.text(&format!(
        "insert into JobSchedule (Name, ConfigID, Cron) values ('broken', '{config}', '@daily') returning ID"
    ));
    db.exec(&format!("update JobSchedule set Error = 'is beyond repair' where ID = '{broken}'"));
    db.exec(&format!(
        "insert into JobSchedule (Name, ConfigID, Cron) values ('tardy', '{config}', '@daily')"
    ));
    db.exec("update JobSchedule set NextRun = now() - interval '5 minutes' where Name = 'tardy'");
    db.exec(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers, Pulse)
         values ('00000000-0000-0000-0000-000000000001', 'ghost', 1, '0', 1, 1, now() - interval '1 hour')",
    );
    db.exec(&format!(
        "insert into Claim (RunnerID, ConfigID, HistoryIDs, Open)
         values ('00000000-0000-0000-0000-000000000001', '{config}', '{{}}', 3)"
    ));
    db.exec(&format!("alter database {} set search_path = public", db.name));
    let done = on(&db, &["doctor"]).with(0).shows(&[
        "VanishedJob (1 row pending)",
        "broken (is beyond repair)",
        "1 schedule should have fired more than a minute ago: tardy",
        "gone: ghost pid 1",
        "3 rows in progress, but the runner is gone",
        "no runner alive: 1 row",
        "JobHistory is not found without `vm.`",
        &format!("alter database \"{}\" set search_path", db.name),
    ]);
    let (warnings, remedies) = (done.out.matches("\nWARN").count(), done.out.matches("\n   ").count());
    assert!(warnings >= 7 && warnings == remedies, "{done:?}");
}

#[test]
fn doctor_ends_with_69_where_something_fails() {
    let db = TestDb::empty();
    on(&db, &["doctor"]).with(69).shows(&["FAIL  schema", "Run `rosterd migrate`."]);
}

#[test]
fn status_tells_what_runs_what_waits_and_that_no_daemon_runs() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    db.insert(&config, "{}");
    let canceled = db.insert(&config, "{}");
    db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{canceled}'"));
    db.exec(&format!(
        "insert into JobSchedule (Name, ConfigID, Cron) values ('nightly', '{config}', '@daily')"
    ));
    db.exec("update JobSchedule set NextRun = now() + interval '1 hour'");
    on(&db, &["status"]).with(0).shows(&[
        "No daemon runs",
        "1 PENDING, 0 IN PROGRESS, 0 CANCEL",
        "no runner alive",
        "nightly",
    ]);
    let json = on(&db, &["status", "--json"]).with(0).json();
    assert_eq!(json["daemon_running"], false);
    assert_eq!(json["live"]["pending"], 1);
    assert_eq!(json["waiting"][0]["reason"], "no runner alive");
    assert_eq!(json["waiting"][0]["rows"], 1);
    assert_eq!(json["finished_last_hour"][0]["job"], "NoopJob");
    assert_eq!(json["finished_last_hour"][0]["canceled"], 1);
    assert_eq!(json["next_due"][0]["name"], "nightly");
}

#[test]
fn status_shows_the_daemon_and_what_it_has_in_progress() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    let json = on(&db, &["status", "--json"]).with(0).json();
    assert_eq!(json["daemon_running"], true);
    assert_eq!(json["runners"][0]["pid"], daemon.pid());
    assert_eq!(json["live"]["in_progress"], 1);
}

// ---- psql ----

#[test]
fn psql_sees_the_tables_without_their_schema_and_passes_its_exit_code_on() {
    let db = TestDb::new();
    let done = on(&db, &["psql", "--", "-XAtc", "select count(*) from JobHistory"]).with(0);
    assert_eq!(done.out, "0\n");
    on(&db, &["psql", "--", "-Xc", "select 1 / 0"]).with(1).complains(&["division by zero"]);
}

#[test]
fn psql_gets_the_password_by_its_environment_and_never_as_an_argument() {
    let db = TestDb::new();
    let mut command = rosterd(&["psql", "--", "-XAt"]);
    command.env("DATABASE_URL", url(&db)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let script = format!(
        "\\! tr '\\000' ' ' < /proc/$PPID/cmdline; echo\n\\! test \"$PGPASSWORD\" = {CANARY} && echo handed over\n"
    );
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    Done::from(child.wait_with_output().unwrap()).with(0).shows(&["-XAt", "handed over"]);
}

#[test]
fn without_a_database_url_commands_start_the_embedded_server_and_stop_it_at_their_end() {
    let home = folder();
    let state = home.path().join("state");
    let state = state.to_str().unwrap();
    Done::of(rosterd(&["migrate", "--state-dir", state])).with(0).shows(&["The schema is at version"]);
    let done = Done::of(rosterd(&["psql", "--state-dir", state, "--", "-XAtc", "select count(*) from Job"]));
    assert_eq!(done.with(0).out, "0\n");
    Done::of(rosterd(&["psql", "--state-dir", state, "--", "-Xc", "nonsense"])).with(1);
    Done::of(rosterd(&["doctor", "--state-dir", state]))
        .with(0)
        .shows(&["ok    binaries", "embedded, rosterd"]);
    assert!(!Path::new(state).join("data/postmaster.pid").exists(), "no server is left behind");
}

// ---- enqueue, cancel, rerun ----

#[test]
fn enqueue_inserts_what_an_operator_would_and_prints_its_id() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "PriorityOverride", "3");
    let id = on(&db, &["enqueue", "noop"]).with(0).out.trim().to_owned();
    assert_eq!(
        db.rows(&format!("select ConfigID, StatusID, Priority, Origin from JobHistory where ID = '{id}'"))
            .unwrap(),
        [[&config, "1", "3", "operator"]]
    );
    let args = ["enqueue", &config, "--payload", r#"{"n": 12345678901234567890}"#, "--priority", "-1"];
    let more = ["--not-before", "2100-01-01T00:00:00+01:00", "--identifier", "ticket 7", "--json"];
    let json = on(&db, &[&args[..], &more].concat()).with(0).json();
    let id = json["id"].as_str().unwrap();
    assert_eq!(
        db.rows(&format!(
            "select Payload ->> 'n', Priority, NotBefore = '2099-12-31 23:00:00+00', Identifier from JobHistory where ID = '{id}'"
        ))
        .unwrap(),
        [["12345678901234567890", "-1", "t", "ticket 7"]]
    );
}

#[test]
fn enqueue_takes_its_payload_from_a_file_and_from_stdin() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let home = folder();
    let file = home.path().join("payload.json");
    write(&file, r#"{"from": "file"}"#, 0o600);
    let payload = format!("@{}", file.display());
    let id = on(&db, &["enqueue", "NoopJob", "--payload", &payload]).with(0).out.trim().to_owned();
    assert_eq!(db.column(&id, "Payload"), r#"{"from": "file"}"#);

    let mut command = rosterd(&["enqueue", "NoopJob", "--payload", "-"]);
    command.env("DATABASE_URL", url(&db)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"from": "stdin"}"#).unwrap();
    let id = Done::from(child.wait_with_output().unwrap()).with(0).out.trim().to_owned();
    assert_eq!(db.column(&id, "Payload"), r#"{"from": "stdin"}"#);
}

#[test]
fn enqueue_refuses_what_sql_refuses_with_the_same_sentence_and_64() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let refused = |args: &[&str]| on(&db, &[&["enqueue"], args].concat()).with(64);
    refused(&["NopJob"]).complains(&["there is no job `NopJob`, the nearest is `NoopJob`"]);
    refused(&["CommandJob"]).complains(&["not in the table Job yet", "rosterd run"]);
    refused(&["01890000-0000-7000-8000-000000000000"]).complains(&["does not exist", "Choose one of"]);
    refused(&["NoopJob", "--payload", "{"]).complains(&["--payload is not JSON"]);
    refused(&["NoopJob", "--payload", "[]"]).complains(&["must be a JSON object"]);
    refused(&["NoopJob", "--payload", "@/nonexistent"]).complains(&["/nonexistent"]);
    refused(&["NoopJob", "--not-before", "whenever"]).complains(&["whenever"]);
    db.exec(&format!("update JobConfig set Active = false where ID = '{config}'"));
    on(&db, &["enqueue", "NoopJob"]).with(64).complains(&["has 0 active configurations", "Name one"]);
    assert_eq!(db.text("select count(*) from JobHistory"), "0");
}

#[test]
fn enqueue_wait_ends_with_0_for_completed_and_1_for_anything_else() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    db.config("FailJob", "", "");
    let _daemon = Daemon::start(&db);
    on(&db, &["enqueue", "NoopJob", "--wait"]).with(0).shows(&["COMPLETED"]);
    let failed = on(&db, &["enqueue", "FailJob", "--payload", r#"{"fatal": true}"#, "--wait"]).with(1);
    failed.shows(&["ERROR", "the disk is full", r#"Result: {"attempt":1}"#]);
    let json = on(&db, &["enqueue", "FailJob", "--wait", "--json"]).with(1).json();
    assert_eq!(json["status"], "ERROR");
    assert_eq!(json["result"]["attempt"], 1);
}

#[test]
fn enqueue_wait_ends_with_1_when_the_row_is_cancelled_and_says_meanwhile_why_it_waits() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let mut command = rosterd(&["enqueue", "NoopJob", "--wait"]);
    command.env("DATABASE_URL", url(&db));
    let mut waiting = Daemon::spawn(command);
    waiting.wait_line("waits: no runner alive");
    let id = db.text("select ID from JobHistory");
    on(&db, &["cancel", &id]).with(0).shows(&["is canceled"]);
    assert_eq!(waiting.wait_exit().code(), Some(1));
    waiting.wait_line("CANCELED");
}

#[test]
fn cancel_says_what_became_of_each_row() {
    let mut db = TestDb::new();
    let (quick, slow) = (db.config("NoopJob", "", ""), db.config("SleepJob", "", ""));
    let daemon = Daemon::start(&db);
    let finished = db.insert(&quick, "{}");
    db.wait_status(&finished, 3);
    let running = db.insert(&slow, "{}");
    db.wait_status(&running, 2);
    let pending = db.insert(&slow, "{}"); // MaxInstances is 1

    let done = on(&db, &["cancel", &finished, &running, &pending]).with(0);
    done.shows(&[
        &format!("{finished} is already finished (COMPLETED); it was left alone"),
        &format!("{running} is "),
        &format!("{pending} is canceled"),
    ]);
    db.wait_status(&running, 5);
    on(&db, &["cancel", &pending]).with(0).shows(&["already finished (CANCELED)"]);
    let nobody = "01890000-0000-7000-8000-000000000000";
    on(&db, &["cancel", nobody, &finished]).with(64).complains(&[nobody]).shows(&["already finished"]);
    drop(daemon);
}

#[test]
fn rerun_prints_the_id_of_a_fresh_row_and_refuses_a_live_one() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.insert(&config, r#"{"a": 1}"#);
    on(&db, &["rerun", &id]).with(64).complains(&["is PENDING; only a finished row can be run again"]);
    on(&db, &["cancel", &id]).with(0);
    let fresh = on(&db, &["rerun", &id]).with(0).out.trim().to_owned();
    assert_ne!(fresh, id);
    assert_eq!((db.status(&fresh), db.column(&fresh, "Payload")), ("1".to_owned(), r#"{"a": 1}"#.to_owned()));
    on(&db, &["rerun", "01890000-0000-7000-8000-000000000000"]).with(64).complains(&["there is no row"]);
}

// ---- schedule ----

#[test]
fn schedule_next_tries_a_cron_expression_without_a_database_and_keeps_to_the_clock_changes() {
    let next = |cron: &str, after: &str, more: &[&str]| {
        let args = ["schedule", "next", "--cron", cron, "--time-zone", "Europe/Berlin", "--after", after];
        let mut command = rosterd(&[&args[..], more].concat());
        command.env("DATABASE_URL", "postgres://127.0.0.1:1/nowhere");
        Done::of(command)
    };
    let spring = next("30 2 * * *", "2026-03-27T12:00:00Z", &["-n", "3"]).with(0);
    let lines: Vec<Vec<&str>> = spring.out.lines().skip(2).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            ["Sat", "2026-03-28", "02:30:00", "+01:00", "Sat", "2026-03-28", "01:30:00"],
            ["Sun", "2026-03-29", "03:00:00", "+02:00", "Sun", "2026-03-29", "01:00:00"],
            ["Mon", "2026-03-30", "02:30:00", "+02:00", "Mon", "2026-03-30", "00:30:00"],
        ],
        "{spring:?}"
    );
    let autumn = next("30 2 * * *", "2026-10-24T12:00:00Z", &["-n", "2", "--json"]).with(0).json();
    let firings = &autumn["schedules"][0]["firings"];
    assert_eq!(firings[0]["utc"], "2026-10-25T00:30:00Z", "the first of the two 02:30: {autumn}");
    assert_eq!(firings[1]["utc"], "2026-10-26T01:30:00Z", "{autumn}");
    assert_eq!(firings[0]["weekday"], "Sun");
    next("61 * * * *", "2026-10-24T12:00:00Z", &[]).with(64).complains(&["minute"]);
    Done::of(rosterd(&["schedule", "next", "--cron", "@daily", "--time-zone", "Berlin"]))
        .with(64)
        .complains(&["did you mean 'Europe/Berlin'?"]);
}

#[test]
fn schedule_next_finds_a_schedule_by_its_name_its_id_its_configuration_or_its_job() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let id = db.text(&format!(
        "insert into JobSchedule (Name, ConfigID, TimeOfDay, DaysOfWeek, TimeZone)
         values ('nightly', '{config}', '02:30', '1', 'America/New_York') returning ID"
    ));
    for name in ["nightly", &id, &config, "noopjob"] {
        let done = on(&db, &["schedule", "next", name, "-n", "2", "--after", "2026-03-01T12:00:00Z"]).with(0);
        // The clocks skip 02:30 on Sunday the 8th.
        done.shows(&[
            "nightly - NoopJob - 02:30:00 on 1 (America/New_York)",
            "Sun  2026-03-08 03:00:00 -04:00",
            "Sun 2026-03-08 07:00:00",
        ]);
    }
    db.exec("update JobSchedule set Active = false");
    on(&db, &["schedule", "next", "nightly"]).with(0).shows(&["Nothing fires: the schedule is inactive."]);
    on(&db, &["schedule", "next", "weekly"]).with(64).complains(&["`weekly`", "there are nightly"]);
    on(&db, &["schedule", "list"]).with(0).shows(&[
        "nightly",
        "NoopJob",
        "ACME",
        "America/New_York",
        "inactive",
    ]);
}

// ---- source, runner, job ----

#[test]
fn source_limits_shows_delay_concurrency_and_calls_in_flight_but_no_credentials() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    let source = db.text(&format!(
        "insert into SourceConfig (Source, OrganizationID, Address, Port, AuthInfo)
         select 'JIRA', ID, 'https://svc:{CANARY}@jira.example', 8443,
           '{{\"Username\": \"svc\", \"Password\": \"{CANARY}\", \"Delay\": 1500000000, \"Concurrency\": 4}}'
         from Organization returning ID"
    ));
    db.exec(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers)
         values ('00000000-0000-0000-0000-000000000001', 'here', 1, '0', 60, 1)",
    );
    db.exec(&format!("select vm.push_back_source('{source}', 3600, true)"));
    for runner in [1, 2] {
        // The last one's runner is gone: its calls count for nothing.
        db.exec(&format!(
            "insert into SourceShare (SourceConfigID, RunnerID, Slots, InFlight)
             values ('{source}', '00000000-0000-0000-0000-00000000000{runner}', 4, 2)"
        ));
    }
    on(&db, &["source", "limits"]).with(0).shows(&[
        "ACME JIRA",
        "https://svc:***@jira.example :8443",
        "1.5s (1500000000 ns)",
        "2/4",
    ]);
    let json = on(&db, &["source", "limits", "--json"]).with(0).json();
    let source = &json["sources"][0];
    assert_eq!((source["delay_ns"].as_i64(), source["concurrency"].as_i64()), (Some(1_500_000_000), Some(4)));
    assert_eq!(source["in_flight"], 2);
    assert!(source["paused_until"].is_string() && source["next_start"] == source["paused_until"], "{json}");
}

#[test]
fn runner_drain_sets_draining_for_a_host_and_undo_takes_it_back() {
    let mut db = TestDb::new();
    on(&db, &["runner", "list"]).with(0).shows(&["No daemon runs"]);
    on(&db, &["runner", "drain", "alpha"]).with(64).complains(&["no daemon runs at all"]);
    for (n, host) in [(1, "alpha"), (2, "alpha"), (3, "beta")] {
        db.exec(&format!(
            "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers)
             values ('00000000-0000-0000-0000-00000000000{n}', '{host}', {n}, '0', 60, 1)"
        ));
    }
    on(&db, &["runner", "drain", "gamma"])
        .with(64)
        .complains(&["there is no runner on gamma; runners are on alpha, beta"]);
    on(&db, &["runner", "drain", "alpha"]).with(0).shows(&["2 runners told to drain"]);
    assert_eq!(db.text("select string_agg(Host, ',') from Runner where Draining"), "alpha,alpha");
    on(&db, &["runner", "list"]).with(0).shows(&["draining", "beta"]);
    on(&db, &["runner", "drain", "alpha", "--undo"]).with(0).shows(&["2 runners told to claim again"]);
    let one = "00000000-0000-0000-0000-000000000003";
    on(&db, &["runner", "drain", one]).with(0).shows(&["1 runner told to drain"]);
    assert_eq!(db.text("select string_agg(Host, ',') from Runner where Draining"), "beta");
}

#[test]
fn a_daemon_that_is_drained_claims_nothing_until_it_is_told_to_again() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start_with(&db, &[("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.1")]);
    let host = db.text("select Host from Runner");
    on(&db, &["runner", "drain", &host]).with(0);
    db.wait_for("select State from Runner", "draining", SOON);
    let id = db.insert(&config, "{}");
    db.wait_for(&format!("select Reason from JobHistoryWaiting where ID = '{id}'"), "runners draining", SOON);
    on(&db, &["runner", "drain", &host, "--undo"]).with(0);
    db.wait_status(&id, 3);
}

#[test]
fn job_list_and_job_schema_need_no_database() {
    let without = |args: &[&str]| {
        let mut command = rosterd(args);
        command.env("DATABASE_URL", "not a url at all");
        Done::of(command)
    };
    without(&["job", "list"]).with(0).shows(&["CommandJob", "HttpJob", "SqlJob", "command*", "stdin"]);
    let jobs = without(&["job", "list", "--json"]).with(0).json();
    // Three generic ones, ten of vulnerability management.
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 13);
    let schema = without(&["job", "schema", "http"]).with(0).json();
    assert_eq!(schema["additionalProperties"], false);
    without(&["job", "schema", "HtpJob"]).with(64).complains(&["the nearest is `HttpJob`"]);
}
