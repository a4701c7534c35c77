//! A new binary takes over the sockets of the old one, and nobody notices.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::h2::H2Client;
use crate::support::*;

const UPGRADABLE: &str = "
server:
  upgrade: { socket: '{{dir}}/run/upgrade.sock', pid_file: '{{dir}}/run/pid' }
  drain: { idle: 1s, timeout: 20s }
listeners:
  http: { address: '{{http}}' }
  h2c: { address: '{{h2c}}', protocols: [h2c] }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

const DRAIN: Duration = Duration::from_secs(40);

/// Callers that run until told to stop, each counting what it got and panicking at the first failure.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn new() -> Self {
        Load { stop: Arc::default(), served: Arc::default(), callers: Vec::new() }
    }

    /// Calls over connections that are kept; a connection that was closed while idle may be opened again once.
    fn kept(&mut self, address: SocketAddr) {
        let (stop, served) = (self.stop.clone(), self.served.clone());
        self.callers.push(tokio::spawn(async move {
            let mut client = Client::connect(address).await.expect("connecting");
            while !stop.load(Ordering::Relaxed) {
                let answer = match client.get("/").await {
                    Ok(answer) => answer,
                    // The race that HTTP/1.1 has by design: the close and the request pass each other.
                    Err(_) => {
                        client = Client::connect(address).await.expect("connecting again");
                        client.get("/").await.expect("an answer on a new connection")
                    }
                };
                assert_eq!(answer.status, 200);
                if !answer.keeps_alive() {
                    client = Client::connect(address).await.expect("connecting after a close");
                }
                served.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    fn new_connections(&mut self, address: SocketAddr) {
        let (stop, served) = (self.stop.clone(), self.served.clone());
        self.callers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut client = Client::connect(address).await.expect("connections are never refused");
                let answer = client.call(&Call::get("/").header("Connection", "close")).await.expect("an answer");
                assert_eq!(answer.status, 200);
                served.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    fn http2(&mut self, address: SocketAddr) {
        let (stop, served) = (self.stop.clone(), self.served.clone());
        self.callers.push(tokio::spawn(async move {
            let mut client = H2Client::connect(address).await.expect("connecting");
            while !stop.load(Ordering::Relaxed) {
                let answer = match client.get("http://test.example/").await {
                    Ok(answer) => answer,
                    // A stream that GOAWAY did not cover was not processed (RFC 9113, section 6.8).
                    Err(error) if error.is_go_away() || error.is_io() || client.has_ended() => {
                        client = H2Client::connect(address).await.expect("connecting again");
                        client.get("http://test.example/").await.expect("an answer on a new connection")
                    }
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(answer.status, 200);
                served.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no call may fail");
        }
        self.served.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_request() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    let mut load = Load::new();
    load.kept(gateway.address("http"));
    load.kept(gateway.address("http"));
    load.new_connections(gateway.address("http"));
    load.http2(gateway.address("h2c"));
    for round in 0..3 {
        gateway.upgrade();
        let status = gateway.predecessor_exit(DRAIN).await;
        assert!(status.is_some_and(|status| status.success()), "round {round}: the old process ended with {status:?}");
        assert!(gateway.is_running(), "round {round}");
    }
    let served = load.finish().await;
    assert!(served > 100, "only {served} calls were made");
}

#[tokio::test]
async fn a_slow_download_survives_an_upgrade() {
    let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let origin = Origin::scripted(vec![reply]).await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/download").bytes()).await.unwrap();
    client.head().await.unwrap();
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"a");
    gateway.upgrade();
    // New calls work at any time, whoever takes them.
    for _ in 0..50 {
        assert_eq!(gateway.get("/").await.status, 200);
        assert!(feed.send("1\r\nb\r\n"), "the download goes on");
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"b");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    feed.send("0\r\n\r\n");
    assert_eq!(client.chunk().await.unwrap(), None);
    assert!(gateway.predecessor_exit(DRAIN).await.is_some());
}

#[tokio::test]
async fn a_successor_that_cannot_start_leaves_the_old_one_serving() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    std::fs::write(gateway.config(), "nonsense: true\n").unwrap();
    gateway.upgrade();
    let status = gateway.exit(DRAIN).await.expect("the successor gives up");
    assert!(!status.success());
    assert!(
        gateway.predecessor_exit(Duration::from_secs(8)).await.is_none(),
        "the old process must not leave without an heir"
    );
    assert_eq!(gateway.get("/").await.status, 200);
}

#[tokio::test]
async fn a_stray_quit_signal_does_not_end_service() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    gateway.signal(libc::SIGQUIT);
    assert!(gateway.exit(Duration::from_secs(8)).await.is_none(), "nobody was there to take over");
    assert_eq!(gateway.get("/").await.status, 200);
}

#[tokio::test]
async fn the_folder_of_the_upgrade_socket_is_private() {
    use std::os::unix::fs::MetadataExt;
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    let folder = std::fs::metadata(gateway.directory().join("run")).expect("the gateway makes it");
    assert_eq!(folder.mode() & 0o077, 0, "another user could take our listening sockets");
}

#[tokio::test]
async fn an_upgrade_by_command_leaves_a_running_gateway() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    // Without pipes: the successor may inherit them, and would keep them open.
    let status = Command::new(env!("CARGO_BIN_EXE_headgate"))
        .args(["upgrade", "-c"])
        .arg(gateway.config())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starting the upgrade")
        .wait();
    assert!(status.is_ok_and(|status| status.success()));
    assert!(gateway.exit(DRAIN).await.is_some(), "the old process leaves");
    assert_eq!(gateway.get("/").await.status, 200);
    let status = gateway.admin_get("/status").await.json();
    let successor = status["pid"].as_i64().expect("the status tells the process");
    assert_ne!(successor, i64::from(gateway.process()));
}

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Waits until the successor serves: its own process answers on the admin listener.
async fn taken_over(gateway: &Gateway) {
    let pid = gateway.process();
    let serves = eventually(DRAIN, || async {
        let Ok(mut admin) = Client::connect(gateway.address("admin")).await else { return false };
        let call = Call::get("/status").host(&gateway.address("admin").to_string());
        admin.call(&call).await.is_ok_and(|answer| answer.status == 200 && answer.json()["pid"] == pid)
    })
    .await;
    assert!(serves, "the successor does not serve");
}

#[tokio::test]
async fn an_event_stream_goes_on_during_an_upgrade() {
    let (reply, feed) = Reply::fed(STREAM);
    let origin = Origin::scripted(vec![reply]).await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    let mut client = gateway.connect().await;
    client.send(Call::get("/events").bytes()).await.unwrap();
    client.head().await.unwrap();
    gateway.upgrade();
    taken_over(&gateway).await;
    for n in 0..30 {
        let event = format!("data: {n}\n\n");
        assert!(feed.send(format!("{:x}\r\n{event}\r\n", event.len())), "event {n}");
        assert_eq!(client.chunk().await.unwrap().unwrap(), event.into_bytes());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    feed.send("0\r\n\r\n");
    assert_eq!(client.chunk().await.unwrap(), None);
    let left = std::time::Instant::now();
    assert!(gateway.predecessor_exit(DRAIN).await.is_some_and(|status| status.success()));
    assert!(left.elapsed() < Duration::from_secs(10), "idle, yet it stayed for {:?}", left.elapsed());
}

#[tokio::test]
async fn a_websocket_lives_through_an_upgrade_and_is_closed_properly_at_its_end() {
    let yaml = UPGRADABLE.replace("timeout: 20s", "timeout: 6s");
    let server = super::websocket::echo_server().await;
    let mut gateway = Gateway::builder(&yaml).with("origin", server).start().await;
    let mut old = super::websocket::open(&gateway).await;
    gateway.upgrade();
    taken_over(&gateway).await;
    for n in 0..10 {
        let message = Message::text(format!("after {n}"));
        old.send(message.clone()).await.expect("it is still open");
        assert_eq!(old.next().await.unwrap().unwrap(), message);
    }
    // Both processes accept for a while; then only the successor does.
    assert!(gateway.predecessor_logs("listener http: draining").await);
    let mut new = super::websocket::open(&gateway).await;
    let last = tokio::time::timeout(DRAIN, old.next()).await.expect("an end of the drain");
    match last {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001, "going away"),
        other => panic!("a close frame was expected, not {other:?}"),
    }
    assert!(gateway.predecessor_exit(DRAIN).await.is_some());
    new.send(Message::text("new")).await.unwrap();
    assert_eq!(new.next().await.unwrap().unwrap(), Message::text("new"), "sockets of the successor are not concerned");
}

#[tokio::test]
async fn an_upgrade_may_add_and_remove_listeners() {
    let yaml = |listeners: &str| UPGRADABLE.replace("  h2c: { address: '{{h2c}}', protocols: [h2c] }\n", listeners);
    let origin = Origin::named("a").await;
    let builder = Gateway::builder(&yaml("  going: { address: '{{going}}' }\n  moving: { address: '{{moving}}' }\n"));
    let mut gateway = builder.origin(&origin).start().await;
    let status = async |gateway: &Gateway, name: &str| {
        let mut client = Client::connect(gateway.address(name)).await.ok()?;
        client.patience = Duration::from_secs(2);
        client.get("/").await.ok().map(|answer| answer.status)
    };
    assert_eq!(status(&gateway, "going").await, Some(200));
    gateway.write_config(&yaml("  moved: { address: '{{moving}}' }\n  coming: { address: '{{coming}}' }\n"));
    gateway.upgrade();
    taken_over(&gateway).await;
    assert!(gateway.predecessor_exit(DRAIN).await.is_some_and(|status| status.success()));
    for name in ["http", "moving", "coming"] {
        assert_eq!(status(&gateway, name).await, Some(200), "{name}");
    }
    let refused = Client::connect(gateway.address("going")).await.err().map(|error| error.kind());
    assert_eq!(
        refused,
        Some(std::io::ErrorKind::ConnectionRefused),
        "nobody may wait on an address that nobody serves"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_upgrade_may_follow_at_once() {
    let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let origin = Origin::scripted(vec![reply]).await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    let mut download = gateway.connect().await;
    download.send(Call::get("/download").bytes()).await.unwrap();
    download.head().await.unwrap();
    assert_eq!(download.chunk().await.unwrap().unwrap(), b"a");
    let mut load = Load::new();
    load.kept(gateway.address("http"));
    load.new_connections(gateway.address("http"));
    gateway.upgrade();
    taken_over(&gateway).await;
    // The first process still drains: it has the download.
    gateway.upgrade();
    taken_over(&gateway).await;
    assert!(gateway.predecessor_exit(DRAIN).await.is_some_and(|status| status.success()), "the second one leaves");
    assert!(feed.send("1\r\nb\r\n0\r\n\r\n"), "the first one has kept its download");
    assert_eq!(download.chunk().await.unwrap().unwrap(), b"b");
    assert_eq!(download.chunk().await.unwrap(), None);
    load.finish().await;
    assert_eq!(gateway.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_by_command_fails_no_request() {
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(UPGRADABLE).origin(&origin).start().await;
    let mut load = Load::new();
    load.kept(gateway.address("http"));
    load.new_connections(gateway.address("http"));
    load.http2(gateway.address("h2c"));
    let said = gateway.directory().join("said");
    let config = gateway.config().to_owned();
    let output = std::fs::File::create(&said).unwrap();
    let status = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
        command.args(["upgrade", "-c"]).arg(config).stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).status()
    });
    assert!(status.await.unwrap().is_ok_and(|status| status.success()));
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains(&gateway.process().to_string()), "it tells who leaves: {said:?}");
    assert!(gateway.exit(DRAIN).await.is_some_and(|status| status.success()), "the old process leaves");
    assert!(load.finish().await > 20);
}

#[tokio::test]
async fn an_upgrade_of_nothing_says_what_to_do() {
    let scratch = scratch::Scratch::new();
    let dir = scratch.path().display();
    let yaml = format!(
        "server: {{ upgrade: {{ socket: '{dir}/run/upgrade.sock', pid_file: '{dir}/run/pid' }} }}
listeners: {{ http: {{ address: '127.0.0.1:0' }} }}
services: {{}}
"
    );
    let file = scratch.write("headgate.yaml", yaml);
    for arguments in [&["upgrade", "-c"][..], &["run", "-u", "-c"]] {
        let output = gateway::headgate(&[arguments, &[file.to_str().unwrap()]].concat());
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains("run"), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_unix_listener_is_taken_over_too() {
    let yaml = UPGRADABLE.replace(
        "  h2c: { address: '{{h2c}}', protocols: [h2c] }\n",
        "  local: { address: 'unix:{{dir}}/local.sock' }\n",
    );
    let origin = Origin::named("a").await;
    let mut gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    let socket = gateway.directory().join("local.sock");
    let mut old = Client::unix(&socket).await.unwrap();
    assert_eq!(old.get("/").await.unwrap().status, 200);
    let calls = socket.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let caller = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            let mut client = Client::unix(&calls).await.expect("connections are never refused");
            assert_eq!(client.get("/").await.expect("an answer").status, 200);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    gateway.upgrade();
    taken_over(&gateway).await;
    assert!(gateway.predecessor_exit(DRAIN).await.is_some_and(|status| status.success()));
    let mut new = Client::unix(&socket).await.expect("the socket is still there");
    assert_eq!(new.get("/").await.unwrap().status, 200);
    stop.store(true, Ordering::Relaxed);
    caller.await.expect("no call may fail");
}

#[tokio::test]
async fn a_tls_listener_is_taken_over_and_http2_clients_are_told_to_go() {
    let authority = tls::Authority::new("ca");
    let yaml = UPGRADABLE.replace(
        "  h2c: { address: '{{h2c}}', protocols: [h2c] }\n",
        "  https: { address: '{{https}}', tls: { certificates: [{ cert: '{{dir}}/a.crt', key: '{{dir}}/a.key' }] } }\n",
    );
    let origin = Origin::named("a").await;
    let builder = Gateway::builder(&yaml).origin(&origin);
    authority.issue(&["a.example"]).write(builder.directory(), "a");
    let mut gateway = builder.start().await;
    let trusting = tls::TlsClient::trusting(&authority).alpn(&["h2"]);
    let mut old = H2Client::tls(gateway.address("https"), &trusting, "a.example").await.unwrap();
    assert_eq!(old.get("https://a.example/").await.unwrap().status, 200);
    gateway.upgrade();
    taken_over(&gateway).await;
    // Both processes accept for a moment; whichever takes it, it is served.
    let mut between = H2Client::tls(gateway.address("https"), &trusting, "a.example").await.unwrap();
    assert_eq!(between.get("https://a.example/").await.unwrap().status, 200);
    // What the client still had under way when the socket closed may turn the close into a reset.
    if let Err(error) = old.ended().await {
        assert!(error.is_io(), "GOAWAY and an end without complaint, not {error}");
    }
    assert!(gateway.predecessor_exit(DRAIN).await.is_some_and(|status| status.success()));
    let mut new = H2Client::tls(gateway.address("https"), &trusting, "a.example").await.unwrap();
    assert_eq!(new.get("https://a.example/").await.unwrap().status, 200);
}
