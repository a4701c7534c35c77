//! Targets and upstreams in trouble: found out, left alone, taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::*;

/// An origin that fails while told to.
async fn moody() -> (Origin, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    (in_mood(&broken).await, broken)
}

async fn in_mood(broken: &Arc<AtomicBool>) -> Origin {
    let mood = broken.clone();
    Origin::start(move |_| match mood.load(Ordering::SeqCst) {
        true => Reply::with(503, &[], "broken"),
        false => Reply::ok("well"),
    })
    .await
}

fn upstream(settings: &str) -> String {
    format!(
        "
upstreams:
  origin: {{ targets: [{{ address: '{{{{origin}}}}' }}, {{ address: '{{{{good}}}}' }}], retry: {{ attempts: 1 }}, {settings} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    )
}

const CHECKED: &str =
    "health: { active: { http: { path: /healthz }, interval: 100ms, healthy_after: 1, unhealthy_after: 1 } }";

#[tokio::test]
async fn active_checks_take_a_target_out_and_back_in() {
    let (origin, broken) = moody().await;
    let good = Origin::named("good").await;
    let gateway = Gateway::builder(&upstream(CHECKED)).origin(&origin).with("good", good.address).start().await;
    assert!(gateway.metric_becomes("headgate_upstream_target_healthy", &[], |healthy| healthy == 2.0).await);
    broken.store(true, Ordering::SeqCst);
    assert!(gateway.metric_becomes("headgate_upstream_target_healthy", &[], |healthy| healthy == 1.0).await);
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    broken.store(false, Ordering::SeqCst);
    let back = eventually(PATIENCE, || async { gateway.get("/").await.text() == "well" }).await;
    assert!(back, "a target that is well again serves again");
}

#[tokio::test]
async fn without_a_healthy_target_the_answer_is_503() {
    let gateway = Gateway::start(&upstream(CHECKED)).await;
    assert!(gateway.metric_becomes("headgate_upstream_target_healthy", &[], |healthy| healthy == 0.0).await);
    let answer = gateway.get("/").await;
    assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("no_healthy_target")));
}

#[tokio::test]
async fn failing_targets_are_ejected_by_what_real_requests_see() {
    let (origin, broken) = moody().await;
    let good = Origin::named("good").await;
    let settings = "health: { passive: { consecutive_failures: 3, eject_for: 60s } }";
    let gateway = Gateway::builder(&upstream(settings)).origin(&origin).with("good", good.address).start().await;
    broken.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        gateway.get("/").await;
    }
    assert_eq!(origin.count(), 3, "after three failures it is left alone");
    assert_eq!(gateway.get("/").await.text(), "good");
}

#[tokio::test]
async fn a_target_that_goes_away_and_comes_back_costs_no_request() {
    let mut origin = Origin::named("well").await;
    let good = Origin::named("good").await;
    let settings = CHECKED.to_owned() + ", balance: round_robin";
    let yaml = upstream(&settings).replace("attempts: 1", "attempts: 2");
    let gateway = Gateway::builder(&yaml).origin(&origin).with("good", good.address).start().await;
    let address = origin.address;
    origin.stop_accepting().await;
    drop(origin);
    for _ in 0..50 {
        assert_eq!(gateway.get("/").await.status, 200, "a refused connection is tried on the other target");
    }
    let _again = Origin::at(address, |_| Reply::ok("back")).await;
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.text() == "back" }).await);
}

#[tokio::test]
async fn health_survives_a_reload() {
    let (origin, broken) = moody().await;
    let good = Origin::named("good").await;
    let settings = "health: { passive: { consecutive_failures: 3, eject_for: 60s } }";
    let yaml = upstream(settings);
    let mut gateway = Gateway::builder(&yaml).origin(&origin).with("good", good.address).start().await;
    broken.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        gateway.get("/").await;
    }
    assert_eq!(gateway.reload(&format!("{yaml}# changed\n")).await.status, 200);
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.text(), "good", "what was learnt before the reload is known after it");
    }
}

#[tokio::test]
async fn the_breaker_opens_and_closes_again() {
    let (origin, broken) = moody().await;
    let other = in_mood(&broken).await;
    let settings = "breaker: { failures: 50%, min_requests: 5, window: 10s, open_for: 2s, half_open_requests: 1 }";
    let gateway = Gateway::builder(&upstream(settings)).origin(&origin).with("good", other.address).start().await;
    broken.store(true, Ordering::SeqCst);
    let opened =
        eventually(PATIENCE, || async { gateway.get("/").await.problem().as_deref() == Some("circuit_open") }).await;
    assert!(opened);
    assert_eq!(gateway.metric("headgate_upstream_breaker_state", &[]).await, 2.0, "open");
    let before = origin.count() + other.count();
    assert_eq!(gateway.get("/").await.status, 503);
    assert_eq!(origin.count() + other.count(), before, "an open breaker spares the origins");
    broken.store(false, Ordering::SeqCst);
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await);
    assert_eq!(gateway.metric("headgate_upstream_breaker_state", &[]).await, 0.0, "closed");
}

#[tokio::test]
async fn requests_in_flight_are_capped() {
    let held = Arc::new(AtomicUsize::new(0));
    let holding = |held: &Arc<AtomicUsize>| {
        let count = held.clone();
        Origin::start(move |request| match request.path() {
            "/hold" => {
                count.fetch_add(1, Ordering::SeqCst);
                Reply::silence()
            }
            _ => Reply::ok("free"),
        })
    };
    let (origin, other) = (holding(&held).await, holding(&held).await);
    let settings = "limits: { requests: 3 }";
    let gateway = Gateway::builder(&upstream(settings)).origin(&origin).with("good", other.address).start().await;
    let mut holders = Vec::new();
    for _ in 0..3 {
        let mut client = gateway.connect().await;
        client.send(Call::get("/hold").bytes()).await.unwrap();
        holders.push(client);
    }
    assert!(eventually(PATIENCE, || async { held.load(Ordering::SeqCst) == 3 }).await);
    let answer = gateway.get("/").await;
    assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("upstream_overloaded")));
    drop(holders);
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await, "places come back");
}

