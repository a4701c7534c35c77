//! Keys: who has one comes in, as the consumer it belongs to, and nobody else does.

use std::time::Instant;

use crate::support::gateway::{headgate, key_hash};
use crate::support::*;

/// The key of the example.
const KEY: &str = "hgk_exampleexampleexampleexample01231XI1lm";

/// A key of the tests that configure their own.
const OTHER: &str = "a key from elsewhere";

/// One service for whoever has a key; `FILTER` and `CONSUMERS` are put in.
const ONE_SERVICE: &str = "
services: { s: { filters: [FILTER], routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
consumers: CONSUMERS
";

fn yaml(filter: &str, consumers: &str) -> String {
    ONE_SERVICE.replace("FILTER", filter).replace("CONSUMERS", consumers)
}

/// The consumer `mobile` of the team `apps`, who has the key.
fn mobile(key: &str) -> String {
    format!("{{ mobile: {{ team: apps, credentials: [{{ api_key: {{ hash: '{}' }} }}] }} }}", key_hash(key))
}

async fn gateway(filter: &str, consumers: &str, origin: &Origin) -> Gateway {
    Gateway::builder(&yaml(filter, consumers)).origin(origin).start().await
}

#[tokio::test]
async fn the_example_lets_subscribers_in_and_tells_the_origin_who_they_are() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("api_key", &origin).await;
    for call in [
        Call::get("/orders/1").header("X-Api-Key", KEY),
        Call::get("/orders/1").header("Authorization", &format!("Bearer {KEY}")),
    ] {
        assert_eq!(gateway.call(&call).await.status, 200, "{call:?}");
        let received = origin.last().await;
        assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"));
        assert_eq!(received.headers.get("x-consumer-team"), Some("apps"));
        assert!(received.headers.get("x-credential-identifier").is_some_and(|id| id.starts_with("api_key:")));
        assert_eq!(received.headers.get("x-anonymous-consumer"), None);
        assert!(!String::from_utf8_lossy(&received.head).contains(KEY), "the key went on to the origin");
    }
    let refused = gateway.get("/orders/1").await;
    assert_eq!((refused.status, refused.problem().as_deref()), (401, Some("unauthenticated")));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert!(refused.keeps_alive(), "a refusal is no reason to connect anew");
    assert_eq!(gateway.get("/health").await.status, 200, "a service without filters is open");
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn unknown_wrong_and_expired_keys_get_the_same_answer() {
    let origin = Origin::named("a").await;
    let consumers = format!(
        "{{ old: {{ credentials: [{{ api_key: {{ hash: '{}', expires: 2020-01-01 }} }}] }}, \
           new: {{ credentials: [{{ api_key: {{ hash: '{}', expires: 2999-01-01 }} }}] }} }}",
        key_hash("an old key that is over"),
        key_hash(OTHER),
    );
    let gateway = gateway("{ api_key: {} }", &consumers, &origin).await;
    let mut answers = Vec::new();
    for presented in ["an old key that is over", "a key from elsewherf", "hgk_", "x", "", &"k".repeat(513)] {
        let answer = gateway.call(&Call::get("/").header("X-Api-Key", presented).header("X-Request-Id", "same")).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("invalid_credentials")), "{presented:?}");
        answers.push((answer.text(), answer.header("www-authenticate").map(str::to_owned)));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(origin.count(), 0);
    assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", OTHER)).await.status, 200);
}

#[tokio::test]
async fn a_key_is_looked_for_only_where_it_belongs() {
    let origin = Origin::named("a").await;
    let filter = "{ api_key: { from: [{ query: api_key }, { cookie: key }] } }";
    let gateway = gateway(filter, &mobile("k-e-y"), &origin).await;
    for (call, status) in [
        (Call::get("/?api_key=k-e-y&a=1"), 200),
        (Call::get("/?a=1").header("Cookie", "a=b; key=k-e-y"), 200),
        (Call::get("/?api_key=%6B-e-y"), 200),
        (Call::get("/").header("X-Api-Key", "k-e-y"), 401),
        (Call::get("/").header("Authorization", "Bearer k-e-y"), 401),
        (Call::get("/?API_KEY=k-e-y"), 401),
        (Call::get("/?api_key=%20k-e-y"), 401),
        (Call::get("/?api_key=k-e-y&api_key=other"), 401),
        (Call::get("/?api_key=k-e-y").header("Cookie", "key=other"), 401),
    ] {
        assert_eq!(gateway.call(&call).await.status, status, "{call:?}");
    }
    let received = origin.requests();
    assert_eq!(received.len(), 3);
    assert_eq!(received[0].target, "/?a=1");
    assert_eq!((received[1].target.as_str(), received[1].headers.get("cookie")), ("/?a=1", Some("a=b")));
    assert_eq!(received[2].target, "/");
}

#[tokio::test]
async fn duplicated_headers_and_white_space_change_nobodys_identity() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{ api_key: {} }", &mobile("k-e-y"), &origin).await;
    for (values, status) in [
        (&["k-e-y"][..], 200),
        (&["k-e-y", "k-e-y"], 200),
        (&["  k-e-y\t"], 200),
        (&["k-e-y", "other"], 401),
        (&["other", "k-e-y"], 401),
        (&["k-e-y", ""], 401),
        (&["k-e-y,k-e-y"], 401),
        (&["k-e-y x"], 401),
        (&["K-E-Y"], 401),
    ] {
        let call = values.iter().fold(Call::get("/"), |call, value| call.header("X-API-Key", value));
        assert_eq!(gateway.call(&call).await.status, status, "{values:?}");
    }
    // A name with an underscore is another header to us and the same to some origins: it is dropped.
    assert_eq!(gateway.call(&Call::get("/").header("X_Api_Key", "k-e-y")).await.status, 401);
    assert_eq!(
        gateway.call(&Call::get("/").header("X_Api_Key", "other").header("x-api-key", "k-e-y")).await.status,
        200
    );
}

