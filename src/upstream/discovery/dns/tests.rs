#[allow(dead_code, reason = "the black-box tests use the rest")]
mod server;

use std::time::Instant;

use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name as DnsName, RData, Record, RecordType};
use tokio::sync::mpsc;

use self::server::{Mood, Server, record};
use super::*;

impl Default for ResolverConfig {
    fn default() -> Self {
        Self::compile(&Dns::default(), "dns", &mut Problems::default())
    }
}

impl Server {
    fn config(&self) -> ResolverConfig {
        ResolverConfig {
            servers: vec![self.address],
            hosts: "/nonexistent".into(),
            min_ttl: Duration::from_millis(20),
            timeout: Duration::from_millis(600),
            ..ResolverConfig::default()
        }
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(self.config(), Handle::current())
    }
}

fn a(name: &str, ttl: u32, last: u8) -> Record {
    record(name, ttl, RData::A(A::new(10, 0, 0, last)))
}

fn srv(name: &str, priority: u16, weight: u16, port: u16, target: &str) -> Record {
    record(name, 0, RData::SRV(SRV::new(priority, weight, port, DnsName::from_ascii(target).unwrap())))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The addresses, written.
fn addresses(targets: &[Resolved]) -> Vec<String> {
    targets.iter().map(|t| t.address.to_string()).collect()
}

struct Follower {
    handle: FollowHandle,
    changes: mpsc::UnboundedReceiver<Vec<String>>,
}

fn follow(resolver: &Resolver, text: &str) -> Follower {
    let (tell, changes) = mpsc::unbounded_channel();
    let callback = Arc::new(move |targets: &[Resolved]| drop(tell.send(addresses(targets))));
    Follower { handle: resolver.follow(name(text), callback), changes }
}

impl Follower {
    async fn next(&mut self) -> Vec<String> {
        tokio::time::timeout(Duration::from_secs(5), self.changes.recv()).await.expect("no change came").unwrap()
    }

    async fn no_change_for(&mut self, millis: u64) {
        let change = tokio::time::timeout(Duration::from_millis(millis), self.changes.recv()).await;
        assert!(change.is_err(), "unexpected change: {change:?}");
    }
}

async fn once(resolver: &Resolver, text: &str) -> Result<Vec<Resolved>, String> {
    resolver.resolve_once(name(text), Duration::from_secs(5)).await
}

#[tokio::test]
async fn an_answer_holds_for_its_time_to_live_and_then_changes() {
    let server = Server::start(vec![a("orders.test.", 1, 2), a("orders.test.", 1, 1)]).await;
    let mut orders = follow(&server.resolver(), "orders.test:80");
    assert_eq!(orders.next().await, ["10.0.0.1:80", "10.0.0.2:80"], "the set is sorted");
    let start = Instant::now();
    server.set(vec![a("orders.test.", 1, 3)]);
    orders.no_change_for(700).await;
    assert_eq!(server.times_asked("orders.test."), 2, "one A and one AAAA question until it expires");
    assert_eq!(orders.next().await, ["10.0.0.3:80"]);
    assert!(start.elapsed() >= Duration::from_millis(950), "asked again too early");
}

#[tokio::test]
async fn time_to_live_is_bounded_on_both_sides() {
    let config = ResolverConfig { min_ttl: Duration::from_secs(2), ..ResolverConfig::default() };
    for _ in 0..100 {
        let (short, long) = (config.hold(Duration::ZERO), config.hold(Duration::MAX));
        assert!(short >= config.min_ttl && short <= config.min_ttl.mul_f64(1.1));
        assert!(long >= config.max_ttl && long <= config.max_ttl.mul_f64(1.1));
        assert!(config.back_off(1) <= config.min_ttl);
        assert!(config.back_off(u32::MAX) >= MAX_PAUSE / 2 && config.back_off(u32::MAX) <= MAX_PAUSE);
    }
}

#[tokio::test]
async fn the_last_good_answer_stays_while_the_dns_fails() {
    for mood in [Mood::Fails, Mood::Silent, Mood::Garbage] {
        let server = Server::start(vec![a("orders.test.", 0, 1)]).await;
        let resolver = server.resolver();
        let mut orders = follow(&resolver, "orders.test:80");
        assert_eq!(orders.next().await, ["10.0.0.1:80"]);
        server.feel(mood);
        orders.no_change_for(1000).await;
        let status = orders.handle.status();
        assert!(status.trouble.is_some() && status.targets.is_some_and(|t| t.len() == 1));
        assert!(resolver.counters().failures.load(Ordering::Relaxed) > 0);
        server.set(vec![a("orders.test.", 0, 2)]);
        server.feel(Mood::Answers);
        assert_eq!(orders.next().await, ["10.0.0.2:80"], "it recovers by itself");
        assert_eq!(orders.handle.status().trouble, None);
    }
}

#[tokio::test]
async fn a_denied_name_keeps_its_last_good_answer_until_it_is_stale() {
    let server = Server::start(vec![a("orders.test.", 0, 1)]).await;
    let config = ResolverConfig {
        stale: Duration::from_millis(700),
        // A denial without SOA is believed for five seconds, which this test does not want to wait.
        max_ttl: Duration::from_millis(50),
        ..server.config()
    };
    let mut orders = follow(&Resolver::new(config, Handle::current()), "orders.test:80");
    assert_eq!(orders.next().await, ["10.0.0.1:80"]);
    server.set(Vec::new());
    orders.no_change_for(500).await;
    assert_eq!(orders.handle.status().trouble.as_deref(), Some("no such name (NXDOMAIN)"));
    assert_eq!(orders.next().await, Vec::<String>::new(), "the grace has ended");
    server.set(vec![a("orders.test.", 0, 1)]);
    assert_eq!(orders.next().await, ["10.0.0.1:80"]);
}

#[tokio::test]
async fn a_name_that_never_existed_is_reported_empty_at_once() {
    let server = Server::start(Vec::new()).await;
    let mut orders = follow(&server.resolver(), "orders.test:80");
    assert_eq!(orders.next().await, Vec::<String>::new());
    assert_eq!(once(&server.resolver(), "orders.test:80").await, Err("no such name (NXDOMAIN)".into()));
}

#[tokio::test]
async fn srv_priorities_become_tiers_and_weights_weights() {
    let service = "_http._tcp.orders.test.";
    let server = Server::start(vec![
        srv(service, 10, 60, 8080, "a.test."),
        srv(service, 10, 0, 8081, "b.test."),
        srv(service, 20, 5, 8082, "c.test."),
        srv(service, 30, 5, 8080, "a.test."),
        a("a.test.", 0, 1),
        a("b.test.", 0, 2),
        a("c.test.", 0, 3),
    ])
    .await;
    let found = once(&server.resolver(), "srv:_http._tcp.orders.test").await.unwrap();
    let target = |text: &str, weight, tier| Resolved { address: text.parse().unwrap(), weight, tier };
    let expected = [target("10.0.0.1:8080", 60, 0), target("10.0.0.2:8081", 1, 0), target("10.0.0.3:8082", 5, 1)];
    assert_eq!(found, expected, "an address in two tiers counts in the better one");

    server.set(vec![srv(service, 0, 0, 0, ".")]);
    assert!(once(&server.resolver(), "srv:_http._tcp.orders.test").await.is_err(), "a lone `.` means not offered");
}

#[tokio::test]
async fn a_service_host_that_fails_is_filled_from_memory() {
    let service = "_http._tcp.orders.test.";
    let records = vec![
        srv(service, 0, 1, 80, "a.test."),
        srv(service, 0, 1, 80, "b.test."),
        a("a.test.", 0, 1),
        a("b.test.", 0, 2),
    ];
    let server = Server::start(records.clone()).await;
    let mut orders = follow(&server.resolver(), "srv:_http._tcp.orders.test");
    assert_eq!(orders.next().await, ["10.0.0.1:80", "10.0.0.2:80"]);
    server.fail("b.test.", RecordType::A);
    server.set([records, vec![srv(service, 0, 1, 80, "c.test."), a("c.test.", 0, 3)]].concat());
    assert_eq!(orders.next().await, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], "news arrive, nothing is lost");
    assert!(orders.handle.status().trouble.is_some());
}

