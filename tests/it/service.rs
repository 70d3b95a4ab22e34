//! What systemd, load balancers and Prometheus see.

use crate::support::{Daemon, SOON, TestDb, own_jobs_binary};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

/// The answer to a GET from a daemon that was started with `--listen`.
pub(super) fn get(daemon: &Daemon, path: &str) -> String {
    let line = daemon.wait_line("HTTP: listening on http://");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    get_at(address, path)
}

/// The same from whoever listens there.
pub(super) fn get_at(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn run_command(db: &TestDb) -> Command {
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", db.url());
    command
}

#[test]
fn health_readiness_and_metrics_are_served() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let daemon = Daemon::spawn(run_command(&db));
    daemon.wait_line("rosterd is ready");
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
    assert!(get(&daemon, "/healthz").starts_with("HTTP/1.1 200 OK"));
    assert!(get(&daemon, "/readyz").starts_with("HTTP/1.1 200 OK"));
    let until = Instant::now() + SOON;
    let wanted = [
        "rosterd_jobs_claimed_total 1",
        r#"rosterd_jobs_finished_total{status="completed"} 1"#,
        "rosterd_database_up 1",
        "rosterd_sources_limited 0",
        "rosterd_start_latency_seconds_count 1",
    ];
    loop {
        let metrics = get(&daemon, "/metrics");
        if wanted.iter().all(|line| metrics.contains(line)) {
            return;
        }
        assert!(Instant::now() < until, "{metrics}");
    }
}

#[test]
fn systemd_hears_ready_status_watchdog_and_stopping() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "", "");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let hear = |word: &str| -> String {
        let until = Instant::now() + SOON;
        let mut heard = Vec::new();
        loop {
            let mut text = [0; 4096];
            let length = socket.recv(&mut text).unwrap_or_else(|e| panic!("{e}; heard {heard:?}"));
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            if text.contains(word) {
                return text;
            }
            heard.push(text);
            assert!(Instant::now() < until, "no {word} in {heard:?}");
        }
    };
    let mut command = run_command(&db);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .env("ROSTERD__ENGINE__DRAIN_SECONDS", "1");
    let mut daemon = Daemon::spawn(command);
    hear("READY=1");
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 2);
    hear("STATUS=claiming: 1 running");
    hear("WATCHDOG=1");
    daemon.signal("HUP");
    hear("RELOADING=1");
    hear("READY=1");
    daemon.signal("TERM");
    let stopping = hear("STOPPING=1");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC="), "{stopping}");
    hear("STATUS=not claiming: 1 running");
    assert!(daemon.wait_exit().success());
    assert_eq!(db.status(&id), "1");
}

#[test]
fn a_bad_configuration_ends_with_exit_code_64_and_names_the_key() {
    for (key, value, word) in [
        ("ROSTERD__ENGINE__WORKERS", "0", "engine.workers"),
        ("ROSTERD__ENGINE__WORKER", "5", "engine.workers"),
        ("ROSTERD__LOG__FORMAT", "pretty", "log.format"),
    ] {
        let said = Command::new(own_jobs_binary())
            .args(["run", "--listen", "off", "--database-url", "postgres:///x?host=/nowhere"])
            .env(key, value)
            .output()
            .unwrap();
        assert_eq!(said.status.code(), Some(64), "{key}");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn the_daemon_prints_that_it_is_ready_whatever_the_log_level() {
    let db = TestDb::new();
    let mut command = run_command(&db);
    command.env("ROSTERD__LOG__LEVEL", "off");
    let daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait_line_within("rosterd is ready", Duration::from_secs(15)), "rosterd is ready");
}
