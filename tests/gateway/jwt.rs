//! Tokens: whoever has a good one of a known issuer comes in, and nothing that only looks like one does.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::support::gateway::{headgate, key_hash};
use crate::support::tokens::*;
use crate::support::*;

/// One service; `FILTER` is what stands in the filter.
const ONE_SERVICE: &str = "
services: { s: { filters: [{ jwt: FILTER }], routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
consumers: { mobile: { team: apps, credentials: [{ jwt: { subject: app-7 } }] } }
";

const JWKS: &str = "jwks_url: 'http://{{issuer}}/keys'";

/// A filter with one issuer, its keys and algorithms, and `more` beside it.
fn filter(keys: &str, algorithms: &str, more: &str) -> String {
    let filter = format!(
        "{{ issuers: [{{ issuer: '{ISSUER}', audiences: [orders], algorithms: [{algorithms}], {keys} }}] {more} }}"
    );
    ONE_SERVICE.replace("FILTER", &filter)
}

/// An issuer that publishes what the test says, and counts how often it is asked.
struct Issuer {
    origin: Origin,
    published: Arc<Mutex<String>>,
}

impl Issuer {
    async fn publishing(keys: &[&Signer]) -> Self {
        let published = Arc::new(Mutex::new(jwks(keys)));
        let shown = published.clone();
        let origin = Origin::start(move |_| Reply::ok(shown.lock().unwrap().as_str())).await;
        Issuer { origin, published }
    }

    fn publish(&self, keys: &[&Signer]) {
        *self.published.lock().unwrap() = jwks(keys);
    }

    /// A gateway that believes it.
    async fn gateway(&self, algorithms: &str, more: &str, origin: &Origin) -> Gateway {
        let yaml = filter(JWKS, algorithms, more);
        Gateway::builder(&yaml).origin(origin).with("issuer", self.origin.address).start().await
    }
}

fn bearer(token: &str) -> Call {
    Call::get("/").header("Authorization", &format!("Bearer {token}"))
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.call(&bearer(token)).await.status
}

/// Asserts that a token is refused as no good.
async fn refuses(gateway: &Gateway, token: &str, what: &str) {
    let answer = gateway.call(&bearer(token)).await;
    assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("invalid_credentials")), "{what}");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""), "{what}");
}

#[tokio::test]
async fn the_example_lets_in_whom_the_issuer_vouches_for() {
    let (rsa, ec) = (Signer::rsa("r1"), Signer::ec("e1", Algorithm::ES256));
    let keys = jwks(&[&rsa, &ec]);
    let origin = Origin::start(move |request| match request.path() {
        "/.well-known/jwks.json" => Reply::ok(keys.as_str()),
        _ => Reply::ok("orders"),
    });
    let origin = origin.await;
    let gateway = Gateway::example("jwt", &origin).await;
    for signer in [&rsa, &ec] {
        let token = signer.sign(&claims());
        for _ in 0..2 {
            let call = Call::get("/orders/1").header("Authorization", &format!("Bearer {token}"));
            assert_eq!(gateway.call(&call).await.status, 200);
            let received = origin.last().await;
            assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"));
            assert!(received.headers.get("x-credential-identifier").is_some_and(|id| id.starts_with("jwt:")));
            assert!(!String::from_utf8_lossy(&received.head).contains(&token), "the token went on to the origin");
        }
    }
    let nobody = gateway.get("/orders/1").await;
    assert_eq!((nobody.status, nobody.header("www-authenticate")), (401, Some("Bearer")));
    let write = |token: &str| Call::post("/orders", "x").header("Authorization", &format!("Bearer {token}"));
    let refused = gateway.call(&write(&rsa.sign(&claims()))).await;
    assert_eq!((refused.status, refused.problem().as_deref()), (403, Some("forbidden")));
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"orders:write\"";
    assert_eq!(refused.header("www-authenticate"), Some(challenge));
    let allowed = rsa.sign(&claims_with("scope", "orders:read orders:write"));
    assert_eq!(gateway.call(&write(&allowed)).await.status, 200);
    assert_eq!(gateway.call(&write(&rsa.sign(&claims_with("scp", json!(["orders:write"]))))).await.status, 200);
    let asked = origin.requests().iter().filter(|request| request.path().contains("jwks")).count();
    assert_eq!(asked, 1, "two filters that believe the same issuer share its keys");
}

