//! A target is healthy when it answers a request with an expected status, and with an expected text if one is set.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, Method, Uri, header};
use async_trait::async_trait;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;

use super::{Connectors, Probe, describe, within};
use crate::upstream::form;

/// How far into the answer the expected text is searched.
const SEARCHED_BODY: usize = 64 << 10;
/// Interim answers (1xx) read before the target is called broken.
const MAX_INTERIM: usize = 8;
const USER_AGENT: &str = concat!("headgate-probe/", env!("CARGO_PKG_VERSION"));

/// Statuses and ranges of statuses: `200`, `200-399`, `200-299,404`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for Statuses {
    /// `200-399`.
    fn default() -> Self {
        Statuses(vec![200..=399])
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| text.trim().parse::<u16>().ok().filter(|s| (200..=599).contains(s));
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = status(first)?..=status(last)?;
            (!range.is_empty()).then_some(range)
        };
        text.split(',').map(range).collect::<Option<_>>().map(Statuses).ok_or_else(|| {
            format!("`{text}` is not a list of statuses; write statuses between 200 and 599, such as 200, 200-399 or 200-299,404")
        })
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// What an [`HttpProbe`] sends and expects.
#[derive(Debug, Clone)]
pub struct HttpProbeSettings {
    pub method: Method,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// The `Host` header (`:authority` over HTTP/2).
    pub host: String,
    /// More headers, sent as they are.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub expect: Statuses,
    /// Text that the first 64 KiB of the answer must contain.
    pub body_contains: Option<String>,
    /// Bounds the whole run, from connecting to the last byte read.
    pub timeout: Duration,
}

impl Default for HttpProbeSettings {
    fn default() -> Self {
        HttpProbeSettings {
            method: Method::GET,
            path: "/".into(),
            host: "localhost".into(),
            headers: Vec::new(),
            expect: Statuses::default(),
            body_contains: None,
            timeout: Duration::from_secs(1),
        }
    }
}

/// Sends one request, over HTTP/1.1 or HTTP/2 as the peer says.
pub struct HttpProbe {
    request: RequestHeader,
    authority: String,
    expect: Statuses,
    body_contains: Option<Vec<u8>>,
    timeout: Duration,
    connectors: Arc<Connectors>,
}

impl HttpProbe {
    /// Refuses a path or host that no request can carry.
    pub fn new(settings: HttpProbeSettings, connectors: Arc<Connectors>) -> Result<Self, String> {
        let mut request = request(settings.method, &settings.path, &settings.host)?;
        for (name, value) in settings.headers {
            request.append_header(name, value).map_err(|e| e.to_string())?;
        }
        Ok(HttpProbe {
            request,
            authority: settings.host,
            expect: settings.expect,
            body_contains: settings.body_contains.filter(|text| !text.is_empty()).map(String::into_bytes),
            timeout: settings.timeout,
            connectors,
        })
    }

