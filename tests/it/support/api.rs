//! An HTTP API of which a test says, request by request, what it does: it can also hang up, stand still, or lie.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A request as it arrived. Names of headers are in lower case.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Instant,
    pub method: String,
    pub target: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    /// A parameter of the query, as it stands.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let query = self.target.split_once('?')?.1;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// What the API does about it.
#[derive(Clone)]
pub enum Reply {
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Closes the connection.
    HangUp,
    /// Sends these bytes, and then closes the connection.
    Partly(Vec<u8>),
    /// Sends these bytes, and nothing more.
    StandStill(Vec<u8>),
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), Vec::new())
    }

    pub fn json(body: &serde_json::Value) -> Self {
        Self::Answer(
            200,
            vec![("content-type", "application/json".to_owned())],
            body.to_string().into_bytes(),
        )
    }
}

#[derive(Clone)]
pub struct ScriptedApi {
    /// `http://127.0.0.1:PORT`
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Script = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

impl ScriptedApi {
    /// `script` gets the request and how many came before it.
    pub async fn start(script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", None, script).await
    }

    pub async fn start_at(
        bind: &str,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(bind).await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let api = Self { address, asked: Arc::default() };
        let (asked, script): (_, Script) = (Arc::clone(&api.asked), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (asked, script, tls) = (Arc::clone(&asked), Arc::clone(&script), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, asked, script).await,
                        // A client that does not trust us hangs up in the handshake.
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => serve(socket, asked, script).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        api
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Request after request on one connection, until either side has had enough.
async fn serve(
    socket: impl AsyncRead + AsyncWrite,
    asked: Arc<Mutex<Vec<Asked>>>,
    script: Script,
) -> Option<()> {
    let (read, mut write) = tokio::io::split(Box::pin(socket));
    let mut read = BufReader::new(read);
    loop {
        let request = read_request(&mut read).await?;
        let nth = {
            let mut asked = asked.lock().unwrap();
            asked.push(request.clone());
            asked.len() - 1
        };
        let bytes = match script(&request, nth) {
            Reply::HangUp => return None,
            Reply::Partly(bytes) => {
                write.write_all(&bytes).await.ok()?;
                write.shutdown().await.ok()?;
                return None;
            }
            Reply::StandStill(bytes) => {
                write.write_all(&bytes).await.ok()?;
                write.flush().await.ok()?;
                // Until the client gives up.
                let _ = read.read(&mut [0]).await;
                return None;
            }
            Reply::Answer(status, headers, body) => {
                let mut text = format!("HTTP/1.1 {status} Said So\r\n");
                for (name, value) in headers {
                    text.extend([name, ": ", &value, "\r\n"]);
                }
                if status != 204 {
                    text.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
                }
                text.push_str("\r\n");
                let mut bytes = text.into_bytes();
                if request.method != "HEAD" {
                    bytes.extend(body);
                }
                bytes
            }
        };
        write.write_all(&bytes).await.ok()?;
        write.flush().await.ok()?;
    }
}

async fn read_request(read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Asked> {
    let mut first = String::new();
    if read.read_line(&mut first).await.ok()? == 0 {
        return None;
    }
    let at = Instant::now();
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.ok()?;
    Some(Asked { at, method, target, headers, body })
}
