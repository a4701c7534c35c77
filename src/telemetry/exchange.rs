//! The record of one request: begun when it is received, complete when it has been answered.
//!
//! Filters read it as the facts of the request; metrics, access log and traces read it when it is finished.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::error::Reason;
use crate::identity::certificate::ClientCertificate;
use crate::identity::{Consumer, Identity};
use crate::routing::Captures;

/// How the client's connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// The names a route is known by in logs, metrics and variables.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteName {
    pub service: Arc<str>,
    pub route: Arc<str>,
}

/// What is known of one request. Fields below a heading are set by the phase that the heading names.
#[derive(Debug)]
pub struct Exchange {
    // Receive
    pub started: Instant,
    /// Kept from the client if valid, else made here; sent upstream and in the answer as `X-Request-Id`.
    pub request_id: HeaderValue,
    /// The client's address, after trusted proxies have been walked through.
    pub client: IpAddr,
    /// The listener's name in the configuration.
    pub listener: Arc<str>,
    pub scheme: Scheme,
    /// Lower case, without port and trailing dot; empty if the request names none.
    pub host: String,
    /// The port of the authority, or the scheme's default.
    pub port: u16,
    /// The path and query as the client sent them, kept only when the forwarded ones differ.
    pub original_target: Option<Box<str>>,
    /// Whether a body follows the head, which may turn out to be empty.
    pub has_body: bool,

    // Route
    pub route: Option<Arc<RouteName>>,
    pub captures: Captures,

    // Filters
    /// Who calls, once a filter has found out.
    pub identity: Option<Identity>,
    /// The certificate that the client has shown.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The limit that was hit, if one was.
    pub limit: Option<Arc<str>>,
    /// What is wrong with a request that was refused, where the caller is not told.
    pub cause: Option<&'static str>,
    /// The call of a model, if it is one.
    pub ai: Option<Box<AiCall>>,
    /// The message to a server of tools, if it is one.
    pub mcp: Option<Box<McpCall>>,

    // Backend
    pub upstream: Option<Arc<str>>,
    /// Address of the last target tried.
    pub target: Option<Arc<str>>,
    /// Attempts made at targets: 0 if the gateway answered itself, 2 after one retry.
    pub attempts: u32,
    /// Time from the start of the last attempt to its connection, zero when one was reused.
    pub upstream_connect: Option<Duration>,
    /// Time from the start of the last attempt to the first byte of its answer.
    pub upstream_first_byte: Option<Duration>,

    // Finish
    /// 0 when no answer was sent.
    pub status: u16,
    /// Why the gateway answered itself, or why the exchange ended early.
    pub reason: Option<Reason>,
    /// Body bytes received from the client.
    pub request_bytes: u64,
    /// Body bytes sent to the client.
    pub response_bytes: u64,
    pub duration: Duration,
}

/// One call of a model. What is not known yet, or was not told, is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AiCall {
    /// The name that the caller asked for.
    pub requested: Box<str>,
    /// The caller's dialect.
    pub format: &'static str,
    pub stream: bool,
    /// What is asked for, in OpenTelemetry's words (`gen_ai.operation.name`).
    pub operation: &'static str,
    /// Of the last attempt.
    pub provider: Arc<str>,
    /// What OpenTelemetry calls the provider (`gen_ai.provider.name`).
    pub provider_kind: Arc<str>,
    /// The provider's name of the model, of the last attempt.
    pub model: Arc<str>,
    /// Which of the provider's keys, by its place in the configuration.
    pub key: Option<Arc<str>>,
    pub attempts: u32,
    /// When the call was read.
    pub started: Option<Instant>,
    /// From then to the first content of a streamed answer.
    pub first_token: Option<Duration>,
    /// From `started` to the end.
    pub duration: Option<Duration>,
    pub tokens: Option<Tokens>,
    /// Nano-dollars; `None` if the price or the tokens are unknown.
    pub cost: Option<u64>,
    /// The tokens were counted here, because the provider did not tell them.
    pub counted: bool,
    /// Why the answer ended, in OpenAI's words.
    pub finish: Option<&'static str>,
    /// The caller has an answer that ends in no such way: vectors, images, speech, whatever a provider keeps.
    pub served: bool,
    /// Whether the answer was given before: `hit`, `semantic`, `miss`, `bypass`; `None` where none are kept.
    pub cache: Option<&'static str>,
    /// What guardrails have done, never about which text.
    pub guardrails: Vec<Verdict>,
    /// The caller has left, and the answer is read on for its usage: what is known here is what came until then.
    pub drained: bool,
    /// The answer broke off, or its caller left, and what it has used is not known: it is taken to be what was reserved.
    pub cut: bool,
    /// What attempts have used that were billed and failed; no part of `tokens` and `cost`.
    pub lost: Lost,
    /// What budgets have reserved for the call: tokens, and nano-dollars if the price is known.
    pub reserved: Option<(u64, Option<u64>)>,
    /// Only of calls whose trace is sampled.
    pub traced: Option<Box<TracedCall>>,
}

