//! Sealed secrets, from the command that seals them to the API that gets them opened.

use crate::support::secrets::{Api, CANARY, Key, Source, daemon, rosterd};
use crate::support::{Daemon, TestDb, own_jobs_binary};
use rosterd::postgres::connect::Speaker;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const HERE: &str = "http://127.0.0.1";

/// Everything the database holds, as text.
fn all_rows(db: &mut TestDb) -> String {
    db.text(
        "select string_agg(query_to_xml(format('select * from vm.%I', table_name), true, true, '')::text, '')
         from information_schema.tables where table_schema = 'vm' and table_type = 'BASE TABLE'",
    )
}

#[test]
fn a_sealed_secret_arrives_opened_at_the_api_and_is_seen_nowhere_else() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    key.seal_into(&mut db, &source, "Token");
    let mut daemon =
        daemon(&db, &[&key], &[("ROSTERD__LOG__LEVEL", "trace"), ("ROSTERD__LOG__DATABASE_LEVEL", "trace")]);
    let id = db.insert(&source.config, r#"{"path": "/"}"#);
    db.wait_status(&id, 3);
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);
    // The API sent back what it got; the history keeps that with the secret masked.
    let body = db.text(&format!("select Result ->> 'body' from JobHistory where ID = '{id}'"));
    assert!(body.to_lowercase().contains("authorization: bearer ***"), "{body}");
    let process = |file: &str| std::fs::read(format!("/proc/{}/{file}", daemon.pid())).unwrap();
    for place in ["cmdline", "environ"] {
        assert!(!String::from_utf8_lossy(&process(place)).contains(CANARY), "{place}");
    }
    assert!(daemon.stop().success());
    let said = daemon.output();
    assert!(said.contains("connects to a source") && !said.contains(CANARY));
    let rows = all_rows(&mut db);
    assert!(rows.contains(&source.id) && rows.contains("connects to a source") && !rows.contains(CANARY));
    // Not masked but absent: the key is not written anywhere either.
    let private = std::fs::read_to_string(key.file()).unwrap();
    let private = private.lines().last().unwrap().rsplit(':').next().unwrap().to_owned();
    assert!(!said.contains(&private) && !rows.contains(&private));
}

#[test]
fn a_sealed_secret_that_is_moved_to_another_field_source_organization_or_host_does_not_open() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    let neighbour = Source::new(&mut db, "ACME", HERE, api.port);
    let sealed = key.seal(&db, &source.id, "Token");
    let _daemon = daemon(&db, &[&key], &[]);
    let resealing = format!("rosterd secret seal --source {} --field Key --write", source.id);

    source.paste(&mut db, "Key", &sealed);
    source.fails(&mut db, "Key", &["does not open", "host 127.0.0.1 of its Address", &resealing]);
    db.exec(&format!("update SourceConfig set AuthInfo = AuthInfo - 'Key' where ID = '{}'", source.id));

    neighbour.paste(&mut db, "Token", &sealed);
    neighbour.fails(&mut db, "Token", &["does not open"]);

    source.paste(&mut db, "Token", &sealed);
    db.exec(&format!("update SourceConfig set Address = 'http://localhost' where ID = '{}'", source.id));
    source.fails(&mut db, "Token", &["does not open", "host localhost of its Address"]);
    // Also a row that would start over for ever ends.
    db.exec(&format!("update JobConfig set Continuous = true where ID = '{}'", source.config));
    source.fails(&mut db, "Token", &["does not open"]);
    db.exec(&format!("update JobConfig set Continuous = false where ID = '{}'", source.config));

    assert_eq!(api.seen().len(), 0, "nothing was called");
    // Scheme, port and path of the Address are not bound, and it opens again where it belongs.
    db.exec(&format!(
        "update SourceConfig set Address = 'HTTP://127.1:{}/x', Port = null where ID = '{}'",
        api.port, source.id
    ));
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);

    // The same row, under the same ID, in another organization.
    db.exec(
        "begin;
         alter table JobHistory disable trigger user;
         delete from JobHistory;
         alter table JobHistory enable trigger user;
         delete from JobConfig;
         delete from SourceConfig;
         commit",
    );
    let moved = Source::with_id(&mut db, &source.id, "OTHER", HERE, api.port);
    moved.paste(&mut db, "Token", &sealed);
    moved.fails(&mut db, "Token", &["does not open"]);
    assert_eq!(api.seen().len(), 1);
}

