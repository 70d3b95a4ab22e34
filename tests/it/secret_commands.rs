//! `rosterd secret`, through the real binary.

use crate::support::secrets::{Api, CANARY, Key, Source, command, daemon, rosterd};
use crate::support::{SOON, TestDb};
use rosterd::postgres::connect::Speaker;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

const HERE: &str = "http://127.0.0.1";

#[test]
fn keygen_writes_a_file_for_its_owner_alone_and_never_over_another() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let args = ["secret", "keygen", "--out", file.to_str().unwrap()];
    let said = rosterd(None, &[], &args, "").with(0, &["Key id:", "rosterd-public-key-1:"]);
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let private = written.lines().last().unwrap().strip_prefix("rosterd-private-key-1:").unwrap();
    assert!(!said.out.contains(private) && !said.err.contains(private));
    rosterd(None, &[], &args, "").with(64, &["is there already, and is left alone"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    // Nor through a link that leads to nothing yet.
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
    rosterd(None, &[], &["secret", "keygen", "--out", link.to_str().unwrap()], "").with(64, &[]);
    assert!(!folder.path().join("elsewhere").exists());
}

#[test]
fn a_secret_is_sealed_without_a_database_for_a_source_that_is_yet_to_be_inserted() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    db.exec("insert into Organization (Code) values ('ACME')");
    let organization = db.text("select ID from Organization");
    let id = db.text("select vm.new_id()");
    let env = [("ROSTERD__SECRETS__PUBLIC_KEY", key.public.as_str())];
    let seal = |db: Option<&TestDb>, organization: &str, address: &str| {
        let args = [
            "secret",
            "seal",
            "--source",
            &id,
            "--field",
            "Token",
            "--organization",
            organization,
            "--address",
            address,
        ];
        rosterd(db, &env, &args, CANARY)
    };
    let sealed = seal(None, &organization, "http://127.0.0.1:1/x")
        .with(0, &["select vm.seal_source('", "', 'Token', '...')"])
        .out;
    let source = Source::with_id(&mut db, &id, "ACME", HERE, api.port);
    source.paste(&mut db, "Token", sealed.trim());
    let _daemon = daemon(&db, &[&key], &[]);
    assert_eq!(source.run(&mut db).0, "3");
    // The database knows the organization by its Code.
    let sealed = seal(Some(&db), "ACME", "http://127.0.0.1/").with(0, &[]).out;
    source.paste(&mut db, "Token", sealed.trim());
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!(api.seen(), vec![format!("Bearer {CANARY}"); 2]);
    seal(Some(&db), "NOBODY", "127.0.0.1").with(64, &["no Organization with the Code NOBODY"]);
    seal(None, &organization, "https://").with(64, &["its Address"]);
}

