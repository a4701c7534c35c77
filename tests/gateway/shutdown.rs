//! SIGTERM: readiness fails first, running requests finish, and the process leaves as soon as nothing is left to do.

use std::time::{Duration, Instant};

use crate::support::h2::{H2Client, collect};
use crate::support::*;

#[tokio::test]
async fn an_idle_gateway_leaves_at_once_and_in_peace() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::before(&origin).await;
    assert_eq!(gateway.get("/").await.status, 200);
    let begun = Instant::now();
    gateway.signal(libc::SIGTERM);
    let status = gateway.exit(PATIENCE).await.expect("an exit");
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn running_requests_finish_and_readiness_fails_meanwhile() {
    let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let origin = Origin::scripted(vec![reply]).await;
    let mut gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/slow").bytes()).await.unwrap();
    client.head().await.unwrap();
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"a");

    gateway.signal(libc::SIGTERM);
    let admin = gateway.address("admin");
    let unready = eventually(PATIENCE, || async {
        match Client::connect(admin).await {
            Ok(mut admin_client) => {
                let call = Call::get("/readyz").host(&admin.to_string());
                admin_client.call(&call).await.is_ok_and(|answer| answer.status == 503)
            }
            Err(_) => false,
        }
    })
    .await;
    assert!(unready, "a load balancer has to see that this instance is leaving");
    assert!(gateway.is_running(), "a request is still running");

    assert!(feed.send("1\r\nb\r\n0\r\n\r\n"));
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"b");
    assert_eq!(client.chunk().await.unwrap(), None);
    let begun = Instant::now();
    assert!(gateway.exit(PATIENCE).await.expect("an exit").success());
    assert!(begun.elapsed() < Duration::from_secs(6), "idle, yet it stayed for {:?}", begun.elapsed());
}

#[tokio::test]
async fn connections_are_told_to_close_while_draining() {
    let (reply, feed) = Reply::fed("");
    let origin = Origin::scripted(vec![reply]).await;
    let mut gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/slow").bytes()).await.unwrap();
    origin.received(1).await;
    gateway.signal(libc::SIGTERM);
    assert!(gateway.logs(": draining").await);
    feed.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    drop(feed);
    let answer = client.answer().await.expect("the request was accepted, so it is answered");
    assert_eq!(answer.text(), "ok");
    assert!(!answer.keeps_alive(), "a client must not send its next request into a closing connection");
    assert!(client.closed().await);
    assert!(gateway.exit(PATIENCE).await.is_some());
}

#[tokio::test]
async fn requests_that_never_end_are_cut_at_the_end_of_the_drain() {
    let origin = Origin::start(|_| Reply::silence()).await;
    let yaml = "server: { drain: { timeout: 1s }, upgrade: { socket: '{{dir}}/run/upgrade.sock', pid_file: '{{dir}}/run/pid' } }\n".to_owned() + crate::support::gateway::EVERYTHING_TO_ORIGIN;
    let mut gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/").bytes()).await.unwrap();
    origin.received(1).await;
    gateway.signal(libc::SIGTERM);
    assert!(gateway.exit(Duration::from_secs(10)).await.is_some(), "the drain has an end");
}

#[tokio::test]
async fn interrupt_ends_it_too() {
    let mut gateway = Gateway::start("services: {}\n").await;
    gateway.signal(libc::SIGINT);
    assert!(gateway.exit(PATIENCE).await.is_some());
}

#[tokio::test]
async fn http2_connections_are_told_to_go_and_their_streams_finish() {
    let (reply, feed) = Reply::fed("");
    let origin = Origin::scripted(vec![reply]).await;
    let yaml = "
listeners: { h2c: { address: '{{h2c}}', protocols: [h2c] } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let mut gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut client = H2Client::connect(gateway.address("h2c")).await.unwrap();
    let request = http::Request::get("http://test.example/slow").body(()).unwrap();
    let (answer, _sending) = client.open(request, true).await.unwrap();
    origin.received(1).await;
    gateway.signal(libc::SIGTERM);
    assert!(gateway.logs(": draining").await);
    feed.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    drop(feed);
    let answer = collect(answer.await.expect("the stream was accepted, so it is answered")).await.unwrap();
    assert_eq!(answer.text(), "ok");
    assert!(client.ended().await.is_ok(), "an orderly end: GOAWAY without error");
    assert!(gateway.exit(PATIENCE).await.is_some());
}
