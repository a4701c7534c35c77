use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::*;
use crate::config::ValueMatch;

/// Routes named `r0`, `r1`, … unless they are given a name.
fn build(rules: &[(&str, Value)]) -> (Router, Problems) {
    let rules: Vec<(String, String, RouteMatch)> = rules
        .iter()
        .map(|(name, json)| {
            let rule = serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"));
            ((*name).to_owned(), format!("routes.{name}.match"), rule)
        })
        .collect();
    let routes: Vec<_> = rules.iter().map(|(name, place, rule)| Route { name, place, rule }).collect();
    let mut problems = Problems::default();
    let router = Router::build(&routes, &mut problems);
    (router, problems)
}

/// A request to try on a router: `GET host/path?query` and what is added to it.
struct Try {
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    client: IpAddr,
}

fn get(url: &str) -> Try {
    let (target, query) = url.split_once('?').map_or((url, None), |(target, query)| (target, Some(query.to_owned())));
    let slash = target.find('/').unwrap_or(target.len());
    Try {
        method: Method::GET,
        host: target[..slash].to_owned(),
        path: target[slash..].to_owned(),
        query,
        headers: HeaderMap::new(),
        client: Ipv4Addr::LOCALHOST.into(),
    }
}

impl Try {
    fn method(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }
    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }
    fn from(mut self, client: &str) -> Self {
        self.client = client.parse().unwrap();
        self
    }
    fn on(&self, router: &Router) -> Found {
        router.find(&Lookup {
            host: &self.host,
            path: &self.path,
            method: &self.method,
            headers: &self.headers,
            query: self.query.as_deref(),
            client: self.client,
        })
    }
}

#[track_caller]
fn goes_to(router: &Router, request: Try, wanted: impl Into<Option<usize>>) {
    let found = match request.on(router) {
        Found::Route { index, .. } => Some(index),
        _ => None,
    };
    assert_eq!(found, wanted.into(), "{} {}{}", request.method, request.host, request.path);
}

fn clean(rules: &[Value]) -> Router {
    let names: Vec<String> = (0..rules.len()).map(|i| format!("r{i}")).collect();
    let named: Vec<_> = names.iter().map(String::as_str).zip(rules.iter().cloned()).collect();
    let (router, problems) = build(&named);
    assert!(problems.is_empty(), "{problems:?}");
    router
}

#[test]
fn the_most_specific_host_answers() {
    let router = clean(&[
        json!({ "path_prefix": "/" }),
        json!({ "host": "*.example.com" }),
        json!({ "host": "*.eu.example.com" }),
        json!({ "host": "API.eu.example.com." }),
        json!({ "hosts": ["other.org", "*.other.org"], "path": "/x" }),
    ]);
    goes_to(&router, get("api.eu.example.com/"), 3);
    goes_to(&router, get("b.eu.example.com/"), 2);
    goes_to(&router, get("a.b.example.com/"), 1);
    goes_to(&router, get("example.com/"), 0);
    goes_to(&router, get("notexample.com/"), 0);
    goes_to(&router, get("/"), 0);
    goes_to(&router, get("other.org/x"), 4);
    goes_to(&router, get("a.b.other.org/x"), 4);
    goes_to(&router, get("other.org/y"), 0);
}

#[test]
fn an_unknown_host_has_no_default_site() {
    let router = clean(&[json!({ "host": "a.com" }), json!({ "host": "*.b.com" })]);
    for url in ["c.com/", "b.com/", "x.a.com/", "/"] {
        assert_eq!(get(url).on(&router), Found::Nothing, "{url}");
    }
}

#[test]
fn the_most_specific_path_answers() {
    let router = clean(&[
        json!({}),
        json!({ "path": "/orders" }),
        json!({ "path": "/orders/{id}" }),
        json!({ "path": "/orders/latest" }),
        json!({ "path": "/orders/o-{id}" }),
        json!({ "path": "/orders/o-{id}.pdf" }),
        json!({ "path": "/orders/{id}/{*rest}" }),
        json!({ "path_prefix": "/orders/" }),
        json!({ "path_prefix": "/orders/special" }),
        json!({ "path_regex": "/orders/[0-9]+/lines$" }),
        json!({ "path": "/{*rest}" }),
    ]);
    goes_to(&router, get("h/orders"), 1);
    goes_to(&router, get("h/orders/"), 7);
    goes_to(&router, get("h/orders/5"), 2);
    goes_to(&router, get("h/orders/latest"), 3);
    goes_to(&router, get("h/orders/o-5"), 4);
    goes_to(&router, get("h/orders/o-5.pdf"), 5);
    goes_to(&router, get("h/orders/o-.pdf"), 4);
    goes_to(&router, get("h/orders/o-"), 2);
    goes_to(&router, get("h/orders/5/lines"), 9);
    goes_to(&router, get("h/orders/5/lines/1"), 6);
    goes_to(&router, get("h/orders/special/x"), 8);
    goes_to(&router, get("h/ordersx"), 10);
    goes_to(&router, get("h/"), 0);
}

