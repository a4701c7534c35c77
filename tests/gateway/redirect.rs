//! Clients are sent elsewhere, and only where the configuration says.

use crate::support::*;

#[tokio::test]
async fn clients_are_sent_where_the_configuration_says() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("redirect", &origin).await;
    let answer = gateway.get("/docs/start").await;
    assert_eq!((answer.status, answer.header("location")), (302, Some("https://docs.example.com/start")));
    let answer = gateway.call(&Call::get("/a/b?c=d").host("shop.example:8080")).await;
    assert_eq!((answer.status, answer.header("location")), (308, Some("https://shop.example/a/b?c=d")));
}

#[tokio::test]
async fn requests_cannot_write_headers_or_choose_the_host() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("redirect", &origin).await;
    for target in [
        "/docs/a%0d%0aSet-Cookie:x",
        "/docs/%2f%2fevil.example",
        "/docs/@evil.example",
        "/docs/..%2f..",
        "//evil.example/x",
    ] {
        let answer = gateway.get(target).await;
        assert!(!answer.headers.has("set-cookie"), "{target}");
        if let Some(location) = answer.header("location") {
            let ours =
                location.starts_with("https://docs.example.com/") || location.starts_with("https://test.example/");
            assert!(ours, "{target} leads to {location}");
        }
    }
}