#[test]
fn seal_writes_by_itself_where_it_is_told_to_and_leaves_the_other_fields_alone() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let source = Source::new(&mut db, "ACME", HERE, api.port);
    source.paste(&mut db, "Delay", r#"1000, "Username": "svc", "Password": "old""#);
    let args = |field| {
        ["secret", "seal", "--source", &source.id, "--public-key", &key.public, "--write", "--field", field]
    };
    rosterd(Some(&db), &[], &args("Password"), &format!("{CANARY}\r\n"))
        .with(0, &["Password of source HTTP", &key.id]);
    let rest = db.text("select AuthInfo - 'Password' from SourceConfig");
    assert_eq!(rest, r#"{"Delay": 1000, "Username": "svc"}"#);
    let _daemon = daemon(&db, &[&key], &[("ROSTERD__SECRETS__ALLOW_PLAINTEXT", "false")]);
    assert_eq!(source.run(&mut db).0, "3");
    // svc:c4n4ry/Sealed+Secr3t
    assert_eq!(api.seen(), ["Basic c3ZjOmM0bjRyeS9TZWFsZWQrU2VjcjN0"]);
}

#[test]
fn seal_refuses_what_makes_no_sense_with_64_and_never_takes_the_secret_as_an_argument() {
    let mut db = TestDb::new();
    let key = Key::new();
    let source = Source::new(&mut db, "ACME", HERE, 1);
    let with = |more: &[&str], input: &str, words: &[&str]| {
        let args = [&["secret", "seal", "--source", &source.id], more].concat();
        rosterd(Some(&db), &[], &args, input).with(64, words);
    };
    let public = ["--public-key", key.public.as_str()];
    let password = [&public[..], &["--field", "Password"]].concat();
    with(&password, "", &["the secret is empty"]);
    with(&password, "\n", &["the secret is empty"]);
    with(&password, &"x".repeat(65_537), &["at most 65536 bytes"]);
    with(&["--field", "Password"], CANARY, &["no key to seal for"]);
    with(&[&public[..], &["--field", "Delay"]].concat(), "5", &["Delay stays readable"]);
    with(&[&password[..], &["--secret", "x"]].concat(), "", &["unexpected argument"]);
    with(&[&password[..], &["--address", "h"]].concat(), CANARY, &["--organization"]);
    with(&["--field", "Password", "--public-key", "rosterd-public-key-1:AAAA"], CANARY, &["no public key"]);
    let private = std::fs::read_to_string(key.file()).unwrap();
    let private = private.lines().last().unwrap();
    with(&["--field", "Password", "--public-key", private], CANARY, &["that is a private key"]);
    let nobody =
        ["secret", "seal", "--field", "Password", "--source", "01890000-0000-7000-8000-000000000000"];
    rosterd(Some(&db), &[], &[&nobody, &public[..]].concat(), CANARY).with(64, &["there is no SourceConfig"]);
    rosterd(None, &[], &[&nobody, &public[..]].concat(), CANARY).with(69, &[]);
}

#[test]
fn a_secret_that_is_typed_in_is_not_shown() {
    let mut db = TestDb::new();
    let key = Key::new();
    let source = Source::new(&mut db, "ACME", HERE, 1);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let inside = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut terminal = File::from(terminal);
    let args = [
        "secret",
        "seal",
        "--source",
        &source.id,
        "--field",
        "Token",
        "--public-key",
        &key.public,
        "--write",
    ];
    let mut child = command(Some(&db), &[], &args)
        .stdin(inside.try_clone().unwrap())
        .stderr(inside)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = Vec::new();
    let mut chunk = [0; 256];
    while !String::from_utf8_lossy(&shown).contains("): ") {
        let n = terminal.read(&mut chunk).unwrap();
        shown.extend_from_slice(&chunk[..n]);
    }
    // The prompt comes first; wait until the terminal is told to be silent, as no person types that fast.
    let until = std::time::Instant::now() + SOON;
    while rustix::termios::tcgetattr(&terminal)
        .unwrap()
        .local_modes
        .contains(rustix::termios::LocalModes::ECHO)
    {
        assert!(std::time::Instant::now() < until, "the terminal still shows what is typed");
        std::thread::yield_now();
    }
    terminal.write_all(format!("{CANARY}\n").as_bytes()).unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(child.wait().unwrap().success(), "{out}");
    assert!(out.contains("is sealed for key"), "{out}");
    // All that the terminal got, until nobody has it open any more.
    while let Ok(n @ 1..) = terminal.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..n]);
    }
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("Token of source HTTP") && !shown.contains("c4n4ry"), "{shown}");
    assert_eq!(db.text("select AuthInfo -> 'Token' ->> 'Key' from SourceConfig"), key.id);
}

