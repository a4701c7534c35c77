//! Answers that the gateway makes itself: their form, what they tell, and that they harm no connection.

use crate::support::*;

const ROUTES: &str = "
upstreams:
  origin: { targets: [{ address: '{{origin}}' }] }
  nobody: { targets: [{ address: '{{nobody}}' }] }
  away: { targets: [{ address: '{{nobody}}' }], health: { active: { tcp: {}, interval: 100ms } } }
services:
  s:
    routes:
      ok: { match: { path: /ok }, backend: { upstream: origin } }
      down: { match: { path: /down }, backend: { upstream: nobody } }
      two: { match: { path: /two, methods: [GET, DELETE] }, backend: { upstream: origin } }
      private:
        match: { path: /private }
        filters: [{ ip_restriction: { deny: [127.0.0.0/8] } }]
        backend: { upstream: origin }
      small:
        match: { path: /small }
        filters: [{ body_limit: { size: 1KiB } }]
        backend: { upstream: origin }
      unknown: { match: { path: /unknown }, filters: [{ fault: { abort: { status: 401 } } }], backend: { upstream: origin } }
      busy: { match: { path: /busy }, filters: [{ fault: { abort: { status: 429 } } }], backend: { upstream: origin } }
      away: { match: { path: /away }, backend: { upstream: away } }
";

async fn gateway(origin: &Origin) -> Gateway {
    Gateway::builder(ROUTES).origin(origin).start().await
}

#[tokio::test]
async fn errors_are_problem_documents_with_the_request_id_and_proxy_status() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    for (target, status, reason) in
        [("/none", 404, "route_not_found"), ("/private", 403, "forbidden"), ("/down", 502, "upstream_connect_failed")]
    {
        let answer = gateway.get(target).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (status, Some(reason)), "{target}");
        let document = answer.json();
        assert_eq!(document["status"], status);
        assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()), "{document}");
        assert_eq!(document["request_id"].as_str(), answer.header("x-request-id"), "{document}");
        let proxy_status = answer.header("proxy-status").unwrap_or_default();
        assert!(proxy_status.contains("error="), "{target}: Proxy-Status is {proxy_status:?}");
    }
}

#[tokio::test]
async fn answers_of_an_origin_carry_no_proxy_status_of_ours_even_if_they_are_errors() {
    let origin = Origin::start(|_| Reply::with(503, &[], "busy")).await;
    let answer = gateway(&origin).await.get("/ok").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "busy"));
    assert_eq!(answer.header("proxy-status"), None);
}

#[tokio::test]
async fn refusals_keep_the_connection_for_the_next_request() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    assert!(eventually(PATIENCE, || async { gateway.get("/away").await.status == 503 }).await, "no target is healthy");
    let mut client = gateway.connect().await;
    for (call, status) in [
        (Call::get("/none"), 404),
        (Call::post("/none", vec![b'x'; 10_000]), 404),
        (Call::get("/private"), 403),
        (Call::post("/private", "some body"), 403),
        (Call::new("PATCH", "/two"), 405),
        (Call::post("/two", vec![b'x'; 10_000]), 405),
        (Call::post("/small", vec![b'x'; 2000]), 413),
        (Call::get("/unknown"), 401),
        (Call::get("/busy"), 429),
        (Call::get("/away"), 503),
    ] {
        let answer = client.call(&call).await.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        assert_eq!(answer.status, status, "{call:?}");
        assert!(answer.keeps_alive(), "a {status} should keep the connection: {:?}", answer.headers);
        let next = client.get("/ok").await.unwrap_or_else(|error| panic!("after the {status} of {call:?}: {error}"));
        assert_eq!(next.status, 200, "after the {status} of {call:?}");
    }
    assert!(origin.requests().iter().all(|request| request.target == "/ok"), "{:#?}", origin.requests());
}

#[tokio::test]
async fn method_not_allowed_lists_the_allowed_ones() {
    let origin = Origin::named("a").await;
    let answer = gateway(&origin).await.call(&Call::new("PATCH", "/two")).await;
    assert_eq!((answer.status, answer.problem().as_deref()), (405, Some("method_not_allowed")));
    assert!(answer.headers.lists("allow", "GET") && answer.headers.lists("allow", "DELETE"), "{:?}", answer.headers);
    assert!(!answer.headers.lists("allow", "PATCH"));
}

