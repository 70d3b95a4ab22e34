//! Finding the installed server programs, and which version they are.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{EmbeddedError, NEWEST_SUPPORTED, OLDEST_SUPPORTED};

/// A folder with `initdb` and `postgres` of one supported version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder, absolute.
    pub bin_dir: PathBuf,
    /// Major version, 15 to 18.
    pub major: u32,
    /// Minor version, 0 for a beta.
    pub minor: u32,
}

impl Binaries {
    /// The path of one of the programs, such as `initdb`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The newest supported server programs of this machine, or those in `explicit` and no others.
pub fn find_binaries(explicit: Option<&Path>) -> Result<Binaries, EmbeddedError> {
    Search::of_this_machine().newest(explicit)
}

/// Where to look. A value, so that tests can describe another machine without touching the environment.
#[derive(Debug, Clone)]
pub struct Search {
    /// What stands in for `PATH`.
    pub path: Option<OsString>,
    /// Folders that hold binaries, `*` standing for any one folder name.
    pub patterns: Vec<String>,
}

/// The usual places. `*` is a version, and the found version counts, never the folder's name.
const USUAL_PLACES: [&str; 15] = [
    "/usr/lib/postgresql/*/bin",                       // Debian, Ubuntu, Alpine (older)
    "/usr/libexec/postgresql*",                        // Alpine
    "/usr/pgsql-*/bin",                                // Fedora and RHEL from PGDG
    "/usr/lib/postgresql*/bin",                        // openSUSE, Gentoo
    "/usr/lib64/postgresql*/bin",                      // Gentoo
    "/usr/bin",                                        // Fedora, Arch
    "/opt/homebrew/opt/postgresql@*/bin",              // Homebrew on ARM
    "/usr/local/opt/postgresql@*/bin",                 // Homebrew on Intel
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin", // Homebrew on Linux
    "/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
    "/Library/PostgreSQL/*/bin",                       // the EDB installer
    "/opt/local/lib/postgresql*/bin",                  // MacPorts
    "/run/current-system/sw/bin",                      // NixOS
    "/usr/local/bin",                                  // FreeBSD, own builds
    "/usr/local/pgsql/bin",                            // own builds
];

impl Search {
    /// `PATH`, what `pg_config` says, and the distributions' usual places.
    pub fn of_this_machine() -> Self {
        Self { path: std::env::var_os("PATH"), patterns: USUAL_PLACES.map(String::from).to_vec() }
    }

    /// The newest usable programs, or those in `explicit` and no others.
    pub fn newest(&self, explicit: Option<&Path>) -> Result<Binaries, EmbeddedError> {
        let (found, rejected) = self.all(explicit);
        found
            .into_iter()
            .max_by_key(|found| (found.major, found.minor))
            .ok_or_else(|| self.nothing_found(explicit, &rejected))
    }

    /// The newest programs of the major version `made_by`, which made `data_dir`.
    pub(super) fn for_cluster(
        &self,
        explicit: Option<&Path>,
        data_dir: &Path,
        made_by: &str,
    ) -> Result<Binaries, EmbeddedError> {
        let (found, rejected) = self.all(explicit);
        if found.is_empty() {
            return Err(self.nothing_found(explicit, &rejected));
        }
        let mut installed: Vec<u32> = found.iter().map(|found| found.major).collect();
        installed.sort_unstable();
        installed.dedup();
        found
            .into_iter()
            .filter(|found| found.major.to_string() == made_by)
            .max_by_key(|found| found.minor)
            .ok_or_else(|| EmbeddedError::OtherVersion {
                data_dir: data_dir.to_path_buf(),
                made_by: made_by.to_owned(),
                installed: installed.iter().map(u32::to_string).collect::<Vec<_>>().join(" and "),
            })
    }

    /// Every usable folder, and a remark on each that was not.
    fn all(&self, explicit: Option<&Path>) -> (Vec<Binaries>, Vec<String>) {
        let folders = explicit.map_or_else(|| self.folders(), |folder| vec![folder.to_path_buf()]);
        let (mut found, mut rejected) = (Vec::new(), Vec::new());
        for folder in folders {
            match examine(&folder) {
                Ok(Some(binaries)) => found.push(binaries),
                Ok(None) => {}
                Err(remark) => rejected.push(remark),
            }
        }
        (found, rejected)
    }

