use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::config::{Problems, upstream as config};

pub(super) fn at(millis: u64) -> Moment {
    Moment::from_millis(Moment::now().as_millis() + 100_000_000 + millis)
}

fn here() -> Surroundings<'static> {
    Surroundings {
        folder: std::path::Path::new(""),
        environment: &|name| (name == "STICKY").then(|| "a secret".to_owned()),
    }
}

pub(super) fn try_compile(
    json: serde_json::Value,
    previous: Option<&Arc<Upstream>>,
) -> Result<Arc<Upstream>, Vec<String>> {
    let config: config::Upstream = serde_json::from_value(json).unwrap();
    let mut problems = Problems::default();
    let upstream = Upstream::compile("orders", &config, previous, here(), "upstreams.orders", &mut problems);
    upstream.ok_or_else(|| problems.0.iter().map(|problem| problem.to_string()).collect())
}

pub(super) fn compile(json: serde_json::Value) -> Arc<Upstream> {
    try_compile(json, None).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// An upstream of targets 127.0.0.1:1, :2, … with these weights.
pub(super) fn weighted(weights: &[u32], more: serde_json::Value) -> Arc<Upstream> {
    let targets: Vec<_> = weights
        .iter()
        .enumerate()
        .map(|(i, weight)| serde_json::json!({ "address": format!("127.0.0.1:{}", i + 1), "weight": weight }))
        .collect();
    let mut json = serde_json::json!({ "targets": targets });
    for (key, value) in more.as_object().unwrap() {
        json[key] = value.clone();
    }
    compile(json)
}

/// The number of the target, from 0.
pub(super) fn number(pick: &Pick) -> usize {
    pick.target().socket_address().unwrap().port() as usize - 1
}

fn pick(upstream: &Upstream, now: Moment) -> Result<Pick> {
    upstream.pick(&PickRequest::default(), now)
}

fn reason(result: Result<Pick>) -> Reason {
    result.map(|pick| number(&pick)).expect_err("nothing to pick").reason
}

fn answer(status: u16) -> Outcome {
    Outcome::Answered { status, first_byte: Duration::from_millis(5) }
}

const REFUSED: Outcome = Outcome::Failed(Failure::Connect);

fn set_health(upstream: &Upstream, number: usize, healthy: bool, now: Moment) {
    let result = if healthy { Ok(()) } else { Err("down".to_owned()) };
    upstream.targets()[number].state.check_ended(&result, 1, 1, now);
}

#[test]
fn a_retry_goes_to_another_target_and_to_the_same_one_only_for_want_of_others() {
    let upstream = weighted(&[1, 1], serde_json::json!({}));
    let now = at(0);
    let ids: Vec<TargetId> = upstream.targets().iter().map(|target| target.id()).collect();
    for _ in 0..20 {
        let request = PickRequest { tried: &ids[..1], ..Default::default() };
        assert_eq!(number(&upstream.pick(&request, now).unwrap()), 1);
    }
    let request = PickRequest { tried: &ids, ..Default::default() };
    assert!(upstream.pick(&request, now).is_ok());
}

#[test]
fn without_a_healthy_target_the_answer_is_503() {
    let upstream = weighted(&[1, 1], serde_json::json!({ "health": { "active": { "tcp": {} } } }));
    let now = at(0);
    set_health(&upstream, 0, false, now);
    assert_eq!(number(&pick(&upstream, now).unwrap()), 1);
    set_health(&upstream, 1, false, now);
    assert_eq!(reason(pick(&upstream, now)), Reason::NoHealthyTarget);
    set_health(&upstream, 0, true, now);
    assert_eq!(number(&pick(&upstream, now).unwrap()), 0);
}

#[test]
fn a_backup_is_used_only_while_no_better_target_is_available() {
    let upstream = compile(serde_json::json!({ "targets": [
        { "address": "127.0.0.1:1" },
        { "address": "127.0.0.1:2", "backup": true },
        { "address": "127.0.0.1:3", "tier": 2 },
    ]}));
    let now = at(0);
    let next = || number(&pick(&upstream, now).unwrap());
    assert!((0..50).all(|_| next() == 0));
    set_health(&upstream, 0, false, now);
    assert!((0..50).all(|_| next() == 1));
    set_health(&upstream, 1, false, now);
    assert!((0..50).all(|_| next() == 2));
    set_health(&upstream, 0, true, now);
    assert!((0..50).all(|_| next() == 0));
}

#[test]
fn weight_0_gets_no_new_requests_but_keeps_its_sticky_clients() {
    let upstream = compile(serde_json::json!({
        "targets": [{ "address": "127.0.0.1:1" }, { "address": "127.0.0.1:2", "weight": 0 }],
        "sticky": { "cookie": "node" },
    }));
    let now = at(0);
    assert!((0..50).all(|_| number(&pick(&upstream, now).unwrap()) == 0));
    let drained = upstream.targets()[1].clone();
    let request = PickRequest { sticky: Some(&drained.sticky), ..Default::default() };
    assert_eq!(number(&upstream.pick(&request, now).unwrap()), 1);
}

#[test]
fn a_sticky_client_stays_until_its_target_is_gone() {
    let sticky = serde_json::json!({ "cookie": "node", "secret": "env:STICKY" });
    let upstream = weighted(&[1, 1, 1], serde_json::json!({ "sticky": sticky }));
    let now = at(0);
    let mut head = RequestHeader::build("GET", b"/", None).unwrap();
    assert_eq!(upstream.sticky_value(&head), None);
    let first = pick(&upstream, now).unwrap();
    let cookie = upstream.set_cookie(first.target(), None).unwrap();
    let value = cookie.strip_prefix("node=").unwrap().split(';').next().unwrap().to_owned();
    assert!(!cookie.contains("127.0.0.1"));
    head.append_header("cookie", "other=1").unwrap();
    head.append_header("cookie", format!("node={value}")).unwrap();
    let sent = upstream.sticky_value(&head);
    assert_eq!(sent, Some(value.as_str()));
    assert_eq!(upstream.set_cookie(first.target(), sent), None, "it has the cookie already");
    let request = PickRequest { sticky: sent, ..Default::default() };
    assert!((0..50).all(|_| number(&upstream.pick(&request, now).unwrap()) == number(&first)));
    set_health(&upstream, number(&first), false, now);
    let moved = upstream.pick(&request, now).unwrap();
    assert_ne!(number(&moved), number(&first));
    assert!(upstream.set_cookie(moved.target(), sent).is_some(), "the client is bound anew");
    let forged = PickRequest { sticky: Some("127.0.0.1:1"), ..Default::default() };
    assert!(upstream.pick(&forged, now).is_ok(), "a forged cookie is as good as none");
}

#[test]
fn requests_in_flight_are_capped_for_each_target_and_in_total() {
    let now = at(0);
    let upstream = weighted(&[1, 1], serde_json::json!({ "limits": { "requests_per_target": 2 } }));
    let mut held: Vec<Pick> = (0..4).map(|_| pick(&upstream, now).unwrap()).collect();
    assert_eq!(held.iter().filter(|pick| number(pick) == 0).count(), 2);
    assert_eq!(reason(pick(&upstream, now)), Reason::UpstreamOverloaded);
    let free = number(&held.pop().unwrap());
    assert_eq!(number(&pick(&upstream, now).unwrap()), free);

    let upstream = weighted(&[1, 1], serde_json::json!({ "limits": { "requests": 3 } }));
    let held: Vec<Pick> = (0..3).map(|_| pick(&upstream, now).unwrap()).collect();
    assert_eq!(reason(pick(&upstream, now)), Reason::UpstreamOverloaded);
    drop(held);
    assert!(pick(&upstream, now).is_ok());
}

#[test]
fn every_place_is_given_back_under_concurrency() {
    let upstream = weighted(
        &[3, 2, 1],
        serde_json::json!({ "limits": { "requests_per_target": 4, "requests": 9 }, "breaker": { "failures": "100%" } }),
    );
    let now = at(0);
    let most: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let upstream = &upstream;
                scope.spawn(move || {
                    let mut most = 0;
                    let mut held = Vec::new();
                    for i in 0..5000 {
                        if let Ok(mut pick) = upstream.pick(&PickRequest::default(), now) {
                            most = most.max(pick.target().in_flight());
                            if i % 3 != 0 {
                                pick.report(answer(200), now);
                            }
                            held.push(pick);
                        }
                        if (i + thread) % 4 == 0 {
                            held.clear();
                        }
                    }
                    most
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // A refused entry counts for an instant, once for each of the other threads.
    assert!(most.iter().all(|most| *most <= 4 + 7), "{most:?}");
    assert!(upstream.targets().iter().all(|target| target.in_flight() == 0));
    assert_eq!(upstream.shared.state.in_flight.load(Relaxed), 0);
}

#[test]
fn failing_targets_are_ejected_and_come_back() {
    let upstream = weighted(
        &[1, 1],
        serde_json::json!({ "health": { "passive": { "consecutive_failures": 3, "eject_for": "10s" } } }),
    );
    let mut failures = 0;
    for i in 0..100 {
        let mut pick = pick(&upstream, at(i)).unwrap();
        let bad = number(&pick) == 0;
        failures += u32::from(bad);
        pick.report(if bad { answer(503) } else { answer(200) }, at(i));
    }
    assert_eq!(failures, 3);
    let status = upstream.status(at(200));
    assert!(status.targets[0].ejected && !status.targets[1].ejected);
    assert_eq!((status.targets[0].failures, status.targets[0].requests), (3, 3));
    for _ in 0..20 {
        pick(&upstream, at(200)).unwrap().report(REFUSED, at(200));
    }
    assert!(!upstream.status(at(200)).targets[1].ejected, "half of them at most");
    assert!(!upstream.status(at(20_000)).targets[0].ejected);
}

#[test]
fn an_open_breaker_refuses_and_a_client_that_leaves_does_not_use_up_the_probation() {
    let upstream = weighted(
        &[1],
        serde_json::json!({ "breaker": { "min_requests": 5, "open_for": "1s", "half_open_requests": 1 } }),
    );
    for _ in 0..5 {
        pick(&upstream, at(0)).unwrap().report(REFUSED, at(0));
    }
    assert_eq!(reason(pick(&upstream, at(10))), Reason::CircuitOpen);
    assert_eq!(upstream.status(at(10)).breaker, Some("open"));
    drop(pick(&upstream, at(2000)).expect("half-open"));
    let mut probe = pick(&upstream, at(2000)).expect("the place of the one who left");
    assert_eq!(reason(pick(&upstream, at(2000))), Reason::CircuitOpen);
    probe.report(answer(200), at(2000));
    probe.report(REFUSED, at(2000));
    assert_eq!(upstream.breaker_state(at(2000)), BreakerState::Closed, "only the first report counts");
}

#[test]
fn slow_start_ramps_up_a_target_that_came_back() {
    let seed = fastrand::u64(..);
    fastrand::seed(seed);
    let balances = ["round_robin", "random", "least_connections", "peak_ewma"];
    for balance in balances {
        let upstream = weighted(&[1, 1], serde_json::json!({ "balance": balance, "slow_start": "100s" }));
        let share =
            |now: Moment| (0..4000).filter(|_| number(&pick(&upstream, now).unwrap()) == 0).count() as f64 / 4000.0;
        assert!((share(at(0)) - 0.5).abs() < 0.06, "{balance}: all new, none is favoured (seed {seed})");
        let start = at(0);
        set_health(&upstream, 0, false, start);
        set_health(&upstream, 0, true, start);
        let shares: Vec<f64> = [0, 50, 100].map(|s| share(start + Duration::from_secs(s))).to_vec();
        assert!(shares[0] < 0.15 && shares[0] > 0.01, "{balance}: {shares:?} (seed {seed})");
        assert!(shares[1] > shares[0] + 0.05 && shares[1] < 0.45, "{balance}: {shares:?} (seed {seed})");
        assert!((shares[2] - 0.5).abs() < 0.06, "{balance}: {shares:?} (seed {seed})");
    }
}

#[test]
fn what_was_learnt_survives_a_reload_by_address() {
    let json = |second: &str, weight: u32| {
        serde_json::json!({
            "targets": [{ "address": "127.0.0.1:1", "weight": weight }, { "address": second }],
            "health": { "active": { "tcp": {} }, "passive": { "consecutive_failures": 1 } },
            "breaker": { "min_requests": 5 },
        })
    };
    let old = try_compile(json("127.0.0.1:2", 1), None).unwrap();
    let now = Moment::now();
    set_health(&old, 0, false, now);
    let mut held = pick(&old, now).unwrap();
    held.report(REFUSED, now);
    let new = try_compile(json("127.0.0.1:3", 7), Some(&old)).unwrap();
    new.activate(now);
    let status = new.status(now);
    assert!(!status.targets[0].healthy, "its health is known");
    assert_eq!(status.targets[0].weight, 7);
    assert!(status.targets[1].healthy);
    assert_eq!(status.targets[1].requests, 0, "another address is another target");
    let back = try_compile(json("127.0.0.1:2", 1), Some(&old)).unwrap();
    assert_eq!(back.status(now).targets[1].in_flight, 1, "the old snapshot's request counts in the new one");
    assert!(back.status(now).targets[1].ejected);
    drop(held);
    assert_eq!(back.status(now).targets[1].in_flight, 0);
}

#[test]
fn a_judgement_goes_with_its_rule() {
    let now = Moment::now();
    let old = weighted(
        &[1, 1],
        serde_json::json!({
            "health": { "active": { "tcp": {} }, "passive": { "consecutive_failures": 1 } },
            "breaker": { "min_requests": 1 },
        }),
    );
    set_health(&old, 0, false, now);
    pick(&old, now).unwrap().report(REFUSED, now);
    assert_eq!(reason(pick(&old, now)), Reason::CircuitOpen);
    let plain = serde_json::json!({ "targets": [{ "address": "127.0.0.1:1" }, { "address": "127.0.0.1:2" }] });
    let new = try_compile(plain, Some(&old)).unwrap();
    assert_eq!(reason(pick(&old, now)), Reason::CircuitOpen, "compiling alone changes nothing");
    new.activate(now);
    let status = new.status(now);
    assert!(status.targets.iter().all(|target| target.healthy && !target.ejected));
    assert!(pick(&new, now).is_ok());
}

#[test]
fn targets_follow_what_their_name_stands_for() {
    let upstream = compile(serde_json::json!({ "targets": [{ "address": "orders.internal:80" }] }));
    let now = at(0);
    assert_eq!(reason(pick(&upstream, now)), Reason::NoHealthyTarget);
    let found = |address: &str, tier| Resolved { address: address.parse().unwrap(), weight: 1, tier };
    upstream.update_targets("orders.internal:80", vec![found("127.0.0.1:1", 0), found("127.0.0.1:2", 1)], now);
    let held = pick(&upstream, now).unwrap();
    assert_eq!(number(&held), 0, "the second has a lower priority");
    upstream.update_targets("orders.internal:80", vec![found("127.0.0.1:2", 0), found("127.0.0.1:1", 0)], now);
    let seen = upstream.status(now).targets;
    let flights: HashMap<_, _> = seen.iter().map(|target| (target.address.to_string(), target.in_flight)).collect();
    assert_eq!(flights["127.0.0.1:1"], 1, "the target is the same as before");
    let json = serde_json::json!({ "targets": [{ "address": "orders.internal:80" }], "balance": "random" });
    let reloaded = try_compile(json, Some(&upstream)).unwrap();
    assert_eq!(reloaded.targets().len(), 2, "a reload does not wait for the resolver");
    upstream.update_targets("orders.internal:80", Vec::new(), now);
    assert_eq!(reason(pick(&upstream, now)), Reason::NoHealthyTarget);
}

#[test]
fn a_peer_carries_every_setting() {
    let upstream = compile(serde_json::json!({
        "targets": [{ "address": "127.0.0.1:1" }, { "address": "unix:/run/a.sock" }],
        "tls": { "sni": "orders.example" },
        "timeouts": { "connect": "1s", "first_byte": "2s", "idle": "3s" },
        "keep_alive": { "idle": "4s" },
        "max_streams": 7,
    }));
    let targets = upstream.targets();
    let peer = targets[0].peer(&Timeouts::default());
    assert!(peer.is_tls() && peer.options.verify_cert && peer.options.verify_hostname);
    assert_eq!(peer.sni, "orders.example");
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    assert_eq!(seconds(peer.options.total_connection_timeout), Some(1));
    assert_eq!(seconds(peer.options.read_timeout), Some(2));
    assert_eq!(seconds(peer.options.write_timeout), Some(3));
    assert_eq!(seconds(peer.options.idle_timeout), Some(4));
    assert_eq!(peer.options.max_h2_streams, 7);
    assert!(peer.options.tcp_keepalive.is_some());
    let one = Duration::from_secs(1);
    let slow = targets[0].peer(&Timeouts { idle: Some(90 * one), first_byte: Some(80 * one), ..Default::default() });
    assert_eq!(seconds(slow.options.read_timeout), Some(80), "HTTP/2 may be negotiated: the shorter holds");
    let short = targets[0].peer(&Timeouts { total: Some(one), ..Default::default() });
    assert_eq!(seconds(short.options.read_timeout), Some(1), "no read is longer than the whole");
    let unix = targets[1].peer(&Timeouts::default());
    assert_eq!(unix._address.to_string(), "/run/a.sock");
}

#[test]
fn upstreams_and_tls_settings_do_not_share_connections() {
    let key = |name: &str, more: serde_json::Value| {
        let mut json = serde_json::json!({ "targets": [{ "address": "127.0.0.1:1" }] });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config: config::Upstream = serde_json::from_value(json).unwrap();
        let upstream = Upstream::compile(name, &config, None, here(), "u", &mut Problems::default()).unwrap();
        upstream.targets()[0].peer(&Timeouts::default()).group_key
    };
    let plain = key("a", serde_json::json!({}));
    assert_eq!(plain, key("a", serde_json::json!({ "balance": "random" })), "a reload keeps the connections");
    assert_ne!(plain, key("b", serde_json::json!({})));
    let tls = key("a", serde_json::json!({ "tls": {} }));
    assert_ne!(plain, tls);
    assert_ne!(tls, key("a", serde_json::json!({ "tls": { "verify": false } })));
    assert_ne!(tls, key("a", serde_json::json!({ "tls": {}, "protocol": "http2" })));
}

#[test]
fn verification_is_never_lost_for_want_of_a_name() {
    let sni = |address: &str| {
        let upstream = try_compile(serde_json::json!({ "targets": [{ "address": address }], "tls": {} }), None)?;
        let now = at(0);
        upstream.update_targets(
            address,
            vec![Resolved { address: "127.0.0.1:9".parse().unwrap(), weight: 1, tier: 0 }],
            now,
        );
        Ok::<_, Vec<String>>(upstream.targets()[0].peer(&Timeouts::default()).sni.clone())
    };
    assert_eq!(sni("127.0.0.1:1").unwrap(), "127.0.0.1");
    assert_eq!(sni("[::1]:1").unwrap(), "::1");
    assert_eq!(sni("orders.internal:1").unwrap(), "orders.internal");
    assert_eq!(sni("srv:_https._tcp.orders.internal").unwrap(), "orders.internal");
    assert!(sni("unix:/run/a.sock").unwrap_err()[0].contains("tls.sni"));
}

#[test]
fn hash_keys_are_found_in_requests() {
    let mut head = RequestHeader::build("GET", b"/a/b?user=7&x=", None).unwrap();
    head.append_header("x-tenant", "blue").unwrap();
    head.append_header("cookie", "a=1; session=s1").unwrap();
    let key = |on: serde_json::Value| {
        let upstream = weighted(&[1], serde_json::json!({ "balance": { "consistent_hash": { "on": on } } }));
        upstream.hash_key(&head, "10.0.0.1".parse().unwrap()).map(|key| key.into_owned())
    };
    assert_eq!(key(serde_json::json!("path")).as_deref(), Some(&b"/a/b"[..]));
    assert_eq!(key(serde_json::json!("address")).as_deref(), Some(&[10, 0, 0, 1][..]));
    assert_eq!(key(serde_json::json!({ "header": "X-Tenant" })).as_deref(), Some(&b"blue"[..]));
    assert_eq!(key(serde_json::json!({ "cookie": "session" })).as_deref(), Some(&b"s1"[..]));
    assert_eq!(key(serde_json::json!({ "query": "user" })).as_deref(), Some(&b"7"[..]));
    assert_eq!(key(serde_json::json!({ "query": "x" })), None, "an empty key would send all of them to one target");
    assert_eq!(key(serde_json::json!({ "header": "x-none" })), None);
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let problems = try_compile(
        serde_json::json!({
            "targets": [
                { "address": "a.internal" },
                { "address": "127.0.0.1:1" },
                { "address": "127.0.0.1:1", "weight": 20000 },
                { "address": "unix:/run/a.sock" },
            ],
            "balance": { "consistent_hash": { "on": { "header": "a b" }, "bounded_load": 0.5 } },
            "slow_start": "10s",
            "sticky": { "cookie": "a b", "path": "x", "same_site": "none", "secret": "env:NONE" },
            "health": {
                "active": { "http": { "path": "healthz", "expect": [] }, "tcp": {}, "interval": "0s", "port": 80 },
                "passive": { "slow": { "factor": 1.0 } },
            },
            "breaker": { "half_open_requests": 0 },
            "limits": { "requests": 0 },
            "retry": { "attempts": 0 },
            "timeouts": { "connect": "0s" },
            "tls": { "ca": "/does/not/exist.pem" },
            "protocol": "h2c",
            "max_streams": 0,
        }),
        None,
    )
    .err()
    .unwrap();
    for place in [
        "targets[0].address",
        "targets[2].weight",
        "targets[2].address",
        "balance.consistent_hash.on.header",
        "balance.consistent_hash.bounded_load",
        "slow_start",
        "sticky.cookie",
        "sticky.path",
        "sticky.same_site",
        "sticky.secret",
        "health.active",
        "health.active.http.path",
        "health.active.http.expect",
        "health.active.interval",
        "health.active.port",
        "health.passive.slow.factor",
        "breaker.half_open_requests",
        "limits.requests",
        "retry.attempts",
        "timeouts.connect",
        "tls.ca",
        "tls.sni",
        "protocol",
        "max_streams",
    ] {
        let start = format!("upstreams.orders.{place}: ");
        assert!(problems.iter().any(|problem| problem.starts_with(&start)), "{place} is missing in {problems:#?}");
    }
    assert_eq!(problems.len(), 24, "{problems:#?}");
    let none = try_compile(serde_json::json!({ "targets": [] }), None).err().unwrap();
    assert!(none[0].contains("at least one"));
    let idle = try_compile(serde_json::json!({ "targets": [{ "address": "127.0.0.1:1", "weight": 0 }] }), None);
    assert!(idle.err().unwrap()[0].contains("weight 0"));
}

#[test]
fn refused_retries_are_counted() {
    let upstream = weighted(&[1], serde_json::json!({ "retry": { "budget": { "share": "0%", "min_per_second": 1 } } }));
    let cause = Cause::Failed(Failure::Reset);
    let now = at(0);
    assert!(upstream.may_retry(&Method::GET, 1, cause, now));
    assert!(!upstream.may_retry(&Method::GET, 1, cause, now));
    assert!(!upstream.may_retry(&Method::POST, 1, cause, now), "against the rules, which is not the budget's doing");
    assert_eq!(upstream.status(now).retries_refused, 1);
}
