//! Logins with a browser: whoever the provider knows comes in and back to where they were going, and nobody else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use url::Url;

use crate::support::gateway::{example, headgate};
use crate::support::process::OpenIdProvider;
use crate::support::tokens::{Signer, in_seconds, jwks};
use crate::support::wire::Headers;
use crate::support::*;

const SHOP: &str = "
services: { s: { ACCESS filters: [{ oidc: { issuer: 'http://{{provider}}', client_id: headgate, client_secret: 'env:SECRET',
  redirect_url: '{{scheme}}://{{http}}/oauth2/callback', algorithms: [ES256],
  session: { key: 'env:KEY' OF_SESSION } MORE } }],
  routes: { all: { match: { path_prefix: / }, backend: { upstream: shop } } } } }
upstreams: { shop: { targets: [{ address: '{{origin}}' }] } }
identity: { headers: { x-user: '${claim.sub}', x-consumer-username: '${consumer}', x-scope: '${claim.scope}' } }
consumers: { alice: { credentials: [{ jwt: { subject: user-1 } }] } }
";

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn shop(access: &str, of_session: &str, more: &str) -> String {
    SHOP.replace("ACCESS", access).replace("OF_SESSION", of_session).replace("MORE", more)
}

/// A browser: it keeps cookies, and goes where it is told only when the test lets it.
#[derive(Clone)]
struct Browser {
    gateway: SocketAddr,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn at(gateway: &Gateway) -> Self {
        Browser { gateway: gateway.address("http"), cookies: BTreeMap::new() }
    }

    async fn send(&mut self, call: Call) -> Answer {
        let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let call = call.host(&self.gateway.to_string());
        let call = if pairs.is_empty() { call } else { call.header("Cookie", &pairs.join("; ")) };
        let answer = Client::connect(self.gateway).await.unwrap().call(&call).await.unwrap();
        self.take(&answer.headers);
        answer
    }

    fn take(&mut self, headers: &Headers) {
        for line in headers.all("set-cookie") {
            let (name, rest) = line.split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            match line.contains("Max-Age=0;") {
                true => drop(self.cookies.remove(name)),
                false => drop(self.cookies.insert(name.into(), value.into())),
            }
        }
    }

    /// Asks for a page as browsers do.
    async fn page(&mut self, target: &str) -> Answer {
        self.send(Call::get(target).header("Accept", "text/html,application/xhtml+xml")).await
    }

    /// Follows a redirection to the gateway.
    async fn follow(&mut self, answer: &Answer) -> Answer {
        let location = answer.header("location").expect("a redirection").to_owned();
        let target = match Url::parse(&location) {
            Ok(url) => format!("{}?{}", url.path(), url.query().unwrap_or_default()),
            Err(_) => location,
        };
        self.page(&target).await
    }

    /// Begins a login; returns what the provider is asked.
    async fn begin(&mut self, target: &str) -> BTreeMap<String, String> {
        let answer = self.page(target).await;
        assert_eq!(answer.status, 302, "{}", answer.text());
        let url = Url::parse(answer.header("location").unwrap()).unwrap();
        url.query_pairs().into_owned().collect()
    }
}

/// What the scripted provider's token endpoint says.
type Script = Box<dyn Fn(&BTreeMap<String, String>) -> (u16, Value) + Send + Sync>;

/// A provider that says what the test wants.
struct Provider {
    origin: Origin,
    signer: Arc<Signer>,
    script: Arc<Mutex<Script>>,
    /// Calls of the token endpoint.
    asked: Arc<AtomicUsize>,
}

impl Provider {
    async fn start() -> Self {
        Provider::with(json!({})).await
    }

