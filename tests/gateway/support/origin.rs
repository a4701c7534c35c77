//! An HTTP/1.1 origin that records every request byte for byte and answers exactly what a test tells it to.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::wire::{Head, Headers, Stream, Wire, request_framing};
use super::{PATIENCE, eventually};

/// One request as it reached the origin.
#[derive(Debug, Clone)]
pub struct Received {
    /// Counts the origin's connections from 0.
    pub connection: usize,
    pub method: String,
    /// The request target, exactly as sent.
    pub target: String,
    pub headers: Headers,
    /// The head, byte for byte.
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    pub trailers: Headers,
    /// What TLS told, on a TLS origin.
    pub tls: Option<TlsFacts>,
}

#[derive(Debug, Clone, Default)]
pub struct TlsFacts {
    pub server_name: Option<String>,
    pub client_certificate: bool,
}

impl Received {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// What the origin does for one request: steps in order. After the last one the connection is kept for the next request.
pub struct Reply {
    steps: Vec<Step>,
    /// Where the body starts in the first step, so that HEAD can leave it out.
    body_at: Option<usize>,
}

enum Step {
    Send(Vec<u8>),
    Pause(Duration),
    Feed(mpsc::UnboundedReceiver<Vec<u8>>),
    Hold,
    Echo,
    Close,
    Reset,
}

/// The test's end of a [`Reply::fed`].
#[derive(Clone)]
pub struct Feed(mpsc::UnboundedSender<Vec<u8>>);

impl Feed {
    /// Sends bytes to the gateway now; false if the gateway has gone.
    pub fn send(&self, bytes: impl Into<Vec<u8>>) -> bool {
        self.0.send(bytes.into()).is_ok()
    }

    /// Waits until the gateway has closed its connection to the origin.
    pub async fn abandoned(&self) -> bool {
        tokio::time::timeout(PATIENCE, self.0.closed()).await.is_ok()
    }
}

impl Reply {
    pub fn ok(body: impl AsRef<[u8]>) -> Self {
        Reply::with(200, &[], body)
    }

    /// A well-formed answer with `Content-Length`.
    pub fn with(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let body = body.as_ref();
        if status != 204 && status != 304 {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut bytes = (head + "\r\n").into_bytes();
        let body_at = Some(bytes.len());
        bytes.extend_from_slice(body);
        Reply { steps: vec![Step::Send(bytes)], body_at }
    }

    /// A chunked answer, each part one chunk, with trailers.
    pub fn chunked(headers: &[(&str, &str)], parts: &[&str], trailers: &[(&str, &str)]) -> Self {
        let mut text = "HTTP/1.1 200 Scripted\r\nTransfer-Encoding: chunked\r\n".to_owned();
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        for part in parts {
            text += &format!("{:x}\r\n{part}\r\n", part.len());
        }
        text += "0\r\n";
        for (name, value) in trailers {
            text += &format!("{name}: {value}\r\n");
        }
        Reply::raw(text + "\r\n")
    }

    /// Bytes as they are, right or wrong.
    pub fn raw(bytes: impl AsRef<[u8]>) -> Self {
        Reply { steps: vec![Step::Send(bytes.as_ref().to_vec())], body_at: None }
    }

    /// Agrees to an upgrade, then returns every byte.
    pub fn echo_upgrade(head: &str) -> Self {
        Reply::raw(head).step(Step::Echo)
    }

    /// Starts with `head`, then sends what the test feeds; ends as a kept connection when the feed is dropped.
    pub fn fed(head: impl AsRef<[u8]>) -> (Self, Feed) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Reply::raw(head).step(Step::Feed(receiver)), Feed(sender))
    }

    pub fn silence() -> Self {
        Reply { steps: vec![Step::Hold], body_at: None }
    }

