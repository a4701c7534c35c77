//! Signed requests: what a client has signed comes in once and as it was signed, and nothing else does.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};

use crate::support::client::HOST;
use crate::support::gateway::headgate;
use crate::support::h2::H2Client;
use crate::support::*;

const SECRET: &str = "a shared secret of more than 32 bytes";

enum Key<'k> {
    Secret(&'k str),
    Ed25519(&'k Ed25519KeyPair),
    P256(&'k EcdsaKeyPair),
}

impl Key<'_> {
    fn sign(&self, base: &str) -> Vec<u8> {
        match self {
            Key::Secret(secret) => {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
                ring::hmac::sign(&key, base.as_bytes()).as_ref().to_vec()
            }
            Key::Ed25519(pair) => pair.sign(base.as_bytes()).as_ref().to_vec(),
            Key::P256(pair) => {
                let random = ring::rand::SystemRandom::new();
                pair.sign(&random, base.as_bytes()).unwrap().as_ref().to_vec()
            }
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// The values of `Signature-Input` and `Signature` without their label, for components and their values.
fn sign(components: &[(&str, &str)], params: &str, key: &Key<'_>) -> (String, String) {
    let identifiers: Vec<_> = components.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let input = format!("({}){params}", identifiers.join(" "));
    let lines = components.iter().map(|(name, value)| format!("\"{name}\": {value}\n"));
    let base = lines.collect::<String>() + &format!("\"@signature-params\": {input}");
    (input, STANDARD.encode(key.sign(&base)))
}

fn with(call: Call, (input, signature): &(String, String)) -> Call {
    call.header("Signature-Input", &format!("sig1={input}")).header("Signature", &format!("sig1=:{signature}:"))
}

/// What the filter requires of a request without a body.
fn usual<'a>(method: &'a str, path: &'a str, query: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("@method", method), ("@authority", HOST), ("@path", path), ("@query", query)]
}

fn params(more: &str) -> String {
    format!(";created={};keyid=\"k\"{more}", now())
}

fn digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, body)))
}

fn yaml(filters: &str, credential: &str) -> String {
    "
services: { s: { FILTERS, routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
consumers: { mobile: { credentials: [{ hmac: { key_id: k, CREDENTIAL } }] } }
"
    .replace("FILTERS", filters)
    .replace("CREDENTIAL", credential)
}

/// A gateway that knows the key `k`.
async fn gateway(filter: &str, origin: &Origin) -> Gateway {
    let yaml = yaml(&format!("filters: [{{ hmac: {filter} }}]"), "secret: 'env:SIGNING_SECRET'");
    Gateway::builder(&yaml).environment("SIGNING_SECRET", SECRET).origin(origin).start().await
}

#[tokio::test]
async fn the_example_lets_signed_requests_in_and_takes_the_signature_off() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("hmac", &origin).await;
    let secret = "f1a9c0d47b6e2385a4d9027c5be8136fd08e4a7b92c35f61e7d84b0a19c6f253";
    // The private key of RFC 9421, appendix B.1.4.
    let pair = STANDARD.decode("MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF").unwrap();
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pair).unwrap();
    for (id, key, consumer) in
        [("mobile-1", Key::Secret(secret), "mobile"), ("partner-1", Key::Ed25519(&pair), "partner")]
    {
        let params = format!(";created={};keyid=\"{id}\"", now());
        let call = with(Call::get("/orders?a=1"), &sign(&usual("GET", "/orders", "?a=1"), &params, &key));
        assert_eq!(gateway.call(&call).await.status, 200, "{id}");
        let received = origin.last().await;
        assert_eq!(received.headers.get("x-consumer-username"), Some(consumer));
        assert!(received.headers.get("x-credential-identifier").is_some_and(|id| id.starts_with("hmac:")));
        assert_eq!(received.headers.get("signature"), None);
        assert_eq!(received.headers.get("signature-input"), None);

        let (body, mut covered) = (b"an order", usual("POST", "/orders", "?"));
        let digest = digest(body);
        covered.push(("content-digest", &digest));
        let call = Call::post("/orders", body).header("Content-Digest", &digest);
        assert_eq!(gateway.call(&with(call, &sign(&covered, &params, &key))).await.status, 200, "{id}");
        assert_eq!(origin.last().await.body, body);
        assert_eq!(origin.last().await.headers.get("content-digest"), Some(digest.as_str()));
    }
    let refused = gateway.get("/orders").await;
    assert_eq!((refused.status, refused.problem().as_deref()), (401, Some("unauthenticated")));
    assert_eq!(refused.header("www-authenticate"), Some("Signature"));
}