#[test]
fn a_prefix_matches_whole_segments() {
    let router = clean(&[json!({ "path_prefix": "/api" }), json!({ "path_prefix": "/{tenant}/admin" })]);
    for url in ["h/api", "h/api/", "h/api/x/y"] {
        goes_to(&router, get(url), 0);
    }
    goes_to(&router, get("h/a/admin/x"), 1);
    for url in ["h/apix", "h/ap", "h/", "h/API", "h//admin"] {
        goes_to(&router, get(url), None);
    }
}

#[test]
fn a_slash_at_the_end_of_a_path_counts() {
    let router = clean(&[json!({ "path": "/a" }), json!({ "path": "/b/" }), json!({ "path": "/c/{x}/" })]);
    for url in ["h/a/", "h/b", "h/c/1"] {
        goes_to(&router, get(url), None);
    }
    goes_to(&router, get("h/c/1/"), 2);
}

#[test]
fn a_route_whose_conditions_fail_leaves_the_request_to_the_next() {
    let router = clean(&[
        json!({ "host": "h", "path": "/a/b", "headers": { "x-canary": { "exact": "1" } } }),
        json!({ "host": "h", "path": "/a/{x}", "query": { "v": { "prefix": "2" } } }),
        json!({ "host": "h", "path": "/{x}/b", "cookies": { "beta": "present" } }),
        json!({ "host": "h", "path": "/a/{*rest}", "headers": { "x-old": "absent" } }),
        json!({ "path_prefix": "/a", "client": ["10.0.0.0/8", "::1"] }),
        json!({ "path_regex": "/a/[b-c]" , "headers": { "accept": { "regex": "text/(html|plain)$" } } }),
    ]);
    goes_to(&router, get("h/a/b?v=25").header("x-canary", "1"), 0);
    goes_to(&router, get("h/a/b?v=25").header("x-canary", "12").header("cookie", "a=1; beta=2"), 1);
    goes_to(&router, get("h/a/b?v=1").header("cookie", "a=1; beta=2"), 2);
    goes_to(&router, get("h/a/b").header("cookie", "alphabeta=2"), 3);
    goes_to(&router, get("h/a/b").header("x-old", "1").from("::ffff:10.1.1.1"), 4);
    goes_to(&router, get("h/a/b").header("x-old", "1").from("::1").header("accept", "text/html"), 5);
    goes_to(&router, get("h/a/b").header("x-old", "1").header("accept", "text/html5"), None);
}

#[test]
fn conditions_are_tested_on_every_value_and_decoded() {
    let router = clean(&[
        json!({ "path": "/q", "query": { "a b": { "exact": "c d/é" } } }),
        json!({ "path": "/h", "headers": { "X-Tag": { "exact": "two" } } }),
        json!({ "path": "/c", "cookies": { "id": { "exact": "a=b" } } }),
    ]);
    goes_to(&router, get("h/q?x&a+b=1&a%20b=c+d%2f%C3%A9"), 0);
    goes_to(&router, get("h/q?a+b=c"), None);
    goes_to(&router, get("h/h").header("x-tag", "one").header("x-tag", "two"), 1);
    goes_to(&router, get("h/c").header("cookie", "x=1").header("cookie", "y=2;id=a=b"), 2);
}