    /// With these members in the discovery document instead of the usual ones.
    async fn with(members: Value) -> Self {
        let signer = Arc::new(Signer::ec("e1", Algorithm::ES256));
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(|_| (500, json!({})))));
        let asked = Arc::new(AtomicUsize::new(0));
        let (keys, said, count) = (jwks(&[&signer]), script.clone(), asked.clone());
        let origin = Origin::start(move |request| {
            let base = format!("http://{}", request.headers.get("host").unwrap());
            match request.path() {
                "/.well-known/openid-configuration" => {
                    let mut document = json!({
                        "issuer": base, "authorization_endpoint": format!("{base}/authorize?tenant=1"),
                        "token_endpoint": format!("{base}/token"), "jwks_uri": format!("{base}/keys"),
                    });
                    for (name, value) in members.as_object().unwrap() {
                        document[name] = value.clone();
                    }
                    Reply::ok(document.to_string())
                }
                "/keys" => Reply::ok(keys.as_str()),
                "/token" => {
                    count.fetch_add(1, Ordering::SeqCst);
                    let form = url::form_urlencoded::parse(&request.body).into_owned().collect();
                    let (status, said) = (said.lock().unwrap())(&form);
                    Reply::with(status, &[], said.to_string())
                }
                other => panic!("{other}"),
            }
        });
        Provider { origin: origin.await, signer, script, asked }
    }

    fn says(&self, script: impl Fn(&BTreeMap<String, String>) -> (u16, Value) + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    fn issuer(&self) -> String {
        format!("http://{}", self.origin.address)
    }

    /// A good ID token for a login.
    fn claims(&self, login: &BTreeMap<String, String>) -> Value {
        json!({ "iss": self.issuer(), "aud": "headgate", "sub": "user-1", "exp": in_seconds(300), "nonce": login["nonce"] })
    }

    async fn gateway(&self, yaml: &str, origin: &Origin) -> Gateway {
        let builder =
            Gateway::builder(yaml).origin(origin).with("provider", self.origin.address).with("scheme", "http");
        builder.environment("SECRET", "s3cret").environment("KEY", KEY).start().await
    }

    /// Brings a browser through a login; returns the last answer.
    async fn log_in(&self, browser: &mut Browser, more: Value) -> Answer {
        let login = browser.begin("/").await;
        let token = self.signer.sign(&self.claims(&login));
        self.says(move |_| {
            let mut said = json!({ "id_token": token, "access_token": "a", "token_type": "Bearer", "expires_in": 300 });
            for (name, value) in more.as_object().unwrap() {
                said[name] = value.clone();
            }
            (200, said)
        });
        browser.page(&format!("/oauth2/callback?code=c&state={}", login["state"])).await
    }
}

