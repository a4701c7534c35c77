//! What a plan allows on the service it was subscribed for.

use crate::rate_limit::KEY;
use crate::support::*;

#[tokio::test]
async fn the_plan_of_the_example_limits_and_a_better_one_goes_on_counting() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::example("plans", &origin).await;
    let call = Call::get("/").header("X-Api-Key", KEY);
    for n in 1..=7 {
        let answer = gateway.call(&call).await;
        assert_eq!(answer.status, if n <= 5 { 200 } else { 429 }, "request {n}");
        if n > 5 {
            assert_eq!(
                (answer.problem().as_deref(), &answer.json()["limit"]),
                (Some("quota_exceeded"), &"orders/day".into())
            );
        }
    }
    let usage = gateway.admin_get("/usage?consumer=mobile").await.json();
    let limits = usage["consumers"][0]["limits"].as_array().unwrap();
    let kinds: Vec<_> = limits.iter().map(|limit| limit["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["rate", "quota"], "{usage}");
    assert_eq!(limits[1]["used"], 5, "{usage}");

    let more = gateway::example("plans").replace("quota: 5/day", "quota: 8/day");
    assert_eq!(gateway.reload(&more).await.status, 200);
    let statuses = [gateway.call(&call).await.status, gateway.call(&call).await.status];
    assert_eq!(statuses, [200, 200]);
    assert_eq!(gateway.admin_get("/usage?consumer=mobile").await.json()["consumers"][0]["limits"][1]["used"], 7);
    let gold = more.replace("{ orders: free }", "{ orders: gold }");
    assert_eq!(gateway.reload(&gold).await.status, 200);
    let answer = gateway.call(&call).await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("ratelimit-policy").unwrap().contains("q=200;w=1"), "{:?}", answer.headers);
}
