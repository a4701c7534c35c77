//! Answers are compressed as the client likes best, and only where that is right.

use std::io::Read;

use crate::support::*;

fn text() -> String {
    "all work and no play makes a dull test. ".repeat(500)
}

async fn before_text() -> (Origin, Gateway) {
    let origin = Origin::start(|request| match request.path() {
        "/small" => Reply::with(200, &[("Content-Type", "text/plain")], "small"),
        "/image" => Reply::with(200, &[("Content-Type", "image/png")], text()),
        "/encoded" => Reply::with(200, &[("Content-Type", "text/plain"), ("Content-Encoding", "gzip")], text()),
        "/fixed" => Reply::with(200, &[("Content-Type", "text/plain"), ("Cache-Control", "no-transform")], text()),
        "/tagged" => Reply::with(200, &[("Content-Type", "text/plain"), ("ETag", "\"1\"")], text()),
        _ => Reply::with(200, &[("Content-Type", "text/plain")], text()),
    })
    .await;
    let gateway = Gateway::example("compression", &origin).await;
    (origin, gateway)
}

fn decoded(answer: &Answer) -> String {
    let mut out = String::new();
    let body = answer.body.as_slice();
    match answer.header("content-encoding") {
        None => return answer.text(),
        Some("gzip") => flate2::read::GzDecoder::new(body).read_to_string(&mut out),
        Some("br") => brotli::Decompressor::new(body, 4096).read_to_string(&mut out),
        Some("zstd") => zstd::Decoder::new(body).expect("a zstd stream").read_to_string(&mut out),
        Some(other) => panic!("{other} was not offered"),
    }
    .expect("the body decodes");
    out
}

#[tokio::test]
async fn the_best_common_algorithm_is_chosen() {
    let (_origin, gateway) = before_text().await;
    for (accepted, chosen) in [
        ("gzip", Some("gzip")),
        ("br", Some("br")),
        ("zstd", Some("zstd")),
        ("gzip, br, zstd", Some("zstd")),
        ("gzip;q=1.0, br;q=0.5", Some("gzip")),
        ("br;q=0, gzip", Some("gzip")),
        ("*", Some("zstd")),
        ("identity", None),
        ("gzip;q=0", None),
        ("*;q=0", None),
        ("deflate", None),
    ] {
        let answer = gateway.call(&Call::get("/").header("Accept-Encoding", accepted)).await;
        assert_eq!(answer.header("content-encoding"), chosen, "{accepted}");
        assert_eq!(decoded(&answer), text(), "{accepted}");
        assert!(answer.headers.lists("vary", "accept-encoding"), "{accepted}: {:?}", answer.headers);
        assert!(chosen.is_none() || answer.body.len() < text().len() / 4, "{accepted}: {} bytes", answer.body.len());
    }
    assert_eq!(gateway.get("/").await.header("content-encoding"), None, "who asks for nothing gets it plain");
}

#[tokio::test]
async fn what_should_stay_as_it_is_does() {
    let (_origin, gateway) = before_text().await;
    for path in ["/small", "/image", "/fixed"] {
        let answer = gateway.call(&Call::get(path).header("Accept-Encoding", "gzip")).await;
        assert_eq!(answer.header("content-encoding"), None, "{path}");
    }
    let encoded = gateway.call(&Call::get("/encoded").header("Accept-Encoding", "gzip, br")).await;
    assert_eq!((encoded.header("content-encoding"), encoded.body.len()), (Some("gzip"), text().len()), "never twice");
    let head = gateway.call(&Call::new("HEAD", "/").header("Accept-Encoding", "gzip")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn a_changed_body_has_no_strong_etag() {
    let (_origin, gateway) = before_text().await;
    let answer = gateway.call(&Call::get("/tagged").header("Accept-Encoding", "gzip")).await;
    assert_ne!(answer.header("etag"), Some("\"1\""), "the bytes are not the ones that this tag names");
}