#[tokio::test]
async fn what_was_not_signed_so_is_refused() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{}", &origin).await;
    let key = Key::Secret(SECRET);
    let covered = usual("GET", "/p", "?q=1");
    let at = |created: i64, more: &str| format!(";created={created};keyid=\"k\"{more}");
    for (what, covered, params) in [
        ("too old", covered.clone(), at(now() - 301, "")),
        ("of the future", covered.clone(), at(now() + 60, "")),
        ("far off", covered.clone(), at(999_999_999_999_999, "")),
        ("before all times", covered.clone(), at(-999_999_999_999_999, "")),
        ("expired", covered.clone(), at(now() - 10, &format!(";expires={}", now() - 1))),
        ("without a time", covered.clone(), ";keyid=\"k\"".to_owned()),
        ("without a key", covered.clone(), format!(";created={}", now())),
        ("of an unknown key", covered.clone(), format!(";created={};keyid=\"../k\"", now())),
        ("with another algorithm", covered.clone(), params(";alg=\"ed25519\"")),
        ("with no algorithm", covered.clone(), params(";alg=\"none\"")),
        ("with the algorithm of another case", covered.clone(), params(";alg=\"HMAC-SHA256\"")),
        ("of another method", usual("POST", "/p", "?q=1"), params("")),
        ("of another path", usual("GET", "/P", "?q=1"), params("")),
        ("of another query", usual("GET", "/p", "?q=2"), params("")),
        ("of no query", usual("GET", "/p", "?"), params("")),
        (
            "of another host",
            vec![("@method", "GET"), ("@authority", "x.example"), ("@path", "/p"), ("@query", "?q=1")],
            params(""),
        ),
        ("without the method", covered[1..].to_vec(), params("")),
        ("without the host", [&covered[..1], &covered[2..]].concat(), params("")),
        ("without the path", [&covered[..2], &covered[3..]].concat(), params("")),
        ("without the query", covered[..3].to_vec(), params("")),
        ("of nothing", vec![], params("")),
        ("of a header that is not there", [&covered[..], &[("x-none", "")]].concat(), params("")),
        ("of a header with another value", [&covered[..], &[("x-tenant", "b")]].concat(), params("")),
        ("of something twice", [&covered[..], &covered[..1]].concat(), params("")),
        ("of the unknown", [&covered[..], &[("@unknown", "x")]].concat(), params("")),
    ] {
        let call = with(Call::get("/p?q=1").header("X-Tenant", "a"), &sign(&covered, &params, &key));
        let answer = gateway.call(&call).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("invalid_credentials")), "{what}");
        assert!(answer.keeps_alive());
    }
    let (input, signature) = sign(&covered, &params(""), &key);
    let wrong = sign(&covered, &params(""), &Key::Secret("another secret of more than 32 bytes")).1;
    let call = || Call::get("/p?q=1");
    for (what, call) in [
        ("another secret", with(call(), &(input.clone(), wrong.clone()))),
        ("a cut signature", with(call(), &(input.clone(), signature[..40].to_owned()))),
        ("an empty signature", with(call(), &(input.clone(), String::new()))),
        ("no signature", call().header("Signature-Input", &format!("sig1={input}"))),
        ("no input", call().header("Signature", &format!("sig1=:{signature}:"))),
        (
            "other labels",
            call().header("Signature-Input", &format!("a={input}")).header("Signature", &format!("b=:{signature}:")),
        ),
        (
            "two signatures of a label",
            with(call(), &(input.clone(), signature.clone())).header("Signature", &format!("sig1=:{wrong}:")),
        ),
        (
            "two inputs of a label",
            with(call(), &(input.clone(), signature.clone())).header("Signature-Input", &format!("sig1={input}")),
        ),
        ("no dictionary", call().header("Signature-Input", "((((").header("Signature", "))))")),
        ("a token", call().header("Signature-Input", &format!("sig1={input}")).header("Signature", "sig1=abc")),
    ] {
        assert_eq!(gateway.call(&call).await.status, 401, "{what}");
    }
    assert_eq!(origin.count(), 0);
    // None of it has used the signature up.
    assert_eq!(gateway.call(&with(call(), &(input, signature))).await.status, 200);
}

