use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::*;
use crate::config::units::{Duration, Share, Size};
use crate::config::{Loaded, Problems, load_str};

/// Every shape of schema that the structs of the configuration may take.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "decoding is what is tested")]
struct Root {
    name: String,
    #[serde(default)]
    flag: bool,
    #[schemars(range(min = 1, max = 10))]
    count: Option<u32>,
    ratio: Option<f64>,
    small: Option<u8>,
    signed: Option<i64>,
    wait: Option<Duration>,
    #[serde(default = "one_mib")]
    size: Size,
    share: Option<Share>,
    secret: Option<SecretRef>,
    ip: Option<IpAddr>,
    #[serde(default)]
    words: Vec<Word>,
    documented: Option<Documented>,
    health: Option<Health>,
    by: Option<By>,
    inner: Option<Inner>,
    boxed: Option<Box<Inner>>,
    #[serde(default)]
    map: BTreeMap<String, Inner>,
    pair: Option<(String, u16)>,
    #[schemars(length(min = 1, max = 3))]
    list: Option<Vec<String>>,
    #[schemars(length(min = 2, max = 4), regex(pattern = "^[a-z]+$"))]
    code: Option<String>,
    any: Option<serde_json::Value>,
    tagged: Option<Internally>,
    statuses: Option<BTreeMap<u16, String>>,
}

fn one_mib() -> Size {
    Size::mib(1)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Word {
    RoundRobin,
    LeastConnections,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Documented {
    /// One.
    First,
    /// Two.
    Second,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "decoding is what is tested")]
enum Health {
    /// Connect only.
    Tcp,
    Http(Inner),
    Grpc {
        service: Option<String>,
    },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "decoding is what is tested")]
enum By {
    Header(String),
    Cookie(String),
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(dead_code, reason = "decoding is what is tested")]
struct Inner {
    path: String,
    port: u16,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "decoding is what is tested")]
enum Internally {
    A { x: u8 },
    B { y: u8 },
}

