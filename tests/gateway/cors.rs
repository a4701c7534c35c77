//! Browsers of the configured origins may call, those of others may not.

use crate::support::*;

const ALLOWED: &str = "https://app.example.com";

fn preflight(origin: &str, method: &str) -> Call {
    Call::new("OPTIONS", "/api/x")
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", "content-type")
}

#[tokio::test]
async fn preflights_are_answered_by_the_gateway() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("cors", &origin).await;
    let answer = gateway.call(&preflight(ALLOWED, "POST")).await;
    assert!(matches!(answer.status, 200 | 204), "{}", answer.status);
    assert_eq!(answer.header("access-control-allow-origin"), Some(ALLOWED));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert!(answer.headers.lists("access-control-allow-methods", "POST"));
    assert!(answer.headers.lists("access-control-allow-headers", "content-type"));
    assert_eq!(answer.header("access-control-max-age"), Some("3600"));
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn answers_name_the_calling_origin_and_vary() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("cors", &origin).await;
    for allowed in [ALLOWED, "https://shop.example.org"] {
        let answer = gateway.call(&Call::get("/api/x").header("Origin", allowed)).await;
        assert_eq!(answer.header("access-control-allow-origin"), Some(allowed));
        assert!(answer.headers.lists("access-control-expose-headers", "x-request-id"));
        assert!(answer.headers.lists("vary", "origin"), "a cache must not give this answer to another origin");
    }
}

#[tokio::test]
async fn other_origins_get_no_permission() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("cors", &origin).await;
    for foreign in [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://evilexample.org",
        "null",
    ] {
        for call in [preflight(foreign, "POST"), Call::get("/api/x").header("Origin", foreign)] {
            let answer = gateway.call(&call).await;
            assert_eq!(answer.header("access-control-allow-origin"), None, "{foreign}");
        }
    }
}

#[tokio::test]
async fn refusals_can_be_read_by_the_page() {
    let origin = Origin::start(|_| Reply::raw("").reset()).await;
    let gateway = Gateway::example("cors", &origin).await;
    let answer = gateway.call(&Call::post("/api/x", "x").header("Origin", ALLOWED)).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (502, Some(ALLOWED)));
}

#[tokio::test]
async fn a_preflight_finds_the_route_of_the_method_that_it_asks_for() {
    let origin = Origin::named("a").await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    routes:
      open:
        match: { path: /p, methods: [POST] }
        filters: [{ cors: { origins: ['https://app.example.com'], methods: [POST] } }]
        backend: { upstream: origin }
      closed: { match: { path: /p, methods: [DELETE] }, backend: { upstream: origin } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let preflight = |method: &str| {
        Call::new("OPTIONS", "/p")
            .header("Origin", "https://app.example.com")
            .header("Access-Control-Request-Method", method)
    };
    let allowed = gateway.call(&preflight("POST")).await;
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example.com"), "{allowed:?}");
    assert_eq!(gateway.call(&preflight("DELETE")).await.header("access-control-allow-origin"), None);
    assert_eq!(origin.connections(), 0);
}
