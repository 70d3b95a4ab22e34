//! psql, as an operator types into it.

use super::{TestDb, server};
use rosterd::postgres::embedded::find_binaries;
use std::io::Write;
use std::process::{Command, Stdio};

/// What psql printed.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub err: String,
}

/// Runs statements through psql, unaligned and without headers, going on after errors.
pub fn psql(db: &TestDb, sql: &str) -> Said {
    // Not every package of a server brings one, and then another version's will do.
    let beside = server().bin_dir().join("psql");
    let program = if beside.is_file() { beside } else { find_binaries(None).unwrap().program("psql") };
    let mut child = Command::new(program)
        .args(["-X", "-A", "-t", "-d", &db.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    Said {
        out: String::from_utf8_lossy(&said.stdout).into_owned(),
        err: String::from_utf8_lossy(&said.stderr).into_owned(),
    }
}