#[tokio::test]
async fn every_algorithm_verifies_with_a_key_of_its_own() {
    let origin = Origin::named("a").await;
    let secret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let signers = [
        Signer::rsa("k"),
        Signer::rsa("k").with(Algorithm::RS512),
        Signer::rsa("k").with(Algorithm::PS256),
        Signer::ec("k", Algorithm::ES256),
        Signer::ec("k", Algorithm::ES384),
        Signer::ed("k"),
        Signer::secret("k", secret),
        Signer::secret("k", secret).with(Algorithm::HS512),
    ];
    let token = |signer: &Signer| signer.sign(&claims());
    for (i, signer) in signers.iter().enumerate() {
        let keys = match signer.public.is_empty() {
            true => "secret: 'env:SHARED'".to_owned(),
            false => "public_key: 'public.pem'".to_owned(),
        };
        let builder = Gateway::builder(&filter(&keys, &format!("{:?}", signer.algorithm), ""));
        std::fs::write(builder.directory().join("public.pem"), &signer.public).unwrap();
        let gateway = builder.origin(&origin).environment("SHARED", secret).start().await;
        for (j, other) in signers.iter().enumerate() {
            let expected = if i == j { 200 } else { 401 };
            let (one, two) = (signer.algorithm, other.algorithm);
            assert_eq!(status(&gateway, &token(other)).await, expected, "{two:?} where {one:?} is expected");
        }
    }
}

#[tokio::test]
async fn a_token_cannot_choose_how_it_is_verified() {
    let origin = Origin::named("a").await;
    let trap = Origin::named("trap").await;
    let (rsa, mallory) = (Signer::rsa("r1"), Signer::rsa("r1"));
    let issuer = Issuer::publishing(&[&rsa]).await;
    let gateway = issuer.gateway("RS256, PS256", "", &origin).await;
    assert_eq!(status(&gateway, &rsa.sign(&claims())).await, 200);
    let b64 = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let token = format!("{}.{}.", b64(&json!({ "alg": none }).to_string()), b64(&claims().to_string()));
        refuses(&gateway, &token, none).await;
        let signed = rsa.sign_as(&json!({ "alg": none, "kid": "r1" }), &claims());
        refuses(&gateway, &signed, none).await;
    }
    // The public key is public: whoever has it must not be able to sign with it.
    for secret in [rsa.public.clone(), rsa.public.trim_end().to_owned(), rsa.jwk()["n"].as_str().unwrap().to_owned()] {
        refuses(&gateway, &Signer::secret("r1", &secret).sign(&claims()), "HS256 with the public key").await;
    }
    let url = format!("http://{}/keys", trap.address);
    for (name, value) in [
        ("jwk", mallory.jwk()),
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("kid", json!("../../../../dev/null")),
        ("kid", json!("/etc/passwd")),
        ("kid", json!("x' UNION SELECT 'secret' --")),
        ("kid", json!(url)),
        ("kid", json!("r1\u{0}")),
        ("kid", json!("R1")),
        ("kid", json!("")),
        ("kid", json!(7)),
        ("kid", json!(["r1"])),
    ] {
        let mut head = json!({ "alg": "RS256", "kid": "r1" });
        head[name] = value;
        refuses(&gateway, &mallory.sign_as(&head, &claims()), &head.to_string()).await;
    }
    refuses(&gateway, &mallory.sign(&claims()), "a key of the same id that nobody has published").await;
    assert_eq!(trap.connections(), 0, "nothing that a token names is ever fetched");
    let elsewhere = rsa.sign_as(&json!({ "alg": "RS256", "kid": "r1", "jku": url, "jwk": mallory.jwk() }), &claims());
    assert_eq!(status(&gateway, &elsewhere).await, 200, "what else a header says is ignored (RFC 8725, section 3.10)");
    assert_eq!(trap.connections(), 0);
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn curves_and_algorithms_are_not_mixed_up() {
    let origin = Origin::named("a").await;
    let (p256, p384, ed) = (Signer::ec("p", Algorithm::ES256), Signer::ec("q", Algorithm::ES384), Signer::ed("d"));
    let issuer = Issuer::publishing(&[&p256, &p384, &ed]).await;
    let gateway = issuer.gateway("ES256, EdDSA", "", &origin).await;
    assert_eq!(status(&gateway, &p256.sign(&claims())).await, 200);
    assert_eq!(status(&gateway, &ed.sign(&claims())).await, 200);
    refuses(&gateway, &p384.sign(&claims()), "an algorithm that the configuration does not name").await;
    let as_other = |signer: &Signer, algorithm: &str, kid: &str| {
        signer.sign_as(&json!({ "alg": algorithm, "kid": kid }), &claims())
    };
    for (token, what) in [
        (as_other(&p384, "ES256", "q"), "P-384 as ES256 under its own id"),
        (as_other(&p384, "ES256", "p"), "P-384 as ES256 under the id of a P-256 key"),
        (as_other(&p256, "EdDSA", "p"), "P-256 as EdDSA"),
        (as_other(&ed, "ES256", "d"), "Ed25519 as ES256"),
        (as_other(&p256, "ES384", "q"), "P-256 as ES384"),
    ] {
        refuses(&gateway, &token, what).await;
    }
    // Signatures of zeros (CVE-2022-21449).
    let token = p256.sign(&claims());
    let (message, _) = token.rsplit_once('.').unwrap();
    for length in [0, 63, 64, 65] {
        let zeros = URL_SAFE_NO_PAD.encode(vec![0; length]);
        refuses(&gateway, &format!("{message}.{zeros}"), "a signature of zeros").await;
    }
}

