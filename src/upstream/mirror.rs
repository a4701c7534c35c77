//! Sends copies of requests to a second upstream, whose answers nobody waits for.
//!
//! A copy never delays or fails the request it was made from: it is sent by a task of its own, in a bounded number at
//! a time, and thrown away when that number is reached. It is sent at most once, also when a pooled connection turns
//! out to be dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::form;

/// Interim answers (1xx) read before the target is called broken.
const MAX_INTERIM: usize = 8;

/// Bounds of a [`Mirror`].
#[derive(Debug, Clone, Copy)]
pub struct MirrorSettings {
    /// Copies on their way at a time. With the bound on a body it limits the memory that copies hold.
    pub max_in_flight: usize,
    /// Bounds one copy from connecting to the end of its answer.
    pub timeout: Duration,
    /// An answer longer than this is cut off, together with its connection.
    pub max_answer: u64,
}

impl Default for MirrorSettings {
    /// 100 copies, 10 seconds, 1 MiB.
    fn default() -> Self {
        MirrorSettings { max_in_flight: 100, timeout: Duration::from_secs(10), max_answer: 1 << 20 }
    }
}

/// What became of the copies.
#[derive(Debug, Default)]
pub struct MirrorCounters {
    /// Answered, with whatever status.
    pub answered: AtomicU64,
    /// Not answered: refused, reset, timed out.
    pub failed: AtomicU64,
    /// Thrown away because too many were on their way.
    pub dropped: AtomicU64,
}

/// Sends copies. Cheap to clone.
#[derive(Clone)]
pub struct Mirror {
    shared: Arc<Shared>,
}

struct Shared {
    settings: MirrorSettings,
    permits: Arc<Semaphore>,
    connector: Arc<Connector>,
    counters: MirrorCounters,
}

impl Mirror {
    pub fn new(settings: MirrorSettings, connector: Arc<Connector>) -> Self {
        let permits = Arc::new(Semaphore::new(settings.max_in_flight.min(Semaphore::MAX_PERMITS)));
        Mirror { shared: Arc::new(Shared { settings, permits, connector, counters: MirrorCounters::default() }) }
    }

    pub fn counters(&self) -> &MirrorCounters {
        &self.shared.counters
    }

