//! An HTTP/1.1 client that sends any bytes and believes nothing.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::PATIENCE;
use super::tls::TlsClient;
use super::wire::{Head, Headers, Stream, Wire, answer_framing, invalid};

/// The host that calls name unless they say otherwise.
pub const HOST: &str = "test.example";

/// A request in the making.
#[derive(Debug, Clone)]
pub struct Call {
    method: String,
    target: String,
    host: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    pub fn new(method: &str, target: &str) -> Self {
        Call { method: method.into(), target: target.into(), host: Some(HOST.into()), headers: Vec::new(), body: None }
    }

    pub fn get(target: &str) -> Self {
        Call::new("GET", target)
    }

    pub fn post(target: &str, body: impl AsRef<[u8]>) -> Self {
        Call::new("POST", target).body(body)
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends a body with its `Content-Length`.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if let Some(host) = &self.host {
            text += &format!("Host: {host}\r\n");
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub trailers: Headers,
    /// Status codes of the interim (1xx) answers before it.
    pub interim: Vec<u16>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The reason label of an error that the gateway made itself; `None` for anything else.
    pub fn problem(&self) -> Option<String> {
        if self.header("content-type") != Some("application/problem+json") {
            return None;
        }
        Some(self.json()["type"].as_str()?.strip_prefix("urn:headgate:problem:")?.to_owned())
    }

    /// Whether the client may send its next request on the same connection.
    pub fn keeps_alive(&self) -> bool {
        !self.headers.lists("connection", "close")
    }
}

pub struct Client {
    wire: Wire<Box<dyn Stream>>,
    pub patience: Duration,
}

impl Client {
    pub fn over(stream: impl Stream + 'static) -> Self {
        Client { wire: Wire::new(Box::new(stream)), patience: PATIENCE }
    }

    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok(Client::over(tcp))
    }

    pub async fn unix(path: &Path) -> io::Result<Self> {
        Ok(Client::over(UnixStream::connect(path).await?))
    }

    /// Connects with TLS, naming `server_name` in SNI.
    pub async fn tls(address: SocketAddr, tls: &TlsClient, server_name: &str) -> io::Result<Self> {
        Ok(Client::over(tls.connect(address, server_name).await?))
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match timeout(self.patience, self.wire.write(bytes.as_ref())).await {
            Ok(sent) => sent,
            Err(_) => Err(timed_out("the gateway did not take what was sent")),
        }
    }

    /// Sends a call and reads its answer.
    pub async fn call(&mut self, call: &Call) -> io::Result<Answer> {
        self.send(call.bytes()).await?;
        self.answer_to(&call.method).await
    }

    pub async fn get(&mut self, target: &str) -> io::Result<Answer> {
        self.call(&Call::get(target)).await
    }

    pub async fn answer(&mut self) -> io::Result<Answer> {
        self.answer_to("GET").await
    }

    pub async fn answer_to(&mut self, method: &str) -> io::Result<Answer> {
        let patience = self.patience;
        match timeout(patience, self.read_answer(method)).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out("no complete answer came")),
        }
    }

    /// Reads an answer's head only, for bodies that are read as they come.
    pub async fn head(&mut self) -> io::Result<(u16, Headers)> {
        match timeout(self.patience, self.wire.head()).await {
            Ok(head) => {
                let head = head?.ok_or_else(no_answer)?;
                Ok((status(&head)?, head.headers))
            }
            Err(_) => Err(timed_out("no head came")),
        }
    }

    /// Reads one chunk of a chunked body; `None` after the last.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        match timeout(self.patience, self.wire.chunk()).await {
            Ok(chunk) => chunk,
            Err(_) => Err(timed_out("no chunk came")),
        }
    }

    /// Reads whatever comes next; empty at the end.
    pub async fn some(&mut self) -> io::Result<Vec<u8>> {
        match timeout(self.patience, self.wire.some()).await {
            Ok(bytes) => bytes,
            Err(_) => Err(timed_out("nothing came")),
        }
    }

    pub async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        match timeout(self.patience, self.wire.exactly(length)).await {
            Ok(bytes) => bytes,
            Err(_) => Err(timed_out("not enough came")),
        }
    }

    /// Waits for the gateway to end the connection without sending anything more; false if it did not.
    pub async fn closed(&mut self) -> bool {
        let ended = timeout(self.patience, self.wire.fill()).await;
        // A reset is an end too: the gateway closed with our bytes unread.
        matches!(ended, Ok(Ok(0) | Err(_))) && self.wire.surplus().is_empty()
    }

    /// Sends arbitrary bytes and reads answers until the gateway closes or stays silent for `quiet`.
    /// The flag tells whether it closed.
    pub async fn provoke(&mut self, bytes: &[u8], quiet: Duration) -> (Vec<Answer>, bool) {
        // The gateway may close while we still send: what it answered before counts.
        let _ = self.send(bytes).await;
        let mut answers = Vec::new();
        loop {
            match timeout(quiet, self.read_answer("GET")).await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(_)) => return (answers, true),
                Err(_) => return (answers, false),
            }
        }
    }

    async fn read_answer(&mut self, method: &str) -> io::Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let head = self.wire.head().await?.ok_or_else(no_answer)?;
            let status = status(&head)?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            let (body, trailers) = self.wire.body(answer_framing(method, status, &head.headers)?).await?;
            return Ok(Answer { status, headers: head.headers, body, trailers, interim });
        }
    }
}

fn status(head: &Head) -> io::Result<u16> {
    let wrong = || invalid(format!("status line {:?}", head.start));
    let start = &head.start;
    let rest = start.strip_prefix("HTTP/1.1 ").or_else(|| start.strip_prefix("HTTP/1.0 ")).ok_or_else(wrong)?;
    rest.get(..3).and_then(|code| code.parse().ok()).filter(|_| rest[3..].starts_with([' '])).ok_or_else(wrong)
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection ended instead of an answer")
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}
