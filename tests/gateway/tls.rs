//! TLS on both sides: which certificate is shown, who may come in, whom we believe.

use crate::support::h2::{H2Client, H2Origin, H2Reply};
use crate::support::tls::{Authority, TlsClient, der, presented};
use crate::support::*;

const HTTPS: &str = "
listeners:
  http: { address: '{{http}}' }
  https:
    address: '{{https}}'
    protocols: [http1, http2]
    tls:
      certificates:
        - { cert: '{{dir}}/default.crt', key: '{{dir}}/default.key' }
        - { cert: '{{dir}}/exact.crt', key: '{{dir}}/exact.key' }
        - { cert: '{{dir}}/wild.crt', key: '{{dir}}/wild.key' }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { respond: { status: 200, body: hello } } } } } }
";

struct Site {
    authority: Authority,
    gateway: Gateway,
    default: tls::Pair,
    exact: tls::Pair,
    wild: tls::Pair,
}

async fn site() -> Site {
    let authority = Authority::new("ca");
    let builder = Gateway::builder(HTTPS);
    let default = authority.issue(&["default.example"]);
    let exact = authority.issue(&["www.shop.example"]);
    let wild = authority.issue(&["*.shop.example"]);
    for (name, pair) in [("default", &default), ("exact", &exact), ("wild", &wild)] {
        pair.write(builder.directory(), name);
    }
    Site { gateway: builder.start().await, authority, default, exact, wild }
}

#[tokio::test]
async fn certificates_are_chosen_by_name_exact_then_wildcard() {
    let site = site().await;
    let client = TlsClient::trusting(&site.authority);
    for (name, pair) in [
        ("www.shop.example", &site.exact),
        ("WWW.shop.example", &site.exact),
        ("api.shop.example", &site.wild),
        ("default.example", &site.default),
    ] {
        let stream =
            client.connect(site.gateway.address("https"), name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(presented(&stream), der(&pair.certificate).to_vec(), "{name}");
    }
    let unknown = client.connect(site.gateway.address("https"), "unknown.example").await;
    assert!(unknown.is_err(), "the default certificate is shown, which a strict client does not take");
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_http_is_chosen_by_alpn() {
    let site = site().await;
    let address = site.gateway.address("https");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = TlsClient::with_versions(&site.authority, &[version]);
        let mut client = Client::tls(address, &client, "www.shop.example").await.unwrap();
        let answer = client.call(&Call::get("/").host("www.shop.example")).await.unwrap();
        assert_eq!(answer.text(), "hello");
    }
    let client = TlsClient::trusting(&site.authority).alpn(&["h2", "http/1.1"]);
    let mut client = H2Client::tls(address, &client, "www.shop.example").await.unwrap();
    assert_eq!(client.get("https://www.shop.example/").await.unwrap().text(), "hello");
}

#[tokio::test]
async fn a_host_that_the_certificate_does_not_cover_is_misdirected() {
    let site = site().await;
    let client = TlsClient::trusting(&site.authority);
    let mut client = Client::tls(site.gateway.address("https"), &client, "www.shop.example").await.unwrap();
    let answer = client.call(&Call::get("/").host("default.example")).await.unwrap();
    assert_eq!((answer.status, answer.problem().as_deref()), (421, Some("misdirected")));
    assert_eq!(client.call(&Call::get("/").host("www.shop.example")).await.unwrap().status, 200);
}

#[tokio::test]
async fn replaced_certificate_files_are_taken_up_without_restart() {
    let site = site().await;
    let client = TlsClient::trusting(&site.authority);
    let mut open = Client::tls(site.gateway.address("https"), &client, "www.shop.example").await.unwrap();
    let renewed = site.authority.issue(&["www.shop.example"]);
    renewed.write(site.gateway.directory(), "exact");
    let shown = eventually(PATIENCE, || async {
        let stream = client
            .connect(site.gateway.address("https"), "www.shop.example")
            .await
            .expect("at every moment one of both");
        presented(&stream) == der(&renewed.certificate).to_vec()
    })
    .await;
    assert!(shown);
    assert_eq!(
        open.call(&Call::get("/").host("www.shop.example")).await.unwrap().status,
        200,
        "open connections live on"
    );
}

#[tokio::test]
async fn a_broken_certificate_file_keeps_the_old_certificate() {
    let site = site().await;
    let client = TlsClient::trusting(&site.authority);
    std::fs::write(site.gateway.directory().join("exact.crt"), "no certificate").unwrap();
    assert!(site.gateway.admin(&Call::new("POST", "/reload")).await.status >= 400);
    let stream = client.connect(site.gateway.address("https"), "www.shop.example").await.unwrap();
    assert_eq!(presented(&stream), der(&site.exact.certificate).to_vec());
}

async fn with_client_certificates(mode: &str) -> (Authority, Gateway) {
    let authority = Authority::new("ca");
    let yaml = format!(
        "
listeners:
  https:
    address: '{{{{https}}}}'
    tls:
      certificates: [{{ cert: '{{{{dir}}}}/a.crt', key: '{{{{dir}}}}/a.key' }}]
      client_certificates: {{ ca: '{{{{dir}}}}/ca.crt', mode: {mode} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ respond: {{ status: 200, body: hello }} }} }} }} }} }}