    /// Sends a copy to `peer` and returns at once. `head` may come from either protocol; hop-by-hop fields are left
    /// out, and the length is that of `body`.
    pub fn send(&self, peer: HttpPeer, head: RequestHeader, body: Option<Bytes>) {
        let permit = self.shared.permits.clone().try_acquire_owned();
        let (Ok(permit), Ok(runtime)) = (permit, Handle::try_current()) else {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let counter = match shared.deliver(&peer, head, body).await {
                Ok(()) => &shared.counters.answered,
                Err(why) => {
                    log::debug!("mirror to {}: {why}", peer._address);
                    &shared.counters.failed
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

impl Shared {
    async fn deliver(&self, peer: &HttpPeer, head: RequestHeader, body: Option<Bytes>) -> Result<(), String> {
        let deadline = Instant::now() + self.settings.timeout;
        let timed_out = |_| "timed out".to_owned();
        let session = tokio::time::timeout_at(deadline, self.connector.get_http_session(peer));
        let (mut session, _reused) = session.await.map_err(timed_out)?.map_err(|e| e.to_string())?;
        let exchange = tokio::time::timeout_at(deadline, self.exchange(&mut session, peer, head, body));
        let result = exchange.await.map_err(timed_out).and_then(|result| result);
        // An HTTP/2 session must always go back, or its connection is never counted as idle again; what is unfinished
        // of it is reset. An HTTP/1.1 connection with a rest of an answer in it is of no use to anybody.
        if matches!(result, Ok(Answer::Whole)) || session.as_http2().is_some() {
            self.connector.release_http_session(session, peer, peer.options.idle_timeout).await;
        }
        result.map(drop)
    }

    /// Sends the request and reads its answer away.
    async fn exchange(
        &self,
        session: &mut HttpSession,
        peer: &HttpPeer,
        head: RequestHeader,
        body: Option<Bytes>,
    ) -> Result<Answer, String> {
        let body = body.filter(|body| !body.is_empty());
        let head = copy_of(head, body.as_ref().map_or(0, Bytes::len), session.as_http2().is_some(), peer.is_tls())?;
        let text = |e: Box<pingora::Error>| e.to_string();
        session.write_request_header(Box::new(head)).await.map_err(text)?;
        if let Some(body) = body {
            session.write_request_body(body, true).await.map_err(text)?;
        }
        session.finish_request_body().await.map_err(text)?;

        let mut interim = 0;
        loop {
            session.read_response_header().await.map_err(text)?;
            match session.response_header().map(|h| h.status) {
                Some(status) if !status.is_informational() => break,
                Some(status) if status != 101 && interim < MAX_INTERIM => interim += 1,
                _ => return Err("no final answer".into()),
            }
        }
        let mut read = 0;
        while let Some(chunk) = session.read_response_body().await.map_err(text)? {
            read += chunk.len() as u64;
            if read > self.settings.max_answer {
                return Ok(Answer::CutOff);
            }
        }
        if let HttpSession::H2(session) = session {
            session.read_trailers().await.map_err(text)?;
        }
        Ok(Answer::Whole)
    }
}

/// How much of an answer was read.
enum Answer {
    Whole,
    CutOff,
}

/// The header of a copy, fit for the session it is sent on.
fn copy_of(mut head: RequestHeader, length: usize, http2: bool, tls: bool) -> Result<RequestHeader, String> {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = host.or(head.uri.authority().map(|a| a.as_str())).ok_or("the request names no host")?.to_owned();
    let trailers = head.headers.get(header::TE).is_some_and(|te| te == "trailers");

    form::drop_connection_fields(&mut head);
    if length > 0 || [Method::POST, Method::PUT, Method::PATCH].contains(&head.method) {
        head.insert_header(header::CONTENT_LENGTH, length).map_err(|e| e.to_string())?;
    }
    if http2 {
        if trailers {
            // gRPC servers insist on it.
            head.insert_header(header::TE, "trailers").map_err(|e| e.to_string())?;
        }
        form::for_http2(&mut head, &authority, tls)?;
    } else {
        form::for_http1(&mut head, &authority)?;
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    use super::*;

    /// An HTTP/1.1 origin that reports each request with the number of its connection, and answers with `answer`.
    async fn origin(answer: &'static str) -> (HttpPeer, mpsc::UnboundedReceiver<(usize, String)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((socket, _)) = listener.accept().await else { return };
                tokio::spawn(serve(socket, connection, answer, tell.clone()));
            }
        });
        (peer, seen)
    }

    async fn serve(
        mut socket: TcpStream,
        connection: usize,
        answer: &'static str,
        tell: mpsc::UnboundedSender<(usize, String)>,
    ) {
        let mut input = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&input).to_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() == length.map_or(0, |l| l.parse().unwrap()) {
                    let _ = tell.send((connection, text.clone()));
                    input.clear();
                    let _ = socket.write_all(answer.as_bytes()).await;
                    continue;
                }
            }
            if socket.read_buf(&mut input).await.unwrap_or(0) == 0 {
                return;
            }
        }
    }

    fn request(method: &str, path: &str) -> RequestHeader {
        let mut head = RequestHeader::build(method, path.as_bytes(), None).unwrap();
        head.insert_header("Host", "api.example.com").unwrap();
        head
    }

    fn mirror(settings: MirrorSettings) -> Mirror {
        Mirror::new(settings, Arc::new(Connector::new(None)))
    }

    /// Waits until the counter that `pick` takes has reached `count`.
    async fn reaches(mirror: &Mirror, pick: fn(&MirrorCounters) -> &AtomicU64, count: u64) {
        let reached = async {
            while pick(mirror.counters()).load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(5), reached).await;
        assert!(reached.is_ok(), "{:?}", mirror.counters());
    }

    #[tokio::test]
    async fn copies_arrive_whole_and_share_a_connection() {
        let (peer, mut seen) =
            origin("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops").await;
        let mirror = mirror(MirrorSettings::default());
        let mut head = request("POST", "/orders?x=1");
        for (name, value) in [
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Expect", "100-continue"),
            ("X-Kept", "yes"),
        ] {
            head.insert_header(name, value).unwrap();
        }
        mirror.send(peer.clone(), head, Some(Bytes::from_static(b"{\"id\":1}")));
        let (connection, text) = seen.recv().await.unwrap();
        assert!(text.starts_with("post /orders?x=1 http/1.1\r\n") && text.ends_with("\r\n\r\n{\"id\":1}"), "{text}");
        assert!(text.contains("host: api.example.com\r\n") && text.contains("x-kept: yes\r\n"), "{text}");
        for absent in ["connection", "x-hop", "transfer-encoding", "expect"] {
            assert!(!text.contains(absent), "{absent} in {text}");
        }
        reaches(&mirror, |c| &c.answered, 1).await;
        mirror.send(peer, request("GET", "/orders"), None);
        let (again, text) = seen.recv().await.unwrap();
        assert_eq!(again, connection, "the drained connection is used again");
        assert!(!text.contains("content-length"), "{text}");
    }