    /// Every folder that may hold binaries, once each.
    fn folders(&self) -> Vec<PathBuf> {
        let in_path: Vec<PathBuf> =
            self.path.iter().flat_map(std::env::split_paths).filter(|folder| folder.is_absolute()).collect();
        let told = in_path.iter().filter_map(|folder| bin_dir_of_pg_config(folder)).collect::<Vec<_>>();
        let usual = self.patterns.iter().flat_map(|pattern| expand(pattern));
        let mut folders = Vec::new();
        for folder in in_path.into_iter().chain(told).chain(usual) {
            // A folder of links (`/usr/local/bin/postgres`) stands for the folder they lead to, which has the
            // other programs too.
            let program = folder.join("postgres");
            let real =
                program.canonicalize().ok().and_then(|program| program.parent().map(Path::to_path_buf));
            let folder = real.filter(|real| real.join("initdb").is_file()).unwrap_or(folder);
            if folder.join("postgres").is_file() && !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders
    }

    fn nothing_found(&self, explicit: Option<&Path>, rejected: &[String]) -> EmbeddedError {
        let looked_in = match explicit {
            Some(folder) => format!("{}, the folder that was named", folder.display()),
            None => format!("PATH, `pg_config --bindir` and {}", self.patterns.join(", ")),
        };
        let rejected = rejected.iter().fold(String::new(), |text, remark| text + "; " + remark);
        EmbeddedError::NoBinaries { looked_in, rejected }
    }
}

/// `pg_config --bindir`, where that folder has a `pg_config`.
fn bin_dir_of_pg_config(folder: &Path) -> Option<PathBuf> {
    let program = folder.join("pg_config");
    if !program.is_file() {
        return None;
    }
    let output = Command::new(program).arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end()))
}

/// The folders that match a pattern whose `*` stands for any text within one folder name.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut matches = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        matches = match part.split_once('*') {
            None => matches.into_iter().map(|folder| folder.join(part)).collect(),
            Some((before, after)) => matches
                .iter()
                .filter_map(|folder| fs::read_dir(folder).ok())
                .flat_map(Iterator::flatten)
                .filter(|entry| {
                    let name = entry.file_name();
                    name.to_str().is_some_and(|name| {
                        name.len() >= before.len() + after.len()
                            && name.starts_with(before)
                            && name.ends_with(after)
                    })
                })
                .map(|entry| entry.path())
                .collect(),
        };
    }
    matches
}

/// Asks `folder/postgres` for its version. `Ok(None)` where there is none, a remark where it is unusable.
fn examine(folder: &Path) -> Result<Option<Binaries>, String> {
    // The server is started from the root folder, where a relative path would lead elsewhere.
    let folder = std::path::absolute(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let postgres = folder.join("postgres");
    if !postgres.is_file() {
        return Ok(None);
    }
    let output = Command::new(&postgres)
        .arg("--version")
        .output()
        .map_err(|error| format!("{} does not run: {error}", postgres.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (major, minor) = parse_version(&text)
        .ok_or_else(|| format!("{} does not tell its version: {:?}", postgres.display(), text.trim()))?;
    if !(OLDEST_SUPPORTED..=NEWEST_SUPPORTED).contains(&major) {
        return Err(format!("{} is version {major}", postgres.display()));
    }
    if !folder.join("initdb").is_file() {
        return Err(format!("{} has no initdb beside it", postgres.display()));
    }
    Ok(Some(Binaries { bin_dir: folder, major, minor }))
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is (15, 18); `18beta1` is (18, 0).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let (major, rest) =
        version.split_at(version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len()));
    let minor = rest.strip_prefix('.').map_or("0", |minor| minor);
    let minor = &minor[..minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len())];
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases_and_betas() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1"), Some((18, 0)));
        assert_eq!(parse_version("postgres (PostgreSQL) 17.2a"), Some((17, 2)));
        assert_eq!(parse_version("hello"), None);
    }
}