"
    );
    let builder = Gateway::builder(&yaml);
    authority.issue(&["a.example"]).write(builder.directory(), "a");
    std::fs::write(builder.directory().join("ca.crt"), &authority.certificate).unwrap();
    (authority, builder.start().await)
}

/// Whether a call over TLS gets through. With TLS 1.3 a refused certificate shows only after the handshake.
async fn gets_in(gateway: &Gateway, client: &TlsClient) -> bool {
    match Client::tls(gateway.address("https"), client, "a.example").await {
        Ok(mut client) => client.call(&Call::get("/").host("a.example")).await.is_ok_and(|answer| answer.status == 200),
        Err(_) => false,
    }
}

#[tokio::test]
async fn required_client_certificates_are_required() {
    let (authority, gateway) = with_client_certificates("required").await;
    let foreign = Authority::new("foreign").issue(&["client.example"]);
    assert!(gets_in(&gateway, &TlsClient::with_certificate(&authority, &authority.issue(&["client.example"]))).await);
    assert!(!gets_in(&gateway, &TlsClient::trusting(&authority)).await, "without a certificate");
    assert!(
        !gets_in(&gateway, &TlsClient::with_certificate(&authority, &foreign)).await,
        "with a certificate of others"
    );
    let expired = authority.issue_expired("client.example");
    assert!(
        !gets_in(&gateway, &TlsClient::with_certificate(&authority, &expired)).await,
        "with an expired certificate"
    );
}

#[tokio::test]
async fn optional_client_certificates_are_optional_but_never_false() {
    let (authority, gateway) = with_client_certificates("optional").await;
    let foreign = Authority::new("foreign").issue(&["client.example"]);
    assert!(gets_in(&gateway, &TlsClient::with_certificate(&authority, &authority.issue(&["client.example"]))).await);
    assert!(gets_in(&gateway, &TlsClient::trusting(&authority)).await);
    assert!(!gets_in(&gateway, &TlsClient::with_certificate(&authority, &foreign)).await);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_gets_no_service() {
    let site = site().await;
    let mut client = Client::connect(site.gateway.address("https")).await.unwrap();
    client.send(Call::get("/").bytes()).await.unwrap();
    assert!(!client.answer().await.is_ok_and(|answer| answer.status == 200));
}

fn to_tls_origin(tls: &str) -> String {
    format!(
        "
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}], tls: {tls} }} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    )
}

/// A gateway before a TLS origin with this certificate, with `{{dir}}/ca.crt` to trust and `{{dir}}/client.*` to show.
async fn before_tls_origin(
    pair: &tls::Pair,
    authority: &Authority,
    clients: Option<&Authority>,
    tls: &str,
) -> (Origin, Gateway) {
    let origin = Origin::tls(pair.acceptor(&[], clients), |_| Reply::ok("secret")).await;
    let builder = Gateway::builder(&to_tls_origin(tls)).origin(&origin);
    std::fs::write(builder.directory().join("ca.crt"), &authority.certificate).unwrap();
    authority.issue(&["gateway.example"]).write(builder.directory(), "client");
    let gateway = builder.start().await;
    (origin, gateway)
}