#[tokio::test]
async fn one_failing_address_family_does_not_hide_the_other() {
    let v6 = record("orders.test.", 0, RData::AAAA(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)));
    let server = Server::start(vec![a("orders.test.", 0, 1), v6]).await;
    let mut orders = follow(&server.resolver(), "orders.test:80");
    assert_eq!(orders.next().await, ["10.0.0.1:80", "[fd00::1]:80"]);
    server.fail("orders.test.", RecordType::AAAA);
    orders.no_change_for(200).await;
    let fresh = once(&server.resolver(), "orders.test:80").await.unwrap();
    assert_eq!(addresses(&fresh), ["10.0.0.1:80"], "without memory the family that answers is used");
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let records: Vec<_> = (0..200).map(|last| a("orders.test.", 60, last)).collect();
    let server = Server::start(records).await;
    server.feel(Mood::Truncates);
    assert_eq!(once(&server.resolver(), "orders.test:80").await.unwrap().len(), 200);
}

#[tokio::test]
async fn two_names_are_followed_independently() {
    let server = Server::start(vec![a("orders.test.", 0, 1), a("users.test.", 0, 2)]).await;
    let resolver = server.resolver();
    let (mut orders, mut users) = (follow(&resolver, "orders.test:80"), follow(&resolver, "users.test:81"));
    assert_eq!(orders.next().await, ["10.0.0.1:80"]);
    assert_eq!(users.next().await, ["10.0.0.2:81"]);
    server.fail("users.test.", RecordType::A);
    server.set(vec![a("orders.test.", 0, 3), a("users.test.", 0, 4)]);
    assert_eq!(orders.next().await, ["10.0.0.3:80"]);
    users.no_change_for(200).await;
}

