//! Calls to a source: within its limits, to where it may be called, with its credentials, and bounded in
//! time and size.

use super::address::{base_url, credentials};
use super::transport::{Transport, TransportError};
use crate::config::SourcesSection;
use crate::config_rows::SourceConfig;
use crate::connectors::net::{AddressPolicy, AddressRefused};
use crate::history::HistoryId;
use crate::limits::{CallPermit, LimitError, SourceLimiter};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, StatusCode};
use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Calls one source on behalf of one run. Follows no redirects and uses no proxy.
#[derive(Debug, Clone)]
pub struct SourceClient {
    source: SourceConfig,
    base: Url,
    transport: Transport,
    /// Credentials, and who is calling.
    headers: HeaderMap,
    request_timeout: Duration,
    limiter: SourceLimiter,
    history: HistoryId,
    cancel: CancellationToken,
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
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("rosterd/", env!("CARGO_PKG_VERSION"))));
        // A machine without root certificates can still speak plain HTTP.
        let tls = if base.scheme() == "http" { None } else { Some(tls_settings().map_err(problem)?) };
        let transport = Transport::new(
            policy.clone(),
            tls,
            Duration::from_secs_f64(settings.connect_timeout_seconds),
            Duration::from_secs_f64(settings.request_timeout_seconds),
            settings.response_max_bytes,
        );
        let client = Self {
            source: source.clone(),
            transport,
            headers,
            request_timeout: Duration::from_secs_f64(settings.request_timeout_seconds),
            base,
            limiter,
            history,
            cancel,
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
        let mut request = http::Request::new(Bytes::from(call.body.unwrap_or_default()));
        *request.method_mut() = call.method;
        *request.uri_mut() = url.as_str().parse().map_err(|e| ClientError::Call(format!("{e}")))?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().extend(call.headers);
        let permit = self.limiter.reserve(&self.source, self.history, &self.cancel).await?;
        // A call that has begun runs to its end, whoever waits for it: the source is busy with it until then.
        let wanted = self.cancel.child_token();
        let _until_dropped = wanted.clone().drop_guard();
        let exchange = tokio::spawn(self.clone().exchange(request, permit, wanted));
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(ClientError::Cancelled { call: name }),
            answer = exchange => match answer {
                Ok(answer) => answer.map_err(|error| self.explain(error, name)),
                Err(error) => Err(ClientError::Transport { call: name, problem: error.to_string() }),
            },
        }
    }

    async fn exchange(
        self,
        request: http::Request<Bytes>,
        mut permit: CallPermit,
        wanted: CancellationToken,
    ) -> Result<Answer, TransportError> {
        let started = Instant::now();
        let received = self.transport.send(request, &mut permit, wanted);
        let received = tokio::time::timeout(self.request_timeout, received)
            .await
            .map_err(|_| TransportError::ReadTimeout)??;
        let (head, body) = received.into_parts();
        let answer = Answer {
            status: head.status,
            headers: head.headers,
            body: body.bytes.into(),
            truncated: body.truncated,
            duration: started.elapsed(),
            concurrency: permit.concurrency(),
        };
        if let Some(pause) = pause_wanted(&answer) {
            let halve = answer.status == StatusCode::TOO_MANY_REQUESTS;
            tracing::info!(source = %self.source.id, seconds = pause.as_secs(), "the source asks for a pause");
            if let Err(error) = self.limiter.pause(self.source.id, pause, halve).await {
                tracing::warn!(%error, source = %self.source.id, "failed to pause the source for other runners");
            }
        } else {
            permit.answered();
        }
        Ok(answer)
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

    fn explain(&self, error: TransportError, call: String) -> ClientError {
        match error {
            TransportError::Refused(reason) => ClientError::Refused { host: self.host().to_owned(), reason },
            TransportError::Limit(error) => ClientError::Limit(error),
            TransportError::NotWanted => ClientError::Cancelled { call },
            TransportError::ConnectTimeout => ClientError::Timeout { call, key: "connect_timeout_seconds" },
            TransportError::ReadTimeout => ClientError::Timeout { call, key: "request_timeout_seconds" },
            TransportError::Request(problem) => ClientError::Call(self.source.auth.mask(&problem)),
            error @ (TransportError::Connect(_) | TransportError::Broken(_)) => {
                let problem = self.source.auth.mask(&format!("{:#}", anyhow::Error::from(error)));
                ClientError::Transport { call, problem }
            }
        }
    }
}

/// With the root certificates of this machine.
fn tls_settings() -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("no root certificates were found on this machine".to_owned());
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
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
