//! psql, as an operator types into it.

use super::{TestDb, server};
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
    let mut child = Command::new(server().bin_dir().join("psql"))
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