#[tokio::test]
async fn the_example_brings_a_browser_through_a_login_and_back_and_out_again() {
    let origin = Origin::named("shop").await;
    let provider = OpenIdProvider::start();
    let yaml = example("oidc").replace("http://127.0.0.1:9002", "http://{{provider}}");
    let gateway = Gateway::builder(&yaml).origin(&origin).with("provider", provider.address).start().await;
    let mut browser = Browser::at(&gateway);
    browser.cookies.insert("theme".into(), "dark".into());
    let sent = browser.page("/cart?item=7&size=a%2Fb").await;
    assert_eq!((sent.status, sent.header("cache-control")), (302, Some("no-store")));
    let url = Url::parse(sent.header("location").unwrap()).unwrap();
    assert_eq!(url.path(), "/oauth2/authorize");
    let at_provider = format!("{}?{}", url.path(), url.query().unwrap());
    let form = Call::post(&at_provider, "sub=alice").header("Content-Type", "application/x-www-form-urlencoded");
    let form = form.host(&provider.address.to_string());
    let agreed = Client::connect(provider.address).await.unwrap().call(&form).await.unwrap();
    assert_eq!(agreed.status, 302, "{}", agreed.text());
    let callback = agreed.header("location").unwrap().to_owned();
    let back = browser.follow(&agreed).await;
    assert_eq!((back.status, back.header("location")), (302, Some("/cart?item=7&size=a%2Fb")), "{}", back.text());
    let cookie = back.headers.all("set-cookie").find(|line| line.starts_with("headgate=")).unwrap();
    assert!(cookie.ends_with("; Path=/; Max-Age=28800; HttpOnly; SameSite=Lax"), "{cookie}");
    assert_eq!(origin.count(), 0);
    assert_eq!(browser.follow(&back).await.status, 200);
    let received = origin.last().await;
    assert_eq!(received.target, "/cart?item=7&size=a%2Fb");
    assert_eq!(received.headers.get("x-user"), Some("alice"));
    assert_eq!(received.headers.get("x-user-email"), Some("alice"));
    assert_eq!(received.headers.get("cookie"), Some("theme=dark"), "our cookies are not for the origin");
    // A session is good for everything, not only for pages.
    assert_eq!(browser.send(Call::post("/orders", "{}")).await.status, 200);
    let mut other = Browser::at(&gateway);
    let replayed = other.page(&callback[callback.find("/oauth2").unwrap()..]).await;
    assert_eq!(replayed.status, 401, "a code that somebody else has come by");
    let out = browser.page("/oauth2/logout").await;
    let url = Url::parse(out.header("location").unwrap()).unwrap();
    assert_eq!((out.status, url.path()), (302, "/oauth2/end_session"));
    let home = format!("http://{}/", gateway.address("http"));
    assert!(url.query_pairs().any(|(name, value)| name == "post_logout_redirect_uri" && value == home), "{url}");
    assert_eq!(browser.page("/cart").await.status, 302, "logged out");
    assert_eq!(browser.cookies.get("headgate"), None);
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn what_the_provider_is_asked_cannot_be_guessed_or_reused() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ", request_scopes: [openid, email]"), &origin).await;
    let mut browser = Browser::at(&gateway);
    let (one, two) = (browser.begin("/a").await, browser.begin("/b").await);
    for login in [&one, &two] {
        assert_eq!(login["response_type"], "code");
        assert_eq!(login["client_id"], "headgate");
        assert_eq!(login["scope"], "openid email");
        assert_eq!(login["tenant"], "1", "what the endpoint has of its own stays");
        assert_eq!(login["code_challenge_method"], "S256");
        assert_eq!(login["redirect_uri"], format!("http://{}/oauth2/callback", gateway.address("http")));
    }
    for name in ["state", "nonce", "code_challenge"] {
        assert_ne!(one[name], two[name]);
        assert_eq!(one[name].len(), 43, "256 bits");
    }
    // Both windows come back, in the other order.
    for (login, place) in [(&two, "/b"), (&one, "/a")] {
        let (token, challenge) = (provider.signer.sign(&provider.claims(login)), login["code_challenge"].clone());
        let redirect = login["redirect_uri"].clone();
        provider.says(move |form| {
            let digest = ring::digest::digest(&ring::digest::SHA256, form["code_verifier"].as_bytes());
            let hashed = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, digest);
            assert_eq!(hashed, challenge, "RFC 7636, section 4.6");
            assert_eq!((form["grant_type"].as_str(), form["code"].as_str()), ("authorization_code", "c+/&="));
            assert_eq!(form["redirect_uri"], redirect);
            (200, json!({ "id_token": token, "scope": "openid email" }))
        });
        let callback = format!("/oauth2/callback?code=c%2B%2F%26%3D&state={}", login["state"]);
        let back = browser.page(&callback).await;
        assert_eq!((back.status, back.header("location")), (302, Some(place)), "{}", back.text());
    }
    assert_eq!(browser.page("/").await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-scope"), Some("openid email"));
    let asked = provider.asked.load(Ordering::SeqCst);
    let again = browser.page(&format!("/oauth2/callback?code=c&state={}", one["state"])).await;
    assert_eq!((again.status, again.header("location")), (302, Some("/")), "a callback that was loaded again");
    assert_eq!(provider.asked.load(Ordering::SeqCst), asked, "a login ends once");
}

