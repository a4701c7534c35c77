//! What the user writes about a listener: address, protocols, TLS, limits, timeouts, trusted proxies.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::units::{Duration, Size};

/// An address that accepts connections.
///
/// ```yaml
/// listeners:
///   https:
///     address: 0.0.0.0:8443
///     protocols: [http1, http2]
///     tls:
///       certificates:
///         - { cert: /etc/headgate/example.pem, key: /etc/headgate/example.key }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `address:port`, as in `0.0.0.0:8080` or `[::]:8080`, or a Unix socket as in `unix:/run/headgate.sock`.
    pub address: String,
    /// File mode of a Unix socket, in octal. Default `0660`: the owner and its group.
    #[serde(default)]
    pub mode: Option<String>,
    /// What clients may speak. Default: `http1`, and with TLS `http1` and `http2`. `h2c` stands alone.
    #[serde(default)]
    pub protocols: Option<Vec<Protocol>>,
    /// Makes this a TLS listener.
    #[serde(default)]
    pub tls: Option<Tls>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Networks (CIDR) or addresses of proxies whose `X-Forwarded-For` is believed. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// Expect a PROXY protocol header (version 1 or 2) from every trusted proxy. Other peers may not send one.
    #[serde(default)]
    pub proxy_protocol: bool,
}

/// A protocol that a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/1.0.
    Http1,
    /// HTTP/2 over TLS, negotiated by ALPN.
    Http2,
    /// HTTP/2 without TLS, with prior knowledge. Only alone on its listener.
    H2c,
}

/// TLS of a listener: versions 1.2 and 1.3.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Chosen by the name the client asks for: exact, then wildcard, then the first of the list.
    pub certificates: Vec<Certificate>,
    /// Ask clients for a certificate (mTLS).
    #[serde(default)]
    pub client_certificates: Option<ClientCertificates>,
}

/// A certificate chain with its key. The files may change at any time: the next reload takes them up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file: the certificate, then its intermediates.
    pub cert: String,
    /// PEM file: the private key.
    pub key: String,
    /// Host names to use it for, `*.example.com` included. Default: the DNS names in the certificate.
    #[serde(default)]
    pub hosts: Option<Vec<String>>,
}

/// Client certificates (mTLS).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// PEM file of the authorities that client certificates must be issued by.
    pub ca: String,
    #[serde(default)]
    pub mode: ClientCertificateMode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificateMode {
    /// A client without a valid certificate gets no connection.
    #[default]
    Required,
    /// A client may come without one; one that is shown must be valid.
    Optional,
}

/// What a client may take up.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at one time. One more is closed at once.
    pub connections: u32,
    /// Connections at one time from one client address (IPv6: one /64 network). Default: no limit. Trusted proxies
    /// and Unix sockets are exempt. Counted in fixed memory, so that among very many addresses a client may be
    /// counted with another.
    pub connections_per_client: Option<u32>,
    /// Size of all request headers together.
    pub header_size: Size,
    /// Number of request headers.
    pub header_count: u32,
    /// Length of the request target, path and query.
    pub uri: Size,
    /// Requests on one HTTP/1 connection before it is closed. Default: no limit.
    pub requests_per_connection: Option<u32>,
    /// Requests in flight on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Bytes per second that a client must at least send of a body, and take of an answer, while it is waited for.
    /// Averaged over the `body` or `write` timeout; `0B` leaves only those timeouts.
    pub min_rate: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 65536,
            connections_per_client: None,
            header_size: Size::kib(64),
            header_count: 100,
            uri: Size::kib(8),
            requests_per_connection: None,
            http2_streams: 100,
            min_rate: Size(240),
        }
    }
}

/// How long a client is waited for.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For the whole TLS handshake.
    pub handshake: Duration,
    /// For the whole request header, from its first byte; for the first request from the start of the connection.
    pub header: Duration,
    /// Between two requests on a connection; for HTTP/2, without any request in flight.
    pub keep_alive: Duration,
    /// For more of a request body.
    pub body: Duration,
    /// For the client to take more of an answer.
    pub write: Duration,
    /// For any byte in either direction on an upgraded connection (WebSocket).
    pub upgraded: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            body: Duration::from_secs(60),
            write: Duration::from_secs(60),
            upgraded: Duration::from_secs(3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(yaml: &str) -> Result<BTreeMap<String, Listener>, String> {
        serde_yaml::from_str(yaml).map_err(|e| e.to_string())
    }

    #[test]
    fn an_address_is_enough() {
        let listener = &read("http: { address: 0.0.0.0:8080 }").unwrap()["http"];
        assert_eq!((listener.limits.connections, listener.limits.connections_per_client), (65536, None));
        assert_eq!(listener.timeouts.header, Duration::from_secs(10));
        assert!(listener.trusted_proxies.is_empty() && listener.tls.is_none());
    }

    #[test]
    fn everything_can_be_written() {
        read(
            r#"
            https:
              address: "[::]:8443"
              protocols: [http1, http2]
              tls:
                certificates:
                  - { cert: a.pem, key: a.key }
                  - { cert: b.pem, key: b.key, hosts: ["*.example.com", example.com] }
                client_certificates: { ca: clients.pem, mode: optional }
              limits:
                connections: 20000
                connections_per_client: 200
                header_size: 32KiB
                header_count: 80
                uri: 4KiB
                requests_per_connection: 1000
                http2_streams: 50
                min_rate: 0B
              timeouts: { handshake: 5s, header: 5s, keep_alive: 30s, body: 20s, write: 20s, upgraded: 10m }
              trusted_proxies: [10.0.0.0/8, 192.0.2.1]
              proxy_protocol: true
            uds: { address: "unix:/run/headgate.sock", mode: "0660" }
            h2c: { address: 127.0.0.1:8081, protocols: [h2c] }
            "#,
        )
        .unwrap();
    }

    #[test]
    fn unknown_words_are_refused() {
        for (yaml, word) in [
            ("http: { address: a, port: 1 }", "port"),
            ("http: { address: a, protocols: [http3] }", "http3"),
            ("http: { address: a, limits: { connection: 1 } }", "connection"),
            ("http: { address: a, tls: { certificates: [{ cert: a, key: b, host: c }] } }", "host"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(&format!("`{word}`")), "{error}");
        }
    }
}
