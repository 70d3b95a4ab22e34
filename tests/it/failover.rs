//! The primary dies with a tail that no standby has, a standby is promoted, and the daemon finds it at the old
//! address. What was lost is lost; nothing is written by a run that belongs to the lost history.

use crate::restart::{own_server, state_folder};
use crate::support::{Daemon, QUICK_LEASE, SHORT_GRACE, SOON, own_jobs_binary};
use rosterd::postgres::embedded::EmbeddedPostgres;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server by the folder of its socket.
struct Server {
    bin: PathBuf,
    socket: PathBuf,
    child: Option<Child>,
}

impl Server {
    fn url(&self) -> String {
        url(&self.socket)
    }

    fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_psql(&self, sql: &str) -> Result<String, String> {
        let mut command = Command::new(self.bin.join("psql"));
        let said = command.args(["-XAtq", "-d", &self.url(), "-c", sql]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        if said.status.success() { Ok(text(said.stdout)) } else { Err(text(said.stderr)) }
    }

    fn wait(&self, sql: &str, wanted: &str) {
        let until = Instant::now() + SOON;
        loop {
            let now = self.psql(sql);
            if now == wanted {
                return;
            }
            assert!(Instant::now() < until, "waited for {wanted:?} from {sql}; it is {now:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}

fn url(socket: &Path) -> String {
    format!("postgres:///rosterd?host={}&user=rosterd&sslmode=disable", socket.display())
}

/// A copy of `primary` that follows it, run by whoever runs the primary.
fn standby_of(primary: &EmbeddedPostgres, state: &Path) -> Server {
    let (data, socket) = (state.join("data"), state.join("socket"));
    let said = Command::new(primary.bin_dir().join("pg_basebackup"))
        .args(["--write-recovery-conf", "--checkpoint=fast", "-d", &primary.url(), "--pgdata"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    std::fs::create_dir(&socket).unwrap();
    let hba = data.join("trust.conf");
    std::fs::write(&hba, "local all all trust\n").unwrap();
    let owner = std::fs::metadata(primary.data_dir()).unwrap();
    let who = format!("{}:{}", owner.uid(), owner.gid());
    assert!(Command::new("chown").args(["-R", &who]).args([&data, &socket]).status().unwrap().success());
    let mut command = Command::new(primary.bin_dir().join("postgres"));
    command.arg("-D").arg(&data).args(["-c", "listen_addresses="]);
    command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
    command.arg("-c").arg(format!("hba_file={}", hba.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let child = command.spawn().unwrap();
    let standby = Server { bin: primary.bin_dir().to_owned(), socket, child: Some(child) };
    let until = Instant::now() + SOON;
    while let Err(error) = standby.try_psql("select 1") {
        assert!(Instant::now() < until, "the standby does not start: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    standby
}

/// The address of the database is this link.
fn point(link: &Path, socket: &Path) {
    let new = link.with_extension("new");
    std::os::unix::fs::symlink(socket, &new).unwrap();
    std::fs::rename(&new, link).unwrap();
}

#[test]
fn after_a_failover_that_lost_a_tail_nothing_of_the_lost_history_is_written_and_work_goes_on() {
    let (old_state, new_state) = (state_folder(), state_folder());
    let primary = own_server(old_state.path());
    let old =
        Server { bin: primary.bin_dir().to_owned(), socket: primary.socket_dir().to_owned(), child: None };
    let link = old_state.path().join("address");
    point(&link, &old.socket);
    let mut command = Command::new(own_jobs_binary());
    command
        .args(["run", "--listen", "off"])
        .env("DATABASE_URL", url(&link))
        .env("RUST_LOG", "info,rosterd=debug");
    command.envs(QUICK_LEASE).envs([SHORT_GRACE]);
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    old.psql(
        "insert into Organization (Code) values ('ACME');
         insert into JobConfig (JobID, OrganizationID, MaxInstances)
           select j.ID, o.ID, 0 from Job j, Organization o where Struct = 'StubbornJob'",
    );
    let insert = |seconds: f64, name: &str| {
        format!(
            "insert into JobHistory (ConfigID, StatusID, Identifier, Payload)
             select ID, 1, '{name}', '{{\"seconds\": {seconds}}}' from JobConfig"
        )
    };
    let standby = standby_of(&primary, new_state.path());
    old.psql(&insert(2.0, "replicated"));
    standby.wait("select count(*) from JobHistory where StatusID = 2", "1");
    // From here on the standby gets nothing more.
    standby.psql("alter system set primary_conninfo = ''");
    standby.psql("select pg_reload_conf()");
    standby.wait("select count(*) from pg_stat_wal_receiver", "0");
    old.psql(&insert(2.0, "lost in progress"));
    old.psql(&insert(0.0, "lost completed"));
    old.wait("select string_agg(StatusID::text, ',' order by ID) from JobHistory", "2,2,3");
    let pids = std::fs::read_to_string(primary.data_dir().join("postmaster.pid")).unwrap();
    assert!(Command::new("kill").args(["-9", pids.lines().next().unwrap()]).status().unwrap().success());
    point(&link, &standby.socket);
    daemon.wait_line("this server is a standby");
    standby.psql("select pg_promote()");
    daemon.wait_line("the database is timeline 2");
    standby.wait(
        "select StatusID || ' in attempt ' || Attempt || ' of ' || Identifier from JobHistory",
        "3 in attempt 2 of replicated",
    );
    assert_eq!(standby.psql("select count(*) from Runner"), "1");
    standby.psql(&insert(0.0, "after"));
    standby.wait("select count(*) from JobHistory where StatusID = 3", "2");
    standby.wait("select coalesce(sum(Open), 0) from Claim", "0");
}
