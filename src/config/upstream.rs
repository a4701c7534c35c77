//! Upstreams as they are written: targets, balance, health, limits, retries, timeouts, TLS.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use super::SecretRef;
use super::units::{Duration, Share};

/// A named set of targets that answer the same requests.
///
/// ```yaml
/// orders:
///   targets: [{ address: "10.0.0.1:9001", weight: 2 }, { address: "10.0.0.2:9001" }]
///   balance: least_connections
///   health:
///     active: { http: { path: /healthz }, interval: 2s }
///     passive: { consecutive_failures: 5, eject_for: 30s }
///   retry: { attempts: 2 }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Where requests go. At least one.
    pub targets: Vec<Target>,
    /// How a target is chosen among those available.
    #[serde(default)]
    pub balance: Balance,
    /// Keeps a client on the target that it was first sent to, by a cookie. It wins over `balance` while that target
    /// is available.
    #[serde(default)]
    pub sticky: Option<Sticky>,
    /// How long a target that is new, or has come back, takes to reach its full share of requests. Consistent hashing
    /// ignores it: a ramp would move keys twice.
    #[serde(default)]
    pub slow_start: Option<Duration>,
    /// How failing targets are found and taken out of service.
    #[serde(default)]
    pub health: Health,
    /// Stops sending for a while once too large a share of all requests fails.
    #[serde(default)]
    pub breaker: Option<Breaker>,
    /// Caps on requests in flight; what exceeds them is answered 503 at once, nothing queues.
    #[serde(default)]
    pub limits: Limits,
    /// Second attempts.
    #[serde(default)]
    pub retry: Retry,
    /// Time limits on each attempt, and on the whole.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Speak TLS to the targets. `tls: {}` verifies against the system's authorities.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// The HTTP version spoken to the targets.
    #[serde(default)]
    pub protocol: Protocol,
    /// Connections kept open between requests.
    #[serde(default)]
    pub keep_alive: KeepAlive,
    /// Requests that share one HTTP/2 connection at a time; the target's own limit holds too. 1 to 1000.
    #[serde(default = "default_max_streams")]
    pub max_streams: usize,
}

fn default_max_streams() -> usize {
    100
}

impl Upstream {
    /// One that consists of an address, such as other sections than `upstreams` name, with the defaults of all else.
    pub fn of_address(address: String, timeouts: Timeouts, tls: Option<Tls>) -> Upstream {
        Upstream {
            targets: vec![Target { address, weight: 1, backup: false, tier: 0, name: None }],
            balance: Balance::default(),
            sticky: None,
            slow_start: None,
            health: Health::default(),
            breaker: None,
            limits: Limits::default(),
            retry: Retry::default(),
            timeouts,
            tls,
            protocol: Protocol::default(),
            keep_alive: KeepAlive::default(),
            max_streams: default_max_streams(),
        }
    }
}

/// One origin server, or a name that stands for several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `10.0.0.1:9001`, `[2001:db8::1]:9001`, `orders.internal:9001` (every A and AAAA record is a target),
    /// `srv:_http._tcp.orders.internal` (every SRV record is one, with its weight and priority), or
    /// `unix:/run/orders.sock`.
    pub address: String,
    /// Share of the requests relative to the other targets, up to 10000. 0 sends it no new requests; a client that
    /// sticks to it by cookie may still finish there.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// The same as `tier: 1`.
    #[serde(default)]
    pub backup: bool,
    /// Targets of a tier receive requests only while no target of a lower tier is available. 0 comes first.
    #[serde(default)]
    pub tier: u8,
    /// How `/status`, metrics and logs call this target. By default its address.
    #[serde(default)]
    pub name: Option<String>,
}

fn default_weight() -> u32 {
    1
}

/// How a target is chosen.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight, evenly interleaved.
    #[default]
    RoundRobin,
    /// By weight, at random.
    Random,
    /// The target with the fewest requests in flight for its weight; of more than sixteen, the better of two drawn.
    LeastConnections,
    /// Of two drawn, the one whose recent time to first byte times its requests in flight is lower.
    PeakEwma,
    /// The same key goes to the same target, and few keys move when targets come or go (ketama, as nginx has it).
    ConsistentHash(ConsistentHash),
}

