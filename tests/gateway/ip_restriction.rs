//! Who may come in, by address.

use crate::support::*;

#[tokio::test]
async fn only_the_allowed_networks_come_in() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("ip_restriction", &origin).await;
    // The test stands where the load balancer of the example does.
    for (client, status) in [
        ("10.1.2.3", 200),
        ("2001:db8::7", 200),
        ("10.6.6.6", 403),
        ("192.0.2.1", 403),
        ("10.1.2.3, 192.0.2.1", 403),
        ("::ffff:10.6.6.6", 403),
    ] {
        let answer = gateway.call(&Call::get("/").header("X-Forwarded-For", client)).await;
        assert_eq!(answer.status, status, "{client}");
    }
    assert_eq!(gateway.get("/").await.status, 403, "the load balancer itself is not a client");
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn deny_wins_over_allow() {
    let origin = Origin::named("a").await;
    for (filter, status) in [
        ("{ allow: [127.0.0.0/8] }", 200),
        ("{ allow: [10.0.0.0/8] }", 403),
        ("{ deny: [127.0.0.1] }", 403),
        ("{ deny: [10.0.0.0/8] }", 200),
        ("{ allow: [127.0.0.0/8], deny: [127.0.0.1] }", 403),
        ("{ allow: ['::1', 127.0.0.1] }", 200),
    ] {
        let yaml = format!(
            "
filters: [{{ ip_restriction: {filter} }}]
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ respond: {{ body: in }} }} }} }} }} }}
"
        );
        let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
        let answer = gateway.call(&Call::get("/").header("X-Forwarded-For", "127.0.0.1, 10.1.1.1")).await;
        assert_eq!(answer.status, status, "{filter}");
    }
}
