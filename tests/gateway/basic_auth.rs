//! User names and passwords: right ones come in, wrong ones do not, and no number of wrong ones stops the others.

use std::time::{Duration, Instant};

use argon2::{Argon2, Params, PasswordHasher};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::gateway::headgate;
use crate::support::*;

/// `Authorization` as RFC 7617 writes it.
fn basic(both: impl AsRef<[u8]>) -> String {
    format!("Basic {}", STANDARD.encode(both))
}

fn call(both: &str) -> Call {
    Call::get("/").header("Authorization", &basic(both))
}

/// A hash that costs `memory` KiB in `passes`.
fn hash_of(password: &str, memory: u32, passes: u32) -> String {
    let argon2 = Argon2::from(Params::new(memory, passes, 1, None).unwrap());
    argon2.hash_password(password.as_bytes()).unwrap().to_string()
}

/// A hash that is cheap to compute.
fn hash(password: &str) -> String {
    hash_of(password, 64, 1)
}

fn yaml(filter: &str, consumers: &str) -> String {
    format!(
        "
services:
  s: {{ filters: [{filter}], routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }}
  open: {{ routes: {{ all: {{ match: {{ path: /open }}, backend: {{ respond: {{ body: open }} }} }} }} }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
consumers: {consumers}
"
    )
}

fn mobile(hash: &str) -> String {
    format!("{{ mobile: {{ team: apps, credentials: [{{ basic_auth: {{ username: mo, hash: '{hash}' }} }}] }} }}")
}

async fn gateway(filter: &str, consumers: &str, origin: &Origin) -> Gateway {
    Gateway::builder(&yaml(filter, consumers)).origin(origin).start().await
}

#[tokio::test]
async fn the_example_lets_the_right_password_in_and_asks_for_one() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("basic_auth", &origin).await;
    for _ in 0..3 {
        let call = Call::get("/orders").header("Authorization", &basic("mobile:open sesame"));
        assert_eq!(gateway.call(&call).await.status, 200);
        let received = origin.last().await;
        assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"));
        assert!(received.headers.get("x-credential-identifier").is_some_and(|id| id.starts_with("basic_auth:")));
        assert_eq!(received.headers.get("authorization"), None, "the password went on to the origin");
    }
    let refused = gateway.get("/orders").await;
    assert_eq!((refused.status, refused.problem().as_deref()), (401, Some("unauthenticated")));
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"orders\", charset=\"UTF-8\""));
    let wrong = gateway.call(&Call::get("/orders").header("Authorization", &basic("mobile:open Sesame"))).await;
    assert_eq!((wrong.status, wrong.problem().as_deref()), (401, Some("invalid_credentials")));
    assert!(wrong.keeps_alive());
    assert_eq!(gateway.get("/health").await.status, 200);
    assert_eq!(origin.count(), 3);
}

#[tokio::test]
async fn hostile_credentials_are_refused_and_never_forwarded() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{ basic_auth: {} }", &mobile(&hash("p:w \u{e9}")), &origin).await;
    assert_eq!(gateway.call(&call("mo:p:w \u{e9}")).await.status, 200, "only the first colon separates");
    for hostile in [
        "Basic".to_owned(),
        "Basic ".to_owned(),
        "Basic !!!!".to_owned(),
        "Basic bW86cDp3IMOp=".to_owned(),
        "Basic bW86cDp3IMOp bW86cDp3IMOp".to_owned(),
        basic("mo"),
        basic("mo:"),
        basic(":p:w \u{e9}"),
        basic("mobile:p:w \u{e9}"),
        basic("MO:p:w \u{e9}"),
        basic("mo :p:w \u{e9}"),
        basic("mo:p:w \u{e9}\0"),
        basic("mo\0:p:w \u{e9}"),
        basic(b"mo:p:w \xe9"),
        basic("mo:p:w \u{e9}\r\nX: y"),
        basic(format!("mo:{}", "p".repeat(1025))),
        format!("Basic {}", "A".repeat(7000)),
    ] {
        let answer = gateway.call(&Call::get("/").header("Authorization", &hostile)).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("invalid_credentials")), "{hostile:.60}");
    }
    let right = basic("mo:p:w \u{e9}");
    for second in [right.as_str(), "Bearer token", "Basic eDp5"] {
        for pair in [[right.as_str(), second], [second, right.as_str()]] {
            let twice = Call::get("/").header("Authorization", pair[0]).header("authorization", pair[1]);
            assert_eq!(gateway.call(&twice).await.status, 401, "two headers: {pair:?}");
        }
    }
    assert_eq!(gateway.call(&Call::get("/").header("Authorization", "Bearer token")).await.status, 401);
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_changed_hash_or_a_removed_consumer_ends_what_was_remembered_with_the_reload() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway("{ basic_auth: {} }", &mobile(&hash("first")), &origin).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.call(&call("mo:first")).await.unwrap().status, 200);
    assert_eq!(client.call(&call("mo:second")).await.unwrap().status, 401);
    assert_eq!(gateway.reload(&yaml("{ basic_auth: {} }", &mobile(&hash("second")))).await.status, 200);
    assert_eq!(client.call(&call("mo:first")).await.unwrap().status, 401);
    assert_eq!(client.call(&call("mo:second")).await.unwrap().status, 200, "that it was wrong is forgotten too");
    assert_eq!(gateway.reload(&yaml("{ basic_auth: {} }", "{}")).await.status, 200);
    assert_eq!(client.call(&call("mo:second")).await.unwrap().status, 401);
}

