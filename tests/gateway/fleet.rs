//! Several gateways whose limits hold together, by way of a real Redis and a real Valkey.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{Kind, Redis};
use crate::support::*;

/// Tests that hold with each of the servers.
macro_rules! with_each_server {
    ($($test:ident,)*) => {
        mod redis {
            $(#[tokio::test] async fn $test() { super::$test(super::Kind::Redis).await })*
        }
        mod valkey {
            $(#[tokio::test] async fn $test() { super::$test(super::Kind::Valkey).await })*
        }
    };
}

with_each_server! {
    two_gateways_together_admit_the_limit_and_at_most_a_lease_each_beyond_it,
    a_caller_who_goes_on_when_all_is_used_up_gets_no_new_lease,
    what_a_caller_or_a_gateway_that_stops_has_not_spent_is_there_for_others,
    several_exact_rates_spend_nothing_of_each_other,
    other_settings_of_redis_count_nothing_twice,
    an_exact_limit_admits_not_one_more,
    no_request_waits_for_a_redis_that_hangs_and_all_is_well_when_it_goes_on,
    a_redis_that_was_emptied_is_a_new_beginning_and_no_failure,
    a_clock_that_was_set_back_locks_nobody_out,
    what_was_used_before_redis_was_configured_and_after_counts_once,
    a_redis_that_was_emptied_is_told_again_what_was_used_of_quotas,
    a_gateway_without_a_place_for_a_file_counts_in_redis_and_later_in_the_file,
    a_quota_counts_what_all_gateways_have_served_also_after_a_crash,
}

fn yaml(redis: SocketAddr, more: &str, filter: &str) -> String {
    format!(
        "
redis: {{ url: 'redis://{redis}', timeout: 200ms, gateways: 2{more} }}
usage: {{ interval: 50ms }}
services: {{ s: {{ filters: [{filter}], routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ respond: {{ body: in }} }} }} }} }} }}
"
    )
}

async fn two(redis: &Redis, filter: &str) -> [Gateway; 2] {
    let yaml = yaml(redis.address, "", filter);
    [Gateway::start(&yaml).await, Gateway::start(&yaml).await]
}

/// How many of so many requests, spread over the gateways in turn, were admitted.
async fn admitted(gateways: &[Gateway], count: usize) -> usize {
    let mut clients = Vec::new();
    for gateway in gateways {
        clients.push(gateway.connect().await);
    }
    let mut admitted = 0;
    for n in 0..count {
        let at = n % clients.len();
        match clients[at].get("/").await.unwrap().status {
            200 => admitted += 1,
            429 => {}
            other => panic!("got {other}"),
        }
    }
    admitted
}

/// One command, and the beginning of its answer.
async fn command(redis: &Redis, words: &[&str]) -> String {
    let mut stream = TcpStream::connect(redis.address).await.unwrap();
    let mut text = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| text += &format!("${}\r\n{word}\r\n", word.len()));
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = [0; 256];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

async fn two_gateways_together_admit_the_limit_and_at_most_a_lease_each_beyond_it(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateways = two(&redis, "{ rate_limit: { rate: 100/h, by: route, lease: 5% } }").await;
    let admitted = admitted(&gateways, 400).await;
    assert!((95..=100 + 2 * 5).contains(&admitted), "{admitted} of 100, leased five by five");
    for gateway in &gateways {
        assert_eq!(gateway.metric("headgate_redis_up", &[]).await, 1.0);
        assert_eq!(gateway.metric("headgate_redis_failures_total", &[]).await, 0.0);
    }
}

async fn a_caller_who_goes_on_when_all_is_used_up_gets_no_new_lease(kind: Kind) {
    let redis = Redis::start(kind).await;
    let filter = "{ rate_limit: { rate: 100/h, burst: 20, by: route, lease: 25% } }";
    let gateway = Gateway::start(&yaml(redis.address, "", filter)).await;
    let mut client = gateway.connect().await;
    let (begun, mut admitted) = (Instant::now(), 0);
    // Longer than a lease is good for, twice.
    while begun.elapsed() < Duration::from_secs(5) {
        admitted += usize::from(client.get("/").await.unwrap().status == 200);
    }
    assert!((20..=25).contains(&admitted), "{admitted}: the burst, and one lease");
}