/// What is hashed, and how unequal the load may become.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsistentHash {
    /// The key. A request that has none is sent to a random target.
    pub on: HashOn,
    /// A target takes at most this factor of its fair share of the requests in flight; what exceeds it goes to the next
    /// on the ring. Above 1, for example 1.25. Absent: no bound.
    #[serde(default)]
    pub bounded_load: Option<f64>,
}

/// The part of a request that is the key of consistent hashing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// The client's address.
    Address,
    /// The path, without the query.
    Path,
    /// The value of this header.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this query parameter, as it is written in the URL.
    Query(String),
}

/// The cookie that binds a client to a target.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// The cookie's name.
    pub cookie: String,
    /// How long the client keeps it. Absent: until the browser closes.
    #[serde(default)]
    pub ttl: Option<Duration>,
    #[serde(default = "default_cookie_path")]
    pub path: String,
    /// Sent by browsers over https only.
    #[serde(default)]
    pub secure: bool,
    #[serde(default)]
    pub same_site: SameSite,
    /// Key of the hash that hides the target's address in the cookie's value. Without it the value still is not the
    /// address, but who guesses an address can confirm the guess. Gateways that share clients need the same secret.
    #[serde(default)]
    pub secret: Option<SecretRef>,
}

fn default_cookie_path() -> String {
    "/".into()
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameSite {
    Strict,
    #[default]
    Lax,
    /// Needs `secure: true`.
    None,
}

/// How failing targets are found.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Ask each target regularly.
    pub active: Option<ActiveHealth>,
    /// Watch the answers to real requests.
    pub passive: Option<PassiveHealth>,
}

/// A regular question to each target; exactly one of `http`, `tcp` and `grpc`. The first check decides at once, later
/// ones by the thresholds.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActiveHealth {
    /// Healthy if the answer has an expected status.
    #[serde(default)]
    pub http: Option<HttpCheck>,
    /// Healthy if a connection, with TLS where the upstream has it, can be made.
    #[serde(default)]
    pub tcp: Option<TcpCheck>,
    /// Healthy if `grpc.health.v1.Health/Check` says SERVING.
    #[serde(default)]
    pub grpc: Option<GrpcCheck>,
    /// Time from one check of a target to the next; spread by up to a tenth, so that checks do not march in step.
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// A check that takes longer has failed.
    #[serde(default = "default_check_timeout")]
    pub timeout: Duration,
    /// Consecutive good checks until an unhealthy target is healthy.
    #[serde(default = "default_healthy_after")]
    pub healthy_after: u32,
    /// Consecutive bad checks until a healthy target is unhealthy.
    #[serde(default = "default_unhealthy_after")]
    pub unhealthy_after: u32,
    /// Ask at this port instead of the target's own.
    #[serde(default)]
    pub port: Option<u16>,
}

fn default_interval() -> Duration {
    Duration::from_secs(5)
}
fn default_check_timeout() -> Duration {
    Duration::from_secs(2)
}
fn default_healthy_after() -> u32 {
    2
}
fn default_unhealthy_after() -> u32 {
    3
}

/// A GET whose answer's status decides.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpCheck {
    pub path: String,
    /// The `Host` that is sent. By default the target's address as it is written; for `srv:` the domain after
    /// `_service._proto.`, for a Unix socket `localhost`.
    pub host: Option<String>,
    /// Statuses of a healthy target: `200`, `2xx` or `200-399`.
    pub expect: Vec<StatusRange>,
    /// Text that the first 64 KiB of the answer must contain.
    pub contains: Option<String>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        HttpCheck { path: "/".into(), host: None, expect: vec![StatusRange { from: 200, to: 299 }], contains: None }
    }
}

/// A connection is all that is asked.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TcpCheck {}

/// The gRPC health protocol, over HTTP/2.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcCheck {
    /// The service asked about. Empty: the server as a whole.
    pub service: String,
}

/// Takes a target out of service for a while when real requests to it go wrong.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PassiveHealth {
    /// Failures in a row that eject a target.
    pub consecutive_failures: u32,
    /// Answers that count as failures, beside refused, reset and timed out connections.
    pub statuses: Vec<StatusRange>,
    /// How long the first ejection lasts; the second in succession lasts twice as long, the third three times.
    pub eject_for: Duration,
    /// No ejection lasts longer. A target that then serves this long without another starts over at `eject_for`.
    pub max_eject_for: Duration,
    /// At most this share of the targets is ejected at a time, rounded down: of one target none, of two one. When it is
    /// reached, failing targets stay in service.
    pub max_ejected: Share,
    /// Ejects targets that are much slower than the others.
    pub slow: Option<SlowTargets>,
}