#[test]
fn while_keys_are_rotated_both_open_and_afterwards_the_new_one_is_enough() {
    let mut db = TestDb::new();
    let (api, old, new) = (Api::start(), Key::new(), Key::new());
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    old.seal_into(&mut db, &source, "Token");
    let other = Source::new(&mut db, "ACME", HERE, api.port);
    new.seal_into(&mut db, &other, "Token");
    {
        let _both = daemon(&db, &[&old, &new], &[]);
        assert_eq!((source.run(&mut db).0.as_str(), other.run(&mut db).0.as_str()), ("3", "3"));
    }
    {
        let _new_alone = daemon(&db, &[&new], &[]);
        source.fails(&mut db, "Token", &[&format!("sealed for key {}", old.id), "`secrets.keys`"]);
        assert_eq!(other.run(&mut db).0, "3");
        let args = ["secret", "rewrap", "--public-key", &new.public, "--key", &old.path()];
        rosterd(Some(&db), &[], &args, "")
            .with(0, &["1 source changed: 1 secret sealed anew", &new.id, "1 left as they were"]);
        assert_eq!(source.run(&mut db).0, "3");
        // What is done is not done again.
        rosterd(Some(&db), &[], &args, "").with(0, &["0 sources changed", "2 left as they were"]);
    }
    assert_eq!(api.seen(), vec![format!("Bearer {CANARY}"); 4]);
}

#[test]
fn a_key_file_that_others_may_read_keeps_the_daemon_from_starting_with_64_and_a_sentence() {
    let db = TestDb::new();
    let key = Key::new();
    std::fs::set_permissions(key.file(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let sentence = format!("the key file {} has mode 0644; chmod 0600 makes it usable", key.path());
    let env = [("ROSTERD__SECRETS__KEYS", key.path())];
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url()).envs(env.clone());
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait_exit().code(), Some(64));
    daemon.wait_line(&sentence);
    let env = [("ROSTERD__SECRETS__KEYS", key.path().leak() as &str)];
    rosterd(None, &env, &["check-config"], "").with(64, &[&sentence]);
    std::fs::set_permissions(key.file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    rosterd(None, &env, &["check-config"], "").with(0, &["configuration is fine"]);
}

#[test]
fn the_key_comes_as_a_credential_of_systemd_too() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let credentials = tempfile::tempdir().unwrap();
    std::fs::copy(key.file(), credentials.path().join("secret-key")).unwrap();
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    key.seal_into(&mut db, &source, "Token");
    let _daemon = daemon(&db, &[], &[("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap())]);
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);
}

#[test]
fn a_row_that_runs_alone_has_its_secrets_opened_too() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    key.seal_into(&mut db, &source, "Token");
    let _daemon = daemon(&db, &[&key], &[]);
    let mut runner = db.session(Speaker::Runner);
    runner.exec("begin");
    let id = runner.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) values ('{}', 1) returning ID",
        source.config
    ));
    runner.exec(&format!("update JobHistory set Crashes = 2 where ID = '{id}'"));
    runner.exec("commit");
    db.wait_status(&id, 3);
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);
}

#[test]
fn plaintext_is_warned_of_once_for_each_source_and_refused_where_the_configuration_says_so() {
    let mut db = TestDb::new();
    let api = Api::start();
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    let harmless = Source::new(&mut db, "ACME", HERE, api.port);
    source.paste(&mut db, "Token", &format!(r#""{CANARY}""#));
    harmless.paste(&mut db, "Username", r#""svc", "Delay": 1, "Concurrency": 3, "Password": """#);
    let warning = format!("source HTTP ({}): Token in its AuthInfo is plaintext", source.id);
    {
        let daemon = daemon(&db, &[], &[]);
        for source in [&source, &source, &harmless] {
            assert_eq!(source.run(&mut db).0, "3");
        }
        let line = daemon.wait_line(&warning);
        assert!(line.contains("[WARN]") && line.contains("rosterd secret seal --source"), "{line}");
        assert_eq!(daemon.output().matches("is plaintext").count(), 1, "{}", daemon.output());
        assert!(!daemon.output().contains(CANARY));
    }
    let _strict = daemon(&db, &[], &[("ROSTERD__SECRETS__ALLOW_PLAINTEXT", "false")]);
    source.fails(
        &mut db,
        "Token",
        &["is plaintext", "`secrets.allow_plaintext` is false", "rosterd secret seal"],
    );
    assert_eq!(harmless.run(&mut db).0, "3");
}