#[test]
fn of_equal_paths_the_one_with_more_conditions_answers() {
    let router = clean(&[
        json!({ "path": "/a" }),
        json!({ "path": "/a", "methods": ["GET"] }),
        json!({ "path": "/a", "methods": ["GET"], "client": ["10.0.0.0/8"] }),
        json!({ "path": "/a", "methods": ["GET"], "client": ["10.1.0.0/16"] }),
        json!({ "path": "/a", "methods": ["GET"], "cookies": { "c": "present" } }),
        json!({ "path": "/a", "methods": ["GET"], "query": { "q": "present" } }),
        json!({ "path": "/a", "methods": ["GET"], "headers": { "h": "present" } }),
        json!({ "path": "/a", "methods": ["GET"], "headers": { "h": { "exact": "1" } } }),
        json!({ "path": "/a", "methods": ["GET"], "headers": { "h": "present", "i": "present" } }),
        json!({ "path": "/a", "methods": ["HEAD"] }),
    ]);
    let everything = || get("h/a?q=1").header("h", "1").header("cookie", "c=1").from("10.1.1.1");
    goes_to(&router, everything().header("i", "1"), 8);
    goes_to(&router, everything(), 7);
    goes_to(&router, get("h/a?q=1").header("h", "2").header("cookie", "c=1"), 6);
    goes_to(&router, get("h/a?q=1").header("cookie", "c=1"), 5);
    goes_to(&router, get("h/a").header("cookie", "c=1").from("10.1.1.1"), 4);
    goes_to(&router, get("h/a").from("10.1.1.1"), 3);
    goes_to(&router, get("h/a").from("10.2.1.1"), 2);
    goes_to(&router, get("h/a"), 1);
    goes_to(&router, get("h/a").method("POST"), 0);
    goes_to(&router, get("h/a").method("HEAD"), 9);
}

#[test]
fn priority_stands_before_the_path_and_behind_the_host() {
    let router = clean(&[
        json!({ "host": "a.com", "path": "/x/y" }),
        json!({ "host": "a.com", "path_prefix": "/x", "priority": 5, "headers": { "m": "present" } }),
        json!({ "path_prefix": "/", "priority": 100, "headers": { "m": "present" } }),
        json!({ "host": "a.com", "path_regex": "/x/", "priority": 7, "headers": { "n": "present" } }),
        json!({ "host": "a.com", "path": "/{a}/{b}", "priority": -1 }),
    ]);
    goes_to(&router, get("a.com/x/y"), 0);
    goes_to(&router, get("a.com/x/y").header("m", "1"), 1);
    goes_to(&router, get("a.com/x/y").header("m", "1").header("n", "1"), 3);
    goes_to(&router, get("a.com/x/z"), 4);
    goes_to(&router, get("a.com/z").header("m", "1"), 2);
}

#[test]
fn a_wrong_method_is_told_which_ones_are_right() {
    let router = clean(&[
        json!({ "host": "h", "path": "/a/{x}", "methods": ["PUT", "GET"] }),
        json!({ "host": "h", "path": "/a/{x}", "methods": ["PURGE"], "client": ["127.0.0.1"] }),
        json!({ "path": "/{*rest}", "methods": ["POST"] }),
        json!({ "path": "/a/b", "methods": ["DELETE"], "headers": { "x": "present" } }),
    ]);
    let allow = |request: Try| match request.on(&router) {
        Found::MethodNotAllowed { allow } => allow,
        other => panic!("{other:?}"),
    };
    assert_eq!(allow(get("h/a/b").method("DELETE")), "GET, HEAD, POST, PURGE, PUT");
    assert_eq!(allow(get("h/a/b").method("OPTIONS").from("1.1.1.1")), "GET, HEAD, POST, PUT");
    assert_eq!(allow(get("h/a/b").header("x", "1").method("PATCH").from("1.1.1.1")), "DELETE, GET, HEAD, POST, PUT");
    assert_eq!(allow(get("other/z").method("GET")), "POST");
    goes_to(&router, get("h/a/b").method("HEAD"), 0);
    goes_to(&router, get("h/a/b").method("PURGE"), 1);
    assert_eq!(get("other/").on(&router), Found::Nothing);
}

#[test]
fn a_method_is_not_asked_for_when_something_else_fails_too() {
    let router = clean(&[json!({ "path": "/a", "methods": ["POST"], "headers": { "x": "present" } })]);
    assert_eq!(get("h/a").on(&router), Found::Nothing);
}

