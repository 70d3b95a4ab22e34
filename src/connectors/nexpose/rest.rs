//! Calls of the console's API, and what its refusals say.

use super::wire::Refused;
use crate::connectors::scanner::ScannerError;
use crate::connectors::{Answer, Call, ClientError, Method, SourceClient, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The console, as this source reaches it.
#[derive(Debug)]
pub(super) struct Rest {
    client: SourceClient,
}

/// Why there is no answer that can be used. The sentences hold no secret.
#[derive(Debug)]
pub(super) enum Failure {
    Client(ClientError),
    /// The console said no.
    Refused {
        status: StatusCode,
        sentence: String,
    },
    /// The answer is longer than may be read.
    TooLong(String),
    /// The answer makes no sense.
    Odd(String),
}

/// Of a refusal that is repeated in an error.
const REPEATED: usize = 500;
/// What an identifier keeps in a path. A dot is none of it, because "." and ".." lead elsewhere.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    /// Where it ends everything.
    pub(super) fn into_error(self, rest: &Rest) -> ScannerError {
        match self {
            Self::Client(error) => ScannerError::Client(error),
            Self::Refused { status, sentence } if is_passing(status) => ScannerError::Answer(sentence),
            Self::Refused { sentence, .. } | Self::TooLong(sentence) => rest.source_problem(sentence),
            Self::Odd(sentence) => ScannerError::Answer(sentence),
        }
    }

    /// Where it may be about this item alone. A console that wants no calls, or none of ours, says that of all of them.
    pub(super) fn of_item(self, rest: &Rest, item: impl Into<String>) -> ScannerError {
        let its_own = [
            StatusCode::NOT_FOUND,
            StatusCode::GONE,
            StatusCode::BAD_REQUEST,
            StatusCode::CONFLICT,
            StatusCode::INTERNAL_SERVER_ERROR,
        ];
        match self {
            Self::Refused { status, sentence: problem } if its_own.contains(&status) => {
                ScannerError::Item { item: item.into(), problem }
            }
            Self::TooLong(problem) | Self::Odd(problem) => ScannerError::Item { item: item.into(), problem },
            other => other.into_error(rest),
        }
    }

    /// Whether there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. })
    }

    /// Whether what was asked for may have been done all the same.
    pub(super) fn is_in_doubt(&self) -> bool {
        match self {
            Self::Client(error) => !matches!(
                error,
                ClientError::Source { .. }
                    | ClientError::Call(_)
                    | ClientError::Refused { .. }
                    | ClientError::Tls { .. }
                    | ClientError::Limit(_)
                    | ClientError::Token { .. }
            ),
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::TooLong(_) | Self::Odd(_) => true,
        }
    }
}

impl Rest {
    pub(super) fn new(client: SourceClient) -> Self {
        Self { client }
    }

    /// How many calls the source takes at once: more than these would only wait.
    pub(super) fn concurrency(&self) -> usize {
        self.client.source().auth.concurrency().get() as usize
    }

    /// An error about this source.
    pub(super) fn source_problem(&self, problem: impl Into<String>) -> ScannerError {
        let source = self.client.source();
        ScannerError::Source {
            name: format!("{} ({})", source.source, source.id),
            problem: self.client.mask(&problem.into()),
        }
    }

    pub(super) fn get(tail: &str) -> Call {
        Call::get(path(tail))
    }

    /// Calls, and tells a refusal from an answer. `doing` finishes "the console refused to ".
    pub(super) async fn call(&self, call: Call, doing: &str) -> Result<Answer, Failure> {
        let answer = self.client.call(call).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let refused: Refused = serde_json::from_slice(&answer.body).unwrap_or_default();
        let said = super::prose::one_line(&refused.message, REPEATED);
        let sentence = self.client.mask(&sentence(answer.status, doing, &said));
        Err(Failure::Refused { status: answer.status, sentence })
    }

    /// The same, and reads the answer.
    pub(super) async fn read<T: DeserializeOwned>(&self, call: Call, doing: &str) -> Result<T, Failure> {
        let answer = self.call(call, doing).await?;
        if answer.truncated {
            return Err(Failure::TooLong(format!(
                "the console was asked to {doing}, and its answer is longer than `sources.response_max_bytes`; give more"
            )));
        }
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&answer.body)).map_err(
            |error| {
                Failure::Odd(self.client.mask(&format!(
                    "the console was asked to {doing}, and its answer does not make sense: {error}; does Address lead \
                     to the console?"
                )))
            },
        )
    }

    pub(super) async fn get_one<T: DeserializeOwned>(&self, tail: &str, doing: &str) -> Result<T, Failure> {
        self.read(Self::get(tail), doing).await
    }

    /// Sent once: after a call without an answer what it makes may be there, and only a look can tell.
    pub(super) async fn create<T: DeserializeOwned>(
        &self,
        tail: &str,
        body: &impl Serialize,
        doing: &str,
    ) -> Result<T, Failure> {
        let body = serde_json::to_value(body).map_err(|error| Failure::Odd(error.to_string()))?;
        self.read(Call::post_json(path(tail), &body), doing).await
    }

    /// What is not there counts as deleted.
    pub(super) async fn delete(&self, tail: &str, doing: &str) -> Result<(), Failure> {
        match self.call(Call::new(Method::DELETE, path(tail)), doing).await {
            Err(failure) if !failure.is_not_found() => Err(failure),
            _ => Ok(()),
        }
    }
}

fn path(tail: &str) -> String {
    format!("/api/3/{tail}")
}

/// An identifier as a part of a path, where it leads nowhere but to what it names.
pub(super) fn part(id: &str) -> Result<String, Failure> {
    if id.is_empty() || [".", ".."].contains(&id) {
        return Err(Failure::Odd(format!("{id:?} is no identifier")));
    }
    Ok(utf8_percent_encode(id, KEPT).to_string())
}

/// Whether the same call may be answered later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT
                | StatusCode::CONFLICT
                | StatusCode::LOCKED
                | StatusCode::TOO_MANY_REQUESTS
        )
}

fn sentence(status: StatusCode, doing: &str, said: &str) -> String {
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    match status {
        StatusCode::UNAUTHORIZED => {
            format!("the console refused to {doing} ({status}): it does not accept the credentials{said}")
        }
        StatusCode::FORBIDDEN => format!(
            "the console refused to {doing} ({status}): the credentials are those of an account that may not do \
             this{said}"
        ),
        StatusCode::NOT_FOUND => {
            format!(
                "the console refused to {doing} ({status}): it has no such thing, or the account may not see it{said}"
            )
        }
        StatusCode::TOO_MANY_REQUESTS => {
            format!(
                "the console refused to {doing} ({status}): it gets too many calls; give a larger Delay{said}"
            )
        }
        status if status.is_redirection() => format!(
            "the console was asked to {doing}, and answered with a redirect ({status}), which is not followed; give the \
             address it leads to as Address"
        ),
        _ => format!("the console refused to {doing} ({status}){said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_leads_nowhere_but_to_what_it_names() {
        assert_eq!(part("msft-cve-2017-11804").unwrap(), "msft-cve-2017-11804");
        assert_eq!(part("a.b/../c?d").unwrap(), "a%2Eb%2F%2E%2E%2Fc%3Fd");
        assert!([part(""), part("."), part("..")].iter().all(Result::is_err));
    }
}