#[tokio::test]
async fn a_signature_is_good_once() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway("{}", &origin).await;
    let key = Key::Secret(SECRET);
    let params = params("");
    let signed = sign(&usual("GET", "/p", "?"), &params, &key);
    let call = with(Call::get("/p"), &signed);
    assert_eq!(gateway.call(&call).await.status, 200);
    assert_eq!(gateway.call(&call).await.status, 401);
    assert_eq!(gateway.call(&call.clone().header("X-More", "1")).await.status, 401);
    for other in ["/x/../p", "/./p", "/%70"] {
        let again = with(Call::get(other), &signed);
        assert_eq!(gateway.call(&again).await.status, 401, "{other} is the same request");
    }
    // A reload forgets nothing.
    let yaml = yaml("filters: [{ hmac: { window: 10m } }]", "secret: 'env:SIGNING_SECRET'");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(gateway.call(&call).await.status, 401);
    for nonce in ["a", "b"] {
        let params = format!("{params};nonce=\"{nonce}\"");
        let call = with(Call::get("/p"), &sign(&usual("GET", "/p", "?"), &params, &key));
        assert_eq!(gateway.call(&call).await.status, 200, "a nonce makes another request of it");
        assert_eq!(gateway.call(&call).await.status, 401);
    }
    assert_eq!(origin.count(), 3);
    // Of many at once, one.
    let call = with(Call::get("/p"), &sign(&usual("GET", "/p", "?"), &(params + ";nonce=\"c\""), &key));
    let address = gateway.address("http");
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move { Client::connect(address).await?.call(&call).await })
        })
        .collect();
    let mut accepted = 0;
    for answer in calls {
        accepted += usize::from(answer.await.unwrap().unwrap().status == 200);
    }
    assert_eq!(accepted, 1);
}

#[tokio::test]
async fn a_key_ends_with_the_reload_that_removes_it_also_on_an_open_connection() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway("{}", &origin).await;
    let mut client = gateway.connect().await;
    let call = |nonce: &str| {
        let params = params(&format!(";nonce=\"{nonce}\""));
        with(Call::get("/"), &sign(&usual("GET", "/", "?"), &params, &Key::Secret(SECRET)))
    };
    assert_eq!(client.call(&call("a")).await.unwrap().status, 200);
    let yaml = yaml("filters: [{ hmac: {} }]", "secret: 'env:SIGNING_SECRET'").replace("key_id: k,", "key_id: l,");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(client.call(&call("b")).await.unwrap().status, 401);
}

