//! The private PostgreSQL, on the real server programs of this machine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and timings are for people"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use rosterd::postgres::embedded::{
    Durability, EmbeddedOptions, EmbeddedPostgres, Search, default_state_dir, find_binaries,
};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

/// A state folder that the server's user can reach.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("rosterd-test-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn options(&self) -> EmbeddedOptions {
        throw_away(self.state())
    }

    fn start(&self) -> EmbeddedPostgres {
        EmbeddedPostgres::start(&self.options()).unwrap()
    }

    /// The postmasters that run on this home's data folder, by their command lines.
    fn postmasters(&self) -> Vec<i32> {
        let data = self.state().join("data").into_os_string().into_string().unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // A backend carries its postmaster's command line until it has named itself, so only the eldest counts. One
        // that has ended since has no parent any more: it was no postmaster, or it is none now.
        let ours: Vec<i32> = pids
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words: Vec<_> = line.split(|byte| *byte == 0).collect();
                words[0].ends_with(b"postgres") && words.contains(&data.as_bytes())
            })
            .collect();
        ours.iter()
            .copied()
            .filter(|pid| parent_of(*pid).is_some_and(|parent| !ours.contains(&parent)))
            .collect()
    }
}

/// A quick server. To test another version than the newest installed, name its folder in `ROSTERD_TEST_BIN_DIR`.
fn throw_away(state: impl Into<PathBuf>) -> EmbeddedOptions {
    let bin_dir = std::env::var_os("ROSTERD_TEST_BIN_DIR").map(PathBuf::from);
    EmbeddedOptions { durability: Durability::ThrowAway, bin_dir, ..EmbeddedOptions::new(state) }
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn pid_file(state: &Path) -> Option<String> {
    fs::read_to_string(state.join("data/postmaster.pid")).ok()
}

fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for an event that has no channel of its own.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what} did not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The `psql` beside the server's programs; not every package brings one, and then another version's will do.
fn client(server: &EmbeddedPostgres) -> Command {
    let beside = server.bin_dir().join("psql");
    Command::new(if beside.is_file() { beside } else { find_binaries(None).unwrap().program("psql") })
}

fn psql(server: &EmbeddedPostgres, statement: &str) -> Output {
    client(server).args(["-XAtqc", statement, &server.url()]).current_dir("/").output().unwrap()
}