impl Default for PassiveHealth {
    fn default() -> Self {
        PassiveHealth {
            consecutive_failures: 5,
            statuses: [502, 503, 504].map(StatusRange::one).to_vec(),
            eject_for: Duration::from_secs(30),
            max_eject_for: Duration::from_secs(300),
            max_ejected: Share(0.5),
            slow: None,
        }
    }
}

/// A target is too slow if its mean time to first byte over `window` is above `factor` times the median of all targets
/// and above `at_least`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlowTargets {
    /// Times the median. More than 1.
    pub factor: f64,
    /// Targets faster than this are never ejected for being slow.
    pub at_least: Duration,
    /// Targets that answered fewer requests within the window are not judged.
    pub min_requests: u32,
    /// How often targets are judged.
    pub window: Duration,
}

impl Default for SlowTargets {
    fn default() -> Self {
        SlowTargets {
            factor: 3.0,
            at_least: Duration::from_millis(100),
            min_requests: 20,
            window: Duration::from_secs(10),
        }
    }
}

/// Opens when too large a share of an upstream's requests fails: every request is then answered 503 at once. After
/// `open_for` a few are let through; if all succeed it closes, if one fails it opens again.
///
/// It watches the upstream as a whole. Single bad targets are the business of `health`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Share of failed requests within `window` that opens it.
    pub failures: Share,
    /// With fewer requests in `window` it stays closed.
    pub min_requests: u32,
    pub window: Duration,
    pub open_for: Duration,
    /// Requests let through on probation; all must succeed.
    pub half_open_requests: u32,
    /// Answers that count as failures, beside refused, reset and timed out connections.
    pub statuses: Vec<StatusRange>,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker {
            failures: Share(0.5),
            min_requests: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(10),
            half_open_requests: 3,
            statuses: vec![StatusRange { from: 500, to: 599 }],
        }
    }
}

/// Caps on requests in flight. Absent: no cap.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// For each target; a target at its limit is passed over.
    pub requests_per_target: Option<u32>,
    /// For the upstream as a whole.
    pub requests: Option<u32>,
}

/// When a failed attempt is followed by another, on another target if there is one.
///
/// Requests whose method is not idempotent (POST, PATCH) are repeated only after `connect_error`, where the origin has
/// seen nothing, unless `non_idempotent` says otherwise. Nothing is repeated once a part of the answer has reached the
/// client, nor when the body was too long to keep (64 KiB).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts in total. 1 switches retries off; at most 10.
    pub attempts: u32,
    /// What is worth another attempt.
    pub on: Vec<RetryOn>,
    /// Answers worth another attempt, such as `503`. Sensible only where the origin says by them that it did nothing.
    pub statuses: Vec<StatusRange>,
    /// Also repeat POST and PATCH.
    pub non_idempotent: bool,
    pub budget: RetryBudget,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 2,
            on: vec![RetryOn::ConnectError, RetryOn::ConnectTimeout, RetryOn::Reset],
            statuses: Vec::new(),
            non_idempotent: false,
            budget: RetryBudget::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// No connection: refused, unreachable, TLS failed.
    ConnectError,
    /// No connection in time.
    ConnectTimeout,
    /// The connection ended before an answer came.
    Reset,
    /// No answer in time.
    Timeout,
    /// The answer was not HTTP.
    InvalidAnswer,
}

/// Bounds retries in proportion to requests, so that they cannot multiply the load on an upstream in trouble. A retry
/// after a refused connection is free: it has cost no target anything.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Retries per request, on average.
    pub share: Share,
    /// Retries allowed each second in any case.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget { share: Share(0.2), min_per_second: 3 }
    }
}

/// Time limits on the origin. One that runs out is answered 504.
///
/// Over HTTP/2, or where it may be negotiated, connections are shared between requests, and the shorter of
/// `first_byte` and `idle` holds for both.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until connected, TLS included.
    pub connect: Duration,
    /// From the request being sent to the first byte of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the answer, and of the request towards the origin.
    pub idle: Duration,
    /// From the first attempt to the end of the answer; of a WebSocket, to the switch. Absent: no limit.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: None,
        }
    }
}