async fn what_a_caller_or_a_gateway_that_stops_has_not_spent_is_there_for_others(kind: Kind) {
    for gateway_stops in [false, true] {
        let redis = Redis::start(kind).await;
        let mut gateways = two(&redis, "{ rate_limit: { rate: 20/h, by: route, lease: 50% } }").await;
        assert_eq!(admitted(&gateways[..1], 1).await, 1);
        // How much Redis takes for spent: the TAT lies three minutes ahead for each.
        let spent = || async {
            let keys = command(&redis, &["KEYS", "*"]).await;
            let key = keys.lines().find(|line| line.starts_with("headgate:rate:")).unwrap_or("none").to_owned();
            let value = command(&redis, &["GET", &key]).await;
            let times = value.lines().nth(1).and_then(|times| times.split_once(' ')).unwrap_or(("0", "0"));
            let [tat, written] = [times.0, times.1].map(|time| time.parse::<f64>().unwrap());
            ((tat - written) / 180e6).round()
        };
        if gateway_stops {
            assert!(eventually(PATIENCE, || async { spent().await >= 10.0 }).await, "a lease: {}", spent().await);
            gateways[0].signal(libc::SIGTERM);
            assert!(gateways[0].exit(PATIENCE).await.is_some_and(|status| status.success()));
            assert_eq!(spent().await, 1.0, "given back before the process ends");
        }
        assert!(eventually(PATIENCE, || async { spent().await == 1.0 }).await, "{} are spent", spent().await);
        let others = admitted(&gateways[1..], 40).await;
        assert!((17..=19).contains(&others), "one of 20 is used, the others are free: {others}");
    }
}

async fn several_exact_rates_spend_nothing_of_each_other(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateways = two(&redis, "{ rate_limit: { rate: [30/h, 5/min], by: route, exact: true } }").await;
    assert_eq!(admitted(&gateways, 40).await, 5);
    let refused = gateways[0].get("/").await;
    assert_eq!(refused.json()["limit"], "s/rate_limit 5/min");
    assert!(command(&redis, &["KEYS", "*5/min*"]).await.starts_with("*1"));
    let keys = command(&redis, &["KEYS", "*5/min*"]).await;
    let minute = keys.lines().find(|line| line.starts_with("headgate:rate:")).unwrap().to_owned();
    assert!(command(&redis, &["DEL", &minute]).await.starts_with(":1"));
    assert_eq!(admitted(&gateways, 10).await, 5, "the hour has 25 left");
}

async fn other_settings_of_redis_count_nothing_twice(kind: Kind) {
    let redis = Redis::start(kind).await;
    let filter = "{ quota: { amount: 100/year, by: gateway } }";
    let mut gateway = Gateway::start(&yaml(redis.address, "", filter)).await;
    for more in [", username: default", ", prefix: other", ""] {
        assert_eq!(admitted(std::slice::from_ref(&gateway), 10).await, 10);
        let writes = gateway.metric("headgate_usage_store_writes_total", &[]).await;
        assert!(gateway.metric_becomes("headgate_usage_store_writes_total", &[], |now| now >= writes.max(1.0)).await);
        assert_eq!(gateway.reload(&yaml(redis.address, more, filter)).await.status, 200);
    }
    assert_eq!(admitted(std::slice::from_ref(&gateway), 100).await, 70);
}

async fn an_exact_limit_admits_not_one_more(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateways = two(&redis, "{ rate_limit: { rate: 50/h, by: route, exact: true } }").await;
    assert_eq!(admitted(&gateways, 120).await, 50);
    let refused = gateways[1].get("/").await;
    assert_eq!(refused.status, 429);
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((60..=72).contains(&after), "{after}: one in 72 seconds");
    assert_eq!(refused.header("ratelimit").unwrap().split(";t=").next(), Some("\"s/rate_limit\";r=0"));
}