#[tokio::test]
async fn the_header_goes_on_only_where_it_is_kept() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{ basic_auth: { keep: true } }", &mobile(&hash("p")), &origin).await;
    assert_eq!(gateway.call(&call("mo:p")).await.status, 200);
    assert_eq!(origin.last().await.headers.get("authorization"), Some(basic("mo:p").as_str()));
}

/// The time of the middle one of several calls with different passwords.
async fn median(gateway: &Gateway, user: &str) -> Duration {
    let mut client = gateway.connect().await;
    let mut times = Vec::new();
    for attempt in 0..9 {
        let started = Instant::now();
        assert_eq!(client.call(&call(&format!("{user}:wrong {attempt}"))).await.unwrap().status, 401);
        times.push(started.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn an_unknown_user_takes_as_long_as_a_wrong_password() {
    let origin = Origin::named("a").await;
    // Not the parameters of the built-in decoy: it has to be one like the consumer's.
    let gateway = gateway("{ basic_auth: {} }", &mobile(&hash_of("right", 8192, 2)), &origin).await;
    let (known, unknown) = (median(&gateway, "mo").await, median(&gateway, "nobody").await);
    let hundredth = |ratio: f64| (ratio * 100.0) as u64;
    let ratio = hundredth(unknown.as_secs_f64() / known.as_secs_f64());
    // Coarse: other tests run beside this one. Without the decoy the ratio is below a tenth.
    assert!((20..500).contains(&ratio), "known {known:?}, unknown {unknown:?}");
    // The same wrong password again is known to be wrong, for a user who exists as for one who does not.
    let started = Instant::now();
    for user in ["mo", "nobody"] {
        assert_eq!(gateway.call(&call(&format!("{user}:wrong 0"))).await.status, 401);
    }
    assert!(started.elapsed() < known.max(Duration::from_millis(100)) * 2, "{:?} for two", started.elapsed());
}

#[tokio::test]
async fn a_password_bomb_does_not_slow_other_requests_nor_fill_the_memory() {
    let origin = Origin::named("a").await;
    let consumers = format!(
        "{{ mobile: {{ credentials: [{{ basic_auth: {{ username: mo, hash: '{}' }} }}] }}, \
            quick: {{ credentials: [{{ basic_auth: {{ hash: '{}' }} }}] }} }}",
        hash_of("right", 65_536, 4),
        hash("quick"),
    );
    let gateway = gateway("{ basic_auth: {} }", &consumers, &origin).await;
    assert_eq!(gateway.call(&call("quick:quick")).await.status, 200, "remembered from now on");
    let before = gateway.memory();
    let address = gateway.address("http");
    let bombs: Vec<_> = (0..120)
        .map(|attempt| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await?;
                client.patience = Duration::from_secs(60);
                client.call(&call(&format!("mo:wrong {attempt}"))).await
            })
        })
        .collect();
    let mut client = gateway.connect().await;
    let mut slowest = Duration::ZERO;
    let mut answered = 0;
    while answered < 200 {
        for (call, status) in [(Call::get("/open"), 200), (call("quick:quick"), 200)] {
            let started = Instant::now();
            assert_eq!(client.call(&call).await.unwrap().status, status);
            slowest = slowest.max(started.elapsed());
            answered += 1;
        }
    }
    // One of these hashes takes longer than that, and eight are waited for.
    assert!(slowest < Duration::from_millis(500), "a request took {slowest:?} beside the bombs");
    let mut refused = 0;
    for bomb in bombs {
        let answer = bomb.await.unwrap().unwrap();
        match answer.status {
            429 => {
                assert_eq!(answer.problem().as_deref(), Some("too_many_requests"));
                assert_eq!(answer.header("retry-after"), Some("2"));
                refused += 1;
            }
            status => assert_eq!(status, 401),
        }
    }
    assert!(refused >= 60, "only {refused} of 120 were refused without computing their hash");
    assert_eq!(origin.requests().len(), 101);
    let threads = available_threads().div_ceil(2).min(8) as u64;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < (threads * 64 + 64) << 20, "{} MiB more than before", grown >> 20);
    assert_eq!(gateway.call(&call("quick:wrong")).await.status, 401, "and it goes on");
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[tokio::test]
async fn many_requests_with_the_same_password_at_once_are_all_let_in() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{ basic_auth: {} }", &mobile(&hash_of("right", 16_384, 2)), &origin).await;
    let address = gateway.address("http");
    let calls: Vec<_> = (0..80)
        .map(|_| tokio::spawn(async move { Client::connect(address).await?.call(&call("mo:right")).await }))
        .collect();
    for answer in calls {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test]