#[test]
fn names_in_a_path_capture_what_they_stood_for() {
    let router = clean(&[
        json!({ "path": "/u/{user}/f-{file}.txt/{*rest}" }),
        json!({ "path_prefix": "/t/{tenant}" }),
        json!({ "path_regex": "/v(?<version>[0-9]+)/(x)(?<tail>/.*)?" }),
        json!({ "path": "/plain" }),
    ]);
    let captured = |url: &str| match get(url).on(&router) {
        Found::Route { captures, .. } => {
            captures.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        }
        other => panic!("{url}: {other:?}"),
    };
    assert_eq!(captured("h/u/j%20d/f-a.b.txt/x/y/"), "user=j%20d file=a.b rest=x/y/");
    assert_eq!(captured("h/t/acme/more"), "tenant=acme");
    assert_eq!(captured("h/v12/x"), "version=12");
    assert_eq!(captured("h/v12/x/y"), "version=12 tail=/y");
    assert_eq!(captured("h/plain"), "");
}

#[test]
fn mistakes_are_reported_all_at_once_at_their_places() {
    let (_, problems) = build(&[
        ("a", json!({ "host": "x.com:80", "path": "/a/*", "methods": ["get", "G T"] })),
        ("b", json!({ "hosts": ["*", "bücher.de", "ok.com"], "headers": { "x y": "present", "z": { "regex": "(" } } })),
        ("c", json!({ "path": "/c", "path_regex": "/c" })),
        ("d", json!({ "path_regex": "[", "client": ["10.0.0.0/40"], "query": { "q": { "regex": "[" } } })),
        ("e", json!({ "host": "x.com", "hosts": ["y.com"], "path_prefix": "api" })),
    ]);
    let places: Vec<&str> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        places,
        [
            "routes.a.match.host",
            "routes.a.match.methods[0]",
            "routes.a.match.methods[1]",
            "routes.a.match.path",
            "routes.b.match.hosts[0]",
            "routes.b.match.hosts[1]",
            "routes.b.match.headers.x y",
            "routes.b.match.headers.z.regex",
            "routes.c.match",
            "routes.d.match.query.q.regex",
            "routes.d.match.client[0]",
            "routes.d.match.path_regex",
            "routes.e.match.hosts",
            "routes.e.match.path_prefix",
        ],
        "{problems:#?}"
    );
    assert_eq!(problems.0[1].suggestion.as_deref(), Some("GET"));
}

/// The routes that a report about `b` names, and whether it is about a tie.
#[track_caller]
fn conflict(a: Value, b: Value) -> Option<(String, bool)> {
    let (_, problems) = build(&[("a", a), ("b", b)]);
    assert!(problems.0.len() <= 1, "{problems:?}");
    let problem = problems.0.into_iter().next()?;
    assert!(problem.message.contains("`a`") && problem.message.contains("`b`"), "{problem}");
    Some((problem.path, problem.message.contains("ties")))
}

#[test]
fn routes_between_which_only_the_name_decides_are_reported_as_ties() {
    let tie = Some(("routes.b.match".to_owned(), true));
    for (a, b) in [
        (json!({}), json!({ "path_prefix": "/" })),
        (json!({ "path": "/a" }), json!({ "path": "/%61" })),
        (json!({ "path": "/a/{x}" }), json!({ "path": "/a/{y}" })),
        (json!({ "path_prefix": "/a" }), json!({ "path_prefix": "/a/" })),
        (json!({ "path_regex": "/a" }), json!({ "path_regex": "/a" })),
        (json!({ "path": "/a", "methods": ["GET", "PUT"] }), json!({ "path": "/a", "methods": ["PUT", "POST"] })),
        (json!({ "host": "A.com" }), json!({ "hosts": ["b.com", "a.com."] })),
        (
            json!({ "headers": { "X-A": { "exact": "1" } }, "client": ["10.1.0.0/8"] }),
            json!({ "headers": { "x-a": { "exact": "1" } }, "client": ["10.0.0.0/8"] }),
        ),
    ] {
        assert_eq!(conflict(a.clone(), b.clone()), tie, "{a} and {b}");
    }
}

