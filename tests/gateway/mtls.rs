//! Client certificates: who calls is who the connection belongs to, and no header changes that.

use crate::support::gateway::{example, headgate};
use crate::support::h2::H2Client;
use crate::support::tls::{Authority, Pair, TlsClient, der};
use crate::support::*;

const SERVER: &str = "api.example.com";

/// A gateway whose listener asks for certificates of `authority`; `FILTERS` and `CONSUMERS` are put in.
fn yaml(filters: &str, consumers: &str) -> String {
    "
listeners:
  https:
    address: '{{http}}'
    protocols: [http1, http2]
    tls:
      certificates: [{ cert: '{{dir}}/secrets/server.crt', key: '{{dir}}/secrets/server.key' }]
      client_certificates: { ca: '{{dir}}/secrets/clients-ca.crt', mode: optional }
identity: { headers: { x-consumer-username: '${consumer}', x-client-subject: '${client.certificate.subject}', x-client-fingerprint: '${client.certificate.fingerprint}' } }
services: { s: { filters: FILTERS, routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
consumers: CONSUMERS
"
    .replace("FILTERS", filters)
    .replace("CONSUMERS", consumers)
}

async fn start(yaml: &str, authority: &Authority, origin: &Origin) -> Gateway {
    let builder = Gateway::builder(yaml).origin(origin);
    let secrets = builder.directory().join("secrets");
    authority.issue(&[SERVER]).write(&secrets, "server");
    std::fs::write(secrets.join("clients-ca.crt"), &authority.certificate).unwrap();
    builder.start().await
}

fn fingerprint(pair: &Pair) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &der(&pair.certificate));
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn connect(gateway: &Gateway, client: &TlsClient) -> Client {
    Client::tls(gateway.address("http"), client, SERVER).await.expect("a TLS connection")
}

fn get(target: &str) -> Call {
    Call::get(target).host(SERVER)
}

#[tokio::test]
async fn the_example_knows_consumers_by_their_certificates() {
    let (origin, authority) = (Origin::named("a").await, Authority::new("ca"));
    // Certificates that the test's own authority has issued.
    let yaml = example("mtls").replace("conf/examples/secrets", "{{dir}}/secrets");
    let gateway = start(&yaml, &authority, &origin).await;
    let own = authority.issue(&["mobile.example.com"]);
    let tls = TlsClient::with_certificate(&authority, &own);
    for connection in ["new", "resumed"] {
        let mut client = connect(&gateway, &tls).await;
        assert_eq!(client.call(&get("/orders")).await.unwrap().status, 200, "a {connection} session");
        let received = origin.last().await;
        assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"));
        let subject = received.headers.get("x-client-subject");
        assert!(subject.is_some_and(|subject| subject.contains("CN=mobile.example.com")), "{subject:?}");
        assert_eq!(received.headers.get("x-client-fingerprint"), Some(fingerprint(&own).as_str()));
    }

    let mut nobody = connect(&gateway, &TlsClient::trusting(&authority)).await;
    let refused = nobody.call(&get("/orders")).await.unwrap();
    assert_eq!((refused.status, refused.problem().as_deref()), (401, Some("unauthenticated")));
    assert!(refused.keeps_alive());
    assert_eq!(nobody.call(&get("/health")).await.unwrap().status, 200, "certificates are optional");

    let unknown = TlsClient::with_certificate(&authority, &authority.issue(&["other.example.com"]));
    let refused = connect(&gateway, &unknown).await.call(&get("/orders")).await.unwrap();
    assert_eq!((refused.status, refused.problem().as_deref()), (401, Some("invalid_credentials")));
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn the_identity_is_that_of_the_connection_whatever_the_headers_say() {
    let (origin, authority) = (Origin::named("a").await, Authority::new("ca"));
    let (one, two) = (authority.issue(&["one.example.com"]), authority.issue(&["two.example.com"]));
    let consumers = format!(
        "{{ one: {{ credentials: [{{ mtls: {{ fingerprint: '{}' }} }}] }}, two: {{ credentials: [{{ mtls: {{ san: TWO.example.com }} }}] }} }}",
        fingerprint(&one)
    );
    let gateway = start(&yaml("[{ mtls: {} }]", &consumers), &authority, &origin).await;
    let mut clients = Vec::new();
    for pair in [&one, &two] {
        clients.push(connect(&gateway, &TlsClient::with_certificate(&authority, pair)).await);
    }
    // Turn about, over connections that stay open.
    for _ in 0..3 {
        for (client, (own, pair)) in clients.iter_mut().zip([("one", &one), ("two", &two)]) {
            assert_eq!(client.call(&get("/")).await.unwrap().status, 200);
            let received = origin.last().await;
            assert_eq!(received.headers.get("x-consumer-username"), Some(own));
            assert_eq!(received.headers.get("x-client-fingerprint"), Some(fingerprint(pair).as_str()));
        }
    }
    let spoofing = [
        ("X-Consumer-Username", "one"),
        ("X-Client-Subject", "CN=one.example.com"),
        ("X-Client-Fingerprint", &fingerprint(&one)),
        ("X-Client-Cert", &one.certificate.replace('\n', " ")),
        ("Client-Cert", ":AAAA:"),
        ("X-SSL-Client-Verify", "SUCCESS"),
        ("X-Forwarded-Client-Cert", "Subject=\"CN=one.example.com\""),
    ];
    let spoofed = spoofing.iter().fold(get("/"), |call, (name, value)| call.header(name, value));
    assert_eq!(clients[1].call(&spoofed).await.unwrap().status, 200);
    let received = origin.last().await;
    assert_eq!(received.headers.get("x-consumer-username"), Some("two"));
    assert_eq!(received.headers.get("x-client-fingerprint"), Some(fingerprint(&two).as_str()));
    let mut nobody = connect(&gateway, &TlsClient::trusting(&authority)).await;
    assert_eq!(nobody.call(&spoofed).await.unwrap().status, 401);
}

#[tokio::test]
async fn every_stream_of_an_http2_connection_has_its_certificate() {
    let (origin, authority) = (Origin::named("a").await, Authority::new("ca"));
    let consumers = "{ one: { credentials: [{ mtls: { san: one.example.com } }] }, two: { credentials: [{ mtls: { san: two.example.com } }] } }";
    let gateway = start(&yaml("[{ mtls: {} }]", consumers), &authority, &origin).await;
    for (name, expected) in [("one.example.com", Some("one")), ("two.example.com", Some("two")), ("", None)] {
        let client = match name {
            "" => TlsClient::trusting(&authority),
            name => TlsClient::with_certificate(&authority, &authority.issue(&[name])),
        };
        let mut client =
            H2Client::tls(gateway.address("http"), &client.alpn(&["h2"]), SERVER).await.expect("an HTTP/2 connection");
        for _ in 0..3 {
            let answer = client.get(&format!("https://{SERVER}/")).await.unwrap();
            match expected {
                Some(consumer) => {
                    assert_eq!(answer.status, 200);
                    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some(consumer));
                }
                None => assert_eq!(answer.status, 401),
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_without_a_consumer_is_let_in_only_where_that_is_said() {
    let (origin, authority) = (Origin::named("a").await, Authority::new("ca"));
    let mut gateway = start(&yaml("[{ mtls: { accept_unknown: true } }]", "{}"), &authority, &origin).await;
    let tls = TlsClient::with_certificate(&authority, &authority.issue(&["other.example.com"]));
    let mut client = connect(&gateway, &tls).await;
    assert_eq!(client.call(&get("/")).await.unwrap().status, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), None);
    assert!(origin.last().await.headers.get("x-client-subject").is_some());
    let mut nobody = connect(&gateway, &TlsClient::trusting(&authority)).await;
    assert_eq!(nobody.call(&get("/")).await.unwrap().status, 401);
    // A reload counts on connections that are open.
    assert_eq!(gateway.reload(&yaml("[{ mtls: {} }]", "{}")).await.status, 200);
    assert_eq!(client.call(&get("/")).await.unwrap().status, 401);
    // With `anonymous`, a certificate that is no good does not make a guest.
    let guests = yaml("[{ mtls: {} }, { anonymous: {} }]", "{}");
    assert_eq!(gateway.reload(&guests).await.status, 200);
    assert_eq!(client.call(&get("/")).await.unwrap().status, 401);
    assert_eq!(nobody.call(&get("/")).await.unwrap().status, 200);
}

#[test]
fn certificates_that_nobody_asks_for_are_a_problem() {
    let scratch = scratch::Scratch::new();
    let yaml = "
listeners: { http: { address: '127.0.0.1:1' } }
filters: [{ mtls: {} }]
services: { s: { filters: [{ cors: { origins: ['*'] } }, { mtls: {} }], routes: { all: { match: { path: / }, filters: [{ mtls: {} }], backend: { respond: {} } } } } }
";
    let file = scratch.write("headgate.yaml", yaml);
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for place in ["filters[0].mtls", "services.s.filters[1].mtls", "services.s.routes.all.filters[0].mtls"] {
        assert!(said.contains(place) && said.contains("no listener asks"), "{place} is missing in: {said}");
    }
}
