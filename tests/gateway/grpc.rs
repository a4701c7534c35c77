//! gRPC end to end: HTTP/2 on both sides, trailers included; and gRPC-Web for browsers.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};

use crate::support::h2::{H2Client, H2Origin, H2Reply, collect};
use crate::support::*;

const GRPC: &str = "
listeners:
  http: { address: '{{http}}' }
  h2c: { address: '{{h2c}}', protocols: [h2c] }
upstreams: { grpc: { targets: [{ address: '{{origin}}' }], protocol: h2c } }
services:
  s:
    filters: [{ grpc_web: {} }]
    routes: { all: { match: { path_prefix: / }, backend: { upstream: grpc } } }
";

/// One message in gRPC framing.
fn message(text: &str) -> Vec<u8> {
    [&[0], (text.len() as u32).to_be_bytes().as_slice(), text.as_bytes()].concat()
}

async fn start() -> (H2Origin, Gateway) {
    let origin = H2Origin::start(|parts| match parts.uri.path() {
        "/echo.Echo/Stream" => H2Reply::Echo,
        "/echo.Echo/Missing" => H2Reply::TrailersOnly(vec![
            ("content-type", "application/grpc"),
            ("grpc-status", "12"),
            ("grpc-message", "not implemented"),
        ]),
        "/echo.Echo/Reset" => H2Reply::Reset(::h2::Reason::REFUSED_STREAM),
        _ => H2Reply::grpc(&message("hello"), "0"),
    })
    .await;
    let gateway = Gateway::builder(GRPC).with("origin", origin.address).start().await;
    (origin, gateway)
}

