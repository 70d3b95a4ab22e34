//! Two hosts that the real `oscap` evaluates: this one, and one behind a real sshd. The second is this machine under another
//! name, in a UTS namespace of its own.

use super::scanner_lab::Lab;
use super::{Daemon, SOON};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// The second host, as it calls itself.
pub const OTHER: &str = "127.0.0.2";
/// Reaches the same sshd, which does not call itself so.
pub const NOT_OTHER: &str = "127.0.0.3";

/// A data stream with one rule: the file has the line `mended`.
const CONTENT: &str = include_str!("../../data/openscap/one-rule-ds.xml");
const PROFILE: &str = "xccdf_acme_profile_one";

/// See the module.
pub struct OscapLab {
    pub lab: Lab,
    /// Content, keys, and what the hosts look at.
    aside: tempfile::TempDir,
    sshd: Option<(Child, u16)>,
}

impl OscapLab {
    /// Evaluates this host; `None`, with a word why, where oscap is not installed.
    pub fn here() -> Option<Self> {
        if !Path::new("/usr/bin/oscap").exists() {
            eprintln!("SKIPPED: /usr/bin/oscap is missing; apt-get install openscap-scanner");
            return None;
        }
        let aside = tempfile::tempdir().unwrap();
        let this = Self { lab: Lab::new(), aside, sshd: None };
        std::fs::create_dir(this.aside("content")).unwrap();
        let content = CONTENT.replace("/LOOKED-AT", &this.aside("looked-at").display().to_string());
        std::fs::write(this.aside("content/ds.xml"), content).unwrap();
        std::fs::write(this.aside("looked-at"), "broken\n").unwrap();
        // The real one, which says that it runs, and may be held or made to break off.
        let oscap = format!(
            "#!/bin/sh\necho $$ > {0}/started.new && mv {0}/started.new {0}/started\n\
             while [ -e {0}/hold ]; do sleep 0.02; done\n\
             if [ -e {0}/half ]; then /usr/bin/oscap \"$@\"; code=$?; truncate -s 3000 \"$6\"; exit $code; fi\n\
             exec /usr/bin/oscap \"$@\"\n",
            this.aside.path().display()
        );
        std::fs::create_dir(this.aside("bin")).unwrap();
        std::fs::write(this.aside("bin/oscap"), oscap).unwrap();
        std::fs::set_permissions(this.aside("bin/oscap"), PermissionsExt::from_mode(0o755)).unwrap();
        Some(this)
    }

    /// Evaluates the second host, over ssh.
    pub fn over_ssh() -> Option<Self> {
        let mut this = Self::here()?;
        if ["/usr/sbin/sshd", "/usr/bin/ssh"].iter().any(|program| !Path::new(program).exists()) {
            eprintln!("SKIPPED: sshd or ssh is missing; apt-get install openssh-server");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: not root, so no second host can be played");
            return None;
        }
        for key in ["host", "other-host", "identity"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(this.aside(key))
                .status();
            assert!(made.unwrap().success());
        }
        std::fs::create_dir_all("/run/sshd").unwrap();
        let port = TcpListener::bind((OTHER, 0)).unwrap().local_addr().unwrap().port();
        let aside = this.aside.path().display();
        let settings = format!(
            "Port {port}\nListenAddress {OTHER}\nListenAddress {NOT_OTHER}\nHostKey {aside}/host\n\
             AuthorizedKeysFile {aside}/identity.pub\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nLogLevel FATAL\n\
             SetEnv PATH={aside}/bin:/usr/bin:/bin\n"
        );
        std::fs::write(this.aside("sshd_config"), settings).unwrap();
        let sshd = Command::new("unshare")
            .args(["--uts", "sh", "-c", "hostname \"$0\" && exec /usr/sbin/sshd -D -e -f \"$1\"", OTHER])
            .arg(this.aside("sshd_config"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        this.sshd = Some((sshd, port));
        this.trust("host");
        let began = Instant::now();
        while TcpStream::connect((OTHER, port)).is_err() {
            assert!(began.elapsed() < SOON, "sshd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Some(this)
    }

    /// The daemon knows this key for both names of the second host from now on.
    pub fn trust(&self, key: &str) {
        let public = std::fs::read_to_string(self.aside(&format!("{key}.pub"))).unwrap();
        let port = self.port();
        let lines = format!("[{OTHER}]:{port} {public}[{NOT_OTHER}]:{port} {public}");
        std::fs::write(self.aside("known_hosts"), lines).unwrap();
    }

    pub fn port(&self) -> u16 {
        self.sshd.as_ref().map_or(22, |(_, port)| *port)
    }

    pub fn aside(&self, name: &str) -> PathBuf {
        self.aside.path().join(name)
    }

    /// `run` of the source, with other fields where `changed` has them.
    pub fn source(&mut self, changed: serde_json::Value) {
        let mut run = serde_json::json!({
            "over": if self.sshd.is_some() { "ssh" } else { "this host" },
            "profile": PROFILE, "content": self.aside("content/ds.xml"), "user": "root", "port": self.port(),
        });
        run.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
        let payload = serde_json::json!({ "run": run });
        self.lab.db.exec(&format!("update SourceConfig set Payload = '{payload}' where Source = 'OpenSCAP'"));
    }

    /// A daemon that may run all of it.
    pub fn daemon(&self, more: &[(&str, &str)]) -> Daemon {
        let text = |name: &str| self.aside(name).display().to_string();
        let (content, oscap, identity, known) =
            (text("content"), text("bin/oscap"), text("identity"), text("known_hosts"));
        let mut env = vec![
            ("ROSTERD__OPENSCAP__CONTENT", content.as_str()),
            ("ROSTERD__OPENSCAP__OSCAP", &oscap),
            ("ROSTERD__OPENSCAP__SSH_IDENTITY_FILE", &identity),
            ("ROSTERD__OPENSCAP__SSH_KNOWN_HOSTS_FILE", &known),
            ("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8"),
        ];
        env.extend(more);
        self.lab.daemon_with(&env)
    }

    /// From now on oscap waits before it begins.
    pub fn hold(&self) {
        std::fs::write(self.aside("hold"), "").unwrap();
    }

    /// It goes on.
    pub fn release(&self) {
        std::fs::remove_file(self.aside("hold")).unwrap();
    }

    /// Waits until oscap has begun, and returns its process.
    pub fn begun(&self) -> String {
        let file = self.aside("started");
        wait_until("oscap begins", || file.exists());
        let pid = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        pid.trim().to_owned()
    }

    /// What lies in the folder of the group, hidden or not.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.lab.path("lab")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for OscapLab {
    fn drop(&mut self) {
        if let Some((sshd, _)) = &mut self.sshd {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
    }
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "waited {SOON:?} until {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
