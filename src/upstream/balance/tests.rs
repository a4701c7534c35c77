use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::upstream::tests::{at, number, weighted};
use crate::upstream::{Moment, Outcome, PickRequest, Upstream};

/// Seeds the generator and tells the seed, for the message of a failed assertion.
fn seed() -> u64 {
    let seed = fastrand::u64(..);
    fastrand::seed(seed);
    seed
}

/// The share of each target in `n` picks that end at once.
fn shares(upstream: &Upstream, n: usize, now: Moment) -> Vec<f64> {
    let mut counts = vec![0.0; upstream.targets().len()];
    for _ in 0..n {
        counts[number(&upstream.pick(&PickRequest::default(), now).unwrap())] += 1.0 / n as f64;
    }
    counts
}

fn close(shares: &[f64], expected: &[f64], tolerance: f64) -> bool {
    shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() <= tolerance)
}

#[test]
fn each_algorithm_shares_by_weight() {
    let seed = seed();
    for (balance, tolerance) in
        [("round_robin", 0.001), ("random", 0.03), ("least_connections", 0.03), ("peak_ewma", 1.0)]
    {
        let upstream = weighted(&[5, 3, 2], serde_json::json!({ "balance": balance }));
        let shares = shares(&upstream, 10_000, at(0));
        assert!(close(&shares, &[0.5, 0.3, 0.2], tolerance), "{balance}: {shares:?} (seed {seed})");
        assert!(shares.iter().all(|share| *share > 0.05), "{balance}: {shares:?} (seed {seed})");
    }
}

#[test]
fn the_share_of_a_missing_target_is_spread_over_all_others() {
    let seed = seed();
    for balance in ["round_robin", "random", "least_connections"] {
        let upstream = weighted(&[1, 1, 1, 1], serde_json::json!({ "balance": balance }));
        upstream.targets()[1].state.check_ended(&Err("down".into()), 1, 1, at(0));
        let shares = shares(&upstream, 9_000, at(0));
        assert!(close(&shares, &[1.0 / 3.0, 0.0, 1.0 / 3.0, 1.0 / 3.0], 0.03), "{balance}: {shares:?} (seed {seed})");
    }
}

#[test]
fn the_last_of_many_targets_is_found() {
    for balance in ["round_robin", "random", "least_connections", "peak_ewma"] {
        let upstream = weighted(&[1; 100], serde_json::json!({ "balance": balance }));
        for target in &upstream.targets()[..99] {
            target.state.check_ended(&Err("down".into()), 1, 1, at(0));
        }
        for _ in 0..200 {
            assert_eq!(number(&upstream.pick(&PickRequest::default(), at(0)).unwrap()), 99, "{balance}");
        }
    }
}

#[test]
fn round_robin_is_exact_across_threads() {
    let upstream = weighted(&[2, 1], serde_json::json!({}));
    let now = at(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..3000).for_each(|_| drop(upstream.pick(&PickRequest::default(), now))));
        }
    });
    let requests: Vec<u64> = upstream.status(now).targets.iter().map(|target| target.requests).collect();
    assert_eq!(requests, [8000, 4000]);
}

#[test]
fn least_connections_fills_by_weight() {
    for n in [4, 40] {
        let seed = seed();
        let mut weights = vec![1; n];
        weights[0] = 3;
        let upstream = weighted(&weights, serde_json::json!({ "balance": "least_connections" }));
        let held: Vec<_> = (0..10 * (n + 2)).map(|_| upstream.pick(&PickRequest::default(), at(0)).unwrap()).collect();
        let flights: Vec<u32> = upstream.targets().iter().map(|target| target.in_flight()).collect();
        // Looking at all is exact; two choices keep everybody near the mean.
        let slack = if n <= 16 { 3 } else { 8 };
        assert!(flights[0].abs_diff(30) <= slack, "{flights:?} (seed {seed})");
        assert!(flights[1..].iter().all(|flight| flight.abs_diff(10) <= slack), "{flights:?} (seed {seed})");
        drop(held);
    }
}

#[test]
fn peak_ewma_avoids_slow_and_failing_targets() {
    let seed = seed();
    let upstream = weighted(&[1, 1, 1], serde_json::json!({ "balance": "peak_ewma" }));
    let (mut counts, now) = ([0; 3], at(0));
    for i in 0..3000 {
        let now = now + Duration::from_millis(i);
        let mut pick = upstream.pick(&PickRequest::default(), now).unwrap();
        let target = number(&pick);
        counts[target] += 1;
        let outcome = match target {
            0 => Outcome::Answered { status: 200, first_byte: Duration::from_millis(200) },
            1 => Outcome::Answered { status: 200, first_byte: Duration::from_millis(5) },
            _ => Outcome::Failed(crate::upstream::Failure::Connect),
        };
        pick.report(outcome, now);
    }
    assert!(counts[1] > 1500, "{counts:?} (seed {seed})");
    assert!(counts[0] < counts[1] && counts[2] < counts[1], "{counts:?} (seed {seed})");
}

