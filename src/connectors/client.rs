//! Calls to a source: within its limits, to where it may be called, with its credentials, bounded in time and size,
//! and tried again where that does no harm.

use super::address::Base;
use super::auth::{Credentials, OAuth2, Token};
use super::body::{self, BodyError, BodyLimits};
use super::call::{Answer, Call};
use super::error::ClientError;
use super::net::{AddressPolicy, bare};
use super::paging::{Pages, Paging};
use super::retry::{Ending, RetryPolicy, pause_wanted};
use super::tls;
use super::transport::{Ready, Transport, TransportError};
use crate::config::SourcesSection;
use crate::config_rows::{Masker, SourceConfig};
use crate::history::HistoryId;
use crate::job::lapsed;
use crate::limits::{CallPermit, LimitError, SourceLimiter};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use url::Url;
use uuid::Uuid;

/// Calls one source on behalf of one run. Follows no redirects and uses no proxy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SourceClient {
    parts: Arc<Parts>,
    limiter: SourceLimiter,
    history: HistoryId,
    cancel: CancellationToken,
    retries: RetryPolicy,
}

struct Parts {
    source: SourceConfig,
    base: Base,
    transport: Transport,
    credentials: Credentials,
    masker: Masker,
    body_limits: BodyLimits,
    request_timeout: Duration,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("source", &self.source.id)
            .field("base", &self.base.url().as_str())
            .finish_non_exhaustive()
    }
}

/// A request as it goes out, again and again.
struct Outgoing {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
    idempotent: bool,
    /// Whether the source's credentials go with it.
    signed: bool,
}

/// How a try ended without an answer.
enum Failure {
    Transport(TransportError),
    Body(BodyError),
    Limit(LimitError),
    TotalTimeout,
    /// The lease of this runner lapsed.
    Lapsed,
}

/// After a 429 that does not say how long to wait.
const PAUSE_UNASKED: Duration = Duration::from_secs(1);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const JOB: HeaderName = HeaderName::from_static("x-rosterd-job");
const OUR_NAME: HeaderValue = HeaderValue::from_static(concat!("rosterd/", env!("CARGO_PKG_VERSION")));

impl SourceClient {
    /// For a source, with the daemon's settings, on behalf of one row. Calls are tried again as the configuration
    /// says (`sources.retries`); see [`SourceClient::retrying`]. With the limiter of a run its calls end when the
    /// runner's lease lapses, because others may make theirs in their place.
    pub fn new(
        source: &SourceConfig,
        settings: &SourcesSection,
        limiter: SourceLimiter,
        history: HistoryId,
        cancel: CancellationToken,
    ) -> Result<Self, ClientError> {
        let masker = source.auth.masker();
        let problem = |problem: String| ClientError::Source {
            name: format!("{} ({})", source.source, source.id),
            problem: masker.mask(&problem),
        };
        let base = Base::new(&source.address, source.port).map_err(problem)?;
        let policy = AddressPolicy::new(settings.allow_private.clone());
        // A name is checked when it is connected to. This one is known to be refused.
        let host = base.url().host_str().unwrap_or_default();
        policy
            .check_host(host)
            .map_err(|reason| ClientError::Refused { host: bare(host).to_owned(), reason })?;
        let credentials = Credentials::new(&source.auth, source.id).map_err(problem)?;
        let uses_tls = std::iter::once(base.url())
            .chain(credentials.oauth2().map(OAuth2::url))
            .any(|url| url.scheme() == "https");
        let tls = tls::client_config(&source.payload, &settings.ca_dir, uses_tls).map_err(problem)?;
        let transport = Transport::new(policy, settings.connect_timeout(), tls);
        let body_limits = BodyLimits {
            max_bytes: settings.response_max_bytes,
            idle: settings.idle_timeout(),
            max_ratio: settings.decompression_max_ratio,
        };
        let request_timeout = settings.request_timeout();
        let parts = Parts {
            source: source.clone(),
            base,
            transport,
            credentials,
            masker,
            body_limits,
            request_timeout,
        };
        let retries = RetryPolicy::of(settings);
        Ok(Self { parts: Arc::new(parts), limiter, history, cancel, retries })
    }

