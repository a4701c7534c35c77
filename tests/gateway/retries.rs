//! What is tried again, on which target, and what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::*;

fn two_targets(retry: &str) -> String {
    format!(
        "
upstreams:
  origin:
    targets: [{{ address: '{{{{bad}}}}' }}, {{ address: '{{{{good}}}}' }}]
    balance: round_robin
    retry: {retry}
services: {{ all: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    )
}

/// One more attempt, whatever the budget.
const RETRY: &str = "{ attempts: 2, budget: { share: 100%, min_per_second: 1000 } }";

#[tokio::test]
async fn connect_errors_are_retried_on_another_target_even_for_post() {
    let good = Origin::named("good").await;
    // `{{bad}}` is reserved but nobody listens: every connection to it is refused.
    let gateway = Gateway::builder(&two_targets(RETRY)).with("good", good.address).start().await;
    for n in 0..20 {
        let answer = gateway.call(&Call::post("/", "body")).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "good"),
            "call {n}: nothing was sent yet, so nothing can happen twice"
        );
    }
    assert_eq!(good.requests().len(), 20);
    assert!(good.requests().iter().all(|request| request.body == b"body"));
}

async fn with_resetting_target(retry: &str) -> (Origin, Origin, Gateway) {
    let bad = Origin::start(|_| Reply::raw("").reset()).await;
    let good = Origin::named("good").await;
    let gateway =
        Gateway::builder(&two_targets(retry)).with("bad", bad.address).with("good", good.address).start().await;
    (bad, good, gateway)
}

#[tokio::test]
async fn resets_of_idempotent_requests_are_retried_on_another_target() {
    let (_bad, good, gateway) = with_resetting_target(RETRY).await;
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        for _ in 0..4 {
            assert_eq!(gateway.call(&Call::new(method, "/")).await.status, 200, "{method}");
        }
    }
    assert_eq!(good.requests().len(), 20, "each request reaches the good target once");
}

#[tokio::test]
async fn requests_that_are_not_idempotent_are_never_sent_twice() {
    let (bad, good, gateway) = with_resetting_target(RETRY).await;
    let mut failed = 0;
    for n in 0..20 {
        let answer = gateway.call(&Call::post(&format!("/{n}"), "pay")).await;
        failed += usize::from(answer.status == 502);
    }
    let mut targets: Vec<String> =
        bad.requests().into_iter().chain(good.requests()).map(|request| request.target).collect();
    targets.sort();
    let sent = targets.len();
    targets.dedup();
    assert_eq!(targets.len(), sent, "a payment was sent twice");
    assert_eq!(failed, bad.requests().len());
}

#[tokio::test]
async fn retry_does_not_resend_a_consumed_body() {
    // Far more than any buffer that a retry could send again.
    let body = vec![b'x'; 8 << 20];
    let (bad, good, gateway) = with_resetting_target(RETRY).await;
    for _ in 0..4 {
        let answer = gateway.call(&Call::new("PUT", "/").body(&body)).await;
        assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
    }
    assert!(good.requests().iter().all(|request| request.body == body), "a body arrived in part");
    assert_eq!(good.violations(), Vec::<String>::new());
    drop(bad);
}

#[tokio::test]
async fn small_bodies_are_resent_whole() {
    let (_bad, good, gateway) = with_resetting_target(RETRY).await;
    for _ in 0..4 {
        assert_eq!(gateway.call(&Call::new("PUT", "/").body("small")).await.status, 200);
    }
    assert!(good.requests().iter().all(|request| request.body == b"small"));
}

#[tokio::test]
async fn listed_statuses_are_retried_and_others_are_not() {
    // Both targets count together: whichever is asked first is busy, the other one is not.
    let count = Arc::new(AtomicUsize::new(0));
    let origin = |count: &Arc<AtomicUsize>| {
        let counter = count.clone();
        Origin::start(move |request| {
            let first = counter.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            match (first, request.path()) {
                (true, "/503") => Reply::with(503, &[], "busy"),
                (_, "/500") => Reply::with(500, &[], "broken"),
                _ => Reply::ok("fine"),
            }
        })
    };
    let (one, two) = (origin(&count).await, origin(&count).await);
    let yaml = two_targets("{ attempts: 2, statuses: [503], budget: { share: 100%, min_per_second: 1000 } }");
    let gateway = Gateway::builder(&yaml).with("bad", one.address).with("good", two.address).start().await;
    assert_eq!(gateway.get("/503").await.text(), "fine");
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert_eq!((one.count(), two.count()), (1, 1), "the second attempt goes to another target");
    assert_eq!(gateway.get("/500").await.status, 500);
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn nothing_is_retried_after_the_first_byte_of_an_answer() {
    let cut = || Origin::start(|_| Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").reset());
    let (bad, worse) = (cut().await, cut().await);
    let yaml = two_targets("{ attempts: 3, budget: { share: 100%, min_per_second: 1000 } }");
    let gateway = Gateway::builder(&yaml).with("bad", bad.address).with("good", worse.address).start().await;
    assert!(gateway.connect().await.get("/").await.is_err());
    assert_eq!(bad.count() + worse.count(), 1);
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let resetting = || Origin::start(|_| Reply::raw("").reset());
    let (bad, worse) = (resetting().await, resetting().await);
    let yaml = two_targets("{ attempts: 3, budget: { share: 10%, min_per_second: 0 } }");
    let gateway = Gateway::builder(&yaml).with("bad", bad.address).with("good", worse.address).start().await;
    for _ in 0..200 {
        assert_eq!(gateway.get("/").await.status, 502);
    }
    let sent = bad.count() + worse.count();
    assert!((200..=240).contains(&sent), "200 requests became {sent} attempts");
}

#[tokio::test]
async fn retries_are_counted() {
    let (_bad, _good, gateway) = with_resetting_target(RETRY).await;
    for _ in 0..4 {
        gateway.get("/").await;
    }
    assert!(gateway.metric("headgate_upstream_retries_total", &[]).await >= 1.0);
}

#[tokio::test]
async fn requests_that_are_not_idempotent_are_repeated_where_the_configuration_says_so() {
    let (_bad, good, gateway) =
        with_resetting_target("{ attempts: 2, non_idempotent: true, budget: { share: 100%, min_per_second: 1000 } }")
            .await;
    for _ in 0..4 {
        assert_eq!(gateway.call(&Call::post("/", "again")).await.text(), "good");
    }
    assert!(good.requests().iter().all(|request| request.body == b"again"));
}

#[tokio::test]
async fn timeouts_are_retried_only_where_the_configuration_says_so() {
    for (on, statuses) in [("[reset]", [200, 504]), ("[timeout]", [200, 200])] {
        let silent = Origin::start(|_| Reply::silence()).await;
        let good = Origin::named("good").await;
        let yaml =
            two_targets(&format!("{{ attempts: 2, on: {on}, budget: {{ share: 100%, min_per_second: 1000 }} }}"))
                .replace("    balance:", "    timeouts: { first_byte: 300ms }\n    balance:");
        let builder = Gateway::builder(&yaml).with("bad", silent.address).with("good", good.address);
        let gateway = builder.start().await;
        let mut answered = [gateway.get("/").await.status, gateway.get("/").await.status];
        answered.sort();
        assert_eq!(answered, statuses, "{on}");
    }
}
