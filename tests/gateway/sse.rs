//! Event streams and long bodies flow as they come: nothing is held back, nothing is piled up.

use std::time::Duration;

use crate::support::*;

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

fn event(text: &str) -> String {
    let event = format!("data: {text}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_made() {
    let (reply, feed) = Reply::fed(STREAM_HEAD);
    let origin = Origin::scripted(vec![reply]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/events").header("Accept", "text/event-stream").bytes()).await.unwrap();
    let (status, headers) = client.head().await.expect("the head arrives before any event");
    assert_eq!((status, headers.get("content-type")), (200, Some("text/event-stream")));
    for n in 0..20 {
        assert!(feed.send(event(&n.to_string())));
        assert_eq!(client.chunk().await.unwrap().unwrap(), format!("data: {n}\n\n").into_bytes());
    }
    feed.send("0\r\n\r\n");
    assert_eq!(client.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn event_streams_are_never_compressed() {
    let (reply, feed) = Reply::fed(STREAM_HEAD);
    let origin = Origin::scripted(vec![reply]).await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    filters: [{ compression: {} }]
    routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/events").header("Accept-Encoding", "gzip, br, zstd").bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().1.get("content-encoding"), None);
    assert!(feed.send(event("now")));
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: now\n\n");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_stream_at_the_origin() {
    let (reply, feed) = Reply::fed(STREAM_HEAD);
    let origin = Origin::scripted(vec![reply]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/events").bytes()).await.unwrap();
    client.head().await.unwrap();
    drop(client);
    assert!(feed.abandoned().await, "an event stream that nobody hears must not run on");
}

#[tokio::test]
async fn silence_between_events_is_no_timeout_by_default() {
    let (reply, feed) = Reply::fed(STREAM_HEAD);
    let origin = Origin::scripted(vec![reply]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/events").bytes()).await.unwrap();
    client.head().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(feed.send(event("late")));
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: late\n\n");
}

#[tokio::test]
async fn long_downloads_keep_memory_flat() {
    let (reply, feed) = Reply::fed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 256 << 20));
    let origin = Origin::scripted(vec![reply]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/large").bytes()).await.unwrap();
    client.head().await.unwrap();
    let before = gateway.memory();
    let mebibyte = vec![b'x'; 1 << 20];
    for n in 0..256 {
        assert!(feed.send(mebibyte.clone()));
        assert_eq!(client.exactly(1 << 20).await.unwrap().len(), 1 << 20);
        if n % 64 == 0 {
            assert!(gateway.memory() < before + (16 << 20), "{} bytes more after {n} MiB", gateway.memory() - before);
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_origin_down() {
    let body = vec![b'x'; 256 << 20];
    let origin = Origin::start(move |_| Reply::ok(&body)).await;
    let gateway = Gateway::before(&origin).await;
    let before = gateway.memory();
    let mut client = gateway.connect().await;
    client.send(Call::get("/large").bytes()).await.unwrap();
    client.head().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(gateway.memory() < before + (16 << 20), "{} bytes are piled up", gateway.memory() - before);
}

#[tokio::test]
async fn large_uploads_arrive_whole() {
    let origin = Origin::start(|request| Reply::ok(request.body.len().to_string())).await;
    let gateway = Gateway::before(&origin).await;
    let answer = gateway.call(&Call::post("/", vec![b'x'; 32 << 20])).await;
    assert_eq!(answer.text(), (32 << 20).to_string());
}

/// An origin that answers as soon as it has read so many bytes, and keeps none of them.
async fn reading(take: usize) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut buffer, mut taken) = (vec![0; 64 << 10], 0);
                while taken < take {
                    match tcp.read(&mut buffer).await {
                        Ok(n @ 1..) => taken += n,
                        _ => return,
                    }
                }
                let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                tokio::time::sleep(PATIENCE).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn long_uploads_keep_memory_flat() {
    const SIZE: usize = 128 << 20;
    // The head counts too, so it answers a little before the end.
    let origin = reading(SIZE).await;
    let gateway = Gateway::builder(gateway::EVERYTHING_TO_ORIGIN).with("origin", origin).start().await;
    let mut client = gateway.connect().await;
    client.send(format!("POST /large HTTP/1.1\r\nHost: test.example\r\nContent-Length: {SIZE}\r\n\r\n")).await.unwrap();
    let before = gateway.memory();
    let mebibyte = vec![b'x'; 1 << 20];
    for n in 0..SIZE >> 20 {
        client.send(&mebibyte).await.unwrap();
        if n % 32 == 0 {
            assert!(gateway.memory() < before + (16 << 20), "{} bytes more after {n} MiB", gateway.memory() - before);
        }
    }
    assert_eq!(client.answer().await.unwrap().text(), "ok");
}

#[tokio::test]
async fn an_origin_that_does_not_read_slows_the_client_down() {
    // It accepts, in the kernel, and never looks.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let gateway = Gateway::builder(gateway::EVERYTHING_TO_ORIGIN).with("origin", address).start().await;
    let before = gateway.memory();
    let mut client = gateway.connect().await;
    client.patience = std::time::Duration::from_secs(2);
    let head = format!("POST /large HTTP/1.1\r\nHost: test.example\r\nContent-Length: {}\r\n\r\n", 256 << 20);
    let sent = client.send([head.as_bytes(), &vec![b'x'; 256 << 20]].concat()).await;
    assert!(sent.is_err(), "256 MiB were taken that nobody wants");
    assert!(gateway.memory() < before + (16 << 20), "{} bytes are piled up", gateway.memory() - before);
}
