//! One listener as it runs: settings that a reload replaces, connections counted, and the course of a drain.

use std::fs::Permissions;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{OnceLock, atomic::AtomicUsize};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use pingora::apps::HttpServerOptions;
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::protocols::TcpKeepalive;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;
use pingora_limits::inflight::{Guard, Inflight};
use tokio::sync::{Notify, watch};

use super::client_address::{is_trusted, parse_networks};
use super::tls::{CertificateInfo, Tls};
use crate::config::Problems;
use crate::config::listener as config;
use crate::config::listener::Protocol;
use crate::config::server;

/// A listener as it runs. It lives as long as the process; [`ListenerState::apply`] gives it new settings.
pub struct ListenerState {
    name: Arc<str>,
    settings: ArcSwap<Settings>,
    pub counters: Counters,
    /// Connections per client address, in fixed memory.
    per_client: Inflight,
    drain: Drain,
}

/// The compiled form of a [`config::Listener`].
pub struct Settings {
    address: Address,
    mode: u32,
    protocols: Vec<Protocol>,
    pub limits: config::Limits,
    pub trusted_proxies: Vec<IpNet>,
    pub(super) proxy_protocol: bool,
    pub(super) timeouts: Timeouts,
    pub(super) tls: Option<Arc<Tls>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Tcp(String),
    Unix(String),
}

#[derive(Debug, Clone)]
pub(super) struct Timeouts {
    pub handshake: Duration,
    pub header: Duration,
    pub keep_alive: Duration,
    pub body: Duration,
    pub write: Duration,
    pub upgraded: Duration,
    /// A connection that became idle while draining stays open this long.
    pub drain_idle: Duration,
    pub drain_timeout: Duration,
    /// Bytes per second; 0 is no minimum.
    pub min_rate: u64,
}

/// Why a connection was refused or ended before its client ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    ConnectionLimit,
    ClientLimit,
    ProxyHeader,
    HandshakeFailed,
    HandshakeTimeout,
    HeaderTimeout,
    HeaderTooLarge,
    KeepAliveTimeout,
    BodyTimeout,
    WriteTimeout,
    UpgradedTimeout,
    Flood,
    Drained,
}

impl Ending {
    pub const ALL: [Ending; 13] = [
        Ending::ConnectionLimit,
        Ending::ClientLimit,
        Ending::ProxyHeader,
        Ending::HandshakeFailed,
        Ending::HandshakeTimeout,
        Ending::HeaderTimeout,
        Ending::HeaderTooLarge,
        Ending::KeepAliveTimeout,
        Ending::BodyTimeout,
        Ending::WriteTimeout,
        Ending::UpgradedTimeout,
        Ending::Flood,
        Ending::Drained,
    ];

    /// The word used as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Ending::ConnectionLimit => "connection_limit",
            Ending::ClientLimit => "client_limit",
            Ending::ProxyHeader => "proxy_header",
            Ending::HandshakeFailed => "handshake_failed",
            Ending::HandshakeTimeout => "handshake_timeout",
            Ending::HeaderTimeout => "header_timeout",
            Ending::HeaderTooLarge => "header_too_large",
            Ending::KeepAliveTimeout => "keep_alive_timeout",
            Ending::BodyTimeout => "body_timeout",
            Ending::WriteTimeout => "write_timeout",
            Ending::UpgradedTimeout => "upgraded_timeout",
            Ending::Flood => "flood",
            Ending::Drained => "drained",
        }
    }
}

/// Plain counters that metrics read.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    active: AtomicUsize,
    endings: [AtomicU64; Ending::ALL.len()],
}

