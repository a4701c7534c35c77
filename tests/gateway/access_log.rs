//! Every request leaves one record, true and harmless to whoever reads it.

use crate::support::*;

const LOGGED: &str = "
access_log: { to: { file: '{{dir}}/access.log' }, format: json }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

async fn gateway(origin: &Origin) -> Gateway {
    Gateway::builder(LOGGED).origin(origin).start().await
}

#[tokio::test]
async fn a_record_tells_what_happened() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let answer = gateway.call(&Call::post("/orders?x=1", "hello").header("User-Agent", "tester")).await;
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!(record["method"], "POST", "{record}");
    assert_eq!(record["path"], "/orders", "{record}");
    assert_eq!(record["status"], 200, "{record}");
    assert_eq!(record["client"], "127.0.0.1", "{record}");
    assert_eq!(record["service"], "s", "{record}");
    assert_eq!(record["route"], "all", "{record}");
    assert_eq!(record["upstream"], "origin", "{record}");
    assert_eq!(record["request_bytes"], 5, "{record}");
    assert_eq!(record["response_bytes"], 1, "{record}");
    assert_eq!(record["request_id"].as_str(), answer.header("x-request-id"), "{record}");
}

#[tokio::test]
async fn failures_are_recorded_with_their_reason() {
    let origin = Origin::scripted(vec![Reply::raw("garbage\r\n\r\n").close()]).await;
    let gateway = gateway(&origin).await;
    gateway.get("/").await;
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!((&record["status"], &record["reason"]), (&502.into(), &"upstream_protocol".into()), "{record}");
}

#[tokio::test]
async fn clients_that_leave_are_recorded() {
    let origin = Origin::start(|_| Reply::silence()).await;
    let gateway = gateway(&origin).await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/").bytes()).await.unwrap();
    origin.received(1).await;
    drop(client);
    let record = gateway.access_log(1).await.remove(0);
    assert_eq!(record["reason"], "client_closed", "{record}");
}

#[tokio::test]
async fn hostile_values_cannot_forge_a_record() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    for value in ["\"}\\", "{\"status\":500}", "\u{1b}[31m", "\t\"", "é\u{2028}"] {
        gateway.call(&Call::get("/%22%7B%0B").header("User-Agent", value).header("Referer", value)).await;
        gateway.call(&Call::get("/\"{").header("User-Agent", value)).await;
    }
    // Each line has been parsed as one JSON document already.
    assert_eq!(gateway.access_log(10).await.len(), 10);
}

#[tokio::test]
async fn credentials_stay_out_of_every_log() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let canary = "canary-8c1f";
    let call = Call::get(&format!("/?api_key={canary}&token={canary}"))
        .header("Authorization", &format!("Bearer {canary}"))
        .header("Cookie", &format!("session={canary}"))
        .header("X-Api-Key", canary)
        .header("Proxy-Authorization", canary);
    gateway.call(&call).await;
    let records = format!("{:?}", gateway.access_log(1).await);
    assert!(!records.contains(canary), "{records}");
    assert!(!gateway.logged().contains(canary), "{}", gateway.logged());
    assert!(!gateway.admin_get("/metrics").await.text().contains(canary));
}

#[tokio::test]
async fn a_rotated_file_is_opened_again() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    gateway.get("/before").await;
    gateway.access_log(1).await;
    let path = gateway.directory().join("access.log");
    std::fs::rename(&path, gateway.directory().join("access.log.1")).unwrap();
    let again = eventually(PATIENCE, || async {
        gateway.get("/after").await;
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("/after"))
    })
    .await;
    assert!(again, "after a rotation records go to a new file of the old name");
}

/// Waits for `n` lines of the file as they are.
async fn lines(gateway: &Gateway, n: usize) -> Vec<String> {
    let path = gateway.directory().join("access.log");
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        eventually(PATIENCE, || async { read().lines().count() >= n }).await,
        "{n} lines were expected in:\n{}",
        read()
    );
    read().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_template_of_variables_makes_the_line() {
    let origin = Origin::named("a").await;
    let template = "format: { template: '${client.address} ${request.method} ${request.path} ${status} [${request.header.x-tenant}]' }";
    let gateway = Gateway::builder(&LOGGED.replace("format: json", template)).origin(&origin).start().await;
    gateway.call(&Call::post("/orders?x=1", "hello").header("X-Tenant", "blue")).await;
    gateway.call(&Call::get("/two").header("X-Tenant", "\t\"\\ \u{2028}\u{85}")).await;
    gateway.get("/three").await;
    // Records of different connections come in any order.
    let mut lines = lines(&gateway, 3).await;
    lines.sort();
    assert_eq!(lines.len(), 3, "no value makes a line of its own: {lines:?}");
    assert_eq!(lines[0], "127.0.0.1 GET /three 200 [-]");
    assert!(lines[1].starts_with("127.0.0.1 GET /two 200 [") && lines[1].is_ascii(), "{lines:?}");
    assert_eq!(lines[2], "127.0.0.1 POST /orders 200 [blue]");
}