fn hashed(targets: usize, more: serde_json::Value) -> std::sync::Arc<Upstream> {
    let mut hash = serde_json::json!({ "on": "path" });
    hash.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    weighted(&vec![1; targets], serde_json::json!({ "balance": { "consistent_hash": hash } }))
}

fn place(upstream: &Upstream, key: usize) -> usize {
    let key = key.to_string();
    let request = PickRequest { key: Some(key.as_bytes()), ..Default::default() };
    number(&upstream.pick(&request, at(0)).unwrap())
}

#[test]
fn a_key_stays_on_its_target_and_few_move_when_one_is_added() {
    let (five, six) = (hashed(5, serde_json::json!({})), hashed(6, serde_json::json!({})));
    let places: Vec<usize> = (0..2000).map(|key| place(&five, key)).collect();
    assert!((0..2000).all(|key| place(&five, key) == places[key]));
    let moved = (0..2000).filter(|key| place(&six, *key) != places[*key]).count();
    assert!((200..500).contains(&moved), "about a sixth of 2000 keys moves, not {moved}");
    assert!((0..2000).all(|key| place(&six, key) == places[key] || place(&six, key) == 5), "only to the new target");
    for target in 0..5 {
        let share = places.iter().filter(|place| **place == target).count();
        assert!((240..=560).contains(&share), "target {target} has {share} of 2000 keys");
    }
}

#[test]
fn keys_of_a_missing_target_spread_and_come_back() {
    let upstream = hashed(5, serde_json::json!({}));
    let places: Vec<usize> = (0..2000).map(|key| place(&upstream, key)).collect();
    let down = upstream.targets()[2].clone();
    down.state.check_ended(&Err("down".into()), 1, 1, at(0));
    let moved: Vec<usize> = (0..2000).map(|key| place(&upstream, key)).collect();
    assert!((0..2000).all(|key| places[key] == 2 || moved[key] == places[key]));
    let heirs: std::collections::HashSet<_> = (0..2000).filter(|k| places[*k] == 2).map(|k| moved[k]).collect();
    assert_eq!(heirs.len(), 4, "all others take a part");
    down.state.check_ended(&Ok(()), 1, 1, at(0));
    assert!((0..2000).all(|key| place(&upstream, key) == places[key]));
}

#[test]
fn bounded_load_passes_a_hot_key_on() {
    let upstream = hashed(4, serde_json::json!({ "bounded_load": 1.25 }));
    let request = PickRequest { key: Some(b"hot"), ..Default::default() };
    let held: Vec<_> = (0..100).map(|_| upstream.pick(&request, at(0)).unwrap()).collect();
    let flights: Vec<u32> = upstream.targets().iter().map(|target| target.in_flight()).collect();
    assert!(flights.iter().all(|flight| *flight <= 32), "at most 1.25 of 25: {flights:?}");
    drop(held);
    let home = number(&upstream.pick(&request, at(0)).unwrap());
    assert!((0..50).all(|_| number(&upstream.pick(&request, at(0)).unwrap()) == home), "at rest the key has one home");
}

#[test]
fn requests_without_a_key_are_spread() {
    let upstream = hashed(4, serde_json::json!({}));
    let seed = seed();
    let shares = shares(&upstream, 8000, at(0));
    assert!(close(&shares, &[0.25; 4], 0.03), "{shares:?} (seed {seed})");
}

#[test]
fn unix_sockets_have_a_place_on_the_ring() {
    let upstream = crate::upstream::tests::compile(serde_json::json!({
        "targets": [{ "address": "unix:/a" }, { "address": "unix:/b" }, { "address": "127.0.0.1:1" }],
        "balance": { "consistent_hash": { "on": "path" } },
    }));
    for key in 0..300 {
        let key = key.to_string();
        let request = PickRequest { key: Some(key.as_bytes()), ..Default::default() };
        drop(upstream.pick(&request, at(0)).unwrap());
    }
    for target in upstream.targets() {
        assert!(target.state.requests.load(Relaxed) > 30, "{}", target.address());
    }
}
