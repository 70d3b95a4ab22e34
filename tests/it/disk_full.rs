//! Disks that fill up: the database's, and the one the daemon's own lines go to.

use crate::support::{Daemon, SOON, TestDb, own_jobs_binary, server};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A small file system in memory. Unmounted when dropped. One at a time: while it is full no checkpoint of the server
/// succeeds, and without a checkpoint nobody can drop his database.
struct SmallDisk(
    tempfile::TempDir,
    #[allow(dead_code, reason = "held until dropped")] MutexGuard<'static, ()>,
);

impl SmallDisk {
    /// `None`, with a line about it, where nobody may mount.
    #[allow(clippy::print_stderr, reason = "a test that did not run must say so")]
    fn mount(mebibytes: u32) -> Option<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("rosterd-disk-").tempdir_in("/tmp").unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=755"), "tmpfs"])
            .arg(folder.path())
            .output();
        if done.as_ref().is_ok_and(|done| done.status.success()) {
            return Some(Self(folder, one));
        }
        eprintln!(
            "SKIPPED: a full disk was NOT tried, because no small file system can be mounted here: {done:?}"
        );
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// To the last byte, with one file.
    fn fill(&self) -> PathBuf {
        let ballast = self.path().join("ballast");
        let mut writer = std::fs::File::create(&ballast).unwrap();
        while writer.write_all(&[b'x'; 16384]).is_ok() {}
        while writer.write_all(&[b'x'; 512]).is_ok() {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn folder_of(file: &Path) -> String {
    file.parent().unwrap().display().to_string()
}

/// A database whose tables are on the small disk; the server's log of writes is not, because a server without that stops.
/// With it the name of its tablespace, to be dropped behind it.
fn database_on(disk: &SmallDisk) -> (TestDb, String, TestDb) {
    let folder = disk.path().join("tables");
    std::fs::create_dir(&folder).unwrap();
    let owner = std::fs::metadata(server().data_dir()).unwrap();
    chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
    let space = format!("small_{}_{}", std::process::id(), folder.metadata().unwrap().dev());
    let mut admin = TestDb::empty();
    admin.exec(&format!("create tablespace {space} location '{}'", folder.display()));
    let db = TestDb::in_tablespace(&space);
    (admin, space, db)
}

/// What a session writes down of the catalog for the next one. A server that recovers from a crash removes it.
fn remove_init_file(folder: &Path) -> usize {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            removed += remove_init_file(&entry.path());
        } else if entry.file_name() == "pg_internal.init" {
            std::fs::remove_file(entry.path()).unwrap();
            removed += 1;
        }
    }
    removed
}

#[test]
fn a_daemon_that_starts_while_a_full_disk_lets_nobody_in_waits_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(30) else { return };
    let (mut admin, space, mut db) = database_on(&disk);
    let config = db.config("NoopJob", "", "");
    assert_eq!(remove_init_file(disk.path()), 1);
    let ballast = disk.fill();
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url());
    let mut daemon = Daemon::spawn(command);
    daemon.wait_line("could not write init file");
    std::fs::remove_file(&ballast).unwrap();
    daemon.wait_line("rosterd is ready");
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
    assert!(daemon.stop().success());
    drop(db);
    admin.exec(&format!("drop tablespace {space}"));
}

#[test]
fn rows_survive_a_full_disk_of_the_database_and_go_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(30) else { return };
    let (mut admin, space, mut db) = database_on(&disk);
    let config = db.config("WriteJob", "MaxInstances", "4");
    let effects = tempfile::tempdir().unwrap();
    let file = effects.path().join("effects");
    // A payload that makes each version of a row take a quarter of a page.
    let long = format!("{}{}", folder_of(&file), "/.".repeat(700));
    let payload = serde_json::json!({ "file": format!("{long}/effects"), "seconds": 0.05 });
    let daemon = Daemon::start(&db);
    let insert = |count: usize| {
        format!(
            "insert into JobHistory (ConfigID, StatusID, Payload) select '{config}', 1, '{payload}' from generate_series(1, {count})"
        )
    };
    db.exec(&insert(200));
    // While the daemon works, somebody else fills the disk.
    let ballast = disk.fill();
    let refused = db.rows(&insert(2000)).expect_err("there is no room for 2,000 rows");
    assert_eq!(
        refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
        Some("53100"),
        "{refused}"
    );
    // Claims and outcomes need room too, sooner or later.
    daemon.wait_line("No space left on device");
    let ended = "select count(*) from JobHistory where StatusID = 3";
    assert_ne!(db.text(ended), "200", "the disk was full before they had all ended");

    std::fs::remove_file(&ballast).unwrap();
    db.wait_for(ended, "200", SOON);
    assert_eq!(db.text("select count(*) from JobHistory"), "200", "the refused INSERT left nothing");
    assert_eq!(db.text("select count(*) from JobHistory where Attempt > 1 or Crashes > 0"), "0");
    let effects = super::rolling_restart::effects(&file);
    assert_eq!(effects.len(), 200);
    assert!(effects.values().all(|times| *times == 1), "{effects:?}");
    db.wait_for("select coalesce(sum(Open), 0) from Claim", "0", SOON);
    drop(daemon);
    drop(db);
    admin.exec(&format!("drop tablespace {space}"));
}

#[test]
fn a_full_disk_under_the_daemons_lines_ends_and_blocks_nothing_and_the_lost_lines_are_counted() {
    let mut db = TestDb::new();
    let config = db.config("TalkJob", "", "");
    let mut command = Command::new(own_jobs_binary());
    // Every write to it fails as on a full disk. A free port is needed, and nobody can read which: take one.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    command.args(["run", "--listen"]).arg(format!("127.0.0.1:{port}")).env("DATABASE_URL", db.url());
    let mut daemon = command.stdin(Stdio::null()).stdout(full()).stderr(full()).spawn().unwrap();
    let id = db.insert(&config, r#"{"lines": 500}"#);
    db.wait_status(&id, 3);
    db.wait_for("select count(*) from Logs where Log like 'line %'", "500", SOON);
    let metrics = super::service::get_at(&format!("127.0.0.1:{port}"), "/metrics");
    let lost = metrics
        .lines()
        .find(|line| line.starts_with("rosterd_log_lines_unwritten_total "))
        .unwrap_or(&metrics);
    let lost: f64 = lost.split(' ').next_back().unwrap().parse().unwrap();
    assert!(lost >= 500.0, "{lost} lines lost");
    assert!(daemon.try_wait().unwrap().is_none(), "it still runs");
    let stop = Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status().unwrap();
    assert!(stop.success());
    let ended = daemon.wait().unwrap();
    assert_eq!(ended.code(), Some(0));
}