    #[tokio::test]
    async fn a_request_that_came_by_http2_is_sent_in_origin_form() {
        let (peer, mut seen) = origin("HTTP/1.1 204 No Content\r\n\r\n").await;
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        head.set_uri("https://api.example.com/a/b?c".parse().unwrap());
        head.set_version(http::Version::HTTP_2);
        mirror(MirrorSettings::default()).send(peer, head, None);
        let (_, text) = seen.recv().await.unwrap();
        assert!(text.starts_with("get /a/b?c http/1.1\r\n") && text.contains("host: api.example.com\r\n"), "{text}");
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_off_with_its_connection() {
        let (peer, mut seen) = origin("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n0123456789").await;
        let mirror = mirror(MirrorSettings { max_answer: 5, ..MirrorSettings::default() });
        for expected in 0..2 {
            mirror.send(peer.clone(), request("GET", "/"), None);
            assert_eq!(seen.recv().await.unwrap().0, expected, "the connection must not be used again");
            reaches(&mirror, |c| &c.answered, expected as u64 + 1).await;
        }
    }

    #[tokio::test]
    async fn a_silent_target_holds_a_bounded_number_of_copies_for_a_bounded_time() {
        let (peer, _seen) = origin("").await;
        let mirror = mirror(MirrorSettings {
            max_in_flight: 2,
            timeout: Duration::from_millis(200),
            ..MirrorSettings::default()
        });
        for _ in 0..5 {
            mirror.send(peer.clone(), request("GET", "/"), None);
        }
        assert_eq!(mirror.counters().dropped.load(Ordering::Relaxed), 3);
        reaches(&mirror, |c| &c.failed, 2).await;
        mirror.send(peer, request("GET", "/"), None);
        assert_eq!(mirror.counters().dropped.load(Ordering::Relaxed), 3, "there is room again");
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_counted() {
        let mirror = mirror(MirrorSettings::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        drop(listener);
        mirror.send(peer.clone(), request("GET", "/"), None);
        reaches(&mirror, |c| &c.failed, 1).await;

        let (peer, _seen) = origin("HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
        mirror.send(peer, request("GET", "/"), None);
        reaches(&mirror, |c| &c.failed, 2).await;

        let elsewhere = mirror.clone();
        let peer = HttpPeer::new("127.0.0.1:9", false, String::new());
        std::thread::spawn(move || elsewhere.send(peer, request("GET", "/"), None)).join().unwrap();
        assert_eq!(mirror.counters().dropped.load(Ordering::Relaxed), 1, "outside of a runtime nothing can be sent");
    }

    #[tokio::test]
    async fn copies_share_an_http2_connection_also_after_a_cut_off_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        peer.options.set_http_version(2, 2);
        peer.options.max_h2_streams = 10;
        let (tell, mut seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for number in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                let tell = tell.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (head, mut body) = request.into_parts();
                        let tell = tell.clone();
                        tokio::spawn(async move {
                            let mut received = Vec::new();
                            while let Some(Ok(chunk)) = body.data().await {
                                received.extend_from_slice(&chunk);
                            }
                            let _ = tell.send((number, head.uri.to_string(), received));
                            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                            let _ = stream.send_data(Bytes::from_static(&[b'x'; 100]), false);
                            tokio::time::sleep(Duration::from_secs(5)).await;
                        });
                    }
                });
            }
        });
        let mirror = mirror(MirrorSettings { max_answer: 10, ..MirrorSettings::default() });
        for count in 1..=3 {
            mirror.send(peer.clone(), request("POST", "/orders"), Some(Bytes::from_static(b"body")));
            let expected = (0, "http://api.example.com/orders".to_owned(), b"body".to_vec());
            assert_eq!(seen.recv().await.unwrap(), expected);
            reaches(&mirror, |c| &c.answered, count).await;
        }
    }
}
