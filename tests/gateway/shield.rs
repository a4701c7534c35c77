//! No address floods the gateway.

use crate::support::*;

#[tokio::test]
async fn one_address_is_stopped_and_the_others_are_not() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("shield", &origin).await;
    let mut client = gateway.connect().await;
    let call = |address: &str| Call::get("/").header("X-Forwarded-For", address);
    let mut statuses = Vec::new();
    for _ in 0..25 {
        statuses.push(client.call(&call("10.0.0.1")).await.unwrap().status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 20, "{statuses:?}");
    assert_eq!(statuses[24], 429);
    let refused = client.call(&call("10.0.0.1")).await.unwrap();
    assert_eq!((refused.problem().as_deref(), refused.header("retry-after")), (Some("rate_limited"), Some("600")));
    for other in ["10.0.0.2", "2001:db8::1"] {
        assert_eq!(client.call(&call(other)).await.unwrap().status, 200, "{other}");
    }
    assert_eq!(gateway.metric("headgate_limit_refusals_total", &[("limit", "shield")]).await, 6.0);
}