#[tokio::test]
async fn claims_have_to_be_right_and_unambiguous() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let gateway = issuer.gateway("ES256", ", required_claims: [jti], leeway: 60s", &origin).await;
    let good = |name: &str, value: Value| {
        let mut claims = claims_with("jti", "1");
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        signer.sign(&claims)
    };
    for (name, value) in [
        ("jti", json!("2")),
        ("aud", json!(["other", "orders"])),
        ("exp", json!(in_seconds(-55))),
        ("nbf", json!(in_seconds(55))),
        ("iat", json!(in_seconds(500))),
        ("exp", json!(in_seconds(100) as f64 + 0.5)),
    ] {
        assert_eq!(status(&gateway, &good(name, value.clone())).await, 200, "{name}: {value}");
    }
    for (name, value) in [
        ("jti", Value::Null),
        ("iss", Value::Null),
        ("iss", json!("https://login.example.com/")),
        ("iss", json!("https://LOGIN.example.com")),
        ("iss", json!([ISSUER])),
        ("aud", Value::Null),
        ("aud", json!("orders2")),
        ("aud", json!("Orders")),
        ("aud", json!([])),
        ("aud", json!(["other"])),
        ("aud", json!([["orders"]])),
        ("aud", json!({ "orders": 1 })),
        ("aud", json!(["orders", 7])),
        ("exp", Value::Null),
        ("exp", json!(in_seconds(-65))),
        ("exp", json!(in_seconds(300).to_string())),
        ("exp", json!(-1)),
        ("nbf", json!(in_seconds(65))),
        ("nbf", json!("0")),
        ("sub", Value::Null),
        ("sub", json!("app-8")),
        ("sub", json!(["app-7"])),
        ("sub", json!("")),
    ] {
        refuses(&gateway, &good(name, value.clone()), &format!("{name}: {value}")).await;
    }
    let text = claims_with("jti", "1").to_string();
    let head = r#"{"alg":"ES256","kid":"e1"}"#;
    for (head, claims, what) in [
        (head, text.replacen('{', r#"{"sub":"admin","#, 1), "a claim twice"),
        (head, text.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1), "a claim twice further in"),
        (r#"{"alg":"ES256","kid":"e1","alg":"ES256"}"#, text.clone(), "a header parameter twice"),
        (head, text.clone() + "x", "something after the claims"),
        (head, "[]".into(), "no claims"),
        (head, "{".repeat(6000), "deep claims"),
    ] {
        refuses(&gateway, &signer.sign_raw(head, &claims), what).await;
    }
    refuses(&gateway, &good("pad", json!("x".repeat(8 << 10))), "a token that is too long").await;
    assert_eq!(status(&gateway, &good("pad", json!("x".repeat(5 << 10)))).await, 200);
    for token in ["x", "a.b.c", "...", "é.é.é", &good("jti", json!("3")).replace('.', "..")] {
        refuses(&gateway, token, token).await;
    }
}

#[tokio::test]
async fn a_token_that_was_verified_ends_when_it_expires() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let gateway = issuer.gateway("ES256", "", &origin).await;
    let token = signer.sign(&claims_with("exp", in_seconds(3)));
    assert_eq!(status(&gateway, &token).await, 200);
    assert_eq!(status(&gateway, &token).await, 200);
    assert!(eventually(PATIENCE, || async { status(&gateway, &token).await == 401 }).await);
    refuses(&gateway, &token, "expired").await;
}

