//! WebSockets pass through as they are, and end when either side does.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::support::gateway::EVERYTHING_TO_ORIGIN;
use crate::support::tls::{Authority, TlsClient};
use crate::support::wire::Headers;
use crate::support::*;

/// A WebSocket server that returns every message.
pub async fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = accept_async(tcp).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

pub async fn open(gateway: &Gateway) -> WebSocketStream<TcpStream> {
    let tcp = TcpStream::connect(gateway.address("http")).await.unwrap();
    let request = "ws://test.example/socket".into_client_request().unwrap();
    client_async(request, tcp).await.expect("the upgrade is agreed to").0
}

#[tokio::test]
async fn messages_pass_both_ways() {
    let gateway = Gateway::builder(EVERYTHING_TO_ORIGIN).with("origin", echo_server().await).start().await;
    let mut socket = open(&gateway).await;
    for n in 0..100 {
        let message = Message::text(format!("message {n}"));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    let large = Message::binary(vec![7u8; 1 << 20]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), large);
    socket.close(None).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        assert!(message.is_close(), "{message:?}");
    }
}

#[tokio::test]
async fn many_sockets_do_not_mix() {
    let gateway = Gateway::builder(EVERYTHING_TO_ORIGIN).with("origin", echo_server().await).start().await;
    let mut sockets = Vec::new();
    for n in 0..30 {
        let mut socket = open(&gateway).await;
        socket.send(Message::text(n.to_string())).await.unwrap();
        sockets.push(socket);
    }
    for (n, socket) in sockets.iter_mut().enumerate() {
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(n.to_string()));
    }
}

const UPGRADE: &str = "GET /socket HTTP/1.1\r\nHost: test.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test]
async fn the_first_bytes_of_the_origin_are_not_lost() {
    // Switch and first frame in one segment: whoever reads them together must not drop the second.
    let origin = Origin::scripted(vec![Reply::echo_upgrade(&format!("{AGREED}\u{1}first"))]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 101);
    assert_eq!(client.exactly(6).await.unwrap(), b"\x01first");
    client.send("anything").await.unwrap();
    assert_eq!(
        client.exactly(8).await.unwrap(),
        b"anything",
        "after the switch the bytes are not HTTP and not looked at"
    );
}

#[tokio::test]
async fn a_leaving_client_ends_the_origin_side_and_the_other_way_round() {
    let origin = Origin::start(|_| Reply::echo_upgrade(AGREED)).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    client.head().await.unwrap();
    drop(client);
    assert!(origin.abandoned().await, "the origin has to learn that its client has gone");

    let closing = Origin::start(|_| Reply::raw(AGREED).close()).await;
    let gateway = Gateway::before(&closing).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    client.head().await.unwrap();
    assert!(client.closed().await);
}

