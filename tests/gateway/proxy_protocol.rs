//! The PROXY protocol: whom a load balancer speaks for, and that nobody else can claim it.

use std::time::Duration;

use crate::support::*;

const ROUTES: &str = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    routes:
      all: { match: { path_prefix: / }, backend: { upstream: origin } }
      restricted:
        match: { path: /restricted }
        filters: [{ ip_restriction: { allow: [192.0.2.0/24, '2001:db8::/32'] } }]
        backend: { upstream: origin }
";

async fn gateway(origin: &Origin, trusted: &str) -> Gateway {
    let listener = format!(
        "listeners: {{ http: {{ address: '{{{{http}}}}', proxy_protocol: true, trusted_proxies: {trusted} }} }}\n"
    );
    Gateway::builder(&(listener + ROUTES)).origin(origin).start().await
}

fn v1(line: &str) -> Vec<u8> {
    format!("PROXY {line}\r\n").into_bytes()
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

fn v2_tcp4(source: [u8; 4]) -> Vec<u8> {
    v2(1, 0x11, &[&source[..], &[10, 0, 0, 1, 0x16, 0x2e, 1, 0xbb]].concat())
}

#[tokio::test]
async fn the_client_named_by_the_proxy_is_the_client() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin, "[127.0.0.0/8]").await;
    let with_extensions = v2(1, 0x11, b"\xc0\x00\x02\x01\x0a\0\0\x01\x16\x2e\x01\xbb\x04\x00\x02ab");
    for (header, client, status) in [
        (v1("TCP4 192.0.2.1 10.0.0.1 5678 443"), "192.0.2.1", 200),
        (v1("TCP4 198.51.100.7 10.0.0.1 5678 443"), "198.51.100.7", 403),
        (v1("TCP6 2001:db8::1 ::1 5678 443"), "2001:db8::1", 200),
        (v2_tcp4([192, 0, 2, 1]), "192.0.2.1", 200),
        (v2_tcp4([198, 51, 100, 7]), "198.51.100.7", 403),
        (with_extensions, "192.0.2.1", 200),
        // The proxy speaks for itself: its health check.
        (v1("UNKNOWN"), "127.0.0.1", 403),
        (v2(0, 0, &[]), "127.0.0.1", 403),
    ] {
        let mut client_end = gateway.connect().await;
        client_end.send([&header[..], &Call::get("/restricted").bytes()].concat()).await.unwrap();
        let answer = client_end.answer().await.unwrap_or_else(|error| panic!("{client}: {error}"));
        assert_eq!(answer.status, status, "{client}");
        // The header is said once, for every request of the connection.
        assert_eq!(client_end.get("/").await.unwrap().status, 200);
        let headers = origin.requests().pop().unwrap().headers;
        let chain = headers.all("x-forwarded-for").collect::<Vec<_>>().join(", ");
        assert!(chain.split(", ").next() == Some(client), "{client}: the origin is told {chain:?}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_without_a_header_or_with_a_broken_one_gets_no_service() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin, "[127.0.0.0/8]").await;
    for header in [
        Vec::new(),
        v1("TCP4 192.0.2.1"),
        v1("TCP4 192.0.2.1 10.0.0.1 5678 443 more"),
        v1("TCP4 not-an-address 10.0.0.1 5678 443"),
        v1(&"x".repeat(200)),
        v2(1, 0x11, &[1, 2, 3]),
        v2(7, 0x11, &[0; 12]),
        v2(1, 0x11, &[0; 5000]),
    ] {
        let mut client = gateway.connect().await;
        let bytes = [&header[..], &Call::get("/").bytes()].concat();
        let (answers, closed) = client.provoke(&bytes, Duration::from_secs(5)).await;
        assert!(closed && answers.iter().all(|answer| answer.status >= 400), "{header:?}: {answers:?}");
    }
    assert_eq!(origin.connections(), 0);
    let mut client = gateway.connect().await;
    client.send([&v2_tcp4([192, 0, 2, 1])[..], &Call::get("/").bytes()].concat()).await.unwrap();
    assert_eq!(client.answer().await.unwrap().status, 200, "others are unharmed");
}

#[tokio::test]
async fn a_header_may_come_in_pieces_but_not_for_ever() {
    let origin = Origin::named("a").await;
    let listener = "listeners: { http: { address: '{{http}}', proxy_protocol: true, trusted_proxies: [127.0.0.1], timeouts: { header: 1s } } }\n";
    let gateway = Gateway::builder(&(listener.to_owned() + ROUTES)).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    for byte in v2_tcp4([192, 0, 2, 1]) {
        client.send([byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.get("/restricted").await.unwrap().status, 200);
    let mut silent = gateway.connect().await;
    silent.send("PROXY TC").await.unwrap();
    assert!(silent.closed().await, "a header that does not come has a deadline");
}

#[tokio::test]
async fn others_than_the_trusted_proxies_cannot_claim_a_client() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin, "[10.0.0.0/8]").await;
    assert_eq!(gateway.get("/restricted").await.status, 403, "they are served as themselves");
    assert_eq!(gateway.get("/").await.status, 200);
    for header in [v1("TCP4 192.0.2.1 10.0.0.1 5678 443"), v2_tcp4([192, 0, 2, 1])] {
        let mut client = gateway.connect().await;
        let bytes = [&header[..], &Call::get("/restricted").bytes()].concat();
        let (answers, _) = client.provoke(&bytes, Duration::from_secs(2)).await;
        assert!(answers.iter().all(|answer| answer.status >= 400), "{answers:?}");
    }
    assert!(origin.requests().iter().all(|request| request.target == "/"), "{:?}", origin.requests());
}
