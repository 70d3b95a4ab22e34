//! An API that knows when it was called: the kernel stamps what arrives, so no busy processor makes two calls look
//! closer together, or further apart, than they were.

use nix::cmsg_space;
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{Backlog, ControlMessageOwned, MsgFlags, listen, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use std::collections::HashMap;
use std::io::{self, IoSliceMut, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Since 1970, by the clock of the kernel that received it.
    pub at: Duration,
    /// Calls of this source that were not answered yet, this one included.
    pub in_flight: usize,
    /// The row it was made for, as the call says.
    pub job: Option<Uuid>,
}

/// `GET /NAME?millis=20&status=429&retry-after=3` is answered after 20 ms as it says. NAME tells the sources apart. With
/// `hears=1` a call is over when its connection is closed, as at an API that notices that nobody listens.
#[derive(Clone)]
pub struct StampingApi {
    pub address: SocketAddr,
    patience: Option<Duration>,
    accepted: Arc<AtomicUsize>,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

#[derive(Default)]
struct Seen {
    arrivals: Vec<Arrival>,
    in_flight: usize,
    answer: Option<String>,
}

impl StampingApi {
    /// It serves until the process ends: a thread for each connection, which ends with the connection.
    pub fn start() -> io::Result<Self> {
        Self::start_with(None)
    }

    /// The same; a connection on which nothing was said for `patience` is closed.
    pub fn start_with(patience: Option<Duration>) -> io::Result<Self> {
        Self::serve_on(TcpListener::bind("127.0.0.1:0")?, patience, Duration::ZERO)
    }

    /// The same; it takes one connection in each `pause`, and lets nearly nobody stand in line for that: who finds the
    /// line full goes on connecting, and is let in a second later, or three, or seven.
    pub fn start_slow(pause: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listen(&listener, Backlog::new(1)?)?;
        Self::serve_on(listener, None, pause)
    }

    fn serve_on(listener: TcpListener, patience: Option<Duration>, pause: Duration) -> io::Result<Self> {
        // Connections inherit it. Asked for on each of them it would come after the first call may have arrived.
        setsockopt(&listener, ReceiveTimestampns, &true)?;
        let api = Self {
            address: listener.local_addr()?,
            patience,
            accepted: Arc::default(),
            seen: Arc::default(),
        };
        let serving = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::sleep(pause);
                serving.accepted.fetch_add(1, Ordering::Relaxed);
                let api = serving.clone();
                let serve = move || drop(api.serve(stream));
                std::thread::Builder::new().stack_size(128 * 1024).spawn(serve).expect("a thread");
            }
        });
        Ok(api)
    }

    /// The calls of this source so far, in order.
    pub fn arrivals(&self, name: &str) -> Vec<Arrival> {
        let seen = self.seen.lock().unwrap();
        let mut arrivals = seen.get(name).map(|seen| seen.arrivals.clone()).unwrap_or_default();
        arrivals.sort_unstable_by_key(|arrival| arrival.at);
        arrivals
    }

    /// Calls of this source that are not over.
    pub fn in_flight(&self, name: &str) -> usize {
        self.seen.lock().unwrap().get(name).map_or(0, |seen| seen.in_flight)
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Calls of all sources.
    pub fn calls(&self) -> usize {
        self.seen.lock().unwrap().values().map(|seen| seen.arrivals.len()).sum()
    }

    /// What this source answers from now on, status line to the blank line; `None`: as each call says.
    pub fn answer(&self, name: &str, head: Option<&str>) {
        self.seen.lock().unwrap().entry(name.to_owned()).or_default().answer = head.map(str::to_owned);
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(self.patience)?;
        loop {
            let Some((head, at)) = receive(&stream)? else { return Ok(()) };
            let target = head.split(' ').nth(1).unwrap_or("/").to_owned();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let name = path.trim_start_matches('/').to_owned();
            let asked: HashMap<&str, &str> =
                query.split('&').filter_map(|pair| pair.split_once('=')).collect();
            let job = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("x-rosterd-job"))
                .and_then(|(_, job)| job.parse().ok());
            let answer = {
                let mut all = self.seen.lock().unwrap();
                let seen = all.entry(name.clone()).or_default();
                seen.in_flight += 1;
                seen.arrivals.push(Arrival { at, in_flight: seen.in_flight, job });
                seen.answer.clone()
            };
            let mut gone = false;
            if let Some(millis) = asked.get("millis").and_then(|millis| millis.parse().ok()) {
                let work = Duration::from_millis(millis);
                if asked.contains_key("hears") {
                    stream.set_read_timeout(Some(work))?;
                    // Nothing more is sent before the answer, so whatever wakes this before its time is the end.
                    gone = !matches!(&stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                    stream.set_read_timeout(self.patience)?;
                } else {
                    std::thread::sleep(work);
                }
            }
            self.seen.lock().unwrap().get_mut(&name).expect("it was called").in_flight -= 1;
            if gone {
                return Ok(());
            }
            let answer = answer.unwrap_or_else(|| {
                let pause =
                    asked.get("retry-after").map(|s| format!("Retry-After: {s}\r\n")).unwrap_or_default();
                format!("HTTP/1.1 {} As asked\r\n{pause}", asked.get("status").unwrap_or(&"200"))
            });
            stream.write_all(format!("{answer}Content-Length: 2\r\n\r\nok").as_bytes())?;
        }
    }
}

/// The head of a request, and when its first byte arrived.
fn receive(stream: &TcpStream) -> io::Result<Option<(String, Duration)>> {
    let mut head = Vec::new();
    let mut first = None;
    loop {
        let mut buffer = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = cmsg_space!(TimeSpec);
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
        let stamp = message.cmsgs().ok().into_iter().flatten().find_map(|part| match part {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        });
        let count = message.bytes;
        if count == 0 {
            return Ok(None);
        }
        first = first.or(stamp);
        head.extend_from_slice(&buffer[..count]);
        if head.ends_with(b"\r\n\r\n") {
            // The kernel begins to stamp a moment after the first socket of the machine asked for it.
            let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            return Ok(Some((String::from_utf8_lossy(&head).into_owned(), first.unwrap_or_else(now))));
        }
    }
}
