//! Services and their routes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, Mirror};
use super::filter_entry::FilterEntry;
use super::route_match::RouteMatch;

/// One published API at one version.
///
/// ```yaml
/// services:
///   orders:
///     version: v1
///     hosts: [api.example.com]
///     filters:
///       - ip_restriction: { allow: [10.0.0.0/8] }
///     routes:
///       list: { match: { path: "/orders/{id}", methods: [GET] }, backend: { upstream: orders } }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The version that callers know, such as `v1`. It is information: it appears in logs and metrics, and selects
    /// nothing.
    pub version: Option<String>,
    /// Who may call. Default: `authenticated` on routes with a filter that authenticates, else `open`.
    pub access: Option<Access>,
    /// How many of a route's filters that authenticate have to succeed: any, or all of them.
    #[serde(default)]
    pub require: Require,
    /// Hosts of all routes that name none themselves: exact, or `*.example.com`. Empty: any host.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Filters on every route of this service. A route's own filter of the same name replaces the one here.
    #[serde(default)]
    pub filters: Vec<FilterEntry>,
    /// The routes by name. Names appear in logs, metrics and `headgate explain`.
    #[schemars(length(min = 1), extend("propertyNames" = super::root::name_schema()))]
    pub routes: BTreeMap<String, Route>,
}

/// Who may call a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Everyone. Whoever presents credentials is identified by them, and refused if they are no good.
    Open,
    /// Whoever is identified by a filter that authenticates.
    Authenticated,
    /// Consumers with an approved subscription to this service; its plan limits them.
    Subscribers,
}

/// Which of several filters that authenticate have to succeed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Require {
    /// One: the first that finds good credentials decides who calls.
    #[default]
    Any,
    /// Each of them, and they have to agree on the consumer.
    All,
}

/// Which requests, what happens to them on the way, and who answers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The requests that this route takes.
    #[serde(rename = "match")]
    pub matches: RouteMatch,
    /// Filters on this route. Each replaces the one of the same name on the service or the gateway.
    #[serde(default)]
    pub filters: Vec<FilterEntry>,
    /// What answers.
    pub backend: Backend,
    /// Sends a copy of some requests to a second upstream, whose answers are ignored.
    pub mirror: Option<Mirror>,
}
