//! `HttpJob`: requests through the in-source.

use super::cut;
use crate::connectors::{
    Answer, Call, ClientError, HeaderName, HeaderValue, Method, SourceClient, StatusCode,
};
use crate::job::{Job, JobContext, JobError, Outcome};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::header::CONTENT_TYPE;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Calls the in-source, within its Delay and Concurrency.
#[derive(Debug, Clone, Copy)]
pub struct HttpJob;

/// What a row of `HttpJob` says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpPayload {
    /// GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS.
    #[serde(default = "get")]
    method: String,
    /// Begins with "/"; goes behind the Address of the source.
    path: String,
    /// Texts, numbers and booleans, or arrays of them for a name that comes several times.
    #[serde(default)]
    query: BTreeMap<String, Value>,
    /// Further headers; credentials come from the source.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// A text is sent as it stands, anything else as JSON.
    #[serde(default)]
    body: Option<Value>,
    /// How many times it is sent, as many at once as the source allows.
    #[serde(default = "once")]
    #[schemars(range(min = 1, max = 1_000_000))]
    repeat: u32,
    /// How many times each of them is sent again at most where that does no harm (docs/sources.md).
    #[serde(default)]
    #[schemars(range(max = 20))]
    retries: u32,
    /// Statuses that count as success; missing: any from 200 to 299.
    #[serde(default)]
    expect_status: Vec<u16>,
}

fn get() -> String {
    "GET".to_owned()
}

fn once() -> u32 {
    1
}

impl Job for HttpJob {
    const STRUCT: &'static str = "HttpJob";
    const DESCRIPTION: &'static str = "Sends an HTTP request through its in-source";
    type Payload = HttpPayload;

    async fn run(&self, ctx: JobContext, payload: HttpPayload) -> Result<Outcome, JobError> {
        let source = ctx.in_source()?;
        let call = payload.call(source.auth.text("Header")).map_err(JobError::fatal_message)?;
        let client = ctx.client(source).map_err(from_client)?;
        // A row that says "five calls" means five at the API, unless it says otherwise.
        let retries = client.retries().times(payload.retries);
        let client = client.retrying(retries);

        let mut tally = Tally::default();
        let mut flying = FuturesUnordered::new();
        let mut width = source.auth.concurrency().get() as usize + 1;
        let mut started = 0;
        let begun = Instant::now();
        let mut told = Instant::now();
        loop {
            // One more than the source takes at once, so that the next is always waiting for its turn.
            while started < payload.repeat && flying.len() < width && !tally.is_hopeless() {
                flying.push(client.call(call.clone()));
                started += 1;
            }
            if tally.is_hopeless() {
                break;
            }
            let Some(answer) = flying.next().await else { break };
            if let Ok(answer) = &answer {
                width = answer.concurrency as usize + 1;
            }
            tally.count(answer, &payload);
            if payload.repeat > 1 && told.elapsed().as_secs() >= 1 {
                told = Instant::now();
                ctx.progress(format!("{} of {} calls", tally.calls, payload.repeat));
            }
        }
        drop(flying);

        let max = ctx.settings().engine.result_max_bytes;
        let result = tally.result(begun, max, &client);
        match tally.first_failure {
            None => Ok(Outcome::with_result(result)),
            Some(sentence) => {
                let many = if payload.repeat > 1 {
                    format!("{} of {} calls failed, the first: ", tally.failed, payload.repeat)
                } else {
                    String::new()
                };
                let error = format!("{many}{sentence}");
                let error = if ctx.is_cancelled() {
                    JobError::stopped_because(error)
                } else if let Some(lapsed) = tally.lapsed {
                    JobError::from(lapsed)
                } else if tally.is_passing {
                    JobError::retry_message(error)
                } else {
                    JobError::fatal_message(error)
                };
                Err(error.with_result(result))
            }
        }
    }
}

fn from_client(error: ClientError) -> JobError {
    if error.is_passing() { error.into() } else { JobError::fatal(error) }
}

/// Headers that belong to the client or to the source's credentials.
const NOT_FOR_PAYLOADS: [&str; 12] = [
    "host",
    "authorization",
    "proxy-authorization",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "x-rosterd-job",
    "x-request-id",
];

