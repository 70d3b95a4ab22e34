//! A call and its answer, as job authors see them.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use std::fmt;
use std::time::Duration;

/// One call. Its `Debug` output is its method, because everything else may hold a secret; some APIs have one in the path.
#[derive(Clone)]
pub struct Call {
    /// GET, POST, ...
    pub method: Method,
    /// Begins with "/", goes behind the path of the source's Address, and may carry a query.
    pub path: String,
    /// More of the query.
    pub query: Vec<(String, String)>,
    /// Its own headers. Credentials, X-Rosterd-Job and X-Request-Id are set over them.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Option<Bytes>,
    /// Whether carrying it out twice does no harm, see [`Call::idempotent`].
    pub idempotent: bool,
}

impl Call {
    /// Of any method.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        // RFC 9110, section 9.2.2, less TRACE.
        let safe = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS];
        Self {
            idempotent: safe.contains(&method),
            method,
            path: path.into(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: None,
        }
    }

    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// A POST of a JSON value.
    pub fn post_json(path: impl Into<String>, body: &serde_json::Value) -> Self {
        let mut call = Self::new(Method::POST, path);
        call.body = Some(body.to_string().into());
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        call
    }

    /// With one more pair in the query.
    #[must_use]
    pub fn query(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.query.push((name.into(), value.to_string()));
        self
    }

    /// The author's word that carrying it out twice does no harm: because it only asks, or because the other side
    /// knows it again. Then it is also tried again when the connection broke in the middle and on 502, 503 and 504.
    /// GET, HEAD, PUT, DELETE and OPTIONS count as idempotent anyway.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// The same, with the key by which the other side knows it again, in the header `Idempotency-Key`: the key of an
    /// [`Effect`](crate::job::Effect), for instance. What a header cannot hold is percent-encoded.
    #[must_use]
    pub fn idempotency_key(self, key: &str) -> Self {
        let key = utf8_percent_encode(key, CONTROLS).to_string();
        let mut call = self.idempotent();
        if let Ok(value) = HeaderValue::try_from(key) {
            call.headers.insert("idempotency-key", value);
        }
        call
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What a source answered, whatever its status. Headers and body are as the source sent them: pass text through
/// [`SourceClient::mask`](super::SourceClient::mask) before it is logged or kept. `Debug` prints neither.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers; without Content-Encoding and Content-Length if the body was decompressed.
    pub headers: HeaderMap,
    /// The body, decompressed, at most `sources.response_max_bytes` of it.
    pub body: Vec<u8>,
    /// Whether the body was longer.
    pub truncated: bool,
    /// From the start of the last try to the end of the body.
    pub duration: Duration,
    /// `Concurrency` of the source when the call was granted.
    pub concurrency: u32,
    /// How many times the call was sent until this answer came, from 1.
    pub tries: u32,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("bytes", &self.body.len())
            .field("truncated", &self.truncated)
            .field("tries", &self.tries)
            .finish_non_exhaustive()
    }
}