#[tokio::test]
async fn a_body_that_was_changed_never_arrives_whole() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{}", &origin).await;
    let body = vec![b'x'; 300_000];
    let digest = digest(&body);
    let signed = |nonce: &str| {
        let mut covered = usual("POST", "/p", "?");
        covered.push(("content-digest", &digest));
        sign(&covered, &params(&format!(";nonce=\"{nonce}\"")), &Key::Secret(SECRET))
    };
    let post =
        |nonce: &str, body: &[u8]| with(Call::post("/p", body).header("Content-Digest", &digest), &signed(nonce));
    let mut changed = body.clone();
    changed[299_999] = b'y';
    for (i, wrong) in [&changed[..], b"short", &body[1..], &[&body[..], b"x"].concat()].iter().enumerate() {
        let answer = gateway.call(&post(&format!("wrong {i}"), wrong)).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (400, Some("bad_request")), "wrong body {i}");
    }
    // As chunks, and without the length that would tell the origin that something is missing.
    let chunked = |nonce: &str, body: &[u8]| {
        let call = Call::new("POST", "/p").header("Content-Digest", &digest).header("Transfer-Encoding", "chunked");
        let mut bytes = with(call, &signed(nonce)).bytes();
        for piece in body.chunks(50_000) {
            bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    };
    for (i, wrong) in [&changed[..], &[]].iter().enumerate() {
        let mut client = gateway.connect().await;
        client.send(chunked(&format!("chunks {i}"), wrong)).await.unwrap();
        assert_eq!(client.answer().await.unwrap().status, 400, "wrong chunks {i}");
    }
    // The body taken away.
    let without = with(Call::new("POST", "/p").header("Content-Digest", &digest), &signed("none"));
    assert_eq!(gateway.call(&without).await.status, 401);
    let empty = with(Call::post("/p", b"").header("Content-Digest", &digest), &signed("empty"));
    assert_eq!(gateway.call(&empty).await.status, 401);
    assert_eq!(origin.count(), 0, "no whole request has arrived");

    assert_eq!(gateway.call(&post("right", &body)).await.status, 200);
    assert!(origin.last().await.body == body);
    let mut client = gateway.connect().await;
    client.send(chunked("right chunks", &body)).await.unwrap();
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert!(origin.last().await.body == body);
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn a_body_is_verified_again_for_the_next_target_and_never_mirrored_when_it_is_wrong() {
    let (origin, shadow) = (Origin::named("a").await, Origin::named("shadow").await);
    // A target that resets each connection, so that every second request is made anew.
    let broken = Origin::start(|_| Reply::raw("").reset()).await;
    let yaml = yaml("filters: [{ hmac: {} }]", "secret: 'env:SIGNING_SECRET'")
        .replace("backend: { upstream: origin }", "backend: { upstream: origin }, mirror: { upstream: shadow, share: 100% }")
        .replace(
            "upstreams: { origin: { targets: [{ address: '{{origin}}' }] }",
            "upstreams: { shadow: { targets: [{ address: '{{shadow}}' }] }, origin: { targets: [{ address: '{{broken}}' }, { address: '{{origin}}' }], balance: round_robin, retry: { attempts: 2, budget: { share: 100%, min_per_second: 1000 } } }",
        );
    let gateway = Gateway::builder(&yaml)
        .environment("SIGNING_SECRET", SECRET)
        .origin(&origin)
        .with("shadow", shadow.address)
        .with("broken", broken.address)
        .start()
        .await;
    let right = digest(b"right");
    let call = |nonce: usize, body: &str| {
        let mut covered = usual("PUT", "/p", "?");
        covered.push(("content-digest", &right));
        let signed = sign(&covered, &params(&format!(";nonce=\"{nonce}\"")), &Key::Secret(SECRET));
        with(Call::new("PUT", "/p").body(body).header("Content-Digest", &right), &signed)
    };
    for nonce in 0..4 {
        assert_eq!(gateway.call(&call(nonce, "wrong")).await.status, 400);
    }
    for nonce in 4..8 {
        assert_eq!(gateway.call(&call(nonce, "right")).await.status, 200);
    }
    assert_eq!(origin.count(), 4);
    assert!(broken.count() > 0, "no request was made anew");
    assert_eq!(shadow.received(4).await.len(), 4, "the copies of the right ones only");
    assert!(shadow.requests().iter().all(|request| request.body == b"right"));
}

#[tokio::test]
async fn a_body_has_to_be_covered() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{}", &origin).await;
    let key = Key::Secret(SECRET);
    let (body, right) = (b"body", digest(b"body"));
    let covered = usual("POST", "/p", "?");
    for (what, header, more) in [
        ("no digest", None, vec![]),
        ("a digest that is not covered", Some(right.as_str()), vec![]),
        ("a digest that counts for nothing", Some("md5=:AAAA:"), vec![("content-digest", "md5=:AAAA:")]),
        ("a digest that is none", Some("sha-256"), vec![("content-digest", "sha-256")]),
        ("a covered digest that is missing", None, vec![("content-digest", right.as_str())]),
    ] {
        let call = header.into_iter().fold(Call::post("/p", body), |call, value| call.header("Content-Digest", value));
        let signed = sign(&[&covered[..], &more[..]].concat(), &params(""), &key);
        assert_eq!(gateway.call(&with(call, &signed)).await.status, 401, "{what}");
    }
    assert_eq!(origin.count(), 0);
    let open = Gateway::builder(&yaml("filters: [{ hmac: { required: ['@method', x-tenant] } }]", "secret: 'env:S'"))
        .environment("S", SECRET)
        .origin(&origin)
        .start()
        .await;
    let covered = [("@method", "POST"), ("x-tenant", "a, b")];
    let call = Call::post("/p", body).header("X-Tenant", "a").header("X-Tenant", "  b");
    assert_eq!(open.call(&with(call.clone(), &sign(&covered, &params(""), &key))).await.status, 200);
    let without = sign(&covered[..1], &params(""), &key);
    assert_eq!(open.call(&with(call, &without)).await.status, 401, "the header has to be covered");
}

