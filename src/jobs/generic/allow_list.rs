//! `commands.d/NAME.toml`: the programs `CommandJob` may start, and how.
//!
//! A row names an entry, never a program, so whoever may insert rows gains nothing beyond what root or the
//! daemon's own user has written down. Every error is a sentence for that person.

use rustix::fs::{FileType, Mode, OFlags, Stat};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One entry of the allow-list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AllowedCommand {
    program: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    /// Whether rows may add arguments behind `args`.
    #[serde(default)]
    allow_args: bool,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<PathBuf>,
    user: Option<String>,
    #[serde(skip)]
    file: PathBuf,
}

impl AllowedCommand {
    /// Reads `NAME.toml`, or says in a sentence why it cannot be used.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Self, String> {
        let is_name = !name.is_empty()
            && name.len() <= 200
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !is_name {
            return Err(format!(
                "Payload field `command`: {name:?} is not the name of a command; names have letters, digits, _, . and -"
            ));
        }
        let file = dir.join(format!("{name}.toml"));
        let show = file.display();
        let refused = |e: &dyn std::fmt::Display| format!("command {name} is not allowed: {show}: {e}");
        let open = |path: &Path| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        };
        // What is checked is what was opened, so nobody can swap it in between.
        let folder = open(dir).map_err(|e| refused(&e))?;
        check_owner(&folder, FileType::Directory)
            .map_err(|problem| format!("{} {problem}", dir.display()))?;
        let opened = open(&file).map_err(|e| refused(&e))?;
        check_owner(&opened, FileType::RegularFile).map_err(|problem| format!("{show} {problem}"))?;
        let mut text = String::new();
        File::from(opened).take(1 << 20).read_to_string(&mut text).map_err(|e| refused(&e))?;
        let mut entry: Self = toml::from_str(&text).map_err(|e| format!("{show}: {}", e.message()))?;
        entry.file = file;
        entry.check_program()?;
        Ok(entry)
    }

    fn check_program(&self) -> Result<(), String> {
        let (file, program) = (self.file.display(), self.program.display());
        if !self.program.is_absolute() {
            return Err(format!("{file}: `program` is {program}, give an absolute path"));
        }
        let stat =
            rustix::fs::stat(&self.program).map_err(|e| format!("{file}: `program` {program}: {e}"))?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(format!("{file}: `program` {program} is not a file"));
        }
        if !mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH) {
            return Err(format!("{file}: `program` {program} is not executable"));
        }
        if mode.intersects(Mode::WGRP | Mode::WOTH) {
            return Err(format!("{file}: `program` {program} is writable by its group or by everybody"));
        }
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.is_absolute() || !cwd.is_dir()) {
            return Err(format!("{file}: `cwd` is {}, give an absolute path of a folder", cwd.display()));
        }
        Ok(())
    }

    /// The command with a row's arguments, in a process group of its own, and no environment but this.
    pub(super) fn command(&self, args: &[String], pass_on: &[String]) -> Result<Command, String> {
        let file = self.file.display();
        if !args.is_empty() && !self.allow_args {
            return Err(format!(
                "Payload field `args`: {file} does not allow arguments (allow_args = true would)"
            ));
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).args(args).env_clear().process_group(0);
        command.envs(pass_on.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(&self.env);
        command.current_dir(self.cwd.as_deref().unwrap_or(Path::new("/")));
        if let Some(user) = &self.user {
            let (uid, gid) =
                find_user(user).map_err(|problem| format!("{file}: `user` {user}: {problem}"))?;
            if uid != rustix::process::geteuid().as_raw() {
                if !rustix::process::geteuid().is_root() {
                    return Err(format!(
                        "{file}: `user` is {user}, but only a daemon run by root can change users"
                    ));
                }
                // As root, std drops the supplementary groups too.
                command.uid(uid).gid(gid);
            }
        }
        Ok(command)
    }
}

/// What [`check_all`] found in the folder.
#[derive(Debug, Default)]
pub(crate) struct AllowList {
    /// Entries that rows can use.
    pub(crate) usable: u32,
    /// Why the others cannot be used, a sentence each.
    pub(crate) problems: Vec<String>,
    /// Files that are no entries.
    pub(crate) remarks: Vec<String>,
}

/// Reads every entry of the folder, for an operator who wants to know before a row does. A folder that is
/// not there holds no commands.
pub(crate) fn check_all(dir: &Path) -> AllowList {
    let mut found = AllowList::default();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
        Err(error) => {
            found.problems.push(format!("{}: {error}", dir.display()));
            return found;
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let shown = file.display();
        let name =
            file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".toml"));
        let Some(name) = name else {
            found.remarks.push(format!("{shown} is not called NAME.toml and is no command"));
            continue;
        };
        let checked = AllowedCommand::read(dir, name).and_then(|entry| match &entry.user {
            Some(user) => find_user(user).map(drop).map_err(|e| format!("{shown}: `user` {user}: {e}")),
            None => Ok(()),
        });
        match checked {
            Ok(()) => found.usable += 1,
            Err(problem) if problem.contains(&dir.display().to_string()) => found.problems.push(problem),
            // About the name, as a row would hear it.
            Err(problem) => {
                found.problems.push(format!("{shown}: {}", problem.replace("Payload field `command`: ", "")));
            }
        }
    }
    // One folder that is not safe would otherwise be told once for each file in it.
    found.problems.dedup();
    found
}

/// Only root or the daemon's own user may have written it. A problem finishes "FILE ...".
fn check_owner(opened: &impl AsFd, kind: FileType) -> Result<(), String> {
    let stat: Stat = rustix::fs::fstat(opened).map_err(|e| format!("cannot be looked at: {e}"))?;
    if FileType::from_raw_mode(stat.st_mode) != kind {
        return Err(format!("is not a {}", if kind == FileType::Directory { "folder" } else { "file" }));
    }
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(format!("belongs to user {}; give it to root or to the daemon's own user", stat.st_uid));
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return Err("is writable by its group or by everybody; chmod go-w makes it usable".to_owned());
    }
    Ok(())
}

/// User and group of a name in the passwd file. Names of other directories (LDAP) are not found.
fn find_user(name: &str) -> Result<(u32, u32), String> {
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    user_in(&passwd, name).ok_or_else(|| "there is no such user in /etc/passwd".to_owned())
}

fn user_in(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (user, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (user == name).then_some((uid.parse().ok()?, gid.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in ["", "..", ".hidden", "../x", "a/b", "/etc/passwd", "a\0b", "a b", "ä", "a\n"] {
            let problem = AllowedCommand::read(Path::new("/nowhere"), name).unwrap_err();
            assert!(problem.starts_with("Payload field `command`"), "{name:?}: {problem}");
        }
    }

    #[test]
    fn a_user_is_found_by_its_whole_name_only() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nsvc-a:x:12:34::/:/bin/false\nbroken\n";
        assert_eq!(user_in(passwd, "svc-a"), Some((12, 34)));
        assert_eq!(user_in(passwd, "svc"), None);
        assert_eq!(user_in(passwd, ""), None);
    }
}
