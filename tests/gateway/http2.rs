//! HTTP/2 from clients: what works, and what a hostile one cannot do.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;

use crate::support::h2::{H2Client, H2Origin, H2Reply, collect, raw};
use crate::support::tls::Authority;
use crate::support::*;

const H2C: &str = "
listeners:
  http: { address: '{{http}}' }
  h2c: { address: '{{h2c}}', protocols: [h2c] }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

async fn gateway(origin: &Origin) -> Gateway {
    Gateway::builder(H2C).origin(origin).start().await
}

async fn client(gateway: &Gateway) -> H2Client {
    H2Client::connect(gateway.address("h2c")).await.expect("an HTTP/2 connection")
}

#[tokio::test]
async fn requests_reach_an_http1_origin_as_http1() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let mut client = client(&gateway).await;
    let request =
        Request::post("http://shop.example/x?y=1").header("cookie", "a=1").header("cookie", "b=2").body(()).unwrap();
    let answer = client.call(request, "body").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "a"));
    assert!(answer.header("x-request-id").is_some());
    let request = origin.last().await;
    assert_eq!(
        (request.method.as_str(), request.target.as_str(), request.body.as_slice()),
        ("POST", "/x?y=1", b"body".as_slice())
    );
    assert_eq!(request.headers.get("host"), Some("shop.example"));
    assert_eq!(
        request.headers.get("cookie"),
        Some("a=1; b=2"),
        "HTTP/1.1 knows one Cookie line (RFC 9113, section 8.2.3)"
    );
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let origin = Origin::start(|request| Reply::ok(request.path())).await;
    let gateway = gateway(&origin).await;
    let mut client = client(&gateway).await;
    let mut open = Vec::new();
    for n in 0..50 {
        let request = Request::get(format!("http://a.example/{n}")).body(()).unwrap();
        open.push(client.open(request, true).await.unwrap().0);
    }
    let answers = join_all(open.into_iter().map(|answer| async { collect(answer.await?).await })).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap().text(), format!("/{n}"));
    }
}

#[tokio::test]
async fn errors_are_problem_documents_and_keep_the_connection() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let mut client = client(&gateway).await;
    let answer = client.get("http://a.example/a%2fb").await.unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/problem+json")));
    assert_eq!(client.get("http://a.example/").await.unwrap().status, 200);
}

#[tokio::test]
async fn large_bodies_flow_both_ways() {
    let origin = Origin::start(|request| Reply::ok(&request.body)).await;
    let gateway = gateway(&origin).await;
    let mut client = client(&gateway).await;
    let body: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let request = Request::post("http://a.example/").body(()).unwrap();
    let answer = client.call(request, body.clone()).await.unwrap();
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
}

#[tokio::test]
async fn a_reset_stream_ends_its_work_at_the_origin() {
    let origin = Origin::start(|_| Reply::silence()).await;
    let gateway = gateway(&origin).await;
    let mut client = client(&gateway).await;
    let request = Request::get("http://a.example/").body(()).unwrap();
    let (answer, mut sending) = client.open(request, true).await.unwrap();
    origin.received(1).await;
    sending.send_reset(::h2::Reason::CANCEL);
    drop(answer);
    assert!(origin.abandoned().await);
}

