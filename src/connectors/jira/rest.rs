//! Calls of JIRA's REST API, and what its refusals say.

use super::jql::Jql;
use super::settings::Flavour;
use super::wire::{Errors, SearchPage};
use crate::connectors::ticket_engine::TicketError;
use crate::connectors::{Answer, Call, HeaderMap, Method, SourceClient, StatusCode};
use chrono::{DateTime, Utc};
use http::header::DATE;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashSet;

/// JIRA, as this source reaches it.
#[derive(Debug)]
pub(super) struct Rest {
    client: SourceClient,
    pub(super) flavour: Flavour,
}

/// What JIRA refused, and how.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Fields it complains about, and why.
    pub(super) fields: Vec<(String, String)>,
    /// What it says besides.
    pub(super) messages: Vec<String>,
    /// What was to be done, after "JIRA refused to ".
    doing: String,
    /// That nobody may log in like this, with the reason.
    login: Option<&'static str>,
}

/// Issues that a search found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) issues: Vec<Value>,
    /// Whether there are no others.
    pub(super) is_all: bool,
    /// What the clock of JIRA said, or ours if it has none.
    pub(super) clock: DateTime<Utc>,
}

/// Issues asked for at once. JIRA may answer fewer.
const PAGE: usize = 100;
/// Of an answer that is repeated in an error.
const REPEATED: usize = 1000;

impl Rest {
    pub(super) fn new(client: SourceClient, flavour: Flavour) -> Self {
        Self { client, flavour }
    }

    /// An error about this source.
    pub(super) fn source_problem(&self, problem: impl Into<String>) -> TicketError {
        let source = self.client.source();
        TicketError::Source {
            name: format!("{} ({})", source.source, source.id),
            problem: self.client.mask(&problem.into()),
        }
    }

    /// An error about one ticket whose workflow or screens do not allow it.
    pub(super) fn workflow_problem(&self, key: &str, problem: impl Into<String>) -> TicketError {
        TicketError::Workflow { key: key.to_owned(), problem: self.client.mask(&problem.into()) }
    }

    /// A path of this flavour's API; `tail` begins behind its version.
    pub(super) fn path(&self, tail: &str) -> String {
        let version = if self.flavour == Flavour::Cloud { 3 } else { 2 };
        format!("/rest/api/{version}/{tail}")
    }

    pub(super) fn get(&self, tail: &str) -> Call {
        Call::get(self.path(tail))
    }

    pub(super) fn post(&self, tail: &str, body: &Value) -> Call {
        Call::post_json(self.path(tail), body)
    }

    pub(super) fn put(&self, tail: &str, body: &Value) -> Call {
        Call { method: Method::PUT, ..self.post(tail, body) }.idempotent()
    }

    /// Calls, and tells a refusal from an answer. `doing` finishes "JIRA refused to ".
    pub(super) async fn try_call(
        &self,
        call: Call,
        doing: &str,
    ) -> Result<Result<Answer, Refusal>, TicketError> {
        let answer = self.client.call(call).await?;
        let login = login_problem(&answer.headers);
        if answer.status.is_success() && login.is_none() {
            return Ok(Ok(answer));
        }
        let errors: Errors = serde_json::from_slice(&answer.body).unwrap_or_default();
        let said = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(Err(Refusal {
            status: answer.status,
            fields: errors.errors.iter().map(|(field, why)| (field.clone(), said(why))).collect(),
            messages: errors.error_messages,
            doing: doing.to_owned(),
            login,
        }))
    }

    /// Calls; a refusal is an error.
    pub(super) async fn call(&self, call: Call, doing: &str) -> Result<Answer, TicketError> {
        self.try_call(call, doing).await?.map_err(|refusal| self.refused(refusal, |_| None))
    }

    /// The same, and reads the answer.
    pub(super) async fn read<T: DeserializeOwned>(&self, call: Call, doing: &str) -> Result<T, TicketError> {
        let answer = self.call(call, doing).await?;
        self.decode(&answer, doing)
    }

    /// What an answer says.
    pub(super) fn decode<T: DeserializeOwned>(&self, answer: &Answer, doing: &str) -> Result<T, TicketError> {
        let odd =
            |problem: String| TicketError::Answer { problem: self.client.mask(&problem), passing: false };
        if answer.truncated {
            return Err(odd(format!(
                "JIRA was asked to {doing}, and its answer is longer than `sources.response_max_bytes`"
            )));
        }
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&answer.body)).map_err(
            |error| {
                odd(format!(
                    "JIRA was asked to {doing}, and its answer does not make sense: {error}; does Address lead to \
                     JIRA?"
                ))
            },
        )
    }

    /// The error that a refusal is. `name` knows the names of fields.
    pub(super) fn refused(&self, refusal: Refusal, name: impl Fn(&str) -> Option<String>) -> TicketError {
        let passing = refusal.is_passing();
        let problem = self.client.mask(&refusal.sentence(name));
        TicketError::Answer { problem, passing }
    }

    /// The first issues of a search, at least one if there is any. Asking again does no harm.
    pub(super) async fn search(&self, jql: &Jql, fields: &[&str]) -> Result<Found, TicketError> {
        const DOING: &str = "search";
        let mut body = json!({"jql": jql.to_string(), "fields": fields, "maxResults": PAGE});
        let tail = match self.flavour {
            Flavour::Server => "search",
            Flavour::Cloud => "search/jql",
        };
        let mut tokens = HashSet::new();
        loop {
            let answer = self.call(self.post(tail, &body).idempotent(), DOING).await?;
            let page: SearchPage = self.decode(&answer, DOING)?;
            let is_all = match (page.total, &page.next_page_token) {
                (Some(total), None) => page.issues.len() >= total,
                (_, token) => token.is_none() || page.is_last == Some(true),
            };
            // Cloud leaves out what the account may not see after it has cut the page.
            match page.next_page_token {
                Some(token) if page.issues.is_empty() && !is_all => {
                    if !tokens.insert(token.clone()) {
                        let problem = "JIRA sends empty pages of a search without an end".to_owned();
                        return Err(TicketError::Answer { problem, passing: true });
                    }
                    body["nextPageToken"] = json!(token);
                }
                _ => {
                    return Ok(Found {
                        is_all: is_all || page.issues.is_empty(),
                        issues: page.issues,
                        clock: clock(&answer.headers),
                    });
                }
            }
        }
    }
}