#[tokio::test]
async fn handles_of_one_name_share_its_questions_and_the_last_one_ends_them() {
    let server = Server::start(vec![a("orders.test.", 60, 1)]).await;
    let resolver = server.resolver();
    let mut first = follow(&resolver, "orders.test:80");
    assert_eq!(first.next().await, ["10.0.0.1:80"]);
    let mut second = follow(&resolver, "orders.test:80");
    assert_eq!(second.changes.try_recv().unwrap(), ["10.0.0.1:80"], "what is known is told at once");
    assert_eq!(server.times_asked("orders.test."), 2, "a reload asks nothing again");
    drop(first);
    assert!(second.handle.settled(Duration::ZERO).await.is_ok());
    drop(second);
    assert!(lock(&resolver.inner.followed).is_empty());

    server.set(vec![a("orders.test.", 0, 1)]);
    let mut third = follow(&resolver, "orders.test:80");
    third.next().await;
    drop(third);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = server.times_asked("orders.test.");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.times_asked("orders.test."), asked, "nobody follows it any more");
}

#[tokio::test]
async fn a_panicking_listener_does_not_end_the_others() {
    let server = Server::start(vec![a("orders.test.", 0, 1)]).await;
    let resolver = server.resolver();
    let _broken = resolver.follow(name("orders.test:80"), Arc::new(|_: &[Resolved]| panic!("broken listener")));
    let mut orders = follow(&resolver, "orders.test:80");
    assert_eq!(orders.next().await, ["10.0.0.1:80"]);
    server.set(vec![a("orders.test.", 0, 2)]);
    assert_eq!(orders.next().await, ["10.0.0.2:80"]);
}

