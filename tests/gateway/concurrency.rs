//! Requests in flight: never more of a key than its limit, and every one is counted out again.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::gateway::problems_of;
use crate::support::origin::Feed;
use crate::support::*;

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const END: &str = "0\r\n\r\n";

/// An origin whose answers to `/slow` end when the test says so.
struct Slow {
    origin: Origin,
    feeds: Arc<Mutex<Vec<Feed>>>,
}

impl Slow {
    async fn start() -> Self {
        let feeds = Arc::new(Mutex::new(Vec::new()));
        let fed = feeds.clone();
        let origin = Origin::start(move |request| match request.path() {
            "/slow" => {
                let (reply, feed) = Reply::fed(CHUNKED);
                fed.lock().unwrap().push(feed);
                reply
            }
            "/reset" => Reply::raw(CHUNKED).reset(),
            "/ws" => Reply::echo_upgrade(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            ),
            _ => Reply::ok("quick"),
        })
        .await;
        Slow { origin, feeds }
    }

    /// Ends the oldest slow answer.
    fn finish(&self) {
        let feed = self.feeds.lock().unwrap().remove(0);
        assert!(feed.send(END));
    }
}

fn yaml(settings: &str) -> String {
    format!(
        "
services: {{ s: {{ filters: [{{ concurrency: {{ {settings} }} }}],
                  routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }} }}
"
    )
}

async fn gateway(settings: &str, slow: &Slow) -> Gateway {
    Gateway::builder(&yaml(settings)).origin(&slow.origin).start().await
}

/// A client whose request is in flight: the head of its answer is here, its end is not.
async fn in_flight(gateway: &Gateway, call: &Call) -> Client {
    let mut client = gateway.connect().await;
    client.send(call.bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    client
}

/// Whether a request is admitted again, and nothing is counted any more after it.
async fn is_free(gateway: &Gateway) -> bool {
    // An answer may be here before its request is counted out.
    eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await
        && gateway.metric_becomes("headgate_requests_in_flight", &[], |count| count == 0.0).await
}

#[tokio::test]
async fn one_more_than_the_limit_is_refused_and_told_why() {
    let slow = Slow::start().await;
    let gateway = gateway("limit: 2, by: address", &slow).await;
    let _first = in_flight(&gateway, &Call::get("/slow")).await;
    let _second = in_flight(&gateway, &Call::get("/slow")).await;
    let mut client = gateway.connect().await;
    let refused = client.get("/").await.unwrap();
    assert_eq!((refused.status, refused.problem().as_deref()), (429, Some("concurrency_exceeded")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let document = refused.json();
    assert_eq!((&document["limit"], &document["in_flight"]), (&"s/concurrency".into(), &2.into()), "{document}");
    assert_eq!(gateway.metric("headgate_limit_refusals_total", &[("limit", "s/concurrency")]).await, 1.0);
    assert!(refused.keeps_alive());
    assert_eq!(slow.origin.count(), 2, "the origin was not asked");
    slow.finish();
    // The other is in flight still.
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await);
    let logged = || async {
        let log = gateway.access_log(1).await;
        log.iter().any(|line| {
            line["status"] == 429 && line["reason"] == "concurrency_exceeded" && line["limit"] == "s/concurrency"
        })
    };
    assert!(eventually(PATIENCE, logged).await);
}

#[tokio::test]
async fn a_request_is_counted_out_whichever_way_it_ends() {
    let slow = Slow::start().await;
    let gateway = gateway("limit: 1, by: gateway", &slow).await;
    for _ in 0..3 {
        // The client leaves in the middle of the answer.
        drop(in_flight(&gateway, &Call::get("/slow")).await);
        assert!(is_free(&gateway).await, "after the client left");
        // It leaves before the answer has begun.
        let mut client = gateway.connect().await;
        client.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhal").await.unwrap();
        assert!(gateway.metric_becomes("headgate_requests_in_flight", &[], |count| count == 1.0).await);
        drop(client);
        assert!(is_free(&gateway).await, "after the client left midway in its request");
        // The origin breaks off.
        let mut client = in_flight(&gateway, &Call::get("/reset")).await;
        assert!(client.chunk().await.is_err());
        assert!(is_free(&gateway).await, "after the origin broke off");
        // An upgraded connection is in flight until it ends.
        let upgrade = Call::get("/ws")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Sec-WebSocket-Version", "13");
        let mut client = gateway.connect().await;
        client.send(upgrade.bytes()).await.unwrap();
        assert_eq!(client.head().await.unwrap().0, 101);
        assert_eq!(gateway.get("/").await.status, 429, "while the WebSocket is open");
        drop(client);
        assert!(is_free(&gateway).await, "after the WebSocket closed");
        // A whole answer, on a connection that stays.
        let mut client = gateway.connect().await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.unwrap().status, 200);
        }
    }
}

