//! The host a request names: one meaning, or no service.

use crate::support::*;

const ROUTES: &str = "
services:
  s:
    routes:
      known: { match: { host: known.example, path_prefix: / }, backend: { respond: { status: 200, body: known } } }
      local: { match: { host: '127.0.0.1', path_prefix: / }, backend: { respond: { status: 200, body: local } } }
";

#[tokio::test]
async fn every_spelling_of_a_host_is_one_host() {
    let gateway = Gateway::start(ROUTES).await;
    for (host, body) in [
        ("known.example", "known"),
        ("KNOWN.Example", "known"),
        ("known.example.", "known"),
        ("known.example:80", "known"),
        ("known.example:65535", "known"),
        ("Known.Example.:8080", "known"),
        ("127.0.0.1", "local"),
        ("127.0.0.1:8080", "local"),
    ] {
        let answer = gateway.call(&Call::get("/").host(host)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{host}");
    }
}

#[tokio::test]
async fn unknown_hosts_find_no_service() {
    let gateway = Gateway::start(ROUTES).await;
    for host in
        ["unknown.example", "known.example.evil.example", "evilknown.example", "known", "[::1]", "xn--known-.example"]
    {
        let answer = gateway.call(&Call::get("/").host(host)).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (404, Some("route_not_found")), "{host}");
    }
}

#[tokio::test]
async fn hosts_that_are_none_are_refused() {
    let gateway = Gateway::start(ROUTES).await;
    for host in [
        "",
        " ",
        ".",
        "..",
        "known..example",
        ".known.example",
        "known.example..",
        "user@known.example",
        "known.example:0",
        "known.example:65536",
        "known.example:x",
        "known.example:+80",
        "known.example:80:80",
        "known.example, other.example",
        "known.example other.example",
        "known.example/",
        "known.example?x",
        "known.example#x",
        "known.example\\x",
        "http://known.example",
        "[::1",
        "::1",
        "[::1]x",
        "known%2eexample",
        "knöwn.example",
        "known\tn.example",
        "known.example;",
        "\"known.example\"",
        &format!("{}.example", "x".repeat(300)),
    ] {
        let answer = gateway.call(&Call::get("/").host(host)).await;
        assert_eq!(answer.status, 400, "{host:?}: {}", answer.text());
    }
    assert_eq!(gateway.call(&Call::get("/").host("known.example")).await.status, 200);
}

#[tokio::test]
async fn a_request_names_its_host_exactly_once() {
    let gateway = Gateway::start(ROUTES).await;
    for (head, status) in [
        ("GET / HTTP/1.1\r\nX: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: known.example\r\nHost: known.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: known.example\r\nhost: unknown.example\r\n\r\n", 400),
        ("GET http://known.example/ HTTP/1.1\r\nHost: known.example\r\n\r\n", 200),
        ("GET http://unknown.example/ HTTP/1.1\r\nHost: known.example\r\n\r\n", 400),
        ("GET http://known.example/ HTTP/1.1\r\nHost: unknown.example\r\n\r\n", 400),
        ("GET http://user@known.example/ HTTP/1.1\r\nHost: known.example\r\n\r\n", 400),
        ("GET http:///x HTTP/1.1\r\nHost: known.example\r\n\r\n", 400),
        ("GET ftp://known.example/ HTTP/1.1\r\nHost: known.example\r\n\r\n", 400),
    ] {
        let mut client = gateway.connect().await;
        client.send(head).await.unwrap();
        assert_eq!(client.answer().await.unwrap().status, status, "{head:?}");
    }
    // One host in two spellings: taken for that host or refused, but never for another one.
    let mut client = gateway.connect().await;
    client.send("GET http://KNOWN.example:80/ HTTP/1.1\r\nHost: known.example\r\n\r\n").await.unwrap();
    let answer = client.answer().await.unwrap();
    assert!(
        matches!((answer.status, answer.text().as_str()), (200, "known") | (400, _)),
        "{} {}",
        answer.status,
        answer.text()
    );
}

#[tokio::test]
async fn this_is_no_forward_proxy() {
    let origin = Origin::named("victim").await;
    let gateway = Gateway::start(ROUTES).await;
    for head in [
        format!("CONNECT {} HTTP/1.1\r\nHost: {}\r\n\r\n", origin.address, origin.address),
        format!("GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n", origin.address, origin.address),
    ] {
        let mut client = gateway.connect().await;
        client.send(&head).await.unwrap();
        let answer = client.answer().await.unwrap();
        assert!(answer.status >= 400 || answer.text() == "local", "{head:?}: {}", answer.status);
    }
    assert_eq!(origin.connections(), 0);
}