#[tokio::test]
async fn addresses_localhost_and_the_hosts_file_need_no_server() {
    let hosts = std::env::temp_dir().join(format!("headgate-hosts-{}", std::process::id()));
    std::fs::write(&hosts, "10.1.1.1 web Web.internal # comment\nfd00::2 web\n").unwrap();
    let config = ResolverConfig {
        resolv_conf: "/nonexistent".into(),
        hosts: hosts.clone(),
        min_ttl: Duration::from_millis(20),
        ..ResolverConfig::default()
    };
    let resolver = Resolver::new(config, Handle::current());
    let found = async |text| once(&resolver, text).await.map(|targets| addresses(&targets));
    assert_eq!(found("192.0.2.1:80").await.unwrap(), ["192.0.2.1:80"]);
    assert_eq!(found("[2001:db8::1]:80").await.unwrap(), ["[2001:db8::1]:80"]);
    assert_eq!(found("web:80").await.unwrap(), ["10.1.1.1:80", "[fd00::2]:80"]);
    assert_eq!(found("web.INTERNAL:80").await.unwrap(), ["10.1.1.1:80"]);
    assert!(found("orders.test:80").await.unwrap_err().starts_with("cannot read /nonexistent"));
    std::fs::write(&hosts, "10.1.1.99 web\n").unwrap();
    assert_eq!(found("web:80").await.unwrap(), ["10.1.1.99:80"], "a changed file is read again");
    std::fs::remove_file(&hosts).unwrap();

    let server = Server::start(Vec::new()).await;
    let local = once(&server.resolver(), "localhost:80").await.unwrap();
    assert_eq!(addresses(&local), ["127.0.0.1:80", "[::1]:80"]);
    assert_eq!(server.asked(), [], "localhost never goes to the DNS (RFC 6761)");
}

#[tokio::test]
async fn the_search_list_is_tried_in_order_and_stops_at_a_failure() {
    let server = Server::start(vec![a("web.two.test.", 0, 1), a("web.", 0, 9)]).await;
    let config = ResolverConfig { search: vec!["one.test".into(), "two.test".into()], ..server.config() };
    let resolver = Resolver::new(config, Handle::current());
    assert_eq!(addresses(&once(&resolver, "web:80").await.unwrap()), ["10.0.0.1:80"]);
    assert_eq!(addresses(&once(&resolver, "web.:80").await.unwrap()), ["10.0.0.9:80"], "a final dot means as it is");
    server.fail("web.two.test.", RecordType::A);
    server.fail("web.two.test.", RecordType::AAAA);
    assert!(once(&resolver, "web:80").await.is_err(), "`web.` is another host and must not take its place");
}

#[tokio::test]
async fn addresses_that_mean_this_machine_by_accident_are_left_out() {
    let zero = record("orders.test.", 0, RData::A(A::new(0, 0, 0, 0)));
    let server = Server::start(vec![zero.clone(), a("orders.test.", 0, 1)]).await;
    assert_eq!(addresses(&once(&server.resolver(), "orders.test:80").await.unwrap()), ["10.0.0.1:80"]);
    server.set(vec![zero]);
    assert!(once(&server.resolver(), "orders.test:80").await.is_err());
}

#[tokio::test]
async fn a_silent_server_is_bounded() {
    let server = Server::start(Vec::new()).await;
    server.feel(Mood::Silent);
    let start = Instant::now();
    assert!(server.resolver().resolve_once(name("orders.test:80"), Duration::from_millis(100)).await.is_err());
    assert!(start.elapsed() < Duration::from_millis(500));
    let orders = follow(&server.resolver(), "orders.test:80");
    assert!(orders.handle.settled(Duration::from_millis(900)).await.is_err());
    assert!(orders.handle.status().trouble.is_some());
}

#[test]
fn names_are_written_as_host_and_port_or_as_a_service() {
    for text in ["orders.internal:8080", "10.0.0.1:80", "[fd00::1]:80", "my_host:80", "srv:_http._tcp.orders.internal"]
    {
        assert_eq!(name(text).to_string(), text);
    }
    let long = format!("{}:80", "a".repeat(64));
    for wrong in [
        "orders.internal",
        "orders.internal:0",
        "orders.internal:99999",
        ":80",
        "a b:80",
        "fd00::1:80",
        "[fd00::zz]:80",
        "http://orders:80",
        "srv:orders.internal",
        "srv:_http._tcp",
        "srv:_._tcp.a",
        "..:80",
        &long,
    ] {
        assert!(wrong.parse::<Name>().is_err(), "{wrong}");
    }
}