#[tokio::test]
async fn keys_rotate_and_those_that_are_gone_verify_nothing() {
    let origin = Origin::named("a").await;
    let (old, new) = (Signer::ec("old", Algorithm::ES256), Signer::ec("new", Algorithm::ES256));
    let issuer = Issuer::publishing(&[&old]).await;
    let gateway = issuer.gateway("ES256", "", &origin).await;
    let token = old.sign(&claims());
    assert_eq!(status(&gateway, &token).await, 200);
    assert_eq!(status(&gateway, &token).await, 200);
    issuer.publish(&[&new]);
    assert_eq!(status(&gateway, &token).await, 200, "nobody has a reason to ask again");
    assert_eq!(status(&gateway, &new.sign(&claims())).await, 200, "an unknown key id is a reason to ask");
    refuses(&gateway, &token, "remembered, and signed with a key that the issuer has taken back").await;
    assert_eq!(issuer.origin.count(), 2);
}

#[tokio::test]
async fn ten_thousand_unknown_keys_cause_two_fetches() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let gateway = Arc::new(issuer.gateway("ES256", "", &origin).await);
    let good = signer.sign(&claims());
    assert_eq!(status(&gateway, &good).await, 200);
    let invented = |n: usize| {
        let head = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256", "kid": format!("k{n}") }).to_string());
        format!("{head}.{}.{}", URL_SAFE_NO_PAD.encode(claims().to_string()), URL_SAFE_NO_PAD.encode([1; 64]))
    };
    let tokens: Arc<Vec<String>> = Arc::new((0..10_000).map(invented).collect());
    let clients = (0..20).map(|client| {
        let (gateway, tokens) = (gateway.clone(), tokens.clone());
        tokio::spawn(async move {
            let mut connection = gateway.connect().await;
            for token in tokens.iter().skip(client).step_by(20) {
                assert_eq!(connection.call(&bearer(token)).await.unwrap().status, 401);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert!(issuer.origin.count() <= 2, "{} fetches", issuer.origin.count());
    assert_eq!(status(&gateway, &good).await, 200);
}

#[tokio::test]
async fn an_issuer_that_redirects_is_not_followed() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let keys = jwks(&[&signer]);
    let inside = Origin::start(move |_| Reply::ok(keys.as_str())).await;
    let location = format!("http://{}/latest/meta-data", inside.address);
    for status_code in [301, 302, 303, 307, 308] {
        let location = location.clone();
        let issuer = Origin::start(move |_| Reply::with(status_code, &[("Location", &location)], "")).await;
        let yaml = filter(JWKS, "ES256", "");
        let gateway = Gateway::builder(&yaml).origin(&origin).with("issuer", issuer.address).start().await;
        issuer.received(1).await;
        let answer = gateway.call(&bearer(&signer.sign(&claims()))).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("authority_unavailable")));
        assert!(gateway.logs(&format!("the answer is {status_code}")).await, "{}", gateway.logged());
    }
    assert_eq!((inside.connections(), origin.count()), (0, 0));
}

#[tokio::test]
async fn keys_are_believed_only_over_verified_tls() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let token = signer.sign(&claims());
    let (ours, other) = (tls::Authority::new("ours"), tls::Authority::new("another"));
    for (pair, ca, expected) in [
        (ours.issue(&["127.0.0.1"]), &ours, 200),
        (ours.issue(&["127.0.0.1"]), &other, 503),
        (ours.issue(&["login.example.com"]), &ours, 503),
        (ours.issue_expired("127.0.0.1"), &ours, 503),
    ] {
        let keys = jwks(&[&signer]);
        let issuer = Origin::tls(pair.acceptor(&[], None), move |_| Reply::ok(keys.as_str())).await;
        let keys = "jwks_url: 'https://{{issuer}}/keys', http: { ca: ca.pem }";
        let builder = Gateway::builder(&filter(keys, "ES256", "")).origin(&origin).with("issuer", issuer.address);
        std::fs::write(builder.directory().join("ca.pem"), &ca.certificate).unwrap();
        let gateway = builder.start().await;
        assert_eq!(status(&gateway, &token).await, expected);
        assert_eq!(issuer.count() > 0, expected == 200, "nothing is asked of whoever is not the issuer");
    }
}

