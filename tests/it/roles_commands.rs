//! The commands of `rosterd` under logins that may not do everything: each works, or says who may and what to do.

use crate::support::secrets::Key;
use crate::support::{Daemon, Login, TestDb, binary, config_of, with_roles};
use std::io::Write;
use std::process::{Command, Stdio};

/// What a command said, and its exit code.
#[derive(Debug)]
struct Done {
    code: i32,
    text: String,
}

fn rosterd_with(input: &str, url: &str, args: &[&str]) -> Done {
    let mut command = Command::new(binary());
    command.args(args).env("DATABASE_URL", url);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    Done { code: said.status.code().unwrap_or(-1), text: text.into_owned() }
}

impl Done {
    /// It works, and these words are in what it says.
    fn works(self, words: &[&str]) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.says(words)
    }

    /// It is refused with a sentence that says what is missing.
    fn refused(self, words: &[&str]) {
        assert_eq!(self.code, 69, "{self:?}");
        assert!(self.text.starts_with("rosterd: this login may not do that: "), "{self:?}");
        self.says(&[&[" needs "], words].concat());
    }

    fn says(self, words: &[&str]) -> String {
        for word in words {
            assert!(self.text.contains(word), "{word:?} is not in {self:?}");
        }
        self.text
    }
}

/// A daemon with a row of A and one of B in progress, and a source and a schedule of each.
struct Scene {
    db: TestDb,
    _daemon: Daemon,
    config: String,
    row: String,
    source: String,
}