fn ask(server: &EmbeddedPostgres, statement: &str) -> String {
    let output = psql(server, statement);
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Another rosterd: this test binary again, as an owner or user of a state folder, until it is killed or let go.
struct Other {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
}

const OTHERS_STATE: &str = "ROSTERD_TEST_STATE_DIR";

impl Other {
    fn begin(command: &mut Command, state: &Path) -> Self {
        let mut process = command
            .args(["--exact", "embedded::another_rosterd", "--nocapture"])
            .env(OTHERS_STATE, state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, stdin, lines }
    }

    fn start(state: &Path) -> (Self, String) {
        let mut other = Self::begin(&mut Command::new(std::env::current_exe().unwrap()), state);
        let line = other.line();
        (other, line)
    }

    /// What it says once its server is ready: `owner <postmaster>` or `user <postmaster>`.
    fn line(&mut self) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the other rosterd ended: {text}");
            if let Some((_, said)) = line.split_once("SAYS ") {
                return said.trim_end().to_owned();
            }
            text += &line;
        }
    }

    fn kill_9(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn let_go(mut self) {
        drop(self.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

/// No test of its own: what [`Other`] runs.
#[test]
fn another_rosterd() {
    let Some(state) = std::env::var_os(OTHERS_STATE) else { return };
    let server = EmbeddedPostgres::start(&throw_away(state)).unwrap();
    println!("SAYS {} {}", if server.is_owner() { "owner" } else { "user" }, server.pid());
    // Ends with our parent at the latest, so that a failed test leaves nothing behind.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.stop().unwrap();
}

#[test]
fn a_second_start_takes_less_than_two_seconds_and_finds_the_data() {
    let home = Home::new();
    let durable = EmbeddedOptions { durability: Durability::Durable, ..home.options() };
    let began = Instant::now();
    let server = EmbeddedPostgres::start(&durable).unwrap();
    let first = began.elapsed();
    assert_eq!(ask(&server, "create table kept (n int); insert into kept values (7); table kept"), "7");
    let began = Instant::now();
    server.stop().unwrap();
    let stop = began.elapsed();

    let began = Instant::now();
    let server = EmbeddedPostgres::start(&durable).unwrap();
    let second = began.elapsed();
    println!("first start {first:?}, stop {stop:?}, second start {second:?}");
    assert_eq!(ask(&server, "table kept"), "7");
    assert!(second < Duration::from_secs(2), "{second:?}");
}

#[test]
fn dropping_the_owner_stops_the_server_cleanly() {
    let home = Home::new();
    let server = home.start();
    let (pid, data, bin_dir) =
        (server.pid(), server.data_dir().to_path_buf(), server.bin_dir().to_path_buf());
    drop(server);
    assert!(!lives(pid));
    assert_eq!(pid_file(&home.state()), None);
    if !bin_dir.join("pg_controldata").is_file() {
        eprintln!("skipped the rest: no pg_controldata in {}", bin_dir.display());
        return;
    }
    let control = Command::new(bin_dir.join("pg_controldata")).env("LC_ALL", "C").arg(data).output().unwrap();
    let text = String::from_utf8(control.stdout).unwrap();
    assert!(
        text.lines().any(|l| l.starts_with("Database cluster state:") && l.ends_with("shut down")),
        "{text}"
    );
}

#[test]
fn the_server_dies_with_an_owner_killed_with_9_and_the_data_is_used_again() {
    let home = Home::new();
    let (other, said) = Other::start(&home.state());
    let orphan: i32 = said.strip_prefix("owner ").unwrap().parse().unwrap();
    assert_eq!(home.postmasters(), [orphan]);
    other.kill_9();
    until("the end of the orphan", || !lives(orphan));
    assert_eq!(pid_file(&home.state()), None, "it stopped cleanly");

    // And now without giving the orphan time to go.
    let (other, said) = Other::start(&home.state());
    let orphan: i32 = said.strip_prefix("owner ").unwrap().parse().unwrap();
    other.kill_9();
    let began = Instant::now();
    let server = home.start();
    println!("start right after kill -9: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(server.is_owner() && !lives(orphan));
    assert_eq!(home.postmasters(), [server.pid()]);
    assert_eq!(ask(&server, "select 1"), "1");
}

#[test]
fn an_owner_killed_with_9_while_it_makes_the_cluster_leaves_nothing_half_made() {
    let home = Home::new();
    let other = Other::begin(&mut Command::new(std::env::current_exe().unwrap()), &home.state());
    let begun = || {
        let entries = fs::read_dir(home.state()).into_iter().flatten().flatten();
        entries.map(|e| e.path()).any(|path| {
            path.file_name().unwrap().to_str().unwrap().starts_with("data.making-")
                && path.join("base").exists()
        })
    };
    until("the beginning of initdb", begun);
    other.kill_9();
    assert!(!home.state().join("data").exists());
    let server = home.start();
    assert_eq!(ask(&server, "select current_database()"), "rosterd");
}

#[test]
fn starting_at_the_same_time_makes_one_owner_and_one_server() {
    let home = Home::new();
    let servers: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| home.start())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert_eq!(servers.iter().filter(|server| server.is_owner()).count(), 1);
    assert_eq!(home.postmasters(), [servers[0].pid()]);
    for server in &servers {
        assert_eq!(ask(server, "select pg_postmaster_start_time() is not null"), "t");
    }
}

#[test]
fn a_second_process_shares_the_server_and_does_not_stop_it() {
    let home = Home::new();
    let mut server = home.start();
    let (other, said) = Other::start(&home.state());
    assert_eq!(said, format!("user {}", server.pid()));
    assert_eq!(home.postmasters(), [server.pid()]);
    other.let_go();
    assert!(server.is_running());
    assert_eq!(ask(&server, "select 1"), "1");
}

#[test]
fn a_user_takes_the_server_over_when_its_owner_is_gone() {
    let home = Home::new();
    let (other, said) = Other::start(&home.state());
    let mut server = home.start();
    assert_eq!(said, format!("owner {}", server.pid()));
    assert!(!server.is_owner());
    assert!(!server.restart_if_dead().unwrap(), "there is nothing to do while the owner lives");
    other.kill_9();
    assert!(server.restart_if_dead().unwrap());
    assert!(server.is_owner() && server.is_running());
    assert_eq!(home.postmasters(), [server.pid()]);
    assert_eq!(ask(&server, "select 1"), "1");
}

#[test]
fn a_postmaster_killed_with_9_is_started_again_though_a_backend_was_busy() {
    let home = Home::new();
    // Durable, because a commit that was not waited for may be lost even without a crash of the machine.
    let durable = EmbeddedOptions { durability: Durability::Durable, ..home.options() };
    let mut server = EmbeddedPostgres::start(&durable).unwrap();
    ask(&server, "create table kept (n int); insert into kept values (7)");
    let busy = "select pg_sleep(3600)";
    let mut client = client(&server)
        .args(["-Xqc", busy, &server.url()])
        .current_dir("/")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the busy backend", || {
        ask(&server, "select count(*) from pg_stat_activity where query = 'select pg_sleep(3600)'") == "1"
    });
    assert!(!server.restart_if_dead().unwrap());
    let killed = server.pid();
    let signalled = Command::new("kill").args(["-9", &killed.to_string()]).status().unwrap();
    assert!(signalled.success());
    until("the notice of the death", || !server.is_running());

    let began = Instant::now();
    assert!(server.restart_if_dead().unwrap());
    println!("restart after kill -9 of the postmaster: {:?}", began.elapsed());
    assert!(server.is_running() && server.pid() != killed);
    assert_eq!(home.postmasters(), [server.pid()]);
    assert_eq!(ask(&server, "table kept"), "7");
    client.wait().unwrap();
}

#[test]
fn an_orphan_that_nobody_told_to_stop_is_gone_before_the_next_server_starts() {
    let home = Home::new();
    let server = home.start();
    let (data, bin_dir) = (server.data_dir().to_path_buf(), server.bin_dir().to_path_buf());
    server.stop().unwrap();
    let owner = fs::metadata(&data).unwrap();
    for pid_file_is_lost in [false, true] {
        // As on macOS after kill -9 of the daemon: no death signal reached it.
        let mut command = Command::new(bin_dir.join("postgres"));
        command.arg("-D").arg(&data).current_dir("/").stderr(Stdio::null());
        command
            .arg("-c")
            .arg(format!("config_file={}", home.state().join("settings/postgresql.conf").display()));
        if is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, owner.uid());
            std::os::unix::process::CommandExt::gid(&mut command, owner.gid());
        }
        let mut orphan = command.spawn().unwrap();
        until("the orphan", || pid_file(&home.state()).is_some_and(|text| text.contains("\nready")));
        if pid_file_is_lost {
            fs::remove_file(data.join("postmaster.pid")).unwrap();
        }
        let server = home.start();
        assert!(orphan.wait().unwrap().success(), "it was stopped cleanly");
        assert_eq!(home.postmasters(), [server.pid()]);
        assert_eq!(ask(&server, "select 1"), "1");
    }
}