#[tokio::test]
async fn nobody_comes_in_while_the_issuer_is_slow_down_or_talks_garbage() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let token = signer.sign(&claims());
    let twice = json!({ "keys": [signer.jwk(), signer.jwk()] }).to_string();
    let large = jwks(&[&signer]) + &" ".repeat(1 << 20);
    for (what, reply) in [
        ("garbage", Box::new(|| Reply::ok("<html>")) as Box<dyn Fn() -> Reply + Send + Sync>),
        ("no HTTP", Box::new(|| Reply::raw("garbage\r\n\r\n").close())),
        ("an error", Box::new(|| Reply::with(500, &[], "{}"))),
        ("an empty answer", Box::new(|| Reply::ok(""))),
        ("two keys of the same id", Box::new(move || Reply::ok(twice.as_str()))),
        ("more than anybody needs", Box::new(move || Reply::ok(large.as_str()))),
        ("half an answer", Box::new(|| Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").close())),
        ("silence", Box::new(Reply::silence)),
        ("one byte", Box::new(|| Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").hold())),
    ] {
        let issuer = Origin::start(move |_| reply()).await;
        let yaml = filter(&format!("{JWKS}, http: {{ timeout: 1s }}"), "ES256", ", wait: 500ms");
        let gateway = Gateway::builder(&yaml).origin(&origin).with("issuer", issuer.address).start().await;
        let started = Instant::now();
        let answer = gateway.call(&bearer(&token)).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("authority_unavailable")), "{what}");
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
        assert_eq!(gateway.get("/").await.status, 401, "whoever has no token is told so as always");
    }
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn an_issuer_that_comes_back_is_believed_and_one_that_goes_leaves_its_keys() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let port = ports::reserve();
    let builder = Gateway::builder(&filter(JWKS, "ES256", "")).origin(&origin).with("issuer", port.address);
    let mut gateway = builder.start().await;
    let token = signer.sign(&claims());
    assert_eq!(status(&gateway, &token).await, 503, "the issuer is down");
    let keys = jwks(&[&signer]);
    let issuer = Origin::at(port.address, move |_| Reply::ok(keys.as_str()).close()).await;
    assert!(eventually(PATIENCE, || async { status(&gateway, &token).await == 200 }).await, "without a restart");
    drop(issuer);
    // A reload goes on with what is known; nobody can be asked now.
    let yaml = filter(JWKS, "ES256", ", leeway: 1s");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(status(&gateway, &signer.sign(&claims_with("jti", "2"))).await, 200);
    let unknown = Signer::ec("e2", Algorithm::ES256);
    refuses(&gateway, &unknown.sign(&claims()), "a key that nobody knows").await;
    assert_eq!(status(&gateway, &token).await, 200, "after a fetch that failed");
}

#[tokio::test]
async fn a_consumer_that_is_removed_is_out_also_with_a_remembered_token_on_an_open_connection() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let mut gateway = issuer.gateway("ES256", "", &origin).await;
    let mut client = gateway.connect().await;
    let call = bearer(&signer.sign(&claims()));
    for _ in 0..2 {
        assert_eq!(client.call(&call).await.unwrap().status, 200);
    }
    let yaml = filter(JWKS, "ES256", "").replace("subject: app-7", "subject: app-8");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(client.call(&call).await.unwrap().status, 401);
    let yaml = yaml.replace("audiences: [orders]", "audiences: [invoices]").replace("app-8", "app-7");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(client.call(&call).await.unwrap().status, 401, "the audience is another one now");
    assert_eq!(gateway.reload(&filter(JWKS, "ES256", "")).await.status, 200);
    assert_eq!(client.call(&call).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_issuer_vouches_for_its_own_tokens_only() {
    let origin = Origin::named("a").await;
    let (one, two) = (Signer::ec("k", Algorithm::ES256), Signer::ec("k", Algorithm::ES256));
    let yaml = ONE_SERVICE.replace(
        "FILTER",
        "{ issuers: [
            { issuer: one, audiences: [a], algorithms: [ES256], public_key: one.pem },
            { issuer: two, audiences: [a, b], algorithms: [ES256], public_key: two.pem, key_id: k } ] }",
    );
    let yaml =
        yaml.replace("{ mobile:", "{ other: { credentials: [{ jwt: { subject: app-7, issuer: two } }] }, mobile:");
    let builder = Gateway::builder(&yaml);
    std::fs::write(builder.directory().join("one.pem"), &one.public).unwrap();
    std::fs::write(builder.directory().join("two.pem"), &two.public).unwrap();
    let gateway = builder.origin(&origin).start().await;
    let token = |signer: &Signer, issuer: &str, audience: &str| {
        let mut claims = claims_with("iss", issuer);
        claims["aud"] = json!(audience);
        signer.sign(&claims)
    };
    for (signer, issuer, consumer) in [(&one, "one", "mobile"), (&two, "two", "other")] {
        assert_eq!(status(&gateway, &token(signer, issuer, "a")).await, 200);
        assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some(consumer));
    }
    assert_eq!(status(&gateway, &token(&two, "two", "b")).await, 200);
    refuses(&gateway, &token(&one, "one", "b"), "an audience of another issuer").await;
    refuses(&gateway, &token(&one, "two", "a"), "a token in the name of another issuer").await;
    refuses(&gateway, &token(&two, "three", "a"), "an issuer that nobody knows").await;
    let named = two.sign_as(&json!({ "alg": "ES256", "kid": "other" }), &claims_with("iss", "two"));
    refuses(&gateway, &named, "another key id").await;
}

