//! Authentication by a service of the user's own: it alone decides, and when it cannot, nobody passes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gateway::{example, key_hash, problems_of};
use crate::support::*;

fn yaml(settings: &str) -> String {
    format!(
        "
services: {{ s: {{ filters: [{{ ext_auth: {{ url: 'http://{{{{auth}}}}/verify'{settings} }} }}],
                  routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
consumers: {{ mobile: {{ team: apps, credentials: [{{ api_key: {{ hash: '{}' }} }}] }}, other: {{}} }}
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }} }}
",
        key_hash("k-e-y")
    )
}

async fn gateway(settings: &str, auth: &Origin, origin: &Origin) -> Gateway {
    Gateway::builder(&yaml(settings)).with("auth", auth.address).origin(origin).start().await
}

/// All values of a header.
fn values<'h>(headers: &'h wire::Headers, name: &'h str) -> Vec<&'h str> {
    headers.all(name).collect()
}

/// Lets everybody pass, with these headers.
async fn passing(headers: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::start(move |_| Reply::with(200, headers, "")).await
}

#[tokio::test]
async fn the_example_asks_and_tells_the_origin_what_it_was_told() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|asked| match asked.headers.get("authorization") {
        Some("Bearer good") => {
            Reply::with(200, &[("x-user", "u1"), ("x-groups", "a"), ("x-groups", "b"), ("x-consumer", "mobile")], "ok")
        }
        _ => Reply::with(401, &[("www-authenticate", "Bearer"), ("x-internal", "secret")], "who are you?"),
    })
    .await;
    let yaml = example("ext_auth").replace("127.0.0.1:9002", "{{auth}}");
    let gateway = Gateway::builder(&yaml).with("auth", auth.address).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    for n in 1..=3 {
        let call = Call::post("/orders/../orders/1?a=b", "a body")
            .header("Authorization", "Bearer good")
            .header("Cookie", "c=d")
            .header("X-Other", "not for the authority")
            .header("X-Forwarded-Uri", "/public");
        assert_eq!(client.call(&call).await.unwrap().status, 200);
        let asked = auth.last().await;
        assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "/verify"));
        for (name, value) in [
            ("authorization", Some("Bearer good")),
            ("cookie", Some("c=d")),
            ("x-forwarded-method", Some("POST")),
            ("x-forwarded-proto", Some("http")),
            ("x-forwarded-host", Some("test.example")),
            ("x-forwarded-uri", Some("/orders/1?a=b")),
            ("x-forwarded-for", Some("127.0.0.1")),
            ("x-other", None),
            ("content-length", None),
        ] {
            assert_eq!(asked.headers.get(name), value, "{name}");
        }
        let received = origin.last().await;
        assert_eq!(received.headers.get("x-user"), Some("u1"));
        assert_eq!(values(&received.headers, "x-groups"), ["a", "b"]);
        assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"));
        assert_eq!((auth.count(), auth.connections()), (n, 1), "connections to the authority are kept");
    }
    let refused = client.call(&Call::get("/orders/1").header("Authorization", "Bearer bad")).await.unwrap();
    assert_eq!((refused.status, refused.text().as_str()), (401, "who are you?"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert_eq!(refused.header("x-internal"), None, "only what was chosen goes on");
    assert!(refused.keeps_alive());
    assert_eq!(origin.count(), 3);
}

#[tokio::test]
async fn a_denial_is_passed_on_and_a_redirect_is_not_followed() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|asked| match asked.headers.get("x-forwarded-uri") {
        Some("/login") => {
            Reply::with(302, &[("location", "/elsewhere"), ("set-cookie", "a=1"), ("set-cookie", "b=2")], "")
        }
        Some("/page") => Reply::with(403, &[("content-type", "text/html")], "<h1>no</h1>"),
        Some("/long") => Reply::with(403, &[("content-type", "text/plain")], "x".repeat(2000)),
        _ => Reply::with(304, &[], ""),
    })
    .await;
    let gateway = gateway(", max_body: 1000B", &auth, &origin).await;
    let login = gateway.get("/login").await;
    assert_eq!((login.status, login.header("location")), (302, Some("/elsewhere")));
    assert_eq!(values(&login.headers, "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(auth.count(), 1, "the redirect is the client's");
    let page = gateway.get("/page").await;
    assert_eq!(
        (page.status, page.text().as_str(), page.header("content-type")),
        (403, "<h1>no</h1>", Some("text/html"))
    );
    let long = gateway.get("/long").await;
    assert_eq!((long.status, long.text().as_str()), (403, ""), "half a page is worse than none");
    assert_eq!(gateway.get("/304").await.status, 304);
    assert_eq!(origin.count(), 0);
    let log = gateway.access_log(4).await;
    assert_eq!(log[0]["cause"], "the authority denies it", "{}", log[0]);
}

#[tokio::test]
async fn what_the_authority_says_of_a_caller_no_client_can_say() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|asked| match asked.headers.get("authorization") {
        Some("named") => Reply::with(200, &[("x-user", "u1"), ("authorization", "internal")], ""),
        _ => Reply::with(200, &[], ""),
    })
    .await;
    let gateway = gateway(", copy: [X-User, authorization]", &auth, &origin).await;
    for name in ["X-User", "x-user", "X-USER", "X_User"] {
        for (authorization, user, internal) in [("named", Some("u1"), Some("internal")), ("x", None, None)] {
            let call = Call::get("/").header(name, "admin").header("Authorization", authorization).header(name, "root");
            assert_eq!(gateway.call(&call).await.status, 200);
            let received = origin.last().await;
            assert_eq!(received.headers.get("x-user"), user, "{name}");
            assert_eq!(received.headers.get("authorization"), internal, "replaced or gone, never the client's own");
            let head = String::from_utf8_lossy(&received.head).to_lowercase();
            assert!(!head.contains("admin") && !head.contains("root"), "{head}");
        }
    }
    let call = Call::get("/").header("Connection", "X-User, Authorization").header("Authorization", "named");
    assert_eq!(gateway.call(&call).await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-user"), None, "the authority was not shown who calls either");
    let mut twice = gateway.connect().await;
    let call = Call::get("/").header("Authorization", "named").header("Authorization", "x");
    assert_eq!(twice.call(&call).await.unwrap().status, 200);
    assert_eq!(values(&auth.last().await.headers, "authorization"), ["named", "x"], "it sees all that there is");
}