async fn no_request_waits_for_a_redis_that_hangs_and_all_is_well_when_it_goes_on(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateways = two(&redis, "{ rate_limit: { rate: 100000/h, by: route } }").await;
    assert_eq!(admitted(&gateways, 50).await, 50);
    redis.signal(libc::SIGSTOP);
    let mut client = gateways[0].connect().await;
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    while begun.elapsed() < Duration::from_millis(1500) {
        let sent = Instant::now();
        assert_eq!(client.get("/").await.unwrap().status, 200);
        slowest = slowest.max(sent.elapsed());
    }
    assert!(slowest < Duration::from_millis(150), "one request took {slowest:?}; Redis has 200 ms to answer");
    redis.signal(libc::SIGCONT);
    let gateway = &gateways[0];
    let up = || async {
        gateway.get("/").await;
        gateway.metric("headgate_redis_up", &[]).await == 1.0
    };
    assert!(eventually(PATIENCE, up).await, "{}", gateway.logged());
}

#[tokio::test]
async fn without_redis_each_limit_does_what_was_chosen_for_that() {
    let nobody = ports::reserve();
    for (chosen, expected) in [("local", 5), ("allow", 20), ("deny", 0)] {
        for exact in ["false", "true"] {
            let filter =
                format!("{{ rate_limit: {{ rate: 10/h, by: route, exact: {exact}, on_redis_failure: {chosen} }} }}");
            let gateway = Gateway::start(&yaml(nobody.address, "", &filter)).await;
            // The lease that is spent in advance is the only thing that tells the first requests apart.
            let mut client = gateway.connect().await;
            let mut count = 0;
            for _ in 0..20 {
                let answer = client.get("/").await.unwrap();
                count += usize::from(answer.status == 200);
                assert_ne!(answer.header("ratelimit"), Some(""), "what is not known is not told");
                if count == 1 && exact == "false" {
                    let down = |up: f64| up == 0.0;
                    assert!(gateway.metric_becomes("headgate_redis_up", &[], down).await, "the first question fails");
                }
            }
            let advance = usize::from(exact == "false");
            assert!((expected..=expected + advance).contains(&count), "{chosen}, exact {exact}: {count}");
            assert!(gateway.logged().matches("fails (").count() <= 1, "said once: {}", gateway.logged());
        }
    }
}

#[tokio::test]
async fn a_redis_that_fails_between_two_rates_has_neither_told_twice() {
    let nobody = ports::reserve();
    let filter = "{ rate_limit: { rate: [1000000/h, 100000/min], by: route } }";
    let gateway = Gateway::start(&yaml(nobody.address, "", filter)).await;
    let mut client = gateway.connect().await;
    // Whenever a pause is over, the first rate asks, and the second finds that somebody does.
    while gateway.metric("headgate_redis_failures_total", &[]).await < 3.0 {
        let answer = client.get("/").await.unwrap();
        let told = answer.header("ratelimit").unwrap();
        assert_eq!((answer.status, told.matches(";r=").count()), (200, 2), "{told}");
    }
}

async fn a_redis_that_was_emptied_is_a_new_beginning_and_no_failure(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateways = two(&redis, "{ rate_limit: { rate: 20/h, by: route, exact: true } }").await;
    assert_eq!(admitted(&gateways, 30).await, 20);
    assert!(command(&redis, &["FLUSHALL"]).await.starts_with("+OK"));
    assert!(command(&redis, &["SCRIPT", "FLUSH"]).await.starts_with("+OK"));
    assert_eq!(admitted(&gateways, 30).await, 20);
}

async fn a_clock_that_was_set_back_locks_nobody_out(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateways = two(&redis, "{ rate_limit: { rate: 20/h, by: route, exact: true } }").await;
    assert_eq!(admitted(&gateways, 1).await, 1);
    let keys = command(&redis, &["KEYS", "*"]).await;
    let key = keys.lines().find(|line| line.starts_with("headgate:rate:")).unwrap_or_else(|| panic!("{keys}"));
    // A TAT that lies a year ahead, as the clock before may have left it.
    assert!(command(&redis, &["SET", key, "9999999999999999 9999999900000000"]).await.starts_with("+OK"));
    assert_eq!(admitted(&gateways, 30).await, 19, "what was owed then is owed now, and no more");
    // Nor does what is no TAT at all.
    assert!(command(&redis, &["SET", key, "garbage"]).await.starts_with("+OK"));
    assert!(admitted(&gateways, 30).await >= 20);
}