#[tokio::test]
async fn nobody_becomes_somebody_by_a_header() {
    let origin = Origin::named("a").await;
    let yaml = yaml("{ api_key: {} }", &mobile("k-e-y"))
        + "identity: { headers: { x-consumer-username: '${consumer}', remote-user: '${consumer}', x-team: '${consumer.team}' } }";
    let open = "{ open: { routes: { all: { match: { path_prefix: /open }, backend: { upstream: origin } } } }, s:";
    let yaml = yaml.replace("{ s:", open);
    let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    for name in [
        "X-Consumer-Username",
        "x-consumer-username",
        "X-Team",
        "Remote-User",
        "REMOTE-USER",
        "X_Consumer_Username",
        "Remote_User",
    ] {
        for target in ["/", "/open"] {
            let call = Call::get(target).header(name, "admin").header("X-Api-Key", "k-e-y").header(name, "root");
            assert_eq!(gateway.call(&call).await.status, 200);
            let received = origin.last().await;
            let head = String::from_utf8_lossy(&received.head).to_lowercase();
            assert!(!head.contains("admin") && !head.contains("root"), "{name} on {target}: {head}");
            let expected = if target == "/" { Some("mobile") } else { None };
            assert_eq!(received.headers.get("remote-user"), expected, "{name} on {target}");
        }
    }
    // Nor can a client have ours removed on the way.
    let call = Call::get("/").header("Connection", "X-Consumer-Username, Remote-User").header("X-Api-Key", "k-e-y");
    assert_eq!(gateway.call(&call).await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("mobile"));
    assert_eq!(origin.last().await.headers.get("remote-user"), Some("mobile"));
}