#[tokio::test]
async fn a_refusing_origin_answers_as_usual() {
    let origin = Origin::scripted(vec![Reply::with(403, &[], "no sockets")]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no sockets"));
}

#[tokio::test]
async fn refusals_come_before_the_switch() {
    let origin = Origin::start(|_| Reply::echo_upgrade(AGREED)).await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    filters: [{ ip_restriction: { deny: [127.0.0.1] } }]
    routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    assert_eq!(client.answer().await.unwrap().status, 403);
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn open_sockets_are_closed_properly_at_the_end_of_the_drain() {
    let yaml = "server: { drain: { timeout: 1s }, upgrade: { socket: '{{dir}}/run/upgrade.sock', pid_file: '{{dir}}/run/pid' } }\n".to_owned() + EVERYTHING_TO_ORIGIN;
    let mut gateway = Gateway::builder(&yaml).with("origin", echo_server().await).start().await;
    let mut socket = open(&gateway).await;
    socket.send(Message::text("hello")).await.unwrap();
    socket.next().await.unwrap().unwrap();
    gateway.signal(libc::SIGTERM);
    let last = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an end");
    match last {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001, "going away"),
        other => panic!("a close frame was expected, not {other:?}"),
    }
    assert!(gateway.exit(PATIENCE).await.is_some());
}

#[tokio::test]
async fn idle_sockets_end_after_the_configured_time() {
    let yaml =
        "listeners: { http: { address: '{{http}}', timeouts: { upgraded: 1s } } }\n".to_owned() + EVERYTHING_TO_ORIGIN;
    let gateway = Gateway::builder(&yaml).with("origin", echo_server().await).start().await;
    let mut socket = open(&gateway).await;
    for _ in 0..5 {
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        socket.send(Message::text("busy")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("busy"), "who speaks stays");
    }
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.expect("silence has an end");
    assert!(!matches!(end, Some(Ok(Message::Text(_) | Message::Binary(_)))), "{end:?}");
}

const LOGGED: &str = "
access_log: { to: { file: '{{dir}}/access.log' }, format: json }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

const TWO_TARGETS: &str = "
upstreams:
  origin:
    targets: [{ address: '{{first}}' }, { address: '{{origin}}' }]
    retry: { statuses: [503], budget: { min_per_second: 10 } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

/// Asks for a WebSocket; the status of the answer, and its fields.
async fn upgrade(gateway: &Gateway) -> (Client, u16, Headers) {
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    let (status, headers) = client.head().await.unwrap();
    (client, status, headers)
}

#[tokio::test]
async fn another_target_makes_up_for_one_that_refuses_the_connection() {
    let origin = Origin::start(|_| Reply::echo_upgrade(AGREED)).await;
    let gateway = Gateway::builder(TWO_TARGETS).origin(&origin).start().await;
    for _ in 0..4 {
        let (mut client, status, _) = upgrade(&gateway).await;
        assert_eq!(status, 101);
        client.send("anything").await.unwrap();
        assert_eq!(client.exactly(8).await.unwrap(), b"anything");
    }
}

#[tokio::test]
async fn another_target_makes_up_for_one_that_breaks_off_or_is_busy() {
    for reply in ["", "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"] {
        let broken = Origin::start(move |_| Reply::raw(reply).close()).await;
        let origin = Origin::start(|_| Reply::echo_upgrade(AGREED)).await;
        let gateway = Gateway::builder(TWO_TARGETS).with("first", broken.address).origin(&origin).start().await;
        for _ in 0..6 {
            assert_eq!(upgrade(&gateway).await.1, 101, "{reply}");
        }
        assert!(broken.count() > 0, "the broken one was never tried");
    }
}

#[tokio::test]
async fn the_origin_is_asked_for_what_the_client_asked_for() {
    let origin = Origin::start(|_| Reply::echo_upgrade(AGREED)).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    let fields = "X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: secret\r\nX-Kept: yes\r\n\r\n";
    let asked = UPGRADE.replace("Connection: Upgrade", "Connection: keep-alive, upgrade, X-Hop, X-Forwarded-For");
    client.send(asked.trim_end().to_owned() + "\r\n" + fields).await.unwrap();
    let (status, answer) = client.head().await.unwrap();
    assert_eq!(status, 101);
    assert_eq!(answer.all("upgrade").collect::<Vec<_>>(), ["websocket"]);
    assert_eq!(answer.all("connection").collect::<Vec<_>>(), ["Upgrade"]);
    assert_eq!(answer.all("sec-websocket-accept").collect::<Vec<_>>(), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    assert!(answer.has("x-request-id"));
    let headers = origin.last().await.headers;
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
        ("host", "test.example"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-kept", "yes"),
    ] {
        assert_eq!(headers.all(name).collect::<Vec<_>>(), [value], "{name}");
    }
    for name in ["x-hop", "keep-alive", "proxy-authorization", "content-length", "transfer-encoding"] {
        assert!(!headers.has(name), "{name} reached the origin");
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over_but_not_for_ever() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    for (interim, expected) in [(1, 101), (100, 502)] {
        let origin = Origin::start(move |_| Reply::echo_upgrade(&(HINTS.repeat(interim) + AGREED))).await;
        let gateway = Gateway::before(&origin).await;
        assert_eq!(upgrade(&gateway).await.1, expected, "after {interim}");
    }
}

#[tokio::test]
async fn a_refusal_keeps_both_connections() {
    let origin = Origin::scripted(vec![
        Reply::with(403, &[("X-Why", "closed")], "no sockets"),
        Reply::chunked(&[], &["no ", "sockets"], &[]),
        Reply::with(204, &[], ""),
        Reply::with(403, &[], ""),
        Reply::with(403, &[], "no sockets"),
    ])
    .await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    for (status, body) in [(403, "no sockets"), (200, "no sockets"), (204, ""), (403, ""), (403, "no sockets")] {
        client.send(UPGRADE).await.unwrap();
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
        assert!(answer.keeps_alive(), "{answer:?}");
    }
    assert_eq!(client.get("/ordinary").await.unwrap().status, 200);
    let upgrades: Vec<_> = origin.requests().iter().take(5).map(|request| request.connection).collect();
    assert_eq!(upgrades, [0; 5], "an answer read to its end leaves its connection to the next request");
}

#[tokio::test]
async fn a_refusal_that_ends_with_its_connection_is_framed_anew() {
    let origin = Origin::scripted(vec![Reply::raw("HTTP/1.1 403 No\r\n\r\nno sockets").close()]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no sockets"));
    assert_eq!(client.get("/ordinary").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_refusal_that_breaks_off_is_not_made_to_look_complete() {
    let broken = "HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nno sock";
    let origin = Origin::scripted(vec![Reply::raw(broken).close()]).await;
    let gateway = Gateway::builder(LOGGED).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    assert!(client.answer().await.is_err());
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!((&record["status"], &record["reason"]), (&403.into(), &"upstream_reset".into()), "{record}");
}

#[tokio::test]
async fn a_switch_to_what_was_not_offered_is_no_answer() {
    let switches = [
        AGREED.replace("websocket", "h2c"),
        AGREED.replace("Upgrade: websocket\r\n", ""),
        AGREED.replace("HTTP/1.1 101", "HTTP/1.0 101"),
        AGREED.replace("websocket", "websocket, h2c"),
    ];
    for switch in switches {
        let reply = switch.clone();
        let origin = Origin::start(move |_| Reply::echo_upgrade(&reply)).await;
        let gateway = Gateway::before(&origin).await;
        let mut client = gateway.connect().await;
        client.send(UPGRADE).await.unwrap();
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.problem().as_deref()), (502, Some("upstream_protocol")), "{switch}");
    }
}

#[tokio::test]
async fn failures_are_answered_and_recorded_as_elsewhere() {
    let yaml = "
access_log: { to: { file: '{{dir}}/access.log' }, format: json }
upstreams:
  garbage: { targets: [{ address: '{{garbage}}' }] }
  silent: { targets: [{ address: '{{silent}}' }], timeouts: { first_byte: 300ms } }
  nobody: { targets: [{ address: '{{nobody}}' }] }
  h2c: { targets: [{ address: '{{garbage}}' }], protocol: h2c }
services:
  s:
    routes:
      garbage: { match: { path_prefix: /garbage }, backend: { upstream: garbage } }
      silent: { match: { path_prefix: /silent }, backend: { upstream: silent } }
      nobody: { match: { path_prefix: /nobody }, backend: { upstream: nobody } }
      h2c: { match: { path_prefix: /h2c }, backend: { upstream: h2c } }
";
    let garbage = Origin::start(|_| Reply::raw("garbage\r\n\r\n").close()).await;
    let silent = Origin::start(|_| Reply::silence()).await;
    let gateway = Gateway::builder(yaml).with("garbage", garbage.address).with("silent", silent.address).start().await;
    let expected = [
        ("/garbage", 502, "upstream_protocol"),
        ("/silent", 504, "upstream_timeout"),
        ("/nobody", 502, "upstream_connect_failed"),
        ("/h2c", 502, "upstream_protocol"),
    ];
    for (n, (path, status, reason)) in expected.into_iter().enumerate() {
        let mut client = gateway.connect().await;
        client.send(UPGRADE.replace("/socket", path)).await.unwrap();
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.problem().as_deref()), (status, Some(reason)), "{path}");
        let record = gateway.access_log(n + 1).await.pop().unwrap();
        assert_eq!((&record["status"], &record["reason"]), (&status.into(), &reason.into()), "{record}");
    }
}

#[tokio::test]
async fn other_upgrades_are_ordinary_requests() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    let asked = [
        (
            "GET",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        ),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"),
        ("GET", "Upgrade: websocket\r\n\r\n"),
        ("POST", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi"),
    ];
    for (method, fields) in asked {
        client.send(format!("{method} / HTTP/1.1\r\nHost: test.example\r\n{fields}")).await.unwrap();
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "a"), "{fields}");
        let headers = origin.last().await.headers;
        assert!(!headers.has("upgrade") && !headers.has("http2-settings"), "{headers:?}");
    }
}

#[tokio::test]
async fn a_socket_is_recorded_with_its_bytes() {
    let origin = Origin::start(|_| Reply::echo_upgrade(&format!("{AGREED}hello"))).await;
    let gateway = Gateway::builder(LOGGED).origin(&origin).start().await;
    let (mut client, status, _) = upgrade(&gateway).await;
    assert_eq!(status, 101);
    client.send("0123456789").await.unwrap();
    client.exactly(15).await.unwrap();
    drop(client);
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!(record["status"], 101, "{record}");
    assert_eq!((&record["request_bytes"], &record["response_bytes"]), (&10.into(), &15.into()), "{record}");
    assert_eq!(record["upstream"], "origin", "{record}");
    assert!(record["reason"].is_null(), "an end is no failure: {record}");
    let counted = gateway.metric("headgate_requests_total", &[("status", "101")]).await;
    assert_eq!(counted, 1.0, "{:#?}", gateway.metrics().await);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_switch_is_recorded_as_such() {
    let origin = Origin::start(|_| Reply::silence()).await;
    let gateway = Gateway::builder(LOGGED).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await.unwrap();
    origin.received(1).await;
    drop(client);
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!(record["reason"], "client_closed", "{record}");
    assert!(origin.abandoned().await);
}

#[tokio::test]
async fn cookies_of_split_and_target_are_set_with_the_switch() {
    let origin = Origin::start(|_| Reply::echo_upgrade(AGREED)).await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }], sticky: { cookie: target } } }