async fn neither_password_nor_hash_is_in_the_log() {
    let origin = Origin::named("a").await;
    let yaml = yaml("{ basic_auth: {} }", &mobile(&hash("s3cret-word")))
        + "access_log: { to: { file: '{{dir}}/access.log' }, fields: { auth: '${request.header.authorization}' } }";
    let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    assert_eq!(gateway.call(&call("mo:s3cret-word")).await.status, 200);
    assert_eq!(gateway.call(&call("mo:s3cret-wore")).await.status, 401);
    let log = gateway.access_log(2).await;
    // Two connections: either line may come first.
    let of = |status: u64| log.iter().find(|line| line["status"] == status).expect("a line of each");
    assert_eq!(of(200)["consumer"].as_str(), Some("mobile"));
    assert_eq!(of(401)["cause"].as_str(), Some("the user name or the password is wrong"));
    let text = serde_json::to_string(&log).unwrap() + &gateway.logged();
    for secret in ["s3cret", &basic("mo:s3cret-word")[6..], &basic("mo:s3cret-wore")[6..], "argon2id"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[test]
fn hashes_that_are_none_or_would_cost_too_much_are_refused() {
    for (hash, words) in [
        ("open sesame".to_owned(), "not an argon2 hash"),
        ("$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234".to_owned(), "not an argon2 hash"),
        ("$argon2id$v=19$m=19456,t=2,p=1$aGVhZGdhdGUgZGVjb3k".to_owned(), "not an argon2 hash"),
        (hash("open sesame").replace("m=64", "m=1048576"), "256 MiB"),
        (hash("open sesame").replace("m=64,t=1", "m=262144,t=100"), "256 MiB"),
        (hash("open sesame").replace("t=1", "t=4294967295"), "256 MiB"),
        (hash("open sesame").replace("m=64,t=1,p=1", "m=4096,t=1,p=200"), "16 lanes"),
    ] {
        let scratch = scratch::Scratch::new();
        let text = yaml("{ basic_auth: {} }", &mobile(&hash)).replace("{{origin}}", "127.0.0.1:1");
        let file = scratch.write("headgate.yaml", text + "listeners: { http: { address: '127.0.0.1:1' } }\n");
        let output = headgate(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{hash} was accepted");
        assert!(said.contains("basic_auth.hash") && said.contains(words), "{words} is missing in: {said}");
        assert!(!said.contains(&hash), "what stands in the hash's place may be a password: {said}");
    }
}
