//! What one connection is doing, shared between its IO, which enforces deadlines, and the proxy, which knows the request.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::{HeaderMap, HeaderValue};
use pingora::protocols::Digest;

use super::client_address::client_address;
use super::state::{ListenerState, Settings};
use super::tls::TlsInfo;

/// What is waited for on a connection, and with it the deadline that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// HTTP/1: no byte of the next request has come.
    Waiting,
    /// HTTP/1: a request header has begun.
    Header,
    /// HTTP/1: the header is complete, the body is not.
    Body,
    /// HTTP/1: the request is complete; the client waits for us.
    Answering,
    /// WebSocket.
    Upgraded,
    Http2,
}

/// Why the connection itself ended a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Expired {
    /// The client did not send more of its body in time: answer 408.
    Body = 1,
    /// The client did not take the answer in time; nothing more can be sent.
    Write,
    /// The chunks of the body have more than one reading: answer 400.
    Malformed,
}

/// One accepted connection. The proxy finds it with [`ConnectionState::of`]; streams of one HTTP/2 connection share it.
pub struct ConnectionState {
    /// The other end: the socket's peer, or who the PROXY header names. Loopback for a Unix socket.
    pub peer: IpAddr,
    pub tls: Option<TlsInfo>,
    /// The peer as a header value, made once: the requests of a connection share it.
    peer_value: OnceLock<HeaderValue>,
    listener: Arc<ListenerState>,
    settings: Arc<Settings>,
    accepted: Instant,
    phase: AtomicU8,
    expired: AtomicU8,
    closing: AtomicBool,
    internal: bool,
}

impl ConnectionState {
    /// The connection of a request that the gateway makes to itself for a client's: it comes from that client, by the same
    /// listener, with the certificate that the client has shown.
    pub fn internal(&self, client: IpAddr) -> ConnectionState {
        ConnectionState {
            peer: client,
            tls: self.tls.clone(),
            peer_value: OnceLock::new(),
            listener: self.listener.clone(),
            settings: self.settings.clone(),
            accepted: Instant::now(),
            phase: AtomicU8::new(Phase::Answering as u8),
            expired: AtomicU8::new(0),
            closing: AtomicBool::new(false),
            internal: true,
        }
    }

    /// Whether the gateway is its own client here.
    pub fn is_internal(&self) -> bool {
        self.internal
    }

    pub(super) fn new(
        peer: IpAddr,
        tls: Option<TlsInfo>,
        listener: Arc<ListenerState>,
        settings: Arc<Settings>,
        accepted: Instant,
        phase: Phase,
    ) -> Self {
        ConnectionState {
            peer,
            tls,
            peer_value: OnceLock::new(),
            listener,
            settings,
            accepted,
            phase: AtomicU8::new(phase as u8),
            expired: AtomicU8::new(0),
            closing: AtomicBool::new(false),
            internal: false,
        }
    }

    /// The connection that a session's [`Digest`] belongs to; `None` if it did not come through a listener of ours.
    pub fn of(digest: Option<&Digest>) -> Option<&Arc<ConnectionState>> {
        // The digest of a CONNECT proxy is the one place in Pingora's digests that carries a value of ours, for HTTP/1
        // and HTTP/2 alike. Downstream connections have no other use for it.
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    pub fn listener(&self) -> &Arc<ListenerState> {
        &self.listener
    }

    /// The listener's settings when the connection was accepted.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn draining(&self) -> bool {
        self.listener.draining()
    }

    /// The client's address, walking through `X-Forwarded-For` if the peer is a trusted proxy.
    pub fn client_address(&self, headers: &HeaderMap) -> IpAddr {
        let forwarded = headers.get_all("x-forwarded-for").iter();
        // A line that is not text holds no address; it ends the walk like any other garbage.
        client_address(self.peer, forwarded.map(|v| v.to_str().unwrap_or("?")), &self.settings.trusted_proxies)
    }

    /// The peer's address, for `X-Forwarded-For`.
    pub fn peer_value(&self) -> &HeaderValue {
        self.peer_value
            .get_or_init(|| HeaderValue::try_from(self.peer.to_string()).unwrap_or(HeaderValue::from_static("unknown")))
    }

    /// The connection is about to become a WebSocket: call it before the head of the 101 answer is written.
    pub fn upgraded(&self) {
        self.advance(Phase::Upgraded);
    }

    /// What the connection ended this request for, if it did.
    pub fn expired(&self) -> Option<Expired> {
        match self.expired.load(Ordering::Relaxed) {
            1 => Some(Expired::Body),
            2 => Some(Expired::Write),
            3 => Some(Expired::Malformed),
            _ => None,
        }
    }

    fn advance(&self, phase: Phase) {
        if self.phase() != Phase::Http2 {
            self.phase.store(phase as u8, Ordering::Relaxed);
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Waiting,
            1 => Phase::Header,
            2 => Phase::Body,
            3 => Phase::Answering,
            4 => Phase::Upgraded,
            _ => Phase::Http2,
        }
    }

    pub(super) fn header_begun(&self) {
        self.advance(Phase::Header);
    }

    /// A request header is complete. Without a body to come, the client is not waited for any more.
    pub(super) fn header_received(&self, body_expected: bool) {
        self.advance(if body_expected { Phase::Body } else { Phase::Answering });
    }

    /// The request is complete.
    pub(super) fn body_received(&self) {
        self.advance(Phase::Answering);
    }

    /// A new request is waited for.
    pub(super) fn next_request(&self) {
        self.expired.store(0, Ordering::Relaxed);
        self.advance(Phase::Waiting);
    }

    pub(super) fn accepted(&self) -> Instant {
        self.accepted
    }

    pub(super) fn expire(&self, what: Expired) {
        self.expired.store(what as u8, Ordering::Relaxed);
    }

    /// Asks the IO to end a WebSocket with a close frame.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(super) fn closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}
