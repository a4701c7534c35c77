//! Which route answers: hosts, paths, predicates, and their one order of precedence.

use crate::support::gateway::headgate;
use crate::support::scratch::Scratch;
use crate::support::*;

/// A configuration whose routes answer with their own names.
fn routes(matches: &[(&str, &str)]) -> String {
    let mut yaml = "services:\n  s:\n    routes:\n".to_owned();
    for (name, written) in matches {
        yaml += &format!(
            "      {name}:\n        match: {written}\n        backend: {{ respond: {{ status: 200, body: {name} }} }}\n"
        );
    }
    yaml
}

/// Asserts which route answers each call; `None` is a 404.
async fn assert_routed(gateway: &Gateway, table: &[(Call, Option<&str>)]) {
    let mut client = gateway.connect().await;
    for (call, expected) in table {
        let answer = client.call(call).await.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        match expected {
            Some(name) => assert_eq!((answer.status, answer.text().as_str()), (200, *name), "{call:?}"),
            None => assert_eq!(answer.status, 404, "{call:?} was answered by {:?}", answer.text()),
        }
    }
}

#[tokio::test]
async fn exact_host_beats_wildcard_beats_any() {
    let gateway = Gateway::start(&routes(&[
        ("any", "{ path_prefix: / }"),
        ("wildcard", "{ host: '*.example.com', path_prefix: / }"),
        ("exact", "{ host: api.example.com, path_prefix: / }"),
    ]))
    .await;
    let on = |host| Call::get("/").host(host);
    assert_routed(
        &gateway,
        &[
            (on("api.example.com"), Some("exact")),
            (on("API.Example.COM"), Some("exact")),
            (on("api.example.com:8080"), Some("exact")),
            (on("www.example.com"), Some("wildcard")),
            (on("example.com"), Some("any")),
            (on("notexample.com"), Some("any")),
            (on("elsewhere.test"), Some("any")),
        ],
    )
    .await;
}

#[tokio::test]
async fn exact_path_beats_parameter_beats_rest_and_the_longest_prefix_wins() {
    let gateway = Gateway::start(&routes(&[
        ("root", "{ path_prefix: / }"),
        ("orders", "{ path_prefix: /orders }"),
        ("archive", "{ path_prefix: /orders/archive }"),
        ("one", "{ path: '/orders/{id}' }"),
        ("mine", "{ path: /orders/mine }"),
        ("files", "{ path: '/files/{*rest}' }"),
    ]))
    .await;
    assert_routed(
        &gateway,
        &[
            (Call::get("/orders/mine"), Some("mine")),
            (Call::get("/orders/mine?x=/orders/1"), Some("mine")),
            (Call::get("/orders/17"), Some("one")),
            (Call::get("/orders/17/lines"), Some("orders")),
            (Call::get("/orders"), Some("orders")),
            (Call::get("/orders/archive/2020/1"), Some("archive")),
            (Call::get("/ordersx"), Some("root")),
            (Call::get("/files/a/b/c"), Some("files")),
            (Call::get("/"), Some("root")),
            (Call::get("/else"), Some("root")),
        ],
    )
    .await;
}

#[tokio::test]
async fn prefixes_end_at_segment_borders() {
    let gateway = Gateway::start(&routes(&[("api", "{ path_prefix: /api }")])).await;
    assert_routed(
        &gateway,
        &[
            (Call::get("/api"), Some("api")),
            (Call::get("/api/"), Some("api")),
            (Call::get("/api/x"), Some("api")),
            (Call::get("/api?x"), Some("api")),
            (Call::get("/apix"), None),
            (Call::get("/ap"), None),
        ],
    )
    .await;
}

#[tokio::test]
async fn regular_expressions_match_the_whole_path() {
    let gateway = Gateway::start(&routes(&[("numbered", r"{ path_regex: '/item/[0-9]+' }")])).await;
    assert_routed(
        &gateway,
        &[(Call::get("/item/42"), Some("numbered")), (Call::get("/item/x"), None), (Call::get("/x/item/42/x"), None)],
    )
    .await;
}

#[tokio::test]
async fn methods_choose_between_routes_of_one_path() {
    let gateway = Gateway::start(&routes(&[
        ("read", "{ path: /thing, methods: [GET] }"),
        ("write", "{ path: /thing, methods: [POST, PUT] }"),
    ]))
    .await;
    assert_routed(
        &gateway,
        &[
            (Call::get("/thing"), Some("read")),
            (Call::post("/thing", "x"), Some("write")),
            (Call::new("PUT", "/thing").body("x"), Some("write")),
        ],
    )
    .await;
}

