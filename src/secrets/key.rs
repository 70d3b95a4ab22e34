//! The two halves of a key, and their texts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hpke::{Deserializable, Kem as _, Serializable};
use secrecy::zeroize::Zeroizing;
use std::fmt;
use std::str::FromStr;

pub(super) type Kem = hpke::kem::X25519HkdfSha256;

const PUBLIC: &str = "rosterd-public-key-1:";
const PRIVATE: &str = "rosterd-private-key-1:";

/// Which key a secret is sealed for: the first eight bytes of the public key, written as 16 hexadecimal digits. It
/// finds the key; what vouches for it is the encryption itself, which takes in the whole public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    pub(super) fn bytes(self) -> [u8; 8] {
        self.0
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    fn of(key: &<Kem as hpke::Kem>::PublicKey) -> Self {
        let mut id = [0; 8];
        for (to, from) in id.iter_mut().zip(key.to_bytes()) {
            *to = from;
        }
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// As [`KeyId`] is displayed; anything else is no key id.
impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(is_hex) {
            return Err(KeyError::Id);
        }
        u64::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| KeyError::Id)
    }
}

/// What is wrong with the text of a key. No text of it repeats any of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 16 hexadecimal digits.
    #[error("a key id is 16 digits 0 to 9 and a to f")]
    Id,
    /// Something else where a public key should be.
    #[error("that is no public key: one begins with {PUBLIC} and is printed by `rosterd secret keygen`")]
    NotPublic,
    /// A private key where a public one should be.
    #[error(
        "that is a private key, a public one is wanted; keep the private one to its file, and if others could see \
         it just now (on the command line they can) make a new one"
    )]
    PrivateShown,
    /// Something else where a private key should be.
    #[error(
        "holds no private key: it has one line that begins with {PRIVATE}, as `rosterd secret keygen` writes it"
    )]
    NotPrivate,
}

/// The half that seals. It is no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    pub(super) key: <Kem as hpke::Kem>::PublicKey,
}

impl PublicKey {
    fn new(key: <Kem as hpke::Kem>::PublicKey) -> Self {
        Self { id: KeyId::of(&key), key }
    }

    /// By what sealed fields name it.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", STANDARD.encode(self.key.to_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.contains(PRIVATE) {
            return Err(KeyError::PrivateShown);
        }
        let text = text.strip_prefix(PUBLIC).ok_or(KeyError::NotPublic)?;
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::NotPublic)?;
        <Kem as hpke::Kem>::PublicKey::from_bytes(&bytes).map(Self::new).map_err(|_| KeyError::NotPublic)
    }
}

/// The half that opens. Never printed; erased from memory when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    pub(super) key: <Kem as hpke::Kem>::PrivateKey,
    public: PublicKey,
}

impl PrivateKey {
    fn new(key: <Kem as hpke::Kem>::PrivateKey) -> Self {
        let public = PublicKey::new(Kem::sk_to_pk(&key));
        Self { key, public }
    }

    /// A fresh key.
    ///
    /// # Panics
    /// If the operating system has no random bytes to give.
    pub fn generate() -> Self {
        Self::new(Kem::gen_keypair().0)
    }

    /// The half that seals.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The text of a key file.
    pub fn to_file(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(<[u8; 32]>::from(self.key.to_bytes()));
        let encoded = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        Zeroizing::new(format!(
            "# A private key of rosterd: whoever has it can open the secrets sealed for key {}.\n\
             # Its public half: {}\n{PRIVATE}{}\n",
            self.public.id,
            self.public,
            encoded.as_str(),
        ))
    }

    /// From the text of a key file: comments (`#`), empty lines, and one key.
    pub fn from_file(text: &str) -> Result<Self, KeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let key = lines.next().and_then(|line| line.strip_prefix(PRIVATE)).ok_or(KeyError::NotPrivate)?;
        if lines.next().is_some() {
            return Err(KeyError::NotPrivate);
        }
        let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| KeyError::NotPrivate)?);
        <Kem as hpke::Kem>::PrivateKey::from_bytes(&bytes).map(Self::new).map_err(|_| KeyError::NotPrivate)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("id", &self.public.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file_and_only_its_public_half_is_ever_printed() {
        let key = PrivateKey::generate();
        let file = key.to_file();
        let again = PrivateKey::from_file(&file).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse::<PublicKey>().as_ref(), Ok(key.public()));
        let id = key.public().id();
        assert_eq!(id.to_string().parse::<KeyId>(), Ok(id));
        let secret = file.lines().last().unwrap().strip_prefix(PRIVATE).unwrap();
        assert!(!format!("{key:?} {again:?}").contains(secret));
        assert_ne!(PrivateKey::generate().public(), key.public());
    }

    #[test]
    fn a_text_that_is_no_key_is_refused_and_never_repeated() {
        let file = PrivateKey::generate().to_file();
        assert_eq!(file.lines().last().unwrap().parse::<PublicKey>().unwrap_err(), KeyError::PrivateShown);
        for bad in ["", "canary", "rosterd-public-key-1:canary", "rosterd-public-key-1:Y2FuYXJ5"] {
            assert_eq!(bad.parse::<PublicKey>().unwrap_err(), KeyError::NotPublic);
            assert!(!bad.parse::<PublicKey>().unwrap_err().to_string().contains("canary"));
        }
        let twice = format!("{}{}", file.as_str(), file.as_str());
        for bad in
            ["", "# nothing\n", "rosterd-private-key-1:canary", "rosterd-private-key-1:Y2FuYXJ5", &twice]
        {
            let error = PrivateKey::from_file(bad).unwrap_err();
            assert!(error == KeyError::NotPrivate && !error.to_string().contains("canary"));
        }
        for bad in ["", "0123456789abcde", "0123456789ABCDEF", "+123456789abcdef", "0123456789abcdef0"] {
            assert_eq!(bad.parse::<KeyId>(), Err(KeyError::Id), "{bad}");
        }
    }
}
