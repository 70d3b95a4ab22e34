//! `rosterd psql`: the operator's own tool on rosterd's database.
//!
//! Everything psql has to know goes through its environment, because arguments can be seen by others.

use super::{Database, Failure, block_on};
use crate::config::Config;
use crate::postgres::embedded::find_binaries;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use sqlx::postgres::PgSslMode;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

/// Options of `rosterd psql`.
#[derive(Debug, clap::Args)]
pub(super) struct Psql {
    /// Arguments for psql, behind --, such as `rosterd psql -- -c 'select * from JobHistoryWaiting'`.
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

pub(super) fn run(settings: &Config, args: &Psql) -> Result<(), Failure> {
    let database = Database::open(settings)?;
    let program = find_psql(settings, &database)?;
    let mut command = Command::new(&program);
    command.args(&args.args);
    for (name, value) in environment(settings, &database)? {
        command.env(name, value);
    }
    let failed = |e: std::io::Error| Failure::usage(format!("failed to start {}: {e}", program.display()));
    if database.embedded.is_none() {
        return Err(failed(command.exec()));
    }
    // The server lives as long as we do, so we stay, and leave Ctrl-C to psql.
    let status = block_on(async { stay_beside(command).await.map_err(failed) })?;
    drop(database);
    pass_on(status)
}

fn pass_on(status: ExitStatus) -> Result<(), Failure> {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    if code == 0 { Ok(()) } else { Err(Failure::exit(u8::try_from(code).unwrap_or(1))) }
}

async fn stay_beside(command: Command) -> std::io::Result<ExitStatus> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = tokio::process::Command::from(command).spawn()?;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            _ = interrupt.recv() => {} // the terminal has sent it to psql too
            _ = quit.recv() => {}
            _ = terminate.recv() => tell(&child, Signal::TERM),
            _ = hangup.recv() => tell(&child, Signal::HUP),
        }
    }
}

fn tell(child: &tokio::process::Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill_process(pid, signal);
    }
}

/// The psql of the embedded server, else that of `embedded.bin_dir`, of PATH, or beside server programs.
fn find_psql(settings: &Config, database: &Database) -> Result<PathBuf, Failure> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = database
        .embedded
        .iter()
        .map(|server| server.bin_dir().to_path_buf())
        .chain(settings.embedded.bin_dir().map(PathBuf::from))
        .chain(std::env::split_paths(&in_path));
    let found = folders.map(|folder| folder.join("psql")).find(|program| program.is_file());
    found.or_else(|| find_binaries(None).ok().map(|b| b.program("psql")).filter(|p| p.is_file())).ok_or_else(
        || {
            Failure::usage(
                "psql was not found in PATH; install it, for example with `apt install postgresql-client`",
            )
        },
    )
}

/// PGHOST and the like. What is not said here, such as PGPASSFILE, psql has from our own environment.
fn environment(settings: &Config, database: &Database) -> Result<Vec<(&'static str, OsString)>, Failure> {
    let options = &database.options;
    let host = options.get_socket().map_or_else(|| options.get_host().into(), |s| s.clone().into_os_string());
    let mut set: Vec<(&str, OsString)> = vec![
        ("PGHOST", host),
        ("PGPORT", options.get_port().to_string().into()),
        ("PGUSER", options.get_username().into()),
        ("PGDATABASE", options.get_database().unwrap_or(options.get_username()).into()),
        ("PGSSLMODE", ssl_mode(options.get_ssl_mode()).into()),
        ("PGAPPNAME", "rosterd psql".into()),
    ];
    let own = options.get_options().unwrap_or_default();
    set.push(("PGOPTIONS", format!("{own} -c search_path=vm,public").trim_start().into()));
    if database.embedded.is_some() {
        return Ok(set);
    }
    let Ok(url) = Url::parse(settings.database.url.expose_secret()) else { return Ok(set) };
    let mut password = url.password().map(decoded);
    for (name, value) in url.query_pairs() {
        match &*name {
            "password" => password = Some(value.into_owned()),
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => set.push(("PGSSLROOTCERT", value.as_ref().into())),
            "sslcert" | "ssl-cert" => set.push(("PGSSLCERT", value.as_ref().into())),
            "sslkey" | "ssl-key" => set.push(("PGSSLKEY", value.as_ref().into())),
            _ => {}
        }
    }
    if let Some(secret) = settings.database.password()? {
        password = Some(secret.expose_secret().to_owned());
    }
    set.extend(password.map(|password| ("PGPASSWORD", password.into())));
    Ok(set)
}

fn ssl_mode(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        if let Some(code) = code.filter(|_| first == b'%') {
            bytes.push(code);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_come_out_of_urls_as_they_were() {
        for (encoded, plain) in
            [("p%40s%2Fs%25", "p@s/s%"), ("a+b", "a+b"), ("%zz%4", "%zz%4"), ("%C3%BC", "ü")]
        {
            assert_eq!(decoded(encoded), plain);
        }
    }
}
