//! A TCP proxy before PostgreSQL that does what networks do: freezes, delays, half-closes, resets, and loses the answer
//! to a commit.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UnixStream, unix};
use tokio::sync::{broadcast, watch};

/// What happens to connections at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing more is sent to the client, which may still send.
    HalfClose,
    /// The client gets an RST.
    Reset,
}

/// The proxy of one daemon.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    frozen: watch::Sender<bool>,
    delay_millis: AtomicU64,
    lose_next_answer: AtomicBool,
    cuts: broadcast::Sender<Cut>,
}

impl Proxy {
    /// Listens on `at` and passes everything on to the socket.
    pub async fn start(at: SocketAddr, socket: PathBuf) -> Arc<Self> {
        let listener = TcpListener::bind(at).await.expect("a free port");
        let proxy = Arc::new(Self {
            address: listener.local_addr().expect("it is bound"),
            frozen: watch::Sender::new(false),
            delay_millis: AtomicU64::new(0),
            lose_next_answer: AtomicBool::new(false),
            cuts: broadcast::Sender::new(4),
        });
        let accepting = Arc::clone(&proxy);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    // Out of files for a moment.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let proxy = Arc::clone(&accepting);
                let socket = socket.clone();
                tokio::spawn(async move {
                    proxy.thawed().await;
                    // An error ends this connection, which is all a proxy can do about it.
                    if let Ok(server) = UnixStream::connect(&socket).await {
                        let _ = proxy.pass(client, server).await;
                    }
                });
            }
        });
        proxy
    }

    /// Nothing gets through in either direction, and nobody is told.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// Everything takes this much longer.
    pub fn delay(&self, by: Duration) {
        self.delay_millis.store(u64::try_from(by.as_millis()).unwrap_or(0), Ordering::Release);
    }

    /// The next answer that says a statement is done is lost together with its connection.
    pub fn lose_next_answer(&self) {
        self.lose_next_answer.store(true, Ordering::Release);
    }

    /// Does it to every connection there is.
    pub fn cut(&self, cut: Cut) {
        // Nobody may be connected just now.
        let _ = self.cuts.send(cut);
    }

    async fn thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        let _ = frozen.wait_for(|frozen| !frozen).await;
    }

    async fn pass(&self, client: TcpStream, server: UnixStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut cuts = self.cuts.subscribe();
        let (from_client, mut to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let up = self.up(from_client, to_server);
        tokio::pin!(up);
        let how = {
            let down = self.down(from_server, &mut to_client);
            tokio::pin!(down);
            tokio::select! {
                _ = &mut up => None,
                lost = &mut down => lost?.then_some(Cut::Reset),
                cut = cuts.recv() => cut.ok(),
            }
        };
        match how {
            Some(Cut::HalfClose) => {
                to_client.shutdown().await?;
                let _ = tokio::time::timeout(Duration::from_secs(20), up).await;
            }
            Some(Cut::Reset) => to_client.as_ref().set_zero_linger()?,
            None => {}
        }
        Ok(())
    }

    async fn up(&self, mut from: OwnedReadHalf, mut to: unix::OwnedWriteHalf) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = from.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            self.hold_up().await;
            to.write_all(&buffer[..n]).await?;
        }
    }

    /// True if an answer was lost on purpose.
    async fn down(&self, mut from: unix::OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<bool> {
        // ReadyForQuery outside a transaction: whatever the client asked for is committed.
        const COMMITTED: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = from.read(&mut buffer).await?;
            if n == 0 {
                return Ok(false);
            }
            let done = buffer[..n].windows(COMMITTED.len()).any(|window| window == COMMITTED);
            if done && self.lose_next_answer.swap(false, Ordering::AcqRel) {
                return Ok(true);
            }
            self.hold_up().await;
            to.write_all(&buffer[..n]).await?;
        }
    }

    async fn hold_up(&self) {
        let delay = self.delay_millis.load(Ordering::Acquire);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        self.thawed().await;
    }
}
