//! HTTP/2 ends: a client and an origin, by prior knowledge or over TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::PATIENCE;
use super::tls::TlsClient;
use super::wire::Stream;

#[derive(Debug, Clone)]
pub struct H2Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl H2Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.get(name)?.to_str().ok()
    }
}

pub struct H2Client {
    pub requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl H2Client {
    /// Speaks HTTP/2 at once, in clear text.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        H2Client::over(tcp).await
    }

    pub async fn tls(address: SocketAddr, tls: &TlsClient, server_name: &str) -> io::Result<Self> {
        let stream = tls.connect(address, server_name).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the gateway did not choose h2"));
        }
        H2Client::over(stream).await
    }

    pub async fn over(stream: impl Stream + 'static) -> io::Result<Self> {
        let (requests, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        Ok(H2Client { requests, connection: tokio::spawn(connection) })
    }

    /// Sends a whole request and reads the whole answer.
    pub async fn call(&mut self, request: Request<()>, body: impl Into<Bytes>) -> Result<H2Answer, h2::Error> {
        let body = body.into();
        let (answer, mut sending) = self.open(request, body.is_empty()).await?;
        if !body.is_empty() {
            sending.send_data(body, true)?;
        }
        collect(timeout(PATIENCE, answer).await.expect("an answer before patience ends")?).await
    }

    pub async fn get(&mut self, uri: &str) -> Result<H2Answer, h2::Error> {
        self.call(Request::get(uri).body(()).expect("a valid request"), Bytes::new()).await
    }

    /// Opens a stream and leaves its body to the caller.
    pub async fn open(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut ready = self.requests.clone().ready().await?;
        ready.send_request(request, end)
    }

    /// How the gateway ended the connection; panics if it does not.
    pub async fn ended(self) -> Result<(), h2::Error> {
        let H2Client { requests, connection } = self;
        let ended = timeout(PATIENCE, connection).await.expect("the gateway should have ended the connection");
        drop(requests);
        ended.expect("the connection's task does not panic")
    }

    /// Whether the connection has ended by now.
    pub fn has_ended(&self) -> bool {
        self.connection.is_finished()
    }
}

/// Reads an answer to its end.
pub async fn collect(answer: Response<RecvStream>) -> Result<H2Answer, h2::Error> {
    let (parts, mut stream) = answer.into_parts();
    let body = read_all(&mut stream).await?;
    let trailers = stream.trailers().await?.unwrap_or_default();
    Ok(H2Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}

async fn read_all(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = timeout(PATIENCE, stream.data()).await.expect("data before patience ends") {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body)
}

#[derive(Debug, Clone)]
pub struct H2Received {
    pub connection: usize,
    pub method: String,
    pub uri: http::Uri,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

/// What an HTTP/2 origin does for one request, decided by its head.
pub enum H2Reply {
    /// Reads the whole request, then answers.
    Answer {
        status: u16,
        headers: Vec<(&'static str, &'static str)>,
        body: Vec<u8>,
        trailers: Vec<(&'static str, &'static str)>,
    },
    /// Answers at once and returns each piece of the body as it comes, then `grpc-status: 0` in the trailers.
    Echo,
    /// Answers with trailers only, as gRPC does for errors.
    TrailersOnly(Vec<(&'static str, &'static str)>),
    Reset(h2::Reason),
    /// Waits before it does that.
    After(std::time::Duration, Box<H2Reply>),
}

impl H2Reply {
    pub fn after(self, delay: std::time::Duration) -> Self {
        H2Reply::After(delay, Box::new(self))
    }

    pub fn grpc(message: &[u8], status: &'static str) -> Self {
        H2Reply::Answer {
            status: 200,
            headers: vec![("content-type", "application/grpc")],
            body: message.to_vec(),
            trailers: vec![("grpc-status", status)],
        }
    }
}

type Handler = dyn Fn(&http::request::Parts) -> H2Reply + Send + Sync;

/// An HTTP/2 origin; runs until dropped.
pub struct H2Origin {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<H2Received>>>,
    accepting: JoinHandle<()>,
}

impl H2Origin {
    pub async fn start(handler: impl Fn(&http::request::Parts) -> H2Reply + Send + Sync + 'static) -> Self {
        H2Origin::serve(None, handler).await
    }

    /// The acceptor should offer `h2` by ALPN.
    pub async fn tls(
        acceptor: TlsAcceptor,
        handler: impl Fn(&http::request::Parts) -> H2Reply + Send + Sync + 'static,
    ) -> Self {
        H2Origin::serve(Some(acceptor), handler).await
    }

    async fn serve(
        tls: Option<TlsAcceptor>,
        handler: impl Fn(&http::request::Parts) -> H2Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port for the origin");
        let address = listener.local_addr().expect("a bound listener has an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), requests.clone());
        let accepting = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((tcp, _)) = listener.accept().await {
                let (handler, log, tls) = (handler.clone(), log.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve_connection(tcp, number, handler, log).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(tcp).await {
                                serve_connection(stream, number, handler, log).await;
                            }
                        }
                    }
                });
                number += 1;
            }
        });
        H2Origin { address, requests, accepting }
    }

    pub fn requests(&self) -> Vec<H2Received> {
        self.requests.lock().unwrap().clone()
    }

    /// How many connections its requests came over.
    pub fn connections(&self) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|request| request.connection).collect::<std::collections::BTreeSet<_>>().len()
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve_connection(
    stream: impl Stream + 'static,
    number: usize,
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<H2Received>>>,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (handler, log) = (handler.clone(), log.clone());
        tokio::spawn(async move {
            // The peer may leave at any time; a test sees that on its own end.
            let _ = serve_stream(request, respond, number, &*handler, &log).await;
        });
    }
}

