//! What answers a route.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ai::AiRoute;
use super::mcp::Mcp;
use super::units::{Duration, Share};

/// What answers the requests of a route: exactly one of these.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The upstream of this name.
    Upstream(String),
    /// Several upstreams: shares of the traffic, and conditions that send a request to a certain one.
    Split(Split),
    /// An answer written here.
    Respond(Respond),
    /// Sends the client elsewhere.
    Redirect(Redirect),
    /// The models of the section `ai`.
    Ai(AiRoute),
    /// Tools for agents.
    Mcp(Box<Mcp>),
}

/// Divides traffic over upstreams, for canaries and experiments.
///
/// ```yaml
/// split:
///   targets: [{ upstream: stable, weight: 95 }, { upstream: canary, weight: 5 }]
///   sticky: { cookie: variant }
///   choose: [{ when: { header: { x-canary: always } }, upstream: canary }]
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The upstreams and their weights.
    #[schemars(length(min = 1))]
    pub targets: Vec<SplitTarget>,
    /// Keeps a client with the upstream it was first given. Without it, each request is drawn anew.
    pub sticky: Option<Sticky>,
    /// Conditions that go before the weights and before stickiness; the first that holds decides.
    #[serde(default)]
    pub choose: Vec<Choose>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitTarget {
    /// The upstream of this name.
    pub upstream: String,
    /// Its part of the sum of all weights; 0 gives it none.
    #[serde(default = "one")]
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// Name of the cookie that remembers the upstream. The gateway sets it; its value tells nothing about the upstream.
    #[schemars(length(min = 1))]
    pub cookie: String,
    /// How long the client keeps the cookie. Default: until the browser closes.
    pub max_age: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Choose {
    /// All of it must hold.
    pub when: When,
    /// The upstream of this name.
    pub upstream: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("minProperties" = 1))]
pub struct When {
    /// Header names and the exact value that one of their lines has.
    pub header: BTreeMap<String, String>,
    /// Cookie names and their exact value.
    pub cookie: BTreeMap<String, String>,
}

/// Answers without any origin: a fixed page, a mock, a maintenance notice.
///
/// The body may hold variables. In a JSON, HTML or XML body their values are escaped for it, so that nothing a client
/// sends can change the document around them.
///
/// ```yaml
/// respond:
///   status: 503
///   headers: { retry-after: "120", content-type: application/json }
///   body: '{"message": "Back soon", "request": "${request.id}"}'
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Respond {
    /// From 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Headers of the answer. `content-type` defaults to `text/plain; charset=utf-8`, or `application/json` with `json`.
    pub headers: BTreeMap<String, String>,
    /// The body as text.
    pub body: Option<String>,
    /// The body as a document, sent as JSON with its content type. Not together with `body`.
    pub json: Option<serde_json::Value>,
}

impl Default for Respond {
    fn default() -> Self {
        Respond { status: 200, headers: BTreeMap::new(), body: None, json: None }
    }
}

/// A redirection. Either `to`, or the parts of the request's URL that change, such as `scheme: https`; the rest stays as
/// requested.
///
/// ```yaml
/// redirect: { to: "https://example.com/new${request.path}", status: 302 }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("minProperties" = 1))]
pub struct Redirect {
    /// The whole target; may hold variables such as `${request.path}`.
    pub to: Option<String>,
    pub scheme: Option<Scheme>,
    pub host: Option<String>,
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The new path. The query of the request is kept.
    pub path: Option<String>,
    /// 301 and 302 let clients change the method to GET, 308 and 307 keep it.
    pub status: RedirectStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    Http,
    Https,
}

/// A status that redirects: 301, 302, 303, 307 or 308. Default: 308, permanent and with the method kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "u16", into = "u16")]
#[schemars(with = "u16", extend("enum" = [301, 302, 303, 307, 308]))]
pub struct RedirectStatus(u16);

impl RedirectStatus {
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for RedirectStatus {
    fn default() -> Self {
        RedirectStatus(308)
    }
}

impl TryFrom<u16> for RedirectStatus {
    type Error = &'static str;

    fn try_from(status: u16) -> Result<Self, Self::Error> {
        match status {
            301 | 302 | 303 | 307 | 308 => Ok(RedirectStatus(status)),
            _ => Err("a redirection has one of the statuses 301, 302, 303, 307, 308"),
        }
    }
}

impl From<RedirectStatus> for u16 {
    fn from(status: RedirectStatus) -> u16 {
        status.0
    }
}

/// Sends a copy of some requests to another upstream. Its answers are ignored, and its failures harm nobody.
///
/// ```yaml
/// mirror: { upstream: shadow, share: 5% }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The upstream of this name.
    pub upstream: String,
    /// The share of requests that are copied.
    #[serde(default = "everything")]
    pub share: Share,
}

fn everything() -> Share {
    Share(1.0)
}
