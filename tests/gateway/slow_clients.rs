//! Clients that are slow, by fault or by intent, are ended in time and hold nobody up.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::support::tls::Authority;
use crate::support::*;

/// Every deadline half a second, so that 15 seconds of patience tell a deadline from none.
const IMPATIENT: &str = "
listeners:
  http:
    address: '{{http}}'
    timeouts: { header: 500ms, body: 500ms, keep_alive: 500ms, write: 500ms }
    limits: { min_rate: 1KiB }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

async fn impatient(origin: &Origin) -> Gateway {
    Gateway::builder(IMPATIENT).origin(origin).start().await
}

/// Sends one byte at a time with pauses that are each shorter than any timeout; returns when the gateway has closed.
async fn drip(client: &mut Client, bytes: &[u8]) -> Option<Duration> {
    let begun = Instant::now();
    for byte in bytes {
        if client.send([*byte]).await.is_err() {
            return Some(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

#[tokio::test]
async fn connections_without_a_request_are_ended() {
    let origin = Origin::named("a").await;
    let gateway = impatient(&origin).await;
    assert!(gateway.connect().await.closed().await);
}

#[tokio::test]
async fn headers_have_a_deadline_as_a_whole() {
    let origin = Origin::named("a").await;
    let gateway = impatient(&origin).await;
    let mut client = gateway.connect().await;
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(20));
    assert!(drip(&mut client, endless.as_bytes()).await.is_some(), "a byte now and then must not keep a header going");
    assert!(origin.requests().is_empty());
}

#[tokio::test]
async fn headers_of_the_second_request_have_a_deadline_too() {
    let origin = Origin::named("a").await;
    let gateway = impatient(&origin).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(20));
    assert!(drip(&mut client, endless.as_bytes()).await.is_some());
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn idle_connections_are_closed_after_the_keep_alive_time() {
    let origin = Origin::named("a").await;
    let gateway = impatient(&origin).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    let begun = Instant::now();
    assert!(client.closed().await);
    assert!(begun.elapsed() > Duration::from_millis(300), "closed after {:?}", begun.elapsed());
}

#[tokio::test]
async fn bodies_that_stop_coming_are_answered_408() {
    let origin = Origin::named("a").await;
    let gateway = impatient(&origin).await;
    let mut client = gateway.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 100\r\n\r\nonly this").await.unwrap();
    let answer = client.answer().await.expect("an answer before the close");
    assert_eq!((answer.status, answer.problem().as_deref()), (408, Some("request_timeout")));
    assert!(client.closed().await, "what would come next could not be told from the rest of the body");
    assert!(origin.abandoned().await, "the origin is not kept waiting");
}

#[tokio::test]
async fn bodies_that_drip_are_ended() {
    let origin = Origin::named("a").await;
    let gateway = impatient(&origin).await;
    let mut client = gateway.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    assert!(drip(&mut client, &[b'x'; 100]).await.is_some(), "ten bytes a second are below the least rate");
}

#[tokio::test]
async fn clients_that_do_not_read_are_ended() {
    let body = vec![b'x'; 64 << 20];
    let origin = Origin::start(move |_| Reply::ok(&body)).await;
    let gateway = impatient(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/").bytes()).await.unwrap();
    assert!(origin.abandoned().await, "an answer that nobody takes must not hold its origin");
}

#[tokio::test]
async fn honest_clients_do_not_notice_hundreds_of_slow_ones() {
    let origin = Origin::named("a").await;
    let yaml = crate::support::gateway::EVERYTHING_TO_ORIGIN;
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut slow = Vec::new();
    for n in 0..300 {
        let mut client = gateway.connect().await;
        let part = if n % 2 == 0 {
            "GET / HTTP/1.1\r\nHo"
        } else {
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"
        };
        client.send(part).await.unwrap();
        slow.push(client);
    }
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn handshakes_have_a_deadline() {
    let authority = Authority::new("ca");
    let builder = Gateway::builder(
        "
listeners:
  http: { address: '{{http}}' }
  https:
    address: '{{https}}'
    timeouts: { handshake: 500ms }
    tls: { certificates: [{ cert: '{{dir}}/a.crt', key: '{{dir}}/a.key' }] }
services: {}
",
    );
    authority.issue(&["a.example"]).write(builder.directory(), "a");
    let gateway = builder.start().await;
    let silent = TcpStream::connect(gateway.address("https")).await.unwrap();
    assert!(Client::over(silent).closed().await);
    let mut hello = Client::connect(gateway.address("https")).await.unwrap();
    hello.send(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    assert!(hello.closed().await, "half a ClientHello is no handshake");
}

#[tokio::test]
async fn connections_are_capped_per_client_and_free_places_are_reused() {
    let origin = Origin::named("a").await;
    let yaml = "
listeners: { http: { address: '{{http}}', limits: { connections_per_client: 5 } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        held.push(client);
    }
    assert!(gateway.connect().await.closed().await, "the sixth has no place");
    held.pop();
    let again = eventually(PATIENCE, || async { gateway.connect().await.get("/").await.is_ok() }).await;
    assert!(again, "a place that was given back can be taken");
}

#[tokio::test]
async fn idle_connections_cost_little_memory() {
    const CONNECTIONS: u64 = 2000;
    allow_open_files(2 * CONNECTIONS);
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    // What is allocated once is allocated before.
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(kept(&gateway).await);
    }
    let before = gateway.memory();
    for _ in 0..CONNECTIONS {
        open.push(kept(&gateway).await);
    }
    assert!(gateway.metric_becomes("headgate_connections_active", &[], |active| active >= CONNECTIONS as f64).await);
    let each = gateway.memory().saturating_sub(before) / CONNECTIONS;
    assert!(each <= 20 << 10, "{each} bytes for each idle connection");
    for client in open.iter_mut().step_by(97) {
        assert_eq!(client.get("/").await.unwrap().status, 200, "they are all alive");
    }
}

/// A connection that has had an answer and waits for its next request.
async fn kept(gateway: &Gateway) -> Client {
    let mut client = gateway.connect().await;
    assert!(client.get("/").await.unwrap().keeps_alive());
    client
}

/// The gateway raises its own limit; this test has as many ends.
fn allow_open_files(needed: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the struct passed to them.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    assert!(limit.rlim_max > needed, "this test needs {needed} open files; `ulimit -Hn` allows {}", limit.rlim_max);
}

#[tokio::test]
async fn connections_are_capped_in_total_and_free_places_are_reused() {
    let origin = Origin::named("a").await;
    let yaml = "
listeners: { http: { address: '{{http}}', limits: { connections: 5 } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(kept(&gateway).await);
    }
    assert!(gateway.connect().await.closed().await, "the sixth has no place");
    assert!(gateway.metric_becomes("headgate_connections_rejected_total", &[], |rejected| rejected >= 1.0).await);
    assert_eq!(held[0].get("/").await.unwrap().status, 200, "who is in stays in");
    held.pop();
    let again = eventually(PATIENCE, || async { gateway.connect().await.get("/").await.is_ok() }).await;
    assert!(again, "a place that was given back can be taken");
}

#[tokio::test]
async fn connections_end_after_the_configured_number_of_requests() {
    let origin = Origin::named("a").await;
    let yaml = "
listeners: { http: { address: '{{http}}', limits: { requests_per_connection: 3 } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    for n in 1..=3 {
        let answer = client.get("/").await.unwrap();
        assert_eq!((answer.status, answer.keeps_alive()), (200, n < 3), "request {n}: the last one says so");
    }
    assert!(client.closed().await);
}