async fn serve_stream(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    connection: usize,
    handler: &Handler,
    log: &Mutex<Vec<H2Received>>,
) -> Result<(), h2::Error> {
    let (parts, mut incoming) = request.into_parts();
    let record = |body, trailers| H2Received {
        connection,
        method: parts.method.to_string(),
        uri: parts.uri.clone(),
        headers: parts.headers.clone(),
        body,
        trailers,
    };
    let mut reply = handler(&parts);
    while let H2Reply::After(delay, then) = reply {
        tokio::time::sleep(delay).await;
        reply = *then;
    }
    match reply {
        H2Reply::After(..) => {}
        H2Reply::Reset(reason) => {
            log.lock().unwrap().push(record(Vec::new(), HeaderMap::new()));
            respond.send_reset(reason);
        }
        H2Reply::TrailersOnly(fields) => {
            let body = read_all(&mut incoming).await?;
            log.lock().unwrap().push(record(body, HeaderMap::new()));
            let mut response = Response::new(());
            *response.headers_mut() = map(&fields);
            respond.send_response(response, true)?;
        }
        H2Reply::Answer { status, headers, body, trailers } => {
            let received = read_all(&mut incoming).await?;
            let received_trailers = incoming.trailers().await?.unwrap_or_default();
            log.lock().unwrap().push(record(received, received_trailers));
            let mut response = Response::new(());
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a valid status");
            *response.headers_mut() = map(&headers);
            let mut sending = respond.send_response(response, body.is_empty() && trailers.is_empty())?;
            if !body.is_empty() {
                sending.send_data(body.into(), trailers.is_empty())?;
            }
            if !trailers.is_empty() {
                sending.send_trailers(map(&trailers))?;
            }
        }
        H2Reply::Echo => {
            let mut response = Response::new(());
            *response.headers_mut() = map(&[("content-type", "application/grpc")]);
            let mut sending = respond.send_response(response, false)?;
            let mut received = Vec::new();
            while let Some(data) = incoming.data().await {
                let data = data?;
                incoming.flow_control().release_capacity(data.len())?;
                received.extend_from_slice(&data);
                sending.send_data(data, false)?;
            }
            let trailers = incoming.trailers().await?.unwrap_or_default();
            log.lock().unwrap().push(record(received, trailers));
            sending.send_trailers(map(&[("grpc-status", "0")]))?;
        }
    }
    Ok(())
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// Frames written by hand, for what a library refuses to send.
pub mod raw {
    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;

    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// The preface with empty settings: the beginning of a client.
    pub fn beginning() -> Vec<u8> {
        [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
    }

    /// A header block of literals without indexing: no state, nothing to decode but lengths.
    pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, value) in fields {
            bytes.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "one byte of length");
                bytes.push(text.len() as u8);
                bytes.extend(text.as_bytes());
            }
        }
        bytes
    }

    pub fn request(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
        frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
    }

    pub const GET: &[(&str, &str)] =
        &[(":method", "GET"), (":scheme", "http"), (":authority", "test.example"), (":path", "/")];
}