impl Refusal {
    fn is_passing(&self) -> bool {
        if self.login.is_some() {
            return false;
        }
        let status = self.status;
        status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            || matches!(
                status,
                StatusCode::REQUEST_TIMEOUT
                    | StatusCode::CONFLICT
                    | StatusCode::LOCKED
                    | StatusCode::TOO_MANY_REQUESTS
            )
    }

    /// What it complains about, field after field.
    pub(super) fn complaints(&self, name: impl Fn(&str) -> Option<String>) -> String {
        let fields = self.fields.iter().map(|(field, why)| match name(field) {
            Some(name) if name != *field => format!("{name} ({field}): {why}"),
            _ => format!("{field}: {why}"),
        });
        let all: Vec<String> = self.messages.iter().cloned().chain(fields).collect();
        super::fields::at_most(&all.join("; "), REPEATED)
    }

    fn sentence(&self, name: impl Fn(&str) -> Option<String>) -> String {
        let (doing, status) = (&self.doing, self.status);
        if let Some(login) = self.login {
            return format!(
                "JIRA refused to {doing} ({status}): it does not accept the credentials, {login}"
            );
        }
        let what = self.complaints(name);
        let what = if what.is_empty() { String::new() } else { format!(": {what}") };
        match status {
            StatusCode::UNAUTHORIZED => {
                format!("JIRA refused to {doing} ({status}): it does not accept the credentials{what}")
            }
            StatusCode::FORBIDDEN => format!(
                "JIRA refused to {doing} ({status}): the credentials are those of an account that may not do this{what}"
            ),
            StatusCode::NOT_FOUND if what.is_empty() => format!(
                "JIRA refused to {doing} ({status}): there is nothing of this kind; does Address lead to JIRA, and is \
                 `flavour` in Payload right?"
            ),
            status if status.is_redirection() => format!(
                "JIRA was asked to {doing}, and answered with a redirect ({status}), which is not followed; give the \
                 address it leads to as Address"
            ),
            _ => format!("JIRA refused to {doing} ({status}){what}"),
        }
    }
}

/// Why JIRA did not take us for who we are. With a wrong token Cloud may answer as it would to anybody, with 200 and
/// nothing found, and says so in a header alone.
fn login_problem(headers: &HeaderMap) -> Option<&'static str> {
    let holds = |name: &str, words: &[&str]| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| words.iter().any(|word| value.contains(word)))
    };
    if holds("x-authentication-denied-reason", &["CAPTCHA"])
        || holds("x-seraph-loginreason", &["AUTHENTICATION_DENIED"])
    {
        return Some(
            "because logging in failed too often; somebody has to log in as this account in a browser and answer the \
             CAPTCHA",
        );
    }
    holds("x-seraph-loginreason", &["AUTHENTICATED_FAILED"])
        .then_some("because name and password or token do not match")
}

fn clock(headers: &HeaderMap) -> DateTime<Utc> {
    let date = headers.get(DATE).and_then(|date| date.to_str().ok());
    date.and_then(|date| DateTime::parse_from_rfc2822(date).ok())
        .map_or_else(Utc::now, |date| date.with_timezone(&Utc))
}

/// The path of an issue, if that is what the key is one of: anything else in a path could lead elsewhere.
pub(super) fn issue_path(key: &str) -> Result<String, TicketError> {
    let is_word =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match key.rsplit_once('-') {
        Some((project, number)) if is_word(project) && number.parse::<u64>().is_ok() => {
            Ok(format!("issue/{key}"))
        }
        _ => Err(TicketError::Item {
            key: key.to_owned(),
            problem: "this is not the key of an issue, such as SEC-12".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_nowhere_but_to_an_issue() {
        assert_eq!(issue_path("SEC_2-12").unwrap(), "issue/SEC_2-12");
        for key in
            ["", "SEC", "SEC-", "-1", "SEC-1/..", "../x-1", "SEC-1?x=1", "SEC-%2e", "SEC--1", "SEC-+1x"]
        {
            assert!(issue_path(key).is_err(), "{key}");
        }
    }
}
