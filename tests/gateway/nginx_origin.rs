//! A real nginx as the origin.

use crate::support::process::Nginx;
use crate::support::*;

async fn before(nginx: &Nginx) -> Gateway {
    Gateway::builder(gateway::EVERYTHING_TO_ORIGIN).with("origin", nginx.address).start().await
}

/// Bytes that tell where they stand.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn connections_to_it_are_kept() {
    let nginx = Nginx::start("location = /connection { return 200 $connection; }").await;
    let gateway = before(&nginx).await;
    let mut client = gateway.connect().await;
    let first = client.get("/connection").await.unwrap();
    assert_eq!(first.status, 200);
    for _ in 0..50 {
        let next = client.get("/connection").await.unwrap();
        assert_eq!(next.text(), first.text(), "the number of nginx's connection");
    }
}

#[tokio::test]
async fn connections_that_it_ends_cost_no_request() {
    let nginx = Nginx::start("keepalive_requests 3; location = / { return 200 ok; }").await;
    let gateway = before(&nginx).await;
    let mut client = gateway.connect().await;
    for n in 0..100 {
        assert_eq!(client.get("/").await.unwrap().text(), "ok", "request {n}");
    }
}

#[tokio::test]
async fn ranges_and_conditions_are_answered_as_by_itself() {
    let nginx = Nginx::start("").await;
    let content = pattern(100_000);
    std::fs::write(nginx.folder.join("file.bin"), &content).unwrap();
    let gateway = before(&nginx).await;
    let whole = gateway.get("/file.bin").await;
    assert_eq!((whole.status, &whole.body), (200, &content));
    let etag = whole.header("etag").expect("nginx sends an ETag").to_owned();

    let mut client = gateway.connect().await;
    let part = client.call(&Call::get("/file.bin").header("Range", "bytes=1000-1999")).await.unwrap();
    assert_eq!((part.status, part.body.as_slice()), (206, &content[1000..2000]));
    assert_eq!(part.header("content-range"), Some("bytes 1000-1999/100000"));
    let parts = client.call(&Call::get("/file.bin").header("Range", "bytes=0-9,-10")).await.unwrap();
    assert!(parts.status == 206 && parts.header("content-type").unwrap().starts_with("multipart/byteranges"));
    let beyond = client.call(&Call::get("/file.bin").header("Range", "bytes=200000-")).await.unwrap();
    assert_eq!(beyond.status, 416);
    let same = client.call(&Call::get("/file.bin").header("If-None-Match", &etag)).await.unwrap();
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, Some(etag.as_str())));
    let head = client.call(&Call::new("HEAD", "/file.bin")).await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("100000")));
    let next = client.get("/file.bin").await.unwrap();
    assert_eq!((next.status, next.body), (200, content), "no answer has left anything behind");
    assert_eq!(client.get("/none").await.unwrap().status, 404);
}

#[tokio::test]
async fn large_files_arrive_whole() {
    let nginx = Nginx::start("").await;
    let content = pattern(64 << 20);
    std::fs::write(nginx.folder.join("large.bin"), &content).unwrap();
    let gateway = before(&nginx).await;
    let (one, two) = tokio::join!(gateway.get("/large.bin"), gateway.get("/large.bin"));
    assert!(one.body == content && two.body == content, "{} and {} bytes", one.body.len(), two.body.len());
}

#[tokio::test]
async fn what_it_compresses_stays_compressed() {
    let nginx = Nginx::start("gzip on; gzip_min_length 1; gzip_types text/plain;").await;
    std::fs::write(nginx.folder.join("text.txt"), "text ".repeat(10_000)).unwrap();
    let gateway = before(&nginx).await;
    let answer = gateway.call(&Call::get("/text.txt").header("Accept-Encoding", "gzip")).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(answer.body.as_slice()), &mut text).unwrap();
    assert_eq!(text, "text ".repeat(10_000));
}

#[tokio::test]
async fn uploads_reach_it_whole() {
    // What nginx passes on to itself, it has read whole before.
    let nginx = Nginx::start(
        "location /upload { proxy_pass http://$server_addr:$server_port/length; proxy_set_header X-Length $content_length; }
         location /length { return 200 $http_x_length; }",
    )
    .await;
    let answer = before(&nginx).await.call(&Call::post("/upload", pattern(8 << 20))).await;
    assert_eq!((answer.status, answer.text()), (200, (8 << 20).to_string()));
}
