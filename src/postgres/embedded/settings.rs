//! The server's configuration, written anew at each start: settings, who may enter, and as whom.

use std::{
    fmt::Write,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

use super::{
    Durability, EmbeddedError, EmbeddedOptions, PORT, ROLE, account::Account, error::io, folders::Folders,
};

/// Settings that hold the design together, so that `extra_settings` may not touch them.
const RESERVED: [&str; 11] = [
    "listen_addresses",
    "port",
    "unix_socket_directories",
    "unix_socket_permissions",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "logging_collector",
    "log_directory",
];

/// Refuses reserved or misspelt names among the extra settings before anything is made or started.
pub(super) fn check(options: &EmbeddedOptions) -> Result<(), EmbeddedError> {
    for (name, value) in &options.extra_settings {
        let reason = if RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
            "the private server sets it itself; leave it out"
        } else if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        {
            "this is no name of a PostgreSQL setting; give letters, digits, `_` and `.`"
        } else if value.contains(['\n', '\0']) {
            "the value has a line break or a zero byte; remove it"
        } else {
            continue;
        };
        let option = format!("extra_settings {name} = {value:?}");
        return Err(EmbeddedError::BadOption { option, reason: reason.to_owned() });
    }
    Ok(())
}

/// Writes the three files and answers the path of the one to start the server with.
pub(super) fn write(
    options: &EmbeddedOptions,
    folders: &Folders,
    socket_dir: &Path,
    account: &Account,
) -> Result<PathBuf, EmbeddedError> {
    let daemon = Account::current()?;
    replace(&folders.settings.join("pg_hba.conf"), &hba())?;
    replace(&folders.settings.join("pg_ident.conf"), &ident(&[&daemon.name, &account.name, "root"]))?;
    let config = folders.settings.join("postgresql.conf");
    replace(&config, &postgresql_conf(options, folders, socket_dir))?;
    Ok(config)
}

fn postgresql_conf(options: &EmbeddedOptions, folders: &Folders, socket_dir: &Path) -> String {
    let on_off = if options.durability == Durability::Durable { "on" } else { "off" };
    let file = |name: &str| folders.settings.join(name).display().to_string();
    // The list of socket folders is split at commas, and trimmed, unless a name is in double quotes.
    let sockets = format!("\"{}\"", socket_dir.display());
    let ours = [
        ("listen_addresses", String::new()),
        ("port", PORT.to_string()),
        ("unix_socket_directories", sockets),
        ("unix_socket_permissions", "0700".into()),
        ("hba_file", file("pg_hba.conf")),
        ("ident_file", file("pg_ident.conf")),
        ("password_encryption", "scram-sha-256".into()),
        ("cluster_name", "rosterd".into()),
        ("max_connections", "100".into()),
        // The scheduler's statements are short; compiling them costs more than it saves.
        ("jit", "off".into()),
        ("fsync", on_off.into()),
        ("synchronous_commit", on_off.into()),
        ("full_page_writes", on_off.into()),
        ("timezone", "UTC".into()),
        ("log_timezone", "UTC".into()),
        ("lc_messages", "C".into()),
        ("logging_collector", "on".into()),
        ("log_destination", "stderr".into()),
        ("log_directory", folders.logs.display().to_string()),
        // A file per weekday, emptied when its day comes again: a week of logs and never more.
        ("log_filename", "postgresql-%a.log".into()),
        ("log_rotation_age", "1d".into()),
        ("log_rotation_size", "0".into()),
        ("log_truncate_on_rotation", "on".into()),
        ("log_line_prefix", "%m [%p] %q%u@%d %a ".into()),
        ("log_lock_waits", "on".into()),
        ("log_autovacuum_min_duration", "1min".into()),
    ];
    let mut text = String::from(
        "# Written by rosterd at each start; edits are lost. Give settings to rosterd instead.\n",
    );
    // First what initdb found out about this machine: shared memory, buffers, locale.
    let initdb_conf = folders.data.join("postgresql.conf").display().to_string();
    let _ = writeln!(text, "include {}", quoted(&initdb_conf));
    let extra = options.extra_settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in ours.into_iter().chain(extra) {
        let _ = writeln!(text, "{name} = {}", quoted(&value));
    }
    text
}

/// Only the socket, only the scheduler's role without a password, and nobody is ever trusted unseen.
fn hba() -> String {
    format!(
        "# Written by rosterd at each start; edits are lost.\n\
         # type  database     user    method\n\
         local   all          {ROLE} peer map={ROLE}\n\
         local   replication  {ROLE} peer map={ROLE}\n\
         local   all          all     scram-sha-256\n"
    )
}

/// The OS users who may be the scheduler's role. (`all` as the role came only with PostgreSQL 16.)
fn ident(users: &[&str]) -> String {
    let mut users = users.to_vec();
    users.sort_unstable();
    users.dedup();
    let lines = users.iter().map(|user| format!("{ROLE}  \"{user}\"  {ROLE}\n"));
    format!("# Written by rosterd at each start; edits are lost.\n{}", lines.collect::<String>())
}

/// A value as the server's files want it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Writes beside and renames, so that a server never reads half a file.
fn replace(path: &Path, text: &str) -> Result<(), EmbeddedError> {
    let beside = path.with_extension("new");
    fs::write(&beside, text).map_err(io("write", &beside))?;
    let mode = if geteuid().is_root() { 0o644 } else { 0o600 };
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).map_err(io("set the mode of", &beside))?;
    fs::rename(&beside, path).map_err(io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_settings_are_refused_by_name() {
        let mut options = EmbeddedOptions::new("/nowhere");
        options.extra_settings = vec![("work_mem".into(), "8MB".into())];
        check(&options).expect("an ordinary setting is fine");
        options.extra_settings = vec![("Port".into(), "1".into())];
        assert!(check(&options).unwrap_err().to_string().contains("Port"));
        options.extra_settings = vec![("jit = on\nfsync".into(), "off".into())];
        check(&options).expect_err("a name cannot smuggle a line in");
    }

    #[test]
    fn values_are_quoted_for_the_server() {
        assert_eq!(quoted(r"it's a \ path"), r"'it''s a \\ path'");
    }
}
