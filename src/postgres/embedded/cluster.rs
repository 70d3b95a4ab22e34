//! Making the data folder: complete or not at all.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use super::{
    Durability, EmbeddedError, EmbeddedOptions, ROLE,
    account::{Account, Launcher},
    binaries::Binaries,
    error::io,
    folders::{self, Folders, private_folder},
};

/// A cluster in the making is in a folder with this prefix.
const MAKING: &str = "data.making-";

/// The major version that made the cluster, or `None` where there is no cluster yet.
pub(super) fn made_by(data_dir: &Path) -> Result<Option<String>, EmbeddedError> {
    let version = data_dir.join("PG_VERSION");
    match fs::read_to_string(&version) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("read", &version)(error)),
        // A cluster appears complete or not at all, so what is here without a version is not ours.
        Err(_) => match fs::remove_dir(data_dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                Err(EmbeddedError::NotACluster(data_dir.to_path_buf()))
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io("use the data folder", data_dir)(error))
            }
            _ => Ok(None),
        },
    }
}

/// Makes the cluster beside its place, with the database in it, and moves it there in one step.
pub(super) fn make(
    options: &EmbeddedOptions,
    folders: &Folders,
    binaries: &Binaries,
    account: &Account,
    launcher: &Launcher,
) -> Result<(), EmbeddedError> {
    remove_half_made(&folders.state);
    let making = folders.state.join(format!("{MAKING}{}", std::process::id()));
    private_folder(&making, account)?;

    let program = binaries.program("initdb");
    let mut initdb = launcher.command(&program, "TERM");
    initdb.arg("--pgdata").arg(&making);
    initdb.args(["--username", ROLE, "--encoding=UTF8", "--locale=C", "--auth=peer"]);
    initdb.args(["--data-checksums", "--no-instructions"]);
    if options.durability == Durability::ThrowAway {
        initdb.arg("--no-sync");
    }
    let output = run(&mut initdb, &program, "")?;
    must_succeed("make a database cluster", &program, &output)?;
    make_database(options, &making, binaries, launcher)?;

    fs::write(&folders.databases, format!("{}\n", options.database))
        .map_err(io("write", &folders.databases))?;
    fs::rename(&making, &folders.data).map_err(io("put in place", &folders.data))?;
    if options.durability == Durability::Durable {
        let state = File::open(&folders.state).map_err(io("open", &folders.state))?;
        state.sync_all().map_err(io("write to disk", &folders.state))?;
    }
    Ok(())
}

/// Makes the database in a cluster that was made for another one. The server must not be running.
pub(super) fn ensure_database(
    options: &EmbeddedOptions,
    folders: &Folders,
    binaries: &Binaries,
    launcher: &Launcher,
) -> Result<(), EmbeddedError> {
    let known = fs::read_to_string(&folders.databases).unwrap_or_default();
    if known.lines().any(|name| name == options.database) {
        return Ok(());
    }
    make_database(options, &folders.data, binaries, launcher)?;
    fs::write(&folders.databases, format!("{known}{}\n", options.database))
        .map_err(io("write", &folders.databases))
}

/// Refuses a database name that cannot be written as a quoted identifier on one line.
pub(super) fn check_database_name(name: &str) -> Result<(), EmbeddedError> {
    if (1..=63).contains(&name.len()) && !name.contains(['\n', '\r', '\0']) {
        return Ok(());
    }
    let reason = "give a name of 1 to 63 bytes on one line".to_owned();
    Err(EmbeddedError::BadOption { option: format!("database = {name:?}"), reason })
}

/// Single-user mode needs neither a socket nor `psql`, which the server packages do not always bring.
fn make_database(
    options: &EmbeddedOptions,
    data_dir: &Path,
    binaries: &Binaries,
    launcher: &Launcher,
) -> Result<(), EmbeddedError> {
    let program = binaries.program("postgres");
    let mut single = launcher.command(&program, "TERM");
    single.arg("--single").arg("-D").arg(data_dir).args([
        "-c",
        "exit_on_error=on",
        "-c",
        "log_min_messages=error",
    ]);
    if options.durability == Durability::ThrowAway {
        single.arg("-F");
    }
    single.arg("template1");
    let statement = format!("create database \"{}\"\n", options.database.replace('"', "\"\""));
    let output = run(&mut single, &program, &statement)?;
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("already exists") {
        return Ok(());
    }
    must_succeed("make the database", &program, &output)
}

fn remove_half_made(state: &Path) {
    for entry in fs::read_dir(state).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(MAKING) {
            // A dying initdb may still write there; the next start tries again, and nobody else reads it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn run(command: &mut Command, program: &Path, input: &str) -> Result<Output, EmbeddedError> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io("run", program))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early tells its reason on stderr; the broken pipe would hide it.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(io("run", program))
}

fn must_succeed(task: &str, program: &Path, output: &Output) -> Result<(), EmbeddedError> {
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    Err(EmbeddedError::Program {
        task: task.to_owned(),
        program: program.to_path_buf(),
        status: output.status.to_string(),
        output: folders::last_lines(&String::from_utf8_lossy(&text)),
    })
}