#[tokio::test]
async fn what_is_no_browser_is_told_401() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ""), &origin).await;
    let mut browser = Browser::at(&gateway);
    for call in [
        Call::get("/"),
        Call::get("/").header("Accept", "*/*"),
        Call::get("/").header("Accept", "application/json"),
        Call::get("/").header("Accept", "text/html").header("Sec-Fetch-Mode", "cors"),
        Call::post("/", "x").header("Accept", "text/html"),
    ] {
        let answer = browser.send(call.clone()).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("unauthenticated")), "{call:?}");
        assert_eq!(answer.header("set-cookie"), None);
    }
    assert_eq!(origin.count(), 0);
    let open = provider.gateway(&shop("access: open,", "", ""), &origin).await;
    let mut browser = Browser::at(&open);
    assert_eq!(browser.page("/").await.status, 200, "an open service asks nobody to log in");
    browser.gateway = gateway.address("http");
    browser.begin("/").await;
}

#[tokio::test]
async fn a_login_ends_only_in_the_browser_that_has_begun_it() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ""), &origin).await;
    let (mut alice, mut mallory) = (Browser::at(&gateway), Browser::at(&gateway));
    let (ours, theirs) = (alice.begin("/").await, mallory.begin("/").await);
    let token = provider.signer.sign(&provider.claims(&theirs));
    provider.says(move |_| (200, json!({ "id_token": token })));
    let callback = |state: &str, more: &str| format!("/oauth2/callback?code=c&state={state}{more}");
    let changed = |state: &str| format!("{}x", &state[..42]);
    for (target, status, what) in [
        (callback(&theirs["state"], ""), 401, "a login that mallory has begun (login CSRF)"),
        (callback("", ""), 401, "no state"),
        (callback("x", ""), 401, "a short state"),
        (callback(&changed(&ours["state"]), ""), 401, "a state that begins alike"),
        ("/oauth2/callback?code=c".into(), 401, "no state at all"),
        ("/oauth2/callback".into(), 401, "nothing"),
        (callback(&ours["state"], &format!("&state={}", ours["state"])), 401, "the state twice"),
        (callback(&ours["state"], "&code=d"), 400, "two codes"),
        (format!("/oauth2/callback?state={}", ours["state"]), 400, "no code"),
        (callback(&ours["state"], "&error=access_denied"), 403, "the provider says no"),
        (callback(&ours["state"], "&iss=https%3A%2F%2Fevil.example"), 401, "another provider (RFC 9207)"),
    ] {
        let mut alice = alice.clone();
        let answer = alice.page(&target).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert_eq!(alice.cookies.get("headgate"), None, "{what}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{what}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
        let mut nobody = Browser::at(&gateway);
        assert_eq!(nobody.page(&target).await.status, 401, "{what}, in a browser that has begun nothing");
    }
    let mut stolen = mallory.clone();
    let (name, value) = mallory.cookies.iter().next().unwrap();
    stolen.cookies = [(name.replace(&theirs["state"][..8], &ours["state"][..8]), value.clone())].into();
    let answer = stolen.page(&callback(&ours["state"], "")).await;
    assert_eq!(answer.status, 401, "a cookie under another name");
    let mut as_session = mallory.clone();
    as_session.cookies = [("headgate".to_owned(), value.clone())].into();
    assert_eq!(as_session.page("/").await.status, 302, "a login is no session");
    assert_eq!(provider.asked.load(Ordering::SeqCst), 0, "no code of these was ever redeemed");
    let named =
        format!("&iss={}", url::form_urlencoded::byte_serialize(provider.issuer().as_bytes()).collect::<String>());
    assert_eq!(mallory.page(&callback(&theirs["state"], &named)).await.status, 302);
    let strict = Provider::with(json!({ "authorization_response_iss_parameter_supported": true })).await;
    let gateway = strict.gateway(&shop("", "", ""), &origin).await;
    let answer = strict.log_in(&mut Browser::at(&gateway), json!({})).await;
    assert_eq!((answer.status, strict.asked.load(Ordering::SeqCst)), (401, 0), "it always names itself, and did not");
}

