//! Calls to a source: within its limits, to where it may be called, with its credentials, and bounded in
//! time and size.

use super::address::{base_url, credentials};
use crate::config::SourcesSection;
use crate::config_rows::SourceConfig;
use crate::connectors::net::{AddressPolicy, AddressRefused};
use crate::history::HistoryId;
use crate::limits::{LimitError, SourceLimiter};
use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use std::net::IpAddr;
use std::sync::Once;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Calls one source on behalf of one run. Follows no redirects and uses no proxy.
#[derive(Debug, Clone)]
pub struct SourceClient {
    source: SourceConfig,
    base: Url,
    http: reqwest::Client,
    limiter: SourceLimiter,
    history: HistoryId,
    cancel: CancellationToken,
    response_max_bytes: usize,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// GET, POST, ...
    pub method: Method,
    /// Begins with "/", goes behind the path of the source's Address, and may carry a query.
    pub path: String,
    /// More of the query.
    pub query: Vec<(String, String)>,
    /// Its own headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Option<Vec<u8>>,
}

impl Call {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: None,
        }
    }

    /// A POST of a JSON value.
    pub fn post_json(path: impl Into<String>, body: &serde_json::Value) -> Self {
        let mut call =
            Self { method: Method::POST, body: Some(body.to_string().into_bytes()), ..Self::get(path) };
        call.headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        call
    }
}

/// What a source answered, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most `sources.response_max_bytes` of it.
    pub body: Vec<u8>,
    /// Whether the body was longer.
    pub truncated: bool,
    /// From the start of the call to the end of the body.
    pub duration: Duration,
    /// `Concurrency` of the source when the call was granted.
    pub concurrency: u32,
}

/// Why there is no answer. No text of it holds a secret of the source.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Address, Port or `AuthInfo` do not make sense.
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
        /// The host of the source.
        host: String,
        /// Why not.
        reason: AddressRefused,
    },
    /// The call was not granted.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The run was cancelled in the middle of the call.
    #[error("failed to finish {call}: the run was cancelled")]
    Cancelled {
        /// Method and address.
        call: String,
    },
    /// Time ran out (`sources.connect_timeout_seconds`, `sources.request_timeout_seconds`).
    #[error("failed to finish {call}: time ran out (`sources.{key}`)")]
    Timeout {
        /// Method and address.
        call: String,
        /// Which of the two.
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
}

impl ClientError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Source { .. } | Self::Call(_) | Self::Refused { .. } => false,
            Self::Limit(error) => !matches!(error, LimitError::Inactive { .. } | LimitError::Unknown(_)),
            Self::Cancelled { .. } | Self::Timeout { .. } | Self::Transport { .. } => true,
        }
    }
}