services:
  s:
    routes:
      all:
        match: { path_prefix: / }
        backend: { split: { targets: [{ upstream: origin, weight: 1 }], sticky: { cookie: variant } } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let (_client, status, headers) = upgrade(&gateway).await;
    assert_eq!(status, 101);
    for name in ["target=", "variant="] {
        assert!(headers.all("set-cookie").any(|cookie| cookie.starts_with(name)), "{name} in {headers:?}");
    }
}

#[tokio::test]
async fn the_last_words_of_a_closing_origin_arrive() {
    let last = "x".repeat(300_000);
    let reply = last.clone();
    let origin = Origin::start(move |_| Reply::raw(AGREED).then(&reply).close()).await;
    let gateway = Gateway::before(&origin).await;
    let (mut client, status, _) = upgrade(&gateway).await;
    assert_eq!(status, 101);
    assert_eq!(client.exactly(last.len()).await.unwrap(), last.as_bytes());
    assert!(client.closed().await);
}

/// More than all buffers on the way hold.
const MUCH: usize = 32 << 20;

/// A gateway, the client's end of a WebSocket through it, and the origin's end.
async fn switched(timeouts: &str) -> (Gateway, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = LOGGED.replace("'{{origin}}' }]", &format!("'{{{{origin}}}}' }}], timeouts: {{ {timeouts} }}"));
    let gateway = Gateway::builder(&yaml).with("origin", listener.local_addr().unwrap()).start().await;
    let mut client = TcpStream::connect(gateway.address("http")).await.unwrap();
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let (mut origin, _) = listener.accept().await.unwrap();
    skip_head(&mut origin).await;
    origin.write_all(AGREED.as_bytes()).await.unwrap();
    skip_head(&mut client).await;
    (gateway, client, origin)
}

