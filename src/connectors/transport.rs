//! The one door to the network: a request goes out over TLS or plainly, and an answer begins to come back.
//!
//! It knows addresses and time to connect, and nothing of sources, credentials, retries or sizes. Every connection
//! passes [`AddressPolicy`], whoever asked for it. Nothing is followed, no proxy is used, nothing is tried twice.

use super::net::{AddressPolicy, AddressRefused};
use super::tls;
use crate::limits::CallPermit;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::error::Error;
use std::time::Duration;

/// Sends requests. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    policy: AddressPolicy,
}

/// The body of an answer, as it comes in.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, TransportError>;

/// Why no answer came. No text of it holds a URL, whose query may hold anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TransportError {
    /// The address may not be called. Nothing was sent.
    #[error(transparent)]
    Refused(#[from] AddressRefused),
    /// Whoever answered could not prove to be the one that was called. Nothing was sent.
    #[error("{0}")]
    Tls(String),
    /// Nobody answered in time. Nothing was sent.
    #[error("nobody answered in time")]
    ConnectTimeout,
    /// No connection could be made. Nothing was sent.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// The connection broke. The request may have been received, and may have been carried out.
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl TransportError {
    /// Whether the other side cannot have received any of the request.
    pub(crate) fn nothing_was_sent(&self) -> bool {
        !matches!(self, Self::Broken(_))
    }
}

impl Transport {
    /// With the rule of addresses, the longest time to make a connection, and whom TLS trusts.
    pub(crate) fn new(
        policy: AddressPolicy,
        connect_timeout: Duration,
        tls: rustls::ClientConfig,
    ) -> Result<Self, TransportError> {
        let http = reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            .dns_resolver(Resolver(policy.clone()))
            .connect_timeout(connect_timeout)
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| TransportError::NoConnection(chain(&error)))?;
        Ok(Self { http, policy })
    }

    /// Sends `request`, whose URI is absolute, under `permit`, and returns when the answer begins.
    pub(crate) async fn send(
        &self,
        request: http::Request<Bytes>,
        _permit: &mut CallPermit,
    ) -> Result<http::Response<AnswerBody>, TransportError> {
        // An IP address is connected to without asking the resolver.
        self.policy.check_host(request.uri().host().unwrap_or_default())?;
        let request = reqwest::Request::try_from(request).map_err(|error| explain(&error))?;
        let answer = self.http.execute(request).await.map_err(|error| explain(&error))?;
        Ok(http::Response::from(answer).map(|body| body.map_err(|error| explain(&error)).boxed_unsync()))
    }
}

#[derive(Debug)]
struct Resolver(AddressPolicy);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            let addresses = policy.resolve(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn explain(error: &reqwest::Error) -> TransportError {
    if let Some(refused) = cause::<AddressRefused>(error) {
        TransportError::Refused(refused.clone())
    } else if !error.is_connect() {
        TransportError::Broken(chain(error))
    } else if let Some(error) = cause::<rustls::Error>(error) {
        TransportError::Tls(tls::explain(error))
    } else if error.is_timeout() {
        TransportError::ConnectTimeout
    } else {
        TransportError::NoConnection(chain(error))
    }
}

/// The causes of an error, without the error itself, which names the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// The first error of type `E` among the causes.
fn cause<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an I/O error is the source of what is in it.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
