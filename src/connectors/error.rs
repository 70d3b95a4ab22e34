//! Why a call has no answer.

use super::net::AddressRefused;
use crate::limits::LimitError;

/// Why there is no answer. No text of it holds a secret of the source.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Address, Port, `AuthInfo` or `Payload` do not make sense.
    #[error("failed to use source {name}: {problem}")]
    Source {
        /// `SourceConfig.Source` and ID.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The call itself does not make sense.
    #[error("failed to make the call: {0}")]
    Call(String),
    /// The address may not be called.
    #[error("failed to connect to {host}: {reason}")]
    Refused {
        /// The host of the source, or of its `TokenUrl`.
        host: String,
        /// Why not.
        reason: AddressRefused,
    },
    /// Whoever answered could not prove to be that host.
    #[error("failed to connect to {host}: {problem}")]
    Tls {
        /// The host of the source, or of its `TokenUrl`.
        host: String,
        /// What is wrong with its certificate, and what to do.
        problem: String,
    },
    /// The call was not granted.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The source's `TokenUrl` gave no token.
    #[error("failed to get a token from {url}: {problem}")]
    Token {
        /// `TokenUrl` without its query.
        url: String,
        /// What it answered.
        problem: String,
        /// Whether it may give one later.
        passing: bool,
    },
    /// The run was cancelled in the middle of the call.
    #[error("failed to finish {call}: the run was cancelled")]
    Cancelled {
        /// Method and address.
        call: String,
    },
    /// The runner's lease lapsed in the middle of the call, which was ended. A job that returns this has its attempt given
    /// back.
    #[error("failed to finish {call}: it was ended")]
    Lapsed {
        /// Method and address.
        call: String,
        /// Why.
        #[source]
        why: sqlx::Error,
    },
    /// Time ran out (`sources.connect_timeout_seconds`, `sources.idle_timeout_seconds`,
    /// `sources.request_timeout_seconds`).
    #[error("failed to finish {call}: time ran out (`sources.{key}`)")]
    Timeout {
        /// Method and address.
        call: String,
        /// Which of the three.
        key: &'static str,
    },
    /// No connection, or it broke.
    #[error("failed to finish {call}: {problem}")]
    Transport {
        /// Method and address.
        call: String,
        /// What the network said.
        problem: String,
    },
    /// An answer came that nobody can use: it does not decompress, or its pages lead nowhere.
    #[error("failed to understand the answer to {call}: {problem}")]
    Answer {
        /// Method and address.
        call: String,
        /// What is wrong.
        problem: String,
    },
}

impl ClientError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Source { .. }
            | Self::Call(_)
            | Self::Refused { .. }
            | Self::Tls { .. }
            | Self::Answer { .. } => false,
            Self::Limit(error) => !matches!(error, LimitError::Inactive { .. } | LimitError::Unknown(_)),
            Self::Token { passing, .. } => *passing,
            Self::Cancelled { .. } | Self::Lapsed { .. } | Self::Timeout { .. } | Self::Transport { .. } => {
                true
            }
        }
    }
}