#[tokio::test]
async fn an_authority_that_cannot_be_asked_lets_nobody_pass() {
    let origin = Origin::named("a").await;
    const OK: &str = "HTTP/1.1 200 OK\r\nX-User: u1\r\nContent-Length: 0\r\n";
    let replies: Vec<(&str, Reply)> = vec![
        ("silence", Reply::silence()),
        ("garbage", Reply::raw("\x16\x03\x01 this is not HTTP\r\n\r\n").close()),
        ("nothing", Reply::raw("").close()),
        ("half a head", Reply::raw("HTTP/1.1 200 OK\r\nX-User: u").close()),
        ("a head without an end", Reply::raw("HTTP/1.1 200 OK\r\nX-User: u1\r\n").hold()),
        ("half a body", Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal").close()),
        ("a body without an end", Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal").hold()),
        ("a bad chunk", Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhal\r\n").close()),
        ("two lengths", Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab").close()),
        ("a bare CR in a value", Reply::raw(format!("{OK}X-User: a\rX-Admin: 1\r\n\r\n")).close()),
        ("a folded value", Reply::raw(format!("{OK}X-User: a\r\n X-Admin: 1\r\n\r\n")).close()),
        ("a NUL in a value", Reply::raw(format!("{OK}X-User: a\0b\r\n\r\n")).close()),
        ("interim answers only", Reply::raw("HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000)).hold()),
        (
            "endless headers",
            Reply::raw(format!("HTTP/1.1 200 OK\r\n{}", "X-User: aaaaaaaaaa\r\n".repeat(100_000))).hold(),
        ),
        ("a large value", Reply::raw(format!("{OK}X-User: {}\r\n\r\n", "a".repeat(40_000))).close()),
        ("its own failure", Reply::with(500, &[], "a stack trace")),
        ("its gateway's failure", Reply::with(502, &[], "")),
        (
            "a switch",
            Reply::raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").hold(),
        ),
    ];
    let names: Vec<&str> = replies.iter().map(|(name, _)| *name).collect();
    let count = names.len();
    let replies: Vec<_> = replies.into_iter().map(|(_, reply)| Mutex::new(Some(reply))).collect();
    let auth = Origin::start(move |asked| {
        let number = asked.headers.get("x-forwarded-uri").and_then(|target| target[1..].parse::<usize>().ok());
        let reply = number.and_then(|number| replies.get(number)?.lock().unwrap().take());
        reply.unwrap_or_else(|| Reply::with(200, &[("x-user", "u1")], ""))
    })
    .await;
    let gateway = gateway(", copy: [x-user], timeout: 500ms", &auth, &origin).await;
    for (number, name) in names.iter().enumerate() {
        let answer = gateway.get(&format!("/{number}")).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("authority_unavailable")), "{name}");
        assert!(!answer.text().contains("stack trace"));
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(gateway.get("/").await.status, 200, "once it is well again, so are we");
    let log = gateway.access_log(count + 1).await;
    let refused: Vec<_> = log.iter().filter(|line| line["status"] == 503).collect();
    assert_eq!(refused.len(), count);
    for line in refused {
        assert!(line["cause"].as_str().is_some_and(|cause| cause.contains("authority")), "{line}");
    }
}

#[tokio::test]
async fn an_authority_that_is_down_fails_closed_unless_told_otherwise() {
    let origin = Origin::named("a").await;
    let mut gateway =
        Gateway::builder(&yaml(", copy: [x-user]").replace("{{auth}}", "{{down}}")).origin(&origin).start().await;
    let refused = gateway.get("/").await;
    assert_eq!((refused.status, refused.problem().as_deref()), (503, Some("authority_unavailable")));
    assert_eq!(origin.count(), 0);
    let open = yaml(", copy: [x-user], on_failure: allow").replace("{{auth}}", "{{down}}");
    assert_eq!(gateway.reload(&open).await.status, 200);
    assert_eq!(gateway.call(&Call::get("/").header("X-User", "admin")).await.status, 200);
    let received = origin.last().await;
    assert_eq!(received.headers.get("x-user"), None);
    assert_eq!(received.headers.get("x-anonymous-consumer"), Some("true"));
}

#[tokio::test]
async fn the_consumer_is_the_one_the_authority_names() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|asked| match asked.headers.get("cookie") {
        Some("two") => Reply::with(200, &[("x-consumer", "mobile"), ("x-consumer", "other")], ""),
        Some("none") => Reply::with(200, &[], ""),
        Some(name) => Reply::with(200, &[("x-consumer", name)], ""),
        None => Reply::with(403, &[], ""),
    })
    .await;
    let gateway = gateway(", consumer_header: x-consumer", &auth, &origin).await;
    for (cookie, status) in [("mobile", 200), ("unknown", 401), ("none", 401), ("two", 503)] {
        let answer = gateway.call(&Call::get("/").header("Cookie", cookie).header("X-Consumer", "other")).await;
        assert_eq!(answer.status, status, "{cookie}");
    }
    assert_eq!(origin.count(), 1);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("mobile"));
    assert_eq!(origin.last().await.headers.get("x-consumer-team"), Some("apps"));
}

#[tokio::test]
async fn beside_others_any_or_all_of_them_count() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|asked| match asked.headers.get("cookie") {
        Some("good") => Reply::with(200, &[], ""),
        _ => Reply::with(302, &[("location", "/login")], ""),
    })
    .await;
    let both = yaml("").replace("filters: [", "filters: [{ api_key: {} }, ");
    let mut gateway = Gateway::builder(&both).with("auth", auth.address).origin(&origin).start().await;
    let call = |key: Option<&str>, cookie: &str| {
        let call = Call::get("/").header("Cookie", cookie);
        key.map_or(call.clone(), |key| call.header("X-Api-Key", key))
    };
    for (settings, expected) in [("", [200, 200, 200, 302, 401]), ("require: all,", [200, 302, 401, 302, 401])] {
        let yaml = both.replace("services: { s: {", &format!("services: {{ s: {{ {settings}"));
        assert_eq!(gateway.reload(&yaml).await.status, 200);
        let calls = [
            call(Some("k-e-y"), "good"),
            call(Some("k-e-y"), "bad"),
            call(None, "good"),
            call(None, "bad"),
            call(Some("wrong"), "bad"),
        ];
        for (call, status) in calls.iter().zip(expected) {
            assert_eq!(gateway.call(call).await.status, status, "{settings} {call:?}");
        }
    }
    // Whoever comes in by its key has not been seen by the authority, and cannot speak for it.
    let spoof = yaml(", copy: [authorization, x-user]").replace("filters: [", "filters: [{ api_key: {} }, ");
    assert_eq!(gateway.reload(&spoof).await.status, 200);
    let spoofed = call(Some("k-e-y"), "bad").header("Authorization", "internal").header("X-User", "admin");
    assert_eq!(gateway.call(&spoofed).await.status, 200);
    assert_eq!(origin.last().await.headers.get("authorization"), None);
    assert_eq!(origin.last().await.headers.get("x-user"), None);
    // A denial is not the absence of credentials: an open service heeds it too.
    let open = yaml("").replace("services: { s: {", "services: { s: { access: open,");
    assert_eq!(gateway.reload(&open).await.status, 200);
    assert_eq!(gateway.call(&call(None, "bad")).await.status, 302);
}

