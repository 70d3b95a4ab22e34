//! A TCP proxy before PostgreSQL that fails on command, in every way a network can.
//!
//! It stands alone (nothing else of the tests is used), so that other programs can take it in by `#[path]`.
#![allow(dead_code, reason = "each program that takes it in uses other faults")]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Where the server is.
#[derive(Debug, Clone)]
pub enum Upstream {
    Tcp(SocketAddr),
    /// The socket itself, such as `/run/postgresql/.s.PGSQL.5432`.
    Unix(PathBuf),
}

/// What the network does, until told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections are taken and stand, and nothing comes through in these directions. What was sent meanwhile
    /// arrives after the thaw, as by retransmission.
    Freeze {
        to_server: bool,
        to_client: bool,
    },
    /// Nobody listens on the port. Connections that stand go on.
    Refuse,
    /// Each chunk waits so long.
    Delay(Duration),
    /// Each connection carries so many more bytes to the client, then nothing more.
    StallAfter(usize),
}

/// Frozen in both directions.
pub const FROZEN: Mode = Mode::Freeze { to_server: true, to_client: true };

/// How often threads look whether they shall end.
const LOOK: Duration = Duration::from_millis(20);

/// The proxy. Dropping it ends every connection.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    accepted: AtomicUsize,
    cuts: AtomicUsize,
    drops_options: AtomicBool,
}

struct State {
    mode: Mode,
    /// Counts the times the mode was set, so that bytes of `StallAfter` are counted anew.
    era: u64,
    ended: bool,
    links: Vec<Arc<Link>>,
    /// A statement that contains this costs its connection, after the server has carried it out.
    cut_after: Option<String>,
}

struct Link {
    client: TcpStream,
    server: Side,
    doomed: AtomicBool,
    over: AtomicBool,
}

impl Proxy {
    /// On a free port of 127.0.0.1.
    pub fn start(upstream: Upstream) -> Self {
        Self::start_on("127.0.0.1:0".parse().expect("an address"), upstream)
    }

    /// On an address of this machine.
    pub fn start_on(address: SocketAddr, upstream: Upstream) -> Self {
        let listener = TcpListener::bind(address).expect("a port for the proxy");
        let address = listener.local_addr().expect("the address of the proxy");
        let state = State { mode: Mode::Pass, era: 0, ended: false, links: Vec::new(), cut_after: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            accepted: AtomicUsize::new(0),
            cuts: AtomicUsize::new(0),
            drops_options: AtomicBool::new(false),
        });
        let ours = Arc::clone(&shared);
        thread::spawn(move || accept(&ours, listener, address, &upstream));
        Self { shared, address }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// From now on; returns when the port follows.
    pub fn set(&self, mode: Mode) {
        let mut state = self.shared.state();
        let before = std::mem::replace(&mut state.mode, mode);
        state.era += 1;
        drop(state);
        self.shared.changed.notify_all();
        let wanted = mode != Mode::Refuse;
        if wanted == (before != Mode::Refuse) {
            return;
        }
        // A port that shall be closed or open again is so within a look or two of its thread.
        for _ in 0..500 {
            if TcpStream::connect(self.address).is_ok() == wanted {
                return;
            }
            thread::sleep(LOOK / 4);
        }
        panic!("the proxy does not become {mode:?}");
    }

    /// Every connection ends by RST. Returns how many there were.
    pub fn reset_all(&self) -> usize {
        let links = std::mem::take(&mut self.shared.state().links);
        let alive = links.iter().filter(|link| !link.over.load(Ordering::SeqCst)).count();
        for link in &links {
            link.reset();
        }
        alive
    }

    /// To every client it looks as if the server had closed; what clients send is taken and goes nowhere.
    pub fn half_close_all(&self) {
        for link in &self.shared.state().links {
            let _ = link.client.shutdown(Shutdown::Write);
        }
    }

    /// The next statement whose text contains `text` is carried out by the server, and its connection is reset before
    /// the answer passes. Once.
    pub fn cut_after(&self, text: &str) {
        self.shared.state().cut_after = Some(text.to_owned());
    }

    /// From now on connections begin without the settings their client asks for, as behind a pooler that ignores the
    /// startup parameter `options`.
    pub fn drop_options(&self) {
        self.shared.drops_options.store(true, Ordering::SeqCst);
    }

