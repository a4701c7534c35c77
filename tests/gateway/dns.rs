//! Targets that are names: found in the DNS, followed when it changes, kept when it fails.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::support::dns::{Mood, Server, a, srv};
use crate::support::*;

const NAME: &str = "orders.shop.test.";
const SERVICE: &str = "_orders._tcp.shop.test.";
const TTL: &str = "10ms";

fn yaml(target: &str, dns: &str) -> String {
    format!(
        "
dns: {dns}
upstreams: {{ origin: {{ targets: [{{ address: '{target}' }}] }} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    )
}

fn asks(dns: &Server) -> String {
    format!("{{ servers: ['{}'], min_ttl: {TTL}, stale: 0s }}", dns.address)
}

/// Waits until only the origin of that name answers, and asks a few times more.
async fn answers(gateway: &Gateway, name: &str) -> bool {
    let turned = eventually(PATIENCE, || async { gateway.get("/").await.text() == name }).await;
    for _ in 0..10 {
        if gateway.get("/").await.text() != name {
            return false;
        }
    }
    turned
}

/// An origin on the port of another, at the next address of the loopback network.
async fn beside(origin: &Origin, name: &'static str) -> Origin {
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), origin.address.port()));
    Origin::at(address, move |_| Reply::ok(name)).await
}

#[tokio::test]
async fn a_name_is_followed_when_its_address_changes() {
    let first = Origin::named("first").await;
    let second = beside(&first, "second").await;
    let dns = Server::start(vec![a(NAME, first.address.ip())]).await;
    let target = format!("orders.shop.test:{}", first.address.port());
    let gateway = Gateway::start(&yaml(&target, &asks(&dns))).await;
    assert!(answers(&gateway, "first").await);
    dns.set(vec![a(NAME, second.address.ip())]);
    assert!(answers(&gateway, "second").await);
}

#[tokio::test]
async fn every_address_of_a_name_gets_its_share() {
    let first = Origin::named("first").await;
    let second = beside(&first, "second").await;
    let dns = Server::start(vec![a(NAME, first.address.ip()), a(NAME, second.address.ip())]).await;
    let target = format!("orders.shop.test:{}", first.address.port());
    let gateway = Gateway::start(&yaml(&target, &asks(&dns))).await;
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await);
    let before = (first.count(), second.count());
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    assert_eq!((first.count() - before.0, second.count() - before.1), (10, 10));
}

#[tokio::test]
async fn while_the_dns_fails_the_last_good_answer_stays() {
    let origin = Origin::named("origin").await;
    let dns = Server::start(vec![a(NAME, origin.address.ip())]).await;
    let target = format!("orders.shop.test:{}", origin.address.port());
    let gateway = Gateway::start(&yaml(&target, &asks(&dns))).await;
    assert!(answers(&gateway, "origin").await);
    dns.feel(Mood::Fails);
    let asked = dns.asked().len();
    assert!(eventually(PATIENCE, || async { dns.asked().len() > asked + 2 }).await, "it goes on asking");
    assert!(answers(&gateway, "origin").await);
    assert!(gateway.logs("orders.shop.test").await, "and the log tells the operator");
    assert!(gateway.metric("headgate_dns_failures_total", &[]).await >= 1.0);
}

#[tokio::test]
async fn a_name_that_is_denied_for_longer_than_stale_has_no_target() {
    let origin = Origin::named("origin").await;
    let dns = Server::start(vec![a(NAME, origin.address.ip())]).await;
    let target = format!("orders.shop.test:{}", origin.address.port());
    dns.forget_denials();
    let mut gateway = Gateway::start(&yaml(&target, &asks(&dns))).await;
    assert!(answers(&gateway, "origin").await);

    // As long as it may be stale, the answer of before holds.
    let patient = format!("{{ servers: ['{}'], min_ttl: {TTL}, stale: 1h }}", dns.address);
    assert_eq!(gateway.reload(&yaml(&target, &patient)).await.status, 200);
    dns.set(Vec::new());
    let asked = dns.asked().len();
    assert!(eventually(PATIENCE, || async { dns.asked().len() > asked + 2 }).await);
    assert!(answers(&gateway, "origin").await);

    assert_eq!(gateway.reload(&yaml(&target, &asks(&dns))).await.status, 200);
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 503 }).await);
    dns.set(vec![a(NAME, origin.address.ip())]);
    assert!(answers(&gateway, "origin").await, "and it comes back with the name");
}

