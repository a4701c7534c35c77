//! Authorisation by lists and conditions: who is known is not yet allowed.

use crate::support::gateway::{key_hash, problems_of};
use crate::support::*;

/// The key of the example.
const KEY: &str = "hgk_exampleexampleexampleexample01231XI1lm";

fn yaml(acl: &str) -> String {
    let consumer = |name: &str, more: &str| {
        format!("  {name}: {{ credentials: [{{ api_key: {{ hash: '{}' }} }}]{more} }}\n", key_hash(name))
    };
    let consumers = [
        consumer("mobile", ", team: apps, labels: { tier: paying, region: eu }, scopes: [read]"),
        consumer("partner", ", team: friends, labels: { tier: partner }, scopes: [read, write]"),
        consumer("nobody", ""),
    ];
    format!(
        "
services:
  s:
    access: open
    filters: [{{ api_key: {{}} }}, {{ acl: {acl} }}]
    routes:
      all: {{ match: {{ path: '/users/{{id}}' }}, backend: {{ upstream: origin }} }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }} }}
consumers:
{}",
        consumers.concat()
    )
}

/// The statuses for each of the three consumers and for nobody.
async fn statuses(gateway: &Gateway) -> [u16; 4] {
    let mut statuses = [0; 4];
    for (status, key) in statuses.iter_mut().zip(["mobile", "partner", "nobody"]) {
        *status = gateway.call(&Call::get("/users/7").header("X-Api-Key", key)).await.status;
    }
    statuses[3] = gateway.get("/users/7").await.status;
    statuses
}

#[tokio::test]
async fn the_example_lets_readers_read_and_writers_write() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("acl", &origin).await;
    let call = |method: &str| Call::new(method, "/orders/1").header("X-Api-Key", KEY);
    assert_eq!(gateway.call(&call("GET")).await.status, 200);
    let refused = gateway.call(&call("DELETE")).await;
    assert_eq!((refused.status, refused.problem().as_deref()), (403, Some("forbidden")));
    assert_eq!(refused.json().get("detail"), None, "the caller is not told which rule it was");
    assert!(refused.keeps_alive());
    assert_eq!(gateway.get("/orders/1").await.status, 401);
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn one_list_suffices_to_pass_and_denial_wins() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(&yaml("{ allow: { consumers: [mobile] } }")).origin(&origin).start().await;
    for (acl, expected) in [
        ("{ allow: { consumers: [mobile] } }", [200, 403, 403, 403]),
        ("{ allow: { teams: [apps, friends] } }", [200, 200, 403, 403]),
        ("{ allow: { labels: { tier: [partner] } } }", [403, 200, 403, 403]),
        ("{ allow: { labels: { tier: [partner], region: [eu] } } }", [200, 200, 403, 403]),
        ("{ allow: { consumers: [nobody], labels: { region: [eu] } } }", [200, 403, 200, 403]),
        ("{ allow: { scopes: [write, admin] } }", [403, 200, 403, 403]),
        ("{ allow: { scopes: [read] } }", [200, 200, 403, 403]),
        ("{ allow: { all_scopes: [read, write] } }", [403, 200, 403, 403]),
        ("{ deny: { all_scopes: [read, write] } }", [200, 403, 200, 200]),
        ("{ deny: { consumers: [mobile] } }", [403, 200, 200, 200]),
        ("{ allow: { scopes: [read] }, deny: { teams: [apps] } }", [403, 200, 403, 403]),
        ("{ allow: { consumers: [mobile] }, deny: { labels: { tier: [paying] } } }", [403, 403, 403, 403]),
        ("{ allow: { teams: [apps] }, condition: 'false' }", [403, 403, 403, 403]),
        ("{ allow: { teams: [apps] }, condition: 'true' }", [200, 403, 403, 403]),
    ] {
        assert_eq!(gateway.reload(&yaml(acl)).await.status, 200, "{acl}");
        assert_eq!(statuses(&gateway).await, expected, "{acl}");
    }
}

