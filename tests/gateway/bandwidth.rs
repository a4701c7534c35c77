//! Bytes per second: a transfer takes as long as its key's share allows, and others are not affected.

use std::time::{Duration, Instant};

use crate::support::gateway::problems_of;
use crate::support::*;

const MIB: usize = 1 << 20;

/// Answers with the body that the target names in KiB; uploads are answered with nothing.
async fn origin() -> Origin {
    Origin::start(|request| {
        let kib = request.path()[1..].parse::<usize>().unwrap_or(0);
        Reply::with(200, &[], vec![b'x'; kib << 10])
    })
    .await
}

fn yaml(settings: &str) -> String {
    format!(
        "
services: {{ s: {{ filters: [{{ bandwidth: {{ {settings} }} }}],
                  routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
"
    )
}

async fn timed(gateway: &Gateway, call: &Call) -> f64 {
    let mut client = gateway.connect().await;
    let began = Instant::now();
    let answer = client.call(call).await.unwrap();
    assert_eq!(answer.status, 200);
    began.elapsed().as_secs_f64()
}

/// Within 15 % of what it should be.
fn close(seconds: f64, expected: f64) -> bool {
    (seconds / expected - 1.0).abs() < 0.15
}

#[tokio::test]
async fn the_example_slows_both_ways_down_to_their_speed() {
    let origin = origin().await;
    let gateway = Gateway::example("bandwidth", &origin).await;
    // The first tenth of a second's worth goes at once.
    let down = timed(&gateway, &Call::get("/2048")).await;
    assert!(close(down, 1.9), "2 MiB at 1 MiB/s took {down} s");
    let up = timed(&gateway, &Call::post("/0", vec![b'x'; MIB])).await;
    assert!(close(up, 1.9), "1 MiB at 512 KiB/s took {up} s");
    assert_eq!(origin.last().await.body.len(), MIB, "nothing is lost");
}

#[tokio::test]
async fn requests_of_a_key_share_and_other_keys_are_not_affected() {
    let origin = origin().await;
    let gateway = Gateway::builder(&yaml("response: 1MiB/s, by: { header: x-tenant }")).origin(&origin).start().await;
    let call = |target: &str, tenant: &str| Call::get(target).header("X-Tenant", tenant);
    let (shared, other, quick) = ([call("/1024", "a"), call("/1024", "a")], call("/1024", "b"), call("/64", "c"));
    let (one, two, other, quick) = tokio::join!(
        timed(&gateway, &shared[0]),
        timed(&gateway, &shared[1]),
        timed(&gateway, &other),
        timed(&gateway, &quick),
    );
    assert!(close(one.max(two), 1.9), "two of 1 MiB at 1 MiB/s together took {one} and {two} s");
    assert!(one.min(two) > 1.3, "they share: one took {one} s, the other {two} s");
    assert!(close(other, 0.9), "another key took {other} s");
    assert!(quick < 0.3, "a small answer within the burst took {quick} s");
}

#[tokio::test]
async fn what_waits_stays_with_the_origin_and_not_in_memory() {
    let origin = origin().await;
    let gateway = Gateway::builder(&yaml("response: 64KiB/s, by: gateway")).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    // The first request of a process reads in code and fills buffers, which is not what waits.
    assert_eq!(client.get("/1").await.unwrap().status, 200);
    let before = gateway.memory();
    client.send(Call::get("/65536").bytes()).await.unwrap();
    client.head().await.unwrap();
    let began = Instant::now();
    let mut received = 0;
    while began.elapsed() < Duration::from_secs(2) {
        received += client.some().await.unwrap().len();
    }
    assert!(received < MIB, "{received} bytes in two seconds at 64 KiB/s");
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 8 << 20, "64 MiB that wait took {grown} bytes");
    drop(client);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_keep_the_others_waiting() {
    let origin = origin().await;
    let gateway = Gateway::builder(&yaml("response: 1MiB/s, by: gateway")).origin(&origin).start().await;
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        client.send(Call::get("/65536").bytes()).await.unwrap();
        client.head().await.unwrap();
        drop(client);
    }
    let began = Instant::now();
    let quick = timed(&gateway, &Call::get("/512")).await;
    // Each may have a few pieces on the way that it never takes.
    assert!(quick < 2.5, "half a MiB at 1 MiB/s took {quick} s, {:?} in all", began.elapsed());
}

#[test]
fn a_speed_that_cannot_be_meant_is_refused() {
    for (settings, words) in [
        ("by: address", "do nothing"),
        ("response: 1MiB", "size per second"),
        ("response: 0B/s", "nothing would ever come"),
        ("response: 1MB/s", "size per second"),
        ("response: 1MiB/s, by: { network: { v4: 33 } }", "v4"),
        ("response: 1MiB/s, down: 1MiB/s", "down"),
    ] {
        let said = problems_of(&yaml(settings));
        assert!(said.contains(words), "{words} is missing in: {said}");
    }
}