#[test]
fn routes_that_can_never_match_are_reported() {
    let hidden = |name: &str| Some((format!("routes.{name}.match"), false));
    for (a, b, wanted) in [
        (json!({ "path": "/a" }), json!({ "path_prefix": "/", "priority": 1 }), hidden("a")),
        (json!({ "path": "/a/{x}" }), json!({ "path": "/{*r}", "priority": 1 }), hidden("a")),
        (json!({ "path": "/a/b" }), json!({ "path_regex": "/a", "priority": 1 }), hidden("a")),
        (json!({ "path_regex": "/a" }), json!({ "priority": 1 }), hidden("a")),
        (
            json!({ "headers": { "x": { "prefix": "a" } } }),
            json!({ "headers": { "x": { "prefix": "ab" } } }),
            hidden("b"),
        ),
        (
            json!({ "path": "/a", "methods": ["GET"], "priority": 1 }),
            json!({ "path": "/a", "methods": ["HEAD"] }),
            hidden("b"),
        ),
        (
            json!({ "client": ["10.0.0.0/8"], "priority": 1 }),
            json!({ "client": ["10.1.0.0/16"], "headers": { "x": "present" } }),
            hidden("b"),
        ),
    ] {
        assert_eq!(conflict(a.clone(), b.clone()), wanted, "{a} and {b}");
    }
    let (_, problems) = build(&[
        ("a", json!({ "path": "/x", "methods": ["GET", "POST"] })),
        ("b", json!({ "path_prefix": "/x", "methods": ["GET"], "priority": 1 })),
        ("c", json!({ "path": "/{y}", "methods": ["POST"], "priority": 2 })),
    ]);
    let [problem] = &problems.0[..] else { panic!("{problems:?}") };
    assert_eq!(
        problem.to_string(),
        "routes.a.match: route `a` can never match on any host: every request that it matches goes to `c` \
         (routes.c.match) and `b` (routes.b.match) first"
    );
}

#[test]
fn routes_that_both_have_their_requests_are_not_reported() {
    for (a, b) in [
        (json!({ "path": "/a/{x}" }), json!({ "path": "/{x}/b" })),
        (json!({ "path": "/a", "methods": ["GET"] }), json!({ "path": "/a", "methods": ["POST"] })),
        (json!({ "path": "/a", "methods": ["GET"] }), json!({ "path": "/a" })),
        (json!({ "path": "/a/{x}" }), json!({ "path": "/a/{*x}" })),
        (json!({ "path": "/a/{x}" }), json!({ "path_prefix": "/a/{x}" })),
        (json!({ "host": "a.com" }), json!({ "host": "*.com" })),
        (json!({ "host": "a.com" }), json!({ "priority": 9 })),
        (json!({ "headers": { "x": { "exact": "1" } } }), json!({ "headers": { "x": { "exact": "2" } } })),
        (json!({ "headers": { "x": "present" } }), json!({ "headers": { "y": "present" } })),
        (json!({ "headers": { "x": "present" } }), json!({ "headers": { "x": "absent" } })),
        (json!({ "path": "/x" }), json!({ "path_regex": "/y", "priority": 1 })),
        (json!({ "client": ["10.0.0.0/8"] }), json!({ "client": ["10.1.0.0/16"] })),
    ] {
        assert_eq!(conflict(a.clone(), b.clone()), None, "{a} and {b}");
    }
}

/// The documented rules once more, as plainly as they can be written: every route is looked at.
mod naive {
    use super::*;

    fn texts(path: &str) -> Vec<&str> {
        path[1..].split('/').collect()
    }

    fn segment(pattern: &str, text: &str) -> bool {
        match pattern.split_once('{') {
            None => pattern == text,
            Some((before, after)) => {
                let after = after.split_once('}').unwrap().1;
                text.len() > before.len() + after.len() && text.starts_with(before) && text.ends_with(after)
            }
        }
    }

    fn path(rule: &RouteMatch, path: &str) -> bool {
        if let Some(regex) = &rule.path_regex {
            return regex::Regex::new(regex).unwrap().find(path).is_some_and(|found| found.start() == 0);
        }
        let (pattern, open) = match (&rule.path, &rule.path_prefix) {
            (Some(path), _) => (texts(path), false),
            (_, Some(prefix)) if prefix != "/" => (texts(prefix), true),
            _ => return true,
        };
        let given = texts(path);
        for (i, wanted) in pattern.iter().enumerate() {
            if wanted.starts_with("{*") {
                return given.len() > i && !given[i..].join("/").is_empty();
            }
            if given.get(i).is_none_or(|text| !segment(wanted, text)) {
                return false;
            }
        }
        open || pattern.len() == given.len()
    }

    fn host(rule: &RouteMatch, host: &str) -> bool {
        match rule.host.as_deref() {
            None => true,
            Some(wanted) if wanted.starts_with('*') => host.ends_with(&wanted[1..]) && host.len() >= wanted.len(),
            Some(wanted) => wanted == host,
        }
    }

