//! The private keys of a daemon, and what it opens with them.

use super::{
    ALWAYS_READABLE, Binding, KeyId, NAMES, PrivateKey, SENT_TO_TOKEN_URL, Sealed, place_of, token_place_of,
};
use crate::config::SecretsSection;
use rustix::fs::{FileType, Mode};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;

/// Credentials of systemd whose names begin so are private keys.
const CREDENTIAL: &str = "secret-key";
/// A key file is smaller.
const MAX_FILE_BYTES: u64 = 4096;

/// Private keys, several while they are rotated, and whether secrets may also stand in plaintext. The default has no
/// key and allows no plaintext.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: BTreeMap<KeyId, PrivateKey>,
    allow_plaintext: bool,
    /// Sources whose plaintext was warned of.
    told: Mutex<HashSet<Uuid>>,
}

/// What is wrong with the key files, a sentence a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct KeyringError(Vec<String>);

/// The source that a secret is found in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder<'a> {
    pub(crate) id: Uuid,
    pub(crate) source: &'a str,
    pub(crate) organization: Uuid,
    pub(crate) address: &'a str,
    /// `TokenUrl` of its `AuthInfo`, as it stands there.
    pub(crate) token_url: Option<&'a Value>,
}

/// Where a field of a source goes: what a secret in it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// Of Address.
    address: String,
    /// Of `TokenUrl`, if the field is sent there; else empty.
    token: String,
}

impl Keyring {
    /// The keys of `secrets.keys` and those systemd gives as credentials whose names begin with `secret-key`.
    pub fn load(settings: &SecretsSection) -> Result<Self, KeyringError> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self::read(settings, credentials.as_deref())
    }

    fn read(settings: &SecretsSection, credentials: Option<&Path>) -> Result<Self, KeyringError> {
        let mut problems = Vec::new();
        let mut files = settings.keys.clone();
        match credentials.map(credential_files) {
            Some(Ok(found)) => files.extend(found),
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
        let mut keys = BTreeMap::new();
        for file in files {
            let is_credential = credentials.is_some_and(|folder| file.starts_with(folder));
            match read_key(&file, is_credential) {
                Ok(key) => drop(keys.insert(key.public().id(), key)),
                Err(problem) => problems.push(format!("the key file {} {problem}", file.display())),
            }
        }
        if !problems.is_empty() {
            return Err(KeyringError(problems));
        }
        Ok(Self { keys, allow_plaintext: settings.allow_plaintext, told: Mutex::default() })
    }

    /// Whether there is no key in it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of this id.
    pub fn key(&self, id: KeyId) -> Option<&PrivateKey> {
        self.keys.get(&id)
    }

    /// Opens the sealed fields of a source's `AuthInfo`. The error is a sentence for the operator, and holds no secret.
    pub(crate) fn open(
        &self,
        holder: &Holder<'_>,
        auth: &Value,
    ) -> Result<BTreeMap<String, SecretString>, String> {
        let mut opened = BTreeMap::new();
        let mut plain = Vec::new();
        for (field, value) in auth.as_object().into_iter().flatten() {
            match Sealed::read(value) {
                Some(sealed) => {
                    let sealed = sealed.map_err(|e| holder.problem(field, &e.to_string()))?;
                    opened.insert(field.clone(), self.open_field(holder, field, &sealed)?);
                }
                None if is_plain_secret(field, value) => plain.push(field.as_str()),
                None => {}
            }
        }
        if let Some(field) = plain.first() {
            let plain = plain.join(", ");
            let seal = holder.seal_command(field);
            if !self.allow_plaintext {
                return Err(holder.problem(
                    &plain,
                    &format!("is plaintext, and `secrets.allow_plaintext` is false; seal it with `{seal}`"),
                ));
            }
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(holder.id) {
                tracing::warn!(
                    "{}",
                    holder.problem(
                        &plain,
                        &format!("is plaintext: whoever reads the table or a backup reads it; seal it with `{seal}`")
                    )
                );
            }
        }
        Ok(opened)
    }

    /// Opens one field.
    pub(crate) fn open_field(
        &self,
        holder: &Holder<'_>,
        field: &str,
        sealed: &Sealed,
    ) -> Result<SecretString, String> {
        let key = self.keys.get(&sealed.key()).ok_or_else(|| {
            holder.problem(
                field,
                &format!(
                    "is sealed for key {}, which is not here; name its file in `secrets.keys`, or seal the secret \
                     anew with `{}`",
                    sealed.key(),
                    holder.seal_command(field),
                ),
            )
        })?;
        let places = holder
            .places(field, holder.address)
            .map_err(|problem| format!("{}: {problem}", holder.name()))?;
        sealed.open(key, &holder.binding(field, &places)).map_err(|_| {
            // What goes to two places may have been sealed for one, by a version that knew no better.
            let give_back = if places.token.is_empty() { "the Address" } else { "the Address and TokenUrl" };
            holder.problem(
                field,
                &format!(
                    "does not open: it was not sealed for this source, organization and field and {places}, or was \
                     altered; give back {give_back} it was sealed for (`rosterd secret rewrap --new-address` moves it with \
                     its secrets), or seal the secret anew with `{}`",
                    holder.seal_command(field),
                ),
            )
        })
    }
}