#[tokio::test]
async fn a_condition_sees_request_and_caller() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(&yaml("{ condition: 'true' }")).origin(&origin).start().await;
    for (condition, expected) in [
        ("consumer == 'mobile'", [200, 403, 403, 403]),
        ("consumer != null && consumer.team != 'apps'", [403, 200, 200, 403]),
        ("has(consumer.labels.tier) && consumer.labels.tier in ['paying']", [200, 403, 403, 403]),
        ("'write' in scopes", [403, 200, 403, 403]),
        ("path.id == '7' && request.path.matches('^/users/[0-9]+$')", [200, 200, 200, 200]),
        ("path.id == '8'", [403, 403, 403, 403]),
        ("client.address.startsWith('127.') && anonymous", [403, 403, 403, 200]),
        ("credential != null && credential.kind == 'api_key'", [200, 200, 200, 403]),
    ] {
        assert_eq!(gateway.reload(&yaml(&format!("{{ condition: \"{condition}\" }}"))).await.status, 200);
        assert_eq!(statuses(&gateway).await, expected, "{condition}");
    }
    // Every value of a header counts, so that none is smuggled past the condition beside another.
    let acl = "{ condition: \"request.headers['x-role'] == 'reader' && request.query.role == ['reader']\" }";
    assert_eq!(gateway.reload(&yaml(acl)).await.status, 200);
    for (target, roles, status) in [
        ("/users/7?role=reader", &["reader"][..], 200),
        ("/users/7?role=reader", &["reader", "admin"], 403),
        ("/users/7?role=reader", &["admin", "reader"], 403),
        ("/users/7?role=reader", &[], 403),
        ("/users/7?role=reader&role=admin", &["reader"], 403),
        ("/users/7?role=reader&r%6Fle=admin", &["reader"], 403),
        ("/users/7?ROLE=reader", &["reader"], 403),
    ] {
        let call = roles.iter().fold(Call::get(target), |call, role| call.header("X-Role", role));
        assert_eq!(gateway.call(&call).await.status, status, "{target} {roles:?}");
    }
}

#[tokio::test]
async fn a_condition_that_cannot_be_evaluated_refuses_and_the_log_says_why() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(&yaml("{ condition: 'true' }")).origin(&origin).start().await;
    let conditions = [
        ("request.headers['x-absent'] != 'blocked'", "the condition asks for what the request does not have"),
        ("claims.sub != 'blocked'", "the condition asks for what the request does not have"),
        ("request.path > 5", "the condition combines what does not fit together"),
        ("request.path", "the condition is neither true nor false"),
        ("1 / 0 == 1", "the condition could not be evaluated"),
        ("consumer == 'mobile'", "the condition does not hold"),
    ];
    for (condition, _) in conditions {
        assert_eq!(gateway.reload(&yaml(&format!("{{ condition: \"{condition}\" }}"))).await.status, 200);
        assert_eq!(gateway.get("/users/7").await.status, 403, "{condition}");
    }
    assert_eq!(gateway.reload(&yaml("{ deny: { consumers: [mobile] } }")).await.status, 200);
    assert_eq!(gateway.call(&Call::get("/users/7").header("X-Api-Key", "mobile")).await.status, 403);
    let log = gateway.access_log(conditions.len() + 1).await;
    // Workers write in no order.
    let mut causes: Vec<_> = log.iter().map(|line| line["cause"].as_str().unwrap_or_default()).collect();
    let mut expected: Vec<_> = conditions.iter().map(|(_, cause)| *cause).chain(["the consumer is denied"]).collect();
    causes.sort();
    expected.sort();
    assert_eq!(causes, expected);
    assert!(log.iter().all(|line| line["reason"] == "forbidden"), "{log:?}");
    assert_eq!(origin.count(), 0);
}

#[test]
fn a_slip_in_a_list_or_a_condition_is_found_beforehand() {
    for (acl, words) in [
        ("{}", "do nothing"),
        ("{ allow: {} }", "nobody could be meant"),
        ("{ allow: { consumers: [mobil] } }", "did you mean `mobile`"),
        ("{ deny: { teams: [] } }", "nobody could be meant"),
        ("{ allow: { groups: [a] } }", "groups"),
        ("{ condition: 'requst.path == \"a\"' }", "did you mean `request.path`"),
        ("{ condition: 'request.path.startswith(\"a\")' }", "did you mean `startsWith`"),
        ("{ condition: 'request.path ==' }", "filters[1].acl.condition"),
        ("{ condition: 'request.path.matches(request.host)' }", "written out"),
    ] {
        let said = problems_of(&yaml(acl));
        assert!(said.contains(words), "{words} is missing in: {said}\n{acl}");
    }
}