#[test]
fn rewrap_loses_no_edit_that_is_made_at_the_same_moment() {
    let mut db = TestDb::new();
    let (old, new) = (Key::new(), Key::new());
    let source = Source::new(&mut db, "ACME", HERE, 1);
    old.seal_into(&mut db, &source, "Token");
    source.paste(&mut db, "Delay", r#"7, "Ratio": 0.10000000000000000001"#);
    let mut editor = db.session(Speaker::Operator);
    editor.exec("begin");
    editor.exec(r#"update SourceConfig set AuthInfo = AuthInfo || '{"Delay": 5}'"#);
    let path = old.path();
    let args = ["secret", "rewrap", "--public-key", &new.public, "--key", &path];
    std::thread::scope(|scope| {
        let rewrap = scope.spawn(|| rosterd(Some(&db), &[], &args, ""));
        // It has read the source as it was, and waits for the row.
        let mut watcher = db.session(Speaker::Operator);
        let until = std::time::Instant::now() + SOON;
        while watcher.exec("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'") != "1" {
            assert!(std::time::Instant::now() < until, "rewrap never came to the row");
        }
        editor.exec("commit");
        rewrap.join().unwrap().with(0, &["1 source changed: 1 secret sealed anew"]);
    });
    assert_eq!(
        db.text("select concat_ws(' ', AuthInfo -> 'Token' ->> 'Key', AuthInfo -> 'Delay', AuthInfo -> 'Ratio') from SourceConfig"),
        format!("{} 5 0.10000000000000000001", new.id)
    );
}

#[test]
fn rewrap_seals_plaintext_where_it_is_told_to_and_leaves_alone_what_does_not_open() {
    let mut db = TestDb::new();
    let (key, lost) = (Key::new(), Key::new());
    let (plain, closed) = (Source::new(&mut db, "ACME", HERE, 1), Source::new(&mut db, "ACME", HERE, 1));
    plain.paste(&mut db, "Token", &format!(r#""{CANARY}", "Username": "svc", "Delay": 3"#));
    lost.seal_into(&mut db, &closed, "Token");
    closed.paste(&mut db, "Password", &format!(r#""{CANARY}""#));
    let before = db.text(&format!("select AuthInfo -> 'Token' from SourceConfig where ID = '{}'", closed.id));
    let path = key.path();
    let env =
        [("ROSTERD__SECRETS__PUBLIC_KEY", key.public.as_str()), ("ROSTERD__SECRETS__KEYS", path.as_str())];
    rosterd(Some(&db), &env, &["secret", "rewrap", "--source", &plain.id], "")
        .with(0, &["0 sources changed", "1 in plaintext"]);
    rosterd(Some(&db), &env, &["secret", "rewrap", "--seal-plaintext"], "").with(
        64,
        &[
            "2 sources changed: 0 secrets sealed anew",
            "2 that stood in plaintext",
            &lost.id,
            "which is not here",
            "left alone: 1 secret",
        ],
    );
    let auth = db.text(&format!("select AuthInfo from SourceConfig where ID = '{}'", plain.id));
    let auth: Value = serde_json::from_str(&auth).unwrap();
    assert_eq!((&auth["Username"], &auth["Delay"]), (&"svc".into(), &3.into()));
    assert_eq!(auth["Token"]["Key"], key.id);
    let after = db.text(&format!("select AuthInfo -> 'Token' from SourceConfig where ID = '{}'", closed.id));
    assert_eq!(after, before);
    assert_eq!(db.text("select count(*) from SourceConfig where AuthInfo::text like '%c4n4ry%'"), "0");
}

#[test]
fn who_has_the_private_key_moves_a_source_to_another_host() {
    let mut db = TestDb::new();
    let (api, key) = (Api::start(), Key::new());
    let source = Source::new(&mut db, "ACME", "http://old.example", api.port);
    key.seal_into(&mut db, &source, "Token");
    let args = ["secret", "rewrap", "--source", &source.id, "--new-address", HERE];
    rosterd(Some(&db), &[], &args, "").with(64, &["which is not here", "left alone: 1 secret"]);
    assert_eq!(db.text("select Address from SourceConfig"), "http://old.example");
    let path = key.path();
    let env = [("ROSTERD__SECRETS__KEYS", path.as_str())];
    rosterd(Some(&db), &env, &args, "").with(0, &["1 source changed: 1 secret sealed anew"]);
    let _daemon = daemon(&db, &[&key], &[]);
    assert_eq!(source.run(&mut db).0, "3");
    assert_eq!(api.seen(), [format!("Bearer {CANARY}")]);
}

#[test]
fn status_and_doctor_count_secrets_by_key_and_name_those_that_do_not_open() {
    let mut db = TestDb::new();
    let (key, other) = (Key::new(), Key::new());
    let (one, two) = (Source::new(&mut db, "ACME", HERE, 1), Source::new(&mut db, "ACME", HERE, 1));
    let path = key.path();
    let env = [("ROSTERD__SECRETS__KEYS", path.as_str())];
    let doctor = || {
        let said = rosterd(Some(&db), &env, &["doctor", "--json"], "").with(0, &[]);
        let said: Value = serde_json::from_str(&said.out).unwrap();
        let check = said["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"] == "secrets")
            .unwrap()
            .clone();
        (check["level"].as_str().unwrap().to_owned(), check["finding"].as_str().unwrap().to_owned())
    };
    assert_eq!(doctor(), ("ok".to_owned(), "0 secrets sealed, 0 in plaintext".to_owned()));
    let (mine, theirs) = (key.seal(&db, &one.id, "Token"), other.seal(&db, &two.id, "Token"));
    let moved = key.seal(&db, &two.id, "Password");
    one.paste(&mut db, "Token", &mine);
    one.paste(&mut db, "Password", &format!(r#""{CANARY}", "Username": "svc""#));
    two.paste(&mut db, "Token", &theirs);
    two.paste(&mut db, "Key", &moved);
    let said = rosterd(Some(&db), &env, &["secret", "status", "--json"], "").with(0, &[]);
    let said: Value = serde_json::from_str(&said.out).unwrap();
    let mut wanted = [(&key.id, 2, true), (&other.id, 1, false)];
    wanted.sort();
    for (found, (id, secrets, here)) in said["sealed"].as_array().unwrap().iter().zip(wanted) {
        assert_eq!(
            (found["key"].as_str(), found["secrets"].as_i64()),
            (Some(id.as_str()), Some(secrets)),
            "{said}"
        );
        assert_eq!(found["private_key_here"], here, "{said}");
    }
    assert_eq!(said["plaintext"]["secrets"], 1);
    let closed = said["closed"].as_array().unwrap();
    assert!(
        closed.len() == 1
            && closed[0]
                .as_str()
                .unwrap()
                .contains(&format!("({}): Key in its AuthInfo does not open", two.id))
    );
    rosterd(Some(&db), &env, &["secret", "status"], "")
        .with(0, &[&key.id, &other.id, "plaintext", "1 secret does not open"]);
    rosterd(Some(&db), &env, &["doctor"], "")
        .with(0, &["WARN  secrets", "3 secrets sealed", "1 in plaintext", "1 not open"]);
    // Who may not read the keys may count all the same.
    rosterd(Some(&db), &[("ROSTERD__SECRETS__KEYS", "/nowhere")], &["secret", "status"], "")
        .with(0, &["cannot be read", &other.id]);
}

#[test]
fn a_sealed_secret_that_is_not_whole_is_refused_where_it_is_pasted() {
    let mut db = TestDb::new();
    let key = Key::new();
    let source = Source::new(&mut db, "ACME", HERE, 1);
    let sealed = key.seal(&db, &source.id, "Password");
    let object: Value = serde_json::from_str(&sealed).unwrap();
    let with = |field: &str, value: Value| {
        let mut object = object.clone();
        object[field] = value;
        object.to_string()
    };
    let data = object["Data"].as_str().unwrap();
    let not_whole = [
        with("Data", data[1..].into()),
        with("Data", "".into()),
        with("Data", Value::Null),
        with("Data", 5.into()),
        with("Key", "0".into()),
        with("Sealed", 2.into()),
        with("Sealed", "1".into()),
        with("More", 1.into()),
        sealed.replace("Sealed", "sealed"),
        r#"{"Sealed": 1}"#.to_owned(),
    ];
    let update =
        |json: &str| format!("update SourceConfig set AuthInfo = '{{\"Delay\": 1, \"Password\": {json}}}'");
    for json in not_whole {
        let said = db.refusal(&update(&json));
        assert!(
            said.starts_with("SourceConfig HTTP: Password in AuthInfo is no whole sealed secret HINT: Paste"),
            "{json}: {said}"
        );
        assert!(!said.contains(&data[1..]), "{said}");
    }
    let quoted = Value::from(sealed.as_str()).to_string();
    let said = db.refusal(&update(&quoted));
    assert!(
        said.starts_with("SourceConfig HTTP: Password in AuthInfo is a text that holds a sealed secret"),
        "{said}"
    );
    let said = db.refusal(&format!("update SourceConfig set AuthInfo = '{{\"Delay\": {sealed}}}'"));
    assert!(
        said.starts_with("SourceConfig HTTP: Delay in AuthInfo is ") && said.contains("whole number"),
        "{said}"
    );
    for fine in [sealed.as_str(), r#""Sealed""#, r#"{"Nested": {"Sealed": 0}}"#, "null", "[]"] {
        db.exec(&update(fine));
    }
}

#[test]
fn a_client_secret_is_sealed_for_its_token_url_by_whoever_knows_it_and_is_not_written_beside_another() {
    let mut db = TestDb::new();
    let key = Key::new();
    let source = Source::new(&mut db, "ACME", HERE, 1);
    let args = |more: &[&'static str]| {
        let args = ["secret", "seal", "--source", &source.id, "--public-key", &key.public, "--field"];
        [&args.map(str::to_owned)[..], &more.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()].concat()
    };
    let seal = |db: Option<&TestDb>, more: &[&'static str]| {
        let args = args(more);
        rosterd(db, &[], &args.iter().map(String::as_str).collect::<Vec<_>>(), CANARY)
    };
    let id = "00000000-0000-0000-0000-000000000001";
    seal(None, &["ClientSecret", "--organization", id, "--address", "h"]).with(64, &["give --token-url"]);
    let all = [
        "ClientSecret",
        "--organization",
        id,
        "--address",
        "h",
        "--token-url",
        "http://Login.example:8080/t?x=1",
    ];
    seal(None, &all)
        .with(0, &["opens for host h of its Address and host login.example of its TokenUrl (http) alone"]);
    seal(None, &["Token", "--organization", id, "--address", "h"])
        .with(0, &["opens for host h of its Address alone"]);

    source.paste(&mut db, "TokenUrl", r#""https://login.example/t?key=not-told""#);
    seal(Some(&db), &["ClientSecret", "--write"]).with(0, &["and host login.example of its TokenUrl alone"]);
    for (url, said) in [
        (r#""login.example""#, "is no URL"),
        (
            r#"{"Sealed": 1, "Key": "35c8cd6203c99ff0", "Data": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
            "is no URL",
        ),
    ] {
        source.paste(&mut db, "TokenUrl", url);
        seal(Some(&db), &["ClientSecret", "--write"]).with(64, &[said]);
    }
    // Between reading and writing, TokenUrl was changed.
    source.paste(&mut db, "TokenUrl", r#""https://evil.example/t""#);
    let write = |field: &str, sealed_for: &str| {
        format!(
            "select vm.seal_source('{}', '{field}', '{{\"Sealed\": 1, \"Key\": \"35c8cd6203c99ff0\", \"Data\": \"{}\"}}', '{HERE}', '{sealed_for}')",
            source.id,
            "A".repeat(64),
        )
    };
    let said = db.refusal(&write("ClientSecret", "https://login.example"));
    assert!(said.contains("has another TokenUrl by now"), "{said}");
    db.exec(&write("ClientSecret", "https://evil.example"));
    db.exec(&write("Token", ""));
}
