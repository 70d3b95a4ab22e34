//! Keys made and secrets sealed by the real command line, and an HTTP server that says which credentials arrived.

use super::{Daemon, TestDb, binary};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A secret that no output may ever hold.
pub const CANARY: &str = "c4n4ry/Sealed+Secr3t";

/// What a command said, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// `rosterd` with these arguments and this standard input, on no database unless one is given. Whatever it says is
/// searched for the canary.
pub fn rosterd(db: Option<&TestDb>, env: &[(&str, &str)], args: &[&str], input: &str) -> Said {
    let mut command = command(db, env, args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that needs no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let said =
        Said { code: done.status.code().unwrap_or(-1), out: text(done.stdout), err: text(done.stderr) };
    assert!(!said.out.contains(CANARY) && !said.err.contains(CANARY), "the secret is told: {said:?}");
    assert!(!said.err.contains("panicked"), "{said:?}");
    said
}

/// The same, not started yet.
pub fn command(db: Option<&TestDb>, env: &[(&str, &str)], args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args);
    for name in ["DATABASE_URL", "CREDENTIALS_DIRECTORY", "RUST_LOG"] {
        command.env_remove(name);
    }
    let nowhere = "postgres://u@127.0.0.1:1/nowhere".to_owned();
    command.env("DATABASE_URL", db.map_or(nowhere, TestDb::url)).envs(env.iter().copied());
    command
}

impl Said {
    /// With this exit code, and these words on stdout or stderr.
    pub fn with(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "{word:?} is not in {self:?}");
        }
        self
    }
}

/// A key that `rosterd secret keygen` made.
pub struct Key {
    folder: TempDir,
    pub public: String,
    pub id: String,
}

impl Key {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret.key");
        let said =
            rosterd(None, &[], &["secret", "keygen", "--out", file.to_str().unwrap()], "").with(0, &[]);
        let word = |label: &str| {
            let line = said.out.lines().find(|line| line.starts_with(label)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        Self { public: word("Public key:"), id: word("Key id:"), folder }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("secret.key")
    }

    pub fn path(&self) -> String {
        self.file().to_str().unwrap().to_owned()
    }

    /// The canary, sealed for this source and field as the database has them.
    pub fn seal(&self, db: &TestDb, source: &str, field: &str) -> String {
        let args = ["secret", "seal", "--source", source, "--field", field, "--public-key", &self.public];
        rosterd(Some(db), &[], &args, &format!("{CANARY}\n")).with(0, &[]).out.trim().to_owned()
    }

    /// The same, pasted into that field.
    pub fn seal_into(&self, db: &mut TestDb, source: &Source, field: &str) {
        let sealed = self.seal(db, &source.id, field);
        source.paste(db, field, &sealed);
    }
}

/// A daemon that has these keys, one after the other, and may call this machine.
pub fn daemon(db: &TestDb, keys: &[&Key], more: &[(&str, &str)]) -> Daemon {
    let files: Vec<String> = keys.iter().map(|key| key.path()).collect();
    let files = files.join(",");
    let env = [
        ("ROSTERD__SECRETS__KEYS", files.as_str()),
        ("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8,::1/128"),
    ];
    Daemon::start_with(db, &[&env, more].concat())
}

/// A source in this organization (made if need be), and a JobConfig of `HttpJob` that uses it.
pub struct Source {
    pub id: String,
    pub config: String,
}

impl Source {
    pub fn new(db: &mut TestDb, organization: &str, address: &str, port: u16) -> Self {
        let id = db.text("select vm.new_id()");
        Self::with_id(db, &id, organization, address, port)
    }

    pub fn with_id(db: &mut TestDb, id: &str, organization: &str, address: &str, port: u16) -> Self {
        db.exec(&format!(
            "insert into Organization (Code) values ('{organization}') on conflict do nothing;
             insert into Job (Struct) values ('HttpJob') on conflict do nothing;
             insert into SourceConfig (ID, Source, OrganizationID, Address, Port)
             select '{id}', 'HTTP', ID, '{address}', {port} from Organization where Code = '{organization}'"
        ));
        let config = db.text(&format!(
            "insert into JobConfig (JobID, OrganizationID, DataInSourceConfigID, Payload, MaxAttempts, RetryDelaySeconds)
             select j.ID, s.OrganizationID, s.ID, '{{\"path\": \"/\"}}', 5, 1
             from Job j, SourceConfig s where j.Struct = 'HttpJob' and s.ID = '{id}' returning ID"
        ));
        Self { id: id.to_owned(), config }
    }

    /// Pastes a value into a field of its AuthInfo, as an operator does.
    pub fn paste(&self, db: &mut TestDb, field: &str, json: &str) {
        db.exec(&format!(
            "update SourceConfig set AuthInfo = AuthInfo || '{{\"{field}\": {json}}}' where ID = '{}'",
            self.id
        ));
    }

    /// Runs its job once, and tells `StatusID`, Attempt and Error.
    pub fn run(&self, db: &mut TestDb) -> (String, String, String) {
        let id = db.insert(&self.config, r#"{"path": "/"}"#);
        db.wait_for(
            &format!("select StatusID in (3, 4, 5) from JobHistory where ID = '{id}'"),
            "t",
            super::SOON,
        );
        (db.status(&id), db.column(&id, "Attempt"), db.column(&id, "Error"))
    }

    /// Its job must end as an error at once, with a sentence that names the source, the field and these words.
    pub fn fails(&self, db: &mut TestDb, field: &str, words: &[&str]) {
        let (status, attempt, error) = self.run(db);
        assert_eq!((status.as_str(), attempt.as_str()), ("4", "1"), "{error}");
        assert!(
            error.starts_with(&format!("source HTTP ({}): {field} in its AuthInfo ", self.id)),
            "{error}"
        );
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
        assert!(!error.contains(CANARY), "{error}");
    }
}

/// An HTTP server that keeps the `Authorization` of every request and answers with the whole request.
pub struct Api {
    pub port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Api {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Self { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
        let seen = Arc::clone(&api.seen);
        // It ends with the process; a request is answered and its connection closed.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut head = String::new();
                let mut lines = BufReader::new(&stream);
                while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).is_ok_and(|n| n > 0) {}
                let authorization = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
                });
                seen.lock().unwrap().push(authorization.unwrap_or_default());
                let length = head.len();
                let _ = write!(
                    &stream,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{head}"
                );
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = (&stream).read_to_end(&mut Vec::new());
            }
        });
        api
    }

    /// What arrived so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}
