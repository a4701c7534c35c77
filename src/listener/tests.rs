//! The listener as its clients meet it: real sockets, and a small application in the place of the proxy.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::http::ResponseHeader;
use pingora::prelude::HttpPeer;
use pingora::protocols::GetSocketDigest;
use pingora::protocols::SocketDigest;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::Problems;
use crate::config::listener as config;
use crate::config::server;

/// Says the status, and why.
struct TestRefusals;

impl Refusals for TestRefusals {
    fn refuse(&self, refused: &Refused<'_>) -> Vec<u8> {
        let text = refused.error.to_string();
        let head = format!("HTTP/1.1 {} Refused\r\nConnection: close", refused.error.reason.status());
        format!("{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
    }
}

/// What the proxy does with a connection, one path for each thing.
struct TestApp;

#[async_trait]
impl HttpServerApp for TestApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !session.read_request().await.ok()? {
            return None;
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let connection = ConnectionState::of(session.digest()).unwrap().clone();
        let path = session.req_header().uri.path().to_owned();
        let mut text = String::from("ok");
        match path.as_str() {
            "/tls" => {
                let tls = connection.tls.as_ref().unwrap();
                let client = tls.client_certificate.as_ref().map_or("-".to_owned(), |c| c.subject.clone());
                text = format!("{} {} {client}", tls.version, tls.server_name.as_deref().unwrap_or("-"));
            }
            "/peer" => text = connection.client_address(&session.req_header().headers).to_string(),
            "/early" => return answer(session, 413, "too large").await,
            "/slow" => sleep(Duration::from_millis(700)).await,
            "/big" => {
                let mut header = ResponseHeader::build(200, None).unwrap();
                header.insert_header("content-length", (256 << 20).to_string()).unwrap();
                session.write_response_header(Box::new(header)).await.ok()?;
                for _ in 0..256 {
                    session.write_response_body(vec![b'x'; 1 << 20].into(), false).await.ok()?;
                }
                return None;
            }
            "/ws" => {
                connection.upgraded();
                let mut header = ResponseHeader::build(101, None).unwrap();
                header.insert_header("upgrade", "websocket").unwrap();
                header.insert_header("connection", "upgrade").unwrap();
                session.write_response_header(Box::new(header)).await.ok()?;
                session.write_response_body(b"\x81\x05hello"[..].into(), false).await.ok()?;
                // Half a frame stays open for a while.
                session.write_response_body(b"\x81\x06wo"[..].into(), false).await.ok()?;
                loop {
                    tokio::select! {
                        read = session.read_body_or_idle(false) => if !matches!(read, Ok(Some(_))) { return None },
                        _ = sleep(Duration::from_millis(600)) => {
                            session.write_response_body(b"rld!\x81\x03new"[..].into(), false).await.ok()?;
                        }
                    }
                }
            }
            _ => {}
        }
        while let Some(_chunk) = match session.read_request_body().await {
            Ok(chunk) => chunk,
            Err(_) if connection.expired() == Some(Expired::Body) => return answer(session, 408, "slow").await,
            Err(_) if connection.expired() == Some(Expired::Malformed) => {
                session.set_keepalive(None);
                return answer(session, 400, "malformed").await;
            }
            Err(_) => return None,
        } {}
        answer(session, 200, &text).await
    }
}

async fn answer(mut session: ServerSession, status: u16, text: &str) -> Option<ReusedHttpStream> {
    let mut header = ResponseHeader::build(status, None).unwrap();
    header.insert_header("content-length", text.len().to_string()).unwrap();
    session.write_response_header(Box::new(header)).await.ok()?;
    session.write_response_body(text.to_owned().into(), true).await.ok()?;
    let settings = HttpPersistentSettings::for_session(&session);
    let stream = session.finish().await.ok()??;
    Some(ReusedHttpStream::from_reusable_stream(stream, settings))
}

/// A listener on a free port, accepting as Pingora does.
struct Gateway<H = TestApp> {
    state: Arc<ListenerState>,
    address: SocketAddr,
    app: Arc<ListenerApp<H>>,
}

impl Gateway {
    async fn start(yaml: &str) -> Gateway {
        Gateway::start_with(yaml, "idle: 300ms\ntimeout: 1s").await
    }

    async fn start_with(yaml: &str, drain: &str) -> Gateway {
        Gateway::start_app(yaml, drain, TestApp).await
    }
}

impl<H: HttpServerApp + Send + Sync + 'static> Gateway<H> {
    async fn start_app(yaml: &str, drain: &str, handler: H) -> Gateway<H> {
        let mut problems = Problems::default();
        let drain = serde_yaml::from_str(drain).unwrap();
        let state = ListenerState::new("test", &listener(yaml), &drain, "listeners.test", &mut problems);
        let state = state.unwrap_or_else(|| panic!("{problems:?}"));
        let app = Arc::new(ListenerApp::new(state.clone(), Arc::new(handler), Arc::new(TestRefusals)));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let accepting = app.clone();
        tokio::spawn(async move {
            let (_keep, never) = tokio::sync::watch::channel(false);
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
                let mut stream = L4Stream::from(stream);
                stream.set_socket_digest(digest);
                let (app, never) = (accepting.clone(), never.clone());
                tokio::spawn(async move { app.process_new(Box::new(stream), &never).await });
            }
        });
        Gateway { state, address, app }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn ended(&self, ending: Ending) -> u64 {
        self.state.counters.ended(ending)
    }

    async fn ends(&self, ending: Ending) {
        let ended = async {
            while self.ended(ending) == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), ended).await.unwrap_or_else(|_| panic!("no connection ended by {ending:?}"));
    }
}

