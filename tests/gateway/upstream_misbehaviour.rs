//! Origins that answer garbage, too little, too much or nothing: a clear answer for this client, no harm to the next.

use std::time::Duration;

use crate::support::*;

/// One target, no retries to hide anything, and little patience.
const STRICT: &str = "
upstreams:
  origin:
    targets: [{ address: '{{origin}}' }]
    retry: { attempts: 1 }
    timeouts: { connect: 2s, first_byte: 1s, idle: 1s }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

async fn strict(origin: &Origin) -> Gateway {
    Gateway::builder(STRICT).origin(origin).start().await
}

/// Answers that are no answers: the client has to get a 502 instead.
fn garbage() -> Vec<(&'static str, Reply)> {
    let head = |fields: &str| Reply::raw(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"));
    vec![
        ("nothing", Reply::raw("").close()),
        ("a reset", Reply::raw("").reset()),
        ("half a status line", Reply::raw("HTTP/1.1 20").close()),
        ("half a header", Reply::raw("HTTP/1.1 200 OK\r\nContent-Le").close()),
        ("no HTTP", Reply::raw("SSH-2.0-OpenSSH_9.2\r\n\r\n").close()),
        ("binary", Reply::raw([0u8, 1, 2, 255, 254, 13, 10, 13, 10]).close()),
        ("HTML without a head", Reply::raw("<html>hello</html>\r\n\r\n").close()),
        ("a status of two digits", Reply::raw("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n").close()),
        ("a status of letters", Reply::raw("HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n").close()),
        ("two lengths", head("Content-Length: 1\r\nContent-Length: 2").then("xx").close()),
        ("a length of letters", head("Content-Length: abc").then("xx").close()),
        ("a negative length", head("Content-Length: -1").close()),
        ("a length beyond 64 bits", head("Content-Length: 99999999999999999999").close()),
        ("an unknown coding", head("Transfer-Encoding: xchunked").then("0\r\n\r\n").close()),
        ("a header without a colon", head("Content-Length: 0\r\nno colon here").close()),
        ("a NUL in a header", head("Content-Length: 0\r\nX: a\0b").close()),
        ("a bare CR in a header", head("Content-Length: 0\r\nX: a\rSet-Cookie: b").close()),
        ("an endless header", head(&format!("X: {}", "x".repeat(4 << 20))).close()),
        ("too many headers", head(&"X: y\r\n".repeat(5000)).close()),
        (
            "an upgrade that nobody asked for",
            Reply::raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n").close(),
        ),
        ("endless interim answers", Reply::raw("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100_000)).close()),
    ]
}

#[tokio::test]
async fn an_answer_with_a_length_and_chunks_is_read_by_its_chunks_alone() {
    // RFC 9112, section 6.3: the chunks win. The length must not be passed on, nor what follows be taken for an answer.
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    let origin = Origin::scripted(vec![Reply::raw(both)]).await;
    let gateway = strict(&origin).await;
    let mut client = gateway.connect().await;
    let answer = client.get("/").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert!(!answer.headers.has("content-length"), "{answer:?}");
    assert_eq!(client.get("/next").await.unwrap().text(), "after the script");
}

#[tokio::test]
async fn garbage_is_answered_502() {
    for (name, reply) in garbage() {
        let origin = Origin::scripted(vec![reply]).await;
        let gateway = strict(&origin).await;
        let answer = gateway.connect().await.get("/").await;
        let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer.status, 502, "{name}: {:?}", answer.problem());
        assert!(answer.problem().is_some(), "{name}");
        assert_eq!(gateway.get("/next").await.text(), "after the script", "{name}");
    }
}

#[tokio::test]
async fn answers_cut_midway_never_look_complete() {
    let with = |fields: &str, body: &str| Reply::raw(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}"));
    for (name, reply) in [
        ("a length too long", with("Content-Length: 100", "only this").close()),
        ("a reset midway", with("Content-Length: 100", "only this").pause(Duration::from_millis(50)).reset()),
        ("no last chunk", with("Transfer-Encoding: chunked", "5\r\nhello\r\n").close()),
        ("a chunk cut", with("Transfer-Encoding: chunked", "5\r\nhel").close()),
        ("a chunk size of letters", with("Transfer-Encoding: chunked", "5\r\nhello\r\nxyz\r\n").close()),
        ("a chunk longer than its size", with("Transfer-Encoding: chunked", "5\r\nhello!!\r\n0\r\n\r\n").close()),
        ("a stall", with("Content-Length: 100", "only this").hold()),
        ("a stall between chunks", with("Transfer-Encoding: chunked", "5\r\nhello\r\n").hold()),
    ] {
        let origin = Origin::scripted(vec![reply]).await;
        let gateway = strict(&origin).await;
        let answer = gateway.connect().await.get("/").await;
        let looks_complete = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        assert!(!looks_complete, "{name}: the client cannot tell that this is not all: {answer:?}");
        assert_eq!(gateway.get("/next").await.text(), "after the script", "{name}");
    }
}

/// A second answer behind the first one, waiting for a request of somebody else.
const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

#[tokio::test]
async fn surplus_bytes_never_answer_the_next_request() {
    let after = |head: &str| Reply::raw(format!("{head}{POISON}"));
    for (name, reply) in [
        ("after a length", after("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")),
        ("after no length", after("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
        ("after the last chunk", after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")),
        ("after a 204", after("HTTP/1.1 204 No Content\r\n\r\n")),
        ("after a 304", after("HTTP/1.1 304 Not Modified\r\n\r\n")),
        ("a 204 with a body", Reply::raw("HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison")),
        ("a 304 with a body", Reply::raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison")),
        ("some bytes later", Reply::ok("ok").pause(Duration::from_millis(100)).then(POISON)),
    ] {
        let origin = Origin::scripted(vec![reply]).await;
        let gateway = strict(&origin).await;
        let mut client = gateway.connect().await;
        let first = client.get("/").await;
        assert!(!first.is_ok_and(|answer| answer.text().contains("poison")), "{name}");
        assert!(origin.abandoned().await, "{name}: the connection is of no use any more");
        for _ in 0..5 {
            let next = gateway.get("/next").await;
            assert_eq!(next.text(), "after the script", "{name}: the pool is poisoned");
        }
    }
}

#[tokio::test]
async fn an_answer_to_head_with_a_body_does_not_poison_the_pool() {
    let origin =
        Origin::scripted(vec![Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n").then("poison")]).await;
    let gateway = strict(&origin).await;
    assert_eq!(gateway.call(&Call::new("HEAD", "/")).await.status, 200);
    for _ in 0..5 {
        assert_eq!(gateway.get("/next").await.text(), "after the script");
    }
}

#[tokio::test]
async fn silence_is_answered_504() {
    let origin = Origin::scripted(vec![Reply::silence()]).await;
    let gateway = strict(&origin).await;
    let answer = gateway.get("/").await;
    assert_eq!((answer.status, answer.problem().as_deref()), (504, Some("upstream_timeout")));
    assert_eq!(gateway.get("/next").await.status, 200);
}

#[tokio::test]
async fn nobody_listening_is_answered_502() {
    let yaml = STRICT.replace("{{origin}}", "{{nobody}}");
    let answer = Gateway::start(&yaml).await.get("/").await;
    assert_eq!((answer.status, answer.problem().as_deref()), (502, Some("upstream_connect_failed")));
}

#[tokio::test]
async fn names_that_do_not_resolve_are_answered_503_and_harm_nobody() {
    let origin = Origin::named("a").await;
    let yaml = "
upstreams:
  lost: { targets: [{ address: 'no-such-host.invalid:80' }] }
  origin: { targets: [{ address: '{{origin}}' }] }
services:
  s:
    routes:
      lost: { match: { path_prefix: /lost }, backend: { upstream: lost } }
      found: { match: { path_prefix: / }, backend: { upstream: origin } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    for _ in 0..5 {
        let begun = std::time::Instant::now();
        let answer = gateway.get("/lost").await;
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("no_healthy_target")));
        assert!(begun.elapsed() < Duration::from_secs(2), "no request waits for the resolver");
        assert_eq!(gateway.get("/").await.status, 200);
    }
    assert!(gateway.logs("no-such-host.invalid").await, "the log names it");
}

#[tokio::test]
async fn interim_answers_do_not_replace_the_final_one() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let origin =
        Origin::scripted(vec![Reply::raw(interim).then("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]).await;
    assert_eq!(strict(&origin).await.get("/").await.text(), "ok");
}

#[tokio::test]
async fn an_early_answer_to_an_unfinished_upload_reaches_the_client() {
    let origin = Origin::start(|_| Reply::ok("unused")).await;
    // Written by hand: this one answers before it has read the body, which our scripted origin never does.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = wire::Wire::new(stream);
                let _ = wire.head().await;
                let _ = wire.write(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await;
                while wire.some().await.is_ok_and(|bytes| !bytes.is_empty()) {}
            });
        }
    });
    let gateway = Gateway::builder(STRICT).with("origin", address).start().await;
    let mut client = gateway.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 1000000\r\n\r\nbeginning").await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    drop(origin);
}

#[tokio::test]
async fn connection_of_an_origin_that_closes_when_idle_is_not_used_again() {
    let origin = Origin::scripted(vec![Reply::ok("one").close(), Reply::ok("two").close()]).await;
    let gateway = strict(&origin).await;
    for expected in ["one", "two", "after the script"] {
        assert_eq!(gateway.get("/").await.text(), expected);
    }
}

/// A target whose machine does not answer: its queue of new connections is full, and more are silently dropped.
struct Unreachable {
    address: std::net::SocketAddr,
    _queue: (tokio::net::TcpListener, Vec<tokio::net::TcpStream>),
}

impl Unreachable {
    async fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        let connect = || tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address));
        while let Ok(Ok(stream)) = connect().await {
            waiting.push(stream);
        }
        Unreachable { address, _queue: (listener, waiting) }
    }
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_is_answered_504_in_time() {
    let lost = Unreachable::new().await;
    let yaml = STRICT.replace("connect: 2s", "connect: 400ms");
    let gateway = Gateway::builder(&yaml).with("origin", lost.address).start().await;
    let begun = std::time::Instant::now();
    let answer = gateway.get("/").await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!((300..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_costs_a_moment_where_there_is_another() {
    let lost = Unreachable::new().await;
    let good = Origin::named("good").await;
    let yaml = STRICT
        .replace("connect: 2s", "connect: 300ms")
        .replace("attempts: 1", "attempts: 2")
        .replace("targets: [", "targets: [{ address: '{{lost}}' }, ");
    let gateway = Gateway::builder(&yaml).origin(&good).with("lost", lost.address).start().await;
    for n in 0..4 {
        assert_eq!(gateway.call(&Call::post(&format!("/{n}"), "once")).await.text(), "good");
    }
    assert_eq!(good.count(), 4);
}

#[tokio::test]
async fn the_total_time_bounds_all_attempts_together() {
    let slow = || Origin::start(|_| Reply::ok("late").after(Duration::from_secs(3)));
    let (one, two) = (slow().await, slow().await);
    let yaml = STRICT
        .replace("idle: 1s", "idle: 1s, total: 700ms")
        .replace("attempts: 1", "attempts: 5, on: [timeout]")
        .replace("first_byte: 1s", "first_byte: 300ms")
        .replace("targets: [", "targets: [{ address: '{{two}}' }, ");
    let gateway = Gateway::builder(&yaml).origin(&one).with("two", two.address).start().await;
    let begun = std::time::Instant::now();
    assert_eq!(gateway.get("/").await.status, 504);
    assert!((600..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert!((2..=3).contains(&(one.count() + two.count())), "{} attempts in 700 ms", one.count() + two.count());
}

#[tokio::test]
async fn the_total_time_cuts_an_answer_that_drips() {
    let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let origin = Origin::scripted(vec![reply]).await;
    let yaml = STRICT.replace("idle: 1s", "idle: 1s, total: 1s");
    let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/").bytes()).await.unwrap();
    client.head().await.unwrap();
    let begun = std::time::Instant::now();
    let dripping = tokio::spawn(async move {
        while feed.send("1\r\na\r\n") && begun.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    while let Ok(chunk) = client.chunk().await {
        assert_ne!(chunk, None, "an answer that was cut must not look complete");
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    dripping.await.unwrap();
}
