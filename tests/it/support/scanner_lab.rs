//! An organization with a scanner whose results are files in a folder, a ticket engine, and a configuration of every job of
//! vulnerability management. The files are what OpenSCAP writes, so everything is read by the real connector.

use super::{Daemon, SOON, TestDb, own_jobs_binary};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// The jobs and which sources they have, in and out.
const JOBS: [(&str, &str, &str); 10] = [
    ("AssetSyncJob", "scanner", "scanner"),
    ("VulnSyncJob", "scanner", "scanner"),
    ("TicketingJob", "scanner", "engine"),
    ("TicketSyncJob", "engine", "scanner"),
    ("ExceptionJob", "engine", "scanner"),
    ("RescanQueueJob", "engine", "scanner"),
    ("RescanJob", "scanner", "engine"),
    ("OpenScapRunJob", "scanner", "scanner"),
    ("ScanSyncJob", "scanner", "scanner"),
    ("ScanCloseJob", "scanner", "engine"),
];

/// Lets a daemon call the fake servers, which are on this machine, and once each time.
pub const CALLS_FAKES: [(&str, &str); 2] =
    [("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8"), ("ROSTERD__SOURCES__RETRIES", "0")];

/// The login that the fake servers take.
const LOGIN: &str = r#"{"Username": "svc", "Password": "canary-1"}"#;

/// See the module.
pub struct Lab {
    pub db: TestDb,
    pub folder: tempfile::TempDir,
}

/// What a result file says of one rule: its name, its severity, its result.
pub type Rule<'a> = (&'a str, &'a str, &'a str);

impl Lab {
    /// Of the organization ACME.
    pub fn new() -> Self {
        let mut lab = Self::empty();
        lab.organization("ACME");
        lab
    }