#[tokio::test]
async fn header_query_and_cookie_predicates_refine_a_path() {
    let gateway = Gateway::start(&routes(&[
        ("plain", "{ path: /p }"),
        ("header", "{ path: /p, headers: { X-Beta: { exact: 'on' } } }"),
        ("query", "{ path: /p, query: { version: { exact: '2' } } }"),
        ("cookie", "{ path: /p, cookies: { canary: { exact: 'yes' } } }"),
    ]))
    .await;
    let call = || Call::get("/p");
    assert_routed(
        &gateway,
        &[
            (call(), Some("plain")),
            (call().header("x-beta", "on"), Some("header")),
            (call().header("X-Beta", "off"), Some("plain")),
            // Every line of a field is looked at, so that a second one cannot hide from a policy.
            (call().header("X-Beta", "off").header("X-Beta", "on"), Some("header")),
            (Call::get("/p?version=2"), Some("query")),
            (Call::get("/p?a=b&version=2&c"), Some("query")),
            (Call::get("/p?version=22"), Some("plain")),
            (call().header("Cookie", "a=b; canary=yes"), Some("cookie")),
            (call().header("Cookie", "a=canary=yes"), Some("plain")),
        ],
    )
    .await;
}

#[tokio::test]
async fn client_networks_choose_a_route() {
    let gateway = Gateway::start(&routes(&[
        ("others", "{ path: /p }"),
        ("loopback", "{ path: /p, client: [127.0.0.0/8] }"),
        ("documentation", "{ path: /p, client: [192.0.2.0/24], priority: 1 }"),
    ]))
    .await;
    assert_routed(
        &gateway,
        &[
            (Call::get("/p"), Some("loopback")),
            (Call::get("/p").header("X-Forwarded-For", "192.0.2.1"), Some("loopback")),
        ],
    )
    .await;
}

#[tokio::test]
async fn priority_overrules_specificity() {
    let gateway = Gateway::start(&routes(&[
        ("specific", "{ path: /a/b, headers: { X: { exact: y } } }"),
        ("urgent", "{ path_prefix: /a, query: { now: { exact: 'yes' } }, priority: 10 }"),
    ]))
    .await;
    assert_routed(
        &gateway,
        &[
            (Call::get("/a/b?now=yes").header("X", "y"), Some("urgent")),
            (Call::get("/a/b").header("X", "y"), Some("specific")),
        ],
    )
    .await;
}

#[tokio::test]
async fn unmatched_hosts_and_paths_are_not_found() {
    let gateway = Gateway::start(&routes(&[("only", "{ host: here.test, path: /only }")])).await;
    assert_routed(
        &gateway,
        &[
            (Call::get("/only").host("here.test"), Some("only")),
            (Call::get("/only").host("there.test"), None),
            (Call::get("/only/").host("here.test"), None),
            (Call::get("/").host("here.test"), None),
            (Call::get("/ONLY").host("here.test"), None),
        ],
    )
    .await;
}

#[tokio::test]
async fn ten_thousand_routes_are_each_found() {
    let names: Vec<(String, String)> = (0..10_000)
        .map(|n| (format!("r{n}"), format!("{{ host: h{}.test, path: '/p{n}/{{id}}' }}", n % 100)))
        .collect();
    let table: Vec<(&str, &str)> = names.iter().map(|(name, written)| (name.as_str(), written.as_str())).collect();
    let gateway = Gateway::start(&routes(&table)).await;
    let mut client = gateway.connect().await;
    for n in (0..10_000).step_by(397) {
        let call = Call::get(&format!("/p{n}/x")).host(&format!("h{}.test", n % 100));
        assert_eq!(client.call(&call).await.unwrap().text(), format!("r{n}"));
        let elsewhere = Call::get(&format!("/p{n}/x")).host(&format!("h{}.test", (n + 1) % 100));
        assert_eq!(client.call(&elsewhere).await.unwrap().status, 404);
    }
}

#[test]
fn check_names_routes_that_tie_and_routes_that_never_match() {
    let scratch = Scratch::new();
    let document = "listeners: { http: { address: 127.0.0.1:0 } }\n".to_owned()
        + &routes(&[
            ("first_twin", "{ path: /twin }"),
            ("second_twin", "{ path: /twin }"),
            ("shadow", "{ path: /s, priority: 9 }"),
            ("shadowed", "{ path: /s, headers: { X: { exact: y } } }"),
        ]);
    let file = scratch.write("routes.yaml", document);
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    for name in ["first_twin", "second_twin", "shadowed"] {
        assert!(said.contains(name), "`check` should have named {name}:\n{said}");
    }
}
