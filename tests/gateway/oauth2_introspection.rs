//! Opaque tokens: what the authority says of them holds, for a short time, and nobody comes in without it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::headgate;
use crate::support::tokens::in_seconds;
use crate::support::*;

const ONE_SERVICE: &str = "
services: { s: { filters: [{ oauth2_introspection: { endpoint: 'http://{{authority}}/introspect', client_id: 'head gate',
  client_secret: 'env:SECRET' MORE } }], routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
consumers: { mobile: { credentials: [{ jwt: { subject: app-7 } }] } }
";

const SECRET: &str = "s3cret:+";

async fn gateway(authority: &Origin, more: &str, origin: &Origin) -> Gateway {
    let yaml = ONE_SERVICE.replace("MORE", more);
    let builder = Gateway::builder(&yaml).origin(origin).with("authority", authority.address);
    builder.environment("SECRET", SECRET).start().await
}

fn active() -> Value {
    json!({ "active": true, "sub": "app-7", "scope": "read write" })
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut said = active();
    said[name] = value.into();
    said
}

/// An authority that says the same of every token.
async fn saying(said: Value) -> Origin {
    Origin::start(move |_| Reply::ok(said.to_string())).await
}

fn bearer(token: &str) -> Call {
    Call::get("/").header("Authorization", &format!("Bearer {token}"))
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.call(&bearer(token)).await.status
}

fn field(body: &[u8], name: &str) -> Option<String> {
    url::form_urlencoded::parse(body).find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

#[tokio::test]
async fn the_example_asks_once_and_lets_in_whom_the_authority_knows() {
    let origin = Origin::start(|request| match (request.path(), field(&request.body, "token").as_deref()) {
        ("/oauth2/introspect", Some("good")) => {
            Reply::ok(json!({ "active": true, "sub": "app-7", "scope": "orders:read" }).to_string())
        }
        ("/oauth2/introspect", Some("narrow")) => Reply::ok(json!({ "active": true, "sub": "app-7" }).to_string()),
        ("/oauth2/introspect", _) => Reply::ok(json!({ "active": false }).to_string()),
        _ => Reply::ok("orders"),
    });
    let origin = origin.await;
    let gateway = Gateway::example("oauth2_introspection", &origin).await;
    let call = |token: &str| Call::get("/orders").header("Authorization", &format!("Bearer {token}"));
    for _ in 0..3 {
        assert_eq!(gateway.call(&call("good")).await.status, 200);
        assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("mobile"));
        assert_eq!(origin.last().await.headers.get("authorization"), None, "the token stays here");
        let narrow = gateway.call(&call("narrow")).await;
        let challenge = "Bearer error=\"insufficient_scope\", scope=\"orders:read\"";
        assert_eq!((narrow.status, narrow.header("www-authenticate")), (403, Some(challenge)));
        let bad = gateway.call(&call("bad")).await;
        assert_eq!((bad.status, bad.header("www-authenticate")), (401, Some("Bearer error=\"invalid_token\"")));
    }
    let nobody = gateway.get("/orders").await;
    assert_eq!((nobody.status, nobody.header("www-authenticate")), (401, Some("Bearer")));
    let asked = origin.requests().iter().filter(|request| request.path() == "/oauth2/introspect").count();
    assert_eq!(asked, 3, "each token once, also the bad one");
}

#[tokio::test]
async fn the_gateway_says_who_it_is_as_the_authority_wants_it() {
    let origin = Origin::named("a").await;
    let authority = saying(active()).await;
    let gateway = gateway(&authority, "", &origin).await;
    assert_eq!(status(&gateway, "a token+/=").await, 200);
    let asked = authority.last().await;
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/introspect"));
    // base64("head+gate:s3cret%3A%2B"), RFC 6749, section 2.3.1.
    assert_eq!(asked.headers.get("authorization"), Some("Basic aGVhZCtnYXRlOnMzY3JldCUzQSUyQg=="));
    assert_eq!(asked.headers.get("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(field(&asked.body, "token").as_deref(), Some("a token+/="));
    assert_eq!(field(&asked.body, "client_secret"), None);
    let posting = self::gateway(&authority, ", client_auth: client_secret_post", &origin).await;
    assert_eq!(status(&posting, "t").await, 200);
    let asked = authority.received(2).await.pop().unwrap();
    assert_eq!(asked.headers.get("authorization"), None);
    assert_eq!(field(&asked.body, "client_id").as_deref(), Some("head gate"));
    assert_eq!(field(&asked.body, "client_secret").as_deref(), Some(SECRET));
    assert!(!(gateway.logged() + &posting.logged()).contains("s3cret"));
}

#[tokio::test]
async fn answers_mean_what_they_say_and_no_more() {
    let origin = Origin::named("a").await;
    let rules = ", issuer: 'https://login', audiences: [orders]";
    let full = |name: &str, value: Value| {
        let mut said = active();
        said["iss"] = json!("https://login");
        said["aud"] = json!(["orders"]);
        match value {
            Value::Null => drop(said.as_object_mut().unwrap().remove(name)),
            value => said[name] = value,
        }
        said
    };
    for (said, expected) in [
        (full("x", json!(1)), 200),
        (full("aud", json!("orders")), 200),
        (full("exp", json!(in_seconds(100))), 200),
        (full("aud", json!("other")), 401),
        (full("aud", Value::Null), 401),
        (full("iss", json!("https://other")), 401),
        (full("iss", Value::Null), 401),
        (full("exp", json!(in_seconds(-1))), 401),
        (full("nbf", json!(in_seconds(100))), 401),
        (full("sub", json!("app-8")), 401),
        (full("sub", Value::Null), 401),
        (full("sub", json!(["app-7"])), 401),
        (full("active", json!(false)), 401),
        (full("active", json!("true")), 503),
        (full("active", json!(1)), 503),
        (full("active", Value::Null), 503),
        (full("exp", json!("soon")), 503),
    ] {
        let authority = saying(said.clone()).await;
        let gateway = gateway(&authority, rules, &origin).await;
        assert_eq!(status(&gateway, "t").await, expected, "{said}");
    }
    let authority = saying(active()).await;
    let gateway = gateway(&authority, "", &origin).await;
    for token in ["é", &"x".repeat(8193)] {
        assert_eq!(status(&gateway, token).await, 401);
    }
    assert_eq!(authority.count(), 0, "nobody is asked about what cannot be a token");
}

#[tokio::test]
async fn many_with_the_same_token_cause_one_question() {
    let origin = Origin::named("a").await;
    let authority = Origin::start(|_| Reply::ok(active().to_string()).after(Duration::from_millis(300))).await;
    let gateway = Arc::new(gateway(&authority, "", &origin).await);
    let callers = (0..50).map(|_| {
        let gateway = gateway.clone();
        tokio::spawn(async move { status(&gateway, "t").await })
    });
    for caller in callers.collect::<Vec<_>>() {
        assert_eq!(caller.await.unwrap(), 200);
    }
    assert_eq!(authority.count(), 1);
}

#[tokio::test]
async fn an_answer_is_kept_no_longer_than_it_may_be() {
    let origin = Origin::named("a").await;
    let authority = saying(active()).await;
    let each_time = gateway(&authority, ", cache: 0s", &origin).await;
    for n in 1..=3 {
        assert_eq!(status(&each_time, "t").await, 200);
        assert_eq!(authority.count(), n);
    }
    let briefly = gateway(&authority, ", cache: 1s", &origin).await;
    assert_eq!(status(&briefly, "t").await, 200);
    let again = || async { status(&briefly, "t").await == 200 && authority.count() > 4 };
    assert!(eventually(PATIENCE, again).await, "after a second it is asked again");
    let ending = saying(with("exp", in_seconds(2))).await;
    let gateway = gateway(&ending, ", cache: 1h", &origin).await;
    assert_eq!(status(&gateway, "t").await, 200);
    assert!(eventually(PATIENCE, || async { status(&gateway, "t").await == 401 }).await, "the token has expired");
}

#[tokio::test]
async fn a_removed_consumer_is_out_at_once() {
    let origin = Origin::named("a").await;
    let authority = saying(active()).await;
    let mut gateway = gateway(&authority, ", cache: 1h", &origin).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.call(&bearer("t")).await.unwrap().status, 200);
    let yaml = ONE_SERVICE.replace("MORE", ", cache: 1h").replace("app-7", "app-8");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(client.call(&bearer("t")).await.unwrap().status, 401);
}

#[tokio::test]
async fn nobody_comes_in_while_the_authority_is_slow_down_or_talks_garbage() {
    let origin = Origin::named("a").await;
    let trap = Origin::named("trap").await;
    let location = format!("http://{}/", trap.address);
    let large = with("x", "y".repeat(1 << 20)).to_string();
    let twice = r#"{"active":false,"active":true,"sub":"app-7"}"#;
    for (what, reply) in [
        ("garbage", Box::new(|| Reply::ok("<html>")) as Box<dyn Fn() -> Reply + Send + Sync>),
        ("no HTTP", Box::new(|| Reply::raw("garbage\r\n\r\n").close())),
        ("our secret is wrong", Box::new(|| Reply::with(401, &[], active().to_string()))),
        ("an error", Box::new(|| Reply::with(500, &[], active().to_string()))),
        ("a redirect", Box::new(move || Reply::with(307, &[("Location", &location)], active().to_string()))),
        ("a member twice", Box::new(move || Reply::ok(twice))),
        ("more than anybody needs", Box::new(move || Reply::ok(large.as_str()))),
        ("half an answer", Box::new(|| Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").close())),
        ("silence", Box::new(Reply::silence)),
    ] {
        let authority = Origin::start(move |_| reply()).await;
        let gateway = gateway(&authority, ", http: { timeout: 500ms }", &origin).await;
        let started = Instant::now();
        let answer = gateway.call(&bearer("t")).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("authority_unavailable")), "{what}");
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
        assert_eq!(gateway.get("/").await.status, 401);
    }
    assert_eq!((origin.count(), trap.connections()), (0, 0));
    let down = ports::reserve();
    let yaml = ONE_SERVICE.replace("MORE", "");
    let builder = Gateway::builder(&yaml).origin(&origin).with("authority", down.address);
    let gateway = builder.environment("SECRET", SECRET).start().await;
    assert_eq!(status(&gateway, "t").await, 503);
    let back = Origin::at(down.address, |_| Reply::ok(active().to_string())).await;
    assert_eq!(status(&gateway, "t").await, 200, "a question that failed is asked again");
    assert_eq!(back.count(), 1);
}

#[tokio::test]
async fn a_slow_authority_does_not_make_callers_pile_up() {
    let origin = Origin::named("a").await;
    let authority = Origin::start(|_| Reply::silence()).await;
    let gateway = Arc::new(gateway(&authority, ", concurrency: 4, http: { timeout: 5s }", &origin).await);
    let waiting = (0..4).map(|n| {
        let gateway = gateway.clone();
        tokio::spawn(async move { status(&gateway, &format!("t{n}")).await })
    });
    let waiting: Vec<_> = waiting.collect();
    authority.received(4).await;
    let started = Instant::now();
    for n in 4..20 {
        assert_eq!(status(&gateway, &format!("t{n}")).await, 503);
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    for caller in waiting {
        assert_eq!(caller.await.unwrap(), 503);
    }
    assert_eq!(authority.count(), 4);
}

#[test]
fn a_configuration_without_care_is_refused() {
    let scratch = scratch::Scratch::new();
    scratch.write("secret", "s");
    let good = ONE_SERVICE.replace("env:SECRET", "file:secret").replace("{{authority}}", "127.0.0.1:1");
    for (yaml, words) in [
        (good.replace("MORE", "").replace("127.0.0.1:1/", "login.example.com/"), "allow_plain"),
        (good.replace("MORE", "").replace("client_secret: 'file:secret'", ""), "client_secret"),
        (good.replace("MORE", "").replace("file:secret", "hunter2"), "not written into the configuration"),
        (good.replace("MORE", ", cache: 2h"), "at most 1h"),
        (good.replace("MORE", ", http: { timeout: 2m }"), "up to a minute"),
        (good.replace("MORE", ", concurrency: 0"), "concurrency"),
    ] {
        let yaml = yaml.replace("{{origin}}", "127.0.0.1:1") + "listeners: { http: { address: '127.0.0.1:1' } }\n";
        let file = scratch.write("headgate.yaml", yaml.clone());
        let output = headgate(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{words} is missing in: {said}\n{yaml}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