#[tokio::test]
async fn chosen_headers_of_a_pass_reach_the_client() {
    let origin = Origin::named("a").await;
    let auth = passing(&[("set-cookie", "session=1"), ("set-cookie", "more=2"), ("x-internal", "secret")]).await;
    let gateway = gateway(", copy_to_client: [set-cookie]", &auth, &origin).await;
    let answer = gateway.get("/").await;
    assert_eq!(values(&answer.headers, "set-cookie"), ["session=1", "more=2"]);
    assert_eq!(answer.header("x-internal"), None);
    assert_eq!(origin.last().await.headers.get("set-cookie"), None);
}

#[tokio::test]
async fn a_pass_is_remembered_for_the_same_question_only() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|asked| match asked.headers.get("authorization") {
        Some("bad") => Reply::with(403, &[], ""),
        _ => Reply::with(200, &[("x-user", "u1")], ""),
    })
    .await;
    let settings = |cache: &str| format!(", copy: [x-user], cache: {{ {cache} }}");
    let mut gateway = gateway(&settings("ttl: 1h"), &auth, &origin).await;
    let call = |method: &str, target: &str, authorization: &str| {
        Call::new(method, target).header("Authorization", authorization).header("X-User", "admin")
    };
    for (call, asked) in [
        (call("GET", "/a", "one"), 1),
        (call("GET", "/a", "one"), 1),
        (call("GET", "/b", "one"), 2),
        (call("DELETE", "/a", "one"), 3),
        (call("GET", "/a?x=y", "one"), 4),
        (call("GET", "/a", "two"), 5),
        (call("GET", "/a", "one").header("Cookie", "c"), 6),
        (call("GET", "/a", "one").header("Authorization", "one"), 7),
        (call("GET", "/a", "one").host("other.example"), 8),
        (call("GET", "/a", "one"), 8),
    ] {
        assert_eq!(gateway.call(&call).await.status, 200);
        assert_eq!(auth.count(), asked, "{call:?}");
        assert_eq!(values(&origin.last().await.headers, "x-user"), ["u1"], "remembered or not, it is told the same");
    }
    for asked in [9, 10] {
        assert_eq!(gateway.call(&call("GET", "/a", "bad")).await.status, 403);
        assert_eq!(auth.count(), asked, "denials are not remembered");
    }
    assert_eq!(gateway.reload(&yaml(&settings("ttl: 1h, any_request: true"))).await.status, 200);
    for (target, asked) in [("/a", 11), ("/b", 11), ("/c?d", 11)] {
        assert_eq!(gateway.call(&call("GET", target, "one")).await.status, 200);
        assert_eq!(auth.count(), asked, "a reload forgets, and then one question holds for all requests");
    }
    assert_eq!(gateway.reload(&yaml(&settings("ttl: 50ms"))).await.status, 200);
    assert_eq!(gateway.call(&call("GET", "/a", "one")).await.status, 200);
    let gateway = &gateway;
    let auth = &auth;
    let asked_again = eventually(PATIENCE, || async {
        assert_eq!(gateway.call(&call("GET", "/a", "one")).await.status, 200);
        auth.count() > 12
    });
    assert!(asked_again.await, "what is remembered ends");
}