/// What a guardrail has done about a call or its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub guardrail: Arc<str>,
    /// `input` or `output`.
    pub on: &'static str,
    /// `block`, `mask`, `log`, or `error` where whoever had to be asked has not answered.
    pub action: &'static str,
    /// How often.
    pub count: u32,
}

/// What only traces tell of a call: its parameters, and how the provider identifies the answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TracedCall {
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u64>,
    pub seed: Option<i64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub choices: Option<u64>,
    pub stop_sequences: Vec<String>,
    pub response_id: Option<String>,
    pub response_model: Option<String>,
}

/// One message to a server of tools. What does not belong to its method is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct McpCall {
    /// Of the protocol; `batch` for several messages at once, `response` for one that answers a server.
    pub method: Box<str>,
    /// The tool, prompt or resource that is asked for, by the name that callers know.
    pub name: Option<Box<str>>,
    /// The server behind it; `None` if the gateway answers itself.
    pub server: Option<Arc<str>>,
    /// The code of the error that it was answered with.
    pub error: Option<i64>,
    /// The tool was called, and says that it has failed.
    pub tool_failed: bool,
    /// The name is one that is offered, and may be a label.
    pub known: bool,
}

/// What attempts have used that were billed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    pub tokens: Tokens,
    /// Nano-dollars.
    pub cost: u64,
    /// Some of it has no price.
    pub unpriced: bool,
}

/// Tokens as the provider bills them: those of the cache are part of `input`, those of reasoning of `output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    pub reasoning: u64,
}

impl Tokens {
    pub fn plus(&self, other: &Tokens) -> Tokens {
        Tokens {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cache_read: self.cache_read.saturating_add(other.cache_read),
            cache_write: self.cache_write.saturating_add(other.cache_write),
            reasoning: self.reasoning.saturating_add(other.reasoning),
        }
    }
}

impl Lost {
    /// What has come to it since it was `before`.
    pub fn since(&self, before: &Lost) -> Lost {
        let tokens = Tokens {
            input: self.tokens.input.saturating_sub(before.tokens.input),
            output: self.tokens.output.saturating_sub(before.tokens.output),
            cache_read: self.tokens.cache_read.saturating_sub(before.tokens.cache_read),
            cache_write: self.tokens.cache_write.saturating_sub(before.tokens.cache_write),
            reasoning: self.tokens.reasoning.saturating_sub(before.tokens.reasoning),
        };
        let unpriced = self.unpriced && !before.unpriced;
        Lost { tokens, cost: self.cost.saturating_sub(before.cost), unpriced }
    }
}

impl AiCall {
    pub fn new(requested: &str, format: &'static str, stream: bool) -> AiCall {
        AiCall { requested: requested.into(), format, operation: "chat", stream, ..AiCall::default() }
    }

    /// Whether a provider has answered it to the end.
    pub fn is_answered(&self) -> bool {
        self.finish.is_some() || self.served
    }
}

impl Exchange {
    pub fn consumer(&self) -> Option<&Arc<Consumer>> {
        self.identity.as_ref()?.consumer.as_ref()
    }

    /// The service and route as labels; both are `-` before a route is found.
    pub fn names(&self) -> (&str, &str) {
        self.route.as_ref().map_or(("-", "-"), |name| (&name.service, &name.route))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use pingora::http::{RequestHeader, ResponseHeader};

    use super::*;

    /// A request that has everything, for the tests of whatever reads exchanges.
    pub(crate) fn exchange() -> Exchange {
        Exchange {
            started: Instant::now(),
            request_id: HeaderValue::from_static("0197-id"),
            client: "2001:db8::1".parse().unwrap(),
            listener: "edge".into(),
            scheme: Scheme::Https,
            host: "api.example.com".into(),
            port: 8443,
            original_target: Some("/orders/7?page=2&token=s3cret".into()),
            has_body: true,
            route: Some(Arc::new(RouteName { service: "shop".into(), route: "list".into() })),
            captures: Captures(vec![("id".into(), "7".into())]),
            identity: Some(crate::identity::tests::identity()),
            certificate: None,
            limit: None,
            cause: None,
            ai: None,
            mcp: None,
            upstream: Some("orders".into()),
            target: Some("10.0.0.1:80".into()),
            attempts: 2,
            upstream_connect: Some(Duration::from_micros(450)),
            upstream_first_byte: Some(Duration::from_millis(250)),
            status: 200,
            reason: Some(Reason::UpstreamReset),
            request_bytes: 12,
            response_bytes: 3456,
            duration: Duration::from_micros(1_002_003),
        }
    }

    /// The request as it was forwarded: rewritten from `/orders/7`.
    pub(crate) fn request() -> RequestHeader {
        let mut head = RequestHeader::build("GET", b"/internal/7?page=2&token=s3cret", None).unwrap();
        head.insert_header("user-agent", "curl/8").unwrap();
        head.insert_header("referer", "https://example.com/?code=abc").unwrap();
        head.append_header("x-many", "a").unwrap();
        head.append_header("x-many", "b").unwrap();
        head.insert_header("cookie", "theme=dark; session=s3cret").unwrap();
        head
    }

    pub(crate) fn response() -> ResponseHeader {
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("content-type", "text/plain").unwrap();
        head
    }
}