    /// The same client with another rule for trying again; [`RetryPolicy::NEVER`], for instance.
    #[must_use]
    pub fn retrying(self, retries: RetryPolicy) -> Self {
        Self { retries, ..self }
    }

    /// The rule by which it tries again.
    pub fn retries(&self) -> RetryPolicy {
        self.retries
    }

    /// `sources.response_max_bytes`, for connectors that choose how much they ask for at once.
    pub(super) fn response_max_bytes(&self) -> usize {
        self.parts.body_limits.max_bytes
    }

    /// The source it calls.
    pub fn source(&self) -> &SourceConfig {
        &self.parts.source
    }

    /// `text` with every secret of the source masked, and every token it gave: for what is logged or kept of an answer.
    pub fn mask(&self, text: &str) -> String {
        let text = self.parts.masker.mask(text);
        match self.parts.credentials.oauth2() {
            Some(oauth2) => Masker::new(oauth2.secrets()).mask(&text),
            None => text,
        }
    }

    /// Waits for its turn, calls, and reads the answer, whatever its status; where that does no harm it tries again.
    /// Every try waits for a turn of its own. Ends at once when the run is cancelled.
    pub async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let outgoing = Outgoing {
            url: self.url(&call)?,
            method: call.method,
            headers: call.headers,
            body: call.body.unwrap_or_default(),
            idempotent: call.idempotent,
            signed: true,
        };
        self.exchange(&outgoing).await
    }

    /// A GET of the source's Address itself, for sources that are one file.
    pub async fn get_address(&self) -> Result<Answer, ClientError> {
        let outgoing = Outgoing {
            method: Method::GET,
            url: self.parts.base.url().clone(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            idempotent: true,
            signed: true,
        };
        self.exchange(&outgoing).await
    }

    /// Calls page after page, see [`Paging`].
    pub fn pages(&self, call: Call, paging: Paging) -> Pages {
        Pages::new(self.clone(), call, paging)
    }

    async fn exchange(&self, outgoing: &Outgoing) -> Result<Answer, ClientError> {
        let (mut tries, mut renewed) = (0, false);
        let mut begun: Option<Instant> = None;
        loop {
            // Before the turn, because it may need a turn of its own, and the source may have one at a time.
            let token = if outgoing.signed { self.token(outgoing).await? } else { None };
            let permit = self.limiter.reserve(&self.parts.source, self.history, &self.cancel).await?;
            // After the turn, because signatures carry the time.
            let request = self.request(outgoing, token.as_ref())?;
            // A call that has begun runs to its end, whoever waits for it: the source is busy with it until then. Only
            // a lease that lapses ends it.
            let wanted = self.cancel.child_token();
            let _until_dropped = wanted.clone().drop_guard();
            let attempt = tokio::spawn(self.clone().attempt(request, permit, wanted).in_current_span());
            let attempt = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(self.cancelled(outgoing)),
                attempt = attempt => attempt,
            };
            let (outcome, concurrency) = match attempt {
                Ok(Some(ended)) => ended,
                Ok(None) => return Err(self.cancelled(outgoing)),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is going down.
                    Err(_) => return Err(self.cancelled(outgoing)),
                },
            };
            let begun = *begun.get_or_insert_with(Instant::now);
            tries += 1;

            // 401 says that nothing was carried out, so this is safe for every method.
            if let (Some(token), Some(oauth2), Ok(answer), false) =
                (&token, self.parts.credentials.oauth2(), &outcome, renewed)
                && answer.status == StatusCode::UNAUTHORIZED
            {
                renewed = true;
                oauth2.forget(token).await;
                continue;
            }
            let ending = match &outcome {
                Ok(answer) => Some(Ending::Answer(answer.status, &answer.headers)),
                Err(Failure::Transport(error) | Failure::Body(BodyError::Transport(error))) => {
                    Some(Ending::Broken(error))
                }
                Err(Failure::TotalTimeout | Failure::Body(BodyError::Idle)) => Some(Ending::OutOfTime),
                Err(Failure::Body(BodyError::Coding(_)) | Failure::Limit(_) | Failure::Lapsed) => None,
            };
            // A try with a token that was no longer good is not one of those that were allowed.
            let counted = tries - u32::from(renewed);
            let wait = ending.and_then(|ending| {
                self.retries.next(&ending, outgoing.idempotent, counted, begun.elapsed(), fastrand::f64())
            });
            let Some(wait) = wait else {
                return outcome
                    .map(|answer| Answer { concurrency, tries, ..answer })
                    .map_err(|failure| self.explain(failure, outgoing));
            };
            tracing::debug!(source = %self.parts.source.id, tries, ?wait, "a call is tried again");
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(self.cancelled(outgoing)),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One try, from its start to the last byte of the answer, and what the source's Concurrency is now. `None`: nobody
    /// wanted it any more before it had begun.
    async fn attempt(
        self,
        request: http::Request<Bytes>,
        mut permit: CallPermit,
        wanted: CancellationToken,
    ) -> Option<(Result<Answer, Failure>, u32)> {
        let outcome = loop {
            let ready = tokio::select! {
                biased;
                () = wanted.cancelled() => return None,
                ready = self.parts.transport.ready(&request, &permit) => ready,
            };
            let ready = match ready {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => break Err(Failure::Transport(error)),
                Err(error) => break Err(Failure::Limit(error)),
            };
            permit.in_doubt(true);
            let exchange = self.exchange_on(ready, request.clone());
            let outcome = tokio::select! {
                biased;
                // Dropping the exchange closes its connection.
                () = self.lapsed() => break Err(Failure::Lapsed),
                outcome = tokio::time::timeout(self.parts.request_timeout, exchange) => outcome,
            };
            match outcome.unwrap_or(Err(Failure::TotalTimeout)) {
                Err(Failure::Transport(TransportError::Missed(_))) => permit.in_doubt(false),
                outcome => break outcome,
            }
        };
        match &outcome {
            Ok(answer) => {
                permit.in_doubt(answer.truncated);
                if !self.heed(answer).await {
                    permit.answered();
                }
            }
            Err(Failure::Transport(error)) if error.nothing_was_sent() => permit.in_doubt(false),
            Err(_) => {}
        }
        Some((outcome, permit.concurrency()))
    }

    /// Completes when others will soon count the slots of this runner as free.
    async fn lapsed(&self) {
        match self.limiter.gate() {
            Some(gate) => gate.lapsed().await,
            None => std::future::pending().await,
        }
    }

    async fn exchange_on(&self, ready: Ready, request: http::Request<Bytes>) -> Result<Answer, Failure> {
        let started = Instant::now();
        let answer = ready.send(request).await.map_err(Failure::Transport)?;
        let (mut head, body) = answer.into_parts();
        let (body, truncated) =
            body::read(body, &mut head.headers, self.parts.body_limits).await.map_err(Failure::Body)?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
            truncated,
            duration: started.elapsed(),
            concurrency: 0,
            tries: 0,
        })
    }

    fn request(
        &self,
        outgoing: &Outgoing,
        token: Option<&Token>,
    ) -> Result<http::Request<Bytes>, ClientError> {
        let mut request = http::Request::new(outgoing.body.clone());
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() =
            outgoing.url.as_str().parse().map_err(|_| ClientError::Call("its URL is no URI".to_owned()))?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
        headers.insert(USER_AGENT, OUR_NAME);
        for name in outgoing.headers.keys() {
            headers.remove(name);
        }
        headers.extend(outgoing.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        for (name, id) in [(JOB, self.history.to_string()), (REQUEST_ID, Uuid::now_v7().to_string())] {
            let id = HeaderValue::try_from(id).map_err(|error| ClientError::Call(error.to_string()))?;
            headers.insert(name, id);
        }
        if outgoing.signed {
            self.parts
                .credentials
                .sign(&mut request, &outgoing.url, token, SystemTime::now())
                .map_err(|problem| self.source_problem(&problem))?;
        }
        Ok(request)
    }

    /// The token the source wants, if it wants one: kept, or fetched now in a turn of its own.
    async fn token(&self, outgoing: &Outgoing) -> Result<Option<Token>, ClientError> {
        let Some(oauth2) = self.parts.credentials.oauth2() else { return Ok(None) };
        let fetch = async {
            let asked = Instant::now();
            let outgoing = Outgoing {
                method: Method::POST,
                url: oauth2.url().clone(),
                headers: oauth2.headers().clone(),
                body: oauth2.form().clone(),
                // Asked for twice, there are two tokens, and no harm.
                idempotent: true,
                signed: false,
            };
            let answer = Box::pin(self.exchange(&outgoing)).await?;
            OAuth2::read(&answer, asked).map_err(|no| {
                let mut url = oauth2.url().clone();
                url.set_query(None);
                ClientError::Token { url: url.into(), problem: self.mask(&no.problem), passing: no.passing }
            })
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(self.cancelled(outgoing)),
            token = oauth2.token(fetch) => token.map(Some),
        }
    }

    /// A source that asks to be left alone is, by every runner. Returns whether it asked.
    async fn heed(&self, answer: &Answer) -> bool {
        let too_many = answer.status == StatusCode::TOO_MANY_REQUESTS;
        let pause = match pause_wanted(answer.status, &answer.headers) {
            Some(pause) => pause,
            None if too_many => PAUSE_UNASKED,
            None => return false,
        };
        let source = self.parts.source.id;
        tracing::info!(%source, seconds = pause.as_secs(), "the source asks for a pause");
        if let Err(error) = self.limiter.pause(source, pause, too_many).await {
            tracing::warn!(%error, %source, "failed to pause the source for other runners");
        }
        true
    }

    /// The URL of a call: below the Address, whatever its path says.
    pub(super) fn url(&self, call: &Call) -> Result<Url, ClientError> {
        self.parts.base.join(&call.path, &call.query).map_err(|problem| {
            let path = self.mask(call.path.split('?').next().unwrap_or_default());
            ClientError::Call(format!("the path `{path}` {problem}"))
        })
    }

    /// The path and query behind the Address of a URL the source named; `None` if that is somewhere else.
    pub(super) fn path_of(&self, url: &Url) -> Option<String> {
        self.parts.base.path_of(url)
    }

    /// Method and address of a call for an error, without its query.
    pub(super) fn name(&self, method: &Method, url: &Url) -> String {
        self.mask(&format!("{method} {}{}", url.authority(), url.path()))
    }

    fn cancelled(&self, outgoing: &Outgoing) -> ClientError {
        ClientError::Cancelled { call: self.name(&outgoing.method, &outgoing.url) }
    }

    fn source_problem(&self, problem: &str) -> ClientError {
        let source = &self.parts.source;
        ClientError::Source {
            name: format!("{} ({})", source.source, source.id),
            problem: self.mask(problem),
        }
    }

    fn explain(&self, failure: Failure, outgoing: &Outgoing) -> ClientError {
        let call = self.name(&outgoing.method, &outgoing.url);
        let host = || bare(outgoing.url.host_str().unwrap_or_default()).to_owned();
        match failure {
            Failure::Limit(error) => ClientError::Limit(error),
            Failure::Lapsed => ClientError::Lapsed { call, why: lapsed() },
            Failure::TotalTimeout => ClientError::Timeout { call, key: "request_timeout_seconds" },
            Failure::Body(BodyError::Idle) => ClientError::Timeout { call, key: "idle_timeout_seconds" },
            Failure::Body(BodyError::Coding(problem)) => {
                ClientError::Answer { call, problem: self.mask(&problem) }
            }
            Failure::Transport(error) | Failure::Body(BodyError::Transport(error)) => match error {
                TransportError::Refused(reason) => ClientError::Refused { host: host(), reason },
                TransportError::Tls(problem) => {
                    ClientError::Tls { host: host(), problem: self.mask(&problem) }
                }
                TransportError::ConnectTimeout => {
                    ClientError::Timeout { call, key: "connect_timeout_seconds" }
                }
                other => ClientError::Transport { call, problem: self.mask(&other.to_string()) },
            },
        }
    }
}