async fn skip_head(tcp: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
}

async fn read_much(mut from: impl AsyncRead + Unpin) {
    let mut space = vec![0; 1 << 16];
    let mut read = 0;
    while read < MUCH {
        let n = from.read(&mut space).await.unwrap();
        assert!(n > 0 && space[..n].iter().all(|byte| *byte == 7), "broken after {read} bytes");
        read += n;
    }
}

#[tokio::test]
async fn much_passes_both_ways_at_once() {
    let (_gateway, client, origin) = switched("").await;
    let (client, origin) = (client.into_split(), origin.into_split());
    let write = |mut to: tokio::net::tcp::OwnedWriteHalf| async move {
        to.write_all(&vec![7; MUCH]).await.unwrap();
        to
    };
    let all = async { tokio::join!(write(client.1), write(origin.1), read_much(client.0), read_much(origin.0)) };
    tokio::time::timeout(PATIENCE, all).await.expect("neither direction waits for the other");
}

#[tokio::test]
async fn a_direction_that_is_full_leaves_the_other_free() {
    let (_gateway, mut client, mut origin) = switched("").await;
    for full in 0..2 {
        let (one, other) = if full == 0 { (&mut client, &mut origin) } else { (&mut origin, &mut client) };
        let ((_, mut stuck), (mut free, mut writing)) = (one.split(), other.split());
        let mut piece = Vec::new();
        piece.resize(MUCH, 7);
        // Until the side that does not read takes no more.
        let filled = tokio::time::timeout(Duration::from_millis(500), stuck.write_all(&piece)).await;
        assert!(filled.is_err(), "buffers hold more than was thought");
        let (mut reading, _) = one.split();
        let passed = async { tokio::join!(writing.write_all(&piece), read_much(&mut reading)).0.unwrap() };
        tokio::time::timeout(PATIENCE, passed).await.expect("what one side writes arrives, whatever it reads");
        // Empties the full direction.
        let mut waste = vec![0; 1 << 16];
        let drained = async { while free.read(&mut waste).await.unwrap() > 0 {} };
        let _ = tokio::time::timeout(Duration::from_millis(500), drained).await;
    }
}