/// Speaks raw frames on a connection of its own; true if the gateway has ended it.
async fn is_ended(gateway: &Gateway, bytes: &[u8]) -> bool {
    let mut client = Client::connect(gateway.address("h2c")).await.unwrap();
    if client.send(raw::beginning()).await.is_err() || client.send(bytes).await.is_err() {
        return true;
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < until {
        match client.some().await {
            Ok(bytes) if bytes.is_empty() => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::TimedOut,
        }
    }
    false
}

async fn assert_unharmed(gateway: &Gateway) {
    let mut honest = client(gateway).await;
    assert_eq!(honest.get("http://a.example/honest").await.unwrap().status, 200);
    assert_eq!(gateway.get("/honest").await.status, 200);
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let origin = Origin::start(|request| match request.path() {
        "/honest" => Reply::ok("a"),
        _ => Reply::ok("a").after(Duration::from_secs(5)),
    })
    .await;
    let gateway = gateway(&origin).await;
    let before = gateway.memory();
    let mut flood = Vec::new();
    for n in 0..20_000u32 {
        flood.extend(raw::request(2 * n + 1, raw::END_STREAM, raw::GET));
        flood.extend(raw::frame(raw::RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    assert!(is_ended(&gateway, &flood).await, "20,000 requests that were taken back at once");
    assert!(origin.connections() < 2_000, "{} of them reached the origin", origin.connections());
    assert!(gateway.memory() < before + (64 << 20), "{} bytes more", gateway.memory() - before);
    assert_unharmed(&gateway).await;
}

#[tokio::test]
async fn floods_of_frames_end_the_connection_or_are_absorbed() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let before = gateway.memory();
    let continuation = {
        let mut flood = raw::frame(raw::HEADERS, raw::END_STREAM, 1, &raw::block(raw::GET));
        let filler = raw::block(&[("x-filler", &"x".repeat(100))]).repeat(100);
        flood.extend(raw::frame(raw::CONTINUATION, 0, 1, &filler).repeat(1_000));
        flood
    };
    assert!(is_ended(&gateway, &continuation).await, "a header without end");

    let mut empty =
        raw::request(1, 0, &[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")]);
    empty.extend(raw::frame(raw::DATA, 0, 1, &[]).repeat(100_000));
    for (name, flood) in [
        ("empty DATA", empty),
        ("SETTINGS", raw::frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(100_000)),
        ("PING", raw::frame(raw::PING, 0, 0, &[0; 8]).repeat(100_000)),
        ("WINDOW_UPDATE", raw::frame(raw::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(100_000)),
    ] {
        let mut attacker = Client::connect(gateway.address("h2c")).await.unwrap();
        attacker.patience = Duration::from_secs(5);
        let _ = attacker.send(raw::beginning()).await;
        // Nothing is read here: what the gateway wants to say back has to stay bounded too.
        let _ = attacker.send(flood).await;
        assert_unharmed(&gateway).await;
        let memory = gateway.memory();
        assert!(memory < before + (64 << 20), "{name}: {} bytes more", memory - before);
    }
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    for (name, bytes) in [
        ("DATA on stream 0", raw::frame(raw::DATA, 0, 0, b"x")),
        ("DATA on a stream that was never opened", raw::frame(raw::DATA, 0, 5, b"x")),
        ("HEADERS on an even stream", raw::request(2, raw::END_STREAM, raw::GET)),
        ("HEADERS on stream 0", raw::request(0, raw::END_STREAM, raw::GET)),
        ("CONTINUATION without HEADERS", raw::frame(raw::CONTINUATION, raw::END_HEADERS, 1, &raw::block(raw::GET))),
        ("SETTINGS of five bytes", raw::frame(raw::SETTINGS, 0, 0, &[0; 5])),
        ("PING of seven bytes", raw::frame(raw::PING, 0, 0, &[0; 7])),
        (
            "an index that no table has",
            raw::frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &[0xff, 0xff, 0xff, 0x7f]),
        ),
        ("a frame larger than allowed", raw::frame(raw::DATA, 0, 1, &vec![0; 1 << 20])),
        ("a window beyond 2^31", raw::frame(raw::WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes()).repeat(2)),
    ] {
        assert!(is_ended(&gateway, &bytes).await, "{name}");
    }
    assert!(origin.requests().is_empty());
    assert_unharmed(&gateway).await;
}

/// Sends one hand-made request and tells whether the origin got it.
async fn reaches_origin(gateway: &Gateway, origin: &Origin, fields: &[(&str, &str)], data: &[u8]) -> bool {
    let before = origin.count();
    let mut client = Client::connect(gateway.address("h2c")).await.unwrap();
    client.patience = Duration::from_millis(300);
    let end = if data.is_empty() { raw::END_STREAM } else { 0 };
    let mut bytes = [raw::beginning(), raw::request(1, end, fields)].concat();
    if !data.is_empty() {
        bytes.extend(raw::frame(raw::DATA, raw::END_STREAM, 1, data));
    }
    let _ = client.send(bytes).await;
    while client.some().await.is_ok_and(|bytes| !bytes.is_empty()) {}
    origin.count() > before
}

#[tokio::test]
async fn headers_that_would_split_an_http1_request_are_refused() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let with = |extra: &[(&'static str, &'static str)]| [raw::GET, extra].concat();
    assert!(reaches_origin(&gateway, &origin, &with(&[("x-good", "y")]), b"").await, "the honest form passes");
    for (name, fields) in [
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("connection", with(&[("connection", "close")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("CRLF in a value", with(&[("x", "a\r\nTransfer-Encoding: chunked")])),
        ("LF in a value", with(&[("x", "a\nb: c")])),
        ("NUL in a value", with(&[("x", "a\0b")])),
        ("CRLF in a name", with(&[("x: y\r\nz", "a")])),
        ("colon in a name", with(&[("x: y", "a")])),
        ("space in a name", with(&[("x y", "a")])),
        ("upper-case name", with(&[("X-Upper", "a")])),
        ("empty name", with(&[("", "a")])),
        ("unknown pseudo header", with(&[(":evil", "a")])),
        (
            "pseudo header after others",
            vec![(":method", "GET"), (":scheme", "http"), ("x", "y"), (":authority", "a"), (":path", "/")],
        ),
        ("two paths", with(&[(":path", "/other")])),
        ("no path", vec![(":method", "GET"), (":scheme", "http"), (":authority", "a")]),
        ("empty path", vec![(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")]),
        ("relative path", vec![(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "x")]),
        (
            "space in the path",
            vec![(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/ HTTP/1.1\r\nX: y")],
        ),
        (
            "space in the method",
            vec![(":method", "GET / HTTP/1.1"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        ),
        ("bad authority", vec![(":method", "GET"), (":scheme", "http"), (":authority", "a b"), (":path", "/")]),
        ("user in the authority", vec![(":method", "GET"), (":scheme", "http"), (":authority", "u@a"), (":path", "/")]),
        ("host unlike the authority", with(&[("host", "other.example")])),
        ("two lengths", with(&[("content-length", "1"), ("content-length", "2")])),
        ("CONNECT", vec![(":method", "CONNECT"), (":authority", "a:80")]),
    ] {
        assert!(!reaches_origin(&gateway, &origin, &fields, b"").await, "{name}: {:?}", origin.requests().pop());
    }
    for (name, length, data) in
        [("length too short", "2", "hello"), ("length too long", "50", "hello"), ("length of no number", "x", "hello")]
    {
        let fields =
            [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/"), ("content-length", length)];
        assert!(!reaches_origin(&gateway, &origin, &fields, data.as_bytes()).await, "{name}");
    }
    assert_eq!(origin.violations(), Vec::<String>::new());
    assert_unharmed(&gateway).await;
}

#[tokio::test]
async fn headers_too_large_are_refused() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let mut client = client(&gateway).await;
    let mut request = Request::get("http://a.example/");
    for n in 0..50 {
        request = request.header(format!("x-{n}"), "x".repeat(4000));
    }
    let refused = match client.call(request.body(()).unwrap(), Bytes::new()).await {
        Ok(answer) => answer.status == 431,
        Err(_) => true,
    };
    assert!(refused && origin.requests().is_empty());
    assert_unharmed(&gateway).await;
}

#[tokio::test]
async fn a_client_that_gives_no_window_holds_nobody_up() {
    let body = vec![b'x'; 4 << 20];
    let origin = Origin::start(move |request| match request.path() {
        "/honest" => Reply::ok("a"),
        _ => Reply::ok(&body),
    })
    .await;
    let gateway = gateway(&origin).await;
    let before = gateway.memory();
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let mut client = Client::connect(gateway.address("h2c")).await.unwrap();
        let no_window = raw::frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        client.send([raw::PREFACE, &no_window, &raw::request(1, raw::END_STREAM, raw::GET)].concat()).await.unwrap();
        stuck.push(client);
    }
    origin.received(10).await;
    assert_unharmed(&gateway).await;
    assert!(gateway.memory() < before + (32 << 20), "answers are not piled up for clients that do not read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_an_h2c_origin_share_connections() {
    let origin = H2Origin::start(|_| H2Reply::grpc(b"two", "0").after(Duration::from_millis(300))).await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }], protocol: h2c } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let gateway = Gateway::builder(yaml).with("origin", origin.address).start().await;
    assert_shared(&gateway, &origin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_a_tls_origin_share_connections() {
    let authority = Authority::new("ca");
    let acceptor = authority.issue(&["origin.example"]).acceptor(&["h2", "http/1.1"], None);
    let origin = H2Origin::tls(acceptor, |_| H2Reply::grpc(b"two", "0").after(Duration::from_millis(300))).await;
    let yaml = "
upstreams:
  origin: { targets: [{ address: '{{origin}}' }], tls: { ca: '{{dir}}/ca.crt', sni: origin.example } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let builder = Gateway::builder(yaml).with("origin", origin.address);
    std::fs::write(builder.directory().join("ca.crt"), &authority.certificate).unwrap();
    assert_shared(&builder.start().await, &origin).await;
}

/// 60 clients at once, each on its own connection: they must not need as many to the origin.
async fn assert_shared(gateway: &Gateway, origin: &H2Origin) {
    assert_eq!(gateway.get("/").await.text(), "two");
    let begun = std::time::Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..60 {
        let address = gateway.address("http");
        calls.spawn(async move { Client::connect(address).await?.get(&format!("/{n}")).await });
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap().unwrap().text(), "two");
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "one after the other would take 18 s: {:?}", begun.elapsed());
    assert_eq!(origin.requests().len(), 61);
    // Streams that are opened in the same moment may miss each other; most do not.
    assert!(origin.connections() <= 30, "{} connections for 60 clients", origin.connections());
}

#[tokio::test]
async fn an_origin_that_must_speak_http2_and_does_not_is_answered_502() {
    let authority = Authority::new("ca");
    let acceptor = authority.issue(&["origin.example"]).acceptor(&["http/1.1"], None);
    let origin = Origin::tls(acceptor, |_| Reply::ok("one")).await;
    let yaml = "
upstreams:
  origin:
    targets: [{ address: '{{origin}}' }]
    protocol: http2
    tls: { ca: '{{dir}}/ca.crt', sni: origin.example }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let builder = Gateway::builder(yaml).origin(&origin);
    std::fs::write(builder.directory().join("ca.crt"), &authority.certificate).unwrap();
    let answer = builder.start().await.get("/").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(origin.requests().is_empty());
}
