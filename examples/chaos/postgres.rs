//! The private PostgreSQL of a run: durable, restarted and killed at will, its tables on a small disk of their own.

use crate::clock::{self, Nanos};
use crate::signals;
use rosterd::postgres::connect::Limits;
use rosterd::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
use rosterd::postgres::migrate;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The database of the daemons.
const DATABASE: &str = "chaos";
/// Room for its tables.
const SMALL_DISK: &str = "size=1500m";

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Sessions are ended, everything is written.
    Fast,
    /// As after a power cut, but told to.
    Immediate,
    /// kill -9 of the postmaster.
    Killed,
}

/// The server.
pub struct Server {
    embedded: Mutex<EmbeddedPostgres>,
    /// Where the tables are, if that is a small disk.
    pub small_disk: Option<PathBuf>,
    socket: PathBuf,
    options: PgConnectOptions,
    stopped: AtomicBool,
}

impl Server {
    /// Starts it in `folder` and makes the database, with rosterd's schema and the checker's.
    pub async fn start(folder: &Path) -> Arc<Self> {
        let mut options = EmbeddedOptions::new(folder.join("state"));
        options.durability = Durability::Durable;
        options.extra_settings = [
            ("max_connections", "200"),
            ("shared_buffers", "64MB"),
            // Sessions whose client is gone let go of their locks.
            ("client_connection_check_interval", "2s"),
            ("max_wal_size", "256MB"),
            ("checkpoint_timeout", "60s"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let server = tokio::task::spawn_blocking(move || EmbeddedPostgres::start(&options))
            .await
            .expect("no panic")
            .expect("a private PostgreSQL");
        let (user, group) = owner(server.data_dir());
        let small_disk = mount_small_disk(&folder.join("small"), user, group);
        let maintenance = server.connect_options();
        let options = maintenance.clone().database(DATABASE);
        let socket = server.socket_dir().join(".s.PGSQL.5432");
        let mut db = PgConnection::connect_with(&maintenance).await.expect("a connection");
        if let Some(disk) = &small_disk {
            exec(&mut db, &format!("create tablespace small location '{}'", disk.join("tables").display()))
                .await;
            exec(&mut db, &format!("create database {DATABASE} tablespace small")).await;
        } else {
            exec(&mut db, &format!("create database {DATABASE}")).await;
        }
        let limits = Limits {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            statement: Duration::from_mins(1),
        };
        migrate::migrate(&options, limits).await.expect("the schema");
        let mut db = PgConnection::connect_with(&options).await.expect("a connection");
        exec(&mut db, include_str!("schema.sql")).await;
        Arc::new(Self {
            embedded: Mutex::new(server),
            small_disk,
            socket,
            options,
            stopped: AtomicBool::new(false),
        })
    }

    /// How operators connect: to the socket, with nothing of rosterd's settings.
    pub fn operator(&self) -> PgConnectOptions {
        self.options.clone().application_name("operator")
    }

    /// For daemons that connect directly.
    pub fn url(&self) -> String {
        let folder = self.socket.parent().expect("a socket lies in a folder").display().to_string();
        format!(
            "postgres:///{DATABASE}?host={}&port=5432&user=rosterd&sslmode=disable",
            folder.replace('/', "%2F")
        )
    }

    /// For daemons behind a proxy.
    pub fn url_through(address: std::net::SocketAddr) -> String {
        format!("postgres://rosterd@{address}/{DATABASE}?sslmode=disable")
    }

    /// The socket, for proxies.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Ends it, waits `away`, and brings it up again. Returns when it answered again.
    pub async fn restart(self: &Arc<Self>, end: End, away: Duration) -> Nanos {
        self.signal(end);
        tokio::time::sleep(away).await;
        let server = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let mut server = server.embedded.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..600 {
                match server.restart_if_dead() {
                    Ok(true) => return,
                    // It is still stopping.
                    Ok(false) => {}
                    Err(error) => eprintln!("chaos: the server does not come up yet: {error}"),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            panic!("the server does not come up again");
        })
        .await
        .expect("the server comes up");
        while PgConnection::connect_with(&self.operator()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        clock::now()
    }

    fn signal(&self, end: End) {
        let pid = self.embedded.lock().unwrap_or_else(PoisonError::into_inner).pid();
        signals::send(
            pid,
            match end {
                End::Fast => "INT",
                End::Immediate => "QUIT",
                End::Killed => "KILL",
            },
        );
    }

    /// At the end of the run. Doing it twice does nothing more.
    pub fn stop(&self) {
        let Some(disk) = self.small_disk.as_ref().filter(|_| !self.stopped.swap(true, Ordering::AcqRel))
        else {
            return;
        };
        let pid = self.embedded.lock().unwrap_or_else(PoisonError::into_inner).pid();
        signals::send(pid, "QUIT");
        for _ in 0..200 {
            if !signals::is_alive(pid) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let done = Command::new("umount").arg("-l").arg(disk).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("chaos: {} is still mounted", disk.display());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn exec(db: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

fn owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).expect("the data directory");
    (meta.uid(), meta.gid())
}

/// A disk that can be filled without filling anybody else's. The write-ahead log stays elsewhere, because PostgreSQL
/// panics when it cannot write that.
fn mount_small_disk(at: &Path, user: u32, group: u32) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("chaos: NOT ROOT: no small disk, so the fault disk-full is left out");
        return None;
    }
    std::fs::create_dir_all(at).expect("a folder");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(at).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("chaos: CANNOT MOUNT A TMPFS: the fault disk-full is left out");
        return None;
    }
    let tables = at.join("tables");
    std::fs::create_dir(&tables).expect("a folder");
    std::os::unix::fs::chown(&tables, Some(user), Some(group)).expect("root may");
    Some(at.to_owned())
}
