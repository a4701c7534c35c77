//! What is written about the access log and traces.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::units::{Duration, Share, Size};

/// One line for each request.
///
/// ```yaml
/// access_log:
///   to: { file: /var/log/headgate/access.log }
///   format: json
///   fields: { tenant: "${request.header.x-tenant}" }
///   sample: 10%
///   always: { status: 400, duration: 1s }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// Where lines go: `off`, `stdout`, `stderr` or `{ file: PATH }`. A file is opened again when it has been renamed or
    /// removed, and on SIGUSR1.
    pub to: Destination,
    /// How a line looks: `json`, `combined` (as nginx and Apache write it) or `{ template: "..." }` with variables.
    pub format: Format,
    /// Further members of a JSON line, each a text with variables.
    pub fields: BTreeMap<String, String>,
    /// Names of query parameters, headers and cookies whose values are hidden, beside the usual ones such as `token`,
    /// `api_key`, `password` or `authorization`. Traces hide them too.
    pub redact: Vec<String>,
    /// Share of the requests that are logged.
    pub sample: Share,
    /// Requests that are logged whatever `sample` says.
    pub always: Always,
    /// Memory for lines that are not written yet. When it is used up, because the destination is slower than the traffic
    /// or does not take anything, lines are dropped and counted: requests never wait.
    pub buffer: Size,
}

/// Where lines of the access log go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    Off,
    Stdout,
    Stderr,
    File(PathBuf),
}

/// How a line of the access log looks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Json,
    Combined,
    Template(String),
}

/// Requests that are logged whatever the share: those that meet one of these conditions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Always {
    /// Answers with this status or a higher one, and requests that got no answer.
    pub status: u16,
    /// Requests that took at least this long.
    pub duration: Option<Duration>,
}

/// Traces by OpenTelemetry. The W3C trace context is kept from the client or begun here, and sent to the origin.
///
/// ```yaml
/// tracing:
///   endpoint: http://otel-collector:4318/v1/traces
///   sample: 5%
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// The collector's address for traces by OTLP over HTTP (protobuf). Without it there are no traces.
    pub endpoint: Option<String>,
    /// Headers sent to the collector. A value may be `env:NAME` or `file:PATH`, to keep a secret out of the configuration.
    pub headers: BTreeMap<String, HeaderText>,
    /// The share of the requests that are traced, of those for which the client has not decided.
    pub sample: Share,
    /// Whether a client's trace context is continued, and its decision to sample followed. Say `ignore` where clients are
    /// not trusted: with `follow`, a client can have all its requests traced.
    pub parent: Parent,
    /// Value of the resource attribute `service.name`.
    pub service_name: String,
    /// Further resource attributes.
    pub attributes: BTreeMap<String, String>,
    /// Finished spans kept until they are sent; more are dropped and counted.
    pub queue: usize,
    /// Longest time that spans wait for others to be sent with.
    pub interval: Duration,
    /// Longest time for one delivery.
    pub timeout: Duration,
}

/// What becomes of a client's trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Parent {
    Follow,
    Ignore,
}

/// The value of a header for a collector, which may be a secret: it is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct HeaderText(pub String);

impl std::fmt::Debug for HeaderText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl AccessLog {
    /// No log at all.
    pub fn off() -> Self {
        AccessLog { to: Destination::Off, ..AccessLog::default() }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        AccessLog {
            to: Destination::Stdout,
            format: Format::Json,
            fields: BTreeMap::new(),
            redact: Vec::new(),
            sample: Share(1.0),
            always: Always::default(),
            buffer: Size::mib(32),
        }
    }
}

impl Default for Always {
    fn default() -> Self {
        Always { status: 500, duration: None }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Tracing {
            endpoint: None,
            headers: BTreeMap::new(),
            sample: Share(0.01),
            parent: Parent::Follow,
            service_name: "headgate".to_owned(),
            attributes: BTreeMap::new(),
            queue: 4096,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        }
    }
}