#[tokio::test]
async fn a_target_may_be_signed_as_it_is_written_or_as_it_is_meant() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{}", &origin).await;
    let key = Key::Secret(SECRET);
    for (i, (sent, path)) in
        [("/a/%7Ex", "/a/%7Ex"), ("/a/%7Ey", "/a/~y"), ("/a/../b", "/a/../b"), ("/a/../c", "/c")].iter().enumerate()
    {
        let signed = sign(&usual("GET", path, "?"), &params(&format!(";nonce=\"{i}\"")), &key);
        assert_eq!(gateway.call(&with(Call::get(sent), &signed)).await.status, 200, "{sent} signed as {path}");
        let other = sign(&usual("GET", &format!("{path}/x"), "?"), &params(&format!(";nonce=\"{i}\"")), &key);
        assert_eq!(gateway.call(&with(Call::get(sent), &other)).await.status, 401);
    }
    let uri = format!("http://{HOST}/p?q");
    let signed = sign(&[("@method", "GET"), ("@target-uri", &uri)], &params(""), &key);
    assert_eq!(gateway.call(&with(Call::get("/p?q"), &signed)).await.status, 200);
    let mut covered = usual("GET", "/p", "?q");
    covered[1].1 = "test.example:8080";
    let call = with(Call::get("/p?q").host("TEST.example:8080"), &sign(&covered, &params(""), &key));
    assert_eq!(gateway.call(&call).await.status, 200, "the authority in lower case, with its port");
}

#[tokio::test]
async fn a_public_key_verifies_only_its_own_algorithm() {
    let origin = Origin::named("a").await;
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    // RFC 5480: the key's algorithm, its curve, the point.
    let mut der =
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"
            .to_vec();
    let point = ring::signature::KeyPair::public_key(&pair).as_ref().to_vec();
    der.extend_from_slice(&point);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(&der));
    let builder = Gateway::builder(&yaml("filters: [{ hmac: {} }]", "public_key: 'file:key.pem'")).origin(&origin);
    std::fs::write(builder.directory().join("key.pem"), &pem).unwrap();
    let gateway = builder.start().await;
    let covered = usual("GET", "/", "?");
    let call = |signed: &(String, String)| with(Call::get("/"), signed);
    let signed = sign(&covered, &params(";alg=\"ecdsa-p256-sha256\""), &Key::P256(&pair));
    assert_eq!(gateway.call(&call(&signed)).await.status, 200);
    // Anybody can make another signature of an ECDSA one: it is no other request for that.
    let again = sign(&covered, signed.0.split_once(')').unwrap().1, &Key::P256(&pair));
    assert_ne!(again.1, signed.1);
    assert_eq!(gateway.call(&call(&again)).await.status, 401, "the same request with another signature");
    let point = String::from_utf8_lossy(&point).into_owned();
    for secret in [pem.as_str(), &format!("{pem}\n"), &point, ""] {
        for alg in ["", ";alg=\"hmac-sha256\"", ";alg=\"ecdsa-p256-sha256\""] {
            let forged = sign(&covered, &params(&format!("{alg};nonce=\"n\"")), &Key::Secret(secret));
            assert_eq!(gateway.call(&call(&forged)).await.status, 401, "the public key as a secret: {alg}");
        }
    }
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn of_several_signatures_the_one_for_us_counts() {
    let origin = Origin::named("a").await;
    let gateway = gateway("{ tag: headgate }", &origin).await;
    let key = Key::Secret(SECRET);
    let covered = usual("GET", "/", "?");
    let ours = sign(&covered, &params(";tag=\"headgate\""), &key);
    let foreign = sign(&covered, &format!(";created={};keyid=\"other\"", now()), &Key::Secret("x"));
    let call = |first: &(String, String), second: &(String, String)| {
        Call::get("/")
            .header("Signature-Input", &format!("a={}, b={}", first.0, second.0))
            .header("Signature", &format!("a=:{}:", first.1))
            .header("Signature", &format!("b=:{}:", second.1))
    };
    assert_eq!(gateway.call(&call(&foreign, &ours)).await.status, 200);
    let ours = sign(&covered, &params(";tag=\"headgate\";nonce=\"2\""), &key);
    assert_eq!(gateway.call(&call(&ours, &foreign)).await.status, 200);
    let untagged = sign(&covered, &params(""), &key);
    assert_eq!(gateway.call(&call(&foreign, &untagged)).await.status, 401, "made for another purpose");
}

