//! Headers are set, added and removed on both ways.

use crate::support::*;

#[tokio::test]
async fn request_and_response_headers_are_changed_with_variables() {
    let origin = Origin::start(|_| Reply::with(200, &[("Server", "secret/1.2"), ("X-Powered-By", "x")], "ok")).await;
    let gateway = Gateway::example("headers", &origin).await;
    let call = Call::get("/customers/17/orders")
        .header("Cookie", "a=b")
        .header("X-Tag", "client")
        .header("X-Customer", "spoofed");
    let answer = gateway.call(&call).await;
    let sent = origin.last().await.headers;
    assert_eq!(sent.all("x-customer").collect::<Vec<_>>(), ["17"], "set replaces what a client claims");
    assert_eq!(sent.get("x-client"), Some("127.0.0.1"));
    assert_eq!(sent.all("x-tag").collect::<Vec<_>>(), ["client", "gateway"]);
    assert_eq!(sent.get("cookie"), None);
    assert_eq!(answer.header("server"), None);
    assert_eq!(answer.header("x-request"), answer.header("x-request-id"));
    assert_eq!(answer.header("x-powered-by"), Some("x"), "the route's filter replaces the service's of the same name");
    let other = gateway.get("/other").await;
    assert_eq!(
        (other.header("strict-transport-security"), other.header("x-powered-by")),
        (Some("max-age=31536000"), None)
    );
}

#[tokio::test]
async fn values_from_a_request_cannot_split_a_header() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("headers", &origin).await;
    for customer in ["%0d%0aX-Evil:1", "%0aX-Evil:1", "a%00b", "%E5%98%8A%E5%98%8DX-Evil:1", "a%20b"] {
        gateway.get(&format!("/customers/{customer}/orders")).await;
    }
    assert!(origin.requests().iter().all(|request| !request.headers.has("x-evil")));
    assert_eq!(origin.violations(), Vec::<String>::new());
}
