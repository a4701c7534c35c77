//! Which target gets a request.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::*;

/// `{{a}}`, `{{b}}` and `{{c}}` are three origins that answer with their names.
struct Three {
    gateway: Gateway,
    _origins: [Origin; 3],
}

async fn three(upstream: &str) -> Three {
    let origins = [Origin::named("a").await, Origin::named("b").await, Origin::named("c").await];
    let yaml = format!(
        "
upstreams:
  origin: {upstream}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    );
    let builder = Gateway::builder(&yaml).with("a", origins[0].address).with("b", origins[1].address);
    let gateway = builder.with("c", origins[2].address).start().await;
    Three { gateway, _origins: origins }
}

const TARGETS: &str = "targets: [{ address: '{{a}}' }, { address: '{{b}}' }, { address: '{{c}}' }]";

/// How many of `n` calls each origin answered.
async fn spread(gateway: &Gateway, n: usize, call: impl Fn(usize) -> Call) -> BTreeMap<String, usize> {
    let mut client = gateway.connect().await;
    let mut counts = BTreeMap::new();
    for i in 0..n {
        let answer = client.call(&call(i)).await.unwrap();
        assert_eq!(answer.status, 200);
        *counts.entry(answer.text()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn round_robin_is_even_and_follows_weights() {
    let even = three(&format!("{{ {TARGETS} }}")).await;
    let counts = spread(&even.gateway, 300, |_| Call::get("/")).await;
    assert!(counts.len() == 3 && counts.values().all(|count| (95..=105).contains(count)), "{counts:?}");
    let weighted =
        three("{ targets: [{ address: '{{a}}', weight: 3 }, { address: '{{b}}' }, { address: '{{c}}', weight: 0 }] }")
            .await;
    let counts = spread(&weighted.gateway, 200, |_| Call::get("/")).await;
    assert_eq!(counts.get("c"), None, "weight 0 gets nothing: {counts:?}");
    assert!((145..=155).contains(&counts["a"]), "{counts:?}");
}

#[tokio::test]
async fn every_algorithm_uses_every_target() {
    for balance in ["random", "least_connections", "peak_ewma"] {
        let three = three(&format!("{{ {TARGETS}, balance: {balance} }}")).await;
        let counts = spread(&three.gateway, 200, |_| Call::get("/")).await;
        assert_eq!(counts.len(), 3, "{balance}: {counts:?}");
    }
}

#[tokio::test]
async fn consistent_hashing_keeps_a_key_with_its_target() {
    let three =
        three(&format!("{{ {TARGETS}, balance: {{ consistent_hash: {{ on: {{ header: x-user }} }} }} }}")).await;
    let mut used = BTreeMap::new();
    for user in 0..30 {
        let counts = spread(&three.gateway, 5, |_| Call::get("/").header("X-User", &format!("user-{user}"))).await;
        assert_eq!(counts.len(), 1, "user {user} was spread over {counts:?}");
        used.extend(counts);
    }
    assert_eq!(used.len(), 3, "30 users on {used:?}");
}

#[tokio::test]
async fn a_sticky_cookie_keeps_a_client_with_its_target() {
    let three = three(&format!("{{ {TARGETS}, sticky: {{ cookie: target }} }}")).await;
    let first = three.gateway.get("/").await;
    let cookie = first.header("set-cookie").expect("the first answer sets the cookie").to_owned();
    let pair = cookie.split(';').next().unwrap().to_owned();
    assert!(cookie.to_lowercase().contains("httponly"), "{cookie}");
    assert!(!cookie.contains("127.0.0.1"), "the cookie tells no address: {cookie}");
    let counts = spread(&three.gateway, 30, |_| Call::get("/").header("Cookie", &pair)).await;
    assert_eq!(counts, BTreeMap::from([(first.text(), 30)]));
    let forged = spread(&three.gateway, 30, |_| Call::get("/").header("Cookie", "target=forged")).await;
    assert!(forged.len() > 1, "a forged cookie chooses nothing: {forged:?}");
}

#[tokio::test]
async fn backups_serve_only_when_nobody_else_can() {
    let three = three("{ targets: [{ address: '{{nobody}}' }, { address: '{{b}}', backup: true }], health: { active: { tcp: {}, interval: 200ms, unhealthy_after: 1 } } }").await;
    assert!(eventually(PATIENCE, || async { three.gateway.get("/").await.status == 200 }).await);
    let counts = spread(&three.gateway, 20, |_| Call::get("/")).await;
    assert_eq!(counts, BTreeMap::from([("b".to_owned(), 20)]));
}

/// A gateway that splits between the origins `stable` and `canary`.
async fn split(split: &str) -> (Gateway, [Origin; 2]) {
    let [stable, canary] = [Origin::named("stable").await, Origin::named("canary").await];
    let yaml = format!(
        "
upstreams:
  stable: {{ targets: [{{ address: '{{{{stable}}}}' }}] }}
  canary: {{ targets: [{{ address: '{{{{canary}}}}' }}] }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ split: {split} }} }} }} }} }}