    async fn exchange(&self, peer: &HttpPeer) -> Result<(), String> {
        let mut session = self.connectors.http_session(peer).await?;
        send_header(&mut session, self.request.clone(), &self.authority, peer).await?;
        session.finish_request_body().await.map_err(|e| describe(&e))?;
        let status = read_status(&mut session).await?;
        if !self.expect.contains(status) {
            return Err(format!("status {status}, expected {}", self.expect));
        }
        match &self.body_contains {
            Some(text) => find_in_body(&mut session, text).await,
            // The body is of no interest, and the connection is not used again.
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Probe for HttpProbe {
    async fn run(&self, peer: &HttpPeer) -> Result<(), String> {
        within(self.timeout, self.exchange(peer)).await
    }
}

/// A request header in the form HTTP/1.1 wants it.
pub(super) fn request(method: Method, path: &str, host: &str) -> Result<RequestHeader, String> {
    if !path.starts_with('/') || path.parse::<Uri>().is_err() {
        return Err(format!("`{path}` is not a path; write it with a leading / and percent-encoded"));
    }
    if host.parse::<::http::uri::Authority>().map_or(true, |a| a.as_str().contains('@')) {
        return Err(format!("`{host}` is not a host name with an optional port"));
    }
    let mut request = RequestHeader::build(method, path.as_bytes(), None).map_err(|e| describe(&e))?;
    request.insert_header(header::HOST, host).map_err(|e| describe(&e))?;
    request.insert_header(header::USER_AGENT, USER_AGENT).map_err(|e| describe(&e))?;
    Ok(request)
}

/// Sends `request` in the form that the protocol of `session` wants.
async fn send_header(
    session: &mut HttpSession,
    mut request: RequestHeader,
    authority: &str,
    peer: &HttpPeer,
) -> Result<(), String> {
    if session.as_http2().is_some() {
        form::for_http2(&mut request, authority, peer.is_tls())?;
    } else {
        form::for_http1(&mut request, authority)?;
        request.insert_header(header::CONNECTION, "close").map_err(|e| describe(&e))?;
    }
    session.write_request_header(Box::new(request)).await.map_err(|e| describe(&e))
}

/// Reads up to the header of the final answer.
async fn read_status(session: &mut HttpSession) -> Result<u16, String> {
    for _ in 0..MAX_INTERIM {
        session.read_response_header().await.map_err(|e| describe(&e))?;
        match session.response_header().map(|h| h.status) {
            Some(status) if status.is_informational() && status != 101 => {}
            Some(status) => return Ok(status.as_u16()),
            None => break,
        }
    }
    Err("no final answer".into())
}

async fn find_in_body(session: &mut HttpSession, text: &[u8]) -> Result<(), String> {
    let mut body = Vec::new();
    while let Some(chunk) = session.read_response_body().await.map_err(|e| describe(&e))? {
        // The text may have begun in an earlier chunk.
        let searched = body.len().saturating_sub(text.len() - 1);
        body.extend_from_slice(&chunk[..chunk.len().min(SEARCHED_BODY - body.len())]);
        if memchr::memmem::find(&body[searched..], text).is_some() {
            return Ok(());
        }
        if body.len() == SEARCHED_BODY {
            break;
        }
    }
    Err(format!("the answer does not contain `{}`", String::from_utf8_lossy(text)))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection with `answer`, in pieces with a pause between them, and keeps it open.
    async fn origin(answer: &'static [&'static str]) -> HttpPeer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = socket.read(&mut request).await;
                    for piece in answer {
                        let _ = socket.write_all(piece.as_bytes()).await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    tokio::time::sleep(Duration::from_secs(5)).await;
                });
            }
        });
        peer
    }

    async fn run(settings: HttpProbeSettings, peer: &HttpPeer) -> Result<(), String> {
        HttpProbe::new(settings, Arc::new(Connectors::new())).unwrap().run(peer).await
    }

    fn settings() -> HttpProbeSettings {
        HttpProbeSettings { path: "/healthz".into(), timeout: Duration::from_secs(5), ..Default::default() }
    }

    #[test]
    fn statuses_are_written_as_a_list_of_ranges() {
        let statuses: Statuses = "200-299, 404".parse().unwrap();
        assert!(statuses.contains(204) && statuses.contains(404) && !statuses.contains(302));
        assert_eq!(statuses.to_string(), "200-299,404");
        for wrong in ["", "abc", "99", "600", "300-200", "200-", "200,,201"] {
            assert!(wrong.parse::<Statuses>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_no_request_can_carry_is_refused_at_once() {
        let connectors = Arc::new(Connectors::new());
        for (path, host) in [("healthz", "a"), ("/a b", "a"), ("/", "a b"), ("/", ""), ("/", "u@a"), ("/a\r\nb", "a")] {
            let settings = HttpProbeSettings { path: path.into(), host: host.into(), ..Default::default() };
            assert!(HttpProbe::new(settings, connectors.clone()).is_err(), "{path:?} {host:?}");
        }
    }

    #[tokio::test]
    async fn an_expected_status_is_healthy_and_another_is_named() {
        let peer = origin(&["HTTP/1.1 204 No Content\r\n\r\n"]).await;
        assert_eq!(run(settings(), &peer).await, Ok(()));
        let peer = origin(&["HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(run(settings(), &peer).await, Err("status 503, expected 200-399".into()));
        let peer = origin(&["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(run(settings(), &peer).await, Ok(()), "interim answers are read past");
    }

    #[tokio::test]
    async fn the_expected_text_may_lie_across_chunks() {
        let peer = origin(&["HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nstatus", ": re", "ady\n"]).await;
        let expecting = |text: &str| HttpProbeSettings { body_contains: Some(text.into()), ..settings() };
        assert_eq!(run(expecting("status: ready"), &peer).await, Ok(()));
        assert_eq!(run(expecting("degraded"), &peer).await, Err("the answer does not contain `degraded`".into()));
    }

    #[tokio::test]
    async fn a_dripping_target_is_bounded_by_the_total_deadline() {
        static DRIP: [&str; 200] = {
            let mut pieces = ["x: y\r\n"; 200];
            pieces[0] = "HTTP/1.1 200 OK\r\n";
            pieces
        };
        let peer = origin(&DRIP).await;
        let settings = HttpProbeSettings { timeout: Duration::from_millis(200), ..settings() };
        assert_eq!(run(settings, &peer).await, Err("timed out after 200ms".into()));
    }

    #[tokio::test]
    async fn garbage_and_an_early_close_are_unhealthy() {
        let peer = origin(&["SSH-2.0-OpenSSH_9.2\r\n\r\n"]).await;
        let error = run(settings(), &peer).await.unwrap_err();
        assert!(error.starts_with("not a valid HTTP/1.1 answer"), "{error}");

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 1024]).await;
            }
        });
        let error = run(settings(), &peer).await.unwrap_err();
        assert_eq!(error, "connection closed before the answer was complete");
    }

    #[tokio::test]
    async fn the_request_carries_the_configured_host_path_and_headers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        let seen = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = socket.read(&mut request).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let settings = HttpProbeSettings {
            method: Method::HEAD,
            path: "/healthz?deep=1".into(),
            host: "orders.internal:8443".into(),
            headers: vec![(HeaderName::from_static("x-probe"), HeaderValue::from_static("yes"))],
            ..settings()
        };
        assert_eq!(run(settings, &peer).await, Ok(()));
        let seen = seen.await.unwrap().to_lowercase();
        for part in ["head /healthz?deep=1 http/1.1\r\n", "host: orders.internal:8443\r\n", "x-probe: yes\r\n"] {
            assert!(seen.contains(part), "{part:?} is missing in {seen:?}");
        }
    }

    /// A TLS origin with a certificate of a private authority; gives the authority's certificate.
    async fn tls_origin() -> (HttpPeer, Vec<u8>) {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["origin.test".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = HttpPeer::new(listener.local_addr().unwrap(), true, "origin.test".into());
        peer.options.set_http_version(2, 1);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let uri = request.uri();
                        let status = match (uri.scheme_str(), uri.authority().map(|a| a.as_str()), uri.path()) {
                            (Some("https"), Some("localhost"), "/healthz") => 200,
                            _ => 400,
                        };
                        let answer = ::http::Response::builder().status(status).body(()).unwrap();
                        let _ = respond.send_response(answer, true);
                    }
                });
            }
        });
        (peer, authority.der().to_vec())
    }

    #[tokio::test]
    async fn a_tls_target_is_verified_against_its_own_authority_and_asked_over_http2() {
        let (mut peer, authority) = tls_origin().await;
        let error = run(settings(), &peer).await.unwrap_err();
        assert!(error.starts_with("TLS handshake failed"), "a private authority is not trusted by default: {error}");
        let authority = pingora::utils::tls::WrappedX509::new(authority, pingora::utils::tls::parse_x509);
        peer.options.ca = Some(Arc::from([authority]));
        assert_eq!(run(settings(), &peer).await, Ok(()));
    }
}
