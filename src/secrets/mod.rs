//! Secrets at rest: fields of `AuthInfo` that were sealed with a public key and that only a holder of the private
//! key, the daemon, can open.
//!
//! A sealed field is an object, `{"Sealed": 1, "Key": "<key id>", "Data": "<base64>"}`. Version 1 is HPKE (RFC 9180)
//! in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. `Data` is the encapsulated key and
//! then the ciphertext. The [`Binding`] goes in as associated data, so a sealed field opens only where it was made
//! for: this organization, source, field, and host of the source's Address; what goes to a `TokenUrl`, for its host too.

mod binding;
mod host;
mod key;
mod keyring;
mod sealed;

pub use binding::Binding;
pub use host::{host_of, place_of, token_place_of};
pub use key::{KeyError, KeyId, PrivateKey, PublicKey};
pub use keyring::{Keyring, KeyringError};
pub use sealed::{SealError, Sealed};

pub(crate) use host::address_url;
pub(crate) use keyring::{Holder, is_plain_secret};

/// Text fields of `AuthInfo` that are names, not secrets.
pub(crate) const NAMES: [&str; 14] = [
    "Username",
    "Host",
    "Database",
    "TenantID",
    "ClientID",
    "Header",
    "ConsumerKey",
    "TokenUrl",
    "TokenAuth",
    "Scope",
    "Audience",
    "AccessKeyID",
    "Region",
    "Service",
];

/// Fields of `AuthInfo` that OAuth 2 sends to `TokenUrl`, and for which it fetches the token that goes to `Address`.
pub(crate) const SENT_TO_TOKEN_URL: [&str; 4] = ["ClientSecret", "ClientID", "Scope", "Audience"];

/// Fields of `AuthInfo` that operators read and change by SQL, which the database itself looks into.
pub(crate) const ALWAYS_READABLE: [&str; 2] = ["Delay", "Concurrency"];