#[test]
fn a_state_folder_of_somebody_else_is_refused_with_the_remedy() {
    if is_root() {
        eprintln!("skipped: nothing is closed to root");
        return;
    }
    let text = EmbeddedPostgres::start(&EmbeddedOptions::new("/root/rosterd")).unwrap_err().to_string();
    assert!(text.contains("has no permission") && text.contains("--state-dir"), "{text}");
}

#[test]
fn a_pid_file_that_lies_does_not_keep_the_server_from_starting() {
    let home = Home::new();
    let server = home.start();
    let (data, socket_dir) = (server.data_dir().to_path_buf(), server.socket_dir().to_path_buf());
    let owner = fs::metadata(&data).unwrap();
    server.stop().unwrap();

    // The number is now another program's of the same user.
    let mut command = Command::new("sleep");
    command.arg("3600");
    if is_root() {
        std::os::unix::process::CommandExt::uid(&mut command, owner.uid());
        std::os::unix::process::CommandExt::gid(&mut command, owner.gid());
    }
    let mut bystander = command.spawn().unwrap();
    let lie =
        format!("{}\n{}\n1\n5432\n{}\n\n\nready   \n", bystander.id(), data.display(), socket_dir.display());
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text).unwrap();
        chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    };
    write(data.join("postmaster.pid"), &lie);
    write(socket_dir.join(".s.PGSQL.5432.lock"), &lie);
    let server = home.start();
    assert_eq!(ask(&server, "select 1"), "1");
    server.stop().unwrap();
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was left alone");
    bystander.kill().unwrap();

    // Dead and not reaped: it still has the number.
    write(data.join("postmaster.pid"), &lie);
    assert_eq!(ask(&home.start(), "select 1"), "1");
    bystander.wait().unwrap();

    write(data.join("postmaster.pid"), "");
    assert_eq!(ask(&home.start(), "select 1"), "1");
}

