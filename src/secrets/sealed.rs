//! A sealed field: how it is made, opened, written and read.

use super::key::Kem;
use super::{Binding, KeyId, PrivateKey, PublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

type EncappedKey = <Kem as hpke::Kem>::EncappedKey;

/// What this kind of encryption is for, so that nothing sealed for another use of a key opens here.
const INFO: &[u8] = b"rosterd AuthInfo field, version 1";
/// Bytes of the encapsulated key, which `Data` begins with.
const ENCAPPED: usize = 32;
/// Bytes of the tag at the end of every ciphertext.
const TAG: usize = 16;

/// A sealed secret, as it stands in a field of `AuthInfo`.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    key: KeyId,
    data: Vec<u8>,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Written {
    sealed: u8,
    key: String,
    data: String,
}

/// Why nothing was sealed or opened. No text of it holds a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The public key seals nothing: it is one of the few that no private key belongs to.
    #[error("the public key cannot be used; make another with `rosterd secret keygen`")]
    Key,
    /// An object that says it is sealed, but is not as this version seals.
    #[error("is no whole sealed secret; paste what `rosterd secret seal` printed as it is")]
    Malformed,
    /// Not sealed for this place, or altered.
    #[error("does not open: it was sealed for another place, or altered")]
    Closed,
}

impl Sealed {
    /// Seals a secret for the holder of the private key, for this place alone.
    ///
    /// # Panics
    /// If the operating system has no random bytes to give.
    pub fn seal(secret: &SecretString, key: &PublicKey, binding: &Binding<'_>) -> Result<Self, SealError> {
        let (encapped, ciphertext) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &key.key,
            INFO,
            secret.expose_secret().as_bytes(),
            &binding.encode(key.id()),
        )
        .map_err(|_| SealError::Key)?;
        let mut data = encapped.to_bytes().to_vec();
        data.extend_from_slice(&ciphertext);
        Ok(Self { key: key.id(), data })
    }

    /// Opens it with the key it names, in the place where it was found.
    pub fn open(&self, key: &PrivateKey, binding: &Binding<'_>) -> Result<SecretString, SealError> {
        let (encapped, ciphertext) = self.data.split_at_checked(ENCAPPED).ok_or(SealError::Malformed)?;
        let encapped = EncappedKey::from_bytes(encapped).map_err(|_| SealError::Malformed)?;
        let plain = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &key.key,
            &encapped,
            INFO,
            ciphertext,
            &binding.encode(self.key),
        );
        let plain = Zeroizing::new(plain.map_err(|_| SealError::Closed)?);
        std::str::from_utf8(&plain).map(SecretString::from).map_err(|_| SealError::Malformed)
    }

    /// The key it is sealed for.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// A value of `AuthInfo` that says it is sealed: an object with a key `Sealed`, in any case. `None` for all
    /// others.
    pub fn read(value: &Value) -> Option<Result<Self, SealError>> {
        let object = value.as_object()?;
        if !object.keys().any(|name| name.eq_ignore_ascii_case("sealed")) {
            return None;
        }
        Some(Self::parse(value).ok_or(SealError::Malformed))
    }

    fn parse(value: &Value) -> Option<Self> {
        let written = Written::deserialize(value).ok().filter(|written| written.sealed == 1)?;
        let data = STANDARD.decode(&written.data).ok().filter(|data| data.len() >= ENCAPPED + TAG)?;
        Some(Self { key: written.key.parse().ok()?, data })
    }

    fn written(&self) -> Written {
        Written { sealed: 1, key: self.key.to_string(), data: STANDARD.encode(&self.data) }
    }

    /// As it goes into `AuthInfo`.
    pub fn to_json(&self) -> Value {
        let Written { sealed, key, data } = self.written();
        serde_json::json!({ "Sealed": sealed, "Key": key, "Data": data })
    }
}