    /// A folder and a database, and nobody who uses them yet.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lab")).unwrap();
        Self { db: TestDb::new(), folder }
    }

    /// One more organization with the same folder.
    pub fn organization(&mut self, code: &str) {
        let address = format!("file://{}", self.folder.path().display());
        self.db.exec(&format!("insert into Organization (Code) values ('{code}')"));
        for (name, source, address) in [("scanner", "OpenSCAP", address.as_str()), ("engine", "Local", "")] {
            self.db.exec(&format!(
                "insert into SourceConfig (Source, OrganizationID, Address, Payload)
                 select '{source}', ID, '{address}', '{{}}' from Organization where Code = '{code}' -- {name}"
            ));
        }
        for (job, input, output) in JOBS {
            let source = |name: &str| {
                let source = if name == "scanner" { "OpenSCAP" } else { "Local" };
                format!(
                    "(select s.ID from SourceConfig s where s.OrganizationID = o.ID and s.Source = '{source}')"
                )
            };
            self.db.exec(&format!(
                "insert into Job (Struct) values ('{job}') on conflict do nothing;
                 insert into JobConfig (JobID, OrganizationID, DataInSourceConfigID, DataOutSourceConfigID, MaxInstances)
                 select j.ID, o.ID, {}, {}, 0 from Job j, Organization o where j.Struct = '{job}' and o.Code = '{code}'",
                source(input),
                source(output),
            ));
        }
    }

    /// Puts another system, at this address, in the place of all sources of a kind.
    pub fn replace(&mut self, old: &str, new: &str, address: &str, payload: &serde_json::Value) {
        self.db.exec(&format!(
            "update SourceConfig set Source = '{new}', Address = '{address}', AuthInfo = '{LOGIN}', Payload = '{payload}'
             where Source = '{old}'"
        ));
    }

    /// `SourceConfig.ID` of one more scanner of ACME, like the one there is, and with a configuration of every job too.
    pub fn another_scanner(&mut self, address: &str) -> String {
        let first = self.db.text("select ID from SourceConfig where Source not in ('Local', 'JIRA')");
        let second = self.db.text(&format!(
            "insert into SourceConfig (Source, OrganizationID, Address, AuthInfo, Payload)
             select Source, OrganizationID, '{address}', AuthInfo, Payload from SourceConfig where ID = '{first}' returning ID"
        ));
        self.db.exec(&format!(
            "insert into JobConfig (JobID, OrganizationID, DataInSourceConfigID, DataOutSourceConfigID, MaxInstances)
             select JobID, OrganizationID, case DataInSourceConfigID when '{first}' then '{second}' else DataInSourceConfigID end,
               case DataOutSourceConfigID when '{first}' then '{second}' else DataOutSourceConfigID end, MaxInstances
             from JobConfig"
        ));
        second
    }

    /// `JobConfig.ID` of a job with this source as its in or out.
    pub fn config_with(&mut self, source: &str, job: &str) -> String {
        self.db.text(&format!(
            "select c.ID from JobConfig c join Job j on j.ID = c.JobID
             where j.Struct = '{job}' and '{source}' in (c.DataInSourceConfigID, c.DataOutSourceConfigID)"
        ))
    }

    /// `JobConfig.ID` of a job of an organization.
    pub fn config(&mut self, code: &str, job: &str) -> String {
        self.db.text(&format!(
            "select c.ID from JobConfig c join Job j on j.ID = c.JobID join Organization o on o.ID = c.OrganizationID
             where j.Struct = '{job}' and o.Code = '{code}'"
        ))
    }

    /// A daemon that may read the folder.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    /// A daemon that calls the fake servers.
    pub fn calling_daemon(&self, env: &[(&str, &str)]) -> Daemon {
        self.daemon_with(&[&CALLS_FAKES, env].concat())
    }

    pub fn daemon_with(&self, env: &[(&str, &str)]) -> Daemon {
        let mut command = Command::new(own_jobs_binary());
        command
            .args(["run", "--listen", "off"])
            .env("DATABASE_URL", self.db.url())
            .env("ROSTERD__SOURCES__FOLDERS", self.folder.path())
            .envs(env.iter().copied());
        let daemon = Daemon::spawn(command);
        daemon.wait_line("rosterd is ready");
        daemon
    }

    /// Runs a job of ACME to its end and returns its Result; it must complete.
    pub fn run(&mut self, job: &str, payload: &str) -> serde_json::Value {
        self.run_for("ACME", job, payload)
    }

    pub fn run_for(&mut self, code: &str, job: &str, payload: &str) -> serde_json::Value {
        let config = self.config(code, job);
        self.run_config(&config, payload)
    }

    pub fn run_config(&mut self, config: &str, payload: &str) -> serde_json::Value {
        let id = self.db.insert(config, payload);
        self.db.wait_for(
            &format!("select concat_ws(' ', StatusID, Error) from JobHistory where ID = '{id}'"),
            "3",
            SOON,
        );
        serde_json::from_str(&self.db.column(&id, "Result")).unwrap()
    }

    /// Puts a row on the queue.
    pub fn start(&mut self, code: &str, job: &str, payload: &str) -> String {
        let config = self.config(code, job);
        self.db.insert(&config, payload)
    }

    /// Waits for its end as ERROR and returns Error.
    pub fn fails(&mut self, job: &str, payload: &str) -> String {
        let id = self.start("ACME", job, payload);
        self.db.wait_status(&id, 4);
        self.db.column(&id, "Error")
    }

    /// Has these jobs of ACME begin anew each second, as `RescanQueueJob` and others do at their usual
    /// settings each minute.
    pub fn continuously(&mut self, jobs: &[&str]) {
        for job in jobs {
            let config = self.config("ACME", job);
            self.db.exec(&format!(
                "update JobConfig set Continuous = true, AutoStart = true, WaitInSeconds = 1, MaxInstances = 1 where ID = '{config}'"
            ));
        }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Writes what OpenSCAP found at a host. `minute` is that of its end, by the scanner's clock.
    pub fn result(&self, file: &str, host: &str, ip: &str, minute: u32, rules: &[Rule<'_>]) {
        self.write(file, &result_document(host, ip, minute, rules));
    }

    /// Under its name at once, so that no half of it is read.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let hidden = path.with_file_name(format!(".{}", path.file_name().unwrap().to_string_lossy()));
        std::fs::write(&hidden, text).unwrap();
        std::fs::rename(hidden, path).unwrap();
    }
}

/// An XCCDF 1.2 document.
pub fn result_document(host: &str, ip: &str, minute: u32, rules: &[Rule<'_>]) -> String {
    let (mut benchmark, mut results) = (String::new(), String::new());
    for (rule, severity, result) in rules {
        write!(
            benchmark,
            "<Rule id=\"xccdf_acme_rule_{rule}\" severity=\"{severity}\"><title>{rule} of the host</title>\
             <description>What {rule} is about</description><fixtext>Mend {rule}</fixtext></Rule>"
        )
        .unwrap();
        write!(
            results,
            "<rule-result idref=\"xccdf_acme_rule_{rule}\" severity=\"{severity}\"><result>{result}</result></rule-result>"
        )
        .unwrap();
    }
    let time = format!("2026-11-01T{:02}:{:02}:00+00:00", minute / 60, minute % 60);
    format!(
        "<?xml version=\"1.0\"?>\n<Benchmark xmlns=\"http://checklists.nist.gov/xccdf/1.2\" id=\"xccdf_acme_benchmark\">\
         <title>ACME</title>{benchmark}<TestResult id=\"xccdf_acme_testresult_1\" start-time=\"{time}\" end-time=\"{time}\">\
         <target>{host}</target><target-address>{ip}</target-address>{results}</TestResult></Benchmark>"
    )
}