impl Scene {
    fn new() -> Self {
        let mut db = with_roles();
        let daemon = Daemon::start(&db);
        let columns = (", MaxInstances", ", 0");
        let config = config_of(&mut db, "A", "SleepJob", columns.0, columns.1);
        let other = config_of(&mut db, "B", "SleepJob", columns.0, columns.1);
        db.exec(
            r#"insert into JobSchedule (ConfigID, Name, Cron) select c.ID, 'nightly ' || o.Code, '0 3 * * *'
                 from JobConfig c join Organization o on o.ID = c.OrganizationID;
               insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
                 select 'JIRA', ID, lower(Code) || '.example',
                   '{"Username": "svc", "Password": "old", "Delay": 1500000000, "Concurrency": 4}' from Organization"#,
        );
        let source = db.text("select ID from SourceConfig where Address = 'a.example'");
        let row = db.insert(&config, r#"{"seconds": 600}"#);
        for row in [&row, &db.insert(&other, r#"{"seconds": 600}"#)] {
            db.wait_status(row, 2);
        }
        Self { db, _daemon: daemon, config, row, source }
    }
}

#[test]
fn an_operator_uses_every_command_or_hears_whose_it_is() {
    let mut scene = Scene::new();
    let login = Login::new(&mut scene.db, "rosterd_operator", &["A"]);
    let run = |args: &[&str]| rosterd_with("", login.url(), args);
    run(&["status"]).works(&["0 PENDING, 1 IN PROGRESS, 0 CANCEL", "nightly A"]);
    let sources = run(&["source", "limits"]).works(&["A JIRA", "1.5s (1500000000 ns)", "0/4"]);
    assert!(!sources.contains("b.example"), "{sources}");
    let schedules = run(&["schedule", "list"]).works(&["nightly A"]);
    assert!(!schedules.contains("nightly B"), "{schedules}");
    run(&["schedule", "next", "nightly A"]).works(&["03:00:00"]);
    run(&["runner", "list"]).works(&["running"]);
    run(&["job", "list"]).works(&["SqlJob"]);
    run(&["enqueue", &scene.config, "--payload", r#"{"seconds": 0.01}"#, "--wait"]).works(&["COMPLETED"]);
    run(&["cancel", &scene.row]).works(&["cancel"]);
    scene.db.wait_status(&scene.row, 5);
    run(&["rerun", &scene.row]).works(&["-"]);
    run(&["psql", "--", "-c", "select count(*) from JobHistory"]).works(&["3"]);
    run(&["migrate"]).works(&["up to date"]);
    let doctor = run(&["doctor"]).works(&[
        "sees the rows of 1 organization",
        "this login may not read AuthInfo",
        "this login sees its own only",
    ]);
    assert!(!doctor.contains("FAIL"), "{doctor}");

    run(&["runner", "drain", "anywhere"]).refused(&["rosterd_owner", "SIGTERM"]);
    run(&["secret", "status"]).refused(&["rosterd_owner", "seal --write"]);
    run(&["secret", "rewrap", "--public-key", &Key::new().public]).refused(&["rosterd_owner"]);
    run(&["migrate", "--roles"]).refused(&["superuser", "CREATEROLE"]);
}

#[test]
fn a_viewer_reads_with_every_command_and_is_told_which_role_writes() {
    let mut scene = Scene::new();
    let login = Login::new(&mut scene.db, "rosterd_viewer", &["A"]);
    let run = |args: &[&str]| rosterd_with("", login.url(), args);
    run(&["status"]).works(&["1 IN PROGRESS", "nightly A"]);
    run(&["source", "limits"]).works(&["A JIRA", "0/4"]);
    run(&["schedule", "next", "nightly A"]).works(&["03:00:00"]);
    run(&["schedule", "list"]).works(&["nightly A"]);
    run(&["runner", "list"]).works(&["running"]);
    run(&["job", "list"]).works(&["SqlJob"]);
    run(&["doctor"]).works(&["sees the rows of 1 organization"]);
    run(&["psql", "--", "-c", "select count(*) from JobHistory"]).works(&["1"]);
    let grant = "grant rosterd_operator to";
    run(&["enqueue", &scene.config]).refused(&["`rosterd enqueue`", grant]);
    run(&["enqueue", "SleepJob"]).refused(&["`rosterd enqueue`", grant]);
    run(&["cancel", &scene.row]).refused(&["`rosterd cancel`", grant]);
    let finished = scene.db.insert(&scene.config, r#"{"seconds": 600}"#);
    scene.db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{finished}'"));
    scene.db.wait_status(&finished, 5);
    run(&["rerun", &finished]).refused(&["`rosterd rerun`", grant]);
    run(&["runner", "drain", "anywhere"]).refused(&["rosterd_owner"]);
    let public = Key::new().public;
    let seal = ["secret", "seal", "--source", &scene.source, "--field", "Password", "--public-key", &public];
    rosterd_with("new", login.url(), &[&seal[..], &["--write"]].concat()).refused(&[grant]);
    assert_eq!(scene.db.status(&scene.row), "2");
}

#[test]
fn a_login_without_a_role_or_an_organization_is_told_what_it_lacks() {
    let mut db = with_roles();
    let stranger = Login::new(&mut db, "pg_monitor", &[]);
    for args in [&["status"][..], &["source", "limits"], &["schedule", "list"], &["runner", "list"]] {
        rosterd_with("", stranger.url(), args).refused(&["rosterd_viewer", "grant"]);
    }
    rosterd_with("", stranger.url(), &["migrate"]).refused(&["owns the tables"]);
    rosterd_with("", stranger.url(), &["run", "--listen", "off"]).refused(&["rosterd_runner"]);
    let said = rosterd_with("", stranger.url(), &["doctor"]);
    assert_eq!(said.code, 69, "{said:?}");
    said.says(&["FAIL  schema", "grant rosterd_viewer to"]);
    let nobody = Login::new(&mut db, "rosterd_operator", &[]);
    rosterd_with("", nobody.url(), &["doctor"]).works(&[
        "WARN  roles",
        "sees no organization",
        "insert into OrganizationMember",
    ]);
}

#[test]
fn an_operator_seals_a_field_of_a_source_and_keeps_the_fields_they_cannot_read() {
    let mut scene = Scene::new();
    let mut login = Login::new(&mut scene.db, "rosterd_operator", &["A"]);
    let key = Key::new();
    let url = login.url().to_owned();
    let seal = |source: &str, more: &[&str]| {
        let args = ["secret", "seal", "--source", source, "--field", "Password", "--public-key", &key.public];
        rosterd_with("new", &url, &[&args[..], more].concat())
    };
    seal(&scene.source, &["--write"]).works(&["Password of source JIRA", &key.id]);
    let rest = "select AuthInfo - 'Password' from SourceConfig where Address = 'a.example'";
    assert_eq!(scene.db.text(rest), r#"{"Delay": 1500000000, "Username": "svc", "Concurrency": 4}"#);
    let sealed = "select AuthInfo -> 'Password' ->> 'Key' from SourceConfig where Address = 'a.example'";
    assert_eq!(scene.db.text(sealed), key.id);

    // Pasted, as it says.
    let printed = seal(&scene.source, &[]).works(&["select vm.seal_source('"]);
    let object = printed.lines().find(|line| line.starts_with('{')).unwrap().to_owned();
    login.exec(&format!("select vm.seal_source('{}', 'Token', '{object}')", scene.source));
    assert_eq!(scene.db.text("select count(*) from SourceConfig where AuthInfo ? 'Token'"), "1");
    // Not of others, not for another address, and nothing but a sealed secret.
    let theirs = scene.db.text("select ID from SourceConfig where Address = 'b.example'");
    assert_eq!(seal(&theirs, &["--write"]).code, 64);
    let put = |source: &str, value: &str, more: &str| {
        format!("select vm.seal_source('{source}', 'Token', '{value}'{more})")
    };
    assert!(login.refusal(&put(&theirs, &object, "")).contains("there is no row"));
    assert!(login.refusal(&put(&scene.source, &object, ", 'c.example'")).contains("another Address by now"));
    assert!(login.refusal(&put(&scene.source, "\"plain\"", "")).contains("not a sealed secret"));
    assert!(login.refusal(&put(&scene.source, "{\"Sealed\": 1}", "")).contains("no whole sealed secret"));
    assert!(login.refusal("select AuthInfo from SourceConfig").starts_with("42501"));
}

#[test]
fn an_operator_seals_a_client_secret_for_a_token_url_they_cannot_read() {
    let mut scene = Scene::new();
    let mut login = Login::new(&mut scene.db, "rosterd_operator", &["A"]);
    let key = Key::new();
    let url = login.url().to_owned();
    scene.db.exec(
        r#"update SourceConfig set AuthInfo = '{"TokenUrl": "https://login.example:8443/not/told?key=canary", "ClientID": "me"}'"#,
    );
    let args =
        ["secret", "seal", "--source", &scene.source, "--field", "ClientSecret", "--public-key", &key.public];
    rosterd_with("new", &url, &[&args[..], &["--write"]].concat())
        .works(&["ClientSecret of source JIRA", &key.id]);
    assert_eq!(scene.db.text("select count(*) from SourceConfig where AuthInfo ? 'ClientSecret'"), "1");
    let ask = |address: &str| {
        format!(
            "select coalesce(vm.token_url_of(ID), 'nothing') from SourceConfig where Address = '{address}'"
        )
    };
    assert_eq!(login.text(&ask("a.example")), "https://login.example:8443");
    let theirs = scene.db.text("select ID from SourceConfig where Address = 'b.example'");
    assert_eq!(login.text(&format!("select coalesce(vm.token_url_of('{theirs}'), 'nothing')")), "nothing");
}
