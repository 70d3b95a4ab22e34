//! HTTP/1.1 over connections that say when the first byte of a request was written.
//!
//! The Delay of a source is kept by its own clock only if the gap is counted between the moments calls leave this
//! machine. A client that connects and writes somewhere behind its pool cannot tell. So this one first has a connection,
//! then asks the limiter for the [`Start`], and the socket itself asks it one last time before the first byte and tells
//! it right after. A call whose start was missed there has sent nothing, and is made anew.

use super::net::{AddressPolicy, AddressRefused};
use super::tls;
use crate::limits::{CallPermit, LimitError, Missed, Start};
use bytes::Bytes;
use http::{Request, Response, Uri, header::HOST};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// A connection that nobody wanted for so long is closed: many servers close it after a minute.
const IDLE_FOR: Duration = Duration::from_secs(45);
/// A connection on which nothing was sent for so long may have been closed by the other side.
const OVERTIRED: Duration = Duration::from_secs(1);
/// How long an answer may take to say that its connection can be used again.
const REUSE_WAIT: Duration = Duration::from_millis(50);

/// Connections to the hosts one client calls. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    policy: AddressPolicy,
    tls: Arc<rustls::ClientConfig>,
    connect_timeout: Duration,
    idle: Mutex<Vec<Connection>>,
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
    /// The start was missed, or a connection that was kept had been closed. Nothing was sent: be ready anew.
    #[error(transparent)]
    Missed(#[from] Missed),
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

/// A connection on which a call may start now.
#[derive(Debug)]
pub(crate) struct Ready {
    transport: Transport,
    connection: Connection,
    start: Start,
}

#[derive(Debug)]
struct Connection {
    to: Endpoint,
    sender: SendRequest<Full<Bytes>>,
    _socket: Socket,
    wire: Wire,
    used: bool,
    since: Instant,
}

/// The task that holds the socket. With the connection it ends at once, whatever it was waiting to send: a call that was
/// given up is one the source can see to be over.
#[derive(Debug)]
struct Socket(AbortHandle);

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl Transport {
    /// With the rule of addresses, the longest time to make a connection, and whom TLS trusts.
    pub(crate) fn new(policy: AddressPolicy, connect_timeout: Duration, tls: rustls::ClientConfig) -> Self {
        let inner = Inner { policy, tls: Arc::new(tls), connect_timeout, idle: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Connects to where `request` goes, and then waits until its call may start. Send it at once.
    pub(crate) async fn ready<B>(
        &self,
        request: &Request<B>,
        permit: &CallPermit,
    ) -> Result<Result<Ready, TransportError>, LimitError> {
        loop {
            let connection = match self.connection_for(request.uri()).await {
                Ok(connection) => connection,
                Err(error) => return Ok(Err(error)),
            };
            let start = permit.start().await?;
            // With a long Delay the other side may have lost its patience meanwhile.
            if connection.since.elapsed() < OVERTIRED || !connection.sender.is_closed() {
                return Ok(Ok(Ready { transport: self.clone(), connection, start }));
            }
        }
    }

    async fn connection_for(&self, uri: &Uri) -> Result<Connection, TransportError> {
        // An IP address is refused without asking the resolver.
        self.inner.policy.check_host(uri.host().unwrap_or_default())?;
        self.connection(&Endpoint::of(uri)?).await
    }

    async fn connection(&self, to: &Endpoint) -> Result<Connection, TransportError> {
        let rested = {
            let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|c| !c.sender.is_closed() && c.since.elapsed() < IDLE_FOR);
            let at = idle.iter().rposition(|c| c.to == *to);
            at.map(|at| idle.swap_remove(at))
        };
        if let Some(mut rested) = rested {
            // Its last answer has just been read; the connection itself may need a moment to notice.
            let again = tokio::time::timeout(REUSE_WAIT, rested.sender.ready()).await;
            if matches!(again, Ok(Ok(()))) {
                return Ok(rested);
            }
        }
        tokio::time::timeout(self.inner.connect_timeout, self.connect(to))
            .await
            .map_err(|_| TransportError::ConnectTimeout)?
    }

    fn put_back(&self, mut connection: Connection) {
        connection.used = true;
        connection.since = Instant::now();
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    async fn connect(&self, to: &Endpoint) -> Result<Connection, TransportError> {
        let addresses = self.inner.policy.resolve(&to.host, to.port).await.map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<AddressRefused>()) {
                Some(refused) => TransportError::Refused(refused.clone()),
                None => TransportError::NoConnection(error.to_string()),
            }
        })?;
        tracing::debug!(host = to.host, port = to.port, "connects to a source");
        let failed = |error: io::Error| TransportError::NoConnection(error.to_string());
        let tcp = first_that_answers(&addresses).await.map_err(failed)?;
        // A request is written at once, so that its start is when it leaves.
        tcp.set_nodelay(true).map_err(failed)?;
        let wire = Wire::default();
        let stream = Stamped { stream: tcp, wire: wire.clone() };
        let (sender, socket) = if to.tls {
            let name = ServerName::try_from(to.host.clone()).map_err(|_| {
                TransportError::NoConnection(format!("{} is no name a certificate can have", to.host))
            })?;
            let tls = tokio_rustls::TlsConnector::from(Arc::clone(&self.inner.tls));
            handshake(tls.connect(name, stream).await.map_err(|error| tls_failed(&error))?).await?
        } else {
            handshake(stream).await?
        };
        Ok(Connection { to: to.clone(), sender, _socket: socket, wire, used: false, since: Instant::now() })
    }
}