#[tokio::test]
async fn the_combined_format_is_that_of_nginx_and_apache() {
    let origin = Origin::start(|_| Reply::with(201, &[], "twelve bytes")).await;
    let gateway = Gateway::builder(&LOGGED.replace("format: json", "format: combined")).origin(&origin).start().await;
    gateway.call(&Call::get("/a?b=c").header("Referer", "http://r.example/").header("User-Agent", "te\"ster")).await;
    let line = lines(&gateway, 1).await.remove(0);
    // 127.0.0.1 - - [10/Oct/2000:13:55:36 +0000] "GET /a?b=c HTTP/1.1" 201 12 "http://r.example/" "te\x22ster"
    let rest = line.strip_prefix("127.0.0.1 - - [").unwrap_or_else(|| panic!("{line}"));
    let (time, rest) = rest.split_once("] ").unwrap_or_else(|| panic!("{line}"));
    assert!(time.len() == 26 && time.as_bytes()[2] == b'/' && time.contains(" +0000"), "{line}");
    assert!(rest.starts_with("\"GET /a?b=c HTTP/1.1\" 201 12 \"http://r.example/\" \"te"), "{line}");
    assert_eq!(rest.matches('"').count() - rest.matches("\\\"").count(), 6, "a quote in a value is escaped: {line}");
}

#[tokio::test]
async fn configured_fields_stand_beside_the_usual_ones() {
    let origin = Origin::named("a").await;
    let fields = "format: json, fields: { tenant: '${request.header.x-tenant}' }";
    let gateway = Gateway::builder(&LOGGED.replace("format: json", fields)).origin(&origin).start().await;
    gateway.call(&Call::get("/").header("X-Tenant", "blue\"}")).await;
    assert_eq!(gateway.access_log(1).await[0]["tenant"], "blue\"}");
}

#[tokio::test]
async fn a_sample_leaves_out_the_ordinary_and_keeps_failures() {
    let origin = Origin::start(|request| match request.path() {
        "/bad" => Reply::with(500, &[], "bad"),
        _ => Reply::ok("good"),
    })
    .await;
    let gateway =
        Gateway::builder(&LOGGED.replace("format: json", "format: json, sample: 0%")).origin(&origin).start().await;
    for _ in 0..20 {
        gateway.get("/good").await;
    }
    gateway.get("/bad").await;
    let records = gateway.access_log(1).await;
    assert_eq!((records.len(), &records[0]["path"]), (1, &"/bad".into()), "{records:?}");
}

#[tokio::test]
async fn sigusr1_opens_the_file_again_and_no_record_is_lost() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    let path = gateway.directory().join("access.log");
    let mut client = gateway.connect().await;
    for round in 0..5 {
        for n in 0..20 {
            client.get(&format!("/{round}-{n}")).await.unwrap();
        }
        std::fs::rename(&path, gateway.directory().join(format!("old.{round}"))).unwrap();
        gateway.signal(libc::SIGUSR1);
        assert!(eventually(PATIENCE, || async { path.exists() }).await, "round {round}: the file is opened again");
    }
    client.get("/last").await.unwrap();
    let all = || {
        let files = (0..5).map(|round| gateway.directory().join(format!("old.{round}"))).chain([path.clone()]);
        files.map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect::<String>()
    };
    assert!(
        eventually(PATIENCE, || async { all().lines().count() == 101 }).await,
        "{} of 101 records",
        all().lines().count()
    );
    assert_eq!(gateway.metric("headgate_access_log_dropped_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_full_disk_fails_no_request_and_is_counted() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(&LOGGED.replace("{{dir}}/access.log", "/dev/full")).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    for _ in 0..200 {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }
    assert!(gateway.metric_becomes("headgate_access_log_dropped_total", &[], |dropped| dropped >= 1.0).await);
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_request() {
    let origin = Origin::named("a").await;
    let fifo = LOGGED.replace("format: json", "format: json, buffer: 64KiB");
    let builder = Gateway::builder(&fifo).origin(&origin);
    let path = builder.directory().join("access.log");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a plain system call with a terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // Open for both, so that it is open at once; it holds 64 KiB and then takes no more.
    let _silent = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let gateway = builder.start().await;
    let mut client = gateway.connect().await;
    let begun = std::time::Instant::now();
    for n in 0..1000 {
        assert_eq!(client.get(&format!("/{n}")).await.unwrap().status, 200);
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert!(gateway.metric_becomes("headgate_access_log_dropped_total", &[], |dropped| dropped >= 1.0).await);
}