impl Holder<'_> {
    pub(crate) fn name(&self) -> String {
        format!("source {} ({})", self.source, self.id)
    }

    /// Where a field goes while the source has this Address. An error finishes "this source: ".
    pub(crate) fn places(&self, field: &str, address: &str) -> Result<Places, String> {
        let token = match self.token_url.filter(|_| SENT_TO_TOKEN_URL.contains(&field)) {
            None | Some(Value::Null) => None,
            Some(Value::String(url)) => Some(url.as_str()),
            // Whoever has the public key may seal a TokenUrl of their own, so a sealed one vouches for nothing.
            Some(_) => {
                return Err(format!(
                    "TokenUrl in its AuthInfo is sealed or no text, and {field} is bound to its host; give TokenUrl as a text"
                ));
            }
        };
        Places::of(address, token)
    }

    pub(crate) fn binding<'a>(&self, field: &'a str, places: &'a Places) -> Binding<'a> {
        Binding {
            organization: self.organization,
            source: self.id,
            field,
            place: &places.address,
            token_place: &places.token,
        }
    }

    pub(crate) fn problem(&self, field: &str, problem: &str) -> String {
        format!("{}: {field} in its AuthInfo {problem}", self.name())
    }

    /// What an operator may copy into a shell, so a field whose name could do something there is not repeated.
    fn seal_command(&self, field: &str) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let field = if field.chars().all(is_plain) { field } else { "NAME" };
        format!("rosterd secret seal --source {} --field {field} --write", self.id)
    }
}

impl Places {
    /// Of an Address, and of the `TokenUrl` of a field that is sent there. An error finishes "this source: ".
    pub(crate) fn of(address: &str, token_url: Option<&str>) -> Result<Self, String> {
        let token = token_url.filter(|url| !url.is_empty()).map(token_place_of).transpose()?;
        Ok(Self { address: place_of(address)?, token: token.unwrap_or_default() })
    }
}

/// Finishes "sealed for this field and ".
impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address.is_empty() {
            f.write_str("no Address")?;
        } else {
            told(f, &self.address, "Address")?;
        }
        if self.token.is_empty() {
            return Ok(());
        }
        f.write_str(" and ")?;
        told(f, &self.token, "TokenUrl")
    }
}

fn told(f: &mut fmt::Formatter<'_>, place: &str, of: &str) -> fmt::Result {
    match place.strip_prefix("http://") {
        Some(host) => write!(f, "host {host} of its {of} (http)"),
        None => write!(f, "host {place} of its {of}"),
    }
}

/// Whether a field of `AuthInfo` holds a secret as anybody can read it.
pub(crate) fn is_plain_secret(field: &str, value: &Value) -> bool {
    !NAMES.contains(&field)
        && !ALWAYS_READABLE.contains(&field)
        && value.as_str().is_some_and(|text| !text.is_empty())
}