impl HttpPayload {
    /// The request, or the field that is wrong.
    fn call(&self, key_header: Option<&str>) -> Result<Call, String> {
        let methods = [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ];
        let method = methods
            .into_iter()
            .find(|method| method.as_str().eq_ignore_ascii_case(&self.method))
            .ok_or_else(|| {
                format!(
                    "Payload field `method`: {:?}, give GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS",
                    cut(&self.method, 40)
                )
            })?;
        if !self.path.starts_with('/') {
            return Err(format!("Payload field `path`: `{}` must begin with /", cut(&self.path, 100)));
        }
        if !(1..=1_000_000).contains(&self.repeat) {
            return Err(format!("Payload field `repeat`: {}, give 1 to 1000000", self.repeat));
        }
        if self.retries > 20 {
            return Err(format!("Payload field `retries`: {}, give 0 to 20", self.retries));
        }
        if let Some(bad) = self.expect_status.iter().find(|status| !(100..=599).contains(*status)) {
            return Err(format!("Payload field `expect_status`: {bad} is no HTTP status"));
        }
        let mut query = Vec::new();
        for (name, value) in &self.query {
            for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(_) | Value::Bool(_) => value.to_string(),
                    Value::Null => continue,
                    _ => {
                        return Err(format!(
                            "Payload field `query.{name}`: give a text, a number or a boolean"
                        ));
                    }
                };
                query.push((name.clone(), text));
            }
        }
        let (body, kind) = match &self.body {
            None => (None, None),
            Some(Value::String(text)) => (Some(text.clone().into_bytes()), Some("text/plain; charset=utf-8")),
            Some(json) => (Some(json.to_string().into_bytes()), Some("application/json")),
        };
        let mut call = Call { query, body: body.map(Into::into), ..Call::new(method, self.path.clone()) };
        if let Some(kind) = kind {
            call.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        for (name, value) in &self.headers {
            let header: HeaderName = name
                .parse()
                .map_err(|_| format!("Payload field `headers`: {name:?} is no name of a header"))?;
            let secret = key_header.is_some_and(|key| key.eq_ignore_ascii_case(name));
            if secret || NOT_FOR_PAYLOADS.contains(&header.as_str()) {
                return Err(format!(
                    "Payload field `headers.{name}`: this header comes from the source or from rosterd, not from a payload"
                ));
            }
            let value =
                value.parse().map_err(|_| format!("Payload field `headers.{name}`: no value of a header"))?;
            call.headers.insert(header, value);
        }
        Ok(call)
    }

    fn expects(&self, status: StatusCode) -> bool {
        if self.expect_status.is_empty() {
            status.is_success()
        } else {
            self.expect_status.contains(&status.as_u16())
        }
    }
}

/// What became of the calls so far.
#[derive(Default)]
struct Tally {
    calls: u32,
    failed: u32,
    /// Times an answered call was sent again.
    retried: u32,
    statuses: BTreeMap<u16, u32>,
    last: Option<Answer>,
    first_failure: Option<String>,
    /// Whether some failure may pass by itself.
    is_passing: bool,
    /// Calls without an answer since the last one with an answer.
    unanswered: u32,
    /// No call can succeed any more.
    doomed: bool,
    /// A call that was ended because the lease of this runner lapsed.
    lapsed: Option<ClientError>,
}

impl Tally {
    /// After so many calls without an answer the others are not sent.
    const MAX_UNANSWERED: u32 = 10;

    fn is_hopeless(&self) -> bool {
        self.doomed || self.unanswered >= Self::MAX_UNANSWERED
    }

    fn count(&mut self, answer: Result<Answer, ClientError>, payload: &HttpPayload) {
        self.calls += 1;
        let failure = match answer {
            Ok(answer) => {
                self.unanswered = 0;
                self.retried += answer.tries - 1;
                let status = answer.status;
                *self.statuses.entry(status.as_u16()).or_default() += 1;
                self.last = Some(answer);
                if payload.expects(status) {
                    return;
                }
                self.is_passing |= status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                let note = if status.is_redirection() { " (redirects are not followed)" } else { "" };
                let path = cut(payload.path.split('?').next().unwrap_or_default(), 200);
                format!("{} {path} answered {status}{note}, expected {}", payload.method, payload.expected())
            }
            Err(error) => {
                self.unanswered += 1;
                self.is_passing |= error.is_passing();
                self.doomed |= !error.is_passing()
                    || matches!(error, ClientError::Limit(_) | ClientError::Cancelled { .. });
                if matches!(error, ClientError::Lapsed { .. }) {
                    self.doomed = true;
                    let sentence = error.to_string();
                    self.lapsed = Some(error);
                    sentence
                } else {
                    format!("{:#}", anyhow::Error::from(error))
                }
            }
        };
        self.failed += 1;
        self.first_failure.get_or_insert(failure);
    }

    fn result(&self, begun: Instant, max_bytes: usize, client: &SourceClient) -> Value {
        let mut result = Map::new();
        if let Some(last) = &self.last {
            let duration = if self.calls == 1 { last.duration } else { begun.elapsed() };
            result.insert("status".to_owned(), last.status.as_u16().into());
            result.insert(
                "duration_ms".to_owned(),
                u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into(),
            );
            let (body, truncated) = body_of(last, max_bytes, client);
            result.insert("body".to_owned(), body);
            result.insert("truncated".to_owned(), truncated.into());
        }
        let statuses: Map<String, Value> =
            self.statuses.iter().map(|(status, n)| (status.to_string(), (*n).into())).collect();
        result.insert("calls".to_owned(), self.calls.into());
        result.insert("failed".to_owned(), self.failed.into());
        if self.retried > 0 {
            result.insert("retried".to_owned(), self.retried.into());
        }
        result.insert("statuses".to_owned(), json!(statuses));
        Value::Object(result)
    }
}

impl HttpPayload {
    fn expected(&self) -> String {
        if self.expect_status.is_empty() {
            return "200 to 299".to_owned();
        }
        self.expect_status.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// The body for `Result`: JSON if it is, else text, and whether any of it is missing. A source that echoes its
/// credentials does not get them into the history.
fn body_of(answer: &Answer, max_bytes: usize, client: &SourceClient) -> (Value, bool) {
    let text = client.mask(&String::from_utf8_lossy(&answer.body));
    // PostgreSQL's jsonb takes no NUL, neither as it is nor escaped.
    let whole = !answer.truncated && text.len() <= max_bytes / 2 && !text.contains("\\u0000");
    if let (true, Ok(json)) = (whole, serde_json::from_str(&text)) {
        return (json, false);
    }
    // Escaped in JSON, a byte of text can take six.
    let text = text.replace('\0', "");
    let kept = cut(&text, max_bytes / 8);
    (kept.into(), answer.truncated || kept.len() < text.len())
}