impl Ready {
    /// Sends the request and returns when the answer begins.
    pub(crate) async fn send(self, request: Request<Bytes>) -> Result<Response<AnswerBody>, TransportError> {
        let Self { transport, mut connection, start } = self;
        let request = in_origin_form(request, &connection.to)?;
        connection.wire.arm(start);
        let sent = connection.sender.send_request(request).await;
        let sent_nothing = connection.wire.disarm();
        match sent {
            Ok(response) => Ok(response.map(|incoming| {
                let body = Returning { incoming, connection: Some((transport, connection)) };
                body.boxed_unsync()
            })),
            Err(_) if sent_nothing && connection.may_have_been_closed() => Err(Missed.into()),
            Err(error) if sent_nothing => Err(TransportError::NoConnection(chain(&error))),
            Err(error) => Err(TransportError::Broken(chain(&error))),
        }
    }
}

impl Connection {
    /// Whether it fails for a reason that a new one does not have.
    fn may_have_been_closed(&self) -> bool {
        self.used || self.wire.missed() || self.since.elapsed() >= OVERTIRED
    }
}

/// A body that gives its connection back when it was read to its end.
struct Returning {
    incoming: Incoming,
    connection: Option<(Transport, Connection)>,
}

impl http_body::Body for Returning {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, TransportError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if frame.is_none()
            && let Some((transport, connection)) = self.connection.take()
        {
            transport.put_back(connection);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| TransportError::Broken(chain(&error)))))
    }
}

fn tls_failed(error: &io::Error) -> TransportError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => TransportError::Tls(tls::explain(error)),
        None => TransportError::NoConnection(error.to_string()),
    }
}

/// An error with its causes.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// One after the other, as the resolver gave them.
async fn first_that_answers(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn handshake<S>(stream: S) -> Result<(SendRequest<Full<Bytes>>, Socket), TransportError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| TransportError::NoConnection(chain(&error)))?;
    // What went wrong is told to the call it went wrong under.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, Socket(task.abort_handle())))
}

impl Endpoint {
    fn of(uri: &Uri) -> Result<Self, TransportError> {
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(TransportError::NoConnection(
                    "the address is neither http:// nor https://".to_owned(),
                ));
            }
        };
        let host =
            uri.host().ok_or_else(|| TransportError::NoConnection("the address has no host".to_owned()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: bare.to_owned(), port })
    }
}

/// As servers expect it: the path alone in the first line, the host in its header.
fn in_origin_form(request: Request<Bytes>, to: &Endpoint) -> Result<Request<Full<Bytes>>, TransportError> {
    let (mut head, body) = request.into_parts();
    let bad = |error: &dyn std::fmt::Display| TransportError::NoConnection(error.to_string());
    if !head.headers.contains_key(HOST) {
        let usual = if to.tls { 443 } else { 80 };
        let host = head.uri.host().unwrap_or_default();
        let host = if to.port == usual { host.to_owned() } else { format!("{host}:{}", to.port) };
        head.headers.insert(HOST, host.parse().map_err(|e| bad(&e))?);
    }
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().map_err(|e| bad(&e))?;
    Ok(Request::from_parts(head, Full::new(body)))
}

/// Between the call and the socket: the start the next bytes wait for.
#[derive(Debug, Clone, Default)]
struct Wire {
    state: Arc<Mutex<WireState>>,
}

#[derive(Debug, Default)]
struct WireState {
    armed: Option<Start>,
    missed: bool,
}

impl Wire {
    fn lock(&self) -> std::sync::MutexGuard<'_, WireState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arm(&self, start: Start) {
        let mut state = self.lock();
        state.missed = false;
        state.armed = Some(start);
    }

    /// Whether nothing was written since it was armed.
    fn disarm(&self) -> bool {
        let mut state = self.lock();
        state.armed.take().is_some() || state.missed
    }

    fn missed(&self) -> bool {
        self.lock().missed
    }

    /// Writes. The first bytes of a call only if it may start at this very moment.
    fn write(&self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let Some(start) = state.armed.take() else {
            return if state.missed { Poll::Ready(Err(io::Error::other(Missed))) } else { write() };
        };
        if start.fire().is_err() {
            state.missed = true;
            return Poll::Ready(Err(io::Error::other(Missed)));
        }
        let written = write();
        match &written {
            Poll::Ready(Ok(n)) if *n > 0 => start.written(),
            _ => state.armed = Some(start),
        }
        written
    }
}

/// A socket that asks before the first byte of a call.
#[derive(Debug)]
struct Stamped {
    stream: TcpStream,
    wire: Wire,
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.wire.clone();
        wire.write(|| Pin::new(&mut self.stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.wire.clone();
        wire.write(|| Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