/// TLS to the targets.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Check the target's certificate and name. `false` accepts anybody: for tests.
    pub verify: bool,
    /// PEM file of the authorities to trust instead of the system's. Here and below, relative to the configuration's
    /// folder.
    pub ca: Option<PathBuf>,
    /// PEM file of the certificate, with its chain, to show to targets that ask for one. Needs `key`.
    pub certificate: Option<PathBuf>,
    /// PEM file of the key of `certificate`.
    pub key: Option<PathBuf>,
    /// The name asked for and checked. By default the name in the target's address (for `srv:`, the domain after
    /// `_service._proto.`), or its IP address. Unix sockets need it.
    pub sni: Option<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Tls { verify: true, ca: None, certificate: None, key: None, sni: None }
    }
}

/// The HTTP version spoken to targets. WebSockets need HTTP/1.1: with `auto` it is spoken for them, with `http2` and `h2c`
/// they are refused with 502.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// With TLS, HTTP/2 if the target offers it; else HTTP/1.1.
    #[default]
    Auto,
    Http1,
    /// HTTP/2 over TLS.
    Http2,
    /// HTTP/2 in clear text, without asking first.
    H2c,
}

/// Connections kept open between requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeepAlive {
    /// An idle connection is closed after this time. Keep it below the target's own limit.
    pub idle: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        KeepAlive { idle: Duration::from_secs(60) }
    }
}

/// Statuses, written `503`, `5xx` or `500-504`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    pub from: u16,
    pub to: u16,
}

impl StatusRange {
    pub const fn one(status: u16) -> Self {
        StatusRange { from: status, to: status }
    }
    pub fn contains(self, status: u16) -> bool {
        self.from <= status && status <= self.to
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = |part: &str| part.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
        let range = match text.split_once('-') {
            Some((from, to)) => status(from).zip(status(to)),
            None => match text.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok()) {
                Some(class @ 1..=5) => Some((class * 100, class * 100 + 99)),
                _ => status(text).map(|status| (status, status)),
            },
        };
        match range {
            Some((from, to)) if from <= to => Ok(StatusRange { from, to }),
            _ => Err(format!("`{text}` is not a status; write one such as 503, 5xx or 500-504")),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (from, to) if from == to => write!(f, "{from}"),
            (from, to) if from % 100 == 0 && to == from + 99 => write!(f, "{}xx", from / 100),
            (from, to) => write!(f, "{from}-{to}"),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A number or a text, since `503` is a number in YAML and `5xx` is not.
        struct Written;

        impl serde::de::Visitor<'_> for Written {
            type Value = StatusRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as 503, 5xx or 500-504")
            }
            fn visit_u64<E: serde::de::Error>(self, status: u64) -> Result<StatusRange, E> {
                status.to_string().parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, status: i64) -> Result<StatusRange, E> {
                status.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusRange, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl serde::Serialize for StatusRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for StatusRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StatusRange".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "pattern": "^[1-5]([0-9]{2}|xx)(-[1-5][0-9]{2})?$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, ConfigSchema};

