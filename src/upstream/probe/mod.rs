//! One active health check of one target: what is sent, and what counts as healthy.
//!
//! When to probe, and how many results flip a target, is decided by the caller. The checks of Pingora's
//! load-balancing crate are not used for the exchange itself: they put every target through one peer template, which
//! loses the client certificate and the per-target TLS settings; they bound each read but not the whole run, so that
//! a target dripping one byte per second is healthy and slow for ever; and they do not show the body.

mod grpc;
mod http;
mod tcp;

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::TransportConnector;
use pingora::connectors::http::Connector;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};

pub use self::grpc::{GrpcProbe, GrpcProbeSettings};
pub use self::http::{HttpProbe, HttpProbeSettings, Statuses};
pub use self::tcp::TcpProbe;
use crate::config::units;

/// A check that can be run against a target.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Checks `peer` once, over a connection of its own, within the deadline the probe was made with.
    ///
    /// The error is one line for the operator, such as `connect refused` or `status 503, expected 200-399`.
    async fn run(&self, peer: &HttpPeer) -> Result<(), String>;
}

/// What probes connect with; made once, because each one loads the system's certificates.
///
/// Separate from the connectors of requests: a probe must see whether a *new* connection works, and must never be
/// handed one from the pool of requests.
pub struct Connectors {
    transport: TransportConnector,
    http: Connector,
}

impl Connectors {
    pub fn new() -> Self {
        Connectors { transport: TransportConnector::new(None), http: Connector::new(None) }
    }

    /// Opens a new connection to `peer` and one exchange on it.
    async fn http_session(&self, peer: &HttpPeer) -> Result<HttpSession, String> {
        let mut peer = peer.clone();
        // With more than one stream Pingora would keep the HTTP/2 connection for the next exchange.
        peer.options.max_h2_streams = 1;
        let (session, _reused) = self.http.get_http_session(&peer).await.map_err(|e| describe(&e))?;
        Ok(session)
    }
}

impl Default for Connectors {
    fn default() -> Self {
        Self::new()
    }
}

/// Bounds a whole run. Dropping the unfinished work closes its connection.
async fn within(limit: Duration, work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("timed out after {}", units::Duration(limit))),
    }
}

/// Says in an operator's words what a Pingora error means.
fn describe(error: &Error) -> String {
    let what = match error.etype {
        ErrorType::ConnectRefused => return "connect refused".into(),
        ErrorType::ConnectNoRoute => return "no route to host".into(),
        ErrorType::ConnectTimedout => return "connect timed out".into(),
        ErrorType::TLSHandshakeTimedout => return "TLS handshake timed out".into(),
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => return "timed out".into(),
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => "connect failed",
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => "TLS handshake failed",
        ErrorType::ConnectionClosed => return "connection closed before the answer was complete".into(),
        ErrorType::ReadError => "reading the answer failed",
        ErrorType::WriteError => "sending the request failed",
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error => "not a valid HTTP/1.1 answer",
        ErrorType::H2Error | ErrorType::InvalidH2 => "HTTP/2 failed",
        _ => error.etype.as_str(),
    };
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(|c| c.source()) {
        cause = Some(deeper);
    }
    match (cause, error.context.as_ref()) {
        (Some(cause), _) => format!("{what}: {cause}"),
        (None, Some(context)) => format!("{what}: {}", context.as_str()),
        (None, None) => what.into(),
    }
}