    /// Statements whose answer was cut off so far.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        self.reset_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn reset(&self) {
        self.over.store(true, Ordering::SeqCst);
        // Without lingering, a close is an RST.
        let _ = socket2::SockRef::from(&self.client).set_linger(Some(Duration::ZERO));
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// An orderly end in both directions.
    fn close(&self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

fn accept(shared: &Arc<Shared>, listener: TcpListener, address: SocketAddr, upstream: &Upstream) {
    let mut listener = Some(listener);
    loop {
        let state = shared.state();
        let (ended, refuse) = (state.ended, state.mode == Mode::Refuse);
        drop(state);
        if ended {
            return;
        }
        if refuse {
            listener = None;
            thread::sleep(LOOK / 4);
            continue;
        }
        if listener.is_none() {
            listener = TcpListener::bind(address).ok();
        }
        let Some(open) = &listener else {
            thread::sleep(LOOK / 4);
            continue;
        };
        open.set_nonblocking(true).expect("a listener that does not wait");
        match open.accept() {
            Ok((client, _)) => {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                // A server that is away shows as a connection that ends at once.
                if let Ok(server) = Side::connect(upstream) {
                    carry(shared, client, server);
                }
            }
            Err(_) => thread::sleep(LOOK / 4),
        }
    }
}

fn carry(shared: &Arc<Shared>, client: TcpStream, server: Side) {
    let set_up = client
        .set_nonblocking(false)
        .and_then(|()| client.set_nodelay(true))
        .and_then(|()| client.set_read_timeout(Some(LOOK)))
        .and_then(|()| server.set_read_timeout(LOOK));
    if set_up.is_err() {
        return;
    }
    let link =
        Arc::new(Link { client, server, doomed: AtomicBool::new(false), over: AtomicBool::new(false) });
    let mut state = shared.state();
    state.links.retain(|link| !link.over.load(Ordering::SeqCst));
    state.links.push(Arc::clone(&link));
    drop(state);
    let (ours, theirs) = (Arc::clone(shared), Arc::clone(&link));
    thread::spawn(move || {
        to_server(&ours, &theirs);
        theirs.end();
    });
    let ours = Arc::clone(shared);
    thread::spawn(move || {
        to_client(&ours, &link);
        link.end();
    });
}

impl Link {
    fn end(&self) {
        if !self.over.load(Ordering::SeqCst) {
            self.close();
        }
    }
}

fn to_server(shared: &Shared, link: &Link) {
    let mut statements = Statements::default();
    let mut chunk = vec![0; 16 * 1024];
    let mut first = shared.drops_options.load(Ordering::SeqCst);
    while let Some(bytes) = read(&mut &link.client, &mut chunk, link) {
        if !pass(shared, link, true) {
            return;
        }
        if std::mem::take(&mut first) {
            if link.server.write(&without_options(bytes)).is_err() {
                return;
            }
            continue;
        }
        for text in statements.finished_by(bytes) {
            let mut state = shared.state();
            if state.cut_after.as_ref().is_some_and(|wanted| text.contains(wanted)) {
                state.cut_after = None;
                link.doomed.store(true, Ordering::SeqCst);
            }
        }
        if link.server.write(bytes).is_err() {
            return;
        }
    }
}

/// A startup message (length, protocol, then names and values, each ended by a NUL) without `options`.
fn without_options(startup: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = startup[8..].split(|byte| *byte == 0).collect();
    let mut kept = startup[4..8].to_vec();
    for pair in words.chunks(2).filter(|pair| pair.len() == 2 && !pair[0].is_empty() && pair[0] != b"options")
    {
        for word in pair {
            kept.extend_from_slice(word);
            kept.push(0);
        }
    }
    kept.push(0);
    let length = u32::try_from(kept.len() + 4).expect("a short message").to_be_bytes();
    [length.as_slice(), &kept].concat()
}

fn to_client(shared: &Shared, link: &Link) {
    let mut chunk = vec![0; 16 * 1024];
    let mut withheld = Vec::new();
    let (mut era, mut carried) = (0, 0);
    while let Some(bytes) = read(&mut &link.server, &mut chunk, link) {
        if !pass(shared, link, false) {
            return;
        }
        if link.doomed.load(Ordering::SeqCst) {
            withheld.extend_from_slice(bytes);
            if is_ready_for_query(&withheld) {
                shared.cuts.fetch_add(1, Ordering::SeqCst);
                // It is closed, and so reset, when nobody holds it any more.
                shared.state().links.retain(|other| !std::ptr::eq(Arc::as_ptr(other), link));
                link.reset();
                return;
            }
            continue;
        }
        let state = shared.state();
        if era != state.era {
            (era, carried) = (state.era, 0);
        }
        let room = match state.mode {
            Mode::StallAfter(limit) => limit.saturating_sub(carried).min(bytes.len()),
            _ => bytes.len(),
        };
        drop(state);
        carried += room;
        if (&link.client).write_all(&bytes[..room]).is_err() {
            return;
        }
        if room < bytes.len() {
            // The rest is held back until the mode changes.
            if !wait_while(shared, link, |state| state.era == era) {
                return;
            }
            if (&link.client).write_all(&bytes[room..]).is_err() {
                return;
            }
        }
    }
}

/// The next bytes, or `None` at the end of the link.
fn read<'b>(from: &mut impl Read, chunk: &'b mut [u8], link: &Link) -> Option<&'b [u8]> {
    loop {
        if link.over.load(Ordering::SeqCst) {
            return None;
        }
        match from.read(chunk) {
            Ok(0) => return None,
            Ok(n) => return Some(&chunk[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
    }
}

/// Waits as the mode says; false at the end of the link.
fn pass(shared: &Shared, link: &Link, to_the_server: bool) -> bool {
    let mode = shared.state().mode;
    if let Mode::Delay(time) = mode {
        thread::sleep(time);
    }
    wait_while(shared, link, |state| match state.mode {
        Mode::Freeze { to_server, to_client } => {
            if to_the_server {
                to_server
            } else {
                to_client
            }
        }
        _ => false,
    })
}

fn wait_while(shared: &Shared, link: &Link, condition: impl Fn(&State) -> bool) -> bool {
    let mut state = shared.state();
    while condition(&state) {
        if state.ended || link.over.load(Ordering::SeqCst) {
            return false;
        }
        state = shared.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

/// Reads along with what a client sends, as far as needed to know when which statement is to be carried out.
#[derive(Default)]
struct Statements {
    begun: bool,
    buffer: Vec<u8>,
    prepared: HashMap<Vec<u8>, String>,
    bound: Option<String>,
    executed: Option<String>,
}

impl Statements {
    /// The texts of statements that these bytes complete.
    fn finished_by(&mut self, bytes: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(bytes);
        let mut finished = Vec::new();
        loop {
            // The first message has no letter before its length.
            let at = usize::from(self.begun);
            let Some(length) = self.buffer.get(at..at + 4) else { break };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
            if self.buffer.len() < at + length || length < 4 {
                break;
            }
            let message: Vec<u8> = self.buffer.drain(..at + length).collect();
            if !self.begun {
                // A request for TLS or GSS is eight bytes, and another first message follows it.
                self.begun = length > 8;
                continue;
            }
            let mut words = message[5..].split(|byte| *byte == 0);
            let mut word = || words.next().unwrap_or_default();
            match message[0] {
                b'Q' => finished.push(text(word())),
                b'P' => {
                    let name = word().to_vec();
                    self.prepared.insert(name, text(word()));
                }
                b'B' => {
                    word();
                    self.bound = self.prepared.get(word()).cloned();
                }
                b'E' => self.executed = self.bound.take(),
                b'S' => finished.extend(self.executed.take()),
                _ => {}
            }
        }
        finished
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether these messages of a server, from the first byte of one, end with `ReadyForQuery`.
fn is_ready_for_query(mut messages: &[u8]) -> bool {
    while let [kind, a, b, c, d, ..] = messages {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if messages.len() < 1 + length {
            return false;
        }
        if *kind == b'Z' {
            return true;
        }
        messages = &messages[1 + length..];
    }
    false
}

/// The server's end, over either kind of socket.
enum Side {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Side {
    fn connect(upstream: &Upstream) -> std::io::Result<Self> {
        match upstream {
            Upstream::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Upstream::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    fn set_read_timeout(&self, time: Duration) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(time)),
            Self::Unix(stream) => stream.set_read_timeout(Some(time)),
        }
    }

    fn shutdown(&self, how: Shutdown) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
        }
    }
}

impl Read for &Side {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Side::Tcp(stream) => (&mut &*stream).read(buffer),
            Side::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}