#[tokio::test]
async fn a_key_ends_with_the_reload_that_revokes_it_also_on_an_open_connection() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway("{ api_key: {} }", &mobile("k-e-y"), &origin).await;
    let mut client = gateway.connect().await;
    let call = |key: &str| Call::get("/").header("X-Api-Key", key);
    assert_eq!(client.call(&call("k-e-y")).await.unwrap().status, 200);
    assert_eq!(client.call(&call("next")).await.unwrap().status, 401);
    // Two keys live side by side while one replaces the other.
    let both = format!(
        "{{ mobile: {{ credentials: [{{ api_key: {{ hash: '{}' }} }}, {{ api_key: {{ hash: '{}' }} }}] }} }}",
        key_hash("k-e-y"),
        key_hash("next")
    );
    assert_eq!(gateway.reload(&yaml("{ api_key: {} }", &both)).await.status, 200);
    assert_eq!(client.call(&call("k-e-y")).await.unwrap().status, 200);
    assert_eq!(client.call(&call("next")).await.unwrap().status, 200);
    assert_eq!(gateway.reload(&yaml("{ api_key: {} }", &mobile("next"))).await.status, 200);
    assert_eq!(client.call(&call("k-e-y")).await.unwrap().status, 401);
    assert_eq!(client.call(&call("next")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_subscription_has_to_be_approved_for_that_very_service() {
    let origin = Origin::named("a").await;
    let template = "
plans: { gold: {} }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
filters: [{ api_key: {} }]
services:
  a: { access: subscribers, routes: { all: { match: { path_prefix: /a }, backend: { upstream: origin } } } }
  b: { access: subscribers, routes: { all: { match: { path_prefix: /b }, backend: { upstream: origin } } } }
  open: { access: open, routes: { all: { match: { path_prefix: /open }, backend: { upstream: origin } } } }
consumers: { mobile: { credentials: [{ api_key: { hash: 'HASH' } }], subscriptions: SUBSCRIPTIONS } }
";
    let yaml =
        |subscriptions: &str| template.replace("HASH", &key_hash("k-e-y")).replace("SUBSCRIPTIONS", subscriptions);
    let mut gateway = Gateway::builder(&yaml("{ a: gold }")).origin(&origin).start().await;
    let call = |target: &str| Call::get(target).header("X-Api-Key", "k-e-y");
    for (subscriptions, a, b) in [
        ("{ a: gold }", 200, 403),
        ("{ a: { plan: gold, state: requested }, b: gold }", 403, 200),
        ("{ a: { plan: gold, state: refused } }", 403, 403),
        ("{ a: { plan: gold, state: revoked } }", 403, 403),
        ("{ a: { plan: gold, state: approved } }", 200, 403),
        ("{}", 403, 403),
    ] {
        assert_eq!(gateway.reload(&yaml(subscriptions)).await.status, 200);
        let answers = [gateway.call(&call("/a")).await, gateway.call(&call("/b")).await];
        assert_eq!([answers[0].status, answers[1].status], [a, b], "{subscriptions}");
        for refused in answers.iter().filter(|answer| answer.status == 403) {
            assert_eq!(refused.problem().as_deref(), Some("not_subscribed"));
        }
    }
    assert_eq!(gateway.get("/open").await.status, 200, "open to whoever has no key");
    assert_eq!(gateway.call(&call("/open")).await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("mobile"));
    let wrong = gateway.call(&Call::get("/open").header("X-Api-Key", "wrong")).await;
    assert_eq!(wrong.status, 401, "who presents a key that is no good learns it");
}

#[tokio::test]
async fn the_log_says_who_called_and_why_one_was_refused_and_never_the_key() {
    let origin = Origin::named("a").await;
    let yaml = yaml("{ api_key: { from: [{ query: api_key }, { header: x-api-key }] } }", &mobile("k-e-y"))
        + "access_log: { to: { file: '{{dir}}/access.log' }, fields: { team: '${consumer.team}' } }";
    let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    assert_eq!(gateway.get("/?api_key=k-e-y").await.status, 200);
    assert_eq!(gateway.get("/?api_key=guess").await.status, 401);
    let log = gateway.access_log(2).await;
    assert_eq!((log[0]["consumer"].as_str(), log[0]["team"].as_str()), (Some("mobile"), Some("apps")));
    assert!(log[0]["credential"].as_str().is_some_and(|id| id.starts_with("api_key:") && id.len() == 24), "{}", log[0]);
    assert_eq!(
        (log[1]["reason"].as_str(), log[1]["cause"].as_str()),
        (Some("invalid_credentials"), Some("the API key is unknown"))
    );
    let text = serde_json::to_string(&log).unwrap() + &gateway.logged();
    assert!(!text.contains("k-e-y") && !text.contains("guess"), "{text}");
    let refused = gateway.metric("headgate_gateway_answers_total", &[("reason", "invalid_credentials")]).await;
    assert_eq!(refused, 1.0);
}

#[test]
fn a_configuration_that_could_let_the_wrong_one_in_is_refused() {
    let hash = key_hash("k-e-y");
    for (yaml, words) in [
        (
            yaml(
                "{ api_key: {} }",
                &format!(
                    "{{ a: {{ credentials: [{{ api_key: {{ hash: '{hash}' }} }}] }}, b: {{ credentials: [{{ api_key: {{ hash: '{hash}' }} }}] }} }}"
                ),
            ),
            "the same API key",
        ),
        (
            yaml("{ api_key: {} }", "{ a: { credentials: [{ api_key: { hash: k-e-y } }] } }"),
            "consumers.a.credentials[0].api_key.hash",
        ),
        (yaml("{ api_key: {} }", "{ a: { subscriptions: { t: gold } } }"), "no service named `t`"),
        (yaml("{ api_key: {} }", "{ a: { subscriptions: { s: gold } } }"), "no plan named `gold`"),
        (
            yaml("{ cors: { origins: ['*'] } }", "{}").replace("{ s: {", "{ s: { access: authenticated,"),
            "no filter on this route authenticates",
        ),
        (yaml("{ api_key: { from: [{ header: x_key }] } }", "{}"), "underscore"),
        (yaml("{ api_key: { from: [] } }", "{}"), "no place"),
        (
            yaml("{ api_key: {} }", &mobile("k-e-y"))
                .replace("services:", "identity: { pepper: 'env:NOT_SET_ANYWHERE' }\nservices:"),
            "NOT_SET_ANYWHERE",
        ),
        (
            yaml("{ api_key: {} }", "{}")
                .replace("services:", "identity: { headers: { x-u: '${consumr}' } }\nservices:"),
            "did you mean `${consumer}`",
        ),
    ] {
        let said = refused(&yaml);
        assert!(said.contains(words), "{words} is missing in: {said}\n{yaml}");
        assert!(!said.contains("k-e-y"), "a key that was written out is not repeated: {said}");
    }
}

#[test]
fn keys_are_made_once_and_hashed_the_same_way() {
    let scratch = scratch::Scratch::new();
    let file = scratch.write("headgate.yaml", "listeners: { http: { address: '127.0.0.1:1' } }\n");
    let file = file.to_str().unwrap();
    let output = headgate(&["key", "create", "mobile", "--json", "--expires", "2027-06-30", "-c", file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (key, hash) = (made["key"].as_str().unwrap(), made["hash"].as_str().unwrap());
    assert!(key.starts_with("hgk_") && key.len() == 42, "{key}");
    let pepper = scratch.path().join("pepper");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&pepper).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "only its owner reads the pepper");
    let again = gateway::headgate_with_input(&["key", "hash", "mobile", "-c", file], key);
    assert!(String::from_utf8_lossy(&again.stdout).contains(hash), "{again:?}");
    let short = gateway::headgate_with_input(&["key", "hash", "mobile", "-c", file], "short");
    assert!(!short.status.success());
}

/// What is said of a configuration that has to be refused.
fn refused(yaml: &str) -> String {
    let scratch = scratch::Scratch::new();
    scratch.write("pepper", "a pepper");
    let yaml = yaml.replace("{{origin}}", "127.0.0.1:1") + "\nlisteners: { http: { address: '127.0.0.1:1' } }\n";
    let file = scratch.write("headgate.yaml", yaml.clone());
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    assert!(!output.status.success(), "accepted:\n{yaml}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn the_time_of_a_refusal_tells_unknown_from_expired_keys_to_nobody() {
    let consumers = format!(
        "{{ old: {{ credentials: [{{ api_key: {{ hash: '{}', expires: 2020-01-01 }} }}] }} }}",
        key_hash("an old key that is over"),
    );
    let origin = Origin::named("a").await;
    let gateway = gateway("{ api_key: {} }", &consumers, &origin).await;
    let mut client = gateway.connect().await;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..1500 {
        // In turn, so that a busy moment of the machine meets both.
        for (key, times) in ["an old key that is over", "an old key that is not!"].iter().zip(&mut times) {
            let call = Call::get("/").header("X-Api-Key", key);
            let sent = Instant::now();
            assert_eq!(client.call(&call).await.unwrap().status, 401);
            times.push(sent.elapsed().as_secs_f64());
        }
    }
    let [expired, unknown] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let ratio = unknown / expired;
    assert!((0.8..1.25).contains(&ratio), "expired {expired}, unknown {unknown}");
}
