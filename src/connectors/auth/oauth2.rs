//! OAuth 2 with client credentials (RFC 6749, section 4.4): tokens are fetched from `TokenUrl` and kept for as long as
//! they are good.

use crate::config_rows::AuthInfo;
use crate::connectors::address::check_url;
use crate::connectors::call::Answer;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use url::{Url, form_urlencoded};
use uuid::Uuid;

/// Tokens of this process, by source. Every run makes a client of its own; the token is worth more than a run.
static KEPT: LazyLock<Mutex<HashMap<Uuid, Arc<Cell>>>> = LazyLock::new(Mutex::default);

pub(in crate::connectors) struct OAuth2 {
    url: Url,
    headers: HeaderMap,
    form: Bytes,
    cell: Arc<Cell>,
}

/// The token of one source, as long as it is asked for with the same words.
struct Cell {
    asked_with: SecretString,
    /// Locked while a new one is fetched, so that one is fetched however many calls wait for it.
    token: tokio::sync::Mutex<Option<Token>>,
    /// The newest ones, for masking what others print.
    seen: Mutex<Vec<SecretString>>,
}

#[derive(Clone)]
pub(in crate::connectors) struct Token {
    value: SecretString,
    good_until: Instant,
}

impl Token {
    pub(super) fn value(&self) -> &str {
        self.value.expose_secret()
    }
}

impl fmt::Debug for OAuth2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth2").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// Why an answer of `TokenUrl` is no token.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::connectors) struct NoToken {
    pub(in crate::connectors) problem: String,
    /// Whether it may give one later.
    pub(in crate::connectors) passing: bool,
}

impl OAuth2 {
    /// Where the server does not say how long a token is good. A 401 ends it earlier.
    const USUAL: Duration = Duration::from_mins(5);
    /// A token is not used in its last moments, of which this is the most: it must be good when it arrives.
    const MARGIN: Duration = Duration::from_mins(1);
    /// Masked although they are no longer used: a slow answer may still name one.
    const REMEMBERED: usize = 4;

    /// From `TokenUrl`, `ClientID`, `ClientSecret`, and where given `Scope`, `Audience` and `TokenAuth`.
    pub(super) fn new(auth: &AuthInfo, source: Uuid) -> Result<Self, String> {
        let url = auth.text("TokenUrl").unwrap_or_default();
        let url = check_url(url).map_err(|problem| format!("`TokenUrl` in its AuthInfo {problem}"))?;
        let id = auth.text("ClientID").unwrap_or_default();
        let secret = auth.secret("ClientSecret").unwrap_or_default();
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        for (name, field) in [("scope", "Scope"), ("audience", "Audience")] {
            if let Some(value) = auth.text(field) {
                form.append_pair(name, value);
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        match auth.text("TokenAuth") {
            None | Some("basic") => {
                // Section 2.3.1: encoded as in a form, and then as basic authentication.
                let encoded =
                    |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", encoded(id), encoded(secret.expose_secret()));
                let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
                headers.insert(AUTHORIZATION, super::sensitive(&value, "ClientSecret")?);
            }
            Some("body") => {
                form.append_pair("client_id", id).append_pair("client_secret", secret.expose_secret());
            }
            Some(other) => {
                return Err(format!("`TokenAuth` in its AuthInfo is {other}; give basic or body"));
            }
        }
        let form = form.finish();
        let asked_with = format!("{url} {id} {} {form}", secret.expose_secret());
        Ok(Self { url, headers, form: form.into(), cell: Cell::of(source, asked_with.into()) })
    }

    pub(in crate::connectors) fn url(&self) -> &Url {
        &self.url
    }

    pub(in crate::connectors) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(in crate::connectors) fn form(&self) -> &Bytes {
        &self.form
    }

    /// The token that is kept, or the one `fetch` brings; of many callers at once, one fetches.
    pub(in crate::connectors) async fn token<E>(
        &self,
        fetch: impl Future<Output = Result<Token, E>>,
    ) -> Result<Token, E> {
        let mut kept = self.cell.token.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| Instant::now() < token.good_until) {
            return Ok(token.clone());
        }
        // Nothing is kept if the caller goes away in the middle: the next one fetches.
        *kept = None;
        let token = fetch.await?;
        let mut seen = self.cell.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= Self::REMEMBERED {
            seen.remove(0);
        }
        seen.push(token.value.clone());
        drop(seen);
        *kept = Some(token.clone());
        Ok(token)
    }

    /// The source does not take this token; the next caller fetches another, unless somebody has already.
    pub(in crate::connectors) async fn forget(&self, used: &Token) {
        let mut kept = self.cell.token.lock().await;
        if kept.as_ref().is_some_and(|token| token.value() == used.value()) {
            *kept = None;
        }
    }

    /// Tokens that may show in what others print.
    pub(in crate::connectors) fn secrets(&self) -> Vec<SecretString> {
        self.cell.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The token an answer holds; `asked` is when it was asked for.
    pub(in crate::connectors) fn read(answer: &Answer, asked: Instant) -> Result<Token, NoToken> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: SecretString,
            #[serde(default)]
            token_type: Option<String>,
            #[serde(default)]
            expires_in: Option<serde_json::Value>,
        }
        let no = |problem: String, passing| Err(NoToken { problem, passing });
        if answer.status != StatusCode::OK {
            let passing = answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS;
            return no(format!("it answered {}{}", answer.status, refusal(&answer.body)), passing);
        }
        // What serde would say could repeat the token.
        let Ok(granted) = serde_json::from_slice::<Granted>(&answer.body) else {
            return no("its answer is no JSON with an access_token".to_owned(), false);
        };
        if let Some(kind) = granted.token_type.filter(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return no(format!("its token is of type {kind}, only Bearer is known"), false);
        }
        if super::bearer(granted.access_token.expose_secret(), "TokenUrl").is_err() {
            return no("its token does not fit into a header".to_owned(), false);
        }
        // Some write the number as a text.
        let seconds =
            granted.expires_in.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()));
        let good = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(Self::USUAL);
        // A token for a hundred years is one for a day.
        let good = good.min(Duration::from_hours(24));
        let good = good.saturating_sub(Self::MARGIN.min(good / 5));
        Ok(Token { value: granted.access_token, good_until: asked + good })
    }
}

