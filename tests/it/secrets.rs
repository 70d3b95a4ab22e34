//! Sealed secrets, from the command that seals them to the API that gets them opened.

use crate::support::secrets::{Api, CANARY, Key, Source, daemon, rosterd};
use crate::support::{Daemon, SOON, TestDb, own_jobs_binary, server};
use rosterd::postgres::connect::Speaker;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    // Port and path of the Address are not bound, and it opens again where it belongs.
    db.exec(&format!(
        "update SourceConfig set Address = 'HTTP://127.1:{}/x', Port = null where ID = '{}'",
        api.port, source.id
    ));
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);

    // The same row, under the same ID, in another organization.
    db.exec(
        "begin;
         lock table JobConfig in exclusive mode; -- a claim locks its configuration first, too
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

#[test]
fn a_sealed_client_secret_does_not_follow_an_edited_token_url_nor_its_token_an_edited_address() {
    let mut db = TestDb::new();
    let (api, thief, key) = (Api::start(), Api::start(), Key::new());
    let tokens = TokenServer::start();
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    let token_url = |host: &str, port: u16| format!(r#""http://{host}:{port}/token", "ClientID": "me""#);
    source.paste(&mut db, "TokenUrl", &token_url("127.0.0.2", tokens.port));
    // As it was sealed before TokenUrl was bound: for the Address alone.
    let before = {
        let organization = db.text("select OrganizationID from SourceConfig");
        let args = [
            "secret",
            "seal",
            "--source",
            &source.id,
            "--field",
            "ClientSecret",
            "--public-key",
            &key.public,
            "--organization",
            &organization,
            "--address",
            HERE,
            "--token-url",
            HERE,
        ];
        rosterd(None, &[], &args, CANARY).with(0, &[]).out.trim().to_owned()
    };
    key.seal_into(&mut db, &source, "ClientSecret");
    let _daemon = daemon(&db, &[&key], &[]);
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!((tokens.asked(), api.seen()), (1, vec!["Bearer token".to_owned()]));

    let again = format!("rosterd secret seal --source {} --field ClientSecret --write", source.id);
    source.paste(&mut db, "TokenUrl", &token_url("127.0.0.1", thief.port));
    source.fails(&mut db, "ClientSecret", &["does not open", "host 127.0.0.1 of its TokenUrl", &again]);
    // A TokenUrl of the thief's own, sealed as anybody may.
    let sealed = key.seal(&db, &source.id, "TokenUrl");
    source.paste(&mut db, "TokenUrl", &sealed);
    let (status, _, error) = source.run(&mut db);
    assert!(status == "4" && error.contains("TokenUrl in its AuthInfo is sealed or no text"), "{error}");
    // The token, too, is for the source alone.
    source.paste(&mut db, "TokenUrl", &token_url("127.0.0.2", tokens.port));
    db.exec(&format!("update SourceConfig set Address = 'http://127.0.0.3', Port = {}", thief.port));
    source.fails(&mut db, "ClientSecret", &["does not open", "host 127.0.0.3 of its Address"]);
    db.exec(&format!("update SourceConfig set Address = '{HERE}', Port = {}", api.port));
    assert_eq!(source.run(&mut db).0, "3");

    source.paste(&mut db, "ClientSecret", &before);
    source.fails(
        &mut db,
        "ClientSecret",
        &["does not open", "of its TokenUrl", "the Address and TokenUrl it was", &again],
    );
    assert_eq!((thief.seen().len(), api.seen().len()), (0, 2));
}

#[test]
fn a_secret_sealed_for_https_does_not_open_for_http_on_the_same_host() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let source = Source::new(&mut db, "ACME", "https://127.0.0.1", api.port);
    key.seal_into(&mut db, &source, "Token");
    let _daemon = daemon(&db, &[&key], &[]);
    db.exec(&format!("update SourceConfig set Address = '{HERE}'"));
    source.fails(&mut db, "Token", &["does not open", "host 127.0.0.1 of its Address (http)"]);
    // Moved on purpose it opens.
    let args = ["secret", "rewrap", "--source", &source.id, "--key", &key.path(), "--new-address", HERE];
    db.exec("update SourceConfig set Address = '127.0.0.1'");
    rosterd(Some(&db), &[], &args, "").with(0, &["1 secret sealed anew"]);
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);
}

#[test]
fn a_sealed_password_of_an_sql_job_opens_and_does_not_once_its_address_is_another() {
    let mut db = TestDb::new();
    let key = Key::new();
    let role = format!("{}_sealed", db.name);
    db.exec(&format!("create role {role} login password '{CANARY}'"));
    let folder = server().socket_dir().to_string_lossy().into_owned();
    let (port, name) = (db.options.get_port(), db.name.clone());
    let source = Source::new(&mut db, "ACME", &folder, port);
    db.exec("insert into Job (Struct) values ('SqlJob') on conflict do nothing");
    db.exec("update JobConfig set JobID = (select ID from Job where Struct = 'SqlJob')");
    source.paste(&mut db, "Username", &format!(r#""{role}", "Database": "{name}""#));
    key.seal_into(&mut db, &source, "Password");
    let run = |db: &mut TestDb| {
        let id = db.insert(&source.config, r#"{"statement": "select session_user::text as who"}"#);
        db.wait_for(&format!("select StatusID in (3, 4, 5) from JobHistory where ID = '{id}'"), "t", SOON);
        (db.status(&id), db.column(&id, "Error"), db.column(&id, "Result"))
    };
    let _daemon = daemon(&db, &[&key], &[]);
    let (status, error, result) = run(&mut db);
    assert!(status == "3" && result.contains(&role), "{error} {result}");
    for address in ["127.0.0.1", "/tmp", "localhost"] {
        db.exec(&format!("update SourceConfig set Address = '{address}'"));
        let (status, error, _) = run(&mut db);
        assert!(
            status == "4" && error.contains("Password in its AuthInfo does not open"),
            "{address}: {error}"
        );
        assert!(error.contains(&format!("host {address} of its Address")), "{error}");
    }
    db.exec(&format!("update SourceConfig set Address = '{folder}'"));
    assert_eq!(run(&mut db).0, "3");
    db.exec(&format!("drop role {role}"));
}

/// Gives a token to whoever asks.
struct TokenServer {
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl TokenServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let tokens = Self { port: listener.local_addr().unwrap().port(), asked: Arc::default() };
        let asked = Arc::clone(&tokens.asked);
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut head = String::new();
                let mut lines = BufReader::new(&stream);
                while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).is_ok_and(|n| n > 0) {}
                asked.fetch_add(1, Ordering::SeqCst);
                let body = r#"{"access_token": "token", "token_type": "Bearer"}"#;
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n";
                let _ = write!(&stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        tokens
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