#[tokio::test]
async fn an_id_token_that_is_not_for_this_login_makes_no_session() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ""), &origin).await;
    let mallory = Signer::ec("e1", Algorithm::ES256);
    let with = |name: &'static str, value: Value| {
        move |claims: &mut Value| match value.clone() {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
    };
    type Change = Box<dyn Fn(&mut Value)>;
    let changes: Vec<(&str, Change)> = vec![
        ("no nonce", Box::new(with("nonce", Value::Null))),
        ("the nonce of another login", Box::new(with("nonce", json!("x")))),
        ("another issuer", Box::new(with("iss", json!("https://evil.example")))),
        ("another client", Box::new(with("aud", json!("other")))),
        ("several clients", Box::new(with("aud", json!(["headgate", "other"])))),
        ("another client that it is given to", Box::new(with("azp", json!("other")))),
        ("an old one", Box::new(with("exp", json!(in_seconds(-60))))),
        ("one without an end", Box::new(with("exp", Value::Null))),
        ("one about nobody", Box::new(with("sub", Value::Null))),
        ("one about a number", Box::new(with("sub", json!(7)))),
    ];
    for (what, change) in changes {
        let mut browser = Browser::at(&gateway);
        let login = browser.begin("/").await;
        let mut claims = provider.claims(&login);
        change(&mut claims);
        let token = provider.signer.sign(&claims);
        provider.says(move |_| (200, json!({ "id_token": token })));
        let answer = browser.page(&format!("/oauth2/callback?code=c&state={}", login["state"])).await;
        assert_eq!((answer.status, browser.cookies.get("headgate")), (401, None), "{what}");
    }
    let unsigned = |claims: &Value| {
        let b64 = |text: String| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text);
        format!("{}.{}.", b64(json!({ "alg": "none" }).to_string()), b64(claims.to_string()))
    };
    type Forgery<'a> = Box<dyn Fn(&Value) -> Value + 'a>;
    let forgeries: Vec<(&str, u16, Forgery)> = vec![
        ("alg none", 401, Box::new(|claims| json!(unsigned(claims)))),
        ("another key", 401, Box::new(|claims| json!(mallory.sign(claims)))),
        ("the client's secret", 401, Box::new(|claims| json!(Signer::secret("e1", "s3cret").sign(claims)))),
        ("the public key", 401, Box::new(|claims| json!(Signer::secret("e1", &provider.signer.public).sign(claims)))),
        ("garbage", 401, Box::new(|_| json!("garbage"))),
        ("no text", 503, Box::new(|_| json!(7))),
    ];
    for (what, status, forge) in forgeries {
        let mut browser = Browser::at(&gateway);
        let login = browser.begin("/").await;
        let token = forge(&provider.claims(&login));
        provider.says(move |_| (200, json!({ "id_token": token })));
        let answer = browser.page(&format!("/oauth2/callback?code=c&state={}", login["state"])).await;
        assert_eq!((answer.status, browser.cookies.get("headgate")), (status, None), "{what}");
    }
    for (status, said, expected) in [
        (400, json!({ "error": "invalid_grant" }), 401),
        (400, json!({ "error": "invalid_client" }), 503),
        (401, json!({ "error": "invalid_client" }), 503),
        (500, json!({}), 503),
        (200, json!([]), 503),
        (302, json!({ "id_token": "x" }), 503),
    ] {
        let mut browser = Browser::at(&gateway);
        let login = browser.begin("/").await;
        provider.says(move |_| (status, said.clone()));
        let answer = browser.page(&format!("/oauth2/callback?code=c&state={}", login["state"])).await;
        assert_eq!(answer.status, expected, "{status}");
    }
    assert_eq!(origin.count(), 0);
    assert!(!gateway.logged().contains("s3cret"));
}