#[tokio::test]
async fn body_limit_counts_chunked_bodies_too() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let mut client = gateway.connect().await;
    let head = "POST /small HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    client.send(format!("{head}{chunk}{chunk}0\r\n\r\n")).await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.problem().as_deref()), (413, Some("body_too_large")));
    assert!(origin.requests().is_empty(), "the origin must not take a body that was refused for a whole one");
}

#[tokio::test]
async fn a_body_at_the_limit_passes() {
    let origin = Origin::named("a").await;
    let answer = gateway(&origin).await.call(&Call::post("/small", vec![b'x'; 1024])).await;
    assert_eq!((answer.status, origin.last().await.body.len()), (200, 1024));
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_refused_before_the_body_is_sent() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let mut client = gateway.connect().await;
    client.send("POST /small HTTP/1.1\r\nHost: test.example\r\nContent-Length: 99999999999\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.unwrap().status, 413);
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn expectations_are_answered_before_the_body_is_asked_for() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let head = |target| {
        format!("POST {target} HTTP/1.1\r\nHost: test.example\r\nContent-Length: 2000\r\nExpect: 100-continue\r\n\r\n")
    };
    let mut client = gateway.connect().await;
    client.send(head("/small")).await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!(
        (answer.status, answer.interim.as_slice()),
        (413, [].as_slice()),
        "no 100 for a body that is not wanted"
    );
}

#[tokio::test]
async fn valid_request_ids_are_kept_and_others_replaced() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let long = "x".repeat(500);
    for (sent, kept) in [("abc-123", true), ("a b", false), ("<script>", false), (long.as_str(), false)] {
        let answer = gateway.call(&Call::get("/ok").header("X-Request-Id", sent)).await;
        let id = answer.header("x-request-id").expect("every answer has an X-Request-Id").to_owned();
        assert_eq!(id == sent, kept, "sent {sent:?}, answered {id:?}");
        let request = origin.requests().pop().unwrap();
        assert_eq!(
            request.headers.get("x-request-id"),
            Some(id.as_str()),
            "the origin gets the id that the client gets"
        );
    }
    assert_ne!(gateway.get("/ok").await.header("x-request-id"), gateway.get("/ok").await.header("x-request-id"));
}

#[tokio::test]
async fn nothing_internal_leaks() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let nobody = gateway.address("nobody");
    for target in ["/down", "/none", "/private", "/%00"] {
        let answer = gateway.get(target).await;
        let everything = format!("{:?} {}", answer.headers, answer.text()).to_lowercase();
        for secret in [nobody.port().to_string().as_str(), "127.0.0.1", "pingora", "nobody", ".rs", "panicked"] {
            assert!(!everything.contains(secret), "{target} tells {secret:?}: {everything}");
        }
    }
}

#[tokio::test]
async fn errors_to_head_have_no_body() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.call(&Call::new("HEAD", "/none")).await.unwrap().status, 404);
    assert_eq!(client.get("/ok").await.unwrap().text(), "a", "a body after HEAD would be read as the next answer");
}

#[tokio::test]
async fn too_long_targets_and_too_many_headers_are_refused() {
    let origin = Origin::named("a").await;
    let yaml =
        "listeners: { http: { address: '{{http}}', limits: { uri: 1KiB, header_size: 8KiB, header_count: 20 } } }"
            .to_owned()
            + ROUTES;
    let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    let long_target = Call::get(&format!("/ok?{}", "x".repeat(2000)));
    let mut many = Call::get("/ok");
    for n in 0..30 {
        many = many.header(&format!("X-{n}"), "x");
    }
    let long_header = Call::get("/ok").header("X-Long", &"x".repeat(20_000));
    for (call, status, reason) in
        [(long_target, 414, "uri_too_long"), (many, 431, "headers_too_large"), (long_header, 431, "headers_too_large")]
    {
        let answer = gateway.call(&call).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (status, Some(reason)));
    }
    assert!(origin.requests().is_empty());
    assert_eq!(gateway.get("/ok").await.status, 200);
}