impl Cell {
    fn of(source: Uuid, asked_with: SecretString) -> Arc<Self> {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = kept.get(&source)
            && cell.asked_with.expose_secret() == asked_with.expose_secret()
        {
            return Arc::clone(cell);
        }
        // AuthInfo was edited: the old token is not for the new words.
        let cell =
            Arc::new(Self { asked_with, token: tokio::sync::Mutex::default(), seen: Mutex::default() });
        kept.insert(source, Arc::clone(&cell));
        cell
    }
}

/// `: invalid_client, the secret has expired`, as section 5.2 has it, and nothing else of the answer.
fn refusal(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
        #[serde(default)]
        error_description: Option<String>,
    }
    let Ok(refused) = serde_json::from_slice::<Refused>(body) else { return String::new() };
    let text =
        refused.error_description.map_or(refused.error.clone(), |more| format!("{}, {more}", refused.error));
    format!(": {}", text.chars().filter(|c| !c.is_control()).take(300).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn auth(more: Value) -> AuthInfo {
        let mut fields = json!({"TokenUrl": "https://login.example.com/t?x=1", "ClientID": "me+you", "ClientSecret": "p&ä"});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        AuthInfo::new(fields)
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec(),
            truncated: false,
            duration: Duration::ZERO,
            concurrency: 1,
            tries: 1,
        }
    }

    fn good_for(body: Value) -> Duration {
        let asked = Instant::now();
        OAuth2::read(&answer(200, &body.to_string()), asked)
            .map(|token| token.good_until - asked)
            .ok()
            .unwrap()
    }

    #[test]
    fn the_request_is_as_the_rfc_wants_it_or_with_the_secret_in_its_body() {
        let oauth2 = OAuth2::new(&auth(json!({"Scope": "a b"})), Uuid::now_v7()).unwrap();
        assert_eq!(oauth2.form(), "grant_type=client_credentials&scope=a+b");
        let pair = BASE64_STANDARD.encode("me%2Byou:p%26%C3%A4");
        assert_eq!(oauth2.headers()["authorization"], format!("Basic {pair}").as_str());
        let oauth2 =
            OAuth2::new(&auth(json!({"TokenAuth": "body", "Audience": "x"})), Uuid::now_v7()).unwrap();
        assert!(!oauth2.headers().contains_key("authorization"));
        assert_eq!(
            oauth2.form(),
            "grant_type=client_credentials&audience=x&client_id=me%2Byou&client_secret=p%26%C3%A4"
        );
        assert!(
            OAuth2::new(&auth(json!({"TokenAuth": "jwt"})), Uuid::now_v7())
                .unwrap_err()
                .contains("basic or body")
        );
        for url in ["", "login.example.com", "ftp://h/", "https://u:p@h/", "https://h/#f"] {
            let problem = OAuth2::new(&auth(json!({ "TokenUrl": url })), Uuid::now_v7()).unwrap_err();
            assert!(problem.contains("`TokenUrl`") && !problem.contains("u:p"), "{problem}");
        }
    }

    #[test]
    fn a_token_is_good_until_shortly_before_its_end() {
        assert_eq!(good_for(json!({"access_token": "t", "expires_in": 3600})), Duration::from_mins(59));
        assert_eq!(
            good_for(json!({"access_token": "t", "expires_in": "10", "token_type": "bearer"})),
            Duration::from_secs(8)
        );
        assert_eq!(good_for(json!({"access_token": "t"})), Duration::from_mins(4));
        assert_eq!(good_for(json!({"access_token": "t", "expires_in": -5})), Duration::from_mins(4));
        assert_eq!(good_for(json!({"access_token": "t", "expires_in": 1e300})), Duration::from_mins(4));
        assert_eq!(
            good_for(json!({"access_token": "t", "expires_in": 1e15})),
            Duration::from_mins(24 * 60 - 1)
        );
    }

    #[test]
    fn an_answer_that_is_no_token_is_a_sentence_without_the_token() {
        for (status, body, word, passing) in [
            (
                401,
                r#"{"error": "invalid_client", "error_description": "expired"}"#,
                "401 Unauthorized: invalid_client, expired",
                false,
            ),
            (400, "<html>canary</html>", "400 Bad Request", false),
            (503, "", "503", true),
            (429, "", "429", true),
            (200, r#"{"access_token": 5, "x": "canary"}"#, "no JSON with an access_token", false),
            (200, r#"{"access_token": "canary", "token_type": "mac"}"#, "only Bearer", false),
            (200, "{\"access_token\": \"can\\nary\"}", "does not fit into a header", false),
            (302, "", "302", false),
        ] {
            let no = OAuth2::read(&answer(status, body), Instant::now()).map(|_| ()).unwrap_err();
            assert!(no.problem.contains(word) && no.passing == passing, "{no:?}");
            assert!(!no.problem.contains("canary"), "{no:?}");
        }
    }

    #[tokio::test]
    async fn many_callers_fetch_one_token_and_a_refused_one_is_fetched_once_more() {
        let fetched = AtomicU32::new(0);
        let source = Uuid::now_v7();
        // Each run has a client of its own.
        let clients: Vec<_> = (0..20).map(|_| OAuth2::new(&auth(json!({})), source).unwrap()).collect();
        let fetch = || async {
            let n = fetched.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            let body = json!({"access_token": format!("t{n}"), "expires_in": 60}).to_string();
            OAuth2::read(&answer(200, &body), Instant::now())
        };
        let all = futures_util::future::join_all(clients.iter().map(|client| client.token(fetch()))).await;
        let first = all[0].as_ref().unwrap().clone();
        assert!(all.iter().all(|token| token.as_ref().unwrap().value() == "t0"));
        futures_util::future::join_all(clients.iter().map(|client| client.forget(&first))).await;
        let all = futures_util::future::join_all(clients.iter().map(|client| client.token(fetch()))).await;
        assert!(all.iter().all(|token| token.as_ref().unwrap().value() == "t1"));
        clients[0].forget(&first).await;
        assert_eq!(clients[0].token(fetch()).await.unwrap().value(), "t1", "the old one is not this one");
        let edited = OAuth2::new(&auth(json!({"Scope": "more"})), source).unwrap();
        assert_eq!(edited.token(fetch()).await.unwrap().value(), "t2", "other words, another token");
        assert_eq!(fetched.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_or_fails_leaves_the_next_one_to_fetch() {
        let client = OAuth2::new(&auth(json!({})), Uuid::now_v7()).unwrap();
        let never = std::future::pending::<Result<Token, NoToken>>();
        assert!(tokio::time::timeout(Duration::from_millis(1), client.token(never)).await.is_err());
        let failed = client.token(async { Err(NoToken { problem: String::new(), passing: true }) }).await;
        assert!(failed.is_err());
        let body = r#"{"access_token": "t"}"#;
        let token = client.token(async { OAuth2::read(&answer(200, body), Instant::now()) }).await.unwrap();
        assert_eq!(token.value(), "t");
    }
}