"
    );
    let builder = Gateway::builder(&yaml).with("stable", stable.address).with("canary", canary.address);
    (builder.start().await, [stable, canary])
}

#[tokio::test]
async fn a_split_follows_weights_and_its_cookie_sticks() {
    let (gateway, _origins) = split(
        "{
            targets: [{ upstream: stable, weight: 80 }, { upstream: canary, weight: 20 }],
            sticky: { cookie: variant },
            choose: [{ when: { header: { x-canary: always } }, upstream: canary }]
        }",
    )
    .await;
    let counts = spread(&gateway, 400, |_| Call::get("/")).await;
    assert!((30..=130).contains(&counts["canary"]), "{counts:?}");
    let forced = spread(&gateway, 20, |_| Call::get("/").header("X-Canary", "always")).await;
    assert_eq!(forced, BTreeMap::from([("canary".to_owned(), 20)]));
    let first = gateway.get("/").await;
    let cookie = first.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
    let kept = spread(&gateway, 40, |_| Call::get("/").header("Cookie", &cookie)).await;
    assert_eq!(kept, BTreeMap::from([(first.text(), 40)]));
}

#[tokio::test]
async fn mirrored_requests_are_sent_and_their_answers_ignored() {
    let origin = Origin::named("real").await;
    let shadow = Origin::start(|_| Reply::with(500, &[], "broken")).await;
    let yaml = "
upstreams:
  real: { targets: [{ address: '{{origin}}' }] }
  shadow: { targets: [{ address: '{{shadow}}' }] }
services:
  s:
    routes:
      all:
        match: { path_prefix: / }
        backend: { upstream: real }
        mirror: { upstream: shadow, share: 100% }
";
    let gateway = Gateway::builder(yaml).origin(&origin).with("shadow", shadow.address).start().await;
    for n in 0..5 {
        assert_eq!(gateway.get(&format!("/{n}")).await.text(), "real");
    }
    let mut mirrored: Vec<String> = shadow.received(5).await.into_iter().map(|request| request.target).collect();
    mirrored.sort();
    assert_eq!(mirrored, ["/0", "/1", "/2", "/3", "/4"]);
    let answered = [("outcome", "answered")];
    assert!(gateway.metric_becomes("headgate_mirrored_requests_total", &answered, |count| count == 5.0).await);
}

#[tokio::test]
async fn every_part_of_a_request_can_be_the_key_of_a_hash() {
    type Keyed = fn(usize) -> Call;
    let keys: [(&str, Keyed); 3] = [
        ("{ cookie: user }", |n| Call::get("/").header("Cookie", &format!("a=b; user=u{n}"))),
        ("{ query: user }", |n| Call::get(&format!("/?x=y&user=u{n}"))),
        ("path", |n| Call::get(&format!("/u{n}?x"))),
    ];
    for (on, call) in keys {
        let three = three(&format!("{{ {TARGETS}, balance: {{ consistent_hash: {{ on: {on} }} }} }}")).await;
        let mut used = BTreeMap::new();
        for user in 0..30 {
            let counts = spread(&three.gateway, 4, |_| call(user)).await;
            assert_eq!(counts.len(), 1, "{on}: user {user} was spread over {counts:?}");
            used.extend(counts);
        }
        assert_eq!(used.len(), 3, "{on}: 30 users on {used:?}");
    }
    let three = three(&format!("{{ {TARGETS}, balance: {{ consistent_hash: {{ on: address }} }} }}")).await;
    let counts = spread(&three.gateway, 30, |n| Call::get(&format!("/{n}"))).await;
    assert_eq!(counts.len(), 1, "one address, one target: {counts:?}");
}