#[tokio::test]
async fn a_client_that_leaves_meanwhile_leaves_nothing_behind() {
    let origin = Origin::named("a").await;
    let slow = Arc::new(AtomicUsize::new(0));
    let asked = slow.clone();
    let auth = Origin::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::ok("").after(Duration::from_millis(400)),
        _ => Reply::ok(""),
    })
    .await;
    let gateway = gateway(", max_in_flight: 1", &auth, &origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/").bytes()).await.unwrap();
    auth.received(1).await;
    let busy = gateway.get("/").await;
    assert_eq!((busy.status, busy.problem().as_deref()), (503, Some("authority_unavailable")), "no pile-up");
    drop(client);
    let gateway = &gateway;
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.status == 200 }).await, "its place is free again");
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused() {
    for (settings, words) in [
        (", url2: x", "url2"),
        (", copy: [content-length]", "belongs to one connection"),
        (", copy: [x_user]", "origins may take"),
        (", send: ['a b']", "not a name for a header"),
        (", timeout: 0s", "no time at all"),
        (", cache: {}", "ttl"),
        (", max_in_flight: 0", "max_in_flight"),
        (", method: PUT", "method"),
    ] {
        let said = problems_of(&yaml(settings));
        assert!(said.contains(words), "{words} is missing in: {said}");
    }
    let said = problems_of(&yaml("").replace("http://{{auth}}/verify", "{{auth}}/verify"));
    assert!(said.contains("ext_auth.url"), "{said}");
}