    pub fn then(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Send(bytes.as_ref().to_vec()))
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.steps.insert(0, Step::Pause(delay));
        // The body no longer starts in the first step.
        self.body_at = None;
        self
    }

    pub fn pause(self, delay: Duration) -> Self {
        self.step(Step::Pause(delay))
    }

    pub fn close(self) -> Self {
        self.step(Step::Close)
    }

    /// Ends with a TCP reset.
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Stays silent until the gateway closes.
    pub fn hold(self) -> Self {
        self.step(Step::Hold)
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

type Handler = dyn Fn(&Received) -> Reply + Send + Sync;

struct State {
    handler: Box<Handler>,
    requests: Mutex<Vec<Received>>,
    count: watch::Sender<usize>,
    /// What strict reading refused: whatever the gateway sends must never be in here.
    violations: Mutex<Vec<String>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// Runs until dropped.
pub struct Origin {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Origin {
    /// Answers each request by a function of it.
    pub async fn start(handler: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Origin::serve("127.0.0.1:0", None, handler).await
    }

    /// Answers 200 with a small body that names it.
    pub async fn named(name: &'static str) -> Self {
        Origin::start(move |_| Reply::with(200, &[("X-Origin", name)], name)).await
    }

    /// Answers with each reply in turn, and plain 200s after the last.
    pub async fn scripted(replies: Vec<Reply>) -> Self {
        let replies = Mutex::new(replies.into_iter());
        Origin::start(move |_| replies.lock().unwrap().next().unwrap_or_else(|| Reply::ok("after the script"))).await
    }

    pub async fn tls(acceptor: TlsAcceptor, handler: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Origin::serve("127.0.0.1:0", Some(acceptor), handler).await
    }

    /// Listens on a certain address: an origin that comes back.
    pub async fn at(address: SocketAddr, handler: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Origin::serve(&address.to_string(), None, handler).await
    }

    async fn serve(
        address: &str,
        tls: Option<TlsAcceptor>,
        handler: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port for the origin");
        let state = Arc::new(State {
            handler: Box::new(handler),
            requests: Mutex::default(),
            count: watch::Sender::new(0),
            violations: Mutex::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let address = listener.local_addr().expect("a bound listener has an address");
        let accepting = tokio::spawn(accept(listener, tls, state.clone()));
        Origin { address, state, accepting }
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Received> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How many requests have come so far.
    pub fn count(&self) -> usize {
        self.state.requests.lock().unwrap().len()
    }

    /// The request with this number, counted from 0.
    pub fn request(&self, number: usize) -> Received {
        self.state.requests.lock().unwrap()[number].clone()
    }

    /// Waits for the first `n` requests.
    pub async fn received(&self, n: usize) -> Vec<Received> {
        let mut count = self.state.count.subscribe();
        let enough = tokio::time::timeout(PATIENCE, count.wait_for(|count| *count >= n)).await.is_ok();
        let requests = self.requests();
        assert!(enough, "{n} requests were expected at the origin, {} came: {requests:#?}", requests.len());
        requests
    }

    pub async fn last(&self) -> Received {
        self.received(1).await.pop().expect("at least one was awaited")
    }

    pub fn violations(&self) -> Vec<String> {
        self.state.violations.lock().unwrap().clone()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Waits until no connection is open.
    pub async fn abandoned(&self) -> bool {
        eventually(PATIENCE, || async { self.state.open.load(Ordering::SeqCst) == 0 }).await
    }

    /// Stops listening; open connections live on.
    pub async fn stop_accepting(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let _ = tcp.set_nodelay(true);
        let number = state.accepted.fetch_add(1, Ordering::SeqCst);
        state.open.fetch_add(1, Ordering::SeqCst);
        let (state, tls) = (state.clone(), tls.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(tcp, tls, number, &state).await
                && error.kind() == io::ErrorKind::InvalidData
            {
                state.violations.lock().unwrap().push(error.to_string());
            }
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn connection(tcp: TcpStream, tls: Option<TlsAcceptor>, number: usize, state: &State) -> io::Result<()> {
    let Some(acceptor) = tls else {
        return serve(tcp, number, None, state).await;
    };
    let stream = acceptor.accept(tcp).await?;
    let session = stream.get_ref().1;
    let facts = TlsFacts {
        server_name: session.server_name().map(str::to_owned),
        client_certificate: session.peer_certificates().is_some(),
    };
    serve(stream, number, Some(facts), state).await
}

/// A stream that can end with a reset instead of an orderly close.
trait Resettable: Stream {
    fn reset_on_drop(&self);
}

impl Resettable for TcpStream {
    fn reset_on_drop(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Resettable for tokio_rustls::server::TlsStream<TcpStream> {
    fn reset_on_drop(&self) {
        let _ = self.get_ref().0.set_zero_linger();
    }
}

async fn serve<S: Resettable>(stream: S, number: usize, tls: Option<TlsFacts>, state: &State) -> io::Result<()> {
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        let last = head.headers.lists("connection", "close");
        let request = read_request(&mut wire, head, number, tls.clone()).await?;
        let mut reply = (state.handler)(&request);
        if request.method == "HEAD"
            && let (Some(at), Some(Step::Send(bytes))) = (reply.body_at, reply.steps.first_mut())
        {
            bytes.truncate(at);
        }
        state.requests.lock().unwrap().push(request);
        state.count.send_modify(|count| *count += 1);
        if !play(&mut wire, reply).await? || last {
            break;
        }
    }
    Ok(())
}

async fn read_request<S: Stream>(
    wire: &mut Wire<S>,
    head: Head,
    connection: usize,
    tls: Option<TlsFacts>,
) -> io::Result<Received> {
    let mut words = head.start.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(super::wire::invalid(format!("request line {:?}", head.start)));
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let (body, trailers) = wire.body(request_framing(&head.headers)?).await?;
    Ok(Received { connection, method, target, headers: head.headers, head: head.raw, body, trailers, tls })
}

/// Performs the steps; false if the connection is finished.
async fn play<S: Resettable>(wire: &mut Wire<S>, reply: Reply) -> io::Result<bool> {
    for step in reply.steps {
        match step {
            Step::Send(bytes) => wire.write(&bytes).await?,
            Step::Pause(delay) => tokio::time::sleep(delay).await,
            Step::Feed(receiver) => {
                if !feed(wire, receiver).await? {
                    return Ok(false);
                }
            }
            Step::Hold => {
                while wire.fill().await? > 0 {}
                return Ok(false);
            }
            Step::Echo => {
                let early = wire.surplus().to_vec();
                wire.write(&early).await?;
                let mut buffer = vec![0; 16 << 10];
                loop {
                    match wire.stream.read(&mut buffer).await? {
                        0 => return Ok(false),
                        n => wire.write(&buffer[..n]).await?,
                    }
                }
            }
            Step::Close => {
                let _ = wire.stream.shutdown().await;
                return Ok(false);
            }
            Step::Reset => {
                wire.stream.reset_on_drop();
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Sends what the test feeds until it ends or the gateway leaves; false if it left.
async fn feed<S: Stream>(wire: &mut Wire<S>, mut receiver: mpsc::UnboundedReceiver<Vec<u8>>) -> io::Result<bool> {
    loop {
        tokio::select! {
            biased;
            fed = receiver.recv() => match fed {
                Some(bytes) => wire.write(&bytes).await?,
                None => return Ok(true),
            },
            read = wire.fill() => if read? == 0 {
                return Ok(false);
            },
        }
    }
}