    fn predicates(rule: &RouteMatch, request: &Try) -> bool {
        rule.headers.iter().all(|(name, value)| {
            let given = request.headers.get(name).map(|v| v.to_str().unwrap());
            match value {
                ValueMatch::Exact(wanted) => given == Some(wanted),
                ValueMatch::Prefix(wanted) => given.is_some_and(|given| given.starts_with(&**wanted)),
                ValueMatch::Present => given.is_some(),
                ValueMatch::Absent => given.is_none(),
                ValueMatch::Regex(_) => unreachable!(),
            }
        })
    }

    fn method(rule: &RouteMatch, method: &str) -> bool {
        rule.methods.is_empty()
            || rule.methods.iter().any(|known| known == method || known == "GET" && method == "HEAD")
    }

    /// Sorts before what stands behind it in the documented order.
    fn order(rule: &RouteMatch, name: &str) -> impl Ord {
        let host = match rule.host.as_deref() {
            None => (2, 0),
            Some(host) if host.starts_with('*') => (1, -(host.len() as i64)),
            Some(_) => (0, 0),
        };
        let written = rule.path.as_deref().or(rule.path_prefix.as_deref()).unwrap_or("/");
        let mut segments: Vec<(u8, i64, i64, &str)> = match &rule.path_regex {
            Some(regex) => vec![(0, -(regex.len() as i64), 0, regex)],
            None => texts(written)
                .into_iter()
                .map(|text| match text.split_once('{') {
                    _ if text.starts_with("{*") => (3, 0, 0, ""),
                    None => (0, 0, 0, text),
                    Some(("", after)) if after.ends_with('}') => (2, 0, 0, ""),
                    Some((before, after)) => {
                        let after = after.split_once('}').unwrap().1;
                        (1, -((before.len() + after.len()) as i64), -(before.len() as i64), "")
                    }
                })
                .collect(),
        };
        let open = rule.path_regex.is_none() && rule.path.is_none();
        if open {
            if segments.last().is_some_and(|last| *last == (0, 0, 0, "")) {
                segments.pop();
            }
            segments.push((4, 0, 0, ""));
        }
        let kind = match &rule.path {
            _ if rule.path_regex.is_some() => 1,
            Some(path) if !path.contains("{*") => 0,
            _ => 2,
        };
        let named = |method: &str| rule.methods.iter().any(|known| known == method);
        let methods = match rule.methods.is_empty() {
            true => 2,
            false if named("HEAD") && !named("GET") => 0,
            false => 1,
        };
        let exact = rule.headers.values().filter(|value| matches!(value, ValueMatch::Exact(_))).count();
        let segments: Vec<_> = segments.into_iter().map(|(a, b, c, text)| (a, b, c, text.to_owned())).collect();
        let headers = (Reverse(rule.headers.len()), Reverse(exact));
        (host, -rule.priority, kind, segments, methods, headers, name.to_owned())
    }

    pub fn find(rules: &[(String, RouteMatch)], request: &Try) -> Found {
        let but_method: Vec<usize> = (0..rules.len())
            .filter(|&i| {
                let rule = &rules[i].1;
                host(rule, &request.host) && path(rule, &request.path) && predicates(rule, request)
            })
            .collect();
        let matching = but_method.iter().copied().filter(|&i| method(&rules[i].1, request.method.as_str()));
        if let Some(index) = matching.min_by_key(|&i| order(&rules[i].1, &rules[i].0)) {
            return Found::Route { index, captures: captures(&rules[index].1, &request.path) };
        }
        let mut allow: Vec<&str> = but_method.iter().flat_map(|&i| &rules[i].1.methods).map(String::as_str).collect();
        if allow.contains(&"GET") {
            allow.push("HEAD");
        }
        allow.sort_unstable();
        allow.dedup();
        if allow.is_empty() { Found::Nothing } else { Found::MethodNotAllowed { allow: allow.join(", ") } }
    }

    fn captures(rule: &RouteMatch, path: &str) -> Captures {
        let (Some(pattern), None) = (rule.path.as_ref().or(rule.path_prefix.as_ref()), &rule.path_regex) else {
            return Captures::default();
        };
        let given = texts(path);
        let mut values = Vec::new();
        for (i, wanted) in texts(pattern).into_iter().enumerate() {
            if let Some(name) = wanted.strip_prefix("{*") {
                values.push((name.trim_end_matches('}').into(), given[i..].join("/").into()));
            } else if let Some((before, after)) = wanted.split_once('{') {
                let (name, after) = after.split_once('}').unwrap();
                values.push((name.into(), given[i][before.len()..given[i].len() - after.len()].into()));
            }
        }
        Captures(values)
    }
}