#[tokio::test]
async fn nobody_comes_back_to_another_host() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ""), &origin).await;
    let long = format!("/{}", "x".repeat(2000));
    for target in ["//evil.example/", "/%2F/evil.example", "/\\evil.example", "/.//evil.example", &long] {
        let mut browser = Browser::at(&gateway);
        let answer = browser.page(target).await;
        if answer.status != 302 {
            continue;
        }
        let url = Url::parse(answer.header("location").unwrap()).unwrap();
        let login: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        let token = provider.signer.sign(&provider.claims(&login));
        provider.says(move |_| (200, json!({ "id_token": token })));
        let back = browser.page(&format!("/oauth2/callback?code=c&state={}", login["state"])).await;
        let location = back.header("location").unwrap();
        let resolved = Url::parse("http://shop.example/").unwrap().join(location).unwrap();
        assert_eq!(resolved.host_str(), Some("shop.example"), "{target} led to {location}");
    }
}

#[tokio::test]
async fn a_session_is_nobody_elses_and_ends_in_time() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let yaml = shop("", "", "");
    let mut gateway = provider.gateway(&yaml, &origin).await;
    let mut browser = Browser::at(&gateway);
    provider.log_in(&mut browser, json!({})).await;
    for _ in 0..2 {
        assert_eq!(browser.send(Call::get("/")).await.status, 200);
    }
    let session = browser.cookies["headgate"].clone();
    assert!(!session.contains("user-1"));
    for forged in [session[1..].to_owned(), session.clone() + "A", "x".into(), String::new(), "A".repeat(8000)] {
        let mut other = browser.clone();
        other.cookies.insert("headgate".into(), forged.clone());
        assert_eq!(other.send(Call::get("/")).await.status, 401, "{forged}");
    }
    let twice = Call::get("/").header("Cookie", "headgate=x");
    assert_eq!(browser.send(twice).await.status, 401, "two that differ are none");
    assert_eq!(gateway.reload(&yaml.replace("client_id: headgate", "client_id: other")).await.status, 200);
    assert_eq!(browser.send(Call::get("/")).await.status, 401, "a session of another client");
    assert_eq!(gateway.reload(&yaml).await.status, 200);
    assert_eq!(browser.send(Call::get("/")).await.status, 200, "a reload ends no session");
    // A session goes on while the provider is down; one that is too old does not.
    let short = provider.gateway(&shop("", ", lifetime: 2s", ""), &origin).await;
    let mut browser = Browser::at(&short);
    provider.log_in(&mut browser, json!({})).await;
    assert_eq!(browser.send(Call::get("/")).await.status, 200);
    let ended = || async { browser.clone().send(Call::get("/")).await.status == 401 };
    assert!(eventually(PATIENCE, ended).await);
}

#[tokio::test]
async fn consumers_roles_and_claims_are_what_the_configuration_says() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ", consumer: {}"), &origin).await;
    let mut browser = Browser::at(&gateway);
    provider.log_in(&mut browser, json!({})).await;
    assert_eq!(browser.page("/").await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("alice"));
    let mut gateway = provider.gateway(&shop("", "", ", scopes: [admin]"), &origin).await;
    let mut browser = Browser::at(&gateway);
    provider.log_in(&mut browser, json!({ "scope": "openid" })).await;
    let refused = browser.page("/").await;
    assert_eq!((refused.status, refused.problem().as_deref()), (403, Some("forbidden")), "no loop of logins");
    provider.log_in(&mut Browser::at(&gateway), json!({})).await;
    let mut admin = Browser::at(&gateway);
    provider.log_in(&mut admin, json!({ "scope": "openid admin" })).await;
    assert_eq!(admin.page("/").await.status, 200);
    assert_eq!(gateway.reload(&shop("", "", ", consumer: {}").replace("user-1", "user-2")).await.status, 200);
    assert_eq!(admin.send(Call::get("/")).await.status, 401, "the consumer was removed");
}