#[tokio::test]
async fn a_bounded_hash_sends_what_is_too_much_to_the_next() {
    let busy: Vec<Origin> = [
        Origin::start(|_| Reply::ok("a").after(Duration::from_millis(300))).await,
        Origin::start(|_| Reply::ok("b").after(Duration::from_millis(300))).await,
        Origin::start(|_| Reply::ok("c").after(Duration::from_millis(300))).await,
    ]
    .into();
    let yaml = format!(
        "
upstreams:
  origin: {{ {TARGETS}, balance: {{ consistent_hash: {{ on: {{ header: x-user }}, bounded_load: 1.25 }} }} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    );
    let builder = Gateway::builder(&yaml).with("a", busy[0].address).with("b", busy[1].address);
    let gateway = builder.with("c", busy[2].address).start().await;
    let call = Call::get("/").header("X-User", "one");
    let answers = futures_util::future::join_all((0..30).map(|_| gateway.call(&call))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    let most = busy.iter().map(Origin::count).max().unwrap();
    assert!(most <= 16, "{most} of 30 requests in flight on one target");
}

#[tokio::test]
async fn a_target_at_its_limit_is_passed_over() {
    let held = Origin::start(|_| Reply::silence()).await;
    let free = Origin::named("free").await;
    let yaml = "
upstreams:
  origin: { targets: [{ address: '{{held}}' }, { address: '{{free}}' }], limits: { requests_per_target: 1 } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";
    let gateway = Gateway::builder(yaml).with("held", held.address).with("free", free.address).start().await;
    let mut holder = gateway.connect().await;
    // Round robin: the first or the second call stays with the silent target.
    holder.patience = Duration::from_secs(1);
    while holder.get("/").await.is_ok() {}
    for _ in 0..10 {
        // A place is given back just after the answer has left; whoever is quicker than that finds it taken.
        assert!(eventually(PATIENCE, || async { gateway.get("/").await.text() == "free" }).await);
    }
    assert_eq!(held.connections(), 1);
}

#[tokio::test]
async fn a_unix_socket_is_a_target_too() {
    let origin = Origin::named("local").await;
    let builder = Gateway::builder(
        "
upstreams: { origin: { targets: [{ address: 'unix:{{dir}}/origin.sock' }] } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
",
    );
    let listener = tokio::net::UnixListener::bind(builder.directory().join("origin.sock")).unwrap();
    let address = origin.address;
    tokio::spawn(async move {
        while let Ok((mut local, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut local, &mut tcp).await;
            });
        }
    });
    let gateway = builder.start().await;
    let mut client = gateway.connect().await;
    for _ in 0..10 {
        assert_eq!(client.call(&Call::post("/", "hello")).await.unwrap().text(), "local");
    }
    assert_eq!(origin.connections(), 1, "the connection is kept");
    assert!(origin.requests().iter().all(|request| request.body == b"hello"));
}

#[tokio::test]
async fn a_cookie_chooses_a_side_of_a_split() {
    let (gateway, _origins) = split(
        "{
            targets: [{ upstream: stable, weight: 100 }, { upstream: canary, weight: 0 }],
            choose: [{ when: { cookie: { beta: 'yes' }, header: { x-team: blue } }, upstream: canary }]
        }",
    )
    .await;
    for (cookie, team, side) in [
        ("a=b; beta=yes", "blue", "canary"),
        ("beta=yes", "red", "stable"),
        ("beta=yess", "blue", "stable"),
        ("xbeta=yes", "blue", "stable"),
    ] {
        let call = || Call::get("/").header("Cookie", cookie).header("X-Team", team);
        let counts = spread(&gateway, 10, |_| call()).await;
        assert_eq!(counts, BTreeMap::from([(side.to_owned(), 10)]), "{cookie} {team}");
    }
}

#[tokio::test]
async fn a_mirror_gets_whole_requests_and_holds_nobody_up() {
    let origin = Origin::named("real").await;
    let shadow = Origin::start(|request| match request.path() {
        "/silent" => Reply::silence(),
        _ => Reply::raw("").reset(),
    })
    .await;
    let yaml = "
upstreams:
  real: { targets: [{ address: '{{origin}}' }] }
  shadow: { targets: [{ address: '{{shadow}}' }] }
services:
  s:
    routes:
      all: { match: { path_prefix: / }, backend: { upstream: real }, mirror: { upstream: shadow } }
      never: { match: { path_prefix: /never }, backend: { upstream: real }, mirror: { upstream: shadow, share: 0% } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).with("shadow", shadow.address).start().await;
    for n in 0..20 {
        let path = if n % 2 == 0 { "/silent" } else { "/reset" };
        assert_eq!(gateway.call(&Call::post(path, format!("body {n}"))).await.text(), "real");
        assert_eq!(gateway.get("/never").await.text(), "real");
    }
    let mirrored = shadow.received(20).await;
    assert!(mirrored.iter().all(|request| request.target != "/never" && request.method == "POST"), "{mirrored:#?}");
    let mut bodies: Vec<_> = mirrored.into_iter().map(|request| String::from_utf8(request.body).unwrap()).collect();
    bodies.sort();
    let mut sent: Vec<_> = (0..20).map(|n| format!("body {n}")).collect();
    sent.sort();
    assert_eq!(bodies, sent);
    assert_eq!(origin.count(), 40, "the copies are sent to the shadow alone");
}
