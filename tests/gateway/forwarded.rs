//! What the origin is told about the client, and what the client cannot make it believe.

use crate::support::*;

/// Believes the proxies that stand on this machine.
const BEHIND_PROXY: &str = "
listeners: { http: { address: '{{http}}', trusted_proxies: [127.0.0.0/8, 10.0.0.0/8] } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    routes:
      all: { match: { path_prefix: / }, backend: { upstream: origin } }
      restricted:
        match: { path: /restricted }
        filters: [{ ip_restriction: { allow: [192.0.2.0/24] } }]
        backend: { upstream: origin }
";

#[tokio::test]
async fn the_origin_learns_who_asked_and_for_what() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    gateway.call(&Call::get("/").host("shop.example:8080")).await;
    let headers = origin.last().await.headers;
    assert_eq!(headers.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(headers.get("x-forwarded-proto"), Some("http"));
    assert_eq!(headers.get("x-forwarded-host"), Some("shop.example:8080"));
    assert!(headers.has("x-request-id"));
}

#[tokio::test]
async fn claims_of_untrusted_clients_are_overwritten() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let spoofed = [
        vec![("X-Forwarded-For", "6.6.6.6")],
        vec![("x-forwarded-for", "6.6.6.6"), ("X-FORWARDED-FOR", "6.6.6.7")],
        vec![("X-Forwarded-For", "127.0.0.1, 6.6.6.6")],
        vec![("X_Forwarded_For", "6.6.6.6")],
        vec![("X-Forwarded_For", "6.6.6.6")],
        vec![("X-Forwarded-Host", "6.6.6.6")],
        vec![("X-Forwarded-Proto", "6.6.6.6")],
        vec![("X-Forwarded-Port", "6.6.6.6")],
        vec![("X-Forwarded-Prefix", "6.6.6.6")],
        vec![("X-Real-IP", "6.6.6.6")],
        vec![("X_Real_Ip", "6.6.6.6")],
        vec![("Forwarded", "for=6.6.6.6")],
        vec![("True-Client-IP", "6.6.6.6")],
        vec![("X-Forwarded-For", "6.6.6.6"), ("Connection", "X-Forwarded-For")],
        vec![("X-Real-IP", "6.6.6.6"), ("Connection", "close, X-Real-IP")],
    ];
    for fields in &spoofed {
        let call = fields.iter().fold(Call::get("/"), |call, (name, value)| call.header(name, value));
        let before = origin.count();
        let status = gateway.call(&call).await.status;
        // Nominating a header of the gateway may be refused instead.
        if status == 400 && fields.iter().any(|(name, _)| *name == "Connection") {
            assert_eq!(origin.count(), before, "{fields:?}: refused, and sent on all the same");
            continue;
        }
        assert_eq!(status, 200, "{fields:?}");
        let request = origin.requests().pop().unwrap();
        assert_eq!(request.headers.all("x-forwarded-for").collect::<Vec<_>>(), ["127.0.0.1"], "{fields:?}");
        let believed = request.headers.0.iter().find(|(_, value)| value.contains("6.6.6"));
        assert_eq!(believed, None, "{fields:?} reached the origin");
    }
}

#[tokio::test]
async fn connection_cannot_nominate_headers_of_the_gateway_away() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let nominated = "X-Forwarded-For, X-Request-Id, X-Forwarded-Proto, Host";
    let answer = gateway.call(&Call::get("/").header("Connection", nominated)).await;
    match answer.status {
        400 => assert_eq!(origin.count(), 0, "refused, and sent on all the same"),
        200 => {
            let headers = origin.last().await.headers;
            for name in ["x-forwarded-for", "x-request-id", "x-forwarded-proto", "host"] {
                assert!(headers.has(name), "{name} is missing in {headers:?}");
            }
        }
        other => panic!("answered {other}"),
    }
    // Each alone too: a refusal of the host must not be what protects the others.
    for name in ["X-Forwarded-For", "X-Request-Id", "X-Forwarded-Proto"] {
        let before = origin.count();
        let answer = gateway.call(&Call::get("/").header("Connection", name)).await;
        match answer.status {
            400 => assert_eq!(origin.count(), before, "{name}"),
            200 => assert!(origin.requests().pop().unwrap().headers.has(name), "{name} is missing"),
            other => panic!("{name}: answered {other}"),
        }
    }
}

#[tokio::test]
async fn headers_of_one_connection_are_not_forwarded() {
    let origin = Origin::start(|_| {
        Reply::with(
            200,
            &[("Connection", "X-Back"), ("X-Back", "1"), ("Keep-Alive", "timeout=5"), ("Proxy-Authenticate", "x")],
            "",
        )
    })
    .await;
    let gateway = Gateway::before(&origin).await;
    let call = Call::get("/")
        .header("Connection", "X-Hop, keep-alive")
        .header("X-Hop", "1")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("Proxy-Authorization", "secret")
        .header("TE", "trailers, deflate")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAMAAABkAAQAAP__");
    let answer = gateway.call(&call).await;
    let sent = origin.last().await.headers;
    for name in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "http2-settings"] {
        assert!(!sent.has(name), "{name} was forwarded: {sent:?}");
    }
    assert!(!sent.lists("te", "deflate"));
    for name in ["x-back", "keep-alive", "proxy-authenticate"] {
        assert!(!answer.headers.has(name), "{name} came back: {:?}", answer.headers);
    }
}

#[tokio::test]
async fn forwarding_chains_are_walked_from_the_right_through_trusted_proxies() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(BEHIND_PROXY).origin(&origin).start().await;
    for (chain, status) in [
        ("192.0.2.1", 200),
        ("6.6.6.6, 192.0.2.1", 200),
        ("192.0.2.1, 10.0.0.1", 200),
        ("192.0.2.1, 10.0.0.2, 10.0.0.1", 200),
        ("192.0.2.1, 6.6.6.6", 403),
        ("192.0.2.1, 6.6.6.6, 10.0.0.1", 403),
        ("192.0.2.1, unknown", 403),
        ("6.6.6.6", 403),
        ("", 403),
    ] {
        let answer = gateway.call(&Call::get("/restricted").header("X-Forwarded-For", chain)).await;
        assert_eq!(answer.status, status, "{chain:?}");
    }
    assert_eq!(gateway.get("/restricted").await.status, 403, "the proxy itself is not in the allowed network");
}

#[tokio::test]
async fn trusted_proxies_extend_the_chain_instead_of_losing_it() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(BEHIND_PROXY).origin(&origin).start().await;
    let call = Call::get("/").header("X-Forwarded-For", "192.0.2.1").header("X-Forwarded-Proto", "https");
    gateway.call(&call).await;
    let headers = origin.last().await.headers;
    let chain = headers.all("x-forwarded-for").collect::<Vec<_>>().join(", ");
    assert!(chain.starts_with("192.0.2.1"), "{chain}");
    assert_eq!(headers.get("x-forwarded-proto"), Some("https"), "the first proxy knows how the client came");
}