fn listener(yaml: &str) -> config::Listener {
    serde_yaml::from_str(&format!("address: 127.0.0.1:0\n{yaml}")).unwrap()
}

/// Reads until the head and a body of `Content-Length` are there.
async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = async {
        loop {
            let n = stream.read_buf(&mut text).await.unwrap_or(0);
            let so_far = String::from_utf8_lossy(&text).into_owned();
            if n == 0 {
                return so_far;
            }
            if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
                let length = head
                    .to_ascii_lowercase()
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |l| l.split("\r\n").next().unwrap().parse::<usize>().unwrap());
                if body.len() >= length {
                    return so_far;
                }
            }
        }
    };
    timeout(Duration::from_secs(5), read).await.expect("an answer within 5 seconds")
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_answer(stream).await
}

async fn closed(stream: &mut (impl AsyncRead + Unpin), within: Duration) -> bool {
    let mut rest = Vec::new();
    timeout(within, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_connection_is_kept_alive_and_counted() {
    let gateway = Gateway::start("").await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        assert!(ask(&mut client, "/").await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!((gateway.state.counters.accepted(), gateway.state.counters.active()), (1, 1));
    drop(client);
    timeout(Duration::from_secs(2), gateway.state.drained()).await.expect("the count falls when the client leaves");
}

#[tokio::test]
async fn connections_over_the_total_limit_are_closed_at_once() {
    let gateway = Gateway::start("limits: { connections: 2 }").await;
    let (mut a, mut b) = (gateway.connect().await, gateway.connect().await);
    assert!(ask(&mut a, "/").await.contains("200") && ask(&mut b, "/").await.contains("200"));
    let mut c = gateway.connect().await;
    assert!(closed(&mut c, Duration::from_secs(1)).await);
    assert_eq!(gateway.ended(Ending::ConnectionLimit), 1);
    assert_eq!(gateway.state.counters.active(), 2);
    assert!(ask(&mut a, "/").await.contains("200"), "others are unharmed");
    drop(b);
    sleep(Duration::from_millis(100)).await;
    assert!(ask(&mut gateway.connect().await, "/").await.contains("200"), "a place that is given back is free");
}

#[tokio::test]
async fn connections_over_the_limit_per_client_are_closed_at_once() {
    let gateway = Gateway::start("limits: { connections_per_client: 1 }").await;
    let mut a = gateway.connect().await;
    assert!(ask(&mut a, "/").await.contains("200"));
    assert!(closed(&mut gateway.connect().await, Duration::from_secs(1)).await);
    assert_eq!(gateway.ended(Ending::ClientLimit), 1);
    drop(a);
    sleep(Duration::from_millis(100)).await;
    assert!(ask(&mut gateway.connect().await, "/").await.contains("200"));
}

#[tokio::test]
async fn trusted_proxies_are_exempt_from_the_limit_per_client() {
    let gateway = Gateway::start("limits: { connections_per_client: 1 }\ntrusted_proxies: [127.0.0.0/8]").await;
    let (mut a, mut b) = (gateway.connect().await, gateway.connect().await);
    assert!(ask(&mut a, "/").await.contains("200") && ask(&mut b, "/").await.contains("200"));
}

#[tokio::test]
async fn a_silent_client_is_closed_at_the_header_deadline() {
    let gateway = Gateway::start("timeouts: { header: 300ms }").await;
    let begun = Instant::now();
    let mut client = gateway.connect().await;
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    assert!(said.is_empty(), "there is no request to answer");
    assert!(begun.elapsed() >= Duration::from_millis(290) && begun.elapsed() < Duration::from_secs(2));
    gateway.ends(Ending::HeaderTimeout).await;
}

#[tokio::test]
async fn a_header_that_drips_is_answered_408_at_its_deadline() {
    let gateway = Gateway::start("timeouts: { header: 500ms }").await;
    for first in [true, false] {
        let mut client = gateway.connect().await;
        if !first {
            assert!(ask(&mut client, "/").await.contains("200"));
            // Idle time does not count against the header.
            sleep(Duration::from_millis(700)).await;
        }
        let begun = Instant::now();
        let (mut reader, mut writer) = client.into_split();
        let dripping = tokio::spawn(async move {
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaa".iter() {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        let said = read_answer(&mut reader).await;
        assert!(said.starts_with("HTTP/1.1 408"), "first {first}: {said:?}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(450) && took < Duration::from_millis(1500), "first {first}: {took:?}");
        dripping.abort();
    }
    assert_eq!(gateway.ended(Ending::HeaderTimeout), 2);
}

#[tokio::test]
async fn a_header_without_end_is_answered_431_before_it_takes_a_megabyte() {
    let gateway = Gateway::start("limits: { header_size: 16KiB }").await;
    let mut client = gateway.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
    let (mut reader, mut writer) = client.into_split();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 4 << 20 && writer.write_all(&[b'a'; 1000]).await.is_ok() {
            sent += 1000;
        }
    });
    assert!(read_answer(&mut reader).await.starts_with("HTTP/1.1 431"));
    assert_eq!(gateway.ended(Ending::HeaderTooLarge), 1);
    sending.abort();
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_keep_alive() {
    let gateway = Gateway::start("timeouts: { keep_alive: 400ms, header: 5s }").await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        assert!(ask(&mut client, "/").await.contains("200"));
        sleep(Duration::from_millis(250)).await;
    }
    let begun = Instant::now();
    assert!(closed(&mut client, Duration::from_secs(2)).await);
    assert!(begun.elapsed() < Duration::from_millis(600));
    gateway.ends(Ending::KeepAliveTimeout).await;
}

#[tokio::test]
async fn a_slow_request_is_not_cut_by_keep_alive_or_header_deadlines() {
    let gateway = Gateway::start("timeouts: { keep_alive: 200ms, header: 200ms, body: 200ms, write: 200ms }").await;
    let mut client = gateway.connect().await;
    assert!(ask(&mut client, "/slow").await.contains("200"));
    assert!(ask(&mut client, "/slow").await.contains("200"));
}

#[tokio::test]
async fn a_stalled_body_is_answered_408() {
    let gateway = Gateway::start("timeouts: { body: 300ms }").await;
    let mut client = gateway.connect().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
    assert!(read_answer(&mut client).await.starts_with("HTTP/1.1 408"));
    assert!(closed(&mut client, Duration::from_secs(4)).await);
    assert_eq!(gateway.ended(Ending::BodyTimeout), 1);
}

#[tokio::test]
async fn a_body_that_drips_below_the_minimum_rate_is_answered_408() {
    let gateway = Gateway::start("timeouts: { body: 500ms }\nlimits: { min_rate: 1KiB }").await;
    let mut client = gateway.connect().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    let (mut reader, mut writer) = client.into_split();
    tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(100)).await
        }
    });
    assert!(read_answer(&mut reader).await.starts_with("HTTP/1.1 408"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let gateway = Gateway::start("timeouts: { write: 300ms }").await;
    let mut client = gateway.connect().await;
    client.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    gateway.ends(Ending::WriteTimeout).await;
    timeout(Duration::from_secs(2), gateway.state.drained()).await.expect("the connection is given up");
}

#[tokio::test]
async fn a_client_that_takes_less_than_the_minimum_rate_is_cut_off() {
    let gateway = Gateway::start("timeouts: { write: 500ms }\nlimits: { min_rate: 100MiB }").await;
    let mut client = gateway.connect().await;
    client.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut reader, _writer) = client.into_split();
    tokio::spawn(async move {
        let mut some = [0; 65536];
        while reader.read(&mut some).await.is_ok_and(|n| n > 0) {
            sleep(Duration::from_millis(20)).await;
        }
    });
    gateway.ends(Ending::WriteTimeout).await;
}

#[tokio::test]
async fn a_connection_serves_no_more_requests_than_its_limit() {
    let gateway = Gateway::start("limits: { requests_per_connection: 2 }").await;
    let mut client = gateway.connect().await;
    assert!(ask(&mut client, "/").await.to_ascii_lowercase().contains("connection: keep-alive"));
    assert!(ask(&mut client, "/").await.to_ascii_lowercase().contains("connection: close"));
    assert!(closed(&mut client, Duration::from_secs(1)).await);
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let gateway = Gateway::start("").await;
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.write_all(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n").await.unwrap();
        let (mut reader, mut writer) = client.into_split();
        let sending = tokio::spawn(async move { while writer.write_all(&[b'x'; 65536]).await.is_ok() {} });
        sleep(Duration::from_millis(30)).await;
        assert!(read_answer(&mut reader).await.starts_with("HTTP/1.1 413"));
        sending.abort();
    }
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_order_each_checked() {
    let gateway = Gateway::start("").await;
    let body = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let chunks = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let sent = [get, body, chunks, "\r\n", get, chunks, body, get, "GET / HTTP/1.1\r\nHost : a\r\n\r\n", get].concat();
    for piece in [1, 7, 50, sent.len()] {
        let mut client = gateway.connect().await;
        let (mut reader, mut writer) = client.split();
        let sending = async {
            for part in sent.as_bytes().chunks(piece) {
                let _ = writer.write_all(part).await;
                tokio::task::yield_now().await;
            }
        };
        let receiving = async {
            let mut said = String::new();
            let _ = reader.read_to_string(&mut said).await;
            said
        };
        let ((), said) = tokio::join!(sending, receiving);
        let statuses: Vec<_> =
            said.lines().filter_map(|line| line.split_once("HTTP/1.1 ")).map(|(_, rest)| &rest[..3]).collect();
        assert_eq!(statuses, [["200"; 7].as_slice(), &["400"]].concat(), "in pieces of {piece}: {said}");
    }
}

#[tokio::test]
async fn a_body_that_turns_ambiguous_ends_its_request() {
    let gateway = Gateway::start("").await;
    let mut client = gateway.connect().await;
    client
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await
        .unwrap();
    sleep(Duration::from_millis(50)).await;
    client.write_all(b"0 \r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_answer(&mut client).await.starts_with("HTTP/1.1 400"));
    assert!(closed(&mut client, Duration::from_secs(3)).await);
}

#[tokio::test]
async fn an_absolute_target_must_name_the_host_of_the_request() {
    let gateway = Gateway::start("").await;
    for (target, host, status) in [
        ("http://a.b/tls-less", "a.b", 200),
        ("HTTP://A.b:80", "a.b", 200),
        ("http://a.b?x", "A.B:80", 200),
        ("https://a.b:443/", "a.b", 200),
        ("http://a.b:81/", "a.b", 400),
        ("http://a.bc/", "a.b", 400),
        ("http:///", "", 400),
        ("http://x@a.b/", "a.b", 400),
        ("ftp://a.b/", "a.b", 400),
        ("a.b", "a.b", 400),
    ] {
        let mut client = gateway.connect().await;
        client.write_all(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let said = read_answer(&mut client).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{target} for {host}: {said}");
    }
}

#[tokio::test]
async fn a_request_line_that_pingora_would_repair_is_refused() {
    let gateway = Gateway::start("").await;
    for line in ["GET /a b HTTP/1.1", "GET /\u{e9} HTTP/1.1"] {
        let mut client = gateway.connect().await;
        let request = format!("{line}\r\nHost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(read_answer(&mut client).await.starts_with("HTTP/1.1 400"), "{line}");
    }
}

#[tokio::test]
async fn the_client_address_is_found_behind_a_trusted_proxy() {
    for (trusted, expected) in [("[127.0.0.1]", "1.2.3.4"), ("[]", "127.0.0.1")] {
        let gateway = Gateway::start(&format!("trusted_proxies: {trusted}")).await;
        let mut client = gateway.connect().await;
        let request = b"GET /peer HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n";
        client.write_all(request).await.unwrap();
        assert!(read_answer(&mut client).await.ends_with(expected));
    }
}

#[tokio::test]
async fn a_proxy_header_is_read_from_trusted_proxies_and_demanded_of_them() {
    let gateway = Gateway::start("trusted_proxies: [127.0.0.1]\nproxy_protocol: true").await;
    let mut client = gateway.connect().await;
    client.write_all(b"PROXY TCP4 1.2.3.4 10.0.0.1 5 6\r\n").await.unwrap();
    assert!(ask(&mut client, "/peer").await.ends_with("1.2.3.4"));

    let mut client = gateway.connect().await;
    client.write_all(b"GET /peer HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    gateway.ends(Ending::ProxyHeader).await;

    let limited = "trusted_proxies: [127.0.0.1]\nproxy_protocol: true\nlimits: { connections_per_client: 1 }";
    let limited = Gateway::start(limited).await;
    let mut clients = Vec::new();
    for (named, served) in [("1.2.3.4", true), ("1.2.3.4", false), ("1.2.3.5", true)] {
        let mut client = limited.connect().await;
        client.write_all(format!("PROXY TCP4 {named} 10.0.0.1 5 6\r\n").as_bytes()).await.unwrap();
        assert_eq!(ask(&mut client, "/peer").await.ends_with(named), served, "{named}");
        clients.push(client);
    }

    let untrusting = Gateway::start("trusted_proxies: [10.0.0.1]\nproxy_protocol: true").await;
    let mut client = untrusting.connect().await;
    client.write_all(b"PROXY TCP4 1.2.3.4 10.0.0.1 5 6\r\n").await.unwrap();
    assert!(!ask(&mut client, "/peer").await.starts_with("HTTP/1.1 200"), "others may not send one");
}

#[tokio::test]
async fn h2c_is_spoken_with_prior_knowledge_and_nothing_else() {
    let gateway = Gateway::start("protocols: [h2c]\ntimeouts: { header: 300ms, keep_alive: 300ms }").await;
    let (mut send, connection) = h2::client::handshake(gateway.connect().await).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = http::Request::get("http://a/").body(()).unwrap();
    let answer = send.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!(answer.status(), 200);
    timeout(Duration::from_secs(2), driving).await.expect("an idle HTTP/2 connection ends").unwrap().ok();

    let mut http1 = gateway.connect().await;
    assert!(!ask(&mut http1, "/").await.contains("HTTP/1.1 200"));
    let mut silent = gateway.connect().await;
    silent.write_all(b"PRI * HTTP").await.unwrap();
    assert!(closed(&mut silent, Duration::from_secs(2)).await, "half a preface is not waited for");
}

#[tokio::test]
async fn an_http2_ping_flood_ends_the_connection_and_harms_no_other() {
    let gateway = Gateway::start("protocols: [h2c]").await;
    let (mut honest, connection) = h2::client::handshake(gateway.connect().await).await.unwrap();
    tokio::spawn(connection);
    let mut attacker = gateway.connect().await;
    attacker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut reader, mut writer) = attacker.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let ping = b"\0\0\x08\x06\0\0\0\0\0abcdefgh".repeat(100);
    let flood = async { while writer.write_all(&ping).await.is_ok() {} };
    timeout(Duration::from_secs(5), flood).await.expect("the flood is ended");
    assert_eq!(gateway.ended(Ending::Flood), 1);
    let request = http::Request::get("http://a/").body(()).unwrap();
    assert_eq!(honest.send_request(request, true).unwrap().0.await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_http2_rapid_reset_ends_the_connection() {
    let gateway = Gateway::start("protocols: [h2c]").await;
    let mut attacker = gateway.connect().await;
    attacker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut reader, mut writer) = attacker.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let flood = async {
        for stream in (1u32..).step_by(2) {
            // GET http a / with indexed fields and one literal, then RST_STREAM(CANCEL).
            let mut frames = b"\0\0\x06\x01\x05".to_vec();
            frames.extend(stream.to_be_bytes());
            frames.extend(b"\x82\x86\x84\x41\x01a");
            frames.extend(b"\0\0\x04\x03\0");
            frames.extend(stream.to_be_bytes());
            frames.extend(8u32.to_be_bytes());
            if writer.write_all(&frames).await.is_err() {
                return stream / 2;
            }
        }
        0
    };
    let streams = timeout(Duration::from_secs(10), flood).await.expect("the flood is ended");
    assert!(streams < 50_000, "{streams} streams were let through");
    timeout(Duration::from_secs(2), gateway.state.drained()).await.expect("nothing is left of it");
}

#[tokio::test]
async fn a_drain_serves_the_next_request_of_an_idle_connection_then_closes_it() {
    let gateway = Gateway::start_with("", "idle: 1s\ntimeout: 5s").await;
    let (mut used, mut unused) = (gateway.connect().await, gateway.connect().await);
    assert!(ask(&mut used, "/").await.contains("keep-alive") && ask(&mut unused, "/").await.contains("keep-alive"));
    let begun = Instant::now();
    gateway.state.begin_drain();
    sleep(Duration::from_millis(100)).await;
    let last = ask(&mut used, "/").await.to_ascii_lowercase();
    assert!(last.starts_with("http/1.1 200") && last.contains("connection: close"), "{last}");
    assert!(closed(&mut used, Duration::from_secs(3)).await);
    assert!(closed(&mut unused, Duration::from_secs(3)).await);
    assert!(begun.elapsed() >= Duration::from_millis(980), "the idle one is given {:?}", begun.elapsed());
    timeout(Duration::from_secs(1), gateway.state.drained()).await.unwrap();
}

#[tokio::test]
async fn a_drain_does_not_wait_for_connections_without_a_request() {
    let gateway = Gateway::start("").await;
    let mut silent = gateway.connect().await;
    sleep(Duration::from_millis(50)).await;
    gateway.state.begin_drain();
    assert!(closed(&mut silent, Duration::from_millis(900)).await);
    timeout(Duration::from_secs(1), gateway.state.drained()).await.unwrap();
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_cuts_what_is_left_at_its_end() {
    let gateway = Gateway::start("timeouts: { write: 60s }").await;
    let mut slow = gateway.connect().await;
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut endless = gateway.connect().await;
    endless.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    let app = gateway.app.clone();
    let cleanup = tokio::spawn(async move { app.cleanup().await });
    assert!(read_answer(&mut slow).await.starts_with("HTTP/1.1 200"));
    timeout(Duration::from_secs(3), cleanup).await.expect("the drain ends at its timeout").unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(gateway.state.counters.active(), 0);
    assert!(gateway.ended(Ending::Drained) >= 1);
}

#[tokio::test]
async fn a_drain_without_connections_ends_at_once() {
    let gateway = Gateway::start("").await;
    timeout(Duration::from_millis(200), gateway.app.cleanup()).await.expect("nothing to wait for");
}

#[tokio::test]
async fn a_drain_sends_goaway_to_http2_clients_and_finishes_their_streams() {
    let gateway = Gateway::start("protocols: [h2c]").await;
    let (mut send, connection) = h2::client::handshake(gateway.connect().await).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = http::Request::get("http://a/slow").body(()).unwrap();
    let (slow, _) = send.send_request(request, true).unwrap();
    sleep(Duration::from_millis(100)).await;
    gateway.state.begin_drain();
    assert_eq!(slow.await.unwrap().status(), 200);
    timeout(Duration::from_secs(1), driving).await.expect("the connection ends with its last stream").unwrap().ok();
}

#[tokio::test]
async fn a_websocket_gets_a_close_frame_between_two_frames_at_the_end_of_a_drain() {
    // The drain ends while half a frame is on its way.
    let gateway = Gateway::start_with("", "timeout: 200ms").await;
    let mut client = gateway.connect().await;
    let request = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let app = gateway.app.clone();
    tokio::spawn(async move { app.cleanup().await });
    let mut said = Vec::new();
    let reading = client.read_to_end(&mut said);
    timeout(Duration::from_secs(4), reading).await.expect("the connection ends").unwrap();
    assert!(said.ends_with(b"\x81\x05hello\x81\x06world!\x88\x02\x03\xe9"), "{:?}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn a_silent_websocket_is_closed_after_its_timeout() {
    let gateway = Gateway::start("timeouts: { upgraded: 300ms }").await;
    let mut client = gateway.connect().await;
    let request = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut said = Vec::new();
    timeout(Duration::from_secs(5), client.read_to_end(&mut said)).await.expect("the connection ends").unwrap();
    assert!(said.ends_with(b"\x88\x02\x03\xe9"));
    assert_eq!(gateway.ended(Ending::UpgradedTimeout), 1);
}

#[tokio::test]
async fn a_unix_socket_has_its_mode_and_serves() {
    use pingora::services::Service as _;
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new("uds");
    let socket = dir.file("headgate.sock");
    let written = format!("address: 'unix:{}'\nmode: '0600'", socket.display());
    let written: config::Listener = serde_yaml::from_str(&written).unwrap();
    let mut problems = Problems::default();
    let state = ListenerState::new("uds", &written, &server::Drain::default(), "listeners.uds", &mut problems).unwrap();
    let mut service = service(state, Arc::new(TestApp), Arc::new(TestRefusals));
    let (stop, watch) = tokio::sync::watch::channel(false);
    let running = tokio::spawn(async move { service.start_service(None, watch, 1).await });
    while !socket.exists() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(50)).await;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = tokio::net::UnixStream::connect(&socket).await.unwrap();
    assert!(ask(&mut client, "/peer").await.ends_with("127.0.0.1"));
    drop(client);
    stop.send(true).unwrap();
    timeout(Duration::from_secs(2), running).await.expect("an idle listener drains at once").unwrap();
}

// Behind Pingora's own proxy

/// Reports to the connection what the gateway's proxy reports.
struct TestProxy {
    origin: SocketAddr,
}

#[async_trait]
impl ProxyHttp for TestProxy {
    type CTX = ();
    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin, false, String::new())))
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        _: &mut (),
    ) -> pingora::Result<()> {
        if answer.status == 101 {
            connection(session).upgraded();
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, _: &pingora::Error, _: &mut ()) -> FailToProxy {
        let error_code = match connection(session).expired() {
            Some(Expired::Body) => 408,
            _ => 502,
        };
        let _ = session.respond_error(error_code).await;
        FailToProxy { error_code, can_reuse_downstream: false }
    }
}

fn connection(session: &Session) -> Arc<ConnectionState> {
    ConnectionState::of(session.digest()).unwrap().clone()
}

async fn proxy(yaml: &str) -> Gateway<HttpProxy<TestProxy>> {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = socket.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = vec![0; 65536];
                loop {
                    let n = stream.read(&mut request).await.unwrap_or(0);
                    let text = String::from_utf8_lossy(&request[..n]).into_owned();
                    match text.split(' ').nth(1) {
                        None => return,
                        Some("/slow") => sleep(Duration::from_millis(700)).await,
                        Some("/ws") => {
                            let head =
                                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
                            stream.write_all(head.as_bytes()).await.unwrap();
                            while stream.write_all(b"\x81\x02hi").await.is_ok() {
                                sleep(Duration::from_millis(30)).await;
                            }
                            return;
                        }
                        Some(_) => {}
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    let proxy = http_proxy(&Arc::new(ServerConf::default()), TestProxy { origin });
    Gateway::start_app(yaml, "idle: 300ms\ntimeout: 500ms", proxy).await
}

#[tokio::test]
async fn a_slow_origin_is_not_a_slow_client() {
    let gateway = proxy("timeouts: { header: 300ms, body: 300ms, keep_alive: 300ms, write: 300ms }").await;
    let mut client = gateway.connect().await;
    assert!(ask(&mut client, "/slow").await.contains("200"));
    client.write_all(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
    assert!(read_answer(&mut client).await.contains("200"), "a body that has been received is not waited for");
    assert!(closed(&mut client, Duration::from_secs(2)).await);
    gateway.ends(Ending::KeepAliveTimeout).await;
}

#[tokio::test]
async fn a_body_that_stalls_on_its_way_to_the_origin_is_answered_408() {
    let gateway = proxy("timeouts: { body: 300ms }").await;
    for body in ["", "a", "abcdefghi"] {
        let mut client = gateway.connect().await;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{body}");
        client.write_all(head.as_bytes()).await.unwrap();
        // The origin may have answered already; what may not happen is that the connection stays.
        let said = read_answer(&mut client).await;
        assert!(said.starts_with("HTTP/1.1 408") || said.contains("200"), "{body:?}: {said}");
        assert!(closed(&mut client, Duration::from_secs(4)).await, "{body:?}");
    }
}

#[tokio::test]
async fn a_busy_websocket_gets_a_close_frame_at_the_end_of_a_drain() {
    let gateway = proxy("").await;
    let mut client = gateway.connect().await;
    let request = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    let app = gateway.app.clone();
    let cleanup = tokio::spawn(async move { app.cleanup().await });
    let mut said = Vec::new();
    timeout(Duration::from_secs(5), client.read_to_end(&mut said)).await.expect("the connection ends").unwrap();
    let end = String::from_utf8_lossy(&said).into_owned();
    assert!(said.ends_with(b"\x81\x02hi\x88\x02\x03\xe9"), "{end:?}");
    drop(client);
    timeout(Duration::from_secs(5), cleanup).await.expect("the drain ends").unwrap();
    assert_eq!(gateway.state.counters.active(), 0);
}

// TLS

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        let path = std::env::temp_dir().join(format!("headgate-listener-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.file(name), text).unwrap();
        self.file(name).display().to_string()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key as PEM.
fn issue(issuer: &Issuer, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, hosts.first().copied().unwrap_or("none"));
    change(&mut params);
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

struct Tls {
    dir: TempDir,
    ca: Issuer,
}

impl Tls {
    fn new(name: &str) -> Tls {
        Tls { dir: TempDir::new(name), ca: authority("test authority") }
    }

    /// Writes a certificate for these hosts; gives its entry for the configuration.
    fn certificate(&self, name: &str, hosts: &[&str]) -> String {
        let (cert, key) = issue(&self.ca, hosts, |_| ());
        let cert = self.dir.write(&format!("{name}.pem"), &cert);
        let key = self.dir.write(&format!("{name}.key"), &key);
        format!("{{ cert: '{cert}', key: '{key}' }}")
    }

    fn client(&self) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots)
    }
}

type TlsClient = tokio_rustls::client::TlsStream<TcpStream>;

async fn tls_connect(gateway: &Gateway, config: rustls::ClientConfig, name: &str) -> std::io::Result<TlsClient> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, gateway.connect().await).await
}

fn names_of(stream: &TlsClient) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der_of(pem: &std::path::Path) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_file(pem).unwrap().to_vec()
}

#[tokio::test]
async fn certificates_are_chosen_by_server_name() {
    let tls = Tls::new("sni");
    let entries = [
        tls.certificate("default", &["default.test"]),
        tls.certificate("wild", &["*.example.com"]),
        tls.certificate("exact", &["api.example.com"]),
    ];
    let gateway = Gateway::start(&format!("tls: {{ certificates: [{}] }}", entries.join(", "))).await;
    for (name, file) in
        [("api.example.com", "exact.pem"), ("www.example.com", "wild.pem"), ("default.test", "default.pem")]
    {
        let mut stream = tls_connect(&gateway, tls.client().with_no_client_auth(), name).await.unwrap();
        assert_eq!(names_of(&stream), der_of(&tls.dir.file(file)), "{name}");
        assert!(ask(&mut stream, "/tls").await.ends_with(&format!("TLSv1.3 {name} -")));
    }
    let unknown = tls_connect(&gateway, tls.client().with_no_client_auth(), "other.test").await;
    assert!(unknown.is_err(), "an unknown name gets the first certificate, which is not for it");
    assert_eq!(gateway.state.settings().certificates().len(), 3);
}

#[tokio::test]
async fn protocols_are_negotiated_by_alpn() {
    let tls = Tls::new("alpn");
    let gateway = Gateway::start(&format!("tls: {{ certificates: [{}] }}", tls.certificate("a", &["a.test"]))).await;
    let mut config = tls.client().with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = tls_connect(&gateway, config.clone(), "a.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://a.test/tls").body(()).unwrap();
    let mut answer = send.send_request(request, true).unwrap().0.await.unwrap();
    let text = answer.body_mut().data().await.unwrap().unwrap();
    assert_eq!(&text[..], b"TLSv1.3 a.test -");

    let only_http2 = format!("tls: {{ certificates: [{}] }}\nprotocols: [http2]", tls.certificate("b", &["a.test"]));
    let only_http2 = Gateway::start(&only_http2).await;
    let mut stream = tls_connect(&only_http2, tls.client().with_no_client_auth(), "a.test").await.unwrap();
    assert!(closed(&mut stream, Duration::from_secs(1)).await, "HTTP/1 is not spoken here");

    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = tls_connect(&gateway, config, "a.test").await.unwrap();
    assert!(ask(&mut stream, "/").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_certificate_is_required_or_optional_and_always_verified() {
    let tls = Tls::new("mtls");
    let entry = tls.certificate("a", &["a.test"]);
    let clients = authority("clients");
    let ca = tls.dir.write("clients.pem", &clients.pem());
    let identity = |issuer: &Issuer| {
        use rustls::pki_types::pem::PemObject;
        let (cert, key) = issue(issuer, &["mobile"], |_| ());
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        (vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
    };
    for (mode, without) in [("required", false), ("optional", true)] {
        let yaml = format!("tls: {{ certificates: [{entry}], client_certificates: {{ ca: '{ca}', mode: {mode} }} }}");
        let gateway = Gateway::start(&yaml).await;
        let attempt = |config: rustls::ClientConfig| {
            let gateway = &gateway;
            async move {
                let mut stream = tls_connect(gateway, config, "a.test").await.ok()?;
                // TLS 1.3 clients learn of a refusal at their first read.
                stream.write_all(b"GET /tls HTTP/1.1\r\nHost: a.test\r\n\r\n").await.ok()?;
                Some(read_answer(&mut stream).await).filter(|answer| answer.starts_with("HTTP/1.1 200"))
            }
        };
        let (chain, key) = identity(&clients);
        let known = attempt(tls.client().with_client_auth_cert(chain, key).unwrap()).await;
        assert!(known.is_some_and(|a| a.contains("CN=mobile")), "{mode}");
        let (chain, key) = identity(&authority("strangers"));
        assert_eq!(attempt(tls.client().with_client_auth_cert(chain, key).unwrap()).await, None, "{mode}");
        assert_eq!(attempt(tls.client().with_no_client_auth()).await.is_some(), without, "{mode}");
    }
}

#[tokio::test]
async fn a_stalled_handshake_is_ended() {
    let tls = Tls::new("stall");
    let entry = tls.certificate("a", &["a.test"]);
    let gateway =
        Gateway::start(&format!("tls: {{ certificates: [{entry}] }}\ntimeouts: {{ handshake: 300ms }}")).await;
    let mut client = gateway.connect().await;
    client.write_all(&[0x16, 3, 1]).await.unwrap();
    assert!(closed(&mut client, Duration::from_secs(2)).await);
    gateway.ends(Ending::HandshakeTimeout).await;
    let mut client = gateway.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    gateway.ends(Ending::HandshakeFailed).await;
}

#[tokio::test]
async fn certificates_are_replaced_for_new_connections_and_a_bad_one_changes_nothing() {
    let tls = Tls::new("reload");
    let yaml = format!("tls: {{ certificates: [{}] }}", tls.certificate("a", &["a.test"]));
    let gateway = Gateway::start(&yaml).await;
    let connect = || tls_connect(&gateway, tls.client().with_no_client_auth(), "a.test");
    let mut old = connect().await.unwrap();
    let first = names_of(&old);
    let reload = || {
        let mut problems = Problems::default();
        let done = gateway.state.reload(&listener(&yaml), &server::Drain::default(), "listeners.test", &mut problems);
        assert_eq!(done, problems.is_empty());
        problems.0.into_iter().map(|p| p.path).collect::<Vec<_>>()
    };
    let before = gateway.state.settings();
    assert!(reload().is_empty());
    let same = Arc::ptr_eq(before.tls.as_ref().unwrap(), gateway.state.settings().tls.as_ref().unwrap());
    assert!(same, "what did not change keeps its session tickets");

    tls.certificate("a", &["a.test"]);
    assert!(reload().is_empty());
    let second = names_of(&connect().await.unwrap());
    assert_ne!(first, second);
    assert!(ask(&mut old, "/").await.contains("200"), "old connections go on");

    let good = std::fs::read_to_string(tls.dir.file("a.pem")).unwrap();
    let expired = issue(&tls.ca, &["a.test"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let foreign = issue(&tls.ca, &["a.test"], |_| ());
    for (cert, key, place) in [
        (String::new(), None, "cert"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(), None, "cert"),
        (good.clone(), Some(foreign.1), "key"),
        (good, Some("no key".to_owned()), "key"),
        (expired.0, Some(expired.1), "cert"),
    ] {
        tls.dir.write("a.pem", &cert);
        if let Some(key) = key {
            tls.dir.write("a.key", &key);
        }
        assert_eq!(reload(), [format!("listeners.test.tls.certificates[0].{place}")], "{cert}");
        assert_eq!(names_of(&connect().await.unwrap()), second, "the old certificate serves on");
    }
    std::fs::remove_file(tls.dir.file("a.pem")).unwrap();
    assert_eq!(reload(), ["listeners.test.tls.certificates[0].cert"]);
    assert_eq!(names_of(&connect().await.unwrap()), second);
}

// Configuration

#[test]
fn every_problem_of_a_listener_is_reported_with_its_place() {
    let written: config::Listener = serde_yaml::from_str(
        "address: localhost\nmode: '0999'\nprotocols: [h2c, http2]\ntrusted_proxies: [nonsense]\n\
         proxy_protocol: true\nlimits: { connections: 0 }\ntimeouts: { header: 0s }",
    )
    .unwrap();
    let mut problems = Problems::default();
    assert!(ListenerState::new("x", &written, &server::Drain::default(), "listeners.x", &mut problems).is_none());
    let mut places: Vec<_> = problems.0.iter().map(|p| p.path.as_str()).collect();
    places.sort();
    places.dedup();
    assert_eq!(
        places,
        [
            "listeners.x.address",
            "listeners.x.limits.connections",
            "listeners.x.mode",
            "listeners.x.protocols",
            "listeners.x.timeouts.header",
            "listeners.x.trusted_proxies[0]",
        ]
    );
}

#[test]
fn an_address_does_not_change_by_reload() {
    let mut problems = Problems::default();
    let drain = server::Drain::default();
    let state = ListenerState::new("x", &listener(""), &drain, "listeners.x", &mut problems).unwrap();
    let moved: config::Listener = serde_yaml::from_str("address: 127.0.0.1:1").unwrap();
    assert!(!state.reload(&moved, &drain, "listeners.x", &mut problems));
    assert_eq!(problems.0[0].path, "listeners.x");
    problems.0.clear();
    assert!(state.reload(&listener("trusted_proxies: [10.0.0.0/8]"), &drain, "listeners.x", &mut problems));
    assert!(is_trusted("10.1.1.1".parse::<IpAddr>().unwrap(), &state.settings().trusted_proxies));
}
