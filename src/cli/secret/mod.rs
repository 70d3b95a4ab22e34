//! `rosterd secret`: keys, sealed secrets, and how many there are.

mod keygen;
mod rewrap;
mod seal;
pub(super) mod standing;
mod typed;

use super::{Failure, Global, load_config};
use crate::config::Config;
use crate::secrets::{PublicKey, SealError};

/// What to do with secrets of sources.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Secret {
    /// Make a key: the private half goes into a file, the public half is printed.
    Keygen(keygen::Keygen),
    /// Seal a secret, read from standard input or typed in, so that only a daemon with the private key can open it.
    Seal(seal::Seal),
    /// Seal every secret that can be opened here anew, for another key or another address.
    Rewrap(rewrap::Rewrap),
    /// Show how many secrets stand in AuthInfo, by key, and those that do not open.
    Status(standing::Status),
}

pub(super) fn run(global: &Global, command: &Secret) -> Result<(), Failure> {
    let settings = || load_config(global);
    match command {
        Secret::Keygen(args) => keygen::run(args),
        Secret::Seal(args) => seal::run(&settings()?, args),
        Secret::Rewrap(args) => rewrap::run(&settings()?, args),
        Secret::Status(args) => standing::run(&settings()?, args),
    }
}

/// The key to seal for: the option, else `secrets.public_key`.
fn public_key(option: Option<&str>, settings: &Config) -> Result<Option<PublicKey>, Failure> {
    let configured = Some(settings.secrets.public_key.as_str()).filter(|key| !key.is_empty());
    option.or(configured).map(|text| text.parse().map_err(Failure::usage)).transpose()
}

fn no_public_key() -> Failure {
    Failure::usage(
        "no key to seal for: give --public-key, or set `secrets.public_key`; `rosterd secret keygen` makes one",
    )
}

impl From<SealError> for Failure {
    fn from(error: SealError) -> Self {
        Self::usage(error)
    }
}