fn credential_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fail =
        |e: std::io::Error| format!("the folder of credentials {} cannot be read: {e}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_string_lossy().starts_with(CREDENTIAL) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a key file that only its owner, root or this user, can read. A problem finishes "the key file ... ".
fn read_key(file: &Path, is_credential: bool) -> Result<PrivateKey, String> {
    let opened = File::open(file).map_err(|e| format!("cannot be read: {e}"))?;
    // Of the very file that is read: the name may stand for another a moment later.
    let stat = rustix::fs::fstat(&opened).map_err(|e| format!("cannot be looked at: {e}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("is no ordinary file".to_owned());
    }
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(format!("belongs to user {}; give it to root or to the daemon's own user", stat.st_uid));
    }
    // Where systemd lets the user in by an access list, the list's mask stands in the place of the group.
    let may = if is_credential { Mode::RUSR | Mode::WUSR | Mode::RGRP } else { Mode::RUSR | Mode::WUSR };
    let mode = Mode::from_raw_mode(stat.st_mode);
    if !may.contains(mode) {
        return Err(format!("has mode {:04o}; chmod 0600 makes it usable", mode.as_raw_mode()));
    }
    let mut text = Zeroizing::new(String::new());
    opened.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|e| format!("cannot be read: {e}"))?;
    PrivateKey::from_file(&text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(file: &Path, key: &PrivateKey, mode: u32) {
        std::fs::write(file, key.to_file().as_bytes()).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn section(keys: &[&Path]) -> SecretsSection {
        let keys = keys.iter().map(|file| (*file).to_owned()).collect();
        SecretsSection { keys, ..crate::config::Config::built_in().secrets }
    }

    #[test]
    fn keys_come_from_files_and_from_credentials_called_secret_key() {
        let folder = tempfile::tempdir().unwrap();
        let (own, credentials) = (folder.path().join("own"), folder.path().join("credentials"));
        std::fs::create_dir(&credentials).unwrap();
        let keys: Vec<PrivateKey> = (0..4).map(|_| PrivateKey::generate()).collect();
        write(&own, &keys[0], 0o400);
        // As systemd leaves them: with an access list for the user, or as the user's own.
        write(&credentials.join("secret-key"), &keys[1], 0o440);
        write(&credentials.join("secret-key-2027"), &keys[2], 0o400);
        write(&credentials.join("database-password"), &keys[3], 0o644);
        symlink(&own, credentials.join("secret-key-again")).unwrap();
        let ring = Keyring::read(&section(&[&own]), Some(&credentials)).unwrap();
        let known: Vec<bool> = keys.iter().map(|key| ring.key(key.public().id()).is_some()).collect();
        assert_eq!(known, [true, true, true, false]);
        assert!(Keyring::read(&section(&[]), None).unwrap().is_empty());
    }

    #[test]
    fn no_sentence_makes_a_shell_command_of_the_name_of_a_field() {
        let holder = Holder {
            id: Uuid::nil(),
            source: "HTTP",
            organization: Uuid::nil(),
            address: "h",
            token_url: None,
        };
        let problem =
            |field: &str| Keyring::default().open(&holder, &serde_json::json!({ field: "x" })).unwrap_err();
        assert!(problem("Password").contains("--field Password --write`"));
        assert!(problem("$(reboot)").contains("--field NAME --write`"));
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused_with_its_name_and_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        for mode in [0o640, 0o604, 0o660, 0o644, 0o700, 0o666] {
            write(&file, &PrivateKey::generate(), mode);
            let error = Keyring::read(&section(&[&file]), None).unwrap_err().to_string();
            let wanted =
                format!("the key file {} has mode {mode:04o}; chmod 0600 makes it usable", file.display());
            assert_eq!(error, wanted);
        }
        write(&file, &PrivateKey::generate(), 0o600);
        assert!(Keyring::read(&section(&[&file]), None).is_ok());
        let (missing, folder) = (folder.path().join("missing"), folder.path());
        let error = Keyring::read(&section(&[&missing, folder]), None).unwrap_err().to_string();
        assert!(error.lines().count() == 2 && error.contains("missing cannot be read"), "{error}");
    }
}