#[test]
fn the_server_is_checksummed_local_and_as_configured() {
    let home = Home::new();
    let mut options = home.options();
    options.extra_settings = vec![("work_mem".into(), "5MB".into())];
    let server = EmbeddedPostgres::start(&options).unwrap();
    for (setting, value) in [
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("password_encryption", "scram-sha-256"),
        ("jit", "off"),
        ("fsync", "off"),
        ("work_mem", "5MB"),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(ask(&server, &format!("show {setting}")), value, "{setting}");
    }
    let methods = "select string_agg(distinct type || ' ' || auth_method, ', ') from pg_hba_file_rules";
    assert_eq!(ask(&server, methods), "local peer, local scram-sha-256");
    assert_eq!(ask(&server, "select count(*) from pg_hba_file_rules where error is not null"), "0");
    assert!(server.log_file().starts_with(home.state().join("log")), "{:?}", server.log_file());
    assert!(server.version().0 >= 15);
}

#[test]
fn started_by_root_the_server_runs_as_an_ordinary_user() {
    if !is_root() {
        eprintln!("skipped: not root");
        return;
    }
    let home = Home::new();
    let server = home.start();
    let process = fs::metadata(format!("/proc/{}", server.pid())).unwrap();
    assert_ne!(process.uid(), 0);
    let data = fs::metadata(server.data_dir()).unwrap();
    assert_eq!((data.uid(), data.mode() & 0o777), (process.uid(), 0o700));
    let sockets = fs::metadata(server.socket_dir()).unwrap();
    assert_eq!((sockets.uid(), sockets.mode() & 0o777), (process.uid(), 0o700));
}