async fn a_quota_counts_what_all_gateways_have_served_also_after_a_crash(kind: Kind) {
    let redis = Redis::start(kind).await;
    let mut gateways = two(&redis, "{ quota: { amount: 100/year, by: gateway } }").await;
    assert_eq!(admitted(&gateways[..1], 60).await, 60);
    let written = |writes: f64| writes > 0.0;
    assert!(gateways[0].metric_becomes("headgate_usage_store_writes_total", &[], written).await);
    // The other has learnt of them with its own first count.
    assert_eq!(gateways[1].get("/").await.status, 200);
    let other = &gateways[1];
    let learnt = || async { remaining(&other.get("/").await) < 40 };
    assert!(eventually(PATIENCE, learnt).await);

    gateways[0].signal(libc::SIGKILL);
    gateways[0].exit(PATIENCE).await;
    gateways[0].restart().await;
    let first = &gateways[0];
    let learnt = || async { remaining(&first.get("/").await) < 40 };
    assert!(eventually(PATIENCE, learnt).await, "what was counted before the crash is there");

    let mut refused = [0, 0];
    for _ in 0..200 {
        for (at, gateway) in gateways.iter().enumerate() {
            refused[at] += usize::from(gateway.get("/").await.status == 429);
        }
    }
    assert!(refused.iter().all(|count| *count > 100), "both know that it is used up: {refused:?}");
}

/// What Redis has of the only quota: the parts of all gateways.
async fn parts(redis: &Redis) -> Vec<u64> {
    let keys = command(redis, &["KEYS", "*"]).await;
    let key = keys.lines().find(|line| line.starts_with("headgate:quota:")).unwrap_or("none").to_owned();
    let values = command(redis, &["HVALS", &key]).await;
    let mut parts: Vec<u64> = values.lines().filter_map(|line| line.parse().ok()).collect();
    parts.sort_unstable();
    parts
}

async fn parts_become(redis: &Redis, expected: &[u64]) -> bool {
    eventually(PATIENCE, || async { parts(redis).await == expected }).await
}

/// Waits until a gateway knows that so much of a quota of 1000 is left after another request.
async fn learns(gateway: &Gateway, most_remaining: u64) -> bool {
    let left = || async { remaining(&gateway.get("/").await) <= most_remaining };
    eventually(PATIENCE, left).await
}

async fn what_was_used_before_redis_was_configured_and_after_counts_once(kind: Kind) {
    let redis = Redis::start(kind).await;
    let filter = "{ quota: { amount: 1000/year, by: gateway } }";
    let together = yaml(redis.address, "", filter);
    let alone: String =
        together.lines().filter(|line| !line.starts_with("redis:")).map(|line| format!("{line}\n")).collect();
    let mut gateway = Gateway::start(&alone).await;
    assert_eq!(admitted(std::slice::from_ref(&gateway), 60).await, 60);
    assert_eq!(gateway.reload(&together).await.status, 200);
    assert!(parts_become(&redis, &[60]).await, "without a further request: {:?}", parts(&redis).await);
    let other = Gateway::start(&together).await;
    assert!(learns(&other, 939).await, "the other learns of them");

    // In the fleet, through a crash.
    let others: u64 = 1000 - 60 - remaining(&other.get("/").await);
    assert_eq!(admitted(std::slice::from_ref(&gateway), 5).await, 5);
    assert!(parts_become(&redis, &[others.min(65), others.max(65)]).await, "{others}: {:?}", parts(&redis).await);
    gateway.signal(libc::SIGKILL);
    gateway.exit(PATIENCE).await;
    gateway.restart().await;
    assert_eq!(admitted(std::slice::from_ref(&gateway), 1).await, 1);
    assert!(parts_become(&redis, &[others.min(66), others.max(66)]).await, "{others}: {:?}", parts(&redis).await);

    // Alone again it has its own, also as another process; and back in the fleet nothing is there twice.
    assert_eq!(gateway.reload(&alone).await.status, 200);
    assert_eq!(admitted(std::slice::from_ref(&gateway), 4).await, 4);
    gateway.signal(libc::SIGTERM);
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| status.success()));
    gateway.restart().await;
    assert_eq!(remaining(&gateway.get("/").await), 1000 - 71);
    assert_eq!(gateway.reload(&together).await.status, 200);
    assert!(parts_become(&redis, &[others.min(71), others.max(71)]).await, "{others}: {:?}", parts(&redis).await);
    assert!(learns(&gateway, 1000 - 71 - others - 1).await, "and it learns of the others");
}