#[test]
fn the_router_agrees_with_looking_at_every_route() {
    const HOSTS: [Option<&str>; 6] = [None, None, Some("a.com"), Some("*.a.com"), Some("*.b.a.com"), Some("b.a.com")];
    const SEGMENTS: [&str; 9] = ["a", "a", "b", "ab", "{x}", "a{x}", "{x}b", "a{x}b", "ab{x}"];
    const REGEXES: [&str; 4] = ["/a", "/[ab]/.*b$", "/(a|ab)/", ".*b"];
    const TEXTS: [&str; 8] = ["a", "b", "ab", "", "aab", "abb", "aabb", "c"];
    const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "PURGE"];
    let seed = std::env::var("HEADGATE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}; repeat with HEADGATE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen = [0; 3];
    for _ in 0..400 {
        let mut rules: Vec<(String, RouteMatch)> = Vec::new();
        for _ in 0..random.usize(1..25) {
            let mut rule = RouteMatch { host: HOSTS[random.usize(..6)].map(str::to_owned), ..RouteMatch::default() };
            let mut path = String::new();
            for i in 0..random.usize(0..4) {
                path += &format!("/{}", SEGMENTS[random.usize(..9)].replace('x', &format!("x{i}")));
            }
            match random.u8(..8) {
                0 => {}
                1 => rule.path_regex = Some(REGEXES[random.usize(..4)].into()),
                2 | 3 => rule.path_prefix = Some(if path.is_empty() { "/".into() } else { path }),
                4 => rule.path = Some(path + "/{*rest}"),
                5 => rule.path = Some(path + "/"),
                _ => rule.path = Some(if path.is_empty() { "/".into() } else { path }),
            }
            if random.bool() {
                rule.methods = (0..random.usize(1..3)).map(|_| METHODS[random.usize(..5)].to_owned()).collect();
            }
            if random.u8(..4) == 0 {
                let value = match random.u8(..4) {
                    0 => ValueMatch::Exact("1".into()),
                    1 => ValueMatch::Prefix("1".into()),
                    2 => ValueMatch::Present,
                    _ => ValueMatch::Absent,
                };
                rule.headers.insert(["x", "y"][random.usize(..2)].into(), value);
            }
            if random.u8(..4) == 0 {
                rule.priority = random.i32(-1..3);
            }
            rules.push((format!("r{:02}", rules.len()), rule));
        }
        let routes: Vec<_> = rules.iter().map(|(name, rule)| Route { name, place: name, rule }).collect();
        let mut problems = Problems::default();
        let router = Router::build(&routes, &mut problems);
        let never = problems.0.iter().filter(|problem| problem.message.contains("can never match"));
        let hidden: Vec<&str> = never.map(|problem| problem.path.as_str()).collect();

        for _ in 0..60 {
            let mut path = String::new();
            for _ in 0..random.usize(1..5) {
                path += &format!("/{}", TEXTS[random.usize(..8)]);
            }
            let host = ["a.com", "b.a.com", "c.b.a.com", "x.a.com", "com", ""][random.usize(..6)];
            let mut request = get(&format!("{host}{path}")).method(METHODS[random.usize(..5)]);
            for name in ["x", "y"] {
                if random.bool() {
                    request = request.header(name, ["1", "12", "2"][random.usize(..3)]);
                }
            }
            let (found, wanted) = (request.on(&router), naive::find(&rules, &request));
            assert_eq!(
                found, wanted,
                "seed {seed}: {} {host}{path} {:?} on {rules:#?}",
                request.method, request.headers
            );
            seen[match &found {
                Found::Route { .. } => 0,
                Found::MethodNotAllowed { .. } => 1,
                Found::Nothing => 2,
            }] += 1;
            if let Found::Route { index, .. } = found {
                let name = rules[index].0.as_str();
                assert!(!hidden.contains(&name), "seed {seed}: {name} answered, though it was reported as hidden");
            }
        }
    }
    assert!(seen.iter().all(|&count| count > 500), "the outcomes {seen:?} are too one-sided to show anything");
}