impl Counters {
    /// Connections accepted since the start, refused ones included.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
    /// Connections open now.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }
    /// Connections that the gateway refused or ended, by reason.
    pub fn ended(&self, ending: Ending) -> u64 {
        self.endings[ending as usize].load(Ordering::Relaxed)
    }
    pub(super) fn count(&self, ending: Ending) {
        self.endings[ending as usize].fetch_add(1, Ordering::Relaxed);
    }
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const CUT: u8 = 2;

struct Drain {
    stage: AtomicU8,
    started: OnceLock<Instant>,
    /// Wakes every connection when the stage changes.
    changed: Notify,
    /// Wakes who waits for the last connection to end.
    empty: Notify,
    shutdown: watch::Sender<bool>,
    /// Never read itself, so that every clone sees the change as new, also one made after it.
    watch: ShutdownWatch,
}

/// The right to one connection; dropping it gives it back.
pub(super) struct Permit {
    state: Arc<ListenerState>,
    client: Option<Guard>,
}

impl Permit {
    /// Counts the connection among those of its client.
    pub fn count_for(&mut self, client: IpAddr, settings: &Settings) -> Result<(), Ending> {
        let Some(limit) = settings.limits.connections_per_client else { return Ok(()) };
        if is_trusted(client, &settings.trusted_proxies) {
            return Ok(());
        }
        let (guard, count) = self.state.per_client.incr(limited_as(client), 1);
        self.client = Some(guard);
        if count <= limit as isize { Ok(()) } else { Err(Ending::ClientLimit) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let last = self.state.counters.active.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && self.state.draining() {
            self.state.drain.empty.notify_waiters();
        }
    }
}

impl ListenerState {
    /// Compiles a listener. `path` is its place in the configuration, as in `listeners.https`.
    pub fn new(
        name: &str,
        written: &config::Listener,
        drain: &server::Drain,
        path: &str,
        problems: &mut Problems,
    ) -> Option<Arc<ListenerState>> {
        let settings = Settings::compile(written, drain, path, None, problems)?;
        let (shutdown, watch) = watch::channel(false);
        Some(Arc::new(ListenerState {
            name: name.into(),
            settings: ArcSwap::from_pointee(settings),
            counters: Counters::default(),
            per_client: Inflight::new(),
            drain: Drain {
                stage: AtomicU8::new(RUNNING),
                started: OnceLock::new(),
                changed: Notify::new(),
                empty: Notify::new(),
                shutdown,
                watch,
            },
        }))
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Compiles what a changed configuration makes of this listener, without taking it into use: the whole
    /// configuration must compile before any part of it is applied.
    pub fn prepare(
        &self,
        written: &config::Listener,
        drain: &server::Drain,
        path: &str,
        problems: &mut Problems,
    ) -> Option<Settings> {
        let current = self.settings();
        let settings = Settings::compile(written, drain, path, Some(&current), problems)?;
        let fixed = |s: &Settings| (s.address.clone(), s.mode, s.tls.is_some(), s.h2c());
        if fixed(&settings) != fixed(&current) {
            problems.add(
                path,
                "the address, its mode, and whether it speaks TLS or h2c change only by `headgate upgrade` or a restart",
            );
            return None;
        }
        Some(settings)
    }

    /// Takes settings into use, for connections from now on.
    pub fn apply(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// [`prepare`](Self::prepare) and [`apply`](Self::apply) in one. On a problem the old settings serve on.
    pub fn reload(
        &self,
        written: &config::Listener,
        drain: &server::Drain,
        path: &str,
        problems: &mut Problems,
    ) -> bool {
        match self.prepare(written, drain, path, problems) {
            Some(settings) => {
                self.apply(settings);
                true
            }
            None => false,
        }
    }

    pub(super) fn admit(self: &Arc<Self>, settings: &Settings) -> Result<Permit, Ending> {
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let others = self.counters.active.fetch_add(1, Ordering::AcqRel);
        let permit = Permit { state: self.clone(), client: None };
        if others < settings.limits.connections as usize { Ok(permit) } else { Err(Ending::ConnectionLimit) }
    }

    /// Whether the process is on its way out: answers then say `Connection: close`.
    pub fn draining(&self) -> bool {
        self.drain.stage.load(Ordering::Relaxed) != RUNNING
    }

    /// Begins the drain: HTTP/2 clients get GOAWAY, HTTP/1 answers from now on end their connections, and connections
    /// that are idle, or become it, close after a short while. Called again it does nothing.
    pub fn begin_drain(&self) {
        if self.drain.started.set(Instant::now()).is_ok() {
            self.drain.stage.store(DRAINING, Ordering::Release);
            self.drain.shutdown.send_replace(true);
            self.drain.changed.notify_waiters();
            log::info!("listener {}: draining", self.name);
        }
    }

    /// Ends every connection: WebSockets with a close frame, all others at once.
    pub fn cut(&self) {
        self.begin_drain();
        self.drain.stage.store(CUT, Ordering::Release);
        self.drain.changed.notify_waiters();
    }

    /// Returns when no connection is open. Meaningful once the listener has stopped accepting.
    pub async fn drained(&self) {
        // Two looks, because the connections accepted last may still be on their way here.
        let mut looks = 0;
        while looks < 2 {
            let empty = self.drain.empty.notified();
            if self.counters.active() == 0 {
                looks += 1;
                tokio::time::sleep(Duration::from_millis(25)).await;
            } else {
                looks = 0;
                // Nobody tells if the last one ends before the drain has begun: look again now and then.
                let _ = tokio::time::timeout(Duration::from_millis(250), empty).await;
            }
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.drain.stage.load(Ordering::Acquire) == CUT
    }

    pub(super) fn drain_started(&self) -> Option<Instant> {
        if self.draining() { self.drain.started.get().copied() } else { None }
    }

    pub(super) fn stage(&self) -> u8 {
        self.drain.stage.load(Ordering::Acquire)
    }

    pub(super) fn stage_changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.drain.changed.notified()
    }

    pub(super) fn shutdown_watch(&self) -> ShutdownWatch {
        self.drain.watch.clone()
    }
}

/// The unit that connections per client are counted by: a household has an IPv6 network, not an address.
fn limited_as(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

impl Settings {
    fn compile(
        written: &config::Listener,
        drain: &server::Drain,
        path: &str,
        previous: Option<&Settings>,
        problems: &mut Problems,
    ) -> Option<Settings> {
        let before = problems.0.len();
        let address = parse_address(&written.address, path, problems);
        let mode = parse_mode(written, &address, path, problems);
        let protocols = protocols(written, path, problems);
        let trusted_proxies = parse_networks(&written.trusted_proxies, &format!("{path}.trusted_proxies"), problems);
        if written.proxy_protocol && written.trusted_proxies.is_empty() {
            problems.add(
                format!("{path}.proxy_protocol"),
                "needs `trusted_proxies`: a PROXY header is only believed from those",
            );
        }
        for (name, zero) in [
            ("connections", written.limits.connections == 0),
            ("connections_per_client", written.limits.connections_per_client == Some(0)),
            ("header_size", written.limits.header_size.get() == 0),
            ("header_count", written.limits.header_count == 0),
            ("uri", written.limits.uri.get() == 0),
            ("requests_per_connection", written.limits.requests_per_connection == Some(0)),
            ("http2_streams", written.limits.http2_streams == 0),
        ] {
            if zero {
                problems.add(format!("{path}.limits.{name}"), "must be more than 0");
            }
        }
        if written.limits.header_size.get() > 1 << 20 || written.limits.header_count > 256 {
            problems.add(format!("{path}.limits"), "headers are at most 1MiB and 256 in number");
        }
        let timeouts = &written.timeouts;
        for (name, timeout) in [
            ("handshake", timeouts.handshake),
            ("header", timeouts.header),
            ("keep_alive", timeouts.keep_alive),
            ("body", timeouts.body),
            ("write", timeouts.write),
            ("upgraded", timeouts.upgraded),
        ] {
            if timeout.get().is_zero() {
                problems.add(format!("{path}.timeouts.{name}"), "must be more than 0");
            }
        }
        let tls = written.tls.as_ref().and_then(|tls| {
            let previous = previous.and_then(|p| p.tls.as_ref());
            Tls::compile(tls, &protocols, &format!("{path}.tls"), previous, problems)
        });
        if problems.0.len() > before {
            return None;
        }
        Some(Settings {
            address: address?,
            mode,
            protocols,
            limits: written.limits.clone(),
            trusted_proxies,
            proxy_protocol: written.proxy_protocol,
            timeouts: Timeouts {
                handshake: timeouts.handshake.get(),
                header: timeouts.header.get(),
                keep_alive: timeouts.keep_alive.get(),
                body: timeouts.body.get(),
                write: timeouts.write.get(),
                upgraded: timeouts.upgraded.get(),
                drain_idle: drain.idle.get(),
                drain_timeout: drain.timeout.get(),
                min_rate: written.limits.min_rate.get(),
            },
            tls,
        })
    }

    /// The certificates in use, for metrics and status.
    pub fn certificates(&self) -> &[CertificateInfo] {
        self.tls.as_ref().map_or(&[], |tls| tls.certificates())
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn speaks(&self, protocol: Protocol) -> bool {
        self.protocols.contains(&protocol)
    }

    pub(super) fn h2c(&self) -> bool {
        self.protocols == [Protocol::H2c]
    }

    /// Where the listener listens, as Pingora writes it.
    pub fn address(&self) -> &str {
        match &self.address {
            Address::Tcp(address) | Address::Unix(address) => address,
        }
    }

    /// The endpoint for Pingora: always without TLS, which is done here.
    pub(super) fn endpoint(&self) -> ListenerConfig {
        let endpoint = match &self.address {
            Address::Unix(path) => ListenerConfig::uds(path).permissions(Permissions::from_mode(self.mode)),
            Address::Tcp(address) => {
                let mut options = TcpSocketOptions::default();
                // A peer that vanished without a word is found out within two minutes.
                options.tcp_keepalive = Some(TcpKeepalive {
                    idle: Duration::from_secs(60),
                    interval: Duration::from_secs(15),
                    count: 4,
                    user_timeout: Duration::ZERO,
                });
                ListenerConfig::tcp(address).tcp_socket_options(options)
            }
        };
        // Both buffers are allocated for every connection. Plain reads go straight into the parser's own buffer; TLS
        // reads in steps of 4 KiB, which the buffer makes fewer. The write buffer holds a header with a small body.
        let read = if self.is_tls() { 8 << 10 } else { 0 };
        endpoint.l4_buffer(L4BufferSettings::new(read, 4 << 10))
    }

    pub(super) fn server_options(&self) -> HttpServerOptions {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(self.timeouts.keep_alive);
        options
    }

    pub(super) fn h2_options(&self) -> H2Options {
        let mut options = default_h2_options();
        options.max_concurrent_streams(self.limits.http2_streams);
        options.max_header_list_size(self.limits.header_size.get().min(64 << 10) as u32);
        options
    }
}

fn parse_address(text: &str, path: &str, problems: &mut Problems) -> Option<Address> {
    let path = format!("{path}.address");
    if let Some(socket) = text.strip_prefix("unix:") {
        // A successor inherits the sockets by a list of addresses that is joined by spaces.
        if !socket.starts_with('/') || socket.contains(char::is_whitespace) || socket.len() > 107 {
            problems.add(path, format!("`{socket}` is not an absolute path of at most 107 bytes without spaces"));
            return None;
        }
        return Some(Address::Unix(socket.to_owned()));
    }
    match text.parse::<SocketAddr>() {
        Ok(_) => Some(Address::Tcp(text.to_owned())),
        Err(_) => {
            problems.add(
                path,
                format!("`{text}` is neither `address:port`, as in 0.0.0.0:8080, nor `unix:` and an absolute path"),
            );
            None
        }
    }
}

fn parse_mode(written: &config::Listener, address: &Option<Address>, path: &str, problems: &mut Problems) -> u32 {
    const DEFAULT: u32 = 0o660;
    let Some(mode) = &written.mode else { return DEFAULT };
    if matches!(address, Some(Address::Tcp(_))) {
        problems.add(format!("{path}.mode"), "only a Unix socket has a file mode");
    }
    match u32::from_str_radix(mode, 8) {
        Ok(mode) if mode <= 0o777 => mode,
        _ => {
            problems.add(format!("{path}.mode"), format!("`{mode}` is not a file mode, such as 0660"));
            DEFAULT
        }
    }
}

fn protocols(written: &config::Listener, path: &str, problems: &mut Problems) -> Vec<Protocol> {
    let path = format!("{path}.protocols");
    let Some(protocols) = &written.protocols else {
        return if written.tls.is_some() { vec![Protocol::Http1, Protocol::Http2] } else { vec![Protocol::Http1] };
    };
    let has = |protocol| protocols.contains(&protocol);
    if protocols.is_empty() {
        problems.add(&path, "names no protocol");
    }
    if has(Protocol::H2c) && (protocols.len() > 1 || written.tls.is_some()) {
        problems.add(&path, "`h2c` stands alone on its listener, without TLS");
    }
    if has(Protocol::Http2) && written.tls.is_none() {
        problems.add(&path, "`http2` needs `tls`; without TLS it is `h2c`, on a listener of its own");
    }
    protocols.clone()
}