#[tokio::test]
async fn an_authority_that_fails_open_stands_in_for_no_other_filter() {
    let origin = Origin::named("a").await;
    let down = ports::reserve();
    let yaml = format!(
        "
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
consumers: {{ mobile: {{ credentials: [{{ api_key: {{ hash: '{}' }} }}] }} }}
services:
  s:
    require: all
    filters: [FILTERS]
    routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }}
",
        gateway::key_hash("k-e-y")
    );
    let asks = format!("{{ ext_auth: {{ url: 'http://{}/', on_failure: allow }} }}", down.address);
    for filters in [format!("{{ api_key: {{}} }}, {asks}"), format!("{asks}, {{ api_key: {{}} }}")] {
        let gateway = Gateway::builder(&yaml.replace("FILTERS", &filters)).origin(&origin).start().await;
        assert_eq!(gateway.get("/").await.status, 401, "{filters}");
        assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", "guess")).await.status, 401, "{filters}");
        assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", "k-e-y")).await.status, 200, "{filters}");
        let received = origin.last().await;
        assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"), "{filters}");
        assert_eq!(received.headers.get("x-anonymous-consumer"), None, "{filters}");
    }
}

#[tokio::test]
async fn whom_the_authority_denies_is_no_guest() {
    let origin = Origin::named("a").await;
    let auth = Origin::start(|_| Reply::with(403, &[], "no")).await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    filters: [{ ext_auth: { url: 'http://{{auth}}/' } }, { anonymous: {} }]
    routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } }
";
    let gateway = Gateway::builder(yaml).with("auth", auth.address).origin(&origin).start().await;
    assert_eq!(gateway.get("/").await.status, 403);
    assert_eq!(origin.count(), 0);
}