#[test]
fn another_os_user_is_refused_at_the_folder_and_by_peer() {
    if !is_root() {
        eprintln!("skipped: not root, so nobody else can be played");
        return;
    }
    let home = Home::new();
    let server = home.start();
    let as_nobody = || {
        let output = Command::new("setpriv")
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"])
            .arg(client(&server).get_program())
            .args(["-Xwc", "select 1", &server.url()])
            .current_dir("/")
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(as_nobody().contains("Permission denied"), "{}", as_nobody());

    // With both doors of the file system opened, peer authentication still stands.
    fs::set_permissions(server.socket_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(server.socket_dir().join(".s.PGSQL.5432"), fs::Permissions::from_mode(0o777))
        .unwrap();
    assert!(as_nobody().contains("Peer authentication failed"), "{}", as_nobody());
}

#[test]
fn an_ordinary_user_starts_a_server_of_their_own() {
    if !is_root() {
        eprintln!("skipped: not root; every other test here shows it");
        return;
    }
    let home = Home::new();
    // The test binary may be where nobody else can go.
    let program = home.0.path().join("another");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let theirs = home.0.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let nobody = fs::read_to_string("/etc/passwd").unwrap();
    let nobody = nobody.lines().find(|line| line.starts_with("nobody:")).unwrap();
    let ids: Vec<u32> = nobody.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
    chown(&theirs, Some(ids[0]), Some(ids[1])).unwrap();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={}", ids[0]), format!("--regid={}", ids[1])]);
    command.args(["--clear-groups", "--"]).arg(&program).current_dir("/");
    let mut other = Other::begin(&mut command, &theirs.join("state"));
    let postmaster = other.line();
    let postmaster = postmaster.strip_prefix("owner ").unwrap();
    assert_eq!(fs::metadata(format!("/proc/{postmaster}")).unwrap().uid(), ids[0]);
    other.let_go();
    assert!(!lives(postmaster.parse().unwrap()));
}

#[test]
fn the_url_and_the_options_work_for_psql_and_sqlx_also_with_an_awkward_path() {
    let home = Home::new();
    let mut options = home.options();
    options.state_dir = home.0.path().join("it's a +%20 folder, \"ü\"");
    options.database = "odd name".into();
    let server = EmbeddedPostgres::start(&options).unwrap();
    assert_eq!(ask(&server, "select current_database() || ' ' || current_user"), "odd name rosterd");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for options in [server.connect_options(), PgConnectOptions::from_str(&server.url()).unwrap()] {
        let found: String = runtime.block_on(async {
            let mut connection = PgConnection::connect_with(&options).await.unwrap();
            let row =
                sqlx::query_scalar("select current_database()").fetch_one(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            row
        });
        assert_eq!(found, "odd name");
    }
    server.stop().unwrap();

    // The same cluster for a rosterd with another database.
    options.database = "rosterd".into();
    let server = EmbeddedPostgres::start(&options).unwrap();
    assert_eq!(ask(&server, "select current_database()"), "rosterd");
}

#[test]
fn a_state_folder_too_long_for_a_socket_gets_a_short_one_elsewhere() {
    let home = Home::new();
    let mut options = home.options();
    options.state_dir = home.0.path().join("long-".repeat(25));
    let server = EmbeddedPostgres::start(&options).unwrap();
    let short = server.socket_dir().to_path_buf();
    assert!(!short.starts_with(home.0.path()) && short.as_os_str().len() < 80, "{short:?}");
    let folder = fs::metadata(&short).unwrap();
    assert_eq!(
        (folder.uid(), folder.mode() & 0o777),
        (fs::metadata(server.data_dir()).unwrap().uid(), 0o700)
    );
    assert_eq!(ask(&server, "select 1"), "1");
    server.stop().unwrap();
    assert!(!short.exists(), "nothing is left of it");
    let server = EmbeddedPostgres::start(&options).unwrap();
    assert_eq!(server.socket_dir(), short, "and it is the same again");
}

#[test]
fn a_state_folder_behind_a_closed_one_is_refused_with_the_remedy() {
    if !is_root() {
        eprintln!("skipped: not root, so the server's user is our own");
        return;
    }
    let closed = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let refused = EmbeddedPostgres::start(&EmbeddedOptions::new(closed.path().join("state")));
    let text = refused.unwrap_err().to_string();
    let remedy = format!("Allow it with `chmod o+x {}`", closed.path().display());
    assert!(text.contains("it may not enter") && text.contains(&remedy), "{text}");
    assert!(!closed.path().join("state/data").exists());
}

#[test]
fn no_binaries_is_an_error_that_says_how_to_install_them() {
    let empty = tempfile::tempdir_in("/tmp").unwrap();
    let nothing = Search { path: Some(empty.path().into()), patterns: vec!["/nonexistent/*/bin".into()] };
    let text = nothing.newest(None).unwrap_err().to_string();
    for words in ["PATH", "/nonexistent/*/bin", "apt install", "dnf install", "brew install", "DATABASE_URL"]
    {
        assert!(text.contains(words), "{words} is not in: {text}");
    }
    let text = find_binaries(Some(empty.path())).unwrap_err().to_string();
    assert!(text.contains(&empty.path().display().to_string()), "{text}");

    // A version we do not support is found and named.
    let old = empty.path().join("postgres");
    fs::write(&old, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let text = nothing.newest(None).unwrap_err().to_string();
    assert!(text.contains(&format!("{} is version 14", old.display())), "{text}");
}

#[test]
fn the_newest_of_several_versions_is_found() {
    let home = Home::new();
    let root = home.0.path();
    for (folder, version) in [("9", "15.2"), ("b", "17.1"), ("a", "17.6"), ("19", "19.0")] {
        let bin = root.join(folder).join("bin");
        fs::create_dir_all(&bin).unwrap();
        for program in ["postgres", "initdb"] {
            let path = bin.join(program);
            fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let search = Search { path: None, patterns: vec![format!("{}/*/bin", root.display())] };
    let found = search.newest(None).unwrap();
    assert_eq!((found.major, found.minor, found.bin_dir), (17, 6, root.join("a/bin")));
}

#[test]
fn data_of_another_major_version_is_refused_with_the_remedy() {
    let home = Home::new();
    let server = home.start();
    let version = server.data_dir().join("PG_VERSION");
    server.stop().unwrap();
    fs::write(version, "13\n").unwrap();
    let text = EmbeddedPostgres::start(&home.options()).unwrap_err().to_string();
    assert!(text.contains("PostgreSQL 13 made it") && text.contains("pg_upgrade"), "{text}");
}

#[test]
fn a_server_that_refuses_to_start_is_quoted() {
    let home = Home::new();
    let mut options = home.options();
    options.extra_settings = vec![("shared_buffers".into(), "a lot".into())];
    let text = EmbeddedPostgres::start(&options).unwrap_err().to_string();
    assert!(text.contains("shared_buffers"), "{text}");
    drop(home.start());
}

#[test]
fn the_default_state_folder_of_root_is_in_var_lib() {
    if is_root() && std::env::var_os("STATE_DIRECTORY").is_none() {
        assert_eq!(default_state_dir(), Path::new("/var/lib/rosterd"));
    }
}
