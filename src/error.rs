//! The one error of the data path: what happened, whose fault it is, and whether trying again may help.
//!
//! [`Reason`] is the closed list that answers, logs, metrics and `Proxy-Status` share.

use std::borrow::Cow;
use std::fmt;

use http::{HeaderName, HeaderValue};

/// Who has to change something for the request to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Client,
    Upstream,
    Gateway,
}

/// Declares [`Reason`] and its tables from one list, so that no table can miss an entry.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $status:literal, $fault:ident, $title:literal, $proxy_status:literal;)*) => {
        /// Why the gateway itself answered, or why an exchange ended early.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in declaration order.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The word used in problem types, logs and metric labels.
            pub fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)* }
            }
            /// The HTTP status of an answer made for this reason.
            pub fn status(self) -> u16 {
                match self { $(Reason::$name => $status,)* }
            }
            pub fn fault(self) -> Fault {
                match self { $(Reason::$name => Fault::$fault,)* }
            }
            /// The `title` member of the problem document (RFC 9457, section 3.1.3).
            pub fn title(self) -> &'static str {
                match self { $(Reason::$name => $title,)* }
            }
            /// The `error` parameter of `Proxy-Status` (RFC 9209, section 2.3).
            pub fn proxy_status(self) -> &'static str {
                match self { $(Reason::$name => $proxy_status,)* }
            }
        }
    };
}

reasons! {
    /// The bytes are not one unambiguous HTTP request.
    BadRequest = "bad_request", 400, Client, "Bad request", "http_request_error";
    /// A guardrail, or a provider's filter, refuses what is asked of a model.
    ContentFiltered = "content_filtered", 400, Client, "Refused for its content", "http_request_denied";
    /// The path has no single canonical form.
    BadPath = "bad_path", 400, Client, "Ambiguous path", "http_request_error";
    BadHost = "bad_host", 400, Client, "Bad host", "http_request_error";
    /// The route wants to know who calls, and the request does not say.
    Unauthenticated = "unauthenticated", 401, Client, "Authentication required", "http_request_denied";
    /// The request says who calls, and it is not true or true no more.
    InvalidCredentials = "invalid_credentials", 401, Client, "Invalid credentials", "http_request_denied";
    Forbidden = "forbidden", 403, Client, "Forbidden", "http_request_denied";
    /// The service is for subscribers, and the caller has no approved subscription.
    NotSubscribed = "not_subscribed", 403, Client, "No subscription", "http_request_denied";
    /// Nobody knows what the model costs, and a budget of money holds for the caller.
    PriceUnknown = "price_unknown", 403, Client, "Price of the model unknown", "http_request_denied";
    RouteNotFound = "route_not_found", 404, Client, "No such route", "http_request_denied";
    /// No model has this name, or the caller may not call it.
    ModelNotFound = "model_not_found", 404, Client, "No such model", "http_request_denied";
    MethodNotAllowed = "method_not_allowed", 405, Client, "Method not allowed", "http_request_denied";
    RequestTimeout = "request_timeout", 408, Client, "Request not completed in time", "http_request_error";
    BodyTooLarge = "body_too_large", 413, Client, "Request body too large", "http_request_denied";
    UriTooLong = "uri_too_long", 414, Client, "Request target too long", "http_request_denied";
    /// The host is not one that this connection's certificate was chosen for (RFC 9110, section 15.5.20).
    Misdirected = "misdirected", 421, Client, "Misdirected request", "http_request_denied";
    /// Too much work of one kind at once.
    TooManyRequests = "too_many_requests", 429, Client, "Too many requests", "http_request_denied";
    /// Too many requests in too short a time.
    RateLimited = "rate_limited", 429, Client, "Rate limit exceeded", "http_request_denied";
    /// As many requests as the caller may make in this period.
    QuotaExceeded = "quota_exceeded", 429, Client, "Quota exceeded", "http_request_denied";
    /// A budget of tokens or money is used up.
    BudgetExceeded = "budget_exceeded", 429, Client, "Budget exceeded", "http_request_denied";
    /// A limit on requests in flight at a time is reached.
    ConcurrencyExceeded = "concurrency_exceeded", 429, Client, "Too many requests at a time", "http_request_denied";
    HeadersTooLarge = "headers_too_large", 431, Client, "Request headers too large", "http_request_denied";
    /// The client left before the answer was complete; nothing can be sent.
    ClientClosed = "client_closed", 499, Client, "Client closed the connection", "http_request_error";
    Internal = "internal", 500, Gateway, "Internal error", "proxy_internal_error";
    /// Bodies that are held take all the memory that they may.
    OutOfMemory = "out_of_memory", 503, Gateway, "Too much held in memory", "proxy_internal_error";
    /// A fault that the configuration asked for.
    FaultInjected = "fault_injected", 503, Gateway, "Injected fault", "http_request_denied";
    UpstreamRefused = "upstream_connect_failed", 502, Upstream, "Upstream refused the connection", "connection_refused";
    UpstreamTls = "upstream_tls_failed", 502, Upstream, "TLS to the upstream failed", "tls_certificate_error";
    UpstreamReset = "upstream_reset", 502, Upstream, "Upstream closed the connection", "connection_terminated";
    UpstreamProtocol = "upstream_protocol", 502, Upstream, "Upstream sent an invalid answer", "http_protocol_error";
    /// Whoever knows about the caller's credentials cannot be asked.
    AuthorityUnavailable = "authority_unavailable", 503, Gateway, "Credentials cannot be verified now", "destination_unavailable";
    NoHealthyTarget = "no_healthy_target", 503, Upstream, "No healthy target", "destination_unavailable";
    CircuitOpen = "circuit_open", 503, Upstream, "Circuit breaker open", "destination_unavailable";
    UpstreamOverloaded = "upstream_overloaded", 503, Upstream, "Upstream at its limit of requests in flight", "connection_limit_reached";
    ConnectTimeout = "upstream_connect_timeout", 504, Upstream, "Connecting to the upstream took too long", "connection_timeout";
    UpstreamTimeout = "upstream_timeout", 504, Upstream, "Upstream took too long", "http_response_timeout";
}

/// Something that ends a request before its backend could answer it.
#[derive(Debug, Clone)]
pub struct Error {
    pub reason: Reason,
    /// What the caller may be told beyond the title; never internals.
    pub detail: Option<Cow<'static, str>>,
    /// Headers of the answer, such as `WWW-Authenticate` or `Retry-After`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Further members of the problem document (RFC 9457, section 3.2).
    pub members: Vec<(&'static str, serde_json::Value)>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(reason: Reason) -> Self {
        Error { reason, detail: None, headers: Vec::new(), members: Vec::new() }
    }

    pub fn with(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Error { detail: Some(detail.into()), ..Error::new(reason) }
    }

    /// Adds a header to the answer.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds a member to the problem document.
    pub fn member(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.members.push((name, value.into()));
        self
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Error::new(reason)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.reason.label()),
            None => f.write_str(self.reason.label()),
        }
    }
}

impl std::error::Error for Error {}