fn problems_of(text: &str) -> Vec<String> {
    let environment = |name: &str| (name == "PASSWORD").then(|| "hunter2".to_owned());
    match load_str::<Root>("t", text, &ConfigSchema::of::<Root>(&[]), &environment) {
        Ok(Loaded { .. }) => Vec::new(),
        Err(Problems(problems)) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn every_accepted_shape_is_accepted() {
    for line in [
        "flag: true",
        "count: 10",
        "ratio: 1",
        "ratio: 1.5",
        "signed: -5",
        "wait: 5s",
        "size: 8MiB",
        "share: 5%",
        "secret: env:TOKEN",
        "ip: \"::1\"",
        "words: [round_robin, least_connections]",
        "documented: second",
        "health: tcp",
        "health: { http: { path: /, port: 80 } }",
        "health: { grpc: {} }",
        "by: { header: x-user }",
        "inner: {}",
        "boxed: { path: / }",
        "map: { a: {}, b: { port: 1 } }",
        "pair: [a, 1]",
        "list: [a]",
        "code: abc",
        "any: { what: [ever, 1, ~] }",
        "tagged: { type: b, y: 1 }",
        "statuses: { 404: none }",
    ] {
        assert_eq!(problems_of(&format!("name: x\n{line}\n")), [""; 0], "{line}");
    }
}

#[test]
fn every_mistake_names_its_place_and_the_nearest_word() {
    for (line, expected) in [
        ("flog: true", "t:2: flog: unknown key (did you mean `flag`?)"),
        ("qqqqqqqq: 1", "t:2: qqqqqqqq: unknown key; known here: `any`, `boxed`,"),
        ("flag: yes", "t:2: flag: must be true or false, not the text `yes` (did you mean `true`?)"),
        ("flag: Off", "t:2: flag: must be true or false, not the text `Off` (did you mean `false`?)"),
        ("flag:", "t:2: flag: has no value: write true or false, or remove the key"),
        ("count: 11", "t:2: count: must be at most 10"),
        ("count: 0", "t:2: count: must be at least 1"),
        ("count: 1.5", "t:2: count: must be a whole number, not `1.5`"),
        ("count: many", "t:2: count: must be a whole number, not the text `many`"),
        ("count: ~", "t:2: count: has no value: write a whole number, or remove the key"),
        ("small: 256", "t:2: small: must be at most 255"),
        ("small: -1", "t:2: small: must be at least 0"),
        ("signed: 99999999999999999999", "t:2: signed: must be a whole number"),
        ("ratio: x", "t:2: ratio: must be a number, not the text `x`"),
        ("wait: 5", "t:2: wait: `5` is not a duration; write a number and a unit"),
        ("size: 8", "t:2: size: must be text, not `8`: put it in quotes"),
        ("wait: 5 parsecs", "t:2: wait: `5 parsecs` is not a duration"),
        ("size: 8MB", "t:2: size: `8MB` is not a size"),
        ("share: 101%", "t:2: share: `101%` is not a share"),
        ("secret: hunter2", "t:2: secret: a secret is not written into the configuration"),
        ("ip: 10.0.0", "t:2: ip: `10.0.0` is not an IP address"),
        (
            "words: [round_robn]",
            "t:2: words[0]: `round_robn` is not one of `round_robin`, `least_connections` (did you mean `round_robin`?)",
        ),
        ("words: round_robin", "t:2: words: must be a list, not the text `round_robin`"),
        ("documented: thrid", "t:2: documented: `thrid` is not one of `first`, `second`"),
        ("documented: 1", "t:2: documented: must be one of `first`, `second`, not `1`"),
        ("health: tpc", "t:2: health: `tpc` is not `tcp`, or a map with one of `http`, `grpc` (did you mean `tcp`?)"),
        ("health: http", "t:2: health: `http` needs its settings: write `{ http: … }`"),
        ("health: { tcp: {} }", "t:2: health.tcp: takes no settings; write just `tcp`"),
        ("health: { htp: {} }", "t:2: health.htp: `htp` is not one of `tcp`, `http`, `grpc` (did you mean `http`?)"),
        ("health: { http: {}, grpc: {} }", "t:2: health: only one of `grpc`, `http` may stand here"),
        ("health: { http: { pth: / } }", "t:2: health.http.pth: unknown key (did you mean `path`?)"),
        ("health: { grpc: { service: 1 } }", "t:2: health.grpc.service: must be text, not `1`"),
        ("health: {}", "t:2: health: must be `tcp`, or a map with one of `http`, `grpc`"),
        ("health: [tcp]", "t:2: health: must be `tcp`, or a map with one of `http`, `grpc`, not a list"),
        ("by: { haeder: x }", "t:2: by.haeder: `haeder` is not one of `header`, `cookie` (did you mean `header`?)"),
        ("by: header", "t:2: by: `header` needs its settings"),
        ("inner: 5", "t:2: inner: must be a map, not `5`"),
        ("inner: { port: 70000 }", "t:2: inner.port: must be at most 65535"),
        ("inner: { port: \"80\" }", "t:2: inner.port: must be a whole number, not the text `80`"),
        ("boxed: { prt: 1 }", "t:2: boxed.prt: unknown key (did you mean `port`?)"),
        ("map:\n  a: {}\n  b: { pot: 1 }", "t:4: map.b.pot: unknown key (did you mean `port`?)"),
        ("map: []", "t:2: map: must be a map, not a list"),
        ("pair: [a, b]", "t:2: pair[1]: must be a whole number"),
        ("pair: [a]", "t:2: pair: needs at least 2 entries"),
        ("pair: [a, 1, 2]", "t:2: pair: has more than 2 entries"),
        ("list: []", "t:2: list: is empty"),
        ("list: [a, b, c, d]", "t:2: list: has more than 3 entries"),
        ("list: [a, true]", "t:2: list[1]: must be text, not `true`: put it in quotes"),
        ("code: a", "t:2: code: is shorter than 2 characters"),
        ("code: abcde", "t:2: code: is longer than 4 characters"),
        ("code: AB", "t:2: code: the text `AB` does not match ^[a-z]+$"),
        ("tagged: { type: b, x: 1 }", "t:2: tagged.y: is missing"),
        ("statuses: { none: x }", "t:2: statuses.none: unknown key"),
        ("wait: ${env:PASSWORD}", "t:2: wait: the value from the environment is not a valid headgate-duration"),
        ("documented: ${env:PASSWORD}", "t:2: documented: the value from the environment is not one of"),
        ("count: ${env:PASSWORD}", "t:2: count: must be a whole number, not the value from the environment"),
    ] {
        let problems = problems_of(&format!("name: x\n{line}\n"));
        let seen = problems.iter().any(|problem| problem.starts_with(expected));
        assert!(seen, "{line:?} gave {problems:#?} instead of {expected}");
        assert!(problems.iter().all(|problem| !problem.contains("hunter2")), "{problems:?}");
    }
}

#[test]
fn a_missing_key_is_reported_where_it_belongs() {
    assert_eq!(problems_of("flag: true\n"), ["t:1: name: is missing"]);
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_lines() {
    let problems = problems_of("words: [x]\nflog: 1\ncount: many\nflog: 2\nmap:\n  a: { port: -1 }\n");
    let lines: Vec<&str> = problems.iter().map(|problem| &problem[..4]).collect();
    assert_eq!(lines, ["t:1:", "t:1:", "t:2:", "t:3:", "t:4:", "t:6:"], "{problems:#?}");
}

#[test]
fn a_flood_of_problems_is_cut() {
    let text: String = (0..10_000).map(|i| format!("unknown{i}: 1\n")).collect();
    let problems = problems_of(&text);
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert!(problems.last().is_some_and(|last| last.contains("too many problems")));
}