fn remaining(answer: &Answer) -> u64 {
    let told = answer.header("ratelimit").unwrap();
    told.split(";r=").nth(1).and_then(|rest| rest.split(';').next()?.parse().ok()).unwrap()
}

async fn a_redis_that_was_emptied_is_told_again_what_was_used_of_quotas(kind: Kind) {
    let redis = Redis::start(kind).await;
    let gateway =
        Gateway::start(&yaml(redis.address, "", "{ quota: { amount: 1000/year, by: { header: x-caller } } }")).await;
    let call = |caller: &'static str| {
        let call = Call::get("/").header("x-caller", caller);
        let gateway = &gateway;
        async move { gateway.call(&call).await }
    };
    for caller in ["a", "a", "b", "b", "b"] {
        call(caller).await;
    }
    let known = |count: usize| {
        let redis = &redis;
        eventually(PATIENCE, move || async move {
            let keys = command(redis, &["KEYS", "headgate:quota:*"]).await;
            keys.lines().filter(|line| line.starts_with("headgate:quota:")).count() == count
        })
    };
    assert!(known(2).await);
    assert!(command(&redis, &["FLUSHALL"]).await.starts_with("+OK"));
    call("a").await;
    assert!(known(2).await, "the next word of one caller brings all back");
    let told = || async { gateway.logged().contains("it is told again") };
    assert!(eventually(PATIENCE, told).await, "{}", gateway.logged());
}

async fn a_gateway_without_a_place_for_a_file_counts_in_redis_and_later_in_the_file(kind: Kind) {
    let redis = Redis::start(kind).await;
    let filter = "{ quota: { amount: 1000/year, by: gateway } }";
    let elsewhere = |yaml: String| yaml.replace("interval: 50ms", "interval: 50ms, file: '{{dir}}/later/usage.db'");
    let together = elsewhere(yaml(redis.address, "", filter));
    let mut gateway = Gateway::start(&together).await;
    assert!(gateway.logged().contains("kept in Redis alone"), "{}", gateway.logged());
    assert_eq!(admitted(std::slice::from_ref(&gateway), 7).await, 7);
    assert!(parts_become(&redis, &[7]).await);
    let folder = gateway.directory().join("later");
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(gateway.reload(&together).await.status, 200);
    assert_eq!(admitted(std::slice::from_ref(&gateway), 2).await, 2);
    assert!(
        parts_become(&redis, &[9]).await,
        "as the file's part, in place of the process's: {:?}",
        parts(&redis).await
    );

    // But a file that is there and of no use is not passed over.
    gateway.signal(libc::SIGTERM);
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| status.success()));
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("usage.db"), vec![b'x'; 8192]).unwrap();
    gateway.relaunch();
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| !status.success()));
    assert!(gateway.logged().contains("damaged or no database"), "{}", gateway.logged());
}

#[tokio::test]
async fn a_configuration_without_a_redis_that_could_be_one_is_refused() {
    for (redis, words) in [
        ("{ url: 'http://localhost' }", "is not the URL of a Redis"),
        ("{ url: 'redis://localhost', password: 'env:NOT_SET_ANYWHERE' }", "NOT_SET_ANYWHERE"),
        ("{ url: 'redis://localhost', gateways: 0 }", "gateways"),
        ("{ url: 'redis://:s3cret@localhost' }", "redis.password"),
    ] {
        let scratch = scratch::Scratch::new();
        let yaml = format!("redis: {redis}\nlisteners: {{ http: {{ address: '127.0.0.1:1' }} }}\n");
        let file = scratch.write("headgate.yaml", yaml);
        let output = gateway::headgate(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{redis}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}
