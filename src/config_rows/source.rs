//! `SourceConfig`: one credentialed connection to an outside system, and how hard it may be hit.

use super::Masker;
use crate::secrets::{Holder, Keyring, NAMES};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A connection to an outside system.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// `SourceConfig.ID`.
    pub id: Uuid,
    /// The kind of system: JIRA, Nexpose, HTTP, ...
    pub source: String,
    /// The organization it belongs to.
    pub organization: Uuid,
    /// Host name or base URL, as the operator gave it.
    pub address: String,
    /// Port, if it is not the usual one.
    pub port: Option<u16>,
    /// Credentials and limits.
    pub auth: AuthInfo,
    /// Settings of its connector.
    pub payload: Value,
}

/// `SourceConfig.AuthInfo`. Its fields are read one by one; as a whole it is never printed. Sealed fields
/// ([`crate::secrets`]) read like all others once they are opened.
#[derive(Clone)]
pub struct AuthInfo {
    fields: Value,
    opened: Arc<BTreeMap<String, SecretString>>,
    problem: Option<Arc<str>>,
}

impl AuthInfo {
    /// Calls in flight at once where `Concurrency` is missing (contract section 3).
    pub const DEFAULT_CONCURRENCY: NonZeroU32 = NonZeroU32::new(10).unwrap();

    /// From the column, without sealed fields: they stay closed.
    pub fn new(fields: Value) -> Self {
        Self { fields, opened: Arc::default(), problem: None }
    }

    /// From the column, with what these keys open.
    pub(crate) fn open(fields: &Value, holder: &Holder<'_>, keys: &Keyring) -> Self {
        let read = Self::new(fields.clone());
        match keys.open(holder, fields) {
            Ok(opened) => Self { opened: Arc::new(opened), ..read },
            Err(problem) => Self { problem: Some(problem.into()), ..read },
        }
    }

    /// Why no job may use it: a field that does not open, or plaintext where that is refused. A sentence that names
    /// the source and the field.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Least time between the starts of two calls; the column counts nanoseconds. The database's CHECK keeps
    /// it from 0 to an hour.
    pub fn delay(&self) -> Duration {
        Duration::from_nanos(self.fields.get("Delay").and_then(Value::as_u64).unwrap_or(0))
    }

    /// Most calls in flight at once. The database's CHECK keeps it from 1 to 1024.
    pub fn concurrency(&self) -> NonZeroU32 {
        self.fields
            .get("Concurrency")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .and_then(NonZeroU32::new)
            .unwrap_or(Self::DEFAULT_CONCURRENCY)
    }

    /// A text field that is no secret, such as `Username`.
    pub fn text(&self, field: &str) -> Option<&str> {
        match self.opened.get(field) {
            Some(opened) => Some(opened.expose_secret()),
            None => self.fields.get(field).and_then(Value::as_str),
        }
    }

    /// A secret field, such as `Password` or `Token`.
    pub fn secret(&self, field: &str) -> Option<SecretString> {
        self.text(field).map(SecretString::from)
    }

    /// The secrets among its fields, for masking what others print: every text except names, and whatever was sealed.
    pub fn secrets(&self) -> Vec<SecretString> {
        let plain = self.fields.as_object().into_iter().flatten();
        let plain =
            plain.filter(|(name, _)| !NAMES.contains(&name.as_str())).filter_map(|(_, value)| value.as_str());
        let opened = self.opened.values().map(ExposeSecret::expose_secret);
        plain.chain(opened).filter(|value| !value.is_empty()).map(SecretString::from).collect()
    }

    /// `text` with every secret of this source masked, also where it is written as URLs, JSON or base64 do.
    pub fn mask(&self, text: &str) -> String {
        self.masker().mask(text)
    }

    /// What masks its secrets, for many texts.
    pub fn masker(&self) -> Masker {
        let mut secrets = self.secrets();
        // As basic authentication writes them; the password alone leaves the ends of it.
        for (user, secret) in [("Username", "Password"), ("ClientID", "ClientSecret")] {
            if let (Some(user), Some(secret)) = (self.text(user), self.secret(secret)) {
                secrets.push(BASE64_STANDARD.encode(format!("{user}:{}", secret.expose_secret())).into());
            }
        }
        Masker::new(secrets)
    }

    /// The names of its fields and whether each is a text, for those who check them.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        self.fields
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.is_string() || self.opened.contains_key(name)))
    }
}

impl fmt::Debug for AuthInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthInfo")
            .field("delay", &self.delay())
            .field("concurrency", &self.concurrency())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SecretsSection};
    use crate::secrets::{PrivateKey, Sealed};
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn delay_and_concurrency_default_to_0_and_10() {
        let auth = AuthInfo::new(json!({}));
        assert_eq!((auth.delay(), auth.concurrency().get()), (Duration::ZERO, 10));
        let auth = AuthInfo::new(json!({"Delay": 1_500_000_000_u64, "Concurrency": 3}));
        assert_eq!((auth.delay(), auth.concurrency().get()), (Duration::from_millis(1500), 3));
    }

    #[test]
    fn credentials_never_reach_the_debug_output() {
        let auth = AuthInfo::new(json!({"Username": "svc", "Password": "canary-1", "Token": "canary-2"}));
        let printed = format!("{auth:?}");
        assert!(!printed.contains("canary") && !printed.contains("svc"), "{printed}");
    }

    #[test]
    fn a_sealed_field_reads_and_is_masked_like_any_other_once_it_is_opened() {
        let key = PrivateKey::generate();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, key.to_file().as_bytes()).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let keys = Keyring::load(&SecretsSection { keys: vec![file], ..Config::built_in().secrets }).unwrap();
        let holder = Holder {
            id: Uuid::nil(),
            source: "JIRA",
            organization: Uuid::nil(),
            address: "https://H/x",
            token_url: None,
        };
        let places = holder.places("Username", "h").unwrap();
        let sealed =
            Sealed::seal(&"canary-1".into(), key.public(), &holder.binding("Username", &places)).unwrap();
        let fields = json!({"Username": sealed.to_json(), "Token": "canary-2", "Delay": 5});
        let auth = AuthInfo::open(&fields, &holder, &keys);
        assert_eq!((auth.problem(), auth.text("Username")), (None, Some("canary-1")));
        assert_eq!(auth.secret("Username").unwrap().expose_secret(), "canary-1");
        assert_eq!(auth.mask("canary-1 canary-2"), "*** ***");
        assert!(!format!("{auth:?}").contains("canary"));
        let auth = AuthInfo::open(&fields, &Holder { address: "h2", ..holder }, &keys);
        assert_eq!(auth.text("Username"), None);
        let problem = auth.problem().unwrap();
        assert!(
            problem
                .starts_with("source JIRA (00000000-0000-0000-0000-000000000000): Username in its AuthInfo")
        );
        assert!(problem.contains("host h2 of its Address") && !problem.contains("canary"), "{problem}");
    }

    #[test]
    fn a_secret_is_masked_wherever_it_is_printed() {
        let auth = AuthInfo::new(json!({"Username": "svc", "Password": "canary-1"}));
        assert_eq!(auth.mask("svc:canary-1@host"), "svc:***@host");
        let auth = AuthInfo::new(json!({"A": "canary", "B": "canary-1"}));
        assert_eq!(auth.mask("canary-1 canary"), "*** ***");
    }
}
