//! HTTP/1.1 over connections that say when the first byte of a request was written.
//!
//! The Delay of a source is kept by its own clock only if the gap is counted between the moments calls leave this
//! machine. A client that connects and writes somewhere behind its pool cannot tell. So this one first has a connection,
//! then asks the limiter for the [`Start`], and the socket itself asks it one last time before the first byte and tells
//! it right after. A call whose start was missed there has sent nothing, and is made anew.

use super::net::{AddressPolicy, AddressRefused};
use crate::limits::{CallPermit, LimitError, Missed, Start};
use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection that nobody wanted for so long is closed: many servers close it after a minute.
const IDLE_FOR: Duration = Duration::from_secs(45);
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
    tls: Option<Arc<rustls::ClientConfig>>,
    connect_timeout: Duration,
    read_timeout: Duration,
    max_bytes: usize,
    idle: Mutex<Vec<Connection>>,
}

/// An answer whose body was read: all of it, or as much as may be kept.
pub(crate) type Received = Response<Body>;

/// A body that was read.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    /// At most as long as was asked for.
    pub(crate) bytes: Bytes,
    /// Whether there was more.
    pub(crate) truncated: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// The address may not be called.
    #[error("{0}")]
    Refused(AddressRefused),
    /// The call was not granted.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Nobody waits for it any more.
    #[error("the run was cancelled")]
    NotWanted,
    /// No connection in time.
    #[error("no connection in time")]
    ConnectTimeout,
    /// The source said nothing for too long.
    #[error("no answer in time")]
    ReadTimeout,
    /// Nothing was sent.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// Something may have been sent.
    #[error("the connection broke: {0}")]
    Broken(#[source] hyper::Error),
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
}

#[derive(Debug)]
struct Connection {
    to: Endpoint,
    sender: SendRequest<Full<Bytes>>,
    wire: Wire,
    used: bool,
    since: Instant,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl Transport {
    /// Without TLS settings it speaks plain HTTP only. At most `max_bytes` of a body are kept.
    pub(crate) fn new(
        policy: AddressPolicy,
        tls: Option<Arc<rustls::ClientConfig>>,
        connect_timeout: Duration,
        read_timeout: Duration,
        max_bytes: usize,
    ) -> Self {
        let inner = Inner { policy, tls, connect_timeout, read_timeout, max_bytes, idle: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Makes one call, at the moment its permit allows. Once it has begun, it runs to its end although nobody may wait for it any more (`wanted` is cancelled): until then the
    /// source is busy with it.
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
        permit: &mut CallPermit,
        wanted: CancellationToken,
    ) -> Result<Received, TransportError> {
        let to = Endpoint::of(request.uri())?;
        let request = in_origin_form(request, &to)?;
        loop {
            let prepared = async {
                let connection = self.connection(&to).await?;
                Ok::<_, TransportError>((connection, permit.start().await?))
            };
            let (mut connection, start) = tokio::select! {
                biased;
                () = wanted.cancelled() => return Err(TransportError::NotWanted),
                prepared = prepared => prepared?,
            };
            // It may have been closed while the start was waited for.
            if connection.sender.is_closed() {
                continue;
            }
            connection.wire.arm(start);
            permit.in_doubt(true);
            let sent = connection.sender.send_request(request.clone()).await;
            let sent_nothing = connection.wire.disarm();
            let response = match sent {
                Ok(response) => response,
                // The start was missed, or the connection was closed before anything left.
                Err(_) if sent_nothing => {
                    permit.in_doubt(false);
                    if connection.used || connection.wire.missed() {
                        continue;
                    }
                    return Err(TransportError::Connect(io::ErrorKind::ConnectionAborted.into()));
                }
                Err(error) => return Err(TransportError::Broken(error)),
            };
            let (head, body) = response.into_parts();
            let body = self.read(body).await?;
            if !body.truncated {
                permit.in_doubt(false);
                self.keep(connection).await;
            }
            return Ok(Response::from_parts(head, body));
        }
    }

    async fn read(&self, mut body: Incoming) -> Result<Body, TransportError> {
        let mut bytes = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(self.inner.read_timeout, body.frame()).await;
            let Some(frame) = frame.map_err(|_| TransportError::ReadTimeout)? else {
                return Ok(Body { bytes: bytes.freeze(), truncated: false });
            };
            // Trailers say nothing that we use.
            let Ok(chunk) = frame.map_err(TransportError::Broken)?.into_data() else { continue };
            let room = self.inner.max_bytes - bytes.len();
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                return Ok(Body { bytes: bytes.freeze(), truncated: true });
            }
        }
    }

    async fn connection(&self, to: &Endpoint) -> Result<Connection, TransportError> {
        let rested = {
            let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|c| !c.sender.is_closed() && c.since.elapsed() < IDLE_FOR);
            let at = idle.iter().rposition(|c| c.to == *to);
            at.map(|at| idle.swap_remove(at))
        };
        if let Some(rested) = rested {
            return Ok(rested);
        }
        tokio::time::timeout(self.inner.connect_timeout, self.connect(to))
            .await
            .map_err(|_| TransportError::ConnectTimeout)?
    }

    async fn keep(&self, mut connection: Connection) {
        let again = tokio::time::timeout(REUSE_WAIT, connection.sender.ready()).await;
        if matches!(again, Ok(Ok(()))) {
            connection.used = true;
            connection.since = Instant::now();
            self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    async fn connect(&self, to: &Endpoint) -> Result<Connection, TransportError> {
        let addresses = self.inner.policy.resolve(&to.host, to.port).await.map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<AddressRefused>()) {
                Some(refused) => TransportError::Refused(refused.clone()),
                None => TransportError::Connect(error),
            }
        })?;
        let tcp = first_that_answers(&addresses).await.map_err(TransportError::Connect)?;
        // A request is written at once, so that its start is when it leaves.
        tcp.set_nodelay(true).map_err(TransportError::Connect)?;
        let wire = Wire::default();
        let stream = Stamped { stream: tcp, wire: wire.clone() };
        let sender = if to.tls {
            let tls = self.inner.tls.clone().ok_or_else(|| {
                TransportError::Request("no root certificates were found on this machine".to_owned())
            })?;
            let name = ServerName::try_from(to.host.clone())
                .map_err(|_| TransportError::Request(format!("{} is no name of a server", to.host)))?;
            let stream = tokio_rustls::TlsConnector::from(tls)
                .connect(name, stream)
                .await
                .map_err(TransportError::Connect)?;
            handshake(stream).await?
        } else {
            handshake(stream).await?
        };
        Ok(Connection { to: to.clone(), sender, wire, used: false, since: Instant::now() })
    }
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

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, TransportError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(TransportError::Broken)?;
    // It ends with its sender, or when the source closes it; what went wrong is told to the call it went wrong under.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

impl Endpoint {
    fn of(uri: &Uri) -> Result<Self, TransportError> {
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(TransportError::Request("the address is neither http:// nor https://".to_owned()));
            }
        };
        let host = uri.host().ok_or_else(|| TransportError::Request("the address has no host".to_owned()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: bare.to_owned(), port })
    }
}

/// As servers expect it: the path alone in the first line, the host in its header.
fn in_origin_form(request: Request<Bytes>, to: &Endpoint) -> Result<Request<Full<Bytes>>, TransportError> {
    let (mut head, body) = request.into_parts();
    let bad = |error: &dyn std::fmt::Display| TransportError::Request(error.to_string());
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