#[tokio::test]
async fn in_the_queue_a_turn_comes_and_nobody_waits_for_ever() {
    let slow = Slow::start().await;
    let mut gateway = gateway("limit: 1, by: gateway, queue: { size: 1, wait: 10s }", &slow).await;
    let first = in_flight(&gateway, &Call::get("/slow")).await;
    // Of two more only one may wait, whichever came first; the other is refused at once.
    let (one, two) = (Box::pin(gateway.get("/")), Box::pin(gateway.get("/")));
    let (refused, waiting) = match futures_util::future::select(one, two).await {
        futures_util::future::Either::Left((refused, waiting)) => (refused, waiting),
        futures_util::future::Either::Right((refused, waiting)) => (refused, waiting),
    };
    assert_eq!((refused.status, slow.origin.count()), (429, 1));
    slow.finish();
    assert_eq!(waiting.await.status, 200);
    drop(first);
    assert!(is_free(&gateway).await);

    assert_eq!(gateway.reload(&yaml("limit: 1, by: gateway, queue: { size: 1, wait: 200ms }")).await.status, 200);
    let _first = in_flight(&gateway, &Call::get("/slow")).await;
    let began = Instant::now();
    assert_eq!(gateway.get("/").await.status, 429);
    assert!(began.elapsed() >= Duration::from_millis(200), "it has waited {:?}", began.elapsed());
    // Who has given up takes nobody's turn.
    slow.feeds.lock().unwrap().drain(..).for_each(|feed| _ = feed.send(END));
    assert!(is_free(&gateway).await);
}

#[tokio::test]
async fn keys_do_not_affect_each_other_and_the_example_works() {
    let slow = Slow::start().await;
    let gateway = gateway("limit: 1, by: { header: x-tenant }", &slow).await;
    let call = |target: &str, tenant: &str| Call::get(target).header("X-Tenant", tenant);
    let _first = in_flight(&gateway, &call("/slow", "a")).await;
    assert_eq!(gateway.call(&call("/", "a")).await.status, 429);
    assert_eq!(gateway.call(&call("/", "b")).await.status, 200);
    assert_eq!(gateway.get("/").await.status, 200, "by address, without the header");
    let example = Gateway::example("concurrency", &slow.origin).await;
    assert_eq!(example.get("/").await.status, 200);
}

#[tokio::test]
async fn a_reload_goes_on_with_the_same_counts() {
    let slow = Slow::start().await;
    let mut gateway = gateway("limit: 1, by: address", &slow).await;
    let _first = in_flight(&gateway, &Call::get("/slow")).await;
    assert_eq!(gateway.reload(&yaml("limit: 1, by: address")).await.status, 200);
    assert_eq!(gateway.get("/").await.status, 429, "the request of before the reload is still in flight");
    assert_eq!(gateway.reload(&yaml("limit: 2, by: address")).await.status, 200);
    assert_eq!(gateway.get("/").await.status, 200);
    slow.finish();
    assert_eq!(gateway.reload(&yaml("limit: 1, by: address")).await.status, 200);
    assert!(is_free(&gateway).await);
}

#[tokio::test]
async fn under_load_the_origin_never_sees_more_than_the_limit() {
    let origin = Origin::start(|_| Reply::ok("").after(Duration::from_millis(5))).await;
    let gateway =
        Gateway::builder(&yaml("limit: 3, by: gateway, queue: { size: 100, wait: 10s }")).origin(&origin).start().await;
    let calls = (0..20).map(|_| async {
        let mut client = gateway.connect().await;
        for _ in 0..10 {
            assert_eq!(client.get("/").await.unwrap().status, 200);
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(origin.count(), 200);
    assert!(origin.connections() <= 3 + 1, "{} connections for three at a time", origin.connections());
}

#[test]
fn a_limit_that_cannot_be_meant_is_refused() {
    for (settings, words) in [
        ("by: address", "limit"),
        ("limit: 0", "limit"),
        ("limit: 1, by: consumr", "consumer"),
        ("limit: 1, by: { header: x_tenant }", "underscore"),
        ("limit: 1, by: { cel: 'request.hst' }", "did you mean `request.host`"),
        ("limit: 1, queue: { size: 1 }", "wait"),
        ("limit: 1, queue: { size: 1, wait: 0s }", "no time at all"),
    ] {
        let said = problems_of(&yaml(settings));
        assert!(said.contains(words), "{words} is missing in: {said}");
    }
}