#[tokio::test]
async fn the_grpc_health_service_decides_by_its_answer() {
    use crate::support::h2::{H2Origin, H2Reply};
    const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
    const NOT_SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 2];
    let answer = Arc::new(std::sync::Mutex::new(H2Answering::Message(SERVING)));
    let scripted = answer.clone();
    let origin = H2Origin::start(move |parts| match parts.uri.path() {
        "/grpc.health.v1.Health/Check" => match *scripted.lock().unwrap() {
            H2Answering::Message(message) => H2Reply::grpc(message, "0"),
            H2Answering::Status(status) => {
                H2Reply::TrailersOnly(vec![("content-type", "application/grpc"), ("grpc-status", status)])
            }
        },
        _ => H2Reply::grpc(b"served", "0"),
    })
    .await;
    let yaml = "
upstreams:
  origin:
    targets: [{ address: '{{origin}}' }]
    protocol: h2c
    health: { active: { grpc: { service: shop }, interval: 50ms, healthy_after: 1, unhealthy_after: 1 } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let gateway = Gateway::builder(yaml).with("origin", origin.address).start().await;
    for (next, healthy) in [
        (H2Answering::Message(SERVING), 1.0),
        (H2Answering::Message(NOT_SERVING), 0.0),
        (H2Answering::Message(SERVING), 1.0),
        (H2Answering::Message(b"nonsense"), 0.0),
        (H2Answering::Message(SERVING), 1.0),
        // UNIMPLEMENTED: there is no health service.
        (H2Answering::Status("12"), 0.0),
        (H2Answering::Message(SERVING), 1.0),
    ] {
        *answer.lock().unwrap() = next;
        let became = gateway.metric_becomes("headgate_upstream_target_healthy", &[], |is| is == healthy).await;
        assert!(became, "{next:?}");
        assert_eq!(gateway.get("/").await.status, if healthy == 1.0 { 200 } else { 503 }, "{next:?}");
    }
    let asked = origin.requests().into_iter().find(|request| request.uri.path().ends_with("/Check")).unwrap();
    assert_eq!(asked.body, b"\0\0\0\0\x06\x0a\x04shop", "the service is named");
}

#[derive(Debug, Clone, Copy)]
enum H2Answering {
    Message(&'static [u8]),
    Status(&'static str),
}

#[tokio::test]
async fn targets_much_slower_than_the_others_are_ejected() {
    let slow = Origin::start(|_| Reply::ok("slow").after(Duration::from_millis(150))).await;
    let (quick, quicker) = (Origin::named("quick").await, Origin::named("quicker").await);
    let yaml = "
upstreams:
  origin:
    targets: [{ address: '{{slow}}' }, { address: '{{quick}}' }, { address: '{{quicker}}' }]
    health: { passive: { eject_for: 60s, slow: { factor: 3, at_least: 50ms, min_requests: 3, window: 1s } } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let builder = Gateway::builder(yaml).with("slow", slow.address).with("quick", quick.address);
    let gateway = builder.with("quicker", quicker.address).start().await;
    let mut client = gateway.connect().await;
    let until = std::time::Instant::now() + PATIENCE;
    while gateway.metric("headgate_upstream_target_healthy", &[]).await != 2.0 {
        assert!(std::time::Instant::now() < until, "the slow target is still in service");
        for _ in 0..15 {
            assert_eq!(client.get("/").await.unwrap().status, 200);
        }
    }
    let before = slow.count();
    for _ in 0..30 {
        assert_ne!(client.get("/").await.unwrap().text(), "slow");
    }
    assert_eq!(slow.count(), before);
}

#[tokio::test]
async fn a_target_that_comes_back_starts_slowly() {
    let (origin, broken) = moody().await;
    let good = Origin::named("good").await;
    broken.store(true, Ordering::SeqCst);
    let settings = CHECKED.to_owned() + ", slow_start: 60s";
    let gateway = Gateway::builder(&upstream(&settings)).origin(&origin).with("good", good.address).start().await;
    let healthy = |wanted: f64| gateway.metric_becomes("headgate_upstream_target_healthy", &[], move |is| is == wanted);
    assert!(healthy(1.0).await);
    broken.store(false, Ordering::SeqCst);
    assert!(healthy(2.0).await);
    let mut client = gateway.connect().await;
    let mut back = 0;
    for _ in 0..200 {
        back += usize::from(client.get("/").await.unwrap().text() == "well");
    }
    assert!(back < 60, "{back} of 200 requests a moment after it came back; its full share would be 100");
}

#[tokio::test]
async fn names_of_the_hosts_file_are_targets() {
    let origin = Origin::named("local").await;
    let port = origin.address.port();
    let yaml = format!(
        "
upstreams: {{ origin: {{ targets: [{{ address: 'localhost:{port}' }}] }} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    );
    let gateway = Gateway::start(&yaml).await;
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await, "the name is resolved");
    for _ in 0..20 {
        assert_eq!(gateway.call(&Call::post("/", "x")).await.text(), "local");
    }
    assert!(gateway.admin_get("/status").await.text().contains(&format!("127.0.0.1:{port}")));
}