#[tokio::test]
async fn a_session_is_renewed_once_for_all_requests_of_a_page() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ""), &origin).await;
    let mut browser = Browser::at(&gateway);
    provider.log_in(&mut browser, json!({ "refresh_token": "r1", "expires_in": 1 })).await;
    assert_eq!(browser.send(Call::get("/")).await.status, 200);
    let asked = provider.asked.load(Ordering::SeqCst);
    provider.says(|form| match (form["grant_type"].as_str(), form["refresh_token"].as_str()) {
        ("refresh_token", "r1") => (200, json!({ "access_token": "b", "refresh_token": "r2", "expires_in": 1000 })),
        other => panic!("{other:?}"),
    });
    // Sessions count in seconds, and nothing happens when one is to be renewed until somebody comes.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = browser.cookies["headgate"].clone();
    let requests = (0..20).map(|_| {
        let mut browser = browser.clone();
        tokio::spawn(async move {
            let answer = browser.send(Call::get("/")).await;
            assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
            browser.cookies["headgate"].clone()
        })
    });
    for request in requests.collect::<Vec<_>>() {
        assert_ne!(request.await.unwrap(), before, "each answer brings the new cookie");
    }
    assert_eq!(provider.asked.load(Ordering::SeqCst), asked + 1);
    assert_eq!(browser.send(Call::get("/")).await.status, 200, "a late one with the old cookie");
    let answer = browser.send(Call::get("/")).await;
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None), "and then the new one holds");
}

#[tokio::test]
async fn a_session_that_the_provider_has_ended_is_over_and_one_it_cannot_vouch_for_is_not_let_in() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let gateway = provider.gateway(&shop("", "", ""), &origin).await;
    let token = |sub: &str| {
        let claims = json!({ "iss": provider.issuer(), "aud": "headgate", "sub": sub, "exp": in_seconds(300) });
        provider.signer.sign(&claims)
    };
    let other = token("user-2");
    for (said, expected) in [
        ((400, json!({ "error": "invalid_grant" })), 401),
        ((200, json!({ "id_token": other, "access_token": "b" })), 401),
        ((500, json!({})), 503),
        ((200, json!("garbage")), 503),
        ((200, json!({ "id_token": token("user-1"), "access_token": "b" })), 200),
    ] {
        let mut browser = Browser::at(&gateway);
        provider.log_in(&mut browser, json!({ "refresh_token": "r1", "expires_in": 1 })).await;
        let shown = said.1.to_string();
        provider.says(move |_| said.clone());
        // As above.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let answer = browser.send(Call::get("/")).await;
        assert_eq!(answer.status, expected, "{shown}");
        assert_eq!(browser.cookies.contains_key("headgate"), expected != 401, "{shown}");
    }
}