/// The same as a line of JSON, to be pasted.
impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Written { sealed, key, data } = self.written();
        write!(f, r#"{{"Sealed": {sealed}, "Key": "{key}", "Data": "{data}"}}"#)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    const HERE: Binding<'static> = Binding {
        organization: Uuid::from_u128(1),
        source: Uuid::from_u128(2),
        field: "Password",
        place: "jira.example.com",
        token_place: "",
    };

    #[test]
    fn a_secret_opens_where_it_was_sealed_for_and_nowhere_else() {
        let key = PrivateKey::generate();
        let sealed = Sealed::seal(&"canary".into(), key.public(), &HERE).unwrap();
        assert_eq!(sealed.open(&key, &HERE).unwrap().expose_secret(), "canary");
        let elsewhere = [
            Binding { organization: HERE.source, ..HERE },
            Binding { source: HERE.organization, ..HERE },
            Binding { organization: HERE.source, source: HERE.organization, ..HERE },
            Binding { field: "Token", ..HERE },
            Binding { place: "jira.example.co", ..HERE },
            Binding { place: "http://jira.example.com", ..HERE },
            Binding { token_place: "login.example.com", ..HERE },
            Binding { field: "Passwordj", place: "ira.example.com", ..HERE },
        ];
        for binding in elsewhere {
            assert_eq!(sealed.open(&key, &binding).unwrap_err(), SealError::Closed, "{binding:?}");
        }
        assert_eq!(sealed.open(&PrivateKey::generate(), &HERE).unwrap_err(), SealError::Closed);
    }

    #[test]
    fn what_is_sealed_for_two_places_opens_for_both_alone_and_one_place_twice_is_one() {
        let key = PrivateKey::generate();
        let both = Binding { token_place: "login.example.com", ..HERE };
        let sealed = Sealed::seal(&"canary".into(), key.public(), &both).unwrap();
        assert!(sealed.open(&key, &both).is_ok());
        for binding in [
            HERE,
            Binding { token_place: "evil.example", ..HERE },
            Binding { token_place: "http://login.example.com", ..HERE },
            Binding { place: "evil.example", ..both },
            Binding { place: both.token_place, token_place: both.place, ..HERE },
        ] {
            assert_eq!(sealed.open(&key, &binding).unwrap_err(), SealError::Closed, "{binding:?}");
        }
        let sealed = Sealed::seal(&"canary".into(), key.public(), &HERE).unwrap();
        assert!(sealed.open(&key, &Binding { token_place: HERE.place, ..HERE }).is_ok());
    }

    #[test]
    fn a_sealed_secret_with_a_bit_turned_in_any_byte_does_not_open() {
        let key = PrivateKey::generate();
        let sealed = Sealed::seal(&"s".into(), key.public(), &HERE).unwrap();
        // X25519 does not look at the highest bit of a public key, but the key derivation does.
        let bits = (0..sealed.data.len()).map(|byte| byte * 8 + byte % 8).chain([ENCAPPED * 8 - 1]);
        for bit in bits {
            let mut turned = sealed.clone();
            turned.data[bit / 8] ^= 1 << (bit % 8);
            assert!(turned.open(&key, &HERE).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn two_seals_of_one_secret_have_nothing_in_common() {
        let key = PrivateKey::generate();
        let seal = || Sealed::seal(&"canary".into(), key.public(), &HERE).unwrap();
        let (one, other) = (seal(), seal());
        assert!(
            one.data[..ENCAPPED] != other.data[..ENCAPPED] && one.data[ENCAPPED..] != other.data[ENCAPPED..]
        );
        assert!(!one.to_string().contains("canary") && !format!("{one:?}").contains("Data"));
    }

    #[test]
    fn what_is_printed_is_what_is_read() {
        let sealed = Sealed::seal(&"".into(), PrivateKey::generate().public(), &HERE).unwrap();
        let printed: Value = serde_json::from_str(&sealed.to_string()).unwrap();
        assert_eq!(printed, sealed.to_json());
        assert_eq!(Sealed::read(&printed), Some(Ok(sealed.clone())));
        for plain in
            [json!("text"), json!({}), json!({ "Key": "x", "Data": "y" }), json!(["Sealed"]), json!(null)]
        {
            assert_eq!(Sealed::read(&plain), None);
        }
        let with = |field: &str, value: Value| {
            let mut object = sealed.to_json();
            object[field] = value;
            object
        };
        for broken in [
            with("Sealed", json!(2)),
            with("Sealed", json!("1")),
            with("Key", json!("0")),
            with("Data", json!("AAAA")),
            with("Data", json!("?")),
            with("More", json!(1)),
            json!({ "sealed": 1, "key": "0", "data": "" }),
            json!({ "Sealed": 1 }),
        ] {
            assert_eq!(Sealed::read(&broken), Some(Err(SealError::Malformed)), "{broken}");
        }
    }
}
