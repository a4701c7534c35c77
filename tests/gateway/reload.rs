//! A configuration is replaced whole or not at all, and no request notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::gateway::EVERYTHING_TO_ORIGIN;
use crate::support::tls::{Authority, TlsClient, der, presented};
use crate::support::*;

fn answering(body: &str) -> String {
    format!(
        "services: {{ s: {{ routes: {{ r: {{ match: {{ path_prefix: / }}, backend: {{ respond: {{ status: 200, body: {body} }} }} }} }} }} }}\n"
    )
}

#[tokio::test]
async fn a_good_configuration_replaces_the_running_one() {
    let mut gateway = Gateway::start(&answering("old")).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.get("/").await.unwrap().text(), "old");
    let reload = gateway.reload(&answering("new")).await;
    assert_eq!(reload.status, 200, "{}", reload.text());
    assert_eq!(client.get("/").await.unwrap().text(), "new", "connections that are open see the new one too");
    assert_eq!(gateway.metric("headgate_config_last_reload_successful", &[]).await, 1.0);
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_every_problem_and_the_old_one_serves_on() {
    let mut gateway = Gateway::start(&answering("old")).await;
    let reload = gateway
        .reload("services: { s: { routes: { r: { match: { path_prefx: / }, backend: { upstream: nowhere } } } } }\nupstrems: {}\n")
        .await;
    assert!((400..500).contains(&reload.status), "{} {}", reload.status, reload.text());
    let said = reload.text();
    for word in ["path_prefx", "path_prefix", "upstrems", "upstreams"] {
        assert!(said.contains(word), "{word} is missing in {said}");
    }
    assert_eq!(gateway.get("/").await.text(), "old");
    assert_eq!(gateway.metric("headgate_config_last_reload_successful", &[]).await, 0.0);
    assert!(
        gateway.admin_get("/status").await.text().contains("path_prefx"),
        "the status tells why the reload was refused"
    );
    assert!(gateway.logs("path_prefx").await, "the log tells why the reload was refused");
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "a refused reload does not make the gateway unready");

    gateway.reload(&answering("repaired")).await;
    assert_eq!(gateway.get("/").await.text(), "repaired");
    assert_eq!(gateway.metric("headgate_config_last_reload_successful", &[]).await, 1.0);
}

#[tokio::test]
async fn a_changed_file_is_noticed() {
    let mut gateway = Gateway::start(&answering("old")).await;
    gateway.write_config(&answering("new"));
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.text() == "new" }).await);
}

#[tokio::test]
async fn hangup_signal_reloads() {
    let mut gateway = Gateway::start(&answering("old")).await;
    gateway.write_config(&answering("new"));
    gateway.signal(libc::SIGHUP);
    assert!(eventually(PATIENCE, || async { gateway.get("/").await.text() == "new" }).await);
    assert!(gateway.is_running());
}

#[tokio::test]
async fn files_of_any_nonsense_are_refused() {
    let gateway = Gateway::start(&answering("old")).await;
    let deep = "[".repeat(10_000);
    let aliases = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nservices: *c\n";
    for nonsense in [
        "",
        "- a\n- b\n",
        "services: 3\n",
        "services: {s: {}\n",
        "\u{0}",
        "services: {}\nservices: {}\n",
        &deep,
        aliases,
    ] {
        let path = gateway.config().to_owned();
        std::fs::write(&path, nonsense).unwrap();
        let reload = gateway.admin(&Call::new("POST", "/reload")).await;
        let start: String = nonsense.chars().take(30).collect();
        assert!((400..500).contains(&reload.status), "{start:?}: {} {}", reload.status, reload.text());
        assert_eq!(gateway.get("/").await.text(), "old", "after {start:?}");
    }
    std::fs::remove_file(gateway.config()).unwrap();
    assert!(gateway.admin(&Call::new("POST", "/reload")).await.status >= 400);
    assert_eq!(gateway.get("/").await.text(), "old", "after the file was removed");
}