fn request(path: &str) -> Request<()> {
    Request::post(format!("http://grpc.example{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn a_unary_call_keeps_its_trailers() {
    let (origin, gateway) = start().await;
    let mut client = H2Client::connect(gateway.address("h2c")).await.unwrap();
    let answer = client.call(request("/echo.Echo/Unary"), message("hi")).await.unwrap();
    assert_eq!((answer.status, answer.trailer("grpc-status")), (200, Some("0")));
    assert_eq!(answer.body, message("hello"));
    let received = origin.requests().pop().unwrap();
    assert_eq!((received.method.as_str(), received.uri.path()), ("POST", "/echo.Echo/Unary"));
    assert_eq!(received.body, message("hi"));
    assert_eq!(received.headers.get("te"), Some(&HeaderValue::from_static("trailers")), "gRPC servers demand it");
}

#[tokio::test]
async fn errors_in_trailers_only_pass() {
    let (_origin, gateway) = start().await;
    let mut client = H2Client::connect(gateway.address("h2c")).await.unwrap();
    let answer = client.call(request("/echo.Echo/Missing"), message("hi")).await.unwrap();
    let status = answer.trailer("grpc-status").or(answer.header("grpc-status"));
    assert_eq!((answer.status, status), (200, Some("12")));
}

#[tokio::test]
async fn streams_flow_both_ways_at_once() {
    let (_origin, gateway) = start().await;
    let mut client = H2Client::connect(gateway.address("h2c")).await.unwrap();
    let (answer, mut sending) = client.open(request("/echo.Echo/Stream"), false).await.unwrap();
    sending.send_data(Bytes::from(message("0")), false).unwrap();
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("headers before the end of the request").unwrap();
    let (parts, mut body) = answer.into_parts();
    assert_eq!(parts.status, 200);
    for n in 1..10 {
        let echoed =
            tokio::time::timeout(PATIENCE, body.data()).await.expect("each message before the next").unwrap().unwrap();
        body.flow_control().release_capacity(echoed.len()).unwrap();
        assert_eq!(echoed, message(&(n - 1).to_string()));
        sending.send_data(Bytes::from(message(&n.to_string())), false).unwrap();
    }
    sending.send_data(Bytes::new(), true).unwrap();
    let rest = collect(http::Response::new(body)).await.unwrap();
    assert_eq!((rest.body, rest.trailers.get("grpc-status")), (message("9"), Some(&HeaderValue::from_static("0"))));
}

#[tokio::test]
async fn calls_share_one_connection_to_the_origin() {
    let (origin, gateway) = start().await;
    let mut client = H2Client::connect(gateway.address("h2c")).await.unwrap();
    for _ in 0..10 {
        client.call(request("/echo.Echo/Unary"), message("hi")).await.unwrap();
    }
    assert!(origin.requests().iter().all(|request| request.connection == 0));
}

#[tokio::test]
async fn grpc_callers_get_grpc_errors() {
    let gateway = Gateway::start(&GRPC.replace("{{origin}}", "{{nobody}}")).await;
    let mut client = H2Client::connect(gateway.address("h2c")).await.unwrap();
    let answer = client.call(request("/echo.Echo/Unary"), message("hi")).await.unwrap();
    let status = answer.trailer("grpc-status").or(answer.header("grpc-status"));
    assert_eq!(status, Some("14"), "UNAVAILABLE, which gRPC clients understand; got {answer:?}");
}

#[tokio::test]
async fn grpc_web_is_translated() {
    let (origin, gateway) = start().await;
    let call = Call::post("/echo.Echo/Unary", message("hi"))
        .header("Content-Type", "application/grpc-web+proto")
        .header("X-Grpc-Web", "1");
    let answer = gateway.call(&call).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.header("content-type").is_some_and(|kind| kind.starts_with("application/grpc-web")),
        "{:?}",
        answer.headers
    );
    let (first, trailers) = answer.body.split_at(message("hello").len());
    assert_eq!(first, message("hello"));
    assert_eq!(trailers[0], 0x80, "the trailers come as a frame of the body");
    assert!(
        String::from_utf8_lossy(&trailers[5..]).to_lowercase().contains("grpc-status: 0")
            || String::from_utf8_lossy(&trailers[5..]).contains("grpc-status:0")
    );
    let received = origin.requests().pop().unwrap();
    assert_eq!(
        received.headers.get("content-type").map(HeaderValue::as_bytes),
        Some(b"application/grpc+proto".as_slice())
    );
    assert_eq!(received.trailers, HeaderMap::new());
}

#[tokio::test]
async fn pages_of_an_allowed_site_may_call_and_read_how_it_ended() {
    let origin = H2Origin::start(|_| H2Reply::grpc(&message("hello"), "0")).await;
    let gateway = Gateway::builder(&gateway::example("grpc_web")).with("origin", origin.address).start().await;
    let page = "https://app.example.com";
    let asking = Call::new("OPTIONS", "/greeter.Greeter/SayHello")
        .header("Origin", page)
        .header("Access-Control-Request-Method", "POST");
    let allowed = gateway.call(&asking).await;
    assert_eq!(allowed.header("access-control-allow-origin"), Some(page), "{allowed:?}");
    let call = Call::post("/greeter.Greeter/SayHello", message("hi"))
        .header("Origin", page)
        .header("Content-Type", "application/grpc-web+proto");
    let answer = gateway.call(&call).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.headers.lists("access-control-expose-headers", "grpc-status"), "{:?}", answer.headers);
    assert!(answer.body.starts_with(&message("hello")));
}

#[tokio::test]
async fn grpc_web_as_text_is_translated() {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD;
    let (origin, gateway) = start().await;
    let call = Call::post("/echo.Echo/Unary", base64.encode(message("hi")))
        .header("Content-Type", "application/grpc-web-text")
        .header("Accept", "application/grpc-web-text");
    let answer = gateway.call(&call).await;
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("application/grpc-web-text")));
    // Each piece may be padded on its own.
    let text = answer.text();
    let mut body = Vec::new();
    for piece in text.split_inclusive('=').flat_map(|piece| piece.split_inclusive("==")) {
        if piece.trim_matches('=').is_empty() {
            continue;
        }
        let bare = piece.trim_end_matches('=');
        body.extend(base64::engine::general_purpose::STANDARD_NO_PAD.decode(bare).unwrap_or_else(|_| panic!("{text}")));
    }
    assert!(body.starts_with(&message("hello")), "{text}");
    assert_eq!(body[message("hello").len()], 0x80, "then the trailers");
    assert_eq!(origin.requests().pop().unwrap().body, message("hi"));
}