    #[test]
    fn a_status_is_a_number_a_class_or_a_range() {
        let range = |text: &str| text.parse::<StatusRange>();
        assert_eq!(range("503"), Ok(StatusRange::one(503)));
        assert_eq!(range("5xx"), Ok(StatusRange { from: 500, to: 599 }));
        assert_eq!(range("200-399"), Ok(StatusRange { from: 200, to: 399 }));
        for wrong in ["", "5", "6xx", "0xx", "xx", "504-500", "99", "1000", "-1", "500-"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        let read: Vec<StatusRange> = serde_json::from_str(r#"[502, "5xx"]"#).unwrap();
        assert_eq!(read, [StatusRange::one(502), StatusRange { from: 500, to: 599 }]);
    }

    #[test]
    fn one_address_is_a_whole_upstream() {
        let upstream: Upstream = serde_json::from_str(r#"{"targets": [{"address": "127.0.0.1:1"}]}"#).unwrap();
        assert_eq!(upstream.targets[0].weight, 1);
        assert_eq!(upstream.balance, Balance::RoundRobin);
        assert_eq!(upstream.retry.attempts, 2);
        assert_eq!(upstream.timeouts.connect, Duration::from_secs(5));
        assert_eq!(upstream.max_streams, 100);
    }

    /// Reads YAML as the gateway does.
    fn read(yaml: &str) -> Result<Upstream, Vec<String>> {
        let schema = ConfigSchema::of::<Upstream>(&[]);
        match config::load_str::<Upstream>("a.yaml", yaml, &schema, &|_| None) {
            Ok(loaded) => Ok(loaded.config),
            Err(problems) => Err(problems.0.iter().map(|problem| problem.to_string()).collect()),
        }
    }

    #[test]
    fn everything_that_is_documented_can_be_written_in_yaml() {
        let upstream = read(
            r#"
targets:
  - { address: "10.0.0.1:9001", weight: 2, name: first }
  - { address: unix:/run/a.sock, backup: true }
  - { address: "srv:_http._tcp.a.example", tier: 2 }
balance: { consistent_hash: { on: { header: x-tenant }, bounded_load: 1.25 } }
sticky: { cookie: node, ttl: 1h, path: /, secure: true, same_site: strict, secret: env:STICKY }
slow_start: 30s
health:
  active:
    http: { path: /healthz, host: a.example, expect: [200, 3xx, 401-403], contains: ok }
    interval: 2s
    timeout: 1s
    healthy_after: 1
    unhealthy_after: 2
    port: 8081
  passive:
    consecutive_failures: 5
    statuses: [500, 502-504]
    eject_for: 30s
    max_eject_for: 5m
    max_ejected: 50%
    slow: { factor: 3, at_least: 100ms, min_requests: 20, window: 10s }
breaker: { failures: 50%, min_requests: 20, window: 10s, open_for: 10s, half_open_requests: 3, statuses: [5xx] }
limits: { requests_per_target: 100, requests: 1000 }
retry:
  attempts: 3
  on: [connect_error, connect_timeout, reset, timeout, invalid_answer]
  statuses: [503]
  non_idempotent: true
  budget: { share: 20%, min_per_second: 3 }
timeouts: { connect: 5s, first_byte: 60s, idle: 60s, total: 5m }
tls: { verify: true, ca: ca.pem, certificate: c.pem, key: k.pem, sni: a.example }
protocol: http2
keep_alive: { idle: 60s }
max_streams: 100
"#,
        )
        .unwrap_or_else(|problems| panic!("{problems:#?}"));
        let active = upstream.health.active.unwrap();
        assert_eq!(active.http.unwrap().expect[1], StatusRange { from: 300, to: 399 });
        for balance in ["round_robin", "random", "least_connections", "peak_ewma"] {
            read(&format!("targets: [{{ address: a:1 }}]\nbalance: {balance}")).unwrap();
        }
        for on in ["address", "path", "{ cookie: a }", "{ query: a }"] {
            read(&format!("targets: [{{ address: a:1 }}]\nbalance: {{ consistent_hash: {{ on: {on} }} }}")).unwrap();
        }
        read("targets: [{ address: a:1 }]\nhealth: { active: { grpc: { service: a } } }").unwrap();
        read("targets: [{ address: a:1 }]\nhealth: { active: { tcp: {} } }").unwrap();
    }

    #[test]
    fn mistakes_in_yaml_are_named_with_their_neighbour() {
        for (yaml, words) in [
            ("balance: least_connection", "least_connections"),
            ("helth: {}", "health"),
            ("retry: { on: [resett] }", "reset"),
            ("breaker: { statuses: [6xx] }", "breaker.statuses[0]"),
            ("timeouts: { connect: 5 }", "timeouts.connect"),
        ] {
            let problems = read(&format!("targets: [{{ address: a:1 }}]\n{yaml}")).err().unwrap();
            assert!(problems.len() == 1 && problems[0].contains(words), "{yaml}: {problems:?}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for wrong in [
            r#"{"targets": [], "ballance": "random"}"#,
            r#"{"targets": [{"address": "127.0.0.1:1", "wait": 1}]}"#,
            r#"{"targets": [], "tls": {"verfy": false}}"#,
            r#"{"targets": [], "balance": {"consistent_hash": {"on": "address", "load": 2}}}"#,
        ] {
            assert!(serde_json::from_str::<Upstream>(wrong).is_err(), "{wrong}");
        }
    }
}
