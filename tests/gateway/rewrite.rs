//! What the origin is asked for differs from what the client asked; `paths.rs` has what a rewrite may not do.

use crate::support::*;

#[tokio::test]
async fn paths_hosts_and_queries_are_rewritten() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("rewrite", &origin).await;
    for (sent, forwarded) in [
        ("/shop/shoes", "/v2/shoes?channel=web"),
        ("/shop/shoes?size=42&debug=1", "/v2/shoes?size=42&channel=web"),
        ("/shop/shoes?channel=fax&channel=phone", "/v2/shoes?channel=web"),
        ("/customers/7/orders/9", "/orders/9?customer=7"),
        ("/customers/7/orders/9?x=y", "/orders/9?x=y&customer=7"),
        ("/articles/12-a-long-title", "/articles/12"),
        ("/articles/none", "/articles/none"),
    ] {
        assert_eq!(gateway.get(sent).await.status, 200, "{sent}");
        assert_eq!(origin.request(origin.count() - 1).target, forwarded, "of {sent}");
    }
    assert_eq!(origin.request(0).headers.get("host"), Some("shop.internal"));
    assert_eq!(origin.request(3).headers.get("host"), Some("test.example"));
}

#[tokio::test]
async fn captured_values_cannot_add_segments_or_parameters() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("rewrite", &origin).await;
    for path in [
        "/customers/7%26admin=1/orders/9",
        "/customers/7/orders/9%3Fadmin=1",
        "/customers/7/orders/..%2f..%2fadmin",
        "/customers/7%23/orders/9",
    ] {
        gateway.get(path).await;
    }
    for request in origin.requests() {
        assert!(request.path().starts_with("/orders/"), "{}", request.target);
        assert!(!request.target.contains("&admin=1") && !request.target.contains("?admin=1"), "{}", request.target);
    }
}
