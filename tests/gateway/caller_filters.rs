//! Filters that stand on plans and consumers.

use crate::rate_limit::KEY;
use crate::support::*;

fn with_key(call: Call) -> Call {
    call.header("X-Api-Key", KEY)
}

#[tokio::test]
async fn the_filters_of_a_plan_replace_those_of_the_service_for_its_subscribers_alone() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("caller_filters", &origin).await;
    let call = with_key(Call::get("/"));
    for n in 1..=4 {
        let answer = gateway.call(&call).await;
        assert_eq!(
            answer.status,
            if n <= 3 { 200 } else { 429 },
            "request {n}: three in a minute, not the service's ten"
        );
        assert_eq!(answer.header("x-plan"), Some("free"), "refusals pass the response side too");
        assert_eq!(answer.header("x-service"), None, "the whole filter is replaced, not single settings");
        if n > 3 {
            assert_eq!(answer.json()["limit"], "plans/free/rate_limit", "{}", answer.json());
        }
    }
    assert_eq!(origin.last().await.headers.get("x-plan"), Some("free"), "the request side runs");
    for n in 1..=11 {
        let answer = gateway.get("/").await;
        assert_eq!(answer.status, if n <= 10 { 200 } else { 429 }, "guests have the service's own limit: request {n}");
        assert_eq!((answer.header("x-plan"), answer.header("x-service")), (Some("any"), Some("orders")));
    }
}

#[tokio::test]
async fn the_filters_of_a_consumer_hold_for_it_alone_and_change_with_a_reload() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::example("caller_filters", &origin).await;
    let post = Call::post("/", "x");
    let answer = gateway.call(&post).await;
    assert_eq!((answer.status, answer.problem().as_deref()), (403, Some("forbidden")));
    assert_eq!(gateway.call(&with_key(post.clone())).await.status, 200, "another consumer may");
    assert_eq!(origin.count(), 1);
    // A consumer's own goes before its plan's.
    let own = gateway::example("caller_filters").replace(
        "    subscriptions: { orders: free }",
        "    subscriptions: { orders: free }\n    filters: [{ headers: { response: { set: { X-Plan: mine } } } }]",
    );
    assert_eq!(gateway.reload(&own).await.status, 200);
    let answer = gateway.call(&with_key(Call::get("/"))).await;
    assert_eq!((answer.status, answer.header("x-plan")), (200, Some("mine")));
    assert_eq!(origin.last().await.headers.get("x-plan"), None, "the plan's headers are replaced whole");
    assert_eq!(gateway.call(&with_key(Call::get("/"))).await.status, 200);
    assert_eq!(gateway.call(&with_key(Call::get("/"))).await.status, 429, "the plan's limit went on counting");
}

#[tokio::test]
async fn filters_of_callers_run_after_one_that_waits_and_may_wait_themselves() {
    let origin = Origin::named("a").await;
    // Whoever is sent on as `mobile` by an authority that is asked over HTTP; and a place in a queue.
    let authority = Origin::start(|_| Reply::with(200, &[("x-who", "mobile")], "")).await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
consumers:
  mobile:
    filters:
      - concurrency: { limit: 1, queue: { size: 4, wait: 10s } }
      - headers: { request: { set: { X-Own: '1' } } }
services:
  s:
    filters:
      - ext_auth: { url: 'http://{{auth}}/', consumer_header: x-who }
      - headers: { request: { set: { X-Own: '0' } } }
    routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } }
";
    let gateway = Gateway::builder(yaml).with("auth", authority.address).origin(&origin).start().await;
    let call = Call::get("/");
    let answers = futures_util::future::join_all((0..4).map(|_| gateway.call(&call))).await;
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{:?}",
        answers.iter().map(|a| a.status).collect::<Vec<_>>()
    );
    let seen = origin.received(4).await;
    assert!(
        seen.iter().all(|request| request.headers.get("x-own") == Some("1")),
        "each ran once, and not the service's"
    );
}

#[tokio::test]
async fn usage_shows_the_limits_of_a_consumer_and_its_plan_to_those_they_are_for() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("caller_filters", &origin).await;
    assert_eq!(gateway.call(&with_key(Call::get("/"))).await.status, 200);
    let usage = gateway.admin_get("/usage?consumer=mobile").await.json();
    let limits = usage["consumers"][0]["limits"].as_array().unwrap();
    let of_plan: Vec<_> =
        limits.iter().filter(|limit| limit["limit"].as_str().unwrap().starts_with("plans/free")).collect();
    assert_eq!((of_plan.len(), &of_plan[0]["used"], &of_plan[0]["amount"]), (1, &1.into(), &3.into()), "{usage}");
    let usage = gateway.admin_get("/usage?consumer=guest").await.json();
    assert!(!usage.to_string().contains("plans/free"), "{usage}");
}
