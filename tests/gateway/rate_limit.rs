//! So many requests in a time, and not one more.

use std::time::{Duration, Instant};

use crate::support::gateway::key_hash;
use crate::support::*;

/// The key of the examples.
pub const KEY: &str = "hgk_exampleexampleexampleexample01231XI1lm";

fn one_limit(filter: &str) -> String {
    format!(
        "
services: {{ s: {{ filters: [{filter}], routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ respond: {{ body: in }} }} }} }} }} }}
"
    )
}

#[tokio::test]
async fn both_rates_of_the_example_hold_and_the_answer_says_which_was_hit() {
    let origin = Origin::named("a").await;
    let gateway =
        Gateway::builder(&(gateway::example("rate_limit") + "access_log: { to: { file: '{{dir}}/access.log' } }"))
            .origin(&origin)
            .start()
            .await;
    let mut client = gateway.connect().await;
    let call = Call::get("/orders/1").header("X-Api-Key", KEY);
    let first = client.call(&call).await.unwrap();
    assert_eq!(first.status, 200);
    assert_eq!(first.header("ratelimit-policy"), Some("\"orders 10/s\";q=10;w=1, \"orders 20/min\";q=20;w=60"));
    assert_eq!(first.header("ratelimit"), Some("\"orders 10/s\";r=9;t=1, \"orders 20/min\";r=19;t=3"));
    assert_eq!(first.header("x-ratelimit-limit"), None);
    let (mut refused, mut calls) = (None, 1);
    for _ in 0..60 {
        let answer = client.call(&call).await.unwrap();
        calls += 1;
        if answer.status != 200 && answer.json()["limit"] == "orders 20/min" {
            refused = Some(answer);
            break;
        }
        if answer.status != 200 {
            // Ten in a second; the longer rate is reached with the next ten.
            assert_eq!(answer.json()["limit"], "orders 10/s");
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
    }
    let refused = refused.expect("the second rate was hit");
    assert_eq!((refused.status, refused.problem().as_deref()), (429, Some("rate_limited")));
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3).contains(&after), "three seconds for each of twenty in a minute: {after}");
    assert_eq!(refused.json()["retry_after"], after);
    assert!(
        refused.header("ratelimit").unwrap().starts_with("\"orders 20/min\";r=0;t="),
        "{:?}",
        refused.header("ratelimit")
    );
    assert!(refused.keeps_alive());
    let admitted = origin.count();
    assert_eq!(admitted, 20, "a refusal by one rate costs nothing of the other");
    assert!(gateway.metric("headgate_limit_refusals_total", &[("limit", "orders 20/min")]).await >= 1.0);
    let log = gateway.access_log(calls).await;
    assert!(log.iter().any(|line| line["limit"] == "orders 20/min" && line["reason"] == "rate_limited"), "{log:?}");
}

#[tokio::test]
async fn each_address_has_its_own_and_the_triple_is_there_by_option() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("rate_limit", &origin).await;
    for n in 0..8 {
        let answer = gateway.get("/public").await;
        assert_eq!(answer.status, if n < 5 { 200 } else { 429 }, "request {n}");
        assert_eq!(answer.header("x-ratelimit-limit"), Some("5"), "the burst: {:?}", answer.headers);
        let remaining = answer.header("x-ratelimit-remaining").unwrap();
        assert_eq!(remaining, (4u64.saturating_sub(n)).to_string(), "request {n}");
        assert!(answer.header("x-ratelimit-reset").is_some() && answer.header("ratelimit").is_some());
    }
}

