//! The admin listener: what it tells, and to whom.

use crate::support::*;

#[tokio::test]
async fn life_readiness_and_status_are_told() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    assert_eq!(gateway.admin_get("/livez").await.status, 200);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
    let status = gateway.admin_get("/status").await;
    assert_eq!(status.header("content-type"), Some("application/json"));
    let status = status.json();
    assert!(status.get("revision").is_some(), "{status}");
    assert_eq!(status["phase"], "ready", "{status}");
    assert!(status.get("upstreams").is_some(), "{status}");
    assert!(status.to_string().contains(&origin.address.to_string()), "the health of each target: {status}");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused() {
    let gateway = Gateway::start("services: {}\n").await;
    assert_eq!(gateway.admin_get("/nothing").await.status, 404);
    let answer = gateway.admin_get("/reload").await;
    assert_eq!(answer.status, 405, "a link in a page must not reload");
    assert!(answer.headers.lists("allow", "POST"));
    assert_eq!(gateway.admin(&Call::new("DELETE", "/metrics")).await.status, 405);
}

#[tokio::test]
async fn names_that_resolve_to_loopback_do_not_open_the_admin_side() {
    let gateway = Gateway::start("services: {}\n").await;
    let admin = gateway.address("admin");
    for host in ["evil.example", "localhost.evil.example", "169.254.169.254"] {
        let mut client = Client::connect(admin).await.unwrap();
        let answer = client.call(&Call::new("POST", "/reload").host(host)).await.unwrap();
        assert!((400..500).contains(&answer.status), "{host}: {} (DNS rebinding)", answer.status);
    }
    for host in [admin.to_string(), format!("localhost:{}", admin.port()), "[::1]:9080".into()] {
        let mut client = Client::connect(admin).await.unwrap();
        assert_eq!(client.call(&Call::get("/livez").host(&host)).await.unwrap().status, 200, "{host}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_cannot_reload() {
    let gateway = Gateway::start("services: {}\n").await;
    let answer = gateway.admin(&Call::new("POST", "/reload").header("Origin", "https://evil.example")).await;
    assert!((400..500).contains(&answer.status), "{}", answer.status);
}

#[tokio::test]
async fn metrics_count_requests_by_bounded_labels() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    for n in 0..50 {
        gateway.call(&Call::new(&format!("METHOD{n}"), &format!("/{n}")).host(&format!("h{n}.example"))).await;
    }
    gateway.get("/").await;
    // A request is counted when it has ended, which may be after its client has the answer.
    assert!(gateway.metric_becomes("headgate_requests_total", &[], |value| value >= 51.0).await);
    assert_eq!(gateway.metric("headgate_requests_total", &[]).await, 51.0);
    assert_eq!(gateway.metric("headgate_requests_total", &[("method", "GET")]).await, 1.0);
    let samples = gateway.metrics().await;
    let of_requests = samples.keys().filter(|name| name.starts_with("headgate_requests_total")).count();
    assert!(of_requests < 10, "{of_requests} series: what clients choose must not become labels");
    for name in [
        "headgate_build_info",
        "headgate_config_last_reload_successful",
        "headgate_connections_active",
        "headgate_request_duration_seconds_count",
        "headgate_requests_in_flight",
        "headgate_upstream_attempts_total",
    ] {
        assert!(samples.keys().any(|sample| sample.split('{').next() == Some(name)), "{name} is missing");
    }
    assert!(samples.keys().all(|name| name.starts_with("headgate_") || name.starts_with("process_")), "foreign names");
}

#[tokio::test]
async fn requests_in_flight_return_to_zero() {
    let origin = Origin::scripted(vec![Reply::silence()]).await;
    let gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/").bytes()).await.unwrap();
    assert!(gateway.metric_becomes("headgate_requests_in_flight", &[], |value| value == 1.0).await);
    drop(client);
    assert!(
        gateway.metric_becomes("headgate_requests_in_flight", &[], |value| value == 0.0).await,
        "also when a client leaves"
    );
}

#[tokio::test]
async fn the_data_plane_does_not_serve_admin_paths() {
    let gateway = Gateway::start("services: {}\n").await;
    for path in ["/metrics", "/status", "/livez", "/readyz"] {
        assert_eq!(gateway.get(path).await.status, 404, "{path}");
    }
    assert_eq!(gateway.call(&Call::new("POST", "/reload")).await.status, 404);
}