#[tokio::test]
async fn tokens_are_found_where_they_may_be_and_only_there() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let from = ", from: [{ header: x-token }, { query: token }, { cookie: token }]";
    let gateway = issuer.gateway("ES256", from, &origin).await;
    let token = signer.sign(&claims());
    for (call, status) in [
        (Call::get("/").header("X-Token", &token), 200),
        (Call::get(&format!("/?a=1&token={token}")), 200),
        (Call::get("/").header("Cookie", &format!("a=b; token={token}")), 200),
        (bearer(&token), 401),
        (Call::get(&format!("/?token={token}")).header("X-Token", "x"), 401),
        (Call::get("/").header("X-Token", &token).header("X-Token", &signer.sign(&claims_with("jti", "2"))), 401),
    ] {
        assert_eq!(gateway.call(&call).await.status, status, "{call:?}");
    }
    assert!(origin.requests().iter().all(|request| !String::from_utf8_lossy(&request.head).contains(&token)));
    let kept = issuer.gateway("ES256", ", keep: true", &origin).await;
    assert_eq!(status(&kept, &token).await, 200);
    assert_eq!(origin.last().await.headers.get("authorization"), Some(format!("Bearer {token}").as_str()));
}

#[tokio::test]
async fn roles_types_and_consumers_are_what_the_configuration_says() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let roles = ", roles: { claim: realm_access.roles, any: [admin, editor] }";
    let gateway = issuer.gateway("ES256", roles, &origin).await;
    for (claim, status_code) in [
        (json!({ "roles": ["reader", "editor"] }), 200),
        (json!({ "roles": "admin" }), 200),
        (json!({ "roles": ["reader"] }), 403),
        (json!({ "roles": "adm in" }), 403),
        (json!({ "roles": { "admin": true } }), 403),
        (json!("admin"), 403),
    ] {
        let token = signer.sign(&claims_with("realm_access", claim.clone()));
        for _ in 0..2 {
            let answer = gateway.call(&bearer(&token)).await;
            assert_eq!(answer.status, status_code, "{claim}");
            let challenge = (status_code == 403).then_some("Bearer error=\"insufficient_scope\"");
            assert_eq!(answer.header("www-authenticate"), challenge);
        }
    }
    let gateway = issuer.gateway("ES256", ", typ: at+jwt", &origin).await;
    for (kind, status_code) in
        [(json!("at+jwt"), 200), (json!("application/AT+JWT"), 200), (json!("JWT"), 401), (json!(null), 401)]
    {
        let head = json!({ "alg": "ES256", "kid": "e1", "typ": kind });
        assert_eq!(status(&gateway, &signer.sign_as(&head, &claims())).await, status_code, "{kind}");
    }
    let gateway = issuer.gateway("ES256", ", consumer: { claim: azp, by: name }", &origin).await;
    assert_eq!(status(&gateway, &signer.sign(&claims_with("azp", "mobile"))).await, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("mobile"));
    assert_eq!(status(&gateway, &signer.sign(&claims_with("azp", "app-7"))).await, 401);
    let yaml = filter(JWKS, "ES256", ", consumer: { required: false }")
        + "identity: { headers: { x-user: '${claim.sub}', x-consumer-username: '${consumer}' } }";
    let gateway = Gateway::builder(&yaml).origin(&origin).with("issuer", issuer.origin.address).start().await;
    assert_eq!(status(&gateway, &signer.sign(&claims_with("sub", "a user"))).await, 200);
    let received = origin.last().await;
    assert_eq!(received.headers.get("x-user"), Some("a user"));
    assert_eq!(received.headers.get("x-consumer-username"), None);
}