#[tokio::test]
async fn a_provider_that_is_down_or_not_itself_logs_nobody_in() {
    let origin = Origin::named("shop").await;
    let port = ports::reserve();
    let yaml = shop("", "", "");
    let builder = Gateway::builder(&yaml).origin(&origin).with("provider", port.address).with("scheme", "http");
    let gateway = builder.environment("SECRET", "s").environment("KEY", KEY).start().await;
    let mut browser = Browser::at(&gateway);
    let answer = browser.page("/").await;
    assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("authority_unavailable")));
    assert_eq!(browser.send(Call::get("/")).await.status, 401);
    let keys = jwks(&[&Signer::ec("e1", Algorithm::ES256)]);
    let _back = Origin::at(port.address, move |request| {
        let base = format!("http://{}", request.headers.get("host").unwrap());
        match request.path() {
            "/keys" => Reply::ok(keys.as_str()),
            _ => Reply::ok(
                json!({ "issuer": base, "authorization_endpoint": format!("{base}/a"),
                    "token_endpoint": format!("{base}/t"), "jwks_uri": format!("{base}/keys") })
                .to_string(),
            ),
        }
    })
    .await;
    assert!(eventually(PATIENCE, || async { browser.clone().page("/").await.status == 302 }).await);
    let trap = Origin::named("trap").await;
    for members in [
        json!({ "issuer": "https://login.example.com" }),
        json!({ "issuer": 7 }),
        json!({ "jwks_uri": "file:///etc/passwd" }),
        json!({ "jwks_uri": "http://login.example.com/keys" }),
        json!({ "token_endpoint": "http://10.0.0.1/token" }),
        json!({ "authorization_endpoint": "javascript:alert(1)" }),
        json!({ "jwks_uri": format!("http://{}/", trap.address) }),
    ] {
        let provider = Provider::with(members.clone()).await;
        let gateway = provider.gateway(&yaml, &origin).await;
        assert_eq!(Browser::at(&gateway).page("/").await.status, 503, "{members}");
    }
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn cookies_are_bound_to_this_host_where_there_is_tls_and_do_not_gather() {
    let origin = Origin::named("shop").await;
    let provider = Provider::start().await;
    let builder = Gateway::builder(&shop("", ", cookie: shop", "")).origin(&origin).with("scheme", "https");
    let builder = builder.with("provider", provider.origin.address).environment("SECRET", "s").environment("KEY", KEY);
    let gateway = builder.start().await;
    let mut browser = Browser::at(&gateway);
    for _ in 0..5 {
        browser.begin("/").await;
    }
    assert!(browser.cookies.keys().all(|name| name.starts_with("__Host-shop_login_")), "{:?}", browser.cookies);
    browser.begin("/").await;
    assert_eq!(browser.cookies.len(), 1, "forgotten logins are deleted");
    let answer = provider.log_in(&mut browser, json!({})).await;
    let session = answer.headers.all("set-cookie").find(|line| line.starts_with("__Host-shop=")).unwrap();
    assert!(session.ends_with("; Path=/; Max-Age=28800; HttpOnly; SameSite=Lax; Secure"), "{session}");
    let forced = browser.send(Call::get("/oauth2/logout").header("Sec-Fetch-Site", "cross-site")).await;
    assert_eq!(forced.status, 403, "another site logs nobody out");
    let out = browser.page("/oauth2/logout").await;
    assert_eq!((out.status, out.header("location")), (302, Some("/")), "a provider that knows no logout");
}

#[test]
fn a_configuration_without_care_is_refused() {
    let scratch = scratch::Scratch::new();
    scratch.write("secret", "s");
    scratch.write("key", KEY);
    scratch.write("short", "short");
    let good = |of_session: &str, more: &str| {
        let yaml = shop("", of_session, more).replace("env:SECRET", "file:secret").replace("env:KEY", "file:key");
        let yaml = yaml.replace("{{provider}}", "127.0.0.1:1").replace("{{scheme}}", "http");
        yaml.replace("{{http}}", "127.0.0.1:2").replace("{{origin}}", "127.0.0.1:1")
    };
    for (yaml, words) in [
        (good("", "").replace("file:key", "file:short"), "at least 32 bytes"),
        (good("", "").replace("http://127.0.0.1:1", "http://login.example.com"), "allow_plain"),
        (good("", "").replace("http://127.0.0.1:2/", "ftp://a/"), "redirect_url"),
        (good("", "").replace("/oauth2/callback", "/oauth2/callback?a=b"), "redirect_url"),
        (good(", lifetime: 31d", ""), "at most 30d"),
        (good(", cookie: 'a b'", ""), "cookie"),
        (good("", ", request_scopes: [email]"), "openid"),
        (good("", ", logout: oauth2"), "not a path"),
        (good("", ", after_logout: '//evil.example'"), "not a path"),
        (good("", ", logout: /oauth2/callback"), "come back to"),
    ] {
        let yaml = yaml + "listeners: { http: { address: '127.0.0.1:1' } }\n";
        let file = scratch.write("headgate.yaml", yaml.clone());
        let output = headgate(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{words} is missing in: {said}\n{yaml}");
    }
}