#[tokio::test]
async fn origins_are_verified_by_default() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let trusted = "{ ca: '{{dir}}/ca.crt', sni: origin.example }";
    for (name, pair, tls, passes) in [
        ("own authority", ours.issue(&["origin.example"]), trusted, true),
        ("unknown authority", theirs.issue(&["origin.example"]), trusted, false),
        ("system authorities only", ours.issue(&["origin.example"]), "{ sni: origin.example }", false),
        ("other name", ours.issue(&["other.example"]), trusted, false),
        ("expired", ours.issue_expired("origin.example"), trusted, false),
        ("not verified on purpose", theirs.issue(&["other.example"]), "{ sni: origin.example, verify: false }", true),
    ] {
        let (origin, gateway) = before_tls_origin(&pair, &ours, None, tls).await;
        let answer = gateway.get("/").await;
        if passes {
            assert_eq!(answer.text(), "secret", "{name}");
            assert_eq!(origin.last().await.tls.unwrap().server_name.as_deref(), Some("origin.example"), "{name}");
        } else {
            assert_eq!((answer.status, answer.problem().as_deref()), (502, Some("upstream_tls_failed")), "{name}");
            assert!(origin.requests().is_empty(), "{name}");
        }
    }
}

#[tokio::test]
async fn origins_that_demand_a_certificate_get_ours() {
    let authority = Authority::new("ca");
    let tls =
        "{ ca: '{{dir}}/ca.crt', sni: origin.example, certificate: '{{dir}}/client.crt', key: '{{dir}}/client.key' }";
    let pair = authority.issue(&["origin.example"]);
    let (origin, gateway) = before_tls_origin(&pair, &authority, Some(&authority), tls).await;
    assert_eq!(gateway.get("/").await.text(), "secret");
    assert!(origin.last().await.tls.unwrap().client_certificate);
}

#[tokio::test]
async fn http2_is_spoken_to_origins_that_offer_it() {
    let authority = Authority::new("ca");
    let acceptor = authority.issue(&["origin.example"]).acceptor(&["h2", "http/1.1"], None);
    let origin = H2Origin::tls(acceptor, |_| H2Reply::grpc(b"two", "0")).await;
    let builder = Gateway::builder(&to_tls_origin("{ ca: '{{dir}}/ca.crt', sni: origin.example }"));
    std::fs::write(builder.directory().join("ca.crt"), &authority.certificate).unwrap();
    let gateway = builder.with("origin", origin.address).start().await;
    assert_eq!(gateway.get("/").await.text(), "two");
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn connections_of_one_upstream_are_never_used_for_another_with_other_trust() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let origin = Origin::tls(ours.issue(&["origin.example"]).acceptor(&[], None), |_| Reply::ok("secret")).await;
    let yaml = "
upstreams:
  trusting: { targets: [{ address: '{{origin}}' }], tls: { ca: '{{dir}}/ours.crt', sni: origin.example } }
  distrusting: { targets: [{ address: '{{origin}}' }], tls: { ca: '{{dir}}/theirs.crt', sni: origin.example } }
services:
  s:
    routes:
      trusting: { match: { path: /trusting }, backend: { upstream: trusting } }
      distrusting: { match: { path: /distrusting }, backend: { upstream: distrusting } }
";
    let builder = Gateway::builder(yaml).origin(&origin);
    std::fs::write(builder.directory().join("ours.crt"), &ours.certificate).unwrap();
    std::fs::write(builder.directory().join("theirs.crt"), &theirs.certificate).unwrap();
    let gateway = builder.start().await;
    assert_eq!(gateway.get("/trusting").await.status, 200);
    assert_eq!(
        gateway.get("/distrusting").await.status,
        502,
        "the open connection was not verified against this authority"
    );
    assert_eq!(gateway.get("/trusting").await.status, 200);
}