#[tokio::test]
async fn a_token_or_a_key_is_enough_and_a_bad_token_is_named_as_such() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let yaml = filter(JWKS, "ES256", "")
        .replace("filters: [", "filters: [{ api_key: {} }, ")
        .replace("credentials: [", &format!("credentials: [{{ api_key: {{ hash: '{}' }} }}, ", key_hash("k-e-y")));
    let gateway = Gateway::builder(&yaml).origin(&origin).with("issuer", issuer.origin.address).start().await;
    let token = signer.sign(&claims());
    assert_eq!(status(&gateway, &token).await, 200);
    assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", "k-e-y")).await.status, 200);
    assert_eq!(gateway.call(&bearer("bad").header("X-Api-Key", "k-e-y")).await.status, 200);
    assert_eq!(gateway.call(&bearer(&token).header("X-Api-Key", "bad")).await.status, 200);
    let challenges = |answer: Answer| answer.headers.all("www-authenticate").collect::<Vec<_>>().join(", ");
    assert_eq!(challenges(gateway.get("/").await), "ApiKey, Bearer");
    assert_eq!(challenges(gateway.call(&bearer("bad")).await), "ApiKey, Bearer error=\"invalid_token\"");
    assert_eq!(challenges(gateway.call(&Call::get("/").header("X-Api-Key", "bad")).await), "ApiKey, Bearer");
}

#[tokio::test]
async fn where_all_are_required_a_token_alone_is_not_enough() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let yaml = filter(JWKS, "ES256", ", roles: { any: [admin] }, consumer: { required: false }")
        .replace("services: { s: {", "services: { s: { require: all,")
        .replace("filters: [", "filters: [{ api_key: {} }, ")
        .replace("credentials: [", &format!("credentials: [{{ api_key: {{ hash: '{}' }} }}, ", key_hash("k-e-y")))
        .replace("consumers: {", "consumers: { other: { credentials: [{ jwt: { subject: app-8 } }] },");
    let gateway = Gateway::builder(&yaml).origin(&origin).with("issuer", issuer.origin.address).start().await;
    let token = |sub: &str, role: &str| {
        let mut claims = claims_with("sub", sub);
        claims["roles"] = json!([role]);
        signer.sign(&claims)
    };
    let with_key = |token: &str| bearer(token).header("X-Api-Key", "k-e-y");
    for (call, expected, what) in [
        (with_key(&token("app-7", "admin")), 200, "both of the same consumer"),
        (with_key(&token("a user", "admin")), 200, "a key, and a token that belongs to no consumer"),
        (bearer(&token("app-7", "admin")), 401, "the token alone"),
        (Call::get("/").header("X-Api-Key", "k-e-y"), 401, "the key alone"),
        (with_key(&token("app-8", "admin")), 401, "two consumers"),
        (with_key(&token("app-7", "reader")), 403, "a token that does not allow this"),
        (bearer(&token("app-7", "admin")).header("X-Api-Key", "bad"), 401, "a bad key"),
        (with_key("bad"), 401, "a bad token"),
    ] {
        assert_eq!(gateway.call(&call).await.status, expected, "{what}");
    }
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn the_log_says_what_is_wrong_with_a_token_and_never_the_token() {
    let origin = Origin::named("a").await;
    let signer = Signer::ec("e1", Algorithm::ES256);
    let issuer = Issuer::publishing(&[&signer]).await;
    let yaml = filter(JWKS, "ES256", ", from: [bearer, { query: access_token }]")
        + "access_log: { to: { file: '{{dir}}/access.log' }, fields: { sub: '${claim.sub}' } }";
    let gateway = Gateway::builder(&yaml).origin(&origin).with("issuer", issuer.origin.address).start().await;
    let (good, old) = (signer.sign(&claims()), signer.sign(&claims_with("exp", 1)));
    assert_eq!(status(&gateway, &good).await, 200);
    assert_eq!(gateway.get(&format!("/?access_token={old}")).await.status, 401);
    let log = gateway.access_log(2).await;
    assert_eq!((log[0]["consumer"].as_str(), log[0]["sub"].as_str()), (Some("mobile"), Some("app-7")));
    assert_eq!(log[1]["cause"].as_str(), Some("the token has expired"));
    let text = serde_json::to_string(&log).unwrap() + &gateway.logged();
    assert!(!text.contains(&good) && !text.contains(&old), "{text}");
}