#[tokio::test]
async fn an_origin_that_takes_nothing_is_given_up() {
    let (gateway, mut client, _origin) = switched("idle: 500ms").await;
    let written = tokio::time::timeout(PATIENCE, client.write_all(&vec![7; MUCH])).await;
    assert!(written.expect("an end").is_err());
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!((&record["status"], &record["reason"]), (&101.into(), &"upstream_timeout".into()), "{record}");
}

#[tokio::test]
async fn limits_on_answers_are_not_for_sockets() {
    let (_gateway, mut client, mut origin) = switched("first_byte: 300ms, idle: 300ms, total: 400ms").await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    client.write_all(b"still").await.unwrap();
    let mut seen = [0; 5];
    origin.read_exact(&mut seen).await.unwrap();
    origin.write_all(b"there").await.unwrap();
    client.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"there");
}

#[tokio::test]
async fn sockets_pass_over_tls_on_both_sides_by_http1() {
    let yaml = "
listeners:
  http: { address: '{{http}}' }
  https:
    address: '{{https}}'
    protocols: [http1, http2]
    tls: { certificates: [{ cert: '{{dir}}/site.crt', key: '{{dir}}/site.key' }] }
upstreams: { origin: { targets: [{ address: '{{origin}}' }], tls: { ca: '{{dir}}/ca.crt', sni: origin.example } } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let authority = Authority::new("ca");
    let offers_both = authority.issue(&["origin.example"]).acceptor(&["h2", "http/1.1"], None);
    let origin = Origin::tls(offers_both, |_| Reply::echo_upgrade(AGREED)).await;
    let builder = Gateway::builder(yaml).origin(&origin);
    authority.issue(&["test.example"]).write(builder.directory(), "site");
    std::fs::write(builder.directory().join("ca.crt"), &authority.certificate).unwrap();
    let gateway = builder.start().await;
    let tls = TlsClient::trusting(&authority).alpn(&["http/1.1"]);
    let mut client = Client::tls(gateway.address("https"), &tls, "test.example").await.unwrap();
    client.send(UPGRADE).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 101);
    let large = vec![7; 1 << 16];
    for _ in 0..3 {
        client.send(&large).await.unwrap();
        assert_eq!(client.exactly(large.len()).await.unwrap(), large);
    }
    drop(client);
    assert!(origin.abandoned().await);
}