#[tokio::test]
async fn callers_are_told_apart_by_what_was_written() {
    let consumers = format!(
        "consumers: {{ a: {{ team: t, credentials: [{{ api_key: {{ hash: '{}' }} }}, {{ api_key: {{ hash: '{}' }} }}] }}, \
         b: {{ team: t, credentials: [{{ api_key: {{ hash: '{}' }} }}] }} }}",
        key_hash("a1"),
        key_hash("a2"),
        key_hash("b1")
    );
    for (by, pairs) in [
        // Two calls: whether the second still passes a limit of one.
        ("consumer", [("a1", "a2", false), ("a1", "b1", true)]),
        ("credential", [("a1", "a2", true), ("a1", "a1", false)]),
        ("team", [("a1", "b1", false), ("a1", "a2", false)]),
        ("{ header: x-api-key }", [("a1", "b1", true), ("a1", "a1", false)]),
        ("route", [("a1", "b1", false), ("a1", "a1", false)]),
    ] {
        for (first, second, passes) in pairs {
            // Credentials are gone when limits look at headers, so the key comes a second time for that.
            let filter = format!("{{ api_key: {{ from: [bearer] }} }}, {{ rate_limit: {{ rate: 1/h, by: {by} }} }}");
            let gateway = Gateway::start(&(one_limit(&filter) + &consumers)).await;
            let call =
                |key: &str| Call::get("/").header("Authorization", &format!("Bearer {key}")).header("X-Api-Key", key);
            assert_eq!(gateway.call(&call(first)).await.status, 200, "{by}: {first}");
            let status = gateway.call(&call(second)).await.status;
            assert_eq!(status == 200, passes, "{by}: {second} after {first} got {status}");
        }
    }
}

#[tokio::test]
async fn of_ipv6_a_network_counts_and_of_a_spoofed_address_nothing() {
    let yaml = "listeners: { http: { address: '{{http}}', trusted_proxies: [127.0.0.1] } }\n".to_owned()
        + &one_limit("{ rate_limit: { rate: 1/h, by: address } }");
    let gateway = Gateway::start(&yaml).await;
    for (client, status) in [
        ("2001:db8::1", 200),
        ("2001:db8::ffff:1", 429),
        ("2001:db8:0:1::1", 200),
        ("10.0.0.1", 200),
        ("10.0.0.2", 200),
        ("::ffff:10.0.0.2", 429),
        // What a client wrote itself stands on the left; the address that the proxy has seen on the right.
        ("1.1.1.1, 10.0.0.1", 429),
    ] {
        let answer = gateway.call(&Call::get("/").header("X-Forwarded-For", client)).await;
        assert_eq!(answer.status, status, "{client}");
    }
}

#[tokio::test]
async fn many_connections_together_get_the_burst_and_the_rate_and_no_more() {
    let gateway = Gateway::start(&one_limit("{ rate_limit: { rate: 200/s, burst: 50, by: route } }")).await;
    let begun = Instant::now();
    let calls = (0..16).map(|_| async {
        let mut client = gateway.connect().await;
        let mut admitted = 0;
        while begun.elapsed() < Duration::from_secs(2) {
            admitted += u64::from(client.get("/").await.unwrap().status == 200);
        }
        admitted
    });
    let admitted: u64 = futures_util::future::join_all(calls).await.into_iter().sum();
    let most = 50 + (begun.elapsed().as_secs_f64() * 200.0) as u64 + 1;
    assert!(admitted <= most, "{admitted} of at most {most}");
    assert!(admitted >= 50 + 2 * 200 * 9 / 10, "{admitted}: the rate is there to be used");
}

#[tokio::test]
async fn a_reload_gives_nobody_a_second_burst_unless_the_rate_is_another() {
    let yaml = |rate: &str| one_limit(&format!("{{ rate_limit: {{ rate: {rate}, by: route }} }}"));
    let mut gateway = Gateway::start(&yaml("2/h")).await;
    assert_eq!(
        [gateway.get("/").await.status, gateway.get("/").await.status, gateway.get("/").await.status],
        [200, 200, 429]
    );
    assert_eq!(gateway.reload(&(yaml("2/h") + "dns: {}\n")).await.status, 200);
    assert_eq!(gateway.get("/").await.status, 429);
    assert_eq!(gateway.reload(&yaml("3/h")).await.status, 200);
    assert_eq!(gateway.get("/").await.status, 200);
}

#[tokio::test]
async fn a_path_written_otherwise_is_the_same_path() {
    let yaml = "
services:
  s:
    routes:
      a: { match: { path: /a/b }, filters: [{ rate_limit: { rate: 1/h, by: route } }], backend: { respond: { body: in } } }
";
    let gateway = Gateway::start(yaml).await;
    assert_eq!(gateway.get("/a/b").await.status, 200);
    for variant in ["/a/b?x", "/a/./b", "/%61/b", "/a/c/../b", "//a/b"] {
        let status = gateway.get(variant).await.status;
        assert!(status == 429 || status == 404 || status == 400, "{variant} got {status}");
    }
}
