//! The harness tested on itself: a client that lies or an origin that miscounts would make every other test worthless.

use std::time::Duration;

use super::h2::{H2Client, H2Origin, H2Reply};
use super::tls::{Authority, TlsClient};
use super::*;

#[tokio::test]
async fn origin_records_what_a_client_sent_and_keeps_the_connection() {
    let origin = Origin::named("a").await;
    let mut client = Client::connect(origin.address).await.unwrap();
    for body in ["one", "two"] {
        let answer = client.call(&Call::post("/x?y=1", body)).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str(), answer.header("x-origin")), (200, "a", Some("a")));
    }
    let requests = origin.received(2).await;
    assert_eq!(requests[1].body, b"two");
    assert_eq!((requests[1].connection, requests[1].target.as_str(), requests[1].path()), (0, "/x?y=1", "/x"));
    assert!(requests[0].head.starts_with(b"POST /x?y=1 HTTP/1.1\r\nHost: test.example\r\n"));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn chunked_bodies_and_trailers_are_read_strictly() {
    let origin = Origin::start(|_| Reply::chunked(&[], &["ab", "c"], &[("X-Sum", "3")])).await;
    let mut client = Client::connect(origin.address).await.unwrap();
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: 1\r\n\r\n")
        .await
        .unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.text().as_str(), answer.trailers.get("x-sum")), ("abc", Some("3")));
    let request = origin.last().await;
    assert_eq!((request.body.as_slice(), request.trailers.get("t")), (b"hi".as_slice(), Some("1")));
}

#[tokio::test]
async fn origin_notes_ambiguous_framing_as_a_violation() {
    let origin = Origin::named("a").await;
    for head in ["Content-Length: 1\r\nTransfer-Encoding: chunked", "Content-Length: +1", "X : y", "A: b\n c: d"] {
        let mut client = Client::connect(origin.address).await.unwrap();
        client.send(format!("GET / HTTP/1.1\r\n{head}\r\n\r\n")).await.unwrap();
        assert!(client.closed().await, "{head}");
    }
    assert_eq!((origin.requests().len(), origin.violations().len()), (0, 4));
}

#[tokio::test]
async fn client_notices_cut_and_reset_answers() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    for reply in [Reply::raw(cut).close(), Reply::raw(cut).pause(Duration::from_millis(50)).reset()] {
        let origin = Origin::scripted(vec![reply]).await;
        let mut client = Client::connect(origin.address).await.unwrap();
        assert!(client.get("/").await.is_err(), "an answer cut short must not look complete");
    }
}

#[tokio::test]
async fn fed_answers_arrive_piece_by_piece_and_departure_is_seen() {
    let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let origin = Origin::scripted(vec![reply]).await;
    let mut client = Client::connect(origin.address).await.unwrap();
    client.send(Call::get("/").bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    for piece in ["a", "b"] {
        assert!(feed.send(format!("1\r\n{piece}\r\n")));
        assert_eq!(client.chunk().await.unwrap().unwrap(), piece.as_bytes());
    }
    drop(client);
    assert!(feed.abandoned().await);
    assert!(origin.abandoned().await);
}

#[tokio::test]
async fn reserved_ports_refuse_until_someone_listens_beside_us() {
    let reserved = ports::reserve();
    assert!(Client::connect(reserved.address).await.is_err());
    let origin = Origin::at(reserved.address, |_| Reply::ok("here")).await;
    assert_eq!(Client::connect(origin.address).await.unwrap().get("/").await.unwrap().text(), "here");
}

#[tokio::test]
async fn tls_ends_agree_on_names_and_client_certificates() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let acceptor = ours.issue(&["a.example"]).acceptor(&[], Some(&theirs));
    let origin = Origin::tls(acceptor, |_| Reply::ok("secret")).await;
    let known = TlsClient::with_certificate(&ours, &theirs.issue(&["client.example"]));
    let mut client = Client::tls(origin.address, &known, "a.example").await.unwrap();
    assert_eq!(client.get("/").await.unwrap().text(), "secret");
    let facts = origin.last().await.tls.unwrap();
    assert_eq!((facts.server_name.as_deref(), facts.client_certificate), (Some("a.example"), true));
    assert!(Client::tls(origin.address, &known, "b.example").await.is_err());
}

#[tokio::test]
async fn h2_ends_carry_trailers_and_echo() {
    let origin = H2Origin::start(|parts| match parts.uri.path() {
        "/echo" => H2Reply::Echo,
        _ => H2Reply::grpc(b"hello", "7"),
    })
    .await;
    let mut client = H2Client::connect(origin.address).await.unwrap();
    let answer = client.get("http://a.example/").await.unwrap();
    assert_eq!((answer.text().as_str(), answer.trailer("grpc-status")), ("hello", Some("7")));
    let request = http::Request::post("http://a.example/echo").body(()).unwrap();
    assert_eq!(client.call(request, "ping").await.unwrap().text(), "ping");
    assert_eq!(origin.requests().len(), 2);
}