#[tokio::test]
async fn a_signature_and_a_password_may_both_be_required() {
    let origin = Origin::named("a").await;
    let hash = argon2::PasswordHasher::hash_password(
        &argon2::Argon2::from(argon2::Params::new(64, 1, 1, None).unwrap()),
        b"p",
    );
    let yaml = yaml("require: all, filters: [{ hmac: {} }, { basic_auth: {} }]", "secret: 'env:SIGNING_SECRET'")
        .replace("credentials: [", &format!("credentials: [{{ basic_auth: {{ hash: '{}' }} }}, ", hash.unwrap()));
    let gateway = Gateway::builder(&yaml).environment("SIGNING_SECRET", SECRET).origin(&origin).start().await;
    let basic = format!("Basic {}", STANDARD.encode("mobile:p"));
    for nonce in ["first", "second"] {
        let params = params(&format!(";nonce=\"{nonce}\""));
        let signed = with(Call::get("/"), &sign(&usual("GET", "/", "?"), &params, &Key::Secret(SECRET)));
        let call = signed.header("Authorization", &basic);
        assert_eq!(gateway.call(&call).await.status, 200, "the signature is looked at once, whoever has to wait");
        assert_eq!(gateway.call(&call).await.status, 401);
    }
}

#[tokio::test]
async fn signed_requests_of_http2_are_held_to_their_body_too() {
    let origin = Origin::named("a").await;
    let yaml = yaml("filters: [{ hmac: {} }]", "secret: 'env:SIGNING_SECRET'")
        + "listeners: { http: { address: '{{http}}', protocols: [h2c] } }\n";
    let gateway = Gateway::builder(&yaml).environment("SIGNING_SECRET", SECRET).origin(&origin).start().await;
    let right = digest(b"right");
    for (body, status) in [("right", 200), ("wrong", 400), ("", 401)] {
        let mut covered = usual("POST", "/p", "?");
        covered.push(("content-digest", &right));
        let (input, signature) = sign(&covered, &params(&format!(";nonce=\"{body}\"")), &Key::Secret(SECRET));
        let request = http::Request::post(format!("http://{HOST}/p"))
            .header("content-digest", &right)
            .header("signature-input", format!("sig1={input}"))
            .header("signature", format!("sig1=:{signature}:"));
        let mut client = H2Client::connect(gateway.address("http")).await.unwrap();
        let answer = client.call(request.body(()).unwrap(), Bytes::from_static(body.as_bytes())).await.unwrap();
        assert_eq!(answer.status, status, "{body}");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn keys_and_requirements_that_cannot_work_are_refused() {
    for (filter, credential, words) in [
        ("{}", "secret: 'file:short'", "at least 32 bytes"),
        ("{}", "public_key: 'file:short'", "not a public key in PEM"),
        ("{}", "secret: 'file:long', public_key: 'file:long'", "either `secret` or `public_key`"),
        ("{}", "", "either `secret` or `public_key`"),
        ("{}", "secret: 'file:none'", "cannot read the secret"),
        ("{ window: 2h }", "secret: 'file:long'", "hmac.window"),
        ("{ window: 0s }", "secret: 'file:long'", "hmac.window"),
        ("{ required: ['@status'] }", "secret: 'file:long'", "hmac.required[0]"),
        ("{ required: [Host] }", "secret: 'file:long'", "hmac.required[0]"),
    ] {
        let scratch = scratch::Scratch::new();
        scratch.write("short", "0123456789");
        scratch.write("long", SECRET);
        let text = yaml(&format!("filters: [{{ hmac: {filter} }}]"), credential).replace("{{origin}}", "127.0.0.1:1");
        let file = scratch.write("headgate.yaml", text + "listeners: { http: { address: '127.0.0.1:1' } }\n");
        let output = headgate(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{words} is missing in: {said}");
        assert!(!said.contains("0123456789") && !said.contains(SECRET), "{said}");
    }
}