#[tokio::test]
async fn requests_in_flight_end_under_the_configuration_they_began_with() {
    let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let origin = Origin::scripted(vec![reply]).await;
    let mut gateway = Gateway::before(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/slow").bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"a");
    assert_eq!(gateway.reload(&answering("new")).await.status, 200);
    assert_eq!(gateway.get("/").await.text(), "new");
    assert!(feed.send("1\r\nb\r\n0\r\n\r\n"), "the exchange must survive the reload");
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"b");
    assert_eq!(client.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn reloads_under_load_fail_no_request() {
    let mut gateway = Gateway::start(&answering("old")).await;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (address, stop, served) = (gateway.address("http"), stop.clone(), served.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(address).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.get("/").await.unwrap();
                    assert!(answer.status == 200 && matches!(answer.text().as_str(), "old" | "new"), "{answer:?}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..30 {
        let reload = match round % 3 {
            0 => gateway.reload(&answering("new")).await,
            1 => gateway.reload(&answering("old")).await,
            _ => gateway.reload("nonsense: true\n").await,
        };
        assert_eq!(reload.status == 200, round % 3 != 2, "{}", reload.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no request may fail during a reload");
    }
    assert!(served.load(Ordering::Relaxed) > 100);
}

#[tokio::test]
async fn an_unreadable_certificate_refuses_the_reload() {
    let with_certificate = |name: &str, body: &str| {
        format!(
            "listeners:
  http: {{ address: '{{{{http}}}}' }}
  https: {{ address: '{{{{https}}}}', tls: {{ certificates: [{{ cert: '{{{{dir}}}}/{name}.crt', key: '{{{{dir}}}}/{name}.key' }}] }} }}
"
        ) + &answering(body)
    };
    let authority = Authority::new("ca");
    let pair = authority.issue(&["a.example"]);
    let builder = Gateway::builder(&with_certificate("a", "old"));
    pair.write(builder.directory(), "a");
    std::fs::write(builder.directory().join("broken.crt"), "no certificate").unwrap();
    std::fs::write(builder.directory().join("broken.key"), &pair.key).unwrap();
    let mut gateway = builder.start().await;
    for name in ["none", "broken"] {
        let reload = gateway.reload(&with_certificate(name, "new")).await;
        assert!(
            (400..500).contains(&reload.status) && reload.text().contains(&format!("{name}.crt")),
            "{}",
            reload.text()
        );
        assert_eq!(gateway.get("/").await.text(), "old");
        let stream = TlsClient::trusting(&authority).connect(gateway.address("https"), "a.example").await.unwrap();
        assert_eq!(presented(&stream), der(&pair.certificate).to_vec(), "the old certificate is shown on");
    }
}

#[tokio::test]
async fn pooled_connections_and_counters_survive_a_reload() {
    // One worker: with several, Pingora's pool may miss the connection that another has just put back.
    let yaml = "server: { threads: 1, upgrade: { socket: '{{dir}}/run/h.sock', pid_file: '{{dir}}/run/h.pid' } }"
        .to_owned()
        + EVERYTHING_TO_ORIGIN;
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    gateway.get("/").await;
    // A request is counted when it has ended, which may be after its client has the answer.
    assert!(gateway.metric_becomes("headgate_requests_total", &[], |value| value >= 1.0).await);
    let before = gateway.metric("headgate_requests_total", &[]).await;
    gateway.reload(&yaml).await;
    gateway.get("/").await;
    assert!(gateway.metric_becomes("headgate_requests_total", &[], |value| value > before).await);
    assert_eq!(gateway.metric("headgate_requests_total", &[]).await, before + 1.0);
    assert_eq!(origin.connections(), 1, "an upstream that did not change keeps its connections");
}

#[tokio::test]
async fn limits_and_trusted_proxies_of_a_listener_change_by_reload() {
    let yaml = |settings: &str| {
        format!("listeners: {{ http: {{ address: '{{{{http}}}}', {settings} }} }}\n") + EVERYTHING_TO_ORIGIN
    };
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(&yaml("limits: { uri: 1KiB }")).origin(&origin).start().await;
    let long = Call::get(&format!("/{}", "x".repeat(2000))).header("X-Forwarded-For", "192.0.2.1");
    assert_eq!(gateway.call(&long).await.status, 414);
    let reload = gateway.reload(&yaml("limits: { uri: 4KiB }, trusted_proxies: [127.0.0.1]")).await;
    assert_eq!(reload.status, 200, "{}", reload.text());
    assert_eq!(gateway.call(&long).await.status, 200);
    let chain = origin.last().await.headers.get("x-forwarded-for").unwrap().to_owned();
    assert!(chain.starts_with("192.0.2.1"), "{chain}");
}

#[tokio::test]
async fn a_listener_that_is_added_moved_or_removed_needs_an_upgrade_and_says_so() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::before(&origin).await;
    for listeners in [
        "listeners: { http: { address: '{{http}}' }, more: { address: '{{more}}' } }",
        "listeners: { http: { address: '{{elsewhere}}' } }",
        "listeners: { other: { address: '{{http}}' } }",
    ] {
        let reload = gateway.reload(&format!("{listeners}\n{EVERYTHING_TO_ORIGIN}")).await;
        assert!((400..500).contains(&reload.status), "{listeners}: {}", reload.status);
        assert!(reload.text().contains("headgate upgrade"), "{listeners}: {}", reload.text());
        assert_eq!(gateway.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn an_open_breaker_stays_open_over_a_reload() {
    let yaml = EVERYTHING_TO_ORIGIN.replace(
        "targets: [{ address: '{{origin}}' }]",
        "targets: [{ address: '{{origin}}' }], breaker: { failures: 50%, min_requests: 5, open_for: 60s }",
    );
    let origin = Origin::start(|_| Reply::with(500, &[], "broken")).await;
    let mut gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    for _ in 0..10 {
        gateway.get("/").await;
    }
    assert_eq!(gateway.metric("headgate_upstream_breaker_state", &[]).await, 2.0);
    assert_eq!(gateway.reload(&format!("{yaml}# changed\n")).await.status, 200);
    assert_eq!(gateway.get("/").await.problem().as_deref(), Some("circuit_open"));
    assert_eq!(gateway.metric("headgate_upstream_breaker_state", &[]).await, 2.0);
}