impl SourceClient {
    /// For a source, with the daemon's settings, on behalf of one run.
    pub fn new(
        source: &SourceConfig,
        settings: &SourcesSection,
        limiter: SourceLimiter,
        history: HistoryId,
        cancel: CancellationToken,
    ) -> Result<Self, ClientError> {
        let problem = |problem: String| ClientError::Source {
            name: format!("{} ({})", source.source, source.id),
            problem: source.auth.mask(&problem),
        };
        let base = base_url(&source.address, source.port).map_err(problem)?;
        let mut headers = credentials(&source.auth).map_err(problem)?;
        let id = HeaderValue::from_str(&history.to_string()).map_err(|e| problem(e.to_string()))?;
        headers.insert(HeaderName::from_static("x-rosterd-job"), id);
        install_crypto();
        let policy = AddressPolicy::new(settings.allow_private.clone());
        let http = reqwest::Client::builder()
            .user_agent(concat!("rosterd/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            .dns_resolver(policy.clone())
            .connect_timeout(Duration::from_secs_f64(settings.connect_timeout_seconds))
            .timeout(Duration::from_secs_f64(settings.request_timeout_seconds));
        // A machine without root certificates can still speak plain HTTP.
        let http = if base.scheme() == "http" { http.tls_certs_only([]) } else { http };
        let client = Self {
            source: source.clone(),
            http: http.build().map_err(|e| problem(chain(&e)))?,
            base,
            limiter,
            history,
            cancel,
            response_max_bytes: settings.response_max_bytes,
        };
        // An IP address is connected to without asking the resolver.
        if let Ok(address) = client.host().parse::<IpAddr>() {
            let refused = |reason| ClientError::Refused { host: client.host().to_owned(), reason };
            policy.check(address).map_err(refused)?;
        }
        Ok(client)
    }

    /// The source it calls.
    pub fn source(&self) -> &SourceConfig {
        &self.source
    }

    fn host(&self) -> &str {
        let host = self.base.host_str().unwrap_or_default();
        host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
    }

    /// Waits for its turn, calls, and reads the answer. Ends at once when the run is cancelled.
    pub async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let url = self.url(&call)?;
        let name = self.source.auth.mask(&format!("{} {}{}", call.method, self.base.authority(), url.path()));
        let mut request = self.http.request(call.method, url).headers(call.headers);
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let mut permit = self.limiter.acquire(&self.source, self.history, &self.cancel).await?;
        permit.in_doubt(true);
        let answer = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(ClientError::Cancelled { call: name }),
            answer = self.send(request) => answer.map_err(|error| self.explain(&error, name))?,
        };
        permit.in_doubt(answer.truncated);
        if let Some(pause) = pause_wanted(&answer) {
            tracing::info!(source = %self.source.id, seconds = pause.as_secs(), "the source asks for a pause");
            if let Err(error) = self.limiter.pause(self.source.id, pause).await {
                tracing::warn!(%error, source = %self.source.id, "failed to pause the source for other runners");
            }
        }
        Ok(Answer { concurrency: permit.concurrency(), ..answer })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let started = Instant::now();
        let mut response = request.send().await?;
        let mut body = Vec::new();
        let mut truncated = false;
        while let Some(chunk) = response.chunk().await? {
            let room = self.response_max_bytes - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                truncated = true;
                break;
            }
        }
        Ok(Answer {
            status: response.status(),
            headers: response.headers().clone(),
            body,
            truncated,
            duration: started.elapsed(),
            concurrency: 0,
        })
    }

    fn url(&self, call: &Call) -> Result<Url, ClientError> {
        if !call.path.starts_with('/') {
            return Err(ClientError::Call(format!("the path `{}` must begin with /", call.path)));
        }
        let (path, query) =
            call.path.split_once('?').map_or((call.path.as_str(), None), |(p, q)| (p, Some(q)));
        let prefix = self.base.path().trim_end_matches('/');
        let mut url = self.base.clone();
        url.set_path(&format!("{prefix}{path}"));
        url.set_query(query);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        // set_path resolves "..", also percent-encoded.
        let inside = url.path().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        if !inside || url.authority() != self.base.authority() {
            return Err(ClientError::Call(format!(
                "the path `{}` leads out of the source's Address",
                call.path
            )));
        }
        Ok(url)
    }

    fn explain(&self, error: &reqwest::Error, call: String) -> ClientError {
        if let Some(reason) = refusal(error) {
            ClientError::Refused { host: self.host().to_owned(), reason }
        } else if error.is_timeout() {
            let key = if error.is_connect() { "connect_timeout_seconds" } else { "request_timeout_seconds" };
            ClientError::Timeout { call, key }
        } else {
            ClientError::Transport { call, problem: self.source.auth.mask(&chain(error)) }
        }
    }
}

/// The TLS implementation every connection of this process uses. Safe to call any number of times.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    // An error only means that the program has installed one already.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// How long the source wants to be left alone: `Retry-After` of a 429 or 503, in seconds or as a date.
fn pause_wanted(answer: &Answer) -> Option<Duration> {
    if ![StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&answer.status) {
        return None;
    }
    let text = answer.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| DateTime::parse_from_rfc2822(text).ok().map(|at| at.with_timezone(&Utc));
    // By the source's own clock, where it tells.
    let now = answer.headers.get(reqwest::header::DATE).and_then(|now| date(now.to_str().ok()?));
    date(text)?.signed_duration_since(now.unwrap_or_else(Utc::now)).to_std().ok()
}

/// An error with its causes, without the URL, whose query may hold anything.
fn chain(error: &reqwest::Error) -> String {
    let mut text = match () {
        () if error.is_connect() => "no connection".to_owned(),
        () if error.is_builder() => "the HTTP client cannot be set up".to_owned(),
        () => "the connection broke".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The refusal of the resolver among the causes.
fn refusal(error: &reqwest::Error) -> Option<AddressRefused> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<AddressRefused>()) {
            return Some(refused.clone());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_counts_in_seconds_and_as_a_date_by_the_sources_own_clock() {
        let seconds = |status, headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect();
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                headers,
                body: Vec::new(),
                truncated: false,
                duration: Duration::ZERO,
                concurrency: 1,
            };
            pause_wanted(&answer).map(|pause| pause.as_secs())
        };
        assert_eq!(seconds(429, &[("retry-after", "7")]), Some(7));
        assert_eq!(seconds(503, &[("retry-after", "7")]), Some(7));
        assert_eq!(seconds(500, &[("retry-after", "7")]), None);
        assert_eq!(seconds(429, &[]), None);
        assert_eq!(seconds(429, &[("retry-after", "-1")]), None);
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(seconds(429, &[date, ("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")]), Some(10));
    }
}