#[tokio::test]
async fn srv_records_name_port_weight_and_rank() {
    let (light, heavy, spare) =
        (Origin::named("light").await, Origin::named("heavy").await, Origin::named("spare").await);
    let hosts = |origins: &[(&Origin, u16, u16)]| {
        let mut records = vec![a(NAME, Ipv4Addr::LOCALHOST.into())];
        for (origin, priority, weight) in origins {
            records.push(srv(SERVICE, *priority, *weight, origin.address.port(), NAME));
        }
        records
    };
    let dns = Server::start(hosts(&[(&light, 10, 1), (&heavy, 10, 3), (&spare, 20, 100)])).await;
    let gateway = Gateway::start(&yaml("srv:_orders._tcp.shop.test", &asks(&dns))).await;
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await);
    let before = (light.count(), heavy.count());
    for _ in 0..40 {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    assert_eq!((light.count() - before.0, heavy.count() - before.1), (10, 30), "by weight");
    assert_eq!(spare.count(), 0, "the second rank is not needed");
    dns.set(hosts(&[(&spare, 20, 100)]));
    assert!(answers(&gateway, "spare").await);
}

#[tokio::test]
async fn a_reload_with_another_dns_server_asks_that_one_at_once() {
    let first = Origin::named("first").await;
    let second = beside(&first, "second").await;
    let one = Server::start(vec![a(NAME, first.address.ip())]).await;
    let other = Server::start(vec![a(NAME, second.address.ip())]).await;
    let target = format!("orders.shop.test:{}", first.address.port());
    let slow = |dns: &Server| format!("{{ servers: ['{}'], min_ttl: 1h }}", dns.address);
    let mut gateway = Gateway::start(&yaml(&target, &slow(&one))).await;
    assert!(answers(&gateway, "first").await);
    assert_eq!(gateway.reload(&yaml(&target, &slow(&other))).await.status, 200);
    assert!(answers(&gateway, "second").await);
}

#[tokio::test]
async fn names_resolve_before_the_first_request_and_never_delay_one() {
    let origin = Origin::named("origin").await;
    let dns = Server::start(vec![a(NAME, origin.address.ip())]).await;
    dns.feel(Mood::Fails);
    let target = format!("orders.shop.test:{}", origin.address.port());
    let gateway = Gateway::start(&yaml(&target, &asks(&dns))).await;
    let asked = std::time::Instant::now();
    let answer = gateway.get("/").await;
    assert_eq!(answer.status, 503, "a target without address is none");
    assert!(asked.elapsed() < Duration::from_secs(5), "nobody waits for the DNS");
    dns.feel(Mood::Answers);
    assert!(answers(&gateway, "origin").await);
}

#[tokio::test]
async fn what_cannot_work_is_refused() {
    let mut gateway = Gateway::start(&yaml("127.0.0.1:9", "{}")).await;
    for (dns, word) in [
        ("{ servers: [dns.internal] }", "no IP address"),
        ("{ min_ttl: 1ms }", "at least 10ms"),
        ("{ min_ttl: 1m, max_ttl: 1s }", "shorter than `min_ttl`"),
        ("{ timeout: 0s }", "longer than 0s"),
        ("{ search: [shop.test] }", "only with `servers`"),
        ("{ servers: [10.0.0.2], search: ['a b'] }", "no domain name"),
    ] {
        let answer = gateway.reload(&yaml("127.0.0.1:9", dns)).await;
        assert_eq!(answer.status, 422, "{dns}");
        assert!(answer.text().contains(word), "{dns}: {}", answer.text());
    }
}