#[test]
fn a_configuration_that_could_let_the_wrong_one_in_is_refused() {
    let scratch = scratch::Scratch::new();
    scratch.write("short", "too short");
    scratch.write("secret", "0123456789abcdef0123456789abcdef");
    scratch.write("ec.pem", Signer::ec("k", Algorithm::ES256).public);
    let rsa = Signer::rsa("k");
    scratch.write("rsa.pem", &rsa.public);
    scratch.write("set.json", jwks(&[&rsa]));
    scratch.write("garbage.json", "{}");
    let private = rcgen::KeyPair::generate().unwrap().serialize_pem();
    scratch.write("private.pem", private);
    let issuer = |members: &str| {
        ONE_SERVICE.replace("FILTER", &format!("{{ issuers: [{{ issuer: i, audiences: [a], {members} }}] }}"))
    };
    let more = |members: &str| {
        let filter = "{ issuers: [{ issuer: i, audiences: [a], algorithms: [RS256], public_key: rsa.pem }]";
        ONE_SERVICE.replace("FILTER", &format!("{filter}, {members} }}"))
    };
    let refused = |yaml: &str| {
        let yaml = yaml.replace("{{origin}}", "127.0.0.1:1") + "\nlisteners: { http: { address: '127.0.0.1:1' } }\n";
        let file = scratch.write("headgate.yaml", yaml.clone());
        let output = headgate(&["check", "-c", file.to_str().unwrap()]);
        assert!(!output.status.success(), "accepted:\n{yaml}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (yaml, words) in [
        (issuer("algorithms: [none], public_key: rsa.pem"), "none"),
        (issuer("algorithms: [], public_key: rsa.pem"), "algorithms"),
        (issuer("public_key: rsa.pem"), "algorithms"),
        (issuer("algorithms: [RS256]"), "one of `jwks_url`"),
        (issuer("algorithms: [RS256], public_key: rsa.pem, jwks: set.json"), "one of `jwks_url`"),
        (issuer("algorithms: [HS256], public_key: rsa.pem"), "no key of this issuer can be used with HS256"),
        (issuer("algorithms: [RS256, HS256], public_key: rsa.pem"), "no key of this issuer can be used with HS256"),
        (issuer("algorithms: [RS256], secret: 'file:secret'"), "no key of this issuer can be used with RS256"),
        (issuer("algorithms: [HS512], secret: 'file:secret'"), "no key of this issuer can be used with HS512"),
        (issuer("algorithms: [HS256], secret: 'file:short'"), "no key of this issuer can be used with HS256"),
        (issuer("algorithms: [HS256], secret: 'file:rsa.pem'"), "no shared secret"),
        (issuer("algorithms: [ES384], public_key: ec.pem"), "no key of this issuer can be used with ES384"),
        (issuer("algorithms: [ES256], public_key: private.pem"), "private key"),
        (issuer("algorithms: [ES256], public_key: none.pem"), "none.pem"),
        (issuer("algorithms: [ES256], public_key: garbage.json"), "not a public key"),
        (issuer("algorithms: [RS256], jwks: garbage.json"), "not a JWK set"),
        (issuer("algorithms: [RS256], jwks: set.json, key_id: k"), "key_id"),
        (issuer("algorithms: [HS256], jwks_url: 'https://a/'"), "published keys are none"),
        (issuer("algorithms: [RS256], jwks_url: 'http://a/'"), "allow_plain"),
        (issuer("algorithms: [RS256], jwks_url: 'file:///etc/passwd'"), "no address to call"),
        (issuer("algorithms: [RS256], jwks_url: 'https://a/', refresh: 1s"), "at least 10 seconds"),
        (issuer("algorithms: [RS256], jwks_url: 'https://a/', http: { ca: none.pem }"), "none.pem"),
        (issuer("algorithms: [RS256], public_key: rsa.pem").replace("audiences: [a]", "audiences: []"), "audiences"),
        (issuer("algorithms: [RS256], public_key: rsa.pem").replace("audiences: [a],", ""), "audiences"),
        (more("leeway: 61s"), "at most 60s"),
        (more("wait: 11s"), "at most 10s"),
        (more("scopes: ['a b']"), "not a scope"),
        (more("from: []"), "no place"),
        (more("issuer: x"), "issuer"),
    ] {
        let said = refused(&yaml);
        assert!(said.contains(words), "{words} is missing in: {said}\n{yaml}");
        assert!(!said.contains("0123456789abcdef") && !said.contains("too short"), "a secret is repeated: {said}");
    }
}
