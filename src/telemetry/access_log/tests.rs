use std::time::UNIX_EPOCH;

use http::HeaderValue;

use super::*;
use crate::telemetry::exchange::Exchange;
use crate::telemetry::exchange::tests::{exchange, request, response};
use crate::variables::Scope;

/// By way of JSON, in which a choice such as `to: { file: PATH }` is a map, not a YAML tag.
fn decode(yaml: &str) -> Result<Config, serde_json::Error> {
    serde_json::from_value(serde_yaml::from_str(yaml).unwrap())
}

fn plan(yaml: &str) -> Plan {
    let mut problems = Problems::default();
    Plan::compile(&decode(yaml).unwrap(), "access_log", &mut problems).expect("compiles")
}

fn problems(yaml: &str) -> Vec<String> {
    let mut problems = Problems::default();
    assert!(Plan::compile(&decode(yaml).unwrap(), "access_log", &mut problems).is_none());
    problems.0.iter().map(ToString::to_string).collect()
}

fn render(plan: &Plan, exchange: &Exchange, request: &pingora::http::RequestHeader) -> String {
    let response = response();
    let scope = Scope { exchange, request, response: Some(&response) };
    let at = UNIX_EPOCH + Duration::from_millis(1_769_860_800_007);
    let mut out = String::new();
    plan.render(&Line { scope, at, trace_id: None }, &mut out);
    out
}

#[test]
fn a_json_line_has_its_members_in_the_documented_order() {
    let plan = plan("fields: { tenant: '${request.header.x-many}/${status}' }");
    assert_eq!(
        render(&plan, &exchange(), &request()),
        concat!(
            r#"{"time":"2026-01-31T12:00:00.007Z","request_id":"0197-id","client":"2001:db8::1","listener":"edge","#,
            r#""scheme":"https","host":"api.example.com","port":8443,"method":"GET","path":"/orders/7","#,
            r#""query":"page=2&token=***","forwarded_path":"/internal/7","protocol":"HTTP/1.1","status":200,"#,
            r#""reason":"upstream_reset","duration":1.002003,"request_bytes":12,"response_bytes":3456,"service":"shop","#,
            r#""route":"list","consumer":"mobile","credential":"api_key:00000000000000ff","upstream":"orders","target":"10.0.0.1:80","#,
            r#""attempts":2,"upstream_connect":0.000450,"upstream_first_byte":0.250000,"referer":"https://example.com/?code=***","user_agent":"curl/8","#,
            r#""tenant":"a, b/200"}"#,
            "\n"
        )
    );
}

#[test]
fn a_combined_line_is_what_nginx_would_write() {
    assert_eq!(
        render(&plan("format: combined"), &exchange(), &request()),
        concat!(
            r#"2001:db8::1 - mobile [31/Jan/2026:12:00:00 +0000] "GET /orders/7?page=2&token=*** HTTP/1.1" 200 3456 "#,
            r#""https://example.com/?code=***" "curl/8""#,
            "\n"
        )
    );
}

#[test]
fn hostile_bytes_neither_end_a_line_nor_break_its_format() {
    let mut exchange = exchange();
    exchange.original_target = None;
    exchange.host = "a\"b".into();
    let mut request = request();
    request.set_raw_path(b"/\xff\"\\x?a=\\\xfe").unwrap();
    request.insert_header("user-agent", HeaderValue::from_bytes(b"\"}\\\t\x80\xe2\x82\xac").unwrap()).unwrap();

    let line = render(&plan("format: json"), &exchange, &request);
    let parsed: serde_json::Value = serde_json::from_str(&line).expect("valid JSON");
    assert_eq!(parsed["path"], "/\u{fffd}\"\\x");
    assert_eq!(parsed["query"], "a=\\\u{fffd}");
    assert_eq!(parsed["user_agent"], "\"}\\\t\u{fffd}€");
    assert_eq!(parsed["host"], "a\"b");

    let line = render(&plan("format: combined"), &exchange, &request);
    assert!(line.contains(r#""GET /\xFF\x22\x5Cx?a=\x5C\xFE HTTP/1.1""#), "{line}");
    assert!(line.ends_with("\"\\x22}\\x5C\\x09\\x80\\xE2\\x82\\xAC\"\n"), "{line}");

    let line = render(&plan("format: { template: \"${host}\\t${request.path}\" }"), &exchange, &request);
    assert_eq!(line, "a\\x22b\t/\\xFF\\x22\\x5Cx\n");
}

#[test]
fn a_request_that_never_found_a_route_has_a_line_without_those_members() {
    let mut exchange = exchange();
    (exchange.route, exchange.upstream, exchange.target) = (None, None, None);
    (exchange.upstream_connect, exchange.upstream_first_byte, exchange.reason) = (None, None, None);
    (exchange.status, exchange.attempts) = (0, 0);
    let line = render(&plan("{}"), &exchange, &request());
    let parsed: serde_json::Value = serde_json::from_str(&line).expect("valid JSON");
    assert_eq!((&parsed["status"], &parsed["attempts"]), (&0.into(), &0.into()));
    for member in ["service", "route", "upstream", "target", "reason", "upstream_connect"] {
        assert!(parsed.get(member).is_none(), "{member}");
    }
}

#[test]
fn mistakes_are_reported_together() {
    assert_eq!(
        problems("{ fields: { status: x, a: '${nope.nope}', b: '${durration}' }, buffer: 1KiB }"),
        [
            "access_log.fields.a: there is no variable `${nope.nope}`",
            "access_log.fields.b: there is no variable `${durration}` (did you mean `${duration}`?)",
            "access_log.fields.status: every line has a member `status` already",
            "access_log.buffer: needs at least 64KiB",
        ]
    );
    assert_eq!(
        problems("{ format: combined, fields: { a: b } }"),
        ["access_log.fields: only lines of the format `json` have fields"]
    );
    assert!(decode("{ fromat: json }").is_err());
    assert!(decode("{ to: nowhere }").is_err());
    for good in ["{ to: off }", "{ to: stdout }", "{ to: { file: /tmp/x } }"] {
        assert!(decode(good).is_ok(), "{good}");
    }
}

#[test]
fn failures_and_slow_requests_are_logged_whatever_the_share() {
    let plan = plan("{ sample: 0%, always: { status: 400, duration: 2s } }");
    let wants = |status, millis| {
        let mut exchange = exchange();
        exchange.status = status;
        exchange.duration = Duration::from_millis(millis);
        let request = request();
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        plan.wants(&Line { scope, at: UNIX_EPOCH, trace_id: None })
    };
    assert!(!wants(200, 10));
    assert!(wants(404, 10) && wants(200, 2000) && wants(0, 10));
}
